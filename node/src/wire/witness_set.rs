//! The witnesses themselves, and the steps from one set of them to another.

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::set_round::Body as Round;
use mainstay_proto::v1::set_step::Body;
use mainstay_replication::message::{RegisterMessage, SetStep};
use mainstay_replication::{SetTag, Voter, WitnessSet};
use mainstay_types::{Epoch, NodeId, VolumeId};

use super::register::{decode_ballot, encode_ballot};
use super::{WireError, epoch, number};

/// No set has more voters: a hostile one is not taken up.
const VOTERS_MAX: usize = 64;

pub(super) fn encode_tag(tag: SetTag) -> pb::SetTag {
    pb::SetTag {
        version: tag.version,
        id: tag.id,
    }
}

pub(super) fn decode_tag(tag: Option<pb::SetTag>) -> Result<SetTag, WireError> {
    let tag = tag.ok_or(WireError::Missing("set"))?;
    Ok(SetTag {
        version: number("set.version", tag.version)?,
        id: tag.id,
    })
}

/// A set as it travels, also to operators.
#[must_use]
pub fn encode_set(set: &WitnessSet) -> pb::WitnessSet {
    let voters = |voters: &[Voter]| voters.iter().map(encode_voter).collect();
    pb::WitnessSet {
        tag: Some(encode_tag(set.tag)),
        voters: voters(&set.voters),
        next: set.next.as_ref().map(|next| pb::VoterList {
            voters: voters(next),
        }),
    }
}

/// The set in `set`.
///
/// # Errors
/// A field is missing or out of range, or a node is there twice.
pub fn decode_set(set: pb::WitnessSet) -> Result<WitnessSet, WireError> {
    Ok(WitnessSet {
        tag: decode_tag(set.tag)?,
        voters: decode_voters(set.voters)?,
        next: set
            .next
            .map(|next| decode_voters(next.voters))
            .transpose()?,
    })
}

fn encode_voter(voter: &Voter) -> pb::Voter {
    pb::Voter {
        node: voter.node.0,
        store: voter.store,
        address: voter.address.clone(),
    }
}

fn decode_voters(voters: Vec<pb::Voter>) -> Result<Vec<Voter>, WireError> {
    // A set of nobody could never decide anything again.
    if voters.is_empty() {
        return Err(WireError::Missing("voters"));
    }
    let mut out: Vec<Voter> = Vec::new();
    for voter in voters {
        let node = NodeId(voter.node);
        if out.len() == VOTERS_MAX || out.iter().any(|known| known.node == node) {
            return Err(WireError::Voters(node));
        }
        out.push(Voter {
            node,
            store: voter.store,
            address: voter.address,
        });
    }
    Ok(out)
}

pub(super) fn encode_step(step: &SetStep) -> pb::SetStep {
    let body = match step {
        SetStep::Wanted => Body::Wanted(pb::SetWanted {}),
        SetStep::Probe { set } => Body::Probe(encode_tag(*set)),
        SetStep::Votes { set } => Body::Votes(encode_tag(*set)),
        SetStep::Invite { nonce } => Body::Invite(pb::SetInvite { nonce: *nonce }),
        SetStep::Invited { store, nonce } => Body::Invited(pb::SetInvited {
            store: *store,
            nonce: *nonce,
        }),
        SetStep::Round(body) => Body::Round(encode_round(body)),
        SetStep::Adopted {
            set,
            volumes,
            lease_longest_ms,
        } => Body::Adopted(pb::SetAdopted {
            set: Some(encode_tag(*set)),
            volumes: volumes.iter().map(encode_fence).collect(),
            lease_longest_ms: *lease_longest_ms,
        }),
        SetStep::Install {
            set,
            volumes,
            lease_longest_ms,
        } => Body::Install(pb::SetInstall {
            set: Some(encode_tag(*set)),
            volumes: volumes.iter().map(encode_fence).collect(),
            lease_longest_ms: *lease_longest_ms,
        }),
        SetStep::Installed { set } => Body::Installed(pb::SetInstalled {
            set: Some(encode_tag(*set)),
        }),
    };
    pb::SetStep { body: Some(body) }
}

