//! The gradient of attention, tile by tile (Dao, arXiv 2307.08691, algorithm 2).
//!
//! A task is a key-value head of a sequence and a part of its keys. Scores are computed again 64 keys by 64 queries at a
//! time; with the forward op's `lse` each tile's softmax is known at once. The gradients of a tile's keys and values are
//! summed in place over all queries of all heads of the group; those of the queries are summed part by part and the parts
//! are added afterwards, so that no two tasks write to one place and every sum has one order.

use std::ops::Range;

use super::{CHUNK, f32s, part};
use crate::cpu::f32_gemm::{Gemm, Onto};
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::lines::Lines;
use crate::cpu::rowwise::capped;
use crate::cpu::simd::{LANES, Simd, exp};
use crate::cpu::{Cpu, SendPtr, slice};
use crate::error::{Result, invalid};
use crate::grad::AttentionBackward;

/// Keys and queries of a tile.
const TILE: usize = 64;
/// Tiles of keys that a tile of queries meets one after the other, since queries of a long sequence come from far.
const KEY_TILES: usize = 4;
/// From so many rows on a sequence's keys are two parts: a sequence may be alone, and have few heads.
const ROWS_IN_TWO_PARTS: usize = 2 * TILE;

/// A part of a sequence's keys.
struct Part {
    /// Rows of the sequence.
    rows: Range<usize>,
    idx: usize,
    /// Counted from the sequence's first row.
    keys: Range<usize>,
}

/// Parts of the keys of a sequence, of like work: a key is seen by all later queries, or by those of the window.
fn parts(rows: Range<usize>, window: Option<usize>) -> impl Iterator<Item = Part> {
    let len = rows.len();
    let mut half = len;
    if len >= ROWS_IN_TWO_PARTS {
        let pairs = |key: usize| window.map_or(len - key, |w| w.min(len - key));
        let total: usize = (0..len).step_by(TILE).map(pairs).sum();
        let mut done = 0;
        let last = (0..len).step_by(TILE).find(|&key| {
            done += pairs(key);
            2 * done >= total
        });
        half = last.map_or(len, |key| len.min(key + TILE));
    }
    [0..half, half..len]
        .into_iter()
        .enumerate()
        .filter(|(_, keys)| !keys.is_empty())
        .map(move |(idx, keys)| Part { rows: rows.clone(), idx, keys })
}

/// Operands for one sequence, one key-value head and a part of the keys. Pointers are at the sequence's first row.
struct HeadBackward {
    /// Rows of the sequence.
    rows: usize,
    keys: Range<usize>,
    kv_head: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    out: *const f32,
    lse: *const f32,
    d_out: *const f32,
    /// Written, for all rows of the group's heads: what these keys give.
    d_q: *mut f32,
    d_k: *mut f32,
    d_v: *mut f32,
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
}

/// A tile of keys.
struct KeyTile {
    keys: Range<usize>,
    /// `[head_dim, TILE]`: keys and values, transposed.
    k: Lines,
    v: Lines,
    /// `[TILE, head_dim]`: their gradients.
    d_k: Lines,
    d_v: Lines,
}

/// What one task holds.
struct Room {
    tiles: [KeyTile; KEY_TILES],
    /// `[TILE, TILE]`: weights, and gradients of the scores.
    weights: Lines,
    d_scores: Lines,
    /// `[group, rows]`: `Σ d_out * out`, what the softmax' normalisation takes away.
    delta: Vec<f32>,
}

impl HeadBackward {
    /// Query heads of the key-value head.
    fn heads(&self) -> Range<usize> {
        let group = self.num_heads / self.num_kv_heads;
        self.kv_head * group..(self.kv_head + 1) * group
    }

    /// Elements from a row to the next, of queries and of keys.
    fn strides(&self) -> (usize, usize) {
        (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim)
    }

    /// # Safety
    /// The extents are those of the operands; nobody else reads or writes the gradients of these keys, or this `d_q` of
    /// these heads.
    unsafe fn run(&self, isa: Isa) {
        let dim = self.head_dim;
        let (q_row, _) = self.strides();
        let lines = || Lines::new(dim * TILE);
        let mut room = Room {
            tiles: std::array::from_fn(|_| KeyTile {
                keys: 0..0,
                k: lines(),
                v: lines(),
                d_k: lines(),
                d_v: lines(),
            }),
            weights: Lines::new(TILE * TILE),
            d_scores: Lines::new(TILE * TILE),
            delta: vec![0.0; self.heads().len() * self.rows],
        };
        // SAFETY: the caller's.
        unsafe {
            for (head, delta) in self.heads().zip(room.delta.chunks_exact_mut(self.rows)) {
                let at = head * dim;
                isa.run(Delta { out: self.out.add(at), d_out: self.d_out.add(at), row: q_row, dim, delta });
                for row in 0..self.rows {
                    self.d_q.add(row * q_row + at).write_bytes(0, dim);
                }
            }
            for first in self.keys.clone().step_by(KEY_TILES * TILE) {
                self.keys(isa, first, &mut room);
            }
        }
    }

