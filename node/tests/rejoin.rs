//! Copies that come back: after a clean stop, after a loss of everything, from further behind than the log reaches.

mod support;

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use mainstay_client::report::{CreateVolume, Promote};
use mainstay_client::{AttachOptions, BlockVolume, Client, ClientConfig, ReadLimits};
use mainstay_replication::MemberConfig;
use mainstay_types::{Lsn, NodeId, VolumeKind};
use mainstay_volume::VolumeConfig;
use support::{Cluster, PATIENCE, healed};

const SIZE: usize = 32 << 20;

/// Writes and remembers what they must have led to.
struct Model {
    content: Vec<u8>,
    seed: u64,
}

impl Model {
    fn next(&mut self, bound: usize) -> usize {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.seed >> 33).expect("31 bits") % bound
    }

    /// One write of any alignment, committed when this returns.
    async fn write(&mut self, disk: &BlockVolume, len: usize) {
        let offset = self.next(SIZE - len);
        let byte = u8::try_from(self.next(255)).expect("below 255") + 1;
        self.content[offset..offset + len].fill(byte);
        disk.write(offset as u64, Bytes::from(vec![byte; len]))
            .await
            .expect("committed");
    }

    async fn assert_equal(&self, disk: &BlockVolume, node: NodeId) {
        let piece = 1 << 20;
        for offset in (0..SIZE).step_by(piece) {
            let found = disk
                .read(offset as u64, u32::try_from(piece).expect("1 MiB"))
                .await
                .expect("read");
            assert!(
                found[..] == self.content[offset..offset + piece],
                "node {node}: differs behind {offset}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_gets_a_full_copy_while_writes_go_on_and_equals_the_others() {
    // So little log is kept that a copy that was away for a moment cannot be fed from it.
    let bounds = VolumeConfig {
        checkpoint_bytes: 2 << 20,
        log_keep_bytes: 2 << 20,
        tail_bytes: 1 << 20,
        ..VolumeConfig::default()
    };
    let mut cluster = Cluster::with(3, 3, bounds).await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let admin = client.admin();
    let kind = VolumeKind::Block {
        size_bytes: SIZE as u64,
    };
    admin
        .create_volume(CreateVolume::new("disk", kind))
        .await
        .expect("created");
    let attach = AttachOptions {
        name: "test".to_owned(),
        takeover: false,
    };
    let disk = client
        .block("disk")
        .attach(attach)
        .open()
        .await
        .expect("open");
    healed(&admin, "disk", 3).await;
    let mut model = Model {
        content: vec![0; SIZE],
        seed: 7,
    };

    cluster.stop(NodeId(3)).await;
    cluster.wipe(NodeId(3));
    for _ in 0..80 {
        model.write(&disk, 256 << 10).await;
    }
    cluster.restart(NodeId(3)).await;
    for _ in 0..200 {
        model.write(&disk, 1000).await;
    }
    healed(&admin, "disk", 3).await;

    for node in [NodeId(3), NodeId(1), NodeId(2)] {
        let promote = Promote {
            to: Some(node),
            ..Promote::planned("disk")
        };
        admin.promote(promote).await.expect("promoted");
        model.assert_equal(&disk, node).await;
        healed(&admin, "disk", 3).await;
    }
    cluster.shut_down().await;
}

/// A log may take seconds to read at a start, and links are up by then. A full copy that came meanwhile took the directory away from under
/// whoever read it; what was opened in the end served from files that had no name any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_full_copy_takes_the_place_of_one_that_is_being_opened() {
    let bounds = VolumeConfig {
        checkpoint_bytes: 2 << 20,
        log_keep_bytes: 2 << 20,
        tail_bytes: 1 << 20,
        member: MemberConfig {
            drop_after: Duration::from_millis(500),
            ..MemberConfig::default()
        },
        ..VolumeConfig::default()
    };
    let mut cluster = Cluster::with(3, 3, bounds).await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
    let client = client.expect("connected");
    let admin = client.admin();
    let kind = VolumeKind::Block {
        size_bytes: SIZE as u64,
    };
    let created = admin.create_volume(CreateVolume::new("disk", kind)).await;
    created.expect("created");
    let attach = AttachOptions {
        name: "test".to_owned(),
        takeover: false,
    };
    let disk = client.block("disk").attach(attach).open().await;
    let disk = disk.expect("open");
    // Of a copy that it has fed, a primary knows without asking that it needs another one.
    let promote = Promote {
        to: Some(NodeId(1)),
        ..Promote::planned("disk")
    };
    admin.promote(promote).await.expect("promoted");
    healed(&admin, "disk", 3).await;
    cluster.stop(NodeId(3)).await;
    let mut model = Model {
        content: vec![0; SIZE],
        seed: 11,
    };
    // As long as it is a member, the others keep what it lacks.
    let left = async {
        while admin
            .show_volume("disk")
            .await
            .expect("shown")
            .members
            .len()
            > 2
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let left = tokio::time::timeout(PATIENCE, left).await;
    left.expect("it leaves");
    for _ in 0..80 {
        model.write(&disk, 256 << 10).await;
    }
    // Whoever opens this waits until somebody writes to it.
    let slow = the_copy(&cluster.data_dir(NodeId(3))).join("checkpoint");
    std::fs::remove_file(&slow).expect("removed");
    let made = std::process::Command::new("mkfifo").arg(&slow).status();
    assert!(made.expect("mkfifo runs").success());
    let release = async {
        // Many times what a full copy takes to come and to be put in place.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let found = std::fs::metadata(&slow).expect("it is still there");
        assert!(found.file_type().is_fifo(), "another copy is in its place");
        let open = move || std::fs::OpenOptions::new().write(true).open(slow);
        let opened = tokio::task::spawn_blocking(open).await;
        drop(opened.expect("no panic").expect("opened"));
    };
    // It does not open, and is left as it is: whether the next full copy comes is another matter.
    tokio::join!(cluster.restart(NodeId(3)), release);
    model.assert_equal(&disk, NodeId(1)).await;
    cluster.shut_down().await;
}

/// The directory of the only copy of a node.
fn the_copy(data_dir: &Path) -> PathBuf {
    let mut found = std::fs::read_dir(data_dir.join("volumes")).expect("listed");
    found.next().expect("one copy").expect("an entry").path()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_outlives_the_stop_of_every_node_in_turn_and_of_all_at_once() {
    let mut cluster = Cluster::start().await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let admin = client.admin();
    admin
        .create_volume(CreateVolume::new("ledger", VolumeKind::Log))
        .await
        .expect("created");
    let log = client.log("ledger").open().await.expect("open");
    healed(&admin, "ledger", 3).await;
    let mut written = 0_u64;
    for node in [NodeId(1), NodeId(2), NodeId(3)] {
        cluster.stop(node).await;
        for _ in 0..50 {
            log.append(format!("record {written}"))
                .await
                .expect("committed");
            written += 1;
        }
        cluster.restart(node).await;
        healed(&admin, "ledger", 3).await;
    }
    for node in [NodeId(1), NodeId(2), NodeId(3)] {
        cluster.stop(node).await;
    }
    for node in [NodeId(3), NodeId(1), NodeId(2)] {
        cluster.restart(node).await;
    }
    log.append(format!("record {written}"))
        .await
        .expect("committed");
    written += 1;

    let (mut from, mut found) = (Lsn(1), 0_u64);
    while found < written {
        let page = log.read(from, ReadLimits::default()).await.expect("read");
        for record in &page.records {
            assert_eq!(record.data[..], *format!("record {found}").as_bytes());
            found += 1;
        }
        from = page.next;
    }
    cluster.shut_down().await;
}

/// A loss of power while a copy is removed leaves a part of it, or all of it, under a name that is no copy's: nothing of that is opened,
/// all of it is gone, and the copy that belongs here is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_being_removed_is_gone_at_the_next_start() {
    let mut cluster = Cluster::start().await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let admin = client.admin();
    for name in ["whole", "part"] {
        admin
            .create_volume(CreateVolume::new(name, VolumeKind::Log))
            .await
            .expect("created");
        healed(&admin, name, 3).await;
    }

    cluster.stop(NodeId(3)).await;
    let listed = |dir: &Path| {
        let found = std::fs::read_dir(dir).expect("listed");
        let mut paths: Vec<PathBuf> = found.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths
    };
    let volumes = cluster.data_dir(NodeId(3)).join("volumes");
    let copies = listed(&volumes);
    assert_eq!(copies.len(), 2);
    for copy in &copies {
        let removed = PathBuf::from(format!("{}.removed", copy.display()));
        std::fs::rename(copy, removed).expect("renamed");
    }
    let part = &listed(&volumes)[0];
    for path in listed(part) {
        if !path.ends_with("meta") {
            std::fs::remove_file(path).expect("removed");
        }
    }
    cluster.restart(NodeId(3)).await;
    // The logs are idle: nobody misses anything of a copy that is gone, so its node may count as well until it is back.
    let made = async {
        while listed(&volumes) != copies {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let made = tokio::time::timeout(PATIENCE, made).await;
    assert!(made.is_ok(), "there is {:?}", listed(&volumes));
    for name in ["whole", "part"] {
        healed(&admin, name, 3).await;
    }
    cluster.shut_down().await;
}
