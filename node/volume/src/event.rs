//! What a volume is told and what it asks for.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mainstay_replication::message::{MemberEnvelope, RegisterMessage};
use mainstay_replication::{AppendPlan, OpId, Role, WitnessSet};
use mainstay_storage::{LogEnd, format::EntryRef};
use mainstay_types::{Epoch, Lsn, MonoTime, NodeId, Register, SessionId};

use crate::batch::Voids;
use crate::pages::{Direction, PageLimits, Stretch};
use crate::retention::Retention;
use crate::tree::TreeQuestion;

/// Names one client connection of this process.
pub type ConnId = u64;

/// Names one operation of one connection.
pub type Token = u64;

/// The time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For every decision.
    pub mono: MonoTime,
    /// Nanoseconds since 1970, for the timestamps of records only.
    pub wall_ns: u64,
}

/// What happens to a volume.
#[derive(Debug)]
pub enum Event {
    /// From another member or a witness; `batch` holds the entries of an append.
    Peer {
        /// The message.
        envelope: MemberEnvelope,
        /// Whole entries, in order; empty for every other message.
        batch: Bytes,
    },
    /// A witness's answer in a register round.
    Register {
        /// The witness.
        from: NodeId,
        /// Its answer.
        body: RegisterMessage,
    },
    /// Every write of the log up to this one is durable.
    Stored {
        /// The last one.
        op: OpId,
    },
    /// A write or sync failed: final for this copy in this process.
    StorageFailed {
        /// What the disk said.
        reason: String,
    },
    /// The disk, or the thread that waits for it, stood still for longer than is in bounds.
    Stalled,
    /// A client asks for something.
    Client {
        /// Its connection.
        conn: ConnId,
        /// Names the answer.
        token: Token,
        /// What it asks for.
        op: ClientOp,
    },
    /// A client's connection is gone; nothing is answered on it any more.
    ConnClosed {
        /// The connection.
        conn: ConnId,
    },
    /// The lease as the node's beats see it.
    Lease {
        /// The epoch granted.
        epoch: Epoch,
        /// When it ends.
        until: MonoTime,
        /// Data nodes that a majority of the witnesses do not hear.
        silent: Vec<NodeId>,
    },
    /// The witnesses are these now.
    Witnesses(Arc<WitnessSet>),
    /// Hand the primary role over.
    Handover {
        /// To whom; to the most advanced member if nobody is named.
        to: Option<NodeId>,
    },
    /// Answer to [`Action::AwaitReady`].
    Ready {
        /// The epoch.
        epoch: Epoch,
    },
    /// Answer to [`Action::Feed`].
    Fed {
        /// The plan.
        plan: AppendPlan,
        /// Entries from `plan.first` on, whole, with the last one's LSN; `None` if they could not be read.
        entries: Option<(Lsn, Vec<Bytes>)>,
    },
    /// A checkpoint is durable.
    Checkpointed {
        /// What it includes.
        at: LogEnd,
    },
    /// A checkpoint did not happen; may be tried again later.
    CheckpointFailed {
        /// What it failed for was repaired since: it may be tried again at once.
        mended: bool,
    },
    /// Blocks of the state that did not read back were taken from another copy, in memory, or are to be once a checkpoint has made room for
    /// them there: the next one, which is due now, puts what memory holds back into the files.
    Repaired,
    /// The log was recycled: it begins at `first` now.
    Recycled {
        /// First entry held.
        first: Lsn,
    },
    /// A full copy was sent to a learner: feed it from behind `base`.
    CopySent {
        /// Where it is.
        node: NodeId,
        /// Last entry that the copy includes for certain.
        base: Lsn,
    },
    /// A full copy for a learner broke off: no log is kept for it.
    CopyBroke {
        /// Where it was to go.
        node: NodeId,
    },
    /// The image that was being replaced is consistent, durably.
    Rebuilt,
    /// A connection to a node stands.
    LinkUp {
        /// The other end.
        node: NodeId,
    },
    /// A connection to a node broke.
    LinkLost {
        /// The other end.
        node: NodeId,
    },
    /// Time passed.
    Tick,
}

