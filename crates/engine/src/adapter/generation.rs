//! One generation of an adapter: what a load brought, where its memory is, and who holds it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::registry::AdapterRegistry;
use super::{AdapterInfo, AdapterLevel, AdapterSource, PreparedAdapter};
use crate::constraint::Constraint;
use crate::error::AdapterError;
use crate::ids::{Digest, GenerationId};

/// What one load brought; immutable.
#[derive(Debug)]
pub(crate) struct Generation {
    pub id: GenerationId,
    pub name: String,
    pub digest: Digest,
    pub rank: usize,
    pub num_modules: usize,
    pub host_bytes: u64,
    pub device_bytes: u64,
    pub max_context_tokens: Option<usize>,
    pub rope_idx: u32,
    pub constraint: Option<Constraint>,
    pub source: AdapterSource,
    pub loaded_at: SystemTime,
}

/// Where a generation's memory is.
pub(super) enum Tier {
    Host(Arc<dyn PreparedAdapter>),
    Disk,
    Loading,
    Failed(AdapterError),
}

pub(super) struct Entry {
    pub(super) generation: Arc<Generation>,
    pub(super) tier: Tier,
    /// No name points at it any more; it goes with its last lease.
    pub(super) hidden: bool,
    pub(super) pinned: bool,
    pub(super) in_slot: bool,
    pub(super) leases: usize,
    pub(super) last_used: u64,
}

impl Entry {
    pub(super) fn resident_bytes(&self) -> u64 {
        if matches!(self.tier, Tier::Host(_)) { self.generation.host_bytes } else { 0 }
    }

    /// Whether its memory may be dropped and read again later.
    pub(super) fn evictable(&self) -> bool {
        self.leases == 0
            && !self.pinned
            && matches!(self.tier, Tier::Host(_))
            && matches!(self.generation.source, AdapterSource::Path(_))
    }

    /// Whether its memory stays whatever requests end.
    pub(super) fn permanent(&self) -> bool {
        !self.hidden && (self.pinned || matches!(self.generation.source, AdapterSource::InProcess { .. }))
    }

    /// Whether a slot that holds it must be kept.
    pub(super) fn keeps_slot(&self) -> bool {
        self.pinned && !self.hidden
    }

    /// What is seen of it from outside.
    pub(super) fn info(&self) -> AdapterInfo {
        let generation = &self.generation;
        AdapterInfo {
            name: generation.name.clone(),
            generation: generation.id,
            digest: generation.digest,
            rank: generation.rank,
            num_modules: generation.num_modules,
            host_bytes: generation.host_bytes,
            device_bytes: generation.device_bytes,
            max_context_tokens: generation.max_context_tokens,
            has_schema: generation.constraint.is_some(),
            source: generation.source.clone(),
            level: match (self.in_slot, &self.tier) {
                (true, _) => AdapterLevel::Device,
                (false, Tier::Host(_)) => AdapterLevel::Host,
                _ => AdapterLevel::Disk,
            },
            pinned: self.pinned,
            open_requests: self.leases,
            loaded_at: generation.loaded_at,
        }
    }
}

/// A request's hold on its generation. The generation stays until the last one drops.
pub(crate) struct Lease {
    pub(super) registry: Arc<AdapterRegistry>,
    pub generation: Arc<Generation>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease(generation {})", self.generation.id)
    }
}

impl Lease {
    /// The adapter's memory, if it is in the host tier.
    pub fn residency(&self) -> Residency {
        self.registry.residency(self.generation.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.registry.release(self.generation.id);
    }
}

/// Whether a leased adapter is at hand.
pub(crate) enum Residency {
    Ready(Arc<dyn PreparedAdapter>),
    Loading,
    Failed(AdapterError),
}
