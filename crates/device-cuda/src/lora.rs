//! The adapters' part of linear layers.
//!
//! Steps of generation bring other factors with each row: `lora.cu` goes row by row. Steps with prompts bring long runs of rows of one
//! slot: `lora_mma.cu` takes runs, and leaves rows of short ones to `lora.cu`, by a list.

use std::sync::Arc;

use wardrobe_device::{LinearTarget, LoraBatch, LoraTable, Result, Tensor};

use crate::adapters::SlotEntries;
use crate::driver::{DevicePtr, Launch};
use crate::kernels::{LoraArgs, LoraTarget, ShortRowsArgs, blocks, element_type};
use crate::ops::{CudaOps, Room, addr, addr_or_null, int};

/// Layers of one launch.
pub(crate) const TARGETS: usize = 3;
/// Inputs of a split where rows go one by one.
const SPLIT_LEN: usize = 512;
/// Rows of a step from which on runs are looked for.
const MIN_ROWS_WITH_RUNS: usize = 160;
/// Rows from which on a run is worth a tile of its own.
const LONG_RUN: usize = 8;
/// Rows of a tile, and ranks of a slab, of `lora_mma.cu`.
const TILE_ROWS: usize = 64;
const SLAB_RANKS: usize = 16;
/// Outputs of a block that expands.
const BLOCK_FEATURES: usize = 256;
/// Blocks for rows in the list, of which nobody knows how many there are.
const LISTED_ROWS: usize = 64;

/// Layers whose products with A are queued: what is to be queued once the layers themselves are.
#[derive(Debug)]
pub(crate) struct Shrunk {
    by_row: LoraArgs,
    by_run: Option<LoraArgs>,
    num_rows: usize,
}

