//! The simulated executor: computes tokens from hashes and checks every plan.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{SimAdapter, mix};
use crate::adapter::PreparedAdapter;
use crate::config::BLOCK_SIZE_TOKENS;
use crate::constraint::Resolved;
use crate::error::ExecutorError;
use crate::executor::{
    ChunkOutput, Executor, ExecutorLimits, SampleAt, SampleSpec, Sampled, SequenceChunk, StepOutput, StepPlan,
};
use crate::ids::{BlockId, SequenceId, SlotIdx, TokenId};

/// How long a step waits for a mask: what is simulated does not depend on how fast the machine is.
const MASK_PATIENCE: Duration = Duration::from_secs(10);

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimFailure {
    /// The step's chunk with this index (modulo their number) is at fault.
    Sequence(usize),
    /// The device is lost.
    Device,
    /// The executor panics.
    Panic,
    /// The next adapter cannot be bound.
    Bind,
}

#[derive(Debug, Default)]
struct ControlState {
    failure: Option<SimFailure>,
    step_delay: Duration,
    violation: Option<String>,
    steps: u64,
    mask_patience: Option<Duration>,
}

/// Steers a [`SimExecutor`] from outside.
#[derive(Clone, Debug, Default)]
pub struct SimControl {
    state: Arc<Mutex<ControlState>>,
}

impl SimControl {
    fn with<T>(&self, change: impl FnOnce(&mut ControlState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the next step (or bind) fail.
    pub fn fail_next(&self, failure: SimFailure) {
        self.with(|state| state.failure = Some(failure));
    }

    /// Lets every step take this long.
    pub fn set_step_delay(&self, delay: Duration) {
        self.with(|state| state.step_delay = delay);
    }

    /// Lets a step wait so long for each mask.
    pub fn set_mask_patience(&self, patience: Duration) {
        self.with(|state| state.mask_patience = Some(patience));
    }

    fn mask_patience(&self) -> Duration {
        self.with(|state| state.mask_patience).unwrap_or(MASK_PATIENCE)
    }

    /// What was wrong with a plan, if one was wrong.
    pub fn violation(&self) -> Option<String> {
        self.with(|state| state.violation.clone())
    }

    /// Steps executed.
    pub fn steps(&self) -> u64 {
        self.with(|state| state.steps)
    }

    fn take_failure(&self, is: impl Fn(SimFailure) -> bool) -> Option<SimFailure> {
        self.with(|state| if state.failure.is_some_and(is) { state.failure.take() } else { None })
    }
}

/// What one position of the KV cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    token: TokenId,
    /// Hash of all tokens up to here and of the adapter they were computed with.
    history: u64,
}

/// An executor without a model. See the [module](super).
#[derive(Debug)]
pub struct SimExecutor {
    limits: ExecutorLimits,
    blocks: Vec<[Option<Cell>; BLOCK_SIZE_TOKENS]>,
    slots: Vec<Option<SimAdapter>>,
    /// The most bytes that the adapters in slots may take.
    max_device_bytes: u64,
    /// Of eight histories, those after which the text goes on as it did before.
    echo_eighths: u64,
    control: SimControl,
}

/// What followed the last two tokens when they came before, the last time; or else the last one.
fn echo(tokens: &[TokenId]) -> Option<TokenId> {
    let followed = |len: usize| {
        let suffix = tokens.len().checked_sub(len).and_then(|start| tokens.get(start..))?;
        let earlier = tokens.get(..tokens.len() - 1)?;
        let at = earlier.windows(len).rposition(|window| window == suffix)?;
        tokens.get(at + len).copied()
    };
    followed(2).or_else(|| followed(1))
}

impl SimExecutor {
    /// An executor with these limits and the block size that the engine needs.
    pub fn new(num_blocks: usize, num_slots: usize, vocab_size: usize, max_context_tokens: usize) -> Self {
        let limits = ExecutorLimits {
            num_blocks,
            block_size_tokens: BLOCK_SIZE_TOKENS,
            vocab_size,
            max_context_tokens,
            num_slots,
            model_digest: [7; 32],
        };
        Self {
            limits,
            blocks: vec![[None; BLOCK_SIZE_TOKENS]; num_blocks],
            slots: vec![None; num_slots],
            max_device_bytes: u64::MAX,
            echo_eighths: 0,
            control: SimControl::default(),
        }
    }

    /// Makes it a violation that adapters in slots take more bytes than this.
    pub fn with_max_device_bytes(mut self, max_device_bytes: u64) -> Self {
        self.max_device_bytes = max_device_bytes;
        self
    }

    /// Lets its text go on as it did before after so many of eight histories, so that it can be guessed from itself.
    pub fn with_echo(mut self, eighths: u64) -> Self {
        self.echo_eighths = eighths;
        self
    }

    /// The handle that steers this executor.
    pub fn control(&self) -> SimControl {
        self.control.clone()
    }

