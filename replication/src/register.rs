//! The proposer's side of the register: CASPaxos (Rystsov 2018, arXiv:1802.07000), one round at a time.
//!
//! A read writes back what it found, so that only a decided value is acted upon. Compare-and-set compares the random
//! `id` of the value, never its version. A round goes on, with ever higher ballots, until its outcome is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mainstay_types::{Instance, MonoTime, NodeId, Register, RegisterId};

use crate::message::{ABSENT, Ballot, RegisterMessage, RoundResult};
use crate::mistakes::{Mistake, Mistakes};
use crate::rng::Rng;
use crate::witness_set::WitnessSet;

/// What a register may hold.
pub trait Value: Clone {
    /// Random, one per value.
    fn id(&self) -> u64;
    /// One more than that of the value before it.
    fn version(&self) -> u64;
}

impl Value for Register {
    fn id(&self) -> u64 {
        self.id.0
    }

    fn version(&self) -> u64 {
        self.version
    }
}

impl Value for WitnessSet {
    fn id(&self) -> u64 {
        self.tag.id
    }

    fn version(&self) -> u64 {
        self.tag.version
    }
}

/// What a round wants.
#[derive(Debug, Clone)]
enum Goal<V> {
    Read,
    Swap {
        expect: RegisterId,
        expect_version: u64,
        new: Box<V>,
    },
}

#[derive(Debug, Clone)]
enum Phase<V> {
    Prepare {
        answers: BTreeMap<NodeId, Option<(Ballot, Box<V>)>>,
    },
    Accept {
        value: Box<V>,
        acks: BTreeSet<NodeId>,
    },
    /// Lost to a higher ballot: waits before the next try.
    Waiting,
}

/// One read or compare-and-set of one register.
///
/// Feed it every answer; drain [`Round::poll_send`] after each call; call [`Round::tick`] at [`Round::deadline`].
/// Safe to drop at any time: the outcome is then unknown, and a later read settles it.
#[derive(Debug, Clone)]
pub struct Round<V = Register> {
    witnesses: Arc<WitnessSet>,
    goal: Goal<V>,
    ballot: Ballot,
    phase: Phase<V>,
    /// Greatest counter seen in any answer.
    seen: u64,
    rng: Rng,
    retry: Duration,
    /// Tries so far: the wait between them grows, so that proposers who are slower than `retry`, or who meet for
    /// ever, find a gap in the end.
    tries: u32,
    /// A ballot was rejected. The first one that is says only that the register was written before: a round begins with the lowest
    /// counter there is. It is no reason to wait; a later one is, as there is somebody to make room for.
    rejected: bool,
    deadline: MonoTime,
    out: Vec<(NodeId, RegisterMessage<V>)>,
    mistakes: Mistakes,
}

impl<V: Value> Round<V> {
    /// Finds the decided value.
    #[must_use]
    pub fn read(
        now: MonoTime,
        witnesses: &Arc<WitnessSet>,
        seed: u64,
        retry: Duration,
        mistakes: Mistakes,
    ) -> Self {
        Self::start(now, witnesses, seed, retry, mistakes, Goal::Read)
    }

    /// Replaces the value with id `expect` by `new`. `ABSENT` expects that there is none.
    #[must_use]
    pub fn swap(
        now: MonoTime,
        witnesses: &Arc<WitnessSet>,
        seed: u64,
        retry: Duration,
        mistakes: Mistakes,
        expect: RegisterId,
        new: V,
    ) -> Self {
        let goal = Goal::Swap {
            expect,
            expect_version: new.version().saturating_sub(1),
            new: Box::new(new),
        };
        Self::start(now, witnesses, seed, retry, mistakes, goal)
    }

    fn start(
        now: MonoTime,
        witnesses: &Arc<WitnessSet>,
        seed: u64,
        retry: Duration,
        mistakes: Mistakes,
        goal: Goal<V>,
    ) -> Self {
        let mut rng = Rng::new(seed);
        let ballot = Ballot {
            counter: 0,
            proposer: Instance(rng.id()),
        };
        let mut round = Self {
            witnesses: Arc::clone(witnesses),
            goal,
            ballot,
            phase: Phase::Waiting,
            seen: 0,
            rng,
            retry,
            tries: 0,
            rejected: false,
            deadline: now,
            out: Vec::new(),
            mistakes,
        };
        round.prepare(now);
        round
    }

