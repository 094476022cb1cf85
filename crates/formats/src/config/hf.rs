//! `config.json` and `generation_config.json` of Hugging Face transformers.

use std::path::Path;

use serde_json::{Map, Value};

use super::family::{Defaults, Family};
use super::rope::{self, RopeContext};
use super::{ExpertsConfig, HiddenAct, Keys, ModelConfig, RopeScaling, bounds};
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
    /// `generation_config.json`. Keys that are absent take the defaults of transformers' configuration of the architecture.
    /// `path` is for messages.
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
        // Older checkpoints carry another family's name in `architectures`, with what this one reads.
        let family = match keys.str("model_type")?.and_then(Family::of_model_type) {
            Some(family) => Some(family),
            None => Family::of(&architecture),
        };
        // The base class ties the head to the embedding.
        let unknown = || Defaults { tie_word_embeddings: true, ..Defaults::default() };
        let defaults = family.map_or_else(unknown, Family::defaults);
        let family = family.unwrap_or(Family::Llama);
        if keys.get("quantization_config").is_some() {
            let found = keys
                .object("quantization_config")?
                .and_then(|q| q.str("quant_method").ok().flatten().map(str::to_owned))
                .unwrap_or_else(|| "a quantised checkpoint".to_owned());
            return Err(keys.error("quantization_config", "none (plain weights, or a GGUF file)", found));
        }

        let hidden_size = keys.require_usize("hidden_size")?;
        let num_heads = keys.require_usize("num_attention_heads")?;
        let head_dim = match keys.usize("head_dim")?.or(defaults.head_dim) {
            Some(given) => given,
            None if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                let expected = format!("a divisor of hidden_size ({hidden_size}), or an explicit head_dim");
                return Err(keys.error("num_attention_heads", &expected, num_heads));
            }
        };
        let max_position_embeddings =
            keys.usize("max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings);
        let rope = rope_of(&keys, family, &defaults, max_position_embeddings)?;
        let num_layers = keys.require_usize("num_hidden_layers")?;
        let (sliding_window, full_attention_layers) = windows(&keys, family, &defaults, num_layers)?;

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
            num_layers,
            num_heads,
            num_kv_heads: keys.usize("num_key_value_heads")?.or(defaults.num_kv_heads).unwrap_or(num_heads),
            head_dim,
            vocab_size: keys.require_usize("vocab_size")?,
            rms_norm_eps: keys.f64(family.norm_eps_key())?.unwrap_or(defaults.norm_eps),
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            max_position_embeddings,
            tie_word_embeddings: keys.bool("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
            attention_bias: keys.bool("attention_bias")?.unwrap_or(defaults.attention_bias),
            mlp_bias: keys.bool("mlp_bias")?.unwrap_or(defaults.mlp_bias),
            sliding_window,
            full_attention_layers,
            partial_rotary_dim: (rope.partial_rotary_factor != 1.0)
                .then_some((head_dim as f64 * rope.partial_rotary_factor) as usize),
            parallel_residual: family == Family::GptNeoX
                && keys.bool("use_parallel_residual")?.unwrap_or(true),
            query_scalar: given_or(&keys, "query_pre_attn_scalar", defaults.query_scalar)?,
            attention_softcap: given_or(&keys, "attn_logit_softcapping", defaults.attention_softcap)?,
            logit_softcap: given_or(&keys, "final_logit_softcapping", defaults.logit_softcap)?,
            bos_token_id: bos.first().copied(),
            eos_token_ids,
            hidden_act: hidden_act(&keys, defaults.hidden_act)?,
            experts: if family == Family::Mixtral { Some(experts(&keys)?) } else { None },
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
        Some(name) => match Family::of_model_type(name) {
            Some(family) => Ok(family.hf().to_owned()),
            None => Ok(crate::error::shorten(name)),
        },
        None => Err(keys.error("architectures", "the name of an architecture", "nothing")),
    }
}

/// A number, its default where the key is absent, and none where it is null. A family that has no default has no such key.
fn given_or(keys: &Keys<'_>, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    match (default, keys.map().get(key)) {
        (None, _) => Ok(None),
        (default, None) => Ok(default),
        (Some(_), Some(_)) => keys.f64(key),
    }
}

