//! What a well-formed file can still get wrong.
//!
//! Each check is a leaf that looks at one thing and adds to the list; none stops another.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mainstay_types::{NodeId, VolumeName};
use tracing_subscriber::EnvFilter;

use super::spans::{Spans, Step, dotted};
use super::{Config, Mistake, Peer, Role, tls};

use Step::{Index, Key};

/// Everything that is wrong with `config`, in the order of the file's sections.
pub(super) fn mistakes(config: &Config, spans: &Spans<'_>) -> Vec<Mistake> {
    let mut checker = Checker {
        config,
        spans,
        found: Vec::new(),
    };
    checker.cluster();
    checker.node();
    checker.listeners();
    checker.directories();
    checker.peers();
    checker.peer_addresses();
    checker.own_entry();
    checker.witnesses();
    checker.lease();
    checker.fence();
    checker.hooks();
    checker.replication();
    checker.sizes();
    checker.nbd();
    checker.nbd_tls();
    checker.log();
    checker.found
}

/// What is allowed but unwise.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut out = Vec::new();
    let lease = &config.lease;
    if lease.lease_ms > LEASE_MS_ADVISED {
        out.push(format!(
            "lease.lease_ms = {} makes every failover of a lost machine that much longer; at most {LEASE_MS_ADVISED} is advised",
            lease.lease_ms
        ));
    }
    if config.data_nodes().count() == 2 {
        out.push(
            "two data nodes: when one is lost, writes pause until the survivor may go on alone; three are advised"
                .to_owned(),
        );
    }
    if config.fence.is_some() && !config.node.roles.contains(&Role::Witness) {
        out.push(
            "[fence] is of no use here: this node is no witness, and only witnesses run it"
                .to_owned(),
        );
    }
    if config.nbd.tls.is_some() && config.node.nbd.is_none() {
        out.push("[nbd.tls] is of no use here: this node has no node.nbd".to_owned());
    }
    if let Some(Ok(tls)) = config.nbd.tls.as_ref().map(super::NbdTlsSection::load)
        && let Err(error) = tls::expiry(&tls)
    {
        // Time alone brings this about, and a node that does not start is a copy lost.
        out.push(format!("[nbd.tls] {}", tls::explain(&error)));
    }
    if config.witnesses().count() == 1 {
        out.push(
            "one witness: when it is lost, nothing is promoted until it is back; three are advised"
                .to_owned(),
        );
    }
    out
}

struct Checker<'a> {
    config: &'a Config,
    spans: &'a Spans<'a>,
    found: Vec<Mistake>,
}

