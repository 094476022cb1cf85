//! People with the years of their lives, and what is certain about them.

use super::patterns::Patterns;
use super::wordnet::{Synset, WordNet};

/// The number of the lexicographers' file of people.
const PEOPLE_FILE: &str = "18";
const MAX_GLOSS_WORDS: usize = 45;
const YEARS: std::ops::RangeInclusive<i64> = 15..=105;
const SPORTS_ROOTS: [&str; 3] = ["athlete", "golfer", "prizefighter"];
const POLITICS_ROOTS: [&str; 3] = ["politician", "head_of_state", "diplomat"];
/// A monarch is a head of state by the hypernyms and no politician to most readers; a queen regnant is not even that.
const RULER_ROOTS: [&str; 6] = ["sovereign", "ruler", "aristocrat", "Roman_Emperor", "queen", "chieftain"];

/// Someone of whom WordNet tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Person {
    /// WordNet's offset.
    pub synset: String,
    /// The gloss without the years.
    pub text: String,
    /// All names, the usual one first.
    pub names: Vec<String>,
    pub born: i64,
    pub died: i64,
    pub nationality: Option<&'static str>,
    pub sportsperson: bool,
    pub politician: bool,
    /// What is open to doubt, by the fields of the record.
    pub doubtful: Vec<&'static str>,
}

/// What a person is asked for as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    // In the order of their names, in which the items' program sorts them.
    Neither,
    Politician,
    Sportsperson,
}

impl Person {
    pub fn kind(&self) -> Kind {
        match (self.sportsperson, self.politician) {
            (true, _) => Kind::Sportsperson,
            (false, true) => Kind::Politician,
            (false, false) => Kind::Neither,
        }
    }

    /// Whether nothing about them is in doubt.
    pub fn is_certain(&self) -> bool {
        self.doubtful.is_empty()
    }
}

/// Whether a synset is a person who lived or lives.
pub(super) fn is_person(synset: &Synset) -> bool {
    !synset.instance_of.is_empty() && synset.lexicographer_file == PEOPLE_FILE
}

/// Everyone with certain years of birth and death, in the order of the file.
pub(super) fn people(wordnet: &WordNet, patterns: &Patterns) -> Vec<Person> {
    wordnet.synsets.iter().filter_map(|synset| person(wordnet, patterns, synset)).collect()
}

fn person(wordnet: &WordNet, patterns: &Patterns, synset: &Synset) -> Option<Person> {
    if !is_person(synset) {
        return None;
    }
    let life = patterns.life(&synset.gloss)?;
    if !YEARS.contains(&(life.died - life.born)) || life.text.split_whitespace().count() > MAX_GLOSS_WORDS {
        return None;
    }
    let above = wordnet.above(synset);
    let has = |roots: &[&str]| roots.iter().any(|root| above.contains(root));
    let (sportsperson, politician) = (has(&SPORTS_ROOTS), has(&POLITICS_ROOTS));
    let nationality = patterns.clear_nationality(&life.text, &above);
    let mut doubtful = Vec::new();
    if nationality.is_none() {
        doubtful.push("nationality");
    }
    // The gloss must bear the hypernyms out: nothing else is shown to who answers.
    if sportsperson != patterns.tells_of_sports(&life.text) {
        doubtful.push("sportsperson");
    }
    let is_ruler = has(&RULER_ROOTS) || (!politician && patterns.tells_of_power(&life.text));
    if is_ruler || politician != patterns.tells_of_politics(&life.text) {
        doubtful.push("politician");
    }
    Some(Person {
        synset: synset.offset.clone(),
        text: life.text,
        names: synset.words.iter().map(|word| word.replace('_', " ")).collect(),
        born: life.born,
        died: life.died,
        nationality,
        sportsperson,
        politician,
        doubtful,
    })
}
