//! RoPE, the paged cache, and attention over it.

use wardrobe_device::{
    BLOCK_SIZE, DType, DeviceError, KvLayer, PagedAttention, Result, RopeTables, Step, Tensor,
};

use crate::driver::{DevicePtr, Launch};
use crate::kernels::{AttentionArgs, DecodeArgs, KvWriteArgs, RopeArgs, RopeKvArgs, element_type};
use crate::memory::DeviceMemory;
use crate::ops::{CudaOps, Room, addr, int};

const ROPE: &str = "rope_kv";
const ROPE_THREADS: u32 = 256;
/// Most tables that rows may choose from.
const MAX_ROPE_TABLES: usize = 1024;
/// Heads of a group that one block of the decoding kernel serves.
const DECODE_HEADS: usize = 8;
/// Blocks of the decoding kernel that a multiprocessor runs at once, and how many rounds of them are wanted.
const DECODE_BLOCKS: usize = 3;
const DECODE_ROUNDS: usize = 3;
/// Shorter splits cost more than they bring.
const MIN_SPLIT_TOKENS: usize = 128;
/// Query vectors of a block of the prefill kernel.
const PREFILL_VECTORS: usize = 128;

/// RoPE tables by their number, on the card.
#[derive(Debug, Default)]
pub(crate) struct RopePointers {
    memory: Option<std::sync::Arc<DeviceMemory>>,
    held: Vec<Tensor>,
}

/// A rotation that has not been queued: attention, if it comes next, does it in the same launch as the writing of keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingRope {
    args: RopeArgs,
    rows: usize,
}

/// How a step's context is cut for decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Splits {
    pub(crate) num_splits: usize,
    pub(crate) split_tokens: usize,
}

/// Splits of a step of so many sequences and blocks of each at most: enough thread blocks to fill the card, from the step's shape
/// alone.
pub(crate) fn splits(
    num_seqs: usize,
    max_blocks: usize,
    blocks_of_split: usize,
    num_multiprocessors: usize,
) -> Splits {
    let context = (max_blocks * BLOCK_SIZE).max(BLOCK_SIZE);
    let wanted = num_multiprocessors * DECODE_BLOCKS * DECODE_ROUNDS;
    let num_splits = wanted.div_ceil((num_seqs * blocks_of_split).max(1));
    let split_tokens = context.div_ceil(num_splits.max(1)).max(MIN_SPLIT_TOKENS).next_multiple_of(BLOCK_SIZE);
    Splits { num_splits: context.div_ceil(split_tokens), split_tokens }
}

fn has_tensor_cores(head_dim: usize, cache: DType) -> bool {
    matches!(head_dim, 64 | 96 | 128) && matches!(cache, DType::BF16 | DType::F16)
}

fn cache_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::F32 | DType::U32 => "f32",
    }
}

/// Kernels by cache type and head size.
macro_rules! by_cache_and_head {
    ($name:literal, $dtype:expr, $head_dim:expr) => {
        match ($dtype, $head_dim) {
            (DType::BF16, 64) => concat!($name, "_bf16_64"),
            (DType::BF16, 96) => concat!($name, "_bf16_96"),
            (DType::BF16, _) => concat!($name, "_bf16_128"),
            (_, 64) => concat!($name, "_f16_64"),
            (_, 96) => concat!($name, "_f16_96"),
            (_, _) => concat!($name, "_f16_128"),
        }
    };
}

fn rope_launch(rows: usize, pieces: usize) -> Launch {
    let y = pieces.div_ceil(ROPE_THREADS as usize).clamp(1, 65_535);
    Launch { grid: [rows as u32, y as u32, 1], block: ROPE_THREADS, shared_bytes: 0 }
}

