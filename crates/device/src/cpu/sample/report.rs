//! Log-probabilities of a row: of the token drawn, of the best, and of those asked for.

use super::scan::{self, Scale};
use super::{Passes, SampleScratch};
use crate::sample::TokenLogprobs;

/// What to report.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) token: u32,
    pub(super) top: u32,
    pub(super) asked: &'a [u32],
    /// Bit mask to which the distribution is confined.
    pub(super) allowed: Option<&'a [u32]>,
}

/// Log-probabilities under the softmax of `logits`. A token without probability has minus infinity; only tokens with
/// some are among the best. The rank counts better logits, and equal ones of a lower id.
#[inline(always)]
pub(super) fn logprobs(logits: &[f32], wanted: &Wanted<'_>, scratch: &mut SampleScratch) -> TokenLogprobs {
    let SampleScratch { edited, passes: Passes { maxima, masses, candidates }, .. } = scratch;
    let values = match wanted.allowed {
        Some(allowed) => {
            scan::copy_masked(logits, allowed, edited);
            edited.as_slice()
        }
        None => logits,
    };
    let max = scan::block_maxima(values, maxima);
    let scale = Scale { max: max.max(f32::MIN), inv_temperature: 1.0 };
    let log_total = scan::block_masses(values, maxima, scale, masses).ln();
    let logit =
        |token: u32| values.get(token as usize).copied().filter(|v| !v.is_nan()).unwrap_or(f32::NEG_INFINITY);
    let logprob = |token: u32| match logit(token) {
        f32::NEG_INFINITY => f32::NEG_INFINITY,
        v => (f64::from(scan::capped(v)) - f64::from(max) - log_total) as f32,
    };
    let mut top = Vec::new();
    if wanted.top > 0 {
        let k = (wanted.top as usize).min(values.len());
        let bound = candidates.kth_largest(maxima, k);
        candidates.collect(values, maxima, bound, scale);
        candidates.cut_to_count(k);
        top.extend(candidates.best_first().map(|token| (token, logprob(token))));
    }
    let own = logit(wanted.token);
    let (before, after) = values.split_at(values.len().min(wanted.token as usize));
    let better = scan::count_above(after, own)
        + if own == f32::NEG_INFINITY {
            before.len()
        } else {
            // At least as large means above the next smaller number; the two zeros are equal.
            scan::count_above(before, own.next_down())
        };
    TokenLogprobs {
        logprob: logprob(wanted.token),
        rank: (better + 1) as u32,
        top,
        asked: wanted.asked.iter().map(|&token| (token, logprob(token))).collect(),
    }
}
