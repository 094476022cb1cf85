//! A short way to the end of a text, found by trying: the grammar is asked what may come next, and of that the most
//! promising is taken, until the text may end.

use toktrie::TokTrie;
use wardrobe_text::TokenId;

use super::GuidanceSession;
use super::numbers::NumberGuard;
use crate::Session;
use crate::error::Result;

/// What closes a string, and what is around it; what closes most at once comes first.
const CLOSING_STRING: [&str; 6] = ["\"]}", "\"}]", "\"}}", "\"}", "\"]", "\""];

/// What closes a list or an object, or is a whole value.
const CLOSING: [&str; 9] = ["]}", "}]", "}}", "}", "]", "\"\"", "[]", "{}", "\""];

/// What else brings most texts nearer to their end, best first.
const PROMISING: [&str; 22] = [
    ", ", ",", "null", "true", "false", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "A", "-", ".",
    ":", "/", "@",
];

/// Goes from where the session is towards an end, `max_tokens` at most; the session comes back to where it was.
pub(super) fn search(session: &mut GuidanceSession, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
    let mut path = Vec::new();
    let found = walk(session, max_tokens, &mut path);
    session.rollback(path.len())?;
    Ok(found?.then_some(path))
}

fn walk(session: &mut GuidanceSession, max_tokens: usize, path: &mut Vec<TokenId>) -> Result<bool> {
    let mut mask = vec![0_u32; session.vocabulary.mask_len()];
    let mut tried = Tried::new(session.vocabulary.trie());
    loop {
        if session.may_end()? {
            return Ok(true);
        }
        let forced = session.forced_tokens();
        let forced =
            forced.get(..max_tokens.saturating_sub(path.len()).min(forced.len())).unwrap_or_default();
        if path.len() >= max_tokens {
            return Ok(false);
        }
        let mut any = false;
        for &token in forced {
            if session.accept(token).is_err() {
                break;
            }
            path.push(token);
            any = true;
        }
        if any {
            continue;
        }
        session.fill_mask(&mut mask)?;
        for end in session.vocabulary.ends().to_vec() {
            if let Some(word) = mask.get_mut(end.index() / 32) {
                *word &= !(1 << (end.0 % 32));
            }
        }
        let in_string = session.numbers.as_ref().is_some_and(NumberGuard::in_string);
        if let Some(token) = tried.closing(&mask, in_string) {
            session.accept(token)?;
            path.push(token);
            continue;
        }
        if let Some(ending) = ending(session, max_tokens - path.len())? {
            for &token in &ending {
                session.accept(token)?;
                path.push(token);
            }
            continue;
        }
        let Some(token) = tried.other(&mask) else { return Ok(false) };
        session.accept(token)?;
        path.push(token);
    }
}

/// The rest of a string that one of the schema's patterns asks for.
fn ending(session: &mut GuidanceSession, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
    for ending in session.endings.clone().iter().filter(|ending| ending.len() <= max_tokens) {
        if session.validate(ending)? == ending.len() {
            return Ok(Some(ending.clone()));
        }
    }
    Ok(None)
}

/// Tokens to try.
struct Tried {
    closing: Vec<TokenId>,
    closing_string: Vec<TokenId>,
    /// How often each was taken: where a text goes round in circles, another way is taken each time.
    others: Vec<(TokenId, u32)>,
}

fn is_allowed(mask: &[u32], id: TokenId) -> bool {
    mask.get(id.index() / 32).is_some_and(|word| word >> (id.0 % 32) & 1 == 1)
}

impl Tried {
    fn new(trie: &TokTrie) -> Self {
        let token = |text: &[u8]| trie.token_id(text).map(TokenId);
        let tokens = |texts: &[&str]| texts.iter().filter_map(|text| token(text.as_bytes())).collect();
        let bytes = (b' '..=b'~').chain([b'\n']).chain(0x80..=0xf4).filter_map(|byte| token(&[byte]));
        let promising = PROMISING.iter().filter_map(|text| token(text.as_bytes()));
        Tried {
            closing: tokens(&CLOSING),
            closing_string: tokens(&CLOSING_STRING),
            others: promising.chain(bytes).map(|id| (id, 0)).collect(),
        }
    }

    fn closing(&self, mask: &[u32], in_string: bool) -> Option<TokenId> {
        let tokens = if in_string { &self.closing_string } else { &self.closing };
        tokens.iter().copied().find(|id| is_allowed(mask, *id))
    }

    fn other(&mut self, mask: &[u32]) -> Option<TokenId> {
        let allowed = self.others.iter_mut().enumerate().filter(|(_, (id, _))| is_allowed(mask, *id));
        // Taken once is as bad as ten places further back.
        if let Some((_, (id, times))) = allowed.min_by_key(|(rank, (_, times))| rank + 10 * *times as usize) {
            *times += 1;
            return Some(*id);
        }
        let (idx, word) = mask.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some(TokenId(idx as u32 * 32 + word.trailing_zeros()))
    }
}
