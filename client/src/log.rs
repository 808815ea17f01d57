//! Log volumes: append records and atomic batches, read, tail, trim.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::{Epoch, Lsn, SessionId};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::inflight::Mutation;
use crate::replicas::{Replicas, Seen};
use crate::session::{Ended, Sent, Session, Wanted};
use crate::tail::Tail;
use crate::{AppendError, Committed, OpId, OpenError, Outcome, OutcomeError, ReadError, Refusal};

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

/// A record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Its position. Positions rise and have gaps: the volume's own bookkeeping takes some.
    pub lsn: Lsn,
    /// The primary's time when it took the record in, microseconds since 1970.
    pub timestamp_us: u64,
    /// What was appended. Shares the receive buffer: copy it to keep it long.
    pub data: Bytes,
}

/// Some records in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// In the order of their positions; from [`LogVolume::read_back`], the newest first.
    pub records: Vec<LogRecord>,
    /// Where to read on.
    pub next: Lsn,
    /// Nothing more was committed at that moment; backwards, nothing older is held.
    pub end: bool,
}

/// Where a time begins in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct FoundRecord {
    /// Position of the first record that is not older.
    pub lsn: Lsn,
    /// Its time, microseconds since 1970.
    pub timestamp_us: u64,
}

/// What a read must include.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Everything that was committed before the read was called, by whomever. The primary serves it, and there must be one.
    #[default]
    Linearizable,
    /// What the node that is asked knows to be committed: any node with a copy serves it, also while there is no primary. Never beyond
    /// the commit point; perhaps behind it. A handle and its clones never go back: what one of them has read, or has been told is
    /// committed, is included in every later read.
    Committed,
}

/// Bounds of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Records at most.
    pub records_max: u32,
    /// Their bytes at most; one record is returned in any case.
    pub bytes_max: u32,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            records_max: 4096,
            bytes_max: 1 << 20,
        }
    }
}

/// Where a log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct LogPosition {
    /// First entry still held.
    pub first: Lsn,
    /// One above the last committed entry: the lowest position that the next record can get.
    pub next: Lsn,
    /// The epoch in force.
    pub epoch: Epoch,
}

