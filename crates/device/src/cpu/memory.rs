//! Host memory for tensors and weights: zeroed, aligned to a cache line, committed only when touched.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

use crate::error::{DeviceError, Result};
use crate::tensor::Memory;

const ALIGN: usize = 64;

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
        let padded = len_bytes.max(1).checked_add(ALIGN).ok_or_else(oom)?;
        let layout = Layout::from_size_align(padded, 16).map_err(|_| oom())?;
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return Err(oom());
        }
        let start = (base as usize).next_multiple_of(ALIGN);
        Ok(Arc::new(HostMemory { base, layout, start, len_bytes }))
    }

    pub(crate) fn ptr(&self) -> *mut u8 {
        self.base.wrapping_add(self.start - self.base as usize)
    }

    /// The whole range, while it is being filled by its only owner.
    pub(crate) fn bytes_mut(this: &mut Arc<Self>) -> Option<&mut [u8]> {
        let memory = Arc::get_mut(this)?;
        // SAFETY: we are the only owner, and the range is initialised (zeroed).
        Some(unsafe { std::slice::from_raw_parts_mut(memory.ptr(), memory.len_bytes) })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: initialised; used only for weights, which nobody writes once they are shared.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len_bytes) }
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
