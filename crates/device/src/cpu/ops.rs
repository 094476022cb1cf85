//! The CPU's ops of one context: each is lowered to a program and run; those of a step of one row a sequence are also
//! kept, to run as one program whenever such a step comes again.

use std::sync::{Arc, Mutex};

use super::isa::Kernel;
use super::program::{Phase, Program, Scratch};
use super::rows::{RopeInputs, RowOp, Rows};
use super::sample::{SampleScratch, logprobs_row, sample_row};
use super::simd::Simd;
use super::team::Team;
use super::{Cpu, cpu_weight, experts, linear, paged, ptr, routing, slice};
use crate::Shape;
use crate::error::{Result, invalid};
use crate::experts::{ExpertTarget, Routing};
use crate::grad::GradOps;
use crate::lora::{LoraBatch, NULL_SLOT};
use crate::ops::{Combine, LinearTarget, Ops, PagedAttention, RopeTables, StepMode};
use crate::row_ops::{Columns, Gelu, LayerNorm, RmsNorm};
use crate::sample::{LogprobRow, SampleRow, Sampled, TokenLogprobs};
use crate::step::GraphKey;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// Largest step that is kept: with more rows the ops take so long that what lies between them does not count.
const MAX_RECORDED_ROWS: usize = 128;
/// The same for several rows of one sequence: tokens that a grammar forces come in such runs, while the last pieces of prompts,
/// which are of every length, would drive the steps out that come again.
const MAX_RECORDED_RUN: usize = 16;
/// Steps that are kept. One of 32 rows takes about 9 KB a layer.
const MAX_PROGRAMS: usize = 48;

/// The CPU's ops for one context.
pub(crate) struct CpuOps {
    pub(super) cpu: Arc<Cpu>,
    team: Team,
    scratch: Scratch,
    sampling: Vec<SampleScratch>,
    /// Whether steps are kept at all.
    records: bool,
    /// The step that is being run op by op, to be kept.
    recording: Option<(GraphKey, Program)>,
    /// Kept steps, the one that ran last at the end.
    programs: Vec<(GraphKey, Program)>,
}

impl CpuOps {
    pub(crate) fn new(cpu: Arc<Cpu>, records: bool) -> Self {
        let num_threads = cpu.pool.num_threads();
        CpuOps {
            cpu,
            team: Team::new(num_threads),
            scratch: Scratch::default(),
            sampling: (0..num_threads).map(|_| SampleScratch::default()).collect(),
            records,
            recording: None,
            programs: Vec::new(),
        }
    }

    /// Runs an op, and keeps it if its step is to be kept.
    unsafe fn submit(&mut self, program: Program) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { program.run(&self.cpu, &mut self.scratch, &mut self.team) };
        if let Some((_, recording)) = &mut self.recording {
            recording.append(program);
        }
        Ok(())
    }

    /// An op of a single row phase.
    unsafe fn submit_rows(&mut self, op: RowOp, rows: usize, len: usize, operands: &[&Tensor]) -> Result<()> {
        let mut program = Program::default();
        operands.iter().for_each(|t| program.keep(t));
        program.push(Phase::Rows(Rows::new(op, rows, len)));
        // SAFETY: the caller's.
        unsafe { self.submit(program) }
    }

    /// A step that exchanges data with the host cannot be run again without it.
    fn stop_recording(&mut self) {
        self.recording = None;
    }

    /// Whether rows may use adapters: in a step that is kept as its key says, else as the rows' slots say.
    unsafe fn uses_adapters(&self, lora: &LoraBatch<'_>) -> Result<bool> {
        match &self.recording {
            Some((key, _)) => Ok(key.with_lora),
            // SAFETY: the trait's contract.
            None => unsafe {
                Ok(slice::<u32>(lora.slots, "linear", "adapter slots")?.iter().any(|&s| s != NULL_SLOT))
            },
        }
    }
}

impl Ops for CpuOps {
    fn grad(&mut self) -> Option<&mut dyn GradOps> {
        Some(self)
    }

