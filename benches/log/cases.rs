//! The cases: what is run, against what, and what it should come to.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use mainstay_benches::disk::{self, Method};
use mainstay_benches::loads::{self, Outcome};
use mainstay_benches::report::{Load, Quantiles, histogram};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::rig::Rig;
use crate::{Case, Cli, reading};

/// Atomic batches without an answer at any time.
const BATCHES_IN_FLIGHT: [usize; 2] = [1, 16];
/// The closed loop that an open loop's rates are parts of.
const FULL: usize = 64;

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) rounds: usize,
    pub(crate) seconds_per_load: f64,
    /// One durable write of 4 KiB at a time, before each round.
    pub(crate) probes: Vec<Quantiles>,
    pub(crate) rows: Vec<Row>,
}

/// One load, against one reference or none: medians over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) load: String,
    /// Records a second; batches a second for batches.
    pub(crate) ours_per_second: f64,
    /// All rounds together.
    pub(crate) times: Option<Quantiles>,
    pub(crate) theirs: Option<Theirs>,
    pub(crate) goal: Option<Goal>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Theirs {
    pub(crate) name: String,
    pub(crate) per_second: f64,
    pub(crate) p50_us: Option<f64>,
    /// Ours by theirs, of rates or, where the goal is one of times, of p50: the median of the rounds' own ratios.
    pub(crate) ratio: f64,
    pub(crate) ratio_lowest: f64,
    pub(crate) ratio_highest: f64,
}

/// Bounds of the ratio, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) enum Goal {
    /// Of rates.
    AtLeast(f64),
    /// Of p50.
    P50AtMost(f64),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::P50AtMost(bound) => write!(f, "p50 <= {bound}"),
        }
    }
}

impl Row {
    pub(crate) fn met(&self) -> bool {
        match (&self.theirs, self.goal) {
            (Some(theirs), Some(Goal::AtLeast(bound))) => theirs.ratio >= bound,
            (Some(theirs), Some(Goal::P50AtMost(bound))) => theirs.ratio <= bound,
            _ => true,
        }
    }
}

/// One side in one round.
#[derive(Debug)]
pub(crate) struct Side {
    per_second: f64,
    times: Option<Histogram<u64>>,
}

impl From<Outcome> for Side {
    fn from(outcome: Outcome) -> Self {
        Self {
            per_second: outcome.per_second,
            times: Some(outcome.times),
        }
    }
}

/// One load over all rounds, with each of its references.
struct Collected {
    case: &'static str,
    load: String,
    ours: Vec<Side>,
    theirs: Vec<(String, Option<Goal>, Vec<Side>)>,
}

/// All loads, in the order in which they were first run.
#[derive(Default)]
pub(crate) struct Table(Vec<Collected>);

impl Table {
    pub(crate) fn ours(&mut self, case: &'static str, load: &str, side: impl Into<Side>) {
        self.of(case, load).ours.push(side.into());
    }

    fn theirs(
        &mut self,
        case: &'static str,
        load: &str,
        name: &str,
        goal: Option<Goal>,
        side: impl Into<Side>,
    ) {
        let of = self.of(case, load);
        match of.theirs.iter_mut().find(|(known, ..)| known == name) {
            Some((.., sides)) => sides.push(side.into()),
            None => of.theirs.push((name.to_owned(), goal, vec![side.into()])),
        }
    }

