//! Proofs, and what verifies them: two hashes that somebody kept, and no server.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Leaf, TreeHash};
use crate::Lsn;

/// The root of a log's tree over its first `size` positions: whoever keeps it can be shown later what those positions held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeRoot {
    /// How many positions it covers: those from 1 to `size`.
    pub size: u64,
    /// Its hash.
    pub hash: TreeHash,
}

impl fmt::Display for TreeRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at size {}", self.hash, self.size)
    }
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofError {
    /// It speaks of a tree of another size than the root that it is held against.
    Size {
        /// Of the proof.
        proof: u64,
        /// Of the root.
        root: u64,
    },
    /// The tree has no such position, or the old tree is larger than the new one.
    Beyond {
        /// Of the tree.
        size: u64,
        /// Asked for.
        position: u64,
    },
    /// It is about another position than the record.
    Position {
        /// Of the proof.
        proof: Lsn,
        /// Of the record.
        record: Lsn,
    },
    /// A proof about these sizes has another number of hashes.
    Length,
    /// What it leads to is not the root (of the older tree): the record, the proof or the root was altered.
    OldRoot {
        /// What the proof leads to.
        computed: TreeHash,
        /// The root given.
        given: TreeHash,
    },
    /// What it leads to is not the root: the record, the proof or the root was altered.
    Root {
        /// What the proof leads to.
        computed: TreeHash,
        /// The root given.
        given: TreeHash,
    },
}

impl fmt::Display for ProofError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { proof, root } => {
                write!(f, "the proof is about size {proof}, the root about {root}")
            }
            Self::Beyond { size, position } => {
                write!(f, "a tree of {size} positions does not reach {position}")
            }
            Self::Position { proof, record } => {
                write!(f, "the proof is about position {proof}, not {record}")
            }
            Self::Length => f.write_str("the proof has too many hashes or too few"),
            Self::OldRoot { computed, given } => write!(
                f,
                "the proof leads to {computed} for the older tree, not to {given}"
            ),
            Self::Root { computed, given } => {
                write!(f, "the proof leads to {computed}, not to {given}")
            }
        }
    }
}

impl std::error::Error for ProofError {}

/// Proves what a log holds at one position. Has a JSON form by `serde`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InclusionProof {
    /// The position.
    pub lsn: Lsn,
    /// Of the tree that it is in.
    pub size: u64,
    /// From the leaf upwards.
    pub path: Vec<TreeHash>,
}

impl InclusionProof {
    /// Verifies that the log whose root is `root` shows `leaf` at its position. Needs no server.
    ///
    /// # Errors
    /// [`ProofError`]: nothing is proved.
    ///
    /// # Example
    /// ```
    /// use mainstay_types::Lsn;
    /// use mainstay_types::merkle::{InclusionProof, Leaf, TreeHash, TreeRoot};
    ///
    /// let leaf = |lsn, data| Leaf::Record { lsn: Lsn(lsn), timestamp_us: 0, data };
    /// let (first, second) = (leaf(1, b"debit"), leaf(2, b"credit"));
    /// let root = TreeRoot { size: 2, hash: TreeHash::of_node(&first.hash(), &second.hash()) };
    /// let proof = InclusionProof { lsn: Lsn(2), size: 2, path: vec![first.hash()] };
    /// assert!(proof.verify(&second, &root).is_ok());
    /// assert!(proof.verify(&leaf(2, b"altered"), &root).is_err());
    /// ```
    pub fn verify(&self, leaf: &Leaf<'_>, root: &TreeRoot) -> Result<(), ProofError> {
        if leaf.lsn() != self.lsn {
            let (proof, record) = (self.lsn, leaf.lsn());
            return Err(ProofError::Position { proof, record });
        }
        self.verify_hash(leaf.hash(), root)
    }

    /// Verifies that the log whose root is `root` has a leaf with this hash at the proof's position.
    ///
    /// # Errors
    /// [`ProofError`]: nothing is proved.
    pub fn verify_hash(&self, leaf: TreeHash, root: &TreeRoot) -> Result<(), ProofError> {
        check_size(self.size, root.size)?;
        let computed = self.root_from(leaf)?;
        let given = root.hash;
        (computed == given)
            .then_some(())
            .ok_or(ProofError::Root { computed, given })
    }

