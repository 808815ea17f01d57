//! The command line of `mainstay ledger`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mainstay_types::VolumeName;

use crate::locate::ClusterArgs;

/// `ledger ...`
#[derive(Debug, Clone, Subcommand)]
pub enum LedgerCommand {
    /// Make a transfer of every row of a CSV file, each once, however often this is started
    #[command(long_about = "\
Make a transfer of every row of a CSV file, each once, however often this is started.

The file has a header, and may be compressed with gzip. The options say which columns mean what; a row that does not fit ends the \
import and is named. Every row is a transfer between its account and the account --counter. Its key is made of --source and the \
row: of the column --key, or else of the row's content and of how many equal rows came before it. So an import that was cut off is \
started again with the same command, and goes on where it was.")]
    #[command(after_long_help = "\
Examples:
  mainstay ledger import books bank.csv --account account --amount amount --date date
  mainstay ledger import books berka.csv.gz --delimiter ';' --account account_id --amount amount --date date \\
      --type type --credit PRIJEM --debit VYDAJ,VYBER --key trans_id")]
    Import(ImportArgs),

    /// Make one transfer
    #[command(after_long_help = "\
Example:
  mainstay ledger post books --from cash --to rent --amount 950.00 --key rent-2026-01   # twice: made once")]
    Post(PostArgs),

    /// Print balances
    Balance(BalanceArgs),

    /// Print the transfers of one account, with the balance after each
    Statement(StatementArgs),

    /// Read the whole ledger and check it: keys, sums, and the snapshot
    Verify(VerifyArgs),
}

/// What all of them take.
#[derive(Debug, Clone, Args)]
pub struct LedgerArgs {
    /// The log volume
    pub volume: VolumeName,

    /// A file with all balances as of some position: read if it is there, and brought up to date
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,

    /// Digits behind the point of amounts: always the same for one ledger
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=9))]
    pub decimals: u32,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it")]
    pub cluster: ClusterArgs,
}

/// Of `ledger import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it")]
    pub ledger: LedgerArgs,

    /// CSV with a header, compressed with gzip or not
    pub file: PathBuf,

    /// Column of the account
    #[arg(long, value_name = "COLUMN")]
    pub account: String,

    /// Column of the amount; without --type, its sign says which way it goes
    #[arg(long, value_name = "COLUMN")]
    pub amount: String,

    /// Column that says whether the account receives or pays
    #[arg(long, value_name = "COLUMN", requires_all = ["credit", "debit"])]
    pub r#type: Option<String>,

    /// Values of that column for receipts
    #[arg(
        long,
        value_name = "VALUE,...",
        value_delimiter = ',',
        requires = "type"
    )]
    pub credit: Vec<String>,

    /// Values of that column for payments
    #[arg(
        long,
        value_name = "VALUE,...",
        value_delimiter = ',',
        requires = "type"
    )]
    pub debit: Vec<String>,

    /// Column of the date
    #[arg(long, value_name = "COLUMN")]
    pub date: Option<String>,

    /// Column that names a row for ever [default: the whole row does]
    #[arg(long, value_name = "COLUMN")]
    pub key: Option<String>,

    /// The other side of every transfer
    #[arg(long, value_name = "ACCOUNT", default_value = "world")]
    pub counter: String,

    /// Begins the key of every row [default: the file's name up to the first dot]
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,

    /// Between two fields
    #[arg(long, value_name = "CHAR", default_value = ",", value_parser = delimiter)]
    pub delimiter: u8,

    /// Transfers on their way at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,

    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [one] if one.is_ascii() => Ok(*one),
        _ if text == "\\t" => Ok(b'\t'),
        _ => Err("one character such as `,` or `;`, or `\\t` for a tab".to_owned()),
    }
}

/// Of `ledger post`.
#[derive(Debug, Clone, Args)]
pub struct PostArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it")]
    pub ledger: LedgerArgs,

    /// The account that pays
    #[arg(long, value_name = "ACCOUNT")]
    pub from: String,

    /// The account that receives
    #[arg(long, value_name = "ACCOUNT")]
    pub to: String,

    /// How much, such as 12.50
    #[arg(long, value_name = "AMOUNT")]
    pub amount: String,

    /// Names the transfer for ever: given twice, it is made once [default: random, and printed if the outcome is unknown]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,

    /// When, as you write it
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,

    /// What for
    #[arg(long, value_name = "TEXT")]
    pub memo: Option<String>,
}

/// Of `ledger balance`.
#[derive(Debug, Clone, Args)]
pub struct BalanceArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it")]
    pub ledger: LedgerArgs,

    /// These accounts only
    pub accounts: Vec<String>,
}

/// Of `ledger statement`.
#[derive(Debug, Clone, Args)]
pub struct StatementArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it")]
    pub ledger: LedgerArgs,

    /// Whose
    pub account: String,
}

/// Of `ledger verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it")]
    pub ledger: LedgerArgs,
}
