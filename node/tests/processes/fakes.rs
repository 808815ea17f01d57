//! The parts that this program plays in child processes.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use mainstay_node::cli::{Cli, Command, WorkerArgs};
use mainstay_node::config::Config;
use mainstay_node::supervisor::{self, ReleaseError, ReleaseSink};
use mainstay_node::{processes, up};
use mainstay_types::{Instance, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// In the data directory: one line for each report, `NODE INSTANCE gone|alive`.
pub(crate) const REPORTS: &str = "reports";
/// In the data directory: one line for each start of a worker.
pub(crate) const STARTS: &str = "starts";
/// In the data directory: the code with which a worker ends at once.
pub(crate) const EXIT_AT_ONCE: &str = "exit_at_once";
/// In the data directory: a worker takes no notice of SIGTERM.
pub(crate) const DEAF: &str = "deaf";

/// `node --config FILE [--no-restart]`: the supervisor with a sink that writes to a file.
pub(crate) fn supervisor() -> ExitCode {
    let Command::Node(args) = Cli::parse().command else {
        unreachable!("called for `node`");
    };
    let config = Config::load(&args.config).expect("a good configuration");
    let sink = FileSink {
        data_dir: config.node.data_dir.clone(),
    };
    let options = supervisor::Options {
        node: config.node.id,
        data_dir: config.node.data_dir,
        config_path: args.config,
        program: std::env::current_exe().expect("this program"),
        restart: !args.no_restart,
    };
    match runtime().block_on(supervisor::run(options, sink)) {
        Ok(code) => ExitCode::from(u8::try_from(code).expect("an exit code")),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// `worker --config FILE --instance ID`: answers health checks until it is told to stop.
pub(crate) fn worker() -> ExitCode {
    let Command::Worker(args) = Cli::parse().command else {
        unreachable!("called for `worker`");
    };
    runtime().block_on(work(args))
}

/// The real commands; the nodes they start are this program again.
pub(crate) fn up_or_down() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(args) => runtime().block_on(up::up(args)),
        Command::Down(args) => runtime().block_on(up::down(&args.dir)),
        _ => unreachable!("called for `up` and `down`"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

struct FileSink {
    data_dir: PathBuf,
}

impl ReleaseSink for FileSink {
    async fn release(&self, node: NodeId, instance: Instance) -> Result<(), ReleaseError> {
        let state = if has_children() { "alive" } else { "gone" };
        append(
            &self.data_dir.join(REPORTS),
            &format!("{node} {instance} {state}"),
        );
        Ok(())
    }
}

/// Whether this supervisor has a child at all, a zombie that was not waited for included. The report is the first
/// thing that happens after `wait`, long before the next worker.
fn has_children() -> bool {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    let children = std::fs::read_to_string(path).expect("the kernel lists children");
    !children.trim().is_empty()
}

async fn work(args: WorkerArgs) -> ExitCode {
    // Before anybody can know of this process and stop it.
    let mut terminate = signal(SignalKind::terminate()).expect("a handler");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a handler");
    let config = Config::load(&args.config).expect("a good configuration");
    let data_dir = &config.node.data_dir;
    append(&data_dir.join(STARTS), &args.instance.to_string());
    if let Ok(code) = std::fs::read_to_string(data_dir.join(EXIT_AT_ONCE)) {
        return ExitCode::from(code.trim().parse::<u8>().expect("a code"));
    }
    assert!(processes::runs(
        std::process::id(),
        &args.instance.to_string()
    ));
    let listener = TcpListener::bind(config.node.http.0)
        .await
        .expect("a free port");
    let deaf = data_dir.join(DEAF).exists();
    loop {
        tokio::select! {
            _ = terminate.recv() => if !deaf { return ExitCode::SUCCESS },
            _ = interrupt.recv() => if !deaf { return ExitCode::SUCCESS },
            Ok((mut stream, _)) = listener.accept() => {
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    }
}

fn append(path: &Path, line: &str) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .expect("a file to append to");
    writeln!(file, "{line}").expect("written");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
