//! JSONL: a JSON object on every line. Empty lines are passed over, and counted.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::lines::{Line, Lines, text, without_end};
use super::{Row, RowError};
use crate::error::{DataError, Finding, Place};
use crate::record::type_name;

#[derive(Debug)]
pub struct Reader<R> {
    lines: Lines<R>,
    path: PathBuf,
    is_first: bool,
}

impl<R: BufRead> Reader<R> {
    pub fn new(path: &Path, lines: Lines<R>) -> Self {
        Self { lines, path: path.to_owned(), is_first: true }
    }

    fn row(&mut self, place: Place, raw: Vec<u8>) -> Result<Row, RowError> {
        let finding = |message: String| RowError::Finding(Finding::at(place, message));
        let is_first = std::mem::replace(&mut self.is_first, false);
        let line = text(without_end(&raw)).map_err(finding)?;
        if is_first && line.trim_start().starts_with('[') {
            let message = "begins with a JSON list; write its objects one a line (jq -c '.[]')";
            return Err(RowError::Fatal(DataError::file(&self.path, message)));
        }
        match serde_json::from_str(line) {
            Ok(Value::Object(columns)) => Ok(Row { place, columns, raw }),
            Ok(other) => Err(finding(format!("is {} and no JSON object", type_name(&other)))),
            Err(error) => Err(finding(describe(&error))),
        }
    }
}

/// What a JSON error says, with the column alone: the line is that of the file.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("is no JSON: {what} at column {}", error.column())
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut raw = Vec::new();
            let line = self.lines.read(&mut raw);
            let place = Place::Line(self.lines.number());
            return match line {
                Ok(Line::End) => None,
                Ok(Line::Whole) if raw.trim_ascii().is_empty() => continue,
                Ok(Line::Whole) => Some(self.row(place, raw)),
                Ok(Line::TooLong) => {
                    let message = format!("is over the limit of {} bytes", self.lines.max_bytes());
                    Some(Err(RowError::Finding(Finding::at(place, message))))
                }
                Err(source) => Some(Err(RowError::Fatal(DataError::io(&self.path, source)))),
            };
        }
    }
}
