//! The tokenizer of a Hugging Face `tokenizer.json`.
//!
//! The file is read twice: first here, to check what the `tokenizers` crate takes on trust, and then there.

use super::chunk::Cutting;
use super::pieces::{PieceTable, PieceTableBuilder, Spelling};
use super::{
    Inner, MAX_MERGES, MAX_PIECE_BYTES, MAX_VOCAB_TOKENS, Specials, TokenizerConfig,
    added_tokens_allow_cutting, bound_cache, leaving_specials, pre,
};
use crate::{Result, TextError, TokenId};
use ahash::AHashMap;
use serde::Deserialize;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::tokenizer::{Encoding, PostProcessor, Token};

#[derive(Deserialize)]
struct File {
    model: ModelPart,
    #[serde(default)]
    added_tokens: Vec<AddedPart>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
}

#[derive(Deserialize)]
struct ModelPart {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: AHashMap<String, u32>,
    #[serde(default)]
    merges: Vec<MergePart>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MergePart {
    Line(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct AddedPart {
    id: u32,
    content: String,
}

fn refused(message: impl Into<String>) -> TextError {
    TextError::TokenizerJson { message: message.into() }
}

pub(super) fn build(bytes: &[u8], config: Option<&TokenizerConfig>) -> Result<Inner> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| refused(error.to_string()))?;
    let ids = check(&file)?;
    let style = style(file.decoder.as_ref())?;
    let cutting = cutting(&file, style);
    drop(file);

    // What is checked above is all that is known to make the parser panic; a file that finds another way
    // must still not take the process down.
    let mut tokenizer = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(bytes)))
        .map_err(|_| refused("the parser failed on a contradiction in the file"))?
        .map_err(|error| refused(error.to_string()))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| refused(error.to_string()))?;
    let mut model = tokenizer.get_model().clone();
    bound_cache(&mut model);
    tokenizer.with_model(model);

    let pieces = pieces(&tokenizer, ids, style.spelling)?;
    let specials = specials(&tokenizer, config)?;
    let cutting = match added_tokens_allow_cutting(tokenizer.get_added_vocabulary()) {
        true => cutting,
        false => Cutting::Never,
    };
    Ok(Inner {
        ordinary: leaving_specials(&tokenizer),
        tokenizer,
        pieces,
        drops_leading_space: style.drops_leading_space,
        cutting,
        specials,
    })
}

/// Checks sizes and merge rules, and gives one more than the highest id.
fn check(file: &File) -> Result<usize> {
    let ModelPart { kind, vocab, merges, continuing_subword_prefix, end_of_word_suffix } = &file.model;
    if let Some(kind) = kind
        && kind != "BPE"
    {
        return Err(refused(format!("model type {kind:?} is not supported, only \"BPE\" is")));
    }
    if continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty())
        || end_of_word_suffix.as_ref().is_some_and(|suffix| !suffix.is_empty())
    {
        return Err(refused("continuing_subword_prefix and end_of_word_suffix are not supported"));
    }
    if merges.len() > MAX_MERGES {
        return Err(refused(format!("{} merge rules, over the limit of {MAX_MERGES}", merges.len())));
    }
    let added = file.added_tokens.iter().map(|token| (token.content.as_str(), token.id));
    let mut highest = 0;
    let mut texts: AHashMap<u32, &str> = AHashMap::with_capacity(vocab.len());
    for (token, id) in vocab.iter().map(|(token, id)| (token.as_str(), *id)).chain(added) {
        if id as usize >= MAX_VOCAB_TOKENS {
            return Err(refused(format!("token id {id}, over the limit of {MAX_VOCAB_TOKENS} tokens")));
        }
        if token.len() > MAX_PIECE_BYTES {
            return Err(refused(format!("token {id} is longer than {MAX_PIECE_BYTES} bytes")));
        }
        if let Some(other) = texts.insert(id, token)
            && other != token
        {
            return Err(refused(format!("id {id} stands for two tokens, {other:?} and {token:?}")));
        }
        highest = highest.max(id as usize + 1);
    }
    if highest == 0 {
        return Err(refused("no tokens"));
    }
    let mut whole = String::new();
    for (rank, merge) in merges.iter().enumerate() {
        let (left, right) = match merge {
            MergePart::Pair(left, right) => (left.as_str(), right.as_str()),
            MergePart::Line(line) if line.starts_with("#version") => continue,
            MergePart::Line(line) => match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => (left, right),
                _ => return Err(refused(format!("merge rule {rank} ({line:?}) is not two tokens"))),
            },
        };
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        if let Some(token) = [left, right, &whole].into_iter().find(|token| !vocab.contains_key(*token)) {
            let (rule, token) = (format!("{left} {right}"), token.to_owned());
            return Err(TextError::UnknownMergeToken { rank, rule, token });
        }
    }
    Ok(highest)
}

