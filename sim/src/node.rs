//! A simulated data node: the real `Volume` and `Beats`, driven as `mainstay_volume`'s events document, over a
//! simulated disk. What would be threads in a real node are tasks here; they answer through one queue.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_replication::{AppendPlan, Beats, OpId, WitnessSet};
use mainstay_storage::engine::SimDisk;
use mainstay_storage::format::{EntryIter, EntryRef};
use mainstay_storage::{Checkpoint, Image, LogEnd, Meta, Wal, WalReader};
use mainstay_types::{ClusterId, Incarnation, Instance, Lineage, Lsn, MonoTime, NodeId, VolumeId};
use mainstay_volume::disk_reads::read_page;
use mainstay_volume::store::{
    CopyConfig, CopyError, NewCopy, State, carry_out, create_copy, open_log, open_state,
};
use mainstay_volume::{ConnId, Page, Stretch, Token, Volume, VolumeStart, WalJob, WriteGate};

use crate::clock::Clock;
use crate::disk::Delays;
use crate::executor::{Executor, Notify, ProcId};
use crate::properties::EntryInfo;

/// The only cluster there is.
pub const CLUSTER: ClusterId = ClusterId(0x51);

/// One machine: its disk outlives its processes.
#[expect(
    missing_debug_implementations,
    reason = "an open image prints nothing of use"
)]
pub struct DataNode {
    /// Which.
    pub id: NodeId,
    /// Its disk; another object after the disk was lost.
    pub disk: SimDisk,
    /// How the disk delays.
    pub delays: Rc<Delays>,
    /// Its clock.
    pub clock: Clock,
    /// Directories in which a copy was begun, newest last.
    pub dirs: BTreeMap<VolumeId, Vec<PathBuf>>,
    /// The process, if it runs.
    pub process: Option<Process>,
    /// It may not run before then.
    pub down_until: u64,
    /// The witnesses, as it has heard.
    pub witnesses: Arc<WitnessSet>,
    /// It lost its power and has not shown since that its last batch is whole.
    pub lost_power: bool,
    /// Errors of its disk were ordered and may still strike.
    pub erring: bool,
}

/// One process of a data node.
#[expect(
    missing_debug_implementations,
    reason = "an open image prints nothing of use"
)]
pub struct Process {
    /// For the executor.
    pub pid: ProcId,
    /// Random at each start.
    pub instance: Instance,
    /// Its leases.
    pub beats: Beats,
    /// Copies that are open.
    pub hosts: BTreeMap<VolumeId, Host>,
    /// Copies that are being opened or made.
    pub opening: BTreeMap<VolumeId, Opening>,
    /// Stopped by SIGSTOP or its hypervisor until then.
    pub paused_until: Option<u64>,
    /// The next tick that is on its way.
    pub tick_at: u64,
}

/// Why a copy is not open yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// From disk.
    Existing,
    /// It is being formatted.
    Fresh(Incarnation),
}

/// One open copy.
#[expect(
    missing_debug_implementations,
    reason = "an open image prints nothing of use"
)]
pub struct Host {
    /// The code under test.
    pub volume: Volume,
    /// Which formatting.
    pub incarnation: Incarnation,
    /// Of its entries' checksums.
    pub log_lineage: Lineage,
    /// Writes for the log task.
    pub jobs: Rc<Jobs>,
    /// For feeds and reads.
    pub reader: WalReader<SimDisk>,
    /// Its state on disk.
    pub state: Rc<State<SimDisk>>,
    /// Writes on their way there.
    pub gate: WriteGate,
    /// When each write that is not durable was handed over.
    pub since: VecDeque<(OpId, MonoTime)>,
    /// It has failed or is damaged; set aside when the process finds a primary that goes on without it.
    pub damaged: bool,
    /// Its last batch was in doubt when it was opened.
    pub doubt: bool,
    /// A write or sync failed.
    pub failed: bool,
    /// Entry infos as found at the start.
    pub dir: PathBuf,
}

/// Work for the log task of one copy.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Writes, in order.
    pub queue: RefCell<VecDeque<WalJob>>,
    /// Recycle below this.
    pub recycle: RefCell<Option<Lsn>>,
    /// There is something to do.
    pub wake: Notify,
}

/// A copy as its opening task hands it over.
pub struct Opened {
    /// The log's writer.
    pub wal: Wal<SimDisk>,
    /// The durable facts.
    pub meta: Meta<SimDisk>,
    /// Image or checkpoint.
    pub state: State<SimDisk>,
    /// For the volume.
    pub start: VolumeStart,
    /// For feeds and reads.
    pub reader: WalReader<SimDisk>,
    /// Every entry found.
    pub entries: Vec<EntryInfo>,
    /// The position before them.
    pub base: Lsn,
    /// Checksums' seed.
    pub log_lineage: Lineage,
    /// Where.
    pub dir: PathBuf,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Opened({} entries behind {})",
            self.entries.len(),
            self.base
        )
    }
}