impl CudaOps {
    /// Queues the products with A. They need nothing of the layers, and go first: while they run, the layers' kernels come to the
    /// card and ask for their weights.
    pub(crate) fn queue_shrink(
        &mut self,
        x: &Tensor,
        targets: &[LinearTarget<'_>],
        lora: &LoraBatch<'_>,
    ) -> Result<Vec<Shrunk>> {
        let adapted: Vec<&LinearTarget<'_>> = targets.iter().filter(|t| t.module.is_some()).collect();
        if adapted.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.slot_entries(lora.table)?;
        let mut groups = Vec::new();
        let mut rest = adapted.as_slice();
        while let Some(first) = rest.first() {
            // What reads the same goes together.
            let same = rest.iter().take_while(|t| reads_the_same(t, first)).count();
            let (group, others) = rest.split_at(same.clamp(1, TARGETS));
            rest = others;
            let mut own = [LoraTarget::NONE; TARGETS];
            for (to, target) in own.iter_mut().zip(group) {
                *to = lora_target(x, target)?;
            }
            groups.push(LoraArgs {
                slots: addr("linear", "adapter slots", lora.slots)?,
                scales: addr("linear", "adapter scales", lora.scales)?,
                num_targets: int(group.len()),
                num_modules: int(lora.table.num_modules()),
                rows: int(x.shape().rows()),
                cols: int(x.shape().row_len()),
                ..LoraArgs::of(own, &entries)
            });
        }
        self.shrink_groups(groups)
    }

    /// What the slots of a table hold, as it is now.
    pub(crate) fn slot_entries(&mut self, table: &Arc<LoraTable>) -> Result<SlotEntries> {
        let (driver, stream) = (self.driver().clone(), self.stream());
        let is_recording = self.is_recording();
        let entries = self.slots.entries(&driver, stream, table, is_recording)?;
        if entries.has_grown {
            self.forget();
        }
        Ok(entries)
    }

    /// Queues the products with A of launches that lack room and cuts.
    pub(crate) fn shrink_groups(&mut self, groups: Vec<LoraArgs>) -> Result<Vec<Shrunk>> {
        let mut start = 0;
        let plans: Vec<(Shrunk, usize)> = groups
            .into_iter()
            .map(|args| {
                let (shrunk, bytes) = self.plan_group(args);
                let at = start;
                start += bytes.next_multiple_of(256);
                (shrunk, at)
            })
            .collect();
        let room = self.room(Room::Lora, start)?;
        plans.into_iter().map(|(shrunk, at)| self.shrink_group(shrunk.at(room.offset(at)))).collect()
    }

    /// How a group is cut, and the bytes of room that it needs.
    fn plan_group(&self, args: LoraArgs) -> (Shrunk, usize) {
        let (rows, cols) = (args.rows as usize, args.cols as usize);
        let (num_targets, max_rank) = (args.num_targets as usize, args.max_rank as usize);
        let by_row = LoraArgs { splits: int(cols.div_ceil(SPLIT_LEN)), split_len: int(SPLIT_LEN), ..args };
        let with_runs = rows >= MIN_ROWS_WITH_RUNS && !self.is_deterministic();
        let by_run = with_runs.then(|| self.cut_runs(args));
        let splits = by_run.map_or(0, |by_run| by_run.splits).max(by_row.splits) as usize;
        let num_rows = if with_runs { rows.min(LISTED_ROWS) } else { rows };
        (Shrunk { by_row, by_run, num_rows }, 4 * splits * rows * num_targets * max_rank + 4 * (1 + rows))
    }

    fn shrink_group(&mut self, shrunk: Shrunk) -> Result<Shrunk> {
        let Shrunk { by_row, by_run, .. } = &shrunk;
        if let Some(by_run) = by_run {
            let tiles = (by_run.rows as usize).div_ceil(TILE_ROWS);
            let shrink = self.kernels().get::<LoraArgs>("lora_mma", "lora_shrink_mma", 0)?;
            let short = self.kernels().get::<ShortRowsArgs>("lora", "lora_short_rows", 0)?;
            let slabs = (run_blocks(by_run) / tiles.max(1)) as u32;
            let launch =
                Launch { grid: [tiles as u32, by_run.splits as u32, slabs], block: 128, shared_bytes: 0 };
            let LoraArgs { slots, rows, long_run, .. } = *by_run;
            let short_args = ShortRowsArgs { slots, list: by_row.list, rows, long_run };
            let (driver, stream) = (self.driver().as_ref(), self.stream());
            // SAFETY: operands are as `Ops` promises; the kernels get what their comments ask for.
            unsafe {
                short.launch(driver, stream, blocks(1, 1024), &short_args)?;
                shrink.launch(driver, stream, launch, by_run)?;
            }
        }
        let shrink = self.kernels().get::<LoraArgs>("lora", "lora_shrink", 0)?;
        let launch = shrunk.launch_by_row(by_row.splits as usize);
        // SAFETY: as above.
        unsafe { shrink.launch(self.driver().as_ref(), self.stream(), launch, by_row)? };
        Ok(shrunk)
    }

    /// Adds the adapters' part to what the layers gave.
    pub(crate) fn queue_expand(&mut self, shrunk: &Shrunk) -> Result<()> {
        let Shrunk { by_row, by_run, .. } = shrunk;
        let features = feature_blocks(by_row);
        if let Some(by_run) = by_run {
            let tiles = (by_run.rows as usize).div_ceil(TILE_ROWS);
            let expand = self.kernels().get::<LoraArgs>("lora_mma", "lora_expand_mma", 0)?;
            let grid = [tiles as u32, features as u32, by_run.num_targets as u32];
            let launch = Launch { grid, block: 256, shared_bytes: 0 };
            // SAFETY: as above.
            unsafe { expand.launch(self.driver().as_ref(), self.stream(), launch, by_run)? };
        }
        let expand = self.kernels().get::<LoraArgs>("lora", "lora_expand", 0)?;
        let launch = shrunk.launch_by_row(features);
        // SAFETY: as above.
        unsafe { expand.launch(self.driver().as_ref(), self.stream(), launch, by_row) }
    }

    /// How the inputs are cut for runs: enough blocks for the card, and no more parts to add up than that takes.
    fn cut_runs(&self, args: LoraArgs) -> LoraArgs {
        let multiprocessors = self.driver().card().num_multiprocessors as usize;
        let wanted = (2 * multiprocessors).div_ceil(run_blocks(&args));
        let split_len = (args.cols as usize).div_ceil(wanted.max(1)).max(256).next_multiple_of(32);
        LoraArgs { splits: int((args.cols as usize).div_ceil(split_len)), split_len: int(split_len), ..args }
    }
}

impl Shrunk {
    /// The same with its room at this place.
    fn at(self, room: DevicePtr) -> Self {
        let Shrunk { by_row, by_run, num_rows } = self;
        let splits = by_run.map_or(0, |by_run| by_run.splits).max(by_row.splits);
        let low = [splits, by_row.rows, by_row.num_targets, by_row.max_rank].map(|n| n as usize);
        let list = by_run.map_or(DevicePtr::NULL, |_| room.offset(4 * low.iter().product::<usize>()));
        Shrunk {
            by_row: LoraArgs { low: room, list, ..by_row },
            by_run: by_run.map(|by_run| LoraArgs { low: room, ..by_run }),
            num_rows,
        }
    }

