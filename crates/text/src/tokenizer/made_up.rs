//! A tokenizer for a model that has none: for weights that are made up, and for measurements.

use super::pieces::character_of;
use super::{GgufVocab, MAX_VOCAB_TOKENS, Tokenizer, vocabulary};
use crate::{Result, TokenId};

/// ggml's types of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

impl Tokenizer {
    /// A tokenizer of exactly `vocab_size` tokens, in which the given ones are special. The first of the others are the
    /// 256 bytes, one of which each byte of a text becomes; the rest are made-up words, which only a model writes.
    ///
    /// # Errors
    /// There is no room for the bytes beside the special tokens, more tokens than [`MAX_VOCAB_TOKENS`], or a special one
    /// that is none of them.
    pub fn made_up(vocab_size: usize, bos: Option<TokenId>, ends: &[TokenId]) -> Result<Self> {
        if vocab_size > MAX_VOCAB_TOKENS {
            return Err(vocabulary(format!("{vocab_size} tokens, over the limit of {MAX_VOCAB_TOKENS}")));
        }
        let mut tokens = vec![String::new(); vocab_size];
        let mut token_types = vec![NORMAL; vocab_size];
        let names = ends.iter().enumerate().map(|(i, id)| (*id, format!("<|end_{i}|>")));
        // A token that begins texts and ends them keeps the latter name.
        for (id, name) in bos.map(|id| (id, "<|begin|>".to_owned())).into_iter().chain(names) {
            let (Some(token), Some(kind)) = (tokens.get_mut(id.index()), token_types.get_mut(id.index()))
            else {
                return Err(vocabulary(format!("special token {id} of a vocabulary of {vocab_size}")));
            };
            (*token, *kind) = (name, CONTROL);
        }
        let mut free = tokens.iter_mut().filter(|token| token.is_empty());
        for byte in 0..=u8::MAX {
            let Some(token) = free.next() else {
                let message = format!("{vocab_size} tokens have no room for 256 bytes and the special ones");
                return Err(vocabulary(message));
            };
            token.push(character_of(byte));
        }
        free.enumerate().for_each(|(i, token)| *token = word(i));
        Self::from_gguf(GgufVocab {
            model: "gpt2".to_owned(),
            pre: Some("gpt-2".to_owned()),
            tokens,
            token_types,
            bos_id: bos.map(|id| id.0),
            eos_id: ends.first().map(|id| id.0),
            add_bos: Some(false),
            ..GgufVocab::default()
        })
    }
}

/// Word `idx` of two letters and more, every other one after a space; no two are the same.
fn word(idx: usize) -> String {
    // The numerals of base 26 without a zero: 26 is the first of two digits.
    let (mut rest, mut letters) = (idx / 2 + 26, Vec::new());
    loop {
        letters.push(char::from(b'a' + (rest % 26) as u8));
        match rest / 26 {
            0 => break,
            quotient => rest = quotient - 1,
        }
    }
    let space = (idx % 2 == 1).then(|| character_of(b' '));
    space.into_iter().chain(letters.into_iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(of: &[u32]) -> Vec<TokenId> {
        of.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn every_token_is_there_once() {
        for vocab_size in [258, 320, 5_000, 49_152] {
            let tokenizer = Tokenizer::made_up(vocab_size, Some(TokenId(1)), &ids(&[2])).unwrap();
            assert_eq!(tokenizer.vocab_size(), vocab_size);
            let distinct: std::collections::BTreeSet<&[u8]> =
                tokenizer.tokens().map(|(_, bytes)| bytes).collect();
            assert_eq!(distinct.len(), vocab_size);
            let special: Vec<u32> =
                (0..vocab_size as u32).filter(|id| tokenizer.is_special(TokenId(*id))).collect();
            assert_eq!(special, [1, 2]);
            assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(TokenId(1)), Some(TokenId(2))));
        }
    }

    #[test]
    fn a_text_becomes_its_bytes_and_back() {
        let tokenizer = Tokenizer::made_up(1_000, Some(TokenId(0)), &ids(&[0, 999])).unwrap();
        let text = "It's 12 o'clock,\n\tça va? 日本 👍";
        let encoded = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoded.len(), text.len());
        assert_eq!(tokenizer.decode(&encoded, true).unwrap(), text);
        assert_eq!(tokenizer.encode("<|end_1|>", false).unwrap(), ids(&[999]));
        assert_eq!(tokenizer.encode_ordinary("<|end_1|>").unwrap().len(), 9);
    }

    #[test]
    fn words_are_words() {
        let words: Vec<String> = [0, 1, 2, 52, 2 * 26 * 26, 2 * 26 * 26 + 1].map(word).into();
        assert_eq!(words, ["aa", "\u{120}aa", "ab", "ba", "aaa", "\u{120}aaa"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (vocab_size, bos, ends, named) in [
            (257, Some(0), &[1][..], "257 tokens have no room"),
            (0, None, &[], "0 tokens"),
            (300, Some(300), &[], "token 300"),
            (300, None, &[7, 400], "token 400"),
            (MAX_VOCAB_TOKENS + 1, None, &[], "over the limit"),
        ] {
            let said = Tokenizer::made_up(vocab_size, bos.map(TokenId), &ids(ends)).unwrap_err().to_string();
            assert!(said.contains(named), "{said}");
        }
    }
}
