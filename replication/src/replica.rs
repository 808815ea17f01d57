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
        // What is durable already, or asks only who is there, is answered at once. Entries on their way to the disk are
        // answered when they are durable; to say before that nothing has changed yet would wake the primary for nothing.
        following.answer |= append.last <= self.journal.durable().lsn();
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
