//! The options and replies about metadata contexts, and the payload that filters a block status.

use bytes::{BufMut, BytesMut};

use super::handshake::{parse_name, put_option_reply, put_string_u32};
use super::{CodecError, take};
use crate::protocol::reply;

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaQuery {
    /// The export; empty for the default one.
    pub export: String,
    /// What is asked for. Each is a legal string, and nothing more was checked.
    pub queries: Vec<String>,
}

impl MetaQuery {
    /// Reads the data. What is allocated is bounded by the bytes given, whatever number they announce.
    ///
    /// # Errors
    ///
    /// The inner lengths do not add up to the outer one, or a string is malformed.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, CodecError> {
        let export = take_string(&mut bytes)?;
        let count = u32::from_be_bytes(take(&mut bytes)?);
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(take_string(&mut bytes)?);
        }
        if bytes.is_empty() {
            Ok(Self { export, queries })
        } else {
            Err(CodecError::Length)
        }
    }

    /// Appends the bytes on the wire.
    pub fn encode(&self, out: &mut BytesMut) {
        put_string_u32(out, &self.export);
        let count = u32::try_from(self.queries.len()).unwrap_or(u32::MAX);
        out.put_u32(count);
        for query in self.queries.iter().take(count as usize) {
            put_string_u32(out, query);
        }
    }
}

/// Appends the reply to `option` that names one context.
pub fn put_meta_context(out: &mut BytesMut, option: u32, id: u32, name: &str) {
    let mut data = BytesMut::with_capacity(4 + name.len());
    data.put_u32(id);
    data.extend_from_slice(name.as_bytes());
    put_option_reply(out, option, reply::META_CONTEXT, &data);
}

/// The payload of an `NBD_CMD_BLOCK_STATUS` that wants some of the selected contexts only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusFilter {
    /// Number of bytes of interest.
    pub length: u64,
    /// The contexts wanted. They may be unknown or repeated.
    pub contexts: Vec<u32>,
}

impl StatusFilter {
    /// The length of the payload with `contexts` of them.
    #[must_use]
    pub const fn bytes(contexts: usize) -> u64 {
        8 + 4 * contexts as u64
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// It is not a length and whole numbers.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, CodecError> {
        let length = u64::from_be_bytes(take(&mut bytes)?);
        let (contexts, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(CodecError::Length);
        }
        let contexts = contexts.iter().map(|raw| u32::from_be_bytes(*raw));
        Ok(Self {
            length,
            contexts: contexts.collect(),
        })
    }

    /// Appends the bytes on the wire.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.length);
        for context in &self.contexts {
            out.put_u32(*context);
        }
    }
}

fn take_string(bytes: &mut &[u8]) -> Result<String, CodecError> {
    let length = u32::from_be_bytes(take(bytes)?);
    let length = usize::try_from(length).map_err(|_| CodecError::Length)?;
    let (text, rest) = bytes.split_at_checked(length).ok_or(CodecError::Length)?;
    *bytes = rest;
    parse_name(text).map(str::to_owned)
}
