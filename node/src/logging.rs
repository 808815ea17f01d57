//! What the program says about itself: one line an event, on standard error.
//!
//! Levels have one meaning each: `error`, somebody must act; `warn`, something is wrong and the node copes; `info`,
//! a change of role, membership or process; `debug`, why; `trace`, every message.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::util::TryInitError;

/// Starts logging with `level`, a level or a filter. The variable `RUST_LOG` overrides it.
///
/// A filter that does not parse is replaced by `info`, and a warning says so: a typing error in the environment
/// must not keep a node from starting. Fails only if logging was started before.
pub fn init(level: &str) -> Result<(), TryInitError> {
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().unwrap_or(level);
    let (filter, bad) = match EnvFilter::try_new(wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    tracing_subscriber::fmt()
        .compact()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .finish()
        .try_init()?;
    if let Some(error) = bad {
        tracing::warn!(%error, filter = wanted, "not a log filter: using info");
    }
    Ok(())
}
