//! Adapters that bring RoPE scaling of their own: beside the base and beside each other in one step, at contexts that the
//! base does not have, and gone without a trace.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use serde_json::{Value, json};
use support::lora::RandomLora;
use support::random::Rng;
use support::reference::{Reference, log_softmax};
use support::tiny::TinyModel;
use support::{answer, assert_nothing_is_held};
use tempfile::TempDir;
use wardrobe::{
    AdapterError, AdapterSource, Completion, DType, Engine, EngineOptions, LoadOptions, Model, ModelOptions,
    Request, SamplingParams, SubmitError, TokenId, adapter_source,
};
use wardrobe_formats::RopeScaling;
use wardrobe_formats::peft::{AdapterRope, RECORD_FILE};

const BASE_CONTEXT: usize = 96;
const LONG_CONTEXT: usize = 320;
const VOCAB: usize = 320;

fn base() -> TinyModel {
    TinyModel { max_position_embeddings: BASE_CONTEXT, ..TinyModel::default() }
}

fn linear(factor: f64) -> AdapterRope {
    let scaling = RopeScaling::Linear { factor };
    AdapterRope { theta: None, scaling, max_position_embeddings: LONG_CONTEXT }
}

/// A scaling as an adapter has it, and as a model's configuration says the same.
fn scalings() -> [(&'static str, AdapterRope, Value); 2] {
    let llama3 = AdapterRope {
        theta: Some(500_000.0),
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 64,
        },
        max_position_embeddings: LONG_CONTEXT,
    };
    let of_llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    [("linear", linear(4.0), json!({ "rope_type": "linear", "factor": 4.0 })), ("llama3", llama3, of_llama3)]
}

fn open(max_context_tokens: usize) -> (TempDir, Model, Engine) {
    let dir = base().write();
    let model = Model::open(dir.path(), &ModelOptions::default()).unwrap();
    let engine = model
        .engine(&EngineOptions {
            kv_bytes: Some(16 << 20),
            kv_dtype: Some(DType::F32),
            num_slots: 3,
            max_context_tokens: Some(max_context_tokens),
            ..EngineOptions::default()
        })
        .unwrap();
    (dir, model, engine)
}

fn load(engine: &Engine, name: &str, model: &Model, lora: &RandomLora) -> wardrobe::AdapterInfo {
    let options = LoadOptions { replace: true, ..LoadOptions::default() };
    engine.load_adapter(name, adapter_source(lora.build(model.config())), options).unwrap()
}

fn scored(adapter: Option<&str>, text: &[TokenId]) -> Request {
    Request {
        prompt_token_ids: text.to_vec().into(),
        adapter: adapter.map(str::to_owned),
        prompt_logprobs: Some(0),
        max_tokens: Some(0),
        ..Request::default()
    }
}

fn greedy(adapter: Option<&str>, len: usize) -> Request {
    let prompt = Rng::new(5).tokens(len, VOCAB);
    Request {
        adapter: adapter.map(str::to_owned),
        ignore_eos: true,
        ..Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(12)
    }
}

fn tokens(completion: &Completion) -> Vec<TokenId> {
    completion.choices[0].token_ids.clone()
}

#[test]
fn each_row_of_a_step_has_the_positions_of_its_adapter() {
    let (dir, model, engine) = open(LONG_CONTEXT);
    let kind = RandomLora::default();
    let peft = kind.build(model.config());
    // The reference is another model for each: the scaling stands in its own configuration.
    let texts = [Rng::new(1).tokens(90, VOCAB), Rng::new(2).tokens(250, VOCAB)];
    let mut cases = vec![
        (None, texts[..1].to_vec(), Reference::open(dir.path()).logits(&texts[..1])),
        (Some("plain"), texts[..1].to_vec(), Reference::open(dir.path()).merged(&peft).logits(&texts[..1])),
    ];
    load(&engine, "plain", &model, &kind);
    for (name, rope, scaling) in scalings() {
        let scaled = TinyModel {
            rope_scaling: Some(scaling),
            rope_theta: rope.theta.unwrap_or(base().rope_theta),
            max_position_embeddings: LONG_CONTEXT,
            ..base()
        };
        let scaled = scaled.write();
        let logits = Reference::open(scaled.path()).merged(&peft).logits(&texts);
        cases.push((Some(name), texts.to_vec(), logits));
        let info = load(&engine, name, &model, &RandomLora { rope: Some(rope), ..kind.clone() });
        assert_eq!(info.max_context_tokens, Some(LONG_CONTEXT));
    }
    let requests = cases.iter().flat_map(|(name, texts, _)| texts.iter().map(|text| scored(*name, text)));
    let streams = engine.submit_all(requests.collect()).unwrap();
    let mut completions = streams.into_iter().map(|stream| stream.completion_blocking());
    let mut first_rows = Vec::new();
    for (name, texts, logits) in &cases {
        for (text, logits) in texts.iter().zip(logits) {
            let rows = completions.next().unwrap().prompt_logprobs.unwrap();
            let got: Vec<f32> = rows.into_iter().flatten().map(|row| row.logprob).collect();
            assert_eq!(got.len(), text.len() - 1);
            for (i, got) in got.iter().enumerate() {
                let wanted = log_softmax(&logits[i])[text[i + 1].0 as usize];
                let difference = (f64::from(*got) - wanted).abs();
                assert!(difference < 1e-3, "{name:?}, position {i}: {got}, wanted {wanted}");
            }
            first_rows.push(got);
        }
    }
    // The scaling is not without effect, so that the comparison means something.
    let moved = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(moved(&first_rows[1], &first_rows[2]) > 0.1 && moved(&first_rows[2], &first_rows[4]) > 0.1);
    assert_nothing_is_held(&engine);
}

