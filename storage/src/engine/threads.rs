//! Plain system calls, executed inline on the caller's thread. For kernels and containers without io_uring.
//!
//! Every future here is ready at its first poll: the thread is the storage thread, and a disk that hangs hangs only it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;

use super::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, syscall};

/// The file system by plain system calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadsDisk;

/// A file of [`ThreadsDisk`].
#[derive(Clone, Debug)]
pub struct ThreadsFile(Rc<File>);

impl Disk for ThreadsDisk {
    type File = ThreadsFile;

    fn name(&self) -> &'static str {
        "threads"
    }

    async fn open(&self, path: &Path, mode: OpenMode, caching: Caching) -> io::Result<ThreadsFile> {
        Ok(ThreadsFile(Rc::new(syscall::open(path, mode, caching)?)))
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

impl ThreadsFile {
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl DiskFile for ThreadsFile {
    async fn read_at(&self, mut buf: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf) {
        let result = self.read(&mut buf, offset);
        (result, buf)
    }

    async fn write_at(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        (self.0.write_all_at(&buf, offset), buf)
    }

    async fn write_durable(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        let result = self
            .0
            .write_all_at(&buf, offset)
            .and_then(|()| syscall::fdatasync(self.0.as_raw_fd()));
        (result, buf)
    }

    async fn sync(&self) -> io::Result<()> {
        syscall::fdatasync(self.0.as_raw_fd())
    }

    async fn sync_beside(&self) -> io::Result<()> {
        self.sync().await
    }

    async fn write_out(&self, offset: u64, len: u64) -> io::Result<()> {
        syscall::write_out(self.0.as_raw_fd(), offset, len)
    }

    async fn forget_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        syscall::forget_cached(self.0.as_raw_fd(), offset, len)
    }

    async fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        syscall::punch_hole(self.0.as_raw_fd(), offset, len)
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
