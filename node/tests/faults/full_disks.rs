//! Disks without room: faults 29 to 31. Writes wait, everything else goes on, and no restart is needed once there is room.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_client::report::CreateVolume;
use mainstay_client::{AdminError, Client, ClientConfig, ReadLimits};
use mainstay_node::demo::cluster::{DISK, LEDGER};
use mainstay_types::{Lsn, NodeId, VolumeKind};

use crate::rig::{
    NOTHING_FOR, ONE, PATIENCE, Rig, Setup, THREE, TWO, WITNESSES, progress, wait_for,
};
use crate::sandbox::{elsewhere, mount_small};

/// Small segments, so that a log soon needs room; checkpoints all the time, so that they need it, too.
const BUSY_STORAGE: &str = "[storage]\nsegment_mib = 1\ncheckpoint_wal_mib = 1\n";

/// Far more than the logs of both volumes that are kept for copies which were away, without the ballast.
const DISK_MIB: u32 = 400;

/// Longer than a node takes to start.
const FULL_FOR: Duration = Duration::from_secs(3);

/// Takes all the room there is on a file system, until it is dropped.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(at: &Path) -> Self {
        let path = at.join("ballast");
        let mut file = std::fs::File::create(&path).expect("made");
        let mut bytes = vec![1; 1 << 20];
        // Down to the last page.
        while !bytes.is_empty() {
            if std::io::Write::write_all(&mut file, &bytes).is_err() {
                bytes.truncate(bytes.len() / 2);
            }
        }
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// Faults 29 and 30, one disk at a time: it stops being primary, and is a member in step again once it has room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_full_disk_stops_nobody_and_its_node_comes_back_by_itself() {
    let name = "full_disks::one_full_disk_stops_nobody_and_its_node_comes_back_by_itself";
    if elsewhere(name, &["mount"]) {
        return;
    }
    let setup = Setup::new().config(BUSY_STORAGE);
    let at = setup.data_dir(ONE);
    mount_small(&at, DISK_MIB);
    let rig = setup.start().await;
    let load = rig.load().await;
    let disk = rig.disk_load(TWO).await;
    let before = rig.primary().await;
    assert_eq!(before.node, ONE);
    let worker = rig.worker(ONE);
    let ballast = Ballast::fill(&at);
    let after = rig.stage.wait_serving(LEDGER, before.epoch, PATIENCE).await;
    assert_ne!(after.expect("another primary").node, ONE);
    progress(&load).await;
    Rig::goes_on(&disk).await;
    let (_, status) = rig.mainstay(&["status"]).await;
    println!("{status}");
    drop(ballast);
    rig.whole().await;
    rig.stage.wait_whole(DISK).await.expect("whole");
    assert_eq!(rig.worker(ONE), worker, "without a restart");
    rig.disk_ends_equal(disk).await;
    rig.prove(load, true).await;
    rig.stop().await;
}

/// Fault 29 at a start: what could not be opened or written is, once there is room, and nobody starts the node again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_on_a_full_disk_comes_back_by_itself() {
    let name = "full_disks::a_node_that_starts_on_a_full_disk_comes_back_by_itself";
    if elsewhere(name, &["mount"]) {
        return;
    }
    let setup = Setup::new().config(BUSY_STORAGE);
    let at = setup.data_dir(ONE);
    mount_small(&at, DISK_MIB);
    let rig = setup.start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    rig.kill(ONE).await;
    let ballast = Ballast::fill(&at);
    rig.served_above(before.epoch).await;
    let full = async {
        tokio::time::sleep(FULL_FOR).await;
        drop(ballast);
    };
    // It is said to run once its run file says so, which takes room.
    tokio::join!(rig.restart(ONE), full);
    progress(&load).await;
    rig.whole().await;
    rig.stage.wait_whole(DISK).await.expect("whole");
    rig.prove(load, true).await;
    rig.stop().await;
}

/// A copy that found no room was not made before the next change of the register, or the next start; and each attempt to create a volume
/// left what it had written, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_finds_no_room_is_made_once_there_is_some() {
    let name = "full_disks::a_copy_that_finds_no_room_is_made_once_there_is_some";
    if elsewhere(name, &["mount"]) {
        return;
    }
    let setup = Setup::new().config(BUSY_STORAGE);
    let at = setup.data_dir(THREE);
    mount_small(&at, DISK_MIB);
    let rig = setup.start().await;
    rig.whole().await;
    rig.stage.wait_whole(DISK).await.expect("whole");
    let worker = rig.worker(THREE);
    let ballast = Ballast::fill(&at);
    let copies = || {
        let copies = std::fs::read_dir(at.join("volumes")).expect("there");
        copies.count()
    };
    let before = copies();
    let create = async |name: &str, placement: &[NodeId]| {
        let mut wanted = CreateVolume::new(name, VolumeKind::Log);
        wanted.placement = placement.to_vec();
        rig.stage.client.admin().create_volume(wanted).await
    };
    for name in ["refused", "refused-too"] {
        let made = create(name, &[THREE, ONE, TWO]).await;
        assert!(made.is_err(), "without room: {made:?}");
    }
    assert_eq!(copies(), before, "what was refused leaves nothing");

    create("more", &[ONE, TWO, THREE]).await.expect("created");
    wait_for("two members", PATIENCE, async || {
        let status = rig.stage.client.admin().show_volume("more").await.ok()?;
        (status.members.len() >= 2).then_some(())
    })
    .await;
    tokio::time::sleep(FULL_FOR).await;
    assert_eq!(copies(), before);
    drop(ballast);
    rig.stage.wait_whole("more").await.expect("whole");
    assert_eq!(rig.worker(THREE), worker, "without a restart");
    rig.stop().await;
}

