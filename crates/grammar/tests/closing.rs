//! Objects of schemas are closed part by part: what is named somewhere may be there, what is named nowhere may not.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::generations::{Leaning, Random, generate};
use support::validity::is_valid;
use support::*;
use wardrobe_grammar::{Beside, Function, Spec, ToolCalls, close_objects};
use wardrobe_text::{NotationPart, ToolNotation};

/// A name, a schema, what it allows and what it does not once it is closed.
type Case = (&'static str, Value, Vec<Value>, Vec<Value>);

fn cases() -> Vec<Case> {
    let point = json!({"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"]});
    let circle = json!({"type": "object", "properties": {"r": {"type": "integer"}}, "required": ["r"]});
    vec![
        (
            "nested",
            json!({"type": "object", "properties": {"a": {"type": "array", "items": circle.clone()}, "const": circle.clone()}}),
            vec![json!({}), json!({"a": [{"r": 1}], "const": {"r": 2}})],
            vec![json!({"b": 1}), json!({"a": [{"r": 1, "b": 1}]}), json!({"const": {"r": 2, "c": 1}})],
        ),
        (
            "an enum's variants beside fields (serde's flatten)",
            json!({"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"], "oneOf": [
                {"type": "object", "properties": {"kind": {"const": "point"}, "at": point.clone()}, "required": ["kind", "at"]},
                {"type": "object", "properties": {"kind": {"const": "none"}}, "required": ["kind"]},
            ]}),
            vec![json!({"id": 1, "kind": "point", "at": {"x": 1, "y": 2}}), json!({"id": 1, "kind": "none"})],
            vec![
                json!({"id": 1}),
                json!({"id": 1, "kind": "none", "at": {"x": 1, "y": 2}}),
                json!({"id": 1, "kind": "none", "more": 1}),
                json!({"id": 1, "kind": "point", "at": {"x": 1, "y": 2, "z": 3}}),
            ],
        ),
        (
            "variants that refer to types (serde's tag)",
            json!({"oneOf": [
                    {"type": "object", "properties": {"kind": {"const": "point"}}, "required": ["kind"], "$ref": "#/$defs/point"},
                    {"type": "object", "properties": {"kind": {"const": "circle"}}, "required": ["kind"], "$ref": "#/$defs/circle"},
                ], "$defs": {"point": point.clone(), "circle": circle.clone()}}),
            vec![json!({"kind": "point", "x": 1, "y": 2}), json!({"kind": "circle", "r": 3})],
            vec![
                json!({"kind": "circle"}),
                json!({"kind": "circle", "r": 3, "x": 1}),
                json!({"kind": "circle", "r": 1, "b": 1}),
            ],
        ),
        (
            "a type as the base of another",
            json!({"allOf": [{"$ref": "#/$defs/circle"}, {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}],
                "$defs": {"circle": circle.clone()}}),
            vec![json!({"r": 1, "name": "a"})],
            vec![json!({"r": 1}), json!({"name": "a"}), json!({"r": 1, "name": "a", "b": 1})],
        ),
        (
            "a reference with a note, and one of several types",
            json!({"type": "object", "properties": {
                "a": {"allOf": [{"$ref": "#/$defs/circle"}], "description": "a circle"},
                "b": {"anyOf": [{"$ref": "#/$defs/point"}, {"$ref": "#/$defs/circle"}, {"type": "null"}]},
            }, "required": ["a", "b"], "$defs": {"point": point.clone(), "circle": circle.clone()}}),
            vec![
                json!({"a": {"r": 1}, "b": null}),
                json!({"a": {"r": 1}, "b": {"r": 2}}),
                json!({"a": {"r": 1}, "b": {"x": 2, "y": 3}}),
            ],
            vec![
                json!({"a": {"r": 1, "x": 1}, "b": null}),
                json!({"a": {"r": 1}, "b": {"r": 2, "x": 1, "y": 2}}),
            ],
        ),
        (
            "alternatives of what is required alone",
            json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            vec![json!({"a": null}), json!({"b": null}), json!({"a": null, "b": null})],
            vec![json!({}), json!({"a": null, "c": 1})],
        ),
        (
            "two sets of alternatives, one by reference",
            json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "allOf": [
                {"$ref": "#/$defs/first"},
                {"anyOf": [{"type": "object", "properties": {"d": {"const": 1}}, "required": ["d"]}, {"type": "object", "properties": {"d": {"const": 2}, "e": {"type": "null"}}, "required": ["d"]}]},
            ], "$defs": {"first": {"anyOf": [
                {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}, {"type": "object", "properties": {"c": {"type": "null"}}, "required": ["c"]},
            ]}}}),
            vec![json!({"a": null, "b": null, "d": 1}), json!({"a": null, "c": null, "d": 2, "e": null})],
            vec![
                json!({"a": null, "d": 1}),
                json!({"a": null, "b": null, "d": 1, "e": null}),
                json!({"a": null, "b": null, "c": null, "d": 1}),
                json!({"a": null, "b": null, "d": 1, "f": 1}),
            ],
        ),
        (
            "a type that has itself",
            json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"v": {"type": "integer"}, "sub": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["v"]}}}),
            vec![json!({"v": 1, "sub": [{"v": 2, "sub": []}]})],
            vec![json!({"v": 1, "sub": [{"v": 2, "b": 1}]})],
        ),
        (
            "values that look like schemas, and objects that are open",
            json!({"type": "object", "properties": {
                "shape": {"const": {"type": "object", "properties": {"a": {"type": "null"}}}},
                "which": {"enum": [{"properties": {"b": 1}}, 2]},
                "map": {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
                "any": {"type": "object"},
            }, "required": ["shape", "which", "map", "any"]}),
            vec![
                json!({"shape": {"type": "object", "properties": {"a": {"type": "null"}}}, "which": {"properties": {"b": 1}}, "map": {"z": 1}, "any": {"q": 1}}),
            ],
            vec![
                json!({"shape": {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": false}, "which": 2, "map": {}, "any": {}}),
            ],
        ),
    ]
}

/// As JSON is written in the default style.
fn written(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| format!("{}: {}", json!(name), written(value));
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[test]
fn objects_have_what_is_named_and_nothing_else() {
    let compiler = compiler();
    let leaning = Leaning::new(&tokenizer(), compiler.vocabulary().unwrap());
    for (name, given, valid, invalid) in cases() {
        let mut closed = given.clone();
        close_objects(&mut closed);
        let compiled = compiler.compile(&schema(closed.clone()), wardrobe_grammar::Whitespace::Spaced);
        let template = compiled.unwrap_or_else(|error| panic!("{name}: {error}\n{closed}"));
        for value in &valid {
            assert!(
                is_valid(value, &given, &given) && is_valid(value, &closed, &closed),
                "{name}: {value} by {closed}"
            );
            assert!(accepts(&template, &written(value)), "{name}: {value} by {closed}");
        }
        for value in &invalid {
            assert!(!is_valid(value, &closed, &closed), "{name}: {value} by {closed}");
            assert!(!accepts(&template, &written(value)), "{name}: {value} by {closed}");
        }
        for seed in 0..12 {
            let max_tokens = template.shortest().len() + 40;
            let made = generate(&template, &leaning, &[END], max_tokens, &mut Random(seed)).unwrap();
            let value: Value = serde_json::from_slice(&bytes(&made.tokens)).unwrap();
            // Closing allows nothing that was not allowed.
            assert!(is_valid(&value, &given, &given), "{name}: {value}");
        }
        let mut twice = closed.clone();
        close_objects(&mut twice);
        assert!(valid.iter().all(|value| is_valid(value, &twice, &twice)), "{name}: {twice}");
        assert!(!invalid.iter().any(|value| is_valid(value, &twice, &twice)), "{name}: {twice}");
    }
}

#[test]
fn parameters_of_functions_are_closed_the_same_way() {
    let text = |text: &str| vec![NotationPart::Text(text.to_owned())];
    for (name, given, valid, invalid) in
        cases().into_iter().filter(|(_, given, ..)| given["type"] == "object")
    {
        let notation = ToolNotation { first: text("<f>"), middle: text(" "), next: None, last: text("</f>") };
        let functions = vec![Function { name: "f".to_owned(), parameters: given, strict: true }];
        let calls = ToolCalls { notation, functions, beside: Beside::Nothing, max_calls: 1 };
        let template =
            compile(&Spec::ToolCalls(Box::new(calls))).unwrap_or_else(|error| panic!("{name}: {error}"));
        let call = |value: &Value| format!("<f>f {}</f>", written(value));
        assert!(valid.iter().all(|value| accepts(&template, &call(value))), "{name}");
        assert!(!invalid.iter().any(|value| accepts(&template, &call(value))), "{name}");
    }
}

/// Small schemas that would grow without bound.
#[test]
fn what_refers_to_itself_is_bounded() {
    let names: Value =
        (0..2000).map(|i| (format!("p{i}"), json!(true))).collect::<serde_json::Map<_, _>>().into();
    let mut chain = serde_json::Map::from_iter([("a0".to_owned(), json!({"properties": {"x": true}}))]);
    for i in 1..40 {
        let below = json!({"$ref": format!("#/$defs/a{}", i - 1)});
        chain.insert(
            format!("a{i}"),
            json!({"properties": {(format!("q{i}")): true}, "allOf": [below, below]}),
        );
    }
    for mut given in [
        json!({"$ref": "#"}),
        json!({"properties": {"a": {}}, "allOf": [{"$ref": "#"}]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"x": true}, "$ref": "#/$defs/b"}, "b": {"properties": {"y": true}, "$ref": "#/$defs/a"}}}),
        json!({"properties": {"z": true}, "$ref": "#/$defs/a39", "$defs": chain}),
        json!({"properties": names, "anyOf": vec![json!({"properties": {"y": true}, "$ref": "#/$defs/n"}); 2000], "$defs": {"n": {"properties": {"x": names}}}}),
        json!({"properties": {"a": {"$ref": "#/nowhere"}}, "allOf": 3, "oneOf": {"a": 1}, "items": [1, null]}),
        json!(true),
        json!([{"properties": {}}]),
    ] {
        let before = given.to_string().len();
        close_objects(&mut given);
        assert!(given.to_string().len() < before * 40 + 4_000_000);
    }
}
