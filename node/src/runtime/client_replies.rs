//! A volume's answers in the words of the client protocol.

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_proto::v1::refused::Reason;
use mainstay_storage::image::{Extent, ImageReadError};
use mainstay_types::{Epoch, Lsn, NodeId, VolumeKind};
use mainstay_volume::tree::{TreeAnswer, TreeError};
use mainstay_volume::{BATCH_RECORDS_MAX, OpResult, Outcome, Refusal, Retention};

use super::Node;
use super::handle::{ConnAnswer, RecordOut, VolumeHandle};

/// Greatest payload of one record or write.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// The stream is open.
pub(super) fn opened(
    node: &Node,
    handle: &VolumeHandle,
    epoch: Epoch,
    generation: u32,
    next_seq: u64,
    commit: Lsn,
) -> Reply {
    let first = handle.report().first_shown;
    Reply::Opened(pb::Opened {
        kind: Some(kind(handle.spec.kind)),
        epoch: epoch.0,
        node: node.settings.node.0,
        generation: u64::from(generation),
        next_seq,
        payload_bytes_max: u32::try_from(PAYLOAD_BYTES_MAX).expect("16 MiB fit 32 bits"),
        batch_records_max: count_of(BATCH_RECORDS_MAX),
        commit: commit.0,
        first_lsn: first.0,
        lineage: handle.lineage.0,
    })
}

/// The client knows the volume by another history.
pub(super) fn history_replaced(handle: &VolumeHandle) -> Reply {
    let lineage = handle.lineage;
    refusal(
        format!(
            "the volume's history is {lineage} now: a forced promotion, or deleted and created anew"
        ),
        Reason::HistoryReplaced(pb::HistoryReplaced { lineage: lineage.0 }),
    )
}

/// A volume's kind on the wire.
#[must_use]
pub(super) fn kind(kind: VolumeKind) -> pb::VolumeKind {
    crate::wire::encode_kind(kind)
}

/// Ask somebody else.
pub(super) fn not_primary(node: &Node, primary: Option<NodeId>, epoch: Epoch) -> Reply {
    let primary = primary.filter(|primary| *primary != node.settings.node);
    let address = primary
        .and_then(|primary| node.settings.address_of(primary))
        .unwrap_or_default()
        .to_owned();
    Reply::NotPrimary(pb::NotPrimary {
        primary: primary.map(|node| node.0),
        address,
        epoch: epoch.0,
    })
}

fn refusal(message: String, reason: Reason) -> Reply {
    Reply::Refused(pb::Refused {
        message,
        reason: Some(reason),
    })
}

/// There is no such volume.
pub(super) fn no_such_volume(name: &str) -> Reply {
    refusal(
        format!("there is no volume {name:?}"),
        Reason::NoSuchVolume(pb::NoSuchVolume {}),
    )
}

/// Not built.
pub(super) fn unsupported(what: &str) -> Reply {
    refusal(
        format!("{what} is not supported by this release"),
        Reason::Unsupported(pb::Unsupported {}),
    )
}

/// A mutation on a stream that only reads.
pub(super) fn read_only() -> Reply {
    refusal(
        "the volume was opened for reading only".to_owned(),
        Reason::ReadOnly(pb::ReadOnly {}),
    )
}

/// More than one entry may hold.
pub(super) fn too_large(bytes_max: u64) -> Reply {
    let message = format!("more than the limit of {bytes_max} bytes");
    refusal(message, Reason::TooLarge(pb::TooLarge { bytes_max }))
}

/// More records than one atomic batch may hold.
pub(super) fn too_many_records() -> Reply {
    refused(&Refusal::TooManyRecords {
        records: BATCH_RECORDS_MAX + 1,
        limit: BATCH_RECORDS_MAX,
    })
}

/// A request that makes no sense.
pub(super) fn bad_request(why: &str) -> Reply {
    refusal(why.to_owned(), Reason::BadRequest(pb::BadRequest {}))
}

/// So much is not known to be committed here.
pub(super) fn behind(commit: Lsn) -> Reply {
    let message = format!("this node knows the log to be committed up to {commit} only");
    refusal(
        message,
        Reason::CopyBehind(pb::CopyBehind { commit: commit.0 }),
    )
}

