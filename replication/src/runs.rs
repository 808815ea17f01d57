//! The epochs of a log, without its entries: for each epoch the first LSN appended in it.

use mainstay_types::{Epoch, LogPoint, Lsn};

/// Which epoch each LSN of a log belongs to.
///
/// Invariants: epochs and first LSNs rise strictly; every first LSN lies in `base.lsn + 1 ..= last`; the first run
/// begins at `base.lsn + 1`; there is no run if and only if the log is empty above its base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRuns {
    /// The entry before the first one held.
    base: LogPoint,
    runs: Vec<(Epoch, Lsn)>,
    last: Lsn,
}

impl EpochRuns {
    /// An empty log behind `base`.
    #[must_use]
    pub fn empty(base: LogPoint) -> Self {
        Self {
            base,
            runs: Vec::new(),
            last: base.lsn,
        }
    }

    /// A log read from disk: `runs` as (epoch, first LSN), ending at `last`.
    #[must_use]
    pub fn recovered(base: LogPoint, runs: Vec<(Epoch, Lsn)>, last: Lsn) -> Self {
        let log = Self { base, runs, last };
        log.check();
        log
    }

    /// The entry before the first one held.
    #[must_use]
    pub fn base(&self) -> LogPoint {
        self.base
    }

    /// The last entry, or the base of an empty log.
    #[must_use]
    pub fn last(&self) -> LogPoint {
        self.runs.last().map_or(self.base, |(epoch, _)| LogPoint {
            epoch: *epoch,
            lsn: self.last,
        })
    }

    /// The entry at `lsn` by name; none below the base or above the end.
    #[must_use]
    pub fn point(&self, lsn: Lsn) -> Option<LogPoint> {
        if lsn == self.base.lsn {
            return Some(self.base);
        }
        if lsn < self.base.lsn || lsn > self.last {
            return None;
        }
        let at = self.runs.partition_point(|(_, first)| *first <= lsn);
        Some(LogPoint {
            epoch: self.runs[at - 1].0,
            lsn,
        })
    }

    /// The runs of `first..=last`, the first clipped to begin at `first`.
    #[must_use]
    pub fn slice(&self, first: Lsn, last: Lsn) -> Vec<(Epoch, Lsn)> {
        let mut out = Vec::new();
        for (index, (epoch, begin)) in self.runs.iter().enumerate() {
            let end = self
                .runs
                .get(index + 1)
                .map_or(self.last, |(_, next)| next.prev());
            if end >= first && *begin <= last {
                out.push((*epoch, (*begin).max(first)));
            }
        }
        out
    }

    /// The greatest own entry that could equal one at or below `hint` in a log that ends there: where to try next.
    #[must_use]
    pub fn probe_below(&self, hint: LogPoint) -> Lsn {
        let mut lsn = hint.lsn.min(self.last);
        while let Some(point) = self.point(lsn) {
            if point.epoch <= hint.epoch || lsn == self.base.lsn {
                return lsn;
            }
            let at = self.runs.partition_point(|(_, first)| *first <= lsn);
            lsn = self.runs[at - 1].1.prev();
        }
        self.base.lsn
    }

    /// Appends entries up to `last`, with the epochs that `runs` gives from the current end on.
    pub fn extend(&mut self, runs: &[(Epoch, Lsn)], last: Lsn) {
        for (epoch, first) in runs {
            let continues = self.runs.last().is_some_and(|(e, _)| e == epoch);
            if !continues {
                self.runs.push((*epoch, (*first).max(self.last.next())));
            }
        }
        self.last = last;
        self.check();
    }

    /// Appends `count` entries of `epoch`; returns the first and the last.
    pub fn push(&mut self, epoch: Epoch, count: u64) -> (Lsn, Lsn) {
        let first = self.last.next();
        let last = Lsn(self.last.0 + count);
        self.extend(&[(epoch, first)], last);
        (first, last)
    }

    /// Cuts everything above `after`.
    pub fn truncate(&mut self, after: Lsn) {
        assert!(
            after >= self.base.lsn,
            "cut after {after} below the base {}",
            self.base
        );
        self.runs.retain(|(_, first)| *first <= after);
        self.last = self.last.min(after);
        self.check();
    }

    /// Forgets everything at or below `lsn`.
    pub fn advance_base(&mut self, lsn: Lsn) {
        let Some(point) = self.point(lsn) else { return };
        let kept = self.slice(lsn.next(), self.last);
        self.base = point;
        self.runs = if lsn == self.last { Vec::new() } else { kept };
        self.check();
    }

    fn check(&self) {
        debug_assert!(
            self.runs
                .windows(2)
                .all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1),
            "{self:?}"
        );
        debug_assert!(
            self.runs
                .iter()
                .all(|(_, f)| *f > self.base.lsn && *f <= self.last),
            "{self:?}"
        );
        debug_assert!(
            self.runs.is_empty() == (self.last == self.base.lsn),
            "{self:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> EpochRuns {
        let mut log = EpochRuns::empty(LogPoint {
            epoch: Epoch(1),
            lsn: Lsn(4),
        });
        log.push(Epoch(1), 3); // 5..7
        log.push(Epoch(3), 2); // 8..9
        log.push(Epoch(6), 1); // 10
        log
    }

    #[test]
    fn each_lsn_has_its_epoch() {
        let log = log();
        let epochs: Vec<_> = (3..12)
            .map(|lsn| log.point(Lsn(lsn)).map(|p| p.epoch.0))
            .collect();
        assert_eq!(
            epochs,
            [
                None,
                Some(1),
                Some(1),
                Some(1),
                Some(1),
                Some(3),
                Some(3),
                Some(6),
                None
            ]
        );
        assert_eq!(
            log.slice(Lsn(7), Lsn(9)),
            [(Epoch(1), Lsn(7)), (Epoch(3), Lsn(8))]
        );
        assert_eq!(
            log.last(),
            LogPoint {
                epoch: Epoch(6),
                lsn: Lsn(10)
            }
        );
    }

    #[test]
    fn probing_skips_whole_epochs_that_the_other_log_cannot_have() {
        let log = log();
        assert_eq!(
            log.probe_below(LogPoint {
                epoch: Epoch(2),
                lsn: Lsn(10)
            }),
            Lsn(7)
        );
        assert_eq!(
            log.probe_below(LogPoint {
                epoch: Epoch(3),
                lsn: Lsn(20)
            }),
            Lsn(9)
        );
        assert_eq!(
            log.probe_below(LogPoint {
                epoch: Epoch(6),
                lsn: Lsn(6)
            }),
            Lsn(6)
        );
        assert_eq!(log.probe_below(LogPoint::ZERO), Lsn(4));
    }

    #[test]
    fn cutting_and_forgetting_keep_the_epochs_between() {
        let mut log = log();
        log.truncate(Lsn(8));
        assert_eq!(
            log.last(),
            LogPoint {
                epoch: Epoch(3),
                lsn: Lsn(8)
            }
        );
        log.advance_base(Lsn(6));
        assert_eq!(
            log.base(),
            LogPoint {
                epoch: Epoch(1),
                lsn: Lsn(6)
            }
        );
        assert_eq!(
            log.point(Lsn(7)),
            Some(LogPoint {
                epoch: Epoch(1),
                lsn: Lsn(7)
            })
        );
        log.advance_base(Lsn(8));
        assert_eq!(
            log.last(),
            LogPoint {
                epoch: Epoch(3),
                lsn: Lsn(8)
            }
        );
        assert_eq!(log.push(Epoch(9), 1), (Lsn(9), Lsn(9)));
    }
}
