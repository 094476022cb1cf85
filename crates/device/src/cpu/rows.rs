//! Phases that go row by row: small ops, several of which may follow each other on a row before the next row's turn.

use std::marker::PhantomData;
use std::sync::Arc;

use super::activations::{BLOCK_BYTES, GROUP_BLOCKS, TILE_ROWS, quantise_row};
use super::blocks::BLOCK;
use super::cache::{Cache, KvF16, KvF32, WriteRow};
use super::cpu_weight;

use super::isa::Kernel;
use super::program::Env;
use super::routing::{CombineRow, RoutingPlaces};
use super::rowwise::{Gelu, LayerNorm, RmsNorm, Rope, Scale, SiluMul, SoftCap};
use super::simd::Simd;
use super::team::{Ended, Worker};
use crate::row_ops::GeluKind;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// Most elements that a task works on, unless a row has more.
const MAX_TASK_ELEMENTS: usize = 16 * 1024;
/// Elements that are not worth a second thread.
const MAX_SMALL_ELEMENTS: usize = 1024;
/// Tasks of a thread where there are rows enough: one that was held up leaves the rest to others.
const TASKS_PER_THREAD: usize = 2;

/// A small op, with operands at row 0.
pub(crate) enum RowOp {
    /// [`crate::Ops::embed`].
    Embed { ids: *const u32, table: Weight, scale: f32, out: *mut f32 },
    /// [`crate::Ops::rms_norm`] of `runs` runs of `len` in a row; `residual` may be null.
    RmsNorm {
        x: *const f32,
        weight: *const f32,
        residual: *const f32,
        eps: f32,
        out: *mut f32,
        len: usize,
        runs: usize,
    },
    /// [`crate::Ops::layer_norm`].
    LayerNorm { x: *const f32, weight: *const f32, bias: *const f32, eps: f32, out: *mut f32, len: usize },
    /// [`crate::Ops::rope`] of one projection.
    Rope { x: *const f32, out: *mut f32, heads: usize, head_dim: usize, tables: Arc<RopeInputs> },
    /// Writes keys and values into the cache.
    WriteKv {
        k: *const f32,
        v: *const f32,
        cache: Cache,
        f16: bool,
        positions: *const u32,
        blocks: Arc<BlockTables>,
    },
    /// [`crate::Ops::silu_mul`].
    SiluMul { gate: *const f32, up: *const f32, out: *mut f32, len: usize },
    /// [`crate::Ops::gelu`]; `up` may be null.
    Gelu { x: *const f32, up: *const f32, kind: GeluKind, out: *mut f32, len: usize },
    /// [`crate::Ops::softcap`].
    SoftCap { x: *const f32, cap: f32, out: *mut f32, len: usize },
    /// [`crate::Ops::copy_columns`]: first column in a group, and length of a group.
    Columns {
        from: *const f32,
        from_group: (usize, usize),
        to: *mut f32,
        to_group: (usize, usize),
        groups: usize,
        width: usize,
    },
    /// Quantises for the linear op that follows; `halves` as in [`quantise_row`]. Rows for experts go to their experts' tiles.
    Quantise { x: *const f32, len: usize, halves: bool, experts: Option<RoutingPlaces> },
    /// [`crate::Ops::gather_rows`].
    Gather { x: *const f32, indices: *const u32, out: *mut f32, len: usize, num_rows: usize },
    /// [`crate::Ops::route`], but for the pairs' places.
    Route { logits: *const f32, routing: RoutingPlaces },
    /// [`crate::Ops::combine`].
    Combine {
        x: *const f32,
        routing: RoutingPlaces,
        weighted: bool,
        residual: *const f32,
        out: *mut f32,
        len: usize,
    },
    /// Copies bytes.
    Copy { from: *const u8, to: *mut u8, bytes: usize },
}

/// Where rows find their angles.
pub(crate) struct RopeInputs {
    pub(crate) positions: *const u32,
    pub(crate) rope_idx: *const u32,
    /// Each `[positions, half, 2]`.
    pub(crate) tables: Vec<Tensor>,
}
// SAFETY: places in tensors that outlive the program's runs; tasks write disjoint parts.
unsafe impl Send for RopeInputs {}
// SAFETY: as above.
unsafe impl Sync for RopeInputs {}

