//! The sections of the file, with their defaults. Every default is documented in `docs/operations.md`.

use std::path::PathBuf;

use mainstay_types::{NodeId, Zone};
use serde::{Deserialize, Serialize};

use super::{HostPort, ListenAddr, NbdTlsSection};

/// What a node does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Holds volumes.
    Data,
    /// Votes on configuration, from the cluster's first start on.
    Witness,
    /// Waits until it is made a witness of a running cluster (`mainstay witness add`), then votes like any other.
    #[serde(rename = "standby-witness")]
    StandbyWitness,
}

/// `[node]`: this node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Its number, from 1; also the number of its entry in `[[peers]]`.
    pub id: NodeId,
    /// For people; `node-ID` when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// What it does.
    pub roles: Vec<Role>,
    /// Everything it keeps. Used by one node only.
    pub data_dir: PathBuf,
    /// Where its witness keeps its votes; `witness` in the data directory when absent.
    #[serde(default)]
    pub witness_dir: Option<PathBuf>,
    /// Listener for nodes and clients.
    pub grpc: ListenAddr,
    /// Listener for NBD clients; none when absent.
    #[serde(default)]
    pub nbd: Option<ListenAddr>,
    /// Listener for health and metrics.
    pub http: ListenAddr,
    /// Host by which others reach this node, without a port; that of its own peer entry when absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The room, rack or site where it stands.
    #[serde(default)]
    pub zone: Option<Zone>,
    /// Keep idle processors of the machine from sleeping while operations are under way.
    #[serde(default = "yes")]
    pub keep_cpus_awake: bool,
}

fn yes() -> bool {
    true
}

/// `[[peers]]`: one node of the cluster, as others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// What it does.
    pub roles: Vec<Role>,
    /// Where nodes and clients reach it.
    pub grpc: HostPort,
    /// Where NBD clients reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<HostPort>,
    /// Where health and metrics are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HostPort>,
}

impl Peer {
    /// Whether it votes, or may one day.
    #[must_use]
    pub fn has_witness(&self) -> bool {
        let witness = |role: &Role| matches!(role, Role::Witness | Role::StandbyWitness);
        self.roles.iter().any(witness)
    }
}

/// `[lease]`: failure detection. The same on every node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaseSection {
    /// How long a witness's grant runs.
    pub lease_ms: u64,
    /// The longest lease this cluster ever ran with: what a restarted witness waits out. `lease_ms` when absent.
    pub lease_longest_ms: Option<u64>,
    /// Time between two beats of a data node to each witness.
    pub beat_ms: u64,
    /// Bound on how far one clock's rate is off, in parts per million.
    pub rate_error_ppm: u32,
    /// A commit path overdue by this much costs the lease, if other members could do better.
    pub unwell_after_ms: u64,
    /// A witness starts a promotion this much later than the one ranked before it.
    pub stagger_ms: u64,
    /// How long a promotion waits for answers that it could do without.
    pub grace_ms: u64,
    /// What got no answer is asked again after this long.
    pub retry_ms: u64,
    /// An attempt at a promotion that has not ended by then starts over.
    pub attempt_ms: u64,
    /// From the fourth promotion on suspicion within a minute on, the next one waits so long; twice as long each time.
    pub hold_down_ms: u64,
    /// No such wait is longer.
    pub hold_down_longest_ms: u64,
}

impl Default for LeaseSection {
    fn default() -> Self {
        Self {
            lease_ms: 800,
            lease_longest_ms: None,
            beat_ms: 100,
            rate_error_ppm: 10_000,
            unwell_after_ms: 1_000,
            stagger_ms: 150,
            grace_ms: 40,
            retry_ms: 50,
            attempt_ms: 1_500,
            hold_down_ms: 1_000,
            hold_down_longest_ms: 30_000,
        }
    }
}

/// `[fence]`: the external fence. The same on every witness.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceSection {
    /// The program, as an absolute path, and its arguments.
    pub command: Vec<String>,
    /// It is killed then, and counts as failed.
    #[serde(default = "fence_timeout_ms")]
    pub timeout_ms: u64,
}

fn fence_timeout_ms() -> u64 {
    10_000
}

