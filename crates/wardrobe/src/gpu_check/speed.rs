//! The time of steps of a large model, beside what the card's memory and its matrix products allow.
//!
//! A step is timed as an engine sees it: from the call to the tokens on the host.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use wardrobe_device::{DType, Device, KvConfig};
use wardrobe_device_cuda::CardLimits;
use wardrobe_engine::model::{ModelExecutor, ModelExecutorConfig, PeftLoader};
use wardrobe_engine::{
    AdapterLoader as _, AdapterSource, BLOCK_SIZE_TOKENS, Executor as _, PreparedAdapter, SlotIdx, StepPlan,
};
use wardrobe_formats::peft::is_head;
use wardrobe_models::LoraOptions;

use super::goldens::open;
use crate::bench::adapters::random_adapter;
use crate::bench::stats::{median, percentile};
use crate::bench::steps::{chunk, failed};
use crate::error::Result;
use crate::model::Model;

/// Tokens that decoding sequences already have.
const CONTEXT: usize = 2047;
/// Sequences that decode together.
const DECODE: [usize; 5] = [1, 4, 16, 32, 64];
/// Prompts.
const PREFILL: [usize; 2] = [512, 2048];
/// Adapters that are mixed, and their rank.
const ADAPTERS: usize = 32;
const RANK: usize = 16;
/// Steps that count of each kind, and those before them that do not.
const STEPS: usize = 30;
const SETTLING: usize = 5;

/// One kind of step.
#[derive(Debug, Clone, Serialize)]
pub struct SpeedResult {
    /// What it is.
    pub name: String,
    /// Tokens that it computes.
    pub num_tokens: usize,
    /// Median time.
    pub median_ms: f64,
    /// Shortest time.
    pub best_ms: f64,
    /// Tokens a second at the median.
    pub tokens_per_second: f64,
    /// Bytes of weights, keys and values that it has to read, as a share of what a large copy moves in that time.
    pub share_of_copy: Option<f64>,
    /// Operations of its products, as a share of what a large product does in that time.
    pub share_of_gemm: Option<f64>,
}

struct Bench<'a> {
    executor: ModelExecutor,
    limits: CardLimits,
    /// Of a step that reads all weights once.
    weight_bytes: f64,
    /// Of one token in the cache.
    kv_token_bytes: f64,
    /// Weights of linear layers but the head, and of the head.
    linears: [f64; 2],
    results: &'a mut Vec<SpeedResult>,
}

pub(super) fn run(
    config: &Path,
    device: Arc<dyn Device>,
    limits: CardLimits,
    results: &mut Vec<SpeedResult>,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    progress("making up the model");
    let model = open(config, device, 1)?;
    let mut bench = Bench::new(&model, limits, results)?;
    for n in DECODE {
        progress(&format!("decoding, {n} at once"));
        bench.decode(&format!("decode, {n} at {CONTEXT} tokens"), &decode(n, 0))?;
    }
    for n in PREFILL {
        progress(&format!("a prompt of {n}"));
        let plan = StepPlan { chunks: vec![chunk(0, 0, n, 0, None, true)] };
        let times = bench.times(&plan, STEPS / 2)?;
        let c = model.config();
        // Each query meets half of the keys, on average.
        let attention = 2.0 * (c.num_layers * c.q_size() * n) as f64 * n as f64;
        let ops = 2.0 * (bench.linears[0] * n as f64 + bench.linears[1]) + attention;
        bench.push(&format!("prefill, {n}"), n, &times, None, Some(ops));
    }
    bench.adapters(&model, progress)
}

/// One token of each sequence, with `num_adapters` spread over them; 0 is the base model.
fn decode(num_sequences: usize, num_adapters: usize) -> StepPlan {
    let blocks = (CONTEXT + 1).div_ceil(BLOCK_SIZE_TOKENS);
    let chunks = (0..num_sequences).map(|s| {
        let slot = (num_adapters > 0).then(|| SlotIdx((s * num_adapters / num_sequences) as u32));
        chunk(s, CONTEXT, 1, s * blocks, slot, true)
    });
    StepPlan { chunks: chunks.collect() }
}

impl<'a> Bench<'a> {
    fn new(model: &Model, limits: CardLimits, results: &'a mut Vec<SpeedResult>) -> Result<Self> {
        let c = model.config();
        let kv = KvConfig {
            num_layers: c.num_layers,
            num_blocks: 1,
            num_kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            dtype: DType::BF16,
        };
        let most = DECODE.into_iter().max().unwrap_or(1);
        let num_blocks = most * (CONTEXT + 1).div_ceil(BLOCK_SIZE_TOKENS);
        let executor = ModelExecutor::new(
            model.device().clone(),
            model.decoder().clone(),
            [0; 32],
            &ModelExecutorConfig {
                kv_bytes: num_blocks.saturating_mul(kv.block_bytes()),
                kv_dtype: DType::BF16,
                num_slots: ADAPTERS,
                max_batch_tokens: PREFILL.into_iter().max().unwrap_or(1),
                max_num_sequences: most,
                max_context_tokens: c.max_position_embeddings.min(4096),
            },
        )?;
        let modules = model.decoder().modules();
        let weights = |head: bool| -> f64 {
            let counted = modules.iter().filter(|m| is_head(&m.path) == head);
            counted.map(|m| m.weight.rows() as f64 * m.weight.cols() as f64).sum()
        };
        Ok(Bench {
            executor,
            limits,
            weight_bytes: modules.iter().map(|m| m.weight.size_bytes() as f64).sum(),
            kv_token_bytes: kv.block_bytes() as f64 / BLOCK_SIZE_TOKENS as f64,
            linears: [weights(false), weights(true)],
            results,
        })
    }

