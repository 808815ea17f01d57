//! Checksums of the image, one page for 255 blocks, and a bounded cache of such pages.
//!
//! A page names its own number and is seeded with the lineage, so a misdirected or swapped page does not verify. A
//! page of zeroes says that none of its blocks was ever written, which their bytes have to confirm.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use mainstay_types::{Lineage, Lsn};

use crate::codec::{crc, crc_seeded, is_zero, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::engine::PAGE_BYTES;

/// Blocks that one page covers.
pub(super) const BLOCKS_PER_PAGE: u64 = 255;

const CRC: usize = 0;
const VERSION_AT: usize = 4;
const MAGIC_AT: usize = 6;
const PAGE_NUMBER: usize = 8;
const HEADER: usize = 16;
const ENTRY: usize = 16;
const MAGIC: u16 = u16::from_le_bytes(*b"SP");
const VERSION: u16 = 1;
const FLAG_DATA: u32 = 1;

/// Documented fields, in order.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize); 5] = [
    ("crc", CRC),
    ("version", VERSION_AT),
    ("magic", MAGIC_AT),
    ("page_number", PAGE_NUMBER),
    ("entries", HEADER),
];

const _: () = assert!(HEADER + 255 * ENTRY == PAGE_BYTES);

/// Stands for "unknown" together with LSN zero, which no written block has.
const LOST_CRC: u32 = u32::MAX;

/// What is known of a stored block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sum {
    /// Whether it holds data; otherwise it reads as zeroes.
    pub(super) data: bool,
    /// CRC-32 of its bytes.
    pub(super) crc: u32,
    /// Last entry that changed it; zero for never.
    pub(super) lsn: Lsn,
}

impl Sum {
    /// Whether the page that held this entry was lost.
    pub(super) fn is_lost(&self) -> bool {
        self.data && self.lsn == Lsn::ZERO
    }

    /// Whether the block has to be read. What was never written is to be zeroes: a page that the medium lost says so as well, of blocks
    /// that hold data. A hole that an entry made is known by the page's own checksum.
    pub(super) fn needs_disk(&self) -> bool {
        self.data || self.lsn == Lsn::ZERO
    }

    /// Whether it speaks of these bytes.
    pub(super) fn matches(&self, bytes: &[u8]) -> bool {
        if self.data {
            crc(bytes) == self.crc
        } else {
            is_zero(bytes)
        }
    }
}

/// One page of checksums.
#[derive(Clone)]
pub(super) struct SumsPage(pub(super) Box<[u8; PAGE_BYTES]>);

impl std::fmt::Debug for SumsPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SumsPage({})", u64_at(&*self.0, PAGE_NUMBER))
    }
}

impl SumsPage {
    pub(super) fn empty() -> Self {
        Self(Box::new([0; PAGE_BYTES]))
    }

    /// A page in place of one that was lost: every block of it is corrupt until its entry is set.
    pub(super) fn lost() -> Self {
        let mut page = Self::empty();
        for index in 0..BLOCKS_PER_PAGE {
            page.set(
                index,
                Sum {
                    data: true,
                    crc: LOST_CRC,
                    lsn: Lsn::ZERO,
                },
            );
        }
        page
    }

    /// Decodes page `number`; `None` if it does not verify.
    pub(super) fn decode(lineage: Lineage, number: u64, bytes: &[u8]) -> Option<Self> {
        let mut page = Self::empty();
        if bytes.len() != PAGE_BYTES {
            return bytes.is_empty().then_some(page);
        }
        page.0.copy_from_slice(bytes);
        if is_zero(bytes) {
            return Some(page);
        }
        let intact = u32_at(bytes, CRC) == crc_seeded(lineage.0, &bytes[VERSION_AT..])
            && u16_at(bytes, VERSION_AT) == VERSION
            && u16_at(bytes, MAGIC_AT) == MAGIC
            && u64_at(bytes, PAGE_NUMBER) == number;
        intact.then_some(page)
    }

    pub(super) fn seal(&mut self, lineage: Lineage, number: u64) {
        let bytes = &mut self.0[..];
        put_u16(bytes, VERSION_AT, VERSION);
        put_u16(bytes, MAGIC_AT, MAGIC);
        put_u64(bytes, PAGE_NUMBER, number);
        let crc = crc_seeded(lineage.0, &bytes[VERSION_AT..]);
        put_u32(bytes, CRC, crc);
    }

    fn at(block: u64) -> usize {
        let index = usize::try_from(block % BLOCKS_PER_PAGE).expect("below 255");
        HEADER + index * ENTRY
    }

    pub(super) fn get(&self, block: u64) -> Sum {
        let at = Self::at(block);
        Sum {
            crc: u32_at(&*self.0, at),
            data: u32_at(&*self.0, at + 4) & FLAG_DATA != 0,
            lsn: Lsn(u64_at(&*self.0, at + 8)),
        }
    }

    pub(super) fn set(&mut self, block: u64, sum: Sum) {
        let at = Self::at(block);
        put_u32(&mut *self.0, at, sum.crc);
        put_u32(&mut *self.0, at + 4, if sum.data { FLAG_DATA } else { 0 });
        put_u64(&mut *self.0, at + 8, sum.lsn.0);
    }
}

/// Pages read lately. Holds clean pages only.
#[derive(Debug)]
pub(super) struct SumsCache {
    limit: usize,
    clock: Cell<u64>,
    pages: RefCell<BTreeMap<u64, (u64, Rc<SumsPage>)>>,
}

impl SumsCache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            clock: Cell::new(0),
            pages: RefCell::new(BTreeMap::new()),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    pub(super) fn get(&self, number: u64) -> Option<Rc<SumsPage>> {
        let tick = self.tick();
        let mut pages = self.pages.borrow_mut();
        let (used, page) = pages.get_mut(&number)?;
        *used = tick;
        Some(page.clone())
    }

    pub(super) fn put(&self, number: u64, page: Rc<SumsPage>) {
        let tick = self.tick();
        let mut pages = self.pages.borrow_mut();
        pages.insert(number, (tick, page));
        if pages.len() > self.limit {
            let oldest = pages
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(number, _)| *number);
            oldest.map(|number| pages.remove(&number));
        }
    }

    pub(super) fn clear(&self) {
        self.pages.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_bytes_are_golden_and_every_flipped_bit_is_seen() {
        let mut page = SumsPage::empty();
        let sum = Sum {
            data: true,
            crc: 0x0102_0304,
            lsn: Lsn(77),
        };
        page.set(255 + 3, sum);
        page.set(
            255 + 254,
            Sum {
                data: false,
                crc: 0,
                lsn: Lsn(78),
            },
        );
        page.seal(Lineage(5), 1);
        crate::testing::golden("sums-page", &page.0[..]);
        let back = SumsPage::decode(Lineage(5), 1, &page.0[..]).expect("own bytes");
        assert_eq!(back.get(255 + 3), sum);
        assert!(
            SumsPage::decode(Lineage(5), 2, &page.0[..]).is_none(),
            "another page's place"
        );
        assert!(
            SumsPage::decode(Lineage(6), 1, &page.0[..]).is_none(),
            "another volume"
        );
        for bit in 0..PAGE_BYTES * 8 {
            let mut bad = page.clone();
            bad.0[bit / 8] ^= 1 << (bit % 8);
            assert!(
                SumsPage::decode(Lineage(5), 1, &bad.0[..]).is_none(),
                "bit {bit}"
            );
        }
    }
}
