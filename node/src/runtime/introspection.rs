//! What general gRPC tools ask any server: whether it serves (`grpc.health.v1`), and what its services and messages are
//! (`grpc.reflection.v1`, and `v1alpha` for tools that know no other).

use std::sync::Arc;

use mainstay_proto::DESCRIPTORS;
use mainstay_proto::v1::admin_server::AdminServer;
use mainstay_proto::v1::client_server::ClientServer;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tonic_reflection::server::{Error, v1, v1alpha};

use super::Node;
use super::admin_service::AdminService;
use super::client_service::ClientService;

/// The health service. The server as a whole, named by the empty string, and the two services for clients and operators serve
/// until the node begins to stop. Whether a volume is served here is another question: `Admin` answers it.
pub(super) async fn health(node: &Arc<Node>) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    say(&reporter, ServingStatus::Serving).await;
    let node = Arc::clone(node);
    tokio::spawn(async move {
        node.until_stopping().await;
        say(&reporter, ServingStatus::NotServing).await;
    });
    service
}

async fn say(reporter: &HealthReporter, status: ServingStatus) {
    let names = [
        "",
        <ClientServer<ClientService> as NamedService>::NAME,
        <AdminServer<AdminService> as NamedService>::NAME,
    ];
    for name in names {
        reporter.set_service_status(name, status).await;
    }
}

/// The reflection service, in both of its versions.
///
/// # Errors
/// The descriptors of this build do not decode.
pub(super) fn reflection() -> Result<
    (
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    Error,
> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure();
        builder
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok((builder().build_v1()?, builder().build_v1alpha()?))
}
