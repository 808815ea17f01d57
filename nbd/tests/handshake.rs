//! Option haggling, byte by byte, with good, bad and hostile clients.

mod support;

use std::future::ready;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use mainstay_nbd::codec::{CodecError, OptionHeader};
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::protocol::{info, option, reply, transmission};
use mainstay_nbd::{
    BlockDevice, ConnectionEnd, ConnectionError, Exports, Limits, OpenError, Server,
};
use proptest::prelude::*;
use std::sync::Arc;
use support::{Client, PEER, Served, connect, server};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;

const SIZE: usize = 1 << 16;

fn one() -> Server {
    server(MemoryDevice::new("vol", SIZE), Limits::default())
}

fn two() -> Server {
    let exports = FixedExports::new()
        .with(MemoryDevice::new("a", SIZE))
        .with(MemoryDevice::new("b", SIZE));
    Server::new(Arc::new(exports), Limits::default())
}

#[tokio::test(start_paused = true)]
async fn export_name_transcript_with_and_without_zeroes() {
    for (flags, zeroes) in [(3_u8, 0), (1, 124)] {
        let (mut client, served) = connect(&one(), 4096);
        assert_eq!(&client.receive::<18>().await, b"NBDMAGICIHAVEOPT\x00\x03");
        client.send(&[0, 0, 0, flags]).await;
        client
            .send(b"IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x03vol")
            .await;
        // Size, then flags: HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN, CACHE, FAST_ZERO; DF only when
        // structured.
        assert_eq!(&client.receive::<10>().await, b"\0\0\0\0\0\x01\0\0\x0d\x6d");
        assert_eq!(client.receive_vec(zeroes).await, vec![0; zeroes]);
        // A flush proves that transmission began at this very byte.
        client
            .send(b"\x25\x60\x95\x13\0\0\0\x03COOKIE!!\0\0\0\0\0\0\0\0\0\0\0\0")
            .await;
        assert_eq!(
            &client.receive::<16>().await,
            b"\x67\x44\x66\x98\0\0\0\0COOKIE!!"
        );
        client
            .send(b"\x25\x60\x95\x13\0\0\0\x02BYE.....\0\0\0\0\0\0\0\0\0\0\0\0")
            .await;
        assert_eq!(client.rest().await, b"");
        assert_eq!(
            served.await.expect("task").expect("end"),
            ConnectionEnd::Disconnected
        );
    }
}

#[tokio::test(start_paused = true)]
async fn export_name_of_nothing_closes() {
    for name in [
        &b"nope"[..],
        b"..",
        b"a\0b",
        b"\xff\xfe",
        &[b'x'; 5000],
        &[b'x'; 100_000],
    ] {
        let (mut client, served) = connect(&one(), 1 << 18);
        client.greet().await;
        client.send_option(option::EXPORT_NAME, name).await;
        assert_eq!(client.rest().await, b"");
        assert_eq!(
            served.await.expect("task").expect("end"),
            ConnectionEnd::NoExport
        );
    }
}

/// A device that is there, and a list that cannot be told.
struct Unlisted(FixedExports);

impl Exports for Unlisted {
    fn list(&self) -> BoxFuture<'static, Result<Vec<String>, OpenError>> {
        let reason = "no node answers".to_owned();
        Box::pin(ready(Err(OpenError::Unavailable { reason })))
    }

    fn open(
        &self,
        name: &str,
        peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>, OpenError>> {
        self.0.open(name, peer)
    }
}

/// An empty list, or "no such export", would say that there is none.
#[tokio::test]
async fn a_list_that_cannot_be_told_is_refused_with_the_reason() {
    let exports = FixedExports::new().with(MemoryDevice::new("vol", SIZE));
    let server = Server::new(Arc::new(Unlisted(exports)), Limits::default());
    let (mut client, _served) = connect(&server, 4096);
    client.greet().await;
    client.send_option(option::LIST, b"").await;
    let (kind, why) = client.option_reply(option::LIST).await;
    let why = String::from_utf8_lossy(&why);
    assert_eq!(kind, reply::ERR_POLICY);
    assert!(why.contains("no node answers"), "{why}");
    assert_eq!(client.go("").await[0].0, reply::ERR_POLICY);
    let opened = client.go("vol").await;
    assert_eq!(opened.last().map(|reply| reply.0), Some(reply::ACK));
}

