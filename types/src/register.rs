//! The register: the witnesses' replicated record of one volume's configuration.

use serde::{Deserialize, Serialize};

use crate::{
    Epoch, Incarnation, Instance, Lineage, LogPoint, NodeId, Policy, RegisterId, VolumeSpec,
};

/// What a member may become.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    /// Holds state and log; may become primary.
    Full,
    /// Holds a bounded WAL tail: counts for commit, donates the tail, never becomes primary.
    Log,
}

/// One data node's copy of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Where it is.
    pub node: NodeId,
    /// Which formatting of that node's copy.
    pub incarnation: Incarnation,
    /// What it may become.
    pub kind: MemberKind,
}

/// The one process that may act as primary of an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrimaryId {
    /// Its node.
    pub node: NodeId,
    /// The incarnation of its copy.
    pub incarnation: Incarnation,
    /// The process. A restart is a different instance and never goes on in this epoch.
    pub instance: Instance,
}

/// One value of a volume's register.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Register {
    /// Random; compare-and-set compares this, never `version`.
    pub id: RegisterId,
    /// One more than the value before: for people and for the monotonicity check.
    pub version: u64,
    /// The history that the volume is in. Only a forced promotion begins a new one.
    pub lineage: Lineage,
    /// The history that the volume was created with: it seeds the checksums of entries, and outlives forced promotions.
    pub log_lineage: Lineage,
    /// The epoch in force.
    pub epoch: Epoch,
    /// Who acts in it.
    pub primary: PrimaryId,
    /// Whose copies count.
    pub members: Vec<Member>,
    /// Durable copies that commit an entry.
    pub ack_quorum: u32,
    /// What the operator asked for.
    pub policy: Policy,
    /// End of the log that the promotion to `epoch` chose.
    pub cut: LogPoint,
    /// What the volume is.
    pub spec: VolumeSpec,
    /// The volume was deleted: nobody acts in it, and its name may be created anew.
    pub deleted: bool,
}

impl Register {
    /// The member on `node`, if there is one.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// The ack quorum as a count.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.ack_quorum as usize
    }
}
