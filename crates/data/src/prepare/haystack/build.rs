//! One item: a needle, hay around it, names for all.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Value, json};

use super::corpus::{Bio, Corpus};
use super::forget::Fact;
use super::swap::has_word;
use super::{HaystackOptions, UNKNOWN};
use crate::error::{DataError, Result};
use crate::prepare::bios::{gold, question};
use crate::prepare::draw::generator;
use crate::shuffle::SplitMix64;

/// Biographies in a row that did not fit into what is left before it is left.
const MAX_MISSES: usize = 64;
const BETWEEN: &str = " ";
const BEFORE_QUESTION: &str = "\n\n";

/// What is wished for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub length: usize,
    pub depth: f64,
}

/// An item.
#[derive(Debug)]
pub(super) struct Item {
    prompt: String,
    completion: String,
    cell: Cell,
    pub tokens: usize,
    pub depth_tokens: f64,
    asked: String,
    num_biographies: usize,
    unknown: Option<Fact>,
}

impl Item {
    pub fn to_json(&self) -> Value {
        json!({
            "prompt": self.prompt,
            "completion": self.completion,
            "length": self.cell.length,
            "depth": self.cell.depth,
            "tokens": self.tokens,
            "depth_tokens": self.depth_tokens,
            "asked": self.asked,
            "biographies": self.num_biographies,
            "unknown": self.unknown.map(Fact::name),
        })
    }
}

/// Makes items.
pub(super) struct Builder<'a, 'o> {
    options: &'a HaystackOptions<'o>,
    corpus: &'a Corpus,
    longest: usize,
    /// Names of needles, each given once.
    given: RefCell<HashSet<(String, String)>>,
}

impl<'a, 'o> Builder<'a, 'o> {
    /// Checks that there can be such items.
    pub fn new(options: &'a HaystackOptions<'o>, corpus: &'a Corpus) -> Result<Self> {
        let num_needles = corpus.bios.iter().filter(|bio| bio.gold.is_some()).count();
        let read: u64 = corpus.inputs.iter().map(|input| input.records).sum();
        let insufficient = |message: String| Err(DataError::Insufficient(message));
        if corpus.bios.len() < 2 {
            let why =
                if corpus.dropped.total() > 0 { format!(": {}", corpus.dropped) } else { String::new() };
            return insufficient(format!(
                "of {read} biographies {} can be used, and a haystack needs two at least{why}",
                corpus.bios.len()
            ));
        }
        if num_needles == 0 {
            let count = corpus.bios.len();
            return insufficient(format!(
                "of {count} biographies none can be asked for: {}",
                corpus.not_asked
            ));
        }
        let tokens = corpus.bios.iter().map(|bio| bio.tokens);
        let (all, longest) = (tokens.clone().sum::<usize>(), tokens.max().unwrap_or(0));
        if let Some(length) = options.lengths.iter().find(|length| **length > all + longest) {
            return insufficient(format!(
                "all {} biographies have {all} tokens, too few for a haystack of {length}: give more of them",
                corpus.bios.len()
            ));
        }
        Ok(Self { options, corpus, longest, given: RefCell::default() })
    }

    pub fn num_needles(&self) -> usize {
        self.corpus.bios.iter().filter(|bio| bio.gold.is_some()).count()
    }

