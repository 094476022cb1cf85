//! Calls of functions: what answers may be, in several notations.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;
use wardrobe_grammar::{Beside, Function, GrammarError, Spec, Template, ToolCalls};
use wardrobe_text::{NotationPart, TokenId, ToolNotation};

fn text(text: &str) -> Vec<NotationPart> {
    vec![NotationPart::Text(text.to_owned())]
}

fn tagged() -> ToolNotation {
    ToolNotation {
        first: text("<tool_call>\n{\"name\": \""),
        middle: text("\", \"arguments\": "),
        next: Some(text("}\n</tool_call>\n<tool_call>\n{\"name\": \"")),
        last: text("}\n</tool_call>"),
    }
}

fn bare() -> ToolNotation {
    ToolNotation {
        first: text("{\"name\": \""),
        middle: text("\", \"parameters\": "),
        next: None,
        last: text("}"),
    }
}

fn listed() -> ToolNotation {
    let id = |lead: &str, tail: &str| [text(lead), vec![NotationPart::Id], text(tail)].concat();
    ToolNotation {
        first: text("[CALLS] [{\"name\": \""),
        middle: text("\", \"arguments\": "),
        next: Some(id(", \"id\": \"", "\"}, {\"name\": \"")),
        last: id(", \"id\": \"", "\"}]"),
    }
}

fn functions() -> Vec<Function> {
    let function = |name: &str, parameters| Function { name: name.to_owned(), parameters, strict: true };
    vec![
        function(
            "get",
            json!({"type": "object", "properties": {"key": {"type": "string", "maxLength": 9}}, "required": ["key"]}),
        ),
        function("get_all", Value::Null),
        function("set", json!({"properties": {"n": {"type": "integer"}, "x": {"type": "number"}}})),
    ]
}

fn spec(notation: ToolNotation, beside: Beside, max_calls: usize) -> Spec {
    Spec::ToolCalls(Box::new(ToolCalls { notation, functions: functions(), beside, max_calls }))
}

fn compiled(notation: ToolNotation, beside: Beside, max_calls: usize) -> std::sync::Arc<Template> {
    compile(&spec(notation, beside, max_calls)).unwrap()
}

/// A call in the tagged notation.
fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

