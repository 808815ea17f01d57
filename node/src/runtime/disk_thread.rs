//! The thread of one volume's disk: what touches its files, but for the writing of its log ([`super::wal_thread`]), is
//! carried out in the order in which the volume's task asks for it. No decision is taken here.

mod donor;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use mainstay_replication::AppendPlan;
use mainstay_storage::engine::{RealDisk, run_on};
use mainstay_storage::format::EntryRef;
use mainstay_storage::image::{CheckpointError, Donation, Extent};
use mainstay_storage::wal::{ReadError, ReadPath};
use mainstay_storage::{Checkpoint, EntryKind, LogEnd, WalReader};
use mainstay_types::{Lineage, Lsn, VolumeName};
use mainstay_volume::disk_reads::{find_record, read_page};
use mainstay_volume::store::{CopyError, State, open_state};
use mainstay_volume::{Event, OpResult, Page, Stretch, Token, Voids, Volume, VolumeConfig};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::checkpoint_pace::{Held, Pacing, Told};
use super::copies::ExportPart;
use super::handle::{Answers, ConnAnswer, ConnReply, DiskAwake, RecordOut, ToVolume};
use super::repair::{RepairCounts, Repairer};
use super::tree_thread::{self, ToTree, TreeThread};
use super::wal_thread::{self, LogTask, ToLog};
use super::{Node, clock};

/// A log's checkpoint is its session table: cheap to write, and what lies behind it is looked at entry by entry at a start.
const LOG_CHECKPOINT_BYTES: u64 = 64 << 20;

/// The thread looks up at least this often, to show that it is awake. Shorter than the age from which a beat calls a disk
/// sick.
const AWAKE_EVERY: Duration = Duration::from_millis(150);

/// How far one question about what is stored looks: the thread does nothing else meanwhile.
const EXTENTS_BYTES: u64 = 64 << 20;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Take a committed entry into the image.
    Apply(EntryRef),
    /// Read the image as it is now.
    ReadBlock { asked: Asked, offset: u64, len: u32 },
    /// Look up what the image stores now; `range` is not empty.
    ReadExtents {
        asked: Asked,
        range: Range<u64>,
        extents_max: usize,
        since: Option<Lsn>,
    },
    /// Read records from the log.
    ReadLog { asked: Asked, stretch: Stretch },
    /// Find the first record of a part of the log that is not older than a time.
    Find {
        asked: Asked,
        at_ns: u64,
        /// First and last LSN to look at.
        part: (Lsn, Lsn),
        voids: Voids,
        /// The answer if there is none.
        behind: Option<(Lsn, u64)>,
    },
    /// Read entries for a copy that is behind.
    Feed { plan: AppendPlan, bytes_max: usize },
    /// Write a checkpoint of what is applied now.
    Checkpoint { blob: Bytes, at: LogEnd },
    /// Read the whole image, for a full copy.
    Export {
        parts: mpsc::Sender<ExportPart>,
        base: LogEnd,
        sessions: Bytes,
        size_bytes: u64,
    },
    /// Read blocks for another member's repair.
    Donate {
        blocks: Vec<u64>,
        answer: oneshot::Sender<Result<Donation, String>>,
    },
    /// Begin a full copy of a log: the feed brings the rest.
    ExportLog {
        parts: mpsc::Sender<ExportPart>,
        /// The position of the session table.
        applied: Lsn,
        sessions: Bytes,
    },
    /// End; told when everything before is done.
    Stop {
        /// What is known to be committed.
        commit: Lsn,
        ended: oneshot::Sender<()>,
    },
}

/// Who asked for a read.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) replies: Answers,
    pub(super) token: Token,
}

impl Asked {
    pub(super) fn answer(self, answer: ConnAnswer) {
        let token = self.token;
        let _gone = self.replies.send(vec![ConnReply { token, answer }]);
    }
}

/// The thread, as the volume's task holds it.
#[derive(Debug)]
pub(super) struct DiskThread {
    /// Work, in order; what is sent together wakes the thread once.
    pub(super) work: mpsc::UnboundedSender<Vec<Work>>,
    /// Writes of the log.
    pub(super) log: mpsc::UnboundedSender<ToLog>,
    /// When it was last awake.
    pub(super) awake: Arc<DiskAwake>,
    /// What the image holds in memory.
    pub(super) held: Arc<Held>,
    /// The Merkle tree of a log.
    pub(super) tree: Option<TreeThread>,
    /// What was repaired of the image.
    pub(super) repairs: Arc<RepairCounts>,
}

