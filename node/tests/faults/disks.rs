//! Disks that fail, hang or are lost: faults 13, 27 and 33.

use std::process::{Child, Command, Stdio};

use mainstay_client::report::VolumeStatus;
use mainstay_types::{Incarnation, NodeId};

use crate::rig::{ONE, PATIENCE, Rig, Setup, THREE, progress, wait_for};
use crate::sandbox::{command, elsewhere, mount_ext4, text};
use crate::tools::require;

/// Fault 13: every `fdatasync` of the primary's process answers EIO from now on. It acknowledges nothing more, others go on,
/// and after a restart it comes back through recovery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_the_copy_until_a_restart_and_the_cluster_goes_on() {
    if !require("strace") {
        return;
    }
    let setup = Setup::new().config("[storage]\nengine = \"threads\"\n");
    let rig = setup.start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    let tracer = Tracer::fail_syncs(rig.worker(before.node));
    let after = rig.served_above(before.epoch).await;
    assert_ne!(after.node, before.node);
    progress(&load).await;
    drop(tracer);
    // The disk is well again, and it makes no difference: what the log wrote last is not known to be there.
    let failed = wait_for("a copy that stepped aside", PATIENCE, async || {
        let (_, text) = rig.mainstay(&["status"]).await;
        text.contains("Input/output error").then_some(text)
    });
    println!("{}", failed.await);
    rig.kill(before.node).await;
    rig.restart(before.node).await;
    rig.whole().await;
    rig.prove(load, true).await;
    rig.stop().await;
}

/// `strace` on a running process.
struct Tracer(Child);

impl Tracer {
    fn fail_syncs(pid: u32) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-q", "-o", "/dev/null", "-e", "trace=fdatasync"])
            .args(["-e", "inject=fdatasync:error=EIO", "-p"])
            .arg(pid.to_string())
            .stdin(Stdio::null())
            .spawn()
            .expect("started");
        Self(child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Asked to end, it lets go of the process.
        let _ended =
            mainstay_node::processes::send(self.0.id(), mainstay_node::devcluster::Signal::INT);
        let _gone = self.0.wait();
    }
}

/// Fault 27: everything that a data node kept is gone. It comes back empty, has no say, and gets all of it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_data_directory_is_rebuilt_by_starting_the_node() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    for node in [ONE, THREE] {
        let lost = incarnation(&rig.whole().await, node);
        rig.kill(node).await;
        let kept = rig.stage.node(node).expect("known").data_dir;
        std::fs::remove_dir_all(&kept).expect("removed");
        rig.restart(node).await;
        // Another copy, and not the old one.
        wait_for("a new copy", PATIENCE, async || {
            let found = incarnation(&rig.whole().await, node);
            (found != lost).then_some(())
        })
        .await;
        progress(&load).await;
    }
    rig.prove(load, true).await;
    rig.stop().await;
}

fn incarnation(status: &VolumeStatus, node: NodeId) -> Incarnation {
    let mut members = status.members.iter();
    let member = members.find(|member| member.node == node);
    member.expect("a member").incarnation
}

/// Fault 33: the primary's file system hangs every write. Its process answers as before, and yet the volume goes elsewhere;
/// when the disk is back the node goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_disk_hangs_is_replaced_and_comes_back_by_itself() {
    let name = "disks::a_primary_whose_disk_hangs_is_replaced_and_comes_back_by_itself";
    if elsewhere(name, &["mke2fs", "mount", "fsfreeze"]) {
        return;
    }
    let setup = Setup::new();
    let at = setup.data_dir(ONE);
    mount_ext4(&setup.path().join("disk"), &at, 256);
    let rig = setup.start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    assert_eq!(before.node, ONE);
    let worker = rig.worker(ONE);
    let frozen = Frozen::new(text(&at));
    let after = rig.served_above(before.epoch).await;
    assert_ne!(after.node, ONE);
    progress(&load).await;
    let (_, status) = rig.mainstay(&["status"]).await;
    println!("{status}");
    drop(frozen);
    rig.whole().await;
    assert_eq!(rig.worker(ONE), worker, "without a restart");
    rig.prove(load, true).await;
    rig.stop().await;
}

/// A file system that takes no write until this is dropped.
struct Frozen(String);

impl Frozen {
    fn new(at: &str) -> Self {
        command("fsfreeze", &["--freeze", at]);
        Self(at.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        command("fsfreeze", &["--unfreeze", &self.0]);
    }
}
