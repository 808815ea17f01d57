//! The state machine of one volume on one node: events in, actions out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mainstay_replication::message::{Append, MemberEnvelope, MemberMessage};
use mainstay_replication::{
    AppendPlan, Input, LogWrite, Member, MemberConfig, MemberStart, Mistake, OpId, Output, Role,
};
use mainstay_storage::format::{EntryIter, EntryRef, encode_unstamped, stamp};
use mainstay_storage::{EntryKind, LogEnd};
use mainstay_types::{Epoch, Lsn, MonoTime, NodeId, SessionId, VolumeKind, VolumeSpec};

use crate::clients::Clients;
use crate::event::{Action, ConnId, Event, Now, OpResult, Token, WalJob, WalWrite};
use crate::pages::{Direction, PageLimits};
use crate::sessions::Sessions;
use crate::tail::{Tail, join};
use crate::tree::TreeQuestion;

/// Bounds of one volume.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// Of the core.
    pub member: MemberConfig,
    /// Longest record or write.
    pub record_bytes_max: u64,
    /// Bytes of one append on the wire, unless a single entry is larger.
    pub feed_bytes_max: usize,
    /// Newest entries kept in memory for the feed and for reads.
    pub tail_bytes: usize,
    /// Log written between two checkpoints.
    pub checkpoint_bytes: u64,
    /// Log kept behind the checkpoint for members that are behind.
    pub log_keep_bytes: u64,
    /// Operations that wait while there is no primary that accepts.
    pub parked_max: usize,
}

impl Default for VolumeConfig {
    fn default() -> Self {
        Self {
            member: MemberConfig::default(),
            record_bytes_max: 16 << 20,
            feed_bytes_max: 256 << 10,
            tail_bytes: 8 << 20,
            checkpoint_bytes: 32 << 20,
            log_keep_bytes: 128 << 20,
            parked_max: 4096,
        }
    }
}

/// What the disk said at the start.
#[derive(Debug)]
pub struct VolumeStart {
    /// For the core.
    pub member: MemberStart,
    /// What the volume is.
    pub spec: VolumeSpec,
    /// The history that seeds the checksums of its entries.
    pub log_lineage: mainstay_types::Lineage,
    /// The position of the checkpoint.
    pub applied: LogEnd,
    /// The session table of the checkpoint.
    pub sessions: Sessions,
    /// Every entry behind the checkpoint, in order.
    pub tail: Vec<EntryRef>,
}

/// A read that waits for its permission.
#[derive(Debug)]
pub(crate) enum Read {
    Block {
        conn: ConnId,
        token: Token,
        offset: u64,
        len: u32,
    },
    Extents {
        conn: ConnId,
        token: Token,
        offset: u64,
        len: u64,
        extents_max: usize,
        since: Option<Lsn>,
    },
    Log {
        conn: ConnId,
        token: Token,
        from: Lsn,
        direction: Direction,
        limits: PageLimits,
    },
    Find {
        conn: ConnId,
        token: Token,
        at_ns: u64,
    },
    Tree {
        conn: ConnId,
        token: Token,
        question: TreeQuestion,
    },
    Position {
        conn: ConnId,
        token: Token,
    },
}

/// One copy of one volume, with its clients.
#[derive(Debug)]
pub struct Volume {
    pub(crate) config: VolumeConfig,
    pub(crate) spec: VolumeSpec,
    log_lineage: mainstay_types::Lineage,
    pub(crate) member: Member,
    pub(crate) tail: Tail,
    /// Never falls, never passes the commit point.
    pub(crate) applied: Lsn,
    pub(crate) sessions: Sessions,
    pub(crate) clients: Clients,
    /// Entries of the append being handled.
    incoming: VecDeque<EntryRef>,
    incoming_bytes: Bytes,
    pub(crate) reads: BTreeMap<u64, Read>,
    next_read: u64,
    /// Copies for which entries are being read from disk.
    feeding: BTreeSet<NodeId>,
    /// Copies whose entries could not be read, and when to try again: the read fails at once while the log is being
    /// recycled there, or for good if the entries are damaged, and asking again at once would keep the thread busy.
    feed_again: BTreeMap<NodeId, MonoTime>,
    /// The last join of several pieces: most appends go to two copies alike.
    joined: Option<(Lsn, Lsn, Bytes)>,
    checkpoint_runs: bool,
    pub(crate) checkpointed: Lsn,
    since_checkpoint: u64,
    /// (LSN, bytes logged up to it), a sample every mebibyte: how far back `log_keep_bytes` reaches.
    logged: VecDeque<(Lsn, u64)>,
    logged_bytes: u64,
    /// Entries from here on are needed for a full copy under way.
    pub(crate) pinned: Option<Lsn>,
    /// Something was released that this copy still holds.
    pub(crate) release_due: bool,
    /// When the primary looks at the log's retention next.
    pub(crate) retain_at: MonoTime,
    /// The log was copied whole, with a state of this position.
    copied_until: Lsn,
    stopped: bool,
    pub(crate) out: VecDeque<Action>,
}

