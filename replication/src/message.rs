//! What nodes say to each other about configuration and order. Positions only: the driver carries payload bytes beside.
//!
//! Three families, by who speaks: members of one volume, proposers and acceptors of one register, and nodes with
//! witnesses. `docs/wire-protocol.md` has a section for each message.

use std::sync::Arc;

use mainstay_types::{
    Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, NodeId, PrimaryId, Register, RegisterId,
    VolumeId, Zone,
};

use crate::witness_set::{SetTag, WitnessSet};

/// Anything that crosses the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Between members of one volume, or between a witness and a member.
    Member(Box<MemberEnvelope>),
    /// One step of a register round, to or from a witness.
    Register {
        /// Whose register.
        volume: VolumeId,
        /// The step.
        body: RegisterMessage,
    },
    /// Leases, fences and releases, to or from a witness.
    Witness(WitnessMessage),
}

/// A member message with the names under which it holds. A mismatch of any is refused by the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEnvelope {
    /// The volume.
    pub volume: VolumeId,
    /// Its history.
    pub lineage: Lineage,
    /// The process that speaks and the copy it speaks for. A witness has incarnation zero.
    pub from: PrimaryId,
    /// What it says.
    pub body: MemberMessage,
}

/// Between members, and between witnesses and members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberMessage {
    /// Primary to member or learner: entries `first..=last` (none if `last < first`), or a heartbeat.
    Append(Append),
    /// Member to primary: every entry up to `lsn` is durable here and equal to the primary's.
    Ack(Ack),
    /// Member to primary: I do not hold `prev`; try again from at most `hint`.
    Mismatch {
        /// Epoch of the append that was refused.
        epoch: Epoch,
        /// Instance of the primary that sent it.
        instance: Instance,
        /// The last entry here at or below `prev`.
        hint: LogPoint,
    },
    /// Member to primary: refused, for a reason that another try does not change.
    Refused {
        /// Epoch of what was refused.
        epoch: Epoch,
        /// Greatest epoch sealed here.
        sealed: Epoch,
        /// Why.
        reason: RefuseReason,
    },
    /// Primary to member: are you still sealed at no more than `epoch`?
    Confirm {
        /// The primary's epoch.
        epoch: Epoch,
        /// Names the round; rises.
        round: u64,
    },
    /// Member to primary: yes.
    Confirmed {
        /// The primary's epoch.
        epoch: Epoch,
        /// The primary's instance, as the asker named itself.
        instance: Instance,
        /// The round that was asked.
        round: u64,
    },
    /// Witness to member: refuse every epoch below `epoch` from now on.
    Seal {
        /// The new epoch.
        epoch: Epoch,
    },
    /// Member to witness: done, durably.
    Sealed(SealAnswer),
    /// Member to witness: sealed higher already.
    SealRefused {
        /// What was asked.
        asked: Epoch,
        /// Where it stands.
        sealed: Epoch,
    },
    /// Witness or primary to data node: this register value is decided.
    Decided(Box<Register>),
    /// Data node to primary: no copy of this volume here. Answered by `Decided`, on which the node formats one.
    NoCopy,
}

/// Entries `first..=last`, described; their bytes travel beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The primary's epoch.
    pub epoch: Epoch,
    /// The entry before `first`.
    pub prev: LogPoint,
    /// First entry carried.
    pub first: Lsn,
    /// Last entry carried, inclusive; below `first` if none is.
    pub last: Lsn,
    /// Epochs of the entries carried: (epoch, its first LSN here), rising, the first at `first`. Empty if none is.
    pub runs: Vec<(Epoch, Lsn)>,
    /// The primary's commit point.
    pub commit: Lsn,
    /// Last entry of the primary's log when this was sent.
    pub primary_last: Lsn,
    /// Register version that the primary acts on.
    pub register_version: u64,
    /// The first entry that a registered member may lack, as the primary knows: no copy may give up anything from there on (H5).
    pub lacked_from: Lsn,
}

/// A member's durable position, for one epoch and one primary instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Epoch followed.
    pub epoch: Epoch,
    /// Instance followed.
    pub instance: Instance,
    /// Durable and matched up to here.
    pub lsn: Lsn,
    /// The block image is being replaced: this copy counts for nothing yet.
    pub rebuilding: bool,
}

