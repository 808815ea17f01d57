//! Clients write down what they see of a cluster to which everything happens, and their histories are judged.
//!
//! Three data nodes and three witnesses are real processes behind a network that breaks (`network`). The workloads of `mainstay workload`
//! run as processes of their own. One fault after another, sometimes two at a time, strikes primaries more often than others: killed, with and
//! without their supervisor, paused, cut off in both directions or in one. At the end all is healed, every volume must be whole, and the
//! histories must hold.
//!
//! * A seed decides which faults strike whom and when; what the processes make of it is not repeatable.
//! * It fails for a violation, for a history that cannot be judged or in which hardly anything succeeded, and for volumes that do not come
//!   back.
//! * Processes, and the directory of a run that held, are gone at the end.

mod faults;
mod network;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use mainstay_client::report::{CreateVolume, VolumeHealth};
use mainstay_client::{Admin, Client, ClientConfig};
use mainstay_node::devcluster::{
    DevCluster, Layout, Options as ClusterOptions, Wanted, random_loopback,
};
use mainstay_types::{NodeId, VolumeKind};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::process::{Child, Command};

use crate::check::{self, Verdict};
use faults::Fault;
use network::Network;

/// Of `chaos`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n\
  cargo xtask chaos                        two minutes, with a random seed\n\
  cargo xtask chaos --minutes 60 --seed 7\n\
  cargo xtask check DIR/*.jsonl            judge the histories of a run that was kept once more")]
pub(crate) struct Options {
    /// For so long
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,

    /// Seed of the faults and of the load [default: random, and printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Operations a second of each of the three workloads
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,

    /// Use this program instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Keep the directory: histories, logs and data of all nodes
    #[arg(long)]
    keep: bool,
}

const WORKLOADS: [&str; 3] = ["registers", "log", "bank"];
const PROCESSES: u32 = 6;
const REGISTERS: u32 = 24;
const ACCOUNTS: u32 = 8;
/// Shorter than what a fault lasts, so that some answers are lost for good.
const DEADLINE_MS: u64 = 1500;
/// From the first fault to the first operation, and from the last one to the end of the load.
const CALM: Duration = Duration::from_secs(2);
/// A fault lasts up to this long; a killed node stays dead for as long.
const LASTS: std::ops::Range<f64> = 0.2..3.5;
/// Between two faults.
const RESTS: std::ops::Range<f64> = 0.3..1.5;
/// For volumes to serve again, and to be whole, once nothing is broken any more.
const BACK_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Writes, appends or transfers that each workload must have got through.
const CHANGES_MIN: u64 = 50;

/// Promotions on suspicion are not spaced here: more of them is what this is for.
const CONFIG: &str = "[lease]\nhold_down_ms = 100\nhold_down_longest_ms = 200\n";

/// Runs it. `Ok(false)` if something is wrong with the cluster.
pub(crate) fn chaos(options: &Options, root: &Path) -> anyhow::Result<bool> {
    let program = match &options.program {
        Some(program) => program.canonicalize().context("--program")?,
        None => crate::product::build(root)?,
    };
    with_program(options, &program)
}

/// As part of the gate: bounded, with a program that the tests have built already.
pub(crate) fn in_gate(program: &Path) -> anyhow::Result<bool> {
    let options = Options {
        minutes: 2,
        seed: None,
        rate: 100,
        program: None,
        keep: false,
    };
    with_program(&options, program)
}

fn with_program(options: &Options, program: &Path) -> anyhow::Result<bool> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let mut dir = tempfile::Builder::new()
        .prefix("mainstay-chaos-")
        .tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    eprintln!(
        "seed {seed}, for {} min, in {}",
        options.minutes,
        dir.path().display()
    );
    let ran = runtime.block_on(async {
        tokio::select! {
            ran = run(options, seed, program, dir.path()) => ran,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    });
    let holds = match &ran {
        Ok(found) => {
            print!("{}", report(seed, found));
            found.holds()
        }
        Err(_) => false,
    };
    if options.keep || !holds {
        dir.disable_cleanup(true);
        eprintln!("kept: {}", dir.path().display());
    }
    ran.map(|_| holds)
}

/// What was done and seen.
#[derive(Debug, Default)]
struct Found {
    faults: BTreeMap<Fault, u32>,
    primaries: u32,
    verdicts: Vec<Verdict>,
    /// Why volumes did not come back, if so.
    not_back: Vec<String>,
    /// What each workload said of itself.
    told: Vec<String>,
}

impl Found {
    fn holds(&self) -> bool {
        self.not_back.is_empty()
            && self.verdicts.len() == WORKLOADS.len()
            && self.verdicts.iter().all(Verdict::holds)
            && self.idle().next().is_none()
    }

    /// Verdicts that say nothing: what hardly happened cannot have gone wrong.
    fn idle(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| {
            verdict.changes < CHANGES_MIN || (verdict.workload == "log" && verdict.tailed == 0)
        })
    }
}

async fn run(options: &Options, seed: u64, program: &Path, dir: &Path) -> anyhow::Result<Found> {
    let wanted = Wanted {
        host: Some(random_loopback()),
        ..Wanted::default()
    };
    let cluster_dir = dir.join("cluster");
    std::fs::create_dir_all(&cluster_dir)?;
    // The plan first: the network has to know the ports, and the nodes the network's.
    let layout = Layout::open(&cluster_dir, wanted)?;
    let network = Network::between(&layout).await?;
    let cluster = DevCluster::start(ClusterOptions {
        wanted,
        program: program.to_owned(),
        extra_config: CONFIG.to_owned(),
        routes: network.routes.clone(),
        ..ClusterOptions::new(&cluster_dir)?
    });
    let cluster = cluster.await?;
    let found = match Client::connect(ClientConfig::new(cluster.endpoints())).await {
        Ok(client) => {
            let stage = Stage {
                cluster: &cluster,
                network,
                admin: client.admin(),
            };
            stage.run(options, seed, program, dir).await
        }
        Err(error) => Err(error.into()),
    };
    cluster.stop().await;
    found
}

/// What faults are played on.
struct Stage<'a> {
    cluster: &'a DevCluster,
    network: Network,
    admin: Admin,
}

impl Stage<'_> {
    async fn run(
        &self,
        options: &Options,
        seed: u64,
        program: &Path,
        dir: &Path,
    ) -> anyhow::Result<Found> {
        for (volume, first) in WORKLOADS.into_iter().zip(1..) {
            self.create(volume, NodeId(first)).await?;
        }
        for volume in WORKLOADS {
            self.whole(volume).await?;
        }
        let time = Duration::from_secs(60) * options.minutes;
        let mut loads = Vec::new();
        for workload in WORKLOADS {
            loads.push(self.load(workload, options, seed, program, dir)?);
        }
        let mut found = Found::default();
        tokio::time::sleep(CALM).await;
        let until = Instant::now() + time.saturating_sub(2 * CALM);
        self.faults(&mut StdRng::seed_from_u64(seed), until, &mut found)
            .await?;
        for volume in WORKLOADS {
            if let Err(error) = self.whole(volume).await {
                found.not_back.push(format!("{error:#}"));
            }
        }
        for load in loads {
            // At the end it opens, reads everything, and lets the tail come to the end, each with patience.
            let told = tokio::time::timeout(CALM + 3 * BACK_WITHIN, load.wait_with_output());
            let told = told.await.context("a workload does not end")??;
            ensure!(
                told.status.success(),
                "a workload ended with {}",
                told.status
            );
            let told = String::from_utf8_lossy(&told.stdout);
            found.told.push(told.trim().to_owned());
        }
        for workload in WORKLOADS {
            found
                .verdicts
                .push(check::of_file(&history(dir, workload))?);
        }
        Ok(found)
    }

    async fn create(&self, volume: &str, first: NodeId) -> anyhow::Result<()> {
        let kind = match volume {
            "registers" => VolumeKind::Block {
                size_bytes: u64::from(REGISTERS) * 4096,
            },
            _ => VolumeKind::Log,
        };
        let mut wanted = CreateVolume::new(volume, kind);
        wanted.shared = volume == "registers";
        let others = DATA_NODES.into_iter().filter(|node| *node != first);
        wanted.placement = std::iter::once(first).chain(others).collect();
        let created = self.admin.create_volume(wanted).await;
        created.with_context(|| format!("create {volume}"))?;
        Ok(())
    }

    /// Waits until `volume` has all its copies.
    async fn whole(&self, volume: &str) -> anyhow::Result<()> {
        let give_up = Instant::now() + BACK_WITHIN;
        loop {
            let missing = match self.admin.show_volume(volume).await {
                Ok(status) => {
                    let all = status.members.len() == DATA_NODES.len();
                    if all && status.health == VolumeHealth::Ok {
                        return Ok(());
                    }
                    status.problems.join("; ")
                }
                Err(error) => error.to_string(),
            };
            ensure!(
                Instant::now() < give_up,
                "{volume} is not whole {BACK_WITHIN:?} after the last fault: {missing}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn load(
        &self,
        workload: &str,
        options: &Options,
        seed: u64,
        program: &Path,
        dir: &Path,
    ) -> anyhow::Result<Child> {
        let keys = if workload == "bank" {
            ACCOUNTS
        } else {
            REGISTERS
        };
        let seconds = u64::from(options.minutes) * 60;
        let numbers = [
            ("--seconds", seconds),
            ("--rate", options.rate.into()),
            ("--processes", PROCESSES.into()),
            ("--keys", keys.into()),
            ("--deadline-ms", DEADLINE_MS),
            ("--seed", seed),
        ];
        let mut command = Command::new(program);
        command.args(["workload", workload, "--volume", workload]);
        for (option, number) in numbers {
            command.arg(option).arg(number.to_string());
        }
        command.arg("--history").arg(history(dir, workload));
        command
            .arg("--endpoints")
            .arg(self.cluster.endpoints().join(","));
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.kill_on_drop(true).spawn();
        child.with_context(|| program.display().to_string())
    }

    async fn faults(
        &self,
        random: &mut StdRng,
        until: Instant,
        found: &mut Found,
    ) -> anyhow::Result<()> {
        while Instant::now() < until {
            let victim = self.victim(random, found).await;
            let mut struck = vec![(Fault::random(random), victim)];
            if random.random_bool(0.2) {
                let other = anybody(random);
                if other != victim {
                    struck.push((Fault::random(random), other));
                }
            }
            for (fault, node) in &struck {
                *found.faults.entry(*fault).or_default() += 1;
                let done = fault.strike(*node, self.cluster, &self.network).await;
                done.with_context(|| format!("node {node}: {fault}"))?;
                eprintln!("node {node} {fault}");
            }
            tokio::time::sleep(Duration::from_secs_f64(random.random_range(LASTS))).await;
            for (fault, node) in &struck {
                let undone = fault.undo(*node, self.cluster, &self.network).await;
                undone.with_context(|| format!("node {node}, no more {fault}"))?;
            }
            tokio::time::sleep(Duration::from_secs_f64(random.random_range(RESTS))).await;
        }
        Ok(())
    }

    /// A primary, more often than not.
    async fn victim(&self, random: &mut StdRng, found: &mut Found) -> NodeId {
        let volume = WORKLOADS[random.random_range(0..WORKLOADS.len())];
        let anybody = anybody(random);
        if random.random_bool(0.65)
            && let Ok(status) = self.admin.show_volume(volume).await
            && DATA_NODES.contains(&status.primary)
        {
            found.primaries += 1;
            return status.primary;
        }
        anybody
    }
}

const DATA_NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const WITNESSES: [NodeId; 3] = [NodeId(101), NodeId(102), NodeId(103)];

fn anybody(random: &mut StdRng) -> NodeId {
    let all = [DATA_NODES, WITNESSES].concat();
    all[random.random_range(0..all.len())]
}

fn history(dir: &Path, workload: &str) -> PathBuf {
    dir.join(format!("{workload}.jsonl"))
}

fn report(seed: u64, found: &Found) -> String {
    let mut out = String::new();
    let total: u32 = found.faults.values().sum();
    let mut line = |text: String| writeln!(out, "{text}").expect("a String takes everything");
    line(format!(
        "\nseed {seed}: {total} faults, {} of them against a primary that was chosen for it",
        found.primaries
    ));
    for (fault, count) in &found.faults {
        line(format!("  {count:>4}  {fault}"));
    }
    for told in &found.told {
        line(told.clone());
    }
    for verdict in &found.verdicts {
        line(verdict.to_string());
    }
    for idle in found.idle() {
        line(format!(
            "IDLE: {}: {} changes, at least {CHANGES_MIN} are needed; {} records came through tails",
            idle.workload, idle.changes, idle.tailed
        ));
    }
    for not_back in &found.not_back {
        line(format!("NOT BACK: {not_back}"));
    }
    line(if found.holds() {
        "all of it holds".to_owned()
    } else {
        "FAILED".to_owned()
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> Found {
        let verdict = |workload: &str| Verdict {
            workload: workload.to_owned(),
            ok: 2 * CHANGES_MIN,
            changes: CHANGES_MIN,
            tailed: u64::from(workload == "log"),
            ..Verdict::default()
        };
        Found {
            verdicts: WORKLOADS.map(verdict).to_vec(),
            ..Found::default()
        }
    }

    #[test]
    fn what_hardly_happened_does_not_hold() {
        assert!(busy().holds(), "{}", report(1, &busy()));
        for (place, workload) in WORKLOADS.into_iter().enumerate() {
            let mut idle = busy();
            idle.verdicts[place].changes -= 1;
            assert!(!idle.holds(), "{workload}");
            let wanted = format!("IDLE: {workload}: 49 changes");
            let said = report(1, &idle);
            assert!(said.contains(&wanted), "{said}");
        }
        let mut unseen = busy();
        unseen.verdicts[1].tailed = 0;
        assert!(!unseen.holds(), "no tail saw anything");
    }
}
