//! CSV as RFC 4180 has it: a header, values in columns, quotes around what holds separators, quotes or line ends.
//!
//! The separator is the tab for `.tsv`; else the comma, or the semicolon or tab of a header without any comma. Lines
//! without anything are passed over. A quote inside an unquoted value is an ordinary character, as Python's csv module
//! has it; text after a closing quote is an error, since it tells of a quote that was not doubled.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::lines::{Line, Lines, text, without_end};
use super::{Row, RowError};
use crate::error::{DataError, Finding, Place, Result};

#[derive(Debug)]
pub struct Reader<R> {
    lines: Lines<R>,
    path: PathBuf,
    separator: char,
    header: Vec<u8>,
    names: Vec<String>,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// The file is empty or cannot be read; a column has no name, or the name of another.
    pub fn new(path: &Path, lines: Lines<R>, separator: char) -> Result<Self> {
        let mut reader =
            Self { lines, path: path.to_owned(), separator, header: Vec::new(), names: Vec::new() };
        let (place, record) = match reader.record() {
            None => return Err(DataError::file(path, "is empty: it has no header")),
            Some(Err(RowError::Fatal(error))) => return Err(error),
            Some(Err(RowError::Finding(finding))) => {
                return Err(DataError::Record { path: path.to_owned(), finding });
            }
            Some(Ok((place, record))) => (place, record),
        };
        let (names, header) = (record.fields, record.raw);
        let wrong = |message: String| {
            let finding = Finding::at(place, message);
            Err(DataError::Record { path: path.to_owned(), finding })
        };
        for (idx, name) in names.iter().enumerate() {
            if name.trim().is_empty() {
                return wrong(format!("column {} of the header has no name", idx + 1));
            }
            if names.iter().take(idx).any(|other| other == name) {
                return wrong(format!("column {name:?} is twice in the header"));
            }
        }
        reader.header = header;
        reader.names = names;
        Ok(reader)
    }

    /// The bytes of the header, with the end of its line.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The next record that is no empty line.
    fn record(&mut self) -> Option<Result<(Place, Record), RowError>> {
        loop {
            let mut record = Record::default();
            let mut place = None;
            loop {
                let start = record.raw.len();
                let read = self.lines.read(&mut record.raw);
                let at = *place.get_or_insert(Place::Line(self.lines.number()));
                let finding = |message: String| Some(Err(RowError::Finding(Finding::at(at, message))));
                match read {
                    Err(source) => return Some(Err(RowError::Fatal(DataError::io(&self.path, source)))),
                    Ok(Line::End) if start == 0 => return None,
                    Ok(Line::End) => return finding("a quote is opened here and never closed".to_owned()),
                    Ok(Line::TooLong) => {
                        let limit = self.lines.max_bytes();
                        return finding(format!(
                            "is over the limit of {limit} bytes (or a quote is not closed)"
                        ));
                    }
                    Ok(Line::Whole) => {}
                }
                let line = record.raw.get(start..).unwrap_or_default();
                if start == 0 && without_end(line).is_empty() {
                    break;
                }
                let line = match text(line) {
                    Ok(line) => line.to_owned(),
                    Err(message) => {
                        let at = Place::Line(self.lines.number());
                        return Some(Err(RowError::Finding(Finding::at(at, message))));
                    }
                };
                match record.feed(&line, self.separator) {
                    Ok(true) => return Some(Ok((at, record))),
                    Ok(false) => {}
                    Err(message) => {
                        let at = Place::Line(self.lines.number());
                        return Some(Err(RowError::Finding(Finding::at(at, message))));
                    }
                }
            }
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (place, record) = match self.record()? {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        if record.fields.len() != self.names.len() {
            let (found, columns) = (record.fields.len(), self.names.len());
            let message = format!("has {found} values, and the header {columns} columns");
            return Some(Err(RowError::Finding(Finding::at(place, message))));
        }
        let columns: Map<String, Value> =
            self.names.iter().cloned().zip(record.fields.into_iter().map(Value::String)).collect();
        Some(Ok(Row { place, columns, raw: record.raw }))
    }
}

/// What separates the values of a file that begins with `head`.
pub fn separator(head: &[u8], is_tsv: bool) -> char {
    let mut lines = head.split(|byte| *byte == b'\n');
    let header = lines.find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    match header {
        _ if is_tsv => '\t',
        header if header.contains(&b',') => ',',
        header if header.contains(&b';') => ';',
        header if header.contains(&b'\t') => '\t',
        _ => ',',
    }
}

#[derive(Debug, Default)]
struct Record {
    raw: Vec<u8>,
    fields: Vec<String>,
    field: String,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Plain,
    Quoted,
    /// After a quote in a quoted value: its end, or half of a doubled one.
    Quote,
}

impl Record {
    /// Takes one line with its end; whether the record ends with it.
    fn feed(&mut self, line: &str, separator: char) -> Result<bool, String> {
        let content_bytes = without_end(line.as_bytes()).len();
        for (idx, character) in line.char_indices() {
            let is_end = idx >= content_bytes;
            match self.state {
                State::Quoted if character == '"' => self.state = State::Quote,
                State::Quoted => self.field.push(character),
                _ if is_end => break,
                State::Start if character == '"' => self.state = State::Quoted,
                State::Quote if character == '"' => {
                    self.field.push('"');
                    self.state = State::Quoted;
                }
                _ if character == separator => {
                    self.fields.push(std::mem::take(&mut self.field));
                    self.state = State::Start;
                }
                State::Quote => {
                    let column = line.get(..idx).map_or(0, |before| before.chars().count()) + 1;
                    return Err(format!("has text after a closing quote, at column {column}"));
                }
                State::Start | State::Plain => {
                    self.field.push(character);
                    self.state = State::Plain;
                }
            }
        }
        if self.state == State::Quoted {
            return Ok(false);
        }
        self.fields.push(std::mem::take(&mut self.field));
        Ok(true)
    }
}
