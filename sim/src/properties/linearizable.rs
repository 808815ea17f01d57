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
use super::{Check, EntryInfo, Oracle, Property, broken};

/// Bytes that carry one value in the model of a block volume.
pub const SECTOR: u64 = 512;
/// A block: the unit in which a read is one state.
pub const BLOCK: u64 = 4096;

/// A mutation as its client called it.
#[derive(Debug, Clone, Copy)]
pub struct Called {
    /// First eight bytes of its payload.
    pub tag: u64,
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
    /// Commit point that was shown.
    pub through: Lsn,
    /// Whether all entries up to `through` should be there.
    pub whole: bool,
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
    committed: BTreeMap<(SessionId, u64), Lsn>,
    /// Values of each sector: (LSN, tag), rising.
    sectors: BTreeMap<u64, Vec<(Lsn, u64)>>,
    last_timestamp: u64,
    attachments: Attachments,
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
        if let Some(lsn) = self.committed.get(&(session, seq)) {
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
        }
        let mutation = matches!(
            info.kind,
            EntryKind::Record | EntryKind::Write | EntryKind::Trim | EntryKind::Zeroes
        );
        if !mutation {
            return Ok(());
        }
        let (key, lsn) = ((info.session, info.seq), info.point.lsn);
        let same = |called: &&Called| {
            called.tag == info.tag
                && called.kind == info.kind
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
        if called.never {
            return broken(
                Property::Linearizable,
                format!(
                    "{key:?} commits at {lsn} after its client was told that it never happened"
                ),
            );
        }
        if lsn <= called.floor {
            return broken(
                Property::Linearizable,
                format!(
                    "{key:?} commits at {lsn}, but was called after {} was answered",
                    called.floor
                ),
            );
        }
        if let Some(first) = self.committed.insert(key, lsn) {
            return broken(
                Property::Linearizable,
                format!("{key:?} is committed twice, at {first} and at {lsn}"),
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
        } else {
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
    pub fn answered(&mut self, session: SessionId, seq: u64, lsn: Lsn) -> Check {
        if self.ops.committed.get(&(session, seq)) != Some(&lsn) {
            return broken(
                Property::Linearizable,
                format!(
                    "{session} is told that {seq} is at {lsn}; it is at {:?}",
                    self.ops.committed.get(&(session, seq))
                ),
            );
        }
        self.ops.floor = self.ops.floor.max(lsn);
        self.ops.answered += 1;
        Ok(())
    }

    /// A client is told where the log ends.
    ///
    /// # Errors
    /// Something answered before lies behind that end.
    pub fn position_read(&mut self, commit: Lsn, floor: Lsn) -> Check {
        self.check_position(commit)?;
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
        let mut expected = read.from;
        for info in read.entries {
            if info.point.lsn != expected || info.point.lsn > read.through {
                return broken(
                    Property::Linearizable,
                    format!(
                        "a read shows {} where {expected} belongs, up to {}",
                        info.point, read.through
                    ),
                );
            }
            expected = expected.next();
        }
        if read.whole && expected <= read.through {
            return broken(
                Property::Linearizable,
                format!(
                    "a read from {} ends before {expected}, committed is {}",
                    read.from, read.through
                ),
            );
        }
        if read.floor > Lsn::ZERO {
            self.ops.floor = self.ops.floor.max(read.through);
        }
        self.ops.reads += 1;
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
