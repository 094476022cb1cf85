//! Streams of server-sent events, as clients read them.

use std::time::Duration;

use serde_json::{Value, json};
use wardrobe_server::ServerConfig;

use crate::support::Behaviour;
use crate::support_http::Bench;

const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyz.";

fn chat(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "stream": true});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn text(more: Value) -> Value {
    let mut body = json!({"prompt": "x", "temperature": 0, "stream": true, "max_tokens": 5});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn chat_chunks_have_openais_shape() {
    let bench = Bench::new(ServerConfig::default());
    let answer = bench.post("/v1/chat/completions", &chat(json!({}))).await;
    let chunks = answer.chunks();
    let id = &chunks[0]["id"];
    assert!(id.as_str().unwrap().starts_with("chatcmpl-"));
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["object"]), (id, &json!("chat.completion.chunk")));
        assert_eq!((&chunk["model"], &chunk["created"]), (&json!("fake"), &chunks[0]["created"]));
        assert!(chunk.get("usage").is_none());
        assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
    }
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (last, middle) = chunks[1..].split_last().unwrap();
    assert_eq!(
        (&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]),
        (&json!({}), &json!("stop"))
    );
    let content: String = middle
        .iter()
        .map(|chunk| {
            assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
            chunk["choices"][0]["delta"]["content"].as_str().unwrap()
        })
        .collect();
    assert_eq!(content, ALPHABET);
    bench.assert_idle().await;
}

#[tokio::test]
async fn usage_comes_last_when_asked_for() {
    let bench = Bench::new(ServerConfig::default());
    let options = json!({"stream_options": {"include_usage": true}, "timings": true});
    for (path, body, prompt, output) in [
        ("/v1/chat/completions", chat(options.clone()), 21, 28),
        ("/v1/completions", text(options.clone()), 1, 4),
    ] {
        let chunks = bench.post(path, &body).await.chunks();
        let (last, others) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["prompt_tokens"], prompt);
        assert_eq!(last["usage"]["completion_tokens"], output);
        assert_eq!(last["usage"]["total_tokens"], prompt + output);
        assert_eq!(last["system_fingerprint"], "fp_abababababab");
        assert_eq!((&last["id"], &last["timings"]["predicted_n"]), (&others[0]["id"], &json!(output)));
        assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    }
}

#[tokio::test]
async fn choices_are_told_apart() {
    let bench = Bench::new(ServerConfig::default());
    let seeded = json!({"n": 3, "temperature": 1.3, "seed": 5, "max_tokens": 6, "ignore_eos": true});
    let chunks = bench.post("/v1/chat/completions", &chat(seeded.clone())).await.chunks();
    let mut whole = chat(seeded);
    whole["stream"] = json!(false);
    let whole = bench.post("/v1/chat/completions", &whole).await.ok();
    for index in 0..3 {
        let own: Vec<_> =
            chunks.iter().map(|c| &c["choices"][0]).filter(|choice| choice["index"] == index).collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        assert_eq!(own.iter().filter(|choice| choice["delta"].get("role").is_some()).count(), 1);
        assert_eq!(own.last().unwrap()["finish_reason"], "length");
        let content: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(content, whole["choices"][index]["message"]["content"]);
    }
}

#[tokio::test]
async fn completions_stream_echo_logprobs_and_ids() {
    let bench = Bench::new(ServerConfig::default());
    let more = json!({"prompt": ["vw", "cd"], "n": 2, "echo": true, "logprobs": 1, "return_token_ids": true});
    let mut whole = text(more.clone());
    whole["stream"] = json!(false);
    let whole = bench.post("/v1/completions", &whole).await.ok();
    let chunks = bench.post("/v1/completions", &text(more)).await.chunks();
    for expected in whole["choices"].as_array().unwrap() {
        let own = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let own: Vec<_> = own.filter(|choice| choice["index"] == expected["index"]).collect();
        let joined: String = own.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(joined, expected["text"]);
        let lists = |name: &str| -> Vec<Value> {
            let rows = own.iter().filter_map(|choice| choice["logprobs"][name].as_array());
            rows.flatten().cloned().collect()
        };
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(json!(lists(name)), expected["logprobs"][name], "{name}");
        }
        let ids: Vec<_> = own.iter().filter_map(|choice| choice["token_ids"].as_array()).flatten().collect();
        assert_eq!(json!(ids), expected["token_ids"]);
        assert_eq!(own[0]["prompt_token_ids"], expected["prompt_token_ids"]);
        assert_eq!(own.last().unwrap()["finish_reason"], expected["finish_reason"]);
    }
    let logprobs = json!({"logprobs": true, "top_logprobs": 1, "max_tokens": 4});
    let chunks = bench.post("/v1/chat/completions", &chat(logprobs)).await.chunks();
    let tokens: Vec<_> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .map(|row| row["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn failures_in_a_stream_are_events() {
    let bench =
        Bench::with(Behaviour { fail_at: Some(3), ..Behaviour::default() }, ServerConfig::default(), |_| {});
    for (path, body) in [("/v1/chat/completions", chat(json!({}))), ("/v1/completions", text(json!({})))] {
        let answer = bench.post(path, &body).await;
        let chunks = answer.chunks();
        let (error, before) = chunks.split_last().unwrap();
        assert!(!before.is_empty());
        assert!(error["error"]["message"].as_str().unwrap().contains("fails here"), "{error}");
        assert_eq!(
            (&error["error"]["type"], &error["error"]["code"]),
            (&json!("server_error"), &Value::Null)
        );
    }
    bench.assert_idle().await;
    // What is wrong with the request is known before the stream begins.
    bench.post("/v1/chat/completions", &chat(json!({"max_tokens": 5000}))).await.error(400);
}

#[tokio::test]
async fn quiet_streams_are_kept_alive_and_end_in_time() {
    let slow = Behaviour { step: Duration::from_millis(60), ..Behaviour::default() };
    let config = ServerConfig {
        keep_alive_interval: Duration::from_millis(10),
        request_timeout: Some(Duration::from_millis(300)),
        ..ServerConfig::default()
    };
    let bench = Bench::with(slow, config, |_| {});
    let answer = bench.post("/v1/chat/completions", &chat(json!({}))).await;
    assert!(answer.text().matches(": keep-alive\n\n").count() >= 5, "{}", answer.text());
    let chunks = answer.chunks();
    assert!(chunks.len() > 1);
    assert_eq!(chunks.last().unwrap()["error"]["code"], "timeout");
    bench.assert_idle().await;
}

#[tokio::test]
async fn an_answer_without_text_still_has_a_beginning_and_an_end() {
    let bench = Bench::new(ServerConfig::default());
    let chunks = bench.post("/v1/chat/completions", &chat(json!({"stop": "a"}))).await.chunks();
    assert_eq!(chunks.len(), 2, "{chunks:?}");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[1]["choices"][0]["stop_reason"], "a");
    let chunks = bench.post("/v1/completions", &text(json!({"max_tokens": 0}))).await.chunks();
    assert_eq!((&chunks[0]["choices"][0]["text"], chunks.len()), (&json!(""), 1));
}
