//! The second half of a promotion: the members are sealed, the new primary is chosen from their answers, and the register's
//! new value goes to the witnesses.

use std::collections::BTreeSet;
use std::time::Duration;

use mainstay_types::{Epoch, MonoTime, NodeId, PrimaryId, Register, RegisterId, VolumeId};

use super::choose::{Answers, Certificate, Choice, choose, fold, missing};
use super::coordinator::{Coordinator, Step};
use super::{Witness, WitnessEvent};
use crate::message::{CopyId, MemberMessage, SealAnswer, SuspectReason};
use crate::register::Round;

/// An attempt that sees too little of what was committed is kept up for so many times the time of another one.
const BLIND_PATIENCE: u32 = 3;

impl Witness {
    pub(super) fn start_sealing(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        c: &mut Coordinator,
        register: Box<Register>,
        sealed: Epoch,
    ) {
        let epoch = register.epoch.max(sealed).next();
        c.unfit = self.unfit(now, volume, &register);
        c.step = Step::Sealing {
            register,
            epoch,
            answers: Answers::new(),
            choose_at: None,
        };
        c.resend = now;
        self.step(now, volume, c);
    }

    pub(super) fn step_sealing(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        c: &mut Coordinator,
        resend: bool,
    ) -> bool {
        let Step::Sealing {
            register,
            epoch,
            answers,
            choose_at,
        } = &mut c.step
        else {
            return true;
        };
        let (register, epoch) = (register.clone(), *epoch);
        let prefer = c.prefer.or_else(|| {
            // An orphaned fence or seal says nothing against the present primary. And a machine that answers is not struck if
            // it can be primary again, for instance after a start of the whole cluster.
            let orphan = matches!(c.reason, SuspectReason::Fenced | SuspectReason::SealedAbove);
            (orphan || self.strikes(volume, &register)).then_some(register.primary.node)
        });
        let wishes = self.wishes(now, volume, &register, prefer, &c.unfit);
        let avoid = &wishes.avoid;
        match choose(&register, answers, &wishes, self.config.mistakes) {
            Choice::Blind {
                answers: counted,
                needed,
            } => {
                if c.force.is_some() {
                    let answers = answers.clone();
                    if !self.step_forced(now, volume, c, &register, epoch, &answers) {
                        return false;
                    }
                    if !matches!(c.step, Step::Sealing { .. }) {
                        return true;
                    }
                } else if !c.reported && now + self.config.attempt / 2 >= c.give_up {
                    c.reported = true;
                    // To start over would change nothing for those that are away, and raise the epoch once more.
                    c.give_up = now + self.config.attempt * BLIND_PATIENCE;
                    let silent = missing(&register, answers);
                    self.out
                        .push_back(super::WitnessOutput::Event(WitnessEvent::PromotionWaits {
                            volume,
                            epoch,
                            answers: counted,
                            needed,
                            missing: silent,
                        }));
                }
            }
            Choice::Chosen {
                primary,
                cut,
                counted,
            } => {
                let at = *choose_at.get_or_insert(now + self.config.grace);
                let all = answers.len() >= register.members.len();
                // One that is unfit is chosen only after the others had time to answer: it may be the
                // primary that lost its lease for just that, and it would be chosen again and again.
                let enough = counted >= register.quorum()
                    && prefer.is_none_or(|node| node == primary.node)
                    && !avoid.contains(&primary.node)
                    && !self.awaits_preferred(now, &register, answers, &primary, avoid);
                if all || enough || now >= at {
                    let answers = answers.clone();
                    self.force_not_needed(c);
                    if let Some(target) = self.needs_external_fence(volume, &register, &primary) {
                        return self.start_external(now, volume, c, vec![target]);
                    }
                    c.external.extend(self.externally_gone(&register, &primary));
                    let (members, ack_quorum) =
                        fold(&register, &answers, cut, self.config.mistakes);
                    let next = Register {
                        id: RegisterId(self.rng.id()),
                        version: register.version + 1,
                        epoch,
                        primary,
                        members,
                        ack_quorum,
                        cut,
                        ..(*register).clone()
                    };
                    let certificate = Certificate::of(volume, &register, &next, c.reason, &answers);
                    self.start_swapping(now, volume, c, &register, next, certificate);
                    return true;
                }
                self.wake_at(at);
            }
        }
        if resend {
            let nodes: BTreeSet<NodeId> =
                register.members.iter().map(|member| member.node).collect();
            for node in nodes {
                self.send_member(node, &register, volume, MemberMessage::Seal { epoch });
            }
        }
        true
    }

    pub(super) fn start_swapping(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        c: &mut Coordinator,
        register: &Register,
        next: Register,
        certificate: Certificate,
    ) {
        let certificate = Box::new(Certificate {
            fenced: c.fenced.clone(),
            external: c.external.clone(),
            ..certificate
        });
        let (seed, retry, mistakes) = (self.rng.id(), self.config.retry * 2, self.config.mistakes);
        let round = Round::swap(now, &self.set, seed, retry, mistakes, register.id, next);
        c.step = Step::Swapping { round, certificate };
        c.resend = now;
        self.step(now, volume, c);
    }

    pub(super) fn handle_sealed(&mut self, volume: VolumeId, from: PrimaryId, answer: SealAnswer) {
        // The answer of a process that is known to have ended still tells what its copy holds, but nobody is left to
        // act; the process that comes after it will answer for the same copy.
        if self.dead.contains(&from.instance) {
            return;
        }
        if let Some(c) = self.coordinators.get_mut(&volume)
            && let Step::Sealing { epoch, answers, .. } = &mut c.step
            && *epoch == answer.epoch
        {
            answers.insert(
                CopyId {
                    node: from.node,
                    incarnation: from.incarnation,
                },
                (from, answer),
            );
        }
    }

    /// Somebody sealed higher: answers at the lower epoch count for nothing, so all are asked again. At once the first
    /// time, as it may be the seal of an attempt that died; later after a pause that grows. Two that both wait for a copy
    /// that is away would otherwise raise each other's epochs as fast as the disks can write seals.
    pub(super) fn handle_seal_refused(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        asked: Epoch,
        sealed: Epoch,
    ) {
        if let Some(c) = self.coordinators.get_mut(&volume)
            && let Step::Sealing {
                epoch,
                answers,
                choose_at,
                ..
            } = &mut c.step
            && *epoch == asked
            && sealed >= asked
        {
            // What is bid after a pause may be stale when it is made. The next one is not, so it need not wait: but only one,
            // or two would void each other's seals faster than a disk can write them.
            let stale = answers.is_empty() && std::mem::take(&mut c.paused);
            *epoch = sealed.next();
            answers.clear();
            *choose_at = None;
            let pause = match c.outbid {
                _ if stale => Duration::ZERO,
                0 => Duration::ZERO,
                times => self.rng.jitter(self.config.retry * (1 << times.min(5))),
            };
            c.paused |= !pause.is_zero();
            c.outbid += u32::from(!stale);
            c.resend = now + pause;
            Self::force_asks_again(c, c.resend + self.config.retry * 3);
        }
    }
}
