//! Following a primary: rule R3.

use mainstay_types::{Epoch, LogPoint, Lsn, MonoTime, NodeId, PrimaryId};

use crate::journal::Durable;
use crate::member::{LogWrite, Member, Output, State};
use crate::message::{Ack, Append, MemberMessage, RefuseReason};
use crate::mistakes::Mistake;

/// The primary that a replica follows.
#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) epoch: Epoch,
    pub(crate) primary: PrimaryId,
    /// Prefix of the log compared with that primary's in this epoch. Acks and commit points reach no further (C6).
    pub(crate) matched: Lsn,
    /// Acknowledged last; none before the first.
    acked: Option<Lsn>,
    /// An answer is due even if nothing new is durable.
    answer: bool,
    /// Once matched and durable up to here, nothing that was acknowledged before the restart can be missing: the
    /// primary's last entry when it was first heard.
    doubt_ends: Lsn,
    /// What no copy may give up begins here, as that primary said last.
    pub(crate) lacked_from: Lsn,
    pub(crate) last_heard: MonoTime,
}

impl Member {
    pub(crate) fn handle_append(&mut self, now: MonoTime, from: PrimaryId, append: &Append) {
        let epoch = append.epoch;
        if epoch < self.sealed && !self.config.mistakes.has(Mistake::AckAfterSeal) {
            return self.refuse(from.node, epoch, RefuseReason::Sealed);
        }
        if let Some(reason) = self.refusal() {
            return self.refuse(from.node, epoch, reason);
        }
        if !self.follow(now, from, append) {
            return;
        }
        if !self.holds(append.prev) {
            let hint = self
                .log
                .point(append.prev.lsn)
                .map_or_else(|| self.log.last(), |_| self.before(append.prev.lsn));
            let instance = from.instance;
            return self.send(
                from.node,
                MemberMessage::Mismatch {
                    epoch,
                    instance,
                    hint,
                },
            );
        }
        self.take_entries(append);
        let State::Following(following) = &mut self.state else {
            return;
        };
        following.matched = following.matched.max(append.prev.lsn).max(append.last);
        // An empty append asks who is there, and is answered at once, as is what is durable already. Entries on their way to
        // the disk are answered when they are durable: to say before that nothing has changed would only wake the primary.
        let empty = append.last < append.first;
        following.answer |= empty || append.last <= self.journal.durable().lsn();
        let mut reach = following.matched;
        if self.config.mistakes.has(Mistake::UnverifiedSuffix) {
            reach = self.log.last().lsn;
        }
        self.raise_commit(append.commit.min(reach).min(self.log.last().lsn));
    }

    /// Whether the entry named by `prev` is held. What is committed here and no longer on disk is held.
    fn holds(&self, prev: LogPoint) -> bool {
        self.log.point(prev.lsn) == Some(prev)
    }

    /// The last entry below `lsn`, where the primary should try next.
    fn before(&self, lsn: Lsn) -> LogPoint {
        let lsn = lsn.prev().max(self.log.base().lsn);
        self.log.point(lsn).unwrap_or_else(|| self.log.base())
    }

    /// Follows the sender in its epoch. False if something is wrong with that.
    fn follow(&mut self, now: MonoTime, from: PrimaryId, append: &Append) -> bool {
        let epoch = append.epoch;
        if let State::Primary(primary) = &self.state {
            if primary.epoch >= epoch {
                let text = format!(
                    "append of epoch {epoch} from node {} to its primary",
                    from.node
                );
                self.out.push_back(Output::Violation(text));
                return false;
            }
            self.step_down();
        }
        if let State::Following(following) = &mut self.state
            && following.epoch == epoch
        {
            if following.primary.instance != from.instance {
                if self.config.mistakes.has(Mistake::RestartedPrimaryGoesOn) {
                    following.primary = from;
                } else {
                    self.out.push_back(Output::Violation(format!(
                        "two instances act in epoch {epoch}: {} and {}",
                        following.primary.instance, from.instance
                    )));
                    return false;
                }
            }
            following.last_heard = now;
            // Appends overtake one another; what one member holds, it goes on holding.
            following.lacked_from = following.lacked_from.max(append.lacked_from);
            return true;
        }
        self.promise(epoch);
        self.state = State::Following(Following {
            epoch,
            primary: from,
            matched: Lsn::ZERO,
            acked: None,
            answer: false,
            doubt_ends: append.primary_last,
            lacked_from: append.lacked_from,
            last_heard: now,
        });
        true
    }

