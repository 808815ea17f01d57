//! The thread that writes one volume's log: it owns the log and the durable facts, and writes by plain calls, which block, also
//! where everything else goes through a ring (decision 003).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_storage::engine::{Engine, run_on};
use mainstay_storage::meta::MetaError;
use mainstay_storage::wal::PreparedSegment;
use mainstay_storage::{Disk, Meta, Wal};
use mainstay_types::Lsn;
use mainstay_volume::store::{CopyConfig, CopyError, LogFacts, StoreError, carry_out, open_log};
use mainstay_volume::{Event, WalJob, WalWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::handle::ToVolume;
use super::wal_recycler::Recycler;

/// A mark is written this long after the last batch, so that a later start can tell that it was whole.
const MARK_AFTER: Duration = Duration::from_millis(5);

/// How often a write that found no room is tried again.
const ROOM_AGAIN: Duration = Duration::from_millis(250);

/// What the thread is asked to do.
#[derive(Debug)]
pub enum ToLog {
    /// A write, in order.
    Job(WalJob),
    /// Unlink segments below.
    Recycle(Lsn),
    /// The image that was being replaced is consistent: say so durably.
    Rebuilt,
    /// Stop once everything before is done, and write down what is known to be committed: the next start serves readers that much.
    Stop {
        /// The commit point.
        commit: Lsn,
    },
}

/// The log of one volume, being written.
#[derive(Debug)]
pub struct LogTask {
    /// Its queue.
    pub jobs: mpsc::UnboundedSender<ToLog>,
    /// Told when nothing of it writes to the directory any more.
    ended: oneshot::Receiver<()>,
}

impl LogTask {
    /// Has it end as [`ToLog::Stop`] says. When this comes back, no write of the log or of the facts is under way, and no segment goes
    /// any more: another copy may take the directory's place.
    pub async fn stop(self, commit: Lsn) {
        let _stopped = self.jobs.send(ToLog::Stop { commit });
        let _ended = self.ended.await;
    }
}

/// Opens the log in `dir` and carries out what it is asked until `Stop`, on a thread of its own.
///
/// # Errors
/// The log does not open.
pub async fn start(
    dir: PathBuf,
    config: CopyConfig,
    events: mpsc::UnboundedSender<ToVolume>,
) -> Result<(LogTask, LogFacts), CopyError> {
    let io = |source| CopyError::Io {
        path: dir.clone(),
        source,
    };
    let (jobs, taken) = mpsc::unbounded_channel();
    let (ended_to, ended) = oneshot::channel();
    let (opened_to, opened) = oneshot::channel();
    let path = dir.clone();
    let run = move || {
        write_log(path, config, taken, events, opened_to);
        let _gone = ended_to.send(());
    };
    std::thread::Builder::new()
        .name("wal".to_owned())
        .spawn(run)
        .map_err(io)?;
    let ended_early = || io(std::io::Error::other("the log's thread ended"));
    let facts = opened.await.map_err(|_| ended_early())??;
    Ok((LogTask { jobs, ended }, facts))
}

/// What the log's own thread does from its beginning to its end.
fn write_log(
    dir: PathBuf,
    config: CopyConfig,
    jobs: mpsc::UnboundedReceiver<ToLog>,
    events: mpsc::UnboundedSender<ToVolume>,
    opened: oneshot::Sender<Result<LogFacts, CopyError>>,
) {
    let failed = events.clone();
    let ran = run_on(Engine::Threads, |disk| async move {
        match LogWriter::open(disk, &dir, &config, jobs, events).await {
            Ok((writer, facts)) => {
                let _gone = opened.send(Ok(facts));
                writer.run().await;
            }
            Err(error) => {
                let _gone = opened.send(Err(error));
            }
        }
    });
    if let Err(error) = ran {
        let reason = format!("no runtime for the log: {error}");
        let _gone = failed.send(ToVolume::Event(Event::StorageFailed { reason }));
    }
}

struct LogWriter<D: Disk> {
    wal: Wal<D>,
    meta: Meta<D>,
    jobs: mpsc::UnboundedReceiver<ToLog>,
    events: mpsc::UnboundedSender<ToVolume>,
    queue: VecDeque<WalJob>,
    commit: Lsn,
    recycler: Recycler,
    /// The last segment could not be prepared, which was said.
    no_segment: bool,
    /// There was no room for saying that the image is consistent: it is said then. Nothing waits for it, so a stop does not either: the
    /// next start asks for it again.
    rebuilt_due: Option<Instant>,
}

impl<D: Disk> LogWriter<D> {
    async fn open(
        disk: D,
        dir: &Path,
        config: &CopyConfig,
        jobs: mpsc::UnboundedReceiver<ToLog>,
        events: mpsc::UnboundedSender<ToVolume>,
    ) -> Result<(Self, LogFacts), CopyError> {
        let (wal, meta, facts) = open_log(&disk, dir, config).await?;
        let writer = Self {
            wal,
            meta,
            jobs,
            events,
            queue: VecDeque::new(),
            commit: Lsn::ZERO,
            recycler: Recycler::default(),
            no_segment: false,
            rebuilt_due: None,
        };
        Ok((writer, facts))
    }

    async fn run(mut self) {
        let (prepared_to, mut prepared) = mpsc::unbounded_channel();
        let mut unmarked = false;
        self.prepare(&prepared_to);
        loop {
            let due = self.rebuilt_due;
            if due.is_some_and(|at| at <= Instant::now()) {
                self.remember_rebuilt().await;
                continue;
            }
            let next = tokio::select! {
                biased;
                job = self.jobs.recv() => match job {
                    Some(job) => job,
                    None => return,
                },
                segment = prepared.recv() => {
                    if let Some(segment) = segment {
                        self.adopt(segment);
                    }
                    continue;
                }
                () = tokio::time::sleep(MARK_AFTER), if unmarked => {
                    unmarked = false;
                    let commit = self.commit;
                    if let Err(error) = self.wal.mark(commit).await {
                        return self.fail(error.to_string());
                    }
                    continue;
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => continue,
            };
            let mut stop = self.take(next).await;
            let mut full = false;
            while let Ok(more) = self.jobs.try_recv() {
                stop |= self.take(more).await;
            }
            while !self.queue.is_empty() {
                match carry_out(&mut self.wal, &mut self.meta, &mut self.queue).await {
                    Ok(Some(op)) => {
                        if std::mem::take(&mut full) {
                            tracing::info!("there is room again: writes go on");
                        }
                        self.tell(Event::Stored { op });
                    }
                    Ok(None) => {}
                    // What waits was promised to nobody.
                    Err(StoreError::NoSpace(_)) if stop => return,
                    Err(StoreError::NoSpace(error)) => {
                        // Clients wait; reads go on; other members may be better off, and the witnesses see to it.
                        if !std::mem::replace(&mut full, true) {
                            tracing::warn!(
                                error,
                                "there is no room for the log: writes wait until there is"
                            );
                        }
                        tokio::time::sleep(ROOM_AGAIN).await;
                    }
                    Err(error) => return self.fail(error.to_string()),
                }
                unmarked = true;
                self.wal.tell_progress();
                while let Ok(segment) = prepared.try_recv() {
                    self.adopt(segment);
                }
                self.prepare(&prepared_to);
                while let Ok(more) = self.jobs.try_recv() {
                    stop |= self.take(more).await;
                }
            }
            if stop {
                self.commit = self.commit.min(self.wal.durable().point().lsn);
                let _best_effort = self.wal.mark(self.commit).await;
                self.remember_commit().await;
                return;
            }
        }
    }

    /// Queues a write, or does what is not one. True for `Stop`.
    async fn take(&mut self, job: ToLog) -> bool {
        match job {
            ToLog::Job(job) => {
                if let WalWrite::Append { commit, .. } = &job.write {
                    self.commit = self.commit.max(*commit);
                }
                self.queue.push_back(job);
            }
            ToLog::Recycle(below) => {
                self.recycler.start(self.wal.plan_recycle(below));
                self.remember_commit().await;
                self.tell(Event::Recycled {
                    first: self.wal.first_lsn(),
                });
            }
            ToLog::Rebuilt => self.remember_rebuilt().await,
            ToLog::Stop { commit } => {
                self.commit = self.commit.max(commit);
                return true;
            }
        }
        false
    }

    /// Writes down that the image is consistent, now or once there is room.
    async fn remember_rebuilt(&mut self) {
        self.rebuilt_due = None;
        match self.meta.update(|facts| facts.rebuilding = false).await {
            Ok(()) => self.tell(Event::Rebuilt),
            Err(MetaError::NoSpace { .. }) => self.rebuilt_due = Some(Instant::now() + ROOM_AGAIN),
            Err(error) => self.fail(error.to_string()),
        }
    }

    /// Writes a floor of the commit point down, so that a later start finds out if the log lost its end.
    async fn remember_commit(&mut self) {
        let durable = self.wal.durable().point().lsn;
        if let Some(commit) = commit_floor(self.commit, durable, &self.queue)
            && commit > self.meta.facts().commit
        {
            match self.meta.update(|facts| facts.commit = commit).await {
                // A lower floor is as true, and the next one will do.
                Ok(()) | Err(MetaError::NoSpace { .. }) => {}
                Err(error) => self.fail(error.to_string()),
            }
        }
    }

    /// Has the next segment zero-filled in the background, so that no append waits for it.
    fn prepare(&mut self, to: &mpsc::UnboundedSender<std::io::Result<PreparedSegment>>) {
        let Some(plan) = self.wal.plan_prepare() else {
            return;
        };
        let to = to.clone();
        let spawned = std::thread::Builder::new()
            .name("wal-prepare".to_owned())
            .spawn(move || {
                // The thread does nothing else: plain calls are as good as a ring, and cheaper to have.
                let result = run_on(Engine::Threads, |disk| async move {
                    plan.run_beside(&disk, std::thread::park_timeout).await
                });
                let _gone = to.send(result.and_then(|prepared| prepared));
            });
        if let Err(error) = spawned {
            self.adopt(Err(error));
        }
    }

    fn adopt(&mut self, segment: std::io::Result<PreparedSegment>) {
        let adopted = self.wal.adopt(segment);
        let said = std::mem::replace(&mut self.no_segment, adopted.is_err());
        if let (Err(error), false) = (adopted, said) {
            tracing::warn!(%error, "the next log segment could not be prepared; free some disk space");
        }
    }

    fn tell(&self, event: Event) {
        let _gone = self.events.send(ToVolume::Event(event));
    }

    /// Final for this copy in this process.
    fn fail(&self, reason: String) {
        tracing::error!(
            reason,
            "the log cannot be written any more; this copy steps aside until a restart"
        );
        self.tell(Event::StorageFailed { reason });
    }
}

/// How far the log is known to be committed, of what is durable. Nothing while a cut waits: what it is to take away is durable still, at
/// positions at which others have committed something else.
fn commit_floor(commit: Lsn, durable: Lsn, queue: &VecDeque<WalJob>) -> Option<Lsn> {
    let cut = |job: &WalJob| matches!(job.write, WalWrite::Cut { .. });
    (!queue.iter().any(cut)).then_some(commit.min(durable))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::Pin;
    use std::rc::Rc;

    use mainstay_replication::OpId;
    use mainstay_storage::engine::sim::{Fault, OpKind, SimHook, SimOp, Stage};
    use mainstay_storage::engine::{RealDisk, SimDisk};
    use mainstay_storage::format::{EntryKind, encode_unstamped, stamp};
    use mainstay_types::{
        ClusterId, Epoch, Incarnation, Lineage, NodeId, SessionId, VolumeKind, VolumeSpec,
    };
    use mainstay_volume::store::{NewCopy, create_copy};
    use tokio::sync::mpsc::error::TryRecvError;

    use super::*;

    fn job(op: u64, write: WalWrite) -> WalJob {
        WalJob {
            op: OpId(op),
            write,
        }
    }

    /// The order of events: a primary of before holds 91 to 120, which nobody else has; it takes in 91 to 100 of the next one's, with
    /// 95 committed; its disk is slow, and a checkpoint ends. Were 95 written down, a start before the cut would take 91 to 95 of its own
    /// for committed.
    #[test]
    fn no_floor_is_written_down_in_front_of_a_cut() {
        let append = || WalWrite::Append {
            entries: Vec::new(),
            commit: Lsn(95),
        };
        let mut queue =
            VecDeque::from([job(1, WalWrite::Cut { after: Lsn(90) }), job(2, append())]);
        assert_eq!(commit_floor(Lsn(95), Lsn(120), &queue), None);
        queue.pop_front();
        assert_eq!(commit_floor(Lsn(95), Lsn(90), &queue), Some(Lsn(90)));
        queue.pop_front();
        assert_eq!(commit_floor(Lsn(95), Lsn(100), &queue), Some(Lsn(95)));
    }

    /// A stop came back while the log's thread was still at work: it wrote its last marks and facts, by name, into the
    /// copy that had taken the directory's place.
    #[test]
    fn a_stop_waits_for_whoever_writes_the_log() {
        run_on(Engine::Threads, stop_a_log_at_work).expect("runs");
    }

    fn new_copy() -> (CopyConfig, NewCopy) {
        let config = CopyConfig {
            cluster: ClusterId(1),
            node: NodeId(1),
            segment_bytes: 64 << 10,
        };
        let new = NewCopy {
            spec: VolumeSpec {
                name: "ledger".parse().expect("a name"),
                kind: VolumeKind::Log,
            },
            lineage: Lineage(1),
            log_lineage: Lineage(1),
            incarnation: Incarnation(1),
            sealed: Epoch::ZERO,
        };
        (config, new)
    }

    async fn stop_a_log_at_work(disk: RealDisk) {
        let dir = tempfile::tempdir().expect("a directory");
        let (config, new) = new_copy();
        let path = dir.path().join("copy");
        create_copy(&disk, &path, &config, new)
            .await
            .expect("created");
        let (events_to, mut events) = mpsc::unbounded_channel();
        let started = start(path, config, events_to).await;
        let (log, _facts) = started.expect("opened");
        for _ in 0..20 {
            log.jobs.send(ToLog::Rebuilt).expect("it takes jobs");
        }
        log.stop(Lsn::ZERO).await;

        let mut rebuilt = 0;
        let left = loop {
            match events.try_recv() {
                Ok(_) => rebuilt += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((rebuilt, left), (20, TryRecvError::Disconnected));
    }

    /// While it is full, there is no room for the durable facts.
    struct NoRoomForFacts {
        disk: SimDisk,
        full: Rc<Cell<bool>>,
    }

    impl SimHook for NoRoomForFacts {
        fn operation(&self, op: SimOp<'_>) -> Pin<Box<dyn Future<Output = ()>>> {
            let write = op.kind == OpKind::Write && op.stage == Stage::Before;
            if self.full.get() && write && op.path.ends_with("meta") {
                self.disk.fail_nth(OpKind::Write, 1, Fault::NoSpace);
            }
            Box::pin(std::future::ready(()))
        }
    }

    /// A copy that had been made anew found no room for saying that it is whole now. Appends, promises and the stop waited behind that, until
    /// there was.
    #[test]
    fn nothing_waits_for_room_to_say_that_a_copy_is_whole() {
        run_on(Engine::Threads, |_| append_beside_full_facts()).expect("runs");
    }

    async fn append_beside_full_facts() {
        let (plain, path) = (SimDisk::immediate(1), Path::new("/copy"));
        let (config, new) = new_copy();
        let created = create_copy(&plain, path, &config, new).await;
        created.expect("created");
        let full = Rc::new(Cell::new(false));
        let disk = plain.with_hook(Rc::new(NoRoomForFacts {
            disk: plain.clone(),
            full: full.clone(),
        }));
        let (jobs, taken) = mpsc::unbounded_channel();
        let (events_to, mut events) = mpsc::unbounded_channel();
        let opened = LogWriter::open(disk, path, &config, taken, events_to).await;
        let (writer, _facts) = opened.expect("opened");
        let ended = tokio::task::spawn_local(writer.run());
        let mut next = async || {
            let event = tokio::time::timeout(Duration::from_secs(60), events.recv()).await;
            match event.expect("it comes") {
                Some(ToVolume::Event(event)) => event,
                other => panic!("{other:?}"),
            }
        };

        let mut entry = encode_unstamped(EntryKind::Record, SessionId(1), 2, 1, 4, b"text");
        stamp(&mut entry, Lineage(1), Epoch(1), Lsn(1), 0);
        let append = WalWrite::Append {
            entries: vec![entry.freeze()],
            commit: Lsn::ZERO,
        };
        let send = |job| jobs.send(job).expect("it takes jobs");
        full.set(true);
        send(ToLog::Rebuilt);
        send(ToLog::Job(job(1, append)));
        let event = next().await;
        assert!(matches!(event, Event::Stored { op: OpId(1) }), "{event:?}");
        full.set(false);
        let event = next().await;
        assert!(matches!(event, Event::Rebuilt), "{event:?}");
        full.set(true);
        send(ToLog::Rebuilt);
        send(ToLog::Stop { commit: Lsn::ZERO });
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
        ended.expect("in time").expect("it ends");
    }
}