pub(super) fn decode_step(step: pb::SetStep) -> Result<SetStep, WireError> {
    Ok(
        match step.body.ok_or(WireError::Missing("set_step.body"))? {
            Body::Wanted(_) => SetStep::Wanted,
            Body::Probe(set) => SetStep::Probe {
                set: decode_tag(Some(set))?,
            },
            Body::Votes(set) => SetStep::Votes {
                set: decode_tag(Some(set))?,
            },
            Body::Invite(m) => SetStep::Invite { nonce: m.nonce },
            Body::Invited(m) => SetStep::Invited {
                store: m.store,
                nonce: m.nonce,
            },
            Body::Round(m) => SetStep::Round(decode_round(m)?),
            Body::Adopted(m) => SetStep::Adopted {
                set: decode_tag(m.set)?,
                volumes: decode_fences(m.volumes)?,
                lease_longest_ms: m.lease_longest_ms,
            },
            Body::Install(m) => SetStep::Install {
                set: decode_tag(m.set)?,
                volumes: decode_fences(m.volumes)?,
                lease_longest_ms: m.lease_longest_ms,
            },
            Body::Installed(m) => SetStep::Installed {
                set: decode_tag(m.set)?,
            },
        },
    )
}

fn encode_fence((volume, epoch): &(VolumeId, Epoch)) -> pb::VolumeFence {
    pb::VolumeFence {
        volume: volume.0,
        epoch: epoch.0,
    }
}

fn decode_fences(fences: Vec<pb::VolumeFence>) -> Result<Vec<(VolumeId, Epoch)>, WireError> {
    let decode = |fence: pb::VolumeFence| {
        Ok((
            VolumeId(fence.volume),
            epoch("volume_fence.epoch", fence.epoch)?,
        ))
    };
    fences.into_iter().map(decode).collect()
}

fn encode_round(message: &RegisterMessage<WitnessSet>) -> pb::SetRound {
    let body = match message {
        RegisterMessage::Prepare { ballot, set } => Round::Prepare(pb::Prepare {
            ballot: Some(encode_ballot(*ballot)),
            set: Some(encode_tag(*set)),
        }),
        RegisterMessage::Promised { ballot, accepted } => Round::Promised(pb::SetPromised {
            ballot: Some(encode_ballot(*ballot)),
            accepted_at: accepted.as_ref().map(|(at, _)| encode_ballot(*at)),
            accepted: accepted.as_ref().map(|(_, set)| encode_set(set)),
        }),
        RegisterMessage::Accept { ballot, set, value } => Round::Accept(pb::SetAccept {
            ballot: Some(encode_ballot(*ballot)),
            set: Some(encode_tag(*set)),
            value: Some(encode_set(value)),
        }),
        RegisterMessage::Accepted { ballot } => Round::Accepted(pb::Accepted {
            ballot: Some(encode_ballot(*ballot)),
        }),
        RegisterMessage::Rejected { ballot, promised } => Round::Rejected(pb::Rejected {
            ballot: Some(encode_ballot(*ballot)),
            promised: Some(encode_ballot(*promised)),
        }),
    };
    pb::SetRound { body: Some(body) }
}

fn decode_round(round: pb::SetRound) -> Result<RegisterMessage<WitnessSet>, WireError> {
    Ok(
        match round.body.ok_or(WireError::Missing("set_round.body"))? {
            Round::Prepare(m) => RegisterMessage::Prepare {
                ballot: decode_ballot(m.ballot)?,
                set: decode_tag(m.set)?,
            },
            Round::Promised(m) => {
                let accepted = match (m.accepted_at, m.accepted) {
                    (Some(at), Some(set)) => {
                        Some((decode_ballot(Some(at))?, Box::new(decode_set(set)?)))
                    }
                    (None, None) => None,
                    _ => return Err(WireError::Missing("set_promised.accepted")),
                };
                RegisterMessage::Promised {
                    ballot: decode_ballot(m.ballot)?,
                    accepted,
                }
            }
            Round::Accept(m) => RegisterMessage::Accept {
                ballot: decode_ballot(m.ballot)?,
                set: decode_tag(m.set)?,
                value: Box::new(decode_set(
                    m.value.ok_or(WireError::Missing("set_accept.value"))?,
                )?),
            },
            Round::Accepted(m) => RegisterMessage::Accepted {
                ballot: decode_ballot(m.ballot)?,
            },
            Round::Rejected(m) => RegisterMessage::Rejected {
                ballot: decode_ballot(m.ballot)?,
                promised: decode_ballot(m.promised)?,
            },
        },
    )
}
