//! The inputs of one step, in buffers whose addresses never change.
//!
//! A step is a mixed batch: rows (tokens) of several sequences, each row with its position, adapter slot and RoPE
//! table. All of it is written into one fixed buffer by one copy, so that a recorded graph can be replayed with new
//! contents. Code that builds a step sees only the [`GraphKey`]; contents are for the device alone.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::lora::{LoraBatch, LoraTable, NULL_SLOT};
use crate::tensor::Memory;
use crate::{DType, Tensor};

/// What a step may at most hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows, the tokens computed in a step.
    pub max_rows: usize,
    /// Sequences in a step.
    pub max_seqs: usize,
    /// Blocks of one sequence's table.
    pub max_blocks: usize,
}

/// The shape of a step: two steps with equal keys run the same ops on the same addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GraphKey {
    /// Rows in the step.
    pub num_rows: usize,
    /// Sequences in the step.
    pub num_seqs: usize,
    /// Row length of the block tables.
    pub max_blocks: usize,
    /// Rows whose logits are wanted.
    pub num_logit_rows: usize,
    /// Whether any row uses an adapter.
    pub with_lora: bool,
}

impl GraphKey {
    /// Whether each sequence has one row, with logits: a step of generation alone.
    pub fn is_one_row_a_sequence(&self) -> bool {
        self.num_rows == self.num_seqs && self.num_logit_rows == self.num_rows
    }
}

/// One step's contents, on the host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepInputs {
    /// `[rows]` token ids.
    pub token_ids: Vec<u32>,
    /// `[rows]` position of each token in its sequence.
    pub positions: Vec<u32>,
    /// `[rows]` index of the RoPE table.
    pub rope_idx: Vec<u32>,
    /// `[rows]` adapter slot, [`NULL_SLOT`] for none.
    pub lora_slots: Vec<u32>,
    /// `[rows]` factor on the adapter's scale.
    pub lora_scales: Vec<f32>,
    /// `[seqs + 1]` first row of each sequence, and the number of rows.
    pub seq_starts: Vec<u32>,
    /// `[seqs]` tokens of each sequence in the cache after this step.
    pub context_lens: Vec<u32>,
    /// `[seqs, max_blocks]` block ids, unused entries 0.
    pub block_tables: Vec<u32>,
    /// Row length of `block_tables`.
    pub max_blocks: usize,
    /// Rows whose hidden states the head needs, ascending.
    pub logit_rows: Vec<u32>,
}

impl StepInputs {
    /// The step's shape.
    pub fn key(&self) -> GraphKey {
        GraphKey {
            num_rows: self.token_ids.len(),
            num_seqs: self.context_lens.len(),
            max_blocks: self.max_blocks,
            num_logit_rows: self.logit_rows.len(),
            with_lora: self.lora_slots.iter().any(|&s| s != NULL_SLOT),
        }
    }

    /// The same step with more sequences of one row each, and longer block tables, as `key` says: padding that reads and writes
    /// `null_block` alone.
    fn padded(&self, key: &GraphKey, null_block: u32) -> StepInputs {
        let mut padded = self.clone();
        let seqs = self.context_lens.len();
        for rows in [&mut padded.token_ids, &mut padded.positions, &mut padded.rope_idx] {
            rows.resize(key.num_rows, 0);
        }
        padded.lora_slots.resize(key.num_rows, NULL_SLOT);
        padded.lora_scales.resize(key.num_rows, 0.0);
        padded.seq_starts.extend(seqs as u32 + 1..=key.num_seqs as u32);
        padded.context_lens.resize(key.num_seqs, 1);
        padded.logit_rows.extend(seqs as u32..key.num_logit_rows as u32);
        padded.max_blocks = key.max_blocks;
        padded.block_tables.clear();
        for table in self.block_tables.chunks(self.max_blocks.max(1)) {
            padded.block_tables.extend_from_slice(table);
            padded.block_tables.resize(padded.block_tables.len() + key.max_blocks - table.len(), 0);
        }
        padded.block_tables.resize(key.num_seqs * key.max_blocks, null_block);
        padded
    }