/// Why a member refuses, whatever it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefuseReason {
    /// Sealed at a later epoch.
    Sealed,
    /// The log here is damaged.
    Damaged,
    /// A write or sync failed here.
    Failed,
}

/// A member's answer to a seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealAnswer {
    /// The epoch sealed at.
    pub epoch: Epoch,
    /// End of the durable, intact log.
    pub last: LogPoint,
    /// First entry still held.
    pub first: Lsn,
    /// The log is damaged: it lacks entries that it once held.
    pub damaged: bool,
    /// The image is being replaced.
    pub rebuilding: bool,
    /// Entries from here on were found unreadable at the very end: never acknowledged, or rotten. Nothing here can tell.
    pub doubt: Option<Doubt>,
    /// Data nodes that this one can reach.
    pub reachable: Vec<NodeId>,
}

/// The unreadable last batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// First entry in doubt.
    pub from: Lsn,
    /// Last one, if the frame header could be read.
    pub to: Option<Lsn>,
}

/// A Paxos ballot: rises, and is used by one proposer once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ballot {
    /// Compared first.
    pub counter: u64,
    /// Random id of the proposing process.
    pub proposer: Instance,
}

/// CASPaxos (Rystsov, 2018) for one register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterMessage<V = Register> {
    /// Promise to take no ballot below this one.
    Prepare {
        /// The ballot.
        ballot: Ballot,
        /// Whom the asker asks.
        set: SetTag,
    },
    /// Promised, durably; here is what was accepted last.
    Promised {
        /// The ballot promised.
        ballot: Ballot,
        /// What this witness accepted before, if anything.
        accepted: Option<(Ballot, Box<V>)>,
    },
    /// Accept this value.
    Accept {
        /// The ballot.
        ballot: Ballot,
        /// Whom the asker asks.
        set: SetTag,
        /// The value.
        value: Box<V>,
    },
    /// Accepted, durably.
    Accepted {
        /// The ballot accepted.
        ballot: Ballot,
    },
    /// A higher ballot was promised.
    Rejected {
        /// The ballot refused.
        ballot: Ballot,
        /// The one promised.
        promised: Ballot,
    },
}

/// Between nodes and witnesses, and among witnesses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WitnessMessage {
    /// Data node to witness: alive, and claiming leases.
    Beat(Beat),
    /// Witness to data node: granted, but for the exceptions.
    Granted(Granted),
    /// The instance itself, having stopped serving: end its grants for this epoch.
    Release {
        /// The volume.
        volume: VolumeId,
        /// The epoch given up.
        epoch: Epoch,
        /// The instance that gives it up.
        instance: Instance,
        /// Who should come next, if an operator or a stopping node named somebody.
        prefer: Option<NodeId>,
    },
    /// The supervisor, after `wait` returned for that very process: all its grants end, and it gets no new one.
    ReleaseInstance {
        /// Where it ran.
        node: NodeId,
        /// The process that is gone.
        instance: Instance,
    },
    /// Witness to witness, before anything is done: do you, too, see reason to replace the primary of this epoch?
    Suspect {
        /// The volume.
        volume: VolumeId,
        /// The epoch in question.
        epoch: Epoch,
        /// Why the asker does.
        reason: SuspectReason,
    },
    /// The answer.
    Suspected {
        /// The volume.
        volume: VolumeId,
        /// The epoch in question.
        epoch: Epoch,
        /// Whether the answering witness agrees.
        agree: bool,
    },
    /// Witness to witness: grant no lease for epochs up to `epoch` any more.
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The last epoch fenced.
        epoch: Epoch,
        /// Whom the asker asks.
        set: SetTag,
    },
    /// Witness to witness: fenced durably, and no grant of mine for the volume runs any more.
    Fenced {
        /// The volume.
        volume: VolumeId,
        /// The last epoch fenced.
        epoch: Epoch,
    },
    /// To anybody: these are the witnesses; decided.
    Set(Arc<WitnessSet>),
    /// Of the witness set, to anybody.
    SetStep(SetStep),
}

