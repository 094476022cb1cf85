//! Adapters: where they come from, what a loaded one is, and the life of a name.
//!
//! A load brings an immutable **generation** with an id that is never reused. A name points at one generation;
//! replacing moves the pointer, and requests keep the generation that they were submitted on through a lease.
//! [`registry`] owns names, leases and the host tier; the device slots belong to the engine thread.

pub(crate) mod generation;
pub(crate) mod limits;
pub(crate) mod registry;
pub(crate) mod reload;

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use wardrobe_grammar::Template;

use crate::error::AdapterError;
use crate::ids::{Digest, GenerationId};

/// A validated, immutable adapter in host memory, ready to be put into a slot. What is inside is between the
/// loader that made it and the executor that binds it (downcast through `Any`).
pub trait PreparedAdapter: Send + Sync + Any {
    /// Bytes of host memory it holds.
    fn host_bytes(&self) -> u64;
    /// Bytes of device memory that it takes while it is in a slot. Where the device computes in host memory and a slot
    /// refers to what the host tier holds, these are the same bytes as [`PreparedAdapter::host_bytes`], there once.
    fn device_bytes(&self) -> u64;
    /// Digest of everything that changes what it computes.
    fn digest(&self) -> Digest;
    /// Its (largest) rank.
    fn rank(&self) -> usize;
    /// Modules that it adapts.
    fn num_modules(&self) -> usize;
    /// The context it was trained for, where it brings its own RoPE scaling; `None` keeps the base's.
    fn max_context_tokens(&self) -> Option<usize> {
        None
    }
    /// Which RoPE table its rows use; `0` is the base's.
    fn rope_idx(&self) -> u32 {
        0
    }
    /// What its answers are held to unless a request says otherwise, where it brings that.
    fn template(&self) -> Option<Arc<Template>> {
        None
    }
}

/// Reads and checks adapters, on whatever thread asks; never on the engine thread.
pub trait AdapterLoader: Send + Sync {
    /// Reads `source` whole and checks it against the base model. Everything that is wrong with an adapter is
    /// found here, and the error says what.
    fn load(&self, source: &AdapterSource) -> Result<Arc<dyn PreparedAdapter>, AdapterError>;
}

/// Where an adapter comes from.
#[derive(Clone)]
#[non_exhaustive]
pub enum AdapterSource {
    /// A folder (or file) on disk. It may be dropped from host memory and read again.
    Path(PathBuf),
    /// Tensors handed over in process, which the loader knows how to read. Stays in host memory.
    InProcess {
        /// Shown as the source.
        label: String,
        /// What the loader gets.
        payload: Arc<dyn Any + Send + Sync>,
    },
}

impl fmt::Debug for AdapterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdapterSource({self})")
    }
}

impl fmt::Display for AdapterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::InProcess { label, .. } => label.fmt(f),
        }
    }
}

/// How a load behaves towards what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Replace the name's generation if there is one, atomically; otherwise a taken name is an error.
    pub replace: bool,
    /// Never evict it from its slot or from host memory to make room for others. None: as the generation that it
    /// replaces, otherwise not.
    pub pinned: Option<bool>,
    /// Compare-and-swap: go on only if the name is at this generation.
    pub expected_generation: Option<GenerationId>,
}

/// The fastest tier in which an adapter is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdapterLevel {
    /// In a device slot.
    Device,
    /// In host memory.
    Host,
    /// On disk only; read again on demand.
    Disk,
}

impl AdapterLevel {
    /// `device`, `host` or `disk`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
        }
    }
}

/// A loaded adapter, as seen from outside.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// The name that requests use.
    pub name: String,
    /// The generation that new requests get.
    pub generation: GenerationId,
    /// Digest of its content.
    pub digest: Digest,
    /// Its (largest) rank.
    pub rank: usize,
    /// Modules that it adapts.
    pub num_modules: usize,
    /// Bytes that it takes in host memory.
    pub host_bytes: u64,
    /// Bytes that it takes on the device while it is in a slot.
    pub device_bytes: u64,
    /// The context it was trained for, where it brings its own; `None` is the base's.
    pub max_context_tokens: Option<usize>,
    /// Whether it brings a schema that its answers are held to.
    pub has_schema: bool,
    /// Where it came from.
    pub source: AdapterSource,
    /// The fastest tier that it is in.
    pub level: AdapterLevel,
    /// Whether it is kept from eviction.
    pub pinned: bool,
    /// Requests of this generation that wait or run.
    pub open_requests: usize,
    /// When this generation was loaded.
    pub loaded_at: SystemTime,
}
