//! The newest entries of the log, in memory: for the feed, for applying, and for reads.
//!
//! Invariants: chunks are contiguous; the first begins right after `base`; every entry that is not applied or not
//! durable here is present.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use mainstay_storage::LogEnd;
use mainstay_storage::format::EntryRef;
use mainstay_types::Lsn;

/// So many of the newest chunks are looked at one by one.
const NEWEST: usize = 4;

/// Entries that lie side by side in one buffer.
#[derive(Debug)]
struct Chunk {
    entries: Vec<EntryRef>,
    bytes: Bytes,
}

impl Chunk {
    fn first(&self) -> Lsn {
        self.entries[0].header.point.lsn
    }

    fn last(&self) -> Lsn {
        self.entries[self.entries.len() - 1].header.point.lsn
    }
}

#[derive(Debug)]
pub(crate) struct Tail {
    /// The entry before the first one held.
    base: LogEnd,
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

impl Tail {
    pub(crate) fn new(base: LogEnd) -> Self {
        Self {
            base,
            chunks: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(crate) fn end(&self) -> LogEnd {
        self.chunks.back().map_or(self.base, |chunk| {
            chunk.entries[chunk.entries.len() - 1].header.end()
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends entries that lie side by side in `bytes`, or one entry.
    pub(crate) fn push(&mut self, entries: Vec<EntryRef>, bytes: Bytes) {
        let Some(first) = entries.first() else { return };
        assert_eq!(
            first.header.point.lsn,
            self.end().point.lsn.next(),
            "the tail has no gaps"
        );
        self.bytes += bytes.len();
        self.chunks.push_back(Chunk { entries, bytes });
    }

    /// Cuts everything above `after`.
    pub(crate) fn truncate(&mut self, after: Lsn) {
        assert!(
            after >= self.base.point.lsn,
            "cut after {after} below the tail's base {:?}",
            self.base
        );
        while let Some(mut chunk) = self.chunks.pop_back() {
            self.bytes -= chunk.bytes.len();
            if chunk.first() > after {
                continue;
            }
            chunk
                .entries
                .retain(|entry| entry.header.point.lsn <= after);
            let kept = chunk.entries.iter().map(|entry| entry.bytes.len()).sum();
            chunk.bytes.truncate(kept);
            self.bytes += kept;
            self.chunks.push_back(chunk);
            return;
        }
    }

    /// Forgets whole chunks at or below `through` while more than `keep_bytes` are held.
    pub(crate) fn evict(&mut self, through: Lsn, keep_bytes: usize) {
        while self.bytes > keep_bytes
            && let Some(chunk) = self.chunks.front()
            && chunk.last() <= through
        {
            self.base = chunk.entries[chunk.entries.len() - 1].header.end();
            self.bytes -= chunk.bytes.len();
            self.chunks.pop_front();
        }
    }

    pub(crate) fn get(&self, lsn: Lsn) -> Option<&EntryRef> {
        let chunk = self.chunks.get(self.chunk_of(lsn)?)?;
        let index = usize::try_from(lsn.0 - chunk.first().0).ok()?;
        chunk.entries.get(index)
    }

    /// Where the log ended at `lsn`, if that is still known here.
    pub(crate) fn end_at(&self, lsn: Lsn) -> Option<LogEnd> {
        if lsn == self.base.point.lsn {
            Some(self.base)
        } else {
            self.get(lsn).map(|entry| entry.header.end())
        }
    }

    /// Entries from `from` to `through`, up to `bytes_max` bytes but at least one, as pieces that hold whole entries,
    /// with the last one's LSN. `None` if `from` is no longer here.
    pub(crate) fn pieces(
        &self,
        from: Lsn,
        through: Lsn,
        bytes_max: usize,
    ) -> Option<(Lsn, Vec<Bytes>)> {
        let mut pieces = Vec::new();
        let (mut bytes, mut last) = (0, from.prev());
        for chunk in self.chunks.range(self.chunk_of(from)?..) {
            let whole = chunk.first() > last && chunk.first() >= from && chunk.last() <= through;
            if whole && bytes + chunk.bytes.len() <= bytes_max {
                bytes += chunk.bytes.len();
                last = chunk.last();
                pieces.push(chunk.bytes.clone());
                continue;
            }
            let wanted = |entry: &&EntryRef| {
                entry.header.point.lsn >= from && entry.header.point.lsn <= through
            };
            for entry in chunk.entries.iter().filter(wanted) {
                if bytes > 0 && bytes + entry.bytes.len() > bytes_max {
                    return Some((last, pieces));
                }
                bytes += entry.bytes.len();
                last = entry.header.point.lsn;
                pieces.push(entry.bytes.clone());
            }
            if chunk.last() >= through {
                break;
            }
        }
        (!pieces.is_empty()).then_some((last, pieces))
    }

    /// Entries from `from` to `through`, up to `bytes_max` bytes but at least one.
    pub(crate) fn entries(
        &self,
        from: Lsn,
        through: Lsn,
        bytes_max: usize,
    ) -> Option<Vec<EntryRef>> {
        let mut out = Vec::new();
        let mut bytes = 0;
        for chunk in self.chunks.range(self.chunk_of(from)?..) {
            for entry in &chunk.entries {
                let lsn = entry.header.point.lsn;
                if lsn < from {
                    continue;
                }
                if lsn > through || (bytes > 0 && bytes + entry.bytes.len() > bytes_max) {
                    return Some(out);
                }
                bytes += entry.bytes.len();
                out.push(entry.clone());
            }
        }
        Some(out)
    }

    /// First LSN held.
    pub(crate) fn first(&self) -> Lsn {
        self.base.point.lsn.next()
    }

    /// Entries below `before` and not below `lowest`, in order: the newest ones, up to `bytes_max` bytes but at least one. `None` if
    /// the newest of them is no longer here.
    pub(crate) fn entries_before(
        &self,
        before: Lsn,
        lowest: Lsn,
        bytes_max: usize,
    ) -> Option<Vec<EntryRef>> {
        let mut out = VecDeque::new();
        let mut bytes = 0;
        let newest = self.chunk_of(before.prev())?;
        let entries = self.chunks.range(..=newest).rev();
        let entries = entries.flat_map(|chunk| chunk.entries.iter().rev());
        for entry in entries.skip_while(|entry| entry.header.point.lsn >= before) {
            bytes += entry.bytes.len();
            let full = bytes > bytes_max && !out.is_empty();
            if full || entry.header.point.lsn < lowest {
                break;
            }
            out.push_front(entry.clone());
        }
        Some(out.into())
    }

    fn chunk_of(&self, lsn: Lsn) -> Option<usize> {
        if lsn <= self.base.point.lsn || lsn > self.end().point.lsn {
            return None;
        }
        // What is asked for most is the newest: a search among all would touch a dozen chunks for it.
        let count = self.chunks.len();
        let newest = self.chunks.iter().rev().take(NEWEST);
        let behind = newest.take_while(|chunk| chunk.first() > lsn).count();
        if behind < NEWEST.min(count) {
            return Some(count - 1 - behind);
        }
        Some(self.chunks.partition_point(|chunk| chunk.last() < lsn))
    }
}

/// One buffer with all pieces; no copy if there is one piece.
pub(crate) fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.swap_remove(0);
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in &pieces {
        all.extend_from_slice(piece);
    }
    all.freeze()
}
