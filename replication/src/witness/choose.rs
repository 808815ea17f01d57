//! The choice of a new primary: rules R6.4, R6.5 and the fold of R6.7. Pure, and tested over every small case.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_types::{
    Epoch, Lineage, LogPoint, Member, MemberKind, NodeId, PrimaryId, Register, VolumeId, VolumeName,
};

use super::forced::Loss;
use crate::message::{CopyId, SealAnswer, SuspectReason};
use crate::mistakes::{Mistake, Mistakes};
use crate::quorum::sight;

/// Seal answers by the copy that gave them, with its process instance.
pub(super) type Answers = BTreeMap<CopyId, (PrimaryId, SealAnswer)>;

/// The record that a promotion leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// The history in force afterwards.
    pub lineage: Lineage,
    /// The epoch that was ended.
    pub from_epoch: Epoch,
    /// Who acted in it.
    pub from: PrimaryId,
    /// The new epoch.
    pub epoch: Epoch,
    /// Who acts in it.
    pub primary: PrimaryId,
    /// Why.
    pub reason: SuspectReason,
    /// End of the chosen log: every acknowledged write lies at or below it.
    pub cut: LogPoint,
    /// Durable end of the log of each member that answered.
    pub answers: Vec<(NodeId, LogPoint)>,
    /// Registered members that did not answer.
    pub silent: Vec<NodeId>,
    /// Answers of registered, intact copies that show everything committed.
    pub sight_needed: usize,
    /// Witnesses that grant no lease of the ended epoch any more.
    pub fenced: Vec<NodeId>,
    /// Machines that were fenced from outside, and what the command wrote.
    pub external: BTreeMap<NodeId, String>,
    /// Members afterwards.
    pub members: Vec<NodeId>,
    /// Ack quorum afterwards.
    pub ack_quorum: u32,
    /// From the first question to the decision.
    pub took: Duration,
    /// What may be lost, if an operator forced it; otherwise nothing is.
    pub forced: Option<Loss>,
}

impl Certificate {
    /// The record of the step from `before` to `after`.
    pub(super) fn of(
        volume: VolumeId,
        before: &Register,
        after: &Register,
        reason: SuspectReason,
        answers: &Answers,
    ) -> Self {
        Self {
            volume,
            name: after.spec.name.clone(),
            lineage: after.lineage,
            from_epoch: before.epoch,
            from: before.primary,
            epoch: after.epoch,
            primary: after.primary,
            reason,
            cut: after.cut,
            answers: answers
                .values()
                .map(|(id, answer)| (id.node, answer.last))
                .collect(),
            silent: missing(before, answers),
            sight_needed: sight(before.members.len(), before.quorum()),
            fenced: Vec::new(),
            external: BTreeMap::new(),
            members: after.members.iter().map(|member| member.node).collect(),
            ack_quorum: after.ack_quorum,
            took: Duration::ZERO,
            forced: None,
        }
    }
}

/// Registered members that did not answer.
pub(super) fn missing(register: &Register, answers: &Answers) -> Vec<NodeId> {
    register
        .members
        .iter()
        .filter(|m| {
            !answers.contains_key(&CopyId {
                node: m.node,
                incarnation: m.incarnation,
            })
        })
        .map(|m| m.node)
        .collect()
}

/// What the answers allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// Not every committed entry is in sight yet.
    Blind { answers: usize, needed: usize },
    /// This one, with this end of the log.
    Chosen {
        primary: PrimaryId,
        cut: LogPoint,
        /// Registered members whose intact answers count.
        counted: usize,
    },
}

/// What decides among copies that hold the same end of the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    /// An operator, or the last primary when it handed over, asked for this one.
    pub(super) named: Option<NodeId>,
    /// These are left out if the others suffice.
    pub(super) avoid: BTreeSet<NodeId>,
    /// Members that stand where the last primary stood.
    pub(super) near: BTreeSet<NodeId>,
    /// The last primary, unless it gave the epoch up itself.
    pub(super) last: Option<NodeId>,
}

/// Chooses among the answers of registered members at one epoch, without those to be avoided if the others suffice: any
/// set that has everything committed in sight is as good as a larger one.
pub(super) fn choose(
    register: &Register,
    answers: &Answers,
    wishes: &Wishes,
    mistakes: Mistakes,
) -> Choice {
    let avoid = &wishes.avoid;
    if avoid
        .iter()
        .any(|node| answers.keys().any(|copy| copy.node == *node))
    {
        let mut others = answers.clone();
        others.retain(|copy, _| !avoid.contains(&copy.node));
        let choice = choose_among(register, &others, wishes, mistakes);
        if matches!(choice, Choice::Chosen { .. }) {
            return choice;
        }
    }
    choose_among(register, answers, wishes, mistakes)
}

