//! Which requests reach the device, and which error the others get. Pure.
//!
//! The order of the checks is part of the behaviour: command, flags, access, length, range, alignment, size.
//! A request that fails one of them changes nothing.
//!
//! | request | beyond the end | read-only export | zero length | larger than the maximum |
//! | --- | --- | --- | --- | --- |
//! | read | `EINVAL` | served | `EINVAL` | `EINVAL`, with DF `EOVERFLOW` |
//! | write | `ENOSPC` | `EPERM` | `EINVAL` | `EINVAL` |
//! | write zeroes | `ENOSPC` | `EPERM` | `EINVAL` | served |
//! | trim | `EINVAL` | `EPERM` | `EINVAL` | served |
//! | flush | - | served | required, and offset 0 | - |
//!
//! With extended headers the flag `PAYLOAD_LEN` says what the length is. A write must have it; a payload that no
//! command asked for is read and dropped, and its request refused.

use crate::codec::{ReplyStyle, Request};
use crate::export::{Access, BlockError, ExportInfo, Holes, MultiConn};
use crate::protocol::{Errno, command, command_flag, transmission};

/// What both sides agreed on for one connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Terms {
    /// The export, already bounded by the server's limits.
    pub(crate) info: ExportInfo,
    pub(crate) replies: ReplyStyle,
}

/// A request that the device shall see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Read { offset: u64, len: u32 },
    Write { offset: u64, len: u32 },
    Trim { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, holes: Holes },
    Flush,
    Disconnect,
}

/// An error and its text for people, which only structured replies carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) message: &'static str,
}

impl Terms {
    /// The transmission flags: what this connection can really do.
    pub(crate) fn transmission_flags(&self) -> u16 {
        let mut flags = transmission::HAS_FLAGS | transmission::SEND_FLUSH | transmission::SEND_FUA;
        match self.info.access {
            Access::ReadOnly => flags |= transmission::READ_ONLY,
            Access::ReadWrite => flags |= transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES,
        }
        if self.replies != ReplyStyle::Simple {
            flags |= transmission::SEND_DF;
        }
        if self.info.multi_conn == MultiConn::Coherent {
            flags |= transmission::CAN_MULTI_CONN;
        }
        flags
    }

    /// How many bytes of payload follow the header of `request`.
    pub(crate) fn payload_bytes(&self, request: &Request) -> u64 {
        let follows = match self.replies {
            ReplyStyle::Simple | ReplyStyle::Structured => request.command == command::WRITE,
            ReplyStyle::Extended => request.flags & command_flag::PAYLOAD_LEN != 0,
        };
        if follows { request.length } else { 0 }
    }

    /// Decides about one request.
    pub(crate) fn judge(&self, request: &Request) -> Result<Operation, Refusal> {
        self.check_flags(request)?;
        let Request {
            offset,
            length: len,
            ..
        } = *request;
        match request.command {
            command::DISC => Ok(Operation::Disconnect),
            command::FLUSH if offset == 0 && len == 0 => Ok(Operation::Flush),
            command::FLUSH => Err(refuse(Errno::Inval, "a flush has no offset and no length")),
            command::READ => {
                self.check_range(request, Errno::Inval)?;
                let too_large = if request.flags & command_flag::DF == 0 {
                    Errno::Inval
                } else {
                    Errno::Overflow
                };
                let len = self.check_payload(len, too_large)?;
                Ok(Operation::Read { offset, len })
            }
            command::WRITE => {
                self.check_writable()?;
                self.check_range(request, Errno::NoSpc)?;
                let len = self.check_payload(len, Errno::Inval)?;
                Ok(Operation::Write { offset, len })
            }
            command::TRIM => {
                self.check_writable()?;
                self.check_range(request, Errno::Inval)?;
                Ok(Operation::Trim { offset, len })
            }
            command::WRITE_ZEROES => {
                self.check_writable()?;
                self.check_range(request, Errno::NoSpc)?;
                let holes = if request.flags & command_flag::NO_HOLE == 0 {
                    Holes::Allowed
                } else {
                    Holes::Forbidden
                };
                Ok(Operation::WriteZeroes { offset, len, holes })
            }
            _ => Err(refuse(Errno::Inval, "unknown command")),
        }
    }

    /// FUA is allowed with every command, the others only where the specification has them.
    fn check_flags(&self, request: &Request) -> Result<(), Refusal> {
        let own = match request.command {
            command::READ if self.replies != ReplyStyle::Simple => command_flag::DF,
            command::WRITE if self.replies == ReplyStyle::Extended => {
                if request.flags & command_flag::PAYLOAD_LEN == 0 {
                    return Err(refuse(Errno::Inval, "a write without a payload"));
                }
                command_flag::PAYLOAD_LEN
            }
            command::WRITE_ZEROES => command_flag::NO_HOLE,
            // The peer wants to leave: nobody is there to read an error.
            command::DISC => return Ok(()),
            _ => 0,
        };
        let unknown = request.flags & !(own | command_flag::FUA);
        if unknown == 0 {
            return Ok(());
        }
        if request.command == command::WRITE_ZEROES && unknown == command_flag::FAST_ZERO {
            return Err(refuse(Errno::NotSup, "fast zeroes were not offered"));
        }
        Err(refuse(Errno::Inval, "unknown flag for this command"))
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        match self.info.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(refuse(Errno::Perm, "the export is read-only")),
        }
    }

    fn check_range(&self, request: &Request, beyond_the_end: Errno) -> Result<(), Refusal> {
        if request.length == 0 {
            return Err(refuse(Errno::Inval, "zero length"));
        }
        let end = request.offset.checked_add(request.length);
        if end.is_none_or(|end| end > self.info.size_bytes) {
            return Err(refuse(beyond_the_end, "beyond the end of the export"));
        }
        let unit = u64::from(self.info.block_bytes_min);
        if !request.offset.is_multiple_of(unit) || !request.length.is_multiple_of(unit) {
            return Err(refuse(
                Errno::Inval,
                "not aligned to the minimum block size",
            ));
        }
        Ok(())
    }

    fn check_payload(&self, len: u64, too_large: Errno) -> Result<u32, Refusal> {
        match u32::try_from(len) {
            Ok(len) if len <= self.info.block_bytes_max => Ok(len),
            _ => Err(refuse(too_large, "larger than the maximum block size")),
        }
    }
}

impl From<BlockError> for Refusal {
    fn from(error: BlockError) -> Self {
        let (errno, message) = match error {
            BlockError::Io => (Errno::Io, "input/output error"),
            BlockError::Invalid => (Errno::Inval, "invalid request"),
            BlockError::NoSpace => (Errno::NoSpc, "no space left"),
            BlockError::NotPermitted => (Errno::Perm, "not permitted"),
            BlockError::ShuttingDown => (Errno::Shutdown, "shutting down"),
            BlockError::TooLarge => (Errno::Overflow, "value too large"),
            BlockError::NotSupported => (Errno::NotSup, "not supported"),
            BlockError::OutOfMemory => (Errno::NoMem, "out of memory"),
        };
        refuse(errno, message)
    }
}

const fn refuse(errno: Errno, message: &'static str) -> Refusal {
    Refusal { errno, message }
}

#[cfg(test)]
mod tests;
