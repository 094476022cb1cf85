//! Whose name stands where in a text, so that another can be put there.
//!
//! A [`Template`] is a text with marks for the mentions of one person. A mention is a run of the person's own words: all
//! of the name, a first name, a surname, in the case of the name, in capitals, or, for two words and more, in small
//! letters. What follows, as in a possessive, stays.

use std::collections::BTreeSet;

use crate::prepare::bios::TITLES;

/// Words after a name that are no part of it.
const SUFFIXES: [&str; 16] =
    ["jr", "jr.", "sr", "sr.", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"];
/// Words before a surname that are no first name of somebody else.
const HARMLESS: &str = "the a an in at on by for from when after before while as with but and or his her their to of then \
    thus there this that these those since until because although though so yet if where who what how why also even once \
    later both only mr mrs ms dr sir president general captain professor bishop pope saint senator judge";
/// Marks, from a block of Unicode that no text has a use for.
const FIRST_MARK: char = '\u{e0d0}';
const STYLES: u32 = 3;
const KINDS: u32 = 3;

/// What of a name a mention has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Full,
    First,
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    AsIs,
    Upper,
    Lower,
}

fn mark(part: Part, style: Style) -> char {
    let offset = part as u32 * STYLES + style as u32;
    char::from_u32(FIRST_MARK as u32 + offset).unwrap_or(FIRST_MARK)
}

fn of_mark(c: char) -> Option<(Part, Style)> {
    let offset = (c as u32).checked_sub(FIRST_MARK as u32).filter(|offset| *offset < STYLES * KINDS)?;
    let part = [Part::Full, Part::First, Part::Last].get((offset / STYLES) as usize).copied()?;
    let style = [Style::AsIs, Style::Upper, Style::Lower].get((offset % STYLES) as usize).copied()?;
    Some((part, style))
}

/// The words of a person's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnNames {
    lasts: BTreeSet<String>,
    others: BTreeSet<String>,
    /// Those of the others that mean the person by themselves: what a name with the usual surname begins with.
    firsts: BTreeSet<String>,
    /// Whether the usual name is one first name or more and a surname, and no name has a number or a suffix.
    pub is_plain: bool,
}

/// A text with marks in the place of a person's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pub text: String,
    /// Whether a mention may be of somebody else: a surname after another person's first name, or the other way round.
    pub is_ambiguous: bool,
    /// Whether the whole name stands somewhere.
    pub has_full_name: bool,
}

impl OwnNames {
    /// Of all names that a person has, the usual one first. `None` if there is none.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut own =
            Self { lasts: BTreeSet::new(), others: BTreeSet::new(), firsts: BTreeSet::new(), is_plain: true };
        let is_title = |word: &str| {
            let word = word.to_lowercase();
            TITLES.split_whitespace().chain(HARMLESS.split_whitespace()).any(|title| title == word)
        };
        let mut usual = None;
        for (idx, name) in names.into_iter().enumerate() {
            let all: Vec<&str> = name.split_whitespace().collect();
            let mut words: Vec<&str> = all.iter().filter(|word| !is_title(word)).copied().collect();
            while words.len() > 1
                && words.last().is_some_and(|word| SUFFIXES.contains(&word.to_lowercase().as_str()))
            {
                words.pop();
                own.is_plain = false;
            }
            own.is_plain &= idx > 0 || (words.len() > 1 && words.len() == all.len());
            let Some((last, others)) = words.split_last() else { continue };
            if *usual.get_or_insert(*last) == *last {
                own.firsts.extend(others.first().map(|word| (*word).to_owned()));
            }
            own.lasts.insert((*last).to_owned());
            own.others.extend(others.iter().map(|word| (*word).to_owned()));
        }
        // A surname that is also somebody's first name is a surname.
        own.others.retain(|word| !own.lasts.contains(word));
        (!own.lasts.is_empty()).then_some(own)
    }

    /// The first and the last word of a plain name.
    pub fn ends(name: &str) -> Option<(&str, &str)> {
        let words: Vec<&str> = name.split_whitespace().collect();
        let is_title = |word: &&str| TITLES.split_whitespace().any(|title| title == word.to_lowercase());
        let (first, last) = (*words.first()?, *words.last()?);
        let fits = |word: &str| word.chars().count() > 2 && word.chars().all(char::is_alphabetic);
        let is_alike =
            |word: &&str| word.starts_with(char::is_lowercase) == first.starts_with(char::is_lowercase);
        let is_plain = words.iter().all(|word| is_alike(word) && !is_title(word));
        (words.len() > 1 && fits(first) && fits(last) && is_plain).then_some((first, last))
    }

    /// The longest own word that `rest` begins with, as far as a word ends there: the word, its bytes there, whether it is
    /// a surname and in which case it stands.
    fn word_at(&self, rest: &str) -> Option<(&str, usize, bool, Style)> {
        let mut found: Option<(&str, usize, bool, Style)> = None;
        let words =
            self.lasts.iter().map(|word| (word, true)).chain(self.others.iter().map(|word| (word, false)));
        for (word, is_last) in words {
            for (form, style) in [
                (word.clone(), Style::AsIs),
                (word.to_uppercase(), Style::Upper),
                (word.to_lowercase(), Style::Lower),
            ] {
                let ends = rest.strip_prefix(form.as_str()).is_some_and(|after| {
                    form.ends_with('.') || !after.starts_with(|c: char| c.is_alphanumeric())
                });
                if ends && found.is_none_or(|(_, bytes, _, _)| form.len() > bytes) {
                    found = Some((word, form.len(), is_last, style));
                }
            }
        }
        found
    }

    /// The run of own words that `rest` begins with, each once and a surname last: its bytes, what of the name it has, in
    /// which case.
    fn run_at(&self, rest: &str) -> Option<(usize, Part, Style)> {
        let (mut bytes, mut seen) = (0, Vec::new());
        let (mut has_last, mut has_other, mut has_whole_other) = (false, false, false);
        let (mut all_upper, mut all_lower) = (true, true);
        while let Some(after) = rest.get(bytes..) {
            let gap = after.len() - after.trim_start().len();
            let is_first = seen.is_empty();
            if has_last || is_first != (gap == 0) {
                break;
            }
            let Some((own, length, is_last, style)) = self.word_at(after.trim_start()) else { break };
            if seen.contains(&own) {
                break;
            }
            seen.push(own);
            let word = after.get(gap..gap + length).unwrap_or_default();
            // Small letters, where the name has others, are a word like any other, unless more of the name follows.
            all_lower &= style == Style::Lower;
            all_upper &= style == Style::Upper || word.chars().count() < 2;
            has_last |= is_last;
            has_other |= !is_last;
            has_whole_other |=
                self.firsts.contains(own) && own.chars().filter(|c| c.is_alphanumeric()).count() > 1;
            bytes += gap + length;
        }
        let style = if all_upper {
            Style::Upper
        } else if all_lower {
            Style::Lower
        } else {
            Style::AsIs
        };
        let part = match (has_other, has_last) {
            (true, true) => Part::Full,
            (false, true) => Part::Last,
            (true, false) if has_whole_other => Part::First,
            _ => return None,
        };
        (seen.len() > 1 || !all_lower).then_some((bytes, part, style))
    }
}

