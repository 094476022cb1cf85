//! GGUF weights in Hugging Face layout.
//!
//! llama.cpp rotates neighbouring pairs `(2j, 2j + 1)` of a head; Hugging Face rotates `(j, j + head_dim / 2)`. Its
//! converter for the `llama` architecture therefore stores, for every head, row `s * head_dim / 2 + j` of the q and
//! k weights (`s` in {0, 1}) as row `2j + s` (`LlamaModel.permute` in `convert_hf_to_gguf.py`:
//! `reshape(heads, 2, head_dim / 2, in).swapaxes(1, 2)`). Reading undoes that. Rows are moved as raw bytes, and
//! quantised blocks never cross rows, so nothing is lost. Other architectures rotate as Hugging Face does and are not permuted.
//!
//! GPT-NeoX has queries, keys and values in one matrix, in Hugging Face layout head by head, the three of each side by side; a
//! file has the queries of all heads first, then the keys, then the values.

use std::ops::Range;
use std::path::Path;

use crate::config::ModelConfig;
use crate::convert;
use crate::error::{FormatError, Result, shorten};
use crate::gguf::{GgufFile, HfName, MAX_TENSORS, Scheme, expert_name};
use crate::source::{TensorInfo, TensorSource};
use crate::storage::StorageType;

/// In what order the rows of a tensor in a GGUF file stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As in Hugging Face layout.
    Same,
    /// Rotary pairs are neighbours within each head of `head_dim` rows.
    InterleavedPairs {
        /// Rows of one head; even.
        head_dim: usize,
    },
    /// The file has the first parts of all heads, then the second, then the third; Hugging Face layout has a head's three
    /// parts side by side.
    PartsOfHeads {
        /// Rows of one part of a head.
        head_dim: usize,
        /// Heads.
        num_heads: usize,
    },
}

impl RowOrder {
    /// The row of the file that holds row `row` of the Hugging Face layout.
    fn file_row(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::InterleavedPairs { head_dim } => {
                let half = head_dim / 2;
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + 2 * (within % half) + within / half
            }
            Self::PartsOfHeads { head_dim, num_heads } => {
                let (part_of_head, within) = (row / head_dim, row % head_dim);
                (part_of_head % 3 * num_heads + part_of_head / 3) * head_dim + within
            }
        }
    }

    /// Rows of the Hugging Face layout that stand together in a file, from `row` up to `end` at most: their number.
    fn run(self, row: usize, end: usize) -> usize {
        let whole = match self {
            Self::Same => end,
            Self::InterleavedPairs { .. } => row + 1,
            Self::PartsOfHeads { head_dim, .. } => (row / head_dim + 1) * head_dim,
        };
        whole.min(end) - row
    }

    /// Ranges of the Hugging Face layout's rows, each within `max_rows` or the least that [`RowOrder::to_file`] takes, in the
    /// order of the file.
    pub fn pieces(self, num_rows: usize, max_rows: usize) -> Vec<Range<usize>> {
        let cut = |max: usize| {
            let max = max.max(1);
            (0..num_rows).step_by(max).map(|first| first..num_rows.min(first + max)).collect()
        };
        match self {
            Self::Same => cut(max_rows),
            Self::InterleavedPairs { head_dim } => cut(max_rows.max(1).next_multiple_of(head_dim.max(1))),
            Self::PartsOfHeads { head_dim, num_heads } => (0..3)
                .flat_map(|part| (0..num_heads).map(move |head| (head * 3 + part) * head_dim))
                .map(|first| first.min(num_rows)..num_rows.min(first + head_dim))
                .collect(),
        }
    }

    /// Rows of `row_bytes` in Hugging Face layout, of one of [`RowOrder::pieces`], put in the order of the file. What is over
    /// after the last whole head stays as it is.
    pub fn to_file(self, bytes: Vec<u8>, row_bytes: usize) -> Vec<u8> {
        let Self::InterleavedPairs { head_dim } = self else { return bytes };
        let mut out = bytes.clone();
        let head_bytes = head_dim.saturating_mul(row_bytes);
        if row_bytes == 0 || head_bytes == 0 {
            return out;
        }
        let heads = bytes.chunks_exact(head_bytes).zip(out.chunks_exact_mut(head_bytes));
        for (from, to) in heads {
            for (row, row_bytes_of) in from.chunks_exact(row_bytes).enumerate() {
                let at = self.file_row(row) * row_bytes;
                if let Some(slot) = to.get_mut(at..at + row_bytes) {
                    slot.copy_from_slice(row_bytes_of);
                }
            }
        }
        out
    }
}

