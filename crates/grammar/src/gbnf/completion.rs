//! A text in the making as a grammar's rules read it, and the shortest way to its end.
//!
//! Reads by Earley's algorithm, over a [`Network`]: a column for every character has the places where the text may be in the
//! rules that are open, each with the column where its rule began. For every rule that begins in a column, the column keeps
//! what the rest of the text costs once that rule has ended, and where it goes on then; so the whole rest is known at once
//! from the last column alone.
//!
//! This says nothing about what may come next; masks do. It follows texts that they allow, and is lost where one is not a
//! text of the rules, or where so many places are possible that keeping them takes too much memory or time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use wardrobe_text::TokenId;

use super::network::{Edge, Kind, Network, Step};
use super::tokens::{self, Cost};
use super::words::Words;
use crate::vocabulary::Vocabulary;

/// Places of one column, and all that columns keep together.
const MAX_IN_COLUMN: usize = 16_384;
const MAX_KEPT: usize = 2 << 20;

/// Steps that writing a way may take.
const MAX_STEPS: usize = 1 << 20;

/// A place in a rule that began at column `origin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    node: u32,
    /// What the node has counted.
    count: u32,
    origin: u32,
}

/// Where columns begin in what is kept for all of them.
struct Column {
    scans: usize,
    calls: usize,
    waits: usize,
    may_end: bool,
}

/// A rule that begins in a column.
struct Call {
    rule: u32,
    /// The last of those that wait for it, by index.
    waiting: Option<usize>,
    /// The least that the rest of the text costs after it.
    cost: Cost,
    /// Where the rest begins, what costs nothing passed over; `None` if nothing comes after it.
    then: Option<Place>,
}

/// A place to go on from once a rule has ended.
struct Wait {
    place: Place,
    /// Another one that waits for the same rule.
    before: Option<usize>,
}

/// Bytes of a character that is not complete.
#[derive(Debug, Clone, Copy, Default)]
struct Tail {
    bytes: [u8; 4],
    len: usize,
}

/// Where a text was after one of its tokens.
struct Mark {
    columns: usize,
    tail: Tail,
    is_lost: bool,
}

/// A text, as far as it was read.
pub(crate) struct Reading {
    network: Arc<Network>,
    vocabulary: Vocabulary,
    words: Arc<Words>,
    columns: Vec<Column>,
    /// Places where a character is next.
    scans: Vec<Place>,
    /// Sorted by rule in every column that is complete.
    calls: Vec<Call>,
    waits: Vec<Wait>,
    /// One more than there are tokens.
    marks: Vec<Mark>,
    is_lost: bool,
    /// Of the column that is being made.
    work: Vec<Place>,
    seen: HashSet<Place>,
    called: HashMap<u32, usize>,
}

impl Reading {
    pub(crate) fn new(network: Arc<Network>, vocabulary: Vocabulary, words: Arc<Words>) -> Self {
        let mut reading = Reading {
            network,
            vocabulary,
            words,
            columns: Vec::new(),
            scans: Vec::new(),
            calls: Vec::new(),
            waits: Vec::new(),
            marks: Vec::new(),
            is_lost: false,
            work: Vec::new(),
            seen: HashSet::new(),
            called: HashMap::new(),
        };
        let start = reading.network.start(reading.network.root);
        reading.begin_column();
        reading.visit(Place { node: start, count: 0, origin: 0 });
        reading.finish_column();
        reading.mark(Tail::default());
        reading
    }

    /// Reads on to where all these tokens were read, of which it may know the first ones; gives whether it still follows.
    pub(crate) fn follow(&mut self, tokens: &[TokenId]) -> bool {
        let vocabulary = self.vocabulary.clone();
        let known = self.marks.len().saturating_sub(1);
        for token in tokens.get(known..).unwrap_or_default() {
            let mut tail = self.marks.last().map_or(Tail::default(), |mark| mark.tail);
            for byte in vocabulary.bytes(*token).unwrap_or_default() {
                if self.is_lost {
                    break;
                }
                self.byte(*byte, &mut tail);
            }
            self.mark(tail);
        }
        !self.is_lost
    }

