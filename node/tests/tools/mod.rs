//! Running real tools, where they are installed. The convention is that of the tests of `nbd/`.
//!
//! They are in the Debian packages of `xtask/src/tools.rs`. Where `CI=true`, a missing tool is a failure; elsewhere the test says
//! that it was skipped.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(120);

/// Whether `tool` can be run. Says so when it cannot, and fails in CI.
pub(crate) fn require(tool: &str) -> bool {
    // System tools may lie outside an ordinary user's path.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(Into::into);
    let mut folders = std::env::split_paths(&path).chain(more);
    if folders.any(|folder| folder.join(tool).is_file()) {
        return true;
    }
    missing(&format!("`{tool}` is not installed"))
}

/// Whether `tool` runs with `arguments`: some need more than to be there. Says so when it does not, and fails in CI.
#[allow(dead_code, reason = "each test binary uses a part of it")]
pub(crate) async fn require_run(tool: &str, arguments: &[&str]) -> bool {
    match try_run(tool, arguments).await {
        Ok(_) => true,
        Err(failure) => missing(&failure),
    }
}

fn missing(what: &str) -> bool {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{what}; CI must have it (`cargo xtask test` installs it)"
    );
    eprintln!("skipped: {what}");
    false
}

/// The directories of the system's packages, then the rest: a tool that starts `python3` needs the one that its own package is
/// for, whatever else a developer has installed.
fn packages_first() -> String {
    let rest = std::env::var("PATH").unwrap_or_default();
    format!("/usr/sbin:/usr/bin:/sbin:/bin:{rest}")
}

/// Runs a tool to its end; answers what it printed, or both of its outputs when it failed.
pub(crate) async fn try_run(tool: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(tool);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .env("PATH", packages_first())
        .env("LC_ALL", "C");
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .map_err(|_| format!("{tool} {arguments:?} did not end"))?
        .map_err(|error| format!("{tool}: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{tool} {arguments:?}: {}\n{stdout}\n{stderr}",
        output.status
    ))
}

/// Runs a tool that must succeed.
pub(crate) async fn run(tool: &str, arguments: &[&str]) -> String {
    match try_run(tool, arguments).await {
        Ok(output) => output,
        Err(failure) => panic!("{failure}"),
    }
}
