//! The configuration of a decoder, from Hugging Face's `config.json` or from GGUF metadata.
//!
//! Purpose: one description for both sources, in which every number was checked against sane bounds, so that later
//! crates may multiply and allocate by them.
//! Invariants: see the fields of [`ModelConfig`]; [`ModelConfig::check`] holds for every value made here.
//! Not done here: deciding whether an architecture is supported: its name is passed on as the file has it.

pub(crate) mod family;
mod gguf;
mod hf;
mod keys;
pub(crate) mod rope;
mod write;

use std::path::Path;

use crate::error::{FormatError, Result};

pub use hf::HfConfigFile;
pub use rope::RopeScaling;
pub use write::{is_gguf_rope_key, set_hf_dtype};

pub(crate) use keys::{Keys, describe};

/// Bounds for what a file may claim: far over every published model, and small enough that products of any three
/// fit 64 bits.
pub(crate) mod bounds {
    pub(crate) const HIDDEN_SIZE: usize = 1 << 18;
    pub(crate) const INTERMEDIATE_SIZE: usize = 1 << 20;
    pub(crate) const NUM_LAYERS: usize = 2048;
    pub(crate) const NUM_HEADS: usize = 4096;
    pub(crate) const HEAD_DIM: usize = 2048;
    pub(crate) const VOCAB_SIZE: usize = 1 << 24;
    pub(crate) const POSITIONS: usize = 1 << 28;
    pub(crate) const ROPE_THETA: f64 = 1e15;
    pub(crate) const ROPE_FACTOR: f64 = 1e6;
    pub(crate) const EOS_TOKENS: usize = 64;
    pub(crate) const NUM_EXPERTS: usize = 1024;
    /// Bounds on scores and logits, and what queries are divided by.
    pub(crate) const SCALAR: f64 = 1e6;
}

/// The function between the two halves of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum HiddenAct {
    /// `x * sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// GELU with the error function: `gelu`.
    Gelu,
    /// GELU with the tanh approximation: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `max(x, 0)`: `relu`.
    Relu,
}

/// Experts of a model whose MLP is a mixture of them, of `intermediate_size` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ExpertsConfig {
    /// Experts of a block.
    pub num_experts: usize,
    /// How many of them a token goes to.
    pub num_experts_per_tok: usize,
}

/// Shape and constants of a decoder.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ModelConfig {
    /// Architecture as Hugging Face names it, such as `LlamaForCausalLM`. From a GGUF file: that name where it is one of
    /// [`crate::gguf::Scheme`]'s, else `general.architecture` as it stands.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP's inner layer.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head, even; explicit in the file or `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Epsilon of the norms, over 0 and under 1.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies, over 0.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Longest sequence that the model is meant for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the head uses the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Whether attention projections have biases (of Qwen2, those of queries, keys and values). From a GGUF file: whether
    /// there is any; which ones is told by the tensors.
    pub attention_bias: bool,
    /// Whether MLP projections have biases; from a GGUF file as for `attention_bias`.
    pub mlp_bias: bool,
    /// Number of last tokens that attention sees, if it is limited; see [`ModelConfig::window`].
    pub sliding_window: Option<usize>,
    /// Layers that see everything although there is a sliding window, in ascending order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub full_attention_layers: Vec<usize>,
    /// How many dimensions of a head rotate, if not all; see [`ModelConfig::rotary_dim`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_rotary_dim: Option<usize>,
    /// Whether a block's MLP reads what its attention reads, and not what that gives.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub parallel_residual: bool,
    /// What scores are divided by the root of, if not the width of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_scalar: Option<f64>,
    /// Bound on the scores: `s` becomes `cap * tanh(s / cap)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_softcap: Option<f64>,
    /// The same bound on the logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_softcap: Option<f64>,
    /// First token of a sequence, if the files name one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end generation, without repetition: those of `generation_config.json`, then those of
    /// `config.json`; or the end-of-sequence, end-of-turn and end-of-message tokens of a GGUF file.
    pub eos_token_ids: Vec<u32>,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Experts in the place of one MLP; digests of models without stay what they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsConfig>,
}

