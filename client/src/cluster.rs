//! Which nodes there are, channels to them, and the question who is primary.
//!
//! Channels are lazy: they connect at the first request and again after a loss. A channel that misbehaved is forgotten, so
//! that the next request does not wait on a connection to a frozen machine.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mainstay_proto::tuning;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::admin_client::AdminClient;
use mainstay_types::Epoch;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::event::{ClientEvent, ClientEvents};
use crate::local::{Local, LocalNode};
use crate::{ClientConfig, ConnectError};

/// After the first useful answer, the others get this much longer. A frozen node must not cost its whole timeout.
const GRACE_USEFUL: Duration = Duration::from_millis(20);
/// The same after an answer that helps nobody.
const GRACE_USELESS: Duration = Duration::from_millis(30);

/// What a client knows of a cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) config: ClientConfig,
    /// `host:port` of every node that may be asked; only grows.
    nodes: Mutex<BTreeSet<String>>,
    channels: Mutex<HashMap<String, Channel>>,
    /// The node of this process, if it is one.
    local: Option<Local>,
    events: broadcast::Sender<ClientEvent>,
}

/// Where a volume's primary may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) address: String,
    pub(crate) epoch: Epoch,
    /// The node itself says that it serves.
    pub(crate) serving: bool,
}

/// What the nodes say about a volume's primary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// The newest one named.
    At(Candidate),
    /// Nobody names one, though somebody knows the volume or somebody is silent.
    Nowhere,
    /// Every node answered, and none knows the volume.
    NoSuchVolume,
}

impl Cluster {
    pub(crate) fn new(config: ClientConfig) -> Result<Self, ConnectError> {
        if config.endpoints.is_empty() {
            return Err(ConnectError::NoEndpoint);
        }
        for endpoint in &config.endpoints {
            if tuning::client_endpoint(endpoint).is_err() {
                let endpoint = endpoint.clone();
                return Err(ConnectError::BadEndpoint { endpoint });
            }
        }
        Ok(Self {
            nodes: Mutex::new(config.endpoints.iter().cloned().collect()),
            channels: Mutex::default(),
            local: None,
            events: broadcast::channel(1024).0,
            config,
        })
    }

    /// For a process that is a node itself.
    pub(crate) fn beside(mut self, local: Local) -> Self {
        self.local = Some(local);
        self
    }

    /// The node at `address`, if it is this process.
    pub(crate) fn local(&self, address: &str) -> Option<&dyn LocalNode> {
        let local = self.local.as_ref()?;
        (local.address == address).then(|| local.node.as_ref())
    }

    pub(crate) fn subscribe(&self) -> ClientEvents {
        ClientEvents(self.events.subscribe())
    }

    pub(crate) fn publish(&self, event: ClientEvent) {
        // Nobody listening is fine.
        let _receivers = self.events.send(event);
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().cloned().collect()
    }

