//! GBNF, the grammars of llama.cpp (its `grammars/README.md`), said in the variant of Lark that `llguidance` runs.
//!
//! In GBNF a text is characters; in Lark it is words, which a lexer takes as long as they can be. So that both mean the same,
//! every character is a word of its own here: `[a-z]* "abc"` has `xabc` in it, as it should.
//!
//! The rules are kept beside that, as a [`Network`], which knows a short way to the end from everywhere.
//!
//! Left recursion is refused, as llama.cpp does, and so are tokens (`<think>`, `<[1000]>`).

mod build;
mod completion;
mod network;
mod recursion;
mod tokens;
mod words;

pub(crate) use completion::Reading;
pub(crate) use network::Network;
pub(crate) use words::Words;

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::json;

use crate::error::{GrammarError, Result};

/// Groups within groups.
const MAX_DEPTH: usize = 64;
/// Rules, alternatives and what is in them.
const MAX_ITEMS: usize = 100_000;
/// Repetitions that a bound may ask for.
const MAX_COUNT: u32 = 100_000;

/// A grammar.
pub(crate) struct Gbnf {
    rules: Vec<Rule>,
    root: usize,
}

/// Reads a grammar.
pub(crate) fn parse(source: &str) -> Result<Gbnf> {
    let mut parser = Parser {
        chars: source.chars().collect(),
        at: 0,
        rules: Vec::new(),
        names: HashMap::new(),
        used: Vec::new(),
        items: 0,
    };
    parser.grammar()?;
    let root = parser.root()?;
    recursion::refuse_left(&parser)?;
    Ok(Gbnf { rules: parser.rules, root })
}

/// What stands for a character, or for more.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Symbol {
    Char(char),
    Class(Class),
    /// By index.
    Rule(usize),
}

/// Characters that one of may stand somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Class {
    /// From first to last, in any order.
    ranges: Vec<(char, char)>,
    /// All but those.
    is_negated: bool,
}

impl Class {
    fn any() -> Self {
        Class { ranges: vec![(char::MIN, char::MAX)], is_negated: false }
    }

