//! Property 9: once faults stop and a quorum of each kind is up, writes resume within the stated time, and all members
//! come to hold equal content.
//!
//! The world asks again and again after the faults have ended; what it waits for is said here.

use mainstay_replication::Role;
use mainstay_types::{Lsn, NodeId};

/// Longest that clients may wait for their first answer after the last fault has ended.
pub const RESUME_NS: u64 = 12_000_000_000;

/// Longest until all copies are equal after that.
pub const CONVERGE_NS: u64 = 120_000_000_000;

/// One member at the end, as far as the comparison needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    /// Where.
    pub node: NodeId,
    /// What it does.
    pub role: Role,
    /// Commit point.
    pub commit: Lsn,
    /// End of its log.
    pub last: Lsn,
    /// Applied.
    pub applied: Lsn,
    /// CRC of the last entry: equal for equal logs.
    pub crc: u32,
    /// The session table, as bytes.
    pub sessions: bytes::Bytes,
}

/// Why the copies are not equal yet, if they are not.
#[must_use]
pub fn unequal(finals: &[Final], wanted: &[NodeId], committed: Lsn) -> Option<String> {
    for node in wanted {
        let Some(copy) = finals.iter().find(|copy| copy.node == *node) else {
            return Some(format!("node {node} serves no copy"));
        };
        if !matches!(copy.role, Role::Primary { .. } | Role::Replica { .. }) {
            return Some(format!("node {node} is {:?}", copy.role));
        }
        if (copy.commit, copy.last, copy.applied) != (committed, committed, committed) {
            return Some(format!(
                "node {node} is committed {} last {} applied {}, others {committed}",
                copy.commit, copy.last, copy.applied
            ));
        }
    }
    let first = finals.iter().find(|copy| wanted.contains(&copy.node))?;
    for copy in finals.iter().filter(|copy| wanted.contains(&copy.node)) {
        if (copy.crc, &copy.sessions) != (first.crc, &first.sessions) {
            return Some(format!(
                "nodes {} and {} differ at {committed}",
                first.node, copy.node
            ));
        }
    }
    None
}
