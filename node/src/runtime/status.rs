//! What a node tells operators: its own knowledge, and that of all nodes put together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::tuning::client_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::admin_client::AdminClient;
use mainstay_replication::{PeerStatus, Role};
use mainstay_types::{Member, MonoTime, NodeId, Register, VolumeKind, VolumeName};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::report::VolumeReport;
use super::{Node, admin_ops, clock};
use crate::wire::encode_register;

/// How long another node may take to tell what it knows.
const ASK: Duration = Duration::from_millis(800);

/// A report older than this means a thread that hangs.
const STALE: Duration = Duration::from_secs(2);

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What this node knows by itself.
pub fn local(node: &Node) -> pb::StatusReply {
    let heard = node.heard();
    let lease = node.settings.lease.lease;
    let reachable = heard
        .iter()
        .filter(|(_, ago)| ago.is_some_and(|ago| ago < lease))
        .count();
    let registers = node.registers();
    pb::StatusReply {
        cluster: node.settings.cluster.0,
        answered_by: node.settings.node.0,
        unix_ms: clock::unix_ms(),
        nodes: vec![own_status(node)],
        volumes: registers
            .iter()
            .filter(|r| !r.deleted)
            .map(|register| volume(node, register))
            .collect(),
        witnesses: count(node.witnesses().nodes().len()),
        witnesses_reachable: count(reachable),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn own_status(node: &Node) -> pb::NodeStatus {
    let handles = node.volumes();
    let reports: Vec<VolumeReport> = handles
        .iter()
        .map(super::handle::VolumeHandle::report)
        .collect();
    let failed: Vec<String> = handles
        .iter()
        .zip(&reports)
        .filter_map(|(handle, report)| {
            let why = report.failed.clone().or_else(|| {
                (clock::mono().since(report.at) > STALE)
                    .then(|| "its thread does not answer".to_owned())
            })?;
            Some(format!("{}: {why}", handle.spec.name))
        })
        .collect();
    let settings = &node.settings;
    pb::NodeStatus {
        node: settings.node.0,
        address: settings.address.clone(),
        data: settings.data,
        witness: settings.witness,
        zone: String::new(),
        reachable: true,
        instance: node.instance.0,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: ms(clock::mono().since(node.started)),
        silent_ms: 0,
        healthy: failed.is_empty(),
        reason: failed.join("; "),
        data_status: settings.data.then(|| pb::DataStatus {
            engine: format!("{:?}", settings.engine).to_lowercase(),
            volumes: count(handles.len()),
            primaries: count(
                reports
                    .iter()
                    .filter(|r| matches!(r.role, Role::Primary { .. }))
                    .count(),
            ),
            ..pb::DataStatus::default()
        }),
        witness_status: settings.witness.then(pb::WitnessStatus::default),
    }
}

/// One volume as this node knows it.
pub fn volume(node: &Node, register: &Register) -> pb::VolumeStatus {
    let mut status = pb::VolumeStatus {
        volume: register.spec.name.id().0,
        register: Some(encode_register(register)),
        seen_by: node.settings.node.0,
        hold_down_ms: ms(node.hold_down(register.spec.name.id())),
        ..pb::VolumeStatus::default()
    };
    status.set_health(pb::VolumeHealth::Unavailable);
    let Some(handle) = node.volume(register.spec.name.id()) else {
        return status;
    };
    let report = handle.report();
    status.first_lsn = report.first.0;
    if register.spec.kind == VolumeKind::Log {
        status.first_shown_lsn = report.first_shown.0;
        status.retention = Some(super::client_replies::retention(report.retention));
    }
    status.accepted_lsn = report.last.0;
    status.commit_lsn = report.commit.0;
    status.applied_lsn = report.applied.0;
    status.sessions = count(report.sessions);
    status.attachments = report
        .attached
        .iter()
        .map(|name| pb::AttachmentStatus {
            name: name.clone(),
            ..pb::AttachmentStatus::default()
        })
        .collect();
    let own_role = match report.role {
        Role::Primary { .. } | Role::Starting { .. } | Role::Draining { .. } => {
            pb::MemberRole::Primary
        }
        Role::Replica { .. } if report.rebuilding => pb::MemberRole::CatchingUp,
        Role::Replica { .. } => pb::MemberRole::Replica,
        Role::Idle => pb::MemberRole::Silent,
        Role::Failed => pb::MemberRole::Refusing,
    };
    if let Some(member) = register.member(node.settings.node) {
        let mut own = pb::MemberStatus {
            member: Some(crate::wire::encode_member(member)),
            sealed_epoch: report.sealed.0,
            durable_lsn: report.durable.0,
            committed_lsn: report.commit.0,
            rebuilding: report.rebuilding,
            reason: report.failed.clone().unwrap_or_default(),
            ..pb::MemberStatus::default()
        };
        own.set_role(own_role);
        status.members.push(own);
    }
    if let Some((epoch, waiting)) = report.acting {
        status.authoritative = true;
        status.uncommitted_age_ms = ms(waiting);
        let remaining = report.lease_until.since(clock::mono());
        status.lease = Some(pb::LeaseStatus {
            held: !remaining.is_zero(),
            remaining_ms: ms(remaining),
            granted_by: Vec::new(),
        });
        let serving = matches!(report.role, Role::Primary { .. }) && epoch == register.epoch;
        peers(&mut status, register, &report);
        let wanted = register.policy.placement.len();
        let full = register.members.len() >= wanted;
        let silent = report.peers.iter().any(|peer| {
            let member = register.member(peer.node);
            member.is_some_and(|member| peer.unreachable || replaced(peer, member))
        });
        status.set_health(match (serving, full && !silent) {
            (false, _) => pb::VolumeHealth::Promoting,
            (true, true) => pb::VolumeHealth::Ok,
            (true, false) => pb::VolumeHealth::Degraded,
        });
        if !full {
            status.problems.push(format!(
                "{} of {wanted} copies are members",
                register.members.len()
            ));
        }
        if report.changing {
            status.change = "a membership change is under way".to_owned();
        }
    }
    status
}

/// Whether another copy than the registered one answers on the member's node.
fn replaced(peer: &PeerStatus, member: &Member) -> bool {
    peer.incarnation
        .is_some_and(|incarnation| incarnation != member.incarnation)
}

/// The other copies, as the primary sees them.
fn peers(status: &mut pb::VolumeStatus, register: &Register, report: &VolumeReport) {
    for peer in &report.peers {
        let lag = report.last.0.saturating_sub(peer.acked.0);
        let silent_ms = ms(clock::mono().since(peer.last_heard));
        let Some(member) = register.member(peer.node) else {
            let mut learner = pb::LearnerStatus {
                node: peer.node.0,
                incarnation: peer.incarnation.map_or(0, |incarnation| incarnation.0),
                durable_lsn: peer.acked.0,
                target_lsn: report.last.0,
                ..pb::LearnerStatus::default()
            };
            learner.set_phase(if peer.rebuilding {
                pb::LearnerPhase::Image
            } else {
                pb::LearnerPhase::Log
            });
            if peer.unreachable {
                learner.reason = format!("silent for {silent_ms} ms");
            }
            status.learners.push(learner);
            continue;
        };
        let is_replaced = replaced(peer, member);
        let mut member = pb::MemberStatus {
            member: Some(crate::wire::encode_member(member)),
            durable_lsn: peer.acked.0,
            committed_lsn: peer.acked.0.min(report.commit.0),
            lag_entries: lag,
            silent_ms,
            rebuilding: peer.rebuilding,
            reason: peer
                .refused
                .map(|reason| format!("{reason:?}").to_lowercase())
                .unwrap_or_default(),
            ..pb::MemberStatus::default()
        };
        if is_replaced {
            member.reason = "another copy answers there; this one is to be dropped".to_owned();
        }
        member.set_role(match (peer.unreachable, peer.refused) {
            _ if is_replaced => pb::MemberRole::CatchingUp,
            (_, Some(_)) => pb::MemberRole::Refusing,
            (true, None) => pb::MemberRole::Silent,
            (false, None) => pb::MemberRole::Replica,
        });
        status.members.push(member);
    }
}

/// What all nodes know together: of each volume the word of its primary, else the newest.
pub async fn gather(node: &Arc<Node>) -> pb::StatusReply {
    let mut all = local(node);
    let asks = node.settings.peers.iter().map(|peer| async move {
        let reply = tokio::time::timeout(ASK, async {
            let channel = client_endpoint(&peer.address)?.connect().await?;
            let reply = AdminClient::new(channel)
                .status(pb::StatusRequest { local: true })
                .await?;
            anyhow::Ok(reply.into_inner())
        });
        (peer, reply.await.ok().and_then(Result::ok))
    });
    for (peer, reply) in futures_util::future::join_all(asks).await {
        match reply {
            Some(reply) => {
                all.nodes.extend(reply.nodes);
                all.volumes.extend(reply.volumes);
                all.witnesses_reachable = all.witnesses_reachable.max(reply.witnesses_reachable);
            }
            None => all.nodes.push(pb::NodeStatus {
                node: peer.node.0,
                address: peer.address.clone(),
                data: peer.data,
                witness: peer.witness,
                reason: "does not answer".to_owned(),
                ..pb::NodeStatus::default()
            }),
        }
    }
    all.nodes.sort_by_key(|node| node.node);
    all.volumes = merge(std::mem::take(&mut all.volumes));
    all
}

fn rank(status: &pb::VolumeStatus) -> (u64, u64, bool) {
    let register = status.register.as_ref();
    (
        register.map_or(0, |register| register.epoch),
        register.map_or(0, |register| register.version),
        status.authoritative,
    )
}

/// One status a volume: the best witness of it, with what each member says of itself where the primary does not.
fn merge(statuses: Vec<pb::VolumeStatus>) -> Vec<pb::VolumeStatus> {
    let mut by_volume: BTreeMap<u64, Vec<pb::VolumeStatus>> = BTreeMap::new();
    for status in statuses {
        by_volume.entry(status.volume).or_default().push(status);
    }
    let mut merged = Vec::new();
    for mut group in by_volume.into_values() {
        group.sort_by_key(|status| std::cmp::Reverse(rank(status)));
        let mut best = group.remove(0);
        // Only witnesses know of it.
        let held_down = group.iter().map(|status| status.hold_down_ms).max();
        best.hold_down_ms = best.hold_down_ms.max(held_down.unwrap_or(0));
        for member in group.into_iter().flat_map(|status| status.members) {
            let node = member.member.as_ref().map(|member| member.node);
            match best
                .members
                .iter_mut()
                .find(|known| known.member.as_ref().map(|m| m.node) == node)
            {
                // A member knows its own seal and its own view of the commit point best.
                Some(known) if member.sealed_epoch > 0 => {
                    known.sealed_epoch = member.sealed_epoch;
                    known.committed_lsn = member.committed_lsn;
                    known.durable_lsn = known.durable_lsn.max(member.durable_lsn);
                }
                Some(_) => {}
                None => best.members.push(member),
            }
        }
        best.members
            .sort_by_key(|member| member.member.as_ref().map_or(0, |member| member.node));
        merged.push(best);
    }
    merged.sort_by_key(|status| {
        status
            .register
            .as_ref()
            .map(|r| r.spec.as_ref().map(|s| s.name.clone()))
    });
    merged
}

/// Has the first node of the placement make a volume.
pub async fn forward_create(
    node: &Arc<Node>,
    to: Option<NodeId>,
    request: pb::CreateVolumeRequest,
) -> Result<Response<pb::CreateVolumeReply>, Status> {
    let to = to.unwrap_or(node.settings.node);
    let address = node
        .settings
        .address_of(to)
        .ok_or_else(|| Status::invalid_argument(format!("no node {to}")))?;
    let mut client = admin(address).await?;
    client.create_volume(request).await
}

pub(super) async fn admin(address: &str) -> Result<AdminClient<tonic::transport::Channel>, Status> {
    let unavailable =
        |error: tonic::transport::Error| Status::unavailable(format!("{address}: {error}"));
    let channel = client_endpoint(address)
        .map_err(unavailable)?
        .connect()
        .await
        .map_err(unavailable)?;
    Ok(AdminClient::new(channel))
}

/// Moves the primary role, here or at the node that has it.
pub async fn promote(
    node: &Arc<Node>,
    request: pb::PromoteRequest,
    patience: impl Fn(u32) -> Duration,
) -> Result<Response<pb::PromoteReply>, Status> {
    let name: VolumeName = request
        .volume
        .parse()
        .map_err(|error: mainstay_types::NameError| Status::invalid_argument(error.to_string()))?;
    let wait = patience(request.patience_ms);
    if request.force {
        return super::forced::promote(node, &name, request, wait).await;
    }
    let report = node.volume(name.id()).map(|handle| handle.report());
    let Some(report) = report.filter(|report| report.acting.is_some()) else {
        let register = super::rounds::read(node, name.id(), wait)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?
            .ok_or_else(|| Status::not_found(format!("there is no volume `{name}`")))?;
        let primary = register.primary.node;
        let address = node
            .settings
            .address_of(primary)
            .filter(|_| primary != node.settings.node);
        let address = address
            .ok_or_else(|| Status::unavailable("the volume has no primary at this moment"))?;
        return admin(address).await?.promote(request).await;
    };
    let obstacle = request
        .to
        .and_then(|to| admin_ops::obstacle(&report, NodeId(to)));
    if let Some(obstacle) = obstacle {
        let text = format!("{obstacle}: nothing was changed; `mainstay status` tells when it can");
        return Ok(super::forced::refused(text, None));
    }
    let register = admin_ops::promote(node, &name, request.to.map(NodeId), wait).await?;
    let promoted = pb::Promoted {
        epoch: register.epoch.0,
        primary: register.primary.node.0,
        certificate: None,
    };
    let outcome = Some(pb::promote_reply::Outcome::Promoted(promoted));
    Ok(Response::new(pb::PromoteReply { outcome }))
}

/// Whether the lease of the acting epoch was held and ran out: most likely another node is primary by now. A process that
/// was frozen finds it so when it goes on, long before it hears of the other one.
fn lease_ended(report: &VolumeReport) -> bool {
    report.lease_until > MonoTime::ZERO && clock::mono() >= report.lease_until
}

/// Who is primary, from memory.
pub fn r#where(node: &Node, name: Option<VolumeName>) -> pb::WhereReply {
    let settings = &node.settings;
    let addresses = settings.data_nodes().into_iter().filter_map(|id| {
        let address = settings.address_of(id)?.to_owned();
        Some(pb::NodeAddress {
            node: id.0,
            address,
        })
    });
    let mut reply = pb::WhereReply {
        node: settings.node.0,
        nodes: addresses.collect(),
        ..pb::WhereReply::default()
    };
    let Some(name) = name else { return reply };
    let report = node.volume(name.id()).map(|handle| handle.report());
    let register = node
        .register(name.id())
        .filter(|register| !register.deleted);
    if let Some(register) = &register {
        reply.known = true;
        reply.epoch = register.epoch.0;
        reply.primary = Some(register.primary.node.0);
    }
    if let Some(report) = report {
        reply.known = true;
        // A replica that follows a primary knows it before anybody has told it the register.
        let (epoch, primary) = match report.role {
            Role::Replica { epoch, primary } => (epoch.0, Some(primary.0)),
            Role::Primary { epoch } => {
                reply.serving = !lease_ended(&report);
                (epoch.0, Some(settings.node.0))
            }
            _ => (0, None),
        };
        if epoch >= reply.epoch && primary.is_some() {
            (reply.epoch, reply.primary) = (epoch, primary);
        }
    }
    reply.address = reply
        .primary
        .and_then(|primary| settings.address_of(NodeId(primary)))
        .unwrap_or_default()
        .to_owned();
    reply
}

/// Whether this node works.
pub fn health(node: &Node) -> pb::HealthReply {
    let own = own_status(node);
    pb::HealthReply {
        node: node.settings.node.0,
        instance: node.instance.0,
        release: own.release,
        ready: own.healthy,
        reason: own.reason,
        volumes: own.data_status.as_ref().map_or(0, |data| data.volumes),
        primaries: own.data_status.as_ref().map_or(0, |data| data.primaries),
    }
}

/// The node's event log, and what is added to it.
pub fn events(
    node: Arc<Node>,
    request: pb::EventsRequest,
) -> ReceiverStream<Result<pb::Event, Status>> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut newest = node.events.newest();
        let mut since = request.since;
        loop {
            let wanted =
                |event: &pb::Event| request.volume.is_empty() || event.volume == request.volume;
            for event in node.events.since(since) {
                since = event.number;
                if wanted(&event) && sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if !request.follow {
                return;
            }
            tokio::select! {
                changed = newest.wait_for(|number| *number > since) => if changed.is_err() { return },
                () = node.until_stopped() => return,
                () = sender.closed() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}