/// `[hooks]`: commands of a data node; the program of each as an absolute path, and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HooksSection {
    /// Run before a new primary on this node serves.
    pub promoted: Option<Vec<String>>,
    /// Run after a primary on this node stopped serving.
    pub demoted: Option<Vec<String>>,
    /// Each is killed then, and counts as failed.
    pub timeout_ms: u64,
}

impl Default for HooksSection {
    fn default() -> Self {
        Self {
            promoted: None,
            demoted: None,
            timeout_ms: 5_000,
        }
    }
}

/// `[replication]`: between members of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationSection {
    /// A primary with nothing to send sends an empty append this often.
    pub heartbeat_ms: u64,
    /// The commit point travels alone after this long, if no entry carried it.
    pub commit_delay_ms: u64,
    /// Entries not answered for this long are sent again.
    pub retransmit_ms: u64,
    /// A member silent for this long is dropped from the register.
    pub drop_after_ms: u64,
    /// Bytes sent to one copy ahead of its answers.
    pub in_flight_mib_max: u64,
    /// A planned switchover that has not drained by then is called off.
    pub handover_timeout_ms: u64,
    /// A register round without a result starts over after this long.
    pub round_retry_ms: u64,
    /// Reads wait until a quorum has confirmed that there is no newer primary, whatever lease is held.
    pub confirm_reads: bool,
}

impl Default for ReplicationSection {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            commit_delay_ms: 5,
            retransmit_ms: 300,
            drop_after_ms: 3_000,
            in_flight_mib_max: 8,
            handover_timeout_ms: 3_000,
            round_retry_ms: 100,
            confirm_reads: false,
        }
    }
}

/// How files are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// io_uring where the system allows it, else plain calls.
    Auto,
    /// io_uring; refuse to start without it.
    Uring,
    /// Plain system calls.
    Threads,
}

/// `[storage]`: the data directory and how it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSection {
    /// How files are written.
    pub engine: EngineChoice,
    /// Size of a WAL segment.
    pub segment_mib: u64,
    /// A checkpoint starts when the WAL behind it has grown by this much.
    pub checkpoint_wal_mib: u64,
    /// Changes of all block volumes together that are held in memory until a checkpoint writes them to the images.
    pub unwritten_mib_max: u64,
    /// In what time the scrub reads all of a block volume once, to find what no longer reads back while other copies have it; zero for never.
    pub scrub_period_s: u64,
}

impl Default for StorageSection {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            segment_mib: 16,
            // The longer between two, the more changes of one block become one write, and the more neighbours are written together.
            checkpoint_wal_mib: 256,
            unwritten_mib_max: 1_024,
            scrub_period_s: 14 * 24 * 3_600,
        }
    }
}

/// `[limits]`: what clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Largest record of a log and largest atomic batch, inclusive.
    pub record_bytes_max: u64,
    /// Bytes of writes and of reads of a block volume, together, that one client may have unanswered.
    pub client_bytes_max: u64,
    /// Volumes of this node.
    pub volumes_max: u32,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            record_bytes_max: 16 << 20,
            client_bytes_max: 32 << 20,
            volumes_max: 1_024,
        }
    }
}

/// `[nbd]`: the NBD server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdSection {
    /// Largest payload of one request.
    pub request_mib_max: u32,
    /// Requests of one connection that are answered at the same time.
    pub connection_requests_max: u32,
    /// Payload of one connection in memory.
    pub connection_mib_max: u32,
    /// Payload of all connections in memory.
    pub server_mib_max: u32,
    /// Connections.
    pub connections_max: u32,
    /// Connections of one address.
    pub peer_connections_max: u32,
    /// Time for a handshake.
    pub handshake_timeout_ms: u64,
    /// How long a request waits for a primary during a failover before it is answered with an error.
    pub park_timeout_ms: u64,
    /// TLS; none when absent.
    pub tls: Option<NbdTlsSection>,
}

impl Default for NbdSection {
    fn default() -> Self {
        Self {
            request_mib_max: 32,
            connection_requests_max: 256,
            connection_mib_max: 64,
            server_mib_max: 512,
            connections_max: 2_048,
            peer_connections_max: 1_024,
            handshake_timeout_ms: 10_000,
            park_timeout_ms: 60_000,
            tls: None,
        }
    }
}

/// `[log]`: what is logged, to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,mainstay_nbd=debug`.
    /// The variable `RUST_LOG` overrides it.
    pub level: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
        }
    }
}
