//! A short way to the end of a text. Where the text is held to a grammar in GBNF, its rules know it ([`Reading`]); else it is found
//! by trying: the grammar is asked what may come next, and of that the most promising is taken, until the text may end.
//!
//! [`Reading`]: crate::gbnf::Reading

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

/// Promising tokens that are tried one by one before the grammar is asked for all that it allows, which takes longer.
const MAX_TRIED: usize = 12;

/// Ends of a way that are tried from elsewhere, at its beginning and at its end.
const MAX_SUFFIXES: usize = 4;

/// A way to the end that was found before.
pub(super) struct KnownWay {
    /// How many tokens had been accepted where it begins.
    pub(super) at: usize,
    tokens: Vec<TokenId>,
}

/// A way from where the session is to an end, of `max_tokens` at most; the session comes back to where it was.
pub(super) fn find(session: &mut GuidanceSession, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
    if session.may_end()? {
        return Ok(Some(Vec::new()));
    }
    if let Some(reading) = &mut session.reading
        && reading.follow(&session.accepted)
        && let Some(way) = reading.way()
    {
        return Ok(way.filter(|way| way.len() <= max_tokens));
    }
    // Most tokens leave the way as it was, or go it: a search after each of them would take longer than masks do.
    let way = match known(session, max_tokens)? {
        Some(way) => Some(way),
        None => search(session, max_tokens)?,
    };
    if let Some(tokens) = way.clone() {
        session.known_way = Some(KnownWay { at: session.accepted.len(), tokens });
    }
    Ok(way)
}

