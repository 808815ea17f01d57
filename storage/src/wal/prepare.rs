//! The next segment: zero-filled beside the log, under a temporary name, and given its own once the zeroes are durable.
//!
//! A flush of the disk pays for all bytes that were written since the last one, whoever wrote them, and all copies of a log fill at about
//! the same moment. So zeroes are written a little at a time and synced at once, right after the log's own sync: then those who were
//! answered are busy with the next round, and the disk has nothing else to do.
//!
//! Zeroes are bytes like others, though: a log whose frames are large fills the disk with them twice. For such a log, and while the log
//! waits, space is only reserved. It reads as zeroes just the same; the first sync behind a write there takes some 100 us longer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode};
use crate::recovery::scan::segment_name;

/// Zeroes written at once when there is time.
const FILL_BYTES: u64 = 128 << 10;

/// The same when the log comes close: what is not ready in time is made while the log waits.
const FILL_BYTES_LATE: u64 = 1 << 20;

/// Behind an eighth more than the log by so much is late.
const LATE_BYTES: u64 = 512 << 10;

/// From so many bytes a frame on, space is reserved: then zeroes cost more than syncs that take longer.
const RESERVE_FROM: u64 = 256 << 10;

/// The next zeroes do not wait longer for the log, so that an idle log's next segment is ready, too.
const WAIT_LONGEST: Duration = Duration::from_millis(20);

/// How far the log is in its active segment, as told to whoever prepares the next one beside it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    written: AtomicU64,
    /// So many frames were written to it by this process.
    frames: AtomicU64,
    /// Who wants to know when the log is how far.
    waiting: Mutex<Option<(u64, Thread)>>,
}

impl Progress {
    pub(super) fn at(written: u64) -> Self {
        Self {
            written: AtomicU64::new(written),
            ..Self::default()
        }
    }

    /// A new segment was begun.
    pub(super) fn begin(&self) {
        self.written.store(0, Ordering::Relaxed);
        self.frames.store(0, Ordering::Relaxed);
    }

    /// A frame was written, and the log is that far now.
    pub(super) fn set(&self, written: u64) {
        self.written.store(written, Ordering::Relaxed);
        self.frames.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the frames of this segment are large, as far as they are known.
    fn large_frames(&self) -> bool {
        let frames = self.frames.load(Ordering::Relaxed);
        self.get().checked_div(frames) >= Some(RESERVE_FROM)
    }

    fn get(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Wakes who waits for the log, if it has come that far.
    pub(super) fn tell(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, thread)) = waiting.take_if(|(at, _)| *at <= self.get()) {
            thread.unpark();
        }
    }

    /// Waits until the log is at `at`, or until `nap`, which parks the calling thread for a time, comes back.
    fn wait_for(&self, at: u64, nap: fn(Duration)) {
        let set = |waiting| {
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
        };
        set(Some((at, std::thread::current())));
        if self.get() < at {
            nap(WAIT_LONGEST);
        }
        set(None);
    }
}

/// Everything needed to prepare a segment, here or on another thread.
#[derive(Debug)]
#[must_use = "the number is taken: run the plan and hand its result to `Wal::adopt`"]
pub struct PreparePlan {
    pub(super) dir: PathBuf,
    pub(super) seq: u64,
    pub(super) bytes: u64,
    pub(super) progress: Arc<Progress>,
}

/// A zero-filled segment that no log uses yet. Dropping it leaves a file that the next open finds and uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PreparedSegment {
    pub(super) seq: u64,
    pub(super) bytes: u64,
}

/// How a segment is filled.
enum Fill {
    AtOnce,
    /// Space only, where the file system can.
    Reserve,
    /// Little by little, with naps.
    Beside(fn(Duration)),
}

impl PreparePlan {
    /// Writes the zeroes, gives the file its name, syncs the directory. Durable on return.
    ///
    /// Independent of the writer: may run on any thread while appends go on, or be dropped half way.
    ///
    /// # Errors
    /// The disk's. What was written is removed again as far as the disk lets us; the log is as it was.
    pub async fn run<D: Disk>(self, disk: &D) -> io::Result<PreparedSegment> {
        self.run_with(disk, Fill::AtOnce).await
    }

    /// As [`PreparePlan::run`], for a log that waits: space is reserved where the file system can.
    pub(super) async fn run_now<D: Disk>(self, disk: &D) -> io::Result<PreparedSegment> {
        self.run_with(disk, Fill::Reserve).await
    }

    /// As [`PreparePlan::run`], but in small writes that keep somewhat ahead of the log: all zeroes at once would hold up the log's own
    /// writes for as long as they take. Blocks its thread in `nap`, which is `std::thread::park_timeout`, until
    /// [`Wal::tell_progress`](super::Wal::tell_progress) says that the log has come near; and never for long, however little is appended.
    ///
    /// # Errors
    /// As for `run`.
    pub async fn run_beside<D: Disk>(
        self,
        disk: &D,
        nap: fn(Duration),
    ) -> io::Result<PreparedSegment> {
        self.run_with(disk, Fill::Beside(nap)).await
    }

