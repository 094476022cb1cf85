//! Adapters that are right, in every form PEFT writes; and adapters that are wrong, refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

mod options;

use super::*;
use crate::config::RopeScaling;
use crate::error::{FormatError, Result};
use crate::safetensors::{self, TensorData};
use crate::storage::StorageType;

const Q: &str = "model.layers.0.self_attn.q_proj";

/// A configuration as PEFT 0.21 writes it, all keys there.
fn config() -> Value {
    json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
        "base_model_name_or_path": "org/base", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
        "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
        "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 16, "lora_bias": false,
        "lora_dropout": 0.05, "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core",
        "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2",
        "qalora_group_size": 16, "r": 2, "rank_pattern": {}, "revision": null,
        "target_modules": ["q_proj", "v_proj"], "target_parameters": null, "task_type": "CAUSAL_LM",
        "trainable_token_indices": null, "use_bdlora": null, "use_dora": false, "use_qalora": false,
        "use_rslora": false, "velora_config": null
    })
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut config = config();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let numel: usize = shape.iter().product();
    let values = (0..numel).map(|i| i as f32 * 0.25 + 1.0).collect();
    Tensor { name: format!("base_model.model.{name}"), shape: shape.to_vec(), values }
}

fn pair(module: &str, rank: usize) -> Vec<Tensor> {
    vec![
        tensor(&format!("{module}.lora_A.weight"), &[rank, 6]),
        tensor(&format!("{module}.lora_B.weight"), &[4, rank]),
    ]
}

fn folder(config: &Value, tensors: &[Tensor]) -> TempDir {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let data: Vec<TensorData<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|(t, bytes)| TensorData { name: &t.name, storage: StorageType::F32, shape: &t.shape, bytes })
        .collect();
    safetensors::write(&dir.path().join(WEIGHTS_FILE), &data, &BTreeMap::new()).unwrap();
    dir
}

fn open(config: &Value, tensors: &[Tensor]) -> Result<PeftAdapter> {
    PeftAdapter::open(folder(config, tensors).path())
}

fn message(config: &Value, tensors: &[Tensor]) -> String {
    open(config, tensors).map_or_else(|e| e.to_string(), |a| format!("accepted: {:?}", a.config()))
}

#[test]
fn a_plain_adapter() {
    let tensors: Vec<Tensor> =
        [pair(Q, 2), pair("model.layers.1.self_attn.v_proj", 2)].into_iter().flatten().collect();
    let adapter = open(&config(), &tensors).unwrap();
    assert_eq!(adapter.modules().len(), 2);
    let q = &adapter.modules()[0];
    assert_eq!((q.module_path.as_str(), q.rank, q.scale), (Q, 2, 8.0));
    assert_eq!((q.a.shape(), q.b.shape()), (&[2, 6][..], &[4, 2][..]));
    assert_eq!(q.a.to_f32().unwrap(), tensors[0].values);
    assert_eq!(adapter.config().base_model_name_or_path.as_deref(), Some("org/base"));
    assert_eq!((adapter.max_rank(), adapter.total_bytes(), adapter.is_noop()), (2, 2 * 4 * (12 + 8), false));
}

#[test]
fn scales_follow_patterns_and_rslora() {
    let tensors = || -> Vec<Tensor> {
        [pair(Q, 4), pair("model.layers.11.self_attn.q_proj", 2)].into_iter().flatten().collect()
    };
    let ranks = json!({"layers.0.self_attn.q_proj": 4, "q_proj": 2, ".*q_proj": 7});
    let alphas = json!({"layers.1.self_attn.q_proj": 100, "q_proj": 32.0});
    let config = with(&[("rank_pattern", ranks), ("alpha_pattern", alphas.clone())]);
    let adapter = open(&config, &tensors()).unwrap();
    let found: Vec<_> = adapter.modules().iter().map(|m| (m.rank, m.scale)).collect();
    assert_eq!(found, [(4, 8.0), (2, 16.0)]);

    // The first pattern counts: with the general one in front, layer 0 has rank 2 and its tensors do not fit.
    let ranks = json!({"q_proj": 2, "layers.0.self_attn.q_proj": 4});
    let text = message(&with(&[("rank_pattern", ranks)]), &tensors());
    assert!(text.contains("expected shape [2, 6], found [4, 6]") && text.contains(Q), "{text}");

    let rs = open(&with(&[("use_rslora", json!(true)), ("r", json!(4))]), &pair(Q, 4)).unwrap();
    assert_eq!(rs.modules()[0].scale, 16.0 / 2.0);
    let anchored = json!({"^model.layers.0.self_attn.q_proj": 4});
    assert_eq!(open(&with(&[("rank_pattern", anchored)]), &pair(Q, 4)).unwrap().modules()[0].rank, 4);
    // Python anchors the pattern behind an optional prefix that ends in a dot: "proj" is the end of no segment.
    let partial = json!({"proj": 4});
    assert_eq!(open(&with(&[("rank_pattern", partial)]), &pair(Q, 2)).unwrap().modules()[0].rank, 2);
}

