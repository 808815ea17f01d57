//! `cluster.json`: what other commands and people read about a development cluster.

use std::path::{Path, PathBuf};

use mainstay_types::{Instance, NodeId};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, LayoutNode};
use crate::config::Role;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The cluster's name.
    pub cluster: String,
    /// The process that runs it; absent once it was stopped.
    pub up_pid: Option<u32>,
    /// Data nodes first.
    pub nodes: Vec<NodeStatus>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: NodeId,
    /// What it does.
    pub roles: Vec<Role>,
    /// What is known of its processes.
    #[serde(flatten)]
    pub state: NodeState,
    /// The supervisor, while it runs.
    pub supervisor_pid: Option<u32>,
    /// The process that does the work, while it runs.
    pub worker_pid: Option<u32>,
    /// The worker's instance, while it runs.
    pub instance: Option<Instance>,
    /// `host:port`.
    pub grpc: String,
    /// `host:port`; a witness alone has none.
    pub nbd: Option<String>,
    /// `host:port`.
    pub http: String,
    /// Everything the node keeps.
    pub data_dir: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// What its processes print.
    pub log: PathBuf,
}

/// What is known of a node's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum NodeState {
    /// Started, and has not answered yet.
    Starting,
    /// Answered.
    Running,
    /// The worker goes on though its supervisor ended.
    Unsupervised,
    /// Nothing of it runs.
    Exited {
        /// How it ended.
        reason: String,
    },
}

impl ClusterFile {
    /// Where it is.
    #[must_use]
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("cluster.json")
    }

    /// Of a cluster with nothing started.
    pub(super) fn new(layout: &Layout) -> Self {
        Self {
            cluster: layout.cluster.clone(),
            up_pid: Some(std::process::id()),
            nodes: layout
                .nodes
                .iter()
                .map(|node| NodeStatus::new(layout, node))
                .collect(),
        }
    }

    /// The node `id`.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// gRPC addresses of the data nodes, those that run first.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let mut data: Vec<&NodeStatus> = self
            .nodes
            .iter()
            .filter(|node| node.roles.contains(&Role::Data))
            .collect();
        data.sort_by_key(|node| matches!(node.state, NodeState::Exited { .. }));
        data.iter().map(|node| node.grpc.clone()).collect()
    }
}

impl NodeStatus {
    fn new(layout: &Layout, node: &LayoutNode) -> Self {
        let host = layout.host_of(node);
        Self {
            id: node.id,
            roles: node.roles.clone(),
            state: NodeState::Exited {
                reason: "not started".to_owned(),
            },
            supervisor_pid: None,
            worker_pid: None,
            instance: None,
            grpc: format!("{host}:{}", node.grpc_port),
            nbd: node.nbd_port.map(|port| format!("{host}:{port}")),
            http: format!("{host}:{}", node.http_port),
            data_dir: layout.data_dir(node.id),
            config: layout.config_path(node.id),
            log: layout.log_path(node.id),
        }
    }

    /// The node's processes, each with the mark by which it is known: the supervisor, then the worker.
    pub(super) fn processes(&self) -> Vec<(u32, String)> {
        let mut out = Vec::new();
        if let Some(pid) = self.supervisor_pid {
            out.push((pid, self.supervisor_mark()));
        }
        if let (Some(pid), Some(instance)) = (self.worker_pid, self.instance) {
            out.push((pid, instance.to_string()));
        }
        out
    }

    pub(super) fn supervisor_mark(&self) -> String {
        self.config.to_string_lossy().into_owned()
    }
}
