//! Training from end to end on small models: what comes out, how it resumes, and what it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::path::Path;
use std::sync::Arc;

use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use wardrobe::data::{Dataset, Example};
use wardrobe::train::{
    BatchSize, ContextExtension, EarlyStop, Event, LoraConfig, NoObserver, Observer, OptimizerConfig,
    TrainError,
};
use wardrobe::{
    AdapterSource, DType, EngineOptions, Error, LoadOptions, Model, ModelOptions, PeftAdapter, Request,
    SamplingParams, Sharing, TokenId, TrainConfig, TrainInto, Trainer,
};

/// Texts that count up by one from anywhere: something to learn.
fn counting(vocab: usize, num: usize, len: usize) -> Dataset {
    let mut rng = Rng::new(9);
    let examples = (0..num).map(|_| {
        let first = rng.below(vocab - 2);
        let len = len - rng.below(len / 3);
        let token_ids = (0..len).map(|i| TokenId(((first + i) % (vocab - 2)) as u32)).collect();
        Example { token_ids, loss: (0..len).map(|i| i > 1).collect() }
    });
    Dataset::from_examples(examples.collect()).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig {
        lora: LoraConfig { rank: 8, ..LoraConfig::default() },
        batch_size: BatchSize::Examples(6),
        epochs: 4,
        threads: Some(2),
        ..TrainConfig::default()
    }
}

struct Tiny {
    folder: tempfile::TempDir,
    model: Arc<Model>,
    vocab: usize,
}

impl Tiny {
    fn new(model: TinyModel) -> Self {
        let folder = model.write();
        let opened = Model::open(folder.path(), &ModelOptions::default()).unwrap();
        Tiny { folder, model: Arc::new(opened), vocab: model.vocab_size }
    }

    fn trainer(&self, config: TrainConfig) -> Trainer {
        Trainer::new(self.model.clone(), config).unwrap()
    }
}

/// Ends a run after some steps.
struct StopAt {
    step: usize,
    at: usize,
}

impl Observer for StopAt {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step(metrics) = event {
            self.at = metrics.step;
        }
    }

    fn is_cancelled(&self) -> bool {
        self.at == self.step
    }
}

#[derive(Default)]
struct Losses {
    steps: Vec<f64>,
    evals: Vec<(usize, f64)>,
    resumed: Option<usize>,
    stopped_early: bool,
}

impl Observer for Losses {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Step(m) => self.steps.push(m.loss),
            Event::Evaluated { step, loss, .. } => self.evals.push((*step, *loss)),
            Event::Resumed { step } => self.resumed = Some(*step),
            Event::StoppedEarly { .. } => self.stopped_early = true,
            _ => {}
        }
    }
}

#[test]
fn the_loss_goes_down_and_the_adapter_serves_without_touching_the_disk() {
    let tiny = Tiny::new(TinyModel::default());
    let data = counting(tiny.vocab, 60, 40);
    let optimizer = OptimizerConfig { learning_rate: 5e-3, ..OptimizerConfig::default() };
    let config = || TrainConfig { optimizer: optimizer.clone(), ..config() };
    let mut losses = Losses::default();
    let trained = tiny.trainer(config()).train_with(&data, None, &mut losses).unwrap();
    assert_eq!((trained.steps(), losses.steps.len()), (40, 40));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (before, after) = (mean(&losses.steps[..5]), mean(&losses.steps[35..]));
    assert!(after < 0.8 * before, "from {before} to {after}");

    let engine =
        tiny.model.engine(&EngineOptions { kv_bytes: Some(1 << 22), ..EngineOptions::default() }).unwrap();
    let info = engine.train(&tiny.trainer(config()), &data, "counting", LoadOptions::default()).unwrap();
    assert_eq!((info.name.as_str(), info.rank, info.num_modules), ("counting", 8, 14));
    let prompt: Vec<TokenId> = (7..20).map(TokenId).collect();
    let request = Request::new(prompt).with_adapter("counting").with_max_tokens(3);
    assert_eq!(engine.generate(request).unwrap().choices[0].token_ids.len(), 3);
}

/// Logits of a text where training would begin from `adapter`, and those of serving with keys and values in f32.
fn both_logits(
    model: &Model,
    config: TrainConfig,
    adapter: &PeftAdapter,
    tokens: &[TokenId],
) -> [Vec<u32>; 2] {
    let trainer =
        wardrobe::train::Trainer::new(model.device().clone(), model.decoder().clone(), config).unwrap();
    let trainer = trainer.with_start(adapter.clone()).logits(tokens).unwrap();
    let lora = model.fit_adapter(adapter, &as_stored()).unwrap();
    let serving = model.logits(tokens, Some(&lora)).unwrap();
    let serving: Vec<f32> = serving.flatten_all().unwrap().to_vec1().unwrap();
    [trainer, serving].map(|logits| logits.iter().map(|v| v.to_bits()).collect())
}