    /// Hash of what the weights are for a chunk: base, or adapter and scale and RoPE.
    fn weights(&self, chunk: &SequenceChunk) -> Result<u64, String> {
        let Some(slot) = chunk.slot else { return Ok(mix(1, u64::from(chunk.rope_idx))) };
        let Some(Some(adapter)) = self.slots.get(slot.0 as usize) else {
            return Err(format!("slot {slot} is empty"));
        };
        if adapter.rope_idx != chunk.rope_idx {
            return Err(format!("RoPE table {} instead of {}", chunk.rope_idx, adapter.rope_idx));
        }
        let digest = adapter.digest.chunks(8).fold(2, |hash, bytes| {
            mix(hash, bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
        });
        Ok(mix(mix(digest, u64::from(chunk.adapter_scale.to_bits())), u64::from(chunk.rope_idx)))
    }

    fn cell(&mut self, table: &[BlockId], position: usize) -> Result<&mut Option<Cell>, String> {
        let block = table.get(position / BLOCK_SIZE_TOKENS).ok_or("the block table is too short")?;
        let cells = self.blocks.get_mut(block.0 as usize).ok_or("a block id is out of range")?;
        cells.get_mut(position % BLOCK_SIZE_TOKENS).ok_or_else(|| "a position is out of range".to_owned())
    }

    fn run_chunk(&mut self, chunk: &SequenceChunk) -> Result<ChunkOutput, String> {
        let mut history = self.weights(chunk)?;
        let mut tokens = Vec::new();
        for position in 0..chunk.start {
            let cell = self.cell(&chunk.block_table, position)?.ok_or("a position was never computed")?;
            tokens.push(cell.token);
            history = mix(history, u64::from(cell.token.0));
            if cell.history != history {
                return Err(format!("position {position} holds keys and values of another history"));
            }
        }
        let wanted = chunk.prompt_logprobs.as_ref();
        let mut output = ChunkOutput::default();
        let mut samples = chunk.samples.iter();
        let mut sample = samples.next();
        for (idx, token) in chunk.token_ids.iter().enumerate() {
            if token.0 as usize >= self.limits.vocab_size {
                return Err(format!("token {token} is out of range"));
            }
            tokens.push(*token);
            history = mix(history, u64::from(token.0));
            *self.cell(&chunk.block_table, chunk.start + idx)? = Some(Cell { token: *token, history });
            if let Some(wanted) = wanted
                && let Some(target) =
                    idx.checked_sub(wanted.first_row).and_then(|row| wanted.targets.get(row))
            {
                output.prompt_logprobs.push(self.describe(history, *target, Some(wanted.top), &[]));
            }
            let Some(SampleAt { spec, .. }) = sample.filter(|sample| sample.row == idx) else { continue };
            let mask = match spec.allowed.resolve(Instant::now() + self.control.mask_patience()) {
                // What is sampled after this follows nothing.
                Resolved::Late => {
                    sample = None;
                    continue;
                }
                Resolved::All => None,
                Resolved::These(mask) => Some(mask),
            };
            match self.sample(&tokens, history, spec, mask.as_deref()) {
                Some(sampled) => output.sampled.push(sampled),
                None if output.sampled.is_empty() => return Err("no token may be sampled".to_owned()),
                None => {
                    sample = None;
                    continue;
                }
            }
            sample = samples.next();
        }
        Ok(output)
    }

    /// A "log-probability" of a token after a history.
    fn logprob(history: u64, token: TokenId) -> f32 {
        -((mix(mix(history, 11), u64::from(token.0)) % 10_000) as f32) / 100.0
    }

    fn describe(&self, history: u64, token: TokenId, top: Option<u32>, extra: &[TokenId]) -> Sampled {
        let Some(top) = top else { return Sampled { token, ..Sampled::default() } };
        let ids = (0..u32::try_from(self.limits.vocab_size).unwrap_or(u32::MAX)).map(TokenId);
        let mut all: Vec<_> = ids.map(|id| (id, Self::logprob(history, id))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let rank = all.iter().position(|(id, _)| *id == token).map_or(0, |idx| idx as u32 + 1);
        all.truncate(top as usize);
        all.extend(extra.iter().map(|id| (*id, Self::logprob(history, *id))));
        Sampled { token, logprob: Self::logprob(history, token), rank, top: all }
    }

    /// The token that followed when the last two came before, or the last one, for as many of the histories as it echoes;
    /// else the first allowed token of a permutation that depends on history and all of the specification.
    fn sample(
        &self,
        tokens: &[TokenId],
        history: u64,
        spec: &SampleSpec,
        mask: Option<&[u32]>,
    ) -> Option<Sampled> {
        let mut key = history;
        for value in [spec.temperature, spec.top_p, spec.min_p, spec.repetition_penalty] {
            key = mix(key, u64::from(value.to_bits()));
        }
        for value in [spec.presence_penalty, spec.frequency_penalty] {
            key = mix(key, u64::from(value.to_bits()));
        }
        key = mix(key, u64::from(spec.top_k));
        for count in &spec.history {
            let flags = u64::from(count.output_count) << 1 | u64::from(count.in_prompt);
            key = mix(mix(key, u64::from(count.token.0)), flags);
        }
        for (token, bias) in spec.logit_bias.iter() {
            key = mix(mix(key, u64::from(token.0)), u64::from(bias.to_bits()));
        }
        if spec.temperature > 0.0 {
            key = mix(mix(mix(key, spec.seed), u64::from(spec.choice)), spec.position);
        }
        let vocab_size = self.limits.vocab_size as u64;
        let allowed = |id: TokenId| {
            let in_mask = mask.is_none_or(|mask| {
                mask.get(id.0 as usize / 32).is_some_and(|word| word >> (id.0 % 32) & 1 == 1)
            });
            in_mask && !spec.banned.contains(&id)
        };
        let echo = if mix(key, 5) % 8 < self.echo_eighths { echo(tokens) } else { None };
        let candidates =
            (0..vocab_size).map(|offset| TokenId(((key % vocab_size + offset) % vocab_size) as u32));
        let token = echo.into_iter().chain(candidates).find(|id| allowed(*id))?;
        Some(self.describe(history, token, spec.top_logprobs, &spec.logprob_token_ids))
    }

    /// Checks what concerns the plan as a whole.
    fn check(&self, plan: &StepPlan) -> Result<(), String> {
        let mut writers: HashMap<BlockId, SequenceId> = HashMap::new();
        let mut sequences: Vec<SequenceId> = Vec::new();
        for chunk in &plan.chunks {
            if chunk.token_ids.is_empty() || sequences.contains(&chunk.sequence) {
                return Err(format!("sequence {} has an empty or a second chunk", chunk.sequence));
            }
            sequences.push(chunk.sequence);
            for block in chunk.block_table.iter().skip(chunk.start / BLOCK_SIZE_TOKENS) {
                if writers.insert(*block, chunk.sequence).is_some() {
                    return Err(format!("block {block} is written twice in a step"));
                }
            }
        }
        for chunk in &plan.chunks {
            for block in &chunk.block_table {
                if writers.get(block).is_some_and(|writer| *writer != chunk.sequence) {
                    return Err(format!(
                        "sequence {} reads block {block} while it is written",
                        chunk.sequence
                    ));
                }
            }
        }
        if !plan.chunks.is_sorted_by_key(|chunk| chunk.slot) {
            return Err("chunks are not ordered by slot".to_owned());
        }
        Ok(())
    }

    fn violated<T>(&self, reason: String) -> Result<T, ExecutorError> {
        self.control.with(|state| state.violation.get_or_insert(reason.clone()).clone());
        Err(ExecutorError::DeviceLost { reason })
    }
}

impl Executor for SimExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits
    }

