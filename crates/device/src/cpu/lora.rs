//! Low-rank updates of the rows that use an adapter: `x Aᵀ` (shrink), then `+ scale (…) Bᵀ` (expand).
//!
//! Both factors are read as they lie in memory, each element once per group of rows; ranks are exact.

use std::marker::PhantomData;

use super::gemm::{BF16, Element, F16, F32};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd, load, store};
use crate::DType;

/// Rows handled at once, and ranks or vectors of outputs handled at once.
const TILE: usize = 4;

/// `low[row, r] = scale * scales[row] * Σ_k x[row, k] a[r, k]`.
///
/// The sum runs in 16 interleaved chains, one a lane, which are then added in halves.
#[derive(Clone, Copy)]
pub(crate) struct Shrink<E> {
    element: PhantomData<E>,
    args: ShrinkArgs,
}

/// Operands of [`Shrink`].
#[derive(Clone, Copy)]
pub(crate) struct ShrinkArgs {
    /// `[rows, cols]`.
    pub(crate) x: *const f32,
    pub(crate) cols: usize,
    /// `[rank, cols]`.
    pub(crate) a: *const u8,
    /// Factor per row.
    pub(crate) scales: *const f32,
    pub(crate) scale: f32,
    /// `[rows, rank]`.
    pub(crate) low: *mut f32,
    pub(crate) rank: usize,
    pub(crate) rows: usize,
    /// Ranks to compute.
    pub(crate) ranks: (usize, usize),
}

impl<E: Element> Shrink<E> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const R: usize>(&self, row: usize, rank: usize) {
        let ShrinkArgs { x, cols, a, scales, scale, low, .. } = self.args;
        // SAFETY: rows, ranks and their extents are the caller's; all loads stay within them.
        unsafe {
            let mut sums = [[S::splat(0.0); R]; M];
            let whole = cols - cols % LANES;
            let mut k = 0;
            while k < cols {
                let n = cols - k;
                let mut av = [S::splat(0.0); R];
                for (r, av) in av.iter_mut().enumerate() {
                    let p = a.add(((rank + r) * cols + k) * E::BYTES);
                    *av = if k < whole { E::load::<S>(p) } else { E::load_part::<S>(p, n) };
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let p = x.add((row + m) * cols + k);
                    let xv = if k < whole { S::load(p) } else { S::load_part(p, n) };
                    for (sum, av) in sums.iter_mut().zip(av) {
                        *sum = S::fma(xv, av, *sum);
                    }
                }
                k += LANES;
            }
            for (m, sums) in sums.into_iter().enumerate() {
                let factor = scale * *scales.add(row + m);
                for (r, sum) in sums.into_iter().enumerate() {
                    *low.add((row + m) * self.args.rank + rank + r) = factor * S::reduce_add(sum);
                }
            }
        }
    }
}

impl<E: Element> Kernel for Shrink<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let ShrinkArgs { rows, ranks, .. } = self.args;
        let mut rank = ranks.0;
        while rank < ranks.1 {
            let r = tile_len(ranks.1 - rank);
            let mut row = 0;
            while row < rows {
                let m = tile_len(rows - row);
                // SAFETY: the caller's; tiles stay within rows and ranks.
                unsafe {
                    match (m, r) {
                        (TILE, TILE) => self.tile::<S, TILE, TILE>(row, rank),
                        (TILE, _) => self.tile::<S, TILE, 1>(row, rank),
                        (_, TILE) => self.tile::<S, 1, TILE>(row, rank),
                        _ => self.tile::<S, 1, 1>(row, rank),
                    }
                }
                row += m;
            }
            rank += r;
        }
    }
}

/// Length of the next tile when `left` are left.
#[inline(always)]
fn tile_len(left: usize) -> usize {
    if left >= TILE { TILE } else { 1 }
}

/// `out[row, o] = out_scale[o] * (out[row, o] + Σ_r low[row, r] b_t[r, o]) + bias[o] + residual[row, o]`, where
/// absent parts are left out.
#[derive(Clone, Copy)]
pub(crate) struct Expand<E> {
    element: PhantomData<E>,
    args: ExpandArgs,
}

