//! Wire compatibility: the bytes of every kind of message, as first released, are kept in `golden/messages.txt`.
//!
//! A difference is a change of the protocol. `MAINSTAY_BLESS=1 cargo test -p mainstay-proto` rewrites the file; its diff is what
//! a reviewer must accept, together with the version of the protocol.

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use proptest::prelude::*;
use prost::Message;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// One line a message, and a check that its bytes decode to it.
#[derive(Default)]
struct Golden(String);

impl Golden {
    fn add<M: Message + Default + PartialEq>(&mut self, name: &str, message: &M) {
        let bytes = message.encode_to_vec();
        let back = M::decode(Bytes::from(bytes.clone())).expect("what was encoded");
        assert!(back == *message, "{name} does not survive");
        let _infallible = writeln!(self.0, "{name} {}", hex(&bytes));
    }

    fn member(&mut self, name: &str, body: pb::member_frame::Body, batch: &'static [u8]) {
        let frame = pb::MemberFrame {
            volume: 0xa1,
            lineage: 0xa2,
            from: Some(process()),
            body: Some(body),
            batch: Bytes::from_static(batch),
        };
        let body = Some(pb::frame::Body::Member(frame));
        self.add(name, &pb::Frame { body });
    }

    fn register(&mut self, name: &str, body: pb::register_frame::Body) {
        let frame = pb::RegisterFrame {
            volume: 0xa1,
            body: Some(body),
        };
        let body = Some(pb::frame::Body::Register(frame));
        self.add(name, &pb::Frame { body });
    }

