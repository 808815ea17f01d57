//! Drives one change of the witness set: rule R8. Any witness of the joint set may, several may at once, and any may die.
//!
//! A newcomer is invited; the joint set is decided by the old one; a majority of the old witnesses takes it up, which
//! ends every round and every grant of the old set but those that run; the newcomers take the fences over, and each
//! volume's register is read under the joint set, which writes it to a majority of the new witnesses; the longest lease
//! passes, and with it the last one that the old set alone granted; the new set is decided by the joint one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mainstay_types::{Epoch, MonoTime, NodeId, VolumeId};

use super::set::millis;
use super::{Witness, WitnessOutput};
use crate::message::{ABSENT, Message, RegisterMessage, RoundResult, SetStep, WitnessMessage};
use crate::mistakes::Mistake;
use crate::quorum::majority;
use crate::register::Round;
use crate::witness_set::{SetTag, Voter, WitnessSet};

/// Registers copied at once.
const COPIES_AT_ONCE: usize = 8;

/// How long newcomers are waited for once a majority of the new set is ready, in times of an attempt.
const NEWCOMERS_PATIENCE: u32 = 6;

/// What an operator wants. One witness comes, one goes, or one takes the place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRequest {
    /// Chosen by the caller.
    pub id: u64,
    /// Who comes, and where it is reached.
    pub add: Option<(NodeId, String)>,
    /// Who goes.
    pub remove: Option<NodeId>,
}

/// Why the witnesses stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeRefused {
    /// The witness that was asked has no vote.
    NoVote,
    /// Another change is under way.
    Busy,
    /// It is a witness already.
    Known(NodeId),
    /// It is none.
    Unknown(NodeId),
    /// Nobody would be left, or nothing would change.
    Empty,
    /// The newcomer does not answer, or is no witness that waits to be invited.
    NoAnswer(NodeId),
    /// Of the witnesses that would be left, no majority answers: these are silent. Such a set could neither decide anything
    /// nor be left again.
    NoMajorityLeft(Vec<NodeId>),
    /// Another change came first.
    Overtaken(Arc<WitnessSet>),
    /// No majority of the witnesses answered: whether the change goes on is unknown.
    Unsettled,
}

/// One change under way.
#[derive(Debug)]
pub(super) struct Change {
    request: Option<ChangeRequest>,
    step: Step,
    resend: MonoTime,
    give_up: MonoTime,
}

#[derive(Debug)]
enum Step {
    /// Waits for the newcomer's word, and until a majority of those that will be left has answered.
    Inviting {
        nonce: u64,
        store: Option<u64>,
        ready: BTreeSet<NodeId>,
    },
    /// Decides the set that follows.
    Deciding { round: Round<WitnessSet> },
    /// Carries what the old set decided over to the new one.
    Carrying(Carry),
}

#[derive(Debug, Default)]
struct Carry {
    adopted: BTreeSet<NodeId>,
    /// When a majority of the old set had.
    adopted_at: Option<MonoTime>,
    volumes: BTreeMap<VolumeId, Epoch>,
    lease_longest: Duration,
    installed: BTreeSet<NodeId>,
    /// Registers that are not copied yet; those with a round are being read.
    left: BTreeMap<VolumeId, Option<Round>>,
}

impl Witness {
    pub(super) fn handle_change(&mut self, now: MonoTime, request: ChangeRequest) {
        let answer = |result| WitnessOutput::Changed {
            id: request.id,
            result,
        };
        let added = request.add.as_ref().map(|(node, _)| *node);
        let left = self.set.voters.len() + usize::from(added.is_some())
            - usize::from(request.remove.is_some()).min(self.set.voters.len());
        let refused = if !self.votes() {
            Some(ChangeRefused::NoVote)
        } else if self.change.is_some() || self.set.next.is_some() {
            Some(ChangeRefused::Busy)
        } else if let Some(node) = added.filter(|node| self.set.contains(*node)) {
            Some(ChangeRefused::Known(node))
        } else if let Some(node) = request.remove.filter(|node| !self.set.contains(*node)) {
            Some(ChangeRefused::Unknown(node))
        } else if left == 0 || (added.is_none() && request.remove.is_none()) {
            Some(ChangeRefused::Empty)
        } else {
            None
        };
        if let Some(refused) = refused {
            return self.out.push_back(answer(Err(refused)));
        }
        self.change = Some(Change {
            request: Some(request),
            step: Step::Inviting {
                nonce: self.rng.id(),
                store: None,
                ready: BTreeSet::from([self.me]),
            },
            resend: now,
            give_up: now + self.config.attempt * 2,
        });
        self.maybe_start_joint(now);
    }

