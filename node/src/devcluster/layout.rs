//! The plan of a directory: which nodes, which ports, which files. Made once and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_types::NodeId;
use rand::rngs::OsRng;
use rand::{Rng, TryRngCore};
use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigError, Role};
use crate::files;

/// The plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Where it is kept.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Random, so that two development clusters never talk to each other.
    pub cluster: String,
    /// The address of every node, a loopback one.
    pub host: Ipv4Addr,
    /// Data nodes first.
    pub nodes: Vec<LayoutNode>,
}

/// What is asked of a plan. What is `None` is as the directory has it, or three nodes, three witnesses and none that
/// waits, 127.0.0.1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Data nodes.
    pub nodes: Option<u32>,
    /// Witnesses.
    pub witnesses: Option<u32>,
    /// Witnesses that wait to be made one.
    pub standby: Option<u32>,
    /// Where they listen.
    pub host: Option<Ipv4Addr>,
}

/// One node of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutNode {
    /// From 1 for data nodes, from 101 for witnesses.
    pub id: NodeId,
    /// What it does.
    pub roles: Vec<Role>,
    /// Its address, where that is not the plan's: in a network of its own on this machine. Never planned, only kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Ipv4Addr>,
    /// On its address.
    pub grpc_port: u16,
    /// On its address; data nodes only.
    pub nbd_port: Option<u16>,
    /// On its address.
    pub http_port: u16,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The directory holds another cluster than asked for.
    #[error(
        "{} holds a cluster of {nodes} data nodes and {witnesses} witnesses on {host}; leave out --nodes, --witnesses, --standby-witnesses and --host, or choose another --dir",
        dir.display()
    )]
    OtherShape {
        /// The directory.
        dir: PathBuf,
        /// It has.
        nodes: usize,
        /// It has.
        witnesses: usize,
        /// It has.
        host: Ipv4Addr,
    },
    /// The numbers make no cluster.
    #[error(
        "{nodes} data nodes and {witnesses} witnesses: use 1 to {COUNT_MAX} data nodes and an odd number of witnesses up to {COUNT_MAX}"
    )]
    BadShape {
        /// Asked for.
        nodes: u32,
        /// Asked for.
        witnesses: u32,
    },
    /// Development clusters are for one machine.
    #[error(
        "{0} is not a loopback address; use one of 127.0.0.0/8, or `mainstay node` for real machines"
    )]
    NotLoopback(Ipv4Addr),
    /// A port of the plan is taken.
    #[error(
        "port {port} of node {id} is in use by another process; end that process (`ss -ltnp sport = :{port}` shows it), or choose another --dir"
    )]
    PortInUse {
        /// The node.
        id: NodeId,
        /// Its port.
        port: u16,
    },
    /// No ports to plan with.
    #[error("no free ports between {} and {} on that address", PORTS.start(), PORTS.end())]
    NoPorts,
    /// The sections added to every file are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file system refused.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

impl Layout {
    /// The plan that `dir` holds, which must have the shape asked for; a new one if it holds none.
    pub fn open(dir: &Path, wanted: Wanted) -> Result<Self, LayoutError> {
        let path = dir.join(LAYOUT_FILE);
        let io = |source| LayoutError::Io {
            path: path.clone(),
            source,
        };
        if let Some(found) = files::read_json::<Self>(&path).map_err(io)? {
            let found = Self {
                dir: dir.to_owned(),
                ..found
            };
            return found.if_wanted(wanted);
        }
        let made = Self::plan(dir, wanted)?;
        files::write_json(&path, &made).map_err(io)?;
        Ok(made)
    }

