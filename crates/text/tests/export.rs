//! Tokenizers in the other format: the same ids for the same text, or refused by name.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::{byte_level_vocab, gguf_vocab, sentencepiece_vocab, variable};
use wardrobe_text::{GgufVocab, NamedTemplate, TextError, Tokenizer, TokenizerConfig};

/// By way of a `tokenizer.json` and its configuration.
fn through_json(tokenizer: &Tokenizer) -> (Tokenizer, Vec<u8>, TokenizerConfig) {
    let json = tokenizer.to_tokenizer_json().unwrap();
    let named = |name: &str, source: &str| NamedTemplate { name: name.to_owned(), source: source.to_owned() };
    let both = [named("default", "{{ messages }}"), named("tool_use", "{{ tools }}")];
    let config = tokenizer.to_tokenizer_config(1024, &both).to_string();
    let config = TokenizerConfig::from_json(config.as_bytes()).unwrap();
    assert_eq!(config.chat_template(true), Some("{{ tools }}"));
    let config = tokenizer.to_tokenizer_config(1024, &both[..1]);
    assert_eq!(config["chat_template"], "{{ messages }}");
    let config = TokenizerConfig::from_json(config.to_string().as_bytes()).unwrap();
    assert_eq!(config.chat_template(false), Some("{{ messages }}"));
    (Tokenizer::from_tokenizer_json(&json, Some(&config)).unwrap(), json, config)
}

fn assert_same(a: &Tokenizer, b: &Tokenizer, text: &str) {
    for special in [false, true] {
        assert_eq!(a.encode(text, special).unwrap(), b.encode(text, special).unwrap(), "{text:?}");
    }
    let ids = a.encode_ordinary(text).unwrap();
    assert_eq!(ids, b.encode_ordinary(text).unwrap(), "{text:?}");
    assert_eq!(a.decode(&ids, true).unwrap(), b.decode(&ids, true).unwrap());
}

fn assert_same_tokens(a: &Tokenizer, b: &Tokenizer) {
    assert!(a.tokens().eq(b.tokens()));
    assert!(a.tokens().all(|(id, _)| a.is_special(id) == b.is_special(id)));
    assert_eq!((a.bos(), a.eos(), a.unk()), (b.bos(), b.eos(), b.unk()));
    assert_eq!(a.surrounding(), b.surrounding());
}

const TEXTS: [&str; 6] = [
    "",
    " hello and the\u{e9} 12",
    "<|start|>hello<tool><|end|>",
    "a\n\n  b\tc",
    "12345 x",
    "<s>the the</s>",
];

#[test]
fn a_byte_level_vocabulary_goes_there_and_back() {
    for (pre, add) in [("smollm", true), ("gpt-2", false), ("llama-bpe", true), ("qwen2", false)] {
        let vocab =
            GgufVocab { pre: Some(pre.into()), add_bos: Some(add), add_eos: Some(add), ..byte_level_vocab() };
        let rows = vocab.tokens.len() + 3;
        let first = Tokenizer::from_gguf(vocab.clone()).unwrap();
        let (second, json, config) = through_json(&first);
        assert_same_tokens(&first, &second);
        let back = GgufVocab::from_tokenizer_json(&json, Some(&config), rows).unwrap();
        assert_eq!(back.pre.as_deref(), Some(pre));
        assert_eq!(back.tokens[..rows - 3], vocab.tokens);
        assert_eq!(back.tokens[rows - 1], format!("[PAD{}]", rows - 1));
        assert_eq!((&back.token_types[..rows - 3], back.token_types[rows - 1]), (&vocab.token_types[..], 5));
        assert_eq!((&back.merges, back.add_bos), (&vocab.merges, Some(add)));
        let third = Tokenizer::from_gguf(back).unwrap();
        for text in TEXTS {
            assert_same(&first, &second, text);
            assert_same(&first, &third, text);
        }
    }
}

#[test]
fn a_sentencepiece_vocabulary_becomes_a_tokenizer_json_only() {
    for prefix in [true, false] {
        let vocab = GgufVocab { add_space_prefix: Some(prefix), ..sentencepiece_vocab() };
        let rows = vocab.tokens.len();
        let first = Tokenizer::from_gguf(vocab).unwrap();
        let (second, json, config) = through_json(&first);
        assert_same_tokens(&first, &second);
        for text in TEXTS {
            assert_same(&first, &second, text);
        }
        let error = GgufVocab::from_tokenizer_json(&json, Some(&config), rows).unwrap_err();
        assert!(error.to_string().contains("not byte-level"), "{error}");
    }
}

#[test]
fn what_a_gguf_file_cannot_say_is_refused() {
    let first = Tokenizer::from_gguf(byte_level_vocab()).unwrap();
    let json: Value = serde_json::from_slice(&first.to_tokenizer_json().unwrap()).unwrap();
    let rows = first.vocab_size();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        change(&mut json);
        GgufVocab::from_tokenizer_json(json.to_string().as_bytes(), None, rows).unwrap_err()
    };
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    for pre_tokenizer in [
        json!({ "type": "Sequence", "pretokenizers": [split("[a-z]"), { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }] }),
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        Value::Null,
    ] {
        let error = refused(&|json| json["pre_tokenizer"] = pre_tokenizer.clone());
        assert!(matches!(error, TextError::UnknownPreTokenizer { .. }), "{error}");
    }
    let error = refused(&|json| json["normalizer"] = json!({ "type": "Lowercase" }));
    assert!(error.to_string().contains("normalizer"), "{error}");
    let error = GgufVocab::from_tokenizer_json(json.to_string().as_bytes(), None, rows - 1).unwrap_err();
    assert!(error.to_string().contains("rows"), "{error}");
}

proptest! {
    #[test]
    fn any_text_has_the_same_ids(text in "\\PC{0,40}|[ a-z0-9<|>\\n]{0,40}") {
        for vocab in [byte_level_vocab(), sentencepiece_vocab()] {
            let first = Tokenizer::from_gguf(vocab).unwrap();
            let second = through_json(&first).0;
            assert_same(&first, &second, &text);
        }
    }
}

#[test]
fn the_real_vocabulary_goes_there_and_back() {
    let Some(path) = variable("the_real_vocabulary_goes_there_and_back", "WARDROBE_SMOLLM2") else { return };
    let (vocab, _) = gguf_vocab(&path);
    let first = Tokenizer::from_gguf(vocab.clone()).unwrap();
    let (second, json, config) = through_json(&first);
    assert_same_tokens(&first, &second);
    let back = GgufVocab::from_tokenizer_json(&json, Some(&config), vocab.tokens.len()).unwrap();
    assert_eq!((&back.tokens, &back.merges, &back.pre), (&vocab.tokens, &vocab.merges, &vocab.pre));
    assert_eq!(back.token_types, vocab.token_types);
    let third = Tokenizer::from_gguf(back).unwrap();
    for text in [
        "Größere Städte haben 12345 Straßen, don't\n\n  東京<|im_start|>user\nx<|im_end|>",
        " \t def f(x):\n    return x",
    ] {
        assert_same(&first, &second, text);
        assert_same(&first, &third, text);
    }
}
