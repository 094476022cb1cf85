//! Every way to be refused: the right status, OpenAI's error shape, and nothing left behind.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, header};
use proptest::prelude::*;
use serde_json::{Value, json};
use wardrobe_server::{RouteInfo, ServerConfig, routes};

use crate::support_http::Bench;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat_body(change: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The path of a route, with something in place of its parameters.
fn path_of(route: &RouteInfo) -> String {
    ["{*id}", "{id}", "{token}"].iter().fold(route.path.clone(), |path, name| path.replace(name, "fake"))
}

#[tokio::test]
async fn every_route_but_health_asks_for_a_key() {
    let config =
        ServerConfig { api_keys: vec!["key-one".into(), "key-two".into()], ..ServerConfig::default() };
    let bench = Bench::new(config);
    let mut tried = 0;
    for route in routes() {
        let path = path_of(&route);
        for headers in
            [vec![], vec![("authorization", "Bearer wrong")], vec![("authorization", "Basic key-one")]]
        {
            let answer = bench.call(&route.method, &path, &headers).await;
            if path == "/health" {
                assert_eq!(answer.status, 200);
                continue;
            }
            assert_eq!(answer.error(401)["code"], "invalid_api_key", "{route:?}");
            assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
            tried += 1;
        }
        for key in ["Bearer key-one", "bearer key-two"] {
            let answer = bench.call(&route.method, &path, &[("authorization", key)]).await;
            assert_ne!(answer.status, 401, "{route:?}");
        }
    }
    assert!(tried >= 3 * 20, "{tried}");
    for (method, path) in
        [(Method::GET, "/nowhere"), (Method::PUT, TEXT), (Method::OPTIONS, TEXT), (Method::GET, "/health/")]
    {
        bench.call(&method, path, &[]).await.error(401);
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_have_the_shape_too() {
    let bench = Bench::new(ServerConfig::default());
    assert_eq!(bench.get("/v1/nothing").await.error(404)["code"], "unknown_url");
    assert_eq!(bench.get("/").await.error(404)["code"], "unknown_url");
    for route in routes() {
        let answer = bench.call(&Method::PATCH, &path_of(&route), &[]).await;
        assert_eq!(answer.error(405)["code"], "method_not_allowed", "{route:?}");
        assert!(answer.headers.contains_key(header::ALLOW));
    }
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() {
    let bench = Bench::new(ServerConfig::default());
    let answer = bench.call(&Method::GET, "/v1/models", &[("x-request-id", "mine-7")]).await;
    assert_eq!(answer.headers["x-request-id"], "mine-7");
    let long = "x".repeat(1000);
    for bad in ["with space", long.as_str()] {
        let answer = bench.call(&Method::GET, "/nowhere", &[("x-request-id", bad)]).await;
        assert!(answer.headers["x-request-id"].to_str().unwrap().starts_with("req-"));
    }
}

#[tokio::test]
async fn bodies_are_checked_before_anything_else() {
    let bench = Bench::new(ServerConfig { body_limit_bytes: 1000, ..ServerConfig::default() });
    for path in [
        CHAT,
        TEXT,
        "/tokenize",
        "/detokenize",
        "/inference",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    ] {
        for body in [
            "",
            " ",
            "{",
            "[]",
            "null",
            "\"x\"",
            "{\"a\":1}}",
            "{\"prompt\":NaN}",
            "{\"prompt\":\"\\ud800\"}",
        ] {
            bench.post_text(path, body).await.error(400);
        }
        let invalid = Request::post(path).header("content-type", "application/json");
        bench.send(invalid.body(Body::from(b"{\"prompt\":\"\xff\"}".to_vec())).unwrap()).await.error(400);
        let nested = format!("{{\"messages\":{}{}}}", "[".repeat(400), "]".repeat(400));
        bench.post_text(path, &nested).await.error(400);
        let large = format!("{{\"prompt\":\"{}\"}}", "x".repeat(2000));
        assert_eq!(bench.post_text(path, &large).await.error(413)["code"], "request_too_large");
        let undeclared =
            futures_util::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100])));
        let request = Request::post(path).header("content-type", "application/json");
        bench.send(request.body(Body::from_stream(undeclared)).unwrap()).await.error(413);
        let request = Request::post(path).header("content-type", "text/plain").body(Body::from("{}"));
        bench.send(request.unwrap()).await.error(415);
    }
    let request = Request::post(TEXT).header("content-type", "application/json; charset=utf-8");
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    bench.send(request.body(Body::from(body.clone())).unwrap()).await.ok();
    bench.send(Request::post(TEXT).body(Body::from(body)).unwrap()).await.ok();
}

