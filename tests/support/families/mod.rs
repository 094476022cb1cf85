//! Small random models of every architecture beside Llama's, as a Hugging Face folder and as a GGUF file ([`gguf`]), and what they
//! compute ([`reference`]).

mod gguf;
mod reference;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use wardrobe_formats::peft::{LoraModule, ModuleSelector};
use wardrobe_formats::safetensors::{self, TensorData};
use wardrobe_formats::{AdapterConfig, PeftAdapter, StorageType, convert};

use super::lora;
use super::random::Rng;
use super::tiny::TinyModel;

#[allow(unused_imports, reason = "not every test asks the definitions")]
pub use reference::Reference;

pub const VOCAB: usize = 320;
const HIDDEN: usize = 64;
const INNER: usize = 96;
const LAYERS: usize = 3;
const HEADS: usize = 4;

/// A model: its `config.json` and its tensors.
#[derive(Debug, Clone)]
pub struct Family {
    pub name: &'static str,
    pub config: Value,
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

/// Puts together random tensors.
struct Maker {
    rng: Rng,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Maker { rng: Rng::new(seed), tensors: Vec::new() }
    }

    fn put(&mut self, name: String, shape: Vec<usize>, mean: f32, std: f32) {
        let values = self.rng.normals(shape.iter().product(), std).iter().map(|v| mean + v).collect();
        self.tensors.push((name, shape, values));
    }

    fn matrix(&mut self, path: &str, out: usize, input: usize, gain: f32) {
        self.put(format!("{path}.weight"), vec![out, input], 0.0, gain / (input as f32).sqrt());
    }

    fn biased(&mut self, path: &str, out: usize, input: usize, gain: f32) {
        self.matrix(path, out, input, gain);
        self.put(format!("{path}.bias"), vec![out], 0.0, 0.3);
    }

    fn norm(&mut self, path: &str, len: usize, mean: f32) {
        self.put(format!("{path}.weight"), vec![len], mean, 0.2);
    }
}

