//! A cluster of the product with one log: three data nodes and three witnesses as processes with default settings, and one client.

use std::path::Path;

use anyhow::Context;
use mainstay_client::report::CreateVolume;
use mainstay_client::{Client, ClientConfig, LogVolume};
use mainstay_node::devcluster::{DevCluster, Options};
use mainstay_types::VolumeKind;

/// The log.
pub const VOLUME: &str = "bench";

/// Runs until [`Product::stop`].
#[derive(Debug)]
pub struct Product {
    cluster: DevCluster,
    /// Of the log.
    pub client: Client,
    /// Open for writing.
    pub log: LogVolume,
}

impl Product {
    /// Starts `program`, a release build of `mainstay`, with its files in `dir`; `extra_config` goes into every node's configuration.
    ///
    /// # Errors
    /// There is no such program, or the cluster does not come up; its log says why.
    pub async fn start(program: &Path, dir: &Path, extra_config: String) -> anyhow::Result<Self> {
        let program = program.canonicalize().with_context(|| {
            format!(
                "{}: build it first with `cargo build --release`",
                program.display()
            )
        })?;
        let options = Options {
            program,
            extra_config,
            ..Options::new(dir.join("cluster"))?
        };
        let cluster = DevCluster::start(options).await?;
        let client = Client::connect(ClientConfig::new(cluster.endpoints())).await?;
        let create = CreateVolume::new(VOLUME, VolumeKind::Log);
        client.admin().create_volume(create).await?;
        let log = client.log(VOLUME).open().await?;
        Ok(Self {
            cluster,
            client,
            log,
        })
    }

    /// Ends all its processes.
    pub async fn stop(self) {
        self.cluster.stop().await;
    }
}
