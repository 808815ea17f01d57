//! Retention of a log by age and by bytes: a policy that is an entry of the log, and trims that the primary proposes by it.
//!
//! A `RetainLog` entry carries the whole policy; it is part of the replicated state from that entry on, whoever is primary. What it
//! asks for is carried out by ordinary `TrimLog` entries, so that all copies and all readers agree where the log begins.
//!
//! **Invariant**: no trim by the policy takes a record that the policy keeps. It keeps every record that is younger than its age, by
//! the records' own timestamps and the time that the primary would stamp a record with now; and the newest records that together have
//! at least its bytes of payload. The order of events that would break it: a replica whose clock is a day ahead trims by its own
//! opinion; so only who acts as primary proposes, and proposes an entry. The primary has ordered a policy that keeps more, and trims by
//! the one before, which is what it has applied; so it proposes nothing while a policy is on its way. And a trim in the middle of an atomic batch would show
//! half of it: so only the positions of [`Marks`] are proposed, and none of them lies within a batch.
//!
//! Where records lie by time and bytes is remembered for at most [`MARKS_MAX`] positions, so that a log of any size costs the same
//! memory: when they are too many, every second one is forgotten. So more is kept than the policy asks for, by about a
//! five-hundredth of the log.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use mainstay_replication::Mistake;
use mainstay_storage::EntryKind;
use mainstay_storage::format::{EntryHeader, encode_unstamped};
use mainstay_types::{Lsn, MonoTime, SessionId, VolumeKind};

use crate::batch::FLAG_MORE;
use crate::event::Now;
use crate::sessions::{BlobError, take, u64_of};
use crate::volume::Volume;

/// Positions remembered.
const MARKS_MAX: usize = 1024;

/// Between two of them, at first: whichever comes sooner.
const SPACING_BYTES: u64 = 4 << 10;
const SPACING_NS: u64 = 10_000_000;

/// How often the primary looks at the policy.
const EVERY: Duration = Duration::from_secs(1);

/// A trim takes at least this part of what the policy keeps: a trickle of records does not become a trickle of trims.
const WORTHWHILE: u64 = 64;

/// What a log keeps. Zero for no bound; with neither, everything is kept until it is trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Records younger than this stay, in milliseconds.
    pub age_ms: u64,
    /// The newest records with together so many bytes of payload stay.
    pub bytes: u64,
}

impl Retention {
    /// The payload of a `RetainLog` entry.
    pub const BYTES: usize = 16;

    /// Whether there is any bound.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    /// As a `RetainLog` entry carries it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.age_ms.to_le_bytes());
        out[8..].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    /// None if these are not the bytes of one.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (age, bytes) = payload.split_first_chunk()?;
        Some(Self {
            age_ms: u64::from_le_bytes(*age),
            bytes: u64::from_le_bytes(bytes.try_into().ok()?),
        })
    }

    fn age_ns(&self) -> u64 {
        self.age_ms.saturating_mul(1_000_000)
    }
}

/// A position at which the log may begin: of a record that is not within a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    lsn: Lsn,
    timestamp_ns: u64,
    /// Payload of all records below it, since the log was made.
    bytes_below: u64,
}

/// Where records lie by time and by bytes. A function of the log's committed prefix alone, as the rest of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    marks: VecDeque<Mark>,
    spacing_bytes: u64,
    spacing_ns: u64,
    /// Payload of all records.
    bytes: u64,
    /// The next record belongs to the batch of the last.
    within_batch: bool,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            marks: VecDeque::new(),
            spacing_bytes: SPACING_BYTES,
            spacing_ns: SPACING_NS,
            bytes: 0,
            within_batch: false,
        }
    }
}

impl Marks {
    /// Takes the next committed entry.
    pub(crate) fn take(&mut self, header: &EntryHeader) {
        if header.kind != EntryKind::Record {
            // A batch that something else cuts short is void.
            self.within_batch = false;
            return;
        }
        if !self.within_batch && self.is_due(header.arg) {
            self.marks.push_back(Mark {
                lsn: header.point.lsn,
                timestamp_ns: header.arg,
                bytes_below: self.bytes,
            });
            if self.marks.len() > MARKS_MAX {
                self.thin_out();
            }
        }
        self.bytes += u64::from(header.payload_len);
        self.within_batch = header.flags & FLAG_MORE != 0;
    }

    fn is_due(&self, timestamp_ns: u64) -> bool {
        self.marks.back().is_none_or(|last| {
            self.bytes - last.bytes_below >= self.spacing_bytes
                || timestamp_ns.saturating_sub(last.timestamp_ns) >= self.spacing_ns
        })
    }

    /// Forgets every second one but the first: it says how many bytes lie below the trim point.
    fn thin_out(&mut self) {
        let mut at = 0;
        self.marks.retain(|_| {
            at += 1;
            at % 2 == 1
        });
        self.spacing_bytes = self.spacing_bytes.saturating_mul(2);
        self.spacing_ns = self.spacing_ns.saturating_mul(2);
    }

