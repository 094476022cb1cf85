//! A client for the endpoint of this very process: enough of HTTP and of OpenAI's API to show that it works.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

/// No single request takes longer.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Asks one server.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

/// A chat answer, with how fast it came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the request to the first text.
    pub first: Duration,
    /// From the request to the end.
    pub total: Duration,
    /// When it ended.
    pub ended: Instant,
}

impl Client {
    /// A client of the server at `address`.
    pub fn new(address: SocketAddr) -> Self {
        // A proxy from the environment must not come between two ends of one process.
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .max_idle_connections(64)
            .max_idle_connections_per_host(64)
            .proxy(None)
            .build();
        Self { agent: config.into(), base: format!("http://{address}") }
    }

    /// Loads an adapter, or replaces it; returns its generation.
    pub fn load_adapter(&self, name: &str, path: &str, replace: bool) -> anyhow::Result<u64> {
        let body = json!({"lora_name": name, "lora_path": path, "load_inplace": replace});
        let response = self.post("/v1/load_lora_adapter", &body)?;
        let generation = response.headers().get("x-adapter-generation").and_then(|value| value.to_str().ok());
        generation
            .and_then(|value| value.parse().ok())
            .context("the server did not tell the adapter's generation")
    }

    /// Asks a question, greedily, and reads the answer as it streams. `on_first` is called with the first text.
    pub fn chat(
        &self,
        model: &str,
        prompt: &str,
        max_tokens: usize,
        on_first: impl FnOnce(),
    ) -> anyhow::Result<Answer> {
        self.chat_held(model, prompt, max_tokens, &Value::Null, on_first)
    }

    /// The same, with the answer held to a JSON schema, unless that is null.
    pub fn chat_held(
        &self,
        model: &str,
        prompt: &str,
        max_tokens: usize,
        schema: &Value,
        on_first: impl FnOnce(),
    ) -> anyhow::Result<Answer> {
        let mut body = json!({
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if !schema.is_null() {
            let named = json!({"name": "record", "strict": true, "schema": schema});
            body["response_format"] = json!({"type": "json_schema", "json_schema": named});
        }
        let started = Instant::now();
        let response = self.post("/v1/chat/completions", &body)?;
        let mut on_first = Some(on_first);
        let (mut text, mut tokens, mut prompt_tokens) = (String::new(), 0, 0);
        let (mut first, mut done) = (None, false);
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.context("the stream broke off")?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                done = true;
                break;
            }
            let event: Value = serde_json::from_str(data).context("the stream holds what is no JSON")?;
            if let Some(error) = event.pointer("/error/message") {
                anyhow::bail!("{model}: {error}");
            }
            if let Some(piece) = event.pointer("/choices/0/delta/content").and_then(Value::as_str)
                && !piece.is_empty()
            {
                text.push_str(piece);
                first.get_or_insert_with(|| started.elapsed());
                if let Some(on_first) = on_first.take() {
                    on_first();
                }
            }
            if let Some(used) = event.get("usage").filter(|usage| usage.is_object()) {
                let count = |key: &str| used.get(key).and_then(Value::as_u64).unwrap_or(0);
                tokens = usize::try_from(count("completion_tokens")).unwrap_or(usize::MAX);
                prompt_tokens = usize::try_from(count("prompt_tokens")).unwrap_or(usize::MAX);
            }
        }
        anyhow::ensure!(done, "{model}: the stream ended too early");
        let ended = Instant::now();
        let total = ended.duration_since(started);
        Ok(Answer { text, tokens, prompt_tokens, first: first.unwrap_or(total), total, ended })
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
        let sent = self.agent.post(format!("{}{path}", self.base)).send_json(body);
        let mut response = sent.with_context(|| format!("cannot ask {}{path}", self.base))?;
        if !response.status().is_success() {
            let status = response.status();
            let text = response.body_mut().read_to_string().unwrap_or_default();
            let message = serde_json::from_str::<Value>(&text).ok();
            let message = message.as_ref().and_then(|v| v.pointer("/error/message")).and_then(Value::as_str);
            anyhow::bail!("{path} answered {status}: {}", message.unwrap_or(&text));
        }
        Ok(response)
    }
}
