//! A real file system goes to a block volume and back with the usual tools while primaries are killed.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use mainstay_node::demo::faults::FaultKind;
use mainstay_types::VolumeKind;
use tokio::task::JoinHandle;

use crate::rig::{ONE, PATIENCE, Rig, SERVED_WITHIN, THREE, wait_for};
use crate::sandbox::text;
use crate::tools::{require, run};

const IMAGE: &str = "image";
const IMAGE_BYTES: u64 = 96 << 20;

/// An ext4 file system with this project's sources in it.
async fn make_image(at: &Path) {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let tree = at.with_extension("tree");
    std::fs::create_dir(&tree).expect("made");
    // Only the sources: what was built beside them is far larger.
    for part in ["node", "storage", "replication", "docs", "nbd", "client"] {
        let part = format!("{sources}/{part}");
        run("cp", &["-a", &part, text(&tree)]).await;
    }
    let file = std::fs::File::create(at).expect("made");
    file.set_len(IMAGE_BYTES).expect("sparse");
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&tree), text(at)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_goes_to_a_volume_and_back_though_primaries_are_killed() {
    if !["nbdcopy", "mke2fs", "e2fsck", "cmp"]
        .iter()
        .all(|tool| require(tool))
    {
        return;
    }
    let rig = Rig::start().await;
    let kind = VolumeKind::Block {
        size_bytes: IMAGE_BYTES,
    };
    let mut wanted = mainstay_client::report::CreateVolume::new(IMAGE, kind);
    wanted.placement = rig.stage.data_nodes();
    let created = rig.stage.client.admin().create_volume(wanted).await;
    created.expect("created");
    rig.stage.wait_whole(IMAGE).await.expect("whole");
    let (there, back) = (rig.path().join("there.img"), rig.path().join("back.img"));
    make_image(&there).await;
    // Node 3 is spared, since a connection that ends is a failure to these tools; it forwards to whoever is primary.
    let uri = format!("nbd://{}/{IMAGE}", rig.stage.nbd(THREE).expect("exports"));

    let before = committed(&rig).await;
    let put = copy(&["--flush", "--requests=4", text(&there), &uri]);
    wait_for("the first writes", PATIENCE, async || {
        (committed(&rig).await > before + 8).then_some(())
    })
    .await;
    kill_the_primary(&rig, &put).await;
    put.await.expect("copied");

    let moved = rig.stage.move_primary(IMAGE, ONE).await;
    moved.expect("a planned switchover");
    // One small piece at a time: it must still be at it when the primary dies.
    let slow = ["--requests=1", "--request-size=32768"];
    let get = copy(&[slow[0], slow[1], &uri, text(&back)]);
    wait_for("the first reads", PATIENCE, async || {
        let blocks = std::fs::metadata(&back).ok()?.blocks();
        (blocks > 2048).then_some(())
    })
    .await;
    kill_the_primary(&rig, &get).await;
    get.await.expect("copied");
    run("cmp", &[text(&there), text(&back)]).await;
    run("e2fsck", &["-fn", text(&back)]).await;
    rig.stop().await;
}

fn copy(args: &[&str]) -> JoinHandle<String> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    tokio::spawn(async move {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run("nbdcopy", &args).await
    })
}

/// Entries of the volume that are committed, as its first primary knows it.
async fn committed(rig: &Rig) -> u64 {
    let status = rig.stage.client.admin().show_volume(IMAGE).await;
    status.map_or(0, |status| status.commit_lsn.0)
}

/// SIGKILL of the volume's primary while `copying` goes on; it is a member again when this returns.
async fn kill_the_primary(rig: &Rig, copying: &JoinHandle<String>) {
    let before = rig.stage.serving(IMAGE).await.expect("served");
    assert_ne!(before.node, THREE, "the tool's connection is spared");
    let struck = rig.stage.strike(FaultKind::Process, before.node).await;
    struck.expect("it is there");
    assert!(!copying.is_finished(), "killed in the middle");
    let served = rig
        .stage
        .wait_serving(IMAGE, before.epoch, SERVED_WITHIN)
        .await;
    served.expect("served again");
    let recovered = rig.stage.recover(FaultKind::Process, before.node).await;
    recovered.expect("it starts");
    rig.stage.wait_whole(IMAGE).await.expect("whole");
}
