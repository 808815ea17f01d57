//! The thread that owns the nodes and the runtime that they run on; it ends when its handle is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_node::runtime::hooks::HookCommands;
use mainstay_node::runtime::serve::{Running, start};
use mainstay_node::runtime::{PeerSettings, Settings};
use mainstay_replication::LeaseConfig;
use mainstay_storage::engine::Engine;
use mainstay_types::{ClusterId, Instance, NodeId};
use mainstay_volume::VolumeConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::{Builder, ClusterError};

/// Ids of witnesses start above this.
const WITNESSES_AFTER: u32 = 100;
const MIB: u64 = 1 << 20;
/// A stopped node's port may be held a moment longer by a connection that is just being made to it.
const PORT_FREE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// For what nodes leave on the runtime when they were stopped.
const RUNTIME_ENDS_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Command {
    Stop(Vec<NodeId>, HandOver, Reply),
    StartAgain(NodeId, Reply),
}

/// Whether a node that stops gives what it is primary of to another first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandOver {
    Yes,
    No,
}

type Reply = oneshot::Sender<Result<(), ClusterError>>;

/// Handle of the thread.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) endpoints: Vec<String>,
    /// `None` while it is being dropped: the thread ends when nobody can ask it any more.
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread and, on it, all nodes of `shape`.
    pub(crate) async fn start(shape: Builder, dir: &Path) -> Result<Self, ClusterError> {
        let (commands, asked) = mpsc::unbounded_channel();
        let (ready, started) = oneshot::channel();
        let dir = dir.to_owned();
        let thread = std::thread::Builder::new()
            .name("test-cluster".to_owned())
            .spawn(move || run(shape, &dir, ready, asked))
            .map_err(|source| ClusterError::System {
                what: "start a thread",
                source,
            })?;
        let mut keeper = Self {
            endpoints: Vec::new(),
            commands: Some(commands),
            thread: Some(thread),
        };
        keeper.endpoints = started.await.map_err(|_| ClusterError::Ended)??;
        Ok(keeper)
    }

    pub(crate) async fn stop(
        &self,
        nodes: &[NodeId],
        hand_over: HandOver,
    ) -> Result<(), ClusterError> {
        let nodes = nodes.to_vec();
        self.ask(|reply| Command::Stop(nodes, hand_over, reply))
            .await
    }

    pub(crate) async fn start_again(&self, node: NodeId) -> Result<(), ClusterError> {
        self.ask(|reply| Command::StartAgain(node, reply)).await
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), ClusterError> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(ClusterError::Ended)?;
        let sent = commands.send(command(reply));
        sent.map_err(|_| ClusterError::Ended)?;
        answer.await.map_err(|_| ClusterError::Ended)?
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _panicked = thread.join();
        }
    }
}

type Ready = oneshot::Sender<Result<Vec<String>, ClusterError>>;

fn run(shape: Builder, dir: &Path, ready: Ready, asked: mpsc::UnboundedReceiver<Command>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("test-node")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(source) => {
            let what = "start a runtime";
            let _gone = ready.send(Err(ClusterError::System { what, source }));
            return;
        }
    };
    runtime.block_on(async {
        match Nodes::start(shape, dir).await {
            Ok(nodes) => {
                let _gone = ready.send(Ok(nodes.endpoints()));
                nodes.serve(asked).await;
            }
            Err(error) => {
                let _gone = ready.send(Err(error));
            }
        }
    });
    runtime.shutdown_timeout(RUNTIME_ENDS_WITHIN);
}

struct Nodes {
    settings: BTreeMap<NodeId, Settings>,
    running: BTreeMap<NodeId, Running>,
    instances: u64,
}

impl Nodes {
    /// Every listener is bound before any node starts, so that every node knows every port.
    async fn start(shape: Builder, dir: &Path) -> Result<Self, ClusterError> {
        let mut listeners = Vec::new();
        let mut peers = Vec::new();
        for peer in peers_of(shape) {
            let (listener, address) = bind().await.map_err(|source| ClusterError::System {
                what: "bind a loopback port",
                source,
            })?;
            listeners.push((peer.node, listener));
            let address = address.to_string();
            peers.push(PeerSettings { address, ..peer });
        }
        let settings = peers
            .iter()
            .map(|peer| (peer.node, settings(dir, peer, &peers)));
        let mut nodes = Self {
            settings: settings.collect(),
            running: BTreeMap::new(),
            instances: 0,
        };
        for (node, listener) in listeners {
            if let Err(error) = nodes.run(node, listener).await {
                nodes.stop_all().await;
                return Err(error);
            }
        }
        Ok(nodes)
    }

