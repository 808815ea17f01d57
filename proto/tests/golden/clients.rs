//! Messages between clients and nodes.

use bytes::Bytes;
use mainstay_proto::v1 as pb;

use crate::{Golden, block};

/// Every message between clients and nodes.
pub(crate) fn add(golden: &mut Golden) {
    requests(golden);
    replies(golden);
    refusals(golden);
    finding(golden);
}

impl Golden {
    fn ask(&mut self, name: &str, body: pb::client_request::Body) {
        let body = Some(body);
        self.add(name, &pb::ClientRequest { tag: 300, body });
    }

    fn reply(&mut self, name: &str, body: pb::client_reply::Body) {
        let body = Some(body);
        self.add(name, &pb::ClientReply { tag: 300, body });
    }

    fn refused(&mut self, name: &str, reason: pb::refused::Reason) {
        let refused = pb::Refused {
            message: "why".to_owned(),
            reason: Some(reason),
        };
        self.reply(name, pb::client_reply::Body::Refused(refused));
    }
}

fn requests(golden: &mut Golden) {
    use pb::client_request::Body;
    let (seq, offset, len) = (5, 8192, 4096);
    let open = pb::Open {
        volume: "disk0".to_owned(),
        session: 0xe1,
        generation: 2,
        attachment: Some(pb::Attachment {
            name: "vm".to_owned(),
            takeover: true,
        }),
        read_only: true,
        first_unanswered: 5,
        patience_ms: 1500,
        create: true,
        silence_ms: 0,
        token: 0,
        any_copy: false,
        lineage: 0,
    };
    golden.ask("open", Body::Open(open));
    let record = Bytes::from_static(b"record");
    let expected_lsn = Some(0);
    golden.ask(
        "append_record",
        Body::Append(pb::AppendRecord {
            seq,
            record,
            expected_lsn,
        }),
    );
    let records = [&b"one"[..], b"", b"three"].map(Bytes::from_static);
    golden.ask(
        "append_batch",
        Body::AppendBatch(pb::AppendBatch {
            first_seq: seq,
            tag_step: 2,
            records: records.to_vec(),
        }),
    );
    golden.ask(
        "append_atomic",
        Body::AppendAtomic(pb::AppendAtomic {
            seq,
            records: records.to_vec(),
            expected_lsn,
        }),
    );
    let data = Bytes::from_static(b"data");
    golden.ask("write", Body::Write(pb::Write { seq, offset, data }));
    golden.ask("trim", Body::Trim(pb::Trim { seq, offset, len }));
    let zeroes = pb::Zeroes {
        seq,
        offset,
        len,
        keep_allocated: true,
    };
    golden.ask("zeroes", Body::Zeroes(zeroes));
    golden.ask("trim_log", Body::TrimLog(pb::TrimLog { seq, first_lsn: 9 }));
    let retain = pb::RetainLog {
        seq,
        age_ms: Some(86_400_000),
        bytes: Some(0),
    };
    golden.ask("retain_log", Body::RetainLog(retain));
    golden.ask("read", Body::Read(pb::Read { offset, len: 4096 }));
    let allocation = pb::Allocation {
        offset,
        len: 1 << 33,
        max_extents: 100,
        changed_since: None,
    };
    golden.ask("allocation", Body::Allocation(allocation));
    let changed_since = pb::ChangePoint {
        lsn: 400,
        lineage: 0x0102_0304_0506_0708,
    };
    let allocation = pb::Allocation {
        changed_since: Some(changed_since),
        ..allocation
    };
    golden.ask("allocation_changed_since", Body::Allocation(allocation));
    let read_log = pb::ReadLog {
        from_lsn: 9,
        max_records: 10,
        max_bytes: 11,
        backwards: false,
        committed: None,
    };
    golden.ask("read_log", Body::ReadLog(read_log));
    let committed = Some(pb::AnyCommitted { at_least: 8 });
    let back = pb::ReadLog {
        backwards: true,
        committed,
        ..read_log
    };
    golden.ask("read_log_back", Body::ReadLog(back));
    let find = pb::FindTime {
        timestamp_us: 1_700_000_000_000_000,
        committed,
    };
    golden.ask("find_time", Body::FindTime(find));
    let tree = pb::ReadTree {
        size: Some(300),
        proof: Some(pb::read_tree::Proof::Lsn(12)),
        committed: None,
    };
    golden.ask("read_tree", Body::ReadTree(tree));
    let grew = pb::ReadTree {
        size: None,
        proof: Some(pb::read_tree::Proof::OldSize(200)),
        committed,
    };
    golden.ask("read_tree_grew", Body::ReadTree(grew));
    golden.ask("tail", Body::Tail(pb::Tail { from_lsn: 9 }));
    golden.ask(
        "cancel_tail",
        Body::CancelTail(pb::CancelTail { tail_tag: 4 }),
    );
    golden.ask("outcome", Body::Outcome(pb::Outcome { seq }));
    golden.ask("flush", Body::Flush(pb::Flush {}));
    golden.ask("position", Body::Position(pb::Position { committed: None }));
    golden.ask(
        "position_committed",
        Body::Position(pb::Position { committed }),
    );
    let any_copy = pb::Open {
        volume: "ledger".to_owned(),
        read_only: true,
        any_copy: true,
        ..pb::Open::default()
    };
    golden.ask("open_any_copy", Body::Open(any_copy));
    golden.ask("close", Body::Close(pb::Close {}));
    golden.ask("pong", Body::Pong(pb::Pong { number: 7 }));
    let forwarding = pb::Open {
        volume: "disk0".to_owned(),
        silence_ms: 5000,
        ..pb::Open::default()
    };
    golden.ask("open_forwarding", Body::Open(forwarding));
    let writing = pb::Open {
        volume: "ledger".to_owned(),
        token: 3,
        ..pb::Open::default()
    };
    golden.ask("open_writing", Body::Open(writing));
    let again = pb::Open {
        volume: "ledger".to_owned(),
        lineage: 0x0102_0304_0506_0708,
        ..pb::Open::default()
    };
    golden.ask("open_again", Body::Open(again));
}

