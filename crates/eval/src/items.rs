//! Items: questions with right answers, from one JSON object a line.
//!
//! Two shapes are every task's that compares texts: `{"prompt", "completion"}`, whose completion may also be a JSON object,
//! and `{"messages": […]}`, whose last message is the assistant's right answer; `"answers": […]` gives several right ones, of
//! which any counts. A task may read others. Numbers at the top of a line (`length`, `depth`) are what measures can be
//! grouped by; other keys are ignored. Every line is hostile until it was read: lines and what is kept of them are bounded,
//! and what is wrong with one is told with its number and ends nothing else.

use std::fmt;
use std::io::{self, BufRead, Read as _};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::settings::TaskSettings;
use crate::tasks::Task;

/// The longest line that is read: more text than any context holds.
pub const MAX_LINE_BYTES: usize = 16 << 20;
/// All items of a run have no more text.
const MAX_TEXT_BYTES: usize = 1 << 30;
/// After this many bad lines a file is taken for something else.
const MAX_PROBLEMS: usize = 10_000;
/// Numbers of an item that are kept.
const MAX_NUMBERS: usize = 16;
/// Right answers of an item.
const MAX_GOLDS: usize = 1000;

/// One message of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A question and its right answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Line of the file, from 1. Several items may be of one line.
    pub line: usize,
    /// The question, without the answer; at least one message. For a task that weighs a text: that text.
    pub turns: Arc<[Turn]>,
    /// The right answers, of which any counts. Empty where a task knows none.
    pub golds: Vec<String>,
    /// What a multiple choice is between.
    pub choices: Vec<String>,
    /// Which of them is right.
    pub right_choice: Option<usize>,
    /// Numbers by which measures can be grouped, by name.
    pub numbers: Vec<(String, f64)>,
}

impl Item {
    /// A user's question with its right answers.
    pub fn new(line: usize, question: impl Into<String>, golds: Vec<String>) -> Self {
        let turn = Turn { role: "user".to_owned(), content: question.into() };
        let (choices, numbers) = (Vec::new(), Vec::new());
        Self { line, turns: [turn].into(), golds, choices, right_choice: None, numbers }
    }

    /// The first right answer; empty where there is none.
    pub fn gold(&self) -> &str {
        self.golds.first().map(String::as_str).unwrap_or_default()
    }

    /// The messages one after the other.
    pub fn question(&self) -> String {
        let texts: Vec<&str> = self.turns.iter().map(|turn| turn.content.as_str()).collect();
        texts.join("\n\n")
    }

    /// One of its numbers.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers.iter().find(|(own, _)| own == name).map(|(_, value)| *value)
    }

    fn num_bytes(&self) -> usize {
        let turns: usize = self.turns.iter().map(|turn| turn.content.len()).sum();
        turns + self.golds.iter().chain(&self.choices).map(String::len).sum::<usize>()
    }
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

