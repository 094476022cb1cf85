//! A template's notation, found by rendering calls of made-up names.

use serde_json::{Value, json};

use super::{ID_LEN, NotationPart, ToolNotation, is_name_byte};
use crate::template::{ChatInput, ChatTemplate, Message, MessageContent};

const NAMES: [&str; 2] = ["probe_function_a", "probe_function_b"];
/// Templates that look at ids ask for nine letters and digits.
const IDS: [&str; 2] = ["probeId0a", "probeId0b"];
const KEY: &str = "probe_key";
const VALUES: [&str; 2] = ["probe_value_a", "probe_value_b"];
const ANSWER: &str = "probe answer";

/// Renders with what is the same in all probes.
struct Prober<'a> {
    template: &'a ChatTemplate,
    bos_token: Option<&'a str>,
    eos_token: Option<&'a str>,
    tools: Value,
}

impl Prober<'_> {
    /// The text of a question, then of the answer, or of the start of one.
    fn render(&self, answer: Option<Message>) -> Option<String> {
        let add_generation_prompt = answer.is_none();
        let messages: Vec<Message> =
            [Message::text("user", "probe question")].into_iter().chain(answer).collect();
        let input = ChatInput {
            messages: &messages,
            tools: Some(&self.tools),
            add_generation_prompt,
            bos_token: self.bos_token,
            eos_token: self.eos_token,
            ..ChatInput::default()
        };
        self.template.render(&input).ok()
    }
}

/// The notation, if the template shows tools to the model and writes calls in a way that can be told.
pub(super) fn notation(
    template: &ChatTemplate,
    bos_token: Option<&str>,
    eos_token: Option<&str>,
) -> Option<ToolNotation> {
    let tool = |name: &str| {
        let parameters = json!({"type": "object", "properties": {KEY: {"type": "string"}}});
        json!({"type": "function", "function": {"name": name, "description": "probe", "parameters": parameters}})
    };
    let prober = Prober { template, bos_token, eos_token, tools: json!(NAMES.map(tool)) };
    let prompt = prober.render(None)?;
    if !NAMES.iter().all(|name| prompt.contains(name)) {
        return None;
    }
    let plain = prober.render(Some(Message::text("assistant", ANSWER)))?;
    let at = plain.rfind(ANSWER)?;
    let (before_answer, tail) = (plain.get(..at)?, plain.get(at + ANSWER.len()..)?);
    let single = prober.render(Some(calls(1)))?;
    let single = [prompt.as_str(), before_answer].iter().find_map(|start| single.strip_prefix(start))?;
    let (first, rest) = until_name(single, 0)?;
    let (middle, last) = until_arguments(rest, 0)?;
    let last = match last.strip_suffix(tail) {
        Some(last) => last,
        // Some templates end a turn with calls in another way than others.
        None => eos_token.and_then(|eos| last.find(eos)).and_then(|end| last.get(..end))?,
    };
    let next = prober.render(Some(calls(2))).and_then(|double| {
        let double = [prompt.as_str(), before_answer].iter().find_map(|start| double.strip_prefix(start))?;
        let (again, rest) = until_name(double, 0)?;
        let (_, rest) = until_arguments(rest, 0)?;
        let (next, rest) = until_name(rest, 1)?;
        let (middle_again, _) = until_arguments(rest, 1)?;
        (again == first && parts(middle_again, IDS[1]) == parts(middle, IDS[0])).then(|| next.to_owned())
    });
    let notation = ToolNotation {
        first: parts(first, IDS[0]),
        middle: parts(middle, IDS[0]),
        next: next.map(|next| next.replace(IDS[0], IDS[1])).map(|next| parts(&next, IDS[1])),
        last: parts(last, IDS[0]),
    };
    is_usable(&notation).then_some(notation)
}

fn calls(num: usize) -> Message {
    let call = |idx: usize| json!({"id": IDS[idx], "type": "function", "function": {"name": NAMES[idx], "arguments": {KEY: VALUES[idx]}}});
    Message {
        role: "assistant".to_owned(),
        content: MessageContent::Text(String::new()),
        tool_calls: Some((0..num).map(call).collect()),
        ..Message::default()
    }
}

/// What comes before a name, and what comes after.
fn until_name(text: &str, idx: usize) -> Option<(&str, &str)> {
    text.split_once(NAMES[idx])
}

/// What comes before the arguments, and what comes after: only if they are JSON.
fn until_arguments(text: &str, idx: usize) -> Option<(&str, &str)> {
    let key = text.find(KEY)?;
    let start = text.get(..key)?.rfind('{')?;
    let value = text.get(key..)?.find(VALUES[idx])? + key;
    let end = text.get(value..)?.find('}')? + value + 1;
    let arguments: Value = serde_json::from_str(text.get(start..end)?).ok()?;
    (arguments == json!({KEY: VALUES[idx]})).then_some(())?;
    Some((text.get(..start)?, text.get(end..)?))
}

/// A text as parts, where an id stands for all ids.
fn parts(text: &str, id: &str) -> Vec<NotationPart> {
    debug_assert_eq!(id.len(), ID_LEN);
    let mut parts = Vec::new();
    for (idx, piece) in text.split(id).enumerate() {
        if idx > 0 {
            parts.push(NotationPart::Id);
        }
        if !piece.is_empty() {
            parts.push(NotationPart::Text(piece.to_owned()));
        }
    }
    parts
}

/// Whether answers in it can be told apart: names and ids end where they have to, and nothing of the probe is left.
fn is_usable(notation: &ToolNotation) -> bool {
    let all = [&notation.first, &notation.middle, &notation.last].into_iter().chain(&notation.next);
    let is_text = |part: &NotationPart| matches!(part, NotationPart::Text(_));
    let clean = all.flatten().all(|part| match part {
        NotationPart::Text(text) => !text.contains("probe"),
        NotationPart::Id => true,
    });
    let ends_ids = |parts: &Vec<NotationPart>| {
        parts.windows(2).all(|pair| match pair {
            [NotationPart::Id, NotationPart::Text(text)] => !text.bytes().next().is_some_and(is_name_byte),
            [NotationPart::Id, NotationPart::Id] => false,
            _ => true,
        })
    };
    let all = [&notation.first, &notation.middle, &notation.last].into_iter().chain(&notation.next);
    let ends_name =
        super::leading_text(&notation.middle).bytes().next().is_some_and(|byte| !is_name_byte(byte));
    // Each list but the last begins with a text that tells it.
    let begins = notation.first.first().is_some_and(is_text)
        && notation.next.iter().all(|next| next.first().is_some_and(is_text));
    clean
        && all.clone().all(ends_ids)
        && ends_name
        && begins
        && all.take(2).all(|parts| parts.last().is_some_and(is_text))
}
