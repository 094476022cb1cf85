//! Any OpenAI-compatible endpoint as a generator.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::{Response, StatusCode};
use wardrobe_text::Message;

use crate::error::{AskError, EndpointError};
use crate::question::{Answer, Held, Prompt, Question, TokenScore, Usage};
use crate::{Generator, Scorer, Stopped};

/// An answer is no longer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// Requests at once, unless told otherwise: more than most servers compute at once.
const CONCURRENCY: usize = 64;
/// No wait that a server asks for is longer.
const MAX_RETRY_AFTER_S: f64 = 120.0;
/// Characters of what a server said that are told.
const MAX_SHOWN_CHARS: usize = 200;

/// How to reach an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Its address, such as `http://127.0.0.1:8000`, with or without `/v1`.
    pub url: String,
    /// The model or adapter that it serves; `None` asks it which it has, and takes the first.
    pub model: Option<String>,
    /// The API key.
    pub key: Option<String>,
    /// The longest that one request may take.
    pub timeout: Duration,
}

impl EndpointOptions {
    /// An endpoint without a key, with ten minutes for a request.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), model: None, key: None, timeout: Duration::from_secs(600) }
    }
}

/// An OpenAI-compatible endpoint. Answers come from `/v1/chat/completions` and `/v1/completions`; likelihoods from the
/// echo of `/v1/completions`, and tokens from vLLM's `/tokenize`.
pub struct Endpoint {
    agent: ureq::Agent,
    base: String,
    model: String,
    key: Option<String>,
    max_context_tokens: Option<usize>,
    /// Whether it has answered anything yet: what it refuses before that, it would always refuse.
    has_answered: AtomicBool,
}