/// Steps towards another witness set: rule R8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetStep {
    /// Your set is newer than mine: tell me.
    Wanted,
    /// Witness to witness: do you vote under this set?
    Probe {
        /// Which.
        set: SetTag,
    },
    /// It does.
    Votes {
        /// Under which set.
        set: SetTag,
    },
    /// Witness to one that is none yet: be ready to become one.
    Invite {
        /// Names the request.
        nonce: u64,
    },
    /// It is, with a store that holds nothing.
    Invited {
        /// The store's name.
        store: u64,
        /// As asked.
        nonce: u64,
    },
    /// The decree on the set that follows.
    Round(RegisterMessage<WitnessSet>),
    /// Witness to witness: the joint set is in force here, durably; requests of older ones are refused from now on.
    Adopted {
        /// Which.
        set: SetTag,
        /// Every volume known here, with the last epoch fenced.
        volumes: Vec<(VolumeId, Epoch)>,
        /// The longest lease that this witness ever heard of.
        lease_longest_ms: u32,
    },
    /// Witness to those of the new set: take these fences over.
    Install {
        /// Under which set.
        set: SetTag,
        /// The last epoch fenced of each volume.
        volumes: Vec<(VolumeId, Epoch)>,
        /// The longest lease of the cluster.
        lease_longest_ms: u32,
    },
    /// Done, durably.
    Installed {
        /// Under which set.
        set: SetTag,
    },
}

/// Why a witness wants a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspectReason {
    /// The primary's lease ended here, was released, or was never taken.
    LeaseGone,
    /// The register's epoch is fenced here.
    Fenced,
    /// A member is sealed above the register's epoch.
    SealedAbove,
    /// An operator forced an attempt, which found out that enough copies answer.
    Operator,
}

/// One claim to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch in which the sender is its primary.
    pub epoch: Epoch,
}

/// How well the commit path of one volume works at one copy. Sent only when something is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHealth {
    /// The volume.
    pub volume: VolumeId,
    /// Milliseconds since the last completed sync while one was due.
    pub sync_age_ms: u32,
    /// Milliseconds that the oldest uncommitted entry has waited.
    pub uncommitted_age_ms: u32,
    /// Members that do not answer the sender, its primary among them if it is not heard.
    pub unreachable: Vec<NodeId>,
    /// Syncs in a row that must still be good before the copy has proved that it works again.
    pub syncs_due: u32,
}

/// A member whose seal nobody has taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    /// The volume.
    pub volume: VolumeId,
    /// Where the member is sealed.
    pub sealed: Epoch,
}

/// A data node's heartbeat: one stream to each witness, whatever the number of volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The process.
    pub instance: Instance,
    /// Rises with each beat to this witness.
    pub seq: u64,
    /// Number of the claim table this beat renews; rises with each change.
    pub table: u64,
    /// The table itself, until the witness has named its number in an answer.
    pub claims: Option<Vec<Claim>>,
    /// Copies whose disk or commit path is overdue or not proved again, or which do not hear their primary.
    pub unwell: Vec<ClaimHealth>,
    /// Volumes sealed here above what anybody acts in.
    pub orphans: Vec<Orphan>,
    /// Whom the sender beats to.
    pub set: SetTag,
    /// Where the node stands, if its configuration says so.
    pub zone: Option<Zone>,
}

/// A witness's answer to a beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The beat answered.
    pub seq: u64,
    /// The claim table granted; zero if the witness does not have it.
    pub table: u64,
    /// Volumes of that table that are not granted.
    pub exceptions: Vec<VolumeId>,
    /// Data nodes that this witness hears.
    pub hearing: Vec<NodeId>,
    /// How long these grants run at the witness: the holder counts no more, whatever its own configuration says.
    pub lease_ms: u32,
}

/// A register read or compare-and-set, as its caller sees it end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoundResult<V = Register> {
    /// This value is decided, and it is the one proposed (for a read: the one found).
    Decided(Box<V>),
    /// Another value is decided.
    Conflict(Box<V>),
    /// No value was ever decided, and none was proposed.
    Absent,
}

/// Names the value that a compare-and-set expects; zero expects none.
pub const ABSENT: RegisterId = RegisterId(0);

/// A copy by name, as acks and seal answers are attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyId {
    /// Where.
    pub node: NodeId,
    /// Which formatting.
    pub incarnation: Incarnation,
}
