//! Calls of functions in the text of a model: how its chat template writes them, and how they are read back.
//!
//! Every model family has a notation of its own (`<tool_call>` around JSON, a bare JSON object, a list after a special
//! token), which stands nowhere but in its template. So the template is asked: it renders a conversation with calls of made-up
//! names ([`probe`]), and what it writes around these names is the notation. A model whose template knows no tools gets a
//! notation of ours, and is told of its tools in the system message ([`plain`]).
//!
//! State: none but a [`ToolCallParser`]'s, which belongs to one answer.

mod parser;
mod plain;
mod probe;

pub use parser::{ToolCallParser, ToolEvent};

use crate::template::{ChatTemplate, Message};
use serde_json::Value;

/// The most calls in one answer.
pub const MAX_TOOL_CALLS: usize = 32;

/// A part of the text around a call's name and arguments.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NotationPart {
    /// This text.
    Text(String),
    /// The call's id: nine letters and digits.
    Id,
}

/// How calls are written: `first name middle arguments (next name middle arguments)* last`, where arguments are a JSON
/// object and a name has letters, digits, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToolNotation {
    /// Before the first call's name.
    pub first: Vec<NotationPart>,
    /// Between a call's name and its arguments; begins with a character that no name has.
    pub middle: Vec<NotationPart>,
    /// Between a call's arguments and the next call's name. `None`: there is one call at most.
    pub next: Option<Vec<NotationPart>>,
    /// After the last call's arguments.
    pub last: Vec<NotationPart>,
}

/// How many characters an id has, where the notation has ids.
pub const ID_LEN: usize = 9;

/// Whether a function may have this name: 1 to 64 of ASCII's letters and digits, `_` and `-` (OpenAI's rule).
pub fn is_function_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

impl ToolNotation {
    /// The beginning that tells a call from other text: what any text is searched for. Text that merely contains a JSON
    /// object is none, so a notation without a mark of its own is told by the whole of its beginning, and only where the
    /// answer begins with it ([`ToolNotation::has_mark`]).
    pub fn mark(&self) -> &str {
        let text = leading_text(&self.first);
        if !self.has_mark() {
            return text;
        }
        // A mark in brackets ends with them.
        let closing = match text.chars().next() {
            Some('[') => text.find(']'),
            Some('<') => text.find('>'),
            _ => None,
        };
        let end = closing.map(|at| at + 1).or_else(|| text.find(|c: char| c.is_whitespace() || c == '{'));
        end.and_then(|end| text.get(..end)).unwrap_or(text)
    }

    /// Whether calls begin with something that is no JSON.
    pub fn has_mark(&self) -> bool {
        let text = leading_text(&self.first);
        let is_list = text.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'));
        !(text.is_empty() || text.starts_with('{') || is_list)
    }
}

/// The text that a list of parts begins with.
pub(crate) fn leading_text(parts: &[NotationPart]) -> &str {
    match parts.first() {
        Some(NotationPart::Text(text)) => text,
        _ => "",
    }
}

/// How a model is told of tools, and how it calls them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolStyle {
    notation: ToolNotation,
    by_template: bool,
}

impl ToolStyle {
    /// The template's own, or ours if it has none. `eos_token` is the text that ends a turn, if the template asks for it.
    pub fn of(template: &ChatTemplate, bos_token: Option<&str>, eos_token: Option<&str>) -> Self {
        match probe::notation(template, bos_token, eos_token) {
            Some(notation) => Self { notation, by_template: true },
            None => Self { notation: plain::notation(), by_template: false },
        }
    }

    /// How calls are written.
    pub fn notation(&self) -> &ToolNotation {
        &self.notation
    }

    /// Whether the template writes tools, calls and their results itself.
    pub fn is_by_template(&self) -> bool {
        self.by_template
    }

    /// Brings a conversation into the form that the template can render, and gives the tools that it is to be handed. Where
    /// the template knows no tools, they, the calls and their results become text.
    pub fn prepare(&self, messages: &mut Vec<Message>, tools: Option<Value>) -> Option<Value> {
        if self.by_template {
            return tools;
        }
        plain::write_into(messages, tools.as_ref(), &self.notation);
        None
    }
}
