//! Opening a log volume.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_types::Lsn;

use super::{Consistency, LogVolume};
use crate::cluster::Cluster;
use crate::replicas::Replicas;
use crate::session::{Session, Wanted};
use crate::{OpenError, Refusal};

/// How a log volume shall be opened.
#[derive(Debug, Clone)]
#[must_use = "a builder opens nothing by itself"]
pub struct LogBuilder {
    cluster: Arc<Cluster>,
    wanted: Wanted,
    token_given: bool,
}

impl LogBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, volume: String) -> Self {
        let deadline = cluster.config.log_deadline;
        let wanted = Wanted {
            volume,
            attachment: None,
            silence: None,
            read_only: false,
            deadline,
            token: 0,
        };
        Self {
            cluster,
            wanted,
            token_given: false,
        }
    }

    /// How long each request waits for its answer, instead of the configured default.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// use std::time::Duration;
    ///
    /// let log = client.log("ledger").deadline(Duration::from_secs(5)).open().await?;
    /// log.append("answered or unknown within five seconds").await?;
    /// # Ok(()) });
    /// ```
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.wanted.deadline = deadline;
        self
    }

    /// Open without a session: appends are refused, and the cluster keeps nothing about this handle.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// let log = client.log("ledger").read_only().open().await?;
    /// assert!(log.append("refused").await.is_err());
    /// # Ok(()) });
    /// ```
    pub fn read_only(mut self) -> Self {
        self.wanted.read_only = true;
        self
    }

    /// For logs with a single writer: opens as the writer with this token, greater than zero and than that of any writer before.
    ///
    /// Once the log is open, every handle with a smaller token, or with none, is refused with [`Refusal::FencedToken`], wherever its
    /// records are queued; what of theirs is in the log lies in front of anything that this handle appends, and is seen by a
    /// [`LogVolume::read`] of this handle. Tokens are chosen by whoever decides which writer is the right one: a lock service, an
    /// orchestrator, an operator who counts. Handles with equal tokens do not fence each other.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::{AppendError, Refusal};
    ///
    /// let old = client.log("ledger").token(1).open().await?;
    /// let new = client.log("ledger").token(2).open().await?;
    /// new.append("the newer writer's").await?;
    /// let fenced = old.append("too late").await;
    /// assert!(matches!(
    ///     fenced,
    ///     Err(AppendError::Refused(Refusal::FencedToken { current: 2 }))
    /// ));
    /// # Ok(()) });
    /// ```
    pub fn token(mut self, token: u64) -> Self {
        self.wanted.token = token;
        self.token_given = true;
        self
    }

    /// Finds the primary and opens the volume. Waits for at most `open_deadline`. Cancelling may leave a session behind that
    /// expires by itself.
    ///
    /// # Errors
    /// The volume does not exist, is no log, a newer writer's token fences this one's, or no primary serves it in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::{OpenError, Refusal};
    ///
    /// let log = client.log("ledger").open().await?;
    /// let refused = client.log("no-such-log").open().await;
    /// assert!(matches!(refused, Err(OpenError::Refused(Refusal::NoSuchVolume))));
    /// # Ok(()) });
    /// ```
    pub async fn open(self) -> Result<LogVolume, OpenError> {
        if self.token_given && (self.wanted.token == 0 || self.wanted.read_only) {
            let message = if self.wanted.read_only {
                "a handle that only reads has no token"
            } else {
                "a writer's token is greater than zero"
            };
            return Err(OpenError::Refused(Refusal::BadRequest {
                message: message.to_owned(),
            }));
        }
        let session = Session::open(self.cluster, self.wanted).await?;
        if !matches!(
            session.opened.kind.and_then(|kind| kind.kind),
            Some(pb::volume_kind::Kind::Log(_))
        ) {
            return Err(OpenError::Refused(Refusal::WrongKind));
        }
        let replicas = Replicas::new(
            Arc::clone(&session.cluster),
            session.volume.clone(),
            session.lineage(),
            // Spread over the copies, and not drawn anew at each read: a reader stays where it is well served.
            usize::try_from(session.opened.commit ^ session.id.0).unwrap_or(0),
        );
        replicas.seen.note(Lsn(session.opened.commit));
        Ok(LogVolume {
            session: Arc::new(session),
            replicas: Arc::new(replicas),
            consistency: Consistency::Linearizable,
        })
    }
}
