//! Conditions over a record's fields, as `meta.score >= 0.5 and not (lang == "de" or draft)`.
//!
//! Logic has three values, as SQL's: a comparison with a field that is missing, null or of another type is unknown, and so
//! is what depends on it. Only what is true is selected; what is unknown is counted apart, since it tells of a misspelled
//! field rather than of a record.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Number, Value};

const MAX_CHARS: usize = 10_000;
const MAX_DEPTH: usize = 64;

/// A condition.
///
/// A comparison is a field, an operator and a value: `=` (or `==`), `!=`, `<`, `<=`, `>`, `>=`, `contains`; or a field and
/// `exists` or `missing`; or a field alone, which must be true. They are joined by `and`, `or`, `not` and parentheses. A
/// field is a path: `a.b`, `a[0].b`, `"full name".x`. A value is a number, a text in single or double quotes, `true`,
/// `false` or `null`.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    text: String,
    root: Node,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Compare(Path, Operator, Value),
    Exists(Path),
    Missing(Path),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
}

type Path = Vec<Step>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// What a condition is for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    /// A field that it needs is missing, null or of another type.
    Unknown,
}

impl From<bool> for Truth {
    fn from(is_true: bool) -> Self {
        if is_true { Self::True } else { Self::False }
    }
}

impl Condition {
    /// What it is for a record. `is_untyped`: numbers and booleans are texts there, as in CSV.
    pub(super) fn holds(&self, columns: &Map<String, Value>, is_untyped: bool) -> Truth {
        self.root.holds(columns, is_untyped)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.chars().count() > MAX_CHARS {
            return Err(format!("a condition of more than {MAX_CHARS} characters"));
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        let root = parser.any(0)?;
        match parser.peek() {
            None => Ok(Self { text: text.trim().to_owned(), root }),
            Some(token) => Err(format!("{token} does not belong after what comes before it")),
        }
    }
}

impl Node {
    fn holds(&self, columns: &Map<String, Value>, is_untyped: bool) -> Truth {
        match self {
            Self::And(a, b) => match (a.holds(columns, is_untyped), b.holds(columns, is_untyped)) {
                (Truth::False, _) | (_, Truth::False) => Truth::False,
                (Truth::True, Truth::True) => Truth::True,
                _ => Truth::Unknown,
            },
            Self::Or(a, b) => match (a.holds(columns, is_untyped), b.holds(columns, is_untyped)) {
                (Truth::True, _) | (_, Truth::True) => Truth::True,
                (Truth::False, Truth::False) => Truth::False,
                _ => Truth::Unknown,
            },
            Self::Not(node) => match node.holds(columns, is_untyped) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Unknown => Truth::Unknown,
            },
            Self::Exists(path) => find(columns, path).is_some_and(|value| !value.is_null()).into(),
            Self::Missing(path) => find(columns, path).is_none_or(Value::is_null).into(),
            Self::Compare(path, operator, value) => match find(columns, path) {
                Some(found) => compare(found, *operator, value, is_untyped),
                None => compare(&Value::Null, *operator, value, is_untyped),
            },
        }
    }
}

fn find<'a>(columns: &'a Map<String, Value>, path: &[Step]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let Step::Key(key) = first else { return None };
    rest.iter().try_fold(columns.get(key)?, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(idx) => value.get(idx),
    })
}

fn compare(found: &Value, operator: Operator, wanted: &Value, is_untyped: bool) -> Truth {
    if wanted.is_null() {
        return match operator {
            Operator::Equal => found.is_null().into(),
            Operator::NotEqual => (!found.is_null()).into(),
            _ => Truth::Unknown,
        };
    }
    if operator == Operator::Contains {
        return match (found, wanted) {
            (Value::String(found), Value::String(wanted)) => found.contains(wanted.as_str()).into(),
            (Value::Array(found), wanted) => {
                found.iter().any(|item| order(item, wanted) == Some(Ordering::Equal)).into()
            }
            _ => Truth::Unknown,
        };
    }
    let typed = match (found, wanted) {
        (Value::String(text), Value::Number(_)) if is_untyped => {
            text.trim().parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number)
        }
        (Value::String(text), Value::Bool(_)) if is_untyped => {
            match text.trim().to_ascii_lowercase().as_str() {
                "true" => Some(Value::Bool(true)),
                "false" => Some(Value::Bool(false)),
                _ => None,
            }
        }
        _ => None,
    };
    let Some(order) = order(typed.as_ref().unwrap_or(found), wanted) else { return Truth::Unknown };
    match operator {
        Operator::Equal => order.is_eq(),
        Operator::NotEqual => order.is_ne(),
        Operator::Less => order.is_lt(),
        Operator::LessOrEqual => order.is_le(),
        Operator::Greater => order.is_gt(),
        Operator::GreaterOrEqual => order.is_ge(),
        Operator::Contains => return Truth::Unknown,
    }
    .into()
}

/// How two values of one type compare: numbers by value, texts by their code points, false before true.
fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (integer(a), integer(b)) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Quoted(String),
    /// In single quotes: never a field.
    Text(String),
    Number(Number),
    Sign(&'static str),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Quoted(text) | Self::Text(text) => write!(f, "the text {text:?}"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Sign(sign) => write!(f, "`{sign}`"),
        }
    }
}

