//! Adapter slots: which generation is on the device, and how many running sequences use it.
//!
//! Invariants: a slot with running sequences is never rebound; a pinned generation keeps its slot; a slot whose
//! generation is gone (unloaded, replaced, evicted from host memory) and unused is cleared; the generations in slots
//! never take more bytes than the limit.

use std::sync::Arc;

use crate::adapter::PreparedAdapter;
use crate::adapter::generation::{Lease, Residency};
use crate::adapter::registry::AdapterRegistry;
use crate::error::AdapterError;
use crate::ids::{GenerationId, SlotIdx};

#[derive(Clone, Copy, Default)]
struct Slot {
    generation: Option<GenerationId>,
    /// What the generation takes on the device.
    bytes: u64,
    /// Running sequences.
    users: usize,
    last_used: u64,
}

/// An adapter to put into a slot before the step.
pub(crate) struct SlotBind {
    pub slot: SlotIdx,
    pub adapter: Arc<dyn PreparedAdapter>,
}

/// Where an adapter can go.
struct Room {
    slot: SlotIdx,
    /// Slots that have to be emptied first; `slot` is among them if it holds an adapter.
    clears: Vec<SlotIdx>,
}

/// What asking for a slot gives.
pub(crate) enum SlotAnswer {
    /// The adapter is in this slot.
    Ready(SlotIdx),
    /// The adapter will be in its slot once these slots are empty and this is done.
    Bind { bind: SlotBind, clears: Vec<SlotIdx> },
    /// What is in use leaves no slot, or not enough bytes.
    NoneFree,
    /// The adapter is being read from disk.
    NotResident,
    /// The adapter cannot be had.
    Failed(AdapterError),
}

pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    registry: Arc<AdapterRegistry>,
    max_bytes: u64,
    clock: u64,
    departures_seen: u64,
}

impl SlotTable {
    /// Empty slots, of which as many may be filled as the registry's limit in bytes allows.
    pub fn new(num_slots: usize, registry: Arc<AdapterRegistry>) -> Self {
        let max_bytes = registry.max_device_bytes();
        Self { slots: vec![Slot::default(); num_slots], registry, max_bytes, clock: 0, departures_seen: 0 }
    }

    /// Gives one more running sequence the slot of its generation.
    pub fn acquire(&mut self, lease: &Lease) -> SlotAnswer {
        let wanted = Some(lease.generation.id);
        self.clock += 1;
        if let Some((slot, state)) =
            (0..).map(SlotIdx).zip(&mut self.slots).find(|(_, s)| s.generation == wanted)
        {
            state.users += 1;
            state.last_used = self.clock;
            return SlotAnswer::Ready(slot);
        }
        let adapter = match lease.residency() {
            Residency::Ready(adapter) => adapter,
            Residency::Loading => return SlotAnswer::NotResident,
            Residency::Failed(error) => return SlotAnswer::Failed(error),
        };
        let bytes = lease.generation.device_bytes;
        let Some(Room { slot, clears }) = self.room(bytes, |_| false) else { return SlotAnswer::NoneFree };
        for slot in &clears {
            self.unbind(*slot);
        }
        if let Some(state) = self.slots.get_mut(slot.0 as usize) {
            *state = Slot { generation: wanted, bytes, users: 1, last_used: self.clock };
        }
        self.registry.set_in_slot(lease.generation.id, true);
        SlotAnswer::Bind { bind: SlotBind { slot, adapter }, clears }
    }

    /// Slots in use that keep the lease's adapter from a slot, if it would get one once they were not; `may_be_freed`
    /// says which of them can be.
    pub fn in_the_way(&self, lease: &Lease, may_be_freed: impl Fn(SlotIdx) -> bool) -> Vec<SlotIdx> {
        let in_use = |slot: &SlotIdx| self.slots.get(slot.0 as usize).is_some_and(|s| s.users > 0);
        let room = self.room(lease.generation.device_bytes, may_be_freed);
        room.map_or_else(Vec::new, |room| room.clears.into_iter().filter(in_use).collect())
    }

    /// A slot for an adapter of `bytes`: an empty one if there is one. Adapters leave for it, those that were used
    /// longest ago first, until there is a slot and the bytes fit; those in use stay, unless they `may_be_freed`.
    fn room(&self, bytes: u64, may_be_freed: impl Fn(SlotIdx) -> bool) -> Option<Room> {
        let slots = || (0_u32..).map(SlotIdx).zip(&self.slots);
        let mut free = slots().find(|(_, s)| s.generation.is_none() && s.users == 0).map(|(slot, _)| slot);
        let mut leaving: Vec<_> = slots()
            .filter(|(slot, s)| s.users == 0 || may_be_freed(*slot))
            .filter(|(_, s)| s.generation.is_some_and(|generation| !self.registry.is_pinned(generation)))
            .map(|(slot, s)| (s.users > 0, s.last_used, slot, s.bytes))
            .collect();
        leaving.sort_unstable();
        let mut leaving = leaving.into_iter();
        let (mut bound_bytes, mut clears) = (self.bound_bytes(), Vec::new());
        loop {
            let fits = bound_bytes.saturating_add(bytes) <= self.max_bytes;
            if let Some(slot) = free.filter(|_| fits) {
                return Some(Room { slot, clears });
            }
            let (_, _, slot, its_bytes) = leaving.next()?;
            bound_bytes = bound_bytes.saturating_sub(its_bytes);
            clears.push(slot);
            free.get_or_insert(slot);
        }
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
        let Some(state) = self.slots.get_mut(slot.0 as usize) else { return };
        state.bytes = 0;
        if let Some(generation) = state.generation.take() {
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
            (0..).map(SlotIdx).zip(&self.slots).filter(|(_, s)| gone(s)).map(|(slot, _)| slot).collect();
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

    /// Bytes on the device of the adapters in slots.
    pub fn bound_bytes(&self) -> u64 {
        self.slots.iter().map(|s| s.bytes).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
