//! Single steps on an executor: prefill, decode, and what adapters add to it.
//!
//! The cases of a round are run one after the other and rounds are repeated, so that a disturbance or a change of the
//! processor's clock meets all of them alike.

use std::sync::Arc;
use std::time::Instant;

use wardrobe_device::DType;
use wardrobe_engine::model::{ModelExecutor, ModelExecutorConfig, PeftLoader};
use wardrobe_engine::{
    AdapterLoader as _, AdapterSource, Allowed, BLOCK_SIZE_TOKENS, BlockId, Executor as _, ExecutorError,
    PreparedAdapter, SampleAt, SampleSpec, SequenceChunk, SequenceId, SlotIdx, StepPlan, TokenId,
};
use wardrobe_formats::peft::is_head;
use wardrobe_models::{AdapterPrecision, LoraOptions};

use super::adapters::{f32_ops_per_row, random_adapter};
use super::report::{AdapterResult, StepResult};
use super::stats::{Percentiles, median, percentile};
use crate::error::{Error, Result};
use crate::model::Model;

/// Tokens in one step; longer prompts take several.
const STEP_TOKENS: usize = 512;
/// Prompts whose prefill is timed, in tokens.
const PREFILL_TOKENS: [usize; 3] = [128, 512, 2048];
/// Sequences that decode together.
const DECODE_SEQUENCES: [usize; 5] = [1, 4, 8, 16, 32];
/// Tokens that a decoding sequence already has.
const CONTEXT_TOKENS: usize = 128;
/// Sequences over which adapters are spread.
const ADAPTER_SEQUENCES: usize = 32;
/// Steps of a decode case in one round that count.
const STEPS_PER_ROUND: usize = 24;
/// Steps before them that do not: after a long prompt clocks and caches need some milliseconds to settle.
const SETTLING_STEPS: usize = 8;
/// Steps with and without adapters in one round.
const ADAPTER_STEPS_PER_ROUND: usize = 8;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepOptions {
    /// Rounds.
    pub(super) rounds: usize,
    /// Adapters used at once; 0 leaves them out.
    pub(super) num_adapters: usize,
    /// Their rank.
    pub(super) rank: usize,
    /// Element type of keys and values.
    pub(super) kv_dtype: DType,
}

struct Case {
    name: String,
    num_tokens: usize,
    /// Rows that the head computes.
    num_samples: usize,
    /// One run: a step each.
    plans: Vec<StepPlan>,
    runs_per_round: usize,
    times_ms: Vec<f64>,
}

