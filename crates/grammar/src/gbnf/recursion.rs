//! Left recursion in a grammar: what would go on for ever without taking a character.

use std::collections::HashSet;

use super::{Item, Parser, Sequence, Symbol};
use crate::error::Result;

/// Refuses rules that come to themselves again before any character.
pub(super) fn refuse_left(parser: &Parser) -> Result<()> {
    let rules = &parser.rules;
    let ways = |rule: usize| rules.get(rule).and_then(|rule| rule.ways.as_deref()).unwrap_or_default();
    // Rules that allow the empty text, until no more are found.
    let mut empty: HashSet<usize> = HashSet::new();
    let may_be_empty = |item: &Item, empty: &HashSet<usize>| {
        item.min == 0 || matches!(item.symbol, Symbol::Rule(rule) if empty.contains(&rule))
    };
    loop {
        let is_new = |rule: &usize| {
            let allows = |way: &Sequence| way.iter().all(|item| may_be_empty(item, &empty));
            !empty.contains(rule) && ways(*rule).iter().any(allows)
        };
        let found: Vec<usize> = (0..rules.len()).filter(is_new).collect();
        if found.is_empty() {
            break;
        }
        empty.extend(found);
    }
    let firsts = |rule: usize| -> Vec<usize> {
        let mut firsts = Vec::new();
        for way in ways(rule) {
            for item in way {
                if let (Symbol::Rule(first), true) = (&item.symbol, item.max != Some(0)) {
                    firsts.push(*first);
                }
                if !may_be_empty(item, &empty) {
                    break;
                }
            }
        }
        firsts
    };
    // Depth first; what is on the path and met again comes to itself.
    let (mut done, mut on_path) = (HashSet::new(), HashSet::new());
    for start in 0..rules.len() {
        let mut path = vec![(start, firsts(start))];
        on_path.clear();
        on_path.insert(start);
        while let Some((rule, left)) = path.last_mut() {
            let Some(next) = left.pop() else {
                done.insert(*rule);
                on_path.remove(rule);
                path.pop();
                continue;
            };
            if on_path.contains(&next) {
                let cycle = path.iter().rev().map(|(rule, _)| *rule).chain([next]);
                let named = cycle.filter_map(|rule| rules.get(rule)?.name.clone()).next();
                let name = named.unwrap_or_default();
                let at = parser.used.iter().find(|(rule, _)| Some(rule) == parser.names.get(&name));
                let message =
                    format!("the rule {name:?} comes to itself before any character (left recursion)");
                return parser.error(at.map_or(0, |(_, at)| *at), &message);
            }
            if !done.contains(&next) {
                on_path.insert(next);
                path.push((next, firsts(next)));
            }
        }
    }
    Ok(())
}
