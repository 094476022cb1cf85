//! The task of repeating the last words of a text.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::draw::{Reservoir, between, generator};
use super::inputs::{Document, InputRecord, Reader, Source};
use super::product::{Dropped, Made, Output, Product};
use super::select::digest;
use super::span::Span;
use super::words::Counting;
use crate::error::{DataError, Result};

/// Which texts, and how much of them is asked for.
#[derive(Debug, Clone)]
pub struct RepetitionOptions<'a> {
    /// Where the documents are.
    pub source: Source,
    /// The column of their text.
    pub text_column: String,
    /// The tokenizer that measures texts.
    pub counting: Counting<'a>,
    /// Tokens of a text. Of a range, a length is drawn for each text; a document that is shorter than that and not shorter
    /// than the range is taken as a whole.
    pub tokens: Span,
    /// How many words are asked for; drawn for each text.
    pub words: Span,
    /// Texts of one document, one behind the other.
    pub per_document: usize,
    /// Items that are written; `None`: all.
    pub take: Option<usize>,
    /// Draw the items from all that there are, instead of taking the first ones.
    pub draw: bool,
    /// What is drawn.
    pub seed: u64,
    /// Where they are written.
    pub output: Output,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepetitionReport {
    /// Files that were read.
    pub inputs: Vec<InputRecord>,
    /// Items that were written.
    pub num_items: u64,
    /// Tokens of all their texts.
    pub num_tokens: u64,
    /// Documents that were left out, by reason.
    pub dropped: Dropped,
}

/// Writes items `{"prompt", "completion", "n", "document_words", "tokens"}`: the prompt is
/// `Return last {n} words from this text: \n\n` and the text, the completion the text's last n words. Words are what white
/// space parts; a text has one space between them, whatever its document had. `tokens` are those of the text.
///
/// # Errors
/// Ranges that cannot be; a record that cannot be read, unless those are skipped; no document is long enough; what the
/// system says. Then there is no output.
pub fn repetition(options: &RepetitionOptions<'_>) -> Result<RepetitionReport> {
    options.check()?;
    let mut product = Product::create(&options.output, &[], &options.source.files)?;
    let most = options.take.map_or(u64::MAX, |take| take as u64);
    let (mut dropped, mut num_tokens) = (Dropped::default(), 0);
    let mut push = |item: Item, product: &mut Product| {
        num_tokens += item.tokens as u64;
        product.push(item.to_json().to_string().as_bytes())
    };
    let inputs = if options.draw && options.take.is_some() {
        // Twice over: which items there are, by document and place in it, and then those that were drawn.
        let mut reservoir =
            Reservoir::new(options.take.unwrap_or(usize::MAX), generator(options.seed, "repetition"));
        let mut reader = Reader::new(&options.source);
        let mut items = Items::new(options);
        let per_document = options.per_document as u64;
        while let Some(document) = reader.next(&mut dropped)? {
            for (at, _) in (0..).zip(items.of(&document, &mut dropped)) {
                reservoir.offer(document.number * per_document + at);
            }
        }
        let inputs = reader.records;
        let mut drawn = reservoir.finish().into_iter().peekable();
        let mut reader = Reader::again(&options.source, &inputs);
        let (mut items, mut ignored) = (Items::new(options), Dropped::default());
        while let Some(next) = drawn.peek().copied()
            && let Some(document) = reader.next(&mut ignored)?
        {
            if document.number != next / per_document {
                continue;
            }
            for (at, item) in (0..).zip(items.of(&document, &mut ignored)) {
                if drawn.next_if_eq(&(document.number * per_document + at)).is_some() {
                    push(item, &mut product)?;
                }
            }
        }
        inputs
    } else {
        let mut reader = Reader::new(&options.source);
        let mut items = Items::new(options);
        while product.num_records() < most
            && let Some(document) = reader.next(&mut dropped)?
        {
            for item in items.of(&document, &mut dropped) {
                if product.num_records() < most {
                    push(item, &mut product)?;
                }
            }
        }
        reader.records
    };
    if product.num_records() == 0 {
        let read: u64 = inputs.iter().map(|input| input.records).sum();
        let why = if dropped.total() > 0 { format!(": {dropped}") } else { String::new() };
        return Err(DataError::Insufficient(format!("of {read} documents none can be used{why}")));
    }
    let report = RepetitionReport { num_items: product.num_records(), num_tokens, dropped, inputs };
    product.finish(Made {
        command: "repetition",
        seed: Some(options.seed),
        settings: options.settings(),
        inputs: &report.inputs,
        dropped: &report.dropped,
        figures: Map::from_iter([("tokens".to_owned(), num_tokens.into())]),
    })?;
    Ok(report)
}

