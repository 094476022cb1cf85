//! Small random models of the Llama family, written as a Hugging Face folder: `config.json`, `model.safetensors`,
//! `tokenizer.json` and `tokenizer_config.json` with a chat template.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use wardrobe_formats::safetensors::{self, TensorData};
use wardrobe_formats::{StorageType, convert};

use super::random::Rng;

/// Shape and contents of a random model.
#[derive(Debug, Clone)]
pub struct TinyModel {
    pub model_type: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub tied: bool,
    pub rope_theta: f64,
    pub rope_scaling: Option<Value>,
    pub sliding_window: Option<usize>,
    pub max_position_embeddings: usize,
    pub storage: StorageType,
    /// Experts of a block, and how many of them a token goes to.
    pub experts: Option<(usize, usize)>,
    pub seed: u64,
}

impl Default for TinyModel {
    /// Two layers with grouped queries and a tied head.
    fn default() -> Self {
        TinyModel {
            model_type: "llama",
            vocab_size: 320,
            hidden_size: 64,
            intermediate_size: 96,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            tied: true,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            max_position_embeddings: 512,
            storage: StorageType::F32,
            experts: None,
            seed: 1,
        }
    }
}

/// Special tokens, the last of the vocabulary.
const SPECIALS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

impl TinyModel {
    /// A Mixtral of five experts, two for a token.
    #[allow(dead_code, reason = "not every test asks for experts")]
    pub fn mixtral() -> Self {
        TinyModel { model_type: "mixtral", experts: Some((5, 2)), tied: false, seed: 21, ..Self::default() }
    }

    /// Writes the folder; it lives as long as the result.
    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write_weights(dir.path());
        write_json(&dir.path().join("config.json"), &self.config());
        write_json(&dir.path().join("tokenizer.json"), &self.tokenizer());
        let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let config = json!({ "chat_template": template, "eos_token": SPECIALS[1] });
        write_json(&dir.path().join("tokenizer_config.json"), &config);
        dir
    }

    fn config(&self) -> Value {
        let architecture = match self.model_type {
            "mistral" => "MistralForCausalLM",
            "mixtral" => "MixtralForCausalLM",
            _ => "LlamaForCausalLM",
        };
        let mut config = json!({
            "architectures": [architecture],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "sliding_window": self.sliding_window,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tied,
            "eos_token_id": self.vocab_size - 1,
        });
        if let Some((num_experts, top_k)) = self.experts {
            config["num_local_experts"] = json!(num_experts);
            config["num_experts_per_tok"] = json!(top_k);
            config["router_jitter_noise"] = json!(0.1);
            config["output_router_logits"] = json!(false);
        }
        config
    }

    fn write_weights(&self, dir: &Path) {
        let mut rng = Rng::new(self.seed);
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, values: Vec<f32>| {
            tensors.push((name, shape, convert::from_f32(self.storage, &values, 1).unwrap()));
        };
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let matrix = |rng: &mut Rng, out: usize, input: usize, gain: f32| {
            (vec![out, input], rng.normals(out * input, gain / (input as f32).sqrt()))
        };
        let norm = |rng: &mut Rng| rng.normals(hidden, 0.2).iter().map(|v| 1.0 + v).collect();
        let embedding = rng.normals(self.vocab_size * hidden, 0.3);
        add("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden], embedding);
        for layer in 0..self.num_layers {
            let at = |part: &str| format!("model.layers.{layer}.{part}.weight");
            // Queries and keys over one, so that attention is far from uniform.
            let mut parts: Vec<(String, usize, usize, f32)> = [
                ("self_attn.q_proj", q, hidden, 1.5),
                ("self_attn.k_proj", kv, hidden, 1.5),
                ("self_attn.v_proj", kv, hidden, 1.0),
                ("self_attn.o_proj", hidden, q, 1.0),
            ]
            .map(|(part, out, input, gain)| (part.to_owned(), out, input, gain))
            .into();
            let mlp = |parent: &str, names: [&str; 3]| {
                [(inner, hidden), (inner, hidden), (hidden, inner)]
                    .into_iter()
                    .zip(names)
                    .map(|((out, input), name)| (format!("{parent}.{name}"), out, input, 1.0))
                    .collect::<Vec<_>>()
            };
            match self.experts {
                None => parts.extend(mlp("mlp", ["gate_proj", "up_proj", "down_proj"])),
                Some((num_experts, _)) => {
                    parts.push(("block_sparse_moe.gate".to_owned(), num_experts, hidden, 2.0));
                    for e in 0..num_experts {
                        parts.extend(mlp(&format!("block_sparse_moe.experts.{e}"), ["w1", "w3", "w2"]));
                    }
                }
            }
            for (part, out, input, gain) in parts {
                let (shape, values) = matrix(&mut rng, out, input, gain);
                add(at(&part), shape, values);
            }
            add(at("input_layernorm"), vec![hidden], norm(&mut rng));
            add(at("post_attention_layernorm"), vec![hidden], norm(&mut rng));
        }
        add("model.norm.weight".to_owned(), vec![hidden], norm(&mut rng));
        if !self.tied {
            let (shape, values) = matrix(&mut rng, self.vocab_size, hidden, 3.0);
            add("lm_head.weight".to_owned(), shape, values);
        }
        let data: Vec<TensorData<'_>> = tensors
            .iter()
            .map(|(name, shape, bytes)| TensorData { name, storage: self.storage, shape, bytes })
            .collect();
        safetensors::write(&dir.join("model.safetensors"), &data, &BTreeMap::new()).unwrap();
    }

    /// Byte-level pair encoding: the 256 bytes, then pairs of letters, then the special tokens.
    fn tokenizer(&self) -> Value {
        let bytes = byte_alphabet();
        let mut vocab: Map<String, Value> =
            bytes.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
        let letters = || ('a'..='z').step_by(2).chain(('b'..='z').step_by(2));
        let pairs = letters().flat_map(|a| letters().map(move |b| (a, b)));
        let mut merges = Vec::new();
        for (a, b) in pairs.take(self.vocab_size - bytes.len() - SPECIALS.len()) {
            vocab.insert(format!("{a}{b}"), json!(vocab.len()));
            merges.push(json!([a.to_string(), b.to_string()]));
        }
        assert_eq!(
            vocab.len() + SPECIALS.len(),
            self.vocab_size,
            "as many pairs as the vocabulary has room for"
        );
        let first_special = vocab.len();
        let added = SPECIALS.iter().enumerate().map(|(i, content)| {
            json!({
                "id": first_special + i, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        });
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": null,
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": merges,
            },
        })
    }
}

/// The character that stands for each byte in byte-level vocabularies: itself where it is printable, else one of the
/// characters from U+0100 on, in order.
fn byte_alphabet() -> Vec<char> {
    let mut next = 0x100;
    (0..=255u32)
        .map(|byte| {
            let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let code = if printable { byte } else { next };
            next += u32::from(!printable);
            char::from_u32(code).unwrap()
        })
        .collect()
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}
