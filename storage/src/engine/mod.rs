//! The I/O contract, and the choice among its homes.
//!
//! Rules: buffers are owned and aligned, and always come back. On a file opened [`Caching::Direct`], offsets and
//! lengths are multiples of [`PAGE_BYTES`]. A write reaches the disk whole or is an error. A future dropped half way
//! leaves the operation's effect unknown, as a crash does. Nothing here retries a failed write or sync.

mod buf;
#[cfg(test)]
mod contract;
mod run;
pub mod sim;
mod syscall;
mod threads;
mod uring;

use std::future::Future;
use std::io;
use std::path::Path;

use bytes::Bytes;

pub use buf::AlignedBuf;
pub use run::{Engine, RealDisk, RealFile, probe_uring, run_on};
pub use sim::SimDisk;
pub use threads::{ThreadsDisk, ThreadsFile};
pub use uring::{UringDisk, UringFile};

/// Unit of alignment and of file layout: offsets, lengths and buffers are multiples of it.
pub const PAGE_BYTES: usize = 4096;

/// [`PAGE_BYTES`] as a file offset.
pub const PAGE: u64 = 4096;

/// Largest single transfer that this crate asks for where it has the choice.
pub const TRANSFER_BYTES: usize = 1 << 20;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// An existing file, to be read.
    Read,
    /// An existing file, to be read and written.
    Write,
    /// A file that does not exist yet, to be read and written. `AlreadyExists` if it does.
    CreateNew,
}

/// Whether a file goes through the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    /// Through the page cache.
    Buffered,
    /// Past it where the file system allows, otherwise through it, without telling.
    Direct,
}

/// One home of files. Handles are cheap to clone and stay on their thread.
///
/// Directory changes (`CreateNew`, `rename`, `remove`) survive a power loss only after `sync_dir` of their
/// directory; `create_dir_all` is durable when it returns.
pub trait Disk: Clone + 'static {
    /// An open file of this disk.
    type File: DiskFile;

    /// What this engine calls itself, for metrics and logs.
    fn name(&self) -> &'static str;

    /// Opens `path`.
    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
        caching: Caching,
    ) -> impl Future<Output = io::Result<Self::File>>;

    /// Makes `path` and its parents; durable on return.
    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Names of the files and directories in `path`, sorted.
    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<String>>>;

    /// Renames `from` to `to` within one directory, replacing `to`.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Unlinks the file `path`. Open handles stay readable.
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Makes the directory's entries durable.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Whether a file or directory has this name.
    fn exists(&self, path: &Path) -> impl Future<Output = io::Result<bool>>;

    /// Maps a file that nobody will write or truncate again; `None` where this engine does not map.
    ///
    /// A medium error on a mapped page can end the process (SIGBUS), so callers that must survive it use `read_at`.
    fn map_sealed(&self, path: &Path) -> impl Future<Output = Option<io::Result<Bytes>>>;
}

/// One open file.
#[expect(
    clippy::len_without_is_empty,
    reason = "a length on disk, asked for asynchronously; nobody asks for emptiness"
)]
pub trait DiskFile: 'static {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(
        &self,
        buf: AlignedBuf,
        offset: u64,
    ) -> impl Future<Output = (io::Result<usize>, AlignedBuf)>;

    /// Writes all of `buf` at `offset`, or fails. Survives a crash of the process, not a loss of power.
    fn write_at(
        &self,
        buf: AlignedBuf,
        offset: u64,
    ) -> impl Future<Output = (io::Result<()>, AlignedBuf)>;

    /// Writes all of `buf` at `offset` and syncs: survives a loss of power when it returns `Ok`.
    ///
    /// May block the thread until the disk has answered. After an error nothing is known about the file's content.
    fn write_durable(
        &self,
        buf: AlignedBuf,
        offset: u64,
    ) -> impl Future<Output = (io::Result<()>, AlignedBuf)>;

    /// Makes everything written before durable, with the file's length.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// As [`DiskFile::sync`], for large amounts that nobody waits for: slower where the cores are busy, and the thread goes on with
    /// other work meanwhile, if the engine can do that.
    fn sync_beside(&self) -> impl Future<Output = io::Result<()>>;

    /// Sends what was written to a range through the page cache on its way to the device, and waits until the device has it. It is not
    /// durable then. For large amounts: a sync would put all of it into the device's queue at once, and whoever writes
    /// meanwhile waits behind it. After an error nothing is known about the file's content.
    ///
    /// Does nothing where an engine has no such call.
    fn write_out(&self, _offset: u64, _len: u64) -> impl Future<Output = io::Result<()>> {
        std::future::ready(Ok(()))
    }

    /// Lets go of what the page cache holds of a range and the disk has, so that the next read asks the disk. A hint: nothing is lost, and
    /// nothing happens where an engine has no such call, or something uses the pages.
    fn forget_cached(&self, _offset: u64, _len: u64) -> impl Future<Output = io::Result<()>> {
        std::future::ready(Ok(()))
    }

    /// Makes a range read as zeroes and gives its space back where the file system can. The length stays.
    fn punch_hole(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>>;

    /// The file's length.
    fn len(&self) -> impl Future<Output = io::Result<u64>>;

    /// Sets the file's length; new bytes read as zeroes.
    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Gives a range at the end of the file its space and extends the file over it: it reads as zeroes, and writes there find room. Survives
    /// a loss of power once the file is synced. Says whether engine and file system can do that; nothing has changed if not.
    ///
    /// The first sync behind a write there costs the file system's metadata, too; in exchange nothing is written twice.
    fn reserve(&self, _offset: u64, _len: u64) -> impl Future<Output = io::Result<bool>> {
        std::future::ready(Ok(false))
    }

    /// Writes `len` bytes of zeroes from the start of the file, really written, and syncs.
    ///
    /// Blocks that were only reserved cost a journal commit at their first write; written ones do not.
    fn allocate_zeroed(&self, len: u64) -> impl Future<Output = io::Result<()>> {
        async move {
            let mut at = 0;
            let mut buf = AlignedBuf::zeroed(TRANSFER_BYTES);
            while at < len {
                let part = usize::try_from(len - at)
                    .map_or(TRANSFER_BYTES, |rest| rest.min(TRANSFER_BYTES));
                buf.set_len(part);
                let (result, back) = self.write_at(buf, at).await;
                result?;
                buf = back;
                at += part as u64;
            }
            self.sync().await
        }
    }
}

/// Whether an error says that the disk, or a quota, is full.
#[must_use]
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Whether an error says that there is no descriptor for a file that was to be opened. No call on an open file says so, a sync least of
/// all.
#[must_use]
pub fn is_no_descriptor(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether an error says that the machine lacks something for now: room, descriptors or memory. It says nothing of the file.
#[must_use]
pub fn may_pass(error: &io::Error) -> bool {
    let scarce = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
    is_no_space(error)
        || error
            .raw_os_error()
            .is_some_and(|code| scarce.contains(&code))
}
