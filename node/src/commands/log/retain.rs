//! `mainstay log retain`: what a log keeps by itself.

use std::io::Write;

use anyhow::bail;
use mainstay_client::{AppendError, Client, LogVolume, Refusal, Retention, RetentionChange};

use super::explain_read;
use crate::commands::{connect, explain_open, size, text};

/// Changes what a log keeps, if there is anything to change, and prints what it keeps now.
///
/// # Errors
/// The log cannot be opened, or nobody knows whether the change took effect.
pub async fn run(
    volume: &str,
    change: RetentionChange,
    json: bool,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let client = connect(endpoints).await?;
    let mut builder = client.log(volume);
    let only_shown = change == RetentionChange::default();
    if only_shown {
        builder = builder.read_only();
    }
    let log = builder.open().await;
    let log = log.map_err(|error| explain_open(volume, error))?;
    if !only_shown {
        make(volume, &log, change).await?;
    }
    let now = log.retention().await;
    let now = now.map_err(|error| explain_read(volume, error))?;
    if json {
        serde_json::to_writer(&mut *out, &now)?;
        writeln!(out)?;
    } else {
        writeln!(out, "log `{volume}` keeps {}", kept(now))?;
    }
    close(log).await;
    Ok(())
}

/// Changes what a log keeps.
///
/// # Errors
/// As of [`run`].
pub async fn change(client: &Client, volume: &str, change: RetentionChange) -> anyhow::Result<()> {
    let log = client.log(volume).open().await;
    let log = log.map_err(|error| explain_open(volume, error))?;
    make(volume, &log, change).await?;
    close(log).await;
    Ok(())
}

async fn close(log: LogVolume) {
    if let Err(error) = log.close().await {
        // It is said: only the session stays behind, until the cluster forgets it.
        tracing::debug!(%error, "session not closed");
    }
}

async fn make(volume: &str, log: &LogVolume, change: RetentionChange) -> anyhow::Result<()> {
    match log.change_retention(change).await {
        Ok(_) => Ok(()),
        Err(AppendError::Refused(Refusal::BadRequest { message })) => {
            bail!("what log `{volume}` keeps was not changed: {message}")
        }
        Err(error) => Err(anyhow::Error::new(error).context(format!("log `{volume}`"))),
    }
}

/// In words, behind "keeps".
pub fn kept(retention: Retention) -> String {
    let age = retention
        .age
        .map(|age| format!("records of the last {}", text::span(age)));
    let bytes = retention
        .bytes
        .map(|bytes| format!("the newest {}", size::show_size(bytes)));
    match (age, bytes) {
        (None, None) => "everything until it is trimmed".to_owned(),
        (Some(age), None) => age,
        (None, Some(bytes)) => format!("{bytes} of records"),
        (Some(age), Some(bytes)) => format!("{age}, and of these {bytes}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_kept_is_said_in_words() {
        let both = Retention {
            age: Some(Duration::from_secs(60)),
            bytes: Some(1 << 20),
        };
        assert_eq!(
            kept(both),
            "records of the last 60 s, and of these the newest 1 MiB"
        );
        assert_eq!(kept(Retention::default()), "everything until it is trimmed");
    }
}
