//! `mainstay ledger`: a double-entry ledger on a log volume.
//!
//! * The log is the truth: a transfer is one record, and a balance is a sum over all of them ([`book`]).
//! * A transfer has a key that names it for ever. Whatever is done twice (a command, an import that was cut off, a request that was on its
//!   way longer than its sender lived) moves money once.
//! * Nothing is called done before the cluster has committed it. A lost answer is settled, and if it cannot be, the command says so and may be
//!   given again.

pub mod book;
mod import;
pub mod rows;
mod snapshot;
pub mod transfer;
mod whose;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mainstay_client::{Admin, AppendError, ClientConfig, LogVolume, Outcome, PendingAppend};
use mainstay_types::Lsn;
use serde::Serialize;
use serde_json::json;

use super::{connect_with, explain_open, print_json, print_json_line, text};
use book::{Book, Taken};
pub use import::{Import, import};
use transfer::{Transfer, show_amount};
use whose::Of;

/// For each append, failovers included: a transfer whose outcome is unknown ends a command.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// The most transfers on their way at a time.
const IN_FLIGHT_MAX: usize = 4096;

/// Reads of the tail until two books have met.
const MEET_WITHIN: u32 = 100;

/// Which ledger, and how it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The log.
    pub volume: String,
    /// A file that holds the book as of some position, and is brought up to date.
    pub snapshot: Option<PathBuf>,
    /// Of amounts.
    pub decimals: u32,
    /// Print JSON.
    pub json: bool,
}

/// A ledger that is read and written to.
struct Open<'a> {
    ledger: &'a Ledger,
    admin: Admin,
    log: LogVolume,
    /// The snapshot that is kept, and whose book it is.
    kept: Option<(&'a Path, Of)>,
    book: Book,
}

impl Ledger {
    /// Opens the log, takes the snapshot if there is one, and reads the rest.
    async fn open(&self, endpoints: Vec<String>, read_only: bool) -> anyhow::Result<Open<'_>> {
        let mut config = ClientConfig::new(endpoints);
        config.log_deadline = SETTLED_WITHIN;
        config.in_flight_requests_max = IN_FLIGHT_MAX;
        let client = connect_with(config).await?;
        let builder = client.log(&self.volume);
        let builder = if read_only {
            builder.read_only()
        } else {
            builder
        };
        let log = builder.open().await;
        let log = log.map_err(|error| explain_open(&self.volume, error))?;
        let mut open = Open {
            ledger: self,
            admin: client.admin(),
            log,
            kept: None,
            book: Book::default(),
        };
        if let Some(path) = &self.snapshot {
            let (of, book) = open.load(path).await?;
            open.kept = Some((path, of));
            open.book = book.unwrap_or_default();
        }
        open.catch_up().await?;
        Ok(open)
    }

    fn show(&self, units: i128) -> String {
        show_amount(units, self.decimals)
    }
}

impl Open<'_> {
    async fn catch_up(&mut self) -> anyhow::Result<()> {
        self.book.catch_up(&self.log, |_, _| {}).await
    }

    /// The book in a file, which must be that of the log that is read; none if there is no file. And whose book it has to be.
    async fn load(&self, path: &Path) -> anyhow::Result<(Of, Option<Book>)> {
        snapshot::load(path, async || {
            whose::of(&self.ledger.volume, &self.admin, &self.log).await
        })
        .await
    }

    /// Takes in what was committed meanwhile, and keeps the snapshot.
    async fn close(mut self) -> anyhow::Result<Book> {
        self.catch_up().await?;
        if let Some((path, of)) = &self.kept {
            // Everything that the book has was read between the two answers.
            let now = whose::of(&self.ledger.volume, &self.admin, &self.log).await;
            let (now, _) = now.context("the snapshot is not kept")?;
            ensure!(
                now == *of,
                "a forced promotion gave the log `{}` another history meanwhile: the snapshot is not kept; remove {} and give the \
                 command again",
                self.ledger.volume,
                path.display()
            );
            snapshot::save(path, of, &self.book)?;
        }
        // Everything is committed: only the session stays behind, until the cluster forgets it.
        let _kept = self.log.close().await;
        Ok(self.book)
    }
}

