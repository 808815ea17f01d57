//! A file system without FUSE and loop devices: an image with a tree in it is copied onto the volume while primaries are killed,
//! copied back through another node, and compared; e2fsck has nothing to say of the copy.

use anyhow::Context;

use super::programs::{LATER, SOON, run as run_program};
use super::rig::{GATEWAY, Going, Plan, Rig, VICTIMS};
use super::tree::Tree;
use crate::tools::Tool;

pub(crate) const NEEDS: [Tool; 2] = [
    Tool {
        package: "libnbd-bin",
        proof: "nbdcopy",
    },
    Tool {
        package: "e2fsprogs",
        proof: "mke2fs",
    },
];

const DISK_BYTES: u64 = 128 << 20;
const KILLS: u32 = 3;

pub(crate) async fn run(plan: &Plan) -> anyhow::Result<String> {
    let rig = Rig::start(plan, DISK_BYTES).await?;
    let seen = on(&rig, plan).await?;
    rig.stop().await;
    Ok(seen)
}

async fn on(rig: &Rig, plan: &Plan) -> anyhow::Result<String> {
    let dir = rig.scratch();
    let tree = Tree::pack(&plan.root, dir).await?;
    let original = tree.original.display().to_string();
    let text = |name: &str| dir.join(name).display().to_string();
    // Blocks of two sizes make two layouts, so that what an earlier copy left is not taken for the last.
    let images = [text("image-0"), text("image-1")];
    for (image, block) in images.iter().zip(["4096", "1024"]) {
        std::fs::File::create(image)?.set_len(DISK_BYTES)?;
        let arguments = ["-q", "-t", "ext4", "-b", block, "-d", &original, image];
        run_program("mke2fs", &arguments, LATER).await?;
    }
    let (in_at, out_at) = (rig.uri(GATEWAY)?, rig.uri(VICTIMS[1])?);
    let load = async |going: &Going| {
        let mut copies = 0;
        while going.on() {
            let image = &images[copies % images.len()];
            let copied = run_program("nbdcopy", &["--flush", image, &in_at], LATER).await;
            copied.with_context(|| format!("copy {}", copies + 1))?;
            copies += 1;
        }
        Ok(copies)
    };
    let (kills, copies) = rig.under_kills(KILLS, load).await?;
    let (last, back) = (&images[(copies - 1) % images.len()], text("back"));
    run_program("nbdcopy", &[&out_at, &back], LATER).await?;
    run_program("cmp", &[last, &back], SOON).await?;
    run_program("e2fsck", &["-f", "-n", &back], SOON).await?;
    Ok(format!(
        "{kills}; image copied in {copies} times, copied back through node {} it is equal, e2fsck clean",
        VICTIMS[1]
    ))
}