/// Whether an address is one of this machine, as far as it tells.
pub fn is_on_this_machine(url: &str) -> bool {
    let uri: Option<ureq::http::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(ureq::http::Uri::host).unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

impl Endpoint {
    /// Asks the endpoint for its models. One that cannot list them is taken at its word if `model` is named.
    ///
    /// # Errors
    /// It cannot be asked, or no model is named and it names none.
    pub fn open(options: EndpointOptions) -> Result<Self, EndpointError> {
        let base = options.url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(options.timeout))
            .max_idle_connections(CONCURRENCY)
            .max_idle_connections_per_host(CONCURRENCY);
        // A proxy from the environment must not come between two ends of one machine.
        let config = if is_on_this_machine(&base) { config.proxy(None) } else { config };
        let mut endpoint = Self {
            agent: config.build().into(),
            base,
            model: String::new(),
            key: options.key.map(|key| format!("Bearer {key}")),
            max_context_tokens: None,
            has_answered: AtomicBool::new(false),
        };
        let listed = endpoint.models();
        endpoint.model = match (options.model, &listed) {
            (Some(model), _) => model,
            (None, Ok(models)) => match models.first().and_then(|first| first["id"].as_str()) {
                Some(first) => first.to_owned(),
                None => return Err(endpoint.failed("/v1/models", "names no model".to_owned())),
            },
            (None, Err(error)) => return Err(error.clone()),
        };
        let own = listed.iter().flatten().find(|model| model["id"] == endpoint.model.as_str());
        let context = own.and_then(|model| model["max_model_len"].as_u64());
        endpoint.max_context_tokens = context.and_then(|context| usize::try_from(context).ok());
        Ok(endpoint)
    }

    /// The same endpoint as another of its models.
    #[must_use]
    pub fn with_model(&self, model: impl Into<String>) -> Self {
        Self {
            agent: self.agent.clone(),
            base: self.base.clone(),
            model: model.into(),
            key: self.key.clone(),
            max_context_tokens: self.max_context_tokens,
            has_answered: AtomicBool::new(false),
        }
    }

    fn failed(&self, path: &str, reason: String) -> EndpointError {
        EndpointError { url: format!("{}{path}", self.base), reason }
    }

    fn models(&self) -> Result<Vec<Value>, EndpointError> {
        const PATH: &str = "/v1/models";
        let mut request = self.agent.get(format!("{}{PATH}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let response = request.call().map_err(|error| self.failed(PATH, error.to_string()))?;
        let status = response.status();
        let body = body_of(response).map_err(|reason| self.failed(PATH, reason))?;
        match body.get("data").and_then(Value::as_array) {
            Some(models) if status.is_success() => Ok(models.clone()),
            _ => {
                Err(self.failed(PATH, format!("answered {status} and names no model: {}", message_of(&body))))
            }
        }
    }

    /// The answer to a request, if it is one.
    fn post(&self, path: &str, body: &Value) -> Result<Value, AskError> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let response = match request.send_json(body) {
            Ok(response) => response,
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => {
                return Err(AskError::Fatal(format!("{}: {error}", self.base)));
            }
            Err(error) => {
                let reason = format!("{} cannot be asked: {error}", self.base);
                return Err(AskError::Again { after: None, reason });
            }
        };
        let (status, after) = (response.status(), retry_after(&response));
        match body_of(response) {
            Ok(body) if status.is_success() => {
                self.has_answered.store(true, Ordering::Relaxed);
                Ok(body)
            }
            Ok(body) => Err(self.refused(status, after, &body)),
            Err(error) => {
                let reason = format!("{} broke off: {error}", self.base);
                Err(AskError::Again { after: None, reason })
            }
        }
    }

    /// What a refusal means: some concern one question, others all.
    fn refused(&self, status: StatusCode, after: Option<Duration>, body: &Value) -> AskError {
        let code = body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default();
        let message = message_of(body);
        let said = format!("{} answered {status}: {message}", self.base);
        match status.as_u16() {
            _ if code == "insufficient_quota" => AskError::Fatal(said),
            408 | 429 | 502..=504 => AskError::Again { after, reason: said },
            _ if code == "context_length_exceeded" => {
                AskError::Question { kind: "context_length_exceeded", message }
            }
            // Wrong key, wrong path, unknown model, refused schema: the next question would fare no better.
            401 | 403 | 404 => AskError::Fatal(said),
            400..=499 if !self.has_answered.load(Ordering::Relaxed) => AskError::Fatal(said),
            _ => AskError::Question { kind: "endpoint", message: format!("{status}: {message}") },
        }
    }

    fn answer(&self, body: &Value, text: &str) -> Result<Answer, AskError> {
        let failed = |kind, message| Err(AskError::Question { kind, message });
        let Some(choice) = body.pointer("/choices/0") else {
            return failed("endpoint", format!("the answer has no choice: {}", shortened(&body.to_string())));
        };
        if let Some(refusal) = choice.pointer("/message/refusal").and_then(Value::as_str) {
            return failed("refusal", shortened(refusal));
        }
        let Some(text) = choice.pointer(text).and_then(Value::as_str) else {
            return failed("endpoint", format!("the answer has no text: {}", shortened(&choice.to_string())));
        };
        let count = |name: &str| body.pointer(name).and_then(Value::as_u64).unwrap_or(0);
        Ok(Answer {
            text: text.to_owned(),
            finish_reason: choice["finish_reason"].as_str().unwrap_or_default().to_owned(),
            usage: Usage {
                prompt_tokens: count("/usage/prompt_tokens"),
                cached_tokens: count("/usage/prompt_tokens_details/cached_tokens"),
                completion_tokens: count("/usage/completion_tokens"),
            },
        })
    }

    fn tokens(&self, mut body: Value) -> Result<Vec<u32>, AskError> {
        body["model"] = self.model.as_str().into();
        let answer = self.post("/tokenize", &body)?;
        let ids = answer["tokens"].as_array().map(|ids| {
            ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect::<Option<Vec<_>>>()
        });
        ids.flatten().ok_or_else(|| AskError::Fatal(format!("{}/tokenize gives no tokens", self.base)))
    }
}

impl Generator for Endpoint {
    fn name(&self) -> &str {
        &self.model
    }

    fn identity(&self) -> Vec<(&'static str, String)> {
        vec![("model", self.model.clone())]
    }

    fn concurrency(&self) -> usize {
        CONCURRENCY
    }

    fn generate(&self, question: &Question, _stopped: &Stopped<'_>) -> Result<Answer, AskError> {
        let mut body = json!({
            "model": self.model,
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
        });
        if question.top_p < 1.0 {
            body["top_p"] = question.top_p.into();
        }
        if let Some(seed) = question.seed {
            body["seed"] = seed.into();
        }
        match &question.held {
            Held::AsServed => {}
            Held::Free => body["response_format"] = json!({"type": "text"}),
            Held::Schema(schema) => {
                let format = json!({"name": "answer", "strict": true, "schema": schema});
                body["response_format"] = json!({"type": "json_schema", "json_schema": format});
            }
        }
        match &question.prompt {
            Prompt::Chat(messages) => {
                body["messages"] = json!(messages);
                self.answer(&self.post("/v1/chat/completions", &body)?, "/message/content")
            }
            Prompt::Text(text) => {
                body["prompt"] = text.as_str().into();
                self.answer(&self.post("/v1/completions", &body)?, "/text")
            }
        }
    }

    fn scorer(&self) -> Option<&dyn Scorer> {
        Some(self)
    }
}

impl Scorer for Endpoint {
    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<u32>, AskError> {
        self.tokens(json!({"prompt": text, "add_special_tokens": special}))
    }

    fn tokenize_chat(&self, messages: &[Message]) -> Result<Vec<u32>, AskError> {
        self.tokens(json!({"messages": messages, "add_generation_prompt": true}))
    }

    fn max_context_tokens(&self) -> Option<usize> {
        self.max_context_tokens
    }

    fn score(&self, tokens: &[u32], _stopped: &Stopped<'_>) -> Result<Vec<TokenScore>, AskError> {
        let body = json!({
            "model": self.model, "prompt": tokens, "max_tokens": 0, "echo": true, "logprobs": 1, "temperature": 0,
        });
        let answer = self.post("/v1/completions", &body)?;
        let of =
            |name: &str| answer.pointer(&format!("/choices/0/logprobs/{name}")).and_then(Value::as_array);
        let wrong = |what: &str| {
            AskError::Fatal(format!("{} gives no log-probabilities of a prompt: {what}", self.base))
        };
        let (Some(logprobs), Some(top)) = (of("token_logprobs"), of("top_logprobs")) else {
            return Err(wrong(&shortened(&answer.to_string())));
        };
        if logprobs.len() != tokens.len() || top.len() != tokens.len() {
            return Err(wrong(&format!("{} of {} tokens", logprobs.len(), tokens.len())));
        }
        let scores = logprobs.iter().zip(top).skip(1).map(|(logprob, top)| {
            let logprob = logprob.as_f64()?;
            let best = top.as_object()?.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
            Some(TokenScore { logprob, is_likeliest: logprob >= best })
        });
        scores.collect::<Option<Vec<_>>>().ok_or_else(|| wrong("a token has none"))
    }
}

/// What an error says for people.
fn message_of(body: &Value) -> String {
    let message = body.pointer("/error/message").and_then(Value::as_str);
    message.map_or_else(|| shortened(&body.to_string()), shortened)
}

/// The beginning of a text that may be long.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN_CHARS).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        short.push('…');
    }
    short
}

