//! What applications link: open a volume, read, write, flush, follow the primary.
//!
//! ```
//! # mainstay_testing::run(async |cluster| {
//! # cluster.create_log("ledger").await?;
//! # let endpoints = cluster.endpoints();
//! use mainstay_client::{Client, ClientConfig};
//!
//! // Some nodes of the cluster, such as ["10.0.0.1:7400", "10.0.0.2:7400"]; the others are learned from them.
//! let client = Client::connect(ClientConfig::new(endpoints)).await?;
//! let log = client.log("ledger").open().await?;
//! let committed = log.append("first record").await?;
//! println!("at {}", committed.lsn);
//! # Ok(()) });
//! ```
//!
//! The examples of all methods run against a cluster in their own process, with the crate `mainstay-testing`, which is there for the
//! tests of applications, too.
//!
//! Rules that hold for every handle:
//!
//! * **An answer means committed.** A mutation is answered when it is durable on as many members as the volume's policy
//!   asks for, and what was answered survives every failover that the policy survives.
//! * **The call fixes the order.** Mutations of one handle and its clones take effect in the order of the calls.
//! * **Failover is not an error.** While there is no primary, requests wait; on the new one they are sent again, in order,
//!   and each takes effect once.
//! * **A handle has one history.** A forced promotion that gives up committed entries, and a volume that is deleted and created anew,
//!   begin another: handles, tails and reads from copies end with [`Refusal::HistoryReplaced`], and nothing of them reaches it.
//! * **A lost answer is `Unknown`, never "failed".** It is given when the deadline passes. The request stays queued and may
//!   still take effect; `outcome` settles it.
//! * **Dropping a future cancels the wait, not the request.** Dropping the last handle abandons what is unanswered:
//!   it is not a flush.
//!
//! Handles are cheap to clone. One background task per opened volume owns its stream and ends with the last handle. All of
//! it needs a tokio runtime.

#![forbid(unsafe_code)]

mod admin;
mod block;
mod cluster;
mod config;
mod connect;
mod driver;
mod error;
mod event;
mod forwarding;
mod inflight;
mod local;
mod log;
mod proofs;
mod replicas;
mod retention;
mod room;
mod session;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use mainstay_types::{SessionId, VolumeName};
use serde::Serialize;

pub use crate::admin::{Admin, EventStream};
pub use crate::block::{
    AttachOptions, BlockBuilder, BlockChange, BlockExtent, BlockInfo, BlockVolume, ChangePoint,
    PendingWrite,
};
pub use crate::config::ClientConfig;
pub use crate::error::{
    AdminError, AppendError, ConnectError, OpenError, OutcomeError, ReadError, Refusal,
    UnknownCause, WriteError,
};
pub use crate::event::{ClientEvent, ClientEvents};
pub use crate::local::{LocalNode, LocalReplies, LocalRequests};
pub use crate::log::{
    Consistency, FoundRecord, LogBuilder, LogPage, LogPosition, LogRecord, LogVolume,
    PendingAppend, ReadLimits,
};
pub use crate::retention::{Retention, RetentionChange};
pub use crate::tail::Tail;
/// A log's Merkle tree: roots, proofs, and their verification, which needs no server.
pub use mainstay_types::merkle::{
    ConsistencyProof, InclusionProof, Leaf, Peaks, ProofError, TreeHash, TreeRoot,
};

/// Plain descriptions of a cluster, as [`Admin`] returns them. All serialize.
pub mod report {
    pub use crate::admin::promotions::*;
    pub use crate::admin::types::*;
    pub use crate::admin::witnesses::{WitnessChange, WitnessStatus, Witnesses};
}

/// Where and when a mutation was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// Its position in the volume's log; that of the first record of a batch.
    pub lsn: mainstay_types::Lsn,
    /// Positions that it takes from there on: as many as a batch has records, else one.
    pub count: u32,
    /// The primary's time when it took the record in, microseconds since 1970. Never falls as the positions of records rise. Zero if the
    /// mutation is no record: a trim of a log, a policy, any change of a block volume.
    pub timestamp_us: u64,
}

impl Committed {
    /// Its last position: that of the last record of a batch.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let committed = log.append_batch(["debit", "credit"]).await?;
    /// assert_eq!(committed.last(), committed.lsn.next());
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn last(&self) -> mainstay_types::Lsn {
        let more = u64::from(self.count.saturating_sub(1));
        mainstay_types::Lsn(self.lsn.0.saturating_add(more))
    }
}

/// Names one mutation for ever: what [`WriteError::Unknown`] carries and `outcome` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct OpId {
    /// The session that sent it.
    pub session: SessionId,
    /// Its number within the session, from 1.
    pub seq: u64,
}

impl std::fmt::Display for OpId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.session, self.seq)
    }
}

/// What became of a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect, once.
    Committed(Committed),
    /// It did not take effect and never will.
    Never,
    /// It was settled, but the cluster does not remember how: too many mutations followed.
    Forgotten,
}

/// A connection to a cluster, shared by all volumes opened through it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    cluster: Arc<cluster::Cluster>,
}

