//! Adapters on a real decoder: bad ones are refused with the reason and leave nothing behind, every kind gives the
//! logits of the merged weights, and names come and go under running requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::path::Path;

use support::lora::{self, RandomLora};
use support::random::Rng;
use support::reference::{Reference, log_softmax};
use support::tiny::TinyModel;
use support::{answer, assert_nothing_is_held};
use tempfile::TempDir;
use wardrobe::{
    AdapterConfig, AdapterError, AdapterSource, DType, Engine, EngineConfig, EngineOptions, Event, Finish,
    LoadOptions, LoraOptions, Model, ModelConfig, ModelOptions, Request, SamplingParams, Speculation,
    SubmitError, TokenId, adapter_source, adapter_tensors,
};
use wardrobe_formats::peft::{CONFIG_FILE, LoraModule, PeftContents, SavedModule, WEIGHTS_FILE};
use wardrobe_formats::{PeftAdapter, StorageType};

/// The largest rank that these engines take.
const MAX_RANK: usize = 8;

fn tiny() -> (TempDir, Model) {
    let folder = TinyModel::default().write();
    let model = Model::open(folder.path(), &ModelOptions::default()).unwrap();
    (folder, model)
}

fn engine(model: &Model, lora: LoraOptions) -> Engine {
    let options = EngineOptions {
        kv_bytes: Some(16 << 20),
        kv_dtype: Some(DType::F32),
        num_slots: 3,
        lora,
        // Answers of a small model repeat themselves, and are to be under way for a while.
        config: EngineConfig { speculation: Speculation::Off, ..EngineConfig::default() },
        ..EngineOptions::default()
    };
    model.engine(&options).unwrap()
}

fn limits() -> LoraOptions {
    LoraOptions { max_rank: MAX_RANK, ..LoraOptions::default() }
}

fn load(engine: &Engine, name: &str, dir: &Path) -> Result<wardrobe::AdapterInfo, AdapterError> {
    let options = LoadOptions { replace: true, ..LoadOptions::default() };
    engine.load_adapter(name, AdapterSource::Path(dir.to_owned()), options)
}

fn prompt(len: usize) -> Vec<TokenId> {
    Rng::new(3).tokens(len, 320)
}

fn greedy(adapter: Option<&str>, prompt: Vec<TokenId>, max_tokens: usize) -> Request {
    Request {
        adapter: adapter.map(str::to_owned),
        ignore_eos: true,
        ..Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(max_tokens)
    }
}

/// Writes a bad adapter into a folder.
type Spoil = fn(&ModelConfig, &Path);

fn good(model: &ModelConfig, dir: &Path) {
    RandomLora::default().write(model, dir);
}

/// Overwrites the last element, which belongs to a factor.
fn spoil_last_element(dir: &Path, value: f32) {
    let file = dir.join(WEIGHTS_FILE);
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}

fn write_with(dir: &Path, config: &AdapterConfig, modules: &[LoraModule], saved: &[SavedModule]) {
    let contents =
        PeftContents { config, modules, embeddings: &[], saved, rope: None, parity: None, extra_files: &[] };
    wardrobe_formats::peft::write_peft(dir, &contents, true).unwrap();
}

