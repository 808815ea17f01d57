//! Block volumes as NBD exports, served through the client library from any node or gateway.
//!
//! Rules that hold across this module:
//!
//! * **Requests wait out a failover.** Each request waits for its answer for as long as `park_timeout` says, while the client
//!   library finds the next primary and sends again what has no answer. Only past it the peer is told `EIO`, and whoever looks
//!   after the cluster is told of that.
//! * **One attachment a host.** The connections of one peer address attach under one name, on whichever node they end, so that
//!   a client may spread requests over several. A volume held by another name is refused with the holder's name.
//! * **No attachment is left behind.** A session is closed when its connection ends, however it ends, in a task that a
//!   cancelled connection does not take along; [`serve`] returns when these tasks have ended.
//! * **A name with `:ro` behind it is the volume for reading.** No volume's name has a colon. Such a connection attaches nothing:
//!   it is served whoever holds the volume, and sees what that one's writes were answered.
//! * **What is too old goes nowhere (H11).** A client with connections to several nodes may give one up, repeat its write through
//!   another, and write newer data. Sessions are therefore opened as forwarding ([`FORWARDER_SILENCE`]): where one ends, its
//!   connection ends, and what was read from it is dropped. What waited for room too long, or had none yet when its peer left
//!   without a goodbye, is refused (`line`).
//! * **Answered means committed**, so flush and FUA on one connection cover writes answered on another: multi-conn holds.

mod change;
mod device;
mod errors;
mod holder;
mod line;
mod overdue;
mod renewal;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use mainstay_client::{
    AttachOptions, BlockBuilder, BlockInfo, BlockVolume, Client, OpenError, Refusal,
};
use mainstay_nbd::{
    Access, BlockDevice, ChangePoint, ExportInfo, Exports, Limits, MultiConn,
    OpenError as NbdOpenError, Server, Tls,
};
use mainstay_types::VolumeKind;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};

use device::Device;
use errors::Errors;
use holder::attachment_name;
pub use holder::local_name;
use overdue::OverdueCount;
pub use overdue::{Overdue, Tell};
pub use renewal::{Renewal, WatchedTls};

/// How long a request waits for a primary before the peer is told `EIO`, unless configured otherwise.
pub const PARK_TIMEOUT: Duration = Duration::from_secs(60);

/// T of H11: what the primary has not heard of for so long it does not take from here, and what a client sent before this process
/// stood still for half as long goes nowhere. `docs/nbd.md` says within which time a change of a client takes effect, or never.
pub const FORWARDER_SILENCE: Duration = Duration::from_secs(5);

/// How much longer than its device may take for it a request before a goodbye is waited for.
const GOODBYE_MARGIN: Duration = Duration::from_secs(5);

/// How long a stop waits for the sessions of ended connections to be closed.
const CLOSING_MAX: Duration = Duration::from_secs(5);

/// Behind a volume's name: the export for reading.
const READ_ONLY_SUFFIX: &str = ":ro";

/// Unit of good performance: a block of a volume.
const BLOCK_BYTES_PREFERRED: u32 = mainstay_types::BLOCK_BYTES;
/// Largest read or write. Beyond what one message carries, requests are split.
const BLOCK_BYTES_MAX: u32 = 32 << 20;

/// Block volumes of a cluster.
#[derive(Debug)]
pub struct VolumeExports {
    client: Client,
    /// The one volume that is exported; `None`: all.
    only: Option<String>,
    /// What may be done at most.
    access: Access,
    /// The next client takes the volume over from another host. One does: one that came back would else take it from the host
    /// that took it from there. So it has been used, too, when no answer came: the takeover may be committed all the same.
    takeover: Mutex<bool>,
    park_timeout: Duration,
    overdue: Arc<OverdueCount>,
    /// Sessions opened and not closed yet.
    sessions: watch::Sender<usize>,
}

impl VolumeExports {
    /// All block volumes of the cluster.
    #[must_use]
    pub fn all(client: Client, park_timeout: Duration) -> Self {
        let log: Tell = Arc::new(|overdue| tracing::warn!("{}", overdue.describe()));
        Self {
            client,
            only: None,
            access: Access::ReadWrite,
            takeover: Mutex::new(false),
            park_timeout,
            overdue: OverdueCount::new(park_timeout, log),
            sessions: watch::channel(0).0,
        }
    }

    /// One volume, which thereby is the default export.
    #[must_use]
    pub fn one(client: Client, volume: String, park_timeout: Duration) -> Self {
        Self {
            only: Some(volume),
            ..Self::all(client, park_timeout)
        }
    }

