//! Messages between members, and between witnesses and members.

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::member_frame::Body;
use mainstay_replication::message::{
    Ack, Append, Doubt, MemberEnvelope, MemberMessage, RefuseReason, SealAnswer,
};
use mainstay_types::{Epoch, Instance, Lineage, Lsn, VolumeId};

use super::register::{decode_boxed, decode_process, encode_process, encode_register};
use super::{
    WireError, decode_nodes, decode_point, encode_nodes, encode_point, epoch, lsn, number,
};

pub(super) fn encode(envelope: &MemberEnvelope, batch: Bytes) -> pb::MemberFrame {
    pb::MemberFrame {
        volume: envelope.volume.0,
        lineage: envelope.lineage.0,
        from: Some(encode_process(envelope.from)),
        body: Some(encode_body(&envelope.body)),
        batch,
    }
}

pub(super) fn decode(frame: pb::MemberFrame) -> Result<(MemberEnvelope, Bytes), WireError> {
    let body = decode_body(frame.body.ok_or(WireError::Missing("member.body"))?)?;
    check_batch(&body, &frame.batch)?;
    let envelope = MemberEnvelope {
        volume: VolumeId(frame.volume),
        lineage: Lineage(frame.lineage),
        from: decode_process("member.from", frame.from)?,
        body,
    };
    Ok((envelope, frame.batch))
}

/// Bytes travel beside an append that describes entries, and beside nothing else.
fn check_batch(body: &MemberMessage, batch: &Bytes) -> Result<(), WireError> {
    let entries = match body {
        MemberMessage::Append(append) if append.last >= append.first => {
            append.last.0 - append.first.0 + 1
        }
        _ => 0,
    };
    if (entries == 0) == batch.is_empty() {
        Ok(())
    } else {
        Err(WireError::Batch {
            batch_bytes: batch.len(),
            entries,
        })
    }
}

fn encode_body(body: &MemberMessage) -> Body {
    match body {
        MemberMessage::Append(append) => Body::Append(encode_append(append)),
        MemberMessage::Ack(ack) => Body::Ack(pb::Ack {
            epoch: ack.epoch.0,
            instance: ack.instance.0,
            lsn: ack.lsn.0,
            rebuilding: ack.rebuilding,
        }),
        MemberMessage::Mismatch {
            epoch,
            instance,
            hint,
        } => Body::Mismatch(pb::Mismatch {
            epoch: epoch.0,
            instance: instance.0,
            hint: Some(encode_point(*hint)),
        }),
        MemberMessage::Refused {
            epoch,
            sealed,
            reason,
        } => Body::Refused(pb::MemberRefused {
            epoch: epoch.0,
            sealed: sealed.0,
            reason: encode_reason(*reason).into(),
        }),
        MemberMessage::Confirm { epoch, round } => Body::Confirm(pb::Confirm {
            epoch: epoch.0,
            round: *round,
        }),
        MemberMessage::Confirmed {
            epoch,
            instance,
            round,
        } => Body::Confirmed(pb::Confirmed {
            epoch: epoch.0,
            instance: instance.0,
            round: *round,
        }),
        MemberMessage::Seal { epoch } => Body::Seal(pb::Seal { epoch: epoch.0 }),
        MemberMessage::Sealed(answer) => Body::Sealed(encode_sealed(answer)),
        MemberMessage::SealRefused { asked, sealed } => Body::SealRefused(pb::SealRefused {
            asked: asked.0,
            sealed: sealed.0,
        }),
        MemberMessage::Decided(register) => Body::Decided(pb::Decided {
            register: Some(encode_register(register)),
        }),
        MemberMessage::NoCopy => Body::NoCopy(pb::NoCopy {}),
    }
}

fn decode_body(body: Body) -> Result<MemberMessage, WireError> {
    Ok(match body {
        Body::Append(m) => MemberMessage::Append(decode_append(m)?),
        Body::Ack(m) => MemberMessage::Ack(Ack {
            epoch: epoch("ack.epoch", m.epoch)?,
            instance: Instance(m.instance),
            lsn: lsn("ack.lsn", m.lsn)?,
            rebuilding: m.rebuilding,
        }),
        Body::Mismatch(m) => MemberMessage::Mismatch {
            epoch: epoch("mismatch.epoch", m.epoch)?,
            instance: Instance(m.instance),
            hint: decode_point("mismatch.hint", m.hint)?,
        },
        Body::Refused(m) => MemberMessage::Refused {
            epoch: epoch("refused.epoch", m.epoch)?,
            sealed: epoch("refused.sealed", m.sealed)?,
            reason: decode_reason(m.reason)?,
        },
        Body::Confirm(m) => MemberMessage::Confirm {
            epoch: epoch("confirm.epoch", m.epoch)?,
            round: number("confirm.round", m.round)?,
        },
        Body::Confirmed(m) => MemberMessage::Confirmed {
            epoch: epoch("confirmed.epoch", m.epoch)?,
            instance: Instance(m.instance),
            round: number("confirmed.round", m.round)?,
        },
        Body::Seal(m) => MemberMessage::Seal {
            epoch: epoch("seal.epoch", m.epoch)?,
        },
        Body::Sealed(m) => MemberMessage::Sealed(decode_sealed(m)?),
        Body::SealRefused(m) => MemberMessage::SealRefused {
            asked: epoch("seal_refused.asked", m.asked)?,
            sealed: epoch("seal_refused.sealed", m.sealed)?,
        },
        Body::Decided(m) => MemberMessage::Decided(decode_boxed(m.register)?),
        Body::NoCopy(_) => MemberMessage::NoCopy,
    })
}

