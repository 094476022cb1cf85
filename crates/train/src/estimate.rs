//! What a run will take, before it starts.

use wardrobe_formats::peft::is_head;
use wardrobe_models::Decoder;

use crate::config::TrainConfig;
use crate::parameters::Layout;
use crate::worker::{HEAD_ROWS, WorkerSize, kept_row_bytes};

/// Memory and arithmetic of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Estimate {
    /// Parameters that are trained.
    pub parameters: u64,
    /// Bytes of parameters, gradients, the optimizer's moments and the layouts that ops read.
    pub parameter_bytes: u64,
    /// Bytes of each worker: checkpoints, scratch memory, gradients.
    pub worker_bytes: u64,
    /// Workers side by side.
    pub num_workers: usize,
    /// Floating-point operations of a whole run, recomputation included.
    pub flops: u64,
}

impl Estimate {
    /// Bytes in all, beside the base model.
    pub fn total_bytes(&self) -> u64 {
        self.parameter_bytes + self.worker_bytes * self.num_workers as u64
    }
}

/// Bytes of what all workers share.
pub(crate) fn parameter_bytes(layout: &Layout) -> u64 {
    // Values, two moments and gradients; the four packed factors are two more.
    (layout.len * 4 * 6) as u64
}

/// Bytes of one worker.
pub(crate) fn worker_bytes(model: &dyn Decoder, layout: &Layout, size: WorkerSize) -> u64 {
    let c = model.config();
    // Activations as whole numbers, with tables and what the allocator leaves between.
    let quantised = 3 * size.max_rows * c.mlps_per_token() * c.intermediate_size.max(c.hidden_size);
    let rope = 4 * size.max_rows * c.head_dim;
    (size.arena_bytes(model) + size.checkpoint_bytes(model) + quantised + rope + 4 * layout.len) as u64
}

/// Floating-point operations of training on one example of `rows` rows with `supervised` tokens.
pub(crate) fn example_flops(model: &dyn Decoder, layout: &Layout, rows: usize, supervised: usize) -> u64 {
    let c = model.config();
    let (rows, supervised) = (rows as u64, supervised as u64);
    let size = |m: &wardrobe_models::Module| (m.weight.rows() * m.weight.cols()) as u64;
    let head = model.modules().iter().filter(|m| is_head(&m.path)).map(size).sum::<u64>();
    let of_experts = model.modules().iter().filter(|m| m.is_of_expert()).map(size).sum::<u64>();
    let others = model.modules().iter().map(size).sum::<u64>() - head - of_experts;
    // Of the experts, and of their factors, a token takes a few.
    let taken =
        |size: u64| c.experts.map_or(size, |e| size * e.num_experts_per_tok as u64 / e.num_experts as u64);
    let factors_of_experts = layout.modules.iter().filter(|m| m.is_of_expert());
    let factors_of_experts = factors_of_experts.map(|m| m.rank * (m.input + m.out)).sum::<usize>() as u64;
    let factors = layout.len as u64 - factors_of_experts + taken(factors_of_experts);
    // A product is two operations; forward, again, and back. Factors take twice as much going back.
    let linears = 2 * (3 * (others + taken(of_experts)) + 4 * factors) * rows;
    // Scores and values forward, five products back, over half of the square.
    let attention = 7 * rows * rows * (c.q_size() * c.num_layers) as u64;
    linears + attention + 2 * 2 * head * supervised
}

/// The most rows of a worker that fit `limit_bytes` beside what is shared.
pub(crate) fn most_rows(
    model: &dyn Decoder,
    layout: &Layout,
    config: &TrainConfig,
    num_workers: usize,
    limit_bytes: u64,
) -> usize {
    let fits = |rows: usize| {
        let size = worker_size(config, rows, rows, 0);
        parameter_bytes(layout) + num_workers as u64 * worker_bytes(model, layout, size) <= limit_bytes
    };
    let (mut low, mut high) = (0_usize, 1 << 22);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Blocks whose values each of the workers may keep.
pub(crate) fn kept_blocks(
    model: &dyn Decoder,
    kept_bytes: u64,
    max_rows: usize,
    num_workers: usize,
) -> usize {
    let c = model.config();
    let block = (kept_row_bytes(model) * max_rows * num_workers) as u64;
    let most = usize::try_from(kept_bytes / block.max(1)).unwrap_or(usize::MAX).min(c.num_layers);
    // A few blocks of long examples would take much and save little.
    if most < c.num_layers / 2 { 0 } else { most }
}

pub(crate) fn worker_size(
    config: &TrainConfig,
    max_rows: usize,
    max_seqs: usize,
    kept_blocks: usize,
) -> WorkerSize {
    WorkerSize {
        max_rows: max_rows.max(HEAD_ROWS),
        max_seqs,
        rank: config.lora.rank,
        dropout: config.lora.dropout > 0.0,
        dora: config.lora.use_dora,
        kept_blocks,
    }
}
