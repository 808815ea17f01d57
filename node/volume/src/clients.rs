//! Clients of a primary: sessions, duplicates, and answers at the commit point (R9).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use mainstay_replication::Role;
use mainstay_storage::EntryKind;
use mainstay_storage::format::{ENTRY_HEADER_BYTES, encode_unstamped, range_of};
use mainstay_types::{Epoch, Lsn, NodeId, SessionId, VolumeKind};

use crate::event::{Action, Attachment, ClientOp, ConnId, Now, OpResult, Outcome, Refusal, Token};
use crate::sessions::{Attached, FLAG_ATTACHED, Sessions};
use crate::volume::{Read, Volume};

/// Entries up to this size share one buffer, so that they go to the disk and to the wire without another copy.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, Clone, Copy)]
struct Conn {
    session: SessionId,
    /// Zero once a takeover has fenced the connection.
    generation: u32,
    attached: bool,
    /// The generation is committed.
    ready: bool,
}

/// A session as it will be once everything proposed is committed.
#[derive(Debug, Default)]
pub(crate) struct Proposed {
    generation: u32,
    /// LSN of the attachment that it writes under; zero for none.
    pub(crate) attachment: Lsn,
    last_seq: u64,
    /// Mutations that are not committed yet, with their places; both rise.
    lsns: VecDeque<(u64, Lsn)>,
}

impl Proposed {
    fn lsn_of(&self, seq: u64) -> Option<Lsn> {
        let at = self.lsns.binary_search_by_key(&seq, |(seq, _)| *seq);
        at.ok().map(|at| self.lsns[at].1)
    }

    /// Mutations are committed in the order in which they were proposed.
    fn committed(&mut self, seq: u64) {
        while self.lsns.front().is_some_and(|(first, _)| *first <= seq) {
            self.lsns.pop_front();
        }
    }
}

#[derive(Debug)]
enum Wanted {
    Opened { session: SessionId, generation: u32 },
    Closed { session: SessionId },
    Committed { session: SessionId, seq: u64 },
}

#[derive(Debug)]
struct Waiter {
    conn: ConnId,
    token: Token,
    wanted: Wanted,
}

/// What a primary keeps of its clients beside the replicated session table. Empty on everybody else.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    conns: BTreeMap<ConnId, Conn>,
    pub(crate) proposed: BTreeMap<SessionId, Proposed>,
    /// Who will hold the volume once everything proposed is committed.
    pub(crate) attached: Option<Attached>,
    /// Sessions whose end is proposed.
    pub(crate) closing: BTreeSet<SessionId>,
    /// By place, which rises.
    waiting: VecDeque<(Lsn, Waiter)>,
    parked: VecDeque<(ConnId, Token, ClientOp)>,
    staged: Vec<BytesMut>,
    staged_count: u64,
    last_timestamp: u64,
    /// The epoch that all of this belongs to.
    epoch: Epoch,
}

impl Clients {
    pub(crate) fn closed(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
        self.parked.retain(|(c, _, _)| *c != conn);
    }

    /// Begins where the committed prefix ends: everything of earlier epochs is in the table by now. A role that comes
    /// back within one epoch, after a switchover that was called off, changes nothing.
    pub(crate) fn begin_epoch(&mut self, epoch: Epoch, table: &Sessions) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.attached = table.attached.clone();
            self.last_timestamp = table.last_timestamp;
        }
    }

    pub(crate) fn take_staged(&mut self) -> Option<Vec<BytesMut>> {
        if self.staged.is_empty() {
            return None;
        }
        self.staged_count = 0;
        Some(std::mem::take(&mut self.staged))
    }

    /// Nothing that comes on a connection of before is taken any more.
    pub(crate) fn fence_all(&mut self) {
        for conn in self.conns.values_mut() {
            conn.ready = false;
            conn.generation = 0;
        }
    }

    pub(crate) fn stage(&mut self, entry: BytesMut) {
        self.staged_count += 1;
        match self.staged.last_mut() {
            Some(chunk) if chunk.len() + entry.len() <= CHUNK_BYTES => {
                chunk.extend_from_slice(&entry)
            }
            _ => self.staged.push(entry),
        }
    }
}

