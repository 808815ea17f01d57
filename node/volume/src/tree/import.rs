//! Trees of full copies: the log of a new copy begins where its donor's does, and its tree has to begin with the first position.

use std::collections::VecDeque;
use std::path::Path;

use bytes::Bytes;
use mainstay_storage::tree::NODE_BYTES;
use mainstay_storage::{Disk, TreeFile, TreeFileError};
use mainstay_types::merkle::{Node, Peaks, TreeHash};
use mainstay_types::{Lineage, Lsn};

/// Nodes in one message of a full copy: 512 KiB.
pub const NODES_AT_ONCE: usize = 16 << 10;

/// Reads a piece of the donor's nodes for a log that begins behind `base`, from place `first` on: their bytes, and the place of the next
/// piece; none behind the last one.
///
/// # Errors
/// The disk's, or a node is missing.
pub async fn export_nodes<D: Disk>(
    file: &TreeFile<D>,
    base: Lsn,
    first: u64,
) -> Result<Option<(Bytes, u64)>, super::TreeError> {
    let left = Node::count(base.0).saturating_sub(first);
    let count = usize::try_from(left).map_or(NODES_AT_ONCE, |left| left.min(NODES_AT_ONCE));
    if count == 0 {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(count * NODE_BYTES);
    for node in file.read(first, count).await? {
        bytes.extend_from_slice(&node.ok_or(super::TreeError::Damaged)?.0);
    }
    if bytes.len() < count * NODE_BYTES {
        return Err(super::TreeError::Damaged);
    }
    Ok(Some((bytes.into(), first + count as u64)))
}

/// A tree that is being received. Every node is checked against those below it.
#[expect(
    missing_debug_implementations,
    reason = "an open file prints nothing of use"
)]
pub struct TreeImport<D: Disk> {
    file: TreeFile<D>,
    peaks: Peaks,
    /// Nodes that the last leaf completed and that must come next.
    due: VecDeque<TreeHash>,
    place: u64,
    /// A node did not fit: the tree is not used.
    sound: bool,
}

impl<D: Disk> TreeImport<D> {
    /// Begins one in the directory of a copy that is being received.
    ///
    /// # Errors
    /// The disk's.
    pub async fn begin(disk: &D, dir: &Path, lineage: Lineage) -> Result<Self, TreeFileError> {
        Ok(Self {
            file: TreeFile::create(disk, dir, lineage).await?,
            peaks: Peaks::default(),
            due: VecDeque::new(),
            place: 0,
            sound: true,
        })
    }

    /// Takes the next piece. The bytes come from a peer.
    ///
    /// # Errors
    /// The disk's.
    pub async fn take(&mut self, bytes: &[u8]) -> Result<(), TreeFileError> {
        let nodes: Vec<TreeHash> = bytes
            .chunks_exact(NODE_BYTES)
            .filter_map(TreeHash::from_bytes)
            .collect();
        self.sound &= bytes.len().is_multiple_of(NODE_BYTES);
        for node in &nodes {
            self.sound &= self.fits(node);
        }
        if !self.sound || nodes.is_empty() {
            return Ok(());
        }
        self.file.write(self.place, &nodes).await?;
        self.place += nodes.len() as u64;
        Ok(())
    }

    fn fits(&mut self, node: &TreeHash) -> bool {
        if let Some(due) = self.due.pop_front() {
            return due == *node;
        }
        let due = &mut self.due;
        self.peaks.push(*node, |complete| due.push_back(*complete));
        self.due.pop_front() == Some(*node)
    }

    /// Ends it: durable on return, as the tree of a log that begins behind `base`. False if what came is no such tree: the copy will
    /// have none.
    ///
    /// # Errors
    /// The disk's.
    pub async fn finish(mut self, base: Lsn) -> Result<bool, TreeFileError> {
        let whole = self.sound && self.due.is_empty() && self.peaks.size() == base.0;
        if whole {
            self.file.mark(&self.peaks).await?;
        }
        Ok(whole)
    }
}
