//! Block volumes: attach, read, write, trim, flush.

mod builder;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::{Lineage, Lsn, SessionId};

pub use builder::{AttachOptions, BlockBuilder};

use crate::inflight::Mutation;
use crate::session::{Ended, Sent, Session, deadline_after};
use crate::{Committed, OpId, Outcome, OutcomeError, ReadError, Refusal, WriteError};

/// A part of a range in which everything is stored, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BlockExtent {
    /// Its length in bytes, not zero.
    pub len: u64,
    /// Something is stored. If not, all of it reads as zeroes.
    pub data: bool,
}

/// A part of a range that changed behind a [`ChangePoint`], or that did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BlockChange {
    /// Its length in bytes, not zero.
    pub len: u64,
    /// It was written, trimmed or zeroed since, or nobody knows. If not, it reads as it did at that point.
    pub changed: bool,
}

/// A place between two changes of a volume. Every change before it was committed when it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct ChangePoint {
    /// The history that `lsn` counts in. Another begins when a forced promotion gives changes up, and with every volume.
    pub lineage: Lineage,
    /// The last change before it.
    pub lsn: Lsn,
}

/// What does not change about an open block volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BlockInfo {
    /// Its size.
    pub size_bytes: u64,
    /// Greatest payload of one read or write.
    pub payload_bytes_max: u32,
}

/// An open block volume. Clones share one attachment and one order.
#[derive(Debug, Clone)]
pub struct BlockVolume {
    session: Arc<Session>,
    info: BlockInfo,
}

impl BlockVolume {
    /// Size and limits.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// assert_eq!(disk.info().size_bytes, 1 << 20);
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn info(&self) -> BlockInfo {
        self.info
    }

    /// Waits until there is room in flight for a write of `bytes`. Changes nothing: a write that comes without waiting is
    /// refused as overloaded if there is none. Cancelling is safe.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// let mut writes = Vec::new();
    /// for block in 0..64_u64 {
    ///     disk.ready(4096).await;
    ///     writes.push(disk.write(block * 4096, vec![7; 4096]));
    /// }
    /// for write in writes {
    ///     write.await?;
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn ready(&self, bytes: usize) {
        drop(self.session.room.acquire(bytes).await);
    }

