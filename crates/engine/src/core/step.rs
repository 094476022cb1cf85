//! One step: what the scheduler chose becomes a plan, the executor computes it, and the results become output.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Core;
use super::drafts::{Judged, observe};
use crate::constraint::{Allowed, Constrained, Draft};
use crate::error::ExecutorError;
use crate::executor::{ChunkOutput, SampleAt, SequenceChunk, StepOutput, StepPlan};
use crate::ids::SequenceId;
use crate::panic_text;
use crate::response::{Finish, Update};
use crate::scheduler::sequence::blocks_for;
use crate::scheduler::slots::SlotBind;
use crate::scheduler::{Row, Schedule};
use crate::stats::StepRecord;

impl Core {
    /// Plans and computes one step. `false` if there was nothing to do.
    pub(super) fn step(&mut self, now: Instant) -> bool {
        let Schedule { mut rows, clears, binds, failed, preempted, room } = self.scheduler.schedule();
        let acted = preempted || !failed.is_empty() || !binds.is_empty();
        for (sequence, error) in failed {
            self.end_sequence(sequence, Finish::Error { message: error.to_string() });
        }
        for slot in clears {
            self.executor.clear_slot(slot);
        }
        for bind in binds {
            if let Err(error) = self.bind(bind) {
                self.lose_device(error);
                return true;
            }
        }
        rows.retain(|row| self.owners.contains_key(&row.sequence));
        if rows.is_empty() {
            return acted;
        }
        let generates = self.speculator.is_on() && self.is_generation(&rows);
        let guessing = Instant::now();
        let drafts = if generates { self.drafts(&rows, room) } else { Vec::new() };
        let guessed = if drafts.is_empty() { Duration::ZERO } else { guessing.elapsed() };
        let plan = self.plan(&rows, &drafts, now);
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.executor.execute(&plan)));
        let execute = started.elapsed();
        // In a simulation `now` is not the clock's time; what a step takes passes in both.
        let after = now + execute;
        match result.unwrap_or_else(|payload| Err(lost_by_panic(payload.as_ref()))) {
            Ok(output) => match check(&plan, &output, self.shared.limits.vocab_size) {
                Ok(()) => {
                    let mut record = StepRecord { execute, sequences: rows.len(), ..StepRecord::default() };
                    let judged = self.commit(&rows, &plan, output, after, &mut record);
                    if generates {
                        self.settle(&rows, &drafts, &judged, (guessed + execute).as_secs_f64());
                    }
                    self.report_step(&record);
                }
                Err(reason) => self.lose_device(reason),
            },
            Err(ExecutorError::Sequence { sequence, reason }) if self.owners.contains_key(&sequence) => {
                // Nothing of the step counts; the others are planned again in the next turn.
                tracing::warn!(%sequence, %reason, "sequence failed");
                self.end_sequence(sequence, Finish::Error { message: reason });
            }
            Err(ExecutorError::DeviceLost { reason }) => self.lose_device(reason),
            Err(error) => self.lose_device(error.to_string()),
        }
        for row in rows.iter().zip(&drafts).filter(|(_, draft)| !draft.tokens.is_empty()).map(|(row, _)| row)
        {
            self.scheduler.take_back(row.sequence);
        }
        true
    }

    /// Puts an adapter into its slot. If only that fails, the slot's sequences end; `Err` is a lost device.
    fn bind(&mut self, bind: SlotBind) -> Result<(), String> {
        let result = catch_unwind(AssertUnwindSafe(|| self.executor.bind_slot(bind.slot, &bind.adapter)));
        match result.unwrap_or_else(|payload| Err(lost_by_panic(payload.as_ref()))) {
            Ok(()) => Ok(()),
            Err(ExecutorError::DeviceLost { reason }) => Err(reason),
            Err(error) => {
                tracing::warn!(slot = %bind.slot, %error, "adapter could not be bound");
                for sequence in self.scheduler.users_of_slot(bind.slot) {
                    let message = format!("the adapter could not be put on the device: {error}");
                    self.end_sequence(sequence, Finish::Error { message });
                }
                self.scheduler.slots_mut().unbind(bind.slot);
                Ok(())
            }
        }
    }

    /// The plan for these rows, in their order, with their drafts if there are any.
    fn plan(&mut self, rows: &[Row], drafts: &[Draft], now: Instant) -> StepPlan {
        let none = Draft::default();
        let mut chunks = Vec::with_capacity(rows.len());
        for (idx, row) in rows.iter().enumerate() {
            if let Some((id, _)) = self.owners.get(&row.sequence)
                && let Some(group) = self.groups.get_mut(id)
            {
                if group.started_at.is_none() {
                    self.stats.prompt_tokens += group.valid.request.prompt_token_ids.len() as u64;
                }
                group.start(now);
            }
            let chunk = self.chunk(row, drafts.get(idx).unwrap_or(&none));
            chunks.extend(chunk);
        }
        StepPlan { chunks }
    }

    fn chunk(&mut self, row: &Row, draft: &Draft) -> Option<SequenceChunk> {
        let (id, choice_idx) = self.owners.get(&row.sequence)?;
        let group = self.groups.get_mut(id)?;
        let rope_idx = group.lease().map_or(0, |lease| lease.generation.rope_idx);
        let prompt_logprobs = if *choice_idx == 0 { group.prompt_logprobs_wanted(row) } else { None };
        let (valid, seed) = (&group.valid, group.seed);
        let choice = group.choices.get_mut(*choice_idx)?;
        let sequence = self.scheduler.get(row.sequence)?;
        let end = row.start + row.len;
        let mut token_ids = sequence.tokens.get(row.start..end)?.to_vec();
        token_ids.extend(&draft.tokens);
        let mut samples = Vec::new();
        if end == sequence.tokens.len() && valid.max_tokens > 0 {
            let eos = &self.shared.config.eos_token_ids;
            let mut output = sequence.tokens.get(sequence.num_prompt_tokens..)?.to_vec();
            let num_tokens = output.len();
            output.extend(&draft.tokens);
            for at in std::iter::once(0).chain(draft.samples.iter().copied()) {
                let spec = choice.output.sample_spec(valid, seed, output.get(..num_tokens + at)?, eos);
                samples.push(SampleAt { row: row.len - 1 + at, spec });
            }
            if let Some(constrained) = &mut choice.constrained {
                let masks = constrained.allowed(draft, &mut self.masks);
                samples.iter_mut().zip(masks).for_each(|(sample, mask)| sample.spec.allowed = mask);
            }
        }
        Some(SequenceChunk {
            sequence: row.sequence,
            start: row.start,
            block_table: sequence.blocks.get(..blocks_for(row.start + token_ids.len()))?.to_vec(),
            token_ids,
            slot: sequence.slot,
            adapter_scale: valid.request.adapter_scale,
            rope_idx,
            samples,
            prompt_logprobs,
        })
    }

    /// Takes a step's results: advances sequences, hands out tokens and text, ends what has ended. What came of each draft.
    fn commit(
        &mut self,
        rows: &[Row],
        plan: &StepPlan,
        output: StepOutput,
        now: Instant,
        record: &mut StepRecord,
    ) -> Vec<Judged> {
        let mut judged = Vec::with_capacity(rows.len());
        for ((row, chunk), result) in rows.iter().zip(&plan.chunks).zip(output.chunks) {
            let drafted = chunk.token_ids.len() - row.len;
            record.tokens += chunk.token_ids.len();
            record.drafted_tokens += drafted;
            if row.len > 1 || chunk.samples.is_empty() {
                record.prefill_tokens += row.len;
            }
            // What was left out of the sample is computed again, for its logits.
            let left_out =
                !chunk.samples.is_empty() && (result.sampled.is_empty() || !self.can_take(row.sequence));
            self.scheduler.advance(row.sequence, row.len - usize::from(left_out));
            judged.push(match left_out {
                true => {
                    self.left_out(row.sequence);
                    Judged::default()
                }
                false => self.commit_chunk(row, chunk, result, now, record),
            });
        }
        self.stats.steps += 1;
        self.stats.last_step_tokens = record.tokens;
        judged
    }

    fn commit_chunk(
        &mut self,
        row: &Row,
        chunk: &SequenceChunk,
        result: ChunkOutput,
        now: Instant,
        record: &mut StepRecord,
    ) -> Judged {
        let id = row.sequence;
        let mut judged = Judged::default();
        let Some((request, choice_idx)) = self.owners.get(&id).copied() else { return judged };
        let Some(group) = self.groups.get_mut(&request) else { return judged };
        let codec = &*self.shared.codec;
        group.take_prompt_rows(result.prompt_logprobs, codec);
        let prefilled =
            self.scheduler.get(id).is_some_and(|sequence| sequence.computed >= sequence.num_prompt_tokens);
        if choice_idx == 0 && prefilled {
            group.prefill_done();
            if let Some(sequence) = self.scheduler.get_mut(id) {
                sequence.readable_prefix_tokens = usize::MAX;
            }
        }
        if result.sampled.is_empty() {
            if prefilled && group.valid.max_tokens == 0 {
                self.end_sequence(id, Finish::Length);
            }
            return judged;
        }
        record.time_to_first_token.extend(group.token_sampled(now));
        let draft = chunk.token_ids.get(row.len..).unwrap_or_default();
        let mut gained: Option<Update> = None;
        let mut failure = None;
        // Tokens of the draft that turned out right after the last sample, and whether the sample after them has yet to come.
        let (mut right, mut awaits_sample) = (0, false);
        let Some(choice) = group.choices.get_mut(choice_idx) else { return judged };
        if let Some(last) = choice.last_token_at.replace(now) {
            record.inter_token.push(now.saturating_duration_since(last));
        }
        for (sample, sampled) in chunk.samples.iter().zip(result.sampled) {
            // Only what was sampled after the sequence's own tokens counts.
            if sample.row + 1 - row.len != judged.accepted_tokens {
                break;
            }
            self.scheduler.advance(id, right);
            (right, awaits_sample) = (0, false);
            let update = match choice.take(&group.valid, sampled, &self.shared.config.eos_token_ids, codec) {
                Ok(update) => update,
                Err(reason) => {
                    failure = Some(reason);
                    break;
                }
            };
            judged.accepted_samples += usize::from(judged.accepted_tokens > 0);
            self.stats.generation_tokens += update.token_ids.len() as u64;
            let tokens = update.token_ids.clone();
            let finished = update.finish.is_some();
            match &mut gained {
                Some(gained) => gained.extend(update),
                None => gained = Some(update),
            }
            if finished {
                break;
            }
            tokens.iter().for_each(|token| self.scheduler.append(id, *token));
            let permits = &mut |token| sample.spec.allowed.permits(token);
            observe(choice, &self.scheduler, &mut self.speculator, tokens.len(), permits);
            let rest = draft.get(judged.accepted_tokens..).unwrap_or_default();
            right = rest.iter().zip(&tokens).take_while(|(drafted, token)| drafted == token).count();
            judged.accepted_tokens += right;
            if right < tokens.len() {
                break;
            }
            awaits_sample = true;
        }
        // What nothing was sampled after, for a mask was late, is computed again.
        self.scheduler.advance(id, right.saturating_sub(usize::from(awaits_sample)));
        let finished = gained.as_ref().is_some_and(|gained| gained.finish.is_some());
        if let Some(gained) = gained {
            group.send(gained);
        }
        if let Some(reason) = failure {
            tracing::warn!(sequence = %id, %reason, "a grammar failed");
            self.end_sequence(id, Finish::Error { message: format!("the constraint failed: {reason}") });
        } else if finished {
            self.retire(id);
        }
        judged
    }

    /// Whether a sequence can take what was sampled: not while masks along its draft are being computed.
    fn can_take(&self, id: SequenceId) -> bool {
        let choice =
            self.owners.get(&id).and_then(|(request, idx)| self.groups.get(request)?.choices.get(*idx));
        choice.and_then(|choice| choice.constrained.as_ref()).is_none_or(Constrained::is_ready)
    }

    /// A row was not sampled, since its mask was not there.
    fn left_out(&mut self, id: SequenceId) {
        let Some((request, choice_idx)) = self.owners.get(&id).copied() else { return };
        let choice = self.groups.get_mut(&request).and_then(|group| group.choices.get_mut(choice_idx));
        let Some(constrained) = choice.and_then(|choice| choice.constrained.as_mut()) else { return };
        if let Some(reason) = constrained.left_out() {
            tracing::warn!(sequence = %id, %reason, "a grammar failed");
            self.end_sequence(id, Finish::Error { message: format!("the constraint failed: {reason}") });
        }
    }

    fn report_step(&self, record: &StepRecord) {
        for observer in self.shared.observers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            observer.on_step(record);
        }
    }
}

