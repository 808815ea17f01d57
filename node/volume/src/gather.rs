//! Group commit: when what clients have sent is proposed.
//!
//! A round, from the proposal over the log writes of all copies to the commit, costs about the same whatever it carries. So
//!
//! * while a round is under way, what arrives waits for its commit, unless it is much ([`BYTES_AT_ONCE`]): then more rounds run side
//!   by side, and the disks have something to do all the time;
//! * after a commit the next round is held for those who were just answered, since who waits for each answer soon sends again. It
//!   begins when as many have come as may come, or after as long as the last round took, and never more than [`HOLD_LONGEST`].
//!   Where holding does not pay, because clients take their time, it is tried ever more rarely. A single client that waits for
//!   each answer is never held.
//!
//! The idea of waiting for companions is that of group commit (DeWitt et al., "Implementation Techniques for Main Memory Database
//! Systems", 1984, section 5.2).
//!
//! Neither can hold up anything for ever: a commit, a deadline, or a change of role ends it. Order is not touched: what is
//! staged is proposed as a whole, in the order in which it came.

use std::collections::VecDeque;
use std::time::Duration;

use mainstay_types::{Lsn, MonoTime};

/// From here on it does not pay to wait: copying and writing these bytes costs about as much as the round.
const BYTES_AT_ONCE: usize = 192 << 10;

/// How long a round is held at most.
const HOLD_LONGEST: Duration = Duration::from_millis(1);

/// After this many commits, holding is tried again, however often it did not pay.
const SKIPPED_MOST: u32 = 1023;

#[derive(Debug, Clone, Copy)]
struct Round {
    last: Lsn,
    entries: u64,
    since: MonoTime,
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    until: MonoTime,
    /// Who was answered and may send again.
    answered: u64,
    /// What had already come when it began.
    before: u64,
}

/// Rounds under way, and whether to wait before the next.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    rounds: VecDeque<Round>,
    hold: Option<Hold>,
    /// Commits after which nothing is held.
    skip: u32,
    /// How many were skipped last.
    skipped: u32,
}

impl Gather {
    /// A proposal of `entries` that ends at `last`.
    pub(crate) fn proposed(&mut self, now: MonoTime, last: Lsn, entries: u64) {
        self.hold = None;
        self.rounds.push_back(Round {
            last,
            entries,
            since: now,
        });
    }

    /// The commit point has moved; `staged` entries have come meanwhile.
    pub(crate) fn committed(&mut self, now: MonoTime, commit: Lsn, staged: u64) {
        let mut answered = 0;
        let mut took = Duration::ZERO;
        while let Some(round) = self.rounds.pop_front_if(|round| round.last <= commit) {
            answered += round.entries;
            took = now.since(round.since);
        }
        if answered == 0 || !self.rounds.is_empty() {
            return;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.hold = Some(Hold {
            until: now + took.min(HOLD_LONGEST),
            answered,
            before: staged,
        });
    }

    /// Until when the `staged` entries wait; `None`: they are proposed now.
    pub(crate) fn waits_until(
        &mut self,
        now: MonoTime,
        staged: u64,
        bytes: usize,
    ) -> Option<MonoTime> {
        if bytes >= BYTES_AT_ONCE {
            return None;
        }
        if !self.rounds.is_empty() {
            return Some(MonoTime::MAX);
        }
        let hold = self.hold?;
        if staged < hold.before + hold.answered && now < hold.until {
            return Some(hold.until);
        }
        // Half of them is what holding must bring.
        let paid = (staged.saturating_sub(hold.before)) * 2 >= hold.answered;
        self.skipped = if paid {
            0
        } else {
            (self.skipped * 2 + 1).min(SKIPPED_MOST)
        };
        self.skip = self.skipped;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: usize = 100;

    fn at(micros: u64) -> MonoTime {
        MonoTime(micros * 1000)
    }

    /// A round of `entries` from `since` to `until`; `staged` came meanwhile.
    fn round(gather: &mut Gather, last: u64, entries: u64, since: u64, until: u64, staged: u64) {
        gather.proposed(at(since), Lsn(last), entries);
        gather.committed(at(until), Lsn(last), staged);
    }

    #[test]
    fn a_lone_writer_never_waits() {
        let mut gather = Gather::default();
        for n in 0..5 {
            assert_eq!(gather.waits_until(at(n * 1000), 1, SMALL), None);
            round(&mut gather, n + 1, 1, n * 1000, n * 1000 + 300, 0);
        }
    }

    #[test]
    fn what_is_little_waits_for_the_round_under_way_and_what_is_much_does_not() {
        let mut gather = Gather::default();
        gather.proposed(at(0), Lsn(3), 3);
        assert_eq!(gather.waits_until(at(1), 9, SMALL), Some(MonoTime::MAX));
        assert_eq!(gather.waits_until(at(1), 9, BYTES_AT_ONCE), None);
        gather.proposed(at(1), Lsn(12), 9);
        gather.committed(at(2), Lsn(3), 1);
        assert_eq!(gather.waits_until(at(2), 1, SMALL), Some(MonoTime::MAX));
    }

    #[test]
    fn those_who_were_answered_are_waited_for_until_they_have_come() {
        let mut gather = Gather::default();
        round(&mut gather, 5, 5, 0, 400, 3);
        assert_eq!(gather.waits_until(at(400), 3, SMALL), Some(at(800)));
        assert_eq!(gather.waits_until(at(500), 7, SMALL), Some(at(800)));
        assert_eq!(gather.waits_until(at(600), 8, SMALL), None);
        // A slow round is no reason to wait as long.
        round(&mut gather, 13, 8, 1_000, 50_000, 0);
        assert_eq!(gather.waits_until(at(50_000), 1, SMALL), Some(at(51_000)));
        assert_eq!(gather.waits_until(at(51_000), 4, SMALL), None);
    }

    #[test]
    fn where_nobody_comes_back_holding_becomes_rare_and_where_they_do_it_returns() {
        let mut gather = Gather::default();
        let (mut held, mut now, mut last) = (0, 0, 0);
        let mut one = |gather: &mut Gather, come: u64| {
            (now, last) = (now + 10_000, last + 4);
            round(gather, last, 4, now, now + 300, 0);
            let waits = gather.waits_until(at(now + 300), 0, SMALL).is_some();
            assert_eq!(gather.waits_until(at(now + 600), come, SMALL), None);
            u64::from(waits)
        };
        for _ in 0..1000 {
            held += one(&mut gather, 1);
        }
        assert!((5..=12).contains(&held), "held {held} of 1000 rounds");
        let mut until_held = 0;
        while one(&mut gather, 4) == 0 {
            until_held += 1;
            assert!(until_held <= SKIPPED_MOST, "holding never returned");
        }
        assert_eq!(one(&mut gather, 4), 1);
    }
}
