//! An owned buffer aligned for direct I/O.
//!
//! Invariant: all `capacity` bytes are initialised from the first moment on, so a length can be set freely.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::PAGE_BYTES;

/// Bytes at an address that is a multiple of [`PAGE_BYTES`].
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    /// Invariant: `len <= capacity`.
    len: usize,
    /// Invariant: a multiple of `PAGE_BYTES`, at least one page.
    capacity: usize,
}

// SAFETY: the buffer owns its memory alone and hands out references by the borrow rules only, as `Vec<u8>` does;
// safe code cannot express the alignment that direct I/O needs.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references give shared access to plain bytes only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let capacity = len.max(1).next_multiple_of(PAGE_BYTES);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is at least one page, so never zero. No safe allocation is page-aligned.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        Self { ptr, len, capacity }
    }

    /// A copy of `bytes`, followed by zeroes up to a whole number of pages.
    #[must_use]
    pub fn padded_from(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len().next_multiple_of(PAGE_BYTES));
        buf[..bytes.len()].copy_from_slice(bytes);
        buf
    }

    /// Bytes that `set_len` can reach.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length; bytes that come into view are whatever was there, always initialised.
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "length {len} above capacity {}",
            self.capacity
        );
        self.len = len;
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, PAGE_BYTES)
            .expect("a whole number of pages below isize::MAX")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` bytes at `ptr` are allocated and initialised, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity)
    }
}
