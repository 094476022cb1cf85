//! RoPE tables of adapters that bring their own scaling.
//!
//! The loader makes a table, the adapter holds it, and the executor reads its rows under the number that its scaling has.
//! A scaling keeps its number for good, since generations remember it while their memory comes and goes; its table is
//! shared by all adapters of that scaling, and goes with the last of them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use wardrobe_device::{Ctx, DeviceError, RopeTables, Tensor};
use wardrobe_models::{RopeSpec, rope_table};

/// The base model's number.
pub(super) const BASE: u32 = 0;
/// Different scalings that one loader has met, at most.
pub(super) const MAX_SCALINGS: usize = 256;

/// A table beside the base model's.
#[derive(Debug)]
pub(super) struct AdapterRopeTable {
    /// From 1 on.
    pub(super) idx: u32,
    /// `[positions, rotary_dim / 2, 2]`.
    pub(super) tensor: Tensor,
}

/// A RoPE table, cosines and sines for `num_positions` positions, on the device.
pub(super) fn upload(ctx: &mut Ctx, spec: &RopeSpec, num_positions: usize) -> Result<Tensor, DeviceError> {
    let shape = [num_positions, spec.rotary_dim / 2, 2];
    ctx.upload_f32("the RoPE table", shape, &rope_table(spec, num_positions))
}

/// The scalings that a loader has met: number `i + 1`, and its table while an adapter holds it.
#[derive(Debug, Default)]
pub(super) struct AdapterScalings {
    met: Mutex<Vec<(RopeSpec, Weak<AdapterRopeTable>)>>,
}

impl AdapterScalings {
    /// The table for `spec`: the one that another adapter holds, or a new one; `None` if there are too many scalings.
    pub(super) fn table(
        &self,
        ctx: &mut Ctx,
        spec: RopeSpec,
        num_positions: usize,
    ) -> Result<Option<Arc<AdapterRopeTable>>, DeviceError> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let at = met.iter().position(|(known, _)| *known == spec).unwrap_or(met.len());
        if let Some(table) = met.get(at).and_then(|(_, table)| table.upgrade()) {
            return Ok(Some(table));
        }
        if at >= MAX_SCALINGS {
            return Ok(None);
        }
        let table =
            Arc::new(AdapterRopeTable { idx: at as u32 + 1, tensor: upload(ctx, &spec, num_positions)? });
        match met.get_mut(at) {
            Some((_, held)) => *held = Arc::downgrade(&table),
            None => met.push((spec, Arc::downgrade(&table))),
        }
        Ok(Some(table))
    }
}

/// The tables of the adapters in the slots, and the base model's, as steps use them.
#[derive(Debug)]
pub(super) struct BoundRope {
    /// By number; the base model's where no slot's adapter has it.
    pub(super) tables: RopeTables,
    slots: Vec<Option<Arc<AdapterRopeTable>>>,
    /// What slots hold, by number from 1 on.
    bound: Vec<Option<Arc<AdapterRopeTable>>>,
}

impl BoundRope {
    pub(super) fn new(base: Tensor, num_slots: usize) -> Self {
        let tables = RopeTables { tables: vec![base] };
        BoundRope { tables, slots: vec![None; num_slots], bound: Vec::new() }
    }

    /// Gives a slot its adapter's table. Whether [`BoundRope::tables`] changed: recorded steps refer to the old ones.
    #[must_use]
    pub(super) fn set(&mut self, slot: usize, table: Option<Arc<AdapterRopeTable>>) -> bool {
        let Some(entry) = self.slots.get_mut(slot) else { return false };
        if entry.is_none() && table.is_none() {
            return false;
        }
        *entry = table;
        let in_slots = || self.slots.iter().flatten();
        let most = in_slots().map(|table| table.idx).max().unwrap_or(BASE);
        let bound: Vec<_> = (1..=most).map(|idx| in_slots().find(|t| t.idx == idx).cloned()).collect();
        let same = |a: &Option<Arc<_>>, b: &Option<Arc<_>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if bound.len() == self.bound.len() && bound.iter().zip(&self.bound).all(|(a, b)| same(a, b)) {
            return false;
        }
        self.tables.tables.truncate(1);
        if let Some(base) = self.tables.tables.first().cloned() {
            let tensor = |t: &Option<Arc<AdapterRopeTable>>| t.as_ref().map_or(&base, |t| &t.tensor).clone();
            self.tables.tables.extend(bound.iter().map(tensor));
        }
        self.bound = bound;
        true
    }
}
