//! Programs: what ops are lowered to. A step of one row a sequence is kept as one, the CPU's counterpart of a recorded
//! graph; every other op is a short program that runs at once.
//!
//! A program holds places, not contents: token ids, positions, contexts, block tables and adapters are read anew
//! whenever it runs.

use std::sync::Arc;

use super::activations::{Activations, BlockMeta, QuantBlock};
use super::blocks::BLOCK;
use super::experts::ExpertLinear;
use super::linear::Linear;
use super::paged::Attention;
use super::routing::RoutingPlaces;
use super::rows::Rows;
use super::team::{Ended, Team, Worker};
use super::{Cpu, SendPtr};
use crate::lora::{BoundAdapter, LoraFactors, LoraTable, ModuleIdx, NULL_SLOT};
use crate::tensor::{Life, Memory, Tensor};

/// A part of an op whose tasks do not need each other.
pub(crate) enum Phase {
    /// Row by row.
    Rows(Rows),
    /// The products with the weights, and with the adapters' A.
    Products(Arc<Linear>),
    /// The products with the adapters' B.
    Updates(Arc<Linear>),
    /// Attention to the cache.
    Attention(Attention),
    /// Pairs of rows and experts, in order.
    Places(RoutingPlaces),
    /// As `Products`, of experts.
    ExpertProducts(Arc<ExpertLinear>),
    /// As `Updates`, of experts.
    ExpertUpdates(Arc<ExpertLinear>),
}
// SAFETY: pointers are to tensors that outlive the program's runs (see `Program::keep`), and the tasks of a phase write
// disjoint parts of them.
unsafe impl Send for Phase {}
// SAFETY: as above.
unsafe impl Sync for Phase {}

/// Phases, one after the other.
#[derive(Default)]
pub(crate) struct Program {
    phases: Vec<Phase>,
    adapters: Vec<AdapterInputs>,
    scratch: ScratchSize,
    kept: Vec<Arc<dyn Memory>>,
}

/// Where the adapters of the rows of some linear ops are to be found.
pub(crate) struct AdapterInputs {
    pub(crate) table: Arc<LoraTable>,
    /// `[rows]`.
    pub(crate) slots: *const u32,
    /// `[rows]`.
    pub(crate) scales: *const f32,
    pub(crate) rows: usize,
}
// SAFETY: as for `Phase`.
unsafe impl Send for AdapterInputs {}

/// What linear ops leave between their phases.
#[derive(Clone, Copy, Default)]
pub(crate) struct ScratchSize {
    /// Blocks of quantised activations.
    pub(crate) blocks: usize,
    /// Rows of products with an adapter's A, over all targets.
    pub(crate) low_rows: usize,
}

impl Program {
    /// Adds a phase; joins it to the one before where both work on the same rows, one by one.
    pub(crate) fn push(&mut self, phase: Phase) {
        match (self.phases.last_mut(), phase) {
            (Some(Phase::Rows(last)), Phase::Rows(rows)) => {
                if let Err(rows) = last.join(rows) {
                    self.phases.push(Phase::Rows(rows));
                }
            }
            (_, phase) => self.phases.push(phase),
        }
    }

    /// Takes note of the scratch memory that a phase uses.
    pub(crate) fn need(&mut self, size: ScratchSize) {
        self.scratch.blocks = self.scratch.blocks.max(size.blocks);
        self.scratch.low_rows = self.scratch.low_rows.max(size.low_rows);
    }

    /// Keeps an operand's memory: for the arena's, which the context owns, that is no matter of the program.
    pub(crate) fn keep(&mut self, operand: &Tensor) {
        if matches!(operand.life, Life::Persistent) {
            self.kept.push(operand.memory.clone());
        }
    }

    /// The number under which linear ops of this program find their adapters.
    pub(crate) fn adapters(&mut self, inputs: AdapterInputs) -> usize {
        let same = |a: &AdapterInputs| {
            Arc::ptr_eq(&a.table, &inputs.table)
                && (a.slots, a.scales, a.rows) == (inputs.slots, inputs.scales, inputs.rows)
        };
        match self.adapters.iter().position(same) {
            Some(idx) => idx,
            None => {
                self.adapters.push(inputs);
                self.adapters.len() - 1
            }
        }
    }

    /// Takes over another program's phases.
    pub(crate) fn append(&mut self, other: Program) {
        let renumbered: Vec<usize> = other.adapters.into_iter().map(|a| self.adapters(a)).collect();
        for phase in other.phases {
            self.push(match phase {
                Phase::Products(linear) => Phase::Products(linear.renumbered(&renumbered)),
                Phase::Updates(linear) => Phase::Updates(linear.renumbered(&renumbered)),
                Phase::ExpertProducts(linear) => Phase::ExpertProducts(linear.renumbered(&renumbered)),
                Phase::ExpertUpdates(linear) => Phase::ExpertUpdates(linear.renumbered(&renumbered)),
                phase => phase,
            });
        }
        self.need(other.scratch);
        self.kept.extend(other.kept);
    }

