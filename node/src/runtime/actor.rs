//! The task of one volume: events in, the volume's actions out. No decision is taken here.
//!
//! It runs beside the links and the clients, on the same threads, so that what arrives is taken in, sent on and answered
//! without waking anybody. What touches a file goes to the volume's disk thread (`disk_thread.rs`), writes of the log to its thread (`wal_thread.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mainstay_replication::message::Message;
use mainstay_replication::{OpId, Role};
use mainstay_types::{Epoch, Lsn, MonoTime, NodeId, VolumeKind};
use mainstay_volume::store::CopyError;
use mainstay_volume::{Action, ConnId, Event, Page, Token, Volume, WriteGate};
use tokio::sync::{mpsc, oneshot, watch};

use super::disk_thread::{self, Asked, DiskThread, Work, records};
use super::handle::{Answers, ConnAnswer, ConnReply, ToVolume, VolumeHandle};
use super::precise::{PRECISE_BELOW, PreciseTimer};
use super::report::VolumeReport;
use super::tree_thread::{ToTree, TreeFeed};
use super::wal_thread::ToLog;
use super::{Node, clock, copies, hooks};

/// The task wakes at least this often, to keep its report fresh. Longer than a heartbeat, which brings news by itself, and
/// shorter than the age from which a beat calls a report old.
const REPORT_EVERY: Duration = Duration::from_millis(150);

/// Events taken before their actions are carried out: what arrives together is written together.
const EVENTS_AT_ONCE: usize = 512;

/// Opens the copy in `dir` and runs it.
///
/// # Errors
/// The copy does not open.
pub async fn open(node: &Arc<Node>, dir: PathBuf) -> Result<VolumeHandle, CopyError> {
    let (to, events) = mpsc::unbounded_channel();
    let (disk, volume) = disk_thread::start(node, dir.clone(), to.clone()).await?;
    let report = Arc::new(Mutex::new(VolumeReport::of(&volume)));
    let (commit, commit_seen) = watch::channel(volume.visible());
    let handle = VolumeHandle {
        spec: volume.spec().clone(),
        lineage: volume.member().lineage(),
        log_lineage: volume.log_lineage(),
        dir,
        incarnation: volume.member().id().incarnation,
        to: to.clone(),
        report: report.clone(),
        disk_awake: disk.awake.clone(),
        repairs: disk.repairs.clone(),
        commit: commit_seen,
    };
    let tree = disk.tree.clone().map(TreeFeed::new);
    let actor = Actor {
        node: node.clone(),
        volume,
        disk,
        tree,
        to,
        events,
        conns: BTreeMap::new(),
        answered: BTreeMap::new(),
        work: Vec::new(),
        gate: WriteGate::default(),
        writing: VecDeque::new(),
        report,
        commit,
        told_whole: false,
        claimed: None,
        served: None,
        orphaned: None,
        failed: None,
        stopping: None,
        timer: None,
    };
    node.handle.spawn(actor.run());
    Ok(handle)
}

struct Actor {
    node: Arc<Node>,
    volume: Volume,
    disk: DiskThread,
    /// The Merkle tree of a log.
    tree: Option<TreeFeed>,
    to: mpsc::UnboundedSender<ToVolume>,
    events: mpsc::UnboundedReceiver<ToVolume>,
    conns: BTreeMap<ConnId, Answers>,
    /// Answers of the actions being carried out; sent together once all are.
    answered: BTreeMap<ConnId, Vec<ConnReply>>,
    /// Work of the actions being carried out for the disk's thread; sent together, in order.
    work: Vec<Work>,
    gate: WriteGate,
    /// Log writes under way, with the time of each.
    writing: VecDeque<(OpId, MonoTime)>,
    report: Arc<Mutex<VolumeReport>>,
    commit: watch::Sender<Lsn>,
    /// The log, which was copied whole, holds everything: that is being written down.
    told_whole: bool,
    claimed: Option<Epoch>,
    /// The epoch that serves, or whose promotion the hooks were told of. They are told of its end, too.
    served: Option<Epoch>,
    orphaned: Option<Epoch>,
    failed: Option<String>,
    stopping: Option<oneshot::Sender<()>>,
    /// For rounds that are held for a part of a millisecond.
    timer: Option<PreciseTimer>,
}

