//! Records set aside on the disk, to be read again in another order.

use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};

/// A file without a name beside the output; it goes with the process, however that ends. In memory are 16 bytes a record.
pub(super) struct Spool {
    file: BufWriter<File>,
    /// Where each record begins, and where the last one ends.
    bounds: Vec<u64>,
    path: PathBuf,
}

impl Spool {
    /// In the folder of `output`.
    pub fn new(output: &Path) -> Result<Self> {
        let folder = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = tempfile::tempfile_in(folder).map_err(|source| DataError::io(folder, source))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 16, file), bounds: vec![0], path: output.to_owned() })
    }

    /// Sets a record aside.
    pub fn push(&mut self, record: &[u8]) -> Result<()> {
        self.file.write_all(record).map_err(|source| DataError::io(&self.path, source))?;
        let end = self.bounds.last().copied().unwrap_or(0) + record.len() as u64;
        self.bounds.push(end);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// A record, by its place in the order of setting aside.
    pub fn read(&mut self, at: usize) -> Result<Vec<u8>> {
        let (Some(&start), Some(&end)) = (self.bounds.get(at), self.bounds.get(at + 1)) else {
            return Ok(Vec::new());
        };
        let mut record = vec![0; usize::try_from(end - start).unwrap_or(0)];
        // Seeking writes what is still to be written.
        let read =
            self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.get_mut().read_exact(&mut record));
        read.map_err(|source| DataError::io(&self.path, source))?;
        Ok(record)
    }
}