    fn if_wanted(self, wanted: Wanted) -> Result<Self, LayoutError> {
        let has = |role| {
            let count = self.nodes.iter().filter(|n| n.roles.contains(&role));
            count.count()
        };
        let (data, voters) = (has(Role::Data), has(Role::Witness));
        let as_asked = |asked: Option<u32>, count| asked.is_none_or(|n| n as usize == count);
        let same_host = wanted.host.is_none_or(|host| host == self.host);
        let same_votes = as_asked(wanted.witnesses, voters)
            && as_asked(wanted.standby, has(Role::StandbyWitness));
        if as_asked(wanted.nodes, data) && same_votes && same_host {
            return Ok(self);
        }
        Err(LayoutError::OtherShape {
            dir: self.dir,
            nodes: data,
            witnesses: voters,
            host: self.host,
        })
    }

    fn plan(dir: &Path, wanted: Wanted) -> Result<Self, LayoutError> {
        let (nodes, witnesses) = (wanted.nodes.unwrap_or(3), wanted.witnesses.unwrap_or(3));
        let standby = wanted.standby.unwrap_or(0);
        let host = wanted.host.unwrap_or(Ipv4Addr::LOCALHOST);
        if !host.is_loopback() {
            return Err(LayoutError::NotLoopback(host));
        }
        let counts = 1..=COUNT_MAX;
        if !counts.contains(&nodes)
            || !counts.contains(&(witnesses + standby))
            || witnesses == 0
            || witnesses.is_multiple_of(2)
        {
            return Err(LayoutError::BadShape { nodes, witnesses });
        }
        let mut ports = free_ports(
            host,
            3 * nodes as usize + 2 * (witnesses + standby) as usize,
        )?
        .into_iter();
        let mut port = || ports.next().ok_or(LayoutError::NoPorts);
        let mut planned = Vec::new();
        for id in 1..=nodes {
            planned.push(LayoutNode {
                id: NodeId(id),
                roles: vec![Role::Data],
                host: None,
                grpc_port: port()?,
                nbd_port: Some(port()?),
                http_port: port()?,
            });
        }
        for number in 0..witnesses + standby {
            let waits = number >= witnesses;
            planned.push(LayoutNode {
                id: NodeId(FIRST_WITNESS + number),
                roles: vec![if waits {
                    Role::StandbyWitness
                } else {
                    Role::Witness
                }],
                host: None,
                grpc_port: port()?,
                nbd_port: None,
                http_port: port()?,
            });
        }
        Ok(Self {
            dir: dir.to_owned(),
            host,
            cluster: format!("dev-{:08x}", OsRng.unwrap_err().random::<u32>()),
            nodes: planned,
        })
    }

    /// Finds a port that somebody else took since, before a node stumbles over it.
    pub async fn check_ports(&self) -> Result<(), LayoutError> {
        // A network of its own has ports of its own.
        for node in self.nodes.iter().filter(|node| node.host.is_none()) {
            let ports = [Some(node.grpc_port), node.nbd_port, Some(node.http_port)];
            for port in ports.into_iter().flatten() {
                if !self.becomes_free(port).await {
                    return Err(LayoutError::PortInUse { id: node.id, port });
                }
            }
        }
        Ok(())
    }