#[test]
fn training_and_serving_agree_on_every_bit() {
    let tiny = Tiny::new(TinyModel::default());
    let data = counting(tiny.vocab, 30, 50);
    for use_dora in [false, true] {
        let config =
            TrainConfig { lora: LoraConfig { use_dora, rank: 4, ..LoraConfig::default() }, ..config() };
        let trained = tiny.trainer(config.clone()).train(&data).unwrap();
        let tokens: Vec<TokenId> = (3..90).map(TokenId).collect();
        let [trainer, serving] = both_logits(&tiny.model, config, trained.adapter(), &tokens);
        assert!(trainer == serving, "DoRA {use_dora}");
    }
}

#[test]
fn training_and_serving_agree_on_every_bit_of_a_quantised_model() {
    let Some(path) = support::smollm2::path("training_and_serving_agree_on_every_bit_of_a_quantised_model")
    else {
        return;
    };
    let model = Model::open(path, &ModelOptions::default()).unwrap();
    let lora = RandomLora { rank: 16, alpha: 32.0, ..RandomLora::default() };
    let adapter = lora.build(model.config());
    let config = TrainConfig { threads: Some(2), ..TrainConfig::default() };
    let tokens: Vec<TokenId> = (0..300).map(|i| TokenId(i * 101 % 49_000)).collect();
    let [trainer, serving] = both_logits(&model, config, &adapter, &tokens);
    assert!(trainer == serving);
}

fn as_stored() -> wardrobe::LoraOptions {
    wardrobe::LoraOptions { precision: wardrobe::AdapterPrecision::AsStored, ..Default::default() }
}

#[test]
fn the_same_seed_gives_the_same_adapter_on_any_number_of_threads() {
    let tiny = Tiny::new(TinyModel::default());
    let data = counting(tiny.vocab, 20, 40);
    let lora = LoraConfig { rank: 8, dropout: 0.1, ..LoraConfig::default() };
    let run = |threads, seed| {
        let config = TrainConfig { threads: Some(threads), seed, lora: lora.clone(), ..config() };
        tiny.trainer(config).train(&data).unwrap().adapter().digest()
    };
    let one = run(1, 0);
    assert_eq!(one, run(2, 0));
    assert_eq!(one, run(3, 0));
    assert_ne!(one, run(2, 1));
}

#[test]
fn a_stopped_run_goes_on_to_the_same_adapter() {
    let tiny = Tiny::new(TinyModel::default());
    let data = counting(tiny.vocab, 30, 40);
    let lora = LoraConfig { rank: 4, dropout: 0.05, use_dora: true, ..LoraConfig::default() };
    let config = TrainConfig { save_steps: Some(3), lora, ..config() };
    let whole = tiny.trainer(config.clone()).train(&data).unwrap();
    let run = tiny.folder.path().join("run");
    for step in [1, 5, 11] {
        let trainer = tiny.trainer(config.clone()).with_run_folder(&run);
        let error = trainer.train_with(&data, None, &mut StopAt { step, at: 0 }).unwrap_err();
        assert!(
            matches!(&error, Error::Train(e) if matches!(**e, TrainError::Cancelled { step: s } if s == step)),
            "{error}"
        );
    }
    // What a process that died while it wrote leaves behind is swept away.
    std::fs::create_dir(run.join("checkpoints/.step-00000012.new-1-0")).unwrap();
    let mut losses = Losses::default();
    let resumed =
        tiny.trainer(config.clone()).with_run_folder(&run).train_with(&data, None, &mut losses).unwrap();
    assert_eq!(losses.resumed, Some(11));
    assert_eq!(resumed.adapter().digest(), whole.adapter().digest());
    assert_eq!(checkpoints(&run), ["step-00000018", "step-00000020"]);
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>(), "each step once");
    assert!(std::fs::read_to_string(run.join("training.html")).unwrap().contains("<polyline"));
    // A checkpoint is an adapter like any other.
    let last = PeftAdapter::open(&run.join("checkpoints/step-00000020")).unwrap();
    assert_eq!(last.digest(), whole.adapter().digest());

    // Damage is noticed, and the checkpoint before is taken.
    let state = run.join("checkpoints/step-00000020/trainer_state.bin");
    let mut bytes = std::fs::read(&state).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let mut losses = Losses::default();
    let again =
        tiny.trainer(config.clone()).with_run_folder(&run).train_with(&data, None, &mut losses).unwrap();
    assert_eq!((losses.resumed, losses.steps.len()), (Some(18), 2));
    assert_eq!(again.adapter().digest(), whole.adapter().digest());

    // Another run does not go on from this one.
    let other = TrainConfig { seed: 1, ..config };
    let error = tiny.trainer(other).with_run_folder(&run).train(&data).unwrap_err().to_string();
    assert!(error.contains("config.seed differs"), "{error}");
}

