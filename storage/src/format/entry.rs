//! One entry: a 64-byte header and its payload. Also the wire layout: a replication batch is entries, end to end.
//!
//! The header CRC is seeded with the volume's lineage and covers the CRC of the entry before, so an entry verifies
//! only in its own volume and in its own place.

use bytes::{Bytes, BytesMut};
use mainstay_types::{Epoch, Lineage, LogPoint, Lsn, SessionId};

use super::{FORMAT_VERSION, LogEnd};
use crate::codec::{crc, crc_seeded, is_zero, put_u32, put_u64, u16_at, u32_at, u64_at};

/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 64;

/// Largest payload: 16 MiB of data and a little room for the caller's own framing.
pub const PAYLOAD_BYTES_MAX: usize = (16 << 20) + 4096;

pub(super) const HEADER_CRC: usize = 0;
pub(super) const PAYLOAD_CRC: usize = 4;
pub(super) const PREV_CRC: usize = 8;
pub(super) const PAYLOAD_LEN: usize = 12;
pub(super) const EPOCH: usize = 16;
pub(super) const LSN: usize = 24;
pub(super) const KIND: usize = 32;
pub(super) const FLAGS: usize = 33;
pub(super) const RESERVED: usize = 34;
pub(super) const GENERATION: usize = 36;
pub(super) const SESSION: usize = 40;
pub(super) const SEQ: usize = 48;
pub(super) const ARG: usize = 56;

const _: () = assert!(ARG + 8 == ENTRY_HEADER_BYTES);
const _: () = assert!(ENTRY_HEADER_BYTES.is_multiple_of(8));

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// First entry of an epoch.
    EpochStart = 1,
    /// One record of a log volume, by itself or in an atomic batch. `arg` is its timestamp.
    Record = 2,
    /// Bytes of a block volume. `arg` is their offset.
    Write = 3,
    /// A range of a block volume that is no longer needed and reads as zeroes. See [`encode_range`].
    Trim = 4,
    /// A range of a block volume set to zeroes. See [`encode_range`].
    Zeroes = 5,
    /// A client session begins.
    SessionOpen = 6,
    /// A client session ends.
    SessionClose = 7,
    /// A client attaches a block volume.
    Attach = 8,
    /// A client lets go of a block volume.
    Detach = 9,
    /// Records of a log volume below `arg` are not needed any more. The payload says below which entry copies may give them back.
    TrimLog = 10,
    /// What a log volume keeps, by age and by bytes. The payload is the policy.
    RetainLog = 11,
}

impl EntryKind {
    /// The kind with this number.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::EpochStart,
            2 => Self::Record,
            3 => Self::Write,
            4 => Self::Trim,
            5 => Self::Zeroes,
            6 => Self::SessionOpen,
            7 => Self::SessionClose,
            8 => Self::Attach,
            9 => Self::Detach,
            10 => Self::TrimLog,
            11 => Self::RetainLog,
            _ => return None,
        })
    }
}

/// An entry's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// CRC of the other header bytes, seeded with the lineage: the entry's fingerprint in the chain.
    pub header_crc: u32,
    /// CRC of the payload.
    pub payload_crc: u32,
    /// Header CRC of the entry before.
    pub prev_crc: u32,
    /// Bytes of payload, without padding.
    pub payload_len: u32,
    /// Epoch and position.
    pub point: LogPoint,
    /// What it says.
    pub kind: EntryKind,
    /// Bits whose meaning belongs to the kind.
    pub flags: u8,
    /// Generation of the session.
    pub generation: u32,
    /// The client's session; zero for none.
    pub session: SessionId,
    /// The client's sequence number.
    pub seq: u64,
    /// Offset, timestamp, or whatever the kind says.
    pub arg: u64,
}

impl EntryHeader {
    /// Bytes of the whole entry with padding.
    #[must_use]
    pub fn entry_len(&self) -> usize {
        entry_bytes(self.payload_len as usize)
    }

    /// Where a log ends after this entry.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        LogEnd {
            point: self.point,
            crc: self.header_crc,
        }
    }
}