    fn mark(&mut self, tail: Tail) {
        self.marks.push(Mark { columns: self.columns.len(), tail, is_lost: self.is_lost });
    }

    /// Forgets all but the first tokens.
    pub(crate) fn cut(&mut self, num_tokens: usize) {
        self.marks.truncate(num_tokens + 1);
        let len = self.marks.last().map_or(0, |mark| mark.columns);
        if let Some(Column { scans, calls, waits, .. }) = self.columns.get(len) {
            self.scans.truncate(*scans);
            self.calls.truncate(*calls);
            self.waits.truncate(*waits);
        }
        self.columns.truncate(len);
        self.called.clear();
        self.is_lost = self.marks.last().is_some_and(|mark| mark.is_lost);
    }

    fn byte(&mut self, byte: u8, tail: &mut Tail) {
        let Some(place) = tail.bytes.get_mut(tail.len) else {
            self.is_lost = true;
            return;
        };
        *place = byte;
        tail.len += 1;
        match std::str::from_utf8(tail.bytes.get(..tail.len).unwrap_or_default()) {
            Ok(text) => {
                let c = text.chars().next();
                *tail = Tail::default();
                c.into_iter().for_each(|c| self.character(c));
            }
            Err(error) => self.is_lost |= error.error_len().is_some(),
        }
    }

    fn character(&mut self, c: char) {
        let network = self.network.clone();
        let from = self.columns.last().map_or(0, |column| column.scans);
        let to = self.scans.len();
        self.begin_column();
        for idx in from..to {
            let Some(&place) = self.scans.get(idx) else { break };
            for next in after(&network, place, |step| takes(step, c)) {
                self.visit(next);
            }
        }
        self.finish_column();
        let Some(column) = self.columns.last() else { return };
        // Masks allow no character after which there is nothing.
        let is_empty = column.scans == self.scans.len() && !column.may_end;
        let kept = self.scans.len() + self.waits.len() + self.calls.len();
        self.is_lost |= is_empty || kept > MAX_KEPT;
    }

    fn begin_column(&mut self) {
        let (scans, calls, waits) = (self.scans.len(), self.calls.len(), self.waits.len());
        self.columns.push(Column { scans, calls, waits, may_end: false });
        self.seen.clear();
        self.called.clear();
    }

    /// Notes a place in the column that is being made, unless no text goes on from it.
    fn visit(&mut self, place: Place) {
        if self.network.rest_cost(place.node, place.count).is_finite() && self.seen.insert(place) {
            self.work.push(place);
        }
    }

    fn finish_column(&mut self) {
        let network = self.network.clone();
        while let Some(place) = self.work.pop() {
            if self.seen.len() > MAX_IN_COLUMN {
                self.is_lost = true;
                self.work.clear();
                return;
            }
            let Place { node, count, origin } = place;
            let Some(at) = network.node(node) else { continue };
            match &at.kind {
                Kind::End => self.end(at.rule, origin),
                Kind::Plain(edges) => {
                    let is_scanned = |edge: &Edge| matches!(edge.step, Step::Char(..) | Step::Class(_));
                    if edges.iter().any(is_scanned) {
                        self.scans.push(place);
                    }
                    for edge in edges {
                        let then = Place { node: edge.to, count: 0, origin };
                        match &edge.step {
                            Step::Nothing => self.visit(then),
                            Step::Rule(rule) => {
                                self.call(*rule, then);
                                if network.rule_cost(*rule) == Cost::NOTHING {
                                    self.visit(then);
                                }
                            }
                            Step::Char(..) | Step::Class(_) | Step::Word { .. } => {}
                        }
                    }
                }
                Kind::Counter(counter) => {
                    if count >= counter.min {
                        self.visit(Place { node: counter.to, count: 0, origin });
                    }
                    match (counter.next(count), &counter.step) {
                        (Some(next), Step::Rule(rule)) => self.call(*rule, Place { count: next, ..place }),
                        (Some(_), _) => self.scans.push(place),
                        (None, _) => {}
                    }
                }
            }
        }
        self.find_rests();
    }