    unsafe fn begin_step(&mut self, key: &GraphKey) -> Result<StepMode> {
        self.recording = None;
        // With one row a sequence, or one sequence, the key says which rows are whose.
        let comes_again = match key.num_seqs {
            1 => key.num_rows <= MAX_RECORDED_RUN,
            num_seqs => key.num_rows == num_seqs && num_seqs <= MAX_RECORDED_ROWS,
        };
        if !self.records || !comes_again {
            return Ok(StepMode::Run);
        }
        if let Some(idx) = self.programs.iter().position(|(k, _)| k == key) {
            let last = self.programs.len() - 1;
            self.programs[idx..=last].rotate_left(1);
            return Ok(StepMode::Replay);
        }
        self.recording = Some((*key, Program::default()));
        Ok(StepMode::Capture)
    }

    unsafe fn end_step(&mut self, _key: &GraphKey, ok: bool) -> Result<()> {
        if let Some(recorded) = self.recording.take()
            && ok
        {
            if self.programs.len() >= MAX_PROGRAMS {
                self.programs.remove(0);
            }
            self.programs.push(recorded);
        }
        Ok(())
    }

    fn forget_steps(&mut self) {
        self.recording = None;
        self.programs.clear();
    }

    unsafe fn replay(&mut self, key: &GraphKey) -> Result<()> {
        match self.programs.iter().find(|(k, _)| k == key) {
            Some((_, program)) => {
                // SAFETY: operands are kept alive or lie in the arena as they did; the contents were checked.
                unsafe { program.run(&self.cpu, &mut self.scratch, &mut self.team) };
                Ok(())
            }
            None => invalid("replay", format!("nothing is kept under {key:?}")),
        }
    }