/// Reads the items of `task`, and says what was wrong with the other lines. Empty lines are skipped. Reading ends early, with
/// a problem that says so, where items have over a gibibyte of text or ten thousand lines are no items.
///
/// # Errors
/// Those of the reader.
pub fn read_items(
    mut reader: impl BufRead,
    task: &dyn Task,
    settings: &TaskSettings,
) -> io::Result<(Vec<Item>, Vec<LineProblem>)> {
    let (mut items, mut problems) = (Vec::new(), Vec::new());
    let mut num_bytes = 0;
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        (&mut reader).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        if problems.len() >= MAX_PROBLEMS {
            let message = format!("reading ended here: {MAX_PROBLEMS} lines before it are no items");
            problems.push(LineProblem { line, message });
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
        match Fields::parse(line, text).and_then(|fields| task.read(&fields, settings)) {
            Ok(own) => {
                num_bytes += own.iter().map(Item::num_bytes).sum::<usize>();
                if num_bytes > MAX_TEXT_BYTES {
                    let message =
                        format!("reading ended here: items have over {MAX_TEXT_BYTES} bytes of text");
                    problems.push(LineProblem { line, message });
                    break;
                }
                items.extend(own);
            }
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

/// What a line has, by key.
#[derive(Debug)]
pub struct Fields {
    /// Line of the file, from 1.
    pub line: usize,
    map: Map<String, Value>,
}

impl Fields {
    fn parse(line: usize, bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8: {error}"))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { line, map }),
            Ok(_) => Err("is no JSON object".to_owned()),
            Err(error) => {
                // serde counts lines within the one line that it was given.
                let message = error.to_string();
                let what = message.split(" at line ").next().unwrap_or_default();
                Err(format!("{what} at column {}", error.column()))
            }
        }
    }

    /// A text as a line that has nothing else.
    pub(crate) fn of_text(key: &str, text: String) -> Self {
        Self { line: 1, map: Map::from_iter([(key.to_owned(), Value::String(text))]) }
    }

    /// The value of a key, if it is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The text of a key, if it is there.
    ///
    /// # Errors
    /// It is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{key}` is no text")),
        }
    }

    /// All texts of a key that has a list of them, or one.
    ///
    /// # Errors
    /// It is something else, an empty list, or a very long one.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, String> {
        let wrong = || format!("`{key}` is no list of texts");
        let texts = match self.get(key) {
            None => return Ok(None),
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(list)) if list.len() > MAX_GOLDS => {
                return Err(format!("`{key}` has {} entries, more than {MAX_GOLDS}", list.len()));
            }
            Some(Value::Array(list)) => {
                let texts = list.iter().map(|value| value.as_str().map(str::to_owned));
                texts.collect::<Option<Vec<_>>>().ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        if texts.is_empty() { Err(format!("`{key}` is empty")) } else { Ok(Some(texts)) }
    }

    /// The right answers: `answers`, or else the text or JSON object of the first of these keys that is there.
    pub(crate) fn golds(&self, keys: &[&str]) -> Result<Option<Vec<String>>, String> {
        if let Some(texts) = self.texts("answers")? {
            return Ok(Some(texts));
        }
        match keys.iter().find_map(|key| Some((key, self.get(key)?))) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(vec![text.clone()])),
            Some((_, object @ Value::Object(_))) => Ok(Some(vec![object.to_string()])),
            Some((key, _)) => Err(format!("`{key}` is neither text nor a JSON object")),
        }
    }

    /// The numbers at its top.
    pub fn numbers(&self) -> Vec<(String, f64)> {
        let numbers = self.map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)));
        numbers.filter(|(key, value)| value.is_finite() && key.len() <= 64).take(MAX_NUMBERS).collect()
    }

    /// A question and its answers in the shapes that all tasks read which compare texts.
    ///
    /// # Errors
    /// It has neither shape.
    pub fn question(&self) -> Result<Item, String> {
        let messages = self.get("messages").map(Vec::<Turn>::deserialize).transpose();
        let messages = messages.map_err(|error| format!("`messages`: {error}"))?;
        let mut item = match (self.text("prompt")?, self.golds(&["completion"])?, messages) {
            (Some(prompt), Some(golds), None) => Item::new(self.line, prompt, golds),
            (None, golds, Some(mut turns)) => {
                let last = turns.pop().filter(|last| last.role == "assistant" && !turns.is_empty());
                let last =
                    last.ok_or("`messages` has no question that an assistant's last message answers")?;
                let item = Item::new(self.line, "", golds.unwrap_or_else(|| vec![last.content]));
                Item { turns: turns.into(), ..item }
            }
            _ => return Err("has neither `prompt` and `completion` nor `messages`".to_owned()),
        };
        item.numbers = self.numbers();
        Ok(item)
    }
}

/// The items of at most `limit` lines: the first ones, or with a seed ones drawn by it, in the order of the file.
pub fn draw(items: Vec<Item>, limit: Option<usize>, seed: Option<u64>) -> Vec<Item> {
    let mut lines: Vec<usize> = items.iter().map(|item| item.line).collect();
    lines.dedup();
    let Some(limit) = limit.filter(|limit| *limit < lines.len()) else { return items };
    if let Some(seed) = seed {
        let mut random = Random(seed);
        // Fisher-Yates from the front.
        for at in 0..limit {
            let other = random.below(lines.len() - at);
            lines.swap(at, at + other);
        }
    }
    lines.truncate(limit);
    lines.sort_unstable();
    items.into_iter().filter(|item| lines.binary_search(&item.line).is_ok()).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;

    fn read(text: &[u8], name: &str) -> (Vec<Item>, Vec<LineProblem>) {
        read_items(text, task(name).unwrap(), &TaskSettings::default()).unwrap()
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
        assert_eq!(items[1].gold(), "{\"a\":2}");
        assert_eq!(*items[2].turns, [Turn { role: "user".into(), content: "q".into() }]);
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
        assert!(problems[2].message.contains("column"), "{}", problems[2]);
        assert!(!problems[2].message.contains("line"), "{}", problems[2]);
        assert!(problems[4].message.contains("`prompt`"), "{}", problems[4]);
        assert_eq!(items[0].numbers, [("depth".to_owned(), 0.5)]);
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
        let items: Vec<Item> = (1..=50).map(|line| Item::new(line, "", Vec::new())).collect();
        let lines = |items: Vec<Item>| items.iter().map(|item| item.line).collect::<Vec<_>>();
        assert_eq!(lines(draw(items.clone(), Some(3), None)), [1, 2, 3]);
        let drawn = lines(draw(items.clone(), Some(10), Some(7)));
        assert_eq!(drawn, lines(draw(items.clone(), Some(10), Some(7))));
        assert_ne!(drawn, lines(draw(items.clone(), Some(10), Some(8))));
        assert!(drawn.is_sorted() && drawn.len() == 10 && drawn != (1..=10).collect::<Vec<_>>());
        assert_eq!(draw(items.clone(), Some(99), Some(1)).len(), 50);
        // Lines are drawn, with all items that are of them.
        let twice = items.iter().flat_map(|item| [item.clone(), item.clone()]).collect();
        assert_eq!(lines(draw(twice, Some(2), None)), [1, 1, 2, 2]);
    }
}
