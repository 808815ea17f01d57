//! Witnesses come and go while the cluster serves (rule R8), each with its files and its links.

mod support;

use std::time::Duration;

use bytes::Bytes;
use mainstay_client::report::{CreateVolume, Promote, WitnessChange, Witnesses};
use mainstay_client::{Admin, AdminError, Client, ClientConfig, LogVolume};
use mainstay_types::{NodeId, VolumeKind};
use support::{Cluster, PATIENCE, healed};

const LEDGER: &str = "ledger";

async fn with_ledger(cluster: &Cluster) -> (Admin, LogVolume) {
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let admin = client.admin();
    admin
        .create_volume(CreateVolume::new(LEDGER, VolumeKind::Log))
        .await
        .expect("created");
    healed(&admin, LEDGER, 3).await;
    let log = client.log(LEDGER).open().await.expect("open");
    (admin, log)
}

async fn append(log: &LogVolume) {
    log.append(Bytes::from_static(b"record"))
        .await
        .expect("committed");
}

fn replace(old: u32, new: u32) -> WitnessChange {
    WitnessChange {
        add: Some(NodeId(new)),
        address: None,
        remove: Some(NodeId(old)),
    }
}

fn nodes(witnesses: &Witnesses) -> Vec<u32> {
    witnesses.witnesses.iter().map(|w| w.node.0).collect()
}

/// Moves the primary to each of two nodes: each takes a majority of the witnesses.
async fn promotes(admin: &Admin, log: &LogVolume) {
    for to in [2, 3] {
        let promote = Promote {
            to: Some(NodeId(to)),
            ..Promote::planned(LEDGER)
        };
        admin.promote(promote).await.expect("promoted");
        append(log).await;
        healed(admin, LEDGER, 3).await;
    }
}

