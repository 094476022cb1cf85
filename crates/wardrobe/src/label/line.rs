//! A line of the output.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wardrobe_generator::Usage;

/// A record's line: its label, or why it has none.
///
/// ```json
/// {"index":0,"label":{"topic":"sea"},"finish_reason":"stop",
///  "usage":{"prompt_tokens":71,"cached_tokens":48,"completion_tokens":9}}
/// {"index":1,"label":null,"error":{"type":"context_length_exceeded","message":"…"}}
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelLine {
    /// The record's place in the input, from 0; bad records count too, empty lines do not.
    pub index: u64,
    /// The record's field `id`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// The label; null if there is none.
    #[serde(default)]
    pub label: Value,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<LineError>,
    /// `stop`; `length` if the label was brought to an end since its tokens ran out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// Tokens, as far as the record was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The fields of the record that were to be kept.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub input: Map<String, Value>,
}

/// Why a record has no label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineError {
    /// A short stable name: `bad_record`, `context_length_exceeded`, `invalid_json`, `refusal`, `engine`, `endpoint`,
    /// `panic`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened.
    pub message: String,
}

impl LabelLine {
    /// The line as text.
    pub(super) fn to_text(&self) -> String {
        // Maps with text as keys can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}
