//! Paged causal attention with an online softmax (Dao et al., arXiv 2205.14135; Milakov & Gimelshein,
//! arXiv 1805.02867).
//!
//! A block of the cache holds 16 tokens of each key-value head: keys transposed, `[head_dim][16]`, so that one
//! vector holds one dimension of 16 keys and scores need no sums across lanes; values plainly, `[16][head_dim]`.
//!
//! The context is cut into splits of [`SPLIT`] positions at absolute places. A row's split gives a maximum, a sum
//! and a weighted sum of values; splits are merged in ascending order. So a row's result depends on its own context
//! alone, not on who computes it beside what.

use std::marker::PhantomData;

use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd, exp};
use crate::kv::BLOCK_SIZE;

/// Positions in a split.
const SPLIT: usize = 256;
/// Query vectors (rows times heads of a group) that share each load of keys and values.
const QUERIES: usize = 8;
/// How far ahead keys are asked for.
const BLOCKS_AHEAD: usize = 2;
/// Longest head.
pub(crate) const MAX_HEAD_DIM: usize = 256;

const _: () = assert!(BLOCK_SIZE == LANES);

/// Element of the cache.
pub(crate) trait KvElement: Copy + Send + Sync + 'static {
    /// Size in bytes.
    const BYTES: usize;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    unsafe fn store_one(p: *mut u8, x: f32);
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
    unsafe fn store_one(p: *mut u8, x: f32) {
        // SAFETY: the caller's.
        unsafe { p.cast::<u16>().write(half::f16::from_f32(x).to_bits()) }
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
    unsafe fn store_one(p: *mut u8, x: f32) {
        // SAFETY: the caller's.
        unsafe { p.cast::<f32>().write(x) }
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
    fn head(&self, block: u32, kv_head: usize, element_bytes: usize) -> usize {
        (block as usize * self.num_kv_heads + kv_head) * BLOCK_SIZE * self.head_dim * element_bytes
    }
}

/// Writes one row's keys and values, `[kv_heads, head_dim]` each, to position `position`.
///
/// # Safety
/// The pointers and the block table are valid, and no other thread touches this position.
pub(crate) unsafe fn write_row<E: KvElement>(
    cache: &Cache,
    table: &[u32],
    position: usize,
    k: *const f32,
    v: *const f32,
) {
    let (block_idx, slot) = (position / BLOCK_SIZE, position % BLOCK_SIZE);
    let Some(&block) = table.get(block_idx) else { return };
    for head in 0..cache.num_kv_heads {
        let base = cache.head(block, head, E::BYTES);
        for d in 0..cache.head_dim {
            // SAFETY: by the caller.
            unsafe {
                let at = head * cache.head_dim + d;
                E::store_one(cache.k.add(base + (d * BLOCK_SIZE + slot) * E::BYTES), *k.add(at));
                E::store_one(cache.v.add(base + (slot * cache.head_dim + d) * E::BYTES), *v.add(at));
            }
        }
    }
}

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
    pub(crate) num_heads: usize,
    /// Rows of the step, and the position of the first.
    pub(crate) rows: (usize, usize),
    pub(crate) position: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
}

/// [`Attend`] for an element type.
#[derive(Clone, Copy)]
pub(crate) struct AttendKernel<'a, E> {
    element: PhantomData<E>,
    args: Attend<'a>,
}

/// Runs it.
///
/// # Safety
/// The step's contents have been checked; the cache is not written meanwhile; nobody else writes these rows and heads.
pub(crate) unsafe fn attend(isa: Isa, f16: bool, args: Attend<'_>) {
    // SAFETY: the caller's.
    unsafe {
        if f16 {
            isa.run(AttendKernel::<KvF16> { element: PhantomData, args });
        } else {
            isa.run(AttendKernel::<KvF32> { element: PhantomData, args });
        }
    }
}

/// Query vectors handled together: their state over the splits.
struct State {
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
    values: [[f32; MAX_HEAD_DIM]; QUERIES],
}

