//! Paged causal attention with an online softmax (Dao et al., arXiv 2205.14135; Milakov & Gimelshein,
//! arXiv 1805.02867).
//!
//! The context is cut into splits of [`SPLIT`] positions at absolute places. A row's split gives a maximum, a sum
//! and a weighted sum of values; splits are merged in ascending order. So a row's result depends on its own context
//! alone, not on who computes it beside what: every score is one chain of fused multiply-adds over the head's
//! dimensions, every sum of values one over the split's positions, few queries (`few`) or many (`many`) at a time.

mod few;
mod many;

use std::marker::PhantomData;
use std::ops::Range;

use super::cache::{Cache, KvElement, KvF16, KvF32};
use super::isa::{Isa, Kernel};
use super::lines::LINE_BYTES;
use super::rowwise::capped;
use super::simd::{LANES, Simd, exp};
use crate::kv::BLOCK_SIZE;

/// Positions in a split.
const SPLIT: usize = 256;
/// From so many query vectors (rows times heads of a group) on, keys and values are first laid out for a matrix product.
const MANY: usize = 24;
/// How far ahead keys are asked for.
const BLOCKS_AHEAD: usize = 2;

/// Attention of some adjacent rows of one sequence and the query heads of one key-value head.
#[derive(Clone, Copy)]
pub(crate) struct Attend<'a> {
    pub(crate) cache: Cache,
    pub(crate) table: &'a [u32],
    pub(crate) kv_head: usize,
    /// Query heads per key-value head.
    pub(crate) group: usize,
    /// `[rows, heads, head_dim]`, at row 0 of the step.
    pub(crate) q: *const f32,
    pub(crate) out: *mut f32,
    /// `[rows, heads]`, at row 0 of the step, or null.
    pub(crate) lse: *mut f32,
    pub(crate) num_heads: usize,
    /// Rows of the step, and the position of the first.
    pub(crate) rows: (usize, usize),
    pub(crate) position: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) softcap: Option<f32>,
}

/// [`Attend`] for an element type.
#[derive(Clone, Copy)]
pub(crate) struct AttendKernel<'a, E> {
    element: PhantomData<E>,
    args: Attend<'a>,
    /// What this thread will probably do next.
    next: Option<Attend<'a>>,
}

/// Runs it, and asks for the first keys of `next`.
///
/// # Safety
/// The step's contents have been checked; the cache is not written meanwhile; nobody else writes these rows and heads.
pub(crate) unsafe fn attend<'a>(isa: Isa, f16: bool, args: Attend<'a>, next: Option<Attend<'a>>) {
    // SAFETY: the caller's.
    unsafe {
        if f16 {
            AttendKernel::<KvF16> { element: PhantomData, args, next }.attend(isa);
        } else {
            AttendKernel::<KvF32> { element: PhantomData, args, next }.attend(isa);
        }
    }
}

impl<E: KvElement> AttendKernel<'_, E> {
    unsafe fn attend(self, isa: Isa) {
        // SAFETY: the caller's.
        unsafe { if self.num_queries() < MANY { isa.run(self) } else { self.many(isa) } }
    }

    #[inline(always)]
    fn num_queries(&self) -> usize {
        (self.args.rows.1 - self.args.rows.0) * self.args.group
    }

    /// Step row and head of query vector `i`.
    #[inline(always)]
    fn query(&self, i: usize) -> (usize, usize) {
        (self.args.rows.0 + i / self.args.group, self.args.kv_head * self.args.group + i % self.args.group)
    }

    /// Positions that query vector `i` sees.
    #[inline(always)]
    fn span(&self, i: usize) -> (usize, usize) {
        let end = self.args.position + i / self.args.group + 1;
        (self.args.window.map_or(0, |w| end.saturating_sub(w)), end)
    }

    /// What the softmax' denominator was, for whoever asked.
    #[inline(always)]
    unsafe fn report(&self, i: usize, softmax: &Running) {
        if !self.args.lse.is_null() {
            let (row, head) = self.query(i);
            // SAFETY: this row and head are ours to write.
            unsafe { *self.args.lse.add(row * self.args.num_heads + head) = softmax.lse() };
        }
    }

    /// What is done to scores.
    #[inline(always)]
    fn scaling(&self) -> (f32, Option<f32>) {
        (self.args.scale, self.args.softcap)
    }

    /// Positions from `split` on that query vector `i` sees, counted from there, below `len`.
    #[inline(always)]
    fn visible(&self, i: usize, split: usize, len: usize) -> Range<usize> {
        let (from, to) = self.span(i);
        from.saturating_sub(split).min(len)..to.saturating_sub(split).min(len)
    }

    /// Offset of query vector `i` in `q` and in `out`.
    #[inline(always)]
    fn vector(&self, i: usize) -> usize {
        let (row, head) = self.query(i);
        (row * self.args.num_heads + head) * self.args.cache.head_dim
    }

    /// Asks for the first keys, some time before they are used.
    #[inline(always)]
    unsafe fn fetch_first<S: Simd>(&self) {
        let first = self.span(0).0 / BLOCK_SIZE;
        for block_idx in first..first + BLOCKS_AHEAD {
            let keys = self.piece(self.args.cache.k, block_idx);
            for line in (0..BLOCK_SIZE * self.args.cache.head_dim * E::BYTES).step_by(LINE_BYTES) {
                // SAFETY: a hint; any address will do.
                unsafe { S::prefetch(keys.wrapping_add(line)) };
            }
        }
    }

    /// The head's part of a block of the sequence, of its keys or of its values; of some block beyond the table.
    #[inline(always)]
    fn piece(&self, cached: *const u8, block_idx: usize) -> *const u8 {
        let Attend { cache, table, kv_head, .. } = self.args;
        let block = table.get(block_idx).copied().unwrap_or_default();
        cached.wrapping_add(cache.head(block, kv_head, E::BYTES))
    }
}