impl Client {
    /// Reaches any of the configured endpoints and learns the others from it.
    ///
    /// All endpoints are asked at once. Waits until one answers, for at most `config.open_deadline`. Dropping the future
    /// leaves nothing behind.
    ///
    /// # Errors
    /// No endpoint is given or one is malformed, or none answered in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// use mainstay_client::{Client, ClientConfig};
    ///
    /// let client = Client::connect(ClientConfig::new(cluster.endpoints())).await?;
    /// assert_eq!(client.admin().status().await?.witnesses, 3);
    /// # Ok(()) });
    /// ```
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        Self::greet(cluster::Cluster::new(config)?).await
    }

    /// The same for a process that is a node itself: streams of volumes whose primary is at `address` go to `node` directly.
    /// `address` is the one by which the cluster knows the node. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// As [`Self::connect`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// use std::sync::Arc;
    ///
    /// use mainstay_client::{Client, ClientConfig, LocalNode, LocalReplies, LocalRequests};
    ///
    /// /// A node that ends every stream at once.
    /// #[derive(Debug)]
    /// struct ThisNode;
    ///
    /// impl LocalNode for ThisNode {
    ///     fn volume(&self, _requests: LocalRequests) -> LocalReplies {
    ///         tokio::sync::mpsc::channel(1).1
    ///     }
    /// }
    ///
    /// let config = ClientConfig::new(cluster.endpoints());
    /// let own = "127.0.0.1:9".to_owned();
    /// let client = Client::connect_beside(config, own, Arc::new(ThisNode)).await?;
    /// assert!(!client.admin().list_volumes().await?.iter().any(|volume| volume.name == "none"));
    /// # Ok(()) });
    /// ```
    pub async fn connect_beside(
        config: ClientConfig,
        address: String,
        node: Arc<dyn LocalNode>,
    ) -> Result<Self, ConnectError> {
        let local = local::Local { address, node };
        Self::greet(cluster::Cluster::new(config)?.beside(local)).await
    }

    async fn greet(cluster: cluster::Cluster) -> Result<Self, ConnectError> {
        let deadline = cluster.config.open_deadline;
        let cluster = Arc::new(cluster);
        match tokio::time::timeout(deadline, cluster.greet()).await {
            Ok(()) => Ok(Self { cluster }),
            Err(_) => Err(ConnectError::Unreachable {
                endpoints: cluster.addresses(),
                waited: deadline,
            }),
        }
    }

    /// Starts to open the log volume `name`.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// let log = client.log("ledger").open().await?;
    /// log.append("a record").await?;
    /// # Ok(()) });
    /// ```
    pub fn log(&self, name: &str) -> LogBuilder {
        LogBuilder::new(Arc::clone(&self.cluster), name.to_owned())
    }

    /// Starts to open the block volume `name`.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::AttachOptions;
    ///
    /// let disk = client.block("disk").attach(AttachOptions::named("host-1")).open().await?;
    /// disk.write(0, vec![7; 4096]).await?;
    /// # Ok(()) });
    /// ```
    pub fn block(&self, name: &str) -> BlockBuilder {
        BlockBuilder::new(Arc::clone(&self.cluster), name.to_owned())
    }

    /// What operators ask of the cluster.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// for volume in client.admin().list_volumes().await? {
    ///     println!("{}: primary on node {}", volume.name, volume.primary);
    /// }
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.cluster))
    }

    /// Settles a mutation of a session that no longer has a handle, for instance one of an earlier process.
    ///
    /// The session is fenced first: whatever of it is still on its way can no longer commit, so the answer is final. Do
    /// not call it for a session with a live handle; use that handle's `outcome`. A handle that lives all the same, cut off or
    /// in a process that stood still, ends with [`Refusal::Fenced`] when it reaches the cluster again. Waits for at most
    /// `deadline`; dropping the future cancels nothing but the wait.
    ///
    /// # Errors
    /// The session has expired, the volume cannot be opened, or the deadline passed.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::Outcome;
    /// use std::time::Duration;
    ///
    /// let log = client.log("ledger").open().await?;
    /// let op = log.submit("a record").await?.op();
    /// drop(log); // as if the process had ended before the answer came; it kept `op` in a file
    ///
    /// match client.outcome("ledger", op, Duration::from_secs(10)).await? {
    ///     Outcome::Committed(committed) => println!("it is at {}", committed.lsn),
    ///     Outcome::Never => println!("it may be appended again"),
    ///     Outcome::Forgotten => println!("look for it in the log"),
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn outcome(
        &self,
        volume: &str,
        op: OpId,
        deadline: Duration,
    ) -> Result<Outcome, OutcomeError> {
        session::settle(Arc::clone(&self.cluster), volume.to_owned(), op, deadline).await
    }

    /// Connections lost, primaries found, gaps in service: everything that happens from now on. A receiver that falls
    /// behind misses the oldest.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::ClientEvent;
    ///
    /// let mut events = client.events();
    /// let log = client.log("ledger").open().await?;
    /// assert!(matches!(events.next().await, Some(ClientEvent::Opened { .. })));
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn events(&self) -> ClientEvents {
        self.cluster.subscribe()
    }
}

/// A volume's name, checked before anything is sent.
fn volume_name(text: &str) -> Result<VolumeName, OpenError> {
    text.parse().map_err(OpenError::Name)
}