impl Volume {
    /// A volume as its disk remembers it.
    #[must_use]
    pub fn new(now: Now, config: VolumeConfig, start: VolumeStart) -> Self {
        let mut tail = Tail::new(start.applied);
        for entry in start.tail {
            let bytes = entry.bytes.clone();
            tail.push(vec![entry], bytes);
        }
        let member = Member::new(now.mono, config.member.clone(), start.member);
        let mut volume = Self {
            config,
            spec: start.spec,
            log_lineage: start.log_lineage,
            member,
            tail,
            applied: start.applied.point.lsn,
            sessions: start.sessions,
            clients: Clients::default(),
            incoming: VecDeque::new(),
            incoming_bytes: Bytes::new(),
            reads: BTreeMap::new(),
            next_read: 1,
            feeding: BTreeSet::new(),
            feed_again: BTreeMap::new(),
            joined: None,
            checkpoint_runs: false,
            checkpointed: start.applied.point.lsn,
            since_checkpoint: 0,
            logged: VecDeque::new(),
            logged_bytes: 0,
            pinned: None,
            release_due: false,
            retain_at: MonoTime::ZERO,
            copied_until: Lsn::ZERO,
            stopped: false,
            out: VecDeque::new(),
        };
        volume.copied_until = volume.sessions.ahead_until;
        // A damaged log is not replayed: its commit point may lie above what it can still give.
        let commit = volume.member.commit().min(volume.tail.end().point.lsn);
        volume.apply_through(commit);
        volume.finish(now);
        volume
    }

    /// Takes one event. After a batch of them call [`Volume::finish`], then drain [`Volume::poll_action`].
    pub fn handle(&mut self, now: Now, event: Event) {
        if self.stopped {
            return self.refuse_stopped(event);
        }
        // What is staged goes in front of whatever may end that this copy proposes. The rest happens in every round.
        if !matches!(
            event,
            Event::Client { .. }
                | Event::Stored { .. }
                | Event::Peer { .. }
                | Event::Fed { .. }
                | Event::Tick
        ) {
            self.flush(now);
        }
        match event {
            Event::Client { conn, token, op } => self.handle_client(now, conn, token, op),
            Event::ConnClosed { conn } => self.clients.closed(conn),
            Event::Peer { envelope, batch } => self.handle_peer(now, envelope, batch),
            Event::Register { from, body } => self.core(now, Input::Register { from, body }),
            Event::Stored { op } => self.core(now, Input::Persisted(op)),
            Event::StorageFailed { .. } => self.core(now, Input::StorageFailed),
            Event::Lease {
                epoch,
                until,
                silent,
            } => self.core(
                now,
                Input::Lease {
                    epoch,
                    until,
                    silent,
                },
            ),
            Event::Witnesses(set) => self.core(now, Input::Witnesses(set)),
            Event::Handover { to } => self.core(now, Input::Handover { to }),
            Event::Ready { epoch } => self.core(now, Input::Ready { epoch }),
            Event::Fed { plan, entries } => self.handle_fed(now, plan, entries),
            Event::Checkpointed { at } => self.handle_checkpointed(at),
            Event::CheckpointFailed => self.checkpoint_runs = false,
            Event::Recycled { first } => self.core(
                now,
                Input::Recycled {
                    through: first.prev(),
                },
            ),
            Event::CopySent { node, base } => self.member.copy_sent(node, base),
            Event::Rebuilt => self.core(now, Input::Rebuilt),
            Event::Stalled => self.core(now, Input::Stalled),
            Event::LinkUp { node } => self.core(now, Input::LinkUp { node }),
            Event::LinkLost { node } => self.core(now, Input::LinkLost { node }),
            Event::Tick => self.core(now, Input::Tick),
        }
    }

