//! Heads of replies, as the server makes them: simple, structured and extended.

use crate::protocol::{
    EXTENDED_REPLY_MAGIC, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
};

/// Length of a simple reply before its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Length of a structured chunk before its payload.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Length of an extended chunk before its payload.
pub const EXTENDED_CHUNK_HEADER_BYTES: usize = 32;
/// The longest head: an extended header, and offset and length of a hole.
const HEAD_BYTES_MAX: usize = EXTENDED_CHUNK_HEADER_BYTES + 12;

/// Which forms of reply a connection has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyStyle {
    /// Every reply is simple.
    Simple,
    /// Replies to reads, and replies with a payload, come in chunks; the others are simple.
    Structured,
    /// Every reply comes in chunks with extended headers.
    Extended,
}

/// Whether more chunks of the same reply follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    /// This chunk ends the reply.
    Yes,
    /// Another one follows.
    No,
}

/// Which request a reply answers, and in which form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    /// The form that the connection negotiated.
    pub style: ReplyStyle,
    /// The cookie of the request.
    pub cookie: u64,
    /// The offset of the request, which extended replies repeat.
    pub offset: u64,
}

impl ReplyTo {
    /// Success without a payload; also the head of the bytes of a simple read.
    #[must_use]
    pub fn done(self) -> ReplyHead {
        match self.style {
            ReplyStyle::Simple | ReplyStyle::Structured => self.simple(0),
            ReplyStyle::Extended => self.chunk(Last::Yes, chunk::NONE, 0),
        }
    }

    /// A simple failure, for connections without chunks and for requests whose replies have none.
    #[must_use]
    pub fn failed(self, error: Errno) -> ReplyHead {
        self.simple(error.code())
    }

    /// A chunk of a failed request: a message of `message_bytes` follows.
    #[must_use]
    pub fn error(self, error: Errno, message_bytes: u16) -> ReplyHead {
        let mut head = self.chunk(Last::Yes, chunk::ERROR, 6 + u32::from(message_bytes));
        head.put(&error.code().to_be_bytes());
        head.put(&message_bytes.to_be_bytes());
        head
    }

    /// A chunk of a read: `length` bytes that begin at `offset` follow.
    ///
    /// `length` is at most `u32::MAX - 8`; the server's limits are far below.
    #[must_use]
    pub fn data(self, last: Last, offset: u64, length: u32) -> ReplyHead {
        let mut head = self.chunk(last, chunk::OFFSET_DATA, length.saturating_add(8));
        head.put(&offset.to_be_bytes());
        head
    }

    /// A chunk of a read that tells of nothing but zeroes. Nothing follows.
    #[must_use]
    pub fn hole(self, last: Last, offset: u64, length: u32) -> ReplyHead {
        let mut head = self.chunk(last, chunk::OFFSET_HOLE, 12);
        head.put(&offset.to_be_bytes());
        head.put(&length.to_be_bytes());
        head
    }

    /// A status chunk: `extents` descriptors of `context` follow, in the form of the style.
    ///
    /// There are fewer than 2^20 of them.
    #[must_use]
    pub fn status(self, last: Last, context: u32, extents: u32) -> ReplyHead {
        let extended = self.style == ReplyStyle::Extended;
        let mut head = if extended {
            let length = extents.saturating_mul(16).saturating_add(8);
            self.chunk(last, chunk::BLOCK_STATUS_EXT, length)
        } else {
            let length = extents.saturating_mul(8).saturating_add(4);
            self.chunk(last, chunk::BLOCK_STATUS, length)
        };
        head.put(&context.to_be_bytes());
        if extended {
            head.put(&extents.to_be_bytes());
        }
        head
    }

    fn simple(self, error: u32) -> ReplyHead {
        let mut head = ReplyHead::empty();
        head.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head.put(&error.to_be_bytes());
        head.put(&self.cookie.to_be_bytes());
        head
    }

    fn chunk(self, last: Last, kind: u16, length: u32) -> ReplyHead {
        let flags = match last {
            Last::Yes => chunk::FLAG_DONE,
            Last::No => 0,
        };
        let extended = self.style == ReplyStyle::Extended;
        let magic = if extended {
            EXTENDED_REPLY_MAGIC
        } else {
            STRUCTURED_REPLY_MAGIC
        };
        let mut head = ReplyHead::empty();
        head.put(&magic.to_be_bytes());
        head.put(&flags.to_be_bytes());
        head.put(&kind.to_be_bytes());
        head.put(&self.cookie.to_be_bytes());
        if extended {
            head.put(&self.offset.to_be_bytes());
            head.put(&u64::from(length).to_be_bytes());
        } else {
            head.put(&length.to_be_bytes());
        }
        head
    }
}

/// The part of a reply before its bulk data, kept inline: making a reply allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyHead {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl ReplyHead {
    /// The bytes on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
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
