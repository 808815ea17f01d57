//! Retention of a log by age and by bytes: a policy that is an entry of the log, and trims that the primary proposes by it.
//!
//! A `RetainLog` entry carries the whole policy; it is part of the replicated state from that entry on, whoever is primary. What it
//! asks for is carried out by ordinary `TrimLog` entries, so that all copies and all readers agree where the log begins.
//!
//! **Invariant**: no trim by the policy takes a record that the policy keeps. It keeps every record that is younger than its age, by
//! the records' own timestamps and the time that the primary would stamp a record with now; and the newest records that together have
//! at least its bytes of payload. Orders of events that would break it:
//!
//! * A replica whose clock is a day ahead trims by its own opinion. So only who acts as primary proposes, and proposes an entry.
//! * The primary has ordered a policy that keeps more, and trims by the one before, which is what it has applied. So it proposes nothing
//!   while a policy is on its way.
//! * The log keeps 1 MiB; 8 MiB of a batch are committed, its primary dies, and the batch is void. If its bytes counted, they alone would
//!   be all that the policy keeps, and every record that a reader can see would go. So a batch counts once it is whole.
//! * A trim in the middle of an atomic batch would show half of it. So only positions between mutations are proposed.
//!
//! Where records lie by time and bytes is remembered for at most [`MARKS_MAX`] positions, so that a log of any size costs the same
//! memory: when they are too many, every second one is forgotten. So more is kept than the policy asks for, by about a
//! five-hundredth of the log.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use mainstay_replication::Mistake;
use mainstay_storage::EntryKind;
use mainstay_storage::format::encode_unstamped;
use mainstay_types::{Lsn, MonoTime, SessionId, VolumeKind};

use crate::event::Now;
use crate::sessions::{BlobError, Done, take, u64_of};
use crate::volume::Volume;

/// Positions remembered.
const MARKS_MAX: usize = 1024;

/// Between two of them, at first: whichever comes sooner.
const SPACING_BYTES: u64 = 4 << 10;
const SPACING_NS: u64 = 10_000_000;

/// How often the primary looks at the policy.
const EVERY: Duration = Duration::from_secs(1);

/// A trim waits until this part of a bound is there to be let go: a trickle of records does not become a trickle of trims.
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
    /// As the session table holds it.
    pub(crate) const BYTES: usize = 16;

    /// Whether there is any bound.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        words(self.age_ms, self.bytes)
    }

    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (age_ms, bytes) = words_of(payload)?;
        Some(Self { age_ms, bytes })
    }

    fn age_ns(&self) -> u64 {
        self.age_ms.saturating_mul(1_000_000)
    }
}

/// A change of what a log keeps: of the bounds that it names. Two changes of one bound each, by two operators at once, both hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionChange {
    /// The new [`Retention::age_ms`].
    pub age_ms: Option<u64>,
    /// The new [`Retention::bytes`].
    pub bytes: Option<u64>,
}

impl RetentionChange {
    /// The payload of a `RetainLog` entry.
    pub const BYTES: usize = 16;

    /// How an entry says that a bound stays as it is.
    const AS_IT_IS: u64 = u64::MAX;

    /// As a `RetainLog` entry carries it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let word = |bound: Option<u64>| {
            bound.map_or(Self::AS_IT_IS, |bound| bound.min(Self::AS_IT_IS - 1))
        };
        words(word(self.age_ms), word(self.bytes))
    }

    /// None if these are not the bytes of one.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let bound = |word: u64| (word != Self::AS_IT_IS).then_some(word);
        let (age_ms, bytes) = words_of(payload)?;
        Some(Self {
            age_ms: bound(age_ms),
            bytes: bound(bytes),
        })
    }

    /// What a log keeps that kept `before`.
    #[must_use]
    pub fn applied(&self, before: Retention) -> Retention {
        Retention {
            age_ms: self.age_ms.unwrap_or(before.age_ms),
            bytes: self.bytes.unwrap_or(before.bytes),
        }
    }
}

fn words(first: u64, second: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&first.to_le_bytes());
    out[8..].copy_from_slice(&second.to_le_bytes());
    out
}

