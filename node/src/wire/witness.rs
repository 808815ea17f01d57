//! Leases, releases and fences.

use std::sync::Arc;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::witness_frame::Body;
use mainstay_replication::message::{
    Beat, Claim, ClaimHealth, Granted, Orphan, SuspectReason, WitnessMessage,
};
use mainstay_types::{Instance, NodeId, VolumeId, Zone};

use super::witness_set::{
    decode_set, decode_step, decode_tag, encode_set, encode_step, encode_tag,
};
use super::{WireError, decode_nodes, encode_nodes, epoch, number};

pub(super) fn encode(message: &WitnessMessage) -> pb::WitnessFrame {
    let body = match message {
        WitnessMessage::Beat(beat) => Body::Beat(encode_beat(beat)),
        WitnessMessage::Granted(granted) => Body::Granted(pb::Granted {
            seq: granted.seq,
            table: granted.table,
            exceptions: granted.exceptions.iter().map(|volume| volume.0).collect(),
            hearing: encode_nodes(&granted.hearing),
            lease_ms: granted.lease_ms,
        }),
        WitnessMessage::Release {
            volume,
            epoch,
            instance,
            prefer,
        } => Body::Release(pb::Release {
            volume: volume.0,
            epoch: epoch.0,
            instance: instance.0,
            prefer: prefer.map(|node| node.0),
        }),
        WitnessMessage::ReleaseInstance { node, instance } => {
            Body::ReleaseInstance(pb::ReleaseInstance {
                node: node.0,
                instance: instance.0,
            })
        }
        WitnessMessage::Suspect {
            volume,
            epoch,
            reason,
        } => Body::Suspect(pb::Suspect {
            volume: volume.0,
            epoch: epoch.0,
            reason: encode_reason(*reason).into(),
        }),
        WitnessMessage::Suspected {
            volume,
            epoch,
            agree,
        } => Body::Suspected(pb::Suspected {
            volume: volume.0,
            epoch: epoch.0,
            agree: *agree,
        }),
        WitnessMessage::Fence { volume, epoch, set } => Body::Fence(pb::Fence {
            volume: volume.0,
            epoch: epoch.0,
            set: Some(encode_tag(*set)),
        }),
        WitnessMessage::Fenced { volume, epoch } => Body::Fenced(pb::Fenced {
            volume: volume.0,
            epoch: epoch.0,
        }),
        WitnessMessage::Set(set) => Body::Set(encode_set(set)),
        WitnessMessage::SetStep(step) => Body::SetStep(encode_step(step)),
    };
    pb::WitnessFrame { body: Some(body) }
}

pub(super) fn decode(frame: pb::WitnessFrame) -> Result<WitnessMessage, WireError> {
    Ok(
        match frame.body.ok_or(WireError::Missing("witness.body"))? {
            Body::Beat(m) => WitnessMessage::Beat(decode_beat(m)?),
            Body::Granted(m) => WitnessMessage::Granted(Granted {
                seq: number("granted.seq", m.seq)?,
                table: number("granted.table", m.table)?,
                exceptions: m.exceptions.into_iter().map(VolumeId).collect(),
                hearing: decode_nodes(m.hearing),
                lease_ms: m.lease_ms,
            }),
            Body::Release(m) => WitnessMessage::Release {
                volume: VolumeId(m.volume),
                epoch: epoch("release.epoch", m.epoch)?,
                instance: Instance(m.instance),
                prefer: m.prefer.map(NodeId),
            },
            Body::ReleaseInstance(m) => WitnessMessage::ReleaseInstance {
                node: NodeId(m.node),
                instance: Instance(m.instance),
            },
            Body::Suspect(m) => WitnessMessage::Suspect {
                volume: VolumeId(m.volume),
                epoch: epoch("suspect.epoch", m.epoch)?,
                reason: decode_reason(m.reason)?,
            },
            Body::Suspected(m) => WitnessMessage::Suspected {
                volume: VolumeId(m.volume),
                epoch: epoch("suspected.epoch", m.epoch)?,
                agree: m.agree,
            },
            Body::Fence(m) => WitnessMessage::Fence {
                volume: VolumeId(m.volume),
                epoch: epoch("fence.epoch", m.epoch)?,
                set: decode_tag(m.set)?,
            },
            Body::Fenced(m) => WitnessMessage::Fenced {
                volume: VolumeId(m.volume),
                epoch: epoch("fenced.epoch", m.epoch)?,
            },
            Body::Set(m) => WitnessMessage::Set(Arc::new(decode_set(m)?)),
            Body::SetStep(m) => WitnessMessage::SetStep(decode_step(m)?),
        },
    )
}

