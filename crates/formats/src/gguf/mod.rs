//! GGUF versions 2 and 3, little-endian.
//!
//! Format: the GGUF specification (`docs/gguf.md` of ggml): magic, version, counts, typed metadata, tensor
//! descriptions (dimensions innermost first), padding to `general.alignment`, tensor data.
//!
//! Purpose: [`GgufFile`] is the file as it is; [`GgufTensors`] is the same weights under Hugging Face names and in
//! Hugging Face layout; [`write()`] and [`requantize_file`] make files.
//! State owned: the open file, its metadata and the checked spans.
//! Invariants: keys and tensor names are unique; every tensor is a whole number of blocks a row, aligned, inside the
//! file and overlaps no other.
//! Not done here: building a tokenizer from `tokenizer.ggml.*` (the metadata is handed out), files split in parts,
//! big-endian files, version 1.

mod layout;
mod names;
mod reader;
mod value;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::error::{FormatError, Result};
use crate::source::{ByteSpan, FileReader, TensorInfo, TensorSource, check_overlaps, read_span_rows};
use crate::storage::StorageType;
use reader::HeadReader;

pub use layout::{GgufTensors, RowOrder};
pub use names::{HfName, Scheme, expert_name, gguf_experts_name};
pub use value::{Array, Metadata, Value};
pub use write::{GgufTensor, file_type, requantize_file, write, write_streamed};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
/// `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
const MAX_METADATA_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 17;

/// An open GGUF file, under the names and in the row order of the file. Shapes are outermost first.
#[derive(Debug)]
pub struct GgufFile {
    file: FileReader,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Parallel to `tensors`.
    spans: Vec<ByteSpan>,
}

impl GgufFile {
    /// Opens the file and checks everything but the tensor data.
    ///
    /// # Errors
    /// [`FormatError`] naming the key or tensor at fault; [`FormatError::Unsupported`] for other versions,
    /// big-endian files, ggml types that are not read and files split in parts.
    pub fn open(path: &Path) -> Result<Self> {
        let file = FileReader::open(path)?;
        let mut reader = HeadReader::new(&file);
        if reader.u32("magic")?.to_le_bytes() != MAGIC {
            return Err(FormatError::malformed(path, "not a GGUF file: it does not start with \"GGUF\""));
        }
        let version = reader.u32("version")?;
        if !(2..=3).contains(&version) {
            let what = if (1..=3).contains(&version.swap_bytes()) {
                "big-endian GGUF file".to_owned()
            } else {
                format!("GGUF version {version}, only 2 and 3 are read")
            };
            return Err(FormatError::unsupported(path, what));
        }
        let num_tensors = bounded(path, "number of tensors", reader.u64("number of tensors")?, MAX_TENSORS)?;
        let num_keys = bounded(
            path,
            "number of metadata keys",
            reader.u64("number of metadata keys")?,
            MAX_METADATA_KEYS,
        )?;

        let mut values = BTreeMap::new();
        for _ in 0..num_keys {
            let key = reader.name("metadata key")?;
            let value = reader.value(&key)?;
            if values.contains_key(&key) {
                return Err(FormatError::key(path, key, "one value", "two"));
            }
            values.insert(key, value);
        }
        let metadata = Metadata::new(path, values);
        if metadata.u64("split.count")?.is_some_and(|n| n > 1) {
            return Err(FormatError::unsupported(
                path,
                "a GGUF split in parts (split.count > 1); merge it first",
            ));
        }
        let alignment = metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            let expected = format!("a power of two up to {MAX_ALIGNMENT}");
            return Err(FormatError::key(path, "general.alignment", expected, alignment));
        }

        let mut described = Vec::new();
        for _ in 0..num_tensors {
            described.push(read_description(&mut reader, path)?);
        }
        let data_start = reader.pos().next_multiple_of(alignment);
        let (tensors, spans) = place(&file, described, data_start, alignment)?;
        Ok(Self { version, metadata, tensors, spans, file })
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// [`FormatError::Key`] if it is missing or no string.
    pub fn architecture(&self) -> Result<&str> {
        const KEY: &str = "general.architecture";
        self.metadata
            .str(KEY)?
            .ok_or_else(|| FormatError::key(self.file.path(), KEY, "the name of an architecture", "nothing"))
    }
}

