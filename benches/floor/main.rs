//! Prints the raw floor of replicated appends on this machine, beside a plain probe of the disk in the same run.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use mainstay_benches::disk::{self, Method};
use mainstay_benches::floor::{self, Floor};
use mainstay_benches::report::{Load, Quantiles, Row, Table};

/// The raw floor of replicated appends: three processes, one durable write a batch, a quorum of two.
#[derive(Debug, Parser)]
#[command(name = "floor", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,

    /// Time for each load, in seconds
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,

    /// Where the three files lie, in a directory of their own that is removed at the end; name the disk to measure
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// How a batch is made durable
    #[arg(long, value_enum, default_value = "fdatasync")]
    method: Method,

    /// Payload of a record, in bytes
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [256, 4096])]
    records: Vec<usize>,

    /// Records without an answer at any time
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    in_flight: Vec<usize>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The process that the others start; not for people
    #[command(hide = true)]
    Replica {
        #[arg(long)]
        file: PathBuf,
        #[arg(long, value_enum)]
        method: Method,
    },
}

/// Everything of one run.
#[derive(Debug, serde::Serialize)]
struct Results {
    method: Method,
    seconds_per_load: f64,
    /// One durable write of 4 KiB at a time, before the loads and after them: the disk may have changed its mood.
    probe_before: Quantiles,
    probe_after: Quantiles,
    rows: Vec<Row>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Part::Replica { file, method }) = cli.part {
        return floor::serve(&file, method).context("a replica of the floor");
    }
    let results = measure(&cli)?;
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print(&results);
    }
    Ok(())
}

fn measure(cli: &Cli) -> anyhow::Result<Results> {
    let loads = loads(cli)?;
    let span = Duration::try_from_secs_f64(cli.seconds).context("--seconds")?;
    let dir = tempfile::Builder::new()
        .prefix("mainstay-floor-")
        .tempdir_in(&cli.dir)
        .with_context(|| format!("a directory in {}", cli.dir.display()))?;
    let probe = || {
        disk::probe(dir.path(), cli.method, PROBE).with_context(|| {
            format!(
                "direct I/O in {}: name a directory on a disk with --dir",
                cli.dir.display()
            )
        })
    };
    let probe_before = probe()?;
    let mut floor = Floor::start(&std::env::current_exe()?, dir.path(), cli.method)?;
    let mut rows = Vec::new();
    for load in loads {
        rows.push(floor.run(load, span)?);
    }
    drop(floor);
    Ok(Results {
        method: cli.method,
        seconds_per_load: cli.seconds,
        probe_before,
        probe_after: probe()?,
        rows,
    })
}

fn loads(cli: &Cli) -> anyhow::Result<Vec<Load>> {
    let mut loads = Vec::new();
    for record_bytes in &cli.records {
        for in_flight in &cli.in_flight {
            let bytes = record_bytes.saturating_mul(*in_flight);
            if bytes == 0 || bytes > BATCH_BYTES_MAX {
                bail!(
                    "{in_flight} records of {record_bytes} bytes: use 1 byte to 16 MiB in flight"
                );
            }
            loads.push(Load {
                record_bytes: *record_bytes,
                in_flight: *in_flight,
            });
        }
    }
    Ok(loads)
}

fn print(results: &Results) {
    println!(
        "method {:?}, {} s a load; committed = durable on the primary and one of two replicas\n",
        results.method, results.seconds_per_load
    );
    println!("{}", Table(&results.rows));
    let probes = [
        ("before", results.probe_before),
        ("after", results.probe_after),
    ];
    for (when, probe) in probes {
        println!(
            "disk alone, one durable 4 KiB write at a time, {when}: p50 {:.0} us, p99 {:.0} us",
            probe.p50_us, probe.p99_us
        );
    }
}

const PROBE: Duration = Duration::from_millis(500);
/// A quarter of each file.
const BATCH_BYTES_MAX: usize = 16 << 20;
