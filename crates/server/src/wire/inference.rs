//! `POST /inference`: the shapes of Together's API of 2023.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wardrobe_engine::{Finish, StopCause, TokenLogprobs};

use super::logprobs::Logprob;
use crate::error::{ApiError, Result};

/// The only kind of request that is answered.
pub(crate) const KIND: &str = "language-model-inference";

/// What a request has beside the fields of a completion.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct InferenceFields {
    pub stream_tokens: Option<bool>,
    request_type: Option<String>,
    mode: Option<String>,
    safety_model: Option<String>,
    #[serde(rename = "async")]
    is_async: Option<bool>,
}

impl InferenceFields {
    /// Refuses by name what would give another answer than was asked for.
    pub fn check(&self) -> Result<()> {
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let is_other = |text: &Option<String>, known: &str| is_set(text) && text.as_deref() != Some(known);
        if is_other(&self.request_type, KIND) {
            return Err(ApiError::unsupported("request_type", "only `language-model-inference` is answered"));
        }
        if is_other(&self.mode, "text2text") {
            return Err(ApiError::unsupported("mode", "this server reads and writes text only"));
        }
        if is_set(&self.safety_model) {
            return Err(ApiError::unsupported("safety_model", "no model judges the answers"));
        }
        if self.is_async == Some(true) {
            return Err(ApiError::unsupported("async", "answers come with their request; use /v1/batches"));
        }
        Ok(())
    }
}

#[derive(Serialize)]
pub(crate) struct InferenceAnswer<'a> {
    pub id: &'a str,
    pub status: &'static str,
    pub model: &'a str,
    pub args: Map<String, Value>,
    pub prompt: [&'a Value; 1],
    pub num_returns: usize,
    pub subjobs: [(); 0],
    pub tags: Map<String, Value>,
    pub output: InferenceOutput<'a>,
}

#[derive(Serialize)]
pub(crate) struct InferenceOutput<'a> {
    pub result_type: &'static str,
    pub choices: Vec<InferenceChoice<'a>>,
    pub usage: super::usage::WireUsage,
}

#[derive(Serialize)]
pub(crate) struct InferenceChoice<'a> {
    pub index: usize,
    pub text: &'a str,
    pub finish_reason: &'static str,
    /// With their log-probabilities, if these were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<Cow<'a, str>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Logprob>>,
}

/// The tokens of a choice and their log-probabilities.
pub(crate) fn logprobs(rows: &[TokenLogprobs]) -> (Vec<Cow<'_, str>>, Vec<Logprob>) {
    rows.iter().map(|row| (String::from_utf8_lossy(&row.bytes), Logprob(row.logprob))).unzip()
}

/// A choice's end in this API's words: those of the text-generation servers behind it.
pub(crate) fn finish_reason(finish: Option<&Finish>, reason: &'static str) -> &'static str {
    match finish {
        Some(Finish::Stop(StopCause::String(_) | StopCause::Token(_))) => "stop_sequence",
        Some(Finish::Stop(_)) => "eos_token",
        _ => reason,
    }
}

/// An event of a streamed answer.
#[derive(Serialize)]
pub(crate) struct InferenceChunk<'a> {
    pub id: &'a str,
    pub choices: [InferenceDelta<'a>; 1],
    /// With a choice's end, all of its text.
    pub generated_text: Option<&'a str>,
    /// With a choice's end.
    pub details: Option<InferenceDetails>,
}

#[derive(Serialize)]
pub(crate) struct InferenceDelta<'a> {
    pub index: usize,
    pub text: &'a str,
}

#[derive(Serialize)]
pub(crate) struct InferenceDetails {
    pub finish_reason: &'static str,
    pub generated_tokens: u64,
    pub seed: Option<u64>,
}
