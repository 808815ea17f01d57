//! The checkpoint: from memory to the files, crash-consistent at every step.
//!
//! ```text
//!  1 freeze      what is applied now becomes the frozen layer; new changes go above it
//!  2 merge       blocks changed in part are merged with their verified base, in memory
//!  3 intent      merged blocks and new checksum pages are written aside and synced
//!  4 overwrite   blocks, holes and checksum pages in place, then synced
//!  5 record      the new position replaces the old one: from here on, replay starts behind it
//! ```
//!
//! A crash before 3 is complete leaves the files as they were. A crash after it is finished by `open`, and whole
//! blocks that may be torn are written again by replay, before any read is answered.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use bytes::Bytes;

use super::intent::{Intent, Target};
use super::overlay::{Content, Dirty, Layer};
use super::sums::{BLOCKS_PER_PAGE, Sum, SumsPage};
use super::{CheckpointError, Image};
use crate::checkpoint::{Checkpoint, CheckpointFileError};
use crate::codec::crc;
use crate::engine::{AlignedBuf, Disk, DiskFile, PAGE, PAGE_BYTES, TRANSFER_BYTES, is_no_space};
use crate::format::LogEnd;

/// Neighbours that are written together.
const RUN_BLOCKS: usize = TRANSFER_BYTES / PAGE_BYTES;

/// Looked at, or let go of, without a rest.
const BLOCKS_AT_ONCE: usize = 512;

/// Writes that are in the disk's queue at a time, at most.
const WRITES_AT_ONCE: usize = 16;

/// A block ready to be written: its bytes, or none for a hole.
pub(super) type Ready = (u64, Option<Bytes>);

impl<D: Disk> Image<D> {
    /// As [`Image::checkpoint_at_pace`], at once.
    ///
    /// # Errors
    /// The same.
    pub async fn checkpoint(&self, blob: Bytes) -> Result<LogEnd, CheckpointError> {
        self.checkpoint_at_pace(blob, &AtOnce).await
    }

    /// Writes what is applied now to the files and records it, with `blob` as the caller's state at that very
    /// position. Durable on return; gives back the position recorded. Reads and applies go on meanwhile.
    ///
    /// Only committed entries were applied, so a checkpoint never passes the commit point. Dropped half way, the image
    /// is finished for this process.
    ///
    /// # Errors
    /// [`CheckpointError`]. After `NoSpace` and `Corrupt` nothing is lost and it may be repeated.
    pub async fn checkpoint_at_pace(
        &self,
        blob: Bytes,
        pace: &impl Pace,
    ) -> Result<LogEnd, CheckpointError> {
        self.check_idle()?;
        if self.rebuilding.get() {
            return Err(CheckpointError::Rebuilding);
        }
        if let Some(need) = self.fuzzy_until.get() {
            return Err(CheckpointError::NotReplayed { need });
        }
        let target = self.applied.get();
        self.busy.set(true);
        {
            let mut overlay = self.overlay.borrow_mut();
            overlay.frozen = Some(std::mem::take(&mut overlay.active));
        }
        let result = self.flush(target, blob, pace).await;
        self.flushing.borrow_mut().clear();
        let written = match &result {
            Ok(_) => self.overlay.borrow_mut().frozen.take(),
            Err(_) => {
                self.overlay.borrow_mut().thaw();
                None
            }
        };
        self.version.set(self.version.get() + 1);
        if let Err(CheckpointError::Poisoned { reason }) = &result {
            tracing::error!(%reason, "image finished for this process");
            *self.poisoned.borrow_mut() = Some(reason.clone());
        }
        self.busy.set(false);
        if let Some(layer) = written {
            free(layer, pace).await;
        }
        result
    }

    /// Refuses a second writer, and everything after a failure.
    pub(super) fn check_idle(&self) -> Result<(), CheckpointError> {
        if let Some(reason) = &*self.poisoned.borrow() {
            return Err(CheckpointError::Poisoned {
                reason: reason.clone(),
            });
        }
        if self.busy.get() {
            return Err(CheckpointError::Busy);
        }
        Ok(())
    }

    async fn flush(
        &self,
        target: LogEnd,
        blob: Bytes,
        pace: &impl Pace,
    ) -> Result<LogEnd, CheckpointError> {
        let merged = self.merge_frozen().await?;
        let (ready, pages) = self.plan_flush(pace).await?;
        if !ready.is_empty() {
            self.write_intent(target, &merged, &ready, &pages)
                .await
                .map_err(write_error)?;
            self.version.set(self.version.get() + 1);
            self.flushing
                .borrow_mut()
                .extend(pages.iter().map(|(number, page)| (*number, page.clone())));
            self.overwrite(&ready, &pages, pace)
                .await
                .map_err(write_error)?;
        }
        let checkpoint = Checkpoint {
            applied: target,
            rebuilding: false,
            blob,
        };
        self.record.store(&checkpoint).await.map_err(record_error)?;
        for (number, page) in pages {
            self.cache.put(number, page);
        }
        let before = self.checkpointed.get();
        assert!(
            before.point.lsn <= target.point.lsn,
            "checkpoint fell from {} to {}",
            before.point,
            target.point
        );
        self.checkpointed.set(target);
        Ok(target)
    }

