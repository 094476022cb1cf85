//! Numbers that parse. A grammar for JSON's numbers lets a model write digits until they overflow every type, and `-0`,
//! which some parsers take for a whole number and some do not. So the text's numbers are followed beside the grammar, and
//! what would make one too long is taken out of the mask.

use std::sync::Arc;

use llguidance::Matcher;
use toktrie::TokTrie;

use super::engine;
use crate::error::Result;

/// Characters of a number in all: more than an f64 can tell apart.
const MAX_LEN: u8 = 24;
/// Digits of a whole number: any of them is an i64.
const MAX_DIGITS: u8 = 18;
/// Digits of an exponent: with so many digits before it nothing overflows.
const MAX_EXPONENT_DIGITS: u8 = 2;

/// Tokens that matter to numbers.
pub(super) struct NumberTokens {
    /// Those that begin with a character of a number, and their bytes up to the first that is none.
    continuing: Vec<(u32, Box<[u8]>)>,
    /// Those that hold `-0` where no `.` follows in the token, or begin a number that is too long.
    never: Vec<u32>,
    /// Mask of those that begin with a dot.
    dotted: Vec<u32>,
    /// `0` and `.`, if there are tokens for them.
    zero_dot: Option<[u32; 2]>,
}

impl NumberTokens {
    pub(super) fn new(trie: &TokTrie) -> Self {
        let len = trie.vocab_size();
        let mut tokens = NumberTokens {
            continuing: Vec::new(),
            never: Vec::new(),
            dotted: vec![0; len.div_ceil(32)],
            zero_dot: None,
        };
        for id in 0..len as u32 {
            let bytes = trie.token(id);
            let run = bytes.iter().take_while(|b| is_number(**b)).count();
            if let Some(run) = bytes.get(..run).filter(|run| !run.is_empty()) {
                tokens.continuing.push((id, run.into()));
            }
            let minus_zero =
                bytes.windows(2).zip(bytes.get(2..).into_iter().flatten().map(Some).chain([None]));
            let mut bad = false;
            for (pair, next) in minus_zero {
                bad |= pair == b"-0" && next != Some(&b'.');
            }
            if bad || State::default().after(bytes).is_none() {
                tokens.never.push(id);
            }
            if let (Some(b'.'), Some(word)) = (bytes.first(), tokens.dotted.get_mut(id as usize / 32)) {
                *word |= 1 << (id % 32);
            }
        }
        tokens.zero_dot = trie.token_id(b"0").zip(trie.token_id(b".")).map(|(zero, dot)| [zero, dot]);
        tokens
    }
}

fn is_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')
}

/// Where in the text's JSON one is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    in_string: bool,
    /// A backslash has just been in a string.
    escaped: bool,
    /// Characters of the number that one is in; 0 outside of one.
    len: u8,
    /// It is `-` or `-0` so far.
    minus: bool,
    /// A dot or an exponent has come.
    is_fraction: bool,
    exponent: bool,
    exponent_digits: u8,
    /// Of a text whose JSON has not begun.
    outside: Option<Outside>,
}

/// Before the mark that JSON comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outside {
    /// This many bytes of the mark are the text's last ones.
    Looking(usize),
    /// The text did not begin with it, so there is no JSON.
    Never,
}

/// What JSON comes after, in a text that is not JSON from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) bytes: Box<[u8]>,
    /// Only the text's beginning counts.
    pub(super) at_start: bool,
}

impl Mark {
    /// Where one is after a byte; `None`: after the mark.
    fn after(&self, outside: Outside, byte: u8) -> Option<Outside> {
        let Outside::Looking(mut len) = outside else { return Some(Outside::Never) };
        while self.bytes.get(len) != Some(&byte) {
            if self.at_start {
                return Some(Outside::Never);
            }
            if len == 0 {
                return Some(Outside::Looking(0));
            }
            // The longest end of what has matched that the mark begins with too.
            let matched = self.bytes.get(..len).unwrap_or_default();
            len = (0..len)
                .rev()
                .find(|&shorter| matched.ends_with(self.bytes.get(..shorter).unwrap_or_default()))
                .unwrap_or(0);
        }
        (len + 1 < self.bytes.len()).then_some(Outside::Looking(len + 1))
    }
}

impl State {
    /// After these bytes, if they make no number too long.
    fn after(mut self, bytes: &[u8]) -> Option<State> {
        for &byte in bytes {
            self = self.then(byte)?;
        }
        Some(self)
    }

