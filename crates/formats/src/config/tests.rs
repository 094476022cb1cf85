//! Configurations as published models have them, and absurd ones.

mod families;

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::StorageType;

fn read(config: &Value, generation: Option<&Value>) -> Result<ModelConfig> {
    let path = Path::new("config.json");
    let generation = generation.map(|g| (Path::new("generation_config.json"), g.as_object().unwrap()));
    ModelConfig::from_hf(path, config.as_object().unwrap(), generation)
}

/// The `config.json` of Llama-3.1-8B-Instruct, as far as it matters.
fn llama_31() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": false, "vocab_size": 128256,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        }
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key);
    config
}

#[test]
fn llama_31_is_read_whole() {
    let config = read(&llama_31(), None).unwrap();
    assert_eq!(config.architecture, "LlamaForCausalLM");
    assert_eq!((config.head_dim, config.q_size(), config.kv_size()), (128, 4096, 1024));
    assert_eq!(config.eos_token_ids, [128001, 128008, 128009]);
    assert_eq!(config.hidden_act, HiddenAct::Silu);
    assert_eq!(
        config.rope_scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192
        }
    );
}

/// The `config.json` of Mixtral-8x7B-v0.1.
fn mixtral() -> Value {
    json!({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": false, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.0, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 32000
    })
}

#[test]
fn mixtral_is_read_whole_and_written_back() {
    let config = read(&mixtral(), None).unwrap();
    assert_eq!(config.architecture, "MixtralForCausalLM");
    assert_eq!(config.experts, Some(ExpertsConfig { num_experts: 8, num_experts_per_tok: 2 }));
    assert_eq!((config.mlps_per_token(), config.sliding_window, config.rope_theta), (2, None, 1e6));
    // What is not said is `MixtralConfig`'s default.
    let mut bare = mixtral();
    for key in [
        "architectures",
        "num_experts_per_tok",
        "num_local_experts",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
    ] {
        bare = without(bare, key);
    }
    assert_eq!(read(&bare, None).unwrap(), config);
    assert_eq!(
        read(&without(bare, "max_position_embeddings"), None).unwrap().max_position_embeddings,
        131_072
    );
    // Noise is for training.
    assert_eq!(read(&with(mixtral(), "router_jitter_noise", json!(0.1)), None).unwrap(), config);

    let path = Path::new("config.json");
    let written = config.to_hf(path, StorageType::BF16).unwrap();
    assert_eq!(ModelConfig::from_hf(path, &written, None).unwrap(), config);
    assert!(matches!(written.get("num_local_experts"), Some(n) if *n == json!(8)));
    let metadata = config.to_gguf(path).unwrap();
    let number = |key: &str| metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    assert_eq!(number("llama.expert_count"), Some(crate::gguf::Value::U32(8)));
    assert_eq!(number("llama.expert_used_count"), Some(crate::gguf::Value::U32(2)));
    // A model without experts has the description, and the digest, that it had.
    let dense = serde_json::to_value(read(&llama_31(), None).unwrap()).unwrap();
    assert!(dense.get("experts").is_none());

    for (key, value) in [
        ("num_local_experts", json!(0)),
        ("num_local_experts", json!(1 << 20)),
        ("num_local_experts", json!(-8)),
        ("num_experts_per_tok", json!(0)),
        ("num_experts_per_tok", json!(9)),
    ] {
        let message = read(&with(mixtral(), key, value), None).unwrap_err().to_string();
        assert!(message.contains(key), "{key}: {message}");
    }
}

#[test]
fn a_config_by_itself_tells_its_element_type() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |config: &Value| {
        std::fs::write(&path, config.to_string()).unwrap();
        HfConfigFile::read(&path)
    };
    for (key, value, storage) in [
        ("torch_dtype", json!("bfloat16"), Some(StorageType::BF16)),
        ("dtype", json!("float16"), Some(StorageType::F16)),
        ("torch_dtype", json!("float32"), Some(StorageType::F32)),
        ("torch_dtype", Value::Null, None),
    ] {
        let file = read(&with(llama_31(), key, value.clone())).unwrap();
        assert_eq!(file.storage, storage, "{key} = {value}");
        assert_eq!(file.config.num_layers, 32);
    }
    let message = read(&with(llama_31(), "torch_dtype", json!("float8_e4m3fn"))).unwrap_err().to_string();
    assert!(message.contains("torch_dtype") && message.contains("float8_e4m3fn"), "{message}");
    let message = read(&with(llama_31(), "hidden_size", json!(1_u64 << 40))).unwrap_err().to_string();
    assert!(message.contains("hidden_size") && message.contains("config.json"), "{message}");
    assert!(read(&json!([1])).is_err());
    assert!(HfConfigFile::read(folder.path()).is_err());
}