    /// As a regular expression.
    fn regex(&self) -> String {
        let mut class = if self.is_negated { "[^".to_owned() } else { "[".to_owned() };
        for (first, last) in &self.ranges {
            let _ = write!(class, r"\x{{{:X}}}-\x{{{:X}}}", *first as u32, *last as u32);
        }
        class + "]"
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    symbol: Symbol,
    min: u32,
    /// Without a bound if there is none.
    max: Option<u32>,
}

impl Item {
    fn once(symbol: Symbol) -> Self {
        Item { symbol, min: 1, max: Some(1) }
    }
}

type Sequence = Vec<Item>;

/// A rule of the grammar's, or a group.
#[derive(Default)]
struct Rule {
    name: Option<String>,
    /// None until it is defined.
    ways: Option<Vec<Sequence>>,
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    rules: Vec<Rule>,
    names: HashMap<String, usize>,
    /// Rules that are referred to by name, and where.
    used: Vec<(usize, usize)>,
    items: usize,
}

impl Parser {
    /// An error at a character.
    fn error<T>(&self, at: usize, message: &str) -> Result<T> {
        let before = self.chars.get(..at.min(self.chars.len())).unwrap_or_default();
        let line = 1 + before.iter().filter(|c| **c == '\n').count();
        let column = 1 + before.iter().rev().take_while(|c| **c != '\n').count();
        let message = format!("line {line}, column {column}: {message}");
        Err(GrammarError::Invalid { kind: "grammar", message })
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, expected: char) -> bool {
        let is_next = self.peek() == Some(expected);
        self.at += usize::from(is_next);
        is_next
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> String {
        let taken: String = self.chars.iter().skip(self.at).copied().take_while(|c| is_part(*c)).collect();
        self.at += taken.chars().count();
        taken
    }

    /// White space and comments.
    fn space(&mut self, with_lines: bool) {
        loop {
            match self.peek() {
                Some(' ' | '\t') => self.at += 1,
                Some('\r' | '\n') if with_lines => self.at += 1,
                Some('#') => {
                    self.take_while(|c| c != '\n' && c != '\r');
                }
                _ => return,
            }
        }
    }

    fn count(&mut self, num: usize) -> Result<()> {
        self.items += num;
        if self.items <= MAX_ITEMS {
            return Ok(());
        }
        Err(GrammarError::TooLarge { kind: "grammar", message: format!("it has over {MAX_ITEMS} symbols") })
    }

    fn new_rule(&mut self, name: Option<String>) -> usize {
        self.rules.push(Rule { name, ways: None });
        self.rules.len() - 1
    }

    fn named(&mut self, name: &str) -> usize {
        if let Some(&known) = self.names.get(name) {
            return known;
        }
        let idx = self.new_rule(Some(name.to_owned()));
        self.names.insert(name.to_owned(), idx);
        idx
    }

    fn name(&mut self) -> String {
        self.take_while(is_name)
    }

    fn grammar(&mut self) -> Result<()> {
        self.space(true);
        while self.peek().is_some() {
            let start = self.at;
            let name = self.name();
            if name.is_empty() {
                return self.error(self.at, "the name of a rule is expected");
            }
            self.space(false);
            if !(self.take(':') && self.take(':') && self.take('=')) {
                return self.error(self.at, &format!("`::=` is expected after {name:?}"));
            }
            self.space(true);
            let rule = self.named(&name);
            let ways = self.alternatives(0)?;
            match self.peek() {
                None | Some('\r' | '\n') => {}
                Some(other) => return self.error(self.at, &format!("{other:?} is not expected here")),
            }
            self.define(rule, ways, start)?;
            self.space(true);
        }
        Ok(())
    }

    fn define(&mut self, rule: usize, ways: Vec<Sequence>, at: usize) -> Result<()> {
        let Some(known) = self.rules.get_mut(rule) else { return Ok(()) };
        if known.ways.is_some() {
            let name = known.name.clone().unwrap_or_default();
            return self.error(at, &format!("the rule {name:?} is defined twice"));
        }
        known.ways = Some(ways);
        Ok(())
    }

    fn alternatives(&mut self, depth: usize) -> Result<Vec<Sequence>> {
        let mut ways = vec![self.sequence(depth)?];
        while self.take('|') {
            self.count(1)?;
            self.space(true);
            ways.push(self.sequence(depth)?);
        }
        Ok(ways)
    }

    fn sequence(&mut self, depth: usize) -> Result<Sequence> {
        let mut items: Sequence = Vec::new();
        loop {
            let start = self.at;
            let symbols = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => vec![self.class()?],
                Some('.') => {
                    self.at += 1;
                    vec![Symbol::Class(Class::any())]
                }
                Some('(') => {
                    if depth >= MAX_DEPTH {
                        return self.error(start, &format!("over {MAX_DEPTH} groups are within each other"));
                    }
                    self.at += 1;
                    self.space(true);
                    let ways = self.alternatives(depth + 1)?;
                    if !self.take(')') {
                        return self.error(self.at, "`)` is expected");
                    }
                    let group = self.new_rule(None);
                    self.define(group, ways, start)?;
                    vec![Symbol::Rule(group)]
                }
                Some(c) if is_name(c) => {
                    let name = self.name();
                    let rule = self.named(&name);
                    self.used.push((rule, start));
                    vec![Symbol::Rule(rule)]
                }
                Some('*' | '+' | '?' | '{') => return self.error(start, "there is nothing to repeat"),
                Some('<' | '!') => return self.error(start, "tokens are not supported"),
                _ => return Ok(items),
            };
            self.count(symbols.len() + 1)?;
            self.space(depth > 0);
            let repeated = self.repetitions(depth)?;
            let mut item = match (<[Symbol; 1]>::try_from(symbols), repeated.is_empty()) {
                (Ok([symbol]), _) => Item::once(symbol),
                (Err(symbols), true) => {
                    items.extend(symbols.into_iter().map(Item::once));
                    continue;
                }
                (Err(symbols), false) => self.group(symbols.into_iter().map(Item::once).collect()),
            };
            for (idx, (min, max)) in repeated.into_iter().enumerate() {
                // A repetition of a repetition.
                if idx > 0 {
                    item = self.group(vec![item]);
                }
                (item.min, item.max) = (min, max);
            }
            items.push(item);
        }
    }

    fn group(&mut self, items: Sequence) -> Item {
        let group = self.new_rule(None);
        if let Some(rule) = self.rules.get_mut(group) {
            rule.ways = Some(vec![items]);
        }
        Item::once(Symbol::Rule(group))
    }

