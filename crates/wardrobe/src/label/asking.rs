//! From a record to its question, and from what comes back to its line.

use serde_json::{Map, Value};
use wardrobe_batch::records::{Answerer, Control, InputError, Outcome};
use wardrobe_data::{DataError, Finding, Limits, Row, RowError, Rows};
use wardrobe_generator::{AskError, Generator};
use wardrobe_text::RecordTemplate;

use super::LabelOptions;
use super::line::{LabelLine, LineError};

/// No record is longer: what is in the window is in memory.
const MAX_RECORD_BYTES: usize = 4 << 20;
/// The field that names a record.
const ID: &str = "id";

/// A record in the order of the input.
pub(super) struct Record {
    index: u64,
    /// Its fields, or what is wrong with it.
    fields: Result<Map<String, Value>, String>,
    /// `line 7`.
    place: String,
}

/// Opens the input and gives its records, one after the other.
pub(super) fn records(
    options: &LabelOptions,
) -> Result<impl Iterator<Item = Result<Record, InputError>>, DataError> {
    let limits =
        Limits { max_record_bytes: MAX_RECORD_BYTES, max_records: u64::MAX, max_file_bytes: u64::MAX };
    let rows = Rows::open(&options.input, None, &limits)?;
    let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(rows.take(limit).zip(0..).map(|(row, index)| match row {
        Ok(Row { place, columns, .. }) => Ok(Record { index, fields: Ok(columns), place: place.to_string() }),
        Err(RowError::Finding(Finding { place, message, .. })) => {
            let place = place.map_or_else(|| "the file".to_owned(), |place| place.to_string());
            Ok(Record { index, fields: Err(message), place })
        }
        Err(RowError::Fatal(error)) => Err(error.into()),
    }))
}

/// Asks the records' questions.
pub(super) struct Asking<'a> {
    pub options: &'a LabelOptions,
    pub template: &'a RecordTemplate,
    pub generator: &'a dyn Generator,
}

/// A record's prompt, or what is wrong with it.
pub(super) fn prompt(template: &RecordTemplate, record: &Record) -> Result<String, String> {
    let text = match &record.fields {
        Ok(fields) => template.render(fields).map_err(|error| error.to_string()),
        Err(message) => Err(message.clone()),
    };
    text.map_err(|message| format!("{}: {message}", record.place))
}

impl Asking<'_> {
    fn line(&self, record: &Record) -> LabelLine {
        let mut line = LabelLine { index: record.index, ..LabelLine::default() };
        if let Ok(fields) = &record.fields {
            line.id = fields.get(ID).cloned();
            let kept = self.options.keep.iter();
            line.input = kept.filter_map(|name| Some((name.clone(), fields.get(name)?.clone()))).collect();
        }
        line
    }

    fn failed(&self, record: &Record, kind: &str, message: String) -> String {
        let error = Some(LineError { kind: kind.to_owned(), message });
        LabelLine { error, ..self.line(record) }.to_text()
    }
}

impl Answerer<Record> for Asking<'_> {
    fn answer(&self, record: &Record, control: &Control<'_>) -> Outcome {
        let prompt = match prompt(self.template, record) {
            Ok(prompt) => prompt,
            Err(message) => return Outcome::Line(self.failed(record, "bad_record", message)),
        };
        let question = self.options.question(prompt, Some(record.index));
        let answer = match self.generator.generate(&question, &|| control.is_stopped()) {
            Ok(answer) => answer,
            Err(AskError::Question { kind, message }) => {
                return Outcome::Line(self.failed(record, kind, message));
            }
            Err(AskError::Again { after, reason }) => return Outcome::Again { after, reason },
            Err(AskError::Stopped) => return Outcome::Stopped,
            Err(fatal) => return Outcome::Fatal(fatal.to_string()),
        };
        let mut line = self.line(record);
        match serde_json::from_str(&answer.text) {
            Ok(label) => line.label = label,
            Err(error) => {
                let message = format!("the answer is no JSON ({error}): {}", shortened(&answer.text));
                line.error = Some(LineError { kind: "invalid_json".to_owned(), message });
            }
        }
        line.finish_reason = Some(answer.finish_reason);
        line.usage = Some(answer.usage);
        Outcome::Line(line.to_text())
    }

    fn panicked(&self, record: &Record, message: &str) -> String {
        self.failed(record, "panic", message.to_owned())
    }
}

/// The beginning of a text that may be long.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let mut short: String = text.chars().take(MAX_CHARS).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}