#[test]
fn targets_are_lists_patterns_or_all_linear() {
    let accepted = |changes: &[(&str, Value)], module: &str| {
        let text = message(&with(changes), &pair(module, 2));
        assert!(text.starts_with("accepted") || text.contains("does not target"), "{text}");
        text.starts_with("accepted")
    };
    let target = |value: Value| vec![("target_modules", value)];
    assert!(accepted(&target(json!([Q])), Q));
    assert!(accepted(&target(json!(["self_attn.q_proj"])), Q));
    assert!(!accepted(&target(json!(["k_proj"])), Q));
    assert!(!accepted(&target(json!(["proj"])), Q));
    assert!(accepted(&target(json!(r"model\.layers\.\d+\.self_attn\.(q|v)_proj")), Q));
    assert!(accepted(&target(json!(r"(?:.*?(?:self_attn|attention).*?(?:q_proj|k_proj).*?)")), Q));
    assert!(!accepted(&target(json!(r"q_proj")), Q), "a pattern has to match the whole path");
    assert!(!accepted(&target(json!(r".*q_proj|x")), "model.layers.0.q_projector"));
    assert!(accepted(&target(json!("all-linear")), Q));
    assert!(!accepted(&target(json!("all-linear")), "lm_head"));
    let excluded = |value: Value| [("target_modules", json!("all-linear")), ("exclude_modules", value)];
    assert!(!accepted(&excluded(json!(["q_proj"])), Q));
    assert!(!accepted(&excluded(json!(r".*layers\.0\..*")), Q));
    assert!(accepted(&excluded(json!(["v_proj"])), Q));
    let layers = |value: Value, pattern: Value| [("layers_to_transform", value), ("layers_pattern", pattern)];
    assert!(accepted(&layers(json!([0, 1]), Value::Null), Q));
    assert!(accepted(&layers(json!(0), json!("layers")), Q));
    assert!(!accepted(&layers(json!([1, 2]), Value::Null), Q));
    assert!(!accepted(&layers(json!([0]), json!(["blocks"])), Q));
    assert!(accepted(&layers(json!([0]), json!(["blocks", "lay.*"])), Q));
    assert!(accepted(&layers(json!([0]), json!("model.layers")), Q));
    // The first number counts, not the expert's.
    let expert = "model.layers.3.experts.0.q_proj";
    assert!(accepted(&layers(json!([3]), Value::Null), expert));
    assert!(!accepted(&layers(json!([0]), Value::Null), expert));
    // A name in full is not subject to the layers.
    assert!(accepted(&[("layers_to_transform", json!([7])), ("target_modules", json!([Q]))], Q));
    assert!(!accepted(&[("modules_to_save", json!(["self_attn"]))], Q));
}

#[test]
fn embeddings_heads_and_saved_modules() {
    let mut tensors = pair(Q, 2);
    tensors.push(tensor("model.embed_tokens.lora_embedding_A", &[2, 9]));
    tensors.push(tensor("model.embed_tokens.lora_embedding_B", &[6, 2]));
    tensors.push(tensor("model.embed_tokens.base_layer.weight", &[9, 6]));
    tensors.push(tensor("lm_head.weight", &[9, 6]));
    tensors.push(tensor("model.norm.weight", &[6]));
    let config =
        with(&[("target_modules", json!(["q_proj", "embed_tokens"])), ("modules_to_save", json!(["norm"]))]);
    let adapter = open(&config, &tensors).unwrap();
    let embedding = &adapter.embeddings()[0];
    assert_eq!(
        (embedding.module_path.as_str(), embedding.rank, embedding.scale),
        ("model.embed_tokens", 2, 8.0)
    );
    let saved: Vec<_> = adapter
        .saved()
        .iter()
        .map(|s| (s.module_path.as_str(), s.parameter.as_str(), s.is_base_layer))
        .collect();
    assert_eq!(
        saved,
        [
            ("lm_head", "weight", false),
            ("model.embed_tokens", "weight", true),
            ("model.norm", "weight", false)
        ]
    );
    let mut unnamed = pair(Q, 2);
    unnamed.push(tensor("model.norm.weight", &[6]));
    // PEFT takes every module whose path ends so: "layernorm" ends in "norm" too.
    let mut layernorm = pair(Q, 2);
    layernorm.push(tensor("model.layers.0.input_layernorm.weight", &[6]));
    assert!(message(&with(&[("modules_to_save", json!(["norm"]))]), &layernorm).starts_with("accepted"));
    assert!(message(&self::config(), &unnamed).contains("modules_to_save does not name"));
}

