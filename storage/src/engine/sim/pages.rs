//! Sparse content of one simulated file, and the changes to it that no sync has covered.

use std::collections::BTreeMap;

use super::rng::Rng;
use crate::engine::{PAGE, PAGE_BYTES};

/// Unit that the simulated disk writes whole or not at all.
const SECTOR: usize = 512;

/// Bytes with holes.
#[derive(Clone, Default)]
pub(super) struct Pages {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Pages that a write would add.
    pub(super) fn growth(&self, offset: u64, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        (last - first + 1 - self.pages.range(first..=last).count() as u64) * PAGE
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let have = usize::try_from(self.len.saturating_sub(offset))
            .map_or(out.len(), |n| n.min(out.len()));
        each_part(offset, have, |page, within, part| {
            let target = &mut out[part];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[within..within + target.len()]),
                None => target.fill(0),
            }
        });
        have
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        each_part(offset, data.len(), |page, within, part| {
            let source = &data[part];
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE_BYTES]));
            bytes[within..within + source.len()].copy_from_slice(source);
        });
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let len = usize::try_from(len.min(self.len.saturating_sub(offset))).unwrap_or(usize::MAX);
        let mut emptied = Vec::new();
        each_part(offset, len, |page, within, part| {
            if part.len() == PAGE_BYTES {
                emptied.push(page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[within..within + part.len()].fill(0);
            }
        });
        for page in emptied {
            self.pages.remove(&page);
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let keep = len.div_ceil(PAGE);
            self.zero(len, keep * PAGE - len);
            self.pages.split_off(&keep);
        }
        self.len = len;
    }

    pub(super) fn flip(&mut self, offset: u64, mask: u8) -> bool {
        if offset >= self.len {
            return false;
        }
        let mut byte = [0];
        self.read(offset, &mut byte);
        self.write(offset, &[byte[0] ^ mask]);
        true
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(*offset, data),
            Change::Zero { offset, len } => self.zero(*offset, *len),
            Change::SetLen(len) => self.set_len(*len),
        }
    }

    /// Applies whatever part of `change` reached the medium before the power went.
    pub(super) fn apply_torn(&mut self, change: &Change, rng: &mut Rng) {
        match (rng.below(3), change) {
            (0, _) => {}
            (1, Change::Write { offset, data }) => {
                for (index, sector) in data.chunks(SECTOR).enumerate() {
                    if rng.below(2) == 0 {
                        self.write(*offset + (index * SECTOR) as u64, sector);
                    }
                }
            }
            _ => self.apply(change),
        }
    }
}

/// Calls `visit(page, offset in page, range of the buffer)` for each page that a range touches.
fn each_part(offset: u64, len: usize, mut visit: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE).expect("below a page");
        let part = (PAGE_BYTES - within).min(len - done);
        visit(at / PAGE, within, done..done + part);
        done += part;
    }
}

/// A change that is visible at once and durable after a sync.
pub(super) enum Change {
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, len: u64 },
    SetLen(u64),
}

/// One file.
#[derive(Default)]
pub(super) struct Inode {
    pub(super) live: Pages,
    pub(super) durable: Pages,
    pub(super) pending: Vec<Change>,
    pub(super) unreadable: Vec<std::ops::Range<u64>>,
}

impl Inode {
    pub(super) fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.pending.push(change);
    }

    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            self.durable.apply(&change);
        }
    }

    /// A failed sync: some changes reached the medium, and the page cache will not write the others again.
    pub(super) fn sync_failed(&mut self, rng: &mut Rng) {
        for change in std::mem::take(&mut self.pending) {
            self.durable.apply_torn(&change, rng);
        }
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.sync_failed(rng);
        self.live = self.durable.clone();
    }
}
