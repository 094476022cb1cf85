//! Text in and text out of a language model: tokenizer, incremental detokenizer, stop strings and
//! chat templates.
//!
//! Purpose: turn a string or a conversation into token ids, and token ids back into a string, piece by
//! piece while a model generates.
//!
//! State: a [`Tokenizer`] is immutable once built and shared (cloning it is cheap); a
//! [`DetokenizeStream`] and a [`StopMatcher`] belong to one sequence; a [`ChatTemplate`] is immutable.
//!
//! Invariants: a tokenizer's ids are those of the model's own tokenizer; the pieces that a
//! [`DetokenizeStream`] gives, joined, are what [`Tokenizer::decode`] gives for all ids at once; nothing
//! that comes from a file or a request panics, or takes memory beyond a stated limit.
//!
//! This crate reads no files and knows no container format: callers hand it bytes, or a [`GgufVocab`]
//! filled from metadata that they have read.
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as wardrobe_text;

mod detokenize;
mod error;
mod stop;
mod template;
mod token_id;
mod tokenizer;
mod tools;

pub use detokenize::{DetokenizeOptions, DetokenizeStream};
pub use error::{Result, TextError};
pub use stop::{MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, StopMatch, StopMatcher, StopOutput, StopStrings};
pub use template::{
    ChatInput, ChatTemplate, Message, MessageContent, RecordTemplate, TemplateError, TemplateLimits,
    fuzz_chat_template,
};
pub use token_id::TokenId;
pub use tokenizer::{
    DEFAULT_MAX_TEXT_BYTES, EncodeOptions, GgufVocab, MAX_MERGES, MAX_PIECE_BYTES, MAX_VOCAB_TOKENS,
    NamedTemplate, Tokenizer, TokenizerConfig, supported_pre_tokenizers,
};
pub use tools::{
    ID_LEN, MAX_TOOL_CALLS, NotationPart, ToolCallParser, ToolEvent, ToolNotation, ToolStyle,
    is_function_name,
};
