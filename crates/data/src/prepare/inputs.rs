//! What a command reads: files and folders, here or to be fetched, one record after the other.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::list::List;
use super::product::{Dropped, hex};
use crate::error::{DataError, Finding, Place, Result};
use crate::formats::{Format, Limits, Row, RowError, Rows, lines_text};

/// Endings of the names of files whose whole text is one document.
pub const TEXT_ENDINGS: [&str; 4] = ["txt", "text", "md", "rst"];
/// Endings of files of records.
const RECORD_ENDINGS: [&str; 6] = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"];
/// How the names of texts begin that tell about others.
const ABOUT: [&str; 6] = ["readme", "license", "licence", "changelog", "citation", "notice"];
/// Where the text of such a file stands in its one record.
pub(super) const TEXT_COLUMN: &str = "text";
/// More files in a folder are no data set but a mistake.
const MAX_FILES: usize = 1_000_000;
const MAX_FOLDER_DEPTH: usize = 64;

/// Why a file could not be fetched.
pub type FetchError = Box<dyn std::error::Error + Send + Sync>;
type Fetch = dyn Fn() -> Result<PathBuf, FetchError> + Send + Sync;

/// A file that is read.
#[derive(Clone)]
pub struct InputFile {
    name: String,
    place: FilePlace,
}

#[derive(Clone)]
enum FilePlace {
    Here(PathBuf),
    Elsewhere(Arc<Fetch>),
}

impl InputFile {
    /// A file on this machine.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: path.to_string_lossy().into_owned(), place: FilePlace::Here(path) }
    }

    /// A file that `fetch` brings onto this machine when it is needed, and not before. `name` is what messages and
    /// manifests call it; its ending says what it holds.
    pub fn remote(
        name: impl Into<String>,
        fetch: impl Fn() -> Result<PathBuf, FetchError> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), place: FilePlace::Elsewhere(Arc::new(fetch)) }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of several files, by their names, hold records or documents. Beside files of records, texts that tell about
    /// them (a `README.md`, a licence) are none.
    pub fn choose(names: &[String]) -> Vec<bool> {
        let has = |endings: &[&str], name: &str| endings.contains(&ending(Path::new(name)).as_str());
        let has_records = names.iter().any(|name| has(&RECORD_ENDINGS, name));
        let is_about = |name: &str| {
            let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            let is_text = has(&TEXT_ENDINGS, name) && ABOUT.iter().any(|about| stem.starts_with(about));
            is_text || (stem.starts_with("dataset_info") && has(&["json"], name))
        };
        let is_data = |name: &String| has(&RECORD_ENDINGS, name) || has(&TEXT_ENDINGS, name);
        names.iter().map(|name| is_data(name) && !(has_records && is_about(name))).collect()
    }

    fn path(&self) -> Result<PathBuf> {
        match &self.place {
            FilePlace::Here(path) => Ok(path.clone()),
            FilePlace::Elsewhere(fetch) => {
                fetch().map_err(|source| DataError::Fetch { name: self.name.clone(), source })
            }
        }
    }

    /// Whether an output at `path` would replace it.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        match &self.place {
            FilePlace::Here(own) => match (own.canonicalize(), path.canonicalize()) {
                (Ok(own), Ok(path)) => own == path,
                _ => false,
            },
            FilePlace::Elsewhere(_) => false,
        }
    }
}

impl fmt::Debug for InputFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InputFile").field(&self.name).finish()
    }
}

/// Files that are read one after the other.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The files, in the order of reading.
    pub files: Vec<InputFile>,
    /// The format of those that are no documents; `None`: told by their first bytes and names.
    pub format: Option<Format>,
    /// What a file may be.
    pub limits: Limits,
    /// Records that cannot be read are left out and counted; else the first of them is an error.
    pub skip_unreadable: bool,
}

impl Source {
    /// A file, or all files of records and documents in a folder and the folders in it, in the order of their names.
    /// Names that begin with a dot are passed over, and so are manifests and schemas that commands write.
    ///
    /// # Errors
    /// There is nothing at the path; a folder without any such file.
    pub fn local(path: &Path) -> Result<Vec<InputFile>> {
        let metadata = fs::metadata(path).map_err(|source| DataError::io(path, source))?;
        if !metadata.is_dir() {
            return Ok(vec![InputFile::local(path)]);
        }
        let mut found = BTreeSet::new();
        walk(path, 0, &mut found)?;
        let names: Vec<String> =
            found.iter().map(|path: &PathBuf| path.to_string_lossy().into_owned()).collect();
        let files: Vec<InputFile> = found
            .into_iter()
            .zip(InputFile::choose(&names))
            .filter(|(_, is_data)| *is_data)
            .map(|(path, _)| InputFile::local(path))
            .collect();
        if files.is_empty() {
            let endings: Vec<String> =
                RECORD_ENDINGS.iter().chain(&TEXT_ENDINGS).map(|ending| format!(".{ending}")).collect();
            return Err(DataError::file(path, format!("has no file that ends in {}", endings.join(", "))));
        }
        Ok(files)
    }
}

