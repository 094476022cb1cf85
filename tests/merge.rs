//! Merged models: they answer as base and adapter together do, in both formats and by an independent reference; what the
//! adapter does not change is copied bit for bit; what cannot be merged is refused by name and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
mod support;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::lora::{self, RandomLora};
use support::random::Rng;
use support::reference::{Reference, log_softmax};
use support::smollm2;
use support::tiny::TinyModel;
use tempfile::TempDir;
use wardrobe::{
    AdapterConfig, LoraOptions, MergeDtype, MergeFormat, MergeOptions, MergeReport, Message, Model,
    ModelOptions, PeftAdapter, TokenId, merge,
};
use wardrobe_formats::peft::{AdapterRope, LoraModule};
use wardrobe_formats::{ModelFiles, RopeScaling, StorageType};

/// Of log-probabilities, between f32 models.
const TOLERANCE: f64 = 1e-4;

fn text(len: usize) -> Vec<TokenId> {
    Rng::new(7).tokens(len, 320)
}

fn open(path: &Path) -> Model {
    Model::open(path, &ModelOptions::default()).unwrap()
}

fn logprobs(model: &Model, adapter: Option<&PeftAdapter>, tokens: &[TokenId]) -> Vec<Vec<f64>> {
    let adapter = adapter.map(|adapter| model.fit_adapter(adapter, &LoraOptions::default()).unwrap());
    let rows = model.logits(tokens, adapter.as_ref()).unwrap().to_vec2::<f32>().unwrap();
    rows.iter().map(|row| log_softmax(row)).collect()
}

fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let values = |rows: &[Vec<f64>]| rows.iter().flatten().copied().collect::<Vec<f64>>();
    values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Merges into `folder/name`, and leaves nothing else behind.
