//! What operators change: volumes made and deleted, primaries moved.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_replication::Role;
use mainstay_replication::message::{MemberEnvelope, MemberMessage, Message, RoundResult};
use mainstay_types::{
    BLOCK_BYTES, Epoch, Incarnation, Lineage, LogPoint, Member, MemberKind, NodeId, Policy,
    PrimaryId, Register, RegisterId, VolumeKind, VolumeName, VolumeSpec,
};
use mainstay_volume::Event;
use tonic::Status;

use super::report::VolumeReport;
use super::{Node, rounds, volumes};

/// What a creation asks for.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// What it is.
    pub spec: VolumeSpec,
    /// How it is kept.
    pub policy: Policy,
}

/// Makes a volume: its first member here or on the first node of its placement, the others as learners that become
/// members once they hold everything. Answers once the register is decided. Repeating it finds the same volume.
///
/// # Errors
/// `INVALID_ARGUMENT` for what cannot be, `ALREADY_EXISTS` for another volume of the name, `UNAVAILABLE` without a
/// majority of the witnesses.
pub async fn create(
    node: &Arc<Node>,
    new: NewVolume,
    patience: Duration,
) -> Result<(Register, bool), Status> {
    check(node, &new)?;
    // One at a time: two creations of one name would each format a copy.
    let _one = node.creating.lock().await;
    let volume = new.spec.name.id();
    let unavailable = |error: rounds::NoWitnesses| Status::unavailable(error.to_string());
    let before = rounds::read(node, volume, patience)
        .await
        .map_err(unavailable)?;
    let expect = match &before {
        Some(register) if !register.deleted => return existing(register, &new),
        Some(register) => register.id,
        None => RegisterId(0),
    };
    let lineage = Lineage(node.random());
    let first = Epoch(1);
    let epoch = before
        .as_ref()
        .map_or(first, |register| register.epoch.next());
    volumes::format_copy(node, &new.spec, lineage, lineage, epoch)
        .await
        .map_err(|error| Status::unavailable(format!("{:#}", anyhow::Error::from(error))))?;
    let Some(handle) = node
        .volume(volume)
        .filter(|handle| handle.lineage == lineage)
    else {
        return Err(Status::unavailable(
            "another request is creating or removing this volume; try again",
        ));
    };
    let incarnation = handle.incarnation;
    let register = Register {
        id: RegisterId(node.random()),
        version: before.as_ref().map_or(1, |register| register.version + 1),
        lineage,
        log_lineage: lineage,
        epoch,
        primary: PrimaryId {
            node: node.settings.node,
            incarnation,
            instance: node.instance,
        },
        members: vec![Member {
            node: node.settings.node,
            incarnation,
            kind: MemberKind::Full,
        }],
        ack_quorum: 1,
        policy: new.policy.clone(),
        cut: LogPoint::ZERO,
        spec: new.spec.clone(),
        deleted: false,
    };
    match rounds::swap(node, expect, register, patience)
        .await
        .map_err(unavailable)?
    {
        RoundResult::Decided(register) => {
            announce(node, &register);
            Ok((*register, false))
        }
        RoundResult::Conflict(register) => existing(&register, &new),
        RoundResult::Absent => Err(Status::aborted(
            "the volume was removed meanwhile; try again",
        )),
    }
}

fn existing(register: &Register, new: &NewVolume) -> Result<(Register, bool), Status> {
    if register.spec == new.spec {
        Ok((register.clone(), true))
    } else {
        let text = format!(
            "a volume `{}` of another kind or size exists: delete it first, or choose another name",
            register.spec.name
        );
        Err(Status::already_exists(text))
    }
}

fn check(node: &Node, new: &NewVolume) -> Result<(), Status> {
    let data = node.settings.data_nodes();
    if let VolumeKind::Block { size_bytes } = new.spec.kind {
        if size_bytes == 0 || size_bytes % u64::from(BLOCK_BYTES) != 0 {
            let below = size_bytes / u64::from(BLOCK_BYTES) * u64::from(BLOCK_BYTES);
            let text = format!(
                "a size of {size_bytes} bytes is not a positive multiple of {BLOCK_BYTES}; the next ones are {below} \
                 and {}",
                below + u64::from(BLOCK_BYTES)
            );
            return Err(Status::invalid_argument(text));
        }
        if size_bytes > node.settings.volume_bytes_max {
            let limit = node.settings.volume_bytes_max;
            let text = format!("{size_bytes} bytes are more than a block volume may have: {limit}");
            return Err(Status::invalid_argument(text));
        }
    }
    let placement = &new.policy.placement;
    if let Some(unknown) = placement.iter().find(|wanted| !data.contains(wanted)) {
        let text =
            format!("node {unknown} is not a data node of this cluster; data nodes are {data:?}");
        return Err(Status::invalid_argument(text));
    }
    let mut distinct = placement.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if placement.is_empty() || distinct.len() != placement.len() {
        return Err(Status::invalid_argument(
            "copies belong on one or more different nodes",
        ));
    }
    check_prefer(&new.policy).map_err(Status::invalid_argument)?;
    if new.policy.min_copies == 0 || new.policy.min_copies as usize > placement.len() {
        return Err(Status::invalid_argument(
            "`min_copies` is at least 1 and at most the number of copies",
        ));
    }
    if node.volumes().len() >= node.settings.volumes_max {
        return Err(Status::resource_exhausted(
            "this node holds as many copies as `limits.volumes_max` allows",
        ));
    }
    Ok(())
}