/// Bytes of an entry with a payload of `payload_len` bytes: header, payload, zeroes to a multiple of eight.
#[must_use]
pub const fn entry_bytes(payload_len: usize) -> usize {
    ENTRY_HEADER_BYTES + payload_len.next_multiple_of(8)
}

/// Encodes an entry but for its place in the log, which [`stamp`] writes later.
///
/// Computes the payload's CRC, so run it on any thread but the log's.
///
/// # Panics
/// If the payload is longer than [`PAYLOAD_BYTES_MAX`]; the caller has checked its request.
#[must_use]
pub fn encode_unstamped(
    kind: EntryKind,
    session: SessionId,
    generation: u32,
    seq: u64,
    arg: u64,
    payload: &[u8],
) -> BytesMut {
    assert!(
        payload.len() <= PAYLOAD_BYTES_MAX,
        "payload of {} bytes",
        payload.len()
    );
    let payload_len = u32::try_from(payload.len()).expect("PAYLOAD_BYTES_MAX fits 32 bits");
    let mut entry = BytesMut::zeroed(entry_bytes(payload.len()));
    entry[ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    put_u32(&mut entry, PAYLOAD_CRC, crc(payload));
    put_u32(&mut entry, PAYLOAD_LEN, payload_len);
    entry[KIND] = kind as u8;
    put_u32(&mut entry, GENERATION, generation);
    put_u64(&mut entry, SESSION, session.0);
    put_u64(&mut entry, SEQ, seq);
    put_u64(&mut entry, ARG, arg);
    entry
}

/// Gives an encoded entry its place in the log after the entry whose header CRC is `prev_crc`. Returns its own
/// header CRC. Touches 64 bytes.
///
/// # Panics
/// If `entry` is shorter than a header.
pub fn stamp(entry: &mut [u8], lineage: Lineage, epoch: Epoch, lsn: Lsn, prev_crc: u32) -> u32 {
    put_u32(entry, PREV_CRC, prev_crc);
    put_u64(entry, EPOCH, epoch.0);
    put_u64(entry, LSN, lsn.0);
    let header_crc = header_crc(lineage, entry);
    put_u32(entry, HEADER_CRC, header_crc);
    header_crc
}

/// The header CRC that an encoded entry carries, unchecked.
///
/// # Panics
/// If `entry` is shorter than a header.
#[must_use]
pub fn crc_of(entry: &[u8]) -> u32 {
    u32_at(entry, HEADER_CRC)
}

fn header_crc(lineage: Lineage, entry: &[u8]) -> u32 {
    crc_seeded(lineage.0, &entry[PAYLOAD_CRC..ENTRY_HEADER_BYTES])
}

/// Why bytes are not an entry of this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Fewer bytes than the entry needs.
    #[error("{have} bytes where an entry needs {need}")]
    Short {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The header's CRC does not match: damaged, or of another volume.
    #[error("header crc {found:08x}, computed {computed:08x}")]
    HeaderCrc {
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The payload's CRC does not match.
    #[error("payload crc {found:08x}, computed {computed:08x}")]
    PayloadCrc {
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// An intact header with a kind that this version does not know: written by a newer program.
    #[error("entry kind {kind} is unknown to format version {version}; a newer program wrote it")]
    UnknownKind {
        /// The kind's number.
        kind: u8,
        /// What this program knows.
        version: u16,
    },
    /// An intact header with a payload above the limit.
    #[error("payload of {len} bytes, at most {max}")]
    PayloadLength {
        /// In the header.
        len: u32,
        /// The limit.
        max: usize,
    },
    /// Reserved bits or padding are not zero.
    #[error("reserved bytes or padding are not zero")]
    NotZero,
}

/// Decodes and verifies the header at the start of `bytes`; the payload is not looked at.
///
/// # Errors
/// What is wrong with it. Never panics, whatever the bytes.
pub fn decode_header(lineage: Lineage, bytes: &[u8]) -> Result<EntryHeader, EntryError> {
    if bytes.len() < ENTRY_HEADER_BYTES {
        return Err(EntryError::Short {
            have: bytes.len(),
            need: ENTRY_HEADER_BYTES,
        });
    }
    let found = u32_at(bytes, HEADER_CRC);
    let computed = header_crc(lineage, bytes);
    if found != computed {
        return Err(EntryError::HeaderCrc { found, computed });
    }
    let Some(kind) = EntryKind::from_byte(bytes[KIND]) else {
        return Err(EntryError::UnknownKind {
            kind: bytes[KIND],
            version: FORMAT_VERSION,
        });
    };
    let payload_len = u32_at(bytes, PAYLOAD_LEN);
    if payload_len as usize > PAYLOAD_BYTES_MAX {
        return Err(EntryError::PayloadLength {
            len: payload_len,
            max: PAYLOAD_BYTES_MAX,
        });
    }
    if u16_at(bytes, RESERVED) != 0 {
        return Err(EntryError::NotZero);
    }
    Ok(EntryHeader {
        header_crc: found,
        payload_crc: u32_at(bytes, PAYLOAD_CRC),
        prev_crc: u32_at(bytes, PREV_CRC),
        payload_len,
        point: LogPoint {
            epoch: Epoch(u64_at(bytes, EPOCH)),
            lsn: Lsn(u64_at(bytes, LSN)),
        },
        kind,
        flags: bytes[FLAGS],
        generation: u32_at(bytes, GENERATION),
        session: SessionId(u64_at(bytes, SESSION)),
        seq: u64_at(bytes, SEQ),
        arg: u64_at(bytes, ARG),
    })
}

/// Verifies the payload and padding of an entry whose header was decoded from the same bytes.
fn check_payload(header: &EntryHeader, bytes: &[u8]) -> Result<(), EntryError> {
    let need = header.entry_len();
    if bytes.len() < need {
        return Err(EntryError::Short {
            have: bytes.len(),
            need,
        });
    }
    let end = ENTRY_HEADER_BYTES + header.payload_len as usize;
    let computed = crc(&bytes[ENTRY_HEADER_BYTES..end]);
    if header.payload_crc != computed {
        return Err(EntryError::PayloadCrc {
            found: header.payload_crc,
            computed,
        });
    }
    if !is_zero(&bytes[end..need]) {
        return Err(EntryError::NotZero);
    }
    Ok(())
}

/// A verified entry inside a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRef {
    /// Its header.
    pub header: EntryHeader,
    /// The whole entry: header, payload and padding.
    pub bytes: Bytes,
}

impl EntryRef {
    /// The payload alone; shares the memory.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        self.bytes
            .slice(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + self.header.payload_len as usize)
    }
}

/// Walks concatenated entries and verifies the CRCs of each; continuity is the caller's ([`verify_batch`] does both).
///
/// Ends after the first error.
#[derive(Debug)]
pub struct EntryIter {
    lineage: Lineage,
    rest: Bytes,
    offset: usize,
    payloads: bool,
}

impl EntryIter {
    /// Walks `bytes`, verifying headers and payloads.
    #[must_use]
    pub fn new(lineage: Lineage, bytes: Bytes) -> Self {
        Self {
            lineage,
            rest: bytes,
            offset: 0,
            payloads: true,
        }
    }

    /// Walks `bytes`, verifying headers only: for bytes whose payloads were verified before.
    #[must_use]
    pub fn headers_only(lineage: Lineage, bytes: Bytes) -> Self {
        Self {
            payloads: false,
            ..Self::new(lineage, bytes)
        }
    }

    /// Offset of the next entry in the bytes given.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    fn take(&mut self) -> Result<EntryRef, EntryError> {
        let header = decode_header(self.lineage, &self.rest)?;
        if self.payloads {
            check_payload(&header, &self.rest)?;
        }
        let need = header.entry_len();
        if self.rest.len() < need {
            return Err(EntryError::Short {
                have: self.rest.len(),
                need,
            });
        }
        self.offset += need;
        Ok(EntryRef {
            header,
            bytes: self.rest.split_to(need),
        })
    }
}