    async fn run_with<D: Disk>(self, disk: &D, fill: Fill) -> io::Result<PreparedSegment> {
        let name = segment_name(self.seq);
        let temporary = self.dir.join(format!("{name}.tmp"));
        let path = self.dir.join(name);
        let result = self.fill(disk, &temporary, &path, fill).await;
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
        fill: Fill,
    ) -> io::Result<PreparedSegment> {
        let file = disk
            .open(temporary, OpenMode::CreateNew, Caching::Direct)
            .await?;
        match fill {
            Fill::Reserve if file.reserve(0, self.bytes).await? => file.sync().await?,
            Fill::AtOnce | Fill::Reserve => file.allocate_zeroed(self.bytes).await?,
            Fill::Beside(nap) => self.fill_beside(&file, nap).await?,
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
        let mut buf = AlignedBuf::zeroed(usize::try_from(FILL_BYTES_LATE).expect("fits"));
        let mut at = 0;
        while at < self.bytes {
            // Half as far again as the log, so that the last byte is not a race.
            self.progress.wait_for(at / 3 * 2, nap);
            if self.progress.large_frames() && file.reserve(at, self.bytes - at).await? {
                break;
            }
            let late = at + LATE_BYTES < self.progress.get() / 8 * 9;
            let part = if late { FILL_BYTES_LATE } else { FILL_BYTES };
            let part = part.min(self.bytes - at);
            buf.set_len(usize::try_from(part).expect("at most FILL_BYTES_LATE"));
            let (result, back) = file.write_at(buf, at).await;
            result?;
            buf = back;
            at += part;
            if !late {
                file.sync().await?;
            }
        }
        file.sync().await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::Pin;
    use std::rc::Rc;

    use super::*;
    use crate::engine::SimDisk;
    use crate::engine::sim::{OpKind, SimHook, SimOp, Stage};
    use crate::testing::block_on;

    /// Longer than any test waits in vain.
    const NEVER: Duration = Duration::from_secs(60);

    /// Parks until it is woken, however long it is told.
    fn until_woken(_: Duration) {
        std::thread::park_timeout(NEVER);
    }

    #[test]
    fn who_waits_for_the_log_is_woken_when_it_has_come_that_far_and_not_before() {
        let progress = Arc::new(Progress::at(100));
        let (woken_to, woken) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn({
            let progress = progress.clone();
            move || {
                progress.wait_for(100, |_| unreachable!("the log is there"));
                progress.wait_for(200, until_woken);
                woken_to.send(progress.get()).expect("the test waits");
            }
        });
        while progress.waiting.lock().expect("lock").is_none() {
            std::thread::yield_now();
        }
        progress.set(199);
        progress.tell();
        assert!(progress.waiting.lock().expect("lock").is_some());
        progress.set(200);
        progress.tell();
        assert_eq!(woken.recv_timeout(NEVER / 2), Ok(200));
        waiter.join().expect("it ends");
    }

    #[test]
    fn zeroes_are_small_and_synced_while_there_is_time_and_large_when_the_log_comes_close() {
        assert_eq!(operations(Progress::at(4096)), (16, 17));
        assert_eq!(operations(Progress::at(3 << 20)), (2, 1));
    }

    #[test]
    fn a_log_of_large_frames_is_not_written_twice() {
        let (small, large) = (Progress::default(), Progress::default());
        small.set(RESERVE_FROM - 1);
        large.set(RESERVE_FROM);
        let reserved = (1, 1);
        assert_ne!(operations(small), reserved);
        assert_eq!(operations(large), reserved);
    }

    /// Writes and syncs that it takes to fill 2 MiB beside a log that is so far. The simulated disk reserves by one write.
    fn operations(progress: Progress) -> (u32, u32) {
        let disk = SimDisk::immediate(1);
        let counts = Rc::new(Counts::default());
        let seen = disk.with_hook(counts.clone());
        let dir = PathBuf::from("/v");
        block_on(disk.create_dir_all(&dir)).expect("directory");
        let plan = PreparePlan {
            dir,
            seq: 1,
            bytes: 2 << 20,
            progress: Arc::new(progress),
        };
        block_on(plan.run_beside(&seen, |_| {})).expect("room");
        (counts.writes.get(), counts.syncs.get())
    }

    #[derive(Debug, Default)]
    struct Counts {
        writes: Cell<u32>,
        syncs: Cell<u32>,
    }

    impl SimHook for Counts {
        fn operation(&self, op: SimOp<'_>) -> Pin<Box<dyn Future<Output = ()>>> {
            match (op.kind, op.stage) {
                (OpKind::Write, Stage::Before) => self.writes.set(self.writes.get() + 1),
                (OpKind::Sync, Stage::Before) => self.syncs.set(self.syncs.get() + 1),
                _ => {}
            }
            Box::pin(std::future::ready(()))
        }
    }
}
