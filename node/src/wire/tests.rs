//! What is encoded decodes to itself, and nothing that a peer sends panics.

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_replication::message::{
    Ack, Append, Ballot, Beat, Claim, ClaimHealth, Doubt, Granted, MemberEnvelope, MemberMessage,
    Message, Orphan, RefuseReason, RegisterMessage, SealAnswer, SetStep, SuspectReason,
    WitnessMessage,
};
use mainstay_replication::{SetTag, Voter, WitnessSet};
use mainstay_types::{
    AckRule, ClusterId, Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, Member, MemberKind,
    NodeId, Policy, PrimaryId, Register, RegisterId, VolumeId, VolumeKind, VolumeSpec,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

use crate::runtime::store_marks::NodeMarks;

use super::{HelloError, NUMBER_MAX, WireError, accept_hello, decode, encode, hello};

fn number() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![0..100_u64, 0..=NUMBER_MAX]
}

fn epoch() -> impl Strategy<Value = Epoch> + Clone {
    number().prop_map(Epoch)
}

fn lsn() -> impl Strategy<Value = Lsn> + Clone {
    number().prop_map(Lsn)
}

fn point() -> impl Strategy<Value = LogPoint> + Clone {
    (epoch(), lsn()).prop_map(|(epoch, lsn)| LogPoint { epoch, lsn })
}

fn instance() -> impl Strategy<Value = Instance> + Clone {
    any::<u64>().prop_map(Instance)
}

fn volume() -> impl Strategy<Value = VolumeId> + Clone {
    any::<u64>().prop_map(VolumeId)
}

fn node() -> impl Strategy<Value = NodeId> + Clone {
    any::<u32>().prop_map(NodeId)
}

fn nodes() -> impl Strategy<Value = Vec<NodeId>> + Clone {
    vec(node(), 0..4)
}

fn process() -> impl Strategy<Value = PrimaryId> + Clone {
    (node(), any::<u64>(), instance()).prop_map(|(node, incarnation, instance)| PrimaryId {
        node,
        incarnation: Incarnation(incarnation),
        instance,
    })
}