    /// The root that it leads to from the hash of a leaf: RFC 9162, section 2.1.3.2.
    pub(super) fn root_from(&self, leaf: TreeHash) -> Result<TreeHash, ProofError> {
        let (size, position) = (self.size, self.lsn.0);
        if position == 0 || position > size {
            return Err(ProofError::Beyond { size, position });
        }
        let (mut fn_, mut sn) = (position - 1, size - 1);
        let mut hash = leaf;
        for sibling in &self.path {
            if sn == 0 {
                return Err(ProofError::Length);
            }
            if fn_ & 1 == 1 || fn_ == sn {
                hash = TreeHash::of_node(sibling, &hash);
                let up = if fn_ & 1 == 1 {
                    0
                } else {
                    fn_.trailing_zeros()
                };
                (fn_, sn) = (shift(fn_, up), shift(sn, up));
            } else {
                hash = TreeHash::of_node(&hash, sibling);
            }
            (fn_, sn) = (fn_ >> 1, sn >> 1);
        }
        if sn == 0 {
            Ok(hash)
        } else {
            Err(ProofError::Length)
        }
    }
}

/// Proves that a log only grew between two roots. Has a JSON form by `serde`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistencyProof {
    /// Size of the older tree.
    pub old_size: u64,
    /// Size of the newer tree.
    pub new_size: u64,
    /// As RFC 6962, section 2.1.2, has them.
    pub path: Vec<TreeHash>,
}

impl ConsistencyProof {
    /// Verifies that the log whose root is `new` begins with all that it held when its root was `old`. Needs no server.
    ///
    /// # Errors
    /// [`ProofError`]: nothing is proved.
    ///
    /// # Example
    /// ```
    /// use mainstay_types::merkle::{ConsistencyProof, TreeHash, TreeRoot};
    ///
    /// let (one, two) = (TreeHash::of_leaf(b"one"), TreeHash::of_leaf(b"two"));
    /// let old = TreeRoot { size: 1, hash: one };
    /// let new = TreeRoot { size: 2, hash: TreeHash::of_node(&one, &two) };
    /// let proof = ConsistencyProof { old_size: 1, new_size: 2, path: vec![two] };
    /// assert!(proof.verify(&old, &new).is_ok());
    /// assert!(proof.verify(&TreeRoot { size: 1, hash: two }, &new).is_err());
    /// ```
    pub fn verify(&self, old: &TreeRoot, new: &TreeRoot) -> Result<(), ProofError> {
        check_size(self.old_size, old.size)?;
        check_size(self.new_size, new.size)?;
        let (computed_old, computed_new) = self.roots(old, new)?;
        if computed_old != old.hash {
            let (computed, given) = (computed_old, old.hash);
            return Err(ProofError::OldRoot { computed, given });
        }
        let (computed, given) = (computed_new, new.hash);
        (computed == given)
            .then_some(())
            .ok_or(ProofError::Root { computed, given })
    }

    /// The two roots that it leads to: RFC 9162, section 2.1.4.2.
    fn roots(&self, old: &TreeRoot, new: &TreeRoot) -> Result<(TreeHash, TreeHash), ProofError> {
        let (old_size, new_size) = (self.old_size, self.new_size);
        if old_size > new_size {
            let (size, position) = (new_size, old_size);
            return Err(ProofError::Beyond { size, position });
        }
        if old_size == 0 || old_size == new_size {
            // Outside of the RFC's domain: nothing is a part of everything, and a tree is a part of itself.
            if !self.path.is_empty() {
                return Err(ProofError::Length);
            }
            let nothing = TreeHash::of_nothing();
            return Ok(match (old_size, new_size) {
                (0, 0) => (nothing, nothing),
                (0, _) => (nothing, new.hash),
                _ => (old.hash, old.hash),
            });
        }
        // An old tree that is one complete subtree is the first hash of its own proof, and left out.
        let begin = old_size.is_power_of_two().then_some(old.hash);
        let mut path = begin.into_iter().chain(self.path.iter().copied());
        let first = path.next().ok_or(ProofError::Length)?;
        let up = (old_size - 1).trailing_ones();
        let (mut fn_, mut sn) = (shift(old_size - 1, up), shift(new_size - 1, up));
        let (mut from_old, mut from_new) = (first, first);
        for sibling in path {
            if sn == 0 {
                return Err(ProofError::Length);
            }
            if fn_ & 1 == 1 || fn_ == sn {
                from_old = TreeHash::of_node(&sibling, &from_old);
                from_new = TreeHash::of_node(&sibling, &from_new);
                let up = if fn_ & 1 == 1 {
                    0
                } else {
                    fn_.trailing_zeros()
                };
                (fn_, sn) = (shift(fn_, up), shift(sn, up));
            } else {
                from_new = TreeHash::of_node(&from_new, &sibling);
            }
            (fn_, sn) = (fn_ >> 1, sn >> 1);
        }
        if sn == 0 {
            Ok((from_old, from_new))
        } else {
            Err(ProofError::Length)
        }
    }
}

fn check_size(proof: u64, root: u64) -> Result<(), ProofError> {
    (proof == root)
        .then_some(())
        .ok_or(ProofError::Size { proof, root })
}

/// Shifts to the right; everything is gone after 64 places.
fn shift(value: u64, places: u32) -> u64 {
    value.checked_shr(places).unwrap_or(0)
}