impl Volume {
    pub(crate) fn handle_client(&mut self, now: Now, conn: ConnId, token: Token, op: ClientOp) {
        if let ClientOp::ReadLog {
            from,
            bytes_max,
            stale_ok: true,
        } = op
        {
            let through = self.member.commit();
            return self.read_log(conn, token, from, through, bytes_max);
        }
        match self.member.role() {
            Role::Primary { .. } => {}
            Role::Starting { .. } | Role::Draining { .. } => return self.park(conn, token, op),
            Role::Idle | Role::Replica { .. } | Role::Failed => {
                let refusal = self.not_primary();
                return self.reply(conn, token, OpResult::Refused(refusal));
            }
        }
        let done = match op {
            ClientOp::Open {
                session,
                generation,
                create,
                attachment,
            } => self.open(conn, token, session, generation, create, attachment),
            ClientOp::Close => self.close_session(conn, token),
            ClientOp::Mutate {
                seq,
                expected,
                entry,
            } => self.mutate(now, conn, token, seq, expected, entry),
            ClientOp::Outcome { seq } => self.outcome(conn, seq).map(Some),
            ClientOp::ReadBlock { offset, len } => {
                self.check_range(offset, u64::from(len)).map(|()| {
                    self.ask_read(
                        now,
                        Read::Block {
                            conn,
                            token,
                            offset,
                            len,
                        },
                    );
                    None
                })
            }
            ClientOp::ReadExtents {
                offset,
                len,
                extents_max,
            } => self.check_range(offset, len).map(|()| {
                let read = Read::Extents {
                    conn,
                    token,
                    offset,
                    len,
                    extents_max,
                };
                self.ask_read(now, read);
                None
            }),
            ClientOp::ReadLog {
                from, bytes_max, ..
            } => {
                self.ask_read(
                    now,
                    Read::Log {
                        conn,
                        token,
                        from,
                        bytes_max,
                    },
                );
                Ok(None)
            }
            ClientOp::Position => {
                self.ask_read(now, Read::Position { conn, token });
                Ok(None)
            }
        };
        match done {
            Ok(None) => {}
            Ok(Some(result)) => self.reply(conn, token, result),
            Err(refusal) => self.reply(conn, token, OpResult::Refused(refusal)),
        }
    }

    fn park(&mut self, conn: ConnId, token: Token, op: ClientOp) {
        if self.clients.parked.len() >= self.config.parked_max {
            return self.reply(conn, token, OpResult::Refused(Refusal::Overloaded));
        }
        self.clients.parked.push_back((conn, token, op));
    }

    pub(crate) fn unpark(&mut self, now: Now) {
        for (conn, token, op) in std::mem::take(&mut self.clients.parked) {
            self.handle_client(now, conn, token, op);
        }
    }

    pub(crate) fn not_primary(&self) -> Refusal {
        let primary: Option<NodeId> = match self.member.role() {
            Role::Replica { primary, .. } => Some(primary),
            _ => self.member.register().map(|register| register.primary.node),
        };
        let primary = primary.filter(|node| *node != self.member.id().node);
        Refusal::NotPrimary {
            primary,
            epoch: self.member.sealed(),
        }
    }

    /// Entries staged and not yet proposed get the LSNs right behind the log's end.
    pub(crate) fn next_lsn(&self) -> Lsn {
        Lsn(self.member.last().lsn.0 + self.clients.staged_count + 1)
    }

