//! Porter's stemmer ("An algorithm for suffix stripping", 1980) with the departures that NLTK's has by default, since that is
//! the one in which ROUGE is reported.
//!
//! Words are of ASCII small letters and digits; a digit counts as a consonant.

/// A rule: an ending, what replaces it, and on what condition on what is left. The first whose ending fits decides.
type Rule = (&'static str, &'static str, fn(&[u8]) -> bool);

const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

const STEP_1A: [Rule; 4] = [("sses", "ss", any), ("ies", "i", any), ("ss", "ss", any), ("s", "", any)];

const STEP_2: [Rule; 21] = [
    ("ational", "ate", over_0),
    ("tional", "tion", over_0),
    ("enci", "ence", over_0),
    ("anci", "ance", over_0),
    ("izer", "ize", over_0),
    ("bli", "ble", over_0),
    ("alli", "al", over_0),
    ("entli", "ent", over_0),
    ("eli", "e", over_0),
    ("ousli", "ous", over_0),
    ("ization", "ize", over_0),
    ("ation", "ate", over_0),
    ("ator", "ate", over_0),
    ("alism", "al", over_0),
    ("iveness", "ive", over_0),
    ("fulness", "ful", over_0),
    ("ousness", "ous", over_0),
    ("aliti", "al", over_0),
    ("iviti", "ive", over_0),
    ("biliti", "ble", over_0),
    ("fulli", "ful", over_0),
];

const STEP_3: [Rule; 7] = [
    ("icate", "ic", over_0),
    ("ative", "", over_0),
    ("alize", "al", over_0),
    ("iciti", "ic", over_0),
    ("ical", "ic", over_0),
    ("ful", "", over_0),
    ("ness", "", over_0),
];

const STEP_4: [Rule; 19] = [
    ("al", "", over_1),
    ("ance", "", over_1),
    ("ence", "", over_1),
    ("er", "", over_1),
    ("ic", "", over_1),
    ("able", "", over_1),
    ("ible", "", over_1),
    ("ant", "", over_1),
    ("ement", "", over_1),
    ("ment", "", over_1),
    ("ent", "", over_1),
    ("ion", "", |left| over_1(left) && matches!(left.last(), Some(b's' | b't'))),
    ("ou", "", over_1),
    ("ism", "", over_1),
    ("ate", "", over_1),
    ("iti", "", over_1),
    ("ous", "", over_1),
    ("ive", "", over_1),
    ("ize", "", over_1),
];

/// The stem of a word of ASCII small letters and digits.
pub(crate) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    let mut word = word.as_bytes().to_vec();
    if word.len() > 2 {
        step_1a(&mut word);
        step_1b(&mut word);
        // Porter asks for a vowel before the y; here one consonant right before it is asked for, and another letter.
        replace(&mut word, &[("y", "i", |left| left.len() > 1 && last_is_consonant(left))]);
        step_2(&mut word);
        replace(&mut word, &STEP_3);
        replace(&mut word, &STEP_4);
        step_5(&mut word);
    }
    // Endings are ASCII, so what is left of a text is one.
    String::from_utf8(word).unwrap_or_default()
}

fn step_1a(word: &mut Vec<u8>) {
    if word.len() == 4 && word.ends_with(b"ies") {
        word.truncate(3);
    } else {
        replace(word, &STEP_1A);
    }
}

fn step_1b(word: &mut Vec<u8>) {
    if word.ends_with(b"ied") {
        let left = if word.len() == 4 { word.len() - 1 } else { word.len() - 2 };
        return word.truncate(left);
    }
    if let Some(left) = word.strip_suffix(b"eed") {
        if over_0(left) {
            word.truncate(word.len() - 1);
        }
        return;
    }
    let stripped = [&b"ed"[..], b"ing"].into_iter().find_map(|ending| {
        let left = word.strip_suffix(ending)?;
        consonants(left).any(|is| !is).then_some(left.len())
    });
    let Some(left) = stripped else { return };
    word.truncate(left);
    let ends_at_e = [&b"at"[..], b"bl", b"iz"].iter().any(|ending| word.ends_with(ending));
    let is_double = matches!(word.as_slice(), [.., a, b] if a == b) && last_is_consonant(word);
    if is_double && !ends_at_e {
        if !matches!(word.last(), Some(b'l' | b's' | b'z')) {
            word.pop();
        }
    } else if ends_at_e || (measure(word) == 1 && ends_cvc(word)) {
        word.push(b'e');
    }
}

fn step_2(word: &mut Vec<u8>) {
    // What ends in "alli" goes through the step again as one that ends in "al".
    if word.strip_suffix(b"alli").is_some_and(over_0) {
        word.truncate(word.len() - 2);
        return step_2(word);
    }
    if STEP_2.iter().any(|(ending, _, _)| word.ends_with(ending.as_bytes())) {
        return replace(word, &STEP_2);
    }
    // The l counts to what has to be long enough.
    if word.ends_with(b"logi")
        && word.len().checked_sub(3).and_then(|len| word.get(..len)).is_some_and(over_0)
    {
        word.pop();
    }
}

fn step_5(word: &mut Vec<u8>) {
    if let Some(left) = word.strip_suffix(b"e") {
        let m = measure(left);
        if m > 1 || (m == 1 && !ends_cvc(left)) {
            word.pop();
        }
    }
    if word.ends_with(b"ll") && word.get(..word.len() - 1).is_some_and(over_1) {
        word.pop();
    }
}

fn replace(word: &mut Vec<u8>, rules: &[Rule]) {
    for (ending, replacement, condition) in rules {
        if let Some(left) = word.strip_suffix(ending.as_bytes()) {
            if condition(left) {
                let left = left.len();
                word.truncate(left);
                word.extend_from_slice(replacement.as_bytes());
            }
            return;
        }
    }
}

fn any(_: &[u8]) -> bool {
    true
}

fn over_0(left: &[u8]) -> bool {
    measure(left) > 0
}

fn over_1(left: &[u8]) -> bool {
    measure(left) > 1
}

/// Which characters are consonants: a y is one at the beginning and after a vowel.
fn consonants(word: &[u8]) -> impl Iterator<Item = bool> + '_ {
    word.iter().scan(false, |before, byte| {
        *before = match byte {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !*before,
            _ => true,
        };
        Some(*before)
    })
}

/// How often a vowel is followed by a consonant.
fn measure(word: &[u8]) -> usize {
    let mut before = true;
    consonants(word).filter(|is| std::mem::replace(&mut before, *is) != *is && *is).count()
}

fn last_is_consonant(word: &[u8]) -> bool {
    consonants(word).last().unwrap_or(false)
}

/// Consonant, vowel, consonant other than w, x and y; or two letters, a vowel and a consonant.
fn ends_cvc(word: &[u8]) -> bool {
    let kinds: Vec<bool> = consonants(word).collect();
    match kinds.as_slice() {
        [false, true] => true,
        [.., true, false, true] => !matches!(word.last(), Some(b'w' | b'x' | b'y')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_paper() {
        for (word, expected) in [
            ("caresses", "caress"),
            ("ponies", "poni"),
            ("cats", "cat"),
            ("agreed", "agre"),
            ("plastered", "plaster"),
            ("motoring", "motor"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("happy", "happi"),
            ("vietnamization", "vietnam"),
            ("generalizations", "gener"),
            ("oscillators", "oscil"),
            ("replacement", "replac"),
            ("adoption", "adopt"),
            ("controlling", "control"),
            ("skies", "sky"),
            ("dies", "die"),
            ("by", "by"),
            ("yyyy", "yyyi"),
            ("", ""),
        ] {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
