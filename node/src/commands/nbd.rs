//! `mainstay nbd`: a gateway that serves one block volume on this machine until it is stopped.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mainstay_client::{Client, OpenError};
use mainstay_nbd::{Limits, Tls};

use super::{connect, explain_open, size};
use crate::config::{NbdTlsSection, tls};
use crate::nbd_export::{self, PARK_TIMEOUT, Renewal, Terms, VolumeExports, WatchedTls};
use crate::runtime::serve::bind;

/// What to serve where.
#[derive(Debug, Clone)]
pub struct Args {
    /// The block volume.
    pub volume: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// How long a request waits for a primary before the peer is told `EIO`.
    pub park_timeout: Duration,
    /// For reading only: nothing is attached.
    pub read_only: bool,
    /// The first client takes the volume over from whoever holds it.
    pub takeover: bool,
    /// What peers may cost.
    pub limits: Limits,
    /// TLS; none when absent.
    pub tls: Option<NbdTlsSection>,
}

impl Args {
    /// The defaults for one volume.
    #[must_use]
    pub fn new(volume: impl Into<String>, listen: SocketAddr) -> Self {
        Self {
            volume: volume.into(),
            listen,
            park_timeout: PARK_TIMEOUT,
            read_only: false,
            takeover: false,
            limits: Limits::default(),
            tls: None,
        }
    }
}

/// Serves the volume until `shutdown` resolves; then requests in flight are finished and the attachments let go.
///
/// # Errors
/// The address cannot be listened on, no node answers, or the volume is none that can be exported.
pub async fn run(
    args: Args,
    endpoints: Vec<String>,
    out: &mut impl Write,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let watched = args.tls.map(load).transpose()?;
    let tls = watched.as_ref().map_or(Tls::Off, WatchedTls::tls);
    let listener = bind("NBD", args.listen).await?;
    let listen = listener.local_addr()?;
    let client = connect(endpoints).await?;
    let size_bytes = check(&client, &args.volume)
        .await
        .map_err(|error| explain_open(&args.volume, error))?;
    writeln!(
        out,
        "serving `{}`, {}{}, at {}://{listen}/{} and as the default export; Ctrl-C stops",
        args.volume,
        size::show_size(size_bytes),
        if args.read_only { ", for reading" } else { "" },
        scheme(&tls),
        args.volume
    )?;
    out.flush()?;
    let mut exports = VolumeExports::one(client, args.volume, args.park_timeout)
        .telling(Arc::new(|overdue| eprintln!("{}", overdue.describe())));
    if args.read_only {
        exports = exports.read_only();
    }
    if args.takeover {
        exports = exports.taking_over();
    }
    let terms = Terms {
        limits: args.limits,
        tls,
    };
    let serving = nbd_export::serve(listener, exports, terms, shutdown);
    match watched {
        Some(watched) => {
            let tell = |renewal: &Renewal| eprintln!("{}", renewal.describe());
            watched.beside(serving, tell).await;
        }
        None => serving.await,
    }
    Ok(())
}

/// Unlike a node, which has other duties, a gateway whose certificate every client refuses does not start.
fn load(section: NbdTlsSection) -> anyhow::Result<WatchedTls> {
    let loaded = WatchedTls::load(section).and_then(|watched| {
        tls::expiry(&watched.tls())?;
        Ok(watched)
    });
    loaded.map_err(|error| anyhow::anyhow!("{}", tls::explain(&error)))
}

/// How a URI asks for what this listener does.
fn scheme(tls: &Tls) -> &'static str {
    match tls {
        Tls::Off | Tls::Optional(_) => "nbd",
        Tls::Required(_) => "nbds",
    }
}

/// Resolves at Ctrl-C.
pub async fn until_ctrl_c() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "Ctrl-C cannot be awaited; stop this process with SIGKILL");
        std::future::pending::<()>().await;
    }
}

async fn check(client: &Client, volume: &str) -> Result<u64, OpenError> {
    Ok(client.block(volume).open().await?.info().size_bytes)
}
