//! Frozen layers: the gradient of their inputs, and norms with an update, weights unpacked a tile at a time.

use super::f32s;
use super::unpack::{TILE_COLS, TILE_LEN, TILE_PANELS, unpack};
use crate::cpu::f32_gemm::{Gemm, Onto};
use crate::cpu::isa::Isa;
use crate::cpu::lines::Lines;
use crate::cpu::simd::LANES;
use crate::cpu::weight::CpuWeight;
use crate::cpu::{Cpu, SendPtr, cpu_weight};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// Rows of a task: many, since each task unpacks its part of the weight.
const ROWS: usize = 512;

/// A frozen layer and the gradient of its output.
struct FrozenLayer<'a> {
    weight: &'a CpuWeight,
    d_out: SendPtr<f32>,
}

impl FrozenLayer<'_> {
    /// Adds the gradient of rows `rows` and inputs `cols`, or writes it if `accumulate` is false.
    unsafe fn run(
        &self,
        isa: Isa,
        rows: (usize, usize),
        cols: (usize, usize),
        d_x: *mut f32,
        accumulate: bool,
    ) {
        let weight = self.weight;
        let mut tile = Lines::new(TILE_LEN);
        for panel in (0..weight.num_panels()).step_by(TILE_PANELS) {
            let panels = (panel, weight.num_panels().min(panel + TILE_PANELS));
            let first = panel * LANES;
            // SAFETY: the caller's.
            unsafe {
                unpack(isa, weight, panels, cols, &mut tile);
                isa.run(Gemm {
                    a: self.d_out.get().add(rows.0 * weight.rows + first),
                    a_row: weight.rows,
                    a_step: 1,
                    b: tile.as_ptr(),
                    b_row: TILE_COLS,
                    c: d_x.add(rows.0 * weight.cols + cols.0),
                    c_row: weight.cols,
                    m: rows.1 - rows.0,
                    n: cols.1 - cols.0,
                    k: weight.rows.min(panels.1 * LANES) - first,
                    onto: if accumulate || panel > 0 { Onto::Sum } else { Onto::Nothing },
                });
            }
        }
    }
}

/// See [`crate::Device::update_norms`]; the factors fit the weight.
pub(in crate::cpu) fn update_norms(
    cpu: &Cpu,
    weight: &CpuWeight,
    [a, b]: [&[f32]; 2],
    scale: f32,
) -> Vec<f32> {
    let (rows, cols) = (weight.rows, weight.cols);
    let rank = b.len() / rows.max(1);
    let scaled: Vec<f32> = b.iter().map(|b| scale * b).collect();
    let mut norms = vec![0.0; rows];
    let to = SendPtr(norms.as_mut_ptr());
    cpu.chunks(rows, LANES, |first, num| {
        let mut tile = Lines::new(TILE_LEN);
        let mut squares = [0.0_f64; LANES];
        for col in (0..cols).step_by(TILE_COLS) {
            let len = TILE_COLS.min(cols - col);
            let panel = first / LANES;
            // SAFETY: the panel and the inputs exist; the factors are of the weight's shape.
            unsafe {
                unpack(cpu.isa, weight, (panel, panel + 1), (col, col + len), &mut tile);
                cpu.isa.run(Gemm {
                    a: scaled.as_ptr().add(first * rank),
                    a_row: rank,
                    a_step: 1,
                    b: a.as_ptr().add(col),
                    b_row: cols,
                    c: tile.as_mut_ptr(),
                    c_row: TILE_COLS,
                    m: num,
                    n: len,
                    k: rank,
                    onto: Onto::Sum,
                });
            }
            for (squares, row) in squares.iter_mut().zip(tile.as_slice().chunks(TILE_COLS)) {
                *squares += row.iter().take(len).map(|w| f64::from(*w).powi(2)).sum::<f64>();
            }
        }
        for (i, squares) in squares.into_iter().take(num).enumerate() {
            // SAFETY: tasks have rows of their own.
            unsafe { *to.get().add(first + i) = squares.sqrt() as f32 };
        }
    });
    norms
}

/// See [`crate::grad::GradOps::linear_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn linear_backward(
    cpu: &Cpu,
    layers: &[(&Weight, &Tensor)],
    d_x: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let op = "linear_backward";
    let (rows, cols) = (d_x.shape().rows(), d_x.shape().row_len());
    let d_x = f32s(d_x, op, "d_x")?;
    let layers = layers
        .iter()
        .map(|(weight, d_out)| {
            Ok(FrozenLayer { weight: cpu_weight(weight)?, d_out: f32s(d_out, op, "d_out")? })
        })
        .collect::<Result<Vec<_>>>()?;
    let num_strips = cols.div_ceil(TILE_COLS);
    let num_parts = rows.div_ceil(ROWS);
    cpu.each(num_strips * num_parts, |i| {
        let (part, strip) = (i / num_strips, i % num_strips);
        let rows = (part * ROWS, rows.min((part + 1) * ROWS));
        let cols = (strip * TILE_COLS, cols.min((strip + 1) * TILE_COLS));
        for (idx, layer) in layers.iter().enumerate() {
            // SAFETY: the trait's contract; tasks have rows and columns of their own.
            unsafe { layer.run(cpu.isa, rows, cols, d_x.get(), accumulate || idx > 0) };
        }
    });
    Ok(())
}
