//! Bit-equality: what a sequence gets does not depend on its neighbours, on how its prompt was cut, on a prefix that
//! was cached, on preemption, or on the number of threads. Compared are the bits of every log-probability.
//!
//! A small random model always; SmolLM2-135M-Instruct where `WARDROBE_SMOLLM2` names its GGUF file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use support::{answer, assert_nothing_is_held, smollm2};
use wardrobe::{
    AdapterSource, Completion, CpuOptions, DType, Engine, EngineConfig, EngineOptions, Isa, LoadOptions,
    Model, ModelOptions, Request, SamplingParams, TokenId,
};
use wardrobe_engine::TokenLogprobs;

/// A model and its adapters, on disk.
struct Subject {
    model: PathBuf,
    /// Names and folders.
    adapters: Vec<(&'static str, PathBuf)>,
    /// Tokens of prompts and answers.
    prompt_tokens: [usize; 4],
    answer_tokens: usize,
    /// Element type of keys and values.
    kv_dtype: DType,
    /// How far instruction sets may be apart, in mean log-probability.
    isa_bound: f32,
    _folder: Option<tempfile::TempDir>,
}

fn tiny(storage: wardrobe_formats::StorageType) -> Subject {
    let folder =
        TinyModel { storage, num_layers: 3, max_position_embeddings: 256, ..TinyModel::default() }.write();
    let config = wardrobe_formats::ModelFiles::open(folder.path()).unwrap().config;
    // Ranks that differ, and one adapter on a part of the modules only.
    let kinds = [
        ("one", RandomLora { rank: 3, seed: 11, ..RandomLora::default() }),
        (
            "two",
            RandomLora { rank: 16, seed: 12, targets: vec!["q_proj", "down_proj"], ..RandomLora::default() },
        ),
    ];
    let adapters = kinds.map(|(name, kind)| {
        let dir = folder.path().join(name);
        kind.write(&config, &dir);
        (name, dir)
    });
    Subject {
        model: folder.path().to_owned(),
        adapters: adapters.into(),
        prompt_tokens: [33, 64, 7, 90],
        answer_tokens: 24,
        kv_dtype: DType::F32,
        isa_bound: 1e-5,
        _folder: Some(folder),
    }
}

fn smollm2(test: &str) -> Option<Subject> {
    Some(Subject {
        model: smollm2::path(test)?,
        adapters: smollm2::ADAPTERS.map(|name| (name, smollm2::adapter(name))).into(),
        prompt_tokens: [20, 34, 5, 48],
        answer_tokens: 12,
        kv_dtype: DType::F16,
        // Activations are rounded to int8, differently where a sum lies on an edge: as far apart as each is from f32.
        isa_bound: 0.1,
        _folder: None,
    })
}

impl Subject {
    fn open(&self, cpu: CpuOptions) -> Model {
        Model::open(&self.model, &ModelOptions { cpu, ..ModelOptions::default() }).unwrap()
    }

    fn options(&self, config: EngineConfig) -> EngineOptions {
        EngineOptions {
            config,
            kv_bytes: Some(32 << 20),
            kv_dtype: Some(self.kv_dtype),
            max_context_tokens: Some(192),
            ..EngineOptions::default()
        }
    }

    fn engine(&self, model: &Model, options: &EngineOptions) -> Engine {
        let engine = model.engine(options).unwrap();
        for (name, dir) in &self.adapters {
            engine.load_adapter(name, AdapterSource::Path(dir.clone()), LoadOptions::default()).unwrap();
        }
        engine
    }

    /// Requests that differ in everything: base and adapters, greedy and sampled, lengths, with and without prompt
    /// log-probabilities.
    fn requests(&self, model: &Model) -> Vec<Request> {
        let vocab_size = model.config().vocab_size;
        let mut rng = Rng::new(5);
        let adapters: Vec<Option<&str>> =
            std::iter::once(None).chain(self.adapters.iter().map(|(name, _)| Some(*name))).collect();
        (0..self.prompt_tokens.len() * adapters.len())
            .map(|i| Request {
                prompt_token_ids: rng
                    .tokens(self.prompt_tokens[i % self.prompt_tokens.len()], vocab_size)
                    .into(),
                adapter: adapters[i % adapters.len()].map(str::to_owned),
                // Every sixth, which is one with an adapter.
                adapter_scale: if i % 6 == 4 { 0.75 } else { 1.0 },
                sampling: match i % 2 {
                    0 => SamplingParams::greedy(),
                    _ => SamplingParams { top_p: 0.95, seed: Some(i as u64), ..SamplingParams::default() },
                },
                max_tokens: Some(self.answer_tokens),
                ignore_eos: true,
                logprobs: Some(5),
                prompt_logprobs: (i % 4 == 3).then_some(5),
                ..Request::default()
            })
            .collect()
    }

