//! The binary `mainstay`: reads the command line and calls what carries it out.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use mainstay_node::cli::{Cli, Command, NodeArgs, WorkerArgs};
use mainstay_node::commands::log::verify::NotVerified;
use mainstay_node::config::Config;
use mainstay_node::release::WitnessSink;
use mainstay_node::supervisor::{self, EXIT_CONFIG};
use mainstay_node::worker;
use mainstay_node::{demo, dispatch, logging, up};

/// What one thread takes here another one often gives back: an entry goes from a stream to the volume's thread to the disk.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of `log verify`: told apart from what could not be looked at. Two is for a wrong command line.
const EXIT_NOT_VERIFIED: u8 = 3;

fn main() -> ExitCode {
    match carry_out(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mainstay: {error:#}");
            if error.is::<NotVerified>() {
                ExitCode::from(EXIT_NOT_VERIFIED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Node(args) => node(&args),
        Command::Up(args) => {
            logging::init("warn")?;
            runtime()?.block_on(up::up(args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Down(args) => {
            logging::init("error")?;
            runtime()?.block_on(up::down(&args.dir))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Worker(args) => run_worker(&args),
        Command::Descriptors => {
            std::io::stdout().write_all(mainstay_proto::DESCRIPTORS)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(args) => {
            logging::init("error")?;
            let holds = busy_runtime()?.block_on(demo::demo(&args))?;
            Ok(if holds {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        command => {
            logging::init("error")?;
            match busy_runtime()?.block_on(dispatch::run(command)) {
                Some(result) => result.map(|()| ExitCode::SUCCESS),
                None => bail!("not a command of a cluster"),
            }
        }
    }
}

fn node(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::new(error));
            return Ok(exit_code(EXIT_CONFIG));
        }
    };
    logging::init(&config.log.level)?;
    for warning in config.warnings() {
        tracing::warn!("{}: {warning}", args.config.display());
    }
    if args.check {
        println!("{}: good", args.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    let options = supervisor::Options {
        node: config.node.id,
        data_dir: config.node.data_dir.clone(),
        config_path: args.config.clone(),
        program: std::env::current_exe().context("find this program")?,
        restart: !args.no_restart,
    };
    let code = runtime()?.block_on(async {
        let sink = WitnessSink::new(&config)?;
        anyhow::Ok(supervisor::run(options, sink).await?)
    })?;
    Ok(exit_code(code))
}

/// One thread: a supervisor and a development cluster wait, they do not work.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

/// For what works beside a cluster on the same machine.
fn busy_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn run_worker(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::new(error));
            return Ok(exit_code(EXIT_CONFIG));
        }
    };
    logging::init(&config.log.level)?;
    // Few threads: a volume's work runs on threads of its own, and each wake-up that finds a thread awake is one saved.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).clamp(1, 4))
        .max_blocking_threads(16)
        .enable_all()
        .build()?;
    match runtime.block_on(worker::run(config, args.instance)) {
        Err(error) if worker::is_for_people(&error) => {
            eprintln!("mainstay: {error:#}");
            Ok(exit_code(EXIT_CONFIG))
        }
        ran => ran.map(|()| ExitCode::SUCCESS),
    }
}
