//! Records: what a row means to a trainer.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wardrobe_text::{Message, MessageContent};

use crate::error::Fault;

/// The most messages of one conversation. Each answer is rendered with all that comes before it.
pub const MAX_MESSAGES: usize = 4096;

/// Who may speak.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// One thing to learn from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// A conversation; its answers are learnt.
    Chat(Conversation),
    /// A prompt that the template puts into words, and its completion.
    Pair(Pair),
    /// A prompt that is given to the model as it is, and its completion.
    Formatted {
        /// The prompt.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// Text without a prompt: all of it is learnt.
    Text(String),
}

/// A prompt in parts, and its completion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    /// What the system message says.
    pub system: Option<String>,
    /// The prompt, instruction or question.
    pub prompt: String,
    /// What the instruction is about.
    pub input: Option<String>,
    /// What is learnt.
    pub completion: String,
}

/// A conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Its messages.
    pub messages: Vec<Turn>,
    /// The tools that the model may call.
    pub tools: Option<Value>,
}

/// A message, and whether it is learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// What is said, with plain text as content.
    pub message: Message,
    /// Whether an assistant's message is learnt (`weight` 1, which is the default); of no meaning for others.
    pub is_learnt: bool,
}

impl Turn {
    /// A message of plain text, learnt if it is the assistant's.
    pub fn text(role: &str, text: impl Into<String>) -> Self {
        Self { message: Message::text(role, text), is_learnt: true }
    }

    /// Whether it is an answer of the model.
    pub fn is_answer(&self) -> bool {
        self.message.role == "assistant"
    }

    fn to_json(&self) -> Value {
        let mut message = serde_json::to_value(&self.message).unwrap_or_default();
        if let (false, Value::Object(object)) = (self.is_learnt, &mut message) {
            object.insert("weight".to_owned(), 0.into());
        }
        message
    }

    /// The text of the message.
    pub fn content(&self) -> &str {
        match &self.message.content {
            MessageContent::Text(text) => text,
            _ => "",
        }
    }
}

impl Record {
    /// A prompt and its completion.
    pub fn pair(prompt: impl Into<String>, completion: impl Into<String>) -> Self {
        Self::Pair(Pair { prompt: prompt.into(), completion: completion.into(), ..Pair::default() })
    }

    /// A conversation of plain messages, by role and text.
    pub fn chat<'a>(messages: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let messages = messages.into_iter().map(|(role, text)| Turn::text(role, text)).collect();
        Self::Chat(Conversation { messages, tools: None })
    }

    /// Its texts, one after the other: of every message, or of prompt and completion.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Chat(chat) => chat.messages.iter().map(Turn::content).collect(),
            Self::Pair(pair) => {
                let parts = [
                    pair.system.as_deref(),
                    Some(&pair.prompt),
                    pair.input.as_deref(),
                    Some(&pair.completion),
                ];
                parts.into_iter().flatten().collect()
            }
            Self::Formatted { prompt, completion } => vec![prompt, completion],
            Self::Text(text) => vec![text],
        }
    }

    /// The record as a line of JSONL would have it, in the columns that this crate names so.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Chat(chat) => {
                let messages: Vec<Value> = chat.messages.iter().map(Turn::to_json).collect();
                match &chat.tools {
                    Some(tools) => json!({"messages": messages, "tools": tools}),
                    None => json!({"messages": messages}),
                }
            }
            Self::Pair(Pair { system, prompt, input, completion }) => {
                let mut object = match input {
                    Some(input) => json!({"instruction": prompt, "input": input, "output": completion}),
                    None => json!({"prompt": prompt, "completion": completion}),
                };
                if let (Some(system), Value::Object(object)) = (system, &mut object) {
                    object.insert("system".to_owned(), system.clone().into());
                }
                object
            }
            Self::Formatted { prompt, completion } => json!({"prompt": prompt, "completion": completion}),
            Self::Text(text) => json!({"text": text}),
        }
    }

    /// A digest of all that it says; equal for equal records, whatever format they came in.
    pub fn digest(&self) -> [u8; 16] {
        let mut hasher = Sha256::new();
        let mut part = |tag: u8, text: &str| {
            hasher.update([tag]);
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        match self {
            Self::Chat(chat) => {
                for turn in &chat.messages {
                    part(if turn.is_learnt { 1 } else { 2 }, &turn.message.role);
                    part(3, turn.content());
                    let message = &turn.message;
                    let has_more = message.name.is_some()
                        || message.tool_calls.is_some()
                        || message.tool_call_id.is_some()
                        || !message.extra.is_empty();
                    if has_more {
                        part(4, &serde_json::to_string(message).unwrap_or_default());
                    }
                }
                if let Some(tools) = &chat.tools {
                    part(5, &tools.to_string());
                }
            }
            Self::Pair(pair) => {
                part(6, &pair.prompt);
                part(7, &pair.completion);
                pair.input.iter().for_each(|input| part(8, input));
                pair.system.iter().for_each(|system| part(9, system));
            }
            Self::Formatted { prompt, completion } => {
                part(10, prompt);
                part(11, completion);
            }
            Self::Text(text) => part(12, text),
        }
        let mut digest = [0; 16];
        digest.iter_mut().zip(hasher.finalize()).for_each(|(to, from)| *to = from);
        digest
    }
}

