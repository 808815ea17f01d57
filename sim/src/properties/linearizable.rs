//! Property 5: every operation takes effect once, at one point between its call and its answer.
//!
//! The order of committed entries is the order of mutations, so checking is direct: an entry commits behind everything
//! that had been answered before its operation was called, and an answered operation is at the LSN that was told. A
//! read shows the state at one position, at or behind everything answered before it was called. An operation without
//! an answer may have happened or not, never twice.

use std::collections::BTreeMap;

use mainstay_storage::EntryKind;
use mainstay_types::{Lsn, SessionId, VolumeKind};

use super::attachments::Attachments;
use super::batches::{Batches, Part};
use super::tokens::Tokens;
use super::trims::Trims;
use super::{Check, EntryInfo, Oracle, Property, broken};

/// Bytes that carry one value in the model of a block volume.
pub const SECTOR: u64 = 512;
/// A block: the unit in which a read is one state.
pub const BLOCK: u64 = 4096;

/// A mutation as its client called it.
#[derive(Debug, Clone, Copy)]
pub struct Called {
    /// First eight bytes of its payload; each further record of a batch has two more.
    pub tag: u64,
    /// Records of an atomic batch; else one.
    pub records: u32,
    /// It may only be committed there.
    pub expected: Option<Lsn>,
    /// Its kind.
    pub kind: EntryKind,
    /// Its offset; zero for a record.
    pub arg: u64,
    /// Everything up to here had been answered to somebody when it was called.
    pub floor: Lsn,
    /// Its client was told that it never happened.
    pub never: bool,
}

/// A log read as its client got it.
#[derive(Debug)]
pub struct LogRead<'a> {
    /// First LSN asked for.
    pub from: Lsn,
    /// Last position that was shown.
    pub through: Lsn,
    /// Where the reader goes on.
    pub next: Lsn,
    /// What came.
    pub entries: &'a [EntryInfo],
    /// Answered to somebody before the call; zero for a stale read.
    pub floor: Lsn,
}

/// What clients did on one volume.
#[derive(Debug)]
pub struct Ops {
    kind: VolumeKind,
    called: BTreeMap<(SessionId, u64), Vec<Called>>,
    /// Where each mutation begins, and how many entries it has.
    committed: BTreeMap<(SessionId, u64), (Lsn, u32)>,
    /// Values of each sector: (LSN, tag), rising.
    sectors: BTreeMap<u64, Vec<(Lsn, u64)>>,
    last_timestamp: u64,
    attachments: Attachments,
    pub(super) batches: Batches,
    pub(super) tokens: Tokens,
    pub(super) trims: Trims,
    /// Everything up to here was answered to somebody.
    pub floor: Lsn,
    /// Mutations answered.
    pub answered: u64,
    /// Reads answered.
    pub reads: u64,
}

impl Ops {
    pub(super) fn new(kind: VolumeKind) -> Self {
        Self {
            kind,
            called: BTreeMap::new(),
            committed: BTreeMap::new(),
            sectors: BTreeMap::new(),
            last_timestamp: 0,
            attachments: Attachments::default(),
            batches: Batches::default(),
            tokens: Tokens::default(),
            trims: Trims::default(),
            floor: Lsn::ZERO,
            answered: 0,
            reads: 0,
        }
    }

    /// A client calls a mutation for the first time.
    pub fn call(&mut self, session: SessionId, seq: u64, called: Called) {
        self.called.entry((session, seq)).or_default().push(called);
    }

    /// A client was told that its operation never happened.
    ///
    /// # Errors
    /// It did.
    pub fn never(&mut self, session: SessionId, seq: u64) -> Check {
        if let Some((lsn, _)) = self.committed.get(&(session, seq)) {
            return broken(
                Property::Linearizable,
                format!("{session} is told that {seq} never happened; it is at {lsn}"),
            );
        }
        for called in self.called.entry((session, seq)).or_default() {
            called.never = true;
        }
        Ok(())
    }

