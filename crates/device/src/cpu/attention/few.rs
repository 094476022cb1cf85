//! A few query vectors at once, straight from the cache: for decoding, where reading it is what takes time.

use super::{Attend, AttendKernel, BLOCKS_AHEAD, KvElement, Running, SPLIT, scale_to};
use crate::cpu::lines::LINE_BYTES;
use crate::cpu::simd::{LANES, Simd};
use crate::kv::BLOCK_SIZE;

/// Query vectors that share each load of keys and values.
const QUERIES: usize = 8;

/// Query vectors handled together: their state over the splits.
struct State<const N: usize> {
    softmax: [Running; N],
    q: [*const f32; N],
    /// Where the values are summed: the rows of the output.
    values: [*mut f32; N],
}

impl<E: KvElement> AttendKernel<'_, E> {
    /// All query vectors, over their whole spans.
    #[inline(always)]
    pub(super) unsafe fn few<S: Simd>(&self, num_queries: usize) {
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

    /// `N` query vectors from `first` on, over their whole span.
    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(&self, first: usize) {
        let dim = self.args.cache.head_dim;
        let mut state = State {
            softmax: [Running::START; N],
            q: [std::ptr::null(); N],
            values: [std::ptr::null_mut(); N],
        };
        for i in 0..N {
            let at = self.vector(first + i);
            state.q[i] = self.args.q.wrapping_add(at);
            state.values[i] = self.args.out.wrapping_add(at);
            // SAFETY: this row and head are ours to write.
            unsafe { state.values[i].write_bytes(0, dim) };
        }
        // The first vector starts lowest, the last ends highest.
        let (start, end) = (self.span(first).0, self.span(first + N - 1).1);
        // SAFETY: the caller's; positions stay below the sequence's context.
        unsafe {
            for split in (start - start % SPLIT..end).step_by(SPLIT) {
                self.split::<S, N>(first, (start, split, end.min(split + SPLIT)), &mut state);
            }
            for (i, softmax) in state.softmax.iter().enumerate() {
                scale_to::<S>(state.values[i], dim, 1.0 / softmax.sum, state.values[i]);
                self.report(first + i, softmax);
            }
        }
    }

    /// The positions from `split`, or from `start`, to `end`.
    #[inline(always)]
    unsafe fn split<S: Simd, const N: usize>(
        &self,
        first: usize,
        (start, split, end): (usize, usize, usize),
        state: &mut State<N>,
    ) {
        let len = (end - split).next_multiple_of(LANES);
        let mut scores = [[0.0_f32; SPLIT]; N];
        // SAFETY: the caller's.
        unsafe {
            self.scores::<S, N>(&state.q, split, end, &mut scores);
            for (i, scores) in scores.iter_mut().enumerate() {
                let visible = self.visible(first + i, split, end - split);
                let factor = state.softmax[i].weights::<S>(scores.as_mut_ptr(), len, visible, self.scaling());
                if factor != 1.0 {
                    scale_to::<S>(state.values[i], self.args.cache.head_dim, factor, state.values[i]);
                }
            }
            self.accumulate::<S, N>((split.max(start), end), split, &scores, &state.values);
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
