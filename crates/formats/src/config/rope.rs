//! How rotary frequencies are stretched for longer contexts.

use std::path::Path;

use serde_json::{Value, json};

use super::{Keys, bounds};
use crate::error::{FormatError, Result};

/// Scaling of the rotary frequencies `theta^(-2j / head_dim)`.
///
/// The formulas are those of `modeling_rope_utils.py` of Hugging Face transformers.
#[derive(Clone, Debug, PartialEq, Default, serde::Serialize)]
pub enum RopeScaling {
    /// Frequencies as they are.
    #[default]
    None,
    /// Position interpolation (Chen et al. 2023, section 3): frequencies divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: frequencies of long wavelengths divided by `factor`, short ones kept, smooth between.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths over `original_max_position / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_position / high_freq_factor` are kept. Over `low_freq_factor`.
        high_freq_factor: f64,
        /// Context that the model was first trained at, in tokens.
        original_max_position: usize,
    },
    /// YaRN (Peng et al. 2023, section 3.2 and 3.4).
    Yarn {
        /// At least 1.
        factor: f64,
        /// Context that the model was first trained at, in tokens.
        original_max_position: usize,
        /// Rotations over the original context above which a frequency is kept. Over `beta_slow`.
        beta_fast: f64,
        /// Rotations below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// What sine and cosine are multiplied by: the file's `attention_factor`, or what `mscale` and
        /// `mscale_all_dim` give, or `0.1 ln(factor) + 1`.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded outwards to whole dimensions (the default of every reader).
        truncate: bool,
    },
    /// LongRoPE (Ding et al., arXiv 2402.13753): each frequency is divided by a factor of its own, of one set for contexts up to
    /// the original one and of another for longer ones.
    LongRope {
        /// `[rotary_dim / 2]`: for contexts up to `original_max_position`.
        short: Vec<f32>,
        /// `[rotary_dim / 2]`: for longer ones.
        long: Vec<f32>,
        /// Context that the model was first trained at, in tokens.
        original_max_position: usize,
        /// What sine and cosine are multiplied by: the file's `attention_factor`, or
        /// `sqrt(1 + ln(factor) / ln(original_max_position))`, `factor` being the file's or what the model's context is over
        /// the original one.
        attention_factor: f64,
    },
    /// Divisors of the frequencies, `[head_dim / 2]`, each over 0: `rope_freqs.weight` of a GGUF file.
    FrequencyFactors(Vec<f32>),
}

impl RopeScaling {
    /// As `rope_scaling` of a `config.json`; `None` if there is nothing to say, or no such name for it.
    pub(crate) fn to_hf(&self) -> Option<Value> {
        Some(match self {
            Self::None | Self::FrequencyFactors(_) => return None,
            Self::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position,
            }),
            Self::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_position,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention_factor,
                "truncate": truncate,
            }),
            Self::LongRope { short, long, original_max_position, attention_factor } => json!({
                "rope_type": "longrope",
                "short_factor": short,
                "long_factor": long,
                "original_max_position_embeddings": original_max_position,
                "attention_factor": attention_factor,
            }),
        })
    }

    pub(crate) fn check(&self, path: &Path, rotary_dim: usize) -> Result<()> {
        let factor_ok = |factor: f64| {
            if (1.0..=bounds::ROPE_FACTOR).contains(&factor) {
                return Ok(());
            }
            let expected = format!("a number from 1 to {:e}", bounds::ROPE_FACTOR);
            Err(FormatError::key(path, "rope_scaling.factor", expected, factor))
        };
        let original_ok = |original: usize| {
            if (1..=bounds::POSITIONS).contains(&original) {
                return Ok(());
            }
            let expected = format!("an integer from 1 to {}", bounds::POSITIONS);
            Err(FormatError::key(path, "rope_scaling.original_max_position_embeddings", expected, original))
        };
        let attention_ok = |factor: f64| {
            if factor > 0.0 && factor <= bounds::ROPE_FACTOR {
                return Ok(());
            }
            Err(FormatError::key(path, "rope_scaling.attention_factor", "a number over 0", factor))
        };
        let ordered = |low_key: &str, low: f64, high: f64| {
            if low > 0.0 && low < high && high <= bounds::ROPE_FACTOR {
                return Ok(());
            }
            let key = format!("rope_scaling.{low_key}");
            Err(FormatError::key(
                path,
                key,
                format!("a number over 0 and under its counterpart, {high}"),
                low,
            ))
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => factor_ok(*factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                factor_ok(*factor)?;
                ordered("low_freq_factor", *low_freq_factor, *high_freq_factor)?;
                original_ok(*original_max_position)
            }
            Self::Yarn { factor, original_max_position, beta_fast, beta_slow, attention_factor, .. } => {
                factor_ok(*factor)?;
                ordered("beta_slow", *beta_slow, *beta_fast)?;
                attention_ok(*attention_factor)?;
                original_ok(*original_max_position)
            }
            Self::FrequencyFactors(factors) => check_factors(path, "rope_freqs.weight", factors, rotary_dim),
            Self::LongRope { short, long, original_max_position, attention_factor } => {
                check_factors(path, "rope_scaling.short_factor", short, rotary_dim)?;
                check_factors(path, "rope_scaling.long_factor", long, rotary_dim)?;
                attention_ok(*attention_factor)?;
                original_ok(*original_max_position)
            }
        }
    }
}