#[test]
fn dora_brings_magnitudes() {
    let dora = with(&[("use_dora", json!(true))]);
    let mut tensors = pair(Q, 2);
    assert!(message(&dora, &tensors).contains("lora_magnitude_vector` is missing"));
    tensors.push(tensor(&format!("{Q}.lora_magnitude_vector"), &[4]));
    let adapter = open(&dora, &tensors).unwrap();
    assert_eq!(adapter.modules()[0].magnitude.as_ref().unwrap().shape(), [4]);
    assert!(message(&config(), &tensors).contains("use_dora is false"));
    tensors.pop();
    tensors.push(tensor(&format!("{Q}.lora_magnitude_vector"), &[5]));
    assert!(message(&dora, &tensors).contains("expected shape [4], found [5]"));
    let embedding =
        [tensor("embed_tokens.lora_embedding_A", &[2, 9]), tensor("embed_tokens.lora_embedding_B", &[6, 2])];
    let dora = with(&[("use_dora", json!(true)), ("target_modules", json!(["embed_tokens"]))]);
    assert!(message(&dora, &embedding).contains("DoRA on an embedding"));
}

#[test]
fn wrong_tensors_are_named() {
    let change = |i: usize, f: &dyn Fn(&mut Tensor)| {
        let mut tensors = pair(Q, 2);
        f(&mut tensors[i]);
        message(&config(), &tensors)
    };
    let prefix = format!("base_model.model.{Q}");
    let text = message(&config(), &pair(Q, 2)[..1]);
    assert!(text.contains(&format!("`{prefix}.lora_B.weight` is missing")), "{text}");
    let text = message(&config(), &pair(Q, 2)[1..]);
    assert!(text.contains(&format!("`{prefix}.lora_A.weight` is missing")), "{text}");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let text = change(1, &|t| t.values[3] = bad);
        assert!(text.contains(&format!("`{prefix}.lora_B.weight`: element 3 is NaN or infinite")), "{text}");
    }
    let text = change(0, &|t| t.shape = vec![6, 2]);
    assert!(text.contains("expected shape [2, 2], found [6, 2]"), "{text}");
    let text = change(1, &|t| t.shape = vec![2, 4]);
    assert!(text.contains("lora_B`: expected shape [2, 2], found [2, 4]"), "{text}");
    let text = change(0, &|t| t.shape = vec![12]);
    assert!(text.contains("found [12]"), "{text}");
    let text = change(0, &|t| t.name = t.name.replace("base_model.model.", ""));
    assert!(text.contains("does not start with `base_model.model.`"), "{text}");
    let text = change(0, &|t| t.name = t.name.replace("lora_A", "lora_A.default"));
    assert!(text.contains("lora_A"), "{text}");
    assert!(
        message(&config(), &pair("model.layers.0.mlp.up_proj", 2)).contains("does not target this module")
    );
    assert!(message(&config(), &[]).contains("no tensors"));
    let mut twice = pair(Q, 2);
    twice.push(tensor(&format!("{Q}.base_layer.lora_A.weight"), &[2, 6]));
    assert!(
        message(&config(), &twice).contains("same part of the same module"),
        "{}",
        message(&config(), &twice)
    );
}

