//! One witness: dispatch and closing pass. Registers, grants and fences are kept here; promotions are driven here.
//!
//! Rules that hold across this side:
//! * A promise, an accepted value and a fence are durable before they are answered: the answer waits in `after` for
//!   the write it depends on.
//! * Grants live in memory only. A restarted witness has forgotten them, so it waits out the longest lease ever
//!   configured before it fences (M2).
//! * A witness holds no user data and never vouches for how fresh a copy is.

mod acceptor;
mod change;
mod choose;
mod coordinator;
mod external;
mod fencing;
mod forced;
mod grants;
mod health;
mod holddown;
mod sealing;
mod set;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mainstay_types::{Epoch, Instance, MonoTime, NodeId, PrimaryId, Register, VolumeId};

use crate::config::LeaseConfig;
use crate::journal::OpId;
use crate::message::{
    Ballot, MemberEnvelope, MemberMessage, Message, RegisterMessage, SuspectReason, WitnessMessage,
};
use crate::rng::Rng;
use crate::witness_set::WitnessSet;

use change::Change;
pub use change::{ChangeRefused, ChangeRequest};
pub use choose::Certificate;
use coordinator::Coordinator;
use external::ExternalFences;
pub use external::{ExternalFence, ExternalFenceResult};
pub use forced::{ForceRefused, ForceRequest, ForceResult, Loss};
use grants::{Grants, NodeSeen};

/// What a witness keeps of one volume, durably.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WitnessRecord {
    /// No ballot below this one is answered.
    pub promised: Ballot,
    /// The value accepted last, with its ballot.
    pub accepted: Option<(Ballot, Box<Register>)>,
    /// No lease is granted for this epoch or an older one.
    pub fenced: Epoch,
}

/// What a witness keeps of the witnesses themselves, durably.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetState {
    /// The newest decided set that it knows. Empty in one that waits to be invited.
    pub set: WitnessSet,
    /// The store in which it votes; a set names it.
    pub store: u64,
    /// In the decree on the set that follows: no ballot below this one is answered.
    pub promised: Ballot,
    /// In that decree: the value accepted last.
    pub accepted: Option<(Ballot, Box<WitnessSet>)>,
    /// The longest lease that was ever configured, as far as it knows.
    pub lease_longest: Duration,
}

/// What the store said at the start.
#[derive(Debug, Clone)]
pub struct WitnessStart {
    /// This node.
    pub node: NodeId,
    /// This process.
    pub instance: Instance,
    /// Who votes, and from which store this one does.
    pub state: SetState,
    /// Whether `state` comes from the store. What a witness begins with is stored before it answers anything.
    pub stored: bool,
    /// What was kept.
    pub records: BTreeMap<VolumeId, WitnessRecord>,
    /// For ids and jitter.
    pub seed: u64,
}

