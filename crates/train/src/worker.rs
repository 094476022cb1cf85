//! One worker: the forward and the backward pass of micro-batches, in a context of its own.
//!
//! State: room for the input of every block (the checkpoints), for what attention gave in it, and, as far as memory is
//! given for it, for what its linear layers gave; everything else is computed again in the arena, block by block.

use std::sync::Arc;

use wardrobe_device::{
    AttentionMemo, BLOCK_SIZE, BlockMemo, Ctx, CtxConfig, DType, Device, Dropout, KvCache, KvConfig,
    LinearMemo, LoraTable, MemoUse, RopeTables, Seed, Step, StepBounds, StepInputs, StepLimits, Tensor,
    TrainedModule,
};
use wardrobe_models::{BlockState, Decoder, RopeSpec, RowElements, rope_table};

use wardrobe_device::Result;

use crate::microbatch::MicroBatch;

/// Rows of logits at once: a vocabulary of 50,000 takes 200 kB a row.
pub(crate) const HEAD_ROWS: usize = 128;

/// What a worker is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerSize {
    /// Rows of its largest micro-batch.
    pub(crate) max_rows: usize,
    /// Examples in one.
    pub(crate) max_seqs: usize,
    /// Largest rank.
    pub(crate) rank: usize,
    /// Whether adapters read what dropout leaves.
    pub(crate) dropout: bool,
    /// Whether outputs are scaled.
    pub(crate) dora: bool,
    /// Blocks whose linear layers are not computed again.
    pub(crate) kept_blocks: usize,
}

impl WorkerSize {
    /// Bytes of scratch memory: a block's values, its gradients at their largest, and a chunk of logits.
    pub(crate) fn arena_bytes(&self, model: &dyn Decoder) -> usize {
        let c = model.config();
        let (h, q, kv, pairs) = (c.hidden_size, c.q_size(), c.kv_size(), c.mlps_per_token());
        let inner = c.intermediate_size * pairs;
        let RowElements { values, gradients, head, .. } = model.row_elements();
        // What goes to experts is there for each of them.
        let of_mlp = if c.experts.is_some() { 2 * h * pairs + 4 } else { 2 * h };
        let dropped = if self.dropout { 3 * h + q + of_mlp + inner + inner.max(q).max(h) } else { 0 };
        let scaled = if self.dora { (2 * inner).max(q + 2 * kv).max(2 * q) } else { 0 };
        let per_row = values + gradients + dropped + scaled + 2 * self.rank * pairs;
        let head = HEAD_ROWS.min(self.max_rows) * (head + 2 * h);
        4 * (self.max_rows * per_row + head + 2 * h * self.max_rows) + (256 << 10)
    }

    /// Bytes of checkpoints, kept attention and gradients between blocks.
    pub(crate) fn checkpoint_bytes(&self, model: &dyn Decoder) -> usize {
        let c = model.config();
        let per_row = (c.num_layers + 1) * c.hidden_size
            + c.num_layers * (c.q_size() + c.num_heads)
            + 2 * c.hidden_size;
        let kept = self.kept_blocks * kept_row_bytes(model) / 4;
        let kv = 2 * c.kv_size() * MicroBatch::num_blocks(self.max_rows, self.max_seqs) * BLOCK_SIZE;
        4 * (self.max_rows * (per_row + kept) + kv)
    }
}

/// Bytes of a row of a block whose linear layers' results are kept, beside its input.
pub(crate) fn kept_row_bytes(model: &dyn Decoder) -> usize {
    4 * model.row_elements().linears
}

/// What a micro-batch gave.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Losses {
    /// Sum over the supervised tokens, in nats.
    pub(crate) sum: f64,
    /// Supervised tokens.
    pub(crate) tokens: usize,
    /// Rows that were computed.
    pub(crate) rows: usize,
}

impl Losses {
    /// In nats a supervised token.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }

    pub(crate) fn add(&mut self, other: Losses) {
        self.sum += other.sum;
        self.tokens += other.tokens;
        self.rows += other.rows;
    }
}

/// What a backward pass needs besides the micro-batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackwardInputs<'a> {
    /// By module; gradients are added to what they hold.
    pub(crate) modules: &'a [Option<TrainedModule>],
    /// Factor on every token's loss: one over the supervised tokens of the batch.
    pub(crate) weight: f32,
    pub(crate) dropout: Option<Dropout>,
}

/// What is held of a block between the passes.
struct BlockRoom {
    /// `[max rows, hidden]`; none where it is among the kept.
    output: Option<Tensor>,
    max_rows: usize,
    memo: BlockMemo,
}

impl BlockRoom {
    /// Runs a block of `rows` rows with what is kept of it.
    fn run(
        &mut self,
        ctx: &mut Ctx,
        rows: usize,
        use_: MemoUse,
        block: impl FnOnce(&mut Ctx) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let AttentionMemo { out, lse } = &self.memo.attention;
        let attention = AttentionMemo { out: out.rows(0, rows)?, lse: lse.rows(0, rows)? };
        let mut memo = BlockMemo { attention, linears: self.memo.linears.take() };
        let result = ctx.with_memo(&mut memo, use_, block);
        self.memo.linears = memo.linears;
        result
    }

