//! Replacing the whole image by another member's content.
//!
//! The record says "rebuilding" before the first byte is overwritten and until the last one is durable. A crash in
//! between leaves an image that refuses to be read; begin again.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use bytes::Bytes;

use super::flush::{AtOnce, Ready, record_error, write_error};
use super::sums::{BLOCKS_PER_PAGE, Sum, SumsPage};
use super::{CheckpointError, ExportedBlock, Image, Overlay, sums_bytes};
use crate::checkpoint::Checkpoint;
use crate::codec::crc;
use crate::engine::{AlignedBuf, Disk, DiskFile, PAGE, PAGE_BYTES};
use crate::format::LogEnd;

impl<D: Disk> Image<D> {
    /// Records that the image is being replaced, then empties it. Durable on return. From here to
    /// [`Image::finish_rebuild`] nothing is read or applied.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub async fn begin_rebuild(&self) -> Result<(), CheckpointError> {
        self.check_idle()?;
        self.busy.set(true);
        self.rebuilding.set(true);
        let result = self.empty().await;
        self.done(result)
    }

    async fn empty(&self) -> Result<(), CheckpointError> {
        let checkpoint = Checkpoint {
            applied: self.checkpointed.get(),
            rebuilding: true,
            blob: Bytes::new(),
        };
        self.record.store(&checkpoint).await.map_err(record_error)?;
        *self.overlay.borrow_mut() = Overlay::default();
        self.cache.clear();
        self.fuzzy_until.set(None);
        self.version.set(self.version.get() + 1);
        self.wipe().await.map_err(write_error)
    }

    async fn wipe(&self) -> io::Result<()> {
        for intent in &self.intents {
            intent.set_len(0).await?;
            intent.sync().await?;
        }
        let sizes = [
            (&self.image, self.config.size_bytes),
            (&self.sums, sums_bytes(self.config.size_bytes)),
        ];
        for (file, len) in sizes {
            file.set_len(0).await?;
            file.set_len(len).await?;
            file.sync().await?;
        }
        Ok(())
    }

    /// Writes blocks from a donor; each is checked against its own CRC. Only between `begin_rebuild` and
    /// `finish_rebuild`. Not durable before the latter.
    ///
    /// # Errors
    /// [`CheckpointError`]; `Import` for a block that is not what it says, and then none of them was written.
    pub async fn import_blocks(&self, blocks: &[ExportedBlock]) -> Result<(), CheckpointError> {
        self.check_idle()?;
        if !self.rebuilding.get() {
            return Err(CheckpointError::Rebuilding);
        }
        for block in blocks {
            let sound = match &block.data {
                Some(data) => data.len() == PAGE_BYTES && crc(data) == block.crc && block.lsn.0 > 0,
                None => true,
            };
            if !sound || block.block >= self.blocks() {
                return Err(CheckpointError::Import { block: block.block });
            }
        }
        self.busy.set(true);
        let result = self.import(blocks).await.map_err(write_error);
        self.done(result)
    }

    async fn import(&self, blocks: &[ExportedBlock]) -> io::Result<()> {
        self.write_blocks(&ready(blocks), &AtOnce).await?;
        let mut pages = BTreeMap::<u64, SumsPage>::new();
        for block in blocks {
            let number = block.block / BLOCKS_PER_PAGE;
            if let std::collections::btree_map::Entry::Vacant(place) = pages.entry(number) {
                let page = self.sums_page(number).await?;
                place.insert(page.map_or_else(SumsPage::lost, |page| (*page).clone()));
            }
            if let Some(page) = pages.get_mut(&number) {
                let sum = Sum {
                    data: block.data.is_some(),
                    crc: block.crc,
                    lsn: block.lsn,
                };
                page.set(block.block, sum);
            }
        }
        for (number, mut page) in pages {
            page.seal(self.config.lineage, number);
            self.sums
                .write_at(AlignedBuf::padded_from(&page.0[..]), number * PAGE)
                .await
                .0?;
            self.cache.put(number, Rc::new(page));
        }
        Ok(())
    }

    /// Ends the replacement: the image is the donor's at `applied`, with its `blob`. Durable on return.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub async fn finish_rebuild(
        &self,
        applied: LogEnd,
        blob: Bytes,
    ) -> Result<(), CheckpointError> {
        self.check_idle()?;
        if !self.rebuilding.get() {
            return Err(CheckpointError::Rebuilding);
        }
        self.busy.set(true);
        let result = self.finish(applied, blob).await;
        if result.is_ok() {
            self.applied.set(applied);
            self.checkpointed.set(applied);
            self.rebuilding.set(false);
        }
        self.done(result)
    }

    async fn finish(&self, applied: LogEnd, blob: Bytes) -> Result<(), CheckpointError> {
        self.image.sync().await.map_err(write_error)?;
        self.sums.sync().await.map_err(write_error)?;
        let checkpoint = Checkpoint {
            applied,
            rebuilding: false,
            blob,
        };
        self.record.store(&checkpoint).await.map_err(record_error)
    }

    fn done(&self, result: Result<(), CheckpointError>) -> Result<(), CheckpointError> {
        if let Err(CheckpointError::Poisoned { reason }) = &result {
            *self.poisoned.borrow_mut() = Some(reason.clone());
        }
        self.busy.set(false);
        result
    }
}

/// Blocks in ascending order, neighbouring holes as one.
fn ready(blocks: &[ExportedBlock]) -> Vec<Ready> {
    let mut sorted: Vec<_> = blocks.iter().collect();
    sorted.sort_by_key(|block| block.block);
    let mut out: Vec<Ready> = Vec::with_capacity(blocks.len());
    for block in sorted {
        let (number, data) = (block.block, block.data.clone());
        match out.last_mut() {
            Some(last) if data.is_none() && last.data.is_none() && last.blocks.end == number => {
                last.blocks.end += 1;
            }
            _ => out.push(Ready {
                blocks: number..number + 1,
                data,
                merged: false,
            }),
        }
    }
    out
}