/// What a value is, for messages.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The messages of a list in OpenAI's form, in the column `key`.
pub(crate) fn messages(key: &str, value: Value) -> Result<Vec<Turn>, Fault> {
    let messages = list(key, value)?;
    messages.into_iter().enumerate().map(|(idx, message)| turn(&format!("{key}[{idx}]"), message)).collect()
}

/// A list of at least one and at most [`MAX_MESSAGES`] messages.
fn list(key: &str, value: Value) -> Result<Vec<Value>, Fault> {
    match value {
        Value::Array(list) if list.is_empty() => Err(Fault::key(key, "is an empty list")),
        Value::Array(list) if list.len() > MAX_MESSAGES => {
            Err(Fault::key(key, format!("has {} messages, over the limit of {MAX_MESSAGES}", list.len())))
        }
        Value::Array(list) => Ok(list),
        other => Err(Fault::key(key, format!("is {}, not a list of messages", type_name(&other)))),
    }
}

fn turn(at: &str, value: Value) -> Result<Turn, Fault> {
    let mut object = match value {
        Value::Object(object) => object,
        other => return Err(Fault::key(at, format!("is {}, not a message", type_name(&other)))),
    };
    // Formats with fixed columns have null for what is not there.
    object.retain(|name, value| name == "content" || !value.is_null());
    match object.get("role") {
        None => return Err(Fault::key(format!("{at}.role"), "is missing")),
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => {}
        Some(Value::String(role)) => {
            let shown: String = role.chars().take(32).collect();
            let problem = format!("is {shown:?}, not one of {}", ROLES.join(", "));
            return Err(Fault::key(format!("{at}.role"), problem));
        }
        Some(other) => {
            return Err(Fault::key(format!("{at}.role"), format!("is {}, not a string", type_name(other))));
        }
    }
    let weight = object.remove("weight");
    let mut message: Message = match serde_json::from_value(Value::Object(object)) {
        Ok(message) => message,
        Err(error) => return Err(Fault::key(at, format!("is no message: {error}"))),
    };
    let is_answer = message.role == "assistant";
    let is_learnt = match weight {
        None => true,
        Some(weight) => {
            let key = format!("{at}.weight");
            if !is_answer {
                return Err(Fault::key(key, "is only for messages of the assistant"));
            }
            match weight.as_f64() {
                Some(0.0) => false,
                Some(1.0) => true,
                _ => return Err(Fault::key(key, format!("is {}, not 0 or 1", short(&weight)))),
            }
        }
    };
    message.join_text_parts().map_err(|kind| {
        let kind: String = kind.chars().take(32).collect();
        Fault::key(format!("{at}.content"), format!("has a part of type {kind:?}; only text is learnt"))
    })?;
    message.parse_tool_arguments();
    match message.content {
        MessageContent::Text(_) => {}
        _ if is_answer && message.tool_calls.is_some() => {}
        MessageContent::Absent => return Err(Fault::key(format!("{at}.content"), "is missing")),
        _ => return Err(Fault::key(format!("{at}.content"), "is null, not a string")),
    }
    Ok(Turn { message, is_learnt })
}

/// A value for messages, not longer than they should be.
fn short(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

/// The messages of a list in ShareGPT's form (`from` and `value`), in the column `key`. Lists in that column that have
/// `role` and `content` are OpenAI's.
pub(crate) fn share_gpt(key: &str, value: Value) -> Result<Vec<Turn>, Fault> {
    let is_openai = value.get(0).is_some_and(|first| first.get("role").is_some());
    if is_openai {
        return messages(key, value);
    }
    let turns = list(key, value)?.into_iter().enumerate().map(|(idx, mut turn)| {
        let mut text = |name: &str| match turn.get_mut(name).map(Value::take) {
            Some(Value::String(text)) => Ok(text),
            None => Err(Fault::key(format!("{key}[{idx}].{name}"), "is missing")),
            Some(other) => {
                let problem = format!("is {}, not a string", type_name(&other));
                Err(Fault::key(format!("{key}[{idx}].{name}"), problem))
            }
        };
        let from = text("from")?;
        let role = match from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "model" | "chatgpt" | "bot" | "function_call" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            other => {
                let shown: String = other.chars().take(32).collect();
                let problem = format!("is {shown:?}, not one of human, gpt, system, tool");
                return Err(Fault::key(format!("{key}[{idx}].from"), problem));
            }
        };
        Ok(Turn::text(role, text("value")?))
    });
    turns.collect()
}

/// Checks that a conversation has an answer to learn.
pub(crate) fn check_conversation(key: &str, chat: &Conversation) -> Result<(), Fault> {
    if !chat.messages.iter().any(Turn::is_answer) {
        return Err(Fault::key(key, "has no message of the assistant"));
    }
    if !chat.messages.iter().any(|turn| turn.is_answer() && turn.is_learnt) {
        return Err(Fault::key(key, "has no message of the assistant that is learnt: all have weight 0"));
    }
    Ok(())
}
