//! What both completions APIs decide in the same way: which fields are refused, how the answer looks.

use wardrobe_engine::TokenId;

use crate::body::JsonObject;
use crate::error::{ApiError, Result};
use crate::wire::logprobs::TokenStyle;
use crate::wire::request::GenerationFields;
use crate::wire::unsupported::Unsupported;

/// Refuses fields that would change the answer and are not implemented.
pub(crate) fn refuse_unsupported(body: &JsonObject) -> Result<()> {
    match body.parse::<Unsupported>()? {
        Unsupported(None) => Ok(()),
        Unsupported(Some((field, why))) => Err(ApiError::unsupported(field, why)),
    }
}

/// How an answer is to look.
#[derive(Clone, Copy)]
pub(crate) struct AnswerShape {
    pub stream: bool,
    pub logprobs: bool,
    pub style: TokenStyle,
    pub token_ids: bool,
    pub timings: bool,
    pub include_usage: bool,
    pub skip_special_tokens: bool,
}

impl AnswerShape {
    pub fn new(fields: &GenerationFields, logprobs: bool, style: TokenStyle) -> Result<Self> {
        let stream = fields.stream == Some(true);
        if stream && fields.prompt_logprobs.is_some() {
            return Err(ApiError::invalid("prompt_logprobs", "is not available in a stream"));
        }
        Ok(Self {
            stream,
            logprobs,
            style: style.unless_ids(fields.return_tokens_as_token_ids),
            token_ids: fields.return_token_ids == Some(true),
            timings: fields.timings == Some(true) || fields.timings_per_token == Some(true),
            include_usage: fields.stream_options.as_ref().and_then(|o| o.include_usage) == Some(true),
            skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
        })
    }

    /// Token ids for the answer, if they were asked for.
    pub fn ids(self, ids: &[TokenId]) -> Option<Vec<u32>> {
        self.token_ids.then(|| ids.iter().map(|id| id.0).collect())
    }
}
