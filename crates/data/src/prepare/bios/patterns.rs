//! What the words of a gloss say: nationality, doubt, kind of life.

use std::collections::BTreeSet;

use regex::Regex;

use crate::error::{DataError, Result};

/// As a gloss has them and as a record has them. Peoples without a state of the name (Flemish, Roman, Prussian) are out.
const NATIONALITIES: &str = "American Argentinian Australian Austrian Belgian Bolivian Brazilian British Canadian Chinese \
    Cuban Czech Danish Dutch Egyptian English Finnish French German Haitian Hungarian Indian Indonesian Iranian Irish \
    Israeli Italian Jamaican Japanese Kenyan Mexican Norwegian Polish Portuguese Romanian Russian Scottish Soviet Spanish \
    Swedish Swiss Turkish Venezuelan Vietnamese Welsh";
const UNITED_STATES: (&str, &str) = ("United States", "American");
/// By the hypernyms someone who is American, whatever the gloss calls them.
const PRESIDENT: &str = "President_of_the_United_States";

/// Words of descent or place in a gloss's head that leave open whose citizen the person was.
const OTHER_ORIGIN: &str = r"\b(Roman|Greek|Flemish|Norman|Prussian|Bohemian|Venetian|Sherpa|Sioux|Frankish|Saxon|[Nn]ative|Empire|[Tt]ribe|Revolution\w*|Hawaiian|African|Palestinian|Saudi|Hebrew|Czechoslovakian|descent|born)\b";
/// Another such word, unless it is that of a judge.
const CHIEF: &str = r"\b[Cc]hief\b";
const CHIEF_JUSTICE: &str = " justice";
/// Where a gloss's head ends: what follows tells of deeds and of others.
const HEAD_END: &str = "[;,:(]| who | whose | which | that | noted | known | remembered | famous | for | in | of | to | from | by ";
const PARENTHESES: &str = r"\([^()]*\)";

/// A life of certain years at the end of a gloss.
const LIFE: &str = r#"^(?P<text>[^"]*?)\s*\((?P<born>1\d{3})-(?P<died>1\d{3}|200\d)\)$"#;
/// A life of any years there.
const LIVED: &str = r"\([^()]*\d{3,4}[^()]*\)$";
const DOUBTFUL_LIFE: &str = r"\b(circa|c\.|ca\.|BC|AD|flourished|active|died in|\?)|\(\D*\d{3,4}\??-\d";

const SPORTS_WORDS: &str = r"(?i)\b(athletes?|baseball|basketball|billiards?|boxer|boxing|contract bridge|card games|champions?|championships?|chess|coach|cricket|cricketer|fencer|football|golf|golfer|gymnast|hockey|jockey|mountaineer|Olympics?|prizefighter|racing|runner|skater|skating|sports?|sportsman|swimmer|tennis|wrestler)\b";
const POLITICS_WORDS: &str = r"(?i)\b(politicians?|political (figure|leader|party)|states(man|men|woman)|prime minister|premier|senator|governor|mayor|congress(man|woman)|legislators?|member of parliament|dictator|dictatorial|diplomats?|ambassador|heads? of state|secretary of state|secretary of the treasury|vice president|(president|chancellor) of (the )?(republic|[A-Z]\w+ )|communist (party|leader|theorist)|head of the USSR|secretary general|Nationalist China)\b";
/// Of someone who is no politician by the hypernyms, these in the head leave doubt.
const POWER_WORDS: &str = r"(?i)\b(king|queen|emperor|empress|tsar|czar|sultan|shah|prince|princess|duke|duchess|viceroy|regent|ruler|patriot|nationalist|revolution\w*|insurgent|courtier|lord|nobleman|noblewoman|conspirator|rebel)\b";
/// Another such word, unless it is of one of these kinds.
const LEADER: &str = r"(?i)\bleader\b";
const HARMLESS_LEADERS: [&str; 4] = ["religious ", "jewish ", "labor ", "rights "];

/// The patterns, compiled.
#[derive(Debug)]
pub(super) struct Patterns {
    nationality: Regex,
    other_origin: Regex,
    chief: Regex,
    head_end: Regex,
    parentheses: Regex,
    life: Regex,
    lived: Regex,
    doubtful_life: Regex,
    sports: Regex,
    politics: Regex,
    power: Regex,
    leader: Regex,
}

/// A gloss's text and the years after it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub text: String,
    pub born: i64,
    pub died: i64,
}

/// The nationalities that records have, as glosses write them and as records do.
pub(in crate::prepare) fn nationalities() -> impl Iterator<Item = (&'static str, &'static str)> {
    NATIONALITIES.split_whitespace().map(|name| (name, name)).chain([UNITED_STATES])
}

impl Patterns {
    pub fn new() -> Result<Self> {
        let compile =
            |pattern: &str| Regex::new(pattern).map_err(|error| DataError::Options(error.to_string()));
        let names: Vec<&str> = nationalities().map(|(name, _)| name).collect();
        Ok(Self {
            nationality: compile(&names.join("|"))?,
            other_origin: compile(OTHER_ORIGIN)?,
            chief: compile(CHIEF)?,
            head_end: compile(HEAD_END)?,
            parentheses: compile(PARENTHESES)?,
            life: compile(LIFE)?,
            lived: compile(LIVED)?,
            doubtful_life: compile(DOUBTFUL_LIFE)?,
            sports: compile(SPORTS_WORDS)?,
            politics: compile(POLITICS_WORDS)?,
            power: compile(POWER_WORDS)?,
            leader: compile(LEADER)?,
        })
    }

