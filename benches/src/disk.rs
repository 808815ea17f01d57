//! The medium alone: a preallocated file with durable, aligned writes, and a probe of what one costs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::report::{self, Quantiles};

/// Unit of direct I/O.
pub const SECTOR_BYTES: usize = 4096;

/// How one batch is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// One write to a file opened with `O_DSYNC`.
    Dsync,
    /// A write, then `fdatasync`.
    Fdatasync,
}

/// Bytes whose address and length fit direct I/O.
#[derive(Debug, Default)]
pub struct AlignedBuf {
    /// Longer than needed, so that an aligned part fits wherever it was allocated.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// Takes `parts` one after the other and pads them with zeroes to whole sectors.
    pub fn fill(&mut self, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let padded = len.next_multiple_of(SECTOR_BYTES);
        self.reserve(padded);
        let target = &mut self.bytes[self.start..self.start + padded];
        let mut at = 0;
        for part in parts {
            target[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        target[at..].fill(0);
        self.len = padded;
    }

    /// What was filled, padded.
    #[must_use]
    pub fn padded(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn reserve(&mut self, len: usize) {
        if self.bytes.len() < self.start + len {
            self.bytes = vec![0; len + SECTOR_BYTES];
            self.start = self.bytes.as_ptr().align_offset(SECTOR_BYTES);
        }
    }
}

/// A zero-filled file that batches are written to one after the other, from the start again at its end.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    method: Method,
    at: u64,
    bytes: u64,
}

impl LogFile {
    /// Makes `path` with `bytes` zeroes, durable, so that no write allocates.
    pub fn create(path: &Path, bytes: usize, method: Method) -> io::Result<Self> {
        let flags = match method {
            Method::Dsync => libc::O_DIRECT | libc::O_DSYNC,
            Method::Fdatasync => libc::O_DIRECT,
        };
        let zeroes = File::create(path)?;
        let chunk = vec![0; 1 << 20];
        let bytes = bytes.next_multiple_of(chunk.len());
        for at in (0..bytes).step_by(chunk.len()) {
            zeroes.write_all_at(&chunk, at as u64)?;
        }
        zeroes.sync_all()?;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        Ok(Self {
            file,
            method,
            at: 0,
            bytes: bytes as u64,
        })
    }

    /// Writes `batch`, whole sectors in aligned memory; durable on return.
    pub fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        let len = batch.len() as u64;
        if len > self.bytes {
            return Err(io::Error::other("a batch larger than the file"));
        }
        if self.at + len > self.bytes {
            self.at = 0;
        }
        self.file.write_all_at(batch, self.at)?;
        self.at += len;
        match self.method {
            Method::Dsync => Ok(()),
            Method::Fdatasync => self.file.sync_data(),
        }
    }
}

/// What one durable write of 4 KiB takes with `method`, one at a time, for `span`.
pub fn probe(dir: &Path, method: Method, span: Duration) -> io::Result<Quantiles> {
    let path = dir.join("probe");
    let mut file = LogFile::create(&path, 8 << 20, method)?;
    let mut buffer = AlignedBuf::default();
    buffer.fill(&[&[0x5a; SECTOR_BYTES]]);
    let mut times = report::histogram();
    let until = Instant::now() + span;
    while Instant::now() < until {
        let started = Instant::now();
        file.append(buffer.padded())?;
        report::record(&mut times, started.elapsed());
    }
    std::fs::remove_file(&path)?;
    Ok(quantiles(&times))
}

fn quantiles(times: &Histogram<u64>) -> Quantiles {
    Quantiles::of(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_stays_aligned_and_forgets_what_it_held() {
        let mut buffer = AlignedBuf::default();
        for (part, padded) in [(&b"abc"[..], 4096), (&[1; 5000], 8192), (&b"d"[..], 4096)] {
            buffer.fill(&[b"x", part]);
            assert_eq!(buffer.padded().len(), padded);
            assert_eq!(buffer.padded().as_ptr().align_offset(SECTOR_BYTES), 0);
            assert_eq!(&buffer.padded()[1..=part.len()], part);
            assert!(
                buffer.padded()[1 + part.len()..]
                    .iter()
                    .all(|byte| *byte == 0)
            );
        }
    }

    #[test]
    fn a_log_file_starts_over_at_its_end_and_refuses_what_never_fits() {
        let dir = tempfile::tempdir().expect("a directory");
        for method in [Method::Dsync, Method::Fdatasync] {
            let path = dir.path().join(format!("{method:?}"));
            let mut file = match LogFile::create(&path, 1 << 20, method) {
                // Some file systems know no direct I/O.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
                file => file.expect("made"),
            };
            let mut buffer = AlignedBuf::default();
            buffer.fill(&[&[7; 600 << 10]]);
            file.append(buffer.padded()).expect("fits");
            file.append(buffer.padded()).expect("fits from the start");
            assert_eq!(std::fs::metadata(&path).expect("there").len(), 1 << 20);
            buffer.fill(&[&[7; 2 << 20]]);
            assert!(file.append(buffer.padded()).is_err());
        }
    }
}