impl ModelConfig {
    /// Whether every field is within bounds and they fit each other; for configurations made by hand. `path` is for
    /// messages.
    ///
    /// # Errors
    /// [`FormatError::Key`] naming the field.
    pub fn check(&self, path: &Path) -> Result<()> {
        let within = |key: &str, value: usize, max: usize| {
            if (1..=max).contains(&value) {
                return Ok(());
            }
            Err(FormatError::key(path, key, format!("an integer from 1 to {max}"), value))
        };
        within("hidden_size", self.hidden_size, bounds::HIDDEN_SIZE)?;
        within("intermediate_size", self.intermediate_size, bounds::INTERMEDIATE_SIZE)?;
        within("num_hidden_layers", self.num_layers, bounds::NUM_LAYERS)?;
        within("num_attention_heads", self.num_heads, bounds::NUM_HEADS)?;
        within("num_key_value_heads", self.num_kv_heads, bounds::NUM_HEADS)?;
        within("head_dim", self.head_dim, bounds::HEAD_DIM)?;
        within("vocab_size", self.vocab_size, bounds::VOCAB_SIZE)?;
        within("max_position_embeddings", self.max_position_embeddings, bounds::POSITIONS)?;
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", self.num_heads);
            return Err(FormatError::key(path, "num_key_value_heads", expected, self.num_kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(FormatError::key(path, "head_dim", "an even number", self.head_dim));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(FormatError::key(
                path,
                "rms_norm_eps",
                "a number between 0 and 1",
                self.rms_norm_eps,
            ));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta <= bounds::ROPE_THETA) {
            let expected = format!("a number over 0 and up to {:e}", bounds::ROPE_THETA);
            return Err(FormatError::key(path, "rope_theta", expected, self.rope_theta));
        }
        if let Some(window) = self.sliding_window {
            within("sliding_window", window, bounds::POSITIONS)?;
        }
        if let Some(ExpertsConfig { num_experts, num_experts_per_tok }) = self.experts {
            within("num_local_experts", num_experts, bounds::NUM_EXPERTS)?;
            within("num_experts_per_tok", num_experts_per_tok, num_experts)?;
        }
        let layers = &self.full_attention_layers;
        let ascends = layers.windows(2).all(|pair| pair.first() < pair.last());
        if !ascends || layers.last().is_some_and(|last| *last >= self.num_layers) {
            let expected = format!("layers under {}, each once", self.num_layers);
            return Err(FormatError::key(path, "layer_types", expected, format!("{layers:?}")));
        }
        if let Some(dim) = self.partial_rotary_dim
            && !(dim > 0 && dim <= self.head_dim && dim.is_multiple_of(2))
        {
            let expected = format!("an even number of dimensions from 2 to {}", self.head_dim);
            return Err(FormatError::key(path, "partial_rotary_factor", expected, dim));
        }
        for (key, value) in [
            ("query_pre_attn_scalar", self.query_scalar),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ] {
            if value.is_some_and(|v| !(v > 0.0 && v <= bounds::SCALAR)) {
                let expected = format!("a number over 0 and up to {:e}", bounds::SCALAR);
                return Err(FormatError::key(path, key, expected, value.unwrap_or_default()));
            }
        }
        if self.eos_token_ids.len() > bounds::EOS_TOKENS {
            let expected = format!("at most {} ids", bounds::EOS_TOKENS);
            return Err(FormatError::key(path, "eos_token_id", expected, self.eos_token_ids.len()));
        }
        let ids = self.bos_token_id.iter().map(|id| ("bos_token_id", *id));
        let ids = ids.chain(self.eos_token_ids.iter().map(|id| ("eos_token_id", *id)));
        for (key, id) in ids {
            if id as usize >= self.vocab_size {
                let expected = format!("a token under vocab_size ({})", self.vocab_size);
                return Err(FormatError::key(path, key, expected, id));
            }
        }
        self.rope_scaling.check(path, self.rotary_dim())
    }

    /// How many dimensions of a head rotate: its first, in half-split pairs.
    pub fn rotary_dim(&self) -> usize {
        self.partial_rotary_dim.unwrap_or(self.head_dim)
    }

    /// The number of last tokens that a layer's attention sees, if it is limited.
    pub fn window(&self, layer_idx: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.full_attention_layers.binary_search(&layer_idx).is_err())
    }

    /// Factor on the scores of attention.
    pub fn attention_scale(&self) -> f64 {
        self.query_scalar.unwrap_or(self.head_dim as f64).sqrt().recip()
    }

    /// MLPs that a token goes through in a block: one, or as many as it has experts.
    pub fn mlps_per_token(&self) -> usize {
        self.experts.map_or(1, |experts| experts.num_experts_per_tok)
    }

    /// Rows of the query projection: `num_heads * head_dim`.
    pub fn q_size(&self) -> usize {
        self.num_heads.saturating_mul(self.head_dim)
    }

    /// Rows of the key and of the value projection: `num_kv_heads * head_dim`.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads.saturating_mul(self.head_dim)
    }
}

#[cfg(test)]
mod tests;
