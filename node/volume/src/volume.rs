//! The state machine of one volume on one node: events in, actions out.

mod checkpoints;
mod copies;
mod feed;
mod lags;
mod log;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mainstay_replication::message::{MemberEnvelope, MemberMessage};
use mainstay_replication::{Input, Member, MemberConfig, MemberStart, Mistake, Output, Role};
use mainstay_storage::LogEnd;
use mainstay_storage::format::EntryRef;
use mainstay_types::{Lsn, MonoTime, NodeId, VolumeSpec};

use self::checkpoints::Repairs;
use self::copies::Pins;
use self::lags::Lags;
pub(crate) use self::lags::Logged;
use crate::clients::Clients;
use crate::event::{Action, ConnId, Event, Now, OpResult, Token};
use crate::memory::Memory;
use crate::pages::{Direction, PageLimits};
use crate::sessions::Sessions;
use crate::tail::Tail;
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
    /// Log kept behind the checkpoint for copies that are no members and are behind.
    pub log_keep_bytes: u64,
    /// The same for members, which should have left the register long before. A volume that is larger keeps its own size.
    pub member_keep_bytes: u64,
    /// Log that another copy may be behind before mutations wait for it, if it goes on; this copy's own disk twice as much.
    pub lag_bytes_max: u64,
    /// Operations that wait while it is not decided whether this node is primary. Whoever comes behind them is to come again.
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
            member_keep_bytes: 8 << 30,
            lag_bytes_max: 32 << 20,
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
    pub(crate) memory: Memory,
    /// How far back so many bytes of log reach.
    pub(crate) logged: Logged,
    lags: Lags,
    pub(crate) pins: Pins,
    /// Something was released that this copy still holds.
    pub(crate) release_due: bool,
    /// The checkpoint that it needs failed, and none is begun because of it before. What has grown asks by itself, and only once more has
    /// come.
    release_again: Option<MonoTime>,
    /// Memory holds blocks that no entry behind the last checkpoint made.
    repairs: Repairs,
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
        let lag_bytes_max = config.lag_bytes_max;
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
            memory: Memory::default(),
            logged: Logged::new(lag_bytes_max),
            lags: Lags::default(),
            pins: Pins::default(),
            release_due: false,
            release_again: None,
            repairs: Repairs::default(),
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
            Event::ConnClosed { conn } => {
                self.clients.closed(conn);
                self.forget_reads(now, conn);
            }
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
            Event::CheckpointFailed { mended } => self.handle_checkpoint_failed(now, mended),
            Event::Repaired => self.repairs.due = true,
            Event::Recycled { first } => self.core(
                now,
                Input::Recycled {
                    through: first.prev(),
                },
            ),
            Event::CopySent { node, base } => self.copy_sent(now, node, base),
            Event::CopyBroke { node } => self.copy_broke_off(node),
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
        self.follow_lags(now);
        self.take_up(now);
        self.flush_if_ready(now);
        self.drain_core(now);
        self.feed(now);
        self.follow_pins(now);
        self.maybe_checkpoint(now);
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
            .min(self.release_again.unwrap_or(MonoTime::MAX))
            .min(self.held_until())
            .min(self.lags_due())
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
