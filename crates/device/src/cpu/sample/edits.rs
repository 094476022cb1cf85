//! Changes to the logits of single tokens: bias, penalties and bans, merged by token.

use super::scan;
use crate::sample::SampleRow;

/// What happens to one token's logit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edit {
    token: u32,
    bias: f32,
    /// Factor against the logit's sign: 1 if the token was not seen.
    repetition: f32,
    /// Presence and frequency penalties together.
    subtract: f32,
    banned: bool,
}

impl Edit {
    fn of(token: u32) -> Self {
        Edit { token, bias: 0.0, repetition: 1.0, subtract: 0.0, banned: false }
    }

    /// The edited logit; minus infinity stays what it is.
    fn apply(&self, logit: f32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let v = logit + self.bias;
        let v = if v > 0.0 { v / self.repetition } else { v * self.repetition };
        let v = v - self.subtract;
        if self.banned || v.is_nan() { f32::NEG_INFINITY } else { v }
    }
}

/// Gathers the row's edits, ascending by token, one a token.
pub(super) fn collect(row: &SampleRow, vocab_size: usize, edits: &mut Vec<Edit>) {
    edits.clear();
    edits.extend(row.logit_bias.iter().map(|&(token, bias)| Edit { bias, ..Edit::of(token) }));
    let penalised =
        row.repetition_penalty != 1.0 || row.presence_penalty != 0.0 || row.frequency_penalty != 0.0;
    if penalised {
        edits.extend(row.history.iter().map(|seen| {
            let mut edit = Edit::of(seen.token);
            if seen.in_prompt || seen.output_count > 0 {
                edit.repetition = row.repetition_penalty;
            }
            if seen.output_count > 0 {
                edit.subtract = row.frequency_penalty * seen.output_count as f32 + row.presence_penalty;
            }
            edit
        }));
    }
    edits.extend(row.banned.iter().map(|&token| Edit { banned: true, ..Edit::of(token) }));
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

/// Edits a copy of the logits.
pub(super) fn apply(edits: &[Edit], logits: &mut [f32]) {
    for edit in edits {
        if let Some(v) = logits.get_mut(edit.token as usize) {
            *v = edit.apply(*v);
        }
    }
}

/// The token of the largest edited logit, lowest id of equals, without a copy: the stretches between the edited
/// tokens are scanned as they are.
#[inline(always)]
pub(super) fn argmax(logits: &[f32], edits: &[Edit]) -> Option<u32> {
    let (mut best, mut token) = (f32::NEG_INFINITY, None);
    let mut start = 0;
    for edit in edits {
        let at = edit.token as usize;
        if let Some((place, v)) = scan::argmax(logits.get(start..at)?)
            && v > best
        {
            (best, token) = (v, Some((start + place) as u32));
        }
        let v = edit.apply(*logits.get(at)?);
        if v > best {
            (best, token) = (v, Some(edit.token));
        }
        start = at + 1;
    }
    if let Some((place, v)) = scan::argmax(logits.get(start..)?)
        && v > best
    {
        token = Some((start + place) as u32);
    }
    token
}
