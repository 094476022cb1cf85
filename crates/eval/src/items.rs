//! Items: questions with gold answers, one JSON object a line.
//!
//! Two shapes are read: `{"prompt", "completion"}`, whose completion may also be a JSON object, and `{"messages": […]}`,
//! whose last message is the assistant's gold answer. Other keys are ignored. Every line is hostile until it was read:
//! lines are bounded, and what is wrong with one is told with its number and ends nothing else.

use std::fmt;
use std::io::{self, BufRead, Read as _};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tasks::Task;

/// The longest line that is read: more text than any context holds.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// One message of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A question and its gold answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Line of the file, from 1.
    pub line: usize,
    /// The question, without the answer; at least one message.
    pub turns: Vec<Turn>,
    /// The right answer.
    pub gold: String,
}

/// A line or an item that could not be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineProblem {
    /// Line of the file, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for LineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Reads items whose gold `task` can score, and says what was wrong with the other lines. Empty lines are skipped.
///
/// # Errors
/// Those of the reader.
pub fn read_items(mut reader: impl BufRead, task: &dyn Task) -> io::Result<(Vec<Item>, Vec<LineProblem>)> {
    let (mut items, mut problems) = (Vec::new(), Vec::new());
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        (&mut reader).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        if bytes.len() > MAX_LINE_BYTES && !bytes.ends_with(b"\n") {
            skip_line(&mut reader)?;
            problems.push(LineProblem { line, message: format!("is over {MAX_LINE_BYTES} bytes") });
            continue;
        }
        // Some editors begin a file with a byte order mark.
        let text = if line == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes) } else { &bytes };
        if text.trim_ascii().is_empty() {
            continue;
        }
        match parse(line, text).and_then(|item| task.check_gold(&item.gold).map(|()| item)) {
            Ok(item) => items.push(item),
            Err(message) => problems.push(LineProblem { line, message }),
        }
    }
    Ok((items, problems))
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let (used, found) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(used);
        if found {
            return Ok(());
        }
    }
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    completion: Option<Value>,
    messages: Option<Vec<Turn>>,
}

fn parse(line: usize, bytes: &[u8]) -> Result<Item, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8: {error}"))?;
    let read: Line = serde_json::from_str(text).map_err(|error| {
        // serde counts lines within the one line that it was given.
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or_default();
        format!("{what} at column {}", error.column())
    })?;
    let (turns, gold) = match (read.prompt, read.completion, read.messages) {
        (Some(prompt), Some(completion), None) => {
            let gold = match completion {
                Value::String(text) => text,
                Value::Object(_) => completion.to_string(),
                _ => return Err("`completion` is neither text nor a JSON object".to_owned()),
            };
            (vec![Turn { role: "user".to_owned(), content: prompt }], gold)
        }
        (None, None, Some(mut turns)) => {
            let last = turns.pop().filter(|last| last.role == "assistant" && !turns.is_empty());
            let last = last.ok_or("`messages` has no question that an assistant's last message answers")?;
            (turns, last.content)
        }
        _ => return Err("has neither `prompt` and `completion` nor `messages`".to_owned()),
    };
    Ok(Item { line, turns, gold })
}

/// At most `limit` items: the first ones, or with a seed ones drawn by it, in the order of the file.
pub fn draw(mut items: Vec<Item>, limit: Option<usize>, seed: Option<u64>) -> Vec<Item> {
    let Some(limit) = limit.filter(|limit| *limit < items.len()) else { return items };
    if let Some(mut state) = seed {
        // Fisher-Yates from the front, with SplitMix64 (Steele, Lea and Flood, 2014).
        for at in 0..limit {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let left = (items.len() - at) as u64;
            let other = usize::try_from((z ^ (z >> 31)) % left).unwrap_or(0);
            items.swap(at, at + other);
        }
    }
    items.truncate(limit);
    items.sort_by_key(|item| item.line);
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;

    fn read(text: &[u8], name: &str) -> (Vec<Item>, Vec<LineProblem>) {
        read_items(text, task(name).unwrap()).unwrap()
    }

    #[test]
    fn both_shapes_are_read_and_bad_lines_are_told() {
        let text = concat!(
            "\u{feff}{\"prompt\": \"q\", \"completion\": \"{\\\"a\\\": 1}\", \"depth\": 0.5}\n",
            "\n",
            "{\"prompt\": \"q\", \"completion\": {\"a\": 2}}\r\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"{\\\"a\\\": 3}\"}]}\n",
            "{\"prompt\": \"q\"}\n",
            "{\"prompt\": \"q\", \"completion\": \"no object\"}\n",
            "{\"prompt\": \"q\", \n",
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"{}\"}]}\n",
            "{\"prompt\": 1, \"completion\": \"{}\"}",
        );
        let (items, problems) = read(text.as_bytes(), "record");
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(items[1].gold, "{\"a\":2}");
        assert_eq!(items[2].turns, [Turn { role: "user".into(), content: "q".into() }]);
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
        assert!(problems[2].message.contains("column"), "{}", problems[2]);
        assert!(!problems[2].message.contains("line"), "{}", problems[2]);
    }

    #[test]
    fn what_is_no_text_or_too_long_ends_nothing() {
        let mut text = b"{\"prompt\": \"\xff\", \"completion\": \"x\"}\n".to_vec();
        text.extend(std::iter::repeat_n(b' ', MAX_LINE_BYTES + 10));
        text.extend(b"\n{\"prompt\": \"q\", \"completion\": \"x\"}\n");
        let (items, problems) = read(&text, "last-words");
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [3]);
        assert!(problems[0].message.contains("UTF-8") && problems[1].message.contains("bytes"));
    }

    #[test]
    fn a_seed_draws_others_than_the_first_and_the_same_again() {
        let items: Vec<Item> =
            (1..=50).map(|line| Item { line, turns: Vec::new(), gold: String::new() }).collect();
        let lines = |items: Vec<Item>| items.iter().map(|item| item.line).collect::<Vec<_>>();
        assert_eq!(lines(draw(items.clone(), Some(3), None)), [1, 2, 3]);
        let drawn = lines(draw(items.clone(), Some(10), Some(7)));
        assert_eq!(drawn, lines(draw(items.clone(), Some(10), Some(7))));
        assert_ne!(drawn, lines(draw(items.clone(), Some(10), Some(8))));
        assert!(drawn.is_sorted() && drawn.len() == 10 && drawn != (1..=10).collect::<Vec<_>>());
        assert_eq!(draw(items, Some(99), Some(1)).len(), 50);
    }
}