impl CudaOps {
    /// Brings the pointers of tables to the card, unless they are there.
    pub(crate) fn bind_rope(&mut self, tables: &RopeTables) -> Result<DevicePtr> {
        let tables = &tables.tables;
        let is_bound = self.rope.held.len() >= tables.len()
            && tables.iter().zip(&self.rope.held).all(|(table, held)| table.is_same_place(held));
        if let Some(memory) = &self.rope.memory
            && is_bound
        {
            return Ok(memory.ptr());
        }
        self.refuse_while_recording("rope")?;
        if tables.len() > MAX_ROPE_TABLES {
            let reason = format!("{} tables, and {MAX_ROPE_TABLES} are the most", tables.len());
            return Err(DeviceError::Invalid { op: "rope", reason });
        }
        let memory = match &self.rope.memory {
            Some(memory) => memory.clone(),
            None => DeviceMemory::new(self.driver(), "pointers of RoPE tables", 8 * MAX_ROPE_TABLES)?,
        };
        let mut bytes = Vec::with_capacity(8 * tables.len());
        for table in tables {
            bytes.extend_from_slice(&addr("rope", "table", table)?.0.to_le_bytes());
        }
        // SAFETY: the memory has room for the most tables; what they point to is held from here on.
        unsafe { self.driver().write(self.stream(), memory.ptr(), &bytes)? };
        let ptr = memory.ptr();
        self.rope = RopePointers { memory: Some(memory), held: tables.clone() };
        Ok(ptr)
    }

    /// Notes a rotation of one or two tensors; more of them are queued two at a time.
    pub(crate) fn queue_rope(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        positions: &Tensor,
        rope_idx: &Tensor,
        tables: &RopeTables,
        direction: f32,
    ) -> Result<()> {
        let Some(table) = tables.tables.first() else { return Ok(()) };
        let half = table.shape().dims().get(1).copied().unwrap_or(0);
        let pointers = self.bind_rope(tables)?;
        let positions = addr("rope", "positions", positions)?;
        let rope_idx = addr("rope", "table numbers", rope_idx)?;
        for pair in pairs.chunks(2) {
            self.flush()?;
            let Some((x0, out0)) = pair.first() else { continue };
            let dims = x0.shape();
            let [rows, heads0, head_dim] = *dims.dims() else { continue };
            let second = match pair.get(1) {
                Some((x1, out1)) => {
                    let heads = x1.shape().dims().get(1).copied().unwrap_or(0);
                    (addr("rope", "x", x1)?, addr("rope", "out", out1)?, heads)
                }
                None => (DevicePtr::NULL, DevicePtr::NULL, 0),
            };
            let args = RopeArgs {
                x0: addr("rope", "x", x0)?,
                x1: second.0,
                out0: addr("rope", "out", out0)?,
                out1: second.1,
                tables: pointers,
                positions,
                rope_idx,
                heads0: int(heads0),
                heads1: int(second.2),
                head_dim: int(head_dim),
                half: int(half),
                direction,
                padding: 0,
            };
            self.pending = Some(PendingRope { args, rows });
        }
        Ok(())
    }

