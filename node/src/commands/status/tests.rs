use mainstay_client::report::{StoreStatus, VoterStatus};
use mainstay_types::{
    AckRule, ClusterId, Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, MemberKind, NodeId,
    VolumeId,
};

use super::*;

fn node(id: u32, data: bool) -> NodeStatus {
    NodeStatus {
        node: NodeId(id),
        address: format!("127.0.0.1:74{id:02}"),
        data,
        witness: !data,
        zone: String::new(),
        reachable: true,
        instance: Instance(1),
        release: "0.1.0".to_owned(),
        uptime_ms: 61_000,
        silent_ms: 0,
        healthy: true,
        reason: String::new(),
        store: data.then(|| StoreStatus {
            bytes: 0,
            free_bytes: 0,
            engine: "threads".to_owned(),
            sync_p50_us: 0,
            sync_max_us: 0,
            volumes: 1,
            primaries: u32::from(id == 1),
        }),
        voter: (!data).then_some(VoterStatus {
            quiet_ms: 0,
            registers: 1,
            grants: 1,
        }),
    }
}

fn member(id: u32, role: MemberRole) -> MemberStatus {
    MemberStatus {
        node: NodeId(id),
        incarnation: Incarnation(7),
        kind: MemberKind::Full,
        role,
        sealed_epoch: Epoch(4),
        durable_lsn: Lsn(12),
        committed_lsn: Lsn(11),
        lag_entries: 0,
        lag_bytes: 0,
        lag_ms: 0,
        silent_ms: 20,
        damaged: false,
        rebuilding: false,
        in_doubt: false,
        reason: String::new(),
        bytes_in_flight: 0,
    }
}

/// A log on three nodes, well.
pub(in super::super) fn volume() -> VolumeStatus {
    VolumeStatus {
        id: VolumeId(1),
        name: "ledger".to_owned(),
        kind: VolumeKind::Log,
        health: VolumeHealth::Ok,
        problems: Vec::new(),
        deleted: false,
        epoch: Epoch(4),
        epoch_started_unix_ms: 0,
        primary: NodeId(1),
        primary_instance: Instance(1),
        register_version: 9,
        lineage: Lineage(3),
        ack: AckRule::Majority,
        ack_quorum: 2,
        min_copies: 2,
        prefer: vec![NodeId(2), NodeId(1)],
        shared: false,
        placement: vec![NodeId(1), NodeId(2), NodeId(3)],
        cut: LogPoint::ZERO,
        seen_by: NodeId(1),
        authoritative: true,
        lease_held: true,
        lease_remaining_ms: 700,
        lease_granted_by: Vec::new(),
        first_lsn: Lsn(1),
        first_shown_lsn: Lsn::ZERO,
        retention: None,
        accepted_lsn: Lsn(12),
        commit_lsn: Lsn(11),
        applied_lsn: Lsn(11),
        uncommitted_age_ms: 0,
        wal_bytes: 0,
        members: vec![
            member(1, MemberRole::Primary),
            member(2, MemberRole::Replica),
            member(3, MemberRole::Replica),
        ],
        learners: Vec::new(),
        change: String::new(),
        sessions: 1,
        attachments: Vec::new(),
        hold_down_ms: 0,
    }
}

/// Three data nodes and three witnesses with one log, well.
pub(in super::super) fn cluster() -> ClusterStatus {
    let data = (1..=3).map(|id| node(id, true));
    let witnesses = (4..=6).map(|id| node(id, false));
    ClusterStatus {
        cluster: ClusterId(5),
        answered_by: NodeId(1),
        unix_ms: 0,
        witnesses: 3,
        witnesses_reachable: 3,
        nodes: data.chain(witnesses).collect(),
        volumes: vec![volume()],
    }
}

#[test]
fn the_page_of_a_healthy_cluster() {
    let mut status = cluster();
    status.nodes.truncate(1);
    assert_eq!(
        render(&status),
        "\
cluster 0000000000000005 at 1970-01-01 00:00:00.000 UTC, told by node 1

NODE  ROLES  ADDRESS         STATE    UP  COPIES  PRIMARY OF  RELEASE
   1  data   127.0.0.1:7401  ok     61 s       1           1  0.1.0

VOLUME  KIND  SIZE  HEALTH  PRIMARY  EPOCH  COPIES  COMMITTED  LEASE LEFT  SESSIONS  ATTACHED BY
ledger  log      -  ok            1      4     3/3         11      700 ms         1  -

VOLUME  NODE  ROLE     SEALED  DURABLE  COMMITTED  LAG  SILENT  NOTE
ledger     1  primary       4       12         11    0       -  -
ledger     2  replica       4       12         11    0   20 ms  -
ledger     3  replica       4       12         11    0   20 ms  -

no problems
"
    );
}

#[test]
fn a_page_without_volumes_says_how_to_make_one() {
    let mut status = cluster();
    status.volumes.clear();
    assert!(render(&status).contains("mainstay volume create"));
}

#[test]
fn learners_show_how_far_they_are() {
    let mut status = cluster();
    status.volumes[0].members.pop();
    status.volumes[0].learners.push(LearnerStatus {
        node: NodeId(3),
        incarnation: Incarnation(8),
        phase: LearnerPhase::Image,
        durable_lsn: Lsn(2),
        target_lsn: Lsn(12),
        bytes_done: 1 << 20,
        bytes_total: 4 << 20,
        bytes_per_second: 1 << 20,
        eta_ms: Some(3000),
        reason: String::new(),
    });
    let page = render(&status);
    assert!(page.contains("copies image"), "{page}");
    assert!(page.contains("1 MiB of 4 MiB, 3 s left"), "{page}");
}

#[test]
fn json_has_every_volume_and_node() {
    let mut out = Vec::new();
    print_json(&mut out, &cluster()).expect("printed");
    let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(value["volumes"][0]["primary"], 1);
    assert_eq!(value["volumes"][0]["members"][1]["role"], "replica");
    assert_eq!(value["nodes"].as_array().map(Vec::len), Some(6));
}
