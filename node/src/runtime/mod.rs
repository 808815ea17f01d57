//! The node at run time: threads, tasks and the messages between them. No decision about epochs, quorums or leases is
//! taken here; those are the core's.
//!
//! * a task for each volume ([`actor`]), beside those that bring it messages;
//! * one thread for the files of each volume (`disk_thread`), its log among them; without io_uring the log has a thread of its own
//!   ([`wal_thread`]);
//! * one thread for the witness ([`witness`]), if the node is one;
//! * tasks for the links to the other nodes ([`peers`]), the heartbeats ([`beats`]) and the clients.

pub mod actor;
pub mod admin_ops;
pub mod admin_service;
pub mod awake;
pub mod beats;
mod checkpoint_pace;
mod client_ops;
mod client_replies;
pub mod client_service;
pub mod clock;
mod committed_reads;
pub mod copies;
mod disk_thread;
pub mod event_file;
pub mod events;
mod external_fence;
pub mod forced;
pub mod handle;
pub mod hooks;
mod incoming;
mod introspection;
pub mod link_service;
pub mod operator_command;
pub mod peers;
pub mod places;
mod precise;
pub mod repair;
pub mod report;
pub mod rounds;
pub mod serve;
mod silence;
pub mod status;
pub mod store_marks;
mod tree_thread;
pub mod volumes;
mod wal_recycler;
pub mod wal_thread;
pub mod witness;
pub mod witness_sets;
pub mod witness_store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_replication::message::{
    MemberEnvelope, MemberMessage, Message, RegisterMessage, WitnessMessage,
};
use mainstay_replication::{LeaseConfig, Role, WitnessInput, WitnessSet};
use mainstay_storage::engine::Engine;
use mainstay_types::{
    ClusterId, Incarnation, Instance, MonoTime, NodeId, PrimaryId, Register, VolumeId, VolumeKind,
    VolumeName, Zone,
};
use mainstay_volume::store::CopyConfig;
use mainstay_volume::{Event, VolumeConfig};
use tokio::sync::{mpsc, watch};

use awake::Awake;
use beats::BeatsHandle;
use copies::Copies;
use events::{EventKind, EventLog};
use forced::Forced;
use handle::VolumeHandle;
use hooks::{HookCommands, Hooks};
use operator_command::OperatorCommand;
use peers::Peers;
use rounds::Rounds;
use store_marks::{MarkError, NodeMarks, StoreMarks};
use witness_sets::WitnessSets;

use crate::wire;

/// Another node.
#[derive(Debug, Clone)]
pub struct PeerSettings {
    /// Its number.
    pub node: NodeId,
    /// `host:port` of its gRPC.
    pub address: String,
    /// It holds data.
    pub data: bool,
    /// It is a witness, or waits to become one.
    pub witness: bool,
    /// It is not one of the first witnesses.
    pub standby: bool,
}

impl PeerSettings {
    /// It is one of the first witnesses.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.witness && !self.standby
    }
}

/// What the configuration says, in the terms of this module.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// `host:port` under which others reach this node.
    pub address: String,
    /// Where this node stands, if that was configured.
    pub zone: Option<Zone>,
    /// This node holds data.
    pub data: bool,
    /// This node is a witness, or waits to become one.
    pub witness: bool,
    /// It is not one of the first witnesses.
    pub standby: bool,
    /// Where data is kept.
    pub data_dir: PathBuf,
    /// The other nodes.
    pub peers: Vec<PeerSettings>,
    /// The I/O engine.
    pub engine: Engine,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// Changes of all block volumes together that may be held in memory until a checkpoint writes them to the images.
    pub unwritten_bytes_max: u64,
    /// In what time the scrub looks at all of a block volume once; none for never.
    pub scrub_period: Option<Duration>,
    /// Bounds of volumes.
    pub volume: VolumeConfig,
    /// Leases.
    pub lease: LeaseConfig,
    /// The external fence, on a witness that has one; `lease` says how long it may run, too.
    pub fence: Option<OperatorCommand>,
    /// What is run when a volume here becomes primary and when it ceases to be; `volume` says whether it waits for that.
    pub hooks: HookCommands,
    /// Unanswered payload of one client connection: of writes, and of what reads of a block volume asked for.
    pub client_bytes_max: u64,
    /// Greatest block volume.
    pub volume_bytes_max: u64,
    /// Copies that this node may hold.
    pub volumes_max: usize,
    /// Idle processors of the machine are kept awake while operations are under way.
    pub keep_cpus_awake: bool,
}

