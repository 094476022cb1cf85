//! Leaving out what would not fit the model's context.

use std::path::Path;

use wardrobe_text::Tokenizer;

use crate::error::{DataError, Finding, Result};
use crate::formats::Format;
use crate::output::Output;
use crate::record::Record;
use crate::records::{ReadOptions, Records};
use crate::stats::LengthStats;

/// What is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterOptions {
    /// How the file is read.
    pub read: ReadOptions,
    /// The model's context, in tokens.
    pub max_context_tokens: usize,
    /// Tokens that are kept free, for what the template adds.
    pub safety_buffer_tokens: usize,
    /// Replace an output that is there.
    pub replace: bool,
}

/// What became of the records.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterReport {
    /// Tokens of all records.
    pub before: LengthStats,
    /// Tokens of those that were kept.
    pub after: LengthStats,
}

/// The tokens of a record's texts, without a template.
///
/// # Errors
/// A text is over the tokenizer's limit.
pub fn content_tokens(record: &Record, tokenizer: &Tokenizer) -> Result<usize, String> {
    let count =
        |text: &str| tokenizer.encode(text, false).map(|ids| ids.len()).map_err(|error| error.to_string());
    let mut tokens = 0_usize;
    for text in record.texts() {
        tokens += count(text)?;
    }
    if let Record::Chat(chat) = record {
        for calls in chat.messages.iter().filter_map(|turn| turn.message.tool_calls.as_ref()) {
            tokens += count(&calls.to_string())?;
        }
    }
    Ok(tokens)
}

/// Copies the records whose texts, with the safety buffer, fit the context, byte by byte and in order. The header of CSV
/// is kept; of Parquet, JSONL is written. A byte-order mark and empty lines are not copied.
///
/// # Errors
/// A record that cannot be read; nothing would be kept; what the system says. Then there is no output.
pub fn filter(
    path: &Path,
    output: &Path,
    tokenizer: &Tokenizer,
    options: &FilterOptions,
) -> Result<FilterReport> {
    let Some(max_tokens) = options.max_context_tokens.checked_sub(options.safety_buffer_tokens) else {
        let message = format!(
            "a safety buffer of {} tokens leaves nothing of a context of {}",
            options.safety_buffer_tokens, options.max_context_tokens
        );
        return Err(DataError::Options(message));
    };
    let mut records = Records::open(path, &options.read)?;
    let mut out = Output::create(output, options.replace)?;
    let format = records.format();
    if !records.header().is_empty() {
        out.write_record(records.header())?;
    }
    let (mut before, mut after) = (Vec::new(), Vec::new());
    while let Some(entry) = records.next_record() {
        let entry = entry?;
        let tokens = content_tokens(&entry.record, tokenizer).map_err(|message| DataError::Record {
            path: path.to_owned(),
            finding: Finding::at(entry.place, message),
        })?;
        before.push(tokens);
        if tokens <= max_tokens {
            after.push(tokens);
            out.write_record(&raw(format, &entry.record, entry.raw))?;
        }
    }
    if after.is_empty() {
        let message =
            format!("{}: of {} records none fits {max_tokens} tokens", path.display(), before.len());
        return Err(DataError::NoExamples(message));
    }
    out.finish()?;
    Ok(FilterReport { before: LengthStats::new(before), after: LengthStats::new(after) })
}

/// A record as it is written.
pub(crate) fn raw(format: Format, record: &Record, raw: Vec<u8>) -> Vec<u8> {
    match format {
        Format::Parquet => record.to_json().to_string().into_bytes(),
        _ => raw,
    }
}