    unsafe fn embed(&mut self, ids: &Tensor, table: &Weight, scale: f32, out: &Tensor) -> Result<()> {
        let op = "embed";
        let cols = cpu_weight(table)?.cols;
        let (rows, kept) = (ids.shape().numel(), [ids]);
        let (ids, out) = (ptr::<u32>(ids, op, "ids")?.0, ptr::<f32>(out, op, "out")?.0);
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(RowOp::Embed { ids, table: table.clone(), scale, out }, rows, cols, &kept) }
    }

    unsafe fn rms_norm(&mut self, args: RmsNorm<'_>) -> Result<()> {
        let op = "rms_norm";
        let RmsNorm { x, weight, eps, residual, out } = args;
        let (rows, row_len, len) = (x.shape().rows(), x.shape().row_len(), weight.shape().numel());
        let kept = [x, weight, residual.unwrap_or(x)];
        let residual = match residual {
            Some(t) => ptr::<f32>(t, op, "residual")?.0.cast_const(),
            None => std::ptr::null(),
        };
        let [x, weight, out] =
            [(x, "x"), (weight, "weight"), (out, "out")].map(|(t, n)| ptr::<f32>(t, op, n));
        let (x, weight, out) = (x?.0, weight?.0, out?.0);
        let norm = RowOp::RmsNorm { x, weight, residual, eps, out, len, runs: row_len / len.max(1) };
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(norm, rows, row_len, &kept) }
    }

    unsafe fn layer_norm(&mut self, args: LayerNorm<'_>) -> Result<()> {
        let op = "layer_norm";
        let LayerNorm { x, weight, bias, eps, out } = args;
        let (rows, len) = (x.shape().rows(), x.shape().row_len());
        let kept = [x, weight, bias];
        let [x, weight, bias, out] =
            [(x, "x"), (weight, "weight"), (bias, "bias"), (out, "out")].map(|(t, n)| ptr::<f32>(t, op, n));
        let (x, weight, bias, out) = (x?.0, weight?.0, bias?.0, out?.0);
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(RowOp::LayerNorm { x, weight, bias, eps, out, len }, rows, len, &kept) }
    }

    unsafe fn linear(
        &mut self,
        x: &Tensor,
        targets: &[LinearTarget<'_>],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        // SAFETY: the trait's contract.
        unsafe {
            let lora = match lora {
                Some(lora) if self.uses_adapters(lora)? => Some(lora),
                _ => None,
            };
            let mut program = Program::default();
            linear::lower(&mut program, self.cpu.pool.num_threads(), x, targets, lora)?;
            self.submit(program)
        }
    }

    unsafe fn rope(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        positions: &Tensor,
        rope_idx: &Tensor,
        tables: &RopeTables,
    ) -> Result<()> {
        let op = "rope";
        let mut program = Program::default();
        program.keep(positions);
        program.keep(rope_idx);
        let inputs = Arc::new(RopeInputs {
            positions: ptr::<u32>(positions, op, "positions")?.0,
            rope_idx: ptr::<u32>(rope_idx, op, "table index")?.0,
            tables: tables.tables.clone(),
        });
        for &(x, out) in pairs {
            let &[rows, heads, head_dim] = x.shape().dims() else {
                return invalid(op, "x must be [rows, heads, head_dim]");
            };
            program.keep(x);
            let (x, out) = (ptr::<f32>(x, op, "x")?.0, ptr::<f32>(out, op, "out")?.0);
            let rope = RowOp::Rope { x, out, heads, head_dim, tables: inputs.clone() };
            program.push(Phase::Rows(Rows::new(rope, rows, heads * head_dim)));
        }
        // SAFETY: the trait's contract.
        unsafe { self.submit(program) }
    }

    unsafe fn paged_attention(&mut self, args: PagedAttention<'_>) -> Result<()> {
        let mut program = Program::default();
        // SAFETY: the trait's contract.
        unsafe {
            paged::lower(&mut program, args)?;
            self.submit(program)
        }
    }

    unsafe fn silu_mul(&mut self, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
        let op = "silu_mul";
        let (rows, len) = (gate.shape().rows(), gate.shape().row_len());
        let kept = [gate, up];
        let [gate, up, out] = [(gate, "gate"), (up, "up"), (out, "out")].map(|(t, n)| ptr::<f32>(t, op, n));
        let (gate, up, out) = (gate?.0, up?.0, out?.0);
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(RowOp::SiluMul { gate, up, out, len }, rows, len, &kept) }
    }

    unsafe fn gelu(&mut self, args: Gelu<'_>) -> Result<()> {
        let op = "gelu";
        let Gelu { x, up, kind, out } = args;
        let (rows, len) = (x.shape().rows(), x.shape().row_len());
        let kept = [x, up.unwrap_or(x)];
        let up = match up {
            Some(t) => ptr::<f32>(t, op, "up")?.0.cast_const(),
            None => std::ptr::null(),
        };
        let (x, out) = (ptr::<f32>(x, op, "x")?.0, ptr::<f32>(out, op, "out")?.0);
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(RowOp::Gelu { x, up, kind, out, len }, rows, len, &kept) }
    }

    unsafe fn softcap(&mut self, x: &Tensor, cap: f32, out: &Tensor) -> Result<()> {
        let (op, kept) = ("softcap", [x]);
        let (rows, len) = (x.shape().rows(), x.shape().row_len());
        let (x, out) = (ptr::<f32>(x, op, "x")?.0, ptr::<f32>(out, op, "out")?.0);
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(RowOp::SoftCap { x, cap, out, len }, rows, len, &kept) }
    }

    unsafe fn copy_columns(&mut self, args: Columns<'_>) -> Result<()> {
        let op = "copy_columns";
        let (from_len, to_len) = args.group_lens();
        let Columns { from, to, groups, from_col, to_col, width } = args;
        let (rows, kept) = (from.shape().rows(), [from, to]);
        let (from, to) = (ptr::<f32>(from, op, "from")?.0, ptr::<f32>(to, op, "to")?.0);
        let (from_group, to_group) = ((from_col, from_len), (to_col, to_len));
        let columns = RowOp::Columns { from, from_group, to, to_group, groups, width };
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(columns, rows, groups * width, &kept) }
    }

    unsafe fn gather_rows(&mut self, x: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
        let op = "gather_rows";
        let (num_rows, len) = (x.shape().rows(), x.shape().row_len());
        let (num_indices, kept) = (rows.shape().numel(), [x, rows]);
        let (x, indices, out) =
            (ptr::<f32>(x, op, "x")?.0, ptr::<u32>(rows, op, "rows")?.0, ptr::<f32>(out, op, "out")?.0);
        // SAFETY: the trait's contract.
        unsafe { self.submit_rows(RowOp::Gather { x, indices, out, len, num_rows }, num_indices, len, &kept) }
    }

    unsafe fn route(&mut self, logits: &Tensor, routing: &Routing) -> Result<()> {
        let mut program = Program::default();
        routing::lower_route(&mut program, logits, routing)?;
        // SAFETY: the trait's contract.
        unsafe { self.submit(program) }
    }

    unsafe fn expert_linear(
        &mut self,
        x: &Tensor,
        targets: &[ExpertTarget<'_>],
        routing: &Routing,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        // SAFETY: the trait's contract.
        unsafe {
            let lora = match lora {
                Some(lora) if self.uses_adapters(lora)? => Some(lora),
                _ => None,
            };
            let mut program = Program::default();
            experts::lower(&mut program, x, targets, routing, lora)?;
            self.submit(program)
        }
    }

    unsafe fn combine(&mut self, args: Combine<'_>) -> Result<()> {
        let mut program = Program::default();
        routing::lower_combine(&mut program, &args)?;
        // SAFETY: the trait's contract.
        unsafe { self.submit(program) }
    }

    unsafe fn sample(&mut self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>> {
        self.stop_recording();
        // SAFETY: the trait's contract.
        let values = unsafe { slice::<f32>(logits, "sample", "logits")? };
        Ok(self.for_logits(values, logits.shape(), rows, sample_row))
    }

    unsafe fn logprobs(&mut self, logits: &Tensor, rows: &[LogprobRow]) -> Result<Vec<TokenLogprobs>> {
        self.stop_recording();
        // SAFETY: the trait's contract.
        let values = unsafe { slice::<f32>(logits, "logprobs", "logits")? };
        Ok(self.for_logits(values, logits.shape(), rows, logprobs_row))
    }

    unsafe fn copy(&mut self, src: &Tensor, dst: &Tensor) -> Result<()> {
        let rows = src.shape().rows().max(1);
        let bytes = src.size_bytes().min(dst.size_bytes()) / rows;
        let kept = [src, dst];
        let (from, to) = (ptr::<u8>(src, "copy", "src")?.0, ptr::<u8>(dst, "copy", "dst")?.0);
        // SAFETY: the trait's contract: equal sizes, no overlap.
        unsafe { self.submit_rows(RowOp::Copy { from, to, bytes }, rows, bytes.div_ceil(4), &kept) }
    }

    unsafe fn write(&mut self, dst: &Tensor, bytes: &[u8]) -> Result<()> {
        self.stop_recording();
        let to = ptr::<u8>(dst, "write", "dst")?;
        // SAFETY: the trait's contract; a host slice cannot overlap device memory that no slice refers to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0, bytes.len().min(dst.size_bytes())) };
        Ok(())
    }

    unsafe fn read(&mut self, src: &Tensor, bytes: &mut [u8]) -> Result<()> {
        self.stop_recording();
        let from = ptr::<u8>(src, "read", "src")?;
        // SAFETY: as `write`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.0, bytes.as_mut_ptr(), bytes.len().min(src.size_bytes()))
        };
        Ok(())
    }
}

