//! The two engines allow the same texts, wherever both take a schema.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;
use wardrobe_grammar::{Compiler, EngineKind, Limits, Session, Spec, Whitespace};
use wardrobe_text::TokenId;

fn engines() -> [Compiler; 2] {
    [EngineKind::Closed, EngineKind::Guidance]
        .map(|engine| compiler_within(Limits { engine: Some(engine), ..Limits::default() }))
}

/// Schemas that both take.
fn schemas() -> Vec<Value> {
    let closed = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let date = closed(json!({"day": {"type": "integer"}, "month": {"type": "integer"}}), &["day", "month"]);
    vec![
        json!({"type": "string", "maxLength": 3}),
        json!({"type": "string", "minLength": 2}),
        json!({"type": "boolean"}),
        json!({"type": ["null", "integer"]}),
        json!({"enum": ["a\"b", "é", 12, null, true, "12"]}),
        json!({"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}),
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 2}),
        json!({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 1}),
        closed(json!({}), &[]),
        closed(json!({"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}), &[]),
        closed(json!({"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}), &["b"]),
        closed(json!({"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}), &["c", "a"]),
        closed(
            json!({"born": date, "died": {"anyOf": [date, {"const": "unknown"}]}, "politician": {"type": "boolean"}}),
            &["born", "politician"],
        ),
        json!({"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/y"}}, "y": {"type": "boolean"}}}),
    ]
}

/// Bytes that both sessions allow next, which have to be the same.
fn next(sessions: &mut [Box<dyn Session>; 2], text: &[u8], schema: &Value) -> Vec<u8> {
    let [closed, guidance] = sessions.each_mut().map(|session| {
        let bytes = (0..=255_u8).filter(|&b| session.validate(&[TokenId(b.into())]).unwrap() == 1);
        (bytes.collect::<Vec<u8>>(), session.may_end().unwrap())
    });
    let shown = |bytes: &[u8]| bytes.iter().map(|&b| char::from(b)).collect::<String>();
    assert_eq!(
        (shown(&closed.0), closed.1),
        (shown(&guidance.0), guidance.1),
        "{schema} after {:?}",
        String::from_utf8_lossy(text)
    );
    closed.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn both_allow_the_same(which in any::<prop::sample::Index>(), compact: bool, picks in prop::collection::vec(any::<u8>(), 0..40)) {
        let schemas = schemas();
        let given = &schemas[which.index(schemas.len())];
        let whitespace = if compact { Whitespace::Compact } else { Whitespace::Spaced };
        let mut sessions = engines().map(|engine| engine.compile(&schema(given.clone()), whitespace).unwrap().session());
        let mut text = Vec::new();
        for pick in picks {
            let bytes = next(&mut sessions, &text, given);
            // One in two closes something, if it can; long numbers are looked at by themselves.
            let wanted = [b'"', b'}', b']', b','];
            let wanted = bytes.iter().filter(|b| wanted.contains(b)).copied().collect::<Vec<_>>();
            let from = if pick % 2 == 0 && !wanted.is_empty() { &wanted } else { &bytes };
            let Some(&byte) = from.get(usize::from(pick / 2) % from.len().max(1)) else { break };
            let digits = text.iter().rev().take_while(|b: &&u8| b.is_ascii_digit()).count();
            if digits > 15 { break; }
            text.push(byte);
            sessions.iter_mut().for_each(|session| session.accept(TokenId(byte.into())).unwrap());
        }
    }
}

#[test]
fn closed_schemas_are_chosen_by_rule() {
    let compiler = compiler();
    let engine = |given: Value| {
        let spec = Spec::JsonSchema { schema: given, strict: true };
        compiler.compile(&spec, Whitespace::Spaced).unwrap().engine()
    };
    for given in schemas() {
        assert_eq!(engine(given.clone()), EngineKind::Closed, "{given}");
    }
    for other in [
        json!({"type": "object"}),
        json!({"type": "object", "properties": {"a": {"type": "null"}}}),
        json!({"type": "integer", "minimum": 3}),
        json!({"type": "string", "pattern": "^a$"}),
        json!({"type": "string", "maxLength": 100_000}),
        json!({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}),
        json!({"allOf": [{"type": "boolean"}]}),
        json!(true),
    ] {
        assert_eq!(engine(other.clone()), EngineKind::Guidance, "{other}");
    }
}

#[test]
fn a_closed_schemas_numbers() {
    let [closed, _] = engines();
    let number = closed.compile(&schema(json!({"type": "number"})), Whitespace::Spaced).unwrap();
    for (text, want) in
        [("0", true), ("-0", false), ("-0.5", true), ("1.25e-9", true), ("1e100", false), ("01", false)]
    {
        assert_eq!(accepts(&number, text), want, "{text}");
    }
}

#[test]
fn its_masks_forced_tokens_and_ends() {
    let [closed, _] = engines();
    let record = json!({"type": "object", "properties": {"name": {"type": "boolean"}, "me": {"type": "string", "maxLength": 5}},
        "required": ["name"], "additionalProperties": false});
    let template = closed.compile(&schema(record), Whitespace::Spaced).unwrap();
    assert_eq!(bytes(template.shortest()), br#"{"name": true}"#);
    assert!(accepts(&template, r#"{"name": false, "me": "ab\n"}"#));
    let mut session = template.session();
    let whole = tokenizer().encode_ordinary(r#"{"name": true, "me": "a"}"#).unwrap();
    let forced = session.forced_tokens();
    assert!(!forced.is_empty() && whole.starts_with(&forced), "{forced:?} of {whole:?}");
    // Every token of its own text is in its mask, on the way.
    for &token in &whole {
        assert!(is_set(&mask_of(&mut *session), token), "{token}");
        session.accept(token).unwrap();
    }
    assert!(session.is_done().unwrap() && session.forced_tokens().is_empty());
    session.rollback(2).unwrap();
    assert!(session.shortest_end(1).unwrap().is_some_and(|end| bytes(&end) == b"\"}"));
}
