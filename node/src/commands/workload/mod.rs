//! `mainstay workload`: clients that write down everything they do and see, so that somebody else can judge the cluster by it.
//!
//! Nothing is judged here. Rules that hold for every workload:
//!
//! * A lost answer is `info`, never `fail`, whatever the reason.
//! * Every value that is written is written once, so that a result tells which operation it comes from.
//! * Processes have sessions of their own: what orders their operations is the cluster alone.
//! * It is bounded: after `seconds` or `operations` nothing is begun, and what was begun ends with its deadline.

mod bank;
pub mod history;
mod log;
mod registers;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use mainstay_client::report::CreateVolume;
use mainstay_client::{
    AppendError, Client, LogVolume, ReadError, Refusal, UnknownCause, WriteError,
};
use mainstay_types::VolumeKind;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{connect, print_json};
use history::{Begin, Ended, FORMAT, History};

/// For what is done before and after: the cluster may be recovering from something.
const SERVED_WITHIN: Duration = Duration::from_secs(60);
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Which workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Blocks as registers.
    Registers,
    /// Appends, reads and tails.
    Log,
    /// Transfers.
    Bank,
}

/// What to do, and for how long.
#[derive(Debug, Clone)]
pub struct Args {
    /// Which.
    pub workload: Workload,
    /// The volume; made if it is not there.
    pub volume: String,
    /// Where the history goes; `-` is standard output.
    pub history: PathBuf,
    /// Nothing is begun after this.
    pub time: Duration,
    /// Nothing is begun after so many.
    pub operations: u64,
    /// Operations at a time.
    pub processes: u32,
    /// Operations a second, all together; zero: as fast as it goes.
    pub rate: u32,
    /// For each operation.
    pub deadline: Duration,
    /// Registers, or accounts.
    pub keys: u32,
    /// Of what is done.
    pub seed: u64,
    /// Print the summary as JSON.
    pub json: bool,
}

impl Workload {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Registers => "registers",
            Self::Log => "log",
            Self::Bank => "bank",
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Summary {
    workload: &'static str,
    volume: String,
    seed: u64,
    elapsed_ms: u64,
    /// By operation and how it ended.
    operations: BTreeMap<String, u64>,
    slowest_ms: u64,
}

/// Runs the workload to its end.
///
/// # Errors
/// The cluster cannot be reached at the start, does not serve at the end, or the history cannot be written.
pub async fn run(
    args: &Args,
    endpoints: Vec<String>,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let client = connect(endpoints).await?;
    let began = Instant::now();
    make_volume(args, &client).await?;
    let parameters = match args.workload {
        Workload::Registers => registers::prepare(args, &client).await?,
        Workload::Log => log::prepare(args, &client).await?,
        Workload::Bank => bank::prepare(args, &client).await?,
    };
    let begin = Begin {
        format: FORMAT,
        workload: args.workload.name().to_owned(),
        volume: args.volume.clone(),
        seed: args.seed,
        parameters: parameters.clone(),
        time: 0,
    };
    let history = if args.history.as_os_str() == "-" {
        History::new(std::io::stdout(), begin)
    } else {
        let file = std::fs::File::create(&args.history);
        let file = file.with_context(|| args.history.display().to_string())?;
        History::new(file, begin)
    };
    let shared = Arc::new(Shared {
        args: args.clone(),
        client,
        history,
        left: AtomicU64::new(args.operations),
        give_up: Instant::now() + args.time,
        next_value: AtomicU64::new(1),
        tally: Mutex::default(),
    });
    let ran = processes(&shared, &parameters).await;
    shared.history.finish().context("write the history")?;
    ran?;
    let tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
    let summary = Summary {
        workload: args.workload.name(),
        volume: args.volume.clone(),
        seed: args.seed,
        elapsed_ms: millis(began.elapsed()),
        operations: tally.ended.clone(),
        slowest_ms: millis(tally.slowest),
    };
    print(args, &summary, out)
}

fn print(args: &Args, summary: &Summary, out: &mut impl Write) -> anyhow::Result<()> {
    if args.json {
        return print_json(out, summary);
    }
    let counts = summary.operations.iter();
    let counts: Vec<String> = counts
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    writeln!(
        out,
        "{} on `{}`, seed {}: {} in {} ms, the slowest took {} ms",
        summary.workload,
        summary.volume,
        summary.seed,
        counts.join(", "),
        summary.elapsed_ms,
        summary.slowest_ms
    )?;
    Ok(())
}

async fn processes(shared: &Arc<Shared>, parameters: &Value) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    for number in 0..shared.args.processes {
        let process = Process::new(shared, number);
        let first = log::first(parameters);
        let workload = shared.args.workload;
        running.spawn(async move {
            match workload {
                Workload::Registers => registers::process(process).await,
                Workload::Log => return log::process(process, first).await,
                Workload::Bank => bank::process(process, first).await,
            }
            None
        });
    }
    let mut followed = None;
    while let Some(ended) = running.join_next().await {
        let left = ended.context("a process of the workload panicked")?;
        followed = followed.or(left);
    }
    // A process of its own, after all others: it sees the end.
    let last = Process::new(shared, shared.args.processes);
    match shared.args.workload {
        Workload::Registers => registers::end(last).await,
        Workload::Log => log::end(last, log::first(parameters), followed).await,
        Workload::Bank => bank::end(last, log::first(parameters)).await,
    }
}

