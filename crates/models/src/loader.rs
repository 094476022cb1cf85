//! Takes a model's tensors from their source one at a time and hands them to the device.

use wardrobe_device::{Ctx, ExpertModules, Experts, HostTensor, ModuleIdx, Tensor, Weight, WeightFormat};
use wardrobe_formats::{Digest, ModelConfig, StorageType, TensorInfo, convert};

use crate::Module;
use crate::error::Result;
use crate::source::WeightSource;

/// In what precision weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightPrecision {
    /// As the file has them; formats that the device does not hold become `Q8_0`.
    #[default]
    AsStored,
    /// Dequantised to f32: for comparisons, at the price of memory and speed.
    F32,
}

/// Hears of each tensor: its name, and bytes read so far of all.
pub type LoadProgress<'a> = dyn Fn(&str, u64, u64) + 'a;

/// How to load a model.
pub struct LoadOptions<'a> {
    /// Precision of the weights.
    pub precision: WeightPrecision,
    /// Called for each tensor.
    pub progress: &'a LoadProgress<'a>,
}

impl std::fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions").field("precision", &self.precision).finish_non_exhaustive()
    }
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        LoadOptions { precision: WeightPrecision::AsStored, progress: &|_, _, _| {} }
    }
}

/// Loads tensors by name for an architecture.
pub(crate) struct Loader<'a> {
    ctx: &'a mut Ctx,
    source: Box<dyn WeightSource + 'a>,
    options: &'a LoadOptions<'a>,
    modules: Vec<Module>,
    read_bytes: u64,
    total_bytes: u64,
    weight_bytes: usize,
}

