//! What is done to a primary, and undone again.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use mainstay_types::NodeId;
use serde::Serialize;

use super::cluster::Stage;
use crate::devcluster::{NodeState, NodeStatus, Signal, Target};

/// How a primary is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// SIGKILL of the worker: its supervisor sees it end, and says so.
    Process,
    /// SIGKILL of worker and supervisor at once: nobody says anything, as when a machine is lost.
    Machine,
    /// SIGSTOP of both: connections stay open, and the process will go on one day as if nothing had happened.
    Freeze,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Process, Self::Machine, Self::Freeze];

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Machine => "machine",
            Self::Freeze => "freeze",
        }
    }

    /// What is sent, and to whom.
    #[must_use]
    pub fn signal(self) -> &'static str {
        match self {
            Self::Process => "SIGKILL of the worker",
            Self::Machine => "SIGKILL of worker and supervisor",
            Self::Freeze => "SIGSTOP of worker and supervisor",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Stage {
    /// Strikes `victim`. Answers when.
    ///
    /// # Errors
    /// Its processes are not there.
    pub async fn strike(&self, kind: FaultKind, victim: NodeId) -> anyhow::Result<Instant> {
        let (signal, target) = match kind {
            FaultKind::Process => (Signal::KILL, Target::Worker),
            FaultKind::Machine => (Signal::KILL, Target::Both),
            FaultKind::Freeze => (Signal::STOP, Target::Both),
        };
        let at = Instant::now();
        self.dev.kill(victim, signal, target).await?;
        Ok(at)
    }

    /// Brings `victim` back: starts it again, or thaws it. Waits until its processes run, not until it has caught up.
    ///
    /// # Errors
    /// It does not start.
    pub async fn recover(&self, kind: FaultKind, victim: NodeId) -> anyhow::Result<()> {
        if kind == FaultKind::Freeze {
            self.dev.kill(victim, Signal::CONT, Target::Both).await?;
            return Ok(());
        }
        let exited = |node: &NodeStatus| matches!(node.state, NodeState::Exited { .. });
        ensure!(
            self.dev.wait_for(victim, ENDS_WITHIN, exited).await,
            "node {victim} was killed and still runs"
        );
        self.dev.restart(victim).await?;
        Ok(())
    }
}

/// For the system to end a process that got SIGKILL.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
