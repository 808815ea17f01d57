//! The command line of `mainstay log`.

use clap::{Args, Subcommand, ValueEnum};
use mainstay_types::VolumeName;

use super::log_proofs::{ProveArgs, RootArgs, VerifyArgs};
use super::retain::RetainArgs;
use crate::commands::log::append::check_in_flight;
use crate::locate::ClusterArgs;

/// `log ...`
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Append records from standard input, each exactly once, also across failovers
    #[command(after_long_help = "\
Examples:
  mainstay log append ledger < transactions.csv
  zcat big.gz | mainstay log append ledger --in-flight 256
  mainstay log append ledger --batch 3 < transfers.txt      every three lines are appended together, or none of them")]
    Append(AppendArgs),
    /// Print records of a range of positions
    #[command(after_long_help = "\
Examples:
  mainstay log read ledger --since $(date -d '1 hour ago' +%s)
  mainstay log read ledger --reverse --limit 10      the newest ten, the newest first
  mainstay log read ledger --committed               from any copy, also while there is no primary")]
    Read(ReadArgs),
    /// Print records from a position on
    #[command(after_long_help = "\
Example:
  mainstay log tail ledger --follow      goes on across failovers, without a gap or a repeat")]
    Tail(TailArgs),
    /// Give up records that are no longer needed, for good
    #[command(after_long_help = "\
Examples:
  mainstay log trim ledger --below 1000
  mainstay log trim ledger --before $(date -d '30 days ago' +%s)

Readers are shown nothing below the trim point from then on. It may lie in the middle of records that were appended together: then \
readers see the rest of them. Members give the space back in whole segments, as soon as every registered
member holds what lies below.")]
    Trim(TrimArgs),
    /// Show or change what a log keeps by itself, by age and by bytes
    #[command(after_long_help = "\
Examples:
  mainstay log retain ledger                                  what it keeps now
  mainstay log retain ledger --age 30d --bytes 10GiB
  mainstay log retain ledger --age off                        the other bound stays

The policy is part of the log, so it survives failovers and restarts. A bound says what stays for certain; what neither bound keeps is \
trimmed by the primary, about once a second and in steps of a sixty-fourth of the bound. With both bounds, what either of them lets go \
is trimmed. Age goes by the records' timestamps and the primary's clock.")]
    Retain(RetainArgs),
    /// Print the root of a log's Merkle tree: a hash that stands for its whole history
    #[command(after_long_help = "\
Examples:
  mainstay log root ledger                   keep both lines where nobody who can alter the log can alter them
  mainstay log root ledger --size 1000       the root that the first 1000 positions have, then as now

Whoever has an old root can have it proved later that nothing before it was altered: see `mainstay log verify`. The page \
`docs/proofs.md` says what is proved, and what is not.")]
    Root(RootArgs),
    /// Write a proof of a record, or that a log only grew, which can be verified without the cluster
    #[command(after_long_help = "\
Examples:
  mainstay log prove ledger 4711 --out proof.json        the record at 4711, and that the log holds it
  mainstay log prove ledger --from 1000 --out grew.json  that the log still begins with its first 1000 positions

The proof is against the root that the log has now, or had at --size. Give the file to somebody who trusts that root; they run \
`mainstay log verify --proof FILE --root HASH --size N` on any machine.")]
    Prove(ProveArgs),
    /// Verify a proof, or audit a whole log, against a root that you kept
    #[command(after_long_help = "\
Examples:
  mainstay log verify --proof proof.json --root 5dc9... --size 8000
      without any cluster
  mainstay log verify ledger --root 5dc9... --size 8000
      reads the log, computes its root, and proves that your root is a part of it
  mainstay log verify ledger --root 5dc9... --size 8000 --roots-only
      the same without reading the records
  mainstay log verify ledger
      whether what is read is what the log's present root says

Exit codes: 0 verified; 3 not verified: the history, the proof or the root was altered; 1 nothing could be said, for instance \
because no node answers; 2 the command line is wrong.")]
    Verify(VerifyArgs),
}

/// How records are told apart in a stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Framing {
    /// A record a line; the newline is not part of it.
    Lines,
    /// Four bytes of length, great end first, before each record.
    Binary,
}

/// Of `log append`.
#[derive(Debug, Clone, Args)]
pub struct AppendArgs {
    /// The log
    pub volume: VolumeName,

    /// How records are told apart
    #[arg(long, value_enum, default_value = "lines")]
    pub framing: Framing,