    /// Answers of the requests one after the other, on an engine that shares nothing between them.
    fn alone(&self, model: &Model, requests: &[Request]) -> Vec<Bits> {
        let config = EngineConfig { prefix_cache: false, ..EngineConfig::default() };
        let engine = self.engine(model, &self.options(config));
        requests.iter().map(|r| bits(&answer(&engine, r.clone()))).collect()
    }
}

/// Everything about an answer that must not change: tokens and bits of log-probabilities, of the prompt and the output.
#[derive(Debug, PartialEq)]
struct Bits {
    prompt: Vec<(TokenId, u32)>,
    output: Vec<(TokenId, u32)>,
}

fn bits(completion: &Completion) -> Bits {
    let row = |l: &TokenLogprobs| {
        let own = (l.token, l.logprob.to_bits());
        std::iter::once(own).chain(l.top.iter().map(|t| (t.token, t.logprob.to_bits()))).collect::<Vec<_>>()
    };
    Bits {
        prompt: completion.prompt_logprobs.iter().flatten().flatten().flat_map(row).collect(),
        output: completion.choices.iter().flat_map(|c| &c.logprobs).flat_map(row).collect(),
    }
}

fn check(case: &str, got: &[Bits], wanted: &[Bits]) {
    assert_eq!(got.len(), wanted.len());
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!(!wanted.output.is_empty());
        assert_eq!(got, wanted, "{case}: request {i}");
    }
}

/// All requests at once.
fn together(engine: &Engine, requests: &[Request]) -> Vec<Bits> {
    let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    streams.into_iter().map(|s| bits(&s.completion_blocking())).collect()
}

/// Neighbours, chunking, preemption and prefix hits, on one model.
fn schedules(subject: &Subject) {
    let model = subject.open(CpuOptions::default());
    let requests = subject.requests(&model);
    let alone = subject.alone(&model, &requests);

    let batching = |max_chunk_tokens, max_batch_tokens, max_num_sequences| EngineConfig {
        max_chunk_tokens,
        max_batch_tokens,
        max_num_sequences,
        ..EngineConfig::default()
    };
    for (case, config) in [
        ("with neighbours", EngineConfig::default()),
        ("chunks of 5", batching(5, 64, 32)),
        ("chunks of 16, one sequence at a time", batching(16, 16, 1)),
        ("steps of 13 tokens", batching(256, 13, 12)),
        ("chunks of one token", batching(1, 12, 12)),
    ] {
        let engine = subject.engine(&model, &subject.options(config));
        check(case, &together(&engine, &requests), &alone);
        // Again, now that the prefixes are cached.
        let hits_before = engine.stats().prefix_hit_tokens;
        check(&format!("{case}, prefix cached"), &together(&engine, &requests), &alone);
        assert!(engine.stats().prefix_hit_tokens > hits_before, "{case}: no prefix was found");
        assert_nothing_is_held(&engine);
    }

    // Short prompts with long answers, and blocks for little more than one of them: many start, and some have to give
    // their blocks up as the others grow.
    let (prompt_tokens, answer_tokens) = (5, 40);
    let requests: Vec<Request> = requests
        .into_iter()
        .map(|r| Request {
            prompt_token_ids: r.prompt_token_ids.iter().copied().take(prompt_tokens).collect(),
            max_tokens: Some(answer_tokens),
            ..r
        })
        .collect();
    let alone = subject.alone(&model, &requests);
    let blocks = (prompt_tokens + answer_tokens).div_ceil(wardrobe_engine::BLOCK_SIZE_TOKENS) + 2;
    let c = model.config();
    let element = subject.kv_dtype.size_bytes();
    let block_bytes =
        2 * c.num_layers * c.num_kv_heads * c.head_dim * element * wardrobe_engine::BLOCK_SIZE_TOKENS;
    let config = EngineConfig { prefix_cache: false, ..EngineConfig::default() };
    let options = EngineOptions { kv_bytes: Some(blocks * block_bytes), ..subject.options(config) };
    let engine = subject.engine(&model, &options);
    check("preempted", &together(&engine, &requests), &alone);
    assert!(engine.stats().preemptions > 0, "nothing was preempted: {:?}", engine.stats());
    assert_nothing_is_held(&engine);
}