/// Who a block volume is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Of the host or the application: equal names share the volume. At most [`crate::ATTACHMENT_NAME_BYTES_MAX`] long.
    pub name: String,
    /// Whether to fence whoever is attached.
    pub takeover: bool,
}

/// What a client asks for.
#[derive(Debug)]
pub enum ClientOp {
    /// Begin or resume a session on this connection. Answered once the new generation is committed.
    Open {
        /// Chosen by the client at random. Never zero, which stands for no session.
        session: SessionId,
        /// Greater than that of any connection of the session before; zero for one above it.
        generation: u32,
        /// Make the session if it is not known. Without it, an unknown session is refused.
        create: bool,
        /// The client has an answer to every number up to this one. Counts for a session that is not known (any more).
        answered: u64,
        /// Exclusive use of a block volume; refused for a log.
        attachment: Option<Attachment>,
        /// Of the writer of a log: every older one, and every writer without one, appends nothing behind this. Zero for none.
        token: u64,
    },
    /// End the session of this connection.
    Close,
    /// Append one entry: a record, a write, a trim or zeroes.
    Mutate {
        /// Number among the session's mutations, rising on every connection, below `u64::MAX`. One that was refused is never used
        /// again.
        seq: u64,
        /// Refuse unless the entry would get this LSN.
        expected: Option<Lsn>,
        /// The entry but for its place in the log.
        entry: BytesMut,
        /// Further records: all of them take effect with `entry`, at the LSNs behind it, or none does. All share `seq`.
        more: Vec<BytesMut>,
    },
    /// Read bytes of a block volume.
    ReadBlock {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Tell what a block volume stores in a range.
    ReadExtents {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
        /// At most so many extents.
        extents_max: usize,
        /// Also tell what entries behind this one changed.
        since: Option<Lsn>,
    },
    /// Read records of a log volume.
    ReadLog {
        /// First LSN wanted; backwards, the one above it.
        from: Lsn,
        /// Towards the end of the log, or away from it.
        direction: Direction,
        /// How much.
        limits: PageLimits,
        /// Whether any committed prefix will do, or only one that includes everything committed before the request.
        stale_ok: bool,
    },
    /// Find the first record of a log volume that is not older than a time.
    Find {
        /// Nanoseconds since 1970.
        at_ns: u64,
        /// As of a read.
        stale_ok: bool,
    },
    /// Ask a log volume for a root of its Merkle tree, and a proof.
    ReadTree {
        /// What.
        question: TreeQuestion,
        /// As of a read.
        stale_ok: bool,
    },
    /// Settle an operation whose answer was lost.
    Outcome {
        /// Its sequence number in this connection's session.
        seq: u64,
    },
    /// Where the log begins and ends.
    Position,
}

/// How an operation of unknown outcome ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Committed.
    Committed {
        /// Where; the first one of a batch.
        lsn: Lsn,
        /// Entries from there on: more than one for a batch.
        count: u32,
        /// As in [`OpResult::Committed`].
        arg: u64,
    },
    /// Not committed, and it never will be under an older generation of this session.
    Never,
    /// Taken in and not yet committed.
    Pending,
    /// Settled so long ago that the result is no longer kept: it was committed, or refused.
    Forgotten,
}