    /// A witness votes under the same set.
    pub(super) fn note_ready(&mut self, now: MonoTime, node: NodeId) {
        if let Some(Change {
            step: Step::Inviting { ready, .. },
            ..
        }) = &mut self.change
        {
            ready.insert(node);
            self.maybe_start_joint(now);
        }
    }

    pub(super) fn handle_invited(&mut self, now: MonoTime, from: NodeId, name: u64, answers: u64) {
        let Some(Change {
            request: Some(request),
            step:
                Step::Inviting {
                    nonce,
                    store,
                    ready,
                },
            ..
        }) = &mut self.change
        else {
            return;
        };
        let added = request.add.as_ref().map(|(node, _)| *node);
        if added == Some(from) && *nonce == answers && name != 0 {
            *store = Some(name);
            ready.insert(from);
            self.maybe_start_joint(now);
        }
    }

    /// Those that a request leaves, the newcomer among them.
    fn wanted_voters(&self, request: &ChangeRequest, store: Option<u64>) -> Vec<Voter> {
        let mut voters = self.set.voters.clone();
        voters.retain(|voter| Some(voter.node) != request.remove);
        if let Some((node, address)) = &request.add {
            voters.push(Voter {
                node: *node,
                store: store.unwrap_or(0),
                address: address.clone(),
            });
            voters.sort_by_key(|voter| voter.node);
        }
        voters
    }

    /// Proposes the joint set that the request asks for, once it could be left again.
    fn maybe_start_joint(&mut self, now: MonoTime) {
        let Some(Change {
            request: Some(request),
            step: Step::Inviting { store, ready, .. },
            ..
        }) = &self.change
        else {
            return;
        };
        let voters = self.wanted_voters(request, *store);
        let answered = voters.iter().filter(|voter| ready.contains(&voter.node));
        if answered.count() < majority(voters.len()) || (request.add.is_some() && store.is_none()) {
            return;
        }
        if self.config.mistakes.has(Mistake::WitnessesInOneStep) {
            return self.decide(now, voters, None);
        }
        self.decide(now, self.set.voters.clone(), Some(voters));
    }

    fn decide(&mut self, now: MonoTime, voters: Vec<Voter>, next: Option<Vec<Voter>>) {
        let tag = SetTag {
            version: self.set.tag.version + 1,
            id: self.rng.id().max(1),
        };
        let value = WitnessSet { tag, voters, next };
        let (seed, retry, mistakes) = (self.rng.id(), self.config.retry * 2, self.config.mistakes);
        let round = Round::swap(now, &self.set, seed, retry, mistakes, ABSENT, value);
        if let Some(change) = &mut self.change {
            change.step = Step::Deciding { round };
            change.resend = now;
            change.give_up = now + self.config.attempt * 4;
        }
    }

    pub(super) fn handle_decree_answer(
        &mut self,
        now: MonoTime,
        from: NodeId,
        answer: RegisterMessage<WitnessSet>,
    ) {
        let Some(Change {
            step: Step::Deciding { round },
            ..
        }) = &mut self.change
        else {
            return;
        };
        match round.handle(now, from, answer) {
            Some(RoundResult::Decided(set) | RoundResult::Conflict(set)) => {
                let set = Arc::new(*set);
                // Those that go must hear of it, too, and nobody asks them any more.
                let before = self.set.nodes();
                self.take_set(now, Arc::clone(&set));
                let all: BTreeSet<NodeId> = before.into_iter().chain(set.nodes()).collect();
                for node in all {
                    self.send(
                        node,
                        Message::Witness(WitnessMessage::Set(Arc::clone(&set))),
                    );
                }
            }
            Some(RoundResult::Absent) | None => {}
        }
    }