/// A tensor of the model and where the file has it.
#[derive(Debug)]
struct Source {
    gguf_name: String,
    order: RowOrder,
    /// Of a tensor that holds several of the model: the first row of this one.
    first_row: usize,
    /// What the file has added to every element.
    offset: f32,
}

/// The weights of a GGUF file of an architecture that [`Scheme`] knows: Hugging Face names, shapes `[out, in]`, half-split
/// rotary rows.
#[derive(Debug)]
pub struct GgufTensors {
    file: std::sync::Arc<GgufFile>,
    tensors: Vec<TensorInfo>,
    /// Parallel to `tensors`.
    sources: Vec<Source>,
}

impl GgufTensors {
    /// The weights of `file`, whose configuration is `config`.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for an architecture whose names and row order are not known here;
    /// [`FormatError::Tensor`] for a tensor that the architecture does not have; [`FormatError::Shape`] for weights whose rows
    /// are moved and that are not whole heads.
    pub fn new(file: std::sync::Arc<GgufFile>, config: &ModelConfig) -> Result<Self> {
        let architecture = file.architecture()?;
        let Some(scheme) = Scheme::of_gguf(architecture) else {
            let what = format!("GGUF architecture {:?}", shorten(architecture));
            return Err(FormatError::unsupported(file.path(), what));
        };
        let mut placed = Vec::with_capacity(file.tensors().len());
        for info in file.tensors() {
            let name = match scheme.hf_name(&info.name) {
                Some(HfName::Tensor(name)) => name,
                Some(HfName::Experts { layer_idx, part }) => {
                    placed.extend(of_experts(&file, info, (layer_idx, part), config)?);
                    if placed.len() as u64 > MAX_TENSORS {
                        let (what, actual) = ("number of experts' tensors", placed.len() as u64);
                        return Err(FormatError::limit(file.path(), what, MAX_TENSORS, actual));
                    }
                    continue;
                }
                Some(HfName::RopeFactors | HfName::Derived) => continue,
                None => {
                    let problem = format!("no tensor of the architecture {architecture} has this name");
                    return Err(FormatError::tensor(file.path(), &info.name, problem));
                }
            };
            let order = scheme.order(&name, config);
            let rows = match order {
                RowOrder::Same => None,
                RowOrder::InterleavedPairs { .. } if name.contains(".q_proj.") => Some(config.q_size()),
                RowOrder::InterleavedPairs { .. } => Some(config.kv_size()),
                RowOrder::PartsOfHeads { .. } => Some(config.q_size().saturating_mul(3)),
            };
            if let Some(rows) = rows
                && (info.rows() != rows || info.shape.is_empty() || info.shape.len() > 2)
            {
                let mut expected = info.shape.clone();
                expected.truncate(2);
                match expected.first_mut() {
                    Some(first) => *first = rows,
                    None => expected.push(rows),
                }
                let (path, tensor) = (file.path().to_owned(), info.name.clone());
                return Err(FormatError::Shape { path, tensor, expected, actual: info.shape.clone() });
            }
            let offset = scheme.offset(&name);
            if offset != 0.0 && !matches!(info.storage, StorageType::F32) {
                let problem = format!("is {}, where only F32 is known to have one added", info.storage);
                return Err(FormatError::tensor(file.path(), &info.name, problem));
            }
            let hf = TensorInfo { name, storage: info.storage, shape: info.shape.clone() };
            placed.push((hf, Source { gguf_name: info.name.clone(), order, first_row: 0, offset }));
        }
        placed.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        // Experts may be in one tensor or in one each, but not both.
        for pair in placed.windows(2) {
            if let [(a, of_a), (b, _)] = pair
                && a.name == b.name
            {
                return Err(FormatError::tensor(file.path(), &of_a.gguf_name, "is there twice"));
            }
        }
        let (tensors, sources) = placed.into_iter().unzip();
        Ok(Self { file, tensors, sources })
    }

