//! The session table: what each client had committed. A function of the log's committed prefix alone (R9.1, M5).
//!
//! Bounded: each session keeps its newest [`RESULTS_KEPT`] results, all together `RESULTS_TOTAL`, and beyond `SESSIONS_KEPT` sessions
//! the one that wrote least recently is forgotten, which every member finds at the same entry.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mainstay_storage::EntryKind;
use mainstay_storage::format::{EntryHeader, EntryRef};
use mainstay_types::{Lsn, SessionId};

use crate::batch::{Batches, Step, Voids};
use crate::retention::{Marks, Retention, RetentionChange};
use crate::trims::release_of;

/// Results kept for each session: a client must not have more unanswered.
pub const RESULTS_KEPT: usize = 4096;

/// Sessions kept.
const SESSIONS_KEPT: usize = 10_000;

/// Results kept of all sessions together, with which a table stays well below what a checkpoint holds (64 MiB).
const RESULTS_TOTAL: usize = 1 << 20;

/// Beyond that, the sessions that wrote least recently are left with this many each, until an eighth of all results is gone.
const RESULTS_LEFT: usize = 64;
const RESULTS_AFTER: usize = RESULTS_TOTAL / 8 * 7;

// There are always sessions that have more than they may be left with.
const _: () = assert!(SESSIONS_KEPT * RESULTS_LEFT < RESULTS_AFTER);

/// Flag of a `SessionOpen` entry: the session writes under the present attachment.
pub(crate) const FLAG_ATTACHED: u8 = 1;

/// Flag of a `SessionOpen` entry: it opens a session that is known. One that was forgotten before the entry was committed stays so: its
/// client may send again what was committed, and nobody would know.
pub(crate) const FLAG_KNOWN: u8 = 2;

const BLOB_VERSION: u16 = 7;

/// A committed mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) seq: u64,
    /// Of its entry, or of the first one of a batch.
    pub(crate) lsn: Lsn,
    /// Entries, side by side: more than one for a batch.
    pub(crate) count: u32,
    pub(crate) arg: u64,
}

impl Done {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.seq);
        out.put_u64_le(self.lsn.0);
        out.put_u32_le(self.count);
        out.put_u64_le(self.arg);
    }

    pub(crate) fn decode(rest: &mut Bytes) -> Result<Self, BlobError> {
        Ok(Self {
            seq: u64_of(rest)?,
            lsn: Lsn(u64_of(rest)?),
            count: take(rest, 4)?.get_u32_le(),
            arg: u64_of(rest)?,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Session {
    pub(crate) generation: u32,
    /// Last sequence number committed.
    pub(crate) last_seq: u64,
    /// Last entry of the session.
    last_lsn: Lsn,
    /// LSN of the attachment that it writes under; zero for none.
    pub(crate) attachment: Lsn,
    results: VecDeque<Done>,
    /// Older results were forgotten.
    forgot: bool,
}

impl Session {
    /// The lowest sequence number whose result is kept, once results have been forgotten; else none.
    pub(crate) fn oldest_result(&self) -> Option<u64> {
        let next = self.last_seq.saturating_add(1);
        (self.forgot || self.results.len() >= RESULTS_KEPT)
            .then(|| self.results.front().map_or(next, |done| done.seq))
    }

    pub(crate) fn result(&self, seq: u64) -> Option<Done> {
        let at = self.results.partition_point(|done| done.seq < seq);
        self.results.get(at).copied().filter(|done| done.seq == seq)
    }
}

/// Who holds a block volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) name: String,
    /// LSN of its `Attach` entry.
    pub(crate) lsn: Lsn,
}

/// A session table that does not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Fewer bytes than it says.
    #[error("session table ends too early")]
    Short,
    /// Of another version of this program.
    #[error("session table of version {found}, this program reads {BLOB_VERSION}")]
    Version {
        /// Found.
        found: u16,
    },
    /// A name that is not UTF-8.
    #[error("attachment name is not UTF-8")]
    Name,
    /// Positions that contradict one another.
    #[error("session table has more bytes of records below a position than in all")]
    Marks,
}

/// All sessions of one volume at one position of its log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    /// Results of all of them.
    results: usize,
    pub(crate) attached: Option<Attached>,
    batches: Batches,
    /// Greatest token of a writer; zero if none ever gave one. Never falls.
    pub(crate) token: u64,
    /// Nobody is shown anything below it. Never falls.
    pub(crate) trim_point: Lsn,
    /// Copies may give back what lies below it; at most the trim point. Never falls.
    pub(crate) release: Lsn,
    /// What the log keeps.
    pub(crate) retention: Retention,
    /// Where its records lie by time and by bytes.
    pub(crate) marks: Marks,
    /// The table is that of this position although less is applied: a log that was copied whole begins below it. Zero for none.
    pub(crate) ahead_until: Lsn,
    /// Greatest timestamp of a record.
    pub(crate) last_timestamp: u64,
    /// Beside the sessions, because it must be as durable: an image that was copied while it changed is consistent
    /// once the log is applied up to here.
    pub(crate) consistent_from: Lsn,
}

