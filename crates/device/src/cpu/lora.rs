//! Low-rank updates of the rows that use an adapter: `x Aᵀ` (shrink), then `+ scale (…) Bᵀ` (expand).
//!
//! Both factors lie in memory in the order in which they are read (see [`crate::LoraFactors`]): once from first to last
//! for each tile of rows, a vector of 16 ranks or outputs at a time, and nothing has to be added across lanes. Ranks are
//! exact. A step reads each factor once and none is long, so what comes next is asked for by hand: the processor would
//! notice too late.

use std::marker::PhantomData;

use super::gemm::{BF16, Element, F16, F32};
use super::isa::{Isa, Kernel};
use super::lines::LINE_BYTES;
use super::simd::{LANES, Simd, load, store};
use crate::DType;

/// How far ahead factors are asked for, in bytes: into the second-level cache, which has more requests under way at once,
/// and from there into the first.
const FAR_BYTES: usize = 8192;
const NEAR_BYTES: usize = 1024;
/// How many tiles ahead outputs are asked for: half of them were written by other threads.
const OUT_AHEAD: usize = 3;

/// Rows of the next tile when `left` are left: as many as the registers hold the sums of.
#[inline(always)]
fn tile_rows<S: Simd>(left: usize) -> usize {
    match left {
        4.. if S::REGISTERS >= 16 => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Where the bytes lie that are asked for at a step: so many bytes after it.
#[derive(Clone, Copy)]
struct Ahead {
    near: isize,
    far: isize,
}

/// Asks for `vectors` vectors of elements that will be read in a while.
#[inline(always)]
unsafe fn fetch<S: Simd, E: Element>(p: *const u8, ahead: Ahead, vectors: usize) {
    let mut at = 0;
    while at < vectors * LANES * E::BYTES {
        // SAFETY: the caller's, for the CPU features; the addresses need not be valid.
        unsafe {
            S::prefetch_far(p.wrapping_offset(ahead.far).wrapping_add(at));
            S::prefetch(p.wrapping_offset(ahead.near).wrapping_add(at));
        }
        at += LINE_BYTES;
    }
}

/// The `steps` over a factor, each of `step_bytes`, in parts: first its own bytes are asked for, then those of `next`,
/// or, if that is null, what lies behind it. Each part's end, and what its steps ask for.
#[inline(always)]
fn parts(factor: *const u8, next: *const u8, step_bytes: usize, steps: usize) -> [(usize, Ahead); 3] {
    let end = factor.wrapping_add(steps * step_bytes);
    let gap = if next.is_null() { 0 } else { (next as isize).wrapping_sub(end as isize) };
    let own = |ahead: usize| steps.saturating_sub(ahead / step_bytes.max(1));
    let (near, far) = (NEAR_BYTES as isize, FAR_BYTES as isize);
    let (next_near, next_far) = (near.wrapping_add(gap), far.wrapping_add(gap));
    [
        (own(FAR_BYTES), Ahead { near, far }),
        (own(NEAR_BYTES), Ahead { near, far: next_far }),
        (steps, Ahead { near: next_near, far: next_far }),
    ]
}

/// `low[row, r] = scale * scales[row] * Σ_k x[row, k] a[k, r]`.
///
/// The sum runs in two chains, of even and of odd `k`.
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
    /// `[cols, rank]`.
    pub(crate) a: *const u8,
    /// Factor per row.
    pub(crate) scales: *const f32,
    pub(crate) scale: f32,
    /// `[rows, rank]`.
    pub(crate) low: *mut f32,
    pub(crate) rank: usize,
    pub(crate) rows: usize,
    /// The factor that will be read after this one, or null.
    pub(crate) next: *const u8,
}

impl<E: Element> Shrink<E> {
    /// The 16 ranks from `rank` on, or as many as there are, of `M` rows.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(&self, row: usize, rank: usize) {
        let ShrinkArgs { x, cols, a, scales, scale, low, rank: num_ranks, next, .. } = self.args;
        let n = (num_ranks - rank).min(LANES);
        // Loads of whole vectors may reach into the next `k`, but not beyond the last one.
        let whole =
            (cols * num_ranks).checked_sub(rank + LANES).map_or(0, |last| last / num_ranks + 1).min(cols);
        // SAFETY: rows, ranks and their extents are the caller's; all loads stay within them.
        unsafe {
            let x = x.add(row * cols);
            let mut p = a.add(rank * E::BYTES);
            let stride = num_ranks * E::BYTES;
            let mut sums = [[S::splat(0.0); 2]; M];
            let mut k = 0;
            for (end, ahead) in parts(a, next, 2 * stride, whole / 2) {
                while k < 2 * end {
                    fetch::<S, E>(p, ahead, 2);
                    let (even, odd) = (E::load::<S>(p), E::load::<S>(p.add(stride)));
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let x = x.add(m * cols + k);
                        sums[0] = S::fma(S::splat(*x), even, sums[0]);
                        sums[1] = S::fma(S::splat(*x.add(1)), odd, sums[1]);
                    }
                    p = p.add(2 * stride);
                    k += 2;
                }
            }
            while k < cols {
                let av = if k < whole { E::load::<S>(p) } else { E::load_part::<S>(p, n) };
                for (m, sums) in sums.iter_mut().enumerate() {
                    let xv = S::splat(*x.add(m * cols + k));
                    if k.is_multiple_of(2) {
                        sums[0] = S::fma(xv, av, sums[0]);
                    } else {
                        sums[1] = S::fma(xv, av, sums[1]);
                    }
                }
                p = p.add(stride);
                k += 1;
            }
            for (m, [even, odd]) in sums.into_iter().enumerate() {
                let factor = S::splat(scale * *scales.add(row + m));
                store::<S>(low.add((row + m) * num_ranks + rank), S::mul(factor, S::add(even, odd)), n);
            }
        }
    }
}

