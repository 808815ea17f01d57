//! Who votes: rule R8. One value for the whole cluster, replaced step by step.
//!
//! Invariant: any two quorums that may both decide, grant or fence meet in a witness that knows of both, or everything
//! that the older one decided is held by a quorum of the newer. What would break it is trap H10: of the old set W1 W2 W3 and the
//! new set W1 W2 W4, a lease from W1 and W3 and a fence from W2 and W4 do not meet. So a change goes through a *joint* set,
//! whose quorums are a majority of the old witnesses **and** one of the new. `witness/change.rs` drives it.
//!
//! The sets form a chain: each version is one Paxos decree among the witnesses of the version before it.

use mainstay_types::{MonoTime, NodeId};

use crate::quorum::majority;

/// One witness in one store. A store that was lost, and a witness that was removed and comes back, is another voter: it
/// has forgotten what it promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// The node.
    pub node: NodeId,
    /// Names the store: drawn when the witness was invited; zero for those of the first set.
    pub store: u64,
    /// Where the others reach it, for the driver; the core does not look at it.
    pub address: String,
}

/// Names one set in each request: a witness that knows another one does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SetTag {
    /// Rises by one with each decree.
    pub version: u64,
    /// Of this very value.
    pub id: u64,
}

/// The witnesses of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WitnessSet {
    /// Its name.
    pub tag: SetTag,
    /// Who votes, by node.
    pub voters: Vec<Voter>,
    /// Who will vote: while there is one, majorities of both are needed.
    pub next: Option<Vec<Voter>>,
}

impl WitnessSet {
    /// The set that a cluster begins with. Its id follows from its members, so that nodes whose configurations differ
    /// do not take each other's sets for one.
    #[must_use]
    pub fn first(mut voters: Vec<Voter>) -> Self {
        voters.sort_by_key(|voter| voter.node);
        let mix = |hash: u64, voter: &Voter| {
            let bytes = voter.node.0.to_le_bytes();
            bytes.iter().fold(hash, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
        };
        let id = voters.iter().fold(0xcbf2_9ce4_8422_2325, mix);
        Self {
            tag: SetTag { version: 1, id },
            voters,
            next: None,
        }
    }

    /// The first set of these nodes, without addresses.
    #[must_use]
    pub fn of(nodes: &[NodeId]) -> Self {
        let voter = |node: &NodeId| Voter {
            node: *node,
            store: 0,
            address: String::new(),
        };
        Self::first(nodes.iter().map(voter).collect())
    }

    fn groups(&self) -> impl Iterator<Item = &[Voter]> {
        [Some(self.voters.as_slice()), self.next.as_deref()]
            .into_iter()
            .flatten()
    }

    /// All voters, of both sets while there are two.
    pub fn all(&self) -> impl Iterator<Item = &Voter> {
        let joining = self.next.iter().flatten();
        self.voters
            .iter()
            .chain(joining.filter(|voter| !self.voters.contains(voter)))
    }

    /// All their nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.all().map(|voter| voter.node).collect()
    }

