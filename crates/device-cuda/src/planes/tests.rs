//! Packing against the definitions of the formats, and the way back.

use super::*;

const FORMATS: [WeightFormat; 8] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::BF16,
    WeightFormat::Q4_0,
    WeightFormat::Q4_1,
    WeightFormat::Q8_0,
    WeightFormat::Q4K,
    WeightFormat::Q6K,
];

/// `SplitMix64` (Steele et al., OOPSLA 2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.bits() as u8).collect()
    }
}

fn columns(format: WeightFormat) -> [usize; 3] {
    match format.block_len() {
        1 => [1, 203, 64],
        32 => [32, 416, 128],
        _ => [256, 512, 768],
    }
}

/// The value of element `i` of a block of a file, by ggml's definition (`dequantize_row_*` of ggml-quants.c).
fn value(format: WeightFormat, block: &[u8], i: usize) -> f32 {
    let h = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |at: usize| f32::from(block[at + i % 16] >> (4 * (i / 16)) & 15);
    match format {
        WeightFormat::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        WeightFormat::F16 => h(0),
        WeightFormat::BF16 => bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        WeightFormat::Q4_0 => (nibble(2) - 8.0) * h(0),
        WeightFormat::Q4_1 => nibble(4) * h(0) + h(2),
        WeightFormat::Q8_0 => f32::from(block[2 + i] as i8) * h(0),
        WeightFormat::Q4K => {
            let (j, packed) = (i / 32, &block[4..16]);
            let (scale, min) = if j < 4 {
                (packed[j] & 63, packed[j + 4] & 63)
            } else {
                let (a, b, c) = (packed[j + 4], packed[j - 4], packed[j]);
                (a & 15 | b >> 6 << 4, a >> 4 | c >> 6 << 4)
            };
            let q = block[16 + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15;
            h(0) * f32::from(scale) * f32::from(q) - h(2) * f32::from(min)
        }
        WeightFormat::Q6K => {
            let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
            let low = block[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
            let high = block[128 + 32 * half + l] >> (2 * quarter) & 3;
            let q = f32::from(low | high << 4) - 32.0;
            h(208) * f32::from(block[192 + i / 16] as i8) * q
        }
    }
}

fn row_of(packed: &Packed, row: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; packed.layout.cols];
    let planes = packed.layout.ranges(row..row + 1).map(|range| &packed.bytes[range]);
    dequantise_row(&packed.layout, planes, &mut out);
    out
}

/// Equal bits, where NaN is NaN.
fn assert_same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
        assert!(same, "{what}: element {i} is {got:e}, expected {want:e}");
    }
}

#[test]
fn values_are_those_of_the_file() {
    let mut random = Random(1);
    for format in FORMATS {
        for cols in columns(format) {
            let rows = 5;
            let bytes = random.bytes(rows * format.row_bytes(cols).unwrap());
            let packed = pack(format, rows, cols, &bytes).unwrap();
            for (row, file) in bytes.chunks(bytes.len() / rows).enumerate() {
                let blocks = file.chunks(format.block_bytes());
                let want: Vec<f32> =
                    blocks.flat_map(|b| (0..format.block_len()).map(|i| value(format, b, i))).collect();
                assert_same(&format!("{format:?}, {cols} columns, row {row}"), &row_of(&packed, row), &want);
            }
        }
    }
}