#[tokio::test]
async fn list_names_every_export() {
    let (mut client, _served) = connect(&two(), 4096);
    client.greet().await;
    let replies = client.option(option::LIST, b"").await;
    let expected = [
        (reply::SERVER, b"\0\0\0\x01a".to_vec()),
        (reply::SERVER, b"\0\0\0\x01b".to_vec()),
        (reply::ACK, vec![]),
    ];
    assert_eq!(replies, expected);
    assert_eq!(
        client.option(option::LIST, b"x").await,
        [(reply::ERR_INVALID, vec![])]
    );
}

#[tokio::test]
async fn info_tells_what_go_tells_and_stays_in_negotiation() {
    let (mut client, _served) = connect(&one(), 4096);
    client.greet().await;
    client.option(option::STRUCTURED_REPLY, b"").await;
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 999];
    let told = client.query(option::INFO, "vol", &wanted).await;
    assert_eq!(client.query(option::GO, "vol", &wanted).await, told);
    let texts: Vec<_> = told.iter().map(|(_, data)| data.clone()).collect();
    let flags = 0x0d6d | transmission::SEND_DF;
    let mut export = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    export.extend_from_slice(&flags.to_be_bytes());
    let expected: [&[u8]; 5] = [
        &export,
        b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0",
        b"\0\x01vol",
        b"\0\x0265536 bytes of memory",
        b"",
    ];
    assert_eq!(texts, expected);
}

#[tokio::test]
async fn the_empty_name_is_the_only_export_or_none() {
    let (mut client, _served) = connect(&one(), 4096);
    client.greet().await;
    let told = client.query(option::INFO, "", &[info::NAME]).await;
    assert!(told.contains(&(reply::INFO, b"\0\x01vol".to_vec())));

    for server in [
        two(),
        Server::new(Arc::new(FixedExports::new()), Limits::default()),
    ] {
        let (mut client, _served) = connect(&server, 4096);
        client.greet().await;
        assert_eq!(client.go("").await, [(reply::ERR_UNKNOWN, vec![])]);
    }
}

#[tokio::test]
async fn refused_options_leave_the_negotiation_alive() {
    let (mut client, _served) = connect(&one(), 1 << 18);
    client.greet().await;
    for unsupported in [4, 0, 0xffff_ffff] {
        let replies = client.option(unsupported, b"some data").await;
        assert_eq!(
            replies,
            [(reply::ERR_UNSUP, vec![])],
            "option {unsupported}"
        );
    }
    for malformed in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\x04vol\0\0",
        b"\xff\xff\xff\xffvol\0\0",
        b"\0\0\0\x01\0\0\0",
    ] {
        let replies = client.option(option::GO, malformed).await;
        assert_eq!(replies, [(reply::ERR_INVALID, vec![])], "{malformed:?}");
    }
    for without_data in [option::STRUCTURED_REPLY, option::EXTENDED_HEADERS] {
        assert_eq!(
            client.option(without_data, b"x").await,
            [(reply::ERR_INVALID, vec![])]
        );
    }
    assert_eq!(client.go("..").await, [(reply::ERR_UNKNOWN, vec![])]);
    assert_eq!(
        client.option(option::GO, &[0; 70_000]).await,
        [(reply::ERR_TOO_BIG, vec![])]
    );
    assert_eq!(client.go("vol").await.last(), Some(&(reply::ACK, vec![])));
}

#[tokio::test(start_paused = true)]
async fn an_option_of_4_gib_is_refused_before_it_is_sent() {
    let (mut client, served) = connect(&one(), 4096);
    client.greet().await;
    let header = OptionHeader {
        option: option::INFO,
        length: u32::MAX,
    };
    client.send(&header.encode()).await;
    assert_eq!(
        client.option_reply(option::INFO).await.0,
        reply::ERR_TOO_BIG
    );
    client.send(&[0; 10_000]).await;
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::HandshakeTimeout)
    ));
}