/// An open log volume. Clones share one session and one order.
#[derive(Debug, Clone)]
pub struct LogVolume {
    session: Arc<Session>,
    pub(crate) replicas: Arc<Replicas>,
    consistency: Consistency,
}

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
        let record = record.into();
        self.check_bytes(record.len())?;
        let expected = None;
        self.send(Mutation::Append { record, expected }).await
    }

    /// Appends several records, all of them or none, and waits until they are committed.
    ///
    /// They lie side by side: the first at the position that is answered, the others right behind it. No reader, at whatever
    /// position it begins and whatever fails meanwhile, is ever shown some of them while others are missing. The whole batch is one
    /// mutation with one number: a retry, [`Self::outcome`] and [`Committed::count`] speak of all of it.
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

    /// Puts a batch in line as [`Self::submit`] does one record; see [`Self::append_batch`].
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
        self.check_bytes(records.iter().map(Bytes::len).sum())?;
        self.send(Mutation::Batch { records, expected }).await
    }

    fn check_bytes(&self, bytes: usize) -> Result<(), AppendError> {
        let bytes_max = self.record_bytes_max();
        if bytes as u64 > bytes_max {
            return Err(AppendError::Refused(Refusal::TooLarge { bytes_max }));
        }
        Ok(())
    }

    /// Declares entries below `first` no longer needed, and waits until that is committed.
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
        let waited = self.session.deadline;
        let deadline = Instant::now() + waited;
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

    /// Reads committed records from `from` on. Cancelling is safe; failover only delays it.
    ///
    /// # Errors
    /// The position was trimmed, or no primary answered until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::ReadLimits;
    /// use mainstay_types::Lsn;
    ///
    /// log.append("a record").await?;
    /// let mut from = Lsn(1);
    /// loop {
    ///     let page = log.read(from, ReadLimits::default()).await?;
    ///     for record in &page.records {
    ///         println!("{}: {} bytes", record.lsn, record.data.len());
    ///     }
    ///     if page.end {
    ///         break;
    ///     }
    ///     from = page.next;
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn read(&self, from: Lsn, limits: ReadLimits) -> Result<LogPage, ReadError> {
        self.read_page(from, limits, false).await
    }

    /// Reads committed records below `before`, the newest first. Give [`LogPage::next`] as the next `before` to go on; a page may hold
    /// no record and still go on. `Lsn(u64::MAX)` begins at the end of the log. Cancelling is safe.
    ///
    /// # Errors
    /// As [`Self::read`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::ReadLimits;
    /// use mainstay_types::Lsn;
    ///
    /// log.append_batch(["older", "newer"]).await?;
    /// let newest = ReadLimits { records_max: 1, ..ReadLimits::default() };
    /// let page = log.read_back(Lsn(u64::MAX), newest).await?;
    /// assert_eq!(page.records[0].data, "newer");
    /// # Ok(()) });
    /// ```
    pub async fn read_back(&self, before: Lsn, limits: ReadLimits) -> Result<LogPage, ReadError> {
        self.read_page(before, limits, true).await
    }

    async fn read_page(
        &self,
        from: Lsn,
        limits: ReadLimits,
        backwards: bool,
    ) -> Result<LogPage, ReadError> {
        let request = client_request::Body::ReadLog(pb::ReadLog {
            from_lsn: from.0,
            max_records: limits.records_max.max(1),
            max_bytes: limits.bytes_max,
            backwards,
            committed: self.committed(),
        });
        match self.ask(request).await? {
            Body::Records(records) => {
                self.replicas.seen.note(Lsn(records.commit));
                Ok(page(records))
            }
            _ => Err(ReadError::Misfit),
        }
    }

    /// Finds the first committed record at or after a time, in microseconds since 1970; none if all are older. Some twenty steps at the
    /// server, however long the log is. Records' times are the primaries' and never go back. Cancelling is safe.
    ///
    /// # Errors
    /// No node answered until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let committed = log.append("a record").await?;
    /// let found = log.find_by_timestamp(committed.timestamp_us).await?;
    /// assert_eq!(found.map(|record| record.lsn), Some(committed.lsn));
    /// # Ok(()) });
    /// ```
    pub async fn find_by_timestamp(
        &self,
        timestamp_us: u64,
    ) -> Result<Option<FoundRecord>, ReadError> {
        let request = client_request::Body::FindTime(pb::FindTime {
            timestamp_us,
            committed: self.committed(),
        });
        match self.ask(request).await? {
            Body::Found(found) => {
                self.replicas.seen.note(Lsn(found.lsn.unwrap_or(0)));
                Ok(found.lsn.map(|lsn| FoundRecord {
                    lsn: Lsn(lsn),
                    timestamp_us: found.timestamp_us,
                }))
            }
            _ => Err(ReadError::Misfit),
        }
    }

    /// This handle with another consistency of its reads ([`Self::read`], [`Self::read_back`], [`Self::find_by_timestamp`],
    /// [`Self::position`], roots and proofs). Shares the session, and what was seen, with the handle that it was made from.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::{Consistency, ReadLimits};
    ///
    /// let committed = log.append("a record").await?;
    /// let any_copy = log.with_consistency(Consistency::Committed);
    /// let page = any_copy.read(committed.lsn, ReadLimits::default()).await?;
    /// assert!(page.records.iter().all(|record| record.lsn >= committed.lsn));
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn with_consistency(&self, consistency: Consistency) -> Self {
        Self {
            consistency,
            ..self.clone()
        }
    }

    /// What a read must include, if any copy may serve it.
    pub(crate) fn committed(&self) -> Option<pb::AnyCommitted> {
        match self.consistency {
            Consistency::Linearizable => None,
            Consistency::Committed => Some(self.replicas.at_least()),
        }
    }

    pub(crate) async fn ask(&self, request: client_request::Body) -> Result<Body, ReadError> {
        match self.consistency {
            Consistency::Linearizable => self.session.query(request).await,
            Consistency::Committed => self.replicas.query(request, self.session.deadline).await,
        }
    }

    /// Every committed record from `from` on, now and as they come, across failovers, with neither gap nor repeat.
    ///
    /// Runs on a stream of its own: a slow reader holds back nothing but itself.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_types::Lsn;
    ///
    /// log.append("a record").await?;
    /// let mut tail = log.tail(Lsn(1));
    /// let record = tail.next().await.expect("a tail has no end")?;
    /// assert_eq!(&record.data[..], b"a record");
    /// # Ok(()) });
    /// ```
    #[must_use = "a tail that is not polled reads nothing"]
    pub fn tail(&self, from: Lsn) -> Tail {
        Tail::start(
            Arc::clone(&self.session.cluster),
            self.session.volume.clone(),
            from,
        )
    }

    /// Where the log stands now: everything committed before the call is below `next`, or, with [`Consistency::Committed`], everything
    /// that this handle has seen. Cancelling is safe.
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
    /// let committed = log.append("a record").await?;
    /// assert!(committed.lsn < log.position().await?.next);
    /// # Ok(()) });
    /// ```
    pub async fn position(&self) -> Result<LogPosition, ReadError> {
        let request = client_request::Body::Position(pb::Position {
            committed: self.committed(),
        });
        match self.ask(request).await? {
            Body::Position(position) => {
                self.replicas.seen.note(Lsn(position.commit));
                Ok(LogPosition {
                    first: Lsn(position.first_lsn),
                    next: Lsn(position.next_lsn),
                    epoch: Epoch(position.epoch),
                })
            }
            _ => Err(ReadError::Misfit),
        }
    }

    /// Waits until every record submitted before is committed (or refused). Cancelling is safe.
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
    /// for number in 0..100 {
    ///     let _answer = log.submit(format!("record {number}")).await?;
    /// }
    /// let end = log.flush().await?;
    /// println!("all of them are committed, up to {end}");
    /// # Ok(()) });
    /// ```
    pub async fn flush(&self) -> Result<Lsn, ReadError> {
        self.session.flush().await
    }

    /// Settles an append whose outcome is unknown. Waits for at most the deadline; cancelling is safe.
    ///
    /// # Errors
    /// The operation is of another session (see [`crate::Client::outcome`]), or it is not settled in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::{AppendError, Outcome};
    ///
    /// let pending = log.submit("a record").await?;
    /// let op = pending.op();
    /// match pending.await {
    ///     Err(AppendError::Unknown { .. }) => println!("{:?}", log.outcome(op).await?),
    ///     answered => println!("at {}", answered?.lsn),
    /// }
    /// assert!(matches!(log.outcome(op).await?, Outcome::Committed(_)));
    /// # Ok(()) });
    /// ```
    pub async fn outcome(&self, op: OpId) -> Result<Outcome, OutcomeError> {
        self.session.outcome(op).await
    }

    /// The most records that one batch may hold; none if the cluster takes no batches.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// assert!(log.batch_records_max() >= 100);
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn batch_records_max(&self) -> usize {
        self.session.opened.batch_records_max as usize
    }

    /// The longest record, and the most bytes of a batch, that the cluster takes; nothing longer is ever sent.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// assert!(log.record_bytes_max() >= 1 << 20);
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn record_bytes_max(&self) -> u64 {
        match self.session.opened.payload_bytes_max {
            0 => u64::MAX,
            bytes_max => u64::from(bytes_max),
        }
    }

    /// This handle's session; with a number it names an append for ever.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let pending = log.submit("a record").await?;
    /// assert_eq!(pending.op().session, log.session());
    /// pending.await?;
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session.id
    }

    /// Ends the session, for all clones, once everything submitted before is settled.
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
    /// let append = log.submit("a record").await?;
    /// log.close().await?; // waits for it
    /// append.await?;
    /// # Ok(()) });
    /// ```
    pub async fn close(self) -> Result<(), ReadError> {
        self.session.close().await
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

pub(crate) fn page(records: pb::Records) -> LogPage {
    let record = |record: pb::Record| LogRecord {
        lsn: Lsn(record.lsn),
        timestamp_us: record.timestamp_us,
        data: record.data,
    };
    LogPage {
        records: records.records.into_iter().map(record).collect(),
        next: Lsn(records.next_lsn),
        end: records.end,
    }
}