    /// Reads `len` bytes at `offset`: every change answered before the call is seen, and nothing uncommitted. Order between a
    /// read and changes that have no answer yet is open. Cancelling is safe.
    ///
    /// # Errors
    /// Beyond the end, too large, or no primary answered until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// disk.write(4096, vec![7; 4096]).await?;
    /// let bytes = disk.read(4096, 4096).await?;
    /// assert!(bytes.iter().all(|byte| *byte == 7));
    /// # Ok(()) });
    /// ```
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        self.check(offset, u64::from(len), true)
            .map_err(ReadError::Refused)?;
        let request = client_request::Body::Read(pb::Read { offset, len });
        match self.session.query(request).await? {
            Body::Data(data) if data.data.len() == len as usize => Ok(data.data),
            _ => Err(ReadError::Misfit),
        }
    }

    /// Tells what is stored in a range, as [`Self::read`] would see it: consecutive extents from `offset` on, at least one and
    /// at most `extents_max`. They may end before the range. Cancelling is safe.
    ///
    /// # Errors
    /// As [`Self::read`]; an empty range is refused.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// disk.write(0, vec![7; 4096]).await?;
    /// let extents = disk.allocation(0, 8192, 16).await?;
    /// assert!(extents[0].data && extents[0].len == 4096);
    /// # Ok(()) });
    /// ```
    pub async fn allocation(
        &self,
        offset: u64,
        len: u64,
        extents_max: u32,
    ) -> Result<Vec<BlockExtent>, ReadError> {
        let told = self.ask_extents(offset, len, extents_max, None).await?;
        let extent = |extent: pb::Extent| BlockExtent {
            len: extent.len,
            data: extent.data,
        };
        Ok(told.into_iter().map(extent).collect())
    }

    /// Where the volume's history stands: a read after this call sees every change before the point, and [`Self::changes`] tells
    /// all those behind it. Cancelling is safe.
    ///
    /// # Errors
    /// As [`Self::read`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// let written = disk.write(0, vec![7; 4096]).await?;
    /// assert!(disk.change_point().await?.lsn >= written.lsn);
    /// # Ok(()) });
    /// ```
    pub async fn change_point(&self) -> Result<ChangePoint, ReadError> {
        let request = client_request::Body::Position(pb::Position { committed: None });
        match self.session.query(request).await? {
            Body::Position(position) => Ok(ChangePoint {
                lineage: Lineage(position.lineage),
                lsn: Lsn(position.commit),
            }),
            _ => Err(ReadError::Misfit),
        }
    }

    /// Tells which parts of a range changed behind `since`, as [`Self::read`] would see it: consecutive parts from `offset` on, at
    /// least one and at most `parts_max`. They may end before the range. A block of 4096 bytes changes as a whole, also where it
    /// was written with what it held. A point in another history, or one that the volume has not reached, has everything behind it.
    /// Cancelling is safe.
    ///
    /// # Errors
    /// As [`Self::read`]; an empty range is refused.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// disk.write(0, vec![7; 4096]).await?;
    /// let backup = disk.change_point().await?;
    /// disk.write(8192, vec![7; 4096]).await?;
    /// let changes = disk.changes(backup, 0, 1 << 20, 16).await?;
    /// let changes: Vec<_> = changes.iter().map(|part| (part.len, part.changed)).collect();
    /// assert_eq!(changes[..2], [(8192, false), (4096, true)]);
    /// # Ok(()) });
    /// ```
    pub async fn changes(
        &self,
        since: ChangePoint,
        offset: u64,
        len: u64,
        parts_max: u32,
    ) -> Result<Vec<BlockChange>, ReadError> {
        let since = pb::ChangePoint {
            lsn: since.lsn.0,
            lineage: since.lineage.0,
        };
        let told = self
            .ask_extents(offset, len, parts_max, Some(since))
            .await?;
        Ok(changes(&told))
    }

    async fn ask_extents(
        &self,
        offset: u64,
        len: u64,
        max_extents: u32,
        changed_since: Option<pb::ChangePoint>,
    ) -> Result<Vec<pb::Extent>, ReadError> {
        self.check(offset, len, false).map_err(ReadError::Refused)?;
        let request = client_request::Body::Allocation(pb::Allocation {
            offset,
            len,
            max_extents,
            changed_since,
        });
        let Body::Extents(told) = self.session.query(request).await? else {
            return Err(ReadError::Misfit);
        };
        extents(told, len).ok_or(ReadError::Misfit)
    }

    /// Writes `data` at `offset`. The *call* puts it in line: it need not be polled. Resolves when committed; a whole write
    /// takes effect or none of it.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// // In line in this order, on their way at the same time.
    /// let first = disk.write(0, vec![1; 4096]);
    /// let second = disk.write(0, vec![2; 4096]);
    /// assert!(first.await?.lsn < second.await?.lsn);
    /// assert_eq!(disk.read(0, 1).await?[0], 2);
    /// # Ok(()) });
    /// ```
    pub fn write(&self, offset: u64, data: impl Into<Bytes>) -> PendingWrite {
        let data = data.into();
        let len = data.len() as u64;
        self.change(offset, len, true, Mutation::Write { offset, data })
    }

    /// Declares a range's content not needed: it reads as zeroes, its space is given back. Ordered like [`Self::write`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// disk.write(0, vec![7; 4096]).await?;
    /// disk.trim(0, 4096).await?;
    /// assert_eq!(disk.read(0, 1).await?[0], 0);
    /// # Ok(()) });
    /// ```
    pub fn trim(&self, offset: u64, len: u64) -> PendingWrite {
        self.change(offset, len, false, Mutation::Trim { offset, len })
    }

    /// Makes a range read as zeroes; its space stays allocated if `keep`. Ordered like [`Self::write`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// disk.write_zeroes(0, 8192, true).await?;
    /// assert_eq!(disk.read(8191, 1).await?[0], 0);
    /// # Ok(()) });
    /// ```
    pub fn write_zeroes(&self, offset: u64, len: u64, keep: bool) -> PendingWrite {
        self.change(offset, len, false, Mutation::Zeroes { offset, len, keep })
    }

    /// Waits until every change put in line before is committed (or refused). Cancelling is safe.
    ///
    /// # Errors
    /// No primary answered until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// let write = disk.write(0, vec![7; 4096]);
    /// disk.flush().await?;
    /// println!("committed at {}", write.await?.lsn);
    /// # Ok(()) });
    /// ```
    pub async fn flush(&self) -> Result<Lsn, ReadError> {
        self.session.flush().await
    }

    /// Settles a change whose outcome is unknown. Waits for at most the deadline; cancelling is safe.
    ///
    /// # Errors
    /// The operation is of another session (see [`crate::Client::outcome`]), or it is not settled in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// use mainstay_client::Outcome;
    ///
    /// let write = disk.write(0, vec![7; 4096]);
    /// let op = write.op();
    /// drop(write); // the wait, not the write
    /// assert!(matches!(disk.outcome(op).await?, Outcome::Committed(_)));
    /// # Ok(()) });
    /// ```
    pub async fn outcome(&self, op: OpId) -> Result<Outcome, OutcomeError> {
        self.session.outcome(op).await
    }

    /// This handle's session.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// let write = disk.write(0, vec![7; 4096]);
    /// assert_eq!(write.op().session, disk.session());
    /// write.await?;
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session.id
    }

    /// Detaches, for all clones, once everything put in line before is settled. Nothing new is taken from the call on,
    /// also if it is cancelled or the deadline passes. Waits for at most the deadline. If the last handle is gone before that
    /// is done, the volume is let go all the same, within another deadline: what has no answer by then can no longer be settled.
    ///
    /// # Errors
    /// Something is not settled, or no primary answered, until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// use mainstay_client::AttachOptions;
    ///
    /// disk.close().await?;
    /// // Nobody holds it any more.
    /// client.block("disk").attach(AttachOptions::named("next")).open().await?;
    /// # Ok(()) });
    /// ```
    pub async fn close(self) -> Result<(), ReadError> {
        self.session.close().await
    }

    /// Gives the handle up, for all clones, at once: nothing more is sent, and nothing is sent again. What is on its way may still be
    /// answered for a second; the rest ends as unknown, or as refused if it was never sent. The session is ended at whoever is or becomes
    /// primary within the deadline, so that nothing of it takes effect afterwards.
    ///
    /// For whoever acts for somebody who has gone and may do the same through another node: what [`Self::close`] would still wait for
    /// could reach the volume behind what came since.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// disk.abandon();
    /// assert!(disk.write(0, vec![7; 4096]).await.is_err());
    /// # Ok(()) });
    /// ```
    pub fn abandon(&self) {
        self.session.abandon();
    }

    /// Waits until the handle is over, and says why. A handle that reads only is over when it is dropped. Cancelling is safe.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// use mainstay_client::AttachOptions;
    ///
    /// let takeover = AttachOptions { takeover: true, ..AttachOptions::named("other") };
    /// let other = client.block("disk").attach(takeover).open().await?;
    /// assert!(disk.write(0, vec![7; 4096]).await.is_err());
    /// println!("over: {}", disk.ended().await);
    /// # Ok(()) });
    /// ```
    pub async fn ended(&self) -> Refusal {
        self.session.ended().await
    }

    fn change(&self, offset: u64, len: u64, payload: bool, mutation: Mutation) -> PendingWrite {
        if let Err(refusal) = self.check(offset, len, payload) {
            return PendingWrite::refused(self.session.op(0), refusal);
        }
        if self.session.id == SessionId(0) {
            return PendingWrite::refused(self.session.op(0), Refusal::ReadOnly);
        }
        let Some(permit) = self.session.room.try_acquire(mutation.payload_bytes()) else {
            return PendingWrite::refused(self.session.op(0), Refusal::Overloaded);
        };
        let deadline = deadline_after(self.session.patience());
        let sent = self.session.submit(mutation, permit, deadline);
        PendingWrite {
            op: sent.op,
            wait: Box::pin(wait(sent)),
        }
    }

    fn check(&self, offset: u64, len: u64, payload: bool) -> Result<(), Refusal> {
        let size_bytes = self.info.size_bytes;
        if offset.checked_add(len).is_none_or(|end| end > size_bytes) {
            return Err(Refusal::OutOfRange { size_bytes });
        }
        let bytes_max = u64::from(self.info.payload_bytes_max);
        if payload && len > bytes_max {
            return Err(Refusal::TooLarge { bytes_max });
        }
        Ok(())
    }
}

