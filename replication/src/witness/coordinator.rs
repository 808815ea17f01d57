//! Drives one promotion: rule R6. Any witness may, several may at once, and any of them may die anywhere in between.
//!
//! Before anything is done, a majority of the witnesses must see the same reason: one that merely hears nothing
//! deposes nobody. Then read and fence (`fencing.rs`), seal, choose (`sealing.rs`), fence from outside if so configured,
//! compare-and-set, announce.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_types::{Epoch, MonoTime, NodeId, Register, VolumeId};

use super::choose::{Answers, Certificate};
use super::external::Wait;
use super::forced::Force;
use super::{Witness, WitnessEvent};
use crate::message::{
    MemberMessage, Message, RegisterMessage, RoundResult, SetStep, SuspectReason, WitnessMessage,
};
use crate::register::Round;

/// One attempt to give a volume a new primary.
#[derive(Debug)]
pub(super) struct Coordinator {
    /// The epoch to be ended, as this witness's register copy has it.
    pub(super) epoch: Epoch,
    pub(super) reason: SuspectReason,
    pub(super) step: Step,
    /// What got no answer is asked again then.
    pub(super) resend: MonoTime,
    /// The attempt is given up then.
    pub(super) give_up: MonoTime,
    pub(super) prefer: Option<NodeId>,
    /// When it asked its first question.
    pub(super) began: MonoTime,
    /// Witnesses that fenced the ended epoch.
    pub(super) fenced: Vec<NodeId>,
    /// Machines that were fenced from outside, and what the command wrote.
    pub(super) external: BTreeMap<NodeId, String>,
    /// Members that were unfit before they were sealed: a primary that is sealed steps down and has nothing overdue any more,
    /// and who follows nobody misses nobody.
    pub(super) unfit: BTreeSet<NodeId>,
    /// Whether `PromotionWaits` was reported.
    pub(super) reported: bool,
    /// Whether `HeldDown` was.
    held: bool,
    /// How often somebody had sealed higher.
    pub(super) outbid: u32,
    /// What is asked next was decided upon before a pause.
    pub(super) paused: bool,
    /// An operator asked for it.
    pub(super) force: Option<Force>,
}

impl Coordinator {
    /// An attempt that waits for nothing yet.
    pub(super) fn new(
        now: MonoTime,
        epoch: Epoch,
        reason: SuspectReason,
        give_up: MonoTime,
    ) -> Self {
        Self {
            epoch,
            reason,
            step: Step::Waiting { until: now },
            resend: now,
            give_up,
            prefer: None,
            began: now,
            fenced: Vec::new(),
            external: BTreeMap::new(),
            unfit: BTreeSet::new(),
            reported: false,
            held: false,
            outbid: 0,
            paused: false,
            force: None,
        }
    }
}

#[derive(Debug)]
pub(super) enum Step {
    /// Waits its turn among the witnesses.
    Waiting { until: MonoTime },
    /// Asks the others whether they see it, too.
    Suspecting { agreed: BTreeSet<NodeId> },
    /// Reads the register and fences the lease, side by side.
    Fencing {
        read: Option<Box<Register>>,
        round: Option<Round>,
        fenced: BTreeSet<NodeId>,
    },
    /// Seals the members.
    Sealing {
        register: Box<Register>,
        epoch: Epoch,
        answers: Answers,
        choose_at: Option<MonoTime>,
    },
    /// Waits until each of some machines is fenced from outside; then the members are sealed again.
    FencingExternally {
        register: Box<Register>,
        epoch: Epoch,
        /// Other witnesses come first.
        turn: MonoTime,
        waits: Vec<Wait>,
    },
    /// Writes the new value.
    Swapping {
        round: Round,
        certificate: Box<Certificate>,
    },
    /// Tells the new primary until it claims its lease.
    Announcing { register: Box<Register> },
}

impl Witness {
    /// Starts, continues and ends attempts.
    pub(super) fn close_coordinators(&mut self, now: MonoTime) {
        if !self.votes() {
            return;
        }
        for volume in self.records.keys().copied().collect::<Vec<_>>() {
            match self.coordinators.remove(&volume) {
                Some(coordinator) => self.drive(now, volume, coordinator),
                None => self.maybe_start(now, volume),
            }
        }
    }

    fn maybe_start(&mut self, now: MonoTime, volume: VolumeId) {
        let Some(reason) = self.reason(now, volume) else {
            let due = self.reason_due(now, volume);
            if due > now {
                self.wake_at(due);
            }
            return;
        };
        let Some(register) = self.accepted(volume) else {
            return;
        };
        let (epoch, pause) = (register.epoch, self.external_pause(register));
        if now < pause {
            return self.wake_at(pause);
        }
        let prefer = self.grants.get(&volume).and_then(|grants| grants.prefer);
        let delay = self.config.stagger * self.rank(volume, epoch, self.me);
        let give_up = now + delay + self.config.attempt;
        let coordinator = Coordinator {
            step: Step::Waiting { until: now + delay },
            prefer,
            ..Coordinator::new(now, epoch, reason, give_up)
        };
        self.drive(now, volume, coordinator);
    }