    /// Who is asked for, one after the other.
    pub fn needles(&self) -> Result<Needles<'a>> {
        let mut certain: Vec<&Bio> = self.corpus.bios.iter().filter(|bio| bio.gold.is_some()).collect();
        generator(self.options.seed, "haystack needles").shuffle(&mut certain);
        let mut removable: Vec<(&Bio, Fact)> = Vec::new();
        // Facts in turn, so that the frequent one is not all there is, and each fact's people in an order of its own, so
        // that one person is not asked for with one fact after the other.
        let mut of_facts: Vec<Vec<&Bio>> = Fact::ALL
            .iter()
            .map(|fact| {
                let can_lose = |bio: &&Bio| bio.without.iter().any(|(f, _)| f == fact);
                let mut bios: Vec<&Bio> = certain.iter().copied().filter(can_lose).collect();
                generator(self.options.seed, &format!("haystack without {fact:?}")).shuffle(&mut bios);
                bios
            })
            .collect();
        while of_facts.iter().any(|bios| !bios.is_empty()) {
            for (bios, fact) in of_facts.iter_mut().zip(Fact::ALL) {
                removable.extend(bios.pop().map(|bio| (bio, fact)));
            }
        }
        if self.options.unknown_share > 0.0 && removable.is_empty() {
            return Err(DataError::Insufficient(
                "there is no biography of which a fact can be taken out for certain, so nothing can be unknown".to_owned(),
            ));
        }
        let room = question_tokens(self.options)?;
        Ok(Needles { certain, removable, next: [0; 2], question_tokens: room })
    }

    /// Puts hay around a needle.
    pub fn item(&self, cell: Cell, number: u64, needle: &Bio, fact: Option<Fact>) -> Result<Item> {
        let options = self.options;
        let tokens = |text: &str| options.counting.tokens(text).map_err(DataError::Insufficient);
        let mut generator = generator(options.seed, &format!("haystack item {number}"));
        let mut dealer = Dealer::new(self.corpus, &mut generator);
        let (first, last) = dealer.needle(&mut self.given.borrow_mut())?;
        let template = fact.and_then(|fact| needle.without.iter().find(|(f, _)| *f == fact));
        let template = template.map_or(&needle.template, |(_, template)| template);
        let needle_text = template.render(&first, &last);
        let tail = format!("{BEFORE_QUESTION}{}", ask(options, &format!("{first} {last}")));
        let needle_tokens = tokens(&needle_text)?;
        let room = cell.length.saturating_sub(tokens(&tail)? + needle_tokens);

        let mut hay: Vec<(String, usize)> = Vec::new();
        let (mut left, mut misses) = (room, 0);
        let mut order: Vec<&Bio> =
            self.corpus.bios.iter().filter(|bio| !std::ptr::eq(*bio, needle)).collect();
        generator.shuffle(&mut order);
        for bio in order {
            // A name of another length moves the tokens by a few.
            if misses == MAX_MISSES || left == 0 {
                break;
            }
            if bio.tokens > left + 8
                || has_word(&bio.template.text, &first)
                || has_word(&bio.template.text, &last)
            {
                misses += usize::from(bio.tokens > left + 8);
                continue;
            }
            let (first, last) = dealer.next()?;
            let text = bio.template.render(&first, &last);
            let count = tokens(&format!("{BETWEEN}{text}"))?;
            if count > left {
                misses += 1;
                continue;
            }
            left -= count;
            hay.push((text, count));
        }
        self.assemble(cell, Parts { needle, fact, needle_text, needle_tokens, tail, hay })
    }

    fn assemble(&self, cell: Cell, mut parts: Parts<'_>) -> Result<Item> {
        let tokens = |text: &str| self.options.counting.tokens(text).map_err(DataError::Insufficient);
        loop {
            if parts.hay.is_empty() {
                return Err(DataError::Options(format!(
                    "a length of {} tokens has no room for a biography beside the one that is asked for",
                    cell.length
                )));
            }
            let total: usize = parts.hay.iter().map(|(_, tokens)| tokens).sum();
            // The place at which the part of the hay before the needle is nearest to the depth.
            let (mut place, mut before, mut sum) = (0, 0, 0);
            let off = |before: usize| (before as f64 / total.max(1) as f64 - cell.depth).abs();
            for (idx, (_, tokens)) in parts.hay.iter().enumerate() {
                sum += tokens;
                if off(sum) < off(before) {
                    (place, before) = (idx + 1, sum);
                }
            }
            let mut texts: Vec<&str> = parts.hay.iter().map(|(text, _)| text.as_str()).collect();
            texts.insert(place, &parts.needle_text);
            let haystack = texts.join(BETWEEN);
            let prompt = format!("{haystack}{}", parts.tail);
            let prompt_tokens = tokens(&prompt)?;
            if prompt_tokens > cell.length {
                // The parts' tokens did not add up: one biography less.
                parts.hay.pop();
                continue;
            }
            if cell.length - prompt_tokens > self.longest {
                return Err(DataError::Insufficient(format!(
                    "there are too few biographies for a haystack of {} tokens: they make {prompt_tokens}",
                    cell.length
                )));
            }
            let front = texts.get(..place).unwrap_or_default().join(BETWEEN);
            let others = tokens(&haystack)?.saturating_sub(parts.needle_tokens).max(1);
            let depth = tokens(&front)? as f64 / others as f64;
            return Ok(Item {
                completion: completion(parts.needle, parts.fact),
                cell,
                tokens: prompt_tokens,
                // Four digits are more than a tokenizer's borders allow to mean anything.
                depth_tokens: (depth.min(1.0) * 1e4).round() / 1e4,
                asked: parts.needle.id.clone(),
                num_biographies: texts.len(),
                unknown: parts.fact,
                prompt,
            });
        }
    }
}

struct Parts<'a> {
    needle: &'a Bio,
    fact: Option<Fact>,
    needle_text: String,
    needle_tokens: usize,
    tail: String,
    hay: Vec<(String, usize)>,
}