/// Longer ones first.
const SIGNS: [&str; 13] = ["==", "!=", "<=", ">=", "&&", "||", "=", "<", ">", "(", ")", "[", "]"];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
        let after = if let Some(sign) = sign {
            tokens.push(Token::Sign(sign));
            rest.get(sign.len()..)
        } else if first == '"' || first == '\'' {
            let (text, after) = quoted(rest, first)?;
            tokens.push(if first == '"' { Token::Quoted(text) } else { Token::Text(text) });
            Some(after)
        } else if first == '.'
            && !rest.get(1..2).is_some_and(|next| next.starts_with(|c: char| c.is_ascii_digit()))
        {
            tokens.push(Token::Sign("."));
            rest.get(1..)
        } else {
            let is_number = first.is_ascii_digit() || matches!(first, '-' | '+' | '.');
            let is_part = |c: char| {
                c.is_alphanumeric() || matches!(c, '_' | '-') || (is_number && matches!(c, '.' | '+'))
            };
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            if word.is_empty() {
                return Err(format!("{first:?} is none of the signs of a condition"));
            }
            tokens.push(if is_number {
                let plain = word.strip_prefix('+').unwrap_or(word);
                let number = plain.parse::<i64>().map(Number::from).ok();
                let number = number.or_else(|| plain.parse::<f64>().ok().and_then(Number::from_f64));
                Token::Number(number.ok_or_else(|| format!("{word:?} is no number"))?)
            } else {
                Token::Word(word.to_owned())
            });
            Some(after)
        };
        rest = after.unwrap_or_default().trim_start();
    }
    Ok(tokens)
}

/// The text that `rest` begins with in quotes, where a backslash stands before a quote or itself; and what follows.
fn quoted(rest: &str, quote: char) -> Result<(String, &str), String> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, c @ ('\\' | '"' | '\''))) => text.push(c),
                Some((_, c)) => text.extend(['\\', c]),
                None => break,
            },
            c if c == quote => return Ok((text, rest.get(at + 1..).unwrap_or_default())),
            c => text.push(c),
        }
    }
    Err(format!("the quote {quote} before {text:?} is not closed"))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// Takes the next token if it is this word or sign.
    fn takes(&mut self, spellings: &[&str]) -> bool {
        let is_it = match self.peek() {
            Some(Token::Word(word)) => spellings.contains(&word.as_str()),
            Some(Token::Sign(sign)) => spellings.contains(sign),
            _ => false,
        };
        self.at += usize::from(is_it);
        is_it
    }

    fn any(&mut self, depth: usize) -> Result<Node, String> {
        let mut node = self.all(depth)?;
        while self.takes(&["or", "||"]) {
            node = Node::Or(Box::new(node), Box::new(self.all(depth)?));
        }
        Ok(node)
    }

    fn all(&mut self, depth: usize) -> Result<Node, String> {
        let mut node = self.one(depth)?;
        while self.takes(&["and", "&&"]) {
            node = Node::And(Box::new(node), Box::new(self.one(depth)?));
        }
        Ok(node)
    }

    fn one(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("a condition in more than {MAX_DEPTH} others"));
        }
        if self.takes(&["not"]) {
            return Ok(Node::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.takes(&["("]) {
            let node = self.any(depth + 1)?;
            return if self.takes(&[")"]) { Ok(node) } else { Err("a parenthesis is not closed".to_owned()) };
        }
        let path = self.path()?;
        let operator = match self.peek() {
            Some(Token::Sign("=" | "==")) => Operator::Equal,
            Some(Token::Sign("!=")) => Operator::NotEqual,
            Some(Token::Sign("<")) => Operator::Less,
            Some(Token::Sign("<=")) => Operator::LessOrEqual,
            Some(Token::Sign(">")) => Operator::Greater,
            Some(Token::Sign(">=")) => Operator::GreaterOrEqual,
            Some(Token::Word(word)) if word == "contains" => Operator::Contains,
            Some(Token::Word(word)) if word == "exists" => {
                self.at += 1;
                return Ok(Node::Exists(path));
            }
            Some(Token::Word(word)) if word == "missing" => {
                self.at += 1;
                return Ok(Node::Missing(path));
            }
            _ => return Ok(Node::Compare(path, Operator::Equal, Value::Bool(true))),
        };
        self.at += 1;
        let value = match self.next() {
            Some(Token::Number(number)) => Value::Number(number),
            Some(Token::Quoted(text) | Token::Text(text)) => Value::String(text),
            Some(Token::Word(word)) => match word.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                _ => return Err(format!("`{word}` is no value; a text stands in quotes: \"{word}\"")),
            },
            Some(token) => return Err(format!("{token} is no value")),
            None => return Err("the value is missing at the end".to_owned()),
        };
        Ok(Node::Compare(path, operator, value))
    }

    fn path(&mut self) -> Result<Path, String> {
        let mut path = vec![self.key()?];
        loop {
            if self.takes(&["."]) {
                path.push(self.key()?);
            } else if self.takes(&["["]) {
                let idx = match self.next() {
                    Some(Token::Number(number)) => number.as_u64().and_then(|idx| usize::try_from(idx).ok()),
                    _ => None,
                };
                path.push(Step::Index(idx.ok_or("between [ and ] stands the place in a list, from 0")?));
                if !self.takes(&["]"]) {
                    return Err("a `[` is not closed".to_owned());
                }
            } else {
                return Ok(path);
            }
        }
    }

    fn key(&mut self) -> Result<Step, String> {
        match self.next() {
            Some(Token::Word(key) | Token::Quoted(key)) => Ok(Step::Key(key)),
            Some(token) => Err(format!("{token} is no field")),
            None => Err("a field is missing at the end".to_owned()),
        }
    }
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod tests;
