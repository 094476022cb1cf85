//! Gradients of low-rank updates.

use wardrobe_device::{Result, Tensor, TrainedModule};

use crate::driver::{DevicePtr, Launch};
use crate::kernels::{LoraExpandArgs, LoraOuterArgs, LoraShrinkArgs, LoraSumArgs, blocks, element_type};
use crate::ops::{CudaOps, Room, addr, int};

const FILE: &str = "backward/lora_backward";
const THREADS: u32 = 256;
/// Sums of a block's tile.
const TILE_SUMS: usize = 4096;
/// Blocks that fill a card.
const WANTED_BLOCKS: usize = 512;
/// Parts of a sum are no shorter.
const MIN_PART: usize = 128;

/// How a product is cut: the tile's narrow side, along the rank, its wide side, and the parts of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    narrow: usize,
    wide: usize,
    num_parts: usize,
    part: usize,
}

/// Of a product with `wide_len` by `rank` sums over `summed` terms; from the shape alone.
fn cut(wide_len: usize, rank: usize, summed: usize) -> Cut {
    let narrow = match rank {
        ..=16 => 16,
        17..=32 => 32,
        _ => 64,
    };
    let wide = TILE_SUMS / narrow;
    let blocks = wide_len.div_ceil(wide) * rank.div_ceil(narrow);
    let wanted = WANTED_BLOCKS.div_ceil(blocks.max(1));
    let part = summed.div_ceil(wanted.max(1)).max(MIN_PART).next_multiple_of(16);
    Cut { narrow, wide, num_parts: summed.div_ceil(part).max(1), part }
}

/// A factor of two dimensions, or what is multiplied with it.
struct Operand {
    at: DevicePtr,
    element_type: u32,
    rows: usize,
    cols: usize,
}

impl Operand {
    fn of(operand: &'static str, tensor: &Tensor) -> Result<Self> {
        Ok(Operand {
            at: addr("lora_backward", operand, tensor)?,
            element_type: element_type(tensor.dtype()),
            rows: tensor.shape().rows(),
            cols: tensor.shape().row_len(),
        })
    }
}

impl CudaOps {
    /// See [`wardrobe_device::GradOps::lora_backward`].
    pub(super) fn queue_lora_backward(
        &mut self,
        module: &TrainedModule,
        x: &Tensor,
        d_out: &Tensor,
        low: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        let op = "lora_backward";
        let rank = module.factors.rank();
        let (x, d_out) = (Operand::of("x", x)?, Operand::of("d_out", d_out)?);
        let low_a = addr(op, "low", low)?;
        let low_b = low_a.offset(4 * x.rows * rank);
        let scale = module.factors.scale;
        self.shrink(&x, addr(op, "A", &module.factors.a)?, low_a, rank, scale)?;
        self.shrink(&d_out, addr(op, "B", &module.b_rows)?, low_b, rank, scale)?;
        self.outer(low_b, &x, addr(op, "gradient of A", &module.grads.a)?, rank)?;
        self.outer(low_a, &d_out, addr(op, "gradient of B", &module.grads.b)?, rank)?;
        let args = LoraExpandArgs {
            low: low_b,
            panels: addr(op, "A", &module.a_panels)?,
            d_x: addr(op, "d_x", d_x)?,
            rows: int(x.rows),
            cols: int(x.cols),
            rank: int(rank),
            padding: 0,
        };
        let kernel = self.kernels().get::<LoraExpandArgs>(FILE, "lora_expand", 0)?;
        let grid = [x.rows.div_ceil(64) as u32, x.cols.div_ceil(64) as u32, 1];
        let launch = Launch { grid, block: THREADS, shared_bytes: 0 };
        // SAFETY: operands are as `GradOps` promises; the kernel gets what its comments ask for.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args) }
    }

    /// `low = scale x factor`.
    fn shrink(
        &mut self,
        x: &Operand,
        factor: DevicePtr,
        low: DevicePtr,
        rank: usize,
        scale: f32,
    ) -> Result<()> {
        let Cut { narrow, wide, num_parts, part } = cut(x.rows, rank, x.cols);
        let len = x.rows * rank;
        let parts = if num_parts > 1 { self.room(Room::Gradients, 4 * num_parts * len)? } else { low };
        let name = match narrow {
            16 => "lora_shrink_16",
            32 => "lora_shrink_32",
            _ => "lora_shrink_64",
        };
        let kernel = self.kernels().get::<LoraShrinkArgs>(FILE, name, 0)?;
        let grid = [x.rows.div_ceil(wide) as u32, rank.div_ceil(narrow) as u32, num_parts as u32];
        let args = LoraShrinkArgs {
            x: x.at,
            factor,
            low: parts,
            x_type: x.element_type,
            rows: int(x.rows),
            cols: int(x.cols),
            rank: int(rank),
            cols_per_part: int(part),
            scale,
        };
        let launch = Launch { grid, block: THREADS, shared_bytes: 0 };
        // SAFETY: as above.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args)? };
        self.sum_parts(parts, low, len, num_parts, false)
    }

    /// `sum += lowᵀ x`.
    fn outer(&mut self, low: DevicePtr, x: &Operand, sum: DevicePtr, rank: usize) -> Result<()> {
        let Cut { narrow, wide, num_parts, part } = cut(x.cols, rank, x.rows);
        let len = x.cols * rank;
        let parts = if num_parts > 1 { self.room(Room::Gradients, 4 * num_parts * len)? } else { sum };
        let name = match narrow {
            16 => "lora_outer_16",
            32 => "lora_outer_32",
            _ => "lora_outer_64",
        };
        let kernel = self.kernels().get::<LoraOuterArgs>(FILE, name, 0)?;
        let grid = [x.cols.div_ceil(wide) as u32, rank.div_ceil(narrow) as u32, num_parts as u32];
        let args = LoraOuterArgs {
            low,
            x: x.at,
            sum: parts,
            x_type: x.element_type,
            rows: int(x.rows),
            cols: int(x.cols),
            rank: int(rank),
            rows_per_part: int(part),
            accumulate: i32::from(num_parts == 1),
        };
        let launch = Launch { grid, block: THREADS, shared_bytes: 0 };
        // SAFETY: as above.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args)? };
        self.sum_parts(parts, sum, len, num_parts, true)
    }

    fn sum_parts(
        &mut self,
        parts: DevicePtr,
        out: DevicePtr,
        len: usize,
        num_parts: usize,
        accumulate: bool,
    ) -> Result<()> {
        if num_parts <= 1 {
            return Ok(());
        }
        let kernel = self.kernels().get::<LoraSumArgs>(FILE, "lora_sum", 0)?;
        let (num_parts, accumulate) = (int(num_parts), i32::from(accumulate));
        let args = LoraSumArgs { parts, out, len: len as u64, num_parts, accumulate };
        let launch = blocks(len.div_ceil(1024), THREADS);
        // SAFETY: as above.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_sum() {
        for wide_len in [1, 100, 4096] {
            for rank in [1, 16, 20, 256] {
                for summed in [1, 127, 128, 4096, 14_336] {
                    let cut = cut(wide_len, rank, summed);
                    assert!(cut.num_parts * cut.part >= summed && (cut.num_parts - 1) * cut.part < summed);
                    assert!(cut.part.is_multiple_of(16) && cut.narrow * cut.wide == TILE_SUMS);
                }
            }
        }
    }
}