    /// A rule ended that began at `origin`.
    fn end(&mut self, rule: u32, origin: u32) {
        let column = self.columns.len() as u32 - 1;
        if rule == self.network.root
            && origin == 0
            && let Some(column) = self.columns.last_mut()
        {
            column.may_end = true;
        }
        // Who called a rule that is empty has gone on already.
        if origin == column {
            return;
        }
        let mut next = self.find_call(rule, origin).and_then(|call| call.waiting);
        while let Some(Wait { place, before }) = next.and_then(|idx| self.waits.get(idx)) {
            let place = *place;
            next = *before;
            self.visit(place);
        }
    }

    /// A rule may begin here, and be followed by what is at a place.
    fn call(&mut self, rule: u32, then: Place) {
        let network = &self.network;
        if !network.rule_cost(rule).is_finite() || !network.rest_cost(then.node, then.count).is_finite() {
            return;
        }
        let start = Place { node: network.start(rule), count: 0, origin: self.columns.len() as u32 - 1 };
        let idx = *self.called.entry(rule).or_insert_with(|| {
            self.calls.push(Call { rule, waiting: None, cost: Cost::INFINITE, then: None });
            self.calls.len() - 1
        });
        if let Some(call) = self.calls.get_mut(idx) {
            self.waits.push(Wait { place: then, before: call.waiting });
            call.waiting = Some(self.waits.len() - 1);
        }
        self.visit(start);
    }

    fn find_call(&self, rule: u32, column: u32) -> Option<&Call> {
        let from = self.columns.get(column as usize)?.calls;
        let to = self.columns.get(column as usize + 1).map_or(self.calls.len(), |next| next.calls);
        let calls = self.calls.get(from..to)?;
        calls.binary_search_by_key(&rule, |call| call.rule).ok().and_then(|idx| calls.get(idx))
    }

    /// What the rest of the text costs from a place on, and where it goes on after the place's rule.
    fn rest(&self, place: Place) -> (Cost, Option<Place>) {
        let Some(rule) = self.network.node(place.node).map(|node| node.rule) else {
            return (Cost::INFINITE, None);
        };
        let cost = self.network.rest_cost(place.node, place.count);
        if rule == self.network.root && place.origin == 0 {
            return (cost, None);
        }
        let is_last = place.origin as usize + 1 == self.columns.len();
        let call = match self.called.get(&rule) {
            // Not sorted yet.
            Some(idx) if is_last => self.calls.get(*idx),
            _ => self.find_call(rule, place.origin),
        };
        call.map_or((Cost::INFINITE, None), |call| (cost + call.cost, call.then))
    }

    /// Finds what comes after the rules of a new column, and what that costs.
    fn find_rests(&mut self) {
        let from = self.columns.last().map_or(0, |column| column.calls);
        // What a rule is called by was mostly called before it; where not, once more.
        let mut has_changed = true;
        while std::mem::take(&mut has_changed) {
            for idx in from..self.calls.len() {
                let Some(&Call { waiting, cost, then, .. }) = self.calls.get(idx) else { break };
                let (mut best, mut next) = ((cost, then), waiting);
                while let Some(&Wait { place, before }) = next.and_then(|idx| self.waits.get(idx)) {
                    let (cost, outer) = self.rest(place);
                    if cost < best.0 {
                        let is_free = self.network.rest_cost(place.node, place.count) == Cost::NOTHING;
                        best = (cost, if is_free { outer } else { Some(place) });
                    }
                    next = before;
                }
                if best.0 < cost
                    && let Some(call) = self.calls.get_mut(idx)
                {
                    (call.cost, call.then) = best;
                    has_changed = true;
                }
            }
        }
        if let Some(calls) = self.calls.get_mut(from..) {
            calls.sort_unstable_by_key(|call| call.rule);
        }
        self.called.clear();
    }

