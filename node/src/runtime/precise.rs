//! A timer for waits below a millisecond, which tokio's own cannot tell from a whole one.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Below this a wait wants this timer.
pub(super) const PRECISE_BELOW: Duration = Duration::from_millis(1);

/// A `timerfd` of a runtime.
#[derive(Debug)]
pub(super) struct PreciseTimer {
    fd: AsyncFd<OwnedFd>,
}

impl PreciseTimer {
    /// Needs a runtime with I/O.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "sound for a descriptor that is owned; what replaces it is unsafe"
        )]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd })
    }

    /// Waits. Cancelling it leaves a timer that wakes nobody who does not wait.
    ///
    /// # Errors
    /// The kernel refuses, which it has no reason to.
    pub(super) async fn sleep(&self, span: Duration) -> std::io::Result<()> {
        // Zero would disarm it.
        let nanos = span.as_nanos().max(1);
        let it_value = Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
        };
        let it_interval = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval,
            it_value,
        };
        timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.fd.readable().await?;
            let mut expirations = [0; 8];
            // An expiry from before it was set again is not there any more: setting clears it.
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut expirations)?));
            match read {
                Ok(read) => return read.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}
