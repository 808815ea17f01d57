//! ext4 on a volume: trees are unpacked, one after the other, while primaries are killed. Then e2fsck has nothing to say, and
//! through another node every tree equals the original.

use anyhow::Context;

use super::mount::{Attached, Mounted};
use super::programs::{LATER, run as run_program};
use super::rig::{GATEWAY, Going, Plan, Rig, VICTIMS};
use super::tree::Tree;

const DISK_BYTES: u64 = 512 << 20;
const KILLS: u32 = 3;
/// Trees that are there at a time; the oldest makes room.
const TREES_MAX: u32 = 12;

pub(crate) async fn run(plan: &Plan) -> anyhow::Result<String> {
    let rig = Rig::start(plan, DISK_BYTES).await?;
    let seen = on(&rig, plan).await?;
    rig.stop().await;
    Ok(seen)
}

async fn on(rig: &Rig, plan: &Plan) -> anyhow::Result<String> {
    let dir = rig.scratch();
    let tree = Tree::pack(&plan.root, dir).await?;
    let device = Attached::new(&rig.uri(GATEWAY)?, &dir.join("fuse")).await?;
    device.make_ext4().await?;
    let mounted = device.mount(&dir.join("mount")).await?;
    let load = async |going: &Going| {
        let mut trees = 0;
        while going.on() {
            trees += 1;
            let unpacked = add(&mounted, &tree, trees).await;
            unpacked.with_context(|| format!("tree {trees}"))?;
        }
        Ok(trees)
    };
    let (kills, trees) = rig.under_kills(KILLS, load).await?;
    let device = mounted.unmount().await?;
    device.check_ext4().await?;
    device.detach().await?;

    let elsewhere = Attached::new(&rig.uri(VICTIMS[0])?, &dir.join("fuse-2")).await?;
    elsewhere.check_ext4().await?;
    let mounted = elsewhere.mount(&dir.join("mount")).await?;
    let kept = first_kept(trees)..=trees;
    let count = kept.clone().count();
    for number in kept {
        let copy = mounted.path().join(number.to_string());
        let compared = tree.compare(&copy).await;
        compared.with_context(|| format!("tree {number}"))?;
    }
    mounted.unmount().await?.detach().await?;
    Ok(format!(
        "{kills}; {trees} trees unpacked, e2fsck clean, the {count} kept ones equal through node {}",
        VICTIMS[0]
    ))
}

/// One more tree, and on the volume before this returns.
async fn add(mounted: &Mounted, tree: &Tree, number: u32) -> anyhow::Result<()> {
    let place = |number: u32| mounted.path().join(number.to_string());
    if first_kept(number) > 1 {
        std::fs::remove_dir_all(place(first_kept(number) - 1))?;
    }
    std::fs::create_dir(place(number))?;
    tree.unpack(&place(number)).await?;
    let path = mounted.path().display().to_string();
    run_program("sync", &["--file-system", &path], LATER).await?;
    Ok(())
}

/// Of the first `count` trees.
fn first_kept(count: u32) -> u32 {
    count.saturating_sub(TREES_MAX) + 1
}
