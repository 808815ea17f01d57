//! Forced promotion, as an operator asks for it: first what it would cost, then, once that is accepted, a request to a
//! witness, which drives it. What may be done is decided there (`replication/src/witness/forced.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::promote_refused::Reason;
use mainstay_proto::v1::promote_reply::Outcome;
use mainstay_replication::{ForceRefused, ForceRequest, ForceResult, Loss, WitnessInput};
use mainstay_types::{NodeId, Register, VolumeName};
use tokio::sync::oneshot;
use tonic::{Response, Status};

use super::{Node, events, rounds, status};

/// How long a witness may take: a lease runs out, copies may answer, the register is changed. After an external fence copies
/// are asked once more.
const WITNESS_TAKES: Duration = Duration::from_secs(15);

/// Forced promotions that this node's witness is at.
#[derive(Debug, Default)]
pub struct Forced {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<ForceResult>>>,
}

impl Forced {
    /// The witness's answer.
    pub fn ended(&self, id: u64, result: ForceResult) {
        if let Some(waiting) = self.take(id) {
            let _gone = waiting.send(result);
        }
    }

    fn take(&self, id: u64) -> Option<oneshot::Sender<ForceResult>> {
        let mut waiting = self
            .waiting
            .lock()
            .expect("no panic while the lock is held");
        waiting.remove(&id)
    }
}

/// Serves a forced promotion.
///
/// # Errors
/// `INVALID_ARGUMENT`, `NOT_FOUND`, `UNAVAILABLE` without a majority of the witnesses; refusals are replies.
pub async fn promote(
    node: &Arc<Node>,
    name: &VolumeName,
    request: pb::PromoteRequest,
    patience: Duration,
) -> Result<Response<pb::PromoteReply>, Status> {
    let Some(to) = request.to.map(NodeId) else {
        return Err(Status::invalid_argument(
            "a forced promotion names the node whose copy shall go on",
        ));
    };
    let register = rounds::read(node, name.id(), patience)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?
        .filter(|register| !register.deleted)
        .ok_or_else(|| Status::not_found(format!("there is no volume `{name}`")))?;
    if register.member(to).is_none() {
        let members: Vec<NodeId> = register.members.iter().map(|member| member.node).collect();
        let text = format!("node {to} holds no member of `{name}`; members are {members:?}");
        return Ok(refused(text, Some(Reason::NotAMember(pb::NotAMember {}))));
    }
    let known = known(node, name).await;
    if let Some(text) = serving(&known) {
        return Ok(refused(text, None));
    }
    if !request.accept_data_loss {
        return Ok(would_lose(&register, &known, to));
    }
    if !node.witnesses().contains(node.settings.node) {
        return forward(node, request).await;
    }
    let result = ask_witness(node, name, to, &request).await?;
    Ok(match result {
        Ok(certificate) => promoted(node, &certificate),
        Err(why) => why_not(&why),
    })
}

async fn known(node: &Arc<Node>, name: &VolumeName) -> Option<pb::VolumeStatus> {
    let all = status::gather(node).await.volumes;
    all.into_iter().find(|volume| volume.volume == name.id().0)
}

/// Why nothing is to be forced, if the volume is served.
fn serving(known: &Option<pb::VolumeStatus>) -> Option<String> {
    let status = known.as_ref().filter(|status| status.authoritative)?;
    let held = status.lease.as_ref().is_some_and(|lease| lease.held);
    let primary = status.register.as_ref()?.primary.as_ref()?.node;
    held.then(|| {
        format!(
            "the volume is served by node {primary}, which holds the lease: move it without `--force`, or stop that node first"
        )
    })
}

/// What is known without touching anything.
fn would_lose(
    register: &Register,
    known: &Option<pb::VolumeStatus>,
    to: NodeId,
) -> Response<pb::PromoteReply> {
    let of = |node: NodeId| {
        let members = known.iter().flat_map(|status| &status.members);
        members.filter(|m| m.sealed_epoch > 0).find(|m| {
            m.member
                .as_ref()
                .is_some_and(|member| member.node == node.0)
        })
    };
    let silent: Vec<u32> = register
        .members
        .iter()
        .filter(|member| of(member.node).is_none())
        .map(|member| member.node.0)
        .collect();
    let have = of(to).map_or(0, |member| member.durable_lsn);
    let best = register
        .members
        .iter()
        .filter_map(|member| of(member.node))
        .map(|member| member.durable_lsn)
        .max();
    let text = format!(
        "this gives up every acknowledged write that the copy on node {to} does not hold: it ends at {have}; the furthest copy \
         that answers ends at {}; copies on nodes {silent:?} do not answer, and what they hold nobody knows",
        best.unwrap_or(0)
    );
    let reason = Reason::WouldLose(pb::WouldLose {
        from_lsn: have + 1,
        to_lsn: best.filter(|_| silent.is_empty()),
        not_fenced: silent,
    });
    refused(text, Some(reason))
}

