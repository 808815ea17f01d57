//! Which hashes a proof consists of, and where a store that appends nodes in the order of their completion has them.

use std::ops::Range;

/// A complete subtree: it covers `1 << level` leaves, from `index << level` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Zero for a leaf.
    pub level: u32,
    /// Among the nodes of its level.
    pub index: u64,
}

impl Node {
    /// Its place among all nodes in the order of their completion ([`super::Peaks::push`]), from zero.
    #[must_use]
    pub fn place(&self) -> u64 {
        let last_leaf = ((self.index + 1) << self.level) - 1;
        Self::count(last_leaf) + u64::from(self.level)
    }

    /// How many nodes are complete in a tree of `size` leaves.
    #[must_use]
    pub fn count(size: u64) -> u64 {
        2 * size - u64::from(size.count_ones())
    }

    /// The complete subtrees that `len` leaves from `start` on consist of, the largest first. `start` is a multiple of the largest, as
    /// it is of every subtree of RFC 6962.
    pub(super) fn within(start: u64, len: u64) -> Vec<Self> {
        let mut nodes = Vec::new();
        let (mut at, mut left) = (start, len);
        while left > 0 {
            let level = left.ilog2();
            let index = at >> level;
            nodes.push(Self { level, index });
            at += 1 << level;
            left -= 1 << level;
        }
        nodes
    }
}

/// One hash of a proof: the root over a range of leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subtree(Range<u64>);

impl Subtree {
    /// What it consists of, for [`super::TreeHash::above`].
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        Node::within(self.0.start, self.0.end - self.0.start)
    }
}

/// The largest power of two below `len`, which is at least two.
fn split(len: u64) -> u64 {
    1 << (len - 1).ilog2()
}

/// `PATH(m, D[n])` of RFC 6962, section 2.1.1: the hashes that prove leaf `index` to be in a tree of `size` leaves, from the leaf upwards.
/// `None` if the tree has no such leaf.
#[must_use]
pub fn inclusion_path(index: u64, size: u64) -> Option<Vec<Subtree>> {
    if index >= size {
        return None;
    }
    let mut path = Vec::new();
    let mut within = 0..size;
    while within.end - within.start > 1 {
        let middle = within.start + split(within.end - within.start);
        if index < middle {
            path.push(Subtree(middle..within.end));
            within.end = middle;
        } else {
            path.push(Subtree(within.start..middle));
            within.start = middle;
        }
    }
    path.reverse();
    Some(path)
}

/// `PROOF(m, D[n])` of RFC 6962, section 2.1.2: the hashes that prove a tree of `new` leaves to begin with the one of `old`. None are needed
/// if the sizes are equal, or the old tree is empty. `None` if the old tree is larger.
#[must_use]
pub fn consistency_path(old: u64, new: u64) -> Option<Vec<Subtree>> {
    if old > new {
        return None;
    }
    let mut path = Vec::new();
    if old == 0 {
        return Some(path);
    }
    let mut within = 0..new;
    // Whether the old tree is a whole subtree whose root the verifier has: the flag `b` of SUBPROOF.
    let mut known = true;
    while old < within.end {
        let middle = within.start + split(within.end - within.start);
        if old <= middle {
            path.push(Subtree(middle..within.end));
            within.end = middle;
        } else {
            path.push(Subtree(within.start..middle));
            within.start = middle;
            known = false;
        }
    }
    if !known {
        path.push(Subtree(within));
    }
    path.reverse();
    Some(path)
}