#[test]
fn required_calls_are_calls() {
    let one = compiled(tagged(), Beside::Nothing, 1);
    let many = compiled(tagged(), Beside::Nothing, 3);
    for (answer, may_be_one, may_be_many) in [
        (call("get", r#"{"key": "a"}"#), true, true),
        (call("get_all", "{}"), true, true),
        (call("set", r#"{"n": 1, "x": 2.5}"#), true, true),
        (call("set", "{}"), true, true),
        (format!("{}\n{}", call("get_all", "{}"), call("set", r#"{"n": 12}"#)), false, true),
        (format!("{0}\n{0}\n{0}\n{0}", call("get_all", "{}")), false, false),
        (call("get", "{}"), false, false),
        (call("get", r#"{"key": "a", "more": 1}"#), false, false),
        (call("get", r#"{"key": "0123456789"}"#), false, false),
        (call("got", "{}"), false, false),
        (call("set", r#"{"n": 1234567890123456789}"#), false, false),
        (call("set", r#"{"x": -0}"#), false, false),
        (format!("Well. {}", call("get_all", "{}")), false, false),
        ("Well.".to_owned(), false, false),
        (String::new(), false, false),
    ] {
        assert_eq!(accepts(&one, &answer), may_be_one, "{answer}");
        assert_eq!(accepts(&many, &answer), may_be_many, "{answer}");
    }
}

/// Objects that say nothing of other members have none, below properties of whatever name; constants stay what they are.
#[test]
fn parameters_are_closed_and_constants_kept() {
    let inner = json!({"type": "object", "properties": {"a": {"type": "null"}}});
    let parameters =
        json!({"properties": {"const": inner, "shape": {"const": inner}}, "required": ["const", "shape"]});
    let functions = vec![Function { name: "f".to_owned(), parameters, strict: true }];
    let calls = ToolCalls { notation: tagged(), functions, beside: Beside::Nothing, max_calls: 1 };
    let template = compile(&Spec::ToolCalls(Box::new(calls))).unwrap();
    let shape = r#"{"type": "object", "properties": {"a": {"type": "null"}}}"#;
    let answer = |inner: &str| call("f", &format!(r#"{{"const": {inner}, "shape": {shape}}}"#));
    assert!(accepts(&template, &answer(r#"{"a": null}"#)) && accepts(&template, &answer("{}")));
    assert!(!accepts(&template, &answer(r#"{"b": 1}"#)));
}

#[test]
fn an_answer_may_be_text_and_then_calls() {
    let auto = compiled(tagged(), Beside::Text, 3);
    let get = call("get", r#"{"key": "a"}"#);
    for (answer, want) in [
        (String::new(), true),
        ("In 12345678901234567890 \"years\", -0 < <tool_cal and <tool> {\"name\": \n".to_owned(), true),
        (get.clone(), true),
        (format!("I look it up: \"123\n\n{get}"), true),
        (format!("<tool_<tool_call<{get}"), true),
        (format!("{get}\n{get}"), true),
        (format!("{get} Well."), false),
        ("<tool_call> is how calls begin".to_owned(), false),
        (format!("a {}", call("set", r#"{"n": 1234567890123456789}"#)), false),
        (format!("a \" {}", call("set", r#"{"x": -0}"#)), false),
        (format!("a \" {}", call("set", r#"{"x": -0.5}"#)), true),
    ] {
        assert_eq!(accepts(&auto, &answer), want, "{answer}");
    }
    assert!(auto.shortest().is_empty());
}

#[test]
fn calls_without_a_mark_are_the_whole_answer() {
    let auto = compiled(bare(), Beside::Text, 3);
    let call = r#"{"name": "get", "parameters": {"key": "a"}}"#;
    for (answer, want) in [
        (call.to_owned(), true),
        ("In 12345678901234567890 \"years\"".to_owned(), true),
        (r#"{"other": 12345678901234567890}"#.to_owned(), true),
        (format!("Well: {call}"), true),
        (r#"{"name": "got"}"#.to_owned(), false),
        (format!("{call}, {call}"), false),
        (r#"{"name": "set", "parameters": {"n": 1234567890123456789}}"#.to_owned(), false),
    ] {
        assert_eq!(accepts(&auto, &answer), want, "{answer}");
    }
}

#[test]
fn special_tokens_of_a_notation_are_these_tokens() {
    let follow = |template: &Template, answer: &str| {
        let mut session = template.session();
        let mut rest = answer;
        while let Some(c) = rest.chars().next() {
            let is_mark = rest.starts_with("[CALLS]");
            let (id, len) = if is_mark { (CALLS, 7) } else { (TokenId(c as u32), 1) };
            let mask = mask_of(&mut *session);
            let accepted = session.accept(id).is_ok();
            assert!(accepted == is_set(&mask, id) || !session.forced_tokens().is_empty(), "{rest}");
            if !accepted {
                return false;
            }
            rest = &rest[len..];
        }
        session.may_end().unwrap()
    };
    let get = r#"{"name": "get", "arguments": {"key": "a"}, "id": "abcDEF012"}"#;
    let auto = compiled(listed(), Beside::Text, 2);
    let required = compiled(listed(), Beside::Nothing, 2);
    for (answer, may_be_auto, may_be_required) in [
        (format!("[CALLS] [{get}]"), true, true),
        (format!("[CALLS] [{get}, {get}]"), true, true),
        (format!("[CALLS] [{get}, {get}, {get}]"), false, false),
        (format!("Well. [CALLS] [{get}]"), true, false),
        ("Well.".to_owned(), true, false),
        (r#"[CALLS] [{"name": "get_all", "arguments": {}, "id": "short"}]"#.to_owned(), false, false),
    ] {
        assert_eq!(follow(&auto, &answer), may_be_auto, "{answer}");
        assert_eq!(follow(&required, &answer), may_be_required, "{answer}");
    }
}

#[test]
fn an_answer_may_be_json_instead() {
    let answer = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
    let template = compiled(tagged(), Beside::Json { schema: answer, strict: true }, 2);
    assert!(accepts(&template, r#"{"a": 1}"#) && accepts(&template, &call("get_all", "{}")));
    assert!(!accepts(&template, "Well.") && !accepts(&template, r#"{"a": 1234567890123456789}"#));
}

#[test]
fn what_cannot_be_offered_is_refused_by_function() {
    let of = |name: &str, parameters: Value| {
        let functions = vec![Function { name: name.to_owned(), parameters, strict: true }];
        let calls = ToolCalls { notation: tagged(), functions, beside: Beside::Nothing, max_calls: 1 };
        compile(&Spec::ToolCalls(Box::new(calls))).unwrap_err()
    };
    for (name, parameters, told) in [
        ("", Value::Null, "is not a name"),
        ("a b", Value::Null, "is not a name"),
        ("f", json!([]), "function f: its parameters are no schema"),
        ("f", json!({"type": "array"}), "function f: its parameters are not of the type"),
        (
            "f",
            json!({"properties": {"a": {"contains": {}}}}),
            "`contains` at $.properties.a of the parameters of function f",
        ),
        ("f", json!({"properties": {"a": {"$ref": "#/$defs/b"}}}), "function f"),
    ] {
        let error = of(name, parameters).to_string();
        assert!(error.contains(told), "{error}");
    }
    let twice = ToolCalls {
        notation: tagged(),
        functions: [functions(), functions()].concat(),
        beside: Beside::Text,
        max_calls: 1,
    };
    let error = compile(&Spec::ToolCalls(Box::new(twice))).unwrap_err();
    assert!(matches!(error, GrammarError::Invalid { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever was sampled so far, the way to the end is whole, and what a mask allows goes on to somewhere.
    #[test]
    fn cut_answers_are_whole(
        which in 0..3_usize,
        beside in 0..2_usize,
        draws in prop::collection::vec(any::<prop::sample::Index>(), 0..50),
        start in prop::sample::select(vec!["", "Well. ", "<tool_call>\n", "<tool_call>\n{\"name\": \"get\", "]),
    ) {
        let notation = [tagged(), bare(), listed()][which].clone();
        let beside = [Beside::Nothing, Beside::Text][beside].clone();
        let template = compiled(notation, beside, 2);
        let mut session = template.session();
        let mut written = Vec::new();
        for byte in start.bytes() {
            if session.accept(TokenId(byte.into())).is_err() {
                break;
            }
            written.push(TokenId(byte.into()));
        }
        for draw in draws {
            let mask = mask_of(&mut *session);
            let allowed: Vec<TokenId> = (0..END.0).map(TokenId).filter(|id| is_set(&mask, *id)).collect();
            if allowed.is_empty() {
                break;
            }
            let token = *draw.get(&allowed);
            session.accept(token).unwrap();
            written.push(token);
        }
        let end = session.shortest_end(400).unwrap().unwrap();
        for token in end {
            session.accept(token).unwrap();
            written.push(token);
        }
        prop_assert!(session.may_end().unwrap());
        // The same tokens once more, from the beginning.
        prop_assert_eq!(template.session().validate(&written).unwrap(), written.len());
    }
}
