//! The objects of one long JSON list, as many dumps are: one after the other, and never the list as a whole.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{DataError, Finding, Place};
use crate::formats::{Row, RowError, lines_text};
use crate::record::type_name;

/// Reads a list.
#[derive(Debug)]
pub(super) struct List<R> {
    reader: R,
    path: PathBuf,
    max_bytes: usize,
    number: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the bracket that opens the list.
    Start,
    /// Before the first item.
    First,
    /// Behind an item.
    Behind,
    Done,
}

/// One item as it stands there.
enum Item {
    Whole(Vec<u8>),
    TooLong,
}

impl<R: BufRead> List<R> {
    pub fn new(path: &Path, reader: R, max_bytes: usize) -> Self {
        Self { reader, path: path.to_owned(), max_bytes, number: 0, state: State::Start }
    }

    /// The next byte, which stays.
    fn peek(&mut self) -> Result<Option<u8>, RowError> {
        loop {
            match self.reader.fill_buf() {
                Ok(bytes) => return Ok(bytes.first().copied()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(RowError::Fatal(DataError::io(&self.path, source))),
            }
        }
    }

    /// The next byte that is no white space, which stays.
    fn peek_sign(&mut self) -> Result<Option<u8>, RowError> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.reader.consume(1),
                // A byte-order mark before the list.
                Some(b'\xef' | b'\xbb' | b'\xbf') if self.state == State::Start => self.reader.consume(1),
                other => return Ok(other),
            }
        }
    }

    fn broken(&self, what: &str) -> RowError {
        RowError::Fatal(DataError::file(
            &self.path,
            format!("is no JSON list: {what} after item {}", self.number),
        ))
    }

    /// The bytes of the next item, up to the sign that ends it. What is over the limit is passed over.
    fn item(&mut self) -> Result<Item, RowError> {
        let (mut bytes, mut is_too_long) = (Vec::new(), false);
        let (mut depth, mut in_text, mut is_escaped) = (0_u64, false, false);
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(RowError::Fatal(DataError::io(&self.path, source))),
            };
            if buffer.is_empty() {
                return Err(self.broken("it ends"));
            }
            let mut taken = buffer.len();
            let mut is_end = false;
            for (at, byte) in buffer.iter().enumerate() {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' if in_text => is_escaped = true,
                    b'"' => in_text = !in_text,
                    _ if in_text => {}
                    b'{' | b'[' => depth += 1,
                    b',' | b']' | b'}' if depth == 0 => (taken, is_end) = (at, true),
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                if is_end {
                    break;
                }
            }
            if bytes.len() + taken > self.max_bytes {
                is_too_long = true;
                bytes = Vec::new();
            } else if !is_too_long {
                bytes.extend_from_slice(buffer.get(..taken).unwrap_or_default());
            }
            self.reader.consume(taken);
            if is_end {
                return Ok(if is_too_long { Item::TooLong } else { Item::Whole(bytes) });
            }
        }
    }

    fn next_row(&mut self) -> Result<Option<Row>, RowError> {
        if self.state == State::Start {
            if self.peek_sign()? != Some(b'[') {
                return Err(self.broken("it does not begin with a bracket"));
            }
            self.reader.consume(1);
            self.state = State::First;
        }
        match (self.peek_sign()?, self.state) {
            (Some(b']'), State::First | State::Behind) => {
                self.reader.consume(1);
                self.state = State::Done;
                return match self.peek_sign()? {
                    None => Ok(None),
                    Some(_) => Err(self.broken("something stands behind it")),
                };
            }
            (Some(b','), State::Behind) => self.reader.consume(1),
            (Some(_), State::First) => {}
            (None, _) => return Err(self.broken("it ends")),
            (Some(_), _) => return Err(self.broken("a comma is missing")),
        }
        let item = self.item()?;
        self.state = State::Behind;
        self.number += 1;
        let place = Place::Record(self.number);
        let finding = |message: String| RowError::Finding(Finding::at(place, message));
        let Item::Whole(bytes) = item else {
            return Err(finding(format!("is over the limit of {} bytes", self.max_bytes)));
        };
        let text = lines_text(&bytes).map_err(finding)?;
        match serde_json::from_str(text) {
            Ok(Value::Object(columns)) => Ok(Some(Row { place, columns, raw: Vec::new() })),
            Ok(other) => Err(finding(format!("is {} and no JSON object", type_name(&other)))),
            Err(error) => Err(finding(format!("is no JSON: {error}"))),
        }
    }
}

impl<R: BufRead> Iterator for List<R> {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let row = self.next_row();
        if matches!(row, Err(RowError::Fatal(_))) {
            self.state = State::Done;
        }
        row.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Objects, and for what is none the message, with `!` before one that ends the reading.
    fn read(text: &[u8], max_bytes: usize, buffer: usize) -> Vec<Result<Value, String>> {
        List::new(Path::new("f"), BufReader::with_capacity(buffer, text), max_bytes)
            .map(|row| match row {
                Ok(row) => Ok(Value::Object(row.columns)),
                Err(RowError::Finding(finding)) => Err(finding.in_file(Path::new("f"))),
                Err(RowError::Fatal(error)) => Err(format!("!{error}")),
            })
            .collect()
    }

    #[test]
    fn items_are_read_whatever_stands_in_them() {
        let text = "\u{feff} [ {\"a\": \"],}\\\"[{\"},\n{\"b\": [1, {\"c\": []}]} ,{} ]\n";
        let expected = [json!({"a": "],}\"[{"}), json!({"b": [1, {"c": []}]}), json!({})];
        for buffer in [1, 2, 7, 1000] {
            assert_eq!(read(text.as_bytes(), 100, buffer), expected.clone().map(Ok));
        }
        assert_eq!(read(b"[]", 10, 10), []);
        let long = format!("[{{\"a\": \"{}\"}}, {{\"b\": 1}}]", "x".repeat(5000));
        let found = read(long.as_bytes(), 100, 64);
        assert_eq!(
            found,
            [Err("f: record 1: is over the limit of 100 bytes".to_owned()), Ok(json!({"b": 1}))]
        );
    }

    #[test]
    fn what_is_broken_is_told() {
        for (text, last) in [
            ("{}", "begin with a bracket"),
            ("[{}", "it ends"),
            ("[{} {}]", "no JSON: "),
            ("[{},]", "no JSON: "),
            ("[{}] x", "behind it"),
            ("[{\"a\": 1", "it ends"),
            ("", "begin with a bracket"),
            ("[1]", "a number"),
            ("[{\"a\": }]", "no JSON"),
            ("[,{}]", "no JSON"),
            ("[}]", "no JSON"),
        ] {
            let found = read(text.as_bytes(), 100, 16);
            assert!(
                found.iter().any(|row| row.as_ref().is_err_and(|said| said.contains(last))),
                "{text}: {found:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_list_comes_back(texts in prop::collection::vec("\\PC{0,12}", 0..6), pretty in any::<bool>(), buffer in 1_usize..40) {
            let items: Vec<Value> = texts.iter().map(|text| json!({"t": text, "l": [[text], {"x": text}]})).collect();
            let list = Value::Array(items.clone());
            let text = if pretty { format!("{list:#}") } else { list.to_string() };
            prop_assert_eq!(read(text.as_bytes(), 10_000, buffer), items.into_iter().map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_panic_or_hang(text in "[\\[\\]{},:\"\\\\a1 ]{0,40}", max in 1_usize..20) {
            prop_assert!(read(text.as_bytes(), max, 3).len() <= 41);
        }
    }
}