#[tokio::test]
async fn a_body_that_does_not_come_times_out() {
    let bench =
        Bench::new(ServerConfig { read_timeout: Duration::from_millis(30), ..ServerConfig::default() });
    let body = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    bench.send(Request::post(TEXT).body(body).unwrap()).await.error(408);
}

#[tokio::test]
async fn absurd_numbers_are_refused_by_name() {
    let bench = Bench::new(ServerConfig::default());
    let cases = [
        ("temperature", json!([-0.1, 1e300, "hot", [1], 101])),
        ("top_p", json!([0, -1, 1.5, 1e300])),
        ("top_k", json!([-2, 1u64 << 40, 1.5])),
        ("min_p", json!([-0.1, 1.1])),
        ("repetition_penalty", json!([0, -1, 1e300])),
        ("presence_penalty", json!([-2.1, 2.1])),
        ("frequency_penalty", json!([-3, 1e9])),
        ("n", json!([0, -1, 33, u64::MAX, 1.5, "2"])),
        ("max_tokens", json!([-1, 1.5, "3"])),
        ("max_completion_tokens", json!([-1, 1e30])),
        ("min_tokens", json!([3, -1])),
        ("seed", json!([1.5, "x", 1e30])),
        ("stop", json!([5, [""], vec!["x"; 17], ["x".repeat(2000)], [1]])),
        ("stop_token_ids", json!([[260], [-1], [u64::MAX], "x", vec![1; 200]])),
        (
            "logit_bias",
            json!([{"x": 1}, {"1": 101}, {"1": "a"}, {"260": 1}, {"-1": 1}, [1], {"4294967296": 1}]),
        ),
        ("allowed_token_ids", json!([[], [260], [-1]])),
        ("bad_words", json!([[""], ["x".repeat(300)], vec!["ab"; 129], "x"])),
        ("prompt_logprobs", json!([-1, 21, 1u64 << 40])),
        ("logprob_token_ids", json!([[260], vec![1; 30]])),
        ("truncate_prompt_tokens", json!([0, -2, 1.5])),
        ("priority", json!([1u64 << 40, 0.5])),
        ("cache_salt", json!([5, "x".repeat(300)])),
        ("expected_generation", json!([1, -1])),
        ("stream", json!(["yes", 1])),
        ("stream_options", json!([1, {"include_usage": 1}])),
        ("ignore_eos", json!(["no"])),
        ("model", json!([7, ["fake"]])),
    ];
    for (field, values) in &cases {
        for value in values.as_array().unwrap() {
            for (path, body) in [
                (CHAT, chat_body(&json!({(*field): value}))),
                (TEXT, {
                    let mut body = json!({"prompt": "a", "max_tokens": 2});
                    body[*field] = value.clone();
                    body
                }),
            ] {
                let error = bench.post(path, &body).await.error(400);
                let param = error["param"].as_str().unwrap_or_else(|| panic!("{body}: {error}"));
                assert!(param.starts_with(field), "{body}: {error}");
            }
        }
    }
    for (path, body, param) in [
        (CHAT, chat_body(&json!({"top_logprobs": 2})), "top_logprobs"),
        (CHAT, chat_body(&json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs"),
        (CHAT, chat_body(&json!({"logprobs": 3})), "logprobs"),
        (CHAT, chat_body(&json!({"max_tokens": 0})), "max_tokens"),
        (CHAT, chat_body(&json!({"messages": []})), "messages"),
        (CHAT, chat_body(&json!({"messages": [{"role": "alien", "content": "x"}]})), "messages[0].role"),
        (CHAT, chat_body(&json!({"messages": [{"role": "user"}]})), "messages[0].content"),
        (CHAT, chat_body(&json!({"messages": [{"role": "user", "content": null}]})), "messages[0].content"),
        (
            CHAT,
            chat_body(&json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
            "messages[0].content",
        ),
        (CHAT, chat_body(&json!({"messages": "hi"})), "messages"),
        (CHAT, chat_body(&json!({"prompt_logprobs": 1, "stream": true})), "prompt_logprobs"),
        (
            CHAT,
            chat_body(&json!({"continue_final_message": true, "add_generation_prompt": true})),
            "messages",
        ),
        (TEXT, json!({"prompt": ""}), "prompt"),
        (TEXT, json!({"prompt": []}), "prompt"),
        (TEXT, json!({"prompt": [260]}), "prompt"),
        (TEXT, json!({"prompt": ["a", 1]}), "prompt"),
        (TEXT, json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (TEXT, json!({"prompt": "a", "logprobs": -1}), "logprobs"),
        (TEXT, json!({"prompt": "a", "best_of": 33}), "best_of"),
        (TEXT, json!({"prompt": "a", "n": 3, "best_of": 2}), "best_of"),
        (TEXT, json!({"prompt": "a", "best_of": 2, "stream": true}), "best_of"),
        (TEXT, json!({"prompt": vec!["a"; 1025]}), "prompt"),
    ] {
        assert_eq!(bench.post(path, &body).await.error(400)["param"], param, "{body}");
    }
    bench.post(TEXT, &json!({"max_tokens": 1})).await.error(400);
    bench.post(CHAT, &json!({"max_tokens": 1})).await.error(400);
    bench.post_text(TEXT, r#"{"prompt":"a","prompt":"b"}"#).await.error(400);
    bench.assert_idle().await;
}

#[tokio::test]
async fn prompts_over_the_context_say_so() {
    let bench = Bench::new(ServerConfig::default());
    let long = "x".repeat(5000);
    for (path, body, param) in [
        (TEXT, json!({"prompt": long}), "prompt"),
        (TEXT, json!({"prompt": vec![97; 1024]}), "prompt"),
        (TEXT, json!({"prompt": "a", "max_tokens": 1024}), "prompt"),
        (TEXT, json!({"prompt": "a", "max_tokens": u64::MAX}), "prompt"),
        (CHAT, chat_body(&json!({"messages": [{"role": "user", "content": long}]})), "messages"),
        (CHAT, chat_body(&json!({"max_tokens": 1024})), "messages"),
    ] {
        let error = bench.post(path, &body).await.error(400);
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)));
        assert!(
            error["message"].as_str().unwrap().contains("maximum context length is 1024 tokens"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_is_not_supported_is_named() {
    let bench = Bench::new(ServerConfig::default());
    for (field, value) in
        [("functions", json!([{"name": "f"}])), ("suffix", json!("end")), ("audio", json!({"voice": "x"}))]
    {
        for (path, mut body) in [(CHAT, chat_body(&json!({}))), (TEXT, json!({"prompt": "a"}))] {
            body[field] = value.clone();
            let error = bench.post(path, &body).await.error(400);
            assert_eq!((&error["param"], &error["code"]), (&json!(field), &json!("unsupported_parameter")));
        }
    }
}

#[tokio::test]
async fn models_and_templates_that_are_not_there() {
    let bench = Bench::new(ServerConfig::default());
    for path in [CHAT, TEXT] {
        let mut body = chat_body(&json!({"model": "gpt-9"}));
        body["prompt"] = json!("a");
        let error = bench.post(path, &body).await.error(404);
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    }
    let engine = crate::support::engine(crate::support::Behaviour::default(), |_| {});
    let model = wardrobe_server::ServedModel { chat_template: None, ..crate::support::served(engine) };
    let server = wardrobe_server::Server::new(model, ServerConfig::default()).unwrap();
    let bench = Bench { router: server.router(), ..bench };
    assert_eq!(bench.post(CHAT, &chat_body(&json!({}))).await.error(400)["code"], "no_chat_template");
    bench.post(TEXT, &json!({"prompt": "a", "max_tokens": 1})).await.ok();
}

#[tokio::test]
async fn full_queues_say_when_to_come_back() {
    let slow = crate::support::Behaviour { step: Duration::from_millis(20), ..Default::default() };
    let bench = Bench::with(slow, ServerConfig::default(), |config| {
        config.queue_capacity = 2;
        config.max_num_sequences = 1;
    });
    let body = json!({"prompt": "a", "max_tokens": 20, "ignore_eos": true});
    let calls = (0..12).map(|_| bench.post(TEXT, &body));
    let answers = futures_util::future::join_all(calls).await;
    let (good, full): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(!good.is_empty() && full.len() >= 8, "{} good, {} full", good.len(), full.len());
    for answer in full {
        assert_eq!(answer.error(429)["code"], "rate_limit_exceeded");
        let header = |name: &str| answer.headers[name].to_str().unwrap().parse::<u64>().unwrap();
        assert!((1..=120).contains(&header("retry-after")));
        assert!(header("retry-after-ms") >= 1 && header("retry-after-ms") <= header("retry-after") * 1000);
    }
    bench.assert_idle().await;

    let few = ServerConfig { max_concurrent_requests: 1, ..ServerConfig::default() };
    let bench = Bench::with(slow, few, |_| {});
    let answers = futures_util::future::join_all((0..3).map(|_| bench.post(TEXT, &body))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    bench.post(TEXT, &body).await.ok();
}

#[tokio::test]
async fn some_of_many_prompts_cannot_be_queued_alone() {
    let slow = crate::support::Behaviour { step: Duration::from_millis(5), ..Default::default() };
    let bench = Bench::with(slow, ServerConfig::default(), |config| {
        config.queue_capacity = 4;
        config.max_num_sequences = 4;
    });
    // All that fit are taken at once; more than could ever fit is no matter of waiting.
    let prompts = |count: usize| json!({"prompt": vec!["a"; count], "max_tokens": 4});
    let answer = bench.post(TEXT, &prompts(8)).await.ok();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 8);
    for body in [prompts(9), prompts(50), json!({"prompt": ["a", "b", "c"], "n": 3, "max_tokens": 4})] {
        let answer = bench.post(TEXT, &body).await;
        assert_eq!(answer.error(400)["param"], "prompt");
        assert!(!answer.headers.contains_key("retry-after"));
    }
    // Beside another request they have to wait, all of them.
    let (one, five) = (json!({"prompt": "a", "n": 4, "max_tokens": 20, "ignore_eos": true}), prompts(5));
    let (one, five) = tokio::join!(bench.post(TEXT, &one), bench.post(TEXT, &five));
    one.ok();
    assert!(five.error(429)["message"].as_str().unwrap().contains("queue is full"));
    bench.post(TEXT, &prompts(8)).await.ok();
    bench.assert_idle().await;
}

#[tokio::test]
async fn failures_inside_are_500_and_leave_nothing_behind() {
    let behaviour = crate::support::Behaviour { fail_at: Some(3), ..Default::default() };
    let bench = Bench::with(behaviour, ServerConfig::default(), |_| {});
    // Greedy: drawn answers might end before it fails.
    let error = bench.post(TEXT, &json!({"prompt": "a", "max_tokens": 9, "temperature": 0})).await.error(500);
    assert!(error["message"].as_str().unwrap().contains("fails here"), "{error}");
    bench.post(TEXT, &json!({"prompt": "a", "max_tokens": 3})).await.ok();
    bench.assert_idle().await;
}

#[tokio::test]
async fn requests_over_the_time_limit_end() {
    let slow = crate::support::Behaviour { step: Duration::from_millis(20), ..Default::default() };
    let config =
        ServerConfig { request_timeout: Some(Duration::from_millis(150)), ..ServerConfig::default() };
    let bench = Bench::with(slow, config, |_| {});
    let answer = bench.post(TEXT, &json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true})).await;
    assert_eq!(answer.error(504)["code"], "timeout");
    assert_eq!(answer.headers["x-should-retry"], "false");
    bench.assert_idle().await;
}

#[tokio::test]
async fn other_origins_are_let_in_by_name_only() {
    let preflight = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    let config = ServerConfig { api_keys: vec!["k".into()], ..ServerConfig::default() };
    let closed = Bench::new(config.clone());
    let answer = closed.call(&Method::OPTIONS, TEXT, &preflight).await;
    answer.error(401);
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    let open = Bench::new(ServerConfig { cors_allow_origins: vec!["https://a.example".into()], ..config });
    let answer = open.call(&Method::OPTIONS, TEXT, &preflight).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://a.example");
    let answer = open.call(&Method::GET, "/v1/models", &preflight[..1]).await;
    answer.error(401);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://a.example");
    let other = [("origin", "https://b.example"), ("access-control-request-method", "POST")];
    open.call(&Method::OPTIONS, TEXT, &other).await.error(401);
}

#[test]
fn configurations_are_checked() {
    let engine = crate::support::engine(crate::support::Behaviour::default(), |_| {});
    type Change = fn(&mut ServerConfig);
    let cases: [(&str, Change); 8] = [
        ("api_keys", |c| c.api_keys = vec![" ".into()]),
        ("api_keys", |c| c.api_keys = vec!["with space".into()]),
        ("body_limit_bytes", |c| c.body_limit_bytes = 0),
        ("max_connections", |c| c.max_connections = usize::MAX),
        ("max_text_threads", |c| c.max_text_threads = 0),
        ("read_timeout", |c| c.read_timeout = Duration::ZERO),
        ("cors_allow_origins", |c| c.cors_allow_origins = vec!["\n".into()]),
        ("adapter root", |c| c.adapter_root = Some("/nowhere/at/all".into())),
    ];
    for (field, change) in cases {
        let mut config = ServerConfig::default();
        change(&mut config);
        let error =
            wardrobe_server::Server::new(crate::support::served(engine.clone()), config).err().unwrap();
        assert!(error.to_string().contains(field), "{error}");
    }
}

/// Values that a fuzzer puts into fields.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("fake")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const FIELDS: &[&str] = &[
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "n",
    "best_of",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "logit_bias",
    "seed",
    "stop",
    "logprobs",
    "top_logprobs",
    "echo",
    "lora",
    "tools",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "bad_words",
    "truncate_prompt_tokens",
    "cache_salt",
    "chat_template_kwargs",
    "tokens",
    "lora_name",
    "lora_path",
    "unknown",
];

#[test]
fn fuzzed_bodies_get_an_answer_in_shape() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = Bench::new(ServerConfig::default());
    let paths: Vec<_> =
        routes().into_iter().filter(|route| route.method == Method::POST).map(|route| route.path).collect();
    let fields = prop::collection::btree_map(prop::sample::select(FIELDS), any_value(), 0..6);
    let cut = any::<prop::sample::Index>();
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(path in prop::sample::select(paths), fields in fields, cut in cut, whole in any::<bool>())| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}], "prompt": "x", "max_tokens": 2});
        for (key, value) in fields {
            body[key] = value;
        }
        let mut text = body.to_string().into_bytes();
        if !whole {
            let at = cut.index(text.len());
            text[at] = text[at].wrapping_add(17);
        }
        runtime.block_on(async {
            let request = Request::post(&path).header("content-type", "application/json");
            let answer = bench.send(request.body(Body::from(text.clone())).unwrap()).await;
            if answer.status != 200 {
                let status = answer.status.as_u16();
                assert!((400..500).contains(&status), "{status} for {}", String::from_utf8_lossy(&text));
                answer.error(status);
            }
        });
    });
    runtime.block_on(bench.assert_idle());
}
