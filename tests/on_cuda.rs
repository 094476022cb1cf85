//! A model on the CUDA device, whose kernels run on the CPU here: it answers as on the CPU, is trained, and serves what it was
//! trained to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "../crates/device-cuda/tests/support/mod.rs"]
mod emulated;
mod support;

use std::sync::Arc;

use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use wardrobe::data::{Dataset, Example};
use wardrobe::train::{BatchSize, Event, LoraConfig, Observer, OptimizerConfig};
use wardrobe::{
    AdapterSource, EngineOptions, LoadOptions, Model, ModelOptions, Request, SamplingParams, Speculation,
    TokenId, TrainConfig, Trainer, in_process,
};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};
use wardrobe_models::{RopeSpec, log_probs, logits};

/// A card.
fn card() -> Option<Arc<CudaDevice>> {
    let driver = EmulatedDriver::new(emulated::kernels()?, 2 << 30);
    Some(Arc::new(CudaDevice::over(Arc::new(driver), &CudaOptions::default()).unwrap()))
}

fn options() -> EngineOptions {
    EngineOptions { kv_bytes: Some(8 << 20), num_slots: 2, ..EngineOptions::default() }
}

fn request(vocab: usize, len: usize) -> Request {
    let prompt: Vec<TokenId> = (0..len).map(|i| TokenId((i * 7 % (vocab - 2)) as u32)).collect();
    let request = Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(12);
    Request { ignore_eos: true, ..request }
}

#[test]
fn it_computes_what_the_cpu_does() {
    let Some(card) = card() else { return };
    let tiny = TinyModel::default();
    let folder = tiny.write();
    let on_cpu = Model::open(folder.path(), &ModelOptions::default()).unwrap();
    let on_card = Model::open_on(card, folder.path(), &ModelOptions::default()).unwrap();
    let tokens: Vec<u32> = (0..70).map(|i| (i * 11 % (tiny.vocab_size - 2)) as u32).collect();
    let of = |model: &Model| {
        let rope = RopeSpec::of(model.config());
        logits(model.device().clone(), model.decoder().as_ref(), &tokens, None, &rope).unwrap()
    };
    let (got, want) = (of(&on_card), of(&on_cpu));
    let (choice, want) = log_probs(&want, tiny.vocab_size, None);
    let (_, got) = log_probs(&got, tiny.vocab_size, Some(&choice));
    let largest = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(largest < 0.05, "log-probabilities differ by {largest}");

    // An engine: many sequences at once, with and without an adapter, and graphs among its steps.
    let engine = on_card.engine(&options()).unwrap();
    let adapter = RandomLora { rank: 4, ..RandomLora::default() };
    let payload = Arc::new(adapter.build(on_card.config()));
    let source = AdapterSource::InProcess { label: "random".to_owned(), payload };
    engine.load_adapter("a", source, LoadOptions::default()).unwrap();
    let streams: Vec<_> = (0..5)
        .map(|i| {
            let request = request(tiny.vocab_size, 20 + i);
            engine.submit(if i % 2 == 0 { request.with_adapter("a") } else { request }).unwrap()
        })
        .collect();
    for stream in streams {
        let completion = stream.completion_blocking();
        assert_eq!(completion.summary.usage.completion_tokens, 12, "{:?}", completion.choices);
    }
}

#[test]
fn keys_and_values_take_what_the_card_has_free_and_are_told_as_they_were_taken() {
    let Some(kernels) = emulated::kernels() else { return };
    let driver = Arc::new(EmulatedDriver::new(kernels, 96 << 20));
    let card = Arc::new(CudaDevice::over(driver, &CudaOptions::default()).unwrap());
    let folder = TinyModel::default().write();
    let model = Model::open_on(card, folder.path(), &ModelOptions::default()).unwrap();
    let mut options = EngineOptions::default();
    options.config.max_batch_tokens = 256;
    let options = model.settled(&options);
    let bytes = options.kv_bytes.unwrap();
    assert!(bytes > 32 << 20 && bytes < 96 << 20, "{bytes}");
    let engine = model.engine(&options).unwrap();
    // Less is free now, and the plan is that of the engine all the same.
    let plan = model.memory_plan(&options);
    assert_eq!(plan.kv_tokens, 16 * engine.stats().total_blocks as u64);
}

