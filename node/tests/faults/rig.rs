//! A cluster of real processes, a writer, and the proof at the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_client::report::VolumeStatus;
use mainstay_node::demo::cluster::{DISK, LEDGER, Serving, Stage};
use mainstay_node::demo::disk::DiskLoad;
use mainstay_node::demo::ledger::{LedgerLoad, LedgerModel, prove};
use mainstay_node::devcluster::{
    DevCluster, NodeState, NodeStatus, Options, Signal, Target, Wanted, random_loopback,
};
use mainstay_types::{Epoch, NodeId};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::sandbox::KEEP;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// For service to come back: far above what a failover takes, far below what a person would wait.
pub(crate) const SERVED_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at something that is waited for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Longer than a lease: whoever wanted to serve or to promote would have done so.
pub(crate) const NOTHING_FOR: Duration = Duration::from_millis(1500);

pub(crate) const ONE: NodeId = NodeId(1);
pub(crate) const TWO: NodeId = NodeId(2);
pub(crate) const THREE: NodeId = NodeId(3);
pub(crate) const WITNESSES: [NodeId; 3] = [NodeId(101), NodeId(102), NodeId(103)];

const DISK_BYTES: u64 = 4 << 20;
const IN_FLIGHT: usize = 8;

/// A running cluster of three data nodes and three witnesses with a log and a block volume, in a directory of its own.
pub(crate) struct Rig {
    pub(crate) stage: Stage,
    dir: Option<TempDir>,
}

