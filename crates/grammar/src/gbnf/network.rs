//! A grammar's rules as a network of nodes, and what the shortest way from each of them to the end of its rule costs.
//!
//! A node is a place in a rule; an edge leads to another one by a character, one of a class, a whole rule, or nothing. Groups
//! and their repetitions are part of the rule that they are in; where something is repeated a counted number of times, the
//! node counts. Costs are found by Knuth's generalisation of Dijkstra's algorithm (A generalization of Dijkstra's algorithm,
//! Information Processing Letters 6, 1977): the cheapest node that is left is settled, and what leads to it is looked at again.
//!
//! Costs are in tokens. Within a literal they are the fewest that it can be written in; between a literal and what follows a
//! token is thought to end, so that the true number may be smaller.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::build::Builder;
use super::tokens::{self, Cost};
use super::words::Words;
use super::{Class, Gbnf};

/// A grammar's rules, and ways to their ends. Immutable.
pub(crate) struct Network {
    nodes: Vec<Node>,
    rules: Vec<Ends>,
    pub(super) root: u32,
}

/// A place in a rule.
pub(super) struct Node {
    pub(super) rule: u32,
    pub(super) kind: Kind,
    /// Of the shortest way to the end of the rule; for a counter, when it has counted nothing.
    cost: Cost,
    /// The edge that the shortest way begins with.
    best: u32,
}

impl Node {
    pub(super) fn new(rule: u32, kind: Kind) -> Self {
        Node { rule, kind, cost: Cost::INFINITE, best: 0 }
    }
}

pub(super) enum Kind {
    /// Goes on by any of these.
    Plain(Vec<Edge>),
    Counter(Counter),
    /// The end of the rule.
    End,
}

pub(super) struct Edge {
    pub(super) step: Step,
    pub(super) to: u32,
}

pub(super) enum Step {
    Nothing,
    Char(char, Cost),
    Class(Arc<Characters>),
    Rule(u32),
    /// Several characters of a literal that are one token, for costs alone: the characters have edges of their own.
    Word {
        bytes: usize,
    },
}

/// Repeats a step, and goes on when it was there often enough.
pub(super) struct Counter {
    pub(super) step: Step,
    pub(super) min: u32,
    /// Without a bound if there is none; nothing is counted beyond `min` then.
    pub(super) max: Option<u32>,
    pub(super) to: u32,
}

impl Counter {
    /// What is counted after one more; `None` if there may be no more.
    pub(super) fn next(&self, count: u32) -> Option<u32> {
        match self.max {
            Some(max) => (count < max).then_some(count + 1),
            None => Some((count + 1).min(self.min)),
        }
    }
}

/// A rule's first and last node.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Characters of a class, and one that is as good as any.
pub(super) struct Characters {
    /// Sorted, without overlaps.
    ranges: Vec<(u32, u32)>,
    sample: char,
    cost: Cost,
}

/// Characters that are good to stand for others of their class, best first.
const USUAL: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,-_\n";

/// Characters of a range that are looked at for one of few tokens.
const MAX_SAMPLED: usize = 16;

