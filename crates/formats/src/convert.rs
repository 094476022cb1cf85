//! Conversions between storage types.
//!
//! Plain numbers are little-endian on disk and are decoded by hand; ggml blocks go through
//! `candle_core::quantized`, a slice of blocks at a time, so that the working memory beyond input and output is
//! small. candle reinterprets blocks in the host's byte order: hosts are little-endian.

use std::borrow::Cow;

use candle_core::CpuStorage;
use half::{bf16, f16};

use crate::error::{FormatError, Result};
use crate::storage::StorageType;

#[cfg(target_endian = "big")]
compile_error!("ggml blocks are read in the host's byte order, which has to be little-endian");

/// Elements converted at once: a whole number of blocks of every type.
const CHUNK_ELEMENTS: usize = 64 * 256;
/// candle checks that blocks are aligned as their structures are (at most as `f32`).
const BLOCK_ALIGN: usize = 8;

/// The `numel` elements in `bytes` as f32. Integers over 2^24 and F64 are rounded; everything else is exact.
///
/// # Errors
/// [`FormatError::ByteLength`] if `bytes` has another length than the elements take.
pub fn to_f32(storage: StorageType, bytes: &[u8], numel: usize) -> Result<Vec<f32>> {
    use StorageType::*;
    check_len(storage, bytes, numel)?;
    let mut out = Vec::new();
    out.try_reserve_exact(numel).map_err(|_| FormatError::OutOfMemory {
        bytes: (numel as u64).saturating_mul(4),
        what: format!("{storage} as f32"),
    })?;
    match storage {
        F64 => decode(bytes, &mut out, |b| f64::from_le_bytes(b) as f32),
        F32 => decode(bytes, &mut out, f32::from_le_bytes),
        F16 => decode(bytes, &mut out, |b| f16::from_le_bytes(b).to_f32()),
        BF16 => decode(bytes, &mut out, |b| bf16::from_le_bytes(b).to_f32()),
        F8_E4M3 => decode(bytes, &mut out, |[b]| f8_e4m3_to_f32(b)),
        // The upper byte of an IEEE half has the very layout of E5M2.
        F8_E5M2 => decode(bytes, &mut out, |[b]| f16::from_bits(u16::from(b) << 8).to_f32()),
        I64 => decode(bytes, &mut out, |b| i64::from_le_bytes(b) as f32),
        I32 => decode(bytes, &mut out, |b| i32::from_le_bytes(b) as f32),
        I16 => decode(bytes, &mut out, |b| i16::from_le_bytes(b).into()),
        I8 => decode(bytes, &mut out, |b| i8::from_le_bytes(b).into()),
        U64 => decode(bytes, &mut out, |b| u64::from_le_bytes(b) as f32),
        U32 => decode(bytes, &mut out, |b| u32::from_le_bytes(b) as f32),
        U16 => decode(bytes, &mut out, |b| u16::from_le_bytes(b).into()),
        U8 => decode(bytes, &mut out, |[b]| b.into()),
        Bool => decode(bytes, &mut out, |[b]| f32::from(b != 0)),
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_1 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | Q8_K => {
            dequantize(storage, bytes, &mut out)?;
        }
    }
    Ok(out)
}

