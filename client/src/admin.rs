//! What operators ask of a cluster, in plain types.
//!
//! Questions go to the nodes one after another until one answers. A change whose answer is lost is reported as unknown,
//! except where making it again is harmless: creating and deleting a volume.

mod convert;
pub(crate) mod promotions;
pub(crate) mod types;
pub(crate) mod witnesses;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::MESSAGE_BYTES_MAX;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::admin_client::AdminClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::AdminError;
use crate::cluster::{Backoff, Cluster};
use promotions::{Promote, Promoted};
use types::{ClusterStatus, CreateVolume, Created, Event, EventFilter, NodeHealth, VolumeStatus};

/// Operators' requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admin {
    cluster: Arc<Cluster>,
    /// Each request goes over a connection of its own, because its answers may lie unread.
    apart: bool,
}

impl Admin {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            apart: false,
        }
    }

    fn apart(&self) -> Self {
        Self {
            cluster: Arc::clone(&self.cluster),
            apart: true,
        }
    }

    /// Creates a volume and waits until it serves. Creating the same volume again changes nothing and says so. Cancelling may
    /// leave it created.
    ///
    /// # Errors
    /// A volume of that name and another specification exists, the request makes no sense, or no witness majority answers.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// use mainstay_client::report::CreateVolume;
    /// use mainstay_types::VolumeKind;
    ///
    /// let wanted = CreateVolume::new("disk", VolumeKind::Block { size_bytes: 1 << 20 });
    /// assert!(!admin.create_volume(wanted.clone()).await?.existed);
    /// assert!(admin.create_volume(wanted).await?.existed);
    /// # Ok(()) });
    /// ```
    pub async fn create_volume(&self, wanted: CreateVolume) -> Result<Created, AdminError> {
        let request = convert::create_request(&wanted, self.patience());
        let reply = self
            .repeat(move |mut client| {
                let request = request.clone();
                async move { client.create_volume(request).await }
            })
            .await?;
        convert::created(reply)
    }

    /// Every volume, by name. Cancelling is safe.
    ///
    /// # Errors
    /// No node answered in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// let volumes = admin.list_volumes().await?;
    /// assert_eq!(volumes[0].name, "ledger");
    /// # Ok(()) });
    /// ```
    pub async fn list_volumes(&self) -> Result<Vec<VolumeStatus>, AdminError> {
        let reply = self
            .repeat(
                |mut client| async move { client.list_volumes(pb::ListVolumesRequest {}).await },
            )
            .await?;
        reply.volumes.into_iter().map(convert::volume).collect()
    }

    /// One volume. Cancelling is safe.
    ///
    /// # Errors
    /// It does not exist, or no node answered in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// let volume = admin.show_volume("ledger").await?;
    /// println!("{:?}, primary on node {}", volume.health, volume.primary);
    /// # Ok(()) });
    /// ```
    pub async fn show_volume(&self, name: &str) -> Result<VolumeStatus, AdminError> {
        let volume = name.to_owned();
        let reply = self
            .repeat(move |mut client| {
                let request = pb::ShowVolumeRequest {
                    volume: volume.clone(),
                };
                async move { client.show_volume(request).await }
            })
            .await?;
        convert::volume(reply.volume.unwrap_or_default())
    }

    /// Deletes a volume and its data. `force`: although somebody is attached. Cancelling may leave it deleted.
    ///
    /// # Errors
    /// It does not exist, somebody is attached, or no witness majority answers.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// admin.delete_volume("ledger", false).await?;
    /// assert!(admin.show_volume("ledger").await.is_err());
    /// # Ok(()) });
    /// ```
    pub async fn delete_volume(&self, name: &str, force: bool) -> Result<(), AdminError> {
        let volume = name.to_owned();
        self.repeat(move |mut client| {
            let request = pb::DeleteVolumeRequest {
                volume: volume.clone(),
                force,
            };
            async move { client.delete_volume(request).await }
        })
        .await?;
        Ok(())
    }

    /// Nodes, witnesses and volumes, as one node sees them. Cancelling is safe.
    ///
    /// # Errors
    /// No node answered in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// let status = admin.status().await?;
    /// println!("{} of {} witnesses", status.witnesses_reachable, status.witnesses);
    /// assert_eq!(status.nodes.len(), 6);
    /// # Ok(()) });
    /// ```
    pub async fn status(&self) -> Result<ClusterStatus, AdminError> {
        let reply = self
            .repeat(
                |mut client| async move { client.status(pb::StatusRequest { local: false }).await },
            )
            .await?;
        convert::status(reply)
    }

    /// Moves a volume's primary: planned, or by force. Sent once: never repeated after it may have arrived. Cancelling does
    /// not stop a promotion under way.
    ///
    /// # Errors
    /// Refused for a named reason, or unknown if the answer was lost.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// use mainstay_client::report::Promote;
    ///
    /// let volume = admin.show_volume("ledger").await?;
    /// let other = volume.members.iter().map(|member| member.node).find(|node| *node != volume.primary);
    /// let planned = Promote { to: other, ..Promote::planned("ledger") };
    /// assert_eq!(Some(admin.promote(planned).await?.primary), other);
    /// # Ok(()) });
    /// ```
    pub async fn promote(&self, promote: Promote) -> Result<Promoted, AdminError> {
        let request = convert::promote_request(&promote, self.patience());
        let reply = self
            .once(self.cluster.config.admin_deadline, move |mut client| {
                let request = request.clone();
                async move { client.promote(request).await }
            })
            .await?;
        convert::promoted(reply)
    }

    /// The event log of one node, oldest first; with `follow` it goes on as things happen, until that node ends the stream.
    /// Cancelling is safe: a stream that was opened ends.
    ///
    /// # Errors
    /// No node answered in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// use mainstay_client::report::EventFilter;
    ///
    /// let mut events = admin.events(EventFilter::default()).await?;
    /// while let Some(event) = events.next().await {
    ///     println!("{}", event?.message);
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn events(&self, filter: EventFilter) -> Result<EventStream, AdminError> {
        let request = convert::events_request(&filter);
        let stream = self
            .apart()
            .repeat(move |mut client| {
                let request = request.clone();
                async move { client.events(request).await }
            })
            .await?;
        Ok(EventStream { stream })
    }

    /// The event log of the node at `address`, as [`Self::events`]. Asks that node alone, once: each node keeps a log of its
    /// own, so the whole story takes them all. Cancelling is safe.
    ///
    /// # Errors
    /// It did not answer in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// use mainstay_client::report::EventFilter;
    ///
    /// for address in admin.nodes() {
    ///     let mut events = admin.events_of(&address, EventFilter::default()).await?;
    ///     while let Some(event) = events.next().await {
    ///         println!("{address}: {}", event?.message);
    ///     }
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn events_of(
        &self,
        address: &str,
        filter: EventFilter,
    ) -> Result<EventStream, AdminError> {
        let request = convert::events_request(&filter);
        let call = |mut client: AdminClient<Channel>| {
            let request = request.clone();
            async move { client.events(request).await }
        };
        let apart = self.apart();
        let asked =
            tokio::time::timeout(self.cluster.config.ask_timeout, apart.ask(address, &call));
        match asked.await {
            Ok(Ok(stream)) => Ok(EventStream { stream }),
            Ok(Err(status)) => Err(error(&status)),
            Err(_) => Err(AdminError::Unavailable {
                message: format!("{address} does not answer"),
            }),
        }
    }

    /// Whether the node at `address` works. Asks that node alone, once. Cancelling is safe.
    ///
    /// # Errors
    /// It did not answer in time.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// for address in cluster.endpoints() {
    ///     let health = admin.health(&address).await?;
    ///     println!("node {}: {}", health.node, if health.ready { "ready" } else { &health.reason });
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn health(&self, address: &str) -> Result<NodeHealth, AdminError> {
        let silent = || AdminError::Unavailable {
            message: format!("{address} does not answer"),
        };
        let channel = self.cluster.channel(address).ok_or_else(silent)?;
        let mut client = AdminClient::new(channel);
        let asked = tokio::time::timeout(
            self.cluster.config.ask_timeout,
            client.health(pb::HealthRequest {}),
        );
        match asked.await {
            Ok(Ok(reply)) => Ok(convert::health(reply.into_inner())),
            Ok(Err(status)) => Err(error(&status)),
            Err(_) => Err(silent()),
        }
    }

    /// Addresses of all nodes known so far.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// for endpoint in cluster.endpoints() {
    ///     assert!(admin.nodes().contains(&endpoint));
    /// }
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.cluster.addresses()
    }

    /// What the server is told: it answers before the client gives up.
    fn patience(&self) -> Duration {
        self.cluster.config.admin_deadline / 5 * 4
    }

    /// Asks node after node until one answers, or refuses for good.
    async fn repeat<R, F>(&self, call: impl Fn(AdminClient<Channel>) -> F) -> Result<R, AdminError>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let waited = self.cluster.config.admin_deadline;
        let mut last = "no node answered".to_owned();
        let answered = tokio::time::timeout(waited, async {
            let mut pause = Backoff::new(&self.cluster.config);
            loop {
                for address in self.cluster.addresses() {
                    match self.ask(&address, &call).await {
                        Ok(reply) => return Ok(reply),
                        Err(status) if may_differ_elsewhere(&status) => {
                            last = format!("{address}: {}", status.message());
                        }
                        Err(status) => return Err(error(&status)),
                    }
                }
                pause.wait().await;
            }
        });
        match answered.await {
            Ok(result) => result,
            Err(_) => Err(AdminError::Unavailable { message: last }),
        }
    }

    /// Finds a node that lives, then asks it once.
    async fn once<R, F>(
        &self,
        waited: Duration,
        call: impl Fn(AdminClient<Channel>) -> F,
    ) -> Result<R, AdminError>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let address = self.live_node().await?;
        match tokio::time::timeout(waited, self.ask(&address, &call)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) if may_differ_elsewhere(&status) => Err(AdminError::Unknown {
                message: format!("{address}: {}", status.message()),
            }),
            Ok(Err(status)) => Err(error(&status)),
            Err(_) => Err(AdminError::Unknown {
                message: format!("{address} did not answer within {waited:?}"),
            }),
        }
    }

    async fn live_node(&self) -> Result<String, AdminError> {
        for address in self.cluster.addresses() {
            if self.health(&address).await.is_ok() {
                return Ok(address);
            }
        }
        Err(AdminError::Unavailable {
            message: "no node answered".to_owned(),
        })
    }

    async fn ask<R, F>(
        &self,
        address: &str,
        call: &impl Fn(AdminClient<Channel>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let channel = if self.apart {
            Cluster::own_channel(address)
        } else {
            self.cluster.channel(address)
        };
        let channel = channel.ok_or_else(|| Status::unavailable("not an address"))?;
        let client = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let result = call(client).await.map(tonic::Response::into_inner);
        if result.as_ref().is_err_and(may_differ_elsewhere) {
            self.cluster.forget_channel(address);
        }
        result
    }
}