/// Opens the copy in `dir` on a thread of its own. What the thread has to say goes to `to`.
///
/// # Errors
/// The copy does not open.
pub(super) async fn start(
    node: &Arc<Node>,
    dir: PathBuf,
    to: mpsc::UnboundedSender<ToVolume>,
) -> Result<(DiskThread, Volume), CopyError> {
    let engine = node.settings.engine;
    let io = |source| CopyError::Io {
        path: dir.clone(),
        source,
    };
    let gone = || io(std::io::Error::other("the volume's thread ended"));
    let (ready_to, ready) = oneshot::channel();
    let (node, path) = (node.clone(), dir.clone());
    let run = move || {
        let open = |ready: Ready<_>| {
            let path = path.clone();
            run_on(engine, |disk| async move {
                match Worker::open(disk, &node, &path, to).await {
                    Ok((worker, thread, volume)) => {
                        ready.say(Ok((thread, volume)));
                        worker.run().await;
                    }
                    Err(error) => ready.say(Err(error)),
                }
            })
        };
        open_or_say(&path, ready_to, open);
    };
    std::thread::Builder::new()
        .name("volume".to_owned())
        .spawn(run)
        .map_err(io)?;
    ready.await.map_err(|_| gone())?
}

/// Where to say what came of an open.
type OpenedTo<T> = oneshot::Sender<Result<T, CopyError>>;

/// Who waits to hear what came of an open; it is said once.
struct Ready<T>(Rc<Cell<Option<OpenedTo<T>>>>);

impl<T> Ready<T> {
    fn say(&self, opened: Result<T, CopyError>) {
        if let Some(to) = self.0.take() {
            let _gone = to.send(opened);
        }
    }
}

/// Has `open` say what comes of it. If there is no runtime for that, the error says why: a ring takes a descriptor, and a copy that lacks
/// one is tried again.
fn open_or_say<T>(
    path: &Path,
    ready: OpenedTo<T>,
    open: impl FnOnce(Ready<T>) -> std::io::Result<()>,
) {
    let ready = Ready(Rc::new(Cell::new(Some(ready))));
    if let Err(source) = open(Ready(ready.0.clone())) {
        let path = path.to_owned();
        ready.say(Err(CopyError::Io { path, source }));
    }
}

struct Worker {
    node: Arc<Node>,
    name: VolumeName,
    log_lineage: Lineage,
    state: Rc<State<RealDisk>>,
    reader: WalReader<RealDisk>,
    work: mpsc::UnboundedReceiver<Vec<Work>>,
    to: mpsc::UnboundedSender<ToVolume>,
    log: LogTask,
    awake: Arc<DiskAwake>,
    held: Arc<Held>,
    /// The thread stood still if it was not awake for this long.
    stalled_after: Duration,
    tree: Option<TreeThread>,
    /// The image is consistent once this is applied.
    rebuilt_at: Option<Lsn>,
    /// The newest checkpoint, under way or done.
    checkpointing: Option<JoinHandle<()>>,
    /// Why the last checkpoint was put off, as it was said.
    put_off: Rc<RefCell<Option<String>>>,
    pacing: Pacing,
    repairer: Rc<Repairer>,
    /// An entry could not be applied: the image shows nothing any more.
    failed: bool,
}