#[test]
fn rope_parameters_of_transformers_5_mean_the_same() {
    let old = llama_31();
    let mut parameters = old["rope_scaling"].clone();
    parameters["rope_theta"] = json!(500000.0);
    let new =
        without(without(with(old.clone(), "rope_parameters", parameters), "rope_scaling"), "rope_theta");
    assert_eq!(read(&new, None).unwrap(), read(&old, None).unwrap());

    let plain = with(
        without(old, "rope_scaling"),
        "rope_parameters",
        json!({"rope_type": "default", "rope_theta": 7.0}),
    );
    let config = read(&plain, None).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling), (7.0, RopeScaling::None));
}

#[test]
fn generation_config_adds_ids_in_front() {
    let generation = json!({"eos_token_id": [128009, 5], "bos_token_id": 3, "temperature": 0.6});
    let config = read(&llama_31(), Some(&generation)).unwrap();
    assert_eq!(config.eos_token_ids, [128009, 5, 128001, 128008]);
    assert_eq!(config.bos_token_id, Some(128000));
    let bare = without(without(llama_31(), "bos_token_id"), "eos_token_id");
    let config = read(&bare, Some(&generation)).unwrap();
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(3), vec![128009, 5]));
}

#[test]
fn absent_keys_take_the_familys_defaults() {
    let bare = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100
    });
    let config = read(&bare, None).unwrap();
    assert_eq!(config.architecture, "LlamaForCausalLM");
    assert_eq!((config.num_kv_heads, config.max_position_embeddings, config.rope_theta), (4, 2048, 10_000.0));
    assert_eq!((config.sliding_window, config.tie_word_embeddings), (None, false));

    let mistral = with(with(bare.clone(), "model_type", json!("mistral")), "num_attention_heads", json!(8));
    let config = read(&mistral, None).unwrap();
    assert_eq!(config.architecture, "MistralForCausalLM");
    assert_eq!((config.num_kv_heads, config.sliding_window), (8, Some(4096)));
    assert_eq!(read(&with(mistral, "sliding_window", Value::Null), None).unwrap().sliding_window, None);

    let other =
        with(with(bare, "model_type", json!("zamba9")), "architectures", json!(["Zamba9ForCausalLM"]));
    let config = read(&other, None).unwrap();
    assert_eq!((config.architecture.as_str(), config.tie_word_embeddings), ("Zamba9ForCausalLM", true));
}

#[test]
fn head_dim_may_differ_from_the_quotient() {
    let config = read(&with(llama_31(), "head_dim", json!(64)), None).unwrap();
    assert_eq!((config.head_dim, config.q_size()), (64, 2048));
    let odd = with(llama_31(), "num_attention_heads", json!(24));
    assert!(read(&odd, None).unwrap_err().to_string().contains("num_attention_heads"));
    assert!(read(&with(odd, "head_dim", json!(128)), None).is_ok());
}

