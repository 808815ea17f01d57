//! A block volume's content behind its log: changes in memory, checksummed blocks on disk, checkpoints between them.
//!
//! Rules:
//!
//! - Only committed entries are applied, in LSN order; the caller sees to it, the order is checked.
//! - A block read from disk is verified. What does not verify is reported for repair, never returned.
//! - Until a checkpoint is recorded, replay from the recorded position gives the same content: whatever the log alone
//!   cannot make again is in the intent before it is overwritten.
//! - No borrow is held across an await; the content on disk changes only between two changes of `version`.

mod flush;
mod intent;
mod overlay;
mod read;
mod rebuild;
mod repair;
mod sums;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use mainstay_types::{Lineage, Lsn};

use crate::checkpoint::{Checkpoint, CheckpointFile, CheckpointFileError};
use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, PAGE};
use crate::format::{EntryKind, EntryRef, FLAG_ALLOCATED, LogEnd, range_of};
use crate::recovery::scan::read_content;
pub use flush::{AtOnce, Pace};
#[cfg(test)]
pub(crate) use intent::LAYOUT as INTENT_LAYOUT;
use intent::{Intent, Target};
use overlay::Overlay;
pub use overlay::range_held;
pub use repair::{Donation, Holding, RepairError};
#[cfg(test)]
pub(crate) use sums::LAYOUT as SUMS_LAYOUT;
use sums::{BLOCKS_PER_PAGE, SumsCache, SumsPage};

/// Longest range of one trim or zeroes entry; split longer ones before they are logged.
pub const RANGE_BYTES_MAX: u64 = 64 << 20;

/// What an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageConfig {
    /// Seeds the checksums of its pages: the log's lineage.
    pub lineage: Lineage,
    /// Its size, a multiple of 4096.
    pub size_bytes: u64,
    /// Pages of checksums kept in memory; each is 4 KiB and covers about 1 MiB of the volume.
    pub sums_pages: usize,
}

/// Why an image could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageOpenError {
    /// A size that is not a whole number of blocks.
    #[error("volume size {size_bytes} is not a positive multiple of 4096")]
    Size {
        /// Asked for.
        size_bytes: u64,
    },
    /// The image file is shorter than the volume.
    #[error("image holds {found} bytes, the volume {expected}")]
    Length {
        /// In the file system.
        found: u64,
        /// The volume's.
        expected: u64,
    },
    /// The checkpoint does not read back.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointFileError),
    /// The disk refused.
    #[error("image")]
    Io(#[from] io::Error),
}

