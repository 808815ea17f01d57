//! The Merkle tree of one copy of a log: grown from committed entries, kept in a file, and asked for proofs.
//!
//! A tree is a function of the log alone, so every copy has the same one, and a copy that lost the end of its tree takes those entries of
//! its log again. It never has to be cut back: it takes committed entries only, and of a batch nothing until it is decided (`leaves.rs`).
//!
//! **Invariant**: no copy gives up an entry that its durable tree does not cover. The order of events that would break it: a log is
//! trimmed and gives 1 to 1,000 back, the power fails before the tree's nodes for 900 to 1,000 were synced; no copy can tell the root
//! any more. So whoever recycles the log calls [`Tree::mark`] first.
//!
//! **Invariant**: a mark covers only nodes of which no write-back failed. The order of events that would break it: the disk fails to take
//! nodes out of memory, a sync says so once, the next sync has nothing to write and succeeds, and a mark follows it; the log is trimmed, the
//! power fails, and the nodes are gone. So after such a failure the tree begins again at its mark.
//!
//! **Invariant**: a mark never covers more than this copy's own log holds durably. Otherwise a forced promotion could choose another
//! entry for a position that the mark speaks of.
//!
//! Nothing is served that was not checked: a proof leads to a root, and an older root to the present one, which is made of the peaks in
//! memory. What does not is damage of the file, and is computed again from the log ([`Tree::repair`]), if the log still has it.

mod import;
mod leaves;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use mainstay_storage::format::{EntryError, EntryIter, EntryRef};
use mainstay_storage::wal::{ReadError, ReadPath, WalIndex};
use mainstay_storage::{Disk, TreeFile, TreeFileError, WalReader};
use mainstay_types::merkle::{
    ConsistencyProof, InclusionProof, Node, Peaks, Subtree, TreeHash, TreeRoot, consistency_path,
    inclusion_path,
};
use mainstay_types::{Lineage, Lsn};

use crate::store::cause_may_pass;
pub use import::{NODES_AT_ONCE, TreeImport, export_nodes};
use leaves::Leaves;

/// Bytes of the log that one step of catching up takes.
const STEP_BYTES: usize = 1 << 20;

/// Nodes are written once there are so many.
const NODES_WRITTEN: usize = 2048;

/// So many at most wait in memory for a disk that has no room; entries are taken from the log later.
const NODES_UNWRITTEN_MAX: usize = 128 << 10;

/// What is asked of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeQuestion {
    /// Of the tree over how many positions; over all that may be shown if none is given.
    pub size: Option<u64>,
    /// Beside its root.
    pub proof: ProofWanted,
}

/// See [`TreeQuestion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofWanted {
    /// The root alone.
    None,
    /// What is at a position.
    Inclusion(Lsn),
    /// That it begins with the tree of this size.
    Consistency(u64),
}

/// The answer to a [`TreeQuestion`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeAnswer {
    /// The root.
    pub root: TreeRoot,
    /// The hashes of the proof.
    pub path: Vec<TreeHash>,
}

/// How far a tree caught up with its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaughtUp {
    /// Everything that was wanted is taken.
    Whole,
    /// There is more in this copy's log.
    Partly,
    /// The rest is not durable in this copy's log yet.
    AsFarAsDurable,
}

/// Why a tree does not answer.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The tree is smaller.
    #[error("the log's tree covers {have} positions at this moment, not {asked}")]
    Beyond {
        /// Asked for.
        asked: u64,
        /// How many it covers.
        have: u64,
    },
    /// No tree has such a position, or an older tree that is larger.
    #[error("a tree of {size} positions has no position {asked}")]
    Outside {
        /// Asked for.
        asked: u64,
        /// Of the tree that was asked for.
        size: u64,
    },
    /// This copy has no tree.
    #[error("{0}")]
    Absent(String),
    /// The tree is still computed from the log.
    #[error("this copy computes its tree from the log: {have} of {wanted} positions are done")]
    Growing {
        /// Positions covered.
        have: u64,
        /// To be covered.
        wanted: u64,
    },
    /// What is stored does not lead to the present root.
    #[error("stored hashes of this copy's tree do not lead to its root")]
    Damaged,
    /// The tree's file.
    #[error(transparent)]
    File(#[from] TreeFileError),
    /// The log, from which the tree is computed.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// An entry of the log.
    #[error(transparent)]
    Entry(#[from] EntryError),
}

impl TreeError {
    /// Whether the machine refused for now, and the tree's file may be as it should be.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        cause_may_pass(self)
    }
}

