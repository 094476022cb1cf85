//! The CPU's backward ops. Each is a job of the pool or a few, one after the other; nothing is kept between them.
//!
//! Threads divide rows, features or heads, never a sum: gradients are the same bits on any number of threads.

mod attention;
mod dropout;
mod gemm;
mod optimizer;
mod rowwise;
mod unpack;

use self::attention::HeadBackward;
use self::dropout::DropoutRow;
use self::gemm::Gemm;
use self::optimizer::AdamWPart;
use self::rowwise::{CrossEntropy, RmsNormBackward, RopeBackward, SiluMulBackward};
use self::unpack::{TILE_COLS, TILE_PANELS, Tile, unpack};
use super::lora::{ExpandArgs, ShrinkArgs, expand, shrink};
use super::ops::CpuOps;
use super::rows::RopeInputs;
use super::simd::LANES;
use super::weight::CpuWeight;
use super::{Cpu, SendPtr, cpu_weight, ptr, slice};
use crate::DType;
use crate::error::{Result, invalid};
use crate::grad::{AdamW, AttentionBackward, DoraBackward, DropoutArgs, GradOps, LoraGrads, TrainedModule};
use crate::ops::RopeTables;
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// Elements of a task of plain loops.
const CHUNK: usize = 16 * 1024;
/// Rows of a task of a low-rank product.
const LORA_ROWS: usize = 64;
/// Rows of a task of a frozen layer: many, since each task unpacks its part of the weight.
const LINEAR_ROWS: usize = 512;

fn f32s(t: &Tensor, op: &'static str, name: &'static str) -> Result<SendPtr<f32>> {
    ptr::<f32>(t, op, name)
}

/// A part of a tensor that only one task has.
///
/// # Safety
/// The part exists, is initialised, and nobody else refers to it.
unsafe fn part<'a>(of: SendPtr<f32>, start: usize, len: usize) -> &'a mut [f32] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts_mut(of.get().add(start), len) }
}

impl Cpu {
    fn each(&self, num_tasks: usize, task: impl Fn(usize) + Sync) {
        self.pool.run(num_tasks, &task);
    }

    /// Calls `task(first, len)` for parts of `total`.
    fn chunks(&self, total: usize, chunk: usize, task: impl Fn(usize, usize) + Sync) {
        let chunk = chunk.max(1);
        self.each(total.div_ceil(chunk), |i| task(i * chunk, chunk.min(total - i * chunk)));
    }

    /// `low = scale x A ᵀ` for `[cols, rank]` factors.
    unsafe fn low_rank(
        &self,
        x: SendPtr<f32>,
        a: &Tensor,
        scale: f32,
        rows: usize,
        low: SendPtr<f32>,
    ) -> Result<()> {
        let (cols, rank) = (a.shape().rows(), a.shape().row_len());
        let a = ptr::<u8>(a, "lora_backward", "factor")?;
        let ones = vec![1.0; LORA_ROWS];
        let scales = SendPtr(ones.as_ptr().cast_mut());
        self.chunks(rows, LORA_ROWS, |first, rows| {
            let args = ShrinkArgs {
                x: x.get().wrapping_add(first * cols),
                cols,
                a: a.get(),
                scales: scales.get(),
                scale,
                low: low.get().wrapping_add(first * rank),
                rank,
                rows,
                next: std::ptr::null(),
            };
            // SAFETY: the caller's; tasks have rows of their own.
            unsafe { shrink(self.isa, DType::F32, args) };
        });
        Ok(())
    }

    /// `grad[r, n] += Σ_row low[row, r] x[row, n]`.
    unsafe fn outer(
        &self,
        low: SendPtr<f32>,
        rank: usize,
        x: SendPtr<f32>,
        rows: usize,
        grad: &Tensor,
    ) -> Result<()> {
        let n = grad.shape().row_len();
        let grad = f32s(grad, "lora_backward", "gradient")?;
        self.chunks(n, TILE_COLS, |first, len| {
            let gemm = Gemm {
                a: low.get(),
                a_row: 1,
                a_step: rank,
                b: x.get().wrapping_add(first),
                b_row: n,
                c: grad.get().wrapping_add(first),
                c_row: n,
                m: rank,
                n: len,
                k: rows,
                accumulate: true,
            };
            // SAFETY: the caller's; tasks have columns of their own.
            unsafe { self.isa.run(gemm) };
        });
        Ok(())
    }
}

/// A frozen layer and the gradient of its output.
struct FrozenLayer<'a> {
    weight: &'a CpuWeight,
    d_out: SendPtr<f32>,
}

