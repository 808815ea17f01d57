//! `mainstay log read`: the records of a range of positions, byte for byte as they were appended, in either direction.

use std::io::Write;

use anyhow::bail;
use mainstay_client::{Consistency, LogPage, LogVolume, ReadLimits};
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
    /// From the first record that is not older, in microseconds since 1970.
    pub since_us: Option<u64>,
    /// Records at most.
    pub limit: Option<u64>,
    /// The newest first.
    pub reverse: bool,
    /// From any copy, with what it knows to be committed.
    pub committed: bool,
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
            since_us: None,
            limit: None,
            reverse: false,
            committed: false,
            printed: Printed::default(),
        }
    }
}

/// Prints the records of a range.
///
/// # Errors
/// The log cannot be opened, the range was trimmed, or no primary answers.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && to < from
    {
        bail!("--to {to} lies before --from {from}");
    }
    let mut log = open(&args.volume, endpoints).await?;
    if args.committed {
        log = log.with_consistency(Consistency::Committed);
    }
    if let Some((from, end)) = range(args, &log).await? {
        print(args, &log, from, end, out).await?;
    }
    out.flush()?;
    Ok(())
}

/// The first position wanted, and one above the last; none if every record is too old.
async fn range(args: &Args, log: &LogVolume) -> anyhow::Result<Option<(Lsn, Lsn)>> {
    let explain = |error| explain_read(&args.volume, error);
    let here = log.position().await.map_err(explain)?;
    // Nothing that is committed later is waited for.
    let end = Lsn(here
        .next
        .0
        .min(args.to.map_or(u64::MAX, |to| to.0.saturating_add(1))));
    let from = match args.since_us {
        None => args.from.unwrap_or(here.first),
        Some(since) => match log.find_by_timestamp(since).await.map_err(explain)? {
            None => return Ok(None),
            Some(found) => found.lsn,
        },
    };
    Ok(Some((from.max(Lsn(1)), end)))
}

async fn print(
    args: &Args,
    log: &LogVolume,
    from: Lsn,
    end: Lsn,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut pages = if args.reverse {
        Pages::back(log, &args.volume, from, end)
    } else {
        Pages::new(log, &args.volume, from, end)
    };
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
    /// First position that is left.
    from: Lsn,
    /// One above the last position that is left.
    end: Lsn,
    back: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(log: &'a LogVolume, volume: &'a str, from: Lsn, end: Lsn) -> Self {
        Self {
            log,
            volume,
            from,
            end,
            back: false,
        }
    }

    /// The newest first.
    pub(super) fn back(log: &'a LogVolume, volume: &'a str, from: Lsn, end: Lsn) -> Self {
        Self {
            back: true,
            ..Self::new(log, volume, from, end)
        }
    }

    /// The next records of the range; none at its end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<LogPage>> {
        if self.from >= self.end {
            return Ok(None);
        }
        let limits = ReadLimits::default();
        let read = match self.back {
            false => self.log.read(self.from, limits).await,
            true => self.log.read_back(self.end, limits).await,
        };
        let mut page = read.map_err(|error| explain_read(self.volume, error))?;
        let headway = match self.back {
            false => page.next > self.from,
            true => page.next < self.end,
        };
        if !headway && !page.end {
            bail!(
                "log `{}` does not go on between positions {} and {}",
                self.volume,
                self.from,
                self.end
            );
        }
        let (from, end) = (self.from, self.end);
        page.records
            .retain(|record| record.lsn >= from && record.lsn < end);
        match (self.back, page.end) {
            (_, true) => self.from = self.end,
            (false, false) => self.from = page.next,
            (true, false) => self.end = page.next,
        }
        Ok(Some(page))
    }
}
