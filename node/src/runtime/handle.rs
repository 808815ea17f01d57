//! A volume on this node as the rest of the process holds it, and what it can be told.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mainstay_storage::image::{Donation, Extent, ImageReadError};
use mainstay_types::{Incarnation, Lineage, Lsn, MonoTime, NodeId, VolumeSpec};
use mainstay_volume::tree::{TreeAnswer, TreeError};
use mainstay_volume::{ClientOp, ConnId, Event, OpResult, Token};
use tokio::sync::{mpsc, oneshot, watch};

use super::copies::ExportPart;
use super::repair::RepairCounts;
use super::report::VolumeReport;

/// What a volume is told.
#[derive(Debug)]
pub enum ToVolume {
    /// For the volume itself.
    Event(Event),
    /// Operations that arrived together on one client's connection, in order. One message for all of them: they wake the
    /// thread once, and get into the same write.
    Client {
        /// The connection.
        conn: ConnId,
        /// Each with the name of its answer.
        ops: Vec<(Token, ClientOp)>,
    },
    /// A client's connection: answers go to `replies`.
    Connect {
        /// Its name.
        conn: ConnId,
        /// Where answers go.
        replies: Answers,
    },
    /// Read the whole image for a learner.
    Export {
        /// Where it goes.
        parts: mpsc::Sender<ExportPart>,
        /// Whose copy it is to be.
        to: NodeId,
    },
    /// Read blocks for another member's repair.
    Donate {
        /// Their numbers.
        blocks: Vec<u64>,
        /// What was read, or why nothing is.
        answer: oneshot::Sender<Result<Donation, String>>,
    },
    /// Hand over if primary, write a checkpoint, close the files. Answered when all of it is done.
    Stop {
        /// Told when done.
        done: oneshot::Sender<()>,
        /// Whether to hand the primary role over first.
        hand_over: bool,
    },
}

/// Where the answers of one connection go; those that are ready together travel together.
pub type Answers = mpsc::UnboundedSender<Vec<ConnReply>>;

/// An answer on a client's connection.
#[derive(Debug)]
pub struct ConnReply {
    /// The operation.
    pub token: Token,
    /// Its answer.
    pub answer: ConnAnswer,
}

/// See [`ConnReply`].
#[derive(Debug)]
pub enum ConnAnswer {
    /// Of the volume.
    Result(OpResult),
    /// Bytes of a block volume.
    Block(Result<Bytes, ImageReadError>),
    /// What a block volume stores, clipped to the range asked for.
    Extents(Result<Vec<Extent>, ImageReadError>),
    /// Records of a log volume.
    Records {
        /// Committed records in the order in which they were asked for.
        records: Vec<RecordOut>,
        /// Where to go on.
        next: Lsn,
        /// Whether nothing committed lies behind them.
        end: bool,
        /// The last position that could be shown.
        through: Lsn,
    },
    /// Of a log's Merkle tree.
    Tree(Result<TreeAnswer, TreeError>),
    /// Records that do not read back.
    Unreadable(String),
}

/// One record.
#[derive(Debug)]
pub struct RecordOut {
    /// Its position.
    pub lsn: Lsn,
    /// Nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Its bytes.
    pub data: Bytes,
}

/// A volume on this node, as the rest of the process holds it.
#[derive(Debug, Clone)]
pub struct VolumeHandle {
    /// What it is.
    pub spec: VolumeSpec,
    /// Its history.
    pub lineage: Lineage,
    /// The history that it was created with.
    pub log_lineage: Lineage,
    /// Where its files lie.
    pub dir: PathBuf,
    /// Which formatting of this node's copy.
    pub incarnation: Incarnation,
    /// Its task.
    pub to: mpsc::UnboundedSender<ToVolume>,
    /// Its last report.
    pub report: Arc<Mutex<VolumeReport>>,
    /// When the thread of its disk was last awake.
    pub disk_awake: Arc<DiskAwake>,
    /// What was repaired of its image.
    pub repairs: Arc<RepairCounts>,
    /// The last entry that may be shown, as it moves: the commit point, or the last entry before a batch that is not whole.
    pub commit: watch::Receiver<Lsn>,
}

impl VolumeHandle {
    /// The last report.
    #[must_use]
    pub fn report(&self) -> VolumeReport {
        self.report
            .lock()
            .expect("no panic while the lock is held")
            .clone()
    }

    /// Tells the volume something. Lost if it has stopped.
    pub fn tell(&self, event: Event) {
        let _stopped = self.to.send(ToVolume::Event(event));
    }
}

/// When the thread of a volume's disk was last awake. It looks up often (see `disk_thread.rs`): a time that is long past
/// means a disk that hangs.
#[derive(Debug)]
pub struct DiskAwake(AtomicU64);

impl DiskAwake {
    /// Awake at `now`.
    #[must_use]
    pub fn new(now: MonoTime) -> Self {
        Self(AtomicU64::new(now.0))
    }

    /// Awake again.
    pub fn set(&self, now: MonoTime) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    /// The last time.
    #[must_use]
    pub fn get(&self) -> MonoTime {
        MonoTime(self.0.load(Ordering::Relaxed))
    }
}