/// The way that was found last, or an end of it, if it leads to the end from here as well.
fn known(session: &mut GuidanceSession, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
    let Some(KnownWay { at, tokens }) = &session.known_way else { return Ok(None) };
    let since = session.accepted.get(*at..).unwrap_or_default();
    if let Some(rest) = tokens.strip_prefix(since) {
        return Ok((rest.len() <= max_tokens).then(|| rest.to_vec()));
    }
    let trie = session.vocabulary.trie();
    let mut candidates = Vec::new();
    if since.len() <= tokens.len() {
        // The way was gone, by other tokens.
        let bytes = |tokens: &[TokenId]| -> Vec<u8> {
            tokens.iter().flat_map(|id| trie.token(id.0)).copied().collect()
        };
        if let Some(rest) = bytes(tokens).strip_prefix(bytes(since).as_slice()) {
            candidates.push(trie.greedy_tokenize(rest).into_iter().map(TokenId).collect());
        }
    }
    for start in 0..tokens.len() {
        if start < MAX_SUFFIXES || start + MAX_SUFFIXES >= tokens.len() {
            candidates.extend(tokens.get(start..).map(<[_]>::to_vec));
        }
    }
    for candidate in candidates.into_iter().filter(|candidate| candidate.len() <= max_tokens) {
        if session.ends_after(&candidate)? {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

fn search(session: &mut GuidanceSession, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
    let mut path = Vec::new();
    let found = walk(session, max_tokens, &mut path);
    session.rollback(path.len())?;
    Ok(found?.then_some(path))
}

fn walk(session: &mut GuidanceSession, max_tokens: usize, path: &mut Vec<TokenId>) -> Result<bool> {
    let candidates = session.candidates.clone();
    let mut tried = Tried { candidates: &candidates, times: vec![0; candidates.others.len()], closed: 0 };
    loop {
        if session.may_end()? {
            return Ok(true);
        }
        if path.len() >= max_tokens {
            return Ok(false);
        }
        let forced = session.matcher.compute_ff_bytes();
        let forced = session.vocabulary.trie().greedy_tokenize(&forced);
        let mut any = false;
        for token in forced.into_iter().take(max_tokens - path.len()).map(TokenId) {
            if session.accept(token).is_err() {
                break;
            }
            path.push(token);
            any = true;
        }
        if any {
            continue;
        }
        if let Some(token) = tried.closing(session)? {
            session.follow(token)?;
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
        let Some(token) = tried.other(session)? else { return Ok(false) };
        session.follow(token)?;
        path.push(token);
    }
}

/// Bytes of the longest rest of a sample that is tried, if it is not all of it.
const MAX_REST: usize = 64;

/// The rest of a string that one of the schema's patterns asks for: a sample of it, or what is left of one.
fn ending(session: &mut GuidanceSession, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
    let samples = session.samples.clone();
    if samples.is_empty() {
        return Ok(None);
    }
    let mut mask = vec![0_u32; session.vocabulary.mask_len()];
    session.fill_mask(&mut mask)?;
    // Shortest first; the closing quote alone has been tried.
    let rests = samples.iter().flat_map(|sample| {
        let starts = 0..sample.len().saturating_sub(1);
        let is_tried = |start: &usize| *start < 2 || sample.len() - start <= MAX_REST;
        starts.filter(is_tried).filter_map(|start| sample.get(start..))
    });
    let mut rests: Vec<&[u8]> = rests.collect();
    rests.sort_by_key(|rest| rest.len());
    for rest in rests {
        let tokens = session.vocabulary.trie().greedy_tokenize(rest);
        let tokens: Vec<TokenId> = tokens.into_iter().map(TokenId).collect();
        let may_come = tokens.len() <= max_tokens && tokens.first().is_some_and(|id| is_allowed(&mask, *id));
        if may_come && session.validate(&tokens)? == tokens.len() {
            return Ok(Some(tokens));
        }
    }
    Ok(None)
}

/// Tokens to try, of a vocabulary.
pub(super) struct Candidates {
    closing: Vec<TokenId>,
    closing_string: Vec<TokenId>,
    /// The others, best first.
    others: Vec<TokenId>,
}

impl Candidates {
    pub(super) fn new(trie: &TokTrie) -> Self {
        let token = |text: &[u8]| trie.token_id(text).map(TokenId);
        let tokens = |texts: &[&str]| texts.iter().filter_map(|text| token(text.as_bytes())).collect();
        let bytes = (b' '..=b'~').chain([b'\n']).chain(0x80..=0xf4).filter_map(|byte| token(&[byte]));
        let promising = PROMISING.iter().filter_map(|text| token(text.as_bytes()));
        Candidates {
            closing: tokens(&CLOSING),
            closing_string: tokens(&CLOSING_STRING),
            others: promising.chain(bytes).collect(),
        }
    }
}

/// What a search has tried.
struct Tried<'a> {
    candidates: &'a Candidates,
    /// How often each of the others was taken: where a text goes round in circles, another way is taken each time.
    times: Vec<u32>,
    /// How often something was closed, one after the other.
    closed: u32,
}

/// In JSON what closes something brings the end nearer. In other texts it may be a character like any other.
const MAX_CLOSED: u32 = 4;

fn is_allowed(mask: &[u32], id: TokenId) -> bool {
    mask.get(id.index() / 32).is_some_and(|word| word >> (id.0 % 32) & 1 == 1)
}

impl Tried<'_> {
    fn closing(&mut self, session: &mut GuidanceSession) -> Result<Option<TokenId>> {
        self.closed += 1;
        if session.numbers.is_none() && self.closed > MAX_CLOSED {
            return Ok(None);
        }
        let in_string = session.numbers.as_ref().is_some_and(NumberGuard::in_string);
        let tokens = if in_string { &self.candidates.closing_string } else { &self.candidates.closing };
        for &token in tokens {
            if session.validate(&[token])? == 1 {
                return Ok(Some(token));
            }
        }
        self.closed = 0;
        Ok(None)
    }

    fn other(&mut self, session: &mut GuidanceSession) -> Result<Option<TokenId>> {
        // Taken once is as bad as ten places further back.
        let mut order: Vec<usize> = (0..self.times.len()).collect();
        order.sort_by_key(|&rank| rank + 10 * self.times.get(rank).map_or(0, |times| *times as usize));
        let ranked = |rank: &usize| Some((*rank, *self.candidates.others.get(*rank)?));
        let mut found = None;
        for (rank, token) in order.iter().take(MAX_TRIED).filter_map(ranked) {
            if session.validate(&[token])? == 1 {
                found = Some((rank, token));
                break;
            }
        }
        if found.is_none() {
            let mut mask = vec![0_u32; session.vocabulary.mask_len()];
            session.fill_mask(&mut mask)?;
            for end in session.vocabulary.ends() {
                if let Some(word) = mask.get_mut(end.index() / 32) {
                    *word &= !(1 << (end.0 % 32));
                }
            }
            found = order.iter().filter_map(ranked).find(|(_, token)| is_allowed(&mask, *token));
            if found.is_none() {
                let first = mask.iter().enumerate().find(|(_, word)| **word != 0);
                return Ok(first.map(|(idx, word)| TokenId(idx as u32 * 32 + word.trailing_zeros())));
            }
        }
        let Some((rank, token)) = found else { return Ok(None) };
        if let Some(times) = self.times.get_mut(rank) {
            *times += 1;
        }
        Ok(Some(token))
    }
}