/// What a task of a process has to say.
#[derive(Debug)]
pub enum Done {
    /// A copy is open.
    Opened(Box<Opened>),
    /// There is no copy, or it cannot be opened: why.
    NotOpened(String),
    /// A write of the log is durable.
    Stored(OpId),
    /// A write of the log failed.
    Failed(String),
    /// The log begins here now.
    Recycled(Lsn),
    /// A checkpoint is durable, or not.
    Checkpointed(Option<LogEnd>),
    /// Entries for a copy that is behind.
    Fed(AppendPlan, Option<(Lsn, Vec<Bytes>)>),
    /// Bytes for a client.
    BlockRead(ConnId, Token, Option<Bytes>),
    /// Records for a client.
    LogRead(ConnId, Token, Lsn, Option<(Lsn, Vec<EntryInfo>)>),
}

/// Answers of tasks, with the process, volume and copy that they are for.
pub type DoneQueue = Rc<RefCell<VecDeque<(ProcId, VolumeId, Incarnation, Done)>>>;

/// Where a task answers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The queue of all.
    pub queue: DoneQueue,
    /// For whom.
    pub pid: ProcId,
    /// For which volume.
    pub volume: VolumeId,
    /// For which copy; zero while it is not known.
    pub incarnation: Incarnation,
}

impl Answer {
    /// Says it.
    pub fn say(&self, done: Done) {
        self.queue
            .borrow_mut()
            .push_back((self.pid, self.volume, self.incarnation, done));
    }
}

/// What opening a copy takes.
#[derive(Debug, Clone)]
pub struct OpenArgs {
    /// Of the node.
    pub disk: SimDisk,
    /// Candidate directories, newest first.
    pub dirs: Vec<PathBuf>,
    /// Layout.
    pub config: CopyConfig,
    /// This process.
    pub instance: Instance,
    /// The witnesses.
    pub witnesses: Arc<WitnessSet>,
    /// For the core.
    pub seed: u64,
}

/// How often a copy is tried again for which there is no room, as the product does.
const OPEN_AGAIN_NS: u64 = 1_000_000_000;

/// Opens the newest copy that was completely made, once its disk lets it.
pub async fn open(executor: Executor, args: OpenArgs, answer: Answer) {
    let done = loop {
        match open_newest(&args).await {
            Ok(opened) => break Done::Opened(Box::new(opened)),
            Err(error) if error.may_pass => executor.sleep(OPEN_AGAIN_NS).await,
            Err(error) => break Done::NotOpened(error.reason),
        }
    };
    answer.say(done);
}

async fn open_newest(args: &OpenArgs) -> Result<Opened, NotOpened> {
    for dir in &args.dirs {
        match open_one(args, dir).await {
            Err(error) if error.reason.contains("does not exist") => {}
            other => return other,
        }
    }
    Err(NotOpened {
        reason: "no copy".to_owned(),
        may_pass: false,
    })
}

/// Why a copy did not open.
struct NotOpened {
    reason: String,
    /// The disk refused for now.
    may_pass: bool,
}

impl From<CopyError> for NotOpened {
    fn from(error: CopyError) -> Self {
        Self {
            may_pass: error.may_pass(),
            reason: text(error),
        }
    }
}

fn text(error: impl std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        out = format!("{out}: {cause}");
        source = cause.source();
    }
    out
}

async fn open_one(args: &OpenArgs, dir: &Path) -> Result<Opened, NotOpened> {
    let (wal, meta, log) = open_log(&args.disk, dir, &args.config).await?;
    let (state, start) = open_state(
        &args.disk,
        dir,
        &log,
        args.instance,
        &args.witnesses,
        args.seed,
    )
    .await?;
    let reader = wal.reader();
    let base = start.member.log.base().lsn;
    let mut entries = Vec::new();
    let mut next = base.next();
    let last = start.member.log.last().lsn;
    while next <= last {
        let batch = match reader.read(next, 1 << 20).await {
            Ok(batch) => batch,
            Err(_) if start.member.damaged => break,
            Err(error) => return Err(CopyError::from(error).into()),
        };
        next = batch.end.point.lsn.next();
        for chunk in batch.chunks {
            for entry in EntryIter::headers_only(log.facts.log_lineage, chunk) {
                entries.push(EntryInfo::of(&entry.map_err(CopyError::from)?));
            }
        }
    }
    Ok(Opened {
        wal,
        meta,
        state,
        start,
        reader,
        entries,
        base,
        log_lineage: log.facts.log_lineage,
        dir: dir.to_owned(),
    })
}

