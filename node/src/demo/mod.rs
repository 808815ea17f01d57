//! `mainstay demo`: shows in about a minute that no acknowledged write is lost, and proves it.
//!
//! A cluster of separate processes in a temporary directory; transfers through the client library and file-system-like
//! writes through NBD, both at once; primaries killed and frozen under that load; at the end everything is read back on
//! every member and compared with what the clients know. The parts are public: other measurements use them, too.
//!
//! Rules that hold across it:
//!
//! * A client's model knows what was acknowledged. What nobody answered is settled by asking, or counts as unknown.
//! * Everything ends by itself: each wait has a limit, and an error anywhere stops the load and the cluster.
//! * The directory is removed at the end, unless something failed or `--keep` was given; then its name is printed.

pub mod cluster;
pub mod disk;
pub mod faults;
pub mod gaps;
pub mod ledger;
mod narrator;
pub mod nbd_client;
mod script;
mod summary;
mod verify;

use std::time::Duration;

use anyhow::{Context as _, bail};
use mainstay_types::NodeId;
use tempfile::TempDir;

use crate::cli::DemoArgs;
use crate::devcluster::{DevCluster, Options};
use cluster::{DISK, LEDGER, Stage};
use disk::DiskLoad;
use ledger::LedgerLoad;
use narrator::{Kind, Narrator};
use script::{GATEWAY, Round, Show};
use summary::{Check, Summary};
use verify::Known;

/// First primary of the log, and of the block volume: two nodes, so that two kills show two promotions.
const LEDGER_ON: NodeId = NodeId(1);
const DISK_ON: NodeId = NodeId(2);
/// Size of the block volume.
const DISK_BYTES: u64 = 64 << 20;
/// Transfers, and NBD requests, in flight.
const IN_FLIGHT: usize = 4;
/// Steps that the load's time is divided into; the script needs about seven.
const STEPS: u32 = 12;

/// Runs it. `Ok(true)` if everything holds.
///
/// # Errors
/// The cluster does not start, or the demo was interrupted.
pub async fn demo(args: &DemoArgs) -> anyhow::Result<bool> {
    let narrator = Narrator::new(args.json);
    let dir = tempfile::Builder::new()
        .prefix("mainstay-demo-")
        .tempdir()
        .context("make a temporary directory")?;
    let ran = tokio::select! {
        ran = run(args, narrator, &dir) => ran,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let holds = ran.as_ref().is_ok_and(|summary| summary.holds);
    if args.keep || !holds {
        let kept = dir.keep();
        narrator.line(&format!(
            "kept, with the log of every node: {}",
            kept.display()
        ));
    }
    let summary = ran?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    }
    Ok(summary.holds)
}

async fn run(args: &DemoArgs, narrator: Narrator, dir: &TempDir) -> anyhow::Result<Summary> {
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));
    narrator.say(
        Kind::Note,
        format!("seed {seed}; cluster in {}", dir.path().display()),
    );
    let dev = DevCluster::start(Options::new(dir.path())?).await?;
    let nodes = dev.status().nodes;
    let ids: Vec<String> = nodes.iter().map(|node| node.id.to_string()).collect();
    narrator.say(
        Kind::Note,
        format!("nodes {} run, a process each", ids.join(", ")),
    );
    let stage = Stage::set(dev, LEDGER_ON, DISK_ON, DISK_BYTES).await?;
    narrator.say(Kind::Primary, script::primaries(&stage).await?);
    let played = play(args, seed, narrator, &stage).await;
    stage.dev.stop().await;
    if let Ok(summary) = &played {
        summary.print(narrator);
    }
    played
}

/// Everything between the start of the cluster and its end.
async fn play(
    args: &DemoArgs,
    seed: u64,
    narrator: Narrator,
    stage: &Stage,
) -> anyhow::Result<Summary> {
    let ledger = LedgerLoad::start(&stage.client, LEDGER, seed, IN_FLIGHT).await?;
    let disk = DiskLoad::start(&stage.nbd(GATEWAY)?, DISK, seed, IN_FLIGHT).await?;
    narrator.say(
        Kind::Note,
        format!(
            "transfers into `{LEDGER}`, writes to `{DISK}` over the NBD export of node {GATEWAY}"
        ),
    );
    let rounds = under_load(args, narrator, stage, &ledger, &disk).await;
    narrator.say(Kind::Note, "the load stops; now everything is read back");
    let (ledger, disk) = (ledger.stop().await, disk.stop().await);
    let (ledger, disk) = (
        ledger.context("the log client")?,
        disk.context("the NBD client")?,
    );
    let rounds = rounds?;
    let known = Known {
        stage,
        ledger: &ledger,
        disk: &disk,
        rounds: &rounds,
        narrator,
    };
    let checks = known.verify().await;
    Ok(Summary {
        seed,
        seconds: narrator.elapsed().as_secs_f64(),
        transfers: ledger.acknowledged.len() as u64,
        disk: disk.counts,
        rounds,
        holds: checks.iter().all(|check: &Check| check.holds),
        checks,
    })
}

/// The script, and load until its time is over. Fails if the script takes far longer than it should.
async fn under_load(
    args: &DemoArgs,
    narrator: Narrator,
    stage: &Stage,
    ledger: &LedgerLoad,
    disk: &DiskLoad,
) -> anyhow::Result<Vec<Round>> {
    let time = Duration::from_secs(args.seconds);
    let show = Show {
        stage,
        ledger,
        disk,
        narrator,
        pause: time / STEPS,
    };
    let script = async {
        let (rounds, ()) = tokio::join!(show.run(), tokio::time::sleep(time));
        rounds
    };
    tokio::select! {
        rounds = script => rounds,
        () = show.progress() => bail!("progress ended"),
        () = tokio::time::sleep(time + SCRIPT_LATE) => bail!("the script did not end in time"),
    }
}

/// Beyond the load's time, for promotions and copies that take their time.
const SCRIPT_LATE: Duration = Duration::from_secs(120);
