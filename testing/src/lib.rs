//! A whole cluster inside a test: real nodes over real sockets and files, on threads of the test's own process.
//!
//! ```
//! use mainstay_testing::TestCluster;
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let cluster = TestCluster::start().await?;
//! cluster.create_log("ledger").await?;
//! let client = cluster.client().await?;
//! let log = client.log("ledger").open().await?;
//! let first = log.append("first record").await?;
//!
//! // The primary stops; the client goes on with the next one, and nothing is lost.
//! let primary = cluster.primary_of("ledger").await?;
//! cluster.stop(primary).await?;
//! let second = log.append("second record").await?;
//! assert!(second.lsn > first.lsn);
//! cluster.start_again(primary).await?;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Rules that hold for it:
//!
//! * **Nothing is shared and nothing is left.** Each cluster has a temporary directory and free loopback ports of its own. Dropping it
//!   stops the nodes and removes the directory; the drop waits for that, for some tenths of a second.
//! * **It does not need the test's runtime.** The nodes run on threads of the cluster, so a test with a current-thread runtime, or with
//!   virtual time, does not slow them down. Their clocks are real.
//! * **Only what in-process nodes can bear is done to them.** A node is stopped and hands over first, or it ends without a word, alone or
//!   together with others; and it is started again on its data. Kills, pauses and partitions need real processes: `cargo xtask chaos` and
//!   `mainstay demo` do that.
//! * **Process-wide is only what a process is.** A test that stops the process stops every node at once, and a panic of a node's thread is
//!   printed and leaves that node dead, while the worker of `mainstay node` would end its process.

#![forbid(unsafe_code)]

mod keeper;

use std::future::Future;
use std::time::{Duration, Instant};

use mainstay_client::report::{CreateVolume, VolumeHealth};
use mainstay_client::{AdminError, Client, ClientConfig, ConnectError};
use mainstay_types::{NodeId, VolumeKind};
use tempfile::TempDir;

use keeper::{HandOver, Keeper};

/// For the copies of a new volume, also on a busy machine.
const WHOLE_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Why a cluster, or one of its nodes, does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No directory, port or thread could be had.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The numbers make no cluster.
    #[error(
        "{data_nodes} data nodes and {witnesses} witnesses: use at least one data node and an odd number of witnesses"
    )]
    BadShape {
        /// Asked for.
        data_nodes: u32,
        /// Asked for.
        witnesses: u32,
    },
    /// A node did not start.
    #[error("node {node} did not start: {reason}")]
    NotStarted {
        /// Which.
        node: NodeId,
        /// Its own words.
        reason: String,
    },
    /// There is no such node.
    #[error("there is no node {0}: data nodes count from 1, witnesses from 101")]
    NoSuchNode(NodeId),
    /// The node was stopped before.
    #[error("node {0} does not run")]
    Stopped(NodeId),
    /// The node was not stopped.
    #[error("node {0} runs already")]
    Runs(NodeId),
    /// The thread that keeps the nodes has ended, after a panic.
    #[error("the cluster has ended")]
    Ended,
}

/// The shape of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a builder starts nothing by itself"]
pub struct Builder {
    data_nodes: u32,
    witnesses: u32,
    standby_witnesses: u32,
}

impl Builder {
    /// So many data nodes, with ids from 1.
    pub fn data_nodes(self, data_nodes: u32) -> Self {
        Self { data_nodes, ..self }
    }

    /// So many witnesses, an odd number, with ids from 101.
    pub fn witnesses(self, witnesses: u32) -> Self {
        Self { witnesses, ..self }
    }

    /// So many nodes behind them that wait to become witnesses.
    pub fn standby_witnesses(self, standby_witnesses: u32) -> Self {
        Self {
            standby_witnesses,
            ..self
        }
    }

    /// Starts all nodes.
    ///
    /// # Errors
    /// The numbers make no cluster, or the system refuses a directory, a port or a thread.
    pub async fn start(self) -> Result<TestCluster, ClusterError> {
        if self.data_nodes == 0 || self.witnesses.is_multiple_of(2) {
            return Err(ClusterError::BadShape {
                data_nodes: self.data_nodes,
                witnesses: self.witnesses,
            });
        }
        let system = |what| move |source| ClusterError::System { what, source };
        let dir = tempfile::Builder::new().prefix("mainstay-test-").tempdir();
        let dir = dir.map_err(system("make a temporary directory"))?;
        let keeper = Keeper::start(self, dir.path()).await?;
        Ok(TestCluster { keeper, _dir: dir })
    }
}

/// A running cluster, which ends when this is dropped.
#[derive(Debug)]
pub struct TestCluster {
    // Before the directory: the nodes are stopped first.
    keeper: Keeper,
    _dir: TempDir,
}

