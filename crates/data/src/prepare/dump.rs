//! Conversations as dumps have them, and what the human said in them.

use serde_json::{Map, Value};

/// Columns with a list of turns.
const LISTS: [&str; 3] = ["conversations", "messages", "conversation"];
/// UltraChat's: texts in turn, the human's first.
const ALTERNATING: &str = "data";
/// OpenAssistant's: the first message, with replies in it.
const TREE: &str = "prompt";
/// Where a turn says who speaks, and what.
const ROLES: [&str; 3] = ["from", "role", "user"];
const TEXTS: [&str; 4] = ["value", "content", "text", "markdown"];
/// Names of a conversation, best first.
const IDS: [&str; 5] = ["id", "conversation_id", "prompt_id", "message_tree_id", "conversation_hash"];
/// A tree is followed so deep.
const MAX_TREE_DEPTH: usize = 256;

/// Who speaks, by the names that dumps use.
fn is_human(role: &str) -> Option<bool> {
    match role.to_ascii_lowercase().as_str() {
        "human" | "user" | "prompter" => Some(true),
        "gpt" | "assistant" | "model" | "chatgpt" | "bot" | "bing" | "bard" | "system" | "developer"
        | "tool" | "observation" | "function" | "function_call" | "function_response" => Some(false),
        _ => None,
    }
}

/// What the human said, turn by turn. The error is a reason to count the record under.
pub(super) fn human_turns(columns: &Map<String, Value>) -> Result<Vec<String>, &'static str> {
    // A CSV file has lists as JSON text.
    let parsed;
    let list = LISTS.iter().find_map(|name| columns.get(*name).filter(|value| !value.is_null()));
    match list {
        Some(Value::String(text)) => {
            parsed = serde_json::from_str::<Value>(text).map_err(|_| "its turns are no list")?;
            return of_list(&parsed);
        }
        Some(list) => return of_list(list),
        None => {}
    }
    if let Some(data) = columns.get(ALTERNATING) {
        let Value::Array(data) = data else { return Err("its turns are no list") };
        let texts = data.iter().step_by(2).map(|text| match text {
            Value::String(text) => Ok(text.clone()),
            _ => Err("a turn is no text"),
        });
        return texts.collect();
    }
    match columns.get(TREE) {
        Some(root @ Value::Object(_)) => of_tree(root),
        _ => Err("no column of conversations, messages or data"),
    }
}

fn of_list(list: &Value) -> Result<Vec<String>, &'static str> {
    let Value::Array(list) = list else { return Err("its turns are no list") };
    let mut turns = Vec::new();
    let mut begins_with_answer = None;
    for turn in list {
        let first_of =
            |names: &[&str]| names.iter().find_map(|name| turn.get(*name).filter(|v| !v.is_null()));
        let Some(Value::String(role)) = first_of(&ROLES) else {
            return Err("a turn does not say who speaks");
        };
        let is_human = is_human(role).ok_or("a turn is of an unknown speaker")?;
        let is_preface = matches!(role.to_ascii_lowercase().as_str(), "system" | "developer");
        if !is_preface {
            begins_with_answer.get_or_insert(!is_human);
        }
        if is_human {
            turns.push(text_of(first_of(&TEXTS))?);
        }
    }
    match begins_with_answer {
        Some(true) => Err("begins with an answer"),
        _ => Ok(turns),
    }
}

/// A text, or the texts of a list of parts.
fn text_of(content: Option<&Value>) -> Result<String, &'static str> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let texts: Option<Vec<&str>> = parts
                .iter()
                .map(|part| match part.get("type").and_then(Value::as_str) {
                    Some("text" | "input_text") => part.get("text").and_then(Value::as_str),
                    _ => None,
                })
                .collect();
            Ok(texts.ok_or("a turn is more than text")?.concat())
        }
        _ => Err("a turn is no text"),
    }
}

