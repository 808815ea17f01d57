//! Who may write to a block volume, and that what a takeover voids stays void. Against a real cluster in this process, by streams
//! of the wire protocol: what they send is what arrives, in the order that a test says.

mod support;

use mainstay_client::{AttachOptions, BlockVolume, Client, ClientConfig, OpenError, Refusal};
use mainstay_node::commands::{attach, promote, size, volume};
use mainstay_proto::tuning::client_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_client::ClientClient;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request::Body as Ask;
use mainstay_proto::v1::refused::Reason;
use mainstay_types::NodeId;
use support::{Cluster, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

const DISK: &str = "disk";

async fn cluster(shared: bool) -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let mut args = volume::Create::new(DISK, size::block_kind(1 << 20).expect("a size"));
    args.shared = shared;
    let created = volume::create(&args, cluster.endpoints(), &mut Vec::new()).await;
    created.expect("created");
    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
    (cluster, client.expect("connected"))
}

async fn attached(client: &Client, name: &str, takeover: bool) -> Result<BlockVolume, OpenError> {
    let name = name.to_owned();
    let options = AttachOptions { name, takeover };
    client.block(DISK).attach(options).open().await
}

/// Promotes a node, by the command, and answers its epoch.
async fn promote_to(cluster: &Cluster, node: u32) {
    let args = promote::Args {
        volume: DISK.to_owned(),
        to: Some(NodeId(node)),
        force: None,
        reason: "test".to_owned(),
        json: true,
    };
    let done = promote::run(&args, cluster.endpoints(), &mut Vec::new()).await;
    done.expect("a planned switchover");
}

/// How a stream is opened.
#[derive(Debug, Clone, Copy, Default)]
struct Opening {
    session: u64,
    name: &'static str,
    create: bool,
    takeover: bool,
    silence_ms: u32,
}

/// The first opening of session 1 by the host `first`.
const FIRST: Opening = Opening {
    session: 1,
    name: "first",
    create: true,
    takeover: false,
    silence_ms: 0,
};

/// Session 1 on its way back.
const BACK: Opening = Opening {
    create: false,
    ..FIRST
};

/// A stream to the primary that follows nobody and repeats nothing.
struct Raw {
    requests: mpsc::UnboundedSender<pb::ClientRequest>,
    answers: tonic::Streaming<pb::ClientReply>,
    seq: u64,
}