/// What is wrong, how to make it, and what the reason must name.
const BAD: &[(&str, Spoil, &[&str])] = &[
    (
        "another model's",
        |model, dir| good(&ModelConfig { hidden_size: 32, ..model.clone() }, dir),
        &["another model", "down_proj", "[32, 4]", "[64, 4]"],
    ),
    (
        "a deeper model's",
        |model, dir| good(&ModelConfig { num_layers: 3, ..model.clone() }, dir),
        &["model.layers.2", "does not exist"],
    ),
    (
        "NaN",
        |model, dir| {
            good(model, dir);
            spoil_last_element(dir, f32::NAN);
        },
        &["lora_", "NaN"],
    ),
    (
        "infinite",
        |model, dir| {
            good(model, dir);
            spoil_last_element(dir, f32::INFINITY);
        },
        &["lora_", "infinite"],
    ),
    (
        "rank over the limit",
        |model, dir| RandomLora { rank: MAX_RANK + 1, ..RandomLora::default() }.write(model, dir),
        &["rank", "9", "8"],
    ),
    (
        "rank over the limit in one module",
        |model, dir| {
            let rank_pattern = vec![("layers.1.mlp.up_proj".to_owned(), MAX_RANK + 1)];
            RandomLora { rank_pattern, ..RandomLora::default() }.write(model, dir);
        },
        &["model.layers.1.mlp.up_proj", "9", "8"],
    ),
    (
        "unknown module",
        |model, dir| {
            let mut modules = RandomLora::default().modules(model);
            modules[0].module_path = "model.layers.0.self_attn.rotary_proj".to_owned();
            let mut config = RandomLora::default().config();
            config.target_modules = wardrobe_formats::peft::ModuleSelector::Regex(".*_proj".to_owned());
            lora::write(&config, &modules, dir);
        },
        &["model.layers.0.self_attn.rotary_proj", "does not exist"],
    ),
    (
        "a layer missing",
        |model, dir| {
            let kind = RandomLora::default();
            let mut modules = kind.modules(model);
            modules.retain(|m| !m.module_path.contains("layers.1."));
            lora::write(&kind.config(), &modules, dir);
        },
        &["model.layers.1.self_attn.q_proj.lora_A.weight", "missing"],
    ),
    (
        "one module of all",
        |model, dir| {
            let kind = RandomLora::default();
            lora::write(&kind.config(), &kind.modules(model)[..1], dir);
        },
        &["model.layers.0.self_attn.k_proj.lora_A.weight", "missing"],
    ),
    (
        "module that is not targeted",
        |model, dir| {
            let kind = RandomLora::default();
            let config = RandomLora { targets: vec!["q_proj", "v_proj"], ..kind.clone() }.config();
            lora::write(&config, &kind.modules(model), dir);
        },
        &["does not target"],
    ),
    (
        "all of B zero",
        |model, dir| RandomLora { strength: 0.0, ..RandomLora::default() }.write(model, dir),
        &["zero"],
    ),
    (
        "truncated",
        |model, dir| {
            good(model, dir);
            let file = dir.join(WEIGHTS_FILE);
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
        },
        &[WEIGHTS_FILE],
    ),
    (
        "truncated within the header",
        |model, dir| {
            good(model, dir);
            let file = dir.join(WEIGHTS_FILE);
            std::fs::write(&file, &std::fs::read(&file).unwrap()[..50]).unwrap();
        },
        &[WEIGHTS_FILE],
    ),
    (
        "modules_to_save",
        |model, dir| {
            let kind = RandomLora::default();
            let config = AdapterConfig { modules_to_save: vec!["lm_head".to_owned()], ..kind.config() };
            let shape = vec![model.vocab_size, model.hidden_size];
            let values = vec![0.5; model.vocab_size * model.hidden_size];
            let saved = SavedModule {
                module_path: "lm_head".to_owned(),
                parameter: "weight".to_owned(),
                is_base_layer: false,
                tensor: lora::tensor(StorageType::F32, shape, &values),
            };
            write_with(dir, &config, &kind.modules(model), &[saved]);
        },
        &["lm_head.weight", "modules_to_save"],
    ),
    (
        "magnitudes without DoRA",
        |model, dir| {
            let kind = RandomLora { use_dora: true, ..RandomLora::default() };
            lora::write(&AdapterConfig { use_dora: false, ..kind.config() }, &kind.modules(model), dir);
        },
        &["lora_magnitude_vector", "use_dora"],
    ),
    (
        "DoRA without magnitudes",
        |model, dir| {
            let kind = RandomLora::default();
            lora::write(&AdapterConfig { use_dora: true, ..kind.config() }, &kind.modules(model), dir);
        },
        &["lora_magnitude_vector"],
    ),
    (
        "configuration that is no JSON",
        |model, dir| {
            good(model, dir);
            std::fs::write(dir.join(CONFIG_FILE), "{\"r\": 4,").unwrap();
        },
        &[CONFIG_FILE],
    ),
    (
        "option that is not supported",
        |model, dir| {
            good(model, dir);
            let text = std::fs::read_to_string(dir.join(CONFIG_FILE)).unwrap();
            let text = text.replacen('{', "{\"use_bdlora\": true,", 1);
            std::fs::write(dir.join(CONFIG_FILE), text).unwrap();
        },
        &["use_bdlora"],
    ),
    (
        "pickled",
        |model, dir| {
            good(model, dir);
            std::fs::rename(dir.join(WEIGHTS_FILE), dir.join("adapter_model.bin")).unwrap();
        },
        &["adapter_model.bin"],
    ),
];