/// Until every data node goes by these witnesses.
async fn known_to_all(cluster: &Cluster, expected: &[u32]) {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    for endpoint in cluster.endpoints() {
        let client = Client::connect(ClientConfig::new(vec![endpoint]))
            .await
            .expect("connected");
        loop {
            let found = client.admin().witnesses().await.expect("listed");
            if nodes(&found) == expected && !found.changing {
                break;
            }
            assert!(tokio::time::Instant::now() < give_up, "{found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_takes_the_place_of_another_while_writes_go_on() {
    let mut cluster = Cluster::with_standby(3, 3, 1).await;
    let (admin, log) = with_ledger(&cluster).await;
    let listed = admin.witnesses().await.expect("listed");
    assert_eq!(nodes(&listed), [101, 102, 103]);
    assert_eq!(listed.standby, [NodeId(104)]);

    let change = admin.change_witnesses(replace(103, 104));
    tokio::pin!(change);
    let mut longest = Duration::ZERO;
    let changed = loop {
        let began = tokio::time::Instant::now();
        tokio::select! {
            changed = &mut change => break changed.expect("changed"),
            () = append(&log) => longest = longest.max(began.elapsed()),
        }
    };
    assert_eq!(nodes(&changed), [101, 102, 104]);
    assert!(!changed.changing);
    // Nothing waits for a change: no lease ran out, no primary was replaced.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    known_to_all(&cluster, &[101, 102, 104]).await;

    // The one that left is not needed, and with one of the old ones away the newcomer is.
    cluster.stop(NodeId(103)).await;
    cluster.stop(NodeId(101)).await;
    promotes(&admin, &log).await;

    // After a restart of everything that is left, too: the files say who the witnesses are.
    let left = [1, 2, 3, 102, 104].map(NodeId);
    cluster.stop_together(&left).await;
    for node in left {
        cluster.restart(node).await;
    }
    healed(&admin, LEDGER, 3).await;
    promotes(&admin, &log).await;

    // And the one that is away learns what it missed when it comes back.
    cluster.restart(NodeId(103)).await;
    let promote = Promote {
        to: Some(NodeId(1)),
        ..Promote::planned(LEDGER)
    };
    cluster.stop(NodeId(102)).await;
    let moved = admin.promote(promote).await;
    assert!(
        moved.is_err(),
        "one of three and one that has no vote: {moved:?}"
    );
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_whose_store_is_lost_comes_back_as_a_newcomer() {
    let mut cluster = Cluster::start().await;
    let (admin, log) = with_ledger(&cluster).await;
    let lost = NodeId(101);
    cluster.stop(lost).await;
    cluster.wipe(lost);
    cluster.make_standby(lost);

    let add = WitnessChange {
        add: Some(lost),
        ..WitnessChange::default()
    };
    let known = admin.change_witnesses(add.clone()).await;
    let Err(AdminError::Invalid { message }) = known else {
        panic!("it still counts: {known:?}");
    };
    assert!(message.contains("remove it first"), "{message}");
    let remove = WitnessChange {
        remove: Some(lost),
        ..WitnessChange::default()
    };
    let changed = admin
        .change_witnesses(remove.clone())
        .await
        .expect("removed");
    assert_eq!(nodes(&changed), [102, 103]);
    let silent = admin.change_witnesses(add.clone()).await;
    let Err(AdminError::Invalid { message }) = silent else {
        panic!("it does not run: {silent:?}");
    };
    assert!(message.contains("standby-witness"), "{message}");

    cluster.restart(lost).await;
    let changed = admin.change_witnesses(add.clone()).await.expect("added");
    assert_eq!(nodes(&changed), [101, 102, 103]);
    known_to_all(&cluster, &[101, 102, 103]).await;

    // Its votes alone are lost, and the node runs before it is removed: until then it counts as one that is away.
    cluster.stop(lost).await;
    cluster.wipe_votes(lost);
    cluster.restart(lost).await;
    promotes(&admin, &log).await;
    let changed = admin.change_witnesses(remove).await.expect("removed");
    assert_eq!(nodes(&changed), [102, 103]);
    let changed = admin.change_witnesses(add).await.expect("added");
    assert_eq!(nodes(&changed), [101, 102, 103]);
    known_to_all(&cluster, &[101, 102, 103]).await;

    // With one of those that would be left away, nothing is begun that could not be ended.
    cluster.stop(NodeId(103)).await;
    let remove = WitnessChange {
        remove: Some(NodeId(102)),
        ..WitnessChange::default()
    };
    let refused = admin.change_witnesses(remove).await;
    let Err(AdminError::Invalid { message }) = refused else {
        panic!("one of two would be left: {refused:?}");
    };
    assert!(message.contains("no majority"), "{message}");
    cluster.restart(NodeId(103)).await;
    cluster.stop(NodeId(102)).await;
    promotes(&admin, &log).await;
    // It keeps its vote.
    cluster.stop(lost).await;
    cluster.restart(lost).await;
    promotes(&admin, &log).await;
    cluster.shut_down().await;
}

/// The file was written once for each set. What there was no room for was not known after the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_the_witnesses_are_is_kept_once_it_can_be() {
    let cluster = Cluster::with_standby(3, 3, 1).await;
    let (admin, _log) = with_ledger(&cluster).await;
    let dir = cluster.data_dir(NodeId(1));
    let (file, in_the_way) = (dir.join("witnesses.json"), dir.join("witnesses.new"));
    std::fs::create_dir(&in_the_way).expect("made");
    let changed = admin.change_witnesses(replace(103, 104)).await;
    changed.expect("changed");
    known_to_all(&cluster, &[101, 102, 104]).await;
    let kept = || std::fs::read_to_string(&file).expect("kept at the start");
    // It was tried, and not only once.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!kept().contains("\"node\":104"), "{}", kept());
    std::fs::remove_dir(&in_the_way).expect("removed");
    let give_up = tokio::time::Instant::now() + PATIENCE;
    while !kept().contains("\"node\":104") || kept().contains("\"node\":103") {
        assert!(tokio::time::Instant::now() < give_up, "{}", kept());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.shut_down().await;
}
