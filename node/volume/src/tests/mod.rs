//! Tests of a whole volume, and the rig that drives one without disk, network or clock.

mod attachments;
mod batches;
mod conditions;
mod copies;
mod handovers;
mod lags;
mod memory;
mod reads;
mod retention;
mod sessions;
mod tokens;
mod trims;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use mainstay_replication::message::{Ack, Append, MemberEnvelope, MemberMessage};
use mainstay_replication::{EpochRuns, MemberStart, WitnessSet};
use mainstay_storage::format::{EntryIter, EntryRef, encode_unstamped, stamp};
use mainstay_storage::{EntryKind, LogEnd};
use mainstay_types::{
    Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, Member, MemberKind, MonoTime, NodeId,
    Policy, PrimaryId, Register, RegisterId, SessionId, VolumeKind, VolumeSpec,
};

use crate::{
    Action, Attachment, ClientOp, ConnId, Direction, Event, Now, OpResult, Page, PageLimits,
    Sessions, Token, Volume, VolumeConfig, VolumeStart, WalJob, WalWrite, WriteGate,
};

pub(crate) const LINEAGE: Lineage = Lineage(7);

/// One copy of a log volume.
pub(crate) struct Rig {
    pub(crate) volume: Volume,
    node: u32,
    clock: u64,
    pub(crate) wall_ns: u64,
    /// Writes stay on their way to the disk.
    pub(crate) hold: bool,
    /// The disk stands still: writes are asked for, and what it holds stays as it is.
    stalled: bool,
    /// Checkpoints are asked for, and nothing comes of them.
    slow_checkpoints: bool,
    gate: WriteGate,
    pending: VecDeque<WalJob>,
    /// Every entry that was written, in order.
    pub(crate) log: Vec<EntryRef>,
    replies: Vec<(ConnId, Token, OpResult)>,
    shown: Vec<(Token, Shown)>,
    /// The last checkpoint that was asked for.
    pub(crate) checkpoint: Option<(LogEnd, Bytes)>,
    /// The first entry to be kept, as asked for last.
    pub(crate) recycled: Option<u64>,
    /// What a member may lack begins here, as its primary says.
    lacked_from: u64,
}

/// What a reader is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) records: Vec<(u64, String)>,
    pub(crate) through: u64,
    pub(crate) next: u64,
    pub(crate) end: bool,
}

pub(crate) fn process(node: u32) -> PrimaryId {
    PrimaryId {
        node: NodeId(node),
        incarnation: Incarnation(u64::from(node)),
        instance: Instance(u64::from(node)),
    }
}

fn spec() -> VolumeSpec {
    spec_of(VolumeKind::Log)
}

fn spec_of(kind: VolumeKind) -> VolumeSpec {
    VolumeSpec {
        name: "log".parse().expect("a name"),
        kind,
    }
}

/// `node` acts in `epoch`, and its copy alone must have an entry. `beside`: the other members.
fn register(node: u32, epoch: u64, beside: &[u32]) -> Register {
    let primary = process(node);
    let member = |node| Member {
        node: NodeId(node),
        incarnation: process(node).incarnation,
        kind: MemberKind::Full,
    };
    let members = [&[node], beside].concat();
    Register {
        id: RegisterId(epoch),
        version: epoch,
        lineage: LINEAGE,
        log_lineage: LINEAGE,
        epoch: Epoch(epoch),
        primary,
        members: members.iter().map(|node| member(*node)).collect(),
        ack_quorum: 1,
        policy: Policy {
            min_copies: 1,
            ..Policy::for_placement(members.iter().map(|node| NodeId(*node)).collect())
        },
        cut: LogPoint::ZERO,
        spec: spec(),
        deleted: false,
    }
}

impl Rig {
    /// An empty copy that follows nobody yet.
    pub(crate) fn new(node: u32) -> Self {
        Self::opened(node, LogEnd::ZERO, &Bytes::new(), &[])
    }

    /// Primary of epoch 1 of a block volume.
    pub(crate) fn block() -> Self {
        let mut rig = Self::block_copy();
        rig.promote(1);
        rig
    }

    /// An empty copy of a block volume that follows nobody yet.
    fn block_copy() -> Self {
        let kind = VolumeKind::Block {
            size_bytes: 8 << 20,
        };
        Self::of_kind(kind, 1, LogEnd::ZERO, &Bytes::new(), &[])
    }

