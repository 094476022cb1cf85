//! Paged causal attention with an online softmax (Dao et al., arXiv 2205.14135; Milakov & Gimelshein,
//! arXiv 1805.02867).
//!
//! The context is cut into splits of [`SPLIT`] positions at absolute places. A row's split gives a maximum, a sum
//! and a weighted sum of values; splits are merged in ascending order. So a row's result depends on its own context
//! alone, not on who computes it beside what.

use std::marker::PhantomData;

use super::cache::{Cache, KvElement, KvF16, KvF32};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd, exp};
use crate::kv::BLOCK_SIZE;

/// Positions in a split.
const SPLIT: usize = 256;
/// Query vectors (rows times heads of a group) that share each load of keys and values.
const QUERIES: usize = 8;
/// How far ahead keys are asked for.
const BLOCKS_AHEAD: usize = 2;
/// Bytes that are asked for at once.
const LINE_BYTES: usize = 64;
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
            isa.run(AttendKernel::<KvF16> { element: PhantomData, args, next });
        } else {
            isa.run(AttendKernel::<KvF32> { element: PhantomData, args, next });
        }
    }
}

/// Query vectors handled together: their state over the splits.
struct State<const N: usize> {
    max: [f32; N],
    sum: [f32; N],
    q: [*const f32; N],
    /// Where the values are summed: the rows of the output.
    values: [*mut f32; N],
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

    /// `N` query vectors from `first` on, over their whole span.
    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(&self, first: usize) {
        // SAFETY: the caller's.
        unsafe {
            let mut state = self.begin::<N>(first);
            let (start, end) = (self.span(first).0, self.span(first + N - 1).1);
            let mut split = start - start % SPLIT;
            while split < end {
                self.split::<S, N>(first, split, &mut state);
                split += SPLIT;
            }
            self.end::<S, N>(first, &state);
        }
    }

    /// As many whole groups of query vectors as there are, split by split, so that all of them find a split's keys and
    /// values in the cache. Gives the number of vectors.
    #[inline(always)]
    unsafe fn groups<S: Simd>(&self, num_queries: usize) -> usize {
        let whole = num_queries - num_queries % QUERIES;
        // SAFETY: the caller's.
        unsafe {
            let mut states = Vec::with_capacity(whole / QUERIES);
            for first in (0..whole).step_by(QUERIES) {
                states.push(self.begin::<QUERIES>(first));
            }
            let (start, end) = (self.span(0).0, self.span(whole - 1).1);
            let mut split = start - start % SPLIT;
            while split < end {
                for (group, state) in states.iter_mut().enumerate() {
                    self.split::<S, QUERIES>(group * QUERIES, split, state);
                }
                split += SPLIT;
            }
            for (group, state) in states.iter().enumerate() {
                self.end::<S, QUERIES>(group * QUERIES, state);
            }
        }
        whole
    }

    /// The state before the first split.
    #[inline(always)]
    unsafe fn begin<const N: usize>(&self, first: usize) -> State<N> {
        let dim = self.args.cache.head_dim;
        let mut state = State {
            max: [f32::NEG_INFINITY; N],
            sum: [0.0; N],
            q: [std::ptr::null(); N],
            values: [std::ptr::null_mut(); N],
        };
        for i in 0..N {
            let (row, head) = self.query(first + i);
            let at = (row * self.args.num_heads + head) * dim;
            state.q[i] = self.args.q.wrapping_add(at);
            state.values[i] = self.args.out.wrapping_add(at);
            // SAFETY: this row and head are ours to write.
            unsafe { state.values[i].write_bytes(0, dim) };
        }
        state
    }

    /// The positions of a split that the vectors from `first` on see, if there are any.
    #[inline(always)]
    unsafe fn split<S: Simd, const N: usize>(&self, first: usize, split: usize, state: &mut State<N>) {
        // The first vector starts lowest, the last ends highest.
        let (start, end) = (self.span(first).0, self.span(first + N - 1).1);
        let split_end = end.min(split + SPLIT);
        if split >= end || split_end <= start {
            return;
        }
        let mut scores = [[0.0_f32; SPLIT]; N];
        // SAFETY: the caller's; positions stay below the sequence's context.
        unsafe {
            self.scores::<S, N>(&state.q, split, split_end, &mut scores);
            for (i, scores) in scores.iter_mut().enumerate() {
                self.weights::<S, N>((first, i), (split, split_end), scores, state);
            }
            self.accumulate::<S, N>((split.max(start), split_end), split, &scores, &state.values);
        }
    }

    /// What is left to do after the last split.
    #[inline(always)]
    unsafe fn end<S: Simd, const N: usize>(&self, first: usize, state: &State<N>) {
        for i in 0..N {
            // SAFETY: this row and head are ours to write.
            unsafe {
                rescale::<S>(state.values[i], self.args.cache.head_dim, 1.0 / state.sum[i]);
                if !self.args.lse.is_null() {
                    let (row, head) = self.query(first + i);
                    *self.args.lse.add(row * self.args.num_heads + head) = state.max[i] + state.sum[i].ln();
                }
            }
        }
    }

