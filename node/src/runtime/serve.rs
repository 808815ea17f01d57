//! Starts a node and stops it: what runs, in which order, until a stop is asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use mainstay_proto::MESSAGE_BYTES_MAX;
use mainstay_proto::tuning::node_server;
use mainstay_proto::v1::admin_server::AdminServer;
use mainstay_proto::v1::client_server::ClientServer;
use mainstay_proto::v1::replication_server::ReplicationServer;
use mainstay_proto::v1::witness_server::WitnessServer;
use mainstay_replication::SetState;
use mainstay_types::Instance;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::admin_service::AdminService;
use super::client_service::ClientService;
use super::link_service::LinkService;
use super::store_marks::{self, NodeMarks, StoreMarks};
use super::witness_store::WitnessStore;
use super::{
    Node, Settings, beats, events, hooks, introspection, peers, volumes, witness, witness_sets,
};

/// How long a stop waits for open streams to end by themselves.
const STREAMS_END: Duration = Duration::from_millis(300);

/// How long a stop waits for the witness's last write.
const WITNESS_ENDS: Duration = Duration::from_millis(500);

/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A node that runs.
#[derive(Debug)]
pub struct Running {
    /// The node.
    pub node: Arc<Node>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    witness: Option<std::thread::JoinHandle<()>>,
}

/// Starts a node on a bound listener.
///
/// # Errors
/// Its directories or stores cannot be used; the error says which and what to do.
pub async fn start(
    mut settings: Settings,
    instance: Instance,
    listener: TcpListener,
    witness_dir: &std::path::Path,
) -> anyhow::Result<Running> {
    let (beats_handle, beats_queue) = beats::channel();
    let stores = StoreMarks::open(&settings.data_dir)?;
    let (mut store, mut own_stores) = (None, NodeMarks::default());
    if settings.data {
        own_stores.data = Some(store_marks::begin_data(&settings.data_dir, instance)?);
    }
    if settings.witness {
        std::fs::create_dir_all(witness_dir).with_context(|| witness_dir.display().to_string())?;
        let opened = WitnessStore::open(
            &witness_dir.join("witness.redb"),
            settings.cluster,
            settings.node,
        )?;
        let present = u64::try_from(
            settings
                .lease
                .lease_longest
                .max(settings.lease.lease)
                .as_millis(),
        )?;
        settings.lease.lease_longest = Duration::from_millis(opened.longest_lease_ms(present)?);
        own_stores.witness = Some(opened.begin(instance)?);
        store = Some(opened);
    }
    let stored = store
        .as_ref()
        .map(WitnessStore::state)
        .transpose()?
        .flatten();
    let names_us = |state: &SetState| state.set.names(settings.node, state.store);
    let votes = stored.as_ref().is_some_and(names_us);
    let witnesses = witness_sets::at_start(&settings, stored.map(|state| state.set))?;
    // A node may have lost one of them alone, beside the rest of its directory. One that waits to become a witness may
    // have been one before, and its store holds nothing.
    let own = NodeMarks {
        witness: own_stores.witness.filter(|_| votes || !settings.standby),
        ..own_stores
    };
    stores.check(settings.node, own, witnesses.store_of(settings.node))?;
    let (witness_to, witness_inputs) = mpsc::unbounded_channel();
    let witness_to = store.is_some().then_some(witness_to);
    let node = Node::new(
        settings,
        instance,
        beats_handle,
        witness_to,
        own_stores,
        stores,
        witnesses,
    );
    let witness = store
        .map(|store| {
            let node = node.clone();
            let run = move || witness::run(&node, store, witness_inputs);
            std::thread::Builder::new()
                .name("witness".to_owned())
                .spawn(run)
        })
        .transpose()?;
    let mut tasks = vec![tokio::spawn(serve_grpc(node.clone(), listener))];
    for peer in node.settings.peers.clone() {
        // Two data nodes, or anybody and a witness, have something to say to each other.
        if peer.witness || (node.settings.data && peer.data) || (node.settings.witness && peer.data)
        {
            tasks.push(tokio::spawn(peers::keep_link(node.clone(), peer)));
        }
    }
    for voter in node.witnesses().all() {
        node.add_witness_peer(voter.node, &voter.address);
    }
    if node.settings.keep_cpus_awake {
        let node = node.clone();
        tasks.push(tokio::spawn(async move {
            tokio::select! {
                () = node.awake.watch() => {}
                () = node.until_stopped() => {}
            }
        }));
    }
    if node.settings.data {
        volumes::open_all(&node).await.context("data directory")?;
        node.started();
        tasks.push(tokio::spawn(beats::run(node.clone(), beats_queue)));
    }
    let started = format!("node {} started, instance {instance}", node.settings.node);
    node.events
        .add(events::info(events::EventKind::NodeStarted, started));
    Ok(Running {
        node,
        tasks,
        witness,
    })
}

