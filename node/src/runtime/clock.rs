//! The clocks of a node: one that counts suspended time for every decision, and the wall for timestamps.

use std::time::{Duration, SystemTime};

use mainstay_types::MonoTime;
use mainstay_volume::Now;
use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME`: unlike `CLOCK_MONOTONIC` it goes on while the machine is suspended (H9).
#[must_use]
pub fn mono() -> MonoTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    MonoTime(seconds * 1_000_000_000 + nanos)
}

/// Both clocks.
#[must_use]
pub fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        mono: mono(),
        wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    now().wall_ns / 1_000_000
}

/// How long until `deadline`, at most `most`.
#[must_use]
pub fn until(deadline: MonoTime, most: Duration) -> Duration {
    deadline.since(mono()).min(most)
}
