//! Closed schemas as finite automata: what a step may have next is looked up.
//!
//! A schema whose texts a regular expression of bearable size describes exactly ([`pattern`]) becomes a DFA over bytes. The
//! tokens that a state allows are found once, by walking the vocabulary's trie from it, and kept; so are the bytes that lead
//! from each state to the end by the shortest way.

mod pattern;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use regex_automata::dfa::dense::{Builder, Config, DFA};
use regex_automata::dfa::{Automaton, StartKind};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use serde_json::Value;
use toktrie::{Recognizer, SimpleVob};
use wardrobe_text::TokenId;

use crate::Session;
use crate::error::{GrammarError, Result};
use crate::spec::Whitespace;
use crate::vocabulary::Vocabulary;

type OwnedDFA = DFA<Vec<u32>>;

/// Bytes of an automaton, and of what it takes to build it. Larger ones are left to the other engine.
const MAX_DFA_BYTES: usize = 1 << 20;
const MAX_BUILD_BYTES: usize = 8 << 20;

/// A schema as an automaton.
pub(crate) struct ClosedSchema {
    vocabulary: Vocabulary,
    dfa: OwnedDFA,
    start: StateID,
    /// By state: bytes to where the text may end, at least. States from which there is no way are not allowed.
    distances: Box<[u32]>,
    /// By state, once it was asked for.
    masks: Box<[OnceLock<Arc<[u32]>>]>,
    /// By state, once it was asked for: the tokens of the shortest way to the end.
    ways: Box<[OnceLock<Box<[TokenId]>>]>,
    /// Equal masks are one.
    known_masks: Mutex<HashSet<Arc<[u32]>>>,
}

/// No way.
const NEVER: u32 = u32::MAX;

impl ClosedSchema {
    /// Of a prepared schema, if it is one that this engine takes.
    pub(crate) fn new(vocabulary: &Vocabulary, schema: &Value, whitespace: Whitespace) -> Option<Arc<Self>> {
        let pattern = pattern::of(schema, whitespace)?;
        let config = Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(MAX_DFA_BYTES))
            .determinize_size_limit(Some(MAX_BUILD_BYTES));
        let nfa = thompson::Config::new().nfa_size_limit(Some(MAX_BUILD_BYTES)).shrink(false);
        let dfa = Builder::new().configure(config).thompson(nfa).build(&pattern).ok()?;
        let start = dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        let distances = distances(&dfa, start);
        if distances.get(index(&dfa, start)).is_none_or(|&d| d == NEVER) {
            return None;
        }
        let masks = distances.iter().map(|_| OnceLock::new()).collect();
        let ways = distances.iter().map(|_| OnceLock::new()).collect();
        Some(Arc::new(ClosedSchema {
            vocabulary: vocabulary.clone(),
            dfa,
            start,
            distances,
            masks,
            ways,
            known_masks: Mutex::default(),
        }))
    }

    pub(crate) fn session(self: &Arc<Self>) -> ClosedSession {
        ClosedSession { of: self.clone(), states: vec![self.start] }
    }

    fn distance(&self, state: StateID) -> u32 {
        self.distances.get(index(&self.dfa, state)).copied().unwrap_or(NEVER)
    }

    /// The state after a byte, if the text can still end from there.
    fn next(&self, state: StateID, byte: u8) -> Option<StateID> {
        let next = self.dfa.next_state(state, byte);
        (self.distance(next) != NEVER).then_some(next)
    }

    fn after(&self, state: StateID, bytes: &[u8]) -> Option<StateID> {
        bytes.iter().try_fold(state, |state, &byte| self.next(state, byte))
    }

    fn mask(&self, state: StateID) -> Option<&Arc<[u32]>> {
        let slot = self.masks.get(index(&self.dfa, state))?;
        Some(slot.get_or_init(|| {
            let trie = self.vocabulary.trie();
            let mut allowed: SimpleVob = trie.alloc_token_set();
            trie.add_bias(&mut Walk { of: self, states: vec![state] }, &mut allowed, &[]);
            let mut mask: Vec<u32> = allowed.as_slice().to_vec();
            mask.resize(self.vocabulary.mask_len(), 0);
            if self.distance(state) == 0 {
                for end in self.vocabulary.ends() {
                    if let Some(word) = mask.get_mut(end.index() / 32) {
                        *word |= 1 << (end.0 % 32);
                    }
                }
            }
            let mask: Arc<[u32]> = mask.into();
            let mut known = self.known_masks.lock().unwrap_or_else(PoisonError::into_inner);
            match known.get(&mask) {
                Some(same) => same.clone(),
                None => {
                    known.insert(mask.clone());
                    mask
                }
            }
        }))
    }

    /// The byte that comes next, if there is one alone, and the text may not end here.
    fn forced_byte(&self, state: StateID) -> Option<(u8, StateID)> {
        if self.distance(state) == 0 {
            return None;
        }
        let mut only = None;
        for byte in 0..=u8::MAX {
            if let Some(next) = self.next(state, byte)
                && only.replace((byte, next)).is_some()
            {
                return None;
            }
        }
        only
    }

    /// The shortest way to the end.
    fn way(&self, mut state: StateID) -> Vec<u8> {
        let mut way = Vec::new();
        while self.distance(state) != 0 {
            let nearer = |&byte: &u8| {
                let next = self.next(state, byte)?;
                (self.distance(next) < self.distance(state)).then_some((byte, next))
            };
            // Of equally short ways one that reads well.
            let Some((byte, next)) = PREFERRED.iter().chain(ALL_BYTES.iter()).find_map(nearer) else { break };
            way.push(byte);
            state = next;
        }
        way
    }
}

