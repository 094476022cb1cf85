//! The engine thread: one turn after another, each looks at the mail, plans a step, has it computed, and hands out
//! what came of it.
//!
//! State: all open requests ([`group::Group`]), the scheduler, the executor. One thread owns it; nothing here is locked
//! while a step runs. Time is an argument of [`Core::turn`], so that a simulation can bring its own.
//!
//! Invariants: every accepted request ends with one terminal update per choice and one summary, also when the device is
//! lost or the thread panics; when a summary is out, the request's blocks, slot and lease are free and the
//! gauges say so.

mod drafts;
pub(crate) mod group;
pub(crate) mod output;
mod step;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::constraint::{Constrained, MaskWorkers};
use crate::engine::Shared;
use crate::error::SubmitError;
use crate::executor::Executor;
use crate::ids::{RequestId, SequenceId};
use crate::kv::KvCache;
use crate::kv::prefix::{PrefixKey, PrefixRoot};
use crate::mailbox::{Load, MIN_RETRY_AFTER, Mail, Submission};
use crate::panic_text;
use crate::response::Finish;
use crate::scheduler::Scheduler;
use crate::scheduler::sequence::NewSequence;
use crate::scheduler::slots::SlotTable;
use crate::speculation::Speculator;
use crate::stats::{EngineStats, RequestRecord};
use group::Group;

/// How soon to look again for a mask that all running sequences wait for.
const MASK_POLL: Duration = Duration::from_millis(1);

/// Runs the engine until it is told to stop or the device is lost.
pub(crate) fn run(shared: Arc<Shared>, executor: Box<dyn Executor>) {
    let mut core = Core::new(shared.clone(), executor);
    let ended = catch_unwind(AssertUnwindSafe(|| core.serve()));
    if let Err(payload) = ended {
        let reason = format!("the engine thread panicked: {}", panic_text(payload.as_ref()));
        tracing::error!(%reason, "engine stopped");
        core.stats.unhealthy = Some(reason);
    }
    // Streams that are still open after a panic end when `core` drops.
    core.close_doors();
}

/// What goes on after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Something happened; take another turn at once.
    Turn,
    /// Nothing to do until there is mail, or until this time.
    Wait(Option<Instant>),
    /// It is over.
    Stop,
}

pub(crate) struct Core {
    shared: Arc<Shared>,
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    groups: BTreeMap<RequestId, Group>,
    /// Which choice of which request a sequence is.
    owners: BTreeMap<SequenceId, (RequestId, usize)>,
    last_request: u64,
    last_sequence: u64,
    stats: EngineStats,
    masks: MaskWorkers,
    speculator: Speculator,
    /// Smoothed time between the ends of requests.
    finish_interval: Duration,
    last_finish_at: Option<Instant>,
    stop_at: Option<Instant>,
}

impl Core {
    pub fn new(shared: Arc<Shared>, executor: Box<dyn Executor>) -> Self {
        let kv = KvCache::new(shared.limits.num_blocks, shared.config.prefix_cache);
        let slots = SlotTable::new(shared.limits.num_slots, shared.registry.clone());
        Self {
            scheduler: Scheduler::new(&shared.config, kv, slots),
            executor,
            groups: BTreeMap::new(),
            owners: BTreeMap::new(),
            last_request: 0,
            last_sequence: 0,
            stats: EngineStats::default(),
            masks: MaskWorkers::new(),
            speculator: Speculator::new(shared.config.speculation),
            finish_interval: Duration::ZERO,
            last_finish_at: None,
            stop_at: None,
            shared,
        }
    }

    /// Takes turns until the end.
    fn serve(&mut self) {
        let mut next = Next::Turn;
        loop {
            let load = self.load();
            let mail = match next {
                Next::Turn => self.shared.mailbox.poll(load),
                Next::Wait(until) => self.shared.mailbox.wait(load, until),
                Next::Stop => return,
            };
            next = self.turn(mail, Instant::now());
        }
    }

    /// How busy it is, for callers that ask to submit.
    pub fn load(&self) -> Load {
        let unstarted = self.groups.values().filter(|group| group.started_at.is_none()).count();
        let expected = self.finish_interval.saturating_mul(u32::try_from(unstarted).unwrap_or(u32::MAX));
        let open = self.scheduler.num_running() + self.scheduler.num_waiting();
        Load { open, retry_after: expected.clamp(MIN_RETRY_AFTER, Duration::from_secs(60)) }
    }

