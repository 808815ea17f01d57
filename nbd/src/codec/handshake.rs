//! Greeting, options and option replies of the fixed newstyle handshake.

use bytes::{BufMut, BytesMut};

use super::{CodecError, at, check_magic, take};
use crate::protocol::{
    EXPORT_NAME_ZEROES, HANDSHAKE_FIXED_NEWSTYLE, HANDSHAKE_NO_ZEROES, INIT_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, STRING_BYTES_MAX, info, reply,
};

/// Length of the server's first message.
pub const GREETING_BYTES: usize = 18;
/// Length of an option before its data.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Length of an option reply before its data.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// The server's first message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Handshake flags.
    pub flags: u16,
}

impl Greeting {
    /// What this server says: fixed newstyle, and the zeroes may be left out.
    #[must_use]
    pub const fn ours() -> Self {
        Self {
            flags: HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES,
        }
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; GREETING_BYTES] {
        let mut out = [0; GREETING_BYTES];
        out[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
        out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[16..].copy_from_slice(&self.flags.to_be_bytes());
        out
    }

    /// Reads a greeting.
    ///
    /// # Errors
    ///
    /// Either magic is wrong.
    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Self, CodecError> {
        check_magic(u64::from_be_bytes(at(bytes, 0)), INIT_MAGIC)?;
        check_magic(u64::from_be_bytes(at(bytes, 8)), OPTION_MAGIC)?;
        Ok(Self {
            flags: u16::from_be_bytes(at(bytes, 16)),
        })
    }
}

/// The client's answer to the greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientFlags {
    /// It speaks fixed newstyle.
    pub fixed_newstyle: bool,
    /// It wants the 124 zeroes left out.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Reads the flags.
    ///
    /// # Errors
    ///
    /// A flag that was not offered; the specification demands that the server disconnects.
    pub fn decode(bytes: [u8; 4]) -> Result<Self, CodecError> {
        let flags = u32::from_be_bytes(bytes);
        let fixed = u32::from(HANDSHAKE_FIXED_NEWSTYLE);
        let no_zeroes = u32::from(HANDSHAKE_NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(CodecError::ClientFlags(flags));
        }
        Ok(Self {
            fixed_newstyle: flags & fixed != 0,
            no_zeroes: flags & no_zeroes != 0,
        })
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; 4] {
        let mut flags = 0;
        if self.fixed_newstyle {
            flags |= u32::from(HANDSHAKE_FIXED_NEWSTYLE);
        }
        if self.no_zeroes {
            flags |= u32::from(HANDSHAKE_NO_ZEROES);
        }
        flags.to_be_bytes()
    }
}

/// An option, before its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// Which option; see [`crate::protocol::option`].
    pub option: u32,
    /// Bytes of data that follow. Up to 4 GiB as far as the wire is concerned.
    pub length: u32,
}

