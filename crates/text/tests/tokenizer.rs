//! The tokenizer: round trips, special tokens, limits, and vocabularies that lie.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::{byte_character, byte_level_vocab, gguf_vocab, sentencepiece_vocab, variable};
use wardrobe_text::{
    EncodeOptions, GgufVocab, MAX_PIECE_BYTES, TextError, TokenId, Tokenizer, TokenizerConfig,
    supported_pre_tokenizers,
};

fn byte_level() -> Tokenizer {
    Tokenizer::from_gguf(byte_level_vocab()).unwrap()
}

fn sentencepiece() -> Tokenizer {
    Tokenizer::from_gguf(sentencepiece_vocab()).unwrap()
}

fn pieces(tokenizer: &Tokenizer, ids: &[TokenId]) -> Vec<String> {
    ids.iter().map(|id| tokenizer.token_str(*id).unwrap().into_owned()).collect()
}

#[test]
fn byte_level_words_and_merges() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("hello and the\u{e9} 12", false).unwrap();
    // Digits stand alone in this pre-tokenizer, so the rule for "12" never applies.
    assert_eq!(pieces(&tokenizer, &ids), ["hello", " and", " the", "\u{e9}", " ", "1", "2"]);
    let gpt2 = GgufVocab { pre: Some("gpt-2".into()), ..byte_level_vocab() };
    let gpt2 = Tokenizer::from_gguf(gpt2).unwrap();
    let ids = gpt2.encode("hello and the\u{e9} 12", false).unwrap();
    assert_eq!(pieces(&gpt2, &ids), ["hello", " and", " the", "\u{e9}", " ", "12"]);
}

#[test]
fn special_tokens_parse_or_are_text() {
    let tokenizer = byte_level();
    let text = "<|start|>hello<tool><|end|>";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(ids, [TokenId(0), tokenizer.token_to_id("hello").unwrap(), TokenId(2), TokenId(1)]);
    assert!(tokenizer.is_special(TokenId(0)) && !tokenizer.is_special(TokenId(2)));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello<tool>");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    let ordinary = tokenizer.encode_ordinary(text).unwrap();
    assert!(ordinary.iter().all(|id| !tokenizer.is_special(*id)), "{ordinary:?}");
    assert_eq!(tokenizer.decode(&ordinary, true).unwrap(), text);
}

#[test]
fn surrounding_tokens() {
    let vocab = GgufVocab { add_bos: Some(true), add_eos: Some(true), ..byte_level_vocab() };
    let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
    assert_eq!(tokenizer.encode("", true).unwrap(), [TokenId(0), TokenId(1)]);
    assert_eq!(tokenizer.encode("", false).unwrap(), []);
    assert_eq!(tokenizer.surrounding(), (&[TokenId(0)][..], &[TokenId(1)][..]));
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(TokenId(0)), Some(TokenId(1))));
    // SentencePiece vocabularies start a text by default, byte-level ones do not.
    assert_eq!(sentencepiece().encode("t", true).unwrap()[0], TokenId(1));
    assert_eq!(byte_level().encode("t", true).unwrap().len(), 1);
}

#[test]
fn sentencepiece_spaces_and_bytes() {
    let tokenizer = sentencepiece();
    let ids = tokenizer.encode("the and  hello\u{20ac}", false).unwrap();
    assert_eq!(pieces(&tokenizer, &ids), [" the", " and", "  ", "hello", "\u{fffd}", "\u{fffd}", "\u{fffd}"]);
    assert_eq!(tokenizer.token_bytes(ids[4]), Some(&[0xe2][..]));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the and  hello\u{20ac}");
    // Only the space before the first word is not text.
    assert_eq!(tokenizer.decode(&ids[1..], true).unwrap(), "and  hello\u{20ac}");
    let plain = GgufVocab { add_space_prefix: Some(false), ..sentencepiece_vocab() };
    let plain = Tokenizer::from_gguf(plain).unwrap();
    let ids = plain.encode(" the", false).unwrap();
    assert_eq!(pieces(&plain, &ids), [" the"]);
    assert_eq!(plain.decode(&ids, true).unwrap(), " the");
}

