//! The thread of one log's Merkle tree. It hashes what is committed after the clients were answered, keeps the nodes, and answers questions.
//!
//! It has a thread to itself, and plain system calls, because hashing would hold up the writes of whatever shared its thread. Entries come in
//! batches from memory; what would be too much to hold, and what was committed before the process began, it reads from the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use mainstay_storage::engine::{Engine, run_on};
use mainstay_storage::format::EntryRef;
use mainstay_storage::wal::WalIndex;
use mainstay_storage::{Disk, TreeFile, TreeFileError};
use mainstay_types::{Lineage, Lsn, VolumeName};
use mainstay_volume::tree::{CaughtUp, Tree, TreeAnswer, TreeError, TreeQuestion, export_nodes};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::copies::ExportPart;
use super::disk_thread::Asked;
use super::handle::ConnAnswer;
use super::wal_thread::ToLog;

/// Entries that are handed over together...
const ENTRIES_AT_ONCE: usize = 512;

/// ...and their bytes: a batch is about as long as its hashing takes some hundred microseconds.
const BYTES_AT_ONCE: usize = 128 << 10;

/// Bytes of entries that wait for the thread at most; what is beyond, it reads from the log.
const BACKLOG_MAX: usize = 8 << 20;

/// Entries that are committed and not durable in this copy's log yet are looked for again after this.
const DURABLE_AGAIN: Duration = Duration::from_millis(20);

/// What the disk refused is tried again after this.
const FAILED_AGAIN: Duration = Duration::from_secs(1);

/// A question waits this long for entries that the tree still lacks.
const PATIENCE: Duration = Duration::from_secs(2);

/// As of `nice`: an append that is to be carried out comes before a hash, wherever both want the processor. It still gets a tenth of one
/// that is never idle, which is enough to keep pace.
const NICE: i32 = 10;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum ToTree {
    /// Committed entries, in order.
    Entries {
        entries: Vec<EntryRef>,
        bytes: usize,
    },
    /// So much is committed; the entries are in the log.
    Committed(Lsn),
    /// Answer a client.
    Ask {
        asked: Asked,
        question: TreeQuestion,
        /// The last position that may be spoken of.
        through: Lsn,
    },
    /// A checkpoint is made here: the log is durable up to it.
    Mark(Lsn),
    /// The log may give back what lies below, once the tree remembers it.
    Recycle(Lsn),
    /// Send the nodes of the positions up to `base`, for a full copy.
    Export {
        base: Lsn,
        parts: mpsc::Sender<ExportPart>,
        /// Dropped when they are sent, or cannot be.
        done: oneshot::Sender<()>,
    },
    /// End.
    Stop(oneshot::Sender<()>),
}

/// The thread, as the disk's thread starts it.
#[derive(Debug, Clone)]
pub(super) struct TreeThread {
    pub(super) to: mpsc::UnboundedSender<ToTree>,
    backlog: Arc<AtomicUsize>,
    /// Committed and durable here: up to there, the log on the disk is what it will always be. Above, it may hold entries of an ended
    /// epoch until a cut is carried out, and the tree never takes one back.
    settled: Arc<AtomicU64>,
}

/// Starts the thread for the copy in `dir`. A tree that does not open is said so, and asked for nothing.
///
/// # Errors
/// The thread could not be started.
pub(super) fn start(
    name: VolumeName,
    dir: PathBuf,
    index: Arc<WalIndex>,
    lineage: Lineage,
    log: mpsc::UnboundedSender<ToLog>,
) -> std::io::Result<TreeThread> {
    let (to, inbox) = mpsc::unbounded_channel();
    let backlog = Arc::new(AtomicUsize::new(0));
    let thread = TreeThread {
        to,
        backlog: backlog.clone(),
        settled: Arc::default(),
    };
    let settled = thread.settled.clone();
    let run = move || {
        // Of this thread alone. Without it hashing takes its share as everything does.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "the log's tree is hashed at full priority");
        }
        let ran = run_on(Engine::Threads, |disk| async move {
            let mut keeper = Keeper {
                tree: Kept::Failed {
                    why: String::new(),
                    again: None,
                },
                name,
                disk,
                dir,
                index,
                lineage,
                inbox,
                log,
                backlog,
                settled,
                goal: Lsn::ZERO,
                recycle: None,
                waiting: Vec::new(),
                failing: None,
            };
            keeper.open(false).await;
            keeper.run().await;
        });
        if let Err(error) = ran {
            tracing::error!(%error, "no runtime for the log's tree");
        }
    };
    std::thread::Builder::new()
        .name("tree".to_owned())
        .spawn(run)?;
    Ok(thread)
}