    /// The tiles of keys from `first` on, with all queries that see any of them.
    unsafe fn keys(&self, isa: Isa, first: usize, room: &mut Room) {
        let (_, kv_row) = self.strides();
        let dim = self.head_dim;
        let mut num_tiles = 0;
        let mut end = first;
        for tile in &mut room.tiles {
            if end < self.keys.end {
                tile.keys = end..self.keys.end.min(end + TILE);
                end = tile.keys.end;
                num_tiles += 1;
                // SAFETY: the caller's.
                unsafe { self.begin(tile) };
            }
        }
        let tiles = room.tiles.get_mut(..num_tiles).unwrap_or_default();
        let end = self.window.map_or(self.rows, |w| self.rows.min(end.saturating_add(w - 1)));
        for (i, head) in self.heads().enumerate() {
            for first in (first..end).step_by(TILE) {
                let queries = first..end.min(first + TILE);
                let scores = [&mut room.weights, &mut room.d_scores].map(Lines::as_mut_ptr);
                let delta = room.delta.as_ptr().wrapping_add(i * self.rows + first);
                for tile in tiles.iter_mut().filter(|tile| tile.keys.start < queries.end) {
                    // SAFETY: the caller's.
                    unsafe { self.tile(isa, tile, (head, queries.clone(), delta), scores) };
                }
            }
        }
        for tile in tiles {
            for (i, key) in tile.keys.clone().enumerate() {
                let at = key * kv_row + self.kv_head * dim;
                // SAFETY: the caller's.
                unsafe {
                    self.d_k.add(at).copy_from_nonoverlapping(tile.d_k.as_ptr().add(i * dim), dim);
                    self.d_v.add(at).copy_from_nonoverlapping(tile.d_v.as_ptr().add(i * dim), dim);
                }
            }
        }
    }

    /// Fills a tile. What it holds beyond the last key stays: no query sees it.
    unsafe fn begin(&self, tile: &mut KeyTile) {
        let (_, kv_row) = self.strides();
        let dim = self.head_dim;
        // SAFETY: the caller's; tiles hold TILE keys.
        unsafe {
            for (i, key) in tile.keys.clone().enumerate() {
                for d in 0..dim {
                    let from = key * kv_row + self.kv_head * dim + d;
                    *tile.k.as_mut_ptr().add(d * TILE + i) = *self.k.add(from);
                    *tile.v.as_mut_ptr().add(d * TILE + i) = *self.v.add(from);
                }
            }
            tile.d_k.as_mut_ptr().write_bytes(0, dim * TILE);
            tile.d_v.as_mut_ptr().write_bytes(0, dim * TILE);
        }
    }

    unsafe fn tile(
        &self,
        isa: Isa,
        tile: &mut KeyTile,
        (head, queries, delta): (usize, Range<usize>, *const f32),
        [weights, d_scores]: [*mut f32; 2],
    ) {
        let dim = self.head_dim;
        let (q_row, kv_row) = self.strides();
        let at = queries.start * q_row + head * dim;
        let keys = tile.keys.clone();
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
                m: queries.len(),
                n: keys.len().next_multiple_of(LANES),
                k: dim,
                onto: Onto::Nothing,
            };
            isa.run(by_keys(self.q.add(at), tile.k.as_ptr(), weights));
            isa.run(by_keys(self.d_out.add(at), tile.v.as_ptr(), d_scores));
            isa.run(Softmax {
                weights,
                d_scores,
                lse: self.lse.add(queries.start * self.num_heads + head),
                lse_row: self.num_heads,
                delta,
                keys: keys.clone(),
                queries: queries.clone(),
                scale: self.scale,
                window: self.window,
                softcap: self.softcap,
            });
            let by_queries = |a: *const f32, b: *const f32, c: *mut f32| Gemm {
                a,
                a_row: 1,
                a_step: TILE,
                b,
                b_row: q_row,
                c,
                c_row: dim,
                m: keys.len(),
                n: dim,
                k: queries.len(),
                onto: Onto::Sum,
            };
            isa.run(by_queries(weights, self.d_out.add(at), tile.d_v.as_mut_ptr()));
            isa.run(by_queries(d_scores, self.q.add(at), tile.d_k.as_mut_ptr()));
            isa.run(Gemm {
                a: d_scores,
                a_row: TILE,
                a_step: 1,
                b: self.k.add(keys.start * kv_row + self.kv_head * dim),
                b_row: kv_row,
                c: self.d_q.add(at),
                c_row: q_row,
                m: queries.len(),
                n: dim,
                k: keys.len(),
                onto: Onto::Sum,
            });
        }
    }
}

/// `delta[i] = Σ out[i] * d_out[i]` over the dimensions of a head, rows `row` apart.
struct Delta<'a> {
    out: *const f32,
    d_out: *const f32,
    row: usize,
    dim: usize,
    delta: &'a mut [f32],
}

impl Kernel for Delta<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, delta) in self.delta.iter_mut().enumerate() {
            // SAFETY: the caller's; heads are whole vectors.
            unsafe {
                let mut sum = S::splat(0.0);
                for at in (i * self.row..i * self.row + self.dim).step_by(LANES) {
                    sum = S::fma(S::load(self.out.add(at)), S::load(self.d_out.add(at)), sum);
                }
                *delta = S::reduce_add(sum);
            }
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
    keys: Range<usize>,
    queries: Range<usize>,
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
}

