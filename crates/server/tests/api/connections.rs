//! Over real connections: clients that go away, read slowly, send slowly; and the end of the server.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wardrobe_server::ServerConfig;

use crate::support::Behaviour;
use crate::support_http::Bench;

struct Live {
    address: SocketAddr,
    bench: Bench,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

async fn live(behaviour: Behaviour, config: ServerConfig) -> Live {
    let bench = Bench::with(behaviour, config, |config| {
        config.stream_buffer_tokens = 64;
        config.stream_stall_timeout = Duration::from_millis(100);
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let served = tokio::spawn(bench.server.clone().serve(listener, shutdown));
    Live { address, bench, stop, served }
}

fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn endless(stream: bool) -> Value {
    json!({"prompt": "x", "max_tokens": 900, "ignore_eos": true, "temperature": 0, "stream": stream})
}

/// A behaviour whose answers of 900 tokens take some seconds.
const SLOW: Behaviour =
    Behaviour { step: Duration::from_millis(5), num_blocks: 256, max_context_tokens: 1024, fail_at: None };

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

async fn wait_for_running(bench: &Bench) {
    for _ in 0..500 {
        if bench.engine.stats().running_sequences > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nothing runs");
}

/// Reads until the text is there, or to the end.
async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.contains(wanted) {
        let n = stream.read(&mut bytes).await.unwrap_or(0);
        if n == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    text
}

#[tokio::test]
async fn clients_that_go_away_free_everything() {
    let live = live(SLOW, ServerConfig::default()).await;
    for stream in [true, false] {
        let mut client = send(live.address, &post("/v1/completions", &endless(stream))).await;
        wait_for_running(&live.bench).await;
        if stream {
            assert!(read_until(&mut client, "data: ").await.starts_with("HTTP/1.1 200 OK\r\n"));
        }
        drop(client);
        live.bench.assert_idle().await;
    }
    let stats = live.bench.engine.stats();
    assert_eq!((stats.finished_cancelled, stats.finished_length), (2, 0));
}

#[tokio::test]
async fn slow_readers_are_cancelled_and_closed() {
    let config = ServerConfig { write_timeout: Duration::from_millis(300), ..ServerConfig::default() };
    let live =
        live(Behaviour { num_blocks: 65_536, max_context_tokens: 1 << 20, ..Behaviour::default() }, config)
            .await;
    let body = json!({"prompt": vec!["x"; 64], "max_tokens": 16_000, "ignore_eos": true, "stream": true, "logprobs": 20,
                      "temperature": 0});
    let mut client = send(live.address, &post("/v1/completions", &body)).await;
    wait_for_running(&live.bench).await;
    live.bench.assert_idle().await;
    let stats = live.bench.engine.stats();
    assert!(stats.finished_cancelled > 0, "{stats:?}");
    assert_eq!(stats.finished_length, 0, "{stats:?}");
    // Long after the write timeout: what the system has buffered can be read, then the connection is gone.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection is still open");
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
}

#[tokio::test]
async fn headers_have_to_come_in_time() {
    let config = ServerConfig { read_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let live = live(Behaviour::default(), config).await;
    let mut client = send(live.address, "GET /health HTTP/1.1\r\nhost: te").await;
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    // A body that was declared and does not come.
    let partial = "POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{";
    let mut client = send(live.address, partial).await;
    let answer = read_until(&mut client, "\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let live =
        live(Behaviour::default(), ServerConfig { max_connections: 1, ..ServerConfig::default() }).await;
    let request = "GET /health HTTP/1.1\r\nhost: t\r\n\r\n";
    let mut first = send(live.address, request).await;
    assert!(read_until(&mut first, "ok\"}").await.starts_with("HTTP/1.1 200"));
    let mut second = send(live.address, request).await;
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(50), second.read(&mut byte)).await;
    assert!(early.is_err(), "the second is not served yet");
    drop(first);
    assert!(read_until(&mut second, "ok\"}").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let config = ServerConfig { drain_delay: Duration::from_millis(400), ..ServerConfig::default() };
    let live = live(SLOW, config).await;
    let body =
        json!({"prompt": "x", "max_tokens": 150, "ignore_eos": true, "temperature": 0, "stream": true});
    let mut running = send(live.address, &post("/v1/completions", &body)).await;
    wait_for_running(&live.bench).await;
    live.stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut probe = send(live.address, "GET /ready HTTP/1.1\r\nhost: t\r\n\r\n").await;
    let answer = read_until(&mut probe, "}}").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutting_down"), "{answer}");
    probe.write_all(b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    assert!(read_until(&mut probe, "ok\"}").await.starts_with("HTTP/1.1 200"));
    let mut late = send(live.address, &post("/v1/completions", &endless(false))).await;
    let answer = read_until(&mut late, "}}").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after"), "{answer}");
    let rest = read_until(&mut running, "[DONE]").await;
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    live.served.await.unwrap().unwrap();
    assert!(TcpStream::connect(live.address).await.is_err(), "nobody listens any more");
    let stats = live.bench.engine.stats();
    assert_eq!((stats.finished_length, stats.used_blocks, stats.open_requests), (1, 0, 0));
}

#[tokio::test]
async fn the_drain_limit_ends_streams_with_an_error() {
    let config = ServerConfig { drain_limit: Duration::from_millis(100), ..ServerConfig::default() };
    let live = live(SLOW, config).await;
    let mut running = send(live.address, &post("/v1/completions", &endless(true))).await;
    wait_for_running(&live.bench).await;
    live.stop.send(()).unwrap();
    let rest = read_until(&mut running, "[DONE]").await;
    assert!(rest.contains("data: {\"error\":") && rest.contains("[DONE]"), "{rest}");
    live.served.await.unwrap().unwrap();
    assert_eq!(live.bench.engine.stats().used_blocks, 0);
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let live = live(Behaviour::default(), ServerConfig::default()).await;
    let mut client = TcpStream::connect(live.address).await.unwrap();
    for _ in 0..3 {
        let body = json!({"prompt": "a", "max_tokens": 2, "temperature": 0});
        client.write_all(post("/v1/completions", &body).as_bytes()).await.unwrap();
        assert!(read_until(&mut client, "\"cached_tokens\":0}}}").await.contains("\"text\":\"bc\""));
    }
}
