//! The tokenizer that a GGUF file's metadata describes.

use super::chunk::Cutting;
use super::pieces::{PieceTableBuilder, Spelling};
use super::{
    Inner, MAX_MERGES, MAX_PIECE_BYTES, MAX_VOCAB_TOKENS, Specials, added_tokens_allow_cutting, bound_cache,
    leaving_specials, pre, sentencepiece, vocabulary,
};
use crate::{Result, TextError, TokenId};
use ahash::AHashMap;
use tokenizers::AddedToken;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// The tokenizer part of a GGUF file's metadata (keys `tokenizer.ggml.*`), as the file has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `model`: `gpt2` is byte-level BPE, `llama` is SentencePiece.
    pub model: String,
    /// `pre`: the pre-tokenizer of a `gpt2` vocabulary.
    pub pre: Option<String>,
    /// `tokens`: the pieces, by id.
    pub tokens: Vec<String>,
    /// `scores`, by id; a `llama` vocabulary merges the highest first.
    pub scores: Option<Vec<f32>>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `merges` of a `gpt2` vocabulary, `left right`, the first first.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_id: Option<u32>,
    /// `eot_token_id`: ends a turn where another token ends a text.
    pub eot_id: Option<u32>,
    /// `unknown_token_id`.
    pub unk_id: Option<u32>,
    /// `padding_token_id`.
    pub pad_id: Option<u32>,
    /// `add_bos_token`; `None`: as the kind of vocabulary implies.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; `None`: no.
    pub add_eos: Option<bool>,
    /// `add_space_prefix` of a `llama` vocabulary; `None`: yes. Without meaning for `gpt2`.
    pub add_space_prefix: Option<bool>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

pub(super) fn build(mut vocab: GgufVocab) -> Result<Inner> {
    let kinds = check(&vocab)?;
    let kind_name = std::mem::take(&mut vocab.model);
    let (spelling, add_bos_default) = match kind_name.as_str() {
        "gpt2" => (Spelling::ByteLevel, pre::named(vocab.pre.as_deref())?.add_bos),
        "llama" => (Spelling::SentencePiece, true),
        _ => return Err(TextError::UnknownTokenizerModel { model: kind_name }),
    };
    let specials = specials(&vocab, &kinds, add_bos_default)?;
    let space_prefix = spelling == Spelling::SentencePiece && vocab.add_space_prefix.unwrap_or(true);

    let mut pieces = PieceTableBuilder::with_capacity(vocab.tokens.len());
    let mut added = Vec::new();
    for (token, kind) in vocab.tokens.iter().zip(&kinds) {
        match kind {
            _ if token.is_empty() => pieces.push_hole(),
            TokenKind::Unknown | TokenKind::Control => {
                pieces.push_added(token, spelling, true)?;
                added.push(AddedToken::from(token.as_str(), true));
            }
            TokenKind::UserDefined => {
                pieces.push_added(token, spelling, false)?;
                added.push(AddedToken::from(token.as_str(), false).normalized(false));
            }
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => pieces.push_piece(token, spelling)?,
        }
    }

    let mut cutting = Cutting::Words;
    let mut tokenizer = match spelling {
        Spelling::ByteLevel => byte_level(&mut vocab)?,
        Spelling::SentencePiece => {
            cutting = sentencepiece::cutting(&vocab.tokens, &kinds, space_prefix);
            sentencepiece::build(&mut vocab, &kinds, space_prefix)?
        }
    };
    tokenizer.add_tokens(added).map_err(|error| vocabulary(error.to_string()))?;
    if !added_tokens_allow_cutting(tokenizer.get_added_vocabulary()) {
        cutting = Cutting::Never;
    }
    Ok(Inner {
        ordinary: leaving_specials(&tokenizer),
        tokenizer,
        pieces: pieces.build(),
        drops_leading_space: space_prefix,
        cutting,
        specials,
    })
}

/// Checks sizes and gives the kind of every token.
fn check(vocab: &GgufVocab) -> Result<Vec<TokenKind>> {
    let tokens = vocab.tokens.len();
    if tokens == 0 {
        return Err(vocabulary("no tokens".to_owned()));
    }
    if tokens > MAX_VOCAB_TOKENS {
        return Err(vocabulary(format!("{tokens} tokens, over the limit of {MAX_VOCAB_TOKENS}")));
    }
    if vocab.merges.len() > MAX_MERGES {
        return Err(vocabulary(format!(
            "{} merge rules, over the limit of {MAX_MERGES}",
            vocab.merges.len()
        )));
    }
    if let Some(id) = vocab.tokens.iter().position(|token| token.len() > MAX_PIECE_BYTES) {
        return Err(vocabulary(format!("token {id} is longer than {MAX_PIECE_BYTES} bytes")));
    }
    if let Some(scores) = &vocab.scores
        && scores.len() != tokens
    {
        return Err(vocabulary(format!("{} scores for {tokens} tokens", scores.len())));
    }
    if vocab.token_types.is_empty() {
        return Ok(vec![TokenKind::Normal; tokens]);
    }
    if vocab.token_types.len() != tokens {
        return Err(vocabulary(format!("{} token types for {tokens} tokens", vocab.token_types.len())));
    }
    let kind = |(id, value): (usize, &i32)| match value {
        1 => Ok(TokenKind::Normal),
        2 => Ok(TokenKind::Unknown),
        3 => Ok(TokenKind::Control),
        4 => Ok(TokenKind::UserDefined),
        5 => Ok(TokenKind::Unused),
        6 => Ok(TokenKind::Byte),
        _ => Err(vocabulary(format!("token {id} has the unknown type {value}"))),
    };
    vocab.token_types.iter().enumerate().map(kind).collect()
}