    /// Append every N records together, all of them or none: nobody is ever shown a part. The last batch may be shorter
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Option<u32>,

    /// As the writer with this token: those with a smaller one, or with none, append nothing more from then on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub token: Option<u64>,

    /// Records, or batches, sent ahead of their answers
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_in_flight)]
    pub in_flight: u32,

    /// Print nothing but errors
    #[arg(long, short)]
    pub quiet: bool,

    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log read`.
#[derive(Debug, Clone, Args)]
pub struct ReadArgs {
    /// The log
    pub volume: VolumeName,

    /// First position, inclusive [default: the first there is]
    #[arg(long, value_name = "LSN")]
    pub from: Option<u64>,

    /// Last position, inclusive [default: the last that is committed now]
    #[arg(long, value_name = "LSN")]
    pub to: Option<u64>,

    /// From the first record that is not older than this time, in seconds since 1970
    #[arg(long, value_name = "SECONDS", conflicts_with = "from", value_parser = parse_seconds)]
    pub since: Option<u64>,

    /// Print no more records than this
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,

    /// The newest record first
    #[arg(long)]
    pub reverse: bool,

    /// From any node with a copy, with what it knows to be committed: perhaps not the newest
    #[arg(long)]
    pub committed: bool,

    /// How records are told apart
    #[arg(long, value_enum, default_value = "lines")]
    pub framing: Framing,

    /// Print the position before each record
    #[arg(long)]
    pub lsn: bool,

    /// Print each record as JSON, one a line: `lsn`, `timestamp_us`, and `text`, or `data_hex` if it is not UTF-8
    #[arg(long, conflicts_with_all = ["framing", "lsn"])]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    /// The log
    pub volume: VolumeName,

    /// First position, inclusive [default: the last ten records]
    #[arg(long, value_name = "LSN")]
    pub from: Option<u64>,

    /// Go on with records as they are committed
    #[arg(long, short)]
    pub follow: bool,

    /// How records are told apart
    #[arg(long, value_enum, default_value = "lines")]
    pub framing: Framing,

    /// Print the position before each record
    #[arg(long)]
    pub lsn: bool,

    /// Print each record as JSON, one a line: `lsn`, `timestamp_us`, and `text`, or `data_hex` if it is not UTF-8
    #[arg(long, conflicts_with_all = ["framing", "lsn"])]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log trim`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("upto").required(true).args(["below", "before"])))]
pub struct TrimArgs {
    /// The log
    pub volume: VolumeName,

    /// Give up everything below this position
    #[arg(long, value_name = "LSN")]
    pub below: Option<u64>,

    /// Give up every record older than this time, in seconds since 1970
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub before: Option<u64>,

    /// Print where the log begins now as JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Records that are sent ahead of their answers.
fn parse_in_flight(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is not a number");
    let in_flight: u32 = text.parse().map_err(|_| wrong())?;
    check_in_flight(in_flight as usize)?;
    Ok(in_flight)
}

/// Seconds since 1970, with a fraction or without, as microseconds.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a time in seconds since 1970, such as 1700000000.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = whole.parse().map_err(|_| wrong())?;
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let micros = format!("{:0<6}", fraction.get(..6).unwrap_or(fraction));
    let micros: u64 = micros.parse().map_err(|_| wrong())?;
    if !digits {
        return Err(wrong());
    }
    let whole = seconds.checked_mul(1_000_000).ok_or_else(wrong)?;
    whole.checked_add(micros).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_sent_ahead_as_the_cluster_remembers() {
        for (text, number) in [("1", 1), ("4096", 4096)] {
            assert_eq!(parse_in_flight(text), Ok(number));
        }
        for text in ["0", "4097", "65536"] {
            let error = parse_in_flight(text).expect_err(text);
            assert!(error.contains("1 to 4096"), "{error}");
            assert!(error.contains("remembers"), "{error}");
        }
        assert!(parse_in_flight("many").is_err());
    }

    #[test]
    fn times_are_seconds_with_a_fraction_or_without() {
        for (text, micros) in [
            ("0", 0),
            ("1700000000", 1_700_000_000_000_000),
            ("1.5", 1_500_000),
            ("1.0000019", 1_000_001),
        ] {
            assert_eq!(parse_seconds(text), Ok(micros), "{text}");
        }
        for text in ["", "-1", "1,5", "1.x", "99999999999999999", "yesterday"] {
            let error = parse_seconds(text).expect_err(text);
            assert!(error.contains("seconds since 1970"), "{error}");
        }
    }
}
