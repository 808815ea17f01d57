//! A development cluster: every node a process of its own, on loopback ports, under one directory.
//!
//! [`DevCluster`] is what `mainstay up`, the demo, the measurements and the tests share. One task owns the processes
//! and handles one event at a time: a process ended, a worker was seen, a command came.
//!
//! Rules that hold across it:
//!
//! * A node that was killed stays dead until somebody asks for it, or `respawn` was chosen.
//! * `cluster.json` says what is true, as soon as it is known; it is replaced as a whole.
//! * One directory holds one cluster, and one process at a time runs it.
//! * The processes do not outlive the handle: what is still there when it is dropped is killed.

mod actor;
pub mod control;
mod health;
mod layout;
mod leftovers;
mod state;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_types::NodeId;
pub use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use crate::processes;
use actor::{Actor, Command};
pub use layout::{Layout, LayoutError, LayoutNode, Wanted, random_loopback};
pub use state::{ClusterFile, NodeState, NodeStatus};

/// What cluster to run, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything is kept here; made if missing.
    pub dir: PathBuf,
    /// Its shape: data nodes with ids from 1, witnesses with ids from 101.
    pub wanted: Wanted,
    /// Start a node again by itself when it ended unexpectedly.
    pub respawn: bool,
    /// The program whose `node` command runs a node.
    pub program: PathBuf,
    /// Sections added to every configuration file, as TOML; for experiments.
    pub extra_config: String,
    /// Where the first node reaches the second, if not on its own address: through something between them that breaks.
    pub routes: BTreeMap<(NodeId, NodeId), SocketAddr>,
}

impl Options {
    /// Three data nodes and three witnesses of this very program in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            dir: dir.into(),
            wanted: Wanted::default(),
            respawn: false,
            program: std::env::current_exe()?,
            extra_config: String::new(),
            routes: BTreeMap::new(),
        })
    }
}

/// Which process of a node a signal goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The one that does the work. Its supervisor sees it end and reports it.
    Worker,
    /// The small one above it. The worker goes on.
    Supervisor,
    /// Both at once, the supervisor first so that it reports nothing: the loss of a machine.
    Both,
}

