//! Committed changes that are not in the image yet, by block.
//!
//! Whole blocks are copied out of their entries, so that memory held is what is counted and no large batch is kept
//! alive by one small block. A block changed in part keeps its bytes with a mask, and meets its base only when it is
//! read or checkpointed: so applying needs no I/O, and replay never looks at a block that it is about to rewrite.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use mainstay_types::Lsn;

use crate::engine::PAGE_BYTES;

/// Memory counted for a block that holds no data.
const ZERO_BYTES: u64 = 64;

/// Some bytes of a block.
#[derive(Clone)]
pub(super) struct Partial {
    data: [u8; PAGE_BYTES],
    /// One bit a byte of `data` that counts.
    mask: [u64; PAGE_BYTES / 64],
}

impl fmt::Debug for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: u32 = self.mask.iter().map(|word| word.count_ones()).sum();
        write!(f, "Partial({bytes} bytes)")
    }
}

impl Partial {
    fn empty() -> Box<Self> {
        Box::new(Self {
            data: [0; PAGE_BYTES],
            mask: [0; PAGE_BYTES / 64],
        })
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        for index in at..at + bytes.len() {
            self.mask[index / 64] |= 1 << (index % 64);
        }
    }

    fn is_full(&self) -> bool {
        self.mask.iter().all(|word| *word == u64::MAX)
    }

    fn covers(&self, index: usize) -> bool {
        self.mask[index / 64] & (1 << (index % 64)) != 0
    }

    /// Puts the bytes that count over `base`.
    pub(super) fn over(&self, base: &mut [u8]) {
        for (index, byte) in base.iter_mut().enumerate() {
            if self.covers(index) {
                *byte = self.data[index];
            }
        }
    }

    /// Puts `newer` over this.
    fn merge(&mut self, newer: &Self) {
        newer.over(&mut self.data);
        for (word, other) in self.mask.iter_mut().zip(&newer.mask) {
            *word |= other;
        }
    }
}

/// What a layer knows of a block.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// All of it.
    Data(Bytes),
    /// It reads as zeroes.
    Zero,
    /// Some bytes over whatever is below.
    Partial(Box<Partial>),
}

impl Content {
    fn bytes(&self) -> u64 {
        match self {
            Self::Data(_) => PAGE_BYTES as u64,
            Self::Zero => ZERO_BYTES,
            Self::Partial(_) => size_of::<Partial>() as u64,
        }
    }

    /// This over `base`, which is absent where nothing is known of it.
    fn onto(self, base: Option<&Self>) -> Self {
        let Self::Partial(partial) = self else {
            return self;
        };
        let data = match base {
            None => return Self::Partial(partial),
            Some(Self::Partial(below)) => {
                let mut merged = below.clone();
                merged.merge(&partial);
                return Self::Partial(merged).whole_if_full();
            }
            Some(Self::Zero) => {
                let mut data = vec![0; PAGE_BYTES];
                partial.over(&mut data);
                data
            }
            Some(Self::Data(below)) => {
                let mut data = below.to_vec();
                partial.over(&mut data);
                data
            }
        };
        Self::Data(data.into())
    }

    fn whole_if_full(self) -> Self {
        match self {
            Self::Partial(partial) if partial.is_full() => {
                Self::Data(Bytes::copy_from_slice(&partial.data))
            }
            other => other,
        }
    }
}

/// A changed block.
#[derive(Clone, Debug)]
pub(super) struct Dirty {
    pub(super) content: Content,
    /// Last entry that changed it.
    pub(super) lsn: Lsn,
}

/// Changed blocks, and the memory that they hold.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) blocks: BTreeMap<u64, Dirty>,
    bytes: u64,
}

impl Layer {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts `content` over what the layer knows of `block`.
    pub(super) fn put(&mut self, block: u64, content: Content, lsn: Lsn) {
        let old = self.blocks.get(&block);
        let content = content.onto(old.map(|dirty| &dirty.content));
        self.bytes += content.bytes();
        if let Some(old) = self.blocks.insert(block, Dirty { content, lsn }) {
            self.bytes -= old.content.bytes();
        }
    }

    /// Writes bytes at a byte offset of the volume.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], lsn: Lsn) {
        each_block(offset, bytes.len() as u64, |block, at, range| {
            let part = &bytes[range];
            if part.len() == PAGE_BYTES {
                self.put(block, Content::Data(Bytes::copy_from_slice(part)), lsn);
            } else {
                self.put_part(block, at, part, lsn);
            }
        });
    }

    /// Sets a range to zeroes.
    pub(super) fn zero(&mut self, offset: u64, len: u64, lsn: Lsn) {
        const ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        each_block(offset, len, |block, at, range| {
            if range.len() == PAGE_BYTES {
                self.put(block, Content::Zero, lsn);
            } else {
                self.put_part(block, at, &ZEROES[..range.len()], lsn);
            }
        });
    }

    fn put_part(&mut self, block: u64, at: usize, part: &[u8], lsn: Lsn) {
        let mut partial = Partial::empty();
        partial.set(at, part);
        self.put(block, Content::Partial(partial), lsn);
    }
}

/// Calls `visit(block, offset in block, range of the buffer)` for each block that a range touches.
fn each_block(offset: u64, len: u64, mut visit: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let page = PAGE_BYTES as u64;
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let part = (page - at % page).min(len - done);
        let narrow = |n: u64| usize::try_from(n).expect("ranges are below 64 MiB");
        visit(
            at / page,
            narrow(at % page),
            narrow(done)..narrow(done + part),
        );
        done += part;
    }
}

/// What is not in the image yet: what a checkpoint is writing, and what came since.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub(super) active: Layer,
    pub(super) frozen: Option<Layer>,
}

impl Overlay {
    /// What both layers know of a block.
    pub(super) fn get(&self, block: u64) -> Option<Dirty> {
        let below = self
            .frozen
            .as_ref()
            .and_then(|frozen| frozen.blocks.get(&block));
        let Some(above) = self.active.blocks.get(&block) else {
            return below.cloned();
        };
        Some(Dirty {
            content: above
                .content
                .clone()
                .onto(below.map(|dirty| &dirty.content)),
            lsn: above.lsn,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.active.bytes() + self.frozen.as_ref().map_or(0, Layer::bytes)
    }

    /// Puts a checkpoint's layer back under what came since.
    pub(super) fn thaw(&mut self) {
        let Some(mut frozen) = self.frozen.take() else {
            return;
        };
        for (block, dirty) in std::mem::take(&mut self.active.blocks) {
            frozen.put(block, dirty.content, dirty.lsn);
        }
        self.active = frozen;
    }
}