/// The answer to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// The session stands.
    Opened {
        /// The epoch of this primary.
        epoch: Epoch,
        /// The generation of this connection.
        generation: u32,
        /// First sequence number that is not committed.
        next_seq: u64,
        /// The commit point.
        commit: Lsn,
    },
    /// Done.
    Closed,
    /// Committed.
    Committed {
        /// Where; the first one of a batch.
        lsn: Lsn,
        /// Entries from there on: more than one for a batch.
        count: u32,
        /// The record's timestamp in nanoseconds since 1970; the offset for a block entry.
        arg: u64,
    },
    /// See [`Outcome`].
    Outcome(Outcome),
    /// The log's bounds.
    Position {
        /// First LSN held.
        first: Lsn,
        /// The last entry that is committed and, if it is of a batch, committed with all of it.
        commit: Lsn,
        /// The epoch of this primary.
        epoch: Epoch,
        /// What a log keeps.
        retention: Retention,
    },
    /// The first record that is not older than the time asked for: its position and its timestamp. None, if all are older.
    Found(Option<(Lsn, u64)>),
    /// Refused; nothing was changed.
    Refused(Refusal),
    /// This node stopped being primary while the operation was under way: the outcome is unknown here. Open a new
    /// connection at the new primary and send it again under the same sequence number.
    Interrupted,
}

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Ask the primary.
    #[error("not the primary")]
    NotPrimary {
        /// Who is, as this node knows it.
        primary: Option<NodeId>,
        /// In which epoch.
        epoch: Epoch,
    },
    /// It makes no sense, whatever the state is. Says why.
    #[error("{0}")]
    BadRequest(&'static str),
    /// A later connection of the session has taken over.
    #[error("generation {asked} of the session was superseded by {present}")]
    Superseded {
        /// Of this connection.
        asked: u32,
        /// Of the later one.
        present: u32,
    },
    /// Another host or application holds the volume.
    #[error("the volume is attached by `{by}`; detach it there, or take it over")]
    Attached {
        /// Who.
        by: String,
    },
    /// The attachment that the session wrote under is over: somebody took the volume over, or it was let go.
    #[error("the attachment of this session has ended; attach with a new session")]
    AttachmentEnded,
    /// This number was refused before, and is never used again.
    #[error("sequence number {seq} was refused before")]
    RefusedBefore {
        /// The number.
        seq: u64,
    },
    /// A block volume is written only by those who attached it.
    #[error("the volume is not attached on this connection; open it with an attachment")]
    NotAttached,
    /// A writer with a newer token writes the log.
    #[error(
        "a writer with token {current} has taken the log over: those with an older token or none append nothing more"
    )]
    FencedToken {
        /// The newest one.
        current: u64,
    },
    /// The conditional append came too late.
    #[error("the next entry is {next}, not {expected}")]
    UnexpectedLsn {
        /// Asked for.
        expected: Lsn,
        /// What the entry would have got.
        next: Lsn,
    },
    /// Outside the volume.
    #[error("range {offset}+{len} is outside a volume of {size_bytes} bytes")]
    OutOfRange {
        /// Asked for.
        offset: u64,
        /// Asked for.
        len: u64,
        /// The volume's.
        size_bytes: u64,
    },
    /// More than one entry may hold.
    #[error("{bytes} bytes are more than the limit of {limit}")]
    TooLarge {
        /// Asked for.
        bytes: u64,
        /// Allowed.
        limit: u64,
    },
    /// More records than one batch may hold.
    #[error("a batch of {records} records: at most {limit}")]
    TooManyRecords {
        /// Asked for.
        records: usize,
        /// Allowed.
        limit: usize,
    },
    /// Nothing that is not committed can be trimmed.
    #[error("cannot trim below {first}: the next entry is {next}")]
    TrimBeyondEnd {
        /// Asked for.
        first: Lsn,
        /// One above the last entry that could be trimmed.
        next: Lsn,
    },
    /// A block operation on a log, or the reverse.
    #[error("the volume is of another kind")]
    WrongKind,
    /// The connection has no session.
    #[error("no session is open on this connection")]
    NoSession,
    /// The session is not known any more, so nobody can tell what it did.
    #[error("the session is unknown: it expired, or was never opened")]
    UnknownSession,
    /// Settled so long ago that the result is no longer kept. A refused number leaves none either, so nobody can tell it from a committed
    /// one.
    #[error(
        "sequence number {seq} was settled, committed or refused, but its result is no longer kept"
    )]
    ResultForgotten {
        /// The number.
        seq: u64,
    },
    /// More is waiting than is held in memory.
    #[error("too much is waiting to be written")]
    Overloaded,
    /// Below the first entry kept.
    #[error("the log begins at {first}")]
    Trimmed {
        /// First LSN held.
        first: Lsn,
    },
}

/// A write of the log, to be carried out in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalJob {
    /// Its name, for [`Event::Stored`].
    pub op: OpId,
    /// The write.
    pub write: WalWrite,
}

/// See [`WalJob`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalWrite {
    /// Append stamped entries.
    Append {
        /// Each holds one or more whole entries.
        entries: Vec<Bytes>,
        /// The commit point, for the record.
        commit: Lsn,
    },
    /// Cut everything above.
    Cut {
        /// Last entry kept.
        after: Lsn,
    },
    /// Store the seal.
    Seal {
        /// Epochs below it are refused.
        epoch: Epoch,
    },
}

