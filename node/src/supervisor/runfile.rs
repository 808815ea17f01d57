//! `supervisor.json` in the data directory: which processes run this node. And the lock that keeps it one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use mainstay_storage::identity::sign_lock;
use mainstay_types::{Instance, NodeId};
use serde::{Deserialize, Serialize};

use super::SupervisorError;
use crate::files;

/// A worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Its process id.
    pub pid: u32,
    /// Its instance.
    pub instance: Instance,
}

/// What the supervisor last saw of its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// It was started and not seen to end.
    Running(WorkerState),
    /// It ended.
    Ended {
        /// How.
        reason: String,
    },
}

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The supervisor that wrote it.
    pub supervisor_pid: u32,
    /// Its worker.
    #[serde(flatten)]
    pub worker: RunState,
}

/// The file, and the right to write it until dropped.
#[derive(Debug)]
pub struct RunFile {
    path: PathBuf,
    found: Option<Run>,
    _lock: File,
}

impl RunFile {
    /// Makes the data directory if it is missing and takes it for this supervisor.
    pub fn claim(node: NodeId, data_dir: &Path) -> Result<Self, SupervisorError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| SupervisorError::DataDir { path, source }
        };
        std::fs::create_dir_all(data_dir).map_err(fail(data_dir))?;
        let lock_path = data_dir.join("supervisor.lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(fail(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                // Nobody could sign on a full disk.
                let holder = match holder.trim() {
                    "" => "unknown",
                    holder => holder,
                };
                return Err(SupervisorError::AlreadyRuns {
                    node,
                    data_dir: data_dir.to_owned(),
                    holder: holder.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(fail(&lock_path)(source)),
        }
        sign_lock(&mut lock).map_err(fail(&lock_path))?;
        Ok(Self {
            path: path(data_dir),
            found: read(data_dir),
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The worker that an earlier supervisor did not see end.
    #[must_use]
    pub fn left_behind(&self) -> Option<WorkerState> {
        match self.found.as_ref()?.worker {
            RunState::Running(worker) => Some(worker),
            RunState::Ended { .. } => None,
        }
    }

    /// Replaces the content.
    pub fn write(&self, worker: &RunState) -> std::io::Result<()> {
        let run = Run {
            supervisor_pid: std::process::id(),
            worker: worker.clone(),
        };
        files::write_json(&self.path, &run)
    }
}

/// The file of `data_dir`; `None` when it is missing or not one.
pub(super) fn read(data_dir: &Path) -> Option<Run> {
    files::read_json(&path(data_dir)).ok().flatten()
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("supervisor.json")
}
