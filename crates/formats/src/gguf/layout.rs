//! GGUF weights in Hugging Face layout.
//!
//! llama.cpp rotates neighbouring pairs `(2j, 2j + 1)` of a head; Hugging Face rotates `(j, j + head_dim / 2)`. Its
//! converter for the `llama` architecture therefore stores, for every head, row `s * head_dim / 2 + j` of the q and
//! k weights (`s` in {0, 1}) as row `2j + s` (`LlamaModel.permute` in `convert_hf_to_gguf.py`:
//! `reshape(heads, 2, head_dim / 2, in).swapaxes(1, 2)`). Reading undoes that. Rows are moved as raw bytes, and
//! quantised blocks never cross rows, so nothing is lost.

use std::ops::Range;
use std::path::Path;

use crate::config::ModelConfig;
use crate::error::{FormatError, Result, shorten};
use crate::gguf::{GgufFile, HfName, MAX_TENSORS, expert_name, hf_name};
use crate::source::{TensorInfo, TensorSource};

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
}

impl RowOrder {
    /// The order in which a GGUF file of the `llama` architecture has the rows of the tensor that Hugging Face calls
    /// `hf_name`.
    pub fn of(hf_name: &str, head_dim: usize) -> Self {
        if hf_name.contains(".q_proj.") || hf_name.contains(".k_proj.") {
            Self::InterleavedPairs { head_dim }
        } else {
            Self::Same
        }
    }

    /// The row of the file that holds row `row` of the Hugging Face layout.
    fn file_row(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::InterleavedPairs { head_dim } => {
                let half = head_dim / 2;
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + 2 * (within % half) + within / half
            }
        }
    }

    /// Rows of `row_bytes` in Hugging Face layout, put in the order of the file; whole heads, from the first row of
    /// one. What is over after the last whole head stays as it is.
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
}

/// The weights of a GGUF file of the `llama` architecture: Hugging Face names, shapes `[out, in]`, half-split rotary
/// rows.
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
    /// [`FormatError::Unsupported`] for another architecture than `llama`, whose names and row order are not known
    /// here; [`FormatError::Tensor`] for a tensor that the Llama family does not have;
    /// [`FormatError::Shape`] for q or k weights that are not whole heads.
    pub fn new(file: std::sync::Arc<GgufFile>, config: &ModelConfig) -> Result<Self> {
        let architecture = file.architecture()?;
        if architecture != "llama" {
            let what = format!("GGUF architecture {:?}", shorten(architecture));
            return Err(FormatError::unsupported(file.path(), what));
        }
        let head_dim = config.head_dim;
        let mut placed = Vec::with_capacity(file.tensors().len());
        for info in file.tensors() {
            let name = match hf_name(&info.name) {
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
                    return Err(FormatError::tensor(
                        file.path(),
                        &info.name,
                        "no tensor of the Llama family has this name",
                    ));
                }
            };
            let heads = if name.contains(".q_proj.") {
                Some(config.num_heads)
            } else if name.contains(".k_proj.") {
                Some(config.num_kv_heads)
            } else {
                None
            };
            let order = match heads {
                None => RowOrder::Same,
                Some(num_heads) => {
                    let rows = num_heads.saturating_mul(head_dim);
                    if info.rows() != rows || info.shape.is_empty() || info.shape.len() > 2 {
                        let mut expected = info.shape.clone();
                        expected.truncate(2);
                        match expected.first_mut() {
                            Some(first) => *first = rows,
                            None => expected.push(rows),
                        }
                        let (path, tensor) = (file.path().to_owned(), info.name.clone());
                        return Err(FormatError::Shape {
                            path,
                            tensor,
                            expected,
                            actual: info.shape.clone(),
                        });
                    }
                    RowOrder::InterleavedPairs { head_dim }
                }
            };
            let hf = TensorInfo { name, storage: info.storage, shape: info.shape.clone() };
            placed.push((hf, Source { gguf_name: info.name.clone(), order, first_row: 0 }));
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
        (hf, Source { gguf_name: info.name.clone(), order: RowOrder::Same, first_row })
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
        let RowOrder::InterleavedPairs { head_dim } = source.order else {
            if source.first_row == 0
                && self.file.info(&source.gguf_name).is_none_or(|i| i.shape == info.shape)
            {
                return self.file.read_rows(&source.gguf_name, rows);
            }
            let of_file = source.first_row + rows.start..source.first_row + rows.end;
            return self.file.read_flat_rows(&source.gguf_name, of_file);
        };
        // Rows move only within a head, so the heads that the range touches are enough.
        let first = rows.start / head_dim * head_dim;
        let last = rows.end.next_multiple_of(head_dim).min(info.rows());
        let stored = self.file.read_rows(&source.gguf_name, first..last)?;
        let row_bytes = stored.len() / (last - first).max(1);
        let mut out = Vec::new();
        out.try_reserve_exact(row_bytes.saturating_mul(rows.len())).map_err(|_| {
            FormatError::OutOfMemory {
                bytes: row_bytes.saturating_mul(rows.len()) as u64,
                what: shorten(name),
            }
        })?;
        for row in rows {
            let at = (source.order.file_row(row) - first) * row_bytes;
            let bytes = stored.get(at..at + row_bytes).ok_or_else(|| {
                FormatError::tensor(self.path(), name, format!("row {row} is out of range"))
            })?;
            out.extend_from_slice(bytes);
        }
        Ok(out)
    }
}
