//! Forced promotion: what only an operator may ask for, when too few copies are left to see everything committed.
//! Rule R6, *Forced*, and trap C7.
//!
//! It reads, fences and seals like every promotion. Then sight is waived: the named copy is chosen as it is, and the
//! volume goes on in a new lineage with that copy as its only member. Every other registered copy must have sealed, or the
//! operator must state that its node is off and stays off, or its node must have been fenced from outside: any other might go
//! on acknowledging writes that nobody will ever see again. Whatever other copies hold is set aside by their nodes (`fate_of_copy`).

use std::collections::{BTreeMap, BTreeSet};

use mainstay_types::{
    Epoch, Lineage, LogPoint, Lsn, Member, MonoTime, NodeId, PrimaryId, Register, RegisterId,
    VolumeId,
};

use super::choose::{Answers, Certificate, missing};
use super::coordinator::{Coordinator, Step};
use super::external::Target;
use super::{Witness, WitnessOutput};
use crate::message::{CopyId, SealAnswer, SuspectReason};
use crate::quorum::majority;

/// A forced promotion may take so many times the time of another attempt: an operator would rather wait than be refused
/// because a disk was slow to seal.
const PATIENCE: u32 = 5;

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForceRequest {
    /// Names the answer.
    pub id: u64,
    /// The volume.
    pub volume: VolumeId,
    /// Whose copy shall go on.
    pub target: NodeId,
    /// Nodes of which the operator states that they are off and stay off.
    pub declared_off: BTreeSet<NodeId>,
    /// Full copies below which nothing is acknowledged from now on; as before if `None`.
    pub min_copies: Option<u32>,
}

/// What may be lost by a forced promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// First entry that may have been acknowledged and is not in the chosen log.
    pub from: Lsn,
    /// Greatest entry that any copy is known to have held.
    pub known_to: Lsn,
    /// Registered copies that did not say what they hold: their nodes are silent, damaged or being rebuilt. If there is
    /// one, nobody knows where the loss ends.
    pub unknown: Vec<NodeId>,
    /// Registered copies that did not promise to acknowledge nothing more.
    pub not_sealed: Vec<NodeId>,
}

/// Why a forced promotion was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForceRefused {
    /// No register here names such a volume.
    NoVolume,
    /// The register names no such member.
    NotAMember,
    /// The copy does not answer.
    Silent,
    /// The copy is damaged or being replaced.
    NotIntact,
    /// Enough copies answered: the promotion that is under way loses nothing.
    NotNeeded,
    /// Some copies neither sealed nor are their nodes stated to be off.
    NotFenced(Loss),
    /// A node that neither sealed nor is stated to be off could not be fenced from outside, either.
    ExternalFenceFailed {
        /// The node.
        node: NodeId,
        /// What the command wrote, or why it did not run to its end.
        output: String,
    },
    /// Too few witnesses answered.
    NoWitnessQuorum {
        /// So many did.
        votes: usize,
        /// So many are needed.
        needed: usize,
    },
    /// Another change of the register came first.
    Raced,
}

/// How it ended.
pub type ForceResult = Result<Box<Certificate>, ForceRefused>;

/// An attempt that was asked for.
#[derive(Debug)]
pub(super) struct Force {
    pub(super) request: ForceRequest,
    /// The copies may answer until then; set when they are asked. The chosen one may take longer.
    answers_until: Option<MonoTime>,
    /// Members that sealed before all were asked again: a seal is never taken back.
    sealed: BTreeSet<NodeId>,
    /// After they were asked in a higher epoch, what is missing may come until then.
    asked_again_until: MonoTime,
}

/// What a forced promotion does with the answers.
#[derive(Debug)]
struct Verdict {
    primary: PrimaryId,
    member: Member,
    cut: LogPoint,
    loss: Loss,
}