impl Settings {
    /// All data nodes, by number.
    #[must_use]
    pub fn data_nodes(&self) -> Vec<NodeId> {
        let others = self.peers.iter().filter(|peer| peer.data);
        let others = others.map(|peer| peer.node);
        let own = self.data.then_some(self.node);
        let mut nodes: Vec<NodeId> = others.chain(own).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Where a node is reached.
    #[must_use]
    pub fn address_of(&self, node: NodeId) -> Option<&str> {
        if node == self.node {
            return Some(&self.address);
        }
        self.peers
            .iter()
            .find(|peer| peer.node == node)
            .map(|peer| peer.address.as_str())
    }
}

/// One running node.
#[derive(Debug)]
pub struct Node {
    /// The configuration.
    pub settings: Settings,
    /// Where the volumes' tasks run, and what is started for them.
    pub handle: tokio::runtime::Handle,
    /// This process.
    pub instance: Instance,
    /// When it started.
    pub started: MonoTime,
    /// Links to the others.
    pub peers: Peers,
    /// The heartbeats.
    pub beats: BeatsHandle,
    /// Register rounds of operators' requests.
    pub rounds: Rounds,
    /// What happened.
    pub events: EventLog,
    /// Full copies for learners.
    pub copies: Copies,
    /// Forced promotions that the witness here is at.
    pub forced: Forced,
    /// Who the witnesses are.
    pub witness_sets: WitnessSets,
    /// Hooks that run.
    pub hooks: Hooks,
    /// The machine's processors.
    pub awake: Awake,
    /// A stop was asked for.
    pub stopping: watch::Sender<bool>,
    /// Everything that others wait for is done.
    pub stopped: watch::Sender<bool>,
    volumes: RwLock<BTreeMap<VolumeId, VolumeHandle>>,
    /// Held while a volume is created through this node.
    creating: tokio::sync::Mutex<()>,
    /// The copies in the data directory are not all open: not yet, or not any more.
    incomplete: std::sync::atomic::AtomicBool,
    /// Copies being opened or formatted at this moment.
    opening: Mutex<std::collections::BTreeSet<VolumeId>>,
    registers: Mutex<BTreeMap<VolumeId, Register>>,
    /// Until when this node's witness replaces nobody on suspicion.
    held_down: Mutex<BTreeMap<VolumeId, MonoTime>>,
    witness: Option<mpsc::UnboundedSender<WitnessInput>>,
    /// What this node keeps its promises in.
    own_stores: NodeMarks,
    /// What the others keep theirs in.
    stores: StoreMarks,
    /// Nodes that were refused for their stores, and of which that was said.
    forgetful: Mutex<std::collections::BTreeSet<NodeId>>,
    heard: Mutex<Vec<(NodeId, Option<Duration>)>>,
    next_conn: AtomicU64,
}

impl Node {
    /// A node that hosts nothing yet; made inside the runtime that carries its tasks. `witness` takes what is meant for the witness, if the node is one.
    #[must_use]
    pub fn new(
        settings: Settings,
        instance: Instance,
        beats: BeatsHandle,
        witness: Option<mpsc::UnboundedSender<WitnessInput>>,
        own_stores: NodeMarks,
        stores: StoreMarks,
        witnesses: WitnessSet,
    ) -> Arc<Self> {
        Arc::new(Self {
            peers: Peers::new(&settings.peers),
            handle: tokio::runtime::Handle::current(),
            instance,
            started: clock::mono(),
            beats,
            rounds: Rounds::default(),
            events: EventLog::open(settings.node, &settings.data_dir),
            copies: Copies::default(),
            forced: Forced::default(),
            witness_sets: WitnessSets::new(&settings.data_dir, witnesses),
            hooks: Hooks::default(),
            awake: if settings.keep_cpus_awake {
                Awake::of_machine()
            } else {
                Awake::off()
            },
            stopping: watch::channel(false).0,
            stopped: watch::channel(false).0,
            volumes: RwLock::default(),
            creating: tokio::sync::Mutex::new(()),
            incomplete: std::sync::atomic::AtomicBool::new(true),
            opening: Mutex::default(),
            registers: Mutex::default(),
            held_down: Mutex::default(),
            witness,
            own_stores,
            stores,
            forgetful: Mutex::default(),
            heard: Mutex::default(),
            next_conn: AtomicU64::new(1),
            settings,
        })
    }

    /// How copies are laid out here.
    #[must_use]
    pub fn copy_config(&self) -> CopyConfig {
        CopyConfig {
            cluster: self.settings.cluster,
            node: self.settings.node,
            segment_bytes: self.settings.segment_bytes,
        }
    }

    /// A random number that is not zero.
    #[must_use]
    pub fn random(&self) -> u64 {
        rand::random_range(1..=u64::MAX)
    }

    /// A name for one more client connection.
    pub fn new_conn(&self) -> mainstay_volume::ConnId {
        self.next_conn.fetch_add(1, Ordering::Relaxed)
    }

