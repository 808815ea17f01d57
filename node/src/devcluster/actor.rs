//! The one task that owns the processes of a development cluster: one event at a time, then `cluster.json`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use mainstay_types::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::layout::Layout;
use super::state::{ClusterFile, NodeState, NodeStatus};
use super::{DevError, Signal, Target, health};
use crate::supervisor::{self, RunState, WorkerState};
use crate::{files, processes};

/// What the owner of the handle wants.
#[derive(Debug)]
pub(super) enum Command {
    Restart {
        id: NodeId,
        reply: Reply,
    },
    Kill {
        id: NodeId,
        signal: Signal,
        target: Target,
        reply: Reply,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

type Reply = oneshot::Sender<Result<(), DevError>>;

/// What happened to the start `start` of node `id`; events of an earlier start are of no interest.
#[derive(Debug)]
struct Event {
    id: NodeId,
    start: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// The supervisor wrote that it started this worker.
    WorkerSeen(WorkerState),
    /// The node answered.
    Healthy,
    /// It did not in time.
    Silent,
    /// The supervisor ended.
    SupervisorEnded(String),
    /// A worker without a supervisor ended.
    WorkerGone,
    /// The pause before a restart is over.
    Respawn,
}

#[derive(Debug, Default)]
struct Node {
    /// Counts the starts.
    start: u64,
    /// Who waits for the node to answer.
    waiting: Vec<Reply>,
    /// Restarts in a row that did not last; sets the pause before the next.
    respawns: u32,
}

pub(super) struct Actor {
    layout: Layout,
    program: PathBuf,
    respawn: bool,
    nodes: BTreeMap<NodeId, Node>,
    file: ClusterFile,
    published: watch::Sender<ClusterFile>,
    events: mpsc::UnboundedSender<Event>,
    /// Set once: nothing is started any more.
    stopping: bool,
}

impl Actor {
    pub(super) fn spawn(
        layout: Layout,
        program: PathBuf,
        respawn: bool,
    ) -> (mpsc::Sender<Command>, watch::Receiver<ClusterFile>) {
        let file = ClusterFile::new(&layout);
        let (published, state) = watch::channel(file.clone());
        let (events, happened) = mpsc::unbounded_channel();
        let (commands, asked) = mpsc::channel(16);
        let actor = Self {
            nodes: layout
                .nodes
                .iter()
                .map(|n| (n.id, Node::default()))
                .collect(),
            layout,
            program,
            respawn,
            file,
            published,
            events,
            stopping: false,
        };
        tokio::spawn(actor.run(asked, happened));
        (commands, state)
    }

    async fn run(
        mut self,
        mut asked: mpsc::Receiver<Command>,
        mut happened: mpsc::UnboundedReceiver<Event>,
    ) {
        self.publish();
        loop {
            tokio::select! {
                command = asked.recv() => match command {
                    Some(Command::Stop { reply }) => {
                        self.stop(&mut happened).await;
                        let _ = reply.send(());
                        return;
                    }
                    Some(command) => self.command(command),
                    // The handle was dropped, which killed the processes.
                    None => return,
                },
                Some(event) = happened.recv() => self.handle(event),
            }
            self.publish();
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Restart { id, reply } => match self.start(id) {
                Ok(()) => self.node(id).waiting.push(reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Kill {
                id,
                signal,
                target,
                reply,
            } => drop(reply.send(self.kill(id, signal, target))),
            Command::Stop { .. } => unreachable!("handled by the loop, which it ends"),
        }
    }

    fn handle(&mut self, event: Event) {
        let id = event.id;
        if self.node(id).start != event.start {
            return;
        }
        match event.what {
            What::WorkerSeen(worker) => {
                let status = self.status(id);
                status.worker_pid = Some(worker.pid);
                status.instance = Some(worker.instance);
                let http = status.http.clone();
                self.later(id, async move {
                    let answered = timeout(START_WITHIN, answers(http)).await;
                    Some(answered.map_or(What::Silent, |()| What::Healthy))
                });
            }
            What::Healthy => self.healthy(id),
            What::Silent => self.answer(id, Err("it does not answer on its HTTP address")),
            What::SupervisorEnded(reason) => self.supervisor_ended(id, reason),
            What::WorkerGone => self.ended(id, "ended without a supervisor to see how".to_owned()),
            What::Respawn => {
                if let Err(error) = self.start(id) {
                    tracing::error!(node = %id, %error, "cannot start the node again");
                }
            }
        }
    }

    fn healthy(&mut self, id: NodeId) {
        let status = self.status(id);
        if status.state == NodeState::Starting {
            status.state = NodeState::Running;
        }
        self.node(id).respawns = 0;
        self.answer(id, Ok(()));
    }

    fn supervisor_ended(&mut self, id: NodeId, reason: String) {
        let run = supervisor::read_run_file(&self.layout.data_dir(id));
        let own = self.status(id).supervisor_pid;
        let own_run = run.filter(|run| Some(run.supervisor_pid) == own);
        self.status(id).supervisor_pid = None;
        match own_run.map(|run| run.worker) {
            Some(RunState::Running(worker)) if processes::runs(worker.pid, &mark(worker)) => {
                let status = self.status(id);
                status.worker_pid = Some(worker.pid);
                status.instance = Some(worker.instance);
                status.state = NodeState::Unsupervised;
                self.watch_worker(id, worker);
            }
            Some(RunState::Ended { reason }) => self.ended(id, reason),
            // Both are gone, or the supervisor never came as far as a worker.
            _ => self.ended(id, reason),
        }
    }

    fn ended(&mut self, id: NodeId, reason: String) {
        let status = self.status(id);
        status.supervisor_pid = None;
        status.worker_pid = None;
        status.instance = None;
        let clean = reason == supervisor::STOPPED;
        status.state = NodeState::Exited {
            reason: reason.clone(),
        };
        self.answer(id, Err(&reason));
        if self.respawn && !self.stopping && !clean {
            self.respawn_later(id);
        }
    }

    fn respawn_later(&mut self, id: NodeId) {
        let node = self.node(id);
        let pause = RESPAWN_MIN * 2_u32.saturating_pow(node.respawns.min(6));
        node.respawns += 1;
        self.later(id, async move {
            sleep(pause).await;
            Some(What::Respawn)
        });
    }

    /// Tells those who wait for `id` how it went.
    fn answer(&mut self, id: NodeId, outcome: Result<(), &str>) {
        let log = self.layout.log_path(id);
        for reply in std::mem::take(&mut self.node(id).waiting) {
            let outcome = outcome.map_err(|reason| DevError::NotStarted {
                id,
                reason: reason.to_owned(),
                tail: log_tail(&log),
                log: log.clone(),
            });
            let _ = reply.send(outcome);
        }
    }

    fn start(&mut self, id: NodeId) -> Result<(), DevError> {
        match self.file.node(id) {
            None => return Err(self.unknown(id)),
            Some(node) if !matches!(node.state, NodeState::Exited { .. }) => {
                return Err(DevError::NodeRuns(id));
            }
            Some(_) => {}
        }
        let mut child = self.spawn_supervisor(id).map_err(|source| DevError::Io {
            path: self.program.clone(),
            source,
        })?;
        let supervisor_pid = child.id();
        let status = self.status(id);
        status.state = NodeState::Starting;
        status.supervisor_pid = supervisor_pid;
        let data_dir = status.data_dir.clone();
        self.node(id).start += 1;
        self.later(id, async move {
            let ended = child.wait().await;
            Some(What::SupervisorEnded(match ended {
                Ok(status) => supervisor::describe(status),
                Err(error) => error.to_string(),
            }))
        });
        self.later(id, async move {
            let seen = timeout(START_WITHIN, worker_of(data_dir, supervisor_pid?)).await;
            Some(seen.map_or(What::Silent, What::WorkerSeen))
        });
        Ok(())
    }

    fn spawn_supervisor(&self, id: NodeId) -> io::Result<tokio::process::Child> {
        let log: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.layout.log_path(id))?;
        tokio::process::Command::new(&self.program)
            .arg("node")
            .arg("--config")
            .arg(self.layout.config_path(id))
            .arg("--no-restart")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal reaches the owner alone, which stops the nodes in order.
            .process_group(0)
            .spawn()
    }

    /// Runs `what` beside everything else and handles its result, unless the node was started anew meanwhile.
    fn later(&mut self, id: NodeId, what: impl Future<Output = Option<What>> + Send + 'static) {
        let start = self.node(id).start;
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Some(what) = what.await {
                // The actor ended: nobody is interested.
                let _ = events.send(Event { id, start, what });
            }
        });
    }

    fn watch_worker(&mut self, id: NodeId, worker: WorkerState) {
        self.later(id, async move {
            while !processes::gone_within(worker.pid, &mark(worker), LONG).await {}
            Some(What::WorkerGone)
        });
    }

    fn kill(&mut self, id: NodeId, signal: Signal, target: Target) -> Result<(), DevError> {
        let Some(node) = self.file.node(id) else {
            return Err(self.unknown(id));
        };
        let supervisor = node.supervisor_pid.map(|pid| (pid, node.supervisor_mark()));
        let worker = node.worker_pid.zip(node.instance);
        let worker = worker.map(|(pid, instance)| (pid, instance.to_string()));
        let meant: Vec<(u32, String)> = match target {
            Target::Supervisor => supervisor.into_iter().collect(),
            Target::Worker => worker.into_iter().collect(),
            Target::Both => supervisor.into_iter().chain(worker).collect(),
        };
        let mut sent = 0;
        for (pid, mark) in meant {
            if processes::runs(pid, &mark) && processes::send(pid, signal).is_ok() {
                sent += 1;
            }
        }
        if sent == 0 {
            return Err(DevError::NoProcess(id));
        }
        Ok(())
    }

    async fn stop(&mut self, happened: &mut mpsc::UnboundedReceiver<Event>) {
        self.stopping = true;
        let (data, witnesses): (Vec<_>, Vec<_>) = self
            .file
            .nodes
            .iter()
            .map(|node| (node.id, node.roles.contains(&crate::config::Role::Data)))
            .partition(|(_, data)| *data);
        for group in [data, witnesses] {
            let ids: Vec<NodeId> = group.into_iter().map(|(id, _)| id).collect();
            self.stop_nodes(&ids, happened).await;
        }
        self.file.up_pid = None;
        self.publish();
    }

    async fn stop_nodes(&mut self, ids: &[NodeId], happened: &mut mpsc::UnboundedReceiver<Event>) {
        for id in ids {
            // A frozen node hears nothing else; one that is gone needs nothing.
            let _ = self.kill(*id, Signal::CONT, Target::Both);
            let supervised = self.status(*id).supervisor_pid.is_some();
            let target = if supervised {
                Target::Supervisor
            } else {
                Target::Worker
            };
            let _ = self.kill(*id, Signal::TERM, target);
        }
        let stopped = timeout(STOP_WITHIN, self.drain(ids, happened)).await;
        if stopped.is_ok() {
            return;
        }
        for id in ids {
            if self.kill(*id, Signal::KILL, Target::Both).is_ok() {
                tracing::warn!(node = %id, "did not stop within {STOP_WITHIN:?}: killed");
            }
        }
        let _ = timeout(STOP_WITHIN, self.drain(ids, happened)).await;
    }

    /// Handles events until nothing of `ids` runs.
    async fn drain(&mut self, ids: &[NodeId], happened: &mut mpsc::UnboundedReceiver<Event>) {
        while ids.iter().any(|id| self.runs(*id)) {
            let Some(event) = happened.recv().await else {
                return;
            };
            self.handle(event);
            self.publish();
        }
    }

    fn runs(&self, id: NodeId) -> bool {
        self.file
            .node(id)
            .is_some_and(|node| !matches!(node.state, NodeState::Exited { .. }))
    }

    fn publish(&mut self) {
        if *self.published.borrow() == self.file && ClusterFile::path(&self.layout.dir).exists() {
            return;
        }
        let path = ClusterFile::path(&self.layout.dir);
        if let Err(error) = files::write_json(&path, &self.file) {
            tracing::error!(%error, path = %path.display(), "cannot write the cluster's state");
        }
        self.published.send_replace(self.file.clone());
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.entry(id).or_default()
    }

    /// Of a node that is known to exist.
    fn status(&mut self, id: NodeId) -> &mut NodeStatus {
        let mut nodes = self.file.nodes.iter_mut();
        nodes
            .find(|node| node.id == id)
            .expect("events and checked commands name nodes of the layout")
    }

    fn unknown(&self, id: NodeId) -> DevError {
        DevError::NoSuchNode {
            id,
            known: self.nodes.keys().copied().collect(),
        }
    }
}

fn mark(worker: WorkerState) -> String {
    worker.instance.to_string()
}

/// Waits until the supervisor `pid` wrote which worker it started.
async fn worker_of(data_dir: PathBuf, pid: u32) -> WorkerState {
    loop {
        if let Some(run) = supervisor::read_run_file(&data_dir)
            && run.supervisor_pid == pid
            && let RunState::Running(worker) = run.worker
        {
            return worker;
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn answers(http: String) {
    while !health::is_healthy(&http).await {
        sleep(LOOK_EVERY).await;
    }
}

fn log_tail(log: &std::path::Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail: Vec<String> = lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect();
    tail.join("\n")
}

/// Any; the wait is repeated.
const LONG: Duration = Duration::from_secs(3_600);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Recovery of a large data directory takes a while.
const START_WITHIN: Duration = Duration::from_secs(60);
/// For a node to hand over and leave.
const STOP_WITHIN: Duration = Duration::from_secs(10);
const RESPAWN_MIN: Duration = Duration::from_millis(200);
const TAIL_LINES: usize = 8;