    fn of(&mut self, case: &'static str, load: &str) -> &mut Collected {
        let known = self.0.iter().position(|c| c.case == case && c.load == load);
        let at = known.unwrap_or_else(|| {
            self.0.push(Collected {
                case,
                load: load.to_owned(),
                ours: Vec::new(),
                theirs: Vec::new(),
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

pub(crate) fn measure(cli: &Cli, runtime: &Runtime) -> anyhow::Result<Results> {
    let dir = tempfile::Builder::new()
        .prefix("mainstay-log-")
        .tempdir_in(&cli.dir)?;
    // The servers of PostgreSQL, which do not run as root, have to come through.
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let span = Duration::try_from_secs_f64(cli.seconds).context("--seconds")?;
    let started = Rig::start(&cli.program, dir.path(), !cli.without_others);
    let mut rig = runtime.block_on(started)?;
    let mut table = Table::default();
    let mut probes = Vec::new();
    for round in 1..=cli.rounds {
        let probe = disk::probe(dir.path(), Method::Fdatasync, Duration::from_millis(300))?;
        probes.push(probe);
        eprintln!("round {round} of {}", cli.rounds);
        for case in &cli.only {
            match case {
                Case::Closed => closed(cli, runtime, &mut rig, span, &mut table)?,
                Case::Open => open(cli, runtime, &rig, span, &mut table)?,
                Case::Batches => batches(cli, runtime, &mut rig, span, &mut table)?,
                Case::Tail => reading::tail(runtime, &rig, span, dir.path(), &mut table)?,
                Case::Reads => reading::reads(runtime, &rig, span, dir.path(), &mut table)?,
            }
        }
    }
    runtime.block_on(rig.product.stop());
    if let Some(to) = &cli.histograms {
        write_histograms(&table, to)?;
    }
    Ok(Results {
        rounds: cli.rounds,
        seconds_per_load: cli.seconds,
        probes,
        rows: table.0.iter().flat_map(rows).collect(),
    })
}

fn closed(
    cli: &Cli,
    runtime: &Runtime,
    rig: &mut Rig,
    span: Duration,
    table: &mut Table,
) -> anyhow::Result<()> {
    for record_bytes in &cli.records {
        for in_flight in &cli.in_flight {
            let (record_bytes, in_flight) = (*record_bytes, *in_flight);
            let load = Load {
                record_bytes,
                in_flight,
            };
            let name = format!("{record_bytes} B, {in_flight} in flight");
            let small = record_bytes == 256 && in_flight == FULL;
            let floor = rig.floor.run_timed(load, span)?;
            let goal = match in_flight {
                1 => Some(Goal::P50AtMost(1.5)),
                64 | 256 => Some(Goal::AtLeast(0.5)),
                _ => None,
            };
            table.theirs("closed", &name, "the raw floor", goal, floor);
            let ours = runtime.block_on(loads::closed_loop(&rig.product.log, load, span))?;
            table.ours("closed", &name, ours);
            if let Some(etcd) = &rig.etcd {
                let side = runtime.block_on(etcd.run(load, span))?;
                let goal = small.then_some(Goal::AtLeast(8.0));
                table.theirs("closed", &name, "etcd, 3 members", goal, side);
            }
            if let Some(postgres) = &mut rig.postgres {
                let side = postgres.run(load, span)?;
                let goal = small.then_some(Goal::AtLeast(5.0));
                table.theirs("closed", &name, "PostgreSQL, ANY 1 of 2", goal, side);
            }
        }
    }
    Ok(())
}

fn open(
    cli: &Cli,
    runtime: &Runtime,
    rig: &Rig,
    span: Duration,
    table: &mut Table,
) -> anyhow::Result<()> {
    let log = &rig.product.log;
    for record_bytes in &cli.records {
        let record_bytes = *record_bytes;
        let load = Load {
            record_bytes,
            in_flight: FULL,
        };
        let full = runtime.block_on(loads::closed_loop(log, load, span))?;
        for part in &cli.rates {
            let rate = full.per_second * part;
            let side = runtime.block_on(loads::open_loop(log, record_bytes, rate, span))?;
            let name = format!("{record_bytes} B, {part} of {FULL} in flight");
            table.ours("open", &name, side);
        }
    }
    Ok(())
}

fn batches(
    cli: &Cli,
    runtime: &Runtime,
    rig: &mut Rig,
    span: Duration,
    table: &mut Table,
) -> anyhow::Result<()> {
    let (batch, record_bytes) = (cli.batch, 256);
    for in_flight in BATCHES_IN_FLIGHT {
        let name = format!("{batch} x {record_bytes} B, {in_flight} in flight");
        // The floor knows no batches: as many bytes in one record cost it the same.
        let load = Load {
            record_bytes: batch * record_bytes,
            in_flight,
        };
        let floor = rig.floor.run_timed(load, span)?;
        table.theirs(
            "batches",
            &name,
            "the raw floor, one record each",
            None,
            floor,
        );
        let log = &rig.product.log;
        let ours = loads::batches(log, record_bytes, batch, in_flight, span);
        table.ours("batches", &name, runtime.block_on(ours)?);
    }
    Ok(())
}

impl Table {
    /// Of a load that has a rate and no times of single operations.
    pub(crate) fn rates(
        &mut self,
        case: &'static str,
        load: &str,
        ours: f64,
        theirs: Option<(&str, f64)>,
    ) {
        let side = |per_second| Side {
            per_second,
            times: None,
        };
        self.ours(case, load, side(ours));
        if let Some((name, rate)) = theirs {
            self.theirs(case, load, name, None, side(rate));
        }
    }
}

fn rows(load: &Collected) -> Vec<Row> {
    let row = |theirs, goal| Row {
        case: load.case,
        load: load.load.clone(),
        ours_per_second: median(load.ours.iter().map(|side| side.per_second).collect()),
        times: merged(&load.ours).as_ref().map(Quantiles::of),
        theirs,
        goal,
    };
    if load.theirs.is_empty() {
        return vec![row(None, None)];
    }
    let against = |(name, goal, sides): &(String, Option<Goal>, Vec<Side>)| {
        let ratios = load
            .ours
            .iter()
            .zip(sides)
            .map(|(ours, theirs)| match goal {
                Some(Goal::P50AtMost(_)) => p50(ours) / p50(theirs),
                _ => ours.per_second / theirs.per_second,
            });
        let ratios: Vec<f64> = ratios.collect();
        let theirs = Theirs {
            name: name.clone(),
            per_second: median(sides.iter().map(|side| side.per_second).collect()),
            p50_us: merged(sides).map(|times| Quantiles::of(&times).p50_us),
            ratio: median(ratios.clone()),
            ratio_lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratio_highest: ratios.iter().copied().fold(0.0, f64::max),
        };
        row(Some(theirs), *goal)
    };
    load.theirs.iter().map(against).collect()
}

fn p50(side: &Side) -> f64 {
    let times = side.times.as_ref();
    times.map_or(f64::NAN, |times| Quantiles::of(times).p50_us)
}

fn merged(sides: &[Side]) -> Option<Histogram<u64>> {
    let mut all = histogram();
    for side in sides {
        all.add(side.times.as_ref()?).ok()?;
    }
    Some(all)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn write_histograms(table: &Table, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for load in &table.0 {
        let ours = [("mainstay", &load.ours)];
        let theirs = load
            .theirs
            .iter()
            .map(|(name, _, sides)| (name.as_str(), sides));
        for (name, sides) in ours.into_iter().chain(theirs) {
            let Some(times) = merged(sides) else { continue };
            let file = format!("{}-{}-{name}.hgrm", load.case, load.load);
            let file = to.join(file.replace([' ', ',', '/'], "_"));
            std::fs::write(&file, distribution(&times))
                .with_context(|| file.display().to_string())?;
        }
    }
    Ok(())
}

/// The times as HdrHistogram's plotters read them: microseconds, part of all, count, and one divided by the part above.
fn distribution(times: &Histogram<u64>) -> String {
    let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    for step in times.iter_quantiles(5) {
        let micros = Duration::from_nanos(step.value_iterated_to()).as_secs_f64() * 1e6;
        let part = step.quantile_iterated_to();
        let above = 1.0 / (1.0 - part);
        let count = times.count_between(0, step.value_iterated_to());
        let _infallible = writeln!(text, "{micros:12.3} {part:14.12} {count:10} {above:14.2}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(per_second: f64, micros: u64) -> Side {
        let mut times = histogram();
        times.record(micros * 1000).expect("in range");
        Side {
            per_second,
            times: Some(times),
        }
    }

    #[test]
    fn a_row_has_the_median_of_the_rounds_ratios_and_says_whether_the_goal_is_met() {
        let mut table = Table::default();
        for (ours, theirs) in [(10.0, 10.0), (6.0, 10.0), (9.0, 30.0)] {
            table.theirs(
                "closed",
                "l",
                "floor",
                Some(Goal::AtLeast(0.5)),
                side(theirs, 100),
            );
            table.theirs(
                "closed",
                "l",
                "slow",
                Some(Goal::P50AtMost(1.5)),
                side(1.0, 100),
            );
            table.ours("closed", "l", side(ours, 200));
        }
        let rows = rows(&table.0[0]);
        let floor = rows[0].theirs.as_ref().expect("a reference");
        assert!((floor.ratio - 0.6).abs() < 1e-9 && rows[0].met());
        assert!((floor.ratio_lowest - 0.3).abs() < 1e-9);
        let slow = rows[1].theirs.as_ref().expect("a reference");
        assert!(
            (slow.ratio - 2.0).abs() < 0.01 && !rows[1].met(),
            "{slow:?}"
        );
    }
}
