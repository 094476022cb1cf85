//! The end of a generation request in the log: one line, with the span's fields filled from the engine's summary.

use std::time::{Duration, Instant};

use tracing::Span;
use wardrobe_engine::{Summary, Usage};

use crate::context::RequestContext;
use crate::target::Target;

/// Writes the line when it is dropped, so that a client that goes away is logged too.
pub(crate) struct RequestLog {
    span: Span,
    started: Instant,
    usage: Usage,
    outcome: &'static str,
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl RequestLog {
    pub fn new(context: &RequestContext, target: &Target) -> Self {
        let span = context.span.clone();
        span.record("model", target.model.as_str());
        if let Some(adapter) = &target.adapter {
            span.record("adapter", adapter.as_str());
        }
        Self { span, started: context.started, usage: Usage::default(), outcome: "client_gone" }
    }

    /// Takes in the summary of one prompt; times of several are those of the last.
    pub fn add(&mut self, summary: &Summary) {
        let (total, usage) = (&mut self.usage, &summary.usage);
        total.prompt_tokens += usage.prompt_tokens;
        total.completion_tokens += usage.completion_tokens;
        total.cached_tokens += usage.cached_tokens;
        if let Some(generation) = summary.generation {
            self.span.record("generation", generation.0);
        }
        let timings = &summary.timings;
        self.span
            .record("queue_ms", ms(timings.queue))
            .record("prefill_ms", ms(timings.prefill))
            .record("decode_ms", ms(timings.decode));
    }

    /// How it ended; without this the client went away.
    pub fn end(&mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.span
            .record("prompt_tokens", self.usage.prompt_tokens)
            .record("completion_tokens", self.usage.completion_tokens)
            .record("cached_tokens", self.usage.cached_tokens)
            .record("total_ms", ms(self.started.elapsed()))
            .record("finish", self.outcome);
        tracing::info!(parent: &self.span, "request finished");
    }
}
