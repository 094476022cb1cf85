//! The tokenizer: text to token ids and back.
//!
//! Wraps `tokenizers::Tokenizer`, which does the splitting and merging, and adds what serving needs: limits on
//! hostile vocabularies and texts, the bytes of every token, and a choice per call of whether special tokens
//! are read in a text.
//!
//! State: built once, immutable, shared; cloning is cheap and every method may be called from any thread.
//! Encoding uses the calling thread alone.
//!
//! It deliberately does not normalise decoded text: decoding gives the bytes of the tokens.

mod chunk;
mod config;
mod export;
mod gguf;
mod json;
mod made_up;
mod pieces;
mod pre;
mod sentencepiece;
#[cfg(test)]
mod tests;

use crate::detokenize::{append_piece, finish};
use crate::{Result, TextError, TokenId};
use chunk::{Cutting, PART_BYTES, Parts};
pub use config::{NamedTemplate, TokenizerConfig};
pub use gguf::GgufVocab;
use pieces::PieceTable;
pub use pre::supported_pre_tokenizers;
use std::borrow::Cow;
use std::sync::Arc;
use tokenizers::models::ModelWrapper;
use tokenizers::tokenizer::{AddedVocabulary, Model, PreTokenizer};

/// The most tokens that a vocabulary may have.
pub const MAX_VOCAB_TOKENS: usize = 1 << 21;
/// The most bytes that one token may have in the file.
pub const MAX_PIECE_BYTES: usize = 1 << 14;
/// The most merge rules that a vocabulary may have.
pub const MAX_MERGES: usize = 1 << 23;
/// The longest text that [`EncodeOptions::default`] allows: 4 MiB. Ordinary text is encoded in parts and takes little
/// memory; a text made so that no part ends takes about 100 times its length while it is encoded.
pub const DEFAULT_MAX_TEXT_BYTES: usize = 4 << 20;

/// Words whose merges are remembered, for each thread that encodes.
const CACHE_WORDS: usize = 2048;

/// How a text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens around the text that the model expects around a whole one, such as a
    /// beginning-of-text token.
    pub add_special: bool,
    /// Read the text of special tokens, such as `<|im_start|>`, as these tokens. Without it they are
    /// ordinary text: what an untrusted user's words need.
    pub parse_special: bool,
    /// The longest text, in bytes; a longer one is an error.
    pub max_text_bytes: usize,
    /// The most tokens; as soon as there are more, encoding ends with an error.
    pub max_tokens: Option<usize>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            add_special: false,
            parse_special: true,
            max_text_bytes: DEFAULT_MAX_TEXT_BYTES,
            max_tokens: None,
        }
    }
}

/// A model's tokenizer. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    /// The added tokens once more, set to leave the text of special ones alone.
    ordinary: AddedVocabulary,
    pieces: PieceTable,
    drops_leading_space: bool,
    cutting: Cutting,
    specials: Specials,
}

/// The tokens with a role.
#[derive(Debug, Clone, Default)]
struct Specials {
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    eot: Option<TokenId>,
    pad: Option<TokenId>,
    unk: Option<TokenId>,
    before: Vec<TokenId>,
    after: Vec<TokenId>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("specials", &self.inner.specials)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a Hugging Face `tokenizer.json`, with what `tokenizer_config.json` adds.
    ///
    /// Byte-pair models with a byte-level or SentencePiece-style decoder are supported.
    ///
    /// # Errors
    /// The file is not valid, contradicts itself, is over a limit, or is of a kind that is not supported.
    pub fn from_tokenizer_json(bytes: &[u8], config: Option<&TokenizerConfig>) -> Result<Self> {
        json::build(bytes, config).map(Self::new)
    }

