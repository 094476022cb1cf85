//! Labels of an endpoint that speaks OpenAI's API.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::{Response, StatusCode};
use wardrobe_batch::records::{Control, Outcome, Terms};

use super::LabelOptions;
use super::asking::{Answered, Ask, Question, messages, shortened};
use super::error::{LabelError, Result};
use super::line::LineUsage;
use crate::bench::is_on_this_machine;

/// No single request takes longer.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Nor is an answer longer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// Requests at once, unless told otherwise: more than most servers compute at once.
const CONCURRENCY: usize = 64;
/// No wait that a server asks for is longer.
const MAX_RETRY_AFTER_S: f64 = 120.0;

/// Asks an endpoint, with the schema as `response_format`.
pub struct EndpointLabeller {
    agent: ureq::Agent,
    base: String,
    model: String,
    key: Option<String>,
    schema: Value,
    /// Whether it has answered anything yet: what it refuses before that, it would always refuse.
    has_answered: AtomicBool,
}

impl EndpointLabeller {
    /// For an endpoint such as `http://127.0.0.1:8000`, with or without `/v1`. Without `model` it is asked which it has, and
    /// the first is taken.
    ///
    /// # Errors
    /// It cannot be asked, or names no model.
    pub fn new(url: &str, model: Option<&str>, key: Option<&str>, schema: &Value) -> Result<Self> {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .max_idle_connections(CONCURRENCY)
            .max_idle_connections_per_host(CONCURRENCY);
        // A proxy from the environment must not come between two ends of one machine.
        let config = if is_on_this_machine(&base) { config.proxy(None) } else { config };
        let mut labeller = Self {
            agent: config.build().into(),
            base,
            model: model.unwrap_or_default().to_owned(),
            key: key.map(|key| format!("Bearer {key}")),
            schema: schema.clone(),
            has_answered: AtomicBool::new(false),
        };
        if model.is_none() {
            labeller.model = labeller.first_model()?;
        }
        Ok(labeller)
    }

    /// The model that it asks for.
    pub fn model(&self) -> &str {
        &self.model
    }

    fn first_model(&self) -> Result<String> {
        let url = format!("{}/v1/models", self.base);
        let failed = |reason: String| LabelError::Endpoint { url: url.clone(), reason };
        let mut request = self.agent.get(&url);
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let response = request.call().map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        let body = body_of(response).map_err(&failed)?;
        let model = body.pointer("/data/0/id").and_then(Value::as_str);
        model
            .map(str::to_owned)
            .ok_or_else(|| failed(format!("answered {status} and names no model: {}", message_of(&body))))
    }

    fn refused(&self, status: StatusCode, after: Option<Duration>, body: &Value) -> Answered {
        let text = |name: &str| body.pointer(&format!("/error/{name}")).and_then(Value::as_str);
        let code = text("code").unwrap_or_default();
        let message = message_of(body);
        let said = format!("{} answered {status}: {message}", self.base);
        match status.as_u16() {
            _ if code == "insufficient_quota" => Answered::Run(Outcome::Fatal(said)),
            408 | 429 | 502..=504 => Answered::Run(Outcome::Again { after, reason: said }),
            _ if code == "context_length_exceeded" => {
                Answered::Failed { kind: "context_length_exceeded", message }
            }
            // Wrong key, wrong path, unknown model, refused schema: the next record would fare no better.
            401 | 403 | 404 => Answered::Run(Outcome::Fatal(said)),
            400..=499 if !self.has_answered.load(Ordering::Relaxed) => Answered::Run(Outcome::Fatal(said)),
            _ => Answered::Failed { kind: "endpoint", message: format!("{status}: {message}") },
        }
    }

    fn answer(&self, body: &Value) -> Answered {
        let Some(choice) = body.pointer("/choices/0") else {
            let message = format!("the answer has no choice: {}", shortened(&body.to_string()));
            return Answered::Failed { kind: "endpoint", message };
        };
        self.has_answered.store(true, Ordering::Relaxed);
        if let Some(refusal) = choice.pointer("/message/refusal").and_then(Value::as_str) {
            return Answered::Failed { kind: "refusal", message: shortened(refusal) };
        }
        let text = |name: &str| choice.pointer(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let count = |name: &str| body.pointer(name).and_then(Value::as_u64).unwrap_or(0);
        Answered::Text {
            text: text("/message/content"),
            finish_reason: text("/finish_reason"),
            usage: LineUsage {
                prompt_tokens: count("/usage/prompt_tokens"),
                cached_tokens: count("/usage/prompt_tokens_details/cached_tokens"),
                completion_tokens: count("/usage/completion_tokens"),
            },
        }
    }
}

/// What an error says for people.
fn message_of(body: &Value) -> String {
    let message = body.pointer("/error/message").and_then(Value::as_str);
    message.map_or_else(|| shortened(&body.to_string()), shortened)
}

/// A body as JSON; one that is none, as its text.
fn body_of(mut response: Response<ureq::Body>) -> std::result::Result<Value, String> {
    let text = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
    let text = text.map_err(|error| error.to_string())?;
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// When to ask again, in OpenAI's milliseconds or HTTP's seconds.
fn retry_after(response: &Response<ureq::Body>) -> Option<Duration> {
    let number = |name: &str| response.headers().get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds.min(MAX_RETRY_AFTER_S)).ok()
}

impl Ask for EndpointLabeller {
    fn terms(&self, terms: Terms) -> Terms {
        terms.with("model", &self.model)
    }

    fn default_concurrency(&self) -> usize {
        CONCURRENCY
    }

    fn ask(&self, options: &LabelOptions, question: &Question, _control: &Control<'_>) -> Answered {
        let format = json!({"name": "label", "strict": true, "schema": self.schema});
        let mut body = json!({
            "model": self.model,
            "messages": messages(options, &question.prompt),
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "response_format": {"type": "json_schema", "json_schema": format},
        });
        if let (Some(seed), Some(body)) = (options.seed_of(question.index), body.as_object_mut()) {
            body.insert("seed".to_owned(), seed.into());
        }
        let mut request = self.agent.post(format!("{}/v1/chat/completions", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let response = match request.send_json(&body) {
            Ok(response) => response,
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => {
                return Answered::Run(Outcome::Fatal(format!("{}: {error}", self.base)));
            }
            Err(error) => {
                let reason = format!("{} cannot be asked: {error}", self.base);
                return Answered::Run(Outcome::Again { after: None, reason });
            }
        };
        let (status, after) = (response.status(), retry_after(&response));
        match body_of(response) {
            Ok(body) if status.is_success() => self.answer(&body),
            Ok(body) => self.refused(status, after, &body),
            Err(error) => {
                let reason = format!("{} broke off: {error}", self.base);
                Answered::Run(Outcome::Again { after: None, reason })
            }
        }
    }
}
