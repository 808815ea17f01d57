//! Operators' requests.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_types::{AckRule, NodeId, Policy, VolumeKind, VolumeName, VolumeSpec};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::admin_ops::{self, NewVolume};
use super::{Node, rounds, status, witness_sets};

/// Copies of a new volume, where nothing else is asked for: as many as there are data nodes, up to this.
const COPIES: usize = 3;

/// Serves `Admin`.
#[derive(Debug, Clone)]
pub struct AdminService(pub Arc<Node>);

fn patience(ms: u32) -> Duration {
    if ms == 0 {
        Duration::from_secs(10)
    } else {
        Duration::from_millis(u64::from(ms.min(120_000)))
    }
}

/// Where copies go if nobody says so: the preferred nodes first, as the first one makes the volume and is its first primary,
/// then this one, then the others.
fn place(data: &[NodeId], me: NodeId, prefer: &[NodeId], copies: usize) -> Vec<NodeId> {
    let mut order: Vec<NodeId> = data.to_vec();
    let at = |node: &NodeId| prefer.iter().position(|p| p == node).unwrap_or(usize::MAX);
    order.sort_by_key(|node| (at(node), *node != me));
    order.truncate(copies);
    order
}

fn name(text: &str) -> Result<VolumeName, Status> {
    text.parse()
        .map_err(|error: mainstay_types::NameError| Status::invalid_argument(error.to_string()))
}

impl AdminService {
    /// What a request for a new volume means.
    fn new_volume(&self, request: &pb::CreateVolumeRequest) -> Result<NewVolume, Status> {
        let spec = request
            .spec
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("no `spec`"))?;
        let kind = match spec.kind.as_ref().and_then(|kind| kind.kind.as_ref()) {
            Some(pb::volume_kind::Kind::Log(_)) => VolumeKind::Log,
            Some(pb::volume_kind::Kind::Block(block)) => VolumeKind::Block {
                size_bytes: block.size_bytes,
            },
            None => {
                return Err(Status::invalid_argument(
                    "the volume is neither a log nor a block device",
                ));
            }
        };
        let data = self.0.settings.data_nodes();
        let mut placement: Vec<NodeId> =
            request.placement.iter().map(|node| NodeId(*node)).collect();
        let prefer: Vec<NodeId> = request.prefer.iter().map(|node| NodeId(*node)).collect();
        if placement.is_empty() {
            let copies = if request.copies == 0 {
                COPIES.min(data.len())
            } else {
                request.copies as usize
            };
            if copies > data.len() {
                let text = format!(
                    "{copies} copies need as many data nodes; this cluster has {}",
                    data.len()
                );
                return Err(Status::invalid_argument(text));
            }
            placement = place(&data, self.0.settings.node, &prefer, copies);
        }
        let mut policy = Policy {
            prefer,
            shared: request.shared,
            ..Policy::for_placement(placement)
        };
        match pb::AckRule::try_from(request.ack) {
            Ok(pb::AckRule::Majority) => policy.ack = AckRule::Majority,
            Ok(pb::AckRule::All) => policy.ack = AckRule::All,
            _ => {}
        }
        if request.min_copies != 0 {
            policy.min_copies = request.min_copies;
        }
        Ok(NewVolume {
            spec: VolumeSpec {
                name: name(&spec.name)?,
                kind,
            },
            policy,
        })
    }
}

#[tonic::async_trait]
impl pb::admin_server::Admin for AdminService {
    type EventsStream = ReceiverStream<Result<pb::Event, Status>>;

    async fn create_volume(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeReply>, Status> {
        let mut request = request.into_inner();
        let new = self.new_volume(&request)?;
        if !self.0.settings.data || new.policy.placement.first() != Some(&self.0.settings.node) {
            // The first node of the placement makes the volume, as it holds the first copy.
            let first = new.policy.placement.first().copied();
            request.placement = new.policy.placement.iter().map(|node| node.0).collect();
            return status::forward_create(&self.0, first, request).await;
        }
        let (register, existed) =
            admin_ops::create(&self.0, new, patience(request.patience_ms)).await?;
        let volume = Some(status::volume(&self.0, &register));
        Ok(Response::new(pb::CreateVolumeReply { volume, existed }))
    }

    async fn list_volumes(
        &self,
        _request: Request<pb::ListVolumesRequest>,
    ) -> Result<Response<pb::ListVolumesReply>, Status> {
        let volumes = status::gather(&self.0).await.volumes;
        Ok(Response::new(pb::ListVolumesReply { volumes }))
    }

    async fn show_volume(
        &self,
        request: Request<pb::ShowVolumeRequest>,
    ) -> Result<Response<pb::ShowVolumeReply>, Status> {
        let name = name(&request.into_inner().volume)?;
        let volumes = status::gather(&self.0).await.volumes;
        let volume = volumes
            .into_iter()
            .find(|volume| volume.volume == name.id().0);
        let volume = match volume {
            Some(volume) => volume,
            // Nodes that have just started may not have heard of it yet: the witnesses know.
            None => rounds::read(&self.0, name.id(), patience(0))
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?
                .filter(|register| !register.deleted)
                .map(|register| status::volume(&self.0, &register))
                .ok_or_else(|| Status::not_found(format!("there is no volume `{name}`")))?,
        };
        Ok(Response::new(pb::ShowVolumeReply {
            volume: Some(volume),
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeReply>, Status> {
        let name = name(&request.into_inner().volume)?;
        let register = admin_ops::delete(&self.0, &name, patience(0)).await?;
        Ok(Response::new(pb::DeleteVolumeReply {
            register_version: register.version,
        }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        let reply = if request.into_inner().local {
            status::local(&self.0)
        } else {
            status::gather(&self.0).await
        };
        Ok(Response::new(reply))
    }

    async fn promote(
        &self,
        request: Request<pb::PromoteRequest>,
    ) -> Result<Response<pb::PromoteReply>, Status> {
        status::promote(&self.0, request.into_inner(), patience).await
    }

    async fn events(
        &self,
        request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        Ok(Response::new(status::events(
            self.0.clone(),
            request.into_inner(),
        )))
    }

    async fn r#where(
        &self,
        request: Request<pb::WhereRequest>,
    ) -> Result<Response<pb::WhereReply>, Status> {
        let text = request.into_inner().volume;
        Ok(Response::new(status::r#where(&self.0, text.parse().ok())))
    }

    async fn health(
        &self,
        _request: Request<pb::HealthRequest>,
    ) -> Result<Response<pb::HealthReply>, Status> {
        Ok(Response::new(status::health(&self.0)))
    }

    async fn list_witnesses(
        &self,
        _request: Request<pb::ListWitnessesRequest>,
    ) -> Result<Response<pb::ListWitnessesReply>, Status> {
        Ok(Response::new(witness_sets::list(&self.0)))
    }

    async fn change_witnesses(
        &self,
        request: Request<pb::ChangeWitnessesRequest>,
    ) -> Result<Response<pb::ChangeWitnessesReply>, Status> {
        witness_sets::change(&self.0, request.into_inner()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_to_preferred_nodes_then_to_this_one() {
        let data = [1, 2, 3, 4].map(NodeId);
        let placed = |prefer: &[u32], copies| {
            let prefer: Vec<NodeId> = prefer.iter().copied().map(NodeId).collect();
            let nodes = place(&data, NodeId(3), &prefer, copies);
            nodes.iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!(placed(&[], 3), [3, 1, 2]);
        assert_eq!(placed(&[4, 2], 3), [4, 2, 3]);
        assert_eq!(placed(&[9], 2), [3, 1], "refused later, by name");
    }
}
