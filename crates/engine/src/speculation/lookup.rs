//! Where a sequence's text came before: the look-up that drafts are read off.
//!
//! Chains of positions, as LZ77 compressors have them (RFC 1951, section 4): one for every pair of tokens, the latest first, and
//! for every single token its latest place. Of a few links of a chain the longest common past wins. A token costs two entries
//! of a table and one link; text further back than a window is forgotten.

use std::collections::HashMap;

use crate::ids::TokenId;

/// Links of a chain that are looked at.
const MAX_LINKS: usize = 16;
/// The longest common past that is told from a longer one.
pub(super) const MAX_PAST: usize = 32;
/// Continuations, with different tokens, that a search gives.
pub(super) const MAX_PLACES: usize = 3;
/// Tokens that can be found, at least; twice as many may be held.
const WINDOW: usize = 1 << 16;

/// A place in the text whose past is like the text's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the token that follows there.
    pub at: usize,
    /// Tokens before it that are the same.
    pub past: usize,
}

/// The index over a text that grows at its end. The text itself is the caller's.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Tokens that are in the index.
    indexed: usize,
    /// The first of them that can be found.
    first: usize,
    pairs: HashMap<(TokenId, TokenId), u32>,
    singles: HashMap<TokenId, u32>,
    /// For each token from `first` on, the place before with the same pair of tokens in front of it; 0 is none.
    links: Vec<u32>,
}

/// A text and a draft after it.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub tokens: &'a [TokenId],
    pub draft: &'a [TokenId],
}

impl Text<'_> {
    pub fn len(&self) -> usize {
        self.tokens.len() + self.draft.len()
    }

    pub fn get(&self, idx: usize) -> Option<TokenId> {
        let (tokens, draft) = (self.tokens, self.draft);
        tokens.get(idx).or_else(|| draft.get(idx.checked_sub(tokens.len())?)).copied()
    }
}

impl Lookup {
    /// Takes in what was appended to the text.
    pub fn extend(&mut self, tokens: &[TokenId]) {
        if tokens.len() - self.first.min(tokens.len()) > 2 * WINDOW {
            *self = Self::default();
        }
        if self.indexed == 0 && tokens.len() > WINDOW {
            self.first = tokens.len() - WINDOW;
            self.indexed = self.first;
        }
        for at in self.indexed..tokens.len() {
            // Texts are shorter than what a u32 counts; what were not would not be found.
            let Ok(place) = u32::try_from(at) else { return };
            let before =
                |n: usize| at.checked_sub(n).filter(|i| *i >= self.first).and_then(|i| tokens.get(i));
            let (last, second) = (before(1).copied(), before(2).copied());
            let pair = second.zip(last).and_then(|pair| self.pairs.insert(pair, place));
            self.links.push(pair.unwrap_or(0));
            if let Some(last) = last {
                self.singles.insert(last, place);
            }
        }
        self.indexed = tokens.len();
    }

    /// Places whose past is like the end of the text, the longest past first and the latest of equals; each goes on with another
    /// token.
    pub fn places(&self, text: Text<'_>) -> [Option<Place>; MAX_PLACES] {
        let mut found = [None; MAX_PLACES];
        let before = |n: usize| text.len().checked_sub(n).and_then(|i| text.get(i));
        let Some(last) = before(1) else { return found };
        let mut link = before(2).and_then(|second| self.pairs.get(&(second, last)).copied());
        for _ in 0..MAX_LINKS {
            let Some(at) = link.map(|at| at as usize) else { break };
            self.note(&mut found, text, at);
            if found.first().is_some_and(|best| best.is_some_and(|best: Place| best.past >= MAX_PAST)) {
                break;
            }
            let before = at.checked_sub(self.first).and_then(|idx| self.links.get(idx));
            link = before.copied().filter(|at| *at > 0);
        }
        if let Some(at) = self.singles.get(&last) {
            self.note(&mut found, text, *at as usize);
        }
        found
    }

    /// Puts a place among those found, unless its continuation is there with as long a past.
    fn note(&self, found: &mut [Option<Place>; MAX_PLACES], text: Text<'_>, at: usize) {
        let (next, end) = (text.get(at), text.len());
        let longest = MAX_PAST.min(at - self.first.min(at));
        let past = (1..=longest).take_while(|n| text.get(at - n) == text.get(end - n)).count();
        if next.is_none() || past == 0 {
            return;
        }
        let goes_on_so = |place: &Option<Place>| place.is_some_and(|place| text.get(place.at) == next);
        if let Some(tail) = found.iter().position(goes_on_so).and_then(|idx| found.get_mut(idx..)) {
            if tail.first().is_some_and(|first| first.is_some_and(|first| first.past >= past)) {
                return;
            }
            tail.rotate_left(1);
            if let Some(last) = tail.last_mut() {
                *last = None;
            }
        }
        let is_longer = |place: &Option<Place>| place.is_none_or(|place| place.past < past);
        if let Some(tail) = found.iter().position(is_longer).and_then(|idx| found.get_mut(idx..)) {
            tail.rotate_right(1);
            if let Some(first) = tail.first_mut() {
                *first = Some(Place { at, past });
            }
        }
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
