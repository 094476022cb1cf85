//! Spans reach a collector, as children of the caller's span.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/mod.rs"]
mod support;
#[path = "support/http.rs"]
mod support_http;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use support_http::Bench;
use tracing_subscriber::layer::SubscriberExt;
use wardrobe_server::ServerConfig;

/// Takes one request; gives its first line and its body.
fn collect(listener: &TcpListener) -> (String, Vec<u8>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.to_lowercase());
    }
    let length = lines.iter().find_map(|line| line.strip_prefix("content-length:")).unwrap();
    let mut body = vec![0; length.trim().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    (lines.remove(0), body)
}

#[test]
fn a_requests_span_is_exported_under_its_parent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || sender.send(collect(&listener)).unwrap());

    let (layer, export) = wardrobe_server::otlp::layer(&endpoint, "the-service").unwrap();
    let subscriber = tracing_subscriber::registry().with(layer);
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new(ServerConfig::default());
            let request = Request::post("/v1/completions")
                .header("traceparent", format!("00-{trace_id}-00f067aa0ba902b7-01"))
                .header("x-request-id", "the-request");
            let body = json!({"prompt": "x", "max_tokens": 3}).to_string();
            bench.send(request.body(Body::from(body)).unwrap()).await.ok();
        });
    });
    drop(export);

    let (line, body) = received.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(line.trim(), "post /v1/traces http/1.1");
    let contains = |wanted: &[u8]| body.windows(wanted.len()).any(|window| window == wanted);
    let bytes: Vec<u8> =
        (0..16).map(|idx| u8::from_str_radix(&trace_id[2 * idx..2 * idx + 2], 16).unwrap()).collect();
    assert!(contains(&bytes), "the caller's trace id");
    assert!(contains(&[0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]), "the caller's span id");
    for text in ["the-service", "the-request", "/v1/completions", "decode_ms", "completion_tokens"] {
        assert!(contains(text.as_bytes()), "{text}");
    }
}

#[test]
fn an_endpoint_that_is_no_address_is_refused() {
    let error =
        wardrobe_server::otlp::layer::<tracing_subscriber::Registry>("not an address", "x").err().unwrap();
    assert!(error.to_string().contains("not an address"), "{error}");
}