    /// The first frame of this node on a link.
    #[must_use]
    pub fn hello(&self) -> pb::Frame {
        let settings = &self.settings;
        // One that waits to become a witness has promised nothing yet.
        let votes = self.witnesses().contains(settings.node);
        let stores = NodeMarks {
            witness: self.own_stores.witness.filter(|_| votes),
            ..self.own_stores
        };
        wire::hello(settings.cluster, settings.node, self.instance, stores)
    }

    /// Whether the node at the other end of a link still has what it kept its promises in.
    ///
    /// # Errors
    /// It does not, or nobody could tell later: the link must not be used.
    pub async fn check_stores(self: &Arc<Self>, peer: &wire::Peer) -> Result<(), MarkError> {
        let (this, node, stores) = (self.clone(), peer.node, peer.stores);
        let voter = self.witnesses().store_of(node);
        let check = move || this.stores.check(node, stores, voter);
        let checked = tokio::task::spawn_blocking(check).await;
        // What was not judged is not trusted.
        let checked = checked.unwrap_or_else(|error| {
            Err(MarkError::File {
                path: "the stores of others".to_owned(),
                why: error.to_string(),
            })
        });
        // What could not be kept here says nothing of the other one, and must not hide an alarm about it later.
        if let Err(error) = &checked
            && !matches!(error, MarkError::File { .. })
        {
            let mut said = self
                .forgetful
                .lock()
                .expect("no panic while the lock is held");
            if said.insert(node) {
                let event = events::warning(EventKind::DamageFound, error.to_string());
                self.events.add(events::Event {
                    severity: events::Severity::Alarm,
                    ..event
                });
            }
        }
        checked
    }

    /// Sends to a node, this one included.
    pub fn send(self: &Arc<Self>, to: NodeId, message: Message, batch: Bytes) {
        if to == self.settings.node {
            self.deliver(to, message, batch);
        } else {
            self.peers.send(to, &message, batch);
        }
    }

    /// Takes a message that has arrived. Never blocks.
    pub fn deliver(self: &Arc<Self>, from: NodeId, message: Message, batch: Bytes) {
        match message {
            Message::Member(envelope) => self.deliver_member(from, *envelope, batch),
            Message::Register { volume, body } => match &body {
                RegisterMessage::Prepare { .. } | RegisterMessage::Accept { .. } => {
                    self.to_witness(from, Message::Register { volume, body });
                }
                // An answer belongs to whoever proposed: the ballot in it says who, and the others ignore it.
                _ => {
                    self.rounds.answer(from, volume, &body);
                    if let Some(handle) = self.volume(volume) {
                        handle.tell(Event::Register {
                            from,
                            body: body.clone(),
                        });
                    }
                    self.to_witness(from, Message::Register { volume, body });
                }
            },
            Message::Witness(WitnessMessage::Granted(granted)) => self.beats.granted(from, granted),
            Message::Witness(body @ (WitnessMessage::Set(_) | WitnessMessage::SetStep(_))) => {
                self.hear_of_witnesses(from, body);
            }
            Message::Witness(body) => self.to_witness(from, Message::Witness(body)),
        }
    }

    /// Asks this node's witness for something of its own.
    fn ask_witness(&self, input: WitnessInput) {
        if let Some(witness) = &self.witness {
            let _stopped = witness.send(input);
        }
    }

    fn to_witness(&self, from: NodeId, message: Message) {
        self.ask_witness(WitnessInput::Message { from, message });
    }

    fn deliver_member(self: &Arc<Self>, from: NodeId, envelope: MemberEnvelope, batch: Bytes) {
        if envelope.from.node != from {
            return tracing::warn!(%from, claims = %envelope.from.node, "ignored a message under another node's name");
        }
        if matches!(
            envelope.body,
            MemberMessage::Sealed(_) | MemberMessage::SealRefused { .. }
        ) {
            return self.to_witness(from, Message::Member(Box::new(envelope)));
        }
        if let MemberMessage::Decided(register) = &envelope.body {
            self.learn((**register).clone());
        }
        let hosted = self
            .volume(envelope.volume)
            .filter(|handle| handle.lineage == envelope.lineage);
        match (hosted, &envelope.body) {
            (Some(handle), _) => handle.tell(Event::Peer { envelope, batch }),
            (None, MemberMessage::Append(_)) => self.say_no_copy(from, &envelope),
            _ => {}
        }
    }

    /// Tells a primary that this node holds no copy of its volume, unless one is just being opened.
    fn say_no_copy(self: &Arc<Self>, to: NodeId, about: &MemberEnvelope) {
        let incomplete = self.incomplete.load(Ordering::Acquire);
        if !self.settings.data || incomplete || self.is_opening(about.volume) {
            return;
        }
        let me = PrimaryId {
            node: self.settings.node,
            incarnation: Incarnation(0),
            instance: self.instance,
        };
        let envelope = MemberEnvelope {
            volume: about.volume,
            lineage: about.lineage,
            from: me,
            body: MemberMessage::NoCopy,
        };
        self.send(to, Message::Member(Box::new(envelope)), Bytes::new());
    }

