//! Calls out of an answer's text, while it arrives.
//!
//! What a parser gives does not depend on how the text was cut into pieces, but for how arguments and other text are cut. An
//! answer that was held to the notation is read without a rest; from any other it takes what is in the notation, and the rest
//! is text or dropped.

use std::sync::Arc;

use super::{ID_LEN, NotationPart, ToolNotation, is_name_byte, leading_text};

/// What a piece of text brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text beside calls.
    Text(String),
    /// A call begins.
    Call {
        /// Which, from 0.
        index: usize,
        /// Its id, where the notation has one before the name.
        id: Option<String>,
        /// The function's name.
        name: String,
    },
    /// More of the arguments' JSON of a call.
    Arguments {
        /// Which.
        index: usize,
        /// The piece.
        text: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    First,
    Middle,
    Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looking for the mark. `at_start`: nothing has come yet.
    Text {
        at_start: bool,
    },
    /// In a list of parts.
    Parts(List, usize),
    Name,
    Arguments(Json),
    AfterArguments,
    /// After the last call.
    Ended,
}

/// Where in a JSON object one is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Json {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Json {
    /// Whether the object ends with this byte.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Reads one answer.
#[derive(Debug)]
pub struct ToolCallParser {
    notation: Arc<ToolNotation>,
    state: State,
    pending: String,
    id: Option<String>,
    num_calls: usize,
}

impl ToolCallParser {
    /// Of an answer that may be text, calls, or text and then calls.
    pub fn new(notation: Arc<ToolNotation>) -> Self {
        Self {
            notation,
            state: State::Text { at_start: true },
            pending: String::new(),
            id: None,
            num_calls: 0,
        }
    }

    /// Calls that have begun.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Takes more of the text; what it brings is added to `events`.
    pub fn push(&mut self, text: &str, events: &mut Vec<ToolEvent>) {
        self.pending.push_str(text);
        while self.step(events) {}
    }

    /// The text ends: gives what was held back.
    pub fn finish(&mut self, events: &mut Vec<ToolEvent>) {
        let pending = std::mem::take(&mut self.pending);
        match self.state {
            State::Text { .. } => push_text(events, &pending),
            State::Arguments(_) => self.push_arguments(events, pending),
            _ => {}
        }
        self.state = State::Ended;
    }

    /// Goes on by one step. Whether there may be another.
    fn step(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        match self.state {
            State::Text { at_start } => self.text(at_start, events),
            State::Parts(list, idx) => self.part(list, idx, events),
            State::Name => {
                let Some(end) = self.pending.bytes().position(|byte| !is_name_byte(byte)) else {
                    return false;
                };
                let name = self.take(end);
                let (index, id) = (self.num_calls, self.id.take());
                self.num_calls += 1;
                events.push(ToolEvent::Call { index, id, name });
                self.state = State::Parts(List::Middle, 0);
                true
            }
            State::Arguments(mut json) => {
                let end = self.pending.bytes().position(|byte| json.ends_with(byte));
                let piece = self.take(end.map_or(self.pending.len(), |end| end + 1));
                self.push_arguments(events, piece);
                self.state = if end.is_some() { State::AfterArguments } else { State::Arguments(json) };
                end.is_some()
            }
            State::AfterArguments => {
                let next = self.notation.next.as_deref().map_or("", leading_text);
                if next.is_empty() {
                    self.state = State::Ended;
                } else if self.pending.starts_with(next) {
                    self.state = State::Parts(List::Next, 0);
                } else if next.starts_with(&self.pending) {
                    return false;
                } else {
                    self.state = State::Ended;
                }
                true
            }
            State::Ended => {
                self.pending.clear();
                false
            }
        }
    }

    fn text(&mut self, at_start: bool, events: &mut Vec<ToolEvent>) -> bool {
        let notation = self.notation.clone();
        let mark = notation.mark();
        if !notation.has_mark() {
            // A call there, or none at all.
            if at_start && self.pending.starts_with(mark) {
                self.state = State::Parts(List::First, 0);
                return true;
            }
            if at_start && mark.starts_with(&self.pending) {
                return false;
            }
            self.state = State::Text { at_start: false };
            push_text(events, &std::mem::take(&mut self.pending));
            return false;
        }
        if let Some(at) = self.pending.find(mark) {
            push_text(events, self.take(at).trim_end());
            self.state = State::Parts(List::First, 0);
            return true;
        }
        // What may be the beginning of the mark, and blanks that belong to no text if a call follows.
        let held = (0..self.pending.len()).filter(|&at| self.pending.is_char_boundary(at));
        let held =
            held.into_iter().find(|&at| self.pending.get(at..).is_some_and(|rest| mark.starts_with(rest)));
        let kept =
            self.pending.get(..held.unwrap_or(self.pending.len())).unwrap_or_default().trim_end().len();
        push_text(events, &self.take(kept));
        false
    }

    fn part(&mut self, list: List, idx: usize, events: &mut Vec<ToolEvent>) -> bool {
        let notation = self.notation.clone();
        let parts = match list {
            List::First => &notation.first,
            List::Middle => &notation.middle,
            List::Next => notation.next.as_ref().unwrap_or(&notation.first),
        };
        match parts.get(idx) {
            Some(NotationPart::Text(text)) => {
                if self.pending.starts_with(text.as_str()) {
                    self.take(text.len());
                } else if text.starts_with(&self.pending) {
                    return false;
                } else {
                    // No call after all, or not another.
                    let rest = std::mem::take(&mut self.pending);
                    if list == List::First {
                        push_text(events, &rest);
                    }
                    self.state = State::Ended;
                    return false;
                }
            }
            Some(NotationPart::Id) => {
                let letters = self.pending.bytes().take(ID_LEN).take_while(u8::is_ascii_alphanumeric).count();
                if letters == self.pending.len() && letters < ID_LEN {
                    return false;
                }
                self.id = Some(self.take(letters));
            }
            None => {
                self.state = match list {
                    List::First | List::Next => State::Name,
                    List::Middle => State::Arguments(Json::default()),
                };
                return true;
            }
        }
        self.state = State::Parts(list, idx + 1);
        true
    }

    fn push_arguments(&self, events: &mut Vec<ToolEvent>, text: String) {
        if !text.is_empty() {
            events.push(ToolEvent::Arguments { index: self.num_calls.saturating_sub(1), text });
        }
    }

    /// Takes the first `len` bytes, which end with a character.
    fn take(&mut self, len: usize) -> String {
        let rest = self.pending.split_off(len.min(self.pending.len()));
        std::mem::replace(&mut self.pending, rest)
    }
}

fn push_text(events: &mut Vec<ToolEvent>, text: &str) {
    if !text.is_empty() {
        events.push(ToolEvent::Text(text.to_owned()));
    }
}
