//! One copy on disk: made, opened, and written to in the order that the volume asks for.
//!
//! The log (with the durable facts) and the state (image, checkpoint) are opened apart, each with its own disk
//! handle, so that they may live on different threads: a disk that hangs under a log write must hang nothing else.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mainstay_replication::{EpochRuns, MemberStart, OpId, WitnessSet, message::Doubt};
use mainstay_storage::engine::may_pass;
use mainstay_storage::image::{CheckpointError, ExportedBlock, ImageConfig, ImageOpenError};
use mainstay_storage::meta::MetaError;
use mainstay_storage::wal::{CreateError, OpenError, ReadError, ReadPath, WalError, WalIndex};
use mainstay_storage::{
    Checkpoint, CheckpointFile, CheckpointFileError, Disk, Durable, Image, LogEnd, Meta, MetaFacts,
    RecoveredLog, TreeFileError, Wal, WalConfig, WalReader,
};
use mainstay_types::{
    ClusterId, Epoch, Incarnation, Instance, Lineage, Lsn, NodeId, PrimaryId, VolumeKind,
    VolumeSpec,
};

use crate::event::{WalJob, WalWrite};
use crate::sessions::{BlobError, Sessions};
use crate::tree::TreeImport;
use crate::volume::VolumeStart;

/// Bytes of entries that go into one durable write.
const BATCH_BYTES: usize = 1 << 20;

/// Pages of image checksums kept in memory for each block volume: 4 KiB each, 1 MiB of volume each.
const SUMS_PAGES: usize = 1024;

/// Why a copy could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The durable facts.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A new log.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// An existing log.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Entries behind the checkpoint.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The block image.
    #[error(transparent)]
    Image(#[from] ImageOpenError),
    /// Blocks of another member.
    #[error(transparent)]
    Import(#[from] CheckpointError),
    /// The checkpoint of a log volume.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointFileError),
    /// The session table in a checkpoint.
    #[error(transparent)]
    Sessions(#[from] BlobError),
    /// Entries of a log that was verified a moment ago.
    #[error("entries behind the checkpoint: {0}")]
    Entry(#[from] mainstay_storage::format::EntryError),
    /// The Merkle tree of a log.
    #[error(transparent)]
    Tree(#[from] TreeFileError),
    /// The disk.
    #[error("{path}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

impl CopyError {
    /// Whether the machine refused for now, and the copy's files may be as they should be.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        cause_may_pass(self)
    }
}

/// Whether what the system said, if it is below an error, may pass.
pub(crate) fn cause_may_pass(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return may_pass(error);
        }
        cause = error.source();
    }
    false
}

/// Which copy, and how its log is laid out.
#[derive(Debug, Clone)]
pub struct CopyConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Bytes of one preallocated segment of the log.
    pub segment_bytes: u64,
}

/// What a recovered log tells the rest of the volume. May cross threads.
#[derive(Debug, Clone)]
pub struct LogFacts {
    /// What recovery found.
    pub recovered: RecoveredLog,
    /// The durable facts.
    pub facts: MetaFacts,
    /// Where the segments lie, for readers.
    pub index: Arc<WalIndex>,
}

/// The state that a volume's log leads to.
#[expect(
    missing_debug_implementations,
    reason = "an open image prints nothing of use"
)]
pub enum State<D: Disk> {
    /// Of a block volume.
    Block(Box<Image<D>>),
    /// Of a log volume: the log is the data; the checkpoint holds the session table.
    Log(CheckpointFile<D>),
}

/// A copy to be made.
#[derive(Debug, Clone)]
pub struct NewCopy {
    /// What the volume is.
    pub spec: VolumeSpec,
    /// The history that it is in.
    pub lineage: Lineage,
    /// The history that seeds the checksums of its entries.
    pub log_lineage: Lineage,
    /// The name of this formatting.
    pub incarnation: Incarnation,
    /// Refuses every epoch below this one from the start.
    pub sealed: Epoch,
}

impl NewCopy {
    fn facts(self, config: &CopyConfig) -> MetaFacts {
        MetaFacts {
            cluster: config.cluster,
            node: config.node,
            volume: self.spec.name.id(),
            spec: self.spec,
            incarnation: self.incarnation,
            log_lineage: self.log_lineage,
            lineage: self.lineage,
            boot_counter: 0,
            sealed: self.sealed,
            rebuilding: false,
            damaged: None,
            commit: Lsn::ZERO,
        }
    }
}

