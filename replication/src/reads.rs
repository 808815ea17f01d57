//! Linearizable reads: rule R7.4. With a lease at once; without, or where no clock is to be relied upon, after a quorum has
//! confirmed the epoch.

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
        let leased = self.reads_by_lease(now);
        let State::Primary(primary) = &mut self.state else {
            return self.out.push_back(Output::ReadRefused { id });
        };
        if primary.serves(at) && leased {
            self.out.push_back(Output::ReadReady { id, at });
        } else {
            primary.reads.queued.push(id);
        }
    }

    /// Nobody waits for these any more. Without this, clients that come and go while no quorum answers would fill the memory.
    pub(crate) fn handle_reads_gone(&mut self, ids: &BTreeSet<u64>) {
        if let State::Primary(primary) = &mut self.state {
            primary.reads.queued.retain(|id| !ids.contains(id));
            primary.reads.covered.retain(|id| !ids.contains(id));
        }
    }

    fn reads_by_lease(&self, now: MonoTime) -> bool {
        !self.config.confirm_reads && self.holds_lease(now)
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
        let (commit, leased, own) = (self.commit, self.reads_by_lease(now), self.copy());
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

#[cfg(test)]
mod tests {
    use mainstay_types::{
        Incarnation, Lineage, LogPoint, Lsn, Member as Registered, MemberKind, Policy, Register,
        RegisterId, VolumeKind, VolumeSpec,
    };

    use super::*;
    use crate::config::MemberConfig;
    use crate::member::{Input, MemberStart};
    use crate::message::{Ack, MemberEnvelope};
    use crate::runs::EpochRuns;

    const EPOCH: Epoch = Epoch(1);
    const LINEAGE: Lineage = Lineage(5);

    fn process(node: u32) -> PrimaryId {
        PrimaryId {
            node: NodeId(node),
            incarnation: Incarnation(u64::from(node)),
            instance: Instance(u64::from(node)),
        }
    }

    fn register() -> Box<Register> {
        let member = |node| Registered {
            node: NodeId(node),
            incarnation: process(node).incarnation,
            kind: MemberKind::Full,
        };
        Box::new(Register {
            id: RegisterId(1),
            version: 1,
            lineage: LINEAGE,
            log_lineage: LINEAGE,
            epoch: EPOCH,
            primary: process(1),
            members: vec![member(1), member(2)],
            ack_quorum: 2,
            policy: Policy::for_placement(vec![NodeId(1), NodeId(2)]),
            cut: LogPoint::ZERO,
            spec: VolumeSpec {
                name: "ledger".parse().expect("a good name"),
                kind: VolumeKind::Log,
            },
            deleted: false,
        })
    }

    /// A primary of two copies with a lease without end; the other copy answers when the test says so.
    struct Pair {
        member: Member,
        ready: Vec<u64>,
        rounds: Vec<u64>,
    }

    impl Pair {
        fn new(confirm_reads: bool) -> Self {
            let config = MemberConfig {
                confirm_reads,
                ..MemberConfig::default()
            };
            let start = MemberStart {
                me: process(1),
                volume: register().spec.name.id(),
                lineage: LINEAGE,
                witnesses: std::sync::Arc::new(crate::WitnessSet::of(&[NodeId(9)])),
                log: EpochRuns::empty(LogPoint::ZERO),
                sealed: Epoch::ZERO,
                commit: Lsn::ZERO,
                doubt: None,
                damaged: false,
                rebuilding: false,
                seed: 1,
            };
            let mut pair = Self {
                member: Member::new(MonoTime(0), config, start),
                ready: Vec::new(),
                rounds: Vec::new(),
            };
            pair.hear(9, MemberMessage::Seal { epoch: EPOCH });
            pair.hear(9, MemberMessage::Decided(register()));
            pair.handle(Input::Lease {
                epoch: EPOCH,
                until: MonoTime::MAX,
                silent: Vec::new(),
            });
            let ack = Ack {
                epoch: EPOCH,
                instance: process(1).instance,
                lsn: Lsn(1),
                rebuilding: false,
            };
            pair.hear(2, MemberMessage::Ack(ack));
            assert_eq!(pair.member.commit(), Lsn(1), "the epoch has begun");
            pair
        }

        fn handle(&mut self, input: Input) {
            self.member.handle(MonoTime(1), input);
            while let Some(output) = self.member.poll_output() {
                match output {
                    Output::Persist { op, .. } => {
                        self.member.handle(MonoTime(1), Input::Persisted(op));
                    }
                    Output::ReadReady { id, .. } => self.ready.push(id),
                    Output::Send {
                        message: MemberMessage::Confirm { round, .. },
                        ..
                    } => self.rounds.push(round),
                    _ => {}
                }
            }
        }

        fn hear(&mut self, node: u32, body: MemberMessage) {
            self.handle(Input::Message(MemberEnvelope {
                volume: self.member.volume,
                lineage: LINEAGE,
                from: process(node),
                body,
            }));
        }

        fn confirms(&mut self, round: u64) {
            let instance = process(1).instance;
            let body = MemberMessage::Confirmed {
                epoch: EPOCH,
                instance,
                round,
            };
            self.hear(2, body);
        }
    }

    #[test]
    fn a_lease_serves_at_once() {
        let mut pair = Pair::new(false);
        pair.handle(Input::Read { id: 7 });
        assert_eq!((pair.ready, pair.rounds), (vec![7], Vec::new()));
    }

    /// Clients ask while nobody confirms, and leave again.
    #[test]
    fn reads_that_nobody_waits_for_are_forgotten() {
        let mut pair = Pair::new(true);
        for id in [7, 8, 9] {
            pair.handle(Input::Read { id });
        }
        let ids = BTreeSet::from([7, 8]);
        pair.handle(Input::ReadsGone { ids });
        let State::Primary(primary) = &pair.member.state else {
            panic!("it leads");
        };
        assert_eq!(primary.reads.ids().collect::<Vec<_>>(), [9]);
        // The first round covers nothing any more; what came after it was asked needs the next.
        assert_eq!(pair.rounds, [1, 2]);
        pair.confirms(1);
        assert!(pair.ready.is_empty());
        pair.confirms(2);
        assert_eq!(pair.ready, [9]);
    }

    /// H9: the guest slept and no clock tells; its lease looks as if it ran, and the others have long promoted somebody.
    #[test]
    fn where_reads_are_confirmed_a_lease_serves_nothing() {
        let mut pair = Pair::new(true);
        pair.handle(Input::Read { id: 7 });
        assert_eq!((&*pair.ready, &*pair.rounds), (&[][..], &[1][..]));
        // One that comes while a round is under way is covered by the next one only.
        pair.handle(Input::Read { id: 8 });
        pair.confirms(1);
        assert_eq!((&*pair.ready, &*pair.rounds), (&[7][..], &[1, 2][..]));
        pair.confirms(1);
        assert_eq!(pair.ready, [7], "a late answer to an earlier round");
        pair.confirms(2);
        assert_eq!(pair.ready, [7, 8]);
    }
}
