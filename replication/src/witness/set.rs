//! Which witnesses there are, as one of them knows it: rule R8. Requests name the set under which they are made; those of
//! an older one are refused from the moment a newer one is taken up, and a witness that hears of a newer one asks for it.
//!
//! What each witness says of itself stays true whatever the set: its promises, its fences and its grants bind its store.
//! So only requests carry the set. A *fence that waits* for grants to end is forgotten at a change: it would be answered
//! after the list of fences was handed over.

use std::sync::Arc;

use mainstay_types::{MonoTime, NodeId};

use super::{Witness, WitnessEvent, WitnessOutput};
use crate::message::{Ballot, Message, RegisterMessage, SetStep, WitnessMessage};
use crate::witness_set::{SetTag, WitnessSet};

impl Witness {
    /// Whether this witness has a vote in the set that it knows.
    pub(super) fn votes(&self) -> bool {
        self.set.names(self.me, self.state.store)
    }

    /// Whether a request made under `tag` may be answered. If the two know different sets, the one behind is told.
    pub(super) fn admits(&mut self, from: NodeId, tag: SetTag) -> bool {
        let known = self.set.tag;
        if tag == known {
            return self.votes() && self.stored >= self.grants_after;
        }
        if tag.version > known.version {
            self.send(
                from,
                Message::Witness(WitnessMessage::SetStep(SetStep::Wanted)),
            );
        } else if tag.version < known.version {
            self.tell_set(from);
        } else {
            self.note_other_set(from);
        }
        false
    }

    fn note_other_set(&mut self, node: NodeId) {
        if self.told_other.insert(node) {
            self.out
                .push_back(WitnessOutput::Event(WitnessEvent::OtherWitnesses { node }));
        }
    }

    fn tell_set(&mut self, to: NodeId) {
        if self.set.tag.version > 0 {
            let set = Arc::clone(&self.set);
            self.send(to, Message::Witness(WitnessMessage::Set(set)));
        }
    }

    /// A decided set.
    pub(super) fn handle_set(&mut self, now: MonoTime, from: NodeId, set: Arc<WitnessSet>) {
        let (tag, known) = (set.tag, self.set.tag);
        if tag.version < known.version {
            return self.tell_set(from);
        }
        if tag.version == known.version && tag != known {
            return self.note_other_set(from);
        }
        self.take_set(now, set);
        if self.set.next.is_some() && self.votes() {
            let message = WitnessMessage::SetStep(SetStep::Adopted {
                set: self.set.tag,
                volumes: self.fences(),
                lease_longest_ms: millis(self.state.lease_longest),
            });
            self.after_persisted(from, Message::Witness(message));
        }
    }

    fn fences(&self) -> Vec<(mainstay_types::VolumeId, mainstay_types::Epoch)> {
        let fenced = |(volume, record): (&_, &super::WitnessRecord)| (*volume, record.fenced);
        self.records.iter().map(fenced).collect()
    }

    /// Takes a decided set up, if it is news.
    pub(super) fn take_set(&mut self, now: MonoTime, set: Arc<WitnessSet>) {
        if set.tag.version <= self.set.tag.version {
            return;
        }
        self.state.set = (*set).clone();
        // The decree on this set is over; the next one begins blank.
        (self.state.promised, self.state.accepted) = (Ballot::default(), None);
        self.set = Arc::clone(&set);
        self.set_since = now;
        self.persist_set(false);
        for grants in self.grants.values_mut() {
            grants.forget_fences();
        }
        if self.votes() {
            self.ask_other_witnesses(now);
        } else {
            for coordinator in std::mem::take(&mut self.coordinators).into_values() {
                self.force_given_up(&coordinator);
            }
        }
        self.out.push_back(WitnessOutput::Set(set));
        self.change_met(now);
    }

