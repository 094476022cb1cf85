//! Who may come in: places and memory are asked for before a body is read, and tokenizing has places of its own.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use futures_util::StreamExt;
use serde_json::json;
use wardrobe_server::ServerConfig;

use crate::support::Behaviour;
use crate::support_http::Bench;

/// A request whose body starts with `sent` and then does not go on.
fn unfinished(path: &str, sent: Vec<u8>) -> Request<Body> {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(sent))]);
    let body = Body::from_stream(first.chain(futures_util::stream::pending()));
    Request::post(path).header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
}

/// Lets tasks that were spawned get as far as they can.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[tokio::test]
async fn a_full_server_refuses_before_it_reads() {
    let config = ServerConfig {
        max_concurrent_requests: 1,
        max_concurrent_tokenizations: 1,
        ..ServerConfig::default()
    };
    let bench = Bench::new(config);
    for (path, other) in [("/v1/completions", "/tokenize"), ("/tokenize", "/v1/chat/completions")] {
        let router = bench.router.clone();
        let open = tokio::spawn(tower::ServiceExt::oneshot(router, unfinished(path, b"{".to_vec())));
        settle().await;
        let late = bench.send(unfinished(path, Vec::new()));
        let late = tokio::time::timeout(Duration::from_secs(5), late).await.unwrap();
        assert_eq!(late.error(429)["code"], "rate_limit_exceeded", "{path}");
        assert!(late.headers.contains_key("retry-after"));
        // The others have places of their own.
        bench.post(other, &json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]})).await.ok();
        open.abort();
        let _ = open.await;
        bench.post(path, &json!({"prompt": "a"})).await.ok();
    }
}

#[tokio::test]
async fn bodies_share_a_budget_of_memory() {
    let config = ServerConfig { body_limit_bytes: 4096, total_body_bytes: 8192, ..ServerConfig::default() };
    let bench = Bench::new(config);
    let mut open = Vec::new();
    for _ in 0..2 {
        let router = bench.router.clone();
        let mut sent = vec![b' '; 3500];
        sent[0] = b'{';
        open.push(tokio::spawn(tower::ServiceExt::oneshot(router, unfinished("/v1/completions", sent))));
    }
    settle().await;
    let long = json!({"prompt": "a".repeat(3000)});
    assert_eq!(bench.post("/v1/completions", &long).await.error(429)["code"], "rate_limit_exceeded");
    bench.post("/v1/completions", &json!({"prompt": "a"})).await.ok();
    assert_eq!(bench.post("/v1/completions", &json!({"prompt": "a".repeat(5000)})).await.status, 413);
    for task in open {
        task.abort();
        let _ = task.await;
    }
    let tokens = bench.post("/tokenize", &long).await.ok();
    assert_eq!(tokens["count"], 3000);
    // All of it comes back, however often a body of almost the whole budget comes.
    for _ in 0..8 {
        bench.post("/tokenize", &json!({"prompt": "a".repeat(4000)})).await.ok();
    }
}

#[tokio::test]
async fn long_tokenizations_do_not_hold_up_generation() {
    let config = ServerConfig { inline_text_bytes: 16, ..ServerConfig::default() };
    let bench = Bench::with(Behaviour::default(), config, |_| {});
    let body = json!({"prompt": "word ".repeat(20_000)});
    let mut open = Vec::new();
    for _ in 0..12 {
        let router = bench.router.clone();
        let request = Request::post("/tokenize").body(Body::from(body.to_string())).unwrap();
        open.push(tokio::spawn(tower::ServiceExt::oneshot(router, request)));
    }
    settle().await;
    bench.post("/v1/completions", &json!({"prompt": "a ".repeat(20), "max_tokens": 4})).await.ok();
    let unfinished = open.iter().filter(|task| !task.is_finished()).count();
    assert!(unfinished >= 6, "only {unfinished} of 12 were left when the answer was there");
    for task in open {
        assert_eq!(task.await.unwrap().unwrap().status(), 200);
    }
}
