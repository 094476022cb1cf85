//! In which element type a device holds factors.
//!
//! Steps with many adapters wait for the factors' bytes. In f16 they are half of what PEFT writes, and rounding to 11
//! bits is lost beside quantised weights and keys in f16. Each factor is multiplied with a power of two first, which
//! brings its largest value near f16's: what is small beside it keeps its digits, and the module's scale undoes it.

use half::f16;
use half::slice::HalfFloatSliceExt;
use wardrobe_device::{DType, WeightFormat};
use wardrobe_formats::peft::LoraModule;
use wardrobe_formats::{AdapterTensor, StorageType};

use crate::Module;
use crate::error::Result;

/// In which precision an adapter's factors are held. Factors stored in 16 bits stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdapterPrecision {
    /// f16, but as stored beside weights in f32.
    #[default]
    Auto,
    /// As the file has them: what PEFT saves in f32 stays exact.
    AsStored,
    /// f16.
    F16,
}

impl AdapterPrecision {
    /// What `Auto` is beside keys and values of `kv_dtype`: who keeps those in f32 wants no rounding.
    #[must_use]
    pub fn beside(self, kv_dtype: DType) -> Self {
        if self == AdapterPrecision::Auto && kv_dtype == DType::F32 {
            AdapterPrecision::AsStored
        } else {
            self
        }
    }
}

/// The element type in which a module's two factors are held.
pub(super) fn held_dtype(module: &Module, part: &LoraModule, precision: AdapterPrecision) -> DType {
    let narrow = match precision {
        AdapterPrecision::Auto => module.weight.format() != WeightFormat::F32,
        AdapterPrecision::AsStored => false,
        AdapterPrecision::F16 => true,
    };
    match (part.a.storage(), part.b.storage()) {
        (StorageType::F16, StorageType::F16) => DType::F16,
        (StorageType::BF16, StorageType::BF16) => DType::BF16,
        _ if narrow => DType::F16,
        _ => DType::F32,
    }
}

/// A factor's bytes in an element type, and what they are to be multiplied with.
pub(super) struct HeldFactor {
    pub(super) bytes: Vec<u8>,
    pub(super) scale: f64,
}

impl HeldFactor {
    /// `factor` in `dtype`: its own type, f16 or f32.
    pub(super) fn new(factor: &AdapterTensor, dtype: DType) -> Result<Self> {
        let is_held = match factor.storage() {
            StorageType::F16 => dtype == DType::F16,
            StorageType::BF16 => dtype == DType::BF16,
            StorageType::F32 => dtype == DType::F32,
            _ => false,
        };
        if is_held {
            return Ok(HeldFactor { bytes: factor.bytes().to_vec(), scale: 1.0 });
        }
        let mut values = factor.to_f32()?;
        if dtype != DType::F16 {
            let bytes: Vec<[u8; 4]> = values.iter().map(|v| v.to_le_bytes()).collect();
            return Ok(HeldFactor { bytes: bytes.into_flattened(), scale: 1.0 });
        }
        let exponent = f16_exponent(&values);
        let factor = (exponent as f32).exp2();
        values.iter_mut().for_each(|v| *v *= factor);
        let mut narrow = vec![f16::ZERO; values.len()];
        narrow.convert_from_f32_slice(&values);
        let bytes: Vec<[u8; 2]> = narrow.iter().map(|v| v.to_le_bytes()).collect();
        Ok(HeldFactor { bytes: bytes.into_flattened(), scale: (-f64::from(exponent)).exp2() })
    }
}

/// Power of two that brings the largest of `values` to 2^13 at least and below 2^14: f16 ends at 2^16. No more than
/// 2^40, so that scales stay far from what f32 cannot hold; a factor so small does nothing.
fn f16_exponent(values: &[f32]) -> i32 {
    // By their bits, magnitudes are in the same order, and compared some at a time.
    let largest = values.iter().fold(0, |largest, v| v.abs().to_bits().max(largest));
    let largest = f32::from_bits(largest);
    if largest == 0.0 {
        return 0;
    }
    (13 - f64::from(largest).log2().floor() as i32).min(40)
}