fn words_of(payload: &[u8]) -> Option<(u64, u64)> {
    let (first, second) = payload.split_first_chunk()?;
    let second = second.try_into().ok()?;
    Some((u64::from_le_bytes(*first), u64::from_le_bytes(second)))
}

/// A position at which the log may begin: where a mutation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    lsn: Lsn,
    timestamp_ns: u64,
    /// Payload of all records below it, since the log was made.
    bytes_below: u64,
}

/// Where records lie by time and by bytes. A function of the log's committed prefix alone, as the rest of the table. Records of a batch
/// are there once it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    marks: VecDeque<Mark>,
    spacing_bytes: u64,
    spacing_ns: u64,
    /// Payload of all records.
    bytes: u64,
    /// Right behind the last record.
    end: Lsn,
    /// Timestamp of the last record.
    last_ns: u64,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            marks: VecDeque::new(),
            spacing_bytes: SPACING_BYTES,
            spacing_ns: SPACING_NS,
            bytes: 0,
            end: Lsn::ZERO,
            last_ns: 0,
        }
    }
}

impl Marks {
    /// Takes the next append that took effect, of one record or of a batch, with so many bytes of payload.
    pub(crate) fn take(&mut self, done: Done, bytes: u64) {
        if self.is_due(done.arg) {
            self.marks.push_back(Mark {
                lsn: done.lsn,
                timestamp_ns: done.arg,
                bytes_below: self.bytes,
            });
            if self.marks.len() > MARKS_MAX {
                self.thin_out();
            }
        }
        self.bytes += bytes;
        self.end = Lsn(done.lsn.0 + u64::from(done.count));
        self.last_ns = done.arg;
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

    /// Forgets what lies below the trim point, but for the last one if any record is left.
    pub(crate) fn trimmed(&mut self, first: Lsn) {
        while self.marks.get(1).is_some_and(|next| next.lsn <= first) {
            self.marks.pop_front();
        }
        if self.end <= first {
            self.marks.clear();
        }
    }

    /// Where the log may begin: nothing below it is kept by `policy`, and it is worth a trim.
    fn begin_at(&self, policy: Retention, now_ns: u64) -> Option<Lsn> {
        let first = self.marks.front()?;
        let begin = self
            .begin_by_bytes(policy, first)
            .max(self.begin_by_age(policy, now_ns, first));
        begin.filter(|lsn| *lsn > first.lsn)
    }

    fn begin_by_bytes(&self, policy: Retention, first: &Mark) -> Option<Lsn> {
        let mut marks = self.marks.iter().rev();
        let last = marks.find(|mark| self.bytes - mark.bytes_below >= policy.bytes)?;
        let freed = last.bytes_below - first.bytes_below;
        (policy.bytes > 0 && freed > policy.bytes / WORTHWHILE).then_some(last.lsn)
    }

    /// Everything below a mark is at least as old as the mark.
    fn begin_by_age(&self, policy: Retention, now_ns: u64, first: &Mark) -> Option<Lsn> {
        let cutoff = now_ns.saturating_sub(policy.age_ns());
        let overdue = cutoff.saturating_sub(first.timestamp_ns);
        if policy.age_ms == 0 || overdue <= policy.age_ns() / WORTHWHILE {
            return None;
        }
        if self.last_ns <= cutoff {
            return Some(self.end);
        }
        let mut marks = self.marks.iter().rev();
        marks
            .find(|mark| mark.timestamp_ns <= cutoff)
            .map(|mark| mark.lsn)
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.bytes);
        out.put_u64_le(self.spacing_bytes);
        out.put_u64_le(self.spacing_ns);
        out.put_u64_le(self.end.0);
        out.put_u64_le(self.last_ns);
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
            end: Lsn(u64_of(rest)?),
            last_ns: u64_of(rest)?,
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
        // One that is on its way, and cannot be committed for want of copies, is not proposed again each time.
        let under_way = self.clients.retaining.max(self.sessions.trim_point);
        let Some(first) = begin.filter(|first| *first > under_way) else {
            return;
        };
        let release = self.releasable(first).0.to_le_bytes();
        let entry = encode_unstamped(EntryKind::TrimLog, SessionId(0), 0, 0, first.0, &release);
        self.clients.retaining = first;
        self.clients.stage(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(lsn: u64, count: u32, timestamp_ns: u64) -> Done {
        Done {
            seq: lsn,
            lsn: Lsn(lsn),
            count,
            arg: timestamp_ns,
        }
    }

    const STEP_NS: u64 = 100_000_000;

    /// Records of 1000 bytes, one every 100 ms, at LSNs from 1.
    fn log(records: u64) -> Marks {
        let mut marks = Marks::default();
        for lsn in 1..=records {
            marks.take(append(lsn, 1, lsn * STEP_NS), 1000);
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
            let begin = marks.begin_at(AGE, records * STEP_NS).expect("older").0;
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
        let now = 1000 * STEP_NS;
        let (by_age, by_bytes) = (marks.begin_at(AGE, now), marks.begin_at(BYTES, now));
        assert!(by_age < by_bytes);
        assert_eq!(marks.begin_at(both, now), by_bytes);
        assert_eq!(marks.begin_at(Retention::default(), now), None);
        assert_eq!(log(40).begin_at(BYTES, now), None, "all of it is kept");
        assert_eq!(Marks::default().begin_at(both, now), None);
    }

    /// However close together the last records lie, and whether any follows them.
    #[test]
    fn all_that_is_older_than_the_age_goes_in_the_end() {
        let mut marks = Marks::default();
        let begun = 1_000 * STEP_NS;
        for lsn in 1..=50 {
            marks.take(append(lsn, 1, begun + lsn), 10);
        }
        let old = begun + 50 + AGE.age_ns();
        assert_eq!(marks.begin_at(AGE, old), None, "not worth it yet");
        let overdue = old + AGE.age_ns() / WORTHWHILE;
        assert_eq!(marks.begin_at(AGE, overdue), Some(Lsn(51)));
        marks.trimmed(Lsn(51));
        assert_eq!(marks.begin_at(AGE, u64::MAX), None, "nothing is left");
        // What comes next is measured by itself.
        marks.take(append(60, 1, overdue), 10);
        assert_eq!(marks.begin_at(AGE, overdue + STEP_NS), None);
        assert_eq!(
            marks.begin_at(AGE, overdue + 2 * AGE.age_ns()),
            Some(Lsn(61))
        );
    }

    #[test]
    fn a_trickle_of_records_is_no_trickle_of_trims() {
        for age_ms in [10_000, 100_000] {
            let policy = Retention { age_ms, bytes: 0 };
            let mut marks = log(1000);
            let mut trims = 0;
            for lsn in 1001..=3000 {
                marks.take(append(lsn, 1, lsn * STEP_NS), 1000);
                if let Some(first) = marks.begin_at(policy, lsn * STEP_NS) {
                    trims += 1;
                    marks.trimmed(first);
                }
            }
            // One for each sixty-fourth of the age, in 200 seconds, or for each record.
            let most = (200_000 * WORTHWHILE / age_ms).min(2000) + 1;
            assert!((most / 2..=most).contains(&trims), "{trims} of {most}");
        }
    }

    #[test]
    fn a_mark_is_where_a_batch_begins_and_its_bytes_count_together() {
        let mut marks = Marks::default();
        for batch in 0..100 {
            marks.take(append(batch * 10 + 1, 10, batch * 1_000_000_000), 50_000);
        }
        assert_eq!(marks.marks.len(), 100);
        assert!(marks.marks.iter().all(|mark| mark.lsn.0 % 10 == 1));
        assert_eq!(marks.begin_at(BYTES, 0), Some(Lsn(991)), "the last batch");
        assert_eq!(marks.begin_at(AGE, u64::MAX), Some(Lsn(1001)));
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

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let before = Retention {
            age_ms: 7,
            bytes: 9,
        };
        let changes = [
            (None, None, (7, 9)),
            (Some(5), None, (5, 9)),
            (None, Some(0), (7, 0)),
            (Some(u64::MAX), Some(1), (u64::MAX - 1, 1)),
        ];
        for (age_ms, bytes, after) in changes {
            let change = RetentionChange { age_ms, bytes };
            let read = RetentionChange::decode(&change.encode()).expect("a change");
            let kept = read.applied(before);
            assert_eq!((kept.age_ms, kept.bytes), after);
        }
        assert_eq!(RetentionChange::decode(&[0; 15]), None);
    }
}
