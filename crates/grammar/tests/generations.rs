//! Random texts from the masks are JSON that the schema allows, whether they come to their end by themselves or a budget cuts
//! them. The same at large, over schemas of others and by another validator: `benches/peers/random_generations`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::generations::{Leaning, Random, generate};
use support::validity::is_valid;
use support::*;
use wardrobe_grammar::{EngineKind, Whitespace};

fn schemas() -> Vec<Value> {
    let leaf = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}, "sub": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
        "required": ["name"], "additionalProperties": false});
    vec![
        json!(true),
        json!({"type": "number"}),
        json!({"type": "integer", "minimum": -12, "maximum": 340}),
        json!({"type": "number", "exclusiveMinimum": 0.5, "maximum": 12.25}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 0}),
        json!({"type": "string", "pattern": "^[a-c]+-[0-9]{2,}$"}),
        json!({"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": {"enum": ["\"", "é\n", 3]}, "minItems": 1, "maxItems": 4}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "minLength": 2}}, "required": ["b"], "additionalProperties": {"type": "boolean"}}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": ["null", "number"]}}, "additionalProperties": false}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": leaf}}),
        json!({"oneOf": [{"type": "integer", "minimum": 3}, {"type": "string", "maxLength": 3}, {"const": [1, {"a": null}]}]}),
        json!({"type": "object", "properties": {"k": {"type": "boolean"}, "r": {"type": "string"}}, "required": ["k"], "additionalProperties": false,
            "if": {"properties": {"k": {"const": true}}}, "then": {"required": ["r"]}}),
        json!({"allOf": [{"type": "object", "properties": {"p": {"type": "integer"}}, "required": ["p"]}, {"properties": {"q": {"type": "string"}}, "required": ["q"]}]}),
        json!({"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}}),
        json!({"type": "object", "not": {"required": ["a"]}}),
        json!({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2, "maxProperties": 3}),
    ]
}

/// Checks `num` texts of every schema; gives how many of them met their budget.
fn check(num: usize, is_cut: bool, whitespace: Whitespace) -> usize {
    let (compiler, mut cut) = (compiler(), 0);
    let leaning = Leaning::new(&tokenizer(), compiler.vocabulary().unwrap());
    let mut engines = std::collections::HashSet::new();
    for (idx, given) in schemas().into_iter().enumerate() {
        let template = match compiler.compile(&schema(given.clone()), whitespace) {
            Ok(template) => template,
            Err(error) => panic!("{given}: {error}"),
        };
        engines.insert(template.engine());
        for seed in 0..num {
            let mut random = Random((idx * 1000 + seed) as u64);
            let shortest = template.shortest().len();
            let max_tokens = if is_cut { shortest + random.below(24) } else { 200 };
            let generated = generate(&template, &leaning, &[END], max_tokens, &mut random);
            let generated = generated.unwrap_or_else(|(error, tokens)| {
                panic!(
                    "{given}: {error} within {max_tokens} after {:?}",
                    String::from_utf8_lossy(&bytes(&tokens))
                )
            });
            assert!(generated.tokens.len() <= max_tokens);
            cut += usize::from(generated.is_cut);
            let text = String::from_utf8(bytes(&generated.tokens)).unwrap();
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{given}: {text:?}: {error}"));
            assert!(is_valid(&value, &given, &given), "{given} has {text}");
        }
    }
    assert!(engines.contains(&EngineKind::Closed) == (whitespace != Whitespace::Flexible));
    cut
}

#[test]
fn random_texts_are_what_the_schema_allows() {
    check(16, false, Whitespace::Spaced);
    check(4, false, Whitespace::Compact);
    check(4, false, Whitespace::Flexible);
}

#[test]
fn what_a_budget_cuts_is_whole() {
    let cut = check(20, true, Whitespace::Spaced);
    assert!(cut >= 60, "{cut} met their budget");
}

#[test]
fn the_validator_tells_right_from_wrong() {
    for (schema, valid, invalid) in [
        (
            json!({"type": ["integer", "null"], "minimum": 2}),
            vec![json!(2), json!(2.0), json!(null)],
            vec![json!(1), json!(2.5), json!("a")],
        ),
        (
            json!({"properties": {"a": {"const": 1}}, "additionalProperties": false, "required": ["a"]}),
            vec![json!({"a": 1}), json!(3)],
            vec![json!({}), json!({"a": 2}), json!({"a": 1, "b": 2})],
        ),
        (
            json!({"prefixItems": [{"type": "null"}], "items": {"enum": ["x"]}, "maxItems": 2}),
            vec![json!([]), json!([null, "x"])],
            vec![json!(["x"]), json!([null, "y"]), json!([null, "x", "x"])],
        ),
        (
            json!({"oneOf": [{"type": "string", "minLength": 2}, {"pattern": "^a"}]}),
            vec![json!("a"), json!("bb"), json!(1)],
            vec![json!("ab"), json!("b")],
        ),
        (
            json!({"if": {"type": "string"}, "then": {"maxLength": 1}, "else": {"multipleOf": 3}}),
            vec![json!("é"), json!(6)],
            vec![json!("ab"), json!(4)],
        ),
        (
            json!({"not": {"required": ["a"]}, "dependentRequired": {"b": ["c"]}}),
            vec![json!({}), json!({"b": 1, "c": 2})],
            vec![json!({"a": 1}), json!({"b": 1})],
        ),
    ] {
        valid.iter().for_each(|value| assert!(is_valid(value, &schema, &schema), "{schema}: {value}"));
        invalid.iter().for_each(|value| assert!(!is_valid(value, &schema, &schema), "{schema}: {value}"));
    }
}