fn specials(vocab: &GgufVocab, kinds: &[TokenKind], add_bos_default: bool) -> Result<Specials> {
    let tokens = vocab.tokens.len();
    let checked = |role: &str, id: Option<u32>| match id {
        Some(id) if id as usize >= tokens => {
            Err(vocabulary(format!("{role} token id {id} is not below {tokens}, the number of tokens")))
        }
        id => Ok(id.map(TokenId)),
    };
    let bos = checked("bos", vocab.bos_id)?;
    let eos = checked("eos", vocab.eos_id)?;
    let unk = checked("unknown", vocab.unk_id)?;
    let first_unknown = || {
        let id = kinds.iter().position(|kind| *kind == TokenKind::Unknown)?;
        u32::try_from(id).ok().map(TokenId)
    };
    let wanted = |role: &str, asked: Option<bool>, default: bool, id: Option<TokenId>| match (asked, id) {
        (Some(true), None) => {
            Err(vocabulary(format!("add_{role}_token is set but there is no {role} token")))
        }
        (asked, id) => Ok(id.filter(|_| asked.unwrap_or(default))),
    };
    Ok(Specials {
        before: wanted("bos", vocab.add_bos, add_bos_default, bos)?.into_iter().collect(),
        after: wanted("eos", vocab.add_eos, false, eos)?.into_iter().collect(),
        bos,
        eos,
        eot: checked("eot", vocab.eot_id)?,
        pad: checked("padding", vocab.pad_id)?,
        unk: unk.or_else(first_unknown),
    })
}

/// The map from pieces to ids; takes the pieces.
pub(super) fn id_map(tokens: Vec<String>) -> Result<AHashMap<String, u32>> {
    let mut map = AHashMap::with_capacity(tokens.len());
    for (id, token) in (0u32..).zip(tokens) {
        if token.is_empty() {
            continue;
        }
        match map.entry(token) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(id);
            }
            std::collections::hash_map::Entry::Occupied(entry) => {
                return Err(vocabulary(format!(
                    "token {:?} has two ids, {} and {id}",
                    entry.key(),
                    entry.get()
                )));
            }
        }
    }
    Ok(map)
}

fn byte_level(vocab: &mut GgufVocab) -> Result<tokenizers::Tokenizer> {
    let rules = pre::named(vocab.pre.as_deref())?;
    let ids = id_map(std::mem::take(&mut vocab.tokens))?;
    let merges = merges(std::mem::take(&mut vocab.merges), &ids)?;
    let bpe = BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(rules.ignore_merges)
        .build()
        .map_err(|error| vocabulary(error.to_string()))?;
    let mut model = ModelWrapper::from(bpe);
    bound_cache(&mut model);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(rules.normalizer).map_err(|error| vocabulary(error.to_string()))?;
    tokenizer.with_pre_tokenizer(Some(rules.pre_tokenizer));
    tokenizer.with_decoder(Some(DecoderWrapper::from(ByteLevel::new(false, false, false))));
    Ok(tokenizer)
}

/// Splits the rules and checks that what they name exists, which the model's builder relies on.
fn merges(rules: Vec<String>, ids: &AHashMap<String, u32>) -> Result<Merges> {
    let mut whole = String::new();
    let mut pairs = Vec::with_capacity(rules.len());
    for (rank, rule) in rules.into_iter().enumerate() {
        // A piece may itself start with a space; it cannot contain one further on.
        let cut = rule.char_indices().skip(1).find(|(_, character)| *character == ' ').map(|(at, _)| at);
        let Some((left, right)) = cut.map(|cut| (&rule[..cut], &rule[cut + 1..])) else {
            return Err(vocabulary(format!("merge rule {rank} ({rule:?}) is not two tokens")));
        };
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        if let Some(token) = [left, right, &whole].into_iter().find(|token| !ids.contains_key(*token)) {
            let (token, rule) = (token.to_owned(), rule.clone());
            return Err(TextError::UnknownMergeToken { rank, token, rule });
        }
        pairs.push((left.to_owned(), right.to_owned()));
    }
    Ok(pairs)
}
