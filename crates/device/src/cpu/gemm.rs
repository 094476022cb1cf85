//! The matrix products: activations times panels of 16 output features.
//!
//! Each output element is the sum over groups of inputs, in ascending order, each a chain of fused multiply-adds of its own;
//! where both sides are quantised a chain over the minimums of all blocks comes first. How many rows or panels a call handles
//! changes only what is computed beside it.

use super::activations::{Activations, BLOCK_BYTES, BlockMeta, GROUP_BLOCKS, TILE_ROWS};
use super::blocks::{BLOCK, BlockFormat};
use super::isa::Kernel;
use super::lines::LINE_BYTES;
use super::simd::{LANES, Simd};

/// What happens to a finished sum before it is stored: `out = sum + bias + residual`.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    /// `[features]` or null.
    pub(crate) bias: *const f32,
    /// As `out`, or null.
    pub(crate) residual: *const f32,
    /// Row 0, feature 0.
    pub(crate) out: *mut f32,
    /// Features, and the distance between rows.
    pub(crate) features: usize,
}

impl Epilogue {
    /// Fetches what [`Epilogue::store`] will touch: rows lie pages apart.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch(&self, row: usize, panel: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = row * self.features + panel * LANES;
        super::simd::prefetchw(self.out.wrapping_add(at));
        if !self.residual.is_null() {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.residual.wrapping_add(at).cast()) };
        }
    }

    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(&self, row: usize, panel: usize, sum: S::F) {
        let first = panel * LANES;
        let at = row * self.features + first;
        // SAFETY: the caller's row and panel exist; the last panel is stored in part.
        unsafe {
            let n = self.features - first;
            if n >= LANES {
                let mut y = sum;
                if !self.bias.is_null() {
                    y = S::add(y, S::load(self.bias.add(first)));
                }
                if !self.residual.is_null() {
                    y = S::add(y, S::load(self.residual.add(at)));
                }
                S::store(self.out.add(at), y);
            } else {
                let mut y = sum;
                if !self.bias.is_null() {
                    y = S::add(y, S::load_part(self.bias.add(first), n));
                }
                if !self.residual.is_null() {
                    y = S::add(y, S::load_part(self.residual.add(at), n));
                }
                S::store_part(self.out.add(at), y, n);
            }
        }
    }
}

/// Rows `rows.0 .. rows.1`, the first at the start of a tile, times panels `panels.0 .. panels.1` of a quantised weight.
#[derive(Clone, Copy)]
pub(crate) struct QuantisedGemm<F> {
    pub(crate) format: std::marker::PhantomData<F>,
    pub(crate) x: Activations,
    pub(crate) quants: *const u8,
    pub(crate) scales: *const u8,
    pub(crate) rows: (usize, usize),
    pub(crate) panels: (usize, usize),
    pub(crate) epilogue: Epilogue,
}

