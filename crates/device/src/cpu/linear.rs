//! The linear op: quantise the activations once, multiply all targets' panels as one job, then add the adapters.

use std::marker::PhantomData;

use super::activations::{Activations, BlockMeta, QuantBlock, TILE_ROWS, quantise_row};
use super::blocks::{BLOCK, BlockFormat};
use super::gemm::{BF16, Epilogue, F16, F32, PlainGemm, QuantisedGemm};
use super::isa::{Isa, Kernel};
use super::lora::{ExpandArgs, ShrinkArgs, expand, shrink};
use super::simd::{LANES, Simd};
use super::weight::{CpuWeight, with_block_format};
use super::{Cpu, SendPtr, cpu_weight, ptr};
use crate::error::Result;
use crate::lora::{LoraBatch, LoraFactors, LoraModules, NULL_SLOT};
use crate::ops::LinearTarget;
use crate::{Tensor, WeightFormat};

/// Bytes of activations that a task passes over for each panel: they should stay in the second-level cache.
const ACTIVATION_BYTES: usize = 512 * 1024;
/// A thread's smallest task is one part in so many of its share: a thread that was held up must not hold up the others.
const SMALLEST_PART: usize = 10;

/// Features of an update that are worth a task.
const MIN_PIECE: usize = 512;

/// Updates that make enough tasks for a thread.
const UPDATES_PER_THREAD: usize = 4;

/// Buffers that a context keeps between linear ops.
#[derive(Default)]
pub(crate) struct LinearScratch {
    quants: Vec<QuantBlock>,
    meta: Vec<BlockMeta>,
    low: Vec<f32>,
}

impl LinearScratch {
    fn activations(&mut self, cols: usize) -> Activations {
        Activations {
            quants: self.quants.as_mut_ptr().cast(),
            meta: self.meta.as_mut_ptr(),
            num_blocks: cols / BLOCK,
        }
    }
}

/// What is multiplied: the floats, and what they were quantised to where a weight is quantised.
#[derive(Clone, Copy)]
struct Operand {
    x: *const f32,
    cols: usize,
    quantised: Activations,
}
// SAFETY: the pointers belong to buffers that outlive the job, and tasks write disjoint parts.
unsafe impl Sync for Operand {}

impl Operand {
    /// Keeps a closure from capturing the pointers one by one.
    fn get(&self) -> &Self {
        self
    }
}

/// Adjacent rows that use one slot.
struct Group {
    rows: (usize, usize),
    slot: u32,
}

/// A piece of the base product.
#[derive(Clone, Copy)]
struct BaseTask {
    target: usize,
    rows: (usize, usize),
    panels: (usize, usize),
}

/// A task of the first job.
enum Task<'a> {
    Base(BaseTask),
    Shrink(&'a (&'a Update<'a>, &'a LoraFactors)),
}

/// A group's update of one target; `low` is where its shrunk rows start in the scratch buffer.
struct Update<'a> {
    target: usize,
    rows: (usize, usize),
    factors: Option<&'a LoraFactors>,
    low: usize,
}

struct Quantise {
    x: *const f32,
    to: Activations,
    rows: (usize, usize),
    halves: bool,
}

impl Kernel for Quantise {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let num_blocks = self.to.num_blocks;
        for row in self.rows.0..self.rows.1 {
            // SAFETY: rows and extents are the caller's, who owns what is written.
            unsafe {
                let (q, meta) = self.to.row(row);
                quantise_row::<S>(
                    self.x.add(row * num_blocks * BLOCK),
                    num_blocks,
                    q.cast_mut(),
                    meta.cast_mut(),
                    self.halves,
                );
            }
        }
    }
}