#[test]
fn the_context_is_the_adapters_own() {
    let (_dir, model, engine) = open(LONG_CONTEXT);
    load(&engine, "long", &model, &RandomLora { rope: Some(linear(4.0)), ..RandomLora::default() });
    load(&engine, "short", &model, &RandomLora::default());
    assert_eq!(engine.max_context_tokens(), BASE_CONTEXT);
    for adapter in [None, Some("short")] {
        answer(&engine, greedy(adapter, BASE_CONTEXT - 12));
        let refused = engine.generate(greedy(adapter, BASE_CONTEXT - 11)).unwrap_err();
        assert!(refused.to_string().contains("context is 96 tokens"), "{refused}");
    }
    assert_eq!(tokens(&answer(&engine, greedy(Some("long"), LONG_CONTEXT - 12))).len(), 12);
    let refused = engine.generate(greedy(Some("long"), LONG_CONTEXT - 11)).unwrap_err();
    assert!(
        matches!(refused, SubmitError::ContextExceeded { max_context_tokens: LONG_CONTEXT, .. }),
        "{refused}"
    );

    // An engine for shorter contexts serves the adapter as far as they go.
    let (_dir, model, engine) = open(BASE_CONTEXT / 2);
    let info =
        load(&engine, "long", &model, &RandomLora { rope: Some(linear(4.0)), ..RandomLora::default() });
    assert_eq!(info.max_context_tokens, Some(BASE_CONTEXT / 2));
}

#[test]
fn scalings_that_come_and_go_leave_nothing_behind() {
    let (_dir, model, engine) = open(LONG_CONTEXT);
    let kind = |factor: Option<f64>| RandomLora { rope: factor.map(linear), ..RandomLora::default() };
    let alone = |factor: Option<f64>| {
        let (_dir, model, engine) = open(LONG_CONTEXT);
        load(&engine, "a", &model, &kind(factor));
        tokens(&answer(&engine, greedy(Some("a"), 60)))
    };
    let of_base = tokens(&answer(&engine, greedy(None, 60)));
    let mut seen = Vec::new();
    // One name, whose scaling changes; the fourth comes again after all its adapters were gone.
    for factor in [Some(2.0), None, Some(8.0), Some(4.0), None, Some(4.0), Some(2.0)] {
        load(&engine, "a", &model, &kind(factor));
        let got = tokens(&answer(&engine, greedy(Some("a"), 60)));
        assert_eq!(got, alone(factor), "{factor:?}");
        assert_eq!(tokens(&answer(&engine, greedy(None, 60))), of_base, "{factor:?}");
        seen.push(got);
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[2] != seen[3], "{seen:?}");
    engine.unload_adapter("a", None).unwrap();
    assert_nothing_is_held(&engine);
}

#[test]
fn a_scaling_is_told_by_the_folder_and_counts_for_the_digest() {
    let (_dir, model, engine) = open(LONG_CONTEXT);
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, rope: Option<AdapterRope>| {
        let dir = root.path().join(name);
        RandomLora { rope, ..RandomLora::default() }.write(model.config(), &dir);
        dir
    };
    let load = |dir: &std::path::Path| {
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        engine.load_adapter("a", AdapterSource::Path(dir.to_owned()), options)
    };
    let plain = load(&write("plain", None)).unwrap();
    let dir = write("scaled", Some(linear(4.0)));
    let scaled = load(&dir).unwrap();
    assert_eq!((plain.max_context_tokens, scaled.max_context_tokens), (None, Some(LONG_CONTEXT)));
    assert_ne!(plain.digest, scaled.digest);
    assert!(scaled.host_bytes > plain.host_bytes, "the table counts");
    let good = tokens(&answer(&engine, greedy(Some("a"), 200)));

    let record = dir.join(RECORD_FILE);
    for (text, named) in [
        ("", RECORD_FILE),
        ("[]", "not a JSON object"),
        ("{}", "version"),
        (r#"{"version": 2}"#, "version"),
        (r#"{"version": 1, "rope": 5}"#, "rope"),
        (r#"{"version": 1, "rope": {}}"#, "rope.max_position_embeddings"),
        (r#"{"version": 1, "rope": {"max_position_embeddings": 0}}"#, "rope.max_position_embeddings"),
        (r#"{"version": 1, "rope": {"max_position_embeddings": 9e99}}"#, "rope.max_position_embeddings"),
        (r#"{"version": 1, "rope": {"max_position_embeddings": 99, "factor": 2}}"#, "rope.factor"),
        (r#"{"version": 1, "rope": {"max_position_embeddings": 99, "rope_theta": -1}}"#, "rope.rope_theta"),
        (
            r#"{"version": 1, "rope": {"max_position_embeddings": 99, "rope_scaling": {"rope_type": "linear", "factor": 0}}}"#,
            "factor",
        ),
        (
            r#"{"version": 1, "rope": {"max_position_embeddings": 99, "rope_scaling": {"rope_type": "longrope"}}}"#,
            "longrope",
        ),
        (
            r#"{"version": 1, "rope": {"max_position_embeddings": 99, "rope_scaling": {"rope_type": "yarn", "factor": 2}}}"#,
            "original_max_position_embeddings",
        ),
    ] {
        std::fs::write(&record, text).unwrap();
        match load(&dir) {
            Err(AdapterError::Refused { reason }) => assert!(reason.contains(named), "{text}: {reason}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    // The name serves what it served.
    assert_eq!(tokens(&answer(&engine, greedy(Some("a"), 200))), good);
}
