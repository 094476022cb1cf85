//! A tokenizer in the other format than it came in: a GGUF vocabulary as `tokenizer.json`, and back.
//!
//! Invariant: who reads the result gets the same ids for the same text, or the way is refused by name.
//! Not done here: SentencePiece vocabularies from a `tokenizer.json`, which no longer has their scores.

use super::gguf::GgufVocab;
use super::json::{kind, steps};
use super::pre::{self, GPT2, GivenCut};
use super::{MAX_VOCAB_TOKENS, NamedTemplate, Tokenizer, TokenizerConfig, vocabulary};
use crate::{Result, TextError, TokenId};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Types of tokens in a GGUF file.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

impl Tokenizer {
    /// The tokenizer as the bytes of a `tokenizer.json`, with the tokens that it puts around a text.
    ///
    /// # Errors
    /// [`TextError::Vocabulary`] if it cannot be written as one.
    pub fn to_tokenizer_json(&self) -> Result<Vec<u8>> {
        let failed = |error: &dyn std::fmt::Display| vocabulary(format!("as a tokenizer.json: {error}"));
        let tokenizer = &self.inner.tokenizer;
        let mut file = serde_json::to_value(tokenizer).map_err(|e| failed(&e))?;
        let (before, after) = self.surrounding();
        if tokenizer.get_post_processor().is_none()
            && !(before.is_empty() && after.is_empty())
            && let Value::Object(parts) = &mut file
        {
            parts.insert("post_processor".to_owned(), self.template(before, after)?);
        }
        serde_json::to_vec(&file).map_err(|e| failed(&e))
    }

    /// The post-processor that puts these tokens around every text.
    fn template(&self, before: &[TokenId], after: &[TokenId]) -> Result<Value> {
        let spelled = |id: &TokenId| match self.inner.tokenizer.id_to_token(id.0) {
            Some(token) => Ok(token),
            None => Err(vocabulary(format!("token {id} has no spelling"))),
        };
        let mut special_tokens = serde_json::Map::new();
        for id in before.iter().chain(after) {
            let token = spelled(id)?;
            special_tokens.insert(token.clone(), json!({ "id": token, "ids": [id.0], "tokens": [token] }));
        }
        let around = |sequence: &str, type_id: u32| -> Result<Vec<Value>> {
            let special =
                |id: &TokenId| Ok(json!({ "SpecialToken": { "id": spelled(id)?, "type_id": type_id } }));
            let text = json!({ "Sequence": { "id": sequence, "type_id": type_id } });
            let (before, after) = (before.iter().map(special), after.iter().map(special));
            before.chain([Ok(text)]).chain(after).collect()
        };
        let mut pair = around("A", 0)?;
        pair.extend(around("B", 1)?);
        Ok(json!({
            "type": "TemplateProcessing",
            "single": around("A", 0)?,
            "pair": pair,
            "special_tokens": special_tokens,
        }))
    }
}

impl GgufVocab {
    /// The vocabulary of a byte-level `tokenizer.json`, as a GGUF file has it. `num_tokens` is the number of the model's
    /// rows: ids without a token become unused ones.
    ///
    /// # Errors
    /// [`TextError::TokenizerJson`] for a tokenizer of another kind, or with more tokens than that;
    /// [`TextError::UnknownPreTokenizer`] if its rules have no name.
    pub fn from_tokenizer_json(
        bytes: &[u8],
        config: Option<&TokenizerConfig>,
        num_tokens: usize,
    ) -> Result<Self> {
        // Everything that is checked at reading holds from here on.
        let tokenizer = Tokenizer::from_tokenizer_json(bytes, config)?;
        let refused = |message: &str| TextError::TokenizerJson { message: message.to_owned() };
        if tokenizer.vocab_size() > num_tokens || num_tokens > MAX_VOCAB_TOKENS {
            let message = format!("{} tokens for a model of {num_tokens} rows", tokenizer.vocab_size());
            return Err(refused(&message));
        }
        let file: Value = serde_json::from_slice(bytes)
            .map_err(|error| TextError::TokenizerJson { message: error.to_string() })?;
        let part = |key: &str| file.get(key).filter(|part| !part.is_null());
        if part("decoder").is_none_or(|decoder| kind(decoder) != "ByteLevel") {
            return Err(refused(
                "it is not byte-level; as a GGUF vocabulary it would need the scores of its tokenizer.model",
            ));
        }
        let model = part("model").ok_or_else(|| refused("it has no model"))?;
        let ignore_merges = model.get("ignore_merges").and_then(Value::as_bool).unwrap_or(false);
        let normalizers = part("normalizer").map(|part| steps(part, "normalizers")).unwrap_or_default();
        let nfc = match normalizers.as_slice() {
            [] => false,
            [one] if kind(one) == "NFC" => true,
            _ => return Err(refused("its normalizer has no name in a GGUF file")),
        };
        let cuts = part("pre_tokenizer").and_then(cuts);
        let pre = cuts.and_then(|cuts| pre::name_of(&cuts, nfc, ignore_merges)).ok_or_else(|| {
            TextError::UnknownPreTokenizer {
                pre: "the rules of this tokenizer.json".to_owned(),
                known: pre::supported_pre_tokenizers().collect::<Vec<_>>().join(", "),
            }
        })?;

        let added = tokenizer.inner.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut tokens = Vec::with_capacity(num_tokens);
        let mut token_types = Vec::with_capacity(num_tokens);
        for id in 0..num_tokens as u32 {
            let spelling = tokenizer.inner.tokenizer.id_to_token(id);
            let token_type = match (&spelling, added.get(&id)) {
                (_, Some(token)) if token.special => CONTROL,
                (_, Some(_)) => USER_DEFINED,
                (Some(_), None) => NORMAL,
                (None, None) => UNUSED,
            };
            tokens.push(spelling.unwrap_or_else(|| format!("[PAD{id}]")));
            token_types.push(token_type);
        }
        let (before, after) = tokenizer.surrounding();
        let id = |token: Option<TokenId>| token.map(|id| id.0);
        // A file may leave it to the post-processor alone to say which token begins a text.
        let bos = tokenizer.bos().or(before.first().copied());
        let eos = tokenizer.eos().or(after.last().copied());
        if before.iter().any(|id| Some(*id) != bos) || after.iter().any(|id| Some(*id) != eos) {
            return Err(refused(
                "it puts other tokens around a text than one at its begin and one at its end",
            ));
        }
        Ok(Self {
            model: "gpt2".to_owned(),
            pre: Some(pre.to_owned()),
            tokens,
            scores: None,
            token_types,
            merges: merges(model)?,
            bos_id: id(bos),
            eos_id: id(eos),
            eot_id: None,
            unk_id: id(tokenizer.unk()),
            pad_id: id(tokenizer.pad()),
            add_bos: Some(!before.is_empty()),
            add_eos: Some(!after.is_empty()),
            add_space_prefix: None,
        })
    }
}