/// See [`crate::Ops::linear`].
///
/// # Safety
/// As [`crate::Ops`].
pub(crate) unsafe fn linear(
    cpu: &Cpu,
    scratch: &mut LinearScratch,
    x: &Tensor,
    targets: &[LinearTarget<'_>],
    lora: Option<&LoraBatch<'_>>,
) -> Result<()> {
    let (rows, cols) = (x.shape().rows(), x.shape().row_len());
    let x_ptr = ptr::<f32>(x, "linear", "x")?;
    let weights = targets.iter().map(|t| cpu_weight(t.weight)).collect::<Result<Vec<_>>>()?;

    let table = lora.map(|l| l.table.read());
    let groups = match lora {
        // SAFETY: `rows` slots, checked by the caller.
        Some(l) => groups(unsafe { super::slice::<u32>(l.slots, "linear", "adapter slots")? }),
        None => Vec::new(),
    };
    let (updates, low_len, deferred) = updates(targets, &groups, table.as_deref().map_or(&[], Vec::as_slice));
    let row_scales = match lora {
        Some(l) => ptr::<f32>(l.scales, "linear", "adapter scales")?,
        None => SendPtr(std::ptr::null_mut()),
    };
    scratch.low.resize(low_len.max(scratch.low.len()), 0.0);
    let low = SendPtr(scratch.low.as_mut_ptr());

    if weights.iter().any(|w| w.format.is_quantised()) {
        let halves = |w: &&CpuWeight| with_block_format!(w.format, F => F::PARTS > 1, else false);
        // SAFETY: `x` has these extents.
        unsafe { quantise(cpu, scratch, (x_ptr.0, rows, cols), weights.iter().any(halves)) };
    }
    let operand = Operand { x: x_ptr.0, cols, quantised: scratch.activations(cols) };

    let mut epilogues = Vec::with_capacity(targets.len());
    for (target, &deferred) in targets.iter().zip(&deferred) {
        let optional = |t: Option<&Tensor>, name| match t {
            Some(t) if !deferred => ptr::<f32>(t, "linear", name).map(|p| p.0.cast_const()),
            _ => Ok(std::ptr::null()),
        };
        epilogues.push(Epilogue {
            bias: optional(target.bias, "bias")?,
            residual: optional(target.residual, "residual")?,
            out: ptr::<f32>(target.out, "linear", "out")?.0,
            features: target.weight.rows(),
        });
    }
    let epilogues = SendPtr(epilogues.as_mut_ptr());

    let num_threads = cpu.pool.num_threads();
    let shrinks: Vec<_> = updates.iter().filter_map(|u| Some((u, u.factors?))).collect();
    let mut tasks = Vec::new();
    for (thread, base) in base_tasks(&weights, rows, cols, num_threads).into_iter().enumerate() {
        let at = |thread: usize| thread * shrinks.len() / num_threads;
        tasks.extend(base.into_iter().map(Task::Base));
        tasks.extend(shrinks.iter().skip(at(thread)).take(at(thread + 1) - at(thread)).map(Task::Shrink));
    }
    cpu.pool.run(tasks.len(), &|i| match tasks.get(i) {
        // SAFETY: the operands are sound and tasks write disjoint outputs.
        Some(Task::Base(task)) => unsafe {
            let epilogue = *epilogues.get().add(task.target);
            if let Some(weight) = weights.get(task.target) {
                multiply(cpu.isa, weight, operand.get(), task, epilogue);
            }
        },
        // SAFETY: shapes were checked; each update has its own part of the scratch buffer.
        Some(Task::Shrink((update, factors))) => unsafe {
            run_shrink(cpu.isa, update, factors, (x_ptr.get(), cols), row_scales.get(), low.get());
        },
        None => {}
    });
    if updates.is_empty() {
        return Ok(());
    }
    run_expands(cpu, targets, &updates, &deferred, low)
}

/// Quantises all rows into the scratch buffers.
unsafe fn quantise(
    cpu: &Cpu,
    scratch: &mut LinearScratch,
    (x, rows, cols): (*const f32, usize, usize),
    halves: bool,
) {
    let num_blocks = Activations::stored_rows(rows) * (cols / BLOCK);
    scratch.quants.resize(num_blocks.max(scratch.quants.len()), QuantBlock::default());
    scratch.meta.resize(num_blocks.max(scratch.meta.len()), BlockMeta::default());
    let operand = Operand { x, cols, quantised: scratch.activations(cols) };
    let piece = rows_per_task(rows, cols, cpu.pool.num_threads());
    cpu.pool.run(rows.div_ceil(piece), &|i| {
        let rows = (i * piece, rows.min((i + 1) * piece));
        let Operand { x, quantised: to, .. } = *operand.get();
        // SAFETY: the buffers were sized above; tasks have disjoint rows.
        unsafe { cpu.isa.run(Quantise { x, to, rows, halves }) };
    });
}

/// Rows of a task: an even share for each thread where that is worth waking it, in pieces of some rows where there are
/// many.
pub(crate) fn rows_per_task(rows: usize, cols: usize, num_threads: usize) -> usize {
    let rows_of = |elements: usize| (elements / cols.max(1)).max(1);
    rows.div_ceil(num_threads).clamp(rows_of(2 * 1024), rows_of(16 * 1024)).min(rows.max(1))
}

/// Cuts the rows into runs of one slot.
fn groups(slots: &[u32]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (row, &slot) in slots.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if group.slot == slot => group.rows.1 = row + 1,
            _ => groups.push(Group { rows: (row, row + 1), slot }),
        }
    }
    groups
}

