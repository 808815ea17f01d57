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
//! | cache, block status | `EINVAL` | served | `EINVAL` | served |
//! | flush | - | served | required, and offset 0 | - |
//!
//! With extended headers the flag `PAYLOAD_LEN` says what the length is. A payload that no command asked for is read
//! and dropped, and its request refused. A write should have the flag; one without it has a payload all the same, for
//! that is what QEMU (10.0 at least) sends.

use crate::codec::{ReplyStyle, Request, StatusFilter};
use crate::export::{Access, BlockError, ExportInfo, Holes, MultiConn};
use crate::meta::Selected;
use crate::protocol::{Errno, command, command_flag, transmission};
use crate::sparse::Fragments;

/// What both sides agreed on for one connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Terms {
    /// The export, already bounded by the server's limits.
    pub(crate) info: ExportInfo,
    pub(crate) replies: ReplyStyle,
    /// The metadata contexts that were selected for this export.
    pub(crate) contexts: Vec<Selected>,
}

/// A request that is to be carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Read {
        offset: u64,
        len: u32,
        fragments: Fragments,
    },
    Write {
        offset: u64,
        len: u32,
    },
    Trim {
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        holes: Holes,
        speed: Speed,
    },
    /// Advice that is not taken: nothing is read ahead.
    Cache,
    BlockStatus(StatusQuery),
    /// A block status whose payload of so many bytes has to be judged, too.
    FilteredStatus {
        payload_bytes: usize,
    },
    Flush,
    Disconnect,
}

/// Whether zeroes may take their time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speed {
    Any,
    /// Only if that is faster than a write (`NBD_CMD_FLAG_FAST_ZERO`).
    Fast,
}

/// A question for the status of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StatusQuery {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// At most so many extents; one with `NBD_CMD_FLAG_REQ_ONE`.
    pub(crate) extents_max: u32,
    /// None of them is asked for twice.
    pub(crate) contexts: Vec<Selected>,
}

/// Extents of one answer: they fit the reserve that every connection has.
const EXTENTS_MAX: u32 = 4096;

/// An error and its text for people, which only structured replies carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) message: &'static str,
}

