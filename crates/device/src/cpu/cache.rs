//! The blocks of the key-value cache.
//!
//! A block holds 16 tokens of each key-value head: keys transposed, `[head_dim][16]`, so that one vector holds one
//! dimension of 16 keys and scores need no sums across lanes; values plainly, `[16][head_dim]`.

use std::marker::PhantomData;

use super::isa::Kernel;
use super::simd::{LANES, Simd};
use crate::kv::BLOCK_SIZE;

const _: () = assert!(BLOCK_SIZE == LANES);

/// Element of the cache.
pub(crate) trait KvElement: Copy + Send + Sync + 'static {
    /// Size in bytes.
    const BYTES: usize;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// 16 elements.
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F);
}

/// binary16.
#[derive(Clone, Copy)]
pub(crate) struct KvF16;
/// binary32.
#[derive(Clone, Copy)]
pub(crate) struct KvF32;

impl KvElement for KvF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store_f16(p.cast(), x) }
    }
}

impl KvElement for KvF32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store(p.cast(), x) }
    }
}

/// One layer's cache and the heads in it.
#[derive(Clone, Copy)]
pub(crate) struct Cache {
    pub(crate) k: *mut u8,
    pub(crate) v: *mut u8,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Cache {
    /// Byte offset of a head of a block.
    #[inline(always)]
    pub(crate) fn head(&self, block: u32, kv_head: usize, element_bytes: usize) -> usize {
        (block as usize * self.num_kv_heads + kv_head) * BLOCK_SIZE * self.head_dim * element_bytes
    }
}

/// Writes one row's keys and values, `[kv_heads, head_dim]` each, to position `position`.
#[derive(Clone, Copy)]
pub(crate) struct WriteRow<'a, E> {
    pub(crate) element: PhantomData<E>,
    pub(crate) cache: Cache,
    pub(crate) table: &'a [u32],
    pub(crate) position: usize,
    pub(crate) k: *const f32,
    pub(crate) v: *const f32,
}

impl<E: KvElement> Kernel for WriteRow<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { cache, table, position, k, v, .. } = self;
        let (block_idx, slot) = (position / BLOCK_SIZE, position % BLOCK_SIZE);
        let Some(&block) = table.get(block_idx) else { return };
        for head in 0..cache.num_kv_heads {
            let base = cache.head(block, head, E::BYTES);
            for d in (0..cache.head_dim).step_by(LANES) {
                let at = head * cache.head_dim + d;
                // SAFETY: the caller's: pointers and block table are valid, and nobody else touches this position.
                unsafe {
                    let value = cache.v.add(base + (slot * cache.head_dim + d) * E::BYTES);
                    E::store::<S>(value, S::load(v.add(at)));
                    let mut keys = [0_u8; LANES * size_of::<f32>()];
                    E::store::<S>(keys.as_mut_ptr(), S::load(k.add(at)));
                    for i in 0..LANES {
                        let to = cache.k.add(base + ((d + i) * BLOCK_SIZE + slot) * E::BYTES);
                        to.copy_from_nonoverlapping(keys.as_ptr().add(i * E::BYTES), E::BYTES);
                    }
                }
            }
        }
    }
}
