//! The paged attention op: writes the step's keys and values, then cuts the queries into tasks.

use std::marker::PhantomData;

use super::attention::{Attend, attend};
use super::cache::{Cache, KvF16, KvF32, WriteRow};
use super::simd::LANES;
use super::{Cpu, ptr, slice};
use crate::DType;
use crate::error::{DeviceError, Result, invalid};
use crate::ops::PagedAttention;

/// Rows of a long prompt are cut so that a task is a few whole groups of query vectors.
const ROWS_PER_TASK: usize = 16;

/// One sequence of a step.
struct Seq<'a> {
    rows: (usize, usize),
    context: usize,
    table: &'a [u32],
}

impl Seq<'_> {
    /// Position of a row of the step.
    fn position(&self, row: usize) -> usize {
        self.context - (self.rows.1 - row)
    }
}

struct SendCache(Cache);
// SAFETY: tasks write disjoint positions, or only read.
unsafe impl Sync for SendCache {}

impl SendCache {
    fn get(&self) -> &Cache {
        &self.0
    }
}

/// See [`crate::Ops::paged_attention`].
///
/// # Safety
/// As [`crate::Ops`].
pub(crate) unsafe fn paged_attention(cpu: &Cpu, args: PagedAttention<'_>) -> Result<()> {
    let op = "paged_attention";
    let PagedAttention { q, k, v, kv, step, scale, window, out } = args;
    let (&[_, num_heads, head_dim], &[_, num_kv_heads, _]) = (q.shape().dims(), k.shape().dims()) else {
        return invalid(op, "q, k and v must be [rows, heads, head_dim]");
    };
    if head_dim % LANES != 0 {
        let what = format!("heads of {head_dim}, which is no multiple of {LANES}");
        return Err(DeviceError::Unsupported { device: "the CPU device".into(), what });
    }
    let f16 = kv.k.dtype() == DType::F16;
    let cache = Cache {
        k: ptr::<u8>(&kv.k, op, "cache")?.0,
        v: ptr::<u8>(&kv.v, op, "cache")?.0,
        num_kv_heads,
        head_dim,
    };
    // SAFETY: the trait's contract.
    let (starts, contexts, tables) = unsafe {
        (
            slice::<u32>(&step.seq_starts, op, "sequence starts")?,
            slice::<u32>(&step.context_lens, op, "contexts")?,
            slice::<u32>(&step.block_tables, op, "block tables")?,
        )
    };
    let max_blocks = step.key.max_blocks;
    let seqs: Vec<Seq<'_>> = starts
        .windows(2)
        .zip(contexts)
        .zip(tables.chunks(max_blocks.max(1)))
        .filter_map(|((range, &context), table)| {
            let &[first, end] = range.first_chunk::<2>()?;
            Some(Seq { rows: (first as usize, end as usize), context: context as usize, table })
        })
        .collect();
    let [q, k, v, out] = [(q, "q"), (k, "k"), (v, "v"), (out, "out")].map(|(t, n)| ptr::<f32>(t, op, n));
    let (q, k, v, out) = (q?, k?, v?, out?);
    let cache = SendCache(cache);

    let kv_len = num_kv_heads * head_dim;
    let write = |seq: &Seq<'_>, row: usize| {
        let position = seq.position(row);
        // SAFETY: the trait's contract: no two rows of a step have the same place in the cache.
        unsafe {
            let (k, v) = (k.get().add(row * kv_len), v.get().add(row * kv_len));
            let (cache, table) = (*cache.get(), seq.table);
            if f16 {
                cpu.isa.run(WriteRow::<KvF16> { element: PhantomData, cache, table, position, k, v });
            } else {
                cpu.isa.run(WriteRow::<KvF32> { element: PhantomData, cache, table, position, k, v });
            }
        }
    };
    let writes: Vec<(usize, usize)> =
        seqs.iter().enumerate().flat_map(|(s, seq)| (seq.rows.0..seq.rows.1).map(move |r| (s, r))).collect();
    cpu.for_rows(writes.len(), kv_len, |i| {
        if let Some((seq, row)) = writes.get(i).and_then(|&(s, r)| Some((seqs.get(s)?, r))) {
            write(seq, row);
        }
    });

    let mut tasks = Vec::new();
    for seq in &seqs {
        for first in (seq.rows.0..seq.rows.1).step_by(ROWS_PER_TASK) {
            let rows = (first, seq.rows.1.min(first + ROWS_PER_TASK));
            tasks.extend((0..num_kv_heads).map(|head| (seq, rows, head)));
        }
    }
    // Late rows have the longest contexts: start them first.
    tasks.reverse();
    let task = |i: usize| {
        let &(seq, rows, kv_head) = tasks.get(i)?;
        Some(Attend {
            cache: *cache.get(),
            table: seq.table,
            kv_head,
            group: num_heads / num_kv_heads,
            q: q.get(),
            out: out.get(),
            num_heads,
            rows,
            position: seq.position(rows.0),
            scale,
            window,
        })
    };
    cpu.pool.run(tasks.len(), &|i| {
        let Some(args) = task(i) else { return };
        // SAFETY: the trait's contract; tasks write disjoint rows and heads.
        unsafe { attend(cpu.isa, f16, args, task(i + 1)) };
    });
    Ok(())
}