fn lost_by_panic(payload: &(dyn std::any::Any + Send)) -> ExecutorError {
    ExecutorError::DeviceLost { reason: format!("the executor panicked: {}", panic_text(payload)) }
}

/// Checks that the executor kept its contract; otherwise nothing it says can be trusted.
fn check(plan: &StepPlan, output: &StepOutput, vocab_size: usize) -> Result<(), String> {
    if plan.chunks.len() != output.chunks.len() {
        return Err(format!("{} results for {} chunks", output.chunks.len(), plan.chunks.len()));
    }
    for (chunk, result) in plan.chunks.iter().zip(&output.chunks) {
        let sequence = chunk.sequence;
        // What was not sampled awaits a mask, or follows a draft.
        let missing = chunk.samples.get(result.sampled.len());
        let may_be = |missing: &SampleAt| {
            !result.sampled.is_empty() || matches!(missing.spec.allowed, Allowed::Awaited(_))
        };
        if result.sampled.len() > chunk.samples.len() || !missing.is_none_or(may_be) {
            return Err(format!("sequence {sequence} was sampled although not asked, or not although asked"));
        }
        if result.sampled.iter().any(|sampled| sampled.token.0 as usize >= vocab_size) {
            return Err(format!("sequence {sequence} got a token outside the vocabulary"));
        }
        let wanted = chunk.prompt_logprobs.as_ref().map_or(0, |wanted| wanted.targets.len());
        if result.prompt_logprobs.len() != wanted {
            return Err(format!(
                "sequence {sequence} got {} prompt rows of {wanted}",
                result.prompt_logprobs.len()
            ));
        }
    }
    Ok(())
}