#[tokio::test(start_paused = true)]
async fn abort_is_acknowledged() {
    for data in [&b""[..], b"to be ignored", &[7; 70_000]] {
        let (mut client, served) = connect(&one(), 4096);
        client.greet().await;
        let aborted = client.option(option::ABORT, data).await;
        assert_eq!(aborted, [(reply::ACK, vec![])]);
        assert_eq!(client.rest().await, b"");
        let end = served.await.expect("task").expect("end");
        assert_eq!(end, ConnectionEnd::Aborted);
    }
}

/// A connection to a server that stops when the sender is dropped.
fn connect_until(server: &Server) -> (Client<DuplexStream>, Served, oneshot::Sender<()>) {
    let (near, far) = duplex(4096);
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _dropped = stopped.await;
    };
    let server = server.clone();
    let served = tokio::spawn(async move { server.serve_stream(far, PEER, stopped).await });
    (Client::new(near), served, stop)
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_says_so_to_whoever_still_haggles() {
    let server = one();
    let (mut client, served, stop) = connect_until(&server);
    client.greet().await;
    client.option(option::STRUCTURED_REPLY, b"").await;
    drop(stop);
    for told in [option::LIST, option::GO, 4711] {
        let refused = client.option(told, b"some data").await;
        assert_eq!(refused, [(reply::ERR_SHUTDOWN, vec![])], "option {told}");
    }
    let aborted = client.option(option::ABORT, b"").await;
    assert_eq!(aborted, [(reply::ACK, vec![])]);
    let end = served.await.expect("task").expect("end");
    assert_eq!(end, ConnectionEnd::Aborted);

    // Not for long, and to EXPORT_NAME there is nothing to say.
    let (mut silent, served, stop) = connect_until(&server);
    silent.greet().await;
    drop(stop);
    assert_eq!(silent.rest().await, b"");
    let end = served.await.expect("task").expect("end");
    assert_eq!(end, ConnectionEnd::Stopped);
    let (mut client, served, stop) = connect_until(&server);
    client.greet().await;
    drop(stop);
    client.send_option(option::EXPORT_NAME, b"vol").await;
    assert_eq!(client.rest().await, b"");
    let end = served.await.expect("task").expect("end");
    assert_eq!(end, ConnectionEnd::Stopped);
}

#[tokio::test]
async fn unknown_client_flags_cut_the_connection() {
    let (mut client, served) = connect(&one(), 4096);
    client.receive::<18>().await;
    client.send(&[0, 0, 0, 7]).await;
    let error = served.await.expect("task").expect_err("refused");
    assert!(matches!(
        error,
        ConnectionError::Misbehaved(CodecError::ClientFlags(7))
    ));
}

#[tokio::test(start_paused = true)]
async fn silence_and_dribble_end_at_the_deadline() {
    let started = tokio::time::Instant::now();
    let (silent, served) = connect(&one(), 4096);
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::HandshakeTimeout)
    ));
    drop(silent);
    let (mut dribbling, served) = connect(&one(), 4096);
    let dribble = async {
        dribbling.greet().await;
        let bytes = OptionHeader {
            option: option::GO,
            length: 60_000,
        };
        let _ = dribbling.stream.write_all(&bytes.encode()).await;
        while dribbling.stream.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (_, ended) = tokio::join!(dribble, served);
    assert!(matches!(
        ended.expect("task"),
        Err(ConnectionError::HandshakeTimeout)
    ));
    assert!(
        started.elapsed() < Duration::from_secs(25),
        "two deadlines of ten seconds"
    );
}

#[tokio::test]
async fn endless_options_are_counted() {
    let (mut client, served) = connect(&one(), 4096);
    client.greet().await;
    for _ in 0..Limits::default().options_max {
        client.option(77, b"").await;
    }
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::TooManyOptions)
    ));
}

