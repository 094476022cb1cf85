//! Incremental detokenizing: text comes out as soon as it is final, and never half a character.
//!
//! State: at most three bytes of a character that is not complete. A token costs the length of its
//! piece and no more, however long the sequence is.
//!
//! It deliberately does not undo spaces before punctuation (`clean_up_tokenization_spaces`): text is
//! exactly what the tokens stand for.

use crate::{TokenId, Tokenizer};

/// How a [`DetokenizeStream`] treats special tokens and the start of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetokenizeOptions {
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Whether the first token starts a text. SentencePiece vocabularies put a space before the first
    /// word, which is dropped there; in the continuation of a prompt it is a real space and stays.
    pub at_text_start: bool,
}

impl Default for DetokenizeOptions {
    fn default() -> Self {
        Self { skip_special: true, at_text_start: true }
    }
}

/// Turns the tokens of one sequence into text while they arrive.
///
/// All texts given by [`push`](Self::push), followed by that of [`flush`](Self::flush), are together
/// what [`Tokenizer::decode`] gives for the same ids (with `at_text_start`).
#[derive(Debug, Clone)]
pub struct DetokenizeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    drop_space: bool,
    incomplete: Vec<u8>,
    text: String,
}

impl DetokenizeStream {
    /// A stream that has seen no token.
    pub fn new(tokenizer: Tokenizer, options: DetokenizeOptions) -> Self {
        let drop_space = options.at_text_start && tokenizer.drops_leading_space();
        Self {
            tokenizer,
            skip_special: options.skip_special,
            drop_space,
            incomplete: Vec::with_capacity(8),
            text: String::new(),
        }
    }

    /// Takes the next token and gives the text that became final, which may be empty. An id that the
    /// vocabulary does not have (models pad their tables) gives no text.
    pub fn push(&mut self, id: TokenId) -> &str {
        self.text.clear();
        if let Some(bytes) = self.tokenizer.token_bytes(id)
            && !(self.skip_special && self.tokenizer.is_special(id))
        {
            append_piece(bytes, &mut self.drop_space, &mut self.incomplete, &mut self.text);
        }
        &self.text
    }

    /// Ends the text: an incomplete character becomes U+FFFD. The stream is then as new, in the middle
    /// of a text.
    pub fn flush(&mut self) -> &str {
        self.text.clear();
        finish(&mut self.incomplete, &mut self.text);
        &self.text
    }

    /// The number of bytes that are held back until their character is complete: 0 to 3.
    pub fn held_bytes(&self) -> usize {
        self.incomplete.len()
    }
}

/// Appends what `bytes` makes final. `drop_space`: the next byte of text, if it is a space, is dropped.
pub(crate) fn append_piece(
    mut bytes: &[u8],
    drop_space: &mut bool,
    incomplete: &mut Vec<u8>,
    text: &mut String,
) {
    if *drop_space && let Some(first) = bytes.first() {
        *drop_space = false;
        if *first == b' ' {
            bytes = &bytes[1..];
        }
    }
    if incomplete.is_empty() {
        // The common case: nothing held, so valid text is copied once.
        let held = append_valid(bytes, text);
        incomplete.extend_from_slice(held);
    } else {
        incomplete.extend_from_slice(bytes);
        let held = append_valid(incomplete, text).len();
        incomplete.drain(..incomplete.len() - held);
    }
}

/// Ends a text: what is held is an incomplete character, which becomes one U+FFFD.
pub(crate) fn finish(incomplete: &mut Vec<u8>, text: &mut String) {
    if !incomplete.is_empty() {
        text.push(char::REPLACEMENT_CHARACTER);
        incomplete.clear();
    }
}

/// Appends the characters of `bytes`, U+FFFD for each invalid sequence, and gives the incomplete
/// character at the end, if there is one (at most three bytes).
fn append_valid<'b>(mut bytes: &'b [u8], text: &mut String) -> &'b [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                return &[];
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(invalid) = error.error_len() else { return rest };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
        }
    }
}
