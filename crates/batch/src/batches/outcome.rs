//! What became of requests: a line for each, and the two files that clients get of them.

use serde::{Deserialize, Serialize};

use super::endpoint::BatchAnswer;
use super::{BatchUsage, RequestCounts};

/// A line of an output or error file, in OpenAI's shape.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<LineError<'a>>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: &'a str,
    body: &'a serde_json::Value,
}

#[derive(Serialize)]
struct LineError<'a> {
    code: &'a str,
    message: &'a str,
}

/// Why a request has no answer; the names are OpenAI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing<'a> {
    /// The batch was cancelled first.
    Cancelled,
    /// The batch expired first.
    Expired,
    /// This program is at fault.
    Failed(&'a str),
}

const EXPIRED: &str = "batch_expired";
const CANCELLED: &str = "batch_cancelled";

/// The line of a request that was answered or refused.
pub(crate) fn answered(id: &str, custom_id: &str, answer: &BatchAnswer) -> String {
    let BatchAnswer { status, request_id, body } = answer;
    let response = Response { status_code: *status, request_id, body };
    written(&Line { id, custom_id, response: Some(response), error: None })
}

/// The line of a request that was not.
pub(crate) fn missing(id: &str, custom_id: &str, why: Missing<'_>) -> String {
    let error = match why {
        Missing::Cancelled => {
            LineError { code: CANCELLED, message: "the batch was cancelled before this request was answered" }
        }
        Missing::Expired => {
            LineError { code: EXPIRED, message: "the batch expired before this request was answered" }
        }
        Missing::Failed(message) => LineError { code: "server_error", message },
    };
    written(&Line { id, custom_id, response: None, error: Some(error) })
}

/// Texts, numbers and JSON values are always written.
fn written(line: &Line<'_>) -> String {
    serde_json::to_string(line).unwrap_or_default()
}

/// What a line says, as far as it matters for a batch.
#[derive(Deserialize)]
struct Read {
    response: Option<ReadResponse>,
    error: Option<ReadError>,
}

#[derive(Deserialize)]
struct ReadResponse {
    status_code: u16,
    body: Option<ReadBody>,
}

#[derive(Deserialize)]
struct ReadBody {
    usage: Option<ReadUsage>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReadUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<ReadDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReadDetails {
    cached_tokens: u64,
}

#[derive(Deserialize)]
struct ReadError {
    code: String,
}

/// What a line counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Completed,
    Failed,
    Expired,
    Cancelled,
}

/// All lines so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub counts: RequestCounts,
    pub usage: BatchUsage,
    /// Whether time ran out for a request.
    pub expired: bool,
}

impl Tally {
    /// Takes in a line.
    pub fn add(&mut self, line: &str) -> Result<Kind, String> {
        let read: Read = serde_json::from_str(line).map_err(|error| format!("is no outcome: {error}"))?;
        self.counts.total += 1;
        if let Some(usage) =
            read.response.as_ref().and_then(|response| response.body.as_ref()?.usage.as_ref())
        {
            let cached = usage.prompt_tokens_details.as_ref().map_or(0, |details| details.cached_tokens);
            self.usage.input_tokens = self.usage.input_tokens.saturating_add(usage.prompt_tokens);
            self.usage.output_tokens = self.usage.output_tokens.saturating_add(usage.completion_tokens);
            self.usage.cached_tokens = self.usage.cached_tokens.saturating_add(cached);
        }
        let status = read.response.map(|response| response.status_code);
        let kind = match (status, read.error.as_ref().map(|error| error.code.as_str())) {
            (Some(200..300), None) => Kind::Completed,
            (None, Some(EXPIRED)) => Kind::Expired,
            (None, Some(CANCELLED)) => Kind::Cancelled,
            _ => Kind::Failed,
        };
        match kind {
            Kind::Completed => self.counts.completed += 1,
            Kind::Failed => self.counts.failed += 1,
            Kind::Expired => self.expired = true,
            Kind::Cancelled => {}
        }
        Ok(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_have_openai_s_shape_and_are_counted() {
        let usage = json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 3}});
        let answer = |status, body| BatchAnswer { status, request_id: "req-1".to_owned(), body };
        let good = answered("batch_req_1", "a\n\"b", &answer(200, json!({"usage": usage})));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&good).unwrap(),
            json!({"id": "batch_req_1", "custom_id": "a\n\"b", "error": null,
                "response": {"status_code": 200, "request_id": "req-1", "body": {"usage": usage}}})
        );
        assert!(!good.contains('\n'));
        let mut tally = Tally::default();
        assert_eq!(tally.add(&good), Ok(Kind::Completed));
        let refused = answered("1", "b", &answer(400, json!({"error": {"message": "no"}})));
        assert_eq!(tally.add(&refused), Ok(Kind::Failed));
        assert_eq!(tally.add(&missing("1", "c", Missing::Failed("a panic"))), Ok(Kind::Failed));
        assert_eq!(tally.add(&missing("1", "c", Missing::Cancelled)), Ok(Kind::Cancelled));
        assert!(!tally.expired);
        assert_eq!(tally.add(&missing("1", "c", Missing::Expired)), Ok(Kind::Expired));
        assert_eq!(tally.counts, RequestCounts { total: 5, completed: 1, failed: 2 });
        assert_eq!(tally.usage, BatchUsage { input_tokens: 5, cached_tokens: 3, output_tokens: 2 });
        assert!(tally.expired && tally.add("{\"id\": 1").is_err());
    }
}