/// Makes an empty copy in `dir`. Durable on return; a crash before leaves nothing that opens.
///
/// # Errors
/// The disk's; or the copy exists already.
pub async fn create_copy<D: Disk>(
    disk: &D,
    dir: &Path,
    config: &CopyConfig,
    new: NewCopy,
) -> Result<(), CopyError> {
    let io = |source| CopyError::Io {
        path: dir.to_owned(),
        source,
    };
    let lineage = new.log_lineage;
    disk.create_dir_all(dir).await.map_err(io)?;
    let log = wal_config(config, lineage, new.incarnation);
    Wal::create(disk.clone(), dir, log, LogEnd::ZERO).await?;
    match new.spec.kind {
        VolumeKind::Block { size_bytes } => {
            let config = ImageConfig {
                lineage,
                size_bytes,
                sums_pages: SUMS_PAGES,
            };
            Image::create(disk.clone(), dir, config, LogEnd::ZERO, Bytes::new()).await?;
        }
        VolumeKind::Log => {
            let checkpoints = CheckpointFile::new(disk.clone(), dir, lineage);
            checkpoints.store(&Checkpoint::default()).await?;
        }
    }
    // Last: a directory without facts is not a copy.
    let facts = new.facts(config);
    Meta::create(disk.clone(), dir, facts).await?;
    Ok(())
}

fn wal_config(config: &CopyConfig, lineage: Lineage, incarnation: Incarnation) -> WalConfig {
    WalConfig {
        segment_bytes: config.segment_bytes,
        ..WalConfig::new(lineage, incarnation)
    }
}

/// A copy that is being received whole from another member.
#[expect(
    missing_debug_implementations,
    reason = "an open image prints nothing of use"
)]
pub struct CopyReceiver<D: Disk> {
    disk: D,
    dir: PathBuf,
    new: NewCopy,
    /// None for a log: all of it follows as a learner's feed.
    image: Option<Image<D>>,
    base: LogEnd,
    sessions: Sessions,
    /// Of a log, once something of it came: what the log does not hold any more is in it.
    tree: Option<TreeImport<D>>,
}

impl<D: Disk> CopyReceiver<D> {
    /// Begins a copy in the empty directory `dir`: the log will go on behind `base`, with the session table `blob`.
    ///
    /// # Errors
    /// The table does not decode, or the disk failed.
    pub async fn begin(
        disk: &D,
        dir: &Path,
        new: NewCopy,
        base: LogEnd,
        blob: &Bytes,
    ) -> Result<Self, CopyError> {
        let io = |source| CopyError::Io {
            path: dir.to_owned(),
            source,
        };
        let sessions = Sessions::decode(blob)?;
        disk.create_dir_all(dir).await.map_err(io)?;
        let image = match new.spec.kind {
            VolumeKind::Block { size_bytes } => {
                let config = ImageConfig {
                    lineage: new.log_lineage,
                    size_bytes,
                    sums_pages: SUMS_PAGES,
                };
                let empty = (LogEnd::ZERO, Bytes::new());
                let image = Image::create(disk.clone(), dir, config, empty.0, empty.1).await?;
                image.begin_rebuild().await?;
                Some(image)
            }
            VolumeKind::Log => None,
        };
        Ok(Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            new,
            image,
            base,
            sessions,
            tree: None,
        })
    }

    /// Writes blocks of the donor.
    ///
    /// # Errors
    /// A block does not verify, or the disk failed.
    pub async fn import(&mut self, blocks: &[ExportedBlock]) -> Result<(), CopyError> {
        match &mut self.image {
            Some(image) => Ok(image.import_blocks(blocks).await?),
            None => Ok(()),
        }
    }

    /// Writes nodes of the donor's Merkle tree, in order.
    ///
    /// # Errors
    /// The disk's. A tree that does not fit is left out: the copy is whole without it, and proves nothing.
    pub async fn import_tree(&mut self, nodes: &[u8]) -> Result<(), CopyError> {
        let tree = match &mut self.tree {
            Some(tree) => tree,
            None => {
                let lineage = self.new.log_lineage;
                let tree = TreeImport::begin(&self.disk, &self.dir, lineage).await?;
                self.tree.insert(tree)
            }
        };
        Ok(tree.take(nodes).await?)
    }

    /// Ends the copy: durable, and a copy to be opened, on return. It is marked as being rebuilt until the log is
    /// applied up to `consistent_from`.
    ///
    /// # Errors
    /// The disk's; the directory is then no copy.
    pub async fn finish(
        mut self,
        config: &CopyConfig,
        consistent_from: Lsn,
    ) -> Result<(), CopyError> {
        match self.image {
            Some(image) => {
                self.sessions.consistent_from = consistent_from;
                image
                    .finish_rebuild(self.base, self.sessions.encode())
                    .await?;
            }
            None => {
                let checkpoint = Checkpoint {
                    applied: self.base,
                    rebuilding: false,
                    blob: self.sessions.encode(),
                };
                let lineage = self.new.log_lineage;
                let file = CheckpointFile::new(self.disk.clone(), &self.dir, lineage);
                file.store(&checkpoint).await?;
            }
        }
        if let Some(tree) = self.tree
            && !tree.finish(self.base.point.lsn).await?
        {
            tracing::warn!(volume = %self.new.spec.name,
                "the donor's Merkle tree does not fit the log: this copy will prove nothing");
        }
        let log = wal_config(config, self.new.log_lineage, self.new.incarnation);
        Wal::create(self.disk.clone(), &self.dir, log, self.base).await?;
        let facts = MetaFacts {
            rebuilding: true,
            ..self.new.facts(config)
        };
        Meta::create(self.disk, &self.dir, facts).await?;
        Ok(())
    }
}

