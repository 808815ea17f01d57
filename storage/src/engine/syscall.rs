//! The few system calls that both real engines make directly.
//!
//! Metadata operations are rare and short, so both engines run them inline on the storage thread.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;

use super::{Caching, OpenMode};

/// Opens a file; falls back to the page cache where the file system refuses `O_DIRECT`.
pub(super) fn open(path: &Path, mode: OpenMode, caching: Caching) -> io::Result<File> {
    let with_flags = |flags: i32| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        options.open(path)
    };
    match caching {
        Caching::Buffered => with_flags(0),
        Caching::Direct => match with_flags(libc::O_DIRECT) {
            // A failed create may have left the file behind, so the second try must not ask for a new one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                if mode == OpenMode::CreateNew && path.exists() {
                    return OpenOptions::new().read(true).write(true).open(path);
                }
                with_flags(0)
            }
            other => other,
        },
    }
}

/// `fdatasync(2)`: data and length, without timestamps.
pub(super) fn fdatasync(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes a descriptor by value and touches no memory of ours. `File::sync_data` needs an owned `File`,
    // which the ring engine does not have.
    check(unsafe { libc::fdatasync(fd) })
}

/// What [`write_out`] asks for: start writing, and wait for it.
pub(super) const WRITE_OUT: libc::c_uint =
    libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;

/// `sync_file_range(2)`: from the page cache to the device, no further.
pub(super) fn write_out(fd: RawFd, offset: u64, len: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: takes numbers only. The standard library has no call for it.
    check(unsafe { libc::sync_file_range(fd, offset, len, WRITE_OUT) })
}

/// `posix_fadvise(2)`: the page cache lets go of a range.
pub(super) fn forget_cached(fd: RawFd, offset: u64, len: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: takes numbers only. The standard library has no call for it.
    match unsafe { libc::posix_fadvise(fd, offset, len, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        // It says so itself, not by `errno`.
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// What [`punch_hole`] asks for.
pub(super) const PUNCH_HOLE: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Zeroes a range by punching a hole.
pub(super) fn punch_hole(fd: RawFd, offset: u64, len: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: takes numbers only. The standard library has no call for it.
    check(unsafe { libc::fallocate(fd, PUNCH_HOLE, offset, len) })
}

/// `fallocate(2)`: space that was not written yet and reads as zeroes. False where the file system has no such thing.
pub(super) fn reserve(fd: RawFd, offset: u64, len: u64) -> io::Result<bool> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: takes numbers only. The standard library has no call for it.
    match check(unsafe { libc::fallocate(fd, 0, offset, len) }) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        result => result.map(|()| true),
    }
}

/// The length of an open file.
pub(super) fn len(fd: RawFd) -> io::Result<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `stat` is valid for writes of one `stat` structure for the time of the call.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) })?;
    // SAFETY: all bit patterns of `stat` are valid, it began as zeroes and the call has filled it.
    let stat = unsafe { stat.assume_init() };
    u64::try_from(stat.st_size).map_err(io::Error::other)
}

/// Sets the length of an open file.
pub(super) fn set_len(fd: RawFd, len: u64) -> io::Result<()> {
    let len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: takes numbers only; see `fdatasync` for why not `File::set_len`.
    check(unsafe { libc::ftruncate(fd, len) })
}

/// Makes a directory and its parents, each durable in its parent.
pub(super) fn create_dir_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir_all(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_dir(parent.unwrap_or_else(|| Path::new(".")))
}

pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

pub(super) fn exists(path: &Path) -> io::Result<bool> {
    path.try_exists()
}

/// Maps a whole file.
pub(super) fn map_sealed(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the caller promises that nobody writes or truncates the file again: sealed segments are only ever
    // unlinked. Safe code cannot map a file.
    let map = unsafe { memmap2::Mmap::map(&file) }?;
    // Brings pages in now, where an error of the medium is an answer and not a signal.
    map.advise(memmap2::Advice::PopulateRead)?;
    Ok(Bytes::from_owner(map))
}

/// Whether the kernel lets this process make a ring.
pub(super) fn ring_permitted() -> bool {
    // `io_uring_params` is 120 bytes; zeroes ask for nothing special.
    let mut params = [0_u64; 16];
    // SAFETY: `params` outlives the call and is at least as large as the kernel's structure.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2_u32, params.as_mut_ptr()) };
    let Ok(fd) = i32::try_from(fd) else {
        return false;
    };
    if fd < 0 {
        return false;
    }
    // SAFETY: the descriptor is ours alone and is closed once.
    unsafe { libc::close(fd) };
    true
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
