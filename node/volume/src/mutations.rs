//! Mutations: from a client's request to entries in the log, once for each number (R9.1).

use bytes::BytesMut;
use mainstay_replication::Mistake;
use mainstay_storage::EntryKind;
use mainstay_storage::format::{ENTRY_HEADER_BYTES, FLAG_ALLOCATED, range_of};
use mainstay_storage::image::range_held;
use mainstay_types::{Lsn, SessionId, VolumeKind};

use crate::batch::{BATCH_RECORDS_MAX, FLAG_MORE};
use crate::clients::{Conn, Proposed, Waiter, Wanted};
use crate::event::{ConnId, Now, OpResult, Outcome, Refusal, Token};
use crate::retention::RetentionChange;
use crate::sessions::Done;
use crate::volume::Volume;

/// What a client asks to be appended.
#[derive(Debug)]
pub(crate) struct Mutation {
    pub(crate) seq: u64,
    /// Only if the first entry gets this LSN.
    pub(crate) expected: Option<Lsn>,
    pub(crate) entry: BytesMut,
    /// The rest of an atomic batch.
    pub(crate) more: Vec<BytesMut>,
}

impl Mutation {
    fn entries(&mut self) -> impl Iterator<Item = &mut BytesMut> {
        std::iter::once(&mut self.entry).chain(&mut self.more)
    }
}

/// The answer to a mutation that took effect.
pub(crate) fn committed(done: Done) -> OpResult {
    OpResult::Committed {
        lsn: done.lsn,
        count: done.count,
        arg: done.arg,
    }
}

impl Volume {
    pub(crate) fn mutate(
        &mut self,
        now: Now,
        conn: ConnId,
        token: Token,
        mut mutation: Mutation,
    ) -> Result<Option<OpResult>, Refusal> {
        let (seq, known) = (mutation.seq, self.current(conn)?);
        let session = known.session;
        if !known.attached && self.spec.kind != VolumeKind::Log {
            return Err(Refusal::NotAttached);
        }
        self.check_mutation(&mutation)?;
        if seq <= self.last_seq(session) {
            return self.duplicate(conn, token, session, seq);
        }
        let unchecked = self.config.member.mistakes.has(Mistake::OldTokenTaken);
        let trim = trim_of(&mutation.entry);
        let retains = mutation.entry[KIND] == EntryKind::RetainLog as u8;
        if let Some(first) = trim {
            self.complete_trim(first, &mut mutation)?;
        } else if retains {
            // As a trim, it is the log's keeper's business, not its writer's: no token fences it.
        } else if let Some(fence) = self.clients.fence_over(known.token)
            && !unchecked
        {
            return self.refuse_fenced(conn, token, fence);
        }
        let lsn = self.next_lsn();
        if let Some(expected) = mutation.expected.filter(|expected| *expected != lsn) {
            let refusal = Refusal::UnexpectedLsn {
                expected,
                next: lsn,
            };
            return self.refuse_behind(conn, token, lsn.prev(), refusal);
        }
        if retains {
            self.clients.policy = lsn;
        }
        self.complete(now, &mut mutation, known);
        if let Some(bytes) = held_by_range(&mutation.entry) {
            self.memory.order(lsn, bytes);
        }
        // A batch is committed with its last record.
        let last = Lsn(lsn.0 + mutation.more.len() as u64);
        self.note_proposed(session, known.generation, seq, last);
        let waiter = Waiter {
            conn,
            token,
            wanted: Wanted::Committed { session, seq },
        };
        self.clients.wait(last, waiter);
        self.clients.stage(mutation.entry);
        for entry in mutation.more {
            self.clients.stage(entry);
        }
        Ok(None)
    }

    /// Last sequence number of the session that is committed or on its way.
    fn last_seq(&self, session: SessionId) -> u64 {
        let table = self.sessions.get(session).map_or(0, |s| s.last_seq);
        let proposed = self.clients.proposed.get(&session);
        proposed.map_or(0, |p| p.last_seq).max(table)
    }

