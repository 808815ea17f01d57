//! Log volumes: append records and atomic batches, read, tail, trim.

mod append;
mod builder;

use std::sync::Arc;

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::{Epoch, Lsn, SessionId};

pub use append::PendingAppend;
pub use builder::LogBuilder;

use crate::replicas::Replicas;
use crate::session::Session;
use crate::tail::Tail;
use crate::{OpId, Outcome, OutcomeError, ReadError, Refusal};

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
    /// committed, is included in every later read; and what one of them was told is trimmed is not shown again.
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
    /// Reads committed records from `from` on. A page may hold less than its limits allow, or nothing, although more is committed: go on
    /// from [`LogPage::next`] until [`LogPage::end`]. Cancelling is safe; failover only delays it.
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
        let seen = &self.replicas.seen;
        let answer = self.ask(request).await;
        if let Err(ReadError::Refused(Refusal::Trimmed { first })) = &answer {
            seen.note_first(*first);
        }
        let Body::Records(records) = answer? else {
            return Err(ReadError::Misfit);
        };
        seen.note(Lsn(records.commit));
        let page = page(records);
        match self.first_shown() {
            first if backwards => Ok(above(first, page)),
            first if from.max(Lsn(1)) < first => {
                Err(ReadError::Refused(Refusal::Trimmed { first }))
            }
            _ => Ok(page),
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
        let Body::Found(found) = self.ask(request).await? else {
            return Err(ReadError::Misfit);
        };
        self.replicas.seen.note(Lsn(found.lsn.unwrap_or(0)));
        let first = self.first_shown();
        match found.lsn {
            // Of a copy that has not heard of the trim. Times never go back: what comes next is as young.
            Some(lsn) if Lsn(lsn) < first => self.first_record(first).await,
            Some(lsn) => Ok(Some(FoundRecord {
                lsn: Lsn(lsn),
                timestamp_us: found.timestamp_us,
            })),
            None => Ok(None),
        }
    }

    /// The first record from a position on.
    async fn first_record(&self, mut from: Lsn) -> Result<Option<FoundRecord>, ReadError> {
        let limits = ReadLimits {
            records_max: 1,
            ..ReadLimits::default()
        };
        loop {
            let page = self.read(from, limits).await?;
            if let Some(record) = page.records.first() {
                return Ok(Some(FoundRecord {
                    lsn: record.lsn,
                    timestamp_us: record.timestamp_us,
                }));
            }
            if page.end {
                return Ok(None);
            }
            from = page.next;
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

    /// Below this, a copy is not believed that has not heard of the trim. What the primary says holds.
    fn first_shown(&self) -> Lsn {
        match self.consistency {
            Consistency::Linearizable => Lsn::ZERO,
            Consistency::Committed => self.replicas.seen.first(),
        }
    }

    pub(crate) async fn ask(&self, request: client_request::Body) -> Result<Body, ReadError> {
        match self.consistency {
            Consistency::Linearizable => self.session.query(request).await,
            Consistency::Committed => tokio::select! {
                biased;
                refusal = self.session.replaced() => Err(ReadError::Refused(refusal)),
                answer = self.replicas.query(request, self.session.deadline) => answer,
            },
        }
    }

    /// Every committed record from `from` on, now and as they come, across failovers, with neither gap nor repeat.
    ///
    /// It ends with [`Refusal::HistoryReplaced`] when the volume's history is another one than when this handle was opened: positions that
    /// it has shown may then be missing, or hold other records.
    ///
    /// Runs on a connection of its own, which ends with it: a slow reader holds back nothing but itself.
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
            self.session.lineage(),
            Arc::clone(&self.replicas.seen),
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
                let seen = &self.replicas.seen;
                seen.note(Lsn(position.commit));
                seen.note_first(Lsn(position.first_lsn));
                Ok(LogPosition {
                    first: self.first_shown().max(Lsn(position.first_lsn)),
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
        let commit = self.session.flush().await?;
        self.replicas.seen.note(commit);
        Ok(commit)
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
        let outcome = self.session.outcome(op).await?;
        if let Outcome::Committed(committed) = outcome {
            self.replicas.seen.note(committed.last());
        }
        Ok(outcome)
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

    /// Ends the session, for all clones, once everything submitted before is settled. Nothing new is taken from the call on,
    /// also if it is cancelled or the deadline passes. Waits for at most the deadline.
    ///
    /// # Errors
    /// Something is not settled, or no primary answered, until the deadline.
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

/// A page of a backward read, as a copy would give it that has given up what is below `first`.
fn above(first: Lsn, mut page: LogPage) -> LogPage {
    page.records.retain(|record| record.lsn >= first);
    page.end |= page.next <= first;
    page
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
