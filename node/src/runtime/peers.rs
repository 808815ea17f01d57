//! Links to the other nodes: one outgoing stream each, dialled again when it breaks.
//!
//! A link is up once the other end has answered our hello: a connection alone proves nothing, as the kernel of a
//! frozen process still accepts. Messages to a node whose link is down are dropped; the protocol asks again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::tuning::node_endpoint;
use mainstay_proto::v1::replication_client::ReplicationClient;
use mainstay_proto::v1::witness_client::WitnessClient;
use mainstay_proto::{MESSAGE_BYTES_MAX, v1 as pb};
use mainstay_replication::message::Message;
use mainstay_types::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{Node, PeerSettings};
use crate::wire;

/// First pause before a link is dialled again; it doubles.
const REDIAL_FIRST: Duration = Duration::from_millis(10);
const REDIAL_LAST: Duration = Duration::from_millis(200);

/// How long the other end may take to answer our hello.
const HELLO_TIMEOUT: Duration = Duration::from_millis(1000);

#[derive(Debug, Default)]
struct Link {
    queue: std::sync::Mutex<Option<mpsc::UnboundedSender<pb::Frame>>>,
    up: AtomicBool,
}

/// All outgoing links of a node.
#[derive(Debug)]
pub struct Peers {
    links: RwLock<BTreeMap<NodeId, Arc<Link>>>,
}

impl Peers {
    /// Links to `peers`, all down.
    #[must_use]
    pub fn new(peers: &[PeerSettings]) -> Self {
        let links = peers
            .iter()
            .map(|peer| (peer.node, Arc::new(Link::default())));
        Self {
            links: RwLock::new(links.collect()),
        }
    }

    fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        let links = self.links.read().expect("no panic while the lock is held");
        links.get(&node).cloned()
    }

    /// Whether there is a link to `node`, up or down.
    #[must_use]
    pub fn knows(&self, node: NodeId) -> bool {
        self.link(node).is_some()
    }

    /// Hands a message to the link to `to`. Dropped if the link is down. Never blocks.
    pub fn send(&self, to: NodeId, message: &Message, batch: Bytes) {
        let Some(link) = self.link(to) else {
            return;
        };
        let queue = link.queue.lock().expect("no panic while the lock is held");
        if let Some(queue) = &*queue {
            // An error means that the link is just breaking: the same as a message lost on it.
            let _lost = queue.send(wire::encode(message, batch));
        }
    }

    /// Whether the link to `node` is up.
    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        self.link(node)
            .is_some_and(|link| link.up.load(Ordering::Relaxed))
    }

    fn set(&self, node: NodeId, queue: Option<mpsc::UnboundedSender<pb::Frame>>) {
        let Some(link) = self.link(node) else {
            return;
        };
        link.up.store(queue.is_some(), Ordering::Relaxed);
        *link.queue.lock().expect("no panic while the lock is held") = queue;
    }
}

/// Adds a link to a node that the configuration does not name, unless there is one.
pub fn add(node: &Arc<Node>, peer: PeerSettings) {
    {
        let mut links = node
            .peers
            .links
            .write()
            .expect("no panic while the lock is held");
        if links.contains_key(&peer.node) {
            return;
        }
        links.insert(peer.node, Arc::new(Link::default()));
    }
    node.handle.spawn(keep_link(Arc::clone(node), peer));
}

/// Keeps the link to `peer` up until the node stops.
pub async fn keep_link(node: Arc<Node>, peer: PeerSettings) {
    let mut pause = REDIAL_FIRST;
    loop {
        let run = run_link(&node, &peer);
        tokio::select! {
            result = run => match result {
                Ok(()) => pause = REDIAL_FIRST,
                Err(error) => tracing::debug!(peer = %peer.node, %error, "link"),
            },
            () = node.until_stopping() => return,
        }
        node.peers.set(peer.node, None);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL_LAST);
    }
}

/// One connection, from hello to break. `Ok` if it was up at all.
async fn run_link(node: &Arc<Node>, peer: &PeerSettings) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send(node.hello())?;
    let endpoint = node_endpoint(&peer.address)?;
    let opened = tokio::time::timeout(HELLO_TIMEOUT, async {
        let channel = endpoint.connect().await?;
        let frames = UnboundedReceiverStream::new(receiver);
        let mut answers = if peer.data {
            ReplicationClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
                .link(frames)
                .await?
                .into_inner()
        } else {
            WitnessClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
                .link(frames)
                .await?
                .into_inner()
        };
        let hello = answers
            .message()
            .await?
            .ok_or_else(|| anyhow::anyhow!("closed before hello"))?;
        anyhow::Ok((answers, wire::accept_hello(hello, node.settings.cluster)?))
    });
    let (mut answers, found) = opened.await??;
    if found.node != peer.node {
        anyhow::bail!(
            "{} is node {}, not {}: check `peers`",
            peer.address,
            found.node,
            peer.node
        );
    }
    node.check_stores(&found).await?;
    node.peers.set(peer.node, Some(sender));
    tracing::debug!(peer = %peer.node, "link up");
    node.link_changed(peer.node, true);
    // The answering direction carries nothing after hello: it ends when the link does.
    let ended = answers.message().await;
    node.peers.set(peer.node, None);
    tracing::debug!(peer = %peer.node, ?ended, "link down");
    node.link_changed(peer.node, false);
    Ok(())
}