impl Template {
    /// Marks the mentions of a person. `None` if the text has a character that is taken for a mark.
    pub fn new(text: &str, own: &OwnNames) -> Option<Self> {
        if text.chars().any(|c| of_mark(c).is_some()) {
            return None;
        }
        let mut template = Self { text: String::new(), is_ambiguous: false, has_full_name: false };
        let mut at = 0;
        let mut before = None;
        while let Some(rest) = text.get(at..)
            && let Some(c) = rest.chars().next()
        {
            let is_start = !before.is_some_and(char::is_alphanumeric);
            let Some((bytes, part, style)) = own.run_at(rest).filter(|_| is_start) else {
                template.text.push(c);
                before = Some(c);
                at += c.len_utf8();
                continue;
            };
            let after = rest.get(bytes..).unwrap_or_default();
            let is_of_others = match part {
                Part::Full => false,
                Part::Last => follows_first_name(&template.text),
                // The first name of somebody else, or their surname.
                Part::First => {
                    before == Some('-')
                        || precedes_surname(after)
                        || (follows_first_name(&template.text) && !follows_first_word(&template.text))
                }
            };
            template.is_ambiguous |= is_of_others;
            if is_of_others && part == Part::First {
                template.text.push_str(rest.get(..bytes).unwrap_or_default());
            } else {
                template.has_full_name |= part == Part::Full;
                template.text.push(mark(part, style));
            }
            before = Some('x');
            at += bytes;
        }
        Some(template)
    }

    /// The text with another name in the places of the marks.
    pub fn render(&self, first: &str, last: &str) -> String {
        let mut out = String::with_capacity(self.text.len() + 64);
        for c in self.text.chars() {
            let Some((part, style)) = of_mark(c) else {
                out.push(c);
                continue;
            };
            let name = match part {
                Part::Full => format!("{first} {last}"),
                Part::First => first.to_owned(),
                Part::Last => last.to_owned(),
            };
            out.push_str(&match style {
                Style::AsIs => name,
                Style::Upper => name.to_uppercase(),
                Style::Lower => name.to_lowercase(),
            });
        }
        out
    }

    /// Whether a surname of the person is left in it, as a word in the name's own case or in capitals.
    pub fn has_rest_of(&self, own: &OwnNames) -> bool {
        own.lasts.iter().any(|last| {
            has_word(&self.text, last)
                || (last.chars().count() > 1 && has_word(&self.text, &last.to_uppercase()))
        })
    }
}

/// Whether `word` stands in a text by itself.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

/// Whether the text so far ends with a capitalised word and a space, which may be a first name.
fn follows_first_name(text: &str) -> bool {
    let Some(text) = text.strip_suffix(' ') else { return false };
    let word = text.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let is_harmless = HARMLESS.split_whitespace().any(|harmless| harmless == word.to_lowercase());
    word.starts_with(char::is_uppercase) && !is_harmless
}