    fn witness(&mut self, name: &str, body: pb::witness_frame::Body) {
        let frame = pb::WitnessFrame { body: Some(body) };
        let body = Some(pb::frame::Body::Witness(frame));
        self.add(name, &pb::Frame { body });
    }

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

fn point() -> pb::LogPoint {
    pb::LogPoint { epoch: 3, lsn: 400 }
}

fn process() -> pb::ProcessId {
    pb::ProcessId {
        node: 2,
        incarnation: 0xb1,
        instance: 0xb2,
    }
}

fn block() -> pb::VolumeKind {
    let kind = pb::volume_kind::Kind::Block(pb::BlockKind {
        size_bytes: 1 << 30,
    });
    pb::VolumeKind { kind: Some(kind) }
}

fn register() -> pb::Register {
    let member = |node, kind: pb::MemberKind| pb::Member {
        node,
        incarnation: 0xb1,
        kind: kind.into(),
    };
    pb::Register {
        id: 0xc1,
        version: 9,
        lineage: 0xa2,
        epoch: 3,
        primary: Some(process()),
        members: vec![
            member(2, pb::MemberKind::Full),
            member(4, pb::MemberKind::Log),
        ],
        ack_quorum: 2,
        policy: Some(pb::Policy {
            ack: pb::AckRule::All.into(),
            min_copies: 1,
            placement: vec![2, 4],
            prefer: vec![4],
            shared: false,
        }),
        cut: Some(point()),
        spec: Some(pb::VolumeSpec {
            name: "disk0".to_owned(),
            kind: Some(block()),
        }),
        deleted: true,
        log_lineage: 0xa3,
    }
}

fn ballot() -> Option<pb::Ballot> {
    Some(pb::Ballot {
        counter: 7,
        proposer: 0xb2,
    })
}

fn links(golden: &mut Golden) {
    let hello = pb::Hello {
        cluster: 0xd1,
        node: 2,
        instance: 0xb2,
        protocol: 1,
        release: "0.1.0".to_owned(),
        witness_store: 0x5707,
        witness_boots: 3,
        data_store: 0xda,
        data_boots: 4,
    };
    let body = Some(pb::frame::Body::Hello(hello));
    golden.add("hello", &pb::Frame { body });
    members(golden);
    registers(golden);
    witnesses(golden);
    witness_sets(golden);
}

fn members(golden: &mut Golden) {
    use pb::member_frame::Body;
    let append = pb::Append {
        epoch: 3,
        prev: Some(point()),
        first: 401,
        last: 402,
        runs: vec![pb::EpochRun {
            epoch: 3,
            first: 401,
        }],
        commit: 399,
        primary_last: 402,
        register_version: 9,
    };
    golden.member("append", Body::Append(append), b"entries");
    let ack = pb::Ack {
        epoch: 3,
        instance: 0xb2,
        lsn: 402,
        rebuilding: true,
    };
    golden.member("ack", Body::Ack(ack), b"");
    let mismatch = pb::Mismatch {
        epoch: 3,
        instance: 0xb2,
        hint: Some(point()),
    };
    golden.member("mismatch", Body::Mismatch(mismatch), b"");
    let refused = pb::MemberRefused {
        epoch: 3,
        sealed: 4,
        reason: pb::MemberRefuseReason::Failed.into(),
    };
    golden.member("member_refused", Body::Refused(refused), b"");
    golden.member(
        "confirm",
        Body::Confirm(pb::Confirm { epoch: 3, round: 5 }),
        b"",
    );
    let confirmed = pb::Confirmed {
        epoch: 3,
        instance: 0xb2,
        round: 5,
    };
    golden.member("confirmed", Body::Confirmed(confirmed), b"");
    golden.member("seal", Body::Seal(pb::Seal { epoch: 4 }), b"");
    let sealed = pb::Sealed {
        epoch: 4,
        last: Some(point()),
        first: 10,
        damaged: true,
        rebuilding: true,
        doubt: Some(pb::Doubt {
            from: 401,
            to: Some(402),
        }),
        reachable: vec![1, 4],
    };
    golden.member("sealed", Body::Sealed(sealed), b"");
    golden.member(
        "seal_refused",
        Body::SealRefused(pb::SealRefused {
            asked: 4,
            sealed: 5,
        }),
        b"",
    );
    let register = Some(register());
    golden.member("decided", Body::Decided(pb::Decided { register }), b"");
    golden.member("no_copy", Body::NoCopy(pb::NoCopy {}), b"");
}

fn registers(golden: &mut Golden) {
    use pb::register_frame::Body;
    let (ballot, value) = (ballot(), Some(register()));
    let set = tag();
    golden.register("prepare", Body::Prepare(pb::Prepare { ballot, set }));
    let accepted = Some(pb::AcceptedValue {
        ballot,
        value: value.clone(),
    });
    golden.register(
        "promised",
        Body::Promised(pb::Promised { ballot, accepted }),
    );
    golden.register("accept", Body::Accept(pb::Accept { ballot, value, set }));
    golden.register("accepted", Body::Accepted(pb::Accepted { ballot }));
    let promised = ballot;
    golden.register(
        "rejected",
        Body::Rejected(pb::Rejected { ballot, promised }),
    );
}

fn witnesses(golden: &mut Golden) {
    use pb::witness_frame::Body;
    let (volume, epoch, instance) = (0xa1, 3, 0xb2);
    let beat = pb::Beat {
        instance,
        seq: 11,
        table: 12,
        claims: Some(pb::ClaimTable {
            claims: vec![pb::Claim { volume, epoch }],
        }),
        unwell: vec![pb::ClaimHealth {
            volume,
            sync_age_ms: 20,
            uncommitted_age_ms: 30,
            unreachable: vec![4],
            syncs_due: 5,
        }],
        orphans: vec![pb::Orphan { volume, sealed: 4 }],
        set: tag(),
        zone: "east".to_owned(),
    };
    golden.witness("beat", Body::Beat(beat));
    let granted = pb::Granted {
        seq: 11,
        table: 12,
        exceptions: vec![volume],
        lease_ms: 800,
        hearing: vec![1, 2],
    };
    golden.witness("granted", Body::Granted(granted));
    let release = pb::Release {
        volume,
        epoch,
        instance,
        prefer: Some(4),
    };
    golden.witness("release", Body::Release(release));
    golden.witness(
        "release_instance",
        Body::ReleaseInstance(pb::ReleaseInstance { node: 2, instance }),
    );
    let reason = pb::SuspectReason::SealedAbove.into();
    golden.witness(
        "suspect",
        Body::Suspect(pb::Suspect {
            volume,
            epoch,
            reason,
        }),
    );
    let agree = true;
    golden.witness(
        "suspected",
        Body::Suspected(pb::Suspected {
            volume,
            epoch,
            agree,
        }),
    );
    let set = tag();
    golden.witness("fence", Body::Fence(pb::Fence { volume, epoch, set }));
    golden.witness("fenced", Body::Fenced(pb::Fenced { volume, epoch }));
}

fn tag() -> Option<pb::SetTag> {
    Some(pb::SetTag {
        version: 7,
        id: 0xf0,
    })
}

fn witness_set() -> pb::WitnessSet {
    let voter = |node| pb::Voter {
        node,
        store: 0xf1,
        address: "127.0.0.1:7411".to_owned(),
    };
    pb::WitnessSet {
        tag: tag(),
        voters: vec![voter(101), voter(102)],
        next: Some(pb::VoterList {
            voters: vec![voter(101), voter(103)],
        }),
    }
}

fn witness_sets(golden: &mut Golden) {
    use pb::set_round::Body as Round;
    use pb::set_step::Body;
    use pb::witness_frame::Body as Frame;
    golden.witness("set", Frame::Set(witness_set()));
    let mut step = |name: &str, body| {
        golden.witness(name, Frame::SetStep(pb::SetStep { body: Some(body) }));
    };
    let (set, ballot, accepted) = (tag(), ballot(), Some(witness_set()));
    let volumes = vec![pb::VolumeFence {
        volume: 0xa1,
        epoch: 3,
    }];
    let (v, lease_longest_ms) = (volumes.clone(), 800);
    step("set_wanted", Body::Wanted(pb::SetWanted {}));
    step("set_probe", Body::Probe(tag().unwrap_or_default()));
    step("set_votes", Body::Votes(tag().unwrap_or_default()));
    step("set_invite", Body::Invite(pb::SetInvite { nonce: 0xf2 }));
    step(
        "set_invited",
        Body::Invited(pb::SetInvited {
            store: 0xf1,
            nonce: 0xf2,
        }),
    );
    let adopted = pb::SetAdopted {
        set,
        volumes,
        lease_longest_ms,
    };
    step("set_adopted", Body::Adopted(adopted));
    let install = pb::SetInstall {
        set,
        volumes: v,
        lease_longest_ms,
    };
    step("set_install", Body::Install(install));
    step("set_installed", Body::Installed(pb::SetInstalled { set }));
    let rounds = [
        ("set_prepare", Round::Prepare(pb::Prepare { ballot, set })),
        (
            "set_promised",
            Round::Promised(pb::SetPromised {
                ballot,
                accepted_at: ballot,
                accepted: accepted.clone(),
            }),
        ),
        (
            "set_accept",
            Round::Accept(pb::SetAccept {
                ballot,
                set,
                value: accepted,
            }),
        ),
    ];
    for (name, body) in rounds {
        step(name, Body::Round(pb::SetRound { body: Some(body) }));
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

#[test]
fn bytes_of_every_message_are_those_of_the_first_release() {
    let mut golden = Golden::default();
    links(&mut golden);
    requests(&mut golden);
    replies(&mut golden);
    refusals(&mut golden);
    finding(&mut golden);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.txt");
    if std::env::var_os("MAINSTAY_BLESS").is_some() {
        std::fs::write(&path, &golden.0).expect("writable source tree");
    }
    let kept = std::fs::read_to_string(&path).expect("the golden file");
    for (now, then) in golden.0.lines().zip(kept.lines()) {
        assert_eq!(now, then);
    }
    assert_eq!(golden.0.lines().count(), kept.lines().count());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn payload_and_numbers_survive(
        tag: u64, seq: u64, offset: u64, data: Vec<u8>, epoch: u64, instance: u64, to: Option<u64>, lsn: u64,
    ) {
        let data = Bytes::from(data);
        let write = pb::client_request::Body::Write(pb::Write { seq, offset, data: data.clone() });
        let request = pb::ClientRequest { tag, body: Some(write) };
        let bytes = Bytes::from(request.encode_to_vec());
        prop_assert_eq!(pb::ClientRequest::decode(bytes), Ok(request));

        let sealed = pb::Sealed { epoch, doubt: Some(pb::Doubt { from: lsn, to }), ..pb::Sealed::default() };
        let frame = pb::MemberFrame {
            volume: instance,
            from: Some(pb::ProcessId { node: 1, incarnation: seq, instance }),
            body: Some(pb::member_frame::Body::Sealed(sealed)),
            batch: data,
            ..pb::MemberFrame::default()
        };
        let frame = pb::Frame { body: Some(pb::frame::Body::Member(frame)) };
        let bytes = Bytes::from(frame.encode_to_vec());
        prop_assert_eq!(pb::Frame::decode(bytes), Ok(frame));
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        let _either = pb::Frame::decode(bytes.clone());
        let _either = pb::ClientRequest::decode(bytes.clone());
        let _either = pb::ClientReply::decode(bytes.clone());
        let _either = pb::StatusReply::decode(bytes);
    }
}