#[test]
fn several_rows_of_a_sequence_are_sampled_as_one_after_the_other() {
    let Some(kernels) = emulated::kernels() else { return };
    let driver = Arc::new(EmulatedDriver::new(kernels, 1 << 30));
    let options = CudaOptions { deterministic: true, ..CudaOptions::default() };
    let card = Arc::new(CudaDevice::over(driver, &options).unwrap());
    let tiny = TinyModel::default();
    let folder = tiny.write();
    let model = Model::open_on(card, folder.path(), &ModelOptions::default()).unwrap();
    let payload = Arc::new(RandomLora { rank: 4, ..RandomLora::default() }.build(model.config()));
    // Prompts that repeat themselves; steps with drafts among recorded ones without.
    let requests: Vec<Request> = (0..4_usize)
        .map(|i| {
            let piece: Vec<TokenId> =
                (0..5).map(|k| TokenId(((i * 31 + k * 7) % (tiny.vocab_size - 2)) as u32)).collect();
            let sampling = match i % 2 {
                0 => SamplingParams::greedy(),
                _ => SamplingParams { temperature: 0.2, seed: Some(5), ..SamplingParams::default() },
            };
            let request = Request::new(piece.repeat(3)).with_sampling(sampling).with_max_tokens(24);
            let request = Request { ignore_eos: true, ..request };
            if i > 1 { request.with_adapter("a") } else { request }
        })
        .collect();
    let asked = |speculation| {
        let mut options = self::options();
        options.config.speculation = speculation;
        let engine = model.engine(&options).unwrap();
        let source = AdapterSource::InProcess { label: "random".to_owned(), payload: payload.clone() };
        engine.load_adapter("a", source, LoadOptions::default()).unwrap();
        let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let choices: Vec<_> = streams.into_iter().map(|s| s.completion_blocking().choices).collect();
        (choices, engine.stats())
    };
    let (without, _) = asked(Speculation::Off);
    let (with, stats) = asked(Speculation::Always);
    assert_eq!(with, without);
    assert!(stats.accepted_tokens > 0, "{stats:?}");
}

/// Texts that count up by one from anywhere: something to learn.
fn counting(vocab: usize) -> Dataset {
    let mut rng = Rng::new(9);
    let examples = (0..12).map(|_| {
        let first = rng.below(vocab - 2);
        let token_ids = (0..24).map(|i| TokenId(((first + i) % (vocab - 2)) as u32)).collect();
        Example { token_ids, loss: (0..24).map(|i| i > 1).collect() }
    });
    Dataset::from_examples(examples.collect()).unwrap()
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl Observer for Losses {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step(metrics) = event {
            self.0.push(metrics.loss);
        }
    }
}

#[test]
fn it_trains_and_serves_what_it_trained() {
    let Some(card) = card() else { return };
    // Heads that tensor cores take, in both directions.
    let tiny = TinyModel { head_dim: 64, ..TinyModel::default() };
    let folder = tiny.write();
    let model = Arc::new(Model::open_on(card, folder.path(), &ModelOptions::default()).unwrap());
    let config = TrainConfig {
        lora: LoraConfig { rank: 4, ..LoraConfig::default() },
        batch_size: BatchSize::Examples(4),
        epochs: 4,
        threads: Some(1),
        optimizer: OptimizerConfig { learning_rate: 1e-2, ..OptimizerConfig::default() },
        ..TrainConfig::default()
    };
    let mut losses = Losses::default();
    let data = counting(tiny.vocab_size);
    let trainer = Trainer::new(model.clone(), config).unwrap();
    let trained = trainer.train_with(&data, None, &mut losses).unwrap();
    assert_eq!(trained.steps(), losses.0.len());
    let (first, last) = (losses.0[0], losses.0[losses.0.len() - 1]);
    assert!(last < first - 0.2, "the loss went from {first} to {last}");
    let engine = model.engine(&options()).unwrap();
    engine.load_adapter("trained", in_process(trained), LoadOptions::default()).unwrap();
    let answer = engine.generate(request(tiny.vocab_size, 8).with_adapter("trained")).unwrap();
    assert_eq!(answer.summary.usage.completion_tokens, 12);
}
