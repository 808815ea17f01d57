//! The thread of one volume: events in, the volume's actions out. No decision is taken here.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use mainstay_replication::message::Message;
use mainstay_replication::{OpId, PeerStatus, Role};
use mainstay_storage::engine::{Engine, RealDisk, run_on};
use mainstay_storage::format::{EntryIter, EntryRef};
use mainstay_storage::image::{CheckpointError, Extent, ImageReadError};
use mainstay_storage::wal::ReadPath;
use mainstay_storage::{Checkpoint, EntryKind, LogEnd, WalReader};
use mainstay_types::{
    BLOCK_BYTES, Epoch, Incarnation, Lineage, Lsn, MonoTime, NodeId, Register, VolumeKind,
    VolumeSpec,
};
use mainstay_volume::store::{CopyError, State, open_state};
use mainstay_volume::{Action, ClientOp, ConnId, Event, OpResult, Token, Volume, VolumeConfig};
use tokio::sync::{mpsc, oneshot, watch};

use super::copies::{self, BLOCKS_AT_ONCE, ExportPart};
use super::wal_thread::{self, LogTask, ToLog};
use super::{Node, clock, hooks};

/// The thread wakes at least this often, to keep its report fresh: a report that is old means a thread that hangs. Longer
/// than a heartbeat, which brings news by itself, and shorter than the age from which a beat calls a report old.
const REPORT_EVERY: Duration = Duration::from_millis(150);

/// How far one question about what is stored looks: the thread does nothing else meanwhile.
const EXTENTS_BYTES: u64 = 64 << 20;

/// Events taken before their actions are carried out: what arrives together is written together.
const EVENTS_AT_ONCE: usize = 512;

/// What the thread is told.
#[derive(Debug)]
pub enum ToVolume {
    /// For the volume itself.
    Event(Event),
    /// Operations that arrived together on one client's connection, in order. One message for all of them: they wake the
    /// thread once, and get into the same write.
    Client {
        /// The connection.
        conn: ConnId,
        /// Each with the name of its answer.
        ops: Vec<(Token, ClientOp)>,
    },
    /// A client's connection: answers go to `replies`.
    Connect {
        /// Its name.
        conn: ConnId,
        /// Where answers go.
        replies: Answers,
    },
    /// Read the whole image for a learner.
    Export {
        /// Where it goes.
        parts: mpsc::Sender<ExportPart>,
    },
    /// The image was read, or nobody wants it any more.
    Exported,
    /// Hand over if primary, write a checkpoint, close the files. Answered when all of it is done.
    Stop {
        /// Told when done.
        done: oneshot::Sender<()>,
        /// Whether to hand the primary role over first.
        hand_over: bool,
    },
}

/// Where the answers of one connection go; those that are ready together travel together.
pub type Answers = mpsc::UnboundedSender<Vec<ConnReply>>;

/// An answer on a client's connection.
#[derive(Debug)]
pub struct ConnReply {
    /// The operation.
    pub token: Token,
    /// Its answer.
    pub answer: ConnAnswer,
}

/// See [`ConnReply`].
#[derive(Debug)]
pub enum ConnAnswer {
    /// Of the volume.
    Result(OpResult),
    /// Bytes of a block volume.
    Block(Result<Bytes, ImageReadError>),
    /// What a block volume stores, clipped to the range asked for.
    Extents(Result<Vec<Extent>, ImageReadError>),
    /// Records of a log volume.
    Records {
        /// Committed records in order.
        records: Vec<RecordOut>,
        /// Where to go on.
        next: Lsn,
        /// Whether nothing committed lies behind them.
        end: bool,
    },
    /// Records that do not read back.
    Unreadable(String),
}

/// One record.
#[derive(Debug)]
pub struct RecordOut {
    /// Its position.
    pub lsn: Lsn,
    /// Nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Its bytes.
    pub data: Bytes,
}