/// What the driver must do.
#[derive(Debug)]
pub enum Action {
    /// Carry out a write of the log; answer with `Stored`. Consecutive appends may become one write.
    Wal(WalJob),
    /// Send to a node; safe right now.
    Send {
        /// The node.
        to: NodeId,
        /// The message.
        envelope: MemberEnvelope,
        /// Entries, for an append.
        batch: Bytes,
    },
    /// Send to a witness; safe right now.
    SendRegister {
        /// The witness.
        to: NodeId,
        /// The message.
        body: RegisterMessage,
    },
    /// A committed entry, in order: apply it to the image, or take it into the log's Merkle tree.
    Apply(EntryRef),
    /// Answer a client.
    Reply {
        /// Its connection.
        conn: ConnId,
        /// As given.
        token: Token,
        /// The answer.
        result: OpResult,
    },
    /// Read the image as it is now and answer the client.
    ReadBlock {
        /// Its connection.
        conn: ConnId,
        /// As given.
        token: Token,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Look up what the image stores now and answer the client.
    ReadExtents {
        /// Its connection.
        conn: ConnId,
        /// As given.
        token: Token,
        /// First byte.
        offset: u64,
        /// Bytes, not zero. What is answered may end before them.
        len: u64,
        /// At most so many extents.
        extents_max: usize,
        /// Also tell what entries behind this one changed.
        since: Option<Lsn>,
    },
    /// Answer the client with records: those in `cached`, or, if that is `None`, read from the log.
    ReadLog {
        /// Its connection.
        conn: ConnId,
        /// As given.
        token: Token,
        /// What is wanted.
        stretch: Stretch,
        /// Entries from memory.
        cached: Option<Vec<EntryRef>>,
    },
    /// Search the log for the first record in `first..=last` that is not older than `at_ns`, and answer the client with it, or else
    /// with `behind`.
    Find {
        /// Its connection.
        conn: ConnId,
        /// As given.
        token: Token,
        /// Nanoseconds since 1970.
        at_ns: u64,
        /// First LSN to look at.
        first: Lsn,
        /// Last LSN to look at.
        last: Lsn,
        /// What may not be shown.
        voids: Voids,
        /// What was found behind `last`.
        behind: Option<(Lsn, u64)>,
    },
    /// Ask the log's Merkle tree and answer the client.
    ReadTree {
        /// Its connection.
        conn: ConnId,
        /// As given.
        token: Token,
        /// What is asked.
        question: TreeQuestion,
        /// The last position that may be spoken of.
        through: Lsn,
    },
    /// Read entries from the log for a copy that is behind; answer with `Fed`.
    Feed {
        /// What is wanted.
        plan: AppendPlan,
        /// At most this many bytes, but at least one entry.
        bytes_max: usize,
    },
    /// Write a checkpoint: the image as applied now, with this session table; answer with `Checkpointed`.
    Checkpoint {
        /// The session table.
        blob: Bytes,
        /// What is applied now.
        at: LogEnd,
    },
    /// Recycle the log below this entry; answer with `Recycled`.
    Recycle {
        /// First entry to keep.
        below: Lsn,
    },
    /// Send a full copy to a learner, then `CopySent`.
    NeedsCopy {
        /// Where it is.
        node: NodeId,
    },
    /// The new epoch's first entry is committed; nothing is served before [`Event::Ready`]. Only with
    /// `MemberConfig::await_ready`.
    AwaitReady {
        /// The epoch.
        epoch: Epoch,
    },
    /// The role changed.
    Role(Role),
    /// This instance stopped serving `epoch` for good: tell the witnesses.
    Release {
        /// The epoch.
        epoch: Epoch,
        /// Who should come next.
        prefer: Option<NodeId>,
    },
    /// A register value is decided.
    Decided(Box<Register>),
    /// A peer sent what no correct peer sends; it was ignored.
    PeerMisbehaved {
        /// Which.
        node: NodeId,
        /// What is wrong.
        reason: String,
    },
    /// Something that the protocol rules out happened. This copy stops.
    Violation(String),
}
