//! The small process above a node: starts the worker, outlives it, and tells the witnesses when it crashed.
//!
//! Rules that hold across it:
//!
//! * An instance is released only after `wait` returned for that very process. Before that the process
//!   could still acknowledge something.
//! * Each start of the worker is a new instance; no instance is ever started twice.
//! * A worker that ended with code 0 handed its roles over by itself: nothing is reported.
//! * The worker does not notice the end of its supervisor. A machine that is lost loses both at once, so the
//!   supervisor's silence means nothing and nobody waits for its word.
//! * Nothing here allocates with load: the process stays at a few MiB whatever the node does.

mod release;
mod runfile;
mod signals;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_storage::engine::may_pass;
use mainstay_types::{Instance, NodeId};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::processes;

pub use release::{ReleaseError, ReleaseSink, WaitForLease};
pub use runfile::{Run, RunFile, RunState, WorkerState};
use signals::Signals;

/// A worker ends with this code when starting it again cannot help: bad configuration, another node's data
/// directory. The supervisor then ends with the same code.
pub const EXIT_CONFIG: i32 = 78;

/// What to supervise.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node.
    pub node: NodeId,
    /// Its data directory: the run file and the lock are kept there.
    pub data_dir: PathBuf,
    /// Handed to the worker.
    pub config_path: PathBuf,
    /// The program to run as `PROGRAM worker --config FILE --instance ID`; usually this one.
    pub program: PathBuf,
    /// Whether a worker that ended unexpectedly is started again.
    pub restart: bool,
}

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// One is there already.
    #[error(
        "node {node} is already run by process {holder}; stop that process first, or give this node another data_dir than {}",
        data_dir.display()
    )]
    AlreadyRuns {
        /// The node.
        node: NodeId,
        /// Its data directory.
        data_dir: PathBuf,
        /// What the lock file says.
        holder: String,
    },
    /// A worker outlived its supervisor and does not stop.
    #[error(
        "process {pid}, a worker of node {node} whose supervisor is gone, does not stop; end it with `kill -9 {pid}` and start again"
    )]
    OrphanStays {
        /// The node.
        node: NodeId,
        /// The worker.
        pid: u32,
    },
    /// The data directory cannot be used.
    #[error("data directory {}: make it writable for this user, or set node.data_dir to one that is", path.display())]
    DataDir {
        /// The file or directory.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The worker cannot be started.
    #[error("cannot start the worker {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The system refused something that it never refuses.
    #[error("{what}")]
    System {
        /// What was asked.
        what: &'static str,
        /// The answer.
        source: io::Error,
    },
}

/// Runs the node until it is told to stop or must not go on; returns the exit code for this process.
///
/// Call on a `current_thread` runtime: nothing here needs a second thread.
pub async fn run<S: ReleaseSink>(options: Options, sink: S) -> Result<i32, SupervisorError> {
    let run_file = RunFile::claim(options.node, &options.data_dir)?;
    stop_orphan(&options, &run_file).await?;
    let signals = Signals::install().map_err(|source| SupervisorError::System {
        what: "install signal handlers",
        source,
    })?;
    let mut supervisor = Supervisor {
        options,
        run_file,
        signals,
        unwritten: None,
        reports: JoinSet::new(),
        sink: Arc::new(sink),
        pause: PAUSE_MIN,
    };
    let code = supervisor.supervise().await;
    while supervisor.reports.join_next().await.is_some() {}
    code
}

/// A worker whose supervisor was killed still holds the data directory. It cannot be adopted, for only a
/// parent can wait for a process; so it is asked to hand over and leave.
async fn stop_orphan(options: &Options, run_file: &RunFile) -> Result<(), SupervisorError> {
    let Some(worker) = run_file.left_behind() else {
        return Ok(());
    };
    let mark = worker.instance.to_string();
    if !processes::runs(worker.pid, &mark) {
        return Ok(());
    }
    tracing::warn!(
        pid = worker.pid,
        "a worker of this node outlived its supervisor: stopping it"
    );
    if processes::terminate(worker.pid, &mark, ORPHAN_GRACE).await {
        return Ok(());
    }
    Err(SupervisorError::OrphanStays {
        node: options.node,
        pid: worker.pid,
    })
}

struct Supervisor<S> {
    options: Options,
    run_file: RunFile,
    signals: Signals,
    /// What the run file should say and could not be made to.
    unwritten: Option<RunState>,
    /// Reports on their way; each ends by itself within a bounded time.
    reports: JoinSet<()>,
    sink: Arc<S>,
    /// Before the next restart.
    ///
    /// Invariant: `PAUSE_MIN <= pause <= PAUSE_MAX`.
    pause: Duration,
}

/// How a worker ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    /// A signal to stop came first.
    asked: bool,
    /// How long it ran.
    ran: Duration,
}

