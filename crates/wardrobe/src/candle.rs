//! The edge to candle: logits and adapter weights in and out as [`candle_core::Tensor`], so that apps on candle plug in.
//!
//! Owns no state. Everything is copied across the edge, on the host. It deliberately knows linear factors (A, B and
//! DoRA's magnitudes) only, which are what the runtime serves; an adapter with more is refused by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType as CandleDType, Device as CandleDevice, Tensor};
use wardrobe_device::{Ctx, CtxConfig, StepLimits};
use wardrobe_engine::{AdapterSource, TokenId};
use wardrobe_formats::peft::{LoraModule, PeftContents, PeftLimits};
use wardrobe_formats::{AdapterConfig, AdapterTensor, PeftAdapter, StorageType};
use wardrobe_models::{LoraAdapter, LoraOptions, RopeSpec};

use crate::error::{Error, Result};
use crate::model::Model;

/// What every tensor name of a PEFT file begins with.
const PEFT_PREFIX: &str = "base_model.model.";

/// Names under a module's path of its three tensors.
const SUFFIXES: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"];

impl Model {
    /// The logits at every position of `tokens`, `[tokens, vocab_size]` in f32, of the base model or of one adapter.
    ///
    /// One sequence, computed at once with keys and values in f32: for scoring and for looking inside, where
    /// [`Model::engine`] is for serving. Takes memory for the whole result.
    ///
    /// # Errors
    /// [`Error::Setting`] for no tokens or more than the model's context, [`Error::Device`].
    pub fn logits(&self, tokens: &[TokenId], adapter: Option<&LoraAdapter>) -> Result<Tensor> {
        let c = self.config();
        let own = adapter.and_then(LoraAdapter::rope);
        let max = own.map_or(c.max_position_embeddings, |rope| rope.max_position_embeddings);
        if tokens.is_empty() || tokens.len() > max {
            let n = tokens.len();
            return Err(Error::Setting(format!("logits of {n} tokens; the model takes 1 to {max}")));
        }
        let spec = own.map_or_else(|| RopeSpec::of(c), |rope| RopeSpec::of_adapter(c, rope));
        let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
        let modules = adapter.map(LoraAdapter::modules);
        let logits =
            wardrobe_models::logits(self.device().clone(), self.decoder().as_ref(), &ids, modules, &spec)?;
        Ok(Tensor::from_vec(logits, (tokens.len(), c.vocab_size), &CandleDevice::Cpu)?)
    }

    /// Fits an adapter to this model, for [`Model::logits`].
    ///
    /// # Errors
    /// [`Error::Model`] naming the module or tensor that does not fit.
    pub fn fit_adapter(&self, adapter: &PeftAdapter, options: &LoraOptions) -> Result<LoraAdapter> {
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(self.device().clone(), CtxConfig { arena_bytes: 0, step })?;
        Ok(LoraAdapter::new(&mut ctx, self.decoder().as_ref(), adapter, options)?)
    }
}

