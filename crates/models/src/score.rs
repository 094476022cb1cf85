//! The logits of one text, computed at once: for scoring and for comparisons, where an engine is for serving.

use std::sync::Arc;

use wardrobe_device::{
    BLOCK_SIZE, Ctx, CtxConfig, DType, Device, KvConfig, LoraModules, NULL_SLOT, Result, RopeTables,
    StepBounds, StepInputs, StepLimits,
};

use crate::{Decoder, ForwardState, RopeSpec, RowElements, adapter_table, rope_table};

/// Rows of logits at once.
pub const HEAD_ROWS: usize = 32;
/// Tokens computed at once: bounds the scratch memory, and changes no bit of the result.
const MAX_CHUNK_TOKENS: usize = 256;

/// Upper bound of the scratch memory that a step of so many rows needs, with its head taken [`HEAD_ROWS`] rows at a
/// time.
pub fn arena_bytes(model: &dyn Decoder, max_rows: usize) -> usize {
    let c = model.config();
    let RowElements { values, head, .. } = model.row_elements();
    // Beside a block's values: its input, the embedded tokens and the rows that have logits.
    let per_row = values + 3 * c.hidden_size + c.kv_size();
    let head_rows = HEAD_ROWS.min(max_rows) * head;
    // Some room for the alignment of each tensor.
    4 * (max_rows * per_row + head_rows) + (64 << 10)
}

/// The logits at every position of `tokens`, `[tokens * vocab_size]`, with keys and values in f32; of the base model or of an
/// adapter's factors, at the rotary positions `rope`.
///
/// # Errors
/// Those of the device; without tokens.
pub fn logits(
    device: Arc<dyn Device>,
    model: &dyn Decoder,
    tokens: &[u32],
    adapter: Option<&LoraModules>,
    rope: &RopeSpec,
) -> Result<Vec<f32>> {
    let c = model.config();
    let (max_rows, num_blocks) = (tokens.len().min(MAX_CHUNK_TOKENS), tokens.len().div_ceil(BLOCK_SIZE));
    let step = StepLimits { max_rows, max_seqs: 1, max_blocks: num_blocks };
    let mut ctx = Ctx::new(device, CtxConfig { arena_bytes: arena_bytes(model, max_rows), step })?;
    let mut kv = ctx.kv_cache(KvConfig {
        num_layers: c.num_layers,
        num_blocks,
        num_kv_heads: c.num_kv_heads,
        head_dim: c.head_dim,
        dtype: DType::F32,
    })?;
    let shape = [tokens.len(), rope.rotary_dim / 2, 2];
    let table = ctx.upload_f32("the RoPE table", shape, &rope_table(rope, tokens.len()))?;
    let rope = RopeTables { tables: vec![table] };
    let lora = match adapter {
        Some(modules) => {
            let table = adapter_table(model, 1);
            table.bind(0, modules.clone())?;
            Some(Arc::new(table))
        }
        None => None,
    };
    let bounds = StepBounds {
        vocab_size: c.vocab_size,
        max_positions: tokens.len(),
        num_rope_tables: 1,
        num_slots: 1,
        num_blocks,
        block_size: BLOCK_SIZE,
    };
    let mut logits = Vec::with_capacity(tokens.len().saturating_mul(c.vocab_size));
    for (i, chunk) in tokens.chunks(max_rows.max(1)).enumerate() {
        let first = i * max_rows;
        let rows = chunk.len();
        let inputs = StepInputs {
            token_ids: chunk.to_vec(),
            positions: (first..first + rows).map(|p| p as u32).collect(),
            rope_idx: vec![0; rows],
            lora_slots: vec![if lora.is_some() { 0 } else { NULL_SLOT }; rows],
            lora_scales: vec![1.0; rows],
            seq_starts: vec![0, rows as u32],
            context_lens: vec![(first + rows) as u32],
            block_tables: (0..num_blocks as u32).collect(),
            max_blocks: num_blocks,
            logit_rows: (0..rows as u32).collect(),
        };
        let hidden = ctx.run_step(&inputs, &bounds, |ctx, step| {
            let state = ForwardState { kv: &mut kv, rope: &rope, lora: lora.as_ref() };
            model.forward(ctx, step, state)
        })?;
        let Some(step) = ctx.step().cloned() else { continue };
        for first_row in (0..rows).step_by(HEAD_ROWS) {
            let part = hidden.rows(first_row, HEAD_ROWS.min(rows - first_row))?;
            logits.extend(ctx.scratch(|ctx| {
                let part = model.head(ctx, &part, first_row, &step, lora.as_ref())?;
                ctx.read_f32(&part)
            })?);
        }
    }
    Ok(logits)
}

/// The most likely token at each position of `logits` `[positions * vocab_size]`, and the log-probabilities in nats of the
/// tokens that `of` names, or of the most likely ones.
pub fn log_probs(logits: &[f32], vocab_size: usize, of: Option<&[u32]>) -> (Vec<u32>, Vec<f32>) {
    logits
        .chunks(vocab_size.max(1))
        .enumerate()
        .map(|(i, row)| {
            let (best, most) = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |(at, most), (t, &l)| {
                if l > most { (t, l) } else { (at, most) }
            });
            let sum: f64 = row.iter().map(|&l| f64::from(l - most).exp()).sum();
            let asked = of.and_then(|of| row.get(*of.get(i)? as usize)).copied().unwrap_or(most);
            (best as u32, (f64::from(asked - most) - sum.ln()) as f32)
        })
        .unzip()
}