impl Worker {
    async fn open(
        disk: RealDisk,
        node: &Arc<Node>,
        dir: &Path,
        to: mpsc::UnboundedSender<ToVolume>,
    ) -> Result<(Self, DiskThread, Volume), CopyError> {
        let config = node.copy_config();
        let began = clock::mono();
        let (log_task, log) = wal_thread::start(dir.to_owned(), config, to.clone()).await?;
        let witnesses = node.witnesses();
        let (state, start) =
            open_state(&disk, dir, &log, node.instance, &witnesses, node.random()).await?;
        let rebuilt_at = match &state {
            State::Block(_) if start.member.rebuilding => Some(start.sessions.consistent_from()),
            _ => None,
        };
        if let Some(damage) = &log.recovered.damage {
            tracing::error!(volume = %log.facts.spec.name, file = damage.file, offset = damage.offset,
                from = %damage.from, why = %damage.why, "the log is damaged: nothing is lost while another member \
                has it; this copy takes no part until it is rebuilt");
        }
        let mut config: VolumeConfig = node.settings.volume.clone();
        if let State::Log(_) = &state {
            config.checkpoint_bytes = config.checkpoint_bytes.min(LOG_CHECKPOINT_BYTES);
        }
        let mut volume = Volume::new(clock::now(), config, start);
        let stalled_after = node.settings.lease.unwell_after;
        if clock::mono().since(began) > stalled_after {
            // What the process before it knew of the disk is forgotten: a start that dragged on proves nothing.
            volume.handle(clock::now(), Event::Stalled);
        }
        let tree = match state {
            State::Block(_) => None,
            State::Log(_) => {
                let name = volume.spec().name.clone();
                let (index, lineage) = (log.index.clone(), volume.log_lineage());
                let jobs = log_task.jobs.clone();
                let tree = tree_thread::start(name, dir.to_owned(), index, lineage, jobs);
                Some(tree.map_err(|source| CopyError::Io {
                    path: dir.to_owned(),
                    source,
                })?)
            }
        };
        let (name, lineage) = (volume.spec().name.clone(), log.facts.lineage);
        let held = Arc::<Held>::default();
        let repairer = Repairer::new(node, name, lineage, to.clone(), held.clone());
        let (work_to, work) = mpsc::unbounded_channel();
        let awake = Arc::new(DiskAwake::new(clock::mono()));
        let thread = DiskThread {
            work: work_to,
            log: log_task.jobs.clone(),
            awake: awake.clone(),
            held: held.clone(),
            tree: tree.clone(),
            repairs: repairer.counts.clone(),
        };
        let worker = Self {
            node: node.clone(),
            name: volume.spec().name.clone(),
            log_lineage: volume.log_lineage(),
            state: Rc::new(state),
            reader: WalReader::new(disk, log.index.clone(), ReadPath::Map),
            work,
            to,
            log: log_task,
            awake,
            held,
            stalled_after,
            tree,
            rebuilt_at,
            checkpointing: None,
            put_off: Rc::default(),
            pacing: Pacing::new(),
            repairer: Rc::new(repairer),
            failed: false,
        };
        Ok((worker, thread, volume))
    }

    async fn run(mut self) {
        self.maybe_rebuilt();
        self.begin_scrub();
        loop {
            let next = tokio::time::timeout(AWAKE_EVERY, self.work.recv()).await;
            let now = clock::mono();
            if now.since(self.awake.get()) > self.stalled_after {
                // A disk that hangs in a read, a sync or a checkpoint stops the thread, and may leave no write that is late.
                self.tell(Event::Stalled);
            }
            self.awake.set(now);
            let Ok(work) = next else { continue };
            let Some(work) = work else { return };
            for work in work {
                if let Work::Stop { commit, ended } = work {
                    self.end(commit).await;
                    let _gone = ended.send(());
                    return;
                }
                self.carry_out(work).await;
            }
        }
    }

    /// A checkpoint under way is completed, and the log ends its last write.
    async fn end(mut self, commit: Lsn) {
        self.pacing.hurry();
        // What a checkpoint lacks then is in the log.
        self.repairer.stop();
        if let Some(task) = self.checkpointing.take() {
            let _ended = task.await;
        }
        if let Some(tree) = &self.tree {
            let (ended_to, ended) = oneshot::channel();
            let _stopped = tree.to.send(ToTree::Stop(ended_to));
            let _ended = ended.await;
        }
        self.log.stop(commit).await;
    }

    fn tell(&self, event: Event) {
        let _stopped = self.to.send(ToVolume::Event(event));
    }

