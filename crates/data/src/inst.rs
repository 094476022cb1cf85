//! Text in Llama 2's turns, as conversations: `<s>[INST] <<SYS>>…<</SYS>> question [/INST] answer </s><s>[INST] …`.

use wardrobe_text::{Message, MessageContent};

use crate::error::Fault;
use crate::record::{Conversation, MAX_MESSAGES, Turn};

const OPEN: &str = "[INST]";
const CLOSE: &str = "[/INST]";
const SYSTEM_OPEN: &str = "<<SYS>>";
const SYSTEM_CLOSE: &str = "<</SYS>>";
/// What a text of a turn cannot have: a reader would take it for the turns' own.
const MARKS: [&str; 6] = [OPEN, CLOSE, SYSTEM_OPEN, SYSTEM_CLOSE, "<s>", "</s>"];

/// Whether a text is in such turns.
pub fn has_turns(text: &str) -> bool {
    let text = text.trim_start();
    text.strip_prefix("<s>").unwrap_or(text).trim_start().starts_with(OPEN)
}

/// The turns of a text that has some, in the column `key`.
///
/// # Errors
/// A mark without its other half.
pub fn turns(key: &str, text: &str) -> Result<Conversation, Fault> {
    let mut messages = Vec::new();
    let mut parts = text.split(OPEN);
    // What is before the first mark: nothing but `<s>`.
    parts.next();
    for (idx, part) in parts.enumerate() {
        let Some((question, answer)) = part.split_once(CLOSE) else {
            return Err(Fault::key(key, format!("has {OPEN} number {} without {CLOSE}", idx + 1)));
        };
        if answer.contains(CLOSE) {
            return Err(Fault::key(key, format!("has {CLOSE} twice after {OPEN} number {}", idx + 1)));
        }
        let question = match question.trim_start().strip_prefix(SYSTEM_OPEN) {
            None => question,
            Some(rest) => {
                let Some((system, question)) = rest.split_once(SYSTEM_CLOSE) else {
                    return Err(Fault::key(key, format!("has {SYSTEM_OPEN} without {SYSTEM_CLOSE}")));
                };
                messages.push(Turn::text("system", system.trim()));
                question
            }
        };
        messages.push(Turn::text("user", question.trim()));
        let answer = answer.trim();
        let answer = answer.strip_suffix("<s>").unwrap_or(answer).trim_end();
        let answer = answer.strip_suffix("</s>").unwrap_or(answer).trim();
        // A question at the end, without its answer, is nothing to learn; it is told as such where it is alone.
        if !answer.is_empty() {
            messages.push(Turn::text("assistant", answer));
        }
        if messages.len() > MAX_MESSAGES {
            return Err(Fault::key(key, format!("has over {MAX_MESSAGES} turns")));
        }
    }
    Ok(Conversation { messages, tools: None })
}

/// A conversation as such a text; what [`turns`] reads from it is the conversation, with white space at the ends of texts
/// taken off.
///
/// # Errors
/// It cannot be written so: it does not go in turns, a role has no place there, or a text has a mark of its own.
pub fn text(messages: &[Message]) -> Result<String, String> {
    let mut text = String::new();
    let mut system = None;
    let mut is_asked = false;
    for (idx, message) in messages.iter().enumerate() {
        let said = match &message.content {
            MessageContent::Text(said) => said.trim(),
            _ => return Err(format!("message {idx} is no text")),
        };
        if said.is_empty() {
            return Err(format!("message {idx} is empty"));
        }
        if let Some(mark) = MARKS.iter().find(|mark| said.contains(**mark)) {
            return Err(format!("message {idx} has {mark}, a mark of {OPEN} turns, in its text"));
        }
        match (message.role.as_str(), is_asked) {
            ("system" | "developer", false) if system.is_none() => system = Some(said),
            ("user", false) => {
                text.push_str("<s>[INST] ");
                if let Some(system) = system.take() {
                    text.push_str(&format!("{SYSTEM_OPEN}\n{system}\n{SYSTEM_CLOSE}\n\n"));
                }
                text.push_str(&format!("{said} {CLOSE}"));
                is_asked = true;
            }
            ("assistant", true) => {
                text.push_str(&format!(" {said} </s>"));
                is_asked = false;
            }
            (role, _) => return Err(format!("message {idx}, of {role:?}, has no place in {OPEN} turns")),
        }
    }
    match system {
        None => Ok(text),
        Some(_) => Err(format!("a system message is followed by no question, as {OPEN} turns have it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Vec<(String, String)> {
        let chat = turns("text", text).unwrap();
        chat.messages.iter().map(|turn| (turn.message.role.clone(), turn.content().to_owned())).collect()
    }

    fn turn(role: &str, text: &str) -> (String, String) {
        (role.to_owned(), text.to_owned())
    }

    #[test]
    fn turns_of_llama_2() {
        assert_eq!(
            flat(
                "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye[/INST] Bye! </s>"
            ),
            [
                turn("system", "Be brief."),
                turn("user", "Hi"),
                turn("assistant", "Hello."),
                turn("user", "Bye"),
                turn("assistant", "Bye!")
            ]
        );
        assert_eq!(flat("[INST] a [/INST] b"), [turn("user", "a"), turn("assistant", "b")]);
        assert_eq!(flat("[INST] a [/INST]"), [turn("user", "a")]);
    }

    #[test]
    fn conversations_are_written_as_they_are_read() {
        let chat = |turns: &[(&str, &str)]| {
            turns.iter().map(|(role, text)| Message::text(*role, *text)).collect::<Vec<_>>()
        };
        let messages = chat(&[
            ("system", "Be brief."),
            ("user", "Hi"),
            ("assistant", " Hello.\n"),
            ("user", "é?"),
            ("assistant", "ü!"),
        ]);
        let written = text(&messages).unwrap();
        let expected =
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] é? [/INST] ü! </s>";
        assert_eq!(written, expected);
        let read = flat(&written);
        assert_eq!(
            (read.len(), &read[2], &read[4]),
            (5, &turn("assistant", "Hello."), &turn("assistant", "ü!"))
        );
        for turns in [
            &[("user", "a [/INST] b"), ("assistant", "x")][..],
            &[("user", "a"), ("assistant", "x [INST] y")],
            &[("user", "<<SYS>> a <</SYS>> b"), ("assistant", "x")],
            &[("user", "a"), ("assistant", "x </s>")],
            &[("user", "a <s>"), ("assistant", "x")],
            &[("user", "a"), ("assistant", " ")],
            &[("user", "a"), ("assistant", "b"), ("system", "c")],
            &[("user", "a"), ("user", "b")],
            &[("assistant", "b")],
            &[("user", "a"), ("assistant", "b"), ("tool", "c")],
        ] {
            assert!(text(&chat(turns)).is_err(), "{turns:?}");
        }
    }

    #[test]
    fn what_is_no_turn() {
        assert!(has_turns(" <s> [INST] a [/INST] b"));
        assert!(!has_turns("Llama 2 writes [INST] a [/INST] b"));
        for text in [
            "[INST] a",
            "[INST] a [/INST] b [INST] c",
            "[INST] <<SYS>> a [/INST] b",
            "[INST] [/INST] [/INST]",
        ] {
            assert!(turns("text", text).is_err(), "{text}");
        }
    }
}
