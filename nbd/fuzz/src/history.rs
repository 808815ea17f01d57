//! A device of memory with a history, so that what changed since a point of it can be asked for.
//!
//! Only questions are answered, and nothing is recorded: blocks of 4 KiB have changed at LSN 0, 1, 2 and so on, whatever is written.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::{
    BlockDevice, BlockError, Change, ChangePoint, ExportInfo, Exports, Extent, Holes, OpenError,
};

/// Where the history stands.
pub const NOW: ChangePoint = ChangePoint {
    history: 0xfeed,
    lsn: 9,
};
/// How often it was asked what changed: inputs that never get there fuzz less than they should.
pub static ASKED: AtomicU64 = AtomicU64::new(0);

const BLOCK_BYTES: u64 = 4096;

/// Memory with a history.
pub struct Tracked(pub MemoryDevice);

impl BlockDevice for Tracked {
    fn info(&self) -> ExportInfo {
        self.0.info()
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        self.0.read(offset, len)
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.write(offset, data)
    }

    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.trim(offset, len)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.write_zeroes(offset, len, holes)
    }

    fn zeroes_are_fast(&self, offset: u64, len: u64, holes: Holes) -> bool {
        self.0.zeroes_are_fast(offset, len, holes)
    }

    fn allocation(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent>, BlockError>> {
        self.0.allocation(offset, len, extents_max)
    }

    fn changed_since(
        &self,
        since: ChangePoint,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent<Change>>, BlockError>> {
        assert_eq!(since.history, NOW.history, "a point of another history");
        assert!(since.lsn <= NOW.lsn, "a point that has not come");
        ASKED.fetch_add(1, Ordering::Relaxed);
        let blocks = offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES);
        let extents = blocks.map(|block| Extent {
            len: (block + 1) * BLOCK_BYTES - offset.max(block * BLOCK_BYTES),
            state: if block > since.lsn {
                Change::Changed
            } else {
                Change::Unchanged
            },
        });
        Box::pin(ready(Ok(extents.take(extents_max).collect())))
    }

    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.flush()
    }
}

/// Exports that all stand at [`NOW`].
pub struct TrackedExports(pub FixedExports);

impl Exports for TrackedExports {
    fn list(&self) -> BoxFuture<'static, Result<Vec<String>, OpenError>> {
        self.0.list()
    }

    fn open(
        &self,
        name: &str,
        peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>, OpenError>> {
        self.0.open(name, peer)
    }

    fn change_point(
        &self,
        _name: &str,
        _peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Option<ChangePoint>, OpenError>> {
        Box::pin(ready(Ok(Some(NOW))))
    }
}
