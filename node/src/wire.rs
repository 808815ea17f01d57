//! Converts the core's messages to frames of the wire and back.
//!
//! * Encoding cannot fail. Payload is handed over by reference count; the transport copies it once into its send buffer.
//! * Decoding is total: whatever bytes a peer sends, the answer is a message or a typed error, never a panic. What the core
//!   takes for granted about the *shape* of a message is checked here: required fields, known enum values, numbers that
//!   can be counted on from, runs that rise. What depends on state is the core's business.
//! * A decoded batch shares the receive buffer.

mod member;
mod register;
mod witness;
mod witness_set;

#[cfg(test)]
mod tests;

use crate::runtime::store_marks::{NodeMarks, StoreMark};
use bytes::Bytes;
use mainstay_proto::LINK_PROTOCOL;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::frame::Body;
use mainstay_replication::message::Message;
use mainstay_types::{ClusterId, Epoch, Instance, LogPoint, Lsn, NameError, NodeId, ZoneError};

pub use register::{decode_register, encode_kind, encode_member, encode_register};
pub use witness_set::{decode_set, encode_set};

/// Numbers above this are refused, so that whoever counts on from a decoded position cannot overflow.
const NUMBER_MAX: u64 = u64::MAX >> 1;

/// A frame that is not a message of this protocol. The sender misbehaves or speaks another version: end its stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required field, or the body of a `oneof`, is absent or of an unknown kind.
    #[error("`{0}` is missing or unknown")]
    Missing(&'static str),
    /// An enum value that this version does not know.
    #[error("`{field}` has the unknown value {value}")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// What was found.
        value: i32,
    },
    /// No epoch, position or count is that large.
    #[error("`{field}` is {value}, which is out of range")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What was found.
        value: u64,
    },
    /// A register whose volume has no valid name.
    #[error("register of a volume without a valid name")]
    Name(#[source] NameError),
    /// A beat from a zone without a valid name.
    #[error("beat from a zone without a valid name")]
    Zone(#[source] ZoneError),
    /// An append whose runs do not describe `first..=last`.
    #[error("runs do not describe entries {first} to {last}")]
    Runs {
        /// First entry, by the message.
        first: Lsn,
        /// Last entry, by the message.
        last: Lsn,
    },
    /// Entries without bytes, or bytes without entries.
    #[error("{batch_bytes} bytes of entries beside a message that carries {entries} entries")]
    Batch {
        /// Length of the batch.
        batch_bytes: usize,
        /// Entries described.
        entries: u64,
    },
    /// A set of witnesses that names a node twice, or too many.
    #[error("a set of witnesses with node {0} twice, or with too many")]
    Voters(NodeId),
    /// A `Hello` in the middle of a stream.
    #[error("a second hello")]
    Hello,
}

/// The frame for `message`. `batch` holds the entries of an `Append`, and is empty for everything else.
#[must_use]
pub fn encode(message: &Message, batch: Bytes) -> pb::Frame {
    debug_assert!(
        batch.is_empty() || matches!(message, Message::Member(_)),
        "bytes beside a message that carries none"
    );
    let body = match message {
        Message::Member(envelope) => Body::Member(member::encode(envelope, batch)),
        Message::Register { volume, body } => Body::Register(register::encode_frame(*volume, body)),
        Message::Witness(message) => Body::Witness(witness::encode(message)),
    };
    pb::Frame { body: Some(body) }
}

/// The message in `frame`, and the entries that travelled beside it.
///
/// # Errors
/// The frame is not a message of this protocol.
pub fn decode(frame: pb::Frame) -> Result<(Message, Bytes), WireError> {
    match frame.body.ok_or(WireError::Missing("frame.body"))? {
        Body::Hello(_) => Err(WireError::Hello),
        Body::Member(frame) => {
            let (envelope, batch) = member::decode(frame)?;
            Ok((Message::Member(Box::new(envelope)), batch))
        }
        Body::Register(frame) => Ok((register::decode_frame(frame)?, Bytes::new())),
        Body::Witness(frame) => Ok((Message::Witness(witness::decode(frame)?), Bytes::new())),
    }
}

/// Who is at the other end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// Its process.
    pub instance: Instance,
    /// Release of its software.
    pub release: String,
    /// What it keeps its promises in.
    pub stores: NodeMarks,
}

