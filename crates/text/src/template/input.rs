//! What a chat template is given.

use super::{TemplateError, strftime};
use minijinja::Value as TemplateValue;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation, with its fields in the order in which templates print them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool` or what the template knows.
    pub role: String,
    /// What is said.
    #[serde(default, skip_serializing_if = "MessageContent::is_absent")]
    pub content: MessageContent,
    /// The speaker's or the tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tool calls of an assistant's message, as the client sent them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// Which call a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Other fields (`reasoning_content` and so on), passed on as they are.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The content of a message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MessageContent {
    /// Plain text.
    Text(String),
    /// A list of parts, such as `{"type":"text","text":"…"}`.
    Parts(Vec<Value>),
    /// `null`, as in a message of tool calls only.
    Null,
    /// No such field.
    #[default]
    #[serde(skip)]
    Absent,
}

impl MessageContent {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Message {
    /// A message of plain text.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: MessageContent::Text(text.into()), ..Self::default() }
    }

    /// Joins a content of text parts into plain text, which is what templates of text models expect.
    ///
    /// # Errors
    /// The type of the first part that is not text; the message is then as before.
    pub fn join_text_parts(&mut self) -> Result<(), String> {
        let MessageContent::Parts(parts) = &self.content else { return Ok(()) };
        let mut joined = String::new();
        for part in parts {
            match part {
                Value::String(text) => joined.push_str(text),
                _ => match (part.get("type").and_then(Value::as_str), part.get("text")) {
                    (Some("text") | None, Some(Value::String(text))) => joined.push_str(text),
                    (kind, _) => return Err(kind.unwrap_or("unknown").to_owned()),
                },
            }
        }
        self.content = MessageContent::Text(joined);
        Ok(())
    }

    /// Turns the arguments of tool calls from JSON text, as OpenAI's API has them, into values, as templates expect
    /// them. Text that is no JSON object stays as it is.
    pub fn parse_tool_arguments(&mut self) {
        let Some(Value::Array(calls)) = &mut self.tool_calls else { return };
        for arguments in calls.iter_mut().filter_map(|call| call.pointer_mut("/function/arguments")) {
            if let Value::String(text) = arguments
                && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
            {
                *arguments = parsed;
            }
        }
    }
}

/// The inputs of one rendering.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatInput<'a> {
    /// The conversation.
    pub messages: &'a [Message],
    /// The tools that the model may call, as the client sent them.
    pub tools: Option<&'a Value>,
    /// Documents to answer from.
    pub documents: Option<&'a Value>,
    /// End with the start of an assistant's message.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Text of the beginning-of-text token.
    pub bos_token: Option<&'a str>,
    /// Text of the end-of-text token.
    pub eos_token: Option<&'a str>,
    /// Further variables (`chat_template_kwargs`); they never replace those above.
    pub kwargs: Option<&'a Map<String, Value>>,
    /// Seconds since 1970 for `strftime_now`; `None`: the system's clock. UTC in either case.
    pub now_unix_s: Option<i64>,
}

impl ChatInput<'_> {
    /// The variables that the template sees.
    pub(super) fn context(&self, clock: impl FnOnce() -> i64) -> TemplateValue {
        let mut variables: Vec<(&str, TemplateValue)> = Vec::new();
        if let Some(kwargs) = self.kwargs {
            variables.extend(kwargs.iter().map(|(name, value)| (name.as_str(), to_template(value))));
        }
        let messages: TemplateValue =
            self.messages.iter().map(|message| TemplateValue::from(Serde(message))).collect();
        variables.push(("messages", messages));
        // As in Hugging Face's libraries these exist even when they are not given, as None.
        variables.push(("tools", self.tools.map_or(TemplateValue::from(()), to_template)));
        variables.push(("documents", self.documents.map_or(TemplateValue::from(()), to_template)));
        variables.push(("add_generation_prompt", self.add_generation_prompt.into()));
        let tokens = [("bos_token", self.bos_token), ("eos_token", self.eos_token)];
        variables.extend(tokens.into_iter().filter_map(|(name, text)| Some((name, text?.into()))));
        let now_unix_s = self.now_unix_s.unwrap_or_else(clock);
        let strftime_now = move |pattern: &str| strftime::format(pattern, now_unix_s);
        variables.push(("strftime_now", TemplateValue::from_function(strftime_now)));
        TemplateValue::from_pairs(variables)
    }

    /// The text of the last message, if the rendering is to end inside it.
    pub(super) fn continued_text(&self) -> Result<Option<String>, TemplateError> {
        if !self.continue_final_message {
            return Ok(None);
        }
        let refused = |message: &str| TemplateError::ContinueFinalMessage { message: message.to_owned() };
        if self.add_generation_prompt {
            return Err(refused("it excludes add_generation_prompt"));
        }
        let mut last = self.messages.last().cloned().ok_or_else(|| refused("there is no message"))?;
        last.join_text_parts().map_err(|_| refused("the last message is not text"))?;
        match last.content {
            MessageContent::Text(text) => Ok(Some(text)),
            _ => Err(refused("the last message has no text")),
        }
    }
}

/// Cuts a rendering after the last message's text; a template may have trimmed it.
pub(super) fn cut_after(mut text: String, message: &str) -> Result<String, TemplateError> {
    let trimmed = message.trim();
    let start = text.rfind(trimmed).ok_or_else(|| TemplateError::ContinueFinalMessage {
        message: "the template does not give the last message's text as it is".to_owned(),
    })?;
    // The message's own white space, as far as the template kept it.
    let trailing = &message[message.trim_end().len()..];
    let mut end = start + trimmed.len();
    if text[end..].starts_with(trailing) {
        end += trailing.len();
    }
    text.truncate(end);
    Ok(text)
}

pub(super) fn to_template(value: &Value) -> TemplateValue {
    TemplateValue::from(Serde(value))
}