impl<E: KvElement> AttendKernel<'_, E> {
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

    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(&self, first: usize) {
        let dim = self.args.cache.head_dim;
        let mut state = State {
            max: [f32::NEG_INFINITY; QUERIES],
            sum: [0.0; QUERIES],
            values: [[0.0; MAX_HEAD_DIM]; QUERIES],
        };
        let mut scores = [[0.0_f32; SPLIT]; N];
        let mut q = [std::ptr::null::<f32>(); N];
        for (i, q) in q.iter_mut().enumerate() {
            let (row, head) = self.query(first + i);
            *q = self.args.q.wrapping_add((row * self.args.num_heads + head) * dim);
        }
        // The first vector starts lowest, the last ends highest.
        let (start, end) = (self.span(first).0, self.span(first + N - 1).1);
        let mut split = start - start % SPLIT;
        while split < end {
            let split_end = end.min(split + SPLIT);
            // SAFETY: the caller's; positions stay below the sequence's context.
            unsafe {
                self.scores::<S, N>(&q, split, split_end, &mut scores);
                for (i, scores) in scores.iter_mut().enumerate() {
                    self.weights::<S>((first, i), (split, split_end), scores, &mut state);
                }
                self.accumulate::<S, N>((split.max(start), split_end), split, &scores, &mut state);
            }
            split += SPLIT;
        }
        for i in 0..N {
            let (row, head) = self.query(first + i);
            let out = self.args.out.wrapping_add((row * self.args.num_heads + head) * dim);
            let inverse = 1.0 / state.sum[i];
            for (d, value) in state.values[i].iter().enumerate().take(dim) {
                // SAFETY: this row and head are ours to write.
                unsafe { *out.add(d) = value * inverse };
            }
        }
    }

    /// Asks for the values of a block, and for the keys of a later one. Where few queries share them memory is what takes
    /// time, and a head's part of a block is too short for the processor to foresee the next.
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, block_idx: usize) {
        let Attend { cache, table, kv_head, .. } = self.args;
        let bytes = BLOCK_SIZE * cache.head_dim * E::BYTES;
        let pieces = [(cache.v, table.get(block_idx)), (cache.k, table.get(block_idx + BLOCKS_AHEAD))];
        for (cached, block) in pieces {
            let Some(&block) = block else { continue };
            let piece = cached.wrapping_add(cache.head(block, kv_head, E::BYTES));
            for line in (0..bytes).step_by(64) {
                // SAFETY: a hint; any address will do.
                unsafe { S::prefetch(piece.wrapping_add(line)) };
            }
        }
    }

    /// Dot products with the keys of the blocks from `split` to `end`, unscaled.
    #[inline(always)]
    unsafe fn scores<S: Simd, const N: usize>(
        &self,
        q: &[*const f32; N],
        split: usize,
        end: usize,
        scores: &mut [[f32; SPLIT]; N],
    ) {
        let Attend { cache, table, kv_head, .. } = self.args;
        for block_idx in split / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE) {
            let Some(&block) = table.get(block_idx) else { return };
            let at = (block_idx * BLOCK_SIZE) - split;
            // SAFETY: the caller's.
            unsafe {
                if N < QUERIES {
                    self.fetch::<S>(block_idx);
                }
                let k = cache.k.add(cache.head(block, kv_head, E::BYTES));
                let mut sums = [S::splat(0.0); N];
                for d in 0..cache.head_dim {
                    let k = E::load::<S>(k.add(d * BLOCK_SIZE * E::BYTES));
                    for (sum, q) in sums.iter_mut().zip(q) {
                        *sum = S::fma(S::splat(*q.add(d)), k, *sum);
                    }
                }
                for (sum, scores) in sums.into_iter().zip(scores.iter_mut()) {
                    S::store(scores.as_mut_ptr().add(at), sum);
                }
            }
        }
    }

    /// Turns scores into weights `exp(scale * score - max)`, 0 outside the vector's span, and rescales its state to
    /// the new maximum.
    #[inline(always)]
    unsafe fn weights<S: Simd>(
        &self,
        (first, i): (usize, usize),
        (split, end): (usize, usize),
        scores: &mut [f32; SPLIT],
        state: &mut State,
    ) {
        let (from, to) = self.span(first + i);
        let len = (end - split).next_multiple_of(LANES);
        let (first_visible, end_visible) =
            (from.saturating_sub(split).min(len), to.saturating_sub(split).min(len));
        scores[..first_visible].fill(f32::NEG_INFINITY);
        scores[end_visible..len].fill(f32::NEG_INFINITY);
        // SAFETY: `len` is at most SPLIT, a whole number of vectors.
        unsafe {
            let p = scores.as_mut_ptr();
            let scale = S::splat(self.args.scale);
            let mut max = S::splat(f32::NEG_INFINITY);
            for at in (0..len).step_by(LANES) {
                let score = S::mul(S::load(p.add(at)), scale);
                S::store(p.add(at), score);
                max = S::max(max, score);
            }
            let old = state.max[i];
            let new = S::reduce_max(max).max(old);
            if new == f32::NEG_INFINITY {
                // Nothing visible in this split.
                p.write_bytes(0, len);
                return;
            }
            let mut sum = S::splat(0.0);
            for at in (0..len).step_by(LANES) {
                let weight = exp::<S>(S::sub(S::load(p.add(at)), S::splat(new)));
                S::store(p.add(at), weight);
                sum = S::add(sum, weight);
            }
            let sum = S::reduce_add(sum);
            if old == f32::NEG_INFINITY {
                state.sum[i] = sum;
            } else {
                let mut factor = [0.0; LANES];
                S::store(factor.as_mut_ptr(), exp::<S>(S::splat(old - new)));
                let factor = factor[0];
                state.sum[i] = state.sum[i] * factor + sum;
                for value in state.values[i].iter_mut().take(self.args.cache.head_dim) {
                    *value *= factor;
                }
            }
            state.max[i] = new;
        }
    }

    /// Adds the weighted values of positions `from..to`.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const N: usize>(
        &self,
        (from, to): (usize, usize),
        split: usize,
        weights: &[[f32; SPLIT]; N],
        state: &mut State,
    ) {
        // SAFETY: the caller's.
        unsafe {
            if N >= 4 {
                for half in 0..N / 4 {
                    self.accumulate_fitting::<S, 4>((from, to), split, weights, state, half * 4);
                }
                for i in N / 4 * 4..N {
                    self.accumulate_fitting::<S, 1>((from, to), split, weights, state, i);
                }
            } else {
                self.accumulate_fitting::<S, N>((from, to), split, weights, state, 0);
            }
        }
    }

    /// [`Self::accumulate_some`] with as many sums as fit the registers.
    #[inline(always)]
    unsafe fn accumulate_fitting<S: Simd, const M: usize>(
        &self,
        span: (usize, usize),
        split: usize,
        weights: &[[f32; SPLIT]],
        state: &mut State,
        first: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            if S::REGISTERS >= 32 || M == 1 {
                self.accumulate_some::<S, M, 4>(span, split, weights, state, first);
            } else if M == 2 {
                self.accumulate_some::<S, M, 2>(span, split, weights, state, first);
            } else {
                self.accumulate_some::<S, M, 1>(span, split, weights, state, first);
            }
        }
    }

    /// `M` query vectors, `V` vectors of a head at once.
    #[inline(always)]
    unsafe fn accumulate_some<S: Simd, const M: usize, const V: usize>(
        &self,
        (from, to): (usize, usize),
        split: usize,
        weights: &[[f32; SPLIT]],
        state: &mut State,
        first: usize,
    ) {
        let Attend { cache, table, kv_head, .. } = self.args;
        let dim = cache.head_dim;
        for d in (0..dim).step_by(V * LANES) {
            let vectors = ((dim - d) / LANES).min(V);
            // SAFETY: the caller's; dimensions are whole vectors, and `MAX_HEAD_DIM` has room for them.
            unsafe {
                let mut sums = [[S::splat(0.0); V]; M];
                for (m, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate().take(vectors) {
                        *sum = S::load(state.values[first + m].as_ptr().add(d + v * LANES));
                    }
                }
                let mut position = from;
                while position < to {
                    let Some(&block) = table.get(position / BLOCK_SIZE) else { return };
                    let v_block = cache.v.add(cache.head(block, kv_head, E::BYTES));
                    let block_end = to.min((position / BLOCK_SIZE + 1) * BLOCK_SIZE);
                    while position < block_end {
                        let p = v_block.add((position % BLOCK_SIZE * dim + d) * E::BYTES);
                        let mut value = [S::splat(0.0); V];
                        if vectors == V {
                            for (v, value) in value.iter_mut().enumerate() {
                                *value = E::load::<S>(p.add(v * LANES * E::BYTES));
                            }
                        } else {
                            for (v, value) in value.iter_mut().enumerate().take(vectors) {
                                *value = E::load::<S>(p.add(v * LANES * E::BYTES));
                            }
                        }
                        for (m, sums) in sums.iter_mut().enumerate() {
                            let weight =
                                S::splat(*weights.get_unchecked(first + m).as_ptr().add(position - split));
                            for (sum, value) in sums.iter_mut().zip(value) {
                                *sum = S::fma(weight, value, *sum);
                            }
                        }
                        position += 1;
                    }
                }
                for (m, sums) in sums.into_iter().enumerate() {
                    for (v, sum) in sums.into_iter().enumerate().take(vectors) {
                        S::store(state.values[first + m].as_mut_ptr().add(d + v * LANES), sum);
                    }
                }
            }
        }
    }
}

impl<E: KvElement> Kernel for AttendKernel<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let num_queries = (self.args.rows.1 - self.args.rows.0) * self.args.group;
        let mut first = 0;
        while first < num_queries {
            // SAFETY: the caller's; never more query vectors than are left.
            unsafe {
                first += match num_queries - first {
                    QUERIES.. => {
                        self.queries::<S, QUERIES>(first);
                        QUERIES
                    }
                    4.. => {
                        self.queries::<S, 4>(first);
                        4
                    }
                    3 => {
                        self.queries::<S, 3>(first);
                        3
                    }
                    2 => {
                        self.queries::<S, 2>(first);
                        2
                    }
                    _ => {
                        self.queries::<S, 1>(first);
                        1
                    }
                };
            }
        }
    }
}
