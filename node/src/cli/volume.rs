//! The command line of `mainstay volume`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use mainstay_types::VolumeName;

use super::retain::{Bound, parse_age, parse_bytes};
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
  mainstay volume create pair --kind log --on 1,2")]
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

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Bytes, or a number with a binary unit.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1_u64 << 40,
        other => return Err(format!("unit `{other}` is none of KiB, MiB, GiB and TiB")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a size; write for example 10GiB"))?;
    number
        .checked_mul(unit)
        .ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
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
    fn sizes_take_binary_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("3KiB"), Ok(3072));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        for bad in ["", "GiB", "1.5G", "-1", "1GB", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