#[test]
fn rope_scalings() {
    let scaling = |value: Value| read(&with(llama_31(), "rope_scaling", value), None).map(|c| c.rope_scaling);
    assert_eq!(scaling(Value::Null).unwrap(), RopeScaling::None);
    assert_eq!(scaling(json!({"rope_type": "default"})).unwrap(), RopeScaling::None);
    assert_eq!(scaling(json!({"type": "linear", "factor": 8})).unwrap(), RopeScaling::Linear { factor: 8.0 });
    let yarn = |value: Value| match scaling(value).unwrap() {
        RopeScaling::Yarn {
            factor,
            original_max_position,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => (factor, original_max_position, beta_fast, beta_slow, attention_factor, truncate),
        other => panic!("{other:?}"),
    };
    let plain = yarn(json!({"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}));
    // 0.1 ln 16 + 1, of the paper's equation 22.
    assert!((plain.4 - 1.277_258_872_223_978_1).abs() < 1e-15);
    assert_eq!((plain.0, plain.1, plain.2, plain.3, plain.5), (16.0, 4096, 32.0, 1.0, true));
    let given = yarn(
        json!({"rope_type": "yarn", "factor": 4, "attention_factor": 0.9, "beta_fast": 20, "beta_slow": 2, "truncate": false}),
    );
    assert_eq!(given, (4.0, 131072, 20.0, 2.0, 0.9, false));
    let mscale = yarn(json!({"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}));
    let term = |m: f64| 0.1 * m * 40f64.ln() + 1.0;
    assert!((mscale.4 - term(0.707) / term(1.0)).abs() < 1e-15);

    for (value, expected) in [
        (json!({"rope_type": "dynamic", "factor": 2.0}), "\"dynamic\", which is not supported"),
        (json!({"rope_type": "longrope", "factor": 2.0}), "original_max_position_embeddings"),
        (json!({"type": "su"}), "original_max_position_embeddings"),
        (json!({"type": "linear"}), "rope_scaling.factor"),
        (json!({"type": "linear", "factor": 0.0}), "rope_scaling.factor"),
        (json!({"type": "linear", "factor": -2.0}), "rope_scaling.factor"),
        (json!({"type": "linear", "factor": 1e300}), "rope_scaling.factor"),
        (json!({"type": "linear", "factor": "8"}), "rope_scaling.factor"),
        (json!({"rope_type": "llama3", "factor": 8.0}), "rope_scaling.low_freq_factor"),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
            "rope_scaling.low_freq_factor",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 0}),
            "original_max_position_embeddings",
        ),
        (json!({"rope_type": "yarn", "factor": 2, "attention_factor": 0}), "attention_factor"),
        (json!({"rope_type": "yarn", "factor": 2, "beta_slow": 64}), "beta_slow"),
        (json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!("linear"), "expected an object"),
    ] {
        let message = scaling(value).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let layered = with(llama_31(), "rope_parameters", json!({"full_attention": {"rope_type": "default"}}));
    assert!(read(&layered, None).unwrap_err().to_string().contains("rope_parameters.full_attention"));
}

#[test]
fn absurd_values_are_errors_that_name_the_key() {
    for (key, values) in [
        (
            "hidden_size",
            vec![
                json!(0),
                json!(-4096),
                json!(4097),
                json!(1u64 << 40),
                json!("4096"),
                json!(4096.5),
                Value::Null,
            ],
        ),
        ("intermediate_size", vec![json!(0), json!(u64::MAX), Value::Null]),
        ("num_hidden_layers", vec![json!(0), json!(1_000_000), json!(true), Value::Null]),
        ("num_attention_heads", vec![json!(0), json!(1 << 20), Value::Null]),
        ("num_key_value_heads", vec![json!(0), json!(5), json!(64)]),
        ("head_dim", vec![json!(0), json!(63), json!(1 << 20)]),
        ("vocab_size", vec![json!(0), json!(1u64 << 32), Value::Null]),
        ("rms_norm_eps", vec![json!(0.0), json!(-1e-5), json!(1.0), json!("1e-5")]),
        ("rope_theta", vec![json!(0.0), json!(-1.0), json!(1e300)]),
        ("max_position_embeddings", vec![json!(0), json!(u64::MAX)]),
        ("sliding_window", vec![json!(0), json!(u64::MAX)]),
        ("bos_token_id", vec![json!(128256), json!(-1), json!(u64::MAX)]),
        (
            "eos_token_id",
            vec![json!(128256), json!([1, 128256]), json!([1, "2"]), json!((0..65).collect::<Vec<_>>())],
        ),
        ("hidden_act", vec![json!("swiglu-2"), json!(1)]),
        ("tie_word_embeddings", vec![json!("true"), json!(1)]),
        ("attention_bias", vec![json!(0)]),
        ("partial_rotary_factor", vec![json!(0.5)]),
        ("architectures", vec![json!("LlamaForCausalLM"), json!([1])]),
        ("quantization_config", vec![json!({"quant_method": "gptq"}), json!({})]),
    ] {
        for value in values {
            let config = with(llama_31(), key, value.clone());
            let message = read(&config, None).map_or_else(|e| e.to_string(), |c| format!("accepted: {c:?}"));
            // A hidden size that its heads do not divide is told by the heads.
            let named = message.contains(&format!("key `{key}`")) || message.contains("hidden_size");
            assert!(named, "{key} = {value}: {message}");
            assert!(message.starts_with("config.json: "), "{message}");
        }
    }
    let message =
        read(&with(llama_31(), "quantization_config", json!({"quant_method": "gptq"})), None).unwrap_err();
    assert!(message.to_string().contains("gptq"), "{message}");
    let message = read(&llama_31(), Some(&json!({"eos_token_id": "x"}))).unwrap_err().to_string();
    assert!(message.starts_with("generation_config.json: key `eos_token_id`"), "{message}");
}

#[test]
fn activations() {
    let act = |name: &str| read(&with(llama_31(), "hidden_act", json!(name)), None).unwrap().hidden_act;
    assert_eq!(act("swish"), HiddenAct::Silu);
    assert_eq!(act("gelu"), HiddenAct::Gelu);
    assert_eq!(act("gelu_pytorch_tanh"), HiddenAct::GeluTanh);
    assert_eq!(act("relu"), HiddenAct::Relu);
}

mod from_gguf {
    use tempfile::tempdir;

    use super::*;
    use crate::convert;
    use crate::gguf::{self, GgufFile, GgufTensor, Value};
    use crate::storage::StorageType;

    /// A small Llama with `changes` to its metadata (`None` takes a key out) and further tensors.
    fn read(changes: &[(&str, Option<Value>)], more: &[(&str, Vec<f32>)]) -> Result<ModelConfig> {
        let mut metadata: Vec<(String, Value)> = [
            ("general.architecture", Value::String("llama".into())),
            ("llama.block_count", Value::U32(2)),
            ("llama.context_length", Value::U32(4096)),
            ("llama.embedding_length", Value::U32(64)),
            ("llama.feed_forward_length", Value::U64(96)),
            ("llama.attention.head_count", Value::I32(4)),
            ("llama.attention.head_count_kv", Value::U16(2)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(500_000.0)),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
            ("tokenizer.ggml.eot_token_id", Value::U32(5)),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .to_vec();
        for (key, value) in changes {
            metadata.retain(|(k, _)| k != key);
            metadata.extend(value.clone().map(|v| ((*key).to_owned(), v)));
        }
        let mut tensors = vec![GgufTensor {
            name: "token_embd.weight".into(),
            storage: StorageType::F32,
            shape: vec![10, 64],
        }];
        for (name, values) in more {
            tensors.push(GgufTensor {
                name: (*name).into(),
                storage: StorageType::F32,
                shape: vec![values.len()],
            });
        }
        let dir = tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        gguf::write(&path, &metadata, &tensors, |i| match i {
            0 => Ok(vec![0; 2560]),
            _ => convert::from_f32(StorageType::F32, &more[i - 1].1, 1),
        })
        .unwrap();
        ModelConfig::from_gguf(&GgufFile::open(&path).unwrap())
    }

    #[test]
    fn metadata_gives_a_configuration() {
        let config = read(&[], &[]).unwrap();
        assert_eq!(config.architecture, "LlamaForCausalLM");
        assert_eq!((config.hidden_size, config.intermediate_size, config.num_layers), (64, 96, 2));
        assert_eq!(
            (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size),
            (4, 2, 16, 10)
        );
        assert_eq!((config.rope_theta, config.max_position_embeddings), (500_000.0, 4096));
        assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2, 5]));
        assert!(config.tie_word_embeddings);
        assert!(!read(&[], &[("output.weight", vec![0.0; 64])]).unwrap().tie_word_embeddings);
        let experts = |count: u64, used: Option<u64>| {
            let used = used.map(Value::U64);
            read(&[("llama.expert_count", Some(Value::U64(count))), ("llama.expert_used_count", used)], &[])
        };
        let config = experts(8, Some(2)).unwrap();
        assert_eq!(config.architecture, "MixtralForCausalLM");
        assert_eq!(config.experts, Some(ExpertsConfig { num_experts: 8, num_experts_per_tok: 2 }));
        assert_eq!(experts(0, None).unwrap().experts, None);
        for (count, used, key) in [
            (8, None, "llama.expert_used_count"),
            (8, Some(9), "num_experts_per_tok"),
            (8, Some(0), "num_experts_per_tok"),
            (1 << 40, Some(2), "num_local_experts"),
        ] {
            let message = experts(count, used).unwrap_err().to_string();
            assert!(message.contains(key), "{count}, {used:?}: {message}");
        }
        let other = read(&[("general.architecture", Some(Value::String("llama2".into())))], &[]);
        assert!(other.unwrap_err().to_string().contains("llama2.embedding_length"));
    }

    #[test]
    fn rope_scalings_and_factors() {
        let text = |s: &str| Some(Value::String(s.into()));
        let scaling = |changes: &[(&str, Option<Value>)]| read(changes, &[]).map(|c| c.rope_scaling);
        assert_eq!(scaling(&[]).unwrap(), RopeScaling::None);
        let linear = [
            ("llama.rope.scaling.type", text("linear")),
            ("llama.rope.scaling.factor", Some(Value::F32(4.0))),
        ];
        assert_eq!(scaling(&linear).unwrap(), RopeScaling::Linear { factor: 4.0 });
        let old = [("llama.rope.scale_linear", Some(Value::F32(2.0)))];
        assert_eq!(scaling(&old).unwrap(), RopeScaling::Linear { factor: 2.0 });
        let yarn = [
            ("llama.rope.scaling.type", text("yarn")),
            ("llama.rope.scaling.factor", Some(Value::F32(16.0))),
            ("llama.rope.scaling.original_context_length", Some(Value::U32(1024))),
        ];
        match scaling(&yarn).unwrap() {
            RopeScaling::Yarn { factor, original_max_position, attention_factor, truncate, .. } => {
                assert_eq!((factor, original_max_position, truncate), (16.0, 1024, true));
                assert!((attention_factor - 1.277_258_872_223_978_1).abs() < 1e-12);
            }
            other => panic!("{other:?}"),
        }
        let longrope = [("llama.rope.scaling.type", text("longrope"))];
        assert!(scaling(&longrope).unwrap_err().to_string().contains("longrope"));

        let factors: Vec<f32> = (1..=8).map(|i| i as f32).collect();
        let with_factors = read(&[], &[("rope_freqs.weight", factors.clone())]).unwrap();
        assert_eq!(with_factors.rope_scaling, RopeScaling::FrequencyFactors(factors.clone()));
        assert!(read(&linear, &[("rope_freqs.weight", factors)]).is_err());
        for bad in [vec![1.0; 7], vec![0.0; 8], vec![f32::NAN; 8], vec![-1.0; 8], vec![f32::INFINITY; 8]] {
            let message = read(&[], &[("rope_freqs.weight", bad)]).unwrap_err().to_string();
            assert!(message.contains("rope_freqs.weight"), "{message}");
        }
    }

    #[test]
    fn absurd_values_are_errors_that_name_the_key() {
        let number = |v: u64| Some(Value::U64(v));
        for (key, value) in [
            ("llama.block_count", number(0)),
            ("llama.block_count", number(u64::MAX)),
            ("llama.block_count", None),
            ("llama.block_count", Some(Value::I32(-3))),
            ("llama.block_count", Some(Value::String("2".into()))),
            ("llama.attention.head_count", number(0)),
            ("llama.attention.head_count", number(3)),
            ("llama.attention.key_length", number(0)),
            ("llama.attention.value_length", number(8)),
            ("llama.rope.dimension_count", number(8)),
            ("llama.vocab_size", number(11)),
            ("llama.attention.layer_norm_rms_epsilon", None),
            ("llama.attention.layer_norm_rms_epsilon", Some(Value::U32(1))),
            ("tokenizer.ggml.eos_token_id", Some(Value::F32(2.0))),
            ("general.architecture", None),
        ] {
            let message = read(&[(key, value.clone())], &[])
                .map_or_else(|e| e.to_string(), |c| format!("accepted: {c:?}"));
            let hf = [("llama.block_count", "num_hidden_layers"), ("llama.attention.key_length", "head_dim")];
            let named = message.contains(key) || hf.iter().any(|(k, n)| *k == key && message.contains(n));
            assert!(named, "{key} = {value:?}: {message}");
        }
        for (key, value) in [
            ("llama.attention.head_count_kv", number(3)),
            ("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(f32::NAN))),
            ("llama.rope.freq_base", Some(Value::F32(f32::INFINITY))),
            ("llama.rope.freq_base", Some(Value::F32(-1.0))),
            ("tokenizer.ggml.eos_token_id", number(10)),
            ("llama.context_length", number(u64::MAX)),
        ] {
            assert!(read(&[(key, value.clone())], &[]).is_err(), "{key} = {value:?}");
        }
    }
}