impl Witness {
    /// Begins a forced promotion in the place of whatever attempt is under way. Answered by `WitnessOutput::Forced`.
    pub(super) fn handle_force(&mut self, now: MonoTime, request: ForceRequest) {
        let volume = request.volume;
        if !self.votes() {
            return self.force_ended(request.id, Err(ForceRefused::Raced));
        }
        let Some(register) = self.accepted(volume).filter(|register| !register.deleted) else {
            return self.force_ended(request.id, Err(ForceRefused::NoVolume));
        };
        if register.member(request.target).is_none() {
            return self.force_ended(request.id, Err(ForceRefused::NotAMember));
        }
        let epoch = register.epoch;
        let patience = self.config.attempt * PATIENCE;
        let force = Force {
            request,
            answers_until: None,
            sealed: BTreeSet::new(),
            asked_again_until: now,
        };
        if let Some(Coordinator {
            force: Some(other), ..
        }) = self.coordinators.remove(&volume)
        {
            self.force_ended(other.request.id, Err(ForceRefused::Raced));
        }
        let mut coordinator = Coordinator::new(now, epoch, SuspectReason::Operator, now + patience);
        coordinator.force = Some(force);
        self.start_fencing(now, volume, &mut coordinator);
        self.coordinators.insert(volume, coordinator);
    }

    fn force_ended(&mut self, id: u64, result: ForceResult) {
        self.out.push_back(WitnessOutput::Forced { id, result });
    }

    /// The attempt ends without a result of its own: says why, if it was asked for.
    pub(super) fn force_given_up(&mut self, coordinator: &Coordinator) {
        let Some(force) = &coordinator.force else {
            return;
        };
        let refused = match &coordinator.step {
            Step::Fencing { fenced, .. } if !self.set.is_quorum(|node| fenced.contains(&node)) => {
                ForceRefused::NoWitnessQuorum {
                    votes: fenced.len(),
                    needed: majority(self.set.nodes().len()),
                }
            }
            _ => ForceRefused::Raced,
        };
        self.force_ended(force.request.id, Err(refused));
    }

    /// The attempt ends as the operator did not want it, if one asked for it.
    pub(super) fn force_refused(&mut self, c: &mut Coordinator, refused: ForceRefused) {
        if let Some(force) = c.force.take() {
            self.force_ended(force.request.id, Err(refused));
        }
    }

    /// All are asked again after an external fence, and have as long as before.
    pub(super) fn force_seals_again(&self, now: MonoTime, c: &mut Coordinator) {
        if let Some(force) = &mut c.force {
            force.answers_until = None;
            c.give_up = now + self.config.attempt * PATIENCE;
        }
    }

    /// All are asked again, in a higher epoch, and may take until `until` for it.
    pub(super) fn force_asks_again(c: &mut Coordinator, until: MonoTime) {
        if let Some(force) = &mut c.force {
            force.asked_again_until = until;
        }
    }

    /// Enough copies answered after all: the attempt goes on as every other one.
    pub(super) fn force_not_needed(&mut self, c: &mut Coordinator) {
        self.force_refused(c, ForceRefused::NotNeeded);
    }

    /// The value was decided.
    pub(super) fn force_done(&mut self, c: &mut Coordinator, certificate: &Certificate) {
        if let Some(force) = c.force.take() {
            self.force_ended(force.request.id, Ok(Box::new(certificate.clone())));
        }
    }

