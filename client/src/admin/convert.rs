//! From the wire's messages to plain types and back. What a later server adds is shown as unknown, never an error; what
//! no description makes sense without is an error.

use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_types::{
    AckRule, ClusterId, Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, MemberKind, NodeId,
    SessionId, VolumeId, VolumeKind,
};

use super::promotions::{Certificate, FenceAnswer, Promote, PromoteRefused, Promoted, SealReport};
use super::types::{
    AttachmentStatus, ClusterStatus, CreateVolume, Created, Event, EventFilter, EventKind,
    LearnerPhase, LearnerStatus, MemberRole, MemberStatus, NodeHealth, NodeStatus, Severity,
    StoreStatus, VolumeHealth, VolumeStatus, VoterStatus,
};
use crate::{AdminError, Retention};

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn nodes(nodes: &[u32]) -> Vec<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn point(point: Option<pb::LogPoint>) -> LogPoint {
    point.map_or(LogPoint::ZERO, |point| LogPoint {
        epoch: Epoch(point.epoch),
        lsn: Lsn(point.lsn),
    })
}

fn misfit(what: &str) -> AdminError {
    AdminError::Invalid {
        message: format!("the server's answer lacks {what}"),
    }
}

pub(super) fn create_request(wanted: &CreateVolume, patience: Duration) -> pb::CreateVolumeRequest {
    use pb::volume_kind::Kind;
    let kind = match wanted.kind {
        VolumeKind::Log => Kind::Log(pb::LogKind {}),
        VolumeKind::Block { size_bytes } => Kind::Block(pb::BlockKind { size_bytes }),
    };
    let ack = match wanted.ack {
        None => pb::AckRule::Unspecified,
        Some(AckRule::Majority) => pb::AckRule::Majority,
        Some(AckRule::All) => pb::AckRule::All,
    };
    pb::CreateVolumeRequest {
        spec: Some(pb::VolumeSpec {
            name: wanted.name.clone(),
            kind: Some(pb::VolumeKind { kind: Some(kind) }),
        }),
        copies: wanted.copies,
        placement: wanted.placement.iter().map(|node| node.0).collect(),
        prefer: wanted.prefer.iter().map(|node| node.0).collect(),
        shared: wanted.shared,
        ack: ack.into(),
        min_copies: wanted.min_copies,
        patience_ms: millis(patience),
    }
}

pub(super) fn created(reply: pb::CreateVolumeReply) -> Result<Created, AdminError> {
    Ok(Created {
        volume: volume(reply.volume.unwrap_or_default())?,
        existed: reply.existed,
    })
}

pub(super) fn promote_request(promote: &Promote, patience: Duration) -> pb::PromoteRequest {
    pb::PromoteRequest {
        volume: promote.volume.clone(),
        to: promote.to.map(|node| node.0),
        force: promote.force,
        accept_data_loss: promote.accept_data_loss,
        declared_off: promote.declared_off.iter().map(|node| node.0).collect(),
        reason: promote.reason.clone(),
        patience_ms: millis(patience),
        min_copies: promote.min_copies,
    }
}

pub(super) fn promoted(reply: pb::PromoteReply) -> Result<Promoted, AdminError> {
    use pb::promote_reply::Outcome;
    match reply.outcome.ok_or_else(|| misfit("an outcome"))? {
        Outcome::Promoted(promoted) => Ok(Promoted {
            epoch: Epoch(promoted.epoch),
            primary: NodeId(promoted.primary),
            certificate: promoted.certificate.map(certificate),
        }),
        Outcome::Refused(refused) => Err(AdminError::PromoteRefused(Box::new(promote_refused(
            refused,
        )))),
    }
}

fn promote_refused(refused: pb::PromoteRefused) -> PromoteRefused {
    use pb::promote_refused::Reason;
    match refused.reason {
        Some(Reason::AlreadyPrimary(_)) => PromoteRefused::AlreadyPrimary,
        Some(Reason::NotAMember(_)) => PromoteRefused::NotAMember,
        Some(Reason::Behind(m)) => PromoteRefused::Behind {
            have: Lsn(m.have_lsn),
            need: Lsn(m.need_lsn),
        },
        Some(Reason::NotIntact(_)) => PromoteRefused::NotIntact,
        Some(Reason::NoWitnessQuorum(m)) => PromoteRefused::NoWitnessQuorum {
            votes: m.votes,
            needed: m.needed,
        },
        Some(Reason::NoSight(m)) => PromoteRefused::NoSight {
            answers: m.answers,
            needed: m.needed,
            missing: nodes(&m.missing),
        },
        Some(Reason::LeaseHeld(m)) => PromoteRefused::LeaseHeld {
            epoch: Epoch(m.epoch),
            remaining_ms: m.remaining_ms,
        },
        Some(Reason::HoldDown(m)) => PromoteRefused::HoldDown {
            remaining_ms: m.remaining_ms,
        },
        Some(Reason::ExternalFenceFailed(m)) => {
            PromoteRefused::ExternalFenceFailed { output: m.output }
        }
        Some(Reason::WouldLose(m)) => PromoteRefused::WouldLose {
            message: refused.message,
            from: Lsn(m.from_lsn),
            to: m.to_lsn.map(Lsn),
            not_fenced: nodes(&m.not_fenced),
        },
        Some(Reason::Raced(m)) => PromoteRefused::Raced {
            epoch: Epoch(m.epoch),
            primary: NodeId(m.primary),
        },
        None => PromoteRefused::Other {
            message: refused.message,
        },
    }
}

