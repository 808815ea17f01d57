//! A whole cluster in this process: real sockets, real files, ports of its own, a directory that goes away with it.
//!
//! Nodes 1 to n hold data, nodes 101 and up are witnesses. Each listener is bound before any node starts, so that every node
//! knows every port.

#![allow(dead_code, reason = "each test program uses another part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mainstay_client::Admin;
use mainstay_client::report::VolumeHealth;
use mainstay_node::runtime::hooks::HookCommands;
use mainstay_node::runtime::serve::{Running, start};
use mainstay_node::runtime::{Node, PeerSettings, Settings};
use mainstay_replication::LeaseConfig;
use mainstay_storage::engine::Engine;
use mainstay_types::{ClusterId, Instance, NodeId};
use mainstay_volume::VolumeConfig;
use tokio::net::TcpListener;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running cluster.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    nodes: BTreeMap<NodeId, Running>,
    settings: BTreeMap<NodeId, Settings>,
    instances: u64,
}

impl Cluster {
    /// Three data nodes and three witnesses.
    pub(crate) async fn start() -> Self {
        Self::of(3, 3).await
    }

    pub(crate) async fn of(data: u32, witnesses: u32) -> Self {
        Self::with(data, witnesses, VolumeConfig::default()).await
    }

    /// With other bounds of volumes.
    pub(crate) async fn with(data: u32, witnesses: u32, volume: VolumeConfig) -> Self {
        Self::tuned(data, witnesses, |settings| settings.volume = volume.clone()).await
    }

    /// With other settings of every node.
    pub(crate) async fn tuned(data: u32, witnesses: u32, tune: impl Fn(&mut Settings)) -> Self {
        Self::shaped(data, witnesses, 0, tune).await
    }

    /// With witnesses that wait to become some, behind the others.
    pub(crate) async fn with_standby(data: u32, witnesses: u32, standby: u32) -> Self {
        Self::shaped(data, witnesses, standby, |_| {}).await
    }

    async fn shaped(data: u32, witnesses: u32, standby: u32, tune: impl Fn(&mut Settings)) -> Self {
        // `RUST_LOG=debug` shows what every node does.
        let _earlier = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_ansi(false)
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().expect("a directory");
        let ids = (1..=data).map(|id| (NodeId(id), true));
        let ids = ids.chain((1..=witnesses + standby).map(|id| (NodeId(100 + id), false)));
        let mut listeners = Vec::new();
        let mut peers = Vec::new();
        for (node, data) in ids {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound").to_string();
            listeners.push((node, listener));
            peers.push(PeerSettings {
                node,
                address,
                data,
                witness: !data,
                standby: node.0 > 100 + witnesses,
            });
        }
        let mut cluster = Self {
            settings: peers
                .iter()
                .map(|peer| {
                    let mut settings = settings(&dir.path().join("nodes"), peer, &peers);
                    tune(&mut settings);
                    (peer.node, settings)
                })
                .collect(),
            dir,
            nodes: BTreeMap::new(),
            instances: 0,
        };
        for (node, listener) in listeners {
            cluster.run(node, listener).await;
        }
        cluster
    }

    /// A node that runs.
    pub(crate) fn node(&self, node: NodeId) -> &Arc<Node> {
        &self.nodes[&node].node
    }

