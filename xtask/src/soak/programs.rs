//! Running programs to their end within a limit. One that is given up is killed.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;

/// For what takes seconds at most, failovers included.
pub(crate) const SOON: Duration = Duration::from_secs(90);
/// For a copy or a pass of load.
pub(crate) const LATER: Duration = Duration::from_secs(240);

/// A program with the surroundings that all get. The directories of the system's packages come first: a tool that starts
/// `python3` needs the one that its own package is for.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Command {
    let rest = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{rest}"))
        .env("LC_ALL", "C");
    command
}

/// Runs a program that must succeed; answers with what it printed.
pub(crate) async fn run(
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> anyhow::Result<String> {
    finish(command(program, arguments), limit).await
}

/// The same for a command that was made elsewhere.
pub(crate) async fn finish(mut command: Command, limit: Duration) -> anyhow::Result<String> {
    let called = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(limit, command.output())
        .await
        .with_context(|| format!("{called}: not done within {limit:?}"))?
        .with_context(|| called.clone())?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{called}: {}\n{}\n{}",
        output.status,
        end(&printed),
        end(&errors)
    )
}

/// The last lines: programs say at the end what went wrong.
fn end(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
