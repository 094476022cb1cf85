//! A small model with the same weights on the card and on the CPU: the logits of a text, teacher-forced.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use wardrobe_device::Device;
use wardrobe_models::{RopeSpec, log_probs, logits};

use crate::device::DeviceSpec;
use crate::dummy::{DummyModel, DummyOptions};
use crate::error::Result;
use crate::model::{Model, ModelOptions};

/// Tokens of the text: a prompt, so that tiles are full and not.
const TOKENS: usize = 301;
/// How far log-probabilities may lie apart: the card rounds activations to bf16, by 2^-8, in each of the layers.
const BOUND: f64 = 0.05;

/// How far the two lie apart.
#[derive(Debug, Clone, Serialize)]
pub struct Goldens {
    /// Positions compared.
    pub num_positions: usize,
    /// Largest difference of a log-probability of the CPU's most likely token.
    pub largest_difference: f64,
    /// The same, on average.
    pub mean_difference: f64,
    /// Share of positions with the same most likely token.
    pub same_choice: f64,
    /// What is allowed.
    pub bound: f64,
}

impl Goldens {
    pub(super) fn failures(&self) -> Option<String> {
        let Goldens { largest_difference, bound, .. } = self;
        // NaN is no agreement.
        (largest_difference.is_nan() || largest_difference > bound).then(|| {
            format!("log-probabilities on the card and on the CPU differ by {largest_difference}, more than {bound}")
        })
    }
}

/// The small model on a device.
pub(super) fn open(config: &Path, device: Arc<dyn Device>, seed: u64) -> Result<Model> {
    let dummy = DummyModel::read(config, &DummyOptions { storage: None, seed })?;
    dummy.open_on(device, &ModelOptions::default(), &|_, _| {})
}

pub(super) fn run(config: &Path, card: Arc<dyn Device>, seed: u64) -> Result<Goldens> {
    let cpu = ModelOptions { device: DeviceSpec::Cpu, ..ModelOptions::default() }.open_device()?;
    let on_card = open(config, card, seed)?;
    let on_cpu = open(config, cpu, seed)?;
    let vocab = on_cpu.config().vocab_size;
    let tokens: Vec<u32> = (0..TOKENS).map(|i| ((i * 7919 + 13) % vocab) as u32).collect();
    let compute = |model: &Model| {
        let rope = RopeSpec::of(model.config());
        logits(model.device().clone(), model.decoder().as_ref(), &tokens, None, &rope)
    };
    let (got, want) = (compute(&on_card)?, compute(&on_cpu)?);
    let (choice, want) = log_probs(&want, vocab, None);
    let (same, got_of_choice) = (log_probs(&got, vocab, None).0, log_probs(&got, vocab, Some(&choice)).1);
    let differences: Vec<f64> =
        got_of_choice.iter().zip(&want).map(|(got, want)| f64::from((got - want).abs())).collect();
    let num_same = same.iter().zip(&choice).filter(|(a, b)| a == b).count();
    Ok(Goldens {
        num_positions: TOKENS,
        // NaN stays, and is no pass.
        largest_difference: differences
            .iter()
            .copied()
            .fold(0.0, |a, b| if b.is_nan() || b > a { b } else { a }),
        mean_difference: differences.iter().sum::<f64>() / TOKENS as f64,
        same_choice: num_same as f64 / TOKENS as f64,
        bound: BOUND,
    })
}