/// Why a cluster or a node does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// Another process runs this directory.
    #[error(
        "a cluster runs in {dir} already (process {holder}); use it, stop it with `mainstay down --dir {dir}`, restart one node with `mainstay up --dir {dir} --restart ID`, or choose another --dir",
        dir = dir.display()
    )]
    AlreadyRuns {
        /// The directory.
        dir: PathBuf,
        /// What the lock file says.
        holder: String,
    },
    /// The directory's plan cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No such node.
    #[error("node {id} is not in this cluster; its nodes are {}", listed(known))]
    NoSuchNode {
        /// Asked for.
        id: NodeId,
        /// There are.
        known: Vec<NodeId>,
    },
    /// The node runs, so it cannot be started.
    #[error("node {0} runs already")]
    NodeRuns(NodeId),
    /// The process to signal is not there.
    #[error("node {0} has no such process now")]
    NoProcess(NodeId),
    /// A node did not come up.
    #[error("node {id} did not start: {reason}\nthe end of {}:\n{tail}", log.display())]
    NotStarted {
        /// The node.
        id: NodeId,
        /// What was seen.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The cluster was stopped meanwhile.
    #[error("the cluster is stopping")]
    Stopping,
    /// The file system or the system refused.
    #[error("{}", path.display())]
    Io {
        /// The file or program.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

fn listed(ids: &[NodeId]) -> String {
    let ids: Vec<String> = ids.iter().map(NodeId::to_string).collect();
    ids.join(", ")
}

/// A running development cluster.
#[derive(Debug)]
pub struct DevCluster {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<ClusterFile>,
    layout: Layout,
    _lock: DirLock,
}

impl DevCluster {
    /// Starts all nodes and waits until each answers on its HTTP address.
    ///
    /// A directory that held a cluster before gives it the same data, ids and ports again. If a node does not come
    /// up, the others are stopped and the error says what its log said.
    pub async fn start(options: Options) -> Result<Self, DevError> {
        let dir = make_dir(&options.dir)?;
        let lock = take_lock(&dir)?;
        leftovers::stop(&dir).await;
        let layout = Layout::open(&dir, options.wanted)?;
        layout.check_ports().await?;
        layout.write_configs(&options.extra_config, &options.routes)?;
        let (commands, state) = Actor::spawn(layout.clone(), options.program, options.respawn);
        let cluster = Self {
            commands,
            state,
            layout,
            _lock: lock,
        };
        match cluster.restart_all().await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.stop().await;
                Err(error)
            }
        }
    }

    async fn restart_all(&self) -> Result<(), DevError> {
        let mut waits = Vec::new();
        for node in &self.layout.nodes {
            let (reply, wait) = oneshot::channel();
            self.send(Command::Restart { id: node.id, reply }).await?;
            waits.push(wait);
        }
        for wait in waits {
            wait.await.map_err(|_| DevError::Stopping)??;
        }
        Ok(())
    }

    /// Starts a node that ended, and waits until it answers.
    pub async fn restart(&self, id: NodeId) -> Result<(), DevError> {
        let (reply, wait) = oneshot::channel();
        self.send(Command::Restart { id, reply }).await?;
        wait.await.map_err(|_| DevError::Stopping)?
    }

    /// Sends `signal` to processes of a node. Returns once it is sent; see [`Self::wait_for`].
    pub async fn kill(&self, id: NodeId, signal: Signal, target: Target) -> Result<(), DevError> {
        let (reply, wait) = oneshot::channel();
        let command = Command::Kill {
            id,
            signal,
            target,
            reply,
        };
        self.send(command).await?;
        wait.await.map_err(|_| DevError::Stopping)?
    }

    /// Stops all nodes cleanly, data nodes before witnesses; what does not stop in time is killed.
    pub async fn stop(&self) {
        let (reply, wait) = oneshot::channel();
        if self.send(Command::Stop { reply }).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// What `cluster.json` says now.
    #[must_use]
    pub fn status(&self) -> ClusterFile {
        self.state.borrow().clone()
    }

    /// One node of it.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<NodeStatus> {
        self.state.borrow().node(id).cloned()
    }

    /// Changes of what `cluster.json` says.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ClusterFile> {
        self.state.clone()
    }

    /// Waits until `wanted` holds of a node, at most for `limit`. Returns whether it does.
    pub async fn wait_for(
        &self,
        id: NodeId,
        limit: Duration,
        wanted: impl Fn(&NodeStatus) -> bool,
    ) -> bool {
        let mut state = self.state.clone();
        let held = state.wait_for(|file| file.node(id).is_some_and(&wanted));
        matches!(tokio::time::timeout(limit, held).await, Ok(Ok(_)))
    }

    /// gRPC addresses of all data nodes, also of those that are down: a client tries each.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.state.borrow().endpoints()
    }

    /// Where everything is kept, as an absolute path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    async fn send(&self, command: Command) -> Result<(), DevError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| DevError::Stopping)
    }
}

impl Drop for DevCluster {
    /// Nothing may be left of a cluster whose owner panicked. After [`DevCluster::stop`] there is nothing to do.
    fn drop(&mut self) {
        for node in &self.state.borrow().nodes {
            for (pid, mark) in node.processes() {
                if processes::runs(pid, &mark) {
                    let _ = processes::send(pid, Signal::KILL);
                }
            }
        }
    }
}

/// Makes `dir` and returns its absolute path, so that every process means the same place.
fn make_dir(dir: &Path) -> Result<PathBuf, DevError> {
    std::fs::create_dir_all(dir)
        .and_then(|()| dir.canonicalize())
        .map_err(|source| DevError::Io {
            path: dir.to_owned(),
            source,
        })
}

fn take_lock(dir: &Path) -> Result<DirLock, DevError> {
    let path = dir.join(LOCK_FILE);
    let io = |source| DevError::Io {
        path: path.clone(),
        source,
    };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            return Err(DevError::AlreadyRuns {
                dir: dir.to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(io)?;
    Ok(DirLock(lock))
}

/// The right to run a directory.
#[derive(Debug)]
struct DirLock(File);

impl Drop for DirLock {
    /// Said aloud, as closing alone does not do it while a child that is just being started has a copy of the file.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Takes the directory's lock for a moment: whether nobody runs it, and stops what an earlier owner left.
///
/// Returns how many processes there were, or `None` if the cluster is run by a living process.
pub async fn stop_leftovers(dir: &Path) -> Result<Option<usize>, DevError> {
    match take_lock(dir) {
        Ok(_lock) => Ok(Some(leftovers::stop(dir).await)),
        Err(DevError::AlreadyRuns { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Held by the process that runs the directory; holds its process id.
const LOCK_FILE: &str = "up.lock";