impl Characters {
    pub(super) fn new(words: &Words, class: &Class) -> Self {
        let mut given: Vec<(u32, u32)> = class.ranges.iter().map(|(a, b)| (*a as u32, *b as u32)).collect();
        given.sort_unstable();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for (first, last) in given {
            match ranges.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => ranges.push((first, last)),
            }
        }
        if class.is_negated {
            let mut next = 0;
            let mut others = Vec::new();
            for (first, last) in ranges {
                if next < first {
                    others.push((next, first - 1));
                }
                next = last + 1;
            }
            if next <= char::MAX as u32 {
                others.push((next, char::MAX as u32));
            }
            ranges = others;
        }
        let mut characters = Characters { ranges, sample: '\0', cost: Cost::INFINITE };
        if let Some((cost, sample)) = characters.cheapest(words, (0, char::MAX as u32), 0) {
            (characters.cost, characters.sample) = (cost, sample);
        }
        characters
    }

    pub(super) fn contains(&self, c: char) -> bool {
        let c = c as u32;
        let after = self.ranges.partition_point(|(first, _)| *first <= c);
        after.checked_sub(1).and_then(|idx| self.ranges.get(idx)).is_some_and(|(_, last)| c <= *last)
    }

    /// The character within a range whose bytes from `from` on cost least, and that cost; `None` if no such character can be
    /// written.
    pub(super) fn cheapest(&self, words: &Words, within: (u32, u32), from: usize) -> Option<(Cost, char)> {
        let is_within = |c: &char| (within.0..=within.1).contains(&(*c as u32));
        let usual = USUAL.chars().filter(|c| is_within(c) && self.contains(*c));
        // The shortest encodings of each range come first in it; ranges that span several have the start of each.
        let starts = self.ranges.iter().flat_map(|(first, last)| {
            let (first, last) = ((*first).max(within.0), (*last).min(within.1));
            let bands = [first, 0x80, 0x800, 0x1_0000].into_iter();
            bands
                .enumerate()
                .filter(move |(idx, band)| *idx == 0 || *band > first)
                .map(move |(_, band)| (band, last))
        });
        let sampled = starts.flat_map(|(first, last)| (first..=last).take(MAX_SAMPLED));
        let sampled = sampled.take(16 * MAX_SAMPLED).filter_map(char::from_u32);
        let mut found: Option<(Cost, char)> = None;
        for c in usual.chain(sampled) {
            let mut buffer = [0; 4];
            let Some(text) = c.encode_utf8(&mut buffer).as_bytes().get(from..) else { continue };
            let cost = tokens::cost(words, text);
            if cost.is_finite() && found.is_none_or(|(known, _)| cost < known) {
                let is_least = cost == Cost::new(1, 1);
                found = Some((cost, c));
                if is_least {
                    break;
                }
            }
        }
        found
    }
}

impl Network {
    pub(crate) fn new(grammar: &Gbnf, words: &Words) -> Self {
        let (nodes, rules, root) = Builder::new(grammar, words).build();
        let mut network = Network { nodes, rules, root };
        network.settle();
        // What may be empty need not be there.
        for idx in 0..network.nodes.len() {
            let is_empty = |node: &Node| match &node.kind {
                Kind::Counter(Counter { step: Step::Rule(rule), .. }) => {
                    network.rule_cost(*rule) == Cost::NOTHING
                }
                _ => false,
            };
            if network.nodes.get(idx).is_some_and(is_empty)
                && let Some(Node { kind: Kind::Counter(counter), .. }) = network.nodes.get_mut(idx)
            {
                counter.min = 0;
            }
        }
        network
    }

    /// Finds what the shortest way from every node costs, and how it begins.
    fn settle(&mut self) {
        // For every node, and for every rule, the nodes whose edges lead to it, or by it, and which edges these are.
        let mut into: Vec<Vec<(u32, u32)>> = vec![Vec::new(); self.nodes.len()];
        let mut by: Vec<Vec<(u32, u32)>> = vec![Vec::new(); self.rules.len()];
        let mut queue = BinaryHeap::new();
        for (from, node) in (0..).zip(&self.nodes) {
            let mut note = |edge: u32, step: &Step, to: u32| {
                if let Some(into) = into.get_mut(to as usize) {
                    into.push((from, edge));
                }
                if let Step::Rule(rule) = step
                    && let Some(by) = by.get_mut(*rule as usize)
                {
                    by.push((from, edge));
                }
            };
            match &node.kind {
                Kind::Plain(edges) => (0..).zip(edges).for_each(|(idx, edge)| note(idx, &edge.step, edge.to)),
                Kind::Counter(counter) => note(0, &counter.step, counter.to),
                Kind::End => queue.push(Reverse((Cost::NOTHING, from, 0))),
            }
        }
        // A node has its cost once it is settled; before that it is infinite, and so is all that needs it.
        while let Some(Reverse((cost, at, best))) = queue.pop() {
            let Some(node) = self.nodes.get_mut(at as usize).filter(|node| !node.cost.is_finite()) else {
                continue;
            };
            (node.cost, node.best) = (cost, best);
            let rule = node.rule;
            let is_start = self.start(rule) == at;
            let users = by.get(rule as usize).filter(|_| is_start).into_iter().flatten();
            for &(from, edge) in into.get(at as usize).into_iter().flatten().chain(users) {
                let Some(node) = self.node(from).filter(|node| !node.cost.is_finite()) else { continue };
                let cost = match &node.kind {
                    Kind::Plain(edges) => edges
                        .get(edge as usize)
                        .map_or(Cost::INFINITE, |edge| self.step_cost(&edge.step) + self.cost(edge.to)),
                    Kind::Counter(counter) => {
                        self.step_cost(&counter.step).times(counter.min) + self.cost(counter.to)
                    }
                    Kind::End => Cost::INFINITE,
                };
                if cost.is_finite() {
                    queue.push(Reverse((cost, from, edge)));
                }
            }
        }
    }

