//! A small decoder over [`Ctx`], with every op and every weight format in it.

use std::sync::Arc;

use super::lora::HostFactors;
use super::quant::{FORMATS, HostWeight};
use super::random::Random;
use super::{run_step, upload};
use crate::error::Result;
use crate::{
    AttentionSpec, BLOCK_SIZE, Ctx, DType, KvCache, KvConfig, LoraBatch, LoraModules, LoraTable, ModuleIdx,
    NULL_SLOT, Projection, RopeTables, Step, StepBounds, StepInputs, Tensor, Weight,
};

const HIDDEN: usize = 256;
const HEADS: [usize; 2] = [2, 1];
const HEAD_DIM: usize = 64;
const FEED_FORWARD: usize = 256;
const VOCAB: usize = 97;
const LAYERS: usize = 2;
const EPS: f32 = 1e-5;
/// Linear layers of one decoder layer, as `[in, out]`: q, k, v, o, gate, up, down.
const LINEARS: [[usize; 2]; 7] = [
    [HIDDEN, HEADS[0] * HEAD_DIM],
    [HIDDEN, HEADS[1] * HEAD_DIM],
    [HIDDEN, HEADS[1] * HEAD_DIM],
    [HEADS[0] * HEAD_DIM, HIDDEN],
    [HIDDEN, FEED_FORWARD],
    [HIDDEN, FEED_FORWARD],
    [FEED_FORWARD, HIDDEN],
];
/// Row length of block tables.
const MAX_BLOCKS: usize = 64;

/// Bounds of all steps in the suite.
pub(super) const BOUNDS: StepBounds = StepBounds {
    vocab_size: VOCAB,
    max_positions: MAX_BLOCKS * BLOCK_SIZE,
    num_rope_tables: 2,
    num_slots: 7,
    num_blocks: 80,
    block_size: BLOCK_SIZE,
};

/// Some adjacent tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Their ids, below 97.
    pub tokens: Vec<u32>,
    /// Position of the first.
    pub start: usize,
    /// The sequence's blocks, below 80, enough for its tokens so far.
    pub blocks: Vec<u32>,
    /// Adapter slot, below 7, or [`NULL_SLOT`].
    pub slot: u32,
    /// Factor on the adapter's scale.
    pub scale: f32,
    /// RoPE table, 0 or 1.
    pub rope_idx: u32,
}

impl Chunk {
    /// A chunk without adapter, at table 0.
    pub fn of(tokens: Vec<u32>, start: usize, blocks: Vec<u32>) -> Self {
        Chunk { tokens, start, blocks, slot: NULL_SLOT, scale: 1.0, rope_idx: 0 }
    }
}

/// The chunks of one step.
#[derive(Debug, Clone, Default)]
pub struct TinyBatch {
    /// One a sequence.
    pub chunks: Vec<Chunk>,
}

impl TinyBatch {
    /// The step's inputs; the logits of every row are wanted.
    pub fn inputs(&self) -> StepInputs {
        let mut inputs = StepInputs { max_blocks: MAX_BLOCKS, ..Default::default() };
        inputs.seq_starts.push(0);
        for chunk in &self.chunks {
            for (i, &token) in chunk.tokens.iter().enumerate() {
                inputs.logit_rows.push(inputs.token_ids.len() as u32);
                inputs.token_ids.push(token);
                inputs.positions.push((chunk.start + i) as u32);
                inputs.rope_idx.push(chunk.rope_idx);
                inputs.lora_slots.push(chunk.slot);
                inputs.lora_scales.push(chunk.scale);
            }
            inputs.seq_starts.push(inputs.token_ids.len() as u32);
            inputs.context_lens.push((chunk.start + chunk.tokens.len()) as u32);
            inputs.block_tables.extend(&chunk.blocks);
            inputs.block_tables.resize(inputs.context_lens.len() * MAX_BLOCKS, 0);
        }
        inputs
    }
}

