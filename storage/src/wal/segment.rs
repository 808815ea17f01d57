//! Segment files: made in the background, put to use in the foreground, unlinked when nothing needs them.
//!
//! A segment is born zero-filled under a temporary name, gets its own name once the zeroes are durable, and becomes
//! part of the log when its header is. Numbers are never used twice; gaps mean nothing, as the chain of positions
//! and CRCs says what follows what.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode};
use crate::format::SegmentHeader;
use crate::recovery::scan::segment_name;

/// Zeroes written at once when there is time: little enough that a write of the log behind them hardly notices.
const FILL_BYTES: u64 = 256 << 10;

/// The same when the log comes close: what is not ready in time is made while the log waits.
const FILL_BYTES_LATE: u64 = 1 << 20;

/// A nap between two such writes while the log has not come far enough, and how many there are at most.
const NAP: Duration = Duration::from_millis(5);
const NAPS: u32 = 4;

/// Everything needed to prepare a segment, here or on another thread.
#[derive(Debug)]
#[must_use = "the number is taken: run the plan and hand its result to `Wal::adopt`"]
pub struct PreparePlan {
    pub(super) dir: PathBuf,
    pub(super) seq: u64,
    pub(super) bytes: u64,
    /// How far the active segment is written.
    pub(super) written: Arc<AtomicU64>,
}

/// A zero-filled segment that no log uses yet. Dropping it leaves a file that the next open finds and uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PreparedSegment {
    pub(super) seq: u64,
    pub(super) bytes: u64,
}

impl PreparePlan {
    /// Writes the zeroes, gives the file its name, syncs the directory. Durable on return.
    ///
    /// Independent of the writer: may run on any thread while appends go on, or be dropped half way.
    ///
    /// # Errors
    /// The disk's. What was written is removed again as far as the disk lets us; the log is as it was.
    pub async fn run<D: Disk>(self, disk: &D) -> io::Result<PreparedSegment> {
        self.run_with(disk, None).await
    }

    /// As [`PreparePlan::run`], but in small writes that keep somewhat ahead of the log, with naps (`nap` blocks the thread for
    /// so long) in between: all zeroes at once would hold up the log's own writes for as long as they take, on all copies at the same
    /// time. The naps end after a while, however little is appended.
    ///
    /// # Errors
    /// As for `run`.
    pub async fn run_beside<D: Disk>(
        self,
        disk: &D,
        nap: fn(Duration),
    ) -> io::Result<PreparedSegment> {
        self.run_with(disk, Some(nap)).await
    }

    async fn run_with<D: Disk>(
        self,
        disk: &D,
        nap: Option<fn(Duration)>,
    ) -> io::Result<PreparedSegment> {
        let name = segment_name(self.seq);
        let temporary = self.dir.join(format!("{name}.tmp"));
        let path = self.dir.join(name);
        let result = self.fill(disk, &temporary, &path, nap).await;
        if result.is_err() {
            // Gives space back to whoever needs it; a file that stays is removed at the next open.
            disk.remove(&temporary).await.ok();
        }
        result
    }

    async fn fill<D: Disk>(
        &self,
        disk: &D,
        temporary: &Path,
        path: &Path,
        nap: Option<fn(Duration)>,
    ) -> io::Result<PreparedSegment> {
        let file = disk
            .open(temporary, OpenMode::CreateNew, Caching::Direct)
            .await?;
        match nap {
            None => file.allocate_zeroed(self.bytes).await?,
            Some(nap) => self.fill_beside(&file, nap).await?,
        }
        drop(file);
        disk.rename(temporary, path).await?;
        disk.sync_dir(&self.dir).await?;
        Ok(PreparedSegment {
            seq: self.seq,
            bytes: self.bytes,
        })
    }

    async fn fill_beside<F: DiskFile>(&self, file: &F, nap: fn(Duration)) -> io::Result<()> {
        let mut at = 0;
        let mut buf = AlignedBuf::zeroed(usize::try_from(FILL_BYTES_LATE).expect("fits"));
        while at < self.bytes {
            let most = if self.leads(at) {
                FILL_BYTES
            } else {
                FILL_BYTES_LATE
            };
            let part = most.min(self.bytes - at);
            buf.set_len(usize::try_from(part).expect("at most FILL_BYTES_LATE"));
            let (result, back) = file.write_at(buf, at).await;
            result?;
            buf = back;
            at += part;
            let mut naps = 0;
            while naps < NAPS && self.leads(at) {
                nap(NAP);
                naps += 1;
            }
        }
        file.sync().await
    }

    /// Whether zeroes up to `at` are half as far again as the log, so that the last byte is not a race.
    fn leads(&self, at: u64) -> bool {
        at * 2 > self.written.load(Ordering::Relaxed) * 3
    }
}

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
pub(super) async fn activate<D: Disk>(
    disk: &D,
    dir: &Path,
    header: &SegmentHeader,
) -> io::Result<Active<D::File>> {
    let active = open_active(
        disk,
        dir,
        header.seq,
        crate::engine::PAGE,
        header.file_bytes,
    )
    .await?;
    let mut page = AlignedBuf::zeroed(crate::format::SEGMENT_HEADER_BYTES);
    header.encode(&mut page);
    active.file.write_durable(page, 0).await.0?;
    Ok(active)
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
    /// The disk's; the rest comes back at the next open.
    pub async fn run<D: Disk>(self, disk: &D) -> io::Result<usize> {
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
        self,
        disk: &D,
        mut nap: impl FnMut() -> bool,
    ) -> io::Result<usize> {
        let mut gone = 0;
        for seq in &self.seqs {
            if gone > 0 && !nap() {
                break;
            }
            match disk.remove(&self.dir.join(segment_name(*seq))).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => disk.sync_dir(&self.dir).await?,
            }
            gone += 1;
        }
        Ok(gone)
    }
}
