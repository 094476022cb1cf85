//! The gradient of attention, tile by tile (Dao, arXiv 2307.08691, algorithm 2).
//!
//! A task is a query head of a sequence. Its scores are computed again 64 keys by 64 queries at a time; with the forward
//! op's `lse` each tile's softmax is known at once. Gradients of keys and values are kept by query head and summed over a
//! group's heads afterwards, in ascending order, so that no two tasks write to one place and the sums have one order.

use super::gemm::Gemm;
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::simd::{LANES, Simd, exp};

/// Keys and queries of a tile.
const TILE: usize = 64;

/// Operands for one sequence and one query head. Pointers are at the sequence's first row.
#[derive(Clone, Copy)]
pub(super) struct HeadBackward {
    /// Rows of the sequence.
    pub(super) rows: usize,
    pub(super) head: usize,
    pub(super) kv_head: usize,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) q: *const f32,
    pub(super) k: *const f32,
    pub(super) v: *const f32,
    pub(super) out: *const f32,
    pub(super) lse: *const f32,
    pub(super) d_out: *const f32,
    pub(super) d_q: *mut f32,
    /// `[rows, heads, head_dim]`: gradients of the keys and of the values, by query head.
    pub(super) d_k: *mut f32,
    pub(super) d_v: *mut f32,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
}

/// A vector. Aligned, since it would else lie in two cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; LANES]);

fn lines(len: usize) -> Vec<Line> {
    vec![Line([0.0; LANES]); len.div_ceil(LANES)]
}

/// Tiles of one task.
struct Tiles {
    /// `[head_dim, TILE]`: keys and values of the tile, transposed.
    keys: Vec<Line>,
    values: Vec<Line>,
    /// `[TILE, TILE]`: weights, and gradients of the scores.
    weights: Vec<Line>,
    d_scores: Vec<Line>,
    /// `[rows]`: `Σ d_out * out`, what the softmax' normalisation takes away.
    delta: Vec<f32>,
}

impl HeadBackward {
    /// Elements from a row to the next, of queries and of keys.
    fn strides(&self) -> (usize, usize) {
        (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim)
    }

    /// # Safety
    /// The extents are those of the operands; nobody else reads or writes this head's gradients.
    pub(super) unsafe fn run(&self, isa: Isa) {
        let dim = self.head_dim;
        let mut tiles = Tiles {
            keys: lines(dim * TILE),
            values: lines(dim * TILE),
            weights: lines(TILE * TILE),
            d_scores: lines(TILE * TILE),
            delta: vec![0.0; self.rows],
        };
        let (q_row, _) = self.strides();
        let at = self.head * dim;
        // SAFETY: the caller's.
        unsafe {
            for (row, delta) in tiles.delta.iter_mut().enumerate() {
                let at = row * q_row + at;
                let out = std::slice::from_raw_parts(self.out.add(at), dim);
                let d_out = std::slice::from_raw_parts(self.d_out.add(at), dim);
                *delta = out.iter().zip(d_out).map(|(a, b)| a * b).sum();
                self.d_q.add(at).write_bytes(0, dim);
                self.d_k.add(at).write_bytes(0, dim);
                self.d_v.add(at).write_bytes(0, dim);
            }
            for first_key in (0..self.rows).step_by(TILE) {
                self.keys(isa, first_key, &mut tiles);
            }
        }
    }

    /// All queries that see the keys from `first_key` on.
    unsafe fn keys(&self, isa: Isa, first_key: usize, tiles: &mut Tiles) {
        let (_, kv_row) = self.strides();
        let num_keys = TILE.min(self.rows - first_key);
        let at = first_key * kv_row + self.kv_head * self.head_dim;
        // Keys beyond the last are left as they were: no query sees them.
        for key in 0..num_keys {
            for d in 0..self.head_dim {
                // SAFETY: the caller's.
                let (k, v) =
                    unsafe { (*self.k.add(at + key * kv_row + d), *self.v.add(at + key * kv_row + d)) };
                let (line, lane) = ((d * TILE + key) / LANES, key % LANES);
                if let (Some(keys), Some(values)) = (tiles.keys.get_mut(line), tiles.values.get_mut(line)) {
                    (keys.0[lane], values.0[lane]) = (k, v);
                }
            }
        }
        let end = self.window.map_or(self.rows, |w| self.rows.min(first_key + num_keys + w - 1));
        for first_query in (first_key..end).step_by(TILE) {
            let queries = (first_query, TILE.min(end - first_query));
            // SAFETY: the caller's.
            unsafe { self.tile(isa, (first_key, num_keys), queries, tiles) };
        }
    }