/// What others may know of a volume on this node.
#[derive(Debug, Clone)]
pub struct VolumeReport {
    /// When the thread was last awake.
    pub at: MonoTime,
    /// Its role.
    pub role: Role,
    /// The epoch in which it acts, if it is primary, and how long something has waited to be committed.
    pub acting: Option<(Epoch, Duration)>,
    /// Where it is sealed, if nobody acts in that epoch as far as it knows.
    pub orphaned: Option<Epoch>,
    /// Greatest sealed epoch.
    pub sealed: Epoch,
    /// End of the log.
    pub last: Lsn,
    /// Durable here.
    pub durable: Lsn,
    /// Committed.
    pub commit: Lsn,
    /// Applied here.
    pub applied: Lsn,
    /// First entry held.
    pub first: Lsn,
    /// When the lease of the epoch in which it acts ends, or ended; zero if there was none yet.
    pub lease_until: MonoTime,
    /// How long the oldest log write has been under way.
    pub sync_age: Duration,
    /// The other copies, if primary.
    pub peers: Vec<PeerStatus>,
    /// Members that this copy cannot reach, if that says something of the primary.
    pub unreachable: Vec<NodeId>,
    /// Good syncs that are missing until the disk has proved that it works again.
    pub syncs_due: u32,
    /// Last decided register value seen.
    pub register: Option<Register>,
    /// Whether a membership change is under way.
    pub changing: bool,
    /// Whether the image is being replaced.
    pub rebuilding: bool,
    /// Client sessions known.
    pub sessions: usize,
    /// Who holds a block volume.
    pub attached: Option<String>,
    /// Why this copy stepped aside, if it did.
    pub failed: Option<String>,
}

/// A volume on this node, as the rest of the process holds it.
#[derive(Debug, Clone)]
pub struct VolumeHandle {
    /// What it is.
    pub spec: VolumeSpec,
    /// Its history.
    pub lineage: Lineage,
    /// The history that it was created with.
    pub log_lineage: Lineage,
    /// Where its files lie.
    pub dir: PathBuf,
    /// Which formatting of this node's copy.
    pub incarnation: Incarnation,
    /// Its thread.
    pub to: mpsc::UnboundedSender<ToVolume>,
    /// Its last report.
    pub report: Arc<Mutex<VolumeReport>>,
    /// Its commit point, as it moves.
    pub commit: watch::Receiver<Lsn>,
}

impl VolumeHandle {
    /// The last report.
    #[must_use]
    pub fn report(&self) -> VolumeReport {
        self.report
            .lock()
            .expect("no panic while the lock is held")
            .clone()
    }

    /// Tells the volume something. Lost if it has stopped.
    pub fn tell(&self, event: Event) {
        let _stopped = self.to.send(ToVolume::Event(event));
    }
}

/// Opens the copy in `dir` and runs it on a thread of its own.
///
/// # Errors
/// The copy does not open.
pub async fn open(node: &Arc<Node>, dir: PathBuf) -> Result<VolumeHandle, CopyError> {
    let (to, events) = mpsc::unbounded_channel();
    let engine = node.settings.engine;
    let io = |source| CopyError::Io {
        path: dir.clone(),
        source,
    };
    let gone = || io(std::io::Error::other("the volume's thread ended"));
    let (ready_to, ready) = oneshot::channel();
    let start = Start {
        node: node.clone(),
        dir: dir.clone(),
        to,
        events,
    };
    std::thread::Builder::new()
        .name("volume".to_owned())
        .spawn(move || run(engine, start, ready_to))
        .map_err(io)?;
    ready.await.map_err(|_| gone())?
}

struct Start {
    node: Arc<Node>,
    dir: PathBuf,
    to: mpsc::UnboundedSender<ToVolume>,
    events: mpsc::UnboundedReceiver<ToVolume>,
}

fn run(engine: Engine, start: Start, ready: oneshot::Sender<Result<VolumeHandle, CopyError>>) {
    let ran = run_on(engine, |disk| async move {
        match Actor::open(disk, start).await {
            Ok((actor, handle)) => {
                let _gone = ready.send(Ok(handle));
                actor.run().await;
            }
            Err(error) => {
                let _gone = ready.send(Err(error));
            }
        }
    });
    if let Err(error) = ran {
        tracing::error!(%error, "no runtime for the volume");
    }
}

