//! Messages between nodes: members, registers, witnesses and their sets.

use bytes::Bytes;
use mainstay_proto::v1 as pb;

use crate::{Golden, block};

impl Golden {
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

/// Every message between nodes.
pub(crate) fn add(golden: &mut Golden) {
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
    blocks(golden);
}

fn blocks(golden: &mut Golden) {
    let request = pb::BlocksRequest {
        cluster: 0xd1,
        volume: 0xa1,
        lineage: 0xa2,
        blocks: vec![7, 300],
    };
    golden.add("blocks_request", &request);
    let block = |block, data: &'static [u8], crc, lsn| pb::CopyBlock {
        block,
        data: Bytes::from_static(data),
        crc,
        lsn,
    };
    let reply = pb::BlocksReply {
        blocks: vec![block(7, b"bytes", 0x0102_0304, 400), block(300, b"", 0, 0)],
        at: 401,
    };
    golden.add("blocks_reply", &reply);
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
        lacked_from: 398,
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
