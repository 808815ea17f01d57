//! Segment files: put to use in the foreground, unlinked when nothing needs them. `prepare.rs` makes them.
//!
//! A segment becomes part of the log when its header is durable. Numbers are never used twice; gaps mean nothing, as the
//! chain of positions and CRCs says what follows what.

use std::io;
use std::path::{Path, PathBuf};

use super::errors::RecycleError;
use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, is_no_descriptor, may_pass};
use crate::format::SegmentHeader;
use crate::recovery::scan::segment_name;

/// The segment that the writer appends to.
#[derive(Debug)]
pub(super) struct Active<F> {
    pub(super) file: F,
    pub(super) seq: u64,
    /// Where the next frame begins.
    ///
    /// Invariant: a multiple of the page size; nothing durable is at or behind it but perhaps a mark.
    pub(super) write_pos: u64,
    pub(super) file_bytes: u64,
}

impl<F> Active<F> {
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.write_pos + bytes <= self.file_bytes
    }
}

/// Opens a segment file for writing.
pub(super) async fn open_active<D: Disk>(
    disk: &D,
    dir: &Path,
    seq: u64,
    write_pos: u64,
    file_bytes: u64,
) -> io::Result<Active<D::File>> {
    let file = disk
        .open(
            &dir.join(segment_name(seq)),
            OpenMode::Write,
            Caching::Direct,
        )
        .await?;
    Ok(Active {
        file,
        seq,
        write_pos,
        file_bytes,
    })
}

/// Writes the header of a prepared segment: from here on it is part of the log. Durable on return.
pub(super) async fn activate<F: DiskFile>(
    active: &Active<F>,
    header: &SegmentHeader,
) -> io::Result<()> {
    let mut page = AlignedBuf::zeroed(crate::format::SEGMENT_HEADER_BYTES);
    header.encode(&mut page);
    active.file.write_durable(page, 0).await.0
}

/// Segment files that are no longer part of the log.
#[derive(Debug)]
#[must_use = "the files stay until the plan runs"]
pub struct RecyclePlan {
    pub(super) dir: PathBuf,
    pub(super) seqs: Vec<u64>,
}

impl RecyclePlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Unlinks the files, oldest first, each durable before the next: a crash must not leave a gap. Returns how many.
    ///
    /// May run on any thread while appends go on. Run plans of one log in the order they were made. Dropped half way,
    /// the rest comes back at the next open, as part of the log.
    ///
    /// # Errors
    /// [`RecycleError`]; the rest comes back at the next open.
    pub async fn run<D: Disk>(&self, disk: &D) -> Result<usize, RecycleError> {
        self.run_gently(disk, || true).await
    }

    /// As [`RecyclePlan::run`], with time between any two files: where the file system tells the disk of what it frees (`discard`),
    /// everybody's writes wait until that is done, 10 ms and more for each. `nap` lets some time pass and says whether to go on.
    ///
    /// A file goes whole, never a piece at a time: readers may have it mapped, and a mapping outlives its file's name, but not its length.
    ///
    /// # Errors
    /// As for `run`.
    pub async fn run_gently<D: Disk>(
        &self,
        disk: &D,
        mut nap: impl FnMut() -> bool,
    ) -> Result<usize, RecycleError> {
        let mut gone = 0;
        for seq in &self.seqs {
            if gone > 0 && !nap() {
                break;
            }
            match disk.remove(&self.dir.join(segment_name(*seq))).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if may_pass(&error) => return Err(RecycleError::Refused(error)),
                Err(error) => return Err(RecycleError::Failed(error)),
            }
            match disk.sync_dir(&self.dir).await {
                Ok(()) => {}
                // Of room or memory, the sync itself may have said it.
                Err(error) if is_no_descriptor(&error) => return Err(RecycleError::Refused(error)),
                Err(error) => return Err(RecycleError::Failed(error)),
            }
            gone += 1;
        }
        Ok(gone)
    }
}