    /// The operators after a symbol, if any.
    fn repetitions(&mut self, depth: usize) -> Result<Vec<(u32, Option<u32>)>> {
        let mut found = Vec::new();
        loop {
            let start = self.at;
            let bounds = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.at += 1;
                    self.space(depth > 0);
                    let min = self.number()?;
                    self.space(depth > 0);
                    let max = if self.take(',') {
                        self.space(depth > 0);
                        let is_number = self.peek().is_some_and(|c| c.is_ascii_digit());
                        if is_number { Some(self.number()?) } else { None }
                    } else {
                        Some(min)
                    };
                    self.space(depth > 0);
                    if self.peek() != Some('}') {
                        return self.error(self.at, "`}` is expected");
                    }
                    if max.is_some_and(|max| max < min) {
                        return self.error(start, "the most repetitions are fewer than the least");
                    }
                    (min, max)
                }
                _ => return Ok(found),
            };
            self.at += 1;
            self.count(1)?;
            found.push(bounds);
            self.space(depth > 0);
        }
    }

    fn number(&mut self) -> Result<u32> {
        let start = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return self.error(start, "a number is expected");
        }
        match digits.parse() {
            Ok(number) if number <= MAX_COUNT => Ok(number),
            _ => self.error(start, &format!("over {MAX_COUNT} repetitions are asked for")),
        }
    }

    fn literal(&mut self) -> Result<Vec<Symbol>> {
        let start = self.at;
        self.at += 1;
        let mut symbols = Vec::new();
        while !self.take('"') {
            match self.peek() {
                Some(_) => symbols.push(Symbol::Char(self.character()?)),
                None => return self.error(start, "the text that begins here has no end"),
            }
        }
        Ok(symbols)
    }

    /// `[a-z_]`.
    fn class(&mut self) -> Result<Symbol> {
        let start = self.at;
        self.at += 1;
        let is_negated = self.take('^');
        let mut ranges = Vec::new();
        while !self.take(']') {
            if self.peek().is_none() {
                return self.error(start, "the characters that begin here have no end");
            }
            let at = self.at;
            let first = self.character()?;
            let is_range = self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|c| *c != ']');
            let last = if is_range {
                self.at += 1;
                self.character()?
            } else {
                first
            };
            if last < first {
                return self.error(at, "the range ends before it begins");
            }
            ranges.push((first, last));
            self.count(1)?;
        }
        match (ranges.is_empty(), is_negated) {
            (false, _) => Ok(Symbol::Class(Class { ranges, is_negated })),
            // All but none.
            (true, true) => Ok(Symbol::Class(Class::any())),
            (true, false) => self.error(start, "no character is in this"),
        }
    }

    /// A character, or what stands for one after a backslash.
    fn character(&mut self) -> Result<char> {
        let start = self.at;
        let next = self.peek();
        self.at += 1;
        match next {
            Some('\\') => {
                let escape = self.peek();
                self.at += 1;
                let digits = match escape {
                    Some('x') => 2,
                    Some('u') => 4,
                    Some('U') => 8,
                    Some('n') => return Ok('\n'),
                    Some('r') => return Ok('\r'),
                    Some('t') => return Ok('\t'),
                    Some(c @ ('\\' | '"' | '[' | ']')) => return Ok(c),
                    _ => return self.error(start, "there is no such escape"),
                };
                let hex: String = self.chars.iter().skip(self.at).take(digits).collect();
                self.at += digits;
                let is_hex = hex.len() == digits && hex.chars().all(|c| c.is_ascii_hexdigit());
                let code = if is_hex { u32::from_str_radix(&hex, 16).ok() } else { None };
                match code.and_then(char::from_u32) {
                    Some(c) => Ok(c),
                    None => {
                        self.error(start, &format!("{digits} digits of a character's number are expected"))
                    }
                }
            }
            Some(c) => Ok(c),
            None => self.error(start, "a character is expected"),
        }
    }

    fn root(&self) -> Result<usize> {
        for &(rule, at) in &self.used {
            if let Some(Rule { name: Some(name), ways: None }) = self.rules.get(rule) {
                return self.error(at, &format!("there is no rule {name:?}"));
            }
        }
        match self.names.get("root") {
            Some(&root) => Ok(root),
            None => self.error(self.chars.len(), "there is no rule \"root\""),
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

impl Gbnf {
    /// The ways of a rule; none for one that there is not.
    fn ways(&self, rule: usize) -> &[Sequence] {
        self.rules.get(rule).and_then(|rule| rule.ways.as_deref()).unwrap_or_default()
    }

    /// The rules that can be come to, in Lark.
    pub(crate) fn lark(&self) -> String {
        let mut lark = format!("start: r{}\n", self.root);
        let (mut seen, mut left) = (HashSet::from([self.root]), vec![self.root]);
        while let Some(rule) = left.pop() {
            let _ = write!(lark, "r{rule}:");
            for (idx, way) in self.ways(rule).iter().enumerate() {
                lark.push_str(if idx > 0 { " |" } else { "" });
                for Item { symbol, min, max } in way {
                    if *max == Some(0) {
                        continue;
                    }
                    let _ = match symbol {
                        Symbol::Char(c) => write!(lark, " {}", json!(c.to_string())),
                        Symbol::Class(class) => write!(lark, " /{}/", class.regex()),
                        Symbol::Rule(rule) => {
                            if seen.insert(*rule) {
                                left.push(*rule);
                            }
                            write!(lark, " r{rule}")
                        }
                    };
                    let _ = match (min, max) {
                        (1, Some(1)) => Ok(()),
                        (0, None) => write!(lark, "*"),
                        (1, None) => write!(lark, "+"),
                        (0, Some(1)) => write!(lark, "?"),
                        (min, None) => write!(lark, "{{{min},}}"),
                        (min, Some(max)) => write!(lark, "{{{min},{max}}}"),
                    };
                }
            }
            lark.push('\n');
        }
        lark
    }
}
