//! Real programs use a volume over NBD while its primaries are killed, and afterwards everything must be there.
//!
//! Each trial has a cluster of its own: three data nodes and three witnesses with default settings. Programs are connected
//! through a node that is never a victim; before each kill the volume's primary is on one that is. A killed node is
//! started again before the next kill.
//!
//! * Nothing is left behind: mounts, loop devices, processes and directories go with the trial, also when it fails or is
//!   interrupted. Only a failed trial keeps its directory, for the logs.
//! * What a trial cannot have on this machine is said plainly, and fails where `CI` is set.
//! * A time that is missed is printed and fails nothing; a lost or changed byte does.

mod ext4;
mod fio;
mod fio_verify;
mod image;
mod mount;
mod postgres;
mod programs;
mod rig;
mod switchover;
mod tools;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::report::{Outcome, Report};
use crate::tools::{Tool, in_ci, install_of};
use rig::Plan;

/// Of `soak`.
#[derive(Debug, Args)]
#[command(after_help = "Trials:\n\
  fio-verify  fio writes random blocks with checksums and reads them back; the last pass again through another node\n\
  ext4        a file system on nbdfuse and a loop device: trees are unpacked, e2fsck finds nothing, contents are equal\n\
  image       the same file system as an image that nbdcopy copies in and out; needs neither FUSE nor loop devices\n\
  postgres    PostgreSQL on that file system: every transaction that pgbench was told is committed is there\n\
  tools       nbdkit chained in front, qcow2 with qemu-img check, nbdsh over three nodes\n\
  switchover  mainstay promote under fio's load: no error, and how long the longest pause is (goal: 100 ms)\n\
\n\
Examples:\n\
  cargo xtask soak                                  all of it, each trial with its own number of kills; minutes\n\
  cargo xtask soak --only ext4 --only postgres      two of them\n\
  cargo xtask soak --minutes 30                     as long as this goes on, kills and load go on, too\n\
\n\
Root may install what is missing (Debian packages), mount and make loop devices. Otherwise such trials are skipped, and say\n\
what they miss; with CI=true that is a failure.")]
pub(crate) struct Options {
    /// Run only this trial; may be given more than once
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Trial>,

    /// Go on for so long, shared evenly by the trials; each makes at least its own number of kills
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    minutes: u32,

    /// Print the trials with the packages that they need, and what of it is missing here
    #[arg(long)]
    list: bool,

    /// Use this program instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Where directories of trials are made; name a disk
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep the directories, with the logs of all nodes
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trial {
    FioVerify,
    Ext4,
    Image,
    Postgres,
    Tools,
    Switchover,
}

/// The order of a whole run.
const ALL: [Trial; 6] = [
    Trial::FioVerify,
    Trial::Ext4,
    Trial::Image,
    Trial::Postgres,
    Trial::Tools,
    Trial::Switchover,
];

/// A trial that takes so much longer than its share hangs.
const HANGS_AFTER: Duration = Duration::from_secs(420);

/// Runs the trials. `Ok(false)` if one failed, or was skipped in CI.
pub(crate) fn soak(options: &Options, root: &Path) -> anyhow::Result<bool> {
    let chosen = ALL.into_iter().filter(|trial| options.wants(*trial));
    let trials: Vec<Trial> = chosen.collect();
    if options.list {
        list(&trials);
        return Ok(true);
    }
    let missing = install_of(trials.iter().flat_map(|trial| trial.needs()));
    let program = match &options.program {
        Some(program) => program.canonicalize().context("--program")?,
        None => crate::product::build(root)?,
    };
    let share = Duration::from_secs(60) * options.minutes / u32::try_from(trials.len())?.max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut report = Report::default();
    for trial in trials {
        eprintln!("\n== {}", trial.name());
        let started = Instant::now();
        let plan = Plan {
            name: trial.name(),
            program: program.clone(),
            root: root.to_owned(),
            dir: options.dir.clone(),
            share,
            keep: options.keep,
        };
        let outcome = match trial.why_not(&missing) {
            Some(why) => skipped(why),
            None => runtime.block_on(bounded(trial, &plan))?,
        };
        report.add(trial.name(), outcome, started.elapsed());
    }
    print!("{report}");
    Ok(report.passed())
}

/// Runs one trial to its end, within bounds. An interruption ends the run; what the trial made is cleaned up first.
async fn bounded(trial: Trial, plan: &Plan) -> anyhow::Result<Outcome> {
    let limit = plan.share + HANGS_AFTER;
    let ended = tokio::select! {
        ended = tokio::time::timeout(limit, trial.run(plan)) => ended,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    let result = ended.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {limit:?}")));
    Ok(match result {
        Ok(seen) => {
            eprintln!("{}: {seen}", trial.name());
            Outcome::PassedWith(seen)
        }
        Err(error) => {
            eprintln!("{}: FAILED: {error:#}", trial.name());
            Outcome::Failed
        }
    })
}

/// A trial that did not run must not look like one that passed where everything should be there.
fn skipped(why: String) -> Outcome {
    eprintln!("skipped: {why}");
    if in_ci() {
        Outcome::Failed
    } else {
        Outcome::Skipped(why)
    }
}

impl Options {
    fn wants(&self, trial: Trial) -> bool {
        self.only.is_empty() || self.only.contains(&trial)
    }
}

impl Trial {
    fn name(self) -> &'static str {
        match self {
            Self::FioVerify => "fio-verify",
            Self::Ext4 => "ext4",
            Self::Image => "image",
            Self::Postgres => "postgres",
            Self::Tools => "tools",
            Self::Switchover => "switchover",
        }
    }

    fn needs(self) -> &'static [Tool] {
        match self {
            Self::FioVerify | Self::Switchover => &fio::NEEDS,
            Self::Ext4 => &mount::NEEDS,
            Self::Image => &image::NEEDS,
            Self::Postgres => &postgres::NEEDS,
            Self::Tools => &tools::NEEDS,
        }
    }

    /// Why it cannot run here, given the packages that are `missing`.
    fn why_not(self, missing: &[&str]) -> Option<String> {
        let needs = self.needs().iter().map(|tool| tool.package);
        let lacks: Vec<&str> = needs.filter(|package| missing.contains(package)).collect();
        if !lacks.is_empty() {
            let lacks = lacks.join(" ");
            return Some(format!("not installed: {lacks} (apt-get install {lacks})"));
        }
        match self {
            Self::Ext4 | Self::Postgres => mount::why_not(),
            _ => None,
        }
    }

    /// What was seen, if all is well.
    async fn run(self, plan: &Plan) -> anyhow::Result<String> {
        match self {
            Self::FioVerify => fio_verify::run(plan).await,
            Self::Ext4 => ext4::run(plan).await,
            Self::Image => image::run(plan).await,
            Self::Postgres => postgres::run(plan).await,
            Self::Tools => tools::run(plan).await,
            Self::Switchover => switchover::run(plan).await,
        }
    }
}

fn list(trials: &[Trial]) {
    for trial in trials {
        let needs: Vec<&str> = trial.needs().iter().map(|tool| tool.package).collect();
        let missing = crate::tools::missing(trial.needs().iter());
        let state = match trial.why_not(&missing) {
            None => "can run here".to_owned(),
            Some(why) => format!("would be skipped: {why}"),
        };
        println!("{:<11} {:<48} {state}", trial.name(), needs.join(" "));
    }
}
