//! The write-ahead log of one volume's copy: append, mark, cut, recycle.
//!
//! Rules:
//!
//! - [`Wal::append`] returns when its entries survive a loss of power, and only then makes a [`Durable`].
//! - A durable byte is never written again. A cut starts a new segment that takes over from its first LSN on.
//! - One frame is in flight at a time. Recovery depends on it.
//! - The first failed write or sync ends the log for this process; so does dropping a call half way.
//! - Room for a whole append is made before its first byte is written, so a full disk is an answer, not an accident.

mod errors;
mod frames;
mod index;
mod prepare;
mod reader;
mod segment;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mainstay_types::{Incarnation, Lineage, LogPoint, Lsn};

pub use errors::{CreateError, OpenError, ReadError, RecycleError, WalError};
pub(crate) use index::SegmentInfo;
pub use index::WalIndex;
use prepare::Progress;
pub use prepare::{PreparePlan, PreparedSegment};
pub use reader::{ReadBatch, ReadPath, WalReader};
pub use segment::RecyclePlan;
use segment::{Active, activate, open_active};

use crate::engine::{AlignedBuf, Disk, DiskFile, PAGE, may_pass};
use crate::format::{LogEnd, SegmentHeader};
use crate::recovery::walk::recover;
use crate::recovery::{Damage, Doubt, RecoveredLog};

/// What a log is and how it is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalConfig {
    /// Seeds every entry's CRC. Constant for the life of the log.
    pub lineage: Lineage,
    /// Which formatting of this copy.
    pub incarnation: Incarnation,
    /// Length of a segment file, at least two pages, rounded up to whole ones. A larger append gets a larger segment.
    pub segment_bytes: u64,
    /// Bytes of entries above which an append is split into several frames, each one durable write.
    pub frame_bytes: usize,
}

impl WalConfig {
    /// Segments of 16 MiB, frames of 1 MiB.
    #[must_use]
    pub fn new(lineage: Lineage, incarnation: Incarnation) -> Self {
        Self {
            lineage,
            incarnation,
            segment_bytes: 16 << 20,
            frame_bytes: 1 << 20,
        }
    }
}

/// Proof that the log up to `end()` survived a completed sync. Only this crate makes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an acknowledgement is built from this"]
pub struct Durable {
    end: LogEnd,
}

impl Durable {
    /// The last durable entry.
    #[must_use]
    pub fn point(&self) -> LogPoint {
        self.end.point
    }

    /// The last durable entry with its header CRC.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.end
    }
}

/// Whether the log may be written.
#[derive(Debug)]
enum State {
    Ready,
    /// A call is running. Seen by another call only if it was dropped half way.
    Busy,
    Poisoned(String),
}

/// The writer of a log; one a log, on one thread.
#[derive(Debug)]
pub struct Wal<D: Disk> {
    disk: D,
    dir: PathBuf,
    config: WalConfig,
    state: State,
    /// None until the first append after a doubt, a cut of damage or an open without a usable tail.
    active: Option<Active<D::File>>,
    prepared: Option<PreparedSegment>,
    preparing: bool,
    /// How far the active segment is written, for who prepares the next one.
    progress: Arc<Progress>,
    /// Greatest segment number ever given out. Only rises.
    seq_max: u64,
    /// End of the durable log.
    end: LogEnd,
    /// Greatest commit point heard of. Only rises; nothing at or below it is cut.
    commit: Lsn,
    doubt: Option<Doubt>,
    damage: Option<Damage>,
    /// Superseded segments that still have files.
    dead: Vec<u64>,
    index: Arc<WalIndex>,
    buf: Option<AlignedBuf>,
}

