//! The records of a file, one after the other.
//!
//! The first row that can be read says what the records are ([`Layout`]); all others must be the same.

use std::path::{Path, PathBuf};

use crate::columns::{ColumnMap, Layout};
use crate::error::{DataError, Fault, Finding, Place, Result};
use crate::formats::{Format, Limits, Row, RowError, Rows};
use crate::record::Record;
use crate::template::CustomTemplate;

/// How a file is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Its format; `None`: told by its first bytes and its name.
    pub format: Option<Format>,
    /// Own names of columns.
    pub columns: ColumnMap,
    /// Prompts in words of one's own.
    pub template: Option<CustomTemplate>,
    /// What the file may be.
    pub limits: Limits,
}

/// A record and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub record: Record,
    /// Its bytes in the file with the end of the line; empty for Parquet.
    pub raw: Vec<u8>,
}

/// The records of a file.
#[derive(Debug)]
pub struct Records {
    rows: Rows,
    path: PathBuf,
    options: ReadOptions,
    layout: Option<(Layout, Place)>,
}

impl Records {
    /// Opens a file.
    ///
    /// # Errors
    /// Those of [`Rows::open`].
    pub fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        let rows = Rows::open(path, options.format, &options.limits)?;
        Ok(Self { rows, path: path.to_owned(), options: options.clone(), layout: None })
    }

    /// The format of the file.
    pub fn format(&self) -> Format {
        self.rows.format()
    }

    /// The bytes of a CSV file's header; else empty.
    pub fn header(&self) -> &[u8] {
        self.rows.header()
    }

    /// What the records are, as soon as one was read.
    pub fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref().map(|(layout, _)| layout)
    }

    /// The next record; the first that cannot be read is an error.
    ///
    /// # Errors
    /// [`DataError::Record`] with the place, or what ended the reading.
    pub fn next_record(&mut self) -> Option<Result<Entry>> {
        let finding = match self.next()? {
            Ok(entry) => return Some(Ok(entry)),
            Err(RowError::Fatal(error)) => return Some(Err(error)),
            Err(RowError::Finding(finding)) => finding,
        };
        Some(Err(DataError::Record { path: self.path.clone(), finding }))
    }

    fn entry(&mut self, row: Row) -> Result<Entry, Finding> {
        let Row { place, columns, raw } = row;
        let template = self.options.template.as_ref();
        let (layout, first) = match &self.layout {
            Some((layout, first)) => (layout, *first),
            None => {
                let layout = Layout::detect(&columns, &self.options.columns, template);
                let layout = layout.map_err(|fault| fault.at(place))?;
                let (layout, first) = self.layout.insert((layout, place));
                (&*layout, *first)
            }
        };
        let parse_json = self.rows.format() == Format::Csv;
        let found = columns.keys().cloned().collect::<Vec<_>>();
        let record = layout.record(columns, template, parse_json).map_err(|fault| {
            let is_other = place != first && fault.message.ends_with("is missing");
            let fault = if is_other { other_columns(fault, &found, layout, first) } else { fault };
            fault.at(place)
        })?;
        Ok(Entry { place, record, raw })
    }
}

/// A row that has not the columns of the first.
fn other_columns(fault: Fault, found: &[String], layout: &Layout, first: Place) -> Fault {
    let is_nested = fault.key.as_deref().is_some_and(|key| key.contains('['));
    if is_nested {
        return fault;
    }
    let found: Vec<String> = found.iter().take(12).map(|name| format!("{name:?}")).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    let message =
        format!("{}: the columns are {found}, and records are {layout} since {first}", fault.message);
    Fault { message, ..fault }
}

impl Iterator for Records {
    type Item = Result<Entry, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.rows.next()? {
            Ok(row) => self.entry(row).map_err(RowError::Finding),
            Err(error) => Err(error),
        })
    }
}
