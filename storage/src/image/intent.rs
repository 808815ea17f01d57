//! What a checkpoint is about to overwrite in place: written and synced before the first overwrite.
//!
//! Holds new checksum pages, and blocks that were merged with their base, since neither can be made again from the log
//! once the old one is torn. Two files take turns, so that a torn intent never destroys the one that is needed.

use mainstay_types::{Lineage, Lsn};

use crate::codec::{crc, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::engine::{AlignedBuf, PAGE_BYTES, TRANSFER_BYTES};

const MAGIC: u64 = u64::from_le_bytes(*b"MSINTENT");
const VERSION: u16 = 1;

const MAGIC_AT: usize = 0;
const CRC: usize = 8;
const VERSION_AT: usize = 12;
const RESERVED: usize = 14;
const LINEAGE: usize = 16;
const SEQUENCE: usize = 24;
const BASE: usize = 32;
const TARGET: usize = 40;
const COUNT: usize = 48;
const BODY_CRC: usize = 52;
const HEADER: usize = 64;

/// Documented fields, in order.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize); 11] = [
    ("magic", MAGIC_AT),
    ("crc", CRC),
    ("version", VERSION_AT),
    ("reserved", RESERVED),
    ("lineage", LINEAGE),
    ("sequence", SEQUENCE),
    ("base", BASE),
    ("target", TARGET),
    ("count", COUNT),
    ("body_crc", BODY_CRC),
    ("directory", PAGE_BYTES),
];

/// Marks an item's number as a block; without it, it is a page of checksums.
const BLOCK_FLAG: u64 = 1 << 63;

/// What an item is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// A block of the image.
    Block(u64),
    /// A page of the checksums.
    Sums(u64),
}

/// A decoded intent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Intent {
    pub(super) header: Header,
    pub(super) items: Vec<(Target, Vec<u8>)>,
}

/// What an intent is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) sequence: u64,
    /// Applied position that the checkpoint started from.
    pub(super) base: Lsn,
    /// Position that it goes to.
    pub(super) target: Lsn,
}

/// A page's worth of what an intent holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) target: Target,
    pub(super) content: &'a [u8],
}

fn body_start(count: usize) -> usize {
    PAGE_BYTES + (count * 8).next_multiple_of(PAGE_BYTES)
}

/// Everything from the second page on, in pieces: it may be hundreds of megabytes. The header is written last, as only then the
/// checksum of the body is known; whatever header was there before does not fit a body that is partly new.
#[derive(Debug)]
pub(super) struct Body<'a> {
    items: &'a [Item<'a>],
    /// Next to write, the pages of the directory first.
    page: usize,
    crc: crc32fast::Hasher,
}

