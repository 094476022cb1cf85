//! The same load on an endpoint that speaks OpenAI's API: streamed `/v1/completions`.

use std::io::BufReader;
use std::time::Duration;

use serde_json::{Value, json};
use wardrobe_generator::is_on_this_machine;

use super::Load;
use super::load::{Timeline, closed_loop};
use super::machine::{Limits, Machine};
use super::report::{Report, ServingResult, Target};
use super::sse::SseEvents;
use crate::device::CpuOptions;
use crate::error::{Error, Result};

/// No single request takes longer.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Short frequent words, each one token in most vocabularies.
const WORDS: [&str; 32] = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not",
    "he", "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which", "one",
    "you", "were",
];

/// How to measure an endpoint.
#[derive(Debug, Clone, Default)]
pub struct RemoteOptions {
    /// Where it is: `http://127.0.0.1:8000`, with or without `/v1`.
    pub url: String,
    /// Names of models (or adapters), which requests take in turn.
    pub models: Vec<String>,
    /// A key, if it asks for one.
    pub api_key: Option<String>,
    /// The load. Prompts are of words, about one token each; the endpoint's own count is what is reported.
    pub load: Load,
    /// Measures what this machine can do, beside the endpoint's answers: for an endpoint on this machine.
    pub limits: Option<CpuOptions>,
}

impl RemoteOptions {
    /// Whether the endpoint is on this machine, as far as its address tells.
    pub fn is_on_this_machine(&self) -> bool {
        is_on_this_machine(&self.url)
    }
}

/// Measures an endpoint; `progress` is told what comes next.
///
/// # Errors
/// [`Error::Setting`] for options that cannot be used and for what the endpoint refused.
pub fn run_remote(options: &RemoteOptions, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    let refused = |what: &str| Err(Error::Setting(what.to_owned()));
    if options.models.is_empty() {
        return refused("no model is named");
    }
    let load = &options.load;
    if load.concurrency.is_empty() || load.concurrency.iter().any(|&c| c == 0 || c > 1024) {
        return refused("concurrency is a list of numbers from 1 to 1024");
    }
    let most = load.concurrency.iter().copied().max().unwrap_or(1);
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(TIMEOUT))
        .max_idle_connections(most)
        .max_idle_connections_per_host(most)
        .build();
    let base = options.url.trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    let client = Client {
        agent: config.into(),
        url: format!("{base}/v1/completions"),
        key: options.api_key.as_ref().map(|key| format!("Bearer {key}")),
    };
    let target = Target::Remote { url: base.to_owned(), models: options.models.clone() };
    let mut report = Report::new(target, Machine::this());
    progress("a first request");
    for model in &options.models {
        client.ask(model, &prompt(0, 8), 1)?;
    }
    let mut seed = 1;
    for &concurrency in &load.concurrency {
        progress(&format!("{concurrency} at once"));
        let first_seed = seed;
        seed += concurrency * load.requests_per_worker;
        let result = closed_loop(concurrency, load.requests_per_worker, |i| {
            let model = options.models.get(i % options.models.len()).map_or("", String::as_str);
            client.ask(model, &prompt(first_seed + i, load.prompt_tokens), load.max_tokens)
        })?;
        report.serving.push(ServingResult { num_adapters: options.models.len() - 1, ..result });
    }
    if let Some(cpu) = options.limits {
        progress("limits of this machine");
        report.set_limits(Limits::measure(cpu)?.best(&Limits::measure(cpu)?));
    }
    Ok(report)
}

/// Words that no other request has in this order.
fn prompt(seed: usize, num_words: usize) -> String {
    let mut text = format!("{seed}");
    let mut state = seed as u64;
    for _ in 1..num_words {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(' ');
        text.push_str(WORDS.get((state >> 59) as usize).copied().unwrap_or("the"));
    }
    text
}

struct Client {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
}