struct Actor {
    node: Arc<Node>,
    volume: Volume,
    state: Rc<State<RealDisk>>,
    reader: WalReader<RealDisk>,
    to: mpsc::UnboundedSender<ToVolume>,
    events: mpsc::UnboundedReceiver<ToVolume>,
    log: LogTask,
    conns: BTreeMap<ConnId, Answers>,
    /// Answers of the actions being carried out; sent together once all are.
    answered: BTreeMap<ConnId, Vec<ConnReply>>,
    /// Log writes under way, with the time of each.
    writing: VecDeque<(OpId, MonoTime)>,
    report: Arc<Mutex<VolumeReport>>,
    commit: watch::Sender<Lsn>,
    claimed: Option<Epoch>,
    /// The epoch that serves, or whose promotion the hooks were told of. They are told of its end, too.
    served: Option<Epoch>,
    orphaned: Option<Epoch>,
    failed: Option<String>,
    /// The image is consistent once this is applied.
    rebuilt_at: Option<Lsn>,
    stopping: Option<oneshot::Sender<()>>,
}

impl Actor {
    async fn open(disk: RealDisk, start: Start) -> Result<(Self, VolumeHandle), CopyError> {
        let Start {
            node,
            dir,
            to,
            events,
        } = start;
        let config = node.copy_config();
        let engine = node.settings.engine;
        let began = clock::mono();
        let (log_task, log) =
            wal_thread::start(engine, disk, dir.clone(), config, to.clone()).await?;
        let witnesses = node.witnesses();
        let (state, volume_start) =
            open_state(&disk, &dir, &log, node.instance, &witnesses, node.random()).await?;
        let rebuilt_at = match &state {
            State::Block(_) if volume_start.member.rebuilding => {
                Some(volume_start.sessions.consistent_from())
            }
            _ => None,
        };
        if let Some(damage) = &log.recovered.damage {
            tracing::error!(volume = %log.facts.spec.name, file = damage.file, offset = damage.offset,
                from = %damage.from, why = %damage.why, "the log is damaged: nothing is lost while another member \
                has it; this copy takes no part until it is rebuilt");
        }
        let reader = WalReader::new(disk, log.index.clone(), ReadPath::Map);
        let config = VolumeConfig {
            ..node.settings.volume.clone()
        };
        let (lineage, spec) = (volume_start.member.lineage, volume_start.spec.clone());
        let incarnation = volume_start.member.me.incarnation;
        let mut volume = Volume::new(clock::now(), config, volume_start);
        if clock::mono().since(began) > node.settings.lease.unwell_after {
            // What the process before it knew of the disk is forgotten: a start that dragged on proves nothing.
            volume.handle(clock::now(), Event::Stalled);
        }
        let log_lineage = volume.log_lineage();
        let report = Arc::new(Mutex::new(VolumeReport::of(&volume)));
        let (commit, commit_seen) = watch::channel(volume.member().commit());
        let handle = VolumeHandle {
            spec,
            lineage,
            log_lineage,
            dir,
            incarnation,
            to: to.clone(),
            report: report.clone(),
            commit: commit_seen,
        };
        let actor = Self {
            node,
            volume,
            state: Rc::new(state),
            reader,
            to,
            events,
            log: log_task,
            conns: BTreeMap::new(),
            answered: BTreeMap::new(),
            writing: VecDeque::new(),
            report,
            commit,
            claimed: None,
            served: None,
            orphaned: None,
            failed: None,
            rebuilt_at,
            stopping: None,
        };
        Ok((actor, handle))
    }

    async fn run(mut self) {
        self.maybe_rebuilt();
        for peer in &self.node.settings.peers {
            if self.node.peers.is_up(peer.node) {
                self.volume
                    .handle(clock::now(), Event::LinkUp { node: peer.node });
            }
        }
        let mut awake = clock::mono();
        loop {
            self.carry_out().await;
            let now = clock::now();
            if now.mono.since(std::mem::replace(&mut awake, now.mono)) > self.overdue_after() {
                // A disk that hangs in a read or a checkpoint stops the thread, and leaves no write that is late.
                self.volume.handle(now, Event::Stalled);
            }
            if self.may_stop() {
                break;
            }
            let wait = clock::until(self.volume.next_deadline(), REPORT_EVERY);
            if let Ok(message) = tokio::time::timeout(wait, self.events.recv()).await {
                let Some(message) = message else { break };
                self.take(message);
                for _ in 0..EVENTS_AT_ONCE {
                    let Ok(message) = self.events.try_recv() else {
                        break;
                    };
                    self.take(message);
                }
            }
            let now = clock::now();
            if now.mono >= self.volume.next_deadline() {
                self.volume.handle(now, Event::Tick);
            }
            self.volume.finish(now);
        }
        self.close().await;
    }

