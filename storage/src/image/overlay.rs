//! Committed changes that are not in the image yet, by block.
//!
//! Whole blocks are copied out of their entries, so that memory held is what is counted and no large batch is kept
//! alive by one small block. A block changed in part keeps its bytes with a mask, and meets its base only when it is
//! read or checkpointed: so applying needs no I/O, and replay never looks at a block that it is about to rewrite. Zeroes are kept
//! by the stretch: whoever makes a file system on a volume first sets all of it to zeroes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use mainstay_types::Lsn;

use crate::engine::{PAGE, PAGE_BYTES};

/// Memory counted for a stretch of zeroes.
const STRETCH_BYTES: u64 = 64;
/// And for each block of it: its place in a page of checksums, which a checkpoint holds.
const ZERO_BYTES: u64 = 16;

/// What zeroes over `blocks` whole blocks count for. Where their space is to be kept they are to be written like other bytes, so they count
/// like those, although memory holds only the stretch: who waits for room waits for the disk.
fn zeroes_bytes(blocks: u64, kept: bool) -> u64 {
    let each = if kept { PAGE } else { ZERO_BYTES };
    STRETCH_BYTES + blocks * each
}

/// What a range of zeroes counts for until a checkpoint has written it, in bytes. `kept`: its space is to be there.
#[must_use]
pub fn range_held(len: u64, kept: bool) -> u64 {
    zeroes_bytes(len / PAGE, kept)
}

static ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

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
            Self::Zero => 0,
            Self::Partial(_) => size_of::<Partial>() as u64,
        }
    }

    /// This over `base`, which is absent where nothing is known of it.
    pub(super) fn onto(self, base: Option<&Self>) -> Self {
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
    /// Some of its bytes are from below, and the log does not bring them back: before it is overwritten in place, it must be elsewhere.
    pub(super) merged: bool,
}

impl Dirty {
    fn zeroes(zeroes: Zeroes) -> Self {
        let content = if zeroes.kept {
            Content::Data(Bytes::from_static(&ZEROES))
        } else {
            Content::Zero
        };
        Self {
            content,
            lsn: zeroes.lsn,
            merged: zeroes.merged,
        }
    }
}

/// Blocks that one entry set to zeroes, or a repair.
#[derive(Clone, Copy, Debug)]
struct Zeroes {
    /// Behind the last of them.
    end: u64,
    lsn: Lsn,
    /// Their space is to be there.
    kept: bool,
    /// As in [`Dirty`]: zeroes that a repair found below, which no entry of the log brings back.
    merged: bool,
}

/// Neighbouring blocks of one kind: many of zeroes, or one of any other. Each has the bytes of `dirty`.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    pub(super) blocks: Range<u64>,
    pub(super) dirty: Dirty,
}

/// Changed blocks, and the memory that they hold.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// Blocks with bytes of their own. Newer than a stretch of zeroes over them.
    blocks: BTreeMap<u64, Dirty>,
    /// By the first block. No two overlap.
    zeroes: BTreeMap<u64, Zeroes>,
    bytes: u64,
}

impl Layer {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the layer knows of a block.
    pub(super) fn get(&self, block: u64) -> Option<Dirty> {
        let dirty = self.blocks.get(&block).cloned();
        dirty.or_else(|| self.zeroed(block).map(Dirty::zeroes))
    }

    /// The zeroes over a block.
    fn zeroed(&self, block: u64) -> Option<Zeroes> {
        let (_, zeroes) = self.zeroes.range(..=block).next_back()?;
        (block < zeroes.end).then_some(*zeroes)
    }

    /// Puts `content` over what the layer knows of `block`.
    pub(super) fn put(&mut self, block: u64, content: Content, lsn: Lsn) {
        let part = matches!(content, Content::Partial(_));
        let (below, merged) = match (self.blocks.get(&block), self.zeroed(block)) {
            (Some(old), _) => (Some(&old.content), old.merged),
            (None, Some(zeroes)) => (Some(&Content::Zero), zeroes.merged),
            (None, None) => (None, false),
        };
        let merged = part && merged;
        let content = content.onto(below);
        self.bytes += content.bytes();
        let dirty = Dirty {
            content,
            lsn,
            merged,
        };
        if let Some(old) = self.blocks.insert(block, dirty) {
            self.bytes -= old.content.bytes();
        }
    }

    /// Puts a whole block over what the layer knows of it, some bytes of which are not from the log's entries.
    pub(super) fn put_merged(&mut self, block: u64, content: Content, lsn: Lsn) {
        if matches!(content, Content::Zero) {
            let zeroes = Zeroes {
                end: block + 1,
                lsn,
                kept: false,
                merged: true,
            };
            return self.zero_blocks(block, zeroes);
        }
        self.put(block, content, lsn);
        if let Some(dirty) = self.blocks.get_mut(&block) {
            dirty.merged = true;
        }
    }

    /// Puts zeroes over what the layer knows of whole blocks, from `first` on.
    fn zero_blocks(&mut self, first: u64, zeroes: Zeroes) {
        let blocks = first..zeroes.end;
        while let Some((&block, _)) = self.blocks.range(blocks.clone()).next() {
            let old = self.blocks.remove(&block);
            self.bytes -= old.map_or(0, |old| old.content.bytes());
        }
        let before = self.zeroes.range(..blocks.start).next_back();
        if let Some((&first, &old)) = before.filter(|(_, old)| old.end > blocks.start) {
            self.take_zeroes(first);
            let end = blocks.start;
            self.put_zeroes(first, Zeroes { end, ..old });
            self.put_zeroes(blocks.end, old);
        }
        while let Some((&first, &old)) = self.zeroes.range(blocks.clone()).next() {
            self.take_zeroes(first);
            self.put_zeroes(blocks.end, old);
        }
        self.put_zeroes(first, zeroes);
    }