impl Client {
    fn ask(&self, model: &str, prompt: &str, max_tokens: usize) -> Result<Timeline> {
        let failed = |what: String| Error::Setting(format!("{}: {what}", self.url));
        let body = json!({
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let mut request = self.agent.post(&self.url);
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let mut timeline = Timeline::start();
        let mut response = request.send_json(&body).map_err(|e| failed(e.to_string()))?;
        if !response.status().is_success() {
            let status = response.status();
            let text = response.body_mut().with_config().limit(64 << 10).read_to_string().unwrap_or_default();
            return Err(failed(format!("answered {status}: {text}")));
        }
        let mut events = SseEvents::new(BufReader::new(response.into_body().into_reader()));
        let mut num_parts = 0;
        let mut usage = None;
        while let Some(data) = events.next_data().map_err(|e| failed(e.to_string()))? {
            if data == "[DONE]" {
                (timeline.prompt_tokens, timeline.output_tokens) = usage.unwrap_or((0, num_parts));
                return Ok(timeline);
            }
            let event = Event::parse(&data).map_err(failed)?;
            if event.has_token {
                timeline.arrived();
                num_parts += 1;
            }
            usage = event.usage.or(usage);
        }
        Err(failed("the stream broke off".to_owned()))
    }
}

/// What matters of a streamed event.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    has_token: bool,
    /// Tokens of prompt and answer.
    usage: Option<(usize, usize)>,
}

impl Event {
    fn parse(data: &str) -> std::result::Result<Self, String> {
        let value: Value =
            serde_json::from_str(data).map_err(|e| format!("an event that is no JSON: {e}"))?;
        if let Some(error) = value.get("error").filter(|e| !e.is_null()) {
            return Err(error.get("message").unwrap_or(error).to_string());
        }
        let choice = value.pointer("/choices/0");
        // A token may be part of a character and bring no text; only the last event brings nothing but a reason.
        let text = choice.and_then(|c| c.get("text")).and_then(Value::as_str);
        let finished = choice.and_then(|c| c.get("finish_reason")).is_some_and(|r| !r.is_null());
        let count = |name: &str| {
            let count = value.pointer(&format!("/usage/{name}")).and_then(Value::as_u64)?;
            usize::try_from(count).ok()
        };
        Ok(Event {
            has_token: text.is_some_and(|text| !text.is_empty() || !finished),
            usage: count("prompt_tokens").zip(count("completion_tokens")),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn events() {
        let parse = |data: &str| Event::parse(data);
        let token = parse(r#"{"choices":[{"text":"a","finish_reason":null}]}"#).unwrap();
        assert_eq!(token, Event { has_token: true, usage: None });
        let end = parse(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#).unwrap();
        assert!(!end.has_token);
        let usage = parse(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#).unwrap();
        assert_eq!(usage, Event { has_token: false, usage: Some((3, 2)) });
        assert!(parse(r#"{"error":{"message":"no such model"}}"#).unwrap_err().contains("no such model"));
        assert!(parse("nonsense").is_err());
    }

    #[test]
    fn prompts_differ_and_are_as_long_as_asked() {
        assert_ne!(prompt(1, 50), prompt(2, 50));
        assert_eq!(prompt(1, 50).split(' ').count(), 50);
    }

    /// Answers each connection's request with `body`.
    fn serve(status: &'static str, body: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut request = vec![0; length];
                reader.read_exact(&mut request).unwrap();
                let head =
                    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
                write!(stream, "{head}content-type: text/event-stream\r\n\r\n{body}").unwrap();
            }
        });
        url
    }

    fn options(url: String) -> RemoteOptions {
        let load = Load { prompt_tokens: 4, max_tokens: 2, concurrency: vec![1, 3], requests_per_worker: 2 };
        let (models, api_key) = (vec!["m".to_owned()], Some("key".to_owned()));
        RemoteOptions { url, models, api_key, load, limits: None }
    }

    #[test]
    fn addresses_tell_whether_the_endpoint_is_here() {
        for (url, here) in [
            ("http://127.0.0.1:8000", true),
            ("http://localhost/v1", true),
            ("https://[::1]:443/v1", true),
            ("http://10.0.0.1:8000", false),
            ("https://api.example", false),
            ("nonsense://", false),
        ] {
            assert_eq!(options(url.to_owned()).is_on_this_machine(), here, "{url}");
        }
    }

    #[test]
    fn an_endpoint_is_asked_and_its_tokens_counted() {
        let url = serve(
            "200 OK",
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
        );
        let report = run_remote(&options(format!("{url}/v1/")), &mut |_| {}).unwrap();
        let counts: Vec<_> =
            report.serving.iter().map(|s| (s.concurrency, s.prompt_tokens, s.output_tokens)).collect();
        assert_eq!(counts, [(1, 10, 4), (3, 30, 12)]);
        assert_eq!(report.serving[1].inter_token_latency_ms.count, 6);
    }

    #[test]
    fn refusals_and_broken_streams_are_errors() {
        let url = serve("404 Not Found", "{\"error\":{\"message\":\"no such model\"}}");
        assert!(run_remote(&options(url), &mut |_| {}).unwrap_err().to_string().contains("no such model"));
        let url = serve("200 OK", "data: {\"choices\":[{\"text\":\"a\"}]}\n\n");
        assert!(run_remote(&options(url), &mut |_| {}).unwrap_err().to_string().contains("broke off"));
    }
}