pub(super) fn status(reply: pb::StatusReply) -> Result<ClusterStatus, AdminError> {
    Ok(ClusterStatus {
        cluster: ClusterId(reply.cluster),
        answered_by: NodeId(reply.answered_by),
        unix_ms: reply.unix_ms,
        witnesses: reply.witnesses,
        witnesses_reachable: reply.witnesses_reachable,
        nodes: reply.nodes.into_iter().map(node).collect(),
        volumes: reply
            .volumes
            .into_iter()
            .map(volume)
            .collect::<Result<_, _>>()?,
    })
}

fn node(m: pb::NodeStatus) -> NodeStatus {
    NodeStatus {
        node: NodeId(m.node),
        address: m.address,
        data: m.data,
        witness: m.witness,
        zone: m.zone,
        reachable: m.reachable,
        instance: Instance(m.instance),
        release: m.release,
        uptime_ms: m.uptime_ms,
        silent_ms: m.silent_ms,
        healthy: m.healthy,
        reason: m.reason,
        store: m.data_status.map(|m| StoreStatus {
            bytes: m.store_bytes,
            free_bytes: m.store_free_bytes,
            engine: m.engine,
            sync_p50_us: m.sync_p50_us,
            sync_max_us: m.sync_max_us,
            volumes: m.volumes,
            primaries: m.primaries,
        }),
        voter: m.witness_status.map(|m| VoterStatus {
            quiet_ms: m.quiet_ms,
            registers: m.registers,
            grants: m.grants,
        }),
    }
}

fn kind(kind: Option<pb::VolumeKind>) -> Result<VolumeKind, AdminError> {
    use pb::volume_kind::Kind;
    match kind.and_then(|kind| kind.kind) {
        Some(Kind::Log(_)) => Ok(VolumeKind::Log),
        Some(Kind::Block(block)) => Ok(VolumeKind::Block {
            size_bytes: block.size_bytes,
        }),
        None => Err(misfit("the volume's kind")),
    }
}

pub(super) fn volume(m: pb::VolumeStatus) -> Result<VolumeStatus, AdminError> {
    use pb::VolumeHealth as Health;
    let register = m.register.ok_or_else(|| misfit("the volume's register"))?;
    let spec = register
        .spec
        .ok_or_else(|| misfit("the volume's specification"))?;
    let policy = register.policy.unwrap_or_default();
    let primary = register.primary.unwrap_or_default();
    let lease = m.lease.unwrap_or_default();
    Ok(VolumeStatus {
        id: VolumeId(m.volume),
        name: spec.name,
        kind: kind(spec.kind)?,
        health: match Health::try_from(m.health) {
            Ok(Health::Ok) => VolumeHealth::Ok,
            Ok(Health::Degraded) => VolumeHealth::Degraded,
            Ok(Health::Promoting) => VolumeHealth::Promoting,
            Ok(Health::Unavailable) => VolumeHealth::Unavailable,
            Ok(Health::Unspecified) | Err(_) => VolumeHealth::Unknown,
        },
        problems: m.problems,
        deleted: register.deleted,
        epoch: Epoch(register.epoch),
        epoch_started_unix_ms: m.epoch_started_unix_ms,
        primary: NodeId(primary.node),
        primary_instance: Instance(primary.instance),
        register_version: register.version,
        lineage: Lineage(register.lineage),
        ack: match pb::AckRule::try_from(policy.ack) {
            Ok(pb::AckRule::All) => AckRule::All,
            _ => AckRule::Majority,
        },
        ack_quorum: register.ack_quorum,
        min_copies: policy.min_copies,
        placement: nodes(&policy.placement),
        prefer: nodes(&policy.prefer),
        shared: policy.shared,
        cut: point(register.cut),
        seen_by: NodeId(m.seen_by),
        authoritative: m.authoritative,
        lease_held: lease.held,
        lease_remaining_ms: lease.remaining_ms,
        lease_granted_by: nodes(&lease.granted_by),
        first_lsn: Lsn(m.first_lsn),
        first_shown_lsn: Lsn(m.first_shown_lsn),
        retention: m.retention.map(|policy| Retention::decode(Some(policy))),
        accepted_lsn: Lsn(m.accepted_lsn),
        commit_lsn: Lsn(m.commit_lsn),
        applied_lsn: Lsn(m.applied_lsn),
        uncommitted_age_ms: m.uncommitted_age_ms,
        wal_bytes: m.wal_bytes,
        members: m.members.into_iter().map(member).collect(),
        learners: m.learners.into_iter().map(learner).collect(),
        change: m.change,
        sessions: m.sessions,
        attachments: m.attachments.into_iter().map(attachment).collect(),
        hold_down_ms: m.hold_down_ms,
    })
}

