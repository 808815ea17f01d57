//! Appending to a log volume, and giving up what it no longer needs.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use mainstay_types::{Lsn, SessionId};

use super::LogVolume;
use crate::inflight::Mutation;
use crate::replicas::Seen;
use crate::session::{Ended, Sent, deadline_after};
use crate::{AppendError, Committed, OpId, Refusal};

impl LogVolume {
    /// Appends one record and waits until it is committed.
    ///
    /// Cancelling after the first poll may leave the record on its way: use [`Self::submit`] to keep its name.
    ///
    /// # Errors
    /// Refused, or unknown when the deadline passed.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let first = log.append("one").await?;
    /// let second = log.append("two").await?;
    /// assert!(first.lsn < second.lsn && first.timestamp_us <= second.timestamp_us);
    /// # Ok(()) });
    /// ```
    pub async fn append(&self, record: impl Into<Bytes>) -> Result<Committed, AppendError> {
        self.submit(record).await?.await
    }

    /// Appends one record only if it gets exactly position `expected`; see [`Self::append`].
    ///
    /// Cancelling after the first poll may leave the record on its way, without a name: what comes to be at `expected` tells.
    ///
    /// # Errors
    /// `Refused(UnexpectedPosition)` if the position is taken; else as [`Self::append`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::{AppendError, Refusal};
    ///
    /// let next = log.position().await?.next;
    /// assert_eq!(log.append_at(next, "mine").await?.lsn, next);
    /// let late = log.append_at(next, "too late").await;
    /// assert!(matches!(late, Err(AppendError::Refused(Refusal::UnexpectedPosition { .. }))));
    /// # Ok(()) });
    /// ```
    pub async fn append_at(
        &self,
        expected: Lsn,
        record: impl Into<Bytes>,
    ) -> Result<Committed, AppendError> {
        let mutation = Mutation::Append {
            record: record.into(),
            expected: Some(expected.0),
        };
        self.send(mutation).await?.await
    }

    /// Puts one record in line, and returns its pending result as soon as there is room in flight.
    ///
    /// The order of records is the order in which these calls return; one task that awaits each in turn gets the order of its
    /// calls. Cancelling before it returns means that nothing was sent.
    ///
    /// # Errors
    /// Refused at once because of its size, or no room until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let mut pending = Vec::new();
    /// for number in 0..100 {
    ///     pending.push(log.submit(format!("record {number}")).await?);
    /// }
    /// for append in pending {
    ///     append.await?;
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn submit(&self, record: impl Into<Bytes>) -> Result<PendingAppend, AppendError> {
        let mutation = Mutation::Append {
            record: record.into(),
            expected: None,
        };
        self.send(mutation).await
    }

    /// Appends several records, all of them or none, and waits until they are committed.
    ///
    /// They lie side by side: the first at the position that is answered, the others right behind it. No reader, at whatever
    /// position it begins and whatever fails meanwhile, is ever shown some of them while others are missing. The whole batch is one
    /// mutation with one number: a retry, [`Self::outcome`] and [`Committed::count`] speak of all of it. Only a [`Self::trim`] may end in
    /// the middle of it: from then on readers see the rest.
    ///
    /// Cancelling after the first poll may leave the batch on its way: use [`Self::submit_batch`] to keep its name.
    ///
    /// # Errors
    /// Refused (empty, more than [`Self::batch_records_max`] records, or more than [`Self::record_bytes_max`] bytes in all), or
    /// unknown when the deadline passed.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let committed = log.append_batch(["debit", "credit"]).await?;
    /// assert_eq!(committed.count, 2);
    /// # Ok(()) });
    /// ```
    pub async fn append_batch<R: Into<Bytes>>(
        &self,
        records: impl IntoIterator<Item = R>,
    ) -> Result<Committed, AppendError> {
        self.submit_batch(records).await?.await
    }

    /// Appends several records as [`Self::append_batch`] does, only if the first gets exactly position `expected`.
    ///
    /// Cancelling after the first poll may leave the batch on its way, without a name: what comes to be at `expected` tells.
    ///
    /// # Errors
    /// `Refused(UnexpectedPosition)` if the position is taken; else as [`Self::append_batch`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let next = log.position().await?.next;
    /// assert_eq!(log.append_batch_at(next, ["debit", "credit"]).await?.lsn, next);
    /// # Ok(()) });
    /// ```
    pub async fn append_batch_at<R: Into<Bytes>>(
        &self,
        expected: Lsn,
        records: impl IntoIterator<Item = R>,
    ) -> Result<Committed, AppendError> {
        self.send_batch(records, Some(expected.0)).await?.await
    }

