//! One copy of one volume on a data node: dispatch and closing pass only.
//!
//! Rules that hold across the crate's member side:
//! * `handle` takes one event; the closing pass then does whatever its new state allows. Outputs are drained after.
//! * Writes are carried out by the driver in the order given. `Send` outputs are safe at once: what must wait for
//!   the disk is not in the queue before the disk has answered.
//! * `sealed` (promised), `journal.sealed()` (durable), `commit` never fall.

mod events;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use mainstay_types::{
    Epoch, Incarnation, Lineage, LogPoint, Lsn, MonoTime, NodeId, PrimaryId, Register, VolumeId,
};

pub use events::{Input, LogWrite, MemberStart, Output, Role};

use crate::config::MemberConfig;
use crate::health::DiskHealth;
use crate::journal::Journal;
use crate::message::{
    CopyId, Doubt, MemberEnvelope, MemberMessage, RefuseReason, RegisterMessage, RoundResult,
};
use crate::mistakes::Mistake;
use crate::primary::Primary;
use crate::register::Round;
use crate::replica::Following;
use crate::rng::Rng;
use crate::runs::EpochRuns;
use crate::seal::SealWaiter;
use crate::witness_set::WitnessSet;

/// One copy of one volume.
#[derive(Debug)]
pub struct Member {
    pub(crate) config: MemberConfig,
    pub(crate) me: PrimaryId,
    pub(crate) volume: VolumeId,
    pub(crate) lineage: Lineage,
    pub(crate) witnesses: Arc<WitnessSet>,
    pub(crate) log: EpochRuns,
    pub(crate) journal: Journal,
    /// Greatest epoch promised, durable or on its way to the disk. Never falls.
    pub(crate) sealed: Epoch,
    /// Never falls.
    pub(crate) commit: Lsn,
    pub(crate) state: State,
    pub(crate) doubt: Option<Doubt>,
    pub(crate) damaged: bool,
    pub(crate) rebuilding: bool,
    pub(crate) failed: bool,
    /// Last decided value seen.
    pub(crate) register: Option<Box<Register>>,
    pub(crate) seal_waiters: Vec<SealWaiter>,
    /// Finds out what happened while this process was away.
    pub(crate) round: Option<Round>,
    /// Greatest epoch that this instance released: it never acts in it again.
    pub(crate) released: Epoch,
    pub(crate) lease_epoch: Epoch,
    pub(crate) lease_until: MonoTime,
    pub(crate) silent: Vec<NodeId>,
    pub(crate) reachable: BTreeSet<NodeId>,
    pub(crate) health: DiskHealth,

    pub(crate) last_role: Role,
    pub(crate) rng: Rng,
    pub(crate) wake: MonoTime,
    pub(crate) out: VecDeque<Output>,
}

#[derive(Debug)]
pub(crate) enum State {
    Idle,
    Following(Following),
    Primary(Box<Primary>),
}

impl Member {
    /// A member as its disk remembers it. Reads the register before anything else.
    #[must_use]
    pub fn new(now: MonoTime, config: MemberConfig, start: MemberStart) -> Self {
        let durable = start.log.last().lsn;
        let mut rng = Rng::new(start.seed);
        let round = Round::read(
            now,
            &start.witnesses,
            rng.id(),
            config.round_retry,
            config.mistakes,
        );
        let mut member = Self {
            config,
            me: start.me,
            volume: start.volume,
            lineage: start.lineage,
            witnesses: start.witnesses,
            journal: Journal::new(durable, start.sealed),
            commit: start.commit.min(durable),
            log: start.log,
            sealed: start.sealed,
            state: State::Idle,
            doubt: start.doubt,
            damaged: start.damaged,
            rebuilding: start.rebuilding,
            failed: false,
            register: None,
            seal_waiters: Vec::new(),
            round: Some(round),
            released: Epoch::ZERO,
            lease_epoch: Epoch::ZERO,
            lease_until: MonoTime::ZERO,
            silent: Vec::new(),
            reachable: BTreeSet::new(),
            health: DiskHealth::default(),

            last_role: Role::Idle,
            rng,
            wake: now,
            out: VecDeque::new(),
        };
        member.close(now);
        member
    }

    /// Takes one event.
    pub fn handle(&mut self, now: MonoTime, input: Input) {
        match input {
            Input::Message(envelope) => self.handle_message(now, envelope),
            Input::Register { from, body } => self.handle_register(now, from, body),
            Input::Witnesses(set) => self.handle_witnesses(now, set),
            Input::Persisted(op) => self.journal.complete(op),
            Input::StorageFailed => self.handle_storage_failed(),
            Input::Stalled => self.handle_stalled(),
            Input::Propose { count } => self.handle_propose(now, count),
            Input::Read { id } => self.handle_read(now, id),
            Input::ReadsGone { ids } => self.handle_reads_gone(&ids),
            Input::Lease {
                epoch,
                until,
                silent,
            } => self.handle_lease(epoch, until, silent),
            Input::Handover { to } => self.handle_handover(now, to),
            Input::Ready { epoch } => self.handle_ready(epoch),
            Input::Recycled { through } => self.log.advance_base(through.min(self.commit)),
            Input::CopyInstalled { base } => self.handle_copy_installed(base),
            Input::Rebuilt => self.rebuilding = false,

            Input::LinkUp { node } => {
                self.reachable.insert(node);
            }
            Input::LinkLost { node } => {
                self.reachable.remove(&node);
                self.handle_link_lost(node);
            }
            Input::Tick => {}
        }
        self.close(now);
    }

