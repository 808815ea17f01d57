//! `mainstay log append`: records from an input, in its order, each exactly once.
//!
//! Records are sent ahead of their answers. Across a failover the client library sends again what has no answer, and the
//! cluster recognises what it has. A record whose outcome stays unknown ends the command with an error that names it; so does
//! a record that is refused. Whatever was appended before is reported in any case.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use mainstay_client::{
    AppendError, ClientConfig, ClientEvent, ClientEvents, Committed, LogVolume, PendingAppend,
};
use mainstay_types::{Lsn, SessionId};
use serde::Serialize;
use tokio::sync::mpsc;

use super::framing::{Framing, InputError, read_ahead};
use crate::commands::{connect_with, explain_open, print_json, size, text};

/// The most records that may be sent ahead of their answers: as many as the cluster remembers of a session.
pub const IN_FLIGHT_MAX: usize = 4096;

/// What to append to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The log.
    pub volume: String,
    /// How records are told apart in the input.
    pub framing: Framing,
    /// Records that are appended together, all or none; `None`: each by itself.
    pub batch: Option<usize>,
    /// Of the single writer that this is.
    pub token: Option<u64>,
    /// Records, or batches, sent ahead of their answers, 1 to [`IN_FLIGHT_MAX`].
    pub in_flight: usize,
    /// How long each record waits for its answer, failovers included; `None` is the client's default.
    pub deadline: Option<Duration>,
    /// Print the summary as JSON.
    pub json: bool,
    /// Print nothing but the summary and errors.
    pub quiet: bool,
}

impl Args {
    /// The defaults for one log.
    #[must_use]
    pub fn new(volume: impl Into<String>) -> Self {
        Self {
            volume: volume.into(),
            framing: Framing::Lines,
            batch: None,
            token: None,
            in_flight: 256,
            deadline: None,
            json: false,
            quiet: false,
        }
    }
}

/// What was appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Summary {
    volume: String,
    /// The session that wrote them.
    session: SessionId,
    /// Records that are committed.
    records: u64,
    /// Their bytes.
    bytes: u64,
    /// Position of the first.
    first_lsn: Option<Lsn>,
    /// Position of the last.
    last_lsn: Option<Lsn>,
    elapsed_ms: u64,
    /// Times that the connection to the primary was lost and found again.
    interruptions: u64,
    /// The longest time without an answer across such a loss.
    longest_gap_ms: u64,
}

/// Whether so much can be sent ahead.
///
/// # Errors
/// Why not, in words.
pub fn check_in_flight(in_flight: usize) -> Result<(), String> {
    if (1..=IN_FLIGHT_MAX).contains(&in_flight) {
        return Ok(());
    }
    Err(format!(
        "1 to {IN_FLIGHT_MAX} can be sent ahead: so many answers the cluster remembers of a session, and what it has forgotten cannot be \
         settled after a failover"
    ))
}

/// Appends every record of `input`.
///
/// # Errors
/// The log cannot be opened, more is to be sent ahead than is possible, a record is too long or refused, or its outcome is unknown. What was
/// appended is printed first.
pub async fn run(
    args: &Args,
    endpoints: Vec<String>,
    input: impl Read + Send + 'static,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    check_in_flight(args.in_flight).map_err(anyhow::Error::msg)?;
    let mut config = ClientConfig::new(endpoints);
    config.in_flight_requests_max = IN_FLIGHT_MAX;
    let client = connect_with(config).await?;
    let mut builder = client.log(&args.volume);
    if let Some(deadline) = args.deadline {
        builder = builder.deadline(deadline);
    }
    if let Some(token) = args.token {
        builder = builder.token(token);
    }
    let events = client.events();
    let log = builder
        .open()
        .await
        .map_err(|error| explain_open(&args.volume, error))?;
    let records = read_ahead(input, args.framing, log.record_bytes_max())?;
    let bar = progress_bar(args.quiet);
    let interruptions = Arc::new(Mutex::new(Interruptions::default()));
    let watcher = watch(events, bar.clone(), args.quiet, Arc::clone(&interruptions));
    let watcher = tokio::spawn(watcher);

    let began = Instant::now();
    let mut appender = Appender::new(args, log.clone(), bar.clone());
    let ended = appender.run(records).await;
    let Appender { tally, .. } = appender;
    let closed = match &ended {
        Ok(()) => log.clone().close().await.err(),
        Err(_) => None,
    };
    bar.finish_and_clear();
    watcher.abort();

    let interruptions = *interruptions.lock().unwrap_or_else(PoisonError::into_inner);
    let summary = Summary {
        volume: args.volume.clone(),
        session: log.session(),
        records: tally.records,
        bytes: tally.bytes,
        first_lsn: tally.first.map(|committed| committed.lsn),
        last_lsn: tally.last.map(|committed| committed.last()),
        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        interruptions: interruptions.count,
        longest_gap_ms: u64::try_from(interruptions.longest.as_millis()).unwrap_or(u64::MAX),
    };
    print_summary(args, &summary, out)?;
    if let Some(error) = closed {
        // Everything is committed: only the session stays behind, until the cluster forgets it.
        tracing::debug!(%error, "session not closed");
    }
    ended
}