impl Sessions {
    pub(crate) fn get(&self, session: SessionId) -> Option<&Session> {
        self.sessions.get(&session)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &SessionId> {
        self.sessions.keys()
    }

    /// How many sessions are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether no session is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Who holds the volume.
    #[must_use]
    pub fn attached_by(&self) -> Option<&str> {
        self.attached
            .as_ref()
            .map(|attached| attached.name.as_str())
    }

    /// Where the log begins for its readers.
    #[must_use]
    pub fn trim_point(&self) -> Lsn {
        self.trim_point
    }

    /// What the log keeps.
    #[must_use]
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// An image that was copied while it changed is consistent once the log is applied up to here.
    #[must_use]
    pub fn consistent_from(&self) -> Lsn {
        self.consistent_from
    }

    /// The last entry that may be shown when everything up to `applied` was taken: no part of a batch that is not whole.
    pub(crate) fn visible(&self, applied: Lsn) -> Lsn {
        if applied < self.ahead_until {
            return Lsn::ZERO;
        }
        self.batches.visible(applied)
    }

    /// What is shown to nobody.
    pub(crate) fn voids(&self) -> &Voids {
        self.batches.voids()
    }

    /// Takes the next committed entry; answers the mutation that took effect with it.
    pub(crate) fn apply(&mut self, entry: &EntryRef) -> Option<Done> {
        let header = &entry.header;
        let lsn = header.point.lsn;
        if lsn <= self.ahead_until {
            if lsn == self.ahead_until {
                self.ahead_until = Lsn::ZERO;
            }
            return None;
        }
        if header.kind == EntryKind::Record {
            // Also of a batch that is cut short: timestamps rise with positions, whatever is shown.
            self.last_timestamp = self.last_timestamp.max(header.arg);
        }
        let done = match self.batches.take(header) {
            Step::Held => return None,
            Step::Whole { done, bytes } => {
                self.marks.take(done, bytes);
                done
            }
            Step::Other => Done {
                seq: header.seq,
                lsn,
                count: 1,
                // The answer to a trim or a policy has no timestamp.
                arg: match header.kind {
                    EntryKind::TrimLog | EntryKind::RetainLog => 0,
                    _ => header.arg,
                },
            },
        };
        match header.kind {
            EntryKind::EpochStart => {}
            EntryKind::Attach => {
                let name = String::from_utf8_lossy(&entry.payload()).into_owned();
                self.attached = Some(Attached { name, lsn });
            }
            EntryKind::Detach => self.attached = None,
            EntryKind::SessionOpen => {
                let attachment = match &self.attached {
                    Some(attached) if header.flags & FLAG_ATTACHED != 0 => attached.lsn,
                    _ => Lsn::ZERO,
                };
                self.token = self.token.max(header.arg);
                let known = self.sessions.contains_key(&header.session);
                if !known && header.flags & FLAG_KNOWN != 0 {
                    return None;
                }
                let session = self.touch(header.session, lsn);
                session.generation = header.generation;
                session.attachment = attachment;
                if !known && header.seq > 0 {
                    // It was known once: its client has had answers, whose results are forgotten.
                    session.last_seq = header.seq;
                    session.forgot = true;
                }
            }
            EntryKind::SessionClose => self.close(header.session),
            EntryKind::TrimLog => {
                self.trim(Lsn(header.arg), release_of(&entry.payload()));
                if header.session != SessionId(0) {
                    self.note_done(header, done);
                    return Some(done);
                }
            }
            EntryKind::RetainLog => {
                // A payload that is none was refused before it was ordered.
                let change = RetentionChange::decode(&entry.payload()).unwrap_or_default();
                self.retention = change.applied(self.retention);
                self.note_done(header, done);
                return Some(done);
            }
            EntryKind::Record | EntryKind::Write | EntryKind::Trim | EntryKind::Zeroes => {
                self.note_done(header, done);
                return Some(done);
            }
        }
        None
    }

    fn note_done(&mut self, header: &EntryHeader, done: Done) {
        let session = self.touch(header.session, header.point.lsn);
        // Never opened, as far as this table knows: it was forgotten with all results, and is made anew by an entry that was on its way.
        let made_anew = session.generation == 0 && session.last_seq == 0;
        session.forgot |= made_anew && header.seq > 1;
        session.last_seq = header.seq;
        session.results.push_back(done);
        let full = session.results.len() > RESULTS_KEPT;
        if full {
            session.results.pop_front();
            session.forgot = true;
        }
        self.results += usize::from(!full);
        if self.results > RESULTS_TOTAL {
            self.forget_results();
        }
    }

    /// Looks at every session, once in as many results as it forgets.
    fn forget_results(&mut self) {
        let mut sessions: Vec<_> = self.sessions.values_mut().collect();
        sessions.sort_unstable_by_key(|session| session.last_lsn);
        for session in sessions {
            if self.results <= RESULTS_AFTER {
                return;
            }
            let gone = session.results.len().saturating_sub(RESULTS_LEFT);
            if gone > 0 {
                session.results.drain(..gone);
                session.results.shrink_to_fit();
                session.forgot = true;
                self.results -= gone;
            }
        }
    }

    fn trim(&mut self, first: Lsn, release: Option<Lsn>) {
        self.trim_point = self.trim_point.max(first);
        let release = release.unwrap_or(Lsn::ZERO).min(first);
        self.release = self.release.max(release);
        self.batches.forget_below(self.trim_point);
        self.marks.trimmed(self.trim_point);
    }

    fn touch(&mut self, id: SessionId, lsn: Lsn) -> &mut Session {
        if self.sessions.len() >= SESSIONS_KEPT && !self.sessions.contains_key(&id) {
            self.forget_oldest();
        }
        let session = self.sessions.entry(id).or_default();
        session.last_lsn = lsn;
        session
    }

    /// Looks at every session: that is cheap beside keeping them in order of age at every entry, as it happens only when a
    /// session is opened beyond the bound.
    fn forget_oldest(&mut self) {
        let oldest = self
            .sessions
            .iter()
            .min_by_key(|(_, session)| session.last_lsn);
        if let Some(id) = oldest.map(|(id, _)| *id) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        self.results -= session.results.len();
        Some(session)
    }

    fn close(&mut self, id: SessionId) {
        let Some(session) = self.remove(id) else {
            return;
        };
        let holds = |attached: &Attached| {
            session.attachment == attached.lsn
                && self.sessions.values().all(|s| s.attachment != attached.lsn)
        };
        if self.attached.as_ref().is_some_and(holds) {
            self.attached = None;
        }
    }

    /// The table as bytes, for a checkpoint.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u16_le(BLOB_VERSION);
        out.put_u64_le(self.last_timestamp);
        out.put_u64_le(self.consistent_from.0);
        out.put_u64_le(self.token);
        out.put_u64_le(self.trim_point.0);
        out.put_u64_le(self.release.0);
        out.put_u64_le(self.ahead_until.0);
        let (lsn, name) = self
            .attached
            .as_ref()
            .map_or((Lsn::ZERO, ""), |a| (a.lsn, a.name.as_str()));
        out.put_u64_le(lsn.0);
        out.put_u32_le(u32::try_from(name.len()).unwrap_or(0));
        out.put_slice(name.as_bytes());
        self.batches.encode(&mut out);
        out.put_slice(&self.retention.encode());
        self.marks.encode(&mut out);
        out.put_u32_le(u32::try_from(self.sessions.len()).expect("bounded by SESSIONS_KEPT"));
        for (id, session) in &self.sessions {
            out.put_u64_le(id.0);
            out.put_u32_le(session.generation);
            out.put_u64_le(session.last_seq);
            out.put_u64_le(session.last_lsn.0);
            out.put_u64_le(session.attachment.0);
            out.put_u8(u8::from(session.forgot));
            out.put_u32_le(u32::try_from(session.results.len()).expect("bounded by RESULTS_KEPT"));
            for done in &session.results {
                done.encode(&mut out);
            }
        }
        out.freeze()
    }

