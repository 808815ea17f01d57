//! Membership changes by the primary: rule R5. One at a time, by a joint rule, behind a sync point (C2).

use mainstay_types::{
    Lsn, Member as RegisteredMember, MemberKind, MonoTime, NodeId, Register, RegisterId,
};

use crate::member::{Member, Output, State};
use crate::message::{MemberMessage, RegisterMessage, RoundResult};
use crate::mistakes::Mistake;
use crate::primary::Primary;
use crate::progress::Feed;
use crate::register::Round;

/// A change under way. From here until its outcome is known, an entry must satisfy both rules.
#[derive(Debug)]
pub(crate) struct Joint {
    pub(crate) members: Vec<RegisteredMember>,
    pub(crate) quorum: usize,
    /// None before the sync point: the change may still be dropped without a trace.
    pub(crate) proposal: Option<Round>,
}

impl Member {
    pub(crate) fn handle_change_answer(
        &mut self,
        now: MonoTime,
        from: NodeId,
        body: RegisterMessage,
    ) {
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        let Some(Joint {
            proposal: Some(round),
            members,
            quorum,
        }) = &mut primary.joint
        else {
            return;
        };
        let Some(result) = round.handle(now, from, body) else {
            return;
        };
        match result {
            RoundResult::Decided(register) => {
                debug_assert_eq!((&register.members, register.quorum()), (&*members, *quorum));
                self.change_decided(now, register);
            }
            RoundResult::Conflict(register)
                if register.epoch == primary.epoch && register.primary == self.me =>
            {
                // Somebody changed the policy: take its id and propose anew. Still joint, as ours may not be gone.
                if register.deleted {
                    return self.step_down();
                }
                primary.register.id = register.id;
                primary.register.version = register.version;
                primary.register.policy = register.policy.clone();
                let next = self.change_value(&register.policy.clone());
                self.propose_change(now, next);
            }
            RoundResult::Conflict(register) => {
                self.step_down();
                self.learn(now, register);
            }
            RoundResult::Absent => self.step_down(),
        }
    }

    fn change_decided(&mut self, now: MonoTime, register: Box<Register>) {
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        primary.joint = None;
        primary.register = register.clone();
        self.register = Some(register.clone());
        self.out.push_back(Output::Decided(register.clone()));
        self.follow_placement(now);
        // Replicas need it for nothing but to tell others.
        for node in self.peers() {
            self.send(node, MemberMessage::Decided(register.clone()));
        }
    }

    /// Drives the change under way, or finds one worth making.
    pub(crate) fn close_joint(&mut self, now: MonoTime) {
        let commit = self.commit;
        let State::Primary(primary) = &self.state else {
            return;
        };
        let Some(joint) = &primary.joint else {
            if primary.handover.is_none() {
                self.find_change(now);
            }
            return;
        };
        if joint.proposal.is_none() {
            let need = commit.max(primary.start);
            let reached = self.position(primary, &joint.members, joint.quorum) >= need
                || self.config.mistakes.has(Mistake::NoSyncPoint);
            if reached {
                let policy = primary.register.policy.clone();
                let next = self.change_value(&policy);
                self.propose_change(now, next);
            } else if !self.still_wanted(now) {
                if let State::Primary(primary) = &mut self.state {
                    primary.joint = None;
                }
                return;
            }
        }
        self.drain_change(now);
    }

    fn drain_change(&mut self, now: MonoTime) {
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        let Some(Joint {
            proposal: Some(round),
            ..
        }) = &mut primary.joint
        else {
            return;
        };
        round.tick(now);
        while let Some((to, message)) = round.poll_send() {
            self.out.push_back(Output::SendRegister { to, message });
        }
        let deadline = round.deadline();
        self.wake_at(deadline);
    }

    fn change_value(&mut self, policy: &mainstay_types::Policy) -> Option<(RegisterId, Register)> {
        let id = RegisterId(self.rng.id());
        let State::Primary(primary) = &self.state else {
            return None;
        };
        let joint = primary.joint.as_ref()?;
        let mut next = (*primary.register).clone();
        next.id = id;
        next.version += 1;
        next.policy = policy.clone();
        next.members = joint.members.clone();
        next.ack_quorum = u32::try_from(joint.quorum).unwrap_or(u32::MAX);
        Some((primary.register.id, next))
    }