    /// An entry commits.
    pub(super) fn committed(&mut self, info: &EntryInfo) -> Check {
        if matches!(self.kind, VolumeKind::Block { .. }) {
            self.attachments.committed(info)?;
        } else {
            self.tokens.committed(info)?;
        }
        let part = self.batches.committed(info);
        if matches!(self.kind, VolumeKind::Log) {
            self.trims.committed(info, part)?;
        }
        let Part { first, index, last } = part;
        let mutation = matches!(
            info.kind,
            EntryKind::Record
                | EntryKind::Write
                | EntryKind::Trim
                | EntryKind::Zeroes
                | EntryKind::TrimLog
                | EntryKind::RetainLog
        );
        // A primary releases what was trimmed before on nobody's behalf.
        if !mutation || info.session == SessionId(0) {
            return Ok(());
        }
        let (key, lsn) = ((info.session, info.seq), info.point.lsn);
        let same = |called: &&Called| {
            // What a trim releases is the primary's to say.
            let trim = info.kind == EntryKind::TrimLog;
            (trim || called.tag.wrapping_add(2 * u64::from(index)) == info.tag)
                && called.kind == info.kind
                && last == (index + 1 == called.records)
                && (info.kind == EntryKind::Record || called.arg == info.arg)
        };
        let found = self
            .called
            .get(&key)
            .and_then(|called| called.iter().find(same));
        let Some(called) = found else {
            return broken(
                Property::NoPhantom,
                format!("{} commits {key:?}, which nobody called", info.point),
            );
        };
        if !last {
            return Ok(());
        }
        if called.expected.is_some_and(|expected| expected != first) {
            return broken(
                Property::Linearizable,
                format!(
                    "{key:?} commits at {first}, and only {:?} would do",
                    called.expected
                ),
            );
        }
        if called.never {
            return broken(
                Property::Linearizable,
                format!(
                    "{key:?} commits at {lsn} after its client was told that it never happened"
                ),
            );
        }
        if first <= called.floor {
            return broken(
                Property::Linearizable,
                format!(
                    "{key:?} commits at {lsn}, but was called after {} was answered",
                    called.floor
                ),
            );
        }
        if let Some((before, _)) = self.committed.insert(key, (first, index + 1)) {
            return broken(
                Property::Linearizable,
                format!("{key:?} is committed twice, at {before} and at {first}"),
            );
        }
        if info.kind == EntryKind::Record {
            if info.arg < self.last_timestamp {
                return broken(
                    Property::Linearizable,
                    format!("the timestamp at {lsn} goes back"),
                );
            }
            self.last_timestamp = info.arg;
        } else if !matches!(info.kind, EntryKind::TrimLog | EntryKind::RetainLog) {
            self.change_sectors(info);
        }
        Ok(())
    }

    fn change_sectors(&mut self, info: &EntryInfo) {
        let (len, value) = match info.kind {
            EntryKind::Write => (u64::from(info.len), info.tag),
            _ => (info.tag, 0),
        };
        for sector in info.arg / SECTOR..(info.arg + len) / SECTOR {
            let versions = self.sectors.entry(sector).or_default();
            versions.push((info.point.lsn, value));
        }
    }

    /// Value of a sector after everything up to `at`.
    #[must_use]
    pub fn sector(&self, sector: u64, at: Lsn) -> u64 {
        let Some(versions) = self.sectors.get(&sector) else {
            return 0;
        };
        let count = versions.partition_point(|(lsn, _)| *lsn <= at);
        count.checked_sub(1).map_or(0, |last| versions[last].1)
    }

    /// Every value that a sector had: (LSN, value).
    #[must_use]
    pub fn history(&self, sector: u64) -> &[(Lsn, u64)] {
        self.sectors.get(&sector).map_or(&[], Vec::as_slice)
    }

    /// A block volume's size.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        match self.kind {
            VolumeKind::Block { size_bytes } => Some(size_bytes),
            VolumeKind::Log => None,
        }
    }
}

impl Oracle {
    /// A client is told that its operation is committed.
    ///
    /// # Errors
    /// It is not, or not there.
    pub fn answered(&mut self, session: SessionId, seq: u64, lsn: Lsn, count: u32) -> Check {
        if self.ops.committed.get(&(session, seq)) != Some(&(lsn, count)) {
            return broken(
                Property::Linearizable,
                format!(
                    "{session} is told that {seq} is {count} entries at {lsn}; it is at {:?}",
                    self.ops.committed.get(&(session, seq))
                ),
            );
        }
        let last = Lsn(lsn.0 + u64::from(count) - 1);
        self.ops.floor = self.ops.floor.max(last);
        self.ops.answered += 1;
        Ok(())
    }

