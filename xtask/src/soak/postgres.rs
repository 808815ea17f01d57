//! PostgreSQL on ext4 on a volume. pgbench inserts rows with ids of their own and logs every transaction that it was told had
//! committed, while primaries are killed. Then the server is stopped as by a crash, the volume is mounted through another node,
//! and after recovery each logged row must be there, the balances must add up, and pg_amcheck and VACUUM (FULL) find nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

use super::mount::{Attached, Mounted};
use super::programs::{LATER, SOON, command, finish, run as run_program};
use super::rig::{GATEWAY, Going, Plan, Rig, VICTIMS};
use crate::tools::Tool;

pub(crate) const NEEDS: [Tool; 5] = [
    Tool {
        package: "libnbd-bin",
        proof: "nbdfuse",
    },
    Tool {
        package: "fuse3",
        proof: "fusermount3",
    },
    Tool {
        package: "e2fsprogs",
        proof: "mke2fs",
    },
    Tool {
        package: "mount",
        proof: "losetup",
    },
    Tool {
        package: "postgresql",
        proof: VERSIONS,
    },
];

/// Debian's place for all versions.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The package makes it. A server refuses to run as root.
const USER: &str = "postgres";
const DISK_BYTES: u64 = 512 << 20;
const KILLS: u32 = 2;
const CLIENTS: &str = "4";
/// Of one run of pgbench.
const RUN: Duration = Duration::from_secs(5);

const SCHEMA: &str = "\
    CREATE TABLE ledger (run int, client int, n int, account int, amount int, PRIMARY KEY (run, client, n));
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    INSERT INTO accounts SELECT id, 0 FROM generate_series(1, 1000) AS id;";

const TRANSACTION: &str = "\
\\set n :n + 1
\\set account random(1, 1000)
\\set amount random(-100, 100)
BEGIN;
INSERT INTO ledger VALUES (:run, :client_id, :n, :account, :amount);
UPDATE accounts SET balance = balance + :amount WHERE id = :account;
END;
";

/// Accounts whose balance is not the sum of what the ledger says.
const WRONG: &str = "\
    SELECT count(*) FROM accounts LEFT JOIN
      (SELECT account, sum(amount) AS total FROM ledger GROUP BY account) AS sums ON id = account
    WHERE balance <> coalesce(total, 0)";

/// Transactions by run and client: each client numbers its own from 1.
type Committed = BTreeMap<(u32, u32), u32>;

pub(crate) async fn run(plan: &Plan) -> anyhow::Result<String> {
    let rig = Rig::start(plan, DISK_BYTES).await?;
    let seen = on(&rig).await?;
    rig.stop().await;
    Ok(seen)
}

async fn on(rig: &Rig) -> anyhow::Result<String> {
    let dir = rig.scratch();
    let mount = dir.join("mount");
    // The server's user has to come through.
    run_program("chmod", &["755", &dir.display().to_string()], SOON).await?;
    let device = Attached::new(&rig.uri(GATEWAY)?, &dir.join("fuse")).await?;
    device.make_ext4().await?;
    let mounted = device.mount(&mount).await?;
    let server = Server::create(dir, &mounted).await?;
    let running = server.start().await?;
    server.sql(SCHEMA).await?;
    let load = async |going: &Going| {
        let mut committed = Committed::new();
        let mut runs = 0;
        while going.on() {
            runs += 1;
            let run = server.pgbench(runs, &mut committed).await;
            run.with_context(|| format!("run {runs} of pgbench"))?;
        }
        Ok(committed)
    };
    let (kills, committed) = rig.under_kills(KILLS, load).await?;
    running.crash().await?;
    mounted.unmount().await?.detach().await?;

    let elsewhere = Attached::new(&rig.uri(VICTIMS[0])?, &dir.join("fuse-2")).await?;
    let mounted = elsewhere.mount(&mount).await?;
    let running = server.start().await?;
    let count = all_there(&server, &committed).await?;
    server.no_damage().await?;
    running.crash().await?;
    let device = mounted.unmount().await?;
    device.check_ext4().await?;
    device.detach().await?;
    Ok(format!(
        "{kills}; {count} transactions committed, all there after a crash and through node {}, pg_amcheck, VACUUM and e2fsck find nothing",
        VICTIMS[0]
    ))
}

