//! The configuration in GGUF metadata.
//!
//! Keys are those of the GGUF specification, under the prefix of `general.architecture`.

use super::family::Family;
use super::{ExpertsConfig, HiddenAct, ModelConfig, RopeScaling};
use crate::convert::to_f32;
use crate::error::{FormatError, Result, shorten};
use crate::gguf::{GgufFile, Metadata};
use crate::source::TensorSource;

const ROPE_FACTORS: &str = "rope_freqs.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";

impl ModelConfig {
    /// Reads the metadata of `file`, and its `rope_freqs.weight` if there is one.
    ///
    /// # Errors
    /// [`FormatError::Key`] naming a key that is missing, out of bounds, or asks for what is not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let name = file.architecture()?;
        let keys = ArchKeys { metadata: file.metadata(), arch: name };
        let experts = match keys.usize("expert_count")? {
            Some(num_experts) if num_experts > 0 => {
                Some(ExpertsConfig { num_experts, num_experts_per_tok: keys.require("expert_used_count")? })
            }
            _ => None,
        };
        let family = match (Family::of_gguf(name), experts) {
            (Some(family), Some(_)) if family.may_have_experts() => Some(Family::Mixtral),
            (Some(_), Some(experts)) => {
                return Err(keys.error("expert_count", "0 (a dense model)", experts.num_experts));
            }
            (family, _) => family,
        };
        let architecture = family.map_or_else(|| shorten(name), |family| family.hf().to_owned());
        let family = family.unwrap_or(Family::Llama);

        let hidden_size = keys.require("embedding_length")?;
        let num_heads = keys.require("attention.head_count")?;
        let head_dim = match keys.usize("attention.key_length")? {
            Some(given) => given,
            None if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                let expected = format!("a divisor of embedding_length ({hidden_size})");
                return Err(keys.error("attention.head_count", &expected, num_heads));
            }
        };
        let rotary_dim = keys.usize("rope.dimension_count")?;
        let partial_rotary_dim = rotary_dim.filter(|dim| family.has_partial_rotary() && *dim != head_dim);
        for (key, found) in [
            ("attention.value_length", keys.usize("attention.value_length")?),
            ("rope.dimension_count", rotary_dim.filter(|_| partial_rotary_dim.is_none())),
        ] {
            if let Some(found) = found
                && found != head_dim
            {
                return Err(keys.error(key, &format!("{head_dim}, the width of a head"), found));
            }
        }
        let max_position_embeddings = keys.require("context_length")?;
        let num_layers = keys.require("block_count")?;
        let sliding_window = keys.usize("attention.sliding_window")?.filter(|w| *w > 0);
        let is_gemma = family == Family::Gemma2;
        // Files have no key for it; the largest model of the family, which has these layers, divides by another width.
        let of_gemma_27b = num_layers == 46 && num_heads > 0;
        let query_scalar = if of_gemma_27b { hidden_size as f64 / num_heads as f64 } else { head_dim as f64 };
        let norm_eps = match family {
            Family::GptNeoX => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        };
        let softcap = |key: &str, default: f64| match keys.f64(key)? {
            _ if !is_gemma => Ok(None),
            given => Ok(Some(given.unwrap_or(default))),
        };

        let config = Self {
            architecture,
            hidden_size,
            intermediate_size: keys.require("feed_forward_length")?,
            num_layers,
            num_heads,
            num_kv_heads: keys.usize("attention.head_count_kv")?.unwrap_or(num_heads),
            head_dim,
            vocab_size: vocab_size(file, &keys)?,
            rms_norm_eps: keys.require_f64(norm_eps)?,
            rope_theta: keys.f64("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: rope_scaling(file, &keys, max_position_embeddings)?,
            max_position_embeddings,
            tie_word_embeddings: file.info("output.weight").is_none(),
            attention_bias: has_tensor(
                file,
                &["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias", "attn_output.bias"],
            ),
            mlp_bias: has_tensor(file, &["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"]),
            full_attention_layers: match (sliding_window, is_gemma) {
                (Some(_), true) => (1..num_layers.min(super::bounds::NUM_LAYERS)).step_by(2).collect(),
                _ => Vec::new(),
            },
            sliding_window,
            partial_rotary_dim,
            parallel_residual: family == Family::GptNeoX
                && file.metadata().bool(&keys.full("use_parallel_residual"))?.unwrap_or(true),
            query_scalar: is_gemma.then_some(query_scalar),
            attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
            logit_softcap: softcap("final_logit_softcapping", 30.0)?,
            bos_token_id: file.metadata().u32("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: eos_token_ids(file.metadata())?,
            // What the family's models have; files do not say.
            hidden_act: match family {
                Family::GptNeoX => HiddenAct::Gelu,
                Family::Gemma2 => HiddenAct::GeluTanh,
                _ => HiddenAct::Silu,
            },
            experts,
        };
        config.check(file.path())?;
        Ok(config)
    }
}

/// Metadata under the prefix of an architecture.
struct ArchKeys<'a> {
    metadata: &'a Metadata,
    arch: &'a str,
}

