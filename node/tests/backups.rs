//! Incremental backups over NBD: the script of `docs/nbd.md`, and what it relies on, against a real cluster in this process.

mod support;
mod tools;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mainstay_client::report::{CreateVolume, Promote};
use mainstay_client::{AttachOptions, BlockVolume, ChangePoint, Client, ClientConfig};
use mainstay_node::nbd_export::{Terms, VolumeExports, serve};
use mainstay_types::{NodeId, VolumeKind};
use mainstay_volume::VolumeConfig;
use support::{Cluster, PATIENCE, healed};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const SIZE: u64 = 96 << 20;
const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const TOOLS: [&str; 4] = ["nbdinfo", "qemu-img", "qemu-io", "sh"];

/// A cluster with the volume `disk`, held by one client, and a gateway.
struct Fixture {
    cluster: Cluster,
    client: Client,
    disk: BlockVolume,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Fixture {
    async fn start() -> Self {
        // So little log is kept that a copy that was away for a moment cannot be fed from it.
        let bounds = VolumeConfig {
            checkpoint_bytes: 2 << 20,
            log_keep_bytes: 2 << 20,
            tail_bytes: 1 << 20,
            ..VolumeConfig::default()
        };
        let cluster = Cluster::with(3, 3, bounds).await;
        let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
        let client = client.expect("connected");
        create(&client).await;
        let disk = hold(&client).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let exports = VolumeExports::all(client.clone(), PATIENCE);
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _dropped = stopped.await;
            };
            serve(listener, exports, Terms::default(), stopped).await;
        });
        Self {
            cluster,
            client,
            disk,
            address,
            stop,
            serving,
        }
    }

    fn uri(&self) -> String {
        format!("nbd://{}/disk:ro", self.address)
    }

    async fn write(&self, offset: u64, len: u64, fill: u8) {
        let data = vec![fill; usize::try_from(len).expect("small")];
        self.disk.write(offset, data).await.expect("committed");
    }

    /// The context of the changes since now.
    async fn point(&self) -> String {
        let info = tools::run("nbdinfo", &["--json", &self.uri()]).await;
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        let contexts = info["exports"][0]["contexts"].as_array().expect("some");
        let names: Vec<_> = contexts.iter().filter_map(|name| name.as_str()).collect();
        let [_, point] = names[..] else {
            panic!("{names:?}");
        };
        assert!(point.starts_with("mainstay:changed-since/"), "{point}");
        point.to_owned()
    }

    /// What changed since: offsets and lengths.
    async fn changes(&self, context: &str) -> Result<Vec<(u64, u64)>, String> {
        let map = format!("--map={context}");
        let told = tools::try_run("nbdinfo", &["--json", &map, &self.uri()]).await?;
        let told: Vec<serde_json::Value> = serde_json::from_str(&told).expect("JSON");
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        let mut end = 0;
        let mut changes = Vec::new();
        for extent in &told {
            let (offset, len) = (number(&extent["offset"]), number(&extent["length"]));
            assert_eq!(offset, end, "without a gap");
            end += len;
            match number(&extent["type"]) {
                0 => {}
                1 => changes.push((offset, len)),
                other => panic!("flags {other}"),
            }
        }
        assert_eq!(end, SIZE);
        Ok(changes)
    }

    async fn promote(&self, node: NodeId) {
        let promote = Promote {
            to: Some(node),
            ..Promote::planned("disk")
        };
        self.client
            .admin()
            .promote(promote)
            .await
            .expect("promoted");
        healed(&self.client.admin(), "disk", 3).await;
    }

    async fn stop(self) {
        let _running = self.stop.send(());
        self.serving.await.expect("no panic");
        self.cluster.shut_down().await;
    }
}

async fn create(client: &Client) {
    let kind = VolumeKind::Block { size_bytes: SIZE };
    let created = client
        .admin()
        .create_volume(CreateVolume::new("disk", kind))
        .await;
    created.expect("created");
    healed(&client.admin(), "disk", 3).await;
}

async fn hold(client: &Client) -> BlockVolume {
    let attach = AttachOptions::named("somebody");
    let opened = client.block("disk").attach(attach).open().await;
    opened.expect("attached")
}

