//! LoRA (with rsLoRA, DoRA and per-module ranks): from a PEFT folder to factors on a device.
//!
//! Every tensor of the adapter must belong to a module of the model, in the right shape, and every module of the model
//! that the configuration targets must have its tensors; what cannot be served is refused by name. The result is immutable and can be bound to any slot.

use std::collections::HashSet;

use wardrobe_device::{Ctx, DType, LoraFactors, LoraModules, LoraTable, Reservation, Tensor};
use wardrobe_formats::peft::{AdapterRope, LoraModule, SavedModule};
use wardrobe_formats::{Digest, PeftAdapter};

use super::held::{AdapterPrecision, HeldFactor, held_dtype};
use crate::error::{ModelError, Result};
use crate::{Decoder, Module};

/// The distance between two copies of one weight, of its norm: rounding to 16 bits, and to about 3 bits.
pub(super) const MAX_DENSE_DISTANCE: f64 = 0.01;
pub(super) const MAX_QUANTISED_DISTANCE: f64 = 0.25;

/// What an adapter may be, and how it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraOptions {
    /// Largest rank.
    pub max_rank: usize,
    /// Accept an adapter whose B factors are all zero: it changes nothing, which is rarely meant.
    pub allow_noop: bool,
    /// In which precision its factors are held.
    pub precision: AdapterPrecision,
}

impl Default for LoraOptions {
    fn default() -> Self {
        LoraOptions { max_rank: 256, allow_noop: false, precision: AdapterPrecision::default() }
    }
}

/// A table of `num_slots` empty slots for a model's adapters.
pub fn adapter_table(model: &dyn Decoder, num_slots: usize) -> LoraTable {
    LoraTable::new(num_slots, model.modules().iter().map(|m| [m.weight.rows(), m.weight.cols()]))
}

/// An adapter's factors on a device, by module.
#[derive(Debug, Clone)]
pub struct LoraAdapter {
    modules: LoraModules,
    rope: Option<AdapterRope>,
    digest: Digest,
    max_rank: usize,
    size_bytes: usize,
}

impl LoraAdapter {
    /// Fits `adapter` to `model` and copies its factors to the context's device.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] naming the module or tensor that does not fit.
    pub fn new(
        ctx: &mut Ctx,
        model: &dyn Decoder,
        adapter: &PeftAdapter,
        options: &LoraOptions,
    ) -> Result<Self> {
        let refuse = |reason: String| refusal(adapter, reason);
        check_contents(adapter, options.allow_noop).map_or(Ok(()), |reason| Err(refuse(reason)))?;
        for saved in adapter.saved() {
            check_saved(ctx, model, saved)?.map_or(Ok(()), |reason| Err(refuse(reason)))?;
        }
        if adapter.modules().is_empty() {
            return Err(refuse("has no factors".to_owned()));
        }
        let mut parts = Vec::with_capacity(adapter.modules().len());
        for part in adapter.modules() {
            let module = model.modules().iter().find(|m| m.path == part.module_path);
            let Some(module) = module else {
                return Err(refuse(format!("module {} does not exist in the model", part.module_path)));
            };
            if part.rank > options.max_rank {
                let reason =
                    format!("rank {} of {} exceeds the limit {}", part.rank, module.path, options.max_rank);
                return Err(refuse(reason));
            }
            let (out, input) = (module.weight.rows(), module.weight.cols());
            check_shapes(part, out, input).map_or(Ok(()), |reason| Err(refuse(reason)))?;
            parts.push((module, part));
        }
        let paths: Vec<&str> = model.modules().iter().map(|m| m.path.as_str()).collect();
        let found = parts.iter().map(|(module, _)| module.path.as_str()).collect();
        check_complete(&paths, adapter, &found)?.map_or(Ok(()), |reason| Err(refuse(reason)))?;
        // Side by side in the order of use: layers that share an input need all their A, then all their B.
        parts.sort_by_key(|(module, _)| module.idx.0);
        let precision = options.precision;
        let size: usize = parts.iter().map(|(module, part)| held_bytes(module, part, precision)).sum();
        let mut reservation = ctx.reserve("an adapter", size)?;
        let mut modules = vec![None; model.modules().len()];
        let (mut max_rank, mut size_bytes) = (0, 0);
        let a = parts
            .iter()
            .map(|(module, part)| {
                let dtype = held_dtype(module, part, precision);
                let held = HeldFactor::new(&part.a, dtype)?;
                let a = LoraFactors::pack_a(&held.bytes, part.rank, dtype.size_bytes());
                let a = ctx.upload_to(&mut reservation, [module.weight.cols(), part.rank], dtype, &a)?;
                Ok((a, held.scale))
            })
            .collect::<Result<Vec<_>>>()?;
        for ((module, part), a) in parts.into_iter().zip(a) {
            let factors = factors(ctx, &mut reservation, module, part, a)?;
            max_rank = max_rank.max(part.rank);
            size_bytes += factors.a.size_bytes() + factors.b.size_bytes();
            size_bytes += factors.out_scale.as_ref().map_or(0, Tensor::size_bytes);
            if let Some(entry) = modules.get_mut(module.idx.0 as usize) {
                *entry = Some(factors);
            }
        }
        Ok(LoraAdapter {
            modules: modules.into(),
            rope: adapter.rope().cloned(),
            digest: adapter.digest(),
            max_rank,
            size_bytes,
        })
    }

