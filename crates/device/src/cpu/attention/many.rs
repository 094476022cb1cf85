//! Many query vectors at once, as matrix products: tiles of keys and of values are laid out for them, and stay in the
//! first-level cache while all vectors pass. For prompts and for training, where arithmetic is what takes time.

use std::cell::Cell;
use std::ops::Range;

use super::{AttendKernel, KvElement, Running, SPLIT, scale_to};
use crate::cpu::f32_gemm::{Gemm, Onto};
use crate::cpu::isa::Kernel;
use crate::cpu::lines::Lines;
use crate::cpu::simd::{LANES, Simd};
use crate::kv::BLOCK_SIZE;

/// Query vectors that pass together: whole tiles of the product.
const VECTORS: usize = 96;
/// Positions of a tile. With heads of 64, 16 KiB.
const TILE: usize = 64;

/// From a row of scores to the next. A power of two would put all of them in the same few sets of the cache.
const SCORES_ROW: usize = SPLIT + LANES;

/// What lies between the products.
struct Room {
    /// `[VECTORS, head_dim]`: queries.
    q: *mut f32,
    /// `[VECTORS, head_dim]`: sums of values.
    values: *mut f32,
    /// `[VECTORS, SPLIT]`, rows [`SCORES_ROW`] apart: scores, then weights.
    scores: *mut f32,
    /// `[head_dim, TILE]`: keys, or `[TILE, head_dim]`: values.
    tile: *mut f32,
}

thread_local! {
    /// What the last task of this thread had its room in.
    static LINES: Cell<Lines> = const { Cell::new(Lines::NONE) };
}

impl Room {
    /// Parts of `lines`, which become as many as it takes.
    fn of(lines: &mut Lines, head_dim: usize) -> Room {
        let lens = [VECTORS * head_dim, VECTORS * head_dim, VECTORS * SCORES_ROW, TILE * head_dim];
        lines.grow_to(lens.iter().sum());
        let start = lines.as_mut_ptr();
        let after = |parts: usize| start.wrapping_add(lens.iter().take(parts).sum());
        Room { q: start, values: after(1), scores: after(2), tile: after(3) }
    }
}

/// Query vectors of one pass, and the positions that any of them sees.
struct Pass {
    vectors: Range<usize>,
    span: Range<usize>,
}

