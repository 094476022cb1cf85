//! What is wrong with an answer, found without a judge: by its words and its length alone.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, BufRead};
use std::sync::Arc;

use serde::Serialize;

use crate::measures::stem;

/// Kinds of mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mistake {
    /// It has no text.
    Empty,
    /// Its tokens ran out.
    CutOff,
    /// It has over half more words than the longest right answer, and five more at least.
    TooLong,
    /// It has less than half of the words of the shortest right answer.
    TooShort,
    /// A fifth more of its runs of four words than of the right answer's were there before.
    Repetitive,
    /// A word that is in no right answer, not in the question and in no list is close to one that is: one edit away, or
    /// two for words of eight letters and more. Words of fewer than four letters, and other forms of a word (of the same
    /// stem), do not count.
    Misspelled,
}

impl Mistake {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 6] =
        [Self::Empty, Self::CutOff, Self::TooLong, Self::TooShort, Self::Repetitive, Self::Misspelled];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::CutOff => "cut off",
            Self::TooLong => "too long",
            Self::TooShort => "too short",
            Self::Repetitive => "repetitive",
            Self::Misspelled => "misspelled",
        }
    }
}

/// Words of an answer that are looked up; the rest of a longer one is not.
const MAX_LOOKED_UP: usize = 2000;
/// Unknown words of an answer that are compared with the known ones.
const MAX_COMPARED: usize = 64;
/// Known words of an item, beside the list.
const MAX_KNOWN: usize = 100_000;
/// Words of a list.
const MAX_LIST: usize = 2_000_000;
/// Letters of a longer word are not compared.
const MAX_LETTERS: usize = 40;
const MIN_LETTERS: usize = 4;
const RUN_WORDS: usize = 4;

/// Words that are spelled right.
#[derive(Clone, Default)]
pub struct WordList(Arc<HashSet<String>>);

impl fmt::Debug for WordList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WordList({} words)", self.0.len())
    }
}

impl WordList {
    /// A word a line.
    ///
    /// # Errors
    /// Those of the reader; it is no text, or has over two million words.
    pub fn read(reader: impl BufRead) -> io::Result<Self> {
        let mut words = HashSet::new();
        let mut reader = reader.take(64 << 20);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 {
            words.extend(letters(&line).map(|word| word.to_lowercase()));
            line.clear();
            if words.len() > MAX_LIST || reader.limit() == 0 {
                return Err(io::Error::other(format!("has over {MAX_LIST} words or 64 MiB")));
            }
        }
        Ok(Self(Arc::new(words)))
    }
}

/// An answer and what it is compared with.
pub(crate) struct Given<'a> {
    pub question: &'a str,
    pub golds: &'a [String],
    pub answer: &'a str,
    pub is_cut: bool,
}

/// What is wrong with an answer.
pub(crate) fn mistakes(given: &Given<'_>, list: &WordList) -> Vec<Mistake> {
    let num_words = |text: &str| text.split_whitespace().count();
    let num = num_words(given.answer);
    let golds = || given.golds.iter().map(|gold| num_words(gold));
    let (shortest, longest) = (golds().min().unwrap_or(0), golds().max().unwrap_or(0));
    let is = |mistake: &Mistake| match mistake {
        Mistake::Empty => num == 0,
        Mistake::CutOff => given.is_cut,
        Mistake::TooLong => 2 * num > 3 * longest && num >= longest + 5,
        Mistake::TooShort => num > 0 && 2 * num < shortest,
        Mistake::Repetitive => {
            let gold = given.golds.first().map_or(0.0, |gold| repeated(gold));
            repeated(given.answer) >= gold + 0.2
        }
        Mistake::Misspelled => is_misspelled(given, list),
    };
    Mistake::ALL.into_iter().filter(is).collect()
}

/// The share of the runs of four words that were there before.
fn repeated(text: &str) -> f64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut seen = HashSet::new();
    let (mut num, mut num_repeated) = (0usize, 0usize);
    for run in words.windows(RUN_WORDS) {
        num += 1;
        num_repeated += usize::from(!seen.insert(run));
    }
    // A run or two say nothing.
    if num < RUN_WORDS { 0.0 } else { num_repeated as f64 / num as f64 }
}

/// Words of letters alone, as they are written.
fn letters(text: &str) -> impl Iterator<Item = &str> {
    // Apostrophes and digits make a word one that is not looked at.
    let words = text.split(|c: char| !c.is_alphanumeric() && !matches!(c, '\'' | '\u{2019}' | '_'));
    words.filter(|word| !word.is_empty() && word.chars().all(char::is_alphabetic))
}

/// What forms of a word have in common.
fn form(word: &str) -> String {
    if word.bytes().all(|byte| byte.is_ascii_lowercase()) { stem(word) } else { word.to_owned() }
}

