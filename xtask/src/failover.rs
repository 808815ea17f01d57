//! How long clients wait when a primary is lost: kills it again and again under load, and measures.
//!
//! One cluster of three data nodes and three witnesses with default settings. A log client and an NBD client write all
//! the time, the latter through a node that is never a victim. Before each fault both volumes have their primary on the
//! victim; the gap of a client is the longest span without an acknowledgement around the fault. At the end everything
//! is read back: an acknowledged write that is lost or there twice fails the command, a missed time does not.

mod run;
mod table;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use mainstay_node::demo::faults::FaultKind;

use table::Measured;

/// Of `failover`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Faults of each kind
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    kills: u32,

    /// How the primary is lost: SIGKILL of the worker, SIGKILL of worker and supervisor, SIGSTOP of both
    #[arg(long, value_enum, default_value = "all")]
    mode: Mode,

    /// Appends, and NBD requests, in flight
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: u32,

    /// Seed of the load
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Measure this program instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Keep the cluster's directory, with the logs of all nodes
    #[arg(long)]
    keep: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Process,
    Machine,
    Freeze,
    All,
}

impl Mode {
    fn kinds(self) -> Vec<FaultKind> {
        match self {
            Self::Process => vec![FaultKind::Process],
            Self::Machine => vec![FaultKind::Machine],
            Self::Freeze => vec![FaultKind::Freeze],
            Self::All => FaultKind::ALL.to_vec(),
        }
    }
}

/// Measures. `Ok(false)` if a write was lost, or applied twice.
pub(crate) fn failover(options: &Options, root: &Path) -> anyhow::Result<bool> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => crate::product::build(root)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut measured = Vec::new();
    for kind in options.mode.kinds() {
        let one = runtime.block_on(run::measure(options, &program, kind))?;
        if !options.json {
            print!("{}", table::details(&one));
        }
        measured.push(one);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
    } else {
        print!("{}", table::summary(&measured));
    }
    Ok(measured.iter().all(Measured::nothing_lost))
}