async fn serve_grpc(node: Arc<Node>, listener: TcpListener) {
    let links = LinkService(node.clone());
    let limit = MESSAGE_BYTES_MAX;
    let health = introspection::health(&node).await;
    let (reflection, reflection_alpha) = match introspection::reflection() {
        Ok(services) => services,
        Err(error) => return tracing::error!(%error, "gRPC server cannot describe itself"),
    };
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let serve = node_server()
        .add_service(
            ReplicationServer::new(links.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .add_service(
            WitnessServer::new(links)
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .add_service(
            ClientServer::new(ClientService(node.clone()))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .add_service(AdminServer::new(AdminService(node.clone())))
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(unhurried(incoming), async { node.until_stopped().await });
    if let Err(error) = serve.await {
        tracing::error!(%error, "gRPC server ended");
    }
}

/// The same connections, with a pause behind each that failed: tonic accepts the next one at once, and a process without descriptors
/// would burn a core.
fn unhurried<T>(
    incoming: impl Stream<Item = std::io::Result<T>>,
) -> impl Stream<Item = std::io::Result<T>> {
    incoming.then(|accepted| async {
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        accepted
    })
}

impl Running {
    /// Hands over what this node is primary of, writes checkpoints, closes the files, and ends.
    pub async fn stop(self) {
        self.end(true).await;
    }

    /// The same, but hands nothing over: a whole cluster ends, or a test wants the others to find out by themselves.
    pub async fn stop_without_handover(self) {
        self.end(false).await;
    }

    async fn end(self, hand_over: bool) {
        let node = &self.node;
        node.events.add(events::info(
            events::EventKind::NodeStopped,
            "this node stops".to_owned(),
        ));
        node.closing();
        volumes::stop_all(node, hand_over).await;
        node.stopping.send_replace(true);
        node.stopped.send_replace(true);
        let tasks = self.tasks;
        let all = async {
            for task in tasks {
                let _ended = task.await;
            }
        };
        if tokio::time::timeout(STREAMS_END, all).await.is_err() {
            tracing::debug!("some streams were cut");
        }
        hooks::finish(node).await;
        // Its store is free for the next process once the thread has ended.
        if let Some(witness) = self.witness {
            let ended = tokio::task::spawn_blocking(move || witness.join());
            if tokio::time::timeout(WITNESS_ENDS, ended).await.is_err() {
                tracing::debug!("the witness's store is slow: left to the end of the process");
            }
        }
    }
}

/// Binds a listener, and says what to do if that fails.
///
/// # Errors
/// The address is taken or not of this machine.
pub async fn bind(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{what} address {address} is in use by another process: stop it, or choose another address in the \
             configuration"
        ),
        std::io::ErrorKind::AddrNotAvailable => anyhow::anyhow!(
            "{what} address {address} is not an address of this machine: correct it in the configuration"
        ),
        _ => anyhow::anyhow!("{what} address {address}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_that_cannot_be_accepted_do_not_follow_each_other_at_once() {
        let refused = || Err(std::io::Error::from_raw_os_error(24));
        let incoming = futures_util::stream::iter([Ok(1), refused(), refused(), Ok(2)]);
        let began = tokio::time::Instant::now();
        let all: Vec<std::io::Result<i32>> = unhurried(incoming).collect().await;
        assert_eq!(all.len(), 4);
        assert_eq!(began.elapsed(), 2 * ACCEPT_PAUSE);
    }
}
