//! Specs that are refused: with the place at fault, and without hanging or dying.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::*;
use wardrobe_grammar::{EngineKind, GrammarError, Limits, Spec, Whitespace};

fn refusal(spec: &Spec) -> GrammarError {
    compile(spec).err().unwrap_or_else(|| panic!("{spec:?} was taken"))
}

/// Not by `json!`, which goes through what it is given once more.
fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::Bool(true), |inner, _| {
        Value::Object([("items".to_owned(), inner)].into_iter().collect())
    })
}

#[test]
fn keywords_are_named_with_their_path() {
    for (given, keyword, path) in [
        (json!({"properties": {"a": {"items": {"not": {"pattern": "a"}}}}}), "not", "$.properties.a.items"),
        (json!({"anyOf": [{}, {"if": {"pattern": "a"}, "then": {}}]}), "if", "$.anyOf[1]"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems", "$"),
        (json!({"$defs": {"x": {"contains": {}}}}), "contains", "$.$defs.x"),
        (json!({"items": [{"format": "iri"}]}), "format", "$.items[0]"),
        (json!({"$ref": "https://example.com/schema"}), "$ref", "$"),
        (json!({"$ref": "other.json#/a"}), "$ref", "$"),
    ] {
        match refusal(&schema(given.clone())) {
            GrammarError::Unsupported { keyword: k, path: p, .. } => {
                assert_eq!((k.as_str(), p.as_str()), (keyword, path))
            }
            other => panic!("{given}: {other}"),
        }
    }
    // What says nothing about instances is no reason to refuse.
    for fine in [
        json!({"type": "array", "uniqueItems": false}),
        json!({"type": "integer", "format": "int32", "x-my-own": 1, "description": "not"}),
        json!({"type": "string", "format": "my-format"}),
        json!({"properties": {"not": {"type": "null"}, "if": {}}, "type": "object"}),
    ] {
        compile(&schema(fine.clone())).unwrap_or_else(|error| panic!("{fine}: {error}"));
    }
}

#[test]
fn what_is_not_strict_is_left_out_with_a_warning() {
    let given = json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true, "maxItems": 3});
    let template = compile(&Spec::JsonSchema { schema: given, strict: false }).unwrap();
    assert!(template.warnings().iter().any(|w| w.contains("uniqueItems") && w.contains('$')), "{template:?}");
    assert!(accepts(&template, "[1, 1]") && !accepts(&template, "[\"a\"]"));
}

#[test]
fn options_of_the_engine_below_are_not_the_callers() {
    let given = json!({"type": "object", "contains": {}, "x-guidance": {"lenient": true, "whitespace_flexible": true}});
    assert!(matches!(refusal(&schema(given)), GrammarError::Unsupported { .. }));
    let given = json!({"type": "object", "x-guidance": {"whitespace_flexible": true}});
    let template = compile(&schema(given)).unwrap();
    assert!(accepts(&template, "{}") && !accepts(&template, "{ }"));
}

#[test]
fn contradictions() {
    for given in [
        json!(false),
        json!({"type": "string", "minLength": 3, "maxLength": 2}),
        json!({"type": "integer", "minimum": 3, "maximum": 2}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"type": "object", "properties": {"a": false}, "required": ["a"]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}}),
    ] {
        let error = refusal(&schema(given.clone()));
        assert!(matches!(error, GrammarError::Unsatisfiable { kind: "schema", .. }), "{given}: {error:?}");
    }
    for given in [
        json!("text"),
        json!({"type": 3}),
        json!({"type": "strin"}),
        json!({"properties": []}),
        json!({"items": 3}),
        json!({"minLength": -1}),
        json!({"minLength": "a"}),
        json!({"pattern": 3}),
        json!({"pattern": "(", "type": "string"}),
        json!({"enum": 3}),
        json!({"required": "a", "type": "object"}),
        json!({"$ref": "#/nowhere"}),
        json!({"$ref": 3}),
        json!({"anyOf": {}}),
    ] {
        let error = refusal(&schema(given.clone()));
        assert!(matches!(error, GrammarError::Invalid { kind: "schema", .. }), "{given}: {error:?}");
    }
    assert!(matches!(
        refusal(&Spec::Regex("(".into())),
        GrammarError::Invalid { kind: "regular expression", .. }
    ));
    assert!(matches!(refusal(&Spec::Choice(vec![])), GrammarError::Invalid { kind: "choice", .. }));
    assert!(matches!(
        refusal(&Spec::Lark("start: nothing".into())),
        GrammarError::Invalid { kind: "grammar", .. }
    ));
}