    /// Asks for the first keys, some time before they are used.
    #[inline(always)]
    pub(crate) unsafe fn fetch_first<S: Simd>(&self) {
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

    /// Dot products with the keys of the blocks from `split` to `end`, unscaled.
    #[inline(always)]
    unsafe fn scores<S: Simd, const N: usize>(
        &self,
        q: &[*const f32; N],
        split: usize,
        end: usize,
        scores: &mut [[f32; SPLIT]; N],
    ) {
        let mut block_idx = split / BLOCK_SIZE;
        let end_idx = end.div_ceil(BLOCK_SIZE);
        // Few chains would wait for their own sums: two blocks make twice as many. And with many queries two blocks share
        // the loads of these, where the registers hold the sums.
        while (N < QUERIES || S::REGISTERS >= 32) && block_idx + 2 <= end_idx {
            // SAFETY: the caller's.
            unsafe { self.block_scores::<S, N, 2>(q, block_idx, split, scores) };
            block_idx += 2;
        }
        while block_idx < end_idx {
            // SAFETY: the caller's.
            unsafe { self.block_scores::<S, N, 1>(q, block_idx, split, scores) };
            block_idx += 1;
        }
    }

    /// [`Self::scores`] of `B` blocks from `block_idx` on. Asks for their values and for keys of later blocks, line by line:
    /// where few queries share them memory is what takes time, and a head's part of a block is too short for the
    /// processor to foresee the next.
    #[inline(always)]
    unsafe fn block_scores<S: Simd, const N: usize, const B: usize>(
        &self,
        q: &[*const f32; N],
        block_idx: usize,
        split: usize,
        scores: &mut [[f32; SPLIT]; N],
    ) {
        let cache = self.args.cache;
        let (mut keys, mut coming) = ([std::ptr::null(); B], [[std::ptr::null(); 2]; B]);
        for (b, (keys, coming)) in keys.iter_mut().zip(&mut coming).enumerate() {
            let idx = block_idx + b;
            *keys = self.piece(cache.k, idx);
            *coming = [self.piece(cache.v, idx), self.piece(cache.k, idx + BLOCKS_AHEAD)];
        }
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; B];
            for d in 0..cache.head_dim {
                let at = d * BLOCK_SIZE * E::BYTES;
                if N < QUERIES && at.is_multiple_of(LINE_BYTES) {
                    for piece in coming.as_flattened() {
                        S::prefetch(piece.wrapping_add(at));
                    }
                }
                let mut k = [S::splat(0.0); B];
                for (k, keys) in k.iter_mut().zip(keys) {
                    *k = E::load::<S>(keys.add(at));
                }
                for (n, q) in q.iter().enumerate() {
                    let q = S::splat(*q.add(d));
                    for (sums, k) in sums.iter_mut().zip(k) {
                        sums[n] = S::fma(q, k, sums[n]);
                    }
                }
            }
            for (b, sums) in sums.into_iter().enumerate() {
                for (sum, scores) in sums.into_iter().zip(scores.iter_mut()) {
                    S::store(scores.as_mut_ptr().add((block_idx + b) * BLOCK_SIZE - split), sum);
                }
            }
        }
    }

    /// Turns scores into weights `exp(scale * score - max)`, 0 outside the vector's span, and rescales its state to
    /// the new maximum.
    #[inline(always)]
    unsafe fn weights<S: Simd, const N: usize>(
        &self,
        (first, i): (usize, usize),
        (split, end): (usize, usize),
        scores: &mut [f32; SPLIT],
        state: &mut State<N>,
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
                rescale::<S>(state.values[i], self.args.cache.head_dim, factor);
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
        values: &[*mut f32; N],
    ) {
        // SAFETY: the caller's.
        unsafe {
            if N >= 4 {
                for half in 0..N / 4 {
                    self.accumulate_fitting::<S, 4>((from, to), split, weights, values, half * 4);
                }
                for i in N / 4 * 4..N {
                    self.accumulate_fitting::<S, 1>((from, to), split, weights, values, i);
                }
            } else {
                self.accumulate_fitting::<S, N>((from, to), split, weights, values, 0);
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
        values: &[*mut f32],
        first: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            if S::REGISTERS >= 32 || M == 1 {
                self.accumulate_some::<S, M, 4>(span, split, weights, values, first);
            } else if M == 2 {
                self.accumulate_some::<S, M, 2>(span, split, weights, values, first);
            } else {
                self.accumulate_some::<S, M, 1>(span, split, weights, values, first);
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
        values: &[*mut f32],
        first: usize,
    ) {
        let Attend { cache, table, kv_head, .. } = self.args;
        let dim = cache.head_dim;
        for d in (0..dim).step_by(V * LANES) {
            let vectors = ((dim - d) / LANES).min(V);
            // SAFETY: the caller's; dimensions are whole vectors.
            unsafe {
                let mut sums = [[S::splat(0.0); V]; M];
                for (m, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate().take(vectors) {
                        *sum = S::load(values.get_unchecked(first + m).add(d + v * LANES));
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
                        S::store(values.get_unchecked(first + m).add(d + v * LANES), sum);
                    }
                }
            }
        }
    }
}

/// Multiplies `len` values, whole vectors, by a factor.
#[inline(always)]
unsafe fn rescale<S: Simd>(values: *mut f32, len: usize, factor: f32) {
    for at in (0..len).step_by(LANES) {
        // SAFETY: the caller's.
        unsafe { S::store(values.add(at), S::mul(S::load(values.add(at)), S::splat(factor))) };
    }
}

impl<E: KvElement> Kernel for AttendKernel<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if let Some(args) = self.next {
            // SAFETY: a hint.
            unsafe { Self { args, next: None, ..self }.fetch_first::<S>() };
        }
        let num_queries = (self.args.rows.1 - self.args.rows.0) * self.args.group;
        let mut first = 0;
        if num_queries >= 2 * QUERIES {
            // SAFETY: the caller's.
            first = unsafe { self.groups::<S>(num_queries) };
        }
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