    /// The next message to send.
    pub fn poll_send(&mut self) -> Option<(NodeId, RegisterMessage<V>)> {
        self.out.pop()
    }

    /// When to call [`Round::tick`].
    #[must_use]
    pub fn deadline(&self) -> MonoTime {
        self.deadline
    }

    /// Repeats what got no answer, or tries again after a lost ballot.
    pub fn tick(&mut self, now: MonoTime) {
        if now >= self.deadline {
            // A new ballot rather than the old messages again: a ballot carries one value, and answers that were
            // lost must not be mixed with those of another try.
            self.prepare(now);
        }
    }

    /// The witnesses are others now: what was asked of the old ones counts for nothing any more, and the round goes on
    /// with a new ballot. Safe at any time: it is what a lost ballot leads to.
    pub fn set_witnesses(&mut self, now: MonoTime, witnesses: &Arc<WitnessSet>) {
        if witnesses.tag.version > self.witnesses.tag.version {
            self.witnesses = Arc::clone(witnesses);
            self.prepare(now);
        }
    }

    /// Takes a witness's answer; returns the result once it is known.
    pub fn handle(
        &mut self,
        now: MonoTime,
        from: NodeId,
        message: RegisterMessage<V>,
    ) -> Option<RoundResult<V>> {
        if !self.witnesses.contains(from) {
            return None;
        }
        match message {
            RegisterMessage::Promised { ballot, accepted } => {
                self.handle_promised(now, from, ballot, accepted)
            }
            RegisterMessage::Accepted { ballot } => self.handle_accepted(from, ballot),
            RegisterMessage::Rejected { ballot, promised } => {
                self.handle_rejected(now, ballot, promised);
                None
            }
            RegisterMessage::Prepare { .. } | RegisterMessage::Accept { .. } => None,
        }
    }

    fn handle_promised(
        &mut self,
        now: MonoTime,
        from: NodeId,
        ballot: Ballot,
        accepted: Option<(Ballot, Box<V>)>,
    ) -> Option<RoundResult<V>> {
        let Phase::Prepare { answers } = &mut self.phase else {
            return None;
        };
        if ballot != self.ballot {
            return None;
        }
        answers.insert(from, accepted);
        if !self.witnesses.is_quorum(|node| answers.contains_key(&node)) {
            return None;
        }
        let found = answers
            .values()
            .flatten()
            .max_by_key(|(ballot, _)| *ballot)
            .map(|(_, value)| value.clone());
        if self.mistakes.has(Mistake::RegisterByNumber)
            && let (Goal::Read, Some(found)) = (&self.goal, &found)
        {
            return Some(RoundResult::Decided(found.clone()));
        }
        let value = match (&self.goal, found) {
            (Goal::Read, None) => return Some(RoundResult::Absent),
            (Goal::Swap { expect, new, .. }, None) if *expect == ABSENT => new.clone(),
            // Nothing is there, so what was expected is not: as absent as a read would find it.
            (Goal::Swap { .. }, None) => return Some(RoundResult::Absent),
            (Goal::Swap { expect, new, .. }, Some(found)) if found.id() == expect.0 => new.clone(),
            (
                Goal::Swap {
                    expect_version,
                    new,
                    ..
                },
                Some(found),
            ) if self.mistakes.has(Mistake::RegisterByNumber)
                && found.version() == *expect_version =>
            {
                new.clone()
            }
            (_, Some(found)) => found,
        };
        self.accept(now, value);
        None
    }

    fn handle_accepted(&mut self, from: NodeId, ballot: Ballot) -> Option<RoundResult<V>> {
        let Phase::Accept { value, acks } = &mut self.phase else {
            return None;
        };
        if ballot != self.ballot {
            return None;
        }
        acks.insert(from);
        if !self.witnesses.is_quorum(|node| acks.contains(&node)) {
            return None;
        }
        let value = value.clone();
        Some(match &self.goal {
            Goal::Swap { new, .. } if new.id() != value.id() => RoundResult::Conflict(value),
            _ => RoundResult::Decided(value),
        })
    }