    fn propose_change(&mut self, now: MonoTime, change: Option<(RegisterId, Register)>) {
        let Some((expect, next)) = change else { return };
        let (seed, retry, mistakes) =
            (self.rng.id(), self.config.round_retry, self.config.mistakes);
        let round = Round::swap(now, &self.witnesses, seed, retry, mistakes, expect, next);
        if let State::Primary(primary) = &mut self.state
            && let Some(joint) = &mut primary.joint
        {
            joint.proposal = Some(round);
        }
        self.drain_change(now);
    }

    /// Enters joint mode if a member must go or a learner may come.
    fn find_change(&mut self, now: MonoTime) {
        let State::Primary(primary) = &self.state else {
            return;
        };
        let members = match self.member_to_drop(now, primary) {
            Some(gone) => primary
                .register
                .members
                .iter()
                .filter(|m| **m != gone)
                .copied()
                .collect::<Vec<_>>(),
            None => match self.learner_to_add(now, primary) {
                Some(member) => primary
                    .register
                    .members
                    .iter()
                    .copied()
                    .chain([member])
                    .collect(),
                None => return self.wake_for_changes(now),
            },
        };
        let quorum = primary.register.policy.ack.quorum(members.len());
        if let State::Primary(primary) = &mut self.state {
            primary.joint = Some(Joint {
                members,
                quorum,
                proposal: None,
            });
        }
    }

    /// A member that was silent, refused, or came back as another copy, for the whole hold time.
    fn member_to_drop(&self, now: MonoTime, primary: &Primary) -> Option<RegisteredMember> {
        let full = primary
            .register
            .members
            .iter()
            .filter(|m| m.kind == MemberKind::Full)
            .count();
        let min = usize::try_from(primary.register.policy.min_copies)
            .unwrap_or(usize::MAX)
            .max(1);
        if full <= min {
            return None;
        }
        primary
            .register
            .members
            .iter()
            .filter(|m| m.node != self.me.node)
            .find(|m| self.is_gone(now, primary, m, full))
            .filter(|m| self.is_replaced(primary, m) || self.commits_without(now, primary, m))
            .copied()
    }

    /// Whether it came back as another copy: the registered one is no more.
    fn is_replaced(&self, primary: &Primary, member: &RegisteredMember) -> bool {
        let found = primary.progress.get(&member.node);
        let found = found.and_then(|progress| progress.incarnation);
        found.is_some_and(|incarnation| incarnation != member.incarnation)
            && !self.config.mistakes.has(Mistake::IncarnationIgnored)
    }

    /// Whether the members without `gone` could commit now, as far as anybody knows.
    ///
    /// A primary whose links break drops the member that it heard first of all to be silent, and keeps one that it does not
    /// hear either. Both may be well: with three members two of them can replace it (H3), but once the register says two,
    /// the one left cannot commit without the primary, and nobody can do better. A member that the witnesses do not
    /// hear is no reason to wait: it could not replace anybody.
    fn commits_without(&self, now: MonoTime, primary: &Primary, gone: &RegisteredMember) -> bool {
        let rest = primary.register.members.iter().filter(|m| *m != gone);
        let counts = |m: &&RegisteredMember| {
            let progress = primary.progress.get(&m.node);
            let heard = progress.is_some_and(|p| now < p.last_heard + 5 * self.config.heartbeat);
            m.node == self.me.node || heard || self.silent.contains(&m.node)
        };
        let able = rest.filter(counts).count();
        let left = primary.register.members.len() - 1;
        able >= primary.register.policy.ack.quorum(left)
    }

    fn is_gone(
        &self,
        now: MonoTime,
        primary: &Primary,
        member: &RegisteredMember,
        full: usize,
    ) -> bool {
        let Some(progress) = primary.progress.get(&member.node) else {
            return false;
        };
        if self.is_replaced(primary, member) {
            return true;
        }
        // It answers, and has fallen behind what this log still holds: it cannot count for anything before a full copy.
        let fresh = now < progress.last_heard + 5 * self.config.heartbeat;
        let answers = fresh && progress.incarnation.is_some();
        let lost_touch = answers && progress.feed == Feed::NeedsCopy;
        // A refusal does not count as being heard, so a copy that refuses is dropped after the same time.
        let held_out = lost_touch || now >= progress.last_heard + self.config.drop_after;
        // Alone, only if the witnesses do not hear it either: a cut between two healthy copies must not let one of
        // them shrink to itself (H3). A refusal is its own word.
        let agreed = full > 2
            || lost_touch
            || progress.refused.is_some()
            || self.silent.contains(&member.node);
        held_out && agreed
    }

