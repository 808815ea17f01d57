//! Acting in an epoch: order, feed, commit (rules R3.1, R3.3, R4).

use std::collections::BTreeMap;

use mainstay_types::{
    Epoch, Incarnation, Instance, LogPoint, Lsn, MemberKind, MonoTime, NodeId, PrimaryId, Register,
};

use crate::handover::Handover;
use crate::member::{LogWrite, Member, Output, State};
use crate::message::{Ack, Append, CopyId, MemberMessage, RefuseReason};
use crate::mistakes::Mistake;
use crate::progress::{Feed, Progress};
use crate::quorum::quorum_position;
use crate::readiness::Readiness;
use crate::reads::Reads;
use crate::reconfig::Joint;

/// What only the primary of an epoch keeps.
#[derive(Debug)]
pub(crate) struct Primary {
    pub(crate) epoch: Epoch,
    /// LSN of this epoch's `EpochStart`. Nothing commits before it does.
    pub(crate) start: Lsn,
    /// The configuration in force; always decided.
    pub(crate) register: Box<Register>,
    /// A change under way.
    pub(crate) joint: Option<Joint>,
    /// Every other copy: members and learners.
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    pub(crate) reads: Reads,
    pub(crate) handover: Option<Handover>,
    pub(crate) readiness: Readiness,
    /// Since when something has been waiting to be committed without progress.
    pub(crate) uncommitted_since: Option<MonoTime>,
}

impl Primary {
    /// Whether clients are served at this commit point.
    pub(crate) fn serves(&self, commit: Lsn) -> bool {
        commit >= self.start && self.readiness == Readiness::Ready
    }
}

/// What may be sent to one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendPlan {
    /// The copy's node.
    pub to: NodeId,
    /// First entry to send.
    pub first: Lsn,
    /// Last entry there is, inclusive; below `first` for an empty append.
    pub last: Lsn,
}

impl Member {
    /// Starts to act if a decided register names this very instance and nothing later was sealed (R6.8, C1, M7).
    pub(crate) fn maybe_become_primary(&mut self, now: MonoTime) {
        let Some(register) = &self.register else {
            return;
        };
        let named = if self.config.mistakes.has(Mistake::RestartedPrimaryGoesOn) {
            register.primary.node == self.me.node
                && register.primary.incarnation == self.me.incarnation
        } else {
            register.primary == self.me
        };
        let sealed = self.journal.sealed() == register.epoch && self.sealed == register.epoch;
        let unchecked = self.config.mistakes.has(Mistake::StartUnchecked)
            && !matches!(self.state, State::Primary(_));
        let acting_later = match &self.state {
            State::Idle => false,
            State::Following(following) => following.epoch >= register.epoch && !unchecked,
            State::Primary(_) => true,
        };
        let given_up = register.epoch <= self.released;
        if !named
            || acting_later
            || given_up
            || register.deleted
            || self.failed
            || self.damaged
            || self.rebuilding
        {
            return;
        }
        if !sealed && !unchecked {
            return;
        }
        if self.journal.is_idle() || unchecked {
            let register = register.clone();
            self.become_primary(now, register);
        }
    }

    fn become_primary(&mut self, now: MonoTime, register: Box<Register>) {
        let epoch = register.epoch;
        let already_started = self.log.last().epoch >= epoch;
        let start = if already_started {
            // Only the planted mistake of a restarted primary gets here: nobody else finds its own epoch in its log.
            self.log.last().lsn
        } else {
            let (start, _) = self.log.push(epoch, 1);
            let op = self.journal.append(start);
            self.out.push_back(Output::Persist {
                op,
                write: LogWrite::Append {
                    first: start,
                    last: start,
                },
            });
            start
        };
        self.doubt = None;
        self.state = State::Primary(Box::new(Primary {
            epoch,
            start,
            register,
            joint: None,
            progress: BTreeMap::new(),
            reads: Reads::default(),
            handover: None,
            readiness: Readiness::at_first(self.config.await_ready),
            uncommitted_since: Some(now),
        }));
        self.follow_placement(now);
    }

