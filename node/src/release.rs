//! The supervisor's reports to the witnesses, over connections that are kept warm.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use futures_util::future::join_all;
use mainstay_proto::tuning::node_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::witness_client::WitnessClient;
use mainstay_types::{ClusterId, Instance, NodeId};
use tonic::transport::Channel;

use crate::config::Config;
use crate::runtime::witness_sets;
use crate::supervisor::{ReleaseError, ReleaseSink};

/// One channel to each witness of the cluster: those of the configuration, or of the file in which the worker keeps who
/// they are by now.
#[derive(Debug)]
pub struct WitnessSink {
    cluster: ClusterId,
    data_dir: PathBuf,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl WitnessSink {
    /// Begins to connect to every witness; must be called inside a runtime.
    ///
    /// # Errors
    /// An address is malformed.
    pub fn new(config: &Config) -> Result<Self, tonic::transport::Error> {
        let mut channels = BTreeMap::new();
        for peer in config.witnesses() {
            let address = peer.grpc.to_string();
            let channel = node_endpoint(&address)?.connect_lazy();
            channels.insert(address, channel);
        }
        let sink = Self {
            cluster: config.cluster_id(),
            data_dir: config.node.data_dir.clone(),
            channels: Mutex::new(channels),
        };
        sink.follow_file();
        sink.warm();
        Ok(sink)
    }

    /// Takes over who the witnesses are by now. What does not read changes nothing: the worker says so at its start.
    fn follow_file(&self) {
        let Ok(Some(set)) = witness_sets::load(&self.data_dir) else {
            return;
        };
        let mut channels = self
            .channels
            .lock()
            .expect("no panic while the lock is held");
        let addresses: Vec<&String> = set.all().map(|voter| &voter.address).collect();
        channels.retain(|address, _| addresses.contains(&address));
        for address in addresses {
            if let (false, Ok(endpoint)) = (channels.contains_key(address), node_endpoint(address))
            {
                channels.insert(address.clone(), endpoint.connect_lazy());
            }
        }
    }

    fn channels(&self) -> Vec<Channel> {
        let channels = self
            .channels
            .lock()
            .expect("no panic while the lock is held");
        channels.values().cloned().collect()
    }

    /// A lazy channel connects at its first request: send one that says nothing.
    fn warm(&self) {
        for channel in self.channels() {
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
        self.follow_file();
        let channels = self.channels();
        let asks = channels.iter().map(|channel| {
            let mut client = WitnessClient::new(channel.clone());
            async move { client.release(request).await }
        });
        let answers = join_all(asks).await;
        let confirmed = answers.iter().filter(|answer| answer.is_ok()).count();
        match answers.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(status) => Err(ReleaseError {
                confirmed,
                witnesses: channels.len(),
                reason: status.message().to_owned(),
            }),
        }
    }
}
