//! Opening a block volume.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::v1 as pb;

use super::{BlockInfo, BlockVolume};
use crate::cluster::Cluster;
use crate::session::{Session, Wanted};
use crate::{OpenError, Refusal};

/// How to hold a block volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachOptions {
    /// Who holds it, for people.
    pub name: String,
    /// End somebody else's attachment instead of being refused: its requests that are not committed yet are void.
    pub takeover: bool,
}

impl AttachOptions {
    /// Holds the volume if nobody else does.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::AttachOptions;
    ///
    /// let mut options = AttachOptions::named("host-1");
    /// options.takeover = true; // end the attachment of whoever holds it
    /// ```
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            takeover: false,
        }
    }
}

/// How a block volume shall be opened.
#[derive(Debug, Clone)]
#[must_use = "a builder opens nothing by itself"]
pub struct BlockBuilder {
    cluster: Arc<Cluster>,
    wanted: Wanted,
}

impl BlockBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, volume: String) -> Self {
        let deadline = cluster.config.block_deadline;
        let wanted = Wanted {
            volume,
            attachment: None,
            read_only: true,
            deadline,
            silence: None,
            token: 0,
        };
        Self { cluster, wanted }
    }

    /// Hold the volume alone, to write to it. Without this it is opened for reading.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::{AttachOptions, OpenError, Refusal};
    ///
    /// let disk = client.block("disk").attach(AttachOptions::named("host-1")).open().await?;
    /// let refused = client.block("disk").attach(AttachOptions::named("host-2")).open().await;
    /// assert!(matches!(refused, Err(OpenError::Refused(Refusal::AttachedElsewhere { .. }))));
    /// # Ok(()) });
    /// ```
    pub fn attach(mut self, options: AttachOptions) -> Self {
        self.wanted.attachment = Some(options);
        self.wanted.read_only = false;
        self
    }

    /// How long each request waits for its answer, instead of the configured default.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// use std::time::Duration;
    ///
    /// let disk = client.block("disk").deadline(Duration::from_secs(5)).open().await?;
    /// disk.read(0, 4096).await?;
    /// # Ok(()) });
    /// ```
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.wanted.deadline = deadline;
        self
    }

    /// For a handle that forwards for somebody who may send the same requests again elsewhere, as an NBD client with connections
    /// to several nodes may. The handle ends, with [`Refusal::StoodStill`], once this process stood still for more than half of
    /// `silence`, and with [`Refusal::NotServed`] once a change was not answered within the deadline; after that nothing of what it
    /// was given takes effect, if it has not by then. The primary takes nothing from it that was under way for longer than
    /// `silence`. So a change takes effect within deadline and twice `silence`, or never.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::AttachOptions;
    /// use std::time::Duration;
    ///
    /// let attach = AttachOptions::named("gateway");
    /// let builder = client.block("disk").attach(attach).forwarding(Duration::from_secs(4));
    /// let disk = builder.open().await?;
    /// disk.write(0, vec![7; 4096]).await?;
    /// # Ok(()) });
    /// ```
    pub fn forwarding(mut self, silence: Duration) -> Self {
        self.wanted.silence = Some(silence);
        self
    }

    /// Finds the primary, opens the volume and attaches to it. Waits for at most `open_deadline`. Cancelling may leave an
    /// attachment behind, which the same call with `takeover` replaces.
    ///
    /// # Errors
    /// The volume does not exist, is a log, is held by somebody else, or no primary serves it in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// let disk = client.block("disk").open().await?; // for reading
    /// assert!(disk.write(0, vec![7; 4096]).await.is_err());
    /// # Ok(()) });
    /// ```
    pub async fn open(self) -> Result<BlockVolume, OpenError> {
        let session = Session::open(self.cluster, self.wanted).await?;
        let Some(pb::volume_kind::Kind::Block(block)) =
            session.opened.kind.and_then(|kind| kind.kind)
        else {
            return Err(OpenError::Refused(Refusal::WrongKind));
        };
        let payload = session.opened.payload_bytes_max;
        let info = BlockInfo {
            size_bytes: block.size_bytes,
            payload_bytes_max: if payload == 0 { u32::MAX } else { payload },
        };
        Ok(BlockVolume {
            session: Arc::new(session),
            info,
        })
    }
}
