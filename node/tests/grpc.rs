//! What gRPC programs that are not ours see: health, reflection, and a client in Python.

mod support;
mod tools;

use std::path::Path;
use std::time::Duration;

use mainstay_client::{Client, ClientConfig, LocalNode, ReadLimits};
use mainstay_node::commands::volume;
use mainstay_node::runtime::client_service::ClientService;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_client::ClientClient;
use mainstay_proto::v1::client_reply::Body as Said;
use mainstay_proto::v1::client_request::Body as Ask;
use mainstay_types::{Lsn, NodeId, VolumeKind};
use support::{Cluster, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

async fn channel(cluster: &Cluster) -> tonic::transport::Channel {
    let address = format!("http://{}", cluster.endpoints()[0]);
    let endpoint = tonic::transport::Endpoint::from_shared(address).expect("an address");
    endpoint.connect().await.expect("connected")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_by_service_and_unknown_names_are_unknown() {
    let cluster = Cluster::of(1, 1).await;
    let mut health = HealthClient::new(channel(&cluster).await);
    for service in ["", "mainstay.v1.Client", "mainstay.v1.Admin"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.expect("answered").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let request = HealthCheckRequest {
        service: "mainstay.v1.Nothing".to_owned(),
    };
    let refused = health.check(request).await.expect_err("unknown");
    assert_eq!(refused.code(), tonic::Code::NotFound);
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_lists_the_services_and_describes_their_messages() {
    let cluster = Cluster::of(1, 1).await;
    let mut reflection = ServerReflectionClient::new(channel(&cluster).await);
    let ask = |message| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(
            "mainstay.v1.ClientRequest".to_owned(),
        )),
    ];
    let asked = reflection.server_reflection_info(tokio_stream::iter(questions));
    let mut answers = asked.await.expect("answered").into_inner();
    let listed = answers.message().await.expect("an answer").expect("a list");
    let Some(MessageResponse::ListServicesResponse(list)) = listed.message_response else {
        panic!("no list: {listed:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    for service in ["Client", "Admin", "Replication", "Witness"] {
        assert!(
            names.contains(&format!("mainstay.v1.{service}").as_str()),
            "{names:?}"
        );
    }
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let described = answers.message().await.expect("an answer").expect("a file");
    let Some(MessageResponse::FileDescriptorResponse(files)) = described.message_response else {
        panic!("no file: {described:?}");
    };
    assert!(!files.file_descriptor_proto.is_empty());
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_example_appends_a_record() {
    let python = ["-c", "import grpc, google.protobuf"];
    if !tools::require("python3") || !tools::require_run("python3", &python).await {
        return;
    }
    // One data node: whoever is asked is the primary.
    let cluster = Cluster::of(1, 1).await;
    let create = volume::Create::new("ledger", VolumeKind::Log);
    let created = volume::create(&create, cluster.endpoints(), &mut Vec::new()).await;
    created.expect("created");
    let descriptors = cluster.scratch().join("mainstay.desc");
    std::fs::write(&descriptors, mainstay_proto::DESCRIPTORS).expect("written");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/append.py");
    let arguments = [
        example.to_str().expect("a path"),
        descriptors.to_str().expect("a path"),
        &cluster.endpoints()[0],
        "ledger",
        "hello from Python",
    ];
    let said = tools::run("python3", &arguments).await;
    assert!(said.starts_with("committed"), "{said}");
    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
    let log = client
        .expect("connected")
        .log("ledger")
        .read_only()
        .open()
        .await;
    let page = log
        .expect("opened")
        .read(Lsn(1), ReadLimits::default())
        .await;
    let records = page.expect("read").records;
    let data: Vec<&[u8]> = records.iter().map(|record| &record.data[..]).collect();
    assert_eq!(data, [&b"hello from Python"[..]]);
    cluster.shut_down().await;
}

/// Each tail is a task that follows the log: a client that asks for ever more of them costs no more than so many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tails_of_one_stream_are_bounded_and_end_when_they_are_told_to() {
    let cluster = Cluster::of(1, 1).await;
    let create = volume::Create::new("ledger", VolumeKind::Log);
    let created = volume::create(&create, cluster.endpoints(), &mut Vec::new()).await;
    created.expect("created");
    let (requests, queue) = mpsc::unbounded_channel();
    let ask = |tag, body| {
        let sent = requests.send(pb::ClientRequest {
            tag,
            body: Some(body),
        });
        sent.expect("the stream stands");
    };
    let open = pb::Open {
        volume: "ledger".to_owned(),
        read_only: true,
        any_copy: true,
        ..pb::Open::default()
    };
    ask(0, Ask::Open(open));
    // Far behind the end: no tail has anything to say.
    let tail = || Ask::Tail(pb::Tail { from_lsn: 1 << 40 });
    for tag in 1..=257 {
        ask(tag, tail());
    }
    let mut client = ClientClient::new(channel(&cluster).await);
    let answers = client.volume(UnboundedReceiverStream::new(queue)).await;
    let mut answers = answers.expect("a stream").into_inner();
    let opened = answers.message().await.expect("an answer").expect("opened");
    assert!(matches!(opened.body, Some(Said::Opened(_))), "{opened:?}");
    let refused = answers.message().await.expect("an answer").expect("one");
    assert_eq!(refused.tag, 257);
    let Some(Said::Refused(refused)) = refused.body else {
        panic!("not refused: {refused:?}");
    };
    assert!(matches!(
        refused.reason,
        Some(pb::refused::Reason::Overloaded(_))
    ));
    // One that was called off makes room; a tag that still follows is nobody else's.
    ask(258, Ask::CancelTail(pb::CancelTail { tail_tag: 7 }));
    ask(259, tail());
    ask(260, tail());
    let refused = answers.message().await.expect("an answer").expect("one");
    assert_eq!(refused.tag, 260);
    ask(8, tail());
    let ended = answers.message().await.expect_err("broken off");
    assert_eq!(ended.code(), tonic::Code::InvalidArgument);
    cluster.shut_down().await;
}

/// The stream that `open` and `ask` are the first requests of: its first two answers, or what it ended with.
async fn first_answers(cluster: &Cluster, open: pb::Open, ask: Ask) -> Vec<Said> {
    let requests = [Ask::Open(open), ask].into_iter().zip(0..);
    let requests = requests.map(|(body, tag)| pb::ClientRequest {
        tag,
        body: Some(body),
    });
    let requests: Vec<_> = requests.collect();
    let asked = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let mut client = ClientClient::new(channel(cluster).await)
        .max_decoding_message_size(mainstay_proto::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(mainstay_proto::MESSAGE_BYTES_MAX);
    let mut answers = client.volume(asked).await.expect("a stream").into_inner();
    let mut said = Vec::new();
    while said.len() < 2
        && let Some(answer) = answers.message().await.expect("no error")
    {
        said.extend(answer.body);
    }
    said
}

/// A mutation that was taken in time is the volume's at once, whatever its client does with its answers. Else one of them could be handed over
/// any time later, over what another client wrote meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_does_not_wait_for_answers_that_nobody_reads() {
    /// Replies that wait for a reader in the node.
    const REPLIES: u64 = 16;
    let cluster = Cluster::of(1, 1).await;
    let size_bytes = 1 << 20;
    let create = volume::Create::new("disk", VolumeKind::Block { size_bytes });
    let created = volume::create(&create, cluster.endpoints(), &mut Vec::new()).await;
    created.expect("created");
    let (requests, queue) = mpsc::unbounded_channel();
    let ask = |tag, body| {
        let body = Some(body);
        let sent = requests.send(pb::ClientRequest { tag, body });
        sent.expect("the stream stands");
    };
    let service = ClientService(cluster.node(NodeId(1)).clone());
    let mut answers = LocalNode::volume(&service, queue);
    let open = pb::Open {
        volume: "disk".to_owned(),
        session: 1,
        attachment: Some(pb::Attachment {
            name: "host".to_owned(),
            takeover: false,
        }),
        create: true,
        first_unanswered: 1,
        patience_ms: 10_000,
        ..pb::Open::default()
    };
    ask(0, Ask::Open(open));
    let opened = answers.recv().await.expect("an answer").expect("opened");
    assert!(matches!(opened.body, Some(Said::Opened(_))), "{opened:?}");
    // Refused where they are taken. The node waits with the last one until somebody reads...
    let refused = || Ask::Allocation(pb::Allocation::default());
    for tag in 1..=REPLIES + 1 {
        ask(tag, refused());
    }
    // ...so that it takes these together.
    let write = pb::Write {
        seq: 1,
        offset: 0,
        data: vec![0xa5; 4096].into(),
    };
    ask(100, Ask::Write(write));
    for tag in 101..=101 + REPLIES {
        ask(tag, refused());
    }
    for _ in 0..=REPLIES {
        let refused = answers.recv().await.expect("an answer").expect("refused");
        assert!(
            matches!(refused.body, Some(Said::Refused(_))),
            "{refused:?}"
        );
    }
    let written = async {
        loop {
            let open = pb::Open {
                volume: "disk".to_owned(),
                read_only: true,
                ..pb::Open::default()
            };
            let read = Ask::Read(pb::Read { offset: 0, len: 1 });
            let said = first_answers(&cluster, open, read).await;
            if matches!(&said[1], Said::Data(read) if read.data[..] == [0xa5]) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let written = tokio::time::timeout(PATIENCE, written).await;
    written.expect("the write is carried out");
    drop(answers);
    cluster.shut_down().await;
}

/// What no client of ours asks: it is refused, and the node goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_asks_for_too_much_memory_or_names_no_session_is_refused() {
    use pb::refused::Reason;

    const MOST: u32 = 16 << 20;
    let cluster = Cluster::of(1, 1).await;
    let size_bytes = 64 << 20;
    let create = volume::Create::new("disk", VolumeKind::Block { size_bytes });
    let created = volume::create(&create, cluster.endpoints(), &mut Vec::new()).await;
    created.expect("created");
    let reason = |said: &Said| match said {
        Said::Refused(refused) => refused.reason.clone(),
        other => panic!("not refused: {other:?}"),
    };
    let open = |session, attached: usize| pb::Open {
        volume: "disk".to_owned(),
        session,
        create: true,
        patience_ms: 10_000,
        attachment: (attached > 0).then(|| pb::Attachment {
            name: "a".repeat(attached),
            takeover: true,
        }),
        ..pb::Open::default()
    };
    let read = |len| Ask::Read(pb::Read { offset: 0, len });
    for open in [open(0, 0), open(7, 257), open(7, 17 << 20)] {
        let said = first_answers(&cluster, open, read(1)).await;
        assert_eq!(said.len(), 1, "the stream has ended");
        assert!(matches!(reason(&said[0]), Some(Reason::BadRequest(_))));
    }
    let said = first_answers(&cluster, open(7, 256), read(MOST + 1)).await;
    assert!(matches!(said[0], Said::Opened(_)), "{:?}", said[0]);
    assert!(matches!(
        reason(&said[1]),
        Some(Reason::TooLarge(pb::TooLarge { bytes_max })) if bytes_max == u64::from(MOST)
    ));
    let said = first_answers(&cluster, open(7, 256), read(MOST)).await;
    assert!(matches!(&said[1], Said::Data(data) if data.data.len() == MOST as usize));
    cluster.shut_down().await;
}
