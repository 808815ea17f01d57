//! Clients of a primary: sessions, duplicates, and answers at the commit point (R9).

mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use mainstay_replication::Role;
use mainstay_storage::EntryKind;
use mainstay_storage::format::encode_unstamped;
use mainstay_types::{Epoch, Lsn, MonoTime, NodeId, SessionId};

use crate::attach::check_opening;
use crate::event::{Action, Attachment, ClientOp, ConnId, Now, OpResult, Refusal, Token};
use crate::gather::Gather;
use crate::mutations::{FLAGS, Mutation, committed};
use crate::sessions::{Attached, Done, FLAG_ATTACHED, FLAG_KNOWN, Sessions};
use crate::tokens::Fence;
use crate::volume::{Read, Volume};

/// Entries up to this size share one buffer, so that they go to the disk and to the wire without another copy.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Conn {
    pub(crate) session: SessionId,
    /// Zero once a takeover has fenced the connection.
    pub(crate) generation: u32,
    pub(crate) attached: bool,
    /// Of the writer of a log; zero for none.
    pub(crate) token: u64,
    /// The generation is committed.
    ready: bool,
}

/// A session as it will be once everything proposed is committed.
#[derive(Debug, Default)]
pub(crate) struct Proposed {
    pub(crate) generation: u32,
    /// LSN of the attachment that it writes under; zero for none.
    pub(crate) attachment: Lsn,
    pub(crate) last_seq: u64,
    /// Mutations that are not committed yet, with the places of their last entries; both rise.
    pub(crate) lsns: VecDeque<(u64, Lsn)>,
}

impl Proposed {
    pub(crate) fn lsn_of(&self, seq: u64) -> Option<Lsn> {
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

/// Which session a connection opens, and how.
#[derive(Debug, Clone, Copy)]
struct Opening {
    session: SessionId,
    generation: u32,
    create: bool,
    answered: u64,
}

#[derive(Debug)]
pub(crate) enum Wanted {
    Opened {
        session: SessionId,
        generation: u32,
    },
    Closed {
        session: SessionId,
    },
    Committed {
        session: SessionId,
        seq: u64,
    },
    /// To be refused because of an entry.
    Refused(Refusal),
}

#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) conn: ConnId,
    pub(crate) token: Token,
    pub(crate) wanted: Wanted,
}

/// What a primary keeps of its clients beside the replicated session table. Empty on everybody else.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    conns: BTreeMap<ConnId, Conn>,
    pub(crate) proposed: BTreeMap<SessionId, Proposed>,
    /// Who will hold the volume once everything proposed is committed.
    pub(crate) attached: Option<Attached>,
    /// Sessions whose end is ordered and not committed. Nothing of theirs is ordered behind it.
    pub(crate) closing: BTreeSet<SessionId>,
    /// By place, which rises.
    waiting: VecDeque<(Lsn, Waiter)>,
    parked: VecDeque<(ConnId, Token, ClientOp)>,
    /// In the order in which they came, until there is memory for them.
    no_room: VecDeque<(ConnId, Token, ClientOp)>,
    /// Opens of sessions whose end is ordered, until that is committed.
    ending: VecDeque<(ConnId, Token, ClientOp)>,
    staged: Vec<BytesMut>,
    staged_count: u64,
    staged_bytes: usize,
    gather: Gather,
    /// Until when what is staged waits.
    held: Option<MonoTime>,
    pub(crate) fence: Fence,
    /// Released by an entry of this primary's own that is on its way.
    pub(crate) releasing: Lsn,
    /// Where the log begins by the last trim that this primary has proposed by its policy.
    pub(crate) retaining: Lsn,
    /// The last change of what the log keeps that this primary has ordered.
    pub(crate) policy: Lsn,
    pub(crate) last_timestamp: u64,
    /// The epoch that all of this belongs to.
    epoch: Epoch,
}

impl Clients {
    pub(crate) fn closed(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
        self.parked.retain(|(c, _, _)| *c != conn);
        self.no_room.retain(|(c, _, _)| *c != conn);
        self.ending.retain(|(c, _, _)| *c != conn);
    }

