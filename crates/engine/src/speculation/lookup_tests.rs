use proptest::prelude::*;

use super::*;

fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().map(|id| TokenId(*id)).collect()
}

/// The longest past of any place, by comparing all of them, for each continuation.
fn longest(tokens: &[TokenId], draft: &[TokenId], next: TokenId) -> usize {
    let text: Vec<TokenId> = tokens.iter().chain(draft).copied().collect();
    let past = |at: usize| {
        let (before, end) = (&text[..at], &text[..]);
        before.iter().rev().zip(end.iter().rev()).take_while(|(a, b)| a == b).count().min(MAX_PAST)
    };
    (1..tokens.len()).filter(|at| text[*at] == next).map(past).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn places_are_what_they_say_and_the_longest(
        tokens in prop::collection::vec(0_u32..6, 1..60),
        draft in prop::collection::vec(0_u32..6, 0..6),
        cut in 0_usize..60,
    ) {
        let (tokens, draft) = (ids(&tokens), ids(&draft));
        let mut lookup = Lookup::default();
        lookup.extend(&tokens[..cut.min(tokens.len())]);
        lookup.extend(&tokens);
        prop_assert_eq!(lookup.indexed, tokens.len());
        let text = Text { tokens: &tokens, draft: &draft };
        let found: Vec<Place> = lookup.places(text).into_iter().flatten().collect();
        prop_assert!(found.is_sorted_by(|a, b| a.past >= b.past));
        let all: Vec<TokenId> = tokens.iter().chain(&draft).copied().collect();
        for (idx, place) in found.iter().enumerate() {
            let next = tokens[place.at];
            prop_assert!(found[..idx].iter().all(|other| tokens[other.at] != next), "a continuation twice");
            prop_assert!(place.past > 0 && place.past <= place.at);
            prop_assert_eq!(&all[place.at - place.past..place.at], &all[all.len() - place.past..]);
        }
        // Few enough places that none is left out for its age.
        if tokens.len() <= MAX_LINKS {
            let best = (0..6).map(|next| longest(&tokens, &draft, TokenId(next))).max().unwrap();
            prop_assert_eq!(found.first().map_or(0, |place| place.past), best);
        }
    }
}

#[test]
fn a_long_text_is_bounded_and_its_end_is_found() {
    let mut lookup = Lookup::default();
    let token = |i: usize| TokenId((i * i % 65_537) as u32);
    let mut tokens: Vec<TokenId> = (0..WINDOW * 3).map(token).collect();
    lookup.extend(&tokens);
    assert!(lookup.links.len() <= WINDOW && lookup.pairs.len() <= WINDOW);
    for i in 0..WINDOW + 2 {
        tokens.push(token(7 * i));
        if i % 1000 == 0 {
            lookup.extend(&tokens);
            assert!(lookup.links.len() <= 2 * WINDOW);
        }
    }
    lookup.extend(&tokens);
    assert!(lookup.links.len() <= 2 * WINDOW);
    let end = tokens.len();
    tokens.extend(tokens[end - 40..end - 10].to_vec());
    lookup.extend(&tokens);
    let place = lookup.places(Text { tokens: &tokens, draft: &[] })[0].unwrap();
    assert_eq!((place.at, place.past), (end - 10, 30));
}
