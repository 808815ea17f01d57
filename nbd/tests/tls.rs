//! TLS inside the negotiation, byte by byte: when it is offered, what it forgets, whom it refuses.

mod certificates;
mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use certificates::{Authority, Valid};
use mainstay_nbd::codec::{Chunk, ClientFlags};
use mainstay_nbd::memory::MemoryDevice;
use mainstay_nbd::protocol::{Errno, command, option, reply};
use mainstay_nbd::{
    ConnectionEnd, ConnectionError, Limits, Server, Tls, TlsError, TlsFiles, TlsIdentity,
};
use support::{Client, Served, connect, server};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ALL_VERSIONS, ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
};

const OPTIONS: [u32; 10] = [
    option::LIST,
    4,
    option::INFO,
    option::GO,
    option::STRUCTURED_REPLY,
    option::LIST_META_CONTEXT,
    option::SET_META_CONTEXT,
    option::EXTENDED_HEADERS,
    0,
    0xffff_ffff,
];

fn identity(authority: &Authority, client_ca: Option<&Path>) -> TlsIdentity {
    let (cert, key) = authority.server(Valid::Now);
    let files = TlsFiles {
        cert: &cert,
        key: &key,
        client_ca,
    };
    files.load().expect("usable")
}

fn plain(limits: Limits) -> Server {
    server(MemoryDevice::new("vol", 1 << 16), limits)
}

fn required(authority: &Authority) -> Server {
    plain(Limits::default()).with_tls(Tls::Required(identity(authority, None)))
}

fn optional(authority: &Authority) -> Server {
    plain(Limits::default()).with_tls(Tls::Optional(identity(authority, None)))
}

/// A certificate and its key.
type Pair = (std::path::PathBuf, std::path::PathBuf);

fn connector(trusted: &Path, own: Option<&Pair>) -> TlsConnector {
    connector_of(ALL_VERSIONS, trusted, own)
}

fn connector_of(
    versions: &[&'static SupportedProtocolVersion],
    trusted: &Path,
    own: Option<&Pair>,
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(trusted).expect("a certificate");
    roots.add(trusted).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_file(cert).expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(key).expect("a key");
            config
                .with_client_auth_cert(vec![cert], key)
                .expect("a pair")
        }
    };
    TlsConnector::from(Arc::new(config))
}

async fn upgrade(
    mut client: Client<DuplexStream>,
    connector: &TlsConnector,
) -> io::Result<Client<TlsStream<DuplexStream>>> {
    let replies = client.option(option::STARTTLS, b"").await;
    assert_eq!(replies, [(reply::ACK, vec![])]);
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = connector.connect(name, client.stream).await?;
    Ok(Client::new(stream))
}

/// A client that has TLS, and nothing else.
async fn secured(
    server: &Server,
    authority: &Authority,
) -> (Client<TlsStream<DuplexStream>>, Served) {
    let (mut client, served) = connect(server, 1 << 16);
    client.greet().await;
    let upgraded = upgrade(client, &connector(&authority.ca(), None)).await;
    (upgraded.expect("TLS"), served)
}

/// Lets nobody wait for ever. With a paused clock, which moves when nobody has anything to do, two sides that wait for each other
/// fail at once.
async fn bounded(test: impl Future<Output = ()>) {
    let ended = tokio::time::timeout(Duration::from_secs(3600), test).await;
    ended.expect("both sides wait for the other");
}

async fn error_of(served: Served) -> ConnectionError {
    served.await.expect("no panic").expect_err("cut")
}

#[tokio::test]
async fn where_tls_is_off_it_is_refused_and_nothing_demands_it() {
    let (mut client, _served) = connect(&plain(Limits::default()), 1 << 16);
    client.greet().await;
    for _ in 0..2 {
        let replies = client.option(option::STARTTLS, b"").await;
        assert_eq!(replies, [(reply::ERR_POLICY, vec![])]);
    }
    assert_eq!(client.go("vol").await.last(), Some(&(reply::ACK, vec![])));
}