fn completion(needle: &Bio, fact: Option<Fact>) -> String {
    let Some(record) = &needle.gold else { return String::new() };
    let value = |of: Fact, value: Value| if fact == Some(of) { Value::from(UNKNOWN) } else { value };
    gold(
        value(Fact::Nationality, record.nationality.clone().into()),
        value(Fact::Born, record.born.into()),
        value(Fact::Died, record.died.into()),
        record.sportsperson,
        record.politician,
    )
}

fn ask(options: &HaystackOptions<'_>, name: &str) -> String {
    let question = question(name);
    match options.unknown_share > 0.0 {
        true => format!("{question}. What the text does not say is \"{UNKNOWN}\"."),
        false => question,
    }
}

fn question_tokens(options: &HaystackOptions<'_>) -> Result<usize> {
    let tail = format!("{BEFORE_QUESTION}{}", ask(options, "Somebody Else"));
    options.counting.tokens(&tail).map_err(DataError::Insufficient)
}

/// Who is asked for: everyone in turn, and only then again.
pub(super) struct Needles<'a> {
    certain: Vec<&'a Bio>,
    removable: Vec<(&'a Bio, Fact)>,
    next: [usize; 2],
    question_tokens: usize,
}

impl<'a> Needles<'a> {
    /// The next one that fits a length.
    pub fn next(&mut self, length: usize, is_unknown: bool) -> Result<(&'a Bio, Option<Fact>)> {
        let room = length.saturating_sub(self.question_tokens);
        let [next_certain, next_removable] = &mut self.next;
        let found = if is_unknown {
            let at = cyclic(&self.removable, next_removable, |(bio, _)| bio.tokens < room);
            at.map(|(bio, fact)| (*bio, Some(*fact)))
        } else {
            cyclic(&self.certain, next_certain, |bio| bio.tokens < room).map(|bio| (*bio, None))
        };
        found.ok_or_else(|| {
            let shortest = self.certain.iter().map(|bio| bio.tokens).min().unwrap_or(0);
            DataError::Options(format!(
                "a haystack of {length} tokens holds no needle: the question has {} tokens, and the shortest biography that \
                 can be asked for has {shortest}",
                self.question_tokens
            ))
        })
    }
}

/// The next item from `next` on that fits, from the front again after the last.
fn cyclic<'a, T>(items: &'a [T], next: &mut usize, fits: impl Fn(&T) -> bool) -> Option<&'a T> {
    for _ in 0..items.len() {
        let item = items.get(*next % items.len())?;
        *next = next.wrapping_add(1);
        if fits(item) {
            return Some(item);
        }
    }
    None
}

/// Gives the names of one item: no last name twice, and no first name before all were given.
struct Dealer<'a> {
    corpus: &'a Corpus,
    firsts: Vec<&'a str>,
    lasts: Vec<&'a str>,
    next_first: usize,
    next_last: usize,
}

impl<'a> Dealer<'a> {
    fn new(corpus: &'a Corpus, generator: &mut SplitMix64) -> Self {
        let mut firsts: Vec<&str> = corpus.firsts.iter().map(String::as_str).collect();
        let mut lasts: Vec<&str> = corpus.lasts.iter().map(String::as_str).collect();
        generator.shuffle(&mut firsts);
        generator.shuffle(&mut lasts);
        Self { corpus, firsts, lasts, next_first: 0, next_last: 0 }
    }

    fn next(&mut self) -> Result<(String, String)> {
        self.next_but(&HashSet::new())
    }

    /// A name that no needle had.
    fn needle(&mut self, given: &mut HashSet<(String, String)>) -> Result<(String, String)> {
        let name = self.next_but(given)?;
        given.insert(name.clone());
        Ok(name)
    }

    fn next_but(&mut self, given: &HashSet<(String, String)>) -> Result<(String, String)> {
        while let Some(last) = self.lasts.get(self.next_last) {
            self.next_last += 1;
            for _ in 0..self.firsts.len() {
                let first = self.firsts.get(self.next_first % self.firsts.len()).copied().unwrap_or_default();
                self.next_first += 1;
                let name = (first.to_owned(), (*last).to_owned());
                if !self.corpus.real.contains(&name) && !given.contains(&name) {
                    return Ok(name);
                }
            }
        }
        Err(DataError::Insufficient(format!(
            "there are too few names for everyone in a haystack: {} first and {} last ones in {} biographies",
            self.firsts.len(),
            self.lasts.len(),
            self.corpus.bios.len()
        )))
    }
}
