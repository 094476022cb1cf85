//! Taking one fact out of a text, where it is certain that nothing else tells it.
//!
//! This refuses far more than it must. A year goes only if it stands in the one pair of years behind the name, no number
//! with three digits or more is left beside the other year, and no word tells of birth, age or death. A nationality goes
//! only if it is named once and no capital letter is left: no place, people or other name.

use regex::Regex;

use super::corpus::Gold;
use crate::error::{DataError, Result};
use crate::prepare::bios::nationalities;

/// What a record has that can be unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fact {
    Nationality,
    Born,
    Died,
}

impl Fact {
    pub const ALL: [Self; 3] = [Self::Nationality, Self::Born, Self::Died];

    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nationality => "nationality",
            Self::Born => "born",
            Self::Died => "died",
        }
    }
}

const YEARS: &str = r"\((\s*)(\d{3,4})(\s*[-–]\s*)(\d{3,4})(\s*)\)";
const NUMBER: &str = r"\d{3,}|'\d\d\b|’\d\d\b";
const BIRTH_WORDS: &str = r"(?i)\b(born|birth\w*|aged?|ages|\w*year-old|years? old|infan\w*|prodigy|youngest|oldest|anniversar\w*|century|centenar\w*)\b";
const DEATH_WORDS: &str = r"(?i)\b(die[sd]?|dying|dead|death\w*|kill\w*|assassin\w*|execut\w*|murder\w*|shot|hanged|hung|behead\w*|guillotin\w*|burned|drown\w*|crash\w*|suicide|poison\w*|martyr\w*|siege|battle\w*|war|wars|lived|outlived|surviv\w*|aged?|ages|until|last|end|anniversar\w*|posthum\w*|century|centenar\w*|duel|plague|lost)\b";

/// The patterns, compiled.
#[derive(Debug)]
pub(super) struct Forget {
    years: Regex,
    number: Regex,
    birth: Regex,
    death: Regex,
}

impl Forget {
    pub fn new() -> Result<Self> {
        let compile =
            |pattern: &str| Regex::new(pattern).map_err(|error| DataError::Options(error.to_string()));
        Ok(Self {
            years: compile(YEARS)?,
            number: compile(NUMBER)?,
            birth: compile(BIRTH_WORDS)?,
            death: compile(DEATH_WORDS)?,
        })
    }

    /// The text, in which the person's names are marks, without the fact. `None` if it cannot be taken out for certain.
    pub fn without(&self, text: &str, gold: &Gold, fact: Fact) -> Option<String> {
        match fact {
            Fact::Nationality => without_nationality(text, &gold.nationality),
            Fact::Born | Fact::Died => self.without_year(text, gold, fact),
        }
    }

    fn without_year(&self, text: &str, gold: &Gold, fact: Fact) -> Option<String> {
        let mut found = self.years.captures_iter(text);
        let (years, None) = (found.next()?, found.next()) else { return None };
        let group = |idx: usize| years.get(idx).map_or("", |group| group.as_str());
        if group(2).parse() != Ok(gold.born) || group(4).parse() != Ok(gold.died) {
            return None;
        }
        let whole = years.get(0)?;
        let (before, after) = (text.get(..whole.start())?, text.get(whole.end()..)?);
        let tells = if fact == Fact::Born { &self.birth } else { &self.death };
        if [before, after].iter().any(|part| self.number.is_match(part) || tells.is_match(part)) {
            return None;
        }
        let left =
            if fact == Fact::Born { format!("died {}", gold.died) } else { format!("born {}", gold.born) };
        Some(format!("{before}({}{left}{}){after}", group(1), group(5)))
    }
}

fn without_nationality(text: &str, nationality: &str) -> Option<String> {
    let words: Vec<&str> =
        nationalities().filter(|(_, name)| *name == nationality).map(|(written, _)| written).collect();
    let places: Vec<(usize, &str)> = words.iter().flat_map(|word| text.match_indices(word)).collect();
    let &[(at, word)] = places.as_slice() else { return None };
    let (before, after) = (text.get(..at)?, text.get(at + word.len()..)?);
    // An adjective with its noun behind it: what else can stand there cannot be left out.
    let after = after.strip_prefix(' ')?;
    if !after.starts_with(char::is_lowercase) || !(before.is_empty() || before.ends_with(' ')) {
        return None;
    }
    let rest = after.split_whitespace().next()?;
    if matches!(rest, "and" | "or" | "by" | "in" | "of" | "to" | "who" | "at" | "from" | "as") {
        return None;
    }
    let vowel = after.starts_with(['a', 'e', 'i', 'o', 'u']);
    let article = |before: &str| -> String {
        let indefinite = [" an ", " a "].iter().find(|article| before.ends_with(**article));
        match indefinite {
            Some(written) => {
                let stem = before.get(..before.len() - written.len()).unwrap_or_default();
                format!("{stem}{}", if vowel { " an " } else { " a " })
            }
            None => before.to_owned(),
        }
    };
    let text = format!("{}{after}", article(before));
    (!text.chars().any(char::is_uppercase)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gold() -> Gold {
        Gold {
            nationality: "American".into(),
            born: 1801,
            died: 1870,
            sportsperson: false,
            politician: false,
        }
    }

    #[test]
    fn what_only_the_years_tell_can_be_taken_out() {
        let forget = Forget::new().unwrap();
        let text = "\u{e0d0} ( 1801 - 1870 ) , United States chemist noted for 16 books .";
        let without = |fact| forget.without(text, &gold(), fact);
        assert_eq!(
            without(Fact::Born).unwrap(),
            "\u{e0d0} ( died 1870 ) , United States chemist noted for 16 books ."
        );
        assert_eq!(
            without(Fact::Died).unwrap(),
            "\u{e0d0} ( born 1801 ) , United States chemist noted for 16 books ."
        );
        assert_eq!(
            without(Fact::Nationality).unwrap(),
            "\u{e0d0} ( 1801 - 1870 ) , chemist noted for 16 books ."
        );
        let text = "\u{e0d0} (1801–1870) was an American poet.";
        assert_eq!(
            forget.without(text, &gold(), Fact::Died).unwrap(),
            "\u{e0d0} (born 1801) was an American poet."
        );
        assert_eq!(
            forget.without(text, &gold(), Fact::Nationality).unwrap(),
            "\u{e0d0} (1801–1870) was a poet."
        );
    }

    #[test]
    fn what_something_else_may_tell_stays() {
        let forget = Forget::new().unwrap();
        let has = |text: &str, fact| forget.without(text, &gold(), fact).is_some();
        for text in [
            "x (1801-1870), who was killed",
            "x (1801-1870), champion in 1870",
            "x (1801-1870), of the class of '70",
            "x (1801-1870), y (1801-1870)",
            "x (1802-1870), poet",
            "x, poet",
            "x (1801-1870), who fell in the siege",
            "x (1801-1870), the last bard",
        ] {
            assert!(!has(text, Fact::Died), "{text}");
        }
        for text in
            ["x (1801-1870), born poor", "x (1801-1870), whose birthplace", "x (1801-1870), a child prodigy"]
        {
            assert!(!has(text, Fact::Born), "{text}");
        }
        for text in [
            "x , American poet of Boston",
            "x , American and poet",
            "x , poet",
            "x , American poet, the first American bard",
            "x , an Anglo-American poet",
            "x , the American",
            "x , American Indian chief",
        ] {
            assert!(!has(text, Fact::Nationality), "{text}");
        }
    }
}
