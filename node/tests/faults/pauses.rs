//! Processes that stand still: faults 7 and 8.

use std::time::Instant;

use mainstay_client::{AppendError, LogVolume, Outcome};
use mainstay_node::demo::cluster::LEDGER;
use mainstay_node::devcluster::Signal;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_client::ClientClient;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;

use crate::rig::{NOTHING_FOR, ONE, PATIENCE, Rig, THREE, WITNESSES, progress, wait_for};

/// Fault 7. The streams that the old primary had open when it was frozen ask it again as soon as it runs: for a read, for an
/// append, for its position. It must neither serve nor acknowledge any of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_is_fenced_and_serves_nothing_when_it_runs_again() {
    let rig = Rig::start().await;
    let (load, disk) = (rig.load().await, rig.disk_load(THREE).await);
    let before = rig.primary().await;
    assert_eq!(before.node, ONE);
    rig.move_disk(ONE).await;
    let mut stream = OldStream::open(&rig.stage.node(before.node).expect("known").grpc).await;
    assert!(matches!(
        stream.ask(stream.position()).await,
        Some(Body::Position(_))
    ));
    rig.signal(before.node, Signal::STOP).await;
    // Sent while it is frozen: they lie in its socket and are the first that it sees.
    for request in [stream.position(), stream.append(), stream.read()] {
        stream.send(request);
    }
    let after = rig.served_above(before.epoch).await;
    assert_ne!(after.node, before.node);
    progress(&load).await;
    Rig::goes_on(&disk).await;
    rig.signal(before.node, Signal::CONT).await;

    while let Some(answer) = stream.next().await {
        assert!(
            matches!(answer, Body::NotPrimary(_) | Body::Refused(_)),
            "served after it was replaced: {answer:?}"
        );
    }
    let until = Instant::now() + NOTHING_FOR;
    while Instant::now() < until {
        let says = rig.stage.says_it_serves(before.node, LEDGER).await;
        assert!(
            says.is_none_or(|serving| serving.epoch > before.epoch),
            "{says:?}"
        );
    }
    rig.whole().await;
    rig.disk_ends_equal(disk).await;
    // The append that it was sent is a foreign record if it was acknowledged or kept.
    rig.end(load).await;
}

/// A stream of the wire protocol, which follows nobody.
struct OldStream {
    requests: mpsc::UnboundedSender<pb::ClientRequest>,
    answers: tonic::Streaming<pb::ClientReply>,
    tag: u64,
}

impl OldStream {
    async fn open(address: &str) -> Self {
        // Without the pings of our own client, which would close the stream long before the node runs again.
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("connected");
        let (requests, queue) = mpsc::unbounded_channel();
        let open = pb::Open {
            volume: LEDGER.to_owned(),
            session: 0x0_1d,
            first_unanswered: 1,
            patience_ms: 1000,
            create: true,
            ..pb::Open::default()
        };
        let open = pb::ClientRequest {
            tag: 1,
            body: Some(client_request::Body::Open(open)),
        };
        requests.send(open).expect("open");
        let answers = ClientClient::new(channel)
            .volume(UnboundedReceiverStream::new(queue))
            .await
            .expect("a stream")
            .into_inner();
        let mut stream = Self {
            requests,
            answers,
            tag: 1,
        };
        let opened = stream.next().await;
        assert!(matches!(opened, Some(Body::Opened(_))), "{opened:?}");
        stream
    }

    fn position(&self) -> client_request::Body {
        client_request::Body::Position(pb::Position { committed: None })
    }

    fn append(&self) -> client_request::Body {
        client_request::Body::Append(pb::AppendRecord {
            seq: 1,
            record: "to the old primary".into(),
            expected_lsn: None,
        })
    }

    fn read(&self) -> client_request::Body {
        client_request::Body::ReadLog(pb::ReadLog {
            from_lsn: 1,
            max_records: 10,
            max_bytes: 1 << 16,
            backwards: false,
            committed: None,
        })
    }

    fn send(&mut self, body: client_request::Body) {
        self.tag += 1;
        let request = pb::ClientRequest {
            tag: self.tag,
            body: Some(body),
        };
        self.requests.send(request).expect("the stream is open");
    }

    async fn ask(&mut self, body: client_request::Body) -> Option<Body> {
        self.send(body);
        self.next().await
    }

    /// The next answer; none once the stream has ended.
    async fn next(&mut self) -> Option<Body> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        answer.expect("an answer or the end").ok()??.body
    }
}