    /// A port that we just let go may be held for a moment more, by a child that another thread is starting:
    /// between fork and exec it has copies of all our descriptors.
    async fn becomes_free(&self, port: u16) -> bool {
        let deadline = Instant::now() + FREE_WITHIN;
        loop {
            if TcpListener::bind((self.host, port)).is_ok() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Writes one configuration file a node, each with `extra` at its end, and checks them. A node reaches another by the route
    /// that `routes` has for the two, or else on the other's own address.
    pub fn write_configs(&self, extra: &str, routes: &Routes) -> Result<(), LayoutError> {
        for node in &self.nodes {
            let path = self.config_path(node.id);
            let text = self.config_text(node, extra, routes);
            Config::parse(&path, &text)?;
            std::fs::write(&path, text).map_err(|source| LayoutError::Io { path, source })?;
        }
        Ok(())
    }

    fn config_text(&self, node: &LayoutNode, extra: &str, routes: &Routes) -> String {
        let mut out = String::from(
            "# Written by `mainstay up` at each start; changes made here are overwritten.\n",
        );
        let host = self.host_of(node);
        let data_dir = self.data_dir(node.id);
        let data_dir = toml::Value::String(data_dir.to_string_lossy().into_owned());
        let mut add = |line: std::fmt::Arguments<'_>| {
            out.write_fmt(line).expect("a String takes everything");
            out.push('\n');
        };
        add(format_args!("cluster = \"{}\"\n\n[node]", self.cluster));
        add(format_args!(
            "id = {}\nroles = {}",
            node.id,
            roles_text(&node.roles)
        ));
        add(format_args!("data_dir = {data_dir}"));
        add(format_args!("grpc = \"{host}:{}\"", node.grpc_port));
        if let Some(port) = node.nbd_port {
            add(format_args!("nbd = \"{host}:{port}\""));
        }
        add(format_args!("http = \"{host}:{}\"", node.http_port));
        for peer in &self.nodes {
            let host = self.host_of(peer);
            add(format_args!(
                "\n[[peers]]\nid = {}\nroles = {}",
                peer.id,
                roles_text(&peer.roles)
            ));
            let own = SocketAddr::from((host, peer.grpc_port));
            let grpc = routes.get(&(node.id, peer.id)).unwrap_or(&own);
            add(format_args!("grpc = \"{grpc}\""));
            if let Some(port) = peer.nbd_port {
                add(format_args!("nbd = \"{host}:{port}\""));
            }
            add(format_args!("http = \"{host}:{}\"", peer.http_port));
        }
        if !extra.is_empty() {
            add(format_args!("\n{extra}"));
        }
        out
    }

    /// The address of one of its nodes.
    pub(super) fn host_of(&self, node: &LayoutNode) -> Ipv4Addr {
        node.host.unwrap_or(self.host)
    }

    /// Everything node `id` keeps.
    #[must_use]
    pub fn data_dir(&self, id: NodeId) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self, id: NodeId) -> PathBuf {
        self.dir.join(format!("node-{id}.toml"))
    }

    /// What its processes print.
    #[must_use]
    pub fn log_path(&self, id: NodeId) -> PathBuf {
        self.dir.join(format!("node-{id}.log"))
    }
}

/// Where one node reaches another, by the two.
type Routes = BTreeMap<(NodeId, NodeId), SocketAddr>;

fn roles_text(roles: &[Role]) -> String {
    let names: Vec<&str> = roles
        .iter()
        .map(|role| match role {
            Role::Data => "\"data\"",
            Role::Witness => "\"witness\"",
            Role::StandbyWitness => "\"standby-witness\"",
        })
        .collect();
    format!("[{}]", names.join(", "))
}

/// Free ports of loopback, all held at once so that none is found twice.
///
/// Below the range from which the system takes ports of outgoing connections: one of those could sit on a node's
/// port just when that node is started again.
fn free_ports(host: Ipv4Addr, count: usize) -> Result<Vec<u16>, LayoutError> {
    let mut held = Vec::new();
    let mut tried = BTreeSet::new();
    let mut random = OsRng.unwrap_err();
    while held.len() < count {
        if tried.len() == PORTS.len() {
            return Err(LayoutError::NoPorts);
        }
        let port = random.random_range(PORTS);
        if !tried.insert(port) {
            continue;
        }
        if let Ok(listener) = TcpListener::bind((host, port)) {
            held.push((port, listener));
        }
    }
    Ok(held.iter().map(|(port, _)| *port).collect())
}

/// A loopback address that hardly anybody else uses: clusters with one each never want the same port.
#[must_use]
pub fn random_loopback() -> Ipv4Addr {
    let mut random = OsRng.unwrap_err();
    Ipv4Addr::new(
        127,
        random.random_range(1..=254),
        random.random(),
        random.random_range(1..=254),
    )
}

const FREE_WITHIN: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LAYOUT_FILE: &str = "layout.json";
/// Ids of witnesses start here, so that an id tells the role.
const FIRST_WITNESS: u32 = 101;
/// Of data nodes and of witnesses; more are no use on one machine.
const COUNT_MAX: u32 = 9;
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=31_999;