/// Where rows find their blocks.
pub(crate) struct BlockTables {
    /// `[seqs, max_blocks]`.
    pub(crate) tables: *const u32,
    pub(crate) max_blocks: usize,
    /// Sequence of each row.
    pub(crate) seq_of_row: Vec<u32>,
}

// SAFETY: places in tensors that outlive the program's runs; tasks write disjoint parts.
unsafe impl Send for BlockTables {}
// SAFETY: as above.
unsafe impl Sync for BlockTables {}

impl BlockTables {
    /// A sequence's blocks.
    pub(crate) unsafe fn of_seq(&self, seq: usize) -> &[u32] {
        // SAFETY: the sequence exists, by the caller.
        unsafe { std::slice::from_raw_parts(self.tables.add(seq * self.max_blocks), self.max_blocks) }
    }
}

/// Ops on each of `rows` rows.
pub(crate) struct Rows {
    ops: Vec<RowOp>,
    rows: usize,
    /// Elements of a row, for the size of tasks.
    len: usize,
    /// Each thread has a part of the columns: those that a linear op gave it, which are in its cache.
    by_columns: bool,
}

impl Rows {
    pub(crate) fn new(op: RowOp, rows: usize, len: usize) -> Self {
        let by_columns = matches!(op, RowOp::SiluMul { .. } | RowOp::Gelu { .. } | RowOp::SoftCap { .. });
        Rows { ops: vec![op], rows, len, by_columns }
    }

    /// Appends another phase's ops, if no row of it needs another row of this one; else gives it back.
    pub(crate) fn join(&mut self, other: Rows) -> Result<(), Rows> {
        let is_local = |op: &RowOp| op.reads_rows_of_others().is_none();
        let takes_columns = |op: &RowOp| match op {
            RowOp::SiluMul { len, .. }
            | RowOp::Gelu { len, .. }
            | RowOp::SoftCap { len, .. }
            | RowOp::Quantise { len, .. } => *len == self.len,
            _ => false,
        };
        let mut pairs = other.ops.iter().flat_map(|b| self.ops.iter().map(move |a| (a, b)));
        let joins = self.rows == other.rows
            && other.ops.iter().all(is_local)
            && pairs.all(|(a, b)| a.keeps_rows_apart(b, self.rows))
            && if self.by_columns { other.ops.iter().all(takes_columns) } else { !other.by_columns };
        if !joins {
            return Err(other);
        }
        self.ops.extend(other.ops);
        self.len = self.len.max(other.len);
        Ok(())
    }

    /// Whether one thread is done with it before another has come.
    pub(crate) fn is_small(&self) -> bool {
        self.rows * self.len <= MAX_SMALL_ELEMENTS
    }

    /// # Safety
    /// As [`super::program::Program::run`].
    pub(crate) unsafe fn run(&self, env: &Env<'_>, worker: Worker<'_>) -> Ended {
        let num_workers = worker.num_workers();
        let tasks_wanted = if self.by_columns { TASKS_PER_THREAD } else { TASKS_PER_THREAD * num_workers };
        let per_task =
            self.rows.div_ceil(tasks_wanted).min((MAX_TASK_ELEMENTS / self.len.max(1)).max(1)).max(1);
        let num_pieces = self.rows.div_ceil(per_task);
        let run = |piece: usize, cols: (usize, usize)| {
            for row in piece * per_task..self.rows.min((piece + 1) * per_task) {
                for op in &self.ops {
                    // SAFETY: the caller's; tasks have rows or columns of their own.
                    unsafe { op.run(env, row, cols) };
                }
            }
        };
        if self.by_columns {
            let unit = GROUP_BLOCKS * BLOCK;
            let first = |worker: usize| self.len.min(worker * self.len.div_ceil(unit) / num_workers * unit);
            worker.each(|_| num_pieces, |owner, piece| run(piece, (first(owner), first(owner + 1))))
        } else {
            worker.each_of(num_pieces, |piece| run(piece, (0, self.len)))
        }
    }
}