    /// A client is told where the log ends.
    ///
    /// # Errors
    /// Something answered before lies behind that end.
    pub fn position_read(&mut self, first: Lsn, commit: Lsn, floor: Lsn) -> Check {
        self.check_position(commit)?;
        if self.ops.size_bytes().is_none() {
            self.check_begin(first, commit)?;
            self.trim_told(first)?;
        }
        if commit < floor {
            return broken(
                Property::Linearizable,
                format!("the log ends at {commit} after {floor} was answered"),
            );
        }
        self.ops.floor = self.ops.floor.max(commit);
        self.ops.reads += 1;
        Ok(())
    }

    /// A client has read records.
    ///
    /// # Errors
    /// They are not what was committed, or miss something answered before.
    pub fn log_read(&mut self, read: &LogRead<'_>) -> Check {
        self.check_shown(read.entries)?;
        self.check_begin(read.from, read.through)?;
        self.check_position(read.through)?;
        if read.through < read.floor {
            return broken(
                Property::Linearizable,
                format!(
                    "a read shows the log up to {} after {} was answered",
                    read.through, read.floor
                ),
            );
        }
        self.check_page(read)?;
        if read.floor > Lsn::ZERO {
            self.ops.floor = self.ops.floor.max(read.through);
        }
        self.ops.reads += 1;
        Ok(())
    }

    /// A page holds every entry of its stretch that is to be shown, in order, and no other; it makes headway.
    fn check_page(&self, read: &LogRead<'_>) -> Check {
        let mut shown = read.entries.iter().map(|info| info.point.lsn);
        let stretch = (read.from.0..read.next.0).map(Lsn);
        for lsn in stretch.filter(|lsn| !self.ops.batches.is_void(*lsn)) {
            let found = shown.next();
            if found != Some(lsn) || lsn > read.through {
                return broken(
                    Property::Linearizable,
                    format!(
                        "a read shows {found:?} where {lsn} belongs, up to {}",
                        read.through
                    ),
                );
            }
        }
        if let Some(lsn) = shown.next() {
            let property = if self.ops.batches.is_void(lsn) {
                Property::Batches
            } else {
                Property::Linearizable
            };
            return broken(
                property,
                format!("a read from {} to {} shows {lsn}", read.from, read.next),
            );
        }
        if read.next <= read.from && read.from <= read.through {
            return broken(
                Property::Linearizable,
                format!(
                    "a read from {} gives nothing, committed is {}",
                    read.from, read.through
                ),
            );
        }
        Ok(())
    }

    /// A client has read bytes of a block volume: each block must be its state at one position.
    ///
    /// # Errors
    /// There is no such position.
    pub fn block_read(&mut self, offset: u64, data: &[u8], floor: Lsn) -> Check {
        let last = self.last_committed();
        let sectors: Vec<(u64, u64)> = data
            .chunks(usize::try_from(SECTOR).expect("small"))
            .enumerate()
            .map(|(index, bytes)| (offset / SECTOR + index as u64, value_of(bytes)))
            .collect();
        let per_block = BLOCK / SECTOR;
        let mut at = 0;
        while at < sectors.len() {
            let block = sectors[at].0 / per_block;
            let end = sectors[at..]
                .iter()
                .position(|(sector, _)| sector / per_block != block)
                .map_or(sectors.len(), |count| at + count);
            let part = &sectors[at..end];
            let fits = (floor.0..=last.0).any(|lsn| {
                part.iter()
                    .all(|(sector, value)| self.ops.sector(*sector, Lsn(lsn)) == *value)
            });
            if !fits {
                let now: Vec<u64> = part
                    .iter()
                    .map(|(sector, _)| self.ops.sector(*sector, last))
                    .collect();
                return broken(
                    Property::Linearizable,
                    format!(
                        "block {block} read as {part:x?} after {floor} was answered; at {last} it is {now:x?}"
                    ),
                );
            }
            at = end;
        }
        self.ops.reads += 1;
        Ok(())
    }
}

/// The value of a sector: every word of it is the same, or it is torn.
fn value_of(bytes: &[u8]) -> u64 {
    let word = |chunk: &[u8]| chunk.try_into().map_or(u64::MAX, u64::from_le_bytes);
    let first = bytes.get(..8).map_or(u64::MAX, word);
    if bytes.chunks(8).all(|chunk| word(chunk) == first) {
        first
    } else {
        u64::MAX
    }
}
