//! Cosines and sines of rotary positions, for every scaling.

use wardrobe_formats::peft::AdapterRope;
use wardrobe_formats::{ModelConfig, RopeScaling};

/// What determines a RoPE table.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions that rotate.
    pub rotary_dim: usize,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
    /// Whether the context that it is for is longer than LongRoPE's original one. One set of factors serves all positions and
    /// sequences of a model, since keys that are kept were rotated by it: the long set where the model's
    /// `max_position_embeddings` are more than the original context, else the short one. (transformers chooses anew at each call, by
    /// the longest sequence in it; a `config.json` with the original context chooses the short set here.)
    pub has_long_context: bool,
}

fn is_long(scaling: &RopeScaling, max_position: usize) -> bool {
    matches!(scaling, RopeScaling::LongRope { original_max_position, .. } if max_position > *original_max_position)
}

impl RopeSpec {
    /// The model's own.
    pub fn of(config: &ModelConfig) -> Self {
        RopeSpec {
            theta: config.rope_theta,
            rotary_dim: config.rotary_dim(),
            scaling: config.rope_scaling.clone(),
            has_long_context: is_long(&config.rope_scaling, config.max_position_embeddings),
        }
    }

    /// What an adapter brings for a model.
    pub fn of_adapter(config: &ModelConfig, rope: &AdapterRope) -> Self {
        RopeSpec {
            theta: rope.theta.unwrap_or(config.rope_theta),
            rotary_dim: config.rotary_dim(),
            scaling: rope.scaling.clone(),
            has_long_context: is_long(&rope.scaling, rope.max_position_embeddings),
        }
    }

    /// The scaling as divisors of the plain frequencies, `[rotary_dim / 2]`: what GGUF calls frequency factors. Exact for
    /// scalings that stretch frequencies alone, as all but YaRN and LongRoPE do.
    pub fn divisors(&self) -> Vec<f32> {
        let (scaled, _) = self.frequencies();
        let (plain, _) = RopeSpec { scaling: RopeScaling::None, ..self.clone() }.frequencies();
        plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect()
    }

    /// Llama 3's scaling, if it is what gave these frequency factors: GGUF files have only the factors, and every
    /// release so far was made from a context of 8,192 tokens with the same two ends.
    pub fn named_scaling(&self) -> Option<RopeScaling> {
        const TOLERANCE: f32 = 1e-4;
        let RopeScaling::FrequencyFactors(factors) = &self.scaling else { return Some(self.scaling.clone()) };
        let scaling = RopeScaling::Llama3 {
            factor: f64::from(factors.iter().copied().fold(1.0, f32::max)),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        };
        let given = RopeSpec { scaling, ..self.clone() };
        let is_same = given.divisors().iter().zip(factors).all(|(a, b)| (a / b - 1.0).abs() < TOLERANCE);
        is_same.then_some(given.scaling)
    }

    /// Frequency of each pair in radians per position, and the factor on cosines and sines.
    ///
    /// Formulas: Chen et al., arXiv 2306.15595 (linear); `rope_type: llama3` of the Llama 3.1 release; Peng et al.,
    /// arXiv 2309.00071, equations 17 to 22 (YaRN).
    fn frequencies(&self) -> (Vec<f64>, f64) {
        let dim = self.rotary_dim as f64;
        let plain = |i: usize| self.theta.powf(-((2 * i) as f64) / dim);
        let pairs = 0..self.rotary_dim / 2;
        let tau = std::f64::consts::TAU;
        match &self.scaling {
            RopeScaling::Linear { factor } => (pairs.map(|i| plain(i) / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let original = *original_max_position as f64;
                let stretch = |f: f64| {
                    let wavelength = tau / f;
                    if wavelength < original / high_freq_factor {
                        f
                    } else if wavelength > original / low_freq_factor {
                        f / factor
                    } else {
                        let keep =
                            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - keep) * f / factor + keep * f
                    }
                };
                (pairs.map(|i| stretch(plain(i))).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                // The pair that makes `beta` rotations over the original context.
                let pair_of = |beta: f64| {
                    dim * (*original_max_position as f64 / (beta * tau)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if high > low { high - low } else { 0.001 };
                let blend = |i: usize| {
                    let interpolate = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    plain(i) / factor * interpolate + plain(i) * (1.0 - interpolate)
                };
                (pairs.map(blend).collect(), *attention_factor)
            }
            RopeScaling::LongRope { short, long, attention_factor, .. } => {
                let divisors = if self.has_long_context { long } else { short };
                let divisor = |i: usize| divisors.get(i).map_or(1.0, |d| f64::from(*d));
                (pairs.map(|i| plain(i) / divisor(i)).collect(), *attention_factor)
            }
            RopeScaling::FrequencyFactors(divisors) => {
                let divisor = |i: usize| divisors.get(i).map_or(1.0, |d| f64::from(*d));
                (pairs.map(|i| plain(i) / divisor(i)).collect(), 1.0)
            }
            _ => (pairs.map(plain).collect(), 1.0),
        }
    }
}

/// The table of `num_positions` positions: `[positions, rotary_dim / 2, 2]`, cosine and sine.
///
/// Frequencies and angles are rounded to f32, as the implementations that models were trained with do.
pub fn rope_table(spec: &RopeSpec, num_positions: usize) -> Vec<f32> {
    let (frequencies, factor) = spec.frequencies();
    let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
    let factor = factor as f32;
    let mut table = Vec::with_capacity(num_positions * frequencies.len() * 2);
    for position in 0..num_positions {
        for f in &frequencies {
            let (sin, cos) = (position as f32 * f).sin_cos();
            table.extend([cos * factor, sin * factor]);
        }
    }
    table
}
