//! Plain descriptions of a cluster. All serialize; units stand at the end of a field's name.

use mainstay_types::{
    AckRule, ClusterId, Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, MemberKind, NodeId,
    SessionId, VolumeId, VolumeKind,
};
use serde::Serialize;

use super::promotions::Certificate;
use crate::Retention;

/// A volume to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreateVolume {
    /// 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`.
    pub name: String,
    /// Log, or block with its size.
    pub kind: VolumeKind,
    /// Copies wanted; zero lets the cluster choose. Ignored if `placement` names nodes.
    pub copies: u32,
    /// Nodes that shall hold a copy; the first one makes the volume and is its first primary.
    pub placement: Vec<NodeId>,
    /// Among copies that are equally good as primary, these first, in this order: at most 16 of the nodes that hold one.
    pub prefer: Vec<NodeId>,
    /// Block volumes: several hosts may attach at a time.
    pub shared: bool,
    /// How many durable copies commit; `None` is the default for that many copies.
    pub ack: Option<AckRule>,
    /// Full copies below which the membership never shrinks; zero is the default.
    pub min_copies: u32,
}

/// What creating a volume did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Created {
    /// The volume.
    pub volume: VolumeStatus,
    /// It was there before, the same.
    pub existed: bool,
}

/// Everything about a cluster, as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// Which.
    pub cluster: ClusterId,
    /// Who answered.
    pub answered_by: NodeId,
    /// When, by its clock.
    pub unix_ms: u64,
    /// Witnesses of which a majority decides.
    pub witnesses: u32,
    /// Of them, reachable.
    pub witnesses_reachable: u32,
    /// All nodes.
    pub nodes: Vec<NodeStatus>,
    /// All volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its number.
    pub node: NodeId,
    /// Where it is reached.
    pub address: String,
    /// It holds copies.
    pub data: bool,
    /// It votes.
    pub witness: bool,
    /// Its failure zone; empty if none is configured.
    pub zone: String,
    /// It answered just now; if not, the rest is what was known before.
    pub reachable: bool,
    /// Its process; zero if unknown.
    pub instance: Instance,
    /// Release of its software.
    pub release: String,
    /// Since its start.
    pub uptime_ms: u64,
    /// Since something was heard of it.
    pub silent_ms: u64,
    /// It may be primary.
    pub healthy: bool,
    /// Why not, if not.
    pub reason: String,
    /// Its store, if it holds copies.
    pub store: Option<StoreStatus>,
    /// Its vote, if it is a witness.
    pub voter: Option<VoterStatus>,
}

/// A data node's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreStatus {
    /// Size of its file system.
    pub bytes: u64,
    /// Free.
    pub free_bytes: u64,
    /// How it does I/O.
    pub engine: String,
    /// Median of the last syncs.
    pub sync_p50_us: u64,
    /// Slowest of them.
    pub sync_max_us: u64,
    /// Copies held.
    pub volumes: u32,
    /// Volumes served.
    pub primaries: u32,
}

/// A witness's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VoterStatus {
    /// Left of the quiet time after its start.
    pub quiet_ms: u64,
    /// Registers held.
    pub registers: u32,
    /// Leases granted now.
    pub grants: u32,
}

