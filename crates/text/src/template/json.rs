//! `tojson` as Hugging Face's libraries define it: Python's `json.dumps` without ASCII escapes, and without the HTML
//! escapes of Jinja's own filter.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// The widest indentation.
pub(super) const MAX_INDENT: usize = 64;
/// The deepest nesting.
const MAX_DEPTH: usize = 128;

/// How JSON is laid out: the arguments of `json.dumps`.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// The white space of one level; `None`: all on one line.
    pub(super) indent: Option<String>,
    /// Item and key separator.
    pub(super) separators: Option<Vec<String>>,
    /// Only ASCII characters.
    pub(super) ascii: bool,
    /// Keys in order.
    pub(super) sorted: bool,
    /// The longest text, in bytes.
    pub(super) max_bytes: usize,
}

/// The value as JSON.
pub(super) fn to_json(value: &Value, layout: Layout) -> Result<String, Error> {
    let item_default = if layout.indent.is_some() { "," } else { ", " };
    let separator = |index: usize, default: &str| match &layout.separators {
        Some(list) => list.get(index).cloned().unwrap_or_else(|| default.to_owned()),
        None => default.to_owned(),
    };
    let mut writer =
        Writer { item: separator(0, item_default), key: separator(1, ": "), layout, text: String::new() };
    writer.value(value, 0)?;
    Ok(writer.text)
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

struct Writer {
    item: String,
    key: String,
    layout: Layout,
    text: String,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if self.text.len() > self.layout.max_bytes {
            return Err(refused(format!("tojson gives more than {} bytes", self.layout.max_bytes)));
        }
        if depth > MAX_DEPTH {
            return Err(refused(format!("tojson of more than {MAX_DEPTH} levels")));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut empty = true;
                self.text.push('[');
                for item in value.try_iter()? {
                    self.begin(&mut empty, depth);
                    self.value(&item, depth + 1)?;
                }
                self.end(empty, depth);
                self.text.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.layout.sorted {
                    keys.sort();
                }
                let mut empty = true;
                self.text.push('{');
                for key in keys {
                    self.begin(&mut empty, depth);
                    match key.as_str() {
                        Some(name) => self.string(name),
                        None => {
                            let mut name = Self { text: String::new(), ..self.like() };
                            name.value(&key, MAX_DEPTH)?;
                            self.string(&name.text);
                        }
                    }
                    let separator = std::mem::take(&mut self.key);
                    self.text.push_str(&separator);
                    self.key = separator;
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.end(empty, depth);
                self.text.push('}');
            }
            kind => return Err(refused(format!("{kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    /// A writer for a key.
    fn like(&self) -> Self {
        Self {
            item: String::new(),
            key: String::new(),
            layout: Layout { max_bytes: self.layout.max_bytes, ..Layout::default() },
            text: String::new(),
        }
    }

    fn begin(&mut self, empty: &mut bool, depth: usize) {
        if !std::mem::replace(empty, false) {
            let separator = std::mem::take(&mut self.item);
            self.text.push_str(&separator);
            self.item = separator;
        }
        self.line(depth + 1);
    }

    fn end(&mut self, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.layout.indent {
            self.text.push('\n');
            for _ in 0..depth {
                self.text.push_str(indent);
            }
        }
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.text.push_str(&value.to_string());
        } else if let Ok(number) = f64::try_from(value.clone()) {
            self.text.push_str(&python_float(number));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                '\0'..'\u{20}' => self.escape(character),
                // Python escapes DEL only together with what is not ASCII, which starts after it.
                '\u{80}'.. if self.layout.ascii => self.escape(character),
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(self.text, "\\u{unit:04x}");
        }
    }
}

/// A float as Python prints it: the shortest digits, and an exponent below 1e-4 and from 1e16.
fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{number:e}");
        return match text.split_once('e') {
            Some((digits, exponent)) => {
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(exponent) => ('-', exponent),
                    None => ('+', exponent),
                };
                format!("{digits}e{sign}{exponent:0>2}")
            }
            None => text,
        };
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumps(value: serde_json::Value, layout: Layout) -> String {
        to_json(&Value::from(minijinja::value::Serde(&value)), Layout { max_bytes: 1 << 20, ..layout })
            .unwrap()
    }

    // Expected texts are those of Python's json.dumps(value, ensure_ascii=False, ...).
    #[test]
    fn as_python_writes_it() {
        let value = serde_json::json!({
            "b": [1, -2.5, 1e16, 1e-5, 100.0, true, null], "a": {"<&'>": "é\u{7f}\u{1}\"\\\n"}, "e": [], "o": {}
        });
        assert_eq!(
            dumps(value.clone(), Layout::default()),
            "{\"b\": [1, -2.5, 1e+16, 1e-05, 100.0, true, null], \"a\": {\"<&'>\": \"é\u{7f}\\u0001\\\"\\\\\\n\"}, \"e\": [], \"o\": {}}"
        );
        assert_eq!(
            dumps(
                serde_json::json!({"a": [1, {}], "b": []}),
                Layout { indent: Some("  ".into()), ..Layout::default() }
            ),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
        let tight = Layout {
            separators: Some(vec![",".into(), ":".into()]),
            sorted: true,
            ascii: true,
            ..Layout::default()
        };
        assert_eq!(
            dumps(serde_json::json!({"z": "é😀", "a": [1, 2]}), tight),
            r#"{"a":[1,2],"z":"\u00e9\ud83d\ude00"}"#
        );
    }

    #[test]
    fn limits() {
        let long = Value::from(vec!["x"; 1000]);
        assert!(to_json(&long, Layout { max_bytes: 100, ..Layout::default() }).is_err());
        let mut deep = Value::from(1);
        for _ in 0..=MAX_DEPTH {
            deep = Value::from(vec![deep]);
        }
        assert!(to_json(&deep, Layout { max_bytes: 1 << 20, ..Layout::default() }).is_err());
        assert!(to_json(&Value::UNDEFINED, Layout::default()).is_err());
    }
}