    fn times(&mut self, plan: &StepPlan, steps: usize) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(steps);
        for turn in 0..SETTLING + steps {
            let started = Instant::now();
            self.executor.execute(plan).map_err(failed)?;
            if turn >= SETTLING {
                times.push(started.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(times)
    }

    fn push(
        &mut self,
        name: &str,
        tokens: usize,
        times: &[f64],
        bytes: Option<f64>,
        ops: Option<f64>,
    ) -> f64 {
        let median_ms = median(times);
        let seconds = median_ms / 1e3;
        let gemm = self.limits.gemm_ops_per_second;
        self.results.push(SpeedResult {
            name: name.to_owned(),
            num_tokens: tokens,
            median_ms,
            best_ms: percentile(times, 0.0),
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            share_of_copy: bytes.map(|bytes| bytes / seconds / self.limits.copy_bytes_per_second),
            share_of_gemm: ops.zip(gemm).map(|(ops, most)| ops / seconds / most),
        });
        median_ms
    }

    fn decode(&mut self, name: &str, plan: &StepPlan) -> Result<f64> {
        let times = self.times(plan, STEPS)?;
        let rows = plan.chunks.len();
        let bytes = self.weight_bytes + (rows * (CONTEXT + 1)) as f64 * self.kv_token_bytes;
        Ok(self.push(name, rows, &times, Some(bytes), None))
    }

    fn adapters(&mut self, model: &Model, progress: &mut dyn FnMut(&str)) -> Result<()> {
        let lora = LoraOptions { max_rank: RANK, ..LoraOptions::default() };
        let loader = PeftLoader::new(model.device().clone(), model.decoder().clone(), lora)
            .with_compiler(model.compiler().clone());
        let mut loads = Vec::new();
        let mut prepared: Vec<Arc<dyn PreparedAdapter>> = Vec::new();
        for i in 0..ADAPTERS {
            progress(&format!("adapter {} of {ADAPTERS}", i + 1));
            let payload = Arc::new(random_adapter(model.decoder().as_ref(), RANK, i as u64 + 1)?);
            let source = AdapterSource::InProcess { label: format!("random adapter {i}"), payload };
            let started = Instant::now();
            prepared.push(loader.load(&source)?);
            loads.push(started.elapsed().as_secs_f64() * 1e3);
        }
        self.push(&format!("an adapter of rank {RANK} is read, checked and uploaded"), 0, &loads, None, None);
        progress("steps with adapters");
        for n in [1, 64] {
            self.decode(&format!("decode, {n}, no adapter resident"), &decode(n, 0))?;
        }
        let mut binds = Vec::new();
        for (slot, adapter) in prepared.iter().enumerate() {
            let started = Instant::now();
            self.executor.bind_slot(SlotIdx(slot as u32), adapter).map_err(failed)?;
            binds.push(started.elapsed().as_secs_f64() * 1e3);
        }
        self.push("an adapter that is in memory is put into a slot", 0, &binds, None, None);
        for n in [1, 64] {
            self.decode(&format!("decode, {n}, {ADAPTERS} resident and none used"), &decode(n, 0))?;
            self.decode(&format!("decode, {n}, one adapter"), &decode(n, 1))?;
        }
        self.decode(&format!("decode, 64, {ADAPTERS} adapters"), &decode(64, ADAPTERS))?;
        // A resident adapter is replaced between two steps that use it.
        let plan = decode(1, 1);
        let (mut replaced, mut steps) = (Vec::new(), Vec::new());
        for adapter in prepared.iter().take(SETTLING + STEPS).skip(1) {
            let started = Instant::now();
            self.executor.clear_slot(SlotIdx(0));
            self.executor.bind_slot(SlotIdx(0), adapter).map_err(failed)?;
            replaced.push(started.elapsed().as_secs_f64() * 1e3);
            self.executor.execute(&plan).map_err(failed)?;
            steps.push(started.elapsed().as_secs_f64() * 1e3);
        }
        self.push("a resident adapter is replaced", 0, &replaced, None, None);
        self.push("the same with the next step, one sequence", 1, &steps, None, None);
        let prompt = StepPlan { chunks: vec![chunk(0, 0, 2048, 0, Some(SlotIdx(0)), true)] };
        let times = self.times(&prompt, STEPS / 2)?;
        self.push("prefill, 2048, with an adapter", 2048, &times, None, None);
        Ok(())
    }
}
