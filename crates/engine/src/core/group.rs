//! One open request: its choices, its stream, its lease, and the times at which things happened.

use std::sync::Arc;
use std::time::Instant;

use tracing::Span;

use super::output::{ChoiceOutput, token_logprobs};
use crate::adapter::generation::Lease;
use crate::codec::TextCodec;
use crate::constraint::{Completion, Constrained};
use crate::executor::{PromptLogprobs, Sampled};
use crate::ids::{SequenceId, TokenId};
use crate::mailbox::Submission;
use crate::response::{Finish, StopCause, Summary, Timings, TokenLogprobs, Update, Usage};
use crate::scheduler::Row;
use crate::speculation::{Drafter, Speculator};
use crate::stats::RequestRecord;
use crate::stream::StreamSender;
use crate::validate::ValidRequest;

/// One choice of a request.
pub(crate) struct ChoiceState {
    pub sequence: SequenceId,
    pub output: ChoiceOutput,
    pub constrained: Option<Constrained>,
    /// Guesses its next tokens, if anybody does.
    pub drafter: Option<Drafter>,
    /// [`Finish::name`], once it has ended.
    pub finished: Option<&'static str>,
    pub last_token_at: Option<Instant>,
}

pub(crate) struct Group {
    pub valid: ValidRequest,
    pub choices: Vec<ChoiceState>,
    pub sender: StreamSender,
    pub seed: u64,
    lease: Option<Arc<Lease>>,
    /// Rows of the prompt's log-probabilities so far, if they were asked for.
    prompt_rows: Option<Vec<Option<TokenLogprobs>>>,
    submitted_at: Instant,
    pub started_at: Option<Instant>,
    /// The first choice has computed the prompt; the others may start.
    pub prefilled: bool,
    first_token_at: Option<Instant>,
    last_token_at: Option<Instant>,
    /// Since when the stream is full.
    pub stalled_since: Option<Instant>,
    pub cached_tokens: usize,
    pub preemptions: u32,
    /// The request's span; `phase` is its child: queue, prefill or decode.
    span: Span,
    phase: Span,
}

impl ChoiceState {
    /// Takes a sampled token, and with it, where the choice is held to something, what has no alternative.
    pub fn take(
        &mut self,
        valid: &ValidRequest,
        sampled: Sampled,
        eos: &[TokenId],
        codec: &dyn TextCodec,
    ) -> Result<Update, String> {
        let constrained = self.constrained.as_mut().filter(|_| !eos.contains(&sampled.token));
        let Some(constrained) = constrained else {
            let is_free = valid.request.constraint.is_none();
            let mut update = self.output.accept(valid, sampled, eos, codec, is_free);
            // The model ended what the budget had made of its text.
            let was_cut = self.constrained.as_ref().is_some_and(|c| c.completion() == Completion::CutShort);
            if was_cut && matches!(update.finish, Some(Finish::Stop(StopCause::Eos(_)))) {
                update.finish = Some(Finish::Length);
            }
            return Ok(update);
        };
        let left = valid.max_tokens.saturating_sub(self.output.num_tokens() + 1);
        let force = forces(valid);
        let taken = constrained.take(sampled.token, left, force)?;
        let sampled = match taken.token {
            Some(token) if token != sampled.token => sampled.replaced_by(token),
            Some(_) => sampled,
            None => return Ok(self.output.end(Finish::Length)),
        };
        let mut update = self.output.accept(valid, sampled, eos, codec, taken.is_free);
        if matches!(update.finish, Some(Finish::Stop(_))) {
            return Ok(update);
        }
        for token in taken.forced {
            let more = self.output.accept(valid, Sampled { token, ..Sampled::default() }, eos, codec, false);
            update.extend(more);
        }
        if taken.is_done {
            // Also where it is the last token of the budget.
            let finish = match constrained.completion() {
                Completion::Chosen => Finish::Stop(StopCause::Complete),
                Completion::CutShort => Finish::Length,
            };
            let text = self.output.end(finish);
            update.text.push_str(&text.text);
            update.finish = text.finish;
        }
        Ok(update)
    }
}

/// Whether tokens without an alternative are taken unsampled: those have no log-probabilities.
pub(crate) fn forces(valid: &ValidRequest) -> bool {
    valid.request.logprobs.is_none() && valid.logprob_token_ids.is_empty()
}

impl Group {
    /// Opens a request whose choices get the sequences from `first_sequence` on.
    pub fn new(
        submission: Submission,
        first_sequence: SequenceId,
        codec: &dyn TextCodec,
        vocab_size: usize,
        speculator: &Speculator,
    ) -> Self {
        let Submission { valid, lease, seed, sender, submitted_at, span, .. } = submission;
        let choice = |idx: usize| ChoiceState {
            sequence: SequenceId(first_sequence.0 + idx as u64),
            output: ChoiceOutput::new(idx, &valid, codec),
            constrained: valid.request.constraint.as_ref().map(|c| Constrained::new(c, vocab_size)),
            drafter: speculator.drafter(),
            finished: None,
            last_token_at: None,
        };
        let choices = (0..valid.request.n).map(choice).collect();
        let phase = tracing::info_span!(parent: &span, "queue");
        Self {
            prompt_rows: valid.request.prompt_logprobs.map(|_| {
                let num_prompt_tokens = valid.request.prompt_token_ids.len();
                vec![None; valid.request.prompt_logprobs_from.clamp(1, num_prompt_tokens)]
            }),
            valid,
            choices,
            sender,
            seed,
            lease,
            submitted_at,
            started_at: None,
            prefilled: false,
            first_token_at: None,
            last_token_at: None,
            stalled_since: None,
            cached_tokens: 0,
            preemptions: 0,
            span,
            phase,
        }
    }

