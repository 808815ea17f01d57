//! Which real engine, and the runtime that belongs to it.

use std::future::Future;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::{
    AlignedBuf, Caching, Disk, DiskFile, OpenMode, ThreadsDisk, ThreadsFile, UringDisk, UringFile,
    syscall,
};

/// A real engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// Data through io_uring.
    Uring,
    /// Plain system calls.
    Threads,
}

impl Engine {
    /// The ring where the kernel allows it, plain calls elsewhere.
    #[must_use]
    pub fn probe() -> Self {
        if probe_uring() {
            Self::Uring
        } else {
            Self::Threads
        }
    }
}

/// Whether this process may use io_uring: containers often forbid it (`EPERM`), old kernels lack it (`ENOSYS`).
///
/// Makes a ring and runs one operation through it, on a thread of its own. Blocks for about a millisecond.
#[must_use]
pub fn probe_uring() -> bool {
    if !syscall::ring_permitted() {
        return false;
    }
    let probe = || {
        let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).ok()?;
        runtime.block_on(tokio_uring::no_op()).ok()
    };
    std::thread::spawn(probe)
        .join()
        .is_ok_and(|answer| answer.is_some())
}

/// Runs `make(disk)` to its end on the current thread, in a new runtime of the right kind.
///
/// Blocks the thread. Tasks may be started with `tokio::task::spawn_local` inside; all of them must have ended or
/// may be dropped when `make`'s future ends. Must not be called from within another runtime.
///
/// # Errors
/// The runtime could not be made.
pub fn run_on<F, M>(engine: Engine, make: M) -> io::Result<F::Output>
where
    M: FnOnce(RealDisk) -> F,
    F: Future,
{
    match engine {
        Engine::Uring => {
            let mut builder = tokio_uring::builder();
            builder.entries(256);
            let runtime = tokio_uring::Runtime::new(&builder)?;
            Ok(runtime.block_on(make(RealDisk::Uring(UringDisk))))
        }
        Engine::Threads => {
            // No I/O driver: nothing here waits for a descriptor, and a thread that waits for a value and a time alone is
            // woken without one.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()?;
            let local = tokio::task::LocalSet::new();
            Ok(local.block_on(&runtime, make(RealDisk::Threads(ThreadsDisk))))
        }
    }
}

/// Either real engine, chosen at start.
#[derive(Clone, Copy, Debug)]
pub enum RealDisk {
    /// Through a ring.
    Uring(UringDisk),
    /// By plain system calls.
    Threads(ThreadsDisk),
}

/// A file of [`RealDisk`].
#[derive(Clone, Debug)]
pub enum RealFile {
    /// Through a ring.
    Uring(UringFile),
    /// By plain system calls.
    Threads(ThreadsFile),
}

macro_rules! both {
    ($kind:ident, $this:expr, $inner:ident => $call:expr) => {
        match $this {
            $kind::Uring($inner) => $call,
            $kind::Threads($inner) => $call,
        }
    };
}

impl Disk for RealDisk {
    type File = RealFile;

    fn name(&self) -> &'static str {
        both!(Self, self, disk => disk.name())
    }

    async fn open(&self, path: &Path, mode: OpenMode, caching: Caching) -> io::Result<RealFile> {
        match self {
            Self::Uring(disk) => disk.open(path, mode, caching).await.map(RealFile::Uring),
            Self::Threads(disk) => disk.open(path, mode, caching).await.map(RealFile::Threads),
        }
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        both!(Self, self, disk => disk.create_dir_all(path).await)
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        both!(Self, self, disk => disk.list(path).await)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        both!(Self, self, disk => disk.rename(from, to).await)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        both!(Self, self, disk => disk.remove(path).await)
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        both!(Self, self, disk => disk.sync_dir(path).await)
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        both!(Self, self, disk => disk.exists(path).await)
    }

    async fn map_sealed(&self, path: &Path) -> Option<io::Result<Bytes>> {
        both!(Self, self, disk => disk.map_sealed(path).await)
    }
}

impl DiskFile for RealFile {
    async fn read_at(&self, buf: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf) {
        both!(Self, self, file => file.read_at(buf, offset).await)
    }

    async fn write_at(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        both!(Self, self, file => file.write_at(buf, offset).await)
    }

    async fn write_durable(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        both!(Self, self, file => file.write_durable(buf, offset).await)
    }

    async fn sync(&self) -> io::Result<()> {
        both!(Self, self, file => file.sync().await)
    }

    async fn sync_beside(&self) -> io::Result<()> {
        both!(Self, self, file => file.sync_beside().await)
    }

    async fn write_out(&self, offset: u64, len: u64) -> io::Result<()> {
        both!(Self, self, file => file.write_out(offset, len).await)
    }

    async fn forget_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        both!(Self, self, file => file.forget_cached(offset, len).await)
    }

    async fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        both!(Self, self, file => file.punch_hole(offset, len).await)
    }

    async fn len(&self) -> io::Result<u64> {
        both!(Self, self, file => file.len().await)
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        both!(Self, self, file => file.reserve(offset, len).await)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        both!(Self, self, file => file.set_len(len).await)
    }
}