/// The sliding window, and the layers that have none beside it.
fn windows(
    keys: &Keys<'_>,
    family: Family,
    defaults: &Defaults,
    num_layers: usize,
) -> Result<(Option<usize>, Vec<usize>)> {
    let window = match keys.map().get("sliding_window") {
        None => defaults.sliding_window,
        Some(_) => keys.usize("sliding_window")?,
    };
    let uses_window = keys.bool("use_sliding_window")?.unwrap_or(defaults.uses_window);
    let Some(window) = window.filter(|_| uses_window) else { return Ok((None, Vec::new())) };
    let first_windowed = keys.usize("max_window_layers")?.unwrap_or(defaults.first_windowed);
    let num_layers = num_layers.min(bounds::NUM_LAYERS);
    let full: Vec<usize> = match keys.strings("layer_types")? {
        None => (0..num_layers).filter(|&idx| !family.is_windowed(idx, first_windowed)).collect(),
        Some(types) => {
            let known = ["sliding_attention", "full_attention"];
            if let Some(other) = types.iter().find(|t| !known.contains(&t.as_str())) {
                let found = format!("{:?}", crate::error::shorten(other));
                return Err(keys.error("layer_types", "sliding_attention or full_attention", found));
            }
            if types.len() != num_layers {
                return Err(keys.error("layer_types", &format!("{num_layers} layers"), types.len()));
            }
            (0..).zip(&types).filter(|(_, t)| *t == "full_attention").map(|(idx, _)| idx).collect()
        }
    };
    Ok(if full.len() == num_layers { (None, Vec::new()) } else { (Some(window), full) })
}

/// Rotary positions as a `config.json` has them.
struct Rope {
    theta: f64,
    scaling: RopeScaling,
    partial_rotary_factor: f64,
}

/// From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`; GPT-NeoX has names of its own for some.
fn rope_of(keys: &Keys<'_>, family: Family, defaults: &Defaults, max_position: usize) -> Result<Rope> {
    let is_neox = family == Family::GptNeoX;
    let outer_theta = match keys.f64("rope_theta")? {
        None if is_neox => keys.f64("rotary_emb_base")?,
        given => given,
    };
    let outer_partial = match keys.f64("partial_rotary_factor")? {
        None if is_neox => keys.f64("rotary_pct")?,
        given => given,
    };
    let parameters = keys.object("rope_parameters")?;
    if let Some(parameters) = &parameters
        && let Some((kind, _)) = parameters.map().iter().find(|(_, v)| v.is_object())
    {
        return Err(parameters.error(
            kind,
            "one set of parameters for all layers",
            "one for a kind of layer",
        ));
    }
    let context = RopeContext {
        max_position: Some(max_position),
        original_max_position: keys.usize("original_max_position_embeddings")?,
        has_partial_rotary: family.has_partial_rotary(),
    };
    let of_parameters = |key| parameters.as_ref().map_or(Ok(None), |p| p.f64(key));
    let partial = of_parameters("partial_rotary_factor")?.or(outer_partial);
    let partial_rotary_factor = partial.unwrap_or(defaults.partial_rotary_factor);
    let in_range = if family.has_partial_rotary() { 0.0..=1.0 } else { 1.0..=1.0 };
    if !in_range.contains(&partial_rotary_factor) {
        let expected = if family.has_partial_rotary() { "a number over 0 and up to 1" } else { "1" };
        return Err(keys.error("partial_rotary_factor", expected, partial_rotary_factor));
    }
    Ok(Rope {
        theta: of_parameters("rope_theta")?.or(outer_theta).unwrap_or(defaults.rope_theta),
        scaling: match parameters.or(keys.object("rope_scaling")?) {
            Some(scaling) => rope::from_hf(&scaling, &context)?,
            None => RopeScaling::None,
        },
        partial_rotary_factor,
    })
}

/// Those of `MixtralConfig`. What it says of training alone, the router's loss and noise, changes no answer.
fn experts(keys: &Keys<'_>) -> Result<ExpertsConfig> {
    Ok(ExpertsConfig {
        num_experts: keys.usize("num_local_experts")?.unwrap_or(8),
        num_experts_per_tok: keys.usize("num_experts_per_tok")?.unwrap_or(2),
    })
}

fn hidden_act(keys: &Keys<'_>, default: &str) -> Result<HiddenAct> {
    let key = if keys.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match keys.str(key)?.unwrap_or(default) {
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
