//! Drawing a token from a row of logits, and log-probabilities.
//!
//! What the steps of [`SampleRow`] mean, precisely. The logit `l` of a token becomes:
//!
//! 1. `l + bias` (several biases of one token add up);
//! 2. for tokens of prompt or output `l / repetition` if `l > 0`, else `l * repetition`; for tokens of the output
//!    `- frequency * count - presence`;
//! 3. minus infinity if it is banned or not allowed;
//! 4. `l / temperature`. A temperature that is not above 0 takes the largest logit instead, the lowest id of equals.
//!
//! Tokens are ordered by logit, largest first, equals by id. Top-k keeps the first `k`. Top-p keeps, of what top-k
//! left and in that order, as few as bring the sum of probabilities, renormalised over what top-k left, to `top_p`,
//! but at least one. Min-p drops tokens of less than `min_p` times the probability of the best. The token is drawn by
//! inverting the cumulative distribution of the rest, in the order of ids, at a Philox number keyed by the seed.
//!
//! NaN counts as minus infinity, and plus infinity as the largest finite number. If no token has a logit above minus
//! infinity, the result says that there was no candidate; the lowest id that is allowed and not banned stands in, or 0
//! if there is none.
//!
//! A row's result is a function of that row alone. No pass sorts the vocabulary: a threshold from the maxima of
//! blocks preselects candidates, and quickselect finds the cut among them.

mod candidates;
mod edits;
mod report;
mod scan;
#[cfg(test)]
mod tests;

use super::philox;
use crate::sample::{LogprobRow, SampleRow, Sampled, TokenEdit, TokenLogprobs};
use candidates::Candidates;
use scan::{BLOCK, Scale};

/// With fewer edits than one in so many logits, scanning the stretches between them beats copying the row.
const SPARSE: usize = 1024;

/// Buffers of one thread, grown to the vocabulary at first use.
#[derive(Debug, Default)]
pub(crate) struct SampleScratch {
    edited: Vec<f32>,
    edits: Vec<TokenEdit>,
    passes: Passes,
}

/// What the passes over a row leave behind.
#[derive(Debug, Default)]
struct Passes {
    maxima: Vec<f32>,
    masses: Vec<f32>,
    candidates: Candidates,
}

/// Draws one token; see the module's head. Ids in `row` that lie outside `logits` are passed over.
#[inline(always)]
pub(crate) fn sample_row(logits: &[f32], row: &SampleRow, scratch: &mut SampleScratch) -> Sampled {
    let drawn = draw(logits, row, scratch);
    let token = drawn.unwrap_or_else(|| lowest_allowed(logits.len(), row));
    let mut logprobs = None;
    if row.top_logprobs.is_some() || !row.logprob_tokens.is_empty() {
        let wanted = report::Wanted {
            token,
            top: row.top_logprobs.unwrap_or(0),
            asked: &row.logprob_tokens,
            allowed: row.allowed.as_deref(),
        };
        logprobs = Some(report::logprobs(logits, &wanted, scratch));
    }
    Sampled { token, has_candidate: drawn.is_some(), logprobs }
}

/// Log-probability of a given token in the raw distribution.
#[inline(always)]
pub(crate) fn logprobs_row(logits: &[f32], row: &LogprobRow, scratch: &mut SampleScratch) -> TokenLogprobs {
    let wanted = report::Wanted { token: row.target, top: row.top, asked: &[], allowed: None };
    report::logprobs(logits, &wanted, scratch)
}

/// `None` if no token has a logit above minus infinity.
#[inline(always)]
fn draw(logits: &[f32], row: &SampleRow, scratch: &mut SampleScratch) -> Option<u32> {
    let SampleScratch { edited, edits, passes } = scratch;
    row.edits(logits.len(), edits);
    let best_only = row.temperature.is_nan() || row.temperature <= 0.0 || row.top_k == 1 || row.top_p <= 0.0;
    if best_only && row.allowed.is_none() && edits.len() <= logits.len() / SPARSE {
        return edits::argmax(logits, edits);
    }
    let values = match &row.allowed {
        None if edits.is_empty() => logits,
        allowed => {
            match allowed {
                Some(allowed) => scan::copy_masked(logits, allowed, edited),
                None => {
                    edited.clear();
                    edited.extend_from_slice(logits);
                }
            }
            edits::apply(edits, edited);
            edited.as_slice()
        }
    };
    if best_only {
        return Some(scan::argmax(values)?.0 as u32);
    }
    let max = scan::block_maxima(values, &mut passes.maxima);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let scale = Scale { max, inv_temperature: (1.0 / row.temperature).min(f32::MAX) };
    let u = philox::uniform(row.seed, row.choice, row.position);
    let top_k = match row.top_k as usize {
        0 => None,
        k => Some(k).filter(|&k| k < values.len()),
    };
    let filters = Filters { top_k, top_p: row.top_p, min_p: row.min_p.min(1.0) };
    if filters.are_off() {
        draw_from_all(values, scale, u, passes)
    } else {
        draw_filtered(values, scale, &filters, u, passes)
    }
}