/// The thread, as the volume's task feeds it.
#[derive(Debug)]
pub(super) struct TreeFeed {
    thread: TreeThread,
    entries: Vec<EntryRef>,
    bytes: usize,
}

impl TreeFeed {
    pub(super) fn new(thread: TreeThread) -> Self {
        Self {
            thread,
            entries: Vec::new(),
            bytes: 0,
        }
    }

    /// Everything up to `lsn` is committed, and durable here.
    pub(super) fn settle(&self, lsn: Lsn) {
        self.thread.settled.store(lsn.0, Ordering::Relaxed);
    }

    /// Takes the next committed entry.
    pub(super) fn take(&mut self, entry: EntryRef) {
        self.bytes += entry.bytes.len();
        self.entries.push(entry);
    }

    /// Hands over what was taken, if it is worth waking the thread.
    pub(super) fn flush_if_many(&mut self) {
        if self.entries.len() >= ENTRIES_AT_ONCE || self.bytes >= BYTES_AT_ONCE {
            self.flush();
        }
    }

    /// Hands over what was taken.
    pub(super) fn flush(&mut self) {
        let Some(last) = self.entries.last().map(|entry| entry.header.point.lsn) else {
            return;
        };
        let bytes = std::mem::take(&mut self.bytes);
        let entries = std::mem::take(&mut self.entries);
        let waits = self.thread.backlog.load(Ordering::Relaxed);
        let message = if waits > BACKLOG_MAX {
            ToTree::Committed(last)
        } else {
            self.thread.backlog.fetch_add(bytes, Ordering::Relaxed);
            ToTree::Entries { entries, bytes }
        };
        let _stopped = self.thread.to.send(message);
    }

    /// Tells the thread something, behind everything that was taken.
    pub(super) fn tell(&mut self, message: ToTree) {
        self.flush();
        let _stopped = self.thread.to.send(message);
    }
}

/// What there is of a tree.
enum Kept<D: Disk> {
    Tree(Box<Tree<D>>),
    /// None, and there can be none: the log goes on without.
    Absent(String),
    /// It did not open: what is in the log stays there until it does.
    Failed {
        why: String,
        /// When it is tried again; never in this process if its file is to blame.
        again: Option<Instant>,
    },
}

/// A question that waits for entries.
struct Waiting {
    asked: Asked,
    question: TreeQuestion,
    through: Lsn,
    until: Instant,
}

/// How long the thread may sleep.
enum Rest {
    /// Not at all: there is work.
    No,
    For(Duration),
    UntilTold,
}

struct Keeper<D: Disk> {
    name: VolumeName,
    tree: Kept<D>,
    disk: D,
    dir: PathBuf,
    index: Arc<WalIndex>,
    lineage: Lineage,
    inbox: mpsc::UnboundedReceiver<ToTree>,
    log: mpsc::UnboundedSender<ToLog>,
    backlog: Arc<AtomicUsize>,
    settled: Arc<AtomicU64>,
    /// So much is committed.
    goal: Lsn,
    /// What the log may give back.
    recycle: Option<Lsn>,
    waiting: Vec<Waiting>,
    /// Something failed, which was said, and did not succeed since.
    failing: Option<Failing>,
}

/// What failed, and when it is tried again: each message in between would only work against a disk that is full.
struct Failing {
    step: Step,
    /// How far the step had come.
    had: u64,
    not_before: Instant,
}

/// What a tree can fail at.
#[derive(Clone, Copy)]
enum Step {
    /// Taking entries from the log.
    Take,
    /// Writing nodes.
    Write,
    /// Making them durable.
    Sync,
}

impl Step {
    fn of(error: &TreeError) -> Self {
        match error {
            // Only a mark looks at nodes that were written.
            TreeError::File(TreeFileError::Unsynced { .. }) | TreeError::Damaged => Self::Sync,
            TreeError::File(_) => Self::Write,
            _ => Self::Take,
        }
    }

    /// How far it has come: that there was nothing to do is no success.
    fn reached<D: Disk>(self, tree: &Tree<D>) -> u64 {
        match self {
            Self::Take => tree.taken().0,
            Self::Write => tree.written(),
            Self::Sync => tree.marked(),
        }
    }
}