    /// Before this time an attempt does not begin, because of how earlier ones went. Asked anew at each step: a report
    /// that the primary has stopped ends the wait at once. What somebody has fenced or sealed already is no flapping.
    fn hold_down(&mut self, now: MonoTime, volume: VolumeId, c: &mut Coordinator) -> MonoTime {
        let until = match c.reason {
            SuspectReason::LeaseGone => self.held_down_until(now, volume),
            SuspectReason::Fenced | SuspectReason::SealedAbove | SuspectReason::Operator => {
                MonoTime::ZERO
            }
        };
        if until > now && !c.held {
            c.held = true;
            let promotions = self.grants.get(&volume).map(|g| g.hold_down.count());
            self.out
                .push_back(super::WitnessOutput::Event(WitnessEvent::HeldDown {
                    volume,
                    epoch: c.epoch,
                    promotions: promotions.unwrap_or(0),
                    until,
                }));
        }
        until
    }

    /// Turns among the witnesses, another one first for each volume and epoch.
    pub(super) fn rank(&self, volume: VolumeId, epoch: Epoch, witness: NodeId) -> u32 {
        let witnesses = self.set.nodes();
        let count = witnesses.len().max(1) as u64;
        let at = witnesses.iter().position(|w| *w == witness).unwrap_or(0) as u64;
        u32::try_from((at + volume.0 % count + epoch.0 % count) % count).unwrap_or(0)
    }

    fn drive(&mut self, now: MonoTime, volume: VolumeId, mut coordinator: Coordinator) {
        let copy_epoch = self
            .accepted(volume)
            .map_or(Epoch::ZERO, |register| register.epoch);
        let announcing = matches!(coordinator.step, Step::Announcing { .. });
        // Once this witness's own acceptor has taken the new value, its register copy shows no reason any more. The
        // round must go on until its outcome is known: nobody else would tell the new primary.
        let swapping = matches!(coordinator.step, Step::Swapping { .. });
        let overtaken = copy_epoch > coordinator.epoch && !swapping;
        let forced = coordinator.force.is_some();
        let settled = !swapping && !forced && self.reason(now, volume).is_none();
        if forced && !announcing && (overtaken || now >= coordinator.give_up) {
            return self.force_given_up(&coordinator);
        }
        if !announcing && (overtaken || now >= coordinator.give_up || settled) {
            // Start over, if there is still a reason: with jitter, so that two witnesses do not meet for ever.
            if !overtaken && now >= coordinator.give_up && self.reason(now, volume).is_some() {
                let until = now + self.rng.jitter(self.config.stagger);
                coordinator.step = Step::Waiting { until };
                coordinator.give_up = until + self.config.attempt;
            } else {
                let due = self.reason_due(now, volume);
                if due > now {
                    self.wake_at(due);
                }
                return;
            }
        }
        if self.step(now, volume, &mut coordinator) {
            self.wake_at(coordinator.give_up.min(coordinator.resend));
            self.coordinators.insert(volume, coordinator);
        } else {
            self.force_given_up(&coordinator);
        }
    }

    /// One step. False if the attempt has ended.
    pub(super) fn step(&mut self, now: MonoTime, volume: VolumeId, c: &mut Coordinator) -> bool {
        let resend = now >= c.resend;
        if resend {
            c.resend = now + self.config.retry;
        }
        match &mut c.step {
            Step::Waiting { until } => {
                let turn = *until;
                let turn = turn.max(self.hold_down(now, volume, c));
                c.give_up = turn.max(now) + self.config.attempt;
                self.wake_at(turn);
                if now >= turn {
                    c.step = Step::Suspecting {
                        agreed: BTreeSet::new(),
                    };
                    c.resend = now;
                    return self.step(now, volume, c);
                }
                true
            }
            Step::Suspecting { agreed } => {
                if self.set.is_quorum(|node| agreed.contains(&node)) {
                    self.start_fencing(now, volume, c);
                } else if resend {
                    // The others may hear of it a moment later. One that was removed while it was away hears of that only if it
                    // asks: nobody beats to it any more.
                    c.resend = now + self.config.retry / 5;
                    if now >= c.began + self.config.attempt {
                        self.broadcast(&WitnessMessage::SetStep(SetStep::Wanted));
                    }
                    let message = WitnessMessage::Suspect {
                        volume,
                        epoch: c.epoch,
                        reason: c.reason,
                    };
                    self.broadcast(&message);
                }
                true
            }
            Step::Fencing { .. } => self.step_fencing(now, volume, c, resend),
            Step::Sealing { .. } => self.step_sealing(now, volume, c, resend),
            Step::FencingExternally { .. } => self.step_external(now, volume, c),
            Step::Swapping { round, .. } => {
                round.tick(now);
                let mut sends = Vec::new();
                while let Some(send) = round.poll_send() {
                    sends.push(send);
                }
                c.resend = round.deadline();
                self.send_round(volume, sends);
                true
            }
            Step::Announcing { register } => {
                let claimed = self
                    .grants
                    .get(&volume)
                    .is_some_and(|g| g.epoch > register.epoch || g.granted);
                if claimed || now >= c.give_up {
                    return false;
                }
                if resend {
                    let register = register.clone();
                    self.announce(volume, &register);
                }
                true
            }
        }
    }

