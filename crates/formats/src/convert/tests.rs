//! Conversions against formulas written independently of candle, from the layout comments of `ggml-common.h`.

use half::f16;

use super::*;

/// Numbers that look random, without a generator's dependency.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn plain_types_decode_exactly() {
    let cases: [(StorageType, Vec<u8>, Vec<f32>); 14] = [
        (StorageType::F64, [1.5f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect(), vec![1.5, -2.0]),
        (
            StorageType::F32,
            [1.5f32, f32::MIN].iter().flat_map(|v| v.to_le_bytes()).collect(),
            vec![1.5, f32::MIN],
        ),
        (StorageType::F16, vec![0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00], vec![1.0, -2.0, 2f32.powi(-24)]),
        (StorageType::BF16, vec![0x80, 0x3f, 0x40, 0xc0], vec![1.0, -3.0]),
        // 1.0; -1.0; the largest, 448; the smallest, 2^-9.
        (StorageType::F8_E4M3, vec![0x38, 0xb8, 0x7e, 0x01], vec![1.0, -1.0, 448.0, 2f32.powi(-9)]),
        // 1.0; -1.0; the largest, 57344; the smallest, 2^-16.
        (StorageType::F8_E5M2, vec![0x3c, 0xbc, 0x7b, 0x01], vec![1.0, -1.0, 57344.0, 2f32.powi(-16)]),
        (StorageType::I64, (-3i64).to_le_bytes().to_vec(), vec![-3.0]),
        (StorageType::I32, (-70_000i32).to_le_bytes().to_vec(), vec![-70_000.0]),
        (StorageType::I16, (-300i16).to_le_bytes().to_vec(), vec![-300.0]),
        (StorageType::I8, vec![0xff, 0x7f], vec![-1.0, 127.0]),
        (StorageType::U64, 5u64.to_le_bytes().to_vec(), vec![5.0]),
        (StorageType::U32, 70_000u32.to_le_bytes().to_vec(), vec![70_000.0]),
        (StorageType::U16, 65_535u16.to_le_bytes().to_vec(), vec![65_535.0]),
        (StorageType::Bool, vec![0, 1], vec![0.0, 1.0]),
    ];
    for (storage, bytes, expected) in cases {
        assert_eq!(to_f32(storage, &bytes, expected.len()).unwrap(), expected, "{storage}");
    }
    assert!(to_f32(StorageType::F8_E4M3, &[0x7f], 1).unwrap()[0].is_nan());
}

#[test]
fn q4_and_q8_blocks_follow_their_formulas() {
    let (d, m) = (f16::from_f32(0.25), f16::from_f32(-1.5));
    let nibbles: Vec<u8> = (0..16u8).map(|i| i | (15 - i) << 4).collect();
    let header = |scales: &[f16]| scales.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>();
    // Q4_0: element j is the low nibble of byte j, element 16 + j the high one; (q - 8) * d.
    let block = [header(&[d]), nibbles.clone()].concat();
    let expected: Vec<f32> =
        (0..32).map(|i| if i < 16 { i } else { 31 - i }).map(|q| (q as f32 - 8.0) * 0.25).collect();
    assert_eq!(to_f32(StorageType::Q4_0, &block, 32).unwrap(), expected);
    // Q4_1: q * d + m.
    let block = [header(&[d, m]), nibbles].concat();
    let expected: Vec<f32> =
        (0..32).map(|i| if i < 16 { i } else { 31 - i }).map(|q| q as f32 * 0.25 - 1.5).collect();
    assert_eq!(to_f32(StorageType::Q4_1, &block, 32).unwrap(), expected);
    // Q8_0: q * d.
    let block = [header(&[d]), (0..32).map(|i| (i as i8 - 16) as u8).collect()].concat();
    let expected: Vec<f32> = (0..32).map(|i| (i as f32 - 16.0) * 0.25).collect();
    assert_eq!(to_f32(StorageType::Q8_0, &block, 32).unwrap(), expected);
}

#[test]
fn q6_k_blocks_follow_their_formula() {
    // ql[128] low nibbles, qh[64] upper two bits, scales[16] i8, d: element = d * scale * (q - 32).
    let ql: Vec<u8> = (0..128).map(|i| (i * 37 % 256) as u8).collect();
    let qh: Vec<u8> = (0..64).map(|i| (i * 101 % 256) as u8).collect();
    let scales: Vec<u8> = (0..16).map(|i| (i as i8 * 5 - 40) as u8).collect();
    let block = [ql.clone(), qh.clone(), scales.clone(), f16::from_f32(0.5).to_le_bytes().to_vec()].concat();
    let values = to_f32(StorageType::Q6_K, &block, 256).unwrap();
    for (i, value) in values.iter().enumerate() {
        let (half, within) = (i / 128, i % 128);
        let (quarter, l) = (within / 32, within % 32);
        let low = ql[half * 64 + (quarter % 2) * 32 + l];
        let low = if quarter < 2 { low & 15 } else { low >> 4 };
        let high = qh[half * 32 + l] >> (2 * quarter) & 3;
        let q = i32::from(low | high << 4) - 32;
        let scale = scales[i / 16] as i8;
        assert_eq!(*value, 0.5 * f32::from(scale) * q as f32, "element {i}");
    }
}