/// Why an entry was not applied. A committed entry that cannot be applied stops the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Not the entry after the last one applied.
    #[error("entry {found}, expected {expected}")]
    Order {
        /// The entry's.
        found: Lsn,
        /// Next to apply.
        expected: Lsn,
    },
    /// Outside the volume.
    #[error("range {offset}+{len} is outside a volume of {size_bytes} bytes")]
    Range {
        /// Its offset.
        offset: u64,
        /// Its length.
        len: u64,
        /// The volume's.
        size_bytes: u64,
    },
    /// A range above [`RANGE_BYTES_MAX`], or a payload that is no range.
    #[error("malformed range entry")]
    Malformed,
    /// The image is being replaced.
    #[error("the image is being rebuilt")]
    Rebuilding,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageReadError {
    /// Outside the volume.
    #[error("range {offset}+{len} is outside the volume")]
    Range {
        /// Asked for.
        offset: u64,
        /// Asked for.
        len: u64,
    },
    /// The block does not match its checksum, or the medium does not give it back: repair it from another member.
    #[error("block {block} does not read back")]
    Corrupt {
        /// Block number.
        block: u64,
    },
    /// An interrupted checkpoint left blocks of later entries: apply the log up to `need` first.
    #[error("the log must be applied up to {need} first")]
    NotReplayed {
        /// Last LSN of the interrupted checkpoint.
        need: Lsn,
    },
    /// The image is being replaced.
    #[error("the image is being rebuilt")]
    Rebuilding,
    /// The disk refused.
    #[error("read image")]
    Io(#[source] io::Error),
}

/// Why a checkpoint did not happen. The applied position on disk is what it was.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Another one runs.
    #[error("a checkpoint is running")]
    Busy,
    /// A block that later entries changed in part does not read back: repair it, then try again.
    #[error("block {block} does not read back")]
    Corrupt {
        /// Block number.
        block: u64,
    },
    /// An interrupted checkpoint left blocks of later entries: apply the log up to `need` first.
    #[error("the log must be applied up to {need} first")]
    NotReplayed {
        /// Last LSN of the interrupted checkpoint.
        need: Lsn,
    },
    /// A block that does not match its own CRC or is outside the volume. A fault of the donor.
    #[error("imported block {block} is malformed")]
    Import {
        /// Block number.
        block: u64,
    },
    /// No room, or no descriptor for its record. Nothing is lost; may be repeated.
    #[error("no room for the checkpoint")]
    NoSpace(#[source] io::Error),
    /// The image is being replaced.
    #[error("the image is being rebuilt")]
    Rebuilding,
    /// A write or sync failed, now or earlier: finished for this process.
    #[error("image finished for this process: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
}

/// A block as given to another member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportedBlock {
    /// Its number.
    pub block: u64,
    /// Its 4096 bytes; `None` for a block that reads as zeroes.
    pub data: Option<Bytes>,
    /// CRC-32 of its bytes; zero without data.
    pub crc: u32,
    /// Last entry that changed it.
    pub lsn: Lsn,
}

/// A run of blocks of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether it holds data; otherwise it reads as zeroes.
    pub allocated: bool,
    /// Whether an entry behind the one asked about changed it: a write, a trim or zeroes, whatever was there before. True wherever
    /// that is not known.
    pub changed: bool,
}

/// An open image. Methods take `&self`: reads run beside a checkpoint on one thread.
#[derive(Debug)]
pub struct Image<D: Disk> {
    config: ImageConfig,
    image: D::File,
    sums: D::File,
    intents: [D::File; 2],
    record: CheckpointFile<D>,
    overlay: RefCell<Overlay>,
    cache: SumsCache,
    /// Pages of a running checkpoint, ahead of those in the file.
    flushing: RefCell<BTreeMap<u64, Rc<SumsPage>>>,
    /// Changes whenever blocks on disk begin or end to change.
    version: Cell<u64>,
    /// Last entry in memory. Invariant: at or above `checkpointed`.
    applied: Cell<LogEnd>,
    /// Recorded on disk. Never falls but by a rebuild.
    checkpointed: Cell<LogEnd>,
    fuzzy_until: Cell<Option<Lsn>>,
    /// Sequence of the last intent written, and so which file comes next.
    sequence: Cell<u64>,
    busy: Cell<bool>,
    /// How much of the frozen layer a checkpoint under way has written, and of how much.
    written: Cell<(u64, u64)>,
    rebuilding: Cell<bool>,
    /// A full copy was made while its donor changed: its blocks may be of entries up to here, whatever is applied.
    consistent_from: Cell<Lsn>,
    poisoned: RefCell<Option<String>>,
}

const IMAGE: &str = "image";
const SUMS: &str = "image.sums";
const INTENTS: [&str; 2] = ["image.intent0", "image.intent1"];