#[test]
fn bad_adapters_are_refused_with_the_reason_and_leave_nothing_behind() {
    let (_folder, model) = tiny();
    let engine = engine(&model, limits());
    let adapters = tempfile::tempdir().unwrap();
    let good_dir = adapters.path().join("good");
    good(model.config(), &good_dir);
    let info = load(&engine, "kept", &good_dir).unwrap();
    let before = answer(&engine, greedy(Some("kept"), prompt(40), 12)).choices;

    for (i, (what, spoil, named)) in BAD.iter().enumerate() {
        let dir = adapters.path().join(i.to_string());
        spoil(model.config(), &dir);
        for name in ["new", "kept"] {
            let error = load(&engine, name, &dir).unwrap_err();
            let AdapterError::Refused { reason } = &error else { panic!("{what}: {error}") };
            for part in *named {
                assert!(reason.contains(part), "{what}: the reason does not name {part}: {reason}");
            }
            assert!(reason.contains(&*dir.to_string_lossy()), "{what}: no path in {reason}");
        }
        let request = greedy(Some("new"), prompt(4), 1);
        let refused = engine.submit(request).err();
        assert_eq!(refused, Some(SubmitError::UnknownAdapter { name: "new".to_owned() }), "{what}");
    }
    let missing = load(&engine, "new", &adapters.path().join("nowhere")).unwrap_err();
    assert!(matches!(missing, AdapterError::SourceNotFound { .. }), "{missing}");

    // The name that was there is as it was: one generation, one answer, the bytes of one adapter.
    let [kept] = engine.adapters().try_into().unwrap();
    assert_eq!(
        (kept.generation, kept.digest, kept.host_bytes),
        (info.generation, info.digest, info.host_bytes)
    );
    assert_eq!(answer(&engine, greedy(Some("kept"), prompt(40), 12)).choices, before);
    assert_nothing_is_held(&engine);
}

#[test]
fn an_adapter_without_effect_is_served_where_that_is_allowed() {
    let (_folder, model) = tiny();
    let engine = engine(&model, LoraOptions { allow_noop: true, ..limits() });
    let adapter = RandomLora { strength: 0.0, ..RandomLora::default() }.build(model.config());
    engine.load_adapter("noop", adapter_source(adapter), LoadOptions::default()).unwrap();
    let base = answer(&engine, greedy(None, prompt(20), 16)).choices;
    assert_eq!(answer(&engine, greedy(Some("noop"), prompt(20), 16)).choices, base);
}

/// Finite factors whose products are not: the request says so, sampled or scored, and the others go on.
#[test]
fn an_adapter_that_overflows_fails_its_requests_alone() {
    let (_folder, model) = tiny();
    let engine = engine(&model, limits());
    let base = answer(&engine, greedy(None, prompt(20), 16)).choices;
    let adapter = RandomLora { strength: 1e36, ..RandomLora::default() }.build(model.config());
    engine.load_adapter("huge", adapter_source(adapter), LoadOptions::default()).unwrap();
    let sampled = greedy(Some("huge"), prompt(20), 16);
    let scored = Request { prompt_logprobs: Some(0), max_tokens: Some(0), ..sampled.clone() };
    for request in [sampled, scored] {
        let completion = engine.generate(request).unwrap();
        let finish = completion.choices[0].finish.clone().unwrap();
        assert!(
            matches!(&finish, Finish::Error { message } if message.contains("not a number")),
            "{finish:?}"
        );
    }
    assert_eq!(answer(&engine, greedy(None, prompt(20), 16)).choices, base);
    assert_nothing_is_held(&engine);
}

#[test]
fn a_payload_that_is_no_adapter_is_refused() {
    let (_folder, model) = tiny();
    let engine = engine(&model, limits());
    let source =
        AdapterSource::InProcess { label: "a number".to_owned(), payload: std::sync::Arc::new(7u32) };
    let error = engine.load_adapter("a", source, LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("a number"), "{error}");
}

