//! Transport settings. Default HTTP/2 windows halve the throughput of 4 KiB messages, and the default keepalive never
//! notices a frozen peer.
//!
//! * Windows are promises of memory: a receiver that stops reading holds at most one connection window. Between nodes they
//!   are large; towards clients, of which there may be many, small. Two streams that nobody reads fill it and stop all others of
//!   the connection: a stream that is read at the leisure of an application has a connection to itself.
//! * Keepalive pings are answered by the transport of a peer whose disk hangs. They find frozen machines and dead
//!   networks, nothing else; liveness of a volume is decided by its own messages. They are sent while a stream is open:
//!   a connection that carries nothing costs nothing, and its next request finds out as quickly.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

/// Settings of one kind of connection. Both sides should use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Unread bytes that a receiver buffers for one stream.
    pub stream_window_bytes: u32,
    /// Unread bytes that a receiver buffers for one connection.
    pub connection_window_bytes: u32,
    /// Greatest HTTP/2 frame.
    pub frame_bytes_max: u32,
    /// Silence after which a ping is sent.
    pub keepalive_interval: Duration,
    /// Wait for its answer before the connection counts as lost.
    pub keepalive_timeout: Duration,
    /// Bound on the TCP handshake.
    pub connect_timeout: Duration,
}

impl Tuning {
    /// Between nodes: throughput first. The beats and heartbeats that travel on links tell in time who is silent; these
    /// pings only find out that a link leads nowhere, and every idle link pays for them.
    #[must_use]
    pub const fn for_nodes() -> Self {
        Self {
            stream_window_bytes: 16 << 20,
            connection_window_bytes: 32 << 20,
            frame_bytes_max: 1 << 20,
            keepalive_interval: Duration::from_millis(1000),
            keepalive_timeout: Duration::from_millis(1000),
            connect_timeout: Duration::from_millis(500),
        }
    }

    /// Between clients and nodes: bounded memory for each of many connections, and a quick verdict on a frozen node.
    #[must_use]
    pub const fn for_clients() -> Self {
        Self {
            stream_window_bytes: 2 << 20,
            connection_window_bytes: 4 << 20,
            frame_bytes_max: 256 << 10,
            keepalive_interval: Duration::from_millis(100),
            keepalive_timeout: Duration::from_millis(200),
            connect_timeout: Duration::from_millis(300),
        }
    }

    /// Applies the settings to the dialling side.
    #[must_use]
    pub fn endpoint(&self, endpoint: Endpoint) -> Endpoint {
        endpoint
            .initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes)
            .max_frame_size(self.frame_bytes_max)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(false)
            .connect_timeout(self.connect_timeout)
    }

    /// Applies the settings to the accepting side. Set [`crate::MESSAGE_BYTES_MAX`] on each service besides: its decoder's own
    /// default is 4 MiB.
    #[must_use]
    pub fn server(&self, server: Server) -> Server {
        server
            .initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes)
            .max_frame_size(self.frame_bytes_max)
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(self.keepalive_interval))
            .http2_keepalive_timeout(Some(self.keepalive_timeout))
    }
}

/// An endpoint for a link to another node, at `host:port`.
///
/// # Errors
/// The address does not form a URI.
pub fn node_endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Tuning::for_nodes().endpoint(Endpoint::from_shared(format!("http://{address}"))?))
}

/// An endpoint for a client's connection to a node, at `host:port`.
///
/// # Errors
/// The address does not form a URI.
pub fn client_endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Tuning::for_clients().endpoint(Endpoint::from_shared(format!("http://{address}"))?))
}

/// A server that speaks with nodes.
#[must_use]
pub fn node_server() -> Server {
    Tuning::for_nodes().server(Server::builder())
}

/// A server that speaks with clients, on a listener of its own or shared with operators.
#[must_use]
pub fn client_server() -> Server {
    Tuning::for_clients().server(Server::builder())
}
