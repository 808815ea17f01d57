//! The user's commands for NBD against a real cluster in this process, with the real NBD tools.

mod command_rig;
mod support;
mod tools;

use std::net::SocketAddr;

use command_rig::{NOBODY, Shared, create, promote_until};
use mainstay_client::{AttachOptions, Client, ClientConfig};
use mainstay_node::commands::{nbd, size, volume};
use mainstay_node::nbd_export::{Terms, VolumeExports, serve};
use mainstay_types::VolumeKind;
use serde_json::Value;
use support::{Cluster, PATIENCE};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A gateway over all volumes. Ends when the sender is used or dropped.
async fn gateway(
    cluster: &Cluster,
) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
    let exports = VolumeExports::all(client.expect("connected"), PATIENCE);
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn(async move {
        let stopped = async {
            let _dropped = stopped.await;
        };
        serve(listener, exports, Terms::default(), stopped).await;
    });
    (address, stop, serving)
}

/// Bytes without a pattern that a lost or misplaced block would fit.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn nbd_tools_copy_both_ways_across_promotions() {
    if !["nbdinfo", "nbdcopy", "qemu-io"]
        .into_iter()
        .all(tools::require)
    {
        return;
    }
    const SIZE: usize = 32 << 20;
    let cluster = Cluster::start().await;
    create(
        &cluster,
        "disk",
        size::block_kind(SIZE as u64).expect("a size"),
    )
    .await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let (address, stop, serving) = gateway(&cluster).await;
    let uri = format!("nbd://{address}/disk");

    let list = tools::run(
        "nbdinfo",
        &["--list", "--json", &format!("nbd://{address}")],
    )
    .await;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let exports = list["exports"].as_array().expect("exports");
    assert_eq!(exports.len(), 1, "a log is no export: {list}");
    assert_eq!(exports[0]["export-size"], SIZE);
    assert_eq!(exports[0]["can_multi_conn"], true);

    let (source, back) = (
        cluster.scratch().join("source"),
        cluster.scratch().join("back"),
    );
    std::fs::write(&source, content(SIZE)).expect("written");
    let (halt, halted) = oneshot::channel();
    let endpoints = cluster.endpoints();
    let promoting = tokio::spawn(async move { promote_until(endpoints, "disk", halted).await });
    let path = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    for connections in ["--connections=1", "--connections=4"] {
        tools::run("nbdcopy", &[connections, "--flush", &path(&source), &uri]).await;
        tools::run("nbdcopy", &[connections, &uri, &path(&back)]).await;
        assert!(
            std::fs::read(&back).expect("read") == content(SIZE),
            "{connections}"
        );
    }
    let _running = halt.send(());
    let moved = promoting.await.expect("no panic");
    eprintln!("{moved} promotions under nbdcopy");

    let mut arguments = vec!["-f", "raw"];
    for command in [
        "write -P 0x5a 1M 1M",
        "write -z 1M 64k",
        "discard 2M 1M",
        "flush",
        "read -P 0 1M 64k",
        "read -P 0x5a 1088k 960k",
        "write -P 1 1 3",
        "read -P 1 1 3",
    ] {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let said = tools::run("qemu-io", &arguments).await;
    assert!(!said.contains("verification failed"), "{said}");

    let _running = stop.send(());
    serving.await.expect("no panic");
    // Nothing is left attached: another name gets the volume without taking it over.
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let open = client
        .block("disk")
        .attach(AttachOptions::named("other"))
        .open()
        .await;
    open.expect("the volume was let go")
        .close()
        .await
        .expect("closed");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_held_is_refused_over_nbd_with_the_holder() {
    if !["qemu-io", "nbdcopy"].into_iter().all(tools::require) {
        return;
    }
    let cluster = Cluster::start().await;
    create(&cluster, "disk", size::block_kind(1 << 20).expect("a size")).await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let held = client
        .block("disk")
        .attach(AttachOptions::named("backup-job"))
        .open()
        .await;
    let held = held.expect("attached");
    let (address, stop, serving) = gateway(&cluster).await;
    let uri = format!("nbd://{address}/disk");

    let target = cluster.scratch().join("copy");
    let target = target.to_str().expect("text");
    // Of these tools, QEMU's shows the server's words.
    let error = tools::try_run("qemu-io", &["-f", "raw", "-c", "flush", &uri]).await;
    let error = error.expect_err("it is held");
    assert!(error.contains("backup-job"), "{error}");
    // A deletion says so too, and leaves it alone.
    let delete = volume::Delete {
        volume: "disk".to_owned(),
        yes: true,
        force: false,
        json: false,
    };
    let error = volume::delete(&delete, cluster.endpoints(), NOBODY, &mut Vec::new()).await;
    let error = error.expect_err("it is held").to_string();
    assert!(error.contains("backup-job"), "{error}");
    held.close().await.expect("closed");
    tools::run("nbdcopy", &[&uri, target]).await;
    let _running = stop.send(());
    serving.await.expect("no panic");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_serves_one_volume_as_the_default_export() {
    if !tools::require("nbdinfo") {
        return;
    }
    let cluster = Cluster::start().await;
    for name in ["disk", "other"] {
        create(&cluster, name, size::block_kind(1 << 20).expect("a size")).await;
    }
    let said = Shared::default();
    let (endpoints, mut out) = (cluster.endpoints(), said.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let listen = "127.0.0.1:0".parse().expect("an address");
    let running = tokio::spawn(async move {
        let stopped = async {
            let _dropped = stopped.await;
        };
        nbd::run(nbd::Args::new("disk", listen), endpoints, &mut out, stopped).await
    });
    let text = said
        .wait_for("its address", |bytes| bytes.ends_with(b"\n"))
        .await;
    let text = String::from_utf8(text).expect("text");
    let uri = text
        .split_whitespace()
        .find(|word| word.starts_with("nbd://"))
        .expect("an address");
    let default = uri.trim_end_matches("disk");
    let info = tools::run("nbdinfo", &["--json", default]).await;
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["exports"][0]["export-size"], 1 << 20);
    let other = format!("{default}other");
    assert!(
        tools::try_run("nbdinfo", &[&other]).await.is_err(),
        "another volume is served"
    );
    let _running = stop.send(());
    running.await.expect("no panic").expect("stopped");
    let log = nbd::run(
        nbd::Args::new("none", listen),
        cluster.endpoints(),
        &mut Vec::new(),
        async {},
    )
    .await;
    let error = log.expect_err("no such volume").to_string();
    assert!(error.contains("there is no volume `none`"), "{error}");
    cluster.shut_down().await;
}
