//! What every trial has: a cluster, a directory, and somebody who kills primaries.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use mainstay_node::demo::cluster::{DISK, Stage};
use mainstay_node::demo::faults::FaultKind;
use mainstay_node::devcluster::{DevCluster, Options};
use mainstay_types::NodeId;
use tempfile::TempDir;

/// Programs are connected here; never a victim.
pub(crate) const GATEWAY: NodeId = NodeId(3);
/// The primary is on one of these when it is killed.
pub(crate) const VICTIMS: [NodeId; 2] = [NodeId(1), NodeId(2)];

/// Between a move or a return and the next kill, so that kills meet load.
const BEFORE: Duration = Duration::from_millis(700);
/// Between a promotion and the start of what was killed.
const AFTER: Duration = Duration::from_millis(500);
/// Nobody serving for so long is a failure.
const PROMOTED_WITHIN: Duration = Duration::from_secs(20);

/// How a trial is to be run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    /// The workspace.
    pub(crate) root: PathBuf,
    /// `None`: the system's place for what is temporary.
    pub(crate) dir: Option<PathBuf>,
    /// Load goes on for so long at least.
    pub(crate) share: Duration,
    pub(crate) keep: bool,
}

/// A cluster under a trial.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) stage: Stage,
    dir: Scratch,
    started: Instant,
    share: Duration,
}

/// The directory of a trial. One that is not [`Self::good`] is kept when it is dropped.
#[derive(Debug)]
struct Scratch {
    dir: Option<TempDir>,
    keep: bool,
}

/// Whether somebody still kills primaries; the load goes on as long.
#[derive(Debug, Default)]
pub(crate) struct Going(Cell<bool>);

/// What was done to the cluster.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    process: u32,
    machine: u32,
}

impl Rig {
    /// Starts a cluster with the volume `disk`.
    pub(crate) async fn start(plan: &Plan, disk_bytes: u64) -> anyhow::Result<Self> {
        let mut builder = tempfile::Builder::new();
        let prefix = format!("mainstay-soak-{}-", plan.name);
        let builder = builder.prefix(&prefix);
        let dir = match &plan.dir {
            Some(dir) => builder.tempdir_in(dir.canonicalize()?)?,
            None => builder.tempdir()?,
        };
        let mut options = Options::new(dir.path().join("cluster"))?;
        plan.program.clone_into(&mut options.program);
        let dir = Scratch {
            dir: Some(dir),
            keep: plan.keep,
        };
        let dev = DevCluster::start(options).await?;
        let stage = Stage::set(dev, VICTIMS[0], VICTIMS[0], disk_bytes).await?;
        Ok(Self {
            stage,
            dir,
            started: Instant::now(),
            share: plan.share,
        })
    }

    /// For the trial's own files.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The volume at `node`.
    pub(crate) fn uri(&self, node: NodeId) -> anyhow::Result<String> {
        Ok(format!("nbd://{}/{DISK}", self.stage.nbd(node)?))
    }

    /// Runs `load` while primaries are killed: at least `count` times, and until the trial's share of time is over. `load` has
    /// to look at the flag that it is given, and to end when nobody kills any more.
    pub(crate) async fn under_kills<T>(
        &self,
        count: u32,
        load: impl AsyncFnOnce(&Going) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Kills, T)> {
        let going = Going(Cell::new(true));
        let kills = async {
            let kills = self.kills(count).await;
            going.0.set(false);
            kills
        };
        tokio::try_join!(kills, load(&going))
    }

    async fn kills(&self, count: u32) -> anyhow::Result<Kills> {
        let mut kills = Kills::default();
        let mut number = 0;
        while number < count || self.started.elapsed() < self.share {
            let (kind, victim) = match number % 4 {
                0 => (FaultKind::Machine, VICTIMS[0]),
                1 => (FaultKind::Process, VICTIMS[1]),
                2 => (FaultKind::Process, VICTIMS[0]),
                _ => (FaultKind::Machine, VICTIMS[1]),
            };
            let kill = self.kill(kind, victim).await;
            kill.with_context(|| format!("kill {}, {kind} of node {victim}", number + 1))?;
            match kind {
                FaultKind::Process => kills.process += 1,
                _ => kills.machine += 1,
            }
            number += 1;
        }
        Ok(kills)
    }

    /// Moves the primary to `victim`, kills it there, waits for the next one, and starts what was killed.
    async fn kill(&self, kind: FaultKind, victim: NodeId) -> anyhow::Result<()> {
        // An orderly move between any two kills: else the fourth of a minute would be held down as flapping, rightly.
        self.stage.move_primary(DISK, GATEWAY).await?;
        let before = self.stage.move_primary(DISK, victim).await?;
        self.stage.wait_whole(DISK).await?;
        tokio::time::sleep(BEFORE).await;
        let struck = self.stage.strike(kind, victim).await?;
        let limit = PROMOTED_WITHIN;
        let next = self.stage.wait_serving(DISK, before.epoch, limit).await?;
        eprintln!(
            "killed node {victim} ({}); node {} serves after {} ms",
            kind.signal(),
            next.node,
            struck.elapsed().as_millis()
        );
        tokio::time::sleep(AFTER).await;
        self.stage.recover(kind, victim).await?;
        self.stage.wait_whole(DISK).await?;
        Ok(())
    }

    /// Ends the cluster in order. Without this, what is left is killed and the directory is kept.
    pub(crate) async fn stop(mut self) {
        self.stage.dev.stop().await;
        self.dir.good();
    }
}

impl Scratch {
    fn path(&self) -> &Path {
        let dir = self.dir.as_ref();
        dir.expect("taken only when dropped").path()
    }

    fn good(&mut self) {
        if !self.keep {
            self.dir = None;
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            eprintln!("kept: {}", dir.keep().display());
        }
    }
}

impl Going {
    pub(crate) fn on(&self) -> bool {
        self.0.get()
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} primaries killed ({} with their supervisor)",
            self.process + self.machine,
            self.machine
        )
    }
}