/// Fault 8. Large records fill what is kept for the frozen replica: it is bounded, and writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_replica_or_witness_costs_neither_service_nor_memory() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    assert_eq!(before.node, ONE);
    let bulk = rig.stage.client.log(BULK);
    let wanted = mainstay_client::report::CreateVolume::new(BULK, mainstay_types::VolumeKind::Log);
    let wanted = mainstay_client::report::CreateVolume {
        placement: vec![ONE, mainstay_types::NodeId(2), THREE],
        ..wanted
    };
    let created = rig.stage.client.admin().create_volume(wanted).await;
    created.expect("created");
    rig.stage.wait_whole(BULK).await.expect("whole");
    let bulk = bulk.open().await.expect("opens");
    fill(&bulk, 16 << 20).await;
    for frozen in [THREE, WITNESSES[1]] {
        rig.signal(frozen, Signal::STOP).await;
        let resident = anonymous_memory(rig.worker(ONE));
        fill(&bulk, WRITTEN).await;
        let grown = anonymous_memory(rig.worker(ONE)).saturating_sub(resident);
        println!("node {frozen} frozen, {WRITTEN} bytes written: the primary grew by {grown}");
        assert!(grown < GROWS_AT_MOST, "grew by {grown} bytes");
        progress(&load).await;
        rig.signal(frozen, Signal::CONT).await;
        rig.whole().await;
        rig.stage.wait_whole(BULK).await.expect("whole");
    }
    assert_eq!(rig.primary().await, before, "nothing was promoted");
    rig.end(load).await;
}

const BULK: &str = "bulk";
const RECORD: usize = 256 << 10;
/// Far more than may wait in memory for one member.
const WRITTEN: usize = 192 << 20;
/// Queues, the window of a member, the newest entries.
const GROWS_AT_MOST: usize = 96 << 20;

async fn fill(log: &LogVolume, bytes: usize) {
    let record = bytes::Bytes::from(vec![7; RECORD]);
    let mut pending = std::collections::VecDeque::new();
    for _ in 0..bytes / RECORD {
        if pending.len() == 8 {
            let append: mainstay_client::PendingAppend = pending.pop_front().expect("eight");
            append.await.expect("committed");
        }
        pending.push_back(log.submit(record.clone()).await.expect("room"));
    }
    for append in pending {
        append.await.expect("committed");
    }
}

/// Of a process, in bytes, without what is mapped from files.
fn anonymous_memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.expect("a number").parse::<usize>().expect("KiB") << 10
}

/// Fault 59: what was in flight with a primary that never answers is settled, and is there once or never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_append_is_settled_by_the_next_primary() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    let log = rig.stage.client.log(LEDGER);
    let log = log.deadline(std::time::Duration::from_millis(200));
    let log = log.open().await.expect("opens");
    let first = log.append("transfer 0 of another client").await;
    let first = first.expect("committed");
    rig.signal(before.node, Signal::STOP).await;
    let mut unknown = Vec::new();
    for number in 0..3 {
        match log.append(format!("unknown {number}")).await {
            Err(AppendError::Unknown { op, .. }) => unknown.push((number, op)),
            other => panic!("nobody could have answered: {other:?}"),
        }
    }
    rig.served_above(before.epoch).await;
    let mut committed = Vec::new();
    for (number, op) in unknown {
        let outcome = wait_for("an outcome", PATIENCE, async || log.outcome(op).await.ok());
        if let Outcome::Committed(at) = outcome.await {
            committed.push((number, at.lsn));
        }
    }
    // The handle goes on sending what it has no answer for, so nothing of it is lost, and nothing is twice.
    assert_eq!(committed.len(), 3);
    rig.signal(before.node, Signal::CONT).await;
    let model = load.stop().await.expect("settled");
    assert_eq!(model.unknown, Vec::<u64>::new());
    let mut found = Vec::new();
    let mut next = first.lsn;
    loop {
        let page = log.read(next, mainstay_client::ReadLimits::default()).await;
        let page = page.expect("reads");
        for record in &page.records {
            let text = String::from_utf8_lossy(&record.data).into_owned();
            if let Some(number) = text.strip_prefix("unknown ") {
                found.push((number.parse::<i32>().expect("a number"), record.lsn));
            }
        }
        if page.end {
            break;
        }
        next = page.next;
    }
    assert_eq!(found, committed, "each once, in order, where it was said");
    rig.stop().await;
}