    /// One turn.
    pub fn turn(&mut self, mail: Mail, now: Instant) -> Next {
        self.stop_at = mail.stop_at;
        for submission in mail.submissions {
            self.accept(submission);
        }
        self.look_at_readers(now);
        let computed = self.step(now);
        let finished = self.close_finished(now);
        if self.stats.unhealthy.is_some() || (self.stop_at.is_some() && self.groups.is_empty()) {
            self.publish_stats();
            return Next::Stop;
        }
        if computed || finished {
            return Next::Turn;
        }
        let mut choices = self.groups.values().flat_map(|group| &group.choices);
        let late = choices.any(|choice| choice.constrained.as_ref().is_some_and(Constrained::was_late));
        let look_again = late.then(|| now + MASK_POLL);
        Next::Wait(self.next_deadline().into_iter().chain(look_again).min())
    }

    /// Opens a request.
    fn accept(&mut self, submission: Submission) {
        let first = SequenceId(self.last_sequence + 1);
        self.last_request += 1;
        let id = RequestId(self.last_request);
        let request = &submission.valid.request;
        self.last_sequence += request.n as u64;
        let generation = submission.lease.as_ref().map(|lease| &lease.generation);
        let root = PrefixKey::root(&PrefixRoot {
            model_digest: self.shared.limits.model_digest,
            adapter: generation.map(|generation| (generation.digest, request.adapter_scale)),
            rope_idx: generation.map_or(0, |generation| generation.rope_idx),
            salt: request.cache_salt.as_deref(),
        });
        for choice in 0..request.n {
            let sequence = SequenceId(first.0 + choice as u64);
            self.owners.insert(sequence, (id, choice));
            self.scheduler.add(NewSequence {
                id: sequence,
                priority: request.priority,
                prompt: request.prompt_token_ids.clone(),
                root,
                lease: submission.lease.clone(),
                readable_prefix_tokens: match request.prompt_logprobs {
                    // What is before a token has to be computed, so that it is known how likely the token is.
                    Some(_) if choice == 0 => request.prompt_logprobs_from.saturating_sub(1),
                    _ => usize::MAX,
                },
            });
        }
        let (codec, vocab_size) = (&*self.shared.codec, self.shared.limits.vocab_size);
        self.groups.insert(id, Group::new(submission, first, codec, vocab_size, &self.speculator));
    }

    /// Cancels what nobody waits for any more, and decides what is held in this turn.
    fn look_at_readers(&mut self, now: Instant) {
        let stopped = self.stop_at.is_some_and(|stop_at| now >= stop_at);
        let ids: Vec<RequestId> = self.groups.keys().copied().collect();
        for id in ids {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let full = group.sender.is_full();
            let stalled_since = if full { Some(group.stalled_since.unwrap_or(now)) } else { None };
            group.stalled_since = stalled_since;
            let stalled = stalled_since.is_some_and(|since| {
                now.saturating_duration_since(since) >= self.shared.config.stream_stall_timeout
            });
            let reason = if group.sender.is_cancelled() {
                "the caller is gone"
            } else if stopped {
                "the engine is shutting down"
            } else if stalled {
                "the answer was not read"
            } else {
                // Choices after the first wait until it has computed their common prompt.
                let first_done =
                    group.prefilled || group.choices.first().is_none_or(|c| c.finished.is_some());
                for (idx, choice) in group.choices.iter().enumerate() {
                    if let Some(sequence) = self.scheduler.get_mut(choice.sequence) {
                        let waits = choice.constrained.as_ref().is_some_and(Constrained::waits);
                        sequence.held = full || waits || (idx > 0 && !first_done);
                    }
                }
                continue;
            };
            self.end_request(id, &Finish::Cancelled { reason: reason.to_owned() });
        }
        self.scheduler.hold_background();
    }

    /// Ends all open choices of a request.
    fn end_request(&mut self, id: RequestId, finish: &Finish) {
        let Some(group) = self.groups.get(&id) else { return };
        let open = group.choices.iter().filter(|choice| choice.finished.is_none());
        for sequence in open.map(|choice| choice.sequence).collect::<Vec<_>>() {
            self.end_sequence(sequence, finish.clone());
        }
    }

    /// Ends one choice from outside.
    fn end_sequence(&mut self, sequence: SequenceId, finish: Finish) {
        let Some((id, choice)) = self.owners.get(&sequence).copied() else { return };
        if let Some(group) = self.groups.get_mut(&id)
            && let Some(state) = group.choices.get_mut(choice)
        {
            let update = state.output.end(finish);
            group.send(update);
        }
        self.retire(sequence);
    }