    /// Proposes what the events brought, feeds the other copies, and keeps memory and disk within bounds.
    pub fn finish(&mut self, now: Now) {
        self.maybe_release();
        self.maybe_retain(now);
        self.flush_if_ready(now);
        self.drain_core(now);
        self.feed(now);
        self.maybe_checkpoint();
        let settled = self.applied.min(self.member.durable());
        self.tail.evict(settled, self.config.tail_bytes);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.out.pop_front()
    }

    /// When to call `handle` with `Tick`, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> MonoTime {
        let feed = self.feed_again.values().min().copied();
        self.member
            .next_deadline()
            .min(feed.unwrap_or(MonoTime::MAX))
            .min(self.held_until())
            .min(self.retain_due())
    }

    /// The core, to look at.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// The session table at the applied position.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Last entry applied.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Last entry that is shown: below the first one of a batch that is not whole yet.
    #[must_use]
    pub fn visible(&self) -> Lsn {
        if self.config.member.mistakes.has(Mistake::HalfBatchShown) {
            return self.applied;
        }
        self.sessions.visible(self.applied)
    }

    /// First entry that is shown to readers. What is held may begin below it, and, on a copy that is damaged, anywhere.
    #[must_use]
    pub fn first_shown(&self) -> Lsn {
        self.sessions.trim_point.max(Lsn(1))
    }

    /// The history that seeds the checksums of its entries.
    #[must_use]
    pub fn log_lineage(&self) -> mainstay_types::Lineage {
        self.log_lineage
    }

    /// What the volume is.
    #[must_use]
    pub fn spec(&self) -> &VolumeSpec {
        &self.spec
    }

    /// Bytes of the newest entries held in memory.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.tail.bytes()
    }

    pub(crate) fn core(&mut self, now: Now, input: Input) {
        self.member.handle(now.mono, input);
        self.drain_core(now);
    }

    /// Asks the core for permission to serve `read`.
    pub(crate) fn ask_read(&mut self, now: Now, read: Read) {
        let id = self.next_read;
        self.next_read += 1;
        self.reads.insert(id, read);
        self.core(now, Input::Read { id });
    }

    fn refuse_stopped(&mut self, event: Event) {
        if let Event::Client { conn, token, .. } = event {
            let result = OpResult::Refused(self.not_primary());
            self.out.push_back(Action::Reply {
                conn,
                token,
                result,
            });
        }
    }

    fn drain_core(&mut self, now: Now) {
        while let Some(output) = self.member.poll_output() {
            match output {
                Output::Persist { op, write } => self.persist(now, op, write),
                Output::Send { to, message } => self.send(to, message, Bytes::new()),
                Output::SendRegister { to, message } => {
                    self.out
                        .push_back(Action::SendRegister { to, body: message });
                }
                Output::Committed { lsn } => self.apply_through(lsn),
                Output::ReadReady { id, at } => self.serve_read(id, at),
                Output::ReadRefused { id } => self.refuse_read(id),
                Output::Role(role) => self.role_changed(now, role),
                Output::AwaitReady { epoch } => {
                    self.out.push_back(Action::AwaitReady { epoch });
                }
                Output::NeedsCopy { node } => self.needs_copy(node),
                Output::Release { epoch, prefer } => {
                    self.out.push_back(Action::Release { epoch, prefer })
                }
                Output::Decided(register) => self.out.push_back(Action::Decided(register)),
                Output::Violation(text) => self.violation(text),
            }
        }
    }

    fn violation(&mut self, text: String) {
        self.stopped = true;
        self.interrupt_clients();
        self.out.push_back(Action::Violation(text));
    }

    /// A member that needs a full copy gets one only once it has left the register (H6).
    fn needs_copy(&mut self, node: NodeId) {
        let registered = self
            .member
            .register()
            .is_some_and(|register| register.member(node).is_some());
        if !registered {
            self.out.push_back(Action::NeedsCopy { node });
        }
    }

    pub(crate) fn send(&mut self, to: NodeId, body: MemberMessage, batch: Bytes) {
        let envelope = MemberEnvelope {
            volume: self.spec.name.id(),
            lineage: self.member.lineage(),
            from: self.member.id(),
            body,
        };
        self.out.push_back(Action::Send {
            to,
            envelope,
            batch,
        });
    }

    fn role_changed(&mut self, now: Now, role: Role) {
        match role {
            Role::Primary { .. } => {
                if let Some(epoch) = self.member.acting_epoch() {
                    self.clients.begin_epoch(epoch, &self.sessions);
                }
                self.out.push_back(Action::Role(role));
                self.unpark(now);
            }
            Role::Starting { .. } | Role::Draining { .. } => self.out.push_back(Action::Role(role)),
            Role::Idle | Role::Replica { .. } | Role::Failed => {
                self.out.push_back(Action::Role(role));
                self.interrupt_clients();
            }
        }
    }
}