/// Whether the text so far ends with the first word of a sentence, which has its capital letter from that.
fn follows_first_word(text: &str) -> bool {
    let text = text.trim_end().trim_end_matches(char::is_alphanumeric).trim_end();
    text.is_empty() || text.ends_with(['.', '!', '?', ';', ':'])
}

/// Whether a capitalised word follows a space.
fn precedes_surname(text: &str) -> bool {
    text.strip_prefix(' ').is_some_and(|rest| rest.starts_with(char::is_uppercase))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn swapped(names: &[&str], text: &str) -> String {
        let own = OwnNames::new(names.iter().copied()).unwrap();
        Template::new(text, &own).unwrap().render("Tessa", "Quill")
    }

    #[test]
    fn every_mention_is_renamed_in_its_case() {
        let names = ["Ada Mary Brack", "Brack", "A. M. Brack"];
        for (text, expected) in [
            ("Ada Mary Brack was born.", "Tessa Quill was born."),
            ("Ada Brack (1801-1870)", "Tessa Quill (1801-1870)"),
            ("Brack's odes; BRACK'S odes", "Quill's odes; QUILL'S odes"),
            ("ADA BRACK and ada brack", "TESSA QUILL and tessa quill"),
            ("Ada grew up. Then Ada's aunt", "Tessa grew up. Then Tessa's aunt"),
            ("A. M. Brack; A. Brack; Mr. Brack", "Tessa Quill; Tessa Quill; Mr. Quill"),
            ("the Brack-Smith law", "the Quill-Smith law"),
            ("Ada\nMary Brack", "Tessa Quill"),
            // No mentions: parts of words, small letters alone, initials alone, first names of others.
            ("Bracken brack Adam adage", "Bracken brack Adam adage"),
            ("vitamin A. or M. tuberculosis", "vitamin A. or M. tuberculosis"),
            ("Ada Lovelace taught her", "Ada Lovelace taught her"),
        ] {
            assert_eq!(swapped(&names, text), expected, "{text}");
        }
        assert_eq!(swapped(&["Antoine de Saint-Exupéry"], "Saint-Exupéry flew; ÉTÉ"), "Quill flew; ÉTÉ");
        assert_eq!(
            swapped(&["ada brack"], "ada brack ( 1801 ) , brack's law"),
            "Tessa Quill ( 1801 ) , Quill's law"
        );
    }

    #[test]
    fn mentions_that_may_be_of_others_are_told() {
        let own = OwnNames::new(["Ada Brack"]).unwrap();
        let is_ambiguous = |text: &str| Template::new(text, &own).unwrap().is_ambiguous;
        assert!(is_ambiguous("wife of Henry Brack"));
        assert!(is_ambiguous("taught by Ada Lovelace"));
        assert!(is_ambiguous("friend of Jean-Ada"));
        assert!(!is_ambiguous("In Brack's time Ada Brack wrote. When Brack wrote, Ada sang"));
    }

    #[test]
    fn plain_names_have_a_first_and_a_last_word() {
        let plain = |names: &[&str]| OwnNames::new(names.iter().copied()).is_some_and(|own| own.is_plain);
        assert!(plain(&["Ada Brack", "Brack"]) && plain(&["Ada Brack", "President Brack"]));
        assert!(!plain(&["Brack"]) && !plain(&["George V"]) && !plain(&["Queen Ada Brack"]));
        assert!(!plain(&["Ada Brack Jr."]) && !plain(&[]) && !plain(&[" "]));
        assert_eq!(OwnNames::ends("Ada Mary Brack"), Some(("Ada", "Brack")));
        for name in ["Brack", "Ada B", "A. Brack", "Lady Brack", "Ada O'Neill", "Sultan of Swat"] {
            assert_eq!(OwnNames::ends(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_taken_for_a_mark_is_refused() {
        let own = OwnNames::new(["Ada Brack"]).unwrap();
        assert_eq!(Template::new("a \u{e0d3} b", &own), None);
        let template = Template::new("Ada Brack, of Brackton", &own).unwrap();
        assert!(template.has_full_name && !template.has_rest_of(&own));
    }

    proptest! {
        #[test]
        fn no_surname_is_left_and_nothing_else_is_touched(
            words in prop::collection::vec("[a-z]{1,8}|Ada|Brack|ADA|BRACK|Brack's|Ada Brack|É|\\(|,|Ada-|-Brack", 0..30),
        ) {
            let text = words.join(" ");
            let own = OwnNames::new(["Ada Brack"]).unwrap();
            let template = Template::new(&text, &own).unwrap();
            prop_assert!(!template.has_rest_of(&own), "{}", template.text);
            // With the name itself in the places of the marks the text is what it was, but for a first name and a surname
            // that became one mention.
            prop_assert_eq!(template.render("Ada", "Brack").to_lowercase(), text.replace("ADA Brack", "Ada Brack").to_lowercase());
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}", name in "\\PC{0,20}") {
            if let Some(own) = OwnNames::new([name.as_str()])
                && let Some(template) = Template::new(&text, &own)
            {
                template.render(&name, &text);
                template.has_rest_of(&own);
            }
        }
    }
}
