//! The detokenizer and the stop strings, against what they must equal: decoding all at once, and a plain search.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use support::{byte_level_vocab, sentencepiece_vocab};
use wardrobe_text::{
    DetokenizeOptions, DetokenizeStream, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, StopMatch, StopStrings,
    TextError, TokenId, Tokenizer,
};

fn tokenizers() -> [Tokenizer; 2] {
    [byte_level_vocab(), sentencepiece_vocab()].map(|vocab| Tokenizer::from_gguf(vocab).unwrap())
}

#[test]
fn characters_come_whole() {
    let [byte_level, sentencepiece] = tokenizers();
    for (tokenizer, space) in [(byte_level, ""), (sentencepiece, " ")] {
        let ids = tokenizer.encode("a\u{1f600}b", false).unwrap();
        let options = DetokenizeOptions { at_text_start: false, ..DetokenizeOptions::default() };
        let mut stream = DetokenizeStream::new(tokenizer.clone(), options);
        let pushed: Vec<String> = ids.iter().map(|id| stream.push(*id).to_owned()).collect();
        assert_eq!(pushed.iter().filter(|text| text.is_empty()).count(), 3);
        assert_eq!(pushed.concat(), format!("{space}a\u{1f600}b"));
        assert_eq!(stream.flush(), "");
    }
}

#[test]
fn an_incomplete_character_ends_as_a_replacement() {
    let [tokenizer, _] = tokenizers();
    let ids = tokenizer.encode("\u{1f600}", false).unwrap();
    let mut stream = DetokenizeStream::new(tokenizer, DetokenizeOptions::default());
    assert_eq!(stream.push(ids[0]), "");
    assert_eq!(stream.push(ids[1]), "");
    assert_eq!(stream.held_bytes(), 2);
    // A new first byte shows that the two before were no character.
    assert_eq!(stream.push(ids[0]), "\u{fffd}");
    assert_eq!(stream.flush(), "\u{fffd}");
    assert_eq!(stream.held_bytes(), 0);
}

#[test]
fn ids_beyond_the_vocabulary_give_no_text() {
    let [tokenizer, _] = tokenizers();
    let mut stream = DetokenizeStream::new(tokenizer, DetokenizeOptions::default());
    assert_eq!(stream.push(TokenId(u32::MAX)), "");
}

#[test]
fn stop_strings_have_limits() {
    let refused = |strings: &[&str]| matches!(StopStrings::new(strings), Err(TextError::StopStrings { .. }));
    assert!(refused(&["a", ""]));
    assert!(refused(&[&"x".repeat(MAX_STOP_STRING_BYTES + 1)]));
    assert!(refused(&vec!["x"; MAX_STOP_STRINGS + 1]));
    let most = StopStrings::new(vec!["x".repeat(MAX_STOP_STRING_BYTES); MAX_STOP_STRINGS]).unwrap();
    assert_eq!(most.iter().count(), MAX_STOP_STRINGS);
    let none = StopStrings::new(Vec::<String>::new()).unwrap();
    assert!(none.is_empty());
    assert_eq!(none.matcher(false).push("text").text, "text");
}

#[test]
fn the_first_end_wins_and_then_the_longest() {
    let stops = StopStrings::new(["abcd", "bc", "abc"]).unwrap();
    let mut matcher = stops.matcher(false);
    let output = matcher.push("xxabcd");
    assert_eq!(output.text, "xx");
    assert_eq!(output.matched, Some(StopMatch { index: 2, start_byte: 2, end_byte: 5 }));
    assert_eq!(matcher.push("more").text, "");
    assert_eq!(matcher.finish(), "");
}

#[test]
fn text_that_may_stop_is_held() {
    let stops = StopStrings::new(["\n\nUser:", "<end>"]).unwrap();
    let mut matcher = stops.matcher(true);
    assert_eq!(matcher.push("Hi\n").text, "Hi");
    assert_eq!(matcher.push("\nUs").text, "");
    assert_eq!(matcher.held(), "\n\nUs");
    assert_eq!(matcher.push("e <").text, "\n\nUse ");
    assert_eq!(matcher.finish(), "<");
    let mut matcher = stops.matcher(true);
    assert_eq!(matcher.push("a<end>b").text, "a<end>");
}

/// What a search over the whole text finds.
fn search(text: &str, stops: &[String]) -> Option<StopMatch> {
    (1..=text.len()).find_map(|end_byte| {
        let mut best: Option<StopMatch> = None;
        for (index, stop) in stops.iter().enumerate() {
            if text.as_bytes()[..end_byte].ends_with(stop.as_bytes()) {
                let start_byte = end_byte - stop.len();
                if best.is_none_or(|best| start_byte < best.start_byte) {
                    best = Some(StopMatch { index, start_byte, end_byte });
                }
            }
        }
        best
    })
}

/// Cuts a text at the characters that `cuts` names.
fn pieces<'t>(text: &'t str, cuts: &[usize]) -> Vec<&'t str> {
    let mut starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    starts.push(text.len());
    let mut chosen: Vec<usize> = cuts.iter().map(|cut| starts[cut % starts.len()]).collect();
    chosen.extend([0, text.len()]);
    chosen.sort_unstable();
    chosen.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn stream_equals_decode(ids in prop::collection::vec(0u32..290, 0..40), style in 0usize..2, skip_special: bool) {
        thread_local!(static TOKENIZERS: [Tokenizer; 2] = tokenizers());
        let tokenizer = TOKENIZERS.with(|tokenizers| tokenizers[style].clone());
        let ids: Vec<TokenId> = ids.into_iter().map(|id| TokenId(id % tokenizer.vocab_size() as u32)).collect();
        let options = DetokenizeOptions { skip_special, at_text_start: true };
        let mut stream = DetokenizeStream::new(tokenizer.clone(), options);
        let mut text = String::new();
        let mut bytes = Vec::new();
        for id in &ids {
            text.push_str(stream.push(*id));
            prop_assert!(stream.held_bytes() < 4);
            if !(skip_special && tokenizer.is_special(*id)) {
                bytes.extend_from_slice(tokenizer.token_bytes(*id).unwrap());
            }
        }
        text.push_str(stream.flush());
        prop_assert_eq!(&text, &tokenizer.decode(&ids, skip_special).unwrap());
        // And both are the tokens' bytes, but for the space that starts a SentencePiece text.
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        prop_assert_eq!(&text, if style == 1 { whole.strip_prefix(' ').unwrap_or(&whole) } else { &whole });
    }

    #[test]
    fn stops_equal_a_search(
        text in "[abc\u{e9}\u{4e00}]{0,24}",
        stops in prop::collection::vec("[abc\u{e9}\u{4e00}]{1,5}", 0..5),
        cuts in prop::collection::vec(0usize..30, 0..12),
        include_stop: bool,
    ) {
        let mut matcher = StopStrings::new(&stops).unwrap().matcher(include_stop);
        let expected = search(&text, &stops);
        let mut shown = String::new();
        let mut matched = None;
        for piece in pieces(&text, &cuts) {
            let output = matcher.push(piece);
            shown.push_str(&output.text);
            matched = output.matched;
            if matched.is_some() {
                break;
            }
            // Nothing is shown that could still be part of a stop string, and nothing else is held.
            let held = matcher.held();
            prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
        }
        shown.push_str(&matcher.finish());
        prop_assert_eq!(matched, expected);
        prop_assert_eq!(matcher.found(), expected);
        let end = expected.map_or(text.len(), |found| if include_stop { found.end_byte } else { found.start_byte });
        prop_assert_eq!(shown, &text[..end]);
    }
}
