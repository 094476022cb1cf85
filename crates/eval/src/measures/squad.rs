//! What two short answers have in common, as SQuAD's evaluation sees it (Rajpurkar et al., 2016): normalised texts, and the
//! words that they share.

use std::collections::HashMap;

use crate::settings::Ignored;

/// A text without what is ignored. White space around it never counts.
pub fn normalized(text: &str, ignored: Ignored) -> String {
    let mut text = text.trim().to_owned();
    if ignored.case {
        text = text.to_lowercase();
    }
    if ignored.punctuation {
        text.retain(|c| !c.is_ascii_punctuation());
    }
    if ignored.digits {
        text.retain(|c| !c.is_ascii_digit());
    }
    if ignored.articles {
        text = without_articles(&text);
    }
    if ignored.space {
        return text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    text.trim().to_owned()
}

/// A space for each `a`, `an` and `the` that stands alone: between characters that are neither letters, digits nor `_`.
fn without_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars().map(Some).chain([None]) {
        match c {
            Some(c) if c.is_alphanumeric() || c == '_' => word.push(c),
            other => {
                out.push_str(if matches!(word.as_str(), "a" | "an" | "the") { " " } else { &word });
                word.clear();
                out.extend(other);
            }
        }
    }
    out
}

/// F1 over the words of two normalised texts, each as often as it is there. It is 0 where one has none, and also where
/// both have none.
pub fn token_f1(gold: &str, answer: &str) -> f64 {
    let (gold, answer) = (normalized(gold, Ignored::SQUAD), normalized(answer, Ignored::SQUAD));
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in gold.split_whitespace() {
        *counts.entry(word).or_default() += 1;
    }
    let num_gold = counts.values().sum::<usize>();
    let (mut num_answer, mut num_same) = (0usize, 0usize);
    for word in answer.split_whitespace() {
        num_answer += 1;
        if let Some(left) = counts.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            num_same += 1;
        }
    }
    match num_same {
        0 => 0.0,
        same => {
            let (precision, recall) = (same as f64 / num_answer as f64, same as f64 / num_gold as f64);
            2.0 * precision * recall / (precision + recall)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_gone() {
        assert_eq!(
            normalized("  The  Café, a man's \n best-friend. ", Ignored::SQUAD),
            "café mans bestfriend"
        );
        assert_eq!(normalized(" The  End. ", Ignored::NOTHING), "The  End.");
        assert_eq!(normalized("an apple", Ignored { articles: true, ..Ignored::NOTHING }), "apple");
        assert_eq!(normalized("Route 66", Ignored { digits: true, ..Ignored::NOTHING }), "Route");
        assert_eq!(normalized("the_a the-a", Ignored { articles: true, ..Ignored::NOTHING }), "the_a  -");
    }

    #[test]
    fn words_count_as_often_as_they_are_there() {
        assert_eq!(token_f1("new new york", "New York"), 0.8);
        assert_eq!(token_f1("york", "York, York"), 2.0 / 3.0);
        assert_eq!((token_f1("the", ""), token_f1("x", "")), (0.0, 0.0));
    }
}
