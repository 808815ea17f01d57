//! Linearizable reads: rule R7.4. With a lease at once; without, after a quorum has confirmed the epoch.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_types::{Epoch, Instance, MonoTime, NodeId, PrimaryId};

use crate::member::{Member, Output, State};
use crate::message::{CopyId, MemberMessage, RefuseReason};
use crate::mistakes::Mistake;

/// Reads that wait.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Arrived, and not yet covered by a round.
    queued: Vec<u64>,
    /// Covered by the round under way: every one arrived before it was asked.
    covered: Vec<u64>,
    round: u64,
    confirmed: BTreeMap<NodeId, CopyId>,
    asked_at: Option<MonoTime>,
}

impl Reads {
    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> {
        self.covered
            .iter()
            .chain(&self.queued)
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
    }
}

impl Member {
    pub(crate) fn handle_read(&mut self, now: MonoTime, id: u64) {
        let at = self.commit;
        let leased = self.holds_lease(now);
        let State::Primary(primary) = &mut self.state else {
            return self.out.push_back(Output::ReadRefused { id });
        };
        if primary.serves(at) && leased {
            self.out.push_back(Output::ReadReady { id, at });
        } else {
            primary.reads.queued.push(id);
        }
    }

    /// Whether the lease of the epoch in which this member acts runs.
    #[must_use]
    pub fn holds_lease(&self, now: MonoTime) -> bool {
        let State::Primary(primary) = &self.state else {
            return false;
        };
        let named = self.lease_epoch == primary.epoch
            || self.config.mistakes.has(Mistake::GrantsWithoutNames);
        let runs = now < self.lease_until
            || (self.config.mistakes.has(Mistake::ReadAfterLease)
                && self.lease_until > MonoTime::ZERO);
        named && runs
    }

    /// When the lease of the epoch in which this member acts ends, or ended; zero if it acts in none or had no lease yet.
    #[must_use]
    pub fn lease_until(&self) -> MonoTime {
        match &self.state {
            State::Primary(primary) if primary.epoch == self.lease_epoch => self.lease_until,
            _ => MonoTime::ZERO,
        }
    }

    pub(crate) fn handle_confirm(&mut self, from: PrimaryId, epoch: Epoch, round: u64) {
        if self.sealed > epoch {
            return self.refuse(from.node, epoch, RefuseReason::Sealed);
        }
        if let Some(reason) = self.refusal() {
            return self.refuse(from.node, epoch, reason);
        }
        self.send(
            from.node,
            MemberMessage::Confirmed {
                epoch,
                instance: from.instance,
                round,
            },
        );
    }

    pub(crate) fn handle_confirmed(
        &mut self,
        now: MonoTime,
        from: PrimaryId,
        epoch: Epoch,
        instance: Instance,
        round: u64,
    ) {
        let me = self.me.instance;
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        if primary.epoch != epoch || instance != me || round != primary.reads.round {
            return;
        }
        let copy = CopyId {
            node: from.node,
            incarnation: from.incarnation,
        };
        primary.reads.confirmed.insert(from.node, copy);
        if let Some(progress) = primary.progress.get_mut(&from.node) {
            progress.last_heard = now;
        }
    }

    /// Serves what the lease or the round allows, and asks the next round.
    pub(crate) fn close_reads(&mut self, now: MonoTime) {
        let (commit, leased, own) = (self.commit, self.holds_lease(now), self.copy());
        let retry = self.config.heartbeat;
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        if !primary.serves(commit) {
            return;
        }
        let reads = &mut primary.reads;
        let confirmed = |members: &[mainstay_types::Member], k: usize| {
            let yes = members.iter().filter(|m| {
                let copy = CopyId {
                    node: m.node,
                    incarnation: m.incarnation,
                };
                copy == own || reads.confirmed.get(&m.node) == Some(&copy)
            });
            yes.count() >= k
        };
        let round_done = !reads.covered.is_empty()
            && confirmed(&primary.register.members, primary.register.quorum())
            && primary
                .joint
                .as_ref()
                .is_none_or(|joint| confirmed(&joint.members, joint.quorum));
        if round_done || leased {
            let mut ready = std::mem::take(&mut reads.covered);
            reads.asked_at = None;
            if leased {
                ready.append(&mut reads.queued);
            }
            self.out.extend(
                ready
                    .into_iter()
                    .map(|id| Output::ReadReady { id, at: commit }),
            );
        }
        if reads.covered.is_empty() && !reads.queued.is_empty() {
            reads.covered = std::mem::take(&mut reads.queued);
            reads.round += 1;
            reads.confirmed.clear();
            reads.asked_at = None;
        }
        if reads.covered.is_empty() {
            return;
        }
        if reads.asked_at.is_none_or(|at| now >= at + retry) {
            reads.asked_at = Some(now);
            let message = MemberMessage::Confirm {
                epoch: primary.epoch,
                round: reads.round,
            };
            let nodes: BTreeSet<NodeId> = primary.progress.keys().copied().collect();
            self.out.extend(nodes.into_iter().map(|to| Output::Send {
                to,
                message: message.clone(),
            }));
        }
        self.wake_at(now + retry);
    }
}