fn member(m: pb::MemberStatus) -> MemberStatus {
    use pb::MemberRole as Role;
    let copy = m.member.unwrap_or_default();
    MemberStatus {
        node: NodeId(copy.node),
        incarnation: Incarnation(copy.incarnation),
        kind: match pb::MemberKind::try_from(copy.kind) {
            Ok(pb::MemberKind::Log) => MemberKind::Log,
            _ => MemberKind::Full,
        },
        role: match Role::try_from(m.role) {
            Ok(Role::Primary) => MemberRole::Primary,
            Ok(Role::Replica) => MemberRole::Replica,
            Ok(Role::CatchingUp) => MemberRole::CatchingUp,
            Ok(Role::Silent) => MemberRole::Silent,
            Ok(Role::Refusing) => MemberRole::Refusing,
            Ok(Role::Unspecified) | Err(_) => MemberRole::Unknown,
        },
        sealed_epoch: Epoch(m.sealed_epoch),
        durable_lsn: Lsn(m.durable_lsn),
        committed_lsn: Lsn(m.committed_lsn),
        lag_entries: m.lag_entries,
        lag_bytes: m.lag_bytes,
        lag_ms: m.lag_ms,
        silent_ms: m.silent_ms,
        damaged: m.damaged,
        rebuilding: m.rebuilding,
        in_doubt: m.doubt.is_some(),
        reason: m.reason,
        bytes_in_flight: m.bytes_in_flight,
    }
}

fn learner(m: pb::LearnerStatus) -> LearnerStatus {
    use pb::LearnerPhase as Phase;
    LearnerStatus {
        node: NodeId(m.node),
        incarnation: Incarnation(m.incarnation),
        phase: match Phase::try_from(m.phase) {
            Ok(Phase::Log) => LearnerPhase::Log,
            Ok(Phase::Image) => LearnerPhase::Image,
            Ok(Phase::Verify) => LearnerPhase::Verify,
            Ok(Phase::Ready) => LearnerPhase::Ready,
            Ok(Phase::Unspecified) | Err(_) => LearnerPhase::Unknown,
        },
        durable_lsn: Lsn(m.durable_lsn),
        target_lsn: Lsn(m.target_lsn),
        bytes_done: m.bytes_done,
        bytes_total: m.bytes_total,
        bytes_per_second: m.bytes_per_second,
        eta_ms: (m.eta_ms > 0).then_some(m.eta_ms),
        reason: m.reason,
    }
}

fn attachment(m: pb::AttachmentStatus) -> AttachmentStatus {
    AttachmentStatus {
        name: m.name,
        session: SessionId(m.session),
        generation: m.generation,
        since: point(m.since),
    }
}

fn certificate(m: pb::Certificate) -> Certificate {
    let after = m.primary_after.unwrap_or_default();
    Certificate {
        epoch_before: Epoch(m.epoch_before),
        epoch_after: Epoch(m.epoch_after),
        lineage: Lineage(m.lineage),
        forced: m.forced,
        reason: m.reason,
        primary_before: NodeId(m.primary_before),
        primary_after: NodeId(after.node),
        instance_after: Instance(after.instance),
        driven_by: NodeId(m.driven_by),
        fences: m.fences.into_iter().map(fence_answer).collect(),
        seals: m.seals.into_iter().map(seal_report).collect(),
        sight_needed: m.sight_needed,
        cut: point(m.cut),
        external_fence: m.external_fence,
        began_unix_ms: m.began_unix_ms,
        took_ms: m.took_ms,
        nothing_lost: m.nothing_lost,
        doubt_from: (m.doubt_from > 0).then_some(Lsn(m.doubt_from)),
        doubt_to: m.doubt_to.map(Lsn),
        members_after: nodes(&m.members_after),
        ack_quorum_after: m.ack_quorum_after,
    }
}