impl CpuOps {
    /// Maps rows of logits in parallel, each thread with a scratch space of its own.
    fn for_logits<A: Sync, B: Send>(
        &mut self,
        values: &[f32],
        shape: Shape,
        rows: &[A],
        f: impl Fn(&[f32], &A, &mut SampleScratch) -> B + Sync,
    ) -> Vec<B> {
        let vocab = shape.row_len().max(1);
        let num_parts = self.sampling.len().min(rows.len()).max(1);
        let per_part = rows.len().div_ceil(num_parts).max(1);
        let parts: Vec<_> = values
            .chunks(vocab * per_part)
            .zip(rows.chunks(per_part))
            .zip(&mut self.sampling)
            .map(|((values, rows), scratch)| {
                Mutex::new(LogitRows { values, vocab, rows, scratch, f: &f, out: Vec::new() })
            })
            .collect();
        self.cpu.pool.run(parts.len(), &|i| {
            let Some(mut part) = parts.get(i).and_then(|p| p.lock().ok()) else { return };
            // SAFETY: plain Rust, compiled for the instruction set.
            unsafe { self.cpu.isa.run(&mut *part) };
        });
        parts.into_iter().filter_map(|p| p.into_inner().ok()).flat_map(|part| part.out).collect()
    }
}

/// Some rows of logits and what each is mapped by.
struct LogitRows<'a, A, B, F> {
    values: &'a [f32],
    vocab: usize,
    rows: &'a [A],
    scratch: &'a mut SampleScratch,
    f: &'a F,
    out: Vec<B>,
}

impl<A, B, F: Fn(&[f32], &A, &mut SampleScratch) -> B> Kernel for &mut LogitRows<'_, A, B, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (values, row) in self.values.chunks(self.vocab).zip(self.rows) {
            self.out.push((self.f)(values, row, self.scratch));
        }
    }
}