    fn handle_rejected(&mut self, now: MonoTime, ballot: Ballot, promised: Ballot) {
        self.seen = self.seen.max(promised.counter);
        if ballot == self.ballot && !matches!(self.phase, Phase::Waiting) {
            if !std::mem::replace(&mut self.rejected, true) {
                self.tries = 0;
                return self.prepare(now);
            }
            self.phase = Phase::Waiting;
            let wait = self.patience() / 4;
            self.deadline = now + self.rng.jitter(wait);
        }
    }

    /// How long one try may take; doubles every other try, up to sixteen times the first.
    fn patience(&self) -> Duration {
        self.retry * (1 << (self.tries / 2).min(4))
    }

    fn prepare(&mut self, now: MonoTime) {
        self.tries += 1;
        let patience = self.patience();
        self.seen = self.seen.max(self.ballot.counter) + 1;
        self.ballot.counter = self.seen;
        self.phase = Phase::Prepare {
            answers: BTreeMap::new(),
        };
        self.deadline = now + self.rng.jitter(patience);
        self.broadcast(&RegisterMessage::Prepare {
            ballot: self.ballot,
            set: self.witnesses.tag,
        });
    }

    fn accept(&mut self, now: MonoTime, value: Box<V>) {
        let message = RegisterMessage::Accept {
            ballot: self.ballot,
            set: self.witnesses.tag,
            value: value.clone(),
        };
        self.phase = Phase::Accept {
            value,
            acks: BTreeSet::new(),
        };
        let patience = self.patience();
        self.deadline = now + self.rng.jitter(patience);
        self.broadcast(&message);
    }

    fn broadcast(&mut self, message: &RegisterMessage<V>) {
        self.out.clear();
        self.out.extend(
            self.witnesses
                .nodes()
                .into_iter()
                .rev()
                .map(|witness| (witness, message.clone())),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round() -> Round {
        let witnesses = Arc::new(WitnessSet::of(&[NodeId(1), NodeId(2), NodeId(3)]));
        let retry = Duration::from_millis(100);
        Round::read(MonoTime::ZERO, &witnesses, 7, retry, Mistakes::NONE)
    }

    /// The ballots of what is to be sent.
    fn asked(round: &mut Round) -> Vec<Ballot> {
        let sends = std::iter::from_fn(|| round.poll_send());
        let ballot = |(_, message)| match message {
            RegisterMessage::Prepare { ballot, .. } => ballot,
            other => panic!("{other:?}"),
        };
        sends.map(ballot).collect()
    }

    fn reject(round: &mut Round, from: u32, ballot: Ballot, counter: u64) {
        let promised = Ballot {
            counter,
            proposer: Instance(99),
        };
        let message = RegisterMessage::Rejected { ballot, promised };
        assert!(round.handle(MonoTime(5), NodeId(from), message).is_none());
    }

    /// The order of events: the register was written before, so each witness has promised a ballot above the first of any new round.
    /// A promotion has two rounds in series, and would wait twice for nobody.
    #[test]
    fn the_first_ballot_that_is_rejected_is_no_reason_to_wait() {
        let mut round = round();
        let first = asked(&mut round);
        assert_eq!(first.len(), 3);
        reject(&mut round, 1, first[0], 41);
        let second = asked(&mut round);
        assert_eq!(second.len(), 3, "asked again at once");
        assert_eq!(second[0].counter, 42);
        // The others reject the first one, too: they have been asked for the second since.
        reject(&mut round, 2, first[0], 41);
        reject(&mut round, 3, first[0], 41);
        assert_eq!(asked(&mut round), []);
        // Somebody else has been faster with the second: now there is a reason.
        reject(&mut round, 2, second[0], 43);
        assert_eq!(asked(&mut round), []);
        assert!(round.deadline() > MonoTime(5));
        let later = round.deadline();
        round.tick(later);
        assert_eq!(asked(&mut round)[0].counter, 44);
    }
}