    /// Nothing lies there. An empty range is none.
    fn put_zeroes(&mut self, first: u64, zeroes: Zeroes) {
        if first < zeroes.end {
            self.bytes += zeroes_bytes(zeroes.end - first, zeroes.kept);
            self.zeroes.insert(first, zeroes);
        }
    }

    fn take_zeroes(&mut self, first: u64) {
        if let Some(old) = self.zeroes.remove(&first) {
            self.bytes -= zeroes_bytes(old.end - first, old.kept);
        }
    }

    /// Blocks changed in part.
    pub(super) fn partial(&self) -> Vec<u64> {
        let partial = |dirty: &Dirty| matches!(dirty.content, Content::Partial(_));
        let blocks = self.blocks.iter().filter(|(_, dirty)| partial(dirty));
        blocks.map(|(block, _)| *block).collect()
    }

    /// All that it knows, in ascending order.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let mut out = Vec::with_capacity(self.blocks.len() + self.zeroes.len());
        let one = |(block, dirty): (&u64, &Dirty)| Stretch {
            blocks: *block..block + 1,
            dirty: dirty.clone(),
        };
        let mut blocks = self.blocks.iter().peekable();
        for (&first, zeroes) in &self.zeroes {
            let empty = |blocks: Range<u64>| {
                let dirty = Dirty::zeroes(*zeroes);
                (!blocks.is_empty()).then_some(Stretch { blocks, dirty })
            };
            let mut at = first;
            while let Some(next) = blocks.next_if(|(block, _)| **block < zeroes.end) {
                let block = *next.0;
                out.extend(empty(at..block));
                out.push(one(next));
                at = at.max(block + 1);
            }
            out.extend(empty(at..zeroes.end));
        }
        out.extend(blocks.map(one));
        out
    }

    /// Puts all that `above` knows over this.
    fn cover(&mut self, above: Self) {
        for (first, zeroes) in above.zeroes {
            self.zero_blocks(first, zeroes);
        }
        for (block, dirty) in above.blocks {
            match dirty.content {
                content @ Content::Data(_) if dirty.merged => {
                    self.put_merged(block, content, dirty.lsn);
                }
                content => self.put(block, content, dirty.lsn),
            }
        }
    }

    /// Forgets the first `count` of what it knows. False once nothing is left.
    pub(super) fn forget(&mut self, count: usize) -> bool {
        forget(&mut self.blocks, count);
        forget(&mut self.zeroes, count);
        !self.blocks.is_empty() || !self.zeroes.is_empty()
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

    /// Sets a range to zeroes. `kept`: its space is to be there.
    pub(super) fn zero(&mut self, offset: u64, len: u64, lsn: Lsn, kept: bool) {
        let whole = offset.div_ceil(PAGE)..(offset + len) / PAGE;
        let edges = if whole.is_empty() {
            [(offset, len), (0, 0)]
        } else {
            let behind = whole.end * PAGE;
            [
                (offset, whole.start * PAGE - offset),
                (behind, offset + len - behind),
            ]
        };
        for (offset, len) in edges {
            each_block(offset, len, |block, at, range| {
                self.put_part(block, at, &ZEROES[..range.len()], lsn);
            });
        }
        if !whole.is_empty() {
            let zeroes = Zeroes {
                end: whole.end,
                lsn,
                kept,
                merged: false,
            };
            self.zero_blocks(whole.start, zeroes);
        }
    }

    fn put_part(&mut self, block: u64, at: usize, part: &[u8], lsn: Lsn) {
        let mut partial = Partial::empty();
        partial.set(at, part);
        self.put(block, Content::Partial(partial), lsn);
    }
}

fn forget<T>(map: &mut BTreeMap<u64, T>, count: usize) {
    let rest = match map.keys().nth(count).copied() {
        Some(next) => map.split_off(&next),
        None => BTreeMap::new(),
    };
    *map = rest;
}

/// Calls `visit(block, offset in block, range of the buffer)` for each block that a range touches.
fn each_block(offset: u64, len: u64, mut visit: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let part = (PAGE - at % PAGE).min(len - done);
        let narrow = |n: u64| usize::try_from(n).expect("ranges are below 64 MiB");
        visit(
            at / PAGE,
            narrow(at % PAGE),
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
        let below = self.frozen.as_ref().and_then(|frozen| frozen.get(block));
        let Some(above) = self.active.get(block) else {
            return below;
        };
        let below = below.as_ref().map(|dirty| &dirty.content);
        Some(Dirty {
            content: above.content.onto(below),
            ..above
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.active.bytes() + self.frozen_bytes()
    }

    pub(super) fn frozen_bytes(&self) -> u64 {
        self.frozen.as_ref().map_or(0, Layer::bytes)
    }

    /// Puts a checkpoint's layer back under what came since.
    pub(super) fn thaw(&mut self) {
        let Some(mut frozen) = self.frozen.take() else {
            return;
        };
        frozen.cover(std::mem::take(&mut self.active));
        self.active = frozen;
    }
}
