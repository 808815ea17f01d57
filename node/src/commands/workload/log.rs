//! Appends of numbers, some of them conditional, reads, and one process that follows the log all the time.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use mainstay_client::{Client, LogRecord, LogVolume, ReadError, ReadLimits, Tail};
use mainstay_types::Lsn;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::history::Ended;
use super::{AGAIN_AFTER, Args, Process, SERVED_WITHIN, append_ended, patiently, read_ended};

/// How long the process that follows waits for records before it writes down those that came.
const TAIL_FOR: Duration = Duration::from_millis(250);
const TAIL_RECORDS: usize = 256;
/// Records of one read: enough to meet the end, too few to fill the history.
const READ_RECORDS: u32 = 32;
/// Reads begin so far below the newest position that the process knows, at most.
const READ_BEHIND: u64 = 48;

/// The log may hold records already; those are of no interest.
pub(super) async fn prepare(args: &Args, client: &Client) -> anyhow::Result<Value> {
    let log = client
        .log(&args.volume)
        .read_only()
        .open()
        .await
        .context("open the log")?;
    let position = log.position().await.context("where the log ends")?;
    Ok(json!({ "first": position.next.0 }))
}

/// Where the history begins.
pub(super) fn first(parameters: &Value) -> Lsn {
    Lsn(parameters["first"].as_u64().unwrap_or(1))
}

/// What the process that follows leaves behind.
pub(super) async fn process(mut process: Process, first: Lsn) -> Option<Followed> {
    let mut log = process.open_log().await?;
    if process.number == 0 {
        let mut followed = Followed::new(process, log, first);
        followed.run().await;
        return Some(followed);
    }
    let mut newest = first;
    while process.may_begin().await {
        let over = match process.random.random_range(0..10) {
            0..6 => append(&mut process, &log, None, &mut newest).await,
            6 => {
                let expected = Some(Lsn(newest.0 + 1));
                append(&mut process, &log, expected, &mut newest).await
            }
            7 => position(&mut process, &log, &mut newest).await,
            _ => {
                let behind = process.random.random_range(0..READ_BEHIND);
                let from = Lsn(newest.0.saturating_sub(behind).max(first.0));
                read(&mut process, &log, from).await
            }
        };
        if over {
            log = process.open_log().await?;
        }
    }
    None
}

/// Reads everything, when nobody appends any more, and lets the tail come to the same end meanwhile.
pub(super) async fn end(
    mut process: Process,
    first: Lsn,
    followed: Option<Followed>,
) -> anyhow::Result<()> {
    let client = process.shared.client.clone();
    let volume = process.shared.args.volume.clone();
    let opened = || client.log(&volume).read_only().open();
    let log = patiently("open the log at the end", opened).await?;
    // The process that follows may never have come to open the log.
    let mut followed = followed
        .unwrap_or_else(|| Followed::new(Process::new(&process.shared, 0), log.clone(), first));
    let mut failed = None;
    let operation = async {
        match patiently("read the log at the end", || read_all(&log, first)).await {
            Ok(all) => {
                let last = all.last().and_then(|record| record[0].as_u64());
                followed.up_to(Lsn(last.unwrap_or(0))).await;
                Ended::Ok(json!({ "from": first.0, "records": all, "end": true }))
            }
            Err(error) => {
                let why = format!("{error:#}");
                failed = Some(error);
                Ended::Fail(why)
            }
        }
    };
    let asked = json!({ "from": first.0 });
    process.perform("final", asked, operation).await;
    failed.map_or(Ok(()), Err)
}

async fn read_all(log: &LogVolume, first: Lsn) -> Result<Vec<Value>, ReadError> {
    let mut from = first;
    let mut all = Vec::new();
    loop {
        let page = log.read(from, ReadLimits::default()).await?;
        all.extend(page.records.iter().map(told));
        if page.end {
            return Ok(all);
        }
        from = page.next;
    }
}

async fn append(
    process: &mut Process,
    log: &LogVolume,
    expected: Option<Lsn>,
    newest: &mut Lsn,
) -> bool {
    let value = process.fresh_value();
    let f = if expected.is_some() {
        "append_at"
    } else {
        "append"
    };
    let asked = json!([value, expected.map(|expected| expected.0)]);
    let mut over = false;
    let operation = async {
        let record = Bytes::from(value.to_string());
        let appended = match expected {
            Some(expected) => log.append_at(expected, record).await,
            None => log.append(record).await,
        };
        match appended {
            Ok(committed) => {
                *newest = committed.lsn.max(*newest);
                Ended::Ok(json!([value, committed.lsn.0]))
            }
            Err(error) => append_ended(&error, &mut over),
        }
    };
    process.perform(f, asked, operation).await;
    over
}