    /// Runs it for the first time; its result is kept.
    fn keep(
        &mut self,
        ctx: &mut Ctx,
        rows: usize,
        block: impl FnOnce(&mut Ctx) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let y = self.run(ctx, rows, MemoUse::Keep, block)?;
        if let Some(linears) = &mut self.memo.linears {
            linears.block_gave(&y);
            // A block that ends in another op than a linear one.
            if self.output.is_none() && !linears.gave(&y) {
                let shape = [self.max_rows, y.shape().row_len()];
                self.output = Some(ctx.persistent("a checkpoint", shape, DType::F32)?);
            }
        }
        let Some(output) = &self.output else { return Ok(y) };
        let output = output.rows(0, rows)?;
        if !output.is_same_place(&y) {
            ctx.copy(&y, &output)?;
        }
        Ok(output)
    }
}

/// See the module's head.
pub(crate) struct Worker {
    pub(crate) ctx: Ctx,
    model: Arc<dyn Decoder>,
    rope: RopeTables,
    kv: KvCache,
    bounds: StepBounds,
    /// `[max rows, hidden]`: the embedded tokens.
    first: Tensor,
    blocks: Vec<BlockRoom>,
    d_x: Tensor,
    d_hidden: Tensor,
}

impl Worker {
    /// Takes all the memory that it will use, on `device`. `rope` is the model's or the adapter's own.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        model: Arc<dyn Decoder>,
        rope: &RopeSpec,
        size: WorkerSize,
    ) -> Result<Self> {
        let c = model.config().clone();
        let max_rows = size.max_rows.max(1);
        let max_blocks = max_rows.div_ceil(BLOCK_SIZE);
        let step = StepLimits { max_rows, max_seqs: size.max_seqs.max(1), max_blocks };
        let kv_dtype = device.training_kv_dtype();
        let mut ctx = Ctx::new(device, CtxConfig { arena_bytes: size.arena_bytes(model.as_ref()), step })?;
        let num_blocks = MicroBatch::num_blocks(max_rows, step.max_seqs);
        // Every block of the network writes its keys and values into the same cache, since a sequence's rows are all of
        // one step.
        let kv = ctx.kv_cache(KvConfig {
            num_layers: 1,
            num_blocks,
            num_kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            dtype: kv_dtype,
        })?;
        let table = rope_table(rope, max_rows);
        let table = ctx.upload_f32("the RoPE table", [max_rows, rope.rotary_dim / 2, 2], &table)?;
        let rows = |ctx: &Ctx, what, n: usize| ctx.persistent(what, [max_rows, n], DType::F32);
        let first = rows(&ctx, "a checkpoint", c.hidden_size)?;
        let blocks = (0..c.num_layers)
            .map(|idx| {
                let out = rows(&ctx, "attention's output", c.q_size())?;
                let attention =
                    AttentionMemo { out, lse: rows(&ctx, "attention's denominators", c.num_heads)? };
                let is_kept = idx < size.kept_blocks;
                let output = if is_kept { None } else { Some(rows(&ctx, "a checkpoint", c.hidden_size)?) };
                let linears = output.clone().map_or_else(|| LinearMemo::all(max_rows), LinearMemo::last);
                Ok(BlockRoom { output, max_rows, memo: BlockMemo { attention, linears: Some(linears) } })
            })
            .collect::<Result<_>>()?;
        let (d_x, d_hidden) =
            (rows(&ctx, "a gradient", c.hidden_size)?, rows(&ctx, "a gradient", c.hidden_size)?);
        let bounds = StepBounds {
            vocab_size: c.vocab_size,
            max_positions: max_rows,
            num_rope_tables: 1,
            num_slots: 1,
            num_blocks,
            block_size: BLOCK_SIZE,
        };
        let rope = RopeTables { tables: vec![table] };
        Ok(Worker { ctx, model, rope, kv, bounds, first, blocks, d_x, d_hidden })
    }

    /// The losses of a micro-batch, and the gradients of their weighted sum if they are wanted. `between` runs before
    /// each block, forth and back: whoever shares the machine with others may wait there.
    pub(crate) fn run(
        &mut self,
        batch: &MicroBatch,
        table: Option<&Arc<LoraTable>>,
        backward: Option<BackwardInputs<'_>>,
        between: &(dyn Fn() + Sync),
    ) -> Result<Losses> {
        let Worker { ctx, model, rope, kv, bounds, first, blocks, d_x, d_hidden } = self;
        let model = model.as_ref();
        let rows = batch.inputs.token_ids.len();
        let step = ctx.stage(&batch.inputs, bounds)?;
        let first = first.rows(0, rows)?;
        let dropout = backward.and_then(|b| b.dropout);
        if let Some(dropout) = dropout {
            let bytes: Vec<u8> = batch.example_idx.iter().flat_map(|i| i.to_le_bytes()).collect();
            let example_idx = ctx.upload("examples", [rows], DType::U32, &bytes)?;
            ctx.set_dropout(Some((dropout, &example_idx)))?;
        }
        let result = (|| {
            ctx.scratch(|ctx| {
                let x = model.embed(ctx, &step)?;
                ctx.copy(&x, &first)
            })?;
            // The input of each block.
            let mut inputs = Vec::with_capacity(blocks.len());
            let mut x = first.clone();
            for (idx, room) in blocks.iter_mut().enumerate() {
                between();
                let y = ctx.scratch(|ctx| {
                    let state = BlockState { kv: kv.layer_mut(0)?, rope, lora: table };
                    let block = |ctx: &mut Ctx| model.block(ctx, idx, &x, &step, state);
                    if backward.is_none() {
                        let y = block(ctx)?;
                        ctx.copy(&y, &first)?;
                        return Ok(first.clone());
                    }
                    room.keep(ctx, rows, block)
                })?;
                inputs.push(std::mem::replace(&mut x, y));
            }
            let d_x = d_x.rows(0, rows)?;
            let head = Head { model, step: &step, batch, table, backward };
            let losses = ctx.without_dropout(|ctx| head.run(ctx, &x, (&d_x, d_hidden)))?;
            let Some(backward) = backward else { return Ok(losses) };
            for (idx, (x, room)) in inputs.iter().zip(blocks).enumerate().rev() {
                between();
                ctx.scratch(|ctx| {
                    let state = BlockState { kv: kv.layer_mut(0)?, rope, lora: table };
                    let (y, tape) = ctx.record(|ctx| {
                        room.run(ctx, rows, MemoUse::Recall, |ctx| model.block(ctx, idx, x, &step, state))
                    })?;
                    let seed = Seed { value: &y, gradient: d_x.clone() };
                    ctx.backward(tape, seed, x, &d_x, backward.modules)
                })?;
            }
            Ok(losses)
        })();
        ctx.set_dropout(None)?;
        result
    }

    /// Logits of every row of `inputs`, `[rows, vocabulary]`: for comparisons.
    pub(crate) fn logits(&mut self, inputs: &StepInputs, table: Option<&Arc<LoraTable>>) -> Result<Vec<f32>> {
        let Worker { ctx, model, rope, kv, bounds, .. } = self;
        let step = ctx.stage(inputs, bounds)?;
        let mut x = model.embed(ctx, &step)?;
        for idx in 0..model.config().num_layers {
            let state = BlockState { kv: kv.layer_mut(0)?, rope, lora: table };
            x = ctx.scope_into(x, |ctx, x| model.block(ctx, idx, x, &step, state))?;
        }
        let hidden = model.final_norm(ctx, &x, &step)?;
        let mut logits = Vec::new();
        for first in (0..hidden.shape().rows()).step_by(HEAD_ROWS) {
            let rows = HEAD_ROWS.min(hidden.shape().rows() - first);
            let part = ctx.scratch(|ctx| {
                let part = model.head(ctx, &hidden.rows(first, rows)?, first, &step, table)?;
                ctx.read_f32(&part)
            })?;
            logits.extend(part);
        }
        Ok(logits)
    }
}

