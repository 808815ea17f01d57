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
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::intent::{self, Header, Item, Target};
use super::overlay::{Content, Layer};
use super::sums::{BLOCKS_PER_PAGE, Sum, SumsPage};
use super::{CheckpointError, Image};
use crate::checkpoint::{Checkpoint, CheckpointFileError};
use crate::codec::crc;
use crate::engine::{AlignedBuf, Disk, DiskFile, PAGE, PAGE_BYTES, TRANSFER_BYTES, is_no_space};
use crate::format::LogEnd;

/// Neighbours that are written together.
const RUN_BLOCKS: usize = TRANSFER_BYTES / PAGE_BYTES;

/// Blocks that are made a hole together.
const HOLE_BLOCKS: usize = 16 * RUN_BLOCKS;

/// Blocks of data, or pages of checksums, looked at or let go of without a rest.
const BLOCKS_AT_ONCE: usize = 512;

/// Writes that are in the disk's queue at a time, at most.
const WRITES_AT_ONCE: usize = 16;

/// Ready to be written: blocks of the same bytes, or blocks that become a hole.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) blocks: Range<u64>,
    /// The bytes of each.
    pub(super) data: Option<Bytes>,
    /// The log does not bring all of its bytes back.
    pub(super) merged: bool,
}

impl Ready {
    fn count(&self) -> u64 {
        self.blocks.end - self.blocks.start
    }

    /// Blocks to be written, or calls to be made.
    fn work(&self) -> usize {
        let work = match self.data {
            Some(_) => self.count(),
            None => self.count().div_ceil(HOLE_BLOCKS as u64),
        };
        usize::try_from(work).expect("a volume's blocks fit")
    }
}