/// Where the log stands, as far as this node knows.
pub(super) fn position_here(handle: &VolumeHandle) -> Reply {
    let (commit, report) = (*handle.commit.borrow(), handle.report());
    Reply::Position(pb::PositionIs {
        first_lsn: report.first_shown.0,
        next_lsn: commit.0 + 1,
        commit: commit.0,
        epoch: report.sealed.0,
        lineage: handle.lineage.0,
        retention: Some(retention(report.retention)),
    })
}

/// As it is told.
pub(super) fn retention(policy: Retention) -> pb::Retention {
    pb::Retention {
        age_ms: policy.age_ms,
        bytes: policy.bytes,
    }
}

/// The answer to a read of a log, if it is one.
pub(super) fn of_log_read(node: &Node, handle: &VolumeHandle, answer: ConnAnswer) -> Reply {
    match answer {
        ConnAnswer::Records {
            records,
            next,
            end,
            through,
        } => of_records(records, next, end, through),
        ConnAnswer::Result(result) => of_result(node, handle, result),
        ConnAnswer::Unreadable(why) => unreadable(why),
        ConnAnswer::Tree(answer) => of_tree(answer),
        ConnAnswer::Block(_) | ConnAnswer::Extents(_) => unsupported("this read"),
    }
}

/// Stored bytes that do not read back.
pub(super) fn unreadable(why: String) -> Reply {
    refusal(why, Reason::Unreadable(pb::Unreadable {}))
}

/// A root of a log's tree, with a proof.
fn of_tree(answer: Result<TreeAnswer, TreeError>) -> Reply {
    match answer {
        Ok(answer) => Reply::Tree(pb::TreeIs {
            size: answer.root.size,
            root: bytes::Bytes::copy_from_slice(&answer.root.hash.0),
            path: answer
                .path
                .iter()
                .map(|hash| bytes::Bytes::copy_from_slice(&hash.0))
                .collect(),
        }),
        Err(error @ (TreeError::Beyond { .. } | TreeError::Outside { .. })) => {
            bad_request(&error.to_string())
        }
        Err(error) => refusal(
            error.to_string(),
            Reason::TreeUnavailable(pb::TreeUnavailable {}),
        ),
    }
}

/// A refusal of the volume.
pub(super) fn refused(refused: &Refusal) -> Reply {
    let message = refused.to_string();
    let reason = match refused {
        // A connection that this primary does not know is one of an epoch before: the client opens another.
        Refusal::NotPrimary { .. } | Refusal::NoSession => {
            Reason::ShuttingDown(pb::ShuttingDown {})
        }
        Refusal::Superseded { present, .. } => Reason::FencedGeneration(pb::FencedGeneration {
            current: u64::from(*present),
        }),
        Refusal::Attached { by } => Reason::AttachedElsewhere(pb::AttachedElsewhere {
            name: by.clone(),
            session: 0,
        }),
        Refusal::AttachmentEnded => Reason::AttachmentEnded(pb::AttachmentEnded {}),
        Refusal::RefusedBefore { .. } => Reason::RefusedBefore(pb::RefusedBefore {}),
        Refusal::NotAttached => Reason::NotAttached(pb::NotAttached {}),
        Refusal::UnexpectedLsn { next, .. } => {
            Reason::UnexpectedPosition(pb::UnexpectedPosition { next_lsn: next.0 })
        }
        Refusal::OutOfRange { size_bytes, .. } => Reason::OutOfRange(pb::OutOfRange {
            size_bytes: *size_bytes,
        }),
        Refusal::TooLarge { limit, .. } => Reason::TooLarge(pb::TooLarge { bytes_max: *limit }),
        Refusal::FencedToken { current } => {
            Reason::FencedToken(pb::FencedToken { current: *current })
        }
        Refusal::TooManyRecords { limit, .. } => Reason::TooManyRecords(pb::TooManyRecords {
            records_max: count_of(*limit),
        }),
        Refusal::BadRequest(_) | Refusal::TrimBeyondEnd { .. } => {
            Reason::BadRequest(pb::BadRequest {})
        }
        Refusal::WrongKind => Reason::WrongKind(pb::WrongKind { kind: None }),
        Refusal::UnknownSession => Reason::UnknownSession(pb::UnknownSession {}),
        Refusal::ResultForgotten { .. } => Reason::ResultForgotten(pb::ResultForgotten {}),
        Refusal::Overloaded => Reason::Overloaded(pb::Overloaded {}),
        Refusal::Trimmed { first } => Reason::Trimmed(pb::Trimmed { first_lsn: first.0 }),
    };
    refusal(message, reason)
}

