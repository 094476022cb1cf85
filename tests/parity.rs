//! Parity with an independent implementation: teacher-forced log-probabilities of the engine, and the facade's logits,
//! against candle-transformers on the same weights dequantised to f32, for the base and for adapters.
//!
//! Small random models always; SmolLM2-135M-Instruct where `WARDROBE_SMOLLM2` names its GGUF file. Measured numbers go
//! to stderr past the test harness's capture.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::json;
use support::lora::{self, RandomLora};
use support::random::Rng;
use support::reference::{Logits, Reference, argmax, log_softmax};
use support::tiny::TinyModel;
use support::{answer, assert_nothing_is_held, smollm2};
use wardrobe::{
    AdapterPrecision, AdapterSource, DType, Engine, EngineOptions, LoraOptions, Message, Model, ModelOptions,
    Request, SamplingParams, TokenId, WeightPrecision, adapter_source,
};
use wardrobe_formats::{ModelFiles, PeftAdapter, StorageType};
use wardrobe_models::{RopeSpec, rope_table};

/// Bound on the difference of a log-probability or logit in f32.
const F32_BOUND: f64 = 1e-3;

/// How far two sets of log-probabilities are apart.
#[derive(Debug, Default, Clone, Copy)]
struct Parity {
    /// Tokens compared.
    tokens: usize,
    /// Largest difference, over the text's own tokens and the engine's twenty likeliest at each position.
    max: f64,
    /// Mean difference over the text's own tokens.
    mean: f64,
    /// Share of positions at which both name the same token as the likeliest.
    top1: f64,
}

impl Parity {
    fn report(self, case: &str) -> Self {
        let line = format!(
            "parity of {case}: {} tokens, max {:.2e}, mean {:.2e}, top-1 {:.2} %\n",
            self.tokens,
            self.max,
            self.mean,
            100.0 * self.top1
        );
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        self
    }
}

/// Compares the engine's prompt log-probabilities with the reference's logits.
fn engine_parity(engine: &Engine, adapter: Option<&str>, texts: &[Vec<TokenId>], logits: &Logits) -> Parity {
    let mut sum = Parity::default();
    let mut agree = 0;
    for (text, logits) in texts.iter().zip(logits) {
        let completion = answer(
            engine,
            Request {
                prompt_token_ids: text.clone().into(),
                adapter: adapter.map(str::to_owned),
                prompt_logprobs: Some(20),
                max_tokens: Some(0),
                ..Request::default()
            },
        );
        let rows = completion.prompt_logprobs.unwrap();
        assert_eq!((rows.len(), &rows[0]), (text.len(), &None));
        for (position, row) in rows.into_iter().enumerate().skip(1) {
            let row = row.unwrap();
            assert_eq!(row.token, text[position]);
            let wanted = log_softmax(&logits[position - 1]);
            let difference = |token: TokenId, got: f32| (f64::from(got) - wanted[token.0 as usize]).abs();
            let own = difference(row.token, row.logprob);
            sum.tokens += 1;
            sum.mean += own;
            assert_eq!(row.top.len(), 20);
            sum.max = row.top.iter().map(|t| difference(t.token, t.logprob)).fold(sum.max.max(own), f64::max);
            agree += usize::from(row.top[0].token.0 as usize == argmax(&logits[position - 1]));
        }
    }
    sum.mean /= sum.tokens as f64;
    sum.top1 = agree as f64 / sum.tokens as f64;
    assert_nothing_is_held(engine);
    sum
}

/// The largest difference between the facade's logits and the reference's, over the whole vocabulary.
fn logits_difference(
    model: &Model,
    adapter: Option<&PeftAdapter>,
    texts: &[Vec<TokenId>],
    logits: &Logits,
) -> f64 {
    let exact = LoraOptions { precision: AdapterPrecision::AsStored, ..LoraOptions::default() };
    let adapter = adapter.map(|a| model.fit_adapter(a, &exact).unwrap());
    let mut max = 0.0f64;
    for (text, wanted) in texts.iter().zip(logits) {
        let got = model.logits(text, adapter.as_ref()).unwrap();
        assert_eq!(got.dims(), [text.len(), model.config().vocab_size]);
        for (got, wanted) in got.to_vec2::<f32>().unwrap().iter().zip(wanted) {
            for (got, wanted) in got.iter().zip(wanted) {
                max = max.max(f64::from(got - wanted).abs());
            }
        }
    }
    max
}