/// How decoding works.
#[derive(Debug, Clone, Copy)]
struct Style {
    spelling: Spelling,
    drops_leading_space: bool,
}

pub(super) fn kind(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The steps of a part that may be a sequence, under the key that it uses.
pub(super) fn steps<'v>(part: &'v Value, key: &str) -> Vec<&'v Value> {
    match (kind(part), part.get(key).and_then(Value::as_array)) {
        ("Sequence", Some(list)) => list.iter().flat_map(|step| steps(step, key)).collect(),
        _ => vec![part],
    }
}

fn style(decoder: Option<&Value>) -> Result<Style> {
    let decoder =
        decoder.filter(|decoder| !decoder.is_null()).ok_or_else(|| refused("there is no decoder"))?;
    let mut spelling = None;
    let mut drops_leading_space = false;
    for step in steps(decoder, "decoders") {
        let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| step.get(key).and_then(Value::as_u64).unwrap_or_default();
        match kind(step) {
            "ByteLevel" => spelling = Some(Spelling::ByteLevel),
            "Metaspace" if text("replacement") == "\u{2581}" => {
                spelling = Some(Spelling::SentencePiece);
                drops_leading_space = text("prepend_scheme") != "never"
                    && step.get("add_prefix_space").and_then(Value::as_bool) != Some(false);
            }
            "Replace"
                if text("content") == " "
                    && step.pointer("/pattern/String").and_then(Value::as_str) == Some("\u{2581}") =>
            {
                spelling = Some(Spelling::SentencePiece);
            }
            "Strip" if text("content") == " " && number("stop") == 0 && number("start") <= 1 => {
                drops_leading_space = number("start") == 1;
            }
            "ByteFallback" | "Fuse" => {}
            other => return Err(refused(format!("decoder step {other:?} ({step}) is not supported"))),
        }
    }
    let spelling =
        spelling.ok_or_else(|| refused("the decoder is neither byte-level nor SentencePiece's"))?;
    Ok(Style { spelling, drops_leading_space })
}

