//! What the tests share: waiting for conditions, and one node to supervise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use mainstay_node::devcluster::{Layout, Signal, Wanted, random_loopback};
use mainstay_node::processes;
use mainstay_node::supervisor::{self, RunState, WorkerState};
use mainstay_types::NodeId;

use crate::fakes;

/// Waits until `condition` gives something, or fails the test.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A shape, on an address of its own: tests that run at the same time never want the same port.
pub(crate) fn wanted(nodes: u32, witnesses: u32) -> Wanted {
    Wanted {
        nodes: Some(nodes),
        witnesses: Some(witnesses),
        standby: None,
        host: Some(random_loopback()),
    }
}

/// This program, to be started in one of its other parts.
pub(crate) fn program() -> PathBuf {
    std::env::current_exe().expect("this program")
}

/// The lines of a file; none if it is not there.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A node with a configuration and a directory of its own, and what is started of it.
pub(crate) struct TestNode {
    pub(crate) config: PathBuf,
    pub(crate) data_dir: PathBuf,
    started: Vec<u32>,
    _dir: tempfile::TempDir,
}

impl TestNode {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::open(dir.path(), wanted(1, 1)).expect("a layout");
        layout
            .write_configs("", &BTreeMap::new())
            .expect("configurations");
        let id = NodeId(1);
        std::fs::create_dir_all(layout.data_dir(id)).expect("a data directory");
        Self {
            config: layout.config_path(id),
            data_dir: layout.data_dir(id),
            started: Vec::new(),
            _dir: dir,
        }
    }

    pub(crate) fn put(&self, name: &str, content: &str) {
        std::fs::write(self.data_dir.join(name), content).expect("written");
    }

    pub(crate) fn supervise(&mut self, options: &[&str]) -> Child {
        let child = Command::new(program())
            .arg("node")
            .arg("--config")
            .arg(&self.config)
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        self.started.push(child.id());
        child
    }

    /// The worker of `supervisor`, once it answers; not the one of instance `but`.
    #[track_caller]
    pub(crate) fn worker(&self, supervisor: &Child, but: Option<WorkerState>) -> WorkerState {
        wait_for("a worker", || {
            let run = supervisor::read_run_file(&self.data_dir)?;
            let RunState::Running(worker) = run.worker else {
                return None;
            };
            let started = self.starts().contains(&worker.instance.to_string());
            (run.supervisor_pid == supervisor.id() && Some(worker) != but && started)
                .then_some(worker)
        })
    }

    pub(crate) fn starts(&self) -> Vec<String> {
        lines(&self.data_dir.join(fakes::STARTS))
    }

    pub(crate) fn reports(&self) -> Vec<String> {
        lines(&self.data_dir.join(fakes::REPORTS))
    }
}

impl Drop for TestNode {
    /// A failed test leaves no processes.
    fn drop(&mut self) {
        let mark = self.config.to_string_lossy().into_owned();
        for pid in &self.started {
            kill_marked(*pid, &mark);
        }
        if let Some(run) = supervisor::read_run_file(&self.data_dir)
            && let RunState::Running(worker) = run.worker
        {
            kill_marked(worker.pid, &worker.instance.to_string());
        }
    }
}

fn kill_marked(pid: u32, mark: &str) {
    if processes::runs(pid, mark) {
        let _ = processes::send(pid, Signal::KILL);
    }
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    processes::send(pid, signal).expect("the process is there");
}

/// Waits for a child, or fails the test.
#[track_caller]
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    wait_for("the end of a process", || {
        child.try_wait().expect("our child")
    })
}

const PATIENCE: Duration = Duration::from_secs(30);