/// `values` in `storage`: a float type (rounded to nearest even) or a block format, whose rows of `row_numel`
/// elements have to be whole blocks.
///
/// # Errors
/// [`FormatError::Conversion`] for integer and 8-bit float targets, rows that are not whole blocks, and for a block
/// format if a value is not finite: one such value would spoil its neighbours.
pub fn from_f32(storage: StorageType, values: &[f32], row_numel: usize) -> Result<Vec<u8>> {
    use StorageType::*;
    match storage {
        F64 => Ok(values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        F32 => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        F16 => Ok(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        BF16 => Ok(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        _ => quantize(storage, values, row_numel),
    }
}

/// Elements of `from` as `Q8_0` (34 bytes for 32 elements), for block formats that a device does not hold.
/// Q8_1 and Q8_K keep their integers' precision up to the rounding of the scale; the others gain no error that
/// matters beside their own: at most 1/254 of the largest magnitude among 32 neighbours.
///
/// # Errors
/// As [`to_f32`] and [`from_f32`].
pub fn requantize_q8_0(from: StorageType, bytes: &[u8], numel: usize, row_numel: usize) -> Result<Vec<u8>> {
    convert(from, bytes, numel, row_numel, StorageType::Q8_0)
}

/// Elements of `from` in `to`, a slice at a time, so that the f32 form never exists whole.
///
/// # Errors
/// As [`to_f32`] and [`from_f32`].
pub fn convert(
    from: StorageType,
    bytes: &[u8],
    numel: usize,
    row_numel: usize,
    to: StorageType,
) -> Result<Vec<u8>> {
    check_len(from, bytes, numel)?;
    if from == to {
        return Ok(bytes.to_vec());
    }
    check_rows(from, to, numel, row_numel)?;
    let size = to.bytes_for(numel).unwrap_or(usize::MAX);
    let mut out = Vec::new();
    out.try_reserve_exact(size)
        .map_err(|_| FormatError::OutOfMemory { bytes: size as u64, what: format!("{from} as {to}") })?;
    let chunk_bytes = CHUNK_ELEMENTS / from.block_size() * from.block_bytes();
    let mut left = numel;
    for chunk in bytes.chunks(chunk_bytes) {
        let chunk_numel = left.min(CHUNK_ELEMENTS);
        left -= chunk_numel;
        // Blocks divide rows, so a slice is whole blocks of the target as well: `chunk_numel` plays the row.
        out.extend_from_slice(&from_f32(to, &to_f32(from, chunk, chunk_numel)?, chunk_numel)?);
    }
    Ok(out)
}

fn check_len(storage: StorageType, bytes: &[u8], numel: usize) -> Result<()> {
    let expected = storage.bytes_for(numel).map_or(u64::MAX, |b| b as u64);
    if bytes.len() as u64 == expected {
        return Ok(());
    }
    Err(FormatError::ByteLength { storage, numel, expected, actual: bytes.len() as u64 })
}

fn check_rows(from: StorageType, to: StorageType, numel: usize, row_numel: usize) -> Result<()> {
    let block = to.block_size();
    if row_numel.is_multiple_of(block) && numel.is_multiple_of(row_numel.max(1)) {
        return Ok(());
    }
    let problem = format!("{numel} elements in rows of {row_numel} are no whole blocks of {block}");
    Err(FormatError::Conversion { from, to, problem })
}

fn decode<const N: usize>(bytes: &[u8], out: &mut Vec<f32>, decode: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    out.extend(elements.iter().map(|b| decode(*b)));
}

/// OCP FP8 E4M3: bias 7, no infinities, `S.1111.111` is NaN.
fn f8_e4m3_to_f32(b: u8) -> f32 {
    let sign = if b & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(b >> 3 & 0xf), f32::from(b & 7));
    match (exponent, b & 7) {
        (0xf, 7) => f32::NAN,
        (0, _) => sign * mantissa / 8.0 * 2f32.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

fn dequantize(storage: StorageType, bytes: &[u8], out: &mut Vec<f32>) -> Result<()> {
    let failed = |problem: String| FormatError::Conversion { from: storage, to: StorageType::F32, problem };
    let block_type = storage.candle_block_type().ok_or_else(|| failed("no block format".to_owned()))?;
    let chunk_bytes = CHUNK_ELEMENTS / storage.block_size() * storage.block_bytes();
    let mut aligned = vec![0u8; chunk_bytes.min(bytes.len()) + BLOCK_ALIGN];
    for chunk in bytes.chunks(chunk_bytes) {
        let start = aligned.as_ptr().align_offset(BLOCK_ALIGN);
        let slot = aligned
            .get_mut(start..start.saturating_add(chunk.len()))
            .ok_or_else(|| failed("no aligned buffer".to_owned()))?;
        slot.copy_from_slice(chunk);
        let numel = chunk.len() / storage.block_bytes() * storage.block_size();
        let blocks = block_type.from_data(Cow::Borrowed(slot));
        match blocks.dequantize(numel).map_err(|e| failed(e.to_string()))? {
            CpuStorage::F32(values) => out.extend_from_slice(&values),
            _ => return Err(failed("candle gave another type than f32".to_owned())),
        }
    }
    Ok(())
}

fn quantize(storage: StorageType, values: &[f32], row_numel: usize) -> Result<Vec<u8>> {
    let failed = |problem: &str| FormatError::Conversion {
        from: StorageType::F32,
        to: storage,
        problem: problem.to_owned(),
    };
    let block_type = storage.candle_block_type().ok_or_else(|| failed("no conversion to this type"))?;
    check_rows(StorageType::F32, storage, values.len(), row_numel)?;
    if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(failed(&format!("value {bad} is not finite")));
    }
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let device = candle_core::Device::Cpu;
    let wrap = |e: candle_core::Error| failed(&e.to_string());
    let mut out = Vec::with_capacity(storage.bytes_for(values.len()).unwrap_or(0));
    for chunk in values.chunks(CHUNK_ELEMENTS) {
        let tensor = candle_core::Tensor::from_slice(chunk, chunk.len(), &device).map_err(wrap)?;
        let quantized = candle_core::quantized::QTensor::quantize(&tensor, block_type).map_err(wrap)?;
        out.extend_from_slice(&quantized.data().map_err(wrap)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
