//! Which cluster a command talks to: the one it was told, else the one that `mainstay up` runs in a directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::{AddressError, HostPort};
use crate::devcluster::{ClusterFile, NodeState};
use crate::files;

/// The options that every command on a running cluster takes.
#[derive(Debug, Clone, clap::Args)]
pub struct ClusterArgs {
    /// gRPC addresses of data nodes, separated by commas; one that answers is enough
    #[arg(
        long,
        global = true,
        env = "MAINSTAY_ENDPOINTS",
        value_name = "HOST:PORT,...",
        value_delimiter = ','
    )]
    pub endpoints: Vec<String>,

    /// Directory of the cluster that `mainstay up` runs; used when no endpoints are given
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,
}

/// Where `mainstay up` keeps its cluster unless told otherwise.
pub const DEFAULT_DIR: &str = ".mainstay";

/// Why no cluster was found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// An endpoint is not one.
    #[error("--endpoints (or MAINSTAY_ENDPOINTS)")]
    BadEndpoint(#[from] AddressError),
    /// Nothing was ever started there.
    #[error(
        "no cluster in {}; start one with `mainstay up`, or say where one is with --endpoints HOST:PORT or --dir DIR",
        dir.display()
    )]
    NoCluster {
        /// The directory.
        dir: PathBuf,
    },
    /// It was stopped.
    #[error(
        "the cluster in {dir} is stopped; start it again with `mainstay up --dir {dir}`, or name another with --endpoints HOST:PORT",
        dir = dir.display()
    )]
    Stopped {
        /// The directory.
        dir: PathBuf,
    },
    /// The file that says where it is cannot be read.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

impl ClusterArgs {
    /// Where to connect, in the order to try. Never empty.
    pub fn locate(&self) -> Result<Vec<HostPort>, LocateError> {
        let given: Vec<&str> = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.trim())
            .filter(|endpoint| !endpoint.is_empty())
            .collect();
        let found;
        let endpoints = if given.is_empty() {
            found = endpoints_in(&self.dir)?;
            found.iter().map(String::as_str).collect()
        } else {
            given
        };
        let parsed = endpoints.into_iter().map(str::parse);
        Ok(parsed.collect::<Result<_, AddressError>>()?)
    }
}

/// What `mainstay up` last wrote about the cluster in `dir`.
pub fn cluster_file(dir: &Path) -> Result<ClusterFile, LocateError> {
    let path = ClusterFile::path(dir);
    match files::read_json(&path) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(LocateError::NoCluster {
            dir: dir.to_owned(),
        }),
        Err(source) => Err(LocateError::Io { path, source }),
    }
}

/// A cluster whose `mainstay up` was killed goes on, so its nodes count and not `up_pid`.
fn endpoints_in(dir: &Path) -> Result<Vec<String>, LocateError> {
    let file = cluster_file(dir)?;
    let runs = |state: &NodeState| !matches!(state, NodeState::Exited { .. });
    if !file.nodes.iter().any(|node| runs(&node.state)) {
        return Err(LocateError::Stopped {
            dir: dir.to_owned(),
        });
    }
    Ok(file.endpoints())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(endpoints: &[&str], dir: &Path) -> ClusterArgs {
        ClusterArgs {
            endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(),
            dir: dir.to_owned(),
        }
    }

    fn file(second_state: &str) -> String {
        let node = |id: u32, role: &str, state: &str| {
            format!(
                r#"{{"id":{id},"roles":["{role}"],{state},"supervisor_pid":null,"worker_pid":null,"instance":null,
                "grpc":"127.0.0.1:{id}","nbd":null,"http":"127.0.0.1:9","data_dir":"d","config":"c","log":"l"}}"#
            )
        };
        let exited = r#""state":"exited","reason":"killed by signal 9""#;
        format!(
            r#"{{"cluster":"dev","up_pid":1,"nodes":[{},{},{}]}}"#,
            node(1, "data", exited),
            node(2, "data", second_state),
            node(101, "witness", second_state),
        )
    }

    fn texts(found: Result<Vec<HostPort>, LocateError>) -> Vec<String> {
        found
            .expect("found")
            .iter()
            .map(HostPort::to_string)
            .collect()
    }

    #[test]
    fn endpoints_that_were_given_win() {
        let dir = tempfile::tempdir().expect("a directory");
        let given = args(&["a:1", " b:2 "], dir.path());
        assert_eq!(texts(given.locate()), ["a:1", "b:2"]);
        assert!(args(&["a"], dir.path()).locate().is_err());
    }

    #[test]
    fn else_the_data_nodes_of_the_directory_are_used_those_that_run_first() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(
            dir.path().join("cluster.json"),
            file(r#""state":"running""#),
        )
        .expect("written");
        assert_eq!(
            texts(args(&[""], dir.path()).locate()),
            ["127.0.0.1:2", "127.0.0.1:1"]
        );
    }

    #[test]
    fn a_missing_or_stopped_cluster_is_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let none = args(&[], dir.path());
        assert!(matches!(none.locate(), Err(LocateError::NoCluster { .. })));
        std::fs::write(
            dir.path().join("cluster.json"),
            file(r#""state":"exited","reason":"stopped""#),
        )
        .expect("written");
        assert!(matches!(none.locate(), Err(LocateError::Stopped { .. })));
        std::fs::write(dir.path().join("cluster.json"), "{").expect("written");
        assert!(matches!(none.locate(), Err(LocateError::Io { .. })));
    }
}
