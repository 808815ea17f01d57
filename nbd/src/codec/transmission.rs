//! Requests, simple replies and structured replies of the transmission phase.

use bytes::{BufMut, BytesMut};

use super::{CodecError, at, check_magic, take};
use crate::protocol::{Errno, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// Length of a request before its payload.
pub const REQUEST_BYTES: usize = 28;
/// Length of a simple reply before its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Length of a chunk before its payload.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// The longest head: a chunk header and the eight bytes of offset, plus four of a hole.
const HEAD_BYTES_MAX: usize = CHUNK_HEADER_BYTES + 12;

/// A request. Nothing in it has been judged: any numbers may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Command flags; see [`crate::protocol::command_flag`].
    pub flags: u16,
    /// Which command; see [`crate::protocol::command`].
    pub command: u16,
    /// The client's name for the request, repeated in the reply.
    pub cookie: u64,
    /// First byte concerned.
    pub offset: u64,
    /// Number of bytes concerned.
    pub length: u32,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    ///
    /// The magic is wrong.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, CodecError> {
        let magic = u32::from_be_bytes(at(bytes, 0));
        check_magic(u64::from(magic), u64::from(REQUEST_MAGIC))?;
        Ok(Self {
            flags: u16::from_be_bytes(at(bytes, 4)),
            command: u16::from_be_bytes(at(bytes, 6)),
            cookie: u64::from_be_bytes(at(bytes, 8)),
            offset: u64::from_be_bytes(at(bytes, 16)),
            length: u32::from_be_bytes(at(bytes, 24)),
        })
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// The part of a reply before its bulk data, kept inline: making a reply allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyHead {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl ReplyHead {
    /// A simple reply; bulk data follows a successful read.
    #[must_use]
    pub fn simple(cookie: u64, error: Option<Errno>) -> Self {
        let mut head = Self::empty();
        head.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head.put(&error.map_or(0, Errno::code).to_be_bytes());
        head.put(&cookie.to_be_bytes());
        head
    }

    /// The only chunk of a read: `length` bytes that begin at `offset` follow.
    ///
    /// `length` is at most `u32::MAX - 8`; the server's limits are far below.
    #[must_use]
    pub fn data(cookie: u64, offset: u64, length: u32) -> Self {
        let mut head = Self::chunk(cookie, chunk::OFFSET_DATA, length.saturating_add(8));
        head.put(&offset.to_be_bytes());
        head
    }

    /// The only chunk of a read of nothing but zeroes. Nothing follows.
    #[must_use]
    pub fn hole(cookie: u64, offset: u64, length: u32) -> Self {
        let mut head = Self::chunk(cookie, chunk::OFFSET_HOLE, 12);
        head.put(&offset.to_be_bytes());
        head.put(&length.to_be_bytes());
        head
    }

    /// The only chunk of a failed request: a message of `message_bytes` follows.
    #[must_use]
    pub fn error(cookie: u64, error: Errno, message_bytes: u16) -> Self {
        let mut head = Self::chunk(cookie, chunk::ERROR, 6 + u32::from(message_bytes));
        head.put(&error.code().to_be_bytes());
        head.put(&message_bytes.to_be_bytes());
        head
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    fn chunk(cookie: u64, kind: u16, length: u32) -> Self {
        let mut head = Self::empty();
        head.put(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        head.put(&chunk::FLAG_DONE.to_be_bytes());
        head.put(&kind.to_be_bytes());
        head.put(&cookie.to_be_bytes());
        head.put(&length.to_be_bytes());
        head
    }

    const fn empty() -> Self {
        Self {
            bytes: [0; HEAD_BYTES_MAX],
            len: 0,
        }
    }

    fn put(&mut self, part: &[u8]) {
        let end = self.len + part.len();
        debug_assert!(end <= HEAD_BYTES_MAX, "head of {end} bytes");
        if let Some(to) = self.bytes.get_mut(self.len..end) {
            to.copy_from_slice(part);
            self.len = end;
        }
    }
}

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

    /// Appends header and payload as the last chunk of a reply.
    pub fn encode(&self, cookie: u64, out: &mut BytesMut) {
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
                out.extend_from_slice(ReplyHead::data(cookie, *offset, length).as_bytes());
                out.extend_from_slice(data.get(..length as usize).unwrap_or(data));
            }
            Self::Hole { offset, length } => {
                out.extend_from_slice(ReplyHead::hole(cookie, *offset, *length).as_bytes());
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