impl<E: Element> Kernel for Shrink<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for rank in (0..self.args.rank).step_by(LANES) {
            let mut row = 0;
            while row < self.args.rows {
                let m = tile_rows::<S>(self.args.rows - row);
                // SAFETY: the caller's; tiles stay within rows and ranks.
                unsafe {
                    match m {
                        4 => self.tile::<S, 4>(row, rank),
                        2 => self.tile::<S, 2>(row, rank),
                        _ => self.tile::<S, 1>(row, rank),
                    }
                }
                row += m;
            }
        }
    }
}

/// `out[row, o] = out_scale[o] * (out[row, o] + Σ_r low[row, r] b[o, r]) + bias[o] + residual[row, o]`, where
/// absent parts are left out.
///
/// Each sum is one chain over the ranks.
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
    /// `[features, rank]` in panels of 16 features, each `[rank, 16]`.
    pub(crate) b: *const u8,
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
    /// The factor that will be read after this piece, or null.
    pub(crate) next: *const u8,
}

impl<E: Element> Expand<E> {
    /// `M` rows of `P` panels from `feature` on; `n` features of the last.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const P: usize, const PLAIN: bool>(
        &self,
        row: usize,
        (feature, n): (usize, usize),
        ahead: Ahead,
    ) {
        let ExpandArgs { low, rank, b, out, features, .. } = self.args;
        // SAFETY: rows, ranks and features are the caller's; all loads stay within them.
        unsafe {
            for m in 0..M {
                for i in 0..P {
                    let soon = (row + m) * features + feature + (i + OUT_AHEAD * P) * LANES;
                    S::prefetch_write(out.wrapping_add(soon));
                }
            }
            let low = low.add(row * rank);
            let panel_bytes = LANES * rank * E::BYTES;
            let b = b.add(feature * rank * E::BYTES);
            let mut sums = [[S::splat(0.0); P]; M];
            for r in 0..rank {
                // The panels lie one after the other, and so do those to come.
                fetch::<S, E>(b.wrapping_add(r * P * LANES * E::BYTES), ahead, P);
                let mut bv = [S::splat(0.0); P];
                for (i, bv) in bv.iter_mut().enumerate() {
                    let panel = b.add(i * panel_bytes);
                    *bv = if n == LANES {
                        E::load::<S>(panel.add(r * LANES * E::BYTES))
                    } else {
                        E::load_part::<S>(panel.add(r * n * E::BYTES), n)
                    };
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let factor = S::splat(*low.add(m * rank + r));
                    for (sum, b) in sums.iter_mut().zip(bv) {
                        *sum = S::fma(factor, b, *sum);
                    }
                }
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    if PLAIN {
                        let y = out.add((row + m) * features + feature + i * LANES);
                        store::<S>(y, S::add(load::<S>(y, n), sum), n);
                    } else {
                        self.finish::<S>(row + m, feature + i * LANES, n, sum);
                    }
                }
            }
        }
    }

    /// Adds a sum, and what the base product left out in the order that it would have had.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, row: usize, feature: usize, n: usize, sum: S::F) {
        let ExpandArgs { out_scale, bias, residual, out, features, .. } = self.args;
        let at = row * features + feature;
        // SAFETY: the caller's.
        unsafe {
            let mut y = load::<S>(out.add(at), n);
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
    }

    /// All panels of `M` rows, two at once.
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const PLAIN: bool>(&self, row: usize) {
        let (mut feature, end) = self.args.piece;
        // SAFETY: the caller's; panels stay within the piece.
        unsafe {
            let tile_bytes = 2 * LANES * self.args.rank * E::BYTES;
            let first = self.args.b.add(feature * self.args.rank * E::BYTES);
            let tiles = (end - feature) / (2 * LANES);
            let mut tile = 0;
            for (end, ahead) in parts(first, self.args.next, tile_bytes, tiles) {
                while tile < end {
                    self.tile::<S, M, 2, PLAIN>(row, (feature, LANES), ahead);
                    feature += 2 * LANES;
                    tile += 1;
                }
            }
            while feature < end {
                let n = (end - feature).min(LANES);
                self.tile::<S, M, 1, PLAIN>(
                    row,
                    (feature, n),
                    Ahead { near: NEAR_BYTES as isize, far: FAR_BYTES as isize },
                );
                feature += n;
            }
        }
    }
}

impl<E: Element> Expand<E> {
    /// All rows.
    #[inline(always)]
    unsafe fn all<S: Simd, const PLAIN: bool>(&self) {
        let mut row = 0;
        while row < self.args.rows {
            let m = tile_rows::<S>(self.args.rows - row);
            // SAFETY: the caller's; tiles stay within the rows.
            unsafe {
                match m {
                    4 => self.rows::<S, 4, PLAIN>(row),
                    2 => self.rows::<S, 2, PLAIN>(row),
                    _ => self.rows::<S, 1, PLAIN>(row),
                }
            }
            row += m;
        }
    }
}

impl<E: Element> Kernel for Expand<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let ExpandArgs { out_scale, bias, residual, .. } = self.args;
        // SAFETY: the caller's.
        unsafe {
            match out_scale.is_null() && bias.is_null() && residual.is_null() {
                true => self.all::<S, true>(),
                false => self.all::<S, false>(),
            }
        }
    }
}

/// Runs a [`Shrink`].
///
/// # Safety
/// Pointers and extents as in [`ShrinkArgs`], of the element type `dtype`; no two calls at once write the same rows.
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
