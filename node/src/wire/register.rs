//! Registers and the rounds that decide them.

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::register_frame::Body;
use mainstay_replication::message::{Ballot, Message, RegisterMessage};
use mainstay_types::{
    AckRule, Incarnation, Instance, Lineage, Member, MemberKind, NodeId, Policy, PrimaryId,
    Register, RegisterId, VolumeId, VolumeKind, VolumeSpec,
};

use super::witness_set::{decode_tag, encode_tag};
use super::{WireError, decode_nodes, decode_point, encode_nodes, encode_point, epoch, number};

pub(super) fn encode_frame(volume: VolumeId, message: &RegisterMessage) -> pb::RegisterFrame {
    let body = match message {
        RegisterMessage::Prepare { ballot, set } => Body::Prepare(pb::Prepare {
            ballot: Some(encode_ballot(*ballot)),
            set: Some(encode_tag(*set)),
        }),
        RegisterMessage::Promised { ballot, accepted } => Body::Promised(pb::Promised {
            ballot: Some(encode_ballot(*ballot)),
            accepted: accepted.as_ref().map(|(ballot, value)| pb::AcceptedValue {
                ballot: Some(encode_ballot(*ballot)),
                value: Some(encode_register(value)),
            }),
        }),
        RegisterMessage::Accept { ballot, set, value } => Body::Accept(pb::Accept {
            ballot: Some(encode_ballot(*ballot)),
            set: Some(encode_tag(*set)),
            value: Some(encode_register(value)),
        }),
        RegisterMessage::Accepted { ballot } => Body::Accepted(pb::Accepted {
            ballot: Some(encode_ballot(*ballot)),
        }),
        RegisterMessage::Rejected { ballot, promised } => Body::Rejected(pb::Rejected {
            ballot: Some(encode_ballot(*ballot)),
            promised: Some(encode_ballot(*promised)),
        }),
    };
    pb::RegisterFrame {
        volume: volume.0,
        body: Some(body),
    }
}

pub(super) fn decode_frame(frame: pb::RegisterFrame) -> Result<Message, WireError> {
    let body = match frame.body.ok_or(WireError::Missing("register.body"))? {
        Body::Prepare(m) => RegisterMessage::Prepare {
            ballot: decode_ballot(m.ballot)?,
            set: decode_tag(m.set)?,
        },
        Body::Promised(m) => RegisterMessage::Promised {
            ballot: decode_ballot(m.ballot)?,
            accepted: m.accepted.map(decode_accepted).transpose()?,
        },
        Body::Accept(m) => RegisterMessage::Accept {
            ballot: decode_ballot(m.ballot)?,
            set: decode_tag(m.set)?,
            value: decode_boxed(m.value)?,
        },
        Body::Accepted(m) => RegisterMessage::Accepted {
            ballot: decode_ballot(m.ballot)?,
        },
        Body::Rejected(m) => RegisterMessage::Rejected {
            ballot: decode_ballot(m.ballot)?,
            promised: decode_ballot(m.promised)?,
        },
    };
    Ok(Message::Register {
        volume: VolumeId(frame.volume),
        body,
    })
}

fn decode_accepted(accepted: pb::AcceptedValue) -> Result<(Ballot, Box<Register>), WireError> {
    Ok((
        decode_ballot(accepted.ballot)?,
        decode_boxed(accepted.value)?,
    ))
}

pub(super) fn decode_boxed(register: Option<pb::Register>) -> Result<Box<Register>, WireError> {
    let register = register.ok_or(WireError::Missing("register"))?;
    decode_register(register).map(Box::new)
}

pub(super) fn encode_ballot(ballot: Ballot) -> pb::Ballot {
    pb::Ballot {
        counter: ballot.counter,
        proposer: ballot.proposer.0,
    }
}

pub(super) fn decode_ballot(ballot: Option<pb::Ballot>) -> Result<Ballot, WireError> {
    let ballot = ballot.ok_or(WireError::Missing("ballot"))?;
    Ok(Ballot {
        counter: number("ballot.counter", ballot.counter)?,
        proposer: Instance(ballot.proposer),
    })
}

/// A register value as it travels, also to operators.
#[must_use]
pub fn encode_register(register: &Register) -> pb::Register {
    pb::Register {
        id: register.id.0,
        version: register.version,
        lineage: register.lineage.0,
        epoch: register.epoch.0,
        primary: Some(encode_process(register.primary)),
        members: register.members.iter().map(encode_member).collect(),
        ack_quorum: register.ack_quorum,
        policy: Some(pb::Policy {
            ack: encode_ack_rule(register.policy.ack).into(),
            min_copies: register.policy.min_copies,
            placement: encode_nodes(&register.policy.placement),
            prefer: encode_nodes(&register.policy.prefer),
            shared: register.policy.shared,
        }),
        cut: Some(encode_point(register.cut)),
        spec: Some(pb::VolumeSpec {
            name: register.spec.name.as_str().to_owned(),
            kind: Some(encode_kind(register.spec.kind)),
        }),
        deleted: register.deleted,
        log_lineage: register.log_lineage.0,
    }
}

