//! A witness that lost its store, or got an older one back: nobody listens to it, and everything goes on without it.

mod support;

use bytes::Bytes;
use mainstay_client::report::{CreateVolume, EventFilter, Promote};
use mainstay_client::{Admin, Client, ClientConfig, LogVolume};
use mainstay_types::{NodeId, VolumeKind};
use support::{Cluster, healed};

const LEDGER: &str = "ledger";
const WITNESS: NodeId = NodeId(101);

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
    log.append(Bytes::from_static(b"one"))
        .await
        .expect("committed");
    (admin, log)
}

/// Whether some data node has an event that says `text`.
async fn told(admin: &Admin, text: &str) -> bool {
    for node in admin.status().await.expect("status").nodes {
        let Ok(mut events) = admin.events_of(&node.address, EventFilter::default()).await else {
            continue;
        };
        while let Some(event) = events.next().await {
            if event.expect("an event").message.contains(text) {
                return true;
            }
        }
    }
    false
}

/// The two others promote and grant; the one that forgot counts for nobody. With one of the others down it would be needed:
/// then nothing is promoted, rather than by a witness that does not know what it promised.
async fn goes_on_without_it(cluster: &mut Cluster, admin: &Admin, log: &LogVolume, said: &str) {
    let give_up = tokio::time::Instant::now() + support::PATIENCE;
    while !told(admin, said).await {
        assert!(tokio::time::Instant::now() < give_up, "nobody says so");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let status = admin.status().await.expect("status");
    let reached = status
        .nodes
        .iter()
        .filter(|node| node.witness && node.healthy);
    assert!(reached.count() >= 2, "{status:?}");
    for to in [2, 3] {
        let promote = Promote {
            to: Some(NodeId(to)),
            ..Promote::planned(LEDGER)
        };
        admin.promote(promote).await.expect("two of three suffice");
        log.append(Bytes::from_static(b"more"))
            .await
            .expect("committed");
        healed(admin, LEDGER, 3).await;
    }
    cluster.stop(NodeId(102)).await;
    let promote = Promote {
        to: Some(NodeId(1)),
        ..Promote::planned(LEDGER)
    };
    let moved = admin.promote(promote).await;
    assert!(
        moved.is_err(),
        "by one witness and one that forgot: {moved:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_with_a_blank_store_does_not_vote_again() {
    let mut cluster = Cluster::start().await;
    let (admin, log) = with_ledger(&cluster).await;
    cluster.stop(WITNESS).await;
    cluster.wipe(WITNESS);
    cluster.restart(WITNESS).await;
    goes_on_without_it(&mut cluster, &admin, &log, "another store").await;
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_with_an_older_store_does_not_vote_again() {
    let mut cluster = Cluster::start().await;
    let (admin, log) = with_ledger(&cluster).await;
    cluster.stop(WITNESS).await;
    let kept = cluster.scratch().join("kept");
    cluster.save(WITNESS, &kept);
    for _ in 0..2 {
        cluster.restart(WITNESS).await;
        healed(&admin, LEDGER, 3).await;
        cluster.stop(WITNESS).await;
    }
    cluster.put_back(WITNESS, &kept);
    cluster.restart(WITNESS).await;
    goes_on_without_it(&mut cluster, &admin, &log, "an older copy of its store").await;
    cluster.shut_down().await;
}