fn merge_into(
    base: &Path,
    adapter: &PeftAdapter,
    folder: &TempDir,
    name: &str,
    options: &MergeOptions,
) -> (PathBuf, MergeReport) {
    let before = names(folder.path());
    let output = folder.path().join(name);
    let report = merge(base, adapter, &output, options, &|_, _| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
    let new: Vec<String> = names(folder.path()).into_iter().filter(|n| !before.contains(n)).collect();
    assert!(new.iter().all(|n| n == name), "{new:?}");
    (output, report)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn kinds() -> Vec<(&'static str, RandomLora)> {
    let plain = RandomLora::default;
    vec![
        ("all layers", plain()),
        ("rsLoRA", RandomLora { use_rslora: true, rank: 6, ..plain() }),
        ("DoRA", RandomLora { use_dora: true, ..plain() }),
        (
            "patterns",
            RandomLora {
                rank_pattern: vec![("q_proj".to_owned(), 7), ("layers.1.mlp.up_proj".to_owned(), 2)],
                alpha_pattern: vec![("k_proj".to_owned(), 32.0)],
                ..plain()
            },
        ),
        (
            "some layers, f16",
            RandomLora { targets: vec!["q_proj", "down_proj"], storage: StorageType::F16, ..plain() },
        ),
    ]
}

/// An adapter in a folder, as the command reads it.
fn written(kind: &RandomLora, model: &Model) -> (TempDir, PeftAdapter) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tuned");
    kind.write(model.config(), &path);
    let adapter = PeftAdapter::open(&path).unwrap();
    (dir, adapter)
}

#[test]
fn merged_models_answer_as_base_and_adapter_do() {
    let tokens = text(40);
    for (shape, tiny) in [
        ("tied", TinyModel::default()),
        ("own head", TinyModel { tied: false, seed: 4, ..TinyModel::default() }),
    ] {
        let base = tiny.write();
        let model = open(base.path());
        let reference = Reference::open(base.path());
        for (kind, lora) in kinds() {
            let (_dir, adapter) = written(&lora, &model);
            let expected = logprobs(&model, Some(&adapter), &tokens);
            assert!(
                difference(&expected, &logprobs(&model, None, &tokens)) > 0.1,
                "{kind} changes something"
            );
            let independent = reference.merged(&adapter).logits(std::slice::from_ref(&tokens));
            let independent: Vec<Vec<f64>> = independent[0].iter().map(|row| log_softmax(row)).collect();
            let out = tempfile::tempdir().unwrap();
            for name in ["folder", "model.gguf"] {
                let (path, report) = merge_into(base.path(), &adapter, &out, name, &MergeOptions::default());
                assert_eq!(report.merged.len(), adapter.modules().len());
                assert!(report.merged.iter().all(|w| w.rounding == 0.0 && w.change > 0.01), "{kind}");
                let merged = open(&path);
                let found = logprobs(&merged, None, &tokens);
                let (ours, theirs) = (difference(&found, &expected), difference(&found, &independent));
                assert!(ours < TOLERANCE && theirs < TOLERANCE, "{shape}, {kind}, {name}: {ours} {theirs}");
                assert_eq!(merged.config().tie_word_embeddings, tiny.tied);
                assert_eq!(merged.config().eos_token_ids, model.config().eos_token_ids);
                same_text(&merged, &model);
            }
        }
    }
}

/// The same ids for the same words, and the same prompts.
fn same_text(a: &Model, b: &Model) {
    let words = "Zwölf Boxkämpfer, <|im_start|>user 2026  \n\t zip<|im_end|>";
    for special in [false, true] {
        let encode = |model: &Model| model.tokenizer().encode(words, special).unwrap();
        assert_eq!(encode(a), encode(b));
    }
    let message = [Message::text("user", "name it")];
    assert_eq!(a.chat_prompt(&message).unwrap(), b.chat_prompt(&message).unwrap());
    assert_eq!(a.tokenizer().eos(), b.tokenizer().eos());
}

/// A folder becomes a GGUF file and that a folder, each time with one more adapter.
#[test]
fn merges_go_on_from_either_format() {
    let tokens = text(30);
    for storage in [StorageType::F32, StorageType::BF16] {
        let base = TinyModel { storage, tied: false, ..TinyModel::default() }.write();
        let model = open(base.path());
        let (_one, first) = written(&RandomLora::default(), &model);
        let (_two, second) = written(&RandomLora { seed: 9, ..RandomLora::default() }, &model);
        let out = tempfile::tempdir().unwrap();
        let options = MergeOptions { dtype: MergeDtype::F32, ..MergeOptions::default() };
        let (gguf, _) = merge_into(base.path(), &first, &out, "one.gguf", &options);
        // Of F32 matrices alone, so F32 without being asked.
        let (folder, report) = merge_into(&gguf, &second, &out, "two", &MergeOptions::default());
        assert!(report.merged.iter().all(|w| w.storage == StorageType::F32), "{:?}", report.notes);
        let expected =
            Reference::open(base.path()).merged(&first).merged(&second).logits(std::slice::from_ref(&tokens));
        let expected: Vec<Vec<f64>> = expected[0].iter().map(|row| log_softmax(row)).collect();
        let merged = open(&folder);
        let off = difference(&logprobs(&merged, None, &tokens), &expected);
        assert!(off < TOLERANCE, "{storage}: {off}");
        same_text(&merged, &model);
        let config = |path: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap()
        };
        let (own, found) = (config(base.path()), config(&folder));
        for key in ["hidden_size", "num_key_value_heads", "rope_theta", "eos_token_id", "model_type"] {
            assert_eq!(own[key], found[key], "{key}");
        }
        assert_eq!(found["torch_dtype"], "float32");
    }
}

