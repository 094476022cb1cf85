//! Linear layers of experts, of which each row takes a few.
//!
//! What a step's rows take is found while the step runs, so that all here is looked up when a phase runs: a program holds
//! places only. An expert's pairs are adjacent rows; quantised, each expert's begin a tile of their own.

use std::sync::Arc;

use super::activations::{Activations, TILE_ROWS};
use super::blocks::BlockFormat;
use super::linear::{ACTIVATION_BYTES, BaseTask, MIN_PIECE, Operand, multiply, place};
use super::lora::{ExpandArgs, ShrinkArgs, expand, shrink};
use super::program::{AdaptedRows, AdapterInputs, Env, Phase, Program, ScratchSize};
use super::routing::{ExpertRows, RoutingPlaces};
use super::rows::{RowOp, Rows};
use super::simd::LANES;
use super::team::{Ended, Worker};
use super::weight::{CpuWeight, with_block_format};
use super::{cpu_weight, ptr};
use crate::error::Result;
use crate::experts::{ExpertTarget, Experts, Routing};
use crate::lora::{LoraBatch, LoraFactors};
use crate::tensor::Tensor;

/// Tasks of an expert's product for each thread.
const PARTS_PER_THREAD: usize = 4;
/// Rows whose factors on the adapter's scale are looked up at once.
const SCALE_ROWS: usize = 64;

/// One of the layers that share an input.
#[derive(Clone)]
struct Target {
    experts: Experts,
    /// What the adapters' part reads.
    lora_x: *const f32,
    out: *mut f32,
}

/// Layers of experts, lowered.
#[derive(Clone)]
pub(crate) struct ExpertLinear {
    x: *const f32,
    cols: usize,
    targets: Vec<Target>,
    routing: RoutingPlaces,
    /// The program's number of the rows' adapters.
    adapters: Option<usize>,
}

// SAFETY: places in tensors that outlive the program's runs; tasks write disjoint parts.
unsafe impl Send for ExpertLinear {}
// SAFETY: as above.
unsafe impl Sync for ExpertLinear {}

/// Lowers [`crate::Ops::expert_linear`].
pub(crate) fn lower(
    program: &mut Program,
    x: &Tensor,
    targets: &[ExpertTarget<'_>],
    routing: &Routing,
    lora: Option<&LoraBatch<'_>>,
) -> Result<()> {
    let op = "expert_linear";
    let (pairs, cols) = (x.shape().rows(), x.shape().row_len());
    let kept = [Some(x), lora.map(|l| l.slots), lora.map(|l| l.scales)];
    kept.into_iter().flatten().for_each(|t| program.keep(t));
    RoutingPlaces::keep(program, routing);
    let x = ptr::<f32>(x, op, "x")?.0.cast_const();
    let places = RoutingPlaces::of(routing)?;
    let (mut is_quantised, mut halves) = (false, false);
    let mut lowered = Vec::with_capacity(targets.len());
    for target in targets {
        for weight in target.experts.weights() {
            let format = cpu_weight(weight)?.format;
            is_quantised |= format.is_quantised();
            halves |= with_block_format!(format, F => F::PARTS > 1, else false);
        }
        let kept = [Some(target.out), target.lora_x];
        kept.into_iter().flatten().for_each(|t| program.keep(t));
        let lora_x = match target.lora_x {
            Some(x) => ptr::<f32>(x, op, "x of the adapters")?.0.cast_const(),
            None => x,
        };
        let out = ptr::<f32>(target.out, op, "out")?.0;
        lowered.push(Target { experts: target.experts.clone(), lora_x, out });
    }
    let adapters = match lora {
        Some(lora) => Some(program.adapters(AdapterInputs {
            table: lora.table.clone(),
            slots: ptr::<u32>(lora.slots, op, "adapter slots")?.0,
            scales: ptr::<f32>(lora.scales, op, "adapter scales")?.0,
            rows: places.num_rows,
        })),
        None => None,
    };
    if is_quantised {
        let quantise = RowOp::Quantise { x, len: cols, halves, experts: Some(places) };
        program.push(Phase::Rows(Rows::new(quantise, pairs, cols)));
    }
    program.need(ScratchSize {
        blocks: if is_quantised { Activations::stored_blocks(places.max_tiled_rows(), cols) } else { 0 },
        low_rows: targets.len() * pairs,
    });
    let linear = Arc::new(ExpertLinear { x, cols, targets: lowered, routing: places, adapters });
    program.push(Phase::ExpertProducts(linear.clone()));
    if adapters.is_some() {
        program.push(Phase::ExpertUpdates(linear));
    }
    Ok(())
}

/// Adjacent pairs of an expert whose rows use one adapter.
struct Run<'a> {
    pairs: (usize, usize),
    factors: &'a LoraFactors,
}

/// Rows of a product that a task takes at once: so many that they stay in the cache.
struct Cut {
    rows_per_chunk: usize,
    num_chunks: usize,
    panels_per_part: usize,
    num_parts: usize,
}