impl<D: Disk> Keeper<D> {
    /// Opens the tree. One for which the machine lacks something is opened later, and takes what was missed from the log then. That it `waits`
    /// for that was said.
    async fn open(&mut self, waits: bool) {
        let (name, index) = (&self.name, self.index.clone());
        self.tree = match Tree::open(self.disk.clone(), &self.dir, index, self.lineage).await {
            Ok(tree) => {
                if waits {
                    tracing::info!(volume = %name, "the log's tree opened after all");
                }
                Kept::Tree(Box::new(tree))
            }
            Err(TreeError::Absent(why)) => {
                tracing::warn!(volume = %name, why, "no Merkle tree");
                Kept::Absent(why)
            }
            Err(error) => {
                let again = error.may_pass().then(|| Instant::now() + FAILED_AGAIN);
                match again {
                    Some(_) if waits => {}
                    Some(_) => {
                        tracing::warn!(volume = %name, %error, "the log's tree does not open for now; nothing is trimmed from its files until it does");
                    }
                    None => {
                        tracing::error!(volume = %name, %error, "the log's tree does not open; nothing is trimmed from its files");
                    }
                }
                let why = format!("the log's tree does not open: {error}");
                Kept::Failed { why, again }
            }
        };
    }

    async fn run(mut self) {
        loop {
            let message = match self.advance().await {
                Rest::No => {
                    // Copies that are being sent have their turn.
                    tokio::task::yield_now().await;
                    self.inbox.try_recv().ok()
                }
                Rest::For(time) => match tokio::time::timeout(time, self.inbox.recv()).await {
                    Ok(None) => return,
                    Ok(message) => message,
                    Err(_) => None,
                },
                Rest::UntilTold => match self.inbox.recv().await {
                    None => return,
                    message => message,
                },
            };
            match message {
                Some(ToTree::Stop(ended)) => {
                    let _gone = ended.send(());
                    return;
                }
                Some(message) => self.take(message).await,
                None if self.inbox.is_closed() => return,
                None => {}
            }
        }
    }

    async fn take(&mut self, message: ToTree) {
        match message {
            ToTree::Entries { entries, bytes } => {
                self.backlog.fetch_sub(bytes, Ordering::Relaxed);
                self.take_entries(&entries).await;
            }
            ToTree::Committed(lsn) => self.goal = self.goal.max(lsn),
            ToTree::Ask {
                asked,
                question,
                through,
            } => {
                self.goal = self.goal.max(through);
                self.waiting.push(Waiting {
                    asked,
                    question,
                    through,
                    until: Instant::now() + PATIENCE,
                });
            }
            ToTree::Mark(through) => {
                if !self.pauses()
                    && let Kept::Tree(tree) = &mut self.tree
                {
                    let marked = tree.mark(through).await;
                    self.note(marked, "the log's tree is not synced");
                }
            }
            ToTree::Recycle(below) => {
                self.goal = self.goal.max(below.prev());
                self.recycle = self.recycle.max(Some(below));
            }
            ToTree::Export { base, parts, done } => self.export(base, parts, done),
            ToTree::Stop(_) => {}
        }
    }

    async fn take_entries(&mut self, entries: &[EntryRef]) {
        // What is missing in front, or lost again when a write fails, is taken from the log; all of it, once a tree opens later.
        if let Some(last) = entries.last() {
            self.goal = self.goal.max(last.header.point.lsn);
        }
        let pauses = self.pauses();
        let Kept::Tree(tree) = &mut self.tree else {
            return;
        };
        let _or_from_the_log = tree.take(entries);
        if pauses {
            return;
        }
        let written = tree.write_if_many().await;
        self.note(written, "nodes of the log's tree wait in memory");
    }

    /// Does what can be done, and says how long there will be nothing to do.
    async fn advance(&mut self) -> Rest {
        let rest = self.catch_up().await;
        let recycled = self.recycle_if_marked().await;
        self.answer_waiting().await;
        let soonest = self.waiting.iter().map(|waiting| waiting.until).min();
        match rest {
            Rest::No => Rest::No,
            _ if !recycled => Rest::For(FAILED_AGAIN),
            Rest::UntilTold => match soonest {
                Some(until) => Rest::For(until.saturating_duration_since(Instant::now())),
                None => Rest::UntilTold,
            },
            rest => rest,
        }
    }