/// An adapter of the head unties it from the embedding, which stays.
#[test]
fn an_adapted_head_is_one_of_its_own() {
    let tokens = text(30);
    let base = TinyModel::default().write();
    let model = open(base.path());
    let (vocab, hidden, rank) = (model.config().vocab_size, model.config().hidden_size, 3);
    let mut rng = Rng::new(5);
    let module = LoraModule {
        module_path: "lm_head".to_owned(),
        a: lora::tensor(StorageType::F32, vec![rank, hidden], &rng.normals(rank * hidden, 0.1)),
        b: lora::tensor(StorageType::F32, vec![vocab, rank], &rng.normals(vocab * rank, 0.3)),
        magnitude: None,
        rank,
        scale: 2.0,
    };
    let dir = tempfile::tempdir().unwrap();
    let config = AdapterConfig::new(rank, 6.0, vec!["lm_head".to_owned()]);
    lora::write(&config, &[module], &dir.path().join("head"));
    let adapter = PeftAdapter::open(&dir.path().join("head")).unwrap();
    let expected = logprobs(&model, Some(&adapter), &tokens);
    for name in ["folder", "model.gguf"] {
        let (path, report) = merge_into(base.path(), &adapter, &dir, name, &MergeOptions::default());
        let names: Vec<&str> = report.merged.iter().map(|w| w.name.as_str()).collect();
        assert_eq!(names, ["lm_head.weight"]);
        let merged = open(&path);
        assert!(!merged.config().tie_word_embeddings);
        let off = difference(&logprobs(&merged, None, &tokens), &expected);
        assert!(off < TOLERANCE, "{name}: {off}");
        let embedding =
            |path: &Path| ModelFiles::open(path).unwrap().tensors.read("model.embed_tokens.weight").unwrap();
        assert!(embedding(&path) == embedding(base.path()), "{name}: the embedding stays as it is");
    }
}

#[test]
fn an_adapters_positions_become_the_models() {
    let tokens = text(60);
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position: 32,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.2,
        truncate: true,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    };
    let cases = [
        ("linear", None, RopeScaling::Linear { factor: 4.0 }),
        ("yarn", None, yarn),
        ("llama3", Some(500_000.0), llama3),
        ("theta alone", Some(1_000_000.0), RopeScaling::None),
    ];
    for base_scaling in [None, Some(json!({ "rope_type": "linear", "factor": 2.0 }))] {
        let base = TinyModel { rope_scaling: base_scaling, ..TinyModel::default() }.write();
        let model = open(base.path());
        for (name, theta, scaling) in cases.clone() {
            let rope = AdapterRope { theta, scaling, max_position_embeddings: 640 };
            let (_dir, adapter) = written(&RandomLora { rope: Some(rope), ..RandomLora::default() }, &model);
            let expected = logprobs(&model, Some(&adapter), &tokens);
            let out = tempfile::tempdir().unwrap();
            let (folder, _) = merge_into(base.path(), &adapter, &out, "folder", &MergeOptions::default());
            let (gguf, _) = merge_into(base.path(), &adapter, &out, "m.gguf", &MergeOptions::default());
            // And from GGUF, with no positions of its own, back to a folder.
            let (_plain, plain) = written(&RandomLora { strength: 1e-7, ..RandomLora::default() }, &model);
            let (back, _) = merge_into(&gguf, &plain, &out, "back", &MergeOptions::default());
            for path in [folder, gguf, back] {
                let merged = open(&path);
                assert_eq!(merged.config().max_position_embeddings, 640, "{name}");
                let off = difference(&logprobs(&merged, None, &tokens), &expected);
                assert!(off < 3e-4, "{name}, {}: {off}", path.display());
            }
        }
    }
}

/// Frequency factors that no scaling with a name gives stay in GGUF files.
#[test]
fn positions_without_a_name_are_refused_in_a_folder() {
    let base = TinyModel::default().write();
    let model = open(base.path());
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 64,
    };
    let rope = AdapterRope { theta: None, scaling, max_position_embeddings: 640 };
    let (_dir, adapter) = written(&RandomLora { rope: Some(rope), ..RandomLora::default() }, &model);
    let (_plain, plain) = written(&RandomLora::default(), &model);
    let out = tempfile::tempdir().unwrap();
    let (gguf, _) = merge_into(base.path(), &adapter, &out, "m.gguf", &MergeOptions::default());
    merge_into(&gguf, &plain, &out, "again.gguf", &MergeOptions::default());
    let error = merge(&gguf, &plain, out.path().join("x"), &MergeOptions::default(), &|_, _| {}).unwrap_err();
    assert!(error.to_string().contains("rope_freqs.weight"), "{error}");
    assert_eq!(names(out.path()), ["again.gguf", "m.gguf"]);
}

