//! Which columns mean what: told by the first record's, or by the caller.

use serde_json::{Map, Value};

use crate::error::Fault;
use crate::inst;
use crate::record::{self, Conversation, Pair, Record, check_conversation, type_name};
use crate::template::CustomTemplate;

/// Own names of columns. Those that are given are taken, whatever other columns there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnMap {
    /// A list of messages.
    pub messages: Option<String>,
    /// The prompt.
    pub prompt: Option<String>,
    /// The completion.
    pub completion: Option<String>,
    /// Text without a prompt.
    pub text: Option<String>,
}

/// The columns of pairs: prompt, what it is about (none of which need be there), completion.
const PAIRS: [(&str, &[&str], &str); 5] = [
    ("prompt", &[], "completion"),
    ("instruction", &["input", "context"], "output"),
    ("instruction", &["input", "context"], "response"),
    ("question", &[], "answer"),
    ("input", &[], "output"),
];
const MESSAGES: &str = "messages";
const SHARE_GPT: &str = "conversations";
const TEXT: &str = "text";
const SYSTEM: &str = "system";
const TOOLS: &str = "tools";

/// What a file's records are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Messages with `role` and `content`.
    Messages {
        /// The column.
        column: String,
    },
    /// Messages with `from` and `value`.
    ShareGpt {
        /// The column.
        column: String,
    },
    /// A prompt and a completion.
    Pair {
        /// The column of the prompt.
        prompt: String,
        /// The columns of which one may say what the prompt is about.
        inputs: &'static [&'static str],
        /// The column of the completion.
        completion: String,
    },
    /// A prompt in words of one's own, and a completion.
    Formatted {
        /// The column of the completion.
        completion: String,
    },
    /// Text.
    Text {
        /// The column.
        column: String,
    },
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Messages { column } | Self::ShareGpt { column } | Self::Text { column } => {
                f.write_str(column)
            }
            Self::Pair { prompt, completion, .. } => write!(f, "{prompt}/{completion}"),
            Self::Formatted { completion } => write!(f, "template/{completion}"),
        }
    }
}

impl Layout {
    /// What a row with these columns is.
    pub(crate) fn detect(
        columns: &Map<String, Value>,
        names: &ColumnMap,
        template: Option<&CustomTemplate>,
    ) -> Result<Self, Fault> {
        if let Some(template) = template {
            return formatted(columns, names, template);
        }
        match (&names.messages, &names.prompt, &names.completion, &names.text) {
            (Some(column), None, None, None) => {
                let first = columns.get(column).and_then(|value| value.get(0));
                return Ok(match first.is_some_and(|first| first.get("from").is_some()) {
                    true => Self::ShareGpt { column: column.clone() },
                    false => Self::Messages { column: column.clone() },
                });
            }
            (None, None, None, Some(column)) => return Ok(Self::Text { column: column.clone() }),
            (None, prompt, completion, None) if prompt.is_some() || completion.is_some() => {
                return own_pair(columns, prompt.as_deref(), completion.as_deref());
            }
            (None, None, None, None) => {}
            _ => {
                let message = "own columns are for messages, or for text, or for prompt and completion, not for several";
                return Err(Fault::record(message));
            }
        }
        let has = |name: &str| columns.contains_key(name);
        if has(MESSAGES) {
            return Ok(Self::Messages { column: MESSAGES.to_owned() });
        }
        if has(SHARE_GPT) {
            return Ok(Self::ShareGpt { column: SHARE_GPT.to_owned() });
        }
        if let Some((prompt, inputs, completion)) = PAIRS.iter().find(|(p, _, c)| has(p) && has(c)) {
            return Ok(Self::Pair {
                prompt: (*prompt).to_owned(),
                inputs,
                completion: (*completion).to_owned(),
            });
        }
        if has(TEXT) {
            return Ok(Self::Text { column: TEXT.to_owned() });
        }
        Err(unknown(columns))
    }

    /// The record of a row. `parse_json`: lists may be written as JSON text, as a CSV file has them.
    pub(crate) fn record(
        &self,
        mut columns: Map<String, Value>,
        template: Option<&CustomTemplate>,
        parse_json: bool,
    ) -> Result<Record, Fault> {
        let mut take = |name: &str| columns.get_mut(name).map(Value::take);
        match self {
            Self::Messages { column } | Self::ShareGpt { column } => {
                let mut value = required(column, take(column))?;
                if let (true, Value::String(text)) = (parse_json, &value) {
                    value = serde_json::from_str(text)
                        .map_err(|error| Fault::key(column, format!("is no JSON: {error}")))?;
                }
                let messages = match self {
                    Self::Messages { .. } => record::messages(column, value)?,
                    _ => record::share_gpt(column, value)?,
                };
                chat(column, messages, take(TOOLS))
            }
            Self::Pair { prompt, inputs, completion } => {
                let (question, answer) =
                    (required(prompt, take(prompt))?, required(completion, take(completion))?);
                if question.is_array() || answer.is_array() {
                    let mut messages = record::messages(prompt, question)?;
                    messages.iter_mut().for_each(|turn| turn.is_learnt = false);
                    messages.extend(record::messages(completion, answer)?);
                    return chat(completion, messages, take(TOOLS));
                }
                // Names that some columns share are no inputs where they are prompt or completion.
                let others = inputs.iter().filter(|name| **name != prompt && **name != completion);
                let mut input = None;
                for name in others {
                    input = input.or(optional(name, take(name))?);
                }
                Ok(Record::Pair(Pair {
                    system: optional(SYSTEM, take(SYSTEM))?,
                    prompt: string(prompt, question)?,
                    input,
                    completion: string(completion, answer)?,
                }))
            }
            Self::Formatted { completion } => {
                let Some(template) = template else {
                    return Err(Fault::record("there is no template for the prompt"));
                };
                let prompt = template.fill(&columns)?;
                let answer = required(completion, columns.get_mut(completion).map(Value::take))?;
                Ok(Record::Formatted { prompt, completion: string(completion, answer)? })
            }
            Self::Text { column } => {
                let text = string(column, required(column, take(column))?)?;
                if text.trim().is_empty() {
                    return Err(Fault::key(column, "is empty"));
                }
                if !inst::has_turns(&text) {
                    return Ok(Record::Text(text));
                }
                let chat = inst::turns(column, &text)?;
                check_conversation(column, &chat)?;
                Ok(Record::Chat(chat))
            }
        }
    }
}

