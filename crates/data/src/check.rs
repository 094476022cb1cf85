//! Checking a file before it is trained on: every error with its line, up to a limit, and what is doubtful.
//!
//! Without an [`Encoder`] the check is one of structure, needs no model, and is fast enough for an upload. Warnings are
//! given only for what is certain to be so.

use std::collections::HashMap;
use std::path::Path;

use crate::encode::Encoder;
use crate::error::{DataError, Finding, Place, Result};
use crate::example::Encoded;
use crate::formats::{Format, RowError};
use crate::record::{Record, Turn};
use crate::records::{Entry, ReadOptions, Records};

/// How to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckOptions {
    /// How the file is read.
    pub read: ReadOptions,
    /// The most errors, and the most warnings, that are kept; the rest are counted.
    pub max_findings: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { read: ReadOptions::default(), max_findings: 50 }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file's format.
    pub format: Format,
    /// What its records are, such as `messages` or `prompt/completion`; `None` if none could be read.
    pub layout: Option<String>,
    /// Records that can be read.
    pub num_records: u64,
    /// Errors, the first ones by line.
    pub errors: Vec<Finding>,
    /// All errors.
    pub num_errors: u64,
    /// Warnings, the first ones by line.
    pub warnings: Vec<Finding>,
    /// All warnings.
    pub num_warnings: u64,
}

impl Report {
    /// Whether the file can be trained on.
    pub fn is_ok(&self) -> bool {
        self.num_errors == 0
    }
}

/// Checks a file's structure.
///
/// # Errors
/// The file cannot be opened or read. What is wrong in it is in the report.
pub fn check(path: &Path, options: &CheckOptions) -> Result<Report> {
    check_encoded(path, options, None)
}

/// The same, and that every record gives an example.
///
/// # Errors
/// As for [`check`].
pub fn check_encoded(path: &Path, options: &CheckOptions, encoder: Option<&Encoder<'_>>) -> Result<Report> {
    let mut found = Found { max: options.max_findings, ..Found::default() };
    let mut records = match Records::open(path, &options.read) {
        Ok(records) => records,
        // Such as a header that is wrong: the file's fault, and no failure to check it.
        Err(DataError::Record { finding, .. }) => {
            found.error(finding);
            return Ok(found.report(options.read.format.unwrap_or(Format::Jsonl), None, 0));
        }
        Err(error) => return Err(error),
    };
    let mut num_records = 0;
    let mut seen: HashMap<[u8; 16], Place> = HashMap::new();
    for item in records.by_ref() {
        match item {
            Ok(entry) => {
                num_records += 1;
                found.warn_about(&entry, &mut seen);
                match encoder.map(|encoder| encoder.encode(&entry.record)) {
                    None | Some(Ok(Encoded::Example(_))) => {}
                    Some(Ok(Encoded::Dropped(reason))) => {
                        found.warning(Finding::at(entry.place, format!("would be left out: {reason}")));
                    }
                    Some(Err(message)) => found.error(Finding::at(entry.place, message)),
                }
            }
            Err(RowError::Finding(finding)) => found.error(finding),
            Err(RowError::Fatal(DataError::Record { finding, .. })) => found.error(finding),
            Err(RowError::Fatal(error)) => return Err(error),
        }
    }
    if num_records == 0 && found.num_errors == 0 {
        found.error(Finding::of_file("has no records"));
    }
    Ok(found.report(records.format(), records.layout().map(ToString::to_string), num_records))
}

#[derive(Debug, Default)]
struct Found {
    max: usize,
    errors: Vec<Finding>,
    num_errors: u64,
    warnings: Vec<Finding>,
    num_warnings: u64,
}

impl Found {
    fn error(&mut self, finding: Finding) {
        self.num_errors += 1;
        if self.errors.len() < self.max {
            self.errors.push(finding);
        }
    }

    fn warning(&mut self, finding: Finding) {
        self.num_warnings += 1;
        if self.warnings.len() < self.max {
            self.warnings.push(finding);
        }
    }

    fn warn_about(&mut self, entry: &Entry, seen: &mut HashMap<[u8; 16], Place>) {
        let place = entry.place;
        match seen.entry(entry.record.digest()) {
            std::collections::hash_map::Entry::Occupied(first) => {
                let message = format!("says the same as {}", first.get());
                self.warning(Finding::at(place, message));
            }
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(place);
            }
        }
        for message in doubts(&entry.record) {
            self.warning(Finding::at(place, message));
        }
    }

    fn report(self, format: Format, layout: Option<String>, num_records: u64) -> Report {
        let Self { errors, num_errors, warnings, num_warnings, .. } = self;
        Report { format, layout, num_records, errors, num_errors, warnings, num_warnings }
    }
}

/// What is doubtful in a record.
fn doubts(record: &Record) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut doubt = |is_so: bool, message: &str| {
        if is_so {
            doubts.push(message.to_owned());
        }
    };
    match record {
        Record::Chat(chat) => {
            let is_empty =
                |turn: &Turn| turn.content().trim().is_empty() && turn.message.tool_calls.is_none();
            for (idx, turn) in chat.messages.iter().enumerate() {
                let what = if turn.is_answer() { "the answer" } else { "the message" };
                let is_doubtful = turn.is_learnt || !turn.is_answer();
                doubt(is_doubtful && is_empty(turn), &format!("{what} messages[{idx}] is empty"));
            }
            let ends_with_answer = chat.messages.last().is_some_and(Turn::is_answer);
            doubt(!ends_with_answer, "what follows the last answer is not learnt");
        }
        Record::Pair(pair) => {
            doubt(pair.prompt.trim().is_empty(), "the prompt is empty");
            doubt(pair.completion.trim().is_empty(), "the completion is empty");
        }
        Record::Formatted { prompt, completion } => {
            doubt(completion.trim().is_empty(), "the completion is empty");
            let ends_with_space = prompt.ends_with(' ');
            doubt(
                ends_with_space,
                "the prompt ends with a space, which most tokenizers join to the word that follows: begin the completion with it",
            );
        }
        Record::Text(_) => {}
    }
    doubts
}
