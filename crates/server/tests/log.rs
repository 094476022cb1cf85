//! The line that the log has of every generation request, however it ends.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/mod.rs"]
mod support;
#[path = "support/http.rs"]
mod support_http;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use futures_util::StreamExt;
use serde_json::{Value, json};
use support::Behaviour;
use support_http::Bench;
use tower::ServiceExt;
use wardrobe_server::ServerConfig;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What `work` logs of the one request that it makes: its field of this name.
fn logged<F: Future<Output = ()>>(work: impl FnOnce() -> F) -> impl Fn(&str) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    move |field| {
        let found: Vec<&str> = text.lines().filter(|line| line.contains("request finished")).collect();
        let [line] = found.as_slice() else { panic!("{text}") };
        let value = line.split(&format!(" {field}=")).nth(1).unwrap_or_else(|| panic!("{field}: {line}"));
        value.split([' ', '}']).next().unwrap().trim_matches('"').to_owned()
    }
}

fn request(body: &Value) -> Request<Body> {
    let request = Request::post("/v1/completions").header(header::CONTENT_TYPE, "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

fn body(stream: bool) -> Value {
    json!({"prompt": "xyz", "max_tokens": 400, "ignore_eos": true, "temperature": 0, "stream": stream})
}

const SLOW: Behaviour =
    Behaviour { step: Duration::from_millis(2), num_blocks: 256, max_context_tokens: 1024, fail_at: None };

#[test]
fn streams_that_fail_are_logged_with_their_tokens() {
    let of = logged(|| async {
        let bench = Bench::with(Behaviour { fail_at: Some(5), ..SLOW }, ServerConfig::default(), |_| {});
        assert!(bench.send(request(&body(true))).await.text().contains("\"error\""));
    });
    assert_eq!((of("finish").as_str(), of("prompt_tokens").as_str()), ("error", "3"));
    assert_eq!(of("completion_tokens"), "5");
}

#[test]
fn clients_that_go_away_are_logged_with_what_they_got() {
    let of = logged(|| async {
        let bench = Bench::with(SLOW, ServerConfig::default(), |_| {});
        let response = bench.router.clone().oneshot(request(&body(true))).await.unwrap();
        let mut stream = response.into_body().into_data_stream();
        for _ in 0..3 {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        bench.assert_idle().await;
    });
    assert_eq!((of("finish").as_str(), of("prompt_tokens").as_str()), ("client_gone", "3"));
    let tokens: usize = of("completion_tokens").parse().unwrap();
    assert!((3..400).contains(&tokens), "{tokens}");
}

#[test]
fn requests_that_take_too_long_are_logged_with_their_tokens() {
    for stream in [true, false] {
        let of = logged(|| async {
            let request_timeout = Some(Duration::from_millis(100));
            let bench =
                Bench::with(SLOW, ServerConfig { request_timeout, ..ServerConfig::default() }, |_| {});
            bench.send(request(&body(stream))).await;
        });
        assert_eq!((of("finish").as_str(), of("prompt_tokens").as_str()), ("timeout", "3"));
        let tokens: usize = of("completion_tokens").parse().unwrap();
        assert!((1..400).contains(&tokens), "{tokens}");
    }
}

#[test]
fn a_whole_answer_is_logged_once_and_a_refusal_without_tokens() {
    let of = logged(|| async {
        let bench = Bench::new(ServerConfig::default());
        let body = json!({"prompt": ["ab", "cd"], "max_tokens": 7, "ignore_eos": true});
        bench.send(request(&body)).await.ok();
    });
    assert_eq!(
        (of("finish"), of("prompt_tokens"), of("completion_tokens")),
        ("ok".into(), "4".into(), "14".into())
    );
    let of = logged(|| async {
        let bench = Bench::new(ServerConfig::default());
        bench.send(request(&json!({"prompt": "ab", "max_tokens": 5000}))).await.error(400);
    });
    assert_eq!((of("finish"), of("prompt_tokens")), ("refused".into(), "0".into()));
}