#[test]
fn every_block_format_round_trips_within_its_resolution() {
    let values = noise(4 * 256);
    for (storage, tolerance) in [
        (StorageType::Q4_0, 0.13),
        (StorageType::Q4_1, 0.07),
        (StorageType::Q5_0, 0.065),
        (StorageType::Q5_1, 0.035),
        (StorageType::Q8_0, 0.005),
        (StorageType::Q8_1, 0.005),
        (StorageType::Q2_K, 0.5),
        (StorageType::Q3_K, 0.3),
        (StorageType::Q4_K, 0.1),
        (StorageType::Q5_K, 0.05),
        (StorageType::Q6_K, 0.05),
        (StorageType::Q8_K, 0.01),
    ] {
        let bytes = from_f32(storage, &values, 256).unwrap();
        assert_eq!(bytes.len(), storage.bytes_for(values.len()).unwrap());
        let back = to_f32(storage, &bytes, values.len()).unwrap();
        let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{storage}: {worst}");

        let q8 = requantize_q8_0(storage, &bytes, values.len(), 256).unwrap();
        let q8 = to_f32(StorageType::Q8_0, &q8, values.len()).unwrap();
        let worst = back.iter().zip(&q8).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Half a step of 1/127, and the rounding of the scale to f16, of values up to 1.1 after quantisation.
        assert!(worst <= 1.1 * (0.5 / 127.0 + 127.0 / 127.0 / 2048.0), "{storage} as Q8_0: {worst}");
    }
}

#[test]
fn slices_give_what_the_whole_gives() {
    let values = noise(CHUNK_ELEMENTS * 2 + 512);
    let bytes = from_f32(StorageType::Q5_1, &values, 256).unwrap();
    let whole = to_f32(StorageType::Q5_1, &bytes, values.len()).unwrap();
    let first = to_f32(StorageType::Q5_1, &bytes[..24], 32).unwrap();
    assert_eq!(whole[..32], first);
    let last = to_f32(StorageType::Q5_1, &bytes[bytes.len() - 24..], 32).unwrap();
    assert_eq!(whole[whole.len() - 32..], last);
    let direct = from_f32(StorageType::Q8_0, &whole, 256).unwrap();
    assert!(requantize_q8_0(StorageType::Q5_1, &bytes, values.len(), 256).unwrap() == direct);
}

#[test]
fn unaligned_input_is_read_as_aligned() {
    let values = noise(512);
    let bytes = from_f32(StorageType::Q8_K, &values, 256).unwrap();
    let expected = to_f32(StorageType::Q8_K, &bytes, 512).unwrap();
    for shift in 1..8 {
        let mut shifted = vec![0; shift];
        shifted.extend_from_slice(&bytes);
        assert_eq!(to_f32(StorageType::Q8_K, &shifted[shift..], 512).unwrap(), expected);
    }
}

#[test]
fn wrong_lengths_rows_and_values_are_errors() {
    for storage in StorageType::ALL {
        assert!(to_f32(storage, &[0; 7], 1).is_err(), "{storage}");
        assert!(to_f32(storage, &[], usize::MAX).is_err(), "{storage}");
        assert_eq!(to_f32(storage, &[], 0).unwrap(), Vec::<f32>::new());
    }
    let message = to_f32(StorageType::Q4_0, &[0; 17], 32).unwrap_err().to_string();
    assert_eq!(message, "Q4_0: 32 elements need 18 bytes, found 17");
    assert!(from_f32(StorageType::Q8_0, &[0.0; 48], 48).is_err());
    assert!(from_f32(StorageType::Q8_0, &[0.0; 64], 16).is_err());
    assert!(from_f32(StorageType::I8, &[0.0], 1).is_err());
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = vec![0.5; 256];
        values[77] = bad;
        for storage in StorageType::ALL.into_iter().filter(|s| s.is_quantized()) {
            let message = from_f32(storage, &values, 256).unwrap_err().to_string();
            assert!(message.contains("not finite"), "{message}");
        }
    }
}

#[test]
fn any_bytes_dequantize_without_panic() {
    for storage in StorageType::ALL {
        for fill in [0x00, 0x55, 0x7f, 0x80, 0xff] {
            let numel = storage.block_size() * 3;
            let values = to_f32(storage, &vec![fill; storage.bytes_for(numel).unwrap()], numel).unwrap();
            assert_eq!(values.len(), numel, "{storage}");
        }
    }
}