impl Kernel for Softmax {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Softmax { weights, d_scores, lse, lse_row, delta, keys, queries, scale, window, softcap } = self;
        let len = keys.len().next_multiple_of(LANES);
        for (i, query) in queries.enumerate() {
            // The keys of the tile that the query sees.
            let end = (query + 1).saturating_sub(keys.start).min(keys.len());
            let first =
                window.map_or(0, |w| (query + 1).saturating_sub(w.saturating_add(keys.start))).min(end);
            // SAFETY: the caller's; `len` is whole vectors within the tile's row.
            unsafe {
                let (row, d_row) = (weights.add(i * TILE), d_scores.add(i * TILE));
                let (lse, delta) = (S::splat(*lse.add(i * lse_row)), S::splat(*delta.add(i)));
                for at in (0..len).step_by(LANES) {
                    let mut score = S::mul(S::load(row.add(at)), S::splat(scale));
                    // What a score's gradient is multiplied by on its way to the product.
                    let mut slope = S::splat(scale);
                    if let Some(cap) = softcap {
                        score = capped::<S>(score, cap);
                        let t = S::mul(score, S::splat(1.0 / cap));
                        slope = S::mul(slope, S::sub(S::splat(1.0), S::mul(t, t)));
                    }
                    let weight = exp::<S>(S::sub(score, lse));
                    S::store(row.add(at), weight);
                    let d_weight = S::sub(S::load(d_row.add(at)), delta);
                    S::store(d_row.add(at), S::mul(S::mul(weight, d_weight), slope));
                }
                for unseen in [0..first, end..len] {
                    if !unseen.is_empty() {
                        row.add(unseen.start).write_bytes(0, unseen.len());
                        d_row.add(unseen.start).write_bytes(0, unseen.len());
                    }
                }
            }
        }
    }
}

/// See [`crate::grad::GradOps::attention_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn attention_backward(cpu: &Cpu, args: AttentionBackward<'_>) -> Result<()> {
    let op = "attention_backward";
    let (&[_, num_heads, head_dim], &[_, num_kv_heads, _]) = (args.q.shape().dims(), args.k.shape().dims())
    else {
        return invalid(op, "q, k and v must be [rows, heads, head_dim]");
    };
    // SAFETY: the trait's contract.
    let starts = unsafe { slice::<u32>(&args.step.seq_starts, op, "sequence starts")? };
    let [q, k, v, out, lse, d_out] = [
        (args.q, "q"),
        (args.k, "k"),
        (args.v, "v"),
        (args.out, "out"),
        (args.lse, "lse"),
        (args.d_out, "d_out"),
    ]
    .map(|(t, name)| f32s(t, op, name));
    let (q, k, v, out, lse, d_out) = (q?, k?, v?, out?, lse?, d_out?);
    let (d_q, d_k, d_v) =
        (f32s(args.d_q, op, "d_q")?, f32s(args.d_k, op, "d_k")?, f32s(args.d_v, op, "d_v")?);
    let partial = f32s(args.partial, op, "partial")?;
    let (q_row, kv_row) = (num_heads * head_dim, num_kv_heads * head_dim);
    let mut seqs: Vec<Range<usize>> =
        starts.windows(2).filter_map(|pair| Some(*pair.first()? as usize..*pair.last()? as usize)).collect();
    // The longest first.
    seqs.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
    let parts: Vec<Part> = seqs.into_iter().flat_map(|rows| parts(rows, args.window)).collect();
    cpu.each(parts.len() * num_kv_heads, |i| {
        let Some(Part { rows, idx, keys }) = parts.get(i / num_kv_heads) else { return };
        let at = |p: SendPtr<f32>, row_len: usize| p.get().wrapping_add(rows.start * row_len);
        let task = HeadBackward {
            rows: rows.len(),
            keys: keys.clone(),
            kv_head: i % num_kv_heads,
            num_heads,
            num_kv_heads,
            head_dim,
            q: at(q, q_row),
            k: at(k, kv_row),
            v: at(v, kv_row),
            out: at(out, q_row),
            lse: at(lse, num_heads),
            d_out: at(d_out, q_row),
            d_q: at(if *idx == 0 { d_q } else { partial }, q_row),
            d_k: at(d_k, kv_row),
            d_v: at(d_v, kv_row),
            scale: args.scale,
            window: args.window,
            softcap: args.softcap,
        };
        // SAFETY: the trait's contract; tasks have keys, and rows and heads of a `d_q`, of their own.
        unsafe { task.run(cpu.isa) };
    });
    for Part { rows, .. } in parts.iter().filter(|part| part.idx > 0) {
        cpu.chunks(rows.len() * q_row, CHUNK, |first, len| {
            let at = rows.start * q_row + first;
            // SAFETY: the trait's contract; tasks have elements of their own.
            let (sum, more) = unsafe { (part(d_q, at, len), part(partial, at, len)) };
            sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += *x);
        });
    }
    Ok(())
}
