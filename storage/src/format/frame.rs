//! One frame: what one durable write of the log carries. A 64-byte header, entries end to end, zeroes to a whole page.
//!
//! A frame without entries is a *mark*: everything before it was written completely and synced.

use mainstay_types::{Lineage, Lsn};

use super::entry::PAYLOAD_BYTES_MAX;
use super::{FORMAT_VERSION, entry_bytes};
use crate::codec::{crc_seeded, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 64;

/// Largest frame: one entry of the largest size.
pub const FRAME_BYTES_MAX: usize = (FRAME_HEADER_BYTES + entry_bytes(PAYLOAD_BYTES_MAX))
    .next_multiple_of(crate::engine::PAGE_BYTES);

/// `MSFR`.
const MAGIC: u32 = u32::from_le_bytes(*b"MSFR");

const MAGIC_AT: usize = 0;
const CRC: usize = 4;
const VERSION: usize = 8;
const FLAGS: usize = 10;
const ENTRY_COUNT: usize = 12;
const FRAME_LEN: usize = 16;
const BODY_LEN: usize = 20;
const FIRST_LSN: usize = 24;
const LINEAGE: usize = 32;
const SEGMENT_SEQ: usize = 40;
const COMMIT: usize = 48;
const PREV_CRC: usize = 56;
const RESERVED: usize = 60;

/// Documented fields, in order.
#[cfg(test)]
pub(super) const LAYOUT: [(&str, usize); 13] = [
    ("magic", MAGIC_AT),
    ("crc", CRC),
    ("version", VERSION),
    ("flags", FLAGS),
    ("entry_count", ENTRY_COUNT),
    ("frame_len", FRAME_LEN),
    ("body_len", BODY_LEN),
    ("first_lsn", FIRST_LSN),
    ("lineage", LINEAGE),
    ("segment_seq", SEGMENT_SEQ),
    ("commit", COMMIT),
    ("prev_crc", PREV_CRC),
    ("reserved", RESERVED),
];

const _: () = assert!(RESERVED + 4 == FRAME_HEADER_BYTES);
const _: () = assert!(crate::engine::PAGE_BYTES.is_multiple_of(FRAME_HEADER_BYTES));
const _: () = assert!(FRAME_BYTES_MAX < u32::MAX as usize);

/// A frame's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Entries in the frame; zero for a mark.
    pub entry_count: u32,
    /// Bytes of the whole frame, a whole number of pages.
    pub frame_len: u32,
    /// Bytes of its entries.
    pub body_len: u32,
    /// LSN of its first entry; of a mark, the LSN that comes next.
    pub first_lsn: Lsn,
    /// History that the segment belongs to.
    pub lineage: Lineage,
    /// Segment that the frame was written to.
    pub segment_seq: u64,
    /// Commit point known when it was written.
    pub commit: Lsn,
    /// Header CRC of the entry before its first.
    pub prev_crc: u32,
}

/// Why bytes are not a frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame, or damaged.
    #[error("no frame header")]
    NotAFrame,
    /// Intact, and of another format version.
    #[error("frame of format version {found}, this program reads {expected}")]
    Version {
        /// Version found.
        found: u16,
        /// Version known.
        expected: u16,
    },
}

impl FrameHeader {
    /// Whole pages that a body of `body_len` bytes takes as a frame.
    #[must_use]
    pub const fn frame_bytes(body_len: usize) -> usize {
        (FRAME_HEADER_BYTES + body_len).next_multiple_of(crate::engine::PAGE_BYTES)
    }

    /// Last LSN in the frame; for a mark, the one before `first_lsn`.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self
            .first_lsn
            .0
            .saturating_add(u64::from(self.entry_count))
            .saturating_sub(1))
    }

    /// Writes the header to the first 64 bytes of `out`.
    ///
    /// # Panics
    /// If `out` is shorter.
    pub fn encode(&self, out: &mut [u8]) {
        put_u32(out, MAGIC_AT, MAGIC);
        put_u16(out, VERSION, FORMAT_VERSION);
        put_u16(out, FLAGS, 0);
        put_u32(out, ENTRY_COUNT, self.entry_count);
        put_u32(out, FRAME_LEN, self.frame_len);
        put_u32(out, BODY_LEN, self.body_len);
        put_u64(out, FIRST_LSN, self.first_lsn.0);
        put_u64(out, LINEAGE, self.lineage.0);
        put_u64(out, SEGMENT_SEQ, self.segment_seq);
        put_u64(out, COMMIT, self.commit.0);
        put_u32(out, PREV_CRC, self.prev_crc);
        put_u32(out, RESERVED, 0);
        let crc = crc_seeded(self.lineage.0, &out[VERSION..FRAME_HEADER_BYTES]);
        put_u32(out, CRC, crc);
    }

    /// Decodes the header at the start of `bytes`, of whatever lineage it names.
    ///
    /// # Errors
    /// Not an intact header of a known version. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() < FRAME_HEADER_BYTES || u32_at(bytes, MAGIC_AT) != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        let lineage = Lineage(u64_at(bytes, LINEAGE));
        if u32_at(bytes, CRC) != crc_seeded(lineage.0, &bytes[VERSION..FRAME_HEADER_BYTES]) {
            return Err(FrameError::NotAFrame);
        }
        let found = u16_at(bytes, VERSION);
        if found != FORMAT_VERSION {
            return Err(FrameError::Version {
                found,
                expected: FORMAT_VERSION,
            });
        }
        let header = Self {
            entry_count: u32_at(bytes, ENTRY_COUNT),
            frame_len: u32_at(bytes, FRAME_LEN),
            body_len: u32_at(bytes, BODY_LEN),
            first_lsn: Lsn(u64_at(bytes, FIRST_LSN)),
            lineage,
            segment_seq: u64_at(bytes, SEGMENT_SEQ),
            commit: Lsn(u64_at(bytes, COMMIT)),
            prev_crc: u32_at(bytes, PREV_CRC),
        };
        let consistent = header.body_len as usize <= FRAME_BYTES_MAX
            && Self::frame_bytes(header.body_len as usize) == header.frame_len as usize
            && (header.entry_count == 0) == (header.body_len == 0);
        if consistent {
            Ok(header)
        } else {
            Err(FrameError::NotAFrame)
        }
    }
}