async fn position(process: &mut Process, log: &LogVolume, newest: &mut Lsn) -> bool {
    let mut over = false;
    let operation = async {
        match log.position().await {
            Ok(position) => {
                *newest = Lsn(position.next.0.saturating_sub(1)).max(*newest);
                Ended::Ok(json!(position.next.0))
            }
            Err(error) => read_ended(&error, &mut over),
        }
    };
    process.perform("position", Value::Null, operation).await;
    over
}

async fn read(process: &mut Process, log: &LogVolume, from: Lsn) -> bool {
    let limits = ReadLimits {
        records_max: READ_RECORDS,
        ..ReadLimits::default()
    };
    let mut over = false;
    let operation = async {
        match log.read(from, limits).await {
            Ok(page) => Ended::Ok(records_of(from, &page.records, page.end)),
            Err(error) => read_ended(&error, &mut over),
        }
    };
    process
        .perform("read", json!({ "from": from.0 }), operation)
        .await;
    over
}

/// One tail for the whole time, so that it lives through every failover.
pub(super) struct Followed {
    process: Process,
    log: LogVolume,
    tail: Tail,
    /// Everything below is in the history.
    from: Lsn,
}

impl Followed {
    fn new(process: Process, log: LogVolume, from: Lsn) -> Self {
        Self {
            process,
            tail: log.tail(from),
            log,
            from,
        }
    }

    async fn run(&mut self) {
        while self.process.may_begin().await {
            self.once(Lsn(u64::MAX)).await;
        }
    }

    /// Goes on until the record at `last` is handed over. If it does not come, the history says so.
    async fn up_to(&mut self, last: Lsn) {
        let give_up = Instant::now() + SERVED_WITHIN;
        while self.from <= last {
            if Instant::now() >= give_up {
                let asked = json!({ "from": self.from.0 });
                let why = format!("not at {last} after {SERVED_WITHIN:?}");
                let missed = async { Ended::Fail(why) };
                self.process.perform("tail", asked, missed).await;
                return;
            }
            self.once(last).await;
        }
    }

    /// Writes down what is handed over within [`TAIL_FOR`], up to `last`.
    async fn once(&mut self, last: Lsn) {
        let from = self.from;
        let mut seen = Vec::new();
        let mut ended_with = None;
        let operation = async {
            ended_with = follow_for(&mut self.tail, last, &mut seen).await;
            match &ended_with {
                Some(error) => Ended::Fail(error.to_string()),
                None => Ended::Ok(records_of(from, &seen, false)),
            }
        };
        let asked = json!({ "from": from.0 });
        self.process.perform("tail", asked, operation).await;
        if ended_with.is_some() {
            // What it handed over just now is not in the history: it begins there again.
            tokio::time::sleep(AGAIN_AFTER).await;
            self.tail = self.log.tail(from);
        } else if let Some(last) = seen.last() {
            self.from = last.lsn.next();
        }
    }
}

async fn follow_for(tail: &mut Tail, last: Lsn, seen: &mut Vec<LogRecord>) -> Option<ReadError> {
    let until = Instant::now() + TAIL_FOR;
    while seen.len() < TAIL_RECORDS && seen.last().is_none_or(|newest| newest.lsn < last) {
        match tokio::time::timeout_at(until, tail.next()).await {
            Ok(Some(Ok(record))) => seen.push(record),
            Ok(Some(Err(error))) => return Some(error),
            Ok(None) => return Some(ReadError::Misfit),
            Err(_) => return None,
        }
    }
    None
}

fn records_of(from: Lsn, records: &[LogRecord], end: bool) -> Value {
    let records: Vec<Value> = records.iter().map(told).collect();
    json!({ "from": from.0, "records": records, "end": end })
}

/// Position and number; null if it is no record of this workload.
fn told(record: &LogRecord) -> Value {
    let text = std::str::from_utf8(&record.data).ok();
    let number = text.and_then(|text| text.parse::<u64>().ok());
    json!([record.lsn.0, number])
}