    /// The next thing to do. Drain after every `handle`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to call `handle` with `Tick`, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> MonoTime {
        self.wake
    }

    fn handle_message(&mut self, now: MonoTime, envelope: MemberEnvelope) {
        if envelope.volume != self.volume || envelope.lineage != self.lineage || self.failed {
            return;
        }
        let from = envelope.from;
        match envelope.body {
            MemberMessage::Append(append) => self.handle_append(now, from, &append),
            MemberMessage::Ack(ack) => self.handle_ack(now, from, ack),
            MemberMessage::Mismatch {
                epoch,
                instance,
                hint,
            } => {
                self.handle_mismatch(now, from, epoch, instance, hint);
            }
            MemberMessage::Refused {
                epoch,
                sealed,
                reason,
            } => {
                self.handle_refused(from, epoch, sealed, reason);
            }
            MemberMessage::Confirm { epoch, round } => self.handle_confirm(from, epoch, round),
            MemberMessage::Confirmed {
                epoch,
                instance,
                round,
            } => {
                self.handle_confirmed(now, from, epoch, instance, round);
            }
            MemberMessage::Seal { epoch } => self.handle_seal(from, epoch),
            MemberMessage::Decided(register) => self.learn(now, register),
            MemberMessage::NoCopy => self.handle_no_copy(now, from),
            // Answers to witnesses.
            MemberMessage::Sealed(_) | MemberMessage::SealRefused { .. } => {}
        }
    }

    fn handle_register(&mut self, now: MonoTime, from: NodeId, body: RegisterMessage) {
        if let Some(round) = &mut self.round
            && let Some(result) = round.handle(now, from, body.clone())
        {
            self.round = None;
            if let RoundResult::Decided(register) | RoundResult::Conflict(register) = result {
                self.learn(now, register);
            }
        }
        self.handle_change_answer(now, from, body);
    }

    fn handle_witnesses(&mut self, now: MonoTime, set: Arc<WitnessSet>) {
        // Two may be on their way at once, in any order.
        if set.tag.version < self.witnesses.tag.version {
            return;
        }
        if let Some(round) = &mut self.round {
            round.set_witnesses(now, &set);
        }
        if let State::Primary(primary) = &mut self.state
            && let Some(round) = primary.joint.as_mut().and_then(|j| j.proposal.as_mut())
        {
            round.set_witnesses(now, &set);
        }
        self.witnesses = set;
    }

    /// Acts on a register value that is decided.
    pub(crate) fn learn(&mut self, now: MonoTime, register: Box<Register>) {
        if register.lineage != self.lineage {
            return;
        }
        if let Some(known) = &self.register
            && (known.epoch, known.version) >= (register.epoch, register.version)
            && !(known.id == register.id && matches!(self.state, State::Idle))
        {
            return;
        }
        self.register = Some(register.clone());
        self.out.push_back(Output::Decided(register.clone()));
        if let State::Primary(primary) = &self.state {
            let ours = register.primary == self.me && register.epoch == primary.epoch;
            if register.epoch > primary.epoch || (register.epoch == primary.epoch && !ours) {
                self.step_down();
            }
        }
        self.maybe_become_primary(now);
    }

    fn handle_storage_failed(&mut self) {
        self.failed = true;
        self.step_down();
        self.state = State::Idle;
    }

    fn handle_lease(&mut self, epoch: Epoch, until: MonoTime, silent: Vec<NodeId>) {
        self.silent = silent;
        if epoch > self.lease_epoch {
            self.lease_epoch = epoch;
            self.lease_until = until;
        } else if epoch == self.lease_epoch {
            self.lease_until = self.lease_until.max(until);
        }
    }

    fn handle_copy_installed(&mut self, base: LogPoint) {
        assert!(
            !matches!(self.state, State::Primary(_)),
            "a primary's own copy is never replaced"
        );
        self.log = EpochRuns::empty(base);
        self.journal.reset(base.lsn);
        self.commit = self.commit.max(base.lsn);
        self.rebuilding = true;
        self.damaged = false;
        self.doubt = None;
        self.state = State::Idle;
    }

    /// What always holds afterwards: commit, acks, answers that waited for the disk, deadlines.
    fn close(&mut self, now: MonoTime) {
        self.wake = MonoTime::MAX;
        self.close_round(now);
        self.close_seals();
        match self.state {
            State::Primary(_) => self.close_primary(now),
            State::Following(_) => self.close_replica(now),
            State::Idle => self.maybe_become_primary(now),
        }
        self.close_health(now);
        self.close_role();
        self.check_invariants();
    }

    fn close_round(&mut self, now: MonoTime) {
        if let Some(round) = &mut self.round {
            round.tick(now);
            while let Some((to, message)) = round.poll_send() {
                self.out.push_back(Output::SendRegister { to, message });
            }
            self.wake = self.wake.min(round.deadline());
        }
    }

    fn close_role(&mut self) {
        let role = self.role();
        if role != self.last_role {
            self.last_role = role;
            self.out.push_back(Output::Role(role));
        }
    }

    fn check_invariants(&self) {
        assert!(
            self.sealed >= self.journal.sealed(),
            "sealed {} below the disk's {}",
            self.sealed,
            self.journal.sealed()
        );
        assert!(
            self.commit <= self.log.last().lsn,
            "commit {} above the end {} of the log",
            self.commit,
            self.log.last()
        );
        if let State::Primary(primary) = &self.state {
            debug_assert!(primary.start <= self.log.last().lsn);
        }
    }

    /// Gives up the primary role of the present epoch, for good.
    pub(crate) fn step_down(&mut self) {
        if let State::Primary(primary) = std::mem::replace(&mut self.state, State::Idle) {
            for id in primary.reads.ids() {
                self.out.push_back(Output::ReadRefused { id });
            }
        }
    }

    pub(crate) fn wake_at(&mut self, at: MonoTime) {
        self.wake = self.wake.min(at);
    }

    pub(crate) fn send(&mut self, to: NodeId, message: MemberMessage) {
        self.out.push_back(Output::Send { to, message });
    }

    pub(crate) fn raise_commit(&mut self, lsn: Lsn) {
        if lsn > self.commit {
            self.commit = lsn;
            self.out.push_back(Output::Committed { lsn });
        }
    }

    pub(crate) fn copy(&self) -> CopyId {
        CopyId {
            node: self.me.node,
            incarnation: self.me.incarnation,
        }
    }

    /// Why this copy takes no appends, if it does not.
    pub(crate) fn refusal(&self) -> Option<RefuseReason> {
        if self.failed {
            Some(RefuseReason::Failed)
        } else if self.damaged && !self.config.mistakes.has(Mistake::DamageCountsAsSight) {
            Some(RefuseReason::Damaged)
        } else {
            None
        }
    }
}

