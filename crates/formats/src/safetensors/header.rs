//! The header of a safetensors file.
//!
//! The reference crate's `read_metadata` wants the whole file in its buffer, keeps the last of two equal names and
//! names no tensor in most errors, so the header is parsed here; tests compare the two on valid files.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::{FormatError, Result, shorten};
use crate::source::{ByteSpan, FileReader, TensorInfo};
use crate::storage::StorageType;

/// The reference implementation's bound.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_TENSORS: usize = 1 << 20;
const MAX_DIMS: usize = 16;
const LEN_BYTES: u64 = 8;

pub(crate) struct Header {
    pub(crate) tensors: Vec<(TensorInfo, ByteSpan)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A JSON object as pairs in file order; equal names stay visible to the caller.
pub(super) struct UniqueMap<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(UniqueMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else if header.tensors.len() >= MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Reads and checks the header of `file`.
pub(crate) fn read_header(file: &FileReader) -> Result<Header> {
    let path = file.path();
    let mut len_bytes = [0; 8];
    file.read_exact_at(0, &mut len_bytes, "header length")?;
    let header_len = u64::from_le_bytes(len_bytes);
    if header_len > MAX_HEADER_BYTES {
        return Err(FormatError::limit(path, "header length in bytes", MAX_HEADER_BYTES, header_len));
    }
    let data_start = header_len.saturating_add(LEN_BYTES);
    let header = file.read_vec(LEN_BYTES, header_len as usize, "header")?;
    let raw: RawHeader = serde_json::from_slice(&header)
        .map_err(|source| FormatError::Json { path: path.to_owned(), source })?;
    drop(header);
    let data_len = file.len().saturating_sub(data_start);

    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        tensors.push(check_tensor(file, name, &tensor, data_start, data_len)?);
    }
    tensors.sort_by(|(a, a_at), (b, b_at)| {
        (a_at.offset, a_at.len, &a.name).cmp(&(b_at.offset, b_at.len, &b.name))
    });
    check_cover(file, &tensors, data_start)?;
    tensors.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    for pair in tensors.windows(2) {
        if let [(a, _), (b, _)] = pair
            && a.name == b.name
        {
            return Err(FormatError::tensor(path, &a.name, "is there twice"));
        }
    }
    Ok(Header { tensors, metadata: raw.metadata })
}

fn check_tensor(
    file: &FileReader,
    name: String,
    raw: &RawTensor,
    data_start: u64,
    data_len: u64,
) -> Result<(TensorInfo, ByteSpan)> {
    let fail = |problem: String| FormatError::tensor(file.path(), &name, problem);
    let storage = StorageType::from_safetensors(&raw.dtype)
        .ok_or_else(|| fail(format!("dtype {:?} is not supported", shorten(&raw.dtype))))?;
    if raw.shape.len() > MAX_DIMS {
        return Err(fail(format!("{} dimensions, over the limit of {MAX_DIMS}", raw.shape.len())));
    }
    let shape: Vec<usize> = raw
        .shape
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| fail(format!("dimension {d} is too large"))))
        .collect::<Result<_>>()?;
    let expected = shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .and_then(|numel| storage.bytes_for(numel))
        .ok_or_else(|| fail(format!("shape {shape:?} overflows")))?;
    let (start, end) = raw.data_offsets;
    let len =
        end.checked_sub(start).ok_or_else(|| fail(format!("data_offsets [{start}, {end}] run backwards")))?;
    if len != expected as u64 {
        return Err(fail(format!(
            "shape {shape:?} of {storage} needs {expected} bytes, data_offsets give {len}"
        )));
    }
    if end > data_len {
        return Err(FormatError::Truncated {
            path: file.path().to_owned(),
            what: format!("tensor `{}`", shorten(&name)),
            expected: data_start.saturating_add(end),
            actual: file.len(),
        });
    }
    Ok((TensorInfo { name, storage, shape }, ByteSpan { offset: data_start + start, len: expected }))
}

/// The data is covered exactly: each tensor starts where the one before ends, the last ends with the file.
fn check_cover(file: &FileReader, tensors: &[(TensorInfo, ByteSpan)], data_start: u64) -> Result<()> {
    let mut end = data_start;
    for (info, span) in tensors {
        if span.offset != end {
            let what =
                if span.offset < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(FormatError::tensor(file.path(), &info.name, what));
        }
        end = span.offset.saturating_add(span.len as u64);
    }
    if end != file.len() {
        let problem = format!("{} bytes after the last tensor", file.len().saturating_sub(end));
        return Err(FormatError::malformed(file.path(), problem));
    }
    Ok(())
}
