//! One step: what the scheduler chose becomes a plan, the executor computes it, and the results become output.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Instant;

use super::Core;
use crate::constraint::Allowed;
use crate::error::ExecutorError;
use crate::executor::{ChunkOutput, SequenceChunk, StepOutput, StepPlan};
use crate::ids::SequenceId;
use crate::panic_text;
use crate::response::Finish;
use crate::scheduler::sequence::blocks_for;
use crate::scheduler::slots::SlotBind;
use crate::scheduler::{Row, Schedule};
use crate::stats::StepRecord;

impl Core {
    /// Plans and computes one step. `false` if there was nothing to do.
    pub(super) fn step(&mut self, now: Instant) -> bool {
        let Schedule { mut rows, clears, binds, failed, preempted } = self.scheduler.schedule();
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
        let plan = self.plan(&rows, now);
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.executor.execute(&plan)));
        let execute = started.elapsed();
        // In a simulation `now` is not the clock's time; what a step takes passes in both.
        let after = now + execute;
        match result.unwrap_or_else(|payload| Err(lost_by_panic(payload.as_ref()))) {
            Ok(output) => match check(&plan, &output, self.shared.limits.vocab_size) {
                Ok(()) => {
                    let mut record = StepRecord { execute, sequences: rows.len(), ..StepRecord::default() };
                    self.commit(&rows, &plan, output, after, &mut record);
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

    /// The plan for these rows, in their order.
    fn plan(&mut self, rows: &[Row], now: Instant) -> StepPlan {
        let mut chunks = Vec::with_capacity(rows.len());
        for row in rows {
            if let Some((id, _)) = self.owners.get(&row.sequence)
                && let Some(group) = self.groups.get_mut(id)
            {
                if group.started_at.is_none() {
                    self.stats.prompt_tokens += group.valid.request.prompt_token_ids.len() as u64;
                }
                group.start(now);
            }
            let chunk = self.chunk(row);
            chunks.extend(chunk);
        }
        StepPlan { chunks }
    }

    fn chunk(&mut self, row: &Row) -> Option<SequenceChunk> {
        let (id, choice_idx) = self.owners.get(&row.sequence)?;
        let group = self.groups.get_mut(id)?;
        let rope_idx = group.lease().map_or(0, |lease| lease.generation.rope_idx);
        let prompt_logprobs = if *choice_idx == 0 { group.prompt_logprobs_wanted(row) } else { None };
        let (valid, seed) = (&group.valid, group.seed);
        let choice = group.choices.get_mut(*choice_idx)?;
        let sequence = self.scheduler.get(row.sequence)?;
        let end = row.start + row.len;
        let samples = end == sequence.tokens.len() && valid.max_tokens > 0;
        let output = sequence.tokens.get(sequence.num_prompt_tokens..)?;
        let eos = &self.shared.config.eos_token_ids;
        let mut sample = samples.then(|| choice.output.sample_spec(valid, seed, output, eos));
        if let (Some(spec), Some(constrained)) = (&mut sample, &mut choice.constrained) {
            spec.allowed = constrained.allowed(&mut self.masks);
        }
        Some(SequenceChunk {
            sequence: row.sequence,
            token_ids: sequence.tokens.get(row.start..end)?.to_vec(),
            start: row.start,
            block_table: sequence.blocks.get(..blocks_for(end))?.to_vec(),
            slot: sequence.slot,
            adapter_scale: valid.request.adapter_scale,
            rope_idx,
            sample,
            prompt_logprobs,
        })
    }

    /// Takes a step's results: advances sequences, hands out tokens and text, ends what has ended.
    fn commit(
        &mut self,
        rows: &[Row],
        plan: &StepPlan,
        output: StepOutput,
        now: Instant,
        record: &mut StepRecord,
    ) {
        for ((row, chunk), result) in rows.iter().zip(&plan.chunks).zip(output.chunks) {
            record.tokens += row.len;
            if row.len > 1 || chunk.sample.is_none() {
                record.prefill_tokens += row.len;
            }
            // What was left out of the sample is computed again, for its logits.
            let left_out = chunk.sample.is_some() && result.sampled.is_none();
            self.scheduler.advance(row.sequence, row.len - usize::from(left_out));
            if left_out {
                self.left_out(row.sequence);
            } else {
                self.commit_chunk(row.sequence, result, now, record);
            }
        }
        self.stats.steps += 1;
        self.stats.last_step_tokens = record.tokens;
    }

    fn commit_chunk(&mut self, id: SequenceId, result: ChunkOutput, now: Instant, record: &mut StepRecord) {
        let Some((request, choice_idx)) = self.owners.get(&id).copied() else { return };
        let Some(group) = self.groups.get_mut(&request) else { return };
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
        let Some(sampled) = result.sampled else {
            if prefilled && group.valid.max_tokens == 0 {
                self.end_sequence(id, Finish::Length);
            }
            return;
        };
        record.time_to_first_token.extend(group.token_sampled(now));
        let Some(choice) = group.choices.get_mut(choice_idx) else { return };
        if let Some(last) = choice.last_token_at.replace(now) {
            record.inter_token.push(now.saturating_duration_since(last));
        }
        match choice.take(&group.valid, sampled, &self.shared.config.eos_token_ids, codec) {
            Ok(update) => {
                self.stats.generation_tokens += update.token_ids.len() as u64;
                let tokens = update.token_ids.clone();
                let finished = update.finish.is_some();
                group.send(update);
                if finished {
                    self.retire(id);
                } else {
                    tokens.into_iter().for_each(|token| self.scheduler.append(id, token));
                }
            }
            Err(reason) => {
                tracing::warn!(sequence = %id, %reason, "a grammar failed");
                self.end_sequence(id, Finish::Error { message: format!("the constraint failed: {reason}") });
            }
        }
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
        let awaits = chunk.sample.as_ref().is_some_and(|spec| matches!(spec.allowed, Allowed::Awaited(_)));
        if chunk.sample.is_some() != result.sampled.is_some() && !(awaits && result.sampled.is_none()) {
            return Err(format!("sequence {sequence} was sampled although not asked, or not although asked"));
        }
        if result.sampled.as_ref().is_some_and(|sampled| sampled.token.0 as usize >= vocab_size) {
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
