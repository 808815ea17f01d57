//! `ledger import`: every row of a file is a transfer, made once, however often the import is cut off and started again.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use mainstay_client::PendingAppend;
use mainstay_types::Lsn;
use serde::Serialize;
use tokio::sync::mpsc;

use super::book::{Book, checksum};
use super::rows::{self, Mapping};
use super::transfer::Transfer;
use super::{IN_FLIGHT_MAX, Ledger, Open, settle};
use crate::commands::{print_json, text};

/// Rows read ahead.
const ROWS_AHEAD: usize = 1024;
/// Rows that an error names; the rest are counted.
const NAMED: usize = 10;

/// What to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// CSV with a header, gzip or not.
    pub file: PathBuf,
    /// Which columns mean what.
    pub mapping: Mapping,
    /// Transfers on their way at a time.
    pub in_flight: usize,
    /// No progress bar.
    pub quiet: bool,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Imported {
    rows: u64,
    /// Made now.
    made: u64,
    /// There before, of an import that was cut off for instance.
    existed: u64,
    accounts: u64,
    elapsed_ms: u64,
}

/// Imports every row. An error leaves everything that was made before; the same command goes on from there.
///
/// # Errors
/// A row does not fit the mapping, a key is that of another transfer, or the cluster does not commit one.
pub async fn import(
    ledger: &Ledger,
    import: &Import,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let open = ledger.open(endpoints, false).await?;
    let mut importer = Importer {
        open: &open,
        sent: VecDeque::new(),
        seen: HashMap::new(),
        imported: (0, 0, 0),
    };
    let ran = importer.file(import).await;
    let Importer { seen, imported, .. } = importer;
    let (rows, committed, existed) = imported;
    ran.with_context(|| {
        format!(
            "{} committed, {existed} there before; the same command goes on from there",
            text::count(committed, "transfer")
        )
    })?;
    let book = open.close().await?;
    // Somebody else may have taken keys in between, be it what an import that was killed had on its way: the log decides.
    let (repeats, lost) = moved_nothing(&seen, &book);
    let made = committed - repeats - lost.len() as u64;
    let existed = existed + repeats;
    if !lost.is_empty() {
        bail!(
            "{} made, {existed} there before, and {} that moved nothing: {}",
            text::count(made, "transfer"),
            lost.len(),
            named(&lost)
        );
    }
    let imported = Imported {
        rows,
        made,
        existed,
        accounts: book.balances.len() as u64,
        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    print(ledger, &imported, out)
}

fn print(ledger: &Ledger, imported: &Imported, out: &mut impl Write) -> anyhow::Result<()> {
    if ledger.json {
        return print_json(out, imported);
    }
    writeln!(
        out,
        "{} in {}: {} made, {} there before; {} in all",
        text::count(imported.rows, "row"),
        text::span_ms(imported.elapsed_ms),
        imported.made,
        imported.existed,
        text::count(imported.accounts, "account")
    )?;
    Ok(())
}

/// Rows that were committed and are not the transfer of their key: how many repeat an equal one in front of them, and the others in words.
fn moved_nothing(seen: &HashMap<String, Option<(Lsn, u32)>>, book: &Book) -> (u64, Vec<String>) {
    let (mut repeats, mut lost) = (0, Vec::new());
    for (key, committed) in seen {
        let Some((lsn, sum)) = committed else {
            continue;
        };
        match book.place_of(key, *sum) {
            Ok(Some(first)) if first == *lsn => {}
            Ok(Some(_)) => repeats += 1,
            Ok(None) => lost.push(format!("{key:?} is not in the log that was just read")),
            Err(lsn) => lost.push(super::taken(key, lsn).to_string()),
        }
    }
    lost.sort_unstable();
    (repeats, lost)
}

fn named(lost: &[String]) -> String {
    let mut text = lost[..lost.len().min(NAMED)].join("; ");
    if lost.len() > NAMED {
        text.push_str(&format!("; and {} more", lost.len() - NAMED));
    }
    text
}

struct Importer<'a> {
    open: &'a Open<'a>,
    /// On their way, oldest first.
    sent: VecDeque<(Transfer, PendingAppend)>,
    /// Keys of this file, with the position and a checksum of the content if the row was committed now.
    seen: HashMap<String, Option<(Lsn, u32)>>,
    /// Rows, committed, there before.
    imported: (u64, u64, u64),
}

impl Importer<'_> {
    /// Sends the rows of the file, which is read ahead.
    async fn file(&mut self, import: &Import) -> anyhow::Result<()> {
        let bar = progress_bar(import.quiet);
        let (take, mut rows) = mpsc::channel(ROWS_AHEAD);
        let (file, mapping, following) = (import.file.clone(), import.mapping.clone(), bar.clone());
        let reading = tokio::task::spawn_blocking(move || {
            rows::read(&file, &mapping, &following, |row| {
                take.blocking_send(row).is_ok()
            })
        });
        let window = import.in_flight.clamp(1, IN_FLIGHT_MAX);
        let ran = self.run(&mut rows, window, &bar).await;
        drop(rows);
        let read = reading.await.context("the reader of the file panicked")?;
        bar.finish_and_clear();
        ran.and(read)
    }

    async fn run(
        &mut self,
        rows: &mut mpsc::Receiver<Transfer>,
        window: usize,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        while let Some(row) = rows.recv().await {
            self.imported.0 += 1;
            if self.seen.insert(row.key.clone(), None).is_some() {
                bail!(
                    "row {}: the key {:?} is there twice in the file",
                    self.imported.0,
                    row.key
                );
            }
            let there = self.open.book.knows(&row);
            if there.map_err(|lsn| super::taken(&row.key, lsn))? {
                self.imported.2 += 1;
                continue;
            }
            while self.sent.len() >= window {
                self.settle_oldest(bar).await?;
            }
            let pending = self.open.log.submit(row.encode()).await;
            let pending = pending.with_context(|| format!("transfer {:?}", row.key))?;
            self.sent.push_back((row, pending));
        }
        while !self.sent.is_empty() {
            self.settle_oldest(bar).await?;
        }
        Ok(())
    }

    async fn settle_oldest(&mut self, bar: &ProgressBar) -> anyhow::Result<()> {
        if let Some((row, pending)) = self.sent.pop_front() {
            let settled = settle(&self.open.log, pending).await;
            let lsn = settled.with_context(|| format!("transfer {:?}", row.key))?;
            self.imported.1 += 1;
            let sum = checksum(&row);
            self.seen.insert(row.key, Some((lsn, sum)));
            bar.set_message(self.imported.1.to_string());
        }
        Ok(())
    }
}

/// Shown only where standard error is a terminal.
fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let style = "{bar:30} {percent}% of the file read, {msg} transfers made, {elapsed}, {eta} left";
    let style = ProgressStyle::with_template(style);
    bar.set_style(style.expect("the template is well formed"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
