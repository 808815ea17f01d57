//! What is done to nodes, and undone.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use mainstay_node::devcluster::{DevCluster, NodeState, NodeStatus, Signal, Target};
use mainstay_types::NodeId;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::network::Network;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL of the worker; its supervisor says so.
    Killed,
    /// SIGKILL of worker and supervisor.
    KilledSilently,
    /// SIGSTOP of both, SIGCONT later.
    Paused,
    /// Nothing gets to it or from it.
    CutOff,
    /// Nothing of what it says gets anywhere.
    Silenced,
    /// Nothing that others say gets to it.
    Deafened,
}

/// For the system to end a process that got SIGKILL, and to give back its ports.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Fault {
    const ALL: [Self; 6] = [
        Self::Killed,
        Self::KilledSilently,
        Self::Paused,
        Self::CutOff,
        Self::Silenced,
        Self::Deafened,
    ];

    pub(super) fn random(random: &mut StdRng) -> Self {
        Self::ALL[random.random_range(0..Self::ALL.len())]
    }

    /// Whether it is one of those that the network undoes all at once.
    fn is_of_the_network(self) -> bool {
        matches!(self, Self::CutOff | Self::Silenced | Self::Deafened)
    }

    pub(super) async fn strike(
        self,
        node: NodeId,
        cluster: &DevCluster,
        network: &Network,
    ) -> anyhow::Result<()> {
        match self {
            Self::Killed => cluster.kill(node, Signal::KILL, Target::Worker).await?,
            Self::KilledSilently => cluster.kill(node, Signal::KILL, Target::Both).await?,
            Self::Paused => cluster.kill(node, Signal::STOP, Target::Both).await?,
            Self::Silenced => network.silence(node),
            Self::Deafened => network.deafen(node),
            Self::CutOff => {
                network.silence(node);
                network.deafen(node);
            }
        }
        Ok(())
    }

    pub(super) async fn undo(
        self,
        node: NodeId,
        cluster: &DevCluster,
        network: &Network,
    ) -> anyhow::Result<()> {
        if self.is_of_the_network() {
            network.heal();
            return Ok(());
        }
        if self == Self::Paused {
            cluster.kill(node, Signal::CONT, Target::Both).await?;
            return Ok(());
        }
        let exited = |node: &NodeStatus| matches!(node.state, NodeState::Exited { .. });
        ensure!(
            cluster.wait_for(node, ENDS_WITHIN, exited).await,
            "node {node} was killed and still runs"
        );
        let give_up = Instant::now() + ENDS_WITHIN;
        loop {
            match cluster.restart(node).await {
                Ok(()) => return Ok(()),
                // On a busy machine the process that was killed may hold its port for a moment.
                Err(_) if Instant::now() < give_up => tokio::time::sleep(AGAIN_AFTER).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Killed => "killed",
            Self::KilledSilently => "killed with its supervisor",
            Self::Paused => "paused",
            Self::CutOff => "cut off",
            Self::Silenced => "cut off, says nothing",
            Self::Deafened => "cut off, hears nothing",
        })
    }
}