    /// Queues a rotation that was noted.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let Some(PendingRope { args, rows }) = self.pending.take() else { return Ok(()) };
        let kernel = self.kernels().get::<RopeArgs>(ROPE, "rope", 0)?;
        let heads = (args.heads0 + args.heads1) as usize;
        let launch = rope_launch(rows, (heads * args.head_dim as usize).div_ceil(8));
        // SAFETY: operands were checked by `Ctx` when the op was called, and no scope has ended since: that takes another op.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args) }
    }

    /// Writes keys and values into the cache, rotating queries and keys first if that is still to be done.
    fn write_cache(&mut self, args: &PagedAttention<'_>) -> Result<()> {
        let op = "paged_attention";
        let (k, v) = (addr(op, "k", args.k)?, addr(op, "v", args.v)?);
        let [rows, kv_heads, head_dim] = *args.k.shape().dims() else { return Ok(()) };
        let step = StepPointers::of(args.step)?;
        let (k_cache, v_cache) = cache(args.kv)?;
        let dtype = args.kv.keys().dtype();
        let pending = self.pending.filter(|pending| {
            (Ok(pending.args.out0), pending.args.out1) == (addr(op, "q", args.q), k) && pending.rows == rows
        });
        let pieces = kv_heads * head_dim / 4;
        if let Some(PendingRope { args: rope, .. }) = pending {
            self.pending = None;
            let name = match cache_name(dtype) {
                "bf16" => "rope_kv_bf16",
                "f16" => "rope_kv_f16",
                _ => "rope_kv_f32",
            };
            let kernel = self.kernels().get::<RopeKvArgs>(ROPE, name, 0)?;
            let heads = (rope.heads0 + rope.heads1) as usize;
            let launch = rope_launch(rows, (heads * head_dim).div_ceil(8) + pieces);
            let args = RopeKvArgs {
                q: rope.x0,
                k: rope.x1,
                v,
                q_out: rope.out0,
                k_out: rope.out1,
                k_cache,
                v_cache,
                tables: rope.tables,
                positions: rope.positions,
                rope_idx: rope.rope_idx,
                seq_starts: step.seq_starts,
                block_tables: step.block_tables,
                num_seqs: step.num_seqs,
                max_blocks: step.max_blocks,
                heads: rope.heads0,
                kv_heads: rope.heads1,
                head_dim: rope.head_dim,
                half: rope.half,
                direction: rope.direction,
                padding: 0,
            };
            // SAFETY: operands of both ops were checked by `Ctx`, contents of the step when it was staged.
            return unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args) };
        }
        self.flush()?;
        let name = match cache_name(dtype) {
            "bf16" => "kv_write_bf16",
            "f16" => "kv_write_f16",
            _ => "kv_write_f32",
        };
        let kernel = self.kernels().get::<KvWriteArgs>(ROPE, name, 0)?;
        let write = KvWriteArgs {
            k,
            v,
            k_cache,
            v_cache,
            positions: step.positions,
            seq_starts: step.seq_starts,
            block_tables: step.block_tables,
            num_seqs: step.num_seqs,
            max_blocks: step.max_blocks,
            kv_heads: int(kv_heads),
            head_dim: int(head_dim),
        };
        // SAFETY: as above.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), rope_launch(rows, 2 * pieces), &write) }
    }

    /// See [`wardrobe_device::Ops::paged_attention`].
    pub(crate) fn attend(&mut self, args: &PagedAttention<'_>) -> Result<()> {
        let op = "paged_attention";
        self.write_cache(args)?;
        let [rows, heads, head_dim] = *args.q.shape().dims() else { return Ok(()) };
        let kv_heads = args.k.shape().dims().get(1).copied().unwrap_or(1);
        let dtype = args.kv.keys().dtype();
        let step = StepPointers::of(args.step)?;
        let (k_cache, v_cache) = cache(args.kv)?;
        let attention = AttentionArgs {
            q: addr(op, "q", args.q)?,
            k_cache,
            v_cache,
            out: addr(op, "out", args.out)?,
            lse: args.lse.map_or(Ok(DevicePtr::NULL), |lse| addr(op, "lse", lse))?,
            positions: step.positions,
            seq_starts: step.seq_starts,
            block_tables: step.block_tables,
            num_seqs: step.num_seqs,
            max_blocks: step.max_blocks,
            heads: int(heads),
            kv_heads: int(kv_heads),
            head_dim: int(head_dim),
            // A window beyond all positions is none.
            window: args.window.and_then(|window| i32::try_from(window).ok()).unwrap_or(0),
            min_rows: 1,
            out_type: element_type(args.out.dtype()),
            scale: args.scale,
            softcap: args.softcap.unwrap_or(0.0),
        };
        if args.lse.is_some() {
            self.recorded_cache = dtype;
        }
        let key = args.step.key();
        if !has_tensor_cores(head_dim, dtype) {
            return self.attend_any(&attention, dtype, rows);
        }
        // A step in which each sequence has one row has no prompts; one of a single sequence with more has nothing else. Where a row's
        // result may not depend on what it is computed beside, one kernel serves both.
        let one_kernel = self.is_deterministic();
        if !one_kernel && (key.num_seqs > 1 || key.num_rows == 1) {
            self.attend_decode(&attention, dtype, key.num_seqs, key.max_blocks)?;
        }
        if one_kernel || key.num_rows > key.num_seqs {
            let name = by_cache_and_head!("attention_prefill", dtype, head_dim);
            let shared = match head_dim {
                64 => 40_960,
                96 => 66_560,
                _ => 81_920,
            };
            let kernel = self.kernels().get::<AttentionArgs>("attention_prefill", name, shared)?;
            let tiles = (rows * (heads / kv_heads.max(1))).div_ceil(PREFILL_VECTORS) + key.num_seqs;
            let launch =
                Launch { grid: [kv_heads as u32, tiles as u32, 1], block: 128, shared_bytes: shared as u32 };
            let args = AttentionArgs { min_rows: if one_kernel { 1 } else { 2 }, ..attention };
            // SAFETY: as in `write_cache`.
            unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args)? };
        }
        Ok(())
    }

    fn attend_decode(
        &mut self,
        attention: &AttentionArgs,
        dtype: DType,
        num_seqs: usize,
        max_blocks: usize,
    ) -> Result<()> {
        let (heads, kv_heads) = (attention.heads as usize, attention.kv_heads as usize);
        let head_dim = attention.head_dim as usize;
        let groups = kv_heads * (heads / kv_heads.max(1)).div_ceil(DECODE_HEADS);
        let multiprocessors = self.driver().card().num_multiprocessors as usize;
        let splits = splits(num_seqs, max_blocks, groups, multiprocessors);
        let parts = if splits.num_splits > 1 { num_seqs * heads * splits.num_splits } else { 0 };
        let out_bytes = 4 * parts * head_dim;
        let room = self.room(Room::Attention, out_bytes + 8 * parts)?;
        let args = DecodeArgs {
            attention: *attention,
            partial_out: room,
            partial_softmax: room.offset(out_bytes),
            num_splits: int(splits.num_splits),
            split_tokens: int(splits.split_tokens),
        };
        let file = "attention_decode";
        let name = by_cache_and_head!("attention_decode", dtype, head_dim);
        let shared = if head_dim == 96 { 53_248 } else { 65_536 };
        let kernel = self.kernels().get::<DecodeArgs>(file, name, shared)?;
        let launch = Launch {
            grid: [splits.num_splits as u32, groups as u32, num_seqs as u32],
            block: 128,
            shared_bytes: shared as u32,
        };
        // SAFETY: as in `write_cache`; the room is as large as the kernel's comments ask.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args)? };
        if splits.num_splits > 1 {
            let combine = self.kernels().get::<DecodeArgs>(file, "attention_decode_combine", 0)?;
            let launch = Launch { grid: [heads as u32, num_seqs as u32, 1], block: 128, shared_bytes: 0 };
            // SAFETY: as above.
            unsafe { combine.launch(self.driver().as_ref(), self.stream(), launch, &args)? };
        }
        Ok(())
    }

    /// Any head size and cache, exactly, without tensor cores.
    fn attend_any(&mut self, attention: &AttentionArgs, dtype: DType, rows: usize) -> Result<()> {
        let name = match dtype {
            DType::BF16 => "attention_any_bf16",
            DType::F16 => "attention_any_f16",
            DType::F32 | DType::U32 => "attention_any_f32",
        };
        let kernel = self.kernels().get::<AttentionArgs>("attention_any", name, 0)?;
        let launch = Launch { grid: [rows as u32, attention.heads as u32, 1], block: 128, shared_bytes: 0 };
        // SAFETY: as in `write_cache`.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, attention) }
    }
}

