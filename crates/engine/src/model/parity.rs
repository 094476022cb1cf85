//! Whether an adapter behaves here as it did where it was trained, by the record that its trainer wrote.
//!
//! The tensors must be those of the record. The base model's digest tells whether it is the very model; another one, such as
//! another quantisation of the same, may do, and is allowed to be further off. What decides is the texts of the record: the
//! log-probabilities of what the tuned model predicted.

use std::sync::Arc;

use wardrobe_device::Device;
use wardrobe_formats::PeftAdapter;
use wardrobe_formats::peft::ParityRecord;
use wardrobe_models::{Decoder, LoraAdapter, RopeSpec, log_probs, logits};

use crate::adapter::AdapterSource;
use crate::error::AdapterError;

/// Largest mean difference in log-probability over the very model: factors in f16, another instruction set.
const MAX_DIFFERENCE: f64 = 0.05;
/// The same over another quantisation of it.
const MAX_DIFFERENCE_OF_ANOTHER: f64 = 1.0;

/// Holds `adapter`, ready as `lora`, against its record.
pub(super) fn verify(
    device: &Arc<dyn Device>,
    model: &dyn Decoder,
    source: &AdapterSource,
    (adapter, lora): (&PeftAdapter, &LoraAdapter),
    record: &ParityRecord,
) -> Result<(), AdapterError> {
    let refuse = |reason: String| Err(AdapterError::Refused { reason });
    if adapter.tensors_digest() != record.tensors_digest {
        return refuse(
            "its tensors are not those that its parity record (wardrobe.json) vouches for".to_owned(),
        );
    }
    let is_same_base = record.base_digest == model.content_digest();
    // In process nothing has come between: the same model, and the tensors as they were.
    if is_same_base && matches!(source, AdapterSource::InProcess { .. }) {
        return Ok(());
    }
    let c = model.config();
    let rope = lora.rope().map_or_else(|| RopeSpec::of(c), |rope| RopeSpec::of_adapter(c, rope));
    // On a thread of its own, so that the engine's go on undisturbed.
    let device = device.with_threads(1).unwrap_or_else(|_| device.clone());
    let (mut sum, mut count) = (0.0, 0);
    for canary in &record.canaries {
        let known = |token: &u32| (*token as usize) < c.vocab_size;
        if !canary.token_ids.iter().chain(&canary.predicted).all(known) {
            return refuse("its parity record has tokens that this model does not know".to_owned());
        }
        let logits = logits(device.clone(), model, &canary.token_ids, Some(lora.modules()), &rope)
            .map_err(|error| AdapterError::Io { reason: error.to_string() })?;
        let (_, here) = log_probs(&logits, c.vocab_size, Some(&canary.predicted));
        for (here, there) in here.iter().zip(&canary.log_probs) {
            sum += f64::from((here - there).abs());
            count += 1;
        }
    }
    let difference = sum / f64::from(count.max(1));
    let is_very_model = is_same_base && !device.rounds_weights();
    let bound = if is_very_model { MAX_DIFFERENCE } else { MAX_DIFFERENCE_OF_ANOTHER };
    if difference > bound || difference.is_nan() {
        return refuse(format!(
            "it does not behave as it did in training: log-probabilities are off by {difference:.3} on average, allowed are \
             {bound}; is it for another base model?"
        ));
    }
    if !is_very_model {
        tracing::warn!(
            adapter = %source, difference, trained_on = record.device,
            "the adapter was trained on other weights of the base model, such as another quantisation"
        );
    }
    Ok(())
}