#[test]
fn dtypes_are_three() {
    for (storage, width, accepted) in [
        (StorageType::F32, 4, true),
        (StorageType::F16, 2, true),
        (StorageType::BF16, 2, true),
        (StorageType::F64, 8, false),
        (StorageType::I8, 1, false),
        (StorageType::F8_E4M3, 1, false),
    ] {
        let dir = folder(&config(), &[]);
        let names =
            [format!("base_model.model.{Q}.lora_A.weight"), format!("base_model.model.{Q}.lora_B.weight")];
        let bytes = vec![0; 12 * width];
        let data = [
            TensorData { name: &names[0], storage, shape: &[2, 6], bytes: &bytes },
            TensorData { name: &names[1], storage, shape: &[4, 2], bytes: &bytes[..8 * width] },
        ];
        safetensors::write(&dir.path().join(WEIGHTS_FILE), &data, &BTreeMap::new()).unwrap();
        match PeftAdapter::open(dir.path()) {
            Ok(adapter) => assert!(accepted && adapter.is_noop()),
            Err(e) => assert!(!accepted && e.to_string().contains("expected F32, F16 or BF16"), "{e}"),
        }
    }
    let nan = AdapterTensor::new(Path::new("x"), "t", StorageType::F16, vec![2], vec![0, 0, 0, 0x7e]);
    assert!(nan.unwrap_err().to_string().contains("element 1"));
    let inf = AdapterTensor::new(Path::new("x"), "t", StorageType::BF16, vec![1], vec![0x80, 0xff]);
    assert!(inf.is_err());
    let largest =
        AdapterTensor::new(Path::new("x"), "t", StorageType::F16, vec![1], vec![0xff, 0x7b]).unwrap();
    assert_eq!(largest.to_f32().unwrap(), [65504.0]);
}