impl Terms {
    /// The transmission flags: what this connection can really do.
    pub(crate) fn transmission_flags(&self) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_CACHE;
        flags |= match self.info.access {
            Access::ReadOnly => transmission::READ_ONLY,
            Access::ReadWrite => {
                transmission::SEND_TRIM
                    | transmission::SEND_WRITE_ZEROES
                    | transmission::SEND_FAST_ZERO
            }
        };
        if self.filters() {
            flags |= transmission::BLOCK_STATUS_PAYLOAD;
        }
        if self.replies != ReplyStyle::Simple {
            flags |= transmission::SEND_DF;
        }
        if self.info.multi_conn == MultiConn::Coherent {
            flags |= transmission::CAN_MULTI_CONN;
        }
        flags
    }

    /// Whether a block status may come with a payload.
    fn filters(&self) -> bool {
        self.replies == ReplyStyle::Extended && !self.contexts.is_empty()
    }

    /// How many bytes of payload follow the header of `request`.
    pub(crate) fn payload_bytes(&self, request: &Request) -> u64 {
        let announced =
            self.replies == ReplyStyle::Extended && request.flags & command_flag::PAYLOAD_LEN != 0;
        if announced || request.command == command::WRITE {
            request.length
        } else {
            0
        }
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
            command::READ => self.judge_read(request),
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
            command::WRITE_ZEROES => self.judge_zeroes(request),
            command::CACHE => {
                self.check_range(request, Errno::Inval)?;
                Ok(Operation::Cache)
            }
            command::BLOCK_STATUS => self.judge_status(request),
            _ => Err(refuse(Errno::Inval, "unknown command")),
        }
    }

    fn judge_read(&self, request: &Request) -> Result<Operation, Refusal> {
        self.check_range(request, Errno::Inval)?;
        let (fragments, too_large) = if request.flags & command_flag::DF == 0 {
            (Fragments::Any, Errno::Inval)
        } else {
            (Fragments::One, Errno::Overflow)
        };
        Ok(Operation::Read {
            offset: request.offset,
            len: self.check_payload(request.length, too_large)?,
            fragments,
        })
    }

    fn judge_zeroes(&self, request: &Request) -> Result<Operation, Refusal> {
        self.check_writable()?;
        self.check_range(request, Errno::NoSpc)?;
        let has = |flag| request.flags & flag != 0;
        Ok(Operation::WriteZeroes {
            offset: request.offset,
            len: request.length,
            holes: if has(command_flag::NO_HOLE) {
                Holes::Forbidden
            } else {
                Holes::Allowed
            },
            speed: if has(command_flag::FAST_ZERO) {
                Speed::Fast
            } else {
                Speed::Any
            },
        })
    }

    fn judge_status(&self, request: &Request) -> Result<Operation, Refusal> {
        if self.contexts.is_empty() {
            return Err(refuse(Errno::Inval, "no metadata context was selected"));
        }
        if request.flags & command_flag::PAYLOAD_LEN == 0 {
            let query = self.status_query(request, self.contexts.clone())?;
            return Ok(Operation::BlockStatus(query));
        }
        // Longer ones name a context twice, or one that was not selected.
        let longest = StatusFilter::bytes(self.contexts.len());
        match usize::try_from(request.length) {
            Ok(payload_bytes) if request.length <= longest => {
                Ok(Operation::FilteredStatus { payload_bytes })
            }
            _ => Err(refuse(Errno::Inval, "more contexts than were selected")),
        }
    }

    /// Decides about a block status whose payload has arrived.
    pub(crate) fn judge_filter(
        &self,
        request: &Request,
        payload: &[u8],
    ) -> Result<StatusQuery, Refusal> {
        let malformed = |_| refuse(Errno::Inval, "malformed list of contexts");
        let filter = StatusFilter::decode(payload).map_err(malformed)?;
        let mut contexts = Vec::with_capacity(self.contexts.len());
        for id in filter.contexts {
            match self.contexts.iter().find(|selected| selected.id == id) {
                Some(selected) if !contexts.contains(selected) => contexts.push(*selected),
                _ => return Err(refuse(Errno::Inval, "unknown or repeated context")),
            }
        }
        let length = filter.length;
        self.status_query(&Request { length, ..*request }, contexts)
    }

    fn status_query(
        &self,
        request: &Request,
        contexts: Vec<Selected>,
    ) -> Result<StatusQuery, Refusal> {
        self.check_range(request, Errno::Inval)?;
        let one = request.flags & command_flag::REQ_ONE != 0;
        Ok(StatusQuery {
            offset: request.offset,
            len: request.length,
            extents_max: if one { 1 } else { EXTENTS_MAX },
            contexts,
        })
    }

    /// FUA is allowed with every command, the others only where the specification has them.
    fn check_flags(&self, request: &Request) -> Result<(), Refusal> {
        let own = match request.command {
            command::READ if self.replies != ReplyStyle::Simple => command_flag::DF,
            command::WRITE if self.replies == ReplyStyle::Extended => command_flag::PAYLOAD_LEN,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS if self.filters() => {
                command_flag::REQ_ONE | command_flag::PAYLOAD_LEN
            }
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            // The peer wants to leave: nobody is there to read an error.
            command::DISC => return Ok(()),
            _ => 0,
        };
        if request.flags & !(own | command_flag::FUA) == 0 {
            Ok(())
        } else {
            Err(refuse(Errno::Inval, "unknown flag for this command"))
        }
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

impl Refusal {
    /// What `NBD_CMD_FLAG_FAST_ZERO` asks for when a write would be as fast.
    pub(crate) const SLOW_ZEROES: Self = refuse(Errno::NotSup, "no faster than a write");
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
            // `ENOTSUP` means "not fast", and nothing else.
            BlockError::NotSupported => (Errno::Inval, "not supported"),
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