    /// Merges blocks changed in part with their base; returns which.
    async fn merge_frozen(&self) -> Result<Vec<u64>, CheckpointError> {
        let partial: Vec<_> = {
            let overlay = self.overlay.borrow();
            let frozen = overlay.frozen.iter().flat_map(|layer| &layer.blocks);
            frozen
                .filter(|(_, dirty)| matches!(dirty.content, Content::Partial(_)))
                .map(|(block, _)| *block)
                .collect()
        };
        for block in &partial {
            let base = self.stored_block(*block).await?;
            let mut overlay = self.overlay.borrow_mut();
            if let Some(layer) = &mut overlay.frozen {
                put_below(layer, *block, &base);
            }
        }
        Ok(partial)
    }

    /// A block's verified bytes on disk.
    async fn stored_block(&self, block: u64) -> Result<Vec<u8>, CheckpointError> {
        let corrupt = CheckpointError::Corrupt { block };
        let poison = |error: io::Error| CheckpointError::Poisoned {
            reason: error.to_string(),
        };
        let page = self
            .sums_page(block / BLOCKS_PER_PAGE)
            .await
            .map_err(poison)?;
        let Some(sum) = page
            .map(|page| page.get(block))
            .filter(|sum| !sum.is_lost())
        else {
            return Err(corrupt);
        };
        if !sum.data {
            return Ok(vec![0; PAGE_BYTES]);
        }
        let (result, buf) = self
            .image
            .read_at(AlignedBuf::zeroed(PAGE_BYTES), block * PAGE)
            .await;
        match result {
            Ok(PAGE_BYTES) if crc(&buf) == sum.crc => Ok(buf.to_vec()),
            Ok(_) => Err(corrupt),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Err(corrupt),
            Err(error) => Err(poison(error)),
        }
    }

    /// The blocks to write, and the checksum pages as they will be.
    async fn plan_flush(
        &self,
        pace: &impl Pace,
    ) -> Result<(Vec<Ready>, BTreeMap<u64, Rc<SumsPage>>), CheckpointError> {
        let dirty: Vec<(u64, Dirty)> = {
            let overlay = self.overlay.borrow();
            let frozen = overlay.frozen.iter().flat_map(|layer| &layer.blocks);
            frozen
                .map(|(block, dirty)| (*block, dirty.clone()))
                .collect()
        };
        let mut pages = BTreeMap::<u64, SumsPage>::new();
        let mut ready = Vec::with_capacity(dirty.len());
        for (block, dirty) in dirty {
            let data = match dirty.content {
                Content::Data(data) => Some(data),
                Content::Zero => None,
                Content::Partial(_) => return Err(CheckpointError::Corrupt { block }),
            };
            let number = block / BLOCKS_PER_PAGE;
            let page = match pages.entry(number) {
                std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let page = self.sums_page(number).await.map_err(|error| {
                        CheckpointError::Poisoned {
                            reason: error.to_string(),
                        }
                    })?;
                    // Of a lost page only this block is known; the others stay corrupt until they are repaired.
                    place.insert(page.map_or_else(SumsPage::lost, |page| (*page).clone()))
                }
            };
            page.set(
                block,
                Sum {
                    data: data.is_some(),
                    crc: data.as_ref().map_or(0, |data| crc(data)),
                    lsn: dirty.lsn,
                },
            );
            ready.push((block, data));
            if ready.len().is_multiple_of(BLOCKS_AT_ONCE) {
                pace.rest().await;
            }
        }
        let seal = |(number, mut page): (u64, SumsPage)| {
            page.seal(self.config.lineage, number);
            (number, Rc::new(page))
        };
        Ok((ready, pages.into_iter().map(seal).collect()))
    }

    async fn write_intent(
        &self,
        target: LogEnd,
        merged: &[u64],
        ready: &[Ready],
        pages: &BTreeMap<u64, Rc<SumsPage>>,
    ) -> io::Result<()> {
        let sequence = self.sequence.get() + 1;
        let blocks = ready
            .iter()
            .filter(|(block, _)| merged.binary_search(block).is_ok());
        let blocks = blocks
            .filter_map(|(block, data)| Some((Target::Block(*block), data.as_ref()?.to_vec())));
        let sums = pages
            .iter()
            .map(|(number, page)| (Target::Sums(*number), page.0.to_vec()));
        let intent = Intent {
            sequence,
            base: self.checkpointed.get().point.lsn,
            target: target.point.lsn,
            items: blocks.chain(sums).collect(),
        };
        let file = &self.intents[usize::from(!sequence.is_multiple_of(2))];
        file.write_at(intent.encode(self.config.lineage), 0)
            .await
            .0?;
        file.sync_beside().await?;
        self.sequence.set(sequence);
        Ok(())
    }

    async fn overwrite(
        &self,
        ready: &[Ready],
        pages: &BTreeMap<u64, Rc<SumsPage>>,
        pace: &impl Pace,
    ) -> io::Result<()> {
        self.write_blocks(ready, pace).await?;
        for (number, page) in pages {
            self.sums
                .write_at(AlignedBuf::padded_from(&page.0[..]), number * PAGE)
                .await
                .0?;
        }
        // Megabytes: the log is written on the same thread, and must not wait for them.
        self.image.sync_beside().await?;
        self.sums.sync_beside().await
    }

    /// Writes blocks in ascending order, neighbours together, and a little at a time: what is written must not get far ahead of what the
    /// disk has, or all who write to the disk meanwhile wait behind it.
    pub(super) async fn write_blocks(&self, ready: &[Ready], pace: &impl Pace) -> io::Result<()> {
        let mut out = WriteOut::default();
        let mut rest = ready;
        while let Some((first, data)) = rest.first() {
            let joins = |(index, (block, other)): &(usize, &Ready)| {
                *block == first + *index as u64
                    && other.is_some() == data.is_some()
                    && *index < RUN_BLOCKS
            };
            let count = rest.iter().enumerate().take_while(joins).count();
            let (run, behind) = rest.split_at(count);
            rest = behind;
            let (offset, len) = (first * PAGE, count as u64 * PAGE);
            if data.is_none() {
                self.image.punch_hole(offset, len).await?;
                continue;
            }
            let mut buf = AlignedBuf::zeroed(count * PAGE_BYTES);
            for (target, (_, data)) in buf.chunks_exact_mut(PAGE_BYTES).zip(run) {
                target.copy_from_slice(data.as_deref().unwrap_or(&[0; PAGE_BYTES]));
            }
            self.image.write_at(buf, offset).await.0?;
            if let Some((from, len)) = out.add(offset, len) {
                self.image.write_out(from, len).await?;
                pace.next(ready.len() - rest.len(), ready.len()).await;
            }
        }
        Ok(())
    }
}