    /// Begins where the committed prefix ends: everything of earlier epochs is in the table by now. A role that comes
    /// back within one epoch, after a switchover that was called off, changes nothing.
    pub(crate) fn begin_epoch(&mut self, epoch: Epoch, table: &Sessions) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.attached = table.attached.clone();
            self.fence = Fence {
                token: table.token,
                lsn: Lsn::ZERO,
            };
            self.last_timestamp = table.last_timestamp;
            self.policy = Lsn::ZERO;
        }
    }

    pub(crate) fn take_staged(&mut self) -> Option<Vec<BytesMut>> {
        if self.staged.is_empty() {
            return None;
        }
        self.staged_count = 0;
        self.staged_bytes = 0;
        self.held = None;
        Some(std::mem::take(&mut self.staged))
    }

    /// Has `waiter` answered once the entry at `lsn`, which lies behind every other that is waited for, is committed.
    pub(crate) fn wait(&mut self, lsn: Lsn, waiter: Waiter) {
        self.waiting.push_back((lsn, waiter));
    }

    /// Has `waiter` answered once the entry at `lsn` is committed, behind those that wait for it already.
    pub(crate) fn wait_among(&mut self, lsn: Lsn, waiter: Waiter) {
        let behind = self.waiting.partition_point(|(at, _)| *at <= lsn);
        self.waiting.insert(behind, (lsn, waiter));
    }

    /// Nothing that comes on a connection of before is taken any more.
    pub(crate) fn fence_all(&mut self) {
        for conn in self.conns.values_mut() {
            conn.ready = false;
            conn.generation = 0;
        }
    }

    pub(crate) fn staged_bytes(&self) -> u64 {
        self.staged_bytes as u64
    }

    pub(crate) fn stage(&mut self, entry: BytesMut) {
        self.staged_count += 1;
        self.staged_bytes += entry.len();
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
        let through = self.visible();
        match op {
            ClientOp::ReadLog {
                from,
                direction,
                limits,
                stale_ok: true,
            } => return self.read_log(conn, token, from, direction, through, limits),
            ClientOp::Find {
                at_ns,
                stale_ok: true,
            } => return self.find(conn, token, at_ns, through),
            ClientOp::ReadTree {
                question,
                stale_ok: true,
            } => return self.read_tree(conn, token, question, through),
            _ => {}
        }
        match self.member.role() {
            Role::Primary { .. } => {}
            Role::Starting { .. } | Role::Draining { .. } => return self.park(conn, token, op),
            Role::Idle | Role::Replica { .. } | Role::Failed => {
                let refusal = self.not_primary();
                return self.reply(conn, token, OpResult::Refused(refusal));
            }
        }
        // What says how a mutation ended, or ends its numbers, keeps its place behind it.
        let ordered = matches!(
            op,
            ClientOp::Mutate { .. }
                | ClientOp::Open { .. }
                | ClientOp::Close
                | ClientOp::Outcome { .. }
        );
        if ordered && (self.mutations_wait() || !self.clients.no_room.is_empty()) {
            return self.clients.no_room.push_back((conn, token, op));
        }
        if let Some(session) = op.opens()
            && self.clients.closing.contains(&session)
        {
            return self.clients.ending.push_back((conn, token, op));
        }
        let done = match op {
            ClientOp::Open {
                session,
                generation,
                create,
                answered,
                attachment,
                token: writer,
            } => {
                let opening = Opening {
                    session,
                    generation,
                    create,
                    answered,
                };
                self.open(conn, token, opening, attachment, writer)
            }
            ClientOp::Close => self.close_session(conn, token),
            ClientOp::Mutate {
                seq,
                expected,
                entry,
                more,
            } => {
                let mutation = Mutation {
                    seq,
                    expected,
                    entry,
                    more,
                };
                self.mutate(now, conn, token, mutation)
            }
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
                since,
            } => self.check_range(offset, len).map(|()| {
                let read = Read::Extents {
                    conn,
                    token,
                    offset,
                    len,
                    extents_max,
                    since,
                };
                self.ask_read(now, read);
                None
            }),
            ClientOp::ReadLog {
                from,
                direction,
                limits,
                ..
            } => {
                let read = Read::Log {
                    conn,
                    token,
                    from,
                    direction,
                    limits,
                };
                self.ask_read(now, read);
                Ok(None)
            }
            ClientOp::Find { at_ns, .. } => {
                self.ask_read(now, Read::Find { conn, token, at_ns });
                Ok(None)
            }
            ClientOp::ReadTree { question, .. } => {
                let read = Read::Tree {
                    conn,
                    token,
                    question,
                };
                self.ask_read(now, read);
                Ok(None)
            }
            ClientOp::Position => {
                self.ask_read(now, Read::Position { conn, token });
                Ok(None)
            }
        };
        let done = done.or_else(|refusal| self.refuse_for_another(conn, token, refusal));
        match done {
            Ok(None) => {}
            Ok(Some(result)) => self.reply(conn, token, result),
            Err(refusal) => self.reply(conn, token, OpResult::Refused(refusal)),
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
        opening: Opening,
        attachment: Option<Attachment>,
        writer: u64,
    ) -> Result<Option<OpResult>, Refusal> {
        let Opening {
            session,
            generation,
            create,
            answered,
        } = opening;
        check_opening(session, attachment.as_ref())?;
        if let Some(fence) = self.check_token(session, writer)? {
            return self.refuse_fenced(conn, token, fence);
        }
        let generation = self.next_generation(session, generation, create)?;
        let attached = attachment.is_some();
        let attachment = match attachment {
            Some(wanted) => self.take_attachment(session, wanted)?,
            None => Lsn::ZERO,
        };
        let last_seq = self.sessions.get(session).map_or(answered, |s| s.last_seq);
        let proposed = self.clients.proposed.entry(session).or_default();
        proposed.generation = generation;
        proposed.attachment = attachment;
        proposed.last_seq = proposed.last_seq.max(last_seq);
        self.raise_token(writer);
        let mut entry = encode_unstamped(
            EntryKind::SessionOpen,
            session,
            generation,
            answered,
            writer,
            &[],
        );
        if attached {
            entry[FLAGS] |= FLAG_ATTACHED;
        }
        if !create {
            entry[FLAGS] |= FLAG_KNOWN;
        }
        self.clients.conns.insert(
            conn,
            Conn {
                session,
                generation,
                attached,
                token: writer,
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
            // None is above the greatest: the session stands and nobody opens it again.
            Some(u32::MAX) => Err(Refusal::Superseded {
                asked,
                present: u32::MAX,
            }),
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
    pub(crate) fn current(&self, conn: ConnId) -> Result<Conn, Refusal> {
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

    /// Refuses because of the entry at `because`, once that is committed: a failover may take it away, and then nobody may have been
    /// told of it.
    pub(crate) fn refuse_behind(
        &mut self,
        conn: ConnId,
        token: Token,
        because: Lsn,
        refusal: Refusal,
    ) -> Result<Option<OpResult>, Refusal> {
        if because <= self.applied {
            return Err(refusal);
        }
        let waiter = Waiter {
            conn,
            token,
            wanted: Wanted::Refused(refusal),
        };
        self.clients.wait_among(because, waiter);
        Ok(None)
    }

    /// Waits for the entry that is staged next.
    fn wait(&mut self, conn: ConnId, token: Token, wanted: Wanted) {
        let lsn = self.next_lsn();
        let waiter = Waiter {
            conn,
            token,
            wanted,
        };
        self.clients.wait(lsn, waiter);
    }

    /// Proposes what is staged, unless more is waited for (`gather.rs`).
    pub(crate) fn flush_if_ready(&mut self, now: Now) {
        let commit = self.member.commit();
        let clients = &mut self.clients;
        clients
            .gather
            .committed(now.mono, commit, clients.staged_count);
        if clients.staged_count == 0 {
            return;
        }
        clients.held =
            clients
                .gather
                .waits_until(now.mono, clients.staged_count, clients.staged_bytes);
        if clients.held.is_none() || !self.member.accepts() {
            self.flush(now);
        }
    }

    /// Until when what is staged waits.
    pub(crate) fn held_until(&self) -> MonoTime {
        self.clients.held.unwrap_or(MonoTime::MAX)
    }

    /// Proposes what is staged.
    pub(crate) fn flush(&mut self, now: Now) {
        if self.clients.staged_count == 0 {
            return;
        }
        let count = self.clients.staged_count;
        if self.member.accepts() {
            let last = Lsn(self.member.last().lsn.0 + count);
            self.clients.gather.proposed(now.mono, last, count);
            self.core(now, mainstay_replication::Input::Propose { count });
        } else {
            self.interrupt_clients();
        }
    }

    /// An entry is committed: whoever waits for it is answered. `done`: the mutation that took effect with it.
    pub(crate) fn answer_committed(&mut self, lsn: Lsn, done: Option<Done>) {
        while let Some((_, waiter)) = self.clients.waiting.pop_front_if(|(at, _)| *at <= lsn) {
            let Waiter {
                conn,
                token,
                wanted,
            } = waiter;
            let result = match wanted {
                Wanted::Committed { session, seq } => {
                    self.forget_proposed(session, seq);
                    committed(done.expect("who waits for a mutation waits for its last entry"))
                }
                Wanted::Opened {
                    session,
                    generation,
                } if self.sessions.get(session).is_none() => {
                    // Forgotten while its opening was on its way; see `FLAG_KNOWN`.
                    self.clients.conns.remove(&conn);
                    let present = self.clients.proposed.get(&session);
                    if present.is_some_and(|proposed| proposed.generation == generation) {
                        self.clients.proposed.remove(&session);
                    }
                    OpResult::Refused(Refusal::UnknownSession)
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
                    let last_seq = self.sessions.get(session).map_or(0, |s| s.last_seq);
                    let next_seq = last_seq.saturating_add(1);
                    self.forget_proposed(session, 0);
                    let epoch = self.member.sealed();
                    OpResult::Opened {
                        epoch,
                        generation,
                        next_seq,
                        commit: lsn,
                    }
                }
                Wanted::Refused(refusal) => OpResult::Refused(refusal),
                Wanted::Closed { session } => {
                    self.clients.closing.remove(&session);
                    self.clients.proposed.remove(&session);
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

    pub(crate) fn reply(&mut self, conn: ConnId, token: Token, result: OpResult) {
        self.out.push_back(Action::Reply {
            conn,
            token,
            result,
        });
    }
}
