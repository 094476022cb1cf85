//! Writing GGUF files, and the same weights in another storage type.

use std::path::Path;

use crate::convert;
use crate::error::{FormatError, Result};
use crate::gguf::value::{Array, Value};
use crate::gguf::{DEFAULT_ALIGNMENT, GgufFile, MAGIC};
use crate::sink::TensorSink;
use crate::source::TensorSource;
use crate::storage::StorageType;

/// A tensor to be written. Its bytes are asked for when their turn comes, so that one is in memory at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file.
    pub name: String,
    /// How elements are stored.
    pub storage: StorageType,
    /// Row-major shape, outermost first, as everywhere in this crate (the file has it reversed).
    pub shape: Vec<usize>,
}

/// Writes a GGUF version 3 file with the default alignment: `metadata` in its order, then `tensors`, whose bytes
/// `data(i)` gives. Syncs to disk. `metadata` must not name another alignment.
///
/// # Errors
/// [`FormatError::Tensor`] for a storage type that ggml does not have, or bytes that do not fit the shape;
/// [`FormatError::Key`] for a foreign `general.alignment`;
/// [`FormatError::Io`]; and what `data` gives.
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[GgufTensor],
    mut data: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    write_streamed(path, metadata, tensors, |idx, sink| sink.put(&data(idx)?))
}

/// The same for tensors that need not be in memory: `fill` is called once with the index of each, in their order, and
/// puts its bytes.
///
/// # Errors
/// As [`write()`], and what `fill` gives.
pub fn write_streamed(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[GgufTensor],
    mut fill: impl FnMut(usize, &mut TensorSink) -> Result<()>,
) -> Result<()> {
    let mut head = Vec::new();
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&3u32.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        if key == "general.alignment" && value.as_u64() != Some(DEFAULT_ALIGNMENT) {
            let expected = DEFAULT_ALIGNMENT.to_string();
            return Err(FormatError::key(path, key, expected, format!("{value:?}")));
        }
        put_string(&mut head, key);
        head.extend_from_slice(&value.type_id().to_le_bytes());
        put_value(&mut head, value);
    }
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        let fail = |problem: String| FormatError::tensor(path, &tensor.name, problem);
        let id =
            tensor.storage.ggml_id().ok_or_else(|| fail(format!("GGUF has no type {}", tensor.storage)))?;
        let size = tensor
            .shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|numel| tensor.storage.bytes_for(numel))
            .ok_or_else(|| fail(format!("shape {:?} overflows or is no whole blocks", tensor.shape)))?;
        put_string(&mut head, &tensor.name);
        head.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            head.extend_from_slice(&(*dim as u64).to_le_bytes());
        }
        head.extend_from_slice(&id.to_le_bytes());
        head.extend_from_slice(&offset.to_le_bytes());
        sizes.push(size);
        offset = (size as u64)
            .checked_next_multiple_of(DEFAULT_ALIGNMENT)
            .and_then(|padded| offset.checked_add(padded))
            .ok_or_else(|| fail("file size overflows".to_owned()))?;
    }
    head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);

    let mut sink = TensorSink::create(path)?;
    sink.raw(&head)?;
    for (idx, (tensor, size)) in tensors.iter().zip(sizes).enumerate() {
        sink.tensor(&tensor.name, size, |sink| fill(idx, sink))?;
        let padding = size.next_multiple_of(DEFAULT_ALIGNMENT as usize) - size;
        sink.raw(&[0; DEFAULT_ALIGNMENT as usize][..padding])?;
    }
    sink.finish()
}

/// Writes the weights of `source` to `path` with every quantised tensor and every matrix in `storage`; vectors stay
/// as they are. Names, row order and metadata are kept but for `general.file_type`, so the result is a file for any
/// GGUF reader.
///
/// # Errors
/// As [`write()`]; [`FormatError::Conversion`] if rows are not whole blocks of `storage`.
pub fn requantize_file(source: &GgufFile, path: &Path, storage: StorageType) -> Result<()> {
    let file_type = file_type(storage).ok_or_else(|| FormatError::Conversion {
        from: storage,
        to: storage,
        problem: "no GGUF file type is made of it".to_owned(),
    })?;
    let mut metadata = Vec::new();
    for (key, value) in source.metadata().iter() {
        let value = match key {
            "general.alignment" => continue,
            "general.file_type" => Value::U32(file_type),
            _ => value.clone(),
        };
        metadata.push((key.to_owned(), value));
    }
    let tensors: Vec<GgufTensor> = source
        .tensors()
        .iter()
        .map(|t| {
            let matrix = t.shape.len() > 1 || t.storage.is_quantized();
            let storage = if matrix && t.storage.is_float() { storage } else { t.storage };
            GgufTensor { name: t.name.clone(), storage, shape: t.shape.clone() }
        })
        .collect();
    write(path, &metadata, &tensors, |idx| {
        let (Some(from), Some(to)) = (source.tensors().get(idx), tensors.get(idx)) else {
            return Err(FormatError::malformed(path, "no such tensor"));
        };
        let bytes = source.read(&from.name)?;
        let row_numel = from.shape.last().copied().unwrap_or(1);
        convert::convert(from.storage, &bytes, from.numel(), row_numel, to.storage)
    })
}

/// llama.cpp's `llama_ftype` for a file whose matrices are all of one type.
pub fn file_type(storage: StorageType) -> Option<u32> {
    use StorageType::*;
    Some(match storage {
        F32 => 0,
        F16 => 1,
        Q4_0 => 2,
        Q4_1 => 3,
        Q8_0 => 7,
        Q5_0 => 8,
        Q5_1 => 9,
        Q2_K => 10,
        Q3_K => 12,
        Q4_K => 15,
        Q5_K => 17,
        Q6_K => 18,
        BF16 => 32,
        _ => return None,
    })
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.type_id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|x| u8::from(*x))),
        Array::String(v) => v.iter().for_each(|s| put_string(out, s)),
        Array::Array(v) => v.iter().for_each(|a| put_array(out, a)),
    }
}