/// Checksums as they will be, by the number of the page.
type Pages = BTreeMap<u64, Rc<SumsPage>>;

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
        self.written.set((0, 1));
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
        self.merge_frozen().await?;
        let (ready, pages) = self.plan_flush(pace).await?;
        if !ready.is_empty() {
            self.write_intent(target, &ready, &pages, pace)
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

    /// Merges blocks changed in part with their base.
    async fn merge_frozen(&self) -> Result<(), CheckpointError> {
        let partial = match &self.overlay.borrow().frozen {
            Some(frozen) => frozen.partial(),
            None => Vec::new(),
        };
        for block in partial {
            let base = self.stored_block(block).await?;
            let mut overlay = self.overlay.borrow_mut();
            if let Some(layer) = &mut overlay.frozen {
                put_below(layer, block, &base);
            }
        }
        Ok(())
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
        if !sum.needs_disk() {
            return Ok(vec![0; PAGE_BYTES]);
        }
        let (result, buf) = self
            .image
            .read_at(AlignedBuf::zeroed(PAGE_BYTES), block * PAGE)
            .await;
        match result {
            Ok(PAGE_BYTES) if sum.matches(&buf) => Ok(buf.to_vec()),
            Ok(_) => Err(corrupt),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Err(corrupt),
            Err(error) => Err(poison(error)),
        }
    }

    /// What to write, and the checksum pages as they will be.
    async fn plan_flush(&self, pace: &impl Pace) -> Result<(Vec<Ready>, Pages), CheckpointError> {
        let stretches = match &self.overlay.borrow().frozen {
            Some(frozen) => frozen.stretches(),
            None => Vec::new(),
        };
        let mut pages = BTreeMap::<u64, SumsPage>::new();
        let mut ready = Vec::with_capacity(stretches.len());
        let mut looked_at = 0_usize;
        for stretch in stretches {
            let (blocks, dirty) = (stretch.blocks, stretch.dirty);
            let data = match dirty.content {
                Content::Data(data) => Some(data),
                Content::Zero => None,
                Content::Partial(_) => {
                    return Err(CheckpointError::Corrupt {
                        block: blocks.start,
                    });
                }
            };
            let sum = Sum {
                data: data.is_some(),
                crc: data.as_ref().map_or(0, |data| crc(data)),
                lsn: dirty.lsn,
            };
            for (number, part) in by_page(blocks.clone()) {
                let page = match pages.entry(number) {
                    Entry::Occupied(page) => page.into_mut(),
                    Entry::Vacant(place) => place.insert(self.page_for(number, &part).await?),
                };
                for block in part {
                    page.set(block, sum);
                }
                looked_at += 1;
                if looked_at.is_multiple_of(BLOCKS_AT_ONCE) {
                    pace.rest().await;
                }
            }
            let merged = dirty.merged;
            ready.push(Ready {
                blocks,
                data,
                merged,
            });
        }
        let seal = |(number, mut page): (u64, SumsPage)| {
            page.seal(self.config.lineage, number);
            (number, Rc::new(page))
        };
        Ok((ready, pages.into_iter().map(seal).collect()))
    }

    /// A page of checksums, of which `part` is about to be set.
    async fn page_for(&self, number: u64, part: &Range<u64>) -> Result<SumsPage, CheckpointError> {
        if part.end - part.start == BLOCKS_PER_PAGE {
            return Ok(SumsPage::empty());
        }
        let page = self
            .sums_page(number)
            .await
            .map_err(|error| CheckpointError::Poisoned {
                reason: error.to_string(),
            })?;
        // Of a lost page only this part is known; the others stay corrupt until they are repaired.
        Ok(page.map_or_else(SumsPage::lost, |page| (*page).clone()))
    }

    async fn write_intent(
        &self,
        target: LogEnd,
        ready: &[Ready],
        pages: &Pages,
        pace: &impl Pace,
    ) -> io::Result<()> {
        let sequence = self.sequence.get() + 1;
        let blocks = ready.iter().filter_map(|ready| {
            let block = ready.blocks.start;
            let content = ready.data.as_deref()?;
            ready.merged.then_some(Item {
                target: Target::Block(block),
                content,
            })
        });
        let sums = pages.iter().map(|(number, page)| Item {
            target: Target::Sums(*number),
            content: &page.0[..],
        });
        let items: Vec<_> = blocks.chain(sums).collect();
        let file = &self.intents[usize::from(!sequence.is_multiple_of(2))];
        let mut body = intent::Body::new(&items);
        let mut at = PAGE;
        while let Some(piece) = body.next_piece() {
            let len = piece.len() as u64;
            file.write_at(piece, at).await.0?;
            file.write_out(at, len).await?;
            at += len;
            pace.rest().await;
        }
        let header = Header {
            sequence,
            base: self.checkpointed.get().point.lsn,
            target: target.point.lsn,
        };
        file.write_at(body.header(self.config.lineage, header), 0)
            .await
            .0?;
        file.sync_beside().await?;
        self.sequence.set(sequence);
        Ok(())
    }

    async fn overwrite(&self, ready: &[Ready], pages: &Pages, pace: &impl Pace) -> io::Result<()> {
        self.write_blocks(ready, pace).await?;
        self.write_sums(pages).await?;
        // Megabytes: the log is written on the same thread, and must not wait for them.
        self.image.sync_beside().await?;
        self.sums.sync_beside().await
    }

    /// Writes blocks in ascending order, neighbours together, and a little at a time: what is written must not get far ahead of what the
    /// disk has, or all who write to the disk meanwhile wait behind it.
    pub(super) async fn write_blocks(&self, ready: &[Ready], pace: &impl Pace) -> io::Result<()> {
        let mut out = WriteOut::default();
        let (mut done, total) = (0, ready.iter().map(Ready::work).sum());
        let mut rest = ready;
        while let Some(first) = rest.first() {
            if first.data.is_none() {
                rest = &rest[1..];
                for hole in first.blocks.clone().step_by(HOLE_BLOCKS) {
                    let blocks = (first.blocks.end - hole).min(HOLE_BLOCKS as u64);
                    self.image.punch_hole(hole * PAGE, blocks * PAGE).await?;
                    done += 1;
                    self.rest_after(done, total, pace).await;
                }
                continue;
            }
            let mut at = first.blocks.start;
            let count = neighbours(rest);
            let (run, behind) = rest.split_at(count);
            rest = behind;
            let mut pages = run
                .iter()
                .flat_map(|next| next.blocks.clone().filter_map(|_| next.data.as_deref()))
                .peekable();
            while pages.peek().is_some() {
                let run: Vec<_> = pages.by_ref().take(RUN_BLOCKS).collect();
                let (offset, len) = (at * PAGE, run.len() as u64 * PAGE);
                at += run.len() as u64;
                done += run.len();
                self.image.write_at(joined(&run), offset).await.0?;
                if let Some((from, len)) = out.add(offset, len) {
                    self.image.write_out(from, len).await?;
                    self.rest_after(done, total, pace).await;
                }
            }
        }
        Ok(())
    }

    async fn rest_after(&self, written: usize, total: usize, pace: &impl Pace) {
        self.written.set((written as u64, total.max(1) as u64));
        pace.next(written, total).await;
    }

    async fn write_sums(&self, pages: &Pages) -> io::Result<()> {
        let mut out = WriteOut::default();
        let mut pages = pages.iter().peekable();
        while let Some((first, page)) = pages.next() {
            let mut run = vec![&page.0[..]];
            while run.len() < RUN_BLOCKS
                && let Some((_, page)) = pages.next_if(|(n, _)| **n == first + run.len() as u64)
            {
                run.push(&page.0[..]);
            }
            let (offset, len) = (first * PAGE, run.len() as u64 * PAGE);
            self.sums.write_at(joined(&run), offset).await.0?;
            if let Some((from, len)) = out.add(offset, len) {
                self.sums.write_out(from, len).await?;
            }
        }
        Ok(())
    }
}

