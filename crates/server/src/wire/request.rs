//! What requests for text have in common, whichever API they come through.
//!
//! Numbers are read wide and narrowed with a check, so that an absurd value is refused by its name and never wraps.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Fields of both completions APIs: OpenAI's, vLLM's and llama.cpp's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GenerationFields {
    pub model: Option<String>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    #[serde(deserialize_with = "whole")]
    pub n: Option<u64>,
    #[serde(alias = "n_predict", deserialize_with = "whole")]
    pub max_tokens: Option<u64>,
    #[serde(deserialize_with = "whole")]
    pub max_completion_tokens: Option<u64>,
    #[serde(deserialize_with = "whole")]
    pub min_tokens: Option<u64>,
    pub temperature: Option<f64>,
    #[serde(deserialize_with = "whole")]
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    #[serde(alias = "repeat_penalty")]
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub allowed_token_ids: Option<Vec<u32>>,
    pub bad_words: Option<Vec<String>>,
    pub seed: Option<Seed>,
    pub stop: Option<OneOrMany>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub include_stop_str_in_output: Option<bool>,
    pub ignore_eos: Option<bool>,
    pub skip_special_tokens: Option<bool>,
    #[serde(deserialize_with = "whole")]
    pub prompt_logprobs: Option<u32>,
    pub logprob_token_ids: Option<Vec<u32>>,
    pub return_tokens_as_token_ids: Option<bool>,
    pub return_token_ids: Option<bool>,
    #[serde(deserialize_with = "whole")]
    pub truncate_prompt_tokens: Option<i64>,
    pub add_special_tokens: Option<bool>,
    pub cache_salt: Option<String>,
    pub cache_prompt: Option<bool>,
    #[serde(deserialize_with = "whole")]
    pub priority: Option<i32>,
    pub lora: Option<Vec<LoraChoice>>,
    #[serde(deserialize_with = "whole")]
    pub expected_generation: Option<u64>,
    pub timings: Option<bool>,
    pub timings_per_token: Option<bool>,
}

/// Reads a whole number, which some clients write as `16.0`.
pub(crate) fn whole<'de, D: Deserializer<'de>, T: TryFrom<i128>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_any(WholeVisitor(PhantomData))
}

struct WholeVisitor<T>(PhantomData<T>);

impl<T: TryFrom<i128>> Visitor<'_> for WholeVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number in range")
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<T>, E> {
        let value = T::try_from(i128::from(number));
        value.map(Some).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<T>, E> {
        let value = T::try_from(i128::from(number));
        value.map(Some).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Option<T>, E> {
        // Up to here every whole number is one of f64.
        let is_whole = number.fract() == 0.0 && number.abs() < 9.0e15;
        let value = is_whole.then(|| T::try_from(number as i128).ok()).flatten();
        value.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
    }
}

/// A seed of 64 bits. Negative ones are as good as others: their bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(pub u64);

struct SeedVisitor;

impl Visitor<'_> for SeedVisitor {
    type Value = Seed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer of 64 bits")
    }

    fn visit_u64<E: Error>(self, seed: u64) -> Result<Seed, E> {
        Ok(Seed(seed))
    }

    fn visit_i64<E: Error>(self, seed: i64) -> Result<Seed, E> {
        Ok(Seed(seed.cast_unsigned()))
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SeedVisitor)
    }
}

/// What a stream tells besides text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// A string or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// An adapter chosen as llama.cpp has it; `id` is a name, or a generation from `/v1/lora_adapters`.
#[derive(Debug, Deserialize)]
pub(crate) struct LoraChoice {
    pub id: LoraId,
    pub scale: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected an adapter's name or its generation")]
pub(crate) enum LoraId {
    Generation(u64),
    Name(String),
}