/// The register value in `register`.
///
/// # Errors
/// A field is missing, unknown or out of range, or the volume's name is not one.
pub fn decode_register(register: pb::Register) -> Result<Register, WireError> {
    let members = register
        .members
        .iter()
        .map(decode_member)
        .collect::<Result<_, _>>()?;
    Ok(Register {
        id: RegisterId(register.id),
        version: number("register.version", register.version)?,
        lineage: Lineage(register.lineage),
        log_lineage: Lineage(register.log_lineage),
        epoch: epoch("register.epoch", register.epoch)?,
        primary: decode_process("register.primary", register.primary)?,
        members,
        ack_quorum: register.ack_quorum,
        policy: decode_policy(register.policy)?,
        cut: decode_point("register.cut", register.cut)?,
        spec: decode_spec(register.spec)?,
        deleted: register.deleted,
    })
}

pub(super) fn encode_process(process: PrimaryId) -> pb::ProcessId {
    pb::ProcessId {
        node: process.node.0,
        incarnation: process.incarnation.0,
        instance: process.instance.0,
    }
}

pub(super) fn decode_process(
    field: &'static str,
    process: Option<pb::ProcessId>,
) -> Result<PrimaryId, WireError> {
    let process = process.ok_or(WireError::Missing(field))?;
    Ok(PrimaryId {
        node: NodeId(process.node),
        incarnation: Incarnation(process.incarnation),
        instance: Instance(process.instance),
    })
}

/// A member.
#[must_use]
pub fn encode_member(member: &Member) -> pb::Member {
    let kind = match member.kind {
        MemberKind::Full => pb::MemberKind::Full,
        MemberKind::Log => pb::MemberKind::Log,
    };
    pb::Member {
        node: member.node.0,
        incarnation: member.incarnation.0,
        kind: kind.into(),
    }
}

fn decode_member(member: &pb::Member) -> Result<Member, WireError> {
    let kind = match pb::MemberKind::try_from(member.kind) {
        Ok(pb::MemberKind::Full) => MemberKind::Full,
        Ok(pb::MemberKind::Log) => MemberKind::Log,
        Ok(pb::MemberKind::Unspecified) | Err(_) => {
            return Err(WireError::UnknownValue {
                field: "member.kind",
                value: member.kind,
            });
        }
    };
    Ok(Member {
        node: NodeId(member.node),
        incarnation: Incarnation(member.incarnation),
        kind,
    })
}

fn encode_ack_rule(rule: AckRule) -> pb::AckRule {
    match rule {
        AckRule::Majority => pb::AckRule::Majority,
        AckRule::All => pb::AckRule::All,
    }
}

fn decode_policy(policy: Option<pb::Policy>) -> Result<Policy, WireError> {
    let policy = policy.ok_or(WireError::Missing("policy"))?;
    let ack = match pb::AckRule::try_from(policy.ack) {
        Ok(pb::AckRule::Majority) => AckRule::Majority,
        Ok(pb::AckRule::All) => AckRule::All,
        Ok(pb::AckRule::Unspecified) | Err(_) => {
            return Err(WireError::UnknownValue {
                field: "policy.ack",
                value: policy.ack,
            });
        }
    };
    Ok(Policy {
        ack,
        min_copies: policy.min_copies,
        placement: decode_nodes(policy.placement),
        prefer: decode_nodes(policy.prefer),
        shared: policy.shared,
    })
}

/// A volume's kind.
#[must_use]
pub fn encode_kind(kind: VolumeKind) -> pb::VolumeKind {
    use pb::volume_kind::Kind;
    let kind = match kind {
        VolumeKind::Log => Kind::Log(pb::LogKind {}),
        VolumeKind::Block { size_bytes } => Kind::Block(pb::BlockKind { size_bytes }),
    };
    pb::VolumeKind { kind: Some(kind) }
}

fn decode_spec(spec: Option<pb::VolumeSpec>) -> Result<VolumeSpec, WireError> {
    use pb::volume_kind::Kind;
    let spec = spec.ok_or(WireError::Missing("spec"))?;
    let kind = match spec.kind.and_then(|kind| kind.kind) {
        Some(Kind::Log(_)) => VolumeKind::Log,
        Some(Kind::Block(block)) => VolumeKind::Block {
            size_bytes: number("spec.size_bytes", block.size_bytes)?,
        },
        None => return Err(WireError::Missing("spec.kind")),
    };
    Ok(VolumeSpec {
        name: spec.name.parse().map_err(WireError::Name)?,
        kind,
    })
}
