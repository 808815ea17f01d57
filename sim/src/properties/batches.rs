//! Property 11: of an atomic batch all records take effect or none, side by side, and nobody is ever shown a part of it.
//!
//! Read from the committed log alone, as the format says it: each record but the last of a batch is flagged, and whatever does not
//! continue a batch makes void what there is of it.

use std::collections::BTreeMap;

use mainstay_storage::EntryKind;
use mainstay_types::{Lsn, SessionId};
use mainstay_volume::FLAG_MORE;

use super::{Check, EntryInfo, Property, broken};

/// What a record is to its mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where the mutation begins.
    pub(super) first: Lsn,
    /// The record's place in it, from zero.
    pub(super) index: u32,
    /// Nothing follows: the mutation takes effect.
    pub(super) last: bool,
}

/// What the committed log says of batches.
#[derive(Debug, Default)]
pub(super) struct Batches {
    open: Option<(SessionId, u32, u64, Part)>,
    /// First and last position of each batch that took effect.
    whole: BTreeMap<Lsn, Lsn>,
    /// And of what there is of each that was cut short.
    voids: BTreeMap<Lsn, Lsn>,
}

impl Batches {
    /// The next entry of a log commits.
    pub(super) fn committed(&mut self, info: &EntryInfo) -> Part {
        let lsn = info.point.lsn;
        let record = info.kind == EntryKind::Record;
        let mut part = Part {
            first: lsn,
            index: 0,
            last: !record || info.flags & FLAG_MORE == 0,
        };
        if let Some((session, generation, seq, before)) = self.open.take() {
            let same = (session, generation, seq) == (info.session, info.generation, info.seq);
            if record && same {
                part.first = before.first;
                part.index = before.index + 1;
            } else {
                self.voids.insert(before.first, lsn.prev());
            }
        }
        if !part.last {
            self.open = Some((info.session, info.generation, info.seq, part));
        } else if part.index > 0 {
            self.whole.insert(part.first, lsn);
        }
        part
    }

    /// Whether the entry at `lsn` is what is left of a batch.
    pub(super) fn is_void(&self, lsn: Lsn) -> bool {
        holding(&self.voids, lsn).is_some()
    }

    /// Somebody is shown the log up to `lsn`.
    pub(super) fn check_end(&self, lsn: Lsn) -> Check {
        let open = self.open.map(|(_, _, _, part)| part.first);
        let whole = holding(&self.whole, lsn).filter(|(_, last)| lsn < *last);
        let void = holding(&self.voids, lsn);
        let within = whole.or(void).map(|(first, _)| first);
        match within.or_else(|| open.filter(|first| *first <= lsn)) {
            Some(first) => broken(
                Property::Batches,
                format!("the log is shown up to {lsn}, within the batch that begins at {first}"),
            ),
            None => Ok(()),
        }
    }
}

/// The stretch that holds `lsn`.
fn holding(stretches: &BTreeMap<Lsn, Lsn>, lsn: Lsn) -> Option<(Lsn, Lsn)> {
    let (first, last) = stretches.range(..=lsn).next_back()?;
    (lsn <= *last).then_some((*first, *last))
}

#[cfg(test)]
mod tests {
    use super::super::entry;
    use super::*;

    /// The ends at which a log with these entries must not be shown.
    fn hidden(entries: &[(EntryKind, u64, u8)]) -> (Vec<u64>, Vec<u64>) {
        let mut batches = Batches::default();
        for (lsn, (kind, seq, flags)) in (1..).zip(entries) {
            let info = EntryInfo {
                seq: *seq,
                flags: *flags,
                ..entry(lsn, *kind, 1)
            };
            batches.committed(&info);
        }
        let ends = 1..=entries.len() as u64;
        let (ends, voids): (Vec<u64>, Vec<u64>) = (
            ends.clone()
                .filter(|lsn| batches.check_end(Lsn(*lsn)).is_err())
                .collect(),
            ends.filter(|lsn| batches.is_void(Lsn(*lsn))).collect(),
        );
        (ends, voids)
    }

    #[test]
    fn a_log_is_not_shown_up_to_the_middle_of_a_batch() {
        use EntryKind::{EpochStart, Record};
        let (start, one, more) = ((EpochStart, 0, 0), (Record, 1, 0), (Record, 2, FLAG_MORE));
        let last = (Record, 2, 0);
        assert_eq!(
            hidden(&[start, one, more, more, last, one]),
            (vec![3, 4], vec![])
        );
        assert_eq!(hidden(&[start, one, more, more]), (vec![3, 4], vec![]));
        let cut = [start, one, more, more, start, last];
        assert_eq!(hidden(&cut), (vec![3, 4], vec![3, 4]));
        let other = [start, more, (Record, 3, FLAG_MORE), (Record, 3, 0)];
        assert_eq!(hidden(&other), (vec![2, 3], vec![2]));
    }
}