    fn take(&mut self, message: ToVolume) {
        let now = clock::now();
        match message {
            ToVolume::Event(event) => {
                match &event {
                    Event::Stored { op } => self.writing.retain(|(writing, _)| writing > op),
                    Event::StorageFailed { reason } => self.failed = Some(reason.clone()),
                    Event::ConnClosed { conn } => {
                        self.conns.remove(conn);
                    }
                    _ => {}
                }
                self.volume.handle(now, event);
            }
            ToVolume::Client { conn, ops } => {
                for (token, op) in ops {
                    self.volume.handle(now, Event::Client { conn, token, op });
                }
            }
            ToVolume::Connect { conn, replies } => {
                self.conns.insert(conn, replies);
            }
            ToVolume::Export { parts } => self.export(parts),
            ToVolume::Exported => self.volume.copy_ended(),
            ToVolume::Stop { done, hand_over } => {
                self.stopping = Some(done);
                if hand_over {
                    self.volume.handle(now, Event::Handover { to: None });
                }
                self.volume.begin_checkpoint();
            }
        }
    }

    fn overdue_after(&self) -> Duration {
        self.node.settings.lease.unwell_after
    }

    /// Whether a stop was asked for and nothing is left to be done for others first.
    fn may_stop(&self) -> bool {
        let draining = matches!(self.volume.member().role(), Role::Draining { .. });
        self.stopping.is_some() && !draining
    }

    async fn close(mut self) {
        self.note_ended();
        self.node.beats.claim(self.volume.spec().name.id(), None);
        let _stopped = self.log.jobs.send(ToLog::Stop);
        drop(self.log.jobs);
        // The log ends its last write and then lets go of its end of our queue.
        if let Some(task) = self.log.local.take() {
            let _ended = task.await;
        }
        drop(self.to);
        self.events.close();
        if let Some(done) = self.stopping.take() {
            let _gone = done.send(());
        }
    }

    async fn carry_out(&mut self) {
        while let Some(action) = self.volume.poll_action() {
            self.act(action).await;
        }
        self.publish();
        while let Some((conn, replies)) = self.answered.pop_first() {
            if let Some(answers) = self.conns.get(&conn) {
                let _gone = answers.send(replies);
            }
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Wal(job) => {
                self.writing.push_back((job.op, clock::mono()));
                let _stopped = self.log.jobs.send(ToLog::Job(job));
            }
            Action::Send {
                to,
                envelope,
                batch,
            } => {
                self.node
                    .send(to, Message::Member(Box::new(envelope)), batch);
            }
            Action::SendRegister { to, body } => {
                let volume = self.volume.spec().name.id();
                self.node
                    .send(to, Message::Register { volume, body }, Bytes::new());
            }
            Action::Apply(entry) => self.apply(&entry),
            Action::Reply {
                conn,
                token,
                result,
            } => self.reply(conn, token, ConnAnswer::Result(result)),
            Action::ReadBlock {
                conn,
                token,
                offset,
                len,
            } => self.read_block(conn, token, offset, len),
            Action::ReadExtents {
                conn,
                token,
                offset,
                len,
                extents_max,
            } => self.read_extents(conn, token, offset..offset + len, extents_max),
            Action::ReadLog {
                conn,
                token,
                from,
                through,
                bytes_max,
                cached,
            } => {
                self.read_log(conn, token, (from, through), bytes_max, cached);
            }
            Action::Feed { plan, bytes_max } => {
                let (reader, to) = (self.reader.clone(), self.to.clone());
                tokio::task::spawn_local(async move {
                    let read = reader.read(plan.first, bytes_max).await;
                    let entries = read.ok().map(|batch| (batch.end.point.lsn, batch.chunks));
                    let _stopped = to.send(ToVolume::Event(Event::Fed { plan, entries }));
                });
            }
            Action::Checkpoint { blob, at } => self.checkpoint(blob, at).await,
            Action::Recycle { below } => {
                let _stopped = self.log.jobs.send(ToLog::Recycle(below));
            }
            Action::NeedsCopy { node } => {
                copies::wanted(&self.node, &self.volume.spec().name, node)
            }
            Action::AwaitReady { epoch } => {
                self.served = Some(epoch);
                let name = &self.volume.spec().name;
                hooks::promoted(&self.node, name, epoch, self.to.clone());
            }
            Action::Role(role) => {
                self.note_served(role);
                self.node.role_changed(&self.volume.spec().name, role);
            }
            Action::Release { epoch, prefer } => {
                self.node
                    .beats
                    .release(self.volume.spec().name.id(), epoch, prefer);
            }
            Action::Decided(register) => self.node.learn(*register),
            Action::PeerMisbehaved { node, reason } => {
                tracing::warn!(volume = %self.volume.spec().name, peer = %node, reason, "ignored an append");
            }
            Action::Violation(text) => {
                tracing::error!(volume = %self.volume.spec().name, text, "protocol violation: this copy stops");
                self.failed = Some(text);
            }
        }
    }