    /// Forgets what lies below the trim point, but for the last one.
    pub(crate) fn trimmed(&mut self, first: Lsn) {
        while self.marks.get(1).is_some_and(|next| next.lsn <= first) {
            self.marks.pop_front();
        }
    }

    /// Where the log may begin: nothing below it is kept by `policy`, and it is worth a trim.
    fn begin_at(&self, policy: Retention, now_ns: u64) -> Option<Lsn> {
        let first = self.marks.front()?;
        let mut begin = None;
        if policy.bytes > 0 {
            let kept = |mark: &&Mark| self.bytes - mark.bytes_below >= policy.bytes;
            let last = self.marks.iter().rev().find(kept);
            let freed =
                |mark: &&Mark| mark.bytes_below - first.bytes_below > policy.bytes / WORTHWHILE;
            begin = begin.max(last.filter(freed).map(|mark| mark.lsn));
        }
        if policy.age_ms > 0 {
            // Everything below a mark is at least as old as the mark.
            let cutoff = now_ns.saturating_sub(policy.age_ns());
            let last = self
                .marks
                .iter()
                .rev()
                .find(|mark| mark.timestamp_ns <= cutoff);
            let older = |mark: &&Mark| {
                mark.timestamp_ns.saturating_sub(first.timestamp_ns) > policy.age_ns() / WORTHWHILE
            };
            begin = begin.max(last.filter(older).map(|mark| mark.lsn));
        }
        begin.filter(|lsn| *lsn > first.lsn)
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.bytes);
        out.put_u64_le(self.spacing_bytes);
        out.put_u64_le(self.spacing_ns);
        out.put_u8(u8::from(self.within_batch));
        out.put_u32_le(u32::try_from(self.marks.len()).expect("bounded by MARKS_MAX"));
        for mark in &self.marks {
            out.put_u64_le(mark.lsn.0);
            out.put_u64_le(mark.timestamp_ns);
            out.put_u64_le(mark.bytes_below);
        }
    }

    pub(crate) fn decode(rest: &mut Bytes) -> Result<Self, BlobError> {
        let mut marks = Self {
            bytes: u64_of(rest)?,
            spacing_bytes: u64_of(rest)?,
            spacing_ns: u64_of(rest)?,
            within_batch: take(rest, 1)?[0] != 0,
            marks: VecDeque::new(),
        };
        let count = u32::from_le_bytes(take(rest, 4)?[..].try_into().expect("four bytes"));
        for _ in 0..count {
            let mark = Mark {
                lsn: Lsn(u64_of(rest)?),
                timestamp_ns: u64_of(rest)?,
                bytes_below: u64_of(rest)?,
            };
            if mark.bytes_below > marks.bytes {
                return Err(BlobError::Marks);
            }
            marks.marks.push_back(mark);
        }
        Ok(marks)
    }
}

impl Volume {
    /// When the policy has to be looked at, whatever happens.
    pub(crate) fn retain_due(&self) -> MonoTime {
        if self.spec.kind == VolumeKind::Log
            && self.sessions.retention.age_ms > 0
            && self.member.accepts()
        {
            self.retain_at
        } else {
            MonoTime::MAX
        }
    }