    /// Everything that a kernel would otherwise have to trust: lengths agree, indices are in range, each sequence's
    /// blocks cover its context, its rows are its last tokens, and no two sequences write into one block.
    fn check(&self, limits: &StepLimits, bounds: &StepBounds) -> Result<()> {
        let op = "StepInputs";
        let (rows, seqs) = (self.token_ids.len(), self.context_lens.len());
        let lengths =
            [self.positions.len(), self.rope_idx.len(), self.lora_slots.len(), self.lora_scales.len()];
        if rows == 0 || seqs == 0 || lengths.iter().any(|&n| n != rows) {
            return invalid(op, format!("{rows} rows of {seqs} sequences with per-row lengths {lengths:?}"));
        }
        if rows > limits.max_rows || seqs > limits.max_seqs || self.max_blocks > limits.max_blocks {
            return invalid(
                op,
                format!("{rows} rows, {seqs} sequences, {} blocks exceed {limits:?}", self.max_blocks),
            );
        }
        if self.seq_starts.len() != seqs + 1
            || self.block_tables.len() != seqs * self.max_blocks
            || self.seq_starts.first() != Some(&0)
            || self.seq_starts.last() != Some(&(rows as u32))
        {
            return invalid(op, "sequence starts or block tables do not match the sequences");
        }
        if let Some(t) = self.token_ids.iter().find(|&&t| t as usize >= bounds.vocab_size) {
            return invalid(op, format!("token {t} of a vocabulary of {}", bounds.vocab_size));
        }
        if let Some(r) = self.rope_idx.iter().find(|&&r| r as usize >= bounds.num_rope_tables) {
            return invalid(op, format!("RoPE table {r} of {}", bounds.num_rope_tables));
        }
        if let Some(s) = self.lora_slots.iter().find(|&&s| s != NULL_SLOT && s as usize >= bounds.num_slots) {
            return invalid(op, format!("adapter slot {s} of {}", bounds.num_slots));
        }
        if self.logit_rows.iter().any(|&r| r as usize >= rows) {
            return invalid(op, "a logit row lies outside the step");
        }
        let mut written: Vec<u32> = Vec::new();
        for (s, range) in self.seq_starts.windows(2).enumerate() {
            let (Some(&[first, end]), Some(&context)) = (range.first_chunk::<2>(), self.context_lens.get(s))
            else {
                return invalid(op, "sequence starts do not match the sequences");
            };
            if first >= end || end - first > context || context as usize > bounds.max_positions {
                return invalid(
                    op,
                    format!("sequence {s}: rows {first}..{end} of a context of {context} tokens"),
                );
            }
            let start = context - (end - first);
            let positions = self.positions.get(first as usize..end as usize).unwrap_or(&[]);
            if positions.iter().zip(start..).any(|(&p, want)| p != want) {
                return invalid(op, format!("sequence {s}: positions are not {start}..{context}"));
            }
            let table = self.block_tables.get(s * self.max_blocks..(s + 1) * self.max_blocks).unwrap_or(&[]);
            let used = (context as usize).div_ceil(bounds.block_size);
            let Some(blocks) = table.get(..used) else {
                return invalid(
                    op,
                    format!("sequence {s}: {used} blocks wanted, the table holds {}", table.len()),
                );
            };
            if let Some(b) = blocks.iter().find(|&&b| b as usize >= bounds.num_blocks) {
                return invalid(op, format!("sequence {s}: block {b} of {}", bounds.num_blocks));
            }
            written.extend(blocks.iter().skip(start as usize / bounds.block_size));
        }
        let blocks_written = written.len();
        written.sort_unstable();
        written.dedup();
        if written.len() != blocks_written {
            return invalid(op, "two sequences write into one block");
        }
        Ok(())
    }
}

/// What the contents of a step are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBounds {
    /// Token ids lie below.
    pub vocab_size: usize,
    /// Longest context.
    pub max_positions: usize,
    /// RoPE tables.
    pub num_rope_tables: usize,
    /// Adapter slots.
    pub num_slots: usize,
    /// Blocks in the KV cache.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

/// A step on the device: tensors over the fixed buffer, in the shape that the key says. Made only from inputs that were
/// checked, which is why its tensors cannot be exchanged.
#[derive(Debug, Clone)]
pub struct Step {
    /// The step's shape.
    pub(crate) key: GraphKey,
    /// What the contents were checked against.
    pub(crate) bounds: StepBounds,
    /// `[rows]`.
    pub(crate) token_ids: Tensor,
    /// `[rows]`.
    pub(crate) positions: Tensor,
    /// `[rows]`.
    pub(crate) rope_idx: Tensor,
    /// `[rows]`.
    pub(crate) lora_slots: Tensor,
    /// `[rows]` F32.
    pub(crate) lora_scales: Tensor,
    /// `[seqs + 1]`.
    pub(crate) seq_starts: Tensor,
    /// `[seqs, max_blocks]`.
    pub(crate) block_tables: Tensor,
    /// `[logit rows]`.
    pub(crate) logit_rows: Tensor,
    /// `[logit rows]`: adapter slots of the logit rows, for an adapted head.
    pub(crate) logit_lora_slots: Tensor,
    /// `[logit rows]` F32.
    pub(crate) logit_lora_scales: Tensor,
}

impl Step {
    /// The step's shape.
    pub fn key(&self) -> &GraphKey {
        &self.key
    }

    /// What the contents were checked against.
    pub fn bounds(&self) -> &StepBounds {
        &self.bounds
    }

    /// Token id of each row, `[rows]`.
    pub fn token_ids(&self) -> &Tensor {
        &self.token_ids
    }

    /// Position of each row in its sequence, `[rows]`.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// RoPE table of each row, `[rows]`.
    pub fn rope_idx(&self) -> &Tensor {
        &self.rope_idx
    }

    /// First row of each sequence, and the number of rows, `[seqs + 1]`.
    pub fn seq_starts(&self) -> &Tensor {
        &self.seq_starts
    }

