//! `mainstay log read`: the records of a range of positions, byte for byte as they were appended.

use std::io::Write;

use anyhow::bail;
use mainstay_client::{LogPage, LogVolume, ReadLimits};
use mainstay_types::Lsn;

use super::{Printed, explain_read};
use crate::commands::{connect, explain_open};

/// Which records, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The log.
    pub volume: String,
    /// First position, inclusive; `None`: the first there is.
    pub from: Option<Lsn>,
    /// Last position, inclusive; `None`: the last that is committed now.
    pub to: Option<Lsn>,
    /// Records at most.
    pub limit: Option<u64>,
    /// How they are printed.
    pub printed: Printed,
}

impl Args {
    /// All of one log.
    #[must_use]
    pub fn all(volume: impl Into<String>) -> Self {
        Self {
            volume: volume.into(),
            from: None,
            to: None,
            limit: None,
            printed: Printed::default(),
        }
    }
}

/// Prints the records of a range.
///
/// # Errors
/// The log cannot be opened, the range was trimmed, or no primary answers.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let log = open(&args.volume, endpoints).await?;
    if let (Some(from), Some(to)) = (args.from, args.to)
        && to < from
    {
        bail!("--to {to} lies before --from {from}");
    }
    let here = log
        .position()
        .await
        .map_err(|error| explain_read(&args.volume, error))?;
    let from = args.from.unwrap_or(here.first).max(Lsn(1));
    // Nothing that is committed later is waited for.
    let end = Lsn(here
        .next
        .0
        .min(args.to.map_or(u64::MAX, |to| to.0.saturating_add(1))));
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut pages = Pages::new(&log, &args.volume, from, end);
    while left > 0
        && let Some(page) = pages.next().await?
    {
        let shown = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(page.records.len());
        for record in &page.records[..shown] {
            args.printed.print(record, out)?;
        }
        left -= shown as u64;
    }
    out.flush()?;
    Ok(())
}

pub(super) async fn open(volume: &str, endpoints: Vec<String>) -> anyhow::Result<LogVolume> {
    let client = connect(endpoints).await?;
    let opened = client.log(volume).read_only().open().await;
    opened.map_err(|error| explain_open(volume, error))
}

/// The records of a range, page by page.
pub(super) struct Pages<'a> {
    log: &'a LogVolume,
    volume: &'a str,
    next: Lsn,
    /// One above the last position.
    end: Lsn,
}

impl<'a> Pages<'a> {
    pub(super) fn new(log: &'a LogVolume, volume: &'a str, from: Lsn, end: Lsn) -> Self {
        Self {
            log,
            volume,
            next: from,
            end,
        }
    }

    /// The next records of the range; none at its end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<LogPage>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let read = self.log.read(self.next, ReadLimits::default()).await;
        let mut page = read.map_err(|error| explain_read(self.volume, error))?;
        if page.next <= self.next && !page.end {
            bail!(
                "log `{}` does not go on at position {}",
                self.volume,
                self.next
            );
        }
        page.records.retain(|record| record.lsn < self.end);
        self.next = if page.end { self.end } else { page.next };
        Ok(Some(page))
    }
}
