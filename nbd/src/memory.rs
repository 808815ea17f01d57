//! A block device made of memory, for tests, examples and trying out clients.
//!
//! Every operation happens during the call, so that calls take effect in their order. Nothing survives the
//! process, which is the only way in which it breaks the contract of [`BlockDevice`].

use std::collections::BTreeMap;
use std::fmt;
use std::future::ready;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::export::{
    Access, Allocation, BlockDevice, BlockError, ExportInfo, Exports, Extent, Holes, MultiConn,
    OpenError,
};
use crate::extents::append;

/// A device made of memory. Clones share the content.
#[derive(Clone)]
pub struct MemoryDevice {
    info: ExportInfo,
    content: Arc<Mutex<Vec<u8>>>,
}

impl MemoryDevice {
    /// A device of `size_bytes` zeroes that takes any offset and length.
    #[must_use]
    pub fn new(name: &str, size_bytes: usize) -> Self {
        Self::with_info(ExportInfo {
            name: name.to_owned(),
            description: format!("{size_bytes} bytes of memory"),
            size_bytes: size_bytes as u64,
            access: Access::ReadWrite,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            block_bytes_max: 32 << 20,
            multi_conn: MultiConn::Coherent,
        })
    }

    /// A device of zeroes as `info` describes it.
    ///
    /// # Panics
    ///
    /// The size does not fit into memory.
    #[must_use]
    pub fn with_info(info: ExportInfo) -> Self {
        let size = usize::try_from(info.size_bytes).expect("the size fits into memory");
        Self {
            info,
            content: Arc::new(Mutex::new(vec![0; size])),
        }
    }

    /// A copy of the whole content.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.lock().clone()
    }

    /// Replaces bytes from `offset` on, as far as the device reaches.
    pub fn fill(&self, offset: usize, data: &[u8]) {
        for (to, from) in self.lock().iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // No code panics while it holds the lock half way through a change.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let range = range(offset, len)?;
        let mut content = self.lock();
        content.get_mut(range).ok_or(BlockError::Invalid)?.fill(0);
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        let answer = range(offset, u64::from(len)).and_then(|range| {
            let content = self.lock();
            let data = content.get(range).ok_or(BlockError::Invalid)?;
            Ok(Bytes::copy_from_slice(data))
        });
        Box::pin(ready(answer))
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        let answer = range(offset, data.len() as u64).and_then(|range| {
            let mut content = self.lock();
            let to = content.get_mut(range).ok_or(BlockError::NoSpace)?;
            to.copy_from_slice(&data);
            Ok(())
        });
        Box::pin(ready(answer))
    }

    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        Box::pin(ready(self.zero(offset, len)))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        _holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>> {
        Box::pin(ready(self.zero(offset, len)))
    }

    /// Nothing is sent and nothing is stored: as fast as can be.
    fn zeroes_are_fast(&self, _: u64, _: u64, holes: Holes) -> bool {
        holes == Holes::Allowed
    }

    /// Memory has no holes, so blocks of zeroes stand for them.
    fn allocation(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent>, BlockError>> {
        let answer = range(offset, len).and_then(|range| {
            let content = self.lock();
            let data = content.get(range).ok_or(BlockError::Invalid)?;
            Ok(allocation(offset, data, extents_max))
        });
        Box::pin(ready(answer))
    }

    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        Box::pin(ready(Ok(())))
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDevice")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// A fixed set of devices.
#[derive(Default)]
pub struct FixedExports {
    devices: BTreeMap<String, Arc<dyn BlockDevice>>,
}

impl FixedExports {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `device` under the name that it gives itself.
    #[must_use]
    pub fn with(mut self, device: impl BlockDevice) -> Self {
        self.devices.insert(device.info().name, Arc::new(device));
        self
    }
}

impl Exports for FixedExports {
    fn list(&self) -> BoxFuture<'static, Result<Vec<String>, OpenError>> {
        Box::pin(ready(Ok(self.devices.keys().cloned().collect())))
    }

    fn open(
        &self,
        name: &str,
        _peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>, OpenError>> {
        let found = self.devices.get(name).cloned();
        Box::pin(ready(found.ok_or(OpenError::Unknown)))
    }
}

impl fmt::Debug for FixedExports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.devices.keys()).finish()
    }
}

/// The state of each block of `data`, which begins at `offset`; blocks of one state are one extent.
fn allocation(offset: u64, data: &[u8], extents_max: usize) -> Vec<Extent> {
    let before = usize::try_from(offset % BLOCK as u64).unwrap_or(0);
    let (first, rest) = data.split_at(data.len().min(BLOCK - before));
    let mut extents: Vec<Extent> = Vec::new();
    for block in std::iter::once(first).chain(rest.chunks(BLOCK)) {
        let state = if block.iter().all(|byte| *byte == 0) {
            Allocation::Hole
        } else {
            Allocation::Data
        };
        let len = block.len() as u64;
        if !append(&mut extents, Extent { len, state }, extents_max) {
            break;
        }
    }
    extents
}

/// What counts as a block of its own.
const BLOCK: usize = 4096;

fn range(offset: u64, len: u64) -> Result<Range<usize>, BlockError> {
    let end = offset.checked_add(len).ok_or(BlockError::Invalid)?;
    match (usize::try_from(offset), usize::try_from(end)) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(BlockError::Invalid),
    }
}
