//! Mistakes of people and garbage of strangers: each is refused with words that say what to do, and nothing is lost.
//!
//! What the configuration's checker alone can see is tested beside it (`node/src/config/tests.rs`); here the built program says it.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mainstay_node::devcluster::{Layout, Signal, Target, Wanted, random_loopback};
use mainstay_types::NodeId;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{ONE, PATIENCE, Rig, TWO, program, progress, wait_for};

/// Configurations of one data node and one witness, and nothing that runs.
struct Files {
    dir: tempfile::TempDir,
    layout: Layout,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let wanted = Wanted {
            nodes: Some(1),
            witnesses: Some(1),
            standby: None,
            host: Some(random_loopback()),
        };
        let layout = Layout::open(dir.path(), wanted).expect("a plan");
        layout
            .write_configs("", &BTreeMap::new())
            .expect("configurations");
        Self { dir, layout }
    }

    /// The data node's configuration, changed.
    fn with(&self, change: impl FnOnce(String) -> String) -> std::path::PathBuf {
        let text = fs::read_to_string(self.layout.config_path(ONE)).expect("written");
        let path = self.dir.path().join("changed.toml");
        fs::write(&path, change(text)).expect("written");
        path
    }
}

/// `mainstay node`, which must not start: its exit code and what it printed.
fn node(config: &Path) -> (Option<i32>, String) {
    let output: Output = Command::new(program())
        .args(["node", "--no-restart", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .output()
        .expect("started");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into())
}

#[track_caller]
fn refused(config: &Path, code: i32, words: &[&str]) {
    let (found, text) = node(config);
    assert_eq!(found, Some(code), "{text}");
    for words in words {
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
}

/// Configuration or data directory are wrong: a supervisor does not try again.
const EXIT_CONFIG: i32 = 78;

#[test]
fn a_wrong_configuration_is_refused_with_line_key_and_advice() {
    let files = Files::new();
    let twice = files.with(|text| text.replace("id = 101", "id = 1"));
    let words = [
        "id 1 is peers[0]",
        "give every node of the cluster its own id",
    ];
    refused(&twice, EXIT_CONFIG, &words);

    let unknown = files.with(|text| text + "\n[storage]\nsegment_mb = 4\n");
    refused(&unknown, EXIT_CONFIG, &["segment_mb", "unknown field"]);

    let none = files.with(|text| text.replace("[\"witness\"]", "[\"data\"]"));
    refused(&none, EXIT_CONFIG, &["no witness", "to three nodes"]);

    let even = files.with(|text| text.replace("[\"data\"]", "[\"data\", \"witness\"]"));
    refused(&even, EXIT_CONFIG, &["2 witnesses", "use 1 or 3 witnesses"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_node_or_cluster_is_refused_and_left_alone() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let (own, other) = (
        rig.stage.node(ONE).expect("known"),
        rig.stage.node(TWO).expect("known"),
    );
    // In use: by its own node's other process, and by somebody who gave a second node the same directory.
    let (code, text) = node(&own.config);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("stop that process first"), "{text}");
    let worker = Command::new(program())
        .args(["worker", "--instance", "00000000000000ff", "--config"])
        .arg(&own.config)
        .output()
        .expect("started");
    let text = String::from_utf8_lossy(&worker.stderr);
    assert!(
        text.contains("is in use by process") && text.contains("directory of its own"),
        "{text}"
    );
    progress(&load).await;

    rig.kill(ONE).await;
    let marked = fs::read(own.data_dir.join("identity")).expect("there");
    let text = fs::read_to_string(&other.config).expect("written");
    let stolen = rig.path().join("stolen.toml");
    let directory = |at: &Path| format!("data_dir = \"{}\"", at.display());
    let free = free_ports(&text);
    let text = free.replace(&directory(&other.data_dir), &directory(&own.data_dir));
    fs::write(&stolen, &text).expect("written");
    let words = ["belongs to node 1", "this is node 2", "nothing was changed"];
    refused(&stolen, EXIT_CONFIG, &words);
    let foreign =
        text.replacen("id = 2", "id = 1", 1)
            .replacen("cluster = \"dev-", "cluster = \"not-", 1);
    fs::write(&stolen, foreign).expect("written");
    let words = ["belongs to node 1 of cluster", "data_dir"];
    refused(&stolen, EXIT_CONFIG, &words);
    let after = fs::read(own.data_dir.join("identity")).expect("there");
    assert_eq!(after, marked, "left alone");

    rig.restart(ONE).await;
    rig.end(load).await;
}

/// The same node on ports that nobody uses.
fn free_ports(config: &str) -> String {
    let own = config.find("[[peers]]").expect("peers");
    let (own, peers) = config.split_at(own);
    let lines = own.lines().map(|line| match line.split_once(" = ") {
        Some((key @ ("grpc" | "nbd" | "http"), _)) => format!("{key} = \"127.0.0.1:0\""),
        _ => line.to_owned(),
    });
    let own: Vec<String> = lines.collect();
    format!("{}\n{peers}", own.join("\n"))
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let files = Files::new();
    let config = mainstay_node::config::Config::load(&files.layout.config_path(ONE));
    let address = config.expect("good").node.grpc.0;
    let _taken = TcpListener::bind(address).expect("free");
    let port = address.port().to_string();
    refused(
        &files.layout.config_path(ONE),
        1,
        &["grpc", &port, "in use"],
    );
}

/// Bytes of the log's header are overwritten while the node is down: the copy is not taken for an empty one, the cluster goes
/// on without it, and nothing is formatted over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_header_is_reported_and_the_copy_is_kept() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    rig.kill(before.node).await;
    let data_dir = rig.stage.node(before.node).expect("known").data_dir;
    let segments = segments(&data_dir.join("volumes"));
    for segment in &segments {
        let mut bytes = fs::read(segment).expect("read");
        bytes[..64].fill(0xdb);
        fs::write(segment, bytes).expect("written");
    }
    rig.restart(before.node).await;
    progress(&load).await;
    assert_ne!(rig.primary().await.node, before.node, "it is not promoted");
    let said = wait_for("a word about it", PATIENCE, async || {
        let log = fs::read_to_string(rig.stage.node(before.node).ok()?.log).ok()?;
        let line = log
            .lines()
            .find(|line| line.contains("damaged") || line.contains("does not open"));
        line.map(str::to_owned)
    });
    println!("{}", said.await);
    let node = format!("node {} is not well", before.node);
    wait_for("a status that tells", PATIENCE, async || {
        let (_, status) = rig.mainstay(&["status"]).await;
        (status.contains(&node) && status.contains("log damaged from 1")).then_some(())
    })
    .await;
    for segment in &segments {
        let bytes = fs::read(segment).expect("kept");
        assert!(
            bytes[..64].iter().all(|byte| *byte == 0xdb),
            "kept as it is"
        );
    }
    let model = load.stop().await.expect("settled");
    let proof = mainstay_node::demo::ledger::prove(
        &rig.stage.client,
        mainstay_node::demo::cluster::LEDGER,
        &model,
    );
    let proof = proof.await.expect("the log reads back");
    assert!(proof.holds(), "{proof:#?}");
    rig.stop().await;
}

/// Log segments of every volume.
fn segments(volumes: &Path) -> Vec<std::path::PathBuf> {
    let entries = |dir: &Path| -> Vec<_> {
        let entries = fs::read_dir(dir).expect("there");
        entries.map(|entry| entry.expect("read").path()).collect()
    };
    let files = entries(volumes).into_iter().flat_map(|dir| entries(&dir));
    let is_segment = |path: &std::path::PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy();
        name.starts_with("wal-") && !name.ends_with(".tmp")
    };
    files.filter(is_segment).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_refuse_what_cannot_be_and_say_what_can() {
    let rig = Rig::start().await;
    let odd = [
        "volume", "create", "odd", "--kind", "block", "--size", "10000",
    ];
    let (ok, text) = rig.mainstay(&odd).await;
    assert!(
        !ok && text.contains("8192") && text.contains("12288"),
        "{text}"
    );
    let (ok, text) = rig.mainstay(&["log", "read", "nothing"]).await;
    assert!(!ok && text.contains("mainstay volume list"), "{text}");
    let (ok, text) = rig.mainstay(&["log", "read", "disk"]).await;
    assert!(!ok && text.contains("of the other kind"), "{text}");

    // One line above the limit: those before it are written, and the message says which it was.
    let large = rig.path().join("large");
    let mut lines = b"first\n".to_vec();
    lines.extend(vec![b'x'; (16 << 20) + 1]);
    fs::write(&large, lines).expect("written");
    let output = tokio::process::Command::new(program())
        .args(["log", "append", "ledger", "--endpoints"])
        .arg(rig.stage.dev.endpoints().join(","))
        .stdin(fs::File::open(&large).expect("there"))
        .output()
        .await
        .expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("16777216"), "{text}");
    let (ok, text) = rig.mainstay(&["log", "read", "ledger"]).await;
    assert_eq!((ok, text.as_str()), (true, "first\n"));
    rig.stop().await;
}

/// Every port of every node is sent noise, beginnings of the right protocol with noise behind them, and silence. All nodes
/// still run, and serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_port_leaves_every_node_serving() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let nodes = rig.stage.dev.status().nodes;
    let mut random = StdRng::seed_from_u64(71);
    let mut noise = vec![0; 64 << 10];
    random.fill_bytes(&mut noise);
    let starts: [&[u8]; 5] = [
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ];
    let mut silent = Vec::new();
    for node in &nodes {
        for address in [Some(&node.grpc), node.nbd.as_ref(), Some(&node.http)] {
            let Some(address) = address else { continue };
            for start in starts {
                let mut stream = TcpStream::connect(address).await.expect("a port");
                // The other side may hang up at any byte.
                let _cut = stream.write_all(&[start, &noise].concat()).await;
                let _cut = stream.shutdown().await;
                let mut answer = Vec::new();
                let read = stream.read_to_end(&mut answer);
                let _cut = tokio::time::timeout(Duration::from_millis(200), read).await;
            }
            silent.push(TcpStream::connect(address).await.expect("a port"));
        }
    }
    progress(&load).await;
    let after = rig.stage.dev.status().nodes;
    for (before, after) in nodes.iter().zip(&after) {
        assert_eq!(before.worker_pid, after.worker_pid, "node {}", before.id);
    }
    let (ok, text) = rig.mainstay(&["status"]).await;
    assert!(ok && text.contains("no problems"), "{text}");
    let address = rig.stage.nbd(NodeId(3)).expect("exports");
    let nbd = mainstay_node::demo::nbd_client::NbdClient::connect(&address, "disk").await;
    nbd.expect("exports are served");
    // The supervisors' way to the witnesses is open, too.
    let before = rig.primary().await;
    let killed = rig
        .stage
        .dev
        .kill(before.node, Signal::KILL, Target::Worker);
    killed.await.expect("it is there");
    rig.served_above(before.epoch).await;
    drop(silent);
    let recovered = mainstay_node::demo::faults::FaultKind::Process;
    rig.stage
        .recover(recovered, before.node)
        .await
        .expect("it starts");
    rig.whole().await;
    rig.end(load).await;
}
