//! The executor over a decoder that misbehaves on demand: failures end the request at fault and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::path::Path;
use std::sync::Arc;

use wardrobe_device::cpu::{CpuDevice, CpuOptions};
use wardrobe_device::{
    Ctx, CtxConfig, DType, Device, DeviceError, HostTensor, LoraTable, Projection, Step, StepLimits, Tensor,
    Weight, WeightFormat,
};
use wardrobe_engine::model::{ModelExecutor, ModelExecutorConfig, PeftLoader};
use wardrobe_engine::simulation::SimCodec;
use wardrobe_engine::{
    Completion, Engine, EngineConfig, Executor as _, Finish, Request, SamplingParams, SubmitError, TokenId,
};
use wardrobe_formats::{HiddenAct, ModelConfig, RopeScaling};
use wardrobe_models::{BlockState, Decoder, LoraOptions, Module, RowElements};

const HIDDEN: usize = 32;
const VOCAB: usize = 64;

/// Prompts that end in these tokens make a step fail in their way.
const NOT_A_NUMBER: u32 = 7;
const REFUSED: u32 = 8;
const REFUSED_IN_COMPANY: u32 = 9;
const LOST: u32 = 10;

/// Answers each token with the one after it.
#[derive(Debug)]
struct Successor {
    config: ModelConfig,
    embedding: Weight,
    head: Weight,
}

fn config() -> ModelConfig {
    let config = ModelConfig {
        architecture: "Successor".to_owned(),
        hidden_size: HIDDEN,
        intermediate_size: HIDDEN,
        num_layers: 1,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: HIDDEN,
        vocab_size: VOCAB,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 128,
        tie_word_embeddings: false,
        attention_bias: false,
        mlp_bias: false,
        sliding_window: None,
        full_attention_layers: Vec::new(),
        partial_rotary_dim: None,
        parallel_residual: false,
        query_scalar: None,
        attention_softcap: None,
        logit_softcap: None,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        hidden_act: HiddenAct::Silu,
        experts: None,
    };
    config.check(Path::new("test")).unwrap();
    config
}

impl Successor {
    fn new(device: &Arc<dyn Device>) -> Self {
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(device.clone(), CtxConfig { arena_bytes: 0, step }).unwrap();
        // Signs that look random, so that no two tokens are alike.
        let code = |token: usize, dim: usize| {
            let mixed = ((token * HIDDEN + dim) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 63 == 0 { 1.0 } else { -1.0 }
        };
        let mut matrix = |value: &dyn Fn(usize, usize) -> f32| {
            let values = (0..VOCAB).flat_map(|t| (0..HIDDEN).map(move |d| (t, d)));
            let bytes: Vec<u8> = values.flat_map(|(t, d)| value(t, d).to_le_bytes()).collect();
            let (format, rows, cols) = (WeightFormat::F32, VOCAB, HIDDEN);
            ctx.load_weight(&HostTensor { format, rows, cols, bytes: &bytes }).unwrap()
        };
        let embedding = matrix(&|token, dim| match token as u32 {
            NOT_A_NUMBER => f32::NAN,
            marked @ (REFUSED | REFUSED_IN_COMPANY | LOST) if dim == 0 => 1000.0 * marked as f32,
            _ => code(token + 1, dim),
        });
        Self { config: config(), embedding, head: matrix(&code) }
    }
}

impl Decoder for Successor {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn modules(&self) -> &[Module] {
        &[]
    }

    fn content_digest(&self) -> wardrobe_formats::Digest {
        wardrobe_formats::ContentDigest::new(&self.config).finish()
    }

    fn weight_bytes(&self) -> usize {
        self.embedding.size_bytes() + self.head.size_bytes()
    }

    fn row_elements(&self) -> RowElements {
        RowElements { values: 16 * HIDDEN, linears: 8 * HIDDEN, gradients: 16 * HIDDEN, head: VOCAB }
    }

    fn embed(&self, ctx: &mut Ctx, step: &Step) -> wardrobe_device::Result<Tensor> {
        ctx.embed(step.token_ids(), &self.embedding)
    }

    fn block(
        &self,
        _ctx: &mut Ctx,
        _block_idx: usize,
        x: &Tensor,
        _step: &Step,
        _state: BlockState<'_>,
    ) -> wardrobe_device::Result<Tensor> {
        Ok(x.clone())
    }

    fn final_norm(&self, ctx: &mut Ctx, x: &Tensor, step: &Step) -> wardrobe_device::Result<Tensor> {
        let x = ctx.gather_logit_rows(x, step)?;
        let values = ctx.read_f32(&x)?;
        let has = |token: u32| values.chunks(HIDDEN).any(|row| row[0] == 1000.0 * token as f32);
        if has(LOST) {
            return Err(DeviceError::Lost { reason: "it fell off the bus".to_owned() });
        }
        if has(REFUSED) || (has(REFUSED_IN_COMPANY) && values.len() > HIDDEN) {
            return Err(DeviceError::Invalid { op: "successor", reason: "not this one".to_owned() });
        }
        Ok(x)
    }

