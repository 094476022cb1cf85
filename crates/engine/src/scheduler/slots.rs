//! Adapter slots: which generation is on the device, and how many running sequences use it.
//!
//! Invariants: a slot with running sequences is never rebound; a pinned generation keeps its slot; a slot whose
//! generation is gone (unloaded, replaced, evicted from host memory) and unused is cleared.

use std::sync::Arc;

use crate::adapter::PreparedAdapter;
use crate::adapter::generation::{Lease, Residency};
use crate::adapter::registry::AdapterRegistry;
use crate::error::AdapterError;
use crate::ids::{GenerationId, SlotIdx};

#[derive(Clone, Copy, Default)]
struct Slot {
    generation: Option<GenerationId>,
    /// Running sequences.
    users: usize,
    last_used: u64,
}

/// An adapter to put into a slot before the step.
pub(crate) struct SlotBind {
    pub slot: SlotIdx,
    pub adapter: Arc<dyn PreparedAdapter>,
    /// The slot holds another adapter, which has to leave first.
    pub clear_first: bool,
}

/// What asking for a slot gives.
pub(crate) enum SlotAnswer {
    /// The adapter is in this slot.
    Ready(SlotIdx),
    /// The adapter will be in its slot once this is done.
    Bind(SlotBind),
    /// All slots are in use.
    NoneFree,
    /// The adapter is being read from disk.
    NotResident,
    /// The adapter cannot be had.
    Failed(AdapterError),
}

pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    registry: Arc<AdapterRegistry>,
    clock: u64,
    departures_seen: u64,
}

impl SlotTable {
    pub fn new(num_slots: usize, registry: Arc<AdapterRegistry>) -> Self {
        Self { slots: vec![Slot::default(); num_slots], registry, clock: 0, departures_seen: 0 }
    }

    /// Gives one more running sequence the slot of its generation.
    pub fn acquire(&mut self, lease: &Lease) -> SlotAnswer {
        let wanted = Some(lease.generation.id);
        self.clock += 1;
        if let Some((slot, state)) = enumerate(&mut self.slots).find(|(_, s)| s.generation == wanted) {
            state.users += 1;
            state.last_used = self.clock;
            return SlotAnswer::Ready(slot);
        }
        let adapter = match lease.residency() {
            Residency::Ready(adapter) => adapter,
            Residency::Loading => return SlotAnswer::NotResident,
            Residency::Failed(error) => return SlotAnswer::Failed(error),
        };
        let registry = &self.registry;
        let may_leave =
            |s: &Slot| s.users == 0 && !s.generation.is_some_and(|generation| registry.is_pinned(generation));
        // An empty slot first, then the one that was used longest ago.
        let chosen = enumerate(&mut self.slots)
            .filter(|(_, s)| may_leave(s))
            .min_by_key(|(slot, s)| (s.generation.is_some(), s.last_used, *slot));
        let Some((slot, state)) = chosen else { return SlotAnswer::NoneFree };
        let old = std::mem::replace(state, Slot { generation: wanted, users: 1, last_used: self.clock });
        if let Some(old) = old.generation {
            registry.set_in_slot(old, false);
        }
        registry.set_in_slot(lease.generation.id, true);
        SlotAnswer::Bind(SlotBind { slot, adapter, clear_first: old.generation.is_some() })
    }

    /// One running sequence less.
    pub fn release(&mut self, slot: SlotIdx) {
        if let Some(state) = self.slots.get_mut(slot.0 as usize) {
            debug_assert!(state.users > 0, "slot {slot} released without a user");
            state.users = state.users.saturating_sub(1);
        }
    }

    /// The slot's adapter could not be bound: it is empty once its sequences have released it.
    pub fn unbind(&mut self, slot: SlotIdx) {
        if let Some(generation) =
            self.slots.get_mut(slot.0 as usize).and_then(|state| state.generation.take())
        {
            self.registry.set_in_slot(generation, false);
        }
    }

    /// Slots to clear, because their generation is gone and nobody uses it.
    pub fn sweep(&mut self) -> Vec<SlotIdx> {
        let departures = self.registry.departures();
        if departures == self.departures_seen {
            return Vec::new();
        }
        self.departures_seen = departures;
        let registry = &self.registry;
        let gone = |s: &Slot| s.users == 0 && s.generation.is_some_and(|id| !registry.is_resident(id));
        let cleared: Vec<SlotIdx> =
            enumerate(&mut self.slots).filter(|(_, s)| gone(s)).map(|(slot, _)| slot).collect();
        for slot in &cleared {
            self.unbind(*slot);
        }
        cleared
    }

    /// Slots in all, slots that hold an adapter, and slots with running sequences.
    pub fn counts(&self) -> (usize, usize, usize) {
        let bound = self.slots.iter().filter(|s| s.generation.is_some()).count();
        (self.slots.len(), bound, self.slots.iter().filter(|s| s.users > 0).count())
    }
}

fn enumerate(slots: &mut [Slot]) -> impl Iterator<Item = (SlotIdx, &mut Slot)> {
    (0_u32..).map(SlotIdx).zip(slots)
}
