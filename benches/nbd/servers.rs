//! Everything that fio talks to: our cluster, the other servers, each with a file of its own, and a plain file.
//!
//! Nothing outlives [`Servers`].

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mainstay_client::report::CreateVolume;
use mainstay_client::{Client, ClientConfig};
use mainstay_node::devcluster::{DevCluster, Options};
use mainstay_types::{NodeId, VolumeKind};
use tokio::runtime::Runtime;

use crate::cases::Reference;
use crate::fio::{self, Job, Target};

/// The volume, and the export of every server.
const EXPORT: &str = "disk";
/// The first of the placement becomes primary.
const PRIMARY: NodeId = NodeId(1);
/// For a server to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// Clients that qemu-nbd takes at a time.
const CLIENTS_MAX: &str = "16";

/// All of them, running.
#[derive(Debug)]
pub(crate) struct Servers {
    runtime: Runtime,
    cluster: DevCluster,
    ours: Target,
    others: Vec<(Reference, Target)>,
    /// Killed when this is dropped.
    _processes: Vec<Process>,
}

impl Servers {
    /// Starts our cluster and those of the others that are `wanted`, and fills all of them with data.
    pub(crate) fn start(
        program: PathBuf,
        extra_config: String,
        dir: &Path,
        size_bytes: u64,
        wanted: &dyn Fn(Reference) -> bool,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let options = Options {
            program,
            extra_config,
            ..Options::new(dir.join("cluster"))?
        };
        let (cluster, uri) = runtime.block_on(start_ours(options, size_bytes))?;
        let name = "ours";
        let ours = Target::Nbd { name, uri };
        let mut others = Vec::new();
        let mut processes = Vec::new();
        for reference in [
            Reference::QemuWritethrough,
            Reference::QemuNone,
            Reference::NbdkitFile,
            Reference::Disk,
        ] {
            if !wanted(reference) {
                continue;
            }
            let file = dir.join(format!("{reference:?}"));
            std::fs::File::create(&file)?.set_len(size_bytes)?;
            let (target, process) = start_other(reference, &file)?;
            others.push((reference, target));
            processes.extend(process);
        }
        let servers = Self {
            runtime,
            cluster,
            ours,
            others,
            _processes: processes,
        };
        servers.fill(size_bytes >> 20, dir)?;
        Ok(servers)
    }

    pub(crate) fn ours(&self) -> &Target {
        &self.ours
    }

    pub(crate) fn reference(&self, reference: Reference) -> anyhow::Result<&Target> {
        let found = self.others.iter().find(|(other, _)| *other == reference);
        let (_, target) = found.with_context(|| format!("{} was not started", reference.name()))?;
        Ok(target)
    }

    /// Stops the cluster in order; the others have nothing to lose.
    pub(crate) fn stop(self) {
        self.runtime.block_on(self.cluster.stop());
    }

    fn fill(&self, size_mib: u64, dir: &Path) -> anyhow::Result<()> {
        for target in std::iter::once(&self.ours).chain(self.others.iter().map(|(_, to)| to)) {
            // The time is a bound, not a length: the job ends when all is written.
            fio::run(Job::Fill, target, size_mib, 600, dir)
                .with_context(|| format!("fill {}", target.name()))?;
        }
        Ok(())
    }
}

async fn start_ours(options: Options, size_bytes: u64) -> anyhow::Result<(DevCluster, String)> {
    let cluster = DevCluster::start(options).await?;
    let client = Client::connect(ClientConfig::new(cluster.endpoints())).await?;
    let mut volume = CreateVolume::new(EXPORT, VolumeKind::Block { size_bytes });
    volume.placement = vec![PRIMARY, NodeId(2), NodeId(3)];
    client.admin().create_volume(volume).await?;
    let node = cluster.node(PRIMARY).context("the first node")?;
    let address = node.nbd.context("a data node has an NBD address")?;
    Ok((cluster, format!("nbd://{address}/{EXPORT}")))
}

/// The raw disk has no server.
fn start_other(reference: Reference, file: &Path) -> anyhow::Result<(Target, Option<Process>)> {
    let name = reference.name();
    let path = file.display().to_string();
    let port = free_port()?;
    let mut command = match reference {
        Reference::QemuWritethrough => qemu(&["--cache=writethrough"], port),
        Reference::QemuNone => qemu(&["--cache=none", "--aio=io_uring"], port),
        Reference::NbdkitFile => {
            let mut command = Command::new("nbdkit");
            let port = port.to_string();
            command.args([
                "--foreground",
                "--ipaddr=127.0.0.1",
                "--port",
                &port,
                "file",
            ]);
            command
        }
        Reference::Disk => return Ok((Target::File { name, path }, None)),
        Reference::Floor => bail!("the floor is no target for fio"),
    };
    command.arg(&path);
    let mut process = Process::start(command)?;
    process.wait_listening(port)?;
    let uri = format!("nbd://127.0.0.1:{port}/{EXPORT}");
    Ok((Target::Nbd { name, uri }, Some(process)))
}

fn qemu(cache: &[&str], port: u16) -> Command {
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--format=raw", "--persistent", "--bind=127.0.0.1"])
        .args(["--export-name", EXPORT, "--shared", CLIENTS_MAX])
        .args(cache)
        .args(["--port", &port.to_string()]);
    command
}

/// Neither server can tell which port it was given when asked for any.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// A server, killed when this is dropped.
#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
}

impl Process {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{name} (Debian: qemu-utils nbdkit)"))?;
        Ok(Self { name, child })
    }

    fn wait_listening(&mut self, port: u16) -> anyhow::Result<()> {
        let deadline = Instant::now() + LISTENS_WITHIN;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once: {status}", self.name);
            }
            if Instant::now() >= deadline {
                bail!("{} does not listen within {LISTENS_WITHIN:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