    fn then(self, byte: u8) -> Option<State> {
        let outside = State::default();
        if self.in_string {
            let escaped = byte == b'\\' && !self.escaped;
            return Some(State { in_string: byte != b'"' || self.escaped, escaped, ..outside });
        }
        if self.len > 0 {
            if self.is_minus_zero() && byte != b'.' {
                return None;
            }
            if is_number(byte) {
                let exponent_digits = self.exponent_digits + u8::from(self.exponent && byte.is_ascii_digit());
                let next = State {
                    len: self.len + 1,
                    minus: self.minus && self.len == 1 && byte == b'0',
                    is_fraction: self.is_fraction || !byte.is_ascii_digit(),
                    exponent: self.exponent || matches!(byte, b'e' | b'E'),
                    exponent_digits,
                    ..outside
                };
                let max_len = if next.is_fraction { MAX_LEN } else { MAX_DIGITS };
                return (next.len <= max_len && exponent_digits <= MAX_EXPONENT_DIGITS).then_some(next);
            }
        }
        Some(match byte {
            b'"' => State { in_string: true, ..outside },
            b'-' => State { len: 1, minus: true, ..outside },
            b'0'..=b'9' => State { len: 1, ..outside },
            _ => outside,
        })
    }

    fn is_minus_zero(self) -> bool {
        self.minus && self.len == 2
    }
}

/// Follows one text.
#[derive(Clone)]
pub(super) struct NumberGuard {
    tokens: Arc<NumberTokens>,
    mark: Option<Arc<Mark>>,
    state: State,
    /// Before each of the tokens.
    before: Vec<State>,
}

impl NumberGuard {
    pub(super) fn new(tokens: Arc<NumberTokens>) -> Self {
        NumberGuard { tokens, mark: None, state: State::default(), before: Vec::new() }
    }

    /// Of a text whose JSON comes after a mark.
    pub(super) fn after(tokens: Arc<NumberTokens>, mark: Mark) -> Self {
        let state = State { outside: Some(Outside::Looking(0)), ..State::default() };
        NumberGuard { tokens, mark: Some(Arc::new(mark)), state, before: Vec::new() }
    }

    /// Where one is after more bytes, if they make no number too long.
    fn next(&self, mut state: State, bytes: &[u8]) -> Option<State> {
        let mut bytes = bytes.iter();
        while let (Some(outside), Some(mark)) = (state.outside, &self.mark) {
            let Some(&byte) = bytes.next() else { return Some(state) };
            match mark.after(outside, byte) {
                // A mark that is JSON itself may end in a string.
                None => state = State::default().after(&mark.bytes).unwrap_or_default(),
                before => state.outside = before,
            }
        }
        state.after(bytes.as_slice())
    }

    /// Takes out of a mask what must not come next.
    pub(super) fn confine(&self, mask: &mut [u32], matcher: &mut Matcher) -> Result<()> {
        let state = self.state;
        if state.in_string || state.outside.is_some() {
            return Ok(());
        }
        let mut forbid = |id: u32| {
            if let Some(word) = mask.get_mut(id as usize / 32) {
                *word &= !(1 << (id % 32));
            }
        };
        self.tokens.never.iter().copied().for_each(&mut forbid);
        if state.len == 0 {
            return Ok(());
        }
        // A minus before a zero is right only where a fraction may follow.
        let may_be_fraction = match self.tokens.zero_dot {
            Some(zero_dot) if state.minus && state.len == 1 => {
                matcher.validate_tokens(&zero_dot).map_err(engine)? == 2
            }
            _ => true,
        };
        for (id, run) in &self.tokens.continuing {
            if state.after(run).is_none() || (!may_be_fraction && run.first() == Some(&b'0')) {
                forbid(*id);
            }
        }
        if state.is_minus_zero() {
            mask.iter_mut().zip(&self.tokens.dotted).for_each(|(word, dotted)| *word &= dotted);
        }
        Ok(())
    }

    /// Whether the text may end as far as its last number goes.
    pub(super) fn may_end(&self) -> bool {
        !self.state.is_minus_zero()
    }

    /// Whether no JSON has begun yet.
    pub(super) fn is_outside(&self) -> bool {
        self.state.outside.is_some()
    }

    /// Whether one is in a string.
    pub(super) fn in_string(&self) -> bool {
        self.state.in_string
    }

    /// How many of the pieces, one after the other, leave all numbers short, and whether the last of them leaves a `-0`,
    /// after which only a fraction is right.
    pub(super) fn how_many<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) -> (usize, bool) {
        let (mut state, mut num) = (self.state, 0);
        for piece in pieces {
            match self.next(state, piece) {
                Some(next) => state = next,
                None => break,
            }
            num += 1;
        }
        (num, state.is_minus_zero())
    }

    /// The token of a dot.
    pub(super) fn dot(&self) -> Option<u32> {
        self.tokens.zero_dot.map(|[_, dot]| dot)
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        self.before.push(self.state);
        self.state = self.next(self.state, piece).unwrap_or_default();
    }

    pub(super) fn rollback(&mut self, num_tokens: usize) {
        let left = self.before.len().saturating_sub(num_tokens);
        if let Some(&state) = self.before.get(left) {
            self.state = state;
        }
        self.before.truncate(left);
    }
}