/// Another node, or a later try, may answer differently. Codes of a lost connection vary: none is relied upon alone.
fn may_differ_elsewhere(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

fn error(status: &Status) -> AdminError {
    let message = status.message().to_owned();
    match status.code() {
        Code::NotFound => AdminError::NotFound { message },
        Code::AlreadyExists => AdminError::Exists { message },
        Code::Unavailable => AdminError::Unavailable { message },
        Code::DeadlineExceeded | Code::Unknown | Code::Cancelled => AdminError::Unknown { message },
        _ => AdminError::Invalid { message },
    }
}

/// Events of the cluster.
#[derive(Debug)]
pub struct EventStream {
    stream: tonic::Streaming<pb::Event>,
}

impl EventStream {
    /// The next event; `None` when the node has no more, or ends the stream. Cancelling loses nothing.
    ///
    /// # Errors
    /// The connection was lost: ask again from the last number on.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let admin = client.admin();
    /// use mainstay_client::report::{EventFilter, EventKind};
    ///
    /// let follow = EventFilter { follow: true, ..EventFilter::default() };
    /// let mut events = admin.events(follow).await?;
    /// let first = events.next().await.expect("a node that started says so")?;
    /// assert_eq!(first.kind, EventKind::NodeStarted);
    /// # Ok(()) });
    /// ```
    pub async fn next(&mut self) -> Option<Result<Event, AdminError>> {
        match self.stream.message().await {
            Ok(Some(event)) => Some(Ok(convert::event(event))),
            Ok(None) => None,
            Err(status) => Some(Err(AdminError::Unavailable {
                message: status.message().to_owned(),
            })),
        }
    }
}