impl GgufFile {
    /// Reads rows of tensor `name`, all dimensions but the innermost counting as rows.
    fn read_flat_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let (info, span) = self.placed(name)?;
        let row_numel = info.shape.last().copied().unwrap_or(1);
        let flat = TensorInfo { shape: vec![info.numel() / row_numel.max(1), row_numel], ..info.clone() };
        read_span_rows(&self.file, &flat, span, &rows)
    }

    /// A tensor and where it lies.
    fn placed(&self, name: &str) -> Result<(&TensorInfo, ByteSpan)> {
        let missing = || FormatError::MissingTensor {
            path: self.path().to_owned(),
            tensor: crate::error::shorten(name),
        };
        let idx = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).map_err(|_| missing())?;
        let info = self.tensors.get(idx).ok_or_else(missing)?;
        Ok((info, *self.spans.get(idx).ok_or_else(missing)?))
    }
}

impl TensorSource for GgufFile {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let (info, span) = self.placed(name)?;
        read_span_rows(&self.file, info, span, &rows)
    }
}

fn bounded(path: &Path, what: &str, actual: u64, limit: u64) -> Result<u64> {
    if actual > limit { Err(FormatError::limit(path, what, limit, actual)) } else { Ok(actual) }
}

/// A tensor description and its offset, relative to the start of the data.
fn read_description(reader: &mut HeadReader<'_>, path: &Path) -> Result<(TensorInfo, u64)> {
    let name = reader.name("tensor name")?;
    let fail = |problem: String| FormatError::tensor(path, &name, problem);
    let num_dims = reader.u32(&name)?;
    if num_dims > MAX_DIMS {
        return Err(fail(format!("{num_dims} dimensions, over the limit of {MAX_DIMS}")));
    }
    let mut shape = Vec::with_capacity(num_dims as usize);
    for _ in 0..num_dims {
        let dim = reader.u64(&name)?;
        match usize::try_from(dim) {
            Ok(d) if d > 0 => shape.push(d),
            _ => return Err(fail(format!("dimension {dim} is out of range"))),
        }
    }
    shape.reverse();
    let storage = StorageType::from_ggml_id(reader.u32(&name)?).map_err(fail)?;
    let offset = reader.u64(&name)?;
    Ok((TensorInfo { name, storage, shape }, offset))
}

type Placed = (Vec<TensorInfo>, Vec<ByteSpan>);

fn place(
    file: &FileReader,
    described: Vec<(TensorInfo, u64)>,
    data_start: u64,
    alignment: u64,
) -> Result<Placed> {
    let path = file.path();
    let mut placed = Vec::with_capacity(described.len());
    for (info, relative) in described {
        let fail = |problem: String| FormatError::tensor(path, &info.name, problem);
        let row_numel = info.shape.last().copied().unwrap_or(1);
        if !row_numel.is_multiple_of(info.storage.block_size()) {
            let (block, storage) = (info.storage.block_size(), info.storage);
            return Err(fail(format!(
                "rows of {row_numel} elements are no whole blocks of {block} ({storage})"
            )));
        }
        let len = info
            .shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|numel| info.storage.bytes_for(numel))
            .ok_or_else(|| fail(format!("shape {:?} overflows", info.shape)))?;
        if !relative.is_multiple_of(alignment) {
            return Err(fail(format!("offset {relative} is no multiple of the alignment {alignment}")));
        }
        let end = data_start.checked_add(relative).and_then(|o| o.checked_add(len as u64));
        match end {
            Some(end) if end <= file.len() => {
                let span = ByteSpan { offset: end - len as u64, len };
                placed.push((info, span));
            }
            _ => {
                return Err(FormatError::Truncated {
                    path: path.to_owned(),
                    what: format!("tensor `{}`", crate::error::shorten(&info.name)),
                    expected: end.unwrap_or(u64::MAX),
                    actual: file.len(),
                });
            }
        }
    }
    placed.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    for pair in placed.windows(2) {
        if let [(a, _), (b, _)] = pair
            && a.name == b.name
        {
            return Err(FormatError::tensor(path, &a.name, "is there twice"));
        }
    }
    let mut spans: Vec<_> = placed.iter().map(|(info, span)| (*span, info.name.as_str())).collect();
    check_overlaps(path, &mut spans)?;
    Ok(placed.into_iter().unzip())
}

#[cfg(test)]
mod tests;