    /// A table from bytes; an empty one from none.
    ///
    /// # Errors
    /// The bytes are not a table of this version.
    pub fn decode(blob: &Bytes) -> Result<Self, BlobError> {
        let mut table = Self::default();
        if blob.is_empty() {
            return Ok(table);
        }
        let mut rest = blob.clone();
        let version = take(&mut rest, 2)?.get_u16_le();
        if version != BLOB_VERSION {
            return Err(BlobError::Version { found: version });
        }
        table.last_timestamp = u64_of(&mut rest)?;
        table.consistent_from = Lsn(u64_of(&mut rest)?);
        table.token = u64_of(&mut rest)?;
        table.trim_point = Lsn(u64_of(&mut rest)?);
        table.release = Lsn(u64_of(&mut rest)?);
        table.ahead_until = Lsn(u64_of(&mut rest)?);
        let lsn = Lsn(u64_of(&mut rest)?);
        let name_len = take(&mut rest, 4)?.get_u32_le() as usize;
        let name =
            String::from_utf8(take(&mut rest, name_len)?.to_vec()).map_err(|_| BlobError::Name)?;
        table.attached = (lsn != Lsn::ZERO).then_some(Attached { name, lsn });
        table.batches = Batches::decode(&mut rest)?;
        let policy = take(&mut rest, Retention::BYTES)?;
        table.retention = Retention::decode(&policy).ok_or(BlobError::Short)?;
        table.marks = Marks::decode(&mut rest)?;
        let count = take(&mut rest, 4)?.get_u32_le();
        for _ in 0..count {
            let id = SessionId(u64_of(&mut rest)?);
            let session = session_of(&mut rest)?;
            table.results += session.results.len();
            table.sessions.insert(id, session);
        }
        Ok(table)
    }
}