/// The log: from proposals and appends to writes.
impl Volume {
    fn handle_peer(&mut self, now: Now, envelope: MemberEnvelope, batch: Bytes) {
        if let MemberMessage::Append(append) = &envelope.body
            && append.last >= append.first
        {
            match verify(self.log_lineage, append, &batch) {
                Ok(entries) => {
                    self.incoming = entries.into();
                    self.incoming_bytes = batch;
                }
                Err(reason) => {
                    let node = envelope.from.node;
                    return self.out.push_back(Action::PeerMisbehaved { node, reason });
                }
            }
        }
        self.core(now, Input::Message(envelope));
        self.incoming.clear();
        self.incoming_bytes = Bytes::new();
    }

    fn persist(&mut self, now: Now, op: OpId, write: LogWrite) {
        let write = match write {
            LogWrite::Cut { after } => {
                self.tail.truncate(after);
                self.joined = None;
                WalWrite::Cut { after }
            }
            LogWrite::Seal { epoch } => WalWrite::Seal { epoch },
            LogWrite::Append { first, last } => {
                let Some(entries) = self.take_entries(now, first, last) else {
                    return self
                        .violation(format!("entries {first} to {last} do not continue the log"));
                };
                WalWrite::Append {
                    entries,
                    commit: self.member.commit(),
                }
            }
        };
        self.out.push_back(Action::Wal(WalJob { op, write }));
    }

    /// Entries `first..=last`, from the clients, the primary, or, for the first of an epoch, made here; in the tail
    /// from now on.
    fn take_entries(&mut self, _now: Now, first: Lsn, last: Lsn) -> Option<Vec<Bytes>> {
        if let Some(chunks) = self.clients.take_staged() {
            let epoch = self.member.acting_epoch()?;
            return Some(
                chunks
                    .into_iter()
                    .map(|chunk| self.stamp_chunk(epoch, chunk))
                    .collect(),
            );
        }
        if self.incoming.is_empty() {
            let epoch = self.member.acting_epoch()?;
            let entry = encode_unstamped(EntryKind::EpochStart, SessionId(0), 0, 0, 0, &[]);
            return Some(vec![self.stamp_chunk(epoch, entry)]);
        }
        let whole = self.incoming.front()?.header.point.lsn == first;
        self.incoming
            .retain(|entry| entry.header.point.lsn >= first && entry.header.point.lsn <= last);
        let entries: Vec<EntryRef> = std::mem::take(&mut self.incoming).into();
        if entries.first()?.header.prev_crc != self.tail.end().crc {
            return None;
        }
        let bytes = if whole {
            std::mem::take(&mut self.incoming_bytes)
        } else {
            join(entries.iter().map(|entry| entry.bytes.clone()).collect())
        };
        self.note_logged(bytes.len(), last);
        self.tail.push(entries, bytes.clone());
        Some(vec![bytes])
    }

    /// Gives unstamped entries that lie side by side their places in the log.
    fn stamp_chunk(&mut self, epoch: Epoch, mut chunk: bytes::BytesMut) -> Bytes {
        let lineage = self.log_lineage;
        let mut end = self.tail.end();
        let mut at = 0;
        while at < chunk.len() {
            let len = mainstay_storage::format::entry_bytes(payload_len(&chunk[at..]));
            let lsn = end.point.lsn.next();
            let crc = stamp(&mut chunk[at..at + len], lineage, epoch, lsn, end.crc);
            end = LogEnd {
                point: mainstay_types::LogPoint { epoch, lsn },
                crc,
            };
            at += len;
        }
        let bytes = chunk.freeze();
        let entries = EntryIter::headers_only(lineage, bytes.clone())
            .collect::<Result<Vec<_>, _>>()
            .expect("entries that were encoded and stamped here decode");
        self.note_logged(bytes.len(), end.point.lsn);
        self.tail.push(entries, bytes.clone());
        bytes
    }

