//! Bytes to messages and back, without I/O.
//!
//! - Decoders are total: any bytes give a message or a [`CodecError`], never a panic and never an allocation
//!   larger than the bytes given.
//! - Fixed-size parts take arrays, so that "too short" cannot happen; the caller has read exactly that much.
//! - Both directions exist for every message. The server uses one half, tests and tools the other.

mod chunk;
mod handshake;
mod meta;
mod reply;
mod request;

pub use chunk::{Chunk, ChunkHeader, ExtendedChunkHeader, SimpleReply};
pub use handshake::{
    ClientFlags, ExportFacts, ExportQuery, GREETING_BYTES, Greeting, OPTION_HEADER_BYTES,
    OPTION_REPLY_HEADER_BYTES, OptionHeader, OptionReplyHeader, parse_name, put_export_name_answer,
    put_option_reply, put_rep_server,
};
pub use meta::{MetaQuery, StatusFilter, put_meta_context};
pub use reply::{
    CHUNK_HEADER_BYTES, EXTENDED_CHUNK_HEADER_BYTES, Last, ReplyHead, ReplyStyle, ReplyTo,
    SIMPLE_REPLY_BYTES,
};
pub use request::{EXTENDED_REQUEST_BYTES, REQUEST_BYTES, Request};

/// Bytes that are not what the protocol has at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A message begins with the wrong number: the two sides have lost step and cannot find it again.
    #[error("magic {found:#x} where {expected:#x} was expected")]
    Magic {
        /// What came.
        found: u64,
        /// What the protocol has here.
        expected: u64,
    },
    /// A client set handshake flags that were never offered.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// Lengths inside a message contradict its length.
    #[error("lengths inside the message do not add up")]
    Length,
    /// A name is longer than 4096 bytes, not UTF-8, or has a NUL.
    #[error("malformed name")]
    Name,
    /// A message type that this codec does not know.
    #[error("unknown type {0:#x}")]
    Type(u32),
}

/// Splits the first `N` bytes off `bytes`.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CodecError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(CodecError::Length)?;
    *bytes = rest;
    Ok(*head)
}

/// A big-endian number at a fixed place of a fixed-size message.
///
/// Used with constant offsets only; the tests of each message visit all of them.
fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(bytes.iter().skip(offset)) {
        *to = *from;
    }
    out
}

fn check_magic(found: u64, expected: u64) -> Result<(), CodecError> {
    if found == expected {
        Ok(())
    } else {
        Err(CodecError::Magic { found, expected })
    }
}

#[cfg(test)]
mod tests;