    /// gRPC addresses of the data nodes.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let data = self.settings.values().filter(|settings| settings.data);
        data.map(|settings| settings.address.clone()).collect()
    }

    /// A directory for the test's own files.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = self.dir.path().join("scratch");
        std::fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// Stops a node cleanly.
    pub(crate) async fn stop(&mut self, node: NodeId) {
        self.nodes.remove(&node).expect("it runs").stop().await;
    }

    /// Ends a node that hands nothing over, as if it had died: the others find out by themselves.
    pub(crate) async fn kill(&mut self, node: NodeId) {
        let running = self.nodes.remove(&node).expect("it runs");
        running.stop_without_handover().await;
    }

    /// Stops nodes at the same time: none of them can hand over to another.
    pub(crate) async fn stop_together(&mut self, nodes: &[NodeId]) {
        let stops = nodes.iter().map(|node| self.nodes.remove(node));
        let stops: Vec<Running> = stops.map(|running| running.expect("it runs")).collect();
        futures_util::future::join_all(stops.into_iter().map(Running::stop)).await;
    }

    /// Copies that a node has set aside.
    pub(crate) fn set_aside(&self, node: NodeId) -> Vec<PathBuf> {
        let dir = self.settings[&node].data_dir.join("volumes");
        let found = std::fs::read_dir(dir).expect("listed");
        let paths = found.map(|entry| entry.expect("an entry").path());
        paths
            .filter(|path| path.to_string_lossy().contains(".aside-"))
            .collect()
    }

    /// Where a node keeps everything.
    pub(crate) fn data_dir(&self, node: NodeId) -> PathBuf {
        self.settings[&node].data_dir.clone()
    }

    /// Removes everything that a stopped node kept.
    pub(crate) fn wipe(&self, node: NodeId) {
        let dir = &self.settings[&node].data_dir;
        std::fs::remove_dir_all(dir).expect("removed");
        std::fs::create_dir_all(dir).expect("made");
    }

    /// Removes what a stopped witness votes from, and nothing else.
    pub(crate) fn wipe_votes(&self, node: NodeId) {
        let dir = self.settings[&node].data_dir.join("witness");
        std::fs::remove_dir_all(dir).expect("removed");
    }

    /// Gives a stopped node the role of a witness that waits to become one.
    pub(crate) fn make_standby(&mut self, node: NodeId) {
        self.settings.get_mut(&node).expect("known").standby = true;
    }

    /// Copies everything that a stopped node keeps to `to`.
    pub(crate) fn save(&self, node: NodeId, to: &std::path::Path) {
        copy_tree(&self.settings[&node].data_dir, to);
    }

    /// Gives a stopped node back what it kept when it was saved.
    pub(crate) fn put_back(&self, node: NodeId, from: &std::path::Path) {
        self.wipe(node);
        copy_tree(from, &self.settings[&node].data_dir);
    }

    /// Starts a stopped node again, on its port and its data.
    pub(crate) async fn restart(&mut self, node: NodeId) {
        let address: SocketAddr = self.settings[&node].address.parse().expect("an address");
        let give_up = tokio::time::Instant::now() + PATIENCE;
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(tokio::time::Instant::now() < give_up, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.run(node, listener).await;
    }

    /// Stops all nodes.
    pub(crate) async fn shut_down(mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        futures_util::future::join_all(nodes.into_values().map(Running::stop)).await;
    }

    async fn run(&mut self, node: NodeId, listener: TcpListener) {
        self.instances += 1;
        let settings = self.settings[&node].clone();
        let witness_dir = settings.data_dir.join("witness");
        let instance = Instance(self.instances);
        let running = start(settings, instance, listener, &witness_dir).await;
        self.nodes.insert(node, running.expect("started"));
    }
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Waits until `volume` is served, and all of its `members` copies are there, are members and hold everything.
pub(crate) async fn healed(admin: &Admin, volume: &str, members: usize) {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = admin.show_volume(volume).await.expect("shown");
        let whole = found.authoritative && found.members.len() == members && found.lease_held;
        // For a moment a node that went away still counts as well: what it misses tells.
        let level = found.members.iter().all(|member| member.lag_entries == 0);
        if whole && level && found.health == VolumeHealth::Ok {
            return;
        }
        assert!(
            tokio::time::Instant::now() < give_up,
            "not healed: {found:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn settings(dir: &std::path::Path, own: &PeerSettings, all: &[PeerSettings]) -> Settings {
    let data_dir = dir.join(own.node.to_string());
    std::fs::create_dir_all(&data_dir).expect("a directory");
    Settings {
        cluster: ClusterId(0x7e57),
        node: own.node,
        address: own.address.clone(),
        zone: None,
        data: own.data,
        witness: own.witness,
        standby: own.standby,
        data_dir,
        peers: all
            .iter()
            .filter(|peer| peer.node != own.node)
            .cloned()
            .collect(),
        engine: Engine::probe(),
        segment_bytes: 2 << 20,
        unwritten_bytes_max: 1 << 30,
        scrub_period: None,
        volume: VolumeConfig::default(),
        lease: LeaseConfig::default(),
        fence: None,
        hooks: HookCommands::default(),
        client_bytes_max: 64 << 20,
        volume_bytes_max: 1 << 40,
        volumes_max: 100,
        keep_cpus_awake: false,
    }
}