/// Waits for one append; an unknown answer is settled.
async fn settle(log: &LogVolume, pending: PendingAppend) -> anyhow::Result<Lsn> {
    let op = pending.op();
    match pending.await {
        Ok(committed) => Ok(committed.lsn),
        Err(AppendError::Unknown { cause, .. }) => match log.outcome(op).await {
            Ok(Outcome::Committed(committed)) => Ok(committed.lsn),
            Ok(Outcome::Never) => bail!("it was not made: {cause}"),
            Ok(Outcome::Forgotten) | Err(_) => {
                bail!(
                    "nobody knows whether it was made: {cause}; the same command with the same key settles it"
                )
            }
        },
        Err(error) => Err(error.into()),
    }
}

/// `ledger post`: makes one transfer, unless it is there already.
///
/// # Errors
/// The key is taken by another transfer, or the cluster does not commit it.
pub async fn post(
    ledger: &Ledger,
    transfer: &Transfer,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    transfer.check().map_err(anyhow::Error::msg)?;
    let open = ledger.open(endpoints, false).await?;
    let existed = open.book.knows(transfer);
    let existed = existed.map_err(|lsn| taken(&transfer.key, lsn))?;
    let mut made = None;
    if !existed {
        let pending = open.log.submit(transfer.encode()).await?;
        made = Some(settle(&open.log, pending).await?);
    }
    let book = open.close().await?;
    // Somebody else may have taken the key in between: the log decides.
    if let Err(lsn) = book.knows(transfer) {
        return Err(taken(&transfer.key, lsn));
    }
    let (lsn, _) = book
        .keys
        .get(&transfer.key)
        .context("it is not in the log that was just read")?;
    let existed = made != Some(*lsn);
    if ledger.json {
        return print_json(
            out,
            &json!({ "key": transfer.key, "lsn": lsn, "existed": existed }),
        );
    }
    let done = if existed { "is there already" } else { "made" };
    let amount = ledger.show(transfer.amount.into());
    writeln!(
        out,
        "{amount} from {} to {}: {done}, at LSN {lsn}",
        transfer.from, transfer.to
    )?;
    Ok(())
}

fn taken(key: &str, lsn: Lsn) -> anyhow::Error {
    anyhow::anyhow!(
        "the key {key:?} is that of another transfer, at LSN {lsn}: a new transfer needs a new key"
    )
}

/// `ledger balance`: of some accounts, or of all.
///
/// # Errors
/// The log cannot be read, or an account is unknown.
pub async fn balance(
    ledger: &Ledger,
    accounts: &[String],
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let book = ledger.open(endpoints, true).await?.close().await?;
    let mut rows = Vec::new();
    if accounts.is_empty() {
        rows.extend(
            book.balances
                .iter()
                .map(|(account, units)| (account.clone(), *units)),
        );
    }
    for account in accounts {
        let units = book.balances.get(account);
        let units = units.with_context(|| format!("no transfer names the account {account:?}"))?;
        rows.push((account.clone(), *units));
    }
    for (account, units) in rows {
        let balance = ledger.show(units);
        if ledger.json {
            print_json_line(out, &json!({ "account": account, "balance": balance }))?;
        } else {
            writeln!(out, "{account}\t{balance}")?;
        }
    }
    Ok(())
}

