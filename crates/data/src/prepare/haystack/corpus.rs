//! Biographies: who they are of, what is certain about them, and whether they can be asked for.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::HaystackOptions;
use super::forget::{Fact, Forget};
use super::swap::{OwnNames, Template, has_word};
use crate::error::{DataError, Result};
use crate::prepare::bios::nationalities;
use crate::prepare::inputs::{Document, InputRecord, Reader};
use crate::prepare::product::Dropped;
use crate::prepare::select::digest;

/// Texts that are held in memory, in bytes.
const MAX_BYTES: usize = 256 << 20;

/// The record that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gold {
    pub nationality: String,
    pub born: i64,
    pub died: i64,
    pub sportsperson: bool,
    pub politician: bool,
}

/// A biography that can be renamed.
#[derive(Debug, Clone)]
pub(super) struct Bio {
    pub id: String,
    pub template: Template,
    /// Tokens under its own name.
    pub tokens: usize,
    /// The gold record, if it can be asked for.
    pub gold: Option<Gold>,
    /// The texts without a fact, as far as one can be taken out.
    pub without: Vec<(Fact, Template)>,
}

/// All that were read.
#[derive(Debug)]
pub(super) struct Corpus {
    pub bios: Vec<Bio>,
    /// First and last names to give.
    pub firsts: Vec<String>,
    pub lasts: Vec<String>,
    /// Those that belong together already.
    pub real: HashSet<(String, String)>,
    pub inputs: Vec<InputRecord>,
    /// Biographies that are not used, by reason.
    pub dropped: Dropped,
    /// Biographies that are used and never asked for, by reason.
    pub not_asked: Dropped,
}

impl Corpus {
    pub fn read(options: &HaystackOptions<'_>) -> Result<Self> {
        let forget = Forget::new()?;
        let mut corpus = Self {
            bios: Vec::new(),
            firsts: Vec::new(),
            lasts: Vec::new(),
            real: HashSet::new(),
            inputs: Vec::new(),
            dropped: Dropped::default(),
            not_asked: Dropped::default(),
        };
        let mut names = Names::default();
        let (mut seen, mut bytes) = (HashSet::new(), 0_usize);
        let mut reader = Reader::new(&options.source);
        let mut dropped = Dropped::default();
        while let Some(document) = reader.next(&mut dropped)? {
            if document.text("text").is_ok_and(|text| !seen.insert(digest(text))) {
                dropped.count("its text was there before");
                continue;
            }
            match corpus.bio(options, &forget, &document, &mut names) {
                Err(reason) => dropped.count(&reason),
                Ok(bio) => {
                    bytes = bytes.saturating_add(bio.template.text.len() * (1 + bio.without.len()));
                    corpus.bios.push(bio);
                }
            }
            if bytes > MAX_BYTES {
                return Err(DataError::Options(format!(
                    "the biographies are more than {} MiB; give fewer of them (`select --take`)",
                    MAX_BYTES >> 20
                )));
            }
        }
        corpus.inputs = reader.records;
        corpus.dropped = dropped;
        names.finish(&mut corpus);
        Ok(corpus)
    }

    fn bio(
        &mut self,
        options: &HaystackOptions<'_>,
        forget: &Forget,
        document: &Document,
        names: &mut Names,
    ) -> Result<Bio, String> {
        let columns = &document.columns;
        let text = document.text("text").map_err(|problem| format!("text: {problem}"))?;
        let text = text.trim();
        let name = document.text("name").map_err(|problem| format!("name: {problem}"))?;
        let others: Vec<&str> = match columns.get("names") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let all: Vec<&str> =
            std::iter::once(name).chain(others.into_iter().filter(|other| *other != name)).collect();
        names.add(&all);
        let own = OwnNames::new(all.iter().copied()).ok_or("has no name")?;
        let template = Template::new(text, &own).ok_or("has characters for private use")?;
        if template.has_rest_of(&own) {
            return Err("its name cannot be taken out of the text".to_owned());
        }
        let tokens = options.counting.tokens(text).map_err(|_| "over the tokenizer's limit")?;
        let gold = gold(document).and_then(|gold| {
            let problem = if !own.is_plain || OwnNames::ends(name).is_none() {
                Some("its name is not a first and a last name")
            } else if !template.has_full_name {
                Some("its text does not have the whole name")
            } else if template.is_ambiguous {
                Some("its name may be somebody else's")
            } else if tokens < options.needle_tokens.min {
                Some("its text is too short")
            } else if tokens > options.needle_tokens.max {
                Some("its text is too long")
            } else {
                problem_with(&gold, &template)
            };
            problem.map_or(Ok(gold), |problem| Err(problem.to_owned()))
        });
        let (gold, without) = match gold {
            Err(reason) => {
                self.not_asked.count(&reason);
                (None, Vec::new())
            }
            Ok(gold) => {
                let texts = Fact::ALL.into_iter().filter(|_| options.unknown_share > 0.0);
                let texts =
                    texts.filter_map(|fact| Some((fact, forget.without(&template.text, &gold, fact)?)));
                let without =
                    texts.map(|(fact, text)| (fact, Template { text, ..template.clone() })).collect();
                (Some(gold), without)
            }
        };
        let id = match columns.get("synset").or(columns.get("id")) {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => format!("{}", document.number + 1),
        };
        Ok(Bio { id, template, tokens, gold, without })
    }
}

