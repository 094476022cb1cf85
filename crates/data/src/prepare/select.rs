//! Documents by length and quality.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::condition::{Condition, Truth};
use super::draw::{Reservoir, generator};
use super::inputs::{Document, InputRecord, Reader, Source};
use super::product::{Dropped, Made, Output, Product};
use super::span::Span;
use super::words::Counting;
use crate::error::{DataError, Result};

/// Which of the records that qualify are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Take {
    /// All.
    #[default]
    All,
    /// The first so many; nothing after them is read.
    First(usize),
    /// So many, drawn by seed, each set of them as likely as any other.
    Drawn {
        /// How many.
        count: usize,
        /// Which.
        seed: u64,
    },
}

impl Take {
    pub(super) fn seed(self) -> Option<u64> {
        match self {
            Self::Drawn { seed, .. } => Some(seed),
            _ => None,
        }
    }

    fn count(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::First(count) | Self::Drawn { count, .. } => Some(count),
        }
    }
}

/// What is selected.
#[derive(Debug, Clone)]
pub struct SelectOptions<'a> {
    /// Where documents are.
    pub source: Source,
    /// The column of their text. Where neither lengths nor duplicates are looked at it need not be there.
    pub text_column: String,
    /// The length in tokens, and with which tokenizer.
    pub tokens: Option<(Span, Counting<'a>)>,
    /// The length in characters.
    pub chars: Option<Span>,
    /// What must be true; all of them.
    pub conditions: Vec<Condition>,
    /// Leave out documents whose text was there before.
    pub distinct: bool,
    /// How many are taken.
    pub take: Take,
    /// Where they are written.
    pub output: Output,
}

/// What was selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectReport {
    /// Files that were read.
    pub inputs: Vec<InputRecord>,
    /// Records that qualify. Where the first ones were taken: up to there.
    pub num_qualified: u64,
    /// Records that were written.
    pub num_written: u64,
    /// Records that do not qualify, by reason.
    pub dropped: Dropped,
}

/// Copies the records that qualify, in their order, to a file of JSONL. Lines of JSONL are copied byte by byte. Where fewer
/// qualify than were to be taken, all of them are.
///
/// # Errors
/// A record that cannot be read, unless those are skipped; none qualifies; what the system
/// says. Then there is no output.
pub fn select(options: &SelectOptions<'_>) -> Result<SelectReport> {
    if options.take.count() == Some(0) {
        return Err(DataError::Options("nothing is to be taken".to_owned()));
    }
    let mut product = Product::create(&options.output, &[], &options.source.files)?;
    let mut dropped = Dropped::default();
    let mut qualify = Qualify { options, seen: HashSet::new() };
    let mut reader = Reader::new(&options.source);
    let mut num_qualified = 0;
    let inputs = match options.take {
        Take::All | Take::First(_) => {
            let most = options.take.count().map_or(u64::MAX, |count| count as u64);
            while num_qualified < most
                && let Some(document) = reader.next(&mut dropped)?
            {
                if qualify.takes(&document, &mut dropped) {
                    num_qualified += 1;
                    product.push(&document.line())?;
                }
            }
            reader.records
        }
        Take::Drawn { count, seed } => {
            let mut reservoir = Reservoir::new(count, generator(seed, "select"));
            while let Some(document) = reader.next(&mut dropped)? {
                if qualify.takes(&document, &mut dropped) {
                    num_qualified += 1;
                    reservoir.offer(document.number);
                }
            }
            let inputs = reader.records;
            copy(&options.source, &inputs, &reservoir.finish(), &mut product)?;
            inputs
        }
    };
    if product.num_records() == 0 {
        let read: u64 = inputs.iter().map(|input| input.records).sum();
        let why = if dropped.total() > 0 { format!(": {dropped}") } else { String::new() };
        return Err(DataError::Insufficient(format!("of {read} records none qualifies{why}")));
    }
    let report = SelectReport { num_qualified, num_written: product.num_records(), dropped, inputs };
    product.finish(Made {
        command: "select",
        seed: options.take.seed(),
        settings: options.settings(),
        inputs: &report.inputs,
        dropped: &report.dropped,
        figures: Map::from_iter([("qualified".to_owned(), num_qualified.into())]),
    })?;
    Ok(report)
}

/// Copies the records of these numbers, which are in order, of a source that was read before.
fn copy(source: &Source, inputs: &[InputRecord], numbers: &[u64], product: &mut Product) -> Result<()> {
    let mut reader = Reader::again(source, inputs);
    let mut unreadable = Dropped::default();
    let mut wanted = numbers.iter().peekable();
    while let Some(number) = wanted.peek() {
        let Some(document) = reader.next(&mut unreadable)? else {
            return Err(DataError::Insufficient("the inputs changed while they were read".to_owned()));
        };
        if document.number == **number {
            product.push(&document.line())?;
            wanted.next();
        }
    }
    Ok(())
}

impl SelectOptions<'_> {
    fn settings(&self) -> Map<String, Value> {
        let conditions: Vec<String> = self.conditions.iter().map(Condition::to_string).collect();
        let settings = json!({
            "text_column": self.text_column,
            "tokens": self.tokens.map(|(span, _)| span.to_string()),
            "tokenizer": self.tokens.map(|(_, counting)| counting.to_json()),
            "chars": self.chars.map(|span| span.to_string()),
            "where": conditions,
            "distinct": self.distinct,
            "take": self.take.count(),
            "skip_unreadable": self.source.skip_unreadable,
        });
        match settings {
            Value::Object(settings) => settings,
            _ => Map::new(),
        }
    }
}

struct Qualify<'a, 'o> {
    options: &'a SelectOptions<'o>,
    /// Digests of the texts so far, 16 bytes each.
    seen: HashSet<[u8; 16]>,
}

impl Qualify<'_, '_> {
    /// Whether a record qualifies. The cheap questions come first.
    fn takes(&mut self, document: &Document, dropped: &mut Dropped) -> bool {
        match self.problem(document) {
            None => true,
            Some(reason) => {
                dropped.count(&reason);
                false
            }
        }
    }

    fn problem(&mut self, document: &Document) -> Option<String> {
        let options = self.options;
        for condition in &options.conditions {
            match condition.holds(&document.columns, document.is_untyped) {
                Truth::True => {}
                Truth::False => return Some(format!("not {condition}")),
                Truth::Unknown => {
                    return Some(format!("{condition}: a field is missing, null or of another type"));
                }
            }
        }
        if options.chars.is_none() && options.tokens.is_none() && !options.distinct {
            return None;
        }
        let text = match document.text(&options.text_column) {
            Ok(text) => text,
            Err(problem) => return Some(format!("{}: {problem}", options.text_column)),
        };
        if let Some(span) = options.chars
            && let Some(problem) = outside(span, text.chars().count(), "characters")
        {
            return Some(problem);
        }
        if options.distinct && !self.seen.insert(digest(text)) {
            return Some("its text was there before".to_owned());
        }
        let (span, counting) = options.tokens?;
        match counting.tokens(text) {
            Ok(tokens) => outside(span, tokens, "tokens"),
            Err(_) => Some("over the tokenizer's limit".to_owned()),
        }
    }
}

fn outside(span: Span, number: usize, unit: &str) -> Option<String> {
    match number {
        _ if number < span.min => Some(format!("fewer than {} {unit}", span.min)),
        _ if number > span.max => Some(format!("more than {} {unit}", span.max)),
        _ => None,
    }
}

/// By which a text is known again.
pub(super) fn digest(text: &str) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.iter_mut().zip(Sha256::digest(text)).for_each(|(to, from)| *to = from);
    digest
}
