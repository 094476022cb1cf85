//! Items that ask for one of three renamed people, as `datasets/biographies` has them.
//!
//! This was a program in Python once, and the files that are shipped are its own. Drawing as Python draws ([`Random`])
//! gives the same bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use regex::Regex;
use serde_json::{Value, json};

use super::patterns::{Patterns, nationalities};
use super::people::{Kind, Person, is_person};
use super::python::{Random, dumps};
use super::wordnet::WordNet;
use crate::error::{DataError, Result};

const NUM_IN_PROMPT: usize = 3;
const MAX_PROMPT_CHARS: usize = 800;
const TEST_SHARE: f64 = 1.0 / 3.0;
/// Shares of the items that ask for such a person. There are a hundred politicians with clear gold and thirty people of
/// sports, so that these are asked for more than once, each time under another name and in other company.
const SHARES: [(Kind, f64); 3] =
    [(Kind::Sportsperson, 0.25), (Kind::Politician, 0.33), (Kind::Neither, 0.42)];
/// Draws of company for one item before there can be none.
const MAX_DRAWS: usize = 100_000;

/// The question after the text.
pub(in crate::prepare) fn question(name: &str) -> String {
    format!(
        "Write the JSON record of {name}. Answer only with JSON like \
         {{\"nationality\": \"Greek\", \"born\": 1801, \"died\": 1899, \"sportsperson\": true, \"politician\": false}}"
    )
}

/// The record of the answer.
pub(in crate::prepare) fn gold(
    nationality: Value,
    born: Value,
    died: Value,
    sportsperson: bool,
    politician: bool,
) -> String {
    dumps(&json!({
        "nationality": nationality, "born": born, "died": died, "sportsperson": sportsperson, "politician": politician,
    }))
}

/// The most that one nationality has of a kind's items: otherwise half of all people would be American, as nearly all of
/// those in sports are.
fn max_nationality_share(kind: Kind) -> f64 {
    match kind {
        Kind::Sportsperson => 1.0,
        Kind::Politician => 0.3,
        Kind::Neither => 0.12,
    }
}

/// Parts of WordNet's names that are no names.
pub(in crate::prepare) const TITLES: &str = "baron baroness count countess dame de di don du duchess duke earl el emperor first guru \
    islam king lady la le lord marquis marquise mother pope prince princess queen saint second sir the third van von der \
    den vi vii viii xii xiii xiv iii elder younger great junior senior black buffalo supreme bloody good wild calamity old \
    young little big red captain general doctor jesus christ buddha mahatma";

/// Lines of two files, and figures of each.
pub(super) struct Made {
    pub train: Vec<String>,
    pub test: Vec<String>,
    /// People asked for in each.
    pub num_asked: [usize; 2],
}

/// Makes both files.
pub(super) fn make(
    wordnet: &WordNet,
    patterns: &Patterns,
    people: Vec<Person>,
    counts: [usize; 2],
    seed: u64,
) -> Result<Made> {
    let mut random = Random::new(seed);
    let (train, test) = split(people, &mut random);
    let mut names = Names::new(wordnet, patterns)?;
    let (train, num_train) = make_items(&train, counts[0], &mut names, &mut random)?;
    let (test, num_test) = make_items(&test, counts[1], &mut names, &mut random)?;
    Ok(Made { train, test, num_asked: [num_train, num_test] })
}

/// Python's `round`, which takes halves to the even number.
fn round(number: f64) -> usize {
    number.round_ties_even() as usize
}

/// People for training and testing, none in both, with every kind in both.
fn split(people: Vec<Person>, random: &mut Random) -> (Vec<Person>, Vec<Person>) {
    let mut kinds: BTreeMap<(Kind, bool), Vec<Person>> = BTreeMap::new();
    for person in people {
        kinds.entry((person.kind(), person.is_certain())).or_default().push(person);
    }
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for mut members in kinds.into_values() {
        random.shuffle(&mut members);
        let rest = members.split_off(round(members.len() as f64 * TEST_SHARE).min(members.len()));
        test.extend(members);
        train.extend(rest);
    }
    (train, test)
}

/// First and last names of all of WordNet's people, put together anew; no name is given twice.
struct Names {
    firsts: Vec<String>,
    lasts: Vec<String>,
    used: HashSet<(String, String)>,
}