/// Runs all cases.
///
/// # Errors
/// Those of the executor and of adapters.
pub(super) fn measure(
    model: &Model,
    options: &StepOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<(Vec<StepResult>, Option<AdapterResult>)> {
    let max_context = model.config().max_position_embeddings;
    let mut cases = cases(max_context);
    let mut bench = StepBench::new(model, options, max_context)?;
    for case in &mut cases {
        bench.run(case, 1)?;
        case.times_ms.clear();
    }
    for round in 0..options.rounds {
        progress(&format!("steps, round {} of {}", round + 1, options.rounds));
        for case in &mut cases {
            if case.runs_per_round > 1 {
                let counted = case.times_ms.len();
                bench.run(case, SETTLING_STEPS)?;
                case.times_ms.truncate(counted);
            }
            bench.run(case, case.runs_per_round)?;
        }
    }
    let steps = cases.iter().map(|case| result(model, case)).collect();
    let adapters = if options.num_adapters > 0 && max_context > CONTEXT_TOKENS {
        progress("adapters");
        Some(bench.adapters(model, options)?)
    } else {
        None
    };
    Ok((steps, adapters))
}

fn cases(max_context: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for num_tokens in PREFILL_TOKENS.into_iter().filter(|&n| n <= max_context) {
        let plans = (0..num_tokens).step_by(STEP_TOKENS).map(|start| {
            let len = STEP_TOKENS.min(num_tokens - start);
            let last = start + len == num_tokens;
            StepPlan { chunks: vec![chunk(0, start, len, 0, None, last)] }
        });
        cases.push(Case {
            name: format!("prefill_{num_tokens}"),
            num_tokens,
            num_samples: 1,
            plans: plans.collect(),
            runs_per_round: 1,
            times_ms: Vec::new(),
        });
    }
    if max_context > CONTEXT_TOKENS {
        cases.extend(DECODE_SEQUENCES.into_iter().map(|n| Case {
            name: format!("decode_{n}"),
            num_tokens: n,
            num_samples: n,
            plans: vec![decode(n, 0)],
            runs_per_round: STEPS_PER_ROUND,
            times_ms: Vec::new(),
        }));
    }
    cases
}

/// One token of each of `num_sequences`, with `num_adapters` spread over them; 0 is the base model.
fn decode(num_sequences: usize, num_adapters: usize) -> StepPlan {
    let blocks = (CONTEXT_TOKENS + 1).div_ceil(BLOCK_SIZE_TOKENS);
    let chunks = (0..num_sequences).map(|s| {
        // Rows of one adapter are adjacent, as the scheduler has them.
        let slot = (num_adapters > 0).then(|| SlotIdx((s * num_adapters / num_sequences) as u32));
        chunk(s, CONTEXT_TOKENS, 1, s * blocks, slot, true)
    });
    StepPlan { chunks: chunks.collect() }
}

pub(crate) fn chunk(
    sequence: usize,
    start: usize,
    len: usize,
    first_block: usize,
    slot: Option<SlotIdx>,
    sample: bool,
) -> SequenceChunk {
    let num_blocks = (start + len).div_ceil(BLOCK_SIZE_TOKENS);
    SequenceChunk {
        sequence: SequenceId(sequence as u64),
        token_ids: (start..start + len).map(|i| TokenId(((i * 7919 + sequence * 31) % 997) as u32)).collect(),
        start,
        block_table: (first_block..first_block + num_blocks).map(|b| BlockId(b as u32)).collect(),
        slot,
        adapter_scale: 1.0,
        rope_idx: 0,
        samples: if sample { vec![SampleAt { row: len - 1, spec: greedy() }] } else { Vec::new() },
        prompt_logprobs: None,
    }
}

fn greedy() -> SampleSpec {
    SampleSpec {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        history: Vec::new(),
        logit_bias: [].into(),
        banned: Vec::new(),
        allowed: Allowed::All,
        seed: 0,
        choice: 0,
        position: 0,
        top_logprobs: None,
        logprob_token_ids: [].into(),
    }
}

fn result(model: &Model, case: &Case) -> StepResult {
    let modules = model.decoder().modules();
    let size = |head: bool| -> f64 {
        let counted = modules.iter().filter(|m| is_head(&m.path) == head);
        counted.map(|m| m.weight.rows() as f64 * m.weight.cols() as f64).sum()
    };
    let bytes: f64 = modules.iter().map(|m| m.weight.size_bytes() as f64).sum();
    let median_ms = median(&case.times_ms);
    let int8_ops = 2.0 * (size(false) * case.num_tokens as f64 + size(true) * case.num_samples as f64);
    let quantised = modules.iter().all(|m| m.weight.format().is_quantised());
    StepResult {
        name: case.name.clone(),
        num_tokens: case.num_tokens,
        median_ms,
        best_ms: percentile(&case.times_ms, 0.0),
        tokens_per_second: case.num_tokens as f64 * 1e3 / median_ms.max(1e-9),
        int8_ops: if quantised { int8_ops } else { 0.0 },
        weight_bytes: bytes * case.plans.len() as f64,
        ..StepResult::default()
    }
}

struct StepBench {
    executor: ModelExecutor,
}

impl StepBench {
    fn new(model: &Model, options: &StepOptions, max_context: usize) -> Result<Self> {
        let config = model.config();
        let kv = wardrobe_device::KvConfig {
            num_layers: config.num_layers,
            num_blocks: 1,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: options.kv_dtype,
        };
        let decode_blocks = ADAPTER_SEQUENCES * (CONTEXT_TOKENS + 1).div_ceil(BLOCK_SIZE_TOKENS);
        let longest = PREFILL_TOKENS.into_iter().max().unwrap_or(0).min(max_context);
        let num_blocks = decode_blocks.max(longest.div_ceil(BLOCK_SIZE_TOKENS));
        let executor = ModelExecutor::new(
            model.device().clone(),
            model.decoder().clone(),
            [0; 32],
            &ModelExecutorConfig {
                kv_bytes: num_blocks.saturating_mul(kv.block_bytes()),
                kv_dtype: options.kv_dtype,
                num_slots: options.num_adapters,
                max_batch_tokens: STEP_TOKENS,
                max_num_sequences: ADAPTER_SEQUENCES,
                max_context_tokens: max_context.min(2 * longest.max(CONTEXT_TOKENS + 1)),
            },
        )?;
        Ok(StepBench { executor })
    }

    fn run(&mut self, case: &mut Case, runs: usize) -> Result<()> {
        for _ in 0..runs {
            let mut ms = 0.0;
            for plan in &case.plans {
                ms += self.time(plan)?;
            }
            case.times_ms.push(ms);
        }
        Ok(())
    }

    /// Runs one step; milliseconds.
    fn time(&mut self, plan: &StepPlan) -> Result<f64> {
        let started = Instant::now();
        self.executor.execute(plan).map_err(failed)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    fn adapters(&mut self, model: &Model, options: &StepOptions) -> Result<AdapterResult> {
        let StepOptions { rounds, num_adapters, rank, .. } = *options;
        let decoder = model.decoder().as_ref();
        let lora = LoraOptions {
            max_rank: rank,
            precision: AdapterPrecision::Auto.beside(options.kv_dtype),
            ..Default::default()
        };
        let loader = PeftLoader::new(model.device().clone(), model.decoder().clone(), lora)
            .with_compiler(model.compiler().clone());
        let (mut prepared, mut given_bytes) = (Vec::new(), 0);
        for i in 0..num_adapters {
            let adapter = random_adapter(decoder, rank, i as u64 + 1)?;
            given_bytes += adapter.total_bytes();
            let payload = Arc::new(adapter);
            let label = format!("random adapter {i}");
            prepared.push(loader.load(&AdapterSource::InProcess { label, payload })?);
        }
        let (base, mixed) = (decode(ADAPTER_SEQUENCES, 0), decode(ADAPTER_SEQUENCES, num_adapters));
        let (mut added, mut unused, mut none, mut replace) = (vec![], vec![], vec![], vec![]);
        for round in 0..=rounds {
            // The first round only warms up.
            let counts = round > 0;
            for _ in 0..ADAPTER_STEPS_PER_ROUND {
                let without = self.time(&base)?;
                self.bind(&prepared, 0)?;
                let idle = self.time(&base)?;
                let with = self.time(&mixed)?;
                let started = Instant::now();
                // Every adapter moves to its neighbour's slot, which is occupied.
                self.bind(&prepared, 1)?;
                let each = started.elapsed().as_secs_f64() * 1e3 / num_adapters as f64;
                (0..num_adapters).for_each(|slot| self.executor.clear_slot(SlotIdx(slot as u32)));
                if counts {
                    none.push(without);
                    unused.push(idle);
                    added.push(with - idle);
                    replace.push(each);
                }
            }
        }
        Ok(AdapterResult {
            rank,
            num_adapters,
            num_sequences: ADAPTER_SEQUENCES,
            adapter_bytes: prepared.iter().map(|p| p.host_bytes()).sum(),
            given_bytes,
            f32_ops: f32_ops_per_row(decoder, rank) * ADAPTER_SEQUENCES as f64,
            added_ms: median(&added),
            unused_ratio: median(&none) / median(&unused).max(1e-9),
            replace_resident_ms: Percentiles::of(&replace),
            ..AdapterResult::default()
        })
    }

    /// Puts adapter `i` into slot `i + shift`, emptying it first.
    fn bind(&mut self, prepared: &[Arc<dyn PreparedAdapter>], shift: usize) -> Result<()> {
        for (i, adapter) in prepared.iter().enumerate() {
            let slot = SlotIdx(((i + shift) % prepared.len()) as u32);
            self.executor.clear_slot(slot);
            self.executor.bind_slot(slot, adapter).map_err(failed)?;
        }
        Ok(())
    }
}

pub(crate) fn failed(error: ExecutorError) -> Error {
    Error::Setting(format!("a step failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_spread_evenly_in_runs() {
        let plan = decode(32, 8);
        let slots: Vec<u32> = plan.chunks.iter().map(|c| c.slot.unwrap().0).collect();
        assert!(slots.is_sorted());
        for slot in 0..8 {
            assert_eq!(slots.iter().filter(|&&s| s == slot).count(), 4);
        }
    }

    #[test]
    fn sequences_share_no_block() {
        let plan = decode(32, 0);
        let mut blocks: Vec<u32> =
            plan.chunks.iter().flat_map(|c| c.block_table.iter().map(|b| b.0)).collect();
        let all = blocks.len();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(blocks.len(), all);
    }

    #[test]
    fn cases_stay_within_the_context() {
        for max_context in [64, 128, 600, 8192] {
            for plan in cases(max_context).iter().flat_map(|c| &c.plans) {
                assert!(plan.chunks.iter().all(|c| c.start + c.token_ids.len() <= max_context));
            }
        }
        let long = cases(8192).into_iter().find(|c| c.name == "prefill_2048").unwrap();
        assert_eq!(long.plans.len(), 4);
        assert_eq!(long.plans.iter().filter(|p| !p.chunks[0].samples.is_empty()).count(), 1);
    }
}
