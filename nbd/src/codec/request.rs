//! Requests of the transmission phase, with compact and with extended headers.

use super::{CodecError, at, check_magic};
use crate::protocol::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};

/// Length of a compact request before its payload.
pub const REQUEST_BYTES: usize = 28;
/// Length of an extended request before its payload.
pub const EXTENDED_REQUEST_BYTES: usize = 32;

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
    /// Number of bytes concerned, or of payload bytes that follow. At most `u32::MAX` in a compact request.
    pub length: u64,
}

impl Request {
    /// Reads a compact request.
    ///
    /// # Errors
    ///
    /// The magic is wrong.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, CodecError> {
        let length = u32::from_be_bytes(at(bytes, 24));
        Self::decode_as(bytes, REQUEST_MAGIC, u64::from(length))
    }

    /// Reads an extended request.
    ///
    /// # Errors
    ///
    /// The magic is wrong.
    pub fn decode_extended(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Result<Self, CodecError> {
        let length = u64::from_be_bytes(at(bytes, 24));
        Self::decode_as(bytes, EXTENDED_REQUEST_MAGIC, length)
    }

    /// The bytes of a compact request. A length that it cannot say becomes the greatest that it can.
    #[must_use]
    pub fn encode(self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        self.encode_as(REQUEST_MAGIC, &mut out);
        out[24..].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// The bytes of an extended request.
    #[must_use]
    pub fn encode_extended(self) -> [u8; EXTENDED_REQUEST_BYTES] {
        let mut out = [0; EXTENDED_REQUEST_BYTES];
        self.encode_as(EXTENDED_REQUEST_MAGIC, &mut out);
        out[24..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Both forms agree up to the length.
    fn decode_as(bytes: &[u8], magic: u32, length: u64) -> Result<Self, CodecError> {
        let found = u32::from_be_bytes(at(bytes, 0));
        check_magic(u64::from(found), u64::from(magic))?;
        Ok(Self {
            flags: u16::from_be_bytes(at(bytes, 4)),
            command: u16::from_be_bytes(at(bytes, 6)),
            cookie: u64::from_be_bytes(at(bytes, 8)),
            offset: u64::from_be_bytes(at(bytes, 16)),
            length,
        })
    }

    fn encode_as<const N: usize>(self, magic: u32, out: &mut [u8; N]) {
        out[..4].copy_from_slice(&magic.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
    }
}