/// Every member tells the same changes since every point: the one that was fed, the one that lost everything and got a full copy, and
/// each after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn points_hold_across_failovers_full_copies_and_restarts() {
    if !TOOLS.into_iter().all(tools::require) {
        return;
    }
    let mut fixture = Fixture::start().await;
    let beginning = "mainstay:changed-since/0".to_owned();
    assert_eq!(fixture.changes(&beginning).await, Ok(vec![]));

    fixture.write(MIB, MIB, 1).await;
    // A part of a block, across the place up to which one question to the primary looks.
    fixture.write(64 * MIB - 25, 50, 2).await;
    let first = fixture.point().await;
    assert_eq!(fixture.changes(&first).await, Ok(vec![]));
    let since_first = [
        // The same bytes again, a part of a block, a trim, and zeroes where nothing was.
        (MIB, BLOCK),
        (MIB + 8 * BLOCK, BLOCK),
        (MIB + MIB / 2, 16 * BLOCK),
        (40 * MIB, BLOCK),
    ];
    fixture.write(MIB, BLOCK, 1).await;
    fixture.write(MIB + 8 * BLOCK + 7, 1, 3).await;
    let trimmed = fixture.disk.trim(MIB + MIB / 2, 16 * BLOCK).await;
    trimmed.expect("committed");
    let zeroed = fixture.disk.write_zeroes(40 * MIB, BLOCK, false).await;
    zeroed.expect("committed");
    assert_eq!(fixture.changes(&first).await, Ok(since_first.to_vec()));
    let second = fixture.point().await;

    // A node loses everything, and gets a full copy while the volume is written.
    fixture.cluster.stop(NodeId(3)).await;
    fixture.cluster.wipe(NodeId(3));
    for block in 0..80 {
        fixture.write(50 * MIB + block * 65_536, 65_536, 4).await;
    }
    fixture.cluster.restart(NodeId(3)).await;
    for block in 0..20 {
        fixture.write(20 * MIB + block * 65_536, 1000, 5).await;
    }
    let admin = fixture.client.admin();
    healed(&admin, "disk", 3).await;
    let third = fixture.point().await;

    let small: Vec<_> = (0..20).map(|n| (20 * MIB + n * 65_536, BLOCK)).collect();
    let large = (50 * MIB, 5 * MIB);
    let since_second = [&small[..], &[large]].concat();
    let since_first = [&since_first[..3], &small, &[since_first[3], large]].concat();
    let (begin, end) = ((MIB, MIB), (64 * MIB - BLOCK, 2 * BLOCK));
    let since_beginning = [&[begin][..], &since_first[3..], &[end]].concat();
    for node in [3, 2, 1, 3] {
        fixture.promote(NodeId(node)).await;
        let told = async |point: &String| fixture.changes(point).await.expect("told");
        assert_eq!(told(&third).await, [], "node {node}");
        assert_eq!(told(&second).await, since_second, "node {node}");
        assert_eq!(told(&first).await, since_first, "node {node}");
        assert_eq!(told(&beginning).await, since_beginning, "node {node}");
        // The next round finds this one restarted.
        fixture.cluster.stop(NodeId(node)).await;
        fixture.cluster.restart(NodeId(node)).await;
        healed(&admin, "disk", 3).await;
    }
    fixture.stop().await;
}

/// What is asked about a volume that took the name of another, or about a time that has not come, is not answered from what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_point_of_another_history_is_not_matched() {
    if !TOOLS.into_iter().all(tools::require) {
        return;
    }
    let fixture = Fixture::start().await;
    fixture.write(0, BLOCK, 1).await;
    let old = fixture.point().await;
    let known = fixture.disk.change_point().await.expect("told");
    for unknown in [
        format!("mainstay:changed-since/{}", known.lsn.0 + 1000),
        "mainstay:changed-since/1@00000000deadbeef".to_owned(),
        "mainstay:changed-since/".to_owned(),
        "mainstay:changed-since/one".to_owned(),
    ] {
        let told = fixture.changes(&unknown).await;
        assert!(told.is_err(), "{unknown}: {told:?}");
    }
    let future = ChangePoint {
        lsn: mainstay_types::Lsn(known.lsn.0 + 1000),
        ..known
    };
    let told = fixture.disk.changes(future, 0, SIZE, 9).await;
    assert!(told.expect("told").iter().all(|part| part.changed));

    let held = fixture.disk.clone();
    held.close().await.expect("closed");
    let admin = fixture.client.admin();
    admin.delete_volume("disk", false).await.expect("deleted");
    create(&fixture.client).await;
    let disk = hold(&fixture.client).await;
    for _ in 0..20 {
        disk.write(BLOCK, vec![2; 4096]).await.expect("committed");
    }
    let told = fixture.changes(&old).await;
    assert!(told.is_err(), "{old}: {told:?}");
    let told = disk.changes(known, 0, SIZE, 9).await.expect("told");
    assert!(told.iter().all(|part| part.changed), "{told:?}");
    let new = fixture.point().await;
    assert_eq!(fixture.changes(&new).await, Ok(vec![]));
    fixture.stop().await;
}