/// How fast a checkpoint goes.
pub trait Pace {
    /// `written` of `total` blocks are on their way to the disk. Returns when the next ones may be.
    fn next(&self, written: usize, total: usize) -> impl Future<Output = ()>;

    /// The thread was busy for about a millisecond: time for others on it.
    fn rest(&self) -> impl Future<Output = ()>;
}

/// Lets go of what is on the disk now, a piece at a time: hundreds of megabytes at once keep the thread, and with it the log, for as long
/// as a hundred milliseconds.
async fn free(layer: Layer, pace: &impl Pace) {
    let mut blocks = layer.blocks;
    while let Some(next) = blocks.keys().nth(BLOCKS_AT_ONCE).copied() {
        let rest = blocks.split_off(&next);
        drop(std::mem::replace(&mut blocks, rest));
        pace.rest().await;
    }
}

/// As fast as the disk goes.
#[derive(Debug, Clone, Copy)]
pub struct AtOnce;

impl Pace for AtOnce {
    async fn next(&self, _: usize, _: usize) {}

    async fn rest(&self) {}
}

/// Writes that have not been sent on their way yet.
#[derive(Debug, Default)]
struct WriteOut {
    from: u64,
    writes: usize,
    bytes: u64,
}

impl WriteOut {
    /// One write more, behind those before; the range to be sent on its way if they are enough.
    fn add(&mut self, offset: u64, len: u64) -> Option<(u64, u64)> {
        if self.writes == 0 {
            self.from = offset;
        }
        self.writes += 1;
        self.bytes += len;
        if self.writes < WRITES_AT_ONCE && self.bytes < TRANSFER_BYTES as u64 {
            return None;
        }
        let from = self.from;
        *self = Self::default();
        Some((from, offset + len - from))
    }
}

/// Merges a partial block of `layer` with its base.
fn put_below(layer: &mut Layer, block: u64, base: &[u8]) {
    let Some(dirty) = layer.blocks.get(&block) else {
        return;
    };
    let (Content::Partial(partial), lsn) = (&dirty.content, dirty.lsn) else {
        return;
    };
    let mut data = base.to_vec();
    partial.over(&mut data);
    layer.put(block, Content::Data(data.into()), lsn);
}

pub(super) fn write_error(error: io::Error) -> CheckpointError {
    if is_no_space(&error) {
        CheckpointError::NoSpace(error)
    } else {
        CheckpointError::Poisoned {
            reason: error.to_string(),
        }
    }
}

pub(super) fn record_error(error: CheckpointFileError) -> CheckpointError {
    match error {
        CheckpointFileError::Io { source, .. } => write_error(source),
        other => CheckpointError::Poisoned {
            reason: other.to_string(),
        },
    }
}