    /// Puts a batch in line as [`Self::submit`] does one record; see [`Self::append_batch`]. Cancelling before it returns means that nothing
    /// was sent.
    ///
    /// # Errors
    /// Refused at once because of its size, or no room until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let first = log.submit_batch(["debit", "credit"]).await?;
    /// let second = log.submit_batch(["credit", "debit"]).await?;
    /// assert!(first.await?.lsn < second.await?.lsn);
    /// # Ok(()) });
    /// ```
    pub async fn submit_batch<R: Into<Bytes>>(
        &self,
        records: impl IntoIterator<Item = R>,
    ) -> Result<PendingAppend, AppendError> {
        self.send_batch(records, None).await
    }

    async fn send_batch<R: Into<Bytes>>(
        &self,
        records: impl IntoIterator<Item = R>,
        expected: Option<u64>,
    ) -> Result<PendingAppend, AppendError> {
        let records: Vec<Bytes> = records.into_iter().map(Into::into).collect();
        let records_max = self.batch_records_max();
        let refused = match (records.len(), records_max) {
            (0, _) => Some(Refusal::EmptyBatch),
            (_, 0) => Some(Refusal::Unsupported),
            (count, _) if count > records_max => Some(Refusal::TooManyRecords {
                records_max: self.session.opened.batch_records_max,
            }),
            _ => None,
        };
        if let Some(refusal) = refused {
            return Err(AppendError::Refused(refusal));
        }
        self.send(Mutation::Batch { records, expected }).await
    }

    fn check_bytes(&self, bytes: usize) -> Result<(), AppendError> {
        let bytes_max = self.record_bytes_max();
        if bytes as u64 > bytes_max {
            return Err(AppendError::Refused(Refusal::TooLarge { bytes_max }));
        }
        Ok(())
    }

    /// Declares entries below `first` no longer needed, and waits until that is committed. `first` may lie in the middle of a batch: from
    /// then on readers see the rest of it. Cancelling leaves it open whether it takes effect.
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
    /// use mainstay_client::{ReadError, ReadLimits, Refusal};
    ///
    /// let old = log.append("not needed any more").await?;
    /// let kept = log.append("the first that stays").await?;
    /// log.trim(kept.lsn).await?;
    /// let below = log.read(old.lsn, ReadLimits::default()).await;
    /// assert!(matches!(
    ///     below,
    ///     Err(ReadError::Refused(Refusal::Trimmed { first })) if first == kept.lsn
    /// ));
    /// # Ok(()) });
    /// ```
    pub async fn trim(&self, first: Lsn) -> Result<Committed, AppendError> {
        self.send(Mutation::TrimLog { first: first.0 }).await?.await
    }

    pub(crate) async fn send(&self, mutation: Mutation) -> Result<PendingAppend, AppendError> {
        if self.session.id == SessionId(0) {
            return Err(AppendError::Refused(Refusal::ReadOnly));
        }
        // What the cluster does not take is never sent: above what one message holds it would end every stream that it is sent on.
        self.check_bytes(mutation.payload_bytes())?;
        let waited = self.session.deadline;
        let deadline = deadline_after(waited);
        let room = self.session.room.acquire(mutation.payload_bytes());
        let permit = tokio::time::timeout_at(deadline, room)
            .await
            .map_err(|_| AppendError::NoRoom { waited })?;
        let sent = self.session.submit(mutation, permit, deadline);
        let op = sent.op;
        Ok(PendingAppend {
            op,
            wait: Box::pin(wait(sent, Arc::clone(&self.replicas.seen))),
        })
    }
}

async fn wait(sent: Sent, seen: Arc<Seen>) -> Result<Committed, AppendError> {
    let op = sent.op;
    let ended = sent.wait().await;
    if let Ok(committed) = &ended {
        seen.note(committed.last());
    }
    ended.map_err(|ended| match ended {
        Ended::Refused(refusal) => AppendError::Refused(refusal),
        Ended::Unknown(cause) => AppendError::Unknown { op, cause },
    })
}

/// The result of one submitted append; a future. Dropping it cancels the wait, not the append.
#[must_use = "the append goes on, but only this tells how it ends"]
pub struct PendingAppend {
    op: OpId,
    wait: Pin<Box<dyn Future<Output = Result<Committed, AppendError>> + Send>>,
}

impl PendingAppend {
    /// Names the append for ever.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let first = log.submit("one").await?;
    /// let second = log.submit("two").await?;
    /// assert!(first.op().seq < second.op().seq);
    /// second.await?;
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn op(&self) -> OpId {
        self.op
    }
}

impl std::fmt::Debug for PendingAppend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingAppend")
            .field("op", &self.op)
            .finish_non_exhaustive()
    }
}

impl Future for PendingAppend {
    type Output = Result<Committed, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.wait.as_mut().poll(cx)
    }
}