/// How a volume does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeHealth {
    /// As many members in step as its policy asks for.
    Ok,
    /// Serves, with fewer.
    Degraded,
    /// A promotion is under way.
    Promoting,
    /// Does not serve.
    Unavailable,
    /// Said by a later release.
    Unknown,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeStatus {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: VolumeKind,
    /// How it does.
    pub health: VolumeHealth,
    /// Why, if not well.
    pub problems: Vec<String>,
    /// It was deleted.
    pub deleted: bool,
    /// The epoch in force.
    pub epoch: Epoch,
    /// When it began; zero if unknown.
    pub epoch_started_unix_ms: u64,
    /// Its primary.
    pub primary: NodeId,
    /// The primary's process.
    pub primary_instance: Instance,
    /// Version of the register.
    pub register_version: u64,
    /// Its history.
    pub lineage: Lineage,
    /// How many durable copies commit.
    pub ack: AckRule,
    /// As a count.
    pub ack_quorum: u32,
    /// Full copies below which the membership never shrinks.
    pub min_copies: u32,
    /// Nodes that should hold a copy; the first one made the volume.
    pub placement: Vec<NodeId>,
    /// Among copies that are equally good as primary, these first, in this order.
    pub prefer: Vec<NodeId>,
    /// Several hosts may attach at a time.
    pub shared: bool,
    /// End of the log that the last promotion chose.
    pub cut: LogPoint,
    /// The node whose view the rest is.
    pub seen_by: NodeId,
    /// It is the primary's view.
    pub authoritative: bool,
    /// The primary holds its lease.
    pub lease_held: bool,
    /// For this much longer.
    pub lease_remaining_ms: u64,
    /// Witnesses whose grant runs.
    pub lease_granted_by: Vec<NodeId>,
    /// First entry still held.
    pub first_lsn: Lsn,
    /// Log volumes: the first position that is shown to readers; zero for others.
    pub first_shown_lsn: Lsn,
    /// Log volumes: what is kept.
    pub retention: Option<Retention>,
    /// Last entry taken in.
    pub accepted_lsn: Lsn,
    /// Last entry committed.
    pub commit_lsn: Lsn,
    /// Last entry in the block image.
    pub applied_lsn: Lsn,
    /// Age of the oldest entry that waits for commit.
    pub uncommitted_age_ms: u64,
    /// Size of the log.
    pub wal_bytes: u64,
    /// Its copies.
    pub members: Vec<MemberStatus>,
    /// Copies that catch up.
    pub learners: Vec<LearnerStatus>,
    /// What a membership change under way waits for; empty if there is none.
    pub change: String,
    /// Client sessions.
    pub sessions: u32,
    /// Who holds it.
    pub attachments: Vec<AttachmentStatus>,
    /// Promotions are delayed this much longer.
    pub hold_down_ms: u64,
}

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Orders writes.
    Primary,
    /// Follows.
    Replica,
    /// Is behind, and fed.
    CatchingUp,
    /// Does not answer.
    Silent,
    /// Answers, and refuses.
    Refusing,
    /// Said by a later release.
    Unknown,
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Where.
    pub node: NodeId,
    /// Which formatting.
    pub incarnation: Incarnation,
    /// Full or log.
    pub kind: MemberKind,
    /// What it does.
    pub role: MemberRole,
    /// Greatest epoch sealed.
    pub sealed_epoch: Epoch,
    /// Durable up to here.
    pub durable_lsn: Lsn,
    /// Known as committed up to here.
    pub committed_lsn: Lsn,
    /// Entries behind the primary.
    pub lag_entries: u64,
    /// In bytes.
    pub lag_bytes: u64,
    /// In time.
    pub lag_ms: u64,
    /// Since its last answer.
    pub silent_ms: u64,
    /// Its log is damaged.
    pub damaged: bool,
    /// Its image is being replaced.
    pub rebuilding: bool,
    /// Its last batch was unreadable at its start.
    pub in_doubt: bool,
    /// Why it refuses or lags.
    pub reason: String,
    /// Sent and not acknowledged.
    pub bytes_in_flight: u64,
}

/// How far a learner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnerPhase {
    /// Fed from the log.
    Log,
    /// Fed extents of the image.
    Image,
    /// Content is compared.
    Verify,
    /// Becomes a member as soon as the register says so.
    Ready,
    /// Said by a later release.
    Unknown,
}

/// A copy that does not count yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LearnerStatus {
    /// Where.
    pub node: NodeId,
    /// Which formatting.
    pub incarnation: Incarnation,
    /// How far it is.
    pub phase: LearnerPhase,
    /// Durable up to here.
    pub durable_lsn: Lsn,
    /// Up to here it must get.
    pub target_lsn: Lsn,
    /// Transferred.
    pub bytes_done: u64,
    /// To transfer in all.
    pub bytes_total: u64,
    /// At this rate.
    pub bytes_per_second: u64,
    /// Time left, if it can be told.
    pub eta_ms: Option<u64>,
    /// What it waits for.
    pub reason: String,
}

