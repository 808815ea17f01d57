//! The node's HTTP: `/healthz` for load balancers and scripts, `/metrics` in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use mainstay_replication::Role;
use tokio::net::TcpListener;

use crate::runtime::{Node, clock, status};

/// Serves until the node has stopped.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let app = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(node.clone());
    let stopped = async move { node.until_stopped().await };
    if let Err(error) = axum::serve(listener, app)
        .with_graceful_shutdown(stopped)
        .await
    {
        tracing::error!(%error, "http server ended");
    }
}

async fn healthz(State(node): State<Arc<Node>>) -> (StatusCode, String) {
    let health = status::health(&node);
    if health.ready {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", health.reason),
        )
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> String {
    let mut out = String::new();
    for (name, help) in METRICS {
        // Prometheus' convention for what only rises.
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for handle in node.volumes() {
            let report = handle.report();
            let value = match *name {
                "mainstay_volume_primary" => u64::from(matches!(report.role, Role::Primary { .. })),
                "mainstay_volume_failed" => u64::from(report.failed.is_some()),
                "mainstay_volume_epoch" => report.sealed.0,
                "mainstay_volume_durable_lsn" => report.durable.0,
                "mainstay_volume_commit_lsn" => report.commit.0,
                "mainstay_volume_applied_lsn" => report.applied.0,
                "mainstay_volume_members" => report
                    .register
                    .as_ref()
                    .map_or(0, |r| r.members.len() as u64),
                "mainstay_volume_sync_age_ms" => {
                    u64::try_from(report.sync_age.as_millis()).unwrap_or(u64::MAX)
                }
                "mainstay_volume_repaired_blocks_total" => {
                    handle.repairs.repaired.load(Ordering::Relaxed)
                }
                "mainstay_volume_unrepaired_total" => handle.repairs.failed.load(Ordering::Relaxed),
                "mainstay_volume_scrubbed_bytes_total" => {
                    handle.repairs.scrubbed_bytes.load(Ordering::Relaxed)
                }
                _ => u64::try_from(report.lease_until.since(clock::mono()).as_millis())
                    .unwrap_or(u64::MAX),
            };
            let _infallible = writeln!(out, "{name}{{volume=\"{}\"}} {value}", handle.spec.name);
        }
    }
    out
}

const METRICS: &[(&str, &str)] = &[
    (
        "mainstay_volume_primary",
        "1 if this node serves the volume as primary.",
    ),
    ("mainstay_volume_failed", "1 if this copy stepped aside."),
    ("mainstay_volume_epoch", "Greatest epoch sealed here."),
    (
        "mainstay_volume_durable_lsn",
        "Last entry that is durable here.",
    ),
    ("mainstay_volume_commit_lsn", "Commit point as known here."),
    ("mainstay_volume_applied_lsn", "Last entry applied here."),
    (
        "mainstay_volume_members",
        "Members of the register as known here.",
    ),
    (
        "mainstay_volume_sync_age_ms",
        "Age of the oldest log write that has not completed.",
    ),
    (
        "mainstay_volume_repaired_blocks_total",
        "Blocks of this copy that did not read back and were taken from another one.",
    ),
    (
        "mainstay_volume_unrepaired_total",
        "Times that a block of this copy was needed and no copy had it.",
    ),
    (
        "mainstay_volume_scrubbed_bytes_total",
        "Bytes of this copy that the scrub has looked at.",
    ),
    (
        "mainstay_volume_lease_ms",
        "Time left of the lease held here.",
    ),
];