impl<D: Disk> Wal<D> {
    /// Makes a log in `dir` that begins after `start` ([`LogEnd::ZERO`] for a new volume). Durable on return.
    ///
    /// A crash in the middle leaves a directory that `open` may refuse; remove it and create again.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create(
        disk: D,
        dir: &Path,
        config: WalConfig,
        start: LogEnd,
    ) -> Result<Self, CreateError> {
        let fail = |source| CreateError::Io {
            path: dir.to_owned(),
            source,
        };
        disk.create_dir_all(dir).await.map_err(fail)?;
        let names = disk.list(dir).await.map_err(fail)?;
        if names.iter().any(|name| name.starts_with("wal-")) {
            return Err(CreateError::Exists {
                path: dir.to_owned(),
            });
        }
        let mut wal = Self {
            index: Arc::new(WalIndex::new(dir, config.lineage, Vec::new(), start)),
            disk,
            dir: dir.to_owned(),
            config,
            state: State::Ready,
            active: None,
            prepared: None,
            preparing: false,
            progress: Arc::default(),
            seq_max: 0,
            end: start,
            commit: Lsn::ZERO,
            doubt: None,
            damage: None,
            dead: Vec::new(),
            buf: None,
        };
        let prepared = wal.plan(0).run(&wal.disk).await.map_err(fail)?;
        let active = wal.open_prepared(prepared).await.map_err(fail)?;
        wal.activate(active, start).await.map_err(fail)?;
        Ok(wal)
    }

    /// Recovers the log in `dir`. Reads all of it once; changes nothing but unfinished files.
    ///
    /// # Errors
    /// [`OpenError`]. Damage is no error: it is in the answer, and what is intact stays readable.
    pub async fn open(
        disk: D,
        dir: &Path,
        config: WalConfig,
    ) -> Result<(Self, RecoveredLog), OpenError> {
        let fail = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        let found = recover(&disk, dir, &config).await?;
        for name in &found.temporary {
            disk.remove(&dir.join(name)).await.map_err(fail)?;
        }
        let active = match &found.tail {
            Some(tail) => {
                let opened =
                    open_active(&disk, dir, tail.seq, tail.write_pos, tail.file_bytes).await;
                Some(opened.map_err(fail)?)
            }
            None => None,
        };
        // What was read may have been written and not synced by a process that was killed in between, or whose sync
        // failed: it counts as durable from now on, so it is made durable now. A sync alone does not do that, since the
        // kernel takes pages whose write-back failed for clean: the bytes are written anew, as they were verified. That
        // the header and the last frame are enough is because each frame was durable before the next was written, and
        // everything in earlier segments before the next began.
        if let (Some(active), Some(tail)) = (&active, found.tail) {
            for (offset, bytes) in tail.rewrite {
                let page = AlignedBuf::padded_from(&bytes);
                active
                    .file
                    .write_durable(page, offset)
                    .await
                    .0
                    .map_err(fail)?;
            }
            disk.sync_dir(dir).await.map_err(fail)?;
        }
        // A spare with a number below a used segment's cannot take over from it.
        let used = found
            .segments
            .iter()
            .map(|info| info.seq)
            .chain(found.dead.iter().copied())
            .max()
            .unwrap_or(0);
        let usable = |spare: &&(u64, u64)| spare.0 > used && found.log.damage.is_none();
        let spare = found
            .spares
            .iter()
            .filter(usable)
            .max_by_key(|spare| spare.0)
            .copied();
        let mut dead = found.dead;
        if found.log.damage.is_none() {
            dead.extend(
                found
                    .spares
                    .iter()
                    .map(|other| other.0)
                    .filter(|seq| spare.is_none_or(|s| s.0 != *seq)),
            );
        }
        dead.sort_unstable();
        let filled = active.as_ref().map_or(0, |active| active.write_pos);
        let wal = Self {
            index: Arc::new(WalIndex::new(
                dir,
                config.lineage,
                found.segments,
                found.end,
            )),
            disk,
            dir: dir.to_owned(),
            config,
            state: State::Ready,
            active,
            prepared: spare.map(|(seq, bytes)| PreparedSegment { seq, bytes }),
            preparing: false,
            progress: Arc::new(Progress::at(filled)),
            seq_max: found.seq_max,
            end: found.end,
            commit: found.log.commit_floor,
            doubt: found.log.doubt,
            damage: found.log.damage.clone(),
            dead,
            buf: None,
        };
        Ok((wal, found.log))
    }

    /// Appends stamped entries as one frame (several above `frame_bytes`), in one durable write each. Each `Bytes`
    /// holds one or more whole entries; `commit` is the commit point known now.
    ///
    /// Durable on return. Blocks until the disk has answered. Payload CRCs are not verified again here. Dropped half
    /// way, the log is finished for this process. After a doubt, a successful append settles it: what was in doubt
    /// is cut.
    ///
    /// # Errors
    /// [`WalError`]. After `Misfit`, `NoSpace`, `Prepare` and `Damaged` nothing was written and the log goes on; after
    /// `Poisoned` the fate of these entries is unknown.
    pub async fn append(&mut self, entries: &[Bytes], commit: Lsn) -> Result<Durable, WalError> {
        self.check_writable()?;
        let frames = self.plan_frames(entries, commit)?;
        let total: u64 = frames
            .iter()
            .map(|frame| u64::from(frame.header.frame_len))
            .sum();
        self.state = State::Busy;
        if !self
            .active
            .as_ref()
            .is_some_and(|active| active.has_room(total))
        {
            self.roll(self.end, total).await?;
        }
        self.commit = self.commit.max(commit);
        for frame in frames {
            self.write_frame(frame).await?;
        }
        self.state = State::Ready;
        Ok(self.durable())
    }

    /// Cuts every entry above `lsn`, and whatever is in doubt. Durable on return. Entries that readers hold stay.
    ///
    /// # Errors
    /// [`WalError`]; `Committed` for a cut below the greatest commit point that this log was told.
    pub async fn truncate_after(&mut self, lsn: Lsn) -> Result<Durable, WalError> {
        self.check_writable()?;
        if lsn < self.commit.min(self.end.point.lsn) {
            return Err(WalError::Committed {
                asked: lsn,
                commit: self.commit,
            });
        }
        self.cut(lsn).await
    }

    /// Cuts a damaged log to its usable end, so that it can be appended to again. Durable on return. The files stay
    /// until they are recycled. First record that the copy is damaged: after this, the log no longer says so.
    ///
    /// # Errors
    /// [`WalError`].
    pub async fn cut_damage(&mut self) -> Result<Durable, WalError> {
        self.check_alive()?;
        let Some(damage) = self.damage.take() else {
            return Ok(self.durable());
        };
        self.state = State::Busy;
        let cut = self.roll(self.end, 0).await;
        if cut.is_err() {
            self.damage = Some(damage);
        }
        cut?;
        self.state = State::Ready;
        Ok(self.durable())
    }

    async fn cut(&mut self, lsn: Lsn) -> Result<Durable, WalError> {
        let (first, last) = (self.first_lsn(), self.end.point.lsn);
        if lsn > last || lsn < first.prev() {
            return Err(WalError::OutOfRange {
                asked: lsn,
                first,
                last,
            });
        }
        if lsn == last && self.doubt.is_none() {
            return Ok(self.durable());
        }
        let end = self.reader().end_at(lsn).await?;
        self.state = State::Busy;
        self.roll(end, 0).await?;
        self.state = State::Ready;
        Ok(self.durable())
    }

    /// The end of the durable log.
    pub fn durable(&self) -> Durable {
        Durable { end: self.end }
    }

    /// First LSN that the log can still hold.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        self.index.first_lsn()
    }

    /// A doubt found at open that no cut or append has settled.
    #[must_use]
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// Damage found at open that was not cut.
    #[must_use]
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// What to run in the background so that no append has to make its own segment; none if one is ready or on its
    /// way. Every plan must end in [`Wal::adopt`].
    pub fn plan_prepare(&mut self) -> Option<PreparePlan> {
        if self.prepared.is_some() || self.preparing || self.damage.is_some() {
            return None;
        }
        self.preparing = true;
        Some(self.plan(0))
    }

    /// Tells whoever prepares the next segment how far this one is. Call it after those were told who wait for an append: it may wake
    /// a thread.
    pub fn tell_progress(&self) {
        self.progress.tell();
    }

    /// Takes the result of a plan.
    ///
    /// # Errors
    /// The preparation's own error, handed through; another plan can be made.
    pub fn adopt(&mut self, prepared: io::Result<PreparedSegment>) -> io::Result<()> {
        self.preparing = false;
        let prepared = prepared?;
        let active = self.active.as_ref().map_or(0, |active| active.seq);
        if prepared.seq > active && self.prepared.is_none() {
            self.prepared = Some(prepared);
        } else {
            // The writer could not wait and went on with a later number: this one can never follow it.
            self.dead.push(prepared.seq);
        }
        Ok(())
    }

    /// Plans, runs and adopts, on this log's own disk. Durable on return.
    ///
    /// # Errors
    /// [`WalError::NoSpace`] or [`WalError::Prepare`]; the log goes on.
    pub async fn prepare_next(&mut self) -> Result<(), WalError> {
        self.check_alive()?;
        let Some(plan) = self.plan_prepare() else {
            return Ok(());
        };
        let result = plan.run(&self.disk).await;
        self.adopt(result).map_err(prepare_error)
    }

    /// Takes whole segments strictly below `lsn` out of the log, and superseded ones: readers no longer find them.
    /// The segment that holds `lsn` stays. Run the plan to unlink the files.
    pub fn plan_recycle(&mut self, lsn: Lsn) -> RecyclePlan {
        let mut seqs = Vec::new();
        if self.damage.is_none() {
            let mut state = self.index.lock();
            let keep = state
                .segments
                .partition_point(|info| info.first_lsn() <= lsn)
                .saturating_sub(1);
            seqs.extend(state.segments.drain(..keep).map(|info| info.seq));
            seqs.append(&mut self.dead);
            seqs.sort_unstable();
        }
        RecyclePlan {
            dir: self.dir.clone(),
            seqs,
        }
    }

    /// Plans and runs, on this log's own disk. Returns how many files went.
    ///
    /// # Errors
    /// See [`RecyclePlan::run`].
    pub async fn recycle_below(&mut self, lsn: Lsn) -> Result<usize, RecycleError> {
        self.plan_recycle(lsn).run(&self.disk).await
    }

    /// The shared index, for readers on other threads.
    #[must_use]
    pub fn index(&self) -> Arc<WalIndex> {
        self.index.clone()
    }

    /// A reader on this log's own disk.
    #[must_use]
    pub fn reader(&self) -> WalReader<D> {
        WalReader::new(self.disk.clone(), self.index.clone(), ReadPath::Pread)
    }

    fn check_alive(&mut self) -> Result<(), WalError> {
        if let State::Busy = self.state {
            self.state = State::Poisoned("an earlier call was dropped half way".to_owned());
        }
        match &self.state {
            State::Poisoned(reason) => Err(WalError::Poisoned {
                reason: reason.clone(),
            }),
            State::Ready | State::Busy => Ok(()),
        }
    }

    fn check_writable(&mut self) -> Result<(), WalError> {
        self.check_alive()?;
        match &self.damage {
            Some(damage) => Err(WalError::Damaged { from: damage.from }),
            None => Ok(()),
        }
    }

    /// Ends a call with the disk's answer: a failure is for ever.
    fn finish(&mut self, result: io::Result<()>) -> Result<(), WalError> {
        match result {
            Ok(()) => {
                self.state = State::Ready;
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(dir = %self.dir.display(), %reason, "log finished for this process");
                self.state = State::Poisoned(reason.clone());
                Err(WalError::Poisoned { reason })
            }
        }
    }

    fn plan(&mut self, need: u64) -> PreparePlan {
        self.seq_max += 1;
        let bytes = self
            .config
            .segment_bytes
            .max(2 * PAGE)
            .max(PAGE + need)
            .next_multiple_of(PAGE);
        PreparePlan {
            dir: self.dir.clone(),
            seq: self.seq_max,
            bytes,
            progress: self.progress.clone(),
        }
    }

    /// Starts a new segment behind `end`, with room for `need` bytes of frames; cuts whatever is above `end`.
    async fn roll(&mut self, end: LogEnd, need: u64) -> Result<(), WalError> {
        let prepared = match self.prepared.take() {
            Some(prepared) if prepared.bytes >= PAGE + need => prepared,
            other => {
                self.dead.extend(other.map(|small| small.seq));
                let plan = self.plan(need);
                match plan.run_now(&self.disk).await {
                    Ok(prepared) => prepared,
                    Err(error) => {
                        self.state = State::Ready;
                        return Err(prepare_error(error));
                    }
                }
            }
        };
        let active = match self.open_prepared(prepared).await {
            Ok(active) => active,
            // It is as it was prepared, for the next try.
            Err(error) if may_pass(&error) => {
                self.prepared = Some(prepared);
                self.state = State::Ready;
                return Err(prepare_error(error));
            }
            Err(error) => return self.finish(Err(error)),
        };
        let result = self.activate(active, end).await;
        self.finish(result)
    }

    /// Opens a prepared segment. Nothing is written to it yet.
    async fn open_prepared(&self, prepared: PreparedSegment) -> io::Result<Active<D::File>> {
        let PreparedSegment { seq, bytes } = prepared;
        open_active(&self.disk, &self.dir, seq, PAGE, bytes).await
    }

    async fn activate(&mut self, active: Active<D::File>, end: LogEnd) -> io::Result<()> {
        let header = SegmentHeader {
            lineage: self.config.lineage,
            incarnation: self.config.incarnation,
            seq: active.seq,
            prev: end,
            file_bytes: active.file_bytes,
        };
        activate(&active, &header).await?;
        self.active = Some(active);
        self.progress.begin();
        let mut state = self.index.lock();
        let keep = state
            .segments
            .partition_point(|info| info.first_lsn() <= end.point.lsn);
        self.dead
            .extend(state.segments.drain(keep..).map(|info| info.seq));
        state.segments.push(SegmentInfo::new(header.seq, end));
        state.end = end;
        self.end = end;
        self.doubt = None;
        Ok(())
    }
}

fn prepare_error(error: io::Error) -> WalError {
    if crate::engine::is_no_space(&error) {
        WalError::NoSpace(error)
    } else {
        WalError::Prepare(error)
    }
}