    async fn carry_out(&mut self, work: Work) {
        match work {
            Work::Apply(entry) => self.apply(&entry),
            Work::ReadBlock { asked, .. } | Work::ReadExtents { asked, .. } if self.failed => {
                // The image lacks what the reader was promised to see.
                asked.answer(ConnAnswer::Result(OpResult::Interrupted));
            }
            Work::ReadBlock { asked, offset, len } => self.read_block(asked, offset, len),
            Work::ReadExtents {
                asked,
                range,
                extents_max,
                since,
            } => self.read_extents(asked, range, extents_max, since),
            Work::ReadLog { asked, stretch } => self.read_log(asked, stretch),
            Work::Find {
                asked,
                at_ns,
                part,
                voids,
                behind,
            } => self.find(asked, at_ns, part, voids, behind),
            Work::Feed { plan, bytes_max } => self.feed(plan, bytes_max),
            Work::Checkpoint { blob, at } if !self.failed => self.checkpoint(blob, at).await,
            Work::Export {
                parts,
                base,
                sessions,
                size_bytes,
            } if !self.failed => self.export(parts, base, sessions, size_bytes),
            Work::Donate { blocks, answer } => self.donate(blocks, answer),
            Work::ExportLog {
                parts,
                applied,
                sessions,
            } => self.export_log(parts, applied, sessions),
            Work::Checkpoint { .. } => self.tell(Event::CheckpointFailed { mended: false }),
            // Whoever waits for it sees that nothing comes.
            Work::Export { .. } | Work::Stop { .. } => {}
        }
    }

    fn apply(&mut self, entry: &EntryRef) {
        let State::Block(image) = &*self.state else {
            return;
        };
        if self.failed {
            return;
        }
        self.pacing.applied(entry.bytes.len());
        if let Err(error) = image.apply(entry) {
            let reason = format!(
                "committed entry {} cannot be applied: {error}",
                entry.header.point
            );
            tracing::error!(volume = %self.name, reason, "this copy steps aside");
            self.failed = true;
            return self.tell(Event::StorageFailed { reason });
        }
        self.held.tell(image);
        self.maybe_rebuilt();
    }

    /// Has it written down that the image is consistent, once it is.
    fn maybe_rebuilt(&mut self) {
        let State::Block(image) = &*self.state else {
            return;
        };
        let applied = image.applied().point.lsn;
        if self.rebuilt_at.is_some_and(|at| applied >= at) {
            self.rebuilt_at = None;
            let _stopped = self.log.jobs.send(ToLog::Rebuilt);
        }
    }

    fn read_block(&self, asked: Asked, offset: u64, len: u32) {
        let (state, repairer) = (self.state.clone(), self.repairer.clone());
        tokio::task::spawn_local(async move {
            let State::Block(image) = &*state else { return };
            let read = async || image.read(offset, len as usize).await;
            asked.answer(ConnAnswer::Block(repairer.mending(image, read).await));
        });
    }

    fn begin_scrub(&self) {
        let period = self.node.settings.scrub_period;
        if let (State::Block(_), Some(period)) = (&*self.state, period) {
            let (state, repairer) = (self.state.clone(), self.repairer.clone());
            tokio::task::spawn_local(async move { repairer.scrub(state, period).await });
        }
    }

    fn read_extents(
        &self,
        asked: Asked,
        range: Range<u64>,
        extents_max: usize,
        since: Option<Lsn>,
    ) {
        let (state, repairer) = (self.state.clone(), self.repairer.clone());
        tokio::task::spawn_local(async move {
            let State::Block(image) = &*state else { return };
            let end = range.end.min(range.start.saturating_add(EXTENTS_BYTES));
            let range = range.start..end;
            let look = async || image.extents(range.clone(), extents_max, since).await;
            let found = repairer.mending(image, look).await;
            asked.answer(ConnAnswer::Extents(found.map(|runs| clip(runs, &range))));
        });
    }

    fn read_log(&self, asked: Asked, stretch: Stretch) {
        let (reader, lineage) = (self.reader.clone(), self.log_lineage);
        tokio::task::spawn_local(async move {
            asked.answer(match read_page(&reader, lineage, &stretch).await {
                Ok(page) => records(page),
                Err(error) => unreadable(&error),
            });
        });
    }

    fn find(
        &self,
        asked: Asked,
        at_ns: u64,
        part: (Lsn, Lsn),
        voids: Voids,
        behind: Option<(Lsn, u64)>,
    ) {
        let (reader, lineage) = (self.reader.clone(), self.log_lineage);
        tokio::task::spawn_local(async move {
            let found = find_record(&reader, lineage, at_ns, part, &voids).await;
            asked.answer(match found {
                Ok(found) => ConnAnswer::Result(OpResult::Found(found.or(behind))),
                Err(error) => unreadable(&error),
            });
        });
    }

