//! `perplexity`: how well a model foresees texts, by how much of them it sees.
//!
//! A window of the context's length slides over the tokens of a document and goes on by the stride; of each window those
//! tokens count that no window before had. So every token but the first counts once, with at least context minus stride
//! tokens before it, as soon as there are so many.

use super::{Metric, Score, Scored, Task, Way, Weigh, Weighed};
use crate::items::{Fields, Item};
use crate::settings::TaskSettings;
use crate::weighing::{Weighing, unfit};
use wardrobe_generator::AskError;

pub(super) struct Perplexity;

const PERPLEXITY: &str = "perplexity";
const BITS_PER_BYTE: &str = "bits_per_byte";
const BITS_PER_TOKEN: &str = "bits_per_token";
/// What the others are computed from.
const NATS: &str = "nats";
const TOKENS: &str = "scored_tokens";
const BYTES: &str = "bytes";
const CONTEXT: &str = "context";

impl Task for Perplexity {
    fn name(&self) -> &'static str {
        PERPLEXITY
    }

    fn purpose(&self) -> &'static str {
        "how well texts are foreseen, by context length"
    }

    fn about(&self) -> &'static str {
        "Each token of a document counts once, after at least context - stride others (where there are as many); the first \
         token of all is given. perplexity: e to the mean of -log p over tokens; bits_per_token: the same mean in bits; \
         bits_per_byte: bits over the bytes of the documents, which models with different tokens have in common. Means are \
         over all tokens and not over documents. Less is better"
    }

    fn main_measure(&self) -> &'static str {
        PERPLEXITY
    }

    fn less_is_better(&self) -> &'static [&'static str] {
        &[PERPLEXITY, BITS_PER_BYTE, BITS_PER_TOKEN]
    }

    fn read(&self, fields: &Fields, settings: &TaskSettings) -> Result<Vec<Item>, String> {
        let text = fields.text("text")?.ok_or("has no `text`")?;
        if text.is_empty() {
            return Err("`text` is empty".to_owned());
        }
        let first = Item::new(fields.line, text, Vec::new());
        let of = |context: &usize| {
            let own = [(CONTEXT.to_owned(), *context as f64)];
            let others = fields.numbers().into_iter().filter(|(name, _)| name != CONTEXT);
            Item { numbers: own.into_iter().chain(others).collect(), ..first.clone() }
        };
        Ok(settings.contexts.iter().map(of).collect())
    }

    fn way(&self) -> Way<'_> {
        Way::Likelihoods(self)
    }

    fn groups(&self) -> &'static [&'static [&'static str]] {
        &[&[CONTEXT]]
    }

    fn summarise(&self, scored: &[Scored<'_>]) -> Vec<Metric> {
        let sum = |name: &str| scored.iter().filter_map(|one| one.score.get(name)).sum::<f64>();
        let num_items = scored.iter().filter(|one| one.score.get(NATS).is_some()).count();
        let measures = measures(sum(NATS), sum(TOKENS), sum(BYTES));
        let metric = |(name, value): (&str, f64)| Metric {
            name: name.to_owned(),
            value,
            standard_error: None,
            num_items,
        };
        if num_items == 0 { Vec::new() } else { measures.into_iter().map(metric).collect() }
    }
}

fn measures(nats: f64, num_tokens: f64, num_bytes: f64) -> [(&'static str, f64); 3] {
    let bits = nats / std::f64::consts::LN_2;
    [
        (PERPLEXITY, (nats / num_tokens).exp()),
        (BITS_PER_BYTE, bits / num_bytes),
        (BITS_PER_TOKEN, bits / num_tokens),
    ]
}

impl Weigh for Perplexity {
    fn weigh(&self, item: &Item, weighing: &Weighing<'_>) -> Result<Weighed, AskError> {
        let text = item.question();
        let context = item.number(CONTEXT).unwrap_or_default() as usize;
        // A window has to begin before the one before it ends, so that there is something before its first new token.
        let stride = weighing.settings.stride.unwrap_or(context / 2).clamp(1, context.max(2) - 1);
        if let Some(most) = weighing.scorer.max_context_tokens().filter(|most| context > *most) {
            return Err(unfit(format!("the model looks at {most} tokens at most, not at {context}")));
        }
        let tokens = weighing.tokenize(&text)?;
        if tokens.len() < 2 || context < 2 {
            return Err(unfit("fewer than two tokens"));
        }
        let mut nats = 0.0;
        for window in Windows::new(tokens.len(), context, stride) {
            let own = tokens.get(window.start..window.end).unwrap_or_default();
            let scores = weighing.score_from(own, window.first_new - window.start)?;
            nats -= scores.iter().map(|score| score.logprob).sum::<f64>();
        }
        let num_tokens = (tokens.len() - 1) as f64;
        let mut score = Score(vec![
            (NATS.to_owned(), nats),
            (TOKENS.to_owned(), num_tokens),
            (BYTES.to_owned(), text.len() as f64),
        ]);
        let measures = measures(nats, num_tokens, text.len() as f64);
        score.0.splice(0..0, measures.map(|(name, value)| (name.to_owned(), value)));
        Ok(Weighed { score, ..Weighed::default() })
    }
}

/// Places of tokens: a window has those from `start` to `end`, and those from `first_new` on count.
struct Window {
    start: usize,
    first_new: usize,
    end: usize,
}

struct Windows {
    num_tokens: usize,
    context: usize,
    stride: usize,
    start: usize,
    done: usize,
}

impl Windows {
    /// The first token has nothing before it and does not count.
    fn new(num_tokens: usize, context: usize, stride: usize) -> Self {
        Self { num_tokens, context, stride, start: 0, done: 1 }
    }
}

impl Iterator for Windows {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        if self.done >= self.num_tokens {
            return None;
        }
        let end = self.num_tokens.min(self.start + self.context);
        let window = Window { start: self.start, first_new: self.done, end };
        (self.start, self.done) = (self.start + self.stride, end);
        Some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_counts_once_after_enough_others() {
        for (num_tokens, context, stride) in
            [(2, 2, 1), (10, 4, 2), (11, 4, 1), (100, 16, 8), (7, 512, 256), (33, 8, 3), (64, 8, 7)]
        {
            let mut counted = vec![0; num_tokens];
            for window in Windows::new(num_tokens, context, stride) {
                assert!(window.end - window.start <= context && window.first_new > window.start);
                counted[window.first_new..window.end].iter_mut().for_each(|num| *num += 1);
                let before = window.first_new - window.start;
                assert!(before >= window.first_new.min(context - stride), "{num_tokens} {context} {stride}");
            }
            assert!(
                counted[0] == 0 && counted[1..].iter().all(|n| *n == 1),
                "{num_tokens} {context} {stride}"
            );
        }
    }

    #[test]
    fn measures_agree_with_each_other() {
        let [(_, perplexity), (_, per_byte), (_, per_token)] = measures(10.0 * 2f64.ln(), 5.0, 40.0);
        assert!((perplexity - 4.0).abs() < 1e-12 && (per_token - 2.0).abs() < 1e-12);
        assert!((per_byte - 0.25).abs() < 1e-12);
    }
}