#[test]
fn ids_and_pieces_agree() {
    for tokenizer in [byte_level(), sentencepiece()] {
        for (id, bytes) in tokenizer.tokens() {
            assert_eq!(tokenizer.token_bytes(id), Some(bytes));
            assert_eq!(tokenizer.token_str(id).unwrap(), String::from_utf8_lossy(bytes));
        }
        assert_eq!(tokenizer.tokens().count(), tokenizer.vocab_size());
        let beyond = TokenId(tokenizer.vocab_size() as u32);
        assert_eq!((tokenizer.token_bytes(beyond), tokenizer.is_special(beyond)), (None, false));
        assert!(
            matches!(tokenizer.decode(&[beyond], true), Err(TextError::UnknownToken { id, .. }) if id == beyond)
        );
    }
}

#[test]
fn limits_on_texts() {
    let tokenizer = byte_level();
    let options = EncodeOptions { max_text_bytes: 4, ..EncodeOptions::default() };
    assert!(tokenizer.encode_with("abcd", &options).is_ok());
    assert!(matches!(
        tokenizer.encode_with("abcde", &options),
        Err(TextError::TextTooLong { actual_bytes: 5, limit_bytes: 4 })
    ));
    let options = EncodeOptions { max_tokens: Some(3), ..EncodeOptions::default() };
    assert_eq!(tokenizer.encode_with("xyz", &options).unwrap().len(), 3);
    assert!(matches!(
        tokenizer.encode_with("xyzx", &options),
        Err(TextError::TooManyTokens { limit_tokens: 3 })
    ));
    // Refused after the first part, long before the whole text is encoded.
    let long = "word ".repeat(800_000);
    let start = std::time::Instant::now();
    assert!(matches!(tokenizer.encode_with(&long, &options), Err(TextError::TooManyTokens { .. })));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn parts_do_not_change_the_ids() {
    // Long enough to be cut many times; a tokenizer whose special token has a space is never cut.
    let text = "the hello and  the \u{e9}t\u{e9} then 12 a\nb <tool> c <|end|> and\n\nthe hello 日本、東京。ab\n 語。\n".repeat(3000);
    assert!(text.len() > 4 * 32 * 1024);
    for vocab in [
        byte_level_vocab(),
        sentencepiece_vocab(),
        GgufVocab { add_space_prefix: Some(false), ..sentencepiece_vocab() },
    ] {
        let mut uncut = vocab.clone();
        uncut.tokens.push("never seen".into());
        uncut.token_types.push(4);
        if let Some(scores) = &mut uncut.scores {
            scores.push(0.0);
        }
        let cut = Tokenizer::from_gguf(vocab).unwrap().encode(&text, false).unwrap();
        let whole = Tokenizer::from_gguf(uncut).unwrap().encode(&text, false).unwrap();
        assert!(cut == whole, "ids differ");
    }
}

#[test]
fn long_runs_take_linear_time() {
    let start = std::time::Instant::now();
    for tokenizer in [byte_level(), sentencepiece()] {
        for unit in [" ", "a", "\n", "\u{4e00}", "1", "'", "hello", "<|start|", "e\u{301}"] {
            let text = unit.repeat(150_000 / unit.len());
            let ids = tokenizer.encode(&text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{unit:?}");
        }
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn unknown_kinds_are_named() {
    let vocab = GgufVocab { pre: Some("jabberwocky".into()), ..byte_level_vocab() };
    let error = Tokenizer::from_gguf(vocab).unwrap_err();
    assert!(matches!(&error, TextError::UnknownPreTokenizer { pre, .. } if pre == "jabberwocky"));
    assert!(error.to_string().contains("jabberwocky") && error.to_string().contains("smollm"));
    let missing = Tokenizer::from_gguf(GgufVocab { pre: None, ..byte_level_vocab() });
    assert!(matches!(missing, Err(TextError::UnknownPreTokenizer { .. })));
    let model = Tokenizer::from_gguf(GgufVocab { model: "bert".into(), ..byte_level_vocab() });
    assert!(matches!(model, Err(TextError::UnknownTokenizerModel { model }) if model == "bert"));
    for pre in supported_pre_tokenizers() {
        let vocab = GgufVocab { pre: Some(pre.into()), ..byte_level_vocab() };
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        let text = "It's 12345 h\u{e9}llo!\n\n  World_\u{4e00}\u{4e8c} \u{1f600}";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{pre}");
    }
}

#[test]
fn lying_vocabularies_are_refused() {
    type Change = fn(&mut GgufVocab);
    let changes: &[(&str, Change)] = &[
        ("no tokens", |v| v.tokens.clear()),
        ("two ids", |v| v.tokens[9] = v.tokens[8].clone()),
        ("token types for", |v| v.token_types.truncate(7)),
        ("scores for", |v| v.scores = Some(vec![1.0])),
        ("unknown type 9", |v| v.token_types[5] = 9),
        ("unknown type -1", |v| v.token_types[5] = -1),
        ("longer than", |v| v.tokens[5] = "x".repeat(MAX_PIECE_BYTES + 1)),
        ("bos token id", |v| v.bos_id = Some(u32::MAX)),
        ("eos token id", |v| v.eos_id = Some(v.tokens.len() as u32)),
        ("padding token id", |v| v.pad_id = Some(1 << 20)),
        ("there is no bos token", |v| (v.bos_id, v.add_bos) = (None, Some(true))),
        ("\"zz\" is not in the vocabulary", |v| v.merges.push("zz a".into())),
        ("\"aq\" is not in the vocabulary", |v| v.merges.push("a q".into())),
        ("is not two tokens", |v| v.merges.push("a".into())),
        ("is not two tokens", |v| v.merges.push(String::new())),
        ("is not in the vocabulary", |v| v.merges.push("a ".into())),
        ("is not in the vocabulary", |v| v.merges.push("  ".into())),
        // The two longest tokens together are longer than any token.
        ("is not in the vocabulary", |v| v.merges.push("hello <|start|>".into())),
    ];
    for (expected, change) in changes {
        let mut vocab = byte_level_vocab();
        change(&mut vocab);
        let error = Tokenizer::from_gguf(vocab).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} / {expected}");
    }
    let no_scores = Tokenizer::from_gguf(GgufVocab { scores: None, ..sentencepiece_vocab() });
    assert!(no_scores.unwrap_err().to_string().contains("needs scores"));
    let mut nan = sentencepiece_vocab();
    nan.scores.as_mut().unwrap()[300 - 40] = f32::NAN;
    assert!(Tokenizer::from_gguf(nan).unwrap_err().to_string().contains("not a number"));
}

#[test]
fn an_empty_piece_is_no_token() {
    let mut vocab = byte_level_vocab();
    vocab.tokens.push(String::new());
    vocab.tokens.push(String::new());
    vocab.token_types.extend([1, 5]);
    let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
    let hole = TokenId(tokenizer.vocab_size() as u32 - 1);
    assert_eq!(tokenizer.token_bytes(hole), None);
}

/// The file that a byte-level vocabulary has in Hugging Face's format.
fn tokenizer_json(vocab: &GgufVocab) -> Value {
    let ids: serde_json::Map<String, Value> =
        vocab.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let merges: Vec<Value> =
        vocab.merges.iter().map(|rule| rule.split(' ').collect::<Vec<_>>().into()).collect();
    let added = |id: usize| {
        json!({"id": id, "content": vocab.tokens[id], "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": vocab.token_types[id] == 3})
    };
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [added(0), added(1), added(2)], "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|start|>": {"id": "<|start|>", "ids": [0], "tokens": ["<|start|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges}
    })
}

fn from_json(file: &Value) -> Result<Tokenizer, TextError> {
    Tokenizer::from_tokenizer_json(&serde_json::to_vec(file).unwrap(), None)
}

#[test]
fn json_and_gguf_give_the_same_ids() {
    let file = tokenizer_json(&byte_level_vocab());
    let (json, gguf) = (from_json(&file).unwrap(), byte_level());
    for text in ["hello and the 12 \u{e9}\u{4e00}", "<|start|>a<tool>b", "  \n x", &"the hello ".repeat(9000)]
    {
        assert_eq!(json.encode(text, false).unwrap(), gguf.encode(text, false).unwrap());
        let ids = json.encode_ordinary(text).unwrap();
        assert_eq!(ids, gguf.encode_ordinary(text).unwrap());
        assert_eq!(json.decode(&ids, true).unwrap(), text);
    }
    assert_eq!(json.vocab_size(), gguf.vocab_size());
    // The post-processor's token, unless tokenizer_config.json says otherwise; truncation never.
    assert_eq!(json.encode("x", true).unwrap()[0], TokenId(0));
    let config = br#"{"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "[PAD]", "add_bos_token": false, "add_eos_token": true}"#;
    let config = TokenizerConfig::from_json(config).unwrap();
    let json = Tokenizer::from_tokenizer_json(&serde_json::to_vec(&file).unwrap(), Some(&config)).unwrap();
    assert_eq!(json.encode("", true).unwrap(), [TokenId(1)]);
    assert_eq!((json.bos(), json.eos(), json.pad()), (Some(TokenId(0)), Some(TokenId(1)), None));
    let wrong = TokenizerConfig::from_json(br#"{"eos_token": "<nowhere>"}"#).unwrap();
    let wrong = Tokenizer::from_tokenizer_json(&serde_json::to_vec(&file).unwrap(), Some(&wrong));
    assert!(matches!(wrong, Err(TextError::TokenizerConfig { message }) if message.contains("<nowhere>")));
}

#[test]
fn lying_tokenizer_json_is_refused() {
    let good = tokenizer_json(&byte_level_vocab());
    let set = |pointer: &str, value: Value| {
        let mut file = good.clone();
        *file.pointer_mut(pointer).unwrap() = value;
        file
    };
    let cases = [
        ("is not in the vocabulary", set("/model/merges", json!([["hello", "hello"]]))),
        ("is not in the vocabulary", set("/model/merges", json!(["zz a"]))),
        ("is not two tokens", set("/model/merges", json!(["a b c"]))),
        ("tokenizer.json", set("/model/merges", json!([["a", "b", "c"]]))),
        ("stands for two tokens", set("/model/vocab/hello", json!(5))),
        ("over the limit", set("/model/vocab/hello", json!(u32::MAX))),
        ("tokenizer.json", set("/model/vocab/hello", json!(-1))),
        ("WordPiece", set("/model/type", json!("WordPiece"))),
        ("not supported", set("/model/continuing_subword_prefix", json!("##"))),
        ("no decoder", set("/decoder", Value::Null)),
        ("not supported", set("/decoder/type", json!("CTC"))),
        ("stands for two tokens", set("/added_tokens/0/id", json!(7))),
        ("over the limit", set("/added_tokens/0/id", json!(4_000_000_000u32))),
        (
            "tokenizer.json",
            set(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
        ),
        ("tokenizer.json", json!([])),
        ("tokenizer.json", json!({"model": {}})),
    ];
    for (expected, file) in cases {
        let error = from_json(&file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} / {expected}");
    }
    for bytes in [&b""[..], b"{", b"\xff", b"null"] {
        assert!(Tokenizer::from_tokenizer_json(bytes, None).is_err());
    }
}

#[test]
fn threads_share_a_tokenizer() {
    let tokenizer = byte_level();
    let expected = tokenizer.encode("the hello and 12", false).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(tokenizer.encode("the hello and 12", false).unwrap(), expected);
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_text_comes_back(text in "\\PC{0,40}|[a-z \\n<>|'0-9é\u{2581}]{0,60}") {
        let tokenizer = byte_level();
        for ids in [tokenizer.encode(&text, false).unwrap(), tokenizer.encode_ordinary(&text).unwrap()] {
            prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.clone());
        }
    }
}

#[test]
fn smollm2() {
    let Some(path) = variable("smollm2", "WARDROBE_SMOLLM2") else { return };
    let tokenizer = Tokenizer::from_gguf(gguf_vocab(&path).0).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!(tokenizer.eos().and_then(|id| tokenizer.token_str(id)).as_deref(), Some("<|im_end|>"));
    let text = "<|im_start|>user\nHello, world!<|im_end|>\n";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids[0], TokenId(1));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "user\nHello, world!\n");
    assert_eq!(
        tokenizer.token_to_id(&format!("{}the", byte_character(b' '))).map(|id| tokenizer.token_bytes(id)),
        Some(Some(&b" the"[..]))
    );
}