    /// Has the hooks told when an epoch serves no more.
    fn note_served(&mut self, role: Role) {
        let acting = match role {
            Role::Starting { epoch } | Role::Primary { epoch } | Role::Draining { epoch } => {
                Some(epoch)
            }
            Role::Idle | Role::Replica { .. } | Role::Failed => None,
        };
        if self.served != acting {
            self.note_ended();
        }
        if let Role::Primary { epoch } = role {
            self.served = Some(epoch);
        }
    }

    fn note_ended(&mut self) {
        if let Some(epoch) = self.served.take() {
            hooks::demoted(&self.node, &self.volume.spec().name, epoch);
        }
    }

    fn apply(&mut self, entry: &EntryRef) {
        let State::Block(image) = &*self.state else {
            return;
        };
        if let Err(error) = image.apply(entry) {
            let reason = format!(
                "committed entry {} cannot be applied: {error}",
                entry.header.point
            );
            tracing::error!(volume = %self.volume.spec().name, reason, "this copy steps aside");
            self.failed = Some(reason.clone());
            self.volume
                .handle(clock::now(), Event::StorageFailed { reason });
        }
        self.maybe_rebuilt();
    }

    /// Has it written down that the image is consistent, once it is.
    fn maybe_rebuilt(&mut self) {
        if self
            .rebuilt_at
            .is_some_and(|at| self.volume.applied() >= at)
        {
            self.rebuilt_at = None;
            let _stopped = self.log.jobs.send(ToLog::Rebuilt);
        }
    }

    fn reply(&mut self, conn: ConnId, token: Token, answer: ConnAnswer) {
        let replies = self.answered.entry(conn).or_default();
        replies.push(ConnReply { token, answer });
    }

    fn read_block(&self, conn: ConnId, token: Token, offset: u64, len: u32) {
        let Some(replies) = self.conns.get(&conn).cloned() else {
            return;
        };
        let state = self.state.clone();
        tokio::task::spawn_local(async move {
            let State::Block(image) = &*state else { return };
            let answer = ConnAnswer::Block(image.read(offset, len as usize).await);
            let _gone = replies.send(vec![ConnReply { token, answer }]);
        });
    }

    fn read_extents(&self, conn: ConnId, token: Token, range: Range<u64>, extents_max: usize) {
        let Some(replies) = self.conns.get(&conn).cloned() else {
            return;
        };
        let state = self.state.clone();
        tokio::task::spawn_local(async move {
            let State::Block(image) = &*state else { return };
            let end = range.end.min(range.start.saturating_add(EXTENTS_BYTES));
            let range = range.start..end;
            let found = image.extents(range.clone(), extents_max).await;
            let answer = ConnAnswer::Extents(found.map(|runs| clip(runs, &range)));
            let _gone = replies.send(vec![ConnReply { token, answer }]);
        });
    }