/// What happens to a witness.
#[derive(Debug, Clone)]
pub enum WitnessInput {
    /// Something arrived.
    Message {
        /// From this node.
        from: NodeId,
        /// The message.
        message: Message,
    },
    /// Every write up to this one survived a completed sync.
    Persisted(OpId),
    /// An operator wants a copy to go on whatever is lost by it. Answered by `WitnessOutput::Forced`.
    Force(ForceRequest),
    /// An operator wants other witnesses. Answered by `WitnessOutput::Changed`.
    Change(ChangeRequest),
    /// How the command of `WitnessOutput::ExternalFence` ended.
    ExternallyFenced {
        /// As asked.
        id: u64,
        /// What it wrote, and whether it succeeded.
        result: ExternalFenceResult,
    },
    /// Time passed.
    Tick,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum WitnessOutput {
    /// Store the record, replacing the one before; answer with `Persisted`. In order.
    Persist {
        /// Its name.
        op: OpId,
        /// Which volume.
        volume: VolumeId,
        /// What to keep.
        record: WitnessRecord,
    },
    /// Store what is known of the witnesses, replacing what was; answer with `Persisted`. In order with the records.
    PersistSet {
        /// Its name.
        op: OpId,
        /// What to keep.
        state: Box<SetState>,
        /// Forget every volume's record first: this is the store of another voter from now on.
        wipe: bool,
    },
    /// Send to a node; safe right now.
    Send {
        /// The node.
        to: NodeId,
        /// The message.
        message: Message,
    },
    /// The witnesses are these now.
    Set(Arc<WitnessSet>),
    /// How a change of the witnesses ended: the set that came of it, or why there was none.
    Changed {
        /// As asked.
        id: u64,
        /// How.
        result: Result<Arc<WitnessSet>, ChangeRefused>,
    },
    /// Run the configured command, once; answer with `ExternallyFenced`, whatever becomes of it.
    ExternalFence(ExternalFence),
    /// Something that an operator wants to know.
    Event(WitnessEvent),
    /// How a forced promotion ended.
    Forced {
        /// As asked.
        id: u64,
        /// The promotion's record, or why there was none.
        result: ForceResult,
    },
}

/// For the cluster's event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WitnessEvent {
    /// This witness began to replace a primary.
    PromotionStarted {
        /// The volume.
        volume: VolumeId,
        /// The epoch to be ended.
        epoch: Epoch,
        /// Why.
        reason: SuspectReason,
    },
    /// Too few members answered to see every committed entry.
    PromotionWaits {
        /// The volume.
        volume: VolumeId,
        /// The epoch tried.
        epoch: Epoch,
        /// Answers that count.
        answers: usize,
        /// Answers needed.
        needed: usize,
        /// Registered members that could still complete it.
        missing: Vec<NodeId>,
    },
    /// The volume's primaries are lost again and again: the next one is replaced on suspicion no sooner than this.
    HeldDown {
        /// The volume.
        volume: VolumeId,
        /// The epoch whose primary is suspected.
        epoch: Epoch,
        /// Promotions on suspicion within the window.
        promotions: usize,
        /// When the wait ends.
        until: MonoTime,
    },
    /// The external fence failed: nobody is promoted.
    ExternalFenceFailed {
        /// The volume.
        volume: VolumeId,
        /// The epoch to be ended.
        epoch: Epoch,
        /// The machine.
        node: NodeId,
        /// What the command wrote, or why it did not run to its end.
        output: String,
        /// When this witness tries again; `None` if an operator must ask for it.
        again: Option<MonoTime>,
    },
    /// A node was configured with other witnesses than this one: it is not answered.
    OtherWitnesses {
        /// That node.
        node: NodeId,
    },
    /// The register names a new primary.
    Promoted(Box<Certificate>),
}

/// One witness.
#[derive(Debug)]
pub struct Witness {
    config: LeaseConfig,
    me: NodeId,
    instance: Instance,
    set: Arc<WitnessSet>,
    state: SetState,
    /// When this witness took the set up.
    set_since: MonoTime,
    change: Option<Change>,
    /// Nodes that were found to go by another first set.
    told_other: BTreeSet<NodeId>,
    records: BTreeMap<VolumeId, WitnessRecord>,
    grants: BTreeMap<VolumeId, Grants>,
    nodes: BTreeMap<NodeId, NodeSeen>,
    /// Processes that their supervisors saw end.
    dead: BTreeSet<Instance>,
    /// Planted mistake only: nodes whose release was taken by name.
    dead_nodes: BTreeSet<NodeId>,
    /// Before this time nothing is fenced.
    quiet_until: MonoTime,
    coordinators: BTreeMap<VolumeId, Coordinator>,
    external: ExternalFences,
    next_op: OpId,
    /// Everything up to here is durable.
    stored: OpId,
    /// The write that made the set and the longest lease durable: nothing is granted before, and no vote given.
    grants_after: OpId,
    /// Messages that wait for a write.
    after: VecDeque<(OpId, NodeId, Message)>,
    /// Messages of this witness to itself.
    loopback: VecDeque<Message>,
    rng: Rng,
    wake: MonoTime,
    out: VecDeque<WitnessOutput>,
}