fn check_factors(path: &Path, key: &str, factors: &[f32], rotary_dim: usize) -> Result<()> {
    if factors.len() != rotary_dim / 2 {
        let expected = format!("{} values, half of the dimensions that rotate", rotary_dim / 2);
        return Err(FormatError::key(path, key, expected, factors.len()));
    }
    match factors.iter().find(|f| !(**f > 0.0 && f64::from(**f) <= bounds::ROPE_FACTOR)) {
        Some(bad) => Err(FormatError::key(path, key, "finite values over 0", bad)),
        None => Ok(()),
    }
}

/// What the rest of a configuration says of rotary positions; nothing, of an adapter's.
#[derive(Default)]
pub(crate) struct RopeContext {
    /// Longest sequence of the model.
    pub(crate) max_position: Option<usize>,
    /// The original context, where it stands beside the scaling and not in it.
    pub(crate) original_max_position: Option<usize>,
    /// Whether a part of a head may rotate alone, which is read elsewhere.
    pub(crate) has_partial_rotary: bool,
}

/// Reads `rope_scaling`, or `rope_parameters` as transformers 5 writes it.
pub(crate) fn from_hf(keys: &Keys<'_>, context: &RopeContext) -> Result<RopeScaling> {
    let rope_type = match keys.str("rope_type")? {
        Some(name) => name,
        None => keys.str("type")?.unwrap_or("default"),
    };
    let partial = keys.f64("partial_rotary_factor")?.unwrap_or(1.0);
    if partial != 1.0 && !context.has_partial_rotary {
        return Err(keys.error("partial_rotary_factor", "1", partial));
    }
    match rope_type {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: keys.require_f64("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: keys.require_f64("factor")?,
            low_freq_factor: keys.require_f64("low_freq_factor")?,
            high_freq_factor: keys.require_f64("high_freq_factor")?,
            original_max_position: keys.require_usize("original_max_position_embeddings")?,
        }),
        // "su" is what it was called first.
        "longrope" | "su" if context.max_position.is_some() => longrope_from_hf(keys, context),
        "yarn" => yarn_from_hf(keys, context.max_position),
        other => Err(keys.error(
            "rope_type",
            "one of default, linear, llama3, yarn, and of a model longrope",
            format!("\"{other}\", which is not supported"),
        )),
    }
}

fn longrope_from_hf(keys: &Keys<'_>, context: &RopeContext) -> Result<RopeScaling> {
    let given = keys.usize("original_max_position_embeddings")?.or(context.original_max_position);
    let original_max_position = match given {
        Some(given) => given,
        None => keys.require_usize("original_max_position_embeddings")?,
    };
    let of_context = |max: usize| max as f64 / original_max_position.max(1) as f64;
    let factor = keys.f64("factor")?.or(context.max_position.map(of_context)).unwrap_or(1.0);
    Ok(RopeScaling::LongRope {
        short: keys.require_f32s("short_factor")?,
        long: keys.require_f32s("long_factor")?,
        original_max_position,
        attention_factor: keys
            .f64("attention_factor")?
            .unwrap_or_else(|| longrope_attention(factor, original_max_position)),
    })
}

/// What LongRoPE multiplies sine and cosine by, for a context `factor` times the original one.
fn longrope_attention(factor: f64, original_max_position: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_max_position as f64).ln()).sqrt() }
}

fn yarn_from_hf(keys: &Keys<'_>, max_position: Option<usize>) -> Result<RopeScaling> {
    let factor = keys.require_f64("factor")?;
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention_factor =
        match (keys.f64("attention_factor")?, keys.f64("mscale")?, keys.f64("mscale_all_dim")?) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
                temperature(mscale) / temperature(all_dim)
            }
            _ => temperature(1.0),
        };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position: match (keys.usize("original_max_position_embeddings")?, max_position) {
            (Some(given), _) | (None, Some(given)) => given,
            (None, None) => keys.require_usize("original_max_position_embeddings")?,
        },
        beta_fast: keys.f64("beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.f64("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: keys.bool("truncate")?.unwrap_or(true),
    })
}
