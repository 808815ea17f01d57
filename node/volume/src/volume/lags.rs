//! Copies that are behind, and what clients wait for so that they catch up.
//!
//! An entry needs a quorum only, so the third copy may fall behind as far as it likes; and a learner that takes in entries more slowly than
//! they come never becomes a member. Without a bound, the order of events under a load that one of three copies cannot follow: it falls behind what the log
//! keeps and is dropped, is sent a full copy, falls behind again while it follows, is sent the next one, for ever; there are two copies
//! for as long as the load goes on, and if one of them is lost, a new primary waits until the other one has caught up, for seconds.
//!
//! So mutations wait while a copy that goes on acknowledging is far behind: for each byte that it takes in, half a byte is ordered, until
//! it is near. One that does not go on is not waited for: it costs nobody anything but its part in the quorum.
//!
//! Nor may the primary's own disk fall behind without a bound. Others make a quorum without it, but what it does not hold durably stays in memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mainstay_types::{Lsn, MonoTime, NodeId};

use super::Volume;
use crate::event::Now;

/// A copy that acknowledges nothing for so long does not go on. Longer than a disk pauses now and then.
const STILL_AFTER: Duration = Duration::from_millis(100);

/// Part of the bound below which a copy is near again.
const NEAR: u64 = 16;

/// Parts of the bound in which the log is measured.
const STEPS: u64 = 32;

/// Steps are no longer than this, however wide the bound is.
const STEP_BYTES_MAX: u64 = 1 << 20;

/// The bytes that this process has logged, by position: a sample every step.
#[derive(Debug)]
pub(crate) struct Logged {
    samples: VecDeque<(Lsn, u64)>,
    bytes: u64,
    step: u64,
}

impl Logged {
    pub(crate) fn new(lag_bytes_max: u64) -> Self {
        Self {
            samples: VecDeque::new(),
            bytes: 0,
            step: (lag_bytes_max / STEPS).clamp(1, STEP_BYTES_MAX),
        }
    }

    pub(crate) fn note(&mut self, bytes: usize, last: Lsn) {
        self.bytes += bytes as u64;
        let newest = self.samples.back();
        if newest.is_none_or(|(_, at)| self.bytes >= at + self.step) {
            self.samples.push_back((last, self.bytes));
        }
    }

    /// The log ends at `after` again: what comes next is behind that, and positions rise in the samples.
    pub(crate) fn cut(&mut self, after: Lsn) {
        while self.samples.pop_back_if(|(at, _)| *at >= after).is_some() {}
        self.samples.push_back((after, self.bytes));
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes behind `lsn`, a step more at most; fewer if it lies below everything that is measured.
    pub(crate) fn behind(&self, lsn: Lsn) -> u64 {
        let above = self.samples.partition_point(|(at, _)| *at <= lsn);
        let at = match above.checked_sub(1) {
            Some(below) => self.samples.get(below),
            None => self.samples.front(),
        };
        self.bytes - at.map_or(self.bytes, |(_, bytes)| *bytes)
    }

    /// The newest position measured that lies `bytes` or more behind the end; zero if there is none.
    pub(crate) fn reaching_back(&self, bytes: u64) -> Lsn {
        let Some(from) = self.bytes.checked_sub(bytes) else {
            return Lsn::ZERO;
        };
        let above = self.samples.partition_point(|(_, at)| *at <= from);
        let newest = above.checked_sub(1).and_then(|at| self.samples.get(at));
        newest.map_or(Lsn::ZERO, |(lsn, _)| *lsn)
    }

    /// Nobody asks for positions below `lsn` any more.
    pub(super) fn forget_below(&mut self, lsn: Lsn) {
        while self.samples.get(1).is_some_and(|(next, _)| *next <= lsn) {
            self.samples.pop_front();
        }
    }
}

/// A copy that was too far behind, and is not near again.
#[derive(Debug)]
struct Lag {
    acked: Lsn,
    /// When that last rose.
    since: MonoTime,
    /// Bytes logged, and bytes behind it, when it was waited for first.
    logged: u64,
    behind: u64,
}

/// All of them, on a primary.
#[derive(Debug)]
pub(crate) struct Lags {
    lags: BTreeMap<NodeId, Lag>,
    /// Nothing is ordered beyond so many bytes logged.
    limit: u64,
    /// When one of them is not waited for any more, unless it goes on.
    due: MonoTime,
}

impl Default for Lags {
    fn default() -> Self {
        Self {
            lags: BTreeMap::new(),
            limit: u64::MAX,
            due: MonoTime::MAX,
        }
    }
}

impl Volume {
    /// Whether mutations wait: for memory, or for copies that are behind.
    pub(crate) fn mutations_wait(&self) -> bool {
        self.memory_is_full()
            || self.logged.bytes() + self.clients.staged_bytes() >= self.lags.limit
    }

    /// When to look again, at the latest.
    pub(crate) fn lags_due(&self) -> MonoTime {
        self.lags.due
    }

    /// Looks how far the other copies are, and this one's disk.
    pub(super) fn follow_lags(&mut self, now: Now) {
        let before = std::mem::take(&mut self.lags).lags;
        if self.member.acting_epoch().is_none() {
            return;
        }
        let most = self.config.lag_bytes_max;
        let own = self.logged.behind(self.member.durable());
        if own > 2 * most {
            self.lags.limit = 0;
        }
        let logged = self.logged.bytes();
        for (node, acked) in self.member.following() {
            let behind = self.logged.behind(acked);
            let fresh = || Lag {
                acked,
                since: now.mono,
                logged,
                behind,
            };
            let lag = match before.get(&node) {
                Some(_) if behind <= most / NEAR => continue,
                None if behind <= most => continue,
                Some(lag) if acked == lag.acked => Lag { ..*lag },
                // It goes on after a pause: what came meanwhile is not held against it.
                Some(lag) if now.mono >= lag.since + STILL_AFTER => fresh(),
                Some(lag) => Lag {
                    acked,
                    since: now.mono,
                    ..*lag
                },
                None => fresh(),
            };
            let until = lag.since + STILL_AFTER;
            if now.mono < until {
                let taken_in = (lag.behind + (logged - lag.logged)).saturating_sub(behind);
                let limit = lag.logged + taken_in / 2 + self.logged.step;
                self.lags.limit = self.lags.limit.min(limit);
                self.lags.due = self.lags.due.min(until);
            }
            self.lags.lags.insert(node, lag);
        }
    }
}
