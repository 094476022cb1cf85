//! Adapters merged into the weights: `W + scale B A`, and with DoRA `m (W + scale B A) / ‖W + scale B A‖` per output
//! (Hu et al., arXiv 2106.09685, section 4.1; Liu et al., arXiv 2402.09353, equation 5).
//!
//! Purpose: the rows of the merged model, from files to host memory, without a device and without the model.
//! State owned: none beyond the adapter; every row is computed when it is asked for, so that the largest thing in memory
//! is what a caller asks for at once.
//! Invariants: sums are made in f64 and rounded once, to f32; every module that the adapter has is one of the model's, in
//! the right shape; a number that is none is an error.
//! Not done here: writing, rounding to a file's types.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use wardrobe_formats::peft::LoraModule;
use wardrobe_formats::{
    FormatError, ModelConfig, PeftAdapter, StorageType, TensorInfo, TensorSource, convert, finite,
};

use super::lora::{self, MAX_DENSE_DISTANCE, MAX_QUANTISED_DISTANCE};
use crate::error::{ModelError, Result};

/// Rows of a frozen weight that is compared with the model's own, at once.
const COMPARED_ROWS: usize = 256;

/// A model's tensors with an adapter merged into them.
#[derive(Debug)]
pub struct MergedTensors<'a> {
    base: &'a dyn TensorSource,
    adapter: &'a PeftAdapter,
    tensors: Vec<MergedTensor>,
    unties_head: bool,
    ends: Ends,
}

/// What the model's tensors call its ends.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// Path of the head's module.
    head: &'static str,
    /// Name of the embedding's tensor.
    embedding_weight: &'static str,
    /// Name of the head's tensor.
    head_weight: &'static str,
}

impl Ends {
    fn of(config: &ModelConfig, base: &dyn TensorSource) -> Self {
        let (_, head) = crate::arch::ends(config);
        let (embedding_weight, head_weight) = match head {
            // transformers 5 writes the head under the name that others have.
            "embed_out" if base.info("lm_head.weight").is_some() => {
                ("gpt_neox.embed_in.weight", "lm_head.weight")
            }
            "embed_out" => ("gpt_neox.embed_in.weight", "embed_out.weight"),
            _ => ("model.embed_tokens.weight", "lm_head.weight"),
        };
        Ends { head, embedding_weight, head_weight }
    }

    /// The name of a module's weight.
    fn weight(&self, path: &str) -> String {
        if path == self.head { self.head_weight.to_owned() } else { format!("{path}.weight") }
    }
}

/// A tensor of the merged model.
#[derive(Clone, Debug)]
pub struct MergedTensor {
    /// Name, shape, and how the base stores it (a head that the base ties: as the base stores the embedding).
    pub info: TensorInfo,
    /// The tensor of the base that it is made of.
    source: String,
    /// Index of the adapter's module that is merged into it.
    module_idx: Option<usize>,
}

impl MergedTensor {
    /// Whether the adapter changes it.
    pub fn is_merged(&self) -> bool {
        self.module_idx.is_some()
    }
}

/// Rows of a merged tensor.
#[derive(Debug)]
pub struct MergedRows {
    /// `[rows, in]`.
    pub values: Vec<f32>,
    /// Sum of squares of what the adapter added.
    pub change_squared: f64,
    /// Sum of squares of the base's rows.
    pub base_squared: f64,
}

