//! Tools for a model whose template knows none: as text, in the notation that most open models were trained on.

use serde_json::Value;

use super::{NotationPart, ToolNotation};
use crate::template::{Message, MessageContent};

const OPEN: &str = "<tool_call>\n{\"name\": \"";
const CLOSE: &str = "}\n</tool_call>";

/// One JSON object a call, between `<tool_call>` and `</tool_call>`.
pub(super) fn notation() -> ToolNotation {
    let text = |text: &str| vec![NotationPart::Text(text.to_owned())];
    ToolNotation {
        first: text(OPEN),
        middle: text("\", \"arguments\": "),
        next: Some(text(&format!("{CLOSE}\n{OPEN}"))),
        last: text(CLOSE),
    }
}

/// Tells of the tools in the system message, and writes calls and results into the messages' text.
pub(super) fn write_into(messages: &mut Vec<Message>, tools: Option<&Value>, notation: &ToolNotation) {
    let mut written: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    let mut after_result = false;
    for mut message in messages.drain(..) {
        let is_result = message.role == "tool";
        if is_result {
            let result = format!("<tool_response>\n{}\n</tool_response>", text_of(&message));
            // Answers to one message's calls are one turn.
            match written.last_mut().filter(|_| after_result) {
                Some(last) => last.content = MessageContent::Text(format!("{}\n{result}", text_of(last))),
                None => written.push(Message::text("user", result)),
            }
        } else {
            if let Some(calls) = message.tool_calls.take() {
                let content = join(&text_of(&message), &written_calls(&calls, notation));
                message.content = MessageContent::Text(content);
            }
            written.push(message);
        }
        after_result = is_result;
    }
    if let Some(tools) = tools {
        let told = introduction(tools);
        match written.first_mut().filter(|first| first.role == "system") {
            Some(system) => system.content = MessageContent::Text(join(&text_of(system), &told)),
            None => written.insert(0, Message::text("system", told)),
        }
    }
    *messages = written;
}

fn introduction(tools: &Value) -> String {
    let functions = tools.as_array().into_iter().flatten().filter_map(|tool| tool.get("function"));
    let functions: Vec<String> = functions.map(Value::to_string).collect();
    format!(
        "You can call functions. These are the functions that there are, one JSON object a line:\n<tools>\n{}\n</tools>\n\
         To call one, answer with its name and arguments in this form, once for each call:\n\
         <tool_call>\n{{\"name\": \"NAME\", \"arguments\": {{\"ARGUMENT\": VALUE}}}}\n</tool_call>",
        functions.join("\n")
    )
}

/// Calls of an earlier answer, as the model would have written them.
fn written_calls(calls: &Value, notation: &ToolNotation) -> String {
    let mut text = String::new();
    for (idx, call) in calls.as_array().into_iter().flatten().enumerate() {
        let before = if idx == 0 { Some(&notation.first) } else { notation.next.as_ref() };
        let name = call.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
        let arguments = match call.pointer("/function/arguments") {
            Some(Value::String(text)) => text.clone(),
            Some(value) => spaced(value),
            None => "{}".to_owned(),
        };
        push(&mut text, before.map_or(&[], Vec::as_slice));
        text.push_str(name);
        push(&mut text, &notation.middle);
        text.push_str(&arguments);
    }
    if !text.is_empty() {
        push(&mut text, &notation.last);
    }
    text
}

fn push(text: &mut String, parts: &[NotationPart]) {
    for part in parts {
        if let NotationPart::Text(part) = part {
            text.push_str(part);
        }
    }
}

/// JSON as the model is held to it, with a blank after commas and colons.
fn spaced(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), spaced(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn text_of(message: &Message) -> String {
    match &message.content {
        MessageContent::Text(text) => text.clone(),
        _ => String::new(),
    }
}

fn join(first: &str, second: &str) -> String {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second.to_owned(),
        (_, true) => first.to_owned(),
        _ => format!("{first}\n\n{second}"),
    }
}