/// Operands of [`Expand`].
#[derive(Clone, Copy)]
pub(crate) struct ExpandArgs {
    /// `[rows, rank]`.
    pub(crate) low: *const f32,
    pub(crate) rank: usize,
    /// `[rank, features]`.
    pub(crate) b_t: *const u8,
    /// `[features]` or null.
    pub(crate) out_scale: *const f32,
    /// `[features]` or null: added here only if the base product left it out.
    pub(crate) bias: *const f32,
    /// `[rows, features]` or null, as `bias`.
    pub(crate) residual: *const f32,
    /// `[rows, features]`.
    pub(crate) out: *mut f32,
    pub(crate) features: usize,
    pub(crate) rows: usize,
    /// Vectors of 16 features to compute.
    pub(crate) vectors: (usize, usize),
}

impl<E: Element> Expand<E> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(&self, row: usize, vector: usize) {
        let ExpandArgs { low, rank, b_t, out_scale, bias, residual, out, features, .. } = self.args;
        let first = vector * LANES;
        // Only the last vector, handled alone, can be incomplete.
        let n = (features - first).min(LANES);
        // SAFETY: rows, vectors and their extents are the caller's; all loads stay within them.
        unsafe {
            let mut sums = [[S::splat(0.0); V]; M];
            for r in 0..rank {
                let mut b = [S::splat(0.0); V];
                for (v, b) in b.iter_mut().enumerate() {
                    let p = b_t.add((r * features + first + v * LANES) * E::BYTES);
                    *b = if n == LANES { E::load::<S>(p) } else { E::load_part::<S>(p, n) };
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let s = S::splat(*low.add((row + m) * rank + r));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = S::fma(s, b, *sum);
                    }
                }
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let feature = first + v * LANES;
                    let at = (row + m) * features + feature;
                    let mut y = load::<S>(out.add(at), n);
                    // A row whose bias and residual were left out has them added in the order of the base product.
                    if out_scale.is_null() {
                        if !bias.is_null() {
                            y = S::add(y, load::<S>(bias.add(feature), n));
                        }
                        if !residual.is_null() {
                            y = S::add(y, load::<S>(residual.add(at), n));
                        }
                        y = S::add(y, sum);
                    } else {
                        y = S::mul(S::add(y, sum), load::<S>(out_scale.add(feature), n));
                        if !bias.is_null() {
                            y = S::add(y, load::<S>(bias.add(feature), n));
                        }
                        if !residual.is_null() {
                            y = S::add(y, load::<S>(residual.add(at), n));
                        }
                    }
                    store::<S>(out.add(at), y, n);
                }
            }
        }
    }
}

impl<E: Element> Kernel for Expand<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let ExpandArgs { rows, vectors, features, .. } = self.args;
        let whole = vectors.1.min(features / LANES).max(vectors.0);
        let mut vector = vectors.0;
        while vector < vectors.1 {
            // An incomplete last vector is a tile of its own.
            let v = if vector < whole { tile_len(whole - vector) } else { 1 };
            let mut row = 0;
            while row < rows {
                let m = tile_len(rows - row);
                // SAFETY: the caller's; tiles stay within rows and vectors.
                unsafe {
                    match (m, v) {
                        (TILE, TILE) => self.tile::<S, TILE, TILE>(row, vector),
                        (TILE, _) => self.tile::<S, TILE, 1>(row, vector),
                        (_, TILE) => self.tile::<S, 1, TILE>(row, vector),
                        _ => self.tile::<S, 1, 1>(row, vector),
                    }
                }
                row += m;
            }
            vector += v;
        }
    }
}

/// Runs a [`Shrink`].
///
/// # Safety
/// Pointers and extents as in [`ShrinkArgs`], of the element type `dtype`; no two calls at once write the same ranks.
pub(crate) unsafe fn shrink(isa: Isa, dtype: DType, args: ShrinkArgs) {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            DType::F16 => isa.run(Shrink::<F16> { element: PhantomData, args }),
            DType::BF16 => isa.run(Shrink::<BF16> { element: PhantomData, args }),
            DType::F32 | DType::U32 => isa.run(Shrink::<F32> { element: PhantomData, args }),
        }
    }
}

/// Runs an [`Expand`].
///
/// # Safety
/// As [`shrink`].
pub(crate) unsafe fn expand(isa: Isa, dtype: DType, args: ExpandArgs) {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            DType::F16 => isa.run(Expand::<F16> { element: PhantomData, args }),
            DType::BF16 => isa.run(Expand::<BF16> { element: PhantomData, args }),
            DType::F32 | DType::U32 => isa.run(Expand::<F32> { element: PhantomData, args }),
        }
    }
}