    /// Keeps one progress for every member and for every node that should hold a copy.
    pub(crate) fn follow_placement(&mut self, now: MonoTime) {
        let next_send = self.log.last().lsn.next();
        let me = self.me.node;
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        let register = &primary.register;
        let wanted: Vec<NodeId> = register
            .members
            .iter()
            .map(|member| member.node)
            .chain(register.policy.placement.iter().copied())
            .filter(|node| *node != me)
            .collect();
        primary.progress.retain(|node, _| wanted.contains(node));
        for node in wanted {
            // From the entry before EpochStart on: the common case needs no probe that fails.
            let first = primary.start.min(next_send);
            primary
                .progress
                .entry(node)
                .or_insert_with(|| Progress::new(now, first));
        }
    }

    pub(crate) fn handle_propose(&mut self, now: MonoTime, count: u64) {
        if !self.accepts() || count == 0 {
            return;
        }
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        let (first, last) = self.log.push(primary.epoch, count);
        primary.uncommitted_since.get_or_insert(now);
        let op = self.journal.append(last);
        self.out.push_back(Output::Persist {
            op,
            write: LogWrite::Append { first, last },
        });
    }

    /// The progress of the copy that speaks, if it speaks to this very epoch and instance.
    fn speaker(
        &mut self,
        now: MonoTime,
        from: PrimaryId,
        epoch: Epoch,
        instance: Instance,
    ) -> Option<&mut Progress> {
        let me = self.me.instance;
        let any_instance = self.config.mistakes.has(Mistake::RestartedPrimaryGoesOn);
        let State::Primary(primary) = &mut self.state else {
            return None;
        };
        if primary.epoch != epoch || (instance != me && !any_instance) {
            return None;
        }
        let progress = primary.progress.get_mut(&from.node)?;
        progress.heard(
            now,
            CopyId {
                node: from.node,
                incarnation: from.incarnation,
            },
            from.instance,
        );
        Some(progress)
    }

    pub(crate) fn handle_ack(&mut self, now: MonoTime, from: PrimaryId, ack: Ack) {
        if let Some(progress) = self.speaker(now, from, ack.epoch, ack.instance) {
            progress.handle_ack(now, ack);
        }
    }

    pub(crate) fn handle_mismatch(
        &mut self,
        now: MonoTime,
        from: PrimaryId,
        epoch: Epoch,
        instance: Instance,
        hint: LogPoint,
    ) {
        let (base, retransmit) = (self.log.base().lsn, self.config.retransmit);
        let next = self.log.probe_below(hint).next();
        let Some(progress) = self.speaker(now, from, epoch, instance) else {
            return;
        };
        // The lowest probe there is was answered: that it points nowhere else is no reason to go on asking. Such a copy differs
        // from this log at its very base, for example by the last entry of an epoch that this log's base is the end of.
        let at_base = progress.feed == Feed::Probing && progress.next_send == base.next();
        let news = progress.mismatched(now, next, retransmit);
        if (news || at_base) && hint.lsn < base {
            progress.feed = Feed::NeedsCopy;
            self.out.push_back(Output::NeedsCopy { node: from.node });
        }
    }

    pub(crate) fn handle_refused(
        &mut self,
        from: PrimaryId,
        epoch: Epoch,
        sealed: Epoch,
        reason: RefuseReason,
    ) {
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        if primary.epoch != epoch {
            return;
        }
        if let Some(progress) = primary.progress.get_mut(&from.node) {
            // Not `heard`: a copy that refuses for the whole hold time is dropped like one that is silent.
            progress.refused = Some(reason);
        }
        // A member above our epoch will never take our entries, but it deposes nobody by itself: one member that
        // was sealed by a promotion that failed must not cost the service what a quorum can still do. The beat
        // of that member tells the witnesses, and they drive the next promotion (H4).
        let _ = sealed;
    }

    pub(crate) fn handle_no_copy(&mut self, now: MonoTime, from: PrimaryId) {
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        if let Some(progress) = primary.progress.get_mut(&from.node) {
            // The copy that was there is gone, whatever it acknowledged.
            progress.heard(
                now,
                CopyId {
                    node: from.node,
                    incarnation: Incarnation(0),
                },
                from.instance,
            );
            progress.probe_out = false;
            let register = primary.register.clone();
            self.send(from.node, MemberMessage::Decided(register));
        }
    }

    pub(crate) fn handle_link_lost(&mut self, node: NodeId) {
        if let State::Primary(primary) = &mut self.state
            && let Some(progress) = primary.progress.get_mut(&node)
            && progress.feed != Feed::NeedsCopy
        {
            progress.become_probing(progress.acked.next().max(self.log.base().lsn.next()));
        }
    }