fn walk(folder: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    if depth > MAX_FOLDER_DEPTH {
        return Err(DataError::file(folder, format!("is a folder in more than {MAX_FOLDER_DEPTH} others")));
    }
    let io = |source| DataError::io(folder, source);
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') || name.ends_with(".manifest.json") || name.ends_with(".schema.json") {
            continue;
        }
        // Links to files are followed, links to folders are not: they may lead back.
        let kind = entry.file_type().map_err(io)?;
        if kind.is_dir() {
            walk(&entry.path(), depth + 1, found)?;
        } else if entry.path().is_file() {
            found.insert(entry.path());
        }
        if found.len() > MAX_FILES {
            return Err(DataError::file(folder, format!("holds more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

/// A file that was read, as a manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRecord {
    /// What it is called.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of all of it, in lower-case hexadecimal digits.
    pub sha256: String,
    /// Records that were read of it, with those that could not be.
    pub records: u64,
    state: FileState,
}

/// By what a change is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    bytes: u64,
    modified: Option<std::time::SystemTime>,
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl InputRecord {
    pub(super) fn to_json(&self) -> Value {
        json!({"name": self.name, "bytes": self.bytes, "sha256": self.sha256, "records": self.records})
    }

    /// That of a file which is read as a whole.
    pub(super) fn read(file: &InputFile) -> Result<(Self, PathBuf)> {
        let path = file.path()?;
        let io = |source| DataError::io(&path, source);
        let mut open = File::open(&path).map_err(io)?;
        let metadata = open.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(DataError::file(&path, "is no file"));
        }
        let mut hasher = Sha256::new();
        let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            let read = match open.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io(error)),
            };
            hasher.update(buffer.get(..read).unwrap_or_default());
            bytes += read as u64;
        }
        let sha256 = hex(&hasher.finalize());
        let record =
            Self { name: file.name.clone(), bytes, sha256, records: 0, state: FileState::of(&metadata) };
        Ok((record, path))
    }

    pub(super) fn count(&mut self) {
        self.records += 1;
    }
}

/// A record, and where it came from.
#[derive(Debug)]
pub(super) struct Document {
    /// Which of the records that could be read, from 0.
    pub number: u64,
    /// The file's index in the source.
    pub file: usize,
    pub columns: Map<String, Value>,
    /// Its bytes, for JSONL.
    raw: Option<Vec<u8>>,
    /// Whether its values are all texts because the format has no other.
    pub is_untyped: bool,
}

impl Document {
    /// The text in a column, or why there is none.
    pub fn text(&self, column: &str) -> Result<&str, &'static str> {
        match self.columns.get(column) {
            None => Err("no such column"),
            Some(Value::Null) => Err("its text is null"),
            Some(Value::String(text)) if text.trim().is_empty() => Err("its text is empty"),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err("its text is no string"),
        }
    }

    /// It as a line of JSONL, without the end: as it stood there, if it came from JSONL.
    pub fn line(&self) -> Vec<u8> {
        match &self.raw {
            Some(raw) => raw.clone(),
            None => Value::Object(self.columns.clone()).to_string().into_bytes(),
        }
    }
}

/// Reads a source.
pub(super) struct Reader<'a> {
    source: &'a Source,
    /// What an earlier reading found, against which this one is held.
    known: Option<&'a [InputRecord]>,
    open: Option<OpenFile>,
    next_file: usize,
    number: u64,
    pub records: Vec<InputRecord>,
}

enum OpenFile {
    Rows(Rows, PathBuf),
    List(List<BufReader<File>>, PathBuf),
    Text(Option<Result<String, String>>, PathBuf),
}

/// The reason under which records are counted that cannot be read.
const UNREADABLE: &str = "cannot be read";

impl<'a> Reader<'a> {
    pub fn new(source: &'a Source) -> Self {
        Self { source, known: None, open: None, next_file: 0, number: 0, records: Vec::new() }
    }

    /// Reads once more, what an earlier reading has read.
    pub fn again(source: &'a Source, known: &'a [InputRecord]) -> Self {
        Self { known: Some(known), ..Self::new(source) }
    }

