//! A weight in the CPU device's layout: panels of 16 output features.

use std::any::Any;

use half::{bf16, f16};

use super::blocks::{BLOCK, BlockFormat, dequantise};
use super::memory::{HostChunks, HostRange};
use super::pool::ThreadPool;
use super::simd::LANES;
use crate::WeightFormat;
use crate::error::Result;
use crate::weight::{HostTensor, WeightData};

/// Calls `$body` with the type of a quantised format bound to `$F`.
macro_rules! with_block_format {
    ($format:expr, $F:ident => $body:expr, else $other:expr) => {
        match $format {
            $crate::WeightFormat::Q4_0 => {
                type $F = $crate::cpu::blocks::Q4_0;
                $body
            }
            $crate::WeightFormat::Q4_1 => {
                type $F = $crate::cpu::blocks::Q4_1;
                $body
            }
            $crate::WeightFormat::Q8_0 => {
                type $F = $crate::cpu::blocks::Q8_0;
                $body
            }
            $crate::WeightFormat::Q4K => {
                type $F = $crate::cpu::blocks::Q4K;
                $body
            }
            $crate::WeightFormat::Q6K => {
                type $F = $crate::cpu::blocks::Q6K;
                $body
            }
            _ => $other,
        }
    };
}
pub(crate) use with_block_format;

/// Panels of a quantised or plain weight.
///
/// Plain formats: panel `p`, input `k`, lane `l` at element `(p * cols + k) * 16 + l` of `quants`; no scales.
#[derive(Debug)]
pub(crate) struct CpuWeight {
    pub(crate) format: WeightFormat,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) quants: HostRange,
    pub(crate) scales: HostRange,
}

impl WeightData for CpuWeight {
    fn size_bytes(&self) -> usize {
        self.quants.bytes().len() + self.scales.bytes().len()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl CpuWeight {
    /// Panels, the last one possibly with unused lanes.
    pub(crate) fn num_panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Repacks; `host` has been checked to have the right number of bytes.
    pub(crate) fn pack(host: &HostTensor<'_>, chunks: &HostChunks, pool: &ThreadPool) -> Result<Self> {
        let (quants, scales) = with_block_format!(
            host.format,
            F => pack_blocks::<F>(host, chunks, pool)?,
            else pack_plain(host, chunks, pool)?
        );
        Ok(CpuWeight { format: host.format, rows: host.rows, cols: host.cols, quants, scales })
    }

    /// Row `row`, dequantised; `out` has `cols` elements.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / LANES, row % LANES);
        with_block_format!(
            self.format,
            F => self.row_blocks::<F>(panel, lane, out),
            else self.row_plain(panel, lane, out)
        );
    }

    fn row_blocks<F: BlockFormat>(&self, panel: usize, lane: usize, out: &mut [f32]) {
        let num_blocks = self.cols / BLOCK;
        for (b, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let quants = self.quants.bytes().get((panel * num_blocks + b) * F::QUANT_BYTES..).unwrap_or(&[]);
            let at = (panel * num_blocks / F::SUPER + b / F::SUPER) * F::SCALE_BYTES;
            let scales = self.scales.bytes().get(at..).unwrap_or(&[]);
            dequantise::<F>(quants, scales, b % F::SUPER, lane, out);
        }
    }

    fn row_plain(&self, panel: usize, lane: usize, out: &mut [f32]) {
        let size = self.format.block_bytes();
        let bytes = self.quants.bytes();
        for (k, out) in out.iter_mut().enumerate() {
            let at = ((panel * self.cols + k) * LANES + lane) * size;
            let element = bytes.get(at..at + size).unwrap_or(&[]);
            *out = match (self.format, element) {
                (WeightFormat::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                (WeightFormat::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
                (WeightFormat::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
                _ => 0.0,
            };
        }
    }
}

type Packed = (HostRange, HostRange);

/// Hands each panel's piece of `memory` to `fill`, in parallel.
fn fill_panels(
    [quants, scales]: [&mut HostRange; 2],
    panel_bytes: [usize; 2],
    pool: &ThreadPool,
    fill: impl Fn(usize, &mut [u8], &mut [u8]) + Sync,
) {
    let (quants, scales) = (quants.bytes_mut(), scales.bytes_mut());
    let scales = scales.chunks_mut(panel_bytes[1].max(1)).map(Some).chain(std::iter::repeat_with(|| None));
    let panels: Vec<_> = quants
        .chunks_mut(panel_bytes[0].max(1))
        .zip(scales)
        .map(|pieces| std::sync::Mutex::new(Some(pieces)))
        .collect();
    pool.run(panels.len(), &|p| {
        let pieces = panels.get(p).and_then(|m| m.lock().ok()?.take());
        if let Some((quants, scales)) = pieces {
            fill(p, quants, scales.unwrap_or(&mut []));
        }
    });
}

fn pack_blocks<F: BlockFormat>(
    host: &HostTensor<'_>,
    chunks: &HostChunks,
    pool: &ThreadPool,
) -> Result<Packed> {
    let num_panels = host.rows.div_ceil(LANES);
    let num_super = host.cols / (BLOCK * F::SUPER);
    let panel_quants = num_super * F::SUPER * F::QUANT_BYTES;
    let panel_scales = num_super * F::SCALE_BYTES;
    let mut quants = chunks.take("a weight", num_panels.saturating_mul(panel_quants))?;
    let mut scales = chunks.take("a weight's scales", num_panels.saturating_mul(panel_scales))?;
    let row_bytes = host.bytes.len() / host.rows;
    let super_bytes = host.format.block_bytes() * F::SUPER * BLOCK / host.format.block_len();
    fill_panels([&mut quants, &mut scales], [panel_quants, panel_scales], pool, |p, quants, scales| {
        let pieces =
            quants.chunks_exact_mut(F::SUPER * F::QUANT_BYTES).zip(scales.chunks_exact_mut(F::SCALE_BYTES));
        for (s, (quants, scales)) in pieces.enumerate() {
            let rows = std::array::from_fn(|lane| {
                let row = p * LANES + lane;
                let at = row * row_bytes + s * super_bytes;
                if row < host.rows { host.bytes.get(at..at + super_bytes) } else { None }
            });
            F::pack(&rows, quants, scales);
        }
    });
    Ok((quants, scales))
}

fn pack_plain(host: &HostTensor<'_>, chunks: &HostChunks, pool: &ThreadPool) -> Result<Packed> {
    let size = host.format.block_bytes();
    let panel_bytes = host.cols * LANES * size;
    let mut quants = chunks.take("a weight", host.rows.div_ceil(LANES).saturating_mul(panel_bytes))?;
    let mut scales = chunks.take("a weight's scales", 0)?;
    fill_panels([&mut quants, &mut scales], [panel_bytes, 0], pool, |p, panel, _| {
        for lane in 0..LANES.min(host.rows - p * LANES) {
            let row = host.bytes.get((p * LANES + lane) * host.cols * size..).unwrap_or(&[]);
            for (k, element) in row.chunks_exact(size).take(host.cols).enumerate() {
                let at = (k * LANES + lane) * size;
                if let Some(to) = panel.get_mut(at..at + size) {
                    to.copy_from_slice(element);
                }
            }
        }
    });
    Ok((quants, scales))
}