    /// Opens session 5 on connection 1, attached.
    fn attach(&mut self) {
        let attachment = Attachment {
            name: "host".to_owned(),
            takeover: false,
        };
        let open = ClientOp::Open {
            session: SessionId(5),
            generation: 0,
            create: true,
            answered: 0,
            attachment: Some(attachment),
            token: 0,
        };
        assert!(matches!(self.call(1, open), OpResult::Opened { .. }));
    }

    /// A copy whose disk holds a checkpoint at `applied` and the entries `log`: those behind it, or all from the first one on.
    pub(crate) fn opened(node: u32, applied: LogEnd, blob: &Bytes, log: &[EntryRef]) -> Self {
        Self::of_kind(VolumeKind::Log, node, applied, blob, log)
    }

    fn of_kind(
        kind: VolumeKind,
        node: u32,
        applied: LogEnd,
        blob: &Bytes,
        log: &[EntryRef],
    ) -> Self {
        let lsn = |entry: &EntryRef| entry.header.point.lsn;
        let base = match log.first() {
            Some(entry) if lsn(entry) == Lsn(1) => LogPoint::ZERO,
            _ => applied.point,
        };
        let mut runs = EpochRuns::empty(base);
        for entry in log {
            runs.push(entry.header.point.epoch, 1);
        }
        let last = runs.last();
        let behind = |entry: &&EntryRef| lsn(entry) > applied.point.lsn;
        let start = VolumeStart {
            member: MemberStart {
                me: process(node),
                volume: spec().name.id(),
                lineage: LINEAGE,
                witnesses: std::sync::Arc::new(WitnessSet::of(&[NodeId(11)])),
                log: runs,
                sealed: last.epoch,
                commit: applied.point.lsn,
                doubt: None,
                damaged: false,
                rebuilding: false,
                seed: 1,
            },
            spec: spec_of(kind),
            log_lineage: LINEAGE,
            applied,
            sessions: Sessions::decode(blob).expect("a table"),
            tail: log.iter().filter(behind).cloned().collect(),
        };
        let config = VolumeConfig {
            record_bytes_max: 1 << 20,
            checkpoint_bytes: 1,
            ..VolumeConfig::default()
        };
        let now = Now {
            mono: MonoTime(1),
            wall_ns: 0,
        };
        let mut rig = Self {
            volume: Volume::new(now, config, start),
            node,
            clock: 1,
            wall_ns: 1_000,
            hold: false,
            stalled: false,
            slow_checkpoints: false,
            gate: WriteGate::default(),
            pending: VecDeque::new(),
            log: log.to_vec(),
            replies: Vec::new(),
            shown: Vec::new(),
            checkpoint: None,
            recycled: None,
            lacked_from: 0,
        };
        rig.drain();
        rig
    }

    /// Primary of epoch 1.
    pub(crate) fn primary() -> Self {
        let mut rig = Self::new(1);
        rig.promote(1);
        rig
    }

    fn now(&mut self) -> Now {
        self.clock += 1_000;
        Now {
            mono: MonoTime(self.clock),
            wall_ns: self.wall_ns,
        }
    }

    /// So much time passes, on both clocks.
    pub(crate) fn pass(&mut self, ns: u64) {
        self.clock += ns;
        self.wall_ns += ns;
        self.event(Event::Tick);
    }

    pub(crate) fn event(&mut self, event: Event) {
        let now = self.now();
        self.volume.handle(now, event);
        self.volume.finish(now);
        self.drain();
    }

    /// Seals at `epoch` and becomes its primary, alone.
    pub(crate) fn promote(&mut self, epoch: u64) {
        self.promote_with(epoch, &[]);
    }

    /// The same with other members, whose answers are not needed.
    pub(crate) fn promote_with(&mut self, epoch: u64, beside: &[u32]) {
        self.promote_by(register(self.node, epoch, beside));
    }

    /// Seals at the register's epoch and becomes its primary.
    fn promote_by(&mut self, register: Register) {
        let epoch_of = register.epoch;
        self.message(99, MemberMessage::Seal { epoch: epoch_of });
        self.message(99, MemberMessage::Decided(Box::new(register)));
        self.event(Event::Lease {
            epoch: epoch_of,
            until: MonoTime::MAX,
            silent: Vec::new(),
        });
        self.event(Event::Tick);
        assert_eq!(self.volume.member().acting_epoch(), Some(epoch_of));
    }

