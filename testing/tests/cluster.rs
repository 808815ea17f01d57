//! What the embedded cluster promises to those who test with it.

use std::time::Instant;

use mainstay_client::ReadLimits;
use mainstay_client::report::Promote;
use mainstay_testing::{ClusterError, TestCluster};
use mainstay_types::{Lsn, NodeId};

#[tokio::test]
async fn acknowledged_records_outlive_their_primary_and_the_end_of_all_data_nodes() {
    let cluster = TestCluster::start().await.expect("started");
    cluster.create_log("ledger").await.expect("created");
    let client = cluster.client().await.expect("connected");
    let log = client.log("ledger").open().await.expect("opened");
    log.append("one").await.expect("committed");
    let primary = cluster.primary_of("ledger").await.expect("known");
    cluster.stop(primary).await.expect("stopped");
    log.append("two").await.expect("committed by the others");
    assert_ne!(cluster.primary_of("ledger").await.expect("known"), primary);
    cluster.start_again(primary).await.expect("started again");
    let all = [NodeId(1), NodeId(2), NodeId(3)];
    cluster.fail(&all).await.expect("stopped");
    for node in all {
        cluster.start_again(node).await.expect("started again");
    }
    log.append("three").await.expect("committed");
    let page = log.read(Lsn(1), ReadLimits::default()).await.expect("read");
    let data: Vec<&[u8]> = page.records.iter().map(|record| &record.data[..]).collect();
    assert_eq!(data, [&b"one"[..], b"two", b"three"]);
}

#[tokio::test]
async fn what_cannot_be_done_to_a_node_is_refused_by_name() {
    let shape = TestCluster::builder().data_nodes(1).witnesses(1);
    let cluster = shape.start().await.expect("started");
    let runs = cluster.start_again(NodeId(1)).await;
    assert!(matches!(runs, Err(ClusterError::Runs(NodeId(1)))));
    let unknown = cluster.fail(&[NodeId(1), NodeId(9)]).await;
    assert!(matches!(unknown, Err(ClusterError::NoSuchNode(NodeId(9)))));
    cluster.stop(NodeId(1)).await.expect("it still ran");
    let stopped = cluster.stop(NodeId(1)).await;
    assert!(matches!(stopped, Err(ClusterError::Stopped(NodeId(1)))));
    let even = TestCluster::builder().witnesses(2).start().await;
    assert!(matches!(
        even,
        Err(ClusterError::BadShape { witnesses: 2, .. })
    ));
}

#[test]
fn a_dropped_cluster_leaves_no_listener() {
    let mut endpoints = Vec::new();
    let began = Instant::now();
    mainstay_testing::run(async |cluster| {
        endpoints = cluster.endpoints();
        cluster.create_block("disk", 1 << 20).await?;
        Ok(())
    });
    assert_eq!(endpoints.len(), 3);
    for endpoint in endpoints {
        let refused = std::net::TcpStream::connect(&endpoint);
        assert!(refused.is_err(), "{endpoint} still listens");
    }
    println!("start, create and stop took {:?}", began.elapsed());
}

#[test]
#[should_panic(expected = "no such volume")]
fn an_error_of_the_test_fails_it() {
    let shape = TestCluster::builder().data_nodes(1).witnesses(1);
    mainstay_testing::run_shaped(shape, async |cluster| {
        cluster.client().await?.log("nothing").open().await?;
        Ok(())
    });
}

#[tokio::test]
async fn a_created_volume_has_all_its_copies_and_may_be_moved_at_once() {
    let cluster = TestCluster::start().await.expect("started");
    cluster.create_log("ledger").await.expect("created");
    let admin = cluster.client().await.expect("connected").admin();
    let volume = admin.show_volume("ledger").await.expect("shown");
    let nodes = volume.members.iter().map(|member| member.node);
    let to = nodes.clone().find(|node| *node != volume.primary);
    assert_eq!(nodes.count(), 3);
    let planned = Promote::planned("ledger");
    let moved = admin.promote(Promote { to, ..planned }).await;
    assert_eq!(moved.ok().map(|promoted| promoted.primary), to);
}
