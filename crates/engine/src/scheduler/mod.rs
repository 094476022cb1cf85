//! The scheduler: which tokens of which sequences the next step computes.
//!
//! There are no prefill and decode phases. Every running sequence has computed tokens chasing its tokens; a step
//! has a budget of tokens, given to decoding rows first and to chunks of prompts next, by priority and age; what
//! remains admits waiting sequences. A sequence gets the blocks of all its tokens when it is admitted and one more
//! whenever its output needs it. When blocks run out, a sequence whose reader is slow, or else the last by priority
//! and age, loses its blocks and waits again; its tokens are computed anew later (recompute). Work in the background is
//! computed beside other work only as far as it slows that down by little.
//!
//! State: sequences, the block bookkeeping, the slot table. Deterministic: the same calls give the same plans.
//! It knows nothing of models, sampling, text or time.
//!
//! Why nobody starves: victims rank behind whoever takes their place (or are held by their reader), so the first in
//! rank always advances; only waiting for a *slot* lets later sequences pass, a bounded number of times.

pub(crate) mod sequence;
pub(crate) mod slots;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{BLOCK_SIZE_TOKENS, EngineConfig};
use crate::error::AdapterError;
use crate::ids::{GenerationId, SequenceId, SlotIdx, TokenId};
use crate::kv::KvCache;
use crate::request::BACKGROUND_PRIORITY;
use sequence::{NewSequence, Rank, Sequence, blocks_for};
use slots::{SlotAnswer, SlotBind, SlotTable};

/// Tokens `start..start + len` of a sequence, in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub sequence: SequenceId,
    pub start: usize,
    pub len: usize,
}

/// What the next step does.
#[derive(Default)]
pub(crate) struct Schedule {
    pub rows: Vec<Row>,
    /// Slots to empty before anything is put into one.
    pub clears: Vec<SlotIdx>,
    /// Adapters to put into slots first.
    pub binds: Vec<SlotBind>,
    /// Waiting sequences whose adapter cannot be had.
    pub failed: Vec<(SequenceId, AdapterError)>,
    /// Whether a running sequence lost its blocks.
    pub preempted: bool,
    /// Tokens that the step has room for beside these.
    pub room: usize,
}

/// Totals since the start.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    pub prefix_query_tokens: u64,
    pub prefix_hit_tokens: u64,
    pub preemptions: u64,
}

pub(crate) struct Scheduler {
    sequences: BTreeMap<SequenceId, Sequence>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    kv: KvCache,
    slots: SlotTable,
    max_num_sequences: usize,
    max_batch_tokens: usize,
    max_chunk_tokens: usize,
    max_slot_skips: u32,
    counters: Counters,
}

/// Budget and rows of a step that is being put together.
struct Draft {
    schedule: Schedule,
    budget: usize,
}

impl Draft {
    /// Adds a bind, and the slots that are emptied for it. A bind of such a slot that was drafted before did not happen
    /// yet, and now never will.
    fn bind(&mut self, bind: SlotBind, clears: &[SlotIdx]) {
        let Schedule { binds, clears: drafted, .. } = &mut self.schedule;
        for slot in clears {
            match binds.iter().position(|earlier| earlier.slot == *slot) {
                Some(idx) => drop(binds.remove(idx)),
                None => drafted.push(*slot),
            }
        }
        binds.push(bind);
    }
}

impl Scheduler {
    pub fn new(config: &EngineConfig, kv: KvCache, slots: SlotTable) -> Self {
        Self {
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            kv,
            slots,
            max_num_sequences: config.max_num_sequences,
            max_batch_tokens: config.max_batch_tokens,
            max_chunk_tokens: config.max_chunk_tokens,
            max_slot_skips: config.max_slot_skips,
            counters: Counters::default(),
        }
    }

