//! Host memory for tensors and weights: zeroed, aligned to a cache line, committed only when touched.
//!
//! Large ranges that are filled ask for huge pages. A step reads all weights once, in many short pieces: with pages of
//! 4 KiB it would spend a third of its time on finding them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{DeviceError, Result};
use crate::tensor::Memory;

const ALIGN: usize = 64;
/// A huge page of x86-64, and of aarch64 with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What [`HostChunks`] takes at once.
const CHUNK_BYTES: usize = 16 << 20;

/// An aligned, zeroed range.
#[derive(Debug)]
pub(crate) struct HostMemory {
    base: *mut u8,
    layout: Layout,
    start: usize,
    len_bytes: usize,
}

// SAFETY: the range is owned; access to its contents is governed by the tensors over it.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    pub(crate) fn new(what: &'static str, len_bytes: usize) -> Result<Arc<Self>> {
        let oom = || DeviceError::OutOfMemory { what, bytes: len_bytes };
        // Asking for the alignment itself would make the allocator clear, and so commit, every page; small
        // alignments are served by fresh pages that are zero already.
        let is_huge = len_bytes >= HUGE_PAGE_BYTES;
        let align = if is_huge { HUGE_PAGE_BYTES } else { ALIGN };
        // A last page that is half used is worth the rest of it.
        let tail = len_bytes % HUGE_PAGE_BYTES;
        let spare = if is_huge && tail >= HUGE_PAGE_BYTES / 2 { HUGE_PAGE_BYTES - tail } else { 0 };
        let padded = len_bytes.max(1).checked_add(align + spare).ok_or_else(oom)?;
        let layout = Layout::from_size_align(padded, 16).map_err(|_| oom())?;
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return Err(oom());
        }
        let start = (base as usize).next_multiple_of(align);
        let memory = HostMemory { base, layout, start, len_bytes };
        #[cfg(target_os = "linux")]
        if is_huge {
            // SAFETY: the range is ours and the advice leaves its contents alone. A system without huge pages refuses,
            // which costs nothing but the speed.
            let _ = unsafe {
                let whole = (len_bytes + spare) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
                rustix::mm::madvise(memory.ptr().cast(), whole, rustix::mm::Advice::LinuxHugepage)
            };
        }
        Ok(Arc::new(memory))
    }

    pub(crate) fn ptr(&self) -> *mut u8 {
        self.base.wrapping_add(self.start - self.base as usize)
    }
}

/// A part of a [`HostMemory`] that nothing else refers to.
#[derive(Debug)]
pub(crate) struct HostRange {
    memory: Arc<HostMemory>,
    offset: usize,
    len_bytes: usize,
}

impl HostRange {
    pub(crate) fn ptr(&self) -> *const u8 {
        self.memory.ptr().wrapping_add(self.offset)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: within the memory, initialised (zeroed), and written through `bytes_mut` alone.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len_bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`; ranges do not overlap and cannot be cloned, and this one is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().cast_mut(), self.len_bytes) }
    }
}

/// Memory for what is small, comes together and goes together: the weights of a model. Large chunks are cut up in turn,
/// so that they lie on huge pages; a chunk is freed when the last range of it is.
#[derive(Debug, Default)]
pub(crate) struct HostChunks {
    /// The chunk that is being cut, and how far.
    current: Mutex<Option<(Arc<HostMemory>, usize)>>,
}

impl HostChunks {
    /// A zeroed range.
    pub(crate) fn take(&self, what: &'static str, len_bytes: usize) -> Result<HostRange> {
        if len_bytes > CHUNK_BYTES / 4 {
            return Ok(HostRange { memory: HostMemory::new(what, len_bytes)?, offset: 0, len_bytes });
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, used) = match current.take() {
            Some((memory, used)) if used + len_bytes <= CHUNK_BYTES => (memory, used),
            _ => (HostMemory::new(what, CHUNK_BYTES)?, 0),
        };
        *current = Some((memory.clone(), (used + len_bytes).next_multiple_of(ALIGN)));
        Ok(HostRange { memory, offset: used, len_bytes })
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.base, self.layout) };
    }
}

impl Memory for HostMemory {
    fn addr(&self) -> usize {
        self.start
    }

    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_chunk_are_zeroed_aligned_and_apart() {
        let chunks = HostChunks::default();
        let lens = [0, 1, 63, 64, 65, 3 << 20, 4 << 20, 5 << 20, 4 << 20, 4 << 20, 100, 2 << 20];
        let mut ranges: Vec<HostRange> =
            lens.iter().map(|&len| chunks.take("a test", len).unwrap()).collect();
        for (i, range) in ranges.iter_mut().enumerate() {
            assert_eq!(range.bytes().len(), lens[i]);
            assert!(range.bytes().iter().all(|&b| b == 0) && (range.ptr() as usize).is_multiple_of(ALIGN));
            range.bytes_mut().fill(i as u8 + 1);
        }
        for (i, range) in ranges.iter().enumerate() {
            assert!(range.bytes().iter().all(|&b| b == i as u8 + 1), "range {i} was written by another");
        }
    }

    #[test]
    fn a_chunk_goes_with_its_last_range() {
        let chunks = HostChunks::default();
        let (a, b) = (chunks.take("a test", 100).unwrap(), chunks.take("a test", 100).unwrap());
        let memory = Arc::downgrade(&a.memory);
        drop((chunks, a));
        assert!(memory.upgrade().is_some());
        drop(b);
        assert!(memory.upgrade().is_none());
    }
}