/// Cosines and sines for heads rotated in `half` pairs, positions divided by `factor`.
pub(super) fn rope_table(half: usize, factor: f64) -> Vec<f32> {
    let frequencies: Vec<f64> =
        (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64) / factor).collect();
    (0..BOUNDS.max_positions)
        .flat_map(|position| frequencies.iter().map(move |f| (position as f64 * f).sin_cos()))
        .flat_map(|(sin, cos)| [cos as f32, sin as f32])
        .collect()
}

#[derive(Debug)]
struct Layer {
    norms: [Tensor; 2],
    linears: [Weight; LINEARS.len()],
    o_bias: Tensor,
}

/// A decoder of two layers with random weights in mixed formats, and its cache and adapter table.
#[derive(Debug)]
pub struct TinyModel {
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Weight,
    rope: RopeTables,
    kv: KvCache,
    adapters: Arc<LoraTable>,
}

impl TinyModel {
    /// The same model for the same `seed` on any device, with an empty cache and no adapters.
    pub fn new(ctx: &mut Ctx, seed: u64, kv_dtype: DType) -> Self {
        let mut random = Random::new(seed);
        let mut next_format = FORMATS.into_iter().cycle();
        let mut weight = |ctx: &mut Ctx, random: &mut Random, [cols, rows]: [usize; 2]| {
            let format = next_format.next().unwrap_or(crate::WeightFormat::F32);
            HostWeight::random(random, format, rows, cols).load(ctx)
        };
        let norm = |ctx: &mut Ctx, random: &mut Random| {
            let values: Vec<f32> = (0..HIDDEN).map(|_| random.range(0.5..1.5)).collect();
            upload(ctx, [HIDDEN], &values)
        };
        let layers = (0..LAYERS)
            .map(|_| Layer {
                norms: std::array::from_fn(|_| norm(ctx, &mut random)),
                linears: LINEARS.map(|shape| weight(ctx, &mut random, shape)),
                o_bias: upload(ctx, [HIDDEN], &random.normals(HIDDEN)),
            })
            .collect();
        let tables = [1.0, 4.0].map(|factor| {
            let half = HEAD_DIM / 2;
            upload(ctx, [BOUNDS.max_positions, half, 2], &rope_table(half, factor))
        });
        let config = KvConfig {
            num_layers: LAYERS,
            num_blocks: BOUNDS.num_blocks,
            num_kv_heads: HEADS[1],
            head_dim: HEAD_DIM,
            dtype: kv_dtype,
        };
        TinyModel {
            embedding: weight(ctx, &mut random, [HIDDEN, VOCAB]),
            norm: norm(ctx, &mut random),
            head: weight(ctx, &mut random, [HIDDEN, VOCAB]),
            layers,
            rope: RopeTables { tables: tables.to_vec() },
            kv: ctx.kv_cache(config).unwrap(),
            adapters: Arc::new(LoraTable::new(
                BOUNDS.num_slots,
                (0..LAYERS).flat_map(|_| LINEARS).map(|[cols, rows]| [rows, cols]),
            )),
        }
    }

    /// Puts another RoPE table in the place of the second, and forgets the steps that refer to that.
    pub fn exchange_rope(&mut self, ctx: &mut Ctx, factor: f64) {
        self.replace_rope(ctx, factor);
        ctx.forget_steps();
    }

    /// The same, and tells the recorded steps instead.
    pub fn rebind_rope(&mut self, ctx: &mut Ctx, factor: f64) -> Result<()> {
        self.replace_rope(ctx, factor);
        ctx.rebind_rope(&self.rope)
    }

    fn replace_rope(&mut self, ctx: &mut Ctx, factor: f64) {
        let half = HEAD_DIM / 2;
        let table = upload(ctx, [BOUNDS.max_positions, half, 2], &rope_table(half, factor));
        if let Some(second) = self.rope.tables.get_mut(1) {
            *second = table;
        }
    }

