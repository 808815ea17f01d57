//! `mainstay log trim`: old records are declared no longer needed.

use std::io::Write;

use anyhow::bail;
use mainstay_client::{AppendError, LogVolume, Refusal};
use mainstay_types::Lsn;
use serde_json::json;

use super::explain_read;
use crate::commands::{connect, explain_open, print_json};

/// Up to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// Everything below this position.
    Position(Lsn),
    /// Every record older than this time, in microseconds since 1970.
    Time(u64),
}

/// Trims a log, and prints where it begins now.
///
/// # Errors
/// The log cannot be opened, the position lies beyond its end, or nobody knows whether it was trimmed.
pub async fn run(
    volume: &str,
    below: Below,
    json: bool,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let client = connect(endpoints).await?;
    let opened = client.log(volume).open().await;
    let log = opened.map_err(|error| explain_open(volume, error))?;
    let first = position(volume, below, &log).await?;
    match log.trim(first).await {
        Ok(_) => {}
        Err(AppendError::Refused(Refusal::BadRequest { message })) => {
            bail!("log `{volume}` was not trimmed: {message}")
        }
        Err(error) => return Err(anyhow::Error::new(error).context(format!("log `{volume}`"))),
    }
    let here = log.position().await;
    let here = here.map_err(|error| explain_read(volume, error))?;
    if json {
        print_json(out, &json!({ "volume": volume, "first": here.first }))?;
    } else {
        writeln!(out, "log `{volume}` begins at position {}", here.first)?;
    }
    if let Err(error) = log.close().await {
        // The log is trimmed: only the session stays behind, until the cluster forgets it.
        tracing::debug!(%error, "session not closed");
    }
    Ok(())
}

async fn position(volume: &str, below: Below, log: &LogVolume) -> anyhow::Result<Lsn> {
    let explain = |error| explain_read(volume, error);
    match below {
        Below::Position(first) => Ok(first),
        Below::Time(time) => match log.find_by_timestamp(time).await.map_err(explain)? {
            Some(found) => Ok(found.lsn),
            // All are older.
            None => Ok(log.position().await.map_err(explain)?.next),
        },
    }
}
