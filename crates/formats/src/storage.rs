//! How the elements of a tensor are stored: plain numbers as safetensors has them, and ggml's block formats.
//!
//! A *block* is the smallest unit that can be read alone: one number for plain types, 32 or 256 numbers that share
//! scales for quantised ones. Sizes are those of the ggml block structures (`ggml-common.h`), which
//! `candle_core::quantized` mirrors; a test compares the two.

use std::fmt;

use candle_core::quantized::GgmlDType;

/// Element type of a tensor on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)]
#[non_exhaustive]
pub enum StorageType {
    F64,
    F32,
    F16,
    BF16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP FP8, "E4M3FN").
    F8_E4M3,
    /// 8-bit float, 5 exponent and 2 mantissa bits, IEEE-like.
    F8_E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

impl StorageType {
    /// Every storage type.
    pub const ALL: [Self; 27] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8_E4M3,
        Self::F8_E5M2,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q8_1,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::Q8_K,
    ];

    /// Number of elements in one block: 1 for plain types.
    pub const fn block_size(self) -> usize {
        use StorageType::*;
        match self {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_1 => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | Q8_K => 256,
            _ => 1,
        }
    }

    /// Number of bytes in one block.
    pub const fn block_bytes(self) -> usize {
        use StorageType::*;
        match self {
            F64 | I64 | U64 => 8,
            F32 | I32 | U32 => 4,
            F16 | BF16 | I16 | U16 => 2,
            F8_E4M3 | F8_E5M2 | I8 | U8 | Bool => 1,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q8_1 => 36,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            Q8_K => 292,
        }
    }

    /// Whether this is one of ggml's quantised block formats.
    pub const fn is_quantized(self) -> bool {
        self.block_size() > 1
    }

    /// Whether elements are floating-point numbers, directly or through a block's scales.
    pub const fn is_float(self) -> bool {
        use StorageType::*;
        !matches!(self, I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | Bool)
    }

    /// Bytes that `numel` elements take; `None` on overflow or if `numel` is not a whole number of blocks.
    pub fn bytes_for(self, numel: usize) -> Option<usize> {
        if !numel.is_multiple_of(self.block_size()) {
            return None;
        }
        (numel / self.block_size()).checked_mul(self.block_bytes())
    }

    /// Whether devices hold this type without converting it: F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K.
    pub const fn is_device_native(self) -> bool {
        use StorageType::*;
        matches!(self, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q8_0 | Q4_K | Q6_K)
    }

    /// The type that a weight of this storage takes on a device: itself if it is native there, `Q8_0` for the other
    /// block formats, `F32` for `F64`, `BF16` for 8-bit floats (which it holds exactly); `None` for integers, which
    /// are no weights.
    pub const fn device_storage(self) -> Option<Self> {
        use StorageType::*;
        match self {
            _ if self.is_device_native() => Some(self),
            _ if self.is_quantized() => Some(Q8_0),
            F64 => Some(F32),
            F8_E4M3 | F8_E5M2 => Some(BF16),
            _ => None,
        }
    }

    /// The name that files use: safetensors' for plain types, ggml's for block formats.
    pub const fn name(self) -> &'static str {
        use StorageType::*;
        match self {
            F64 => "F64",
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            F8_E4M3 => "F8_E4M3",
            F8_E5M2 => "F8_E5M2",
            I64 => "I64",
            I32 => "I32",
            I16 => "I16",
            I8 => "I8",
            U64 => "U64",
            U32 => "U32",
            U16 => "U16",
            U8 => "U8",
            Bool => "BOOL",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q8_1 => "Q8_1",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
            Q8_K => "Q8_K",
        }
    }

    /// The type that a safetensors header calls `name`; `None` for types that are not read (4- and 6-bit floats,
    /// bare exponents, complex numbers) and for block formats, which safetensors does not have.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| !t.is_quantized() && t.name() == name)
    }

    /// The type with ggml's number `id` (`enum ggml_type`), or its name in the error case.
    pub(crate) fn from_ggml_id(id: u32) -> Result<Self, String> {
        if let Some(found) = Self::ALL.into_iter().find(|t| t.ggml_id() == Some(id)) {
            return Ok(found);
        }
        let known = match id {
            4 => "Q4_2",
            5 => "Q4_3",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            40 => "NVFP4",
            _ => return Err(format!("unknown ggml type {id}")),
        };
        Err(format!("ggml type {known} is not supported"))
    }

    /// ggml's number for this type (`enum ggml_type`), where it has one.
    pub const fn ggml_id(self) -> Option<u32> {
        use StorageType::*;
        Some(match self {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q5_0 => 6,
            Q5_1 => 7,
            Q8_0 => 8,
            Q8_1 => 9,
            Q2_K => 10,
            Q3_K => 11,
            Q4_K => 12,
            Q5_K => 13,
            Q6_K => 14,
            Q8_K => 15,
            I8 => 24,
            I16 => 25,
            I32 => 26,
            I64 => 27,
            F64 => 28,
            BF16 => 30,
            F8_E4M3 | F8_E5M2 | U64 | U32 | U16 | U8 | Bool => return None,
        })
    }

    /// candle's type for a block format; `None` for plain types.
    pub const fn candle_block_type(self) -> Option<GgmlDType> {
        use StorageType::*;
        Some(match self {
            Q4_0 => GgmlDType::Q4_0,
            Q4_1 => GgmlDType::Q4_1,
            Q5_0 => GgmlDType::Q5_0,
            Q5_1 => GgmlDType::Q5_1,
            Q8_0 => GgmlDType::Q8_0,
            Q8_1 => GgmlDType::Q8_1,
            Q2_K => GgmlDType::Q2K,
            Q3_K => GgmlDType::Q3K,
            Q4_K => GgmlDType::Q4K,
            Q5_K => GgmlDType::Q5K,
            Q6_K => GgmlDType::Q6K,
            Q8_K => GgmlDType::Q8K,
            _ => return None,
        })
    }
}

impl fmt::Display for StorageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for StorageType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_those_of_candle() {
        let mut compared = 0;
        for storage in StorageType::ALL {
            if let Some(candle) = storage.candle_block_type() {
                assert_eq!(storage.block_size(), candle.block_size(), "{storage}");
                assert_eq!(storage.block_bytes(), candle.type_size(), "{storage}");
                compared += 1;
            } else {
                assert_eq!(storage.block_size(), 1, "{storage}");
            }
        }
        assert_eq!(compared, 12);
    }

    #[test]
    fn ids_and_names_are_unique_and_read_back() {
        for storage in StorageType::ALL {
            if let Some(id) = storage.ggml_id() {
                assert_eq!(StorageType::from_ggml_id(id), Ok(storage));
            }
            let by_name = StorageType::from_safetensors(storage.name());
            assert_eq!(by_name, (!storage.is_quantized()).then_some(storage));
        }
        assert!(StorageType::from_ggml_id(23).unwrap_err().contains("IQ4_XS"));
        assert!(StorageType::from_ggml_id(u32::MAX).unwrap_err().contains("4294967295"));
        assert_eq!(StorageType::from_safetensors("F4"), None);
    }

    #[test]
    fn sizes_never_overflow() {
        assert_eq!(StorageType::Q4_1.bytes_for(64), Some(40));
        assert_eq!(StorageType::Q4_1.bytes_for(33), None);
        assert_eq!(StorageType::F32.bytes_for(usize::MAX), None);
        assert_eq!(StorageType::Q8_0.bytes_for(usize::MAX - 31), None);
        assert_eq!(StorageType::Q4_0.bytes_for(usize::MAX - 31), Some((usize::MAX / 32) * 18));
    }
}