fn open(path: &Path, precision: WeightPrecision) -> Model {
    Model::open(path, &ModelOptions { precision, ..ModelOptions::default() }).unwrap()
}

fn engine(model: &Model, kv_dtype: DType) -> Engine {
    model
        .engine(&EngineOptions {
            kv_dtype: Some(kv_dtype),
            kv_bytes: Some(128 << 20),
            ..EngineOptions::default()
        })
        .unwrap()
}

/// Random texts of lengths around a block and a chunk.
fn random_texts(vocab_size: usize) -> Vec<Vec<TokenId>> {
    let mut rng = Rng::new(7);
    [1, 15, 16, 17, 70].map(|n| rng.tokens(n, vocab_size)).into()
}

/// Checks one random model, in both precisions, base and one adapter, by engine and by facade.
fn check_tiny(case: &str, tiny: &TinyModel, reference: impl Fn(&Reference, &[Vec<TokenId>]) -> Logits) {
    let dir = tiny.write();
    let base = Reference::open(dir.path());
    let targets: &[&str] = if tiny.experts.is_some() { &lora::MIXTRAL_MODULES } else { &lora::ALL_MODULES };
    let adapter = RandomLora { targets: targets.to_vec(), ..RandomLora::default() }.build(&base.config);
    let texts = random_texts(tiny.vocab_size);
    let (of_base, of_adapter) = (reference(&base, &texts), reference(&base.merged(&adapter), &texts));
    let moved = of_base.iter().flatten().flatten().zip(of_adapter.iter().flatten().flatten());
    let moved = moved.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(moved > 0.5, "{case}: the adapter moves logits by at most {moved}");
    for precision in [WeightPrecision::AsStored, WeightPrecision::F32] {
        let model = open(dir.path(), precision);
        let engine = engine(&model, DType::F32);
        engine.load_adapter("a", adapter_source(adapter.clone()), Default::default()).unwrap();
        for (name, peft, logits) in [(None, None, &of_base), (Some("a"), Some(&adapter), &of_adapter)] {
            let case = format!("{case}, {precision:?}, {}", name.map_or("base", |_| "adapter"));
            let difference = logits_difference(&model, peft, &texts, logits);
            assert!(difference <= F32_BOUND, "{case}: logits differ by {difference}");
            let parity = engine_parity(&engine, name, &texts, logits).report(&case);
            assert!(parity.max <= F32_BOUND && parity.top1 == 1.0, "{case}: {parity:?}");
        }
    }
}

#[test]
fn grouped_queries_and_a_tied_head() {
    check_tiny("grouped queries", &TinyModel::default(), Reference::logits);
}

#[test]
fn a_head_of_its_own_in_every_float_type() {
    for (seed, storage) in [(2, StorageType::F32), (3, StorageType::F16), (4, StorageType::BF16)] {
        let tiny = TinyModel { tied: false, num_kv_heads: 4, storage, seed, ..TinyModel::default() };
        check_tiny(&format!("own head, {storage}"), &tiny, Reference::logits);
    }
}

#[test]
fn mixtures_of_experts() {
    for storage in [StorageType::F32, StorageType::BF16] {
        let tiny = TinyModel { storage, ..TinyModel::mixtral() };
        check_tiny(&format!("Mixtral, {storage}"), &tiny, Reference::mixtral_logits);
    }
    let tiny = TinyModel {
        experts: Some((3, 1)),
        hidden_size: 48,
        num_heads: 3,
        num_kv_heads: 1,
        intermediate_size: 50,
        tied: true,
        ..TinyModel::mixtral()
    };
    check_tiny("one expert a token", &tiny, Reference::mixtral_logits);
}

/// Logits of a text with an adapter whose factors are held in `precision`, and the bytes that these take.
fn held_logits(
    model: &Model,
    adapter: &PeftAdapter,
    precision: AdapterPrecision,
    text: &[TokenId],
) -> (Vec<f32>, usize) {
    let options = LoraOptions { precision, ..LoraOptions::default() };
    let lora = model.fit_adapter(adapter, &options).unwrap();
    let logits = model.logits(text, Some(&lora)).unwrap();
    (logits.flatten_all().unwrap().to_vec1().unwrap(), lora.size_bytes())
}