    /// A shortest way to the end of the text. `Some(None)`: there is none that can be written down.
    /// `None`: it is not known.
    pub(crate) fn way(&self) -> Option<Option<Vec<TokenId>>> {
        let tail = self.marks.last()?.tail;
        let column = self.columns.last()?;
        if self.is_lost {
            return None;
        }
        if tail.len == 0 && column.may_end {
            return Some(Some(Vec::new()));
        }
        let scans = self.scans.get(column.scans..)?;
        let mut text = Vec::new();
        let begin = if tail.len == 0 {
            scans.iter().map(|&place| (self.rest(place).0, place)).min_by_key(|(cost, _)| *cost)
        } else {
            let words = &*self.words;
            let within = within(&tail)?;
            let mut best = None;
            for &place in scans {
                // Steps with a character that may be this one.
                let mut ends = Vec::new();
                let nexts = after(&self.network, place, |step| {
                    let end = cheapest(step, words, within, tail.len);
                    ends.extend(end);
                    end.is_some()
                });
                for (next, (cost, c)) in nexts.into_iter().zip(ends) {
                    let cost = cost + self.rest(next).0;
                    if best.is_none_or(|(known, _, _)| cost < known) {
                        best = Some((cost, next, c));
                    }
                }
            }
            best.map(|(cost, next, c)| {
                text.extend(c.encode_utf8(&mut [0; 4]).as_bytes().get(tail.len..).unwrap_or_default());
                (cost, next)
            })
        };
        let Some((_, mut place)) = begin.filter(|(cost, _)| cost.is_finite()) else { return Some(None) };
        let (mut fuel, mut rest) = (MAX_STEPS, String::new());
        loop {
            self.network.write_rest(place.node, place.count, &mut fuel, &mut rest)?;
            match self.rest(place).1 {
                Some(next) => place = next,
                None => break,
            }
        }
        text.extend(rest.into_bytes());
        Some(tokens::fewest(&self.words, &text))
    }
}

fn takes(step: &Step, c: char) -> bool {
    match step {
        Step::Char(own, _) => *own == c,
        Step::Class(characters) => characters.contains(c),
        Step::Nothing | Step::Rule(_) | Step::Word { .. } => false,
    }
}

/// Where a place comes to by those of its steps that are chosen, in their order.
fn after(network: &Network, place: Place, mut is_chosen: impl FnMut(&Step) -> bool) -> Vec<Place> {
    match network.node(place.node).map(|node| &node.kind) {
        Some(Kind::Plain(edges)) => {
            let chosen = edges.iter().filter(|edge| is_chosen(&edge.step));
            chosen.map(|edge| Place { node: edge.to, count: 0, ..place }).collect()
        }
        Some(Kind::Counter(counter)) => match counter.next(place.count) {
            Some(count) if is_chosen(&counter.step) => vec![Place { count, ..place }],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The cheapest way to go on in a character of which some bytes are there, and the character.
fn cheapest(step: &Step, words: &Words, within: (u32, u32), from: usize) -> Option<(Cost, char)> {
    match step {
        Step::Char(c, _) if (within.0..=within.1).contains(&(*c as u32)) => {
            let cost = tokens::cost(words, c.encode_utf8(&mut [0; 4]).as_bytes().get(from..)?);
            cost.is_finite().then_some((cost, *c))
        }
        Step::Class(characters) => characters.cheapest(words, within, from),
        _ => None,
    }
}

/// The characters whose encoding begins with these bytes, first and last; `None` if there are none.
fn within(tail: &Tail) -> Option<(u32, u32)> {
    let [lead, ..] = tail.bytes;
    let (len, bits) = match lead {
        0xc2..=0xdf => (2, lead & 0x1f),
        0xe0..=0xef => (3, lead & 0x0f),
        0xf0..=0xf4 => (4, lead & 0x07),
        _ => return None,
    };
    let given = tail.bytes.get(1..tail.len)?;
    let first = given.iter().fold(u32::from(bits), |code, byte| code << 6 | u32::from(byte & 0x3f));
    let left = 6 * (len - tail.len) as u32;
    let shortest = [0x80, 0x800, 0x1_0000].get(len - 2)?;
    let (first, last) = (first << left, (first << left) + (1 << left) - 1);
    Some((first.max(*shortest), last.min(char::MAX as u32)))
}
