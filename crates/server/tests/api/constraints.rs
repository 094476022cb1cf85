//! Answers that are held to something: by every field that asks for it, whole and streamed, whatever ends them.

use serde_json::{Value, json};
use wardrobe_server::ServerConfig;

use crate::support_http::Bench;

type Fits<'a> = &'a dyn Fn(&str) -> bool;

const CHAT: &str = "/v1/chat/completions";

fn body(change: Value) -> Value {
    let mut body =
        json!({"model": "fake", "temperature": 1.5, "messages": [{"role": "user", "content": "x"}]});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn record() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

/// Not for the table: a pattern, and properties that may be absent.
fn open_record() -> Value {
    json!({
        "type": "object",
        "properties": {"id": {"type": "string", "pattern": "^[a-f]{2,6}-x$"}, "note": {"type": "string"}},
        "required": ["id"],
    })
}

fn format_of(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "record", "strict": true, "schema": schema}})
}

fn fits(which: usize, text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return false };
    if which == 0 {
        value.as_object().is_some_and(|o| o.keys().eq(["name", "age", "tags"]))
            && value["name"].as_str().is_some_and(|name| name.chars().count() <= 12)
            && value["age"].is_i64()
            && value["tags"].as_array().is_some_and(|tags| tags.iter().all(|t| t == "a" || t == "b"))
    } else {
        value["id"].as_str().is_some_and(|id| id.ends_with("-x") && id.len() <= 8)
    }
}