impl OptionHeader {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// The magic is wrong.
    pub fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, CodecError> {
        check_magic(u64::from_be_bytes(at(bytes, 0)), OPTION_MAGIC)?;
        Ok(Self {
            option: u32::from_be_bytes(at(bytes, 8)),
            length: u32::from_be_bytes(at(bytes, 12)),
        })
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; OPTION_HEADER_BYTES] {
        let mut out = [0; OPTION_HEADER_BYTES];
        out[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// Reads an export name.
///
/// # Errors
///
/// Longer than 4096 bytes, not UTF-8, or with a NUL.
pub fn parse_name(bytes: &[u8]) -> Result<&str, CodecError> {
    if bytes.len() > STRING_BYTES_MAX || bytes.contains(&0) {
        return Err(CodecError::Name);
    }
    std::str::from_utf8(bytes).map_err(|_| CodecError::Name)
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportQuery {
    /// The export; empty for the default one.
    pub name: String,
    /// Facts asked for; unknown ones are to be ignored.
    pub infos: Vec<u16>,
}

impl ExportQuery {
    /// Reads the data.
    ///
    /// # Errors
    ///
    /// The inner lengths do not add up to the outer one, or the name is malformed.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, CodecError> {
        let name_bytes = u32::from_be_bytes(take(&mut bytes)?);
        let name_bytes = usize::try_from(name_bytes).map_err(|_| CodecError::Length)?;
        let (name, mut bytes) = bytes
            .split_at_checked(name_bytes)
            .ok_or(CodecError::Length)?;
        let count = usize::from(u16::from_be_bytes(take(&mut bytes)?));
        let (infos, rest) = bytes.as_chunks::<2>();
        if infos.len() != count || !rest.is_empty() {
            return Err(CodecError::Length);
        }
        Ok(Self {
            name: parse_name(name)?.to_owned(),
            infos: infos.iter().map(|raw| u16::from_be_bytes(*raw)).collect(),
        })
    }

    /// Appends the bytes on the wire.
    pub fn encode(&self, out: &mut BytesMut) {
        put_string_u32(out, &self.name);
        let count = u16::try_from(self.infos.len()).unwrap_or(u16::MAX);
        out.put_u16(count);
        for info in self.infos.iter().take(usize::from(count)) {
            out.put_u16(*info);
        }
    }
}

/// An option reply, before its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionReplyHeader {
    /// The option answered.
    pub option: u32,
    /// Which reply; see [`crate::protocol::reply`].
    pub reply: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// The magic is wrong.
    pub fn decode(bytes: &[u8; OPTION_REPLY_HEADER_BYTES]) -> Result<Self, CodecError> {
        check_magic(u64::from_be_bytes(at(bytes, 0)), OPTION_REPLY_MAGIC)?;
        Ok(Self {
            option: u32::from_be_bytes(at(bytes, 8)),
            reply: u32::from_be_bytes(at(bytes, 12)),
            length: u32::from_be_bytes(at(bytes, 16)),
        })
    }
}

/// Appends a whole option reply. Data beyond 4 GiB cannot be said and is cut.
pub fn put_option_reply(out: &mut BytesMut, option: u32, reply: u32, data: &[u8]) {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(reply);
    out.put_u32(length);
    out.extend_from_slice(data.get(..length as usize).unwrap_or(data));
}

/// Appends the reply to `option` (a list) that names one export.
pub fn put_rep_server(out: &mut BytesMut, option: u32, name: &str) {
    let mut data = BytesMut::with_capacity(4 + name.len());
    put_string_u32(&mut data, name);
    put_option_reply(out, option, reply::SERVER, &data);
}

/// What `NBD_OPT_INFO` and `NBD_OPT_GO` tell of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExportFacts<'a> {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Minimum, preferred and maximum block.
    pub blocks: [u32; 3],
    /// Canonical name.
    pub name: &'a str,
    /// Text for people.
    pub description: &'a str,
}

impl ExportFacts<'_> {
    /// Appends the `NBD_REP_INFO` replies to `option`: size and blocks always, texts when `wanted`.
    pub fn encode(&self, out: &mut BytesMut, option: u32, wanted: &[u16]) {
        let mut data = BytesMut::with_capacity(16);
        data.put_u16(info::EXPORT);
        data.put_u64(self.size_bytes);
        data.put_u16(self.flags);
        put_option_reply(out, option, reply::INFO, &data);

        data.clear();
        data.put_u16(info::BLOCK_SIZE);
        for block in self.blocks {
            data.put_u32(block);
        }
        put_option_reply(out, option, reply::INFO, &data);

        for (kind, text) in [
            (info::NAME, self.name),
            (info::DESCRIPTION, self.description),
        ] {
            if wanted.contains(&kind) && !(kind == info::DESCRIPTION && text.is_empty()) {
                data.clear();
                data.put_u16(kind);
                data.extend_from_slice(text.as_bytes());
                put_option_reply(out, option, reply::INFO, &data);
            }
        }
    }
}

/// Appends the answer to `NBD_OPT_EXPORT_NAME`, which has no option reply around it.
pub fn put_export_name_answer(
    out: &mut BytesMut,
    size_bytes: u64,
    flags: u16,
    client: ClientFlags,
) {
    out.put_u64(size_bytes);
    out.put_u16(flags);
    if !client.no_zeroes {
        out.put_bytes(0, EXPORT_NAME_ZEROES);
    }
}

pub(super) fn put_string_u32(out: &mut BytesMut, text: &str) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.put_u32(length);
    out.extend_from_slice(
        text.as_bytes()
            .get(..length as usize)
            .unwrap_or(text.as_bytes()),
    );
}
