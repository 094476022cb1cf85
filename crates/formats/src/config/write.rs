//! The way back: a configuration as `config.json` of transformers, and as GGUF metadata.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{HiddenAct, ModelConfig, RopeScaling};
use crate::error::{FormatError, Result};
use crate::gguf;
use crate::storage::StorageType;

const LLAMA: &str = "LlamaForCausalLM";
const MISTRAL: &str = "MistralForCausalLM";
const MIXTRAL: &str = "MixtralForCausalLM";

impl ModelConfig {
    /// As the `config.json` of a model whose weights are `storage`, with every key that transformers needs to build it.
    /// `path` is for messages.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for an architecture that is none of the Llama family, and for frequency factors,
    /// which transformers has no name for.
    pub fn to_hf(&self, path: &Path, storage: StorageType) -> Result<Map<String, Value>> {
        // transformers' Llama has no sliding window; its Mistral, else the same, has, and no biases.
        let (architecture, model_type) = match self.architecture.as_str() {
            LLAMA if self.sliding_window.is_none() => (LLAMA, "llama"),
            LLAMA | MISTRAL if !self.attention_bias && !self.mlp_bias => (MISTRAL, "mistral"),
            LLAMA | MISTRAL => {
                return Err(FormatError::unsupported(
                    path,
                    "biases beside a sliding window in a config.json",
                ));
            }
            MIXTRAL if !self.attention_bias && !self.mlp_bias => (MIXTRAL, "mixtral"),
            MIXTRAL => return Err(FormatError::unsupported(path, "biases of a Mixtral in a config.json")),
            other => {
                let what = format!("a config.json for the architecture {other:?}");
                return Err(FormatError::unsupported(path, what));
            }
        };
        let Value::Object(mut map) = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": match self.hidden_act {
                HiddenAct::Silu => "silu",
                HiddenAct::Gelu => "gelu",
                HiddenAct::GeluTanh => "gelu_pytorch_tanh",
                HiddenAct::Relu => "relu",
            },
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
        }) else {
            return Ok(Map::new());
        };
        if model_type == "llama" {
            map.insert("attention_bias".to_owned(), json!(self.attention_bias));
            map.insert("mlp_bias".to_owned(), json!(self.mlp_bias));
        } else {
            map.insert("sliding_window".to_owned(), json!(self.sliding_window));
        }
        if let Some(experts) = self.experts {
            map.insert("num_local_experts".to_owned(), json!(experts.num_experts));
            map.insert("num_experts_per_tok".to_owned(), json!(experts.num_experts_per_tok));
            map.insert("output_router_logits".to_owned(), json!(false));
        }
        if let Some(id) = self.bos_token_id {
            map.insert("bos_token_id".to_owned(), json!(id));
        }
        if let Some(ids) = token_ids(&self.eos_token_ids) {
            map.insert("eos_token_id".to_owned(), ids);
        }
        self.rope_to_hf(path, &mut map)?;
        set_hf_dtype(&mut map, storage);
        Ok(map)
    }

    /// Puts the rotary positions of this configuration into a `config.json`, in the place of those that it has and in
    /// their spelling. `path` is for messages.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for frequency factors.
    pub fn rope_to_hf(&self, path: &Path, map: &mut Map<String, Value>) -> Result<()> {
        if matches!(self.rope_scaling, RopeScaling::FrequencyFactors(_)) {
            let what = "rotary frequency factors (rope_freqs.weight) that are not those of llama3 scaling; a \
                        config.json has no name for them";
            return Err(FormatError::unsupported(path, what));
        }
        let scaling = self.rope_scaling.to_hf();
        map.insert("max_position_embeddings".to_owned(), json!(self.max_position_embeddings));
        if map.get("rope_parameters").is_some_and(|v| !v.is_null()) {
            let mut parameters = match scaling {
                Some(Value::Object(parameters)) => parameters,
                _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
            };
            parameters.insert("rope_theta".to_owned(), json!(self.rope_theta));
            map.insert("rope_parameters".to_owned(), Value::Object(parameters));
            // Those of an older spelling beside it would be a second truth.
            map.shift_remove("rope_theta");
            map.shift_remove("rope_scaling");
        } else {
            map.insert("rope_theta".to_owned(), json!(self.rope_theta));
            map.insert("rope_scaling".to_owned(), scaling.unwrap_or_default());
        }
        Ok(())
    }

    /// The content of a `generation_config.json`.
    pub fn to_hf_generation(&self) -> Value {
        let mut map = Map::from_iter([("_from_model_config".to_owned(), json!(true))]);
        if let Some(id) = self.bos_token_id {
            map.insert("bos_token_id".to_owned(), json!(id));
        }
        if let Some(ids) = token_ids(&self.eos_token_ids) {
            map.insert("eos_token_id".to_owned(), ids);
        }
        Value::Object(map)
    }

    /// As GGUF metadata of the architecture `llama`: `llama.*`, without the tokenizer. `path` is for messages. Frequency
    /// factors are a tensor there, `rope_freqs.weight`, which this leaves to the caller.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for what that architecture does not have.
    pub fn to_gguf(&self, path: &Path) -> Result<Vec<(String, gguf::Value)>> {
        use gguf::Value;
        if ![LLAMA, MISTRAL, MIXTRAL].contains(&self.architecture.as_str())
            || self.hidden_act != HiddenAct::Silu
        {
            let what = format!("{} with {:?} in a GGUF file", self.architecture, self.hidden_act);
            return Err(FormatError::unsupported(path, what));
        }
        let number = |key: &str, value: usize| -> Result<(String, Value)> {
            let value = u32::try_from(value).map_err(|_| FormatError::key(path, key, "32 bits", value))?;
            Ok((format!("llama.{key}"), Value::U32(value)))
        };
        let mut metadata = vec![
            number("block_count", self.num_layers)?,
            number("embedding_length", self.hidden_size)?,
            number("feed_forward_length", self.intermediate_size)?,
            number("attention.head_count", self.num_heads)?,
            number("attention.head_count_kv", self.num_kv_heads)?,
            number("attention.key_length", self.head_dim)?,
            number("attention.value_length", self.head_dim)?,
            number("rope.dimension_count", self.head_dim)?,
            number("vocab_size", self.vocab_size)?,
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(self.rms_norm_eps as f32)),
        ];
        if let Some(window) = self.sliding_window {
            metadata.push(number("attention.sliding_window", window)?);
        }
        if let Some(experts) = self.experts {
            metadata.push(number("expert_count", experts.num_experts)?);
            metadata.push(number("expert_used_count", experts.num_experts_per_tok)?);
        }
        metadata.extend(self.rope_to_gguf(path)?);
        Ok(metadata)
    }

    /// Rotary positions and context alone, as [`ModelConfig::to_gguf`] has them.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for llama3 scaling, which GGUF has as frequency factors, and for YaRN without
    /// rounded ends, which it does not have.
    pub fn rope_to_gguf(&self, path: &Path) -> Result<Vec<(String, gguf::Value)>> {
        use gguf::Value;
        let key = |name: &str| format!("llama.{name}");
        let float = |name: &str, value: f64| (key(name), Value::F32(value as f32));
        let positions = |name: &str, value: usize| {
            let value = u32::try_from(value).map_err(|_| FormatError::key(path, name, "32 bits", value))?;
            Ok((key(name), Value::U32(value)))
        };
        let kind = |name: &str| (key("rope.scaling.type"), Value::String(name.to_owned()));
        let mut metadata = vec![
            positions("context_length", self.max_position_embeddings)?,
            float("rope.freq_base", self.rope_theta),
        ];
        match &self.rope_scaling {
            RopeScaling::None | RopeScaling::FrequencyFactors(_) => {}
            RopeScaling::Linear { factor } => {
                metadata.extend([kind("linear"), float("rope.scaling.factor", *factor)]);
            }
            RopeScaling::Yarn { truncate: false, .. } => {
                let what = "YaRN with `truncate: false` in a GGUF file";
                return Err(FormatError::unsupported(path, what));
            }
            RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => {
                // Readers multiply it by what the factor implies.
                let own = attention_factor / (0.1 * factor.max(1.0).ln() + 1.0);
                metadata.extend([
                    kind("yarn"),
                    float("rope.scaling.factor", *factor),
                    positions("rope.scaling.original_context_length", *original_max_position)?,
                    float("rope.scaling.yarn_beta_fast", *beta_fast),
                    float("rope.scaling.yarn_beta_slow", *beta_slow),
                    float("rope.scaling.attn_factor", own),
                ]);
            }
            RopeScaling::Llama3 { .. } => {
                let what = "llama3 scaling as GGUF metadata; it is a tensor of frequency factors there";
                return Err(FormatError::unsupported(path, what));
            }
        }
        Ok(metadata)
    }
}

/// Whether [`ModelConfig::rope_to_gguf`] is what sets the key of this name.
pub fn is_gguf_rope_key(key: &str) -> bool {
    key.strip_prefix("llama.").is_some_and(|name| {
        name.starts_with("rope.scaling.")
            || ["context_length", "rope.freq_base", "rope.scale_linear"].contains(&name)
    })
}

/// Puts the type of the weights into a `config.json`, under the key that it has for it.
pub fn set_hf_dtype(map: &mut Map<String, Value>, storage: StorageType) {
    let name = match storage {
        StorageType::F32 => "float32",
        StorageType::F16 => "float16",
        StorageType::BF16 => "bfloat16",
        StorageType::F64 => "float64",
        _ => return,
    };
    let key = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    map.insert(key.to_owned(), json!(name));
}

/// One id as a number, several as a list.
fn token_ids(ids: &[u32]) -> Option<Value> {
    match ids {
        [] => None,
        [one] => Some(json!(one)),
        several => Some(json!(several)),
    }
}