    fn note_logged(&mut self, bytes: usize, last: Lsn) {
        self.logged_bytes += bytes as u64;
        if self
            .logged
            .back()
            .is_none_or(|(_, at)| self.logged_bytes >= at + (1 << 20))
        {
            self.logged.push_back((last, self.logged_bytes));
        }
    }

    /// Applies what is committed and answers the clients that wait for it.
    fn apply_through(&mut self, commit: Lsn) {
        while self.applied < commit {
            let lsn = self.applied.next();
            let entry = self
                .tail
                .get(lsn)
                .expect("entries are kept in the tail until they are applied");
            let done = self.sessions.apply(entry);
            self.release_due |= entry.header.kind == EntryKind::TrimLog;
            self.applied = lsn;
            self.since_checkpoint += entry.bytes.len() as u64;
            self.out.push_back(Action::Apply(entry.clone()));
            self.answer_committed(lsn, done);
        }
    }
}

/// The feed, checkpoints and recycling.
impl Volume {
    fn feed(&mut self, now: Now) {
        self.feed_again.retain(|_, again| now.mono < *again);
        for node in self.member.peers() {
            while !self.feeding.contains(&node)
                && !self.feed_again.contains_key(&node)
                && let Some(plan) = self.member.append_plan(now.mono, node)
            {
                if !self.feed_one(now, plan) {
                    break;
                }
            }
        }
        self.drain_core(now);
    }

    /// Sends one append. False if the entries must be read from disk first, or cannot be had.
    fn feed_one(&mut self, now: Now, plan: AppendPlan) -> bool {
        if plan.last < plan.first {
            return self.send_append(now, plan, plan.last, Bytes::new());
        }
        let cached = self
            .joined
            .as_ref()
            .filter(|(first, last, _)| *first == plan.first && *last <= plan.last);
        if let Some((_, last, bytes)) = cached {
            let (last, bytes) = (*last, bytes.clone());
            return self.send_append(now, plan, last, bytes);
        }
        match self
            .tail
            .pieces(plan.first, plan.last, self.config.feed_bytes_max)
        {
            Some((last, pieces)) => {
                let bytes = join(pieces);
                self.joined = Some((plan.first, last, bytes.clone()));
                self.send_append(now, plan, last, bytes)
            }
            None if plan.first <= self.member.log().base().lsn => {
                // The core finds that its log begins too late, and asks for a full copy.
                self.send_append(now, plan, plan.last, Bytes::new())
            }
            None => {
                self.feeding.insert(plan.to);
                self.out.push_back(Action::Feed {
                    plan,
                    bytes_max: self.config.feed_bytes_max,
                });
                false
            }
        }
    }

    fn send_append(&mut self, now: Now, plan: AppendPlan, last: Lsn, batch: Bytes) -> bool {
        let bytes = batch.len() as u64;
        match self.member.append_sent(now.mono, plan, last, bytes) {
            Some(message) => {
                self.send(plan.to, message, batch);
                true
            }
            None => false,
        }
    }

    fn handle_fed(&mut self, now: Now, plan: AppendPlan, entries: Option<(Lsn, Vec<Bytes>)>) {
        self.feeding.remove(&plan.to);
        let Some((last, pieces)) = entries else {
            let again = now.mono + self.config.member.heartbeat;
            self.feed_again.insert(plan.to, again);
            return;
        };
        // What was read may have been cut since, or the member may want something else by now.
        let wanted = self
            .member
            .append_plan(now.mono, plan.to)
            .is_some_and(|present| present.first == plan.first);
        if wanted && last >= plan.first && last <= self.member.last().lsn {
            self.send_append(now, plan, last, join(pieces));
        }
    }

    /// Changes how much log is written between two checkpoints.
    pub fn set_checkpoint_bytes(&mut self, bytes: u64) {
        self.config.checkpoint_bytes = bytes;
    }

    fn maybe_checkpoint(&mut self) {
        let due = self.since_checkpoint >= self.config.checkpoint_bytes || self.release_due;
        let due = due && !self.checkpoint_runs;
        // The image must not know entries that this copy's own log could still lose.
        if due && self.applied <= self.member.durable() {
            self.begin_checkpoint();
        }
    }

