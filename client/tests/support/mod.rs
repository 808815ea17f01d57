//! A scripted cluster in one process: real gRPC on ephemeral ports in front of one in-memory log that stands for what a
//! quorum holds. Nodes misbehave on command; the log never does.

mod services;
mod stream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use mainstay_client::{Client, ClientConfig};
use mainstay_proto::tuning;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::admin_server::AdminServer;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_proto::v1::client_server::ClientServer;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;

/// What the primary does with mutations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Commits and answers.
    Well,
    /// Takes them in, and says and does nothing: frozen, or cut off from its members.
    Silent,
    /// Ends the stream at the next one, before it is in the log; then well again.
    DropsBefore,
    /// Commits the next one and ends the stream without an answer; then well again.
    DropsAfter,
    /// Answers every three mutations in reverse.
    Reverses,
    /// Carries out every `Open`, and answers none.
    OpensUnheard,
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) generation: u64,
    pub(crate) results: BTreeMap<u64, u64>,
}

/// What a quorum holds, and who is who.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) exists: bool,
    pub(crate) block: bool,
    pub(crate) epoch: u64,
    /// Index of the primary; `None`: there is none now.
    pub(crate) primary: Option<usize>,
    pub(crate) moods: Vec<Mood>,
    /// What each node believes: (epoch, primary).
    pub(crate) beliefs: Vec<(u64, Option<usize>)>,
    pub(crate) log: Vec<(u64, u64, Bytes)>,
    pub(crate) image: Vec<u8>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) holder: Option<(u64, String)>,
    pub(crate) mutations_seen: usize,
    pub(crate) opens: Vec<pb::Open>,
    /// Streams opened without a socket.
    pub(crate) local_streams: usize,
    /// What a node's copy does not read back.
    pub(crate) unreadable: Option<(usize, u64)>,
    /// Everything below is trimmed, as far as the nodes know.
    pub(crate) first: u64,
    /// How often any node was asked who is primary.
    pub(crate) questions: usize,
    /// What the last read of what is committed had to include.
    pub(crate) at_least: u64,
    /// Of the history; zero: the nodes do not tell.
    pub(crate) lineage: u64,
}

pub(crate) struct Cluster {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Cluster {
    /// `count` nodes; the first is primary in epoch 1.
    pub(crate) async fn start(count: usize, block: bool) -> Self {
        let world = World {
            exists: true,
            block,
            epoch: 1,
            primary: Some(0),
            moods: vec![Mood::Well; count],
            beliefs: vec![(1, Some(0)); count],
            log: Vec::new(),
            image: vec![0; 1 << 20],
            sessions: BTreeMap::new(),
            holder: None,
            mutations_seen: 0,
            opens: Vec::new(),
            local_streams: 0,
            unreadable: None,
            first: 1,
            questions: 0,
            at_least: 0,
            lineage: 1,
        };
        let world = Arc::new(Mutex::new(world));
        let changed = watch::Sender::new(0);
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(
                tokio::net::TcpListener::bind("127.0.0.1:0")
                    .await
                    .expect("a port"),
            );
        }
        let addresses: Vec<_> = listeners
            .iter()
            .map(|l| l.local_addr().expect("bound"))
            .collect();
        for (me, listener) in listeners.into_iter().enumerate() {
            let node = Node {
                me,
                world: Arc::clone(&world),
                changed: changed.clone(),
                addresses: addresses.clone(),
            };
            let server = tuning::client_server()
                .add_service(ClientServer::new(node.clone()))
                .add_service(AdminServer::new(node));
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        }
        Self {
            world,
            changed,
            addresses,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panicked with it")
    }

    pub(crate) fn config(&self, known: &[usize]) -> ClientConfig {
        let endpoints = known.iter().map(|at| self.addresses[*at].to_string());
        ClientConfig {
            stall_check: Duration::from_millis(60),
            open_deadline: Duration::from_secs(5),
            ..ClientConfig::new(endpoints)
        }
    }

    /// A client that was told of the nodes `known`.
    pub(crate) async fn client(&self, known: &[usize]) -> Client {
        Client::connect(self.config(known))
            .await
            .expect("a node lives")
    }

    /// The client within the process of `node`.
    pub(crate) async fn client_beside(&self, node: usize) -> Client {
        let local = Node {
            me: node,
            world: Arc::clone(&self.world),
            changed: self.changed.clone(),
            addresses: self.addresses.clone(),
        };
        let address = self.addresses[node].to_string();
        Client::connect_beside(self.config(&[node]), address, Arc::new(local))
            .await
            .expect("a node lives")
    }

    /// A new epoch; every node but `deaf` hears of it. Streams of the old primary end if it hears.
    pub(crate) fn promote(&self, to: usize, deaf: Option<usize>) {
        {
            let mut world = self.lock();
            world.epoch += 1;
            world.primary = Some(to);
            let belief = (world.epoch, Some(to));
            for (node, held) in world.beliefs.iter_mut().enumerate() {
                if Some(node) != deaf {
                    *held = belief;
                }
            }
        }
        self.touch();
    }

    /// A forced promotion of `to`, which has the first `kept` entries alone.
    pub(crate) fn force(&self, to: usize, kept: usize) {
        {
            let mut world = self.lock();
            world.log.truncate(kept);
            for session in world.sessions.values_mut() {
                session.results.retain(|_, lsn| *lsn <= kept as u64);
            }
            world.lineage += 1;
        }
        self.promote(to, None);
    }

    /// The volume is deleted, and another one made under its name.
    pub(crate) fn create_anew(&self, primary: usize) {
        {
            let mut world = self.lock();
            world.sessions.clear();
            world.holder = None;
            world.image.fill(0);
        }
        self.force(primary, 0);
    }

    /// Nobody is primary: streams end, and nobody knows where to go.
    pub(crate) fn depose(&self) {
        {
            let mut world = self.lock();
            world.epoch += 1;
            world.primary = None;
            let epoch = world.epoch;
            world
                .beliefs
                .iter_mut()
                .for_each(|held| *held = (epoch, None));
        }
        self.touch();
    }

    /// Every node takes `node` for the primary, and it takes nothing in: it has not heard of the newest epoch. Returns how many streams
    /// were opened before.
    pub(crate) fn mislead(&self, node: usize) -> usize {
        let opens_before = {
            let mut world = self.lock();
            let belief = (world.epoch + 1, Some(node));
            world.epoch += 2;
            world.primary = None;
            world.beliefs.iter_mut().for_each(|held| *held = belief);
            world.opens.len()
        };
        self.touch();
        opens_before
    }

    pub(crate) fn mood(&self, node: usize, mood: Mood) {
        self.lock().moods[node] = mood;
    }

    pub(crate) fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until `condition` holds of the world.
    pub(crate) async fn until(&self, condition: impl Fn(&World) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !condition(&self.lock()) {
                changed.changed().await.expect("the cluster lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("in time");
    }

    /// The records in the log, as text.
    pub(crate) fn records(&self) -> Vec<String> {
        let text = |(_, _, data): &(u64, u64, Bytes)| String::from_utf8_lossy(data).into_owned();
        self.lock().log.iter().map(text).collect()
    }
}

#[derive(Debug, Clone)]
struct Node {
    me: usize,
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    addresses: Vec<SocketAddr>,
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panicked with it")
    }

    fn not_primary(&self) -> Reply {
        let (epoch, primary) = self.lock().beliefs[self.me];
        Reply::NotPrimary(pb::NotPrimary {
            primary: primary.map(|at| at as u32),
            address: primary.map_or_else(String::new, |at| self.addresses[at].to_string()),
            epoch,
        })
    }
}
