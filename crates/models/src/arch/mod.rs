//! The architectures, one file each.

mod gemma2;
mod gpt_neox;
mod llama;
mod mixtral;
mod parts;
mod phi3;
mod qwen;

use std::sync::Arc;

use wardrobe_device::Ctx;
use wardrobe_formats::{ModelConfig, ModelFiles};

use crate::Decoder;
use crate::error::{ModelError, Result};
use crate::loader::{LoadOptions, Loader};
use crate::source::FileWeights;

/// Builds a decoder of a configuration from the loader's tensors.
pub(crate) type Load = fn(Loader<'_>, ModelConfig) -> Result<Arc<dyn Decoder>>;

/// Names that configurations use, and what loads them.
const ARCHITECTURES: &[(&[&str], Load)] = &[
    (&["LlamaForCausalLM", "MistralForCausalLM"], llama::load),
    (&["MixtralForCausalLM"], mixtral::load),
    (&["Qwen2ForCausalLM", "Qwen3ForCausalLM"], qwen::load),
    (&["Phi3ForCausalLM"], phi3::load),
    (&["GPTNeoXForCausalLM"], gpt_neox::load),
    (&["Gemma2ForCausalLM"], gemma2::load),
];

/// Paths of the embedding and of the head, as an architecture's tensors are called.
pub(crate) fn ends(config: &ModelConfig) -> (&'static str, &'static str) {
    match config.architecture.as_str() {
        "GPTNeoXForCausalLM" => gpt_neox::ENDS,
        _ => parts::ENDS,
    }
}

/// Loads a model onto the context's device.
///
/// # Errors
/// [`ModelError`] naming the architecture, the tensor or the configuration key at fault.
pub fn load(ctx: &mut Ctx, files: &ModelFiles, options: &LoadOptions<'_>) -> Result<Arc<dyn Decoder>> {
    let load = find(&files.config)?;
    let weights = FileWeights::open(files)?;
    load(Loader::new(ctx, Box::new(weights), options), files.config.clone())
}

/// Whether there is a file for the architecture.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`].
pub fn check(config: &ModelConfig) -> Result<()> {
    find(config).map(drop)
}

pub(crate) fn find(config: &ModelConfig) -> Result<Load> {
    let name = &config.architecture;
    match ARCHITECTURES.iter().find(|(names, _)| names.contains(&name.as_str())) {
        Some((_, load)) => Ok(*load),
        None => Err(ModelError::UnknownArchitecture {
            name: name.clone(),
            supported: ARCHITECTURES
                .iter()
                .flat_map(|(names, _)| *names)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}
