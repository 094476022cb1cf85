//! Records of a file that are asked one by one, as labels and distillation read them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use wardrobe_batch::records::{InputError, RecordsError};
use wardrobe_data::{DataError, Finding, Limits, Row, RowError, Rows};

/// No record is longer: what is in the window is in memory.
const MAX_RECORD_BYTES: usize = 4 << 20;
/// Bad records that are named; the rest are counted.
const MAX_BAD_SHOWN: usize = 5;
/// The field that names a record.
pub(crate) const ID: &str = "id";

/// A record in the order of the input.
pub(crate) struct Record {
    pub index: u64,
    /// Its fields, or what is wrong with it.
    pub fields: Result<Map<String, Value>, String>,
    /// `line 7`.
    pub place: String,
}

/// Opens an input and gives its records, one after the other; the first `limit` of them.
pub(crate) fn records(
    input: &Path,
    limit: Option<u64>,
) -> Result<impl Iterator<Item = Result<Record, InputError>> + use<>, DataError> {
    let limits =
        Limits { max_record_bytes: MAX_RECORD_BYTES, max_records: u64::MAX, max_file_bytes: u64::MAX };
    let rows = Rows::open(input, None, &limits)?;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(rows.take(limit).zip(0..).map(|(row, index)| match row {
        Ok(Row { place, columns, .. }) => Ok(Record { index, fields: Ok(columns), place: place.to_string() }),
        Err(RowError::Finding(Finding { place, message, .. })) => {
            let place = place.map_or_else(|| "the file".to_owned(), |place| place.to_string());
            Ok(Record { index, fields: Err(message), place })
        }
        Err(RowError::Fatal(error)) => Err(error.into()),
    }))
}

/// What a look at every record of an input tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub num_records: u64,
    /// Records that cannot be asked.
    pub num_bad: u64,
    /// What is wrong with the first of them.
    pub first_bad: Vec<String>,
}

impl Checked {
    /// Looks at every record; `problem` says what is wrong with one.
    pub fn of(
        records: impl Iterator<Item = Result<Record, InputError>>,
        mut problem: impl FnMut(&Record) -> Option<String>,
    ) -> Result<Self, RecordsError> {
        let mut checked = Self::default();
        for record in records {
            let record = record.map_err(RecordsError::Input)?;
            checked.num_records += 1;
            if let Some(problem) = problem(&record) {
                checked.num_bad += 1;
                if checked.first_bad.len() < MAX_BAD_SHOWN {
                    checked.first_bad.push(problem);
                }
            }
        }
        Ok(checked)
    }
}

/// Refuses an output whose folder is not there.
pub(crate) fn check_folder(output: &Path) -> Result<(), RecordsError> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.is_some_and(|folder| !folder.is_dir()) {
        true => Err(RecordsError::NoFolder { path: output.to_owned() }),
        false => Ok(()),
    }
}

/// Whether two paths lead to one file that is there.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    let same = |path: &Path| path.canonicalize().ok();
    same(one).is_some_and(|one| Some(one) == same(other))
}

/// SHA-256 of a file.
pub(crate) fn digest(path: &Path) -> Result<String, DataError> {
    let failed = |source: io::Error| DataError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The beginning of a text that may be long.
pub(crate) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let mut short: String = text.chars().take(MAX_CHARS).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}

/// Text on one line, without what a terminal might obey.
pub(crate) fn one_line(text: &str, max_chars: usize) -> String {
    let mut flat = String::new();
    for c in text.chars().take(max_chars) {
        flat.push(if c.is_control() { ' ' } else { c });
    }
    if text.chars().nth(max_chars).is_some() {
        flat.push('…');
    }
    flat
}