/// A step's inputs, by their places.
struct StepPointers {
    positions: DevicePtr,
    seq_starts: DevicePtr,
    block_tables: DevicePtr,
    num_seqs: i32,
    max_blocks: i32,
}

impl StepPointers {
    fn of(step: &Step) -> Result<Self> {
        let op = "paged_attention";
        Ok(StepPointers {
            positions: addr(op, "positions", step.positions())?,
            seq_starts: addr(op, "sequence starts", step.seq_starts())?,
            block_tables: addr(op, "block tables", step.block_tables())?,
            num_seqs: int(step.key().num_seqs),
            max_blocks: int(step.key().max_blocks),
        })
    }
}

fn cache(layer: &KvLayer) -> Result<(DevicePtr, DevicePtr)> {
    let op = "paged_attention";
    Ok((addr(op, "keys", layer.keys())?, addr(op, "values", layer.values())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_reach_the_longest_context_and_fill_the_card() {
        for num_seqs in [1, 8, 64, 512] {
            for max_blocks in [1, 16, 128, 8192] {
                let Splits { num_splits, split_tokens } = splits(num_seqs, max_blocks, 8, 132);
                assert!(num_splits * split_tokens >= max_blocks * BLOCK_SIZE);
                assert!(split_tokens >= MIN_SPLIT_TOKENS && split_tokens % BLOCK_SIZE == 0);
                assert!((num_splits - 1) * split_tokens < max_blocks * BLOCK_SIZE);
            }
        }
        // One sequence of 2048 tokens is divided as finely as pays; 64 of them are hardly divided.
        assert_eq!(splits(1, 128, 8, 132), Splits { num_splits: 16, split_tokens: 128 });
        assert!(splits(64, 128, 8, 132).num_splits <= 3);
    }
}