/// The prompter's messages on the way that follows the best reply each time.
fn of_tree(root: &Value) -> Result<Vec<String>, &'static str> {
    let mut turns = Vec::new();
    let mut message = root;
    for _ in 0..MAX_TREE_DEPTH {
        let Some(Value::String(role)) = message.get("role") else {
            return Err("a turn does not say who speaks");
        };
        if is_human(role).ok_or("a turn is of an unknown speaker")? {
            turns.push(text_of(message.get("text"))?);
        } else if turns.is_empty() {
            return Err("begins with an answer");
        }
        // 0 is the best; a reply that was not ranked comes after those that were, in the order of the file.
        let rank = |reply: &&Value| reply.get("rank").and_then(Value::as_f64).unwrap_or(f64::INFINITY);
        let replies = message.get("replies").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let alive = replies.iter().filter(|reply| reply.get("deleted") != Some(&Value::Bool(true)));
        match alive.min_by(|a, b| rank(a).total_cmp(&rank(b))) {
            Some(best) => message = best,
            None => return Ok(turns),
        }
    }
    Err("has too many turns")
}

/// What a conversation is called in its dump.
pub(super) fn id(columns: &Map<String, Value>) -> Option<String> {
    IDS.iter().find_map(|name| match columns.get(*name) {
        Some(Value::String(id)) if !id.trim().is_empty() => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turns(record: Value) -> Result<Vec<String>, &'static str> {
        let Value::Object(columns) = record else { panic!("no record") };
        human_turns(&columns)
    }

    #[test]
    fn every_kind_of_dump() {
        let own = |turns: &[&str]| Ok(turns.iter().map(|turn| (*turn).to_owned()).collect::<Vec<_>>());
        let share_gpt = json!({"id": "x_0", "conversations": [
            {"from": "system", "value": "S"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c"}]});
        assert_eq!(turns(share_gpt), own(&["a", "c"]));
        let messages = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "x"}, {"role": "user", "content": "c"}]});
        assert_eq!(turns(messages), own(&["ab", "c"]));
        assert_eq!(turns(json!({"data": ["a", "x", "b", "y", "c"]})), own(&["a", "b", "c"]));
        assert_eq!(turns(json!({"messages": "[{\"role\": \"user\", \"content\": \"a\"}]"})), own(&["a"]));
        let tree = json!({"message_tree_id": "t", "prompt": {"role": "prompter", "text": "a", "replies": [
            {"role": "assistant", "text": "x", "rank": 1, "replies": [{"role": "prompter", "text": "worse", "replies": []}]},
            {"role": "assistant", "text": "z", "rank": 0, "deleted": true, "replies": [{"role": "prompter", "text": "gone"}]},
            {"role": "assistant", "text": "y", "rank": 0, "replies": [
                {"role": "prompter", "text": "first"}, {"role": "prompter", "text": "second"}]}]}});
        assert_eq!(turns(tree), own(&["a", "first"]));
    }

    #[test]
    fn what_is_no_conversation_has_a_reason() {
        for (record, reason) in [
            (json!({"text": "a"}), "no column"),
            (json!({"prompt": "a", "completion": "b"}), "no column"),
            (json!({"messages": {"a": 1}}), "no list"),
            (json!({"messages": [1]}), "who speaks"),
            (json!({"messages": [{"role": "narrator", "content": "a"}]}), "unknown speaker"),
            (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "more than text"),
            (json!({"messages": [{"role": "user", "content": 7}]}), "no text"),
            (
                json!({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}),
                "with an answer",
            ),
            (json!({"data": ["a", "b", 3]}), "no text"),
            (json!({"data": "a"}), "no list"),
            (json!({"prompt": {"role": "assistant", "text": "a"}}), "with an answer"),
            (json!({"messages": "[{"}), "no list"),
        ] {
            let found = turns(record.clone()).unwrap_err();
            assert!(found.contains(reason), "{record}: {found}");
        }
        let mut deep = Map::new();
        for _ in 0..300 {
            let replies = if deep.is_empty() { Vec::new() } else { vec![Value::Object(deep)] };
            deep = Map::from_iter([
                ("role".to_owned(), "prompter".into()),
                ("text".to_owned(), "a".into()),
                ("replies".to_owned(), Value::Array(replies)),
            ]);
        }
        let deep = Map::from_iter([("prompt".to_owned(), Value::Object(deep))]);
        assert_eq!(human_turns(&deep), Err("has too many turns"));
    }

    #[test]
    fn ids() {
        let of = |record: Value| id(record.as_object().unwrap());
        assert_eq!(of(json!({"id": "a", "prompt_id": "b"})).unwrap(), "a");
        assert_eq!(of(json!({"id": null, "prompt_id": "b"})).unwrap(), "b");
        assert_eq!(of(json!({"id": 7})).unwrap(), "7");
        assert_eq!(of(json!({"id": "", "x": 1})), None);
    }
}
