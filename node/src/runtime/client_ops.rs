//! A client's requests in the words of the volume.

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_proto::v1::client_request::Body;
use mainstay_storage::EntryKind;
use mainstay_storage::format::{FLAG_ALLOCATED, encode_range, encode_unstamped, set_flags};
use mainstay_storage::image::RANGE_BYTES_MAX;
use mainstay_types::{Lsn, SessionId};
use mainstay_volume::tree::{ProofWanted, TreeQuestion};
use mainstay_volume::{BATCH_RECORDS_MAX, ClientOp, Direction, PageLimits, RetentionChange};

use super::client_replies as replies;

/// Bytes of records in one answer, unless a single record is larger.
pub(super) const RECORDS_BYTES: usize = 1 << 20;

/// A page of a log, bounded as this server bounds it.
pub(super) fn read_op(read: &pb::ReadLog) -> ClientOp {
    let records_max = match read.max_records {
        0 => usize::MAX,
        count => count as usize,
    };
    ClientOp::ReadLog {
        from: Lsn(read.from_lsn.max(1)),
        direction: if read.backwards {
            Direction::Backwards
        } else {
            Direction::Forwards
        },
        limits: PageLimits {
            bytes_max: (read.max_bytes as usize).clamp(1, RECORDS_BYTES),
            records_max,
        },
        stale_ok: read.committed.is_some(),
    }
}

/// A question about a log's tree.
pub(super) fn tree_op(read: &pb::ReadTree) -> ClientOp {
    let proof = match read.proof {
        None => ProofWanted::None,
        Some(pb::read_tree::Proof::Lsn(lsn)) => ProofWanted::Inclusion(Lsn(lsn)),
        Some(pb::read_tree::Proof::OldSize(size)) => ProofWanted::Consistency(size),
    };
    ClientOp::ReadTree {
        question: TreeQuestion {
            size: read.size,
            proof,
        },
        stale_ok: read.committed.is_some(),
    }
}

/// The operation of a mutation, with the bytes that it holds in memory.
pub(super) fn mutation_op(body: Body) -> Result<(ClientOp, u64), Reply> {
    let range = |kind, seq, offset, len: u64, flags: u8| {
        if len > RANGE_BYTES_MAX {
            return Err(replies::too_large(RANGE_BYTES_MAX));
        }
        let mut entry = encode_unstamped(kind, SessionId(0), 0, seq, offset, &encode_range(len));
        set_flags(&mut entry, flags);
        Ok((
            ClientOp::Mutate {
                seq,
                expected: None,
                entry,
                more: Vec::new(),
            },
            64,
        ))
    };
    match body {
        Body::Append(append) => {
            let expected = append.expected_lsn.map(Lsn);
            payload(EntryKind::Record, append.seq, 0, expected, &append.record)
        }
        Body::AppendAtomic(append) => atomic(&append),
        // What may be given back is for the primary to say.
        Body::TrimLog(trim) => payload(
            EntryKind::TrimLog,
            trim.seq,
            trim.first_lsn,
            None,
            &Bytes::from_static(&[0; 8]),
        ),
        Body::RetainLog(retain) => {
            let change = RetentionChange {
                age_ms: retain.age_ms,
                bytes: retain.bytes,
            };
            let bytes = Bytes::copy_from_slice(&change.encode());
            payload(EntryKind::RetainLog, retain.seq, 0, None, &bytes)
        }
        Body::Write(write) => payload(EntryKind::Write, write.seq, write.offset, None, &write.data),
        Body::Trim(trim) => range(EntryKind::Trim, trim.seq, trim.offset, trim.len, 0),
        Body::Zeroes(zeroes) => {
            let flags = if zeroes.keep_allocated {
                FLAG_ALLOCATED
            } else {
                0
            };
            range(
                EntryKind::Zeroes,
                zeroes.seq,
                zeroes.offset,
                zeroes.len,
                flags,
            )
        }
        _ => Err(replies::unsupported("this request")),
    }
}

pub(super) fn payload(
    kind: EntryKind,
    seq: u64,
    arg: u64,
    expected: Option<Lsn>,
    data: &Bytes,
) -> Result<(ClientOp, u64), Reply> {
    let limit = replies::PAYLOAD_BYTES_MAX;
    if data.len() > limit {
        return Err(replies::too_large(limit as u64));
    }
    // The checksum of the payload is computed here, outside the volume's task.
    let entry = encode_unstamped(kind, SessionId(0), 0, seq, arg, data);
    Ok((
        ClientOp::Mutate {
            seq,
            expected,
            entry,
            more: Vec::new(),
        },
        data.len() as u64,
    ))
}

/// The operation of an atomic batch.
fn atomic(append: &pb::AppendAtomic) -> Result<(ClientOp, u64), Reply> {
    let Some((first, rest)) = append.records.split_first() else {
        return Err(replies::bad_request("a batch without records"));
    };
    if append.records.len() > BATCH_RECORDS_MAX {
        return Err(replies::too_many_records());
    }
    let bytes: usize = append.records.iter().map(Bytes::len).sum();
    let limit = replies::PAYLOAD_BYTES_MAX;
    if bytes > limit {
        return Err(replies::too_large(limit as u64));
    }
    let seq = append.seq;
    let record = |data: &Bytes| encode_unstamped(EntryKind::Record, SessionId(0), 0, seq, 0, data);
    let op = ClientOp::Mutate {
        seq,
        expected: append.expected_lsn.map(Lsn),
        entry: record(first),
        more: rest.iter().map(record).collect(),
    };
    Ok((op, bytes as u64))
}