impl<D: Disk> Image<D> {
    /// Makes the files of an empty image, with a checkpoint at `start`. Durable on return.
    ///
    /// # Errors
    /// [`ImageOpenError`]; remove what is there and create again.
    pub async fn create(
        disk: D,
        dir: &Path,
        config: ImageConfig,
        start: LogEnd,
        blob: Bytes,
    ) -> Result<Self, ImageOpenError> {
        check_size(config.size_bytes)?;
        disk.create_dir_all(dir).await?;
        for name in [IMAGE, SUMS, INTENTS[0], INTENTS[1]] {
            let file = disk
                .open(&dir.join(name), OpenMode::CreateNew, Caching::Buffered)
                .await?;
            match name {
                IMAGE => file.set_len(config.size_bytes).await?,
                SUMS => file.set_len(sums_bytes(config.size_bytes)).await?,
                _ => {}
            }
            file.sync().await?;
        }
        disk.sync_dir(dir).await?;
        let checkpoint = Checkpoint {
            applied: start,
            rebuilding: false,
            blob,
        };
        CheckpointFile::new(disk.clone(), dir, config.lineage)
            .store(&checkpoint)
            .await?;
        Ok(Self::open(disk, dir, config).await?.0)
    }

    /// Opens the files, finishes what an interrupted checkpoint had promised, and gives back the recorded position
    /// and the caller's blob: replay the log from there on.
    ///
    /// # Errors
    /// [`ImageOpenError`]; a damaged checkpoint means that the image must be rebuilt.
    pub async fn open(
        disk: D,
        dir: &Path,
        config: ImageConfig,
    ) -> Result<(Self, Checkpoint), ImageOpenError> {
        check_size(config.size_bytes)?;
        let record = CheckpointFile::new(disk.clone(), dir, config.lineage);
        let checkpoint = record.load().await?;
        let open = async |name: &str| {
            disk.open(&dir.join(name), OpenMode::Write, Caching::Buffered)
                .await
        };
        let image = open(IMAGE).await?;
        let found = image.len().await?;
        if found != config.size_bytes {
            return Err(ImageOpenError::Length {
                found,
                expected: config.size_bytes,
            });
        }
        let this = Self {
            config,
            image,
            sums: open(SUMS).await?,
            intents: [open(INTENTS[0]).await?, open(INTENTS[1]).await?],
            record,
            overlay: RefCell::default(),
            cache: SumsCache::new(config.sums_pages),
            flushing: RefCell::default(),
            version: Cell::new(0),
            applied: Cell::new(checkpoint.applied),
            checkpointed: Cell::new(checkpoint.applied),
            fuzzy_until: Cell::new(None),
            sequence: Cell::new(0),
            busy: Cell::new(false),
            written: Cell::new((0, 1)),
            rebuilding: Cell::new(checkpoint.rebuilding),
            consistent_from: Cell::new(Lsn::ZERO),
            poisoned: RefCell::new(None),
        };
        this.redo(&disk, dir).await?;
        Ok((this, checkpoint))
    }