#[test]
fn limits_are_checked_before_reading() {
    let dir = folder(&config(), &pair(Q, 2));
    let within = |limits: PeftLimits| PeftAdapter::open_within(dir.path(), &limits);
    let default = PeftLimits::default();
    assert!(within(PeftLimits { max_rank: 2, max_total_bytes: 80, max_tensors: 2 }).is_ok());
    for (limits, expected) in [
        (
            PeftLimits { max_rank: 1, ..default },
            "rank of model.layers.0.self_attn.q_proj is 2, over the limit of 1",
        ),
        (PeftLimits { max_total_bytes: 79, ..default }, "is 80, over the limit of 79"),
        (PeftLimits { max_tensors: 1, ..default }, "number of tensors is 2"),
    ] {
        let text = within(limits).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn pickles_and_missing_files_are_told() {
    let dir = folder(&config(), &pair(Q, 2));
    std::fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    assert!(matches!(PeftAdapter::open(dir.path()), Err(FormatError::NotFound { .. })));
    std::fs::write(dir.path().join("adapter_model.bin"), b"\x80\x02").unwrap();
    assert!(PeftAdapter::open(dir.path()).unwrap_err().to_string().contains("pickle"));
    std::fs::remove_file(dir.path().join(CONFIG_FILE)).unwrap();
    assert!(
        matches!(PeftAdapter::open(dir.path()), Err(FormatError::NotFound { what, .. }) if what == CONFIG_FILE)
    );
    for text in ["", "[]", "{", "null", "\u{feff}{}"] {
        std::fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
        assert!(PeftAdapter::open(dir.path()).is_err());
    }
}

#[test]
fn writing_and_reading_gives_the_same_adapter() {
    let mut tensors = pair(Q, 2);
    tensors.push(tensor(&format!("{Q}.lora_magnitude_vector"), &[4]));
    tensors.push(tensor("lm_head.weight", &[9, 6]));
    let config = with(&[
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("lora_alpha", json!(12.5)),
        ("rank_pattern", json!({"q_proj": 2, "a": 3})),
        ("modules_to_save", json!(["lm_head"])),
    ]);
    let adapter = open(&config, &tensors).unwrap();
    let contents = PeftContents {
        config: adapter.config(),
        modules: adapter.modules(),
        embeddings: adapter.embeddings(),
        saved: adapter.saved(),
        rope: None,
        parity: None,
        extra_files: &[("parity.json", b"{}")],
    };
    let root = tempdir().unwrap();
    let dir = root.path().join("sub/adapter");
    write_peft(&dir, &contents, false).unwrap();
    let again = PeftAdapter::open(&dir).unwrap();
    assert_eq!(again.config(), adapter.config());
    assert_eq!((again.modules(), again.saved()), (adapter.modules(), adapter.saved()));
    assert_eq!(again.digest(), adapter.digest());
    assert_eq!(std::fs::read(dir.join("parity.json")).unwrap(), b"{}");
    let in_memory = PeftAdapter::from_contents("trained", &contents, &PeftLimits::default()).unwrap();
    assert_eq!(in_memory.digest(), adapter.digest());

    assert!(write_peft(&dir, &contents, false).is_err());
    let mut other = adapter.config().clone();
    other.alpha = 3.0;
    write_peft(&dir, &PeftContents { config: &other, extra_files: &[], ..contents }, true).unwrap();
    let replaced = PeftAdapter::open(&dir).unwrap();
    assert_eq!(replaced.config().alpha, 3.0);
    assert_ne!(replaced.digest(), adapter.digest());
    assert!(!dir.join("parity.json").exists());
    let left: Vec<_> =
        std::fs::read_dir(root.path().join("sub")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["adapter"], "temporary folders stay behind");
    for name in ["../x", "a/b", "/x", CONFIG_FILE, RECORD_FILE] {
        let contents = PeftContents { extra_files: &[(name, b"")], ..contents };
        assert!(write_peft(&root.path().join("y"), &contents, false).is_err(), "{name}");
        assert!(!root.path().join("y").exists());
    }
}

#[test]
fn contents_in_memory_are_checked_as_files_are() {
    let config = AdapterConfig::new(2, 4.0, vec!["q_proj".to_owned()]);
    let module = |path: &str, rank: usize| LoraModule {
        module_path: path.to_owned(),
        a: AdapterTensor::from_f32("a", vec![rank, 3], &vec![1.0; rank * 3]).unwrap(),
        b: AdapterTensor::from_f32("b", vec![5, rank], &vec![0.0; rank * 5]).unwrap(),
        magnitude: None,
        rank: 99,
        scale: 99.0,
    };
    let check = |module: LoraModule| {
        let modules = [module];
        let contents = PeftContents {
            config: &config,
            modules: &modules,
            embeddings: &[],
            saved: &[],
            rope: None,
            parity: None,
            extra_files: &[],
        };
        PeftAdapter::from_contents("trained", &contents, &PeftLimits::default())
    };
    let good = check(module(Q, 2)).unwrap();
    assert_eq!((good.modules()[0].rank, good.modules()[0].scale, good.is_noop()), (2, 2.0, true));
    assert!(check(module(Q, 3)).is_err());
    assert!(check(module("model.layers.0.mlp.up_proj", 2)).is_err());
    assert!(check(module("a..q_proj", 2)).is_err());
    assert!(AdapterTensor::from_f32("a", vec![2], &[1.0, f32::NAN]).is_err());
    assert!(AdapterTensor::from_f32("a", vec![3], &[1.0]).is_err());
}

#[test]
fn digests_follow_content_and_not_the_folder() {
    let digest = |config: &Value, tensors: &[Tensor]| open(config, tensors).unwrap().digest();
    let first = digest(&config(), &pair(Q, 2));
    assert_eq!(first, digest(&config(), &pair(Q, 2)));
    assert_eq!(first.to_string().len(), 64);
    let mut changed = pair(Q, 2);
    changed[1].values[0] += 1.0;
    assert_ne!(first, digest(&config(), &changed));
    assert_ne!(first, digest(&with(&[("lora_alpha", json!(32))]), &pair(Q, 2)));
    assert_ne!(first, digest(&config(), &pair("model.layers.1.self_attn.q_proj", 2)));
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused() {
    let outside = folder(&config(), &pair(Q, 2));
    let dir = folder(&config(), &[]);
    std::fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    std::os::unix::fs::symlink(outside.path().join(WEIGHTS_FILE), dir.path().join(WEIGHTS_FILE)).unwrap();
    assert!(matches!(PeftAdapter::open(dir.path()), Err(FormatError::Escapes { .. })));
}

#[test]
fn rope_scaling_of_every_kind_is_read_as_written() {
    let adapter = open(&config(), &pair(Q, 2)).unwrap();
    let root = tempdir().unwrap();
    let scalings = [
        RopeScaling::None,
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        },
        RopeScaling::Yarn {
            factor: 2.5,
            original_max_position: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.1,
            truncate: false,
        },
    ];
    let mut digests = vec![adapter.digest()];
    for (i, scaling) in scalings.into_iter().enumerate() {
        let theta = (i % 2 == 1).then_some(5e5);
        let rope = AdapterRope { theta, scaling, max_position_embeddings: 32_768 };
        let contents = PeftContents {
            config: adapter.config(),
            modules: adapter.modules(),
            embeddings: &[],
            saved: &[],
            rope: Some(&rope),
            parity: None,
            extra_files: &[],
        };
        let dir = root.path().join(i.to_string());
        write_peft(&dir, &contents, false).unwrap();
        let again = PeftAdapter::open(&dir).unwrap();
        assert_eq!(again.rope(), Some(&rope));
        let in_memory = PeftAdapter::from_contents("trained", &contents, &PeftLimits::default()).unwrap();
        assert_eq!(again.digest(), in_memory.digest());
        digests.push(again.digest());
    }
    digests.sort_by_key(|digest| digest.to_string());
    digests.dedup();
    assert_eq!(digests.len(), 5, "each is another adapter");
}
