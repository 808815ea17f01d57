//! TLS of the gateway: what its command line says is what the real tools meet.

#[path = "../../nbd/tests/certificates/mod.rs"]
mod certificates;
mod support;
mod tools;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certificates::{Authority, Valid};
use mainstay_client::report::{EventFilter, EventKind, Severity};
use mainstay_client::{Client, ClientConfig};
use mainstay_nbd::Server;
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_node::commands::{nbd, size, volume};
use mainstay_node::config::{NbdTlsSection, TlsMode};
use mainstay_node::nbd_export::{Renewal, WatchedTls};
use mainstay_types::Instance;
use support::{Cluster, PATIENCE};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

fn section(authority: &Authority, valid: Valid) -> NbdTlsSection {
    let (cert, key) = authority.server(valid);
    NbdTlsSection {
        mode: TlsMode::Required,
        cert,
        key,
        client_ca: Some(authority.ca()),
    }
}

fn args(tls: NbdTlsSection) -> nbd::Args {
    let listen = "127.0.0.1:0".parse().expect("an address");
    nbd::Args {
        tls: Some(tls),
        ..nbd::Args::new("disk", listen)
    }
}

/// What a command prints, for whoever waits for it.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("whole").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    async fn line(&self) -> String {
        let line = async {
            loop {
                let said = self.0.lock().expect("whole").clone();
                if said.ends_with(b"\n") {
                    return String::from_utf8(said).expect("text");
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, line).await.expect("said")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_demands_tls_and_certificates() {
    if !["nbdinfo", "qemu-img"].into_iter().all(tools::require) {
        return;
    }
    let cluster = Cluster::start().await;
    let create = volume::Create::new("disk", size::block_kind(1 << 20).expect("a size"));
    let created = volume::create(&create, cluster.endpoints(), &mut Vec::new()).await;
    created.expect("created");
    let authority = Authority::new("Mainstay tests");
    authority.client(Valid::Now);
    let args = args(section(&authority, Valid::Now));
    let said = Said::default();
    let (endpoints, mut out) = (cluster.endpoints(), said.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        let stopped = async {
            let _dropped = stopped.await;
        };
        nbd::run(args, endpoints, &mut out, stopped).await
    });
    let line = said.line().await;
    let words = line.split_whitespace();
    let uri = words
        .clone()
        .find_map(|word| word.strip_prefix("nbds://"))
        .expect("an address that asks for TLS");
    let port = uri
        .trim_start_matches("127.0.0.1:")
        .trim_end_matches("/disk");
    let with = |dir: &Path| {
        format!(
            "nbds://localhost:{port}/disk?tls-certificates={}",
            dir.display()
        )
    };

    let size = tools::run("nbdinfo", &["--size", &with(authority.dir())]).await;
    assert_eq!(size.trim(), (1 << 20).to_string());
    let object = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        authority.dir().display()
    );
    let image = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=tls0");
    let info = ["info", "--object", &object, "--image-opts", &image];
    tools::run("qemu-img", &info).await;
    let plain = tools::try_run("nbdinfo", &[&format!("nbd://{uri}")]).await;
    assert!(plain.expect_err("refused").contains("TLS"));
    let stranger = Authority::new("stranger");
    std::fs::copy(authority.ca(), stranger.ca()).expect("copied");
    let without = tools::try_run("nbdinfo", &[&with(stranger.dir())]).await;
    assert!(without.is_err(), "no certificate was asked for");

    // Renewed: the server by another authority, the clients as before.
    let renewed = Authority::new("renewed");
    renewed.server(Valid::Now);
    let client = Authority::new("client");
    install(&renewed, &client, &[CA]);
    install(&authority, &client, &["client-cert.pem", "client-key.pem"]);
    install(&renewed, &authority, &[CERT, KEY]);
    let taken = async {
        while tools::try_run("nbdinfo", &["--size", &with(client.dir())])
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let taken = tokio::time::timeout(PATIENCE, taken).await;
    taken.expect("the renewed certificate");

    drop(stop);
    running.await.expect("no panic").expect("stopped");
    cluster.shut_down().await;
}

#[tokio::test]
async fn a_gateway_whose_files_are_of_no_use_says_which() {
    let authority = Authority::new("one");
    let refused = |tls| async move {
        let ran = nbd::run(args(tls), vec![], &mut Vec::new(), async {}).await;
        ran.expect_err("refused").to_string()
    };
    let told = refused(section(&authority, Valid::Past)).await;
    assert!(told.contains("server-cert.pem` has expired"), "{told}");
    let told = refused(section(&authority, Valid::Future)).await;
    assert!(told.contains("server-cert.pem` is not valid yet"), "{told}");
    let (_, other) = authority.client(Valid::Now);
    let mut mismatched = section(&authority, Valid::Now);
    mismatched.key = other;
    let told = refused(mismatched).await;
    assert!(told.contains("client-key.pem` is not that of"), "{told}");
    assert!(told.contains("; use the key with which"), "{told}");
}

/// Puts the server's files of `from` in the place of those of `to`, as whoever renews them does: each at once, one after the other.
fn install(from: &Authority, to: &Authority, names: &[&str]) {
    for name in names {
        let part = to.dir().join("part");
        std::fs::copy(from.dir().join(name), &part).expect("copied");
        std::fs::rename(part, to.dir().join(name)).expect("renamed");
    }
}

const CERT: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const CA: &str = "ca-cert.pem";

/// A listener whose files are looked at often.
struct Watched {
    port: u16,
    told: mpsc::UnboundedReceiver<Renewal>,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Watched {
    async fn start(section: NbdTlsSection) -> Self {
        let watched = WatchedTls::load(section).expect("usable");
        let watched = watched.looking_every(Duration::from_millis(50));
        let exports = FixedExports::new().with(MemoryDevice::new("disk", 1 << 20));
        let server = Server::new(Arc::new(exports), mainstay_nbd::Limits::default());
        let server = server.with_tls(watched.tls());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _dropped = stopped.await;
            };
            let serving = server.serve(listener, stopped);
            let tell = |renewal: &Renewal| tell.send(renewal.clone()).expect("heard");
            watched.beside(serving, tell).await;
        });
        Self {
            port,
            told,
            stop,
            serving,
        }
    }

    /// What the next change came to.
    async fn next(&mut self) -> Renewal {
        let told = tokio::time::timeout(PATIENCE, self.told.recv()).await;
        told.expect("told in time").expect("it runs")
    }

    /// Waits until files are refused for a reason. Before that, they may be found half way between one and the other.
    async fn refused(&mut self, reason: &str) -> String {
        loop {
            let told = self.next().await;
            let why = told.describe();
            assert!(matches!(told, Renewal::Refused { .. }), "{why}");
            if why.contains(reason) {
                return why;
            }
        }
    }

    async fn taken(&mut self) {
        while !matches!(self.next().await, Renewal::Taken { .. }) {}
    }

    /// Asks with the certificates in a directory.
    async fn ask(&self, with: &Authority) -> Result<String, String> {
        let dir = with.dir().display();
        let uri = format!("nbds://localhost:{}/disk?tls-certificates={dir}", self.port);
        tools::try_run("nbdinfo", &["--size", &uri]).await
    }

    async fn stop(self) {
        let _running = self.stop.send(());
        self.serving.await.expect("no panic");
    }
}

