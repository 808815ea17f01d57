//! What a member is told, and what it tells: its start, events in, and what is to be done.

use std::collections::BTreeSet;
use std::sync::Arc;

use mainstay_types::{
    Epoch, Lineage, LogPoint, Lsn, MonoTime, NodeId, PrimaryId, Register, VolumeId,
};

use crate::journal::OpId;
use crate::message::{Doubt, MemberEnvelope, MemberMessage, RegisterMessage};
use crate::runs::EpochRuns;
use crate::witness_set::WitnessSet;

/// What the disk said at the start.
#[derive(Debug, Clone)]
pub struct MemberStart {
    /// This process and this copy.
    pub me: PrimaryId,
    /// The volume.
    pub volume: VolumeId,
    /// Its history.
    pub lineage: Lineage,
    /// The witnesses.
    pub witnesses: Arc<WitnessSet>,
    /// The intact log.
    pub log: EpochRuns,
    /// Greatest epoch durably sealed.
    pub sealed: Epoch,
    /// A floor of the commit point: what the checkpoint applied, or the log recorded.
    pub commit: Lsn,
    /// The unreadable last batch, if there is one.
    pub doubt: Option<Doubt>,
    /// Entries that were once durable do not read back.
    pub damaged: bool,
    /// The image is being replaced.
    pub rebuilding: bool,
    /// For ids and jitter.
    pub seed: u64,
}

/// What happens to a member.
#[derive(Debug, Clone)]
pub enum Input {
    /// From another member, or a witness.
    Message(MemberEnvelope),
    /// A witness's answer in a register round.
    Register {
        /// The witness.
        from: NodeId,
        /// Its answer.
        body: RegisterMessage,
    },
    /// The witnesses are these now.
    Witnesses(Arc<WitnessSet>),
    /// Every write up to this one survived a completed sync.
    Persisted(OpId),
    /// A write or sync failed: final for this log in this process.
    StorageFailed,
    /// The disk, or the thread that waits for it, stood still for longer than is in bounds.
    Stalled,
    /// Append this many entries. Refused unless [`Member::accepts`](super::Member::accepts).
    Propose {
        /// How many.
        count: u64,
    },
    /// Serve a read that has arrived. Answered by `ReadReady` or `ReadRefused`.
    Read {
        /// Chosen by the caller.
        id: u64,
    },
    /// Nobody waits for these reads any more. They are not answered, unless their answer was given before.
    ReadsGone {
        /// As of `Read`.
        ids: BTreeSet<u64>,
    },
    /// The lease as the node's beats see it.
    Lease {
        /// The epoch that was granted.
        epoch: Epoch,
        /// When it ends.
        until: MonoTime,
        /// Data nodes that a majority of the witnesses do not hear.
        silent: Vec<NodeId>,
    },
    /// Give the primary role to another member: after everything taken in is committed.
    Handover {
        /// To whom; to the most advanced one if nobody is named.
        to: Option<NodeId>,
    },
    /// What `Output::AwaitReady` asked for is done. Ignored for another epoch.
    Ready {
        /// The epoch.
        epoch: Epoch,
    },
    /// The log's start moved up: entries up to here are gone from this disk.
    Recycled {
        /// Last entry that is gone.
        through: Lsn,
    },
    /// A full copy replaced image and log: the log is empty behind `base`.
    CopyInstalled {
        /// The entry that the log continues.
        base: LogPoint,
    },
    /// The replaced image is consistent.
    Rebuilt,
    /// A connection to `node` stands.
    LinkUp {
        /// The other end.
        node: NodeId,
    },
    /// The connection to `node` broke: what was in flight may be lost.
    LinkLost {
        /// The other end.
        node: NodeId,
    },
    /// Time passed.
    Tick,
}

/// A write to carry out, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogWrite {
    /// Entries `first..=last`: those just proposed, or those of the append being handled.
    Append {
        /// First.
        first: Lsn,
        /// Last, inclusive.
        last: Lsn,
    },
    /// Cut everything above `after`.
    Cut {
        /// Last entry kept.
        after: Lsn,
    },
    /// Store that epochs below this one are refused.
    Seal {
        /// The epoch.
        epoch: Epoch,
    },
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Carry out a write; answer with `Persisted` once it survives loss of power.
    Persist {
        /// Its name.
        op: OpId,
        /// The write.
        write: LogWrite,
    },
    /// Send to a node; safe right now.
    Send {
        /// The node.
        to: NodeId,
        /// The message.
        message: MemberMessage,
    },
    /// Send to a witness; safe right now.
    SendRegister {
        /// The witness.
        to: NodeId,
        /// The message.
        message: RegisterMessage,
    },
    /// Everything up to here is committed.
    Committed {
        /// The commit point.
        lsn: Lsn,
    },
    /// The read may be served from state that includes everything up to `at`.
    ReadReady {
        /// As given.
        id: u64,
        /// The commit point when it was allowed.
        at: Lsn,
    },
    /// Not the primary any more: the read was not served.
    ReadRefused {
        /// As given.
        id: u64,
    },
    /// The role changed.
    Role(Role),
    /// This epoch's first entry is committed, and nothing is served before `Input::Ready` answers.
    AwaitReady {
        /// The epoch.
        epoch: Epoch,
    },
    /// `node`'s copy ends before this log begins: it needs a full copy.
    NeedsCopy {
        /// Where it is.
        node: NodeId,
    },
    /// This instance stopped serving `epoch` for good: tell the witnesses.
    Release {
        /// The epoch given up.
        epoch: Epoch,
        /// Who should come next.
        prefer: Option<NodeId>,
    },
    /// A register value is decided.
    Decided(Box<Register>),
    /// Something that the protocol rules out has happened; this member stops.
    Violation(String),
}

/// What this copy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows nobody: no primary has spoken yet, or it sealed and waits.
    Idle,
    /// Follows a primary.
    Replica {
        /// Its epoch.
        epoch: Epoch,
        /// Its node.
        primary: NodeId,
    },
    /// Acts in an epoch, but its first entry is not committed yet, or its machine is not ready to serve.
    Starting {
        /// The epoch.
        epoch: Epoch,
    },
    /// Serves.
    Primary {
        /// The epoch.
        epoch: Epoch,
    },
    /// Primary that takes in nothing more, until it has handed over.
    Draining {
        /// The epoch.
        epoch: Epoch,
    },
    /// Stepped aside: its disk failed or its log is damaged.
    Failed,
}
