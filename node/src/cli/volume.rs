//! The command line of `mainstay volume`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use mainstay_types::VolumeName;

use super::retain::{Bound, parse_age, parse_bytes};
use crate::commands::size::parse_size;
use crate::locate::ClusterArgs;

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// An append log.
    Log,
    /// A block device.
    Block,
}

/// `volume ...`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume
    #[command(after_long_help = "\
Examples:
  mainstay volume create ledger --kind log
  mainstay volume create disk --kind block --size 10GiB
  mainstay volume create pair --kind log --on 1,2
  mainstay volume create safe --kind log --ack all --json")]
    Create(CreateArgs),
    /// List all volumes
    List(ListArgs),
    /// Show one volume: its register, members and positions
    Show(ShowArgs),
    /// Delete a volume and everything in it
    Delete(DeleteArgs),
    /// Attach a block volume to a host, and keep it attached
    #[command(
        long_about = "\
Attach a block volume to a host, and keep it attached.

NBD clients attach by themselves when they connect, and let the volume go with their last connection. This command does it \
by hand: with --takeover, to end the attachment of a host that is lost or is to stop. Nothing of that host that is not \
committed yet takes effect from then on, whatever it sends.",
        after_long_help = "\
Examples:
  mainstay volume attach disk --takeover
  mainstay volume attach disk --name nbd:10.0.0.2 --takeover
  mainstay volume detach disk"
    )]
    Attach(AttachArgs),
    /// End the attachment of a block volume, whoever holds it
    Detach(DetachArgs),
}

/// Of `volume attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// The block volume
    pub volume: VolumeName,

    /// Whom, as `mainstay status` names holders: nbd:ADDRESS for NBD clients [default: those on this machine]
    #[arg(long)]
    pub name: Option<String>,

    /// End the attachment of whoever holds it
    #[arg(long)]
    pub takeover: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume detach`.
#[derive(Debug, Clone, Args)]
pub struct DetachArgs {
    /// The block volume
    pub volume: VolumeName,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// How many durable copies a write needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AckArg {
    /// More than half of the copies.
    Majority,
    /// Every copy: a lost one stops writes until the witnesses have dropped it.
    All,
}

/// Of `volume create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Its name: 1 to 64 of a-z, 0-9, `-`, `_` and `.`
    pub volume: VolumeName,

    /// What it holds
    #[arg(long, value_enum)]
    pub kind: KindArg,

    /// Size of a block volume, a multiple of 4096: bytes, or with KiB, MiB, GiB or TiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, required_if_eq("kind", "block"))]
    pub size: Option<u64>,

    /// Nodes that shall hold a copy; the first one is the first primary [default: all data nodes, at most three]
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub on: Vec<u32>,

    /// Copies, on nodes that the cluster chooses
    #[arg(long, value_name = "N", conflicts_with = "on", value_parser = clap::value_parser!(u32).range(1..))]
    pub copies: Option<u32>,

    /// How many durable copies a write needs [default: all of two copies, the majority of more]
    #[arg(long, value_enum)]
    pub ack: Option<AckArg>,

    /// Copies below which writes stop rather than go on with fewer [default: 1 of one or two, 2 of more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_copies: Option<u32>,

    /// Among equally good copies, the nodes that shall become primary first, in this order
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub prefer: Vec<u32>,

    /// A block volume that several hosts may attach at a time: a cluster file system has to say who writes where
    #[arg(long)]
    pub shared: bool,

    /// What a log keeps by itself (`log retain` changes it): records younger than this, a number with ms, s, m, h, d or w
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub retain_age: Option<Bound<Duration>>,

    /// The same by bytes: the newest records with together so many, a number with KiB, MiB, GiB or TiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub retain_bytes: Option<Bound<u64>>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Its name
    pub volume: VolumeName,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// Its name
    pub volume: VolumeName,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// Delete it although somebody is attached
    #[arg(long)]
    pub force: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    #[test]
    fn a_block_volume_needs_a_size_and_a_log_does_not() {
        let parse = |args: &[&str]| Cli::try_parse_from(args).map(|_| ());
        assert!(parse(&["mainstay", "volume", "create", "a", "--kind", "log"]).is_ok());
        assert!(parse(&["mainstay", "volume", "create", "a", "--kind", "block"]).is_err());
        assert!(
            parse(&[
                "mainstay", "volume", "create", "a", "--kind", "block", "--size", "1GiB"
            ])
            .is_ok()
        );
    }

    #[test]
    fn copies_are_a_number_or_nodes_and_a_write_needs_a_majority_or_all() {
        let parse = |args: &str| {
            let line = format!("mainstay volume create a --kind log {args}");
            Cli::try_parse_from(line.split_whitespace()).map(|_| ())
        };
        assert!(parse("--copies 2 --ack all --min-copies 1 --json").is_ok());
        assert!(parse("--on 1,2 --ack majority").is_ok());
        for wrong in [
            "--copies 2 --on 1,2",
            "--copies 0",
            "--ack some",
            "--min-copies 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
