//! The real tools' TLS against the server's: GnuTLS in libnbd and QEMU on one side, rustls on the other.

mod certificates;
mod tools;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use certificates::{Authority, Valid};
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::{Limits, Server, Tls, TlsFiles};
use tokio::net::TcpListener;
use tools::{require, run, try_run};

const SIZE: usize = 8 << 20;

/// A server that demands TLS and a client's certificate, and one that leaves it to the client.
struct Fixture {
    required: SocketAddr,
    optional: SocketAddr,
    device: MemoryDevice,
    authority: Authority,
}

impl Fixture {
    async fn start() -> Self {
        let device = MemoryDevice::new("plain", SIZE);
        let authority = Authority::new("Mainstay tests");
        let (cert, key) = authority.server(Valid::Now);
        authority.client(Valid::Now);
        let ca = authority.ca();
        let identity = |client_ca| {
            let files = TlsFiles {
                cert: &cert,
                key: &key,
                client_ca,
            };
            files.load().expect("usable")
        };
        let exports = Arc::new(FixedExports::new().with(device.clone()));
        let server = Server::new(exports, Limits::default());
        let required = server.with_tls(Tls::Required(identity(Some(&ca))));
        let optional = server.with_tls(Tls::Optional(identity(None)));
        Self {
            required: listen(required).await,
            optional: listen(optional).await,
            device,
            authority,
        }
    }

    fn uri(&self, scheme: &str, address: SocketAddr, dir: &Path) -> String {
        let port = address.port();
        let dir = dir.display();
        format!("{scheme}://localhost:{port}/plain?tls-certificates={dir}")
    }

    /// For a client with a certificate.
    fn required(&self) -> String {
        self.uri("nbds", self.required, self.authority.dir())
    }
}

async fn listen(server: Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    address
}

fn pattern() -> Vec<u8> {
    let numbers = (0_u32..).take(SIZE);
    let mut data: Vec<u8> = numbers
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    data[3 << 20..5 << 20].fill(0);
    data
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

async fn uses_tls(uri: &str) -> bool {
    let json = run("nbdinfo", &["--json", uri]).await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("json");
    json["TLS"].as_bool().expect("a boolean")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_uses_tls_where_it_is_asked_to() {
    if !require("nbdinfo") {
        return;
    }
    let fixture = Fixture::start().await;
    assert!(uses_tls(&fixture.required()).await);
    let own = fixture.authority.dir();
    assert!(uses_tls(&fixture.uri("nbds", fixture.optional, own)).await);
    assert!(!uses_tls(&format!("nbd://{}/plain", fixture.optional)).await);

    let without = try_run("nbdinfo", &[&format!("nbd://{}/plain", fixture.required)]).await;
    assert!(without.expect_err("refused").contains("TLS"));
    // One who does not trust the server, and one whom the server does not trust.
    let stranger = Authority::new("stranger");
    stranger.client(Valid::Now);
    let distrusting = fixture.uri("nbds", fixture.optional, stranger.dir());
    let refused = try_run("nbdinfo", &[&distrusting]).await;
    assert!(refused.expect_err("refused").contains("certificate"));
    std::fs::copy(fixture.authority.ca(), stranger.ca()).expect("copied");
    let distrusted = fixture.uri("nbds", fixture.required, stranger.dir());
    assert!(try_run("nbdinfo", &[&distrusted]).await.is_err());
    assert!(uses_tls(&fixture.uri("nbds", fixture.optional, stranger.dir())).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_copies_both_ways_over_four_tls_connections() {
    if !require("nbdcopy") {
        return;
    }
    let fixture = Fixture::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    std::fs::write(&image, pattern()).expect("written");
    let uri = fixture.required();
    run(
        "nbdcopy",
        &["--connections=4", "--flush", text(&image), &uri],
    )
    .await;
    assert!(fixture.device.content() == pattern());
    let back = dir.path().join("back");
    run("nbdcopy", &["--connections=4", &uri, text(&back)]).await;
    assert!(std::fs::read(&back).expect("read") == pattern());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_converts_and_compares_over_tls() {
    if !require("qemu-img") {
        return;
    }
    let fixture = Fixture::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    std::fs::write(&image, pattern()).expect("written");
    let credentials = |dir: &Path| {
        let dir = dir.display();
        format!("tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir={dir}")
    };
    let own = credentials(fixture.authority.dir());
    let port = fixture.required.port();
    let nbd = format!("driver=nbd,host=localhost,port={port},export=plain");
    let with_tls = format!("{nbd},tls-creds=tls0");

    let source = format!("driver=raw,file.driver=file,file.filename={}", text(&image));
    let convert = ["convert", "-n", "--object", &own, "--image-opts"];
    let convert = [&convert[..], &["--target-image-opts", &source, &with_tls]].concat();
    run("qemu-img", &convert).await;
    assert!(fixture.device.content() == pattern());
    let compare = [
        "compare",
        "--object",
        &own,
        "--image-opts",
        &source,
        &with_tls,
    ];
    run("qemu-img", &compare).await;

    let info = |object: String, image: String| async move {
        let arguments = ["info", "--object", &object, "--image-opts", &image];
        try_run("qemu-img", &arguments).await
    };
    let without = info(own.clone(), nbd).await;
    assert!(without.expect_err("refused").contains("TLS"));
    let stranger = Authority::new("stranger");
    stranger.client(Valid::Now);
    std::fs::copy(fixture.authority.ca(), stranger.ca()).expect("copied");
    let distrusted = info(credentials(stranger.dir()), with_tls.clone()).await;
    assert!(distrusted.is_err());
    assert!(info(own, with_tls).await.is_ok());
}
