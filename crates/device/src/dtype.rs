//! Element types of tensors, storage formats of weights, and shapes.

use std::fmt;

/// Element type of a [`crate::Tensor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Unsigned 32-bit integers: token ids, positions, indices.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }
}

/// Storage format of a weight as it lies on disk: plain floats, or blocks of the ggml formats.
///
/// Every format listed is held without loss (`ggml-common.h` of the GGUF specification gives the block layouts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Plain binary32.
    F32,
    /// Plain binary16.
    F16,
    /// Plain bfloat16.
    BF16,
    /// 32 weights: f16 scale, 4-bit quants with offset 8.
    Q4_0,
    /// 32 weights: f16 scale and minimum, 4-bit quants.
    Q4_1,
    /// 32 weights: f16 scale, signed 8-bit quants.
    Q8_0,
    /// 256 weights: f16 scale and minimum of eight 6-bit scales and minimums, 4-bit quants.
    Q4K,
    /// 256 weights: f16 scale of sixteen 8-bit scales, 6-bit quants with offset 32.
    Q6K,
}

impl WeightFormat {
    /// Weights in one block (1 for plain floats).
    pub const fn block_len(self) -> usize {
        match self {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => 1,
            WeightFormat::Q4_0 | WeightFormat::Q4_1 | WeightFormat::Q8_0 => 32,
            WeightFormat::Q4K | WeightFormat::Q6K => 256,
        }
    }

    /// Bytes of one block on disk.
    pub const fn block_bytes(self) -> usize {
        match self {
            WeightFormat::F32 => 4,
            WeightFormat::F16 | WeightFormat::BF16 => 2,
            WeightFormat::Q4_0 => 18,
            WeightFormat::Q4_1 => 20,
            WeightFormat::Q8_0 => 34,
            WeightFormat::Q4K => 144,
            WeightFormat::Q6K => 210,
        }
    }

    /// Whether weights are stored in quantised blocks.
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes on disk of one row of `len` weights, `None` if `len` is no whole number of blocks or overflows.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }
}

/// Extents of a tensor, outermost first; at most four.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: u8,
}

impl Shape {
    /// The extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.dims.get(..usize::from(self.rank)).unwrap_or(&[])
    }

    /// Number of elements, saturating (an absurd shape then fails to allocate instead of wrapping round).
    pub fn numel(&self) -> usize {
        self.dims().iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Extent of the first dimension, 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.dims().first().copied().unwrap_or(1)
    }

    /// The same shape with another number of rows.
    pub(crate) fn with_rows(mut self, rows: usize) -> Self {
        if let Some(first) = self.dims.first_mut() {
            *first = rows;
        }
        self
    }

    /// Elements of one row: the product of all but the first extent.
    pub fn row_len(&self) -> usize {
        self.dims().iter().skip(1).fold(1, |n, &d| n.saturating_mul(d))
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(from: [usize; N]) -> Self {
        const { assert!(N <= 4, "a shape has at most four dimensions") };
        let mut dims = [1; 4];
        dims[..N].copy_from_slice(&from);
        Shape { dims, rank: N as u8 }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}