impl Checker<'_> {
    fn add(&mut self, path: &[Step<'_>], problem: impl Display, advice: impl Display) {
        self.found.push(Mistake {
            line: self.spans.line(path),
            key: dotted(path),
            problem: problem.to_string(),
            advice: advice.to_string(),
        });
    }

    fn cluster(&mut self) {
        let cluster = &self.config.cluster;
        if cluster.parse::<VolumeName>().is_err() {
            self.add(
                &[Key("cluster")],
                format_args!("`{cluster}` cannot name a cluster"),
                "use 1 to 64 of a-z, 0-9, `-`, `_` and `.`, beginning with a letter or a digit, or the sixteen digits of its id",
            );
        }
    }

    fn node(&mut self) {
        let node = &self.config.node;
        self.roles(&[Key("node"), Key("roles")], &node.roles);
        if let Some(host) = &node.advertise
            && format!("{host}:1").parse::<super::HostPort>().is_err()
            && host.parse::<std::net::IpAddr>().is_err()
        {
            self.add(
                &[Key("node"), Key("advertise")],
                format_args!("`{host}` is not a host"),
                "write a host name or an IP address, without a port",
            );
        }
    }

    fn roles(&mut self, path: &[Step<'_>], roles: &[Role]) {
        if roles.is_empty() {
            self.add(
                path,
                "no roles",
                "give \"data\", \"witness\" or \"standby-witness\", or data and one of them; a node without a role does nothing",
            );
        }
        if roles.iter().filter(|role| **role == Role::Data).count() > 1
            || roles.iter().filter(|role| **role != Role::Data).count() > 1
        {
            self.add(
                path,
                "a role is there twice, or a witness is to wait and to vote",
                "name each role once, and one of \"witness\" and \"standby-witness\"",
            );
        }
    }

    fn listeners(&mut self) {
        let node = &self.config.node;
        let mut named = vec![("grpc", node.grpc), ("http", node.http)];
        named.extend(node.nbd.map(|nbd| ("nbd", nbd)));
        for (at, (name, address)) in named.iter().enumerate() {
            let taken = named[..at]
                .iter()
                .find(|(_, other)| address.collides(*other));
            if let Some((other, _)) = taken {
                self.add(
                    &[Key("node"), Key(name)],
                    format_args!("{address} is the address of node.{other} too"),
                    "give each listener its own port, or 0 to let the system choose",
                );
            }
        }
    }

    fn directories(&mut self) {
        let node = &self.config.node;
        if node.data_dir.as_os_str().is_empty() {
            self.add(
                &[Key("node"), Key("data_dir")],
                "an empty path",
                "name a directory on a disk of this machine, such as \"/var/lib/mainstay\"",
            );
        }
        if let Some(witness_dir) = &node.witness_dir
            && same_path(witness_dir, &node.data_dir)
        {
            self.add(
                &[Key("node"), Key("witness_dir")],
                format_args!("{} is node.data_dir too", witness_dir.display()),
                "give the witness a directory of its own, or leave the key out",
            );
        }
    }

    fn peers(&mut self) {
        let mut seen: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (at, peer) in self.config.peers.iter().enumerate() {
            self.roles(&[Key("peers"), Index(at), Key("roles")], &peer.roles);
            let path = [Key("peers"), Index(at), Key("id")];
            if peer.id == NodeId(0) {
                self.add(&path, "0 is not an id", "number the nodes from 1");
            }
            if let Some(first) = seen.insert(peer.id, at) {
                let line = self.line_text(&[Key("peers"), Index(first), Key("id")]);
                self.add(
                    &path,
                    format_args!("id {} is peers[{first}]{line} too", peer.id),
                    "give every node of the cluster its own id",
                );
            }
        }
    }

    fn line_text(&self, path: &[Step<'_>]) -> String {
        self.spans
            .line(path)
            .map_or_else(String::new, |line| format!(" (line {line})"))
    }

    fn peer_addresses(&mut self) {
        let mut seen = BTreeMap::new();
        for (at, peer) in self.config.peers.iter().enumerate() {
            let named = [
                ("grpc", Some(&peer.grpc)),
                ("nbd", peer.nbd.as_ref()),
                ("http", peer.http.as_ref()),
            ];
            for (name, address) in named {
                let Some(address) = address.filter(|address| address.port() != 0) else {
                    continue;
                };
                if let Some(other) = seen.insert(address, format!("peers[{at}].{name}")) {
                    self.add(
                        &[Key("peers"), Index(at), Key(name)],
                        format_args!("{address} is the address of {other} too"),
                        "give every listener of the cluster its own address",
                    );
                }
            }
            self.remote_port(at, peer);
        }
    }

    /// Others must be able to connect, so only a node's own entry may leave the port to the system.
    fn remote_port(&mut self, at: usize, peer: &Peer) {
        if peer.grpc.port() == 0 && peer.id != self.config.node.id {
            self.add(
                &[Key("peers"), Index(at), Key("grpc")],
                "port 0 cannot be connected to",
                "write the port that this node listens on",
            );
        }
    }

    fn own_entry(&mut self) {
        let node = &self.config.node;
        let own = self
            .config
            .peers
            .iter()
            .enumerate()
            .find(|(_, peer)| peer.id == node.id);
        let Some((at, own)) = own else {
            let ids: Vec<String> = self.config.peers.iter().map(|p| p.id.to_string()).collect();
            return self.add(
                &[Key("node"), Key("id")],
                format_args!("node {} is not among the peers ({})", node.id, ids.join(", ")),
                "add a [[peers]] entry for this node too: the list is the whole cluster, the same on every node",
            );
        };
        if role_set(&own.roles) != role_set(&node.roles) {
            self.add(
                &[Key("node"), Key("roles")],
                format_args!("{:?}, but peers[{at}] says {:?}", node.roles, own.roles),
                "give this node the same roles in both places",
            );
        }
        let listens = node.grpc.0.port();
        if listens != 0 && own.grpc.port() != listens {
            self.add(
                &[Key("node"), Key("grpc")],
                format_args!("port {listens}, but peers[{at}].grpc is {}", own.grpc),
                "use the same port in both places: others connect to the one among the peers",
            );
        }
    }

    fn witnesses(&mut self) {
        let count = self.config.witnesses().count();
        if count == 0 {
            self.add(
                &[Key("peers")],
                "no witness",
                "give the role \"witness\" to three nodes; without witnesses no primary can be chosen",
            );
        } else if count.is_multiple_of(2) {
            self.add(
                &[Key("peers")],
                format_args!(
                    "{count} witnesses: an even number survives no more losses than {}",
                    count - 1
                ),
                format_args!("use {} or {} witnesses", count - 1, count + 1),
            );
        }
        if self.config.data_nodes().next().is_none() {
            self.add(
                &[Key("peers")],
                "no data node",
                "give the role \"data\" to the nodes that shall hold volumes",
            );
        }
    }

    fn lease(&mut self) {
        let lease = &self.config.lease;
        let zero =
            "every time of the section must be above zero; leave the key out for its default";
        self.positive(
            "lease",
            zero,
            &[
                ("lease_ms", lease.lease_ms),
                ("beat_ms", lease.beat_ms),
                ("unwell_after_ms", lease.unwell_after_ms),
                ("grace_ms", lease.grace_ms),
                ("retry_ms", lease.retry_ms),
                ("attempt_ms", lease.attempt_ms),
                ("hold_down_ms", lease.hold_down_ms),
                ("hold_down_longest_ms", lease.hold_down_longest_ms),
            ],
        );
        let least = lease.beat_ms.saturating_mul(BEATS_PER_LEASE_MIN);
        if lease.lease_ms > 0 && lease.lease_ms < least {
            self.add(
                &[Key("lease"), Key("lease_ms")],
                format_args!("{} is too short for a beat every {} ms", lease.lease_ms, lease.beat_ms),
                format_args!("use at least {least} ({BEATS_PER_LEASE_MIN} beats), so that one lost beat costs no lease, or lower lease.beat_ms"),
            );
        }
        if lease.lease_ms > LEASE_MS_MAX {
            self.add(
                &[Key("lease"), Key("lease_ms")],
                format_args!("{} is more than a minute", lease.lease_ms),
                format_args!("use at most {LEASE_MS_ADVISED}: nothing is promoted before the lease of a lost primary has run out"),
            );
        }
        if lease.longest_ms() < lease.lease_ms {
            self.add(
                &[Key("lease"), Key("lease_longest_ms")],
                format_args!(
                    "{} is shorter than lease_ms = {}",
                    lease.longest_ms(),
                    lease.lease_ms
                ),
                "write the longest lease this cluster ever ran with, or leave the key out",
            );
        }
        if lease.rate_error_ppm > RATE_ERROR_PPM_MAX {
            self.add(
                &[Key("lease"), Key("rate_error_ppm")],
                format_args!("{} is more than a tenth", lease.rate_error_ppm),
                "real clocks stay below 500; the default is 10000",
            );
        }
    }

    fn fence(&mut self) {
        let Some(fence) = &self.config.fence else {
            return;
        };
        self.command("fence", "command", &fence.command);
        self.command_timeout("fence", fence.timeout_ms);
    }

    fn hooks(&mut self) {
        let hooks = &self.config.hooks;
        for (key, words) in [("promoted", &hooks.promoted), ("demoted", &hooks.demoted)] {
            if let Some(words) = words {
                self.command("hooks", key, words);
            }
        }
        self.command_timeout("hooks", hooks.timeout_ms);
    }

    /// A command that could not run when it is needed is refused now.
    fn command(&mut self, section: &str, key: &str, words: &[String]) {
        let path = [Key(section), Key(key)];
        let Some(program) = words.first().filter(|program| !program.is_empty()) else {
            return self.add(
                &path,
                "an empty command",
                "write [\"/path/of/a/program\", \"argument\", ...], or leave the key out",
            );
        };
        if !Path::new(program).is_absolute() {
            return self.add(
                &path,
                format_args!("`{program}` is not an absolute path"),
                "write the whole path of the program: it is not searched for",
            );
        }
        match std::fs::metadata(program) {
            Err(error) => self.add(
                &path,
                format_args!("`{program}` cannot be used: {error}"),
                "put the program there, or correct the path",
            ),
            Ok(found) if !found.is_file() => self.add(
                &path,
                format_args!("`{program}` is not a file"),
                "name the program itself",
            ),
            Ok(found) if found.permissions().mode() & 0o111 == 0 => self.add(
                &path,
                format_args!("`{program}` is not executable"),
                format_args!("`chmod +x {program}`"),
            ),
            Ok(_) => {}
        }
    }

    fn command_timeout(&mut self, section: &str, timeout_ms: u64) {
        let zero = "a command needs time to run; leave the key out for its default";
        self.positive(section, zero, &[("timeout_ms", timeout_ms)]);
        self.at_most(section, "timeout_ms", timeout_ms, COMMAND_MS_MAX);
    }

    fn replication(&mut self) {
        let section = &self.config.replication;
        let zero = "it must be above zero; leave the key out for its default";
        self.positive(
            "replication",
            zero,
            &[
                ("heartbeat_ms", section.heartbeat_ms),
                ("retransmit_ms", section.retransmit_ms),
                ("drop_after_ms", section.drop_after_ms),
                ("in_flight_mib_max", section.in_flight_mib_max),
                ("handover_timeout_ms", section.handover_timeout_ms),
                ("round_retry_ms", section.round_retry_ms),
            ],
        );
        let least = section.heartbeat_ms.saturating_mul(3);
        if section.drop_after_ms > 0 && section.drop_after_ms < least {
            self.add(
                &[Key("replication"), Key("drop_after_ms")],
                format_args!(
                    "{} is too short for a heartbeat every {} ms",
                    section.drop_after_ms, section.heartbeat_ms
                ),
                format_args!(
                    "use at least {least}: dropping a member costs a copy until it has caught up"
                ),
            );
        }
        self.at_most(
            "replication",
            "in_flight_mib_max",
            section.in_flight_mib_max,
            4_096,
        );
    }

    fn sizes(&mut self) {
        let storage = &self.config.storage;
        let limits = &self.config.limits;
        let zero = "zero is not \"no limit\"; leave the key out for its default";
        self.positive(
            "storage",
            zero,
            &[
                ("segment_mib", storage.segment_mib),
                ("checkpoint_wal_mib", storage.checkpoint_wal_mib),
                ("unwritten_mib_max", storage.unwritten_mib_max),
            ],
        );
        self.at_most("storage", "segment_mib", storage.segment_mib, 4_096);
        self.at_most(
            "storage",
            "checkpoint_wal_mib",
            storage.checkpoint_wal_mib,
            1 << 20,
        );
        let unwritten = storage.unwritten_mib_max;
        self.at_most("storage", "unwritten_mib_max", unwritten, 1 << 20);
        let scrub = self.config.storage.scrub_period_s;
        self.at_most("storage", "scrub_period_s", scrub, 10 * 366 * 24 * 3_600);
        self.positive(
            "limits",
            zero,
            &[
                ("record_bytes_max", limits.record_bytes_max),
                ("client_bytes_max", limits.client_bytes_max),
                ("volumes_max", limits.volumes_max.into()),
            ],
        );
        self.at_most(
            "limits",
            "record_bytes_max",
            limits.record_bytes_max,
            RECORD_BYTES_MAX,
        );
        self.at_least_record("client_bytes_max", limits.client_bytes_max);
    }

    fn at_least_record(&mut self, key: &str, value: u64) {
        let record = self.config.limits.record_bytes_max;
        if value > 0 && value < record {
            self.add(
                &[Key("limits"), Key(key)],
                format_args!(
                    "{value} has no room for one record of limits.record_bytes_max = {record}"
                ),
                format_args!("use at least {record}"),
            );
        }
    }

    fn nbd(&mut self) {
        let nbd = &self.config.nbd;
        let zero = "zero is not \"no limit\"; leave the key out for its default";
        self.positive(
            "nbd",
            zero,
            &[
                ("request_mib_max", nbd.request_mib_max.into()),
                (
                    "connection_requests_max",
                    nbd.connection_requests_max.into(),
                ),
                ("connection_mib_max", nbd.connection_mib_max.into()),
                ("server_mib_max", nbd.server_mib_max.into()),
                ("connections_max", nbd.connections_max.into()),
                ("peer_connections_max", nbd.peer_connections_max.into()),
                ("handshake_timeout_ms", nbd.handshake_timeout_ms),
                ("park_timeout_ms", nbd.park_timeout_ms),
            ],
        );
        self.at_most("nbd", "request_mib_max", nbd.request_mib_max.into(), 64);
        self.at_most(
            "nbd",
            "connection_mib_max",
            nbd.connection_mib_max.into(),
            4_096,
        );
        self.at_most("nbd", "server_mib_max", nbd.server_mib_max.into(), 1 << 20);
    }

    fn nbd_tls(&mut self) {
        if let Some(section) = &self.config.nbd.tls
            && let Err(error) = section.load()
        {
            let key = tls::key_of(section, &error);
            let problem = tls::with_cause(&error);
            self.add(
                &[Key("nbd"), Key("tls"), Key(key)],
                problem,
                tls::advice(&error),
            );
        }
    }

    fn log(&mut self) {
        let level = &self.config.log.level;
        if level.is_empty() || EnvFilter::try_new(level).is_err() {
            self.add(
                &[Key("log"), Key("level")],
                format_args!("`{level}` is not a level"),
                "use error, warn, info, debug or trace, or a filter such as \"info,mainstay_nbd=debug\"",
            );
        }
    }

    fn positive(&mut self, section: &str, advice: &str, values: &[(&str, u64)]) {
        for (key, value) in values {
            if *value == 0 {
                self.add(&[Key(section), Key(key)], "is zero", advice);
            }
        }
    }

    fn at_most(&mut self, section: &str, key: &str, value: u64, max: u64) {
        if value > max {
            self.add(
                &[Key(section), Key(key)],
                format_args!("{value} is too large"),
                format_args!("use at most {max}"),
            );
        }
    }
}

fn role_set(roles: &[Role]) -> Vec<Role> {
    let mut set = roles.to_vec();
    set.sort_unstable();
    set.dedup();
    set
}

/// Whether two texts name one place, as far as the texts can tell: `a/./b` is `a/b`.
fn same_path(a: &Path, b: &Path) -> bool {
    let plain = |path: &Path| path.components().collect::<PathBuf>();
    plain(a) == plain(b)
}

/// A lease shorter than this many beats is lost with one late beat.
const BEATS_PER_LEASE_MIN: u64 = 3;
/// What the failover times of the documentation assume.
const LEASE_MS_ADVISED: u64 = 1_000;
/// Beyond this a typing error is more likely than an intention.
const LEASE_MS_MAX: u64 = 60_000;
/// Ten minutes: beyond this a typing error is more likely than an intention.
const COMMAND_MS_MAX: u64 = 600_000;
/// A tenth.
const RATE_ERROR_PPM_MAX: u32 = 100_000;
/// What the log format can hold.
const RECORD_BYTES_MAX: u64 = 16 << 20;