    /// Where a full copy begins that is made from now on: the last entry applied, and the session table at it. The log
    /// is kept from there until [`Volume::copy_ended`].
    pub fn copy_begins(&mut self) -> Option<(LogEnd, Bytes)> {
        let at = self.tail.end_at(self.applied)?;
        self.pinned = Some(at.point.lsn.next());
        Some((at, self.sessions.encode()))
    }

    /// The same for a log, all of which is fed to the copy: the last entry applied, and a session table that says that it is so far
    /// ahead of the log's beginning.
    pub fn log_copy_begins(&mut self) -> (Lsn, Bytes) {
        self.pinned = Some(self.member.log().base().lsn.next());
        let mut sessions = self.sessions.clone();
        sessions.ahead_until = self.applied;
        (self.applied, sessions.encode())
    }

    /// A log that was copied whole holds everything up to the state that it was given, durably.
    #[must_use]
    pub fn copy_is_whole(&self) -> bool {
        self.applied >= self.copied_until && self.member.durable() >= self.copied_until
    }

    /// No full copy needs the log any more.
    pub fn copy_ended(&mut self) {
        self.pinned = None;
    }

    /// Asks for a checkpoint now, if there is anything new: for a clean stop.
    pub fn begin_checkpoint(&mut self) {
        if self.checkpoint_runs
            || self.applied == self.checkpointed
            || self.applied > self.member.durable()
        {
            return;
        }
        let Some(at) = self.tail.end_at(self.applied) else {
            return;
        };
        self.checkpoint_runs = true;
        self.since_checkpoint = 0;
        self.out.push_back(Action::Checkpoint {
            blob: self.sessions.encode(),
            at,
        });
    }

    fn handle_checkpointed(&mut self, at: LogEnd) {
        self.checkpoint_runs = false;
        self.checkpointed = self.checkpointed.max(at.point.lsn);
        if matches!(self.spec.kind, VolumeKind::Log) {
            // The log is the data: only what was trimmed goes.
            return self.recycle_log();
        }
        let kept = self.kept_from();
        // As far back as somebody needs it, but no further than the bound.
        let below = self
            .member
            .needed_from()
            .max(kept)
            .min(self.checkpointed.next());
        let below = below.min(self.pinned.unwrap_or(below));
        self.out.push_back(Action::Recycle { below });
    }

    /// How far back `log_keep_bytes` reaches.
    pub(crate) fn kept_from(&mut self) -> Lsn {
        // The newest sample that lies the bound or more behind; none as long as the bound is not reached.
        let keep_from = self.logged_bytes.saturating_sub(self.config.log_keep_bytes);
        let mut kept = Lsn::ZERO;
        while let Some((lsn, bytes)) = self.logged.front()
            && *bytes <= keep_from
        {
            kept = *lsn;
            if self.logged.get(1).is_none_or(|(_, next)| *next > keep_from) {
                break;
            }
            self.logged.pop_front();
        }
        kept
    }
}

/// Checks a batch against what the append says of it. The bytes come from a peer.
fn verify(
    lineage: mainstay_types::Lineage,
    append: &Append,
    batch: &Bytes,
) -> Result<Vec<EntryRef>, String> {
    let entries = EntryIter::new(lineage, batch.clone())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("append of {} to {}: {error}", append.first, append.last))?;
    let mut expected = append.first;
    let mut runs = append.runs.iter().peekable();
    let mut epoch = Epoch::ZERO;
    let mut crc = None;
    for entry in &entries {
        let header = &entry.header;
        while let Some((next, _)) = runs.next_if(|(_, first)| *first <= header.point.lsn) {
            epoch = *next;
        }
        if header.point.lsn != expected || header.point.epoch != epoch {
            return Err(format!(
                "append holds {} where {} of epoch {epoch} belongs",
                header.point, expected
            ));
        }
        if crc.is_some_and(|crc| crc != header.prev_crc) {
            return Err(format!("append is not chained at {}", header.point));
        }
        crc = Some(header.header_crc);
        expected = expected.next();
    }
    if expected != append.last.next() || runs.next().is_some() {
        return Err(format!(
            "append says {} to {} and ends before {expected}",
            append.first, append.last
        ));
    }
    Ok(entries)
}

/// Payload length of an encoded entry that was made by this process.
fn payload_len(entry: &[u8]) -> usize {
    u32::from_le_bytes(entry[12..16].try_into().expect("four bytes")) as usize
}
