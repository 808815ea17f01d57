//! Blocks that rot in one copy's files while the cluster runs: read through, checkpointed over, found by the scrub, and lost everywhere.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use mainstay_client::report::{CreateVolume, Promote};
use mainstay_client::{AttachOptions, BlockVolume, Client, ClientConfig, ReadError, Refusal};
use mainstay_node::runtime::Settings;
use mainstay_proto::v1::EventKind;
use mainstay_types::{NodeId, VolumeKind};
use support::{Cluster, PATIENCE};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;
const ALL: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

struct Rig {
    cluster: Cluster,
    disk: BlockVolume,
    primary: NodeId,
}

/// The byte that fills a block of the volume.
fn fill(block: u64) -> u8 {
    u8::try_from(block % 251).expect("below 251") + 1
}

fn narrow(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}

impl Rig {
    /// A volume whose content is in the files of all copies.
    async fn start(tune: impl Fn(&mut Settings)) -> Self {
        let mut cluster = Cluster::tuned(3, 3, |settings| {
            settings.volume.checkpoint_bytes = 1 << 20;
            tune(settings);
        })
        .await;
        let config = ClientConfig::new(cluster.endpoints());
        let client = Client::connect(config).await.expect("connected");
        let kind = VolumeKind::Block {
            size_bytes: BLOCKS * BLOCK as u64,
        };
        let admin = client.admin();
        let created = admin.create_volume(CreateVolume::new("disk", kind)).await;
        created.expect("created");
        support::healed(&admin, "disk", 3).await;
        let disk = client.block("disk").attach(AttachOptions {
            name: "test".to_owned(),
            takeover: false,
        });
        let disk = disk.open().await.expect("opened");
        for first in (0..BLOCKS).step_by(64) {
            let blocks = first..first + 64;
            let data: Vec<u8> = blocks.flat_map(|block| [fill(block); BLOCK]).collect();
            let written = disk.write(first * BLOCK as u64, Bytes::from(data)).await;
            written.expect("committed");
        }
        support::healed(&admin, "disk", 3).await;
        // A clean stop writes a checkpoint. What a copy may apply only after it is of the last writes.
        cluster.stop_together(&ALL).await;
        for node in ALL {
            cluster.restart(node).await;
        }
        support::healed(&admin, "disk", 3).await;
        let primary = admin.show_volume("disk").await.expect("shown").primary;
        Self {
            cluster,
            disk,
            primary,
        }
    }

    async fn write(&self, offset: u64, data: Vec<u8>) {
        let written = self.disk.write(offset, Bytes::from(data)).await;
        written.expect("committed");
    }

    fn file(&self, node: NodeId, name: &str) -> File {
        let volumes = self.cluster.node(node).volumes();
        let path = volumes[0].dir.join(name);
        let file = File::options().read(true).write(true).open(path);
        file.expect("a file of the copy")
    }

    /// Rots a block of one copy where it lies.
    fn rot(&self, node: NodeId, block: u64) {
        let file = self.file(node, "image");
        file.write_all_at(&[0xee; 3], block * BLOCK as u64 + 100)
            .expect("written");
    }

    fn holds(&self, node: NodeId, block: u64) -> Vec<u8> {
        let mut found = vec![0; BLOCK];
        let read = self
            .file(node, "image")
            .read_exact_at(&mut found, block * BLOCK as u64);
        read.expect("read");
        found
    }

    /// Waits until a block is what it should be in the file of a copy.
    async fn stored(&self, node: NodeId, block: u64) {
        self.becomes(node, block, &[fill(block); BLOCK]).await;
    }