    fn open(
        &mut self,
        conn: ConnId,
        token: Token,
        session: SessionId,
        generation: u32,
        create: bool,
        attachment: Option<Attachment>,
    ) -> Result<Option<OpResult>, Refusal> {
        let generation = self.next_generation(session, generation, create)?;
        let attached = attachment.is_some();
        let attachment = match attachment {
            Some(wanted) => self.take_attachment(session, wanted)?,
            None => Lsn::ZERO,
        };
        let last_seq = self.sessions.get(session).map_or(0, |s| s.last_seq);
        let proposed = self.clients.proposed.entry(session).or_default();
        proposed.generation = generation;
        proposed.attachment = attachment;
        proposed.last_seq = proposed.last_seq.max(last_seq);
        let mut entry = encode_unstamped(EntryKind::SessionOpen, session, generation, 0, 0, &[]);
        if attached {
            entry[FLAGS] = FLAG_ATTACHED;
        }
        self.clients.conns.insert(
            conn,
            Conn {
                session,
                generation,
                attached,
                ready: false,
            },
        );
        self.wait(
            conn,
            token,
            Wanted::Opened {
                session,
                generation,
            },
        );
        self.clients.stage(entry);
        Ok(None)
    }

    fn next_generation(
        &self,
        session: SessionId,
        asked: u32,
        create: bool,
    ) -> Result<u32, Refusal> {
        let proposed = self.clients.proposed.get(&session).map(|p| p.generation);
        let present = proposed.or_else(|| self.sessions.get(session).map(|s| s.generation));
        match present {
            Some(present) if asked != 0 && asked <= present => {
                Err(Refusal::Superseded { asked, present })
            }
            None if !create => Err(Refusal::UnknownSession),
            present if asked == 0 => Ok(present.unwrap_or(0) + 1),
            _ => Ok(asked),
        }
    }

    fn close_session(&mut self, conn: ConnId, token: Token) -> Result<Option<OpResult>, Refusal> {
        let Conn {
            session,
            generation,
            ..
        } = self.current(conn)?;
        let entry = encode_unstamped(EntryKind::SessionClose, session, generation, 0, 0, &[]);
        self.wait(conn, token, Wanted::Closed { session });
        self.clients.stage(entry);
        self.clients.conns.remove(&conn);
        self.leave_attachment(session);
        Ok(None)
    }

    /// The connection's session, if no later connection and no takeover has superseded it.
    fn current(&self, conn: ConnId) -> Result<Conn, Refusal> {
        let conn = *self.clients.conns.get(&conn).ok_or(Refusal::NoSession)?;
        let proposed = self
            .clients
            .proposed
            .get(&conn.session)
            .map(|p| p.generation);
        let table = self.sessions.get(conn.session).map(|s| s.generation);
        if conn.generation == 0 {
            let by = self.clients.attached.as_ref();
            return Err(by.map_or(Refusal::AttachmentEnded, |by| Refusal::Attached {
                by: by.name.clone(),
            }));
        }
        match proposed.or(table) {
            Some(present) if present == conn.generation && conn.ready => Ok(conn),
            Some(present) => Err(Refusal::Superseded {
                asked: conn.generation,
                present,
            }),
            None => Err(Refusal::UnknownSession),
        }
    }