impl<F: BlockFormat> QuantisedGemm<F> {
    /// `M` rows by the panels; gives `M`.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const M: usize>(&self, row: usize, panels: (usize, usize)) -> usize {
        for panel in panels.0..panels.1 {
            // SAFETY: the caller's.
            unsafe { self.tile::<S, M>(row, panel) };
        }
        M
    }

    /// A panel's scales.
    #[inline(always)]
    pub(crate) fn scales(&self, panel: usize) -> *const u8 {
        self.scales.wrapping_add(panel * (self.x.num_blocks / F::SUPER) * F::SCALE_BYTES)
    }

    /// What the sums of `M` rows start at: the part of the weights' minimums.
    #[inline(always)]
    pub(crate) unsafe fn minimums<S: Simd, const M: usize>(&self, row: usize, panel: usize) -> [S::F; M] {
        // SAFETY: as `tile`.
        unsafe {
            let mut sums = [S::splat(0.0); M];
            if F::HAS_MIN {
                let scales = self.scales(panel);
                let (_, meta) = self.x.row(row);
                let panel_bytes = self.x.num_blocks / F::SUPER * F::SCALE_BYTES;
                for b in 0..self.x.num_blocks {
                    let scales = scales.add(b / F::SUPER * F::SCALE_BYTES);
                    // The next panel's: this is over before the processor has noticed where it goes.
                    S::prefetch(scales.wrapping_add(panel_bytes));
                    let min = F::minimum::<S>(scales, b % F::SUPER);
                    let meta = meta.add(b * TILE_ROWS);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        *sum = S::fma(min, S::splat((*meta.add(m)).scaled_sum), *sum);
                    }
                }
            }
            sums
        }
    }

    /// `M` rows, which stand in one tile of activations, by one panel.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(&self, row: usize, panel: usize) {
        let num_blocks = self.x.num_blocks;
        // SAFETY: rows, panels and their extents are the caller's; all loads stay within them.
        unsafe {
            let quants = self.quants.add(panel * num_blocks * F::QUANT_BYTES);
            let scales = self.scales(panel);
            let (a, meta) = self.x.row(row);
            let mut sums = self.minimums::<S, M>(row, panel);
            for first in (0..num_blocks).step_by(GROUP_BLOCKS) {
                let mut group = [S::splat(0.0); M];
                for b in first..num_blocks.min(first + GROUP_BLOCKS) {
                    let w = F::quants::<S>(quants.add(b * F::QUANT_BYTES));
                    let parts = F::scales::<S>(scales.add(b / F::SUPER * F::SCALE_BYTES), b % F::SUPER);
                    if M == TILE_ROWS {
                        let ahead = quants.wrapping_add((b + BLOCKS_AHEAD) * F::QUANT_BYTES);
                        for line in 0..F::QUANT_BYTES / LINE_BYTES {
                            S::prefetch(ahead.wrapping_add(line * LINE_BYTES));
                        }
                    }
                    let at = b * TILE_ROWS;
                    add_block::<F, S, M>(&w, parts, (a.add(at * BLOCK_BYTES), meta.add(at)), &mut group);
                }
                let meta = meta.add(first * TILE_ROWS);
                for (m, (sum, group)) in sums.iter_mut().zip(group).enumerate() {
                    *sum = S::fma(group, S::splat((*meta.add(m)).scale), *sum);
                }
            }
            for (m, sum) in sums.into_iter().enumerate() {
                self.epilogue.store::<S>(row + m, panel, sum);
            }
        }
    }
}

/// Bytes of panels' quants that one tile of rows after the other passes over.
const PANELS_BYTES: usize = 256 * 1024;

/// Blocks ahead of which a panel's bytes are asked for where many rows make the block last.
const BLOCKS_AHEAD: usize = 4;

/// Rows that [`Simd::dot_rows`] takes at once.
const ROWS_TOGETHER: usize = 8;

/// What was added to every weight to make its quant.
#[inline(always)]
const fn offset<F: BlockFormat, S: Simd>() -> i32 {
    F::OFFSET + if F::SIGNED { S::I8_BIAS } else { 0 }
}

/// What a block's integer sum starts at, `sum` being that of the activations: minus what the weights' offset adds.
#[inline(always)]
unsafe fn start<F: BlockFormat, S: Simd>(sum: i32) -> S::I {
    // SAFETY: register arithmetic only; the caller guarantees the CPU features.
    unsafe { S::splat_i32(-offset::<F, S>() * sum) }
}

/// Adds to each row's sum its product with a block of the panel. `x` is the first row's block; the others follow.
#[inline(always)]
unsafe fn add_block<F: BlockFormat, S: Simd, const M: usize>(
    w: &[S::W; 8],
    scales: [S::F; 2],
    x: (*const i8, *const BlockMeta),
    sums: &mut [S::F; M],
) {
    // SAFETY: the caller's: the rows' blocks are readable.
    unsafe {
        if F::PARTS == 1 && M.is_multiple_of(ROWS_TOGETHER) {
            for (i, sums) in sums.as_chunks_mut::<ROWS_TOGETHER>().0.iter_mut().enumerate() {
                let first = i * ROWS_TOGETHER;
                let dots = S::dot_rows(w, x.0.add(first * BLOCK_BYTES), F::SIGNED);
                for (m, (sum, mut dot)) in sums.iter_mut().zip(dots).enumerate() {
                    if offset::<F, S>() != 0 {
                        dot = S::add_i32(dot, start::<F, S>((*x.1.add(first + m)).sum));
                    }
                    *sum = S::fma(S::to_f32(dot), scales[0], *sum);
                }
            }
            return;
        }
        for (m, sum) in sums.iter_mut().enumerate() {
            let (a, meta) = (x.0.add(m * BLOCK_BYTES), *x.1.add(m));
            if F::PARTS == 1 {
                let dot = dot_block::<F, S, M>(w, a, meta.sum);
                *sum = S::fma(S::to_f32(dot), scales[0], *sum);
            } else {
                let low = dot_half::<F, S, 0>(w, a, meta.sum_low);
                let high = dot_half::<F, S, 4>(w, a, meta.sum - meta.sum_low);
                *sum = S::fma(S::to_f32(low), scales[0], *sum);
                *sum = S::fma(S::to_f32(high), scales[1], *sum);
            }
        }
    }
}

