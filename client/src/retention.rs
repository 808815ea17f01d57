//! What a log keeps: by age, by bytes, or everything.

use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::Lsn;
use serde::Serialize;

use crate::inflight::Mutation;
use crate::log::LogVolume;
use crate::{AppendError, Committed, ReadError};

/// What a log keeps. With neither bound, everything is kept until it is trimmed; with both, what either of them lets go may go.
///
/// A bound says what stays for certain, not what goes at once: the primary looks about once a second, trims when a sixty-fourth of the
/// bound is there to be let go, and never trims into an atomic batch. With a bound by age everything goes in the end if nothing new comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Retention {
    /// Records younger than this stay, to the millisecond. By the records' timestamps and the primary's clock: one that jumps ahead
    /// makes records old before their time.
    #[serde(rename = "age_ms", serialize_with = "millis")]
    pub age: Option<Duration>,
    /// The newest records that have together at least so many bytes of payload stay.
    pub bytes: Option<u64>,
}

#[expect(clippy::ref_option, reason = "the shape that serde asks for")]
fn millis<S: serde::Serializer>(age: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match age {
        Some(age) => to.serialize_some(&age_ms(*age)),
        None => to.serialize_none(),
    }
}

/// Zero means "no bound" on the wire, so less than a millisecond counts as one.
fn age_ms(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// A change of what a log keeps. What it does not name stays as it is, so that two who change one bound each at the same time do not
/// undo one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionChange {
    /// The bound by age; `Some(None)` takes it away.
    pub age: Option<Option<Duration>>,
    /// The bound by bytes; `Some(None)` takes it away.
    pub bytes: Option<Option<u64>>,
}

impl RetentionChange {
    fn mutation(&self) -> Mutation {
        let bytes = |bytes: Option<u64>| bytes.map_or(0, |bytes| bytes.max(1));
        Mutation::RetainLog {
            age_ms: self.age.map(|age| age.map_or(0, age_ms)),
            bytes: self.bytes.map(bytes),
        }
    }
}

impl From<Retention> for RetentionChange {
    /// The change to this, whatever was before.
    fn from(retention: Retention) -> Self {
        Self {
            age: Some(retention.age),
            bytes: Some(retention.bytes),
        }
    }
}

impl Retention {
    pub(crate) fn decode(policy: Option<pb::Retention>) -> Self {
        let policy = policy.unwrap_or_default();
        Self {
            age: (policy.age_ms > 0).then(|| Duration::from_millis(policy.age_ms)),
            bytes: (policy.bytes > 0).then_some(policy.bytes),
        }
    }
}

impl LogVolume {
    /// Says what the log keeps from now on, in place of what was said before; waits until that is committed. It is part of the log:
    /// it survives failovers and restarts, and the next call changes it. Cancelling leaves it open whether it took effect.
    ///
    /// # Errors
    /// As [`Self::append`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use std::time::Duration;
    /// use mainstay_client::Retention;
    ///
    /// let month = Retention {
    ///     age: Some(Duration::from_secs(30 * 86_400)),
    ///     bytes: None,
    /// };
    /// log.set_retention(month).await?;
    /// assert_eq!(log.retention().await?, month);
    /// # Ok(()) });
    /// ```
    pub async fn set_retention(&self, retention: Retention) -> Result<Committed, AppendError> {
        self.change_retention(retention.into()).await
    }

    /// Changes one bound of what the log keeps, or both; waits until that is committed. Cancelling leaves it open whether it took effect.
    ///
    /// # Errors
    /// As [`Self::append`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::RetentionChange;
    ///
    /// let change = RetentionChange {
    ///     bytes: Some(Some(10 << 30)),
    ///     ..RetentionChange::default()
    /// };
    /// log.change_retention(change).await?;
    /// assert_eq!(log.retention().await?.bytes, Some(10 << 30));
    /// # Ok(()) });
    /// ```
    pub async fn change_retention(
        &self,
        change: RetentionChange,
    ) -> Result<Committed, AppendError> {
        self.send(change.mutation()).await?.await
    }

    /// What the log keeps. Cancelling is safe.
    ///
    /// # Errors
    /// No primary answered until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let retention = log.retention().await?;
    /// assert_eq!(retention.bytes, None, "a new log keeps everything");
    /// # Ok(()) });
    /// ```
    pub async fn retention(&self) -> Result<Retention, ReadError> {
        let request = client_request::Body::Position(pb::Position {
            committed: self.committed(),
        });
        match self.ask(request).await? {
            Body::Position(position) => {
                self.replicas.seen.note(Lsn(position.commit));
                Ok(Retention::decode(position.retention))
            }
            _ => Err(ReadError::Misfit),
        }
    }
}