    fn read_log(
        &self,
        conn: ConnId,
        token: Token,
        (from, through): (Lsn, Lsn),
        bytes_max: usize,
        cached: Option<Vec<EntryRef>>,
    ) {
        let Some(replies) = self.conns.get(&conn).cloned() else {
            return;
        };
        if let Some(entries) = cached {
            let answer = records(entries, from, through);
            let _gone = replies.send(vec![ConnReply { token, answer }]);
            return;
        }
        let (reader, lineage) = (self.reader.clone(), self.volume.log_lineage());
        tokio::task::spawn_local(async move {
            let answer = match reader.read(from, bytes_max).await {
                Ok(batch) => {
                    let entries = batch
                        .chunks
                        .into_iter()
                        .flat_map(|chunk| EntryIter::headers_only(lineage, chunk));
                    let entries = entries
                        .map_while(Result::ok)
                        .filter(|entry| entry.header.point.lsn <= through);
                    records(entries.collect(), from, through)
                }
                Err(error) => ConnAnswer::Unreadable(error.to_string()),
            };
            let _gone = replies.send(vec![ConnReply { token, answer }]);
        });
    }

    /// Begins a checkpoint of what is applied at this very moment; the rest of it runs beside.
    async fn checkpoint(&mut self, blob: Bytes, at: LogEnd) {
        let (state, to) = (self.state.clone(), self.to.clone());
        let name = self.volume.spec().name.clone();
        let mut work = Box::pin(async move {
            let result = match &*state {
                State::Block(image) => match image.checkpoint(blob).await {
                    // The image takes nothing more in this process: the copy steps aside as after a failed log write.
                    Err(CheckpointError::Poisoned { reason }) => {
                        let failed = Event::StorageFailed { reason };
                        let _stopped = to.send(ToVolume::Event(failed));
                        return;
                    }
                    checkpointed => checkpointed.map_err(|error| error.to_string()),
                },
                State::Log(file) => {
                    let checkpoint = Checkpoint {
                        applied: at,
                        rebuilding: false,
                        blob,
                    };
                    file.store(&checkpoint)
                        .await
                        .map(|()| at)
                        .map_err(|error| error.to_string())
                }
            };
            let event = match result {
                Ok(at) => Event::Checkpointed { at },
                Err(error) => {
                    tracing::warn!(volume = %name, error, "checkpoint put off");
                    Event::CheckpointFailed
                }
            };
            let _stopped = to.send(ToVolume::Event(event));
        });
        // Polled once here: nothing that is applied later may be in it, as `blob` would not know of it.
        let done = poll_fn(|context| Poll::Ready(work.as_mut().poll(context).is_ready())).await;
        if !done {
            tokio::task::spawn_local(work);
        }
    }

    /// Reads the image from its first block to its last, beside everything else, for a full copy.
    fn export(&mut self, parts: mpsc::Sender<ExportPart>) {
        let VolumeKind::Block { size_bytes } = self.volume.spec().kind else {
            return;
        };
        let Some((base, sessions)) = self.volume.copy_begins() else {
            return;
        };
        let (state, to) = (self.state.clone(), self.to.clone());
        tokio::task::spawn_local(async move {
            let State::Block(image) = &*state else { return };
            let mut sent = parts.send(ExportPart::Begin { base, sessions }).await;
            let count = size_bytes / u64::from(BLOCK_BYTES);
            let mut first = 0;
            while sent.is_ok() && first < count {
                let part = match image
                    .export_block_range(first, BLOCKS_AT_ONCE.min(count - first))
                    .await
                {
                    Ok(blocks) => ExportPart::Blocks(blocks),
                    Err(error) => {
                        let _gone = parts.send(ExportPart::Failed(error.to_string())).await;
                        break;
                    }
                };
                first += BLOCKS_AT_ONCE;
                sent = parts.send(part).await;
            }
            if first >= count {
                let consistent_from = image.applied().point.lsn;
                let _gone = parts.send(ExportPart::End { consistent_from }).await;
            }
            let _stopped = to.send(ToVolume::Exported);
        });
    }

    /// Tells the rest of the process what has changed.
    fn publish(&mut self) {
        let member = self.volume.member();
        let commit = member.commit();
        self.commit
            .send_if_modified(|seen| std::mem::replace(seen, commit) != commit);
        let sync_age = self
            .writing
            .front()
            .map_or(Duration::ZERO, |(_, since)| clock::mono().since(*since));
        let failed = self.failed.as_deref();
        self.report
            .lock()
            .expect("no panic while the lock is held")
            .refresh(&self.volume, sync_age, failed);
        let member = self.volume.member();
        let claim = match failed {
            Some(_) => None,
            None => member.acting_epoch(),
        };
        let orphaned = member.orphaned();
        if claim != self.claimed || orphaned != self.orphaned {
            (self.claimed, self.orphaned) = (claim, orphaned);
            self.node.beats.claim(self.volume.spec().name.id(), claim);
        }
    }
}