    /// Whether `node` votes.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.all().any(|voter| voter.node == node)
    }

    /// Whether `node` votes from that store.
    #[must_use]
    pub fn names(&self, node: NodeId, store: u64) -> bool {
        self.all()
            .any(|voter| voter.node == node && voter.store == store)
    }

    /// The store from which `node` votes.
    #[must_use]
    pub fn store_of(&self, node: NodeId) -> Option<u64> {
        let voter = self.all().find(|voter| voter.node == node)?;
        Some(voter.store)
    }

    /// Whether those that `counts` are enough: a majority, of both sets while there are two.
    #[must_use]
    pub fn is_quorum(&self, counts: impl Fn(NodeId) -> bool) -> bool {
        self.groups().all(|group| {
            let counted = group.iter().filter(|voter| counts(voter.node)).count();
            counted >= majority(group.len())
        })
    }

    /// Whether those that `counts` are a majority of the set that a change leaves.
    #[must_use]
    pub fn is_old_majority(&self, counts: impl Fn(NodeId) -> bool) -> bool {
        let counted = self.voters.iter().filter(|voter| counts(voter.node));
        counted.count() >= majority(self.voters.len())
    }

    /// Whether those that `counts` are a majority of the set that a change leads to.
    #[must_use]
    pub fn is_new_majority(&self, counts: impl Fn(NodeId) -> bool) -> bool {
        let next = self.next.as_ref().unwrap_or(&self.voters);
        let counted = next.iter().filter(|voter| counts(voter.node));
        counted.count() >= majority(next.len())
    }

    /// Those that a change brings in.
    pub fn newcomers(&self) -> impl Iterator<Item = NodeId> {
        let next = self.next.iter().flatten();
        next.filter(|voter| !self.voters.contains(voter))
            .map(|voter| voter.node)
    }

    /// Until when a quorum lasts whose parts end at `end`.
    #[must_use]
    pub fn quorum_end(&self, end: impl Fn(NodeId) -> MonoTime) -> MonoTime {
        let of_group = |group: &[Voter]| {
            let mut ends: Vec<MonoTime> = group.iter().map(|voter| end(voter.node)).collect();
            ends.sort_unstable_by(|a, b| b.cmp(a));
            let at = majority(ends.len()) - 1;
            ends.get(at).copied().unwrap_or(MonoTime::ZERO)
        };
        self.groups().map(of_group).min().unwrap_or(MonoTime::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(numbers: &[u32]) -> Vec<Voter> {
        let voter = |n: &u32| Voter {
            node: NodeId(*n),
            store: 0,
            address: String::new(),
        };
        numbers.iter().map(voter).collect()
    }

    fn subsets(of: &[NodeId]) -> Vec<Vec<NodeId>> {
        let pick = |bits: u32| {
            let picked = of.iter().enumerate();
            let picked = picked.filter(|(i, _)| bits & (1 << i) != 0);
            picked.map(|(_, node)| *node).collect()
        };
        (0..1_u32 << of.len()).map(pick).collect()
    }

    /// H10: quorums of the sets before and after do not always meet; each meets every quorum of the joint set.
    #[test]
    fn joint_quorums_meet_those_before_and_after() {
        let (old, new) = (nodes(&[1, 2, 3]), nodes(&[1, 2, 4]));
        let before = WitnessSet::first(old.clone());
        let after = WitnessSet::first(new.clone());
        let joint = WitnessSet {
            next: Some(new),
            ..WitnessSet::first(old)
        };
        let every = subsets(&joint.nodes());
        assert_eq!(joint.nodes().len(), 4);
        let quorums = |set: &WitnessSet| -> Vec<Vec<NodeId>> {
            let enough = |part: &&Vec<NodeId>| set.is_quorum(|node| part.contains(&node));
            every.iter().filter(enough).cloned().collect()
        };
        let meet = |a: &[NodeId], b: &[NodeId]| a.iter().any(|node| b.contains(node));
        let apart = quorums(&before)
            .iter()
            .any(|a| quorums(&after).iter().any(|b| !meet(a, b)));
        assert!(apart, "in one step a lease and a fence miss each other");
        for quorum in quorums(&joint) {
            assert!(quorums(&before).iter().all(|other| meet(other, &quorum)));
            assert!(quorums(&after).iter().all(|other| meet(other, &quorum)));
        }
    }

    #[test]
    fn a_quorum_ends_with_the_first_of_its_majorities() {
        let joint = WitnessSet {
            next: Some(nodes(&[1, 2, 4])),
            ..WitnessSet::first(nodes(&[1, 2, 3]))
        };
        let ends = |node: NodeId| match node.0 {
            1 => MonoTime(50),
            3 => MonoTime(40),
            4 => MonoTime(10),
            _ => MonoTime::ZERO,
        };
        assert_eq!(joint.quorum_end(ends), MonoTime(10));
        assert_eq!(WitnessSet::default().quorum_end(ends), MonoTime::ZERO);
    }

    #[test]
    fn sets_of_other_members_have_other_names() {
        let set = |numbers| WitnessSet::first(nodes(numbers)).tag;
        assert_eq!(set(&[1, 2, 3]), set(&[3, 1, 2]));
        assert_ne!(set(&[1, 2, 3]), set(&[1, 2, 4]));
        assert_ne!(set(&[1, 2, 3]), set(&[1, 2]));
    }
}
