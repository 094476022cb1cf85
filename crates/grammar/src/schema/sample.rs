//! A short text that a pattern matches: what a search for the end of a string tries where it would not come upon it.

use regex_syntax::hir::{Class, Hir, HirKind};

/// Longer texts are not worth a try.
const MAX_BYTES: usize = 4096;

/// The most alternatives of a pattern that are looked at.
const MAX_ALTERNATIVES: usize = 8;

/// One of the shortest texts that match each of the pattern's alternatives, as far as it is understood.
pub(super) fn shortest(pattern: &str) -> Vec<String> {
    let parsed = regex_syntax::ParserBuilder::new().nest_limit(64).build().parse(pattern);
    let Ok(hir) = parsed else { return Vec::new() };
    match hir.kind() {
        HirKind::Alternation(ways) => ways.iter().take(MAX_ALTERNATIVES).filter_map(of).collect(),
        _ => of(&hir).into_iter().collect(),
    }
}

fn of(hir: &Hir) -> Option<String> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Some(String::new()),
        HirKind::Literal(literal) => String::from_utf8(literal.0.to_vec()).ok(),
        HirKind::Class(Class::Unicode(class)) => {
            let has = |c: char| class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&c));
            let plain = ['a', '0', 'A', '-', '_'].into_iter().find(|c| has(*c));
            Some(plain.or(class.ranges().first().map(|range| range.start()))?.to_string())
        }
        HirKind::Class(Class::Bytes(class)) => {
            let first = class.ranges().first()?.start();
            first.is_ascii().then(|| char::from(first).to_string())
        }
        HirKind::Repetition(repetition) => {
            let one = if repetition.min == 0 { String::new() } else { of(&repetition.sub)? };
            let min = repetition.min as usize;
            (one.len().saturating_mul(min) <= MAX_BYTES).then(|| one.repeat(min))
        }
        HirKind::Capture(capture) => of(&capture.sub),
        HirKind::Concat(parts) => {
            let mut text = String::new();
            for part in parts {
                text.push_str(&of(part)?);
                if text.len() > MAX_BYTES {
                    return None;
                }
            }
            Some(text)
        }
        HirKind::Alternation(ways) => ways.iter().filter_map(of).min_by_key(String::len),
    }
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[test]
    fn samples_match_their_patterns() {
        for pattern in [
            "wifi",
            r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}$",
            r"^([a-z0-9-]+):([a-z0-9\.-]+):([a-z0-9-]+)?$",
            "(foo|ba)+[^a]x{3,}",
            r"^$",
            r"[\u{1F600}-\u{1F64F}]",
        ] {
            let texts = shortest(pattern);
            assert!(!texts.is_empty(), "{pattern}");
            let regex = regex_automata::meta::Regex::new(pattern).unwrap();
            assert!(texts.iter().all(|text| regex.is_match(text)), "{pattern}: {texts:?}");
        }
        assert_eq!(shortest("(a|bcd|)x"), ["x"]);
        assert_eq!(shortest("^zip|tar$"), ["zip", "tar"]);
        assert!(shortest("(?=a)b").is_empty());
        assert!(shortest("a{5000}").is_empty());
    }
}
