//! Where the bytes of tensors go that are written one piece at a time.
//!
//! State owned: the open file and how much of the current tensor was put. Invariant: what is put for a tensor is
//! exactly what its header promised, or the write fails naming it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};

/// Takes a tensor's bytes, in order and in pieces of any size.
#[derive(Debug)]
pub struct TensorSink {
    file: BufWriter<File>,
    path: PathBuf,
    put_bytes: u64,
}

impl TensorSink {
    /// Creates or truncates the file.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| FormatError::io(path, e))?;
        Ok(Self { file: BufWriter::new(file), path: path.to_owned(), put_bytes: 0 })
    }

    /// Appends to the current tensor.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.put_bytes = self.put_bytes.saturating_add(bytes.len() as u64);
        self.raw(bytes)
    }

    /// Appends what belongs to no tensor.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| FormatError::io(&self.path, e))
    }

    /// Writes the tensor `name` of `size` bytes, which `fill` puts.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        size: usize,
        fill: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.put_bytes = 0;
        fill(self)?;
        if self.put_bytes != size as u64 {
            let problem = format!("{size} bytes expected, {} given", self.put_bytes);
            return Err(FormatError::tensor(&self.path, name, problem));
        }
        Ok(())
    }

    /// Flushes everything to the disk.
    pub(crate) fn finish(self) -> Result<()> {
        let path = self.path;
        let file = self.file.into_inner().map_err(|e| FormatError::io(&path, e.into_error()))?;
        file.sync_all().map_err(|e| FormatError::io(&path, e))
    }
}
