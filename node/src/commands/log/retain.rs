//! `mainstay log retain`: what a log keeps by itself.

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use mainstay_client::{AppendError, Refusal, Retention};

use super::explain_read;
use crate::commands::{connect, explain_open, size, text};

/// What is to be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// The bound by age; `Some(None)` takes it away.
    pub age: Option<Option<Duration>>,
    /// The bound by bytes; `Some(None)` takes it away.
    pub bytes: Option<Option<u64>>,
}

impl Change {
    fn applied(self, before: Retention) -> Retention {
        Retention {
            age: self.age.unwrap_or(before.age),
            bytes: self.bytes.unwrap_or(before.bytes),
        }
    }
}

/// Changes what a log keeps, if there is anything to change, and prints what it keeps now.
///
/// # Errors
/// The log cannot be opened, or nobody knows whether the change took effect.
pub async fn run(
    volume: &str,
    change: Change,
    json: bool,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let client = connect(endpoints).await?;
    let mut builder = client.log(volume);
    let only_shown = change == Change::default();
    if only_shown {
        builder = builder.read_only();
    }
    let log = builder.open().await;
    let log = log.map_err(|error| explain_open(volume, error))?;
    let explain = |error| explain_read(volume, error);
    let before = log.retention().await.map_err(explain)?;
    let now = change.applied(before);
    if !only_shown {
        match log.set_retention(now).await {
            Ok(_) => {}
            Err(AppendError::Refused(Refusal::BadRequest { message })) => {
                bail!("what log `{volume}` keeps was not changed: {message}")
            }
            Err(error) => return Err(anyhow::Error::new(error).context(format!("log `{volume}`"))),
        }
    }
    if json {
        serde_json::to_writer(&mut *out, &now)?;
        writeln!(out)?;
    } else {
        writeln!(out, "log `{volume}` keeps {}", kept(now))?;
    }
    if let Err(error) = log.close().await {
        // It is said: only the session stays behind, until the cluster forgets it.
        tracing::debug!(%error, "session not closed");
    }
    Ok(())
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
    use super::*;

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let before = Retention {
            age: Some(Duration::from_secs(60)),
            bytes: Some(1 << 20),
        };
        assert_eq!(Change::default().applied(before), before);
        let change = Change {
            age: Some(None),
            bytes: None,
        };
        assert_eq!(kept(change.applied(before)), "the newest 1 MiB of records");
        assert_eq!(
            kept(before),
            "records of the last 60 s, and of these the newest 1 MiB"
        );
        assert_eq!(kept(Retention::default()), "everything until it is trimmed");
    }
}