    pub(super) fn handle_set_step(&mut self, now: MonoTime, from: NodeId, step: SetStep) {
        match step {
            SetStep::Wanted => self.tell_set(from),
            SetStep::Probe { set } => {
                if self.admits(from, set) {
                    let votes = WitnessMessage::SetStep(SetStep::Votes { set });
                    self.send(from, Message::Witness(votes));
                }
            }
            SetStep::Votes { set } if set == self.set.tag => self.note_ready(now, from),
            SetStep::Votes { .. } => {}
            SetStep::Invite { nonce } => self.handle_invite(from, nonce),
            SetStep::Invited { store, nonce } => self.handle_invited(now, from, store, nonce),
            SetStep::Round(body) => match body {
                RegisterMessage::Prepare { set, .. } | RegisterMessage::Accept { set, .. } => {
                    if self.admits(from, set) {
                        self.handle_decree(from, body);
                    }
                }
                answer => self.handle_decree_answer(now, from, answer),
            },
            SetStep::Adopted {
                set,
                volumes,
                lease_longest_ms,
            } => self.handle_adopted(from, set, volumes, lease_longest_ms),
            SetStep::Install {
                set,
                volumes,
                lease_longest_ms,
            } => {
                if self.admits(from, set) {
                    self.handle_install(from, &volumes, lease_longest_ms);
                }
            }
            SetStep::Installed { set } => self.handle_installed(from, set),
        }
    }

    /// Makes this store that of a voter that nobody has ever heard of, unless it is that already.
    fn handle_invite(&mut self, from: NodeId, nonce: u64) {
        if self.votes() {
            return;
        }
        if self.state.store == 0 || !self.records.is_empty() {
            self.state.store = self.rng.id().max(1);
            self.records.clear();
            self.persist_set(true);
        }
        let store = self.state.store;
        let message = WitnessMessage::SetStep(SetStep::Invited { store, nonce });
        self.after_persisted(from, Message::Witness(message));
    }

    /// The acceptor's side of the decree on the next set: rule R2.1.
    fn handle_decree(&mut self, from: NodeId, body: RegisterMessage<WitnessSet>) {
        let promised = self.state.promised;
        let answer = match body {
            RegisterMessage::Prepare { ballot, .. } | RegisterMessage::Accept { ballot, .. }
                if ballot < promised =>
            {
                let refused = RegisterMessage::Rejected { ballot, promised };
                return self.send(
                    from,
                    Message::Witness(WitnessMessage::SetStep(SetStep::Round(refused))),
                );
            }
            RegisterMessage::Prepare { ballot, .. } => {
                self.state.promised = ballot;
                let accepted = self.state.accepted.clone();
                RegisterMessage::Promised { ballot, accepted }
            }
            RegisterMessage::Accept { ballot, value, .. } => {
                self.state.promised = ballot;
                self.state.accepted = Some((ballot, value));
                RegisterMessage::Accepted { ballot }
            }
            _ => return,
        };
        self.persist_set(false);
        self.after_persisted(
            from,
            Message::Witness(WitnessMessage::SetStep(SetStep::Round(answer))),
        );
    }

    /// Takes over what a majority of the old set has fenced.
    fn handle_install(
        &mut self,
        from: NodeId,
        volumes: &[(mainstay_types::VolumeId, mainstay_types::Epoch)],
        lease_longest_ms: u32,
    ) {
        for (volume, fenced) in volumes {
            let record = self.records.entry(*volume).or_default();
            if record.fenced < *fenced {
                record.fenced = *fenced;
                self.persist(*volume);
            }
        }
        let longest = std::time::Duration::from_millis(u64::from(lease_longest_ms));
        if longest > self.state.lease_longest {
            self.state.lease_longest = longest;
            self.persist_set(false);
        }
        let message = WitnessMessage::SetStep(SetStep::Installed { set: self.set.tag });
        self.after_persisted(from, Message::Witness(message));
    }
}

pub(super) fn millis(time: std::time::Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
