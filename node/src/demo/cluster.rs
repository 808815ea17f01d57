//! The cluster under test: its processes, a client, and the questions that a test asks again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mainstay_client::report::{CreateVolume, MemberRole, Promote, VolumeHealth, VolumeStatus};
use mainstay_client::{AdminError, Client, ClientConfig};
use mainstay_proto::tuning::client_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::admin_client::AdminClient;
use mainstay_types::{Epoch, NodeId, VolumeKind};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::config::Role;
use crate::devcluster::{DevCluster, NodeStatus};

/// The log volume.
pub const LEDGER: &str = "ledger";
/// The block volume.
pub const DISK: &str = "disk";

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A node that lives says at once who is primary.
const ASK_WITHIN: Duration = Duration::from_millis(250);

/// Processes and a client.
#[derive(Debug)]
pub struct Stage {
    /// The processes.
    pub dev: DevCluster,
    /// Knows all nodes.
    pub client: Client,
    /// To every data node, for questions that one node alone shall answer.
    channels: BTreeMap<NodeId, Channel>,
}

/// Who serves a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// The primary.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
}

impl Stage {
    /// Connects to a cluster that was just started and creates both volumes on all data nodes, the first primary of each
    /// as given.
    ///
    /// # Errors
    /// The cluster does not answer, or the volumes do not get all their members.
    pub async fn set(
        dev: DevCluster,
        ledger_on: NodeId,
        disk_on: NodeId,
        disk_bytes: u64,
    ) -> anyhow::Result<Self> {
        let client = Client::connect(ClientConfig::new(dev.endpoints())).await?;
        let mut channels = BTreeMap::new();
        for node in dev.status().nodes {
            if node.roles.contains(&Role::Data) {
                channels.insert(node.id, client_endpoint(&node.grpc)?.connect_lazy());
            }
        }
        let stage = Self {
            dev,
            client,
            channels,
        };
        let disk = VolumeKind::Block {
            size_bytes: disk_bytes,
        };
        stage.create(LEDGER, VolumeKind::Log, ledger_on).await?;
        stage.create(DISK, disk, disk_on).await?;
        Ok(stage)
    }

    async fn create(&self, name: &str, kind: VolumeKind, first: NodeId) -> anyhow::Result<()> {
        let mut wanted = CreateVolume::new(name, kind);
        let others = self.data_nodes().into_iter().filter(|node| *node != first);
        wanted.placement = std::iter::once(first).chain(others).collect();
        let deadline = Instant::now() + WHOLE_WITHIN;
        loop {
            match self.client.admin().create_volume(wanted.clone()).await {
                Ok(_) => break,
                Err(error) if error.is_retryable() && Instant::now() < deadline => {
                    sleep(LOOK_EVERY).await;
                }
                Err(error) => return Err(error).context(format!("create {name}")),
            }
        }
        self.wait_whole(name).await.map(|_| ())
    }

    /// All data nodes.
    #[must_use]
    pub fn data_nodes(&self) -> Vec<NodeId> {
        self.channels.keys().copied().collect()
    }

    /// What is known of a node's processes.
    ///
    /// # Errors
    /// There is no such node.
    pub fn node(&self, id: NodeId) -> anyhow::Result<NodeStatus> {
        self.dev.node(id).with_context(|| format!("no node {id}"))
    }

    /// The address of a node's NBD exports.
    ///
    /// # Errors
    /// It serves none.
    pub fn nbd(&self, id: NodeId) -> anyhow::Result<String> {
        let address = self.node(id)?.nbd;
        address.with_context(|| format!("node {id} has no NBD address"))
    }

    /// The node that says of itself that it serves `volume`, in the greatest epoch.
    pub async fn serving(&self, volume: &str) -> Option<Serving> {
        let answers = self.ask_all(volume).join_all().await;
        let serving = answers.into_iter().flatten();
        serving.max_by_key(|serving| serving.epoch)
    }

