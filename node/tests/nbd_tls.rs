//! TLS of the gateway: what its command line says is what the real tools meet.

#[path = "../../nbd/tests/certificates/mod.rs"]
mod certificates;
mod support;
mod tools;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use certificates::{Authority, Valid};
use mainstay_node::commands::{nbd, size, volume};
use mainstay_node::config::{NbdTlsSection, TlsMode};
use support::{Cluster, PATIENCE};
use tokio::sync::oneshot;

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
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
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