impl<S: ReleaseSink> Supervisor<S> {
    async fn supervise(&mut self) -> Result<i32, SupervisorError> {
        let mut last = None;
        loop {
            let instance = new_instance()?;
            let ended = match (self.run_worker(instance).await, last) {
                // At the first start somebody waits for the answer. Later on nobody would start the node again.
                (Err(SupervisorError::Spawn { source, .. }), Some(last)) if may_pass(&source) => {
                    tracing::warn!(error = %source, "cannot start a worker for now: it is tried again");
                    if !self.wait_before_restart(Duration::ZERO).await {
                        return Ok(exit_code(last));
                    }
                    continue;
                }
                (ended, _) => ended?,
            };
            last = Some(ended.status);
            if !ended.status.success() {
                self.report(instance, &ended);
            }
            if ended.asked || !self.worth_restarting(&ended) {
                return Ok(exit_code(ended.status));
            }
            if !self.wait_before_restart(ended.ran).await {
                return Ok(exit_code(ended.status));
            }
        }
    }

    async fn run_worker(&mut self, instance: Instance) -> Result<Ended, SupervisorError> {
        let started = Instant::now();
        let mut child = self.spawn(instance)?;
        let pid = child.id().unwrap_or_default();
        self.note(RunState::Running(WorkerState { pid, instance }));
        let mut asked = false;
        let status = loop {
            tokio::select! {
                // A worker that has ended must not be sent a signal: its id may be somebody else's.
                biased;
                status = child.wait() => break status,
                signal = self.signals.next() => {
                    asked = true;
                    forward(&child, signal);
                }
                () = tokio::time::sleep(NOTE_AGAIN), if self.unwritten.is_some() => self.note_again(),
            }
        };
        let status = status.map_err(|source| SupervisorError::System {
            what: "wait for the worker",
            source,
        })?;
        self.note(RunState::Ended {
            reason: describe(status),
        });
        Ok(Ended {
            status,
            asked,
            ran: started.elapsed(),
        })
    }

    fn spawn(&self, instance: Instance) -> Result<Child, SupervisorError> {
        Command::new(&self.options.program)
            .arg("worker")
            .arg("--config")
            .arg(&self.options.config_path)
            .arg("--instance")
            .arg(instance.to_string())
            .stdin(std::process::Stdio::null())
            // A group of its own: Ctrl-C at a terminal reaches the supervisor alone, which passes it on once.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|source| SupervisorError::Spawn {
                program: self.options.program.clone(),
                source,
            })
    }

    /// Tells the witnesses, beside everything else: the restart does not wait for it.
    fn report(&mut self, instance: Instance, ended: &Ended) {
        let node = self.options.node;
        tracing::error!(%node, %instance, reason = %describe(ended.status), "the worker ended unexpectedly");
        self.reports
            .spawn(release::report(self.sink.clone(), node, instance));
    }

    fn worth_restarting(&self, ended: &Ended) -> bool {
        self.options.restart && !ended.status.success() && ended.status.code() != Some(EXIT_CONFIG)
    }

    /// Returns whether to go on; a signal to stop ends the pause.
    async fn wait_before_restart(&mut self, ran: Duration) -> bool {
        if ran >= RAN_WELL {
            self.pause = PAUSE_MIN;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        tracing::info!(?pause, "starting a new worker after a pause");
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return true,
                _ = self.signals.next() => return false,
                () = tokio::time::sleep(NOTE_AGAIN), if self.unwritten.is_some() => self.note_again(),
            }
        }
    }

    /// Keeps the run file true. The node goes on without it, but a worker that it does not name is hidden from `mainstay up`, and from
    /// the next supervisor.
    fn note(&mut self, state: RunState) {
        if let Err(error) = self.run_file.write(&state) {
            if self.unwritten.is_none() {
                tracing::warn!(%error, path = %self.run_file.path().display(), "cannot write the run file: it is tried again");
            }
            self.unwritten = Some(state);
        } else if self.unwritten.take().is_some() {
            tracing::info!(path = %self.run_file.path().display(), "the run file is written after all");
        }
    }

    fn note_again(&mut self) {
        if let Some(state) = self.unwritten.clone() {
            self.note(state);
        }
    }
}

/// From the system's own randomness. Zero is left out: it reads as "none" in messages.
fn new_instance() -> Result<Instance, SupervisorError> {
    match OsRng.try_next_u64() {
        Ok(random) => Ok(Instance(random.max(1))),
        Err(error) => Err(SupervisorError::System {
            what: "draw a random instance id",
            source: io::Error::other(error),
        }),
    }
}

fn forward(child: &Child, signal: Signal) {
    // `id` is `None` once the child was waited for.
    let Some(pid) = child.id() else { return };
    if let Err(error) = processes::send(pid, signal) {
        tracing::warn!(%error, pid, "cannot pass the signal on to the worker");
    }
}

/// As a shell reports it: the code, or 128 plus the signal.
fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// How [`describe`] calls a clean end.
pub const STOPPED: &str = "stopped";

/// `stopped`, `exited with code 1` or `killed by signal 9`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => STOPPED.to_owned(),
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// Reads `supervisor.json` of a data directory; `None` when there is none or it cannot be read.
#[must_use]
pub fn read_run_file(data_dir: &Path) -> Option<Run> {
    runfile::read(data_dir)
}

/// How often a run file that could not be written is tried again.
const NOTE_AGAIN: Duration = Duration::from_secs(1);
/// The first restart comes quickly: most crashes do not repeat.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Later ones leave the machine and the log files alone.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A worker that ran this long did not crash because of how it was started.
const RAN_WELL: Duration = Duration::from_secs(30);
/// For a worker without a supervisor to hand over and leave.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);