    /// Runs all phases.
    ///
    /// # Safety
    /// The operands are alive and of the shapes that the ops were lowered for, and the step's contents were checked.
    pub(crate) unsafe fn run(&self, cpu: &Cpu, scratch: &mut Scratch, team: &mut Team) {
        // SAFETY: the caller's.
        let adapters: Vec<AdaptedRows> =
            self.adapters.iter().map(|a| unsafe { AdaptedRows::read(a) }).collect();
        let max_rank = adapters.iter().map(|a| a.max_rank).max().unwrap_or(0);
        let env = scratch.env(cpu, self.scratch, max_rank, &adapters);
        let phases = &self.phases;
        let is_small = |idx: usize| phases.get(idx).is_some_and(|phase| phase.is_small(&env));
        team.run(&cpu.pool, phases.len(), &is_small, &|idx, worker| match phases.get(idx) {
            // SAFETY: the caller's; phases run in order.
            Some(phase) => unsafe { phase.run(&env, worker) },
            None => worker.each_of(0, |_| {}),
        });
    }
}

impl Phase {
    /// Whether it is not worth waiting for another thread.
    fn is_small(&self, env: &Env<'_>) -> bool {
        match self {
            Phase::Rows(rows) => rows.is_small(),
            Phase::Updates(linear) => !linear.has_updates(env),
            Phase::ExpertUpdates(linear) => !linear.has_updates(env),
            Phase::Places(_) => true,
            Phase::Products(_) | Phase::Attention(_) | Phase::ExpertProducts(_) => false,
        }
    }

    unsafe fn run(&self, env: &Env<'_>, worker: Worker<'_>) -> Ended {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Phase::Rows(rows) => rows.run(env, worker),
                Phase::Products(linear) => linear.products(env, worker),
                Phase::Updates(linear) => linear.updates(env, worker),
                Phase::Attention(attention) => attention.run(env, worker),
                Phase::Places(routing) => worker.each_of(1, |_| routing.place_pairs()),
                Phase::ExpertProducts(linear) => linear.products(env, worker),
                Phase::ExpertUpdates(linear) => linear.updates(env, worker),
            }
        }
    }
}

/// Buffers that a context keeps between programs.
#[derive(Default)]
pub(crate) struct Scratch {
    quants: Vec<QuantBlock>,
    meta: Vec<BlockMeta>,
    low: Vec<f32>,
}

impl Scratch {
    fn env<'a>(
        &mut self,
        cpu: &'a Cpu,
        size: ScratchSize,
        max_rank: usize,
        adapters: &'a [AdaptedRows],
    ) -> Env<'a> {
        self.quants.resize(self.quants.len().max(size.blocks), QuantBlock::default());
        self.meta.resize(self.meta.len().max(size.blocks), BlockMeta::default());
        self.low.resize(self.low.len().max(size.low_rows * max_rank), 0.0);
        Env {
            cpu,
            quants: SendPtr(self.quants.as_mut_ptr()),
            meta: SendPtr(self.meta.as_mut_ptr()),
            low: SendPtr(self.low.as_mut_ptr()),
            low_stride: max_rank,
            adapters,
        }
    }
}

/// What phases need besides their own operands.
pub(crate) struct Env<'a> {
    pub(crate) cpu: &'a Cpu,
    quants: SendPtr<QuantBlock>,
    meta: SendPtr<BlockMeta>,
    /// Products with the adapters' A, a row of [`Env::low_stride`] for each row of each target.
    pub(crate) low: SendPtr<f32>,
    pub(crate) low_stride: usize,
    pub(crate) adapters: &'a [AdaptedRows],
}

impl Env<'_> {
    /// The quantised activations of rows of `cols`.
    pub(crate) fn activations(&self, cols: usize) -> Activations {
        Activations {
            quants: self.quants.get().cast_const().cast(),
            meta: self.meta.get().cast_const(),
            num_blocks: cols / BLOCK,
        }
    }
}

/// The adapters of a step's rows.
pub(crate) struct AdaptedRows {
    pub(crate) groups: Vec<Group>,
    /// `[rows]`: factors on the adapters' scales.
    pub(crate) scales: SendPtr<f32>,
    max_rank: usize,
    pub(crate) has_adapters: bool,
    pub(crate) has_out_scales: bool,
}

/// Adjacent rows that use one slot.
pub(crate) struct Group {
    pub(crate) rows: (usize, usize),
    adapter: Option<BoundAdapter>,
}

impl Group {
    /// What the adapter has for a layer.
    pub(crate) fn factors(&self, module: Option<ModuleIdx>) -> Option<&LoraFactors> {
        self.adapter.as_ref()?.modules.get(module?.0 as usize)?.as_ref()
    }
}

impl AdaptedRows {
    unsafe fn read(inputs: &AdapterInputs) -> Self {
        // SAFETY: `rows` slots, by the caller.
        let slots = unsafe { std::slice::from_raw_parts(inputs.slots, inputs.rows) };
        let mut groups: Vec<Group> = Vec::new();
        let (mut first, mut max_rank, mut has_out_scales) = (0, 0, false);
        for same in slots.chunk_by(|a, b| a == b) {
            let rows = (first, first + same.len());
            first = rows.1;
            let slot = same.first().copied().filter(|&s| s != NULL_SLOT);
            let adapter = slot.and_then(|s| inputs.table.adapter(s));
            if let Some(adapter) = &adapter {
                max_rank = max_rank.max(adapter.max_rank);
                has_out_scales |= adapter.has_out_scales;
            }
            groups.push(Group { rows, adapter });
        }
        let has_adapters = groups.iter().any(|g| g.adapter.is_some());
        AdaptedRows {
            groups,
            has_adapters,
            scales: SendPtr(inputs.scales.cast_mut()),
            max_rank,
            has_out_scales,
        }
    }
}
