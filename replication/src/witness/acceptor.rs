//! The acceptor's side of the registers: rule R2.1.

use mainstay_types::{MonoTime, NodeId, VolumeId};

use super::Witness;
use crate::message::{Message, RegisterMessage};
use crate::mistakes::Mistake;

impl Witness {
    pub(super) fn handle_proposal(
        &mut self,
        now: MonoTime,
        from: NodeId,
        volume: VolumeId,
        body: RegisterMessage,
    ) {
        if let RegisterMessage::Prepare { set, .. } | RegisterMessage::Accept { set, .. } = body
            && !self.admits(from, set)
        {
            return;
        }
        let record = self.records.entry(volume).or_default();
        let answer = match body {
            RegisterMessage::Prepare { ballot, .. } if ballot < record.promised => {
                return self.reject(from, volume, ballot);
            }
            RegisterMessage::Accept { ballot, .. } if ballot < record.promised => {
                return self.reject(from, volume, ballot);
            }
            RegisterMessage::Prepare { ballot, .. } => {
                record.promised = ballot;
                RegisterMessage::Promised {
                    ballot,
                    accepted: record.accepted.clone(),
                }
            }
            RegisterMessage::Accept { ballot, value, .. } => {
                record.promised = ballot;
                record.accepted = Some((ballot, value));
                RegisterMessage::Accepted { ballot }
            }
            _ => return,
        };
        let accepted = matches!(answer, RegisterMessage::Accepted { .. });
        let message = Message::Register {
            volume,
            body: answer,
        };
        if self.config.mistakes.has(Mistake::VoteNotDurable) {
            self.send(from, message);
        } else {
            self.persist_then(volume, from, message);
        }
        if accepted {
            self.note_register(now, volume);
        }
    }

    fn reject(&mut self, to: NodeId, volume: VolumeId, ballot: crate::message::Ballot) {
        let promised = self
            .records
            .get(&volume)
            .map(|record| record.promised)
            .unwrap_or_default();
        self.send(
            to,
            Message::Register {
                volume,
                body: RegisterMessage::Rejected { ballot, promised },
            },
        );
    }
}