/// The extents of an answer, if they are what was asked for: some, none of them empty, none beyond `len`.
fn extents(told: pb::Extents, len: u64) -> Option<Vec<pb::Extent>> {
    let mut left = len;
    for extent in &told.extents {
        left = left.checked_sub(extent.len)?;
    }
    let empty = told.extents.iter().any(|extent| extent.len == 0);
    (!told.extents.is_empty() && !empty).then_some(told.extents)
}

/// Neighbours that only differ in what is stored there are one part.
fn changes(told: &[pb::Extent]) -> Vec<BlockChange> {
    let mut parts: Vec<BlockChange> = Vec::new();
    for extent in told {
        let changed = !extent.unchanged;
        match parts.last_mut() {
            Some(part) if part.changed == changed => part.len += extent.len,
            _ => parts.push(BlockChange {
                len: extent.len,
                changed,
            }),
        }
    }
    parts
}

async fn wait(sent: Sent) -> Result<Committed, WriteError> {
    let op = sent.op;
    sent.wait().await.map_err(|ended| match ended {
        Ended::Refused(refusal) => WriteError::Refused(refusal),
        Ended::Unknown(cause) => WriteError::Unknown { op, cause },
    })
}

/// The result of one change; a future. The change is in line already; dropping this cancels the wait, not the change.
#[must_use = "the change goes on, but only this tells how it ends"]
pub struct PendingWrite {
    op: OpId,
    wait: Pin<Box<dyn Future<Output = Result<Committed, WriteError>> + Send>>,
}