    async fn becomes(&self, node: NodeId, block: u64, wanted: &[u8]) {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        while self.holds(node, block) != wanted {
            let late = tokio::time::Instant::now() >= give_up;
            assert!(!late, "block {block} of node {node} is not in its file");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn replica(&self) -> NodeId {
        *ALL.iter().find(|node| **node != self.primary).expect("two")
    }

    fn repaired(&self, node: NodeId) -> u64 {
        let volumes = self.cluster.node(node).volumes();
        volumes[0].repairs.repaired.load(Ordering::Relaxed)
    }

    fn said(&self, node: NodeId, kind: EventKind) -> bool {
        let events = self.cluster.node(node).events.since(0);
        events.iter().any(|event| event.kind() == kind)
    }

    async fn end(self) {
        drop(self.disk);
        self.cluster.shut_down().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_rotten_blocks_gets_them_from_another_copy_and_the_file_does_too() {
    let rig = Rig::start(|_| {}).await;
    let rotten = [3, 4, 5, 200, 700];
    for block in rotten {
        rig.rot(rig.primary, block);
    }
    let len = u32::try_from(BLOCKS * BLOCK as u64).expect("4 MiB");
    let found = rig.disk.read(0, len).await.expect("read");
    for block in 0..BLOCKS {
        let at = narrow(block) * BLOCK;
        assert!(
            found[at..at + BLOCK] == [fill(block); BLOCK],
            "block {block}"
        );
    }
    for block in rotten {
        // Nothing is written to the volume: the repair has its own checkpoint.
        rig.stored(rig.primary, block).await;
    }
    assert_eq!(rig.repaired(rig.primary), 5);
    assert!(rig.said(rig.primary, EventKind::Repaired));
    assert!(!rig.said(rig.primary, EventKind::DamageFound));
    rig.end().await;
}

/// A checkpoint needs what is below a part-write. Without a repair none of that copy would ever end again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_write_over_a_rotten_block_of_a_replica_is_checkpointed() {
    let rig = Rig::start(|_| {}).await;
    let replica = rig.replica();
    rig.rot(replica, 7);
    let offset = 7 * BLOCK as u64;
    rig.write(offset + 1000, vec![0xaa; 10]).await;
    for first in (512..1024).step_by(64) {
        rig.write(first * BLOCK as u64, vec![0xbb; 64 * BLOCK])
            .await;
    }
    let mut wanted = [fill(7); BLOCK];
    wanted[1000..1010].fill(0xaa);
    rig.becomes(replica, 7, &wanted).await;
    assert_eq!(rig.repaired(replica), 1);
    rig.end().await;
}

/// The order of events: a part-write over a rotten block, then more in one go than two shares, so that no room is left for repairs; the
/// checkpoint that would make room needs the block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_a_checkpoint_needs_does_not_wait_for_memory() {
    let rig = Rig::start(|_| {}).await;
    let replica = rig.replica();
    rig.rot(replica, 7);
    rig.write(7 * BLOCK as u64 + 1000, vec![0xaa; 10]).await;
    rig.write(256 * BLOCK as u64, vec![0xbb; 768 * BLOCK]).await;
    let mut wanted = [fill(7); BLOCK];
    wanted[1000..1010].fill(0xaa);
    rig.becomes(replica, 7, &wanted).await;
    rig.becomes(replica, 1023, &[0xbb; BLOCK]).await;
    rig.end().await;
}

/// The order of events: one block is lost everywhere, so that whoever reads it waits for as long as a repair may take; meanwhile another one is
/// read that the other copies have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_what_nobody_has_keeps_no_one_from_what_is_to_be_had() {
    let rig = Rig::start(|_| {}).await;
    for node in ALL {
        rig.rot(node, 9);
    }
    rig.rot(rig.primary, 500);
    let len = u32::try_from(BLOCK).expect("4 KiB");
    let (lost, found) = tokio::join!(
        rig.disk.read(9 * BLOCK as u64, len),
        rig.disk.read(500 * BLOCK as u64, len)
    );
    assert!(
        matches!(lost, Err(ReadError::Refused(Refusal::Unreadable))),
        "{lost:?}"
    );
    assert!(found.expect("read")[..] == [fill(500); BLOCK]);
    rig.end().await;
}

/// The order of events: the checkpoint of a clean stop needs a block that no copy has. What it cannot write is in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_repair() {
    let mut rig = Rig::start(|_| {}).await;
    for node in ALL {
        rig.rot(node, 9);
    }
    rig.write(9 * BLOCK as u64 + 1000, vec![0xaa; 10]).await;
    // It has applied the write, and hands over first.
    let stopped = rig.primary;
    let began = tokio::time::Instant::now();
    rig.cluster.stop(stopped).await;
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(4),
        "{took:?}: a repair takes five"
    );
    rig.write(9 * BLOCK as u64, vec![fill(9); BLOCK]).await;
    rig.cluster.restart(stopped).await;
    rig.end().await;
}

/// A page of checksums speaks for 255 blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_page_of_checksums_is_made_good_for_reads_and_for_the_map() {
    let mut rig = Rig::start(|_| {}).await;
    let replica = rig.replica();
    rig.file(replica, "image.sums")
        .write_all_at(&[0xee; 9], 40)
        .expect("written");
    // It has the page in memory until it starts again; and its copy is read once it is primary.
    rig.cluster.stop(replica).await;
    rig.cluster.restart(replica).await;
    let others: Vec<NodeId> = ALL.into_iter().filter(|node| *node != replica).collect();
    let client = Client::connect(ClientConfig::new(rig.cluster.endpoints()))
        .await
        .expect("connected");
    support::healed(&client.admin(), "disk", 3).await;
    let planned = Promote::planned("disk");
    let to = Some(replica);
    let moved = client.admin().promote(Promote { to, ..planned }).await;
    moved.expect("moved");
    let extents = rig
        .disk
        .allocation(0, 255 * BLOCK as u64, 16)
        .await
        .expect("told");
    assert!(extents.iter().all(|extent| extent.data), "{extents:?}");
    let found = rig.disk.read(254 * BLOCK as u64, 4096).await.expect("read");
    assert!(found[..] == [fill(254); BLOCK]);
    assert_eq!(rig.repaired(replica), 255);
    assert_eq!(
        others.iter().map(|node| rig.repaired(*node)).sum::<u64>(),
        0
    );
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_copy_has_is_an_error_and_everything_else_is_served() {
    let rig = Rig::start(|_| {}).await;
    for node in ALL {
        rig.rot(node, 9);
    }
    rig.rot(rig.primary, 10);
    let offset = 9 * BLOCK as u64;
    let lost = rig.disk.read(offset, 4096).await;
    assert!(
        matches!(lost, Err(ReadError::Refused(Refusal::Unreadable))),
        "{lost:?}"
    );
    assert!(rig.said(rig.primary, EventKind::DamageFound));
    let beside = rig
        .disk
        .read(offset + BLOCK as u64, 4096)
        .await
        .expect("read");
    assert!(beside[..] == [fill(10); BLOCK]);
    rig.write(offset, vec![0xcc; BLOCK]).await;
    let found = rig.disk.read(offset, 4096).await.expect("written anew");
    assert!(found[..] == [0xcc; BLOCK]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_finds_what_nobody_asks_for() {
    let period = Duration::from_millis(500);
    let rig = Rig::start(|settings| settings.scrub_period = Some(period)).await;
    for node in ALL {
        rig.rot(node, 300 + u64::from(node.0));
    }
    for node in ALL {
        rig.stored(node, 300 + u64::from(node.0)).await;
        assert_eq!(rig.repaired(node), 1);
    }
    rig.end().await;
}