    /// Another node acts in `epoch`.
    pub(crate) fn depose(&mut self, epoch: u64) {
        let register = Box::new(register(98, epoch, &[]));
        self.message(98, MemberMessage::Decided(register));
    }

    fn message(&mut self, from: u32, body: MemberMessage) {
        self.peer(from, body, Bytes::new());
    }

    fn peer(&mut self, from: u32, body: MemberMessage, batch: Bytes) {
        let envelope = MemberEnvelope {
            volume: spec().name.id(),
            lineage: LINEAGE,
            from: process(from),
            body,
        };
        self.event(Event::Peer { envelope, batch });
    }

    /// `node` holds everything up to `lsn` durably, in epoch 1.
    pub(crate) fn ack(&mut self, node: u32, lsn: u64) {
        let ack = Ack {
            epoch: Epoch(1),
            instance: process(self.node).instance,
            lsn: Lsn(lsn),
            rebuilding: false,
        };
        self.message(node, MemberMessage::Ack(ack));
    }

    /// `entries` from the primary on node `from`, and its commit point.
    pub(crate) fn append(&mut self, from: u32, entries: &[EntryRef], commit: u64) {
        let epoch = entries
            .last()
            .map_or(Epoch(1), |entry| entry.header.point.epoch);
        let next = self.volume.member().last().lsn.next();
        let place = |entry: &EntryRef| entry.header.point.lsn;
        let first = entries.first().map_or(next, place);
        let last = entries.last().map_or_else(|| first.prev(), place);
        let mut runs: Vec<(Epoch, Lsn)> = Vec::new();
        for entry in entries {
            let point = entry.header.point;
            if runs.last().is_none_or(|(epoch, _)| *epoch != point.epoch) {
                runs.push((point.epoch, point.lsn));
            }
        }
        let append = Append {
            epoch,
            prev: self
                .volume
                .member()
                .log()
                .point(first.prev())
                .unwrap_or(LogPoint::ZERO),
            first,
            last,
            runs,
            commit: Lsn(commit),
            primary_last: last,
            register_version: 1,
            lacked_from: Lsn(self.lacked_from),
        };
        let mut batch = BytesMut::new();
        for entry in entries {
            batch.extend_from_slice(&entry.bytes);
        }
        self.peer(from, MemberMessage::Append(append), batch.freeze());
    }

    pub(crate) fn ask(&mut self, conn: ConnId, token: Token, op: ClientOp) {
        self.event(Event::Client { conn, token, op });
    }

    /// Asks, and takes the answer that is there at once.
    pub(crate) fn call(&mut self, conn: ConnId, op: ClientOp) -> OpResult {
        self.ask(conn, 77, op);
        self.reply(conn, 77).expect("answered at once")
    }

    pub(crate) fn reply(&mut self, conn: ConnId, token: Token) -> Option<OpResult> {
        let at = self
            .replies
            .iter()
            .position(|(c, t, _)| (*c, *t) == (conn, token))?;
        Some(self.replies.remove(at).2)
    }

    pub(crate) fn open(&mut self, conn: ConnId, session: u64) -> OpResult {
        self.call(conn, opening(session))
    }

    /// Asks for a session; the answer is not awaited.
    pub(crate) fn open_later(&mut self, conn: ConnId, session: u64) {
        self.ask(conn, 66, opening(session));
    }

    /// What a reader at this copy is shown from `from` on.
    pub(crate) fn read(&mut self, from: u64, bytes_max: usize) -> Shown {
        let limits = PageLimits {
            bytes_max,
            records_max: usize::MAX,
        };
        self.read_page(from, Direction::Forwards, limits)
    }

    pub(crate) fn read_page(
        &mut self,
        from: u64,
        direction: Direction,
        limits: PageLimits,
    ) -> Shown {
        let op = ClientOp::ReadLog {
            from: Lsn(from),
            direction,
            limits,
            stale_ok: true,
        };
        self.ask(1_000, 88, op);
        let at = self.shown.iter().position(|(token, _)| *token == 88);
        self.shown.remove(at.expect("entries in memory")).1
    }

    /// Everything that a reader at this copy is shown.
    pub(crate) fn records(&mut self) -> Vec<(u64, String)> {
        self.read(1, usize::MAX).records
    }