    /// Rounds under way go on among the witnesses that are. Fences are asked for again: a witness that fenced may have been
    /// removed since, and come back with another store.
    pub(super) fn ask_other_witnesses(&mut self, now: MonoTime) {
        for coordinator in self.coordinators.values_mut() {
            match &mut coordinator.step {
                Step::Fencing { round, fenced, .. } => {
                    fenced.clear();
                    if let Some(round) = round {
                        round.set_witnesses(now, &self.set);
                    }
                }
                Step::Swapping { round, .. } => round.set_witnesses(now, &self.set),
                _ => continue,
            }
            coordinator.resend = now;
        }
    }

    fn announce(&mut self, volume: VolumeId, register: &Register) {
        let nodes: BTreeSet<NodeId> = register
            .members
            .iter()
            .map(|m| m.node)
            .chain(register.policy.placement.iter().copied())
            .collect();
        for node in nodes {
            self.send_member(
                node,
                register,
                volume,
                MemberMessage::Decided(Box::new(register.clone())),
            );
        }
    }

    pub(super) fn broadcast(&mut self, message: &WitnessMessage) {
        for witness in self.set.nodes() {
            self.send(witness, Message::Witness(message.clone()));
        }
    }

    pub(super) fn send_round(&mut self, volume: VolumeId, sends: Vec<(NodeId, RegisterMessage)>) {
        for (to, body) in sends {
            self.send(to, Message::Register { volume, body });
        }
    }
}

/// Answers.
impl Witness {
    pub(super) fn handle_suspected(
        &mut self,
        from: NodeId,
        volume: VolumeId,
        epoch: Epoch,
        agree: bool,
    ) {
        if let Some(c) = self.coordinators.get_mut(&volume)
            && c.epoch == epoch
            && let Step::Suspecting { agreed } = &mut c.step
            && self.set.contains(from)
        {
            if agree {
                agreed.insert(from);
            } else {
                agreed.remove(&from);
            }
        }
    }

    pub(super) fn handle_round_answer(
        &mut self,
        now: MonoTime,
        from: NodeId,
        volume: VolumeId,
        body: RegisterMessage,
    ) {
        let Some(c) = self.coordinators.get_mut(&volume) else {
            return;
        };
        match &mut c.step {
            Step::Fencing { read, round, .. } => {
                let Some(result) = round
                    .as_mut()
                    .and_then(|round| round.handle(now, from, body))
                else {
                    return;
                };
                *round = None;
                match result {
                    RoundResult::Decided(register) | RoundResult::Conflict(register) => {
                        *read = Some(register)
                    }
                    RoundResult::Absent => {}
                }
            }
            Step::Swapping { round, certificate } => {
                let Some(result) = round.handle(now, from, body) else {
                    return;
                };
                let certificate = Box::new(Certificate {
                    took: now.since(c.began),
                    ..(**certificate).clone()
                });
                match result {
                    RoundResult::Decided(register) => {
                        c.epoch = register.epoch;
                        c.give_up = now + self.config.lease;
                        c.resend = now;
                        c.step = Step::Announcing { register };
                        if let Some(mut c) = self.coordinators.remove(&volume) {
                            self.force_done(&mut c, &certificate);
                            self.coordinators.insert(volume, c);
                        }
                        self.out
                            .push_back(super::WitnessOutput::Event(WitnessEvent::Promoted(
                                certificate,
                            )));
                    }
                    // The loser of a race is harmless.
                    RoundResult::Conflict(_) | RoundResult::Absent => {
                        if let Some(c) = self.coordinators.remove(&volume) {
                            self.force_given_up(&c);
                        }
                    }
                }
            }
            _ => {}
        }
    }
}
