//! Many query vectors at once, as matrix products: tiles of keys and of values are laid out for them, and stay in the
//! first-level cache while all vectors pass. For prompts and for training, where arithmetic is what takes time.

use std::cell::Cell;
use std::ops::Range;

use super::{AttendKernel, KvElement, Running, SPLIT, scale_to};
use crate::cpu::f32_gemm::{Gemm, Onto};
use crate::cpu::isa::{Isa, Kernel};
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
    static LINES: Cell<Lines> = Cell::default();
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

impl<E: KvElement> AttendKernel<'_, E> {
    /// All query vectors, over their whole spans.
    ///
    /// # Safety
    /// As [`super::attend`].
    pub(super) unsafe fn many(&self, isa: Isa) {
        let num_queries = self.num_queries();
        let mut lines = LINES.take();
        let room = Room::of(&mut lines, self.args.cache.head_dim);
        for first in (0..num_queries).step_by(VECTORS) {
            let vectors = first..num_queries.min(first + VECTORS);
            // The first vector starts lowest, the last ends highest.
            let span = self.span(first).0..self.span(vectors.end - 1).1;
            let softmax = [Running::START; VECTORS];
            // SAFETY: the caller's.
            unsafe { Pass { of: self, vectors, span, room: &room, softmax }.run(isa) };
        }
        LINES.set(lines);
    }
}

/// Query vectors that pass together.
struct Pass<'a, E> {
    of: &'a AttendKernel<'a, E>,
    vectors: Range<usize>,
    /// Positions that any of them sees.
    span: Range<usize>,
    room: &'a Room,
    softmax: [Running; VECTORS],
}

impl<E: KvElement> Pass<'_, E> {
    unsafe fn run(&mut self, isa: Isa) {
        let (of, room, dim) = (self.of, self.room, self.of.args.cache.head_dim);
        // SAFETY: the caller's; rows and heads of these vectors are ours to write.
        unsafe {
            for (n, i) in self.vectors.clone().enumerate() {
                room.q.add(n * dim).copy_from_nonoverlapping(of.args.q.add(of.vector(i)), dim);
            }
            room.values.write_bytes(0, self.vectors.len() * dim);
            for split in (self.span.start - self.span.start % SPLIT..self.span.end).step_by(SPLIT) {
                self.split(isa, split..self.span.end.min(split + SPLIT));
            }
            isa.run(Finish { pass: self });
        }
    }

    /// The positions of a split.
    unsafe fn split(&mut self, isa: Isa, split: Range<usize>) {
        let (of, room, dim) = (self.of, self.room, self.of.args.cache.head_dim);
        let tiles = || split.clone().step_by(TILE).map(|first| first..split.end.min(first + TILE));
        // SAFETY: the caller's; positions stay below the sequence's context.
        unsafe {
            for positions in tiles() {
                let seeing = self.seeing(&positions);
                if seeing.is_empty() {
                    continue;
                }
                isa.run(LayOutKeys { of, positions: positions.clone(), tile: room.tile });
                isa.run(Gemm {
                    a: room.q.add(seeing.start * dim),
                    a_row: dim,
                    a_step: 1,
                    b: room.tile,
                    b_row: TILE,
                    c: room.scores.add(seeing.start * SCORES_ROW + positions.start - split.start),
                    c_row: SCORES_ROW,
                    m: seeing.len(),
                    n: positions.len().next_multiple_of(LANES),
                    k: dim,
                    onto: Onto::Nothing,
                });
            }
            isa.run(Weigh { pass: self, split: split.clone() });
            for positions in tiles() {
                // What lies before the first position that is seen may be anything.
                let positions = positions.start.max(self.span.start)..positions.end;
                if positions.is_empty() {
                    continue;
                }
                let seeing = self.seeing(&positions);
                isa.run(LayOutValues { of, positions: positions.clone(), tile: room.tile });
                isa.run(Gemm {
                    a: room.scores.add(seeing.start * SCORES_ROW + positions.start - split.start),
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
                });
            }
        }
    }

    /// The vectors that see any of the positions, counted from the pass' first.
    fn seeing(&self, positions: &Range<usize>) -> Range<usize> {
        let args = &self.of.args;
        let row_of = |position: usize| position.saturating_sub(args.position).saturating_mul(args.group);
        let first = row_of(positions.start);
        let end = args.window.map_or(usize::MAX, |w| row_of((positions.end - 1).saturating_add(w)));
        let within = |i: usize| i.clamp(self.vectors.start, self.vectors.end) - self.vectors.start;
        within(first)..within(end)
    }
}