impl ArchKeys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn error(&self, key: &str, expected: &str, actual: impl std::fmt::Display) -> FormatError {
        FormatError::key(self.metadata.path(), shorten(&self.full(key)), expected, actual)
    }

    fn usize(&self, key: &str) -> Result<Option<usize>> {
        let found = self.metadata.u64(&self.full(key))?;
        found
            .map(|v| usize::try_from(v).map_err(|_| self.error(key, "an integer within bounds", v)))
            .transpose()
    }

    fn require(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.error(key, "a positive integer", "nothing"))
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.f64(&self.full(key))
    }

    fn require_f64(&self, key: &str) -> Result<f64> {
        self.f64(key)?.ok_or_else(|| self.error(key, "a number", "nothing"))
    }
}

fn has_tensor(file: &GgufFile, suffixes: &[&str]) -> bool {
    file.tensors().iter().any(|t| suffixes.iter().any(|s| t.name.ends_with(s)))
}

/// The embedding's rows; `vocab_size` and the token list have to agree where they are there.
fn vocab_size(file: &GgufFile, keys: &ArchKeys<'_>) -> Result<usize> {
    let rows = file.require("token_embd.weight")?.rows();
    if let Some(given) = keys.usize("vocab_size")?
        && given != rows
    {
        return Err(keys.error("vocab_size", &format!("{rows}, the rows of token_embd.weight"), given));
    }
    if let Some(tokens) = file.metadata().strings("tokenizer.ggml.tokens")?
        && tokens.len() > rows
    {
        let expected = format!("at most {rows} tokens, the rows of token_embd.weight");
        return Err(FormatError::key(file.path(), "tokenizer.ggml.tokens", expected, tokens.len()));
    }
    Ok(rows)
}

fn eos_token_ids(metadata: &Metadata) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if let Some(id) = metadata.u32(key)?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn rope_scaling(file: &GgufFile, keys: &ArchKeys<'_>, max_position: usize) -> Result<RopeScaling> {
    let factors = rope_factors(file, ROPE_FACTORS)?;
    if let Some(long) = rope_factors(file, LONG_FACTORS)? {
        let Some(short) = rope_factors(file, SHORT_FACTORS)? else {
            return Err(FormatError::MissingTensor {
                path: file.path().to_owned(),
                tensor: SHORT_FACTORS.to_owned(),
            });
        };
        let original = keys.usize("rope.scaling.original_context_length")?;
        return Ok(RopeScaling::LongRope {
            short,
            long,
            original_max_position: original.unwrap_or(max_position),
            attention_factor: keys.f64("rope.scaling.attn_factor")?.unwrap_or(1.0),
        });
    }
    let metadata = keys.metadata;
    // Files from before `rope.scaling.*` have the linear factor under another name.
    let factor = match keys.f64("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.f64("rope.scale_linear")?,
    }
    .filter(|f| *f != 0.0);
    let kind = match metadata.str(&keys.full("rope.scaling.type"))? {
        Some(kind) => kind,
        None if factor.is_some_and(|f| f != 1.0) => "linear",
        None => "none",
    };
    let scaling = match kind {
        "none" => RopeScaling::None,
        "linear" => match factor {
            None => RopeScaling::None,
            Some(1.0) => RopeScaling::None,
            Some(factor) => RopeScaling::Linear { factor },
        },
        "yarn" => {
            let factor = factor.ok_or_else(|| keys.error("rope.scaling.factor", "a number", "nothing"))?;
            let multiplier = keys.f64("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
            if multiplier != 0.0 {
                return Err(keys.error("rope.scaling.yarn_log_multiplier", "0", multiplier));
            }
            let extrapolation = keys.f64("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0);
            if extrapolation != 1.0 {
                return Err(keys.error("rope.scaling.yarn_ext_factor", "1", extrapolation));
            }
            let attention = keys.f64("rope.scaling.attn_factor")?.unwrap_or(1.0);
            RopeScaling::Yarn {
                factor,
                original_max_position: keys
                    .usize("rope.scaling.original_context_length")?
                    .unwrap_or(max_position),
                beta_fast: keys.f64("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.f64("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: attention * (0.1 * factor.max(1.0).ln() + 1.0),
                truncate: true,
            }
        }
        other => {
            let found = format!("{:?}, which is not supported", shorten(other));
            return Err(keys.error("rope.scaling.type", "one of none, linear, yarn", found));
        }
    };
    match (factors, scaling) {
        (None, scaling) => Ok(scaling),
        (Some(factors), RopeScaling::None) => Ok(RopeScaling::FrequencyFactors(factors)),
        (Some(_), _) => Err(keys.error("rope.scaling.type", &format!("none beside {ROPE_FACTORS}"), kind)),
    }
}

fn rope_factors(file: &GgufFile, name: &str) -> Result<Option<Vec<f32>>> {
    const MAX_FACTORS: usize = super::bounds::HEAD_DIM;
    let Some(info) = file.info(name) else { return Ok(None) };
    if info.shape.len() != 1 || info.numel() > MAX_FACTORS {
        let problem = format!("shape {:?}, expected one dimension up to {MAX_FACTORS}", info.shape);
        return Err(FormatError::tensor(file.path(), name, problem));
    }
    let bytes = file.read(name)?;
    to_f32(info.storage, &bytes, info.numel()).map(Some)
}