    async fn catch_up(&mut self) -> Rest {
        if let Kept::Failed { again, .. } = &self.tree {
            match again {
                Some(at) if *at > Instant::now() => return Rest::For(*at - Instant::now()),
                Some(_) => self.open(true).await,
                None => {}
            }
        }
        let tree = match &mut self.tree {
            Kept::Tree(tree) => tree,
            Kept::Failed { again: Some(_), .. } => return Rest::For(FAILED_AGAIN),
            Kept::Failed { .. } | Kept::Absent(_) => return Rest::UntilTold,
        };
        if let Some(failing) = &self.failing
            && failing.not_before > Instant::now()
            && tree.taken() < self.goal
        {
            return Rest::For(failing.not_before - Instant::now());
        }
        let settled = Lsn(self.settled.load(Ordering::Relaxed));
        let caught_up = tree.catch_up(self.goal.min(settled)).await;
        let rest = match caught_up {
            Ok(CaughtUp::Whole) if tree.taken() < self.goal => Rest::For(DURABLE_AGAIN),
            Ok(CaughtUp::Whole) => Rest::UntilTold,
            Ok(CaughtUp::Partly) => Rest::No,
            Ok(CaughtUp::AsFarAsDurable) => Rest::For(DURABLE_AGAIN),
            Err(_) => Rest::For(FAILED_AGAIN),
        };
        let failed = caught_up.map(|_| ());
        self.note(failed, "the log's tree does not grow");
        rest
    }

    /// Lets the log give back what it may, if the tree remembers all of it durably. False if that failed.
    async fn recycle_if_marked(&mut self) -> bool {
        let Some(below) = self.recycle else {
            return true;
        };
        let pauses = self.pauses();
        match &mut self.tree {
            Kept::Failed { .. } => return true,
            Kept::Absent(_) => {}
            Kept::Tree(_) if pauses => return false,
            // It catches up first.
            Kept::Tree(tree) if tree.size() < below.prev().0 => return true,
            Kept::Tree(tree) => {
                if tree.marked() < below.prev().0 {
                    let marked = tree.mark(below.prev()).await;
                    let failed = marked.is_err();
                    self.note(marked, "nothing is trimmed from the log's files");
                    if failed {
                        return false;
                    }
                }
            }
        }
        self.recycle = None;
        let _stopped = self.log.send(ToLog::Recycle(below));
        true
    }

    async fn answer_waiting(&mut self) {
        let (taken, now) = (self.taken(), Instant::now());
        let ready = |waiting: &mut Waiting| waiting.through <= taken || waiting.until <= now;
        let ready: Vec<Waiting> = self.waiting.extract_if(.., ready).collect();
        for waiting in ready {
            let answer = self.answer(&waiting.question, waiting.through).await;
            waiting.asked.answer(ConnAnswer::Tree(answer));
        }
    }

    /// How far the tree is; without one there is nothing to wait for.
    fn taken(&self) -> Lsn {
        match &self.tree {
            Kept::Tree(tree) => tree.taken(),
            Kept::Absent(_) | Kept::Failed { .. } => Lsn(u64::MAX),
        }
    }

    async fn answer(
        &mut self,
        question: &TreeQuestion,
        through: Lsn,
    ) -> Result<TreeAnswer, TreeError> {
        let tree = match &mut self.tree {
            Kept::Tree(tree) => tree,
            Kept::Absent(why) | Kept::Failed { why, .. } => {
                return Err(TreeError::Absent(why.clone()));
            }
        };
        match tree.answer(question, through).await {
            Err(TreeError::Damaged) => {}
            answer => return answer,
        }
        tracing::warn!(volume = %self.name, "hashes of the log's tree are damaged: they are computed again from the log");
        tree.repair().await?;
        tree.answer(question, through).await
    }