fn encode_append(append: &Append) -> pb::Append {
    let run = |&(epoch, first): &(Epoch, Lsn)| pb::EpochRun {
        epoch: epoch.0,
        first: first.0,
    };
    pb::Append {
        epoch: append.epoch.0,
        prev: Some(encode_point(append.prev)),
        first: append.first.0,
        last: append.last.0,
        runs: append.runs.iter().map(run).collect(),
        commit: append.commit.0,
        primary_last: append.primary_last.0,
        register_version: append.register_version,
        lacked_from: append.lacked_from.0,
    }
}

fn decode_append(m: pb::Append) -> Result<Append, WireError> {
    let run = |run: &pb::EpochRun| {
        Ok((
            epoch("append.run.epoch", run.epoch)?,
            lsn("append.run.first", run.first)?,
        ))
    };
    let append = Append {
        epoch: epoch("append.epoch", m.epoch)?,
        prev: decode_point("append.prev", m.prev)?,
        first: lsn("append.first", m.first)?,
        last: lsn("append.last", m.last)?,
        runs: m.runs.iter().map(run).collect::<Result<_, _>>()?,
        commit: lsn("append.commit", m.commit)?,
        primary_last: lsn("append.primary_last", m.primary_last)?,
        register_version: number("append.register_version", m.register_version)?,
        lacked_from: lsn("append.lacked_from", m.lacked_from)?,
    };
    check_runs(append)
}

/// The runs partition `first..=last`: both fields rise strictly, from `first` on; none if there is no entry.
fn check_runs(append: Append) -> Result<Append, WireError> {
    let runs = &append.runs;
    let rising = runs
        .windows(2)
        .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1);
    let fits = match (runs.first(), runs.last()) {
        (Some(first), Some(last)) => first.1 == append.first && last.1 <= append.last,
        _ => append.last < append.first,
    };
    if rising && fits {
        Ok(append)
    } else {
        Err(WireError::Runs {
            first: append.first,
            last: append.last,
        })
    }
}

fn encode_reason(reason: RefuseReason) -> pb::MemberRefuseReason {
    match reason {
        RefuseReason::Sealed => pb::MemberRefuseReason::Sealed,
        RefuseReason::Damaged => pb::MemberRefuseReason::Damaged,
        RefuseReason::Failed => pb::MemberRefuseReason::Failed,
    }
}

fn decode_reason(value: i32) -> Result<RefuseReason, WireError> {
    match pb::MemberRefuseReason::try_from(value) {
        Ok(pb::MemberRefuseReason::Sealed) => Ok(RefuseReason::Sealed),
        Ok(pb::MemberRefuseReason::Damaged) => Ok(RefuseReason::Damaged),
        Ok(pb::MemberRefuseReason::Failed) => Ok(RefuseReason::Failed),
        Ok(pb::MemberRefuseReason::Unspecified) | Err(_) => Err(WireError::UnknownValue {
            field: "refused.reason",
            value,
        }),
    }
}

fn encode_sealed(answer: &SealAnswer) -> pb::Sealed {
    pb::Sealed {
        epoch: answer.epoch.0,
        last: Some(encode_point(answer.last)),
        first: answer.first.0,
        damaged: answer.damaged,
        rebuilding: answer.rebuilding,
        doubt: answer.doubt.map(|doubt| pb::Doubt {
            from: doubt.from.0,
            to: doubt.to.map(|to| to.0),
        }),
        reachable: encode_nodes(&answer.reachable),
    }
}

fn decode_sealed(m: pb::Sealed) -> Result<SealAnswer, WireError> {
    Ok(SealAnswer {
        epoch: epoch("sealed.epoch", m.epoch)?,
        last: decode_point("sealed.last", m.last)?,
        first: lsn("sealed.first", m.first)?,
        damaged: m.damaged,
        rebuilding: m.rebuilding,
        doubt: m.doubt.map(decode_doubt).transpose()?,
        reachable: decode_nodes(m.reachable),
    })
}

fn decode_doubt(doubt: pb::Doubt) -> Result<Doubt, WireError> {
    Ok(Doubt {
        from: lsn("doubt.from", doubt.from)?,
        to: doubt.to.map(|to| lsn("doubt.to", to)).transpose()?,
    })
}