    fn feed(&self, plan: AppendPlan, bytes_max: usize) {
        let (reader, to) = (self.reader.clone(), self.to.clone());
        tokio::task::spawn_local(async move {
            let read = reader.read(plan.first, bytes_max).await;
            let entries = read.ok().map(|batch| (batch.end.point.lsn, batch.chunks));
            let _stopped = to.send(ToVolume::Event(Event::Fed { plan, entries }));
        });
    }

    /// Begins a checkpoint of what is applied at this very moment; the rest of it runs beside.
    async fn checkpoint(&mut self, blob: Bytes, at: LogEnd) {
        let (state, to) = (self.state.clone(), self.to.clone());
        let (name, held) = (self.name.clone(), self.held.clone());
        let (repairer, put_off) = (self.repairer.clone(), self.put_off.clone());
        let pace = self.pacing.begin(self.node.checkpoint_bytes());
        let mut work = Box::pin(async move {
            let mut mended = false;
            let result = match &*state {
                State::Block(image) => {
                    let held = &*held;
                    let told = Told { pace, image, held };
                    let checkpointed = image.checkpoint_at_pace(blob, &told).await;
                    held.tell(image);
                    // The image takes nothing more in this process: the copy steps aside as after a failed log write.
                    if let Err(CheckpointError::Poisoned { reason }) = checkpointed {
                        let failed = Event::StorageFailed { reason };
                        let _stopped = to.send(ToVolume::Event(failed));
                        return;
                    }
                    if let Err(CheckpointError::Corrupt { block }) = checkpointed {
                        mended = repairer.repair(image, block).await;
                    }
                    checkpointed.map_err(|error| error.to_string())
                }
                State::Log(file) => {
                    let checkpoint = Checkpoint {
                        applied: at,
                        rebuilding: false,
                        blob,
                    };
                    let stored = file.store(&checkpoint).await;
                    stored.map(|()| at).map_err(|error| error.to_string())
                }
            };
            let event = match result {
                Ok(at) => {
                    if put_off.take().is_some() {
                        tracing::info!(volume = %name, "checkpoints are written again");
                    }
                    Event::Checkpointed { at }
                }
                Err(error) => {
                    // A disk that is full refuses each of them, for hours.
                    if put_off.borrow().as_ref() != Some(&error) {
                        tracing::warn!(volume = %name, error, "checkpoint put off");
                        put_off.replace(Some(error));
                    }
                    Event::CheckpointFailed { mended }
                }
            };
            let _stopped = to.send(ToVolume::Event(event));
        });
        // Polled once here: nothing that is applied later may be in it, as `blob` would not know of it.
        let done = poll_fn(|context| Poll::Ready(work.as_mut().poll(context).is_ready())).await;
        if !done {
            self.checkpointing = Some(tokio::task::spawn_local(work));
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

/// The records of a page.
pub(super) fn records(page: Page) -> ConnAnswer {
    let record = |entry: EntryRef| RecordOut {
        lsn: entry.header.point.lsn,
        timestamp_ns: entry.header.arg,
        data: entry.payload(),
    };
    let records = page
        .entries
        .into_iter()
        .filter(|entry| entry.header.kind == EntryKind::Record);
    ConnAnswer::Records {
        records: records.map(record).collect(),
        next: page.next,
        end: page.end,
        through: page.through,
    }
}

/// What was asked for was recycled meanwhile, or does not read back.
fn unreadable(error: &ReadError) -> ConnAnswer {
    ConnAnswer::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that started short of descriptors got no ring for a copy, took its thread for ended, and never tried again.
    #[test]
    fn an_open_without_a_runtime_says_why() {
        let (ready_to, mut ready) = oneshot::channel::<Result<(), CopyError>>();
        let no_descriptor = |_| Err(std::io::Error::from_raw_os_error(24));
        open_or_say(Path::new("copy"), ready_to, no_descriptor);
        let said = ready.try_recv().expect("something is said");
        assert!(said.expect_err("not open").may_pass());
    }

    #[test]
    fn runs_of_blocks_are_cut_to_the_bytes_asked_for() {
        let run = |offset, len, allocated| Extent {
            offset,
            len,
            allocated,
            changed: allocated,
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
