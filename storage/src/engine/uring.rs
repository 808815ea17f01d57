//! Data through io_uring, syncs and metadata by blocking system calls on the same thread.
//!
//! Rules: a ring submits only when its thread parks, so nothing that keeps the thread busy may share it. The ring's
//! own sync is not used where somebody waits: on busy cores it and `O_DSYNC` wait for a kernel worker of ordinary priority,
//! while a blocking `fdatasync(2)` sleeps in the caller and is woken directly. Futures are finished or dropped inside the
//! runtime. This is the only file that names a type of `tokio_uring`.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use io_uring::{cqueue, opcode, types};
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, syscall};

// SAFETY: the memory is on the heap and does not move when the buffer does; `len` bytes of it are initialised, as
// all of `capacity` is. The ring needs this trait to own the buffer while the kernel uses it.
unsafe impl IoBuf for AlignedBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }

    fn bytes_total(&self) -> usize {
        self.capacity()
    }
}

// SAFETY: as above; every byte up to the capacity is initialised, so any length within it is one.
unsafe impl IoBufMut for AlignedBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, pos: usize) {
        if pos > self.len() {
            self.set_len(pos);
        }
    }
}

/// The file system through a ring. Works only inside [`super::run_on`] with [`super::Engine::Uring`].
#[derive(Clone, Copy, Debug, Default)]
pub struct UringDisk;

/// A file of [`UringDisk`].
#[derive(Clone)]
pub struct UringFile(Rc<tokio_uring::fs::File>);

impl std::fmt::Debug for UringFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UringFile(fd {})", self.0.as_raw_fd())
    }
}

impl Disk for UringDisk {
    type File = UringFile;

    fn name(&self) -> &'static str {
        "uring"
    }

    async fn open(&self, path: &Path, mode: OpenMode, caching: Caching) -> io::Result<UringFile> {
        let file = syscall::open(path, mode, caching)?;
        Ok(UringFile(Rc::new(tokio_uring::fs::File::from_std(file))))
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        syscall::create_dir_all(path)
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        syscall::list(path)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        syscall::rename(from, to)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        syscall::remove(path)
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        syscall::sync_dir(path)
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        syscall::exists(path)
    }

    async fn map_sealed(&self, path: &Path) -> Option<io::Result<Bytes>> {
        Some(syscall::map_sealed(path))
    }
}

/// What comes of an operation that `tokio_uring` has no method for. Its file stays open until it is done.
struct Outcome;

impl OneshotOutputTransform for Outcome {
    type Output = io::Result<()>;
    type StoredData = Rc<tokio_uring::fs::File>;

    fn transform_oneshot_output(self, _: Self::StoredData, done: cqueue::Entry) -> Self::Output {
        match done.result() {
            error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
            _ => Ok(()),
        }
    }
}

impl UringFile {
    fn sync_now(&self) -> io::Result<()> {
        syscall::fdatasync(self.0.as_raw_fd())
    }
}

impl DiskFile for UringFile {
    async fn read_at(&self, buf: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf) {
        let want = buf.len();
        let mut buf = buf;
        let mut done = 0;
        // A read may be short before the end of the file; a read at the end gives zero.
        while done < want {
            let (result, slice) = self
                .0
                .read_at(buf.slice(done..want), offset + done as u64)
                .await;
            buf = slice.into_inner();
            match result {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(done), buf)
    }

    async fn write_at(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        let want = buf.len();
        let mut buf = buf;
        let mut done = 0;
        while done < want {
            let (result, slice) = self
                .0
                .write_at(buf.slice(done..want), offset + done as u64)
                .submit()
                .await;
            buf = slice.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    async fn write_durable(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        let (result, buf) = self.write_at(buf, offset).await;
        (result.and_then(|()| self.sync_now()), buf)
    }

    async fn sync(&self) -> io::Result<()> {
        self.sync_now()
    }

    async fn sync_beside(&self) -> io::Result<()> {
        self.0.sync_data().await
    }

    async fn write_out(&self, offset: u64, len: u64) -> io::Result<()> {
        // The ring has 32 bits for the length, where zero means "to the end of the file".
        let len = u32::try_from(len).unwrap_or(0);
        let entry = opcode::SyncFileRange::new(types::Fd(self.0.as_raw_fd()), len);
        let entry = entry.offset(offset).flags(syscall::WRITE_OUT).build();
        UnsubmittedOneshot::new(self.0.clone(), Outcome, entry)
            .submit()
            .await
    }

    async fn forget_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        syscall::forget_cached(self.0.as_raw_fd(), offset, len)
    }

    async fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        // Where the file system discards what it frees this takes milliseconds: others on this thread go on meanwhile.
        let entry = opcode::Fallocate::new(types::Fd(self.0.as_raw_fd()), len);
        let entry = entry.offset(offset).mode(syscall::PUNCH_HOLE).build();
        UnsubmittedOneshot::new(self.0.clone(), Outcome, entry)
            .submit()
            .await
    }

    async fn len(&self) -> io::Result<u64> {
        syscall::len(self.0.as_raw_fd())
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        syscall::reserve(self.0.as_raw_fd(), offset, len)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        syscall::set_len(self.0.as_raw_fd(), len)
    }
}