/// Fault 29 where no other disk has room either: writes wait, reads and questions are answered, and all of it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_disks_are_full_writes_wait_and_reads_go_on() {
    let name = "full_disks::where_all_disks_are_full_writes_wait_and_reads_go_on";
    if elsewhere(name, &["mount"]) {
        return;
    }
    let setup = Setup::new().config(BUSY_STORAGE);
    let data = [ONE, TWO, THREE];
    let places = data.map(|node| setup.data_dir(node));
    for at in &places {
        mount_small(at, DISK_MIB);
    }
    let rig = setup.start().await;
    let load = rig.load().await;
    let disk = rig.disk_load(TWO).await;
    let workers = data.map(|node| rig.worker(node));
    // All at once: a volume that first moves to a disk with room, and finds none there, has no epoch to read in.
    let ballast = std::thread::scope(|scope| {
        let fills = places
            .each_ref()
            .map(|at| scope.spawn(|| Ballast::fill(at)));
        fills.map(|fill| fill.join().expect("filled"))
    });
    stands_still(|| load.gaps().count() + disk.gaps().count()).await;

    let log = rig.stage.client.log(LEDGER).read_only();
    let log = log.open().await.expect("a reader is let in");
    let page = log.read(Lsn(1), ReadLimits::default()).await;
    assert!(!page.expect("reads go on").records.is_empty());
    let (ok, text) = rig.mainstay(&["status"]).await;
    assert!(ok && text.contains("waits"), "{text}");
    println!("{text}");
    assert!(!load.has_ended() && !disk.has_ended(), "writes wait");

    drop(ballast);
    progress(&load).await;
    Rig::goes_on(&disk).await;
    rig.whole().await;
    rig.stage.wait_whole(DISK).await.expect("whole");
    assert_eq!(
        data.map(|node| rig.worker(node)),
        workers,
        "without a restart"
    );
    rig.disk_ends_equal(disk).await;
    rig.prove(load, true).await;
    rig.stop().await;
}

/// Fault 31: a witness that cannot store a vote gives none, and gives them again once there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn witnesses_without_room_promote_nobody_and_do_so_again_once_they_have_room() {
    let name =
        "full_disks::witnesses_without_room_promote_nobody_and_do_so_again_once_they_have_room";
    if elsewhere(name, &["mount"]) {
        return;
    }
    let setup = Setup::new().config("[storage]\nsegment_mib = 1\n");
    let places = WITNESSES.map(|node| setup.data_dir(node));
    for at in &places {
        mount_small(at, 8);
    }
    let rig = setup.start().await;
    let load = rig.load().await;
    let workers = WITNESSES.map(|node| rig.worker(node));

    let first = Ballast::fill(&places[0]);
    let before = rig.primary().await;
    rig.kill(before.node).await;
    let after = rig.served_above(before.epoch).await;
    progress(&load).await;
    rig.restart(before.node).await;
    rig.whole().await;

    let others = [Ballast::fill(&places[1]), Ballast::fill(&places[2])];
    // A store goes on within the room that its file has; new volumes need more than that.
    let refused = until_no_volume_is_created(&rig).await;
    println!("{refused}");
    progress(&load).await;
    rig.kill(after.node).await;
    let nobody = rig
        .stage
        .wait_serving(LEDGER, after.epoch, NOTHING_FOR)
        .await;
    assert!(nobody.is_err(), "a vote that was not stored: {nobody:?}");
    drop((first, others));
    rig.served_above(after.epoch).await;
    progress(&load).await;
    assert_eq!(
        WITNESSES.map(|node| rig.worker(node)),
        workers,
        "without a restart"
    );
    rig.restart(after.node).await;
    rig.whole().await;
    // Each of them votes again: any two are enough.
    for away in WITNESSES {
        let before = rig.primary().await;
        rig.kill(away).await;
        rig.kill(before.node).await;
        rig.served_above(before.epoch).await;
        rig.restart(before.node).await;
        rig.restart(away).await;
        rig.whole().await;
    }
    rig.end(load).await;
}

/// Creates volumes until the witnesses cannot store another register; answers the refusal.
async fn until_no_volume_is_created(rig: &Rig) -> AdminError {
    let impatient = ClientConfig {
        admin_deadline: Duration::from_secs(2),
        ..ClientConfig::new(rig.stage.dev.endpoints())
    };
    let client = Client::connect(impatient).await.expect("connected");
    for number in 0..200 {
        let wanted = CreateVolume::new(format!("more-{number}"), VolumeKind::Log);
        if let Err(refused) = client.admin().create_volume(wanted).await {
            return refused;
        }
    }
    panic!("200 volumes fit into a full disk");
}

/// Waits until a count does not rise any more for a second.
async fn stands_still(count: impl Fn() -> u64) {
    let mut seen = (count(), Instant::now());
    wait_for("the end of all writes", PATIENCE, async || {
        if count() != seen.0 {
            seen = (count(), Instant::now());
        }
        (seen.1.elapsed() > Duration::from_secs(1)).then_some(())
    })
    .await;
}