    /// Makes held writes durable, one by one, up to `count`.
    pub(crate) fn store(&mut self, count: usize) {
        for _ in 0..count {
            let Some(job) = self.pending.pop_front() else {
                return;
            };
            self.event(Event::Stored { op: job.op });
        }
    }

    fn drain(&mut self) {
        loop {
            if let Some(job) = self.gate.next(&self.volume) {
                self.write(job);
            }
            let Some(action) = self.volume.poll_action() else {
                break;
            };
            match action {
                Action::Wal(job) => self.gate.take(job),
                Action::Reply {
                    conn,
                    token,
                    result,
                } => self.replies.push((conn, token, result)),
                Action::ReadLog {
                    token,
                    stretch,
                    cached,
                    ..
                } => {
                    let page = match cached {
                        Some(entries) => Page::of(entries, &stretch),
                        None => {
                            let behind = |e: &&EntryRef| e.header.point.lsn >= stretch.from;
                            let on_disk = self.log.iter().filter(behind).cloned();
                            Page::of_disk(on_disk.collect(), &stretch)
                        }
                    };
                    let records = page.entries.iter();
                    let records = records.filter(|e| e.header.kind == EntryKind::Record);
                    let text = |entry: &EntryRef| {
                        let text = String::from_utf8_lossy(&entry.payload()).into_owned();
                        (entry.header.point.lsn.0, text)
                    };
                    let shown = Shown {
                        records: records.map(text).collect(),
                        through: page.through.0,
                        next: page.next.0,
                        end: page.end,
                    };
                    self.shown.push((token, shown));
                }
                Action::Checkpoint { blob, at } => {
                    self.checkpoint = Some((at, blob));
                    if self.slow_checkpoints {
                        continue;
                    }
                    let now = self.now();
                    self.volume.handle(now, Event::Checkpointed { at });
                }
                Action::Recycle { below } => {
                    self.recycled = Some(below.0);
                    let now = self.now();
                    self.volume.handle(now, Event::Recycled { first: below });
                }
                Action::Violation(text) => panic!("violation: {text}"),
                _ => {}
            }
        }
    }

    fn write(&mut self, job: WalJob) {
        if self.stalled {
            return;
        }
        match &job.write {
            WalWrite::Append { entries, .. } => {
                for bytes in entries {
                    let decoded = EntryIter::new(LINEAGE, bytes.clone());
                    self.log
                        .extend(decoded.map(|entry| entry.expect("a whole entry")));
                }
            }
            WalWrite::Cut { after } => self.log.retain(|e| e.header.point.lsn <= *after),
            WalWrite::Seal { .. } => {}
        }
        self.pending.push_back(job);
        if !self.hold {
            let job = self.pending.pop_back().expect("just pushed");
            let now = self.now();
            self.volume.handle(now, Event::Stored { op: job.op });
            self.volume.finish(now);
        }
    }
}

fn opening(session: u64) -> ClientOp {
    opening_with(session, 0)
}

/// Opens a session as the writer with `token`.
pub(crate) fn opening_with(session: u64, token: u64) -> ClientOp {
    ClientOp::Open {
        session: SessionId(session),
        generation: 0,
        create: true,
        answered: 0,
        attachment: None,
        token,
    }
}

/// A record as a client's stream encodes it.
pub(crate) fn record(text: &str) -> BytesMut {
    encode_unstamped(EntryKind::Record, SessionId(0), 0, 0, 0, text.as_bytes())
}

/// The append of `texts`, as one record or one batch.
pub(crate) fn append_of(seq: u64, texts: &[&str]) -> ClientOp {
    ClientOp::Mutate {
        seq,
        expected: None,
        entry: record(texts[0]),
        more: texts[1..].iter().map(|text| record(text)).collect(),
    }
}

/// The first entry of `epoch` behind `end`.
pub(crate) fn epoch_start(epoch: u64, end: LogEnd) -> EntryRef {
    let mut entry = encode_unstamped(EntryKind::EpochStart, SessionId(0), 0, 0, 0, &[]);
    stamp(
        &mut entry,
        LINEAGE,
        Epoch(epoch),
        end.point.lsn.next(),
        end.crc,
    );
    EntryIter::new(LINEAGE, entry.freeze())
        .next()
        .expect("one entry")
        .expect("a whole one")
}
