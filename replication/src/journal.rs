//! What was handed to the disk and what came back: the one place where durability is born.
//!
//! The driver carries out writes in the order given here and reports each completion, cumulatively. An
//! acknowledgement needs a [`Durable`], and only [`Journal::durable`] makes one, from completed syncs.

use std::collections::VecDeque;

use mainstay_types::{Epoch, Lsn};

/// Names one write; rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct OpId(pub u64);

/// Every entry up to here survived a completed sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(Lsn);

impl Durable {
    /// The position.
    #[must_use]
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

#[derive(Debug, Clone, Copy)]
enum Effect {
    Appended(Lsn),
    Cut,
    Sealed(Epoch),
}

/// Writes under way and their effects.
#[derive(Debug)]
pub(crate) struct Journal {
    next: OpId,
    pending: VecDeque<(OpId, Effect)>,
    /// Invariant: every entry at or below it, as the log reads *now*, is durable. A cut lowers it at once, before
    /// the cut itself is durable: an older write that completes later vouches only for what the cut left.
    durable: Lsn,
    /// Greatest epoch durably sealed. Never falls.
    sealed: Epoch,
}

impl Journal {
    pub(crate) fn new(durable: Lsn, sealed: Epoch) -> Self {
        Self {
            next: OpId(1),
            pending: VecDeque::new(),
            durable,
            sealed,
        }
    }

    pub(crate) fn append(&mut self, last: Lsn) -> OpId {
        self.push(Effect::Appended(last))
    }

    pub(crate) fn cut(&mut self, after: Lsn) -> OpId {
        self.durable = self.durable.min(after);
        for (_, effect) in &mut self.pending {
            if let Effect::Appended(last) = effect {
                *last = (*last).min(after);
            }
        }
        self.push(Effect::Cut)
    }

    pub(crate) fn seal(&mut self, epoch: Epoch) -> OpId {
        self.push(Effect::Sealed(epoch))
    }

    /// Every write up to `op` is durable.
    pub(crate) fn complete(&mut self, op: OpId) {
        while let Some((id, effect)) = self.pending.front().copied() {
            if id > op {
                break;
            }
            self.pending.pop_front();
            match effect {
                Effect::Appended(last) => self.durable = self.durable.max(last),
                Effect::Cut => {}
                Effect::Sealed(epoch) => {
                    assert!(
                        epoch >= self.sealed,
                        "seal fell from {} to {epoch}",
                        self.sealed
                    );
                    self.sealed = epoch;
                }
            }
        }
    }

    pub(crate) fn durable(&self) -> Durable {
        Durable(self.durable)
    }

    /// Includes what is only handed to the disk: for the planted mistake of acknowledging it.
    pub(crate) fn written(&self) -> Durable {
        let written = self.pending.iter().filter_map(|(_, effect)| match effect {
            Effect::Appended(last) => Some(*last),
            _ => None,
        });
        Durable(written.fold(self.durable, Lsn::max))
    }

    pub(crate) fn sealed(&self) -> Epoch {
        self.sealed
    }

    /// The log was replaced by an empty one behind `base`, durably; nothing was under way.
    pub(crate) fn reset(&mut self, base: Lsn) {
        assert!(self.is_idle(), "log replaced while writes are under way");
        self.durable = base;
    }

    /// The write handed out last.
    pub(crate) fn issued(&self) -> OpId {
        OpId(self.next.0 - 1)
    }

    /// The last write of those that are complete.
    pub(crate) fn completed(&self) -> OpId {
        let first = self.pending.front().map_or(self.next, |(op, _)| *op);
        OpId(first.0 - 1)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    fn push(&mut self, effect: Effect) -> OpId {
        let op = self.next;
        self.next = OpId(op.0 + 1);
        self.pending.push_back((op, effect));
        op
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_that_ends_after_a_cut_vouches_only_for_what_the_cut_left() {
        let mut journal = Journal::new(Lsn(5), Epoch(1));
        let old = journal.append(Lsn(8));
        let cut = journal.cut(Lsn(6));
        let new = journal.append(Lsn(7));
        journal.complete(old);
        assert_eq!(journal.durable().lsn(), Lsn(6));
        journal.complete(cut);
        assert_eq!(journal.durable().lsn(), Lsn(6));
        journal.complete(new);
        assert_eq!(journal.durable().lsn(), Lsn(7));
    }

    #[test]
    fn a_cut_below_the_durable_position_lowers_it_at_once() {
        let mut journal = Journal::new(Lsn(9), Epoch(1));
        journal.cut(Lsn(4));
        assert_eq!(journal.durable().lsn(), Lsn(4));
    }

    #[test]
    fn a_seal_counts_when_its_write_is_complete() {
        let mut journal = Journal::new(Lsn(0), Epoch(1));
        let op = journal.seal(Epoch(4));
        assert_eq!(journal.sealed(), Epoch(1));
        journal.complete(op);
        assert_eq!(journal.sealed(), Epoch(4));
        assert!(journal.is_idle());
    }
}
