//! How fast a block volume's checkpoint is written: spread over time, so that nobody who writes to the same disk has to wait for it.
//!
//! A disk takes hundreds of megabytes into its cache in a moment, and then makes every flush wait until it has written them: on all
//! copies at the same time, as they all reach the same position of the log together.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstay_storage::engine::RealDisk;
use mainstay_storage::image::{Image, Pace};
use mainstay_types::Lsn;

/// A checkpoint takes no longer on purpose.
const LONGEST: Duration = Duration::from_secs(10);

/// Timers are no finer than that.
const NAP_MIN: Duration = Duration::from_millis(1);
/// How long it may take until a nap hears that there is no time for one.
const NAP_MAX: Duration = Duration::from_millis(20);

/// So much between two checkpoints is worth one, however many volumes there are.
const SHARE_MIN: u64 = 4 << 20;

/// What a block volume may hold until its next checkpoint begins: `interval`, or less if all `volumes` of the node together would come to
/// more than `held_max`. A checkpoint may hold half as much again, and while it is written as much as it holds may come.
pub(super) fn share(interval: u64, held_max: u64, volumes: u64) -> u64 {
    let share = held_max / 3 / volumes.max(1);
    interval.min(share.max(SHARE_MIN))
}

/// What all checkpoints of one volume know.
#[derive(Debug)]
pub(super) struct Pacing {
    /// Bytes of log applied since the volume was opened.
    applied: Rc<Cell<u64>>,
    /// The volume is to end.
    hurry: Rc<Cell<bool>>,
    before: Instant,
}

/// One checkpoint's pace: it ends after half of the time, and half of the log, between the one before and itself.
#[derive(Debug)]
pub(super) struct CheckpointPace {
    began: Instant,
    span: Duration,
    applied: Rc<Cell<u64>>,
    applied_before: u64,
    /// Log between two checkpoints.
    interval: u64,
    hurry: Rc<Cell<bool>>,
}

impl Pacing {
    pub(super) fn new() -> Self {
        Self {
            applied: Rc::default(),
            hurry: Rc::default(),
            before: Instant::now(),
        }
    }

    /// So many bytes of log are applied.
    pub(super) fn applied(&self, bytes: usize) {
        self.applied.set(self.applied.get() + bytes as u64);
    }

    /// Whatever checkpoint runs is to be done with.
    pub(super) fn hurry(&self) {
        self.hurry.set(true);
    }

    /// A checkpoint begins, of which there is one for each `interval` bytes of log.
    pub(super) fn begin(&mut self, interval: u64) -> CheckpointPace {
        let began = Instant::now();
        let since = began - std::mem::replace(&mut self.before, began);
        CheckpointPace {
            began,
            span: (since / 2).min(LONGEST),
            applied: self.applied.clone(),
            applied_before: self.applied.get(),
            interval: interval.max(1),
            hurry: self.hurry.clone(),
        }
    }
}

impl CheckpointPace {
    /// How much too early it is for what comes behind `part` of the whole, with `held` bytes in memory.
    fn early(&self, part: f64, held: u64) -> Duration {
        let applied = self.applied.get() - self.applied_before;
        // Before anybody has to wait for memory; the log says little about it where an entry stands for a range.
        let behind = held > self.interval.saturating_add(self.interval / 4);
        if self.hurry.get() || behind || applied as f64 * 2.0 > part * self.interval as f64 {
            return Duration::ZERO;
        }
        self.span.mul_f64(part).saturating_sub(self.began.elapsed())
    }
}

/// What an image holds in memory that is not in its files, as other threads are told.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: AtomicU64,
    applied: AtomicU64,
}

impl Held {
    pub(super) fn tell(&self, image: &Image<RealDisk>) {
        self.bytes.store(image.dirty_bytes(), Ordering::Relaxed);
        // Whoever sees this sees what that entry holds, too.
        let applied = image.applied().point.lsn;
        self.applied.store(applied.0, Ordering::Release);
    }

    /// Bytes, and the last entry that is counted in them.
    pub(super) fn get(&self) -> (u64, Lsn) {
        let applied = Lsn(self.applied.load(Ordering::Acquire));
        (self.bytes.load(Ordering::Relaxed), applied)
    }
}

/// A checkpoint's pace that tells what is held as it gets on.
pub(super) struct Told<'a> {
    pub(super) pace: CheckpointPace,
    pub(super) image: &'a Image<RealDisk>,
    pub(super) held: &'a Held,
}

impl Pace for Told<'_> {
    async fn next(&self, written: usize, total: usize) {
        let part = written as f64 / total.max(1) as f64;
        loop {
            self.held.tell(self.image);
            let early = self.pace.early(part, self.image.dirty_bytes());
            if early < NAP_MIN {
                return;
            }
            tokio::time::sleep(early.min(NAP_MAX)).await;
        }
    }

    async fn rest(&self) {
        if !self.pace.hurry.get() {
            tokio::time::sleep(NAP_MIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_share_the_memory_and_none_is_left_with_next_to_nothing() {
        let mib = |n: u64| n << 20;
        for (volumes, expected) in [(0, 256), (1, 256), (2, 256), (4, 128), (128, 4), (1000, 4)] {
            let found = share(mib(256), mib(1536), volumes);
            assert_eq!(found, mib(expected), "{volumes} volumes");
        }
        assert_eq!(share(mib(1), mib(1536), 1000), mib(1));
    }

    fn pace(span_ms: u64) -> (Pacing, CheckpointPace) {
        let mut pacing = Pacing::new();
        let mut pace = pacing.begin(1000);
        pace.span = Duration::from_millis(span_ms);
        (pacing, pace)
    }

    #[test]
    fn a_checkpoint_naps_while_it_is_ahead_of_time_and_of_the_log() {
        let (pacing, pace) = pace(10_000);
        assert!(pace.early(0.5, 1000) > Duration::from_secs(4));
        pacing.applied(249);
        assert!(pace.early(0.5, 1000) > Duration::from_secs(4));
        // Half of it shall be written when a quarter of the interval is applied.
        pacing.applied(2);
        assert_eq!(pace.early(0.5, 1000), Duration::ZERO);
        assert!(pace.early(0.6, 1000) > Duration::ZERO);
        assert!(pace.early(0.6, 1250) > Duration::ZERO);
        assert_eq!(pace.early(0.6, 1251), Duration::ZERO, "memory fills");
        pacing.hurry();
        assert_eq!(pace.early(1.0, 1000), Duration::ZERO);
    }

    #[test]
    fn what_came_quickly_is_written_quickly_and_nothing_takes_for_ever() {
        let mut pacing = Pacing::new();
        assert!(pacing.begin(1000).span < Duration::from_secs(1));
        pacing.before = Instant::now().checked_sub(LONGEST * 3).expect("a clock");
        assert_eq!(pacing.begin(1000).span, LONGEST);
    }
}
