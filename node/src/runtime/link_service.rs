//! The receiving end of links.

use std::sync::Arc;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::replication_server::Replication;
use mainstay_proto::v1::witness_server::Witness;
use mainstay_replication::message::{Message, WitnessMessage};
use mainstay_types::{Instance, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Node, copies, repair};
use crate::wire;

/// Serves `Replication.Link` and `Witness.Link` alike: the frames are the same.
#[derive(Debug, Clone)]
pub struct LinkService(pub Arc<Node>);

type Answers = ReceiverStream<Result<pb::Frame, Status>>;

impl LinkService {
    async fn accept(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Answers>, Status> {
        let node = self.0.clone();
        let mut frames = request.into_inner();
        let first = frames
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("no hello"))?;
        let peer = wire::accept_hello(first, node.settings.cluster)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        if !node.peers.knows(peer.node) {
            let text = format!(
                "node {} is not among the peers of node {}",
                peer.node, node.settings.node
            );
            return Err(Status::permission_denied(text));
        }
        node.check_stores(&peer)
            .await
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(1);
        let hello = node.hello();
        let _gone = sender.send(Ok(hello)).await;
        tokio::spawn(receive(node, peer.node, frames, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn receive(
    node: Arc<Node>,
    from: NodeId,
    mut frames: Streaming<pb::Frame>,
    answers: mpsc::Sender<Result<pb::Frame, Status>>,
) {
    let stopped = node.until_stopped();
    tokio::pin!(stopped);
    loop {
        let frame = tokio::select! {
            frame = frames.message() => frame,
            () = &mut stopped => return,
        };
        let Ok(Some(frame)) = frame else { return };
        match wire::decode(frame) {
            Ok((message, batch)) => node.deliver(from, message, batch),
            Err(error) => {
                tracing::warn!(%from, %error, "closing a link that carries what this node does not understand");
                let _gone = answers
                    .send(Err(Status::invalid_argument(error.to_string())))
                    .await;
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl Replication for LinkService {
    type LinkStream = Answers;

    async fn link(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Answers>, Status> {
        self.accept(request).await
    }

    async fn copy(
        &self,
        request: Request<Streaming<pb::CopyFrame>>,
    ) -> Result<Response<pb::CopyReply>, Status> {
        let incarnation = copies::receive(&self.0, request.into_inner()).await?;
        Ok(Response::new(pb::CopyReply {
            incarnation: incarnation.0,
        }))
    }

    async fn blocks(
        &self,
        request: Request<pb::BlocksRequest>,
    ) -> Result<Response<pb::BlocksReply>, Status> {
        let reply = repair::donate(&self.0, request.into_inner()).await?;
        Ok(Response::new(reply))
    }
}

#[tonic::async_trait]
impl Witness for LinkService {
    type LinkStream = Answers;

    async fn link(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Answers>, Status> {
        self.accept(request).await
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::ReleaseReply>, Status> {
        let request = request.into_inner();
        if request.cluster != self.0.settings.cluster.0 {
            return Err(Status::failed_precondition("another cluster"));
        }
        let node = NodeId(request.node);
        let released = WitnessMessage::ReleaseInstance {
            node,
            instance: Instance(request.instance),
        };
        self.0
            .deliver(node, Message::Witness(released), bytes::Bytes::new());
        Ok(Response::new(pb::ReleaseReply {}))
    }
}
