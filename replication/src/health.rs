//! Whether a copy's disk and commit path have proved themselves since they were last overdue (R7.1), and whom a member
//! cannot reach (H3). Both go into the beats; the witnesses judge (`witness/health.rs`).
//!
//! *Invariant*: from the moment at which this copy was overdue until [`GOOD_SYNCS`] syncs in a row have completed within
//! bounds, `due` is not zero.
//!
//! *What breaks without it*: A's disk hangs in every other sync. A sync takes too long, so A loses its lease and B is
//! promoted. A's sync ends, nothing is under way on A, and its beats say no more than that nothing is overdue. B's process
//! dies; A, B and C answer with equal logs; A is chosen, hangs in its first sync, and the volume stands still for as long
//! as it takes to notice, every time.
//!
//! *Why it ends*: a copy that owes syncs and has nothing to write makes them itself, by storing its seal anew: this
//! changes nothing and takes the path that every promotion takes. A disk that works is thus well again soon, with traffic
//! or without; one that hangs hangs in such a sync, and stays unwell. A full disk keeps the write that found no room,
//! so nothing else is tried and it stays unwell, too.

use std::collections::VecDeque;
use std::time::Duration;

use mainstay_types::{MonoTime, NodeId};

use crate::journal::OpId;
use crate::member::{LogWrite, Member, Output, State};
use crate::progress::Progress;

/// So many syncs in a row, each within bounds, prove that a disk works again.
pub(crate) const GOOD_SYNCS: u32 = 5;

/// Time between two syncs that only prove something.
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// What this process has seen of one copy's disk.
#[derive(Debug, Default)]
pub(crate) struct DiskHealth {
    /// Writes under way by the last of those that were begun together, and when.
    begun: VecDeque<(OpId, MonoTime)>,
    /// The last write seen to begin.
    issued: OpId,
    /// Good syncs in a row that are missing.
    due: u32,
    /// No probe before this time.
    probe_at: MonoTime,
}

impl DiskHealth {
    /// Takes note of the writes begun and completed by now.
    fn observe(&mut self, now: MonoTime, limit: Duration, issued: OpId, completed: OpId) {
        if issued > self.issued {
            self.issued = issued;
            self.begun.push_back((issued, now));
        }
        let mut oldest = None;
        while let Some((op, since)) = self.begun.front().copied()
            && op <= completed
        {
            self.begun.pop_front();
            oldest.get_or_insert(since);
        }
        match oldest {
            Some(since) if now.since(since) > limit => self.overdue(),
            Some(_) => {
                self.due = self.due.saturating_sub(1);
                self.probe_at = now + PROBE_EVERY;
            }
            None => {}
        }
        if let Some((_, since)) = self.begun.front()
            && now.since(*since) > limit
        {
            self.overdue();
        }
    }

    fn overdue(&mut self) {
        self.due = GOOD_SYNCS;
    }
}

impl Member {
    /// The disk, or the thread that waits for it, stood still for too long.
    pub(crate) fn handle_stalled(&mut self) {
        self.health.overdue();
    }

    /// Counts syncs, and makes some if they are owed and nothing else is to be written.
    pub(crate) fn close_health(&mut self, now: MonoTime) {
        let limit = self.config.overdue_after;
        let (issued, completed) = (self.journal.issued(), self.journal.completed());
        self.health.observe(now, limit, issued, completed);
        if self.acting(now).is_some_and(|(_, age)| age > limit) {
            // What others do not acknowledge, no sync here can prove.
            return self.health.overdue();
        }
        if self.health.due == 0 || !self.journal.is_idle() || self.refusal().is_some() {
            return;
        }
        if now < self.health.probe_at {
            return self.wake_at(self.health.probe_at);
        }
        let epoch = self.sealed;
        let op = self.journal.seal(epoch);
        self.health.observe(now, limit, op, completed);
        let write = LogWrite::Seal { epoch };
        self.out.push_back(Output::Persist { op, write });
    }

    /// Good syncs in a row that are missing until this copy counts as well again.
    #[must_use]
    pub fn syncs_due(&self) -> u32 {
        self.health.due
    }