fn member() -> impl Strategy<Value = Member> {
    let kind = prop_oneof![Just(MemberKind::Full), Just(MemberKind::Log)];
    (node(), any::<u64>(), kind).prop_map(|(node, incarnation, kind)| Member {
        node,
        incarnation: Incarnation(incarnation),
        kind,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let ack = prop_oneof![Just(AckRule::All), Just(AckRule::Majority)];
    let lists = (nodes(), nodes());
    let numbers = (any::<u32>(), any::<bool>());
    (ack, numbers, lists).prop_map(|(ack, (min_copies, shared), (placement, prefer))| Policy {
        ack,
        min_copies,
        placement,
        prefer,
        shared,
    })
}

fn spec() -> impl Strategy<Value = VolumeSpec> {
    let name = vec(0..26_u8, 1..=64).prop_map(|letters| {
        let name: String = letters.into_iter().map(|l| char::from(b'a' + l)).collect();
        name.parse().expect("lower-case letters")
    });
    let kind = prop_oneof![
        Just(VolumeKind::Log),
        number().prop_map(|size_bytes| VolumeKind::Block { size_bytes })
    ];
    (name, kind).prop_map(|(name, kind)| VolumeSpec { name, kind })
}

fn register() -> impl Strategy<Value = Box<Register>> {
    let ids = (
        any::<u64>(),
        number(),
        any::<u64>(),
        epoch(),
        process(),
        any::<u64>(),
    );
    let rest = (
        vec(member(), 0..5),
        any::<u32>(),
        policy(),
        point(),
        spec(),
        any::<bool>(),
    );
    (ids, rest).prop_map(|(ids, rest)| {
        Box::new(Register {
            id: RegisterId(ids.0),
            version: ids.1,
            lineage: Lineage(ids.2),
            log_lineage: Lineage(ids.5),
            epoch: ids.3,
            primary: ids.4,
            members: rest.0,
            ack_quorum: rest.1,
            policy: rest.2,
            cut: rest.3,
            spec: rest.4,
            deleted: rest.5,
        })
    })
}

/// Appends with well-formed runs: `lengths` entries of rising epochs, or a heartbeat if there are none.
fn append() -> impl Strategy<Value = Append> {
    let numbers = (epoch(), point(), 1..1000_u64, lsn(), lsn(), number(), lsn());
    let runs = vec((1..5_u64, 1..9_u64), 0..4);
    (numbers, runs).prop_map(
        |((epoch, prev, first, commit, primary_last, register_version, lacked_from), steps)| {
            let (mut runs, mut run_epoch, mut next) = (Vec::new(), 0, first);
            for (rise, length) in steps {
                run_epoch += rise;
                runs.push((Epoch(run_epoch), Lsn(next)));
                next += length;
            }
            Append {
                epoch,
                prev,
                first: Lsn(first),
                last: Lsn(next - 1),
                runs,
                commit,
                primary_last,
                register_version,
                lacked_from,
            }
        },
    )
}

fn sealed() -> impl Strategy<Value = SealAnswer> {
    let doubt = (lsn(), option::of(lsn())).prop_map(|(from, to)| Doubt { from, to });
    (
        epoch(),
        point(),
        lsn(),
        any::<bool>(),
        any::<bool>(),
        option::of(doubt),
        nodes(),
    )
        .prop_map(
            |(epoch, last, first, damaged, rebuilding, doubt, reachable)| SealAnswer {
                epoch,
                last,
                first,
                damaged,
                rebuilding,
                doubt,
                reachable,
            },
        )
}

fn member_message() -> impl Strategy<Value = MemberMessage> {
    let reason = prop_oneof![
        Just(RefuseReason::Sealed),
        Just(RefuseReason::Damaged),
        Just(RefuseReason::Failed)
    ];
    prop_oneof![
        append().prop_map(MemberMessage::Append),
        (epoch(), instance(), lsn(), any::<bool>()).prop_map(
            |(epoch, instance, lsn, rebuilding)| {
                MemberMessage::Ack(Ack {
                    epoch,
                    instance,
                    lsn,
                    rebuilding,
                })
            }
        ),
        (epoch(), instance(), point()).prop_map(|(epoch, instance, hint)| {
            MemberMessage::Mismatch {
                epoch,
                instance,
                hint,
            }
        }),
        (epoch(), epoch(), reason).prop_map(|(epoch, sealed, reason)| MemberMessage::Refused {
            epoch,
            sealed,
            reason
        }),
        (epoch(), number()).prop_map(|(epoch, round)| MemberMessage::Confirm { epoch, round }),
        (epoch(), instance(), number()).prop_map(|(epoch, instance, round)| {
            MemberMessage::Confirmed {
                epoch,
                instance,
                round,
            }
        }),
        epoch().prop_map(|epoch| MemberMessage::Seal { epoch }),
        sealed().prop_map(MemberMessage::Sealed),
        (epoch(), epoch()).prop_map(|(asked, sealed)| MemberMessage::SealRefused { asked, sealed }),
        register().prop_map(MemberMessage::Decided),
        Just(MemberMessage::NoCopy),
    ]
}

fn ballot() -> impl Strategy<Value = Ballot> + Clone {
    (number(), instance()).prop_map(|(counter, proposer)| Ballot { counter, proposer })
}

fn tag() -> impl Strategy<Value = SetTag> + Clone {
    (number(), any::<u64>()).prop_map(|(version, id)| SetTag { version, id })
}

fn voters() -> impl Strategy<Value = Vec<Voter>> {
    let stores = vec((any::<u64>(), "[a-z]{0,9}"), 1..5);
    stores.prop_map(|stores| {
        let voter = |(at, (store, address)): (usize, (u64, String))| Voter {
            node: NodeId(u32::try_from(at).expect("small")),
            store,
            address,
        };
        stores.into_iter().enumerate().map(voter).collect()
    })
}

fn witness_set() -> impl Strategy<Value = WitnessSet> {
    (tag(), voters(), option::of(voters())).prop_map(|(tag, voters, next)| WitnessSet {
        tag,
        voters,
        next,
    })
}

fn set_round() -> impl Strategy<Value = RegisterMessage<WitnessSet>> {
    let set = || witness_set().prop_map(Box::new);
    prop_oneof![
        (ballot(), tag()).prop_map(|(ballot, set)| RegisterMessage::Prepare { ballot, set }),
        (ballot(), option::of((ballot(), set())))
            .prop_map(|(ballot, accepted)| RegisterMessage::Promised { ballot, accepted }),
        (ballot(), tag(), set()).prop_map(|(ballot, set, value)| RegisterMessage::Accept {
            ballot,
            set,
            value
        }),
        ballot().prop_map(|ballot| RegisterMessage::Accepted { ballot }),
        (ballot(), ballot())
            .prop_map(|(ballot, promised)| RegisterMessage::Rejected { ballot, promised }),
    ]
}

fn set_step() -> impl Strategy<Value = SetStep> {
    let fences = || vec((volume(), epoch()), 0..4);
    prop_oneof![
        Just(SetStep::Wanted),
        tag().prop_map(|set| SetStep::Probe { set }),
        tag().prop_map(|set| SetStep::Votes { set }),
        any::<u64>().prop_map(|nonce| SetStep::Invite { nonce }),
        (any::<u64>(), any::<u64>()).prop_map(|(store, nonce)| SetStep::Invited { store, nonce }),
        set_round().prop_map(SetStep::Round),
        (tag(), fences(), any::<u32>()).prop_map(|(set, volumes, lease_longest_ms)| {
            SetStep::Adopted {
                set,
                volumes,
                lease_longest_ms,
            }
        }),
        (tag(), fences(), any::<u32>()).prop_map(|(set, volumes, lease_longest_ms)| {
            SetStep::Install {
                set,
                volumes,
                lease_longest_ms,
            }
        }),
        tag().prop_map(|set| SetStep::Installed { set }),
    ]
}

fn register_message() -> impl Strategy<Value = RegisterMessage> {
    prop_oneof![
        (ballot(), tag()).prop_map(|(ballot, set)| RegisterMessage::Prepare { ballot, set }),
        (ballot(), option::of((ballot(), register())))
            .prop_map(|(ballot, accepted)| RegisterMessage::Promised { ballot, accepted }),
        (ballot(), tag(), register()).prop_map(|(ballot, set, value)| RegisterMessage::Accept {
            ballot,
            set,
            value
        }),
        ballot().prop_map(|ballot| RegisterMessage::Accepted { ballot }),
        (ballot(), ballot())
            .prop_map(|(ballot, promised)| RegisterMessage::Rejected { ballot, promised }),
    ]
}

fn beat() -> impl Strategy<Value = Beat> {
    let claim = (volume(), epoch()).prop_map(|(volume, epoch)| Claim { volume, epoch });
    let unwell = (volume(), any::<[u32; 3]>(), nodes()).prop_map(
        |(volume, [sync_age_ms, uncommitted_age_ms, syncs_due], unreachable)| ClaimHealth {
            volume,
            sync_age_ms,
            uncommitted_age_ms,
            unreachable,
            syncs_due,
        },
    );
    let zone = "[a-zA-Z0-9._-]{1,64}".prop_map(|name| name.parse().expect("a good name"));
    let orphan = (volume(), epoch()).prop_map(|(volume, sealed)| Orphan { volume, sealed });
    (
        instance(),
        number(),
        number(),
        option::of(vec(claim, 0..4)),
        vec(unwell, 0..3),
        vec(orphan, 0..3),
        tag(),
        option::of(zone),
    )
        .prop_map(
            |(instance, seq, table, claims, unwell, orphans, set, zone)| Beat {
                instance,
                seq,
                table,
                claims,
                unwell,
                orphans,
                set,
                zone,
            },
        )
}

fn witness_message() -> impl Strategy<Value = WitnessMessage> {
    let reason = prop_oneof![
        Just(SuspectReason::LeaseGone),
        Just(SuspectReason::Fenced),
        Just(SuspectReason::SealedAbove),
        Just(SuspectReason::Operator)
    ];
    prop_oneof![
        beat().prop_map(WitnessMessage::Beat),
        (number(), number(), vec(volume(), 0..4), nodes()).prop_map(
            |(seq, table, exceptions, hearing)| {
                WitnessMessage::Granted(Granted {
                    seq,
                    table,
                    exceptions,
                    hearing,
                    lease_ms: 800,
                })
            }
        ),
        (volume(), epoch(), instance(), option::of(node())).prop_map(
            |(volume, epoch, instance, prefer)| {
                WitnessMessage::Release {
                    volume,
                    epoch,
                    instance,
                    prefer,
                }
            }
        ),
        (node(), instance())
            .prop_map(|(node, instance)| WitnessMessage::ReleaseInstance { node, instance }),
        (volume(), epoch(), reason).prop_map(|(volume, epoch, reason)| WitnessMessage::Suspect {
            volume,
            epoch,
            reason
        }),
        (volume(), epoch(), any::<bool>()).prop_map(|(volume, epoch, agree)| {
            WitnessMessage::Suspected {
                volume,
                epoch,
                agree,
            }
        }),
        (volume(), epoch(), tag()).prop_map(|(volume, epoch, set)| WitnessMessage::Fence {
            volume,
            epoch,
            set
        }),
        witness_set().prop_map(|set| WitnessMessage::Set(std::sync::Arc::new(set))),
        set_step().prop_map(WitnessMessage::SetStep),
        (volume(), epoch()).prop_map(|(volume, epoch)| WitnessMessage::Fenced { volume, epoch }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let envelope = (volume(), any::<u64>(), process(), member_message()).prop_map(
        |(volume, lineage, from, body)| MemberEnvelope {
            volume,
            lineage: Lineage(lineage),
            from,
            body,
        },
    );
    prop_oneof![
        2 => envelope.prop_map(|envelope| Message::Member(Box::new(envelope))),
        1 => (volume(), register_message()).prop_map(|(volume, body)| Message::Register { volume, body }),
        1 => witness_message().prop_map(Message::Witness),
    ]
}

/// Bytes that may travel beside `message`.
fn batch_for(message: &Message, bytes: Vec<u8>) -> Bytes {
    match message {
        Message::Member(envelope) => match &envelope.body {
            MemberMessage::Append(append) if append.last >= append.first => bytes.into(),
            _ => Bytes::new(),
        },
        _ => Bytes::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_message_survives_the_wire(message in message(), bytes in vec(any::<u8>(), 1..200)) {
        let batch = batch_for(&message, bytes);
        let sent = encode(&message, batch.clone()).encode_to_vec();
        let frame = pb::Frame::decode(Bytes::from(sent)).expect("what prost wrote");
        prop_assert_eq!(decode(frame), Ok((message, batch)));
    }

    /// Mutated bytes of real frames reach far deeper than random ones.
    #[test]
    fn no_bytes_of_a_peer_panic(message in message(), hits in vec((any::<usize>(), any::<u8>()), 0..6)) {
        let mut sent = encode(&message, batch_for(&message, vec![7; 9])).encode_to_vec();
        for (place, value) in hits {
            let len = sent.len();
            if len > 0 {
                sent[place % len] = value;
            }
        }
        if let Ok(frame) = pb::Frame::decode(Bytes::from(sent)) {
            let _either = decode(frame);
        }
    }
}

fn append_frame(change: impl FnOnce(&mut pb::MemberFrame, &mut pb::Append)) -> pb::Frame {
    let mut append = pb::Append {
        epoch: 2,
        prev: Some(pb::LogPoint { epoch: 1, lsn: 9 }),
        first: 10,
        last: 12,
        runs: vec![
            pb::EpochRun {
                epoch: 1,
                first: 10,
            },
            pb::EpochRun {
                epoch: 2,
                first: 11,
            },
        ],
        ..pb::Append::default()
    };
    let mut frame = pb::MemberFrame {
        from: Some(pb::ProcessId::default()),
        batch: Bytes::from_static(b"entries"),
        ..pb::MemberFrame::default()
    };
    change(&mut frame, &mut append);
    frame.body = Some(pb::member_frame::Body::Append(append));
    pb::Frame {
        body: Some(pb::frame::Body::Member(frame)),
    }
}

#[test]
fn appends_that_contradict_themselves_are_refused() {
    let check = |change: fn(&mut pb::MemberFrame, &mut pb::Append), expected: WireError| {
        assert_eq!(decode(append_frame(change)), Err(expected));
    };
    assert!(decode(append_frame(|_, _| ())).is_ok());
    let runs = WireError::Runs {
        first: Lsn(10),
        last: Lsn(12),
    };
    check(|_, append| append.runs.clear(), runs.clone());
    check(|_, append| append.runs.reverse(), runs.clone());
    check(|_, append| append.runs[0].first = 9, runs.clone());
    check(|_, append| append.runs[1].first = 13, runs.clone());
    check(|_, append| append.runs[1].epoch = 1, runs);
    let batch = |batch_bytes, entries| WireError::Batch {
        batch_bytes,
        entries,
    };
    check(|frame, _| frame.batch.clear(), batch(0, 3));
    check(
        |_, append| (append.last, append.runs) = (9, Vec::new()),
        batch(7, 0),
    );
    check(
        |_, append| append.prev = None,
        WireError::Missing("append.prev"),
    );
    check(
        |frame, _| frame.from = None,
        WireError::Missing("member.from"),
    );
    let value = u64::MAX;
    let field = "append.last";
    check(
        |_, append| append.last = u64::MAX,
        WireError::OutOfRange { field, value },
    );
}

#[test]
fn frames_without_a_known_body_are_refused() {
    assert_eq!(
        decode(pb::Frame { body: None }),
        Err(WireError::Missing("frame.body"))
    );
    let empty = pb::Frame {
        body: Some(pb::frame::Body::Witness(pb::WitnessFrame { body: None })),
    };
    assert_eq!(decode(empty), Err(WireError::Missing("witness.body")));
    assert_eq!(
        decode(hello(
            ClusterId(1),
            NodeId(1),
            Instance(1),
            NodeMarks::default()
        )),
        Err(WireError::Hello)
    );
}

#[test]
fn a_link_opens_between_nodes_of_one_cluster_and_protocol() {
    let peer = accept_hello(
        hello(ClusterId(7), NodeId(2), Instance(3), NodeMarks::default()),
        ClusterId(7),
    )
    .expect("same cluster");
    assert_eq!((peer.node, peer.instance), (NodeId(2), Instance(3)));
    assert_eq!(
        accept_hello(
            hello(ClusterId(7), NodeId(2), Instance(3), NodeMarks::default()),
            ClusterId(8)
        ),
        Err(HelloError::OtherCluster {
            found: ClusterId(7),
            expected: ClusterId(8)
        })
    );
    assert_eq!(
        accept_hello(pb::Frame { body: None }, ClusterId(7)),
        Err(HelloError::NotHello)
    );
}
