//! Hold-down: a volume whose primaries are lost on suspicion again and again is given a new one ever more slowly, so
//! that a flapping link costs a bounded number of promotions (`docs/protocol.md`, M4).
//!
//! Only suspicion counts. A primary that was released (by itself or by its supervisor) is proved to have stopped: its
//! replacement is never delayed, and as its path was good enough to say so, or an operator had a hand in it, the count
//! begins anew. Volatile: a restarted witness has forgotten it, and takes no part in promotions for a lease anyway.

use std::collections::VecDeque;
use std::time::Duration;

use mainstay_types::MonoTime;

use crate::config::HoldDownConfig;

/// Promotions of one volume by suspicion, as one witness saw them.
#[derive(Debug, Default)]
pub(super) struct HoldDown {
    /// When each was seen, the oldest first; older ones than the window are forgotten when the next is noted.
    moves: VecDeque<MonoTime>,
}

impl HoldDown {
    /// A primary was replaced on suspicion.
    pub(super) fn suspected(&mut self, now: MonoTime, config: &HoldDownConfig) {
        while self
            .moves
            .front()
            .is_some_and(|at| now >= *at + config.window)
        {
            self.moves.pop_front();
        }
        self.moves.push_back(now);
    }

    /// A primary was replaced that had released its role.
    pub(super) fn released(&mut self) {
        self.moves.clear();
    }

    /// No promotion on suspicion before this time.
    pub(super) fn until(&self, now: MonoTime, config: &HoldDownConfig) -> MonoTime {
        let recent = self.moves.iter().filter(|at| now < **at + config.window);
        let free = usize::try_from(config.free).unwrap_or(usize::MAX);
        let Some(excess) = recent.count().checked_sub(free) else {
            return MonoTime::ZERO;
        };
        let last = self.moves.back().copied().unwrap_or(MonoTime::ZERO);
        last + delay(excess, config)
    }

    /// How many count at present.
    pub(super) fn count(&self) -> usize {
        self.moves.len()
    }
}

/// The first delay, doubled for each further promotion, up to the longest.
fn delay(excess: usize, config: &HoldDownConfig) -> Duration {
    let doublings = u32::try_from(excess).unwrap_or(u32::MAX).min(20);
    config
        .first
        .saturating_mul(1 << doublings)
        .min(config.longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> HoldDownConfig {
        HoldDownConfig {
            free: 3,
            window: 60 * SECOND,
            first: SECOND,
            longest: 10 * SECOND,
        }
    }

    fn at(seconds: u32) -> MonoTime {
        MonoTime::ZERO + seconds * SECOND
    }

    #[test]
    fn the_first_promotions_are_free_and_later_ones_wait_ever_longer() {
        let (mut hold, config) = (HoldDown::default(), config());
        let mut waits = Vec::new();
        for second in 1..=8 {
            hold.suspected(at(second), &config);
            waits.push(hold.until(at(second), &config).since(at(second)).as_secs());
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn quiet_time_and_a_release_end_the_wait() {
        let (mut hold, config) = (HoldDown::default(), config());
        for second in 1..=5 {
            hold.suspected(at(second), &config);
        }
        assert!(hold.until(at(6), &config) > at(6));
        assert_eq!(hold.until(at(66), &config), MonoTime::ZERO);
        hold.suspected(at(70), &config);
        assert_eq!(hold.count(), 1, "those of a minute ago are forgotten");
        for second in 71..=75 {
            hold.suspected(at(second), &config);
        }
        hold.released();
        assert_eq!(hold.until(at(75), &config), MonoTime::ZERO);
    }

    #[test]
    fn a_link_that_flaps_for_ever_costs_a_bounded_number_of_promotions_a_minute() {
        let (mut hold, config) = (HoldDown::default(), config());
        let (mut now, mut promotions) = (at(1), 0);
        while now < at(601) {
            // Suspicion is there at once, every time.
            now = now.max(hold.until(now, &config)) + Duration::from_millis(50);
            hold.suspected(now, &config);
            promotions += 1;
        }
        assert!(promotions <= 10 * 12, "{promotions} in ten minutes");
    }
}
