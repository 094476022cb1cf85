//! Names, generations, leases and the host tier.
//!
//! State: which name points at which generation, where every living generation's memory is, and how many
//! requests hold it. Shared between callers and the reload thread behind one mutex that is held for table
//! look-ups only, never while an adapter is read; the scheduler does not use it.
//!
//! Invariants:
//! - a generation lives while its name points at it or a lease holds it, and no longer;
//! - a leased generation that is in host memory stays there until its last lease drops;
//! - `host_bytes` is the sum over generations in host memory and never exceeds the limit after a call;
//! - every living generation fits on the device beside all that are pinned.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::generation::{Entry, Generation, Lease, Residency, Tier};
use super::limits::{Placement, RegistryLimits};
use super::{AdapterInfo, AdapterSource, LoadOptions, PreparedAdapter};
use crate::constraint::Constraint;
use crate::error::{AdapterError, SubmitError};
use crate::ids::GenerationId;

/// An adapter's name, and the generation at which it has to be.
pub(crate) type Wanted<'a> = (&'a str, Option<GenerationId>);

#[derive(Default)]
struct State {
    names: BTreeMap<String, GenerationId>,
    entries: BTreeMap<GenerationId, Entry>,
    last_generation: u64,
    clock: u64,
    host_bytes: u64,
    /// To be read again from disk, in order.
    reloads: VecDeque<GenerationId>,
    /// Read again once host memory is released.
    starved: VecDeque<GenerationId>,
    /// Why the registry takes no more changes.
    closed: Option<String>,
    /// Memory to be dropped once the lock is released.
    garbage: Vec<Arc<dyn PreparedAdapter>>,
}

impl State {
    fn pop_reload(&mut self) -> Option<Arc<Generation>> {
        while let Some(id) = self.reloads.pop_front() {
            if let Some(entry) = self.entries.get(&id).filter(|entry| matches!(entry.tier, Tier::Loading)) {
                return Some(entry.generation.clone());
            }
        }
        None
    }
}

/// Names, generations, leases and the host tier.
pub(crate) struct AdapterRegistry {
    state: Mutex<State>,
    reload_wanted: Condvar,
    limits: RegistryLimits,
    /// Counts evictions and ends of generations, so that the engine thread notices them cheaply.
    departures: AtomicU64,
}

/// Whether the generation that is loaded under this name will be pinned: as asked for, or as the one it replaces.
fn is_to_be_pinned(state: &State, name: &str, options: &LoadOptions) -> bool {
    options.pinned.unwrap_or_else(|| {
        let replaced = state.names.get(name).and_then(|id| state.entries.get(id));
        replaced.is_some_and(|entry| entry.pinned)
    })
}

