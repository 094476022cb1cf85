//! `/v1/chat/completions`: request fields of its own, answers and chunks.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wardrobe_text::Message;

use super::logprobs::{ChatLogprobs, PromptLogprobs, StopReason};
use super::request::whole;
use super::tools::{ToolCall, ToolCallDelta};
use super::usage::{WireTimings, WireUsage};

/// What a chat request has beside [`super::request::GenerationFields`].
#[derive(Debug, Deserialize)]
pub(crate) struct ChatFields {
    pub messages: Vec<Message>,
    #[serde(default)]
    pub logprobs: Option<bool>,
    #[serde(default, deserialize_with = "whole")]
    pub top_logprobs: Option<u32>,
    #[serde(default)]
    pub add_generation_prompt: Option<bool>,
    #[serde(default)]
    pub continue_final_message: Option<bool>,
    #[serde(default)]
    pub chat_template: Option<String>,
    #[serde(default)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(default)]
    pub documents: Option<Value>,
}

/// A whole answer.
#[derive(Serialize)]
pub(crate) struct ChatCompletion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub system_fingerprint: String,
    pub choices: Vec<ChatChoice<'a>>,
    pub usage: WireUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<WireTimings>,
}

#[derive(Serialize)]
pub(crate) struct ChatChoice<'a> {
    pub index: usize,
    pub message: AssistantMessage,
    pub logprobs: Option<ChatLogprobs<'a>>,
    pub finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// What of a schema that is not strict was not held, and whether the answer is valid by it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Serialize)]
pub(crate) struct AssistantMessage {
    pub role: &'static str,
    /// `null` beside calls, if there is no text.
    pub content: Option<String>,
    pub refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One choice's part of a chunk.
#[derive(Serialize)]
pub(crate) struct ChatDelta<'a> {
    pub index: usize,
    pub delta: Delta<'a>,
    pub logprobs: Option<ChatLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// As in [`ChatChoice`], with the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Default, Serialize)]
pub(crate) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<[&'a ToolCallDelta; 1]>,
}
