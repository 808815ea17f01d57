//! Reading: memory over disk, every stored block against its checksum.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use mainstay_types::Lsn;

use super::overlay::{Content, Dirty};
use super::sums::{BLOCKS_PER_PAGE, Sum, SumsPage};
use super::{ExportedBlock, Extent, Image, ImageReadError};
use crate::codec::crc;
use crate::engine::{AlignedBuf, Disk, DiskFile, PAGE, PAGE_BYTES, TRANSFER_BYTES};

/// Blocks of one read from disk.
const RUN_BLOCKS: u64 = (TRANSFER_BYTES / PAGE_BYTES) as u64;

/// A read that meets this many checkpoints gives up and says what it saw last.
const TRIES: u32 = 64;

/// A block's current content.
#[derive(Clone, Debug)]
pub(super) struct Current {
    /// None for zeroes.
    pub(super) data: Option<Bytes>,
    /// Last entry that changed it; zero for never.
    pub(super) lsn: Lsn,
}

impl<D: Disk> Image<D> {
    /// Reads bytes of the current content. Runs beside checkpoints and other reads; dropping it does no harm.
    ///
    /// # Errors
    /// [`ImageReadError`]; after `Corrupt`, repair the block and read again.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, ImageReadError> {
        let range = ImageReadError::Range {
            offset,
            len: len as u64,
        };
        if self.check_range(offset, len as u64).is_err() {
            return Err(range);
        }
        self.check_readable()?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let end = offset + len as u64;
        let mut out = BytesMut::with_capacity(len);
        let mut block = offset / PAGE;
        while block * PAGE < end {
            let count = (end.div_ceil(PAGE) - block).min(RUN_BLOCKS);
            for current in self.read_blocks(block, count).await? {
                let start = within(offset.saturating_sub(block * PAGE));
                let stop = within((end - block * PAGE).min(PAGE));
                match &current.data {
                    Some(data) => out.extend_from_slice(&data[start..stop]),
                    None => out.resize(out.len() + stop - start, 0),
                }
                block += 1;
            }
        }
        Ok(out.freeze())
    }

    /// Runs of data and of zeroes in a byte range, from its first block on and at most `runs_max` of them: the last one may
    /// end before the range. Widened to whole blocks.
    ///
    /// With `since`, runs also tell the blocks changed by entries behind it from the others. Every member says the same, for a
    /// full copy carries the last change of each block with it. Of an LSN that is not applied yet nothing is known, so that
    /// everything counts as changed, as it does without `since`.
    ///
    /// What it does is proportional to the blocks looked at, with no pause between those whose checksums are in memory: bound
    /// the range.
    ///
    /// # Errors
    /// [`ImageReadError`].
    pub async fn extents(
        &self,
        range: Range<u64>,
        runs_max: usize,
        since: Option<Lsn>,
    ) -> Result<Vec<Extent>, ImageReadError> {
        self.check_blocks(range.start, range.end.saturating_sub(range.start))?;
        let since = since.filter(|since| *since <= self.applied.get().point.lsn);
        let mut runs: Vec<Extent> = Vec::new();
        for block in range.start / PAGE..range.end.div_ceil(PAGE) {
            let known = self
                .overlay
                .borrow()
                .get(block)
                .map(|dirty| (!matches!(dirty.content, Content::Zero), dirty.lsn));
            let (allocated, lsn) = match known {
                Some(known) => known,
                None => self.sum(block).await.map(|sum| (sum.data, sum.lsn))?,
            };
            let changed = since.is_none_or(|since| lsn > since);
            let full = runs.len() == runs_max;
            match runs.last_mut() {
                Some(run) if (run.allocated, run.changed) == (allocated, changed) => {
                    run.len += PAGE;
                }
                _ if full => break,
                _ => runs.push(Extent {
                    offset: block * PAGE,
                    len: PAGE,
                    allocated,
                    changed,
                }),
            }
        }
        Ok(runs)
    }

    /// Current content of blocks, without those never written: what a donor sends for a full copy.
    ///
    /// # Errors
    /// [`ImageReadError`].
    pub async fn export_block_range(
        &self,
        first: u64,
        count: u64,
    ) -> Result<Vec<ExportedBlock>, ImageReadError> {
        self.check_blocks(first.saturating_mul(PAGE), count.saturating_mul(PAGE))?;
        let mut out = Vec::new();
        let mut block = first;
        while block < first + count {
            let part = (first + count - block).min(RUN_BLOCKS);
            for current in self.read_blocks(block, part).await? {
                if current.data.is_some() || current.lsn != Lsn::ZERO {
                    out.push(ExportedBlock {
                        block,
                        crc: current.data.as_ref().map_or(0, |data| crc(data)),
                        data: current.data,
                        lsn: current.lsn,
                    });
                }
                block += 1;
            }
        }
        Ok(out)
    }

    /// Reads every stored block of a range and returns those that do not verify, among them blocks that hold data
    /// though their checksums say that they were never written. Blocks that memory supersedes are skipped.
    ///
    /// # Errors
    /// [`ImageReadError`] but never `Corrupt`.
    pub async fn scrub(&self, first: u64, count: u64) -> Result<Vec<u64>, ImageReadError> {
        self.check_blocks(first.saturating_mul(PAGE), count.saturating_mul(PAGE))?;
        let mut bad = Vec::new();
        for block in first..first + count {
            match self.scrub_block(block).await {
                Ok(true) => {}
                Ok(false) | Err(ImageReadError::Corrupt { .. }) => bad.push(block),
                Err(error) => return Err(error),
            }
        }
        Ok(bad)
    }

    async fn scrub_block(&self, block: u64) -> Result<bool, ImageReadError> {
        for _ in 0..TRIES {
            let version = self.version.get();
            let whole = |dirty: Dirty| !matches!(dirty.content, Content::Partial(_));
            if self.overlay.borrow().get(block).is_some_and(whole) {
                return Ok(true);
            }
            let sum = self.sum(block).await?;
            let data = self.stored(block, 1).await?;
            let good = data.is_some_and(|data| sum.matches(&data));
            if good || version == self.version.get() {
                return Ok(good);
            }
        }
        Ok(false)
    }

    fn check_readable(&self) -> Result<(), ImageReadError> {
        if self.rebuilding.get() {
            return Err(ImageReadError::Rebuilding);
        }
        match self.fuzzy_until.get() {
            Some(need) => Err(ImageReadError::NotReplayed { need }),
            None => Ok(()),
        }
    }

    pub(super) fn check_blocks(&self, offset: u64, len: u64) -> Result<(), ImageReadError> {
        self.check_readable()?;
        self.check_range(offset, len)
            .map_err(|_| ImageReadError::Range { offset, len })
    }

    /// Current content of blocks, at most one transfer of them.
    pub(super) async fn read_blocks(
        &self,
        first: u64,
        count: u64,
    ) -> Result<Vec<Current>, ImageReadError> {
        let mut tries = 0;
        loop {
            let version = self.version.get();
            let result = self.try_read_blocks(first, count).await;
            tries += 1;
            match result {
                // Blocks on disk changed meanwhile, and are in memory now or intact on disk.
                Ok((_, true)) | Err(ImageReadError::Corrupt { .. })
                    if version != self.version.get() && tries < TRIES => {}
                other => return other.map(|(blocks, _)| blocks),
            }
        }
    }

    /// One attempt; also tells whether anything came from disk.
    async fn try_read_blocks(
        &self,
        first: u64,
        count: u64,
    ) -> Result<(Vec<Current>, bool), ImageReadError> {
        let known: Vec<_> = {
            let overlay = self.overlay.borrow();
            (first..first + count)
                .map(|block| overlay.get(block))
                .collect()
        };
        let needs_disk = |dirty: &Option<Dirty>| {
            dirty
                .as_ref()
                .is_none_or(|dirty| matches!(dirty.content, Content::Partial(_)))
        };
        let mut out: Vec<Option<Current>> = Vec::with_capacity(known.len());
        let mut runs: Vec<(u64, Vec<Sum>)> = Vec::new();
        for (block, dirty) in (first..).zip(&known) {
            if !needs_disk(dirty) {
                out.push(None);
                continue;
            }
            let sum = self.sum(block).await?;
            out.push(Some(Current {
                data: None,
                lsn: sum.lsn,
            }));
            if sum.needs_disk() {
                match runs.last_mut() {
                    Some((start, sums)) if *start + sums.len() as u64 == block => sums.push(sum),
                    _ => runs.push((block, vec![sum])),
                }
            }
        }
        for (start, sums) in runs {
            let data = self.stored(start, sums.len() as u64).await?;
            let Some(data) = data else {
                return Err(self.first_unreadable(start, sums.len() as u64).await);
            };
            for (index, sum) in sums.iter().enumerate() {
                let block = start + index as u64;
                let bytes = data.slice(index * PAGE_BYTES..(index + 1) * PAGE_BYTES);
                if !sum.matches(&bytes) {
                    return Err(ImageReadError::Corrupt { block });
                }
                if let Some(Some(current)) = out.get_mut(within(block - first)) {
                    current.data = sum.data.then_some(bytes);
                }
            }
        }
        let from_disk = out.iter().any(Option::is_some);
        let merged = known
            .into_iter()
            .zip(out)
            .map(|(dirty, stored)| merge(dirty, stored));
        Ok((merged.collect(), from_disk))
    }

    /// Finds the block of a run that the medium does not give back.
    async fn first_unreadable(&self, start: u64, count: u64) -> ImageReadError {
        for block in start..start + count {
            match self.stored(block, 1).await {
                Ok(Some(_)) => {}
                Ok(None) => return ImageReadError::Corrupt { block },
                Err(error) => return error,
            }
        }
        ImageReadError::Corrupt { block: start }
    }

    /// Bytes of blocks as stored, unverified; none if the medium does not give them back.
    async fn stored(&self, first: u64, count: u64) -> Result<Option<Bytes>, ImageReadError> {
        let len = within(count * PAGE);
        let (result, buf) = self
            .image
            .read_at(AlignedBuf::zeroed(len), first * PAGE)
            .await;
        match result {
            Ok(found) if found == len => Ok(Some(Bytes::from_owner(buf))),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(ImageReadError::Io(error)),
        }
    }

    pub(super) async fn sum(&self, block: u64) -> Result<Sum, ImageReadError> {
        let page = self
            .sums_page(block / BLOCKS_PER_PAGE)
            .await
            .map_err(ImageReadError::Io)?;
        let sum = page
            .map(|page| page.get(block))
            .filter(|sum| !sum.is_lost());
        sum.ok_or(ImageReadError::Corrupt { block })
    }

    /// A page of checksums; none if it does not verify.
    pub(super) async fn sums_page(&self, number: u64) -> io::Result<Option<Rc<SumsPage>>> {
        loop {
            if let Some(page) = self.flushing.borrow().get(&number) {
                return Ok(Some(page.clone()));
            }
            if let Some(page) = self.cache.get(number) {
                return Ok(Some(page));
            }
            let version = self.version.get();
            let page = self.stored_sums(number).await?;
            if version != self.version.get() {
                continue;
            }
            let Some(page) = page else { return Ok(None) };
            let page = Rc::new(page);
            self.cache.put(number, page.clone());
            return Ok(Some(page));
        }
    }

    /// A page of checksums as it is in the file; none if it does not verify.
    pub(super) async fn stored_sums(&self, number: u64) -> io::Result<Option<SumsPage>> {
        let (result, mut buf) = self
            .sums
            .read_at(AlignedBuf::zeroed(PAGE_BYTES), number * PAGE)
            .await;
        match result {
            Ok(found) => {
                buf.set_len(found);
                Ok(SumsPage::decode(self.config.lineage, number, &buf))
            }
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn merge(dirty: Option<Dirty>, stored: Option<Current>) -> Current {
    match (dirty, stored) {
        (None, stored) => stored.unwrap_or(Current {
            data: None,
            lsn: Lsn::ZERO,
        }),
        (Some(dirty), stored) => {
            let data = match dirty.content {
                Content::Data(data) => Some(data),
                Content::Zero => None,
                Content::Partial(partial) => {
                    let base = stored.and_then(|current| current.data);
                    let mut data = base.map_or_else(|| vec![0; PAGE_BYTES], |base| base.to_vec());
                    partial.over(&mut data);
                    Some(data.into())
                }
            };
            Current {
                data,
                lsn: dirty.lsn,
            }
        }
    }
}

fn within(n: u64) -> usize {
    usize::try_from(n).expect("at most one transfer, or an offset in a block")
}
