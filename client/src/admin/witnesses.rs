//! Who the witnesses are, and how they are replaced.

use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::change_witnesses_reply::Outcome;
use mainstay_types::NodeId;
use serde::Serialize;

use super::Admin;
use crate::AdminError;

/// Longest that a change of the witnesses is waited for: each step needs a majority, and the longest lease must pass.
const CHANGE_WAIT: Duration = Duration::from_secs(60);

/// One witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WitnessStatus {
    /// The node.
    pub node: NodeId,
    /// `host:port` of its gRPC.
    pub address: String,
    /// It votes now.
    pub votes: bool,
    /// It will vote once the change under way is done; without one, the same as `votes`.
    pub stays: bool,
    /// The node that answered hears it.
    pub heard: bool,
}

/// The witnesses of a cluster, as one node knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Witnesses {
    /// Rises with each step of a change.
    pub version: u64,
    /// A change is under way: majorities of those that vote and of those that stay are needed.
    pub changing: bool,
    /// By node.
    pub witnesses: Vec<WitnessStatus>,
    /// Nodes that wait to become witnesses, as the answering node's configuration says.
    pub standby: Vec<NodeId>,
}

/// A change of one witness: one comes, one goes, or one takes the place of another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WitnessChange {
    /// Who comes.
    pub add: Option<NodeId>,
    /// Where it is reached, as `host:port`; as the configuration of the cluster says if `None`.
    pub address: Option<String>,
    /// Who goes.
    pub remove: Option<NodeId>,
}

impl Admin {
    /// The witnesses, as one node knows them. Cancelling is safe.
    ///
    /// # Errors
    /// No node answered in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # let client = cluster.client().await?;
    /// let witnesses = client.admin().witnesses().await?;
    /// assert_eq!(witnesses.witnesses.len(), 3);
    /// # Ok(()) });
    /// ```
    pub async fn witnesses(&self) -> Result<Witnesses, AdminError> {
        let reply =
            self.repeat(|mut client| async move {
                client.list_witnesses(pb::ListWitnessesRequest {}).await
            })
            .await?;
        let set = reply.set.unwrap_or_default();
        let heard = |node: NodeId| reply.heard.contains(&node.0);
        Ok(Witnesses {
            standby: reply.standby.iter().copied().map(NodeId).collect(),
            ..witnesses(set, heard)
        })
    }

    /// Changes one witness, and waits until the new set alone decides: at least the longest lease. Sent once. Cancelling
    /// does not stop it: the witnesses carry it to its end.
    ///
    /// # Errors
    /// Refused, with the reason, or unknown if the answer was lost.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run_shaped(mainstay_testing::TestCluster::builder().standby_witnesses(1), async |cluster| {
    /// # let client = cluster.client().await?;
    /// use mainstay_client::report::WitnessChange;
    /// use mainstay_types::NodeId;
    ///
    /// let replace = WitnessChange {
    ///     add: Some(NodeId(104)), // it runs as a standby witness
    ///     address: None,
    ///     remove: Some(NodeId(103)),
    /// };
    /// let changed = client.admin().change_witnesses(replace).await?;
    /// assert!(changed.witnesses.iter().any(|witness| witness.node == NodeId(104)));
    /// # Ok(()) });
    /// ```
    pub async fn change_witnesses(&self, change: WitnessChange) -> Result<Witnesses, AdminError> {
        let request = pb::ChangeWitnessesRequest {
            add: change.add.map(|node| node.0),
            address: change.address.unwrap_or_default(),
            remove: change.remove.map(|node| node.0),
            patience_ms: u32::try_from((CHANGE_WAIT * 4 / 5).as_millis()).unwrap_or(0),
            forwarded: false,
        };
        let reply = self
            .once(CHANGE_WAIT, move |mut client| {
                let request = request.clone();
                async move { client.change_witnesses(request).await }
            })
            .await?;
        match reply.outcome {
            Some(Outcome::Changed(set)) => Ok(witnesses(set, |_| false)),
            Some(Outcome::Refused(refused)) => Err(AdminError::Invalid {
                message: refused.message,
            }),
            None => Err(AdminError::Unknown {
                message: "the answer says nothing".to_owned(),
            }),
        }
    }
}

fn witnesses(set: pb::WitnessSet, heard: impl Fn(NodeId) -> bool) -> Witnesses {
    let next = set.next.as_ref().map(|next| &next.voters);
    let has = |voters: &[pb::Voter], node: u32| voters.iter().any(|voter| voter.node == node);
    let joining = next.into_iter().flatten();
    let joining = joining.filter(|voter| !has(&set.voters, voter.node));
    let mut all: Vec<&pb::Voter> = set.voters.iter().chain(joining).collect();
    all.sort_by_key(|voter| voter.node);
    let status = |voter: &&pb::Voter| WitnessStatus {
        node: NodeId(voter.node),
        address: voter.address.clone(),
        votes: has(&set.voters, voter.node),
        stays: next.is_none_or(|next| has(next, voter.node)),
        heard: heard(NodeId(voter.node)),
    };
    Witnesses {
        version: set.tag.unwrap_or_default().version,
        changing: next.is_some(),
        witnesses: all.iter().map(status).collect(),
        standby: Vec::new(),
    }
}
