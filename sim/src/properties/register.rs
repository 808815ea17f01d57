//! Property 3: one primary an epoch, and one chain of register values.
//!
//! A value is decided once a quorum of the witnesses has durably accepted it under one ballot; this model sees that
//! before any process can.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_replication::WitnessSet;
use mainstay_replication::message::Ballot;
use mainstay_types::{Epoch, NodeId, PrimaryId, Register};

use super::{Check, Property, broken};

/// Decided values by version.
#[derive(Debug)]
pub struct Chain {
    /// By ballot: the set under which it was made, and who accepted its value.
    accepted: BTreeMap<Ballot, (WitnessSet, BTreeSet<NodeId>)>,
    decided: BTreeMap<u64, Register>,
}

impl Chain {
    pub(super) fn new() -> Self {
        Self {
            accepted: BTreeMap::new(),
            decided: BTreeMap::new(),
        }
    }

    /// A witness that knew this `set` durably accepted a value.
    ///
    /// # Errors
    /// It is decided now, and does not fit the chain.
    pub fn accepted(
        &mut self,
        witness: NodeId,
        ballot: Ballot,
        value: &Register,
        set: &WitnessSet,
    ) -> Check {
        let made = || (set.clone(), BTreeSet::new());
        let (set, by) = self.accepted.entry(ballot).or_insert_with(made);
        by.insert(witness);
        if !set.is_quorum(|node| by.contains(&node)) {
            return Ok(());
        }
        match self.decided.get(&value.version) {
            Some(known) if known.id == value.id => return Ok(()),
            Some(known) => {
                return broken(
                    Property::OnePrimary,
                    format!(
                        "two register values of version {}: {known:?} and {value:?}",
                        value.version
                    ),
                );
            }
            None => {}
        }
        if let Some((_, before)) = self.decided.range(..value.version).next_back() {
            if before.version + 1 == value.version {
                check_step(before, value)?;
            } else if before.epoch > value.epoch {
                return broken(
                    Property::OnePrimary,
                    format!("register epoch fell from {before:?} to {value:?}"),
                );
            }
        }
        if let Some((_, after)) = self.decided.range(value.version + 1..).next()
            && value.version + 1 == after.version
        {
            check_step(value, after)?;
        }
        self.decided.insert(value.version, value.clone());
        Ok(())
    }

    /// The newest decided value.
    #[must_use]
    pub fn newest(&self) -> Option<&Register> {
        self.decided.values().next_back()
    }

    /// The newest decided value of an epoch.
    #[must_use]
    pub fn last_of(&self, epoch: Epoch) -> Option<&Register> {
        self.decided.values().rev().find(|r| r.epoch == epoch)
    }

    pub(super) fn names(&self, epoch: Epoch, primary: PrimaryId) -> bool {
        self.last_of(epoch).is_some_and(|r| r.primary == primary)
    }

    /// The first decided value of each later epoch.
    pub(super) fn after(&self, epoch: Epoch) -> impl Iterator<Item = &Register> {
        let mut last = epoch;
        self.decided.values().filter(move |register| {
            let newer = register.epoch > last;
            last = last.max(register.epoch);
            newer
        })
    }

    /// How often the primary changed.
    #[must_use]
    pub fn promotions(&self) -> u64 {
        let epochs: BTreeSet<Epoch> = self.decided.values().map(|r| r.epoch).collect();
        epochs.len().saturating_sub(1) as u64
    }

    /// How many values were decided.
    #[must_use]
    pub fn len(&self) -> usize {
        self.decided.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.decided.is_empty()
    }
}

/// One value after the other: only a promotion changes the primary, and then only drops members; only the primary
/// changes members, one at a time.
fn check_step(before: &Register, after: &Register) -> Check {
    let kept = after
        .members
        .iter()
        .filter(|m| before.members.contains(m))
        .count();
    let (added, removed) = (after.members.len() - kept, before.members.len() - kept);
    let fits = if after.epoch == before.epoch {
        after.primary == before.primary && added + removed <= 1
    } else {
        after.epoch > before.epoch && added == 0
    };
    let primary_in = after
        .members
        .iter()
        .any(|m| (m.node, m.incarnation) == (after.primary.node, after.primary.incarnation));
    if fits && primary_in && after.lineage == before.lineage {
        Ok(())
    } else {
        broken(
            Property::OnePrimary,
            format!("register value {after:?} does not follow from {before:?}"),
        )
    }
}
