//! The server's API, as far as jobs need it.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use ureq::{Agent, SendBody};

use super::show::text;

/// No single request takes longer, an upload but for its bytes.
const TIMEOUT: Duration = Duration::from_secs(60);
const EVENTS_A_PAGE: usize = 200;

/// A server.
pub struct Api {
    agent: Agent,
    base: String,
    key: Option<String>,
}

type Response = ureq::http::Response<ureq::Body>;

impl Api {
    /// The server at this address, which may end with `/v1`.
    pub fn new(url: &str, key: Option<&str>) -> Self {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .timeout_recv_body(Some(TIMEOUT));
        Self { agent: config.build().into(), base, key: key.map(|key| format!("Bearer {key}")) }
    }

    /// Gets a path.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        self.answer(path, request.call())
    }

    /// Posts JSON to a path, or nothing.
    pub fn post(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let sent = match body {
            Some(body) => request.send_json(body),
            None => request.send_empty(),
        };
        self.answer(path, sent)
    }

    /// Uploads a training file; gives its id.
    pub fn upload(&self, path: &Path) -> anyhow::Result<String> {
        const BOUNDARY: &str = "wardrobe-7d1f40c2b93e5a68-form";
        let shown = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(shown)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().replace(['"', '\r', '\n'], "_");
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n\
             --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let tail = format!("\r\n--{BOUNDARY}--\r\n");
        let body = Cursor::new(head).chain(file).chain(Cursor::new(tail));
        let url = "/v1/files";
        let mut request = self.agent.post(format!("{}{url}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        let sent = request.content_type(kind).send(SendBody::from_owned_reader(body));
        let answer = self.answer(url, sent).with_context(|| format!("cannot upload {}", path.display()))?;
        Ok(text(&answer, "id").to_owned())
    }

    /// The events below a path after the one of this id, oldest first.
    pub fn events_since(&self, path: &str, last: Option<&str>) -> anyhow::Result<Vec<Value>> {
        let mut events = Vec::<Value>::new();
        loop {
            let after = events.last().map(|event| format!("&after={}", text(event, "id")));
            let page = self.get(&format!("{path}?limit={EVENTS_A_PAGE}{}", after.unwrap_or_default()))?;
            let items = page.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let new = items.iter().take_while(|event| Some(text(event, "id")) != last);
            let before = events.len();
            events.extend(new.cloned());
            let met_last = events.len() - before < items.len();
            let has_more = page.get("has_more").and_then(Value::as_bool).unwrap_or(false);
            if met_last || !has_more || items.is_empty() {
                events.reverse();
                return Ok(events);
            }
        }
    }

    fn answer(&self, path: &str, sent: Result<Response, ureq::Error>) -> anyhow::Result<Value> {
        let mut response = sent.with_context(|| format!("cannot ask {}{path}", self.base))?;
        let status = response.status();
        let body = response.body_mut().read_to_string().unwrap_or_default();
        let value = serde_json::from_str::<Value>(&body).ok();
        if !status.is_success() {
            let message = value.as_ref().and_then(|v| v.pointer("/error/message")).and_then(Value::as_str);
            anyhow::bail!("the server answered {status}: {}", message.unwrap_or(&body));
        }
        value.with_context(|| format!("{}{path} did not answer with JSON", self.base))
    }
}
