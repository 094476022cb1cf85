//! A vocabulary of bytes and some longer tokens, and what tests do with sessions.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

pub mod gbnf;
pub mod generations;
pub mod instances;
pub mod validity;

use std::sync::Arc;

use serde_json::Value;
use wardrobe_grammar::{Compiler, GrammarError, Limits, Session, Spec, Template, Vocabulary, Whitespace};
use wardrobe_text::{GgufVocab, TokenId, Tokenizer};

/// GPT-2's spelling of a byte.
fn spelling(byte: u8) -> char {
    let plain = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if plain(&byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !plain(b)).count();
    char::from_u32(0x100 + rank as u32).unwrap()
}

/// Tokens of several bytes, made by merging two that are there before.
const MERGES: [(&str, &str); 14] = [
    ("\"", "}"),
    ("\"", ":"),
    ("\":", " "),
    (",", " "),
    ("{", "\""),
    ("a", "b"),
    ("ab", "c"),
    ("n", "a"),
    ("na", "me"),
    ("m", "e"),
    ("1", "2"),
    ("12", "3"),
    ("-", "0"),
    ("\"", "]"),
];

/// A special token that ends no text, named `[CALLS]`.
pub const CALLS: TokenId = TokenId(256 + MERGES.len() as u32);

/// The token that ends a text.
pub const END: TokenId = TokenId(CALLS.0 + 1);

/// One token a byte (its id is the byte), then the merged ones, then the special ones.
pub fn tokenizer() -> Tokenizer {
    let spelled = |text: &str| text.bytes().map(spelling).collect::<String>();
    let mut tokens: Vec<String> = (0..=255).map(|byte| spelling(byte).to_string()).collect();
    tokens.extend(MERGES.iter().map(|(left, right)| spelled(&format!("{left}{right}"))));
    let mut token_types = vec![1; tokens.len()];
    tokens.extend(["[CALLS]", "<|im_end|>"].map(str::to_owned));
    token_types.extend([3, 3]);
    Tokenizer::from_gguf(GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        merges: MERGES.iter().map(|(left, right)| format!("{} {}", spelled(left), spelled(right))).collect(),
        tokens,
        token_types,
        eos_id: Some(END.0),
        add_bos: Some(false),
        ..GgufVocab::default()
    })
    .unwrap()
}

/// A vocabulary of bytes alone: one token a byte, and the one that ends a text.
pub fn bytes_alone() -> Vocabulary {
    let mut tokens: Vec<String> = (0..=255).map(|byte| spelling(byte).to_string()).collect();
    tokens.push("<|im_end|>".to_owned());
    let tokenizer = Tokenizer::from_gguf(GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        token_types: (0..=256).map(|id| if id < 256 { 1 } else { 3 }).collect(),
        eos_id: Some(256),
        add_bos: Some(false),
        ..GgufVocab::default()
    });
    Vocabulary::new(tokenizer.unwrap(), &[TokenId(256)]).unwrap()
}

pub fn compiler() -> Compiler {
    compiler_within(Limits::default())
}

pub fn compiler_within(limits: Limits) -> Compiler {
    Compiler::new(Vocabulary::new(tokenizer(), &[END]).unwrap(), limits)
}

pub fn schema(schema: Value) -> Spec {
    Spec::JsonSchema { schema, strict: true }
}

pub fn compile(spec: &Spec) -> Result<Arc<Template>, GrammarError> {
    compiler().compile(spec, Whitespace::Spaced)
}

/// Bytes of tokens.
pub fn bytes(tokens: &[TokenId]) -> Vec<u8> {
    let tokenizer = tokenizer();
    tokens.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect()
}

pub fn is_set(mask: &[u32], id: TokenId) -> bool {
    mask[id.index() / 32] >> (id.0 % 32) & 1 == 1
}

pub fn mask_of(session: &mut dyn Session) -> Vec<u32> {
    // Words beyond the vocabulary, and bits that were there before, are to be cleared.
    let mut mask = vec![u32::MAX; (END.0 as usize + 1).div_ceil(32) + 1];
    session.fill_mask(&mut mask).unwrap();
    assert!(
        mask.iter()
            .enumerate()
            .all(|(i, word)| { (0..32).all(|bit| word >> bit & 1 == 0 || i * 32 + bit <= END.index()) })
    );
    mask
}

/// Whether the text, byte by byte, stays within the masks and may end. The mask and `accept` have to agree on the way.
pub fn accepts(template: &Template, text: &str) -> bool {
    let mut session = template.session();
    for byte in text.bytes() {
        let id = TokenId(byte.into());
        let mask = mask_of(&mut *session);
        assert_eq!(is_set(&mask, END), session.may_end().unwrap());
        // Where the next bytes are certain the mask may have their usual token alone.
        let forced = !session.forced_tokens().is_empty();
        let accepted = session.accept(id).is_ok();
        assert!(forced || accepted == is_set(&mask, id), "{text:?} at {:?}", char::from(byte));
        if !accepted {
            return false;
        }
    }
    session.may_end().unwrap()
}
