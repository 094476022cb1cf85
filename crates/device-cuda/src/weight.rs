//! Weights on the card, in the planes that kernels read.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use wardrobe_device::{DeviceError, HostTensor, Memory, Result, Weight, WeightData};

use crate::device::Cuda;
use crate::kernels::WeightArg;
use crate::memory::DeviceMemory;
use crate::ops::int;
use crate::planes::{self, Layout, PLANES, Packed, PlaneFormat};

/// Rows that are read from the card at once.
const READ_ROWS: usize = 1024;

/// A weight of this device.
#[derive(Debug)]
pub(crate) struct CudaWeight {
    layout: Layout,
    memory: Arc<DeviceMemory>,
}

fn invalid<T>(op: &'static str, reason: String) -> Result<T> {
    Err(DeviceError::Invalid { op, reason })
}

impl CudaWeight {
    pub(crate) fn load(cuda: &Cuda, host: &HostTensor<'_>) -> Result<Self> {
        let HostTensor { format, rows, cols, bytes } = *host;
        let rounds = cuda.fp8_weights && !format.is_quantised();
        let pack = if rounds { planes::pack_f8 } else { planes::pack };
        let Some(Packed { layout, bytes }) = pack(format, rows, cols, bytes) else {
            return invalid("load_weight", format!("{host:?} is no whole number of blocks"));
        };
        Ok(CudaWeight { layout, memory: cuda.upload("a weight", &bytes)? })
    }

    pub(crate) fn of(weight: &Weight) -> Result<&Self> {
        match weight.data().as_any().downcast_ref() {
            Some(weight) => Ok(weight),
            None => invalid("cuda", "a weight of another device".to_owned()),
        }
    }

    pub(crate) fn format(&self) -> PlaneFormat {
        self.layout.format
    }

    pub(crate) fn rows(&self) -> usize {
        self.layout.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.layout.cols
    }

    /// What four lanes of a kernel read of a row at a time.
    pub(crate) fn units(&self) -> usize {
        let unit = match self.layout.format {
            PlaneFormat::F32 => 32,
            PlaneFormat::F16 | PlaneFormat::BF16 => 64,
            _ => 128,
        };
        self.layout.cols.div_ceil(unit)
    }

    /// As kernels take it.
    pub(crate) fn arg(&self) -> WeightArg {
        let [elements, scales, high, supers] = self.layout.offsets.map(|at| self.memory.ptr().offset(at));
        WeightArg {
            elements,
            scales,
            high,
            supers,
            rows: int(self.layout.rows),
            cols: int(self.layout.cols),
            format: self.layout.format as i32,
            unused: 0,
        }
    }

    /// Calls `f` with each of some rows, dequantised.
    fn for_rows(&self, cuda: &Cuda, rows: Range<usize>, mut f: impl FnMut(usize, &[f32])) -> Result<()> {
        let mut row = vec![0.0; self.layout.cols];
        for first in rows.clone().step_by(READ_ROWS) {
            let part = first..(first + READ_ROWS).min(rows.end);
            let mut bytes: [Vec<u8>; PLANES] = Default::default();
            cuda.with_stream(|stream| {
                for (bytes, range) in bytes.iter_mut().zip(self.layout.ranges(part.clone())) {
                    bytes.resize(range.len(), 0);
                    let from = self.memory.ptr().offset(range.start);
                    // SAFETY: the range lies in the weight's memory.
                    unsafe { cuda.driver.read(stream, from, bytes)? };
                }
                Ok(())
            })?;
            for (i, idx) in part.enumerate() {
                let mut planes: [&[u8]; PLANES] = Default::default();
                for ((plane, bytes), len) in planes.iter_mut().zip(&bytes).zip(self.layout.row_bytes) {
                    *plane = bytes.get(i * len..(i + 1) * len).unwrap_or(&[]);
                }
                planes::dequantise_row(&self.layout, planes, &mut row);
                f(idx, &row);
            }
        }
        Ok(())
    }

    pub(crate) fn dequantise_rows(&self, cuda: &Cuda, first_row: usize, out: &mut [f32]) -> Result<()> {
        let cols = self.layout.cols.max(1);
        let rows = out.len() / cols;
        if !out.len().is_multiple_of(cols) || first_row.saturating_add(rows) > self.layout.rows {
            let of = (self.layout.rows, cols);
            return invalid(
                "dequantise_rows",
                format!("{} values from row {first_row} of {of:?}", out.len()),
            );
        }
        let mut outs = out.chunks_exact_mut(cols);
        self.for_rows(cuda, first_row..first_row + rows, |_, row| {
            if let Some(out) = outs.next() {
                out.copy_from_slice(row);
            }
        })
    }

    /// See [`wardrobe_device::Device::update_norms`].
    pub(crate) fn update_norms(&self, cuda: &Cuda, factors: [&[f32]; 2], scale: f32) -> Result<Vec<f32>> {
        let (Layout { rows, cols, .. }, [a, b]) = (self.layout, factors);
        let rank = b.len() / rows.max(1);
        if b.len() != rank * rows || a.len() != rank * cols {
            return invalid(
                "update_norms",
                format!("factors of {} and {} for {:?}", a.len(), b.len(), (rows, cols)),
            );
        }
        let mut norms = Vec::with_capacity(rows);
        let mut updated = vec![0.0; cols];
        self.for_rows(cuda, 0..rows, |idx, row| {
            updated.copy_from_slice(row);
            let b = b.get(idx * rank..(idx + 1) * rank).unwrap_or(&[]);
            for (b, a) in b.iter().zip(a.chunks(cols.max(1))) {
                let factor = scale * b;
                updated.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
            }
            norms.push(updated.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt() as f32);
        })?;
        Ok(norms)
    }
}

impl WeightData for CudaWeight {
    fn size_bytes(&self) -> usize {
        self.memory.len_bytes()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Entry points of `gemv.cu` by variant: up to 8 rows with 16 or 32 features a block, 16 rows, 32 rows.
macro_rules! gemv_names {
    ($format:literal) => {
        [
            concat!("gemv_", $format, "_16x8"),
            concat!("gemv_", $format, "_32x8"),
            concat!("gemv_", $format, "_32x16"),
            concat!("gemv_", $format, "_64x32"),
        ]
    };
}

impl PlaneFormat {
    pub(crate) fn is_quantised(self) -> bool {
        !matches!(self, PlaneFormat::F32 | PlaneFormat::F16 | PlaneFormat::BF16)
    }

    /// The entry points of `gemv.cu`.
    pub(crate) fn gemv(self) -> [&'static str; 4] {
        match self {
            PlaneFormat::F32 => ["gemv_f32_4x8"; 4],
            PlaneFormat::F16 => gemv_names!("f16"),
            PlaneFormat::BF16 => gemv_names!("bf16"),
            PlaneFormat::Q4_0 => gemv_names!("q4_0"),
            PlaneFormat::Q4_1 => gemv_names!("q4_1"),
            PlaneFormat::Q8_0 => gemv_names!("q8_0"),
            PlaneFormat::Q4K => gemv_names!("q4_k"),
            PlaneFormat::Q6K => gemv_names!("q6_k"),
            PlaneFormat::F8 => gemv_names!("f8"),
        }
    }
}