fn is_misspelled(given: &Given<'_>, list: &WordList) -> bool {
    let mut known: HashSet<String> = HashSet::new();
    for text in given.golds.iter().map(String::as_str).chain([given.question]) {
        for word in letters(text) {
            if known.len() >= MAX_KNOWN {
                break;
            }
            known.insert(word.to_lowercase());
        }
    }
    let mut unknown: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for word in letters(given.answer).take(MAX_LOOKED_UP) {
        let word = word.to_lowercase();
        let is_new = word.chars().count() >= MIN_LETTERS && !known.contains(&word) && !list.0.contains(&word);
        if is_new && unknown.len() < MAX_COMPARED && seen.insert(word.clone()) {
            unknown.push(word);
        }
    }
    if unknown.is_empty() {
        return false;
    }
    let forms: HashSet<String> = known.iter().map(|word| form(word)).collect();
    let mut by_length: HashMap<usize, Vec<Vec<char>>> = HashMap::new();
    for word in &known {
        let letters: Vec<char> = word.chars().collect();
        by_length.entry(letters.len()).or_default().push(letters);
    }
    unknown.iter().filter(|word| !forms.contains(&form(word))).any(|word| {
        let word: Vec<char> = word.chars().collect();
        let most = if word.len() >= 8 { 2 } else { 1 };
        let lengths = word.len().saturating_sub(most).max(MIN_LETTERS)..=word.len() + most;
        word.len() <= MAX_LETTERS
            && lengths
                .filter_map(|len| by_length.get(&len))
                .flatten()
                .any(|known| edits(&word, known, most) <= most)
    })
}

/// Insertions, deletions, replacements and swaps of neighbours that make one word of another; more than `most` are some
/// number over it.
fn edits(a: &[char], b: &[char], most: usize) -> usize {
    let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = cell(&last, j) + usize::from(x != y);
            let mut best = replaced.min(cell(&last, j + 1) + 1).min(cell(&row, j) + 1);
            let is_swap = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if is_swap {
                best = best.min(cell(&before, j - 1) + 1);
            }
            row.push(best);
        }
        if row.iter().all(|edits| *edits > most) {
            return most + 1;
        }
        before = std::mem::replace(&mut last, row);
    }
    cell(&last, b.len())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn found(question: &str, gold: &str, answer: &str) -> Vec<Mistake> {
        let golds = [gold.to_owned()];
        mistakes(&Given { question, golds: &golds, answer, is_cut: false }, &WordList::default())
    }

    #[test]
    fn each_kind_is_found_and_only_that() {
        let gold = "The committee visited Bordeaux in September to taste wine .";
        assert_eq!(found("", gold, gold), []);
        assert_eq!(found("", gold, " \n"), [Mistake::Empty]);
        assert_eq!(found("", gold, "The committee"), [Mistake::TooShort]);
        assert_eq!(
            found("", gold, &format!("{gold} {}", "one two three four five six seven")),
            [Mistake::TooLong]
        );
        let loops = "taste wine in September and taste wine in September and taste wine in September";
        assert_eq!(found("", gold, loops), [Mistake::Repetitive]);
        for wrong in ["comittee", "Spetember", "Bordaeux", "visitd"] {
            let answer = format!("The {wrong} was there in autumn to taste it .");
            assert_eq!(found("", gold, &answer), [Mistake::Misspelled], "{wrong}");
        }
        // Other forms, words of the question, and words that are like none are spelled right as far as one can tell.
        for right in ["committees", "visiting", "delegation", "Bordeaux2", "wines"] {
            assert_eq!(
                found("", gold, &format!("The {right} was there in autumn to taste it .")),
                [],
                "{right}"
            );
        }
        assert_eq!(found("comittee", gold, "The comittee was there in autumn to taste it ."), []);
        let list = WordList::read("Comittee\n".as_bytes()).unwrap();
        let golds = [gold.to_owned()];
        let answer = "The comittee was there in autumn to taste it .";
        let given = Given { question: "", golds: &golds, answer, is_cut: true };
        assert_eq!(mistakes(&given, &list), [Mistake::CutOff]);
    }

    #[test]
    fn edits_are_counted() {
        let count =
            |a: &str, b: &str| edits(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>(), 9);
        assert_eq!((count("kitten", "sitting"), count("ab", "ba"), count("", "abc")), (3, 1, 3));
        // Swapped letters with another between them are two replacements (the restricted distance).
        assert_eq!(count("abcd", "cbad"), 2);
    }

    #[test]
    fn absurd_answers_are_bounded_in_time() {
        let started = Instant::now();
        let word = |i: u64| -> String {
            (0..9).map(|at| char::from(b'a' + ((i * 2_654_435_761) >> (at * 3) & 15) as u8)).collect()
        };
        let question: String = (0..100_000).map(|i| word(i) + " ").collect();
        let answer: String = (0..100_000).map(|i| word(i + 7_000_000) + " ").collect();
        found(&question, "x", &answer);
        found(&"a".repeat(1 << 20), &"b".repeat(1 << 20), &"c".repeat(1 << 20));
        // A machine that does much else is slow; what is quadratic in memory or time would not end at all.
        assert!(started.elapsed() < Duration::from_secs(600), "{:?}", started.elapsed());
    }
}
