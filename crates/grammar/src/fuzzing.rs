//! Body of a fuzz target: bytes as a spec, compiled and followed for some steps.
//!
//! Public so that `fuzz/` and the smoke test run the same code; no part of the interface for applications.

use serde_json::Value;
use wardrobe_text::{NotationPart, TokenId, ToolNotation};

use crate::{Beside, Compiler, Function, GrammarError, Session, Spec, ToolCalls, Vocabulary, Whitespace};

/// Tokens that are drawn.
const MAX_STEPS: usize = 24;
/// Tokens of a way to the end that is gone.
const MAX_WAY: usize = 400;

/// Reads the bytes as a spec: the first says of what kind and in what white space, the second seeds the draws. Compiles it,
/// draws tokens from masks, takes some back, and goes to the end. Gives whether it compiled.
///
/// # Panics
/// Something does not hold that has to hold of every spec.
pub fn compile(compiler: &Compiler, bytes: &[u8]) -> bool {
    let [kind, seed, rest @ ..] = bytes else { return false };
    let text = String::from_utf8_lossy(rest).into_owned();
    let whitespace = match kind / 8 % 3 {
        0 => Whitespace::Spaced,
        1 => Whitespace::Compact,
        _ => Whitespace::Flexible,
    };
    let spec = match kind % 10 {
        0 => Spec::Regex(text),
        1 => Spec::Lark(text),
        2 => Spec::Choice(text.split('\n').map(str::to_owned).collect()),
        3 => Spec::JsonObject,
        8 => Spec::Gbnf(text),
        kind => match serde_json::from_str::<Value>(&text) {
            Ok(schema) if kind == 9 => Spec::ToolCalls(Box::new(call(schema))),
            Ok(schema) => Spec::JsonSchema { schema, strict: kind % 2 == 0 },
            Err(_) => return false,
        },
    };
    let is_json = matches!(spec, Spec::JsonSchema { .. } | Spec::JsonObject);
    match compiler.compile(&spec, whitespace) {
        Ok(template) => {
            let Ok(vocabulary) = compiler.vocabulary() else { return false };
            follow(vocabulary, &mut *template.session(), u64::from(*seed), is_json);
            true
        }
        Err(error) => {
            assert!(!matches!(error, GrammarError::Engine { .. }), "the engine fails at {spec:?}: {error}");
            false
        }
    }
}

/// Text, or a call of one function with these parameters.
fn call(parameters: Value) -> ToolCalls {
    let text = |text: &str| vec![NotationPart::Text(text.to_owned())];
    let notation = ToolNotation {
        first: text("<call>{\"name\": \""),
        middle: text("\", \"arguments\": "),
        next: Some(text("}</call><call>{\"name\": \"")),
        last: text("}</call>"),
    };
    let functions = vec![Function { name: "f".to_owned(), parameters, strict: true }];
    ToolCalls { notation, functions, beside: Beside::Text, max_calls: 2 }
}

fn follow(vocabulary: &Vocabulary, session: &mut dyn Session, mut seed: u64, is_json: bool) {
    let mut mask = vec![0_u32; vocabulary.mask_len()];
    let (mut taken, mut ended, mut has_way) = (Vec::new(), false, false);
    for _ in 0..MAX_STEPS {
        // A bound of the engine below, met in the middle of a text, ends a request and no more.
        if session.fill_mask(&mut mask).is_err() {
            return;
        }
        let allowed: Vec<TokenId> = (0..vocabulary.len() as u32)
            .filter(|id| mask.get(*id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1))
            .map(TokenId)
            .collect();
        assert!(!allowed.is_empty(), "nothing is allowed after {:?}", text_of(vocabulary, &taken));
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = (seed >> 33) as usize;
        let Some(&token) = allowed.get(pick % allowed.len()) else { return };
        if let Err(error) = session.accept(token) {
            assert!(matches!(error, GrammarError::Engine { .. }), "a token of the mask is refused: {error}");
            return;
        }
        if vocabulary.ends().contains(&token) {
            ended = true;
            break;
        }
        taken.push(token);
        // As the engine does: what leaves no way to the end is taken back, and the text ends the way that was known.
        if !matches!(session.shortest_end(MAX_WAY), Ok(Some(_))) {
            taken.pop();
            if session.rollback(1).is_err() {
                return;
            }
            break;
        }
        has_way = true;
        if pick.is_multiple_of(5) {
            let back = pick / 5 % (taken.len() + 1);
            if session.rollback(back).is_err() {
                return;
            }
            taken.truncate(taken.len() - back);
        }
    }
    if !ended {
        let Ok(way) = session.shortest_end(MAX_WAY) else { return };
        let Some(way) = way else {
            assert!(!has_way, "the way from {:?} is lost", text_of(vocabulary, &taken));
            return;
        };
        for &token in &way {
            if let Err(error) = session.accept(token) {
                assert!(matches!(error, GrammarError::Engine { .. }), "a token of the way: {error}");
                return;
            }
        }
        taken.extend(way);
        assert!(!matches!(session.may_end(), Ok(false)), "the way does not lead to the end");
    }
    if is_json {
        let text = text_of(vocabulary, &taken);
        let parsed = serde_json::from_str::<Value>(&text);
        assert!(parsed.is_ok(), "{text:?} is no JSON: {parsed:?}");
    }
}

fn text_of(vocabulary: &Vocabulary, tokens: &[TokenId]) -> String {
    let bytes: Vec<u8> = tokens.iter().filter_map(|&id| vocabulary.bytes(id)).flatten().copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