impl Actor {
    async fn run(mut self) {
        self.share_memory();
        self.timer = PreciseTimer::new()
            .inspect_err(|error| tracing::warn!(%error, "rounds are not held"))
            .ok();
        for peer in &self.node.settings.peers {
            if self.node.peers.is_up(peer.node) {
                self.volume
                    .handle(clock::now(), Event::LinkUp { node: peer.node });
            }
        }
        loop {
            self.carry_out();
            if self.may_stop() {
                break;
            }
            let wait = clock::until(self.volume.next_deadline(), REPORT_EVERY);
            if let Some(message) = self.next(wait).await {
                let Some(message) = message else { break };
                self.take(message);
                for _ in 0..EVENTS_AT_ONCE {
                    let Ok(message) = self.events.try_recv() else {
                        break;
                    };
                    self.take(message);
                }
            } else if let Some(tree) = &mut self.tree {
                // Nothing else is to be done.
                tree.flush();
            }
            let (held, applied) = self.disk.held.get();
            self.volume.set_held(held, applied);
            let now = clock::now();
            if now.mono >= self.volume.next_deadline() {
                self.volume.handle(now, Event::Tick);
            }
            self.volume.finish(now);
        }
        self.close().await;
    }

    /// With other block volumes on this node, whose number changes.
    fn share_memory(&mut self) {
        if self.volume.spec().kind != VolumeKind::Log {
            self.volume
                .set_checkpoint_bytes(self.node.checkpoint_bytes());
        }
    }

    /// The next message, or none within `wait`; `Some(None)` if there will be none.
    async fn next(&mut self, wait: Duration) -> Option<Option<ToVolume>> {
        if wait < PRECISE_BELOW
            && let Some(timer) = &self.timer
        {
            return tokio::select! {
                biased;
                message = self.events.recv() => Some(message),
                // A timer that fails is as good as one that is over: what waits is looked at again.
                _ = timer.sleep(wait) => None,
            };
        }
        tokio::time::timeout(wait, self.events.recv()).await.ok()
    }

    fn take(&mut self, message: ToVolume) {
        let now = clock::now();
        match message {
            ToVolume::Event(event) => {
                match &event {
                    Event::Stored { op } => self.writing.retain(|(writing, _)| writing > op),
                    Event::StorageFailed { reason } => self.failed = Some(reason.clone()),
                    Event::Checkpointed { .. } => self.share_memory(),
                    Event::ConnClosed { conn } => {
                        self.conns.remove(conn);
                    }
                    _ => {}
                }
                self.volume.handle(now, event);
            }
            ToVolume::Client { conn, ops } => {
                self.node.awake.stir(now.mono);
                for (token, op) in ops {
                    self.volume.handle(now, Event::Client { conn, token, op });
                }
            }
            ToVolume::Connect { conn, replies } => {
                self.conns.insert(conn, replies);
            }
            ToVolume::Export { parts, to } => self.export(parts, to),
            ToVolume::Donate { blocks, answer } => self.work.push(Work::Donate { blocks, answer }),
            ToVolume::Stop { done, hand_over } => {
                self.stopping = Some(done);
                if hand_over {
                    self.volume.handle(now, Event::Handover { to: None });
                }
                self.volume.begin_checkpoint();
            }
        }
    }

    /// Whether a stop was asked for and nothing is left to be done for others first.
    fn may_stop(&self) -> bool {
        let draining = matches!(self.volume.member().role(), Role::Draining { .. });
        self.stopping.is_some() && !draining
    }

    async fn close(mut self) {
        self.note_ended();
        self.node.beats.claim(self.volume.spec().name.id(), None);
        let (ended_to, ended) = oneshot::channel();
        let stop = Work::Stop {
            commit: self.volume.member().commit(),
            ended: ended_to,
        };
        let _stopped = self.disk.work.send(vec![stop]);
        let _ended = ended.await;
        self.events.close();
        if let Some(done) = self.stopping.take() {
            let _gone = done.send(());
        }
    }

    fn carry_out(&mut self) {
        self.write_log();
        if let Some(tree) = &self.tree {
            tree.settle(self.volume.applied().min(self.volume.member().durable()));
        }
        while let Some(action) = self.volume.poll_action() {
            self.act(action);
        }
        if !self.work.is_empty() {
            let _stopped = self.disk.work.send(std::mem::take(&mut self.work));
        }
        self.publish();
        while let Some((conn, replies)) = self.answered.pop_first() {
            if let Some(answers) = self.conns.get(&conn) {
                let _gone = answers.send(replies);
            }
        }
        if let Some(tree) = &mut self.tree {
            tree.flush_if_many();
        }
    }