/// The rules as lines, `left right`.
fn merges(model: &Value) -> Result<Vec<String>> {
    let list = model.get("merges").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let line = |rule: &Value| match rule {
        Value::String(line) => Some(line.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] if !left.contains(' ') && !right.contains(' ') => {
                Some(format!("{left} {right}"))
            }
            _ => None,
        },
        _ => None,
    };
    list.iter()
        .filter(|rule| !rule.as_str().is_some_and(|line| line.starts_with("#version")))
        .map(|rule| line(rule).ok_or_else(|| vocabulary(format!("merge rule {rule} is not two tokens"))))
        .collect()
}

/// How a text is cut into words, if every step is of a kind that has a name.
fn cuts(pre_tokenizer: &Value) -> Option<Vec<GivenCut>> {
    let mut cuts = Vec::new();
    let all = steps(pre_tokenizer, "pretokenizers");
    let (last, before) = all.split_last()?;
    let flag = |step: &Value, key: &str| step.get(key).and_then(Value::as_bool);
    for step in before {
        cuts.push(match kind(step) {
            "Digits" if flag(step, "individual_digits") == Some(true) => GivenCut::EachDigit,
            "Split" if flag(step, "invert") == Some(false) && step.get("behavior")? == "Isolated" => {
                GivenCut::Regex(step.pointer("/pattern/Regex")?.as_str()?.to_owned())
            }
            _ => return None,
        });
    }
    // What spells bytes as characters comes last, and may cut GPT-2's words by the way.
    if kind(last) != "ByteLevel" || flag(last, "add_prefix_space") != Some(false) {
        return None;
    }
    if flag(last, "use_regex") != Some(false) {
        cuts.push(GivenCut::Regex(GPT2.to_owned()));
    }
    Some(cuts)
}

/// Texts of the tokens with a role, as a `tokenizer_config.json` has them.
fn special_texts(tokenizer: &Tokenizer) -> BTreeMap<&'static str, String> {
    let roles = [
        ("bos_token", tokenizer.bos()),
        ("eos_token", tokenizer.eos()),
        ("pad_token", tokenizer.pad()),
        ("unk_token", tokenizer.unk()),
    ];
    let spelled = |id: Option<TokenId>| tokenizer.inner.tokenizer.id_to_token(id?.0);
    roles.into_iter().filter_map(|(role, id)| Some((role, spelled(id)?))).collect()
}

impl Tokenizer {
    /// The content of the `tokenizer_config.json` beside [`Tokenizer::to_tokenizer_json`]: what transformers needs to take
    /// the file as it is, the tokens with a role, the longest text, and the chat templates: one as it is, several by name.
    pub fn to_tokenizer_config(&self, max_tokens: usize, chat_templates: &[NamedTemplate]) -> Value {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "model_max_length": max_tokens,
        });
        if let Value::Object(map) = &mut config {
            for (role, text) in special_texts(self) {
                map.insert(role.to_owned(), Value::String(text));
            }
            let named =
                |template: &NamedTemplate| json!({"name": template.name, "template": template.source});
            let value = match chat_templates {
                [] => None,
                [one] if one.name == "default" => Some(Value::String(one.source.clone())),
                several => Some(several.iter().map(named).collect()),
            };
            map.extend(value.map(|value| ("chat_template".to_owned(), value)));
        }
        config
    }
}