    /// Builds the tokenizer that a GGUF file's metadata describes.
    ///
    /// # Errors
    /// The kind or the pre-tokenizer is not known, a limit is exceeded, or the vocabulary contradicts itself:
    /// a token twice, a merge rule with an unknown token, an id out of range.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        gguf::build(vocab).map(Self::new)
    }

    fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// The ids of a text, in which special tokens are read; limits are those of [`EncodeOptions::default`].
    ///
    /// # Errors
    /// As [`encode_with`](Self::encode_with).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>> {
        self.encode_with(text, &EncodeOptions { add_special, ..EncodeOptions::default() })
    }

    /// The ids of a text in which nothing is special, whatever it says.
    ///
    /// # Errors
    /// As [`encode_with`](Self::encode_with).
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<TokenId>> {
        self.encode_with(text, &EncodeOptions { parse_special: false, ..EncodeOptions::default() })
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// The text or its tokens are over the caller's limits.
    pub fn encode_with(&self, text: &str, options: &EncodeOptions) -> Result<Vec<TokenId>> {
        self.encode_in_parts(text, options, PART_BYTES)
    }

    fn encode_in_parts(
        &self,
        text: &str,
        options: &EncodeOptions,
        part_bytes: usize,
    ) -> Result<Vec<TokenId>> {
        if text.len() > options.max_text_bytes {
            return Err(TextError::TextTooLong {
                actual_bytes: text.len(),
                limit_bytes: options.max_text_bytes,
            });
        }
        let specials = &self.inner.specials;
        let mut ids = Vec::new();
        if options.add_special {
            ids.extend_from_slice(&specials.before);
        }
        let after: &[TokenId] = if options.add_special { &specials.after } else { &[] };
        for part in Parts::new(text, self.inner.cutting, part_bytes) {
            self.encode_part(part, options.parse_special, &mut ids)?;
            if let Some(limit_tokens) = options.max_tokens
                && ids.len() + after.len() > limit_tokens
            {
                return Err(TextError::TooManyTokens { limit_tokens });
            }
        }
        ids.extend_from_slice(after);
        match options.max_tokens {
            Some(limit_tokens) if ids.len() > limit_tokens => Err(TextError::TooManyTokens { limit_tokens }),
            _ => Ok(ids),
        }
    }

    fn encode_part(&self, text: &str, parse_special: bool, ids: &mut Vec<TokenId>) -> Result<()> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| TextError::Encode {
            message: error.to_string(),
        };
        let tokenizer = &self.inner.tokenizer;
        let added = if parse_special { tokenizer.get_added_vocabulary() } else { &self.inner.ordinary };
        let mut words = added.extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words).map_err(failed)?;
        }
        let model = tokenizer.get_model();
        words.tokenize(|word| model.tokenize(word.get())).map_err(failed)?;
        let encoding =
            words.into_encoding(None, 0, tokenizers::tokenizer::OffsetType::None).map_err(failed)?;
        ids.extend(encoding.get_ids().iter().copied().map(TokenId));
        Ok(())
    }

    /// The text of the ids; bytes that are not UTF-8 become U+FFFD. With `skip_special` special tokens give
    /// no text.
    ///
    /// # Errors
    /// An id is not in the vocabulary.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> Result<String> {
        let mut text = String::new();
        let mut incomplete = Vec::new();
        let mut drop_space = self.inner.drops_leading_space;
        for &id in ids {
            let bytes = self
                .token_bytes(id)
                .ok_or_else(|| TextError::UnknownToken { id, vocab_size: self.vocab_size() })?;
            if !(skip_special && self.is_special(id)) {
                append_piece(bytes, &mut drop_space, &mut incomplete, &mut text);
            }
        }
        finish(&mut incomplete, &mut text);
        Ok(text)
    }

    /// The bytes that a token stands for, which need not be whole characters. `None`: no such token.
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.inner.pieces.bytes(id)
    }

    /// The text of a token, with U+FFFD for bytes that are not UTF-8 by themselves.
    pub fn token_str(&self, id: TokenId) -> Option<Cow<'_, str>> {
        self.token_bytes(id).map(String::from_utf8_lossy)
    }

    /// Every token with its bytes, by id.
    pub fn tokens(&self) -> impl Iterator<Item = (TokenId, &[u8])> {
        self.inner.pieces.iter()
    }

    /// One more than the highest id. A model's tables may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.pieces.len()
    }

    /// Whether a token steers the model and is not part of the text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.inner.pieces.is_special(id)
    }

    /// The id of a token by its spelling in the vocabulary (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        self.inner.tokenizer.token_to_id(token).map(TokenId)
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<TokenId> {
        self.inner.specials.bos
    }

    /// The end-of-text token.
    pub fn eos(&self) -> Option<TokenId> {
        self.inner.specials.eos
    }

    /// The end-of-turn token, if it is one of its own.
    pub fn eot(&self) -> Option<TokenId> {
        self.inner.specials.eot
    }

    /// The padding token.
    pub fn pad(&self) -> Option<TokenId> {
        self.inner.specials.pad
    }

    /// The token for text that has none.
    pub fn unk(&self) -> Option<TokenId> {
        self.inner.specials.unk
    }

    /// The tokens that `add_special` puts before a text, and after it.
    pub fn surrounding(&self) -> (&[TokenId], &[TokenId]) {
        (&self.inner.specials.before, &self.inner.specials.after)
    }

    /// Whether the space before the first word of a text is not part of the text.
    pub(crate) fn drops_leading_space(&self) -> bool {
        self.inner.drops_leading_space
    }
}

/// Whether added tokens allow cutting a text at a space: none has a space or reaches for those around it.
fn added_tokens_allow_cutting(added: &AddedVocabulary) -> bool {
    added.get_added_tokens_decoder().values().all(|token| {
        !token.lstrip
            && !token.rstrip
            && !token.single_word
            && !token.content.contains(|character: char| character.is_whitespace() || character == '\u{2581}')
    })
}

/// The added tokens, set to leave the text of special ones alone.
fn leaving_specials(tokenizer: &tokenizers::Tokenizer) -> AddedVocabulary {
    let mut added = tokenizer.get_added_vocabulary().clone();
    added.set_encode_special_tokens(true);
    added
}

/// Bounds the memory of remembered words.
fn bound_cache(model: &mut ModelWrapper) {
    if let ModelWrapper::BPE(bpe) = model {
        bpe.resize_cache(CACHE_WORDS);
    }
}

fn vocabulary(message: String) -> TextError {
    TextError::Vocabulary { message }
}