    /// Every export is for reading, whatever its name: nothing is attached.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.access = Access::ReadOnly;
        self
    }

    /// The first client takes the volume over from whoever holds it.
    #[must_use]
    pub fn taking_over(mut self) -> Self {
        self.takeover = Mutex::new(true);
        self
    }

    /// `tell` is told of requests that nobody served in time, instead of the log.
    #[must_use]
    pub fn telling(mut self, tell: Tell) -> Self {
        self.overdue = OverdueCount::new(self.park_timeout, tell);
        self
    }

    /// Waits until every session of an ended connection is closed.
    pub async fn closed(&self) {
        let mut sessions = self.sessions.subscribe();
        // The sender lives as long as `self`.
        let _open = sessions.wait_for(|open| *open == 0).await;
    }

    fn exports(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name)
    }

    /// The volume behind an export's name, and what may be done with it here.
    fn volume_of<'a>(&self, name: &'a str) -> (&'a str, Access) {
        match (volume_of(name), self.access) {
            ((volume, _), Access::ReadOnly) => (volume, Access::ReadOnly),
            (asked, Access::ReadWrite) => asked,
        }
    }

    async fn names(&self) -> Result<Vec<String>, NbdOpenError> {
        if let Some(only) = &self.only {
            return Ok(vec![only.clone()]);
        }
        let volumes = self.client.admin().list_volumes().await;
        let volumes = volumes.map_err(|error| NbdOpenError::Unavailable {
            reason: error.to_string(),
        })?;
        let block = volumes
            .into_iter()
            .filter(|volume| matches!(volume.kind, VolumeKind::Block { .. }) && !volume.deleted);
        Ok(block.map(|volume| volume.name).collect())
    }

    /// Opens, and attaches unless only for reading, in a task of its own: a peer that leaves meanwhile must not leave an
    /// attachment behind.
    async fn attach(
        self: Arc<Self>,
        name: String,
        peer: IpAddr,
    ) -> Result<Arc<dyn BlockDevice>, NbdOpenError> {
        let (volume, access) = self.volume_of(&name);
        if !self.exports(volume) {
            return Err(NbdOpenError::Unknown);
        }
        let builder = self.client.block(volume).deadline(self.park_timeout);
        let opening = tokio::spawn(async move {
            let counted = Counted::new(&self);
            let opened = match access {
                Access::ReadOnly => builder.open().await,
                Access::ReadWrite => self.take(builder, attachment_name(peer)).await,
            };
            let volume = opened.map_err(refusal)?;
            let info = export_info(&name, access, &volume);
            let errors = Errors::new(self.volume_of(&name).0, &self.overdue, self.park_timeout);
            Ok(Device::start(
                info,
                volume,
                errors,
                self.park_timeout,
                counted,
            ))
        });
        match opening.await {
            Ok(Ok(device)) => Ok(Arc::new(device)),
            Ok(Err(refused)) => {
                tracing::info!(%peer, error = %refused, "an NBD client does not get its volume");
                Err(refused)
            }
            // The runtime stops.
            Err(_) => Err(NbdOpenError::ShuttingDown),
        }
    }

    async fn take(&self, builder: BlockBuilder, name: String) -> Result<BlockVolume, OpenError> {
        let builder = builder.forwarding(FORWARDER_SILENCE);
        let mut takeover = self.takeover.lock().await;
        if !*takeover {
            // Nobody waits for somebody else's opening.
            drop(takeover);
            return builder.attach(AttachOptions::named(name)).open().await;
        }
        let options = AttachOptions {
            name,
            takeover: true,
        };
        let opened = builder.attach(options).open().await;
        *takeover = opened.as_ref().is_err_and(took_nothing);
        opened
    }

    async fn look(self: Arc<Self>, name: String) -> Result<ExportInfo, NbdOpenError> {
        let (volume, access) = self.volume_of(&name);
        if !self.exports(volume) {
            return Err(NbdOpenError::Unknown);
        }
        let volume = self.client.block(volume).open().await.map_err(refusal)?;
        Ok(export_info(&name, access, &volume))
    }

    async fn change_point(self: Arc<Self>, name: String) -> Result<ChangePoint, NbdOpenError> {
        let (volume, _) = self.volume_of(&name);
        if !self.exports(volume) {
            return Err(NbdOpenError::Unknown);
        }
        let volume = self.client.block(volume).open().await.map_err(refusal)?;
        let point = volume.change_point().await;
        let point = point.map_err(|error| NbdOpenError::Unavailable {
            reason: error.to_string(),
        })?;
        Ok(ChangePoint {
            history: point.lineage.0,
            lsn: point.lsn.0,
        })
    }
}

/// The volume behind an export's name, and what the name asks for.
fn volume_of(name: &str) -> (&str, Access) {
    match name.strip_suffix(READ_ONLY_SUFFIX) {
        Some(volume) => (volume, Access::ReadOnly),
        None => (name, Access::ReadWrite),
    }
}

/// Lets [`Exports`] hand `Arc`s of the exports to its futures.
#[derive(Debug, Clone)]
struct Shared(Arc<VolumeExports>);