impl Iterator for EntryIter {
    type Item = Result<EntryRef, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.take();
        if item.is_err() {
            self.rest.clear();
        }
        Some(item)
    }
}

/// Why a batch does not continue a log. The sender is at fault, or the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// No entry at all.
    #[error("empty batch")]
    Empty,
    /// The entry at `offset` does not verify.
    #[error("entry at byte {offset}: {source}")]
    Entry {
        /// Offset in the batch.
        offset: usize,
        /// What is wrong.
        source: EntryError,
    },
    /// LSNs are not contiguous.
    #[error("entry {found} where {expected} belongs")]
    Gap {
        /// The LSN that belongs here.
        expected: Lsn,
        /// What is here.
        found: LogPoint,
    },
    /// An epoch below that of the entry before.
    #[error("epoch {found} after epoch {before}")]
    EpochFell {
        /// Of the entry before.
        before: Epoch,
        /// Of this entry.
        found: LogPoint,
    },
    /// The chain is broken: the batch continues another history.
    #[error("entry {at} follows crc {found:08x}, the log ends with {expected:08x}")]
    Chain {
        /// The entry.
        at: LogPoint,
        /// CRC of the entry before.
        expected: u32,
        /// What the entry names.
        found: u32,
    },
}

/// Checks that `header` continues a log that ends at `end`.
pub(crate) fn check_follows(end: LogEnd, header: &EntryHeader) -> Result<(), BatchError> {
    let found = header.point;
    // A log that ends at the greatest number has no next position, and a hostile batch must not overflow it.
    let expected = Lsn(end.point.lsn.0.wrapping_add(1));
    if found.lsn != expected || expected == Lsn::ZERO {
        return Err(BatchError::Gap { expected, found });
    }
    if found.epoch < end.point.epoch {
        return Err(BatchError::EpochFell {
            before: end.point.epoch,
            found,
        });
    }
    if header.prev_crc != end.crc {
        return Err(BatchError::Chain {
            at: found,
            expected: end.crc,
            found: header.prev_crc,
        });
    }
    Ok(())
}