    /// Refuses every epoch below `epoch` from now on, and writes it down before anything that follows.
    pub(crate) fn promise(&mut self, epoch: Epoch) {
        if epoch > self.sealed {
            self.sealed = epoch;
            let op = self.journal.seal(epoch);
            self.out.push_back(Output::Persist {
                op,
                write: LogWrite::Seal { epoch },
            });
        }
    }

    /// Cuts at the first difference and appends what is new.
    fn take_entries(&mut self, append: &Append) {
        if append.last < append.first {
            return;
        }
        if self.config.mistakes.has(Mistake::TruncateBelowCommit)
            && append.last < self.log.last().lsn
        {
            self.cut(append.last);
        }
        let Some(from) = self.first_difference(append) else {
            return;
        };
        if from <= self.log.last().lsn {
            assert!(
                from > self.commit,
                "volume {}: entry {from} differs from the primary's, at or below the commit point {}",
                self.volume,
                self.commit
            );
            self.cut(from.prev());
        }
        let runs: Vec<_> = append
            .runs
            .iter()
            .enumerate()
            .filter(|(index, _)| {
                append
                    .runs
                    .get(index + 1)
                    .is_none_or(|(_, next)| *next > from)
            })
            .map(|(_, (epoch, first))| (*epoch, (*first).max(from)))
            .collect();
        self.log.extend(&runs, append.last);
        let op = self.journal.append(append.last);
        self.out.push_back(Output::Persist {
            op,
            write: LogWrite::Append {
                first: from,
                last: append.last,
            },
        });
    }

    /// First entry of the append that is not in the log as it is; none if all are.
    fn first_difference(&self, append: &Append) -> Option<Lsn> {
        let end = self.log.last().lsn;
        for (index, (epoch, first)) in append.runs.iter().enumerate() {
            let run_last = append
                .runs
                .get(index + 1)
                .map_or(append.last, |(_, next)| next.prev());
            let mut lsn = (*first).max(self.log.base().lsn.next());
            while lsn <= run_last {
                if self.log.point(lsn).is_none_or(|held| held.epoch != *epoch) {
                    return Some(lsn);
                }
                // The rest of this run that our log gives the same epoch need not be looked at one by one.
                let same = self.log.slice(lsn, end);
                lsn = same.get(1).map_or(end, |(_, next)| next.prev()).next();
            }
        }
        None
    }

    fn cut(&mut self, after: Lsn) {
        let after = after.max(self.log.base().lsn);
        self.log.truncate(after);
        if self.config.mistakes.has(Mistake::TruncateBelowCommit) {
            self.commit = self.commit.min(after);
        }
        let op = self.journal.cut(after);
        self.out.push_back(Output::Persist {
            op,
            write: LogWrite::Cut { after },
        });
    }

    pub(crate) fn refuse(&mut self, to: NodeId, epoch: Epoch, reason: RefuseReason) {
        let sealed = self.sealed;
        self.send(
            to,
            MemberMessage::Refused {
                epoch,
                sealed,
                reason,
            },
        );
    }

    /// Acknowledges what became durable.
    pub(crate) fn close_replica(&mut self, _now: MonoTime) {
        let durable = if self.config.mistakes.has(Mistake::AckBeforeSync) {
            self.journal.written()
        } else {
            self.journal.durable()
        };
        let late_ack = self.config.mistakes.has(Mistake::AckAfterSeal);
        let unverified = self.config.mistakes.has(Mistake::UnverifiedSuffix);
        let State::Following(following) = &mut self.state else {
            return;
        };
        if !late_ack && (self.journal.sealed() != following.epoch || self.sealed != following.epoch)
        {
            return;
        }
        let reach = if unverified {
            self.log.last().lsn
        } else {
            following.matched
        };
        let lsn = durable.lsn().min(reach);
        if self.doubt.is_some() && lsn >= following.doubt_ends {
            self.doubt = None;
        }
        if following.answer || following.acked.is_some_and(|acked| lsn > acked) {
            following.answer = false;
            following.acked = Some(lsn);
            let (to, epoch, instance) = (
                following.primary.node,
                following.epoch,
                following.primary.instance,
            );
            let ack = Ack::of(durable, reach, epoch, instance, self.rebuilding);
            self.send(to, MemberMessage::Ack(ack));
        }
    }
}