/// Who holds a block volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttachmentStatus {
    /// As it named itself.
    pub name: String,
    /// Its session.
    pub session: SessionId,
    /// Its generation.
    pub generation: u64,
    /// The entry that attached it.
    pub since: LogPoint,
}

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EventFilter {
    /// Only greater numbers.
    pub since: u64,
    /// Only of this volume.
    pub volume: Option<String>,
    /// Go on as they happen.
    pub follow: bool,
    /// The newest so many of the past; zero: all.
    pub past_max: u32,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Volume created.
    VolumeCreated,
    /// Volume deleted.
    VolumeDeleted,
    /// Primary lost.
    PrimaryLost,
    /// Promoted.
    Promoted,
    /// Stepped down.
    SteppedDown,
    /// Member added.
    MemberAdded,
    /// Member removed.
    MemberRemoved,
    /// Member silent.
    MemberSilent,
    /// Member back.
    MemberBack,
    /// Damage found.
    DamageFound,
    /// Repaired.
    Repaired,
    /// A divergent suffix was set aside.
    BranchKept,
    /// Rebuild started.
    RebuildStarted,
    /// Rebuild done.
    RebuildDone,
    /// Writes are acknowledged with fewer copies than asked.
    FewerCopies,
    /// Copies restored.
    CopiesRestored,
    /// Attached.
    Attached,
    /// Taken over.
    TakenOver,
    /// Disk failed.
    DiskFailed,
    /// Node started.
    NodeStarted,
    /// Node stopped.
    NodeStopped,
    /// Witness quorum lost.
    WitnessQuorumLost,
    /// Witness quorum back.
    WitnessQuorumBack,
    /// Promotions come too often.
    Flapping,
    /// The external fence failed, and nobody was promoted.
    ExternalFenceFailed,
    /// A hook failed.
    HookFailed,
    /// There are other witnesses.
    WitnessesChanged,
    /// Requests of clients ended in an error because nobody served their volume in time.
    RequestsOverdue,
    /// The files of NBD's TLS changed, and are used or not.
    CertificatesChanged,
    /// Policy changed.
    PolicyChanged,
    /// Said by a later release.
    Unknown,
}

/// Who should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nobody in particular.
    Info,
    /// Somebody should look, soon.
    Warning,
    /// Somebody must act.
    Alarm,
    /// Said by a later release.
    Unknown,
}

/// Something that happened in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Rises within the log of the node that was asked.
    pub number: u64,
    /// When.
    pub unix_ms: u64,
    /// Whom it is about, or who reports it.
    pub node: NodeId,
    /// What happened.
    pub kind: EventKind,
    /// Who should care.
    pub severity: Severity,
    /// Which volume, if any.
    pub volume: Option<String>,
    /// In this epoch.
    pub epoch: Epoch,
    /// At this position; zero if none.
    pub lsn: Lsn,
    /// One sentence.
    pub message: String,
    /// Of a promotion.
    pub certificate: Option<Certificate>,
}

/// Whether a node works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeHealth {
    /// Which.
    pub node: NodeId,
    /// Its process.
    pub instance: Instance,
    /// Release of its software.
    pub release: String,
    /// Able to do what it is there for.
    pub ready: bool,
    /// Why not, if not.
    pub reason: String,
    /// Copies held.
    pub volumes: u32,
    /// Volumes served.
    pub primaries: u32,
}

impl CreateVolume {
    /// A volume with the cluster's defaults.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::report::CreateVolume;
    /// use mainstay_types::{NodeId, VolumeKind};
    ///
    /// let mut wanted = CreateVolume::new("ledger", VolumeKind::Log);
    /// wanted.placement = vec![NodeId(1), NodeId(2), NodeId(3)];
    /// ```
    #[must_use]
    pub fn new(name: impl Into<String>, kind: VolumeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            copies: 0,
            placement: Vec::new(),
            prefer: Vec::new(),
            shared: false,
            ack: None,
            min_copies: 0,
        }
    }
}
