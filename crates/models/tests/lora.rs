//! Adapters that are whole by PEFT's rules are taken; ones with a part missing are refused by its name.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use support::{HIDDEN, LAYERS, TinyModel, ctx};
use wardrobe_formats::peft::{LoraModule, ModuleSelector, PeftContents, PeftLimits, SavedModule};
use wardrobe_formats::{AdapterConfig, AdapterTensor, PeftAdapter};
use wardrobe_models::{Decoder, LoadOptions, LoraAdapter, LoraOptions};

const BLOCK: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Paths of the modules of all blocks.
fn all_paths() -> Vec<String> {
    (0..LAYERS).flat_map(|i| BLOCK.iter().map(move |part| format!("model.layers.{i}.{part}"))).collect()
}

fn factors(path: &str, rank: usize) -> LoraModule {
    let out = match path.rsplit('.').next() {
        Some("k_proj" | "v_proj") => HIDDEN / 2,
        Some("lm_head") => 32,
        _ => HIDDEN,
    };
    let tensor =
        |shape: [usize; 2]| AdapterTensor::from_f32(path, shape.to_vec(), &vec![0.5; shape[0] * shape[1]]);
    LoraModule {
        module_path: path.to_owned(),
        a: tensor([rank, HIDDEN]).unwrap(),
        b: tensor([out, rank]).unwrap(),
        magnitude: None,
        rank,
        scale: 1.0,
    }
}

/// Number of modules that an adapter of this configuration with factors for `paths` adapts, or why it is refused.
fn fit(
    model: &dyn Decoder,
    config: &AdapterConfig,
    paths: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<usize, String> {
    fit_with(model, config, paths, &[])
}

/// [`fit`] of an adapter that brings parameters whole.
fn fit_with(
    model: &dyn Decoder,
    config: &AdapterConfig,
    paths: impl IntoIterator<Item = impl AsRef<str>>,
    saved: &[SavedModule],
) -> Result<usize, String> {
    let rank = |path: &str| {
        let pattern = config.rank_pattern.iter().find(|(key, _)| path.ends_with(key));
        pattern.map_or(config.r, |(_, rank)| *rank)
    };
    let modules: Vec<LoraModule> = paths.into_iter().map(|p| factors(p.as_ref(), rank(p.as_ref()))).collect();
    let contents = PeftContents {
        config,
        modules: &modules,
        embeddings: &[],
        saved,
        rope: None,
        parity: None,
        extra_files: &[],
    };
    let adapter = PeftAdapter::from_contents("memory", &contents, &PeftLimits::default()).unwrap();
    let lora = LoraAdapter::new(&mut ctx(), model, &adapter, &LoraOptions::default());
    lora.map(|lora| lora.num_modules()).map_err(|error| error.to_string())
}

fn list(names: &[&str]) -> AdapterConfig {
    AdapterConfig::new(2, 4.0, names.iter().map(|n| (*n).to_owned()).collect())
}

fn having<'a>(part: &'a str) -> impl Iterator<Item = String> + 'a {
    all_paths().into_iter().filter(move |path| path.contains(part))
}

const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

#[test]
fn what_peft_would_have_made_is_taken() {
    let model = TinyModel::default().load(&LoadOptions::default()).unwrap();
    let model = model.as_ref();
    assert_eq!(fit(model, &list(&ALL), all_paths()), Ok(14));
    assert_eq!(fit(model, &list(&["q_proj"]), having("q_proj")), Ok(2));
    // Names given in full, and one module of all.
    assert_eq!(fit(model, &list(&["model.layers.1.mlp.up_proj"]), having("1.mlp.up_proj")), Ok(1));
    assert_eq!(fit(model, &list(&["lm_head", "v_proj"]), having("v_proj").chain(["lm_head".into()])), Ok(3));
    let all_linear = AdapterConfig { target_modules: ModuleSelector::AllLinear, ..list(&[]) };
    assert_eq!(fit(model, &all_linear, all_paths()), Ok(14));
    let regex = ModuleSelector::Regex(r".*\.1\..*(q|v)_proj".to_owned());
    let regex = AdapterConfig { target_modules: regex, ..list(&[]) };
    let of_regex = having("layers.1").filter(|p| p.ends_with("q_proj") || p.ends_with("v_proj"));
    assert_eq!(fit(model, &regex, of_regex), Ok(2));

    let one_layer = AdapterConfig { layers_to_transform: Some(vec![1]), ..list(&ALL) };
    assert_eq!(fit(model, &one_layer, having("layers.1")), Ok(7));
    let by_pattern = AdapterConfig { layers_pattern: vec!["layers".to_owned()], ..one_layer.clone() };
    assert_eq!(fit(model, &by_pattern, having("layers.1")), Ok(7));
    // A name in full counts whatever the layers.
    let mut with_full = one_layer;
    with_full.target_modules =
        ModuleSelector::List(vec!["q_proj".to_owned(), "model.layers.0.mlp.up_proj".to_owned()]);
    let paths = ["model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"];
    assert_eq!(fit(model, &with_full, paths), Ok(2));

    let excluded = ModuleSelector::List(vec!["down_proj".to_owned()]);
    let excluding = AdapterConfig { exclude_modules: Some(excluded), ..list(&ALL) };
    let rest = all_paths().into_iter().filter(|p| !p.ends_with("down_proj"));
    assert_eq!(fit(model, &excluding, rest), Ok(12));
    let excluded = ModuleSelector::Regex(r".*layers\.0\..*".to_owned());
    let excluding = AdapterConfig { exclude_modules: Some(excluded), ..list(&ALL) };
    assert_eq!(fit(model, &excluding, having("layers.1")), Ok(7));

    let ranks = vec![("layers.0.mlp.up_proj".to_owned(), 5), ("q_proj".to_owned(), 1)];
    let ranks = AdapterConfig { rank_pattern: ranks, ..list(&ALL) };
    assert_eq!(fit(model, &ranks, all_paths()), Ok(14));
}