    /// The channel to `address`; `None` if that is no address.
    pub(crate) fn channel(&self, address: &str) -> Option<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Some(channel.clone());
        }
        let channel = Self::own_channel(address)?;
        channels.insert(address.to_owned(), channel.clone());
        Some(channel)
    }

    /// A channel to `address` for one stream whose replies may lie unread. All streams of a connection share its window, and what a few
    /// of them leave unread would fill it, so that nothing was answered on any. The connection ends with the stream.
    pub(crate) fn own_channel(address: &str) -> Option<Channel> {
        Some(tuning::client_endpoint(address).ok()?.connect_lazy())
    }

    /// The next request to `address` makes a new connection. Streams on the old one go on.
    pub(crate) fn forget_channel(&self, address: &str) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.remove(address);
    }

    fn learn(&self, found: Vec<pb::NodeAddress>) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        for node in found {
            if !nodes.contains(&node.address) && tuning::client_endpoint(&node.address).is_ok() {
                nodes.insert(node.address);
            }
        }
    }

    /// Returns once any node answered anything.
    pub(crate) async fn greet(&self) {
        let mut pause = Backoff::new(&self.config);
        while !self.ask_all("").any_answer().await {
            pause.wait().await;
        }
    }

    /// Asks every node at once who is primary of `volume`. Returns as soon as one says of itself that it serves in an epoch of
    /// at least `floor`; else a little after the first useful answer, or when all have answered or run out of time.
    pub(crate) async fn locate(&self, volume: &str, floor: Epoch) -> Located {
        self.ask_all(volume).newest(floor).await
    }

    /// Waits until a node names a primary in an epoch above `epoch`; asks as often as `every`.
    pub(crate) async fn newer_than(
        &self,
        volume: &str,
        epoch: Epoch,
        every: Duration,
    ) -> Candidate {
        loop {
            if let Located::At(candidate) = self.locate(volume, epoch.next()).await
                && candidate.epoch > epoch
            {
                return candidate;
            }
            tokio::time::sleep(every).await;
        }
    }

    fn ask_all(&self, volume: &str) -> Inquiry<'_> {
        let mut asked = JoinSet::new();
        for address in self.addresses() {
            let Some(channel) = self.channel(&address) else {
                continue;
            };
            let request = pb::WhereRequest {
                volume: volume.to_owned(),
            };
            let timeout = self.config.ask_timeout;
            asked.spawn(async move {
                let mut client = AdminClient::new(channel);
                match tokio::time::timeout(timeout, client.r#where(request)).await {
                    Ok(Ok(reply)) => Ok(reply.into_inner()),
                    Ok(Err(_)) | Err(_) => Err(address),
                }
            });
        }
        Inquiry {
            cluster: self,
            asked,
        }
    }
}

/// One question to every node; unanswered ones are abandoned with it.
struct Inquiry<'a> {
    cluster: &'a Cluster,
    asked: JoinSet<Result<pb::WhereReply, String>>,
}

impl Inquiry<'_> {
    /// The next answer: `None` when all have answered, `Some(None)` for a node that failed to.
    async fn next(&mut self) -> Option<Option<pb::WhereReply>> {
        match self.asked.join_next().await? {
            Ok(Ok(mut reply)) => {
                self.cluster.learn(std::mem::take(&mut reply.nodes));
                Some(Some(reply))
            }
            Ok(Err(address)) => {
                self.cluster.forget_channel(&address);
                Some(None)
            }
            Err(_) => Some(None),
        }
    }

    async fn any_answer(mut self) -> bool {
        while let Some(answer) = self.next().await {
            if answer.is_some() {
                return true;
            }
        }
        false
    }

    async fn newest(mut self, floor: Epoch) -> Located {
        let mut best: Option<Candidate> = None;
        let mut all_ignorant = true;
        let mut patience_ends = Instant::now() + GRACE_USELESS + self.cluster.config.ask_timeout;
        loop {
            let answer = tokio::select! {
                answer = self.next() => answer,
                () = tokio::time::sleep_until(patience_ends) => {
                    all_ignorant = false;
                    None
                }
            };
            let Some(answer) = answer else { break };
            all_ignorant &= answer.as_ref().is_some_and(|reply| !reply.known);
            let Some(reply) = answer else { continue };
            let useful = candidate(&reply).filter(|candidate| candidate.epoch >= floor);
            let grace = if useful.is_some() {
                GRACE_USEFUL
            } else {
                GRACE_USELESS
            };
            patience_ends = patience_ends.min(Instant::now() + grace);
            match useful {
                Some(candidate) if candidate.serving => return Located::At(candidate),
                Some(candidate)
                    if best
                        .as_ref()
                        .is_none_or(|best| candidate.epoch > best.epoch) =>
                {
                    best = Some(candidate);
                }
                Some(_) | None => {}
            }
        }
        match best {
            Some(candidate) => Located::At(candidate),
            None if all_ignorant => Located::NoSuchVolume,
            None => Located::Nowhere,
        }
    }
}

fn candidate(reply: &pb::WhereReply) -> Option<Candidate> {
    (reply.known && !reply.address.is_empty()).then(|| Candidate {
        address: reply.address.clone(),
        epoch: Epoch(reply.epoch.min(u64::MAX >> 1)),
        serving: reply.serving,
    })
}

/// Pauses that double up to a bound.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(config: &ClientConfig) -> Self {
        Self {
            first: config.retry_first,
            last: config.retry_last,
            next: config.retry_first,
        }
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(self.last);
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}