/// Takes the copy in `dir`, which nobody has open, over into another history of its volume: what a forced promotion
/// chose goes on there, entry for entry. Durable on return; repeating it changes nothing.
///
/// # Errors
/// There is no copy, it is another node's, or the disk failed.
pub async fn adopt_lineage<D: Disk>(
    disk: &D,
    dir: &Path,
    config: &CopyConfig,
    lineage: Lineage,
) -> Result<(), CopyError> {
    let mut meta = Meta::open(disk.clone(), dir, config.cluster, config.node).await?;
    meta.update(|facts| facts.lineage = lineage).await?;
    Ok(())
}

/// Opens and recovers the log of the copy in `dir`, and its durable facts.
///
/// # Errors
/// There is no copy, it is another node's, or the disk failed. A damaged log opens, and says so in the facts.
pub async fn open_log<D: Disk>(
    disk: &D,
    dir: &Path,
    config: &CopyConfig,
) -> Result<(Wal<D>, Meta<D>, LogFacts), CopyError> {
    let meta = Meta::open(disk.clone(), dir, config.cluster, config.node).await?;
    let facts = meta.facts().clone();
    let log = wal_config(config, facts.log_lineage, facts.incarnation);
    let (wal, recovered) = Wal::open(disk.clone(), dir, log).await?;
    let index = wal.index();
    Ok((
        wal,
        meta,
        LogFacts {
            recovered,
            facts,
            index,
        },
    ))
}

/// Opens the state of the copy in `dir`, and reads what the volume needs to start as `instance`.
///
/// # Errors
/// The state does not verify, or the disk failed.
pub async fn open_state<D: Disk>(
    disk: &D,
    dir: &Path,
    log: &LogFacts,
    instance: Instance,
    witnesses: &Arc<WitnessSet>,
    seed: u64,
) -> Result<(State<D>, VolumeStart), CopyError> {
    let facts = &log.facts;
    let (state, checkpoint) = match facts.spec.kind {
        VolumeKind::Block { size_bytes } => {
            let config = ImageConfig {
                lineage: facts.log_lineage,
                size_bytes,
                sums_pages: SUMS_PAGES,
            };
            let (image, checkpoint) = Image::open(disk.clone(), dir, config).await?;
            (State::Block(Box::new(image)), checkpoint)
        }
        VolumeKind::Log => {
            let checkpoints = CheckpointFile::new(disk.clone(), dir, facts.log_lineage);
            let checkpoint = checkpoints.load().await?;
            (State::Log(checkpoints), checkpoint)
        }
    };
    let recovered = &log.recovered;
    let reader = WalReader::new(disk.clone(), log.index.clone(), ReadPath::Pread);
    let applied = checkpoint.applied.point;
    // A log that ends before its checkpoint, or before a commit point that it once recorded, or that begins after its
    // checkpoint, lost what was durable.
    let lost = recovered.last.lsn < applied.lsn.max(facts.commit)
        || applied.lsn.next() < recovered.first_lsn;
    let damaged = recovered.damage.is_some() || facts.damaged.is_some() || lost;
    let runs = if lost || recovered.last.lsn < recovered.first_lsn {
        EpochRuns::empty(if lost { applied } else { recovered.last })
    } else {
        let base = reader.end_at(recovered.first_lsn.prev()).await?.point;
        EpochRuns::recovered(base, recovered.runs.clone(), recovered.last.lsn)
    };
    let tail = if damaged {
        Vec::new()
    } else {
        read_tail(&reader, facts.log_lineage, applied.lsn, recovered).await?
    };
    let member = MemberStart {
        me: PrimaryId {
            node: facts.node,
            incarnation: facts.incarnation,
            instance,
        },
        volume: facts.volume,
        lineage: facts.lineage,
        witnesses: Arc::clone(witnesses),
        log: runs,
        sealed: facts.sealed,
        // A damaged copy serves nothing and applies nothing.
        commit: if damaged {
            applied.lsn
        } else {
            applied.lsn.max(recovered.commit_floor).max(facts.commit)
        },
        doubt: recovered.doubt.map(|doubt| Doubt {
            from: doubt.from,
            to: doubt.to,
        }),
        damaged,
        rebuilding: facts.rebuilding || checkpoint.rebuilding,
        seed,
    };
    let sessions = Sessions::decode(&checkpoint.blob)?;
    if let State::Block(image) = &state {
        image.set_consistent_from(sessions.consistent_from());
    }
    let start = VolumeStart {
        member,
        spec: facts.spec.clone(),
        log_lineage: facts.log_lineage,
        applied: checkpoint.applied,
        sessions,
        tail,
    };
    Ok((state, start))
}

