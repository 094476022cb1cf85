//! Small random models of every architecture beside Llama's, as a Hugging Face folder and as a GGUF file, and what they compute:
//! each architecture's definition in candle's plain tensor operations, in f64, with gradients.
//!
//! The reference reads the model's `config.json` itself and shares no code with ours. GGUF files are written as llama.cpp's
//! converter does, from its description.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};
use serde_json::{Value, json};
use tempfile::TempDir;
use wardrobe::TokenId;
use wardrobe_formats::gguf::{self, GgufTensor, Value as Meta};
use wardrobe_formats::peft::{LoraModule, ModuleSelector};
use wardrobe_formats::safetensors::{self, TensorData};
use wardrobe_formats::{AdapterConfig, PeftAdapter, StorageType, convert};

use super::lora;
use super::random::Rng;
use super::tiny::TinyModel;

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

    fn number(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    /// Writes a GGUF file as llama.cpp's converter does.
    pub fn write_gguf(&self, path: &Path) {
        let arch = match self.config["model_type"].as_str().unwrap() {
            "gpt_neox" => "gptneox",
            other => other,
        };
        let key = |name: &str| format!("{arch}.{name}");
        let number = |name: &str, value: usize| (key(name), Meta::U32(value as u32));
        let float = |name: &str, value: &Value| (key(name), Meta::F32(value.as_f64().unwrap() as f32));
        let c = &self.config;
        let head_dim = c["head_dim"].as_u64().map_or(HIDDEN / HEADS, |d| d as usize);
        let mut metadata = vec![
            ("general.architecture".to_owned(), Meta::String(arch.to_owned())),
            number("block_count", LAYERS),
            number("context_length", self.number("max_position_embeddings")),
            number("embedding_length", HIDDEN),
            number("feed_forward_length", INNER),
            number("attention.head_count", HEADS),
        ];
        let rotary = c["rotary_pct"].as_f64().or(c["partial_rotary_factor"].as_f64()).unwrap_or(1.0);
        let rotary = (head_dim as f64 * rotary) as usize;
        if arch == "gptneox" {
            metadata.push(float("attention.layer_norm_epsilon", &c["layer_norm_eps"]));
            metadata.push(float("rope.freq_base", &c["rotary_emb_base"]));
            metadata.push(number("rope.dimension_count", rotary));
            let parallel = c["use_parallel_residual"].as_bool().unwrap();
            metadata.push((key("use_parallel_residual"), Meta::Bool(parallel)));
        } else {
            metadata.push(number("attention.head_count_kv", 2));
            metadata.push(float("attention.layer_norm_rms_epsilon", &c["rms_norm_eps"]));
            metadata.push(float("rope.freq_base", &c["rope_theta"]));
        }
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        match arch {
            "qwen3" => metadata.push(number("attention.key_length", head_dim)),
            "phi3" => {
                metadata.push(number("rope.dimension_count", rotary));
                metadata.push(number(
                    "attention.sliding_window",
                    c["sliding_window"].as_u64().unwrap_or(0) as usize,
                ));
                let original = self.number("original_max_position_embeddings");
                metadata.push(number("rope.scaling.original_context_length", original));
                if let Some(scaling) = c["rope_scaling"].as_object() {
                    let scale = self.number("max_position_embeddings") as f64 / original as f64;
                    let attention =
                        if scale > 1.0 { (1.0 + scale.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
                    metadata.push((key("rope.scaling.attn_factor"), Meta::F32(attention as f32)));
                    for kind in ["long", "short"] {
                        let values: Vec<f32> = scaling[&format!("{kind}_factor")]
                            .as_array()
                            .unwrap()
                            .iter()
                            .map(|v| v.as_f64().unwrap() as f32)
                            .collect();
                        tensors.push((format!("rope_factors_{kind}.weight"), vec![values.len()], values));
                    }
                }
            }
            "gemma2" => {
                metadata.push(number("attention.key_length", head_dim));
                metadata.push(number("attention.value_length", head_dim));
                metadata.push(number("attention.sliding_window", self.number("sliding_window")));
                metadata.push(float("attn_logit_softcapping", &c["attn_logit_softcapping"]));
                metadata.push(float("final_logit_softcapping", &c["final_logit_softcapping"]));
            }
            _ => {}
        }
        for (name, shape, values) in &self.tensors {
            let mut values = values.clone();
            if name.contains("query_key_value") {
                // [head][q, k, v][width] to [q, k, v][head][width].
                let row: usize = shape.iter().skip(1).product();
                let piece = HIDDEN / HEADS * row;
                let parts = (0..3).flat_map(|part| (0..HEADS).map(move |head| 3 * head + part));
                values = parts.flat_map(|i| values[i * piece..(i + 1) * piece].to_vec()).collect();
            }
            if arch == "gemma2" && name.ends_with("norm.weight") {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            tensors.push((gguf_name(arch, name), shape.clone(), values));
        }
        let described: Vec<GgufTensor> = (tensors.iter())
            .map(|(name, shape, _)| GgufTensor {
                name: name.clone(),
                storage: StorageType::F32,
                shape: shape.clone(),
            })
            .collect();
        gguf::write(path, &metadata, &described, |i| convert::from_f32(StorageType::F32, &tensors[i].2, 1))
            .unwrap();
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

fn gguf_name(arch: &str, name: &str) -> String {
    let (module, parameter) = name.rsplit_once('.').unwrap();
    let module = match module {
        "model.embed_tokens" | "gpt_neox.embed_in" => "token_embd".to_owned(),
        "lm_head" | "embed_out" => "output".to_owned(),
        "model.norm" | "gpt_neox.final_layer_norm" => "output_norm".to_owned(),
        _ => {
            let (_, rest) = module.split_once("layers.").unwrap();
            let (layer, part) = rest.split_once('.').unwrap();
            let part = match part {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" if arch == "gemma2" => "post_attention_norm",
                "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
                "post_feedforward_layernorm" => "post_ffw_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "self_attn.qkv_proj" | "attention.query_key_value" => "attn_qkv",
                "self_attn.o_proj" | "attention.dense" => "attn_output",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" | "mlp.gate_up_proj" | "mlp.dense_h_to_4h" => "ffn_up",
                "mlp.down_proj" | "mlp.dense_4h_to_h" => "ffn_down",
                other => panic!("{other}"),
            };
            format!("blk.{layer}.{part}")
        }
    };
    format!("{module}.{parameter}")
}

/// A model in f64, with an adapter's factors as variables.
pub struct Reference {
    config: Value,
    weights: BTreeMap<String, Tensor>,
    pub factors: BTreeMap<String, (Var, Var, f64)>,
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

impl Reference {
    pub fn new(family: &Family, adapter: Option<&PeftAdapter>) -> Self {
        let weights =
            family.tensors.iter().map(|(name, shape, values)| (name.clone(), tensor(values, shape)));
        let var = |t: &wardrobe_formats::AdapterTensor| {
            Var::from_tensor(&tensor(&t.to_f32().unwrap(), t.shape())).unwrap()
        };
        let factors = adapter.iter().flat_map(|a| a.modules());
        let factors = factors.map(|m| (m.module_path.clone(), (var(&m.a), var(&m.b), m.scale)));
        Reference { config: family.config.clone(), weights: weights.collect(), factors: factors.collect() }
    }

    fn float(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("{key}"))
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.weights.get(name).unwrap_or_else(|| panic!("{name}"))
    }

    fn linear(&self, x: &Tensor, path: &str) -> Tensor {
        let name = format!("{path}.weight");
        let is_tied = !self.weights.contains_key(&name);
        let weight = self.weight(if is_tied { "model.embed_tokens.weight" } else { &name });
        let mut out = x.matmul(&weight.t().unwrap()).unwrap();
        if let Some(bias) = self.weights.get(&format!("{path}.bias")) {
            out = out.broadcast_add(bias).unwrap();
        }
        let Some((a, b, scale)) = self.factors.get(path) else { return out };
        let low = x.matmul(&a.t().unwrap()).unwrap();
        (out + (low.matmul(&b.t().unwrap()).unwrap() * *scale).unwrap()).unwrap()
    }

    /// Over the last extent, with `one` added to the weights.
    fn rms_norm(&self, x: &Tensor, path: &str, one: f64) -> Tensor {
        let mean = x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let root = (mean + self.float("rms_norm_eps")).unwrap().sqrt().unwrap();
        let weight = (self.weight(&format!("{path}.weight")) + one).unwrap();
        x.broadcast_div(&root).unwrap().broadcast_mul(&weight).unwrap()
    }

    fn layer_norm(&self, x: &Tensor, path: &str) -> Tensor {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let root = (variance + self.float("layer_norm_eps")).unwrap().sqrt().unwrap();
        let scaled = centred.broadcast_div(&root).unwrap();
        let scaled = scaled.broadcast_mul(self.weight(&format!("{path}.weight"))).unwrap();
        scaled.broadcast_add(self.weight(&format!("{path}.bias"))).unwrap()
    }

    fn act(&self, x: &Tensor) -> Tensor {
        let key =
            if self.config["hidden_activation"].is_string() { "hidden_activation" } else { "hidden_act" };
        let half = (x * 0.5).unwrap();
        let odd = match self.config[key].as_str().unwrap_or("silu") {
            "silu" => {
                let sigmoid = (x.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap();
                return (x * sigmoid).unwrap();
            }
            "gelu" => (x / 2f64.sqrt()).unwrap().erf().unwrap(),
            "gelu_new" | "gelu_pytorch_tanh" => {
                let cube = (x.sqr().unwrap() * x).unwrap();
                let inner = (x + (cube * 0.044715).unwrap()).unwrap();
                (inner * (2.0 / std::f64::consts::PI).sqrt()).unwrap().tanh().unwrap()
            }
            other => panic!("{other}"),
        };
        (&half * (odd + 1.0).unwrap()).unwrap()
    }

    /// Radians a position of each pair, and the factor on cosines and sines.
    fn frequencies(&self, rotary: usize, theta: f64) -> (Vec<f64>, f64) {
        let plain = (0..rotary).step_by(2).map(|i| theta.powf(-(i as f64) / rotary as f64));
        let Some(scaling) = self.config["rope_scaling"].as_object() else { return (plain.collect(), 1.0) };
        let (context, original) =
            (self.float("max_position_embeddings"), self.float("original_max_position_embeddings"));
        let factors = &scaling[if context > original { "long_factor" } else { "short_factor" }];
        let attention = (1.0 + (context / original).ln() / original.ln()).sqrt();
        let factors = factors.as_array().unwrap().iter().map(|f| f64::from(f.as_f64().unwrap() as f32));
        (plain.zip(factors).map(|(f, by)| f / by).collect(), attention)
    }

    /// Of `[heads, seq, dim]`.
    fn rope(&self, x: &Tensor, (frequencies, factor): &(Vec<f64>, f64)) -> Tensor {
        let (_, seq, dim) = x.dims3().unwrap();
        let half = frequencies.len();
        let table = |f: fn(f64) -> f64| {
            let angles = (0..seq).flat_map(|p| frequencies.iter().map(move |w| p as f64 * w));
            let values: Vec<f64> = angles.map(|a| factor * f(a)).collect();
            Tensor::from_vec(values, (seq, half), &Device::Cpu).unwrap()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let (a, b) = (x.narrow(2, 0, half).unwrap(), x.narrow(2, half, half).unwrap());
        let by = |x: &Tensor, t: &Tensor| x.broadcast_mul(t).unwrap();
        let mut parts = vec![(by(&a, &cos) - by(&b, &sin)).unwrap(), (by(&b, &cos) + by(&a, &sin)).unwrap()];
        if dim > 2 * half {
            parts.push(x.narrow(2, 2 * half, dim - 2 * half).unwrap());
        }
        Tensor::cat(&parts, 2).unwrap()
    }

    /// Causal attention of `[heads, seq, dim]`, `[seq, heads * dim]`.
    fn attend(&self, [q, k, v]: [Tensor; 3], scale: f64, window: Option<usize>) -> Tensor {
        let (heads, seq, dim) = q.dims3().unwrap();
        let group = heads / k.dim(0).unwrap();
        let repeat = |t: Tensor| {
            let parts: Vec<Tensor> = (0..heads).map(|h| t.narrow(0, h / group, 1).unwrap()).collect();
            Tensor::cat(&parts, 0).unwrap()
        };
        let (k, v) = (repeat(k), repeat(v));
        let keys = k.transpose(1, 2).unwrap().contiguous().unwrap();
        let mut scores = (q.matmul(&keys).unwrap() * scale).unwrap();
        if let Some(cap) = self.config["attn_logit_softcapping"].as_f64() {
            scores = ((scores / cap).unwrap().tanh().unwrap() * cap).unwrap();
        }
        let window = window.unwrap_or(usize::MAX);
        let mask: Vec<f64> = (0..seq)
            .flat_map(|i| (0..seq).map(move |j| if j <= i && i - j < window { 0.0 } else { -1e9 }))
            .collect();
        let mask = Tensor::from_vec(mask, (seq, seq), &Device::Cpu).unwrap();
        let scores = scores.broadcast_add(&mask).unwrap();
        let most = scores.max_keepdim(D::Minus1).unwrap().detach();
        let e = scores.broadcast_sub(&most).unwrap().exp().unwrap();
        let weights = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let out = weights.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        out.reshape((seq, heads * dim)).unwrap()
    }

    /// `[seq, heads * dim]` to `[heads, seq, dim]`.
    fn heads(x: &Tensor, heads: usize) -> Tensor {
        let (seq, len) = x.dims2().unwrap();
        let x = x.reshape((seq, heads, len / heads)).unwrap();
        x.transpose(0, 1).unwrap().contiguous().unwrap()
    }

    fn columns(x: &Tensor, first: usize, len: usize) -> Tensor {
        x.narrow(1, first, len).unwrap().contiguous().unwrap()
    }

    fn window(&self, layer: usize) -> Option<usize> {
        let window = self.config["sliding_window"].as_u64().map(|w| w as usize);
        match self.config["model_type"].as_str().unwrap() {
            "qwen2" | "qwen3" => window.filter(|_| {
                self.config["use_sliding_window"] == json!(true)
                    && layer as u64 >= self.config["max_window_layers"].as_u64().unwrap()
            }),
            "gemma2" => window.filter(|_| layer % 2 == 0),
            _ => window,
        }
    }

    /// Separate projections: Qwen's and Gemma's.
    fn attention(&self, x: &Tensor, layer: usize, head_norms: bool, scalar: Option<f64>) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let mut q = Self::heads(&self.linear(x, &at("q_proj")), HEADS);
        let mut k = Self::heads(&self.linear(x, &at("k_proj")), 2);
        let v = Self::heads(&self.linear(x, &at("v_proj")), 2);
        if head_norms {
            q = self.rms_norm(&q, &at("q_norm"), 0.0);
            k = self.rms_norm(&k, &at("k_norm"), 0.0);
        }
        let dim = q.dim(2).unwrap();
        let rope = self.frequencies(dim, self.float("rope_theta"));
        let scale = scalar.unwrap_or(dim as f64).sqrt().recip();
        let out = self.attend([self.rope(&q, &rope), self.rope(&k, &rope), v], scale, self.window(layer));
        self.linear(&out, &at("o_proj"))
    }

    fn gated_mlp(&self, x: &Tensor, layer: usize) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.mlp.{part}_proj");
        let inner = (self.act(&self.linear(x, &at("gate"))) * self.linear(x, &at("up"))).unwrap();
        self.linear(&inner, &at("down"))
    }

    fn qwen_block(&self, x: &Tensor, layer: usize, is_third: bool) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let normed = self.rms_norm(x, &at("input_layernorm"), 0.0);
        let x = (x + self.attention(&normed, layer, is_third, None)).unwrap();
        let normed = self.rms_norm(&x, &at("post_attention_layernorm"), 0.0);
        (&x + self.gated_mlp(&normed, layer)).unwrap()
    }

    fn phi3_block(&self, x: &Tensor, layer: usize) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let dim = HIDDEN / HEADS;
        let normed = self.rms_norm(x, &at("input_layernorm"), 0.0);
        let qkv = self.linear(&normed, &at("self_attn.qkv_proj"));
        let q = Self::heads(&Self::columns(&qkv, 0, HIDDEN), HEADS);
        let k = Self::heads(&Self::columns(&qkv, HIDDEN, 2 * dim), 2);
        let v = Self::heads(&Self::columns(&qkv, HIDDEN + 2 * dim, 2 * dim), 2);
        let rotary = (dim as f64 * self.config["partial_rotary_factor"].as_f64().unwrap_or(1.0)) as usize;
        let rope = self.frequencies(rotary, self.float("rope_theta"));
        let scale = (dim as f64).sqrt().recip();
        let out = self.attend([self.rope(&q, &rope), self.rope(&k, &rope), v], scale, self.window(layer));
        let x = (x + self.linear(&out, &at("self_attn.o_proj"))).unwrap();
        let normed = self.rms_norm(&x, &at("post_attention_layernorm"), 0.0);
        let both = self.linear(&normed, &at("mlp.gate_up_proj"));
        let inner = (self.act(&Self::columns(&both, 0, INNER)) * Self::columns(&both, INNER, INNER)).unwrap();
        (&x + self.linear(&inner, &at("mlp.down_proj"))).unwrap()
    }

    fn neox_block(&self, x: &Tensor, layer: usize) -> Tensor {
        let at = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        let dim = HIDDEN / HEADS;
        let qkv = self.linear(&self.layer_norm(x, &at("input_layernorm")), &at("attention.query_key_value"));
        // [seq, heads, 3 * dim].
        let seq = qkv.dim(0).unwrap();
        let by_head = qkv.reshape((seq, HEADS, 3 * dim)).unwrap().transpose(0, 1).unwrap();
        let part = |i: usize| by_head.narrow(2, i * dim, dim).unwrap().contiguous().unwrap();
        let rotary = (dim as f64 * self.float("rotary_pct")) as usize;
        let rope = self.frequencies(rotary, self.float("rotary_emb_base"));
        let qkv = [self.rope(&part(0), &rope), self.rope(&part(1), &rope), part(2)];
        let attended =
            self.linear(&self.attend(qkv, (dim as f64).sqrt().recip(), None), &at("attention.dense"));
        let mlp = |x: &Tensor| {
            let normed = self.layer_norm(x, &at("post_attention_layernorm"));
            let inner = self.act(&self.linear(&normed, &at("mlp.dense_h_to_4h")));
            self.linear(&inner, &at("mlp.dense_4h_to_h"))
        };
        if self.config["use_parallel_residual"] == json!(true) {
            return ((mlp(x) + attended).unwrap() + x).unwrap();
        }
        let x = (x + attended).unwrap();
        (&x + mlp(&x)).unwrap()
    }

    fn gemma_block(&self, x: &Tensor, layer: usize) -> Tensor {
        let norm =
            |x: &Tensor, part: &str| self.rms_norm(x, &format!("model.layers.{layer}.{part}_layernorm"), 1.0);
        let scalar = Some(self.float("query_pre_attn_scalar"));
        let attended = self.attention(&norm(x, "input"), layer, false, scalar);
        let x = (x + norm(&attended, "post_attention")).unwrap();
        let out = self.gated_mlp(&norm(&x, "pre_feedforward"), layer);
        (&x + norm(&out, "post_feedforward")).unwrap()
    }

    /// Logits of every position, `[seq, vocabulary]`.
    pub fn logits(&self, tokens: &[TokenId]) -> Tensor {
        let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
        let ids = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
        let kind = self.config["model_type"].as_str().unwrap();
        let embed = if kind == "gpt_neox" { "gpt_neox.embed_in.weight" } else { "model.embed_tokens.weight" };
        let mut x = self.weight(embed).index_select(&ids, 0).unwrap();
        if kind == "gemma2" {
            x = (x * (HIDDEN as f64).sqrt()).unwrap();
        }
        for layer in 0..LAYERS {
            x = match kind {
                "qwen2" => self.qwen_block(&x, layer, false),
                "qwen3" => self.qwen_block(&x, layer, true),
                "phi3" => self.phi3_block(&x, layer),
                "gpt_neox" => self.neox_block(&x, layer),
                "gemma2" => self.gemma_block(&x, layer),
                other => panic!("{other}"),
            };
        }
        let logits = match kind {
            "gpt_neox" => self.linear(&self.layer_norm(&x, "gpt_neox.final_layer_norm"), "embed_out"),
            "gemma2" => self.linear(&self.rms_norm(&x, "model.norm", 1.0), "lm_head"),
            _ => self.linear(&self.rms_norm(&x, "model.norm", 0.0), "lm_head"),
        };
        match self.config["final_logit_softcapping"].as_f64() {
            Some(cap) => ((logits / cap).unwrap().tanh().unwrap() * cap).unwrap(),
            None => logits,
        }
    }

    /// The same as rows of numbers.
    pub fn rows(&self, tokens: &[TokenId]) -> Vec<Vec<f64>> {
        self.logits(tokens).to_dtype(DType::F64).unwrap().to_vec2().unwrap()
    }
}
