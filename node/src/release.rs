//! The supervisor's reports to the witnesses, over connections that are kept warm.

use futures_util::future::join_all;
use mainstay_proto::tuning::node_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::witness_client::WitnessClient;
use mainstay_types::{ClusterId, Instance, NodeId};
use tonic::transport::Channel;

use crate::config::Config;
use crate::supervisor::{ReleaseError, ReleaseSink};

/// One channel to each witness of the cluster.
#[derive(Debug)]
pub struct WitnessSink {
    cluster: ClusterId,
    channels: Vec<Channel>,
}

impl WitnessSink {
    /// Begins to connect to every witness; must be called inside a runtime.
    ///
    /// # Errors
    /// An address is malformed.
    pub fn new(config: &Config) -> Result<Self, tonic::transport::Error> {
        let channel = |peer: &crate::config::Peer| {
            node_endpoint(&peer.grpc.to_string()).map(|endpoint| endpoint.connect_lazy())
        };
        let channels: Vec<Channel> = config.witnesses().map(channel).collect::<Result<_, _>>()?;
        let sink = Self {
            cluster: config.cluster_id(),
            channels,
        };
        sink.warm();
        Ok(sink)
    }

    /// A lazy channel connects at its first request: send one that says nothing.
    fn warm(&self) {
        for channel in self.channels.clone() {
            tokio::spawn(async move {
                let nobody = pb::ReleaseRequest {
                    cluster: 0,
                    node: 0,
                    instance: 0,
                };
                let _refused = WitnessClient::new(channel).release(nobody).await;
            });
        }
    }
}

impl ReleaseSink for WitnessSink {
    async fn release(&self, node: NodeId, instance: Instance) -> Result<(), ReleaseError> {
        let request = pb::ReleaseRequest {
            cluster: self.cluster.0,
            node: node.0,
            instance: instance.0,
        };
        let asks = self.channels.iter().map(|channel| {
            let mut client = WitnessClient::new(channel.clone());
            async move { client.release(request).await }
        });
        let answers = join_all(asks).await;
        let confirmed = answers.iter().filter(|answer| answer.is_ok()).count();
        match answers.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(status) => Err(ReleaseError {
                confirmed,
                witnesses: self.channels.len(),
                reason: status.message().to_owned(),
            }),
        }
    }
}
