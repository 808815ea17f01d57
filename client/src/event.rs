//! What a client sees of the cluster's failures, for people and for measurements.

use std::time::Duration;

use mainstay_types::{Epoch, NodeId};
use serde::Serialize;
use tokio::sync::broadcast;

/// Something that happened to one opened volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ClientEvent {
    /// The first stream to the volume's primary is open.
    Opened {
        /// The volume.
        volume: String,
        /// Its primary.
        node: NodeId,
        /// In this epoch.
        epoch: Epoch,
    },
    /// The stream was lost or left: requests wait.
    ConnectionLost {
        /// The volume.
        volume: String,
        /// Where it led.
        node: NodeId,
        /// Why.
        reason: String,
        /// Requests without an answer.
        waiting: usize,
    },
    /// A later epoch has another primary.
    PrimaryChanged {
        /// The volume.
        volume: String,
        /// The primary before.
        from: NodeId,
        /// The primary now.
        to: NodeId,
        /// The new epoch.
        epoch: Epoch,
    },
    /// A stream is open again, and everything unanswered was sent again.
    Resumed {
        /// The volume.
        volume: String,
        /// Its primary.
        node: NodeId,
        /// In this epoch.
        epoch: Epoch,
        /// From the last answer (or from the oldest waiting request, if that is later) to now: the service gap as this client
        /// saw it.
        #[serde(serialize_with = "as_micros")]
        gap: Duration,
        /// Mutations sent again.
        replayed: usize,
    },
    /// The session is over: somebody took over, or it expired.
    SessionEnded {
        /// The volume.
        volume: String,
        /// Why.
        reason: String,
    },
}

fn as_micros<S: serde::Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}

/// Receives [`ClientEvent`]s.
#[derive(Debug)]
pub struct ClientEvents(pub(crate) broadcast::Receiver<ClientEvent>);

impl ClientEvents {
    /// The next event; `None` once the client and all its handles are gone. Missed events are skipped.
    ///
    /// Cancelling loses nothing.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// use mainstay_client::ClientEvent;
    ///
    /// let mut events = client.events();
    /// let log = client.log("ledger").open().await?;
    /// cluster.stop(cluster.primary_of("ledger").await?).await?;
    /// log.append("after the failover").await?;
    /// let gap = loop {
    ///     match events.next().await {
    ///         Some(ClientEvent::Resumed { gap, .. }) => break gap,
    ///         Some(_) => {}
    ///         None => unreachable!("the client lives"),
    ///     }
    /// };
    /// println!("nobody served for {gap:?}");
    /// # Ok(()) });
    /// ```
    pub async fn next(&mut self) -> Option<ClientEvent> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
