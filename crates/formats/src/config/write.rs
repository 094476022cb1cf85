//! The way back: a configuration as `config.json` of transformers, and as GGUF metadata.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::family::Family;
use super::{HiddenAct, ModelConfig, RopeScaling};
use crate::error::{FormatError, Result};
use crate::gguf;
use crate::storage::StorageType;

impl ModelConfig {
    /// As the `config.json` of a model whose weights are `storage`, with every key that transformers needs to build it.
    /// `path` is for messages.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for an architecture that is not known here, for what transformers' configuration of it
    /// cannot say, and for frequency factors, which transformers has no name for.
    pub fn to_hf(&self, path: &Path, storage: StorageType) -> Result<Map<String, Value>> {
        // transformers' Llama has no sliding window; its Mistral, else the same, has, and no biases.
        let family = match Family::of(&self.architecture) {
            Some(Family::Llama) if self.sliding_window.is_none() => Family::Llama,
            Some(Family::Llama | Family::Mistral) if !self.attention_bias && !self.mlp_bias => {
                Family::Mistral
            }
            Some(Family::Llama | Family::Mistral) => {
                return Err(FormatError::unsupported(
                    path,
                    "biases beside a sliding window in a config.json",
                ));
            }
            Some(Family::Mixtral) if self.attention_bias || self.mlp_bias => {
                return Err(FormatError::unsupported(path, "biases of a Mixtral in a config.json"));
            }
            Some(family) => family,
            None => {
                let what = format!("a config.json for the architecture {:?}", self.architecture);
                return Err(FormatError::unsupported(path, what));
            }
        };
        let act_key = if family == Family::Gemma2 { "hidden_activation" } else { "hidden_act" };
        let Value::Object(mut map) = json!({
            "architectures": [family.hf()],
            "model_type": family.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            act_key: match self.hidden_act {
                HiddenAct::Silu => "silu",
                HiddenAct::Gelu => "gelu",
                HiddenAct::GeluTanh => "gelu_pytorch_tanh",
                HiddenAct::Relu => "relu",
            },
            family.norm_eps_key(): self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
        }) else {
            return Ok(Map::new());
        };
        let mut add = |key: &str, value: Value| map.insert(key.to_owned(), value);
        match family {
            Family::Llama => {
                add("attention_bias", json!(self.attention_bias));
                add("mlp_bias", json!(self.mlp_bias));
            }
            Family::Mistral | Family::Mixtral | Family::Phi3 => {
                add("sliding_window", json!(self.sliding_window));
            }
            Family::Qwen2 | Family::Qwen3 => {
                add("use_sliding_window", json!(self.sliding_window.is_some()));
                add("sliding_window", json!(self.sliding_window));
                add("max_window_layers", json!(self.full_attention_layers.len()));
                add("layer_types", self.layer_types());
                if family == Family::Qwen3 {
                    add("attention_bias", json!(self.attention_bias));
                }
            }
            Family::GptNeoX => {
                add("attention_bias", json!(self.attention_bias));
                add("use_parallel_residual", json!(self.parallel_residual));
                // Older readers know these names alone.
                add("rotary_emb_base", json!(self.rope_theta));
                add("rotary_pct", json!(self.partial_rotary_factor()));
            }
            Family::Gemma2 => {
                add("attention_bias", json!(self.attention_bias));
                add("query_pre_attn_scalar", json!(self.query_scalar.unwrap_or(self.head_dim as f64) as u64));
                add("attn_logit_softcapping", json!(self.attention_softcap));
                add("final_logit_softcapping", json!(self.logit_softcap));
                add("sliding_window", json!(self.sliding_window));
                add("layer_types", self.layer_types());
            }
        }
        if family == Family::Phi3
            && let RopeScaling::LongRope { original_max_position, .. } = &self.rope_scaling
        {
            add("original_max_position_embeddings", json!(original_max_position));
        }
        if family.has_partial_rotary() {
            add("partial_rotary_factor", json!(self.partial_rotary_factor()));
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

    /// A name for each layer's kind of attention.
    fn layer_types(&self) -> Value {
        let name = |idx| if self.window(idx).is_some() { "sliding_attention" } else { "full_attention" };
        Value::from_iter((0..self.num_layers).map(name))
    }

    /// The part of a head that rotates.
    fn partial_rotary_factor(&self) -> f64 {
        self.rotary_dim() as f64 / self.head_dim as f64
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
            if self.partial_rotary_dim.is_some() {
                parameters.insert("partial_rotary_factor".to_owned(), json!(self.partial_rotary_factor()));
            }
            map.insert("rope_parameters".to_owned(), Value::Object(parameters));
            // Those of an older spelling beside it would be a second truth.
            map.shift_remove("rope_theta");
            map.shift_remove("rope_scaling");
        } else {
            if map.contains_key("rotary_emb_base") {
                map.insert("rotary_emb_base".to_owned(), json!(self.rope_theta));
            }
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

    /// As GGUF metadata, without the tokenizer, under the keys of the architecture ([`gguf::Scheme::gguf_architecture`]).
    /// `path` is for messages. Frequency factors are tensors there, which this leaves to the caller.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for what the architecture does not have there.
    pub fn to_gguf(&self, path: &Path) -> Result<Vec<(String, gguf::Value)>> {
        use gguf::Value;
        let family = self.gguf_family(path)?;
        let own_act = match family {
            Family::GptNeoX => HiddenAct::Gelu,
            Family::Gemma2 => HiddenAct::GeluTanh,
            _ => HiddenAct::Silu,
        };
        // Readers take a family's activation, and what queries are divided by, from its models.
        let of_27b = family == Family::Gemma2 && self.num_layers == 46;
        let width = if of_27b { self.hidden_size / self.num_heads } else { self.head_dim };
        let has_own_scalar = self.query_scalar.is_some_and(|scalar| scalar != width as f64);
        if self.hidden_act != own_act || has_own_scalar {
            let what = format!(
                "{} with {:?} and query_pre_attn_scalar {:?} in a GGUF file",
                self.architecture, self.hidden_act, self.query_scalar
            );
            return Err(FormatError::unsupported(path, what));
        }
        let windows_are_own = match family {
            Family::Gemma2 => (0..self.num_layers).all(|idx| self.window(idx).is_some() == (idx % 2 == 0)),
            Family::Qwen2 | Family::Qwen3 => self.sliding_window.is_none(),
            _ => self.full_attention_layers.is_empty(),
        };
        if !windows_are_own {
            let what = format!("the sliding windows of this {} in a GGUF file", self.architecture);
            return Err(FormatError::unsupported(path, what));
        }
        let arch = family.gguf();
        let number = |key: &str, value: usize| -> Result<(String, Value)> {
            let value = u32::try_from(value).map_err(|_| FormatError::key(path, key, "32 bits", value))?;
            Ok((format!("{arch}.{key}"), Value::U32(value)))
        };
        let float = |key: &str, value: f64| (format!("{arch}.{key}"), Value::F32(value as f32));
        let norm_eps = match family {
            Family::GptNeoX => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        };
        let mut metadata = vec![
            number("block_count", self.num_layers)?,
            number("embedding_length", self.hidden_size)?,
            number("feed_forward_length", self.intermediate_size)?,
            number("attention.head_count", self.num_heads)?,
            number("attention.head_count_kv", self.num_kv_heads)?,
            number("attention.key_length", self.head_dim)?,
            number("attention.value_length", self.head_dim)?,
            number("rope.dimension_count", self.rotary_dim())?,
            number("vocab_size", self.vocab_size)?,
            float(norm_eps, self.rms_norm_eps),
        ];
        if family == Family::GptNeoX {
            metadata.push((format!("{arch}.use_parallel_residual"), Value::Bool(self.parallel_residual)));
        }
        metadata.extend(self.attention_softcap.map(|cap| float("attn_logit_softcapping", cap)));
        metadata.extend(self.logit_softcap.map(|cap| float("final_logit_softcapping", cap)));
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

    fn gguf_family(&self, path: &Path) -> Result<Family> {
        Family::of(&self.architecture)
            .ok_or_else(|| FormatError::unsupported(path, format!("{} in a GGUF file", self.architecture)))
    }

    /// Rotary positions and context alone, as [`ModelConfig::to_gguf`] has them.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for llama3 scaling, which GGUF has as frequency factors, and for YaRN without
    /// rounded ends, which it does not have.
    pub fn rope_to_gguf(&self, path: &Path) -> Result<Vec<(String, gguf::Value)>> {
        use gguf::Value;
        let arch = self.gguf_family(path)?.gguf();
        let key = |name: &str| format!("{arch}.{name}");
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
            RopeScaling::LongRope { original_max_position, attention_factor, .. } => metadata.extend([
                positions("rope.scaling.original_context_length", *original_max_position)?,
                float("rope.scaling.attn_factor", *attention_factor),
            ]),
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
    key.split_once('.').filter(|(arch, _)| Family::of_gguf(arch).is_some()).is_some_and(|(_, name)| {
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
