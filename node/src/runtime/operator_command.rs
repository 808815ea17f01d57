//! Commands that an operator configured: the external fence and the hooks. Runs one, bounded in time and in what is kept
//! of its output, and leaves no process behind when its time is over.
//!
//! * It inherits nothing but a plain `PATH`: standard input is empty, the directory is `/`.
//! * It runs in a process group of its own. At the timeout, or when this process gives it up, the whole group is killed.
//!   What a command that succeeded leaves running in the background is its own affair.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// A command and how long it may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorCommand {
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// It is killed then.
    pub timeout: Duration,
}

/// What a command is told, in its environment.
pub type Variables = Vec<(&'static str, String)>;

impl OperatorCommand {
    /// Runs it to its end. One sentence: which command, how it ended and what it wrote last.
    ///
    /// # Errors
    /// The same sentence, if it did not start, was killed at the timeout, or did not exit with 0.
    pub async fn run(&self, variables: Variables) -> Result<String, String> {
        let mut output = Output::default();
        let ended = self.run_into(variables, &mut output).await;
        let program = self.program.display();
        let wrote = output.text();
        let (ok, how) = match ended {
            Ok(Some(status)) if status.success() => (true, "succeeded".to_owned()),
            Ok(Some(status)) => (false, format!("failed ({status})")),
            Ok(None) => (false, format!("was killed after {:?}", self.timeout)),
            Err(error) => (false, format!("did not run ({error})")),
        };
        let sentence = if wrote.is_empty() {
            format!("`{program}` {how}")
        } else {
            format!("`{program}` {how}: {wrote}")
        };
        if ok { Ok(sentence) } else { Err(sentence) }
    }

    async fn run_into(
        &self,
        variables: Variables,
        output: &mut Output,
    ) -> io::Result<Option<std::process::ExitStatus>> {
        let give_up = Instant::now() + self.timeout;
        let (mut reader, mut group) = self.spawn(variables)?;
        let mut open = true;
        let status = loop {
            tokio::select! {
                status = group.child.wait() => break status?,
                more = output.read(&mut reader), if open => open = more,
                () = tokio::time::sleep_until(give_up) => return Ok(None),
            }
        };
        group.ended = true;
        // What it left in the background may hold the pipe open for ever.
        let rest = async { while open && output.read(&mut reader).await {} };
        let _still_open = tokio::time::timeout(LAST_WORDS, rest).await;
        Ok(Some(status))
    }

    fn spawn(&self, variables: Variables) -> io::Result<(pipe::Receiver, Group)> {
        let (reader, writer) = io::pipe()?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", PLAIN_PATH)
            .envs(variables)
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        let group = Group {
            child,
            ended: false,
        };
        Ok((pipe::Receiver::from_owned_fd(reader.into())?, group))
    }
}

/// The processes of one command. Killed when dropped, unless the first of them has ended by itself.
struct Group {
    child: Child,
    ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        // Until it was waited for, the id is still its own.
        let id = self.child.id().filter(|_| !self.ended);
        let leader = id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(leader) = leader {
            let _gone = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// The end of what a command wrote.
#[derive(Debug, Default)]
struct Output(Vec<u8>);

impl Output {
    /// Reads on. False at the end.
    async fn read(&mut self, from: &mut pipe::Receiver) -> bool {
        let mut buffer = [0; 1024];
        let Ok(read) = from.read(&mut buffer).await else {
            return false;
        };
        self.keep(&buffer[..read]);
        read > 0
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(OUTPUT_BYTES_MAX);
        self.0.drain(..excess);
    }

    /// On one line, as an event is.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("; ")
    }
}

/// Beyond this the beginning is forgotten: a command says last why it failed.
const OUTPUT_BYTES_MAX: usize = 4 << 10;
/// For what is in the pipe when a command has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Where scripts find the tools of the system.
const PLAIN_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> OperatorCommand {
        OperatorCommand {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            timeout,
        }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_command_is_told_what_it_is_about_and_inherits_nothing_else() {
        let script = "read line; env | sort | grep -v -e ^PWD -e ^OLDPWD -e ^_ -e ^SHLVL; pwd";
        let variables = vec![("MAINSTAY_NODE", "7".to_owned())];
        let said = shell(script, LONG).run(variables).await;
        let expected = format!("`/bin/sh` succeeded: MAINSTAY_NODE=7; PATH={PLAIN_PATH}; /");
        assert_eq!(said, Ok(expected));
    }

    #[tokio::test]
    async fn a_failure_says_what_was_written_last() {
        let script = "seq 1 100000; echo no answer from the switch >&2; exit 3";
        let said = shell(script, LONG).run(Vec::new()).await;
        let said = said.expect_err("it failed");
        assert!(said.contains("exit status: 3"), "{said}");
        assert!(
            said.ends_with("100000; no answer from the switch"),
            "{said}"
        );
        assert!(said.len() < 3 * OUTPUT_BYTES_MAX, "{}", said.len());

        let missing = OperatorCommand {
            program: "/nonexistent/fence".into(),
            ..shell("", LONG)
        };
        let said = missing.run(Vec::new()).await.expect_err("not there");
        assert!(said.contains("did not run"), "{said}");
    }

    #[tokio::test]
    async fn at_the_timeout_the_whole_group_is_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let pids = dir.path().join("pids");
        let script = format!(
            "sleep 1000 & echo $! >{pids}.new; echo $$ >>{pids}.new; mv {pids}.new {pids}; wait",
            pids = pids.display()
        );
        // The clock of the test stands still until the script has got there.
        let run =
            tokio::spawn(
                async move { shell(&script, Duration::from_secs(2)).run(Vec::new()).await },
            );
        let said = run.await.expect("no panic").expect_err("killed");
        assert!(said.contains("was killed after 2s"), "{said}");
        let written = std::fs::read_to_string(&pids).expect("it ran");
        for pid in written.lines() {
            let pid: u32 = pid.parse().expect("a process id");
            while !crate::processes::is_ending(pid) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn what_a_command_leaves_in_the_background_holds_nobody_up() {
        let began = Instant::now();
        let said = shell("sleep 5 & echo done", LONG).run(Vec::new()).await;
        assert_eq!(said, Ok("`/bin/sh` succeeded: done".to_owned()));
        assert!(began.elapsed() < LONG);
    }
}
