//! Repair: a block that does not read back here is taken from another member's image.
//!
//! The members' images stand at different positions of one history. With K [`Image::checkpointed`] and O [`Image::applied`] here, and the
//! donor's block as it was at P, where entry c <= P changed it last, the rule is **c <= O and K <= P**:
//!
//! - With c > O the block would hold what this image was not told yet, and an entry between O and c, applied afterwards, would put older
//!   bytes over it.
//! - With P < K nothing would bring back what entries between P and K made of it: memory holds only what came behind K.
//!
//! With both, each byte is what the last entry up to O made of it. If P >= O, nothing changed the block between c and P, so the donor's is
//! the block at O. If P < O, what memory holds (everything between K and O) goes over it, and covers whatever differs.

use bytes::Bytes;
use mainstay_types::Lsn;

use super::flush::by_page;
use super::overlay::{Content, Dirty};
use super::read::Current;
use super::{ExportedBlock, Image, ImageReadError};
use crate::codec::crc;
use crate::engine::{Disk, DiskFile, PAGE, PAGE_BYTES};

/// Blocks of one member for another one's repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Donation {
    /// Those that read back; also those that were never written.
    pub blocks: Vec<ExportedBlock>,
    /// A position at or before the one of each of them.
    pub at: Lsn,
}

/// How much of a block memory holds that is not in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// What is in the file is all.
    Nothing,
    /// Some bytes: a checkpoint needs what is in the file below them. All of the block would take no more memory.
    Part,
    /// All of it, whatever is in the file.
    Whole,
}

/// Why a block of another member was not taken. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// An entry that is not applied here yet changed it there: try again when it is.
    #[error("block {block} was changed by entry {lsn} there, which is not applied here yet")]
    Ahead {
        /// Block number.
        block: u64,
        /// The entry.
        lsn: Lsn,
    },
    /// The donor does not have everything that is in the files here: try again later, or another one.
    #[error("the donor is at entry {at} and lacks what this image holds")]
    Behind {
        /// Where it is.
        at: Lsn,
    },
    /// Outside the volume, not a block, data that no entry made, or damaged on its way.
    #[error("block {block} is malformed")]
    Malformed {
        /// Block number.
        block: u64,
    },
    /// By the checksum here the donor's block is another one than was stored, although no entry lies between them. One of the two
    /// members is wrong, and nothing here tells which.
    #[error("block {block} differs from what was stored here, by the same entries")]
    Differs {
        /// Block number.
        block: u64,
    },
    /// The image is being replaced.
    #[error("the image is being rebuilt")]
    Rebuilding,
}

/// A checksum of the bytes, whether they are stored or a hole.
fn content(data: bool, sum: u32) -> u32 {
    if data { sum } else { crc(&[0; PAGE_BYTES]) }
}