/// The tree of one copy of a log. Stays on its thread.
#[expect(
    missing_debug_implementations,
    reason = "an open file prints nothing of use"
)]
pub struct Tree<D: Disk> {
    file: TreeFile<D>,
    reader: WalReader<D>,
    lineage: Lineage,
    peaks: Peaks,
    leaves: Leaves,
    /// Nodes that are not in the file yet: the last ones of the tree.
    unwritten: Vec<TreeHash>,
    /// Last entry taken. Above the size while a batch is not decided.
    taken: Lsn,
}

impl<D: Disk> Tree<D> {
    /// Opens the tree of the copy in `dir`, whose log is `index`, or begins one if the log reaches back to its first position.
    ///
    /// # Errors
    /// [`TreeError::Absent`] if this copy has no tree and cannot make one; else the disk's.
    pub async fn open(
        disk: D,
        dir: &Path,
        index: Arc<WalIndex>,
        lineage: Lineage,
    ) -> Result<Self, TreeError> {
        let first = index.first_lsn();
        let file = match TreeFile::open(&disk, dir, lineage).await {
            Ok(Some(file)) if file.marked().size() < first.prev().0 => {
                return Err(TreeError::Absent(format!(
                    "this copy's log begins at {first} and its tree covers {} positions: it can prove nothing; \
                     make the copy anew from one that can",
                    file.marked().size()
                )));
            }
            Ok(Some(file)) => file,
            Ok(None) | Err(TreeFileError::Damaged { .. }) if first <= Lsn(1) => {
                TreeFile::create(&disk, dir, lineage).await?
            }
            Ok(None) => {
                return Err(TreeError::Absent(format!(
                    "this copy's log begins at {first} and it has no tree of the positions below: it was trimmed before \
                     logs had trees, so nothing can be proved of it"
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let peaks = file.marked().clone();
        Ok(Self {
            reader: WalReader::new(disk, index, ReadPath::Pread),
            lineage,
            taken: Lsn(peaks.size()),
            peaks,
            file,
            leaves: Leaves::default(),
            unwritten: Vec::new(),
        })
    }

    /// How many positions it covers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.peaks.size()
    }

    /// How many positions its durable part covers.
    #[must_use]
    pub fn marked(&self) -> u64 {
        self.file.marked().size()
    }

    /// The last entry taken: the next one to give is the one behind it.
    #[must_use]
    pub fn taken(&self) -> Lsn {
        self.taken
    }

    /// Its present root.
    #[must_use]
    pub fn root(&self) -> TreeRoot {
        self.peaks.root()
    }

    /// Takes committed entries, in order. Those taken before are skipped. False, and nothing is taken, if some are missing in front of
    /// them, or nodes cannot be written: see [`Self::catch_up`].
    pub fn take(&mut self, entries: &[EntryRef]) -> bool {
        let skipped = entries.partition_point(|entry| entry.header.point.lsn <= self.taken);
        let entries = &entries[skipped..];
        let Some(first) = entries.first() else {
            return true;
        };
        let stuck = self.unwritten.len() >= NODES_UNWRITTEN_MAX;
        if stuck || first.header.point.lsn != self.taken.next() {
            return false;
        }
        self.take_all(entries);
        true
    }

    fn take_all(&mut self, entries: &[EntryRef]) {
        let Some(last) = entries.last() else { return };
        let mut decided = Vec::with_capacity(entries.len());
        self.leaves.take(entries, |leaf| decided.push(leaf));
        self.unwritten.extend(self.peaks.push_all(&decided));
        self.taken = last.header.point.lsn;
    }

    /// Takes some of the entries up to `through`, which are committed, from this copy's log.
    ///
    /// # Errors
    /// The log does not read back, or the nodes cannot be written.
    pub async fn catch_up(&mut self, through: Lsn) -> Result<CaughtUp, TreeError> {
        if self.taken >= through {
            return Ok(CaughtUp::Whole);
        }
        self.write_if_many().await?;
        let batch = match self.reader.read(self.taken.next(), STEP_BYTES).await {
            Err(ReadError::AboveLast { .. }) => return Ok(CaughtUp::AsFarAsDurable),
            read => read?,
        };
        for chunk in batch.chunks {
            let mut entries = Vec::new();
            let mut broken = None;
            for entry in EntryIter::headers_only(self.lineage, chunk) {
                match entry {
                    Ok(entry) if entry.header.point.lsn <= through => entries.push(entry),
                    Ok(_) => break,
                    Err(error) => broken = Some(error),
                }
            }
            // What lies in front of one that does not read back can be proved.
            self.take_all(&entries);
            if let Some(error) = broken {
                return Err(error.into());
            }
        }
        Ok(if self.taken >= through {
            CaughtUp::Whole
        } else {
            CaughtUp::Partly
        })
    }

    /// Writes nodes to the file, if there are many: they wait in memory else.
    ///
    /// # Errors
    /// The disk's; they stay in memory, or the tree is as it was at its last mark: see [`Self::catch_up`].
    pub async fn write_if_many(&mut self) -> Result<(), TreeError> {
        if self.unwritten.len() >= NODES_WRITTEN {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), TreeFileError> {
        if !self.unwritten.is_empty() {
            let written = self.file.write(self.written(), &self.unwritten).await;
            self.begin_again_if_unsynced(written)?;
            self.unwritten.clear();
        }
        Ok(())
    }

    /// What may be lost is computed again: the tree goes back to its mark, and the log still has what lies behind.
    fn begin_again_if_unsynced(
        &mut self,
        result: Result<(), TreeFileError>,
    ) -> Result<(), TreeFileError> {
        if let Err(TreeFileError::Unsynced { .. }) = &result {
            self.peaks = self.file.marked().clone();
            self.taken = Lsn(self.peaks.size());
            self.leaves = Leaves::default();
            self.unwritten.clear();
        }
        result
    }

    /// Nodes in the file.
    #[must_use]
    pub fn written(&self) -> u64 {
        Node::count(self.size()) - self.unwritten.len() as u64
    }

    /// Makes the tree over the positions up to `through`, or as far as it goes, durable. `through` is durable in this copy's log.
    ///
    /// # Errors
    /// The disk's; what was durable is. The tree may be as it was at its last mark: see [`Self::catch_up`].
    pub async fn mark(&mut self, through: Lsn) -> Result<(), TreeError> {
        let size = through.0.min(self.size());
        self.write().await?;
        if size > self.marked() {
            let peaks = self.peaks_at(size).await?;
            let marked = self.file.mark(&peaks).await;
            self.begin_again_if_unsynced(marked)?;
        }
        Ok(())
    }

    /// Answers a question. Positions above `through` are not spoken of.
    ///
    /// # Errors
    /// [`TreeError`]; after `Damaged` see [`Self::repair`].
    pub async fn answer(
        &self,
        question: &TreeQuestion,
        through: Lsn,
    ) -> Result<TreeAnswer, TreeError> {
        let size = question.size.unwrap_or(through.0);
        if size > through.0 {
            let have = through.0;
            return Err(TreeError::Beyond { asked: size, have });
        }
        if size > self.size() {
            let (have, wanted) = (self.size(), size);
            return Err(TreeError::Growing { have, wanted });
        }
        let root = self.root_at(size).await?;
        let path = match question.proof {
            ProofWanted::None => Vec::new(),
            ProofWanted::Inclusion(lsn) => self.inclusion(lsn, &root).await?,
            ProofWanted::Consistency(old) if old > size => {
                return Err(TreeError::Outside { asked: old, size });
            }
            ProofWanted::Consistency(old) => {
                let old = self.root_at(old).await?;
                self.consistency(&old, &root).await?
            }
        };
        Ok(TreeAnswer { root, path })
    }

    /// The root at a size, proved to lead to the present one.
    async fn root_at(&self, size: u64) -> Result<TreeRoot, TreeError> {
        let root = self.peaks_at(size).await?.root();
        self.consistency(&root, &self.peaks.root()).await?;
        Ok(root)
    }

    async fn peaks_at(&self, size: u64) -> Result<Peaks, TreeError> {
        if size == self.size() {
            return Ok(self.peaks.clone());
        }
        let hashes = self.nodes(&Peaks::nodes(size)).await?;
        Peaks::new(size, hashes).ok_or(TreeError::Damaged)
    }

    async fn inclusion(&self, lsn: Lsn, root: &TreeRoot) -> Result<Vec<TreeHash>, TreeError> {
        let outside = TreeError::Outside {
            asked: lsn.0,
            size: root.size,
        };
        let Some(index) = lsn.0.checked_sub(1) else {
            return Err(outside);
        };
        let path = inclusion_path(index, root.size).ok_or(outside)?;
        let path = self.path(&path).await?;
        let leaf = self.node(Node { level: 0, index }).await?;
        let proof = InclusionProof {
            lsn,
            size: root.size,
            path,
        };
        proof
            .verify_hash(leaf, root)
            .map_err(|_| TreeError::Damaged)?;
        Ok(proof.path)
    }

    async fn consistency(
        &self,
        old: &TreeRoot,
        new: &TreeRoot,
    ) -> Result<Vec<TreeHash>, TreeError> {
        let (asked, size) = (old.size, new.size);
        let path = consistency_path(asked, size).ok_or(TreeError::Outside { asked, size })?;
        let proof = ConsistencyProof {
            old_size: asked,
            new_size: size,
            path: self.path(&path).await?,
        };
        proof.verify(old, new).map_err(|_| TreeError::Damaged)?;
        Ok(proof.path)
    }

    async fn path(&self, subtrees: &[Subtree]) -> Result<Vec<TreeHash>, TreeError> {
        let mut path = Vec::with_capacity(subtrees.len());
        for subtree in subtrees {
            let nodes = self.nodes(&subtree.nodes()).await?;
            path.push(TreeHash::above(&nodes).ok_or(TreeError::Damaged)?);
        }
        Ok(path)
    }

    async fn nodes(&self, nodes: &[Node]) -> Result<Vec<TreeHash>, TreeError> {
        let mut hashes = Vec::with_capacity(nodes.len());
        for node in nodes {
            hashes.push(self.node(*node).await?);
        }
        Ok(hashes)
    }

    async fn node(&self, node: Node) -> Result<TreeHash, TreeError> {
        let waits = node.place().checked_sub(self.written());
        if let Some(at) = waits.and_then(|at| usize::try_from(at).ok()) {
            return self.unwritten.get(at).copied().ok_or(TreeError::Damaged);
        }
        self.file.node(node).await?.ok_or(TreeError::Damaged)
    }

    /// Computes the file's nodes again from this copy's log, as far back as that reaches, if they lead to the present root.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] if they do not: what is damaged lies in front of what the log holds. Else the disk's.
    pub async fn repair(&mut self) -> Result<(), TreeError> {
        let base = self.reader.index().first_lsn().prev().0;
        self.write().await?;
        let from = self.peaks_at(base.min(self.size())).await?;
        // First without writing: from a damaged beginning nothing good may be overwritten.
        if self.replay(from.clone(), false).await? != self.peaks {
            return Err(TreeError::Damaged);
        }
        self.replay(from, true).await?;
        let peaks = self.file.marked().clone();
        let marked = self.file.mark(&peaks).await;
        Ok(self.begin_again_if_unsynced(marked)?)
    }

    async fn replay(&self, mut peaks: Peaks, write: bool) -> Result<Peaks, TreeError> {
        let (mut leaves, mut nodes) = (Leaves::default(), Vec::new());
        let (mut next, mut place) = (Lsn(peaks.size() + 1), Node::count(peaks.size()));
        while peaks.size() < self.size() {
            let batch = self.reader.read(next, STEP_BYTES).await?;
            next = batch.end.point.lsn.next();
            for chunk in batch.chunks {
                let entries = EntryIter::headers_only(self.lineage, chunk);
                let entries: Vec<EntryRef> = entries.collect::<Result<_, _>>()?;
                let mut decided = Vec::with_capacity(entries.len());
                leaves.take(&entries, |leaf| decided.push(leaf));
                let lacks = usize::try_from(self.size() - peaks.size()).unwrap_or(usize::MAX);
                decided.truncate(lacks);
                nodes.extend(peaks.push_all(&decided));
            }
            if write && !nodes.is_empty() {
                self.file.write(place, &nodes).await?;
            }
            place += nodes.len() as u64;
            nodes.clear();
        }
        Ok(peaks)
    }
}