impl Witness {
    /// A witness as its store remembers it.
    #[must_use]
    pub fn new(now: MonoTime, config: LeaseConfig, start: WitnessStart) -> Self {
        let mut state = start.state;
        let configured = config.lease_longest.max(config.lease);
        let raised = configured > state.lease_longest;
        state.lease_longest = state.lease_longest.max(configured);
        let quiet = state.lease_longest;
        let mut witness = Self {
            quiet_until: now + quiet,
            config,
            me: start.node,
            instance: start.instance,
            set: Arc::new(state.set.clone()),
            state,
            set_since: now,
            change: None,
            told_other: BTreeSet::new(),
            records: start.records,
            grants: BTreeMap::new(),
            nodes: BTreeMap::new(),
            dead: BTreeSet::new(),
            dead_nodes: BTreeSet::new(),
            coordinators: BTreeMap::new(),
            external: ExternalFences::default(),
            next_op: OpId(1),
            stored: OpId(0),
            grants_after: OpId(0),
            after: VecDeque::new(),
            loopback: VecDeque::new(),
            rng: Rng::new(start.seed),
            wake: now,
            out: VecDeque::new(),
        };
        for volume in witness.records.keys().copied().collect::<Vec<_>>() {
            witness.note_register(now, volume);
        }
        // One that waits has a store name of its own from the start: it must not be taken for one of the first voters, whose
        // stores have none.
        let unnamed = witness.set.tag.version == 0 && witness.state.store == 0;
        if unnamed {
            witness.state.store = witness.rng.id().max(1);
        }
        if raised || unnamed || !start.stored {
            witness.grants_after = witness.persist_set(false);
        }
        witness.close(now);
        witness
    }

    /// Takes one event.
    pub fn handle(&mut self, now: MonoTime, input: WitnessInput) {
        match input {
            WitnessInput::Message { from, message } => self.handle_message(now, from, message),
            WitnessInput::Persisted(op) => self.handle_persisted(op),
            WitnessInput::Force(request) => self.handle_force(now, request),
            WitnessInput::Change(request) => self.handle_change(now, request),
            WitnessInput::ExternallyFenced { id, result } => {
                self.handle_externally_fenced(now, id, result);
            }
            WitnessInput::Tick => {}
        }
        self.close(now);
    }

    /// The next thing to do. Drain after every `handle`.
    pub fn poll_output(&mut self) -> Option<WitnessOutput> {
        self.out.pop_front()
    }

