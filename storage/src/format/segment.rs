//! A segment's header: the first page of a segment file. Its fields fit one 512-byte sector, so it is never half there.

use mainstay_types::{Epoch, Incarnation, Lineage, LogPoint, Lsn};

use super::{FORMAT_VERSION, LogEnd};
use crate::codec::{crc, is_zero, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::engine::PAGE_BYTES;

/// Bytes of a segment's header: one page, of which the first 80 bytes are used.
pub const SEGMENT_HEADER_BYTES: usize = PAGE_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"MSWALSEG");

const MAGIC_AT: usize = 0;
const CRC: usize = 8;
const VERSION: usize = 12;
const RESERVED: usize = 14;
const LINEAGE: usize = 16;
const INCARNATION: usize = 24;
const SEQ: usize = 32;
const FIRST_LSN: usize = 40;
const PREV_EPOCH: usize = 48;
const PREV_LSN: usize = 56;
const PREV_CRC: usize = 64;
const RESERVED_2: usize = 68;
const FILE_BYTES: usize = 72;
const FIELDS_END: usize = 80;

/// Documented fields, in order.
#[cfg(test)]
pub(super) const LAYOUT: [(&str, usize); 13] = [
    ("magic", MAGIC_AT),
    ("crc", CRC),
    ("version", VERSION),
    ("reserved", RESERVED),
    ("lineage", LINEAGE),
    ("incarnation", INCARNATION),
    ("seq", SEQ),
    ("first_lsn", FIRST_LSN),
    ("prev_epoch", PREV_EPOCH),
    ("prev_lsn", PREV_LSN),
    ("prev_crc", PREV_CRC),
    ("reserved_2", RESERVED_2),
    ("file_bytes", FILE_BYTES),
];

const _: () = assert!(FIELDS_END <= 512);

/// A segment's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// History that it belongs to.
    pub lineage: Lineage,
    /// Copy that it belongs to.
    pub incarnation: Incarnation,
    /// Its number, also in its file name.
    pub seq: u64,
    /// End of the log before its first entry. Its first LSN is the next one; everything at or above that in earlier
    /// segments is superseded.
    pub prev: LogEnd,
    /// Length that the file was given.
    pub file_bytes: u64,
}

/// Why a page is not a segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    /// All zeroes: the segment was prepared and never used.
    #[error("segment header is all zeroes")]
    Zero,
    /// Damaged.
    #[error("damaged wal header")]
    Damaged,
    /// Intact, and of another format version.
    #[error("segment of format version {found}, this program reads {expected}")]
    Version {
        /// Version found.
        found: u16,
        /// Version known.
        expected: u16,
    },
}

impl SegmentHeader {
    /// LSN of its first entry.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        Lsn(self.prev.point.lsn.0.saturating_add(1))
    }

    /// Writes the header to `out`, one page of zeroes.
    ///
    /// # Panics
    /// If `out` is shorter than a page.
    pub fn encode(&self, out: &mut [u8]) {
        put_u64(out, MAGIC_AT, MAGIC);
        put_u16(out, VERSION, FORMAT_VERSION);
        put_u16(out, RESERVED, 0);
        put_u64(out, LINEAGE, self.lineage.0);
        put_u64(out, INCARNATION, self.incarnation.0);
        put_u64(out, SEQ, self.seq);
        put_u64(out, FIRST_LSN, self.first_lsn().0);
        put_u64(out, PREV_EPOCH, self.prev.point.epoch.0);
        put_u64(out, PREV_LSN, self.prev.point.lsn.0);
        put_u32(out, PREV_CRC, self.prev.crc);
        put_u32(out, RESERVED_2, 0);
        put_u64(out, FILE_BYTES, self.file_bytes);
        let crc = crc(&out[VERSION..SEGMENT_HEADER_BYTES]);
        put_u32(out, CRC, crc);
    }

    /// Decodes a header page.
    ///
    /// # Errors
    /// Not an intact header of a known version. Never panics, whatever the bytes.
    pub fn decode(page: &[u8]) -> Result<Self, SegmentHeaderError> {
        if page.len() < SEGMENT_HEADER_BYTES {
            return Err(SegmentHeaderError::Damaged);
        }
        let page = &page[..SEGMENT_HEADER_BYTES];
        if is_zero(page) {
            return Err(SegmentHeaderError::Zero);
        }
        if u64_at(page, MAGIC_AT) != MAGIC || u32_at(page, CRC) != crc(&page[VERSION..]) {
            return Err(SegmentHeaderError::Damaged);
        }
        let found = u16_at(page, VERSION);
        if found != FORMAT_VERSION {
            return Err(SegmentHeaderError::Version {
                found,
                expected: FORMAT_VERSION,
            });
        }
        let header = Self {
            lineage: Lineage(u64_at(page, LINEAGE)),
            incarnation: Incarnation(u64_at(page, INCARNATION)),
            seq: u64_at(page, SEQ),
            prev: LogEnd {
                point: LogPoint {
                    epoch: Epoch(u64_at(page, PREV_EPOCH)),
                    lsn: Lsn(u64_at(page, PREV_LSN)),
                },
                crc: u32_at(page, PREV_CRC),
            },
            file_bytes: u64_at(page, FILE_BYTES),
        };
        if header.first_lsn().0 == u64_at(page, FIRST_LSN) {
            Ok(header)
        } else {
            Err(SegmentHeaderError::Damaged)
        }
    }
}