const PREFERRED: &[u8] = b"\"}], 0a";
const ALL_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};

fn index(dfa: &OwnedDFA, state: StateID) -> usize {
    state.as_usize() >> dfa.stride2()
}

/// By state: bytes to the nearest state in which the text may end.
fn distances(dfa: &OwnedDFA, start: StateID) -> Box<[u32]> {
    // All states that can be reached, and who leads to whom.
    let bytes: Vec<u8> =
        dfa.byte_classes().representatives(0..=255).filter_map(|unit| unit.as_u8()).collect();
    let mut seen = vec![false; 1];
    let mut states = vec![start];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mark = |seen: &mut Vec<bool>, state: StateID| {
        let at = index(dfa, state);
        if seen.len() <= at {
            seen.resize(at + 1, false);
        }
        seen.get_mut(at).is_some_and(|seen| !std::mem::replace(seen, true))
    };
    mark(&mut seen, start);
    let mut done = 0;
    while let Some(&state) = states.get(done) {
        done += 1;
        for &byte in &bytes {
            let next = dfa.next_state(state, byte);
            if dfa.is_dead_state(next) {
                continue;
            }
            edges.push((index(dfa, next) as u32, index(dfa, state) as u32));
            if mark(&mut seen, next) {
                states.push(next);
            }
        }
    }
    edges.sort_unstable();
    edges.dedup();
    let mut distances = vec![NEVER; seen.len()];
    let ends = states.iter().filter(|&&state| dfa.is_match_state(dfa.next_eoi_state(state)));
    let mut level: Vec<u32> = ends.map(|&state| index(dfa, state) as u32).collect();
    let mut distance = 0;
    while !level.is_empty() {
        for &state in &level {
            if let Some(d) = distances.get_mut(state as usize) {
                *d = distance;
            }
        }
        distance += 1;
        let mut before = Vec::new();
        for &state in &level {
            let first = edges.partition_point(|&(to, _)| to < state);
            let from = edges.iter().skip(first).take_while(|&&(to, _)| to == state).map(|&(_, from)| from);
            before.extend(from.filter(|&from| distances.get(from as usize) == Some(&NEVER)));
        }
        before.sort_unstable();
        before.dedup();
        level = before;
    }
    distances.into()
}

