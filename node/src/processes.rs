//! Other processes of this machine: are they there, and please stop.
//!
//! A process id alone proves nothing, since ids are reused. So every question also names a *mark*: a text that
//! stands in the command line of the process meant and of no other, such as its instance or its config path.

use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// Whether process `pid` runs and has `mark` in its command line. A zombie does not run.
#[must_use]
pub fn runs(pid: u32, mark: &str) -> bool {
    let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    // A zombie's command line is empty.
    String::from_utf8_lossy(&command)
        .split('\0')
        .any(|argument| argument == mark)
}

/// Whether process `pid` has ended, or its end has begun: the first thread of a killed process may be gone while others
/// still hold its files.
#[must_use]
pub fn is_ending(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.is_empty())
        || !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Sends `signal` to `pid`. The caller knows that the id is still that process's own.
pub fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// Asks a process that is not our child to stop and waits for it, at most for `grace`.
///
/// Returns whether it is gone.
pub async fn terminate(pid: u32, mark: &str, grace: Duration) -> bool {
    if !runs(pid, mark) {
        return true;
    }
    // It may end between the look and the signal: then the wait below sees that.
    let _ = send(pid, Signal::TERM);
    gone_within(pid, mark, grace).await
}

/// Waits for a process that is not our child to end, at most for `limit`. Returns whether it is gone.
pub async fn gone_within(pid: u32, mark: &str, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while runs(pid, mark) {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}

/// Between two looks at a process that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
