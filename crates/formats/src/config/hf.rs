//! `config.json` and `generation_config.json` of Hugging Face transformers.

use std::path::Path;

use serde_json::{Map, Value};

use super::{ExpertsConfig, HiddenAct, Keys, ModelConfig, RopeScaling, rope};
use crate::error::Result;
use crate::model_files::MAX_CONFIG_BYTES;
use crate::paths;
use crate::storage::StorageType;

/// A `config.json` by itself, without the weights that it describes.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfigFile {
    /// The model that it describes.
    pub config: ModelConfig,
    /// Element type that it says the weights have, if it says so: `dtype` (transformers 5) or `torch_dtype`.
    pub storage: Option<StorageType>,
}

impl HfConfigFile {
    /// Reads one.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_hf`]; [`crate::FormatError::Io`], [`crate::FormatError::Json`],
    /// [`crate::FormatError::Limit`] over 4 MiB.
    pub fn read(path: &Path) -> Result<Self> {
        let content = paths::read_json_object(path, MAX_CONFIG_BYTES)?;
        let keys = Keys::new(path, &content);
        let key = if keys.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        let storage = match keys.str(key)? {
            None => None,
            Some("float32") => Some(StorageType::F32),
            Some("float16") => Some(StorageType::F16),
            Some("bfloat16") => Some(StorageType::BF16),
            Some(other) => {
                let found = format!("{:?}", crate::error::shorten(other));
                return Err(keys.error(key, "one of float32, float16, bfloat16", found));
            }
        };
        Ok(Self { config: ModelConfig::from_hf(path, &content, None)?, storage })
    }
}

impl ModelConfig {
    /// Reads the content of a `config.json` (given as parsed JSON) and, if there is one, of a
    /// `generation_config.json`. Keys that are absent take the defaults of transformers' `LlamaConfig`,
    /// `MistralConfig` or `MixtralConfig`. `path` is for messages.
    ///
    /// # Errors
    /// [`crate::FormatError::Key`] naming a key that is missing, out of bounds, or asks for what is not supported.
    pub fn from_hf(
        path: &Path,
        config: &Map<String, Value>,
        generation: Option<(&Path, &Map<String, Value>)>,
    ) -> Result<Self> {
        let keys = Keys::new(path, config);
        let architecture = architecture(&keys)?;
        let is_mistral = keys.str("model_type")? == Some("mistral");
        let is_llama = keys.str("model_type")? == Some("llama");
        let is_mixtral = keys.str("model_type")? == Some("mixtral");
        if keys.get("quantization_config").is_some() {
            let found = keys
                .object("quantization_config")?
                .and_then(|q| q.str("quant_method").ok().flatten().map(str::to_owned))
                .unwrap_or_else(|| "a quantised checkpoint".to_owned());
            return Err(keys.error("quantization_config", "none (plain weights, or a GGUF file)", found));
        }

        let hidden_size = keys.require_usize("hidden_size")?;
        let num_heads = keys.require_usize("num_attention_heads")?;
        let default_kv_heads = if is_mistral || is_mixtral { 8 } else { num_heads };
        let head_dim = match keys.usize("head_dim")? {
            Some(given) => given,
            None if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                let expected = format!("a divisor of hidden_size ({hidden_size}), or an explicit head_dim");
                return Err(keys.error("num_attention_heads", &expected, num_heads));
            }
        };
        let max_position_embeddings = match keys.usize("max_position_embeddings")? {
            Some(given) => given,
            None if is_mistral || is_mixtral => 131_072,
            None => 2048,
        };
        let default_theta = if is_mixtral { 1e6 } else { 10_000.0 };
        let (rope_theta, rope_scaling) = rope_of(&keys, max_position_embeddings, default_theta)?;
        let sliding_window = match keys.map().get("sliding_window") {
            None if is_mistral => Some(4096),
            _ => keys.usize("sliding_window")?,
        };

        let mut bos = keys.token_ids("bos_token_id")?;
        let mut eos_token_ids = Vec::new();
        if let Some((generation_path, generation)) = generation {
            let generation = Keys::new(generation_path, generation);
            eos_token_ids = generation.token_ids("eos_token_id")?;
            if bos.is_empty() {
                bos = generation.token_ids("bos_token_id")?;
            }
        }
        eos_token_ids.extend(keys.token_ids("eos_token_id")?);
        let mut seen = std::collections::HashSet::new();
        eos_token_ids.retain(|id| seen.insert(*id));

