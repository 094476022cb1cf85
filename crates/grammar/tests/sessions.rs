//! Sessions: what masks allow, what is accepted, taken back, forced, and how a text is brought to its end.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;
use wardrobe_grammar::{GrammarError, Spec, Template, Whitespace};
use wardrobe_text::TokenId;

#[test]
fn choices_regexes_and_grammars() {
    let choice = compile(&Spec::Choice(["foo", "foobar", "b\"\n/é"].map(String::from).to_vec())).unwrap();
    for (text, want) in [("foo", true), ("foobar", true), ("b\"\n/é", true), ("foob", false), ("", false)] {
        assert_eq!(accepts(&choice, text), want, "{text:?}");
    }
    // A prefix that matches does not end the text.
    let number = compile(&Spec::Regex(r"-?[0-9]+(\.[0-9]+)?".into())).unwrap();
    for (text, want) in [("3", true), ("3.14", true), ("-3.", false), ("3.1.4", false), ("x", false)] {
        assert_eq!(accepts(&number, text), want, "{text:?}");
    }
    let lark = compile(&Spec::Lark("start: \"(\" start \")\" | \"x\"".into())).unwrap();
    assert!(accepts(&lark, "((x))") && !accepts(&lark, "((x)"));
    assert!(accepts(&lark, std::str::from_utf8(&bytes(lark.shortest())).unwrap()));
}