/// Why a link is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first frame is something else.
    #[error("the first frame is not a hello")]
    NotHello,
    /// The peer belongs to another cluster.
    #[error("peer is of cluster {found}, this node of {expected}")]
    OtherCluster {
        /// The peer's.
        found: ClusterId,
        /// This node's.
        expected: ClusterId,
    },
    /// The peer speaks another version of the protocol.
    #[error("peer speaks link protocol {found}, this node {expected}")]
    OtherProtocol {
        /// The peer's.
        found: u32,
        /// This node's.
        expected: u32,
    },
}

/// The first frame in either direction of a link.
#[must_use]
pub fn hello(cluster: ClusterId, node: NodeId, instance: Instance, stores: NodeMarks) -> pb::Frame {
    let hello = pb::Hello {
        cluster: cluster.0,
        node: node.0,
        instance: instance.0,
        protocol: LINK_PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        witness_store: stores.witness.map_or(0, |store| store.id),
        witness_boots: stores.witness.map_or(0, |store| store.boots),
        data_store: stores.data.map_or(0, |store| store.id),
        data_boots: stores.data.map_or(0, |store| store.boots),
    };
    pb::Frame {
        body: Some(Body::Hello(hello)),
    }
}

/// Judges the first frame of a link at a node of `cluster`.
///
/// # Errors
/// The frame is not a hello, or one of another cluster or protocol.
pub fn accept_hello(frame: pb::Frame, cluster: ClusterId) -> Result<Peer, HelloError> {
    let Some(Body::Hello(hello)) = frame.body else {
        return Err(HelloError::NotHello);
    };
    if hello.protocol != LINK_PROTOCOL {
        return Err(HelloError::OtherProtocol {
            found: hello.protocol,
            expected: LINK_PROTOCOL,
        });
    }
    if hello.cluster != cluster.0 {
        return Err(HelloError::OtherCluster {
            found: ClusterId(hello.cluster),
            expected: cluster,
        });
    }
    Ok(Peer {
        node: NodeId(hello.node),
        instance: Instance(hello.instance),
        release: hello.release,
        stores: NodeMarks {
            witness: mark(hello.instance, hello.witness_store, hello.witness_boots),
            data: mark(hello.instance, hello.data_store, hello.data_boots),
            voter: 0,
        },
    })
}

fn mark(instance: u64, id: u64, boots: u64) -> Option<StoreMark> {
    (id != 0).then_some(StoreMark {
        id,
        boots,
        instance: Instance(instance),
    })
}

/// A number that somebody may count on from.
fn number(field: &'static str, value: u64) -> Result<u64, WireError> {
    if value <= NUMBER_MAX {
        Ok(value)
    } else {
        Err(WireError::OutOfRange { field, value })
    }
}

fn epoch(field: &'static str, value: u64) -> Result<Epoch, WireError> {
    number(field, value).map(Epoch)
}

fn lsn(field: &'static str, value: u64) -> Result<Lsn, WireError> {
    number(field, value).map(Lsn)
}

fn encode_point(point: LogPoint) -> pb::LogPoint {
    pb::LogPoint {
        epoch: point.epoch.0,
        lsn: point.lsn.0,
    }
}

fn decode_point(field: &'static str, point: Option<pb::LogPoint>) -> Result<LogPoint, WireError> {
    let point = point.ok_or(WireError::Missing(field))?;
    Ok(LogPoint {
        epoch: epoch(field, point.epoch)?,
        lsn: lsn(field, point.lsn)?,
    })
}

fn encode_nodes(nodes: &[NodeId]) -> Vec<u32> {
    nodes.iter().map(|node| node.0).collect()
}

fn decode_nodes(nodes: Vec<u32>) -> Vec<NodeId> {
    nodes.into_iter().map(NodeId).collect()
}