/// Types of the output, what rounding costs as reported and as measured from the files, and copies bit for bit.
#[test]
fn types_are_those_asked_for_and_the_rest_is_copied() {
    let base = TinyModel { tied: false, ..TinyModel::default() }.write();
    let model = open(base.path());
    let (_dir, adapter) =
        written(&RandomLora { targets: vec!["q_proj", "down_proj"], ..RandomLora::default() }, &model);
    let out = tempfile::tempdir().unwrap();
    let with = |dtype: MergeDtype| MergeOptions { dtype, ..MergeOptions::default() };
    let exact = merge_into(base.path(), &adapter, &out, "exact.gguf", &with(MergeDtype::F32)).0;
    let values = |path: &Path, name: &str| {
        let files = ModelFiles::open(path).unwrap();
        let info = files.tensors.require(name).unwrap().clone();
        let bytes = files.tensors.read(name).unwrap();
        let values = wardrobe_formats::convert::to_f32(info.storage, &bytes, info.numel()).unwrap();
        (info.storage, bytes, values)
    };
    for (dtype, storage, most) in [
        (MergeDtype::Bf16, StorageType::BF16, 0.003),
        (MergeDtype::F16, StorageType::F16, 0.0005),
        (MergeDtype::Q8_0, StorageType::Q8_0, 0.01),
        (MergeDtype::Q4_1, StorageType::Q4_1, 0.12),
        (MergeDtype::Q4_0, StorageType::Q4_0, 0.15),
    ] {
        let name = format!("{storage}.gguf");
        let (gguf, report) = merge_into(base.path(), &adapter, &out, &name, &with(dtype));
        for weight in &report.merged {
            let (found, _, rounded) = values(&gguf, &weight.name);
            let (_, _, whole) = values(&exact, &weight.name);
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let lost =
                norm(&mut rounded.iter().zip(&whole).map(|(a, b)| a - b)) / norm(&mut whole.iter().copied());
            assert_eq!((found, weight.storage), (storage, storage), "{}", weight.name);
            assert!((lost - weight.rounding).abs() < 1e-6 && lost > 0.0 && lost < most, "{storage}: {lost}");
        }
        assert_eq!(values(&gguf, "model.norm.weight").0, StorageType::F32);
        assert_eq!(values(&gguf, "lm_head.weight").0, storage);
        // Once more as the base has it: what the adapter does not touch is the same bytes, the rest the same types.
        let (again, report) =
            merge_into(&gguf, &adapter, &out, &format!("again-{name}"), &MergeOptions::default());
        for tensor in ModelFiles::open(&gguf).unwrap().tensors.tensors() {
            let (was, is) = (values(&gguf, &tensor.name), values(&again, &tensor.name));
            let is_merged = report.merged.iter().any(|w| w.name == tensor.name);
            assert_eq!(is.0, was.0, "{}", tensor.name);
            assert_eq!(is.1 != was.1, is_merged, "{}", tensor.name);
        }
    }
    let (folder, _) = merge_into(base.path(), &adapter, &out, "bf16", &with(MergeDtype::Bf16));
    assert_eq!(values(&folder, "model.norm.weight").0, StorageType::BF16);
    assert_eq!(open(&folder).config(), open(base.path()).config());
}

