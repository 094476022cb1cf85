//! Cutting a text into parts must not change its ids, whatever the text.

use super::Tokenizer;
use crate::{EncodeOptions, GgufVocab, supported_pre_tokenizers};
use proptest::prelude::*;

#[path = "../../tests/support/mod.rs"]
mod support;

/// A vocabulary whose merges would join anything that a wrong cut separates.
fn greedy(pre: &str) -> Tokenizer {
    let mut vocab = support::byte_level_vocab();
    let ids: std::collections::BTreeSet<String> = vocab.tokens.iter().cloned().collect();
    let bytes: Vec<String> =
        " ab\n12.'".bytes().map(|byte| support::byte_character(byte).to_string()).collect();
    for left in &bytes {
        for right in &bytes {
            let whole = format!("{left}{right}");
            if !ids.contains(&whole) {
                vocab.merges.push(format!("{left} {right}"));
                vocab.tokens.push(whole);
                vocab.token_types.push(1);
            }
        }
    }
    Tokenizer::from_gguf(GgufVocab { pre: Some(pre.into()), ..vocab }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn parts_give_the_same_ids(text in "([ab12 ]|[ \n]|\r\n|[日本、。，ー]|[.'é]|the| and|'s|<tool>|<\\|end\\|>|\u{301}){0,30}") {
        thread_local!(static TOKENIZERS: Vec<Tokenizer> = {
            let mut list: Vec<Tokenizer> = supported_pre_tokenizers().map(greedy).collect();
            list.push(Tokenizer::from_gguf(support::sentencepiece_vocab()).unwrap());
            let plain = GgufVocab { add_space_prefix: Some(false), ..support::sentencepiece_vocab() };
            list.push(Tokenizer::from_gguf(plain).unwrap());
            list
        });
        TOKENIZERS.with(|tokenizers| {
            for tokenizer in tokenizers {
                let options = EncodeOptions::default();
                let whole = tokenizer.encode_in_parts(&text, &options, usize::MAX).unwrap();
                for part_bytes in [1, 7] {
                    prop_assert_eq!(&tokenizer.encode_in_parts(&text, &options, part_bytes).unwrap(), &whole);
                }
            }
            Ok(())
        })?;
    }
}