/// Rows in memory that an op reads or writes.
#[derive(Clone, Copy, PartialEq)]
struct Place {
    addr: usize,
    row_bytes: usize,
}

impl Place {
    fn of<T>(p: *const T, row_len: usize) -> Self {
        Place { addr: p.addr(), row_bytes: row_len * size_of::<T>() }
    }

    /// Whether no row of one overlaps another row of the other.
    fn is_apart(&self, other: &Place, rows: usize) -> bool {
        let end = |p: &Place| p.addr + rows * p.row_bytes;
        self == other || end(self) <= other.addr || end(other) <= self.addr
    }

    /// Whether this single row overlaps none of the other's rows.
    fn is_apart_from_all(&self, other: &Place, rows: usize) -> bool {
        self.addr + self.row_bytes <= other.addr || other.addr + rows * other.row_bytes <= self.addr
    }
}

impl RowOp {
    /// What it reads and writes in the arena: scopes reuse its memory, so that one op's output may lie where another's
    /// input lay.
    fn places(&self) -> ([Option<Place>; 2], Option<Place>) {
        match *self {
            RowOp::Embed { out, ref table, .. } => ([None, None], Some(Place::of(out, table.cols()))),
            RowOp::RmsNorm { x, residual, out, len, runs, .. } => {
                let residual = (!residual.is_null()).then(|| Place::of(residual, len * runs));
                ([Some(Place::of(x, len * runs)), residual], Some(Place::of(out, len * runs)))
            }
            RowOp::LayerNorm { x, out, len, .. } | RowOp::SoftCap { x, out, len, .. } => {
                ([Some(Place::of(x, len)), None], Some(Place::of(out, len)))
            }
            RowOp::Gelu { x, up, out, len, .. } => {
                let up = (!up.is_null()).then(|| Place::of(up, len));
                ([Some(Place::of(x, len)), up], Some(Place::of(out, len)))
            }
            RowOp::Columns { from, from_group, to, to_group, groups, .. } => {
                let (from, to) = (Place::of(from, groups * from_group.1), Place::of(to, groups * to_group.1));
                ([Some(from), None], Some(to))
            }
            RowOp::Rope { x, out, heads, head_dim, .. } => {
                ([Some(Place::of(x, heads * head_dim)), None], Some(Place::of(out, heads * head_dim)))
            }
            RowOp::WriteKv { k, v, cache, .. } => {
                let len = cache.num_kv_heads * cache.head_dim;
                ([Some(Place::of(k, len)), Some(Place::of(v, len))], None)
            }
            RowOp::SiluMul { gate, up, out, len } => {
                ([Some(Place::of(gate, len)), Some(Place::of(up, len))], Some(Place::of(out, len)))
            }
            RowOp::Quantise { x, len, .. } => ([Some(Place::of(x, len)), None], None),
            RowOp::Gather { out, len, .. } => ([None, None], Some(Place::of(out, len))),
            RowOp::Route { logits, routing } => ([Some(Place::of(logits, routing.num_experts)), None], None),
            RowOp::Combine { residual, out, len, .. } => {
                ([Some(Place::of(residual, len)), None], Some(Place::of(out, len)))
            }
            RowOp::Copy { from, to, bytes } => {
                ([Some(Place::of(from, bytes)), None], Some(Place::of(to, bytes)))
            }
        }
    }

    /// What is read at rows of which the op's own row says nothing: all of it, as the place of a single row.
    fn reads_rows_of_others(&self) -> Option<Place> {
        match *self {
            RowOp::Gather { x, len, num_rows, .. } => Some(Place::of(x, num_rows * len)),
            RowOp::Combine { x, routing, len, .. } => {
                Some(Place::of(x, routing.num_rows * routing.top_k * len))
            }
            _ => None,
        }
    }

    /// Whether each row of `later` may follow the same row of this op at once, whatever the other rows do.
    fn keeps_rows_apart(&self, later: &RowOp, rows: usize) -> bool {
        let (reads, write) = self.places();
        let (later_reads, later_write) = later.places();
        let apart = |a: Option<Place>, b: Option<Place>| match (a, b) {
            (Some(a), Some(b)) => a.is_apart(&b, rows),
            _ => true,
        };
        let spares = |all: Place| later_write.is_none_or(|w| all.is_apart_from_all(&w, rows));
        self.reads_rows_of_others().is_none_or(spares)
            && later_reads.into_iter().all(|read| apart(write, read))
            && reads.into_iter().chain([write]).all(|place| apart(place, later_write))
    }

