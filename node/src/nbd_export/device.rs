//! One NBD connection's hold on a volume.
//!
//! Changes go through a [`Line`], which keeps their order and their age.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mainstay_client::{
    BlockChange, BlockExtent, BlockVolume, PendingWrite, ReadError, Refusal, WriteError,
};
use mainstay_nbd::{
    Allocation, BlockDevice, BlockError, Change as Changed, ChangePoint, Ended, ExportInfo, Extent,
    Holes,
};
use mainstay_types::{Lineage, Lsn};
use tokio::time::{Instant, timeout, timeout_at};

use super::Counted;
use super::change::Change;
use super::errors::{self, Errors, RequestErrors};
use super::line::{Line, Target};

/// Questions to the primary for one answer about a range; each covers as much as it looks at in one go. A client asks
/// on from where the answer ends.
const EXTENT_ROUNDS: usize = 64;

/// A volume, attached for one NBD connection. Its session is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Device {
    info: ExportInfo,
    volume: BlockVolume,
    errors: Errors,
    park_timeout: Duration,
    line: Line<BlockVolume>,
}

impl Device {
    pub(super) fn start(
        info: ExportInfo,
        volume: BlockVolume,
        errors: Errors,
        park_timeout: Duration,
        counted: Counted,
    ) -> Self {
        let payload_bytes_max = volume.info().payload_bytes_max;
        let (line, runner) = Line::new(volume.clone(), payload_bytes_max, park_timeout);
        let closing = volume.clone();
        let name = info.name.clone();
        tokio::spawn(async move {
            runner.await;
            if let Some(refusal @ Refusal::HistoryReplaced { .. }) = closing.ended().now_or_never()
            {
                tracing::warn!(export = name, %refusal, "an NBD connection was closed, what its client sent ended in ESHUTDOWN");
            }
            if let Err(error) = closing.close().await {
                tracing::debug!(%error, "attachment not let go");
            }
            drop(counted);
        });
        Self {
            info,
            volume,
            errors,
            park_timeout,
            line,
        }
    }

    fn change(&self, change: Change) -> BoxFuture<'static, Result<(), BlockError>> {
        let errors = self.errors.of_request();
        let done = self.line.change(change);
        Box::pin(async move {
            match done.await {
                Ok(()) => Ok(()),
                Err(failure) => Err(errors.failed(failure).await),
            }
        })
    }
}

impl Target for BlockVolume {
    type Pending = PendingWrite;

    fn put(&self, change: &Change) -> Result<PendingWrite, WriteError> {
        let pending = match change {
            Change::Write { offset, data } => self.write(*offset, data.clone()),
            Change::Trim { offset, len } => self.trim(*offset, *len),
            Change::Zeroes { offset, len, keep } => self.write_zeroes(*offset, *len, *keep),
        };
        if pending.op().seq != 0 {
            return Ok(pending);
        }
        // Refused at once: answered without a wait.
        match pending.now_or_never() {
            Some(Err(error)) => Err(error),
            // A change without a number was never sent.
            Some(Ok(_)) | None => Err(WriteError::Refused(Refusal::Closed)),
        }
    }

    async fn ready(&self, payload_bytes: usize) {
        self.ready(payload_bytes).await;
    }
}

/// Reads in parts of `most` bytes; all of them together have the time of one request.
async fn read<F: Future<Output = Result<Bytes, ReadError>>>(
    patience: Duration,
    offset: u64,
    len: u32,
    most: u32,
    get: impl Fn(u64, u32) -> F,
) -> Result<Bytes, ReadError> {
    if len <= most {
        return get(offset, len).await;
    }
    let whole = async {
        let mut data = BytesMut::with_capacity(len as usize);
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let part = left.min(most);
            data.extend_from_slice(&get(at, part).await?);
            at += u64::from(part);
            left -= part;
        }
        Ok(data.freeze())
    };
    let late = ReadError::Deadline { waited: patience };
    timeout(patience, whole).await.unwrap_or(Err(late))
}

/// Asks about `len` bytes, as far as `EXTENT_ROUNDS` and `extents_max` reach. `ask` gets a place in them, what is left from
/// there, and a number of extents. All questions together have the time of one request.
async fn extents<State: PartialEq, Told>(
    errors: RequestErrors,
    patience: Duration,
    len: u64,
    extents_max: usize,
    ask: impl AsyncFn(u64, u64, u32) -> Result<Vec<Told>, ReadError>,
    extent: impl Fn(Told) -> Extent<State>,
) -> Result<Vec<Extent<State>>, BlockError> {
    let mut extents = Vec::new();
    let mut done = 0;
    let until = Instant::now() + patience;
    for _ in 0..EXTENT_ROUNDS {
        // Whatever comes first may join the last one that is there.
        let more = u32::try_from(extents_max - extents.len() + 1).unwrap_or(u32::MAX);
        let late = ReadError::Deadline { waited: patience };
        let told = timeout_at(until, ask(done, len - done, more)).await;
        let told = match told.unwrap_or(Err(late)) {
            Ok(told) => told,
            // Its client asks on from there.
            Err(_) if done > 0 => break,
            Err(error) => return Err(errors.read(&error).await),
        };
        for told in told {
            let told = extent(told);
            let len = told.len;
            if !append(&mut extents, told, extents_max) {
                return Ok(extents);
            }
            done += len;
        }
        if done == len {
            break;
        }
    }
    Ok(extents)
}

