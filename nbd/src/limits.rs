//! What one server, one peer and one connection may cost.
//!
//! Every field bounds something a stranger could otherwise grow: memory, tasks, sockets or time. The defaults
//! suit a node with some gigabytes of memory; tests use far smaller ones.

use std::time::Duration;

/// The bounds of a [`Server`](crate::Server).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest payload of one read or write, inclusive. Also the largest advertised block size.
    pub request_bytes_max: u32,
    /// Requests of one connection between arrival and the last byte of their reply.
    pub connection_requests_max: usize,
    /// Payload bytes of one connection, of writes in progress and of replies not taken yet. A single request
    /// may always have all of it, so values below `request_bytes_max` are raised to that.
    pub connection_bytes_max: usize,
    /// Payload bytes of all connections together. Raised to `connection_bytes_max` when below it. One write at a time may go
    /// beyond it with what is left of its payload, so that writes that have begun never wait for each other for ever.
    pub server_bytes_max: usize,
    /// Payload bytes that each connection may hold beyond `server_bytes_max`, so that its small requests go on
    /// when others have used all of that.
    pub connection_reserve_bytes: usize,
    /// Connections of the server; the next one is closed at once.
    pub connections_max: usize,
    /// Connections that have not finished their handshake.
    pub handshakes_max: usize,
    /// Connections of one peer: an IPv4 address, or an IPv6 network of 64 bits.
    pub peer_connections_max: usize,
    /// Unfinished handshakes of one peer, so that one address cannot keep all the others out.
    pub peer_handshakes_max: usize,
    /// Time for a handshake, not counting what [`Exports`](crate::Exports) takes.
    pub handshake_timeout: Duration,
    /// Time for one call of [`Exports`](crate::Exports).
    pub open_timeout: Duration,
    /// Options in one handshake.
    pub options_max: u32,
    /// Data of one option, inclusive. At least 4102 is needed for the longest legal name.
    pub option_bytes_max: u32,
    /// Time in which a peer must send the payload of one write. Also the span over which `reply_rate_min` is measured.
    pub transfer_timeout: Duration,
    /// Bytes a second that a peer must take of its replies *while other connections wait for the memory they hold*. Nobody is cut off
    /// for slowness that costs nobody else.
    pub reply_rate_min: u32,
    /// Time in which peers that are still in their handshake are told that the server stops.
    pub farewell_timeout: Duration,
    /// Time for requests in flight to finish, and for their replies to be taken, after the server was told to stop.
    pub drain_timeout: Duration,
    /// When everything is answered and the connection ends: time in which the peer may see that and close its side. Until then what it
    /// still sends is read and dropped, so that the last replies are not lost.
    pub linger_timeout: Duration,
    /// After the peer said goodbye or closed: time in which one more of the requests in flight must be answered, or advance
    /// ([`BlockDevice::progress`](crate::BlockDevice::progress)), or the peer must take something of its replies. To be longer than the
    /// device may take.
    pub goodbye_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes_max: 32 << 20,
            connection_requests_max: 256,
            connection_bytes_max: 64 << 20,
            server_bytes_max: 512 << 20,
            connection_reserve_bytes: 128 << 10,
            connections_max: 2048,
            handshakes_max: 256,
            peer_connections_max: 1024,
            peer_handshakes_max: 64,
            handshake_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(30),
            options_max: 256,
            option_bytes_max: 64 << 10,
            transfer_timeout: Duration::from_secs(30),
            reply_rate_min: 32 << 10,
            farewell_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(1),
            goodbye_timeout: Duration::from_secs(90),
        }
    }
}