/// `ledger statement`: the transfers of one account, in their order, with the balance after each. Reads the whole log.
///
/// # Errors
/// The log cannot be read, or the account is unknown.
pub async fn statement(
    ledger: &Ledger,
    account: &str,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let whole = Ledger {
        snapshot: None,
        ..ledger.clone()
    };
    let open = whole.open(endpoints, true).await?;
    let mut lines = Vec::new();
    let mut balance = 0_i128;
    let mut again = Book::default();
    again
        .catch_up(&open.log, |lsn, taken| {
            let Taken::Made(transfer) = taken else { return };
            let (other, change) = if transfer.to == account {
                (&transfer.from, i128::from(transfer.amount))
            } else if transfer.from == account {
                (&transfer.to, -i128::from(transfer.amount))
            } else {
                return;
            };
            balance += change;
            lines.push(json!({
                "lsn": lsn, "date": transfer.date, "other": other, "memo": transfer.memo,
                "change": ledger.show(change), "balance": ledger.show(balance),
            }));
        })
        .await?;
    if lines.is_empty() {
        bail!("no transfer names the account {account:?}");
    }
    for line in lines {
        if ledger.json {
            print_json_line(out, &line)?;
            continue;
        }
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let (date, other, memo) = (text("date"), text("other"), text("memo"));
        let (change, balance) = (text("change"), text("balance"));
        writeln!(
            out,
            "{}\t{date}\t{other}\t{change}\t{balance}\t{memo}",
            line["lsn"]
        )?;
    }
    Ok(())
}

/// What `verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Verified {
    holds: bool,
    transfers: u64,
    accounts: u64,
    /// Records that an equal one came before: they move nothing.
    repeats: u64,
    sum: String,
    /// The snapshot says what the log says; none if there is no snapshot.
    snapshot_holds: Option<bool>,
    problems: Vec<String>,
}

/// `ledger verify`: reads the whole log and checks it, and the snapshot against it.
///
/// # Errors
/// Something does not hold, or the log cannot be read.
pub async fn verify(
    ledger: &Ledger,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let whole = Ledger {
        snapshot: None,
        ..ledger.clone()
    };
    let mut open = whole.open(endpoints, true).await?;
    let mut snapshot_holds = None;
    if let Some(path) = &ledger.snapshot
        && let (_, Some(mut book)) = open.load(path).await?
    {
        meet(&mut open, &mut book).await?;
        let (log_says, file_says) = (&open.book, &book);
        snapshot_holds =
            Some(log_says.balances == file_says.balances && log_says.keys == file_says.keys);
    }
    let mut problems = open.book.problems.clone();
    if snapshot_holds == Some(false) {
        problems.push("the snapshot does not say what the log says: remove it".to_owned());
    }
    let sum: i128 = open.book.balances.values().sum();
    if sum != 0 {
        problems.push(format!(
            "all balances add up to {}, not to zero",
            ledger.show(sum)
        ));
    }
    let verified = Verified {
        holds: problems.is_empty(),
        transfers: open.book.keys.len() as u64,
        accounts: open.book.balances.len() as u64,
        repeats: open.book.repeats,
        sum: ledger.show(sum),
        snapshot_holds,
        problems,
    };
    print_verified(ledger, &verified, out)?;
    if !verified.holds {
        bail!("the ledger `{}` does not hold", ledger.volume);
    }
    Ok(())
}

/// Brings the book of the whole log and another one to the same position, though others may go on writing.
async fn meet(open: &mut Open<'_>, book: &mut Book) -> anyhow::Result<()> {
    for _ in 0..MEET_WITHIN {
        if open.book.next < book.next {
            open.catch_up().await?;
        } else {
            book.catch_up(&open.log, |_, _| {}).await?;
        }
        if open.book.next == book.next {
            return Ok(());
        }
    }
    bail!(
        "the log ends at {} and the snapshot at {}: it is of a log that had more, or others write so much that it takes another try",
        open.book.next,
        book.next
    )
}

fn print_verified(
    ledger: &Ledger,
    verified: &Verified,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if ledger.json {
        return print_json(out, verified);
    }
    writeln!(
        out,
        "{} between {}, {}; all balances add up to {}",
        text::count(verified.transfers, "transfer"),
        text::count(verified.accounts, "account"),
        text::count(verified.repeats, "repeat"),
        verified.sum
    )?;
    for problem in &verified.problems {
        writeln!(out, "{problem}")?;
    }
    Ok(())
}
