//! Judges histories of `mainstay workload` (`docs/history.md`).
//!
//! A checker knows what was asked and answered, and nothing of the cluster. What it cannot judge is an error, never a pass: a history
//! without its end, a line that it does not understand, a part that is too tangled.

mod bank;
mod history;
mod log;
mod registers;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use history::{History, Operation, Outcome};

/// Operations that change what a volume holds.
const CHANGES: [&str; 4] = ["write", "append", "append_at", "transfer"];

/// Of `check`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Histories that `mainstay workload` wrote
    #[arg(required = true, value_name = "FILE")]
    histories: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is to be said of one history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) workload: String,
    pub(crate) ok: u64,
    pub(crate) info: u64,
    pub(crate) fail: u64,
    /// Of those that are ok, writes, appends and transfers.
    pub(crate) changes: u64,
    /// Records that tails of a log handed over.
    pub(crate) tailed: u64,
    /// In words, each with the operations that it is about.
    pub(crate) violations: Vec<String>,
}

/// Checks files. `Ok(false)` if one of them shows a violation.
pub(crate) fn check(options: &Options) -> anyhow::Result<bool> {
    let mut verdicts = Vec::new();
    for path in &options.histories {
        let verdict = of_file(path)?;
        if !options.json {
            println!("{}: {verdict}", path.display());
        }
        verdicts.push(verdict);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&verdicts)?);
    }
    Ok(verdicts.iter().all(Verdict::holds))
}

/// Checks one file.
pub(crate) fn of_file(path: &Path) -> anyhow::Result<Verdict> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let history = History::parse(&text);
    let checked = history.and_then(|history| of(&history));
    checked.with_context(|| format!("{} cannot be judged", path.display()))
}

fn of(history: &History) -> anyhow::Result<Verdict> {
    let violations = match history.begin.workload.as_str() {
        "registers" => registers::violations(history)?,
        "log" => log::violations(history)?,
        "bank" => bank::violations(history)?,
        other => bail!("no checker for the workload {other:?}"),
    };
    let count = |wanted: fn(&Operation) -> bool| {
        let operations = history.operations.iter();
        operations.filter(|operation| wanted(operation)).count() as u64
    };
    Ok(Verdict {
        workload: history.begin.workload.clone(),
        ok: count(|it| matches!(it.outcome, Outcome::Ok(_))),
        info: count(|it| matches!(it.outcome, Outcome::Info)),
        fail: count(|it| matches!(it.outcome, Outcome::Fail)),
        changes: count(|it| {
            matches!(it.outcome, Outcome::Ok(_)) && CHANGES.contains(&it.f.as_str())
        }),
        tailed: log::tailed(history),
        violations,
    })
}

impl Verdict {
    pub(crate) fn holds(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Violations printed of one history; the rest are counted.
const SHOWN: usize = 10;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self.violations.len() {
            0 => "no violation".to_owned(),
            1 => "1 VIOLATION".to_owned(),
            count => format!("{count} VIOLATIONS"),
        };
        write!(
            f,
            "{}: {} ok, {} info, {} fail; {found}",
            self.workload, self.ok, self.info, self.fail
        )?;
        for violation in self.violations.iter().take(SHOWN) {
            write!(f, "\n  {violation}")?;
        }
        if self.violations.len() > SHOWN {
            write!(f, "\n  and {} more", self.violations.len() - SHOWN)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_node::commands::workload::{self, Workload};
    use mainstay_testing::TestCluster;
    use mainstay_types::NodeId;

    use super::*;

    /// The whole way: a workload while every data node is stopped once, its history on disk, the verdict.
    async fn judged(workload: Workload) -> Verdict {
        let cluster = TestCluster::start().await.expect("started");
        let dir = tempfile::tempdir().expect("a directory");
        let args = workload::Args {
            workload,
            volume: "under-test".to_owned(),
            history: dir.path().join("history.jsonl"),
            time: Duration::from_secs(4),
            operations: 2000,
            processes: 6,
            rate: 300,
            deadline: Duration::from_millis(300),
            keys: 8,
            seed: 1,
            json: true,
        };
        let path = args.history.clone();
        let endpoints = cluster.endpoints();
        let running = tokio::spawn(async move {
            let mut said = Vec::new();
            workload::run(&args, endpoints, &mut said)
                .await
                .map(|()| said)
        });
        for node in [1, 2, 3].map(NodeId) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.fail(&[node]).await.expect("ended");
            tokio::time::sleep(Duration::from_millis(300)).await;
            cluster.start_again(node).await.expect("started again");
        }
        let said = running.await.expect("no panic").expect("ran to its end");
        assert!(String::from_utf8_lossy(&said).contains("\"seed\": 1"));
        of_file(&path).expect("judged")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_clients_of_a_cluster_with_failovers_saw_holds() {
        for workload in [Workload::Registers, Workload::Log, Workload::Bank] {
            let verdict = judged(workload).await;
            println!("{verdict}");
            assert!(verdict.holds(), "{verdict}");
            assert!(verdict.changes > 50, "{verdict:?}");
            assert_eq!(
                verdict.tailed > 50,
                workload == Workload::Log,
                "{verdict:?}"
            );
        }
    }
}