impl<E: KvElement> AttendKernel<'_, E> {
    /// All query vectors, over their whole spans.
    #[inline(always)]
    pub(super) unsafe fn many<S: Simd>(&self, num_queries: usize) {
        // Taken out and put back: what runs in a closure would not be compiled for this instruction set.
        let mut lines = LINES.take();
        let room = Room::of(&mut lines, self.args.cache.head_dim);
        let mut first = 0;
        while first < num_queries {
            let vectors = first..num_queries.min(first + VECTORS);
            // The first vector starts lowest, the last ends highest.
            let span = self.span(first).0..self.span(vectors.end - 1).1;
            first = vectors.end;
            // SAFETY: the caller's.
            unsafe { self.pass::<S>(&Pass { vectors, span }, &room) };
        }
        LINES.set(lines);
    }

    #[inline(always)]
    unsafe fn pass<S: Simd>(&self, pass: &Pass, room: &Room) {
        let dim = self.args.cache.head_dim;
        let mut softmax = [Running::START; VECTORS];
        // SAFETY: the caller's; rows and heads of these vectors are ours to write.
        unsafe {
            for (n, i) in pass.vectors.clone().enumerate() {
                room.q.add(n * dim).copy_from_nonoverlapping(self.args.q.add(self.vector(i)), dim);
            }
            room.values.write_bytes(0, pass.vectors.len() * dim);
            for split in (pass.span.start - pass.span.start % SPLIT..pass.span.end).step_by(SPLIT) {
                self.split_of_many::<S>(split, pass, room, &mut softmax);
            }
            for ((n, i), softmax) in pass.vectors.clone().enumerate().zip(&softmax) {
                let out = self.args.out.add(self.vector(i));
                scale_to::<S>(room.values.add(n * dim), dim, 1.0 / softmax.sum, out);
                self.report(i, softmax);
            }
        }
    }

    /// The vectors of the pass that see any of the positions, counted from its first.
    #[inline(always)]
    fn seeing(&self, positions: &Range<usize>, pass: &Pass) -> Range<usize> {
        let row_of = |position: usize| position.saturating_sub(self.args.position) * self.args.group;
        let first = row_of(positions.start);
        let end = self.args.window.map_or(usize::MAX, |w| row_of(positions.end - 1 + w));
        let within = |i: usize| i.clamp(pass.vectors.start, pass.vectors.end) - pass.vectors.start;
        within(first)..within(end)
    }

    /// The positions of a split.
    #[inline(always)]
    unsafe fn split_of_many<S: Simd>(
        &self,
        split: usize,
        pass: &Pass,
        room: &Room,
        softmax: &mut [Running; VECTORS],
    ) {
        let dim = self.args.cache.head_dim;
        let end = pass.span.end.min(split + SPLIT);
        let tiles = || (split..end).step_by(TILE).map(|first| first..end.min(first + TILE));
        let len = (end - split).next_multiple_of(LANES);
        // SAFETY: the caller's; positions stay below the sequence's context.
        unsafe {
            for positions in tiles() {
                let seeing = self.seeing(&positions, pass);
                if seeing.is_empty() {
                    continue;
                }
                self.lay_out_keys::<S>(&positions, room.tile);
                let product = Gemm {
                    a: room.q.add(seeing.start * dim),
                    a_row: dim,
                    a_step: 1,
                    b: room.tile,
                    b_row: TILE,
                    c: room.scores.add(seeing.start * SCORES_ROW + positions.start - split),
                    c_row: SCORES_ROW,
                    m: seeing.len(),
                    n: positions.len().next_multiple_of(LANES),
                    k: dim,
                    onto: Onto::Nothing,
                };
                product.run::<S>();
            }
            for ((n, i), softmax) in pass.vectors.clone().enumerate().zip(softmax) {
                let visible = self.visible(i, split, end - split);
                let scores = room.scores.add(n * SCORES_ROW);
                let factor = softmax.weights::<S>(scores, len, visible, self.args.scale);
                if factor != 1.0 {
                    let values = room.values.add(n * dim);
                    scale_to::<S>(values, dim, factor, values);
                }
            }
            for positions in tiles() {
                // What lies before the first position that is seen may be anything.
                let positions = positions.start.max(pass.span.start)..positions.end;
                if positions.is_empty() {
                    continue;
                }
                let seeing = self.seeing(&positions, pass);
                self.lay_out_values::<S>(&positions, room.tile);
                let product = Gemm {
                    a: room.scores.add(seeing.start * SCORES_ROW + positions.start - split),
                    a_row: SCORES_ROW,
                    a_step: 1,
                    b: room.tile,
                    b_row: dim,
                    c: room.values.add(seeing.start * dim),
                    c_row: dim,
                    m: seeing.len(),
                    n: dim,
                    k: positions.len(),
                    onto: Onto::Chain,
                };
                product.run::<S>();
            }
        }
    }

    /// Writes the keys of the blocks that hold `positions`, whose first begins one, as `[head_dim, TILE]`.
    #[inline(always)]
    unsafe fn lay_out_keys<S: Simd>(&self, positions: &Range<usize>, tile: *mut f32) {
        for (i, first) in positions.clone().step_by(BLOCK_SIZE).enumerate() {
            let keys = self.piece(self.args.cache.k, first / BLOCK_SIZE);
            for d in 0..self.args.cache.head_dim {
                // SAFETY: the caller's: the block exists, and a tile holds TILE positions.
                unsafe {
                    let key = E::load::<S>(keys.add(d * BLOCK_SIZE * E::BYTES));
                    S::store(tile.add(d * TILE + i * BLOCK_SIZE), key);
                }
            }
        }
    }

    /// Writes the values of `positions` as `[positions, head_dim]`.
    #[inline(always)]
    unsafe fn lay_out_values<S: Simd>(&self, positions: &Range<usize>, tile: *mut f32) {
        let dim = self.args.cache.head_dim;
        for (i, position) in positions.clone().enumerate() {
            let values = self.piece(self.args.cache.v, position / BLOCK_SIZE);
            for d in (0..dim).step_by(LANES) {
                let at = position % BLOCK_SIZE * dim + d;
                // SAFETY: as above.
                unsafe { S::store(tile.add(i * dim + d), E::load::<S>(values.add(at * E::BYTES))) };
            }
        }
    }
}