    /// Proposes a trim of what the policy keeps no longer.
    pub(crate) fn maybe_retain(&mut self, now: Now) {
        let policy = self.sessions.retention;
        if self.spec.kind != VolumeKind::Log
            || !policy.is_set()
            || now.mono < self.retain_at
            || !self.member.accepts()
            // A trim by the policy before would be ordered behind the one that keeps more.
            || self.applied < self.clients.policy
        {
            return;
        }
        self.retain_at = now.mono + EVERY;
        let stamp = now.wall_ns.max(self.clients.last_timestamp);
        let mut begin = self.sessions.marks.begin_at(policy, stamp);
        if self.config.member.mistakes.has(Mistake::KeptTrimmed) {
            begin = self.sessions.marks.marks.back().map(|mark| mark.lsn);
        }
        let Some(first) = begin.filter(|first| *first > self.sessions.trim_point) else {
            return;
        };
        let release = self.releasable(first).0.to_le_bytes();
        let entry = encode_unstamped(EntryKind::TrimLog, SessionId(0), 0, 0, first.0, &release);
        self.clients.stage(entry);
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::{Epoch, LogPoint};

    use super::*;

    fn record(lsn: u64, timestamp_ns: u64, payload_len: u32, flags: u8) -> EntryHeader {
        EntryHeader {
            header_crc: 0,
            payload_crc: 0,
            prev_crc: 0,
            payload_len,
            point: LogPoint {
                epoch: Epoch(1),
                lsn: Lsn(lsn),
            },
            kind: EntryKind::Record,
            flags,
            generation: 1,
            session: SessionId(1),
            seq: lsn,
            arg: timestamp_ns,
        }
    }

    /// Records of 1000 bytes, one every 100 ms, at LSNs from 1.
    fn log(records: u64) -> Marks {
        let mut marks = Marks::default();
        for lsn in 1..=records {
            marks.take(&record(lsn, lsn * 100_000_000, 1000, 0));
        }
        marks
    }

    const AGE: Retention = Retention {
        age_ms: 10_000,
        bytes: 0,
    };
    const BYTES: Retention = Retention {
        age_ms: 0,
        bytes: 50_000,
    };

    #[test]
    fn what_the_policy_keeps_stays_and_not_much_more() {
        for records in [200, 5000, 100_000] {
            let marks = log(records);
            assert!(marks.marks.len() <= MARKS_MAX);
            let slack = records / 400 + 1;
            let begin = marks.begin_at(BYTES, 0).expect("more than that").0;
            let kept = records + 1 - begin;
            assert!((50..=50 + slack).contains(&kept), "{records}: {kept}");
            let begin = marks.begin_at(AGE, records * 100_000_000).expect("older").0;
            let kept = records + 1 - begin;
            assert!((101..=101 + slack).contains(&kept), "{records}: {kept}");
        }
    }

    #[test]
    fn either_bound_alone_is_enough_to_trim_and_none_trims_nothing() {
        let marks = log(1000);
        let both = Retention {
            age_ms: AGE.age_ms,
            bytes: BYTES.bytes,
        };
        let now = 1000 * 100_000_000;
        let (by_age, by_bytes) = (marks.begin_at(AGE, now), marks.begin_at(BYTES, now));
        assert!(by_age < by_bytes);
        assert_eq!(marks.begin_at(both, now), by_bytes);
        assert_eq!(marks.begin_at(Retention::default(), now), None);
        assert_eq!(log(40).begin_at(BYTES, now), None, "all of it is kept");
        assert_eq!(Marks::default().begin_at(both, now), None);
    }

    #[test]
    fn a_trickle_of_records_is_no_trickle_of_trims() {
        let mut marks = log(1000);
        let mut trims = 0;
        for lsn in 1001..=2000 {
            marks.take(&record(lsn, lsn * 100_000_000, 1000, 0));
            if let Some(first) = marks.begin_at(AGE, lsn * 100_000_000) {
                trims += 1;
                marks.trimmed(first);
            }
        }
        // A tenth of the age at a time would be 1000 / 10; it is at most one for each 64th of the age.
        assert!((10..=1000).contains(&trims), "{trims}");
        let mut marks = log(1000);
        let policy = Retention {
            age_ms: 100_000,
            bytes: 0,
        };
        let mut trims = 0;
        for lsn in 1001..=3000 {
            marks.take(&record(lsn, lsn * 100_000_000, 1000, 0));
            if let Some(first) = marks.begin_at(policy, lsn * 100_000_000) {
                trims += 1;
                marks.trimmed(first);
            }
        }
        assert!(
            (30..=140).contains(&trims),
            "{trims} trims for 2000 records"
        );
    }

    #[test]
    fn no_mark_lies_within_a_batch() {
        let mut marks = Marks::default();
        for batch in 0..100 {
            for at in 0..10 {
                let more = if at < 9 { FLAG_MORE } else { 0 };
                let lsn = batch * 10 + at + 1;
                marks.take(&record(lsn, lsn * 1_000_000_000, 5000, more));
            }
        }
        assert_eq!(marks.marks.len(), 100);
        assert!(marks.marks.iter().all(|mark| mark.lsn.0 % 10 == 1));
        // A batch that is cut short ends with the entry that cuts it.
        marks.take(&record(1001, 2_000_000_000_000, 5000, FLAG_MORE));
        marks.take(&EntryHeader {
            kind: EntryKind::EpochStart,
            ..record(1002, 0, 0, 0)
        });
        marks.take(&record(1003, 3_000_000_000_000, 5000, 0));
        assert_eq!(marks.marks.back().map(|mark| mark.lsn), Some(Lsn(1003)));
    }

    #[test]
    fn marks_are_read_as_they_were_written_and_nothing_else_is() {
        let mut marks = log(3000);
        marks.trimmed(Lsn(700));
        let mut out = BytesMut::new();
        marks.encode(&mut out);
        let blob = out.freeze();
        assert_eq!(Marks::decode(&mut blob.clone()), Ok(marks));
        for len in 0..blob.len() {
            assert_eq!(Marks::decode(&mut blob.slice(..len)), Err(BlobError::Short));
        }
        for policy in [AGE, BYTES, Retention::default()] {
            assert_eq!(Retention::decode(&policy.encode()), Some(policy));
        }
        assert_eq!(Retention::decode(&[0; 15]), None);
        assert_eq!(Retention::decode(&[0; 17]), None);
    }
}
