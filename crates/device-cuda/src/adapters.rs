//! What adapter slots hold, in a table on the card that recorded steps read: pointers to the factors, rank and scale of each module of
//! each slot. A slot that was bound anew is written again between two steps; nothing is recorded again for it.

use std::sync::Arc;

use wardrobe_device::{BoundAdapter, DeviceError, LoraTable, Result, Tensor};

use crate::driver::{DevicePtr, Driver, Stream};
use crate::kernels::element_type;
use crate::memory::DeviceMemory;

/// A module of a slot; the twin of `LoraEntry` in `kernels/lib/lora.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    a: u64,
    b: u64,
    out_scale: u64,
    scale: f32,
    /// 0 leaves the module alone.
    rank: u32,
    element_type: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Entry>() == 40);

impl Entry {
    fn to_bytes(self) -> [u8; size_of::<Entry>()] {
        let mut bytes = [0; size_of::<Entry>()];
        let words = [self.a, self.b, self.out_scale].map(u64::to_le_bytes).into_iter().flatten();
        let halves = [self.scale.to_bits(), self.rank, self.element_type, self.padding];
        let halves = halves.map(u32::to_le_bytes).into_iter().flatten();
        bytes.iter_mut().zip(words.chain(halves)).for_each(|(to, from)| *to = from);
        bytes
    }
}

/// A table of slots on the card.
#[derive(Debug)]
struct SlotTable {
    of: Arc<LoraTable>,
    /// `[slots, modules]`.
    entries: Arc<DeviceMemory>,
    versions: Vec<u64>,
    /// What the entries point to.
    held: Vec<Option<BoundAdapter>>,
    max_rank: usize,
}

/// The tables of one context's steps.
#[derive(Debug, Default)]
pub(crate) struct SlotTables {
    tables: Vec<SlotTable>,
}

/// What a launch needs of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotEntries {
    pub(crate) entries: DevicePtr,
    /// No rank is larger, nor will be in recorded steps.
    pub(crate) max_rank: usize,
    /// A larger rank has come, for which recorded steps have no room.
    pub(crate) has_grown: bool,
}

/// Ranks are bounded in powers of two from here on, so that other adapters rarely change the shape of a step.
const MIN_RANK_BOUND: usize = 16;

impl SlotTables {
    /// Brings what has changed since the last step to the card. `true` if a larger rank came, for which recorded steps have no room.
    pub(crate) fn sync(&mut self, driver: &Arc<dyn Driver>, stream: Stream) -> Result<bool> {
        // Who made the table is gone, and nobody else will use it.
        self.tables.retain(|table| Arc::strong_count(&table.of) > 1);
        let mut has_grown = false;
        for table in &mut self.tables {
            has_grown |= table.sync(driver, stream)?;
        }
        Ok(has_grown)
    }

    /// A table that may not have been seen before; as it is now, unless a step is being recorded, which began with that.
    pub(crate) fn entries(
        &mut self,
        driver: &Arc<dyn Driver>,
        stream: Stream,
        of: &Arc<LoraTable>,
        is_recording: bool,
    ) -> Result<SlotEntries> {
        let found = self.tables.iter().position(|table| Arc::ptr_eq(&table.of, of));
        let idx = match found {
            Some(idx) => idx,
            None if is_recording => {
                let reason = "a table of adapter slots that is new while a step is recorded".to_owned();
                return Err(DeviceError::Invalid { op: "linear", reason });
            }
            None => {
                let num_slots = of.versions().len();
                let bytes = num_slots * of.num_modules() * size_of::<Entry>();
                let entries = DeviceMemory::new(driver, "the table of adapter slots", bytes.max(1))?;
                // SAFETY: ours, with these bytes.
                unsafe { driver.clear(stream, entries.ptr(), bytes)? };
                let (versions, held) = (vec![0; num_slots], vec![None; num_slots]);
                self.tables.push(SlotTable {
                    of: of.clone(),
                    entries,
                    versions,
                    held,
                    max_rank: MIN_RANK_BOUND,
                });
                self.tables.len() - 1
            }
        };
        let Some(table) = self.tables.get_mut(idx) else {
            return Ok(SlotEntries { entries: DevicePtr::NULL, max_rank: 0, has_grown: false });
        };
        let has_grown = !is_recording && table.sync(driver, stream)?;
        Ok(SlotEntries { entries: table.entries.ptr(), max_rank: table.max_rank, has_grown })
    }
}

impl SlotTable {
    fn sync(&mut self, driver: &Arc<dyn Driver>, stream: Stream) -> Result<bool> {
        let mut has_grown = false;
        let row_bytes = self.of.num_modules() * size_of::<Entry>();
        let slots = self.of.versions().into_iter().zip(&mut self.versions).zip(&mut self.held);
        for (slot, ((version, written), held)) in slots.enumerate() {
            if version == *written {
                continue;
            }
            let adapter = self.of.adapter(slot as u32);
            let mut row = Vec::with_capacity(row_bytes);
            for module in 0..self.of.num_modules() {
                row.extend_from_slice(&entry(adapter.as_ref(), module)?.to_bytes());
            }
            // SAFETY: a row of the table; what it points to is kept in `held`.
            unsafe { driver.write(stream, self.entries.ptr().offset(slot * row_bytes), &row)? };
            let rank = adapter.as_ref().map_or(0, |a| a.max_rank);
            if rank > self.max_rank {
                self.max_rank = rank.next_power_of_two();
                has_grown = true;
            }
            *held = adapter;
            *written = version;
        }
        Ok(has_grown)
    }
}

fn entry(adapter: Option<&BoundAdapter>, module: usize) -> Result<Entry> {
    let Some(factors) = adapter.and_then(|adapter| adapter.modules.get(module)?.as_ref()) else {
        return Ok(Entry::default());
    };
    let addr = |operand, tensor: &Tensor| Ok(tensor.addr("linear", operand)? as u64);
    Ok(Entry {
        a: addr("A", &factors.a)?,
        b: addr("B", &factors.b)?,
        out_scale: factors.out_scale.as_ref().map_or(Ok(0), |scale| addr("output scale", scale))?,
        scale: factors.scale,
        rank: factors.rank() as u32,
        element_type: element_type(factors.a.dtype()),
        padding: 0,
    })
}
