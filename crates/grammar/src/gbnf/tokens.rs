//! Texts as the fewest tokens, and what that costs.

use std::ops::Add;

use wardrobe_text::TokenId;

use super::words::Words;

/// Tokens of a text, then bytes: less is better. Costs without a bound are infinite, and so are those that no memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost(u64);

/// Of tokens and of bytes.
const MAX: u64 = 1 << 31;

impl Cost {
    pub(super) const NOTHING: Cost = Cost(0);
    pub(super) const INFINITE: Cost = Cost(u64::MAX);

    pub(super) fn new(tokens: usize, bytes: usize) -> Self {
        Self::of(tokens as u64, bytes as u64)
    }

    fn of(tokens: u64, bytes: u64) -> Self {
        if tokens < MAX && bytes < MAX { Cost(tokens << 32 | bytes) } else { Self::INFINITE }
    }

    pub(super) fn is_finite(self) -> bool {
        self != Self::INFINITE
    }

    pub(super) fn bytes(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn tokens(self) -> u64 {
        self.0 >> 32
    }

    /// Of the same text several times; none at all costs nothing.
    pub(super) fn times(self, times: u32) -> Self {
        let times = u64::from(times);
        if times == 0 {
            Self::NOTHING
        } else if !self.is_finite() {
            Self::INFINITE
        } else {
            // Each factor is below 2^32.
            Self::of(self.tokens() * times, self.bytes() as u64 * times)
        }
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        if !self.is_finite() || !other.is_finite() {
            return Self::INFINITE;
        }
        Self::of(self.tokens() + other.tokens(), (self.bytes() + other.bytes()) as u64)
    }
}

/// The fewest tokens that a text can be written in, of several ways the one whose last tokens are longest; `None` if there is
/// a byte that no token has.
pub(super) fn fewest(words: &Words, text: &[u8]) -> Option<Vec<TokenId>> {
    // For every place the fewest tokens up to it, and the last of them, with its length.
    let mut best: Vec<Option<(u32, usize, TokenId)>> = vec![None; text.len() + 1];
    for at in 0..text.len() {
        let num = match best.get(at)? {
            Some((num, _, _)) => num + 1,
            None if at == 0 => 1,
            None => continue,
        };
        for (len, token) in words.prefixes(text.get(at..)?) {
            if let Some(known) = best.get_mut(at + len)
                && known.is_none_or(|(other, _, _)| num < other)
            {
                *known = Some((num, len, token));
            }
        }
    }
    let (mut tokens, mut at) = (Vec::new(), text.len());
    while at > 0 {
        let (_, len, token) = (*best.get(at)?)?;
        tokens.push(token);
        at = at.checked_sub(len)?;
    }
    tokens.reverse();
    Some(tokens)
}

/// What a text costs that is written by itself.
pub(super) fn cost(words: &Words, text: &[u8]) -> Cost {
    fewest(words, text).map_or(Cost::INFINITE, |tokens| Cost::new(tokens.len(), text.len()))
}