impl Raw {
    /// Opens at whichever node serves; answers why not if it was refused.
    async fn open(cluster: &Cluster, opening: Opening) -> Result<Self, Reason> {
        let search = async {
            loop {
                for address in cluster.endpoints() {
                    match Self::open_at(&address, opening).await {
                        Ok(raw) => return Ok(raw),
                        Err(Some(reason)) => return Err(reason),
                        Err(None) => {}
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        found.expect("somebody serves")
    }

    async fn open_at(address: &str, opening: Opening) -> Result<Self, Option<Reason>> {
        let channel = client_endpoint(address).expect("an address");
        let channel = channel.connect().await.map_err(|_| None)?;
        let (requests, queue) = mpsc::unbounded_channel();
        let open = pb::Open {
            volume: DISK.to_owned(),
            session: opening.session,
            attachment: Some(pb::Attachment {
                name: opening.name.to_owned(),
                takeover: opening.takeover,
            }),
            first_unanswered: 1,
            patience_ms: 1000,
            create: opening.create,
            silence_ms: opening.silence_ms,
            ..pb::Open::default()
        };
        let request = pb::ClientRequest {
            tag: 0,
            body: Some(Ask::Open(open)),
        };
        requests.send(request).expect("open");
        let mut client = ClientClient::new(channel);
        let answers = client.volume(UnboundedReceiverStream::new(queue)).await;
        let mut answers = answers.map_err(|_| None)?.into_inner();
        let first = answers.message().await.ok().flatten();
        match first.and_then(|reply| reply.body) {
            Some(Body::Opened(opened)) => Ok(Self {
                requests,
                answers,
                seq: opened.next_seq - 1,
            }),
            Some(Body::Refused(refused)) => Err(refused.reason),
            _ => Err(None),
        }
    }

    /// Sends a write of one page, and answers what the primary says to it.
    async fn write(&mut self, byte: u8) -> Body {
        self.seq += 1;
        let write = pb::Write {
            seq: self.seq,
            offset: 0,
            data: vec![byte; 4096].into(),
        };
        self.ask(self.seq, Ask::Write(write));
        loop {
            let answer = self.next().await.expect("an answer");
            match answer.expect("no failure") {
                Body::Ping(_) => {}
                answer => return answer,
            }
        }
    }

    fn ask(&self, tag: u64, body: Ask) {
        let body = Some(body);
        let sent = self.requests.send(pb::ClientRequest { tag, body });
        sent.expect("open");
    }

    /// What the primary says next; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Result<Body, tonic::Status>> {
        let message = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        let message = message.expect("in time").transpose()?;
        Some(message.map(|reply| reply.body.expect("a body")))
    }
}

/// The holder's stream is open, and what it sends next arrives behind the takeover.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_arrives_behind_the_takeover_is_void() {
    let (cluster, client) = cluster(false).await;
    let mut first = Raw::open(&cluster, FIRST).await;
    let first = first.as_mut().expect("free");
    assert!(matches!(first.write(1).await, Body::Committed(_)));
    let second = attached(&client, "second", true).await.expect("takes over");
    second.write(0, vec![2; 4096]).await.expect("committed");
    let answer = first.write(3).await;
    let Body::Refused(refused) = &answer else {
        panic!("{answer:?}");
    };
    assert!(
        matches!(&refused.reason, Some(Reason::AttachedElsewhere(by)) if by.name == "second"),
        "{answer:?}"
    );
    assert_eq!(second.read(0, 4096).await.expect("reads")[..], [2; 4096]);
    second.close().await.expect("closed");
    cluster.shut_down().await;
}

/// The holder lost its stream with a write on it. Meanwhile another host takes the volume over, writes, and lets it go. The first
/// comes back, as a client does, with the same session and the same write.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_queued_before_a_takeover_is_void_when_the_volume_is_free_again() {
    let (cluster, client) = cluster(false).await;
    let mut first = Raw::open(&cluster, FIRST).await;
    assert!(matches!(
        first.as_mut().expect("free").write(1).await,
        Body::Committed(_)
    ));
    drop(first);
    let second = attached(&client, "second", true).await.expect("takes over");
    second.write(0, vec![2; 4096]).await.expect("committed");

    let held = Raw::open(&cluster, BACK).await.err();
    assert!(
        matches!(&held, Some(Reason::AttachedElsewhere(by)) if by.name == "second"),
        "{held:?}"
    );
    second.close().await.expect("closed");
    // Nobody holds it now, here and on the next primary: the session is over all the same, even for one that takes over.
    for takeover in [false, true] {
        let back = Opening { takeover, ..BACK };
        let ended = Raw::open(&cluster, back).await.err();
        assert!(
            matches!(ended, Some(Reason::AttachmentEnded(_))),
            "{ended:?}"
        );
    }
    promote_to(&cluster, 2).await;
    promote_to(&cluster, 3).await;
    let ended = Raw::open(&cluster, BACK).await.err();
    assert!(
        matches!(ended, Some(Reason::AttachmentEnded(_))),
        "{ended:?}"
    );
    // The host is as welcome as any other, with a session that has nothing to send again.
    let anew = attached(&client, "first", false).await.expect("free");
    assert_eq!(anew.read(0, 4096).await.expect("reads")[..], [2; 4096]);
    anew.write(0, vec![3; 4096]).await.expect("committed");
    anew.close().await.expect("closed");
    cluster.shut_down().await;
}

/// The last session of the holder ends while another of the same name begins: that one has the volume, and not nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_begins_behind_the_end_of_the_last_one_holds_the_volume() {
    let (cluster, client) = cluster(false).await;
    for _ in 0..20 {
        let leaving = attached(&client, "host", false).await.expect("free");
        let (left, coming) = tokio::join!(leaving.close(), attached(&client, "host", false));
        left.expect("closed");
        let coming = coming.expect("the same name");
        let other = attached(&client, "other", false).await.expect_err("held");
        assert!(
            matches!(&other, OpenError::Refused(Refusal::AttachedElsewhere { name, .. }) if name == "host"),
            "{other:?}"
        );
        coming.close().await.expect("closed");
    }
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_volume_is_attached_by_whoever_comes() {
    let (cluster, client) = cluster(true).await;
    let first = attached(&client, "first", false).await.expect("shared");
    let second = attached(&client, "second", false).await.expect("shared");
    first.write(0, vec![1; 4096]).await.expect("committed");
    second.write(4096, vec![2; 4096]).await.expect("committed");
    assert_eq!(first.read(4096, 4096).await.expect("reads")[..], [2; 4096]);
    let mut out = Vec::new();
    let shown = volume::show(DISK, false, cluster.endpoints(), &mut out).await;
    shown.expect("shown");
    let shown = String::from_utf8(out).expect("text");
    assert!(shown.contains("shared         several hosts"), "{shown}");
    first.close().await.expect("closed");
    second
        .write(0, vec![3; 4096])
        .await
        .expect("still attached");
    second.close().await.expect("closed");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_attach_take_over_and_detach_and_name_the_holder() {
    let (cluster, client) = cluster(false).await;
    let say = async |name: &str, takeover| {
        let args = attach::Attach {
            volume: DISK.to_owned(),
            name: Some(name.to_owned()),
            takeover,
        };
        let mut out = Vec::new();
        let done = attach::attach(&args, cluster.endpoints(), &mut out).await;
        done.map(|()| String::from_utf8(out).expect("text"))
    };
    let lost = attached(&client, "nbd:10.0.0.1", false)
        .await
        .expect("free");
    let refused = say("nbd:10.0.0.2", false).await.expect_err("held");
    let refused = refused.to_string();
    for part in ["nbd:10.0.0.1", "--takeover"] {
        assert!(refused.contains(part), "{refused}");
    }
    let said = say("nbd:10.0.0.2", true).await.expect("taken over");
    assert!(said.contains("attached by `nbd:10.0.0.2`\n"), "{said}");
    assert!(said.contains("attached by nbd:10.0.0.1 before"), "{said}");
    lost.write(0, vec![1; 4096]).await.expect_err("fenced");

    let mut out = Vec::new();
    let shown = volume::show(DISK, false, cluster.endpoints(), &mut out).await;
    shown.expect("shown");
    let shown = String::from_utf8(out).expect("text");
    assert!(shown.contains("attached by    nbd:10.0.0.2"), "{shown}");
    // The host's clients come and go, and the volume stays theirs.
    let host = attached(&client, "nbd:10.0.0.2", false)
        .await
        .expect("its own");
    host.write(0, vec![2; 4096]).await.expect("committed");
    host.close().await.expect("closed");
    attached(&client, "nbd:10.0.0.3", false)
        .await
        .expect_err("held");

    let mut out = Vec::new();
    let detached = attach::detach(DISK, cluster.endpoints(), &mut out).await;
    detached.expect("detached");
    let said = String::from_utf8(out).expect("text");
    assert!(
        said.contains("was attached by nbd:10.0.0.2, and is free"),
        "{said}"
    );
    let next = attached(&client, "nbd:10.0.0.3", false)
        .await
        .expect("free");
    next.close().await.expect("closed");
    cluster.shut_down().await;
}

/// A detach is killed between its takeover and its end. Another one frees the volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_detach_that_was_cut_off_is_made_good_by_the_next() {
    let (cluster, client) = cluster(false).await;
    let cut_off = attached(&client, "mainstay-volume-detach", true).await;
    drop(cut_off.expect("free"));
    let mut out = Vec::new();
    let detached = attach::detach(DISK, cluster.endpoints(), &mut out).await;
    detached.expect("detached");
    let next = attached(&client, "next", false).await.expect("free");
    next.close().await.expect("closed");
    cluster.shut_down().await;
}

/// A forwarder reads a lot, over a line on which the replies leave slowly: while they hold up the server, that reads nothing, and neither
/// the pings nor their answers get through for longer than the silence that is allowed. It is there all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_whose_answers_were_not_read_goes_on() {
    let (cluster, _client) = cluster(false).await;
    let opening = Opening {
        silence_ms: 1000,
        ..FIRST
    };
    let mut forwarder = Raw::open(&cluster, opening).await.expect("free");
    const READS: u64 = 100;
    for read in 0..READS {
        let (offset, len) = (0, 1 << 20);
        forwarder.ask(100 + read, Ask::Read(pb::Read { offset, len }));
    }
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let mut read = 0;
    let mut pongs = 0;
    while read < READS || pongs < 4 {
        match forwarder.next().await.expect("goes on").expect("goes on") {
            Body::Data(_) => read += 1,
            Body::Ping(ping) => {
                let number = ping.number;
                forwarder.ask(0, Ask::Pong(pb::Pong { number }));
                pongs += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(forwarder.write(1).await, Body::Committed(_)));
    cluster.shut_down().await;
}

/// What waited in the stream while nothing of it was read is as old as it is: a change among it is not taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_not_read_in_time_is_refused() {
    let (cluster, client) = cluster(false).await;
    let opening = Opening {
        silence_ms: 1000,
        ..FIRST
    };
    let mut forwarder = Raw::open(&cluster, opening).await.expect("free");
    for read in 0..100 {
        let (offset, len) = (0, 1 << 20);
        forwarder.ask(100 + read, Ask::Read(pb::Read { offset, len }));
    }
    let write = pb::Write {
        seq: 1,
        offset: 0,
        data: vec![9; 4096].into(),
    };
    // Behind what holds up the server.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    for read in 200..300 {
        let (offset, len) = (0, 1 << 20);
        forwarder.ask(read, Ask::Read(pb::Read { offset, len }));
    }
    forwarder.ask(1, Ask::Write(write));
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let end = loop {
        match forwarder.next().await {
            Some(Ok(Body::Data(_) | Body::Ping(_))) => {}
            Some(Ok(other)) => panic!("{other:?}"),
            Some(Err(status)) => break status,
            None => panic!("ended without a word"),
        }
    };
    assert_eq!(end.code(), tonic::Code::Aborted, "{end}");
    let seen = client.block(DISK).open().await.expect("opens");
    assert_eq!(seen.read(0, 4096).await.expect("reads")[..], [0; 4096]);
    cluster.shut_down().await;
}

