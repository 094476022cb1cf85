//! Arbitrary bytes as a schema, an expression, a choice or a grammar that a text is held to: `cargo +nightly fuzz run grammar`.
#![no_main]

use std::sync::LazyLock;

use wardrobe_grammar::{Compiler, Limits, Vocabulary, fuzzing};
use wardrobe_text::{GgufVocab, TokenId, Tokenizer};

/// GPT-2's spelling of a byte.
fn spelling(byte: u8) -> String {
    let plain = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let rank = (0..byte).filter(|b| !plain(b)).count() as u32;
    let spelled = if plain(&byte) { Some(char::from(byte)) } else { char::from_u32(0x100 + rank) };
    spelled.map(String::from).unwrap_or_default()
}

/// One token a byte, and one that ends a text.
static COMPILER: LazyLock<Compiler> = LazyLock::new(|| {
    let mut tokens: Vec<String> = (0..=255).map(spelling).collect();
    tokens.push("<|end|>".to_owned());
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        token_types: (0..257).map(|id| if id == 256 { 3 } else { 1 }).collect(),
        eos_id: Some(256),
        add_bos: Some(false),
        ..GgufVocab::default()
    };
    let tokenizer = Tokenizer::from_gguf(vocab).expect("the vocabulary is sound");
    let vocabulary = Vocabulary::new(tokenizer, &[TokenId(256)]).expect("the vocabulary is sound");
    Compiler::new(vocabulary, Limits { max_kept: 4, max_shortest_tokens: 500, ..Limits::default() })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzzing::compile(&COMPILER, bytes);
});
