//! The first half of a promotion: the register is read and the lease of the ended epoch fenced, side by side.

use std::collections::BTreeSet;

use mainstay_types::{Epoch, MonoTime, NodeId, Register, VolumeId};

use super::coordinator::{Coordinator, Step};
use super::{Witness, WitnessEvent};
use crate::message::WitnessMessage;
use crate::register::Round;

impl Witness {
    pub(super) fn start_fencing(&mut self, now: MonoTime, volume: VolumeId, c: &mut Coordinator) {
        let (epoch, reason) = (c.epoch, c.reason);
        c.began = now;
        self.out.push_back(super::WitnessOutput::Event(
            WitnessEvent::PromotionStarted {
                volume,
                epoch,
                reason,
            },
        ));
        let (seed, retry, mistakes) = (self.rng.id(), self.config.retry * 2, self.config.mistakes);
        let round = Round::read(now, &self.set, seed, retry, mistakes);
        c.step = Step::Fencing {
            read: None,
            round: Some(round),
            fenced: BTreeSet::new(),
        };
        c.resend = now;
        self.step(now, volume, c);
    }

    pub(super) fn step_fencing(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        c: &mut Coordinator,
        resend: bool,
    ) -> bool {
        let Step::Fencing {
            read,
            round,
            fenced,
        } = &mut c.step
        else {
            return true;
        };
        let mut sends = Vec::new();
        if let Some(round) = round {
            round.tick(now);
            while let Some(send) = round.poll_send() {
                sends.push(send);
            }
            c.resend = c.resend.min(round.deadline());
        }
        let ready = match read {
            Some(register) if register.epoch != c.epoch || register.deleted => return false,
            Some(register) if self.set.is_quorum(|node| fenced.contains(&node)) => {
                c.fenced = fenced.iter().copied().collect();
                Some(register.clone())
            }
            _ => None,
        };
        self.send_round(volume, sends);
        if let Some(register) = ready {
            let sealed = self.greatest_seal(volume, &register);
            self.start_sealing(now, volume, c, register, sealed);
        } else if resend {
            self.broadcast(&WitnessMessage::Fence {
                volume,
                epoch: c.epoch,
                set: self.set.tag,
            });
        }
        true
    }

    /// Greatest seal that a member has reported, or a node that should become one: a learner that was sealed by a
    /// promotion that failed, and dropped since, refuses the present primary for ever, too.
    pub(super) fn greatest_seal(&self, volume: VolumeId, register: &Register) -> Epoch {
        let nodes = register
            .members
            .iter()
            .map(|member| member.node)
            .chain(register.policy.placement.iter().copied());
        nodes
            .filter_map(|node| self.nodes.get(&node)?.orphans.get(&volume).copied())
            .max()
            .unwrap_or(Epoch::ZERO)
    }

    pub(super) fn handle_fenced(&mut self, from: NodeId, volume: VolumeId, epoch: Epoch) {
        if let Some(c) = self.coordinators.get_mut(&volume)
            && c.epoch == epoch
            && let Step::Fencing { fenced, .. } = &mut c.step
            && self.set.contains(from)
        {
            fenced.insert(from);
        }
    }
}