impl VolumeReport {
    fn of(volume: &Volume) -> Self {
        let member = volume.member();
        let now = clock::mono();
        Self {
            at: now,
            role: member.role(),
            acting: member.acting(now),
            orphaned: member.orphaned(),
            sealed: member.sealed(),
            last: member.last().lsn,
            durable: member.durable(),
            commit: member.commit(),
            applied: volume.applied(),
            first: member.log().base().lsn.next(),
            lease_until: member.lease_until(),
            sync_age: Duration::ZERO,
            peers: member.peer_status(now),
            unreachable: member.unreachable(now),
            syncs_due: member.syncs_due(),
            register: member.register().cloned(),
            changing: member.is_changing(),
            rebuilding: member.is_rebuilding(),
            sessions: volume.sessions().len(),
            attached: volume.sessions().attached_by().map(str::to_owned),
            failed: None,
        }
    }

    /// Brings everything up to date. Runs after every batch of events, so it copies what is on the heap only if that changed.
    fn refresh(&mut self, volume: &Volume, sync_age: Duration, failed: Option<&str>) {
        let member = volume.member();
        let now = clock::mono();
        self.at = now;
        self.role = member.role();
        self.acting = member.acting(now);
        self.orphaned = member.orphaned();
        self.sealed = member.sealed();
        self.last = member.last().lsn;
        self.durable = member.durable();
        self.commit = member.commit();
        self.applied = volume.applied();
        self.first = member.log().base().lsn.next();
        self.lease_until = member.lease_until();
        self.sync_age = sync_age;
        self.peers = member.peer_status(now);
        self.unreachable = member.unreachable(now);
        self.syncs_due = member.syncs_due();
        self.changing = member.is_changing();
        self.rebuilding = member.is_rebuilding();
        self.sessions = volume.sessions().len();
        // The id of a register value is drawn at random for each.
        if self.register.as_ref().map(|register| register.id)
            != member.register().map(|register| register.id)
        {
            self.register = member.register().cloned();
        }
        let attached = volume.sessions().attached_by();
        if self.attached.as_deref() != attached {
            self.attached = attached.map(str::to_owned);
        }
        if self.failed.as_deref() != failed {
            self.failed = failed.map(str::to_owned);
        }
    }
}

/// Runs of whole blocks, cut to `range`.
fn clip(runs: Vec<Extent>, range: &Range<u64>) -> Vec<Extent> {
    let cut = |run: Extent| {
        let start = run.offset.max(range.start);
        let end = (run.offset + run.len).min(range.end);
        Extent {
            offset: start,
            len: end.saturating_sub(start),
            ..run
        }
    };
    runs.into_iter().map(cut).collect()
}

/// Records among `entries`, which are contiguous from `from`.
fn records(entries: Vec<EntryRef>, from: Lsn, through: Lsn) -> ConnAnswer {
    let next = entries
        .last()
        .map_or(from, |entry| entry.header.point.lsn.next());
    let record = |entry: EntryRef| RecordOut {
        lsn: entry.header.point.lsn,
        timestamp_ns: entry.header.arg,
        data: entry.payload(),
    };
    let records = entries
        .into_iter()
        .filter(|entry| entry.header.kind == EntryKind::Record)
        .map(record)
        .collect();
    ConnAnswer::Records {
        records,
        next,
        end: next > through,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_blocks_are_cut_to_the_bytes_asked_for() {
        let run = |offset, len, allocated| Extent {
            offset,
            len,
            allocated,
        };
        let runs = vec![run(4096, 4096, true), run(8192, 8192, false)];
        assert_eq!(
            clip(runs, &(5000..9000)),
            [run(5000, 3192, true), run(8192, 808, false)]
        );
        assert_eq!(
            clip(vec![run(0, 4096, true)], &(10..20)),
            [run(10, 10, true)]
        );
    }
}
