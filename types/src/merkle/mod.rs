//! The Merkle tree over a log's positions: hashes, proofs, and their verification, which needs no server.
//!
//! It is the tree of RFC 6962, section 2.1 (the same in RFC 9162, section 2.1), over one leaf for each position: the leaf of position
//! `lsn` has index `lsn - 1`. What a leaf holds is a function of what a reader is shown at that position ([`Leaf`]), so whoever reads
//! a log from its first position on can compute every root of it. All of it is pure: who keeps nodes, and where, is decided elsewhere.
//!
//! Bytes of a proof come from outside: verification answers with an error, and never panics.

mod hash;
mod lanes;
mod peaks;
mod plan;
mod proof;
#[cfg(test)]
mod tests;

pub use hash::{HashError, Leaf, LeafHashes, TreeHash};
pub use peaks::Peaks;
pub use plan::{Node, Subtree, consistency_path, inclusion_path};
pub use proof::{ConsistencyProof, InclusionProof, ProofError, TreeRoot};
