//! The gRPC services of a node of the scripted cluster.

use std::net::SocketAddr;

use mainstay_client::{LocalNode, LocalReplies, LocalRequests};
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::admin_server::Admin;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_proto::v1::client_request::Body as Ask;
use mainstay_proto::v1::client_server::Client as ClientService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::stream::Serving;
use super::{Mood, Node};

type Replies = UnboundedReceiverStream<Result<pb::ClientReply, Status>>;

#[tonic::async_trait]
impl ClientService for Node {
    type VolumeStream = Replies;

    async fn volume(
        &self,
        request: Request<Streaming<pb::ClientRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let replies = self.begin(request.into_inner());
        Ok(Response::new(UnboundedReceiverStream::new(replies)))
    }
}

impl LocalNode for Node {
    fn volume(&self, requests: LocalRequests) -> LocalReplies {
        self.lock().local_streams += 1;
        let mut replies = self.begin(UnboundedReceiverStream::new(requests).map(Ok));
        let (out, bounded) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(reply) = replies.recv().await {
                if out.send(reply).await.is_err() {
                    return;
                }
            }
        });
        bounded
    }
}

impl Node {
    /// Serves one stream, in a task that ends with it.
    fn begin(
        &self,
        mut asked: impl Stream<Item = Result<pb::ClientRequest, Status>> + Unpin + Send + 'static,
    ) -> mpsc::UnboundedReceiver<Result<pb::ClientReply, Status>> {
        let (out, replies) = mpsc::unbounded_channel();
        let node = self.clone();
        tokio::spawn(async move {
            let Some(Ok(pb::ClientRequest {
                tag,
                body: Some(Ask::Open(open)),
            })) = asked.next().await
            else {
                return;
            };
            let mut changed = node.changed.subscribe();
            let opened = node.open(&open);
            node.changed.send_modify(|count| *count += 1);
            let (opened, epoch, generation) = match opened {
                Ok(opened) => opened,
                Err(body) => {
                    let _gone = out.send(Ok(pb::ClientReply {
                        tag,
                        body: Some(body),
                    }));
                    return;
                }
            };
            let mut serving = Serving {
                node,
                epoch,
                any_copy: open.any_copy,
                session: open.session,
                generation,
                out,
                held_back: Vec::new(),
                tails: Vec::new(),
            };
            if serving.node.lock().moods[serving.node.me] != Mood::OpensUnheard {
                serving.reply(tag, Reply::Opened(opened));
            }
            loop {
                tokio::select! {
                    request = asked.next() => match request {
                        Some(Ok(request)) => {
                            if !serving.handle(request) {
                                return;
                            }
                        }
                        _ => return,
                    },
                    _ = changed.changed() => {
                        if serving.deposed() {
                            serving.reply(0, serving.node.not_primary());
                            return;
                        }
                        serving.feed_tails();
                    }
                }
            }
        });
        replies
    }
}

fn not_offered<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this fake"))
}

#[tonic::async_trait]
impl Admin for Node {
    type EventsStream = ReceiverStream<Result<pb::Event, Status>>;

    async fn r#where(
        &self,
        request: Request<pb::WhereRequest>,
    ) -> Result<Response<pb::WhereReply>, Status> {
        let (epoch, primary) = self.lock().beliefs[self.me];
        let asked = request.into_inner();
        self.lock().questions += 1;
        let node = |(node, address): (usize, &SocketAddr)| pb::NodeAddress {
            node: node as u32,
            address: address.to_string(),
        };
        Ok(Response::new(pb::WhereReply {
            known: self.lock().exists && !asked.volume.is_empty(),
            epoch,
            primary: primary.map(|at| at as u32),
            address: primary.map_or_else(String::new, |at| self.addresses[at].to_string()),
            serving: primary == Some(self.me),
            node: self.me as u32,
            nodes: self.addresses.iter().enumerate().map(node).collect(),
        }))
    }

    async fn health(
        &self,
        _: Request<pb::HealthRequest>,
    ) -> Result<Response<pb::HealthReply>, Status> {
        Ok(Response::new(pb::HealthReply {
            node: self.me as u32,
            ready: true,
            ..pb::HealthReply::default()
        }))
    }

    async fn list_volumes(
        &self,
        _: Request<pb::ListVolumesRequest>,
    ) -> Result<Response<pb::ListVolumesReply>, Status> {
        // The first node has lost its witnesses: the client must ask another.
        if self.me == 0 {
            return Err(Status::unavailable("no witness majority"));
        }
        let kind = pb::volume_kind::Kind::Log(pb::LogKind {});
        let register = pb::Register {
            spec: Some(pb::VolumeSpec {
                name: "ledger".to_owned(),
                kind: Some(pb::VolumeKind { kind: Some(kind) }),
            }),
            epoch: 4,
            ..pb::Register::default()
        };
        Ok(Response::new(pb::ListVolumesReply {
            volumes: vec![pb::VolumeStatus {
                register: Some(register),
                health: 77,
                ..pb::VolumeStatus::default()
            }],
        }))
    }

    async fn promote(
        &self,
        _: Request<pb::PromoteRequest>,
    ) -> Result<Response<pb::PromoteReply>, Status> {
        use pb::promote_refused::Reason;
        let refused = pb::PromoteRefused {
            message: String::new(),
            reason: Some(Reason::Behind(pb::Behind {
                have_lsn: 3,
                need_lsn: 9,
            })),
        };
        Ok(Response::new(pb::PromoteReply {
            outcome: Some(pb::promote_reply::Outcome::Refused(refused)),
        }))
    }

    async fn events(
        &self,
        _: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let (out, events) = mpsc::channel(1);
        let event = pb::Event {
            number: 9,
            kind: pb::EventKind::Promoted.into(),
            ..pb::Event::default()
        };
        out.send(Ok(event))
            .await
            .map_err(|_| Status::internal("gone"))?;
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn create_volume(
        &self,
        _: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeReply>, Status> {
        not_offered()
    }

    async fn show_volume(
        &self,
        _: Request<pb::ShowVolumeRequest>,
    ) -> Result<Response<pb::ShowVolumeReply>, Status> {
        not_offered()
    }

    async fn delete_volume(
        &self,
        _: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeReply>, Status> {
        not_offered()
    }

    async fn list_witnesses(
        &self,
        _: Request<pb::ListWitnessesRequest>,
    ) -> Result<Response<pb::ListWitnessesReply>, Status> {
        not_offered()
    }

    async fn change_witnesses(
        &self,
        _: Request<pb::ChangeWitnessesRequest>,
    ) -> Result<Response<pb::ChangeWitnessesReply>, Status> {
        not_offered()
    }

    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        not_offered()
    }
}