/// A body as JSON; one that is none, as its text.
fn body_of(mut response: Response<ureq::Body>) -> Result<Value, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_known() {
        for (url, here) in [
            ("http://127.0.0.1:8000/v1", true),
            ("http://LOCALHOST", true),
            ("http://[::1]:1/", true),
            ("https://api.example", false),
            ("http://10.0.0.1:8000", false),
            ("nonsense://", false),
        ] {
            assert_eq!(is_on_this_machine(url), here, "{url}");
        }
    }

    #[test]
    fn refusals_are_sorted_by_what_follows_from_them() {
        let endpoint = Endpoint {
            agent: ureq::Agent::new_with_defaults(),
            base: "http://127.0.0.1:1".to_owned(),
            model: "m".to_owned(),
            key: None,
            max_context_tokens: None,
            has_answered: AtomicBool::new(false),
        };
        let refused = |status: u16, code: &str| {
            let body = json!({"error": {"message": "so it is", "code": code}});
            endpoint.refused(StatusCode::from_u16(status).unwrap(), Some(Duration::from_secs(3)), &body)
        };
        assert!(matches!(refused(429, ""), AskError::Again { after: Some(_), .. }));
        assert!(matches!(refused(429, "insufficient_quota"), AskError::Fatal(_)));
        assert!(matches!(refused(401, ""), AskError::Fatal(_)));
        assert!(matches!(refused(400, "context_length_exceeded"), AskError::Question { .. }));
        assert!(refused(400, "").is_fatal());
        endpoint.has_answered.store(true, Ordering::Relaxed);
        assert!(matches!(refused(400, ""), AskError::Question { kind: "endpoint", .. }));
        assert!(matches!(refused(500, ""), AskError::Question { kind: "endpoint", .. }));
    }
}
