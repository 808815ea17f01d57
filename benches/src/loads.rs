//! What a log is put under: appends in a closed loop, appends in an open loop, and atomic batches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use mainstay_client::{LogVolume, PendingAppend};
use tokio::sync::{Semaphore, mpsc};

use crate::report::{Load, as_f64, histogram, record};

/// What a load came to.
#[derive(Debug)]
pub struct Outcome {
    /// Committed units a second: records, or whole batches.
    pub per_second: f64,
    /// From when a unit was, or was to be, handed in to its commit; nanoseconds.
    pub times: Histogram<u64>,
}

/// Units that were handed in, each with the time that its latency counts from.
type Pending = mpsc::UnboundedSender<(Instant, PendingAppend)>;

/// Keeps `load.in_flight` records without an answer for `span`.
///
/// # Errors
/// An append failed.
pub async fn closed_loop(log: &LogVolume, load: Load, span: Duration) -> anyhow::Result<Outcome> {
    let record = payload(load.record_bytes);
    let before = log.position().await?.next.0;
    let outcome = keep_in_flight(load.in_flight, span, async || {
        Ok(log.submit(record.clone()).await?)
    })
    .await?;
    // Every answer that is counted has a place in the log.
    let grown = log.position().await?.next.0 - before;
    let counted = outcome.times.len();
    ensure!(
        grown >= counted,
        "{counted} answers, and the log has grown by {grown}"
    );
    Ok(outcome)
}

/// Keeps `in_flight` atomic batches of `batch` records of `record_bytes` without an answer for `span`.
///
/// # Errors
/// A batch failed.
pub async fn batches(
    log: &LogVolume,
    record_bytes: usize,
    batch: usize,
    in_flight: usize,
    span: Duration,
) -> anyhow::Result<Outcome> {
    let record = payload(record_bytes);
    keep_in_flight(in_flight, span, async || {
        let records: Vec<Bytes> = vec![record.clone(); batch];
        Ok(log.submit_batch(records).await?)
    })
    .await
}

/// Hands a record in every `1/rate` of a second for `span`, whether or not those before are answered. Latency counts from the
/// time at which a record was to be handed in, so that a stall is paid by all that it held up ("coordinated omission").
///
/// # Errors
/// An append failed.
pub async fn open_loop(
    log: &LogVolume,
    record_bytes: usize,
    rate: f64,
    span: Duration,
) -> anyhow::Result<Outcome> {
    let record = payload(record_bytes);
    let total = span.as_secs_f64() * rate;
    let (due_to, mut due) = mpsc::unbounded_channel();
    // A thread of its own: the runtime's clock ticks in milliseconds.
    let pacer = std::thread::spawn(move || pace(rate, total, &due_to));
    let (pending, collector) = collect(None);
    let begin = Instant::now();
    while let Some(intended) = due.recv().await {
        let append = log.submit(record.clone()).await?;
        hand_over(&pending, intended, append)?;
    }
    drop(pending);
    let times = collector.await??;
    pacer.join().ok().context("the pacer ended")?;
    Ok(outcome(times, begin))
}

fn pace(rate: f64, total: f64, due: &mpsc::UnboundedSender<Instant>) {
    let begin = Instant::now();
    let mut at = 0.0;
    while at < total {
        let intended = begin + Duration::from_secs_f64(at / rate);
        std::thread::sleep(intended.saturating_duration_since(Instant::now()));
        if due.send(intended).is_err() {
            return;
        }
        at += 1.0;
    }
}

async fn keep_in_flight(
    in_flight: usize,
    span: Duration,
    submit: impl AsyncFn() -> anyhow::Result<PendingAppend>,
) -> anyhow::Result<Outcome> {
    let room = Arc::new(Semaphore::new(in_flight));
    let (pending, collector) = collect(Some(room.clone()));
    let begin = Instant::now();
    while begin.elapsed() < span {
        room.acquire().await?.forget();
        let sent = Instant::now();
        let append = submit().await?;
        hand_over(&pending, sent, append)?;
    }
    drop(pending);
    let times = collector.await??;
    Ok(outcome(times, begin))
}

/// Waits for what is handed in, in order, and makes room for more.
fn collect(
    room: Option<Arc<Semaphore>>,
) -> (
    Pending,
    tokio::task::JoinHandle<anyhow::Result<Histogram<u64>>>,
) {
    let (to, mut pending) = mpsc::unbounded_channel::<(Instant, PendingAppend)>();
    let task = tokio::spawn(async move {
        let mut times = histogram();
        while let Some((since, append)) = pending.recv().await {
            append.await?;
            record(&mut times, since.elapsed());
            if let Some(room) = &room {
                room.add_permits(1);
            }
        }
        Ok(times)
    });
    (to, task)
}

fn hand_over(to: &Pending, since: Instant, append: PendingAppend) -> anyhow::Result<()> {
    to.send((since, append)).ok().context("an append failed")
}

fn outcome(times: Histogram<u64>, begin: Instant) -> Outcome {
    let count = usize::try_from(times.len()).unwrap_or(usize::MAX);
    Outcome {
        per_second: as_f64(count) / begin.elapsed().as_secs_f64(),
        times,
    }
}

fn payload(len: usize) -> Bytes {
    Bytes::from(vec![0x5a_u8; len])
}