fn encode_beat(beat: &Beat) -> pb::Beat {
    let claim = |claim: &Claim| pb::Claim {
        volume: claim.volume.0,
        epoch: claim.epoch.0,
    };
    let unwell = |health: &ClaimHealth| pb::ClaimHealth {
        volume: health.volume.0,
        sync_age_ms: health.sync_age_ms,
        uncommitted_age_ms: health.uncommitted_age_ms,
        unreachable: encode_nodes(&health.unreachable),
        syncs_due: health.syncs_due,
    };
    let orphan = |orphan: &Orphan| pb::Orphan {
        volume: orphan.volume.0,
        sealed: orphan.sealed.0,
    };
    pb::Beat {
        instance: beat.instance.0,
        seq: beat.seq,
        table: beat.table,
        claims: beat.claims.as_ref().map(|claims| pb::ClaimTable {
            claims: claims.iter().map(claim).collect(),
        }),
        unwell: beat.unwell.iter().map(unwell).collect(),
        orphans: beat.orphans.iter().map(orphan).collect(),
        set: Some(encode_tag(beat.set)),
        zone: beat.zone.as_ref().map_or_else(String::new, Zone::to_string),
    }
}

fn decode_beat(m: pb::Beat) -> Result<Beat, WireError> {
    let claim = |claim: pb::Claim| {
        Ok(Claim {
            volume: VolumeId(claim.volume),
            epoch: epoch("claim.epoch", claim.epoch)?,
        })
    };
    let unwell = |health: pb::ClaimHealth| ClaimHealth {
        volume: VolumeId(health.volume),
        sync_age_ms: health.sync_age_ms,
        uncommitted_age_ms: health.uncommitted_age_ms,
        unreachable: decode_nodes(health.unreachable),
        syncs_due: health.syncs_due,
    };
    let orphan = |orphan: pb::Orphan| {
        Ok(Orphan {
            volume: VolumeId(orphan.volume),
            sealed: epoch("orphan.sealed", orphan.sealed)?,
        })
    };
    let claims = m.claims.map(|table| {
        table
            .claims
            .into_iter()
            .map(claim)
            .collect::<Result<_, _>>()
    });
    let zone = match m.zone.as_str() {
        "" => None,
        name => Some(name.parse().map_err(WireError::Zone)?),
    };
    Ok(Beat {
        instance: Instance(m.instance),
        seq: number("beat.seq", m.seq)?,
        table: number("beat.table", m.table)?,
        claims: claims.transpose()?,
        unwell: m.unwell.into_iter().map(unwell).collect(),
        orphans: m
            .orphans
            .into_iter()
            .map(orphan)
            .collect::<Result<_, _>>()?,
        set: decode_tag(m.set)?,
        zone,
    })
}

fn encode_reason(reason: SuspectReason) -> pb::SuspectReason {
    match reason {
        SuspectReason::LeaseGone => pb::SuspectReason::LeaseGone,
        SuspectReason::Fenced => pb::SuspectReason::Fenced,
        SuspectReason::SealedAbove => pb::SuspectReason::SealedAbove,
        SuspectReason::Operator => pb::SuspectReason::Operator,
    }
}

fn decode_reason(value: i32) -> Result<SuspectReason, WireError> {
    match pb::SuspectReason::try_from(value) {
        Ok(pb::SuspectReason::LeaseGone) => Ok(SuspectReason::LeaseGone),
        Ok(pb::SuspectReason::Fenced) => Ok(SuspectReason::Fenced),
        Ok(pb::SuspectReason::SealedAbove) => Ok(SuspectReason::SealedAbove),
        Ok(pb::SuspectReason::Operator) => Ok(SuspectReason::Operator),
        Ok(pb::SuspectReason::Unspecified) | Err(_) => Err(WireError::UnknownValue {
            field: "suspect.reason",
            value,
        }),
    }
}
