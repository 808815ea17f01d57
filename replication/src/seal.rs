//! Sealing for a promotion: rule R6.3. In this order: acks of older epochs stop, the seal becomes durable, the
//! durable position is read, the answer goes out (C4).

use mainstay_types::{Epoch, NodeId, PrimaryId};

use crate::member::{Member, State};
use crate::message::{MemberMessage, SealAnswer};
use crate::mistakes::Mistake;

/// A witness that waits for the seal to be durable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SealWaiter {
    witness: NodeId,
    epoch: Epoch,
}

impl Member {
    pub(crate) fn handle_seal(&mut self, from: PrimaryId, epoch: Epoch) {
        if self.sealed > epoch {
            let sealed = self.sealed;
            return self.send(
                from.node,
                MemberMessage::SealRefused {
                    asked: epoch,
                    sealed,
                },
            );
        }
        match &self.state {
            State::Primary(primary) if primary.epoch < epoch => self.step_down(),
            State::Following(following)
                if following.epoch < epoch && !self.config.mistakes.has(Mistake::AckAfterSeal) =>
            {
                self.state = State::Idle;
            }
            _ => {}
        }
        self.promise(epoch);
        self.seal_waiters
            .retain(|waiter| waiter.witness != from.node);
        self.seal_waiters.push(SealWaiter {
            witness: from.node,
            epoch,
        });
    }

    /// Answers those whose seal is durable and still stands.
    pub(crate) fn close_seals(&mut self) {
        let late = self.config.mistakes.has(Mistake::AckAfterSeal);
        let unsynced = self.config.mistakes.has(Mistake::SealNotDurable);
        // Writes are durable in order, so everything handed to the disk before the seal is durable with it. What
        // came after belongs to the new epoch and must be durable too before this log is described.
        let ready =
            unsynced || late || (self.journal.sealed() == self.sealed && self.journal.is_idle());
        if !ready || self.failed {
            return;
        }
        for SealWaiter { witness, epoch } in std::mem::take(&mut self.seal_waiters) {
            if epoch == self.sealed {
                let answer = self.seal_answer(epoch);
                self.send(witness, MemberMessage::Sealed(answer));
            } else {
                let sealed = self.sealed;
                self.send(
                    witness,
                    MemberMessage::SealRefused {
                        asked: epoch,
                        sealed,
                    },
                );
            }
        }
    }

    fn seal_answer(&self, epoch: Epoch) -> SealAnswer {
        let durable = self.journal.durable().lsn();
        SealAnswer {
            epoch,
            last: self.log.point(durable).unwrap_or_else(|| self.log.base()),
            first: self.log.base().lsn.next(),
            damaged: self.damaged,
            rebuilding: self.rebuilding,
            doubt: self.doubt,
            reachable: self.reachable.iter().copied().collect(),
        }
    }
}
