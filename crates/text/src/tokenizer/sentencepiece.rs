//! SentencePiece vocabularies: byte-pair encoding that merges by score instead of by a list of rules.
//!
//! SentencePiece merges the adjacent pair whose union has the highest score, the leftmost of equals. As rules this
//! is every split of every piece into two others, ordered by the score of the union.

use super::chunk::Cutting;
use super::gguf::{GgufVocab, TokenKind, id_map};
use super::{MAX_MERGES, bound_cache, vocabulary};
use crate::Result;
use ahash::AHashMap;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, Sequence};

const SPACE: &str = "\u{2581}";

/// A text may be cut before a space if no piece goes on after a space inside it.
pub(super) fn cutting(tokens: &[String], kinds: &[TokenKind], space_prefix: bool) -> Cutting {
    let crosses = |token: &String| token.trim_start_matches(SPACE).contains(SPACE);
    let normal = tokens.iter().zip(kinds).filter(|(_, kind)| **kind == TokenKind::Normal);
    match (normal.map(|(token, _)| token).any(crosses), space_prefix) {
        (true, _) => Cutting::Never,
        (false, true) => Cutting::DropSpace,
        (false, false) => Cutting::BeforeSpace,
    }
}

pub(super) fn build(
    vocab: &mut GgufVocab,
    kinds: &[TokenKind],
    space_prefix: bool,
) -> Result<tokenizers::Tokenizer> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| vocabulary(error.to_string());
    let scores = vocab
        .scores
        .take()
        .ok_or_else(|| vocabulary("a SentencePiece vocabulary needs scores".to_owned()))?;
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(vocabulary(format!("the score of token {id} is not a number")));
    }
    let unknown = kinds.iter().position(|kind| *kind == TokenKind::Unknown);
    let unknown = unknown.and_then(|id| vocab.tokens.get(id)).cloned();
    let bytes = kinds.iter().filter(|kind| **kind == TokenKind::Byte).count();
    let ids = id_map(std::mem::take(&mut vocab.tokens))?;
    let merges = merges(&ids, kinds, &scores)?;
    let mut builder = BPE::builder().vocab_and_merges(ids, merges).fuse_unk(true).byte_fallback(bytes > 0);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown);
    }
    let mut model = ModelWrapper::from(builder.build().map_err(failed)?);
    bound_cache(&mut model);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let spaces = Replace::new(" ", SPACE).map_err(failed)?;
    let normalizer: NormalizerWrapper = if space_prefix {
        Sequence::new(vec![Prepend::new(SPACE.to_owned()).into(), spaces.into()]).into()
    } else {
        spaces.into()
    };
    tokenizer.with_normalizer(Some(normalizer)).map_err(failed)?;
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ").map_err(failed)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if space_prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer
        .with_decoder(Some(DecoderWrapper::from(tokenizers::decoders::sequence::Sequence::new(decoders))));
    Ok(tokenizer)
}

/// One way to make a piece.
struct Rule<'v> {
    score: f32,
    id: u32,
    left: &'v str,
    right: &'v str,
}

/// The rules, in the order in which they apply.
fn merges(ids: &AHashMap<String, u32>, kinds: &[TokenKind], scores: &[f32]) -> Result<Merges> {
    let normal =
        |token: &str| ids.get(token).is_some_and(|id| kinds.get(*id as usize) == Some(&TokenKind::Normal));
    let mut rules = Vec::new();
    for (token, &id) in ids.iter().filter(|(token, _)| normal(token)) {
        let score = scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if normal(left) && normal(right) {
                rules.push(Rule { score, id, left, right });
            }
        }
        if rules.len() > MAX_MERGES {
            return Err(vocabulary(format!("the pieces give over {MAX_MERGES} merge rules")));
        }
    }
    // Equal scores: the order of ids, then the longer left part, so that the order is always the same.
    rules.sort_unstable_by(|a, b| {
        b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)).then(b.left.len().cmp(&a.left.len()))
    });
    Ok(rules.into_iter().map(|rule| (rule.left.to_owned(), rule.right.to_owned())).collect())
}