impl FrozenLayer<'_> {
    /// Adds the gradient of rows `rows` and inputs `cols`, or writes it if `accumulate` is false.
    unsafe fn run(
        &self,
        isa: super::Isa,
        rows: (usize, usize),
        cols: (usize, usize),
        d_x: *mut f32,
        accumulate: bool,
    ) {
        let weight = self.weight;
        let mut tile = Tile::new();
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
                    b: tile.0.as_ptr(),
                    b_row: TILE_COLS,
                    c: d_x.add(rows.0 * weight.cols + cols.0),
                    c_row: weight.cols,
                    m: rows.1 - rows.0,
                    n: cols.1 - cols.0,
                    k: weight.rows.min(panels.1 * LANES) - first,
                    accumulate: accumulate || panel > 0,
                });
            }
        }
    }
}

/// See [`crate::Device::update_norms`]; the factors fit the weight.
pub(super) fn update_norms(cpu: &Cpu, weight: &CpuWeight, [a, b]: [&[f32]; 2], scale: f32) -> Vec<f32> {
    let (rows, cols) = (weight.rows, weight.cols);
    let rank = b.len() / rows.max(1);
    let scaled: Vec<f32> = b.iter().map(|b| scale * b).collect();
    let mut norms = vec![0.0; rows];
    let to = SendPtr(norms.as_mut_ptr());
    cpu.chunks(rows, LANES, |first, num| {
        let mut tile = Tile::new();
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
                    c: tile.0.as_mut_ptr(),
                    c_row: TILE_COLS,
                    m: num,
                    n: len,
                    k: rank,
                    accumulate: true,
                });
            }
            for (squares, row) in squares.iter_mut().zip(tile.0.chunks(TILE_COLS)) {
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

impl GradOps for CpuOps {
    unsafe fn rms_norm_backward(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "rms_norm_backward";
        let (rows, len) = (x.shape().rows(), x.shape().row_len());
        let (x, weight) = (f32s(x, op, "x")?, f32s(weight, op, "weight")?);
        let (d_out, d_x) = (f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
        cpu.chunks(rows, CHUNK / len.max(1), |first, rows| {
            for at in (first..first + rows).map(|row| row * len) {
                // SAFETY: the trait's contract; tasks have rows of their own.
                unsafe {
                    cpu.isa.run(RmsNormBackward {
                        x: x.get().add(at),
                        weight: weight.get(),
                        d_out: d_out.get().add(at),
                        d_x: d_x.get().add(at),
                        len,
                        eps,
                    });
                }
            }
        });
        Ok(())
    }

    unsafe fn linear_backward(
        &mut self,
        layers: &[(&Weight, &Tensor)],
        d_x: &Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let cpu = &*self.cpu;
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
        let num_parts = rows.div_ceil(LINEAR_ROWS);
        cpu.each(num_strips * num_parts, |i| {
            let (part, strip) = (i / num_strips, i % num_strips);
            let rows = (part * LINEAR_ROWS, rows.min((part + 1) * LINEAR_ROWS));
            let cols = (strip * TILE_COLS, cols.min((strip + 1) * TILE_COLS));
            for (idx, layer) in layers.iter().enumerate() {
                // SAFETY: the trait's contract; tasks have rows and columns of their own.
                unsafe { layer.run(cpu.isa, rows, cols, d_x.get(), accumulate || idx > 0) };
            }
        });
        Ok(())
    }

    unsafe fn lora_backward(
        &mut self,
        module: &TrainedModule,
        x: &Tensor,
        d_out: &Tensor,
        low: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "lora_backward";
        let (rows, cols) = (x.shape().rows(), x.shape().row_len());
        let rank = module.factors.rank();
        let LoraGrads { a: grad_a, b: grad_b, .. } = &module.grads;
        let (x, d_out) = (f32s(x, op, "x")?, f32s(d_out, op, "d_out")?);
        let (of_a, of_b) = (f32s(&low.rows(0, 1)?, op, "low")?, f32s(&low.rows(1, 1)?, op, "low")?);
        let (panels, d_x) = (ptr::<u8>(&module.a_panels, op, "A")?, f32s(d_x, op, "d_x")?);
        let scale = module.factors.scale;
        // SAFETY: the trait's contract.
        unsafe {
            cpu.low_rank(x, &module.factors.a, scale, rows, of_a)?;
            cpu.low_rank(d_out, &module.b_rows, scale, rows, of_b)?;
            cpu.outer(of_b, rank, x, rows, grad_a)?;
            cpu.outer(of_a, rank, d_out, rows, grad_b)?;
        }
        cpu.chunks(rows, LORA_ROWS, |first, rows| {
            let args = ExpandArgs {
                low: of_b.get().wrapping_add(first * rank),
                rank,
                b: panels.get(),
                out_scale: std::ptr::null(),
                bias: std::ptr::null(),
                residual: std::ptr::null(),
                out: d_x.get().wrapping_add(first * cols),
                features: cols,
                rows,
                piece: (0, cols),
                next: std::ptr::null(),
            };
            // SAFETY: the trait's contract; tasks have rows of their own.
            unsafe { expand(cpu.isa, DType::F32, args) };
        });
        Ok(())
    }

    unsafe fn dora_backward(&mut self, args: DoraBackward<'_>) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "dora_backward";
        let (rows, len) = (args.out.shape().rows(), args.out.shape().row_len());
        let optional = |t: Option<&Tensor>, name| match t {
            Some(t) => f32s(t, op, name).map(Some),
            None => Ok(None),
        };
        let (bias, residual) = (optional(args.bias, "bias")?, optional(args.residual, "residual")?);
        let [out, out_scale, magnitude] =
            [(args.out, "out"), (args.out_scale, "output scale"), (args.magnitude, "magnitude")]
                .map(|(t, name)| f32s(t, op, name));
        let (out, out_scale, magnitude) = (out?, out_scale?, magnitude?);
        let [d_out, scaled, d_magnitude] =
            [(args.d_out, "d_out"), (args.scaled, "scaled"), (args.d_magnitude, "d_magnitude")]
                .map(|(t, name)| f32s(t, op, name));
        let (d_out, scaled, d_magnitude) = (d_out?, scaled?, d_magnitude?);
        cpu.chunks(len, TILE_COLS, |first, num| {
            for o in first..first + num {
                // SAFETY: the trait's contract; tasks have outputs of their own.
                unsafe {
                    let base = bias.map_or(0.0, |b| *b.get().add(o));
                    let scale = *out_scale.get().add(o);
                    let mut sum = 0.0;
                    for row in 0..rows {
                        let at = row * len + o;
                        let d = *d_out.get().add(at);
                        let before = base + residual.map_or(0.0, |r| *r.get().add(at));
                        sum += d * (*out.get().add(at) - before);
                        *scaled.get().add(at) = d * scale;
                    }
                    let m = *magnitude.get().add(o);
                    if m != 0.0 {
                        *d_magnitude.get().add(o) += sum / m;
                    }
                }
            }
        });
        Ok(())
    }

    unsafe fn rope_backward(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        step: &Step,
        tables: &RopeTables,
    ) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "rope_backward";
        let inputs = RopeInputs {
            positions: ptr::<u32>(&step.positions, op, "positions")?.0,
            rope_idx: ptr::<u32>(&step.rope_idx, op, "table index")?.0,
            tables: tables.tables.clone(),
        };
        for &(d_out, d_x) in pairs {
            let &[rows, heads, head_dim] = d_out.shape().dims() else {
                return invalid(op, "gradients must be [rows, heads, head_dim]");
            };
            let len = heads * head_dim;
            let (d_out, d_x) = (f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
            cpu.chunks(rows, CHUNK / len.max(1), |first, rows| {
                for row in first..first + rows {
                    // SAFETY: the trait's contract; tasks have rows of their own.
                    unsafe {
                        let Some(angles) = inputs.angles(row) else { return };
                        let (d_out, d_x) = (d_out.get().add(row * len), d_x.get().add(row * len));
                        cpu.isa.run(RopeBackward { d_out, d_x, heads, head_dim, angles });
                    }
                }
            });
        }
        Ok(())
    }

    unsafe fn attention_backward(&mut self, args: AttentionBackward<'_>) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "attention_backward";
        let (&[rows, num_heads, head_dim], &[_, num_kv_heads, _]) =
            (args.q.shape().dims(), args.k.shape().dims())
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
        let by_head_k = f32s(&args.partial.rows(0, 1)?, op, "partial")?;
        let by_head_v = f32s(&args.partial.rows(1, 1)?, op, "partial")?;
        let group = num_heads / num_kv_heads;
        let (q_row, kv_row) = (num_heads * head_dim, num_kv_heads * head_dim);
        let mut seqs: Vec<(usize, usize)> = starts
            .windows(2)
            .filter_map(|pair| {
                let &[first, end] = pair.first_chunk::<2>()?;
                Some((first as usize, (end - first) as usize))
            })
            .collect();
        // The longest first.
        seqs.sort_by_key(|&(_, len)| std::cmp::Reverse(len));
        cpu.each(seqs.len() * num_heads, |i| {
            let (Some(&(first, len)), head) = (seqs.get(i / num_heads), i % num_heads) else { return };
            let at = |p: SendPtr<f32>, row_len: usize| p.get().wrapping_add(first * row_len);
            let task = HeadBackward {
                rows: len,
                head,
                kv_head: head / group,
                num_heads,
                num_kv_heads,
                head_dim,
                q: at(q, q_row),
                k: at(k, kv_row),
                v: at(v, kv_row),
                out: at(out, q_row),
                lse: at(lse, num_heads),
                d_out: at(d_out, q_row),
                d_q: at(d_q, q_row),
                d_k: at(by_head_k, q_row),
                d_v: at(by_head_v, q_row),
                scale: args.scale,
                window: args.window,
            };
            // SAFETY: the trait's contract; tasks have heads and rows of their own.
            unsafe { task.run(cpu.isa) };
        });
        cpu.chunks(rows, CHUNK / q_row.max(1), |first, rows| {
            for (by_head, sum) in [(by_head_k, d_k), (by_head_v, d_v)] {
                // SAFETY: the trait's contract; tasks have rows of their own.
                let (by_head, sum) = unsafe {
                    (part(by_head, first * q_row, rows * q_row), part(sum, first * kv_row, rows * kv_row))
                };
                for (heads, sum) in by_head.chunks(group * head_dim).zip(sum.chunks_mut(head_dim)) {
                    sum.fill(0.0);
                    for head in heads.chunks(head_dim) {
                        sum.iter_mut().zip(head).for_each(|(sum, x)| *sum += x);
                    }
                }
            }
        });
        Ok(())
    }

    unsafe fn silu_mul_backward(
        &mut self,
        gate: &Tensor,
        up: &Tensor,
        d_out: &Tensor,
        d_gate: &Tensor,
        d_up: &Tensor,
    ) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "silu_mul_backward";
        let total = gate.shape().numel();
        let (gate, up, d_out) = (f32s(gate, op, "gate")?, f32s(up, op, "up")?, f32s(d_out, op, "d_out")?);
        let (d_gate, d_up) = (f32s(d_gate, op, "d_gate")?, f32s(d_up, op, "d_up")?);
        cpu.chunks(total, CHUNK, |at, len| {
            // SAFETY: the trait's contract; tasks have elements of their own.
            unsafe {
                cpu.isa.run(SiluMulBackward {
                    gate: gate.get().add(at),
                    up: up.get().add(at),
                    d_out: d_out.get().add(at),
                    d_gate: d_gate.get().add(at),
                    d_up: d_up.get().add(at),
                    len,
                });
            }
        });
        Ok(())
    }

    unsafe fn gather_rows_backward(&mut self, d_out: &Tensor, rows: &Tensor, d_x: &Tensor) -> Result<()> {
        let op = "gather_rows_backward";
        let len = d_out.shape().row_len();
        // SAFETY: the trait's contract.
        let rows = unsafe { slice::<u32>(rows, op, "rows")? };
        let (d_out, d_x) = (f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
        for (i, &row) in rows.iter().enumerate() {
            // SAFETY: the trait's contract: the rows exist.
            let (from, to) = unsafe { (part(d_out, i * len, len), part(d_x, row as usize * len, len)) };
            to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
        }
        Ok(())
    }

    unsafe fn add_scaled(&mut self, from: &Tensor, factor: f32, to: &Tensor) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "add_scaled";
        let total = from.shape().numel();
        let (from, to) = (f32s(from, op, "from")?, f32s(to, op, "to")?);
        cpu.chunks(total, CHUNK, |at, len| {
            // SAFETY: the trait's contract; tasks have elements of their own.
            let (from, to) = unsafe { (part(from, at, len), part(to, at, len)) };
            to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * *from);
        });
        Ok(())
    }

    unsafe fn clear(&mut self, x: &Tensor) -> Result<()> {
        let cpu = &*self.cpu;
        let (total, x) = (x.shape().numel(), f32s(x, "clear", "x")?);
        // SAFETY: the trait's contract; tasks have elements of their own.
        cpu.chunks(total, CHUNK, |at, len| unsafe { x.get().add(at).write_bytes(0, len) });
        Ok(())
    }

    unsafe fn cross_entropy(
        &mut self,
        logits: &Tensor,
        targets: &[u32],
        weights: &[f32],
        losses: &mut [f32],
    ) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "cross_entropy";
        let (rows, len) = (logits.shape().rows(), logits.shape().row_len());
        let (logits, losses) = (f32s(logits, op, "logits")?, SendPtr(losses.as_mut_ptr()));
        cpu.each(rows, |row| {
            let (Some(&target), Some(&weight)) = (targets.get(row), weights.get(row)) else { return };
            // SAFETY: the trait's contract: a loss for each row, targets in the vocabulary; tasks have rows of their own.
            unsafe {
                let loss = &mut *losses.get().add(row);
                let logits = logits.get().add(row * len);
                cpu.isa.run(CrossEntropy { logits, len, target: target as usize, weight, loss });
            }
        });
        Ok(())
    }

    unsafe fn dropout(&mut self, args: DropoutArgs<'_>) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "dropout";
        let (rows, len) = (args.x.shape().rows(), args.x.shape().row_len());
        let (x, out) = (f32s(args.x, op, "x")?, f32s(args.out, op, "out")?);
        // SAFETY: the trait's contract.
        let (examples, positions) = unsafe {
            (slice::<u32>(args.example_idx, op, "examples")?, slice::<u32>(args.positions, op, "positions")?)
        };
        cpu.chunks(rows, CHUNK / len.max(1), |first, rows| {
            for row in first..first + rows {
                let (Some(&example), Some(&position)) = (examples.get(row), positions.get(row)) else {
                    return;
                };
                // SAFETY: the trait's contract; tasks have rows of their own.
                unsafe {
                    cpu.isa.run(DropoutRow {
                        dropout: args.dropout,
                        place: [position, example, args.module],
                        x: part(x, row * len, len),
                        out: part(out, row * len, len),
                        accumulate: args.accumulate,
                    });
                }
            }
        });
        Ok(())
    }

    unsafe fn adamw(
        &mut self,
        options: &AdamW,
        parameters: &Tensor,
        gradients: &Tensor,
        moments: [&Tensor; 2],
    ) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "adamw";
        let total = parameters.shape().numel();
        let (p, g) = (f32s(parameters, op, "parameters")?, f32s(gradients, op, "gradients")?);
        let (m, v) = (f32s(moments[0], op, "first moments")?, f32s(moments[1], op, "second moments")?);
        cpu.chunks(total, CHUNK, |at, len| {
            // SAFETY: the trait's contract; tasks have elements of their own.
            unsafe {
                cpu.isa.run(AdamWPart {
                    options,
                    parameters: part(p, at, len),
                    gradients: part(g, at, len),
                    first: part(m, at, len),
                    second: part(v, at, len),
                });
            }
        });
        Ok(())
    }

    unsafe fn sum_of_squares(&mut self, x: &Tensor) -> Result<f64> {
        let cpu = &*self.cpu;
        let (total, x) = (x.shape().numel(), f32s(x, "sum_of_squares", "x")?);
        let mut sums = vec![0.0_f64; total.div_ceil(CHUNK)];
        let to = SendPtr(sums.as_mut_ptr());
        cpu.chunks(total, CHUNK, |at, len| {
            // SAFETY: the trait's contract; tasks have elements, and a sum, of their own.
            unsafe {
                let sum = part(x, at, len).iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                *to.get().add(at / CHUNK) = sum;
            }
        });
        Ok(sums.iter().sum())
    }

    unsafe fn transpose(&mut self, x: &Tensor, out: &Tensor) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "transpose";
        let (rows, cols) = (x.shape().rows(), x.shape().row_len());
        let (x, out) = (f32s(x, op, "x")?, f32s(out, op, "out")?);
        cpu.chunks(cols, CHUNK / rows.max(1), |first, num| {
            for col in first..first + num {
                for row in 0..rows {
                    // SAFETY: the trait's contract; tasks have columns of their own.
                    unsafe { *out.get().add(col * rows + row) = *x.get().add(row * cols + col) };
                }
            }
        });
        Ok(())
    }

    unsafe fn transpose_panels(&mut self, x: &Tensor, out: &Tensor) -> Result<()> {
        let cpu = &*self.cpu;
        let op = "transpose_panels";
        let (rank, n) = (x.shape().rows(), x.shape().row_len());
        let (x, out) = (f32s(x, op, "x")?, f32s(out, op, "out")?);
        cpu.chunks(n, LANES, |first, num| {
            for r in 0..rank {
                // SAFETY: the trait's contract; tasks have panels of their own.
                unsafe {
                    let to = out.get().add(first * rank + r * num);
                    to.copy_from_nonoverlapping(x.get().add(r * n + first), num);
                }
            }
        });
        Ok(())
    }
}