    /// What may be sent to `node` now. Ask again after each [`Member::append_sent`].
    #[must_use]
    pub fn append_plan(&self, now: MonoTime, node: NodeId) -> Option<AppendPlan> {
        let State::Primary(primary) = &self.state else {
            return None;
        };
        let progress = primary.progress.get(&node)?;
        let last = self.log.last().lsn;
        let empty = AppendPlan {
            to: node,
            first: progress.next_send,
            last: progress.next_send.prev(),
        };
        match progress.feed {
            Feed::Streaming
                if progress.next_send <= last
                    && progress.has_room(self.config.in_flight_bytes_max) =>
            {
                Some(AppendPlan {
                    to: node,
                    first: progress.next_send,
                    last,
                })
            }
            Feed::Probing if !progress.probe_out => Some(empty),
            _ if now >= self.beat_at(primary, progress) => Some(empty),
            _ => None,
        }
    }

    /// When an empty append is due.
    fn beat_at(&self, primary: &Primary, progress: &Progress) -> MonoTime {
        // On the grid: idle volumes of a node beat together.
        let beat = (progress.last_sent + self.config.heartbeat).on_grid(self.config.heartbeat);
        if progress.commit_sent < self.commit && self.commit >= primary.start {
            beat.min(progress.last_sent + self.config.commit_delay)
        } else {
            beat
        }
    }

    /// Builds the append of entries `plan.first..=last`, of `bytes` bytes, and counts it as sent. The caller may send
    /// fewer entries than planned. `None` if the log no longer begins early enough.
    pub fn append_sent(
        &mut self,
        now: MonoTime,
        plan: AppendPlan,
        last: Lsn,
        bytes: u64,
    ) -> Option<MemberMessage> {
        let prev = self.log.point(plan.first.prev());
        let runs = if last >= plan.first {
            self.log.slice(plan.first, last)
        } else {
            Vec::new()
        };
        let (commit, primary_last) = (self.commit, self.log.last().lsn);
        let lacked_from = self.lacked_from();
        let State::Primary(primary) = &mut self.state else {
            return None;
        };
        let progress = primary.progress.get_mut(&plan.to)?;
        let Some(prev) = prev else {
            progress.feed = Feed::NeedsCopy;
            progress.last_sent = now;
            self.out.push_back(Output::NeedsCopy { node: plan.to });
            return None;
        };
        progress.sent(now, last, bytes, commit);
        Some(MemberMessage::Append(Append {
            epoch: primary.epoch,
            prev,
            first: plan.first,
            last,
            runs,
            commit,
            primary_last,
            register_version: primary.register.version,
            lacked_from,
        }))
    }