    fn head(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        _first_row: usize,
        _step: &Step,
        _lora: Option<&Arc<LoraTable>>,
    ) -> wardrobe_device::Result<Tensor> {
        let projection = Projection { weight: &self.head, bias: None, module: None, residual: None };
        let [logits] = ctx.linear(hidden, [projection], None)?;
        Ok(logits)
    }
}

fn executor(identity: [u8; 32], kv_dtype: DType) -> (ModelExecutor, PeftLoader) {
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(CpuOptions::default()).unwrap());
    let model: Arc<dyn Decoder> = Arc::new(Successor::new(&device));
    let config = ModelExecutorConfig {
        kv_bytes: 1 << 20,
        kv_dtype,
        num_slots: 1,
        max_batch_tokens: 64,
        max_num_sequences: 16,
        max_context_tokens: 128,
    };
    let loader = PeftLoader::new(device.clone(), model.clone(), LoraOptions::default());
    (ModelExecutor::new(device, model, identity, &config).unwrap(), loader)
}

fn engine() -> Engine {
    let (executor, loader) = executor([1; 32], DType::F32);
    let config = EngineConfig { max_num_sequences: 16, max_batch_tokens: 64, ..EngineConfig::default() };
    Engine::start(Box::new(executor), Arc::new(loader), Arc::new(SimCodec), config).unwrap()
}

fn after(token: u32) -> Request {
    let prompt = [TokenId(20), TokenId(token)];
    // What follows a marked token could be another one.
    let max_tokens = if token == REFUSED_IN_COMPANY { 1 } else { 3 };
    Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(max_tokens)
}

fn together(engine: &Engine, last_tokens: &[u32]) -> Vec<Completion> {
    let streams = engine.submit_all(last_tokens.iter().map(|t| after(*t)).collect()).unwrap();
    streams.into_iter().map(|stream| stream.completion_blocking()).collect()
}

fn assert_counts_on_from(answer: &Completion, token: u32) {
    let ids: Vec<u32> = answer.choices[0].token_ids.iter().map(|t| t.0).collect();
    assert_eq!(ids, [token + 1, token + 2, token + 3]);
    assert_eq!(answer.choices[0].finish, Some(Finish::Length));
}

fn assert_failed(answer: &Completion, reason: &str) {
    assert!(answer.choices[0].token_ids.is_empty());
    match &answer.choices[0].finish {
        Some(Finish::Error { message }) => assert!(message.contains(reason), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_sequence_at_fault_ends() {
    let engine = engine();
    let answers = together(&engine, &[30, NOT_A_NUMBER, 40, REFUSED, 50, NOT_A_NUMBER, REFUSED]);
    for (idx, token) in [(0, 30), (2, 40), (4, 50)] {
        assert_counts_on_from(&answers[idx], token);
    }
    assert_failed(&answers[1], "not a number");
    assert_failed(&answers[5], "not a number");
    assert_failed(&answers[3], "not this one");
    assert_failed(&answers[6], "not this one");
    assert_eq!(engine.stats().unhealthy, None);
    assert_counts_on_from(&engine.generate(after(25)).unwrap(), 25);
}

#[test]
fn what_only_fails_together_is_computed_apart() {
    let engine = engine();
    let answers = together(&engine, &[30, REFUSED_IN_COMPANY, 40]);
    assert_counts_on_from(&answers[0], 30);
    assert_counts_on_from(&answers[2], 40);
    assert_eq!(answers[1].choices[0].finish, Some(Finish::Length));
    assert_eq!(engine.stats().unhealthy, None);
}

#[test]
fn a_lost_device_ends_everything() {
    let engine = engine();
    for answer in together(&engine, &[30, LOST, 40]) {
        assert_failed(&answer, "it fell off the bus");
    }
    assert!(matches!(engine.submit(after(30)), Err(SubmitError::Unhealthy { .. })));
}

#[test]
fn a_row_with_every_token_banned_ends_its_choice() {
    let engine = engine();
    // After 31 the word bans what alone is allowed, which nobody can know beforehand.
    let mut request = after(30);
    request.sampling.allowed_token_ids = Some(vec![TokenId(31)]);
    request.sampling.bad_words = vec![vec![TokenId(31), TokenId(31)]];
    let answer = engine.generate(request).unwrap();
    assert_eq!(answer.choices[0].token_ids, [TokenId(31)]);
    assert!(matches!(answer.choices[0].finish, Some(Finish::Error { .. })));
    assert_eq!(engine.stats().unhealthy, None);
}

#[test]
fn the_digest_tells_contents_and_computation_apart() {
    let digest = |identity, kv_dtype| executor(identity, kv_dtype).0.limits().model_digest;
    let first = digest([1; 32], DType::F32);
    assert_eq!(first, digest([1; 32], DType::F32));
    assert_ne!(first, digest([2; 32], DType::F32));
    assert_ne!(first, digest([1; 32], DType::F16));
}