/// What others may know.
impl Member {
    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        if self.failed || self.damaged {
            return Role::Failed;
        }
        match &self.state {
            State::Idle => Role::Idle,
            State::Following(following) => Role::Replica {
                epoch: following.epoch,
                primary: following.primary.node,
            },
            State::Primary(primary) => {
                let epoch = primary.epoch;
                if primary.handover.is_some() {
                    Role::Draining { epoch }
                } else if primary.serves(self.commit) {
                    Role::Primary { epoch }
                } else {
                    Role::Starting { epoch }
                }
            }
        }
    }

    /// Whether `Propose` would be taken in.
    #[must_use]
    pub fn accepts(&self) -> bool {
        matches!(self.role(), Role::Primary { .. })
    }

    /// The commit point.
    #[must_use]
    pub fn commit(&self) -> Lsn {
        self.commit
    }

    /// Last entry of the log, durable or not.
    #[must_use]
    pub fn last(&self) -> LogPoint {
        self.log.last()
    }

    /// Durable up to here.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.journal.durable().lsn()
    }

    /// Greatest epoch sealed, durably.
    #[must_use]
    pub fn sealed(&self) -> Epoch {
        self.journal.sealed()
    }

    /// The epochs of the log.
    #[must_use]
    pub fn log(&self) -> &EpochRuns {
        &self.log
    }

    /// This process and copy.
    #[must_use]
    pub fn id(&self) -> PrimaryId {
        self.me
    }

    /// This copy's incarnation.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.me.incarnation
    }

    /// The volume's history.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Last decided register value seen here.
    #[must_use]
    pub fn register(&self) -> Option<&Register> {
        self.register.as_deref()
    }

    /// Whether writes are on their way to the disk.
    #[must_use]
    pub fn has_pending_writes(&self) -> bool {
        !self.journal.is_idle()
    }

    /// Whether the image is being replaced.
    #[must_use]
    pub fn is_rebuilding(&self) -> bool {
        self.rebuilding
    }

    /// Where this copy is sealed, if nobody acts in that epoch as far as it knows.
    #[must_use]
    pub fn orphaned(&self) -> Option<Epoch> {
        match &self.state {
            State::Idle if !self.failed => Some(self.journal.sealed()),
            _ => None,
        }
    }
}