impl<'a> MergedTensors<'a> {
    /// Fits `adapter` to the tensors of a model.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`]; [`ModelError::Adapter`] naming the module or tensor that does not fit, or that
    /// cannot be merged.
    pub fn new(
        base: &'a dyn TensorSource,
        config: &ModelConfig,
        adapter: &'a PeftAdapter,
        allow_noop: bool,
    ) -> Result<Self> {
        crate::arch::check(config)?;
        let refuse = |reason: String| lora::refusal(adapter, reason);
        let ends = Ends::of(config, base);
        let tied = config.tie_word_embeddings || base.info(ends.head_weight).is_none();
        let mut tensors: BTreeMap<&str, MergedTensor> = base
            .tensors()
            .iter()
            .map(|info| {
                let tensor = MergedTensor { info: info.clone(), source: info.name.clone(), module_idx: None };
                (info.name.as_str(), tensor)
            })
            .collect();
        // Which modules there are: every matrix but the embedding, and the head, which may be the embedding's weight.
        let is_module = |info: &TensorInfo| {
            info.shape.len() == 2 && info.name != ends.embedding_weight && info.name != ends.head_weight
        };
        let mut paths: Vec<&str> = base
            .tensors()
            .iter()
            .filter(|info| is_module(info))
            .filter_map(|info| info.name.strip_suffix(".weight"))
            .collect();
        paths.push(ends.head);
        let fits = |reason: Option<String>| reason.map_or(Ok(()), |reason| Err(refuse(reason)));
        fits(lora::check_contents(adapter, allow_noop))?;

        let mut found = HashSet::new();
        let mut unties_head = false;
        for (module_idx, part) in adapter.modules().iter().enumerate() {
            let path = part.module_path.as_str();
            if !paths.contains(&path) {
                return Err(refuse(format!("module {path} does not exist in the model")));
            }
            let name = ends.weight(path);
            let is_tied_head = path == ends.head && tied;
            let source = base.require(if is_tied_head { ends.embedding_weight } else { &name })?;
            let &[out, input] = source.shape.as_slice() else {
                return Err(refuse(format!("module {path} is {:?} in the model, no matrix", source.shape)));
            };
            if !source.storage.is_float() {
                return Err(ModelError::TensorType { name, storage: source.storage });
            }
            fits(lora::check_shapes(part, out, input))?;
            unties_head |= is_tied_head;
            found.insert(path);
            let key = if path == ends.head { ends.head_weight } else { source.name.as_str() };
            let merged = MergedTensor {
                info: TensorInfo { name, ..source.clone() },
                source: source.name.clone(),
                module_idx: Some(module_idx),
            };
            tensors.insert(key, merged);
        }
        fits(lora::check_complete(&paths, adapter, &found)?)?;
        let merged = Self { base, adapter, tensors: tensors.into_values().collect(), unties_head, ends };
        merged.check_saved(&paths, tied)?;
        if adapter.modules().is_empty() {
            return Err(refuse("has no factors".to_owned()));
        }
        Ok(merged)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &[MergedTensor] {
        &self.tensors
    }

    /// Whether the head, which in the base is the embedding's weight, is one of its own now.
    pub fn unties_head(&self) -> bool {
        self.unties_head
    }

    /// Rows of a tensor that the adapter changes.
    ///
    /// # Errors
    /// As [`MergedTensors::stored_rows`]; [`FormatError::Tensor`] for a sum that f32 cannot hold.
    pub fn merged_rows(&self, tensor: &MergedTensor, rows: Range<usize>) -> Result<MergedRows, FormatError> {
        let part = tensor.module_idx.and_then(|idx| self.adapter.modules().get(idx));
        let input = tensor.info.row_numel();
        let values = self.f32_rows(&tensor.source, &tensor.info, rows.clone())?;
        let mut merged = MergedRows { values, change_squared: 0.0, base_squared: 0.0 };
        let Some(part) = part.filter(|_| input > 0) else { return Ok(merged) };
        merge_rows(part, &rows, input, &mut merged)?;
        match merged.values.iter().position(|v| !v.is_finite()) {
            None => Ok(merged),
            Some(at) => Err(FormatError::Tensor {
                path: self.base.path().to_owned(),
                tensor: tensor.info.name.clone(),
                problem: format!(
                    "with the adapter merged, row {} is NaN or infinite",
                    rows.start.saturating_add(at / input)
                ),
            }),
        }
    }

    /// Rows of a tensor that the adapter does not change, as the base stores them.
    ///
    /// # Errors
    /// [`FormatError`] naming file and tensor, also for numbers that are none.
    pub fn stored_rows(&self, tensor: &MergedTensor, rows: Range<usize>) -> Result<Vec<u8>, FormatError> {
        self.read(&tensor.source, tensor.info.storage, rows)
    }

    fn read(&self, name: &str, storage: StorageType, rows: Range<usize>) -> Result<Vec<u8>, FormatError> {
        let first = rows.start;
        let bytes = self.base.read_rows(name, rows)?;
        match finite::first_not_finite(storage, &bytes) {
            None => Ok(bytes),
            Some(_) => Err(FormatError::Tensor {
                path: self.base.path().to_owned(),
                tensor: name.to_owned(),
                problem: format!("a number from row {first} on is NaN or infinite"),
            }),
        }
    }

    fn f32_rows(&self, name: &str, info: &TensorInfo, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        let numel = rows.len().saturating_mul(info.row_numel());
        let bytes = self.read(name, info.storage, rows)?;
        convert::to_f32(info.storage, &bytes, numel)
    }

    /// PEFT stores the frozen weight below the factors of an `lm_head`: it must be the model's own.
    fn check_saved(&self, paths: &[&str], tied: bool) -> Result<()> {
        let refuse = |reason: String| Err(lora::refusal(self.adapter, reason));
        for saved in self.adapter.saved() {
            let (path, parameter) = (&saved.module_path, &saved.parameter);
            if !saved.is_base_layer || parameter != "weight" || !paths.contains(&path.as_str()) {
                let reason =
                    format!("replaces {path}.{parameter} (modules_to_save), which cannot be merged yet");
                return refuse(reason);
            }
            let is_tied_head = path == self.ends.head && tied;
            let name = self.ends.weight(path);
            let info = self.base.require(if is_tied_head { self.ends.embedding_weight } else { &name })?;
            if saved.tensor.shape() != info.shape {
                return refuse(format!(
                    "{path}.base_layer.weight is {:?}, but the model's layer is {:?}; is it for another model?",
                    saved.tensor.shape(),
                    info.shape
                ));
            }
            let theirs = saved.tensor.to_f32()?;
            let (mut distance, mut norm) = (0.0, 0.0);
            let row_numel = info.row_numel().max(1);
            for (idx, theirs) in theirs.chunks(row_numel.saturating_mul(COMPARED_ROWS)).enumerate() {
                let first = idx * COMPARED_ROWS;
                let ours = self.f32_rows(&info.name, info, first..first + theirs.len() / row_numel)?;
                for (ours, theirs) in ours.iter().zip(theirs) {
                    distance += f64::from(ours - theirs).powi(2);
                    norm += f64::from(*theirs).powi(2);
                }
            }
            let most = if info.storage.is_quantized() { MAX_QUANTISED_DISTANCE } else { MAX_DENSE_DISTANCE };
            let relative = (distance / norm.max(f64::MIN_POSITIVE)).sqrt();
            if relative > most {
                return refuse(format!(
                    "{path}.base_layer.weight differs from the model's by {:.0} %; is it for another model?",
                    100.0 * relative
                ));
            }
        }
        Ok(())
    }
}

/// Merges a module's factors into the rows `rows` of its weight, which `merged.values` holds.
fn merge_rows(
    part: &LoraModule,
    rows: &Range<usize>,
    input: usize,
    merged: &mut MergedRows,
) -> Result<(), FormatError> {
    let rank = part.rank.max(1);
    let a: Vec<f64> = part.a.to_f32()?.into_iter().map(f64::from).collect();
    let b = part.b.to_f32()?;
    let magnitude = part.magnitude.as_ref().map(|m| m.to_f32()).transpose()?;
    let b = b.chunks_exact(rank).skip(rows.start);
    let magnitudes = magnitude.iter().flatten().skip(rows.start).copied().map(Some);
    let magnitudes = magnitudes.chain(std::iter::repeat(None));
    let mut sums = vec![0f64; input];
    for ((row, b), magnitude) in merged.values.chunks_exact_mut(input).zip(b).zip(magnitudes) {
        sums.iter_mut().zip(&*row).for_each(|(sum, w)| *sum = f64::from(*w));
        for (b, a) in b.iter().zip(a.chunks_exact(input)) {
            let factor = part.scale * f64::from(*b);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * a);
        }
        if let Some(magnitude) = magnitude {
            let norm = sums.iter().map(|w| w * w).sum::<f64>().sqrt();
            let factor = if norm > 0.0 { f64::from(magnitude) / norm } else { 0.0 };
            sums.iter_mut().for_each(|sum| *sum *= factor);
        }
        for (w, sum) in row.iter_mut().zip(&sums) {
            merged.base_squared += f64::from(*w) * f64::from(*w);
            merged.change_squared += (sum - f64::from(*w)).powi(2);
            *w = *sum as f32;
        }
    }
    Ok(())
}
