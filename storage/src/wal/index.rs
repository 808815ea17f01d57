//! Where a log's segments lie: small, in memory, shared by the writer and its readers on any thread.
//!
//! Invariants: `segments` are ordered by number and by first LSN, and each ends where the next begins. Only durable
//! entries are within `end`. The lock is held for moments and never across an await.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mainstay_types::{Lineage, Lsn};

use crate::format::LogEnd;
use crate::recovery::scan::segment_name;

/// Distance between two noted frames of a segment.
const NOTE_BYTES: u64 = 64 << 10;

/// One segment of a log.
#[derive(Clone, Debug)]
pub(crate) struct SegmentInfo {
    pub(crate) seq: u64,
    /// End of the log before its first entry.
    pub(crate) prev: LogEnd,
    /// Offset behind its last durable frame.
    pub(crate) end_offset: u64,
    /// Some frames: first LSN and offset. The first frame is always there.
    notes: Vec<(Lsn, u64)>,
}

impl SegmentInfo {
    pub(crate) fn new(seq: u64, prev: LogEnd) -> Self {
        Self {
            seq,
            prev,
            end_offset: crate::engine::PAGE,
            notes: Vec::new(),
        }
    }

    pub(crate) fn first_lsn(&self) -> Lsn {
        self.prev.point.lsn.next()
    }

    /// Notes the frame at `offset`, if it is far enough from the last one noted.
    pub(crate) fn note(&mut self, first: Lsn, offset: u64) {
        if self
            .notes
            .last()
            .is_none_or(|(_, last)| offset >= last + NOTE_BYTES)
        {
            self.notes.push((first, offset));
        }
    }

    /// Offset of a frame at or before `lsn`.
    fn offset_before(&self, lsn: Lsn) -> u64 {
        let at = self.notes.partition_point(|(first, _)| *first <= lsn);
        at.checked_sub(1)
            .map_or(crate::engine::PAGE, |at| self.notes[at].1)
    }
}

#[derive(Debug)]
pub(super) struct IndexState {
    pub(super) segments: Vec<SegmentInfo>,
    pub(super) end: LogEnd,
}

impl IndexState {
    pub(super) fn first_lsn(&self) -> Lsn {
        self.segments.first().map_or(Lsn(1), SegmentInfo::first_lsn)
    }
}

/// Where to read an entry.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) seq: u64,
    pub(super) offset: u64,
    /// Last LSN that this segment may give.
    pub(super) last: Lsn,
    pub(super) sealed: bool,
}

/// Where a log's segments lie. Shared by the writer and its readers, on any thread.
#[derive(Debug)]
pub struct WalIndex {
    dir: PathBuf,
    lineage: Lineage,
    state: Mutex<IndexState>,
}

impl WalIndex {
    pub(super) fn new(
        dir: &Path,
        lineage: Lineage,
        segments: Vec<SegmentInfo>,
        end: LogEnd,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            lineage,
            state: Mutex::new(IndexState { segments, end }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, IndexState> {
        // Every change is a single assignment or push: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lineage(&self) -> Lineage {
        self.lineage
    }

    pub(super) fn path_of(&self, seq: u64) -> PathBuf {
        self.dir.join(segment_name(seq))
    }

    /// First LSN that the log can still hold.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        self.lock().first_lsn()
    }

    /// End of the durable log.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.lock().end
    }

    /// Number of segment files in the log.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.lock().segments.len()
    }

    /// An entry at or before `lsn`, in the same segment, from which on there are about `bytes` bytes up to `lsn`, or the first one of the
    /// segment. None if `lsn` is outside the log.
    #[must_use]
    pub fn reach_back(&self, lsn: Lsn, bytes: u64) -> Option<Lsn> {
        let state = self.lock();
        if lsn > state.end.point.lsn {
            return None;
        }
        let at = state
            .segments
            .partition_point(|info| info.first_lsn() <= lsn)
            .checked_sub(1)?;
        let info = &state.segments[at];
        let offset = info.offset_before(lsn).saturating_sub(bytes);
        let at = info.notes.partition_point(|(_, noted)| *noted <= offset);
        let noted = at.checked_sub(1).map(|at| info.notes[at].0);
        Some(noted.unwrap_or_else(|| info.first_lsn()))
    }

    /// Where `lsn` is; none if it is outside the log.
    pub(super) fn place(&self, lsn: Lsn) -> Option<Place> {
        let state = self.lock();
        if lsn > state.end.point.lsn {
            return None;
        }
        let at = state
            .segments
            .partition_point(|info| info.first_lsn() <= lsn)
            .checked_sub(1)?;
        let info = &state.segments[at];
        let next = state.segments.get(at + 1);
        Some(Place {
            seq: info.seq,
            offset: info.offset_before(lsn),
            last: next.map_or(state.end.point.lsn, |next| next.prev.point.lsn),
            sealed: next.is_some(),
        })
    }
}