impl TestCluster {
    /// Three data nodes and three witnesses.
    ///
    /// # Errors
    /// The system refuses a directory, a port or a thread.
    pub async fn start() -> Result<Self, ClusterError> {
        Self::builder().start().await
    }

    /// For another shape.
    pub fn builder() -> Builder {
        Builder {
            data_nodes: 3,
            witnesses: 3,
            standby_witnesses: 0,
        }
    }

    /// Addresses of the data nodes, `host:port` each, running or not.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.keeper.endpoints.clone()
    }

    /// A client that knows all data nodes.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn client(&self) -> Result<Client, ConnectError> {
        Client::connect(ClientConfig::new(self.endpoints())).await
    }

    /// Creates a log volume with a copy on up to three nodes, and waits until all of them are there.
    ///
    /// # Errors
    /// As [`mainstay_client::Admin::create_volume`].
    pub async fn create_log(&self, name: &str) -> Result<(), AdminError> {
        self.create(CreateVolume::new(name, VolumeKind::Log)).await
    }

    /// Creates a block volume of `size_bytes`, a multiple of 4096, and waits until all its copies are there.
    ///
    /// # Errors
    /// As [`mainstay_client::Admin::create_volume`].
    pub async fn create_block(&self, name: &str, size_bytes: u64) -> Result<(), AdminError> {
        let kind = VolumeKind::Block { size_bytes };
        self.create(CreateVolume::new(name, kind)).await
    }

    /// Creates a volume with properties of its own, and waits until all its copies are there: a primary may be lost from then on.
    ///
    /// # Errors
    /// As [`mainstay_client::Admin::create_volume`].
    pub async fn create(&self, wanted: CreateVolume) -> Result<(), AdminError> {
        let admin = self.connected().await?.admin();
        let name = wanted.name.clone();
        admin.create_volume(wanted).await?;
        // A new volume serves with its first copy; the others join it.
        let give_up = Instant::now() + WHOLE_WITHIN;
        loop {
            let volume = admin.show_volume(&name).await?;
            let whole = volume.members.len() == volume.placement.len();
            if whole && volume.health == VolumeHealth::Ok {
                return Ok(());
            }
            if Instant::now() >= give_up {
                let message = format!("{name} is not whole: {}", volume.problems.join("; "));
                return Err(AdminError::Unavailable { message });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The primary of a volume, as the cluster sees it now.
    ///
    /// # Errors
    /// There is no such volume, or no node answers.
    pub async fn primary_of(&self, volume: &str) -> Result<NodeId, AdminError> {
        let client = self.connected().await?;
        Ok(client.admin().show_volume(volume).await?.primary)
    }

    async fn connected(&self) -> Result<Client, AdminError> {
        self.client()
            .await
            .map_err(|error| AdminError::Unavailable {
                message: error.to_string(),
            })
    }

    /// Stops a node cleanly: it hands over what it is primary of, and ends.
    ///
    /// # Errors
    /// It does not run, or there is none of that id.
    pub async fn stop(&self, node: NodeId) -> Result<(), ClusterError> {
        self.keeper.stop(&[node], HandOver::Yes).await
    }

    /// Ends nodes, all at the same time, without handing anything over: the others find out when the lease of a primary among them has
    /// run out, in about a second. The files are closed in order.
    ///
    /// # Errors
    /// One of them does not run, or there is none of that id; then none is stopped.
    pub async fn fail(&self, nodes: &[NodeId]) -> Result<(), ClusterError> {
        self.keeper.stop(nodes, HandOver::No).await
    }

    /// Starts a stopped node again, on its address and its data, and waits until it takes part.
    ///
    /// # Errors
    /// It runs, there is none of that id, or it does not start.
    pub async fn start_again(&self, node: NodeId) -> Result<(), ClusterError> {
        self.keeper.start_again(node).await
    }
}

/// Runs `test` against a fresh cluster, on a runtime of its own: the whole of a small test, or of an example in a documentation comment.
///
/// ```
/// mainstay_testing::run(async |cluster| {
///     cluster.create_log("ledger").await?;
///     let log = cluster.client().await?.log("ledger").open().await?;
///     log.append("a record").await?;
///     Ok(())
/// });
/// ```
///
/// # Panics
/// The cluster does not start, or `test` returns an error.
pub fn run<Test>(test: Test)
where
    Test: AsyncFnOnce(&TestCluster) -> Result<(), Box<dyn std::error::Error>>,
{
    run_shaped(TestCluster::builder(), test);
}

/// As [`run`], with a cluster of another shape.
///
/// # Panics
/// As [`run`].
pub fn run_shaped<Test>(shape: Builder, test: Test)
where
    Test: AsyncFnOnce(&TestCluster) -> Result<(), Box<dyn std::error::Error>>,
{
    block_on(async {
        let cluster = shape.start().await.expect("the cluster starts");
        if let Err(error) = test(&cluster).await {
            panic!("{error}: {error:?}");
        }
    });
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(test);
}
