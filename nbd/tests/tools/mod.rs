//! Running the real NBD tools, where they are installed.
//!
//! Debian: `libnbd-bin qemu-utils fio python3-libnbd`. Where `CI=true`, a missing tool is a failure; elsewhere
//! the test says that it was skipped.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// More than any of these runs takes, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether `tool` can be run. Says so when it cannot, and fails in CI.
pub(crate) fn require(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()) {
        return true;
    }
    missing(&format!("`{tool}` is not installed"))
}

/// Says why a test cannot run here, and fails in CI.
pub(crate) fn missing(what: &str) -> bool {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{what}; CI must have it (Debian: libnbd-bin qemu-utils fio python3-libnbd)"
    );
    eprintln!("skipped: {what}");
    false
}

/// Runs a tool to its end; answers what it printed, or both of its outputs when it failed.
pub(crate) async fn try_run(tool: &str, arguments: &[&str]) -> Result<String, String> {
    // The packages' own programs first: `nbdsh` needs the `python3` that its module belongs to. And no folder
    // of ours around it, since Python would take a folder called `nbd` for that module.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(tool);
    command
        .env("PATH", format!("/usr/bin:/bin:{path}"))
        .current_dir(std::env::temp_dir())
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
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
