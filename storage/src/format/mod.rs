//! Byte layout of entries, frames and segment headers; pure, no file handles.
//!
//! All numbers are little endian. `docs/disk-format.md` draws the same layouts, and a test compares its offsets with
//! the constants here. An entry's bytes are the same on every member and on the wire; frames and segments belong to
//! one member.

mod entry;
mod frame;
mod segment;

pub(crate) use entry::check_follows;
pub use entry::{
    BatchError, ENTRY_HEADER_BYTES, EntryError, EntryHeader, EntryIter, EntryKind, EntryRef,
    FLAG_ALLOCATED, PAYLOAD_BYTES_MAX, RangeError, crc_of, decode_header, encode_range,
    encode_unstamped, entry_bytes, range_of, set_flags, stamp, verify_batch,
};
pub use frame::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameError, FrameHeader};
pub use segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError};

use mainstay_types::LogPoint;

/// Version of entries, frames and segments. Rises with every change of their layout.
pub const FORMAT_VERSION: u16 = 1;

/// Where a log ends: the last entry's name, and its header CRC, to which the next entry is chained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogEnd {
    /// The last entry.
    pub point: LogPoint,
    /// Its header CRC; zero before the first entry.
    pub crc: u32,
}

impl LogEnd {
    /// Before the first entry of any log.
    pub const ZERO: Self = Self {
        point: LogPoint::ZERO,
        crc: 0,
    };
}

#[cfg(test)]
mod tests;