/// Verifies a batch from a peer against the end of our log: every CRC, the chain, contiguity and lengths.
///
/// # Errors
/// The first thing wrong. Never panics, whatever the bytes.
pub fn verify_batch(
    lineage: Lineage,
    batch: &Bytes,
    end: LogEnd,
) -> Result<Vec<EntryRef>, BatchError> {
    let mut end = end;
    let mut entries = Vec::new();
    let mut iter = EntryIter::new(lineage, batch.clone());
    loop {
        let offset = iter.offset();
        let Some(item) = iter.next() else { break };
        let entry = item.map_err(|source| BatchError::Entry { offset, source })?;
        check_follows(end, &entry.header)?;
        end = entry.header.end();
        entries.push(entry);
    }
    if entries.is_empty() {
        return Err(BatchError::Empty);
    }
    Ok(entries)
}

/// Flag of an [`EntryKind::Zeroes`] entry: its range is written, not made a hole, so that later writes to it find their space.
pub const FLAG_ALLOCATED: u8 = 1;

/// An entry from [`encode_unstamped`] with other flags than none.
pub fn set_flags(entry: &mut [u8], flags: u8) {
    entry[FLAGS] = flags;
}

/// Payload of a [`EntryKind::Trim`] or [`EntryKind::Zeroes`] entry: the length of the range; its offset is `arg`.
#[must_use]
pub fn encode_range(len: u64) -> [u8; 8] {
    len.to_le_bytes()
}

/// A trim or zeroes entry whose payload is not a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("range payload of {len} bytes, expected 8")]
pub struct RangeError {
    /// Bytes of payload.
    pub len: usize,
}

/// The length in the payload of a trim or zeroes entry.
///
/// # Errors
/// The payload is not eight bytes.
pub fn range_of(payload: &[u8]) -> Result<u64, RangeError> {
    if payload.len() == 8 {
        Ok(u64_at(payload, 0))
    } else {
        Err(RangeError { len: payload.len() })
    }
}