    /// Without sight: once the time for answers is over, the register is changed as the operator wants it. False if the
    /// attempt has ended.
    pub(super) fn step_forced(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        c: &mut Coordinator,
        register: &Register,
        epoch: Epoch,
        answers: &Answers,
    ) -> bool {
        let wait = self.config.attempt;
        let Some(force) = &mut c.force else {
            return true;
        };
        let until = *force.answers_until.get_or_insert(now + wait);
        let silent = missing(register, answers);
        if now < until && !silent.iter().all(|node| c.external.contains_key(node)) {
            self.wake_at(until);
            return true;
        }
        let min_copies = force.request.min_copies;
        let verdict = match judge(register, answers, force, &c.external) {
            Ok(verdict) => verdict,
            Err(refused) => {
                // As soon as enough has answered it ends: others that try to promote raise the epoch again and again,
                // and would put the end off for ever.
                let patience = match &refused {
                    ForceRefused::Silent => c.give_up - wait,
                    ForceRefused::NotFenced(_) => force.asked_again_until,
                    _ => now,
                };
                if now < patience {
                    self.wake_at(patience);
                    return true;
                }
                if let (ForceRefused::NotFenced(loss), Some(_)) =
                    (&refused, self.config.external_fence)
                {
                    let members = register.members.iter();
                    let silent = |member: &&Member| answer_of(answers, member).is_none();
                    let sealed = members.filter(|member| !silent(member));
                    force.sealed.extend(sealed.map(|member| member.node));
                    let targets = unproved(loss, force, &c.external)
                        .map(|node| Target::of_member(node, register))
                        .collect();
                    return self.start_external(now, volume, c, targets);
                }
                self.force_refused(c, refused);
                return false;
            }
        };
        let mut next = Register {
            id: RegisterId(self.rng.id()),
            version: register.version + 1,
            lineage: Lineage(self.rng.id()),
            epoch,
            primary: verdict.primary,
            members: vec![verdict.member],
            ack_quorum: 1,
            cut: verdict.cut,
            ..register.clone()
        };
        if let Some(min_copies) = min_copies {
            next.policy.min_copies = min_copies;
        }
        let certificate = Certificate {
            forced: Some(verdict.loss),
            ..Certificate::of(volume, register, &next, c.reason, answers)
        };
        self.start_swapping(now, volume, c, register, next, certificate);
        true
    }
}

/// Whether the operator's wish may be carried out with these answers.
fn judge(
    register: &Register,
    answers: &Answers,
    force: &Force,
    external: &BTreeMap<NodeId, String>,
) -> Result<Verdict, ForceRefused> {
    let member = *register
        .member(force.request.target)
        .ok_or(ForceRefused::NotAMember)?;
    let (primary, answer) = answer_of(answers, &member).ok_or(ForceRefused::Silent)?;
    if answer.damaged || answer.rebuilding {
        return Err(ForceRefused::NotIntact);
    }
    let mut loss = loss(register, answers, answer.last);
    loss.not_sealed.retain(|node| !force.sealed.contains(node));
    if unproved(&loss, force, external).next().is_some() {
        return Err(ForceRefused::NotFenced(loss));
    }
    Ok(Verdict {
        primary: *primary,
        member,
        cut: answer.last,
        loss,
    })
}

/// Members that may go on, as far as anybody knows.
fn unproved<'a>(
    loss: &'a Loss,
    force: &'a Force,
    external: &'a BTreeMap<NodeId, String>,
) -> impl Iterator<Item = NodeId> + 'a {
    let off = &force.request.declared_off;
    let proved = move |node: &NodeId| off.contains(node) || external.contains_key(node);
    let nodes = loss.not_sealed.iter().copied();
    nodes.filter(move |node| !proved(node))
}

fn answer_of<'a>(answers: &'a Answers, member: &Member) -> Option<&'a (PrimaryId, SealAnswer)> {
    answers.get(&CopyId {
        node: member.node,
        incarnation: member.incarnation,
    })
}

fn loss(register: &Register, answers: &Answers, cut: LogPoint) -> Loss {
    let mut loss = Loss {
        from: cut.lsn.next(),
        known_to: cut.lsn,
        unknown: Vec::new(),
        not_sealed: Vec::new(),
    };
    for member in &register.members {
        let Some((_, answer)) = answer_of(answers, member) else {
            loss.unknown.push(member.node);
            loss.not_sealed.push(member.node);
            continue;
        };
        let doubt = answer.doubt.and_then(|doubt| doubt.to).unwrap_or(Lsn::ZERO);
        loss.known_to = loss.known_to.max(answer.last.lsn).max(doubt);
        if answer.damaged || answer.rebuilding || answer.doubt.is_some() {
            loss.unknown.push(member.node);
        }
    }
    loss
}