fn print_summary(args: &Args, summary: &Summary, out: &mut impl Write) -> anyhow::Result<()> {
    if args.json {
        return print_json(out, summary);
    }
    writeln!(out, "{}", describe(summary))?;
    Ok(())
}

fn describe(summary: &Summary) -> String {
    let mut line = format!(
        "appended {} ({}) to `{}` in {}",
        text::count(summary.records, "record"),
        size::show_size(summary.bytes),
        summary.volume,
        text::span_ms(summary.elapsed_ms)
    );
    if let (Some(first), Some(last)) = (summary.first_lsn, summary.last_lsn) {
        line.push_str(&format!(": first LSN {first}, last LSN {last}"));
    }
    if summary.interruptions > 0 {
        line.push_str(&format!(
            "; {}, the longest of {}",
            text::count(summary.interruptions, "interruption"),
            text::span_ms(summary.longest_gap_ms)
        ));
    }
    line
}

/// Committed records.
#[derive(Debug, Default)]
struct Tally {
    records: u64,
    bytes: u64,
    first: Option<Committed>,
    last: Option<Committed>,
}

/// A record, or a batch, on its way.
struct Sent {
    /// Of the first record.
    number: u64,
    records: u64,
    bytes: u64,
    pending: PendingAppend,
}

/// Why the command stops before the input ends.
#[derive(Default)]
struct Trouble {
    /// Records from here on were not appended, or nobody knows; and how many are in one batch.
    first: Option<(u64, u64, AppendError)>,
    /// Of those sent after it.
    appended_after: u64,
    unknown_after: u64,
}

impl Trouble {
    /// Whether something went wrong before `sent`.
    fn is_before(&self, sent: &Sent) -> bool {
        let first = self.first.as_ref();
        first.is_some_and(|(number, _, _)| *number < sent.number)
    }
}

struct Appender<'a> {
    args: &'a Args,
    log: LogVolume,
    bar: ProgressBar,
    tally: Tally,
    sent: VecDeque<Sent>,
    /// Records that wait until their batch is full.
    batch: Vec<Bytes>,
    /// Records submitted.
    number: u64,
    trouble: Trouble,
}

impl<'a> Appender<'a> {
    fn new(args: &'a Args, log: LogVolume, bar: ProgressBar) -> Self {
        Self {
            args,
            log,
            bar,
            tally: Tally::default(),
            sent: VecDeque::new(),
            batch: Vec::new(),
            number: 0,
            trouble: Trouble::default(),
        }
    }

    /// Appends until the input ends or something goes wrong, and waits for everything that was sent.
    async fn run(
        &mut self,
        mut records: mpsc::Receiver<Result<Vec<Bytes>, InputError>>,
    ) -> anyhow::Result<()> {
        let input_ended = loop {
            tokio::select! {
                biased;
                batch = records.recv() => match batch {
                    Some(Ok(batch)) => self.submit(batch).await,
                    Some(Err(error)) => break Err(error),
                    None => {
                        self.submit_batch().await;
                        break Ok(());
                    }
                },
                result = next_answer(&mut self.sent), if !self.sent.is_empty() => self.settle(result),
            }
            if self.trouble.first.is_some() {
                break Ok(());
            }
        };
        while !self.sent.is_empty() {
            let result = next_answer(&mut self.sent).await;
            self.settle(result);
        }
        match self.trouble.first.take() {
            Some((number, records, error)) => Err(self.explain(number, records, error)),
            None => Ok(input_ended?),
        }
    }

    async fn submit(&mut self, records: Vec<Bytes>) {
        for record in records {
            self.batch.push(record);
            if self.batch.len() >= self.args.batch.unwrap_or(1) {
                self.submit_batch().await;
            }
            if self.trouble.first.is_some() {
                return;
            }
        }
    }

    /// Sends what was collected, if there is anything.
    async fn submit_batch(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        let records = batch.len() as u64;
        if records == 0 {
            return;
        }
        while self.sent.len() >= self.args.in_flight {
            let result = next_answer(&mut self.sent).await;
            self.settle(result);
        }
        if self.trouble.first.is_some() {
            return;
        }
        let number = self.number + 1;
        self.number += records;
        let bytes = batch.iter().map(|record| record.len() as u64).sum();
        let submitted = match batch.pop() {
            Some(record) if records == 1 => self.log.submit(record).await,
            last => self.log.submit_batch(batch.into_iter().chain(last)).await,
        };
        match submitted {
            Ok(pending) => self.sent.push_back(Sent {
                number,
                records,
                bytes,
                pending,
            }),
            Err(error) => self.trouble.first = Some((number, records, error)),
        }
    }

