//! `mainstay up` and `mainstay down`: a development cluster at the command line.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use mainstay_types::NodeId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::UpArgs;
use crate::config::Role;
use crate::devcluster::control::{self, Answer, Asker, Listener, Request};
use crate::devcluster::{self, ClusterFile, DevCluster, NodeState, NodeStatus, Options, Wanted};
use crate::{files, locate};

/// `mainstay up`.
pub async fn up(args: UpArgs) -> anyhow::Result<()> {
    if let Some(id) = args.restart {
        return restart(&args.dir, id).await;
    }
    if args.detach {
        return detach(&args).await;
    }
    let mut options = Options::new(&args.dir).context("find this program")?;
    options.wanted = Wanted {
        nodes: args.nodes,
        witnesses: args.witnesses,
        standby: args.standby_witnesses,
        host: args.host,
    };
    options.respawn = args.respawn;
    run(options).await
}

/// `mainstay down`.
pub async fn down(dir: &Path) -> anyhow::Result<()> {
    locate::cluster_file(dir)?;
    match control::ask(dir, Request::Stop).await? {
        Some(Answer::Done) => say(format_args!(
            "stopped; the data is kept in {}",
            dir.display()
        )),
        Some(Answer::Refused(reason)) => bail!(reason),
        None => match devcluster::stop_leftovers(dir).await? {
            Some(0) => say(format_args!("nothing runs in {}", dir.display())),
            Some(count) => say(format_args!(
                "stopped {count} processes that an earlier `mainstay up` left"
            )),
            None => bail!(
                "`mainstay up` runs in {} but does not listen yet; try again in a moment",
                dir.display()
            ),
        },
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let start = DevCluster::start(options);
    let cluster = tokio::select! {
        cluster = start => Arc::new(cluster?),
        // Dropping the start kills what was started.
        () = stop.asked() => bail!("interrupted before the cluster was up"),
    };
    let listener = Listener::bind(cluster.dir()).context("listen for `mainstay down`")?;
    say(format_args!("{}", table(&cluster.status())))?;
    say(format_args!("{}", hints(cluster.dir())))?;
    let asker = serve(&cluster, &listener, &mut stop).await;
    say(format_args!("stopping"))?;
    cluster.stop().await;
    if let Some(asker) = asker {
        // Somebody who does not wait for the answer needs none.
        let _ = asker.answer(&Answer::Done).await;
    }
    Ok(())
}

/// Until somebody asks to stop; returns who, if it came through the socket.
async fn serve(cluster: &Arc<DevCluster>, listener: &Listener, stop: &mut Stop) -> Option<Asker> {
    let mut shown = cluster.status();
    let mut state = cluster.watch();
    let (stops, mut stopped) = mpsc::channel(1);
    loop {
        tokio::select! {
            () = stop.asked() => return None,
            Some(asker) = stopped.recv() => return Some(asker),
            Ok(()) = state.changed() => {
                let now = cluster.status();
                tell_changes(&shown, &now);
                shown = now;
            }
            asker = listener.accept() => if let Ok(asker) = asker {
                // A node may take a while to start; Ctrl-C must not wait for it.
                tokio::spawn(answer(cluster.clone(), asker, stops.clone()));
            },
        }
    }
}

async fn answer(cluster: Arc<DevCluster>, mut asker: Asker, stops: mpsc::Sender<Asker>) {
    let request = tokio::time::timeout(ASK_WITHIN, asker.request()).await;
    let answer = match request {
        Ok(Ok(Request::Stop)) => {
            // The loop that receives it ends at the first, so a second finds the channel full or closed.
            let _ = stops.try_send(asker);
            return;
        }
        Ok(Ok(Request::Restart(id))) => match cluster.restart(id).await {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(error.to_string()),
        },
        Ok(Err(error)) => Answer::Refused(error.to_string()),
        Err(_) => return,
    };
    let _ = asker.answer(&answer).await;
}

async fn restart(dir: &Path, id: u32) -> anyhow::Result<()> {
    match control::ask(dir, Request::Restart(NodeId(id))).await? {
        Some(Answer::Done) => say(format_args!("node {id} runs again")),
        Some(Answer::Refused(reason)) => bail!(reason),
        None => bail!(
            "no `mainstay up` runs in {dir}; start the cluster with `mainstay up --dir {dir}`",
            dir = dir.display()
        ),
    }
}

/// Starts the same command in the background and waits until its cluster is up.
async fn detach(args: &UpArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    let log_path = args.dir.join("up.log");
    let log = File::create(&log_path).with_context(|| log_path.display().to_string())?;
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(args.foreground())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start the background process")?;
    loop {
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(&log_path).unwrap_or_default();
            bail!("the cluster did not start ({status}):\n{}", said.trim_end());
        }
        if let Some(file) = up_as(&args.dir, child.id()) {
            say(format_args!("{}", table(&file)))?;
            return say(format_args!("{}", hints(&args.dir)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The cluster of `dir` once the process `pid` runs it and listens.
fn up_as(dir: &Path, pid: u32) -> Option<ClusterFile> {
    let file: ClusterFile = files::read_json(&ClusterFile::path(dir)).ok()??;
    let up = file.up_pid == Some(pid)
        && dir.join("up.sock").exists()
        && file
            .nodes
            .iter()
            .all(|node| node.state == NodeState::Running);
    up.then_some(file)
}

/// One line for each node whose state changed.
fn tell_changes(before: &ClusterFile, now: &ClusterFile) {
    for node in &now.nodes {
        if before
            .node(node.id)
            .is_some_and(|old| old.state == node.state)
        {
            continue;
        }
        let id = node.id;
        let told = match &node.state {
            NodeState::Starting => say(format_args!("node {id} is starting")),
            NodeState::Running => say(format_args!("node {id} runs")),
            NodeState::Unsupervised => {
                say(format_args!("node {id} goes on without its supervisor"))
            }
            NodeState::Exited { reason } => say(format_args!(
                "node {id} ended ({reason}); `mainstay up --restart {id}` starts it again"
            )),
        };
        // A closed terminal must not end the cluster.
        drop(told);
    }
}

fn table(file: &ClusterFile) -> String {
    let mut rows = vec![["NODE", "ROLES", "PROCESS", "gRPC", "NBD", "HTTP"].map(str::to_owned)];
    rows.extend(file.nodes.iter().map(row));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(widths);
            let cells: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

fn row(node: &NodeStatus) -> [String; 6] {
    let roles: Vec<&str> = node
        .roles
        .iter()
        .map(|role| match role {
            Role::Data => "data",
            Role::Witness => "witness",
            Role::StandbyWitness => "standby-witness",
        })
        .collect();
    let process = node.worker_pid.map(|pid| pid.to_string());
    [
        node.id.to_string(),
        roles.join("+"),
        process.unwrap_or_else(|| "-".to_owned()),
        node.grpc.clone(),
        node.nbd.clone().unwrap_or_else(|| "-".to_owned()),
        node.http.clone(),
    ]
}

fn hints(dir: &Path) -> String {
    let dir_arg = if dir.ends_with(locate::DEFAULT_DIR) {
        String::new()
    } else {
        format!(" --dir {}", dir.display())
    };
    format!(
        "\ntry: mainstay volume create ledger --kind log{dir_arg}\nstop with Ctrl-C or `mainstay down{dir_arg}`; the data is kept in {}",
        dir.display()
    )
}

/// Like `println!`, for output that may be a pipe that somebody closed.
fn say(text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())?;
    Ok(())
}

/// Ctrl-C, a closed terminal, or a polite kill.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn install() -> io::Result<Self> {
        Ok(Self {
            signals: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ],
        })
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

const ASK_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);