    /// Fills in what only the primary knows.
    fn complete(&mut self, now: Now, mutation: &mut Mutation, conn: Conn) {
        let record = mutation.entry[KIND] == EntryKind::Record as u8;
        if record {
            self.clients.last_timestamp = now.wall_ns.max(self.clients.last_timestamp);
        }
        let stamp = self.clients.last_timestamp;
        let (seq, last) = (mutation.seq, mutation.more.len());
        for (index, entry) in mutation.entries().enumerate() {
            if record {
                entry[ARG..ARG + 8].copy_from_slice(&stamp.to_le_bytes());
                entry[FLAGS] = if index < last { FLAG_MORE } else { 0 };
            }
            entry[GENERATION..GENERATION + 4].copy_from_slice(&conn.generation.to_le_bytes());
            entry[SESSION..SESSION + 8].copy_from_slice(&conn.session.0.to_le_bytes());
            entry[SEQ..SEQ + 8].copy_from_slice(&seq.to_le_bytes());
        }
    }

    fn note_proposed(&mut self, session: SessionId, generation: u32, seq: u64, last: Lsn) {
        let known = self.sessions.get(session);
        let proposed = self.clients.proposed.entry(session);
        let proposed = proposed.or_insert_with(|| Proposed {
            attachment: known.map_or(Lsn::ZERO, |known| known.attachment),
            ..Proposed::default()
        });
        (proposed.generation, proposed.last_seq) = (generation, seq);
        proposed.lsns.push_back((seq, last));
    }

    fn check_mutation(&self, mutation: &Mutation) -> Result<(), Refusal> {
        if mutation.seq == u64::MAX {
            return Err(Refusal::BadRequest(
                "a sequence number above which there is no other",
            ));
        }
        self.check_entry(&mutation.entry)?;
        if mutation.more.is_empty() {
            return Ok(());
        }
        let records = 1 + mutation.more.len();
        if records > BATCH_RECORDS_MAX {
            return Err(Refusal::TooManyRecords {
                records,
                limit: BATCH_RECORDS_MAX,
            });
        }
        if self.spec.kind != VolumeKind::Log {
            return Err(Refusal::WrongKind);
        }
        let mut bytes = payload_bytes(&mutation.entry);
        let record = |entry: &[u8]| entry[KIND] == EntryKind::Record as u8;
        if !record(&mutation.entry) {
            return Err(Refusal::WrongKind);
        }
        for entry in &mutation.more {
            self.check_entry(entry)?;
            if !record(entry) {
                return Err(Refusal::WrongKind);
            }
            bytes += payload_bytes(entry);
        }
        let limit = self.config.record_bytes_max;
        if bytes > limit {
            return Err(Refusal::TooLarge { bytes, limit });
        }
        Ok(())
    }

    /// A retry: of a committed entry its result, of an uncommitted one the same wait.
    fn duplicate(
        &mut self,
        conn: ConnId,
        token: Token,
        session: SessionId,
        seq: u64,
    ) -> Result<Option<OpResult>, Refusal> {
        if let Some(done) = self.sessions.get(session).and_then(|s| s.result(seq)) {
            return Ok(Some(committed(done)));
        }
        let lsn = self
            .clients
            .proposed
            .get(&session)
            .and_then(|p| p.lsn_of(seq));
        let table = self.sessions.get(session);
        let lsn = lsn.ok_or_else(|| match table.and_then(|s| s.oldest_result()) {
            Some(oldest) if seq < oldest => Refusal::ResultForgotten { seq },
            _ => Refusal::RefusedBefore { seq },
        })?;
        let waiter = Waiter {
            conn,
            token,
            wanted: Wanted::Committed { session, seq },
        };
        self.clients.wait_among(lsn, waiter);
        Ok(None)
    }

    pub(crate) fn outcome(&self, conn: ConnId, seq: u64) -> Result<OpResult, Refusal> {
        let Conn { session, .. } = self.current(conn)?;
        let table = self.sessions.get(session);
        let proposed = self.clients.proposed.get(&session);
        let outcome = if let Some(done) = table.and_then(|s| s.result(seq)) {
            Outcome::Committed {
                lsn: done.lsn,
                count: done.count,
                arg: done.arg,
            }
        } else if table
            .and_then(|s| s.oldest_result())
            .is_some_and(|oldest| seq < oldest)
        {
            Outcome::Forgotten
        } else if proposed.is_some_and(|p| p.lsn_of(seq).is_some()) {
            Outcome::Pending
        } else {
            Outcome::Never
        };
        Ok(OpResult::Outcome(outcome))
    }