/// The gold record of a row, if every field of it is certain.
fn gold(document: &Document) -> Result<Gold, String> {
    let columns = &document.columns;
    // A CSV file has only texts.
    let typed = |name: &str| -> Option<Value> {
        match columns.get(name)? {
            Value::String(text) if document.is_untyped => serde_json::from_str(text.trim()).ok(),
            value => Some(value.clone()),
        }
    };
    let doubtful = match columns.get("doubtful") {
        Some(Value::Array(fields)) => fields.iter().find_map(Value::as_str).map(str::to_owned),
        Some(Value::Bool(true)) => Some("something".to_owned()),
        _ => None,
    };
    if let Some(field) = doubtful {
        return Err(format!("{field} is in doubt"));
    }
    let missing = |name: &str| format!("{name} is not certain");
    let year = |name: &str| typed(name).and_then(|value| value.as_i64()).ok_or_else(|| missing(name));
    let answer = |name: &str| typed(name).and_then(|value| value.as_bool()).ok_or_else(|| missing(name));
    let nationality = match columns.get("nationality") {
        Some(Value::String(text)) if !text.trim().is_empty() && text != super::UNKNOWN => text.clone(),
        _ => return Err(missing("nationality")),
    };
    Ok(Gold {
        nationality,
        born: year("born")?,
        died: year("died")?,
        sportsperson: answer("sportsperson")?,
        politician: answer("politician")?,
    })
}

/// Whether the text does not bear the record out.
fn problem_with(gold: &Gold, template: &Template) -> Option<&'static str> {
    let text = &template.text;
    let has_year = |year: i64| has_word(text, &year.to_string());
    if !has_year(gold.born) || !has_year(gold.died) || gold.born > gold.died {
        return Some("its years are not in the text");
    }
    let words = nationalities().filter(|(_, name)| *name == gold.nationality).map(|(written, _)| written);
    let is_named = std::iter::once(gold.nationality.as_str()).chain(words).any(|word| has_word(text, word));
    // Presidents of the United States are Americans whose glosses name the state.
    (!is_named).then_some("its nationality is not in the text")
}

/// Counts which words are first names and which are last ones.
#[derive(Debug, Default)]
struct Names {
    firsts: BTreeMap<String, u64>,
    lasts: BTreeMap<String, u64>,
    real: HashSet<(String, String)>,
}

impl Names {
    fn add(&mut self, names: &[&str]) {
        for (first, last) in names.iter().filter_map(|name| OwnNames::ends(name)) {
            *self.firsts.entry(first.to_owned()).or_default() += 1;
            *self.lasts.entry(last.to_owned()).or_default() += 1;
            self.real.insert((first.to_owned(), last.to_owned()));
        }
    }

    /// A word is a first name or a last name, whichever it is more often; a nationality is none.
    fn finish(self, corpus: &mut Corpus) {
        let taken: BTreeSet<String> = nationalities().map(|(name, _)| name.to_lowercase()).collect();
        let count = |names: &BTreeMap<String, u64>, word: &String| names.get(word).copied().unwrap_or(0);
        let (firsts, lasts) = (&self.firsts, &self.lasts);
        let free = |word: &&String| !taken.contains(&word.to_lowercase());
        let is_first = |word: &&String| count(firsts, word) > count(lasts, word);
        corpus.firsts = firsts.keys().filter(free).filter(is_first).cloned().collect();
        corpus.lasts = lasts.keys().filter(free).filter(|word| !is_first(word)).cloned().collect();
        corpus.real = self.real;
    }
}