impl Names {
    fn new(wordnet: &WordNet, patterns: &Patterns) -> Result<Self> {
        let titles: BTreeSet<&str> = TITLES.split_whitespace().collect();
        let fits = Regex::new("^[a-z]{3,}$").map_err(|error| DataError::Options(error.to_string()))?;
        let taken: BTreeSet<String> = nationalities().map(|(name, _)| name.to_lowercase()).collect();
        let mut used = HashSet::new();
        let (mut firsts, mut lasts): (HashMap<String, i64>, HashMap<String, i64>) = Default::default();
        let people =
            wordnet.synsets.iter().filter(|synset| is_person(synset) && patterns.lived(&synset.gloss));
        for name in people.flat_map(|synset| &synset.words).filter(|name| name.contains('_')) {
            let name = name.replace('_', " ").to_lowercase();
            let words: Vec<&str> = name.split_whitespace().filter(|word| !titles.contains(word)).collect();
            let (Some(first), Some(last)) = (words.first(), words.last()) else { continue };
            if words.len() > 1 && fits.is_match(first) && fits.is_match(last) {
                used.insert(((*first).to_owned(), (*last).to_owned()));
                *firsts.entry((*first).to_owned()).or_default() += 1;
                *lasts.entry((*last).to_owned()).or_default() += 1;
            }
        }
        // A word is a first name or a last name, whichever it is more often.
        let count = |names: &HashMap<String, i64>, word: &String| names.get(word).copied().unwrap_or(0);
        let is_first = |word: &&String| count(&firsts, word) > count(&lasts, word) && !taken.contains(*word);
        let is_last = |word: &&String| count(&lasts, word) >= count(&firsts, word) && !taken.contains(*word);
        let mut first_names: Vec<String> = firsts.keys().filter(is_first).cloned().collect();
        let mut last_names: Vec<String> = lasts.keys().filter(is_last).cloned().collect();
        first_names.sort();
        last_names.sort();
        Ok(Self { firsts: first_names, lasts: last_names, used })
    }

    /// Names for one item, alike in neither part.
    fn draw(&mut self, random: &mut Random) -> Result<Vec<(String, String)>> {
        if self.firsts.len() < NUM_IN_PROMPT || self.lasts.len() < NUM_IN_PROMPT {
            return Err(DataError::Insufficient(format!(
                "there are too few names to give: {} first and {} last ones",
                self.firsts.len(),
                self.lasts.len()
            )));
        }
        for _ in 0..MAX_DRAWS {
            let firsts = random.sample(&self.firsts, NUM_IN_PROMPT);
            let lasts = random.sample(&self.lasts, NUM_IN_PROMPT);
            let names: Vec<(String, String)> =
                firsts.into_iter().cloned().zip(lasts.into_iter().cloned()).collect();
            if names.iter().all(|name| !self.used.contains(name)) {
                self.used.extend(names.iter().cloned());
                return Ok(names);
            }
        }
        Err(DataError::Insufficient("all names have been given".to_owned()))
    }
}

/// The gloss under another name, in the spaced lower-case form of the names.
fn biography(person: &Person, (first, last): &(String, String)) -> String {
    let mut own: Vec<&str> =
        person.names.iter().filter_map(|name| name.split_whitespace().next_back()).collect();
    own.sort_by(|a, b| b.chars().count().cmp(&a.chars().count()).then(a.cmp(b)));
    own.dedup();
    let mut text = person.text.clone();
    for word in own {
        if word.chars().count() > 2 && word.starts_with(char::is_uppercase) {
            text = replace_word(&text, word, last);
        }
    }
    format!("{first} {last} ( {} - {} ) , {text} .", person.born, person.died)
}

