//! The NBD path beside other servers and the raw disk: the same fio jobs, on the same file system, in the same run.
//!
//! Ours is a development cluster with default settings, three copies, the client at the primary's node. Each job runs on it and then
//! on what it is compared with, several rounds in turn, so that all see the same moods of the disk. A ratio is taken within
//! a round; what is printed is the median of the rounds' ratios. All servers run all the time, so that the idle ones cost
//! every measurement the same; all of them are reached over TCP on loopback.

#![forbid(unsafe_code)]

mod cases;
mod fio;
mod servers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use mainstay_benches::disk::{self, Method};
use mainstay_benches::floor::{self, Floor};
use mainstay_benches::report::Quantiles;
use serde::Serialize;

use cases::{CASES, Case, Reference};
use servers::Servers;

/// The NBD path beside other servers, three copies against one. Needs fio, qemu-nbd and nbdkit (Debian: fio qemu-utils nbdkit).
#[derive(Debug, Parser)]
#[command(
    name = "nbd",
    args_conflicts_with_subcommands = true,
    after_help = "Every case needs what it is compared with: a missing program is an error that names its package.\n\
                  A missed target is printed as one and does not fail the command."
)]
struct Cli {
    #[command(subcommand)]
    part: Option<Hidden>,

    /// The product: a release build of `mainstay`
    #[arg(long, value_name = "FILE", default_value = "target/release/mainstay")]
    program: PathBuf,

    /// Where all files lie, in a directory of their own that is removed at the end; name the disk to measure
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Rounds; each case is measured once in each
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Time for each job, in seconds
    #[arg(long, value_name = "S", default_value_t = 4)]
    seconds: u32,

    /// Size of the volume and of the files, in MiB
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u64).range(16..=65536))]
    size_mib: u64,

    /// Only the cases with this letter; may be given more than once
    #[arg(long, value_name = "LETTER")]
    only: Vec<char>,

    /// Print the cases and their targets, and measure nothing
    #[arg(long)]
    list: bool,

    /// A file with sections for the nodes' configuration, for experiments
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Hidden {
    /// A replica of the floor; not for people
    #[command(hide = true)]
    Replica {
        #[arg(long)]
        file: PathBuf,
        #[arg(long, value_enum)]
        method: Method,
    },
}

/// One comparison: medians over the rounds, and how far the rounds lay apart.
#[derive(Debug, Serialize)]
struct Row {
    case: char,
    what: &'static str,
    against: &'static str,
    unit: &'static str,
    ours: f64,
    reference: f64,
    /// Median of the rounds' own ratios.
    ratio: f64,
    ratio_lowest: f64,
    ratio_highest: f64,
    target: String,
    /// `None` without a target.
    met: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Results {
    rounds: usize,
    seconds_per_job: u32,
    size_mib: u64,
    /// One durable write of 4 KiB at a time, before each round.
    probes: Vec<Quantiles>,
    rows: Vec<Row>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Hidden::Replica { file, method }) = cli.part {
        return floor::serve(&file, method).context("a replica of the floor");
    }
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| cli.only.is_empty() || cli.only.contains(&case.letter))
        .collect();
    ensure!(!cases.is_empty(), "--only: no such case; see --list");
    if cli.list {
        print!("{}", cases::list(&cases));
        return Ok(());
    }
    let results = measure(&cli, &cases)?;
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print(&results);
    }
    Ok(())
}

