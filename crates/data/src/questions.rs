//! What a teacher is asked: questions as files have them, as conversations whose answers are still to come.

use serde_json::{Map, Value};

use crate::columns::quoted;
use crate::error::Fault;
use crate::record::{self, Conversation, MAX_MESSAGES, Turn, type_name};

/// Columns of which the first that is there has the questions.
const TURNS: &str = "turns";
const MESSAGES: &str = "messages";
const SHARE_GPT: &str = "conversations";
/// One question, and the columns that may say what it is about.
const SINGLE: [(&str, &[&str]); 3] =
    [("prompt", &[]), ("instruction", &["input", "context"]), ("question", &[])];
const SYSTEM: &str = "system";

/// What is asked in a row: `turns` (a list of questions), `messages` or `conversations`, or one question in `prompt`,
/// `instruction` (with `input` or `context`) or `question`; beside each, `system`. Answers of the assistant that the row
/// has are in it, not learnt. In a row of text, as CSV has it, lists are JSON.
///
/// # Errors
/// What is wrong, with the key.
pub fn questions(mut columns: Map<String, Value>) -> Result<Conversation, String> {
    of(&mut columns).map_err(|fault| fault.message)
}

fn of(columns: &mut Map<String, Value>) -> Result<Conversation, Fault> {
    let is_there = |columns: &Map<String, Value>, name: &str| columns.get(name).is_some_and(|v| !v.is_null());
    let lists = [TURNS, MESSAGES, SHARE_GPT];
    let mut messages = if let Some(key) = lists.into_iter().find(|name| is_there(columns, name)) {
        let list = list(key, columns.remove(key).unwrap_or_default())?;
        match key {
            TURNS => turns(list)?,
            MESSAGES => record::messages(key, list)?,
            _ => record::share_gpt(key, list)?,
        }
    } else if let Some((key, inputs)) = SINGLE.into_iter().find(|(name, _)| is_there(columns, name)) {
        let mut question = text(key, columns.remove(key).unwrap_or_default())?;
        for name in inputs {
            match columns.remove(*name) {
                None | Some(Value::Null) => {}
                Some(value) => {
                    let about = text(name, value)?;
                    if !about.trim().is_empty() {
                        question = format!("{question}\n\n{about}");
                        break;
                    }
                }
            }
        }
        vec![Turn::text("user", question)]
    } else {
        return Err(Fault::record(format!(
            "has no questions: there are {}; known are {TURNS}, {MESSAGES}, {SHARE_GPT}, prompt, \
             instruction/[input], question",
            quoted(columns)
        )));
    };
    let has_system = messages.first().is_some_and(is_system);
    if let (false, Some(value)) = (has_system, columns.remove(SYSTEM).filter(|value| !value.is_null())) {
        let system = text(SYSTEM, value)?;
        if !system.trim().is_empty() {
            messages.insert(0, Turn::text("system", system));
        }
    }
    check(&mut messages)?;
    Ok(Conversation { messages, tools: None })
}

fn is_system(turn: &Turn) -> bool {
    matches!(turn.message.role.as_str(), "system" | "developer")
}

/// Only people, systems and answers may speak, in text, and somebody has to ask.
fn check(messages: &mut [Turn]) -> Result<(), Fault> {
    for (idx, turn) in messages.iter_mut().enumerate() {
        let is_plain = turn.message.tool_calls.is_none() && turn.message.role != "tool";
        if !is_plain {
            return Err(Fault::record(format!("message {idx} is of a tool, which cannot be asked here")));
        }
        if turn.message.role == "user" && turn.content().trim().is_empty() {
            return Err(Fault::record(format!("question {idx} is empty")));
        }
        // Names and the like are not for the teacher; what is said is.
        *turn = Turn { is_learnt: false, ..Turn::text(&turn.message.role, turn.content()) };
    }
    match messages.iter().any(|turn| turn.message.role == "user") {
        true => Ok(()),
        false => Err(Fault::record("asks nothing: it has no message of the user")),
    }
}

/// A list, or one as JSON text.
fn list(key: &str, value: Value) -> Result<Value, Fault> {
    match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| Fault::key(key, format!("is a string, and no JSON list in it: {error}"))),
        other => Ok(other),
    }
}

fn turns(value: Value) -> Result<Vec<Turn>, Fault> {
    let Value::Array(list) = value else {
        return Err(Fault::key(TURNS, format!("is {}, not a list of questions", type_name(&value))));
    };
    if list.is_empty() {
        return Err(Fault::key(TURNS, "is an empty list"));
    }
    if list.len() > MAX_MESSAGES / 2 {
        let problem = format!("has {} questions, over the limit of {}", list.len(), MAX_MESSAGES / 2);
        return Err(Fault::key(TURNS, problem));
    }
    let turn = |(idx, value)| Ok(Turn::text("user", text(&format!("{TURNS}[{idx}]"), value)?));
    list.into_iter().enumerate().map(turn).collect()
}

fn text(key: &str, value: Value) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Fault::key(key, format!("is {}, not a string", type_name(&other)))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(row: Value) -> Result<Vec<(String, String)>, String> {
        let Value::Object(columns) = row else { panic!("a row") };
        let chat = questions(columns)?;
        assert!(chat.messages.iter().all(|turn| !turn.is_learnt));
        Ok(chat.messages.iter().map(|turn| (turn.message.role.clone(), turn.content().to_owned())).collect())
    }

    fn flat(row: Value) -> String {
        let turns = asked(row).unwrap();
        turns.iter().map(|(role, text)| format!("{role}:{text}")).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn questions_of_all_forms() {
        for (row, expected) in [
            (json!({"id": 1, "turns": ["a", "b"]}), "user:a|user:b"),
            (json!({"turns": "[\"a\", \"b\"]", "system": "s"}), "system:s|user:a|user:b"),
            (
                json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "x", "weight": 1}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]}),
                "system:s|user:a|assistant:x|user:b",
            ),
            (
                json!({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}], "system": "t"}),
                "developer:s|user:a",
            ),
            (
                json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]}),
                "user:a|assistant:x",
            ),
            (json!({"prompt": "é \u{1f600}", "completion": "x"}), "user:é \u{1f600}"),
            (json!({"question": "a", "answer": "x", "prompt": null}), "user:a"),
            (json!({"instruction": "a", "input": "", "context": "c"}), "user:a\n\nc"),
        ] {
            assert_eq!(flat(row.clone()), expected, "{row}");
        }
    }

    #[test]
    fn what_asks_nothing_is_told() {
        for (row, named) in [
            (json!({"text": "a"}), "\"text\""),
            (json!({"turns": []}), "empty list"),
            (json!({"turns": [1]}), "turns[0]"),
            (json!({"turns": ["a", " "]}), "question 1 is empty"),
            (json!({"turns": "[1"}), "no JSON list"),
            (json!({"turns": "3"}), "a number"),
            (json!({"turns": vec!["a"; 3000]}), "3000"),
            (json!({"messages": [{"role": "assistant", "content": "x"}]}), "asks nothing"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "tool"),
            (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "image_url"),
            (json!({"prompt": 3}), "a number"),
            (json!({"prompt": "a", "system": {}}), "system"),
        ] {
            let told = asked(row.clone()).unwrap_err();
            assert!(told.contains(named), "{row}: {told}");
        }
    }
}
