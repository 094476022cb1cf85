//! What the registry refuses by its limits: names, and adapters and pins that would leave others no room on the device.
//!
//! A pinned adapter keeps its slot, so whatever is loaded has to fit beside all that are pinned: in slots and in bytes.
//! That is checked here when something is loaded or pinned, and makes sure that a sequence that waits for a slot waits
//! for running sequences only.

use super::generation::Entry;
use crate::error::AdapterError;

/// Limits of the registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegistryLimits {
    pub max_host_bytes: u64,
    /// `u64::MAX` where only the number of slots limits what is on the device.
    pub max_device_bytes: u64,
    pub max_adapters: usize,
    pub max_name_bytes: usize,
    pub num_slots: usize,
}

/// What an adapter that is loaded or pinned will take.
pub(super) struct Placement<'a> {
    pub name: &'a str,
    pub device_bytes: u64,
    pub pinned: bool,
}

impl RegistryLimits {
    pub(super) fn check_name(&self, name: &str) -> Result<(), AdapterError> {
        let reason = if name.trim().is_empty() {
            "is empty"
        } else if name.len() > self.max_name_bytes {
            "is too long"
        } else if name.chars().any(char::is_control) {
            "has control characters"
        } else {
            return Ok(());
        };
        Err(AdapterError::InvalidName { name: name.chars().take(64).collect(), reason })
    }

    /// Whether the adapter of this name can be pinned and leave a slot to the others.
    pub(super) fn check_num_pinned<'a>(
        &self,
        entries: impl Iterator<Item = &'a Entry>,
        name: &str,
    ) -> Result<(), AdapterError> {
        let others = entries.filter(|e| e.keeps_slot() && e.generation.name != name);
        let limit = self.num_slots.saturating_sub(1);
        if others.count() >= limit {
            return Err(AdapterError::TooManyPinned { limit, num_slots: self.num_slots });
        }
        Ok(())
    }

    /// Whether `new` fits beside what is pinned, and if it is to be pinned, each of `entries` beside it. They are all
    /// that will live with it: also those of its name that requests still hold, which are pinned no longer.
    pub(super) fn check_device_bytes<'a>(
        &self,
        entries: impl Iterator<Item = &'a Entry>,
        new: &Placement<'_>,
    ) -> Result<(), AdapterError> {
        let limit_bytes = self.max_device_bytes;
        let (pinned, others): (Vec<&Entry>, Vec<&Entry>) =
            entries.partition(|e| e.keeps_slot() && e.generation.name != new.name);
        let pinned_bytes = pinned.iter().map(|e| e.generation.device_bytes).fold(0, u64::saturating_add);
        let available_bytes = limit_bytes.saturating_sub(pinned_bytes);
        let name = || new.name.to_owned();
        let Some(left_bytes) = available_bytes.checked_sub(new.device_bytes) else {
            let needed_bytes = new.device_bytes;
            return Err(AdapterError::DeviceMemory {
                name: name(),
                needed_bytes,
                available_bytes,
                limit_bytes,
            });
        };
        let largest = others.iter().map(|e| &e.generation).max_by_key(|generation| generation.device_bytes);
        match largest {
            Some(other) if new.pinned && other.device_bytes > left_bytes => Err(AdapterError::PinnedMemory {
                name: name(),
                left_bytes,
                limit_bytes,
                other: other.name.clone(),
                generation: other.id,
                needed_bytes: other.device_bytes,
            }),
            _ => Ok(()),
        }
    }
}
