//! Turns a step's plan into one forward pass over a mixed batch, and its logits into sampled tokens.
//!
//! Owns the context, the KV cache's memory, the bound RoPE tables and the adapter slots; knows nothing of requests.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use wardrobe_device::{
    BLOCK_SIZE, Ctx, CtxConfig, DType, Device, DeviceError, KvCache, KvConfig, LogprobRow, LoraTable,
    NULL_SLOT, SampleRow, Step, StepBounds, StepInputs, StepLimits, Tensor, TokenLogprobs,
};
use wardrobe_models::{Decoder, ForwardState, HEAD_ROWS, RopeSpec, adapter_table, arena_bytes};

use super::peft::PreparedLora;
use super::rope::{self, AdapterRopeTable, BoundRope};
use crate::adapter::PreparedAdapter;
use crate::constraint::{Allowed, Resolved};
use crate::error::{EngineError, ExecutorError};
use crate::executor::{
    ChunkOutput, Executor, ExecutorLimits, SampleAt, SampleSpec, Sampled, StepOutput, StepPlan,
};
use crate::ids::{Digest, SlotIdx, TokenId};

/// Lengths of block tables are multiples of this.
const BLOCK_TABLE_STEP: usize = 16;

/// How long a step's sample waits for the masks of constrained rows, all of them together; they were begun before the forward
/// pass. A row whose mask is later than that waits for another step.
const MASK_PATIENCE: Duration = Duration::from_millis(2);

/// Sizes of the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelExecutorConfig {
    /// Bytes for keys and values; as many whole blocks as fit.
    pub kv_bytes: usize,
    /// Element type of keys and values.
    pub kv_dtype: DType,
    /// Adapter slots.
    pub num_slots: usize,
    /// Tokens in a step.
    pub max_batch_tokens: usize,
    /// Sequences in a step.
    pub max_num_sequences: usize,
    /// Longest context of a sequence. Without an adapter that brings RoPE scaling of its own, at most the model's.
    pub max_context_tokens: usize,
}

/// Runs a decoder.
#[derive(Debug)]
pub struct ModelExecutor {
    model: Arc<dyn Decoder>,
    ctx: Ctx,
    kv: KvCache,
    rope: BoundRope,
    lora: Arc<LoraTable>,
    limits: ExecutorLimits,
    /// Longest context of a sequence with any adapter.
    max_positions: usize,
}

impl ModelExecutor {
    /// Takes all the memory that steps will use. `identity` is the digest of the model's content, which becomes
    /// [`ExecutorLimits::model_digest`] together with the formats in which weights, keys and values are held.
    ///
    /// # Errors
    /// [`EngineError::Config`] if the memory does not hold one sequence's context or cannot be had.
    pub fn new(
        device: Arc<dyn Device>,
        model: Arc<dyn Decoder>,
        identity: Digest,
        config: &ModelExecutorConfig,
    ) -> Result<Self, EngineError> {
        let c = model.config();
        let mut kv_config = KvConfig {
            num_layers: c.num_layers,
            num_blocks: 1,
            num_kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            dtype: config.kv_dtype,
        };
        kv_config.num_blocks = config.kv_bytes / kv_config.block_bytes().max(1);
        if kv_config.num_blocks == 0 {
            let reason = format!("is {} bytes; one block takes {}", config.kv_bytes, kv_config.block_bytes());
            return Err(EngineError::Config { field: "kv_memory", reason });
        }
        let max_positions = config.max_context_tokens.min(kv_config.num_blocks.saturating_mul(BLOCK_SIZE));
        let refused = |e: DeviceError| EngineError::Config { field: "device", reason: e.to_string() };
        let step = StepLimits {
            max_rows: config.max_batch_tokens,
            max_seqs: config.max_num_sequences,
            max_blocks: max_positions.div_ceil(BLOCK_SIZE),
        };
        let arena_bytes = arena_bytes(model.as_ref(), config.max_batch_tokens);
        let mut ctx = Ctx::new(device, CtxConfig { arena_bytes, step }).map_err(refused)?;
        let kv = ctx.kv_cache(kv_config).map_err(refused)?;
        let table = rope::upload(&mut ctx, &RopeSpec::of(c), max_positions).map_err(refused)?;
        let limits = ExecutorLimits {
            num_blocks: kv_config.num_blocks,
            block_size_tokens: BLOCK_SIZE,
            vocab_size: c.vocab_size,
            max_context_tokens: max_positions.min(c.max_position_embeddings),
            num_slots: config.num_slots,
            model_digest: computation_digest(identity, model.as_ref(), config.kv_dtype),
        };
        let lora = Arc::new(adapter_table(model.as_ref(), config.num_slots));
        let rope = BoundRope::new(table, config.num_slots);
        Ok(ModelExecutor { model, ctx, kv, rope, lora, limits, max_positions })
    }