impl<D: Disk> Image<D> {
    /// Reads blocks for another member's repair. Those that do not read back here either are left out.
    ///
    /// # Errors
    /// [`ImageReadError`] but never `Corrupt`.
    pub async fn donate(&self, blocks: &[u64]) -> Result<Donation, ImageReadError> {
        // Before anything is read: what is applied meanwhile may be in the blocks, or not.
        let at = self.applied().point.lsn;
        let mut found = Vec::with_capacity(blocks.len());
        for &block in blocks {
            self.check_blocks(block.saturating_mul(PAGE), PAGE)?;
            match self.read_blocks(block, 1).await {
                Ok(current) => found.extend(current.into_iter().map(|current| ExportedBlock {
                    block,
                    crc: current.data.as_ref().map_or(0, |data| crc(data)),
                    data: current.data,
                    lsn: current.lsn,
                })),
                Err(ImageReadError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Donation { blocks: found, at })
    }

    /// Takes the place of a block that does not read back by another member's, as it was at `at` or later there; in memory: the next
    /// checkpoint makes it durable. Newer bytes of our own stay on top. A block that memory holds whole stays as it is.
    ///
    /// # Errors
    /// [`RepairError`]; nothing was changed.
    pub async fn repair(&self, given: &ExportedBlock, at: Lsn) -> Result<(), RepairError> {
        let block = given.block;
        let malformed = RepairError::Malformed { block };
        self.check_range(block.saturating_mul(PAGE), PAGE)
            .map_err(|_| malformed)?;
        let by_entry = given.lsn > Lsn::ZERO;
        let whole = |data: &Bytes| by_entry && data.len() == PAGE_BYTES && crc(data) == given.crc;
        if !given.data.as_ref().is_none_or(whole) {
            return Err(malformed);
        }
        let at = at.max(given.lsn);
        // While the files are of a copy that is not caught up, what they say of an entry is not what it made. No page of checksums: nothing
        // to compare with, either. What the page says stays true while it is awaited.
        let settled = self.checkpointed().point.lsn >= self.consistent_from.get();
        if settled && let Ok(stored) = self.sum(block).await {
            let same = stored.lsn == given.lsn;
            let other =
                content(stored.data, stored.crc) != content(given.data.is_some(), given.crc);
            let lacks = given.lsn < stored.lsn && stored.lsn <= at;
            if same && other || lacks {
                return Err(RepairError::Differs { block });
            }
        }
        if self.is_rebuilding() {
            return Err(RepairError::Rebuilding);
        }
        if given.lsn > self.applied().point.lsn {
            let lsn = given.lsn;
            return Err(RepairError::Ahead { block, lsn });
        }
        if at < self.checkpointed().point.lsn {
            return Err(RepairError::Behind { at });
        }
        self.put_below(given);
        Ok(())
    }

    /// What memory holds of a block.
    #[must_use]
    pub fn holding(&self, block: u64) -> Holding {
        match self.overlay.borrow().get(block).map(|dirty| dirty.content) {
            None => Holding::Nothing,
            Some(Content::Partial(_)) => Holding::Part,
            Some(Content::Data(_) | Content::Zero) => Holding::Whole,
        }
    }

    /// Puts a block under what memory holds of it.
    fn put_below(&self, given: &ExportedBlock) {
        let base = match &given.data {
            // A copy: what it is a part of may be much larger.
            Some(data) => Content::Data(Bytes::copy_from_slice(data)),
            None => Content::Zero,
        };
        let mut overlay = self.overlay.borrow_mut();
        let (content, lsn) = match overlay.get(given.block) {
            Some(Dirty {
                content: Content::Data(_) | Content::Zero,
                ..
            }) => return,
            Some(ours) if ours.lsn > given.lsn => (ours.content.onto(Some(&base)), ours.lsn),
            Some(_) | None => (base, given.lsn),
        };
        overlay.active.put_merged(given.block, content, lsn);
    }

    /// Reads the checksums of blocks past every cache. What the medium lost of those that memory has is written again by the next
    /// checkpoint: whether one is to come. Where memory has none, the blocks do not read back.
    ///
    /// # Errors
    /// [`ImageReadError`].
    pub async fn scrub_sums(&self, first: u64, count: u64) -> Result<bool, ImageReadError> {
        self.check_blocks(first.saturating_mul(PAGE), count.saturating_mul(PAGE))?;
        let mut due = false;
        for (number, blocks) in by_page(first..first + count) {
            due |= self.scrub_sums_page(number, blocks.start).await?;
        }
        Ok(due)
    }

    /// `block` is one of the page's: with any of them the page is written.
    async fn scrub_sums_page(&self, number: u64, block: u64) -> Result<bool, ImageReadError> {
        let forgotten = self.sums.forget_cached(number * PAGE, PAGE).await;
        forgotten.map_err(ImageReadError::Io)?;
        let version = self.version.get();
        let Some(known) = self.cache.get(number) else {
            return Ok(false);
        };
        let stored = self.stored_sums(number).await.map_err(ImageReadError::Io)?;
        if stored.is_some_and(|stored| stored.0 == known.0) {
            return Ok(false);
        }
        let current = self.read_blocks(block, 1).await?;
        // A checkpoint that has overwritten blocks meanwhile may have stored newer bytes than these, and has written the page.
        let under_way = self.flushing.borrow().contains_key(&number);
        if under_way || version != self.version.get() {
            return Ok(false);
        }
        for Current { data, lsn } in current {
            let crc = data.as_ref().map_or(0, |data| crc(data));
            let stored = ExportedBlock {
                block,
                data,
                crc,
                lsn,
            };
            self.put_below(&stored);
        }
        Ok(true)
    }

    /// As [`Image::scrub`], with what the page cache holds let go of first: it hides what the medium no longer gives back.
    ///
    /// # Errors
    /// The same.
    pub async fn scrub_medium(&self, first: u64, count: u64) -> Result<Vec<u64>, ImageReadError> {
        let (offset, len) = (first.saturating_mul(PAGE), count.saturating_mul(PAGE));
        self.image
            .forget_cached(offset, len)
            .await
            .map_err(ImageReadError::Io)?;
        self.scrub(first, count).await
    }
}