    /// Writes again what the intent of an interrupted checkpoint holds.
    async fn redo(&self, disk: &D, dir: &Path) -> io::Result<()> {
        let mut last: Option<Intent> = None;
        for name in INTENTS {
            let path: PathBuf = dir.join(name);
            let content = read_content(disk, &path, u64::MAX).await?;
            if let Some(intent) = Intent::decode(self.config.lineage, &content.bytes)
                && last
                    .as_ref()
                    .is_none_or(|found| found.header.sequence < intent.header.sequence)
            {
                last = Some(intent);
            }
        }
        let Some(intent) = last else { return Ok(()) };
        self.sequence.set(intent.header.sequence);
        let applied = self.checkpointed.get().point.lsn;
        if self.rebuilding.get() || intent.header.base != applied {
            return Ok(());
        }
        for (target, content) in &intent.items {
            let page = AlignedBuf::padded_from(content);
            match target {
                Target::Block(block) if *block < self.blocks() => {
                    self.image.write_at(page, block * PAGE).await.0?
                }
                Target::Sums(number) if *number <= self.blocks() / BLOCKS_PER_PAGE => {
                    self.sums.write_at(page, number * PAGE).await.0?;
                }
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "intent outside the volume",
                    ));
                }
            }
        }
        self.image.sync().await?;
        self.sums.sync().await?;
        if intent.header.target > applied {
            self.fuzzy_until.set(Some(intent.header.target));
        }
        Ok(())
    }

    /// Takes a committed entry into memory, in LSN order. Entries that are no block change only advance the position.
    /// Not durable: the log is. No I/O.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing was changed.
    pub fn apply(&self, entry: &EntryRef) -> Result<(), ApplyError> {
        if self.rebuilding.get() {
            return Err(ApplyError::Rebuilding);
        }
        let lsn = entry.header.point.lsn;
        let expected = self.applied.get().point.lsn.next();
        if lsn != expected {
            return Err(ApplyError::Order {
                found: lsn,
                expected,
            });
        }
        let offset = entry.header.arg;
        match entry.header.kind {
            EntryKind::Write => {
                let payload = entry.payload();
                self.check_range(offset, payload.len() as u64)?;
                self.overlay
                    .borrow_mut()
                    .active
                    .write(offset, &payload, lsn);
            }
            EntryKind::Trim | EntryKind::Zeroes => {
                let len = range_of(&entry.payload()).map_err(|_| ApplyError::Malformed)?;
                if len > RANGE_BYTES_MAX {
                    return Err(ApplyError::Malformed);
                }
                self.check_range(offset, len)?;
                let active = &mut self.overlay.borrow_mut().active;
                let kept = entry.header.kind == EntryKind::Zeroes
                    && entry.header.flags & FLAG_ALLOCATED != 0;
                active.zero(offset, len, lsn, kept);
            }
            _ => {}
        }
        self.applied.set(entry.header.end());
        if self.fuzzy_until.get().is_some_and(|need| need <= lsn) {
            self.fuzzy_until.set(None);
        }
        Ok(())
    }

    /// Last entry applied in memory.
    #[must_use]
    pub fn applied(&self) -> LogEnd {
        self.applied.get()
    }

    /// Position recorded on disk: the image needs no entry at or below it.
    #[must_use]
    pub fn checkpointed(&self) -> LogEnd {
        self.checkpointed.get()
    }

    /// LSN up to which the log must be applied before reads are answered, after an interrupted checkpoint.
    #[must_use]
    pub fn fuzzy_until(&self) -> Option<Lsn> {
        self.fuzzy_until.get()
    }

    /// Whether the image is being replaced: only `begin_rebuild`, `import_blocks` and `finish_rebuild` work.
    #[must_use]
    pub fn is_rebuilding(&self) -> bool {
        self.rebuilding.get()
    }

    /// Tells up to which entry the blocks of a full copy may be, however little of the log is applied.
    pub fn set_consistent_from(&self, lsn: Lsn) {
        self.consistent_from.set(lsn);
    }

    /// Changes that are not on disk, for back-pressure: the memory that they hold, less what a checkpoint under way has written of it. That
    /// part is let go of at the checkpoint's end, but it falls as the disk gets on, so that whoever waits goes at the disk's speed.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        let overlay = self.overlay.borrow();
        let frozen = overlay.frozen_bytes();
        let (written, total) = self.written.get();
        overlay.bytes() - frozen.saturating_mul(written) / total
    }

    /// Size of the volume.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.config.size_bytes
    }

    fn blocks(&self) -> u64 {
        self.config.size_bytes / PAGE
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), ApplyError> {
        let size_bytes = self.config.size_bytes;
        if offset.checked_add(len).is_some_and(|end| end <= size_bytes) {
            Ok(())
        } else {
            Err(ApplyError::Range {
                offset,
                len,
                size_bytes,
            })
        }
    }
}

fn check_size(size_bytes: u64) -> Result<(), ImageOpenError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(PAGE) || i64::try_from(size_bytes).is_err() {
        return Err(ImageOpenError::Size { size_bytes });
    }
    Ok(())
}

fn sums_bytes(size_bytes: u64) -> u64 {
    (size_bytes / PAGE).div_ceil(BLOCKS_PER_PAGE) * PAGE
}