#[test]
fn factors_held_in_f16_keep_their_digits_however_small() {
    let tiny = TinyModel::default().write();
    let model = open(tiny.path(), WeightPrecision::F32);
    let text = random_texts(320).pop().unwrap();
    // 2^20 times smaller factors B under as much larger a scale: of these f16 alone would keep one or two digits.
    let kind = RandomLora { strength: 1.0, alpha: 0.5, ..RandomLora::default() };
    let shrunk = RandomLora { alpha: kind.alpha * f64::from(1 << 20), ..kind.clone() };
    let (plain, shrunk) = (kind.build(model.config()), shrunk.build(model.config()));
    let (exact, exact_bytes) = held_logits(&model, &plain, AdapterPrecision::AsStored, &text);
    let (auto, auto_bytes) = held_logits(&model, &plain, AdapterPrecision::Auto, &text);
    assert_eq!((auto, auto_bytes), (exact.clone(), exact_bytes), "weights in f32 ask for no rounding");
    let (held, held_bytes) = held_logits(&model, &plain, AdapterPrecision::F16, &text);
    assert!(held_bytes * 2 <= exact_bytes + 64 * 14, "{held_bytes} bytes of {exact_bytes}");
    let largest = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let rounding = largest(&held, &exact);
    assert!(rounding > 0.0, "nothing was rounded");
    // Rounded by the file's own type, the factors are the same.
    let stored = RandomLora { storage: StorageType::F16, ..kind.clone() }.build(model.config());
    let (stored, _) = held_logits(&model, &stored, AdapterPrecision::AsStored, &text);
    assert!(largest(&held, &stored) < 1e-3 && largest(&held, &stored) < rounding / 10.0);
    let (held_shrunk, _) = held_logits(&model, &shrunk, AdapterPrecision::F16, &text);
    assert_eq!(held_shrunk, held, "powers of two change no digit");
}

#[test]
fn one_key_head_for_all_and_sizes_that_fill_no_vector() {
    let tiny = TinyModel {
        num_heads: 3,
        num_kv_heads: 1,
        head_dim: 16,
        hidden_size: 48,
        intermediate_size: 50,
        vocab_size: 301,
        num_layers: 3,
        rope_theta: 500_000.0,
        ..TinyModel::default()
    };
    check_tiny("odd sizes", &tiny, Reference::logits);
}

#[test]
fn llama3_and_linear_rope_scaling() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let linear = json!({ "rope_type": "linear", "factor": 4.0 });
    for (name, scaling) in [("llama3", llama3), ("linear", linear)] {
        let tiny = TinyModel { rope_scaling: Some(scaling), ..TinyModel::default() };
        check_tiny(&format!("{name} RoPE"), &tiny, Reference::logits);
        // The scaling is not without effect, so that the comparison means something.
        let plain = TinyModel::default().write();
        let scaled = tiny.write();
        let texts = random_texts(320);
        let of_plain = Reference::open(plain.path()).logits(&texts);
        let difference =
            logits_difference(&open(scaled.path(), WeightPrecision::F32), None, &texts, &of_plain);
        assert!(difference > 0.1, "{name} scaling moves logits by {difference} only");
    }
}

#[test]
fn mistral_with_a_sliding_window_and_a_head_width_of_its_own() {
    let tiny = TinyModel {
        model_type: "mistral",
        tied: false,
        head_dim: 32,
        sliding_window: Some(20),
        ..TinyModel::default()
    };
    check_tiny("sliding window", &tiny, Reference::mistral_logits);
    let dir = tiny.write();
    let texts = random_texts(tiny.vocab_size);
    let mut reference = Reference::open(dir.path());
    reference.config.sliding_window = None;
    let unlimited = reference.mistral_logits(&texts);
    let difference = logits_difference(&open(dir.path(), WeightPrecision::F32), None, &texts, &unlimited);
    assert!(difference > 0.1, "the window moves logits by {difference} only");
}