/// An answer of the volume.
pub(super) fn of_result(node: &Node, handle: &VolumeHandle, result: OpResult) -> Reply {
    let block = matches!(handle.spec.kind, VolumeKind::Block { .. });
    match result {
        OpResult::Opened { .. } => refusal(
            "opened twice".to_owned(),
            Reason::BadRequest(pb::BadRequest {}),
        ),
        OpResult::Closed => Reply::Closed(pb::Closed {}),
        OpResult::Committed { lsn, count, arg } => {
            Reply::Committed(committed(lsn, count, arg, block))
        }
        OpResult::Outcome(outcome) => Reply::Outcome(pb::OutcomeIs {
            outcome: Some(of_outcome(outcome, block)),
        }),
        OpResult::Position {
            first,
            commit,
            epoch,
            retention: policy,
        } => Reply::Position(pb::PositionIs {
            first_lsn: first.0,
            next_lsn: commit.0 + 1,
            commit: commit.0,
            epoch: epoch.0,
            lineage: handle.lineage.0,
            retention: Some(retention(policy)),
        }),
        OpResult::Found(found) => Reply::Found(pb::Found {
            lsn: found.map(|(lsn, _)| lsn.0),
            timestamp_us: found.map_or(0, |(_, stamp)| stamp / 1000),
        }),
        OpResult::Refused(Refusal::NotPrimary { primary, epoch }) => {
            not_primary(node, primary, epoch)
        }
        OpResult::Refused(refusal) => refused(&refusal),
        OpResult::Interrupted => not_primary(node, None, Epoch::ZERO),
    }
}

/// A committed mutation; only records have times.
fn committed(lsn: Lsn, count: u32, arg: u64, block: bool) -> pb::Committed {
    pb::Committed {
        lsn: lsn.0,
        timestamp_us: if block { 0 } else { arg / 1000 },
        count: batch_count(count),
    }
}

/// On the wire only batches count their entries.
pub(super) fn batch_count(count: u32) -> u32 {
    if count > 1 { count } else { 0 }
}

fn count_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn of_outcome(outcome: Outcome, block: bool) -> pb::outcome_is::Outcome {
    match outcome {
        Outcome::Committed { lsn, count, arg } => {
            pb::outcome_is::Outcome::Committed(committed(lsn, count, arg, block))
        }
        Outcome::Never => pb::outcome_is::Outcome::Never(pb::Never {}),
        Outcome::Pending => pb::outcome_is::Outcome::Pending(pb::Pending {}),
        Outcome::Forgotten => pb::outcome_is::Outcome::Forgotten(pb::Forgotten {}),
    }
}

/// Bytes of a block volume.
pub(super) fn of_block(result: Result<bytes::Bytes, ImageReadError>) -> Reply {
    match result {
        Ok(data) => Reply::Data(pb::Data { data }),
        Err(error) => unreadable(error.to_string()),
    }
}

/// What a block volume stores.
pub(super) fn of_extents(result: Result<Vec<Extent>, ImageReadError>) -> Reply {
    let extent = |extent: Extent| pb::Extent {
        len: extent.len,
        data: extent.allocated,
        unchanged: !extent.changed,
    };
    match result {
        Ok(extents) => Reply::Extents(pb::Extents {
            extents: extents.into_iter().map(extent).collect(),
        }),
        Err(error) => unreadable(error.to_string()),
    }
}

/// Records of a log volume.
pub(super) fn of_records(records: Vec<RecordOut>, next: Lsn, end: bool, through: Lsn) -> Reply {
    let record = |record: RecordOut| pb::Record {
        lsn: record.lsn.0,
        timestamp_us: record.timestamp_ns / 1000,
        data: record.data,
    };
    let records = records.into_iter().map(record).collect();
    Reply::Records(pb::Records {
        records,
        next_lsn: next.0,
        end,
        commit: through.0,
    })
}

/// Whether nothing follows this reply on its stream.
pub(super) fn ends_stream(reply: &Reply) -> bool {
    match reply {
        Reply::NotPrimary(_) => true,
        Reply::Refused(refused) => matches!(
            refused.reason,
            Some(
                Reason::ShuttingDown(_)
                    | Reason::FencedGeneration(_)
                    | Reason::AttachedElsewhere(_)
                    | Reason::AttachmentEnded(_)
                    | Reason::UnknownSession(_)
                    | Reason::NoSuchVolume(_)
            )
        ),
        _ => false,
    }
}
