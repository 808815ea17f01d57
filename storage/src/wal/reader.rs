//! Reads entries back. Every CRC is verified on every read; what does not verify is damage, never absence.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_types::Lsn;

use super::errors::ReadError;
use super::index::{Place, WalIndex};
use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, PAGE_BYTES};
use crate::format::{EntryIter, FRAME_HEADER_BYTES, FrameHeader, LogEnd};

/// How sealed segments are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadPath {
    /// By system calls: an error of the medium is an answer.
    Pread,
    /// Sealed segments by mmap where the engine can, without a copy; the open segment by system calls. An error of
    /// the medium on a page that was dropped from memory since can end the process.
    Map,
}

/// Least and greatest bytes of one read.
const WINDOW_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=4 << 20;

/// Contiguous durable entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBatch {
    /// First entry's LSN.
    pub first: Lsn,
    /// Where the batch ends.
    pub end: LogEnd,
    /// Whole verified entries in order; each `Bytes` holds one or more.
    pub chunks: Vec<Bytes>,
}

#[derive(Debug)]
enum Source<F> {
    File(F),
    Map(Bytes),
}

/// A segment that is open for reading: number, whether it was sealed then, its file or mapping.
type Open<F> = (u64, bool, Rc<Source<F>>);

/// Reads entries of a log. Cheap to clone; stays on its thread. Dropping a read half way does no harm.
#[derive(Debug)]
pub struct WalReader<D: Disk> {
    disk: D,
    index: Arc<WalIndex>,
    path: ReadPath,
    /// The segment read last.
    open: RefCell<Option<Open<D::File>>>,
}

impl<D: Disk> Clone for WalReader<D> {
    fn clone(&self) -> Self {
        Self::new(self.disk.clone(), self.index.clone(), self.path)
    }
}

/// Entries gathered so far.
struct Gathered {
    next: Lsn,
    first: Lsn,
    last: Lsn,
    room: usize,
    end: Option<LogEnd>,
    chunks: Vec<Bytes>,
}

impl Gathered {
    fn done(&self) -> bool {
        self.room == 0 || self.next > self.last
    }
}

impl<D: Disk> WalReader<D> {
    /// A reader over `index` with its own disk handle, on the thread that it is made on.
    #[must_use]
    pub fn new(disk: D, index: Arc<WalIndex>, path: ReadPath) -> Self {
        Self {
            disk,
            index,
            path,
            open: RefCell::new(None),
        }
    }

    /// The index that it reads by.
    #[must_use]
    pub fn index(&self) -> &Arc<WalIndex> {
        &self.index
    }

