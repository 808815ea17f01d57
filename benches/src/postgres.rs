//! PostgreSQL as a reference: a primary with two synchronous standbys (`ANY 1`), and single-row inserts by pgbench.
//!
//! Servers do not run as root: as root, this uses the user that Debian's package makes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::loads::Outcome;
use crate::report::{Load, histogram, record};

/// Debian's package.
pub const PACKAGE: &str = "postgresql";

const USER: &str = "postgres";
/// Debian's place for all versions.
const VERSIONS: &str = "/usr/lib/postgresql";
/// For everything but a load.
const PATIENCE: Duration = Duration::from_secs(120);
const SERVERS: [&str; 3] = ["primary", "s1", "s2"];

/// A primary and its standbys, stopped when it is dropped.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    started: Vec<&'static str>,
    runs: u32,
}

/// Where the newest installed version has its programs.
#[must_use]
pub fn installed() -> Option<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).ok()?;
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions
        .filter_map(|entry| Some(entry.ok()?.path()))
        .max_by_key(number)?;
    let bin = newest.join("bin");
    bin.join("pgbench").exists().then_some(bin)
}

impl Postgres {
    /// Makes and starts all three below `dir`, which must be reachable for the servers' user.
    ///
    /// # Errors
    /// One of its programs fails; the error has what it said.
    pub fn start(bin: PathBuf, dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join("postgres");
        std::fs::create_dir(&dir)?;
        let mut postgres = Self {
            bin,
            dir,
            started: Vec::new(),
            runs: 0,
        };
        if as_root() {
            let path = postgres.dir.display().to_string();
            run(Command::new("chown").args([USER, &path]))?;
        }
        let data = postgres.data(SERVERS[0]);
        let initdb = ["-A", "trust", "--locale=C", "-U", USER, "-D", &data];
        run(postgres.program("initdb").args(initdb))?;
        postgres.configure(SERVERS[0], "")?;
        postgres.start_one(SERVERS[0])?;
        for standby in &SERVERS[1..] {
            postgres.add_standby(standby)?;
        }
        postgres.sql("CREATE TABLE log (id bigserial PRIMARY KEY, record bytea NOT NULL)")?;
        postgres.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1, s2)'")?;
        postgres.sql("SELECT pg_reload_conf()")?;
        postgres.synchronous()?;
        Ok(postgres)
    }

    /// Waits until both standbys count.
    fn synchronous(&self) -> anyhow::Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let count = self.sql(
                "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'",
            )?;
            if count.trim() == "2" {
                return Ok(());
            }
            ensure!(
                Instant::now() < give_up,
                "PostgreSQL has {} synchronous standbys instead of 2",
                count.trim()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Keeps `load.in_flight` connections inserting one row at a time for `span`, rounded up to seconds.
    ///
    /// # Errors
    /// pgbench fails, or says nothing.
    pub fn run(&mut self, load: Load, span: Duration) -> anyhow::Result<Outcome> {
        self.runs += 1;
        let prefix = format!("run-{}", self.runs);
        let text = format!(
            "INSERT INTO log (record) VALUES ('\\x{}'::bytea);\n",
            "5a".repeat(load.record_bytes)
        );
        std::fs::write(self.dir.join("script"), text)?;
        let seconds = span.as_secs_f64().ceil().to_string();
        let clients = load.in_flight.to_string();
        let mut pgbench = self.limited("pgbench", span + PATIENCE);
        pgbench.arg("-h").arg(self.sockets(SERVERS[0]));
        pgbench
            .args(["--no-vacuum", "--protocol=prepared", "--file=script"])
            .args(["--log", "--log-prefix", &prefix])
            .args(["-c", &clients, "-j", "2", "-T", &seconds, "-U", USER, USER]);
        let said = run(&mut pgbench)?;
        let per_second = tps(&said).with_context(|| format!("pgbench says no rate:\n{said}"))?;
        let mut times = histogram();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(&prefix)) {
                let log = std::fs::read_to_string(&path)?;
                for micros in log.lines().filter_map(latency) {
                    record(&mut times, Duration::from_micros(micros));
                }
                std::fs::remove_file(path)?;
            }
        }
        ensure!(!times.is_empty(), "pgbench logged nothing:\n{said}");
        // Its log and what it prints are two counts of the same transactions.
        let counted = times.len();
        let told = processed(&said);
        ensure!(told == Some(counted), "pgbench logged {counted}:\n{said}");
        Ok(Outcome { per_second, times })
    }

    fn add_standby(&mut self, name: &'static str) -> anyhow::Result<()> {
        let data = self.data(name);
        let mut copy = self.client("pg_basebackup", SERVERS[0]);
        run(copy.args(["-D", &data, "--checkpoint=fast", "--wal-method=stream"]))?;
        let primary = format!(
            "primary_conninfo = 'host={} user={USER} application_name={name}'",
            self.sockets(SERVERS[0]).display()
        );
        self.configure(name, &primary)?;
        run(Command::new("touch").arg(format!("{data}/standby.signal")))?;
        self.start_one(name)
    }

    /// What it says in `postgresql.conf` beside the defaults: durability is as it comes.
    fn configure(&self, name: &str, more: &str) -> anyhow::Result<()> {
        let sockets = self.sockets(name);
        if !sockets.exists() {
            run(self.shell("mkdir").arg(&sockets))?;
        }
        let text = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 600\nmax_wal_size = 4GB\n\
             fsync = on\nsynchronous_commit = on\n{more}\n",
            sockets.display()
        );
        let path = PathBuf::from(self.data(name)).join("postgresql.conf");
        let mut conf = std::fs::read_to_string(&path)?;
        conf.push_str(&text);
        Ok(std::fs::write(path, conf)?)
    }

    fn start_one(&mut self, name: &'static str) -> anyhow::Result<()> {
        let log = self.dir.join(format!("{name}.log"));
        // Before it is: one that came up after its time is stopped, too.
        self.started.push(name);
        let mut start = self.program("pg_ctl");
        start
            .args(["start", "--wait", "--silent", "-D", &self.data(name), "-l"])
            .arg(&log)
            // The server would keep a pipe open for ever.
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = start.status()?;
        if !status.success() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("PostgreSQL's {name} does not start:\n{said}");
        }
        Ok(())
    }

    fn sql(&self, text: &str) -> anyhow::Result<String> {
        let mut psql = self.client("psql", SERVERS[0]);
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"]);
        run(psql.args(["-v", "ON_ERROR_STOP=1", "-c", text, USER]))
    }

    fn data(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn sockets(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-sockets"))
    }

    fn client(&self, program: &str, server: &str) -> Command {
        let mut command = self.program(program);
        command
            .arg("-h")
            .arg(self.sockets(server))
            .args(["-U", USER]);
        command
    }

    fn program(&self, name: &str) -> Command {
        self.limited(name, PATIENCE)
    }

    /// One of PostgreSQL's programs, ended if it takes longer: an insert that no standby acknowledges waits for ever.
    fn limited(&self, name: &str, limit: Duration) -> Command {
        let seconds = limit.as_secs().to_string();
        let mut command = self.shell("timeout");
        command.arg(seconds).arg(self.bin.join(name));
        command
    }

    /// A program as the servers' user.
    fn shell(&self, program: &str) -> Command {
        let mut command = if as_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", USER, "--", program]);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        for name in self.started.iter().rev() {
            let data = self.data(name);
            let mut stop = self.program("pg_ctl");
            let _gone = run(stop.args(["stop", "--silent", "--mode=immediate", "-D", &data]));
        }
    }
}

fn as_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt as _;
        own.uid() == 0
    })
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| shown.clone())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The rate in what pgbench prints.
fn tps(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The number of transactions in what pgbench prints.
fn processed(said: &str) -> Option<u64> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "))?;
    line.split('/').next()?.trim().parse().ok()
}

/// The microseconds in a line of pgbench's log: client, number, time, and more.
fn latency(line: &str) -> Option<u64> {
    line.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_prints_is_read() {
        let said = "number of transactions actually processed: 26813\n\
            latency average = 4.7 ms\n\
            tps = 13402.123456 (without initial connection time)\n";
        assert_eq!(tps(said), Some(13402.123456));
        assert_eq!(tps("nothing"), None);
        assert_eq!(processed(said), Some(26813));
        assert_eq!(processed("nothing"), None);
        assert_eq!(latency("3 17 4711 0 1700000000 123456"), Some(4711));
        assert_eq!(latency("3 17"), None);
    }
}