fn choose_among(
    register: &Register,
    answers: &Answers,
    wishes: &Wishes,
    mistakes: Mistakes,
) -> Choice {
    let any_copy = mistakes.has(Mistake::IncarnationIgnored);
    let registered = |copy: &CopyId| {
        register
            .members
            .iter()
            .find(|m| m.node == copy.node && (any_copy || m.incarnation == copy.incarnation))
    };
    let known: Vec<(&Member, &PrimaryId, &SealAnswer)> = answers
        .iter()
        .filter_map(|(copy, (id, answer))| registered(copy).map(|member| (member, id, answer)))
        .collect();
    let damage_counts = mistakes.has(Mistake::DamageCountsAsSight);
    let sound = |answer: &SealAnswer| (!answer.damaged || damage_counts) && !answer.rebuilding;
    let all_intact =
        known.len() == register.members.len() && known.iter().all(|(_, _, answer)| sound(answer));
    let counts = |answer: &SealAnswer| {
        // H12: a batch in doubt may have been acknowledged, in an epoch that nothing here tells. Only the word of every
        // registered member, each with an intact log, settles that nobody has it.
        sound(answer) && (answer.doubt.is_none() || all_intact)
    };
    let counted: Vec<_> = known
        .iter()
        .filter(|(_, _, answer)| counts(answer))
        .collect();
    let needed = sight(register.members.len(), register.quorum());
    let blind = Choice::Blind {
        answers: counted.len(),
        needed,
    };
    if counted.len() < needed {
        return blind;
    }
    let by_lsn = mistakes.has(Mistake::ChoiceByLsnAlone);
    let key = |point: LogPoint| {
        if by_lsn {
            (Epoch::ZERO, point.lsn)
        } else {
            (point.epoch, point.lsn)
        }
    };
    let Some(cut) = counted
        .iter()
        .map(|(_, _, answer)| answer.last)
        .max_by_key(|point| key(*point))
    else {
        return blind;
    };
    let able = |member: &Member, answer: &SealAnswer| {
        member.kind == MemberKind::Full && !answer.damaged && answer.last == cut
    };
    let best = counted
        .iter()
        .filter(|(member, _, answer)| able(member, answer))
        .min_by_key(|(member, _, answer)| rank(register, wishes, member.node, answer));
    match best {
        Some((_, id, _)) => Choice::Chosen {
            primary: **id,
            cut,
            counted: counted.len(),
        },
        None => blind,
    }
}

/// R6.5, the least is best: who is fit; whom somebody named; who can commit; the policy's order; the zone of the last primary; the
/// last primary itself; and, so that it is never chance, who has more links, and the order of the placement.
fn rank(
    register: &Register,
    wishes: &Wishes,
    node: NodeId,
    answer: &SealAnswer,
) -> impl Ord + use<> {
    let members = register.members.iter().filter(|m| m.node != node);
    let reached = members.filter(|m| answer.reachable.contains(&m.node));
    let alone = reached.count() + 1 < register.quorum();
    let at = |list: &[NodeId]| list.iter().position(|n| *n == node).unwrap_or(usize::MAX);
    (
        // Even if sight needs its answer, somebody fit may hold the same.
        wishes.avoid.contains(&node),
        wishes.named != Some(node),
        alone,
        at(&register.policy.prefer),
        !wishes.near.contains(&node),
        wishes.last != Some(node),
        Reverse(answer.reachable.len()),
        at(&register.policy.placement),
    )
}

/// Members and ack quorum of the new epoch: those of the old one, or, if too few answered to commit anything, folded
/// to copies that hold the chosen end itself (C3).
pub(super) fn fold(
    register: &Register,
    answers: &Answers,
    cut: LogPoint,
    mistakes: Mistakes,
) -> (Vec<Member>, u32) {
    let answered = |m: &Member| {
        answers.get(&CopyId {
            node: m.node,
            incarnation: m.incarnation,
        })
    };
    let alive = register
        .members
        .iter()
        .filter(|m| answered(m).is_some())
        .count();
    let unchanged = (register.members.clone(), register.ack_quorum);
    if mistakes.has(Mistake::PromotionDropsSilent) {
        let kept: Vec<Member> = register
            .members
            .iter()
            .filter(|m| answered(m).is_some())
            .copied()
            .collect();
        let quorum = u32::try_from(register.policy.ack.quorum(kept.len())).unwrap_or(u32::MAX);
        return (kept, quorum);
    }
    if alive >= register.quorum() {
        return unchanged;
    }
    let holding: Vec<Member> = register
        .members
        .iter()
        .filter(|m| {
            answered(m).is_some_and(|(_, a)| {
                a.last == cut && !a.damaged && !a.rebuilding && a.doubt.is_none()
            })
        })
        .copied()
        .collect();
    let full = holding
        .iter()
        .filter(|m| m.kind == MemberKind::Full)
        .count();
    let quorum = register.policy.ack.quorum(holding.len());
    let min = usize::try_from(register.policy.min_copies)
        .unwrap_or(usize::MAX)
        .max(1);
    if full >= min && quorum <= holding.len() && !holding.is_empty() {
        (holding, u32::try_from(quorum).unwrap_or(u32::MAX))
    } else {
        unchanged
    }
}
