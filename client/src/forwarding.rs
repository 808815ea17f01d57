//! Handles that forward for somebody who may send the same request again elsewhere (H11).
//!
//! An NBD client with connections to two nodes gives one of them up after a time, repeats its write through the other, and writes
//! newer data. What the first node then still holds of that client must not reach the volume any more. Two rules see to it here, for
//! a handle that was opened with [`crate::BlockBuilder::forwarding`]:
//!
//! * **A process that stood still forwards nothing that it had.** The clock is looked at before anything is sent. If it went on by
//!   more than half of the silence since the last look, the handle ends: what it was given may have been given to another
//!   long since.
//! * **No request is sent, or sent again, once it is older than the handle's deadline.** The handle ends with the first one.
//!
//! The third rule is the primary's (`Ping` of the client protocol): it takes nothing from a stream that was silent.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What a forwarding handle keeps of time.
#[derive(Debug)]
pub(crate) struct Forwarding {
    pub(crate) silence: Duration,
    /// The last look at the clock.
    seen: Duration,
    stood_still: bool,
}

impl Forwarding {
    pub(crate) fn new(silence: Duration) -> Self {
        Self {
            silence,
            seen: clock(),
            stood_still: false,
        }
    }

    /// Whether this process ran all the time. Once it did not, never again.
    pub(crate) fn ran(&mut self) -> bool {
        self.look(clock())
    }

    /// How often to look, at least.
    pub(crate) fn look_every(&self) -> Duration {
        (self.silence / 16).max(Duration::from_millis(1))
    }

    fn look(&mut self, now: Duration) -> bool {
        self.stood_still |= now.saturating_sub(self.seen) > self.silence / 2;
        self.seen = now;
        !self.stood_still
    }
}

/// Goes on while the process or the machine stands still.
fn clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_of_more_than_half_the_silence_ends_it_for_good() {
        let start = clock();
        let mut forwarding = Forwarding::new(Duration::from_secs(4));
        forwarding.seen = start;
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 2, 3, 5, 7] {
            assert!(forwarding.look(at(seconds)), "at {seconds}");
        }
        assert!(!forwarding.look(at(10)));
        assert!(!forwarding.look(at(10)), "for good");
    }
}
