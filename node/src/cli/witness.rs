//! `mainstay witness`: what the command line takes.

use clap::{Args, Subcommand};

use crate::config::HostPort;
use crate::locate::ClusterArgs;

/// What to do with the witnesses.
#[derive(Debug, Clone, Subcommand)]
pub enum WitnessCommand {
    /// Show who votes, and who waits to become a witness
    List(WitnessListArgs),

    /// Make a node a witness
    ///
    /// The node runs with the role "standby-witness". An even number of witnesses survives no more losses than one fewer:
    /// add another one, or replace one instead.
    Add(WitnessAddArgs),

    /// Take a witness's vote away, for instance because its store is lost
    Remove(WitnessRemoveArgs),

    /// Let one node take the place of a witness, in one step
    Replace(WitnessReplaceArgs),
}

/// Of `witness list`.
#[derive(Debug, Clone, Args)]
pub struct WitnessListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `witness add`.
#[derive(Debug, Clone, Args)]
pub struct WitnessAddArgs {
    /// The node that becomes a witness
    pub node: u32,

    /// Where the others reach it [default: as their configuration says]
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<HostPort>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `witness remove`.
#[derive(Debug, Clone, Args)]
pub struct WitnessRemoveArgs {
    /// The witness that goes
    pub node: u32,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `witness replace`.
#[derive(Debug, Clone, Args)]
pub struct WitnessReplaceArgs {
    /// The witness that goes
    pub node: u32,

    /// The node that takes its place
    #[arg(long, value_name = "NODE")]
    pub with: u32,

    /// Where the others reach it [default: as their configuration says]
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<HostPort>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}