/// The updates to make, the length of their scratch buffer, and which targets leave bias and residual to them: those
/// that some row scales as a whole.
fn updates<'a>(
    targets: &[LinearTarget<'_>],
    groups: &[Group],
    table: &'a [Option<LoraModules>],
) -> (Vec<Update<'a>>, usize, Vec<bool>) {
    let mut updates = Vec::new();
    let mut low = 0;
    let mut deferred = Vec::with_capacity(targets.len());
    for (target_idx, target) in targets.iter().enumerate() {
        let factors = |slot: u32| -> Option<&'a LoraFactors> {
            let module = target.module?;
            if slot == NULL_SLOT {
                return None;
            }
            table.get(slot as usize)?.as_ref()?.get(module.0 as usize)?.as_ref()
        };
        let defer = groups.iter().any(|g| factors(g.slot).is_some_and(|f| f.out_scale.is_some()));
        deferred.push(defer);
        for group in groups {
            let factors = factors(group.slot);
            if factors.is_some() || defer {
                updates.push(Update { target: target_idx, rows: group.rows, factors, low });
                low += factors.map_or(0, |f| f.rank() * (group.rows.1 - group.rows.0));
            }
        }
    }
    (updates, low, deferred)
}

/// Cuts the product into tasks of some panels, and of as many rows as leave the activations in the cache. Each thread's
/// tasks are of its share of every target's panels, the same in every op.
fn base_tasks(weights: &[&CpuWeight], rows: usize, cols: usize, num_threads: usize) -> Vec<Vec<BaseTask>> {
    let is_quantised = weights.iter().all(|w| w.format.is_quantised());
    let bytes_per_row = if is_quantised { 2 * cols } else { 4 * cols };
    let max_rows = (ACTIVATION_BYTES / bytes_per_row.max(1)).max(3 * TILE_ROWS) / TILE_ROWS * TILE_ROWS;
    let num_chunks = rows.div_ceil(max_rows);
    let total: usize = weights.iter().map(|w| w.num_panels()).sum();
    // Plain weights are multiplied four panels at once.
    let unit = if is_quantised || total < 4 * num_threads { 1 } else { 4 };
    let share_of = |thread: usize| {
        let mut tasks = Vec::new();
        let share = |panels: usize| {
            let at = |thread: usize| panels.min(thread * panels.div_ceil(unit) / num_threads * unit);
            (at(thread), at(thread + 1))
        };
        for chunk in 0..num_chunks {
            let rows = (chunk * max_rows, rows.min((chunk + 1) * max_rows));
            let mut left: usize = weights.iter().map(|w| share(w.num_panels())).map(|s| s.1 - s.0).sum();
            let least = left.div_ceil(SMALLEST_PART).next_multiple_of(unit);
            // Half of what is left, again and again: whoever is done first takes a small piece, not a large one.
            let mut task_left = 0;
            for (target, weight) in weights.iter().enumerate() {
                let (mut first, end) = share(weight.num_panels());
                while first < end {
                    if task_left == 0 {
                        task_left = left.div_ceil(2).next_multiple_of(unit).max(least);
                    }
                    let panels = task_left.min(end - first);
                    tasks.push(BaseTask { target, rows, panels: (first, first + panels) });
                    first += panels;
                    left -= panels;
                    task_left -= panels;
                }
            }
        }
        tasks
    };
    (0..num_threads).map(share_of).collect()
}

/// Runs one task of the base product.
unsafe fn multiply(isa: Isa, weight: &CpuWeight, operand: &Operand, task: &BaseTask, epilogue: Epilogue) {
    let BaseTask { rows, panels, .. } = *task;
    let Operand { x, cols, quantised } = *operand;
    let weights = weight.quants.ptr();
    // SAFETY: the caller's.
    unsafe {
        with_block_format!(weight.format, F => multiply_quantised(isa, QuantisedGemm::<F> {
            format: PhantomData, x: quantised, quants: weights, scales: weight.scales.ptr(), rows, panels, epilogue,
        }), else match weight.format {
            WeightFormat::F16 => isa.run(PlainGemm::<F16> { element: PhantomData, x, cols, weights, rows, panels, epilogue }),
            WeightFormat::BF16 => isa.run(PlainGemm::<BF16> { element: PhantomData, x, cols, weights, rows, panels, epilogue }),
            _ => isa.run(PlainGemm::<F32> { element: PhantomData, x, cols, weights, rows, panels, epilogue }),
        });
    }
}

