//! Tools: what a chat request offers, and how calls look in an answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// OpenAI's fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ToolFields {
    /// As the client sent them: templates print them with every field.
    pub tools: Option<Vec<Value>>,
    pub tool_choice: Option<ToolChoice>,
    pub parallel_tool_calls: Option<bool>,
}

/// One of [`ToolFields::tools`].
#[derive(Debug, Deserialize)]
pub(crate) struct Tool {
    #[serde(rename = "type")]
    pub kind: String,
    pub function: Option<FunctionFields>,
}

/// A function that may be called.
#[derive(Debug, Deserialize)]
pub(crate) struct FunctionFields {
    pub name: String,
    #[serde(default)]
    pub parameters: Value,
    #[serde(default)]
    pub strict: Option<bool>,
}

/// Whether, and which, functions are to be called.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    Mode(String),
    Named(NamedChoice),
}

/// A function that has to be called, or those that may be.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum NamedChoice {
    Function { function: FunctionName },
    AllowedTools { allowed_tools: AllowedTools },
}

#[derive(Debug, Deserialize)]
pub(crate) struct AllowedTools {
    pub mode: String,
    pub tools: Vec<AllowedTool>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AllowedTool {
    pub function: FunctionName,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FunctionName {
    pub name: String,
}

/// A call in a whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: FunctionCall,
}

#[derive(Debug, Serialize)]
pub(crate) struct FunctionCall {
    pub name: String,
    /// JSON as text.
    pub arguments: String,
}

/// A part of a call in a stream: id and name come with the first part alone.
#[derive(Debug, Serialize)]
pub(crate) struct ToolCallDelta {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: FunctionDelta,
}

#[derive(Debug, Serialize)]
pub(crate) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}