#[derive(Debug)]
struct Filters {
    top_k: Option<usize>,
    top_p: f32,
    min_p: f32,
}

impl Filters {
    /// Whether top-p removes anything; a NaN does not.
    fn has_top_p(&self) -> bool {
        self.top_p < 1.0
    }

    fn has_min_p(&self) -> bool {
        self.min_p > 0.0
    }

    fn are_off(&self) -> bool {
        self.top_k.is_none() && !self.has_top_p() && !self.has_min_p()
    }
}

/// Inverts the cumulative distribution of the whole row: by blocks, then inside the block.
#[inline(always)]
fn draw_from_all(values: &[f32], scale: Scale, u: f64, passes: &mut Passes) -> Option<u32> {
    let total = scan::block_masses(values, &passes.maxima, scale, &mut passes.masses);
    let target = u * total;
    let mut below = 0.0;
    let mut chosen = None;
    for (block_idx, &mass) in passes.masses.iter().enumerate() {
        if mass > 0.0 {
            let next = below + f64::from(mass);
            chosen = Some((block_idx * BLOCK, below));
            if next > target {
                break;
            }
            below = next;
        }
    }
    let (start, mut below) = chosen?;
    // The block's mass was added up in another order: its last token stands in where rounding leaves a gap.
    let mut token = None;
    for (offset, &v) in values.get(start..)?.iter().take(BLOCK).enumerate() {
        let mass = scale.mass(v);
        if mass > 0.0 {
            token = Some((start + offset) as u32);
            below += f64::from(mass);
            if below > target {
                break;
            }
        }
    }
    token
}

#[inline(always)]
fn draw_filtered(
    values: &[f32],
    scale: Scale,
    filters: &Filters,
    u: f64,
    passes: &mut Passes,
) -> Option<u32> {
    let Passes { maxima, masses, candidates } = passes;
    let temperature = 1.0 / scale.inv_temperature;
    if let Some(k) = filters.top_k {
        let bound = candidates.kth_largest(maxima, k);
        candidates.collect(values, maxima, bound, scale);
        let kept = candidates.cut_to_count(k);
        if filters.has_top_p() {
            candidates.cut_to_mass(f64::from(filters.top_p) * kept);
        }
    } else if filters.has_top_p() {
        let wanted = f64::from(filters.top_p) * scan::block_masses(values, maxima, scale, masses);
        // Candidates down to exp(-reach) of the best, as far as it takes to reach the mass.
        let mut reach = 4.0;
        loop {
            let all = reach > -scan::EXP_ZERO;
            let bound = if all { f32::NEG_INFINITY } else { scale.max - reach * temperature };
            if candidates.collect(values, maxima, bound, scale) >= wanted || all {
                break;
            }
            reach *= 2.0;
        }
        candidates.cut_to_mass(wanted);
    } else {
        // The bound only preselects, so it leaves room for rounding.
        let bound = scale.max + (filters.min_p.ln() * 1.0001 - 1e-3) * temperature;
        candidates.collect(values, maxima, bound - bound.abs() * 1e-6, scale);
    }
    candidates.draw(filters.min_p, u)
}

/// The lowest id that neither mask nor ban excludes.
fn lowest_allowed(vocab_size: usize, row: &SampleRow) -> u32 {
    let allowed = |t: u32| {
        row.allowed
            .as_ref()
            .is_none_or(|mask| mask.get(t as usize / 32).is_some_and(|word| word >> (t % 32) & 1 != 0))
    };
    (0..vocab_size as u32).find(|t| allowed(*t) && !row.banned.contains(t)).unwrap_or(0)
}