/// A quantised product, in tiles where the machine and the format have them.
unsafe fn multiply_quantised<F: BlockFormat>(isa: Isa, gemm: QuantisedGemm<F>) {
    #[cfg(target_arch = "x86_64")]
    let mut gemm = gemm;
    // SAFETY: the caller's; the scratch buffers hold whole tiles of rows.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx && super::amx::has_tiles::<F>() {
            let (first, end) = gemm.rows;
            let rest = (end - first) % TILE_ROWS;
            let tiled = if rest < super::amx::MIN_ROWS { end - rest } else { end };
            if tiled > first {
                super::amx::run(QuantisedGemm { rows: (first, tiled), ..gemm });
            }
            gemm.rows.0 = tiled;
        }
        isa.run(gemm);
    }
}

unsafe fn run_shrink(
    isa: Isa,
    update: &Update<'_>,
    factors: &LoraFactors,
    (x, cols): (*const f32, usize),
    row_scales: *const f32,
    low: *mut f32,
) {
    let (first, end) = update.rows;
    let Ok(a) = ptr::<u8>(&factors.a, "linear", "A") else { return };
    let rank = factors.rank();
    // SAFETY: shapes were checked by the caller; the update's part of `low` is its own.
    unsafe {
        shrink(
            isa,
            factors.a.dtype(),
            ShrinkArgs {
                x: x.add(first * cols),
                cols,
                a: a.get(),
                scales: row_scales.add(first),
                scale: factors.scale,
                low: low.add(update.low),
                rank,
                rows: end - first,
                ranks: (0, rank),
            },
        );
    }
}

/// The second half of the updates: a job of its own, since it needs all of the first.
fn run_expands(
    cpu: &Cpu,
    targets: &[LinearTarget<'_>],
    updates: &[Update<'_>],
    deferred: &[bool],
    low: SendPtr<f32>,
) -> Result<()> {
    let mut tasks = Vec::new();
    let num_threads = cpu.pool.num_threads();
    for update in updates {
        let (Some(target), Some(&deferred)) = (targets.get(update.target), deferred.get(update.target))
        else {
            continue;
        };
        let features = target.weight.rows();
        let optional = |t: Option<&Tensor>, name| match t {
            Some(t) if deferred => ptr::<f32>(t, "linear", name).map(|p| p.0.cast_const()),
            _ => Ok(std::ptr::null()),
        };
        let (bias, residual) = (optional(target.bias, "bias")?, optional(target.residual, "residual")?);
        let out = ptr::<f32>(target.out, "linear", "out")?.0;
        let (b_t, out_scale, dtype, rank) = match update.factors {
            Some(f) => {
                let out_scale =
                    f.out_scale.as_ref().map(|s| ptr::<f32>(s, "linear", "output scale")).transpose()?;
                let b = ptr::<u8>(&f.b_t, "linear", "B")?.0.cast_const();
                (b, out_scale.map_or(std::ptr::null(), |p| p.0.cast_const()), f.b_t.dtype(), f.rank())
            }
            None => (std::ptr::null(), std::ptr::null(), crate::DType::F32, 0),
        };
        // One task an update is best for memory, but must leave no thread without work.
        let pieces = if updates.len() >= UPDATES_PER_THREAD * num_threads { 1 } else { num_threads };
        let per_task = features.div_ceil(pieces).next_multiple_of(LANES).max(MIN_PIECE);
        let row_offset =
            |p: *const f32| if p.is_null() { p } else { p.wrapping_add(update.rows.0 * features) };
        for first in (0..features).step_by(per_task) {
            let args = ExpandArgs {
                low: low.0.wrapping_add(update.low),
                rank,
                b_t,
                out_scale,
                bias,
                residual: row_offset(residual),
                out: out.wrapping_add(update.rows.0 * features),
                features,
                rows: update.rows.1 - update.rows.0,
                piece: (first, features.min(first + per_task)),
            };
            tasks.push((dtype, SendArgs(args)));
        }
    }
    cpu.pool.run(tasks.len(), &|i| {
        if let Some((dtype, args)) = tasks.get(i) {
            // SAFETY: shapes were checked; tasks write disjoint vectors of disjoint rows.
            unsafe { expand(cpu.isa, *dtype, args.0) };
        }
    });
    Ok(())
}

struct SendArgs(ExpandArgs);
// SAFETY: the pointers belong to tensors that outlive the job, and tasks write disjoint parts.
unsafe impl Sync for SendArgs {}