#[test]
fn missing_parts_are_refused_by_name() {
    let model = TinyModel::default().load(&LoadOptions::default()).unwrap();
    let model = model.as_ref();
    let refused = |config: &AdapterConfig, paths: Vec<String>, named: &[&str]| {
        let reason = fit(model, config, paths).unwrap_err();
        for part in named {
            assert!(reason.contains(part), "{part} is not in: {reason}");
        }
    };
    let first_q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight is missing";
    // A whole layer, one module, all modules but one.
    refused(&list(&ALL), having("layers.1").collect(), &[first_q, "6 other modules"]);
    let without_one = all_paths().into_iter().filter(|p| p != "model.layers.1.mlp.up_proj").collect();
    refused(&list(&ALL), without_one, &["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]);
    refused(&list(&ALL), having("0.self_attn.q_proj").collect(), &["0.self_attn.k_proj", "12 other modules"]);
    let all_linear = AdapterConfig { target_modules: ModuleSelector::AllLinear, ..list(&[]) };
    refused(&all_linear, having("layers.1").collect(), &[first_q]);
    let regex = ModuleSelector::Regex(r".*\.q_proj".to_owned());
    let regex = AdapterConfig { target_modules: regex, ..list(&[]) };
    refused(&regex, having("1.self_attn.q_proj").collect(), &[first_q]);
    let layers = AdapterConfig { layers_to_transform: Some(vec![0, 1]), ..list(&ALL) };
    refused(&layers, having("layers.1").collect(), &[first_q]);
    refused(&list(&["lm_head", "q_proj"]), having("q_proj").collect(), &["lm_head.lora_A.weight"]);

    refused(&list(&["q_proj", "embed_tokens"]), having("q_proj").collect(), &["\"embed_tokens\""]);
    // As in PEFT, a list may name what this architecture does not have.
    assert_eq!(fit(model, &list(&["q_proj", "query_key_value"]), having("q_proj")), Ok(2));
    let saving = AdapterConfig { modules_to_save: vec!["lm_head".to_owned()], ..list(&["q_proj"]) };
    refused(&saving, having("q_proj").collect(), &["modules_to_save", "\"lm_head\""]);
}

/// With factors for `lm_head` PEFT stores the frozen weight below them.
#[test]
fn the_frozen_weight_below_factors_is_the_models_own() {
    let model = TinyModel::default().load(&LoadOptions::default()).unwrap();
    let model = model.as_ref();
    let head = model.modules().iter().find(|m| m.path == "lm_head").unwrap();
    let mut own = vec![0.0; head.weight.rows() * head.weight.cols()];
    ctx().device().dequantise_rows(&head.weight, 0, &mut own).unwrap();
    let fit = |shape: [usize; 2], values: &[f32]| {
        let saved = SavedModule {
            module_path: "lm_head".to_owned(),
            parameter: "weight".to_owned(),
            is_base_layer: true,
            tensor: AdapterTensor::from_f32("lm_head", shape.to_vec(), values).unwrap(),
        };
        fit_with(model, &list(&["lm_head"]), ["lm_head"], &[saved])
    };
    let shape = [head.weight.rows(), head.weight.cols()];
    assert_eq!(fit(shape, &own), Ok(1));
    let rounded: Vec<f32> = own.iter().map(|v| v * 1.004).collect();
    assert_eq!(fit(shape, &rounded), Ok(1));
    let others: Vec<f32> = own.iter().rev().copied().collect();
    let reason = fit(shape, &others).unwrap_err();
    assert!(reason.contains("lm_head.base_layer.weight differs"), "{reason}");
    // One token more, as a resized model has.
    let longer = vec![0.5; own.len() + shape[1]];
    let reason = fit([shape[0] + 1, shape[1]], &longer).unwrap_err();
    assert!(reason.contains("lm_head.base_layer.weight is [33, "), "{reason}");
}