    /// A copy that should be a member and holds everything committed.
    fn learner_to_add(&self, now: MonoTime, primary: &Primary) -> Option<RegisteredMember> {
        let need = self.commit.max(primary.start);
        primary.progress.iter().find_map(|(node, progress)| {
            let incarnation = progress.incarnation?;
            let heard = now < progress.last_heard + self.config.drop_after;
            let ready = heard
                && !progress.rebuilding
                && progress.refused.is_none()
                && progress.acked >= need;
            let member = RegisteredMember {
                node: *node,
                incarnation,
                kind: MemberKind::Full,
            };
            // Beside a lost copy on the same node, if there is one: adding first keeps `min_copies` within reach.
            let absent = !primary.register.members.contains(&member);
            let wanted = primary.register.policy.placement.contains(node) && incarnation.0 != 0;
            (ready && absent && wanted).then_some(member)
        })
    }

    /// Before the proposal: whether the reason for the change still holds.
    fn still_wanted(&self, now: MonoTime) -> bool {
        let State::Primary(primary) = &self.state else {
            return false;
        };
        let Some(joint) = &primary.joint else {
            return false;
        };
        if joint.members.len() < primary.register.members.len() {
            self.member_to_drop(now, primary)
                .is_some_and(|gone| !joint.members.contains(&gone))
        } else {
            self.learner_to_add(now, primary)
                .is_some_and(|member| joint.members.contains(&member))
        }
    }

    fn wake_for_changes(&mut self, now: MonoTime) {
        let State::Primary(primary) = &self.state else {
            return;
        };
        let due = primary
            .progress
            .values()
            .map(|progress| progress.last_heard + self.config.drop_after)
            .filter(|due| *due > now)
            .min();
        self.wake = self.wake.min(due.unwrap_or(MonoTime::MAX));
    }

    /// Whether a membership change is under way.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        matches!(&self.state, State::Primary(primary) if primary.joint.is_some())
    }

    /// Oldest entry that some member may still need from this log: behind it, recycling costs nobody a full copy. Only
    /// a primary knows; for anybody else it is zero, as the next primary's log is all that a laggard can be fed from.
    #[must_use]
    pub fn needed_from(&self) -> Lsn {
        let State::Primary(primary) = &self.state else {
            return Lsn::ZERO;
        };
        primary
            .progress
            .values()
            .map(|p| p.acked.next())
            .min()
            .unwrap_or(Lsn::ZERO)
            .min(self.commit.next())
    }

    /// Up to where `node` holds this log durably, as the primary knows: zero before its first answer, nothing for a node that is
    /// to have no copy, or if this copy is no primary.
    #[must_use]
    pub fn acked(&self, node: NodeId) -> Option<Lsn> {
        let State::Primary(primary) = &self.state else {
            return None;
        };
        primary.progress.get(&node).map(|progress| progress.acked)
    }

    /// The other copies to which entries flow, and up to where each holds this log durably. None if this copy is no primary.
    pub fn following(&self) -> impl Iterator<Item = (NodeId, Lsn)> {
        let progress = match &self.state {
            State::Primary(primary) => Some(&primary.progress),
            _ => None,
        };
        let flowing = progress
            .into_iter()
            .flatten()
            .filter(|(_, progress)| progress.feed == Feed::Streaming);
        flowing.map(|(node, progress)| (*node, progress.acked))
    }

    /// The first entry that a registered member may lack, as the primary knows: no copy may give up anything from there on (H5).
    /// A member that has not answered in this epoch may lack everything. A replica knows what its primary said last; whoever follows nobody
    /// knows nothing, which is zero.
    #[must_use]
    pub fn lacked_from(&self) -> Lsn {
        let primary = match &self.state {
            State::Primary(primary) => primary,
            State::Following(following) => return following.lacked_from,
            State::Idle => return Lsn::ZERO,
        };
        let joint = primary.joint.iter().flat_map(|joint| &joint.members);
        let registered = primary.register.members.iter().chain(joint);
        let others = registered.filter(|member| member.node != self.me.node);
        // Of that very copy: one that its node made anew, and that does not count yet, says nothing of what the registered one holds.
        let acked = |member: &RegisteredMember| {
            let progress = primary.progress.get(&member.node);
            let same = progress.filter(|p| p.incarnation == Some(member.incarnation));
            same.map_or(Lsn::ZERO, |p| p.acked)
        };
        others
            .map(|member| acked(member).next())
            .chain([self.journal.durable().lsn().next(), self.commit.next()])
            .min()
            .unwrap_or(Lsn::ZERO)
    }
}