#[test]
fn a_schemas_own_order_types_and_white_space() {
    let person = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let spaced = compile(&schema(person.clone())).unwrap();
    for (text, want) in [
        (r#"{"name": "Ada", "age": 36}"#, true),
        (r#"{"name": "Ada", "age": 36, "tags": ["a", "b"]}"#, true),
        (r#"{"age": 36, "name": "Ada"}"#, false),
        (r#"{"name":"Ada","age":36}"#, false),
        (r#"{"name": "Ada L", "age": 36}"#, false),
        (r#"{"name": "Ada", "age": 131}"#, false),
        (r#"{"name": "Ada", "age": 36, "tags": ["c"]}"#, false),
        (r#"{"name": "Ada", "age": 36} "#, false),
    ] {
        assert_eq!(accepts(&spaced, text), want, "{text}");
    }
    let compiler = compiler();
    let compact = compiler.compile(&schema(person.clone()), Whitespace::Compact).unwrap();
    assert!(
        accepts(&compact, r#"{"name":"Ada","age":36}"#) && !accepts(&compact, r#"{"name": "Ada","age":36}"#)
    );
    let flexible = compiler.compile(&schema(person), Whitespace::Flexible).unwrap();
    assert!(accepts(&flexible, "{\n  \"name\": \"Ada\",\n  \"age\":36\n}"));
    assert!(!accepts(&flexible, &format!("{{{}", " ".repeat(40))), "white space has a bound");
    assert!(!accepts(&flexible, &format!("{{{}\"name\":\"\",\"age\":1}}", " ".repeat(40))));
}

#[test]
fn numbers_parse_and_times_exist() {
    let number = compile(&schema(json!({"type": "number"}))).unwrap();
    for (text, want) in [
        ("0", true),
        ("-0.5", true),
        ("1.5e3", true),
        ("1e-99", true),
        ("1234567890123456", true),
        ("1234567890123456789", false),
        ("5e+866", false),
        ("-0", false),
        ("-0e1", false),
        ("01", false),
    ] {
        assert_eq!(accepts(&number, text), want, "{text}");
    }
    let whole = compile(&schema(json!({"type": "integer"}))).unwrap();
    for (text, want) in [("0", true), ("-12", true), ("-0", false), ("1.5", false)] {
        assert_eq!(accepts(&whole, text), want, "{text}");
    }
    // The token `-0` is no way around it.
    let mut session = whole.session();
    assert!(!is_set(&mask_of(&mut *session), TokenId(256 + 12)));
    session.accept(TokenId(b'-'.into())).unwrap();
    let mask = mask_of(&mut *session);
    assert!(!is_set(&mask, TokenId(b'0'.into())) && is_set(&mask, TokenId(b'1'.into())));
    // Digits in a string are no number.
    let text = compile(&schema(json!({"type": "string"}))).unwrap();
    assert!(accepts(&text, &format!("\"-0 \\\" {}\"", "9".repeat(60))));
    let time = compile(&schema(json!({"type": "string", "format": "date-time"}))).unwrap();
    for (text, want) in [
        ("2024-02-29T23:59:59Z", true),
        ("2023-02-29T23:59:59Z", false),
        ("2024-12-31T23:59:60Z", false),
        ("2024-04-31T00:00:00+01:00", false),
        ("2024-04-30T00:00:00.123+01:00", true),
    ] {
        assert_eq!(accepts(&time, &format!("\"{text}\"")), want, "{text}");
    }
}

#[test]
fn what_is_not_allowed_changes_nothing() {
    let template = compile(&Spec::Choice(vec!["abcd".into()])).unwrap();
    let mut session = template.session();
    let refused = session.accept(TokenId(b'x'.into()));
    assert!(matches!(refused, Err(GrammarError::NotAllowed { token }) if token.0 == u32::from(b'x')));
    assert!(session.accept(END).is_err(), "it may not end yet");
    assert!(session.accept(TokenId(100_000)).is_err());
    assert_eq!(session.validate(&[b'a', b'b', b'x'].map(|b| TokenId(b.into()))).unwrap(), 2);
    assert!(session.rollback(1).is_err());
    for byte in *b"abcd" {
        session.accept(TokenId(byte.into())).unwrap();
    }
    assert!(session.is_done().unwrap());
    session.accept(END).unwrap();
    let mask = mask_of(&mut *session);
    assert!(is_set(&mask, END) && mask.iter().map(|word| word.count_ones()).sum::<u32>() == 1);
    session.rollback(2).unwrap();
    assert_eq!(bytes(&session.shortest_end(8).unwrap().unwrap()), b"cd");
}

#[test]
fn forced_tokens_are_the_tokenizers_own() {
    let record = json!({"type": "object", "properties": {"name": {"type": "boolean"}}, "required": ["name"], "additionalProperties": false});
    let template = compile(&schema(record)).unwrap();
    let mut session = template.session();
    let forced = session.forced_tokens();
    // What follows the blank is open, and a token might join it.
    let text = String::from_utf8(bytes(&forced)).unwrap();
    assert!(r#"{"name": "#.starts_with(&text) && text.len() >= r#"{"name"#.len(), "{text:?}");
    let whole = tokenizer().encode_ordinary(r#"{"name": true}"#).unwrap();
    assert!(whole.starts_with(&forced), "{forced:?} of {whole:?}");
    for token in forced {
        session.accept(token).unwrap();
    }
}

#[test]
fn shortest_texts_are_what_the_spec_allows() {
    for (given, most) in [
        (json!({"type": "string"}), 2),
        (json!({"type": "string", "minLength": 5}), 8),
        (json!({"type": "string", "pattern": "wifi"}), 8),
        (json!({"type": "string", "pattern": "^[a-f]{3}-(x|yy)$"}), 8),
        (json!({"type": "array", "items": {"type": "number"}, "minItems": 3}), 12),
        (json!({"enum": ["long long long", "b"]}), 20),
        (
            json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["children"]}}}),
            20,
        ),
    ] {
        let template = compile(&schema(given.clone())).unwrap();
        let text = String::from_utf8(bytes(template.shortest())).unwrap();
        assert!(template.shortest().len() <= most, "{given}: {text}");
        assert!(accepts(&template, &text), "{given}: {text}");
        serde_json::from_str::<Value>(&text).unwrap();
    }
}

#[test]
fn what_others_say_is_taken_where_the_grammar_would_not_take_it() {
    // A type beside references that come back to it.
    let list = json!({"type": "object", "additionalProperties": {}, "anyOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/list"}], "$defs": {
        "leaf": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": false},
        "list": {"type": "object", "properties": {"items": {"type": "array", "items": {"$ref": "#"}}}, "required": ["items"], "additionalProperties": false}}});
    let nested = compile(&schema(list)).unwrap();
    assert!(accepts(&nested, r#"{"items": [{"a": null}, {"items": []}]}"#));
    assert!(!accepts(&nested, "[]") && !accepts(&nested, r#"{"items": [null]}"#));
    // Numbers of properties, of objects that have those of a list alone.
    let closed = |keyword: &str, count: u64, required: &[&str]| {
        compile(&schema(json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": required,
            "additionalProperties": false, keyword: count})))
        .unwrap()
    };
    let (none, a, both) = ("{}", r#"{"a": null}"#, r#"{"a": null, "b": null}"#);
    for (template, want) in [
        (closed("minProperties", 2, &[]), [false, false, true]),
        (closed("minProperties", 1, &[]), [false, true, true]),
        (closed("minProperties", 1, &["a"]), [false, true, true]),
        (closed("maxProperties", 2, &[]), [true, true, true]),
    ] {
        assert_eq!([none, a, both].map(|text| accepts(&template, text)), want);
    }
    let any = compile(&schema(
        json!({"properties": {"a": {"type": "null"}}, "additionalProperties": false, "minProperties": 1}),
    ))
    .unwrap();
    assert!(accepts(&any, "3") && accepts(&any, a) && !accepts(&any, none));
}

/// In the middle of what a pattern asks for, in values and in names, the rest of it is found.
#[test]
fn ends_of_patterns() {
    for (given, begun, want) in [
        (json!({"type": "string", "pattern": "^zip|tar$"}), "\"none", "tar\""),
        (
            json!({"type": "string", "pattern": "^https://[a-z]+\\.example\\.org/$"}),
            "\"https://abc.",
            "example.org/\"",
        ),
        (
            json!({"type": "object", "patternProperties": {"^app/.*json$": {"type": "null"}}, "additionalProperties": false}),
            "{\"app/x",
            "json\": null}",
        ),
    ] {
        let template = compile(&schema(given.clone())).unwrap();
        let mut session = template.session();
        for byte in begun.bytes() {
            session.accept(TokenId(byte.into())).unwrap();
        }
        let way =
            session.shortest_end(64).unwrap().unwrap_or_else(|| panic!("{given}: no way after {begun}"));
        assert_eq!(String::from_utf8(bytes(&way)).unwrap(), want, "{given}");
        // The same after each token of another way there, and once it is taken back.
        for (done, byte) in want.bytes().enumerate() {
            session.accept(TokenId(byte.into())).unwrap();
            let rest = session.shortest_end(64).unwrap().unwrap();
            assert_eq!(String::from_utf8(bytes(&rest)).unwrap(), want[done + 1..], "{given}");
        }
        session.rollback(want.len()).unwrap();
        assert!(session.shortest_end(64).unwrap().is_some() && session.shortest_end(1).unwrap().is_none());
    }
}

/// Takes a token of the mask, `pick` choosing, `steps` times at most; then goes the way to the end.
fn wander(template: &Template, picks: &[prop::sample::Index]) -> String {
    let mut session = template.session();
    let mut tokens = Vec::new();
    for pick in picks {
        let mask = mask_of(&mut *session);
        let allowed: Vec<TokenId> = (0..=END.0).map(TokenId).filter(|&id| is_set(&mask, id)).collect();
        assert!(
            !allowed.is_empty(),
            "nothing is allowed after {:?}",
            String::from_utf8_lossy(&bytes(&tokens))
        );
        let token = allowed[pick.index(allowed.len())];
        session.accept(token).unwrap();
        if token == END {
            return String::from_utf8(bytes(&tokens)).unwrap();
        }
        tokens.push(token);
    }
    let end = session.shortest_end(2000).unwrap();
    let end = end.unwrap_or_else(|| panic!("no end of {:?}", String::from_utf8_lossy(&bytes(&tokens))));
    for &token in &end {
        session.accept(token).unwrap();
    }
    assert!(session.may_end().unwrap());
    tokens.extend(end);
    String::from_utf8(bytes(&tokens)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Wherever a text stands, there is a way to its end, and what comes out is JSON of the schema's type.
    #[test]
    fn every_text_can_be_ended(which in 0..4_usize, picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let schemas = [
            json!({"type": "object"}),
            json!({"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": ["string", "null"], "maxLength": 9},
                "c": {"type": "array", "items": {"type": "integer"}, "maxItems": 5}}, "required": ["b", "c"], "additionalProperties": false}),
            json!({"type": "array", "items": {"type": "string", "pattern": "^x[0-9]+(ab)?$"}}),
            json!({"anyOf": [{"type": "string", "format": "date"}, {"const": {"k": [1, true, null]}}]}),
        ];
        let template = compile(&schema(schemas[which].clone())).unwrap();
        let text = wander(&template, &picks);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        let fits = match which {
            0 => value.is_object(),
            1 => value["b"].is_string() || value["b"].is_null() && value["c"].is_array(),
            2 => value.is_array(),
            _ => value.is_string() || value == json!({"k": [1, true, null]}),
        };
        prop_assert!(fits, "{}", text);
    }

    /// Taking tokens back leads to the same masks.
    #[test]
    fn taken_back_is_as_never_accepted(picks in prop::collection::vec(any::<prop::sample::Index>(), 1..20), back in any::<prop::sample::Index>()) {
        let template = compile(&schema(json!({"type": "object", "properties": {"a": {"type": "number"}}}))).unwrap();
        let mut session = template.session();
        let mut masks = vec![mask_of(&mut *session)];
        for pick in &picks {
            let allowed: Vec<u32> = (0..END.0).filter(|&id| is_set(masks.last().unwrap(), TokenId(id))).collect();
            if allowed.is_empty() { break; }
            session.accept(TokenId(allowed[pick.index(allowed.len())])).unwrap();
            masks.push(mask_of(&mut *session));
        }
        let back = back.index(masks.len());
        session.rollback(back).unwrap();
        prop_assert_eq!(&mask_of(&mut *session), &masks[masks.len() - 1 - back]);
    }
}
