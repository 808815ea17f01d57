//! Log volumes through the whole product, beside the raw floor, etcd and PostgreSQL in the same run: appends in a closed and in an open
//! loop, atomic batches, tails, and reads. Everything takes turns, round by round, so that all see the same moods of the machine.

#![forbid(unsafe_code)]

mod cases;
mod reading;
mod rig;
mod table;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use mainstay_benches::disk::Method;
use mainstay_benches::floor;

/// Log volumes beside the raw floor, etcd and PostgreSQL.
///
/// Runs each case `--rounds` times in turn with its references and prints medians. etcd and PostgreSQL are measured where they are
/// installed (Debian: `apt-get install etcd-server postgresql`); where not, that is said and the rest goes on.
#[derive(Debug, Parser)]
#[command(name = "log", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Hidden>,

    /// The product: a release build of `mainstay`
    #[arg(long, value_name = "FILE", default_value = "target/release/mainstay")]
    program: PathBuf,

    /// Where all files lie, in a directory of their own that is removed at the end; name the disk to measure
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// What to measure
    #[arg(long, value_name = "CASE,...", value_delimiter = ',', value_enum,
          default_values_t = [Case::Closed, Case::Open, Case::Batches, Case::Tail, Case::Reads])]
    only: Vec<Case>,

    /// Rounds; each load is measured once in each
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,

    /// Time for each load, in seconds
    #[arg(long, value_name = "S", default_value_t = 1.5)]
    seconds: f64,

    /// Payload of a record, in bytes
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [256, 4096])]
    records: Vec<usize>,

    /// Records without an answer at any time, in a closed loop
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    in_flight: Vec<usize>,

    /// Rates of an open loop, as parts of what the closed loop with 64 in flight came to
    #[arg(long, value_name = "PART,...", value_delimiter = ',', default_values_t = [0.25, 0.5, 0.75])]
    rates: Vec<f64>,

    /// Records of an atomic batch
    #[arg(long, value_name = "N", default_value_t = 100)]
    batch: usize,

    /// Leave etcd and PostgreSQL out
    #[arg(long)]
    without_others: bool,

    /// Write the times of every load to this directory as percentile distributions of HdrHistogram, one file a load and side
    #[arg(long, value_name = "DIR")]
    histograms: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Appends, the next when one is answered
    Closed,
    /// Appends at a fixed rate, whether or not they are answered
    Open,
    /// Atomic batches, the next when one is answered
    Batches,
    /// Following the log: from its beginning, and live
    Tail,
    /// Reading the log page by page, from the primary and from any copy
    Reads,
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

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Hidden::Replica { file, method }) = cli.part {
        return floor::serve(&file, method).context("a replica of the floor");
    }
    ensure!(cli.rounds > 0, "--rounds is at least 1");
    ensure!(cli.batch > 0, "--batch is at least 1");
    ensure!(
        cli.rates.iter().all(|part| *part > 0.0 && *part <= 10.0),
        "--rates: above 0, at most 10"
    );
    // One thread, as a small application has it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let results = cases::measure(&cli, &runtime)?;
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        table::print(&results);
    }
    Ok(())
}
