//! From a record to its question, and from what comes back to its line.

use wardrobe_batch::records::{Answerer, Control, Outcome};
use wardrobe_generator::{AskError, Generator};
use wardrobe_text::RecordTemplate;

use super::LabelOptions;
use super::line::{LabelLine, LineError};
use crate::input::{ID, Record, shortened};

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
