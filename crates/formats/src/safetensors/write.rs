//! Writing a safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{FormatError, Result};
use crate::storage::StorageType;

/// A tensor in host memory, to be written.
#[derive(Clone, Copy, Debug)]
pub struct TensorData<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// How elements are stored; no block format, safetensors has none.
    pub storage: StorageType,
    /// Row-major shape.
    pub shape: &'a [usize],
    /// Little-endian elements, row-major.
    pub bytes: &'a [u8],
}

/// Writes `tensors` to a new file at `path`, sorted by alignment and name as the reference implementation does,
/// and syncs it to disk. An existing file is replaced in place; for an atomic replacement write beside it and rename.
///
/// # Errors
/// [`FormatError::Tensor`] for a block format, a name that is there twice or `__metadata__`, or bytes that do not
/// fit the shape; [`FormatError::Io`].
pub fn write(path: &Path, tensors: &[TensorData<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut order: Vec<&TensorData<'_>> = tensors.iter().collect();
    order.sort_by(|a, b| (b.storage.block_bytes(), a.name).cmp(&(a.storage.block_bytes(), b.name)));

    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0usize;
    for tensor in &order {
        let fail = |problem: String| FormatError::tensor(path, tensor.name, problem);
        if tensor.storage.is_quantized() {
            return Err(fail(format!("safetensors cannot hold {}", tensor.storage)));
        }
        let expected = tensor
            .shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|numel| tensor.storage.bytes_for(numel))
            .ok_or_else(|| fail(format!("shape {:?} overflows", tensor.shape)))?;
        if expected != tensor.bytes.len() {
            let actual = tensor.bytes.len();
            return Err(fail(format!("shape {:?} needs {expected} bytes, {actual} given", tensor.shape)));
        }
        let end = offset.checked_add(expected).ok_or_else(|| fail("file size overflows".to_owned()))?;
        let entry = serde_json::json!({
            "dtype": tensor.storage.name(), "shape": tensor.shape, "data_offsets": [offset, end],
        });
        if tensor.name == "__metadata__" || header.insert(tensor.name.to_owned(), entry).is_some() {
            return Err(fail("name is taken".to_owned()));
        }
        offset = end;
    }

    let mut header = serde_json::to_vec(&serde_json::Value::Object(header))
        .map_err(|source| FormatError::Json { path: path.to_owned(), source })?;
    // Data starts at a multiple of 8, so that readers that map the file find it aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    let io = |e| FormatError::io(path, e);
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    for tensor in &order {
        file.write_all(tensor.bytes).map_err(io)?;
    }
    let file = file.into_inner().map_err(|e| FormatError::io(path, e.into_error()))?;
    file.sync_all().map_err(io)
}
