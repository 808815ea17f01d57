//! What the user's commands do: each takes typed arguments, the cluster's endpoints and a place to print to.
//!
//! Rules that hold for every command:
//!
//! * Results go to `out`, everything else to standard error. With `json`, `out` carries JSON and nothing else.
//! * An error says what to do about it. Nothing is reported as done before the cluster has answered.
//! * A reader that closes the pipe early ends a command, and is not an error: see [`unless_pipe_closed`].
//! * Nothing here knows `clap`: the command line is read elsewhere.

pub mod attach;
pub mod events;
pub mod explain;
pub mod ledger;
pub mod log;
pub mod nbd;
mod problems;
pub mod promote;
pub mod size;
pub mod status;
mod table;
mod text;
pub mod volume;
pub mod witness;
pub mod workload;

use std::io::{self, Write};

use mainstay_client::{Client, ClientConfig, ConnectError, OpenError, Refusal};
use serde::Serialize;

/// Reaches the cluster.
///
/// # Errors
/// No endpoint answers, or one is malformed.
pub async fn connect(endpoints: Vec<String>) -> anyhow::Result<Client> {
    connect_with(ClientConfig::new(endpoints)).await
}

async fn connect_with(config: ClientConfig) -> anyhow::Result<Client> {
    Client::connect(config).await.map_err(|error| match error {
        ConnectError::Unreachable { endpoints, waited } => anyhow::anyhow!(
            "no node answered within {}: asked {}; check that the cluster runs and that these are its gRPC addresses",
            text::span(waited),
            endpoints.join(", ")
        ),
        other => anyhow::Error::new(other),
    })
}

/// The same result, except that a pipe which nobody reads any more is success.
///
/// # Errors
/// Any other error.
pub fn unless_pipe_closed(result: anyhow::Result<()>) -> anyhow::Result<()> {
    let closed = |error: &anyhow::Error| {
        error.chain().any(|cause| {
            cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        })
    };
    match result {
        Err(error) if closed(&error) => Ok(()),
        other => other,
    }
}

/// Why a volume was not opened, and what to do.
fn explain_open(volume: &str, error: OpenError) -> anyhow::Error {
    match error {
        OpenError::Refused(Refusal::NoSuchVolume) => anyhow::anyhow!(
            "there is no volume `{volume}`; `mainstay volume list` names those that exist"
        ),
        OpenError::Refused(Refusal::WrongKind) => anyhow::anyhow!(
            "volume `{volume}` is of the other kind: logs are for `mainstay log`, block volumes for `mainstay nbd`"
        ),
        OpenError::NoPrimary { waited, last } => anyhow::anyhow!(
            "no primary serves volume `{volume}` after {}: {last}; `mainstay status` says why",
            text::span(waited)
        ),
        other => anyhow::Error::new(other).context(format!("volume `{volume}`")),
    }
}

fn print_json(out: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

fn print_json_line(out: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_success_and_everything_else_is_not() {
        let closed = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("out");
        assert!(unless_pipe_closed(Err(closed)).is_ok());
        let full = anyhow::Error::new(io::Error::from(io::ErrorKind::StorageFull));
        assert!(unless_pipe_closed(Err(full)).is_err());
        assert!(unless_pipe_closed(Ok(())).is_ok());
    }

    #[test]
    fn a_pipe_closed_under_json_is_recognised() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(unless_pipe_closed(print_json(&mut Closed, &[1, 2])).is_ok());
    }
}