    /// The first answer of a node that serves `volume` in an epoch above `above`: a frozen node holds nobody up.
    async fn serving_above(&self, volume: &str, above: Epoch) -> Option<Serving> {
        let mut asked = self.ask_all(volume);
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(serving)) = answer
                && serving.epoch > above
            {
                return Some(serving);
            }
        }
        None
    }

    fn ask_all(&self, volume: &str) -> JoinSet<Option<Serving>> {
        let mut asked = JoinSet::new();
        for (node, channel) in &self.channels {
            let (node, channel, volume) = (*node, channel.clone(), volume.to_owned());
            asked.spawn(serves(node, channel, volume));
        }
        asked
    }

    /// Whether `node` says of itself that it serves `volume`, and in which epoch.
    pub async fn says_it_serves(&self, node: NodeId, volume: &str) -> Option<Serving> {
        let channel = self.channels.get(&node)?.clone();
        serves(node, channel, volume.to_owned()).await
    }

    /// Waits until somebody serves `volume` in an epoch above `epoch`.
    ///
    /// # Errors
    /// Nobody does within `limit`.
    pub async fn wait_serving(
        &self,
        volume: &str,
        above: Epoch,
        limit: Duration,
    ) -> anyhow::Result<Serving> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(serving) = self.serving_above(volume, above).await {
                return Ok(serving);
            }
            if Instant::now() >= deadline {
                bail!("{volume}: nobody serves above epoch {above} within {limit:?}");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every data node is a member of `volume` and in step: none missing, none catching up.
    ///
    /// # Errors
    /// Not within a generous time; the error says what is missing.
    pub async fn wait_whole(&self, volume: &str) -> anyhow::Result<VolumeStatus> {
        let deadline = Instant::now() + WHOLE_WITHIN;
        loop {
            let status = self.client.admin().show_volume(volume).await;
            let missing = match &status {
                Ok(status) => match self.missing(status) {
                    None => return Ok(status.clone()),
                    Some(missing) => missing,
                },
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                bail!("{volume} is not whole within {WHOLE_WITHIN:?}: {missing}");
            }
            sleep(5 * LOOK_EVERY).await;
        }
    }

    fn missing(&self, status: &VolumeStatus) -> Option<String> {
        let in_step = |role| matches!(role, MemberRole::Primary | MemberRole::Replica);
        let members = status.members.iter().filter(|member| in_step(member.role));
        let (count, wanted) = (members.count(), self.data_nodes().len());
        if status.health == VolumeHealth::Ok && count == wanted && status.learners.is_empty() {
            return None;
        }
        Some(format!(
            "{:?}, {count} of {wanted} members in step, {} learners; {}",
            status.health,
            status.learners.len(),
            status.problems.join("; ")
        ))
    }

    /// Waits until no member of `volume` is behind another, which it is when nobody writes, and answers the position.
    ///
    /// # Errors
    /// Not within a generous time.
    pub async fn wait_level(&self, volume: &str) -> anyhow::Result<VolumeStatus> {
        let deadline = Instant::now() + WHOLE_WITHIN;
        loop {
            let status = self.wait_whole(volume).await?;
            let end = status.accepted_lsn;
            let level = |member: &mainstay_client::report::MemberStatus| {
                member.durable_lsn == end && member.committed_lsn == end
            };
            if status.commit_lsn == end && status.members.iter().all(level) {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{volume}: members are not level within {WHOLE_WITHIN:?}: {:?}",
                    status.members
                );
            }
            sleep(5 * LOOK_EVERY).await;
        }
    }

    /// Moves the primary of `volume` to `to`, and waits until it serves.
    ///
    /// # Errors
    /// Refused for good, or not within a generous time.
    pub async fn move_primary(&self, volume: &str, to: NodeId) -> anyhow::Result<Serving> {
        let deadline = Instant::now() + WHOLE_WITHIN;
        let mut last = String::from("never answered");
        while Instant::now() < deadline {
            match self.serving(volume).await {
                Some(serving) if serving.node == to => return Ok(serving),
                Some(_) => {
                    let mut promote = Promote::planned(volume);
                    promote.to = Some(to);
                    match self.client.admin().promote(promote).await {
                        Ok(promoted) => last = format!("promoted node {}", promoted.primary),
                        Err(AdminError::PromoteRefused(refused)) => last = refused.to_string(),
                        Err(error) => last = error.to_string(),
                    }
                }
                None => last = "nobody serves".to_owned(),
            }
            sleep(2 * LOOK_EVERY).await;
        }
        bail!("{volume} does not move to node {to} within {WHOLE_WITHIN:?}: {last}")
    }

    /// What one node alone knows of `volume`, asked of that node.
    ///
    /// # Errors
    /// It does not answer, or does not know the volume.
    pub async fn own_view(&self, node: NodeId, volume: &str) -> anyhow::Result<pb::VolumeStatus> {
        let channel = self.channels.get(&node);
        let channel = channel
            .with_context(|| format!("no data node {node}"))?
            .clone();
        let request = pb::StatusRequest { local: true };
        let reply = AdminClient::new(channel)
            .status(request)
            .await?
            .into_inner();
        let named = |status: &pb::VolumeStatus| {
            let spec = status
                .register
                .as_ref()
                .and_then(|register| register.spec.as_ref());
            spec.is_some_and(|spec| spec.name == volume)
        };
        reply
            .volumes
            .into_iter()
            .find(named)
            .with_context(|| format!("node {node} does not know {volume}"))
    }
}

async fn serves(node: NodeId, channel: Channel, volume: String) -> Option<Serving> {
    let mut client = AdminClient::new(channel);
    let asked = client.r#where(pb::WhereRequest { volume });
    let reply = timeout(ASK_WITHIN, asked).await.ok()?.ok()?.into_inner();
    let epoch = Epoch(reply.epoch);
    reply.serving.then_some(Serving { node, epoch })
}

/// For copies to come back, also on a machine that does other things.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);
