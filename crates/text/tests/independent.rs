//! Our token ids against those of tokenizers that are not ours.
//!
//! `WARDROBE_PYTHON`: a Python with the packages that `independent_tokenizer.py` names. `WARDROBE_SMOLLM2`: the GGUF file
//! of SmolLM2. Without them, or without one of these packages, the tests that need it say that they were skipped.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::Value;
use std::process::{Command, Stdio};
use support::{gguf_vocab, variable};
use wardrobe_text::{DetokenizeOptions, DetokenizeStream, GgufVocab, TokenId, Tokenizer};

const STRINGS: usize = 10_000;

fn reference(python: &str, kind: &str, argument: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent_tokenizer.py");
    let output = Command::new(python)
        .args([script, kind, argument, &STRINGS.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A Python that has these modules.
fn python(test: &str, modules: &str) -> Option<String> {
    let python = variable(test, "WARDROBE_PYTHON")?;
    let import = ["-c", &format!("import {modules}")];
    let found = Command::new(&python).args(import).stderr(Stdio::null()).status().unwrap().success();
    if !found {
        eprintln!("SKIPPED {test}: {python} lacks one of: {modules}");
    }
    found.then_some(python)
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

fn compare(tokenizer: &Tokenizer, reference: &Value) {
    let strings = reference["strings"].as_array().unwrap();
    assert_eq!(strings.len(), STRINGS);
    let mut wrong = Vec::new();
    for (string, expected) in strings.iter().zip(reference["ids"].as_array().unwrap()) {
        let text = string.as_str().unwrap();
        let actual = tokenizer.encode(text, false).unwrap();
        let expected = ids(expected);
        if actual != expected {
            let at = actual.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let tail = |ids: &[TokenId]| {
                ids[at..]
                    .iter()
                    .take(6)
                    .map(|id| (id.0, tokenizer.token_str(*id).unwrap().into_owned()))
                    .collect::<Vec<_>>()
            };
            wrong.push(format!("{text:?}: ours {:?} theirs {:?}", tail(&actual), tail(&expected)));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {STRINGS} strings differ, for example:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
}

#[test]
fn smollm2_ids_equal_llama_cpp() {
    let test = "smollm2_ids_equal_llama_cpp";
    let (Some(python), Some(path)) = (python(test, "llama_cpp"), variable(test, "WARDROBE_SMOLLM2")) else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(gguf_vocab(&path).0).unwrap();
    compare(&tokenizer, &reference(&python, "gguf", &path));
}

#[test]
fn pre_tokenizers_equal_llama_cpp() {
    let test = "pre_tokenizers_equal_llama_cpp";
    let (Some(python), Some(path)) = (python(test, "llama_cpp, gguf"), variable(test, "WARDROBE_SMOLLM2"))
    else {
        return;
    };
    let (vocab, _) = gguf_vocab(&path);
    // Not here: tekken and gpt-4o, whose letter classes llama.cpp approximates.
    for pre in
        ["gpt-2", "llama-bpe", "qwen2", "command-r", "deepseek-v3", "falcon", "default", "seed-coder", "dbrx"]
    {
        let vocab = GgufVocab { pre: Some(pre.into()), add_bos: Some(false), ..vocab.clone() };
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        eprintln!("{pre}");
        compare(&tokenizer, &reference(&python, "gguf-pre", &format!("{path},{pre}")));
    }
}

fn sentencepiece(test: &str, prefix: &str) {
    let Some(python) = python(test, "sentencepiece") else { return };
    let reference = reference(&python, "sentencepiece", prefix);
    let vocab = &reference["vocab"];
    let id = |key: &str| vocab[key].as_u64().map(|id| id as u32);
    let list = |key: &str| vocab[key].as_array().unwrap();
    let tokenizer = Tokenizer::from_gguf(GgufVocab {
        model: "llama".into(),
        tokens: list("tokens").iter().map(|token| token.as_str().unwrap().into()).collect(),
        scores: Some(list("scores").iter().map(|score| score.as_f64().unwrap() as f32).collect()),
        token_types: list("token_types").iter().map(|kind| kind.as_i64().unwrap() as i32).collect(),
        bos_id: id("bos_id"),
        eos_id: id("eos_id"),
        unk_id: id("unk_id"),
        add_bos: vocab["add_bos"].as_bool(),
        add_space_prefix: vocab["add_space_prefix"].as_bool(),
        ..GgufVocab::default()
    })
    .unwrap();
    compare(&tokenizer, &reference);
    let decoded = reference["decoded"].as_array().unwrap();
    for (ids_, text) in reference["ids"].as_array().unwrap().iter().zip(decoded) {
        let ids = ids(ids_);
        let text = text.as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        let mut stream = DetokenizeStream::new(tokenizer.clone(), DetokenizeOptions::default());
        let mut streamed: String = ids.iter().map(|id| stream.push(*id).to_owned()).collect();
        streamed.push_str(stream.flush());
        assert_eq!(streamed, text);
    }
}

#[test]
fn sentencepiece_ids_and_text_equal_sentencepiece() {
    sentencepiece("sentencepiece_ids_and_text_equal_sentencepiece", "prefix");
}

#[test]
fn sentencepiece_ids_without_prefix_equal_sentencepiece() {
    sentencepiece("sentencepiece_ids_without_prefix_equal_sentencepiece", "no-prefix");
}