impl ExpertLinear {
    /// With the adapters under other numbers.
    pub(crate) fn renumbered(self: Arc<Self>, numbers: &[usize]) -> Arc<Self> {
        match self.adapters.and_then(|old| numbers.get(old)) {
            Some(&new) if self.adapters != Some(new) => {
                Arc::new(ExpertLinear { adapters: Some(new), ..(*self).clone() })
            }
            _ => self,
        }
    }

    fn adapted<'a>(&self, env: &Env<'a>) -> Option<&'a AdaptedRows> {
        env.adapters.get(self.adapters?).filter(|adapted| adapted.has_adapters)
    }

    /// Whether some row of this step has an adapter.
    pub(crate) fn has_updates(&self, env: &Env<'_>) -> bool {
        self.adapted(env).is_some()
    }

    /// How a product of the experts' weights with `rows` rows is cut, on so many threads.
    fn cut(&self, weight: &CpuWeight, rows: usize, num_threads: usize) -> Cut {
        let is_quantised = weight.format.is_quantised();
        let bytes_per_row = if is_quantised { 2 * self.cols } else { 4 * self.cols };
        let rows_per_chunk =
            (ACTIVATION_BYTES / bytes_per_row.max(1)).max(3 * TILE_ROWS) / TILE_ROWS * TILE_ROWS;
        let num_panels = weight.num_panels();
        // Plain weights are multiplied four panels at once.
        let unit = if is_quantised || num_panels < 4 * num_threads { 1 } else { 4 };
        let parts = (PARTS_PER_THREAD * num_threads).min(num_panels.div_ceil(unit)).max(1);
        let panels_per_part = num_panels.div_ceil(parts).next_multiple_of(unit).max(1);
        let num_parts = num_panels.div_ceil(panels_per_part);
        Cut { rows_per_chunk, num_chunks: rows.div_ceil(rows_per_chunk), panels_per_part, num_parts }
    }

    /// The products with the weights and with the adapters' A.
    ///
    /// # Safety
    /// As [`Program::run`].
    pub(crate) unsafe fn products(&self, env: &Env<'_>, worker: Worker<'_>) -> Ended {
        // SAFETY: the caller's: an earlier phase has routed.
        let groups: Vec<ExpertRows> = unsafe { self.routing.groups() }.collect();
        let num_workers = worker.num_workers();
        let adapted = self.adapted(env);
        let num_updates = adapted.map_or(0, |_| groups.len() * self.targets.len());
        // The base product's tasks: the last of each group and target.
        let mut ends = Vec::with_capacity(groups.len() * self.targets.len());
        let mut num_tasks = 0;
        for group in &groups {
            for target in &self.targets {
                let weight = target.experts.weights().get(group.expert).and_then(|w| cpu_weight(w).ok());
                let cut = weight.map(|w| self.cut(w, group.pairs.1 - group.pairs.0, num_workers));
                num_tasks += cut.as_ref().map_or(0, |cut| cut.num_chunks * cut.num_parts);
                ends.push((num_tasks, weight.zip(cut), group, target));
            }
        }
        let first = |worker: usize, of: usize| worker * of / num_workers;
        let share = |worker: usize, of: usize| first(worker + 1, of) - first(worker, of);
        worker.each(
            |worker| share(worker, num_updates) + share(worker, num_tasks),
            |owner, i| {
                let updates = share(owner, num_updates);
                // SAFETY: the caller's; tasks write disjoint panels and rows.
                unsafe {
                    if let (Some(adapted), true) = (adapted, i < updates) {
                        let idx = first(owner, num_updates) + i;
                        let group = groups.get(idx / self.targets.len());
                        if let Some(group) = group {
                            self.shrink(env, adapted, group, idx % self.targets.len());
                        }
                        return;
                    }
                    let task = first(owner, num_tasks) + i - updates;
                    let at = ends.partition_point(|(end, ..)| *end <= task);
                    let before = at.checked_sub(1).and_then(|at| ends.get(at)).map_or(0, |(end, ..)| *end);
                    if let Some((_, Some((weight, cut)), group, target)) = ends.get(at) {
                        self.base(env, (weight, cut), (group, target), task - before);
                    }
                }
            },
        )
    }

    /// A piece of an expert's base product.
    unsafe fn base(
        &self,
        env: &Env<'_>,
        (weight, cut): (&CpuWeight, &Cut),
        (group, target): (&ExpertRows, &Target),
        task: usize,
    ) {
        let (part, chunk) = (task % cut.num_parts, task / cut.num_parts);
        let (first, end) = group.pairs;
        let rows = (chunk * cut.rows_per_chunk, (end - first).min((chunk + 1) * cut.rows_per_chunk));
        let panels = (part * cut.panels_per_part, weight.num_panels().min((part + 1) * cut.panels_per_part));
        let features = weight.rows;
        let out = target.out.wrapping_add(first * features);
        // Quantised rows stand elsewhere than their pairs.
        let tiled = if weight.format.is_quantised() { group.tile * TILE_ROWS } else { 0 };
        let epilogue = super::gemm::Epilogue {
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            out: out.wrapping_sub(tiled * features),
            features,
        };
        let operand = Operand {
            x: self.x.wrapping_add(first * self.cols),
            cols: self.cols,
            quantised: env.activations(self.cols),
        };
        let task = BaseTask { target: 0, rows: (tiled + rows.0, tiled + rows.1), panels };
        // SAFETY: the caller's.
        unsafe { multiply(env.cpu.isa, weight, &operand, &task, epilogue) };
    }

    /// The runs of an expert's pairs whose adapter has factors for its layer.
    unsafe fn runs<'a>(&self, adapted: &'a AdaptedRows, group: &ExpertRows, target: &Target) -> Vec<Run<'a>> {
        let mut runs = Vec::new();
        let Some(modules) = target.experts.modules() else { return runs };
        let module = Some(modules.of(group.expert));
        let (mut first, end) = group.pairs;
        // SAFETY: the caller's: these pairs exist.
        let rows = unsafe { std::slice::from_raw_parts(self.routing.rows.cast_const(), end) };
        while let Some(&row) = rows.get(first) {
            let idx = adapted.groups.partition_point(|g| g.rows.1 <= row as usize);
            let Some(of_slot) = adapted.groups.get(idx) else { break };
            let same = rows.iter().skip(first).take_while(|row| (**row as usize) < of_slot.rows.1).count();
            let pairs = (first, first + same.max(1));
            first = pairs.1;
            if let Some(factors) = of_slot.factors(module) {
                runs.push(Run { pairs, factors });
            }
        }
        runs
    }

    /// A target's part of the products with A.
    fn low(&self, env: &Env<'_>, target_idx: usize, pair: usize) -> *mut f32 {
        let low_row = target_idx * self.routing.num_pairs() + pair;
        env.low.get().wrapping_add(low_row * env.low_stride)
    }

    /// `low = scale x Aᵀ` of an expert's pairs.
    unsafe fn shrink(&self, env: &Env<'_>, adapted: &AdaptedRows, group: &ExpertRows, target_idx: usize) {
        let Some(target) = self.targets.get(target_idx) else { return };
        // SAFETY: the caller's; shapes were checked when adapters were bound; these pairs' part of `low` is their own.
        unsafe {
            for Run { pairs, factors } in self.runs(adapted, group, target) {
                let Ok(a) = ptr::<u8>(&factors.a, "expert_linear", "A") else { continue };
                let mut scales = [0.0; SCALE_ROWS];
                for first in (pairs.0..pairs.1).step_by(SCALE_ROWS) {
                    let rows = SCALE_ROWS.min(pairs.1 - first);
                    for (i, scale) in scales.iter_mut().take(rows).enumerate() {
                        let row = *self.routing.rows.add(first + i) as usize;
                        *scale = *adapted.scales.get().add(row);
                    }
                    let args = ShrinkArgs {
                        x: target.lora_x.add(first * self.cols),
                        cols: self.cols,
                        a: a.get(),
                        scales: scales.as_ptr(),
                        scale: factors.scale,
                        // Rows of a run stand close together, whatever the largest rank is.
                        low: self.low(env, target_idx, pairs.0).add((first - pairs.0) * factors.rank()),
                        rank: factors.rank(),
                        rows,
                        next: std::ptr::null(),
                    };
                    shrink(env.cpu.isa, factors.a.dtype(), args);
                }
            }
        }
    }

    /// The products with the adapters' B, added to the outputs.
    ///
    /// # Safety
    /// As [`Program::run`].
    pub(crate) unsafe fn updates(&self, env: &Env<'_>, worker: Worker<'_>) -> Ended {
        let Some(adapted) = self.adapted(env) else { return worker.each_of(0, |_| {}) };
        // SAFETY: the caller's: an earlier phase has routed.
        let groups: Vec<ExpertRows> = unsafe { self.routing.groups() }.collect();
        let pieces = worker.num_workers();
        worker.each_of(groups.len() * self.targets.len() * pieces, |i| {
            let (piece, update) = (i % pieces, i / pieces);
            let target_idx = update % self.targets.len();
            let (Some(group), Some(target)) =
                (groups.get(update / self.targets.len()), self.targets.get(target_idx))
            else {
                return;
            };
            let features = target.experts.rows();
            let per_piece = features.div_ceil(pieces).next_multiple_of(LANES).max(MIN_PIECE);
            let first = piece * per_piece;
            if first >= features {
                return;
            }
            // SAFETY: the caller's; tasks write disjoint vectors of disjoint rows; shapes were checked when adapters were
            // bound.
            unsafe {
                for Run { pairs, factors } in self.runs(adapted, group, target) {
                    let args = ExpandArgs {
                        low: self.low(env, target_idx, pairs.0),
                        rank: factors.rank(),
                        b: place(Some(&factors.b)),
                        out_scale: place(factors.out_scale.as_ref()).cast(),
                        bias: std::ptr::null(),
                        residual: std::ptr::null(),
                        out: target.out.wrapping_add(pairs.0 * features),
                        features,
                        rows: pairs.1 - pairs.0,
                        piece: (first, features.min(first + per_piece)),
                        next: std::ptr::null(),
                    };
                    if !args.b.is_null() {
                        expand(env.cpu.isa, factors.b.dtype(), args);
                    }
                }
            }
        })
    }
}
