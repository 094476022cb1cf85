//! The seam to text: a detokenizer per sequence.
//!
//! The engine needs little of a tokenizer: text for tokens as they come, and the bytes of single tokens for
//! log-probabilities. A simulation brings its own.

use wardrobe_text::{DetokenizeOptions, DetokenizeStream, Tokenizer};

use crate::ids::TokenId;

/// Makes detokenizers. Shared by all sequences.
pub trait TextCodec: Send + Sync {
    /// A detokenizer for output that follows `prompt`.
    fn detokenizer(&self, prompt: &[TokenId], skip_special_tokens: bool) -> Box<dyn Detokenizer>;

    /// The bytes of one token; empty for an id that has none. Not always whole characters.
    fn token_bytes(&self, token: TokenId) -> Vec<u8>;
}

/// Turns one sequence's output tokens into text, whole characters at a time.
pub trait Detokenizer: Send {
    /// Takes the next token; returns the text that is certain now, often empty.
    fn push(&mut self, token: TokenId) -> String;

    /// The output ends: returns what was held back.
    fn finish(&mut self) -> String;
}

impl TextCodec for Tokenizer {
    fn detokenizer(&self, _prompt: &[TokenId], skip_special_tokens: bool) -> Box<dyn Detokenizer> {
        // Output goes on after a prompt, which is never empty: it does not start a text.
        let options = DetokenizeOptions { skip_special: skip_special_tokens, at_text_start: false };
        Box::new(DetokenizeStream::new(self.clone(), options))
    }

    fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        Tokenizer::token_bytes(self, token).unwrap_or_default().to_vec()
    }
}

impl Detokenizer for DetokenizeStream {
    fn push(&mut self, token: TokenId) -> String {
        DetokenizeStream::push(self, token).to_owned()
    }

    fn finish(&mut self) -> String {
        self.flush().to_owned()
    }
}