    /// Works on a row; what threads take by columns, and [`RowOp::Quantise`], only on columns `first..end` of it.
    #[inline]
    unsafe fn run(&self, env: &Env<'_>, row: usize, (first, end): (usize, usize)) {
        let isa = env.cpu.isa;
        // SAFETY: rows and extents are the caller's.
        unsafe {
            match *self {
                RowOp::Embed { ids, ref table, scale, out } => {
                    let (Ok(weight), id) = (cpu_weight(table), *ids.add(row) as usize) else { return };
                    if id < weight.rows {
                        let out = out.add(row * weight.cols);
                        weight.row(id, std::slice::from_raw_parts_mut(out, weight.cols));
                        if scale != 1.0 {
                            isa.run(Scale { values: out, factor: scale, len: weight.cols });
                        }
                    }
                }
                RowOp::RmsNorm { x, weight, residual, eps, out, len, runs } => {
                    for at in (row * runs..(row + 1) * runs).map(|run| run * len) {
                        let residual = if residual.is_null() { residual } else { residual.add(at) };
                        isa.run(RmsNorm { x: x.add(at), weight, residual, out: out.add(at), len, eps });
                    }
                }
                RowOp::LayerNorm { x, weight, bias, eps, out, len } => {
                    let (x, out) = (x.add(row * len), out.add(row * len));
                    isa.run(LayerNorm { x, weight, bias, out, len, eps });
                }
                RowOp::Rope { x, out, heads, head_dim, ref tables } => {
                    let Some(angles) = tables.angles(row) else { return };
                    let at = row * heads * head_dim;
                    isa.run(Rope { x: x.add(at), out: out.add(at), heads, head_dim, angles, back: false });
                }
                RowOp::WriteKv { k, v, cache, f16, positions, ref blocks } => {
                    let Some(&seq) = blocks.seq_of_row.get(row) else { return };
                    let table = blocks.of_seq(seq as usize);
                    let position = *positions.add(row) as usize;
                    let at = row * cache.num_kv_heads * cache.head_dim;
                    let (k, v) = (k.add(at), v.add(at));
                    if f16 {
                        isa.run(WriteRow::<KvF16> { element: PhantomData, cache, table, position, k, v });
                    } else {
                        isa.run(WriteRow::<KvF32> { element: PhantomData, cache, table, position, k, v });
                    }
                }
                RowOp::SiluMul { gate, up, out, len } => {
                    let at = row * len + first;
                    let (gate, up, out) = (gate.add(at), up.add(at), out.add(at));
                    isa.run(SiluMul { gate, up, out, len: end - first });
                }
                RowOp::Gelu { x, up, kind, out, len } => {
                    let at = row * len + first;
                    let up = if up.is_null() { up } else { up.add(at) };
                    isa.run(Gelu { x: x.add(at), up, kind, out: out.add(at), len: end - first });
                }
                RowOp::SoftCap { x, cap, out, len } => {
                    let at = row * len + first;
                    isa.run(SoftCap { x: x.add(at), cap, out: out.add(at), len: end - first });
                }
                RowOp::Columns { from, from_group, to, to_group, groups, width } => {
                    for group in row * groups..(row + 1) * groups {
                        let from = from.add(group * from_group.1 + from_group.0);
                        to.add(group * to_group.1 + to_group.0).copy_from_nonoverlapping(from, width);
                    }
                }
                RowOp::Quantise { x, len, halves, experts } => {
                    let to = env.activations(len);
                    let (quants, meta) = to.row(experts.map_or(row, |routing| routing.tiled_row(row)));
                    let block = first / BLOCK;
                    isa.run(Quantise {
                        x: x.add(row * len + first),
                        num_blocks: end.min(len) / BLOCK - block,
                        quants: quants.cast_mut().add(block * TILE_ROWS * BLOCK_BYTES),
                        meta: meta.cast_mut().add(block * TILE_ROWS),
                        halves,
                    });
                }
                RowOp::Gather { x, indices, out, len, num_rows } => {
                    let from = *indices.add(row) as usize;
                    if from < num_rows {
                        out.add(row * len).copy_from_nonoverlapping(x.add(from * len), len);
                    }
                }
                RowOp::Route { logits, routing } => routing.route_row(logits, row),
                RowOp::Combine { x, routing, weighted, residual, out, len } => {
                    let (places, weights) = routing.of_row(row);
                    let weights = if weighted { weights } else { &[] };
                    let residual =
                        if residual.is_null() { residual } else { residual.wrapping_add(row * len) };
                    isa.run(CombineRow { x, places, weights, residual, out: out.add(row * len), len });
                }
                RowOp::Copy { from, to, bytes } => {
                    to.add(row * bytes).copy_from_nonoverlapping(from.add(row * bytes), bytes);
                }
            }
        }
    }
}

