//! Scratch memory of a context: a stack of allocations in a range that never grows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{DeviceError, Result};
use crate::tensor::{Life, Memory, Stamps, Tensor};
use crate::{DType, Shape};

/// Allocations that may be alive at once in one arena.
const MAX_LIVE: usize = 1024;
/// Alignment of every allocation: a cache line, and the widest vector register.
pub(crate) const ALIGN: usize = 64;

/// An allocation that is in use.
struct Live {
    stamp: u64,
    offset_bytes: usize,
}

/// The stack.
pub(crate) struct Arena {
    memory: Arc<dyn Memory>,
    stamps: Arc<Stamps>,
    live: Vec<Live>,
    used_bytes: usize,
    next_stamp: u64,
    peak_bytes: usize,
}

impl Arena {
    pub(crate) fn new(memory: Arc<dyn Memory>) -> Self {
        let stamps = Arc::new(Stamps((0..MAX_LIVE).map(|_| AtomicU64::new(0)).collect()));
        Arena { memory, stamps, live: Vec::new(), used_bytes: 0, next_stamp: 1, peak_bytes: 0 }
    }

    pub(crate) fn capacity_bytes(&self) -> usize {
        self.memory.len_bytes()
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Most bytes ever in use at once.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// Allocations in use: what [`Arena::release_to`] takes.
    pub(crate) fn mark(&self) -> usize {
        self.live.len()
    }

    /// An uninitialised tensor on top of the stack.
    pub(crate) fn alloc(&mut self, shape: Shape, dtype: DType) -> Result<Tensor> {
        let wanted = shape.numel().saturating_mul(dtype.size_bytes());
        let offset_bytes = self.used_bytes.next_multiple_of(ALIGN);
        let end = offset_bytes.saturating_add(wanted);
        let slot = self.live.len();
        if end > self.memory.len_bytes() || slot >= MAX_LIVE {
            return Err(DeviceError::ArenaFull {
                capacity_bytes: self.memory.len_bytes(),
                used_bytes: self.used_bytes,
                wanted_bytes: wanted,
            });
        }
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        if let Some(s) = self.stamps.0.get(slot) {
            s.store(stamp, Ordering::Relaxed);
        }
        self.live.push(Live { stamp, offset_bytes: self.used_bytes });
        self.used_bytes = end;
        self.peak_bytes = self.peak_bytes.max(end);
        let life = Life::Scratch { stamps: self.stamps.clone(), slot, stamp };
        Ok(Tensor { memory: self.memory.clone(), offset_bytes, shape, dtype, life })
    }

    /// A tensor at a given place of an empty arena: where a recorded step left its result.
    pub(crate) fn alloc_at(&mut self, offset_bytes: usize, shape: Shape, dtype: DType) -> Result<Tensor> {
        self.used_bytes = offset_bytes;
        self.alloc(shape, dtype)
    }

    /// Releases all but the first `mark` allocations.
    pub(crate) fn release_to(&mut self, mark: usize) {
        while self.live.len() > mark {
            if let Some(live) = self.live.pop() {
                debug_assert!(self.stamps.is_live(self.live.len(), live.stamp));
                self.used_bytes = live.offset_bytes;
            }
            if let Some(s) = self.stamps.0.get(self.live.len()) {
                s.store(0, Ordering::Relaxed);
            }
        }
        // The result of a replay is all there is, and does not begin where the arena does.
        if self.live.is_empty() {
            self.used_bytes = 0;
        }
    }
}