    /// Longest context of a sequence with any adapter, for the loader of these.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn bounds(&self) -> StepBounds {
        StepBounds {
            vocab_size: self.limits.vocab_size,
            max_positions: self.max_positions,
            num_rope_tables: self.rope.tables.tables.len(),
            num_slots: self.limits.num_slots,
            num_blocks: self.limits.num_blocks,
            block_size: self.limits.block_size_tokens,
        }
    }

    fn set_rope(&mut self, slot: SlotIdx, table: Option<Arc<AdapterRopeTable>>) -> Result<(), DeviceError> {
        if self.rope.set(slot.0 as usize, table) {
            self.ctx.rebind_rope(&self.rope.tables)?;
        }
        Ok(())
    }

    /// After an op refused the step: each chunk by itself, which gives the same results, and shows whose fault it is.
    fn run_apart(&mut self, plan: &StepPlan, refused: &DeviceError) -> Result<StepOutput, ExecutorError> {
        tracing::warn!(error = %refused, sequences = plan.chunks.len(), "a step was refused");
        let mut output = StepOutput::default();
        for chunk in &plan.chunks {
            match self.run(&StepPlan { chunks: vec![chunk.clone()] }) {
                Ok(alone) => output.chunks.extend(alone.chunks),
                Err(Failure::Sequence(error)) => return Err(error),
                Err(Failure::Device(error)) if is_lost(&error) => return Err(lost(&error)),
                Err(Failure::Device(error)) => {
                    return Err(ExecutorError::Sequence {
                        sequence: chunk.sequence,
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(output)
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput, Failure> {
        let (inputs, mut wanted) = inputs(plan, self.max_positions.div_ceil(BLOCK_SIZE));
        let bounds = self.bounds();
        let Self { model, ctx, kv, rope, lora, .. } = self;
        let lora = inputs.key().with_lora.then_some(&*lora);
        let hidden = ctx.run_step(&inputs, &bounds, |ctx, step| {
            model.forward(ctx, step, ForwardState { kv, rope: &rope.tables, lora })
        })?;
        wanted.await_masks();
        let mut output = StepOutput { chunks: vec![ChunkOutput::default(); plan.chunks.len()] };
        let Some(step) = ctx.step().cloned() else { return Ok(output) };
        let mut head = Head { model: model.as_ref(), ctx, hidden: &hidden, step: &step, lora };
        let fails = |idx: Option<usize>, reason: &str| match idx.and_then(|idx| plan.chunks.get(idx)) {
            Some(chunk) => Err(Failure::Sequence(ExecutorError::Sequence {
                sequence: chunk.sequence,
                reason: reason.to_owned(),
            })),
            None => Ok(()),
        };
        let reason = "no token could be chosen: every token is banned, or the model's output is not a number";
        fails(head.sample(&wanted, &mut output)?, reason)?;
        let reason = "the model's output for a token of the prompt is not a number";
        fails(head.logprobs(&wanted, &mut output)?, reason)?;
        Ok(output)
    }
}

/// Digest of what is computed with, and of how numbers are held in it.
fn computation_digest(identity: Digest, model: &dyn Decoder, kv_dtype: DType) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"computation 1");
    hash.update(identity);
    hash.update(format!("keys and values {kv_dtype:?}"));
    for module in model.modules() {
        hash.update(format!(", {} {:?}", module.path, module.weight.format()));
    }
    hash.finalize().into()
}

/// Why a step gave nothing.
enum Failure {
    /// One sequence is at fault.
    Sequence(ExecutorError),
    /// The device or an op refused.
    Device(DeviceError),
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Failure::Device(error)
    }
}

/// Whether nothing can be computed any more. Other errors are an op's refusal of what it was given.
fn is_lost(error: &DeviceError) -> bool {
    matches!(error, DeviceError::Lost { .. } | DeviceError::OutOfMemory { .. })
}

fn lost(error: &DeviceError) -> ExecutorError {
    ExecutorError::DeviceLost { reason: error.to_string() }
}

/// What is wanted of the step's logit rows, in their order: first the rows to sample from, then the prompt's.
#[derive(Default)]
struct Wanted {
    samples: Vec<WantedSample>,
    prompt: Vec<(usize, LogprobRow)>,
}

struct WantedSample {
    chunk: usize,
    /// Which of the chunk's samples.
    idx: usize,
    row: SampleRow,
    allowed: Allowed,
    /// Its mask is not there: the row is left out.
    is_late: bool,
}

impl Wanted {
    fn await_masks(&mut self) {
        let until = Instant::now() + MASK_PATIENCE;
        for sample in &mut self.samples {
            match sample.allowed.resolve(until) {
                Resolved::All => {}
                Resolved::These(mask) => sample.row.allowed = Some(mask),
                Resolved::Late => sample.is_late = true,
            }
        }
    }
}

/// The step's contents, and what its logit rows are for. Block tables have one of few lengths up to `max_blocks`, so that
/// sequences that grow do not make a new kind of step with each block.
fn inputs(plan: &StepPlan, max_blocks: usize) -> (StepInputs, Wanted) {
    let blocks = plan.chunks.iter().map(|c| c.block_table.len()).max().unwrap_or(0);
    let mut step = StepInputs {
        max_blocks: blocks.next_multiple_of(BLOCK_TABLE_STEP).min(max_blocks.max(blocks)),
        seq_starts: vec![0],
        ..StepInputs::default()
    };
    let mut wanted = Wanted::default();
    let mut prompt_rows = Vec::new();
    for (chunk_idx, chunk) in plan.chunks.iter().enumerate() {
        let first = step.token_ids.len();
        let len = chunk.token_ids.len();
        step.token_ids.extend(chunk.token_ids.iter().map(|t| t.0));
        step.positions.extend((chunk.start..chunk.start + len).map(|p| p as u32));
        step.rope_idx.extend(std::iter::repeat_n(chunk.rope_idx, len));
        step.lora_slots.extend(std::iter::repeat_n(chunk.slot.map_or(NULL_SLOT, |s| s.0), len));
        step.lora_scales.extend(std::iter::repeat_n(chunk.adapter_scale, len));
        step.seq_starts.push((first + len) as u32);
        step.context_lens.push((chunk.start + len) as u32);
        step.block_tables.extend(chunk.block_table.iter().map(|b| b.0));
        step.block_tables.resize(step.context_lens.len() * step.max_blocks, 0);
        for (idx, SampleAt { row, spec }) in chunk.samples.iter().enumerate() {
            step.logit_rows.push((first + row) as u32);
            let (row, allowed) = (sample_row(spec), spec.allowed.clone());
            wanted.samples.push(WantedSample { chunk: chunk_idx, idx, row, allowed, is_late: false });
        }
        if let Some(prompt) = &chunk.prompt_logprobs {
            for (i, target) in prompt.targets.iter().enumerate() {
                prompt_rows.push((first + prompt.first_row + i) as u32);
                wanted.prompt.push((chunk_idx, LogprobRow { target: target.0, top: prompt.top }));
            }
        }
    }
    step.logit_rows.append(&mut prompt_rows);
    (step, wanted)
}

fn sample_row(spec: &SampleSpec) -> SampleRow {
    SampleRow {
        temperature: spec.temperature,
        top_k: spec.top_k,
        top_p: spec.top_p,
        min_p: spec.min_p,
        repetition_penalty: spec.repetition_penalty,
        presence_penalty: spec.presence_penalty,
        frequency_penalty: spec.frequency_penalty,
        history: spec
            .history
            .iter()
            .map(|c| wardrobe_device::TokenCount {
                token: c.token.0,
                output_count: c.output_count,
                in_prompt: c.in_prompt,
            })
            .collect(),
        logit_bias: spec.logit_bias.iter().map(|&(t, bias)| (t.0, bias)).collect(),
        banned: spec.banned.iter().map(|t| t.0).collect(),
        allowed: None,
        seed: spec.seed,
        choice: spec.choice,
        position: spec.position,
        top_logprobs: spec.top_logprobs,
        logprob_tokens: spec.logprob_token_ids.iter().map(|t| t.0).collect(),
    }
}

fn sampled(token: u32, logprobs: Option<TokenLogprobs>) -> Sampled {
    let Some(l) = logprobs else { return Sampled { token: TokenId(token), ..Sampled::default() } };
    let top = l.top.into_iter().chain(l.asked).map(|(t, p)| (TokenId(t), p)).collect();
    Sampled { token: TokenId(token), logprob: l.logprob, rank: l.rank, top }
}

/// The head over a step's logit rows.
struct Head<'a> {
    model: &'a dyn Decoder,
    ctx: &'a mut Ctx,
    hidden: &'a Tensor,
    step: &'a Step,
    lora: Option<&'a Arc<LoraTable>>,
}

impl Head<'_> {
    /// Calls `f` with the logits of `items`, whose rows start at `first_row`, some at a time.
    fn for_rows<T>(
        &mut self,
        first_row: usize,
        items: &[T],
        mut f: impl FnMut(&mut Ctx, &Tensor, &[T]) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        for (i, items) in items.chunks(HEAD_ROWS).enumerate() {
            let first_row = first_row + i * HEAD_ROWS;
            let hidden = self.hidden.rows(first_row, items.len())?;
            let (model, step, lora) = (self.model, self.step, self.lora);
            self.ctx.scratch(|ctx| {
                let logits = model.head(ctx, &hidden, first_row, step, lora)?;
                f(ctx, &logits, items)
            })?;
        }
        Ok(())
    }

    /// Samples what is wanted; the index of the first chunk for which there was no token to choose.
    fn sample(&mut self, wanted: &Wanted, output: &mut StepOutput) -> Result<Option<usize>, DeviceError> {
        let mut without_candidate = None;
        self.for_rows(0, &wanted.samples, |ctx, logits, items| {
            let rows: Vec<SampleRow> = items.iter().map(|item| item.row.clone()).collect();
            let drawn = items.iter().zip(ctx.sample(logits, &rows)?);
            for (item, drawn) in drawn.filter(|(item, _)| !item.is_late) {
                // What follows one that is late, or has no token to choose, follows nothing.
                let Some(chunk) = output.chunks.get_mut(item.chunk).filter(|c| c.sampled.len() == item.idx)
                else {
                    continue;
                };
                if drawn.has_candidate {
                    chunk.sampled.push(sampled(drawn.token, drawn.logprobs));
                } else if item.idx == 0 {
                    without_candidate = without_candidate.or(Some(item.chunk));
                }
            }
            Ok(())
        })?;
        Ok(without_candidate)
    }

    /// Describes the prompt's tokens that are wanted; the index of the first chunk where there is no distribution.
    fn logprobs(&mut self, wanted: &Wanted, output: &mut StepOutput) -> Result<Option<usize>, DeviceError> {
        let mut without_distribution = None;
        self.for_rows(wanted.samples.len(), &wanted.prompt, |ctx, logits, items| {
            let rows: Vec<LogprobRow> = items.iter().map(|(_, row)| *row).collect();
            for ((chunk, row), logprobs) in items.iter().zip(ctx.logprobs(logits, &rows)?) {
                if !logprobs.logprob.is_finite() {
                    without_distribution = without_distribution.or(Some(*chunk));
                }
                if let Some(chunk) = output.chunks.get_mut(*chunk) {
                    chunk.prompt_logprobs.push(sampled(row.target, Some(logprobs)));
                }
            }
            Ok(())
        })?;
        Ok(without_distribution)
    }
}