/// Any witness may drive it, so the first that takes the request does.
async fn forward(
    node: &Arc<Node>,
    request: pb::PromoteRequest,
) -> Result<Response<pb::PromoteReply>, Status> {
    let mut last = Status::unavailable("no witness answers");
    for witness in node.witnesses().all() {
        match status::admin(&witness.address).await {
            Ok(mut client) => return client.promote(request).await,
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_witness(
    node: &Arc<Node>,
    name: &VolumeName,
    to: NodeId,
    request: &pb::PromoteRequest,
) -> Result<ForceResult, Status> {
    let id = node.forced.next.fetch_add(1, Ordering::Relaxed);
    let (ended, wait) = oneshot::channel();
    node.forced
        .waiting
        .lock()
        .expect("no panic while the lock is held")
        .insert(id, ended);
    tracing::warn!(volume = %name, to = %to, declared_off = ?request.declared_off, reason = request.reason,
        "an operator forces a promotion and accepts loss");
    node.ask_witness(WitnessInput::Force(ForceRequest {
        id,
        volume: name.id(),
        target: to,
        declared_off: request.declared_off.iter().copied().map(NodeId).collect(),
        min_copies: (request.min_copies > 0).then_some(request.min_copies),
    }));
    let fence = node.settings.lease.external_fence;
    let takes = WITNESS_TAKES + fence.map_or(Duration::ZERO, |fence| fence + WITNESS_TAKES);
    match tokio::time::timeout(takes, wait).await {
        Ok(Ok(result)) => Ok(result),
        _ => {
            node.forced.take(id);
            Err(Status::deadline_exceeded(
                "the witness did not come to an end: whether the promotion happened is unknown; see `mainstay status`",
            ))
        }
    }
}

fn promoted(
    node: &Node,
    certificate: &mainstay_replication::Certificate,
) -> Response<pb::PromoteReply> {
    let promoted = pb::Promoted {
        epoch: certificate.epoch.0,
        primary: certificate.primary.node.0,
        certificate: Some(events::encode_certificate(node.settings.node, certificate)),
    };
    let outcome = Some(Outcome::Promoted(promoted));
    Response::new(pb::PromoteReply { outcome })
}

fn why_not(why: &ForceRefused) -> Response<pb::PromoteReply> {
    let (text, reason) = match why {
        ForceRefused::NoVolume => ("no witness knows such a volume".to_owned(), None),
        ForceRefused::NotAMember => (
            "that node holds no member".to_owned(),
            Some(Reason::NotAMember(pb::NotAMember {})),
        ),
        ForceRefused::Silent => (
            "the copy that shall go on does not answer the witness: start its node".to_owned(),
            None,
        ),
        ForceRefused::NotIntact => (
            "the copy is damaged or being replaced".to_owned(),
            Some(Reason::NotIntact(pb::NotIntact {})),
        ),
        ForceRefused::NotNeeded => (
            "enough copies answer, so nothing needs to be given up: the witnesses promote without loss at this moment"
                .to_owned(),
            None,
        ),
        ForceRefused::NotFenced(loss) => (not_fenced(loss), Some(loss_reason(loss))),
        ForceRefused::ExternalFenceFailed { node, output } => (
            format!(
                "node {node} did not promise to acknowledge nothing more, and its external fence failed: {output}. Make sure \
                 that it is off, and say so with `--declare-off`"
            ),
            Some(Reason::ExternalFenceFailed(pb::ExternalFenceFailed {
                output: format!("node {node}: {output}"),
            })),
        ),
        ForceRefused::NoWitnessQuorum { votes, needed } => (
            format!("{votes} of {needed} witnesses answered"),
            Some(Reason::NoWitnessQuorum(pb::NoWitnessQuorum {
                votes: u32::try_from(*votes).unwrap_or(u32::MAX),
                needed: u32::try_from(*needed).unwrap_or(u32::MAX),
            })),
        ),
        ForceRefused::Raced => (
            "the register was changed by somebody else meanwhile: look at `mainstay status` first".to_owned(),
            None,
        ),
    };
    refused(text, reason)
}

fn not_fenced(loss: &Loss) -> String {
    format!(
        "the copies on nodes {:?} did not promise to acknowledge nothing more: a node that is up and cut off would go on by \
         itself. Make sure that each of them is off, and say so with `--declare-off`",
        loss.not_sealed
    )
}

fn loss_reason(loss: &Loss) -> Reason {
    let known = (loss.known_to >= loss.from).then_some(loss.known_to.0);
    Reason::WouldLose(pb::WouldLose {
        from_lsn: loss.from.0,
        to_lsn: known.filter(|_| loss.unknown.is_empty()),
        not_fenced: loss.not_sealed.iter().map(|node| node.0).collect(),
    })
}

pub(super) fn refused(message: String, reason: Option<Reason>) -> Response<pb::PromoteReply> {
    let outcome = Some(Outcome::Refused(pb::PromoteRefused { message, reason }));
    Response::new(pb::PromoteReply { outcome })
}