/// Client authorities of its own, so that a client of the server's authority can follow.
fn watched_section(authority: &Authority) -> NbdTlsSection {
    NbdTlsSection {
        client_ca: None,
        ..section(authority, Valid::Now)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_files_serve_new_connections_without_a_restart() {
    if !tools::require("nbdinfo") {
        return;
    }
    let (served, one, two) = (
        Authority::new("served"),
        Authority::new("one"),
        Authority::new("two"),
    );
    for authority in [&served, &one, &two] {
        authority.server(Valid::Now);
        authority.client(Valid::Now);
    }
    install(&one, &served, &[CERT, KEY]);
    let (cert, key) = (served.dir().join(CERT), served.dir().join(KEY));
    let section = NbdTlsSection {
        mode: TlsMode::Required,
        cert: cert.clone(),
        key: key.clone(),
        client_ca: None,
    };
    let mut watched = Watched::start(section).await;
    watched.ask(&one).await.expect("the first certificate");

    // Half a renewal, and then the whole.
    install(&two, &served, &[CERT]);
    let why = watched.refused("is not that of the certificate").await;
    assert!(why.contains("; use the key with which"), "{why}");
    watched.ask(&one).await.expect("still in force");
    install(&two, &served, &[KEY]);
    assert_eq!(watched.next().await, Renewal::Taken { cert: cert.clone() });
    watched.ask(&two).await.expect("the second certificate");
    watched.ask(&one).await.expect_err("the first is gone");

    // What is broken leaves the second in force, each in its way.
    std::fs::write(&cert, "no certificate").expect("written");
    let why = watched.refused("holds no certificate in PEM form").await;
    assert!(why.contains("those of before stay in force"), "{why}");
    assert!(why.contains("; write it as PEM"), "{why}");
    std::fs::remove_file(&key).expect("removed");
    install(&one, &served, &[CERT]);
    let why = watched.refused("cannot be read").await;
    assert!(why.contains("; put the file there"), "{why}");
    watched.ask(&two).await.expect("still in force");

    // In place, as an editor would.
    std::fs::copy(two.dir().join(CERT), &cert).expect("copied");
    std::fs::copy(two.dir().join(KEY), &key).expect("copied");
    watched.taken().await;
    watched
        .ask(&two)
        .await
        .expect("the second certificate again");
    watched.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_out_of_its_time_does_not_replace_a_good_one() {
    if !tools::require("nbdinfo") {
        return;
    }
    let served = Authority::new("served");
    served.client(Valid::Now);
    let mut watched = Watched::start(watched_section(&served)).await;
    for (valid, said) in [
        (Valid::Past, "has expired"),
        (Valid::Future, "is not valid yet"),
    ] {
        served.server(valid);
        watched.refused(said).await;
        watched
            .ask(&served)
            .await
            .expect("the good one is in force");
    }
    served.server(Valid::Now);
    watched.taken().await;
    watched.ask(&served).await.expect("the new one");

    // Its time comes while nobody touches it.
    served.server(Valid::Soon);
    watched.refused("is not valid yet").await;
    watched.taken().await;
    watched.stop().await;
}

/// Authorities of clients are renewed like the rest.
#[tokio::test(flavor = "multi_thread")]
async fn renewed_client_authorities_decide_about_new_connections() {
    if !tools::require("nbdinfo") {
        return;
    }
    let (served, client) = (Authority::new("served"), Authority::new("client"));
    client.client(Valid::Now);
    let mut section = watched_section(&served);
    let authorities = served.dir().join("authorities.pem");
    std::fs::copy(served.ca(), &authorities).expect("copied");
    section.client_ca = Some(authorities.clone());
    let mut watched = Watched::start(section).await;
    // It trusts the server, and has a certificate of its own authority.
    let own = std::fs::read(client.ca()).expect("read");
    install(&served, &client, &[CA]);
    watched.ask(&client).await.expect_err("a stranger");
    std::fs::write(&authorities, own).expect("written");
    watched.taken().await;
    watched.ask(&client).await.expect("known now");
    watched.stop().await;
}

/// A node's worker, with the files of `served`: gone with this.
async fn worker(dir: &Path, served: &Authority) -> (tokio::process::Child, Client) {
    let listeners = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [grpc, nbd, http] = listeners.map(|own| own.local_addr().expect("bound"));
    let config = format!(
        r#"cluster = "tests"

[node]
id = 1
roles = ["data", "witness"]
data_dir = {data:?}
grpc = "{grpc}"
nbd = "{nbd}"
http = "{http}"

[nbd.tls]
mode = "required"
cert = {cert:?}
key = {key:?}

[[peers]]
id = 1
roles = ["data", "witness"]
grpc = "{grpc}"
"#,
        data = dir.join("data"),
        cert = served.dir().join(CERT),
        key = served.dir().join(KEY),
    );
    let file = dir.join("node.toml");
    std::fs::write(&file, config).expect("written");
    let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(["worker", "--instance", &Instance(7).to_string(), "--config"])
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    let connected = async {
        loop {
            if let Ok(client) = Client::connect(ClientConfig::new(vec![grpc.to_string()])).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let client = tokio::time::timeout(PATIENCE, connected).await;
    (child, client.expect("it serves"))
}

/// The event is what an operator who renewed a certificate hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_what_became_of_renewed_files() {
    let (served, two) = (Authority::new("served"), Authority::new("two"));
    let (cert, _) = served.server(Valid::Now);
    two.server(Valid::Now);
    let dir = tempfile::tempdir().expect("a directory");
    let (mut child, client) = worker(dir.path(), &served).await;
    let follow = EventFilter {
        follow: true,
        ..EventFilter::default()
    };
    let mut events = client.admin().events(follow).await.expect("events");
    let mut next = async || {
        let next = async {
            loop {
                let event = events.next().await.expect("it runs").expect("an event");
                if event.kind == EventKind::CertificatesChanged {
                    return (event.severity, event.message);
                }
            }
        };
        let told = tokio::time::timeout(PATIENCE, next).await;
        told.expect("told in time")
    };
    std::fs::write(&cert, "no certificate").expect("written");
    let (severity, message) = next().await;
    assert_eq!(severity, Severity::Warning, "{message}");
    assert!(
        message.contains("those of before stay in force"),
        "{message}"
    );
    assert!(message.contains("; write it as PEM"), "{message}");
    install(&two, &served, &[CERT, KEY]);
    // It may have been found between the two.
    let taken = loop {
        let (severity, message) = next().await;
        if severity == Severity::Info {
            break message;
        }
    };
    assert!(
        taken.contains("new NBD connections get the new certificate"),
        "{taken}"
    );
    child.kill().await.expect("ended");
}