fn fence_answer(m: pb::FenceAnswer) -> FenceAnswer {
    FenceAnswer {
        witness: NodeId(m.witness),
        fenced: m.fenced,
        after_ms: m.after_ms,
    }
}

fn seal_report(m: pb::SealReport) -> SealReport {
    SealReport {
        node: NodeId(m.node),
        incarnation: Incarnation(m.incarnation),
        answer: m.answer,
        last: point(m.last),
        after_ms: m.after_ms,
    }
}

pub(super) fn events_request(filter: &EventFilter) -> pb::EventsRequest {
    pb::EventsRequest {
        since: filter.since,
        volume: filter.volume.clone().unwrap_or_default(),
        follow: filter.follow,
        past_max: filter.past_max,
    }
}

pub(super) fn event(m: pb::Event) -> Event {
    Event {
        number: m.number,
        unix_ms: m.unix_ms,
        node: NodeId(m.node),
        kind: event_kind(m.kind),
        severity: match pb::Severity::try_from(m.severity) {
            Ok(pb::Severity::Info) => Severity::Info,
            Ok(pb::Severity::Warning) => Severity::Warning,
            Ok(pb::Severity::Alarm) => Severity::Alarm,
            Ok(pb::Severity::Unspecified) | Err(_) => Severity::Unknown,
        },
        volume: (!m.volume.is_empty()).then_some(m.volume),
        epoch: Epoch(m.epoch),
        lsn: Lsn(m.lsn),
        message: m.message,
        certificate: m.certificate.map(certificate),
    }
}

fn event_kind(kind: i32) -> EventKind {
    use pb::EventKind as Kind;
    match Kind::try_from(kind) {
        Ok(Kind::VolumeCreated) => EventKind::VolumeCreated,
        Ok(Kind::VolumeDeleted) => EventKind::VolumeDeleted,
        Ok(Kind::PrimaryLost) => EventKind::PrimaryLost,
        Ok(Kind::Promoted) => EventKind::Promoted,
        Ok(Kind::SteppedDown) => EventKind::SteppedDown,
        Ok(Kind::MemberAdded) => EventKind::MemberAdded,
        Ok(Kind::MemberRemoved) => EventKind::MemberRemoved,
        Ok(Kind::MemberSilent) => EventKind::MemberSilent,
        Ok(Kind::MemberBack) => EventKind::MemberBack,
        Ok(Kind::DamageFound) => EventKind::DamageFound,
        Ok(Kind::Repaired) => EventKind::Repaired,
        Ok(Kind::BranchKept) => EventKind::BranchKept,
        Ok(Kind::RebuildStarted) => EventKind::RebuildStarted,
        Ok(Kind::RebuildDone) => EventKind::RebuildDone,
        Ok(Kind::FewerCopies) => EventKind::FewerCopies,
        Ok(Kind::CopiesRestored) => EventKind::CopiesRestored,
        Ok(Kind::Attached) => EventKind::Attached,
        Ok(Kind::TakenOver) => EventKind::TakenOver,
        Ok(Kind::DiskFailed) => EventKind::DiskFailed,
        Ok(Kind::NodeStarted) => EventKind::NodeStarted,
        Ok(Kind::NodeStopped) => EventKind::NodeStopped,
        Ok(Kind::WitnessQuorumLost) => EventKind::WitnessQuorumLost,
        Ok(Kind::WitnessQuorumBack) => EventKind::WitnessQuorumBack,
        Ok(Kind::Flapping) => EventKind::Flapping,
        Ok(Kind::ExternalFenceFailed) => EventKind::ExternalFenceFailed,
        Ok(Kind::RequestsOverdue) => EventKind::RequestsOverdue,
        Ok(Kind::CertificatesChanged) => EventKind::CertificatesChanged,
        Ok(Kind::HookFailed) => EventKind::HookFailed,
        Ok(Kind::WitnessesChanged) => EventKind::WitnessesChanged,
        Ok(Kind::PolicyChanged) => EventKind::PolicyChanged,
        Ok(Kind::Unspecified) | Err(_) => EventKind::Unknown,
    }
}

pub(super) fn health(m: pb::HealthReply) -> NodeHealth {
    NodeHealth {
        node: NodeId(m.node),
        instance: Instance(m.instance),
        release: m.release,
        ready: m.ready,
        reason: m.reason,
        volumes: m.volumes,
        primaries: m.primaries,
    }
}
