//! `mainstay log tail`: the newest records, and with `follow` every record after them, across failovers, without a gap or a
//! repeat.

use std::io::Write;

use futures_util::FutureExt as _;
use mainstay_client::{LogRecord, LogVolume};
use mainstay_types::Lsn;

use super::read::{Pages, open};
use super::{Printed, explain_read};

/// From where, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The log.
    pub volume: String,
    /// First position, inclusive; `None`: that of the `last` newest records.
    pub from: Option<Lsn>,
    /// How many of the newest records, if there is no `from`.
    pub last: usize,
    /// Go on with records as they are committed.
    pub follow: bool,
    /// How they are printed.
    pub printed: Printed,
}

impl Args {
    /// The newest ten records of one log.
    #[must_use]
    pub fn newest(volume: impl Into<String>) -> Self {
        Self {
            volume: volume.into(),
            from: None,
            last: 10,
            follow: false,
            printed: Printed::default(),
        }
    }
}

/// Prints the newest records and, with `follow`, what comes after them, until the process ends.
///
/// # Errors
/// The log cannot be opened, the position was trimmed, or the volume is deleted.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let log = open(&args.volume, endpoints).await?;
    let here = log
        .position()
        .await
        .map_err(|error| explain_read(&args.volume, error))?;
    let first = here.first.max(Lsn(1));
    let mut next = args.from.unwrap_or(here.next);
    if args.from.is_none() {
        for record in newest(&log, &args.volume, first, here.next, args.last).await? {
            args.printed.print(&record, out)?;
        }
    } else {
        let mut pages = Pages::new(&log, &args.volume, next.max(Lsn(1)), here.next);
        while let Some(page) = pages.next().await? {
            for record in &page.records {
                args.printed.print(record, out)?;
            }
        }
        next = next.max(here.next);
    }
    out.flush()?;
    if args.follow {
        follow(args, &log, next, out).await?;
    }
    Ok(())
}

/// The newest records, in order.
async fn newest(
    log: &LogVolume,
    volume: &str,
    first: Lsn,
    end: Lsn,
    wanted: usize,
) -> anyhow::Result<Vec<LogRecord>> {
    let mut found = Vec::new();
    let mut pages = Pages::back(log, volume, first, end);
    while found.len() < wanted
        && let Some(page) = pages.next().await?
    {
        found.extend(page.records);
    }
    found.truncate(wanted);
    found.reverse();
    Ok(found)
}

async fn follow(
    args: &Args,
    log: &LogVolume,
    from: Lsn,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut tail = log.tail(from);
    loop {
        let record = match tail.next().now_or_never() {
            Some(record) => record,
            None => {
                // Whoever reads the pipe sees everything before this waits.
                out.flush()?;
                tail.next().await
            }
        };
        let Some(record) = record else { break };
        let record = record.map_err(|error| explain_read(&args.volume, error))?;
        args.printed.print(&record, out)?;
    }
    out.flush()?;
    anyhow::bail!("log `{}` ended", args.volume)
}
