//! The digest of a model's content, made beside loading it: the bytes are read once, and hashed on a thread of their own
//! while the device repacks the next tensors.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use wardrobe_formats::{ContentDigest, Digest, ModelConfig, TensorInfo};

use crate::error::{ModelError, Result};

/// Tensors that may wait to be hashed: bounds the memory beside what the loader itself holds.
const MAX_WAITING: usize = 4;

/// A digest in the making. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct ContentHash {
    tensors: SyncSender<(TensorInfo, Vec<u8>)>,
    thread: JoinHandle<Digest>,
}

impl ContentHash {
    pub(crate) fn start(config: &ModelConfig) -> Result<Self> {
        let (tensors, waiting) = sync_channel::<(TensorInfo, Vec<u8>)>(MAX_WAITING);
        let mut digest = ContentDigest::new(config);
        let hash = move || {
            waiting.iter().for_each(|(info, bytes)| digest.tensor(&info, &bytes));
            digest.finish()
        };
        let thread = std::thread::Builder::new().name("wardrobe-digest".to_owned()).spawn(hash);
        let thread = thread.map_err(|error| ModelError::Thread { reason: error.to_string() })?;
        Ok(Self { tensors, thread })
    }

    /// Takes a tensor that has been used.
    pub(crate) fn add(&self, info: TensorInfo, bytes: Vec<u8>) {
        // Fails only if the thread has ended, which `finish` reports.
        let _ = self.tensors.send((info, bytes));
    }

    pub(crate) fn finish(self) -> Result<Digest> {
        drop(self.tensors);
        self.thread
            .join()
            .map_err(|_| ModelError::Thread { reason: "the digest's thread panicked".to_owned() })
    }
}