    /// Until nobody can ask any more.
    async fn serve(mut self, mut asked: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = asked.recv().await {
            match command {
                Command::Stop(nodes, hand_over, reply) => {
                    let _gone = reply.send(self.stop(&nodes, hand_over).await);
                }
                Command::StartAgain(node, reply) => {
                    let _gone = reply.send(self.start_again(node).await);
                }
            }
        }
        self.stop_all().await;
    }

    fn endpoints(&self) -> Vec<String> {
        let data = self.settings.values().filter(|settings| settings.data);
        data.map(|settings| settings.address.clone()).collect()
    }

    async fn stop(&mut self, nodes: &[NodeId], hand_over: HandOver) -> Result<(), ClusterError> {
        for node in nodes {
            self.known(*node)?;
            if !self.running.contains_key(node) {
                return Err(ClusterError::Stopped(*node));
            }
        }
        let stopped = nodes.iter().filter_map(|node| self.running.remove(node));
        match hand_over {
            HandOver::Yes => join_all(stopped.map(Running::stop)).await,
            HandOver::No => join_all(stopped.map(Running::stop_without_handover)).await,
        };
        Ok(())
    }

    async fn stop_all(&mut self) {
        let running = std::mem::take(&mut self.running).into_values();
        join_all(running.map(Running::stop_without_handover)).await;
    }

    async fn start_again(&mut self, node: NodeId) -> Result<(), ClusterError> {
        let address = self.known(node)?.address.clone();
        if self.running.contains_key(&node) {
            return Err(ClusterError::Runs(node));
        }
        let listener = bind_again(&address).await;
        let listener = listener.map_err(|source| ClusterError::System {
            what: "bind the node's port again",
            source,
        })?;
        self.run(node, listener).await
    }

    fn known(&self, node: NodeId) -> Result<&Settings, ClusterError> {
        let known = self.settings.get(&node);
        known.ok_or(ClusterError::NoSuchNode(node))
    }

    async fn run(&mut self, node: NodeId, listener: TcpListener) -> Result<(), ClusterError> {
        self.instances += 1;
        let instance = Instance(self.instances);
        let settings = self.known(node)?.clone();
        let not_started = |reason: String| ClusterError::NotStarted { node, reason };
        let made = std::fs::create_dir_all(&settings.data_dir);
        made.map_err(|error| not_started(error.to_string()))?;
        let witness_dir = settings.data_dir.join("witness");
        let running = start(settings, instance, listener, &witness_dir).await;
        let running = running.map_err(|error| not_started(format!("{error:#}")))?;
        self.running.insert(node, running);
        Ok(())
    }
}

async fn bind() -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn bind_again(address: &str) -> std::io::Result<TcpListener> {
    let give_up = Instant::now() + PORT_FREE_WITHIN;
    loop {
        match TcpListener::bind(address).await {
            Err(_) if Instant::now() < give_up => tokio::time::sleep(LOOK_EVERY).await,
            bound => return bound,
        }
    }
}

fn peers_of(shape: Builder) -> Vec<PeerSettings> {
    let peer = |node, data, standby| PeerSettings {
        node: NodeId(node),
        address: String::new(),
        data,
        witness: !data,
        standby,
    };
    let data = (1..=shape.data_nodes).map(|id| peer(id, true, false));
    let all = shape.witnesses + shape.standby_witnesses;
    let witnesses =
        (1..=all).map(|number| peer(WITNESSES_AFTER + number, false, number > shape.witnesses));
    data.chain(witnesses).collect()
}

fn settings(dir: &Path, own: &PeerSettings, all: &[PeerSettings]) -> Settings {
    let others = all.iter().filter(|peer| peer.node != own.node);
    Settings {
        cluster: ClusterId(0x7e57),
        node: own.node,
        address: own.address.clone(),
        zone: None,
        data: own.data,
        witness: own.witness,
        standby: own.standby,
        data_dir: dir.join(format!("node-{}", own.node)),
        peers: others.cloned().collect(),
        engine: Engine::probe(),
        segment_bytes: 2 * MIB,
        unwritten_bytes_max: 256 * MIB,
        scrub_period: None,
        volume: VolumeConfig::default(),
        lease: LeaseConfig::default(),
        fence: None,
        hooks: HookCommands::default(),
        client_bytes_max: 64 * MIB,
        volume_bytes_max: 1 << 40,
        volumes_max: 100,
        keep_cpus_awake: false,
    }
}
