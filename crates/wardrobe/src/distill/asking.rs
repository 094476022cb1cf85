//! From a record to its questions, and from what comes back to its line.

use serde::de::IgnoredAny;
use wardrobe_batch::records::{Answerer, Control, Outcome};
use wardrobe_data::{Turn, questions};
use wardrobe_generator::{Answer, AskError, Generator, Held, Message, patiently};

use super::DistillOptions;
use super::line::{DistillLine, Given, Said};
use crate::input::{ID, Record, shortened};
use crate::label::LineError;

/// What all texts of a conversation may be, far more than a context holds: its line, six times as long at worst, is read as
/// a whole.
const MAX_CONVERSATION_BYTES: usize = 8 << 20;

/// A record's messages, as they are to be asked; or what is wrong with it.
pub(super) fn turns(options: &DistillOptions, record: &Record) -> Result<Vec<Turn>, String> {
    let turns = match &record.fields {
        Ok(fields) => questions(fields.clone()).map(|chat| chat.messages),
        Err(message) => Err(message.clone()),
    };
    let turns = turns.and_then(|mut turns| {
        if !options.keep_answers {
            turns.retain(|turn| !turn.is_answer());
        }
        let has_system =
            turns.iter().any(|turn| matches!(turn.message.role.as_str(), "system" | "developer"));
        if let (false, Some(system)) = (has_system, &options.system) {
            turns.insert(0, Turn::text("system", system));
        }
        match (0..turns.len()).any(|idx| is_asked(&turns, idx)) {
            true => Ok(turns),
            false => Err("asks nothing: every question has its answer".to_owned()),
        }
    });
    turns.map_err(|message| format!("{}: {message}", record.place))
}

/// Whether a turn is a question that has no answer yet.
fn is_asked(turns: &[Turn], idx: usize) -> bool {
    let is_question = turns.get(idx).is_some_and(|turn| turn.message.role == "user");
    is_question && !turns.get(idx + 1).is_some_and(Turn::is_answer)
}

/// Why an answer is no data.
pub(super) fn fault(options: &DistillOptions, held: &Held, answer: &Answer) -> Option<LineError> {
    let error = |kind: &str, message: String| Some(LineError { kind: kind.to_owned(), message });
    if answer.finish_reason == "content_filter" {
        return error("refusal", format!("a filter ended the answer: {}", shortened(&answer.text)));
    }
    if answer.is_cut() && !options.keep_cut {
        return error("cut", format!("max_tokens ended the answer: {}", shortened(&answer.text)));
    }
    if answer.text.trim().is_empty() {
        return error("empty", "the answer is empty".to_owned());
    }
    if matches!(held, Held::Schema(_))
        && let Err(problem) = serde_json::from_str::<IgnoredAny>(&answer.text)
    {
        return error(
            "invalid_json",
            format!("the answer is no JSON ({problem}): {}", shortened(&answer.text)),
        );
    }
    None
}

/// Asks the records' questions.
pub(super) struct Asking<'a> {
    pub options: &'a DistillOptions,
    pub teacher: &'a dyn Generator,
}

impl Asking<'_> {
    fn line(&self, record: &Record) -> DistillLine {
        let id = record.fields.as_ref().ok().and_then(|fields| fields.get(ID)).filter(|id| !id.is_null());
        DistillLine { index: record.index, id: id.cloned(), ..DistillLine::default() }
    }

    /// Asks every question in turn. `Err` is what became of the record, if it has no data.
    fn converse(
        &self,
        record: &Record,
        line: &mut DistillLine,
        control: &Control<'_>,
    ) -> Result<(), Outcome> {
        let failed = |line: &mut DistillLine, kind: &str, message: String| {
            line.error = Some(LineError { kind: kind.to_owned(), message });
            Ok(())
        };
        let too_long = || format!("the conversation is over {MAX_CONVERSATION_BYTES} bytes");
        let turns = match turns(self.options, record) {
            Ok(turns) => turns,
            Err(message) => return failed(line, "bad_record", message),
        };
        let last = (0..turns.len()).rev().find(|idx| is_asked(&turns, *idx));
        let mut messages: Vec<Message> = Vec::new();
        let mut num_bytes = 0;
        for (idx, turn) in turns.iter().enumerate() {
            num_bytes += turn.content().len();
            if num_bytes > MAX_CONVERSATION_BYTES {
                return failed(line, "too_long", too_long());
            }
            messages.push(turn.message.clone());
            line.messages.push(Said::of(turn));
            if !is_asked(&turns, idx) {
                continue;
            }
            let question = self.options.question(messages.clone(), last == Some(idx));
            let tries = self.options.retry.start(record.index);
            let stopped = &|| control.is_stopped();
            let answer = match patiently(tries, stopped, || self.teacher.generate(&question, stopped)) {
                Ok(answer) => answer,
                Err(AskError::Question { kind, message }) => return failed(line, kind, message),
                Err(AskError::Stopped) => return Err(Outcome::Stopped),
                Err(AskError::Again { after, reason }) => return Err(Outcome::Again { after, reason }),
                Err(fatal) => return Err(Outcome::Fatal(fatal.to_string())),
            };
            line.answers.push(Given { finish_reason: answer.finish_reason.clone(), usage: answer.usage });
            if let Some(error) = fault(self.options, &question.held, &answer) {
                line.error = Some(error);
                return Ok(());
            }
            num_bytes += answer.text.len();
            if num_bytes > MAX_CONVERSATION_BYTES {
                return failed(line, "too_long", too_long());
            }
            messages.push(Message::text("assistant", &answer.text));
            line.messages.push(Said::answer(answer.text));
        }
        Ok(())
    }
}

impl Answerer<Record> for Asking<'_> {
    fn answer(&self, record: &Record, control: &Control<'_>) -> Outcome {
        let mut line = self.line(record);
        match self.converse(record, &mut line, control) {
            Ok(()) => Outcome::Line(line.to_text()),
            Err(outcome) => outcome,
        }
    }

    fn panicked(&self, record: &Record, message: &str) -> String {
        let error = Some(LineError { kind: "panic".to_owned(), message: message.to_owned() });
        DistillLine { error, ..self.line(record) }.to_text()
    }
}
