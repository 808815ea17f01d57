//! What a run prints: one row for each load, as a table for people or as JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// One kind of load, closed loop: the next record goes out when one is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Payload of a record.
    pub record_bytes: usize,
    /// Records without an answer at any time.
    pub in_flight: usize,
}

/// Times of single operations, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Operations measured.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// One in ten takes longer.
    pub p90_us: f64,
    /// One in a hundred takes longer.
    pub p99_us: f64,
    /// One in a thousand takes longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// What one load came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    /// The load.
    #[serde(flatten)]
    pub load: Load,
    /// Committed records a second.
    pub ops_per_second: f64,
    /// From handing a record in to its commit.
    #[serde(flatten)]
    pub latency: Quantiles,
    /// Mean number of records that were made durable together.
    pub records_per_batch: f64,
}

impl Quantiles {
    /// Of times that [`record`] took.
    #[must_use]
    pub fn of(times: &Histogram<u64>) -> Self {
        Self {
            count: times.len(),
            p50_us: micros(times.value_at_quantile(0.5)),
            p90_us: micros(times.value_at_quantile(0.9)),
            p99_us: micros(times.value_at_quantile(0.99)),
            p999_us: micros(times.value_at_quantile(0.999)),
            max_us: micros(times.max()),
        }
    }
}

/// For times up to a minute, in nanoseconds, to three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("the bounds are legal")
}

/// Takes one time; longer than a minute counts as a minute.
pub fn record(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Rows as a table, with a heading.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>7} {:>9} {:>10} {:>8} {:>8} {:>9} {:>9}",
            "record", "in flight", "ops/s", "MB/s", "p50 us", "p99 us", "per batch"
        )?;
        for row in self.0 {
            writeln!(
                f,
                "{:>7} {:>9} {:>10.0} {:>8.1} {:>8.0} {:>9.0} {:>9.1}",
                row.load.record_bytes,
                row.load.in_flight,
                row.ops_per_second,
                row.ops_per_second * as_f64(row.load.record_bytes) / 1e6,
                row.latency.p50_us,
                row.latency.p99_us,
                row.records_per_batch,
            )?;
        }
        Ok(())
    }
}

fn micros(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64() * 1e6
}

/// Sizes and counts of a run stay far below 2^32.
#[must_use]
pub fn as_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