impl AdapterRegistry {
    pub fn new(limits: RegistryLimits) -> Self {
        Self { state: Mutex::default(), reload_wanted: Condvar::new(), limits, departures: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock, then frees what the change made garbage.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let garbage = std::mem::take(&mut state.garbage);
        drop(state);
        drop(garbage);
    }

    /// A count that changes whenever a generation has left host memory.
    pub fn departures(&self) -> u64 {
        self.departures.load(Ordering::Acquire)
    }

    /// Refuses a load that could not be published, before anything is read.
    pub fn check_load(&self, name: &str, options: &LoadOptions) -> Result<(), AdapterError> {
        self.limits.check_name(name)?;
        self.check_target(&self.lock(), name, options)
    }

    fn check_target(&self, state: &State, name: &str, options: &LoadOptions) -> Result<(), AdapterError> {
        if let Some(reason) = &state.closed {
            return Err(AdapterError::NotRunning { reason: reason.clone() });
        }
        if self.limits.num_slots == 0 {
            return Err(AdapterError::NoSlots);
        }
        let actual = state.names.get(name).copied();
        if let Some(expected) = options.expected_generation
            && actual != Some(expected)
        {
            return Err(AdapterError::GenerationMismatch { name: name.to_owned(), expected, actual });
        }
        match actual {
            Some(generation) if !options.replace => {
                Err(AdapterError::AlreadyLoaded { name: name.to_owned(), generation })
            }
            None if state.names.len() >= self.limits.max_adapters => {
                Err(AdapterError::TooMany { limit: self.limits.max_adapters })
            }
            _ if is_to_be_pinned(state, name, options) => {
                self.limits.check_num_pinned(state.entries.values(), name)
            }
            _ => Ok(()),
        }
    }

    /// Points `name` at a new generation of this content.
    pub fn publish(
        &self,
        name: &str,
        source: AdapterSource,
        adapter: Arc<dyn PreparedAdapter>,
        options: &LoadOptions,
    ) -> Result<AdapterInfo, AdapterError> {
        self.limits.check_name(name)?;
        let mut state = self.lock();
        self.check_target(&state, name, options)?;
        let pinned = is_to_be_pinned(&state, name, options);
        let old = state.names.get(name).copied();
        let device_bytes = adapter.device_bytes();
        // What it replaces stays, and needs a slot, as long as requests hold it.
        let ends = old.filter(|id| state.entries.get(id).is_some_and(|entry| entry.leases == 0));
        let entries = state.entries.iter().filter(|(id, _)| Some(**id) != ends).map(|(_, entry)| entry);
        self.limits.check_device_bytes(entries, &Placement { name, device_bytes, pinned })?;
        self.make_room(&mut state, adapter.host_bytes(), old)?;
        state.last_generation += 1;
        let id = GenerationId(state.last_generation);
        let generation = Arc::new(Generation {
            id,
            name: name.to_owned(),
            digest: adapter.digest(),
            rank: adapter.rank(),
            num_modules: adapter.num_modules(),
            host_bytes: adapter.host_bytes(),
            device_bytes,
            max_context_tokens: adapter.max_context_tokens(),
            rope_idx: adapter.rope_idx(),
            constraint: adapter.template().map(Constraint),
            source,
            loaded_at: SystemTime::now(),
        });
        state.clock += 1;
        let entry = Entry {
            generation,
            tier: Tier::Host(adapter),
            hidden: false,
            pinned,
            in_slot: false,
            leases: 0,
            last_used: state.clock,
        };
        let info = entry.info();
        state.host_bytes += info.host_bytes;
        state.entries.insert(id, entry);
        state.names.insert(name.to_owned(), id);
        if let Some(old) = old {
            self.hide(&mut state, old);
        }
        self.unlock(state);
        Ok(info)
    }

    /// Frees host memory until `needed_bytes` fit. `replaced` goes anyway once nothing holds it.
    fn make_room(
        &self,
        state: &mut State,
        needed_bytes: u64,
        replaced: Option<GenerationId>,
    ) -> Result<(), AdapterError> {
        let limit_bytes = self.limits.max_host_bytes;
        let leaves = |id: GenerationId, e: &Entry| e.leases == 0 && Some(id) == replaced;
        let leaving: u64 =
            state.entries.iter().filter(|(id, e)| leaves(**id, e)).map(|(_, e)| e.resident_bytes()).sum();
        let mut evictable: Vec<_> = (state.entries.iter())
            .filter(|(id, e)| e.evictable() && !leaves(**id, e))
            .map(|(id, e)| (e.last_used, *id, e.resident_bytes()))
            .collect();
        evictable.sort_unstable();
        let mut staying_bytes = state.host_bytes.saturating_sub(leaving);
        let can_stay = limit_bytes.checked_sub(needed_bytes);
        let freed: u64 = evictable.iter().map(|(_, _, bytes)| bytes).sum();
        let least = staying_bytes.saturating_sub(freed);
        let Some(can_stay) = can_stay.filter(|can_stay| least <= *can_stay) else {
            let available_bytes = limit_bytes.saturating_sub(least);
            return Err(AdapterError::HostMemory { needed_bytes, available_bytes, limit_bytes });
        };
        for (_, id, bytes) in evictable {
            if staying_bytes <= can_stay {
                break;
            }
            staying_bytes = staying_bytes.saturating_sub(bytes);
            self.set_tier(state, id, Tier::Disk);
        }
        Ok(())
    }

    /// Moves an entry to another tier and keeps the books.
    fn set_tier(&self, state: &mut State, id: GenerationId, tier: Tier) {
        let Some(entry) = state.entries.get_mut(&id) else { return };
        let before = entry.resident_bytes();
        let old = std::mem::replace(&mut entry.tier, tier);
        let after = entry.resident_bytes();
        state.host_bytes = state.host_bytes.saturating_sub(before).saturating_add(after);
        if let Tier::Host(adapter) = old {
            state.garbage.push(adapter);
            self.departures.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// No name points at it any more: ends it, or leaves that to its last lease.
    fn hide(&self, state: &mut State, id: GenerationId) {
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.hidden = true;
            if entry.leases == 0 {
                self.end(state, id);
            }
        }
        self.retry_starved(state);
    }

    fn end(&self, state: &mut State, id: GenerationId) {
        self.set_tier(state, id, Tier::Disk);
        state.entries.remove(&id);
        self.departures.fetch_add(1, Ordering::AcqRel);
    }

    fn retry_starved(&self, state: &mut State) {
        if !state.starved.is_empty() {
            let starved = std::mem::take(&mut state.starved);
            state.reloads.extend(starved);
            self.reload_wanted.notify_all();
        }
    }

    /// Takes the name away. Requests that hold its generation finish on it.
    pub fn unload(&self, name: &str, expected: Option<GenerationId>) -> Result<AdapterInfo, AdapterError> {
        let mut state = self.lock();
        let actual = state.names.get(name).copied();
        if let Some(expected) = expected.filter(|expected| actual.is_some_and(|a| a != *expected)) {
            return Err(AdapterError::GenerationMismatch { name: name.to_owned(), expected, actual });
        }
        let Some((id, info)) = actual.and_then(|id| state.entries.get(&id).map(|entry| (id, entry.info())))
        else {
            return Err(AdapterError::NotLoaded { name: name.to_owned() });
        };
        state.names.remove(name);
        self.hide(&mut state, id);
        self.unlock(state);
        Ok(info)
    }

    /// Pins or unpins the name's generation.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<AdapterInfo, AdapterError> {
        let mut state = self.lock();
        let Some(id) = state.names.get(name).copied() else {
            return Err(AdapterError::NotLoaded { name: name.to_owned() });
        };
        let Some(device_bytes) = state.entries.get(&id).map(|entry| entry.generation.device_bytes) else {
            return Err(AdapterError::NotLoaded { name: name.to_owned() });
        };
        if pinned {
            self.limits.check_num_pinned(state.entries.values(), name)?;
            let others = state.entries.iter().filter(|(other, _)| **other != id).map(|(_, entry)| entry);
            self.limits.check_device_bytes(others, &Placement { name, device_bytes, pinned })?;
        }
        let Some(entry) = state.entries.get_mut(&id) else {
            return Err(AdapterError::NotLoaded { name: name.to_owned() });
        };
        entry.pinned = pinned;
        let info = entry.info();
        self.retry_starved(&mut state);
        Ok(info)
    }

    /// All names, sorted.
    pub fn list(&self) -> Vec<AdapterInfo> {
        let state = self.lock();
        state.names.values().filter_map(|id| state.entries.get(id)).map(Entry::info).collect()
    }

    /// Holds on the generations that these names point at now, one for each, all or none; starts reading those that
    /// are on disk only. The same name gets the same generation.
    pub fn leases(self: &Arc<Self>, wanted: &[Wanted<'_>]) -> Result<Vec<Arc<Lease>>, SubmitError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut state = self.lock();
        let mut ids = Vec::with_capacity(wanted.len());
        for (name, expected) in wanted {
            let Some(id) = state.names.get(*name).copied().filter(|id| state.entries.contains_key(id)) else {
                return Err(SubmitError::UnknownAdapter { name: name.chars().take(256).collect() });
            };
            if let Some(expected) = expected.filter(|expected| *expected != id) {
                return Err(SubmitError::GenerationMismatch {
                    name: (*name).to_owned(),
                    expected,
                    actual: id,
                });
            }
            ids.push(id);
        }
        let mut leases = Vec::with_capacity(ids.len());
        for id in ids {
            state.clock += 1;
            let clock = state.clock;
            let Some(entry) = state.entries.get_mut(&id) else { continue };
            entry.leases += 1;
            entry.last_used = clock;
            let generation = entry.generation.clone();
            if matches!(entry.tier, Tier::Disk | Tier::Failed(_)) {
                entry.tier = Tier::Loading;
                state.reloads.push_back(id);
                self.reload_wanted.notify_all();
            }
            leases.push(Arc::new(Lease { registry: self.clone(), generation }));
        }
        Ok(leases)
    }

    pub(super) fn release(&self, id: GenerationId) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.leases = entry.leases.saturating_sub(1);
            if entry.leases == 0 {
                if entry.hidden {
                    self.end(&mut state, id);
                }
                self.retry_starved(&mut state);
            }
        }
        self.unlock(state);
    }

