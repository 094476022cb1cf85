//! From a grammar's rules to the nodes and edges of its [`Network`](super::network::Network).

use std::collections::HashMap;
use std::sync::Arc;

use super::network::{Characters, Counter, Edge, Ends, Kind, Node, Step};
use super::tokens::{self, Cost};
use super::words::Words;
use super::{Class, Gbnf, Item, Sequence, Symbol};

/// Groups that become part of the rule that they are in, one in another; deeper ones are rules of their own.
const MAX_INLINE: usize = 32;

/// The longest part of a literal that is looked for among the tokens, in characters.
const MAX_WORD: usize = 24;

pub(super) struct Builder<'a> {
    grammar: &'a Gbnf,
    words: &'a Words,
    nodes: Vec<Node>,
    rules: Vec<Ends>,
    /// Rules of the network, by those of the grammar.
    known: HashMap<usize, u32>,
    /// Rules whose ways have yet to be written.
    left: Vec<(usize, u32)>,
    classes: HashMap<&'a Class, Arc<Characters>>,
}

/// Where something is to be written.
#[derive(Clone, Copy)]
struct Place {
    rule: u32,
    from: u32,
    to: u32,
    /// Groups that it is in.
    depth: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(grammar: &'a Gbnf, words: &'a Words) -> Self {
        Builder {
            grammar,
            words,
            nodes: Vec::new(),
            rules: Vec::new(),
            known: HashMap::new(),
            left: Vec::new(),
            classes: HashMap::new(),
        }
    }

    /// The nodes, the rules, and which of them is the root.
    pub(super) fn build(mut self) -> (Vec<Node>, Vec<Ends>, u32) {
        let root = self.rule(self.grammar.root);
        while let Some((rule, known)) = self.left.pop() {
            let Some(&Ends { start, end }) = self.rules.get(known as usize) else { continue };
            self.ways(rule, Place { rule: known, from: start, to: end, depth: 0 });
        }
        (self.nodes, self.rules, root)
    }

    fn node(&mut self, rule: u32, kind: Kind) -> u32 {
        self.nodes.push(Node::new(rule, kind));
        // There are at most some nodes for each of the grammar's symbols, whose number is bounded.
        self.nodes.len() as u32 - 1
    }

    fn plain(&mut self, rule: u32) -> u32 {
        self.node(rule, Kind::Plain(Vec::new()))
    }

    fn edge(&mut self, from: u32, step: Step, to: u32) {
        if let Some(Node { kind: Kind::Plain(edges), .. }) = self.nodes.get_mut(from as usize) {
            edges.push(Edge { step, to });
        }
    }

    /// The network's rule for one of the grammar's.
    fn rule(&mut self, rule: usize) -> u32 {
        if let Some(&known) = self.known.get(&rule) {
            return known;
        }
        let idx = self.rules.len() as u32;
        let start = self.plain(idx);
        let end = self.node(idx, Kind::End);
        self.rules.push(Ends { start, end });
        self.known.insert(rule, idx);
        self.left.push((rule, idx));
        idx
    }

    fn ways(&mut self, rule: usize, place: Place) {
        let grammar = self.grammar;
        for way in grammar.ways(rule) {
            self.sequence(way, place);
        }
    }

    fn sequence(&mut self, items: &'a Sequence, place: Place) {
        let items: Vec<&Item> = items.iter().filter(|item| item.max != Some(0)).collect();
        let (mut at, mut rest) = (place.from, items.as_slice());
        while let Some((first, others)) = rest.split_first() {
            let literal: Vec<char> = rest.iter().map_while(|item| once(item)).collect();
            let num = literal.len().max(1);
            let is_last = rest.len() == num;
            let to = if is_last { place.to } else { self.plain(place.rule) };
            let between = Place { from: at, to, ..place };
            if literal.is_empty() {
                self.item(first, between);
                rest = others;
            } else {
                self.literal(&literal, between);
                rest = rest.get(num..).unwrap_or_default();
            }
            at = to;
        }
        if items.is_empty() {
            self.edge(place.from, Step::Nothing, place.to);
        }
    }

    /// Characters that follow each other.
    fn literal(&mut self, literal: &[char], place: Place) {
        // A place of its own: what else there may be instead begins elsewhere.
        let start = self.plain(place.rule);
        self.edge(place.from, Step::Nothing, start);
        let mut at = vec![start];
        for idx in 1..=literal.len() {
            at.push(if idx == literal.len() { place.to } else { self.plain(place.rule) });
        }
        for (idx, c) in literal.iter().enumerate() {
            let (Some(&from), Some(&to)) = (at.get(idx), at.get(idx + 1)) else { return };
            let cost = self.char_cost(*c);
            self.edge(from, Step::Char(*c, cost), to);
            let word: String = literal.iter().skip(idx).take(MAX_WORD).collect();
            let found: Vec<usize> = self.words.prefixes(word.as_bytes()).map(|(bytes, _)| bytes).collect();
            for bytes in found {
                let Some(chars) = word.get(..bytes).map(|word| word.chars().count()) else { continue };
                if let Some(&to) = at.get(idx + chars).filter(|_| chars > 1) {
                    self.edge(from, Step::Word { bytes }, to);
                }
            }
        }
    }

    fn char_cost(&self, c: char) -> Cost {
        tokens::cost(self.words, c.encode_utf8(&mut [0; 4]).as_bytes())
    }

    fn item(&mut self, item: &'a Item, place: Place) {
        let Place { rule, from, to, .. } = place;
        match (item.min, item.max) {
            (1, Some(1)) => self.symbol(&item.symbol, place),
            (0, Some(1)) => {
                self.symbol(&item.symbol, place);
                self.edge(from, Step::Nothing, to);
            }
            (0, None) => {
                let again = self.plain(rule);
                self.edge(from, Step::Nothing, again);
                self.symbol(&item.symbol, Place { from: again, to: again, ..place });
                self.edge(again, Step::Nothing, to);
            }
            (1, None) => {
                let (before, after) = (self.plain(rule), self.plain(rule));
                self.edge(from, Step::Nothing, before);
                self.symbol(&item.symbol, Place { from: before, to: after, ..place });
                self.edge(after, Step::Nothing, before);
                self.edge(after, Step::Nothing, to);
            }
            (min, max) => {
                let step = self.step(&item.symbol);
                let counter = self.node(rule, Kind::Counter(Counter { step, min, max, to }));
                self.edge(from, Step::Nothing, counter);
            }
        }
    }

    fn symbol(&mut self, symbol: &'a Symbol, place: Place) {
        let is_group = |rule: usize| self.grammar.rules.get(rule).is_some_and(|rule| rule.name.is_none());
        match symbol {
            Symbol::Rule(rule) if place.depth < MAX_INLINE && is_group(*rule) => {
                self.ways(*rule, Place { depth: place.depth + 1, ..place });
            }
            _ => {
                let step = self.step(symbol);
                self.edge(place.from, step, place.to);
            }
        }
    }

    fn step(&mut self, symbol: &'a Symbol) -> Step {
        match symbol {
            Symbol::Char(c) => Step::Char(*c, self.char_cost(*c)),
            Symbol::Class(class) => {
                let words = self.words;
                let known =
                    self.classes.entry(class).or_insert_with(|| Arc::new(Characters::new(words, class)));
                Step::Class(known.clone())
            }
            Symbol::Rule(rule) => Step::Rule(self.rule(*rule)),
        }
    }
}

/// The character that an item is, if it is one.
fn once(item: &Item) -> Option<char> {
    match item {
        Item { symbol: Symbol::Char(c), min: 1, max: Some(1) } => Some(*c),
        _ => None,
    }
}