/// Fails if a row is missing whose commit was told, or if there are more than could be on their way; how many were told.
async fn all_there(server: &Server, committed: &Committed) -> anyhow::Result<u64> {
    let rows = server.sql("SELECT run, client, n FROM ledger").await?;
    let mut there = BTreeSet::new();
    for row in rows.lines() {
        let numbers: Vec<u32> = row.split('|').map(str::parse).collect::<Result<_, _>>()?;
        let [run, client, n] = numbers[..] else {
            anyhow::bail!("a row of the ledger: {row}");
        };
        there.insert((run, client, n));
    }
    let mut told = 0;
    for (&(run, client), &count) in committed {
        let lost = (1..=count).find(|n| !there.contains(&(run, client, *n)));
        ensure!(
            lost.is_none(),
            "LOST: run {run}, client {client}: transaction {lost:?} of {count} was committed"
        );
        told += u64::from(count);
    }
    ensure!(told > 0, "pgbench committed nothing");
    // The last transaction of each client may have been cut off between its commit and the log.
    let untold = there.len() as u64 - told;
    ensure!(
        untold <= committed.len() as u64,
        "{untold} rows that nobody was told of"
    );
    let wrong = server.sql(WRONG).await?;
    ensure!(wrong.trim() == "0", "{wrong} balances are wrong");
    Ok(told)
}

/// A server whose data lies on the mount.
#[derive(Debug)]
struct Server {
    bin: PathBuf,
    data: String,
    /// Sockets, logs, scripts: not on the volume.
    side: PathBuf,
}

/// Its processes. Stopped as by a crash when this is dropped, which has to be before the mount goes.
#[derive(Debug)]
struct Running<'a> {
    /// `None` once it was stopped.
    server: Option<&'a Server>,
}

impl Server {
    async fn create(dir: &Path, mounted: &Mounted) -> anyhow::Result<Self> {
        let side = dir.join("postgres");
        let data = mounted.path().join("data");
        for folder in [&side, &data] {
            std::fs::create_dir(folder)?;
            let folder = folder.display().to_string();
            run_program("chown", &[USER, &folder], SOON).await?;
        }
        let server = Self {
            bin: newest()?,
            data: data.display().to_string(),
            side,
        };
        let arguments = ["-U", USER, "-A", "trust", "--locale=C", "--data-checksums"];
        server
            .call("initdb", &arguments, &["-D", &server.data])
            .await?;
        std::fs::write(server.side.join("script"), TRANSACTION)?;
        Ok(server)
    }

    /// A program of this version, as the server's user.
    fn program(&self, name: &str) -> Command {
        let program = self.bin.join(name).display().to_string();
        let mut command = command("runuser", &["-u", USER, "--", &program]);
        command.current_dir(&self.side);
        command
    }

    async fn call(&self, name: &str, first: &[&str], more: &[&str]) -> anyhow::Result<String> {
        let mut command = self.program(name);
        command.args(first).args(more);
        finish(command, LATER).await
    }

    /// Arguments of every client.
    fn connection(&self) -> [String; 4] {
        let side = self.side.display().to_string();
        ["-h".into(), side, "-U".into(), USER.into()]
    }

