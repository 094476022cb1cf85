//! Weights: matrices that a device has repacked for itself.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::WeightFormat;

/// A weight matrix as it was read from disk: `[out, in]`, row-major, in a [`WeightFormat`].
#[derive(Clone, Copy)]
pub struct HostTensor<'a> {
    /// Storage format of `bytes`.
    pub format: WeightFormat,
    /// Output features.
    pub rows: usize,
    /// Input features: the length of the dot products.
    pub cols: usize,
    /// `rows * format.row_bytes(cols)` bytes.
    pub bytes: &'a [u8],
}

impl fmt::Debug for HostTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTensor([{}, {}] {:?})", self.rows, self.cols, self.format)
    }
}

/// What a device made of a weight. Only the device that made it looks inside.
pub trait WeightData: Any + Send + Sync + fmt::Debug {
    /// Bytes held on the device.
    fn size_bytes(&self) -> usize;
    /// For the owning device's downcast.
    fn as_any(&self) -> &dyn Any;
}

/// An immutable matrix `[rows, cols]` in the device's own layout: a linear layer's weight or an embedding table.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    format: WeightFormat,
    data: Arc<dyn WeightData>,
}

impl Weight {
    /// Wraps what a device made of `host`.
    pub fn new(host: &HostTensor<'_>, data: Arc<dyn WeightData>) -> Self {
        Weight { rows: host.rows, cols: host.cols, format: host.format, data }
    }

    /// Output features (or the vocabulary's size).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features (or the embedding's length).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Format in which it is held; every one is lossless.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes held on the device.
    pub fn size_bytes(&self) -> usize {
        self.data.size_bytes()
    }

    /// The device's own representation.
    pub fn data(&self) -> &dyn WeightData {
        self.data.as_ref()
    }
}
