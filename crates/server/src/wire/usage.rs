//! Tokens used, and where the time went.

use serde::Serialize;
use wardrobe_engine::{Summary, Timings, Usage};

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct WireUsage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PromptTokensDetails {
    pub cached_tokens: usize,
}

impl WireUsage {
    /// Adds what one prompt used.
    pub fn add(&mut self, usage: &Usage) {
        self.prompt_tokens += usage.prompt_tokens;
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
        self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
    }
}

/// llama.cpp's `timings`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct WireTimings {
    cache_n: usize,
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_second: f64,
    queue_ms: f64,
}

fn per_second(count: usize, ms: f64) -> f64 {
    if ms > 0.0 { count as f64 * 1000.0 / ms } else { 0.0 }
}

impl WireTimings {
    pub fn new(summary: &Summary) -> Self {
        let Timings { queue, prefill, decode, .. } = summary.timings;
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        let (prompt_ms, predicted_ms) = (ms(prefill), ms(decode));
        let prompt_n = summary.usage.prompt_tokens.saturating_sub(summary.usage.cached_tokens);
        Self {
            cache_n: summary.usage.cached_tokens,
            prompt_n,
            prompt_ms,
            prompt_per_second: per_second(prompt_n, prompt_ms),
            predicted_n: summary.usage.completion_tokens,
            predicted_ms,
            predicted_per_second: per_second(summary.usage.completion_tokens, predicted_ms),
            queue_ms: ms(queue),
        }
    }
}