/// A split's scores to weights, for all vectors; what they have summed is taken to their new maximums.
struct Weigh<'a, 'b, E> {
    pass: &'b mut Pass<'a, E>,
    split: Range<usize>,
}

impl<E: KvElement> Kernel for Weigh<'_, '_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Weigh { pass: Pass { of, vectors, room, softmax, .. }, split } = self;
        let (dim, len) = (of.args.cache.head_dim, split.len());
        for ((n, i), softmax) in vectors.clone().enumerate().zip(softmax) {
            let visible = of.visible(i, split.start, len);
            // SAFETY: the caller's; a split is whole vectors, and a row holds one.
            unsafe {
                let scores = room.scores.add(n * SCORES_ROW);
                let factor = softmax.weights::<S>(scores, len.next_multiple_of(LANES), visible, of.scaling());
                if factor != 1.0 {
                    let values = room.values.add(n * dim);
                    scale_to::<S>(values, dim, factor, values);
                }
            }
        }
    }
}

/// Sums of values to results.
struct Finish<'a, 'b, E> {
    pass: &'b Pass<'a, E>,
}

impl<E: KvElement> Kernel for Finish<'_, '_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Pass { of, vectors, room, softmax, .. } = self.pass;
        let dim = of.args.cache.head_dim;
        for ((n, i), softmax) in vectors.clone().enumerate().zip(softmax) {
            // SAFETY: the caller's.
            unsafe {
                let out = of.args.out.add(of.vector(i));
                scale_to::<S>(room.values.add(n * dim), dim, 1.0 / softmax.sum, out);
                of.report(i, softmax);
            }
        }
    }
}

/// Writes the keys of the blocks that hold `positions`, whose first begins one, as `[head_dim, TILE]`.
struct LayOutKeys<'a, E> {
    of: &'a AttendKernel<'a, E>,
    positions: Range<usize>,
    tile: *mut f32,
}

impl<E: KvElement> Kernel for LayOutKeys<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let LayOutKeys { of, positions, tile } = self;
        for (i, first) in positions.step_by(BLOCK_SIZE).enumerate() {
            let keys = of.piece(of.args.cache.k, first / BLOCK_SIZE);
            for d in 0..of.args.cache.head_dim {
                // SAFETY: the caller's: the block exists, and a tile holds TILE positions.
                unsafe {
                    let key = E::load::<S>(keys.add(d * BLOCK_SIZE * E::BYTES));
                    S::store(tile.add(d * TILE + i * BLOCK_SIZE), key);
                }
            }
        }
    }
}

/// Writes the values of `positions` as `[positions, head_dim]`.
struct LayOutValues<'a, E> {
    of: &'a AttendKernel<'a, E>,
    positions: Range<usize>,
    tile: *mut f32,
}

impl<E: KvElement> Kernel for LayOutValues<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let LayOutValues { of, positions, tile } = self;
        let dim = of.args.cache.head_dim;
        for (i, position) in positions.enumerate() {
            let values = of.piece(of.args.cache.v, position / BLOCK_SIZE);
            for d in (0..dim).step_by(LANES) {
                let at = position % BLOCK_SIZE * dim + d;
                // SAFETY: as above.
                unsafe { S::store(tile.add(i * dim + d), E::load::<S>(values.add(at * E::BYTES))) };
            }
        }
    }
}