    fn launch_by_row(&self, blocks: usize) -> Launch {
        let grid = [self.num_rows as u32, blocks as u32, self.by_row.num_targets as u32];
        Launch { grid, block: 128, shared_bytes: 0 }
    }
}

/// Blocks of a launch that shrinks runs, for each split.
fn run_blocks(args: &LoraArgs) -> usize {
    let tiles = (args.rows as usize).div_ceil(TILE_ROWS);
    let slabs = args.num_targets as usize * (args.max_rank as usize).div_ceil(SLAB_RANKS);
    tiles * slabs.div_ceil(4)
}

/// Blocks of a launch that expands, for each row or tile and target.
fn feature_blocks(args: &LoraArgs) -> usize {
    let largest = args.targets.iter().map(|target| target.features).max().unwrap_or(0);
    (largest.max(0) as usize).div_ceil(BLOCK_FEATURES)
}

fn reads_the_same(a: &LinearTarget<'_>, b: &LinearTarget<'_>) -> bool {
    match (a.lora_x, b.lora_x) {
        (None, None) => true,
        (Some(a), Some(b)) => a.is_same_place(b),
        _ => false,
    }
}

fn lora_target(x: &Tensor, target: &LinearTarget<'_>) -> Result<LoraTarget> {
    let op = "linear";
    let read = target.lora_x.unwrap_or(x);
    Ok(LoraTarget {
        x: addr(op, "x", read)?,
        out: addr(op, "out", target.out)?,
        bias: addr_or_null(op, "bias", target.bias)?,
        residual: addr_or_null(op, "residual", target.residual)?,
        x_stride: read.shape().row_len() as u64,
        module: target.module.map_or(0, |module| module.0),
        features: int(target.weight.rows()),
        x_type: element_type(read.dtype()),
        unused: 0,
    })
}

impl LoraArgs {
    /// A launch over these, without rows so far.
    pub(crate) fn of(targets: [LoraTarget; TARGETS], entries: &SlotEntries) -> Self {
        LoraArgs {
            targets,
            entries: entries.entries,
            slots: DevicePtr::NULL,
            scales: DevicePtr::NULL,
            low: DevicePtr::NULL,
            list: DevicePtr::NULL,
            num_targets: 0,
            num_modules: 0,
            rows: 0,
            cols: 0,
            splits: 0,
            split_len: 0,
            max_rank: int(entries.max_rank),
            long_run: int(LONG_RUN),
        }
    }
}

impl LoraTarget {
    /// No layer.
    pub(crate) const NONE: LoraTarget = LoraTarget {
        x: DevicePtr::NULL,
        out: DevicePtr::NULL,
        bias: DevicePtr::NULL,
        residual: DevicePtr::NULL,
        x_stride: 0,
        module: 0,
        features: 0,
        x_type: 0,
        unused: 0,
    };
}