/// An adapter made of candle tensors under PEFT's names, `model.layers.0.self_attn.q_proj.lora_A.weight` (`[rank, in]`),
/// `….lora_B.weight` (`[out, rank]`) and with DoRA `….lora_magnitude_vector` (`[out]`), with or without the
/// prefix `base_model.model.`; F32, F16 or BF16. `label` stands for the path in messages.
///
/// The same checks as for a folder: ranks, targets, shapes of the pairs, finite values.
///
/// # Errors
/// [`Error::Setting`] for a name of another form or half a pair, [`Error::Format`] naming the tensor at fault.
pub fn adapter_from_tensors(
    label: &str,
    config: &AdapterConfig,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<PeftAdapter> {
    let mut parts: BTreeMap<String, [Option<AdapterTensor>; 3]> = BTreeMap::new();
    for (name, tensor) in tensors {
        let path = name.strip_prefix(PEFT_PREFIX).unwrap_or(&name);
        let found = SUFFIXES.iter().enumerate().find_map(|(i, suffix)| Some((i, path.strip_suffix(suffix)?)));
        let Some((which, module)) = found else {
            return Err(Error::Setting(format!(
                "{label}: tensor {name} ends in none of {}",
                SUFFIXES.join(", ")
            )));
        };
        let slot = parts.entry(module.to_owned()).or_default().get_mut(which);
        if let Some(slot) = slot
            && slot.replace(from_candle(label, &name, &tensor)?).is_some()
        {
            return Err(Error::Setting(format!("{label}: tensor {name} is given twice")));
        }
    }
    let modules = parts
        .into_iter()
        .map(|(module_path, factors)| match factors {
            // Rank and scale are set from the configuration.
            [Some(a), Some(b), magnitude] => {
                Ok(LoraModule { module_path, a, b, magnitude, rank: 0, scale: 0.0 })
            }
            _ => Err(Error::Setting(format!("{label}: module {module_path} has not both of A and B"))),
        })
        .collect::<Result<Vec<_>>>()?;
    let contents = PeftContents {
        config,
        modules: &modules,
        embeddings: &[],
        saved: &[],
        rope: None,
        parity: None,
        extra_files: &[],
    };
    Ok(PeftAdapter::from_contents(label, &contents, &PeftLimits::default())?)
}

/// The tensors of an adapter under PEFT's names (with the prefix `base_model.model.`), in their own element types.
///
/// # Errors
/// [`Error::Setting`] if it has more than linear factors, naming the first such part; [`Error::Candle`].
pub fn adapter_tensors(adapter: &PeftAdapter) -> Result<BTreeMap<String, Tensor>> {
    let saved = adapter.saved().iter().map(|s| &s.module_path);
    if let Some(other) = adapter.embeddings().iter().map(|e| &e.module_path).chain(saved).next() {
        let path = adapter.path().display();
        return Err(Error::Setting(format!("{path}: {other} has more than linear factors")));
    }
    let mut tensors = BTreeMap::new();
    for module in adapter.modules() {
        let parts = [Some(&module.a), Some(&module.b), module.magnitude.as_ref()];
        for (suffix, tensor) in SUFFIXES.iter().zip(parts) {
            if let Some(tensor) = tensor {
                tensors.insert(format!("{PEFT_PREFIX}{}{suffix}", module.module_path), to_candle(tensor)?);
            }
        }
    }
    Ok(tensors)
}

/// An adapter in memory as a source for [`wardrobe_engine::Engine::load_adapter`].
pub fn adapter_source(adapter: PeftAdapter) -> AdapterSource {
    let label = adapter.path().display().to_string();
    AdapterSource::InProcess { label, payload: Arc::new(adapter) }
}

fn to_candle(tensor: &AdapterTensor) -> Result<Tensor> {
    let dtype = match tensor.storage() {
        StorageType::F16 => CandleDType::F16,
        StorageType::BF16 => CandleDType::BF16,
        _ => CandleDType::F32,
    };
    Ok(Tensor::from_raw_buffer(tensor.bytes(), dtype, tensor.shape(), &CandleDevice::Cpu)?)
}

fn from_candle(label: &str, name: &str, tensor: &Tensor) -> Result<AdapterTensor> {
    let storage = match tensor.dtype() {
        CandleDType::F32 => StorageType::F32,
        CandleDType::F16 => StorageType::F16,
        CandleDType::BF16 => StorageType::BF16,
        other => {
            let expected = "expected F32, F16 or BF16";
            return Err(Error::Setting(format!("{label}: tensor {name} is {}, {expected}", other.as_str())));
        }
    };
    let mut bytes = Vec::new();
    tensor.to_device(&CandleDevice::Cpu)?.write_bytes(&mut bytes)?;
    Ok(AdapterTensor::new(label.as_ref(), name, storage, tensor.dims().to_vec(), bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &str = "model.layers.0.self_attn.q_proj";

    fn config() -> AdapterConfig {
        AdapterConfig::new(2, 4.0, vec!["q_proj".to_owned()])
    }

    fn pair(dtype: CandleDType) -> BTreeMap<String, Tensor> {
        let tensor = |rows: usize, cols: usize, sign: f32| {
            let values: Vec<f32> = (0..rows * cols).map(|i| sign * (i as f32 * 0.25 - 1.0)).collect();
            Tensor::from_vec(values, (rows, cols), &CandleDevice::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        BTreeMap::from([
            (format!("{PEFT_PREFIX}{Q}.lora_A.weight"), tensor(2, 3, 1.0)),
            (format!("{PEFT_PREFIX}{Q}.lora_B.weight"), tensor(4, 2, -1.0)),
        ])
    }

    #[test]
    fn tensors_survive_the_way_in_and_out_in_every_type() {
        for dtype in [CandleDType::F32, CandleDType::F16, CandleDType::BF16] {
            let given = pair(dtype);
            let adapter = adapter_from_tensors("memory", &config(), given.clone()).unwrap();
            assert_eq!((adapter.modules()[0].rank, adapter.modules()[0].scale), (2, 2.0));
            let got = adapter_tensors(&adapter).unwrap();
            assert!(got.keys().eq(given.keys()), "{got:?}");
            for (name, tensor) in &got {
                assert_eq!((tensor.dtype(), tensor.dims()), (dtype, given[name].dims()));
                let values = |t: &Tensor| {
                    t.to_dtype(CandleDType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                assert_eq!(values(tensor), values(&given[name]), "{name}");
            }
        }
    }

    #[test]
    fn the_prefix_is_optional_and_views_are_read_in_order() {
        let transposed = pair(CandleDType::F32).into_iter().map(|(name, t)| {
            // The same values by way of a view with other strides.
            let view = t.t().unwrap().contiguous().unwrap().t().unwrap();
            (name[PEFT_PREFIX.len()..].to_owned(), view)
        });
        let a = adapter_from_tensors("a", &config(), transposed).unwrap();
        let b = adapter_from_tensors("b", &config(), pair(CandleDType::F32)).unwrap();
        assert_eq!(a.digest(), b.digest());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut tensors = pair(CandleDType::F32);
            change(&mut tensors);
            adapter_from_tensors("memory", &config(), tensors).unwrap_err().to_string()
        };
        let b = format!("{PEFT_PREFIX}{Q}.lora_B.weight");
        let nan = Tensor::full(f32::NAN, (4, 2), &CandleDevice::Cpu).unwrap();
        let wide = Tensor::zeros((4, 3), CandleDType::F32, &CandleDevice::Cpu).unwrap();
        let whole = Tensor::zeros((4, 2), CandleDType::I64, &CandleDevice::Cpu).unwrap();
        let half = refused(&|t| drop(t.remove(&b)));
        assert!(half.contains(Q) && half.contains("both of A and B"), "{half}");
        let other = refused(&|t| drop(t.insert("model.norm.weight".to_owned(), nan.clone())));
        assert!(other.contains("model.norm.weight"), "{other}");
        for (tensor, what) in [(&nan, "NaN"), (&wide, "lora_B"), (&whole, "i64")] {
            let error = refused(&|t| drop(t.insert(b.clone(), tensor.clone())));
            assert!(error.contains(what), "{error}");
        }
        let twice = pair(CandleDType::F32).into_iter().chain([(format!("{Q}.lora_B.weight"), nan)]);
        assert!(adapter_from_tensors("memory", &config(), twice).is_err());
    }
}