/// Final norm, head and losses of the supervised rows, some at a time.
struct Head<'a> {
    model: &'a dyn Decoder,
    step: &'a Step,
    batch: &'a MicroBatch,
    table: Option<&'a Arc<LoraTable>>,
    backward: Option<BackwardInputs<'a>>,
}

impl Head<'_> {
    /// The losses; the gradient of `x`, if gradients are wanted, goes to `d_x`.
    fn run(&self, ctx: &mut Ctx, x: &Tensor, (d_x, d_hidden): (&Tensor, &Tensor)) -> Result<Losses> {
        let Head { model, step, batch, table, backward } = *self;
        let num_targets = batch.targets.len();
        let mut losses = Losses { sum: 0.0, tokens: num_targets, rows: batch.inputs.token_ids.len() };
        ctx.scratch(|ctx| {
            let (hidden, norm_tape) = ctx.record(|ctx| model.final_norm(ctx, x, step))?;
            let d_hidden = d_hidden.rows(0, num_targets)?;
            let weight = backward.map_or(0.0, |b| b.weight);
            for (i, targets) in batch.targets.chunks(HEAD_ROWS).enumerate() {
                let first = i * HEAD_ROWS;
                ctx.scratch(|ctx| {
                    let part = hidden.rows(first, targets.len())?;
                    let (logits, tape) = ctx.record(|ctx| model.head(ctx, &part, first, step, table))?;
                    let of_rows = ctx.cross_entropy(&logits, targets, &vec![weight; targets.len()])?;
                    losses.sum += of_rows.iter().map(|&l| f64::from(l)).sum::<f64>();
                    if let Some(backward) = backward {
                        let d_part = d_hidden.rows(first, targets.len())?;
                        // The logits have become their gradient.
                        let seed = Seed { value: &logits, gradient: logits.clone() };
                        ctx.backward(tape, seed, &part, &d_part, backward.modules)?;
                    }
                    Ok(())
                })?;
            }
            if let Some(backward) = backward {
                let seed = Seed { value: &hidden, gradient: d_hidden };
                ctx.backward(norm_tape, seed, x, d_x, backward.modules)?;
            }
            Ok(())
        })?;
        Ok(losses)
    }
}