#[tokio::test]
async fn whatever_ends_an_answer_it_fits_its_schema() {
    let bench = Bench::new(ServerConfig::default());
    let mut ends = [0, 0];
    for (which, schema) in [record(), open_record()].iter().enumerate() {
        for seed in 0..60 {
            // Budgets from the least to plenty.
            let max_tokens = 40 + seed * 3;
            let asked =
                body(json!({"response_format": format_of(schema), "seed": seed, "max_tokens": max_tokens}));
            let answer = bench.post(CHAT, &asked).await.ok();
            let choice = &answer["choices"][0];
            let text = choice["message"]["content"].as_str().unwrap();
            assert!(fits(which, text), "{text:?} of {max_tokens} tokens");
            let used = answer["usage"]["completion_tokens"].as_u64().unwrap();
            assert!(used <= max_tokens, "{used} of {max_tokens}");
            match choice["finish_reason"].as_str().unwrap() {
                "stop" => ends[0] += 1,
                "length" => ends[1] += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert!(ends[0] > 0, "{ends:?}");
    bench.assert_idle().await;
}

#[tokio::test]
async fn a_budget_that_is_too_small_is_refused_at_once() {
    let bench = Bench::new(ServerConfig::default());
    for max_tokens in [1, 5, 20] {
        let asked = body(json!({"response_format": format_of(&record()), "max_tokens": max_tokens}));
        let error = bench.post(CHAT, &asked).await.error(400);
        assert_eq!(error["param"], "max_tokens", "{error}");
        assert!(error["message"].as_str().unwrap().contains("shortest answer"), "{error}");
    }
}

#[tokio::test]
async fn streams_are_what_whole_answers_are() {
    let bench = Bench::new(ServerConfig::default());
    for schema in [record(), open_record()] {
        for change in [json!({}), json!({"logprobs": true, "top_logprobs": 2})] {
            let mut asked =
                body(json!({"response_format": format_of(&schema), "seed": 7, "max_tokens": 120}));
            for (key, value) in change.as_object().unwrap() {
                asked[key] = value.clone();
            }
            let whole = bench.post(CHAT, &asked).await.ok();
            asked["stream"] = json!(true);
            let chunks = bench.post(CHAT, &asked).await.chunks();
            let text: String =
                chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(whole["choices"][0]["message"]["content"], json!(text));
        }
    }
}

#[tokio::test]
async fn every_way_to_ask() {
    let bench = Bench::new(ServerConfig::default());
    let any_json = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object());
    let boolean = json!({"type": "boolean"});
    let is_boolean = |text: &str| matches!(text, "true" | "false");
    let digits = |text: &str| text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    let chosen = |text: &str| matches!(text, "yes" | "no");
    let ways: [(Value, Fits<'_>); 13] = [
        (json!({"response_format": {"type": "json_object"}}), &any_json),
        (json!({"response_format": {"type": "json_object", "schema": boolean}}), &is_boolean),
        (json!({"structured_outputs": {"json": boolean}}), &is_boolean),
        (json!({"structured_outputs": {"json": boolean.to_string()}}), &is_boolean),
        (json!({"structured_outputs": {"regex": "[0-9]{3}"}}), &digits),
        (json!({"structured_outputs": {"choice": ["yes", "no"]}}), &chosen),
        (json!({"structured_outputs": {"grammar": "start: \"yes\" | \"no\""}}), &chosen),
        (json!({"guided_json": boolean}), &is_boolean),
        (json!({"guided_regex": "[0-9]{3}"}), &digits),
        (json!({"guided_choice": ["yes", "no"]}), &chosen),
        (json!({"json_schema": boolean}), &is_boolean),
        (json!({"grammar": "root ::= word # one\nword ::= \"yes\" | \"no\""}), &chosen),
        (json!({"structured_outputs": {"grammar": "root ::= [0-9]{3}"}}), &digits),
    ];
    for (change, fits) in ways {
        let mut asked = body(change.clone());
        asked["max_tokens"] = json!(60);
        // What would cut a body short has no say in it.
        asked["stop"] = json!(["e", "1", "{"]);
        asked["min_tokens"] = json!(40);
        let answer = bench.post(CHAT, &asked).await.ok();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(fits(text), "{change}: {text:?}");
        let mut plain = change.clone();
        plain["prompt"] = json!("x");
        plain["max_tokens"] = json!(60);
        let answer = bench.post("/v1/completions", &plain).await.ok();
        assert!(fits(answer["choices"][0]["text"].as_str().unwrap()), "{change}");
    }
}

#[tokio::test]
async fn a_mixed_batch() {
    let bench = Bench::new(ServerConfig::default());
    let one = |seed: u64| {
        let bench = &bench;
        async move {
            let asked = match seed % 4 {
                0 => body(json!({"response_format": format_of(&record()), "seed": seed, "max_tokens": 100})),
                1 => body(
                    json!({"response_format": format_of(&open_record()), "seed": seed, "n": 3, "max_tokens": 90}),
                ),
                2 => body(json!({"guided_choice": [format!("choice {seed}")]})),
                _ => body(json!({"temperature": 0, "max_tokens": 5})),
            };
            let answer = bench.post(CHAT, &asked).await.ok();
            for choice in answer["choices"].as_array().unwrap() {
                let text = choice["message"]["content"].as_str().unwrap();
                let right = match seed % 4 {
                    2 => text == format!("choice {seed}"),
                    3 => !text.is_empty(),
                    which => fits(which as usize, text),
                };
                assert!(right, "{seed}: {text:?}");
            }
        }
    };
    futures_util::future::join_all((0..24).map(one)).await;
    bench.assert_idle().await;
}

#[tokio::test]
async fn refusals_name_field_keyword_and_path() {
    let bench = Bench::new(ServerConfig::default());
    let nested = format_of(&json!({"properties": {"a": {"not": {"pattern": "a"}}}}));
    for (change, param, says) in [
        (json!({"response_format": nested}), "response_format", "`not` at $.properties.a"),
        (json!({"response_format": format_of(&json!(false))}), "response_format", "no answer"),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs", "regular expression"),
        (json!({"guided_choice": []}), "guided_choice", "nothing to choose"),
        (json!({"guided_json": {"type": "string", "minLength": 1_000_000_000}}), "guided_json", "minLength"),
        (json!({"guided_json": {"$ref": "http://example.com/x"}}), "guided_json", "fetched"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice", "`guided_regex`"),
        (json!({"guided_regex": "a", "allowed_token_ids": [97]}), "allowed_token_ids", "constraint"),
        (json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos", "constraint"),
    ] {
        let error = bench.post(CHAT, &body(change.clone())).await.error(400);
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    for nonsense in [
        json!({"response_format": 3}),
        json!({"response_format": {"type": "xml"}}),
        json!({"guided_choice": "a"}),
    ] {
        bench.post(CHAT, &body(nonsense)).await.error(400);
    }
    bench.assert_idle().await;
}

#[tokio::test]
async fn an_adapters_own_schema_holds_unless_a_request_says_otherwise() {
    let bench = Bench::new(ServerConfig::default());
    let root = tempfile::tempdir().unwrap();
    crate::support::write_adapter(root.path(), "own", 'k');
    std::fs::write(root.path().join("own/schema.json"), record().to_string()).unwrap();
    let source = wardrobe_engine::AdapterSource::Path(root.path().join("own"));
    bench.engine.load_adapter("own", source, wardrobe_engine::LoadOptions::default()).unwrap();
    assert_eq!(bench.get("/v1/lora_adapters").await.ok()["data"][0]["has_schema"], true);
    let text = |answer: Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    for seed in 0..10 {
        let asked = json!({"model": "own", "seed": seed, "max_tokens": 100});
        let held = text(bench.post(CHAT, &body(asked.clone())).await.ok());
        assert!(fits(0, &held), "{held}");
        for (change, right) in [
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"guided_choice": ["yes"]}), Some("yes")),
        ] {
            let mut other = body(asked.clone());
            for (key, value) in change.as_object().unwrap() {
                other[key] = value.clone();
            }
            let answer = text(bench.post(CHAT, &other).await.ok());
            assert!(right.map_or(!fits(0, &answer), |right| answer == right), "{answer}");
        }
        let prompt = json!({"model": "own", "prompt": "x", "max_tokens": 100});
        let answer = bench.post("/v1/completions", &prompt).await.ok();
        assert!(fits(0, answer["choices"][0]["text"].as_str().unwrap()), "{answer}");
    }
    bench.assert_idle().await;
}

#[tokio::test]
async fn what_is_not_strict_is_checked_and_told() {
    let bench = Bench::new(ServerConfig::default());
    let list = json!({"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "maxItems": 4, "uniqueItems": true});
    let loose = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": list}});
    let warnings = |choice: &Value| {
        choice["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    // Three different ones of two: no answer can be valid.
    let mut asked = body(json!({"response_format": loose, "max_tokens": 30}));
    let answer = bench.post(CHAT, &asked).await.ok();
    let told = warnings(&answer["choices"][0]);
    assert!(told[0].contains("`uniqueItems` at $"), "{told:?}");
    assert!(told[1].contains("the answer is not valid by the schema: at its root"), "{told:?}");
    asked["stream"] = json!(true);
    let chunks = bench.post(CHAT, &asked).await.chunks();
    let last = chunks.iter().find(|chunk| !chunk["choices"][0]["finish_reason"].is_null()).unwrap();
    assert_eq!(warnings(&last["choices"][0]).len(), 2);
    for stream in [false, true] {
        let plain = json!({"prompt": "x", "response_format": loose, "max_tokens": 30, "stream": stream});
        let answer = bench.post("/v1/completions", &plain).await;
        let all = if stream { answer.chunks() } else { vec![answer.ok()] };
        assert!(
            all.iter()
                .any(|answer| answer["choices"][0]["warnings"].as_array().is_some_and(|w| w.len() == 2))
        );
    }
    // What happens to be valid is not complained of, and what is held whole is not spoken of.
    let one = json!({"type": "json_schema", "json_schema": {"name": "x",
        "schema": {"type": "array", "items": {"type": "boolean"}, "maxItems": 1, "uniqueItems": true}}});
    let answer = bench.post(CHAT, &body(json!({"response_format": one, "max_tokens": 30}))).await.ok();
    assert!(answer["choices"][0]["warnings"].as_array().is_none_or(|w| w.len() == 1), "{answer}");
    let strict = body(json!({"response_format": format_of(&record()), "max_tokens": 90}));
    assert!(bench.post(CHAT, &strict).await.ok()["choices"][0].get("warnings").is_none());
    // Arguments of calls too.
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": list}, "required": ["a"]}}});
    let calls = body(
        json!({"tools": [tool], "tool_choice": "required", "max_tokens": 150, "parallel_tool_calls": false}),
    );
    let told = warnings(&bench.post(CHAT, &calls).await.ok()["choices"][0]);
    assert!(told[0].contains("function f: ") && told[1].contains("the arguments of f: "), "{told:?}");
    bench.assert_idle().await;
}

#[tokio::test]
async fn which_engine_holds_an_answer_can_be_measured() {
    let bench = Bench::new(ServerConfig::default());
    for (schema, times) in [(record(), 3), (open_record(), 2)] {
        for _ in 0..times {
            let asked = body(json!({"response_format": format_of(&schema), "max_tokens": 90}));
            bench.post(CHAT, &asked).await.ok();
        }
    }
    bench.post(CHAT, &body(json!({"guided_regex": "("}))).await.error(400);
    let metrics = bench.get("/metrics").await;
    let value = |name: &str, outcome: &str| {
        let line =
            metrics.text().lines().find(|line| line.starts_with(name) && line.contains(outcome)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    for (outcome, asked, compiled) in [("closed", 3.0, 1.0), ("guidance", 2.0, 1.0), ("refused", 1.0, 1.0)] {
        assert_eq!(value("wardrobe:grammars_asked_total", outcome), asked, "{outcome}");
        assert_eq!(value("wardrobe:grammars_compiled_total", outcome), compiled, "{outcome}");
    }
    assert_eq!(value("wardrobe:grammars_kept", ""), 3.0);
    assert!(value("wardrobe:grammar_compile_seconds_total", "") > 0.0);
}