/// The whole block's product. Integer sums are exact in any order, so that the number of chains is free.
#[inline(always)]
unsafe fn dot_block<F: BlockFormat, S: Simd, const M: usize>(w: &[S::W; 8], a: *const i8, sum: i32) -> S::I {
    // SAFETY: 64 readable bytes, by the caller.
    unsafe {
        let low = a.add(BLOCK);
        // Two long chains, where registers are few; else four short ones, which wait less for themselves.
        if M >= 4 && S::REGISTERS < 32 {
            let mut x = F::dot::<S>(S::splat_i32(0), w[0], a);
            x = F::dot::<S>(x, w[1], a.add(4));
            x = F::dot::<S>(x, w[2], a.add(8));
            x = F::dot::<S>(x, w[3], a.add(12));
            x = F::dot::<S>(x, w[4], a.add(16));
            x = F::dot::<S>(x, w[5], a.add(20));
            x = F::dot::<S>(x, w[6], a.add(24));
            x = F::dot::<S>(x, w[7], a.add(28));
            let mut y = F::dot::<S>(start::<F, S>(sum), w[0], low);
            y = F::dot::<S>(y, w[1], low.add(4));
            y = F::dot::<S>(y, w[2], low.add(8));
            y = F::dot::<S>(y, w[3], low.add(12));
            y = F::dot::<S>(y, w[4], low.add(16));
            y = F::dot::<S>(y, w[5], low.add(20));
            y = F::dot::<S>(y, w[6], low.add(24));
            y = F::dot::<S>(y, w[7], low.add(28));
            S::add_i32(S::shl4_i32(x), y)
        } else {
            let x = dot_half::<F, S, 0>(w, a, sum);
            let y = dot_half::<F, S, 4>(w, a, 0);
            S::add_i32(x, y)
        }
    }
}

/// The product of four groups, the first of which is `FIRST`.
#[inline(always)]
unsafe fn dot_half<F: BlockFormat, S: Simd, const FIRST: usize>(
    w: &[S::W; 8],
    a: *const i8,
    sum: i32,
) -> S::I {
    // SAFETY: 64 readable bytes, by the caller.
    unsafe {
        let a = a.add(4 * FIRST);
        let low = a.add(BLOCK);
        let mut x = F::dot::<S>(S::splat_i32(0), w[FIRST], a);
        let mut y = F::dot::<S>(start::<F, S>(sum), w[FIRST], low);
        x = F::dot::<S>(x, w[FIRST + 1], a.add(4));
        y = F::dot::<S>(y, w[FIRST + 1], low.add(4));
        x = F::dot::<S>(x, w[FIRST + 2], a.add(8));
        y = F::dot::<S>(y, w[FIRST + 2], low.add(8));
        x = F::dot::<S>(x, w[FIRST + 3], a.add(12));
        y = F::dot::<S>(y, w[FIRST + 3], low.add(12));
        S::add_i32(S::shl4_i32(x), y)
    }
}

impl<F: BlockFormat> Kernel for QuantisedGemm<F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Panels that stay in the second-level cache, each row tile meanwhile in the first.
        let step = (PANELS_BYTES / (self.x.num_blocks * F::QUANT_BYTES).max(1)).max(1);
        for first in (self.panels.0..self.panels.1).step_by(step) {
            let panels = (first, self.panels.1.min(first + step));
            let mut row = self.rows.0;
            while row < self.rows.1 {
                // SAFETY: the caller's; a tile never exceeds the rows that are left.
                unsafe {
                    row += match self.rows.1 - row {
                        TILE_ROWS.. => self.tiles::<S, TILE_ROWS>(row, panels),
                        8.. => self.tiles::<S, 8>(row, panels),
                        4 | 7 => self.tiles::<S, 4>(row, panels),
                        3.. => self.tiles::<S, 3>(row, panels),
                        2 => self.tiles::<S, 2>(row, panels),
                        _ => self.tiles::<S, 1>(row, panels),
                    };
                }
            }
        }
    }
}

