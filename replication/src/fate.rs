//! What becomes of a copy when its volume's register is of another history: rule R6, *Forced*, and trap C7.

use mainstay_types::{Incarnation, Lineage, NodeId, Register};

/// A copy by its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyNames {
    /// Where it is.
    pub node: NodeId,
    /// Which formatting.
    pub incarnation: Incarnation,
    /// The history that it follows.
    pub lineage: Lineage,
    /// The history that its volume was created with.
    pub log_lineage: Lineage,
}

/// See [`fate_of_copy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFate {
    /// It is of the register's history.
    Keep,
    /// Its volume was deleted, and perhaps created anew: nobody needs it.
    Drop,
    /// A forced promotion chose it: it goes on in the new history with every entry that it has.
    Adopt,
    /// A forced promotion gave its history up. It may hold what others lack, and is never cut or mixed with the new
    /// history: it is kept whole elsewhere, and another copy with another incarnation takes its place.
    SetAside,
}

/// What a decided register value means for a copy of that volume's name.
#[must_use]
pub fn fate_of_copy(copy: CopyNames, register: &Register) -> CopyFate {
    if register.deleted || register.log_lineage != copy.log_lineage {
        return CopyFate::Drop;
    }
    if register.lineage == copy.lineage {
        return CopyFate::Keep;
    }
    let chosen = register
        .members
        .iter()
        .any(|member| (member.node, member.incarnation) == (copy.node, copy.incarnation));
    if chosen {
        CopyFate::Adopt
    } else {
        CopyFate::SetAside
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::{
        Epoch, Instance, LogPoint, Member, MemberKind, Policy, PrimaryId, RegisterId, VolumeKind,
        VolumeSpec,
    };

    use super::*;

    fn register(lineage: u64, log_lineage: u64, deleted: bool) -> Register {
        let (node, incarnation) = (NodeId(2), Incarnation(20));
        Register {
            id: RegisterId(1),
            version: 4,
            lineage: Lineage(lineage),
            log_lineage: Lineage(log_lineage),
            epoch: Epoch(9),
            primary: PrimaryId {
                node,
                incarnation,
                instance: Instance(5),
            },
            members: vec![Member {
                node,
                incarnation,
                kind: MemberKind::Full,
            }],
            ack_quorum: 1,
            policy: Policy::for_placement(vec![NodeId(1), node]),
            cut: LogPoint::ZERO,
            spec: VolumeSpec {
                name: "ledger".parse().expect("a good name"),
                kind: VolumeKind::Log,
            },
            deleted,
        }
    }

    fn copy(node: u32, incarnation: u64) -> CopyNames {
        CopyNames {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            lineage: Lineage(1),
            log_lineage: Lineage(1),
        }
    }

    #[test]
    fn only_the_chosen_copy_goes_on_and_nothing_that_may_hold_acknowledged_writes_is_removed() {
        let forced = register(7, 1, false);
        assert_eq!(fate_of_copy(copy(2, 20), &forced), CopyFate::Adopt);
        assert_eq!(fate_of_copy(copy(1, 10), &forced), CopyFate::SetAside);
        // The chosen node, but an earlier or later formatting.
        assert_eq!(fate_of_copy(copy(2, 21), &forced), CopyFate::SetAside);
    }

    #[test]
    fn copies_of_a_deleted_volume_are_dropped_and_those_of_this_history_kept() {
        assert_eq!(
            fate_of_copy(copy(1, 10), &register(1, 1, false)),
            CopyFate::Keep
        );
        assert_eq!(
            fate_of_copy(copy(1, 10), &register(1, 1, true)),
            CopyFate::Drop
        );
        assert_eq!(
            fate_of_copy(copy(1, 10), &register(8, 8, false)),
            CopyFate::Drop
        );
    }
}
