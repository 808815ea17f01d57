//! Bytes on the wire: the protobuf services and messages, and the transport settings that fit them.
//!
//! * [`v1`] is generated from `proto/mainstay/v1/*.proto`; those files are the reference and carry the documentation.
//! * [`tuning`] holds the only place where HTTP/2 windows, frame sizes and keepalives are chosen.
//! * Nothing here interprets a message: `node` converts them to the core's types, `client` to its own.
//!
//! Every `bytes` field is a [`bytes::Bytes`] that shares the receive buffer, 8 to 64 KiB of it: copy out what is kept long.

#![forbid(unsafe_code)]

pub mod tuning;

/// Messages, clients and servers of the package `mainstay.v1`.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    reason = "generated code is judged by its generator"
)]
#[allow(
    clippy::or_fun_call,
    clippy::cast_possible_truncation,
    reason = "as above"
)]
pub mod v1 {
    tonic::include_proto!("mainstay.v1");
}

/// The `.proto` files as an encoded `FileDescriptorSet`: what a server shows of itself by reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Version of the protocol between nodes, as `Hello` carries it. Nodes of different versions refuse each other.
pub const LINK_PROTOCOL: u32 = 1;

/// Greatest message that either side of a link or a client stream decodes.
///
/// Batches between nodes are kept below 1 MiB by their senders; the bound leaves room for one entry of the greatest
/// payload and keeps a broken peer from asking for all memory.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
