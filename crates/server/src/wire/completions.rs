//! `/v1/completions`: request fields of its own, answers and chunks.

use serde::{Deserialize, Serialize};

use super::logprobs::{CompletionLogprobs, PromptLogprobs, StopReason};
use super::prompt::Prompts;
use super::request::whole;
use super::usage::{WireTimings, WireUsage};

/// What a completions request has beside [`super::request::GenerationFields`].
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionFields {
    pub prompt: Prompts,
    #[serde(default)]
    pub echo: Option<bool>,
    #[serde(default, deserialize_with = "whole")]
    pub best_of: Option<u64>,
    #[serde(default, deserialize_with = "whole")]
    pub logprobs: Option<u32>,
}

/// A whole answer.
#[derive(Serialize)]
pub(crate) struct TextCompletion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub system_fingerprint: String,
    pub choices: Vec<TextChoice<'a>>,
    pub usage: WireUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<WireTimings>,
}

/// One choice, whole or a chunk's part of it.
#[derive(Serialize)]
pub(crate) struct TextChoice<'a> {
    pub index: usize,
    pub text: &'a str,
    pub logprobs: Option<CompletionLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// What of a schema that is not strict was not held, and whether the answer is valid by it; with a choice's end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
