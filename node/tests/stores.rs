//! A node that lost what it kept its promises in, or got an older copy back: nobody listens to it, and everything goes on
//! without it.

mod support;

use std::time::Duration;

use bytes::Bytes;
use mainstay_client::report::{CreateVolume, EventFilter, Promote};
use mainstay_client::{Admin, Client, ClientConfig, LogVolume};
use mainstay_types::{NodeId, VolumeKind};
use support::{Cluster, PATIENCE, healed};

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

async fn until_told(admin: &Admin, text: &str) {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    while !told(admin, text).await {
        assert!(tokio::time::Instant::now() < give_up, "nobody says so");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The two others promote and grant; the one that forgot counts for nobody. With one of the others down it would be needed:
/// then nothing is promoted, rather than by a witness that does not know what it promised.
async fn goes_on_without_it(cluster: &mut Cluster, admin: &Admin, log: &LogVolume, said: &str) {
    until_told(admin, said).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_data_directory_is_refused_and_an_empty_one_is_filled() {
    let mut cluster = Cluster::start().await;
    let (admin, log) = with_ledger(&cluster).await;
    let node = NodeId(3);
    cluster.stop(node).await;
    let kept = cluster.scratch().join("kept");
    cluster.save(node, &kept);
    cluster.restart(node).await;
    healed(&admin, LEDGER, 3).await;
    log.append(Bytes::from_static(b"two"))
        .await
        .expect("committed");
    cluster.stop(node).await;
    // It acknowledged "two", and does not know.
    cluster.put_back(node, &kept);
    cluster.restart(node).await;
    until_told(&admin, "an older copy of its data directory").await;
    log.append(Bytes::from_static(b"three"))
        .await
        .expect("committed without it");

    cluster.stop(node).await;
    cluster.wipe(node);
    cluster.restart(node).await;
    healed(&admin, LEDGER, 3).await;
    cluster.shut_down().await;
}

/// A mark that could not be kept counted as the alarm about that node: a later one, for a reason, was never raised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_could_not_be_kept_hides_no_alarm() {
    let mut cluster = Cluster::start().await;
    let (admin, _log) = with_ledger(&cluster).await;
    cluster.stop(WITNESS).await;
    let older = cluster.scratch().join("older");
    cluster.save(WITNESS, &older);
    let dirs: Vec<_> = [1, 2, 3, 102, 103]
        .map(|node| cluster.data_dir(NodeId(node)))
        .into();
    let known = || {
        let files = dirs.iter().map(|dir| dir.join("stores-seen.json"));
        let known: Vec<_> = files
            .map(|file| std::fs::read(file).expect("kept"))
            .collect();
        known
    };
    let before = known();
    for dir in &dirs {
        std::fs::create_dir(dir.join("stores-seen.new")).expect("in the way");
    }
    cluster.restart(WITNESS).await;
    // For as long as this is so there are no links to it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(known(), before);
    for dir in &dirs {
        std::fs::remove_dir(dir.join("stores-seen.new")).expect("out of the way");
    }
    let give_up = tokio::time::Instant::now() + PATIENCE;
    while known()
        .iter()
        .zip(&before)
        .any(|(now, before)| now == before)
    {
        assert!(tokio::time::Instant::now() < give_up, "not kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.stop(WITNESS).await;
    cluster.restart(WITNESS).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.stop(WITNESS).await;
    cluster.put_back(WITNESS, &older);
    cluster.restart(WITNESS).await;
    until_told(&admin, "an older copy of its store").await;
    cluster.shut_down().await;
}
