//! What others may know of a volume on this node: kept up to date by its task, read by anybody.

use std::time::Duration;

use mainstay_replication::{PeerStatus, Role};
use mainstay_types::{Epoch, Lsn, MonoTime, NodeId, Register};
use mainstay_volume::{Retention, Volume};

use super::clock;

/// What others may know of a volume on this node.
#[derive(Debug, Clone)]
pub struct VolumeReport {
    /// When the volume's task last ran.
    pub at: MonoTime,
    /// Its role.
    pub role: Role,
    /// The epoch in which it acts, if it is primary, and how long something has waited to be committed.
    pub acting: Option<(Epoch, Duration)>,
    /// Where it is sealed, if nobody acts in that epoch as far as it knows.
    pub orphaned: Option<Epoch>,
    /// Greatest sealed epoch.
    pub sealed: Epoch,
    /// End of the log.
    pub last: Lsn,
    /// Durable here.
    pub durable: Lsn,
    /// Committed.
    pub commit: Lsn,
    /// Applied here.
    pub applied: Lsn,
    /// First entry held.
    pub first: Lsn,
    /// First entry that is shown to readers.
    pub first_shown: Lsn,
    /// What a log keeps.
    pub retention: Retention,
    /// When the lease of the epoch in which it acts ends, or ended; zero if there was none yet.
    pub lease_until: MonoTime,
    /// How long the oldest log write has been under way.
    pub sync_age: Duration,
    /// The other copies, if primary.
    pub peers: Vec<PeerStatus>,
    /// Members that this copy cannot reach, if that says something of the primary.
    pub unreachable: Vec<NodeId>,
    /// Good syncs that are missing until the disk has proved that it works again.
    pub syncs_due: u32,
    /// Last decided register value seen.
    pub register: Option<Register>,
    /// Whether a membership change is under way.
    pub changing: bool,
    /// Whether the image is being replaced.
    pub rebuilding: bool,
    /// Client sessions known.
    pub sessions: usize,
    /// Who holds a block volume.
    pub attached: Option<String>,
    /// Why this copy stepped aside, if it did.
    pub failed: Option<String>,
}

impl VolumeReport {
    /// Of a volume that was just opened.
    pub(super) fn of(volume: &Volume) -> Self {
        let member = volume.member();
        let now = clock::mono();
        Self {
            at: now,
            role: member.role(),
            acting: member.acting(now),
            orphaned: member.orphaned(),
            sealed: member.sealed(),
            last: member.last().lsn,
            durable: member.durable(),
            commit: member.commit(),
            applied: volume.applied(),
            first: member.log().base().lsn.next(),
            first_shown: volume.first_shown(),
            retention: volume.sessions().retention(),
            lease_until: member.lease_until(),
            sync_age: Duration::ZERO,
            peers: member.peer_status(now),
            unreachable: member.unreachable(now),
            syncs_due: member.syncs_due(),
            register: member.register().cloned(),
            changing: member.is_changing(),
            rebuilding: member.is_rebuilding(),
            sessions: volume.sessions().len(),
            attached: volume.sessions().attached_by().map(str::to_owned),
            failed: None,
        }
    }

    /// Brings everything up to date. Runs after every batch of events, so it copies what is on the heap only if that changed.
    pub(super) fn refresh(&mut self, volume: &Volume, sync_age: Duration, failed: Option<&str>) {
        let member = volume.member();
        let now = clock::mono();
        self.at = now;
        self.role = member.role();
        self.acting = member.acting(now);
        self.orphaned = member.orphaned();
        self.sealed = member.sealed();
        self.last = member.last().lsn;
        self.durable = member.durable();
        self.commit = member.commit();
        self.applied = volume.applied();
        self.first = member.log().base().lsn.next();
        self.first_shown = volume.first_shown();
        self.retention = volume.sessions().retention();
        self.lease_until = member.lease_until();
        self.sync_age = sync_age;
        self.peers = member.peer_status(now);
        self.unreachable = member.unreachable(now);
        self.syncs_due = member.syncs_due();
        self.changing = member.is_changing();
        self.rebuilding = member.is_rebuilding();
        self.sessions = volume.sessions().len();
        // The id of a register value is drawn at random for each.
        if self.register.as_ref().map(|register| register.id)
            != member.register().map(|register| register.id)
        {
            self.register = member.register().cloned();
        }
        let attached = volume.sessions().attached_by();
        if self.attached.as_deref() != attached {
            self.attached = attached.map(str::to_owned);
        }
        if self.failed.as_deref() != failed {
            self.failed = failed.map(str::to_owned);
        }
    }
}