#[tokio::test]
async fn a_handshake_cut_anywhere_ends_cleanly() {
    let mut whole = vec![0, 0, 0, 3];
    whole.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x08\x00\x00\x00\x00");
    whole.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x09\0\0\0\x03vol\0\0");
    for cut in 0..=whole.len() {
        let (mut client, served) = connect(&one(), 4096);
        client.send(&whole[..cut]).await;
        client.stream.shutdown().await.expect("shutdown");
        client.rest().await;
        match served.await.expect("no panic") {
            Ok(end) => assert_eq!(end, ConnectionEnd::Closed, "cut at {cut}"),
            Err(error) => assert!(
                matches!(error, ConnectionError::Io(_)),
                "cut at {cut}: {error}"
            ),
        }
    }
}

/// Structured replies, a list, `GO`, a write and a read.
fn compact_conversation() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x08\x00\x00\x00\x00");
    bytes.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00");
    bytes.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x09\0\0\0\x03vol\0\0");
    bytes.extend_from_slice(b"\x25\x60\x95\x13\0\0\0\x01COOKIE!!\0\0\0\0\0\0\0\0\0\0\0\x04data");
    bytes.extend_from_slice(b"\x25\x60\x95\x13\0\0\0\0COOKIE!!\0\0\0\0\0\0\0\0\0\0\0\x04");
    bytes
}

/// Extended headers, a metadata context, `GO`, and each kind of request.
fn extended_conversation() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x0b\x00\x00\x00\x00");
    bytes.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x0a\x00\x00\x00\x1e\0\0\0\x03vol\0\0\0\x01");
    bytes.extend_from_slice(b"\0\0\0\x0fbase:allocation");
    bytes.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x09\0\0\0\x03vol\0\0");
    for (flags, command, length, payload) in [
        (0x20, 1, 4, &b"data"[..]),
        (0, 7, 4096, b""),
        (0x20, 7, 12, b"\0\0\0\0\0\0\x10\0\0\0\0\x01"),
        (0x10, 6, 4096, b""),
        (0, 4, 4096, b""),
        (0, 5, 4096, b""),
        (4, 0, 4096, b""),
    ] {
        bytes.extend_from_slice(b"\x21\xe4\x1c\x71");
        bytes.extend_from_slice(&[0, flags, 0, command]);
        bytes.extend_from_slice(b"COOKIE!!\0\0\0\0\0\0\0\0");
        bytes.extend_from_slice(&u64::to_be_bytes(length));
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// Without a change, these conversations are what they should be: every request is answered and nothing is refused.
#[tokio::test]
async fn conversations_that_are_mutated_are_good_ones() {
    for (conversation, replies) in [(compact_conversation(), 2), (extended_conversation(), 7)] {
        let extended = replies == 7;
        let (mut client, served) = connect(&one(), 1 << 16);
        client.send(&conversation).await;
        client.stream.shutdown().await.expect("shutdown");
        let told = client.rest().await;
        let end = served.await.expect("task").expect("end");
        assert_eq!(end, ConnectionEnd::Closed);
        let cookies = told.windows(8).filter(|bytes| bytes == b"COOKIE!!");
        assert_eq!(cookies.count(), replies);
        let magic: &[u8; 4] = if extended {
            b"\x6e\x8a\x27\x8c"
        } else {
            b"\x66\x8e\x33\xef"
        };
        let errors = told
            .windows(8)
            .filter(|bytes| bytes.starts_with(magic) && bytes[6] & 0x80 != 0);
        assert_eq!(errors.count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_conversations_never_panic_and_always_end(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
        extended: bool,
    ) {
        let mut bytes = if extended { extended_conversation() } else { compact_conversation() };
        for (place, change) in changes {
            let place = place.index(bytes.len());
            bytes[place] ^= change;
        }
        bytes.extend_from_slice(&tail);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let server = one();
            let (mut client, served) = connect(&server, 1 << 16);
            client.send(&bytes).await;
            client.stream.shutdown().await.expect("shutdown");
            client.rest().await;
            let _ = served.await.expect("no panic");
            assert_eq!(server.stats().connections, 0);
            assert_eq!(server.stats().bytes_held, 0);
        });
    }
}