#[tokio::test]
async fn where_tls_is_required_nothing_else_is_answered_before_it() {
    let authority = Authority::new("one");
    let server = required(&authority);
    let (mut client, _served) = connect(&server, 1 << 18);
    client.greet().await;
    for option in OPTIONS {
        for data in [&b""[..], b"\0\0\0\x03vol\0\0", &[0; 70_000]] {
            let replies = client.option(option, data).await;
            assert_eq!(replies, [(reply::ERR_TLS_REQD, vec![])], "option {option}");
        }
    }
    let replies = client.option(option::STARTTLS, b"data").await;
    assert_eq!(replies, [(reply::ERR_INVALID, vec![])]);
    let upgraded = upgrade(client, &connector(&authority.ca(), None)).await;
    let mut client = upgraded.expect("TLS");
    assert_eq!(client.go("vol").await.last(), Some(&(reply::ACK, vec![])));

    let (mut client, served) = connect(&server, 1 << 16);
    client.greet().await;
    assert_eq!(
        client.option(option::ABORT, b"").await,
        [(reply::ACK, vec![])]
    );
    let end = served.await.expect("no panic").expect("an end");
    assert_eq!(end, ConnectionEnd::Aborted);
}

#[tokio::test]
async fn where_tls_is_required_an_export_without_it_ends_the_session() {
    let server = required(&Authority::new("one"));
    let (mut client, served) = connect(&server, 1 << 16);
    client.greet().await;
    client.send_option(option::EXPORT_NAME, b"vol").await;
    assert_eq!(client.rest().await, b"");
    let end = served.await.expect("no panic").expect("an end");
    assert_eq!(end, ConnectionEnd::NoExport);
}