/// Every kind that is served.
fn kinds() -> Vec<(&'static str, RandomLora)> {
    let plain = RandomLora::default();
    let pattern = vec![("q_proj".to_owned(), 7), ("layers.1.mlp.down_proj".to_owned(), 1)];
    let alphas = vec![("v_proj".to_owned(), 3.0), ("layers.0.mlp.up_proj".to_owned(), 20.0)];
    vec![
        ("plain", plain.clone()),
        ("rank 1", RandomLora { rank: 1, seed: 2, ..plain.clone() }),
        ("one module kind", RandomLora { targets: vec!["v_proj"], strength: 1.5, seed: 3, ..plain.clone() }),
        ("rsLoRA", RandomLora { use_rslora: true, seed: 4, ..plain.clone() }),
        ("DoRA", RandomLora { use_dora: true, seed: 5, ..plain.clone() }),
        ("DoRA with rsLoRA", RandomLora { use_dora: true, use_rslora: true, seed: 6, ..plain.clone() }),
        ("patterns", RandomLora { rank_pattern: pattern, alpha_pattern: alphas, seed: 7, ..plain.clone() }),
        ("F16", RandomLora { storage: StorageType::F16, seed: 8, ..plain.clone() }),
        ("BF16 with DoRA", RandomLora { storage: StorageType::BF16, use_dora: true, seed: 9, ..plain }),
    ]
}

/// Prompt log-probabilities of a text.
fn logprobs(engine: &Engine, adapter: Option<&str>, scale: f32, text: &[TokenId]) -> Vec<f32> {
    let request = Request {
        adapter_scale: scale,
        prompt_logprobs: Some(0),
        max_tokens: Some(0),
        ..greedy(adapter, text.to_vec(), 0)
    };
    answer(engine, request).prompt_logprobs.unwrap().into_iter().flatten().map(|row| row.logprob).collect()
}

/// The largest difference to the reference's log-probabilities of the same text.
fn difference(got: &[f32], reference: &Reference, text: &[TokenId]) -> f64 {
    let logits = reference.logits(&[text.to_vec()]).remove(0);
    assert_eq!(got.len(), text.len() - 1);
    let wanted = text.iter().skip(1).zip(&logits).map(|(token, row)| log_softmax(row)[token.0 as usize]);
    got.iter().zip(wanted).map(|(got, wanted)| (f64::from(*got) - wanted).abs()).fold(0.0, f64::max)
}

#[test]
fn every_kind_gives_the_logits_of_the_merged_weights() {
    let (folder, model) = tiny();
    let base = Reference::open(folder.path());
    let text = prompt(50);
    let engine = engine(&model, limits());
    let folders = tempfile::tempdir().unwrap();
    let of_base = logprobs(&engine, None, 1.0, &text);
    for (name, kind) in kinds() {
        let adapter = kind.build(model.config());
        let reference = base.merged(&adapter);
        // From a folder, and handed over in process.
        let dir = folders.path().join(name);
        kind.write(model.config(), &dir);
        let from_disk = load(&engine, name, &dir).unwrap();
        assert_eq!(from_disk.digest, *adapter.digest().as_bytes(), "{name}");
        let got = logprobs(&engine, Some(name), 1.0, &text);
        let off = difference(&got, &reference, &text);
        assert!(off <= 1e-3, "{name}: differs from the merged weights by {off}");
        let moved = got.iter().zip(&of_base).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 0.1, "{name} moves log-probabilities by {moved} only");
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        engine.load_adapter(name, adapter_source(adapter), options).unwrap();
        assert_eq!(logprobs(&engine, Some(name), 1.0, &text), got, "{name}: in process as from disk");
    }
    // More adapters than slots: they take turns.
    assert!(engine.adapters().len() > engine.limits().num_slots);
    assert_nothing_is_held(&engine);
}

#[test]
fn a_request_can_scale_its_adapter() {
    let (folder, model) = tiny();
    let base = Reference::open(folder.path());
    let text = prompt(30);
    let engine = engine(&model, limits());
    let kind = RandomLora::default();
    engine.load_adapter("a", adapter_source(kind.build(model.config())), LoadOptions::default()).unwrap();
    for scale in [0.5f32, 2.0, -1.0] {
        let mut adapter = kind.modules(model.config());
        adapter.iter_mut().for_each(|m| {
            let scaled: Vec<f32> = m.b.to_f32().unwrap().iter().map(|v| v * scale).collect();
            m.b = lora::tensor(StorageType::F32, m.b.shape().to_vec(), &scaled);
        });
        let config = kind.config();
        let contents = PeftContents {
            config: &config,
            modules: &adapter,
            embeddings: &[],
            saved: &[],
            rope: None,
            parity: None,
            extra_files: &[],
        };
        let scaled = PeftAdapter::from_contents("scaled", &contents, &Default::default()).unwrap();
        let off = difference(&logprobs(&engine, Some("a"), scale, &text), &base.merged(&scaled), &text);
        assert!(off <= 1e-3, "scale {scale}: {off}");
    }
}