    /// Tells every volume, and the status page, that a link came up or broke.
    pub fn link_changed(&self, node: NodeId, up: bool) {
        for handle in self.volumes() {
            handle.tell(if up {
                Event::LinkUp { node }
            } else {
                Event::LinkLost { node }
            });
        }
    }

    /// The volume hosted here under this id.
    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<VolumeHandle> {
        self.volumes
            .read()
            .expect("no panic while the lock is held")
            .get(&volume)
            .cloned()
    }

    /// Every volume hosted here.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeHandle> {
        self.volumes
            .read()
            .expect("no panic while the lock is held")
            .values()
            .cloned()
            .collect()
    }

    /// What a block volume may hold in memory, or write to its log, until its next checkpoint begins.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        let volumes = self
            .volumes
            .read()
            .expect("no panic while the lock is held");
        let block = |volume: &&VolumeHandle| volume.spec.kind != VolumeKind::Log;
        let volumes = volumes.values().filter(block).count() as u64;
        checkpoint_pace::share(
            self.settings.volume.checkpoint_bytes,
            self.settings.unwritten_bytes_max,
            volumes,
        )
    }

    /// The newest decided register value that this node has seen.
    #[must_use]
    pub fn register(&self, volume: VolumeId) -> Option<Register> {
        self.registers
            .lock()
            .expect("no panic while the lock is held")
            .get(&volume)
            .cloned()
    }

    /// Every newest decided register value that this node has seen.
    #[must_use]
    pub fn registers(&self) -> Vec<Register> {
        self.registers
            .lock()
            .expect("no panic while the lock is held")
            .values()
            .cloned()
            .collect()
    }

    /// Keeps a decided register value, and makes or drops this node's copy as it says.
    pub fn learn(self: &Arc<Self>, register: Register) {
        let volume = register.spec.name.id();
        {
            let mut known = self
                .registers
                .lock()
                .expect("no panic while the lock is held");
            if let Some(before) = known.get(&volume)
                && (before.epoch, before.version) >= (register.epoch, register.version)
            {
                // Both rise in a new lineage, too: a late message of the one before brings nothing back.
                return;
            }
            self.events.learned(self, known.get(&volume), &register);
            known.insert(volume, register.clone());
        }
        volumes::reconcile(self, register);
    }

    /// This node's witness replaces nobody on suspicion before `until`.
    fn held_down(&self, volume: VolumeId, until: MonoTime) {
        self.held_down
            .lock()
            .expect("no panic while the lock is held")
            .insert(volume, until);
    }

    /// How long the next promotion on suspicion waits, as this node's witness sees it.
    #[must_use]
    pub fn hold_down(&self, volume: VolumeId) -> Duration {
        let held = self
            .held_down
            .lock()
            .expect("no panic while the lock is held");
        held.get(&volume)
            .map_or(Duration::ZERO, |until| until.since(clock::mono()))
    }

    /// How long ago each witness answered a beat.
    pub fn witnesses_heard(&self, heard: Vec<(NodeId, Option<Duration>)>) {
        *self.heard.lock().expect("no panic while the lock is held") = heard;
    }

    /// See [`Node::witnesses_heard`].
    #[must_use]
    pub fn heard(&self) -> Vec<(NodeId, Option<Duration>)> {
        self.heard
            .lock()
            .expect("no panic while the lock is held")
            .clone()
    }

    /// A volume here changed its role.
    pub fn role_changed(&self, volume: &VolumeName, role: Role) {
        self.events.role(self, volume, role);
    }

    /// Ends when a stop was asked for.
    pub async fn until_stopping(&self) {
        let mut stop = self.stopping.subscribe();
        let _dropped = stop.wait_for(|stopping| *stopping).await.map(|_| ());
    }

    /// Ends when everything that others wait for is done.
    pub async fn until_stopped(&self) {
        let mut stop = self.stopped.subscribe();
        let _dropped = stop.wait_for(|stopped| *stopped).await.map(|_| ());
    }

    /// Every copy of the data directory is open: what is not here now does not exist here.
    fn started(&self) {
        self.incomplete.store(false, Ordering::Release);
    }

    /// Copies are being closed: one that does not answer any more is still there.
    fn closing(&self) {
        self.incomplete.store(true, Ordering::Release);
    }

    fn is_opening(&self, volume: VolumeId) -> bool {
        self.opening
            .lock()
            .expect("no panic while the lock is held")
            .contains(&volume)
    }
}