    /// What a gloss says first: what the person was.
    pub fn head(&self, text: &str) -> String {
        let plain = self.parentheses.replace_all(text, "");
        let end = self.head_end.find(&plain).map_or(plain.len(), |found| found.start());
        plain.get(..end).unwrap_or_default().to_owned()
    }

    /// The one nationality in the head of the gloss, unless anything there casts doubt.
    pub fn clear_nationality(&self, text: &str, above: &BTreeSet<&str>) -> Option<&'static str> {
        let head = self.head(text);
        let mut found: BTreeSet<&'static str> = self.named_in(&head).into_iter().collect();
        if above.contains(PRESIDENT) {
            found.insert(UNITED_STATES.1);
        }
        let is_chief =
            |at: regex::Match<'_>| !head.get(at.end()..).is_some_and(|rest| rest.starts_with(CHIEF_JUSTICE));
        let is_doubtful = self.other_origin.is_match(&head) || self.chief.find_iter(&head).any(is_chief);
        found.pop_first().filter(|_| found.is_empty() && !is_doubtful)
    }

    /// The nationalities that a text names, as records have them. A part of a word, or of several with a hyphen, is none.
    pub fn named_in(&self, text: &str) -> Vec<&'static str> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let (mut found, mut start) = (Vec::new(), 0);
        while let Some(at) = self.nationality.find_at(text, start) {
            let before = text.get(..at.start()).and_then(|text| text.chars().next_back());
            let after = text.get(at.end()..).and_then(|text| text.chars().next());
            let stands_alone = !before.is_some_and(|c| is_word(c) || c == '-')
                && !after.is_some_and(|c| is_word(c) || matches!(c, '\'' | '-'));
            if stands_alone {
                found.extend(nationalities().find(|(name, _)| *name == at.as_str()).map(|(_, name)| name));
                start = at.end();
            } else {
                // The names begin with ASCII letters.
                start = at.start() + 1;
            }
        }
        found
    }

    /// Text and years of a gloss that ends with both years of a life, of which neither is in doubt.
    pub fn life(&self, gloss: &str) -> Option<Life> {
        let found = self.life.captures(gloss)?;
        let text = found.name("text")?.as_str();
        if self.doubtful_life.is_match(text) {
            return None;
        }
        let year = |name: &str| found.name(name)?.as_str().parse::<i64>().ok();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(Life { text, born: year("born")?, died: year("died")? })
    }

    /// Whether a gloss ends with the years of a life, certain or not.
    pub fn lived(&self, gloss: &str) -> bool {
        self.lived.is_match(gloss)
    }

    pub fn tells_of_sports(&self, text: &str) -> bool {
        self.sports.is_match(text)
    }

    pub fn tells_of_politics(&self, text: &str) -> bool {
        self.politics.is_match(text)
    }

    /// Whether the head of a gloss tells of power that one may or may not call politics.
    pub fn tells_of_power(&self, text: &str) -> bool {
        let head = self.head(text);
        let is_harmless = |at: regex::Match<'_>| {
            let before = head.get(..at.start()).unwrap_or_default().to_ascii_lowercase();
            HARMLESS_LEADERS.iter().any(|kind| before.ends_with(kind))
        };
        self.power.is_match(&head) || self.leader.find_iter(&head).any(|at| !is_harmless(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nationality_is_clear_or_none() {
        let patterns = Patterns::new().unwrap();
        let clear = |text: &str| patterns.clear_nationality(text, &BTreeSet::new());
        assert_eq!(clear("United States chemist who went to French schools"), Some("American"));
        assert_eq!(clear("Welsh poet (son of an English miner) noted for odes"), Some("Welsh"));
        assert_eq!(clear("Swiss chief justice of a court"), Some("Swiss"));
        for text in [
            "chemist",
            "French and German chemist",
            "French-German chemist",
            "English-born poet",
            "Native Canadian poet",
            "Sioux chief",
            "poet noted for Irish songs",
            "Frenchman",
            "the English's poet",
        ] {
            assert_eq!(clear(text), None, "{text}");
        }
        let president = BTreeSet::from([PRESIDENT]);
        assert_eq!(patterns.clear_nationality("16th President", &president), Some("American"));
        assert_eq!(patterns.clear_nationality("British President", &president), None);
    }

    #[test]
    fn lives_are_certain_or_none() {
        let patterns = Patterns::new().unwrap();
        let life = patterns.life("Welsh  chemist (1801-1870)").unwrap();
        assert_eq!((life.text.as_str(), life.born, life.died), ("Welsh chemist", 1801, 1870));
        for gloss in [
            "Welsh chemist (born in 1950)",
            "chemist (801-870)",
            "chemist (circa 1801-1870)",
            "poet, flourished (1801-1870)",
            "poet (1801-1870) of odes",
            "said \"no\" (1801-1870)",
            "poet (1801?-1870)",
        ] {
            assert_eq!(patterns.life(gloss), None, "{gloss}");
        }
        assert!(patterns.lived("poet (circa 801?-870 BC)") && !patterns.lived("poet (of odes)"));
    }

    #[test]
    fn power_is_doubtful_but_for_harmless_leaders() {
        let patterns = Patterns::new().unwrap();
        for text in ["Rebel of Kent", "French leader", "Polish labor leader and leader of men", "last tsar"] {
            assert!(patterns.tells_of_power(text), "{text}");
        }
        for text in ["Religious leader", "Polish labor leader", "poet who was a king", "kingfisher painter"] {
            assert!(!patterns.tells_of_power(text), "{text}");
        }
    }
}
