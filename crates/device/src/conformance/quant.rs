//! Random weights in every storage format, and what their bytes mean: the block layouts of the GGUF specification,
//! element by element.

use half::{bf16, f16};

use super::random::Random;
use crate::{Ctx, HostTensor, Weight, WeightFormat};

pub(super) const FORMATS: [WeightFormat; 8] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::BF16,
    WeightFormat::Q4_0,
    WeightFormat::Q4_1,
    WeightFormat::Q8_0,
    WeightFormat::Q4K,
    WeightFormat::Q6K,
];

/// A weight on the host with the exact values that its bytes stand for.
#[derive(Debug)]
pub(super) struct HostWeight {
    pub(super) format: WeightFormat,
    pub(super) rows: usize,
    pub(super) cols: usize,
    bytes: Vec<u8>,
    values: Vec<f64>,
}

impl HostWeight {
    /// Random blocks: any quants, scales that make weights of magnitudes around 0.1.
    pub(super) fn random(random: &mut Random, format: WeightFormat, rows: usize, cols: usize) -> Self {
        let num_blocks = rows * cols / format.block_len();
        let mut bytes = Vec::with_capacity(num_blocks * format.block_bytes());
        let mut values = Vec::with_capacity(rows * cols);
        for _ in 0..num_blocks {
            let block = random_block(random, format);
            dequantise(format, &block, &mut values);
            bytes.extend(block);
        }
        assert_eq!(bytes.len(), rows * format.row_bytes(cols).unwrap());
        assert_eq!(values.len(), rows * cols);
        HostWeight { format, rows, cols, bytes, values }
    }

    pub(super) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    pub(super) fn load(&self, ctx: &mut Ctx) -> Weight {
        let HostWeight { format, rows, cols, ref bytes, .. } = *self;
        let weight = ctx.load_weight(&HostTensor { format, rows, cols, bytes }).unwrap();
        assert_eq!((weight.rows(), weight.cols(), weight.format()), (rows, cols, format));
        weight
    }
}

fn random_block(random: &mut Random, format: WeightFormat) -> Vec<u8> {
    let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| random.bits() as u8).collect();
    let mut put = |at: usize, from: f64, to: f64| {
        let value = f16::from_f32(random.range(from..to));
        block[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    match format {
        WeightFormat::F32 => return (random.normal() * 0.1).to_le_bytes().to_vec(),
        WeightFormat::F16 => return f16::from_f32(random.normal() * 0.1).to_le_bytes().to_vec(),
        WeightFormat::BF16 => return bf16::from_f32(random.normal() * 0.1).to_le_bytes().to_vec(),
        WeightFormat::Q4_0 => put(0, -0.02, 0.04),
        WeightFormat::Q4_1 => {
            put(0, 0.005, 0.03);
            put(2, -0.3, 0.1);
        }
        WeightFormat::Q8_0 => put(0, -0.001, 0.003),
        WeightFormat::Q4K => {
            put(0, 0.0, 6e-4);
            put(2, 0.0, 6e-3);
        }
        WeightFormat::Q6K => put(208, -5e-5, 1.5e-4),
    }
    block
}

fn half_at(block: &[u8], at: usize) -> f64 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f64()
}

/// Appends the values of one block.
fn dequantise(format: WeightFormat, block: &[u8], out: &mut Vec<f64>) {
    let low = |b: u8| f64::from(b & 15);
    let high = |b: u8| f64::from(b >> 4);
    match format {
        WeightFormat::F32 => out.push(f64::from(f32::from_le_bytes(block.try_into().unwrap()))),
        WeightFormat::F16 => out.push(half_at(block, 0)),
        WeightFormat::BF16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f64()),
        WeightFormat::Q4_0 => {
            let d = half_at(block, 0);
            out.extend(block[2..].iter().map(|&b| d * (low(b) - 8.0)));
            out.extend(block[2..].iter().map(|&b| d * (high(b) - 8.0)));
        }
        WeightFormat::Q4_1 => {
            let (d, m) = (half_at(block, 0), half_at(block, 2));
            out.extend(block[4..].iter().map(|&b| d * low(b) + m));
            out.extend(block[4..].iter().map(|&b| d * high(b) + m));
        }
        WeightFormat::Q8_0 => {
            let d = half_at(block, 0);
            out.extend(block[2..].iter().map(|&b| d * f64::from(b as i8)));
        }
        WeightFormat::Q4K => {
            let (d, d_min) = (half_at(block, 0), half_at(block, 2));
            let packed = &block[4..16];
            let quants = &block[16..144];
            for sub in 0..8 {
                // Eight 6-bit scales and minimums in twelve bytes: the first four of each whole in the low bits, the
                // upper two bits of the others above them.
                let (scale, min) = if sub < 4 {
                    (packed[sub] & 63, packed[sub + 4] & 63)
                } else {
                    (
                        packed[sub + 4] & 15 | packed[sub - 4] >> 6 << 4,
                        packed[sub + 4] >> 4 | packed[sub] >> 6 << 4,
                    )
                };
                // Two sub-blocks of 32 share 32 bytes: one in the low, the next in the high nibbles.
                for &b in &quants[sub / 2 * 32..][..32] {
                    let q = if sub % 2 == 0 { low(b) } else { high(b) };
                    out.push(d * f64::from(scale) * q - d_min * f64::from(min));
                }
            }
        }
        WeightFormat::Q6K => {
            let (lows, highs, scales) = (&block[..128], &block[128..192], &block[192..208]);
            let d = half_at(block, 208);
            for i in 0..256 {
                // Halves of 128 weights: quarter `i / 32 % 4` has its low nibbles in one of two rows of 32 bytes,
                // low half of the byte first, and its upper two bits at bit pair `quarter`.
                let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
                let byte = lows[half * 64 + quarter % 2 * 32 + l];
                let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
                let upper = highs[half * 32 + l] >> (2 * quarter) & 3;
                let q = f64::from(nibble | upper << 4) - 32.0;
                out.push(d * f64::from(scales[i / 16] as i8) * q);
            }
        }
    }
}