    /// The file underneath.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }
}

/// The experts' parts of a tensor `[experts, out, in]`.
fn of_experts(
    file: &GgufFile,
    info: &TensorInfo,
    (layer_idx, part): (u32, &str),
    config: &ModelConfig,
) -> Result<Vec<(TensorInfo, Source)>> {
    let num_experts = config.experts.map_or(0, |experts| experts.num_experts);
    let &[found, out, input] = info.shape.as_slice() else {
        let problem = format!("shape {:?}, expected [experts, out, in]", info.shape);
        return Err(FormatError::tensor(file.path(), &info.name, problem));
    };
    if found != num_experts {
        let problem = format!("{found} experts, but the configuration has {num_experts}");
        return Err(FormatError::tensor(file.path(), &info.name, problem));
    }
    let of_expert = |expert: usize| {
        let name = expert_name(layer_idx, expert, part);
        let hf = TensorInfo { name, storage: info.storage, shape: vec![out, input] };
        let first_row = expert * out;
        (hf, Source { gguf_name: info.name.clone(), order: RowOrder::Same, first_row, offset: 0.0 })
    };
    Ok((0..num_experts).map(of_expert).collect())
}

impl TensorSource for GgufTensors {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let missing = || FormatError::MissingTensor { path: self.path().to_owned(), tensor: shorten(name) };
        let idx = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).map_err(|_| missing())?;
        let info = self.tensors.get(idx).ok_or_else(missing)?;
        let source = self.sources.get(idx).ok_or_else(missing)?;
        if rows.start > rows.end || rows.end > info.rows() {
            let problem = format!("rows {}..{} of {} asked for", rows.start, rows.end, info.rows());
            return Err(FormatError::tensor(self.path(), name, problem));
        }
        if source.order == RowOrder::Same {
            let is_whole = self.file.info(&source.gguf_name).is_none_or(|i| i.shape == info.shape);
            let stored = if source.first_row == 0 && is_whole {
                self.file.read_rows(&source.gguf_name, rows)?
            } else {
                let of_file = source.first_row + rows.start..source.first_row + rows.end;
                self.file.read_flat_rows(&source.gguf_name, of_file)?
            };
            return if source.offset == 0.0 { Ok(stored) } else { without(&stored, source.offset) };
        }
        // Rows move within a head, or with the part of a head that they belong to.
        let unit = match source.order {
            RowOrder::InterleavedPairs { head_dim } => head_dim,
            _ => 1,
        };
        let total = rows.len();
        let mut out = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let (stored, first, run) = if unit > 1 {
                // The heads that the range touches, at once.
                let first = row / unit * unit;
                let last = rows.end.next_multiple_of(unit).min(info.rows());
                (self.file.read_rows(&source.gguf_name, first..last)?, first, rows.end - row)
            } else {
                let (first, run) = (source.order.file_row(row), source.order.run(row, rows.end));
                (self.file.read_rows(&source.gguf_name, first..first.saturating_add(run))?, first, run)
            };
            let num_stored =
                if unit > 1 { rows.end.next_multiple_of(unit).min(info.rows()) - first } else { run };
            let row_bytes = stored.len() / num_stored.max(1);
            if out.is_empty() {
                let bytes = row_bytes.saturating_mul(total);
                out.try_reserve_exact(bytes)
                    .map_err(|_| FormatError::OutOfMemory { bytes: bytes as u64, what: shorten(name) })?;
            }
            for row in row..row + run {
                let at = source.order.file_row(row).saturating_sub(first) * row_bytes;
                let bytes = stored.get(at..at + row_bytes).ok_or_else(|| {
                    FormatError::tensor(self.path(), name, format!("row {row} is out of range"))
                })?;
                out.extend_from_slice(bytes);
            }
            row += run;
        }
        Ok(out)
    }
}

/// F32 values less `offset`.
fn without(stored: &[u8], offset: f32) -> Result<Vec<u8>> {
    let numel = stored.len() / size_of::<f32>();
    let values = convert::to_f32(StorageType::F32, stored, numel)?;
    let values: Vec<f32> = values.into_iter().map(|v| v - offset).collect();
    convert::from_f32(StorageType::F32, &values, numel.max(1))
}