    /// The next record that can be read. `None` at the end of the last file, or of those that were read before.
    pub fn next(&mut self, dropped: &mut Dropped) -> Result<Option<Document>> {
        loop {
            let file = self.next_file.saturating_sub(1);
            let row = match &mut self.open {
                None => {
                    if !self.open_next()? {
                        return Ok(None);
                    }
                    continue;
                }
                Some(OpenFile::Text(text, _)) => text.take().map(|text| match text {
                    Ok(text) => {
                        let columns = Map::from_iter([(TEXT_COLUMN.to_owned(), Value::String(text))]);
                        Ok(Row { place: Place::Record(1), columns, raw: Vec::new() })
                    }
                    Err(message) => Err(RowError::Finding(Finding::of_file(message))),
                }),
                Some(OpenFile::Rows(rows, _)) => rows.next(),
                Some(OpenFile::List(list, _)) => list.next(),
            };
            let Some(row) = row else {
                self.open = None;
                continue;
            };
            if let Some(record) = self.records.last_mut() {
                record.count();
            }
            match row {
                Ok(row) => return Ok(Some(self.document(row, file))),
                Err(RowError::Fatal(error)) => return Err(error),
                Err(RowError::Finding(_)) if self.source.skip_unreadable => dropped.count(UNREADABLE),
                Err(RowError::Finding(finding)) => return Err(self.at_fault(finding)),
            }
        }
    }

    fn document(&mut self, row: Row, file: usize) -> Document {
        let format = match &self.open {
            Some(OpenFile::Rows(rows, _)) => Some(rows.format()),
            _ => None,
        };
        let number = self.number;
        self.number += 1;
        let Row { columns, mut raw, .. } = row;
        let raw = (format == Some(Format::Jsonl)).then(|| {
            while raw.last().is_some_and(u8::is_ascii_whitespace) {
                raw.pop();
            }
            raw
        });
        Document { number, file, columns, raw, is_untyped: format == Some(Format::Csv) }
    }

    /// The error of a record at fault in the file that is open.
    pub fn at_fault(&self, finding: Finding) -> DataError {
        let path = match &self.open {
            Some(OpenFile::Rows(_, path) | OpenFile::List(_, path) | OpenFile::Text(_, path)) => path.clone(),
            None => PathBuf::new(),
        };
        DataError::Record { path, finding }
    }

    /// Opens the next file; whether there is one.
    fn open_next(&mut self) -> Result<bool> {
        let Some(file) = self.source.files.get(self.next_file) else { return Ok(false) };
        let (record, path) = match self.known {
            None => InputRecord::read(file)?,
            Some(known) => {
                let Some(known) = known.get(self.next_file) else { return Ok(false) };
                let path = file.path()?;
                let metadata = fs::metadata(&path).map_err(|source| DataError::io(&path, source))?;
                if FileState::of(&metadata) != known.state {
                    return Err(DataError::file(&path, "changed while it was read"));
                }
                (InputRecord { records: 0, ..known.clone() }, path)
            }
        };
        self.next_file += 1;
        let limits = &self.source.limits;
        let is_text = self.source.format.is_none()
            && TEXT_ENDINGS.iter().any(|known| ending(Path::new(file.name())) == *known);
        self.open = Some(if is_text {
            OpenFile::Text(Some(read_text(&path, record.bytes, limits.max_record_bytes)?), path)
        } else if self.source.format.is_none() && is_list(&path)? {
            if record.bytes > limits.max_file_bytes {
                let message =
                    format!("has {} bytes, over the limit of {}", record.bytes, limits.max_file_bytes);
                return Err(DataError::file(&path, message));
            }
            let file = File::open(&path).map_err(|source| DataError::io(&path, source))?;
            let reader = BufReader::with_capacity(1 << 16, file);
            OpenFile::List(List::new(&path, reader, limits.max_record_bytes), path)
        } else {
            OpenFile::Rows(Rows::open(&path, self.source.format, limits)?, path)
        });
        self.records.push(record);
        Ok(true)
    }
}

/// Whether a file is one JSON list: named so, and beginning with a bracket.
fn is_list(path: &Path) -> Result<bool> {
    if ending(path) != "json" {
        return Ok(false);
    }
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.map_err(|source| DataError::io(path, source))?;
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    Ok(head.trim_ascii_start().starts_with(b"["))
}

/// The text of a document, or why it is none.
fn read_text(path: &Path, bytes: u64, max_bytes: usize) -> Result<Result<String, String>> {
    if bytes > max_bytes as u64 {
        return Ok(Err(format!("has {bytes} bytes, over the limit of {max_bytes} for one document")));
    }
    let bytes = fs::read(path).map_err(|source| DataError::io(path, source))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    Ok(lines_text(bytes).map(str::to_owned))
}

fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}
