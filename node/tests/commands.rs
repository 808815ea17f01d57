//! The user's commands against a real cluster in this process.

mod support;
mod tools;

use std::io::{self, Cursor, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_client::{AttachOptions, Client, ClientConfig};
use mainstay_node::commands::log::framing::Framing;
use mainstay_node::commands::log::{Printed, append, read, tail};
use mainstay_node::commands::{events, nbd, promote, size, status, volume};
use mainstay_node::nbd_export::{Terms, VolumeExports, serve};
use mainstay_types::{Lsn, NodeId, VolumeKind};
use serde_json::Value;
use support::{Cluster, PATIENCE};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// What nobody can ask.
const NOBODY: Option<fn(&str) -> io::Result<String>> = None;

async fn create(cluster: &Cluster, name: &str, kind: VolumeKind) {
    let mut out = Vec::new();
    let args = volume::Create::new(name, kind);
    volume::create(&args, cluster.endpoints(), &mut out)
        .await
        .expect("created");
    let text = String::from_utf8(out).expect("text");
    assert!(text.starts_with("created"), "{text}");
    assert!(!text.contains("have joined so far"), "{text}");
}

fn json(out: &[u8]) -> Value {
    serde_json::from_slice(out).expect("JSON")
}

async fn append_to(
    cluster: &Cluster,
    args: &append::Args,
    input: &[u8],
) -> (Value, anyhow::Result<()>) {
    let mut out = Vec::new();
    let args = append::Args {
        json: true,
        quiet: true,
        ..args.clone()
    };
    let input = Cursor::new(input.to_vec());
    let result = append::run(&args, cluster.endpoints(), input, &mut out).await;
    (json(&out), result)
}

async fn read_from(cluster: &Cluster, args: &read::Args) -> Vec<u8> {
    let mut out = Vec::new();
    read::run(args, cluster.endpoints(), &mut out)
        .await
        .expect("read");
    out
}

/// `count` lines that differ in length and content.
fn lines(count: usize) -> String {
    (0..count)
        .map(|n| format!("{n},{}\n", "x".repeat(n % 97)))
        .collect()
}

/// A place to print to that can be looked at meanwhile.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("not poisoned").clone()
    }

    async fn wait_for(&self, what: &str, done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !done(&self.bytes()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let in_time = waited.await.is_ok();
        let bytes = self.bytes();
        assert!(in_time, "{what}: {} bytes", bytes.len());
        bytes
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_created_listed_shown_and_deleted() {
    let cluster = Cluster::start().await;
    let ends = || cluster.endpoints();
    create(&cluster, "ledger", VolumeKind::Log).await;
    create(&cluster, "disk", size::block_kind(1 << 20).expect("a size")).await;

    let mut out = Vec::new();
    volume::list(true, ends(), &mut out).await.expect("listed");
    let listed = json(&out);
    let names: Vec<&str> = (0..2)
        .filter_map(|at| listed[at]["name"].as_str())
        .collect();
    assert_eq!(names, ["disk", "ledger"]);

    let mut out = Vec::new();
    volume::show("disk", true, ends(), &mut out)
        .await
        .expect("shown");
    let shown = json(&out);
    assert_eq!(shown["kind"]["size_bytes"], 1 << 20);
    assert_eq!(shown["members"].as_array().map(Vec::len), Some(3));
    let error = volume::show("nothing", false, ends(), &mut out).await;
    let error = error.expect_err("no such volume").to_string();
    assert!(error.contains("mainstay volume list"), "{error}");

    // Creating it again changes nothing; another kind under the name is refused.
    let mut again = volume::Create::new("ledger", VolumeKind::Log);
    again.json = true;
    let mut out = Vec::new();
    volume::create(&again, ends(), &mut out)
        .await
        .expect("the same");
    assert_eq!(json(&out)["existed"], true);
    again.kind = size::block_kind(4096).expect("a size");
    let error = volume::create(&again, ends(), &mut out)
        .await
        .expect_err("another kind");
    assert!(error.to_string().contains("exists"), "{error}");

    let mut delete = volume::Delete {
        volume: "ledger".to_owned(),
        yes: false,
        force: false,
        json: false,
    };
    let error = volume::delete(&delete, ends(), NOBODY, &mut out).await;
    assert!(
        error
            .expect_err("nobody agreed")
            .to_string()
            .contains("--yes")
    );
    delete.yes = true;
    let mut out = Vec::new();
    volume::delete(&delete, ends(), NOBODY, &mut out)
        .await
        .expect("deleted");
    assert_eq!(out, b"deleted `ledger`\n");
    let gone = volume::delete(&delete, ends(), NOBODY, &mut out).await;
    assert!(gone.is_err(), "deleted twice");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_and_copies_are_as_asked() {
    let cluster = Cluster::start().await;
    let mut args = volume::Create::new("pair", VolumeKind::Log);
    args.placement = vec![NodeId(3), NodeId(1)];
    args.json = true;
    let mut out = Vec::new();
    volume::create(&args, cluster.endpoints(), &mut out)
        .await
        .expect("created");
    let created = json(&out);
    assert_eq!(created["volume"]["placement"], serde_json::json!([3, 1]));
    assert_eq!(created["volume"]["primary"], 3);
    assert_eq!(
        created["volume"]["members"].as_array().map(Vec::len),
        Some(2)
    );
    args.volume = "seven".to_owned();
    args.placement = vec![NodeId(7)];
    let error = volume::create(&args, cluster.endpoints(), &mut out).await;
    let error = error.expect_err("no node 7").to_string();
    assert!(error.contains('7'), "{error}");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preferred_nodes_are_shown_and_checked() {
    let cluster = Cluster::start().await;
    let mut args = volume::Create::new("ledger", VolumeKind::Log);
    args.prefer = vec![NodeId(2), NodeId(3)];
    args.json = true;
    let mut out = Vec::new();
    volume::create(&args, cluster.endpoints(), &mut out)
        .await
        .expect("created");
    let created = json(&out);
    assert_eq!(created["volume"]["prefer"], serde_json::json!([2, 3]));
    assert_eq!(
        created["volume"]["primary"], 2,
        "the first of them makes it"
    );
    let mut out = Vec::new();
    volume::show("ledger", false, cluster.endpoints(), &mut out)
        .await
        .expect("shown");
    let shown = String::from_utf8(out).expect("text");
    assert!(shown.contains("preferred      2, 3"), "{shown}");
    args.volume = "pair".to_owned();
    args.placement = vec![NodeId(1), NodeId(2)];
    let error = volume::create(&args, cluster.endpoints(), &mut Vec::new()).await;
    let error = error.expect_err("no copy on node 3").to_string();
    assert!(error.contains("node 3 cannot be preferred"), "{error}");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_is_read_byte_for_byte() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let text = lines(3000);
    let args = append::Args::new("ledger");
    let (summary, result) = append_to(&cluster, &args, text.as_bytes()).await;
    result.expect("appended");
    assert_eq!(summary["records"], 3000);
    assert!(summary["first_lsn"].as_u64() < summary["last_lsn"].as_u64());

    let all = read::Args::all("ledger");
    assert_eq!(read_from(&cluster, &all).await, text.as_bytes());
    let limited = read::Args {
        limit: Some(2),
        ..all.clone()
    };
    assert_eq!(read_from(&cluster, &limited).await, b"0,\n1,x\n");
    let last = Lsn(summary["last_lsn"].as_u64().expect("a position"));
    let one = read::Args {
        from: Some(last),
        to: Some(last),
        printed: Printed {
            with_lsn: true,
            ..Printed::default()
        },
        ..all.clone()
    };
    let line = text.lines().next_back().expect("a line");
    assert_eq!(
        read_from(&cluster, &one).await,
        format!("{last}\t{line}\n").as_bytes()
    );

    let mut out = Vec::new();
    let newest = tail::Args {
        last: 2,
        ..tail::Args::newest("ledger")
    };
    tail::run(&newest, cluster.endpoints(), &mut out)
        .await
        .expect("the tail");
    let expected: Vec<&str> = text.lines().skip(2998).collect();
    assert_eq!(
        String::from_utf8(out).expect("text"),
        expected.join("\n") + "\n"
    );
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn framed_records_hold_any_bytes() {
    let cluster = Cluster::start().await;
    create(&cluster, "bytes", VolumeKind::Log).await;
    let mut input = Vec::new();
    for len in [0_usize, 1, 255, 70_000, 1 << 20] {
        let record: Vec<u8> = (0..=255).cycle().take(len).collect();
        Framing::Framed.write(&record, &mut input).expect("written");
    }
    let args = append::Args {
        framing: Framing::Framed,
        ..append::Args::new("bytes")
    };
    let (summary, result) = append_to(&cluster, &args, &input).await;
    result.expect("appended");
    assert_eq!(summary["records"], 5);
    let all = read::Args {
        printed: Printed {
            framing: Framing::Framed,
            with_lsn: false,
        },
        ..read::Args::all("bytes")
    };
    assert!(read_from(&cluster, &all).await == input);
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_is_named_and_the_lines_before_it_are_appended() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let mut input = b"one\ntwo\n".to_vec();
    input.resize(input.len() + (16 << 20) + 1, b'x');
    input.extend(b"\nfour\n");
    let (summary, result) = append_to(&cluster, &append::Args::new("ledger"), &input).await;
    let error = result.expect_err("line 3 is too long").to_string();
    assert!(error.starts_with("line 3 is longer"), "{error}");
    assert_eq!(summary["records"], 2);
    let all = read::Args::all("ledger");
    assert_eq!(read_from(&cluster, &all).await, b"one\ntwo\n");
    cluster.shut_down().await;
}

/// Moves the primary to another node, again and again, until told to stop. Returns how often.
async fn promote_until(endpoints: Vec<String>, name: &str, mut stop: oneshot::Receiver<()>) -> u32 {
    let (mut moved, mut to, mut epoch) = (0, 0, 0);
    while stop.try_recv().is_err() {
        let args = promote::Args {
            volume: name.to_owned(),
            to: Some(NodeId(to % 3 + 1)),
            force: None,
            reason: "test".to_owned(),
            json: true,
        };
        let mut out = Vec::new();
        to += 1;
        match promote::run(&args, endpoints.clone(), &mut out).await {
            Ok(()) => {
                let now = json(&out)["epoch"].as_u64().expect("an epoch");
                moved += u32::from(epoch != 0 && now > epoch);
                epoch = epoch.max(now);
            }
            Err(error) => eprintln!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    moved
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_and_tails_go_on_across_promotions_exactly_once() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let text = lines(20_000);

    let followed = Shared::default();
    let follow = tail::Args {
        from: Some(Lsn(1)),
        follow: true,
        ..tail::Args::newest("ledger")
    };
    let (endpoints, mut out) = (cluster.endpoints(), followed.clone());
    let tailing = tokio::spawn(async move { tail::run(&follow, endpoints, &mut out).await });

    let (stop, stopped) = oneshot::channel();
    let endpoints = cluster.endpoints();
    let promoting = tokio::spawn(async move { promote_until(endpoints, "ledger", stopped).await });
    // A slow input, so that several promotions fall into it.
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let input = text.clone();
    std::thread::spawn(move || {
        for part in input.as_bytes().chunks(20_000) {
            writer.write_all(part).expect("written");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut out = Vec::new();
    let args = append::Args {
        json: true,
        quiet: true,
        ..append::Args::new("ledger")
    };
    append::run(&args, cluster.endpoints(), reader, &mut out)
        .await
        .expect("appended");
    let _running = stop.send(());
    let moved = promoting.await.expect("no panic");
    let summary = json(&out);
    assert!(moved >= 3, "{moved} promotions, {summary}");
    assert_eq!(summary["records"], 20_000);

    let all = read_from(&cluster, &read::Args::all("ledger")).await;
    assert!(
        all == text.as_bytes(),
        "{} bytes read, {} appended",
        all.len(),
        text.len()
    );
    let seen = followed
        .wait_for("the tail", |bytes| bytes.len() >= text.len())
        .await;
    assert!(seen == text.as_bytes(), "the tail has a gap or a repeat");
    tailing.abort();
    cluster.shut_down().await;
}

/// Batches of three while primaries change: each lies side by side, and none is lost, doubled or torn.
#[tokio::test(flavor = "multi_thread")]
async fn batches_go_on_across_promotions_each_of_them_whole() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let text = lines(6_001);
    let (stop, stopped) = oneshot::channel();
    let endpoints = cluster.endpoints();
    let promoting = tokio::spawn(async move { promote_until(endpoints, "ledger", stopped).await });
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let input = text.clone();
    std::thread::spawn(move || {
        for part in input.as_bytes().chunks(5_000) {
            writer.write_all(part).expect("written");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut out = Vec::new();
    let args = append::Args {
        json: true,
        quiet: true,
        batch: Some(3),
        ..append::Args::new("ledger")
    };
    append::run(&args, cluster.endpoints(), reader, &mut out)
        .await
        .expect("appended");
    let _running = stop.send(());
    let moved = promoting.await.expect("no panic");
    let summary = json(&out);
    assert!(moved >= 2, "{moved} promotions, {summary}");
    assert_eq!(summary["records"], 6_001);

    let all = read::Args {
        printed: Printed {
            with_lsn: true,
            ..Printed::default()
        },
        ..read::Args::all("ledger")
    };
    let all = String::from_utf8(read_from(&cluster, &all).await).expect("text");
    let records = all
        .lines()
        .map(|line| line.split_once('\t').expect("a position"));
    let (positions, read): (Vec<&str>, Vec<&str>) = records.unzip();
    assert!(
        read.iter().copied().eq(text.lines()),
        "{} records",
        read.len()
    );
    let positions: Vec<u64> = positions
        .iter()
        .map(|lsn| lsn.parse().expect("a number"))
        .collect();
    for batch in positions.chunks(3) {
        assert!(
            batch.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{batch:?}"
        );
    }
    assert_eq!(summary["last_lsn"].as_u64(), positions.last().copied());
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_events_tell_what_is_and_what_happened() {
    let mut cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let once = status::Args {
        watch: None,
        json: true,
        redraw: false,
    };
    let mut out = Vec::new();
    status::run(once, cluster.endpoints(), &mut out)
        .await
        .expect("status");
    let page = json(&out);
    assert_eq!(page["nodes"].as_array().map(Vec::len), Some(6));
    assert_eq!(page["volumes"][0]["name"], "ledger");
    assert_eq!(page["volumes"][0]["health"], "ok", "{page}");
    assert_eq!(page["volumes"][0]["lease_held"], true);
    let primary = page["volumes"][0]["primary"].as_u64().expect("a node");
    let primary = u32::try_from(primary).expect("a node");
    let mut out = Vec::new();
    let text = status::Args {
        json: false,
        ..once
    };
    status::run(text, cluster.endpoints(), &mut out)
        .await
        .expect("status");
    let page = String::from_utf8(out).expect("text");
    assert!(page.ends_with("no problems\n"), "{page}");

    let watched = Shared::default();
    let (endpoints, mut out) = (cluster.endpoints(), watched.clone());
    let watch = status::Args {
        watch: Some(Duration::from_millis(100)),
        ..once
    };
    let watching = tokio::spawn(async move { status::run(watch, endpoints, &mut out).await });
    let two_lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() >= 2;
    watched.wait_for("two lines of status", two_lines).await;
    watching.abort();

    let followed = Shared::default();
    let (endpoints, mut out) = (cluster.endpoints(), followed.clone());
    let follow = events::Args {
        follow: true,
        volume: Some("ledger".to_owned()),
        json: false,
    };
    let following = tokio::spawn(async move { events::run(&follow, endpoints, &mut out).await });
    let says =
        |what: &'static str| move |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(what);
    followed
        .wait_for("epoch 1", says("primary of epoch 1"))
        .await;
    let other = NodeId(primary % 3 + 1);
    let to_other = promote::Args {
        volume: "ledger".to_owned(),
        to: Some(other),
        force: None,
        reason: String::new(),
        json: false,
    };
    let mut out = Vec::new();
    promote::run(&to_other, cluster.endpoints(), &mut out)
        .await
        .expect("promoted");
    let said = String::from_utf8(out).expect("text");
    // Where a machine is slow, a second witness begins, too, and a move takes more than one epoch.
    let begin = format!("node {other} is primary of `ledger` in epoch ");
    let rest = said
        .strip_prefix(&begin)
        .unwrap_or_else(|| panic!("{said}"));
    let epoch = rest.split(',').next().expect("a number");
    assert!(epoch.parse::<u64>().is_ok_and(|epoch| epoch >= 2), "{said}");
    let told = format!("primary of epoch {epoch}");
    let tells = move |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(&told);
    followed.wait_for("the new epoch", tells).await;
    following.abort();

    cluster.stop(NodeId(103)).await;
    let mut out = Vec::new();
    status::run(text, cluster.endpoints(), &mut out)
        .await
        .expect("status");
    let page = String::from_utf8(out).expect("text");
    assert!(page.contains("2 of 3 witnesses answer"), "{page}");
    cluster.shut_down().await;
}

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
