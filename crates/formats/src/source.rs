//! Tensors by name, and positional reads of the files that hold them.
//!
//! Purpose: one interface over safetensors and GGUF, everything in Hugging Face layout (row-major, `[out, in]`).
//! State owned: open file handles and checked headers; no tensor data is kept.
//! Invariants: every range handed out was checked against the file length at open; a file that shrinks afterwards
//! is an error at the read. Files are read and never mapped: no `unsafe`, no SIGBUS, and the peak memory is one
//! tensor (or one slice of rows).
//! Not done here: conversion ([`crate::convert`]) and upload.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};
use crate::storage::StorageType;

/// Name, storage and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TensorInfo {
    /// Name in Hugging Face's scheme, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// How elements are stored.
    pub storage: StorageType,
    /// Row-major shape, outermost first: a linear weight is `[out, in]`. Empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements. Checked not to overflow when the header was read; saturates for one made by hand.
    pub fn numel(&self) -> usize {
        self.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d))
    }

    /// Number of rows: the outermost dimension, 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements in one row: everything but the outermost dimension, 1 for a scalar or vector.
    pub fn row_numel(&self) -> usize {
        self.shape.iter().skip(1).fold(1usize, |n, &d| n.saturating_mul(d))
    }

    /// Bytes of the whole tensor; `None` if the shape is not a whole number of blocks.
    pub fn size_bytes(&self) -> Option<usize> {
        self.storage.bytes_for(self.numel())
    }

    /// Bytes of one row; `None` if a row is not a whole number of blocks.
    pub fn row_bytes(&self) -> Option<usize> {
        self.storage.bytes_for(self.row_numel())
    }
}

/// A set of named tensors that can be read one at a time, in any order and from any thread.
pub trait TensorSource: Send + Sync + std::fmt::Debug {
    /// All tensors, sorted by name.
    fn tensors(&self) -> &[TensorInfo];

    /// Where the tensors come from, for messages: a file or a folder.
    fn path(&self) -> &Path;

    /// Raw bytes of rows `rows` of tensor `name`, in its storage type, row-major. `0..1` reads a scalar.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`], [`FormatError::Tensor`] for rows out of range or that cut a block,
    /// [`FormatError::Truncated`] if the file shrank, [`FormatError::Io`].
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>>;

    /// The description of tensor `name`.
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        let tensors = self.tensors();
        let idx = tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        tensors.get(idx)
    }

    /// Raw bytes of the whole tensor `name`, in its storage type, row-major.
    ///
    /// # Errors
    /// As [`TensorSource::read_rows`].
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.read_rows(name, 0..self.require(name)?.rows())
    }

    /// The description of tensor `name`, or [`FormatError::MissingTensor`].
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`].
    fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.info(name).ok_or_else(|| FormatError::MissingTensor {
            path: self.path().to_owned(),
            tensor: crate::error::shorten(name),
        })
    }
}

/// A read-only file with positional reads and the length that it had at open.
#[derive(Debug)]
pub(crate) struct FileReader {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
    path: PathBuf,
    len: u64,
}

impl FileReader {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |e| FormatError::io(path, e);
        // Asked before opening, because opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(FormatError::malformed(path, "not a regular file"));
        }
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        #[cfg(not(unix))]
        let file = std::sync::Mutex::new(file);
        Ok(Self { file, path: path.to_owned(), len: meta.len() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length at open.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from `offset`; `what` names the part in the error.
    pub(crate) fn read_exact_at(&self, offset: u64, buf: &mut [u8], what: &str) -> Result<()> {
        self.read_exact_raw(offset, buf).map_err(|e| {
            if e.kind() != std::io::ErrorKind::UnexpectedEof {
                return FormatError::io(&self.path, e);
            }
            FormatError::Truncated {
                path: self.path.clone(),
                what: crate::error::shorten(what),
                expected: offset.saturating_add(buf.len() as u64),
                actual: std::fs::metadata(&self.path).map_or(self.len, |m| m.len()),
            }
        })
    }

    #[cfg(unix)]
    fn read_exact_raw(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, offset)
    }

    #[cfg(not(unix))]
    fn read_exact_raw(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buf)
    }

    /// `len` bytes from `offset` in a new buffer. The range is checked against the length at open first, so that a
    /// lying size never becomes an allocation.
    pub(crate) fn read_vec(&self, offset: u64, len: usize, what: &str) -> Result<Vec<u8>> {
        let end = offset.saturating_add(len as u64);
        if end > self.len {
            return Err(FormatError::Truncated {
                path: self.path.clone(),
                what: crate::error::shorten(what),
                expected: end,
                actual: self.len,
            });
        }
        let mut buf = zeroed(len, what)?;
        self.read_exact_at(offset, &mut buf, what)?;
        Ok(buf)
    }
}

/// A zeroed buffer, or [`FormatError::OutOfMemory`] where `vec![0; len]` would abort.
pub(crate) fn zeroed(len: usize, what: &str) -> Result<Vec<u8>> {
    let mut buf = Vec::new();
    buf.try_reserve_exact(len)
        .map_err(|_| FormatError::OutOfMemory { bytes: len as u64, what: crate::error::shorten(what) })?;
    buf.resize(len, 0);
    Ok(buf)
}

/// Where a tensor lies in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteSpan {
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// Reads rows `rows` of the tensor `info` that lies at `span` of `file`.
pub(crate) fn read_span_rows(
    file: &FileReader,
    info: &TensorInfo,
    span: ByteSpan,
    rows: &Range<usize>,
) -> Result<Vec<u8>> {
    if rows.start > rows.end || rows.end > info.rows() {
        let problem = format!("rows {}..{} of {} asked for", rows.start, rows.end, info.rows());
        return Err(FormatError::tensor(file.path(), &info.name, problem));
    }
    if *rows == (0..info.rows()) {
        return file.read_vec(span.offset, span.len, &info.name);
    }
    let row_bytes = info.row_bytes().ok_or_else(|| {
        FormatError::tensor(file.path(), &info.name, "a row is not a whole number of blocks")
    })?;
    let start = row_bytes.saturating_mul(rows.start);
    let len = row_bytes.saturating_mul(rows.len());
    if start.saturating_add(len) > span.len {
        return Err(FormatError::tensor(file.path(), &info.name, "rows reach past the tensor"));
    }
    file.read_vec(span.offset.saturating_add(start as u64), len, &info.name)
}

/// Checks that spans do not overlap; names the two tensors that do.
pub(crate) fn check_overlaps(path: &Path, spans: &mut [(ByteSpan, &str)]) -> Result<()> {
    spans.sort_by_key(|(span, _)| (span.offset, span.len));
    for pair in spans.windows(2) {
        if let [(a, a_name), (b, b_name)] = pair
            && a.offset.saturating_add(a.len as u64) > b.offset
        {
            let problem = format!("overlaps tensor `{}`", crate::error::shorten(b_name));
            return Err(FormatError::tensor(path, a_name, problem));
        }
    }
    Ok(())
}