    /// Small buffers, so that much goes to the disk.
    async fn start(&self) -> anyhow::Result<Running<'_>> {
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories={} -c shared_buffers=8MB -c checkpoint_timeout=30s",
            self.side.display()
        );
        let mut command = self.program("pg_ctl");
        let log = self.side.join("server.log");
        command
            .args(["start", "--wait", "--silent", "-D", &self.data])
            .args(["-o", &options])
            .arg("-l")
            .arg(log);
        // The server would keep a pipe open for ever.
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let status = tokio::time::timeout(LATER, command.status()).await??;
        ensure!(
            status.success(),
            "PostgreSQL does not start:\n{}",
            std::fs::read_to_string(self.side.join("server.log")).unwrap_or_default()
        );
        Ok(Running { server: Some(self) })
    }

    async fn sql(&self, text: &str) -> anyhow::Result<String> {
        let mut command = self.program("psql");
        let quiet = ["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"];
        command.args(self.connection()).args(quiet).args([
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            text,
            "postgres",
        ]);
        finish(command, LATER).await
    }

    /// One run, and what it was told.
    async fn pgbench(&self, run: u32, committed: &mut Committed) -> anyhow::Result<()> {
        let prefix = format!("run-{run}");
        let seconds = RUN.as_secs().to_string();
        let mut command = self.program("pgbench");
        command
            .args(self.connection())
            .args(["--no-vacuum", "--file=script", "--log", "-D", "n=0"])
            .args(["-D", &format!("run={run}"), "--log-prefix", &prefix])
            .args(["-c", CLIENTS, "-T", &seconds, "postgres"]);
        finish(command, LATER).await?;
        let log = std::fs::read_dir(&self.side)?
            .filter_map(Result::ok)
            .find(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy().into_owned();
                name.starts_with(&format!("{prefix}."))
            });
        let log = log.context("pgbench left no log")?.path();
        count(&std::fs::read_to_string(log)?, run, committed)
    }

    async fn no_damage(&self) -> anyhow::Result<()> {
        let mut check = self.program("pg_amcheck");
        check
            .args(self.connection())
            .args(["--install-missing", "--heapallindexed", "postgres"]);
        finish(check, LATER).await?;
        self.sql("VACUUM (FULL)").await?;
        Ok(())
    }
}

impl Running<'_> {
    /// No shutdown checkpoint: what is there next time is what was committed.
    async fn crash(mut self) -> anyhow::Result<()> {
        if let Some(server) = self.server.take() {
            server.call("pg_ctl", &STOP, &["-D", &server.data]).await?;
        }
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(server) = self.server else {
            return;
        };
        let mut stop = std::process::Command::new("runuser");
        stop.args(["-u", USER, "--"])
            .arg(server.bin.join("pg_ctl"))
            .args(STOP)
            .args(["-D", &server.data]);
        // There is nobody to tell.
        let _done = stop.output();
    }
}

const STOP: [&str; 3] = ["stop", "--wait", "--mode=immediate"];

/// A line for each transaction: the client's number, then that of the transaction, then how long it took.
fn count(log: &str, run: u32, committed: &mut Committed) -> anyhow::Result<()> {
    for line in log.lines() {
        let mut fields = line.split(' ');
        let client = fields.next().and_then(|field| field.parse().ok());
        let took = fields.nth(1).and_then(|field| field.parse::<u64>().ok());
        let (client, _) = client
            .zip(took)
            .with_context(|| format!("a line of pgbench's log: {line}"))?;
        *committed.entry((run, client)).or_default() += 1;
    }
    Ok(())
}

/// The programs of the newest version.
fn newest() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS)?.filter_map(Result::ok);
    let versions = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let newest = versions.max().context("no version of PostgreSQL")?;
    Ok(Path::new(VERSIONS).join(newest.to_string()).join("bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_counted_by_client_and_failed_ones_are_errors() {
        let mut committed = Committed::new();
        let log = "0 0 1200 0 1700000000 1\n1 0 900 0 1700000000 2\n0 1 1100 0 1700000000 3\n";
        count(log, 7, &mut committed).expect("well formed");
        assert_eq!(committed, Committed::from([((7, 0), 2), ((7, 1), 1)]));
        count("0 2 failed 0 1 1\n", 7, &mut committed).expect_err("not committed");
    }
}