/// A walk over the trie from a state.
struct Walk<'a> {
    of: &'a ClosedSchema,
    states: Vec<StateID>,
}

impl Recognizer for Walk<'_> {
    fn pop_bytes(&mut self, num: usize) {
        self.states.truncate(self.states.len() - num);
    }

    fn collapse(&mut self) {
        if let Some(last) = self.states.pop() {
            self.states.clear();
            self.states.push(last);
        }
    }

    fn trie_finished(&mut self) {
        self.states.truncate(1);
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let next = self.states.last().and_then(|&state| self.of.next(state, byte));
        self.states.extend(next);
        next.is_some()
    }
}

/// A text that follows an automaton.
pub(crate) struct ClosedSession {
    of: Arc<ClosedSchema>,
    /// Before the first token and after each.
    states: Vec<StateID>,
}

impl ClosedSession {
    fn state(&self) -> StateID {
        self.states.last().copied().unwrap_or(self.of.start)
    }
}

impl Session for ClosedSession {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<()> {
        let Some(found) = self.of.mask(self.state()) else {
            return Err(GrammarError::Engine { message: "a state outside of the automaton".to_owned() });
        };
        let len = found.len().min(mask.len());
        let (head, tail) = mask.split_at_mut(len);
        head.iter_mut().zip(found.iter()).for_each(|(to, from)| *to = *from);
        tail.fill(0);
        Ok(())
    }

    fn known_mask(&mut self) -> Option<Arc<[u32]>> {
        self.of.masks.get(index(&self.of.dfa, self.state()))?.get().cloned()
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        let state = self.state();
        if self.of.vocabulary.ends().contains(&token) {
            return if self.of.distance(state) == 0 {
                Ok(())
            } else {
                Err(GrammarError::NotAllowed { token })
            };
        }
        match self.of.vocabulary.bytes(token).and_then(|bytes| self.of.after(state, bytes)) {
            Some(next) => {
                self.states.push(next);
                Ok(())
            }
            None => Err(GrammarError::NotAllowed { token }),
        }
    }

    fn validate(&mut self, draft: &[TokenId]) -> Result<usize> {
        let mut state = self.state();
        for (i, &token) in draft.iter().enumerate() {
            match self.of.vocabulary.bytes(token).and_then(|bytes| self.of.after(state, bytes)) {
                Some(next) => state = next,
                None => return Ok(i),
            }
        }
        Ok(draft.len())
    }

    fn rollback(&mut self, num_tokens: usize) -> Result<()> {
        if num_tokens >= self.states.len() {
            return Err(GrammarError::Engine {
                message: "more tokens to take back than there are".to_owned(),
            });
        }
        self.states.truncate(self.states.len() - num_tokens);
        Ok(())
    }

    fn forced_tokens(&mut self) -> Vec<TokenId> {
        let (mut state, mut bytes) = (self.state(), Vec::new());
        while let Some((byte, next)) = self.of.forced_byte(state) {
            bytes.push(byte);
            state = next;
        }
        self.of.vocabulary.encode_prefix(&bytes, self.of.distance(state) == 0 && self.is_end(state))
    }

    fn may_end(&mut self) -> Result<bool> {
        Ok(self.of.distance(self.state()) == 0)
    }

    fn is_done(&mut self) -> Result<bool> {
        Ok(self.is_end(self.state()))
    }

    fn shortest_end(&mut self, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
        let state = self.state();
        let encoded = || self.of.vocabulary.encode(&self.of.way(state)).into_boxed_slice();
        let way = self.of.ways.get(index(&self.of.dfa, state)).map(|way| way.get_or_init(encoded));
        Ok(way.filter(|way| way.len() <= max_tokens).map(|way| way.to_vec()))
    }
}

impl ClosedSession {
    /// Whether nothing may follow.
    fn is_end(&self, state: StateID) -> bool {
        self.of.distance(state) == 0 && (0..=u8::MAX).all(|byte| self.of.next(state, byte).is_none())
    }
}