#[test]
fn weights_taken_out_as_candle_tensors_and_put_in_again_are_the_same_adapter() {
    let (_folder, model) = tiny();
    let engine = engine(&model, limits());
    let kind = RandomLora { use_dora: true, storage: StorageType::BF16, ..RandomLora::default() };
    let adapter = kind.build(model.config());
    let again =
        wardrobe::adapter_from_tensors("again", &kind.config(), adapter_tensors(&adapter).unwrap()).unwrap();
    let loaded = |name, adapter| {
        engine.load_adapter(name, adapter_source(adapter), LoadOptions::default()).unwrap().digest
    };
    assert_eq!(loaded("first", adapter), loaded("again", again));
}

/// Starts a long answer and reads its beginning.
fn start(engine: &Engine, request: Request) -> (wardrobe::ResponseStream, String) {
    let mut stream = engine.submit(request).unwrap();
    match stream.next() {
        Some(Event::Update(update)) => {
            assert_eq!(update.finish, None, "the answer is too short for this test");
            (stream, update.text)
        }
        other => panic!("{other:?}"),
    }
}

/// The rest of its text.
fn rest(stream: wardrobe::ResponseStream) -> String {
    let mut text = String::new();
    for event in stream {
        if let Event::Update(update) = event {
            text.push_str(&update.text);
            assert!(matches!(update.finish, None | Some(Finish::Length)), "{:?}", update.finish);
        }
    }
    text
}

#[test]
fn running_requests_finish_on_an_adapter_that_is_replaced_or_unloaded() {
    let (_folder, model) = tiny();
    let engine = engine(&model, limits());
    let kind = |seed| adapter_source(RandomLora { seed, ..RandomLora::default() }.build(model.config()));
    let options = LoadOptions { replace: true, ..LoadOptions::default() };
    let request = || greedy(Some("a"), prompt(10), 400);

    let first = engine.load_adapter("a", kind(1), options).unwrap();
    let of_first = answer(&engine, request()).choices[0].text.clone();
    let (stream, mut begun) = start(&engine, request());
    let second = engine.load_adapter("a", kind(2), options).unwrap();
    assert!(second.generation > first.generation);
    let of_second = answer(&engine, request());
    assert_eq!(of_second.summary.generation, Some(second.generation));
    begun.push_str(&rest(stream));
    assert_eq!(begun, of_first);
    assert_ne!(of_second.choices[0].text, of_first);

    let (stream, mut begun) = start(&engine, request());
    engine.unload_adapter("a", None).unwrap();
    assert!(engine.adapters().is_empty());
    let unknown = SubmitError::UnknownAdapter { name: "a".to_owned() };
    assert_eq!(engine.submit(request()).err(), Some(unknown));
    let twice = engine.unload_adapter("a", None).unwrap_err();
    assert_eq!(twice, AdapterError::NotLoaded { name: "a".to_owned() });
    begun.push_str(&rest(stream));
    assert_eq!(begun, of_second.choices[0].text);
    assert_nothing_is_held(&engine);
}

#[test]
fn a_cached_prefix_is_never_used_by_another_generation() {
    let (_folder, model) = tiny();
    let engine = engine(&model, limits());
    let kind = |seed| adapter_source(RandomLora { seed, ..RandomLora::default() }.build(model.config()));
    let options = LoadOptions { replace: true, ..LoadOptions::default() };
    let ask = || {
        let completion = answer(&engine, greedy(Some("a"), prompt(64), 16));
        (completion.summary.usage.cached_tokens, completion.choices[0].token_ids.clone())
    };
    engine.load_adapter("a", kind(1), options).unwrap();
    let (none, of_first) = ask();
    assert_eq!((none, ask()), (0, (48, of_first.clone())));
    engine.load_adapter("a", kind(2), options).unwrap();
    let (none, of_second) = ask();
    assert_eq!((none, ask()), (0, (48, of_second.clone())));
    assert_ne!(of_first, of_second);
    // The first content again is another generation, but its keys and values are still right.
    engine.load_adapter("a", kind(1), options).unwrap();
    assert_eq!(ask(), (48, of_first));
}
