//! The questions of conversations: what the human said, for a teacher to answer anew.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::draw::{Reservoir, generator};
use super::dump::{human_turns, id};
use super::inputs::{Document, InputRecord, Reader, Source};
use super::product::{Dropped, Made, Output, Product};
use super::select::{Take, digest};
use super::span::Span;
use super::words::Counting;
use crate::error::{DataError, Result};

/// Which conversations, and of what.
#[derive(Debug, Clone)]
pub struct TurnsOptions<'a> {
    /// Where they are.
    pub source: Source,
    /// How many turns of the human a conversation has.
    pub turns: Option<Span>,
    /// Of longer ones only so many are taken, the first ones; before `turns` is looked at.
    pub first_turns: Option<usize>,
    /// Characters of each turn.
    pub chars: Option<Span>,
    /// Tokens of each turn, and with which tokenizer.
    pub tokens: Option<(Span, Counting<'a>)>,
    /// How many conversations are taken.
    pub take: Take,
    /// Where they are written.
    pub output: Output,
}

/// What was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnsReport {
    /// Files that were read.
    pub inputs: Vec<InputRecord>,
    /// Conversations that were written.
    pub num_conversations: u64,
    /// Their turns.
    pub num_turns: u64,
    /// Conversations that were left out, by reason.
    pub dropped: Dropped,
}

/// Writes `{"id", "turns"}` for every conversation, one a line. Conversations whose questions are those of an earlier one,
/// white space and letter case aside, are left out. An `id` is the dump's own if it has one, else the file's name and the
/// record's number; one that comes again gets a number after it.
///
/// # Errors
/// A record that cannot be read, unless those are skipped; no conversation is left; what the system says. Then there is no
/// output.
pub fn turns(options: &TurnsOptions<'_>) -> Result<TurnsReport> {
    let mut product = Product::create(&options.output, &[], &options.source.files)?;
    let (mut dropped, mut seen) = (Dropped::default(), HashSet::new());
    let mut reader = Reader::new(&options.source);
    let drawn = match options.take {
        Take::Drawn { count, seed } => {
            let mut reservoir = Reservoir::new(count, generator(seed, "turns"));
            while let Some(document) = reader.next(&mut dropped)? {
                match options.questions(&document, &mut seen) {
                    Ok(_) => reservoir.offer(document.number),
                    Err(reason) => dropped.count(&reason),
                }
            }
            let inputs = std::mem::take(&mut reader.records);
            seen.clear();
            Some((reservoir.finish(), inputs))
        }
        _ => None,
    };
    let most = match options.take {
        Take::First(count) => count as u64,
        _ => u64::MAX,
    };
    let mut ids = Ids::default();
    let mut num_turns = 0;
    let inputs = match drawn {
        Some((numbers, inputs)) => {
            let mut reader = Reader::again(&options.source, &inputs);
            let (mut numbers, mut ignored) = (numbers.into_iter().peekable(), Dropped::default());
            while numbers.peek().is_some()
                && let Some(document) = reader.next(&mut ignored)?
            {
                if numbers.next_if_eq(&document.number).is_some()
                    && let Ok(turns) = options.questions(&document, &mut seen)
                {
                    num_turns += turns.len() as u64;
                    product.push(&ids.record(options, &document, turns))?;
                }
            }
            inputs
        }
        None => {
            while product.num_records() < most
                && let Some(document) = reader.next(&mut dropped)?
            {
                match options.questions(&document, &mut seen) {
                    Ok(turns) => {
                        num_turns += turns.len() as u64;
                        product.push(&ids.record(options, &document, turns))?;
                    }
                    Err(reason) => dropped.count(&reason),
                }
            }
            reader.records
        }
    };
    if product.num_records() == 0 {
        let read: u64 = inputs.iter().map(|input| input.records).sum();
        return Err(DataError::Insufficient(format!("of {read} conversations none is left: {dropped}")));
    }
    let report = TurnsReport { num_conversations: product.num_records(), num_turns, dropped, inputs };
    product.finish(Made {
        command: "turns",
        seed: options.take.seed(),
        settings: options.settings(),
        inputs: &report.inputs,
        dropped: &report.dropped,
        figures: Map::from_iter([("turns".to_owned(), num_turns.into())]),
    })?;
    Ok(report)
}

impl TurnsOptions<'_> {
    /// The questions of a conversation, or why it is left out.
    fn questions(&self, document: &Document, seen: &mut HashSet<[u8; 16]>) -> Result<Vec<String>, String> {
        let mut turns = human_turns(&document.columns)?;
        if turns.is_empty() {
            return Err("the human says nothing".to_owned());
        }
        turns.truncate(self.first_turns.unwrap_or(usize::MAX));
        for turn in &mut turns {
            *turn = turn.trim().to_owned();
        }
        if turns.iter().any(String::is_empty) {
            return Err("a turn is empty".to_owned());
        }
        match self.turns {
            Some(span) if turns.len() < span.min => return Err(format!("fewer than {} turns", span.min)),
            Some(span) if turns.len() > span.max => return Err(format!("more than {} turns", span.max)),
            _ => {}
        }
        if let Some(span) = self.chars
            && turns.iter().any(|turn| !span.holds(turn.chars().count()))
        {
            return Err(format!("a turn outside of {span} characters"));
        }
        if let Some((span, counting)) = self.tokens {
            for turn in &turns {
                match counting.tokens(turn) {
                    Ok(tokens) if span.holds(tokens) => {}
                    Ok(_) => return Err(format!("a turn outside of {span} tokens")),
                    Err(_) => return Err("over the tokenizer's limit".to_owned()),
                }
            }
        }
        if seen.insert(fingerprint(&turns)) {
            Ok(turns)
        } else {
            Err("asks what an earlier one asks".to_owned())
        }
    }

    fn settings(&self) -> Map<String, Value> {
        let settings = json!({
            "turns": self.turns.map(|span| span.to_string()),
            "first_turns": self.first_turns,
            "chars": self.chars.map(|span| span.to_string()),
            "tokens": self.tokens.map(|(span, _)| span.to_string()),
            "tokenizer": self.tokens.map(|(_, counting)| counting.to_json()),
            "take": match self.take {
                Take::All => None,
                Take::First(count) | Take::Drawn { count, .. } => Some(count),
            },
            "skip_unreadable": self.source.skip_unreadable,
        });
        match settings {
            Value::Object(settings) => settings,
            _ => Map::new(),
        }
    }
}

/// By which questions are known again: their words in lower case.
fn fingerprint(turns: &[String]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for turn in turns {
        for word in turn.split_whitespace() {
            hasher.update(word.to_lowercase());
            hasher.update(b" ");
        }
        hasher.update(b"\n");
    }
    let mut digest = [0; 16];
    digest.iter_mut().zip(hasher.finalize()).for_each(|(to, from)| *to = from);
    digest
}

/// Names of conversations, each given once.
#[derive(Debug, Default)]
struct Ids {
    given: HashSet<[u8; 16]>,
}

impl Ids {
    fn record(&mut self, options: &TurnsOptions<'_>, document: &Document, turns: Vec<String>) -> Vec<u8> {
        let own = id(&document.columns).unwrap_or_else(|| {
            let file = options.source.files.get(document.file).map_or("", |file| file.name());
            let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
            format!("{name}:{}", document.number + 1)
        });
        let mut id = own.clone();
        let mut times = 1_u64;
        while !self.given.insert(digest(&id)) {
            times += 1;
            id = format!("{own}#{times}");
        }
        json!({"id": id, "turns": turns}).to_string().into_bytes()
    }
}