    /// When to call `handle` with `Tick`, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> MonoTime {
        self.wake
    }

    /// What this witness accepted last for a volume. Not necessarily decided.
    #[must_use]
    pub fn accepted(&self, volume: VolumeId) -> Option<&Register> {
        self.records
            .get(&volume)?
            .accepted
            .as_ref()
            .map(|(_, register)| &**register)
    }

    /// Who votes, as far as this witness knows.
    #[must_use]
    pub fn witnesses(&self) -> &Arc<WitnessSet> {
        &self.set
    }

    /// What is kept of each volume.
    #[must_use]
    pub fn records(&self) -> &BTreeMap<VolumeId, WitnessRecord> {
        &self.records
    }

    fn handle_message(&mut self, now: MonoTime, from: NodeId, message: Message) {
        match message {
            Message::Register { volume, body } => match body {
                RegisterMessage::Prepare { .. } | RegisterMessage::Accept { .. } => {
                    self.handle_proposal(now, from, volume, body);
                }
                answer => {
                    self.handle_copy_answer(now, from, volume, &answer);
                    self.handle_round_answer(now, from, volume, answer);
                }
            },
            Message::Witness(body) => self.handle_witness_message(now, from, body),
            Message::Member(envelope) => self.handle_member_answer(now, *envelope),
        }
    }

    fn handle_witness_message(&mut self, now: MonoTime, from: NodeId, body: WitnessMessage) {
        match body {
            WitnessMessage::Beat(beat) => self.handle_beat(now, from, beat),
            WitnessMessage::Release {
                volume,
                epoch,
                instance,
                prefer,
            } => {
                self.handle_release(now, volume, epoch, instance, prefer);
            }
            WitnessMessage::ReleaseInstance { node, instance } => {
                self.handle_release_instance(node, instance)
            }
            WitnessMessage::Suspect {
                volume,
                epoch,
                reason,
            } => {
                self.handle_suspect(now, from, volume, epoch, reason);
            }
            WitnessMessage::Suspected {
                volume,
                epoch,
                agree,
            } => {
                self.handle_suspected(from, volume, epoch, agree);
            }
            WitnessMessage::Fence { volume, epoch, set } => {
                self.handle_fence(from, volume, epoch, set);
            }
            WitnessMessage::Fenced { volume, epoch } => self.handle_fenced(from, volume, epoch),
            WitnessMessage::Set(set) => self.handle_set(now, from, set),
            WitnessMessage::SetStep(step) => self.handle_set_step(now, from, step),
            WitnessMessage::Granted(_) => {}
        }
    }

    fn handle_member_answer(&mut self, now: MonoTime, envelope: MemberEnvelope) {
        match envelope.body {
            MemberMessage::Sealed(answer) => {
                self.handle_sealed(envelope.volume, envelope.from, answer)
            }
            MemberMessage::SealRefused { asked, sealed } => {
                self.handle_seal_refused(now, envelope.volume, asked, sealed);
            }
            _ => {}
        }
    }

    fn close(&mut self, now: MonoTime) {
        self.wake = MonoTime::MAX;
        loop {
            self.close_grants(now);
            self.close_external(now);
            self.close_coordinators(now);
            self.close_change(now);
            let Some(message) = self.loopback.pop_front() else {
                break;
            };
            let me = self.me;
            self.handle_message(now, me, message);
        }
    }

    fn send(&mut self, to: NodeId, message: Message) {
        if to == self.me {
            self.loopback.push_back(message);
        } else {
            self.out.push_back(WitnessOutput::Send { to, message });
        }
    }

    fn send_member(
        &mut self,
        to: NodeId,
        register: &Register,
        volume: VolumeId,
        body: MemberMessage,
    ) {
        let from = PrimaryId {
            node: self.me,
            incarnation: mainstay_types::Incarnation(0),
            instance: self.instance,
        };
        let envelope = MemberEnvelope {
            volume,
            lineage: register.lineage,
            from,
            body,
        };
        self.out.push_back(WitnessOutput::Send {
            to,
            message: Message::Member(Box::new(envelope)),
        });
    }

    /// Stores the record as it is now; `message` goes out once that is durable.
    fn persist_then(&mut self, volume: VolumeId, to: NodeId, message: Message) {
        self.persist(volume);
        self.after_persisted(to, message);
    }

    fn persist(&mut self, volume: VolumeId) {
        let op = self.take_op();
        let record = self.records.get(&volume).cloned().unwrap_or_default();
        self.out
            .push_back(WitnessOutput::Persist { op, volume, record });
    }

    fn persist_set(&mut self, wipe: bool) -> OpId {
        let op = self.take_op();
        let state = Box::new(self.state.clone());
        self.out
            .push_back(WitnessOutput::PersistSet { op, state, wipe });
        op
    }

    fn take_op(&mut self) -> OpId {
        let op = self.next_op;
        self.next_op = OpId(op.0 + 1);
        op
    }

    /// Sends once everything handed to the store so far is durable.
    fn after_persisted(&mut self, to: NodeId, message: Message) {
        let last = OpId(self.next_op.0 - 1);
        if last <= self.stored {
            self.send(to, message);
        } else {
            self.after.push_back((last, to, message));
        }
    }

    fn handle_persisted(&mut self, op: OpId) {
        self.stored = self.stored.max(op);
        while self
            .after
            .front()
            .is_some_and(|(needed, _, _)| *needed <= op)
        {
            let (_, to, message) = self.after.pop_front().expect("front was just seen");
            self.send(to, message);
        }
    }

    fn wake_at(&mut self, at: MonoTime) {
        self.wake = self.wake.min(at);
    }
}