impl Exports for Shared {
    fn list(&self) -> BoxFuture<'static, Result<Vec<String>, NbdOpenError>> {
        let exports = Arc::clone(&self.0);
        Box::pin(async move { exports.names().await })
    }

    fn open(
        &self,
        name: &str,
        peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>, NbdOpenError>> {
        let exports = Arc::clone(&self.0);
        Box::pin(exports.attach(name.to_owned(), peer.ip()))
    }

    fn describe(
        &self,
        name: &str,
        _peer: SocketAddr,
    ) -> BoxFuture<'static, Result<ExportInfo, NbdOpenError>> {
        let exports = Arc::clone(&self.0);
        Box::pin(exports.look(name.to_owned()))
    }

    fn change_point(
        &self,
        name: &str,
        _peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Option<ChangePoint>, NbdOpenError>> {
        let point = Arc::clone(&self.0).change_point(name.to_owned());
        Box::pin(async move { Ok(Some(point.await?)) })
    }
}

/// What an NBD listener grants whom.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// What peers may cost.
    pub limits: Limits,
    /// Whether they may, or have to, use TLS.
    pub tls: Tls,
}

/// Serves `exports` on `listener` until `shutdown` resolves, then lets requests in flight finish and closes every session.
pub async fn serve(
    listener: TcpListener,
    exports: VolumeExports,
    terms: Terms,
    shutdown: impl Future<Output = ()>,
) {
    let exports = Arc::new(exports);
    let shared = Arc::new(Shared(Arc::clone(&exports)));
    let Terms { mut limits, tls } = terms;
    // Longer than a request may be parked, and than it takes to be sure that nothing of it is on its way.
    let answered = exports.park_timeout + 2 * FORWARDER_SILENCE + GOODBYE_MARGIN;
    limits.goodbye_timeout = limits.goodbye_timeout.max(answered);
    let server = Server::new(shared, limits).with_tls(tls);
    server.serve(listener, shutdown).await;
    if tokio::time::timeout(CLOSING_MAX, exports.closed())
        .await
        .is_err()
    {
        tracing::warn!(
            sessions = *exports.sessions.borrow(),
            "stopped before every attachment could be let go; the next client of the same host takes them on"
        );
    }
}

/// One session in the count, until it is dropped.
#[derive(Debug)]
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(exports: &VolumeExports) -> Self {
        exports.sessions.send_modify(|open| *open += 1);
        Self(exports.sessions.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

fn export_info(name: &str, access: Access, volume: &BlockVolume) -> ExportInfo {
    let BlockInfo { size_bytes, .. } = volume.info();
    let description = match access {
        Access::ReadWrite => "Mainstay block volume",
        Access::ReadOnly => "Mainstay block volume, for reading",
    };
    ExportInfo {
        name: name.to_owned(),
        description: description.to_owned(),
        size_bytes,
        access,
        block_bytes_min: 1,
        block_bytes_preferred: BLOCK_BYTES_PREFERRED,
        block_bytes_max: BLOCK_BYTES_MAX,
        multi_conn: MultiConn::Coherent,
    }
}

/// Whether an opening that failed is known to have taken the volume from nobody.
fn took_nothing(error: &OpenError) -> bool {
    match error {
        OpenError::Name(_) | OpenError::Refused(_) => true,
        OpenError::NoPrimary { .. } => false,
    }
}

fn refusal(error: OpenError) -> NbdOpenError {
    let reason = error.to_string();
    match error {
        // A log is no export, and neither is a name that no volume can have.
        OpenError::Name(_) | OpenError::Refused(Refusal::NoSuchVolume | Refusal::WrongKind) => {
            NbdOpenError::Unknown
        }
        OpenError::Refused(_) => NbdOpenError::Refused { reason },
        OpenError::NoPrimary { .. } => NbdOpenError::Unavailable { reason },
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::SessionId;

    use super::*;

    #[test]
    fn a_suffix_asks_for_reading_only() {
        assert_eq!(volume_of("disk"), ("disk", Access::ReadWrite));
        assert_eq!(volume_of("disk:ro"), ("disk", Access::ReadOnly));
        assert_eq!(volume_of("disk-ro"), ("disk-ro", Access::ReadWrite));
        assert_eq!(volume_of(":ro"), ("", Access::ReadOnly));
    }

    /// A gateway takes the volume over, and the answer is lost; another host takes it from there, and is not to lose it to the gateway's
    /// next client.
    #[test]
    fn a_takeover_whose_answer_was_lost_counts() {
        let lost = OpenError::NoPrimary {
            waited: Duration::from_secs(10),
            last: "no answer".to_owned(),
        };
        assert!(!took_nothing(&lost));
        assert!(took_nothing(&OpenError::Refused(Refusal::WrongKind)));
    }

    #[test]
    fn a_refusal_names_the_holder() {
        let held = OpenError::Refused(Refusal::AttachedElsewhere {
            name: "nbd:10.0.0.9".to_owned(),
            session: SessionId(1),
        });
        let NbdOpenError::Refused { reason } = refusal(held) else {
            panic!("not refused");
        };
        assert!(reason.contains("nbd:10.0.0.9"), "{reason}");
        let missing = OpenError::Refused(Refusal::NoSuchVolume);
        assert_eq!(refusal(missing), NbdOpenError::Unknown);
    }
}
