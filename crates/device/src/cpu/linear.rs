//! The linear op: quantise the activations once, multiply all targets' panels, then add the adapters.

use std::marker::PhantomData;
use std::sync::Arc;

use super::activations::{Activations, TILE_ROWS};
use super::blocks::BlockFormat;
use super::gemm::{BF16, Epilogue, F16, F32, PlainGemm, QuantisedGemm};
use super::isa::Isa;
use super::lora::{ExpandArgs, ShrinkArgs, expand, shrink};
use super::program::{AdaptedRows, AdapterInputs, Env, Group, Phase, Program, ScratchSize};
use super::rows::{RowOp, Rows};
use super::simd::LANES;
use super::team::{Ended, Worker};
use super::weight::{CpuWeight, with_block_format};
use super::{cpu_weight, ptr};
use crate::error::Result;
use crate::lora::{LoraBatch, LoraFactors, ModuleIdx};
use crate::ops::LinearTarget;
use crate::weight::Weight;
use crate::{Tensor, WeightFormat};

/// Bytes of activations that a task passes over for each panel: they should stay in the second-level cache.
pub(super) const ACTIVATION_BYTES: usize = 512 * 1024;
/// A thread's smallest task is one part in so many of its share: a thread that was held up must not hold up the others.
const SMALLEST_PART: usize = 10;

/// Features of an update that are worth a task.
pub(super) const MIN_PIECE: usize = 512;

/// Updates that make enough tasks for a thread.
const UPDATES_PER_THREAD: usize = 4;

/// What is multiplied: the floats, and what they were quantised to where a weight is quantised.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub(super) x: *const f32,
    pub(super) cols: usize,
    pub(super) quantised: Activations,
}

/// One of the layers that share the input.
#[derive(Clone)]
struct Target {
    weight: Weight,
    module: Option<ModuleIdx>,
    /// What the adapters' part reads.
    lora_x: *const f32,
    epilogue: Epilogue,
}

/// A linear op, lowered.
#[derive(Clone)]
pub(crate) struct Linear {
    x: *const f32,
    rows: usize,
    cols: usize,
    targets: Vec<Target>,
    /// Each thread's share of the base product.
    tasks: Vec<Vec<BaseTask>>,
    /// The program's number of the rows' adapters.
    adapters: Option<usize>,
}

/// A piece of the base product.
#[derive(Clone, Copy)]
pub(super) struct BaseTask {
    pub(super) target: usize,
    pub(super) rows: (usize, usize),
    pub(super) panels: (usize, usize),
}

// SAFETY: places in tensors that outlive the program's runs; tasks write disjoint parts.
unsafe impl Send for Linear {}
// SAFETY: as above.
unsafe impl Sync for Linear {}

/// Lowers [`crate::Ops::linear`].
pub(crate) fn lower(
    program: &mut Program,
    num_threads: usize,
    x: &Tensor,
    targets: &[LinearTarget<'_>],
    lora: Option<&LoraBatch<'_>>,
) -> Result<()> {
    let op = "linear";
    let (rows, cols) = (x.shape().rows(), x.shape().row_len());
    let kept = [Some(x), lora.map(|l| l.slots), lora.map(|l| l.scales)];
    kept.into_iter().flatten().for_each(|t| program.keep(t));
    let x = ptr::<f32>(x, op, "x")?.0.cast_const();
    let weights = targets.iter().map(|t| cpu_weight(t.weight)).collect::<Result<Vec<_>>>()?;
    let mut optional = |t: Option<&Tensor>, name| {
        t.map_or(Ok(std::ptr::null()), |t| {
            program.keep(t);
            ptr::<f32>(t, op, name).map(|p| p.0.cast_const())
        })
    };
    let lowered = targets
        .iter()
        .map(|t| {
            let epilogue = Epilogue {
                bias: optional(t.bias, "bias")?,
                residual: optional(t.residual, "residual")?,
                out: ptr::<f32>(t.out, op, "out")?.0,
                features: t.weight.rows(),
            };
            let lora_x = if t.lora_x.is_some() { optional(t.lora_x, "x of the adapters")? } else { x };
            Ok(Target { weight: t.weight.clone(), module: t.module, lora_x, epilogue })
        })
        .collect::<Result<Vec<_>>>()?;
    let adapters = match lora {
        Some(lora) => Some(program.adapters(AdapterInputs {
            table: lora.table.clone(),
            slots: ptr::<u32>(lora.slots, op, "adapter slots")?.0,
            scales: ptr::<f32>(lora.scales, op, "adapter scales")?.0,
            rows,
        })),
        None => None,
    };
    let is_quantised = weights.iter().any(|w| w.format.is_quantised());
    if is_quantised {
        let halves = |w: &&CpuWeight| with_block_format!(w.format, F => F::PARTS > 1, else false);
        let halves = weights.iter().any(halves);
        program.push(Phase::Rows(Rows::new(
            RowOp::Quantise { x, len: cols, halves, experts: None },
            rows,
            cols,
        )));
    }
    program.need(ScratchSize {
        blocks: if is_quantised { Activations::stored_blocks(rows, cols) } else { 0 },
        low_rows: targets.len() * rows,
    });
    let tasks = base_tasks(&weights, rows, cols, num_threads);
    let linear = Arc::new(Linear { x, rows, cols, targets: lowered, tasks, adapters });
    program.push(Phase::Products(linear.clone()));
    if adapters.is_some() {
        program.push(Phase::Updates(linear));
    }
    Ok(())
}

/// An adapter's update of a target's rows.
struct Update<'a> {
    target: &'a Target,
    group: &'a Group,
    factors: Option<&'a LoraFactors>,
    /// The rows' products with A.
    low: *mut f32,
}

