//! The project's own commands: the gate, and the measurements that need whole clusters.

#![forbid(unsafe_code)]

mod chaos;
mod check;
mod failover;
mod gate;
mod product;
mod report;
mod soak;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The gate: format, lints, documentation, tests, simulator. Changes nothing
    Test(gate::Options),
    /// The gate's twin that changes files: formats, and applies what the lints suggest
    Fix,
    /// Kills, pauses and cuts off the nodes of a cluster under load, and judges what its clients saw
    Chaos(chaos::Options),
    /// Judges histories that `mainstay workload` wrote: linearizable registers, an append log, a bank
    Check(check::Options),
    /// Measures how long clients wait when a primary is lost, and that nothing acknowledged is lost with it
    Failover(failover::Options),
    /// Real programs on a cluster over NBD while its primaries are killed: fio, ext4, PostgreSQL, the NBD tools
    Soak(soak::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test(options) => gate::test(&options),
        Command::Fix => gate::fix(),
        Command::Chaos(options) => gate::root().and_then(|root| chaos::chaos(&options, &root)),
        Command::Check(options) => check::check(&options),
        Command::Failover(options) => {
            gate::root().and_then(|root| failover::failover(&options, &root))
        }
        Command::Soak(options) => gate::root().and_then(|root| soak::soak(&options, &root)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
