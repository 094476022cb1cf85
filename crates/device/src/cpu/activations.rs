//! Quantised activations: 12 bits, as a high and a low byte, with one scale per group of 128.
//!
//! `x ≈ scale (16 high + low)` with `scale = amax / 2032`, `high` in -127..=127 and `low` in -8..=8. Eight bits would
//! cost a tenth of a nat of log-probability here and there; twelve leave the weights' own rounding as all the error
//! there is, for the price of a second dot product over quants that are unpacked once. With four blocks of weights to a
//! scale, sums are multiplied by it once for four times by a weight's scale.
//!
//! Rows stand in tiles of 16: tile by tile, block by block, the 16 rows' 64 bytes (32 high, 32 low) one after
//! the other, 1 KiB in all. That is what one tile register holds, and what a run of dot products reads in order.

use super::blocks::BLOCK;
use super::simd::{LANES, Simd};

/// Rows in a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Bytes of one row's block: high parts, then low ones.
pub(crate) const BLOCK_BYTES: usize = 2 * BLOCK;
/// Blocks that have one scale; the last group of a row may have fewer.
pub(crate) const GROUP_BLOCKS: usize = 4;
/// A value of `high` in units of `low`.
const HIGH: f32 = 16.0;

/// Largest factor to whole numbers, a power of two.
const MAX_INVERSE: f32 = f32::from_bits(0x7f00_0000);

/// One row's block. Aligned, since each of a tile register's rows would else be two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct QuantBlock([i8; BLOCK_BYTES]);

impl Default for QuantBlock {
    fn default() -> Self {
        Self([0; BLOCK_BYTES])
    }
}

/// What the kernels need of a block besides the quants.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct BlockMeta {
    /// `amax / 2032` of the group.
    pub(crate) scale: f32,
    /// `scale * Σ q`: what a weight's minimum is multiplied by.
    pub(crate) scaled_sum: f32,
    /// `Σ q`: what a weight's offset is multiplied by.
    pub(crate) sum: i32,
    /// `Σ q` over the first half, where it was asked for.
    pub(crate) sum_low: i32,
}

/// Quantised rows, as pointers to all of them.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    pub(crate) quants: *const i8,
    pub(crate) meta: *const BlockMeta,
    /// Blocks of 32 in a row.
    pub(crate) num_blocks: usize,
}

impl Activations {
    /// Blocks that are stored for `rows` of `cols`: whole tiles, and one more tile, since a load of two may start at the
    /// last.
    pub(crate) fn stored_blocks(rows: usize, cols: usize) -> usize {
        rows.next_multiple_of(TILE_ROWS) * (cols / BLOCK) + TILE_ROWS
    }

    /// Where row `row` starts, counted in blocks; its next block is [`TILE_ROWS`] further.
    #[inline(always)]
    pub(crate) fn first_block(self, row: usize) -> usize {
        row / TILE_ROWS * TILE_ROWS * self.num_blocks + row % TILE_ROWS
    }

    /// First block of a row.
    #[inline(always)]
    pub(crate) unsafe fn row(self, row: usize) -> (*const i8, *const BlockMeta) {
        let at = self.first_block(row);
        // SAFETY: the row exists, by the caller.
        unsafe { (self.quants.add(at * BLOCK_BYTES), self.meta.add(at)) }
    }
}

/// Quantises `32 num_blocks` floats of a row, from the start of a group on, whose blocks go to `quants` and `meta` at
/// the layout's distance; `halves` asks for [`BlockMeta::sum_low`]. NaN has no quant; it cannot arise from finite weights
/// and inputs.
#[inline(always)]
pub(crate) unsafe fn quantise_row<S: Simd>(
    x: *const f32,
    num_blocks: usize,
    quants: *mut i8,
    meta: *mut BlockMeta,
    halves: bool,
) {
    // SAFETY: as many readable floats and writable blocks, by the caller.
    unsafe {
        let (mut scale, mut inverse) = (0.0, S::splat(0.0));
        for b in 0..num_blocks {
            if b % GROUP_BLOCKS == 0 {
                let mut max = S::splat(0.0);
                for at in (b * BLOCK..num_blocks.min(b + GROUP_BLOCKS) * BLOCK).step_by(LANES) {
                    max = S::max(max, S::abs(S::load(x.add(at))));
                }
                let amax = S::reduce_max(max);
                // The quotient overflows for the smallest numbers: they make do with fewer steps.
                // A maximum that is no number is kept in the scale.
                (scale, inverse) = if amax <= 127.0 / MAX_INVERSE {
                    (1.0 / MAX_INVERSE / HIGH, S::splat(MAX_INVERSE))
                } else {
                    (amax * (1.0 / (127.0 * HIGH)), S::splat(127.0 / amax))
                };
            }
            let (x0, x1) = (S::load(x.add(b * BLOCK)), S::load(x.add(b * BLOCK + LANES)));
            // The bounds matter only to infinities.
            let (least, most) = (S::splat(-127.0), S::splat(127.0));
            let y0 = S::min(S::max(S::mul(x0, inverse), least), most);
            let y1 = S::min(S::max(S::mul(x1, inverse), least), most);
            let (high0, high1) = (S::round(y0), S::round(y1));
            // What the rounding left over is exact.
            let low0 = S::round(S::mul(S::sub(y0, S::to_f32(high0)), S::splat(HIGH)));
            let low1 = S::round(S::mul(S::sub(y1, S::to_f32(high1)), S::splat(HIGH)));
            let to = quants.add(b * TILE_ROWS * BLOCK_BYTES);
            S::store_i8(to, high0);
            S::store_i8(to.add(LANES), high1);
            S::store_i8(to.add(BLOCK), low0);
            S::store_i8(to.add(BLOCK + LANES), low1);
            let q0 = S::add_i32(S::shl4_i32(high0), low0);
            let sum = S::reduce_add_i32(S::add_i32(q0, S::add_i32(S::shl4_i32(high1), low1)));
            let sum_low = if halves { S::reduce_add_i32(q0) } else { 0 };
            *meta.add(b * TILE_ROWS) = BlockMeta { scale, scaled_sum: scale * sum as f32, sum, sum_low };
        }
    }
}
