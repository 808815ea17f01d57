//! Lines of a real table, appended through the client library while the primary is killed three times: all of them are
//! there afterwards, once each, in order, byte for byte.
//!
//! The input is generated, in the shape of a bank's transactions. `MAINSTAY_TEST_LINES=FILE` takes a file's lines instead.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use mainstay_client::{LogVolume, ReadLimits};
use mainstay_node::demo::cluster::{LEDGER, Stage};
use mainstay_node::demo::faults::FaultKind;
use mainstay_node::devcluster::{DevCluster, Options, Wanted, random_loopback};
use mainstay_types::{Epoch, Lsn, NodeId};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// As many as take a few seconds.
const GENERATED: usize = 12_000;
const IN_FLIGHT: usize = 32;
const KILLS: u32 = 3;
const DISK_BYTES: u64 = 1 << 20;
const PROMOTED_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_is_there_once_and_in_order_though_the_primary_is_killed_three_times() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options {
        wanted: Wanted {
            host: Some(random_loopback()),
            ..Wanted::default()
        },
        program: env!("CARGO_BIN_EXE_mainstay").into(),
        ..Options::new(dir.path()).expect("options")
    };
    let dev = DevCluster::start(options)
        .await
        .expect("the cluster starts");
    let stage = Stage::set(dev, NodeId(1), NodeId(2), DISK_BYTES)
        .await
        .expect("two volumes");
    let lines = lines();
    let log = stage.client.log(LEDGER).open().await.expect("opens");
    let kills = AtomicU32::new(0);
    let (written, killed) = tokio::join!(append(&log, &lines, &kills), kill(&stage, &kills));
    killed.expect("three kills");
    assert_eq!(written.len(), lines.len());
    assert!(written.is_sorted(), "positions rise");
    let found = read(&log).await;
    assert_eq!(found.len(), lines.len(), "each line once");
    for (number, (line, (lsn, data))) in lines.iter().zip(&found).enumerate() {
        assert_eq!(line.as_bytes(), data, "line {number}");
        assert_eq!(written[number], *lsn, "line {number}");
    }
    stage.dev.stop().await;
}

/// Positions, in the order of the lines. While primaries are killed it goes on and never comes to the end: each time it
/// writes a part of what is left.
async fn append(log: &LogVolume, lines: &[String], kills: &AtomicU32) -> Vec<Lsn> {
    let mut pending = FuturesOrdered::new();
    let mut written = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let mut left_now = 0;
    for (number, line) in lines.iter().enumerate() {
        if left_now == 0 {
            let left = lines.len() - number;
            left_now = match kills.load(Ordering::Relaxed) {
                KILLS => left,
                _ => (left / 100).max(1),
            };
            pace.tick().await;
        }
        left_now -= 1;
        while pending.len() >= IN_FLIGHT {
            let committed: Result<_, _> = pending.next().await.expect("not empty");
            written.push(committed.expect("appended"));
        }
        let append = log.submit(line.clone()).await.expect("room");
        pending.push_back(async move { append.await.map(|committed| committed.lsn) });
    }
    assert_eq!(kills.load(Ordering::Relaxed), KILLS, "all in the middle");
    while let Some(committed) = pending.next().await {
        written.push(committed.expect("appended"));
    }
    written
}

async fn kill(stage: &Stage, kills: &AtomicU32) -> anyhow::Result<()> {
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = stage
            .wait_serving(LEDGER, Epoch::ZERO, PROMOTED_WITHIN)
            .await?;
        stage.strike(FaultKind::Process, before.node).await?;
        stage
            .wait_serving(LEDGER, before.epoch, PROMOTED_WITHIN)
            .await?;
        stage.recover(FaultKind::Process, before.node).await?;
        stage.wait_whole(LEDGER).await?;
        kills.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn read(log: &LogVolume) -> Vec<(Lsn, Vec<u8>)> {
    let mut found = Vec::new();
    let mut next = Lsn(1);
    loop {
        let page = log.read(next, ReadLimits::default()).await.expect("reads");
        let records = page.records.iter();
        found.extend(records.map(|record| (record.lsn, record.data.to_vec())));
        if page.end {
            return found;
        }
        next = page.next;
    }
}

fn lines() -> Vec<String> {
    match std::env::var_os("MAINSTAY_TEST_LINES") {
        Some(file) => {
            let text = std::fs::read_to_string(Path::new(&file)).expect("the file of lines");
            text.lines().map(str::to_owned).collect()
        }
        None => generated(),
    }
}

/// Date, account, kind, amount; many lines are equal, as in a real table.
fn generated() -> Vec<String> {
    let mut random = StdRng::seed_from_u64(1993);
    let kinds = ["CREDIT", "WITHDRAWAL", "TRANSFER", "FEE"];
    let line = |number: usize| {
        let (month, day) = (1 + number * 12 / GENERATED, random.random_range(1..=28));
        let account: u32 = random.random_range(1..=40);
        let kind = kinds[random.random_range(0..kinds.len())];
        let amount: u32 = random.random_range(1..=200);
        format!(
            "1993-{month:02}-{day:02},{account},{kind},{}.00",
            amount * 100
        )
    };
    (0..GENERATED).map(line).collect()
}