fn chat(key: &str, messages: Vec<record::Turn>, tools: Option<Value>) -> Result<Record, Fault> {
    let tools = match tools {
        None | Some(Value::Null) => None,
        Some(tools @ Value::Array(_)) => Some(tools),
        // Formats with fixed columns have them as JSON text.
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(tools @ Value::Array(_)) => Some(tools),
            _ => return Err(Fault::key(TOOLS, "is a string, and no JSON list in it")),
        },
        Some(other) => return Err(Fault::key(TOOLS, format!("is {}, not a list", type_name(&other)))),
    };
    let chat = Conversation { messages, tools };
    check_conversation(key, &chat)?;
    Ok(Record::Chat(chat))
}

fn required(key: &str, value: Option<Value>) -> Result<Value, Fault> {
    match value {
        None => Err(Fault::key(key, "is missing")),
        Some(Value::Null) => Err(Fault::key(key, "is null")),
        Some(value) => Ok(value),
    }
}

fn string(key: &str, value: Value) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Fault::key(key, format!("is {}, not a string", type_name(&other)))),
    }
}

/// Text that need not be there, and is not there where it is empty.
fn optional(key: &str, value: Option<Value>) -> Result<Option<String>, Fault> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Ok(Some(string(key, value)?).filter(|text| !text.trim().is_empty())),
    }
}

fn own_pair(
    columns: &Map<String, Value>,
    prompt: Option<&str>,
    completion: Option<&str>,
) -> Result<Layout, Fault> {
    let find = |known: Vec<&'static str>, what: &str| {
        known.into_iter().find(|name| columns.contains_key(*name)).map(str::to_owned).ok_or_else(|| {
            Fault::record(format!("has no column for the {what}: its columns are {}", quoted(columns)))
        })
    };
    // The other half, if it is not named, is the one that usually goes with it.
    let prompt = match prompt {
        Some(name) => name.to_owned(),
        None => {
            let known =
                PAIRS.iter().map(|(prompt, _, _)| *prompt).filter(|name| Some(*name) != completion).collect();
            find(known, "prompt")?
        }
    };
    let completion = match completion {
        Some(name) => name.to_owned(),
        None => {
            let known =
                PAIRS.iter().map(|(_, _, completion)| *completion).filter(|name| *name != prompt).collect();
            find(known, "completion")?
        }
    };
    if prompt == completion {
        return Err(Fault::record(format!("prompt and completion are both column {prompt:?}")));
    }
    let inputs: &'static [&'static str] = if prompt == "instruction" { &["input", "context"] } else { &[] };
    Ok(Layout::Pair { prompt, inputs, completion })
}

fn formatted(
    columns: &Map<String, Value>,
    names: &ColumnMap,
    template: &CustomTemplate,
) -> Result<Layout, Fault> {
    if names.messages.is_some() || names.text.is_some() || names.prompt.is_some() {
        let message =
            "an own template names its columns itself; only the completion's column can be given beside it";
        return Err(Fault::record(message));
    }
    if let Some(name) = template.columns().find(|name| !columns.contains_key(*name)) {
        let problem = format!("is named by the template, and the columns are {}", quoted(columns));
        return Err(Fault::key(name, problem));
    }
    let known = PAIRS.iter().map(|(_, _, completion)| *completion);
    let completion = match &names.completion {
        Some(name) => Some(name.clone()),
        None => known
            .filter(|name| columns.contains_key(*name) && template.columns().all(|used| used != *name))
            .map(str::to_owned)
            .next(),
    };
    match completion {
        Some(completion) => Ok(Layout::Formatted { completion }),
        None => Err(Fault::record(format!(
            "has no column for the completion beside the template's; name it: the columns are {}",
            quoted(columns)
        ))),
    }
}

/// The names of columns, for messages; not too many and not too long.
pub(crate) fn quoted(columns: &Map<String, Value>) -> String {
    let mut names: Vec<String> = columns
        .keys()
        .take(12)
        .map(|name| format!("{:?}", name.chars().take(40).collect::<String>()))
        .collect();
    if columns.len() > names.len() {
        names.push(format!("{} more", columns.len() - names.len()));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn unknown(columns: &Map<String, Value>) -> Fault {
    let pairs = PAIRS.map(|(prompt, inputs, completion)| match inputs.first() {
        Some(input) => format!("{prompt}/[{input}]/{completion}"),
        None => format!("{prompt}/{completion}"),
    });
    Fault::record(format!(
        "has no known set of columns: there are {}; known are {MESSAGES}, {SHARE_GPT}, {}, {TEXT} (or name the columns)",
        quoted(columns),
        pairs.join(", ")
    ))
}