fn replies(golden: &mut Golden) {
    use pb::client_reply::Body;
    let opened = pb::Opened {
        kind: Some(block()),
        epoch: 3,
        node: 2,
        generation: 2,
        next_seq: 5,
        payload_bytes_max: 1 << 20,
        commit: 400,
        first_lsn: 9,
        batch_records_max: 1024,
        lineage: 0x0102_0304_0506_0708,
    };
    golden.reply("opened", Body::Opened(opened));
    let not = pb::NotPrimary {
        primary: Some(0),
        address: "10.0.0.1:7400".to_owned(),
        epoch: 3,
    };
    golden.reply("not_primary", Body::NotPrimary(not));
    let (lsn, timestamp_us) = (401, 1_700_000_000_000_000);
    let committed = pb::Committed {
        lsn,
        timestamp_us,
        count: 0,
    };
    golden.reply("committed", Body::Committed(committed));
    let results = vec![pb::CommittedTag {
        tag: 301,
        lsn,
        timestamp_us,
        count: 0,
    }];
    golden.reply(
        "committed_batch",
        Body::CommittedBatch(pb::CommittedBatch { results }),
    );
    let atomic = pb::Committed {
        count: 3,
        ..committed
    };
    golden.reply("committed_atomic", Body::Committed(atomic));
    let results = vec![pb::CommittedTag {
        tag: 301,
        lsn,
        timestamp_us,
        count: 3,
    }];
    golden.reply(
        "committed_batch_atomic",
        Body::CommittedBatch(pb::CommittedBatch { results }),
    );
    let data = Bytes::from_static(b"data");
    golden.reply("data", Body::Data(pb::Data { data: data.clone() }));
    let extent = |len, data, unchanged| pb::Extent {
        len,
        data,
        unchanged,
    };
    let extents = pb::Extents {
        extents: vec![extent(4096, true, false), extent(1 << 33, false, false)],
    };
    golden.reply("extents", Body::Extents(extents));
    let extents = pb::Extents {
        extents: vec![extent(4096, true, false), extent(8192, true, true)],
    };
    golden.reply("extents_changed_since", Body::Extents(extents));
    let records = pb::Records {
        records: vec![pb::Record {
            lsn,
            timestamp_us,
            data,
        }],
        next_lsn: 402,
        end: true,
        commit: 0,
    };
    golden.reply("records", Body::Records(records));
    use pb::outcome_is::Outcome;
    let outcomes = [
        ("outcome_committed", Outcome::Committed(committed)),
        ("outcome_never", Outcome::Never(pb::Never {})),
        ("outcome_pending", Outcome::Pending(pb::Pending {})),
        ("outcome_forgotten", Outcome::Forgotten(pb::Forgotten {})),
    ];
    for (name, outcome) in outcomes {
        let outcome = Some(outcome);
        golden.reply(name, Body::Outcome(pb::OutcomeIs { outcome }));
    }
    golden.reply("flushed", Body::Flushed(pb::Flushed { commit: 400 }));
    let position = pb::PositionIs {
        first_lsn: 9,
        next_lsn: 401,
        commit: 400,
        epoch: 3,
        lineage: 0x0102_0304_0506_0708,
        retention: Some(pb::Retention {
            age_ms: 86_400_000,
            bytes: 1 << 30,
        }),
    };
    golden.reply("position_is", Body::Position(position));
    golden.reply("closed", Body::Closed(pb::Closed {}));
    let found = pb::Found {
        lsn: Some(401),
        timestamp_us,
    };
    golden.reply("found", Body::Found(found));
    let tree = pb::TreeIs {
        size: 300,
        root: Bytes::from_static(&[1; 32]),
        path: vec![Bytes::from_static(&[2; 32]), Bytes::from_static(&[3; 32])],
    };
    golden.reply("tree_is", Body::Tree(tree));
}

