//! Writing a safetensors file, at once or one piece of a tensor at a time, and folders of several.

use std::collections::BTreeMap;
use std::path::Path;

use super::{INDEX_FILE, SINGLE_FILE};
use crate::error::{FormatError, Result};
use crate::sink::TensorSink;
use crate::source::TensorInfo;
use crate::staging;
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
    let infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|t| TensorInfo { name: t.name.to_owned(), storage: t.storage, shape: t.shape.to_vec() })
        .collect();
    for (tensor, info) in tensors.iter().zip(&infos) {
        let (expected, actual) = (size_of(path, info)?, tensor.bytes.len());
        if expected != actual {
            let problem = format!("shape {:?} needs {expected} bytes, {actual} given", tensor.shape);
            return Err(FormatError::tensor(path, tensor.name, problem));
        }
    }
    write_streamed(path, &infos, metadata, |idx, sink| match tensors.get(idx) {
        Some(tensor) => sink.put(tensor.bytes),
        None => Ok(()),
    })
}

/// The same for tensors that need not be in memory: `fill` is called once with the index of each, in the order of the
/// file, and puts its bytes.
///
/// # Errors
/// As [`write()`], and what `fill` gives.
pub fn write_streamed(
    path: &Path,
    tensors: &[TensorInfo],
    metadata: &BTreeMap<String, String>,
    mut fill: impl FnMut(usize, &mut TensorSink) -> Result<()>,
) -> Result<()> {
    let mut order: Vec<(usize, &TensorInfo)> = tensors.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| {
        (b.storage.block_bytes(), &a.name).cmp(&(a.storage.block_bytes(), &b.name))
    });

    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0usize;
    let mut sizes = Vec::with_capacity(order.len());
    for (_, tensor) in &order {
        let fail = |problem: String| FormatError::tensor(path, &tensor.name, problem);
        let size = size_of(path, tensor)?;
        let end = offset.checked_add(size).ok_or_else(|| fail("file size overflows".to_owned()))?;
        let entry = serde_json::json!({
            "dtype": tensor.storage.name(), "shape": tensor.shape, "data_offsets": [offset, end],
        });
        if tensor.name == "__metadata__" || header.insert(tensor.name.clone(), entry).is_some() {
            return Err(fail("name is taken".to_owned()));
        }
        sizes.push(size);
        offset = end;
    }

    let mut header = serde_json::to_vec(&serde_json::Value::Object(header))
        .map_err(|source| FormatError::Json { path: path.to_owned(), source })?;
    // Data starts at a multiple of 8, so that readers that map the file find it aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut sink = TensorSink::create(path)?;
    sink.raw(&(header.len() as u64).to_le_bytes())?;
    sink.raw(&header)?;
    for ((idx, tensor), size) in order.into_iter().zip(sizes) {
        sink.tensor(&tensor.name, size, |sink| fill(idx, sink))?;
    }
    sink.finish()
}

/// Writes the tensors into the folder `dir`: `model.safetensors`, or where that would be over `max_shard_bytes`,
/// `model-00001-of-0000N.safetensors` and so on with their index. A tensor is never cut: one that is larger than that
/// has a file of its own. Files are synced to disk. Gives the names of the files.
///
/// # Errors
/// As [`write_streamed`].
pub fn write_folder(
    dir: &Path,
    tensors: &[TensorInfo],
    metadata: &BTreeMap<String, String>,
    max_shard_bytes: u64,
    mut fill: impl FnMut(usize, &mut TensorSink) -> Result<()>,
) -> Result<Vec<String>> {
    let mut shards: Vec<Vec<usize>> = Vec::new();
    let (mut shard_bytes, mut total_bytes) = (0u64, 0u64);
    for (idx, tensor) in tensors.iter().enumerate() {
        let size = size_of(dir, tensor)? as u64;
        total_bytes = total_bytes.saturating_add(size);
        match shards.last_mut() {
            Some(shard) if shard_bytes.saturating_add(size) <= max_shard_bytes => {
                shard.push(idx);
                shard_bytes += size;
            }
            _ => {
                shards.push(vec![idx]);
                shard_bytes = size;
            }
        }
    }
    let num_shards = shards.len();
    let mut names = Vec::with_capacity(num_shards);
    let mut weight_map = BTreeMap::new();
    for (shard_idx, shard) in shards.iter().enumerate() {
        let name = match num_shards {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{num_shards:05}.safetensors", shard_idx + 1),
        };
        let infos: Vec<TensorInfo> = shard.iter().filter_map(|idx| tensors.get(*idx)).cloned().collect();
        write_streamed(&dir.join(&name), &infos, metadata, |idx, sink| match shard.get(idx) {
            Some(whole) => fill(*whole, sink),
            None => Ok(()),
        })?;
        weight_map.extend(infos.into_iter().map(|info| (info.name, name.clone())));
        names.push(name);
    }
    if num_shards > 1 {
        let index = serde_json::json!({
            "metadata": { "total_size": total_bytes }, "weight_map": weight_map,
        });
        staging::write_json(&dir.join(INDEX_FILE), &index)?;
        names.push(INDEX_FILE.to_owned());
    }
    Ok(names)
}

/// Bytes of a tensor that safetensors can hold.
fn size_of(path: &Path, tensor: &TensorInfo) -> Result<usize> {
    let fail = |problem: String| FormatError::tensor(path, &tensor.name, problem);
    if tensor.storage.is_quantized() {
        return Err(fail(format!("safetensors cannot hold {}", tensor.storage)));
    }
    tensor
        .shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .and_then(|numel| tensor.storage.bytes_for(numel))
        .ok_or_else(|| fail(format!("shape {:?} overflows", tensor.shape)))
}