    #[expect(clippy::panic, reason = "a panic is one of the failures that it simulates")]
    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        let delay = self.control.with(|state| {
            state.steps += 1;
            state.step_delay
        });
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        if let Err(reason) = self.check(plan) {
            return self.violated(reason);
        }
        let failure = self.control.take_failure(|failure| failure != SimFailure::Bind);
        let mut chunks = Vec::with_capacity(plan.chunks.len());
        for chunk in &plan.chunks {
            match self.run_chunk(chunk) {
                Ok(output) => chunks.push(output),
                Err(reason) => return self.violated(format!("sequence {}: {reason}", chunk.sequence)),
            }
        }
        match failure {
            Some(SimFailure::Sequence(idx)) => {
                let chunk = plan.chunks.get(idx % plan.chunks.len().max(1));
                let sequence = chunk.map_or(SequenceId(0), |chunk| chunk.sequence);
                Err(ExecutorError::Sequence { sequence, reason: "simulated failure".to_owned() })
            }
            Some(SimFailure::Device) => {
                Err(ExecutorError::DeviceLost { reason: "simulated loss".to_owned() })
            }
            Some(SimFailure::Panic) => panic!("simulated panic"),
            _ => Ok(StepOutput { chunks }),
        }
    }

    fn bind_slot(&mut self, slot: SlotIdx, adapter: &Arc<dyn PreparedAdapter>) -> Result<(), ExecutorError> {
        if self.control.take_failure(|failure| failure == SimFailure::Bind).is_some() {
            return Err(ExecutorError::Slot { reason: "simulated failure".to_owned() });
        }
        let adapter: &dyn Any = &**adapter;
        match (self.slots.get_mut(slot.0 as usize), adapter.downcast_ref::<SimAdapter>()) {
            (Some(place @ None), Some(adapter)) => *place = Some(adapter.clone()),
            (Some(None), None) => return self.violated("the adapter is not a simulated one".to_owned()),
            _ => return self.violated(format!("slot {slot} is bound twice or does not exist")),
        }
        let bound_bytes: u64 = self.slots.iter().flatten().map(|adapter| adapter.device_bytes).sum();
        if bound_bytes > self.max_device_bytes {
            return self.violated(format!("{bound_bytes} bytes of adapters for {}", self.max_device_bytes));
        }
        Ok(())
    }

    fn clear_slot(&mut self, slot: SlotIdx) {
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            *place = None;
        }
    }
}