    fn check_entry(&self, entry: &[u8]) -> Result<(), Refusal> {
        let payload = payload_bytes(entry);
        let arg = u64::from_le_bytes(entry[ARG..ARG + 8].try_into().expect("eight bytes"));
        let kind = EntryKind::from_byte(entry[KIND]);
        let limit = self.config.record_bytes_max;
        if payload > limit {
            return Err(Refusal::TooLarge {
                bytes: payload,
                limit,
            });
        }
        match (kind, self.spec.kind) {
            (Some(EntryKind::Record | EntryKind::TrimLog), VolumeKind::Log) => Ok(()),
            (Some(EntryKind::RetainLog), VolumeKind::Log) => {
                let change = RetentionChange::decode(&entry[ENTRY_HEADER_BYTES..]);
                change.map(drop).ok_or(Refusal::WrongKind)
            }
            (Some(EntryKind::Write), VolumeKind::Block { .. }) => self.check_range(arg, payload),
            (Some(EntryKind::Trim | EntryKind::Zeroes), VolumeKind::Block { .. }) => {
                let len = range_of(&entry[ENTRY_HEADER_BYTES..]).map_err(|_| Refusal::WrongKind)?;
                let limit = mainstay_storage::image::RANGE_BYTES_MAX;
                if len > limit {
                    return Err(Refusal::TooLarge { bytes: len, limit });
                }
                self.check_range(arg, len)
            }
            _ => Err(Refusal::WrongKind),
        }
    }

    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let VolumeKind::Block { size_bytes } = self.spec.kind else {
            return Err(Refusal::WrongKind);
        };
        match offset.checked_add(len) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(Refusal::OutOfRange {
                offset,
                len,
                size_bytes,
            }),
        }
    }
}

/// Where a trim shall make the log begin, if the entry is one.
fn trim_of(entry: &[u8]) -> Option<Lsn> {
    let arg = entry[ARG..ARG + 8].try_into().expect("eight bytes");
    (entry[KIND] == EntryKind::TrimLog as u8).then(|| Lsn(u64::from_le_bytes(arg)))
}

/// What a range of zeroes is going to hold in memory.
fn held_by_range(entry: &[u8]) -> Option<u64> {
    let kind = EntryKind::from_byte(entry[KIND])?;
    if !matches!(kind, EntryKind::Trim | EntryKind::Zeroes) {
        return None;
    }
    let len = range_of(&entry[ENTRY_HEADER_BYTES..]).ok()?;
    let kept = kind == EntryKind::Zeroes && entry[FLAGS] & FLAG_ALLOCATED != 0;
    Some(range_held(len, kept))
}

fn payload_bytes(entry: &[u8]) -> u64 {
    u64::from(u32::from_le_bytes(
        entry[12..16].try_into().expect("four bytes"),
    ))
}

// Offsets in an encoded entry; `docs/disk-format.md` draws them.
const KIND: usize = 32;
pub(crate) const FLAGS: usize = 33;
const GENERATION: usize = 36;
const SESSION: usize = 40;
const SEQ: usize = 48;
const ARG: usize = 56;

#[cfg(test)]
mod tests {
    use mainstay_storage::format::{decode_header, encode_unstamped};
    use mainstay_types::{Epoch, Lineage};

    use super::*;

    #[test]
    fn the_offsets_here_are_those_of_the_format() {
        let mut entry = encode_unstamped(EntryKind::Write, SessionId(3), 4, 5, 6, b"x");
        mainstay_storage::format::stamp(&mut entry, Lineage(1), Epoch(1), Lsn(1), 0);
        assert_eq!(entry[KIND], EntryKind::Write as u8);
        entry[FLAGS] = 0;
        assert_eq!(entry[GENERATION], 4);
        assert_eq!(entry[SESSION], 3);
        assert_eq!(entry[SEQ], 5);
        assert_eq!(entry[ARG], 6);
        let header = decode_header(Lineage(1), &entry.freeze()).expect("decodes");
        assert_eq!((header.generation, header.seq, header.arg), (4, 5, 6));
    }
}