#[test]
fn bombs_are_refused_or_bounded() {
    let wide: Value = (0..10_000)
        .map(|i| (format!("p{i}"), json!({"type": "integer"})))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let names: Vec<String> = (0..10_000).map(|i| format!("p{i}")).collect();
    let recursive = json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}});
    let specs = [
        schema(nested(10_000)),
        schema(nested(200)),
        schema(recursive),
        schema(json!({"type": "object", "properties": wide, "required": names})),
        schema(json!({"type": "string", "minLength": 1_000_000_000_u64})),
        schema(json!({"type": "string", "minLength": 900_000})),
        schema(json!({"type": "array", "items": {}, "minItems": 1_000_000})),
        schema(json!({"type": "string", "pattern": "^[ab]*a[ab]{2000}$"})),
        Spec::Regex("[ab]*a[ab]{20}".into()),
        Spec::Regex("((a{0,1000}){0,1000}){0,1000}".into()),
        Spec::Regex("(x+x+)+y".into()),
        Spec::Lark("start: start start | \"a\"".into()),
        Spec::Lark("start: \"a\" start".into()),
        Spec::Lark("start: more\nmore: /a+/ more".into()),
        Spec::Choice((0..20_000).map(|i| format!("choice number {i}")).collect()),
    ];
    let compiler = compiler_within(Limits { deadline: Duration::from_secs(5), ..Limits::default() });
    for (idx, spec) in specs.iter().enumerate() {
        // Whatever becomes of it, it ends, and what it ends with is of use.
        match compiler.compile(spec, Whitespace::Spaced) {
            Ok(template) => {
                let mut session = template.session();
                let mut mask = vec![0; compiler.vocabulary().unwrap().mask_len()];
                let _ = session.fill_mask(&mut mask);
            }
            Err(GrammarError::Engine { message }) => panic!("spec {idx}: {message}"),
            Err(_) => {}
        }
    }
    // Nobody else is disturbed, and the machine is not filled.
    assert!(compiler.compile(&schema(json!({"type": "boolean"})), Whitespace::Spaced).is_ok());
    if let Some(peak) = peak_kib() {
        assert!(peak < 1 << 20, "{peak} KiB");
    }
}

/// The most memory that this process has had, where the system says so.
fn peak_kib() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()
}

/// A grammar without an end is none, whatever it allows on the way.
#[test]
fn what_never_ends_is_refused() {
    for lark in ["start: \"a\" start", "start: more\nmore: /a+/ more | /b/ more"] {
        let error = refusal(&Spec::Lark(lark.into()));
        assert!(
            matches!(
                error,
                GrammarError::Unsatisfiable { .. }
                    | GrammarError::Invalid { .. }
                    | GrammarError::TooLarge { .. }
            ),
            "{lark}: {error:?}"
        );
    }
}

/// Small schemas that, said in other keywords or written out, would fill the machine.
#[test]
fn what_grows_in_preparation_is_bounded() {
    let many: Value =
        (0..40_000).map(|i| (format!("p{i}"), json!(true))).collect::<serde_json::Map<_, _>>().into();
    let nested =
        |wrap: &dyn Fn(Value) -> Value| (0..22).fold(json!({"required": ["a"]}), |inner, _| wrap(inner));
    let mut chain = serde_json::Map::new();
    chain.insert("a0".to_owned(), json!({"type": "null"}));
    for i in 1..11 {
        let below = vec![json!({"$ref": format!("#/$defs/a{}", i - 1)}); 40];
        chain.insert(format!("a{i}"), json!({"anyOf": below}));
    }
    for (idx, given) in [
        json!({"properties": many, "anyOf": vec![json!(true); 40_000]}),
        nested(&|inner| json!({"oneOf": [inner, {"type": "null"}, {"type": "object", "minProperties": 1}]})),
        nested(&|inner| json!({"oneOf": [inner, {"required": ["b"]}]})),
        nested(&|inner| json!({"if": inner, "then": {"required": ["b"]}, "else": {"required": ["c"]}})),
        json!({"$ref": "#/$defs/a10", "$defs": chain}),
    ]
    .into_iter()
    .enumerate()
    {
        match compile(&schema(given)) {
            Ok(_) => {}
            Err(GrammarError::Engine { message }) => panic!("schema {idx}: {message}"),
            Err(error) => assert!(!matches!(error, GrammarError::Deadline { .. }), "schema {idx}: {error}"),
        }
    }
}

#[test]
fn a_long_maximum_is_no_reason_to_refuse() {
    for given in [
        json!({"type": "string", "maxLength": 1_000_000_000_u64}),
        json!({"type": "string", "maxLength": 100_000}),
        json!({"type": "array", "items": {"type": "string", "maxLength": 5000}, "maxItems": 1_000_000}),
    ] {
        compile(&schema(given.clone())).unwrap_or_else(|error| panic!("{given}: {error}"));
    }
}

#[test]
fn what_takes_too_long_is_a_refusal() {
    let slow = compiler_within(Limits {
        deadline: Duration::from_millis(20),
        max_compiling: 0,
        ..Limits::default()
    });
    let refused = slow.compile(&schema(json!({"type": "object"})), Whitespace::Spaced);
    assert!(matches!(refused, Err(GrammarError::Deadline { .. })), "{refused:?}");
}

#[test]
fn refusals_and_templates_are_kept_within_bounds() {
    let compiler = compiler_within(Limits { max_kept: 2, ..Limits::default() });
    let compile = |text: &str| compiler.compile(&Spec::Regex(text.into()), Whitespace::Spaced);
    let first = compile("a").unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &compile("a").unwrap()), "compiled once");
    assert_eq!(compile("(").err(), compile("(").err());
    compile("b").unwrap();
    assert!(
        !std::sync::Arc::ptr_eq(&first, &compile("a").unwrap()),
        "the one that was not used for longest is gone"
    );
    let only = compiler_within(Limits { engine: Some(EngineKind::Closed), ..Limits::default() });
    assert!(only.compile(&schema(json!({"type": "object"})), Whitespace::Spaced).is_err());
}