    fn settle(&mut self, (sent, result): (Sent, Result<Committed, AppendError>)) {
        match result {
            Ok(committed) => {
                self.tally.records += sent.records;
                self.tally.bytes += sent.bytes;
                self.tally.first.get_or_insert(committed);
                self.tally.last = Some(committed);
                self.bar.set_position(self.tally.records);
                // Answers are awaited in order, so a trouble is always that of an earlier record, or of one never sent.
                if self.trouble.is_before(&sent) {
                    self.trouble.appended_after += sent.records;
                }
            }
            Err(error) if self.trouble.is_before(&sent) => {
                if error.unknown_op().is_some() {
                    self.trouble.unknown_after += sent.records;
                }
            }
            Err(error) => self.trouble.first = Some((sent.number, sent.records, error)),
        }
    }

    fn explain(&self, number: u64, records: u64, error: AppendError) -> anyhow::Error {
        let unit = self.args.framing.unit();
        let named = match records {
            1 => format!("{unit} {number}"),
            _ => format!("the batch of {unit}s {number} to {}", number + records - 1),
        };
        let Trouble {
            appended_after,
            unknown_after,
            ..
        } = self.trouble;
        let before = number - 1;
        let mut text = match error {
            AppendError::Refused(refusal) => {
                format!("{named} was refused: {refusal}")
            }
            AppendError::Unknown { op, cause } => format!(
                "{named} may or may not have been appended: {cause} (operation {op}); look with `mainstay log \
                 tail {}` once the volume serves again",
                self.args.volume
            ),
            AppendError::NoRoom { waited } => format!(
                "{named} was not sent: no answer to those before it within {}; `mainstay status` says why",
                text::span(waited)
            ),
        };
        text.push_str(&format!(
            "; the {} before it are appended",
            text::count(before, unit)
        ));
        if appended_after > 0 {
            text.push_str(&format!(
                ", and so are {} after it",
                text::count(appended_after, unit)
            ));
        }
        if unknown_after > 0 {
            text.push_str(&format!(
                "; of {} after it nobody knows either",
                text::count(unknown_after, unit)
            ));
        }
        anyhow::anyhow!(text)
    }
}

/// Waits for the oldest record's answer. Cancelling loses nothing. Must not be called without records.
async fn next_answer(sent: &mut VecDeque<Sent>) -> (Sent, Result<Committed, AppendError>) {
    let oldest = sent.front_mut().expect("called only with records sent");
    let result = (&mut oldest.pending).await;
    let oldest = sent.pop_front().expect("it was there just now");
    (oldest, result)
}

#[derive(Debug, Clone, Copy, Default)]
struct Interruptions {
    count: u64,
    longest: Duration,
}

/// Tells a person what happens to the connection, and keeps account of it.
async fn watch(
    mut events: ClientEvents,
    bar: ProgressBar,
    quiet: bool,
    interruptions: Arc<Mutex<Interruptions>>,
) {
    while let Some(event) = events.next().await {
        let line = match event {
            ClientEvent::ConnectionLost {
                node,
                reason,
                waiting,
                ..
            } => format!(
                "primary on node {node} lost ({reason}), {} wait",
                text::count(waiting as u64, "request")
            ),
            ClientEvent::Resumed {
                node,
                epoch,
                gap,
                replayed,
                ..
            } => {
                let mut seen = interruptions.lock().unwrap_or_else(PoisonError::into_inner);
                seen.count += 1;
                seen.longest = seen.longest.max(gap);
                format!(
                    "node {node} serves in epoch {epoch}; gap {}, {} sent again",
                    text::span(gap),
                    text::count(replayed as u64, "record")
                )
            }
            _ => continue,
        };
        if !quiet {
            bar.suspend(|| eprintln!("{line}"));
        }
    }
}

/// Shown only where standard error is a terminal.
fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {human_pos} records, {per_sec}, {elapsed}");
    bar.set_style(style.expect("the template is well formed"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_positions_and_gaps() {
        let mut summary = Summary {
            volume: "ledger".to_owned(),
            session: SessionId(1),
            records: 2,
            bytes: 2048,
            first_lsn: Some(Lsn(5)),
            last_lsn: Some(Lsn(6)),
            elapsed_ms: 12,
            interruptions: 0,
            longest_gap_ms: 0,
        };
        assert_eq!(
            describe(&summary),
            "appended 2 records (2 KiB) to `ledger` in 12 ms: first LSN 5, last LSN 6"
        );
        summary.interruptions = 3;
        summary.longest_gap_ms = 300;
        assert!(describe(&summary).ends_with("; 3 interruptions, the longest of 300 ms"));
        (summary.records, summary.first_lsn, summary.last_lsn) = (0, None, None);
        summary.interruptions = 0;
        assert_eq!(
            describe(&summary),
            "appended 0 records (2 KiB) to `ledger` in 12 ms"
        );
    }
}