fn with(mut config: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

fn shape(architecture: &str, model_type: &str, changes: &[(&str, Value)]) -> Value {
    let config = json!({
        "architectures": [architecture], "model_type": model_type, "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "eos_token_id": VOCAB - 1,
    });
    with(config, changes)
}

/// Qwen2, its late layers with a window if one is given.
pub fn qwen2(name: &'static str, window: Option<usize>) -> Family {
    let config = shape(
        "Qwen2ForCausalLM",
        "qwen2",
        &[
            ("num_key_value_heads", json!(2)),
            ("rms_norm_eps", json!(1e-6)),
            ("tie_word_embeddings", json!(true)),
            ("use_sliding_window", json!(window.is_some())),
            ("sliding_window", json!(window)),
            ("max_window_layers", json!(1)),
        ],
    );
    let mut m = Maker::new(11);
    m.put("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN], 0.0, 0.3);
    llama_layers(&mut m, 16, 2, true, false);
    m.norm("model.norm", HIDDEN, 1.0);
    Family { name, config, tensors: m.tensors }
}

fn llama_layers(m: &mut Maker, head_dim: usize, kv_heads: usize, biases: bool, head_norms: bool) {
    for layer in 0..LAYERS {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        for (part, out, gain) in [
            ("self_attn.q_proj", HEADS * head_dim, 1.5),
            ("self_attn.k_proj", kv_heads * head_dim, 1.5),
            ("self_attn.v_proj", kv_heads * head_dim, 1.0),
        ] {
            if biases {
                m.biased(&at(part), out, HIDDEN, gain)
            } else {
                m.matrix(&at(part), out, HIDDEN, gain)
            }
        }
        if head_norms {
            m.norm(&at("self_attn.q_norm"), head_dim, 1.0);
            m.norm(&at("self_attn.k_norm"), head_dim, 1.0);
        }
        m.matrix(&at("self_attn.o_proj"), HIDDEN, HEADS * head_dim, 1.0);
        m.matrix(&at("mlp.gate_proj"), INNER, HIDDEN, 1.0);
        m.matrix(&at("mlp.up_proj"), INNER, HIDDEN, 1.0);
        m.matrix(&at("mlp.down_proj"), HIDDEN, INNER, 1.0);
        m.norm(&at("input_layernorm"), HIDDEN, 1.0);
        m.norm(&at("post_attention_layernorm"), HIDDEN, 1.0);
    }
}

/// Qwen3, whose heads are wider than the residual stream over their number.
pub fn qwen3() -> Family {
    let config = shape(
        "Qwen3ForCausalLM",
        "qwen3",
        &[
            ("num_key_value_heads", json!(2)),
            ("head_dim", json!(32)),
            ("rms_norm_eps", json!(1e-6)),
            ("tie_word_embeddings", json!(false)),
            ("rope_theta", json!(1e6)),
        ],
    );
    let mut m = Maker::new(12);
    m.put("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN], 0.0, 0.3);
    llama_layers(&mut m, 32, 2, false, true);
    m.norm("model.norm", HIDDEN, 1.0);
    m.matrix("lm_head", VOCAB, HIDDEN, 3.0);
    Family { name: "qwen3", config, tensors: m.tensors }
}

/// Phi-3 with changes to its configuration.
pub fn phi3(name: &'static str, changes: &[(&str, Value)]) -> Family {
    let config = shape(
        "Phi3ForCausalLM",
        "phi3",
        &[
            ("num_key_value_heads", json!(2)),
            ("rms_norm_eps", json!(1e-5)),
            ("original_max_position_embeddings", json!(64)),
            ("tie_word_embeddings", json!(false)),
        ],
    );
    let mut m = Maker::new(13);
    m.put("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN], 0.0, 0.3);
    for layer in 0..LAYERS {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        m.matrix(&at("self_attn.qkv_proj"), (HEADS + 4) * 16, HIDDEN, 1.5);
        m.matrix(&at("self_attn.o_proj"), HIDDEN, HEADS * 16, 1.0);
        m.matrix(&at("mlp.gate_up_proj"), 2 * INNER, HIDDEN, 1.0);
        m.matrix(&at("mlp.down_proj"), HIDDEN, INNER, 1.0);
        m.norm(&at("input_layernorm"), HIDDEN, 1.0);
        m.norm(&at("post_attention_layernorm"), HIDDEN, 1.0);
    }
    m.norm("model.norm", HIDDEN, 1.0);
    m.matrix("lm_head", VOCAB, HIDDEN, 3.0);
    Family { name, config: with(config, changes), tensors: m.tensors }
}

/// LongRoPE's keys, for `pairs` pairs.
pub fn longrope(pairs: usize) -> Value {
    let factors = |by: f64| (0..pairs).map(|i| 1.0 + by * i as f64).collect::<Vec<_>>();
    json!({ "type": "longrope", "short_factor": factors(0.05), "long_factor": factors(0.6) })
}

/// GPT-NeoX with changes to its configuration.
pub fn gpt_neox(name: &'static str, changes: &[(&str, Value)]) -> Family {
    let own = [
        ("layer_norm_eps", json!(1e-5)),
        ("rotary_pct", json!(0.5)),
        ("rotary_emb_base", json!(20000)),
        ("hidden_act", json!("gelu")),
        ("tie_word_embeddings", json!(false)),
        ("use_parallel_residual", json!(true)),
    ];
    let mut config = shape("GPTNeoXForCausalLM", "gpt_neox", &own);
    config.as_object_mut().unwrap().remove("rope_theta");
    let mut m = Maker::new(14);
    let norm = |m: &mut Maker, path: &str| {
        m.norm(path, HIDDEN, 1.0);
        m.put(format!("{path}.bias"), vec![HIDDEN], 0.0, 0.2);
    };
    m.put("gpt_neox.embed_in.weight".into(), vec![VOCAB, HIDDEN], 0.1, 0.3);
    for layer in 0..LAYERS {
        let at = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        m.biased(&at("attention.query_key_value"), 3 * HIDDEN, HIDDEN, 1.5);
        m.biased(&at("attention.dense"), HIDDEN, HIDDEN, 1.0);
        m.biased(&at("mlp.dense_h_to_4h"), INNER, HIDDEN, 1.0);
        m.biased(&at("mlp.dense_4h_to_h"), HIDDEN, INNER, 1.0);
        norm(&mut m, &at("input_layernorm"));
        norm(&mut m, &at("post_attention_layernorm"));
    }
    norm(&mut m, "gpt_neox.final_layer_norm");
    m.matrix("embed_out", VOCAB, HIDDEN, 3.0);
    Family { name, config: with(config, changes), tensors: m.tensors }
}

/// Gemma 2, with bounds near its scores and logits.
pub fn gemma2(changes: &[(&str, Value)]) -> Family {
    let config = shape(
        "Gemma2ForCausalLM",
        "gemma2",
        &[
            ("num_key_value_heads", json!(2)),
            ("head_dim", json!(32)),
            ("rms_norm_eps", json!(1e-6)),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("query_pre_attn_scalar", json!(24)),
            ("attn_logit_softcapping", json!(3.0)),
            ("final_logit_softcapping", json!(6.0)),
            ("sliding_window", json!(20)),
        ],
    );
    let mut m = Maker::new(15);
    m.put("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN], 0.0, 0.2);
    for layer in 0..LAYERS {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        m.matrix(&at("self_attn.q_proj"), HEADS * 32, HIDDEN, 1.2);
        m.matrix(&at("self_attn.k_proj"), 2 * 32, HIDDEN, 1.2);
        m.matrix(&at("self_attn.v_proj"), 2 * 32, HIDDEN, 1.0);
        m.matrix(&at("self_attn.o_proj"), HIDDEN, HEADS * 32, 1.0);
        m.matrix(&at("mlp.gate_proj"), INNER, HIDDEN, 1.0);
        m.matrix(&at("mlp.up_proj"), INNER, HIDDEN, 1.0);
        m.matrix(&at("mlp.down_proj"), HIDDEN, INNER, 1.0);
        for part in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            m.norm(&at(&format!("{part}_layernorm")), HIDDEN, 0.1);
        }
    }
    m.norm("model.norm", HIDDEN, 0.1);
    Family { name: "gemma2", config: with(config, changes), tensors: m.tensors }
}

/// One of each kind.
pub fn all() -> Vec<Family> {
    let long = [("rope_scaling", longrope(8)), ("max_position_embeddings", json!(512))];
    let short = [
        ("rope_scaling", longrope(8)),
        ("max_position_embeddings", json!(128)),
        ("original_max_position_embeddings", json!(128)),
    ];
    let partial = [("partial_rotary_factor", json!(0.75)), ("tie_word_embeddings", json!(false))];
    vec![
        qwen2("qwen2", None),
        qwen2("qwen2 with windows", Some(20)),
        qwen3(),
        phi3("phi3", &[("sliding_window", json!(20))]),
        phi3("phi3 with the long factors", &long),
        phi3("phi3 with the short factors", &short),
        phi3("phi3 of which a part rotates", &partial),
        gpt_neox("gpt_neox", &[]),
        gpt_neox(
            "gpt_neox, one after the other",
            &[
                ("use_parallel_residual", json!(false)),
                ("hidden_act", json!("gelu_new")),
                ("rotary_pct", json!(1.0)),
            ],
        ),
        gemma2(&[]),
    ]
}

impl Family {
    /// Writes the folder, with a tokenizer.
    pub fn write(&self) -> TempDir {
        let dir = TinyModel { vocab_size: VOCAB, ..TinyModel::default() }.write();
        std::fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        let bytes: Vec<Vec<u8>> =
            self.tensors.iter().map(|(.., v)| convert::from_f32(StorageType::F32, v, 1).unwrap()).collect();
        let data: Vec<TensorData<'_>> = (self.tensors.iter().zip(&bytes))
            .map(|((name, shape, _), bytes)| TensorData { name, storage: StorageType::F32, shape, bytes })
            .collect();
        safetensors::write(&dir.path().join("model.safetensors"), &data, &BTreeMap::new()).unwrap();
        dir
    }

    /// The paths of all linear layers, the head apart.
    pub fn linear_paths(&self) -> Vec<(String, usize, usize)> {
        let is_linear = |name: &str| {
            !["model.embed_tokens.weight", "gpt_neox.embed_in.weight", "lm_head.weight", "embed_out.weight"]
                .contains(&name)
        };
        (self.tensors.iter())
            .filter(|(name, shape, _)| shape.len() == 2 && is_linear(name))
            .map(|(name, shape, _)| (name.strip_suffix(".weight").unwrap().to_owned(), shape[0], shape[1]))
            .collect()
    }

    /// A random adapter of all linear layers, and of the head if it is wanted, written to `dir`.
    pub fn adapter(&self, dir: &Path, with_head: bool) -> PeftAdapter {
        let (rank, alpha) = (4, 8.0);
        let mut paths = self.linear_paths();
        let mut config = AdapterConfig {
            target_modules: ModuleSelector::AllLinear,
            ..AdapterConfig::new(rank, alpha, Vec::new())
        };
        if with_head {
            let head = if self.name.starts_with("gpt_neox") { "embed_out" } else { "lm_head" };
            let mut names: Vec<String> =
                paths.iter().map(|(path, ..)| path.rsplit('.').next().unwrap().to_owned()).collect();
            names.push(head.to_owned());
            names.sort();
            names.dedup();
            config.target_modules = ModuleSelector::List(names);
            paths.push((head.to_owned(), VOCAB, HIDDEN));
        }
        let mut rng = Rng::new(3);
        let scale = alpha / rank as f64;
        let modules: Vec<LoraModule> = (paths.into_iter())
            .map(|(module_path, out, input)| {
                let a = rng.normals(rank * input, 1.0 / (input as f32).sqrt());
                let b = rng.normals(out * rank, 0.5 / (scale as f32 * (rank as f32).sqrt()));
                LoraModule {
                    module_path,
                    a: lora::tensor(StorageType::F32, vec![rank, input], &a),
                    b: lora::tensor(StorageType::F32, vec![out, rank], &b),
                    magnitude: None,
                    rank,
                    scale,
                }
            })
            .collect();
        lora::write(&config, &modules, dir);
        PeftAdapter::open(dir).unwrap()
    }
}