impl RepetitionOptions<'_> {
    fn check(&self) -> Result<()> {
        let wrong = |message: &str| Err(DataError::Options(message.to_owned()));
        if self.tokens.max == usize::MAX || self.tokens.max == 0 {
            return wrong("texts need a greatest length in tokens, above 0");
        }
        if self.words.min == 0 || self.words.max == usize::MAX {
            return wrong("the words to ask for need a range that begins at 1 or later and ends");
        }
        if self.per_document == 0 || self.per_document > 1 << 20 {
            return wrong("the texts of one document are at least 1 and at most 1048576");
        }
        if self.take == Some(0) {
            return wrong("nothing is to be made");
        }
        Ok(())
    }

    fn settings(&self) -> Map<String, Value> {
        let settings = json!({
            "text_column": self.text_column,
            "tokens": self.tokens.to_string(),
            "tokenizer": self.counting.to_json(),
            "n": self.words.to_string(),
            "per_document": self.per_document,
            "take": self.take,
            "draw": self.draw,
            "skip_unreadable": self.source.skip_unreadable,
        });
        match settings {
            Value::Object(settings) => settings,
            _ => Map::new(),
        }
    }
}

struct Item {
    n: usize,
    document: String,
    completion: String,
    num_words: usize,
    tokens: usize,
}

impl Item {
    fn to_json(&self) -> Value {
        json!({
            "prompt": format!("Return last {} words from this text: \n\n{}", self.n, self.document),
            "completion": self.completion,
            "n": self.n,
            "document_words": self.num_words,
            "tokens": self.tokens,
        })
    }
}

struct Items<'a, 'o> {
    options: &'a RepetitionOptions<'o>,
    seen: HashSet<[u8; 16]>,
}

impl<'a, 'o> Items<'a, 'o> {
    fn new(options: &'a RepetitionOptions<'o>) -> Self {
        Self { options, seen: HashSet::new() }
    }

    /// The items of a document; if there are none, the reason is counted. What is drawn depends on the seed and the
    /// document's number alone.
    fn of(&mut self, document: &Document, dropped: &mut Dropped) -> Vec<Item> {
        match self.try_of(document) {
            Ok(items) => items,
            Err(reason) => {
                dropped.count(&reason);
                Vec::new()
            }
        }
    }

    fn try_of(&mut self, document: &Document) -> Result<Vec<Item>, String> {
        let options = self.options;
        let column = &options.text_column;
        let text = document.text(column).map_err(|problem| format!("{column}: {problem}"))?;
        if !self.seen.insert(digest(text)) {
            return Err("its text was there before".to_owned());
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut generator = generator(options.seed, &format!("repetition {}", document.number));
        let (mut items, mut rest) = (Vec::new(), words.as_slice());
        while items.len() < options.per_document {
            let wish = between(&mut generator, options.tokens.min.max(1), options.tokens.max);
            let n = between(&mut generator, options.words.min, options.words.max);
            let (count, tokens) = options.counting.fit(rest, wish);
            let (text, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            let problem = if count == 0 {
                Some(format!("a word of more than {wish} tokens"))
            } else if after.is_empty() && tokens < options.tokens.min {
                Some(format!("fewer than {} tokens", options.tokens.min))
            } else if text.len() < options.words.max {
                Some(format!("fewer than {} words", options.words.max))
            } else {
                None
            };
            if let Some(problem) = problem {
                if items.is_empty() {
                    return Err(problem);
                }
                break;
            }
            items.push(Item {
                n,
                document: text.join(" "),
                completion: text.get(text.len().saturating_sub(n)..).unwrap_or_default().join(" "),
                num_words: text.len(),
                tokens,
            });
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        Ok(items)
    }
}