    /// Sends nodes beside everything else, from a handle of its own.
    fn export(&self, base: Lsn, parts: mpsc::Sender<ExportPart>, done: oneshot::Sender<()>) {
        if !matches!(self.tree, Kept::Tree(_)) {
            return;
        }
        let (disk, dir, lineage) = (self.disk.clone(), self.dir.clone(), self.lineage);
        let name = self.name.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = send_nodes(&disk, &dir, lineage, base, &parts).await {
                tracing::warn!(volume = %name, %error, "a full copy gets no Merkle tree");
            }
            drop(done);
        });
    }

    /// Whether the disk is left alone for now.
    fn pauses(&self) -> bool {
        let failing = self.failing.as_ref();
        failing.is_some_and(|failing| failing.not_before > Instant::now())
    }

    /// Says what fails once, and once that it does no longer.
    fn note(&mut self, outcome: Result<(), TreeError>, what: &str) {
        let Kept::Tree(tree) = &self.tree else { return };
        match (outcome, &mut self.failing) {
            (Ok(()), Some(failing)) if failing.step.reached(tree) > failing.had => {
                self.failing = None;
                tracing::info!(volume = %self.name, "the log's tree goes on");
            }
            (Ok(()), _) => {}
            (Err(_), Some(failing)) => {
                // It may have begun again at its mark.
                failing.had = failing.had.min(failing.step.reached(tree));
                failing.not_before = Instant::now() + FAILED_AGAIN;
            }
            (Err(error), None) => {
                tracing::warn!(volume = %self.name, %error, "{what}; it is tried again");
                let step = Step::of(&error);
                self.failing = Some(Failing {
                    step,
                    had: step.reached(tree),
                    not_before: Instant::now() + FAILED_AGAIN,
                });
            }
        }
    }
}

