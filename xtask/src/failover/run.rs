//! One kind of fault, again and again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mainstay_node::demo::cluster::{DISK, LEDGER, Stage};
use mainstay_node::demo::disk::DiskLoad;
use mainstay_node::demo::faults::FaultKind;
use mainstay_node::demo::gaps::Gaps;
use mainstay_node::demo::ledger::{LedgerLoad, prove};
use mainstay_node::devcluster::{DevCluster, Options as ClusterOptions};
use mainstay_types::{Epoch, NodeId};

use super::Options;
use super::table::{Client, Fault, Measured, ms};

/// Size of the block volume.
const DISK_BYTES: u64 = 64 << 20;
/// The NBD client's node; never a victim.
const GATEWAY: NodeId = NodeId(3);
/// Both volumes move here in turn before each fault.
const VICTIMS: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// Load before each fault: what a switchover stirred up has settled.
const BEFORE: Duration = Duration::from_millis(500);
/// Load after each promotion, before the victim comes back.
const AFTER: Duration = Duration::from_millis(700);
/// Nobody serving after this long is a failure, not a slow promotion.
const PROMOTED_WITHIN: Duration = Duration::from_secs(20);

/// Measures one kind of fault on a cluster of its own.
pub(crate) async fn measure(
    options: &Options,
    program: &Path,
    kind: FaultKind,
) -> anyhow::Result<Measured> {
    let dir = tempfile::Builder::new()
        .prefix("mainstay-failover-")
        .tempdir()?;
    let mut cluster = ClusterOptions::new(dir.path())?;
    program.clone_into(&mut cluster.program);
    let dev = DevCluster::start(cluster).await?;
    let stage = Stage::set(dev, VICTIMS[0], VICTIMS[0], DISK_BYTES).await;
    let measured = match stage {
        Ok(stage) => {
            let measured = under_load(options, &stage, kind).await;
            stage.dev.stop().await;
            measured
        }
        Err(error) => Err(error),
    };
    let sound = measured.as_ref().is_ok_and(Measured::nothing_lost);
    if options.keep || !sound {
        eprintln!("kept: {}", dir.keep().display());
    }
    measured.with_context(|| format!("faults of kind {kind}"))
}

struct Loads {
    ledger: LedgerLoad,
    disk: DiskLoad,
}

async fn under_load(options: &Options, stage: &Stage, kind: FaultKind) -> anyhow::Result<Measured> {
    let in_flight = options.in_flight as usize;
    let gateway = stage.nbd(GATEWAY)?;
    let loads = Loads {
        ledger: LedgerLoad::start(&stage.client, LEDGER, options.seed, in_flight).await?,
        disk: DiskLoad::start(&gateway, DISK, options.seed, in_flight).await?,
    };
    let mut faults = Vec::new();
    for number in 0..options.kills {
        let victim = VICTIMS[number as usize % VICTIMS.len()];
        let fault = one_fault(stage, &loads, kind, victim).await;
        let fault = fault.with_context(|| format!("fault {}", number + 1));
        if loads.ledger.has_ended() || loads.disk.has_ended() {
            // The load's own error says more.
            loads.ledger.stop().await?;
            loads.disk.stop().await?;
            bail!("the load ended by itself");
        }
        let fault = fault?;
        eprintln!(
            "{kind} {:>3}/{}: node {victim} lost; log {:>5} ms, NBD {:>5} ms; back: {:>4} ms, {:>4} ms",
            number + 1,
            options.kills,
            ms(fault.log),
            ms(fault.nbd),
            ms(fault.log_rejoin),
            ms(fault.nbd_rejoin),
        );
        faults.push(fault);
    }
    finish(stage, loads, kind, faults).await
}

/// Moves both volumes to the victim, strikes it, waits for both promotions, and brings it back.
async fn one_fault(
    stage: &Stage,
    loads: &Loads,
    kind: FaultKind,
    victim: NodeId,
) -> anyhow::Result<Fault> {
    // An orderly move between any two faults: else the fourth of a minute would be held down as flapping, rightly.
    for volume in [LEDGER, DISK] {
        stage.move_primary(volume, GATEWAY).await?;
    }
    let epochs = [
        stage.move_primary(LEDGER, victim).await?.epoch,
        stage.move_primary(DISK, victim).await?.epoch,
    ];
    stage.wait_whole(LEDGER).await?;
    stage.wait_whole(DISK).await?;
    tokio::time::sleep(BEFORE).await;
    let struck = stage.strike(kind, victim).await?;
    let promoted = wait_promoted(stage, epochs).await?;
    tokio::time::sleep(AFTER).await;
    let recovered = Instant::now();
    let gap = |gaps: &Gaps, from, to| gaps.longest(from, to);
    let (log, nbd) = (loads.ledger.gaps(), loads.disk.gaps());
    let (log_gap, nbd_gap) = (gap(log, struck, recovered), gap(nbd, struck, recovered));
    stage.recover(kind, victim).await?;
    stage.wait_whole(LEDGER).await?;
    stage.wait_whole(DISK).await?;
    let whole = Instant::now();
    Ok(Fault {
        victim,
        log: log_gap,
        nbd: nbd_gap,
        promoted: promoted.duration_since(struck),
        log_rejoin: gap(log, recovered, whole),
        nbd_rejoin: gap(nbd, recovered, whole),
    })
}

async fn wait_promoted(stage: &Stage, before: [Epoch; 2]) -> anyhow::Result<Instant> {
    let [ledger, disk] = before;
    stage.wait_serving(LEDGER, ledger, PROMOTED_WITHIN).await?;
    stage.wait_serving(DISK, disk, PROMOTED_WITHIN).await?;
    Ok(Instant::now())
}

/// Stops the load and reads everything back.
async fn finish(
    stage: &Stage,
    loads: Loads,
    kind: FaultKind,
    faults: Vec<Fault>,
) -> anyhow::Result<Measured> {
    let ledger = loads.ledger.stop().await.context("the log client")?;
    let disk = loads.disk.stop().await.context("the NBD client")?;
    let ledger_proof = prove(&stage.client, LEDGER, &ledger).await?;
    let mut differences = Vec::new();
    for member in stage.data_nodes() {
        stage.wait_level(DISK).await?;
        stage.move_primary(DISK, member).await?;
        let difference = disk.compare(&stage.nbd(member)?, DISK).await?;
        differences.push((member, difference));
    }
    Ok(Measured {
        kind,
        clients: [
            Client::new("log", kind, faults.iter().map(|fault| fault.log)),
            Client::new("nbd", kind, faults.iter().map(|fault| fault.nbd)),
        ],
        faults,
        ledger: ledger_proof,
        disk_requests: disk.counts,
        disk_differences: differences,
    })
}