async fn read_tail<D: Disk>(
    reader: &WalReader<D>,
    lineage: Lineage,
    applied: Lsn,
    recovered: &RecoveredLog,
) -> Result<Vec<mainstay_storage::format::EntryRef>, CopyError> {
    let mut entries = Vec::new();
    let mut next = applied.next();
    while next <= recovered.last.lsn {
        let batch = reader.read(next, BATCH_BYTES).await?;
        next = batch.end.point.lsn.next();
        for chunk in batch.chunks {
            for entry in mainstay_storage::format::EntryIter::headers_only(lineage, chunk) {
                entries.push(entry?);
            }
        }
    }
    Ok(entries)
}

/// Carries out the writes at the front of `jobs`: as many consecutive appends as go into one durable write, or one
/// cut, or one seal. Returns the last write that is durable now; none if there was nothing to do.
///
/// # Errors
/// The disk's. Final for this copy in this process: nothing after it may be written.
pub async fn carry_out<D: Disk>(
    wal: &mut Wal<D>,
    meta: &mut Meta<D>,
    jobs: &mut VecDeque<WalJob>,
) -> Result<Option<OpId>, StoreError> {
    let Some(job) = jobs.pop_front() else {
        return Ok(None);
    };
    let mut op = job.op;
    match job.write {
        WalWrite::Cut { after } => match wal.truncate_after(after).await {
            Ok(Durable { .. }) => {}
            Err(error) => return Err(put_back(jobs, op, WalWrite::Cut { after }, error.into())),
        },
        WalWrite::Seal { epoch } => {
            let seal = meta.update(|facts| facts.sealed = facts.sealed.max(epoch));
            if let Err(error) = seal.await {
                return Err(put_back(jobs, op, WalWrite::Seal { epoch }, error.into()));
            }
        }
        WalWrite::Append {
            mut entries,
            mut commit,
        } => {
            let mut bytes: usize = entries.iter().map(Bytes::len).sum();
            while let Some(WalJob {
                op: next,
                write:
                    WalWrite::Append {
                        entries: more,
                        commit: later,
                    },
            }) = jobs.front()
            {
                let more_bytes: usize = more.iter().map(Bytes::len).sum();
                if bytes + more_bytes > BATCH_BYTES {
                    break;
                }
                bytes += more_bytes;
                op = *next;
                commit = commit.max(*later);
                entries.extend(more.iter().cloned());
                jobs.pop_front();
            }
            // The completed sync is reported by the write's name; the core turns that into its own proof.
            match wal.append(&entries, commit).await {
                Ok(Durable { .. }) => {}
                Err(error) => {
                    let write = WalWrite::Append { entries, commit };
                    return Err(put_back(jobs, op, write, error.into()));
                }
            }
        }
    }
    Ok(Some(op))
}

/// A write that found no room goes back to the front: nothing of it counts, and it may be tried again.
fn put_back(
    jobs: &mut VecDeque<WalJob>,
    op: OpId,
    write: WalWrite,
    error: StoreError,
) -> StoreError {
    if matches!(error, StoreError::NoSpace(_)) {
        jobs.push_front(WalJob { op, write });
    }
    error
}

