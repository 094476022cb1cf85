//! Tensors: contiguous arrays on a device, either persistent or scratch from a context's arena.
//!
//! A scratch tensor carries the stamp of its arena slot. Releasing a scope clears the stamps of what was allocated
//! in it, so a tensor that outlives its scope is an error at its next use and never an alias of newer data.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{DeviceError, Result, invalid};
use crate::{DType, Shape};

/// A range of device memory, freed on drop.
pub trait Memory: Send + Sync + fmt::Debug {
    /// Address of the first byte, in the device's address space (a host pointer on the CPU device).
    fn addr(&self) -> usize;
    /// Length in bytes.
    fn len_bytes(&self) -> usize;
}

/// Stamps of an arena's live allocations; slot `i` holds 0 when free.
#[derive(Debug)]
pub(crate) struct Stamps(pub(crate) Box<[AtomicU64]>);

impl Stamps {
    pub(crate) fn is_live(&self, slot: usize, stamp: u64) -> bool {
        self.0.get(slot).is_some_and(|s| s.load(Ordering::Relaxed) == stamp)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Life {
    /// Lives as long as a tensor refers to it.
    Persistent,
    /// Lives until the scope in which it was allocated is released.
    Scratch { stamps: Arc<Stamps>, slot: usize, stamp: u64 },
}

/// A contiguous, row-major array on a device. Cloning shares the memory.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) offset_bytes: usize,
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) life: Life,
}

impl Tensor {
    /// A persistent tensor over the whole or the beginning of `memory`.
    pub fn persistent(memory: Arc<dyn Memory>, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let bytes = shape.numel().saturating_mul(dtype.size_bytes());
        if bytes > memory.len_bytes() {
            return invalid(
                "Tensor::persistent",
                format!("{shape} {dtype:?} exceeds {} bytes", memory.len_bytes()),
            );
        }
        Ok(Tensor { memory, offset_bytes: 0, shape, dtype, life: Life::Persistent })
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.shape.numel() * self.dtype.size_bytes()
    }

    /// Whether the memory still belongs to this tensor: always for a persistent one.
    pub fn is_live(&self) -> bool {
        match &self.life {
            Life::Persistent => true,
            Life::Scratch { stamps, slot, stamp } => stamps.is_live(*slot, *stamp),
        }
    }

    /// Address in the device's address space, after the liveness check.
    pub fn addr(&self, op: &'static str, operand: &'static str) -> Result<usize> {
        if self.is_live() {
            Ok(self.memory.addr() + self.offset_bytes)
        } else {
            Err(DeviceError::Stale { op, operand })
        }
    }

    /// Whether the two are of one shape and begin at one place of the same memory.
    pub fn is_same_place(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
            && (self.offset_bytes, self.shape, self.dtype) == (other.offset_bytes, other.shape, other.dtype)
    }

    /// Rows `start .. start + rows` as a view.
    pub fn rows(&self, start: usize, rows: usize) -> Result<Self> {
        let have = self.shape.rows();
        if self.shape.dims().is_empty() || start.checked_add(rows).is_none_or(|end| end > have) {
            return invalid("rows", format!("rows {start}..+{rows} of a tensor of {have} rows"));
        }
        let mut view = self.clone();
        view.offset_bytes += start * self.shape.row_len() * self.dtype.size_bytes();
        view.shape = self.shape.with_rows(rows);
        Ok(view)
    }

    /// The same memory under another shape of equal size.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.numel() != self.shape.numel() {
            return Err(DeviceError::Shape {
                op: "reshape",
                operand: "shape",
                expected: self.shape,
                actual: shape,
            });
        }
        Ok(Tensor { shape, ..self.clone() })
    }
}

/// Whether an operand is live and of this shape and type.
pub(crate) fn expect(
    op: &'static str,
    operand: &'static str,
    t: &Tensor,
    shape: Shape,
    dtype: DType,
) -> Result<()> {
    if !t.is_live() {
        return Err(DeviceError::Stale { op, operand });
    }
    if t.shape != shape {
        return Err(DeviceError::Shape { op, operand, expected: shape, actual: t.shape });
    }
    if t.dtype != dtype {
        return Err(DeviceError::DType { op, operand, expected: dtype, actual: t.dtype });
    }
    Ok(())
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let life = match self.life {
            Life::Persistent => "persistent",
            Life::Scratch { .. } => "scratch",
        };
        write!(f, "Tensor({} {:?}, {life})", self.shape, self.dtype)
    }
}
