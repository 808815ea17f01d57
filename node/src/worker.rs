//! The process that does the work of a node, under its supervisor.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mainstay_client::{Client, ClientConfig};
use mainstay_nbd::Tls;
use mainstay_storage::engine::Engine;
use mainstay_storage::identity::{DataDirError, DataDirLock, NodeIdentity};
use mainstay_types::Instance;
use mainstay_volume::VolumeConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, EngineChoice, Role};
use crate::http;
use crate::nbd_export::{self, Overdue, Renewal, Terms, VolumeExports, WatchedTls};
use crate::processes;
use crate::runtime::client_service::ClientService;
use crate::runtime::events::{Event, EventKind, Severity, info, warning};
use crate::runtime::serve::{self, bind};
use crate::runtime::witness_store::StoreError as WitnessStoreError;
use crate::runtime::{Node, PeerSettings, Settings};

const MIB: u64 = 1 << 20;

/// Runs the node of `config` as process `instance`, until SIGTERM or SIGINT; then hands over and ends.
///
/// # Errors
/// The node cannot start; the error says why and what to do.
pub async fn run(config: Config, instance: Instance) -> anyhow::Result<()> {
    abort_on_panic();
    let dir = &config.node.data_dir;
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let lock = lock_data_dir(dir).await?;
    NodeIdentity::claim(dir, &lock, config.cluster_id(), config.node_id())?;
    let grpc = bind("grpc", config.node.grpc.0).await?;
    let http = bind("http", config.node.http.0).await?;
    let nbd = match config.node.nbd {
        Some(address) => Some(bind("nbd", address.0).await?),
        None => None,
    };
    let tls = config.nbd.tls.clone().map(WatchedTls::load).transpose()?;
    let settings = settings(&config, grpc.local_addr()?.port());
    let witness_dir = config.witness_dir();
    let running = serve::start(settings, instance, grpc, &witness_dir).await?;
    let http = tokio::spawn(http::serve(running.node.clone(), http));
    let nbd = nbd.map(|listener| {
        let terms = Terms {
            limits: config.nbd.limits(),
            tls: tls.as_ref().map_or(Tls::Off, WatchedTls::tls),
        };
        let node = running.node.clone();
        let serving = serve_nbd(
            Arc::clone(&node),
            listener,
            terms,
            config.nbd.park_timeout(),
        );
        tokio::spawn(async move {
            match tls {
                Some(tls) => {
                    tls.beside(serving, |renewal| add_renewal(&node, renewal))
                        .await
                }
                None => serving.await,
            }
        })
    });
    stop_asked().await?;
    tracing::info!("stopping: handing over what this node is primary of");
    running.stop().await;
    let _ended = tokio::time::timeout(Duration::from_millis(500), http).await;
    if let Some(nbd) = nbd {
        let _ended = tokio::time::timeout(Duration::from_millis(500), nbd).await;
    }
    drop(lock);
    Ok(())
}

/// Whether starting again would end the same way: the node was given a directory that is not its own.
#[must_use]
pub fn is_for_people(error: &anyhow::Error) -> bool {
    let data_dir = error.downcast_ref::<DataDirError>();
    let witness = error.downcast_ref::<WitnessStoreError>();
    matches!(
        data_dir,
        Some(DataDirError::OtherNode { .. } | DataDirError::Damaged { .. })
    ) || matches!(witness, Some(WitnessStoreError::OtherNode { .. }))
}

/// Locks the data directory. A worker that was killed a moment ago is waited for: it holds the directory until the kernel
/// has ended the last of its threads.
async fn lock_data_dir(dir: &Path) -> Result<DataDirLock, DataDirError> {
    let give_up = Instant::now() + ENDED_WITHIN;
    loop {
        match DataDirLock::acquire(dir) {
            Err(DataDirError::InUse { holder, .. })
                if holder.parse().is_ok_and(processes::is_ending) && Instant::now() < give_up =>
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            other => return other,
        }
    }
}

