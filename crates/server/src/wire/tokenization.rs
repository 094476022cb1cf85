//! `/tokenize`, `/detokenize`, `/tokenizer_info`.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenizeFields {
    pub model: Option<String>,
    pub prompt: Option<String>,
    /// Whether there are any; what they are is read apart.
    pub messages: Option<IgnoredAny>,
    pub add_special_tokens: Option<bool>,
    pub return_token_strs: Option<bool>,
}

#[derive(Serialize)]
pub(crate) struct Tokenized {
    pub count: usize,
    pub max_model_len: usize,
    pub tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_strs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct DetokenizeFields {
    #[serde(default)]
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

#[derive(Serialize)]
pub(crate) struct Detokenized {
    pub prompt: String,
}

#[derive(Serialize)]
pub(crate) struct TokenizerInfo<'a> {
    pub vocab_size: usize,
    pub bos_token: Option<&'a str>,
    pub eos_token: Option<&'a str>,
    pub pad_token: Option<String>,
    pub unk_token: Option<String>,
    pub chat_template: Option<&'a str>,
}
