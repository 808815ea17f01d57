//! One NBD connection's hold on a volume.
//!
//! The order of changes is the order of the calls. A change for which the client library has room is put in line by the call
//! itself. When there is no room, it goes to a queue, and so does every change after it until the queue is empty; a task
//! puts them in line as room comes. What waits there is bounded by the connection's own limits.
//!
//! A change larger than one request goes in pieces, made one after the other: a zeroing of terabytes holds no more memory
//! than one of a gigabyte.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use mainstay_client::{
    BlockChange, BlockExtent, BlockVolume, PendingWrite, ReadError, Refusal, WriteError,
};
use mainstay_nbd::{
    Allocation, BlockDevice, BlockError, Change as Changed, ChangePoint, Ended, ExportInfo, Extent,
    Holes,
};
use mainstay_types::{Lineage, Lsn};
use tokio::sync::{mpsc, oneshot};

use super::Counted;
use super::errors::{self, Errors, Failure};

/// Longest range of one trim or zeroing; more goes in pieces.
const RANGE_BYTES_MAX: u64 = 64 << 20;
/// Questions to the primary for one answer about a range; each covers as much as it looks at in one go. A client asks
/// on from where the answer ends.
const EXTENT_ROUNDS: usize = 64;
/// Pieces of one change between being put in line and their commit.
const PIECES_IN_LINE_MAX: usize = 64;

/// A change of the volume.
#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, data: Bytes },
    Trim { offset: u64, len: u64 },
    Zeroes { offset: u64, len: u64, keep: bool },
}

impl Change {
    /// Puts it in line. A change that finds no room is refused as overloaded, under number zero.
    fn put(&self, volume: &BlockVolume) -> PendingWrite {
        match self {
            Self::Write { offset, data } => volume.write(*offset, data.clone()),
            Self::Trim { offset, len } => volume.trim(*offset, *len),
            Self::Zeroes { offset, len, keep } => volume.write_zeroes(*offset, *len, *keep),
        }
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Trim { .. } | Self::Zeroes { .. } => 0,
        }
    }

    /// The same change in pieces that each fit one request.
    fn pieces(self, payload_bytes_max: u32) -> Pieces {
        Pieces {
            rest: Some(self),
            payload_bytes_max,
        }
    }

    /// Splits off what fits one request, and leaves the rest.
    fn split(self, payload_bytes_max: u32) -> (Self, Option<Self>) {
        match self {
            Self::Write { offset, mut data } if data.len() > payload_bytes_max as usize => {
                let first = data.split_to(payload_bytes_max as usize);
                let rest = Self::Write {
                    offset: offset + u64::from(payload_bytes_max),
                    data,
                };
                let data = first;
                (Self::Write { offset, data }, Some(rest))
            }
            Self::Trim { offset, len } if len > RANGE_BYTES_MAX => {
                let part = |offset, len| Self::Trim { offset, len };
                let rest = part(offset + RANGE_BYTES_MAX, len - RANGE_BYTES_MAX);
                (part(offset, RANGE_BYTES_MAX), Some(rest))
            }
            Self::Zeroes { offset, len, keep } if len > RANGE_BYTES_MAX => {
                let part = |offset, len| Self::Zeroes { offset, len, keep };
                let rest = part(offset + RANGE_BYTES_MAX, len - RANGE_BYTES_MAX);
                (part(offset, RANGE_BYTES_MAX), Some(rest))
            }
            whole => (whole, None),
        }
    }
}

/// What is left of a change, piece by piece.
#[derive(Debug)]
struct Pieces {
    rest: Option<Change>,
    payload_bytes_max: u32,
}

impl Iterator for Pieces {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        let (piece, rest) = self.rest.take()?.split(self.payload_bytes_max);
        self.rest = rest;
        Some(piece)
    }
}

/// A change whose room is not there yet.
#[derive(Debug)]
struct Waiting {
    pieces: Peekable<Pieces>,
    in_line: oneshot::Sender<Result<Vec<PendingWrite>, Failure>>,
}