impl<'a> Body<'a> {
    pub(super) fn new(items: &'a [Item<'a>]) -> Self {
        Self {
            items,
            page: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    /// The bytes behind those of the piece before, from byte 4096 of the file on; none behind the last.
    pub(super) fn next_piece(&mut self) -> Option<AlignedBuf> {
        let directory = body_start(self.items.len()) / PAGE_BYTES - 1;
        let rest = directory + self.items.len() - self.page;
        let mut piece = AlignedBuf::zeroed(rest.min(TRANSFER_BYTES / PAGE_BYTES) * PAGE_BYTES);
        if piece.is_empty() {
            return None;
        }
        for target in piece.chunks_exact_mut(PAGE_BYTES) {
            match self.page.checked_sub(directory) {
                Some(index) => target.copy_from_slice(self.items[index].content),
                None => self.directory_page(target),
            }
            self.page += 1;
        }
        self.crc.update(&piece);
        Some(piece)
    }

    fn directory_page(&self, target: &mut [u8]) {
        let first = self.page * PAGE_BYTES / 8;
        for (item, at) in self.items[first..].iter().zip((0..PAGE_BYTES).step_by(8)) {
            let number = match item.target {
                Target::Block(block) => block | BLOCK_FLAG,
                Target::Sums(page) => page,
            };
            put_u64(target, at, number);
        }
    }

    /// The first page, once all pieces were taken.
    pub(super) fn header(self, lineage: Lineage, header: Header) -> AlignedBuf {
        let mut out = AlignedBuf::zeroed(PAGE_BYTES);
        let count = u32::try_from(self.items.len()).expect("items are bounded by memory");
        put_u64(&mut out, MAGIC_AT, MAGIC);
        put_u16(&mut out, VERSION_AT, VERSION);
        put_u16(&mut out, RESERVED, 0);
        put_u64(&mut out, LINEAGE, lineage.0);
        put_u64(&mut out, SEQUENCE, header.sequence);
        put_u64(&mut out, BASE, header.base.0);
        put_u64(&mut out, TARGET, header.target.0);
        put_u32(&mut out, COUNT, count);
        put_u32(&mut out, BODY_CRC, self.crc.finalize());
        let header_crc = crc(&out[VERSION_AT..HEADER]);
        put_u32(&mut out, CRC, header_crc);
        out
    }
}

impl Intent {
    /// Decodes an intent; `None` for one that was never completely written.
    pub(super) fn decode(lineage: Lineage, bytes: &[u8]) -> Option<Self> {
        if bytes.len() < PAGE_BYTES || u64_at(bytes, MAGIC_AT) != MAGIC {
            return None;
        }
        let intact = u32_at(bytes, CRC) == crc(&bytes[VERSION_AT..HEADER])
            && u16_at(bytes, VERSION_AT) == VERSION;
        if !intact || u64_at(bytes, LINEAGE) != lineage.0 {
            return None;
        }
        let count = u32_at(bytes, COUNT) as usize;
        let start = body_start(count);
        let body = bytes.get(PAGE_BYTES..start.checked_add(count.checked_mul(PAGE_BYTES)?)?)?;
        if crc(body) != u32_at(bytes, BODY_CRC) {
            return None;
        }
        let items = (0..count).map(|index| {
            let number = u64_at(bytes, PAGE_BYTES + index * 8);
            let target = if number & BLOCK_FLAG == 0 {
                Target::Sums(number)
            } else {
                Target::Block(number & !BLOCK_FLAG)
            };
            let at = start + index * PAGE_BYTES;
            (target, bytes[at..at + PAGE_BYTES].to_vec())
        });
        let header = Header {
            sequence: u64_at(bytes, SEQUENCE),
            base: Lsn(u64_at(bytes, BASE)),
            target: Lsn(u64_at(bytes, TARGET)),
        };
        Some(Self {
            header,
            items: items.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole file.
    fn encode(intent: &Intent, lineage: Lineage) -> Vec<u8> {
        let items: Vec<_> = intent
            .items
            .iter()
            .map(|(target, content)| Item {
                target: *target,
                content,
            })
            .collect();
        let mut body = Body::new(&items);
        let mut bytes = vec![0; PAGE_BYTES];
        while let Some(piece) = body.next_piece() {
            assert!(piece.len() <= TRANSFER_BYTES);
            bytes.extend_from_slice(&piece);
        }
        bytes[..PAGE_BYTES].copy_from_slice(&body.header(lineage, intent.header));
        bytes
    }

    #[test]
    fn bytes_are_golden_and_a_torn_one_is_none() {
        let intent = Intent {
            header: Header {
                sequence: 3,
                base: Lsn(10),
                target: Lsn(20),
            },
            items: vec![
                (Target::Block(7), vec![1; PAGE_BYTES]),
                (Target::Sums(0), vec![2; PAGE_BYTES]),
            ],
        };
        let bytes = encode(&intent, Lineage(5));
        crate::testing::golden("intent", &bytes);
        assert_eq!(Intent::decode(Lineage(5), &bytes), Some(intent));
        assert_eq!(Intent::decode(Lineage(6), &bytes), None);
        for at in (0..bytes.len()).step_by(512) {
            if bytes[at..at + 512].iter().all(|b| *b == 0) {
                continue;
            }
            let mut torn = bytes.clone();
            torn[at..at + 512].fill(0);
            assert_eq!(Intent::decode(Lineage(5), &torn), None, "sector at {at}");
        }
    }

    #[test]
    fn many_items_go_in_pieces() {
        for count in [511, 512, 513, 700_u16] {
            let item = |n: u16| {
                let content = n.to_le_bytes().repeat(PAGE_BYTES / 2);
                (Target::Sums(u64::from(n) * 3), content)
            };
            let intent = Intent {
                header: Header {
                    sequence: 1,
                    base: Lsn(1),
                    target: Lsn(2),
                },
                items: (0..count).map(item).collect(),
            };
            let bytes = encode(&intent, Lineage(5));
            assert_eq!(bytes.len() % PAGE_BYTES, 0);
            assert_eq!(Intent::decode(Lineage(5), &bytes), Some(intent));
        }
    }
}