/// Element type of a plain weight or an adapter's factor.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Size in bytes.
    const BYTES: usize;
    /// 16 elements.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// The first `n`.
    unsafe fn load_part<S: Simd>(p: *const u8, n: usize) -> S::F;
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $load:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Element for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const u8) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::$load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn load_part<S: Simd>(p: *const u8, n: usize) -> S::F {
                let mut whole = [0_u8; LANES * $bytes];
                // SAFETY: `n` elements are readable, by the caller, and fit.
                unsafe {
                    std::ptr::copy_nonoverlapping(p, whole.as_mut_ptr(), n * $bytes);
                    S::$load(whole.as_ptr().cast())
                }
            }
        }
    };
}
element!(
    /// binary32.
    F32, 4, load);
element!(
    /// binary16.
    F16, 2, load_f16);
element!(
    /// bfloat16.
    BF16, 2, load_bf16);

/// Inputs of a plain weight that are summed before their sum is added to the others': one long chain would round small terms
/// off against all that came before.
const PLAIN_GROUP: usize = 128;

/// As [`QuantisedGemm`], for a plain weight and f32 activations.
#[derive(Clone, Copy)]
pub(crate) struct PlainGemm<E> {
    pub(crate) element: std::marker::PhantomData<E>,
    /// `[rows, cols]`.
    pub(crate) x: *const f32,
    pub(crate) cols: usize,
    pub(crate) weights: *const u8,
    pub(crate) rows: (usize, usize),
    pub(crate) panels: (usize, usize),
    pub(crate) epilogue: Epilogue,
}

impl<E: Element> PlainGemm<E> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const P: usize>(&self, row: usize, panel: usize) {
        // SAFETY: rows, panels and their extents are the caller's; all loads stay within them.
        unsafe {
            let x = self.x.add(row * self.cols);
            let stride = self.cols * LANES * E::BYTES;
            let weights = self.weights.add(panel * stride);
            let mut totals = [[S::splat(0.0); P]; M];
            for first in (0..self.cols).step_by(PLAIN_GROUP) {
                let mut sums = [[S::splat(0.0); P]; M];
                for k in first..self.cols.min(first + PLAIN_GROUP) {
                    let mut w = [S::splat(0.0); P];
                    for (p, w) in w.iter_mut().enumerate() {
                        *w = E::load::<S>(weights.add(p * stride + k * LANES * E::BYTES));
                    }
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let x = S::splat(*x.add(m * self.cols + k));
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = S::fma(x, w, *sum);
                        }
                    }
                }
                for (totals, sums) in totals.iter_mut().zip(sums) {
                    for (total, sum) in totals.iter_mut().zip(sums) {
                        *total = S::add(*total, sum);
                    }
                }
            }
            for (m, totals) in totals.into_iter().enumerate() {
                for (p, total) in totals.into_iter().enumerate() {
                    self.epilogue.store::<S>(row + m, panel + p, total);
                }
            }
        }
    }

    /// All rows of `P` panels, `SIX` of them at once for six rows, `TWO` for two, all for one.
    #[inline(always)]
    unsafe fn rows<S: Simd, const P: usize, const SIX: usize, const TWO: usize>(&self, panel: usize) {
        let mut row = self.rows.0;
        while row < self.rows.1 {
            // SAFETY: the caller's; a tile never exceeds the rows that are left, nor the panels.
            unsafe {
                if self.rows.1 - row >= 6 {
                    for part in 0..P / SIX {
                        self.tile::<S, 6, SIX>(row, panel + part * SIX);
                    }
                    row += 6;
                } else if self.rows.1 - row >= 2 {
                    for part in 0..P / TWO {
                        self.tile::<S, 2, TWO>(row, panel + part * TWO);
                    }
                    row += 2;
                } else {
                    self.tile::<S, 1, P>(row, panel);
                    row += 1;
                }
            }
        }
    }
}

impl<E: Element> Kernel for PlainGemm<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut panel = self.panels.0;
        while panel < self.panels.1 {
            // SAFETY: the caller's; no more panels are taken than are left.
            unsafe {
                if self.panels.1 - panel >= 4 {
                    // As many sums as the registers hold, but enough to hide the latency of an addition.
                    if S::REGISTERS >= 32 {
                        self.rows::<S, 4, 4, 4>(panel);
                    } else {
                        self.rows::<S, 4, 1, 2>(panel);
                    }
                    panel += 4;
                } else {
                    self.rows::<S, 1, 1, 1>(panel);
                    panel += 1;
                }
            }
        }
    }
}