impl Ack {
    /// The only way to make one: from a completed sync, and no further than what was compared with the primary's.
    fn of(
        durable: Durable,
        matched: Lsn,
        epoch: Epoch,
        instance: mainstay_types::Instance,
        rebuilding: bool,
    ) -> Self {
        Self {
            epoch,
            instance,
            lsn: durable.lsn().min(matched),
            rebuilding,
        }
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::{Incarnation, Instance, Lineage, VolumeId};

    use super::*;
    use crate::config::MemberConfig;
    use crate::journal::OpId;
    use crate::member::{Input, MemberStart};
    use crate::message::MemberEnvelope;
    use crate::runs::EpochRuns;

    const EPOCH: Epoch = Epoch(1);

    fn process(node: u32) -> PrimaryId {
        PrimaryId {
            node: NodeId(node),
            incarnation: Incarnation(u64::from(node)),
            instance: Instance(u64::from(node)),
        }
    }

    fn replica() -> Member {
        let start = MemberStart {
            me: process(2),
            volume: VolumeId(7),
            lineage: Lineage(1),
            witnesses: std::sync::Arc::new(crate::WitnessSet::of(&[NodeId(11)])),
            log: EpochRuns::empty(LogPoint::ZERO),
            sealed: Epoch::ZERO,
            commit: Lsn::ZERO,
            doubt: None,
            damaged: false,
            rebuilding: false,
            seed: 1,
        };
        Member::new(MonoTime(0), MemberConfig::default(), start)
    }

    /// Entries `first..=last` of the only epoch; none if `last` is below `first`.
    fn append(first: u64, last: u64) -> Input {
        let prev = LogPoint {
            epoch: if first == 1 { Epoch::ZERO } else { EPOCH },
            lsn: Lsn(first - 1),
        };
        let runs = (last >= first).then_some((EPOCH, Lsn(first)));
        let append = Append {
            epoch: EPOCH,
            prev,
            first: Lsn(first),
            last: Lsn(last),
            runs: runs.into_iter().collect(),
            commit: Lsn::ZERO,
            primary_last: Lsn(last),
            register_version: 1,
            lacked_from: Lsn::ZERO,
        };
        Input::Message(MemberEnvelope {
            volume: VolumeId(7),
            lineage: Lineage(1),
            from: process(1),
            body: MemberMessage::Append(append),
        })
    }

    /// Takes `input`; the positions acknowledged, and the last write asked for.
    fn handle(member: &mut Member, input: Input) -> (Vec<u64>, Option<OpId>) {
        let (mut acks, mut last) = (Vec::new(), None);
        member.handle(MonoTime(1), input);
        while let Some(output) = member.poll_output() {
            match output {
                Output::Send {
                    message: MemberMessage::Ack(ack),
                    ..
                } => acks.push(ack.lsn.0),
                Output::Persist { op, .. } => last = Some(op),
                _ => {}
            }
        }
        (acks, last)
    }

    #[test]
    fn entries_are_answered_once_and_when_they_are_durable() {
        let mut member = replica();
        let (acks, seal) = handle(&mut member, append(1, 0));
        assert!(acks.is_empty(), "the seal is not durable yet");
        let seal = seal.expect("a new epoch is sealed");
        assert_eq!(handle(&mut member, Input::Persisted(seal)).0, [0]);

        let (acks, first) = handle(&mut member, append(1, 3));
        assert!(acks.is_empty(), "nothing new is durable");
        let (acks, second) = handle(&mut member, append(4, 5));
        assert!(acks.is_empty(), "nothing new is durable");
        let (first, second) = (first.expect("written"), second.expect("written"));
        assert_eq!(handle(&mut member, Input::Persisted(first)).0, [3]);
        assert_eq!(handle(&mut member, Input::Persisted(second)).0, [5]);
    }

    #[test]
    fn what_asks_who_is_there_is_answered_while_the_disk_is_busy() {
        let mut member = replica();
        let (_, seal) = handle(&mut member, append(1, 0));
        handle(&mut member, Input::Persisted(seal.expect("sealed")));
        let (_, write) = handle(&mut member, append(1, 3));
        assert_eq!(handle(&mut member, append(4, 3)).0, [0], "a heartbeat");
        handle(&mut member, Input::Persisted(write.expect("written")));
        assert_eq!(handle(&mut member, append(1, 3)).0, [3], "a repetition");
    }
}