impl Linear {
    /// With the adapters under other numbers.
    pub(crate) fn renumbered(self: Arc<Self>, numbers: &[usize]) -> Arc<Self> {
        match self.adapters.and_then(|old| numbers.get(old)) {
            Some(&new) if self.adapters != Some(new) => {
                Arc::new(Linear { adapters: Some(new), ..(*self).clone() })
            }
            _ => self,
        }
    }

    /// The products with the weights and with the adapters' A.
    ///
    /// # Safety
    /// As [`Program::run`].
    pub(crate) unsafe fn products(&self, env: &Env<'_>, worker: Worker<'_>) -> Ended {
        let isa = env.cpu.isa;
        let operand = Operand { x: self.x, cols: self.cols, quantised: env.activations(self.cols) };
        let adapted = self.adapted(env);
        let num_updates = adapted.map_or(0, |a| self.targets.len() * a.groups.len());
        let num_workers = worker.num_workers();
        let first = |worker: usize| worker * num_updates / num_workers;
        let base = |worker: usize| self.tasks.get(worker).map_or(&[][..], Vec::as_slice);
        let updates = |worker: usize| first(worker + 1) - first(worker);
        // The adapters' part first: the rows are still in the cache, and the weights' last tasks are the smallest.
        worker.each(
            |worker| updates(worker) + base(worker).len(),
            |owner, i| {
                // SAFETY: the caller's; tasks write disjoint panels and rows.
                unsafe {
                    if let (Some(adapted), true) = (adapted, i < updates(owner)) {
                        let idx = first(owner) + i;
                        let Some(update) = self.update(env, adapted, idx) else { return };
                        let next = self.update(env, adapted, idx + 1);
                        let next = next.and_then(|next| next.factors).map(|f| &f.a);
                        update.shrink(isa, self.cols, adapted.scales.get(), next);
                    } else if let Some(task) = base(owner).get(i - updates(owner)) {
                        let Some(target) = self.targets.get(task.target) else { return };
                        let Ok(weight) = cpu_weight(&target.weight) else { return };
                        let mut epilogue = target.epilogue;
                        if adapted.is_some_and(|a| target.is_scaled(a)) {
                            (epilogue.bias, epilogue.residual) = (std::ptr::null(), std::ptr::null());
                        }
                        multiply(isa, weight, &operand, task, epilogue);
                    }
                }
            },
        )
    }

    /// The products with the adapters' B, added to the outputs.
    ///
    /// # Safety
    /// As [`Program::run`].
    pub(crate) unsafe fn updates(&self, env: &Env<'_>, worker: Worker<'_>) -> Ended {
        let Some(adapted) = self.adapted(env) else { return worker.each_of(0, |_| {}) };
        let num_updates = self.targets.len() * adapted.groups.len();
        // One task an update is best for memory, but must leave no thread without work.
        let num_workers = worker.num_workers();
        let pieces = if num_updates >= UPDATES_PER_THREAD * num_workers { 1 } else { num_workers };
        worker.each_of(num_updates * pieces, |i| {
            // SAFETY: the caller's; tasks write disjoint vectors of disjoint rows.
            unsafe {
                if let Some(update) = self.update(env, adapted, i / pieces) {
                    // With several pieces nobody knows which thread takes the next.
                    let next = self.update(env, adapted, i + 1).filter(|_| pieces == 1);
                    let next = next.and_then(|next| next.factors).map(|f| &f.b);
                    update.expand(env.cpu.isa, update.target.is_scaled(adapted), (i % pieces, pieces), next);
                }
            }
        })
    }