#[test]
fn large_folders_are_cut_into_shards() {
    let base = TinyModel::default().write();
    let model = open(base.path());
    let (_dir, adapter) = written(&RandomLora::default(), &model);
    let out = tempfile::tempdir().unwrap();
    let (whole, _) = merge_into(base.path(), &adapter, &out, "whole", &MergeOptions::default());
    let options = MergeOptions { max_shard_bytes: 60_000, ..MergeOptions::default() };
    let (cut, _) = merge_into(base.path(), &adapter, &out, "cut", &options);
    let shards = names(&cut).iter().filter(|name| name.ends_with(".safetensors")).count();
    assert!(
        shards > 3 && names(&cut).contains(&format!("model-00001-of-{shards:05}.safetensors")),
        "{shards}"
    );
    // The embedding alone is larger than that.
    assert!(
        std::fs::metadata(cut.join("model-00001-of-00006.safetensors")).is_ok_and(|m| m.len() > 80_000),
        "{:?}",
        names(&cut)
    );
    let (a, b) = (ModelFiles::open(&whole).unwrap(), ModelFiles::open(&cut).unwrap());
    assert_eq!(a.tensors.tensors(), b.tensors.tensors());
    for tensor in a.tensors.tensors() {
        assert!(
            a.tensors.read(&tensor.name).unwrap() == b.tensors.read(&tensor.name).unwrap(),
            "{}",
            tensor.name
        );
    }
}

/// What is wrong, how to make it so, and what the error must say.
#[test]
fn what_cannot_be_merged_is_refused_and_leaves_nothing() {
    let base = TinyModel::default().write();
    let model = open(base.path());
    let plain = MergeOptions::default;
    let (_dir, good) = written(&RandomLora::default(), &model);
    let deeper = wardrobe::ModelConfig { num_layers: 3, ..model.config().clone() };
    let wider = wardrobe::ModelConfig { hidden_size: 32, ..model.config().clone() };
    let out = tempfile::tempdir().unwrap();
    std::fs::create_dir(out.path().join("notes")).unwrap();
    std::fs::write(out.path().join("notes/mine.txt"), "mine").unwrap();
    std::fs::write(out.path().join("taken.gguf"), "mine").unwrap();
    let before = names(out.path());
    let at = |name: &str| out.path().join(name);
    let refused =
        |base: &Path, adapter: &PeftAdapter, output: &Path, options: MergeOptions, words: &[&str]| {
            let error = merge(base, adapter, output, &options, &|_, _| {}).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
            assert_eq!(names(out.path()), before, "{words:?}");
        };
    let in_memory = |config| RandomLora::default().build(config);
    refused(base.path(), &in_memory(&deeper), &at("x"), plain(), &["model.layers.2", "does not exist"]);
    refused(base.path(), &in_memory(&wider), &at("x"), plain(), &["proj", "another model"]);
    let noop = RandomLora { strength: 0.0, ..RandomLora::default() }.build(model.config());
    refused(base.path(), &noop, &at("x"), plain(), &["zero"]);
    let quantised = MergeOptions { dtype: MergeDtype::Q8_0, ..plain() };
    refused(base.path(), &good, &at("x"), quantised, &["safetensors cannot hold Q8_0"]);
    let folder = MergeOptions { format: Some(MergeFormat::Safetensors), ..plain() };
    refused(base.path(), &good, &at("x.gguf"), folder, &["x.gguf"]);
    refused(base.path(), &good, &at("taken.gguf"), plain(), &["taken.gguf", "there already"]);
    // Not even when asked: a folder that is no model's, and what the merge itself is made of.
    let force = || MergeOptions { replace: true, ..plain() };
    refused(base.path(), &good, &at("notes"), force(), &["notes", "not a model's folder"]);
    refused(base.path(), &good, base.path(), force(), &["made of"]);
    refused(base.path(), &good, base.path().parent().unwrap(), force(), &["made of"]);
    refused(base.path(), &good, &base.path().join("inside.gguf"), force(), &["made of"]);
    refused(base.path(), &good, good.path(), force(), &["made of"]);
    assert_eq!(std::fs::read_to_string(at("notes/mine.txt")).unwrap(), "mine");

    // A number that is none, in a weight that is merged and in one that is copied.
    for (layer, wanted) in [("mlp.up_proj", "mlp.up_proj"), ("input_layernorm", "input_layernorm")] {
        let bad = TinyModel::default().write();
        let name = format!("model.layers.1.{layer}.weight");
        spoil(bad.path(), &name);
        refused(bad.path(), &good, &at("x"), plain(), &[wanted, "NaN"]);
        refused(bad.path(), &good, &at("x.gguf"), plain(), &[wanted, "NaN"]);
    }
    // Sums that the type does not reach.
    let large = RandomLora { strength: 1e6, ..RandomLora::default() }.build(model.config());
    let half = MergeOptions { dtype: MergeDtype::F16, ..plain() };
    refused(base.path(), &large, &at("x"), half, &["F16", "proj"]);

    // With force, a model's folder and a file are replaced.
    merge(base.path(), &good, at("taken.gguf"), &force(), &|_, _| {}).unwrap();
    open(&at("taken.gguf"));
    merge(base.path(), &good, at("model"), &plain(), &|_, _| {}).unwrap();
    std::fs::write(at("model/stale.txt"), "old").unwrap();
    merge(base.path(), &good, at("model"), &force(), &|_, _| {}).unwrap();
    assert!(!at("model/stale.txt").exists());
    assert_eq!(names(out.path()), ["model", "notes", "taken.gguf"]);
}

