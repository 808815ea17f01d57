//! Property 13: readers are shown nothing below the trim point that they must know of, are told of none that was not agreed, and no
//! copy gives back what was not trimmed, or what a registered copy never held.

use mainstay_storage::EntryKind;
use mainstay_types::Lsn;

use super::{Check, CopyKey, EntryInfo, Oracle, Property, broken};

/// What the committed log says of its trim point: from which position on it is which. Both rise.
#[derive(Debug, Default)]
pub(super) struct Trims(Vec<(Lsn, Lsn)>);

impl Trims {
    /// The next entry of a log commits.
    pub(super) fn committed(&mut self, info: &EntryInfo) {
        let first = Lsn(info.arg);
        if info.kind == EntryKind::TrimLog && first > self.newest() {
            self.0.push((info.point.lsn, first));
        }
    }

    fn newest(&self) -> Lsn {
        self.0.last().map_or(Lsn(1), |(_, first)| *first)
    }

    /// The trim point after everything up to `at`.
    fn at(&self, at: Lsn) -> Lsn {
        let count = self.0.partition_point(|(lsn, _)| *lsn <= at);
        count.checked_sub(1).map_or(Lsn(1), |last| self.0[last].1)
    }
}

impl Oracle {
    /// A reader is shown the log from `first` on, by somebody who knows it up to `through`.
    ///
    /// # Errors
    /// It was trimmed above that.
    pub fn check_begin(&self, first: Lsn, through: Lsn) -> Check {
        let trimmed = self.ops.trims.at(through);
        if first < trimmed {
            return broken(
                Property::Trims,
                format!(
                    "the log is shown from {first} on, up to {through} it was trimmed to {trimmed}"
                ),
            );
        }
        Ok(())
    }

    /// A reader is told that the log begins at `first`.
    ///
    /// # Errors
    /// It was not trimmed so far.
    pub fn trim_told(&self, first: Lsn) -> Check {
        let newest = self.ops.trims.newest();
        if first > newest {
            return broken(
                Property::Trims,
                format!(
                    "a reader is told that the log begins at {first}, the trim point is {newest}"
                ),
            );
        }
        Ok(())
    }

    /// A copy of a log has given back everything below `first`.
    ///
    /// # Errors
    /// That was not agreed, or a registered copy never held it.
    pub fn check_given_back(&self, key: CopyKey, first: Lsn) -> Check {
        self.trim_told(first)?;
        let Some(last) = self.committed(first.prev()) else {
            return Ok(());
        };
        let Some(register) = self.chain.newest() else {
            return Ok(());
        };
        for member in &register.members {
            let copy = self.copies.get(&(member.node, member.incarnation));
            if copy.is_none_or(|copy| copy.log.base < last.point.lsn && !copy.held(last)) {
                return broken(
                    Property::Trims,
                    format!(
                        "{key:?} gives back everything below {first}, which node {} never held",
                        member.node
                    ),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry;
    use super::*;

    #[test]
    fn the_trim_point_is_a_function_of_the_position_and_never_falls() {
        let mut trims = Trims::default();
        for (lsn, first) in [(5, 3), (6, 2), (9, 7)] {
            trims.committed(&EntryInfo {
                arg: first,
                ..entry(lsn, EntryKind::TrimLog, 1)
            });
        }
        let points: Vec<u64> = (4..10).map(|at| trims.at(Lsn(at)).0).collect();
        assert_eq!(points, [1, 3, 3, 3, 3, 7]);
        assert_eq!(trims.newest(), Lsn(7));
    }
}