/// Inverse frequencies and attention factor after the definitions in transformers' `modeling_rope_utils.py`.
fn transformers_rope(kind: &str, theta: f64, dim: usize, factor: f64, original: f64) -> (Vec<f64>, f64) {
    let position_frequencies: Vec<f64> =
        (0..dim).step_by(2).map(|i| theta.powf(i as f64 / dim as f64)).collect();
    if kind == "linear" {
        return (position_frequencies.iter().map(|f| 1.0 / f / factor).collect(), 1.0);
    }
    let (beta_fast, beta_slow) = (32.0, 1.0);
    let correction_dim = |rotations: f64| {
        (dim as f64 * (original / (rotations * 2.0 * std::f64::consts::PI)).ln()) / (2.0 * theta.ln())
    };
    let low = correction_dim(beta_fast).floor().max(0.0);
    let mut high = correction_dim(beta_slow).ceil().min(dim as f64 - 1.0);
    if low == high {
        high += 0.001;
    }
    let frequencies = position_frequencies.iter().enumerate().map(|(i, f)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let extrapolation = 1.0 - ramp;
        (1.0 / (factor * f)) * (1.0 - extrapolation) + (1.0 / f) * extrapolation
    });
    (frequencies.collect(), 0.1 * factor.ln() + 1.0)
}

#[test]
fn linear_and_yarn_tables_are_those_of_transformers() {
    for (kind, theta, head_dim, factor, original) in [
        ("linear", 10_000.0, 64, 4.0, 4096.0),
        ("linear", 1_000_000.0, 16, 2.5, 128.0),
        ("yarn", 10_000.0, 64, 4.0, 2048.0),
        ("yarn", 500_000.0, 128, 16.0, 8192.0),
        ("yarn", 10_000.0, 16, 32.0, 64.0),
    ] {
        let scaling = json!({ "rope_type": kind, "factor": factor, "original_max_position_embeddings": original as usize });
        let tiny = TinyModel {
            head_dim,
            hidden_size: head_dim,
            num_heads: 1,
            num_kv_heads: 1,
            num_layers: 1,
            rope_theta: theta,
            rope_scaling: Some(scaling),
            ..TinyModel::default()
        };
        let dir = tiny.write();
        let config = ModelFiles::open(dir.path()).unwrap().config;
        let positions = 400;
        let got = rope_table(&RopeSpec::of(&config), positions);
        let (frequencies, attention) = transformers_rope(kind, theta, head_dim, factor, original);
        assert_eq!(got.len(), positions * head_dim);
        let mut rows = got.chunks_exact(2);
        for position in 0..positions {
            for frequency in &frequencies {
                let pair = rows.next().unwrap();
                let angle = position as f64 * frequency;
                let wanted = [attention * angle.cos(), attention * angle.sin()];
                for (got, wanted) in pair.iter().zip(wanted) {
                    // Frequencies and angles are f32 in models: at 400 radians that is 3e-5.
                    let difference = (f64::from(*got) - wanted).abs();
                    assert!(
                        difference < 1e-4,
                        "{kind}, position {position}, {frequency}: {got}, wanted {wanted}"
                    );
                }
            }
        }
    }
}