/// What making a copy takes.
#[derive(Debug, Clone)]
pub struct CreateArgs {
    /// As for opening; one directory.
    pub open: OpenArgs,
    /// The new copy.
    pub new: NewCopy,
}

/// Formats a copy and opens it.
pub async fn create(args: CreateArgs, answer: Answer) {
    let made = create_copy(
        &args.open.disk,
        &args.open.dirs[0],
        &args.open.config,
        args.new,
    )
    .await;
    match made {
        Ok(()) => answer.say(match open_newest(&args.open).await {
            Ok(opened) => Done::Opened(Box::new(opened)),
            Err(error) => Done::NotOpened(error.reason),
        }),
        Err(error) => answer.say(Done::NotOpened(text(error))),
    }
}

/// Nanoseconds behind the last write after which its mark is written.
const MARK_AFTER_NS: u64 = 3_000_000;

/// The log task of one copy: carries out its writes in order, for ever.
pub async fn write_log(
    executor: Executor,
    mut wal: Wal<SimDisk>,
    mut meta: Meta<SimDisk>,
    jobs: Rc<Jobs>,
    answer: Answer,
) {
    let mut marked = true;
    loop {
        let mut batch = std::mem::take(&mut *jobs.queue.borrow_mut());
        let recycle = jobs.recycle.borrow_mut().take();
        if batch.is_empty() && recycle.is_none() {
            let patience = (!marked).then_some(MARK_AFTER_NS);
            if !jobs.wake.wait_or(&executor, patience).await {
                marked = true;
                // A damaged log takes no mark; the copy is set aside sooner or later.
                if let Err(error) = wal.mark(Lsn::ZERO).await
                    && wal.damage().is_none()
                {
                    return answer.say(Done::Failed(text(error)));
                }
            }
            continue;
        }
        while !batch.is_empty() {
            marked = false;
            match carry_out(&mut wal, &mut meta, &mut batch).await {
                Ok(Some(op)) => answer.say(Done::Stored(op)),
                Ok(None) => {}
                Err(error) => return answer.say(Done::Failed(text(error))),
            }
        }
        if let Some(below) = recycle
            && wal.recycle_below(below).await.is_ok()
        {
            answer.say(Done::Recycled(wal.first_lsn()));
        }
    }
}

/// Writes a checkpoint of the state as it is now.
pub async fn checkpoint(state: Rc<State<SimDisk>>, blob: Bytes, at: LogEnd, answer: Answer) {
    let done = match &*state {
        State::Block(image) => image.checkpoint(blob).await.ok(),
        State::Log(file) => {
            let checkpoint = Checkpoint {
                applied: at,
                rebuilding: false,
                blob,
            };
            file.store(&checkpoint).await.ok().map(|()| at)
        }
    };
    answer.say(Done::Checkpointed(done));
}

/// Reads entries for a copy that is behind.
pub async fn feed(
    reader: WalReader<SimDisk>,
    lineage: Lineage,
    plan: AppendPlan,
    bytes_max: usize,
    answer: Answer,
) {
    let Ok(batch) = reader.read(plan.first, bytes_max).await else {
        return answer.say(Done::Fed(plan, None));
    };
    let mut pieces = Vec::new();
    let mut last = plan.first.prev();
    for chunk in batch.chunks {
        for entry in EntryIter::headers_only(lineage, chunk).flatten() {
            if entry.header.point.lsn <= plan.last {
                last = entry.header.point.lsn;
                pieces.push(entry.bytes);
            }
        }
    }
    answer.say(Done::Fed(plan, Some((last, pieces))));
}

/// Reads bytes of a block volume.
pub async fn read_block(
    state: Rc<State<SimDisk>>,
    conn: ConnId,
    token: Token,
    offset: u64,
    len: u32,
    answer: Answer,
) {
    let data = match &*state {
        State::Block(image) => image.read(offset, len as usize).await.ok(),
        State::Log(_) => None,
    };
    answer.say(Done::BlockRead(conn, token, data));
}

/// Reads records of a log volume.
pub async fn read_log(
    reader: WalReader<SimDisk>,
    lineage: Lineage,
    (conn, token): (ConnId, Token),
    stretch: Stretch,
    cached: Option<Vec<EntryRef>>,
    answer: Answer,
) {
    let through = stretch.through;
    let page = match cached {
        Some(entries) => Some(Page::of(entries, &stretch)),
        None => read_page(&reader, lineage, &stretch).await.ok(),
    };
    let entries = page.map(|page| {
        let shown = page.entries.iter().map(EntryInfo::of);
        (page.next, shown.collect())
    });
    answer.say(Done::LogRead(conn, token, through, entries));
}

/// The whole content of a block volume, for the comparison at the end.
pub async fn whole_image(image: &Image<SimDisk>) -> Option<Bytes> {
    let size = usize::try_from(image.size_bytes()).ok()?;
    image.read(0, size).await.ok()
}
