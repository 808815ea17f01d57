//! Retries: whatever happened since, a mutation that is sent again under its number gets its first result. Against a real cluster in this
//! process, by streams of the wire protocol, which send what they are told to.

mod support;

use mainstay_client::report::{CreateVolume, Promote};
use mainstay_client::{Client, ClientConfig, ReadLimits};
use mainstay_proto::tuning::client_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_client::ClientClient;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request::Body as Ask;
use mainstay_types::{Lsn, NodeId, VolumeKind};
use support::{Cluster, PATIENCE, healed};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

const ALL: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// Position, records and time, as the primary answered.
type Told = (u64, u32, u64);

/// What session 7 appends.
fn mutations() -> [Ask; 2] {
    let single = pb::AppendBatch {
        first_seq: 1,
        tag_step: 1,
        records: vec!["single".into()],
    };
    let atomic = pb::AppendAtomic {
        seq: 2,
        records: vec!["first".into(), "second".into()],
        expected_lsn: None,
    };
    [Ask::AppendBatch(single), Ask::AppendAtomic(atomic)]
}

/// Opens session 7 at whoever serves, sends everything, and answers the results.
async fn send_all(cluster: &Cluster, create: bool) -> Vec<Told> {
    let search = async {
        loop {
            for address in cluster.endpoints() {
                if let Some(results) = send_to(&address, create).await {
                    return results;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, search).await;
    found.expect("somebody serves")
}

async fn send_to(address: &str, create: bool) -> Option<Vec<Told>> {
    let channel = client_endpoint(address).expect("an address");
    let channel = channel.connect().await.ok()?;
    let (requests, queue) = mpsc::unbounded_channel();
    let open = pb::Open {
        volume: "ledger".to_owned(),
        session: 7,
        first_unanswered: 1,
        patience_ms: 1000,
        create,
        ..pb::Open::default()
    };
    let ask = |tag, body| {
        let sent = requests.send(pb::ClientRequest {
            tag,
            body: Some(body),
        });
        sent.expect("open");
    };
    ask(0, Ask::Open(open));
    let mut client = ClientClient::new(channel);
    let answers = client.volume(UnboundedReceiverStream::new(queue)).await;
    let mut answers = answers.ok()?.into_inner();
    let mut next = async || answers.message().await.ok().flatten()?.body;
    let Some(Body::Opened(_)) = next().await else {
        return None;
    };
    for (tag, mutation) in (1..).zip(mutations()) {
        ask(tag, mutation);
    }
    let mut results = Vec::new();
    while results.len() < mutations().len() {
        match next().await? {
            Body::Committed(one) => results.push((one.lsn, one.count, one.timestamp_us)),
            Body::CommittedBatch(batch) => {
                let told = batch.results.iter();
                results.extend(told.map(|one| (one.lsn, one.count, one.timestamp_us)));
            }
            other => panic!("{other:?}"),
        }
    }
    Some(results)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_gets_its_first_result_across_two_failovers_and_a_restart_of_all() {
    let mut cluster = Cluster::start().await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
    let admin = client.expect("connected").admin();
    let create = CreateVolume::new("ledger", VolumeKind::Log);
    admin.create_volume(create).await.expect("created");
    healed(&admin, "ledger", 3).await;
    let first = send_all(&cluster, true).await;
    assert_eq!(first.len(), 2);
    assert!(first.iter().all(|(_, _, time)| *time > 0), "{first:?}");

    for failover in 0..2 {
        let before = admin.show_volume("ledger").await.expect("shown");
        cluster.kill(before.primary).await;
        assert_eq!(send_all(&cluster, false).await, first, "{failover}");
        cluster.restart(before.primary).await;
        healed(&admin, "ledger", 3).await;
        let after = admin.show_volume("ledger").await.expect("shown");
        assert!(after.epoch > before.epoch);
    }
    cluster.stop_together(&ALL).await;
    for node in ALL {
        cluster.restart(node).await;
    }
    assert_eq!(send_all(&cluster, false).await, first, "restarted");
    let back = Promote::planned("ledger");
    admin.promote(back).await.expect("a planned switchover");
    assert_eq!(send_all(&cluster, false).await, first, "moved");

    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
    let log = client.expect("connected").log("ledger").open().await;
    let log = log.expect("opened");
    let page = log.read(Lsn(1), ReadLimits::default()).await.expect("read");
    let records: Vec<&[u8]> = page.records.iter().map(|record| &record.data[..]).collect();
    assert_eq!(records, [&b"single"[..], b"first", b"second"]);
    cluster.shut_down().await;
}