/// Changes that a backup has may be given up, and their numbers be given to others.
#[tokio::test(flavor = "multi_thread")]
async fn a_forced_promotion_begins_another_history() {
    if !TOOLS.into_iter().all(tools::require) {
        return;
    }
    let mut fixture = Fixture::start().await;
    fixture.write(0, BLOCK, 1).await;
    fixture.cluster.stop(NodeId(3)).await;
    for block in 1..20 {
        fixture.write(block * BLOCK, BLOCK, 1).await;
    }
    let old = fixture.point().await;
    let known = fixture.disk.change_point().await.expect("told");
    let lost = [NodeId(1), NodeId(2)];
    fixture.cluster.stop_together(&lost).await;
    fixture.cluster.restart(NodeId(3)).await;
    let client = Client::connect(ClientConfig::new(fixture.cluster.endpoints())).await;
    let client = client.expect("connected");
    let forced = Promote {
        to: Some(NodeId(3)),
        force: true,
        accept_data_loss: true,
        declared_off: lost.to_vec(),
        min_copies: 1,
        ..Promote::planned("disk")
    };
    client.admin().promote(forced).await.expect("forced");
    let disk = hold(&client).await;
    for _ in 0..40 {
        disk.write(BLOCK, vec![2; 4096]).await.expect("committed");
    }
    let now = disk.change_point().await.expect("told");
    assert!(now.lsn > known.lsn && now.lineage != known.lineage);
    // Blocks that were given up read otherwise now, and nothing was written there since.
    let told = disk.changes(known, 0, SIZE, 9).await.expect("told");
    assert!(told.iter().all(|part| part.changed), "{told:?}");
    let told = fixture.changes(&old).await;
    assert!(told.is_err(), "{old}: {told:?}");
    let new = fixture.point().await;
    assert_eq!(fixture.changes(&new).await, Ok(vec![]));
    fixture.stop().await;
}

/// The script between the fences of `docs/nbd.md`.
fn script() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nbd.md");
    let text = std::fs::read_to_string(path).expect("read");
    let (_, rest) = text
        .split_once("```sh\n#!/bin/sh\n# backup.sh")
        .expect("a script");
    let (script, _) = rest.split_once("\n```\n").expect("its end");
    format!("# backup.sh{script}\n")
}

async fn back_up(fixture: &Fixture, dir: &Path) -> String {
    let dir = dir.to_str().expect("text");
    let arguments = ["-c", &script(), "backup.sh", &fixture.uri(), dir];
    tools::run("sh", &arguments).await.trim().to_owned()
}

async fn compare(fixture: &Fixture, backup: &Path) {
    let backup = backup.to_str().expect("text");
    let arguments = [
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        backup,
        &fixture.uri(),
    ];
    tools::run("qemu-img", &arguments).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_script_backs_up_and_restores() {
    if !TOOLS.into_iter().all(tools::require) {
        return;
    }
    let fixture = Fixture::start().await;
    let dir = fixture.cluster.scratch().join("backups");
    fixture.write(0, 10 * MIB, 1).await;
    fixture.write(10 * MIB, 10 * MIB, 1).await;
    fixture.write(60 * MIB, MIB, 2).await;
    assert_eq!(back_up(&fixture, &dir).await, "backup 1 is exact");
    compare(&fixture, &dir.join("1")).await;

    // The next one holds what changed, what was given back included, and not much more.
    fixture.write(5 * MIB + 1, 1, 3).await;
    let trimmed = fixture.disk.trim(60 * MIB, MIB).await;
    trimmed.expect("committed");
    fixture.promote(NodeId(2)).await;
    assert_eq!(back_up(&fixture, &dir).await, "backup 2 is exact");
    compare(&fixture, &dir.join("2")).await;
    let bytes = std::fs::metadata(dir.join("2")).expect("there").len();
    assert!(bytes < 2 * MIB, "{bytes} bytes");

    // Overtaken by a writer, across a failover.
    let done = Arc::new(AtomicBool::new(false));
    let (disk, stop) = (fixture.disk.clone(), Arc::clone(&done));
    let writer = tokio::spawn(async move {
        let mut count = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let offset = count * 7 % 1000 * (BLOCK + 100);
            let fill = u8::try_from(count % 251).expect("below 251");
            disk.write(offset, vec![fill; 5000])
                .await
                .expect("committed");
            count += 1;
        }
    });
    let overtaken = back_up(&fixture, &dir).await;
    assert_eq!(overtaken, "backup 3 was overtaken by writes: run again");
    fixture.promote(NodeId(3)).await;
    done.store(true, Ordering::Relaxed);
    writer.await.expect("no panic");
    assert_eq!(back_up(&fixture, &dir).await, "backup 4 is exact");
    compare(&fixture, &dir.join("4")).await;

    // Exact ones stay what they were.
    let restored = fixture.cluster.scratch().join("restored");
    let restored = restored.to_str().expect("text");
    let backup = dir.join("2");
    let backup = backup.to_str().expect("text");
    let arguments = ["convert", "-f", "qcow2", "-O", "raw", backup, restored];
    tools::run("qemu-img", &arguments).await;
    let bytes = std::fs::read(restored).expect("read");
    let at = |offset: u64| bytes[usize::try_from(offset).expect("small")];
    assert_eq!((at(0), at(5 * MIB), at(5 * MIB + 1)), (1, 1, 3));
    assert_eq!((at(20 * MIB), at(60 * MIB)), (0, 0));
    fixture.stop().await;
}
