//! What the sampling and log-probability ops are asked for and answer.

use std::sync::Arc;

/// How often a token has occurred, for the penalties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// The token.
    pub token: u32,
    /// Occurrences in the generated text.
    pub output_count: u32,
    /// Whether the prompt has it.
    pub in_prompt: bool,
}

/// How to draw one token from a row of logits. The steps apply in this order: bias, penalties, mask, temperature,
/// filters (top-k, top-p, min-p), and the draw.
#[derive(Debug, Clone)]
pub struct SampleRow {
    /// 0 takes the most probable token; ties go to the lowest id.
    pub temperature: f32,
    /// Keep the `top_k` most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most probable tokens whose mass reaches `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as probable as the best; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (Keskar et al.,
    /// arXiv 1909.05858); 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from tokens seen in the output (OpenAI's API reference).
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output (OpenAI's API reference).
    pub frequency_penalty: f32,
    /// Tokens seen so far; needed only when a penalty is on.
    pub history: Vec<TokenCount>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that may not be drawn.
    pub banned: Vec<u32>,
    /// Bit mask of the tokens that may be drawn, bit `t % 32` of word `t / 32`.
    pub allowed: Option<Arc<[u32]>>,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Which of a request's answers: part of the counter.
    pub choice: u32,
    /// Position of the token to draw: part of the counter.
    pub position: u64,
    /// Report the log-probability of the token and of the most probable `n`; of the raw distribution, or, when
    /// `allowed` is set, of the masked one.
    pub top_logprobs: Option<u32>,
    /// Report the log-probabilities of these tokens too.
    pub logprob_tokens: Vec<u32>,
}

impl Default for SampleRow {
    /// Greedy, nothing filtered, nothing reported.
    fn default() -> Self {
        SampleRow {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            history: Vec::new(),
            logit_bias: Vec::new(),
            banned: Vec::new(),
            allowed: None,
            seed: 0,
            choice: 0,
            position: 0,
            top_logprobs: None,
            logprob_tokens: Vec::new(),
        }
    }
}

/// What happens to one token's logit.
#[derive(Debug, Clone, Copy)]
pub struct TokenEdit {
    /// The token.
    pub token: u32,
    /// Added first.
    pub bias: f32,
    /// Factor against the logit's sign: 1 if the token was not seen.
    pub repetition: f32,
    /// Presence and frequency penalties together.
    pub subtract: f32,
    /// Minus infinity in the end.
    pub banned: bool,
}

impl TokenEdit {
    fn of(token: u32) -> Self {
        TokenEdit { token, bias: 0.0, repetition: 1.0, subtract: 0.0, banned: false }
    }

    /// The edited logit; minus infinity stays what it is.
    pub(crate) fn apply(&self, logit: f32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let v = logit + self.bias;
        let v = if v > 0.0 { v / self.repetition } else { v * self.repetition };
        let v = v - self.subtract;
        if self.banned || v.is_nan() { f32::NEG_INFINITY } else { v }
    }
}

impl SampleRow {
    /// What bias, penalties and bans change, ascending by token, one a token; of tokens below `vocab_size`.
    pub fn edits(&self, vocab_size: usize, edits: &mut Vec<TokenEdit>) {
        edits.clear();
        edits.extend(self.logit_bias.iter().map(|&(token, bias)| TokenEdit { bias, ..TokenEdit::of(token) }));
        let penalised =
            self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        if penalised {
            edits.extend(self.history.iter().map(|seen| {
                let mut edit = TokenEdit::of(seen.token);
                if seen.in_prompt || seen.output_count > 0 {
                    edit.repetition = self.repetition_penalty;
                }
                if seen.output_count > 0 {
                    edit.subtract = self.frequency_penalty * seen.output_count as f32 + self.presence_penalty;
                }
                edit
            }));
        }
        edits.extend(self.banned.iter().map(|&token| TokenEdit { banned: true, ..TokenEdit::of(token) }));
        edits.retain(|edit| (edit.token as usize) < vocab_size);
        // Stable, so that biases of one token add up in the order given.
        edits.sort_by_key(|edit| edit.token);
        edits.dedup_by(|next, kept| {
            let same = next.token == kept.token;
            if same {
                kept.bias += next.bias;
                kept.subtract += next.subtract;
                if next.repetition != 1.0 {
                    kept.repetition = next.repetition;
                }
                kept.banned |= next.banned;
            }
            same
        });
    }
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Whether there was a token to draw: one whose logit, after bias, penalties and mask, is above minus infinity. If
    /// not, `token` only stands in.
    pub has_candidate: bool,
    /// What was asked for in [`SampleRow::top_logprobs`].
    pub logprobs: Option<TokenLogprobs>,
}

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token itself.
    pub logprob: f32,
    /// 1 for the most probable token.
    pub rank: u32,
    /// The most probable tokens, best first; ties by id.
    pub top: Vec<(u32, f32)>,
    /// The tokens asked for by id.
    pub asked: Vec<(u32, f32)>,
}

/// Asks for the log-probability of a given token in a row of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogprobRow {
    /// The token.
    pub target: u32,
    /// How many of the most probable tokens to report.
    pub top: u32,
}
