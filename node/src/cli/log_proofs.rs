//! `mainstay log root`, `prove` and `verify`: what the command line takes.

use std::path::PathBuf;

use clap::Args;
use mainstay_types::VolumeName;
use mainstay_types::merkle::TreeHash;

use crate::locate::ClusterArgs;

/// Of `log root`.
#[derive(Debug, Clone, Args)]
pub struct RootArgs {
    /// The log
    pub volume: VolumeName,

    /// Over the positions from 1 to N [default: all that are committed now]
    #[arg(long, value_name = "N")]
    pub size: Option<u64>,

    /// From any node with a copy, with what it knows to be committed: perhaps not the newest
    #[arg(long)]
    pub committed: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log prove`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["lsn", "from"])))]
#[command(override_usage = "mainstay log prove [OPTIONS] <VOLUME> <LSN|--from <N>>")]
pub struct ProveArgs {
    /// The log
    pub volume: VolumeName,

    /// Prove what is at this position
    pub lsn: Option<u64>,

    /// Prove that the log only grew since it had N positions
    #[arg(long, value_name = "N")]
    pub from: Option<u64>,

    /// Against the root over the positions from 1 to N [default: all that are committed now]
    #[arg(long, value_name = "N")]
    pub size: Option<u64>,

    /// Write the proof here [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log verify`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["volume", "proof"])))]
pub struct VerifyArgs {
    /// Audit this log: compute its root from everything that can be read
    pub volume: Option<VolumeName>,

    /// Verify this file of `log prove`, without a cluster
    #[arg(long, value_name = "FILE", requires = "root")]
    pub proof: Option<PathBuf>,

    /// A root that you kept
    #[arg(long, value_name = "HASH", requires = "size")]
    pub root: Option<TreeHash>,

    /// Its size
    #[arg(long, value_name = "N", requires = "root")]
    pub size: Option<u64>,

    /// Read no records: only hold the log's present root against the one that you kept
    #[arg(long, requires = "root", conflicts_with = "proof")]
    pub roots_only: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}