    pub(super) fn node(&self, node: u32) -> Option<&Node> {
        self.nodes.get(node as usize)
    }

    /// A rule's first node.
    pub(super) fn start(&self, rule: u32) -> u32 {
        self.rules.get(rule as usize).map_or(0, |ends| ends.start)
    }

    /// The least that a rule's text costs.
    pub(super) fn rule_cost(&self, rule: u32) -> Cost {
        self.cost(self.start(rule))
    }

    fn cost(&self, node: u32) -> Cost {
        self.node(node).map_or(Cost::INFINITE, |node| node.cost)
    }

    /// The least that the rest of a rule costs from a node on, which has counted `count`.
    pub(super) fn rest_cost(&self, node: u32, count: u32) -> Cost {
        let Some(node) = self.node(node) else { return Cost::INFINITE };
        match &node.kind {
            Kind::Counter(counter) if count > 0 => {
                let left = counter.min.saturating_sub(count);
                self.step_cost(&counter.step).times(left) + self.cost(counter.to)
            }
            _ => node.cost,
        }
    }

    fn step_cost(&self, step: &Step) -> Cost {
        match step {
            Step::Nothing => Cost::NOTHING,
            Step::Char(_, cost) => *cost,
            Step::Class(characters) => characters.cost,
            Step::Rule(rule) => self.rule_cost(*rule),
            Step::Word { bytes } => Cost::new(1, *bytes),
        }
    }

    /// Writes the shortest rest of a rule from a node on, which has counted `count`. Takes a step off `fuel` for every edge, and
    /// gives nothing if there are too many, or there is no rest.
    pub(super) fn write_rest(&self, node: u32, count: u32, fuel: &mut usize, out: &mut String) -> Option<()> {
        // Where to go on after what is being written, the innermost rule last.
        let mut left = vec![(node, count)];
        while let Some((at, count)) = left.pop() {
            *fuel = fuel.checked_sub(1)?;
            let node = self.node(at)?;
            let step = match &node.kind {
                Kind::End => continue,
                Kind::Plain(edges) => {
                    let edge = edges.get(node.best as usize)?;
                    left.push((edge.to, 0));
                    &edge.step
                }
                Kind::Counter(counter) if count < counter.min => {
                    left.push((at, count + 1));
                    &counter.step
                }
                Kind::Counter(counter) => {
                    left.push((counter.to, 0));
                    continue;
                }
            };
            match step {
                Step::Nothing => {}
                Step::Char(c, _) => out.push(*c),
                Step::Class(characters) => out.push(characters.sample),
                Step::Rule(rule) if self.rule_cost(*rule) == Cost::NOTHING => {}
                Step::Rule(rule) => left.push((self.start(*rule), 0)),
                Step::Word { bytes } => self.write_word(at, *bytes, out)?,
            }
        }
        Some(())
    }

    /// Writes a literal's characters from a node on.
    fn write_word(&self, mut at: u32, bytes: usize, out: &mut String) -> Option<()> {
        let len = out.len() + bytes;
        while out.len() < len {
            let Kind::Plain(edges) = &self.node(at)?.kind else { return None };
            let mut chars = edges.iter().filter_map(|edge| match edge.step {
                Step::Char(c, _) => Some((c, edge.to)),
                _ => None,
            });
            let (c, to) = chars.next()?;
            out.push(c);
            at = to;
        }
        Some(())
    }
}
