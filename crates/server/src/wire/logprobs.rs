//! Log-probabilities in the shapes of both APIs, and vLLM's of the prompt.

use std::borrow::Cow;

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use wardrobe_engine::{TokenId, TokenLogprobs, TopLogprob};

/// Why a choice stopped, beyond `finish_reason`: the stop string or the stop token's id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    Text(String),
    Token(u32),
}

/// A log-probability; JSON has no infinity, and clients expect -9999 for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Logprob(pub f32);

impl Serialize for Logprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The same f32 always gives the same digits: clients compare them for equality.
        serializer.serialize_f32(if self.0.is_finite() { self.0 } else { -9999.0 })
    }
}

/// How a token is written where text is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenStyle {
    /// Its text, with U+FFFD for bytes that are no characters; the bytes stand beside it.
    Text,
    /// Its text, or `bytes:\x..` where it is not UTF-8, so that different tokens stay different.
    TextOrBytes,
    /// `token_id:N`.
    Id,
}

impl TokenStyle {
    /// The style of an API, unless the request asks for ids.
    pub fn unless_ids(self, as_ids: Option<bool>) -> Self {
        if as_ids == Some(true) { Self::Id } else { self }
    }

    fn show(self, token: TokenId, bytes: &[u8]) -> Cow<'_, str> {
        match self {
            Self::Id => Cow::Owned(format!("token_id:{token}")),
            Self::Text => String::from_utf8_lossy(bytes),
            Self::TextOrBytes => match std::str::from_utf8(bytes) {
                Ok(text) => Cow::Borrowed(text),
                Err(_) => {
                    let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                    Cow::Owned(format!("bytes:{hex}"))
                }
            },
        }
    }
}

/// `logprobs` of a chat choice.
#[derive(Serialize)]
pub(crate) struct ChatLogprobs<'a> {
    content: Vec<ChatToken<'a>>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatToken<'a> {
    token: Cow<'a, str>,
    logprob: Logprob,
    bytes: &'a [u8],
    top_logprobs: Vec<ChatTop<'a>>,
}

#[derive(Serialize)]
struct ChatTop<'a> {
    token: Cow<'a, str>,
    logprob: Logprob,
    bytes: &'a [u8],
}

impl<'a> ChatLogprobs<'a> {
    pub fn new(rows: &'a [TokenLogprobs], style: TokenStyle) -> Self {
        let top = |top: &'a TopLogprob| ChatTop {
            token: style.show(top.token, &top.bytes),
            logprob: Logprob(top.logprob),
            bytes: &top.bytes,
        };
        let row = |row: &'a TokenLogprobs| ChatToken {
            token: style.show(row.token, &row.bytes),
            logprob: Logprob(row.logprob),
            bytes: &row.bytes,
            top_logprobs: row.top.iter().map(top).collect(),
        };
        Self { content: rows.iter().map(row).collect(), refusal: None }
    }
}

/// `logprobs` of a completion's choice: four lists of one length.
#[derive(Default, Serialize)]
pub(crate) struct CompletionLogprobs<'a> {
    tokens: Vec<Cow<'a, str>>,
    token_logprobs: Vec<Option<Logprob>>,
    top_logprobs: Vec<Option<TopMap<'a>>>,
    text_offset: Vec<usize>,
}

/// A map from tokens to log-probabilities; where two tokens read the same, the likelier counts.
struct TopMap<'a>(Vec<(Cow<'a, str>, Logprob)>);

impl Serialize for TopMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

impl<'a> TopMap<'a> {
    /// The likeliest tokens, then the token itself if it is not among them.
    fn new(row: &'a TokenLogprobs, style: TokenStyle) -> Self {
        let mut entries: Vec<(Cow<'a, str>, Logprob)> = Vec::with_capacity(row.top.len() + 1);
        let tops = row.top.iter().map(|top| (top.token, top.bytes.as_slice(), top.logprob));
        for (token, bytes, logprob) in tops.chain([(row.token, row.bytes.as_slice(), row.logprob)]) {
            let shown = style.show(token, bytes);
            match entries.iter_mut().find(|(other, _)| *other == shown) {
                None => entries.push((shown, Logprob(logprob))),
                Some((_, kept)) if logprob > kept.0 => kept.0 = logprob,
                Some(_) => {}
            }
        }
        Self(entries)
    }
}

/// Where a token begins in a text, in characters, as it grows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TextOffset(pub usize);

impl TextOffset {
    /// The offset of a token with these bytes; later tokens come after it. A token inside a character counts as after
    /// it.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        let at = self.0;
        self.0 += bytes.iter().filter(|byte| (**byte & 0xc0) != 0x80).count();
        at
    }
}

impl<'a> CompletionLogprobs<'a> {
    /// Adds a prompt token without a log-probability: the first.
    pub fn push_first(
        &mut self,
        token: TokenId,
        bytes: &'a [u8],
        style: TokenStyle,
        offset: &mut TextOffset,
    ) {
        self.tokens.push(style.show(token, bytes));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.text_offset.push(offset.advance(bytes));
    }

    /// Adds tokens. `is_hidden` tells which have no text.
    pub fn extend(
        &mut self,
        rows: impl IntoIterator<Item = &'a TokenLogprobs>,
        style: TokenStyle,
        offset: &mut TextOffset,
        is_hidden: impl Fn(TokenId) -> bool,
    ) {
        for row in rows {
            self.tokens.push(style.show(row.token, &row.bytes));
            self.token_logprobs.push(Some(Logprob(row.logprob)));
            self.top_logprobs.push(Some(TopMap::new(row, style)));
            self.text_offset.push(offset.advance(if is_hidden(row.token) { &[] } else { &row.bytes }));
        }
    }
}

/// vLLM's `prompt_logprobs`: one entry per prompt token, the first null; an entry maps ids to their log-probabilities.
#[derive(Serialize)]
pub(crate) struct PromptLogprobs<'a>(Vec<Option<PromptRow<'a>>>);

struct PromptRow<'a>(&'a TokenLogprobs);

#[derive(Serialize)]
struct PromptEntry<'a> {
    logprob: Logprob,
    rank: Option<u32>,
    decoded_token: Cow<'a, str>,
}

impl Serialize for PromptRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = self.0;
        let mut map = serializer.serialize_map(None)?;
        let decoded = |token, bytes| TokenStyle::Text.show(token, bytes);
        let own = PromptEntry {
            logprob: Logprob(row.logprob),
            rank: Some(row.rank),
            decoded_token: decoded(row.token, &row.bytes),
        };
        map.serialize_entry(&row.token.0, &own)?;
        for (rank, top) in (1..).zip(&row.top) {
            if top.token != row.token {
                let entry = PromptEntry {
                    logprob: Logprob(top.logprob),
                    rank: Some(rank),
                    decoded_token: decoded(top.token, &top.bytes),
                };
                map.serialize_entry(&top.token.0, &entry)?;
            }
        }
        map.end()
    }
}

impl<'a> PromptLogprobs<'a> {
    pub fn new(rows: &'a [Option<TokenLogprobs>]) -> Self {
        Self(rows.iter().map(|row| row.as_ref().map(PromptRow)).collect())
    }
}
