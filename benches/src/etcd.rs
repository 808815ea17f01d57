//! etcd as a reference: three members on loopback with default durability, and puts of new keys over its own gRPC interface.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use crate::loads::Outcome;
use crate::report::{Load, as_f64, histogram, record};

/// Debian's package.
pub const PACKAGE: &str = "etcd-server";

const PATIENCE: Duration = Duration::from_secs(20);

/// `PutRequest` of etcd's `rpc.proto`, as far as it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `PutResponse`; what is in it does not matter.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// `StatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

/// `StatusResponse`, as far as it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// Connections to the leader: one alone would be a limit of the client's.
const CHANNELS: usize = 4;

/// Three members; their processes end with it.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Child>,
    /// To the leader: what a follower is asked it only passes on.
    channels: Vec<Channel>,
    next_key: Arc<AtomicU64>,
}

/// Whether it is installed.
#[must_use]
pub fn installed() -> bool {
    let version = Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

impl Etcd {
    /// Starts three members with their files in `dir`.
    ///
    /// # Errors
    /// They do not start, or elect no leader within 20 s.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let ports = free_ports(6)?;
        let peers: Vec<String> = (0..3)
            .map(|at| format!("m{at}=http://127.0.0.1:{}", ports[at]))
            .collect();
        // From the first member on: what is started is ended, whatever fails.
        let mut etcd = Self {
            members: Vec::new(),
            channels: Vec::new(),
            next_key: Arc::default(),
        };
        for at in 0..3 {
            let peer = format!("http://127.0.0.1:{}", ports[at]);
            let client = format!("http://127.0.0.1:{}", ports[3 + at]);
            let log = std::fs::File::create(dir.join(format!("etcd-{at}.log")))?;
            let child = Command::new("etcd")
                .args(["--name", &format!("m{at}")])
                .arg("--data-dir")
                .arg(dir.join(format!("etcd-{at}")))
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--initial-cluster", &peers.join(",")])
                .args(["--quota-backend-bytes", "8589934592"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("etcd")?;
            etcd.members.push(child);
        }
        let address = leader(&ports[3..]).await?;
        for _ in 0..CHANNELS {
            let channel = Endpoint::from_shared(address.clone())?.connect().await?;
            put(&channel, 0, Bytes::new()).await?;
            etcd.channels.push(channel);
        }
        Ok(etcd)
    }

    /// Keeps `load.in_flight` puts of new keys without an answer for `span`.
    ///
    /// # Errors
    /// A put failed.
    pub async fn run(&self, load: Load, span: Duration) -> anyhow::Result<Outcome> {
        let value = Bytes::from(vec![0x5a_u8; load.record_bytes]);
        let begin = Instant::now();
        let writers: Vec<_> = (0..load.in_flight)
            .map(|at| {
                let channel = self.channels[at % CHANNELS].clone();
                let (value, next) = (value.clone(), self.next_key.clone());
                tokio::spawn(async move {
                    let mut times = histogram();
                    while begin.elapsed() < span {
                        let key = next.fetch_add(1, Ordering::Relaxed);
                        let sent = Instant::now();
                        put(&channel, key, value.clone()).await?;
                        record(&mut times, sent.elapsed());
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let mut times: Histogram<u64> = histogram();
        for writer in writers {
            times.add(writer.await??)?;
        }
        let count = usize::try_from(times.len())?;
        Ok(Outcome {
            per_second: as_f64(count) / begin.elapsed().as_secs_f64(),
            times,
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _gone = member.kill();
            let _gone = member.wait();
        }
    }
}

/// Where the leader is, once there is one.
async fn leader(ports: &[u16]) -> anyhow::Result<String> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        for port in ports {
            let address = format!("http://127.0.0.1:{port}");
            let channel = Endpoint::from_shared(address.clone())?.connect_lazy();
            let Ok(status) = status(&channel).await else {
                continue;
            };
            let own = status.header.map_or(0, |header| header.member_id);
            if own != 0 && own == status.leader {
                return Ok(address);
            }
        }
        if Instant::now() > give_up {
            bail!("etcd elects no leader within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn status(channel: &Channel) -> anyhow::Result<StatusResponse> {
    let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
    let codec = tonic_prost::ProstCodec::<StatusRequest, StatusResponse>::default();
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await?;
    let request = tonic::Request::new(StatusRequest {});
    Ok(client.unary(request, path, codec).await?.into_inner())
}

async fn put(channel: &Channel, key: u64, value: Bytes) -> anyhow::Result<()> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await?;
    let request = PutRequest {
        key: Bytes::from(format!("{key:016x}")),
        value,
    };
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
    client
        .unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(())
}

/// Ports that nobody listened on a moment ago.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let listeners: Vec<TcpListener> = listeners.collect::<Result<_, _>>()?;
    let ports = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()));
    let ports: Vec<u16> = ports.collect::<std::io::Result<_>>()?;
    if ports.is_empty() {
        bail!("no port is free");
    }
    Ok(ports)
}