/// A query vector's softmax so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl Running {
    const START: Running = Running { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Turns a split's scores into weights `exp(score - max)`, of the `len` positions (whole vectors) those that are not
    /// visible into 0; scores are multiplied by `scale` and bounded by `softcap`. Gives the factor that takes sums of earlier
    /// splits to the new maximum.
    #[inline(always)]
    unsafe fn weights<S: Simd>(
        &mut self,
        scores: *mut f32,
        len: usize,
        visible: Range<usize>,
        (scale, softcap): (f32, Option<f32>),
    ) -> f32 {
        let (first, end) = (visible.start / LANES * LANES, visible.end.next_multiple_of(LANES));
        if visible.is_empty() {
            // SAFETY: the caller's.
            unsafe { clear(scores, 0, len) };
            return 1.0;
        }
        // SAFETY: the caller's; all vectors are within `len`.
        unsafe {
            let mut scale = scale;
            if let Some(cap) = softcap {
                for at in (first..end).step_by(LANES) {
                    let score = S::mul(S::load(scores.add(at)), S::splat(scale));
                    S::store(scores.add(at), capped::<S>(score, cap));
                }
                scale = 1.0;
            }
            for at in (first..visible.start).chain(visible.end..end) {
                *scores.add(at) = f32::NEG_INFINITY;
            }
            let scale = S::splat(scale);
            let mut max = S::splat(f32::NEG_INFINITY);
            for at in (first..end).step_by(LANES) {
                let score = S::mul(S::load(scores.add(at)), scale);
                S::store(scores.add(at), score);
                max = S::max(max, score);
            }
            let old = self.max;
            let new = S::reduce_max(max).max(old);
            if new == f32::NEG_INFINITY {
                clear(scores, 0, len);
                return 1.0;
            }
            let mut sum = S::splat(0.0);
            for at in (first..end).step_by(LANES) {
                let weight = exp::<S>(S::sub(S::load(scores.add(at)), S::splat(new)));
                S::store(scores.add(at), weight);
                sum = S::add(sum, weight);
            }
            clear(scores, 0, first);
            clear(scores, end, len);
            let sum = S::reduce_add(sum);
            self.max = new;
            if old == f32::NEG_INFINITY {
                self.sum = sum;
                return 1.0;
            }
            let mut factor = [0.0; LANES];
            S::store(factor.as_mut_ptr(), exp::<S>(S::splat(old - new)));
            let factor = factor[0];
            self.sum = self.sum * factor + sum;
            factor
        }
    }

    /// The logarithm of the softmax' denominator.
    fn lse(&self) -> f32 {
        self.max + self.sum.ln()
    }
}

/// Writes zeros to `from..to`, if that is anything.
#[inline(always)]
unsafe fn clear(values: *mut f32, from: usize, to: usize) {
    if from < to {
        // SAFETY: the caller's.
        unsafe { values.add(from).write_bytes(0, to - from) };
    }
}

/// Writes `factor` times `len` values, whole vectors, to `out`, which may be `values`.
#[inline(always)]
unsafe fn scale_to<S: Simd>(values: *const f32, len: usize, factor: f32, out: *mut f32) {
    for at in (0..len).step_by(LANES) {
        // SAFETY: the caller's.
        unsafe { S::store(out.add(at), S::mul(S::load(values.add(at)), S::splat(factor))) };
    }
}

impl<E: KvElement> Kernel for AttendKernel<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if let Some(args) = self.next {
            // SAFETY: a hint.
            unsafe { Self { args, next: None, ..self }.fetch_first::<S>() };
        }
        // SAFETY: the caller's.
        unsafe { self.few::<S>(self.num_queries()) };
    }
}