/// How the device holds a storage type, if it does so without loss.
fn native(storage: StorageType) -> Option<WeightFormat> {
    Some(match storage {
        StorageType::F32 => WeightFormat::F32,
        StorageType::F16 => WeightFormat::F16,
        StorageType::BF16 => WeightFormat::BF16,
        StorageType::Q4_0 => WeightFormat::Q4_0,
        StorageType::Q4_1 => WeightFormat::Q4_1,
        StorageType::Q8_0 => WeightFormat::Q8_0,
        StorageType::Q4_K => WeightFormat::Q4K,
        StorageType::Q6_K => WeightFormat::Q6K,
        _ => return None,
    })
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        ctx: &'a mut Ctx,
        source: Box<dyn WeightSource + 'a>,
        options: &'a LoadOptions<'a>,
    ) -> Self {
        let total_bytes = source.total_bytes();
        Loader { ctx, source, options, modules: Vec::new(), read_bytes: 0, total_bytes, weight_bytes: 0 }
    }

    fn read(&mut self, name: &str, expected: &[usize]) -> Result<(TensorInfo, Vec<u8>)> {
        let (info, bytes) = self.source.read(name, expected)?;
        self.read_bytes += bytes.len() as u64;
        (self.options.progress)(name, self.read_bytes, self.total_bytes);
        Ok((info, bytes))
    }

    /// A tensor as it is used elementwise: f32.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor> {
        self.offset_vector(name, len, 0.0)
    }

    /// A vector of which every element is used with `offset` added.
    pub(crate) fn offset_vector(&mut self, name: &str, len: usize, offset: f32) -> Result<Tensor> {
        let (info, bytes) = self.read(name, &[len])?;
        let mut values = convert::to_f32(info.storage, &bytes, len)?;
        values.iter_mut().for_each(|v| *v += offset);
        self.source.used(info, bytes);
        self.weight_bytes += 4 * len;
        Ok(self.ctx.upload_f32("a parameter", [len], &values)?)
    }

    /// A bias, where the file has one.
    pub(crate) fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Tensor>> {
        if self.has(name) { self.vector(name, len).map(Some) } else { Ok(None) }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    /// A matrix `[rows, cols]`.
    pub(crate) fn weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        let (info, stored) = self.read(name, &[rows, cols])?;
        let (storage, numel) = (info.storage, rows.saturating_mul(cols));
        let converted: Vec<u8>;
        let (format, bytes) = match (self.options.precision, native(storage)) {
            (WeightPrecision::AsStored, Some(format)) => (format, &stored),
            (WeightPrecision::F32, Some(WeightFormat::F32)) => (WeightFormat::F32, &stored),
            (WeightPrecision::F32, _) => {
                let values = convert::to_f32(storage, &stored, numel)?;
                converted = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (WeightFormat::F32, &converted)
            }
            (WeightPrecision::AsStored, None) => {
                tracing::warn!(tensor = name, from = ?storage, "held as Q8_0: the device has no such format");
                converted = convert::requantize_q8_0(storage, &stored, numel, cols)?;
                (WeightFormat::Q8_0, &converted)
            }
        };
        let weight = self.ctx.load_weight(&HostTensor { format, rows, cols, bytes })?;
        self.source.used(info, stored);
        self.weight_bytes += weight.size_bytes();
        Ok(weight)
    }

    /// A linear layer that adapters may adapt: `path.weight`, and `path.bias` if there is one.
    pub(crate) fn linear(&mut self, path: &str, rows: usize, cols: usize) -> Result<Linear> {
        let weight = self.weight(&format!("{path}.weight"), rows, cols)?;
        let bias = self.optional_vector(&format!("{path}.bias"), rows)?;
        Ok(self.register(path, weight, bias))
    }

    /// The linear layers of `num_experts` experts, `path.E.NAME.weight` `[out, in]` for each part `(NAME, out, in)`; adapters
    /// may adapt each of them. An expert's layers are modules one after the other.
    pub(crate) fn experts<const N: usize>(
        &mut self,
        path: &str,
        num_experts: usize,
        parts: [(&str, usize, usize); N],
    ) -> Result<[Experts; N]> {
        let first = self.modules.len() as u32;
        let mut weights: [Vec<Weight>; N] = std::array::from_fn(|_| Vec::with_capacity(num_experts));
        for expert in 0..num_experts {
            for ((name, rows, cols), weights) in parts.into_iter().zip(&mut weights) {
                let path = format!("{path}.{expert}.{name}");
                let weight = self.weight(&format!("{path}.weight"), rows, cols)?;
                weights.push(self.register(&path, weight, None).weight);
            }
        }
        let mut layers = Vec::with_capacity(N);
        for (idx, weights) in weights.into_iter().enumerate() {
            let modules = ExpertModules { first: ModuleIdx(first + idx as u32), stride: N as u32 };
            layers.push(self.ctx.experts(weights, Some(modules))?);
        }
        let invalid = || wardrobe_device::DeviceError::Invalid { op: "experts", reason: path.to_owned() };
        layers.try_into().map_err(|_| invalid().into())
    }

    /// The same with a bias that has to be there.
    pub(crate) fn biased_linear(&mut self, path: &str, rows: usize, cols: usize) -> Result<Linear> {
        let weight = self.weight(&format!("{path}.weight"), rows, cols)?;
        let bias = self.vector(&format!("{path}.bias"), rows)?;
        Ok(self.register(path, weight, Some(bias)))
    }

    /// Makes a loaded weight one that adapters may adapt.
    pub(crate) fn register(&mut self, path: &str, weight: Weight, bias: Option<Tensor>) -> Linear {
        let idx = ModuleIdx(self.modules.len() as u32);
        self.modules.push(Module { path: path.to_owned(), idx, weight: weight.clone() });
        Linear { weight, bias, module: idx }
    }

    /// The modules, the size of all weights and the digest of what was read, once nothing is left over. `ignored` tells
    /// of tensors that are known and not needed.
    pub(crate) fn finish(
        self,
        config: &ModelConfig,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<(Vec<Module>, usize, Digest)> {
        let digest = self.source.finish(config, &ignored)?;
        Ok((self.modules, self.weight_bytes, digest))
    }
}

/// A linear layer.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Tensor>,
    pub(crate) module: ModuleIdx,
}

impl Linear {
    /// The layer as an operand of the linear op.
    pub(crate) fn projection<'a>(&'a self, residual: Option<&'a Tensor>) -> wardrobe_device::Projection<'a> {
        wardrobe_device::Projection {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            module: Some(self.module),
            residual,
        }
    }
}