/// Adds an extent, as part of the last one if that has the same state. Says whether there was room.
fn append<State: PartialEq>(
    extents: &mut Vec<Extent<State>>,
    told: Extent<State>,
    extents_max: usize,
) -> bool {
    let room = extents.len() < extents_max;
    match extents.last_mut() {
        Some(last) if last.state == told.state => last.len += told.len,
        _ if !room => return false,
        _ => extents.push(told),
    }
    true
}

fn allocation(BlockExtent { len, data }: BlockExtent) -> Extent {
    let state = if data {
        Allocation::Data
    } else {
        Allocation::Hole
    };
    Extent { len, state }
}

fn change(BlockChange { len, changed }: BlockChange) -> Extent<Changed> {
    let state = if changed {
        Changed::Changed
    } else {
        Changed::Unchanged
    };
    Extent { len, state }
}

impl BlockDevice for Device {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        let (volume, errors) = (self.volume.clone(), self.errors.of_request());
        let patience = self.park_timeout;
        Box::pin(async move {
            let most = volume.info().payload_bytes_max;
            let get = |offset, len| {
                let volume = volume.clone();
                async move { volume.read(offset, len).await }
            };
            match read(patience, offset, len, most, get).await {
                Ok(data) => Ok(data),
                Err(error) => Err(errors.read(&error).await),
            }
        })
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.change(Change::Write { offset, data })
    }

    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        self.change(Change::Trim { offset, len })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>> {
        let keep = holes == Holes::Forbidden;
        self.change(Change::Zeroes { offset, len, keep })
    }

    /// Whole blocks that may become holes are an entry of a few bytes, whatever their number. Others may have to be read and
    /// written.
    fn zeroes_are_fast(&self, offset: u64, len: u64, holes: Holes) -> bool {
        let block = u64::from(mainstay_types::BLOCK_BYTES);
        holes == Holes::Allowed && offset.is_multiple_of(block) && len.is_multiple_of(block)
    }

    fn allocation(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent>, BlockError>> {
        let volume = self.volume.clone();
        let ask = async move |at, len, most| volume.allocation(offset + at, len, most).await;
        let (errors, patience) = (self.errors.of_request(), self.park_timeout);
        let extents_max = extents_max.max(1);
        Box::pin(extents(errors, patience, len, extents_max, ask, allocation))
    }

    fn changed_since(
        &self,
        since: ChangePoint,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent<Changed>>, BlockError>> {
        let volume = self.volume.clone();
        let since = mainstay_client::ChangePoint {
            lineage: Lineage(since.history),
            lsn: Lsn(since.lsn),
        };
        let ask = async move |at, len, most| volume.changes(since, offset + at, len, most).await;
        let (errors, patience) = (self.errors.of_request(), self.park_timeout);
        let extents_max = extents_max.max(1);
        Box::pin(extents(errors, patience, len, extents_max, ask, change))
    }

    fn ended(&self) -> BoxFuture<'static, Ended> {
        let volume = self.volume.clone();
        Box::pin(async move { errors::ended(&volume.ended().await).await })
    }

    /// It may be back already, on another connection or through another node: nothing of what it sent here may get behind that (H11).
    fn peer_gone(&self) {
        self.line.abandon();
        self.volume.abandon();
    }

    fn progress(&self) -> u64 {
        self.line.pieces_done()
    }

    /// What was answered is committed. The round trip proves that this connection still has the volume.
    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        let (volume, errors) = (self.volume.clone(), self.errors.of_request());
        Box::pin(async move {
            match volume.flush().await {
                Ok(_) => Ok(()),
                Err(error) => Err(errors.read(&error).await),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_read_in_parts_has_the_time_of_one() {
        let patience = Duration::from_secs(60);
        let get = |each| {
            move |_, len: u32| async move {
                tokio::time::sleep(each).await;
                Ok(Bytes::from(vec![7; len as usize]))
            }
        };
        let begun = tokio::time::Instant::now();
        let late = read(patience, 0, 5, 4, get(patience * 9 / 10)).await;
        assert_eq!(late, Err(ReadError::Deadline { waited: patience }));
        assert_eq!(begun.elapsed(), patience);
        let whole = read(patience, 0, 5, 4, get(patience * 4 / 10)).await;
        assert_eq!(whole, Ok(Bytes::from(vec![7; 5])));
    }

    #[test]
    fn extents_of_several_answers_are_joined_up_to_the_number_wanted() {
        let mut extents = Vec::new();
        let mut add = |len, data| append(&mut extents, allocation(BlockExtent { len, data }), 2);
        assert!(add(1, true) && add(2, true) && add(4, false) && add(8, false));
        assert!(!add(16, true));
        let extent = |len, state| Extent { len, state };
        let expected = [extent(3, Allocation::Data), extent(12, Allocation::Hole)];
        assert_eq!(extents, expected);
    }
}
