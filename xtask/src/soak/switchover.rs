//! A planned move of the primary under load: no request of fio's may fail, and the longest that one takes is measured.
//!
//! fio logs the time of every request. What counts for a move is the slowest request that was answered while it was made or
//! soon after; a request that the disk alone held up counts, too.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use mainstay_node::demo::cluster::DISK;

use super::fio::{job, require_nbd_engine};
use super::programs::{SOON, command, finish, run as run_program};
use super::rig::{GATEWAY, Plan, Rig};

const DISK_BYTES: u64 = 128 << 20;
/// Load without a trial's share of time.
const LOAD_MIN: Duration = Duration::from_secs(30);
/// Of load before the first move, and after the last.
const EDGE: Duration = Duration::from_secs(2);
/// Between two moves: the window of one does not touch the next.
const BETWEEN: Duration = Duration::from_millis(700);
/// What is answered so long after a move may have waited for it.
const AFTERWARDS_MS: u64 = 400;
const GOAL: Duration = Duration::from_millis(100);
/// Whatever else the machine does: a move that takes so long is no switchover.
const BOUND: Duration = Duration::from_secs(2);

/// By the system's clock, in milliseconds, as fio logs it.
#[derive(Debug, Clone, Copy)]
struct Move {
    from_ms: u64,
    to_ms: u64,
}

/// One request of fio's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    answered_ms: u64,
    took: Duration,
}

pub(crate) async fn run(plan: &Plan) -> anyhow::Result<String> {
    require_nbd_engine().await?;
    let rig = Rig::start(plan, DISK_BYTES).await?;
    let seen = on(&rig, plan).await?;
    rig.stop().await;
    Ok(seen)
}

async fn on(rig: &Rig, plan: &Plan) -> anyhow::Result<String> {
    let span = plan.share.max(LOAD_MIN);
    let (moves, requests) = tokio::try_join!(moves(rig, plan, span), load(rig, span))?;
    ensure!(moves.len() >= 5, "only {} moves were made", moves.len());
    let mut pauses = Vec::new();
    for one in &moves {
        let pause = slowest_of(*one, &requests);
        pauses.push(pause.context("no request was made around a move")?);
    }
    pauses.sort_unstable();
    let (median, worst) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    ensure!(worst <= BOUND, "a request took {worst:?} during a move");
    let within = pauses.iter().filter(|pause| **pause <= GOAL).count();
    let slowest = requests.iter().map(|request| request.took).max();
    Ok(format!(
        "{} moves under {} writes without an error; slowest request of a move: median {:.1} ms, worst {:.1} ms, {within} within {} ms ({}); of all: {:.1} ms",
        moves.len(),
        requests.len(),
        ms(median),
        ms(worst),
        GOAL.as_millis(),
        if worst <= GOAL { "met" } else { "MISSED" },
        ms(slowest.unwrap_or_default()),
    ))
}

/// The slowest request that was under way during a move or begun soon after it, whenever it was answered.
fn slowest_of(one: Move, requests: &[Request]) -> Option<Duration> {
    let touches = |request: &&Request| {
        let took_ms = u64::try_from(request.took.as_millis()).unwrap_or(u64::MAX);
        let begun_ms = request.answered_ms.saturating_sub(took_ms);
        begun_ms <= one.to_ms + AFTERWARDS_MS && request.answered_ms >= one.from_ms
    };
    let touching = requests.iter().filter(touches);
    touching.map(|request| request.took).max()
}

/// Moves the primary from node to node, as an operator does it.
async fn moves(rig: &Rig, plan: &Plan, span: Duration) -> anyhow::Result<Vec<Move>> {
    let program = plan.program.display().to_string();
    let endpoints = rig.stage.dev.endpoints().join(",");
    let nodes = rig.stage.data_nodes();
    let until = tokio::time::Instant::now() + span.saturating_sub(EDGE);
    tokio::time::sleep(EDGE).await;
    let mut moves = Vec::new();
    let mut at = nodes[0];
    while tokio::time::Instant::now() < until {
        let place = nodes.iter().position(|node| *node == at).unwrap_or(0);
        at = nodes[(place + 1) % nodes.len()];
        let to = at.to_string();
        let from_ms = now_ms()?;
        let arguments = ["promote", DISK, "--to", &to, "--endpoints", &endpoints];
        run_program(&program, &arguments, SOON).await?;
        let to_ms = now_ms()?;
        moves.push(Move { from_ms, to_ms });
        tokio::time::sleep(BETWEEN).await;
        rig.stage.wait_whole(DISK).await?;
    }
    Ok(moves)
}

async fn load(rig: &Rig, span: Duration) -> anyhow::Result<Vec<Request>> {
    let log = rig.scratch().join("fio");
    let mut fio = command("fio", &["--name=load", "--ioengine=nbd", "--rw=randwrite"]);
    fio.args(["--bs=4k", "--iodepth=8", "--size=100%", "--time_based"])
        .arg(format!("--uri={}", rig.uri(GATEWAY)?))
        .arg(format!("--aux-path={}", rig.scratch().display()))
        .arg(format!("--runtime={}", span.as_secs()))
        .arg(format!("--write_lat_log={}", log.display()))
        .args(["--log_unix_epoch=1", "--output-format=json"]);
    job(&finish(fio, span + SOON).await?)?;
    requests(&log.with_file_name("fio_clat.1.log"))
}

/// Lines of milliseconds, nanoseconds, and what does not matter here.
fn requests(log: &Path) -> anyhow::Result<Vec<Request>> {
    let text = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
    let line = |line: &str| {
        let mut fields = line.split(',').map(|field| field.trim().parse::<u64>());
        let (Some(Ok(answered_ms)), Some(Ok(took_ns))) = (fields.next(), fields.next()) else {
            anyhow::bail!("a line of fio's log: {line}");
        };
        let took = Duration::from_nanos(took_ns);
        Ok(Request { answered_ms, took })
    };
    text.lines().map(line).collect()
}

fn now_ms() -> anyhow::Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_millis())?)
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_answered_long_after_a_move_counts_for_it() {
        let request = |answered_ms, took_ms| Request {
            answered_ms,
            took: Duration::from_millis(took_ms),
        };
        let one = Move {
            from_ms: 10_000,
            to_ms: 10_050,
        };
        let fast = [request(9_999, 50), request(10_020, 3), request(10_460, 5)];
        let slowest = |requests: &[Request]| slowest_of(one, requests);
        assert_eq!(slowest(&fast), Some(Duration::from_millis(3)));
        let held = [&fast[..], &[request(13_000, 2_990)]].concat();
        assert_eq!(slowest(&held), Some(Duration::from_millis(2_990)));
        assert_eq!(slowest(&fast[..1]), None);
    }

    #[test]
    fn a_log_of_fio_is_read_and_anything_else_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        std::fs::write(&log, "1700000000123, 1500000, 1, 4096, 0, 0\n").expect("written");
        let expected = Request {
            answered_ms: 1_700_000_000_123,
            took: Duration::from_micros(1500),
        };
        assert_eq!(requests(&log).expect("well formed"), [expected]);
        std::fs::write(&log, "what\n").expect("written");
        requests(&log).expect_err("no number");
    }
}