    /// Frees what a sequence holds and keeps its last numbers.
    fn retire(&mut self, sequence: SequenceId) {
        let Some((id, choice)) = self.owners.remove(&sequence) else { return };
        let (Some(last), Some(group)) = (self.scheduler.finish(sequence), self.groups.get_mut(&id)) else {
            return;
        };
        group.preemptions = group.preemptions.saturating_add(last.preemptions);
        if choice == 0 {
            group.cached_tokens = last.cached_tokens.unwrap_or(0);
        }
        match group.choices.get(choice).and_then(|choice| choice.finished) {
            Some("stop") => self.stats.finished_stop += 1,
            Some("length") => self.stats.finished_length += 1,
            Some("cancelled") => self.stats.finished_cancelled += 1,
            _ => self.stats.finished_error += 1,
        }
    }

    /// Closes requests whose choices have all ended. Summaries go out last, when the numbers are right.
    fn close_finished(&mut self, now: Instant) -> bool {
        let done = |group: &Group| !group.is_open();
        let ids: Vec<RequestId> =
            self.groups.iter().filter(|(_, group)| done(group)).map(|(id, _)| *id).collect();
        let mut ends = Vec::new();
        for group in ids.iter().filter_map(|id| self.groups.remove(id)).collect::<Vec<_>>() {
            ends.push(group.close(now, |record| self.report_request(record)));
            if let Some(last) = self.last_finish_at.replace(now) {
                let interval = now.saturating_duration_since(last);
                self.finish_interval = (self.finish_interval * 7 + interval) / 8;
            }
        }
        // The leases are back: slots of generations that have ended are cleared.
        for slot in self.scheduler.slots_mut().sweep() {
            self.executor.clear_slot(slot);
        }
        self.publish_stats();
        let any = !ends.is_empty();
        if any {
            self.shared.mailbox.update(self.load());
        }
        for (sender, summary) in ends {
            sender.finish(summary);
        }
        any
    }

    fn report_request(&self, record: &RequestRecord) {
        for observer in self.shared.observers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            observer.on_request_finished(record);
        }
    }

    /// When to look again although there is no mail: a stall or a drain is over.
    fn next_deadline(&self) -> Option<Instant> {
        let timeout = self.shared.config.stream_stall_timeout;
        let stalls = self.groups.values().filter_map(|group| group.stalled_since?.checked_add(timeout));
        stalls.chain(self.stop_at).min()
    }

    /// Makes the numbers of this turn visible.
    fn publish_stats(&mut self) {
        let counters = self.scheduler.counters();
        let kv = self.scheduler.kv();
        let slots = self.scheduler.slots();
        let (total_slots, bound_slots, leased_slots) = slots.counts();
        let bound_bytes = slots.bound_bytes();
        let (running_adapters, waiting_adapters) = self.scheduler.adapter_names();
        self.stats = EngineStats {
            running_sequences: self.scheduler.num_running(),
            waiting_sequences: self.scheduler.num_waiting(),
            open_requests: self.groups.len(),
            total_blocks: kv.num_blocks(),
            used_blocks: kv.num_used(),
            cached_blocks: kv.num_cached(),
            total_slots,
            bound_slots,
            bound_bytes,
            leased_slots,
            running_adapters,
            waiting_adapters,
            prefix_query_tokens: counters.prefix_query_tokens,
            prefix_hit_tokens: counters.prefix_hit_tokens,
            preemptions: counters.preemptions,
            ..std::mem::take(&mut self.stats)
        };
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats.clone();
    }

    /// The device is gone: ends everything that is open.
    fn lose_device(&mut self, reason: String) {
        tracing::error!(%reason, "device lost");
        let finish = Finish::Error { message: format!("device lost: {reason}") };
        self.stats.unhealthy = Some(reason);
        // New requests are refused before the first caller learns of it.
        self.close_doors();
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.end_request(id, &finish);
        }
    }

    /// Takes no more requests and adapters.
    fn close_doors(&mut self) {
        let (error, reason) = match &self.stats.unhealthy {
            Some(reason) => (SubmitError::Unhealthy { reason: reason.clone() }, reason.clone()),
            None => (SubmitError::ShuttingDown, "the engine is shutting down".to_owned()),
        };
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).unhealthy =
            self.stats.unhealthy.clone();
        self.shared.registry.close(&reason);
        self.shared.mailbox.close(error);
    }
}

#[cfg(test)]
impl Core {
    /// The scheduler, to look at what is free.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }
}

#[cfg(test)]
mod tests;
