//! Replies as a client reads them.

use bytes::{BufMut, BytesMut};

use super::reply::{
    CHUNK_HEADER_BYTES, EXTENDED_CHUNK_HEADER_BYTES, Last, ReplyStyle, ReplyTo, SIMPLE_REPLY_BYTES,
};
use super::{CodecError, at, check_magic, take};
use crate::protocol::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// A simple reply, before its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimpleReply {
    /// Zero for success.
    pub error: u32,
    /// The request answered.
    pub cookie: u64,
}

impl SimpleReply {
    /// Reads a simple reply.
    ///
    /// # Errors
    ///
    /// The magic is wrong.
    pub fn decode(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Result<Self, CodecError> {
        let magic = u32::from_be_bytes(at(bytes, 0));
        check_magic(u64::from(magic), u64::from(SIMPLE_REPLY_MAGIC))?;
        Ok(Self {
            error: u32::from_be_bytes(at(bytes, 4)),
            cookie: u64::from_be_bytes(at(bytes, 8)),
        })
    }
}

/// The header of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    /// Chunk flags.
    pub flags: u16,
    /// Which chunk; see [`crate::protocol::chunk`].
    pub kind: u16,
    /// The request answered.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl ChunkHeader {
    /// Reads a chunk header.
    ///
    /// # Errors
    ///
    /// The magic is wrong.
    pub fn decode(bytes: &[u8; CHUNK_HEADER_BYTES]) -> Result<Self, CodecError> {
        let magic = u32::from_be_bytes(at(bytes, 0));
        check_magic(u64::from(magic), u64::from(STRUCTURED_REPLY_MAGIC))?;
        Ok(Self {
            flags: u16::from_be_bytes(at(bytes, 4)),
            kind: u16::from_be_bytes(at(bytes, 6)),
            cookie: u64::from_be_bytes(at(bytes, 8)),
            length: u32::from_be_bytes(at(bytes, 16)),
        })
    }
}

/// The header of an extended chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtendedChunkHeader {
    /// What every chunk says.
    pub chunk: ChunkHeader,
    /// The offset of the request answered.
    pub offset: u64,
}

impl ExtendedChunkHeader {
    /// Reads an extended chunk header.
    ///
    /// # Errors
    ///
    /// The magic is wrong, or the length is one that no server may send.
    pub fn decode(bytes: &[u8; EXTENDED_CHUNK_HEADER_BYTES]) -> Result<Self, CodecError> {
        let magic = u32::from_be_bytes(at(bytes, 0));
        check_magic(u64::from(magic), u64::from(EXTENDED_REPLY_MAGIC))?;
        let length = u64::from_be_bytes(at(bytes, 24));
        Ok(Self {
            chunk: ChunkHeader {
                flags: u16::from_be_bytes(at(bytes, 4)),
                kind: u16::from_be_bytes(at(bytes, 6)),
                cookie: u64::from_be_bytes(at(bytes, 8)),
                length: u32::try_from(length).map_err(|_| CodecError::Length)?,
            },
            offset: u64::from_be_bytes(at(bytes, 16)),
        })
    }
}

/// The payload of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chunk {
    /// Nothing: the end of a reply.
    None,
    /// Bytes at an offset.
    Data {
        /// Where they begin.
        offset: u64,
        /// The bytes; at least one.
        data: Vec<u8>,
    },
    /// Zeroes at an offset.
    Hole {
        /// Where they begin.
        offset: u64,
        /// How many; at least one.
        length: u32,
    },
    /// The status of a range, extent by extent.
    Status {
        /// The metadata context.
        context: u32,
        /// Length and flags of each extent; at least one, and no length is zero.
        extents: Vec<(u64, u64)>,
    },
    /// The request failed.
    Error {
        /// The error number, not zero.
        error: u32,
        /// Text for people, as it came.
        message: Vec<u8>,
    },
}