/// H11. Pings are answered in line with requests; once they are not, nothing that comes on the stream is taken any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_was_silent_is_not_listened_to() {
    let (cluster, client) = cluster(false).await;
    let opening = Opening {
        silence_ms: 1000,
        ..FIRST
    };
    let mut forwarder = Raw::open(&cluster, opening).await.expect("free");
    // Twice the silence, at four pings in it.
    for _ in 0..8 {
        let Some(Ok(Body::Ping(ping))) = forwarder.next().await else {
            panic!("no ping");
        };
        let number = ping.number;
        forwarder.ask(0, Ask::Pong(pb::Pong { number }));
    }
    assert!(matches!(forwarder.write(1).await, Body::Committed(_)));
    let end = loop {
        match forwarder.next().await {
            Some(Ok(Body::Ping(_))) => {}
            Some(Ok(other)) => panic!("{other:?}"),
            Some(Err(status)) => break status,
            None => panic!("ended without a word"),
        }
    };
    assert_eq!(end.code(), tonic::Code::Aborted, "{end}");
    // What it may still forward it sends on a new stream.
    let again = Opening {
        create: false,
        ..opening
    };
    let mut again = Raw::open(&cluster, again).await.expect("its own session");
    assert!(matches!(again.write(2).await, Body::Committed(_)));
    let seen = client.block(DISK).open().await.expect("opens");
    assert_eq!(seen.read(0, 4096).await.expect("reads")[..], [2; 4096]);
    cluster.shut_down().await;
}
