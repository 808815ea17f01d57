//! Processes of a cluster whose owner was killed.

use std::path::Path;
use std::time::Duration;

use super::Signal;
use super::state::ClusterFile;
use crate::{files, processes, supervisor};

/// Stops them and returns how many there were. Call under the directory's lock only.
pub(super) async fn stop(dir: &Path) -> usize {
    let found = find(dir);
    for (pid, mark) in &found {
        tracing::warn!(
            pid,
            "stopping a process that an earlier cluster in this directory left"
        );
        if processes::runs(*pid, mark) {
            // A frozen process hears nothing else.
            let _ = processes::send(*pid, Signal::CONT);
            let _ = processes::send(*pid, Signal::TERM);
        }
    }
    for (pid, mark) in &found {
        if !processes::gone_within(*pid, mark, GRACE).await {
            let _ = processes::send(*pid, Signal::KILL);
            processes::gone_within(*pid, mark, GRACE).await;
        }
    }
    found.len()
}

fn find(dir: &Path) -> Vec<(u32, String)> {
    let Ok(Some(file)) = files::read_json::<ClusterFile>(&ClusterFile::path(dir)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for node in &file.nodes {
        found.extend(node.processes());
        // The worker may have been started after the file was last written.
        if let Some(run) = supervisor::read_run_file(&node.data_dir)
            && let supervisor::RunState::Running(worker) = run.worker
        {
            found.push((worker.pid, worker.instance.to_string()));
        }
    }
    found.sort();
    found.dedup();
    found.retain(|(pid, mark)| processes::runs(*pid, mark));
    found
}

/// For a worker to hand over and leave.
const GRACE: Duration = Duration::from_secs(10);