/// `text` with `to` for every `word` that stands by itself; after a hyphen it does not, before one it does.
fn replace_word(text: &str, word: &str, to: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut out, mut done) = (String::new(), 0);
    for (at, found) in text.match_indices(word) {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text.get(at + found.len()..).and_then(|text| text.chars().next());
        if !before.is_some_and(|c| is_word(c) || c == '-') && !after.is_some_and(is_word) {
            out.push_str(text.get(done..at).unwrap_or_default());
            out.push_str(to);
            done = at + found.len();
        }
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

/// Whom to ask for: shares of kinds kept, nationalities spread, and within that nobody more often than needed.
fn schedule<'a>(people: &'a [Person], count: usize, random: &mut Random) -> Result<Vec<&'a Person>> {
    let mut asked = Vec::new();
    for (kind, share) in SHARES {
        let mut members: Vec<&Person> =
            people.iter().filter(|person| person.is_certain() && person.kind() == kind).collect();
        random.shuffle(&mut members);
        let wanted = round(count as f64 * share);
        let limit = round(wanted as f64 * max_nationality_share(kind)).max(1);
        let mut taken: HashMap<&str, usize> = HashMap::new();
        let mut chosen = Vec::new();
        while chosen.len() < wanted {
            let before = chosen.len();
            for person in &members {
                let taken = taken.entry(person.nationality.unwrap_or_default()).or_default();
                if *taken < limit && chosen.len() < wanted {
                    *taken += 1;
                    chosen.push(*person);
                }
            }
            if chosen.len() == before {
                return Err(DataError::Insufficient(format!(
                    "there are too few people for {count} items: {} of {wanted} for one kind",
                    chosen.len()
                )));
            }
        }
        asked.extend(chosen);
    }
    random.shuffle(&mut asked);
    Ok(asked)
}

/// Lines, and how many people they ask for.
fn make_items(
    people: &[Person],
    count: usize,
    names: &mut Names,
    random: &mut Random,
) -> Result<(Vec<String>, usize)> {
    let mut kinds: HashMap<Kind, Vec<&Person>> = HashMap::new();
    for person in people {
        kinds.entry(person.kind()).or_default().push(person);
    }
    let asked = schedule(people, count, random)?;
    // Each place as often as the others, whoever is asked for.
    let mut places: Vec<usize> = (0..asked.len()).map(|idx| idx % NUM_IN_PROMPT).collect();
    random.shuffle(&mut places);
    let num_asked = asked.iter().map(|person| &person.synset).collect::<BTreeSet<_>>().len();
    let mut lines = Vec::new();
    for (person, place) in asked.into_iter().zip(places) {
        lines.push(make_item(person, place, &kinds, names, random)?);
    }
    Ok((lines, num_asked))
}

fn make_item(
    person: &Person,
    place: usize,
    kinds: &HashMap<Kind, Vec<&Person>>,
    names: &mut Names,
    random: &mut Random,
) -> Result<String> {
    for _ in 0..MAX_DRAWS {
        let Some(company) = company(person, kinds, random) else { break };
        let mut chosen = company.clone();
        chosen.insert(place.min(chosen.len()), person);
        let lives: BTreeSet<(i64, i64)> = chosen.iter().map(|person| (person.born, person.died)).collect();
        if lives.len() < NUM_IN_PROMPT {
            continue;
        }
        let given = names.draw(random)?;
        let texts: Vec<String> =
            chosen.iter().zip(&given).map(|(person, name)| biography(person, name)).collect();
        let (first, last) = given.get(place).cloned().unwrap_or_default();
        let prompt = format!("{}\n\n{}", texts.join(" "), question(&format!("{first} {last}")));
        if prompt.chars().count() > MAX_PROMPT_CHARS {
            continue;
        }
        let nationality = person.nationality.map_or(Value::Null, Value::from);
        let (born, died) = (person.born.into(), person.died.into());
        return Ok(dumps(&json!({
            "prompt": prompt,
            "completion": gold(nationality, born, died, person.sportsperson, person.politician),
            "depth": place as f64 / (NUM_IN_PROMPT - 1) as f64,
            "synset": person.synset,
            "beside": company.iter().map(|person| &person.synset).collect::<Vec<_>>(),
        })));
    }
    Err(DataError::Insufficient("there are too few people to put beside those who are asked for".to_owned()))
}

/// Company of the same kinds: that someone of sports stands there must not tell that they are asked for.
fn company<'a>(
    person: &Person,
    kinds: &HashMap<Kind, Vec<&'a Person>>,
    random: &mut Random,
) -> Option<Vec<&'a Person>> {
    let mut company: Vec<&Person> = Vec::new();
    for _ in 0..MAX_DRAWS {
        if company.len() == NUM_IN_PROMPT - 1 {
            return Some(company);
        }
        let kind = random.weighted(&SHARES)?;
        let other = random.choice(kinds.get(kind)?)?;
        if other.synset != person.synset && company.iter().all(|one| one.synset != other.synset) {
            company.push(other);
        }
    }
    None
}