/// For the kernel to end a process that was killed.
const ENDED_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A panic in any thread ends the process: no half a node may go on claiming leases. The supervisor reports it.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// Greatest block volume: what the checksums' page numbers and the file systems in use bear.
const BLOCK_VOLUME_BYTES_MAX: u64 = 16 << 40;

async fn stop_asked() -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn settings(config: &Config, port: u16) -> Settings {
    let peers = config
        .peers
        .iter()
        .filter(|peer| peer.id != config.node_id())
        .map(|peer| PeerSettings {
            node: peer.id,
            address: peer.grpc.to_string(),
            data: peer.roles.contains(&Role::Data),
            witness: peer.has_witness(),
            standby: peer.roles.contains(&Role::StandbyWitness),
        });
    let storage = &config.storage;
    let volume = VolumeConfig {
        member: config.member_config(),
        record_bytes_max: config.limits.record_bytes_max,
        checkpoint_bytes: storage.checkpoint_wal_mib * MIB,
        ..VolumeConfig::default()
    };
    let engine = match storage.engine {
        EngineChoice::Auto => Engine::probe(),
        EngineChoice::Uring => Engine::Uring,
        EngineChoice::Threads => Engine::Threads,
    };
    Settings {
        cluster: config.cluster_id(),
        node: config.node_id(),
        address: config.advertised(port).to_string(),
        zone: config.node.zone.clone(),
        data: config.node.roles.contains(&Role::Data),
        witness: config.own_peer().has_witness(),
        standby: config.node.roles.contains(&Role::StandbyWitness),
        data_dir: config.node.data_dir.clone(),
        peers: peers.collect(),
        engine,
        segment_bytes: storage.segment_mib * MIB,
        unwritten_bytes_max: storage.unwritten_mib_max * MIB,
        scrub_period: (storage.scrub_period_s > 0)
            .then(|| Duration::from_secs(storage.scrub_period_s)),
        volume,
        lease: config.lease_config(),
        fence: config.fence_command(),
        hooks: config.hook_commands(),
        client_bytes_max: config.limits.client_bytes_max,
        volume_bytes_max: BLOCK_VOLUME_BYTES_MAX,
        volumes_max: config.limits.volumes_max as usize,
        keep_cpus_awake: config.node.keep_cpus_awake,
    }
}

/// Exports every block volume of the cluster, through the client library: any node serves any volume. Those whose primary is
/// here are reached without a socket.
async fn serve_nbd(node: Arc<Node>, listener: TcpListener, terms: Terms, park_timeout: Duration) {
    let own = node.settings.address.clone();
    let others = node.settings.peers.iter().filter(|peer| peer.data);
    let endpoints = others.map(|peer| peer.address.clone());
    let endpoints: Vec<String> = node
        .settings
        .data
        .then_some(own.clone())
        .into_iter()
        .chain(endpoints)
        .collect();
    let client = loop {
        let connected = tokio::select! {
            connected = Client::connect_beside(
                ClientConfig::new(endpoints.clone()),
                own.clone(),
                Arc::new(ClientService(Arc::clone(&node))),
            ) => connected,
            () = node.until_stopped() => return,
        };
        match connected {
            Ok(client) => break client,
            Err(error) => tracing::warn!(%error, "nothing to export yet"),
        }
    };
    let stopped = node.until_stopped();
    let teller = Arc::clone(&node);
    let exports = VolumeExports::all(client, park_timeout)
        .telling(Arc::new(move |overdue| add_event(&teller, &overdue)));
    nbd_export::serve(listener, exports, terms, stopped).await;
}

fn add_renewal(node: &Node, renewal: &Renewal) {
    let kind = EventKind::CertificatesChanged;
    node.events.add(match renewal {
        Renewal::Taken { .. } => info(kind, renewal.describe()),
        Renewal::Refused { .. } => warning(kind, renewal.describe()),
    });
}

/// An application was told that its disk is broken: that is for somebody to hear of.
fn add_event(node: &Node, overdue: &Overdue) {
    node.events.add(Event {
        severity: Severity::Alarm,
        volume: overdue.volume.parse().ok(),
        ..warning(EventKind::RequestsOverdue, overdue.describe())
    });
}