    /// Factors by module, to be bound to a slot.
    pub fn modules(&self) -> &LoraModules {
        &self.modules
    }

    /// Rotary positions that it brings, in the place of the model's.
    pub fn rope(&self) -> Option<&AdapterRope> {
        self.rope.as_ref()
    }

    /// Modules that it adapts.
    pub fn num_modules(&self) -> usize {
        self.modules.iter().flatten().count()
    }

    /// Digest of configuration and tensors.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Largest rank of any module.
    pub fn max_rank(&self) -> usize {
        self.max_rank
    }

    /// Bytes of all factors.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

/// The error of an adapter that does not fit.
pub(super) fn refusal(adapter: &PeftAdapter, reason: String) -> ModelError {
    ModelError::Adapter { adapter: adapter.path().display().to_string(), reason }
}

/// Why an adapter cannot be used at all: nothing to add, or more than factors of linear layers.
pub(super) fn check_contents(adapter: &PeftAdapter, allow_noop: bool) -> Option<String> {
    if let Some(e) = adapter.embeddings().first() {
        return Some(format!("adapts the embedding {}, which is not supported", e.module_path));
    }
    if adapter.modules().is_empty() && adapter.saved().is_empty() {
        return Some("has no factors".to_owned());
    }
    let noop = adapter.is_noop() && !allow_noop;
    noop.then(|| "all its B factors are zero, so it would change nothing".to_owned())
}

/// Why factors do not fit a layer of `out` and `input` features.
pub(super) fn check_shapes(part: &LoraModule, out: usize, input: usize) -> Option<String> {
    let (a, b) = ([part.rank, input], [out, part.rank]);
    let fits = part.a.shape() == a && part.b.shape() == b;
    (!fits).then(|| {
        format!(
            "module {}: A is {:?} and B is {:?}, but the model's layer needs {a:?} and {b:?}; is it for another model?",
            part.module_path,
            part.a.shape(),
            part.b.shape(),
        )
    })
}

/// Why a parameter that the adapter brings whole cannot be served. PEFT stores the frozen weight below the factors of an
/// `lm_head`: that is the model's own, and need not be kept twice.
fn check_saved(ctx: &mut Ctx, model: &dyn Decoder, saved: &SavedModule) -> Result<Option<String>> {
    let SavedModule { module_path, parameter, is_base_layer, tensor } = saved;
    let module = model.modules().iter().find(|m| &m.path == module_path);
    let Some(module) = module.filter(|_| *is_base_layer && parameter == "weight") else {
        return Ok(Some(format!(
            "replaces {module_path}.{parameter} (modules_to_save), which is not supported"
        )));
    };
    let shape = [module.weight.rows(), module.weight.cols()];
    if tensor.shape() != shape {
        return Ok(Some(format!(
            "{module_path}.base_layer.weight is {:?}, but the model's layer is {shape:?}; is it for another model, or \
             one with more tokens?",
            tensor.shape()
        )));
    }
    let device = ctx.device().clone();
    let mut row = vec![0.0; module.weight.cols()];
    let (mut distance, mut norm) = (0.0, 0.0);
    for (idx, theirs) in tensor.to_f32()?.chunks_exact(row.len().max(1)).enumerate() {
        device.dequantise_rows(&module.weight, idx, &mut row)?;
        for (ours, theirs) in row.iter().zip(theirs) {
            distance += f64::from(ours - theirs).powi(2);
            norm += f64::from(*theirs).powi(2);
        }
    }
    let most =
        if module.weight.format().is_quantised() { MAX_QUANTISED_DISTANCE } else { MAX_DENSE_DISTANCE };
    let relative = (distance / norm.max(f64::MIN_POSITIVE)).sqrt();
    Ok((relative > most).then(|| {
        format!(
            "{module_path}.base_layer.weight differs from the model's by {:.0} %; is it for another model?",
            100.0 * relative
        )
    }))
}

/// What the configuration promises of this model and the file does not have: where factors are missing, the base would
/// answer alone without a word.
pub(super) fn check_complete(
    paths: &[&str],
    adapter: &PeftAdapter,
    found: &HashSet<&str>,
) -> Result<Option<String>> {
    if let Some(name) = adapter.config().modules_to_save.first() {
        return Ok(Some(format!("modules_to_save names {:?}, whose tensors are missing", shown(name))));
    }
    let targets = adapter.targets()?;
    if let Some(entry) = targets.entry_without_module(paths.iter().copied()) {
        // The embedding exists, and what would adapt it is missing. Other names PEFT passes over: lists are written
        // for several architectures at once.
        if matches!(entry.rsplit('.').next(), Some("embed_tokens" | "embed_in")) {
            let entry = shown(entry);
            return Ok(Some(format!("target_modules names {entry:?}, whose tensors are missing")));
        }
        let path = adapter.path().display();
        tracing::warn!("{path}: target_modules names {:?}, which the model does not have", shown(entry));
    }
    let mut lacking = paths.iter().filter(|path| targets.contains(path) && !found.contains(**path));
    Ok(lacking.next().map(|first| {
        let others = match lacking.count() {
            0 => String::new(),
            n => format!(", and those of {n} other modules"),
        };
        format!(
            "tensor base_model.model.{}.lora_A.weight is missing{others}, although the configuration targets it; is \
             the file whole?",
            first
        )
    }))
}

/// A name from a file, short enough for a message.
fn shown(name: &str) -> String {
    name.chars().take(128).collect()
}

/// Bytes that a module's factors take of a reservation.
fn held_bytes(module: &Module, part: &LoraModule, precision: AdapterPrecision) -> usize {
    let (out, input) = (module.weight.rows(), module.weight.cols());
    let size = held_dtype(module, part, precision).size_bytes();
    let out_scale = part.magnitude.as_ref().map_or(0, |_| 4 * out);
    [part.rank * input * size, part.rank * out * size, out_scale].map(Reservation::bytes_for).iter().sum()
}

/// A module's factors, of which `a` is on the device already, with what it is to be multiplied with.
fn factors(
    ctx: &mut Ctx,
    reservation: &mut Reservation,
    module: &Module,
    part: &LoraModule,
    (a, a_scale): (Tensor, f64),
) -> Result<LoraFactors> {
    let (out, rank, dtype) = (module.weight.rows(), part.rank, a.dtype());
    let held = HeldFactor::new(&part.b, dtype)?;
    let b = LoraFactors::pack_b(&held.bytes, rank, dtype.size_bytes());
    let b = ctx.upload_to(reservation, [out, rank], dtype, &b)?;
    let out_scale = match &part.magnitude {
        Some(m) => {
            let values = dora_scale(ctx, module, part, &m.to_f32()?)?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Some(ctx.upload_to(reservation, [out], DType::F32, &bytes)?)
        }
        None => None,
    };
    Ok(LoraFactors { a, b, scale: (part.scale * a_scale * held.scale) as f32, out_scale })
}

/// `m / ‖W + scale B A‖` per output (Liu et al., arXiv 2402.09353, equation 5): the norm runs over the inputs.
fn dora_scale(ctx: &mut Ctx, module: &Module, part: &LoraModule, magnitude: &[f32]) -> Result<Vec<f32>> {
    let (a, b) = (part.a.to_f32()?, part.b.to_f32()?);
    let norms = ctx.device().update_norms(&module.weight, [&a, &b], part.scale as f32)?;
    Ok(magnitude.iter().zip(norms).map(|(m, norm)| if norm > 0.0 { m / norm } else { 0.0 }).collect())
}