#[tokio::test]
async fn clients_without_fixed_newstyle_have_no_tls() {
    let authority = Authority::new("one");
    let old = ClientFlags::default().encode();
    let (mut client, _served) = connect(&optional(&authority), 1 << 16);
    client.receive::<18>().await;
    client.send(&old).await;
    let replies = client.option(option::STARTTLS, b"").await;
    assert_eq!(replies, [(reply::ERR_POLICY, vec![])]);

    let (mut client, served) = connect(&required(&authority), 1 << 16);
    client.receive::<18>().await;
    client.send(&old).await;
    assert_eq!(client.rest().await, b"");
    let error = error_of(served).await;
    assert!(matches!(error, ConnectionError::TlsImpossible), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn optional_tls_serves_both_and_is_begun_once() {
    bounded(async {
        let authority = Authority::new("one");
        let server = optional(&authority);
        let (mut client, _served) = connect(&server, 1 << 16);
        client.greet().await;
        assert_eq!(client.go("vol").await.last(), Some(&(reply::ACK, vec![])));
        client.request(command::WRITE, 0, 1, 0, 4).await;
        client.send(b"data").await;
        assert_eq!(client.simple().await, (1, 0));

        let (mut client, served) = secured(&server, &authority).await;
        for data in [&b""[..], b"data"] {
            let replies = client.option(option::STARTTLS, data).await;
            assert_eq!(replies, [(reply::ERR_INVALID, vec![])]);
        }
        assert_eq!(client.option(option::LIST, b"").await.len(), 2);
        assert_eq!(client.go("vol").await.last(), Some(&(reply::ACK, vec![])));
        assert_eq!(server.stats().handshakes, 0);
        client.request(command::READ, 0, 2, 0, 4).await;
        assert_eq!(client.simple().await, (2, 0));
        assert_eq!(&client.receive::<4>().await, b"data");
        client.request(command::DISC, 0, 3, 0, 0).await;
        // An end without a farewell of TLS would be an error here.
        assert_eq!(client.rest().await, b"");
        let end = served.await.expect("no panic").expect("an end");
        assert_eq!(end, ConnectionEnd::Disconnected);
    })
    .await;
}

#[tokio::test]
async fn both_versions_are_spoken() {
    let authority = Authority::new("one");
    for (version, number) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let (mut client, _served) = connect(&required(&authority), 1 << 16);
        client.greet().await;
        let connector = connector_of(&[version], &authority.ca(), None);
        let mut client = upgrade(client, &connector).await.expect("TLS");
        let (_, session) = client.stream.get_ref();
        assert_eq!(session.protocol_version(), Some(number));
        assert_eq!(client.go("vol").await.last(), Some(&(reply::ACK, vec![])));
    }
}

#[tokio::test]
async fn payloads_of_every_size_pass() {
    let authority = Authority::new("one");
    let size = 3 << 20;
    let device = MemoryDevice::new("vol", size);
    let server = server(device.clone(), Limits::default());
    let server = server.with_tls(Tls::Required(identity(&authority, None)));
    let (mut client, _served) = secured(&server, &authority).await;
    client.go("vol").await;
    let data: Vec<u8> = (0..=250).cycle().take(size).collect();
    for len in [1, 1000, 16_384, 16_385, 100_000, size] {
        client.request(command::WRITE, 0, 1, 0, len as u64).await;
        client.send(&data[..len]).await;
        client.stream.flush().await.expect("sent");
        assert_eq!(client.simple().await, (1, 0));
        client.request(command::READ, 0, 2, 0, len as u64).await;
        assert_eq!(client.simple().await, (2, 0));
        assert!(client.receive_vec(len).await == data[..len], "{len}");
    }
    assert!(device.content() == data);
}

/// Somebody on the way may speak to the server before the client's TLS does. None of it may last.
#[tokio::test(start_paused = true)]
async fn what_was_agreed_before_tls_is_forgotten() {
    bounded(async {
        let authority = Authority::new("one");
        let query = b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation";
        for agreed in [option::STRUCTURED_REPLY, option::EXTENDED_HEADERS] {
            let (mut client, _served) = connect(&optional(&authority), 1 << 16);
            client.greet().await;
            assert_eq!(client.option(agreed, b"").await, [(reply::ACK, vec![])]);
            let selected = client.option(option::SET_META_CONTEXT, query).await;
            assert_eq!(selected.len(), 2);
            let upgraded = upgrade(client, &connector(&authority.ca(), None)).await;
            let mut client = upgraded.expect("TLS");
            let replies = client.option(option::LIST_META_CONTEXT, query).await;
            assert_eq!(replies, [(reply::ERR_INVALID, vec![])]);
            let replies = client.option(option::STRUCTURED_REPLY, b"").await;
            assert_eq!(replies, [(reply::ACK, vec![])]);
            client.go("vol").await;
            client.request(command::BLOCK_STATUS, 0, 1, 0, 512).await;
            let (_, chunk) = client.chunk().await;
            let Chunk::Error { error, .. } = chunk else {
                panic!("{chunk:?}");
            };
            assert_eq!(error, Errno::Inval as u32);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_an_agreement_behind_tls_replies_are_simple() {
    bounded(async {
        let authority = Authority::new("one");
        let (mut client, _served) = connect(&optional(&authority), 1 << 16);
        client.greet().await;
        client.option(option::EXTENDED_HEADERS, b"").await;
        let upgraded = upgrade(client, &connector(&authority.ca(), None)).await;
        let mut client = upgraded.expect("TLS");
        client.go("vol").await;
        client.request(command::READ, 0, 7, 0, 4).await;
        assert_eq!(client.simple().await, (7, 0));
    })
    .await;
}

/// Bytes in one packet with `STARTTLS` are read ahead by a server that does not look, and then taken for protected ones.
#[tokio::test(start_paused = true)]
async fn plaintext_behind_starttls_is_not_taken_for_what_tls_protects() {
    let authority = Authority::new("one");
    let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    let go = b"IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0";
    let both = [&list[..], go].concat();
    // The last of them would be completed by what the client says behind TLS.
    for injected in [&list[..], &go[..], &both[..], &list[..5]] {
        for server in [required(&authority), optional(&authority)] {
            bounded(async {
                let (mut client, served) = connect(&server, 1 << 16);
                client.greet().await;
                let start = b"IHAVEOPT\0\0\0\x05\0\0\0\0";
                client.send(&[&start[..], injected].concat()).await;
                // Not even that TLS may begin: whoever reads this would begin it.
                assert_eq!(client.rest().await, b"", "behind {injected:?}");
                let error = error_of(served).await;
                assert!(
                    matches!(error, ConnectionError::PlaintextAfterStartTls),
                    "{error:?}"
                );
            })
            .await;
        }
    }
}

/// Bytes that come later, and those of a client that believes in a TLS that is not there.
#[tokio::test(start_paused = true)]
async fn plaintext_behind_the_answer_to_starttls_is_read_as_tls() {
    bounded(async {
        let authority = Authority::new("one");
        let (mut client, served) = connect(&required(&authority), 1 << 16);
        client.greet().await;
        let replies = client.option(option::STARTTLS, b"").await;
        assert_eq!(replies, [(reply::ACK, vec![])]);
        client.send_option(option::LIST, b"").await;
        let told = client.rest().await;
        assert!(!told.windows(3).any(|bytes| bytes == b"vol"), "{told:?}");
        let error = error_of(served).await;
        assert!(matches!(error, ConnectionError::Tls(_)), "{error:?}");
    })
    .await;
}

/// What is replaced while a server runs serves who comes afterwards, through every clone; who was there before stays.
#[tokio::test(start_paused = true)]
async fn a_replaced_identity_serves_new_connections() {
    bounded(async {
        let (one, two) = (Authority::new("one"), Authority::new("two"));
        let in_force = identity(&one, None);
        let server = plain(Limits::default()).with_tls(Tls::Required(in_force.clone()));
        let (mut before, _served) = secured(&server, &one).await;
        let (mut waiting, _also) = connect(&server, 1 << 16);
        waiting.greet().await;

        two.client(Valid::Now);
        in_force.replace(&identity(&two, Some(&two.ca())));
        before.go("vol").await;
        before.request(command::READ, 0, 1, 0, 4).await;
        assert_eq!(before.simple().await, (1, 0));
        let names = ["client-cert.pem", "client-key.pem"].map(|name| two.dir().join(name));
        let own: Pair = names.into();
        let mut after = upgrade(waiting, &connector(&two.ca(), Some(&own)))
            .await
            .expect("the new certificate");
        assert_eq!(after.go("vol").await.last(), Some(&(reply::ACK, vec![])));
        let (mut client, _served) = connect(&server, 1 << 16);
        client.greet().await;
        let old = upgrade(client, &connector(&one.ca(), None)).await;
        assert!(old.is_err(), "the old certificate");
    })
    .await;
}

#[tokio::test]
async fn client_certificates_are_demanded_and_judged() {
    let authority = Authority::new("one");
    let stranger = Authority::new("stranger");
    let server = plain(Limits::default())
        .with_tls(Tls::Required(identity(&authority, Some(&authority.ca()))));
    let ca = authority.ca();
    let foreign = stranger.client(Valid::Now);
    let expired = authority.client(Valid::Past);
    // A server's certificate is none of a client.
    let wrong_purpose = authority.server(Valid::Now);
    for refused in [None, Some(&foreign), Some(&expired), Some(&wrong_purpose)] {
        let (mut client, served) = connect(&server, 1 << 16);
        client.greet().await;
        // With TLS 1.3 a client is done before the server has seen its certificate.
        if let Ok(mut client) = upgrade(client, &connector(&ca, refused)).await {
            let mut rest = [0];
            let read = tokio::io::AsyncReadExt::read(&mut client.stream, &mut rest).await;
            assert!(read.is_err(), "{read:?}");
        }
        let error = error_of(served).await;
        assert!(matches!(error, ConnectionError::Tls(_)), "{error:?}");
    }

    let own = authority.client(Valid::Now);
    let (mut client, _served) = connect(&server, 1 << 16);
    client.greet().await;
    let upgraded = upgrade(client, &connector(&ca, Some(&own))).await;
    let mut client = upgraded.expect("TLS");
    assert_eq!(client.go("vol").await.last(), Some(&(reply::ACK, vec![])));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_handshake_holds_for_tls_and_behind_it() {
    let authority = Authority::new("one");
    let (mut client, served) = connect(&required(&authority), 1 << 16);
    client.greet().await;
    let replies = client.option(option::STARTTLS, b"").await;
    assert_eq!(replies, [(reply::ACK, vec![])]);
    let error = error_of(served).await;
    assert!(
        matches!(error, ConnectionError::HandshakeTimeout),
        "{error:?}"
    );

    let begun = tokio::time::Instant::now();
    let (client, served) = connect(&required(&authority), 1 << 16);
    let mut client = client;
    client.greet().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let upgraded = upgrade(client, &connector(&authority.ca(), None)).await;
    let _client = upgraded.expect("TLS");
    let error = error_of(served).await;
    assert!(
        matches!(error, ConnectionError::HandshakeTimeout),
        "{error:?}"
    );
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn options_before_and_behind_tls_are_counted_together() {
    let authority = Authority::new("one");
    let limits = Limits {
        options_max: 10,
        ..Limits::default()
    };
    let server = plain(limits).with_tls(Tls::Optional(identity(&authority, None)));
    let (mut client, served) = connect(&server, 1 << 16);
    client.greet().await;
    for _ in 0..5 {
        client.option(option::LIST, b"").await;
    }
    let upgraded = upgrade(client, &connector(&authority.ca(), None)).await;
    let mut client = upgraded.expect("TLS");
    for _ in 0..4 {
        client.option(option::LIST, b"").await;
    }
    let error = error_of(served).await;
    assert!(
        matches!(error, ConnectionError::TooManyOptions),
        "{error:?}"
    );
}

/// The same listener may be stopped while TLS begins.
#[tokio::test]
async fn a_stop_ends_a_handshake_of_tls() {
    let authority = Authority::new("one");
    let server = required(&authority);
    let (near, far) = tokio::io::duplex(1 << 16);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        server.serve_stream(far, support::PEER, stopped).await
    });
    let mut client = Client::new(near);
    client.greet().await;
    client.option(option::STARTTLS, b"").await;
    drop(stop);
    let end = served.await.expect("no panic").expect("an end");
    assert_eq!(end, ConnectionEnd::Stopped);
}

fn text_of(error: &TlsError) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[test]
fn files_that_are_of_no_use_are_named() {
    let authority = Authority::new("one");
    let (cert, key) = authority.server(Valid::Now);
    let (_, other_key) = authority.client(Valid::Now);
    let junk = authority.dir().join("junk.pem");
    std::fs::write(&junk, "not PEM").expect("written");
    let damaged = authority.dir().join("damaged.pem");
    let body = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&damaged, body).expect("written");
    let cut = authority.dir().join("cut.pem");
    std::fs::write(&cut, "-----BEGIN PRIVATE KEY-----\nAAAA\n").expect("written");
    let missing = authority.dir().join("missing.pem");
    let ca = authority.ca();
    let refusal = |cert: &Path, key: &Path, client_ca: Option<&Path>| {
        let files = TlsFiles {
            cert,
            key,
            client_ca,
        };
        text_of(&files.load().expect_err("of no use"))
    };
    for (told, path, wanted) in [
        (
            refusal(&missing, &key, None),
            &missing,
            "cannot be read: No such file",
        ),
        (
            refusal(&cert, &missing, None),
            &missing,
            "cannot be read: No such file",
        ),
        (
            refusal(&cert, &key, Some(&missing)),
            &missing,
            "cannot be read: No such file",
        ),
        (
            refusal(&cert, authority.dir(), None),
            &authority.dir().to_owned(),
            "cannot be read: Is a directory",
        ),
        (refusal(&junk, &key, None), &junk, "holds no certificate"),
        (refusal(&key, &key, None), &key, "holds no certificate"),
        (refusal(&cert, &junk, None), &junk, "holds no private key"),
        (refusal(&cert, &cert, None), &cert, "holds no private key"),
        (
            refusal(&cert, &key, Some(&junk)),
            &junk,
            "holds no certificate",
        ),
        (refusal(&cert, &cut, None), &cut, "the private key in"),
        (refusal(&damaged, &key, None), &damaged, "cannot be used"),
        (
            refusal(&cert, &key, Some(&damaged)),
            &damaged,
            "cannot be used",
        ),
        (
            refusal(&cert, &other_key, None),
            &other_key,
            "is not that of the certificate",
        ),
    ] {
        assert!(told.contains(wanted), "{told}");
        assert!(told.contains(&path.display().to_string()), "{told}");
    }
    assert!(
        TlsFiles {
            cert: &cert,
            key: &key,
            client_ca: Some(&ca)
        }
        .load()
        .is_ok()
    );
}

#[test]
fn certificates_out_of_their_time_are_named() {
    let authority = Authority::new("one");
    let judged = |valid| {
        let (cert, key) = authority.server(valid);
        let files = TlsFiles {
            cert: &cert,
            key: &key,
            client_ca: Some(&authority.ca()),
        };
        files.load().expect("well formed").check_validity()
    };
    assert!(judged(Valid::Now).is_ok());
    let told = text_of(&judged(Valid::Past).expect_err("expired"));
    assert!(told.contains("server-cert.pem` has expired"), "{told}");
    assert!(told.ends_with("days ago"), "{told}");
    let told = text_of(&judged(Valid::Future).expect_err("early"));
    assert!(told.contains("server-cert.pem` is not valid yet"), "{told}");

    // An authority of clients that has expired is told, too.
    let (expired, _) = authority.server(Valid::Past);
    let expired_ca = authority.dir().join("expired-ca.pem");
    std::fs::rename(expired, &expired_ca).expect("moved");
    let (cert, key) = authority.server(Valid::Now);
    let files = TlsFiles {
        cert: &cert,
        key: &key,
        client_ca: Some(&expired_ca),
    };
    let told = files.load().expect("well formed").check_validity();
    let told = text_of(&told.expect_err("expired"));
    assert!(told.contains("expired-ca.pem` has expired"), "{told}");
}

#[test]
fn a_key_is_not_printed() {
    let authority = Authority::new("one");
    let tls = Tls::Required(identity(&authority, None));
    assert_eq!(format!("{tls:?}"), "Required(TlsIdentity { .. })");
}