fn check_prefer(policy: &Policy) -> Result<(), String> {
    let (prefer, placement) = (&policy.prefer, &policy.placement);
    if prefer.len() > Policy::PREFERRED_MAX {
        return Err(format!(
            "{} nodes are preferred; name at most {}, the best one first",
            prefer.len(),
            Policy::PREFERRED_MAX
        ));
    }
    if let Some(other) = prefer.iter().find(|node| !placement.contains(node)) {
        return Err(format!(
            "node {other} cannot be preferred as primary, as it holds no copy; copies are on {placement:?}"
        ));
    }
    let again = |(at, node): (usize, &NodeId)| prefer[..at].contains(node).then_some(*node);
    match prefer.iter().enumerate().find_map(again) {
        Some(node) => Err(format!(
            "node {node} is preferred twice; name each node once"
        )),
        None => Ok(()),
    }
}

/// Marks a volume deleted in its register; every node then drops its copy.
///
/// # Errors
/// `NOT_FOUND`, or `UNAVAILABLE` without a majority of the witnesses.
pub async fn delete(
    node: &Arc<Node>,
    name: &VolumeName,
    patience: Duration,
) -> Result<Register, Status> {
    let unavailable = |error: rounds::NoWitnesses| Status::unavailable(error.to_string());
    loop {
        let Some(register) = rounds::read(node, name.id(), patience)
            .await
            .map_err(unavailable)?
        else {
            return Err(Status::not_found(format!("there is no volume `{name}`")));
        };
        if register.deleted {
            return Ok(register);
        }
        let next = Register {
            id: RegisterId(node.random()),
            version: register.version + 1,
            deleted: true,
            ..register.clone()
        };
        if let RoundResult::Decided(register) = rounds::swap(node, register.id, next, patience)
            .await
            .map_err(unavailable)?
        {
            announce(node, &register);
            return Ok(*register);
        }
    }
}

/// Tells every data node that a value is decided.
pub fn announce(node: &Arc<Node>, register: &Register) {
    let me = PrimaryId {
        node: node.settings.node,
        incarnation: Incarnation(0),
        instance: node.instance,
    };
    for to in node.settings.data_nodes() {
        let envelope = MemberEnvelope {
            volume: register.spec.name.id(),
            lineage: register.lineage,
            from: me,
            body: MemberMessage::Decided(Box::new(register.clone())),
        };
        node.send(to, Message::Member(Box::new(envelope)), Bytes::new());
    }
}

/// Hands the primary role of a volume on this node to `to`, and waits until the register says so.
///
/// # Errors
/// This node is not the primary, `to` is no member, or the switchover was called off.
pub async fn promote(
    node: &Arc<Node>,
    name: &VolumeName,
    to: Option<NodeId>,
    patience: Duration,
) -> Result<Register, Status> {
    let handle = node
        .volume(name.id())
        .ok_or_else(|| Status::failed_precondition("not the primary"))?;
    let report = handle.report();
    let Some((epoch, _)) = report.acting else {
        return Err(Status::failed_precondition("not the primary"));
    };
    if let (Some(to), Some(register)) = (to, &report.register) {
        if register.primary.node == to {
            return Ok(register.clone());
        }
        if register.member(to).is_none() {
            let members: Vec<NodeId> = register.members.iter().map(|member| member.node).collect();
            let text = format!("node {to} is not a member of `{name}`; members are {members:?}");
            return Err(Status::invalid_argument(text));
        }
    }
    handle.tell(Event::Handover { to });
    let give_up = tokio::time::Instant::now() + patience;
    let mut draining = false;
    while tokio::time::Instant::now() < give_up {
        if let Some(register) = node
            .register(name.id())
            .filter(|register| register.epoch > epoch)
        {
            return Ok(register);
        }
        let role = handle.report().role;
        if draining && role == (Role::Primary { epoch }) {
            break;
        }
        draining |= role == Role::Draining { epoch };
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(Status::deadline_exceeded(
        "the switchover did not end in time: the member may be too far behind; the primary goes on",
    ))
}

/// Why the copy on `to` cannot take over from the one here now. A switchover stops the writes until its target has everything, so one that
/// cannot end is not begun.
pub fn obstacle(report: &VolumeReport, to: NodeId) -> Option<String> {
    let registered = report.register.as_ref()?.member(to)?.incarnation;
    let peer = report.peers.iter().find(|peer| peer.node == to)?;
    let replaced = peer.incarnation.is_some_and(|found| found != registered);
    if replaced || peer.rebuilding {
        Some(format!("the copy on node {to} is being made anew"))
    } else if peer.unreachable {
        Some(format!("node {to} does not answer the primary"))
    } else {
        let refused = peer.refused?;
        Some(format!("the copy on node {to} refuses: {refused:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_with_a_copy_are_preferred_each_once_and_not_too_many() {
        let refused = |prefer: &[u32], placement: u32| {
            let nodes = (1..=placement).map(NodeId).collect();
            let mut policy = Policy::for_placement(nodes);
            policy.prefer = prefer.iter().copied().map(NodeId).collect();
            check_prefer(&policy).err().unwrap_or_default()
        };
        assert_eq!(refused(&[], 3), "");
        assert_eq!(refused(&[3, 1], 3), "");
        assert!(refused(&[4], 3).contains("node 4 cannot be preferred"));
        assert!(refused(&[2, 1, 2], 3).contains("node 2 is preferred twice"));
        let many: Vec<u32> = (1..=17).collect();
        assert!(refused(&many, 17).contains("at most 16"));
        assert_eq!(refused(&many[..16], 17), "");
    }
}