    /// Queues a sequence.
    pub fn add(&mut self, new: NewSequence) {
        let sequence = Sequence::new(new);
        self.waiting.insert(sequence.rank());
        self.sequences.insert(sequence.id, sequence);
    }

    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.sequences.get_mut(&id)
    }

    /// Of the sequences in the background, holds those that are more than there are others to be computed; the first in
    /// rank stay, so that neither keeps the other out. To be asked once it is known who else is held.
    pub fn hold_background(&mut self) {
        let border: Rank = (BACKGROUND_PRIORITY, SequenceId(0));
        let is_held = |rank: &&Rank| self.sequences.get(&rank.1).is_some_and(|sequence| sequence.held);
        let others = self.running.range(..border).chain(self.waiting.range(..border));
        let num_others = others.filter(|rank| !is_held(rank)).count();
        if num_others == 0 {
            return;
        }
        let background = self.running.range(border..).chain(self.waiting.range(border..));
        for rank in background.filter(|rank| !is_held(rank)).skip(num_others).copied().collect::<Vec<_>>() {
            if let Some(sequence) = self.sequences.get_mut(&rank.1) {
                sequence.held = true;
            }
        }
    }

    /// Plans the next step.
    pub fn schedule(&mut self) -> Schedule {
        let mut draft = Draft { schedule: Schedule::default(), budget: self.max_batch_tokens };
        let preemptions = self.counters.preemptions;
        self.schedule_running(&mut draft);
        // After a preemption memory is short: whoever just lost its blocks should not come straight back.
        if self.counters.preemptions == preemptions {
            self.admit_waiting(&mut draft);
        }
        draft.schedule.preempted = self.counters.preemptions != preemptions;
        let slot_of = |row: &Row| self.sequences.get(&row.sequence).and_then(|sequence| sequence.slot);
        draft.schedule.rows.sort_by_key(|row| (slot_of(row), row.sequence));
        draft.schedule.room = draft.budget;
        draft.schedule
    }

    /// Gives budget to running sequences: those that decode, then those that catch up.
    fn schedule_running(&mut self, draft: &mut Draft) {
        let decodes = |rank: &Rank| self.sequences.get(&rank.1).is_some_and(|s| s.remaining() == 1);
        let (decoding, catching_up): (Vec<Rank>, Vec<Rank>) = self.running.iter().copied().partition(decodes);
        for rank in decoding.into_iter().chain(catching_up) {
            // It may have been preempted by one before it.
            if !self.running.contains(&rank) {
                continue;
            }
            let Some(sequence) = self.sequences.get(&rank.1).filter(|sequence| !sequence.held) else {
                continue;
            };
            let len = sequence.remaining().min(draft.budget).min(self.max_chunk_tokens);
            if len > 0 && self.make_blocks(rank, draft) {
                self.add_row(rank.1, len, draft);
            }
        }
    }

    fn add_row(&self, id: SequenceId, len: usize, draft: &mut Draft) {
        if let Some(sequence) = self.sequences.get(&id) {
            draft.budget -= len;
            draft.schedule.rows.push(Row { sequence: id, start: sequence.computed, len });
        }
    }

    /// Makes sure that a running sequence has blocks for all its tokens. `false` if it was itself preempted.
    fn make_blocks(&mut self, rank: Rank, draft: &mut Draft) -> bool {
        loop {
            let Some(sequence) = self.sequences.get_mut(&rank.1) else { return false };
            let missing = blocks_for(sequence.tokens.len()).saturating_sub(sequence.blocks.len());
            if self.kv.allocate(missing, &mut sequence.blocks) {
                return true;
            }
            // The pool holds any single sequence, so there is always a victim before it comes to the first.
            let Some(victim) = self.victim(None) else { return false };
            self.preempt(victim, draft);
            if victim == rank {
                return false;
            }
        }
    }

    /// The running sequence that should lose its blocks first: one that is held, else the last in rank. With
    /// `for_priority` only one that is held or of less importance.
    fn victim(&self, for_priority: Option<i32>) -> Option<Rank> {
        let held = |rank: &&Rank| self.sequences.get(&rank.1).is_some_and(|sequence| sequence.held);
        let held = self.running.iter().rev().find(held);
        let last = self.running.last().filter(|last| for_priority.is_none_or(|priority| last.0 > priority));
        held.or(last).copied()
    }

    /// Takes a running sequence's blocks and slot, and its row out of the draft; it waits again.
    fn preempt(&mut self, rank: Rank, draft: &mut Draft) {
        self.running.remove(&rank);
        self.waiting.insert(rank);
        self.counters.preemptions += 1;
        let given_back: usize =
            draft.schedule.rows.iter().filter(|row| row.sequence == rank.1).map(|row| row.len).sum();
        draft.budget += given_back;
        draft.schedule.rows.retain(|row| row.sequence != rank.1);
        if let Some(sequence) = self.sequences.get_mut(&rank.1) {
            sequence.preemptions += 1;
            Self::give_up(&mut self.kv, &mut self.slots, sequence);
        }
    }

    fn give_up(kv: &mut KvCache, slots: &mut SlotTable, sequence: &mut Sequence) {
        kv.release(&std::mem::take(&mut sequence.blocks));
        sequence.computed = 0;
        sequence.published = 0;
        if let Some(slot) = sequence.slot.take() {
            slots.release(slot);
        }
    }

    /// Starts waiting sequences in rank order, as long as there are rows, blocks and budget.
    fn admit_waiting(&mut self, draft: &mut Draft) {
        // Sequences before the current one that wait for a slot.
        let mut passed: Vec<SequenceId> = Vec::new();
        for rank in self.waiting.iter().copied().collect::<Vec<_>>() {
            if draft.budget == 0 {
                return;
            }
            let Some(sequence) = self.sequences.get(&rank.1).filter(|sequence| !sequence.held) else {
                continue;
            };
            let needs_slot = sequence.lease.is_some();
            if needs_slot && self.slots_reserved(&passed) {
                passed.push(rank.1);
                continue;
            }
            let mut outcome = self.take_slot(rank.1, draft);
            if matches!(outcome, SlotOutcome::NoneFree) && self.free_held_slots(rank.1, draft) {
                outcome = self.take_slot(rank.1, draft);
            }
            match outcome {
                SlotOutcome::Taken => {}
                SlotOutcome::NoneFree => {
                    passed.push(rank.1);
                    continue;
                }
                SlotOutcome::Skip => continue,
            }
            if !self.make_row(rank, draft) || !self.take_blocks(rank, draft) {
                // Its adapter, if just bound, stays where it is: it is needed as soon as there is room.
                if let Some(slot) = self.sequences.get_mut(&rank.1).and_then(|sequence| sequence.slot.take())
                {
                    self.slots.release(slot);
                }
                return;
            }
            if needs_slot {
                for id in &passed {
                    if let Some(waiting) = self.sequences.get_mut(id) {
                        waiting.slot_skips = waiting.slot_skips.saturating_add(1);
                    }
                }
            }
            self.waiting.remove(&rank);
            self.running.insert(rank);
            if let Some(sequence) = self.sequences.get_mut(&rank.1) {
                sequence.slot_skips = 0;
                let len = sequence.remaining().min(draft.budget).min(self.max_chunk_tokens);
                self.add_row(rank.1, len, draft);
            }
        }
    }

    /// Whether one of these was passed so often that no later sequence may take a slot.
    fn slots_reserved(&self, passed: &[SequenceId]) -> bool {
        let skips = |id| self.sequences.get(id).map_or(0, |sequence: &Sequence| sequence.slot_skips);
        passed.iter().any(|id| skips(id) >= self.max_slot_skips)
    }

    /// Makes sure that one more sequence may run.
    fn make_row(&mut self, rank: Rank, draft: &mut Draft) -> bool {
        while self.running.len() >= self.max_num_sequences {
            let Some(victim) = self.victim(Some(rank.0)) else { return false };
            self.preempt(victim, draft);
        }
        true
    }

    fn take_slot(&mut self, id: SequenceId, draft: &mut Draft) -> SlotOutcome {
        let Some(sequence) = self.sequences.get_mut(&id) else { return SlotOutcome::Skip };
        let Some(lease) = &sequence.lease else { return SlotOutcome::Taken };
        match self.slots.acquire(lease) {
            SlotAnswer::Ready(slot) => sequence.slot = Some(slot),
            SlotAnswer::Bind { bind, clears } => {
                sequence.slot = Some(bind.slot);
                draft.bind(bind, &clears);
            }
            SlotAnswer::NoneFree => return SlotOutcome::NoneFree,
            SlotAnswer::NotResident => return SlotOutcome::Skip,
            SlotAnswer::Failed(error) => {
                draft.schedule.failed.push((id, error));
                return SlotOutcome::Skip;
            }
        }
        SlotOutcome::Taken
    }

    /// Preempts the sequences of slots that only slow readers use, if that makes room for this sequence's adapter.
    fn free_held_slots(&mut self, id: SequenceId, draft: &mut Draft) -> bool {
        let mut users: BTreeMap<SlotIdx, Vec<&Sequence>> = BTreeMap::new();
        for sequence in self.running.iter().filter_map(|rank| self.sequences.get(&rank.1)) {
            if let Some(slot) = sequence.slot {
                users.entry(slot).or_default().push(sequence);
            }
        }
        users.retain(|_, users| users.iter().all(|sequence| sequence.held));
        let Some(lease) = self.sequences.get(&id).and_then(|sequence| sequence.lease.as_ref()) else {
            return false;
        };
        let in_the_way = self.slots.in_the_way(lease, |slot| users.contains_key(&slot));
        let victims = in_the_way.iter().filter_map(|slot| users.get(slot)).flatten();
        for rank in victims.map(|sequence| sequence.rank()).collect::<Vec<_>>() {
            self.preempt(rank, draft);
        }
        !in_the_way.is_empty()
    }

    /// Gives a waiting sequence the blocks of all its tokens, from the prefix cache as far as it goes.
    fn take_blocks(&mut self, rank: Rank, draft: &mut Draft) -> bool {
        let Some(sequence) = self.sequences.get_mut(&rank.1) else { return false };
        // The last token is always computed, since the next is sampled from it.
        let shareable = (sequence.tokens.len() - 1).min(sequence.readable_prefix_tokens) / BLOCK_SIZE_TOKENS;
        let keys = sequence.keys_until(shareable).to_vec();
        let mut table = self.kv.acquire_prefix(&keys, &sequence.tokens);
        let found = table.len();
        let missing = blocks_for(sequence.tokens.len()) - found;
        // Room for the others to grow for some steps, lest this one drives them out at once.
        while self.kv.num_available() < missing + self.running.len().div_ceil(2) {
            let fits = self.kv.num_available() >= missing;
            match self.victim(Some(rank.0)) {
                // Whoever has to grow will drive out that victim, and not this sequence.
                Some(_) if fits => break,
                Some(victim) if self.victims_suffice(rank.0, missing) => self.preempt(victim, draft),
                _ => {
                    self.kv.release(&table);
                    return false;
                }
            }
        }
        if !self.kv.allocate(missing, &mut table) {
            self.kv.release(&table);
            return false;
        }
        let Some(sequence) = self.sequences.get_mut(&rank.1) else { return false };
        sequence.blocks = table;
        sequence.published = found;
        sequence.computed = found * BLOCK_SIZE_TOKENS;
        if sequence.cached_tokens.is_none() {
            sequence.cached_tokens = Some(sequence.computed);
            if sequence.readable_prefix_tokens > 0 {
                self.counters.prefix_query_tokens += sequence.num_prompt_tokens as u64;
                self.counters.prefix_hit_tokens += sequence.computed as u64;
            }
        }
        true
    }

    /// Whether preempting all that this priority may preempt could free `missing` blocks.
    fn victims_suffice(&self, priority: i32, missing: usize) -> bool {
        let may_go = |sequence: &&Sequence| sequence.held || sequence.priority > priority;
        let running = self.running.iter().filter_map(|rank| self.sequences.get(&rank.1));
        let freeable: usize = running.filter(may_go).map(|sequence| sequence.blocks.len()).sum();
        self.kv.num_available() + freeable >= missing
    }

    /// Gives a running sequence blocks for up to `len` tokens that may come after its own, and says for how many: nobody loses
    /// blocks for them, nor the room to grow. [`Scheduler::take_back`] is to follow.
    pub fn lend(&mut self, id: SequenceId, len: usize) -> usize {
        let reserve = self.running.len();
        let Some(sequence) = self.sequences.get_mut(&id) else { return 0 };
        let missing = blocks_for(sequence.tokens.len() + len).saturating_sub(sequence.blocks.len());
        if missing > 0 && self.kv.num_available() >= missing + reserve {
            self.kv.allocate(missing, &mut sequence.blocks);
        }
        (sequence.blocks.len() * BLOCK_SIZE_TOKENS).saturating_sub(sequence.tokens.len()).min(len)
    }

    /// Takes back the blocks that hold none of a sequence's own tokens.
    pub fn take_back(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let own = blocks_for(sequence.tokens.len()).min(sequence.blocks.len());
        self.kv.release(&sequence.blocks.split_off(own));
    }

    /// A step has computed `len` more tokens of a sequence: full blocks become findable.
    pub fn advance(&mut self, id: SequenceId, len: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.computed += len;
        let full = sequence.computed / BLOCK_SIZE_TOKENS;
        while sequence.published < full {
            let block_idx = sequence.published;
            let key = sequence.keys_until(full).get(block_idx).copied();
            if let (Some(key), Some(block)) = (key, sequence.blocks.get(block_idx)) {
                self.kv.publish(key, sequence.block_tokens(block_idx), *block);
            }
            sequence.published += 1;
        }
    }

    /// Appends a sampled token.
    pub fn append(&mut self, id: SequenceId, token: TokenId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.push(token);
        }
    }

    /// Ends a sequence, whatever its state, and frees what it holds.
    pub fn finish(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(&id)?;
        self.waiting.remove(&sequence.rank());
        self.running.remove(&sequence.rank());
        Self::give_up(&mut self.kv, &mut self.slots, &mut sequence);
        Some(sequence)
    }

    /// Sequences that run in this slot.
    pub fn users_of_slot(&self, slot: SlotIdx) -> Vec<SequenceId> {
        self.sequences.values().filter(|s| s.slot == Some(slot)).map(|s| s.id).collect()
    }

    pub fn slots_mut(&mut self) -> &mut SlotTable {
        &mut self.slots
    }

    pub fn slots(&self) -> &SlotTable {
        &self.slots
    }

    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Names of adapters with running and with waiting sequences, sorted.
    pub fn adapter_names(&self) -> (Vec<String>, Vec<String>) {
        let names = |ranks: &BTreeSet<Rank>| {
            let leases = ranks.iter().filter_map(|rank| self.sequences.get(&rank.1)?.lease.as_ref());
            // By generation first: comparing numbers is cheaper than comparing names.
            let generations: BTreeMap<GenerationId, &str> =
                leases.map(|lease| (lease.generation.id, lease.generation.name.as_str())).collect();
            let names: BTreeSet<&str> = generations.into_values().collect();
            names.into_iter().map(str::to_owned).collect()
        };
        (names(&self.running), names(&self.waiting))
    }
}

#[cfg(test)]
impl Scheduler {
    /// All of them, whatever their state.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.values()
    }
}

enum SlotOutcome {
    Taken,
    NoneFree,
    Skip,
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
