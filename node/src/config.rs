//! The configuration file of one node: what it says, and what is wrong with it.
//!
//! Rules that hold across it:
//!
//! * A file is either taken whole or refused; nothing is guessed. Unknown keys are mistakes.
//! * Every mistake names the file, the line and the key, and says what to do. All mistakes that can be
//!   seen at once are told at once.
//! * Units are part of a key's name. Zero never means "no limit".

mod address;
mod check;
mod convert;
mod sections;
mod spans;
#[cfg(test)]
mod tests;
pub mod tls;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use mainstay_types::{ClusterId, NodeId};
use serde::Deserialize;

pub use address::{AddressError, HostPort, ListenAddr};
pub use sections::{
    EngineChoice, FenceSection, HooksSection, LeaseSection, LimitsSection, LogSection, NbdSection,
    NodeSection, Peer, ReplicationSection, Role, StorageSection,
};
use spans::Spans;
pub use tls::{NbdTlsSection, TlsMode};

/// The configuration of one node, checked. Only [`Config::load`] and [`Config::parse`] make one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster's name, or its id as sixteen hexadecimal digits. The same on every node.
    pub cluster: String,
    /// This node.
    pub node: NodeSection,
    /// Every node of the cluster, this one and the witnesses included. The same on every node.
    pub peers: Vec<Peer>,
    /// Leases. The same on every node.
    #[serde(default)]
    pub lease: LeaseSection,
    /// The external fence; none when absent.
    #[serde(default)]
    pub fence: Option<FenceSection>,
    /// Hooks.
    #[serde(default)]
    pub hooks: HooksSection,
    /// Replication between members.
    #[serde(default)]
    pub replication: ReplicationSection,
    /// The data directory and how it is written.
    #[serde(default)]
    pub storage: StorageSection,
    /// What clients may ask for.
    #[serde(default)]
    pub limits: LimitsSection,
    /// The NBD server.
    #[serde(default)]
    pub nbd: NbdSection,
    /// What is logged.
    #[serde(default)]
    pub log: LogSection,
}

impl Config {
    /// Reads and checks `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks `text`; `path` only names it in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| syntax_error(path, text, &error))?;
        let mistakes = check::mistakes(&config, &Spans::of(text));
        if mistakes.is_empty() {
            return Ok(config);
        }
        Err(ConfigError::Invalid {
            path: path.to_owned(),
            mistakes,
        })
    }

    /// What is allowed but deserves a word in the log at start.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        check::warnings(self)
    }

    /// The cluster's id: the one given, or a hash of the name.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        convert::cluster_id(&self.cluster)
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node.id
    }

    /// This node's own entry among the peers.
    ///
    /// # Panics
    /// Never on a checked configuration: the entry was found by the check.
    #[must_use]
    pub fn own_peer(&self) -> &Peer {
        self.peers
            .iter()
            .find(|peer| peer.id == self.node.id)
            .expect("a checked configuration lists its own node")
    }

    /// The nodes that vote on configuration.
    pub fn witnesses(&self) -> impl Iterator<Item = &Peer> {
        self.peers
            .iter()
            .filter(|peer| peer.roles.contains(&Role::Witness))
    }

    /// The nodes that may hold volumes.
    pub fn data_nodes(&self) -> impl Iterator<Item = &Peer> {
        self.peers
            .iter()
            .filter(|peer| peer.roles.contains(&Role::Data))
    }

    /// Where the witness keeps its votes: `witness_dir`, or `witness` in the data directory.
    #[must_use]
    pub fn witness_dir(&self) -> PathBuf {
        self.node
            .witness_dir
            .clone()
            .unwrap_or_else(|| self.node.data_dir.join("witness"))
    }
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// From 1. Absent when the key is missing from the file altogether.
    pub line: Option<usize>,
    /// The key, as `section.key` or `peers[0].key`.
    pub key: String,
    /// What is wrong, with the values.
    pub problem: String,
    /// What to do.
    pub advice: String,
}

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error(
        "{}: cannot be read; give the path of a configuration file with --config",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The answer of the file system.
        source: io::Error,
    },
    /// It is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("{}:{line}: {}{message}", path.display(), key_prefix(key))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The key on that line, if there is one.
        key: String,
        /// What the parser said.
        message: String,
    },
    /// Each value is well formed, but together they make no sense.
    #[error("{}", listed(path, mistakes))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it; never empty.
        mistakes: Vec<Mistake>,
    },
}

fn key_prefix(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("{key}: ")
    }
}

fn listed(path: &Path, mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes
        .iter()
        .map(|mistake| Listed(path, mistake).to_string())
        .collect();
    lines.join("\n")
}

struct Listed<'a>(&'a Path, &'a Mistake);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(path, mistake) = self;
        write!(f, "{}:", path.display())?;
        if let Some(line) = mistake.line {
            write!(f, "{line}:")?;
        }
        write!(
            f,
            " {}: {}; {}",
            mistake.key, mistake.problem, mistake.advice
        )
    }
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    let line = spans::line_of(text, at);
    let source_line = text.lines().nth(line - 1).unwrap_or_default();
    let key = source_line
        .split_once('=')
        .map_or_else(|| source_line.trim(), |(key, _)| key.trim());
    ConfigError::Syntax {
        path: path.to_owned(),
        line,
        key: if key.starts_with('#') {
            String::new()
        } else {
            key.to_owned()
        },
        message: error.message().replace('\n', "; "),
    }
}