fn hash(packed: &Packed) -> u64 {
    let planes = packed.layout.ranges(0..packed.layout.rows).map(|range| &packed.bytes[range]);
    let bytes = planes.into_iter().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// What kernels/host/tests/dequantise.cpp packs by itself from lib/weight.cuh's words, from the same random bytes.
#[test]
fn packing_is_what_kernels_read() {
    let want = [
        0xaf8c_286a_d90b_d32d,
        0x5c85_e0ee_515d_a9d5,
        0xfcd3_ade3_15ae_f90d,
        0x931e_a0bb_2483_3608,
        0x07e4_c7d4_1910_2c0b,
        0x791e_9913_ee9c_7e39,
        0x24a3_3953_e4fb_efd8,
        0x28e1_0910_9491_10f9,
        0x221d_d561_b709_7f80,
    ];
    for (i, want) in want.into_iter().enumerate() {
        let mut random = Random(7 + i as u64);
        let format = FORMATS.get(i).copied().unwrap_or(WeightFormat::BF16);
        let (rows, cols) = (3, columns(format)[1]);
        let mut bytes = random.bytes(rows * format.row_bytes(cols).unwrap());
        let packed = if i == PlaneFormat::F8 as usize {
            bytes.iter_mut().skip(1).step_by(2).for_each(|b| *b &= 0xbf);
            pack_f8(format, rows, cols, &bytes).unwrap()
        } else {
            pack(format, rows, cols, &bytes).unwrap()
        };
        assert_eq!(packed.layout.format as usize, i);
        assert_eq!(hash(&packed), want, "{:?} is 0x{:x}", packed.layout.format, hash(&packed));
    }
}

#[test]
fn no_more_bytes_than_the_file() {
    for format in FORMATS {
        let layout = Layout::new(format.into(), 512, 1024).unwrap();
        assert_eq!(layout.size_bytes, 512 * format.row_bytes(1024).unwrap(), "{format:?}");
        assert!(layout.offsets.iter().all(|offset| offset.is_multiple_of(ALIGNMENT)));
    }
    assert_eq!(Layout::new(PlaneFormat::F8, 512, 1024).unwrap().size_bytes, 512 * (1024 + 4));
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(pack(WeightFormat::F32, 2, 3, &[0; 23]).is_none());
    assert!(pack(WeightFormat::Q4_0, 1, 33, &[0; 18]).is_none());
    assert!(pack(WeightFormat::Q6K, 1, 128, &[0; 105]).is_none());
    assert!(pack_f8(WeightFormat::Q8_0, 1, 32, &[0; 34]).is_none());
    assert!(Layout::new(PlaneFormat::F32, usize::MAX, 2).is_none());
    assert!(Layout::new(PlaneFormat::F32, 1, usize::MAX).is_none());
    assert_eq!(pack(WeightFormat::F16, 0, 8, &[]).map(|p| p.bytes.len()), Some(0));
}

/// More rows than one thread takes.
#[test]
fn threads_divide_rows_alone() {
    let (rows, cols) = (4099, 4096);
    let bytes = Random(3).bytes(64).repeat(rows * 4096 / 32 * 18 / 64);
    let packed = pack(WeightFormat::Q4_0, rows, cols, &bytes).unwrap();
    let file_row = bytes.len() / rows;
    for row in [0, 1, 2047, 2049, 2050, 3073, 4098] {
        let alone = pack(WeightFormat::Q4_0, 1, cols, &bytes[row * file_row..][..file_row]).unwrap();
        assert_same("a row", &row_of(&packed, row), &row_of(&alone, 0));
    }
}

#[test]
fn rounding_to_e4m3() {
    for bits in 0..127_u8 {
        let (v, next) = (e4m3_value(bits), e4m3_value(bits + 1));
        assert_eq!((e4m3_of(v), e4m3_of(-v)), (bits, bits | 0x80));
        if bits == 126 {
            break;
        }
        let middle = f32::midpoint(v, next);
        assert_eq!(e4m3_of(middle), bits + bits % 2, "between {v} and {next}");
        assert_eq!(e4m3_of(middle.next_down()), bits);
        assert_eq!(e4m3_of(middle.next_up()), bits + 1);
    }
    assert_eq!((e4m3_of(1e9), e4m3_of(f32::NEG_INFINITY)), (0x7e, 0xfe));
}

#[test]
fn rows_of_f8_have_their_own_scale() {
    let rows: [[f32; 3]; 5] = [
        [0.0, -0.0, 0.0],
        [1e-30, -3e-31, 0.0],
        [896.0, 2.0, -1.0],
        [f32::NAN, 1.0, 0.0],
        [1.0, f32::INFINITY, 0.0],
    ];
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    let packed = pack_f8(WeightFormat::F32, 5, 3, &bytes).unwrap();
    assert_same("zeros", &row_of(&packed, 0), &rows[0]);
    for row in [1, 2] {
        for (got, want) in row_of(&packed, row).iter().zip(rows[row]) {
            assert!((got - want).abs() <= want.abs() / 16.0, "{got} for {want}");
        }
    }
    assert!(row_of(&packed, 3).iter().chain(&row_of(&packed, 4)).all(|v| v.is_nan()));
    assert!(!packed.bytes[..5 * 128].iter().any(|b| b & 0x7f == 0x7f));
}