    pub fn is_open(&self) -> bool {
        self.choices.iter().any(|choice| choice.finished.is_none())
    }

    pub fn lease(&self) -> Option<&Arc<Lease>> {
        self.lease.as_ref()
    }

    /// Its first sequence runs now.
    pub fn start(&mut self, now: Instant) {
        if self.started_at.is_none() {
            self.started_at = Some(now);
            self.phase = tracing::info_span!(parent: &self.span, "prefill");
        }
    }

    /// The prompt has been computed by the first choice.
    pub fn prefill_done(&mut self) {
        if std::mem::replace(&mut self.prefilled, true) {
            return;
        }
        self.phase = tracing::info_span!(parent: &self.span, "decode");
        if let Some(rows) = self.prompt_rows.take() {
            self.sender.send_prompt_logprobs(rows);
        }
    }

    /// What a chunk of the first choice reports of the prompt: rows not yet there. Row `p` is computed at
    /// position `p` and scores the token at `p + 1`.
    pub fn prompt_logprobs_wanted(&self, row: &Row) -> Option<PromptLogprobs> {
        let top = self.valid.request.prompt_logprobs?;
        let have = self.prompt_rows.as_ref()?.len();
        let prompt = &self.valid.request.prompt_token_ids;
        let first_position = row.start.max(have - 1);
        let end = (row.start + row.len).min(prompt.len() - 1);
        let targets = prompt.get(first_position + 1..end + 1)?.to_vec();
        (!targets.is_empty()).then(|| PromptLogprobs { top, first_row: first_position - row.start, targets })
    }

    /// Takes rows of the prompt's log-probabilities.
    pub fn take_prompt_rows(&mut self, rows: Vec<Sampled>, codec: &dyn TextCodec) {
        if let Some(have) = &mut self.prompt_rows {
            have.extend(rows.into_iter().map(|row| Some(token_logprobs(row, codec))));
        }
    }

    /// Notes a sampled token. Returns the time since submission if it is the request's first.
    pub fn token_sampled(&mut self, now: Instant) -> Option<std::time::Duration> {
        self.last_token_at = Some(now);
        if self.first_token_at.is_some() {
            return None;
        }
        self.first_token_at = Some(now);
        Some(now.saturating_duration_since(self.submitted_at))
    }

    /// Hands an update to the caller and notes the end of its choice.
    pub fn send(&mut self, update: Update) {
        if let Some(choice) = self.choices.get_mut(update.choice) {
            choice.finished = choice.finished.or(update.finish.as_ref().map(Finish::name));
        }
        self.sender.send(update);
    }

    /// Ends the request: gives back its lease, then gives the caller its summary. `report` runs in between.
    pub fn close(self, now: Instant, report: impl FnOnce(&RequestRecord)) -> (StreamSender, Summary) {
        let since = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => std::time::Duration::ZERO,
        };
        let first = self.first_token_at;
        let timings = Timings {
            queue: since(Some(self.submitted_at), self.started_at.or(Some(now))),
            prefill: since(self.started_at, first.or(Some(now))),
            decode: since(first, self.last_token_at),
            time_to_first_token: first.map(|first| first.saturating_duration_since(self.submitted_at)),
            total: now.saturating_duration_since(self.submitted_at),
        };
        let usage = Usage {
            prompt_tokens: self.valid.request.prompt_token_ids.len(),
            completion_tokens: self.choices.iter().map(|choice| choice.output.num_tokens()).sum(),
            cached_tokens: self.cached_tokens,
        };
        let generation = self.lease.as_ref().map(|lease| lease.generation.id);
        let adapter_digest = self.lease.as_ref().map(|lease| lease.generation.digest);
        let record = RequestRecord {
            request_id: self.valid.request.request_id,
            adapter: self.valid.request.adapter,
            generation,
            usage,
            timings,
            finished: self.choices.iter().filter_map(|choice| choice.finished).collect(),
            preemptions: self.preemptions,
        };
        drop(self.phase);
        self.span.in_scope(|| {
            tracing::debug!(
                prompt_tokens = usage.prompt_tokens,
                completion_tokens = usage.completion_tokens,
                cached_tokens = usage.cached_tokens,
                queue_ms = timings.queue.as_millis() as u64,
                prefill_ms = timings.prefill.as_millis() as u64,
                decode_ms = timings.decode.as_millis() as u64,
                preemptions = record.preemptions,
                finished = ?record.finished,
                "request finished"
            );
        });
        report(&record);
        (self.sender, Summary { usage, timings, generation, adapter_digest, seed: self.seed })
    }
}
