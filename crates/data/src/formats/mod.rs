//! Files of records: rows of named values, whatever the format.
//!
//! A file is read once, front to back, a row at a time; what is kept in memory is one row (for Parquet: one page of each
//! column). A row that cannot be read is a [`RowError::Finding`], after which reading goes on; what ends the reading is
//! [`RowError::Fatal`].
//!
//! Not done here: the meaning of columns.

mod csv;
mod jsonl;
mod lines;
mod parquet;

pub(crate) use lines::text as lines_text;

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{DataError, Finding, Place, Result};

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A JSON object on every line.
    Jsonl,
    /// A header line and comma-, semicolon- or tab-separated values, quoted as RFC 4180 has it.
    Csv,
    /// Apache Parquet, uncompressed or with Snappy.
    Parquet,
}

impl Format {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "JSONL",
            Self::Csv => "CSV",
            Self::Parquet => "Parquet",
        }
    }
}

/// What a file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest file, in bytes.
    pub max_file_bytes: u64,
    /// The longest record of a text file, in bytes.
    pub max_record_bytes: usize,
    /// The most records.
    pub max_records: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_file_bytes: 64 << 30, max_record_bytes: 16 << 20, max_records: 50_000_000 }
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// Its values by column.
    pub columns: Map<String, Value>,
    /// Its bytes in the file with the end of the line; empty for Parquet.
    pub raw: Vec<u8>,
}

/// Why there is no row.
#[derive(Debug)]
pub enum RowError {
    /// This row cannot be read; the next ones can.
    Finding(Finding),
    /// Reading has ended.
    Fatal(DataError),
}

/// The rows of a file.
pub struct Rows {
    reader: Box<dyn Iterator<Item = Result<Row, RowError>>>,
    format: Format,
    header: Vec<u8>,
    path: PathBuf,
    num_rows: u64,
    max_records: u64,
    is_done: bool,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("path", &self.path).field("format", &self.format).finish_non_exhaustive()
    }
}

impl Rows {
    /// Opens a file. Without `format` it is told by the first bytes, then by the name (`.jsonl`, `.ndjson`, `.json`,
    /// `.csv`, `.tsv`, `.parquet`).
    ///
    /// # Errors
    /// The file cannot be opened, is over the limit, or its format cannot be told.
    pub fn open(path: &Path, format: Option<Format>, limits: &Limits) -> Result<Self> {
        let io = |source| DataError::io(path, source);
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(DataError::file(path, "is no file"));
        }
        if metadata.len() > limits.max_file_bytes {
            let message =
                format!("has {} bytes, over the limit of {}", metadata.len(), limits.max_file_bytes);
            return Err(DataError::file(path, message));
        }
        let mut head = Vec::new();
        (&mut file).take(HEAD_BYTES).read_to_end(&mut head).map_err(io)?;
        file.rewind().map_err(io)?;
        let format = match format {
            Some(format) => format,
            None => detect(path, &head).map_err(|message| DataError::file(path, message))?,
        };
        let lines =
            |file| lines::Lines::new(BufReader::with_capacity(1 << 16, file), limits.max_record_bytes);
        let mut header = Vec::new();
        let reader: Box<dyn Iterator<Item = Result<Row, RowError>>> = match format {
            Format::Jsonl => Box::new(jsonl::Reader::new(path, lines(file))),
            Format::Csv => {
                let is_tsv = extension(path).as_deref() == Some("tsv");
                let reader = csv::Reader::new(path, lines(file), csv::separator(&head, is_tsv))?;
                header = reader.header().to_vec();
                Box::new(reader)
            }
            Format::Parquet => Box::new(parquet::Reader::new(path, file)?),
        };
        let max_records = limits.max_records;
        Ok(Self { reader, format, header, path: path.to_owned(), num_rows: 0, max_records, is_done: false })
    }

    /// What the file is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The bytes of a CSV file's header; else empty.
    pub fn header(&self) -> &[u8] {
        &self.header
    }
}

impl Iterator for Rows {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let item = self.reader.next()?;
        self.num_rows += 1;
        if self.num_rows > self.max_records {
            self.is_done = true;
            let message = format!("has more than {} records", self.max_records);
            return Some(Err(RowError::Fatal(DataError::file(&self.path, message))));
        }
        self.is_done = matches!(item, Err(RowError::Fatal(_)));
        Some(item)
    }
}

/// What is looked at to tell a format.
const HEAD_BYTES: u64 = 4096;
const BOM: &[u8] = b"\xef\xbb\xbf";

fn extension(path: &Path) -> Option<String> {
    path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase)
}

fn detect(path: &Path, head: &[u8]) -> Result<Format, String> {
    if head.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    let packed = [(&b"\x1f\x8b"[..], "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip")];
    if let Some((_, name)) = packed.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(format!("is packed with {name}; unpack it first"));
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Err("is UTF-16; save it as UTF-8".to_owned());
    }
    let text = head.strip_prefix(BOM).unwrap_or(head);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    match (extension(path).as_deref(), first) {
        (Some("parquet"), _) => Err("is named .parquet but is none: it does not begin with PAR1".to_owned()),
        (Some("jsonl" | "ndjson" | "json"), _) => Ok(Format::Jsonl),
        (Some("csv" | "tsv"), _) => Ok(Format::Csv),
        (_, Some(b'{')) => Ok(Format::Jsonl),
        _ => Err("is of no known format; name it .jsonl, .csv or .parquet".to_owned()),
    }
}