/// A volume, attached for one NBD connection. Its session is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Device {
    info: ExportInfo,
    volume: BlockVolume,
    errors: Errors,
    queue: mpsc::UnboundedSender<Waiting>,
    /// Changes handed to the queue and not in line yet. While there is one, every later change has to follow it; the lock is
    /// held while a change is put in line or queued, so that both orders are one.
    queued: Arc<Mutex<usize>>,
}

impl Device {
    pub(super) fn start(
        info: ExportInfo,
        volume: BlockVolume,
        errors: Errors,
        park_timeout: Duration,
        counted: Counted,
    ) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let queued = Arc::new(Mutex::new(0));
        let line = Line {
            volume: volume.clone(),
            park_timeout,
        };
        let runner = run_queue(line, waiting, Arc::clone(&queued));
        tokio::spawn(async move {
            runner.await;
            drop(counted);
        });
        Self {
            info,
            volume,
            errors,
            queue,
            queued,
        }
    }

    fn change(&self, change: Change) -> BoxFuture<'static, Result<(), BlockError>> {
        let payload_bytes_max = self.volume.info().payload_bytes_max;
        let mut pieces = change.pieces(payload_bytes_max).peekable();
        let mut sent = Vec::new();
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if *queued == 0 {
            // Those that find room are in line; the first that does not takes the rest along into the queue.
            while sent.len() < PIECES_IN_LINE_MAX
                && let Some(piece) = pieces.peek()
            {
                let pending = piece.put(&self.volume);
                if pending.op().seq == 0 {
                    break;
                }
                sent.push(pending);
                pieces.next();
            }
        }
        if pieces.peek().is_none() {
            drop(queued);
            let errors = self.errors.clone();
            return Box::pin(async move { told(committed(sent).await, &errors).await });
        }
        let (in_line, later) = oneshot::channel();
        *queued += 1;
        // The task lives as long as this device.
        let _sent = self.queue.send(Waiting { pieces, in_line });
        drop(queued);
        let errors = self.errors.clone();
        Box::pin(async move {
            let done = async {
                sent.extend(later.await.map_err(|_| Failure::Gone)??);
                committed(sent).await
            };
            told(done.await, &errors).await
        })
    }
}

/// What puts changes in line.
struct Line {
    volume: BlockVolume,
    park_timeout: Duration,
}