/// Makes the second element of a tensor of a tiny model NaN.
fn spoil(folder: &Path, name: &str) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = 8 + header_len + start + 4;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// The command, on a tiny model and on the real one.
#[test]
fn the_command_merges_and_tells_what_it_cost() {
    let base = TinyModel::default().write();
    let model = open(base.path());
    let (dir, adapter) = written(&RandomLora::default(), &model);
    let output = dir.path().join("merged.gguf");
    let (base, tuned, output) =
        (base.path().to_str().unwrap(), adapter.path().to_str().unwrap(), output.to_str().unwrap());
    let args = ["merge", base, "--adapter", tuned, "--output", output];
    let said = command::succeeds(&mut command::wardrobe(&[&args[..], &["--dtype", "q4_0"]].concat()));
    assert!(said.contains("q_proj") && said.contains("Q4_0") && said.contains("14 of them merged"), "{said}");
    let said = command::fails(&mut command::wardrobe(&args), 1);
    assert!(said.contains("there already") && said.contains("--force"), "{said}");
    let again = [&args[..], &["--force", "--json"]].concat();
    let told: Value = serde_json::from_str(&command::succeeds(&mut command::wardrobe(&again))).unwrap();
    assert_eq!((&told["format"], told["merged"].as_array().unwrap().len()), (&json!("gguf"), 14));
    assert_eq!(told["merged"][0]["relative_rounding_error"], 0.0);
    command::fails(&mut command::wardrobe(&[&args[..], &["--dtype", "q3"]].concat()), 2);
}

#[test]
fn the_real_model_answers_as_with_its_adapter() {
    let Some(base) = smollm2::path("the_real_model_answers_as_with_its_adapter") else { return };
    let adapter = PeftAdapter::open(&smollm2::adapter("last-words")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let prompt = "Return last 8 words from this text: \n\ncass wojtyla ( 1850 - 1906 ) , English historian noted for \
                  work on the north . the group did the groundwork for creating the United Nations .";
    let ask = |model: &Path, more: &[&str]| {
        let args = ["run", model.to_str().unwrap(), prompt, "-q", "--temperature", "0", "--max-tokens", "24"];
        command::succeeds(&mut command::wardrobe(&[&args[..], more].concat()))
    };
    let expected = ask(&base, &["--adapter", adapter.path().to_str().unwrap()]);
    assert_ne!(expected, ask(&base, &[]));
    for (name, dtype) in
        [("f32.gguf", MergeDtype::F32), ("bf16", MergeDtype::AsBase), ("q8_0.gguf", MergeDtype::Q8_0)]
    {
        let options = MergeOptions { dtype, ..MergeOptions::default() };
        let (merged, _) = merge_into(&base, &adapter, &out, name, &options);
        assert_eq!(ask(&merged, &[]), expected, "{name}");
    }
}