/// Why a write of the log was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, or the machine lacks something else for now. Nothing was written, nothing is lost; the write stays at the front of
    /// the jobs.
    #[error("{0}")]
    NoSpace(String),
    /// The log.
    #[error(transparent)]
    Wal(WalError),
    /// The durable facts.
    #[error(transparent)]
    Meta(MetaError),
}

impl From<WalError> for StoreError {
    fn from(error: WalError) -> Self {
        match error {
            WalError::NoSpace(ref cause) | WalError::Prepare(ref cause) => {
                Self::NoSpace(format!("{error}: {cause}"))
            }
            // Of a cut, which reads where the log is to end before it changes anything.
            WalError::Read(ReadError::Io(ref cause)) if may_pass(cause) => {
                Self::NoSpace(format!("{error}: {cause}"))
            }
            other => Self::Wal(other),
        }
    }
}

impl From<MetaError> for StoreError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::NoSpace { .. } => Self::NoSpace(error.to_string()),
            other => Self::Meta(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use mainstay_storage::engine::SimDisk;
    use mainstay_storage::engine::sim::{Fault, OpKind};
    use mainstay_storage::format::{EntryKind, encode_unstamped, stamp};
    use mainstay_types::{LogPoint, SessionId};

    use super::*;

    fn job(op: u64, write: WalWrite) -> WalJob {
        let op = OpId(op);
        WalJob { op, write }
    }

    /// Entries 1 to `last` of epoch 1.
    fn entries(last: u64) -> Vec<Bytes> {
        let mut end = LogEnd::ZERO;
        let stamped = (1..=last).map(|lsn| {
            let mut entry = encode_unstamped(EntryKind::Record, SessionId(1), 2, lsn, 4, &[7; 100]);
            let (epoch, lsn) = (Epoch(1), Lsn(lsn));
            let crc = stamp(&mut entry, Lineage(1), epoch, lsn, end.crc);
            let point = LogPoint { epoch, lsn };
            end = LogEnd { point, crc };
            entry.freeze()
        });
        stamped.collect()
    }

    /// A cut reads where the log is to end, makes a segment, and opens it. Each of the three could end the copy by one moment without
    /// descriptors.
    #[test]
    fn a_cut_that_lacks_a_descriptor_is_carried_out_later() {
        // Nothing on this disk ever waits.
        let mut cut = pin!(cut_without_descriptors());
        let done = cut.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(done, Poll::Ready(()));
    }

    async fn cut_without_descriptors() {
        let (disk, dir) = (SimDisk::immediate(1), Path::new("/copy"));
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
        let created = create_copy(&disk, dir, &config, new).await;
        created.expect("created");
        let (mut wal, mut meta, _) = open_log(&disk, dir, &config).await.expect("opened");
        let append = WalWrite::Append {
            entries: entries(4),
            commit: Lsn::ZERO,
        };
        let mut jobs = VecDeque::from([job(1, append), job(2, WalWrite::Cut { after: Lsn(2) })]);
        let done = carry_out(&mut wal, &mut meta, &mut jobs).await;
        assert_eq!(done.expect("appended"), Some(OpId(1)));
        for nth in 1..=3 {
            disk.fail_nth(OpKind::Open, nth, Fault::NoDescriptor);
            let refused = carry_out(&mut wal, &mut meta, &mut jobs).await;
            assert!(
                matches!(refused, Err(StoreError::NoSpace(_))),
                "{refused:?}"
            );
            assert_eq!(jobs.len(), 1);
        }
        let done = carry_out(&mut wal, &mut meta, &mut jobs).await;
        assert_eq!(done.expect("a descriptor"), Some(OpId(2)));
        assert_eq!(wal.durable().point().lsn, Lsn(2));
    }

    #[test]
    fn what_the_machine_lacks_for_now_says_nothing_of_a_copy() {
        let io = |code| std::io::Error::from_raw_os_error(code);
        let of_log = |source| {
            CopyError::from(OpenError::Io {
                path: "log".into(),
                source,
            })
        };
        // ENOSPC, EMFILE, EIO, ENOENT.
        for (code, passes) in [(28, true), (24, true), (5, false), (2, false)] {
            let path = PathBuf::from("copy");
            let source = io(code);
            assert_eq!(CopyError::Io { path, source }.may_pass(), passes, "{code}");
            assert_eq!(of_log(io(code)).may_pass(), passes, "{code}");
        }
    }
}
