//! What a trainer vouches for: how an adapter behaved where it was trained.
//!
//! Whoever loads the adapter can see by it that the tensors are those that were trained, that the base is the one they
//! were trained on, and that both together give the same log-probabilities.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::contents::AdapterTensor;
use super::write::{PeftContents, named_tensors};
use crate::config::Keys;
use crate::digest::{Digest, DigestBuilder};
use crate::error::{FormatError, Result};

/// As the message says.
const MAX_CANARIES: usize = 64;
const MAX_CANARY_TOKENS: usize = 4096;

/// How an adapter behaved where it was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct ParityRecord {
    /// Digest of the base model's content.
    pub base_digest: Digest,
    /// Digest of the adapter's tensors: names, shapes, types and values.
    pub tensors_digest: Digest,
    /// The device that trained, for messages.
    pub device: String,
    /// Texts and what the tuned model made of them.
    pub canaries: Vec<Canary>,
}

/// A text, and the tuned model's most likely next token after each of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Canary {
    /// The text.
    pub token_ids: Vec<u32>,
    /// The most likely next token at each position.
    pub predicted: Vec<u32>,
    /// Its log-probability, in nats.
    pub log_probs: Vec<f32>,
}

/// Digest of an adapter's tensors.
pub fn tensors_digest(contents: &PeftContents<'_>) -> Digest {
    let mut named: Vec<(String, &AdapterTensor)> = named_tensors(contents).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let mut builder = DigestBuilder::new("wardrobe adapter tensors 1");
    for (name, tensor) in named {
        builder.part(name.as_bytes()).part(tensor.storage().name().as_bytes());
        let shape: Vec<u8> = tensor.shape().iter().flat_map(|&d| (d as u64).to_le_bytes()).collect();
        builder.part(&shape).part(tensor.bytes());
    }
    builder.finish()
}

impl ParityRecord {
    pub(super) fn to_json(&self) -> Value {
        let canaries: Vec<Value> = self
            .canaries
            .iter()
            .map(|c| json!({ "token_ids": c.token_ids, "predicted": c.predicted, "log_probs": c.log_probs }))
            .collect();
        json!({
            "base_digest": self.base_digest.to_string(),
            "tensors_digest": self.tensors_digest.to_string(),
            "device": self.device,
            "canaries": canaries,
        })
    }

    pub(super) fn from_json(path: &Path, keys: &Keys<'_>) -> Result<Self> {
        let known = ["base_digest", "tensors_digest", "device", "canaries"];
        if let Some(key) = keys.map().keys().find(|key| !known.contains(&key.as_str())) {
            return Err(keys.error(key, "no such key", "one"));
        }
        let digest = |key: &str| {
            let text = keys.str(key)?.unwrap_or_default();
            Digest::from_hex(text).ok_or_else(|| keys.error(key, "64 hexadecimal digits", "something else"))
        };
        let canaries = match keys.get("canaries") {
            Some(Value::Array(canaries)) if canaries.len() <= MAX_CANARIES => canaries,
            _ => {
                return Err(keys.error("canaries", "an array of up to 64", "another value"));
            }
        };
        let canaries = canaries.iter().map(|canary| match canary {
            Value::Object(map) => Canary::from_json(path, map),
            _ => Err(keys.error("canaries", "objects", "something else")),
        });
        Ok(ParityRecord {
            base_digest: digest("base_digest")?,
            tensors_digest: digest("tensors_digest")?,
            device: keys.str("device")?.unwrap_or_default().to_owned(),
            canaries: canaries.collect::<Result<_>>()?,
        })
    }
}

impl Canary {
    fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let keys = Keys::new(path, map);
        let log_probs = match keys.get("log_probs") {
            Some(Value::Array(values)) => values.iter().map(|v| v.as_f64().map(|v| v as f32)).collect(),
            _ => None,
        };
        let log_probs: Vec<f32> = log_probs
            .filter(|values: &Vec<f32>| values.iter().all(|v| v.is_finite() && *v <= 0.0))
            .ok_or_else(|| keys.error("log_probs", "an array of finite numbers up to 0", "something else"))?;
        let canary = Canary {
            token_ids: keys.token_ids("token_ids")?,
            predicted: keys.token_ids("predicted")?,
            log_probs,
        };
        let len = canary.token_ids.len();
        if !(1..=MAX_CANARY_TOKENS).contains(&len)
            || [canary.predicted.len(), canary.log_probs.len()] != [len; 2]
        {
            let problem =
                "a canary needs as many tokens as predictions and log-probabilities, and not too many";
            return Err(FormatError::malformed(path, problem));
        }
        Ok(canary)
    }
}
