//! Biographies from WordNet, with records that need no model: years and nationality are in the gloss, `sportsperson` and
//! `politician` follow from the hypernyms.

mod items;
mod patterns;
mod people;
mod python;
mod wordnet;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::draw::generator;
use super::inputs::{InputFile, InputRecord};
use super::product::{Dropped, Made, Output, Product};
use crate::error::{DataError, Result};
pub(super) use items::{TITLES, gold, question};
use patterns::Patterns;
pub(super) use patterns::nationalities;
use people::{Kind, Person, people};
use wordnet::WordNet;

/// The notice that copies carry; the file's own, where it has one.
const LICENCE: &str = include_str!("../../../../../adapters/LICENSE-WordNet.txt");
/// The ending of its name.
const LICENCE_ENDING: &str = "LICENSE-WordNet.txt";

/// Which people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BiosOptions {
    /// WordNet's `data.noun`, or a folder with it.
    pub wordnet: PathBuf,
    /// Also people of whom something is in doubt, with the fields that are.
    pub doubtful: bool,
    /// As many people of sports, politicians and others, the nationalities of each in turn.
    pub balanced: bool,
    /// Who is taken where there are more, and their order, if balanced.
    pub seed: u64,
    /// Where they are written.
    pub output: Output,
}

/// Who was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BiosReport {
    /// What was read.
    pub input: InputRecord,
    /// People, and of these people of sports and politicians.
    pub num_people: u64,
    /// People of sports.
    pub num_sportspeople: u64,
    /// Politicians.
    pub num_politicians: u64,
    /// People of each nationality.
    pub nationalities: BTreeMap<String, u64>,
    /// People who were left out, by reason.
    pub dropped: Dropped,
}

