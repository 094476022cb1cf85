//! Low-rank updates of the rows that use an adapter: `x Aᵀ` (shrink), then `+ scale (…) Bᵀ` (expand).
//!
//! Both factors are read as they lie in memory, each element once per group of rows; ranks are exact.

use std::marker::PhantomData;

use super::gemm::{BF16, Element, F16, F32};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd, load, store};
use crate::DType;

/// Rows handled at once, and ranks.
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
///
/// `b_t` is read along its rows, some at a time and far enough for the processor to foresee the next bytes; the sums of
/// some rows and a piece of the features wait in the first-level cache meanwhile. Each is one chain over the ranks.
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
    /// Features to compute; the first is a multiple of 16.
    pub(crate) piece: (usize, usize),
}

/// Most features whose sums are kept at once.
const PIECE: usize = 1024;
type Sums = [[f32; PIECE]; TILE];

impl<E: Element> Expand<E> {
    /// Adds `R` ranks to the sums of `M` rows, for the `len` features from `first` on.
    #[inline(always)]
    unsafe fn ranks<S: Simd, const M: usize, const R: usize>(
        &self,
        (row, rank): (usize, usize),
        (first, len): (usize, usize),
        sums: &mut Sums,
    ) {
        let ExpandArgs { low, b_t, features, .. } = self.args;
        // SAFETY: rows, ranks and features are the caller's; all loads stay within them.
        unsafe {
            let low = low.add(row * self.args.rank + rank);
            let b_t = b_t.add((rank * features + first) * E::BYTES);
            let mut factors = [[S::splat(0.0); R]; M];
            for (m, factors) in factors.iter_mut().enumerate() {
                for (r, factor) in factors.iter_mut().enumerate() {
                    *factor = S::splat(*low.add(m * self.args.rank + r));
                }
            }
            let mut at = 0;
            while at < len {
                let n = (len - at).min(LANES);
                let mut b = [S::splat(0.0); R];
                for (r, b) in b.iter_mut().enumerate() {
                    let p = b_t.add((r * features + at) * E::BYTES);
                    *b = if n == LANES { E::load::<S>(p) } else { E::load_part::<S>(p, n) };
                }
                for (factors, sums) in factors.iter().zip(sums.iter_mut()) {
                    let kept = sums.as_mut_ptr().add(at);
                    let mut sum = S::load(kept);
                    for (factor, b) in factors.iter().zip(b) {
                        sum = S::fma(*factor, b, sum);
                    }
                    S::store(kept, sum);
                }
                at += LANES;
            }
        }
    }

    /// `M` rows and the `len` features from `first` on, at most [`PIECE`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize>(
        &self,
        row: usize,
        (first, len): (usize, usize),
        sums: &mut Sums,
    ) {
        for sums in sums.iter_mut().take(M) {
            sums[..len.next_multiple_of(LANES)].fill(0.0);
        }
        let mut rank = 0;
        while rank < self.args.rank {
            // SAFETY: the caller's; no more ranks are taken than are left.
            unsafe {
                rank += match self.args.rank - rank {
                    TILE.. => {
                        self.ranks::<S, M, TILE>((row, rank), (first, len), sums);
                        TILE
                    }
                    _ => {
                        self.ranks::<S, M, 1>((row, rank), (first, len), sums);
                        1
                    }
                };
            }
        }
        for (m, sums) in sums.iter().enumerate().take(M) {
            // SAFETY: the caller's.
            unsafe { self.finish::<S>(row + m, (first, len), sums) };
        }
    }

    /// Adds a row's sums, and what the base product left out in the order that it would have had.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, row: usize, (first, len): (usize, usize), sums: &[f32; PIECE]) {
        let ExpandArgs { out_scale, bias, residual, out, features, .. } = self.args;
        let mut done = 0;
        while done < len {
            let n = (len - done).min(LANES);
            let feature = first + done;
            let at = row * features + feature;
            // SAFETY: the caller's.
            unsafe {
                let mut y = load::<S>(out.add(at), n);
                let sum = S::load(sums.as_ptr().add(done));
                if !out_scale.is_null() {
                    y = S::mul(S::add(y, sum), load::<S>(out_scale.add(feature), n));
                }
                if !bias.is_null() {
                    y = S::add(y, load::<S>(bias.add(feature), n));
                }
                if !residual.is_null() {
                    y = S::add(y, load::<S>(residual.add(at), n));
                }
                if out_scale.is_null() {
                    y = S::add(y, sum);
                }
                store::<S>(out.add(at), y, n);
            }
            done += LANES;
        }
    }
}

impl<E: Element> Kernel for Expand<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let ExpandArgs { rows, piece, .. } = self.args;
        let mut sums = [[0.0; PIECE]; TILE];
        let mut first = piece.0;
        while first < piece.1 {
            let len = (piece.1 - first).min(PIECE);
            let mut row = 0;
            while row < rows {
                let m = tile_len(rows - row);
                // SAFETY: the caller's; tiles stay within rows and features.
                unsafe {
                    match m {
                        TILE => self.rows::<S, TILE>(row, (first, len), &mut sums),
                        _ => self.rows::<S, 1>(row, (first, len), &mut sums),
                    }
                }
                row += m;
            }
            first += len;
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