fn refusals(golden: &mut Golden) {
    use pb::refused::Reason;
    let reasons = [
        Reason::NoSuchVolume(pb::NoSuchVolume {}),
        Reason::WrongKind(pb::WrongKind {
            kind: Some(block()),
        }),
        Reason::FencedGeneration(pb::FencedGeneration { current: 3 }),
        Reason::AttachedElsewhere(pb::AttachedElsewhere {
            name: "vm".to_owned(),
            session: 0xe1,
        }),
        Reason::NotAttached(pb::NotAttached {}),
        Reason::ReadOnly(pb::ReadOnly {}),
        Reason::OutOfRange(pb::OutOfRange {
            size_bytes: 1 << 30,
        }),
        Reason::TooLarge(pb::TooLarge { bytes_max: 1 << 20 }),
        Reason::NoSpace(pb::NoSpace {}),
        Reason::UnknownSession(pb::UnknownSession {}),
        Reason::Trimmed(pb::Trimmed { first_lsn: 9 }),
        Reason::Overloaded(pb::Overloaded {}),
        Reason::ShuttingDown(pb::ShuttingDown {}),
        Reason::SequenceGap(pb::SequenceGap { expected: 5 }),
        Reason::UnexpectedPosition(pb::UnexpectedPosition { next_lsn: 401 }),
        Reason::BadRequest(pb::BadRequest {}),
        Reason::Unsupported(pb::Unsupported {}),
        Reason::Unreadable(pb::Unreadable {}),
        Reason::RefusedBefore(pb::RefusedBefore {}),
        Reason::ResultForgotten(pb::ResultForgotten {}),
        Reason::AttachmentEnded(pb::AttachmentEnded {}),
        Reason::TooManyRecords(pb::TooManyRecords { records_max: 1024 }),
        Reason::FencedToken(pb::FencedToken { current: 3 }),
        Reason::CopyBehind(pb::CopyBehind { commit: 7 }),
        Reason::TreeUnavailable(pb::TreeUnavailable {}),
        Reason::HistoryReplaced(pb::HistoryReplaced {
            lineage: 0x0102_0304_0506_0708,
        }),
    ];
    for (at, reason) in reasons.into_iter().enumerate() {
        golden.refused(&format!("refused_{}", at + 2), reason);
    }
}

/// What clients of an older release rely on to find their primary.
fn finding(golden: &mut Golden) {
    let request = pb::WhereRequest {
        volume: "disk0".to_owned(),
    };
    golden.add("where_request", &request);
    let reply = pb::WhereReply {
        known: true,
        epoch: 3,
        primary: Some(2),
        address: "10.0.0.2:7400".to_owned(),
        serving: true,
        node: 1,
        nodes: vec![pb::NodeAddress {
            node: 1,
            address: "10.0.0.1:7400".to_owned(),
        }],
    };
    golden.add("where_reply", &reply);
}
