//! A tree that only grows, as far as growing it needs: its peaks.

use super::hash::NODE;
use super::lanes::Lanes;
use super::{Node, TreeHash, TreeRoot};

/// The roots of the complete subtrees that a tree of some size consists of, the largest and leftmost first: one for each bit of the
/// size that is set. They are all that is needed to add leaves and to tell the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peaks {
    size: u64,
    /// Invariant: as many as `size` has ones.
    hashes: Vec<TreeHash>,
}

impl Peaks {
    /// Of a tree of `size` leaves; `None` unless there is one hash for each one bit of the size.
    #[must_use]
    pub fn new(size: u64, hashes: Vec<TreeHash>) -> Option<Self> {
        (hashes.len() == size.count_ones() as usize).then_some(Self { size, hashes })
    }

    /// How many leaves the tree has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the peaks.
    #[must_use]
    pub fn hashes(&self) -> &[TreeHash] {
        &self.hashes
    }

    /// Which nodes the peaks of a tree of `size` leaves are, in the order of [`Self::hashes`].
    #[must_use]
    pub fn nodes(size: u64) -> Vec<Node> {
        Node::within(0, size)
    }

    /// Adds a leaf, and gives every node that is complete now, from the leaf upwards, to `complete`: the order in which
    /// [`Node::place`] counts.
    pub fn push(&mut self, leaf: TreeHash, mut complete: impl FnMut(&TreeHash)) {
        let mut hash = leaf;
        complete(&hash);
        // Every one at the end of the size is a subtree that the new leaf, or the node above it, makes twice as large.
        for _ in 0..self.size.trailing_ones() {
            let left = self.hashes.pop().expect("a peak for each one of the size");
            hash = TreeHash::of_node(&left, &hash);
            complete(&hash);
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// Adds leaves, and gives back every node that is complete now, in the order of [`Self::push`]: what pushing one after the other
    /// does, in less time.
    #[must_use]
    pub fn push_all(&mut self, leaves: &[TreeHash]) -> Vec<TreeHash> {
        let (old, new) = (self.size, self.size + leaves.len() as u64);
        let before = Node::count(old);
        let slot = |place: u64| usize::try_from(place - before).expect("nodes in memory");
        let mut complete = vec![TreeHash([0; 32]); slot(Node::count(new))];
        let mut peaks = Vec::new();
        let mut nodes = leaves.to_vec();
        let mut level = 0;
        while !nodes.is_empty() {
            for (index, hash) in (old >> level..).zip(&nodes) {
                complete[slot(Node { level, index }.place())] = *hash;
            }
            if old >> level & 1 == 1 {
                let left = self.hashes.pop().expect("a peak for each one of the size");
                nodes.insert(0, left);
            }
            let (pairs, alone) = nodes.as_chunks::<2>();
            peaks.extend_from_slice(alone);
            let mut above = Lanes::default();
            for [left, right] in pairs {
                above.add(&[&[NODE], &left.0, &right.0]);
            }
            nodes = above.finish();
            level += 1;
        }
        self.hashes.extend(peaks.iter().rev());
        self.size = new;
        complete
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> TreeRoot {
        TreeRoot {
            size: self.size,
            hash: TreeHash::above(&self.hashes).unwrap_or_else(TreeHash::of_nothing),
        }
    }
}

impl TreeHash {
    /// The root above complete subtrees side by side, each smaller than the one to its left; `None` of none.
    #[must_use]
    pub fn above(subtrees: &[Self]) -> Option<Self> {
        let (last, rest) = subtrees.split_last()?;
        let join = |right: Self, left: &Self| Self::of_node(left, &right);
        Some(rest.iter().rev().fold(*last, join))
    }
}
