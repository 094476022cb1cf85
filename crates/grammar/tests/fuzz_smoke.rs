//! A short run of what a fuzzer would do, on stable: nothing may panic or run away.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;
use wardrobe_grammar::{Compiler, Limits, fuzzing};

fn limited() -> Compiler {
    compiler_within(Limits {
        max_kept: 4,
        max_shortest_tokens: 500,
        deadline: Duration::from_secs(20),
        ..Limits::default()
    })
}

/// Keywords with what they hold, right and wrong.
fn keyword(inner: Value, other: Value, number: i32, pick: u8) -> (&'static str, Value) {
    match pick % 32 {
        0 => (
            "type",
            json!(
                ["integer", "string", "object", "array", "null", "number", "boolean"]
                    [usize::from(pick / 32) % 7]
            ),
        ),
        1 => ("type", json!(["string", "null", "array"])),
        2 => ("properties", json!({"a": inner, "b": other})),
        3 => ("required", json!(["a"])),
        4 => ("additionalProperties", inner),
        5 => ("items", inner),
        6 => ("prefixItems", json!([inner, other])),
        7 => ("anyOf", json!([inner, other])),
        8 => ("oneOf", json!([inner, other])),
        9 => ("allOf", json!([inner, other])),
        10 => ("not", inner),
        11 => ("if", inner),
        12 => ("then", other),
        13 => ("minimum", json!(number)),
        14 => ("maximum", json!(f64::from(number) / 4.0)),
        15 => ("multipleOf", json!(number)),
        16 => ("minLength", json!(number % 20)),
        17 => ("maxLength", json!(number)),
        18 => ("pattern", json!(["^a+b?$", "(", "[0-9]{2}", "\\d|x$", ""][usize::from(pick / 32) % 5])),
        19 => ("format", json!(["date-time", "uuid", "ipv6", "iri", "duration"][usize::from(pick / 32) % 5])),
        20 => ("enum", json!([1, "a", other, null])),
        21 => ("const", inner),
        22 => {
            ("$ref", json!(["#", "#/properties/a", "#/$defs/x", "http://x.org/"][usize::from(pick / 32) % 4]))
        }
        23 => ("$defs", json!({"x": inner})),
        24 => ("minItems", json!(number % 9)),
        25 => ("maxItems", json!(number)),
        26 => ("patternProperties", json!({"^x": inner, "y$": other})),
        27 => ("minProperties", json!(number % 5)),
        28 => ("maxProperties", json!(number % 9)),
        29 => ("dependentRequired", json!({"a": ["b"]})),
        30 => ("propertyNames", inner),
        _ => ("exclusiveMinimum", json!(number)),
    }
}

fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(true)),
        Just(json!(false)),
        Just(json!({})),
        Just(json!({"type": "integer"})),
        Just(json!({"type": "string", "maxLength": 4})),
        any::<i8>().prop_map(|number| json!(number)),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop::collection::vec((inner.clone(), inner, -40..1000_i32, any::<u8>()), 1..4).prop_map(|keywords| {
            let members = keywords.into_iter().map(|(inner, other, number, pick)| {
                let (name, value) = keyword(inner, other, number, pick);
                (name.to_owned(), value)
            });
            Value::Object(members.collect())
        })
    })
}

const FRAGMENTS: [&str; 22] = [
    "a", "[^b]", "(", ")", "*", "+", "?", "{2,5}", "|", ".", "\\d", "\\p{L}", "start: ", "\"x\"", "/[a-z]+/",
    "\n", "rule", ": ", "%ignore ", "ä", "[0-9]", "(?=a)",
];

/// Of each kind.
const CASES: u32 = 100;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn schemas_are_refused_or_followed(given in schemas(), kind in 4..24_u8, seed: u8) {
        let mut bytes = vec![kind, seed];
        bytes.extend(given.to_string().bytes());
        fuzzing::compile(&limited(), &bytes);
    }

    #[test]
    fn texts_are_refused_or_followed(parts in prop::collection::vec(prop::sample::select(&FRAGMENTS[..]), 0..12), kind in 0..3_u8, seed: u8) {
        let mut bytes = vec![kind, seed];
        bytes.extend(if kind == 1 { "start: " } else { "" }.bytes());
        bytes.extend(parts.concat().bytes());
        fuzzing::compile(&limited(), &bytes);
    }

    #[test]
    fn bytes_are_refused_or_followed(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        fuzzing::compile(&limited(), &bytes);
    }
}

#[test]
fn the_body_does_follow() {
    let compiler = limited();
    assert!(fuzzing::compile(&compiler, b"\x00\x01[a-c]{2,4}x"));
    assert!(fuzzing::compile(&compiler, b"\x01\x01start: \"(\" start \")\" | \"x\""));
    assert!(fuzzing::compile(&compiler, b"\x02\x01one\ntwo"));
    assert!(fuzzing::compile(&compiler, b"\x03\x01"));

    assert!(fuzzing::compile(
        &compiler,
        b"\x04\x07{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"number\"}}}"
    ));
}
