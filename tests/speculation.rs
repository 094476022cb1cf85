//! Drafts from a text itself change no bit of an answer on the CPU: greedy or sampled, with adapters, penalties and stops, held
//! to a schema or not, alone or among others.
//!
//! A small random model always; SmolLM2-135M-Instruct where `WARDROBE_SMOLLM2` names its GGUF file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::path::Path;

use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use support::{assert_nothing_is_held, smollm2};
use wardrobe::grammar::Spec;
use wardrobe::{
    AdapterSource, Choice, Engine, EngineConfig, EngineOptions, LoadOptions, Message, Model, ModelOptions,
    Request, SamplingParams, Speculation,
};

fn engine(model: &Model, speculation: Speculation, adapters: &[(&str, &Path)]) -> Engine {
    // Few blocks and a small budget, so that there is preemption, and drafts are cut.
    let config = EngineConfig {
        speculation,
        max_num_sequences: 6,
        max_batch_tokens: 96,
        max_chunk_tokens: 64,
        ..EngineConfig::default()
    };
    let options = EngineOptions { config, kv_bytes: Some(24 << 20), ..EngineOptions::default() };
    let engine = model.engine(&options).unwrap();
    for (name, dir) in adapters {
        engine.load_adapter(name, AdapterSource::Path(dir.to_path_buf()), LoadOptions::default()).unwrap();
    }
    engine
}

/// All answers, asked at once.
fn answers(engine: &Engine, requests: &[Request]) -> Vec<Vec<Choice>> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let answers = streams.into_iter().map(|stream| stream.completion_blocking().choices).collect();
    assert_nothing_is_held(engine);
    answers
}

/// Whether requests get the same with and without drafts; tokens that were accepted.
fn compare(model: &Model, adapters: &[(&str, &Path)], requests: &[Request]) -> u64 {
    let without = engine(model, Speculation::Off, adapters);
    let alone: Vec<Vec<Choice>> =
        requests.iter().flat_map(|request| answers(&without, std::slice::from_ref(request))).collect();
    let mut accepted = 0;
    for speculation in [Speculation::Always, Speculation::Auto] {
        let with = engine(model, speculation, adapters);
        for (idx, (got, want)) in answers(&with, requests).iter().zip(&alone).enumerate() {
            assert_eq!(got, want, "{speculation:?}: {:?}", requests[idx]);
        }
        accepted = accepted.max(with.stats().accepted_tokens);
        println!("{speculation:?}: {:?}", with.stats());
    }
    accepted
}

#[test]
fn a_small_model_answers_the_same() {
    let folder = TinyModel { num_layers: 2, max_position_embeddings: 256, ..TinyModel::default() }.write();
    let config = wardrobe_formats::ModelFiles::open(folder.path()).unwrap().config;
    let dir = folder.path().join("one");
    RandomLora { rank: 3, seed: 11, ..RandomLora::default() }.write(&config, &dir);
    let model = Model::open(folder.path(), &ModelOptions::default()).unwrap();
    let mut rng = Rng::new(3);
    let requests: Vec<Request> = (0..24)
        .map(|i| {
            let piece = rng.tokens(6 + i % 5, config.vocab_size);
            let sampling = match i % 3 {
                0 => SamplingParams::greedy(),
                1 => SamplingParams { temperature: 0.3, seed: Some(i as u64), ..SamplingParams::default() },
                _ => SamplingParams {
                    frequency_penalty: 0.1,
                    repetition_penalty: 1.05,
                    bad_words: vec![piece[..2].to_vec()],
                    ..SamplingParams::greedy()
                },
            };
            Request {
                adapter: (i % 4 == 1).then(|| "one".to_owned()),
                logprobs: (i % 2 == 0).then_some(2),
                n: 1 + i % 2,
                max_tokens: Some(60),
                ignore_eos: true,
                sampling,
                ..Request::new(piece.repeat(4))
            }
        })
        .collect();
    let accepted = compare(&model, &[("one", &dir)], &requests);
    assert!(accepted > 100, "{accepted} tokens accepted");
}

#[test]
fn smollm2_answers_the_same() {
    let Some(path) = smollm2::path("smollm2_answers_the_same") else { return };
    let model = Model::open(path, &ModelOptions::default()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = std::fs::read(root.join("datasets/biographies/schema.json")).unwrap();
    let schema = Spec::JsonSchema { schema: serde_json::from_slice(&schema).unwrap(), strict: true };
    let record = model.compile(&schema).unwrap();
    let object = model.compile(&Spec::JsonObject).unwrap();
    let mut requests = Vec::new();
    for (set, adapter) in [("last-words", "last-words"), ("biographies", "biography-json")] {
        let data = std::fs::read_to_string(root.join("datasets").join(set).join("test.jsonl")).unwrap();
        for (i, line) in data.lines().take(5).enumerate() {
            let item: serde_json::Value = serde_json::from_str(line).unwrap();
            let prompt = item["prompt"].as_str().unwrap();
            let prompt = model.chat_prompt(&[Message::text("user", prompt)]).unwrap();
            let sampling = match i % 2 {
                0 => SamplingParams::greedy(),
                _ => SamplingParams { temperature: 0.7, top_p: 0.9, seed: Some(7), ..Default::default() },
            };
            let free = Request::new(prompt).with_sampling(sampling).with_max_tokens(48);
            let tuned = free.clone().with_adapter(adapter);
            requests.push(Request { logprobs: (i % 3 == 0).then_some(1), ..tuned.clone() });
            requests.push(if i % 2 == 0 { free } else { tuned.clone().with_stop(" ,") });
            if set == "biographies" {
                let held = if i % 2 == 0 { &record } else { &object };
                requests.push(tuned.clone().with_constraint(held.clone()));
                let request = tuned.with_constraint(record.clone()).with_max_tokens(44);
                requests.push(Request { logprobs: Some(0), ..request });
            }
        }
    }
    let dirs = smollm2::ADAPTERS.map(|name| (name, smollm2::adapter(name)));
    let adapters = dirs.each_ref().map(|(name, dir)| (*name, dir.as_path()));
    let accepted = compare(&model, &adapters, &requests);
    assert!(accepted > 100, "{accepted} tokens accepted");
}