    fn write_log(&mut self) {
        while let Some(job) = self.gate.next(&self.volume) {
            let now = clock::mono();
            self.node.awake.stir(now);
            self.writing.push_back((job.op, now));
            let _stopped = self.disk.log.send(ToLog::Job(job));
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Wal(job) => {
                self.gate.take(job);
                self.write_log();
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
            Action::Apply(entry) => match &mut self.tree {
                Some(tree) => tree.take(entry),
                None => self.work.push(Work::Apply(entry)),
            },
            Action::Reply {
                conn,
                token,
                result,
            } => {
                let answer = ConnAnswer::Result(result);
                let replies = self.answered.entry(conn).or_default();
                replies.push(ConnReply { token, answer });
            }
            Action::ReadBlock { conn, token, .. }
            | Action::ReadExtents { conn, token, .. }
            | Action::ReadLog { conn, token, .. }
            | Action::ReadTree { conn, token, .. }
            | Action::Find { conn, token, .. } => self.read(conn, token, action),
            Action::Feed { plan, bytes_max } => self.work.push(Work::Feed { plan, bytes_max }),
            Action::Checkpoint { blob, at } => {
                if let Some(tree) = &mut self.tree {
                    tree.tell(ToTree::Mark(at.point.lsn));
                }
                self.work.push(Work::Checkpoint { blob, at });
            }
            Action::Recycle { below } => match &mut self.tree {
                // Not before the tree remembers what lies below.
                Some(tree) => tree.tell(ToTree::Recycle(below)),
                None => {
                    let _stopped = self.disk.log.send(ToLog::Recycle(below));
                }
            },
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

    /// Has a read carried out, if its connection still stands. Records in memory are answered at once.
    fn read(&mut self, conn: ConnId, token: Token, action: Action) {
        let Some(replies) = self.conns.get(&conn).cloned() else {
            return;
        };
        let asked = Asked { replies, token };
        match action {
            Action::ReadBlock { offset, len, .. } => {
                self.work.push(Work::ReadBlock { asked, offset, len });
            }
            Action::ReadExtents {
                offset,
                len,
                extents_max,
                since,
                ..
            } => self.work.push(Work::ReadExtents {
                asked,
                range: offset..offset + len,
                extents_max,
                since,
            }),
            Action::ReadLog {
                stretch,
                cached: Some(entries),
                ..
            } => asked.answer(records(Page::of(entries, &stretch))),
            Action::ReadTree {
                question, through, ..
            } => {
                if let Some(tree) = &mut self.tree {
                    tree.tell(ToTree::Ask {
                        asked,
                        question,
                        through,
                    });
                }
            }
            Action::ReadLog { stretch, .. } => self.work.push(Work::ReadLog { asked, stretch }),
            Action::Find {
                at_ns,
                first,
                last,
                voids,
                behind,
                ..
            } => self.work.push(Work::Find {
                asked,
                at_ns,
                part: (first, last),
                voids,
                behind,
            }),
            _ => {}
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

    /// Has the image read from its first block to its last, beside everything else, for a full copy.
    fn export(&mut self, parts: mpsc::Sender<copies::ExportPart>, to: NodeId) {
        let VolumeKind::Block { size_bytes } = self.volume.spec().kind else {
            let (applied, sessions) = self.volume.log_copy_begins(to);
            self.work.push(Work::ExportLog {
                parts,
                applied,
                sessions,
            });
            return;
        };
        let Some((base, sessions)) = self.volume.copy_begins(to) else {
            return;
        };
        self.work.push(Work::Export {
            parts,
            base,
            sessions,
            size_bytes,
        });
    }

    /// Tells the rest of the process what has changed.
    fn publish(&mut self) {
        let log = self.volume.spec().kind == VolumeKind::Log;
        let rebuilding = log && self.volume.member().is_rebuilding();
        if rebuilding && !self.told_whole && self.volume.copy_is_whole() {
            self.told_whole = true;
            let _stopped = self.disk.log.send(ToLog::Rebuilt);
        }
        let visible = self.volume.visible();
        self.commit
            .send_if_modified(|seen| std::mem::replace(seen, visible) != visible);
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