fn session_of(rest: &mut Bytes) -> Result<Session, BlobError> {
    let mut session = Session {
        generation: take(rest, 4)?.get_u32_le(),
        last_seq: u64_of(rest)?,
        last_lsn: Lsn(u64_of(rest)?),
        attachment: Lsn(u64_of(rest)?),
        forgot: take(rest, 1)?.get_u8() != 0,
        results: VecDeque::new(),
    };
    let results = take(rest, 4)?.get_u32_le();
    for _ in 0..results {
        session.results.push_back(Done::decode(rest)?);
    }
    Ok(session)
}

pub(crate) fn take(rest: &mut Bytes, len: usize) -> Result<Bytes, BlobError> {
    if rest.len() < len {
        Err(BlobError::Short)
    } else {
        Ok(rest.split_to(len))
    }
}

pub(crate) fn u64_of(rest: &mut Bytes) -> Result<u64, BlobError> {
    take(rest, 8).map(|mut bytes| bytes.get_u64_le())
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::*;
    use crate::tests::epoch_start;

    /// What a checkpoint holds (`mainstay_storage::checkpoint`).
    const BLOB_BYTES_MAX: usize = 64 << 20;

    /// `session` commits `count` mutations from number 1 on, and whoever looks at it next stands behind them.
    fn write(table: &mut Sessions, at: &mut Lsn, session: u64, count: u64) {
        write_all(table, at, session, 1..=count);
    }

    fn write_all(table: &mut Sessions, at: &mut Lsn, session: u64, seqs: RangeInclusive<u64>) {
        let mut header = epoch_start(1, mainstay_storage::LogEnd::ZERO).header;
        for seq in seqs {
            *at = at.next();
            (header.session, header.seq) = (SessionId(session), seq);
            header.point.lsn = *at;
            let done = Done {
                seq,
                lsn: *at,
                count: 1,
                arg: 0,
            };
            table.note_done(&header, done);
        }
    }

    /// A session is forgotten because of others while its next entry is on its way: what it had committed before is not told to have
    /// been refused.
    #[test]
    fn a_session_that_an_entry_makes_anew_knows_that_it_forgot() {
        let (mut table, mut at) = (Sessions::default(), Lsn::ZERO);
        for session in 0..=SESSIONS_KEPT as u64 {
            write(&mut table, &mut at, session, 4);
        }
        assert_eq!(table.get(SessionId(0)), None);
        write_all(&mut table, &mut at, 0, 5..=5);
        let anew = table.get(SessionId(0)).expect("made anew");
        assert_eq!((anew.oldest_result(), anew.last_seq), (Some(5), 5));
        assert!(anew.result(5).is_some());
        // One that begins has forgotten nothing.
        let first = table.get(SessionId(9)).expect("kept");
        assert_eq!(first.oldest_result(), None);
        assert_eq!(Sessions::decode(&table.encode()).expect("a table"), table);
    }

    /// Clients that write much and are killed never close their sessions.
    #[test]
    fn a_table_never_outgrows_what_a_checkpoint_holds() {
        let (mut table, mut at) = (Sessions::default(), Lsn::ZERO);
        for session in 0..SESSIONS_KEPT as u64 {
            write(&mut table, &mut at, session, 1);
        }
        for session in 0..600 {
            write(&mut table, &mut at, session, RESULTS_KEPT as u64);
        }
        assert!(table.results <= RESULTS_TOTAL);
        let encoded = table.encode();
        assert!(encoded.len() < BLOB_BYTES_MAX / 2, "{}", encoded.len());
        // Those that wrote longest ago have lost results, and say so; the newest of all have theirs.
        let first = table.get(SessionId(0)).expect("kept");
        let oldest = (RESULTS_KEPT - RESULTS_LEFT) as u64 + 1;
        assert_eq!(first.oldest_result(), Some(oldest));
        assert!(first.result(oldest).is_some() && first.result(oldest - 1).is_none());
        let last = table.get(SessionId(599)).expect("kept");
        assert!(last.result(1).is_some());
        let idle = table.get(SessionId(5_000)).expect("kept");
        assert_eq!(
            (idle.oldest_result(), idle.result(1).is_some()),
            (None, true)
        );
        // A copy that starts from a checkpoint forgets the same as one that goes on.
        let mut again = Sessions::decode(&encoded).expect("a table");
        assert_eq!(again, table);
        for session in 600..620 {
            let mut beside = at;
            write(&mut again, &mut beside, session, 3_000);
            write(&mut table, &mut at, session, 3_000);
        }
        assert!(again == table, "copies differ");
    }
}
