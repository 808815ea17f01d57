//! What a cluster costs that nobody uses: three data nodes and three witnesses as processes with default settings, one log
//! and one block volume, no client. Prints the time of processors and the memory of each node, supervisor and worker
//! together.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use mainstay_benches::cpu::Usage;
use mainstay_client::report::CreateVolume;
use mainstay_client::{Client, ClientConfig};
use mainstay_node::devcluster::{DevCluster, NodeStatus, Options};
use mainstay_types::VolumeKind;
use serde::Serialize;

/// What an idle cluster uses, a node.
#[derive(Debug, Parser)]
#[command(name = "idle")]
struct Cli {
    /// The product: a release build of `mainstay`
    #[arg(long, value_name = "FILE", default_value = "target/release/mainstay")]
    program: PathBuf,

    /// Where all files lie, in a directory of their own that is removed at the end
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Time that is measured, in seconds
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    seconds: f64,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One node.
#[derive(Debug, Serialize)]
struct Row {
    node: u32,
    roles: String,
    /// Of one core.
    cpu_percent: f64,
    resident_mib: f64,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let rows = runtime.block_on(measure(&cli))?;
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "idle for {} s, supervisor and worker together\n",
        cli.seconds
    );
    println!("node  roles     cpu % of a core  resident MiB");
    for row in rows {
        println!(
            "{:>4}  {:<8}  {:>15.2}  {:>12.1}",
            row.node, row.roles, row.cpu_percent, row.resident_mib
        );
    }
    Ok(())
}

async fn measure(cli: &Cli) -> anyhow::Result<Vec<Row>> {
    let program = cli.program.canonicalize().with_context(|| {
        format!(
            "{}: build it first with `cargo build --release`",
            cli.program.display()
        )
    })?;
    let dir = tempfile::Builder::new()
        .prefix("mainstay-idle-")
        .tempdir_in(&cli.dir)?;
    let options = Options {
        program,
        ..Options::new(dir.path().join("cluster"))?
    };
    let cluster = DevCluster::start(options).await?;
    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await?;
    let block = VolumeKind::Block {
        size_bytes: 64 << 20,
    };
    for (name, kind) in [("log", VolumeKind::Log), ("disk", block)] {
        client
            .admin()
            .create_volume(CreateVolume::new(name, kind))
            .await?;
    }
    drop(client);
    tokio::time::sleep(SETTLES).await;
    let nodes = cluster.status().nodes;
    let before = usages(&nodes)?;
    let began = Instant::now();
    tokio::time::sleep(Duration::try_from_secs_f64(cli.seconds).context("--seconds")?).await;
    let (after, took) = (usages(&nodes)?, began.elapsed());
    cluster.stop().await;
    let rows = nodes.iter().zip(before.iter().zip(&after));
    Ok(rows
        .map(|(node, (before, after))| row(node, before, after, took))
        .collect())
}

/// Of each node, both of its processes together.
fn usages(nodes: &[NodeStatus]) -> anyhow::Result<Vec<Usage>> {
    let of = |node: &NodeStatus| {
        let pid = |pid: Option<u32>| pid.with_context(|| format!("node {} does not run", node.id));
        let supervisor = Usage::of(pid(node.supervisor_pid)?)?;
        let worker = Usage::of(pid(node.worker_pid)?)?;
        anyhow::Ok(Usage {
            cpu: supervisor.cpu + worker.cpu,
            resident_bytes: supervisor.resident_bytes + worker.resident_bytes,
        })
    };
    nodes.iter().map(of).collect()
}

fn row(node: &NodeStatus, before: &Usage, after: &Usage, took: Duration) -> Row {
    let used = after.cpu.saturating_sub(before.cpu);
    let roles: Vec<String> = node
        .roles
        .iter()
        .map(|role| format!("{role:?}").to_lowercase())
        .collect();
    let mib = u32::try_from(after.resident_bytes >> 10).map_or(f64::INFINITY, f64::from) / 1024.0;
    Row {
        node: node.id.0,
        roles: roles.join("+"),
        cpu_percent: 100.0 * used.as_secs_f64() / took.as_secs_f64(),
        resident_mib: mib,
    }
}

/// After the volumes were made: elections, first checkpoints and prepared segments are over.
const SETTLES: Duration = Duration::from_secs(3);