    /// Another set is in force: what that means for the change under way here.
    pub(super) fn change_met(&mut self, now: MonoTime) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        let joint = self.set.next.is_some();
        let wanted = change.request.as_ref().is_some_and(|request| {
            let set = self.set.next.as_ref().unwrap_or(&self.set.voters);
            let there = |node: NodeId| set.iter().any(|voter| voter.node == node);
            request.add.as_ref().is_none_or(|(node, _)| there(*node))
                && request.remove.is_none_or(|node| !there(node))
        });
        if let Some(request) = change.request.take_if(|_| !joint || !wanted) {
            let set = Arc::clone(&self.set);
            let result = if wanted {
                Ok(set)
            } else {
                Err(ChangeRefused::Overtaken(set))
            };
            self.out.push_back(WitnessOutput::Changed {
                id: request.id,
                result,
            });
        }
        if joint && self.votes() {
            change.step = Step::Carrying(Carry::default());
            change.resend = now;
            change.give_up = MonoTime::MAX;
            self.change = Some(change);
        }
    }

    pub(super) fn handle_adopted(
        &mut self,
        from: NodeId,
        set: SetTag,
        volumes: Vec<(VolumeId, Epoch)>,
        lease_longest_ms: u32,
    ) {
        let Some(carry) = self.carrying(set) else {
            return;
        };
        carry.adopted.insert(from);
        if carry.adopted_at.is_some() {
            return;
        }
        for (volume, fenced) in volumes {
            let known = carry.volumes.entry(volume).or_default();
            *known = fenced.max(*known);
        }
        let longest = Duration::from_millis(u64::from(lease_longest_ms));
        carry.lease_longest = carry.lease_longest.max(longest);
    }

    pub(super) fn handle_installed(&mut self, from: NodeId, set: SetTag) {
        if let Some(carry) = self.carrying(set) {
            carry.installed.insert(from);
        }
    }

    fn carrying(&mut self, set: SetTag) -> Option<&mut Carry> {
        match &mut self.change {
            Some(Change {
                step: Step::Carrying(carry),
                ..
            }) if set == self.set.tag => Some(carry),
            _ => None,
        }
    }

    /// An answer in the round that copies a volume's register.
    pub(super) fn handle_copy_answer(
        &mut self,
        now: MonoTime,
        from: NodeId,
        volume: VolumeId,
        body: &RegisterMessage,
    ) {
        let tag = self.set.tag;
        let Some(carry) = self.carrying(tag) else {
            return;
        };
        if let Some(Some(round)) = carry.left.get_mut(&volume)
            && round.handle(now, from, body.clone()).is_some()
        {
            carry.left.remove(&volume);
        }
    }

    pub(super) fn close_change(&mut self, now: MonoTime) {
        let Some(mut change) = self.change.take() else {
            return self.maybe_carry_on(now);
        };
        let resend = now >= change.resend;
        if resend {
            change.resend = now + self.config.retry * 2;
        }
        if now >= change.give_up {
            return self.give_change_up(change);
        }
        match &mut change.step {
            Step::Inviting { nonce, .. } => {
                if let (true, Some(request)) = (resend, &change.request) {
                    self.ask_those_left(request, *nonce);
                }
            }
            Step::Deciding { round } => {
                round.tick(now);
                while let Some((to, body)) = round.poll_send() {
                    let message = WitnessMessage::SetStep(SetStep::Round(body));
                    self.send(to, Message::Witness(message));
                }
                change.resend = round.deadline();
            }
            Step::Carrying(carry) => {
                if self.carry(now, carry, resend) {
                    let next = self.set.next.clone().unwrap_or_default();
                    self.change = Some(change);
                    self.decide(now, next, None);
                    return self.close_change(now);
                }
            }
        }
        self.wake_at(change.resend.min(change.give_up));
        self.change = Some(change);
    }

    fn ask_those_left(&mut self, request: &ChangeRequest, nonce: u64) {
        let step = |step| Message::Witness(WitnessMessage::SetStep(step));
        if let Some((node, _)) = &request.add {
            let set = Arc::clone(&self.set);
            self.send(*node, Message::Witness(WitnessMessage::Set(set)));
            self.send(*node, step(SetStep::Invite { nonce }));
        }
        for voter in self.wanted_voters(request, None) {
            if voter.node != self.me {
                self.send(voter.node, step(SetStep::Probe { set: self.set.tag }));
            }
        }
    }

    /// Takes up what another witness began and did not end.
    fn maybe_carry_on(&mut self, now: MonoTime) {
        if self.set.next.is_none() || !self.votes() {
            return;
        }
        let nodes = self.set.nodes();
        let rank = nodes.iter().position(|node| *node == self.me).unwrap_or(0);
        let rank = u32::try_from(rank).unwrap_or(0);
        let at = self.set_since + self.config.attempt * 2 * (1 + rank);
        if now < at {
            return self.wake_at(at);
        }
        self.change = Some(Change {
            request: None,
            step: Step::Carrying(Carry::default()),
            resend: now,
            give_up: MonoTime::MAX,
        });
        self.close_change(now);
    }

    fn give_change_up(&mut self, change: Change) {
        // A joint set is carried on; only a decree that got no majority is left, and begun anew.
        self.set_since = self.set_since.max(change.give_up);
        let Some(request) = change.request else {
            return;
        };
        let refused = match (&change.step, &request.add) {
            (Step::Inviting { store: None, .. }, Some((node, _))) => ChangeRefused::NoAnswer(*node),
            (Step::Inviting { ready, .. }, _) => {
                let left = self.wanted_voters(&request, None).into_iter();
                let silent = left.map(|voter| voter.node);
                ChangeRefused::NoMajorityLeft(silent.filter(|node| !ready.contains(node)).collect())
            }
            _ => ChangeRefused::Unsettled,
        };
        self.out.push_back(WitnessOutput::Changed {
            id: request.id,
            result: Err(refused),
        });
    }

    /// True once the new set holds all that the old one decided, and no lease runs that only the old one granted.
    fn carry(&mut self, now: MonoTime, carry: &mut Carry, resend: bool) -> bool {
        let set = Arc::clone(&self.set);
        if resend {
            let silent = set.nodes().into_iter();
            for node in silent.filter(|node| !carry.adopted.contains(node)) {
                self.send(
                    node,
                    Message::Witness(WitnessMessage::Set(Arc::clone(&set))),
                );
            }
        }
        let Some(adopted_at) = carry.adopted_at else {
            if set.is_old_majority(|node| carry.adopted.contains(&node)) {
                carry.adopted_at = Some(now);
                carry.left = carry.volumes.keys().map(|volume| (*volume, None)).collect();
                if self.config.mistakes.has(Mistake::NewcomersBlank) {
                    carry.left.clear();
                    carry.volumes.clear();
                }
                return self.carry(now, carry, true);
            }
            return false;
        };
        if resend {
            self.install(&set, carry);
        }
        self.copy(now, &set, carry);
        let installed = |node: NodeId| carry.installed.contains(&node);
        let patience = adopted_at + self.config.attempt * NEWCOMERS_PATIENCE;
        let ready =
            set.is_new_majority(installed) && (set.newcomers().all(installed) || now >= patience);
        let quiet = adopted_at + self.outlasts(carry.lease_longest);
        if now < quiet {
            self.wake_at(quiet);
        }
        ready && carry.left.is_empty() && now >= quiet
    }

    /// How long this clock must run for a lease of that length to have ended by any other.
    fn outlasts(&self, lease: Duration) -> Duration {
        let rate = self.config.rate_error_ppm.min(500_000);
        lease * (1_000_000 + rate) / (1_000_000 - rate)
    }

    fn install(&mut self, set: &WitnessSet, carry: &Carry) {
        let next = set.next.iter().flatten().map(|voter| voter.node);
        for node in next.filter(|node| !carry.installed.contains(node)) {
            let message = WitnessMessage::SetStep(SetStep::Install {
                set: set.tag,
                volumes: carry.volumes.iter().map(|(v, e)| (*v, *e)).collect(),
                lease_longest_ms: millis(carry.lease_longest),
            });
            self.send(node, Message::Witness(message));
        }
    }

    fn copy(&mut self, now: MonoTime, set: &Arc<WitnessSet>, carry: &mut Carry) {
        let mut sends = Vec::new();
        for (volume, slot) in carry.left.iter_mut().take(COPIES_AT_ONCE) {
            let (retry, mistakes) = (self.config.retry * 2, self.config.mistakes);
            let rng = &mut self.rng;
            let round =
                slot.get_or_insert_with(|| Round::read(now, set, rng.id(), retry, mistakes));
            round.tick(now);
            while let Some((to, body)) = round.poll_send() {
                sends.push((to, *volume, body));
            }
            self.wake = self.wake.min(round.deadline());
        }
        for (to, volume, body) in sends {
            self.send(to, Message::Register { volume, body });
        }
    }
}