impl Executor for ModelExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        match self.run(plan) {
            Ok(output) => Ok(output),
            Err(Failure::Sequence(error)) => Err(error),
            Err(Failure::Device(error)) if is_lost(&error) => Err(lost(&error)),
            Err(Failure::Device(error)) => self.run_apart(plan, &error),
        }
    }

    fn bind_slot(&mut self, slot: SlotIdx, adapter: &Arc<dyn PreparedAdapter>) -> Result<(), ExecutorError> {
        let adapter: &dyn Any = adapter.as_ref();
        let Some(PreparedLora { lora, rope, .. }) = adapter.downcast_ref() else {
            return Err(ExecutorError::Slot { reason: "an adapter of another loader".to_owned() });
        };
        self.lora
            .bind(slot.0, lora.modules().clone())
            .map_err(|e| ExecutorError::Slot { reason: e.to_string() })?;
        self.set_rope(slot, rope.as_ref().map(|rope| rope.table.clone()))
            .map_err(|e| ExecutorError::Slot { reason: e.to_string() })
    }

    fn clear_slot(&mut self, slot: SlotIdx) {
        // The slot is one of ours: the engine binds before it clears.
        if let Err(error) = self.lora.clear(slot.0).and_then(|()| self.set_rope(slot, None)) {
            tracing::error!(%error, "clearing an adapter slot");
        }
    }
}