async fn send_nodes<D: Disk>(
    disk: &D,
    dir: &std::path::Path,
    lineage: Lineage,
    base: Lsn,
    parts: &mpsc::Sender<ExportPart>,
) -> Result<(), TreeError> {
    let Some(file) = TreeFile::open(disk, dir, lineage).await? else {
        return Err(TreeFileError::Damaged {
            path: dir.join("tree"),
        }
        .into());
    };
    let mut place = 0;
    while let Some((nodes, next)) = export_nodes(&file, base, place).await? {
        if parts.send(ExportPart::Tree(nodes)).await.is_err() {
            return Ok(());
        }
        place = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::path::Path;
    use std::pin::Pin;
    use std::rc::Rc;

    use mainstay_storage::engine::SimDisk;
    use mainstay_storage::engine::sim::{Fault, OpKind, SimHook, SimOp, Stage};
    use mainstay_storage::format::{EntryIter, EntryKind, encode_unstamped, stamp};
    use mainstay_storage::{LogEnd, Wal, WalConfig};
    use mainstay_types::{Epoch, Incarnation, LogPoint, SessionId};

    use super::*;

    const LINEAGE: Lineage = Lineage(7);

    /// A log of the entries 1 to `last`, all of them settled, and the keeper of its tree, which is not open yet.
    struct Rig {
        disk: SimDisk,
        keeper: Keeper<SimDisk>,
        entries: Vec<EntryRef>,
        log: mpsc::UnboundedReceiver<ToLog>,
    }

    impl Rig {
        async fn new(last: u64) -> Self {
            let (disk, dir) = (SimDisk::immediate(1), Path::new("/copy"));
            let config = WalConfig {
                segment_bytes: 64 << 10,
                ..WalConfig::new(LINEAGE, Incarnation(1))
            };
            let mut wal = Wal::create(disk.clone(), dir, config, LogEnd::ZERO)
                .await
                .expect("created");
            let (mut end, mut chunks) = (LogEnd::ZERO, Vec::new());
            for lsn in (1..=last).map(Lsn) {
                let mut entry =
                    encode_unstamped(EntryKind::Record, SessionId(1), 2, lsn.0, 4, b"text");
                let epoch = Epoch(1);
                let crc = stamp(&mut entry, LINEAGE, epoch, lsn, end.crc);
                let point = LogPoint { epoch, lsn };
                end = LogEnd { point, crc };
                chunks.push(entry.freeze());
            }
            let appended = wal.append(&chunks, Lsn::ZERO).await;
            appended.map(drop).expect("appended");
            let decode = |chunk| EntryIter::new(LINEAGE, chunk).map(|entry| entry.expect("own"));
            let (_to, inbox) = mpsc::unbounded_channel();
            let (log_to, log) = mpsc::unbounded_channel();
            let keeper = Keeper {
                name: "ledger".parse().expect("a name"),
                tree: Kept::Failed {
                    why: String::new(),
                    again: None,
                },
                disk: disk.clone(),
                dir: dir.to_owned(),
                index: wal.index(),
                lineage: LINEAGE,
                inbox,
                log: log_to,
                backlog: Arc::default(),
                settled: Arc::new(AtomicU64::new(last)),
                goal: Lsn::ZERO,
                recycle: None,
                waiting: Vec::new(),
                failing: None,
            };
            Self {
                disk,
                keeper,
                entries: chunks.into_iter().flat_map(decode).collect(),
                log,
            }
        }

        async fn take(&mut self, entries: &[EntryRef]) {
            let entries = entries.to_vec();
            self.keeper
                .take(ToTree::Entries { entries, bytes: 0 })
                .await;
        }
    }

    fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
        run_on(Engine::Threads, |_| test()).expect("runs");
    }

    /// A log whose tree met a moment without descriptors at the start gave nothing back any more until the next one.
    #[test]
    fn a_tree_that_does_not_open_for_now_is_opened_later() {
        run(async || {
            let mut rig = Rig::new(20).await;
            rig.disk.fail_nth(OpKind::Open, 1, Fault::NoDescriptor);
            rig.keeper.open(false).await;
            let first = rig.entries[..5].to_vec();
            rig.take(&first).await;
            rig.keeper.take(ToTree::Recycle(Lsn(11))).await;
            assert!(matches!(rig.keeper.advance().await, Rest::For(_)));
            assert!(rig.log.try_recv().is_err(), "what is not covered stays");

            let Kept::Failed { again, .. } = &mut rig.keeper.tree else {
                panic!("open without a descriptor");
            };
            *again = Some(Instant::now());
            while matches!(rig.keeper.advance().await, Rest::No) {}
            let told = rig.log.try_recv();
            assert!(matches!(told, Ok(ToLog::Recycle(Lsn(11)))), "{told:?}");
        });
    }

    #[test]
    fn a_tree_whose_file_is_to_blame_stays_closed() {
        run(async || {
            let mut rig = Rig::new(20).await;
            rig.disk.fail_nth(OpKind::Open, 1, Fault::Eio);
            rig.keeper.open(false).await;
            rig.keeper.take(ToTree::Recycle(Lsn(11))).await;
            assert!(matches!(rig.keeper.advance().await, Rest::UntilTold));
            assert!(rig.log.try_recv().is_err());
        });
    }

    /// While it is full, there is no room for nodes.
    #[derive(Default)]
    struct NoRoom {
        disk: RefCell<Option<SimDisk>>,
        tried: Cell<u32>,
    }

    impl SimHook for NoRoom {
        fn operation(&self, op: SimOp<'_>) -> Pin<Box<dyn Future<Output = ()>>> {
            if op.kind == OpKind::Write && op.stage == Stage::Before && op.path.ends_with("tree") {
                self.tried.set(self.tried.get() + 1);
                if let Some(disk) = &*self.disk.borrow() {
                    disk.fail_nth(OpKind::Write, 1, Fault::NoSpace);
                }
            }
            Box::pin(std::future::ready(()))
        }
    }

    /// The order of events: nodes find no room, and the next look finds nothing to take from the log, which went for a success. Each batch of
    /// entries worked against the full disk, and said so, twenty times a second.
    #[test]
    fn a_full_disk_is_left_alone_for_a_while_and_said_to_be_full_once() {
        run(async || {
            let mut rig = Rig::new(1300).await;
            let room = Rc::new(NoRoom::default());
            rig.keeper.disk = rig.disk.with_hook(room.clone());
            rig.keeper.open(false).await;
            room.tried.set(0);
            room.disk.replace(Some(rig.disk.clone()));
            let entries = rig.entries.clone();
            rig.take(&entries[..1200]).await;
            for entry in entries[1200..1250].chunks(1) {
                assert!(matches!(rig.keeper.advance().await, Rest::UntilTold));
                assert!(rig.keeper.failing.is_some(), "nothing was written");
                // However long each step of this test takes.
                rig.keeper.failing.as_mut().expect("failing").not_before =
                    Instant::now() + Duration::from_secs(600);
                rig.take(entry).await;
                rig.keeper.take(ToTree::Mark(Lsn(1200))).await;
            }
            assert_eq!(room.tried.get(), 1, "it is left alone");

            rig.keeper.failing.as_mut().expect("failing").not_before = Instant::now();
            rig.take(&entries[1250..1251]).await;
            assert_eq!(room.tried.get(), 2, "it is tried again");
            assert!(rig.keeper.failing.is_some(), "in vain");
            room.disk.replace(None);
            rig.keeper.failing.as_mut().expect("failing").not_before = Instant::now();
            rig.take(&entries[1251..]).await;
            assert!(rig.keeper.failing.is_none(), "there is room");
            assert_eq!(rig.keeper.taken(), Lsn(1300));
        });
    }
}