    /// Reads entries from `from` on: at least one, then as many as `max_bytes` holds, out of one segment.
    ///
    /// Only durable entries are given. Entries that are cut while the read runs may still be given.
    ///
    /// # Errors
    /// [`ReadError`]; `Damaged` only if the very first entry is.
    pub async fn read(&self, from: Lsn, max_bytes: usize) -> Result<ReadBatch, ReadError> {
        let place = self.place(from)?;
        let source = match self.source(&place).await {
            // Recycled since it was looked up.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && from < self.index.first_lsn() =>
            {
                return Err(ReadError::BelowFirst {
                    first: self.index.first_lsn(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ReadError::Damaged {
                    lsn: from,
                    source: None,
                });
            }
            other => other.map_err(ReadError::Io)?,
        };
        let mut gathered = Gathered {
            next: from,
            first: from,
            last: place.last,
            room: max_bytes.max(1),
            end: None,
            chunks: Vec::new(),
        };
        let outcome = self.gather(&source, place.offset, &mut gathered).await;
        match (gathered.end, outcome) {
            (Some(end), _) => Ok(ReadBatch {
                first: from,
                end,
                chunks: gathered.chunks,
            }),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(ReadError::Damaged {
                lsn: from,
                source: None,
            }),
        }
    }

    /// Where the log ended at `lsn`: its epoch and header CRC. Also answers for the position before the first entry.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn end_at(&self, lsn: Lsn) -> Result<LogEnd, ReadError> {
        {
            let state = self.index.lock();
            if state.end.point.lsn == lsn {
                return Ok(state.end);
            }
            if let Some(info) = state
                .segments
                .iter()
                .find(|info| info.prev.point.lsn == lsn)
            {
                return Ok(info.prev);
            }
        }
        Ok(self.read(lsn, 1).await?.end)
    }

    fn place(&self, from: Lsn) -> Result<Place, ReadError> {
        if let Some(place) = self.index.place(from) {
            return Ok(place);
        }
        let (first, last) = (self.index.first_lsn(), self.index.end().point.lsn);
        if from < first {
            Err(ReadError::BelowFirst { first })
        } else {
            Err(ReadError::AboveLast { last })
        }
    }

    async fn source(&self, place: &Place) -> io::Result<Rc<Source<D::File>>> {
        let mapped = place.sealed && self.path == ReadPath::Map;
        if let Some((seq, sealed, source)) = &*self.open.borrow()
            && *seq == place.seq
            && (*sealed || !mapped)
        {
            return Ok(source.clone());
        }
        let path = self.index.path_of(place.seq);
        let map = if mapped {
            self.disk.map_sealed(&path).await
        } else {
            None
        };
        let source = match map {
            Some(Ok(map)) => Source::Map(map),
            // A mapping that cannot be had is no reason not to read.
            _ => Source::File(
                self.disk
                    .open(&path, OpenMode::Read, Caching::Buffered)
                    .await?,
            ),
        };
        let source = Rc::new(source);
        *self.open.borrow_mut() = Some((place.seq, place.sealed, source.clone()));
        Ok(source)
    }

    /// Bytes of the segment from `offset` on, at least `need` unless it ends.
    async fn window(
        &self,
        source: &Source<D::File>,
        offset: u64,
        need: usize,
    ) -> io::Result<Bytes> {
        match source {
            Source::Map(map) => {
                let start = usize::try_from(offset).map_or(map.len(), |at| at.min(map.len()));
                Ok(map.slice(start..))
            }
            Source::File(file) => {
                let (result, mut buf) = file.read_at(AlignedBuf::zeroed(need), offset).await;
                buf.set_len(result?);
                Ok(Bytes::from_owner(buf))
            }
        }
    }

    async fn gather(
        &self,
        source: &Source<D::File>,
        offset: u64,
        gathered: &mut Gathered,
    ) -> Result<(), ReadError> {
        let window = gathered
            .room
            .saturating_add(PAGE_BYTES)
            .next_multiple_of(PAGE_BYTES);
        let window = window.clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end());
        let mut offset = offset;
        let mut have = Bytes::new();
        while !gathered.done() {
            if have.len() < PAGE_BYTES {
                have = self
                    .window(source, offset, window)
                    .await
                    .map_err(|e| medium(gathered.next, e))?;
            }
            let damaged = || ReadError::Damaged {
                lsn: gathered.next,
                source: None,
            };
            let frame = FrameHeader::decode(&have).map_err(|_| damaged())?;
            if frame.lineage != self.index.lineage() || frame.first_lsn > gathered.next {
                return Err(damaged());
            }
            let len = frame.frame_len as usize;
            if have.len() < len {
                let need = len.max(window);
                have = self
                    .window(source, offset, need)
                    .await
                    .map_err(|e| medium(gathered.next, e))?;
                if have.len() < len {
                    return Err(damaged());
                }
            }
            let body = have.slice(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + frame.body_len as usize);
            if frame.last_lsn() >= gathered.next {
                self.take_entries(&body, gathered)?;
            }
            have = have.slice(len..);
            offset += len as u64;
        }
        Ok(())
    }

    /// Takes the entries wanted out of one frame's body, as one slice.
    fn take_entries(&self, body: &Bytes, gathered: &mut Gathered) -> Result<(), ReadError> {
        let mut iter = EntryIter::new(self.index.lineage(), body.clone());
        let (mut start, mut stop) = (None, 0);
        let mut failed = None;
        while !gathered.done() {
            let offset = iter.offset();
            let Some(item) = iter.next() else { break };
            let entry = match item {
                Ok(entry) => entry,
                Err(source) => {
                    failed = Some(ReadError::Damaged {
                        lsn: gathered.next,
                        source: Some(source),
                    });
                    break;
                }
            };
            if entry.header.point.lsn < gathered.next {
                continue;
            }
            if entry.header.point.lsn > gathered.next {
                failed = Some(ReadError::Damaged {
                    lsn: gathered.next,
                    source: None,
                });
                break;
            }
            if entry.bytes.len() > gathered.room && gathered.next > gathered.first {
                gathered.room = 0;
                break;
            }
            gathered.room = gathered.room.saturating_sub(entry.bytes.len());
            gathered.next = gathered.next.next();
            gathered.end = Some(entry.header.end());
            start = start.or(Some(offset));
            stop = iter.offset();
        }
        if let Some(start) = start {
            gathered.chunks.push(body.slice(start..stop));
        }
        failed.map_or(Ok(()), Err)
    }
}

/// An error of the medium is damage at the entry wanted; anything else is the disk's refusal.
fn medium(lsn: Lsn, error: io::Error) -> ReadError {
    if error.raw_os_error() == Some(libc::EIO) {
        ReadError::Damaged { lsn, source: None }
    } else {
        ReadError::Io(error)
    }
}