impl RopeInputs {
    /// `[half, 2]`: a row's cosines and sines.
    pub(super) unsafe fn angles(&self, row: usize) -> Option<&[f32]> {
        // SAFETY: the caller's; tables are F32 and written only before they are used.
        unsafe {
            let table = self.tables.get(*self.rope_idx.add(row) as usize)?;
            let width = table.shape().row_len();
            let position = *self.positions.add(row) as usize;
            let first = std::ptr::with_exposed_provenance::<f32>(table.addr("rope", "table").ok()?);
            (position < table.shape().rows())
                .then(|| std::slice::from_raw_parts(first.add(position * width), width))
        }
    }
}

struct Quantise {
    x: *const f32,
    num_blocks: usize,
    quants: *mut i8,
    meta: *mut super::activations::BlockMeta,
    halves: bool,
}

impl Kernel for Quantise {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's.
        unsafe { quantise_row::<S>(self.x, self.num_blocks, self.quants, self.meta, self.halves) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 4;
    const ROW_BYTES: usize = 64;

    /// Copies rows between places that nobody looks at.
    fn copy(from: usize, to: usize) -> RowOp {
        let (from, to) = (std::ptr::without_provenance(from), std::ptr::without_provenance_mut(to));
        RowOp::Copy { from, to, bytes: ROW_BYTES }
    }

    fn joins(first: RowOp, second: RowOp) -> bool {
        Rows::new(first, ROWS, 16).join(Rows::new(second, ROWS, 16)).is_ok()
    }

    #[test]
    fn ops_join_where_rows_stay_apart() {
        let (a, b, c) = (0x1000, 0x2000, 0x3000);
        assert!(joins(copy(a, b), copy(b, c)), "reads what the same row wrote");
        assert!(joins(copy(a, b), copy(c, a)), "writes where the same row read");
        assert!(joins(copy(a, b), copy(a, c)), "reads what the same row read");
        let other_row = |place: usize| place + ROW_BYTES;
        assert!(!joins(copy(a, b), copy(other_row(b), c)), "reads what another row wrote");
        assert!(!joins(copy(a, b), copy(c, other_row(a))), "writes where another row reads");
        assert!(!joins(copy(a, b), copy(c, other_row(b))), "writes where another row writes");
        assert!(!joins(copy(a, b), copy(c, b + ROW_BYTES / 2)), "writes across rows");
        assert!(joins(copy(a, b), copy(c, b + ROWS * ROW_BYTES)), "the place after the last row");
    }

    #[test]
    fn other_rows_and_gathers_do_not_join() {
        let mut rows = Rows::new(copy(0x1000, 0x2000), ROWS, 16);
        assert!(rows.join(Rows::new(copy(0x2000, 0x3000), ROWS - 1, 16)).is_err());
        let (x, out) = (std::ptr::without_provenance(0x2000), std::ptr::without_provenance_mut(0x3000));
        let gather = RowOp::Gather { x, indices: std::ptr::null(), out, len: 16, num_rows: ROWS };
        assert!(rows.join(Rows::new(gather, ROWS, 16)).is_err());
        assert!(rows.join(Rows::new(copy(0x2000, 0x3000), ROWS, 16)).is_ok());
    }
}