    /// Blocks of each sequence, `[seqs, max_blocks]`.
    pub fn block_tables(&self) -> &Tensor {
        &self.block_tables
    }

    /// The adapters of the rows.
    pub fn lora<'a>(&'a self, table: &'a Arc<LoraTable>) -> LoraBatch<'a> {
        LoraBatch { table, slots: &self.lora_slots, scales: &self.lora_scales }
    }

    /// Adapter slots and scales of the logit rows `first_row ..`, for the head.
    pub fn logit_lora(&self, first_row: usize, rows: usize) -> Result<(Tensor, Tensor)> {
        Ok((self.logit_lora_slots.rows(first_row, rows)?, self.logit_lora_scales.rows(first_row, rows)?))
    }
}

/// The fixed buffer and where each input lies in it.
#[derive(Debug)]
pub(crate) struct StepBuffers {
    memory: Arc<dyn Memory>,
    limits: StepLimits,
    staging: Vec<u32>,
}

impl StepBuffers {
    /// Words of the buffer: each input at its largest, at a fixed place.
    pub(crate) fn len_words(limits: &StepLimits) -> usize {
        let rows = limits.max_rows;
        8 * rows + (limits.max_seqs + 1) + limits.max_seqs.saturating_mul(limits.max_blocks)
    }

    pub(crate) fn new(memory: Arc<dyn Memory>, limits: StepLimits) -> Self {
        StepBuffers { memory, limits, staging: vec![0; Self::len_words(&limits)] }
    }

    /// Checks `inputs`, lays them out in the staging copy and returns the step's tensors with the words to copy. The step is padded
    /// to the shape `padded`, if there is room.
    pub(crate) fn stage(
        &mut self,
        inputs: &StepInputs,
        bounds: &StepBounds,
        padded: GraphKey,
    ) -> Result<(Step, Tensor, &[u32])> {
        inputs.check(&self.limits, bounds)?;
        let own = inputs.key();
        let key = GraphKey { max_blocks: padded.max_blocks.min(self.limits.max_blocks), ..padded };
        let fits = key.num_rows <= self.limits.max_rows && key.num_seqs <= self.limits.max_seqs;
        let with_padding;
        let (key, inputs) = if key != own && fits && own.is_one_row_a_sequence() {
            with_padding = inputs.padded(&key, bounds.num_blocks as u32);
            (key, &with_padding)
        } else {
            (own, inputs)
        };
        let (max_rows, max_seqs) = (self.limits.max_rows, self.limits.max_seqs);
        let scales: Vec<u32> = inputs.lora_scales.iter().map(|s| s.to_bits()).collect();
        let of_logit_rows = |values: &[u32]| -> Vec<u32> {
            inputs.logit_rows.iter().filter_map(|&r| values.get(r as usize).copied()).collect()
        };
        let (logit_slots, logit_scales) = (of_logit_rows(&inputs.lora_slots), of_logit_rows(&scales));
        // The block tables come last: only as much as the step uses has to be copied.
        let parts: [(&[u32], usize); 10] = [
            (&inputs.token_ids, max_rows),
            (&inputs.positions, max_rows),
            (&inputs.rope_idx, max_rows),
            (&inputs.lora_slots, max_rows),
            (&scales, max_rows),
            (&inputs.logit_rows, max_rows),
            (&logit_slots, max_rows),
            (&logit_scales, max_rows),
            (&inputs.seq_starts, max_seqs + 1),
            (&inputs.block_tables, inputs.block_tables.len()),
        ];
        let mut offsets = [0; 10];
        let mut at = 0;
        for ((part, room), offset) in parts.iter().zip(&mut offsets) {
            *offset = at;
            let Some(to) = self.staging.get_mut(at..at + part.len()) else {
                return invalid("StepInputs", "the step does not fit the fixed buffer");
            };
            to.copy_from_slice(part);
            at += room;
        }
        let whole = Tensor::persistent(self.memory.clone(), [at], DType::U32)?;
        let part = |index: usize, len: usize| -> Result<Tensor> {
            whole.rows(offsets.get(index).copied().unwrap_or(0), len)
        };
        let f32s = |index: usize, len: usize| part(index, len).map(|t| Tensor { dtype: DType::F32, ..t });
        let step = Step {
            key,
            bounds: *bounds,
            token_ids: part(0, key.num_rows)?,
            positions: part(1, key.num_rows)?,
            rope_idx: part(2, key.num_rows)?,
            lora_slots: part(3, key.num_rows)?,
            lora_scales: f32s(4, key.num_rows)?,
            logit_rows: part(5, key.num_logit_rows)?,
            logit_lora_slots: part(6, key.num_logit_rows)?,
            logit_lora_scales: f32s(7, key.num_logit_rows)?,
            seq_starts: part(8, key.num_seqs + 1)?,
            block_tables: part(9, key.num_seqs * key.max_blocks)?.reshape([key.num_seqs, key.max_blocks])?,
        };
        Ok((step, whole, self.staging.get(..at).unwrap_or(&[])))
    }
}
