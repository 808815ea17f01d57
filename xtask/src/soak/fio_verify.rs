//! fio writes random blocks with a checksum in each, and reads all of them back, pass after pass while primaries are killed.
//! The last pass is verified again through a node that did not write it.

use anyhow::{Context, ensure};

use super::fio::{job, require_nbd_engine};
use super::programs::LATER;
use super::rig::{GATEWAY, Going, Plan, Rig, VICTIMS};

const DISK_BYTES: u64 = 128 << 20;
const BLOCKS: u64 = DISK_BYTES / 4096;
const KILLS: u32 = 4;

/// Which half of a pass is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    WriteAndRead,
    /// Of a pass whose writes were made before.
    Read,
}

pub(crate) async fn run(plan: &Plan) -> anyhow::Result<String> {
    require_nbd_engine().await?;
    let rig = Rig::start(plan, DISK_BYTES).await?;
    let seen = passes(&rig).await?;
    rig.stop().await;
    Ok(seen)
}

async fn passes(rig: &Rig) -> anyhow::Result<String> {
    let uri = rig.uri(GATEWAY)?;
    let load = async |going: &Going| {
        let (mut passes, mut writes) = (0, 0);
        while going.on() {
            passes += 1;
            let done = pass(rig, &uri, passes, Half::WriteAndRead).await;
            writes += done.with_context(|| format!("pass {passes}"))?;
        }
        Ok((passes, writes))
    };
    let (kills, (passes, writes)) = rig.under_kills(KILLS, load).await?;
    let elsewhere = rig.uri(VICTIMS[0])?;
    let read = pass(rig, &elsewhere, passes, Half::Read).await;
    let read = read.with_context(|| format!("verify through node {}", VICTIMS[0]))?;
    let stale = pass(rig, &elsewhere, passes + 1, Half::Read).await;
    ensure!(
        stale.is_err(),
        "fio takes the blocks of one pass for those of another: this fio finds no lost write"
    );
    Ok(format!(
        "{kills}; {writes} writes in {passes} passes verified, the {read} blocks of the last also through node {}",
        VICTIMS[0]
    ))
}

/// Covers the whole disk in random order; how many blocks that were. fio looks at the kind of checksum in each block, so a block
/// that a pass lost is told by what the pass before left there.
async fn pass(rig: &Rig, uri: &str, number: u64, half: Half) -> anyhow::Result<u64> {
    let uri = format!("--uri={uri}");
    let aux = format!("--aux-path={}", rig.scratch().display());
    let seed = format!("--randseed={}", 1000 + number);
    let kind = if number.is_multiple_of(2) {
        "--verify=xxhash"
    } else {
        "--verify=crc32c"
    };
    let mut arguments = vec![
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        &aux,
        &seed,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--size=100%",
        kind,
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--output-format=json",
    ];
    if half == Half::Read {
        arguments.push("--verify_only=1");
    }
    let job = job(&super::programs::run("fio", &arguments, LATER).await?)?;
    let side = match half {
        Half::WriteAndRead => "write",
        Half::Read => "read",
    };
    let blocks = job[side]["total_ios"].as_u64().unwrap_or(0);
    ensure!(blocks == BLOCKS, "{blocks} of {BLOCKS} blocks: {job}");
    Ok(blocks)
}
