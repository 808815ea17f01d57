//! The command line of `mainstay workload`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mainstay_types::VolumeName;

use crate::locate::ClusterArgs;

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WorkloadArg {
    /// Reads and writes of blocks of a block volume, each block a register.
    Registers,
    /// Appends, conditional appends, reads and a tail of a log volume.
    Log,
    /// Transfers between accounts that are kept in a log volume.
    Bank,
}

/// Of `workload`.
#[derive(Debug, Clone, Args)]
pub struct WorkloadArgs {
    /// Which workload
    #[arg(value_enum)]
    pub workload: WorkloadArg,

    /// The volume, made if there is none of that name [default: workload-registers, workload-log or workload-bank]
    #[arg(long, value_name = "NAME")]
    pub volume: Option<VolumeName>,

    /// Write the history here, one JSON object a line; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub history: PathBuf,

    /// Begin no operation after so many seconds
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// Begin no more than so many operations
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub operations: u64,

    /// Operations at the same time, each in a session of its own
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub processes: u32,

    /// Operations that begin in a second, all processes together; 0 does not hold back
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub rate: u32,

    /// An operation without an answer for so long is `info`: nobody knows
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub deadline_ms: u64,

    /// Registers, or accounts
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub keys: u32,

    /// Seed of what is done, though not of how it is interleaved [default: random, and recorded]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it")]
    pub cluster: ClusterArgs,
}
