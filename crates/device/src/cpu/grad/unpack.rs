//! Panels of a weight as plain rows of f32: what the backward pass of a frozen layer multiplies by, a tile at a time.

use std::marker::PhantomData;

use crate::WeightFormat;
use crate::cpu::blocks::{BLOCK, BlockFormat};
use crate::cpu::gemm::{BF16, Element, F16, F32};
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::lines::Lines;
use crate::cpu::simd::{LANES, Simd};
use crate::cpu::weight::{CpuWeight, with_block_format};

/// Inputs in a tile: whole blocks.
pub(super) const TILE_COLS: usize = 64;
/// Panels in a tile. With 128 outputs it takes 32 KiB.
pub(super) const TILE_PANELS: usize = 8;
/// Elements of a tile.
pub(super) const TILE_LEN: usize = TILE_PANELS * LANES * TILE_COLS;

/// Writes the weight's panels `panels.0 .. panels.1` (at most [`TILE_PANELS`]), inputs `cols.0 .. cols.1` (at most
/// [`TILE_COLS`], from a multiple of that on), dequantised, to `out`: `[outputs, TILE_COLS]`.
///
/// # Safety
/// Panels and inputs exist; `out` holds [`TILE_LEN`].
pub(super) unsafe fn unpack(
    isa: Isa,
    weight: &CpuWeight,
    panels: (usize, usize),
    cols: (usize, usize),
    out: &mut Lines,
) {
    let (quants, scales, out) = (weight.quants.ptr(), weight.scales.ptr(), out.as_mut_ptr());
    // SAFETY: the caller's.
    unsafe {
        with_block_format!(weight.format, F => isa.run(UnpackBlocks::<F> {
            format: PhantomData, quants, scales, num_blocks: weight.cols / BLOCK, panels,
            blocks: (cols.0 / BLOCK, cols.1 / BLOCK), out,
        }), else match weight.format {
            WeightFormat::F16 => isa.run(UnpackPlain::<F16> { element: PhantomData, weights: quants, num_cols: weight.cols, panels, cols, out }),
            WeightFormat::BF16 => isa.run(UnpackPlain::<BF16> { element: PhantomData, weights: quants, num_cols: weight.cols, panels, cols, out }),
            _ => isa.run(UnpackPlain::<F32> { element: PhantomData, weights: quants, num_cols: weight.cols, panels, cols, out }),
        });
    }
}

struct UnpackBlocks<F> {
    format: PhantomData<F>,
    quants: *const u8,
    scales: *const u8,
    num_blocks: usize,
    panels: (usize, usize),
    blocks: (usize, usize),
    out: *mut f32,
}

impl<F: BlockFormat> Kernel for UnpackBlocks<F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for panel in self.panels.0..self.panels.1 {
            for block in self.blocks.0..self.blocks.1 {
                let row = (panel - self.panels.0) * LANES;
                let col = (block - self.blocks.0) * BLOCK;
                // SAFETY: the caller's.
                unsafe { self.block::<S>(panel, block, self.out.add(row * TILE_COLS + col)) };
            }
        }
    }
}

impl<F: BlockFormat> UnpackBlocks<F> {
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, panel: usize, block: usize, out: *mut f32) {
        // SAFETY: the caller's.
        unsafe {
            let groups = F::quants::<S>(self.quants.add((panel * self.num_blocks + block) * F::QUANT_BYTES));
            let at = panel * (self.num_blocks / F::SUPER) + block / F::SUPER;
            let scales = self.scales.add(at * F::SCALE_BYTES);
            let mut factors = [[0.0_f32; LANES]; 2];
            for (factors, scale) in factors.iter_mut().zip(F::scales::<S>(scales, block % F::SUPER)) {
                S::store(factors.as_mut_ptr(), scale);
            }
            let mut minimums = [0.0_f32; LANES];
            if F::HAS_MIN {
                S::store(minimums.as_mut_ptr(), F::minimum::<S>(scales, block % F::SUPER));
            }
            // A group has four inputs of each of 16 outputs: 64 bytes, whatever the registers are.
            const { assert!(size_of::<S::W>() == 4 * LANES) };
            let mut bytes = [0_u32; 8 * LANES];
            for (j, group) in groups.into_iter().enumerate() {
                bytes.as_mut_ptr().add(j * LANES).cast::<S::W>().write_unaligned(group);
            }
            // Signed bytes may be biased by 128: that is one flipped bit.
            const { assert!(S::I8_BIAS == 0 || S::I8_BIAS == 128) };
            let flip = if F::SIGNED && S::I8_BIAS == 128 { 0x8080_8080 } else { 0 };
            // All lanes first: what was stored just before in pieces is slow to load as a whole.
            let mut rows = [[0_u32; 8]; LANES];
            for j in 0..8 {
                for (lane, row) in rows.iter_mut().enumerate() {
                    *row.get_unchecked_mut(j) = *bytes.get_unchecked(j * LANES + lane) ^ flip;
                }
            }
            let offset = S::splat(F::OFFSET as f32);
            for (lane, row) in rows.iter().enumerate() {
                let row: *const i8 = row.as_ptr().cast();
                let minimum = S::splat(*minimums.get_unchecked(lane));
                for half in 0..2 {
                    let part = if F::PARTS == 2 { half } else { 0 };
                    let factor = S::splat(*factors.get_unchecked(part).get_unchecked(lane));
                    let mut quant = S::load_i8(row.add(half * LANES));
                    if F::OFFSET != 0 {
                        quant = S::sub(quant, offset);
                    }
                    let value =
                        if F::HAS_MIN { S::fma(quant, factor, minimum) } else { S::mul(quant, factor) };
                    S::store(out.add(lane * TILE_COLS + half * LANES), value);
                }
            }
        }
    }
}

struct UnpackPlain<E> {
    element: PhantomData<E>,
    weights: *const u8,
    num_cols: usize,
    panels: (usize, usize),
    cols: (usize, usize),
    out: *mut f32,
}

impl<E: Element> Kernel for UnpackPlain<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for panel in self.panels.0..self.panels.1 {
            let row = (panel - self.panels.0) * LANES;
            for col in self.cols.0..self.cols.1 {
                // SAFETY: the caller's.
                unsafe {
                    let mut lanes = [0.0_f32; LANES];
                    let from = self.weights.add((panel * self.num_cols + col) * LANES * E::BYTES);
                    S::store(lanes.as_mut_ptr(), E::load::<S>(from));
                    let out = self.out.add(row * TILE_COLS + col - self.cols.0);
                    for (lane, value) in lanes.into_iter().enumerate() {
                        *out.add(lane * TILE_COLS) = value;
                    }
                }
            }
        }
    }
}
