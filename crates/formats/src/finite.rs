//! Whether the numbers of a tensor are numbers: no NaN, no infinity, in plain elements and in the scales of blocks.
//!
//! One NaN in a weight makes every answer nonsense without an error anywhere, so readers look before they serve.
//! Written to cost little beside reading: each pass is a plain reduction over runs, and only a run with a finding is
//! searched for its place.

use std::path::Path;

use crate::error::{FormatError, Result};
use crate::storage::StorageType;

const F16_EXPONENT: u16 = 0x7c00;
const BF16_EXPONENT: u16 = 0x7f80;
const F32_EXPONENT: u32 = 0x7f80_0000;

/// Checks the elements of `bytes`, or the scales of its blocks; `path` and `tensor` are for the message.
///
/// An F64 that f32 cannot hold counts as infinite.
///
/// # Errors
/// [`FormatError::Tensor`] with the first place at fault.
pub fn check(path: &Path, tensor: &str, storage: StorageType, bytes: &[u8]) -> Result<()> {
    match first_not_finite(storage, bytes) {
        None => Ok(()),
        Some(idx) if storage.is_quantized() => {
            Err(FormatError::tensor(path, tensor, format!("a scale of block {idx} is NaN or infinite")))
        }
        Some(idx) => Err(FormatError::tensor(path, tensor, format!("element {idx} is NaN or infinite"))),
    }
}

/// Index of the first block (of the first element, for a plain type) that is not finite. Offsets of the scales are
/// those of the ggml block structures (`ggml-common.h`).
pub fn first_not_finite(storage: StorageType, bytes: &[u8]) -> Option<usize> {
    use StorageType::*;
    match storage {
        F64 => first(bytes, |b| !(f64::from_le_bytes(b) as f32).is_finite()),
        F32 => first(bytes, |b| u32::from_le_bytes(b) & F32_EXPONENT == F32_EXPONENT),
        F16 => first(bytes, |b| u16::from_le_bytes(b) & F16_EXPONENT == F16_EXPONENT),
        BF16 => first(bytes, |b| u16::from_le_bytes(b) & BF16_EXPONENT == BF16_EXPONENT),
        // No infinities: all bits below the sign set is NaN.
        F8_E4M3 => first(bytes, |[b]: [u8; 1]| b & 0x7f == 0x7f),
        F8_E5M2 => first(bytes, |[b]: [u8; 1]| b & 0x7c == 0x7c),
        I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | Bool => None,
        Q4_0 => scales::<18, 1>(bytes, [0]),
        Q4_1 => scales::<20, 2>(bytes, [0, 2]),
        Q5_0 => scales::<22, 1>(bytes, [0]),
        Q5_1 => scales::<24, 2>(bytes, [0, 2]),
        Q8_0 => scales::<34, 1>(bytes, [0]),
        Q8_1 => scales::<36, 2>(bytes, [0, 2]),
        Q2_K => scales::<84, 2>(bytes, [80, 82]),
        Q3_K => scales::<110, 1>(bytes, [108]),
        Q4_K => scales::<144, 2>(bytes, [0, 2]),
        Q5_K => scales::<176, 2>(bytes, [0, 2]),
        Q6_K => scales::<210, 1>(bytes, [208]),
        // The scale is F32: one that overflows with the largest integer beside it is too large.
        Q8_K => first(bytes, |[b0, b1, b2, b3, ..]: [u8; 292]| {
            !(f32::from_le_bytes([b0, b1, b2, b3]) * 128.0).is_finite()
        }),
    }
}

/// As [`first`], for blocks of `SIZE` bytes with F16 scales at `places`.
fn scales<const SIZE: usize, const COUNT: usize>(bytes: &[u8], places: [usize; COUNT]) -> Option<usize> {
    first(bytes, |block: [u8; SIZE]| {
        places.iter().fold(false, |bad, &at| {
            let scale = u16::from_le_bytes([block[at], block[at + 1]]);
            bad | (scale & F16_EXPONENT == F16_EXPONENT)
        })
    })
}

/// Index of the first element of `N` bytes that is bad.
#[inline]
fn first<const N: usize>(bytes: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const RUN: usize = 1024;
    let (elements, _) = bytes.as_chunks::<N>();
    let bad_run = elements.chunks(RUN).position(|run| run.iter().fold(false, |bad, e| bad | is_bad(*e)))?;
    let within = elements.get(bad_run * RUN..)?.iter().position(|e| is_bad(*e))?;
    Some(bad_run * RUN + within)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;
    use crate::convert;

    /// Blocks that the format's own decoder reads as finite numbers.
    fn sound(storage: StorageType, num_blocks: usize) -> Vec<u8> {
        let mut bytes = vec![0; num_blocks * storage.block_bytes()];
        bytes.iter_mut().enumerate().for_each(|(i, b)| *b = (i % 13) as u8);
        bytes
    }

    /// Every byte of a block in turn is set to the upper half of an infinite or NaN scale: the check finds what the
    /// decoder finds, and nothing else.
    #[test]
    fn finds_what_decodes_to_no_number() {
        const BLOCKS: usize = 3;
        for storage in StorageType::ALL {
            let clean = sound(storage, BLOCKS);
            assert_eq!(first_not_finite(storage, &clean), None, "{storage}");
            let numel = BLOCKS * storage.block_size();
            let size = storage.block_bytes();
            for at in size..2 * size {
                for pattern in [0x7c, 0x7e, 0x7f, 0xfc, 0xff] {
                    let mut bytes = clean.clone();
                    bytes[at] = pattern;
                    // F32 and BF16 exponents end in the byte below.
                    if at > size {
                        bytes[at - 1] = 0xf0;
                    }
                    let Ok(values) = convert::to_f32(storage, &bytes, numel) else { continue };
                    let decoded = values.iter().position(|v| !v.is_finite());
                    let expected = decoded.map(|element| element / storage.block_size());
                    let found = first_not_finite(storage, &bytes);
                    // A sum that decoding does not need, and a scale that other integers would overflow.
                    let is_stricter = match storage {
                        StorageType::Q8_1 => (2..4).contains(&(at - size)),
                        StorageType::Q8_K => at - size < 4,
                        _ => false,
                    };
                    let as_expected = found == expected || (is_stricter && expected.is_none());
                    assert!(as_expected, "{storage}, byte {} = {pattern:#x}: {found:?}", at - size);
                }
            }
        }
    }

    #[test]
    fn the_first_place_is_told_in_long_tensors() {
        let mut values = vec![1.0f32; 5000];
        for at in [4999, 2048, 2047, 0] {
            values[at] = f32::INFINITY;
            let bytes = convert::from_f32(StorageType::F32, &values, 1).unwrap();
            let error = check(Path::new("m.gguf"), "w", StorageType::F32, &bytes).unwrap_err().to_string();
            assert!(error.contains(&format!("element {at} is")) && error.contains("`w`"), "{error}");
        }
        let mut bytes = sound(StorageType::Q4_K, 3000);
        bytes[144 * 2999 + 3] = 0xfc;
        let error = check(Path::new("m.gguf"), "w", StorageType::Q4_K, &bytes).unwrap_err().to_string();
        assert!(error.contains("block 2999") && error.contains("m.gguf"), "{error}");
    }
}
