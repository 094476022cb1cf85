//! Lengths in tokens, and texts cut to them between words.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wardrobe_text::Tokenizer;

use super::product::hex;

/// A model's tokenizer, with what a manifest calls it.
#[derive(Debug, Clone, Copy)]
pub struct Counting<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model, as it was asked for.
    pub model: &'a str,
}

impl Counting<'_> {
    /// Tokens of a text by itself. What looks like a special token in it is text like any other.
    ///
    /// # Errors
    /// The text is over the tokenizer's limit.
    pub fn tokens(&self, text: &str) -> Result<usize, String> {
        match self.tokenizer.encode_ordinary(text) {
            Ok(ids) => Ok(ids.len()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How a manifest tells which tokenizer it was: another vocabulary has another digest.
    pub(super) fn to_json(self) -> Value {
        let mut hasher = Sha256::new();
        for (id, bytes) in self.tokenizer.tokens() {
            hasher.update(id.0.to_le_bytes());
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        json!({"model": self.model, "vocabulary_sha256": hex(&hasher.finalize())})
    }

    /// The most words from the front of `words` that, with a space between them, have at most `max_tokens` tokens, and
    /// the tokens that these have. Found by doubling and halving: a text is tokenized some twenty times at most, and never
    /// more of it than four times what fits.
    pub(super) fn fit(&self, words: &[&str], max_tokens: usize) -> (usize, usize) {
        // What the tokenizer takes for too long does not fit either.
        let tokens =
            |count: usize| self.tokens(&words.get(..count).unwrap_or(words).join(" ")).unwrap_or(usize::MAX);
        let (mut fits, mut fits_tokens) = (0, 0);
        // Words have a token or more each, so that the first guess is seldom too small by far.
        let mut over = words.len() + 1;
        let mut step = max_tokens.max(1);
        while fits < words.len() {
            let next = fits.saturating_add(step).min(words.len());
            let found = tokens(next);
            if found > max_tokens {
                over = next;
                break;
            }
            (fits, fits_tokens) = (next, found);
            step = (max_tokens / 4).max(1);
        }
        while over - fits > 1 && over <= words.len() {
            let middle = fits + (over - fits) / 2;
            let found = tokens(middle);
            if found > max_tokens {
                over = middle;
            } else {
                (fits, fits_tokens) = (middle, found);
            }
        }
        (fits, fits_tokens)
    }
}