    /// Whether some row of this step has an adapter.
    pub(crate) fn has_updates(&self, env: &Env<'_>) -> bool {
        self.adapted(env).is_some_and(|a| a.has_adapters)
    }

    fn adapted<'a>(&self, env: &Env<'a>) -> Option<&'a AdaptedRows> {
        env.adapters.get(self.adapters?)
    }

    fn update<'a>(&'a self, env: &Env<'a>, adapted: &'a AdaptedRows, idx: usize) -> Option<Update<'a>> {
        // An adapter's factors lie side by side.
        let target_idx = idx % self.targets.len();
        let group = adapted.groups.get(idx / self.targets.len())?;
        let target = self.targets.get(target_idx)?;
        let low_row = target_idx * self.rows + group.rows.0;
        let low = env.low.get().wrapping_add(low_row * env.low_stride);
        Some(Update { target, group, factors: group.factors(target.module), low })
    }
}

impl Target {
    /// Whether some row's adapter scales the output as a whole: then all rows get bias and residual after that.
    fn is_scaled(&self, adapted: &AdaptedRows) -> bool {
        let scales = |g: &Group| g.factors(self.module).is_some_and(|f| f.out_scale.is_some());
        adapted.has_out_scales && adapted.groups.iter().any(scales)
    }
}

/// Where a factor lies; null for none.
pub(super) fn place(factor: Option<&Tensor>) -> *const u8 {
    factor.and_then(|t| ptr::<u8>(t, "linear", "factor").ok()).map_or(std::ptr::null(), |p| p.0.cast_const())
}

impl Update<'_> {
    /// `low = scale x Aᵀ`.
    unsafe fn shrink(&self, isa: Isa, cols: usize, row_scales: *const f32, next: Option<&Tensor>) {
        let Some(factors) = self.factors else { return };
        let Ok(a) = ptr::<u8>(&factors.a, "linear", "A") else { return };
        let (first, end) = self.group.rows;
        let rank = factors.rank();
        // SAFETY: shapes were checked when the adapter was bound; the update's part of `low` is its own.
        unsafe {
            shrink(
                isa,
                factors.a.dtype(),
                ShrinkArgs {
                    x: self.target.lora_x.add(first * cols),
                    cols,
                    a: a.get(),
                    scales: row_scales.add(first),
                    scale: factors.scale,
                    low: self.low,
                    rank,
                    rows: end - first,
                    next: place(next),
                },
            );
        }
    }

    /// Adds `low Bᵀ`, and bias and residual if they were `deferred`: one of `pieces` parts of the features.
    unsafe fn expand(
        &self,
        isa: Isa,
        deferred: bool,
        (piece, pieces): (usize, usize),
        next: Option<&Tensor>,
    ) {
        let Epilogue { bias, residual, out, features } = self.target.epilogue;
        let per_piece = features.div_ceil(pieces).next_multiple_of(LANES).max(MIN_PIECE);
        let first = piece * per_piece;
        if first >= features || (self.factors.is_none() && !deferred) {
            return;
        }
        let address = |t: &Tensor, name| ptr::<u8>(t, "linear", name).map(|p| p.0.cast_const());
        let (b, out_scale, dtype, rank) = match self.factors {
            Some(f) => {
                let Ok(b) = address(&f.b, "B") else { return };
                let out_scale =
                    f.out_scale.as_ref().map_or(Ok(std::ptr::null()), |s| address(s, "output scale"));
                let Ok(out_scale) = out_scale else { return };
                (b, out_scale.cast(), f.b.dtype(), f.rank())
            }
            None => (std::ptr::null(), std::ptr::null(), crate::DType::F32, 0),
        };
        let at = self.group.rows.0 * features;
        let args = ExpandArgs {
            low: self.low,
            rank,
            b,
            out_scale,
            bias: if deferred { bias } else { std::ptr::null() },
            residual: if deferred && !residual.is_null() {
                residual.wrapping_add(at)
            } else {
                std::ptr::null()
            },
            out: out.wrapping_add(at),
            features,
            rows: self.group.rows.1 - self.group.rows.0,
            piece: (first, features.min(first + per_piece)),
            next: place(next),
        };
        // SAFETY: shapes were checked when the adapter was bound.
        unsafe { expand(isa, dtype, args) };
    }
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
///
/// # Safety
/// Rows, panels and their extents exist; no two calls at once write the same.
pub(super) unsafe fn multiply(
    isa: Isa,
    weight: &CpuWeight,
    operand: &Operand,
    task: &BaseTask,
    epilogue: Epilogue,
) {
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
