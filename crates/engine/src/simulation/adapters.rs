//! Simulated adapters, and a loader that finds them by path or takes them in process.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::adapter::{AdapterLoader, AdapterSource, PreparedAdapter};
use crate::error::AdapterError;
use crate::ids::Digest;

/// An adapter that is nothing but its description. Its digest decides what it generates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimAdapter {
    /// Its content.
    pub digest: Digest,
    /// Bytes that it claims to take.
    pub host_bytes: u64,
    /// Bytes that it claims to take in a slot.
    pub device_bytes: u64,
    /// Its rank.
    pub rank: usize,
    /// The context that it claims to bring.
    pub max_context_tokens: Option<usize>,
    /// The RoPE table that it claims to use.
    pub rope_idx: u32,
}

impl SimAdapter {
    /// An adapter of rank 8 and 1 KiB whose content is `content`.
    pub fn new(content: u64) -> Self {
        let mut digest = [0; 32];
        for (byte, value) in digest.iter_mut().zip(content.to_le_bytes()) {
            *byte = value;
        }
        Self { digest, host_bytes: 1024, device_bytes: 1024, rank: 8, max_context_tokens: None, rope_idx: 0 }
    }

    /// A source that hands this adapter over in process.
    pub fn in_process(self, label: &str) -> AdapterSource {
        AdapterSource::InProcess { label: label.to_owned(), payload: Arc::new(self) }
    }
}

impl PreparedAdapter for SimAdapter {
    fn host_bytes(&self) -> u64 {
        self.host_bytes
    }
    fn device_bytes(&self) -> u64 {
        self.device_bytes
    }
    fn digest(&self) -> Digest {
        self.digest
    }
    fn rank(&self) -> usize {
        self.rank
    }
    fn num_modules(&self) -> usize {
        1
    }
    fn max_context_tokens(&self) -> Option<usize> {
        self.max_context_tokens
    }
    fn rope_idx(&self) -> u32 {
        self.rope_idx
    }
}

/// A loader with a disk of its own: paths that [`SimLoader::put`] has filled.
#[derive(Debug, Default)]
pub struct SimLoader {
    disk: Mutex<HashMap<PathBuf, SimAdapter>>,
    delay: Duration,
}

impl SimLoader {
    /// A loader with an empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets every load take this long.
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Writes an adapter to a path, over what is there.
    pub fn put(&self, path: impl Into<PathBuf>, adapter: SimAdapter) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).insert(path.into(), adapter);
    }
}

impl AdapterLoader for SimLoader {
    fn load(&self, source: &AdapterSource) -> Result<Arc<dyn PreparedAdapter>, AdapterError> {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        match source {
            AdapterSource::Path(path) => {
                let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
                let adapter = disk.get(path).cloned();
                let adapter = adapter.ok_or_else(|| AdapterError::SourceNotFound { path: path.clone() })?;
                Ok(Arc::new(adapter))
            }
            AdapterSource::InProcess { label, payload } => match payload.downcast_ref::<SimAdapter>() {
                Some(adapter) => Ok(Arc::new(adapter.clone())),
                None => {
                    Err(AdapterError::Refused { reason: format!("`{label}` is not a simulated adapter") })
                }
            },
        }
    }
}