    fn mutate(
        &mut self,
        now: Now,
        conn: ConnId,
        token: Token,
        seq: u64,
        expected: Option<Lsn>,
        mut entry: BytesMut,
    ) -> Result<Option<OpResult>, Refusal> {
        let Conn {
            session,
            generation,
            attached,
            ..
        } = self.current(conn)?;
        if !attached && self.spec.kind != VolumeKind::Log {
            return Err(Refusal::NotAttached);
        }
        self.check_entry(&entry)?;
        let table_seq = self.sessions.get(session).map_or(0, |s| s.last_seq);
        let last_seq = self
            .clients
            .proposed
            .get(&session)
            .map_or(0, |p| p.last_seq)
            .max(table_seq);
        if seq <= last_seq {
            return self.duplicate(conn, token, session, seq);
        }
        let lsn = self.next_lsn();
        if let Some(expected) = expected.filter(|expected| *expected != lsn) {
            return Err(Refusal::UnexpectedLsn {
                expected,
                next: lsn,
            });
        }
        if entry[KIND] == EntryKind::Record as u8 {
            let stamp = now.wall_ns.max(self.clients.last_timestamp);
            self.clients.last_timestamp = stamp;
            entry[ARG..ARG + 8].copy_from_slice(&stamp.to_le_bytes());
        }
        entry[GENERATION..GENERATION + 4].copy_from_slice(&generation.to_le_bytes());
        entry[SESSION..SESSION + 8].copy_from_slice(&session.0.to_le_bytes());
        entry[SEQ..SEQ + 8].copy_from_slice(&seq.to_le_bytes());
        let known = self.sessions.get(session);
        let proposed = self.clients.proposed.entry(session);
        let proposed = proposed.or_insert_with(|| Proposed {
            attachment: known.map_or(Lsn::ZERO, |known| known.attachment),
            ..Proposed::default()
        });
        (proposed.generation, proposed.last_seq) = (generation, seq);
        proposed.lsns.push_back((seq, lsn));
        self.wait(conn, token, Wanted::Committed { session, seq });
        self.clients.stage(entry);
        Ok(None)
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
            return Ok(Some(OpResult::Committed {
                lsn: done.lsn,
                arg: done.arg,
            }));
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
        let behind = self.clients.waiting.partition_point(|(at, _)| *at <= lsn);
        self.clients.waiting.insert(behind, (lsn, waiter));
        Ok(None)
    }

