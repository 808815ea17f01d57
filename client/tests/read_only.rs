//! Handles that only read.

use std::time::Duration;

use mainstay_testing::TestCluster;

/// It has no session to end. The request to end one got no answer: the call lasted until the handle's deadline, with the processor busy.
#[tokio::test]
async fn closing_a_handle_that_only_reads_returns_at_once() {
    let shape = TestCluster::builder().data_nodes(1).witnesses(1);
    let cluster = shape.start().await.expect("started");
    cluster.create_log("log").await.expect("created");
    cluster
        .create_block("disk", 1 << 20)
        .await
        .expect("created");
    let client = cluster.client().await.expect("connected");
    let log = client.log("log").read_only().open().await.expect("opened");
    let disk = client.block("disk").open().await.expect("opened");
    let closed = tokio::time::timeout(Duration::from_secs(5), async {
        log.close().await.expect("closed");
        disk.close().await.expect("closed");
    });
    closed.await.expect("at once");
}