/// Thread counts, and instruction sets within their bound.
fn devices(subject: &Subject) {
    let model = subject.open(CpuOptions { threads: Some(1), ..Default::default() });
    let requests = subject.requests(&model);
    let one = subject.alone(&model, &requests);
    drop(model);
    for threads in [2, 3] {
        let model = subject.open(CpuOptions { threads: Some(threads), ..Default::default() });
        check(&format!("{threads} threads"), &subject.alone(&model, &requests), &one);
        let engine = subject.engine(&model, &subject.options(EngineConfig::default()));
        check(&format!("{threads} threads, with neighbours"), &together(&engine, &requests), &one);
    }

    // Prompt log-probabilities of one text by every instruction set: outputs could branch at a near tie.
    let mut by_isa: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for isa in Isa::available() {
        let model = subject.open(CpuOptions { threads: Some(1), isa: Some(isa), ..Default::default() });
        let engine = subject.engine(&model, &subject.options(EngineConfig::default()));
        let request =
            Request { prompt_logprobs: Some(0), max_tokens: Some(0), logprobs: None, ..requests[7].clone() };
        let rows = answer(&engine, request).prompt_logprobs.unwrap();
        by_isa.insert(isa.to_string(), rows.into_iter().flatten().map(|row| row.logprob).collect());
    }
    let best = &by_isa[&Isa::best().to_string()];
    for (isa, logprobs) in &by_isa {
        assert_eq!(logprobs.len(), best.len());
        let sum: f32 = logprobs.iter().zip(best).map(|(a, b)| (a - b).abs()).sum();
        let difference = sum / best.len() as f32;
        assert!(difference <= subject.isa_bound, "{isa} and the best set differ by {difference}");
    }
}

#[test]
fn schedules_change_no_bit_of_a_small_model() {
    schedules(&tiny(wardrobe_formats::StorageType::F32));
}

#[test]
fn schedules_change_no_bit_of_a_small_model_in_bf16() {
    schedules(&Subject { kv_dtype: DType::F16, ..tiny(wardrobe_formats::StorageType::BF16) });
}

#[test]
fn schedules_change_no_bit_of_smollm2() {
    if let Some(subject) = smollm2("schedules_change_no_bit_of_smollm2") {
        schedules(&subject);
    }
}

#[test]
fn threads_change_no_bit_of_a_small_model() {
    devices(&tiny(wardrobe_formats::StorageType::F16));
}

#[test]
fn threads_change_no_bit_of_smollm2() {
    if let Some(subject) = smollm2("threads_change_no_bit_of_smollm2") {
        devices(&subject);
    }
}

/// A request's prompt is found in the cache whatever the neighbours of the first were, but never across adapters or
/// tenants: those have keys and values of their own.
#[test]
fn a_prefix_is_shared_within_an_adapter_and_tenant_only() {
    let subject = tiny(wardrobe_formats::StorageType::F32);
    let model = subject.open(CpuOptions::default());
    let engine = subject.engine(&model, &subject.options(EngineConfig::default()));
    let prompt = Rng::new(9).tokens(64, model.config().vocab_size);
    let ask = |adapter: Option<&str>, salt: Option<&str>| {
        let request = Request {
            prompt_token_ids: prompt.clone().into(),
            adapter: adapter.map(str::to_owned),
            cache_salt: salt.map(str::to_owned),
            sampling: SamplingParams::greedy(),
            max_tokens: Some(4),
            ignore_eos: true,
            ..Request::default()
        };
        answer(&engine, request).summary.usage.cached_tokens
    };
    for (adapter, salt) in [
        (None, None),
        (Some("one"), None),
        (Some("two"), None),
        (None, Some("tenant")),
        (Some("one"), Some("tenant")),
    ] {
        assert_eq!(ask(adapter, salt), 0, "{adapter:?} {salt:?} found another's prefix");
        assert_eq!(ask(adapter, salt), 48, "{adapter:?} {salt:?}: the last token is always computed");
    }
}