    fn outcome(&self, conn: ConnId, seq: u64) -> Result<OpResult, Refusal> {
        let Conn { session, .. } = self.current(conn)?;
        let table = self.sessions.get(session);
        let proposed = self.clients.proposed.get(&session);
        let outcome = if let Some(done) = table.and_then(|s| s.result(seq)) {
            Outcome::Committed { lsn: done.lsn }
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
        let payload = u64::from(u32::from_le_bytes(
            entry[12..16].try_into().expect("four bytes"),
        ));
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
            (Some(EntryKind::Record), VolumeKind::Log) => Ok(()),
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

    fn check_range(&self, offset: u64, len: u64) -> Result<(), Refusal> {
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

    /// Waits for the entry that is staged next.
    fn wait(&mut self, conn: ConnId, token: Token, wanted: Wanted) {
        let lsn = self.next_lsn();
        let waiter = Waiter {
            conn,
            token,
            wanted,
        };
        self.clients.waiting.push_back((lsn, waiter));
    }

    /// Proposes what is staged.
    pub(crate) fn flush(&mut self, now: Now) {
        if self.clients.staged_count == 0 {
            return;
        }
        let count = self.clients.staged_count;
        if self.member.accepts() {
            self.core(now, mainstay_replication::Input::Propose { count });
        } else {
            self.interrupt_clients();
        }
    }

    /// An entry is committed: whoever waits for it is answered.
    pub(crate) fn answer_committed(&mut self, lsn: Lsn, arg: u64) {
        while let Some((_, waiter)) = self.clients.waiting.pop_front_if(|(at, _)| *at <= lsn) {
            let Waiter {
                conn,
                token,
                wanted,
            } = waiter;
            let result = match wanted {
                Wanted::Committed { session, seq } => {
                    self.forget_proposed(session, seq);
                    OpResult::Committed { lsn, arg }
                }
                Wanted::Opened {
                    session,
                    generation,
                } => {
                    if let Some(conn) = self.clients.conns.get_mut(&conn)
                        && conn.generation == generation
                    {
                        conn.ready = true;
                    }
                    // Whatever the session had in the log lies before this entry, so it is in the table by now.
                    let next_seq = self.sessions.get(session).map_or(0, |s| s.last_seq) + 1;
                    self.forget_proposed(session, 0);
                    let epoch = self.member.sealed();
                    OpResult::Opened {
                        epoch,
                        generation,
                        next_seq,
                        commit: lsn,
                    }
                }
                Wanted::Closed { session } => {
                    self.clients.closing.remove(&session);
                    OpResult::Closed
                }
            };
            self.reply(conn, token, result);
        }
    }

    /// A mutation is in the table now; so may be all that the session proposed.
    fn forget_proposed(&mut self, session: SessionId, seq: u64) {
        let Some(proposed) = self.clients.proposed.get_mut(&session) else {
            return;
        };
        proposed.committed(seq);
        let table = self.sessions.get(session);
        let same = |s: &crate::sessions::Session| {
            s.generation == proposed.generation && s.last_seq == proposed.last_seq
        };
        if table.is_some_and(same) {
            self.clients.proposed.remove(&session);
        }
    }

    /// This node is not primary any more: what waits has an outcome that others will tell.
    pub(crate) fn interrupt_clients(&mut self) {
        let clients = std::mem::take(&mut self.clients);
        for (_, waiter) in clients.waiting {
            self.reply(waiter.conn, waiter.token, OpResult::Interrupted);
        }
        let refusal = self.not_primary();
        for (conn, token, _) in clients.parked {
            self.reply(conn, token, OpResult::Refused(refusal.clone()));
        }
        for id in self.reads.keys().copied().collect::<Vec<_>>() {
            self.refuse_read(id);
        }
    }

    fn reply(&mut self, conn: ConnId, token: Token, result: OpResult) {
        self.out.push_back(Action::Reply {
            conn,
            token,
            result,
        });
    }
}

/// Reads that the core allowed.
impl Volume {
    pub(crate) fn serve_read(&mut self, id: u64, at: Lsn) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        match read {
            Read::Block {
                conn,
                token,
                offset,
                len,
            } => {
                self.out.push_back(Action::ReadBlock {
                    conn,
                    token,
                    offset,
                    len,
                });
            }
            Read::Extents {
                conn,
                token,
                offset,
                len,
                extents_max,
            } => self.out.push_back(Action::ReadExtents {
                conn,
                token,
                offset,
                len,
                extents_max,
            }),
            Read::Log {
                conn,
                token,
                from,
                bytes_max,
            } => self.read_log(conn, token, from, at, bytes_max),
            Read::Position { conn, token } => {
                let first = self.member.log().base().lsn.next();
                let epoch = self.member.sealed();
                self.reply(
                    conn,
                    token,
                    OpResult::Position {
                        first,
                        commit: at,
                        epoch,
                    },
                );
            }
        }
    }

    pub(crate) fn refuse_read(&mut self, id: u64) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let (Read::Block { conn, token, .. }
        | Read::Extents { conn, token, .. }
        | Read::Log { conn, token, .. }
        | Read::Position { conn, token }) = read;
        let refusal = self.not_primary();
        self.reply(conn, token, OpResult::Refused(refusal));
    }

    fn read_log(&mut self, conn: ConnId, token: Token, from: Lsn, through: Lsn, bytes_max: usize) {
        let first = self.member.log().base().lsn.next();
        if self.spec.kind != VolumeKind::Log {
            return self.reply(conn, token, OpResult::Refused(Refusal::WrongKind));
        }
        if from < first {
            return self.reply(conn, token, OpResult::Refused(Refusal::Trimmed { first }));
        }
        let cached = if from > through {
            Some(Vec::new())
        } else {
            self.tail.entries(from, through, bytes_max)
        };
        self.out.push_back(Action::ReadLog {
            conn,
            token,
            from,
            through,
            bytes_max,
            cached,
        });
    }
}

// Offsets in an encoded entry; `docs/disk-format.md` draws them.
const KIND: usize = 32;
const FLAGS: usize = 33;
const GENERATION: usize = 36;
const SESSION: usize = 40;
const SEQ: usize = 48;
const ARG: usize = 56;

#[cfg(test)]
mod tests {
    use mainstay_storage::format::decode_header;
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