    pub(super) fn residency(&self, id: GenerationId) -> Residency {
        match self.lock().entries.get(&id).map(|entry| &entry.tier) {
            Some(Tier::Host(adapter)) => Residency::Ready(adapter.clone()),
            Some(Tier::Failed(error)) => Residency::Failed(error.clone()),
            _ => Residency::Loading,
        }
    }

    /// Whether the generation lives and is in host memory; a slot that holds another one is to be cleared.
    pub fn is_resident(&self, id: GenerationId) -> bool {
        self.lock().entries.get(&id).is_some_and(|entry| matches!(entry.tier, Tier::Host(_)))
    }

    /// Whether a slot that holds it must be kept.
    pub fn is_pinned(&self, id: GenerationId) -> bool {
        self.lock().entries.get(&id).is_some_and(Entry::keeps_slot)
    }

    /// The most bytes that the adapters in slots may take together.
    pub fn max_device_bytes(&self) -> u64 {
        self.limits.max_device_bytes
    }

    /// Notes whether it is in a slot.
    pub fn set_in_slot(&self, id: GenerationId, in_slot: bool) {
        if let Some(entry) = self.lock().entries.get_mut(&id) {
            entry.in_slot = in_slot;
        }
    }

    /// Takes no more changes; ends the reload thread.
    pub fn close(&self, reason: &str) {
        self.lock().closed.get_or_insert_with(|| reason.to_owned());
        self.reload_wanted.notify_all();
    }

