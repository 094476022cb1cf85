//! What can go wrong between text and tokens. Template errors have a type of their own
//! ([`crate::TemplateError`]), since a caller answers them differently.

use crate::TokenId;

/// The result of a text operation.
pub type Result<T, E = TextError> = std::result::Result<T, E>;

/// An error of the tokenizer, the detokenizer or the stop strings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A `tokenizer.json` that cannot be read or used.
    #[error("tokenizer.json: {message}")]
    TokenizerJson {
        /// What is wrong, with the place where it is known.
        message: String,
    },
    /// A `tokenizer_config.json` that cannot be read.
    #[error("tokenizer_config.json: {message}")]
    TokenizerConfig {
        /// What is wrong.
        message: String,
    },
    /// A GGUF vocabulary of a kind that is not known (`tokenizer.ggml.model`).
    #[error(
        "unknown GGUF tokenizer model {model:?}: known are \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece)"
    )]
    UnknownTokenizerModel {
        /// The name in the file.
        model: String,
    },
    /// A pre-tokenizer whose rules are not known (`tokenizer.ggml.pre`).
    #[error(
        "unknown GGUF pre-tokenizer {pre:?} (tokenizer.ggml.pre): its splitting rules are not known, and guessing them would give wrong token ids; known are: {known}"
    )]
    UnknownPreTokenizer {
        /// The name in the file; empty if the file has none.
        pre: String,
        /// The names that are known.
        known: String,
    },
    /// A vocabulary that contradicts itself or is over a limit.
    #[error("vocabulary: {message}")]
    Vocabulary {
        /// What is wrong, naming token and id.
        message: String,
    },
    /// A merge rule that names a token that is not in the vocabulary.
    #[error("merge rule {rank} ({rule:?}): {token:?} is not in the vocabulary")]
    UnknownMergeToken {
        /// The position of the rule, from 0.
        rank: usize,
        /// The rule as it stands in the file.
        rule: String,
        /// The missing token.
        token: String,
    },
    /// A text over the caller's limit.
    #[error("text of {actual_bytes} bytes is over the limit of {limit_bytes} bytes")]
    TextTooLong {
        /// The length of the text.
        actual_bytes: usize,
        /// The limit that the caller set.
        limit_bytes: usize,
    },
    /// A text that gives more tokens than the caller allows. Encoding stopped there, so the whole
    /// number is not known.
    #[error("text gives more than {limit_tokens} tokens")]
    TooManyTokens {
        /// The limit that the caller set.
        limit_tokens: usize,
    },
    /// The tokenizer failed on a text.
    #[error("encoding failed: {message}")]
    Encode {
        /// What the tokenizer says.
        message: String,
    },
    /// An id that the vocabulary does not have.
    #[error("token id {id} is not in the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The id.
        id: TokenId,
        /// The number of ids.
        vocab_size: usize,
    },
    /// Stop strings that cannot be used.
    #[error("stop strings: {message}")]
    StopStrings {
        /// What is wrong.
        message: String,
    },
}