/// Writes a line for everyone of whom WordNet gives the years of birth and death:
/// `{"name", "text", "nationality", "born", "died", "sportsperson", "politician", "names", "synset", "doubtful"}`. The text is
/// the gloss behind name and years, `names` are all that WordNet has, `doubtful` the fields that nobody should be asked
/// for. Without `balanced` they are in the order of the file. The licence is written beside the output.
///
/// # Errors
/// WordNet cannot be read; nobody is left; what the system says. Then there is no output.
pub fn bios(options: &BiosOptions) -> Result<BiosReport> {
    let input = InputFile::local(&options.wordnet);
    let mut product = Product::create(&options.output, &[LICENCE_ENDING], [&input])?;
    let patterns = Patterns::new()?;
    let wordnet = WordNet::read(&options.wordnet)?;
    let mut dropped = Dropped::default();
    let mut chosen = Vec::new();
    for person in people(&wordnet, &patterns) {
        match person.doubtful.first() {
            Some(field) if !options.doubtful => dropped.count(&format!("{field} is in doubt")),
            _ => chosen.push(person),
        }
    }
    if options.balanced {
        let all = chosen.len();
        chosen = balanced(chosen, options.seed);
        (0..all - chosen.len()).for_each(|_| dropped.count("more than the balance takes"));
    }
    if chosen.is_empty() {
        let message = format!("{} has nobody of whom enough is known: {dropped}", options.wordnet.display());
        return Err(DataError::Insufficient(message));
    }
    let mut report = BiosReport {
        input: wordnet.input,
        num_people: chosen.len() as u64,
        num_sportspeople: chosen.iter().filter(|person| person.sportsperson).count() as u64,
        num_politicians: chosen.iter().filter(|person| person.politician).count() as u64,
        nationalities: BTreeMap::new(),
        dropped,
    };
    for person in &chosen {
        let nationality = person.nationality.unwrap_or("none for certain").to_owned();
        *report.nationalities.entry(nationality).or_default() += 1;
        product.push(line(person).to_string().as_bytes())?;
    }
    product.beside(LICENCE_ENDING, wordnet.licence.as_deref().unwrap_or(LICENCE).into());
    let figures = json!({
        "sportspeople": report.num_sportspeople,
        "politicians": report.num_politicians,
        "nationalities": report.nationalities,
    });
    product.finish(Made {
        command: "bios",
        seed: options.balanced.then_some(options.seed),
        settings: object(json!({"doubtful": options.doubtful, "balanced": options.balanced})),
        inputs: std::slice::from_ref(&report.input),
        dropped: &report.dropped,
        figures: object(figures),
    })?;
    Ok(report)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// As many of each kind as the rarest has. Within a kind the nationalities come in turn, so that none is more frequent
/// than it must be.
fn balanced(people: Vec<Person>, seed: u64) -> Vec<Person> {
    let mut generator = generator(seed, "bios");
    let mut kinds: BTreeMap<Kind, BTreeMap<Option<&str>, Vec<Person>>> =
        [Kind::Neither, Kind::Politician, Kind::Sportsperson].map(|kind| (kind, BTreeMap::new())).into();
    for person in people {
        let nationalities = kinds.entry(person.kind()).or_default();
        nationalities.entry(person.nationality).or_default().push(person);
    }
    let size = |nationalities: &BTreeMap<_, Vec<Person>>| nationalities.values().map(Vec::len).sum::<usize>();
    let rarest = kinds.values().map(size).min().unwrap_or(0);
    let mut chosen = Vec::new();
    for nationalities in kinds.into_values() {
        let mut lists: Vec<Vec<Person>> = nationalities.into_values().collect();
        lists.iter_mut().for_each(|list| generator.shuffle(list));
        generator.shuffle(&mut lists);
        let mut taken = 0;
        while taken < rarest && lists.iter().any(|list| !list.is_empty()) {
            for list in &mut lists {
                if taken < rarest
                    && let Some(person) = list.pop()
                {
                    chosen.push(person);
                    taken += 1;
                }
            }
        }
    }
    generator.shuffle(&mut chosen);
    chosen
}

/// The name that someone is usually called by: the first of their names that has a first and a last part, or has them
/// behind titles.
fn usual_name(person: &Person) -> String {
    let is_title = |word: &&str| TITLES.split_whitespace().any(|title| title == word.to_lowercase());
    let plain = |name: &String, skip_titles: bool| {
        let words: Vec<&str> =
            name.split_whitespace().skip_while(|word| skip_titles && is_title(word)).collect();
        let fits = |word: &&str| word.starts_with(char::is_uppercase) && !is_title(word);
        (words.len() > 1 && words.iter().all(fits)).then(|| words.join(" "))
    };
    let first = |skip_titles: bool| person.names.iter().find_map(|name| plain(name, skip_titles));
    first(false).or_else(|| first(true)).or_else(|| person.names.first().cloned()).unwrap_or_default()
}

fn line(person: &Person) -> Value {
    let name = usual_name(person);
    json!({
        "name": name,
        "text": format!("{name} ( {} - {} ) , {} .", person.born, person.died, person.text),
        "nationality": person.nationality,
        "born": person.born,
        "died": person.died,
        "sportsperson": person.sportsperson,
        "politician": person.politician,
        "names": person.names,
        "synset": person.synset,
        "doubtful": person.doubtful,
    })
}

/// Items that ask for one of three people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemsOptions {
    /// WordNet's `data.noun`, or a folder with it.
    pub wordnet: PathBuf,
    /// Items to train on.
    pub num_train: usize,
    /// Items to test with.
    pub num_test: usize,
    /// Who is asked for, beside whom and under which names.
    pub seed: u64,
    /// Where `train.jsonl` and `test.jsonl` are written; made if it is not there.
    pub folder: PathBuf,
    /// Replace what is there.
    pub replace: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemsReport {
    /// What was read.
    pub input: InputRecord,
    /// Items to train on.
    pub num_train: usize,
    /// Items to test with.
    pub num_test: usize,
    /// People asked for to train on.
    pub num_asked_train: usize,
    /// People asked for to test with.
    pub num_asked_test: usize,
}

/// Writes the two files of `datasets/biographies`: each item has three people under names that are not theirs and asks for
/// the record of one. Nobody is in both files. A file's kinds of people are shares of its items, each rounded, so that
/// there may be one item more than was asked for.
///
/// # Errors
/// WordNet cannot be read; too few people or names; what the system says. Then there is no output, or, where the system
/// failed between the two, the second is missing.
pub fn items(options: &ItemsOptions) -> Result<ItemsReport> {
    if options.num_train == 0 || options.num_test == 0 {
        return Err(DataError::Options("both files need an item".to_owned()));
    }
    std::fs::create_dir_all(&options.folder).map_err(|source| DataError::io(&options.folder, source))?;
    let output = |name: &str| Output { path: options.folder.join(name), replace: options.replace };
    let input = InputFile::local(&options.wordnet);
    let mut train = Product::create(&output("train.jsonl"), &[LICENCE_ENDING], [&input])?;
    let mut test = Product::create(&output("test.jsonl"), &[LICENCE_ENDING], [&input])?;
    let patterns = Patterns::new()?;
    let wordnet = WordNet::read(&options.wordnet)?;
    let all = people(&wordnet, &patterns);
    let made = items::make(&wordnet, &patterns, all, [options.num_train, options.num_test], options.seed)?;
    made.train.iter().try_for_each(|line| train.push(line.as_bytes()))?;
    made.test.iter().try_for_each(|line| test.push(line.as_bytes()))?;
    let licence = wordnet.licence.as_deref().unwrap_or(LICENCE);
    let report = ItemsReport {
        input: wordnet.input.clone(),
        num_train: made.train.len(),
        num_test: made.test.len(),
        num_asked_train: made.num_asked[0],
        num_asked_test: made.num_asked[1],
    };
    let none = Dropped::default();
    for (mut product, asked) in [(train, report.num_asked_train), (test, report.num_asked_test)] {
        product.beside(LICENCE_ENDING, licence.into());
        product.finish(Made {
            command: "bios --items",
            seed: Some(options.seed),
            settings: object(json!({"train": options.num_train, "test": options.num_test})),
            inputs: std::slice::from_ref(&report.input),
            dropped: &none,
            figures: object(json!({"people_asked_for": asked})),
        })?;
    }
    Ok(report)
}
