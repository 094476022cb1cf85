//! A tokenizer as grammars see it: the bytes of every token in a trie, and which tokens end a text.

use std::sync::Arc;

use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use wardrobe_text::{TokenId, Tokenizer};

use crate::error::{GrammarError, Result};

/// Longer tokens are in no mask: the trie has no room for them.
const MAX_TOKEN_BYTES: usize = 512;

/// Built once for a model and shared by all its grammars.
#[derive(Clone)]
pub struct Vocabulary {
    env: Arc<Env>,
}

struct Env {
    tokenizer: Tokenizer,
    trie: TokTrie,
    /// Tokens that end a text, each once.
    ends: Box<[TokenId]>,
    /// Names of the other special tokens.
    specials: Box<[(Box<str>, TokenId)]>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("len", &self.len()).field("ends", &self.env.ends).finish()
    }
}

impl Vocabulary {
    /// Of a tokenizer whose texts end with any of `ends`. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// There is no such token, or none at all.
    pub fn new(tokenizer: Tokenizer, ends: &[TokenId]) -> Result<Self> {
        let mut words = vec![Vec::new(); tokenizer.vocab_size()];
        let mut specials = Vec::new();
        for (id, bytes) in tokenizer.tokens() {
            let Some(word) = words.get_mut(id.index()) else { continue };
            if bytes.len() > MAX_TOKEN_BYTES {
                continue;
            }
            if tokenizer.is_special(id)
                && !ends.contains(&id)
                && let Some(name) = std::str::from_utf8(bytes).ok().filter(|name| !name.is_empty())
            {
                specials.push((name.into(), id));
            }
            // A special token's text means nothing; the marker keeps it out of every text.
            if tokenizer.is_special(id) || ends.contains(&id) {
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
            }
            word.extend_from_slice(bytes);
        }
        let mut sorted = ends.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let invalid = |message: String| GrammarError::Invalid { kind: "vocabulary", message };
        if let Some(unknown) = sorted.iter().find(|id| words.get(id.index()).is_none_or(Vec::is_empty)) {
            return Err(invalid(format!("token {unknown} ends a text, but is not in the vocabulary")));
        }
        let ids: Vec<u32> = sorted.iter().map(|id| id.0).collect();
        let Some(&first) = ids.first() else { return Err(invalid("no token ends a text".to_owned())) };
        let info = TokRxInfo::new(words.len() as u32, first);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ids);
        Ok(Vocabulary {
            env: Arc::new(Env { tokenizer, trie, ends: sorted.into(), specials: specials.into() }),
        })
    }

    /// One more than the highest id.
    pub fn len(&self) -> usize {
        self.env.trie.vocab_size()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Words of a mask over all tokens.
    pub fn mask_len(&self) -> usize {
        self.len().div_ceil(32)
    }

    /// The tokens that end a text.
    pub fn ends(&self) -> &[TokenId] {
        &self.env.ends
    }

    /// The tokens of a text, as the model is used to them.
    pub(crate) fn encode(&self, text: &[u8]) -> Vec<TokenId> {
        self.env.tokenize_bytes(text).into_iter().map(TokenId).collect()
    }

    /// The tokens of a text that goes on, or ends, after these bytes: not those that might be others with what follows.
    pub(crate) fn encode_prefix(&self, text: &[u8], ends: bool) -> Vec<TokenId> {
        let mut tokens = self.encode(text);
        if !ends && tokens.last().is_some_and(|last| self.trie().has_extensions(self.trie().token(last.0))) {
            tokens.pop();
        }
        tokens
    }

    /// The bytes of a token that is part of a text.
    pub(crate) fn bytes(&self, token: TokenId) -> Option<&[u8]> {
        let known = token.index() < self.len();
        let bytes = if known { self.trie().token(token.0) } else { &[] };
        (!bytes.is_empty() && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER)).then_some(bytes)
    }

    /// The special token of this name, if it ends no text.
    pub(crate) fn special(&self, name: &str) -> Option<TokenId> {
        self.env.specials.iter().find(|(known, _)| **known == *name).map(|(_, id)| *id)
    }

    /// The first special token in a text, with what is before and after it; of several at one place the longest.
    pub(crate) fn first_special<'a>(&self, text: &'a str) -> Option<(&'a str, TokenId, &'a str)> {
        let found =
            self.env.specials.iter().filter_map(|(name, id)| Some((text.find(&**name)?, name.len(), *id)));
        let (at, len, id) = found.min_by_key(|(at, len, _)| (*at, usize::MAX - len))?;
        Some((text.get(..at)?, id, text.get(at + len..)?))
    }

    pub(crate) fn trie(&self) -> &TokTrie {
        &self.env.trie
    }

    pub(crate) fn env(&self) -> TokEnv {
        self.env.clone()
    }
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| match self.tokenizer.encode_ordinary(text) {
            Ok(ids) => ids.into_iter().map(|id| id.0).collect(),
            Err(_) => self.trie.greedy_tokenize(text.as_bytes()),
        })
    }
}