    /// Every other copy that the primary keeps informed.
    #[must_use]
    pub fn peers(&self) -> Vec<NodeId> {
        match &self.state {
            State::Primary(primary) => primary.progress.keys().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// A full copy, of the image as of `base` and of no log, was sent to `node`: feed it from there.
    pub fn copy_sent(&mut self, node: NodeId, base: Lsn) {
        if let State::Primary(primary) = &mut self.state
            && let Some(progress) = primary.progress.get_mut(&node)
        {
            progress.become_probing(base.next());
        }
    }

    pub(crate) fn close_primary(&mut self, now: MonoTime) {
        self.close_joint(now);
        self.advance_commit(now);
        self.close_joint(now);
        self.close_readiness();
        self.close_reads(now);
        self.close_handover(now);
        self.close_feed(now);
    }

    /// R4: durable on a quorum of the configuration in force, and of the one proposed; and never before the own
    /// `EpochStart` is.
    fn advance_commit(&mut self, now: MonoTime) {
        let inherited = self.config.mistakes.has(Mistake::CommitInherited);
        let alone = self.config.mistakes.has(Mistake::AckAloneBeforeShrink);
        let no_joint = self.config.mistakes.has(Mistake::NoJointRule);
        let State::Primary(primary) = &self.state else {
            return;
        };
        // Below this number nothing is acknowledged: a new volume waits for its first replicas here.
        let registered = &primary.register.members;
        let full = registered
            .iter()
            .filter(|m| m.kind == MemberKind::Full)
            .count();
        if (full as u64) < u64::from(primary.register.policy.min_copies) {
            return;
        }
        let mut c = self.position(
            primary,
            &primary.register.members,
            primary.register.quorum(),
        );
        if let Some(joint) = &primary.joint {
            let new = self.position(primary, &joint.members, joint.quorum);
            c = if alone {
                c.max(new)
            } else if no_joint {
                c
            } else {
                c.min(new)
            };
        }
        if c >= primary.start || inherited {
            let before = self.commit;
            self.raise_commit(c.min(self.log.last().lsn));
            if self.commit > before
                && let State::Primary(primary) = &mut self.state
            {
                let waiting = self.commit < self.log.last().lsn;
                primary.uncommitted_since = waiting.then_some(now);
            }
        }
    }

    /// pos(M, k): durable on at least `k` of `members`. Only acknowledgements of the registered incarnations count.
    pub(crate) fn position(
        &self,
        primary: &Primary,
        members: &[mainstay_types::Member],
        k: usize,
    ) -> Lsn {
        let any_copy = self.config.mistakes.has(Mistake::IncarnationIgnored);
        let own = if self.config.mistakes.has(Mistake::AckBeforeSync) {
            self.journal.written().lsn()
        } else {
            self.journal.durable().lsn()
        };
        let mut positions: Vec<Lsn> = members
            .iter()
            .map(|member| {
                if member.node == self.me.node {
                    return if member.incarnation == self.me.incarnation {
                        own
                    } else {
                        Lsn::ZERO
                    };
                }
                match primary.progress.get(&member.node) {
                    Some(p)
                        if (any_copy || p.incarnation == Some(member.incarnation))
                            && !p.rebuilding =>
                    {
                        p.acked
                    }
                    _ => Lsn::ZERO,
                }
            })
            .collect();
        quorum_position(&mut positions, k)
    }

    /// Sends again what got no answer, and sets the deadlines of the feed.
    fn close_feed(&mut self, now: MonoTime) {
        let (retransmit, base) = (self.config.retransmit, self.log.base().lsn);
        let mut wake = MonoTime::MAX;
        if let State::Primary(primary) = &mut self.state {
            for progress in primary.progress.values_mut() {
                if progress
                    .waiting_since
                    .is_some_and(|since| now >= since + retransmit)
                {
                    progress.become_probing(progress.acked.next().max(base.next()));
                }
                if let Some(since) = progress.waiting_since {
                    wake = wake.min(since + retransmit);
                }
            }
        }
        self.wake_at(wake);
        if let State::Primary(primary) = &self.state {
            let beats = primary
                .progress
                .values()
                .map(|p| self.beat_at(primary, p))
                .min();
            self.wake = self.wake.min(beats.unwrap_or(MonoTime::MAX));
        }
    }
}

/// One other copy, as the primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Where.
    pub node: NodeId,
    /// Which formatting answered last.
    pub incarnation: Option<Incarnation>,
    /// Durable there.
    pub acked: Lsn,
    /// When it was heard last.
    pub last_heard: MonoTime,
    /// It does not answer.
    pub unreachable: bool,
    /// Its image is being replaced.
    pub rebuilding: bool,
    /// Why it refuses, if it does.
    pub refused: Option<RefuseReason>,
}

impl Member {
    /// The other copies, if this is a primary.
    #[must_use]
    pub fn peer_status(&self, now: MonoTime) -> Vec<PeerStatus> {
        let State::Primary(primary) = &self.state else {
            return Vec::new();
        };
        primary
            .progress
            .iter()
            .map(|(node, p)| PeerStatus {
                node: *node,
                incarnation: p.incarnation,
                acked: p.acked,
                last_heard: p.last_heard,
                unreachable: p.is_silent(now, self.config.heartbeat),
                rebuilding: p.rebuilding,
                refused: p.refused,
            })
            .collect()
    }

    /// The epoch in which this member acts.
    #[must_use]
    pub fn acting_epoch(&self) -> Option<Epoch> {
        match &self.state {
            State::Primary(primary) => Some(primary.epoch),
            _ => None,
        }
    }

    /// The epoch in which this member acts, and for how long something has been waiting to be committed in it.
    #[must_use]
    pub fn acting(&self, now: MonoTime) -> Option<(Epoch, std::time::Duration)> {
        let State::Primary(primary) = &self.state else {
            return None;
        };
        let age = primary
            .uncommitted_since
            .map_or(std::time::Duration::ZERO, |since| now.since(since));
        Some((primary.epoch, age))
    }
}
