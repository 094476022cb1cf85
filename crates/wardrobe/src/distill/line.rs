//! What a record became, as one line.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wardrobe_data::Turn;
use wardrobe_generator::{Message, Usage};

use crate::label::LineError;

/// A record's conversation, or why it is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DistillLine {
    /// The record's place in the input, from 0; bad records count too, empty lines do not.
    pub index: u64,
    /// The record's field `id`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// What was said. With an error: up to the question that has no answer.
    #[serde(default)]
    pub messages: Vec<Said>,
    /// The teacher's answers in turn, those that are no data too.
    #[serde(default)]
    pub answers: Vec<Given>,
    /// Why it is no data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<LineError>,
}

/// A message of the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// `system`, `developer`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// 0 for answers that the record had already: they are not learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
}

/// What is known of an answer beside its text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// How it ended.
    pub finish_reason: String,
    /// Its tokens.
    pub usage: Usage,
}

impl Said {
    /// A message of the record.
    pub(super) fn of(turn: &Turn) -> Self {
        let weight = turn.is_answer().then_some(0);
        Self { role: turn.message.role.clone(), content: turn.content().to_owned(), weight }
    }

    /// An answer of the teacher.
    pub(super) fn answer(content: String) -> Self {
        Self { role: "assistant".to_owned(), content, weight: None }
    }

    /// As a template takes it.
    pub(super) fn to_message(&self) -> Message {
        Message::text(&self.role, &self.content)
    }
}

impl DistillLine {
    /// The line as text.
    pub(super) fn to_text(&self) -> String {
        // Maps with text as keys can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}