/// SmolLM2 with the reference's logits for the base and each adapter.
struct Real {
    path: std::path::PathBuf,
    texts: Vec<Vec<TokenId>>,
    /// By name of the adapter, the base first.
    logits: Vec<(Option<&'static str>, Logits)>,
}

static REAL: LazyLock<Option<Real>> = LazyLock::new(|| {
    let path = smollm2::path("parity of SmolLM2-135M-Instruct")?;
    let model = open(&path, WeightPrecision::AsStored);
    let texts: Vec<Vec<TokenId>> =
        smollm2::TEXTS.iter().map(|(is_chat, text)| tokens(&model, *is_chat, text)).collect();
    let base = Reference::open(&path);
    let mut logits = vec![(None, base.logits_in_one_pass(&texts))];
    for name in smollm2::ADAPTERS {
        let adapter = PeftAdapter::open(&smollm2::adapter(name)).unwrap();
        logits.push((Some(name), base.merged(&adapter).logits_in_one_pass(&texts)));
    }
    Some(Real { path, texts, logits })
});

/// A text, or a question with its answer as the chat template puts them.
fn tokens(model: &Model, is_chat: bool, text: &str) -> Vec<TokenId> {
    if !is_chat {
        return model.tokenizer().encode(text, false).unwrap();
    }
    let (question, answer) = text.split_once('\t').unwrap();
    let mut tokens = model.chat_prompt(&[Message::text("user", question)]).unwrap();
    tokens.extend(model.tokenizer().encode(answer, false).unwrap());
    tokens
}

/// Parity of SmolLM2, base and adapters, in one setting.
fn real_parity(real: &Real, case: &str, precision: WeightPrecision, kv_dtype: DType) -> Vec<Parity> {
    let model = open(&real.path, precision);
    let engine = engine(&model, kv_dtype);
    let of = |(name, logits): &(Option<&'static str>, Logits)| {
        if let Some(name) = name {
            let source = AdapterSource::Path(smollm2::adapter(name));
            engine.load_adapter(name, source, Default::default()).unwrap();
        }
        let parity = engine_parity(&engine, *name, &real.texts, logits);
        parity.report(&format!("SmolLM2 {case}, {}", name.unwrap_or("base")))
    };
    real.logits.iter().map(of).collect()
}

#[test]
fn smollm2_in_f32() {
    let Some(real) = REAL.as_ref() else { return };
    for parity in real_parity(real, "f32, KV f32", WeightPrecision::F32, DType::F32) {
        assert!(parity.tokens > 500 && parity.max <= F32_BOUND && parity.top1 == 1.0, "{parity:?}");
    }
}

#[test]
fn smollm2_as_stored() {
    let Some(real) = REAL.as_ref() else { return };
    for parity in real_parity(real, "Q4_1, KV f16", WeightPrecision::AsStored, DType::F16) {
        assert!(parity.tokens > 500 && parity.mean <= 0.03 && parity.top1 >= 0.98, "{parity:?}");
    }
}

#[test]
fn adapters_change_the_text_of_smollm2() {
    let Some(path) = smollm2::path("adapters_change_the_text_of_smollm2") else { return };
    let model = open(&path, WeightPrecision::AsStored);
    let engine = engine(&model, DType::F16);
    let prompt = model.chat_prompt(&[Message::text("user", "Write one sentence about the sea.")]).unwrap();
    let mut texts = Vec::new();
    for adapter in [None, Some(smollm2::ADAPTERS[0]), Some(smollm2::ADAPTERS[1])] {
        if let Some(name) = adapter {
            let source = AdapterSource::Path(smollm2::adapter(name));
            engine.load_adapter(name, source, Default::default()).unwrap();
        }
        let request = Request { adapter: adapter.map(str::to_owned), ..Request::new(prompt.clone()) };
        let request = request.with_sampling(SamplingParams::greedy()).with_max_tokens(40);
        texts.push(answer(&engine, request).choices[0].text.clone());
    }
    let [base, a, b] = texts.as_slice() else { unreachable!("three texts") };
    assert!(base != a && base != b && a != b, "{texts:?}");
}

/// Writes what `tests/llama_cpp_parity.py` compares llama.cpp with to the file that `WARDROBE_PARITY_JSON` names.
#[test]
#[ignore = "writes the reference for tests/llama_cpp_parity.py"]
fn write_reference() {
    let real = REAL.as_ref().expect("WARDROBE_SMOLLM2 names the model");
    let out = std::env::var_os("WARDROBE_PARITY_JSON").expect("WARDROBE_PARITY_JSON names the file to write");
    let (_, logits) = &real.logits[0];
    let ours = real_parity(real, "Q4_1, KV f16", WeightPrecision::AsStored, DType::F16)[0];
    let texts = real.texts.iter().zip(logits).map(|(text, logits)| {
        let own = text.iter().skip(1).zip(logits).map(|(token, row)| log_softmax(row)[token.0 as usize]);
        json!({
            "token_ids": text.iter().map(|t| t.0).collect::<Vec<_>>(),
            "logprobs": own.collect::<Vec<_>>(),
            "argmax": logits.iter().map(|row| argmax(row)).collect::<Vec<_>>(),
        })
    });
    let document = json!({
        "model": real.path,
        "texts": texts.collect::<Vec<_>>(),
        "wardrobe": { "mean": ours.mean, "max": ours.max, "top1": ours.top1 },
    });
    std::fs::write(out, document.to_string()).unwrap();
}
