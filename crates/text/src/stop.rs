//! Stop strings: find the first one while text arrives, and hold back what may be the start of one.
//!
//! The first match is the one that *ends* first, since generation stops there; of those that end at the
//! same byte it is the longest. That depends on the text alone and never on how it was cut into pieces.
//!
//! State of a [`StopMatcher`]: one Knuth-Morris-Pratt state for each string, and the text held back, which is
//! never longer than the longest string. A byte of text costs amortised constant time for each string.

use crate::{Result, TextError};
use std::sync::Arc;

/// The most stop strings that a request may have.
pub const MAX_STOP_STRINGS: usize = 64;

/// The most bytes that a stop string may have.
pub const MAX_STOP_STRING_BYTES: usize = 4096;

/// A checked set of stop strings; cheap to clone.
#[derive(Debug, Clone)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
}

#[derive(Debug)]
struct Pattern {
    text: Box<str>,
    /// `border[i]`: length of the longest proper prefix of the first `i + 1` bytes that is also their suffix.
    border: Box<[u32]>,
}

impl StopStrings {
    /// Checks the strings: none empty, none longer than [`MAX_STOP_STRING_BYTES`], at most
    /// [`MAX_STOP_STRINGS`]. No strings at all is a valid set that never matches.
    pub fn new<S: AsRef<str>>(strings: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut patterns = Vec::new();
        for (index, string) in strings.into_iter().enumerate() {
            let text = string.as_ref();
            if index >= MAX_STOP_STRINGS {
                return Err(refused(format!("more than {MAX_STOP_STRINGS} strings")));
            }
            if text.is_empty() {
                return Err(refused(format!("string {index} is empty")));
            }
            if text.len() > MAX_STOP_STRING_BYTES {
                return Err(refused(format!(
                    "string {index} has {} bytes, over the limit of {MAX_STOP_STRING_BYTES}",
                    text.len()
                )));
            }
            patterns.push(Pattern { text: text.into(), border: borders(text.as_bytes()) });
        }
        Ok(Self { patterns: patterns.into() })
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The strings, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|pattern| &*pattern.text)
    }

    /// A matcher that has seen no text. With `include_stop` the text released ends with the stop string
    /// and not before it.
    pub fn matcher(&self, include_stop: bool) -> StopMatcher {
        StopMatcher {
            states: vec![0; self.patterns.len()],
            stops: self.clone(),
            include_stop,
            held: String::new(),
            seen_bytes: 0,
            found: None,
        }
    }
}

fn refused(message: String) -> TextError {
    TextError::StopStrings { message }
}

/// The border table of Knuth, Morris and Pratt (1977).
fn borders(pattern: &[u8]) -> Box<[u32]> {
    let mut table = vec![0u32; pattern.len()];
    let mut length = 0usize;
    for index in 1..pattern.len() {
        while length > 0 && pattern[index] != pattern[length] {
            length = table[length - 1] as usize;
        }
        if pattern[index] == pattern[length] {
            length += 1;
        }
        table[index] = length as u32;
    }
    table.into()
}

/// Where a stop string was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopMatch {
    /// Which string, by its place in the set.
    pub index: usize,
    /// The byte of the whole text at which it starts.
    pub start_byte: usize,
    /// The byte of the whole text after its end.
    pub end_byte: usize,
}

/// What a piece of text released.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutput {
    /// Text that is final and may be shown.
    pub text: String,
    /// The match, once one is found.
    pub matched: Option<StopMatch>,
}

/// Looks for stop strings in the text of one sequence.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: StopStrings,
    /// For each string, how many of its bytes the end of the text matches.
    states: Vec<u32>,
    include_stop: bool,
    /// The end of the text that may become a stop string.
    held: String,
    seen_bytes: usize,
    found: Option<StopMatch>,
}

impl StopMatcher {
    /// Takes the next piece of text. After a match nothing more is released.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.found.is_some() {
            return StopOutput { text: String::new(), matched: self.found };
        }
        for (offset, byte) in text.bytes().enumerate() {
            if let Some((index, length)) = self.advance(byte) {
                return self.matched(&text[..=offset], index, length);
            }
        }
        self.seen_bytes += text.len();
        let keep = self.states.iter().copied().max().unwrap_or(0) as usize;
        let mut released = std::mem::take(&mut self.held);
        released.push_str(text);
        // A partial match starts with the first byte of a stop string, hence at a character.
        self.held = released.split_off(released.len().saturating_sub(keep));
        StopOutput { text: released, matched: None }
    }

    /// Ends the text and gives what was held back.
    pub fn finish(&mut self) -> String {
        self.states.fill(0);
        std::mem::take(&mut self.held)
    }

    /// The match, if one was found.
    pub fn found(&self) -> Option<StopMatch> {
        self.found
    }

    /// The text that is held back.
    pub fn held(&self) -> &str {
        &self.held
    }

    /// Advances every state by a byte and gives the longest string that ends here, with its length.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize)> = None;
        for (index, (pattern, state)) in self.stops.patterns.iter().zip(&mut self.states).enumerate() {
            let bytes = pattern.text.as_bytes();
            let mut length = *state as usize;
            while length > 0 && bytes[length] != byte {
                length = pattern.border[length - 1] as usize;
            }
            if bytes[length] == byte {
                length += 1;
            }
            *state = length as u32;
            if length == bytes.len() && best.is_none_or(|(_, longest)| length > longest) {
                best = Some((index, length));
            }
        }
        best
    }

    fn matched(&mut self, seen: &str, index: usize, length: usize) -> StopOutput {
        let end_byte = self.seen_bytes + seen.len();
        let matched = StopMatch { index, start_byte: end_byte - length, end_byte };
        self.seen_bytes = end_byte;
        self.found = Some(matched);
        let mut text = std::mem::take(&mut self.held);
        text.push_str(seen);
        if !self.include_stop {
            text.truncate(text.len() - length);
        }
        StopOutput { text, matched: self.found }
    }
}