/// How many of the first ones lie side by side and have bytes, up to about one transfer.
fn neighbours(ready: &[Ready]) -> usize {
    let (mut blocks, mut end) = (0, None);
    let joins = |next: &&Ready| {
        let fits = blocks < RUN_BLOCKS as u64 && end.is_none_or(|end| end == next.blocks.start);
        blocks += next.count();
        end = Some(next.blocks.end);
        fits && next.data.is_some()
    };
    ready.iter().take_while(joins).count()
}

/// Pages in one buffer.
fn joined(pages: &[&[u8]]) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(pages.len() * PAGE_BYTES);
    for (target, page) in buf.chunks_exact_mut(PAGE_BYTES).zip(pages) {
        target.copy_from_slice(page);
    }
    buf
}

/// Blocks by the page of their checksums.
pub(super) fn by_page(blocks: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let pages = blocks.start / BLOCKS_PER_PAGE..blocks.end.div_ceil(BLOCKS_PER_PAGE);
    pages.map(move |page| {
        let first = (page * BLOCKS_PER_PAGE).max(blocks.start);
        let end = ((page + 1) * BLOCKS_PER_PAGE).min(blocks.end);
        (page, first..end)
    })
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
async fn free(mut layer: Layer, pace: &impl Pace) {
    while layer.forget(BLOCKS_AT_ONCE) {
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
    let Some(dirty) = layer.get(block) else {
        return;
    };
    let Content::Partial(partial) = &dirty.content else {
        return;
    };
    let mut data = base.to_vec();
    partial.over(&mut data);
    layer.put_merged(block, Content::Data(data.into()), dirty.lsn);
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
        CheckpointFileError::NoDescriptor { source, .. } => CheckpointError::NoSpace(source),
        CheckpointFileError::Io { source, .. } => write_error(source),
        other => CheckpointError::Poisoned {
            reason: other.to_string(),
        },
    }
}