fn measure(cli: &Cli, cases: &[&Case]) -> anyhow::Result<Results> {
    ensure!(cli.rounds > 0, "--rounds is at least 1");
    let program = cli.program.canonicalize().with_context(|| {
        format!(
            "{}: build it first with `cargo build --release`",
            cli.program.display()
        )
    })?;
    let extra_config = match &cli.config {
        Some(path) => std::fs::read_to_string(path).context("--config")?,
        None => String::new(),
    };
    let dir = tempfile::Builder::new()
        .prefix("mainstay-nbd-")
        .tempdir_in(&cli.dir)?;
    let dir_path = dir.path().canonicalize()?;
    let wanted = |reference| cases.iter().any(|case| case.reference == reference);
    let size_bytes = cli.size_mib << 20;
    let servers = Servers::start(program, extra_config, &dir_path, size_bytes, &wanted)?;
    let mut floor = Floor::start(&std::env::current_exe()?, &dir_path, Method::Fdatasync)?;
    let mut probes = Vec::new();
    let mut rounds: Vec<Vec<(f64, f64)>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..cli.rounds {
        let span = Duration::from_millis(300);
        probes.push(disk::probe(&dir_path, Method::Fdatasync, span)?);
        for (case, pairs) in cases.iter().zip(&mut rounds) {
            let pair = one(case, &servers, &mut floor, cli, &dir_path)?;
            eprintln!(
                "round {}/{}, {}: ours {:.0}, {} {:.0} {}",
                round + 1,
                cli.rounds,
                case.letter,
                pair.0,
                case.reference.name(),
                pair.1,
                case.figure.unit()
            );
            pairs.push(pair);
        }
    }
    servers.stop();
    Ok(Results {
        rounds: cli.rounds,
        seconds_per_job: cli.seconds,
        size_mib: cli.size_mib,
        probes,
        rows: cases.iter().zip(&rounds).map(|(c, r)| row(c, r)).collect(),
    })
}

/// A case once on both sides.
fn one(
    case: &Case,
    servers: &Servers,
    floor: &mut Floor,
    cli: &Cli,
    dir: &Path,
) -> anyhow::Result<(f64, f64)> {
    let run = |target: &fio::Target| {
        let measured = fio::run(case.job, target, cli.size_mib, cli.seconds, dir);
        measured.with_context(|| format!("{} on {}", case.what, target.name()))
    };
    let ours = case.figure.of(&run(servers.ours())?);
    let reference = match case.reference {
        Reference::Floor => {
            let load = case.job.on_floor();
            let load = load.context("the floor knows no such load")?;
            let row = floor.run(load, Duration::from_secs(cli.seconds.into()))?;
            case.figure.of_floor(&row)
        }
        other => case.figure.of(&run(servers.reference(other)?)?),
    };
    Ok((ours, reference))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(case: &Case, rounds: &[(f64, f64)]) -> Row {
    let ratios: Vec<f64> = rounds.iter().map(|(ours, other)| ours / other).collect();
    let ratio = median(ratios.clone());
    Row {
        case: case.letter,
        what: case.what,
        against: case.reference.name(),
        unit: case.figure.unit(),
        ours: median(rounds.iter().map(|pair| pair.0).collect()),
        reference: median(rounds.iter().map(|pair| pair.1).collect()),
        ratio,
        ratio_lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        ratio_highest: ratios.iter().copied().fold(0.0, f64::max),
        target: case.target(),
        met: case.met(ratio),
    }
}

fn print(results: &Results) {
    println!(
        "fio over NBD, three copies against one; {} rounds of {} s a job, {} MiB, medians\n",
        results.rounds, results.seconds_per_job, results.size_mib
    );
    println!(
        "case  {:<34} {:<38} {:>7}  {:>8}  {:>9}  ratio (lowest-highest)  target",
        "job", "against", "unit", "ours", "reference"
    );
    for row in &results.rows {
        println!(
            "{:<4}  {:<34} {:<38} {:>7}  {:>8.0}  {:>9.0}  {:>5.2} ({:.2}-{:.2})      {:>8}  {}",
            row.case,
            row.what,
            row.against,
            row.unit,
            row.ours,
            row.reference,
            row.ratio,
            row.ratio_lowest,
            row.ratio_highest,
            row.target,
            match row.met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            }
        );
    }
    for probe in &results.probes {
        println!(
            "disk alone, one durable 4 KiB write: p50 {:.0} us, p99 {:.0} us",
            probe.p50_us, probe.p99_us
        );
    }
}
