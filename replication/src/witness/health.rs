//! Who is fit to hold a lease, or to be chosen: rules R6.5 and R7.1, and trap H3.
//!
//! A copy is *unwell* while its disk or commit path is overdue, and afterwards until it has proved that it works
//! (`Member::syncs_due`). A primary is *cut off* while so many members in good health do not reach it that nothing can be
//! committed without one of them, and they could commit without it.
//!
//! Both only ever give way to somebody better: an unwell or cut-off node loses its lease if enough others are well,
//! and is chosen if the others do not suffice. So nothing here can keep a volume from serving for ever: of a cluster of which
//! one member is left, or whose disks are all slow, that member or one of these serves. That costs safety nothing, as neither
//! rule vouches for what is durable where.

use std::collections::BTreeSet;

use mainstay_types::{MonoTime, NodeId, PrimaryId, Register, VolumeId};

use super::Witness;
use super::choose::{Answers, Wishes};
use crate::message::{ClaimHealth, CopyId};
use crate::quorum::sight;

impl Witness {
    /// Commit-path liveness: a beat is worth a lease only if the node can still write, unless nobody could do better.
    pub(super) fn is_well(&self, now: MonoTime, node: NodeId, register: &Register) -> bool {
        if self.is_cut_off(now, register) {
            return false;
        }
        let volume = register.spec.name.id();
        if !self.is_unwell(volume, node) {
            return true;
        }
        let others = register.members.iter().filter(|m| m.node != node);
        let able = others
            .filter(|m| self.hears(now, m.node) && !self.is_unwell(volume, m.node))
            .count();
        let min = usize::try_from(register.policy.min_copies).unwrap_or(usize::MAX);
        let k = register.quorum();
        able < sight(register.members.len(), k) || able < k.min(min)
    }

    /// H3, the part that no overdue commit shows: the registered primary reaches the witnesses and not its members, and
    /// nobody writes. An idle primary would keep its lease, and the first write would find out.
    ///
    /// It takes n - k + 1 members, without which nothing commits, and k, who commit without it, one of whom has links to so
    /// many of them. So the reports of a member that is itself alone depose nobody, and where everybody is alone, the
    /// primary stays: another one could do no better.
    fn is_cut_off(&self, now: MonoTime, register: &Register) -> bool {
        let (n, k) = (register.members.len(), register.quorum());
        let volume = register.spec.name.id();
        let reports: Vec<(NodeId, &ClaimHealth)> = register
            .members
            .iter()
            .map(|m| m.node)
            .filter(|node| self.hears(now, *node) && !self.is_unwell(volume, *node))
            .filter_map(|node| Some((node, self.health(volume, node)?)))
            .filter(|(_, health)| health.unreachable.contains(&register.primary.node))
            .collect();
        let reaches = |from: &ClaimHealth| {
            let others = reports.iter().map(|(node, _)| node);
            others
                .filter(|node| !from.unreachable.contains(node))
                .count()
        };
        // A reporter does not name itself, so it counts as reached.
        reports.len() >= k.max(sight(n, k)) && reports.iter().any(|(_, from)| reaches(from) >= k)
    }

    /// Whether the disk or the commit path of `node`'s copy is overdue, or has not proved itself since it was.
    fn is_unwell(&self, volume: VolumeId, node: NodeId) -> bool {
        let limit = u32::try_from(self.config.unwell_after.as_millis()).unwrap_or(u32::MAX);
        self.health(volume, node).is_some_and(|h| {
            h.sync_age_ms > limit || h.uncommitted_age_ms > limit || h.syncs_due > 0
        })
    }

    /// Members that should not be chosen if the others suffice.
    pub(super) fn unfit(
        &self,
        now: MonoTime,
        volume: VolumeId,
        register: &Register,
    ) -> BTreeSet<NodeId> {
        let nodes = register.members.iter().map(|m| m.node);
        let mut unfit: BTreeSet<NodeId> =
            nodes.filter(|node| self.is_unwell(volume, *node)).collect();
        if self.is_cut_off(now, register) {
            unfit.insert(register.primary.node);
        }
        unfit
    }

    /// What decides among copies that hold the same: who is asked for by name, who should be left out, who stands where
    /// the last primary stood, and who that was.
    pub(super) fn wishes(
        &self,
        now: MonoTime,
        volume: VolumeId,
        register: &Register,
        named: Option<NodeId>,
        unfit_before: &BTreeSet<NodeId>,
    ) -> Wishes {
        let mut avoid = self.unfit(now, volume, register);
        avoid.extend(unfit_before);
        let last = register.primary;
        let zone_of = |node: NodeId| self.nodes.get(&node).and_then(|seen| seen.zone.as_ref());
        let nodes = register.members.iter().map(|m| m.node);
        let near = zone_of(last.node).map_or_else(BTreeSet::new, |zone| {
            nodes.filter(|node| zone_of(*node) == Some(zone)).collect()
        });
        let gave_up = self
            .grants
            .get(&volume)
            .is_some_and(|grants| grants.has_released(register.epoch, last.instance));
        Wishes {
            named,
            avoid,
            near,
            last: (!gave_up).then_some(last.node),
        }
    }

    /// Whether a member that the policy puts before the chosen one is well and beats, and has not answered yet.
    pub(super) fn awaits_preferred(
        &self,
        now: MonoTime,
        register: &Register,
        answers: &Answers,
        chosen: &PrimaryId,
        avoid: &BTreeSet<NodeId>,
    ) -> bool {
        let before = register.policy.prefer.iter();
        let mut before = before.take_while(|node| **node != chosen.node);
        before.any(|node| {
            let member = register.members.iter().find(|m| m.node == *node);
            member.is_some_and(|m| {
                let (node, incarnation) = (m.node, m.incarnation);
                let answered = answers.contains_key(&CopyId { node, incarnation });
                !answered && !avoid.contains(&node) && self.hears(now, node)
            })
        })
    }

    fn health(&self, volume: VolumeId, node: NodeId) -> Option<&ClaimHealth> {
        let seen = self.nodes.get(&node)?;
        seen.unwell.iter().find(|health| health.volume == volume)
    }
}