impl Chunk {
    /// Reads the payload of a chunk of `kind`.
    ///
    /// # Errors
    ///
    /// An unknown kind, or a payload that contradicts it.
    pub fn decode(kind: u16, mut payload: &[u8]) -> Result<Self, CodecError> {
        match kind {
            chunk::NONE if payload.is_empty() => Ok(Self::None),
            chunk::OFFSET_DATA if payload.len() > 8 => Ok(Self::Data {
                offset: u64::from_be_bytes(take(&mut payload)?),
                data: payload.to_vec(),
            }),
            chunk::OFFSET_HOLE if payload.len() == 12 => {
                let offset = u64::from_be_bytes(take(&mut payload)?);
                let length = u32::from_be_bytes(take(&mut payload)?);
                (length > 0)
                    .then_some(Self::Hole { offset, length })
                    .ok_or(CodecError::Length)
            }
            chunk::BLOCK_STATUS => {
                let context = u32::from_be_bytes(take(&mut payload)?);
                let (raw, rest) = payload.as_chunks::<8>();
                let extent = |raw: &[u8; 8]| {
                    let (len, flags) = (u32::from_be_bytes(at(raw, 0)), at(raw, 4));
                    (u64::from(len), u64::from(u32::from_be_bytes(flags)))
                };
                Self::status(context, raw.iter().map(extent).collect(), rest)
            }
            chunk::BLOCK_STATUS_EXT => {
                let context = u32::from_be_bytes(take(&mut payload)?);
                let count = u32::from_be_bytes(take(&mut payload)?);
                let (raw, rest) = payload.as_chunks::<16>();
                if count != 0 && usize::try_from(count) != Ok(raw.len()) {
                    return Err(CodecError::Length);
                }
                let extent = |raw: &[u8; 16]| {
                    let (len, flags) = (at(raw, 0), at(raw, 8));
                    (u64::from_be_bytes(len), u64::from_be_bytes(flags))
                };
                Self::status(context, raw.iter().map(extent).collect(), rest)
            }
            chunk::ERROR => {
                let error = u32::from_be_bytes(take(&mut payload)?);
                let length = usize::from(u16::from_be_bytes(take(&mut payload)?));
                match payload.get(..length) {
                    Some(message) if error != 0 => Ok(Self::Error {
                        error,
                        message: message.to_vec(),
                    }),
                    _ => Err(CodecError::Length),
                }
            }
            chunk::NONE | chunk::OFFSET_DATA | chunk::OFFSET_HOLE => Err(CodecError::Length),
            other => Err(CodecError::Type(u32::from(other))),
        }
    }

    fn status(context: u32, extents: Vec<(u64, u64)>, rest: &[u8]) -> Result<Self, CodecError> {
        let whole = rest.is_empty() && !extents.is_empty();
        if whole && extents.iter().all(|(len, _)| *len > 0) {
            Ok(Self::Status { context, extents })
        } else {
            Err(CodecError::Length)
        }
    }

    /// Appends header and payload as the last chunk of a structured reply. Numbers of extents beyond 32 bits are cut.
    pub fn encode(&self, cookie: u64, out: &mut BytesMut) {
        let to = ReplyTo {
            style: ReplyStyle::Structured,
            cookie,
            offset: 0,
        };
        match self {
            Self::None => {
                out.put_u32(STRUCTURED_REPLY_MAGIC);
                out.put_u16(chunk::FLAG_DONE);
                out.put_u16(chunk::NONE);
                out.put_u64(cookie);
                out.put_u32(0);
            }
            Self::Data { offset, data } => {
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX - 8);
                out.extend_from_slice(to.data(Last::Yes, *offset, length).as_bytes());
                out.extend_from_slice(data.get(..length as usize).unwrap_or(data));
            }
            Self::Hole { offset, length } => {
                out.extend_from_slice(to.hole(Last::Yes, *offset, *length).as_bytes());
            }
            Self::Status { context, extents } => {
                let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(to.status(Last::Yes, *context, count).as_bytes());
                for (len, flags) in extents {
                    out.put_u32(u32::try_from(*len).unwrap_or(u32::MAX));
                    out.put_u32(u32::try_from(*flags).unwrap_or(u32::MAX));
                }
            }
            Self::Error { error, message } => {
                let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
                out.put_u32(STRUCTURED_REPLY_MAGIC);
                out.put_u16(chunk::FLAG_DONE);
                out.put_u16(chunk::ERROR);
                out.put_u64(cookie);
                out.put_u32(6 + u32::from(length));
                out.put_u32(*error);
                out.put_u16(length);
                out.extend_from_slice(message.get(..usize::from(length)).unwrap_or(message));
            }
        }
    }
}
