//! The paged attention op: writes the step's keys and values, then cuts the queries into tasks.

use std::sync::Arc;

use super::attention::{Attend, attend};
use super::cache::Cache;
use super::program::{Env, Phase, Program};
use super::rows::{BlockTables, RowOp, Rows};
use super::simd::LANES;
use super::team::{Ended, Worker};
use super::{ptr, slice};
use crate::DType;
use crate::error::{DeviceError, Result, invalid};
use crate::ops::PagedAttention;

/// Rows of a prompt are cut so that a task is a few whole groups of query vectors; long ones into longer tasks, which read
/// their context less often.
const ROWS_PER_TASK: usize = 16;
const LONG_ROWS_PER_TASK: usize = 64;
/// From so many rows on.
const LONG_ROWS: usize = 512;

/// Attention, lowered.
pub(crate) struct Attention {
    q: *const f32,
    out: *mut f32,
    lse: *mut f32,
    num_heads: usize,
    cache: Cache,
    f16: bool,
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
    positions: *const u32,
    blocks: Arc<BlockTables>,
    tasks: Vec<Task>,
}

/// Adjacent rows of one sequence, and a key-value head.
struct Task {
    rows: (usize, usize),
    kv_head: usize,
}

/// Lowers [`crate::Ops::paged_attention`].
///
/// # Safety
/// The step's contents have been checked. In a program that runs again, the sequences keep their rows.
pub(crate) unsafe fn lower(program: &mut Program, args: PagedAttention<'_>) -> Result<()> {
    let op = "paged_attention";
    let PagedAttention { q, k, v, kv, step, scale, window, softcap, out, lse } = args;
    let (&[rows, num_heads, head_dim], &[_, num_kv_heads, _]) = (q.shape().dims(), k.shape().dims()) else {
        return invalid(op, "q, k and v must be [rows, heads, head_dim]");
    };
    if head_dim % LANES != 0 {
        let what = format!("heads of {head_dim}, which is no multiple of {LANES}");
        return Err(DeviceError::Unsupported { device: "the CPU device".into(), what });
    }
    for kept in [q, k, v, &kv.k, &kv.v, &step.positions, &step.block_tables] {
        program.keep(kept);
    }
    let f16 = kv.k.dtype() == DType::F16;
    let cache = Cache {
        k: ptr::<u8>(&kv.k, op, "cache")?.0,
        v: ptr::<u8>(&kv.v, op, "cache")?.0,
        num_kv_heads,
        head_dim,
    };
    // SAFETY: the trait's contract.
    let starts = unsafe { slice::<u32>(&step.seq_starts, op, "sequence starts")? };
    let mut tasks = Vec::new();
    let mut seq_of_row = Vec::with_capacity(rows);
    for (seq, range) in starts.windows(2).enumerate() {
        let Some(&[first, end]) = range.first_chunk::<2>() else { continue };
        let (first, end) = (first as usize, end as usize);
        seq_of_row.extend(std::iter::repeat_n(seq as u32, end - first));
        let per_task = if end - first >= LONG_ROWS { LONG_ROWS_PER_TASK } else { ROWS_PER_TASK };
        for first in (first..end).step_by(per_task) {
            let rows = (first, end.min(first + per_task));
            tasks.extend((0..num_kv_heads).map(|kv_head| Task { rows, kv_head }));
        }
    }
    // Late rows have the longest contexts: start them first.
    tasks.reverse();
    let tables = ptr::<u32>(&step.block_tables, op, "block tables")?.0;
    let blocks = Arc::new(BlockTables { tables, max_blocks: step.key.max_blocks, seq_of_row });
    let positions = ptr::<u32>(&step.positions, op, "positions")?.0;
    let [q, k, v, out] = [(q, "q"), (k, "k"), (v, "v"), (out, "out")].map(|(t, n)| ptr::<f32>(t, op, n));
    let (q, k, v, out) = (q?.0, k?.0, v?.0, out?.0);
    let lse = match lse {
        Some(t) => ptr::<f32>(t, op, "lse")?.0,
        None => std::ptr::null_mut(),
    };

    let write = RowOp::WriteKv { k, v, cache, f16, positions, blocks: blocks.clone() };
    program.push(Phase::Rows(Rows::new(write, rows, num_kv_heads * head_dim)));
    program.push(Phase::Attention(Attention {
        q,
        out,
        lse,
        num_heads,
        cache,
        f16,
        scale,
        window,
        softcap,
        positions,
        blocks,
        tasks,
    }));
    Ok(())
}

impl Attention {
    /// # Safety
    /// As [`Program::run`].
    pub(crate) unsafe fn run(&self, env: &Env<'_>, worker: Worker<'_>) -> Ended {
        worker.each_of(self.tasks.len(), |i| {
            // SAFETY: the caller's; tasks write disjoint rows and heads.
            unsafe {
                if let Some(args) = self.task(i) {
                    attend(env.cpu.isa, self.f16, args, self.task(i + 1));
                }
            }
        })
    }

    unsafe fn task(&self, i: usize) -> Option<Attend<'_>> {
        let &Task { rows, kv_head } = self.tasks.get(i)?;
        let &seq = self.blocks.seq_of_row.get(rows.0)?;
        // SAFETY: the caller's: sequences and rows exist.
        let (table, position) =
            unsafe { (self.blocks.of_seq(seq as usize), *self.positions.add(rows.0) as usize) };
        Some(Attend {
            cache: self.cache,
            table,
            kv_head,
            group: self.num_heads / self.cache.num_kv_heads,
            q: self.q,
            out: self.out,
            lse: self.lse,
            num_heads: self.num_heads,
            rows,
            position,
            scale: self.scale,
            window: self.window,
            softcap: self.softcap,
        })
    }
}