    unsafe fn tile(
        &self,
        isa: Isa,
        (first_key, num_keys): (usize, usize),
        (first_query, num_queries): (usize, usize),
        tiles: &mut Tiles,
    ) {
        let dim = self.head_dim;
        let (q_row, kv_row) = self.strides();
        let of_queries = first_query * q_row + self.head * dim;
        let of_keys = first_key * q_row + self.head * dim;
        let (weights, d_scores): (*mut f32, *mut f32) =
            (tiles.weights.as_mut_ptr().cast(), tiles.d_scores.as_mut_ptr().cast());
        // SAFETY: the caller's; tiles hold TILE by TILE, and whole vectors of keys.
        unsafe {
            let by_keys = |a: *const f32, b: *const f32, c: *mut f32| Gemm {
                a,
                a_row: q_row,
                a_step: 1,
                b,
                b_row: TILE,
                c,
                c_row: TILE,
                m: num_queries,
                n: num_keys.next_multiple_of(LANES),
                k: dim,
                accumulate: false,
            };
            isa.run(by_keys(self.q.add(of_queries), tiles.keys.as_ptr().cast(), weights));
            isa.run(by_keys(self.d_out.add(of_queries), tiles.values.as_ptr().cast(), d_scores));
            isa.run(Softmax {
                weights,
                d_scores,
                lse: self.lse.add(first_query * self.num_heads + self.head),
                lse_row: self.num_heads,
                delta: tiles.delta.as_ptr().add(first_query),
                keys: (first_key, num_keys),
                queries: (first_query, num_queries),
                scale: self.scale,
                window: self.window,
            });
            let by_queries = |a: *const f32, b: *const f32, c: *mut f32| Gemm {
                a,
                a_row: 1,
                a_step: TILE,
                b,
                b_row: q_row,
                c,
                c_row: q_row,
                m: num_keys,
                n: dim,
                k: num_queries,
                accumulate: true,
            };
            isa.run(by_queries(weights, self.d_out.add(of_queries), self.d_v.add(of_keys)));
            isa.run(by_queries(d_scores, self.q.add(of_queries), self.d_k.add(of_keys)));
            isa.run(Gemm {
                a: d_scores,
                a_row: TILE,
                a_step: 1,
                b: self.k.add(first_key * kv_row + self.kv_head * dim),
                b_row: kv_row,
                c: self.d_q.add(of_queries),
                c_row: q_row,
                m: num_queries,
                n: dim,
                k: num_keys,
                accumulate: true,
            });
        }
    }
}

/// Scores to weights, and gradients of the weights to those of the scores, in place.
struct Softmax {
    /// `[queries, TILE]`: scores, unscaled.
    weights: *mut f32,
    /// `[queries, TILE]`: gradients of the weights.
    d_scores: *mut f32,
    /// Of the first query; `lse_row` apart.
    lse: *const f32,
    lse_row: usize,
    /// Of the first query.
    delta: *const f32,
    keys: (usize, usize),
    queries: (usize, usize),
    scale: f32,
    window: Option<usize>,
}

impl Kernel for Softmax {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Softmax { weights, d_scores, lse, lse_row, delta, keys, queries, scale, window } = self;
        let len = keys.1.next_multiple_of(LANES);
        for i in 0..queries.1 {
            let query = queries.0 + i;
            // The keys of the tile that the query sees.
            let end = (query + 1).saturating_sub(keys.0).min(keys.1);
            let first = window.map_or(0, |w| (query + 1).saturating_sub(w + keys.0)).min(len);
            // SAFETY: the caller's; `len` is whole vectors within the tile's row.
            unsafe {
                let (row, d_row) = (weights.add(i * TILE), d_scores.add(i * TILE));
                let (lse, delta) = (S::splat(*lse.add(i * lse_row)), S::splat(*delta.add(i)));
                for at in (0..len).step_by(LANES) {
                    let score = S::mul(S::load(row.add(at)), S::splat(scale));
                    let weight = exp::<S>(S::sub(score, lse));
                    S::store(row.add(at), weight);
                    let d_weight = S::sub(S::load(d_row.add(at)), delta);
                    S::store(d_row.add(at), S::mul(S::mul(weight, d_weight), S::splat(scale)));
                }
                for (from, to) in [(0, first), (end.max(first), len)] {
                    row.add(from).write_bytes(0, to - from);
                    d_row.add(from).write_bytes(0, to - from);
                }
            }
        }
    }
}