impl PendingWrite {
    fn refused(op: OpId, refusal: Refusal) -> Self {
        let wait = Box::pin(async { Err(WriteError::Refused(refusal)) });
        Self { op, wait }
    }

    /// Names the change for ever. Number zero if it was refused at once.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_block("disk", 1 << 20).await?;
    /// # let client = cluster.client().await?;
    /// # let disk = client.block("disk").attach(mainstay_client::AttachOptions::named("me")).open().await?;
    /// let write = disk.write(0, vec![7; 4096]);
    /// println!("{} is on its way", write.op());
    /// write.await?;
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn op(&self) -> OpId {
        self.op
    }
}

impl std::fmt::Debug for PendingWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingWrite")
            .field("op", &self.op)
            .finish_non_exhaustive()
    }
}

impl Future for PendingWrite {
    type Output = Result<Committed, WriteError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.wait.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_do_not_fit_the_question_are_refused() {
        let told = |lengths: &[u64]| {
            let extent = |&len| pb::Extent {
                len,
                data: true,
                unchanged: false,
            };
            let extents = lengths.iter().map(extent).collect();
            extents_of(pb::Extents { extents })
        };
        assert_eq!(told(&[4, 6]), Some(vec![4, 6]));
        assert_eq!(told(&[4]), Some(vec![4]));
        for bad in [&[][..], &[0], &[4, 0], &[4, 7], &[u64::MAX, 2]] {
            assert_eq!(told(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn parts_that_changed_alike_are_joined() {
        let told = [(1, true, true), (2, false, true), (4, false, false)];
        let told = told.map(|(len, data, unchanged)| pb::Extent {
            len,
            data,
            unchanged,
        });
        let part = |len, changed| BlockChange { len, changed };
        assert_eq!(changes(&told), [part(3, false), part(4, true)]);
    }

    fn extents_of(told: pb::Extents) -> Option<Vec<u64>> {
        let extents = extents(told, 10)?;
        Some(extents.iter().map(|extent| extent.len).collect())
    }
}
