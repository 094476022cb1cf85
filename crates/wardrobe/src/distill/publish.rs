//! The data, made from the lines.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::Path;

use serde_json::{Map, Value, json};
use wardrobe_data::{DataError, Output, inst_text};
use wardrobe_generator::Usage;

use super::error::{DistillError, Result};
use super::line::DistillLine;
use super::{DataFormat, DistillOptions};
use crate::label::{ErrorCounts, LineError};

/// Writes the data and the errors, each as a whole or not at all. Gives the conversations that the format has no way to
/// write; they are among the errors.
pub(super) fn publish(options: &DistillOptions, lines: &Path) -> Result<ErrorCounts> {
    let io = |source| DistillError::Data(DataError::Io { path: lines.to_owned(), source });
    let reader = BufReader::with_capacity(1 << 16, File::open(lines).map_err(io)?);
    let mut data = Output::create(&options.output, true)?;
    let errors_path = options.errors_path();
    let mut errors = None;
    let mut unwritable = ErrorCounts::default();
    for text in reader.lines() {
        let line: DistillLine =
            serde_json::from_str(&text.map_err(io)?).map_err(|error| io(std::io::Error::other(error)))?;
        let error = match &line.error {
            Some(error) => error.clone(),
            None => match data_line(options, &line) {
                Ok(text) => {
                    data.write_record(text.as_bytes())?;
                    continue;
                }
                Err(message) => {
                    let error = LineError { kind: "template".to_owned(), message };
                    unwritable.add(&error);
                    error
                }
            },
        };
        let errors = match &mut errors {
            Some(errors) => errors,
            none => none.insert(Output::create(&errors_path, true)?),
        };
        errors.write_record(error_line(&line, &error).as_bytes())?;
    }
    match errors {
        Some(errors) => errors.finish()?,
        None => match fs::remove_file(&errors_path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(DataError::Io { path: errors_path, source: error }.into());
            }
            _ => {}
        },
    }
    data.finish()?;
    Ok(unwritable)
}

/// A line of the data, or why the format has no way to write it.
fn data_line(options: &DistillOptions, line: &DistillLine) -> Result<String, String> {
    let mut object = Map::new();
    object.extend(line.id.clone().map(|id| ("id".to_owned(), id)));
    let messages = || line.messages.iter().map(|said| said.to_message()).collect::<Vec<_>>();
    let (name, value) = match &options.format {
        DataFormat::Messages => ("messages", json!(line.messages)),
        DataFormat::Inst => ("text", Value::String(inst_text(&messages())?)),
        DataFormat::Chat(text) => {
            ("text", Value::String(text.chat_text(&messages()).map_err(|error| error.to_string())?))
        }
    };
    object.insert(name.to_owned(), value);
    if options.with_usage {
        let mut usage = Usage::default();
        line.answers.iter().for_each(|given| usage += given.usage);
        let reasons: Vec<&str> = line.answers.iter().map(|given| given.finish_reason.as_str()).collect();
        object.insert("usage".to_owned(), json!(usage));
        object.insert("finish_reasons".to_owned(), json!(reasons));
    }
    Ok(Value::Object(object).to_string())
}

fn error_line(line: &DistillLine, error: &LineError) -> String {
    let mut object = Map::new();
    object.insert("index".to_owned(), line.index.into());
    object.extend(line.id.clone().map(|id| ("id".to_owned(), id)));
    object.insert("error".to_owned(), json!(error));
    object.insert("messages".to_owned(), json!(line.messages));
    Value::Object(object).to_string()
}