/// Puts queued changes in line as room comes. When the device is gone, drops what nobody waits for and lets the volume go.
async fn run_queue(
    line: Line,
    mut waiting: mpsc::UnboundedReceiver<Waiting>,
    queued: Arc<Mutex<usize>>,
) {
    while let Some(Waiting { pieces, in_line }) = waiting.recv().await {
        let put = line.put(pieces, || !in_line.is_closed()).await;
        let _gone = in_line.send(put);
        *queued.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
    if let Err(error) = line.volume.close().await {
        tracing::debug!(%error, "attachment not let go");
    }
}

impl Line {
    /// Puts all pieces in line and answers with those whose commit is still to be waited for, which are few.
    async fn put(
        &self,
        pieces: Peekable<Pieces>,
        wanted: impl Fn() -> bool,
    ) -> Result<Vec<PendingWrite>, Failure> {
        let mut sent = VecDeque::new();
        for piece in pieces.take_while(|_| wanted()) {
            if sent.len() == PIECES_IN_LINE_MAX
                && let Some(oldest) = sent.pop_front()
            {
                committed(vec![oldest]).await?;
            }
            let put = tokio::time::timeout(self.park_timeout, self.put_one(&piece));
            let put = put.await.map_err(|_| Failure::NoRoom)?;
            sent.push_back(put.map_err(Failure::Ended)?);
        }
        Ok(sent.into())
    }

    async fn put_one(&self, piece: &Change) -> Result<PendingWrite, WriteError> {
        loop {
            let pending = piece.put(&self.volume);
            if pending.op().seq != 0 {
                return Ok(pending);
            }
            // Refused at once: answered without a wait.
            match pending.await {
                Err(WriteError::Refused(Refusal::Overloaded)) => {
                    self.volume.ready(piece.payload_bytes()).await;
                }
                Err(error) => return Err(error),
                // A change without a number was never sent.
                Ok(_) => return Err(WriteError::Refused(Refusal::Closed)),
            }
        }
    }
}

async fn committed(sent: Vec<PendingWrite>) -> Result<(), Failure> {
    for pending in sent {
        pending.await.map_err(Failure::Ended)?;
    }
    Ok(())
}

async fn told(done: Result<(), Failure>, errors: &Errors) -> Result<(), BlockError> {
    match done {
        Ok(()) => Ok(()),
        Err(failure) => Err(errors.failed(failure).await),
    }
}

async fn read(
    volume: BlockVolume,
    errors: Errors,
    offset: u64,
    len: u32,
) -> Result<Bytes, BlockError> {
    let most = volume.info().payload_bytes_max;
    let (volume, errors) = (&volume, &errors);
    let get = |offset, len| async move {
        match volume.read(offset, len).await {
            Ok(data) => Ok(data),
            Err(error) => Err(errors.read(&error).await),
        }
    };
    if len <= most {
        return get(offset, len).await;
    }
    let mut data = BytesMut::with_capacity(len as usize);
    let (mut at, mut left) = (offset, len);
    while left > 0 {
        let part = get(at, left.min(most)).await?;
        data.extend_from_slice(&part);
        at += u64::from(left.min(most));
        left -= left.min(most);
    }
    Ok(data.freeze())
}

/// Asks about `len` bytes, as far as `EXTENT_ROUNDS` and `extents_max` reach. `ask` gets a place in them, what is left from
/// there, and a number of extents.
async fn extents<State: PartialEq, Told>(
    errors: Errors,
    len: u64,
    extents_max: usize,
    ask: impl AsyncFn(u64, u64, u32) -> Result<Vec<Told>, ReadError>,
    extent: impl Fn(Told) -> Extent<State>,
) -> Result<Vec<Extent<State>>, BlockError> {
    let mut extents = Vec::new();
    let mut done = 0;
    for _ in 0..EXTENT_ROUNDS {
        // Whatever comes first may join the last one that is there.
        let more = u32::try_from(extents_max - extents.len() + 1).unwrap_or(u32::MAX);
        let told = match ask(done, len - done, more).await {
            Ok(told) => told,
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
        Box::pin(read(self.volume.clone(), self.errors.clone(), offset, len))
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
        let errors = self.errors.clone();
        Box::pin(extents(errors, len, extents_max.max(1), ask, allocation))
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
        let errors = self.errors.clone();
        Box::pin(extents(errors, len, extents_max.max(1), ask, change))
    }

    fn ended(&self) -> BoxFuture<'static, Ended> {
        let volume = self.volume.clone();
        Box::pin(async move {
            match errors::ended(&volume.ended().await) {
                Some(ended) => ended,
                None => std::future::pending().await,
            }
        })
    }

    /// What was answered is committed. The round trip proves that this connection still has the volume.
    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        let (volume, errors) = (self.volume.clone(), self.errors.clone());
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

    fn shape(pieces: Pieces) -> Vec<(u64, u64)> {
        let one = |piece| match piece {
            Change::Write { offset, data } => (offset, data.len() as u64),
            Change::Trim { offset, len } | Change::Zeroes { offset, len, .. } => (offset, len),
        };
        pieces.map(one).collect()
    }

    #[test]
    fn writes_are_split_at_the_payload_limit() {
        let pieces = |len: usize| {
            let data = Bytes::from(vec![0; len]);
            shape(Change::Write { offset: 7, data }.pieces(4))
        };
        assert_eq!(pieces(4), [(7, 4)]);
        assert_eq!(pieces(5), [(7, 4), (11, 1)]);
        assert_eq!(pieces(8), [(7, 4), (11, 4)]);
    }

    #[test]
    fn ranges_are_split_and_cover_everything_once() {
        for len in [1, RANGE_BYTES_MAX, RANGE_BYTES_MAX + 1, u64::from(u32::MAX)] {
            let keep = true;
            let zeroes = Change::Zeroes {
                offset: 512,
                len,
                keep,
            };
            for change in [Change::Trim { offset: 512, len }, zeroes] {
                let mut at = 512;
                for (offset, piece) in shape(change.pieces(1)) {
                    assert_eq!(offset, at);
                    assert!(piece > 0 && piece <= RANGE_BYTES_MAX);
                    at += piece;
                }
                assert_eq!(at, 512 + len);
            }
        }
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