    /// Waits for a generation to read again. `None` once the registry is closed.
    pub fn next_reload(&self) -> Option<Arc<Generation>> {
        let mut state = self.lock();
        loop {
            if state.closed.is_some() {
                return None;
            }
            if let Some(generation) = state.pop_reload() {
                return Some(generation);
            }
            state = self.reload_wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes what reading a generation again gave.
    pub fn finish_reload(
        &self,
        generation: &Generation,
        result: Result<Arc<dyn PreparedAdapter>, AdapterError>,
    ) {
        let mut state = self.lock();
        let id = generation.id;
        if !state.entries.contains_key(&id) {
            return;
        }
        let same = |adapter: &Arc<dyn PreparedAdapter>| {
            adapter.digest() == generation.digest
                && adapter.host_bytes() == generation.host_bytes
                && adapter.device_bytes() == generation.device_bytes
        };
        let tier = match result {
            Err(error) => Tier::Failed(error),
            Ok(adapter) if !same(&adapter) => {
                Tier::Failed(AdapterError::ContentChanged { name: generation.name.clone(), generation: id })
            }
            Ok(adapter) => match self.make_room(&mut state, generation.host_bytes, None) {
                Ok(()) => Tier::Host(adapter),
                Err(error) => {
                    let permanent: u64 =
                        state.entries.values().filter(|e| e.permanent()).map(Entry::resident_bytes).sum();
                    if permanent.saturating_add(generation.host_bytes) > self.limits.max_host_bytes {
                        Tier::Failed(error)
                    } else {
                        state.starved.push_back(id);
                        Tier::Loading
                    }
                }
            },
        };
        self.set_tier(&mut state, id, tier);
        self.unlock(state);
    }

    /// A generation to read again, if there is one.
    #[cfg(test)]
    pub fn try_next_reload(&self) -> Option<Arc<Generation>> {
        self.lock().pop_reload()
    }

    /// Bytes of adapters in host memory.
    #[cfg(test)]
    pub fn host_bytes(&self) -> u64 {
        self.lock().host_bytes
    }

    /// A hold on the generation that `name` points at now.
    #[cfg(test)]
    pub fn lease(
        self: &Arc<Self>,
        name: &str,
        expected: Option<GenerationId>,
    ) -> Result<Arc<Lease>, SubmitError> {
        self.leases(&[(name, expected)]).map(|mut leases| leases.remove(0))
    }

    /// Leases on all generations, and generations that no name points at.
    #[cfg(test)]
    pub fn num_leases_and_hidden(&self) -> (usize, usize) {
        let state = self.lock();
        (state.entries.values().map(|e| e.leases).sum(), state.entries.values().filter(|e| e.hidden).count())
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
