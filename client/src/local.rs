//! Streams to a node of this very process: no socket, no encoding, no copy of a payload.
//!
//! A node that exports volumes over NBD is a client of its own cluster, and most of the time of itself. The requests and
//! replies are those of the wire; only what carries them differs, so that nothing else of the client knows.

use std::fmt;
use std::sync::Arc;

use mainstay_proto::v1 as pb;
use tokio::sync::mpsc;
use tonic::Status;

/// Requests of one stream, as the node takes them.
pub type LocalRequests = mpsc::UnboundedReceiver<pb::ClientRequest>;
/// Replies of one stream, as the node gives them.
pub type LocalReplies = mpsc::Receiver<Result<pb::ClientReply, Status>>;

/// What a node offers to clients in its own process.
pub trait LocalNode: fmt::Debug + Send + Sync {
    /// Opens a stream, and serves it as `Client.Volume` does: until the requests end, the replies are dropped, or the node ends
    /// it.
    fn volume(&self, requests: LocalRequests) -> LocalReplies;
}

/// The node of this process, and the address by which the cluster knows it.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub(crate) address: String,
    pub(crate) node: Arc<dyn LocalNode>,
}

/// The server's end of a stream, wherever the server is.
#[derive(Debug)]
pub(crate) enum Replies {
    Wire(Box<tonic::Streaming<pb::ClientReply>>),
    Local(LocalReplies),
}

impl Replies {
    /// The next reply; `None` at the end of the stream. Cancelling it loses none.
    pub(crate) async fn message(&mut self) -> Result<Option<pb::ClientReply>, Status> {
        match self {
            Self::Wire(stream) => stream.message().await,
            Self::Local(replies) => replies.recv().await.transpose(),
        }
    }
}
