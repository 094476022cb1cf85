//! The checked front of the ops over logits.

use crate::ctx::Ctx;
use crate::error::{Result, invalid};
use crate::sample::{LogprobRow, SampleRow, Sampled, TokenLogprobs};
use crate::tensor::{Tensor, expect};
use crate::{DType, Shape};

impl Ctx {
    /// Draws one token from each row of `logits` `[rows, vocabulary]`.
    pub fn sample(&mut self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>> {
        let op = "sample";
        let vocab = logits.shape.row_len();
        expect(op, "logits", logits, Shape::from([rows.len(), vocab]), DType::F32)?;
        for row in rows {
            let ids = row.banned.iter().chain(&row.logprob_tokens);
            let ids =
                ids.chain(row.logit_bias.iter().map(|(t, _)| t)).chain(row.history.iter().map(|c| &c.token));
            if let Some(t) = ids.copied().find(|&t| t as usize >= vocab) {
                return invalid(op, format!("token {t} of a vocabulary of {vocab}"));
            }
            if row.allowed.as_ref().is_some_and(|m| m.len() != vocab.div_ceil(32)) {
                return invalid(op, format!("a mask for a vocabulary of {vocab} has the wrong length"));
            }
        }
        // SAFETY: checked above.
        unsafe { self.ops_mut().sample(logits, rows) }
    }

    /// Log-probability of a given token in each row of `logits` `[rows, vocabulary]`.
    pub fn logprobs(&mut self, logits: &Tensor, rows: &[LogprobRow]) -> Result<Vec<TokenLogprobs>> {
        let op = "logprobs";
        let vocab = logits.shape.row_len();
        expect(op, "logits", logits, Shape::from([rows.len(), vocab]), DType::F32)?;
        if let Some(row) = rows.iter().find(|r| r.target as usize >= vocab) {
            return invalid(op, format!("token {} of a vocabulary of {vocab}", row.target));
        }
        // SAFETY: checked above.
        unsafe { self.ops_mut().logprobs(logits, rows) }
    }
}