    /// Whom this copy cannot reach, if that says something of the primary: of a primary, the copies that do not answer; of
    /// another member, the primary that it does not hear or has no link to, and the members that it has no link to.
    #[must_use]
    pub fn unreachable(&self, now: MonoTime) -> Vec<NodeId> {
        let (primary, unheard) = match &self.state {
            State::Primary(primary) => {
                let silent = |p: &Progress| p.is_silent(now, self.config.heartbeat);
                let copies = primary.progress.iter();
                return copies
                    .filter(|(_, p)| silent(p))
                    .map(|(node, _)| *node)
                    .collect();
            }
            State::Following(following) => {
                let unheard = now.since(following.last_heard) > self.config.overdue_after;
                (following.primary.node, unheard)
            }
            // Not heard since the start, or since the seal of a promotion that failed.
            State::Idle => match &self.register {
                Some(register) if register.primary.node != self.me.node => {
                    (register.primary.node, false)
                }
                _ => return Vec::new(),
            },
        };
        if self.refusal().is_some() || (!unheard && self.reachable.contains(&primary)) {
            return Vec::new();
        }
        let members = self.register.iter().flat_map(|register| &register.members);
        let others = members
            .map(|member| member.node)
            .filter(|node| *node != primary && *node != self.me.node)
            .filter(|node| !self.reachable.contains(node));
        std::iter::once(primary).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::{Epoch, Incarnation, Instance, Lineage, Lsn, NodeId, PrimaryId, VolumeId};

    use super::*;
    use crate::config::MemberConfig;
    use crate::member::{Input, MemberStart};
    use crate::message::{Append, MemberEnvelope, MemberMessage};
    use crate::runs::EpochRuns;

    const MILLI: u64 = 1_000_000;

    fn node(node: u32) -> PrimaryId {
        PrimaryId {
            node: NodeId(node),
            incarnation: Incarnation(u64::from(node)),
            instance: Instance(u64::from(node)),
        }
    }

    /// A replica whose disk answers when the test says so.
    struct Stage {
        now: MonoTime,
        member: Member,
        /// Writes under way.
        writes: Vec<(OpId, LogWrite)>,
    }

    impl Stage {
        fn new() -> Self {
            let start = MemberStart {
                me: node(2),
                volume: VolumeId(7),
                lineage: Lineage(5),
                witnesses: std::sync::Arc::new(crate::WitnessSet::of(&[NodeId(9)])),
                log: EpochRuns::empty(mainstay_types::LogPoint::ZERO),
                sealed: Epoch(1),
                commit: Lsn::ZERO,
                doubt: None,
                damaged: false,
                rebuilding: false,
                seed: 3,
            };
            let now = MonoTime(1_000 * MILLI);
            let member = Member::new(now, MemberConfig::default(), start);
            let mut stage = Self {
                now,
                member,
                writes: Vec::new(),
            };
            stage.give(0, Input::LinkUp { node: NodeId(1) });
            stage
        }

        /// After so many milliseconds.
        fn give(&mut self, after: u64, input: Input) {
            self.now = MonoTime(self.now.0 + after * MILLI);
            self.member.handle(self.now, input);
            while let Some(output) = self.member.poll_output() {
                if let Output::Persist { op, write } = output {
                    self.writes.push((op, write));
                }
            }
        }

        fn append(&mut self, lsn: u64) {
            let append = Append {
                epoch: Epoch(1),
                prev: match lsn {
                    1 => mainstay_types::LogPoint::ZERO,
                    _ => mainstay_types::LogPoint {
                        epoch: Epoch(1),
                        lsn: Lsn(lsn - 1),
                    },
                },
                first: Lsn(lsn),
                last: Lsn(lsn),
                runs: vec![(Epoch(1), Lsn(lsn))],
                commit: Lsn::ZERO,
                primary_last: Lsn(lsn),
                register_version: 1,
                lacked_from: Lsn::ZERO,
            };
            let envelope = MemberEnvelope {
                volume: VolumeId(7),
                lineage: Lineage(5),
                from: node(1),
                body: MemberMessage::Append(append),
            };
            self.give(0, Input::Message(envelope));
        }

        /// The disk completes everything under way.
        fn sync(&mut self, after: u64) {
            let (op, _) = self.writes.pop().expect("something under way");
            self.writes.clear();
            self.give(after, Input::Persisted(op));
        }
    }

    /// The story of this file's head: what ends late leaves nothing overdue, and proves nothing.
    #[test]
    fn a_disk_that_was_overdue_owes_good_syncs_and_makes_them_without_traffic() {
        let mut stage = Stage::new();
        stage.append(1);
        assert_eq!(stage.member.syncs_due(), 0);
        stage.sync(1_500);
        assert_eq!(stage.member.syncs_due(), GOOD_SYNCS, "it ended late");
        for missing in (0..GOOD_SYNCS).rev() {
            stage.give(60, Input::Tick);
            let [(_, write)] = stage.writes[..] else {
                panic!("one probe at a time: {:?}", stage.writes);
            };
            assert_eq!(write, LogWrite::Seal { epoch: Epoch(1) });
            stage.sync(2);
            assert_eq!(stage.member.syncs_due(), missing);
        }
        stage.give(200, Input::Tick);
        assert_eq!(stage.writes, [], "nothing is owed any more");
    }

    #[test]
    fn one_late_sync_begins_the_count_anew_and_traffic_counts() {
        let mut stage = Stage::new();
        stage.give(0, Input::Stalled);
        for lsn in 1..GOOD_SYNCS {
            stage.append(u64::from(lsn));
            stage.sync(1);
        }
        assert_eq!(stage.member.syncs_due(), 1);
        stage.append(u64::from(GOOD_SYNCS));
        stage.give(1_001, Input::Tick);
        assert_eq!(
            stage.member.syncs_due(),
            GOOD_SYNCS,
            "before it ends: it may never"
        );
        stage.sync(1);
        assert_eq!(stage.member.syncs_due(), GOOD_SYNCS);
    }

    #[test]
    fn a_replica_reports_a_primary_that_it_does_not_hear_or_has_no_link_to() {
        let mut stage = Stage::new();
        stage.append(1);
        stage.sync(1);
        assert_eq!(stage.member.unreachable(stage.now), []);
        stage.give(1_001, Input::Tick);
        assert_eq!(stage.member.unreachable(stage.now), [NodeId(1)]);
        stage.append(2);
        assert_eq!(stage.member.unreachable(stage.now), []);
        stage.give(1, Input::LinkLost { node: NodeId(1) });
        assert_eq!(stage.member.unreachable(stage.now), [NodeId(1)]);
    }
}