/// What differs from an ordinary cluster.
pub(crate) struct Setup {
    dir: TempDir,
    pub(crate) options: Options,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mainstay-fault-")
            .tempdir()
            .expect("a directory");
        let options = Options {
            wanted: Wanted {
                host: Some(random_loopback()),
                ..Wanted::default()
            },
            program: program(),
            ..Options::new(dir.path()).expect("options")
        };
        Self { dir, options }
    }

    /// Adds sections to every configuration.
    pub(crate) fn config(mut self, text: &str) -> Self {
        text.clone_into(&mut self.options.extra_config);
        self
    }

    /// Where node `id` will keep its data.
    pub(crate) fn data_dir(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it: the log's first primary is node 1, the block volume's node 2.
    pub(crate) async fn start(self) -> Rig {
        let dev = DevCluster::start(self.options)
            .await
            .expect("the cluster starts");
        let stage = Stage::set(dev, ONE, TWO, DISK_BYTES)
            .await
            .expect("two volumes");
        Rig {
            stage,
            dir: Some(self.dir),
        }
    }
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Setup::new().start().await
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().expect("until the end").path()
    }

    /// Begins to write transfers to the log.
    pub(crate) async fn load(&self) -> LedgerLoad {
        let load = LedgerLoad::start(&self.stage.client, LEDGER, 7, IN_FLIGHT)
            .await
            .expect("the log opens");
        progress(&load).await;
        load
    }

    /// Who serves the log now.
    pub(crate) async fn primary(&self) -> Serving {
        self.served_above(Epoch::ZERO).await
    }

    /// Waits until somebody serves the log in an epoch above `epoch`.
    pub(crate) async fn served_above(&self, epoch: Epoch) -> Serving {
        self.stage
            .wait_serving(LEDGER, epoch, SERVED_WITHIN)
            .await
            .expect("served again")
    }

    /// Waits until all data nodes are members of the log and in step.
    pub(crate) async fn whole(&self) -> VolumeStatus {
        self.stage.wait_whole(LEDGER).await.expect("whole again")
    }

    /// SIGKILL of worker and supervisor: nobody reports it.
    pub(crate) async fn kill(&self, id: NodeId) {
        self.signal(id, Signal::KILL).await;
        let gone = |node: &NodeStatus| matches!(node.state, NodeState::Exited { .. });
        let gone = self.stage.dev.wait_for(id, PATIENCE, gone).await;
        assert!(gone, "node {id} survived SIGKILL");
    }

    /// A signal to worker and supervisor. After SIGSTOP both stand still when this returns.
    pub(crate) async fn signal(&self, id: NodeId, signal: Signal) {
        let sent = self.stage.dev.kill(id, signal, Target::Both).await;
        sent.expect("its processes are there");
        if signal == Signal::STOP {
            let node = self.stage.node(id).expect("known");
            let pids = [node.worker_pid, node.supervisor_pid];
            let frozen = async || pids.into_iter().flatten().all(stands_still).then_some(());
            wait_for("both processes to stand still", PATIENCE, frozen).await;
        }
    }

    pub(crate) async fn restart(&self, id: NodeId) {
        // On a busy machine a killed process may hold its port for a moment longer.
        let give_up = tokio::time::Instant::now() + PATIENCE;
        while let Err(error) = self.stage.dev.restart(id).await {
            let text = format!("{error:?}");
            let passes = text.contains("is in use by another process");
            assert!(passes && tokio::time::Instant::now() < give_up, "{text}");
            sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// The process that does the work of `id`.
    pub(crate) fn worker(&self, id: NodeId) -> u32 {
        let node = self.stage.node(id).expect("known");
        node.worker_pid.expect("runs")
    }

    /// Runs the binary against this cluster. Answers whether it succeeded, and everything it printed.
    pub(crate) async fn mainstay(&self, args: &[&str]) -> (bool, String) {
        let mut command = tokio::process::Command::new(program());
        command
            .args(args)
            .arg("--endpoints")
            .arg(self.stage.dev.endpoints().join(","));
        let output = command.output().await.expect("started");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// Ends the load, waits until all copies are level, reads everything back and compares; then once more from every other
    /// copy as primary if `everywhere`.
    pub(crate) async fn prove(&self, load: LedgerLoad, everywhere: bool) -> LedgerModel {
        let model = load.stop().await.expect("every append is settled");
        assert_eq!(model.unknown, Vec::<u64>::new(), "all could be settled");
        self.stage.wait_level(LEDGER).await.expect("level");
        self.holds(&model).await;
        if everywhere {
            for node in [ONE, TWO, THREE] {
                let moved = self.stage.move_primary(LEDGER, node).await;
                moved.expect("a planned switchover");
                self.holds(&model).await;
            }
        }
        model
    }

    /// Begins to write to the block volume over NBD, through `node`.
    pub(crate) async fn disk_load(&self, node: NodeId) -> DiskLoad {
        let address = self.stage.nbd(node).expect("exports");
        let load = DiskLoad::start(&address, DISK, 29, 4).await;
        load.expect("the export opens")
    }

    /// Makes `node` the block volume's primary.
    pub(crate) async fn move_disk(&self, node: NodeId) {
        let moved = self.stage.move_primary(DISK, node).await;
        moved.expect("a planned switchover");
    }

    /// Waits until writes to the block volume are answered.
    pub(crate) async fn goes_on(disk: &DiskLoad) {
        let from = disk.gaps().count();
        wait_for("writes of the disk", PATIENCE, async || {
            assert!(!disk.has_ended(), "the disk's writer ended by itself");
            (disk.gaps().count() > from + 20).then_some(())
        })
        .await;
    }

    /// Ends the writes, none of which failed, and compares all of the volume on every node as primary.
    pub(crate) async fn disk_ends_equal(&self, disk: DiskLoad) {
        let model = disk.stop().await.expect("no request failed");
        self.stage.wait_whole(DISK).await.expect("whole again");
        for node in [ONE, TWO, THREE] {
            self.move_disk(node).await;
            let address = self.stage.nbd(node).expect("exports");
            let found = model.compare(&address, DISK).await.expect("reads back");
            assert_eq!(found.blocks, 0, "node {node}: {found:?}");
        }
    }

    async fn holds(&self, model: &LedgerModel) {
        let proof = prove(&self.stage.client, LEDGER, model)
            .await
            .expect("the log reads back");
        assert!(proof.holds(), "{proof:#?}");
    }

    /// Proves, and stops all nodes.
    pub(crate) async fn end(self, load: LedgerLoad) {
        self.prove(load, false).await;
        self.stop().await;
    }

    pub(crate) async fn stop(self) {
        self.stage.dev.stop().await;
    }
}

/// Whether no thread of a process runs. On a busy machine they all run on after a SIGSTOP, for milliseconds, until the one that takes
/// the signal has had its turn.
fn stands_still(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_some_and(|state| state.starts_with('T'))
    })
}

impl Drop for Rig {
    /// The logs of a cluster that failed are kept for whoever looks into it.
    fn drop(&mut self) {
        if std::thread::panicking()
            && std::env::var_os(KEEP).is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept: {}", dir.keep().display());
        }
    }
}

/// The binary under test.
pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_mainstay").into()
}

/// Waits for acknowledgements of what was written from now on: more than could have been on their way.
pub(crate) async fn progress(load: &LedgerLoad) {
    let from = load.gaps().count();
    let more = wait_for("acknowledgements", SERVED_WITHIN, async || {
        assert!(!load.has_ended(), "the writer ended by itself");
        (load.gaps().count() > from + 2 * IN_FLIGHT as u64).then_some(())
    });
    more.await;
}

/// Waits until `condition` gives something, or fails the test.
pub(crate) async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let give_up = Instant::now() + limit;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        sleep(LOOK_EVERY).await;
    }
}