async fn make_volume(args: &Args, client: &Client) -> anyhow::Result<()> {
    let kind = match args.workload {
        Workload::Registers => VolumeKind::Block {
            size_bytes: u64::from(args.keys) * registers::BLOCK_BYTES,
        },
        Workload::Log | Workload::Bank => VolumeKind::Log,
    };
    let wanted = CreateVolume {
        shared: args.workload == Workload::Registers,
        ..CreateVolume::new(&args.volume, kind)
    };
    let admin = client.admin();
    let there = admin.list_volumes().await?;
    if there.iter().any(|volume| volume.name == args.volume) {
        return Ok(());
    }
    let made = admin.create_volume(wanted).await;
    made.with_context(|| format!("make the volume `{}`", args.volume))?;
    Ok(())
}

/// What all processes share.
struct Shared {
    args: Args,
    client: Client,
    history: History,
    /// Operations that may still begin.
    left: AtomicU64,
    give_up: Instant,
    next_value: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    ended: BTreeMap<String, u64>,
    slowest: Duration,
}

/// Does one thing at a time, and writes it down.
struct Process {
    shared: Arc<Shared>,
    random: StdRng,
    /// Changes after each `info`, so that a number has one operation under way.
    number: u64,
}

impl Process {
    fn new(shared: &Arc<Shared>, number: u32) -> Self {
        let seed = shared.args.seed;
        let number = u64::from(number);
        Self {
            shared: Arc::clone(shared),
            random: StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number)),
            number,
        }
    }

    /// Waits until the next operation may begin; false if none may any more.
    async fn may_begin(&mut self) -> bool {
        let args = &self.shared.args;
        if args.rate > 0 {
            let mean = Duration::from_secs(1) * args.processes / args.rate;
            let pause = mean.mul_f64(self.random.random_range(0.0..2.0));
            tokio::time::sleep(pause).await;
        }
        let left = &self.shared.left;
        let took = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
        took.is_ok() && Instant::now() < self.shared.give_up
    }

    /// A value that nobody wrote before.
    fn fresh_value(&self) -> u64 {
        self.shared.next_value.fetch_add(1, Ordering::Relaxed)
    }

    /// Carries out one operation and writes it down; what it ended with.
    async fn perform(
        &mut self,
        f: &str,
        asked: Value,
        operation: impl Future<Output = Ended>,
    ) -> Ended {
        let shared = Arc::clone(&self.shared);
        shared.history.invoke(self.number, f, &asked);
        let began = Instant::now();
        let ended = operation.await;
        shared.history.ended(self.number, f, asked, ended.clone());
        let how = match &ended {
            Ended::Ok(_) => "ok",
            Ended::Fail(_) => "fail",
            Ended::Info(_) => {
                self.number += u64::from(shared.args.processes) + 1;
                "info"
            }
        };
        let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
        *tally.ended.entry(format!("{f} {how}")).or_default() += 1;
        tally.slowest = tally.slowest.max(began.elapsed());
        ended
    }

    /// Opens the log, again and again until nothing may begin any more.
    async fn open_log(&self) -> Option<LogVolume> {
        let args = &self.shared.args;
        loop {
            let opened = self.shared.client.log(&args.volume).deadline(args.deadline);
            if let Ok(log) = opened.open().await {
                return Some(log);
            }
            if Instant::now() >= self.shared.give_up {
                return None;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

/// Repeats what has no effect until it succeeds.
async fn patiently<T, E: Into<anyhow::Error>, F: Future<Output = Result<T, E>>>(
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let give_up = Instant::now() + SERVED_WITHIN;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() >= give_up => return Err(error.into()).context(what),
            Err(_) => tokio::time::sleep(AGAIN_AFTER).await,
        }
    }
}

/// How a mutation that was not answered with success ended; `over` if its handle is of no use any more.
fn write_ended(error: &WriteError, over: &mut bool) -> Ended {
    match error {
        WriteError::Refused(refusal) => *over = is_over(refusal),
        WriteError::NoRoom { .. } => {}
        WriteError::Unknown { cause, .. } => return unknown(error, cause, over),
    }
    Ended::Fail(error.to_string())
}

/// The same of an append.
fn append_ended(error: &AppendError, over: &mut bool) -> Ended {
    match error {
        AppendError::Refused(refusal) => *over = is_over(refusal),
        AppendError::NoRoom { .. } => {}
        AppendError::Unknown { cause, .. } => return unknown(error, cause, over),
    }
    Ended::Fail(error.to_string())
}

fn unknown(error: &impl ToString, cause: &UnknownCause, over: &mut bool) -> Ended {
    // After a deadline the handle goes on, and so does the request.
    *over = !matches!(cause, UnknownCause::Deadline { .. });
    Ended::Info(error.to_string())
}

/// A read has no effect: without an answer it is as if it had not been.
fn read_ended(error: &ReadError, over: &mut bool) -> Ended {
    *over = matches!(error, ReadError::Refused(refusal) if is_over(refusal));
    Ended::Fail(error.to_string())
}

fn is_over(refusal: &Refusal) -> bool {
    !matches!(
        refusal,
        Refusal::Overloaded | Refusal::Unreadable | Refusal::UnexpectedPosition { .. }
    )
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