    /// Binds a random adapter of the given rank for all linear layers.
    pub fn bind_adapter(&self, ctx: &mut Ctx, slot: u32, rank: usize, seed: u64) {
        let mut random = Random::new(seed);
        let dtype = [DType::F32, DType::F16, DType::BF16][seed as usize % 3];
        let modules: Vec<_> = (0..LAYERS)
            .flat_map(|_| LINEARS)
            .map(|shape| {
                Some(HostFactors::random(&mut random, dtype, rank, shape, seed % 4 == 3).upload(ctx))
            })
            .collect();
        self.adapters.bind(slot, LoraModules::from(modules)).unwrap();
    }

    /// Tries to bind an adapter whose factors are for layers of other sizes.
    pub fn bind_misfit(&self, ctx: &mut Ctx, slot: u32) -> Result<()> {
        let factors = HostFactors::random(&mut Random::new(0), DType::F32, 2, [HIDDEN + 1, 3], false);
        self.adapters.bind(slot, LoraModules::from(vec![Some(factors.upload(ctx))]))
    }

    /// Bounds for the steps of [`TinyBatch::inputs`].
    pub fn bounds() -> StepBounds {
        BOUNDS
    }

    /// The logits `[logit rows, 97]` of a step.
    pub fn forward(&mut self, ctx: &mut Ctx, step: &Step) -> Result<Tensor> {
        let TinyModel { embedding, layers, norm, head, rope, kv, adapters } = self;
        let batch = LoraBatch { table: adapters, slots: &step.lora_slots, scales: &step.lora_scales };
        let lora = step.key.with_lora.then_some(&batch);
        let scale = (HEAD_DIM as f32).sqrt().recip();
        let spec = AttentionSpec {
            num_heads: HEADS[0],
            num_kv_heads: HEADS[1],
            head_dim: HEAD_DIM,
            scale,
            window: None,
            softcap: None,
        };
        let mut x = ctx.embed(&step.token_ids, embedding)?;
        for (layer_idx, layer) in layers.iter().enumerate() {
            let projection = |i: usize| Projection {
                weight: &layer.linears[i],
                bias: None,
                module: Some(ModuleIdx((layer_idx * LINEARS.len() + i) as u32)),
                residual: None,
            };
            let kv_layer = kv.layer_mut(layer_idx)?;
            x = ctx.scope_into(x, |ctx, x| {
                let h = ctx.rms_norm(x, &layer.norms[0], EPS)?;
                let [q, k, v] = ctx.linear(&h, [projection(0), projection(1), projection(2)], lora)?;
                let [q, k] = ctx.rope([&q, &k], HEAD_DIM, step, rope)?;
                let attended = ctx.paged_attention([&q, &k, &v], &spec, kv_layer, step)?;
                let o = Projection { bias: Some(&layer.o_bias), residual: Some(x), ..projection(3) };
                let [x] = ctx.linear(&attended, [o], lora)?;
                let h = ctx.rms_norm(&x, &layer.norms[1], EPS)?;
                let [gate, up] = ctx.linear(&h, [projection(4), projection(5)], lora)?;
                let h = ctx.silu_mul(&gate, &up)?;
                let [x] = ctx.linear(&h, [Projection { residual: Some(&x), ..projection(6) }], lora)?;
                Ok(x)
            })?;
        }
        let x = ctx.gather_logit_rows(&x, step)?;
        let x = ctx.rms_norm(&x, norm, EPS)?;
        let head = Projection { weight: head, bias: None, module: None, residual: None };
        let [logits] = ctx.linear(&x, [head], None)?;
        Ok(logits)
    }

    /// Runs a step and reads the logits of each chunk.
    pub fn run(&mut self, ctx: &mut Ctx, batch: &TinyBatch) -> Vec<Vec<f32>> {
        let logits = run_step(ctx, &batch.inputs(), |ctx, step| self.forward(ctx, step));
        let logits = ctx.read_f32(&logits).unwrap();
        let mut rows = logits.chunks(VOCAB);
        batch.chunks.iter().map(|c| rows.by_ref().take(c.tokens.len()).flatten().copied().collect()).collect()
    }
}