        let config = Self {
            architecture,
            hidden_size,
            intermediate_size: keys.require_usize("intermediate_size")?,
            num_layers: keys.require_usize("num_hidden_layers")?,
            num_heads,
            num_kv_heads: keys.usize("num_key_value_heads")?.unwrap_or(default_kv_heads),
            head_dim,
            vocab_size: keys.require_usize("vocab_size")?,
            rms_norm_eps: keys.f64("rms_norm_eps")?.unwrap_or(if is_mixtral { 1e-5 } else { 1e-6 }),
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            // The base class's default is true; the families here override it.
            tie_word_embeddings: keys
                .bool("tie_word_embeddings")?
                .unwrap_or(!(is_llama || is_mistral || is_mixtral)),
            attention_bias: keys.bool("attention_bias")?.unwrap_or(false),
            mlp_bias: keys.bool("mlp_bias")?.unwrap_or(false),
            sliding_window: if keys.bool("use_sliding_window")? == Some(false) {
                None
            } else {
                sliding_window
            },
            bos_token_id: bos.first().copied(),
            eos_token_ids,
            hidden_act: hidden_act(&keys)?,
            experts: if is_mixtral { Some(experts(&keys)?) } else { None },
        };
        config.check(path)?;
        Ok(config)
    }
}

/// The first of `architectures`, or what `model_type` stands for.
fn architecture(keys: &Keys<'_>) -> Result<String> {
    if let Some(first) = keys.strings("architectures")?.unwrap_or_default().into_iter().next() {
        return Ok(crate::error::shorten(&first));
    }
    match keys.str("model_type")? {
        Some("llama") => Ok("LlamaForCausalLM".to_owned()),
        Some("mistral") => Ok("MistralForCausalLM".to_owned()),
        Some("mixtral") => Ok("MixtralForCausalLM".to_owned()),
        Some(other) => Ok(crate::error::shorten(other)),
        None => Err(keys.error("architectures", "the name of an architecture", "nothing")),
    }
}

/// Base and scaling of the rotary frequencies, from `rope_parameters` (transformers 5) or `rope_theta` and
/// `rope_scaling`.
fn rope_of(keys: &Keys<'_>, max_position: usize, default_theta: f64) -> Result<(f64, RopeScaling)> {
    let partial = keys.f64("partial_rotary_factor")?.unwrap_or(1.0);
    if partial != 1.0 {
        return Err(keys.error("partial_rotary_factor", "1", partial));
    }
    let outer_theta = keys.f64("rope_theta")?;
    let Some(parameters) = keys.object("rope_parameters")? else {
        let scaling = match keys.object("rope_scaling")? {
            Some(scaling) => rope::from_hf(&scaling, Some(max_position))?,
            None => RopeScaling::None,
        };
        return Ok((outer_theta.unwrap_or(default_theta), scaling));
    };
    if let Some((kind, _)) = parameters.map().iter().find(|(_, v)| v.is_object()) {
        return Err(parameters.error(
            kind,
            "one set of parameters for all layers",
            "one for a kind of layer",
        ));
    }
    let theta = parameters.f64("rope_theta")?.or(outer_theta).unwrap_or(default_theta);
    Ok((theta, rope::from_hf(&parameters, Some(max_position))?))
}

/// Those of `MixtralConfig`. What it says of training alone, the router's loss and noise, changes no answer.
fn experts(keys: &Keys<'_>) -> Result<ExpertsConfig> {
    Ok(ExpertsConfig {
        num_experts: keys.usize("num_local_experts")?.unwrap_or(8),
        num_experts_per_tok: keys.usize("num_experts_per_tok")?.unwrap_or(2),
    })
}

fn hidden_act(keys: &Keys<'_>) -> Result<HiddenAct> {
    let key = if keys.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match keys.str(key)?.unwrap_or("silu") {
        "silu" | "swish" => Ok(HiddenAct::Silu),
        "gelu" => Ok(HiddenAct::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(HiddenAct::GeluTanh),
        "relu" => Ok(HiddenAct::Relu),
        other => {
            let expected = "one of silu, swish, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu";
            Err(keys.error(key, expected, format!("{:?}", crate::error::shorten(other))))
        }
    }
}