/// Whether the words of this tokenizer are known to end before a space.
fn cutting(file: &File, style: Style) -> Cutting {
    let present = |part: &Option<Value>| part.as_ref().is_some_and(|part| !part.is_null());
    let normalizers = file.normalizer.as_ref().filter(|_| present(&file.normalizer));
    let normalizers = normalizers.map(|part| steps(part, "normalizers")).unwrap_or_default();
    match style.spelling {
        Spelling::ByteLevel => {
            let Some(part) = file.pre_tokenizer.as_ref().filter(|_| present(&file.pre_tokenizer)) else {
                return Cutting::Never;
            };
            let flag = |step: &Value, key: &str| step.get(key).and_then(Value::as_bool);
            let mut ends_words = false;
            for step in steps(part, "pretokenizers") {
                match kind(step) {
                    "ByteLevel" if flag(step, "add_prefix_space") == Some(false) => {
                        ends_words |= flag(step, "use_regex") != Some(false);
                    }
                    "Digits" => {}
                    "Split" => {
                        let isolated = step.get("behavior").and_then(Value::as_str) == Some("Isolated")
                            && flag(step, "invert") == Some(false);
                        let expression = step.pointer("/pattern/Regex").and_then(Value::as_str);
                        if !isolated || !expression.is_some_and(pre::ends_words_at_spaces) {
                            return Cutting::Never;
                        }
                        ends_words = true;
                    }
                    _ => return Cutting::Never,
                }
            }
            let composes = normalizers.iter().all(|step| kind(step) == "NFC");
            if ends_words && composes { Cutting::Words } else { Cutting::Never }
        }
        Spelling::SentencePiece => {
            let crosses = |token: &String| token.trim_start_matches('\u{2581}').contains('\u{2581}');
            if present(&file.pre_tokenizer) || file.model.vocab.keys().any(crosses) {
                return Cutting::Never;
            }
            let names: Vec<&str> = normalizers.iter().map(|step| kind(step)).collect();
            let replaces = normalizers.last().is_some_and(|step| {
                step.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
                    && step.get("content").and_then(Value::as_str) == Some("\u{2581}")
            });
            match names.as_slice() {
                ["Prepend", "Replace"] if replaces => Cutting::DropSpace,
                ["Replace"] if replaces => Cutting::BeforeSpace,
                _ => Cutting::Never,
            }
        }
    }
}

fn pieces(tokenizer: &tokenizers::Tokenizer, ids: usize, spelling: Spelling) -> Result<PieceTable> {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    // The crate gives an added token its own id when the file's is taken, so the highest may be higher.
    let ids = added.keys().map(|id| *id as usize + 1).max().unwrap_or(0).max(ids);
    let mut table = PieceTableBuilder::with_capacity(ids);
    for id in 0..ids as u32 {
        match (added.get(&id), tokenizer.id_to_token(id)) {
            (Some(token), _) => table.push_added(&token.content, spelling, token.special)?,
            (None, Some(token)) => table.push_piece(&token, spelling)?,
            (None, None) => table.push_hole(),
        }
    }
    Ok(table.build())
}

fn specials(tokenizer: &tokenizers::Tokenizer, config: Option<&TokenizerConfig>) -> Result<Specials> {
    let (mut before, mut after) = surrounding(tokenizer)?;
    let Some(config) = config else { return Ok(Specials { before, after, ..Specials::default() }) };
    let id = |role: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => match tokenizer.token_to_id(text) {
            Some(id) => Ok(Some(TokenId(id))),
            None => Err(TextError::TokenizerConfig {
                message: format!("{role} {text:?} is not in the vocabulary"),
            }),
        },
    };
    let bos = id("bos_token", &config.bos_token)?;
    let eos = id("eos_token", &config.eos_token)?;
    if let (Some(wanted), Some(bos)) = (config.add_bos_token, bos) {
        before.retain(|id| *id != bos);
        if wanted {
            before.insert(0, bos);
        }
    }
    if let (Some(wanted), Some(eos)) = (config.add_eos_token, eos) {
        after.retain(|id| *id != eos);
        if wanted {
            after.push(eos);
        }
    }
    Ok(Specials {
        bos,
        eos,
        eot: None,
        // These two are never put into a text, so one that the vocabulary lacks does no harm.
        pad: id("pad_token", &config.pad_token).unwrap_or_default(),
        unk: id("unk_token", &config.unk_token).unwrap_or_default(),
        before,
        after,
    })
}

/// What the file's post-processor puts around a text.
fn surrounding(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<TokenId>, Vec<TokenId>)> {
    let Some(processor) = tokenizer.get_post_processor() else { return Ok((Vec::new(), Vec::new())) };
    let text = Encoding::from_tokens(vec![Token::new(u32::MAX, String::new(), (0, 0))], 0);
    let whole = processor.process(text, None, true).map_err(|error| refused(error.to_string()))?;
    let mut sides = whole.get_ids().split(|id| *id == u32::MAX);
    let mut side = || sides.next().unwrap_or_default().iter().copied().map(TokenId).collect();
    Ok((side(), side()))
}
