//! Appends through the whole product, beside the raw floor in the same run: three data nodes and three witnesses as
//! processes with default settings, one client; each load first on the floor, then on the product, several rounds in
//! turn, so that both see the same moods of the disk.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use mainstay_benches::cpu;
use mainstay_benches::disk::{self, Method};
use mainstay_benches::floor::{self, Floor};
use mainstay_benches::loads;
use mainstay_benches::product::Product;
use mainstay_benches::report::{Load, Quantiles};
use serde::Serialize;

/// Appends through the product beside the raw floor.
#[derive(Debug, Parser)]
#[command(name = "append", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Hidden>,

    /// The product: a release build of `mainstay`
    #[arg(long, value_name = "FILE", default_value = "target/release/mainstay")]
    program: PathBuf,

    /// Where all files lie, in a directory of their own that is removed at the end; name the disk to measure
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Rounds; each load is measured once in each
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,

    /// Time for each load, in seconds
    #[arg(long, value_name = "S", default_value_t = 1.5)]
    seconds: f64,

    /// Payload of a record, in bytes
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [256, 4096])]
    records: Vec<usize>,

    /// Records without an answer at any time
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    in_flight: Vec<usize>,

    /// A file with sections for the nodes' configuration, for experiments
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Hidden {
    /// A replica of the floor; not for people
    #[command(hide = true)]
    Replica {
        #[arg(long)]
        file: PathBuf,
        #[arg(long, value_enum)]
        method: Method,
    },
}

/// One load: medians over the rounds, and how far the rounds lay apart.
#[derive(Debug, Serialize)]
struct Row {
    load: Load,
    floor_ops: f64,
    product_ops: f64,
    /// Median of the rounds' own ratios.
    ratio: f64,
    ratio_lowest: f64,
    ratio_highest: f64,
    floor_p50_us: f64,
    product_p50_us: f64,
    product_p99_us: f64,
    /// Time of processors that a record took in all processes together, load and clients included.
    floor_cpu_us: f64,
    product_cpu_us: f64,
}

/// One load in one round.
struct Measured {
    floor: Part,
    product: Part,
}

/// One side of it.
struct Part {
    ops: f64,
    latency: Quantiles,
    cpu_us: f64,
}

#[derive(Debug, Serialize)]
struct Results {
    rounds: usize,
    seconds_per_load: f64,
    /// One durable write of 4 KiB at a time, before each round.
    probes: Vec<Quantiles>,
    rows: Vec<Row>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Hidden::Replica { file, method }) = cli.part {
        return floor::serve(&file, method).context("a replica of the floor");
    }
    // One thread, as a small application has it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let results = measure(&cli, &runtime)?;
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print(&results);
    }
    Ok(())
}

fn measure(cli: &Cli, runtime: &tokio::runtime::Runtime) -> anyhow::Result<Results> {
    ensure!(cli.rounds > 0, "--rounds is at least 1");
    let dir = tempfile::Builder::new()
        .prefix("mainstay-append-")
        .tempdir_in(&cli.dir)?;
    let mut floor = Floor::start(&std::env::current_exe()?, dir.path(), Method::Fdatasync)?;
    let extra_config = match &cli.config {
        Some(path) => std::fs::read_to_string(path).context("--config")?,
        None => String::new(),
    };
    let product = runtime.block_on(Product::start(&cli.program, dir.path(), extra_config))?;
    let span = Duration::try_from_secs_f64(cli.seconds)?;
    let asked: Vec<Load> = cli
        .records
        .iter()
        .flat_map(|bytes| {
            cli.in_flight.iter().map(|n| Load {
                record_bytes: *bytes,
                in_flight: *n,
            })
        })
        .collect();
    let mut probes = Vec::new();
    let mut measured: Vec<Vec<Measured>> = asked.iter().map(|_| Vec::new()).collect();
    for _ in 0..cli.rounds {
        probes.push(disk::probe(
            dir.path(),
            Method::Fdatasync,
            Duration::from_millis(300),
        )?);
        for (load, rows) in asked.iter().zip(&mut measured) {
            let floor = counted(|| {
                let row = floor.run(*load, span)?;
                Ok((row.ops_per_second, row.latency))
            })?;
            let appended = counted(|| {
                let done = runtime.block_on(loads::closed_loop(&product.log, *load, span))?;
                Ok((done.per_second, Quantiles::of(&done.times)))
            })?;
            rows.push(Measured {
                floor,
                product: appended,
            });
        }
    }
    runtime.block_on(product.stop());
    let rows = asked
        .iter()
        .zip(&measured)
        .map(|(load, rounds)| row(*load, rounds))
        .collect();
    Ok(Results {
        rounds: cli.rounds,
        seconds_per_load: cli.seconds,
        probes,
        rows,
    })
}

/// Runs one side of a load, with the time of processors that it takes.
fn counted(run: impl FnOnce() -> anyhow::Result<(f64, Quantiles)>) -> anyhow::Result<Part> {
    let before = cpu::family()?;
    let (ops, latency) = run()?;
    let used = cpu::family()?.saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds' work")]
    let cpu_us = used.as_secs_f64() * 1e6 / latency.count.max(1) as f64;
    Ok(Part {
        ops,
        latency,
        cpu_us,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(load: Load, rounds: &[Measured]) -> Row {
    let of = |pick: fn(&Measured) -> f64| rounds.iter().map(pick).collect::<Vec<f64>>();
    let ratios = of(|round| round.product.ops / round.floor.ops);
    Row {
        load,
        floor_ops: median(of(|round| round.floor.ops)),
        product_ops: median(of(|round| round.product.ops)),
        ratio: median(ratios.clone()),
        ratio_lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        ratio_highest: ratios.iter().copied().fold(0.0, f64::max),
        floor_p50_us: median(of(|round| round.floor.latency.p50_us)),
        product_p50_us: median(of(|round| round.product.latency.p50_us)),
        product_p99_us: median(of(|round| round.product.latency.p99_us)),
        floor_cpu_us: median(of(|round| round.floor.cpu_us)),
        product_cpu_us: median(of(|round| round.product.cpu_us)),
    }
}

fn print(results: &Results) {
    println!(
        "appends, committed on two of three copies; {} rounds of {} s a load, medians\n",
        results.rounds, results.seconds_per_load
    );
    println!(
        "record  in flight  floor ops/s  product ops/s  ratio (lowest-highest)  p50 us floor / product   p99 us  cpu us a record"
    );
    for row in &results.rows {
        println!(
            "{:>6}  {:>9}  {:>11.0}  {:>13.0}  {:>5.2} ({:.2}-{:.2})      {:>9.0} / {:<9.0}  {:>7.0}  {:>5.1} / {:<5.1}",
            row.load.record_bytes,
            row.load.in_flight,
            row.floor_ops,
            row.product_ops,
            row.ratio,
            row.ratio_lowest,
            row.ratio_highest,
            row.floor_p50_us,
            row.product_p50_us,
            row.product_p99_us,
            row.floor_cpu_us,
            row.product_cpu_us
        );
    }
    for probe in &results.probes {
        println!(
            "disk alone, one durable 4 KiB write: p50 {:.0} us, p99 {:.0} us",
            probe.p50_us, probe.p99_us
        );
    }
}
