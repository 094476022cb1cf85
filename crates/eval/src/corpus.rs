//! Files beside the items: documents without an answer, and texts that are no JSON.

use std::io::{self, BufRead, Read as _};

use serde_json::Value;

use crate::items::{Fields, Item, MAX_LINE_BYTES};
use crate::settings::{Document, TaskSettings};
use crate::tasks::{Task, document};

/// More documents are no corpus to draw from.
const MAX_DOCUMENTS: usize = 1_000_000;
const MAX_BYTES: u64 = 1 << 30;

/// A document a line: a JSON text, or an object with `text` and perhaps `title`.
///
/// # Errors
/// Those of the reader; a line that is no document, by its number; more than a gibibyte or a million documents.
pub fn read_documents(reader: impl BufRead) -> io::Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut reader = reader.take(MAX_BYTES);
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            break;
        }
        if documents.len() >= MAX_DOCUMENTS || reader.limit() == 0 {
            return Err(io::Error::other(format!("has over {MAX_DOCUMENTS} documents or {MAX_BYTES} bytes")));
        }
        if line.trim().is_empty() {
            continue;
        }
        let value: Option<Value> = serde_json::from_str(&line).ok();
        let wrong =
            || io::Error::other(format!("line {number} is no document: a JSON text, or `text` and `title`"));
        documents.push(value.as_ref().and_then(document).ok_or_else(wrong)?);
    }
    Ok(documents)
}

/// The items of a task whose lines have a `text`, of one text that is all of a file.
///
/// # Errors
/// Those of the reader; the text is empty, too long, or not UTF-8; the task reads no texts.
pub fn read_text(reader: impl io::Read, task: &dyn Task, settings: &TaskSettings) -> io::Result<Vec<Item>> {
    let mut text = String::new();
    reader.take(MAX_LINE_BYTES as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_LINE_BYTES {
        return Err(io::Error::other(format!(
            "is over {MAX_LINE_BYTES} bytes: give its parts as lines of JSON"
        )));
    }
    task.read(&Fields::of_text("text", text), settings).map_err(io::Error::other)
}
