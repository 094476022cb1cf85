//! Requests to a router, without a network.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::Value;
use tower::ServiceExt;
use wardrobe_engine::{Engine, EngineConfig};
use wardrobe_server::{Server, ServerConfig};

use super::support::{Behaviour, engine, served};

/// A router with the engine behind it.
pub struct Bench {
    pub router: Router,
    pub engine: Engine,
    pub server: Server,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The JSON of an answer that must be 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// Checks status and shape of an error; gives the error object.
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert!(self.headers.contains_key("x-request-id"), "{self:?}");
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("{body}"));
        let keys: Vec<_> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"], "{body}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        assert!(error["type"].is_string(), "{body}");
        assert!(error["param"].is_string() || error["param"].is_null(), "{body}");
        assert!(error["code"].is_string() || error["code"].is_null(), "{body}");
        body["error"].clone()
    }

    /// The data of every event of a stream.
    pub fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.headers[header::CONTENT_TYPE], "text/event-stream; charset=utf-8");
        let blocks = self.text().split_terminator("\n\n");
        let data =
            blocks.filter(|block| !block.starts_with(':')).map(|block| block.strip_prefix("data: ").unwrap());
        data.map(str::to_owned).collect()
    }

    /// The chunks of a stream that must end with `[DONE]`.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.text());
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Bench {
    pub fn new(config: ServerConfig) -> Self {
        Self::with(Behaviour::default(), config, |_| {})
    }

    pub fn with(behaviour: Behaviour, config: ServerConfig, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let engine = engine(behaviour, change);
        let server = Server::new(served(engine.clone()), config).unwrap();
        Self { router: server.router(), engine, server }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string()).await
    }

    pub async fn post_text(&self, path: &str, body: &str) -> Answer {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.as_bytes().to_vec()));
        self.send(request.unwrap()).await
    }

    pub async fn call(&self, method: &Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    /// Waits until nothing is open, and checks that everything is free.
    pub async fn assert_idle(&self) {
        for _ in 0..500 {
            let stats = self.engine.stats();
            if stats.open_requests == 0 && stats.used_blocks == 0 {
                assert_eq!((stats.running_sequences, stats.waiting_sequences), (0, 0));
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("requests are still open: {:?}", self.engine.stats());
    }
}
