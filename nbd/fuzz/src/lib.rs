//! What a fuzzer's bytes are given to: a whole server, in one thread, in virtual time.
//!
//! - Both targets panic for what must not be: a panic of the server, a connection that does not end, memory held after its
//!   end, more bytes of replies than the requests may ask for.
//! - The smoke run of the tests is built around the same functions.

#![allow(
    unreachable_pub,
    reason = "public for the fuzz targets, private where the tests include it"
)]

pub mod history;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use history::{Tracked, TrackedExports};
use mainstay_nbd::codec::{MetaQuery, OptionHeader};
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::protocol::option;
use mainstay_nbd::{Limits, Server, Tls, TlsFiles, TlsIdentity};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9);
const DEVICE_BYTES: usize = 64 << 10;
/// The largest request, and all that may be held.
const REQUEST_BYTES_MAX: u32 = 64 << 10;
/// The smallest request.
const REQUEST_BYTES_MIN: usize = 28;
/// Of a reply and of what comes before the first one.
const OVERHEAD_BYTES: usize = 8 << 10;
/// Virtual: longer than every deadline of the server.
const DAY: Duration = Duration::from_secs(86_400);

/// From the client's flags on. The first byte chooses what the listener does about TLS.
pub fn handshake(input: &[u8]) {
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    let tls = match choice % 3 {
        0 => Tls::Off,
        1 => Tls::Optional(identity().clone()),
        _ => Tls::Required(identity().clone()),
    };
    converse(&tls, input);
}

/// From the first request on. The first byte chooses what was agreed before.
pub fn transmission(input: &[u8]) {
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    let mut bytes = negotiation(*choice);
    bytes.extend_from_slice(input);
    converse(&Tls::Off, &bytes);
}

/// Options that lead to transmission: the upper two bits choose contexts, the others the replies.
pub fn negotiation(choice: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    match choice % 0x40 % 3 {
        0 => {}
        1 => bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x08\0\0\0\0"),
        _ => bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x0b\0\0\0\0"),
    }
    match choice & 0xc0 {
        0x80 => bytes.extend_from_slice(&selection(&["base:allocation"])),
        0xc0 => bytes.extend_from_slice(&selection(&[
            "base:allocation",
            "mainstay:changed-since/0",
            "mainstay:changed-since/7@000000000000feed",
        ])),
        _ => {}
    }
    bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0");
    bytes
}

/// A `SET_META_CONTEXT`.
fn selection(queries: &[&str]) -> Vec<u8> {
    let query = MetaQuery {
        export: "vol".to_owned(),
        queries: queries.iter().map(|&query| query.to_owned()).collect(),
    };
    let mut data = BytesMut::new();
    query.encode(&mut data);
    let length = u32::try_from(data.len()).expect("short");
    let option = option::SET_META_CONTEXT;
    let header = OptionHeader { option, length }.encode();
    [&header[..], &data].concat()
}

fn converse(tls: &Tls, input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let ended = tokio::time::timeout(DAY, serve(tls, input)).await;
        let told = ended.expect("the connection ends");
        let requests = input.len() / REQUEST_BYTES_MIN + 1;
        let most = requests * (REQUEST_BYTES_MAX as usize + OVERHEAD_BYTES);
        assert!(told <= most, "{told} bytes told, at most {most} asked for");
    });
}

/// Answers how much the server told.
async fn serve(tls: &Tls, input: &[u8]) -> usize {
    let limits = Limits {
        request_bytes_max: REQUEST_BYTES_MAX,
        connection_bytes_max: REQUEST_BYTES_MAX as usize,
        server_bytes_max: REQUEST_BYTES_MAX as usize,
        ..Limits::default()
    };
    let device = Tracked(MemoryDevice::new("vol", DEVICE_BYTES));
    let exports = TrackedExports(FixedExports::new().with(device));
    let server = Server::new(Arc::new(exports), limits).with_tls(tls.clone());
    let (near, far) = duplex(4096);
    let serving = server.clone();
    let served = tokio::spawn(async move {
        serving
            .serve_stream(far, PEER, std::future::pending())
            .await
    });
    let (mut reader, mut writer) = split(near);
    let sending = async {
        // A server that has left takes no more.
        if writer.write_all(input).await.is_ok() {
            let _ = writer.shutdown().await;
        }
    };
    let receiving = async {
        let mut told = 0;
        let mut buffer = [0; 4096];
        while let Ok(more @ 1..) = reader.read(&mut buffer).await {
            told += more;
        }
        told
    };
    let ((), told) = tokio::join!(sending, receiving);
    let _cut_or_not = served.await.expect("no panic");
    let stats = server.stats();
    assert_eq!((stats.connections, stats.handshakes), (0, 0));
    assert_eq!(stats.bytes_held, 0);
    told
}

fn identity() -> &'static TlsIdentity {
    static IDENTITY: OnceLock<TlsIdentity> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let made = made.expect("a certificate");
        let dir = tempfile::tempdir().expect("a directory");
        let [cert, key] = ["cert", "key"].map(|name| dir.path().join(name));
        std::fs::write(&cert, made.cert.pem()).expect("written");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
        let files = TlsFiles {
            cert: &cert,
            key: &key,
            client_ca: None,
        };
        files.load().expect("usable")
    })
}
