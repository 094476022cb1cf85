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
    /// Of the prompts that have ended.
    usage: Usage,
    /// Tokens of prompt and answer, as far as they came, of the prompts that have not.
    running: Vec<Option<(usize, usize)>>,
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
        Self {
            span,
            started: context.started,
            usage: Usage::default(),
            running: Vec::new(),
            outcome: "client_gone",
        }
    }

    /// The engine gets prompts of these lengths. From now on, what ends without a word is a client that went away.
    pub fn start(&mut self, prompt_tokens: impl IntoIterator<Item = usize>) {
        self.running = prompt_tokens.into_iter().map(|tokens| Some((tokens, 0))).collect();
        self.outcome = "client_gone";
    }

    /// Tokens of an answer came.
    pub fn generated(&mut self, prompt_idx: usize, tokens: usize) {
        if let Some(Some((_, generated))) = self.running.get_mut(prompt_idx) {
            *generated += tokens;
        }
    }

    /// Takes in the summary of one prompt; times of several are those of the last.
    pub fn add(&mut self, prompt_idx: usize, summary: &Summary) {
        if let Some(running) = self.running.get_mut(prompt_idx) {
            *running = None;
        }
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
        // Cut off before their summaries: what is known of them. Of what was refused nothing was computed.
        let cut_off = self.running.iter().flatten().filter(|_| self.outcome != "refused");
        for (prompt_tokens, completion_tokens) in cut_off {
            self.usage.prompt_tokens += prompt_tokens;
            self.usage.completion_tokens += completion_tokens;
        }
        self.span
            .record("prompt_tokens", self.usage.prompt_tokens)
            .record("completion_tokens", self.usage.completion_tokens)
            .record("cached_tokens", self.usage.cached_tokens)
            .record("total_ms", ms(self.started.elapsed()))
            .record("finish", self.outcome);
        tracing::info!(parent: &self.span, "request finished");
    }
}
