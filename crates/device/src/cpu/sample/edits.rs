//! Changes to the logits of single tokens, applied.

use super::scan;
use crate::sample::TokenEdit as Edit;

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