fn checkpoints(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn evaluation_keeps_the_best_and_stops_early() {
    let tiny = Tiny::new(TinyModel::default());
    let train = counting(tiny.vocab, 12, 40);
    // What counts by two gets worse the better the other is learnt.
    let examples = (0..8).map(|i| Example {
        token_ids: (0..30).map(|t| TokenId((i * 11 + 2 * t) % 300)).collect(),
        loss: (0..30).map(|t| t > 1).collect(),
    });
    let eval = Dataset::from_examples(examples.collect()).unwrap();
    let config = TrainConfig {
        epochs: 60,
        eval_steps: Some(2),
        early_stop: Some(EarlyStop { patience: 3, min_delta: 0.0 }),
        n_checkpoints: 1,
        save_total_limit: 1,
        ..config()
    };
    let run = tiny.folder.path().join("run");
    let mut losses = Losses::default();
    let trainer = tiny.trainer(config.clone()).with_run_folder(&run);
    let trained = trainer.train_with(&train, Some(&eval), &mut losses).unwrap();
    assert!(losses.stopped_early && trained.steps() < 120, "{:?}", losses.evals);
    let best = losses.evals.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(trained.best_eval(), Some(*best));
    assert_eq!(losses.evals.last().unwrap().0, best.0 + 6, "three evaluations after the best");
    // The adapter is the best one's, and its checkpoint is kept beside the newest.
    let kept = PeftAdapter::open(&run.join(format!("checkpoints/step-{:08}", best.0))).unwrap();
    assert_eq!(kept.digest(), trained.adapter().digest());
    assert!(checkpoints(&run).len() <= 2);
    // Without a folder the same.
    let again = tiny.trainer(config).train_with(&train, Some(&eval), &mut NoObserver).unwrap();
    assert_eq!(again.adapter().digest(), trained.adapter().digest());
}

#[test]
fn a_longer_context_brings_its_positions() {
    let tiny = Tiny::new(TinyModel { max_position_embeddings: 64, ..TinyModel::default() });
    let data = counting(tiny.vocab, 6, 150);
    let config = TrainConfig { epochs: 1, ..config() };
    let refused = tiny.trainer(config.clone()).train(&data).unwrap_err().to_string();
    assert!(refused.contains("exceed the base model's 64"), "{refused}");
    for extension in [ContextExtension::Linear, ContextExtension::Llama3, ContextExtension::Yarn] {
        let config =
            TrainConfig { context_extension: Some(extension), context_tokens: Some(256), ..config.clone() };
        let trained = tiny.trainer(config.clone()).train(&data).unwrap();
        assert_eq!(trained.adapter().rope().unwrap().max_position_embeddings, 256);
        let dir = tiny.folder.path().join("extended");
        trained.save(&dir, true).unwrap();
        let read = PeftAdapter::open(&dir).unwrap();
        assert_eq!(read.digest(), trained.adapter().digest());
        let tokens: Vec<TokenId> = (0..200).map(|i| TokenId(i % 300)).collect();
        let trainer =
            wardrobe::train::Trainer::new(tiny.model.device().clone(), tiny.model.decoder().clone(), config)
                .unwrap()
                .with_start(read.clone());
        let lora = tiny.model.fit_adapter(&read, &as_stored()).unwrap();
        let engine: Vec<f32> =
            tiny.model.logits(&tokens, Some(&lora)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(trainer.logits(&tokens).unwrap(), engine, "{extension:?}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let tiny = Tiny::new(TinyModel::default());
    let data = counting(tiny.vocab, 6, 40);
    let refused = |config: TrainConfig, data: &Dataset| match Trainer::new(tiny.model.clone(), config) {
        Ok(trainer) => trainer.train(data).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    let lora = |lora: LoraConfig| TrainConfig { lora, ..config() };
    let cases = [
        (
            lora(LoraConfig { target_modules: vec!["qkv".into()], ..LoraConfig::default() }),
            "qkv match no layer",
        ),
        (lora(LoraConfig { rank: 0, ..LoraConfig::default() }), "rank: 0"),
        (lora(LoraConfig { rank: 100, ..LoraConfig::default() }), "rank: 100 exceeds the layer"),
        (lora(LoraConfig { dropout: 1.0, ..LoraConfig::default() }), "dropout"),
        (TrainConfig { memory_limit_bytes: Some(1 << 20), ..config() }, "1048576 are allowed"),
        (TrainConfig { context_tokens: Some(8), ..config() }, "the context is 8"),
        (TrainConfig { epochs: 0, ..config() }, "epochs"),
    ];
    for (config, wanted) in cases {
        let error = refused(config, &data);
        assert!(error.contains(wanted), "{error}");
    }
    let foreign = Example { token_ids: vec![TokenId(1), TokenId(9999)], loss: vec![false, true] };
    let foreign = Dataset::from_examples(vec![foreign]).unwrap();
    assert!(refused(config(), &foreign).contains("another model's tokenizer"));
    let blown_up = TrainConfig {
        optimizer: wardrobe::train::OptimizerConfig {
            learning_rate: 10.0,
            max_grad_norm: None,
            ..Default::default()
        },
        epochs: 200,
        ..config()
    };
    let error = Trainer::new(tiny.model.clone(), blown_up).unwrap().train(&data);
    if let Err(error) = error {
        assert!(error.to_string().contains("not a finite number"), "{error}");
    }
}

#[test]
fn training_beside_an_engine_disturbs_no_answer() {
    let tiny = Tiny::new(TinyModel::default());
    let data = counting(tiny.vocab, 30, 40);
    let engine = tiny
        .model
        .engine(&EngineOptions {
            kv_bytes: Some(1 << 22),
            kv_dtype: Some(DType::F32),
            ..EngineOptions::default()
        })
        .unwrap();
    let request = |seed: u64| {
        let prompt: Vec<TokenId> = (0..20).map(|i| TokenId((seed as u32 * 7 + i) % 300)).collect();
        Request::new(prompt)
            .with_max_tokens(30)
            .with_sampling(SamplingParams { temperature: 0.0, ..Default::default() })
    };
    let alone: Vec<_> =
        (0..20).map(|s| engine.generate(request(s)).unwrap().choices[0].token_ids.clone()).collect();
    for sharing in [Sharing::ServingFirst, Sharing::Part(0.5)] {
        let trainer = tiny.trainer(config()).beside(&engine, sharing);
        std::thread::scope(|scope| {
            let training = scope.spawn(|| trainer.train(&data).unwrap());
            for (seed, alone) in alone.iter().enumerate() {
                assert_eq!(&engine.generate(request(seed as u64)).unwrap().choices[0].token_ids, alone);
            }
            let trained = training.join().unwrap();
            assert_eq!(
                trained.adapter().digest(),
                tiny.trainer(config()).train(&data).unwrap().adapter().digest()
            );
        });
    }
}

#[test]
fn a_trained_adapter_is_held_against_its_record() {
    let tiny = Tiny::new(TinyModel::default());
    let data = counting(tiny.vocab, 20, 40);
    let trained = tiny.trainer(config()).train(&data).unwrap();
    let dir = tiny.folder.path().join("tuned");
    trained.save(&dir, false).unwrap();
    let read = PeftAdapter::open(&dir).unwrap();
    let record = read.parity().expect("a trainer writes a record");
    assert_eq!(Some(record), trained.adapter().parity());
    assert_eq!(record.base_digest, tiny.model.decoder().content_digest());
    let canary = &record.canaries[0];
    assert!(!canary.token_ids.is_empty() && canary.log_probs.iter().all(|p| p.is_finite() && *p <= 0.0));

    let load = |model: &Model| {
        let options = EngineOptions { kv_bytes: Some(1 << 22), ..EngineOptions::default() };
        let engine = model.engine(&options).unwrap();
        engine.load_adapter("tuned", AdapterSource::Path(dir.clone()), LoadOptions::default()).map(|_| ())
    };
    load(&tiny.model).unwrap();
    // Another base of the same shape.
    let other = Tiny::new(TinyModel { seed: 2, ..TinyModel::default() });
    let error = load(&other.model).unwrap_err().to_string();
    assert!(error.contains("does not behave as it did in training"), "{error}");
    // A log-probability that was not measured.
    let path = dir.join("wardrobe.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    let mut wrong: serde_json::Value = serde_json::from_str(&whole).unwrap();
    wrong["parity"]["canaries"][0]["log_probs"][0] = serde_json::json!(-9.5);
    std::fs::write(&path, wrong.to_string()).unwrap();
    let error = load(&tiny.model).unwrap_err().to_string();
    assert!(error.contains("does not behave as it did in training"), "{error}");
    std::fs::write(&path, &whole).unwrap();
    // Other tensors than were trained.
    let weights = dir.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = load(&tiny.model).unwrap_err().to_string();
    assert!(error.contains("parity record"), "{error}");
}
