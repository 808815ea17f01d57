//! Property 13: readers are shown nothing below the trim point that they must know of, are told of none that was not agreed, and no
//! copy gives back what was not trimmed, or what a registered copy never held.

use mainstay_storage::EntryKind;
use mainstay_types::{Lsn, SessionId};

use crate::client::BY_BYTES;

use super::batches::Part;
use super::{Check, CopyKey, EntryInfo, Oracle, Property, broken};

/// What the committed log says of its trim point: from which position on it is which. Both rise.
#[derive(Debug, Default)]
pub(super) struct Trims {
    points: Vec<(Lsn, Lsn)>,
    /// First word of the policy in force; zero for none.
    policy: u64,
    /// Of each mutation that took effect, where it begins, and the payload of all up to it.
    bytes: Vec<(Lsn, u64)>,
    /// Payload of the batch that is not whole yet.
    open: u64,
}

impl Trims {
    /// The next entry of a log commits, which is `part` of its mutation.
    ///
    /// What is shown to nobody keeps nothing: of a batch that is cut short no byte counts.
    ///
    /// # Errors
    /// A primary trims of its own accord what the policy keeps. Of policies by age nothing is known here: clocks differ.
    pub(super) fn committed(&mut self, info: &EntryInfo, part: Part) -> Check {
        match info.kind {
            EntryKind::Record => {
                let begun = if part.index == 0 { 0 } else { self.open };
                self.open = begun + u64::from(info.len);
                if part.last {
                    let before = self.bytes.last().map_or(0, |(_, bytes)| *bytes);
                    self.bytes.push((part.first, before + self.open));
                }
            }
            EntryKind::RetainLog => self.policy = info.tag,
            EntryKind::TrimLog => return self.trimmed(info),
            _ => {}
        }
        Ok(())
    }

    fn trimmed(&mut self, info: &EntryInfo) -> Check {
        let first = Lsn(info.arg);
        if first <= self.newest() {
            return Ok(());
        }
        self.points.push((info.point.lsn, first));
        let Some(kept) = self.policy.checked_sub(BY_BYTES) else {
            return Ok(());
        };
        let left = self.bytes_before(info.point.lsn) - self.bytes_before(first);
        if info.session == SessionId(0) && left < kept {
            return broken(
                Property::Trims,
                format!(
                    "{} trims to {first}, which leaves {left} bytes: the policy keeps {kept}",
                    info.point
                ),
            );
        }
        Ok(())
    }

    /// Payload of all mutations that begin below `lsn`.
    fn bytes_before(&self, lsn: Lsn) -> u64 {
        let count = self.bytes.partition_point(|(at, _)| *at < lsn);
        count.checked_sub(1).map_or(0, |last| self.bytes[last].1)
    }

    fn newest(&self) -> Lsn {
        self.points.last().map_or(Lsn(1), |(_, first)| *first)
    }

    /// The trim point after everything up to `at`.
    fn at(&self, at: Lsn) -> Lsn {
        let count = self.points.partition_point(|(lsn, _)| *lsn <= at);
        count
            .checked_sub(1)
            .map_or(Lsn(1), |last| self.points[last].1)
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

    /// An entry that is the whole of its mutation.
    fn commit(trims: &mut Trims, info: &EntryInfo) -> Check {
        let part = Part {
            first: info.point.lsn,
            index: 0,
            last: true,
        };
        trims.committed(info, part)
    }

    fn record(lsn: u64) -> EntryInfo {
        EntryInfo {
            len: 100,
            ..entry(lsn, EntryKind::Record, 1)
        }
    }

    fn trim(lsn: u64, first: u64, session: u64) -> EntryInfo {
        EntryInfo {
            arg: first,
            session: SessionId(session),
            ..entry(lsn, EntryKind::TrimLog, 1)
        }
    }

    /// So many bytes stay.
    fn policy(lsn: u64, bytes: u64) -> EntryInfo {
        EntryInfo {
            tag: BY_BYTES + bytes,
            ..entry(lsn, EntryKind::RetainLog, 1)
        }
    }

    #[test]
    fn the_trim_point_is_a_function_of_the_position_and_never_falls() {
        let mut trims = Trims::default();
        for (lsn, first) in [(5, 3), (6, 2), (9, 7)] {
            commit(&mut trims, &trim(lsn, first, 1)).expect("nothing is kept by a policy");
        }
        let points: Vec<u64> = (4..10).map(|at| trims.at(Lsn(at)).0).collect();
        assert_eq!(points, [1, 3, 3, 3, 3, 7]);
        assert_eq!(trims.newest(), Lsn(7));
    }

    #[test]
    fn a_primary_that_trims_what_the_policy_keeps_is_told() {
        let mut trims = Trims::default();
        for lsn in 1..=10 {
            commit(&mut trims, &record(lsn)).expect("a record");
        }
        commit(&mut trims, &policy(11, 300)).expect("a policy");
        commit(&mut trims, &trim(12, 8, 0)).expect("300 bytes stay");
        commit(&mut trims, &trim(13, 9, 5)).expect("a client may");
        assert!(commit(&mut trims, &trim(14, 10, 0)).is_err());
    }

    /// Three records of a batch that ends with the first, or that is cut short before its end.
    #[test]
    fn only_a_batch_that_is_whole_counts() {
        for whole in [true, false] {
            let mut trims = Trims::default();
            for lsn in 1..=3 {
                commit(&mut trims, &record(lsn)).expect("a record");
            }
            for index in 0..3 {
                let part = Part {
                    first: Lsn(4),
                    index,
                    last: whole && index == 2,
                };
                let info = record(4 + u64::from(index));
                trims.committed(&info, part).expect("a record");
            }
            commit(&mut trims, &entry(7, EntryKind::EpochStart, 2)).expect("a new primary");
            commit(&mut trims, &policy(8, 300)).expect("a policy");
            assert_eq!(commit(&mut trims, &trim(9, 4, 0)).is_ok(), whole);
        }
    }
}
