//! Measures by numbers of the items: curves over one, maps over two.

use serde::Serialize;

use super::{Asked, scored};
use crate::items::Item;
use crate::tasks::{Metric, Task};

/// As many values of a number are told one by one; of more, ranges.
const MAX_VALUES: usize = 24;
/// Ranges, with about as many items each.
const NUM_RANGES: usize = 8;
/// A number that all items have: the tokens of their prompts.
const PROMPT_TOKENS: &str = "prompt_tokens";

/// Measures by one number of the items, or by two.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grouping {
    /// The numbers' names.
    pub by: Vec<String>,
    /// What there is at each place that has items, the first number's first.
    pub cells: Vec<Cell>,
    /// For each target the cell whose main measure is worst.
    pub worst: Vec<Worst>,
}

/// The items at one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The values of the numbers.
    pub at: Vec<Range>,
    /// Items.
    pub num_items: usize,
    /// Each target's measures over them, in the order of the report's results.
    pub results: Vec<CellResult>,
}

/// One target's measures over the items of a cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellResult {
    /// The target.
    pub name: String,
    /// Items in the means.
    pub num_scored: usize,
    /// The task's measures.
    pub metrics: Vec<Metric>,
}

impl CellResult {
    /// The value of one measure.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

/// The worst cell of a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// The target.
    pub name: String,
    /// Where.
    pub at: Vec<Range>,
    /// The main measure there.
    pub value: f64,
}

/// Values of a number, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// The least.
    pub from: f64,
    /// The greatest.
    pub to: f64,
}

impl Range {
    /// A value, or two with a dash.
    pub(crate) fn shown(&self) -> String {
        if self.from == self.to {
            shown(self.from)
        } else {
            format!("{}–{}", shown(self.from), shown(self.to))
        }
    }
}

fn shown(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(super) fn groups(
    task: &dyn Task,
    items: &[Item],
    asked: &[Asked],
    more: &[Vec<String>],
) -> Vec<Grouping> {
    let own = task.groups().iter().map(|by| by.iter().map(|name| (*name).to_owned()).collect());
    let mut all: Vec<Vec<String>> = own.collect();
    for by in more {
        if !all.contains(by) {
            all.push(by.clone());
        }
    }
    let groupings = all.into_iter().filter_map(|by| grouping(task, items, asked, by));
    groupings.filter(|grouping| more.contains(&grouping.by) || !is_flat(grouping)).collect()
}

/// Whether a curve has all its places within a twentieth, as texts cut to one length do: it would show noise.
fn is_flat(grouping: &Grouping) -> bool {
    let ([_], [first, .., last]) = (grouping.by.as_slice(), grouping.cells.as_slice()) else { return false };
    let (Some(first), Some(last)) = (first.at.first(), last.at.first()) else { return false };
    last.to - first.from < 0.05 * last.to.abs().max(first.from.abs())
}

/// `None` if no item has the numbers, or all have the same.
fn grouping(task: &dyn Task, items: &[Item], asked: &[Asked], by: Vec<String>) -> Option<Grouping> {
    let places: Vec<Option<Vec<f64>>> = items
        .iter()
        .enumerate()
        .map(|(at, item)| by.iter().map(|name| number(item, at, name, asked)).collect())
        .collect();
    let axes: Vec<Vec<Range>> = (0..by.len())
        .map(|axis| ranges(places.iter().flatten().filter_map(|p| p.get(axis).copied())))
        .collect();
    if axes.is_empty() || axes.iter().any(Vec::is_empty) || axes.iter().all(|ranges| ranges.len() < 2) {
        return None;
    }
    let mut at_places: Vec<Vec<Range>> = vec![Vec::new()];
    for ranges in &axes {
        at_places = at_places
            .iter()
            .flat_map(|place| ranges.iter().map(move |range| [place.as_slice(), &[*range]].concat()))
            .collect();
    }
    let cell = |at: Vec<Range>| {
        let is_in = |place: &Option<Vec<f64>>| {
            let place = place.as_ref()?;
            let is_in = at.iter().zip(place).all(|(range, value)| (range.from..=range.to).contains(value));
            is_in.then_some(())
        };
        let own: Vec<usize> =
            places.iter().enumerate().filter_map(|(at, place)| is_in(place).map(|()| at)).collect();
        if own.is_empty() {
            return None;
        }
        let own_items: Vec<Item> = own.iter().filter_map(|at| items.get(*at)).cloned().collect();
        let result = |asked: &Asked| {
            let outcomes: Vec<_> = own.iter().filter_map(|at| asked.outcomes.get(*at)).cloned().collect();
            let scored = scored(&own_items, &outcomes);
            let mut metrics = task.summarise(&scored);
            metrics.retain(|metric| metric.value.is_finite());
            CellResult { name: asked.name.clone(), num_scored: scored.len(), metrics }
        };
        Some(Cell { num_items: own.len(), results: asked.iter().map(result).collect(), at })
    };
    let cells: Vec<Cell> = at_places.into_iter().filter_map(cell).collect();
    let worst = (0..asked.len()).filter_map(|target| worst(task, &cells, target)).collect();
    Some(Grouping { by, cells, worst })
}

fn number(item: &Item, at: usize, name: &str, asked: &[Asked]) -> Option<f64> {
    if name != PROMPT_TOKENS {
        return item.number(name);
    }
    let answers = asked.iter().filter_map(|asked| asked.outcomes.get(at)?.answer());
    answers.map(|answer| answer.prompt_tokens as f64).next()
}

fn worst(task: &dyn Task, cells: &[Cell], target: usize) -> Option<Worst> {
    let measure = task.main_measure();
    let sign = if task.less_is_better().contains(&measure) { -1.0 } else { 1.0 };
    let values = cells.iter().filter_map(|cell| {
        let result = cell.results.get(target)?;
        Some((cell, result, result.metric(measure)?.value))
    });
    let (cell, result, value) =
        values.reduce(|worst, one| if sign * one.2 < sign * worst.2 { one } else { worst })?;
    Some(Worst { name: result.name.clone(), at: cell.at.clone(), value })
}

/// The values, ascending; of many, ranges.
fn ranges(values: impl Iterator<Item = f64>) -> Vec<Range> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    let mut distinct = all.clone();
    distinct.dedup();
    if distinct.len() <= MAX_VALUES {
        return distinct.into_iter().map(|value| Range { from: value, to: value }).collect();
    }
    let mut ranges: Vec<Range> = Vec::new();
    let mut at = 0;
    for part in 0..NUM_RANGES {
        let mut end = (all.len() * (part + 1) / NUM_RANGES).max(at);
        // Equal values are in one range.
        while end < all.len() && end > 0 && all.get(end) == all.get(end - 1) {
            end += 1;
        }
        let own = all.get(at..end).unwrap_or_default();
        if let (Some(from), Some(to)) = (own.first(), own.last()) {
            ranges.push(Range { from: *from, to: *to });
        }
        at = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_values_are_ranges_that_hold_all_of_them() {
        let few = ranges([3.0, 1.0, 3.0].into_iter());
        assert_eq!(few, [Range { from: 1.0, to: 1.0 }, Range { from: 3.0, to: 3.0 }]);
        for values in [
            (0..99).map(f64::from).collect::<Vec<_>>(),
            (0..500).map(|i| f64::from(i * i % 101)).collect(),
            (0..200).map(|i| if i < 150 { 7.0 } else { f64::from(i) }).collect(),
        ] {
            let ranges = ranges(values.iter().copied());
            assert!((2..=NUM_RANGES).contains(&ranges.len()));
            for value in values {
                let num = ranges.iter().filter(|range| (range.from..=range.to).contains(&value)).count();
                assert_eq!(num, 1, "{value} in {ranges:?}");
            }
        }
        assert_eq!(few[0].shown(), "1");
        assert_eq!(Range { from: 0.25, to: 10.0 }.shown(), "0.25–10");
    }

    #[test]
    fn a_curve_over_places_that_are_all_but_one_is_flat() {
        let grouping = |places: &[&[(f64, f64)]]| {
            let range = |(from, to): &(f64, f64)| Range { from: *from, to: *to };
            let at = |place: &&[(f64, f64)]| place.iter().map(range).collect();
            let cells = places.iter().map(|place| Cell { at: at(place), num_items: 1, results: Vec::new() });
            let by = places[0].iter().map(|_| "n".to_owned()).collect();
            Grouping { by, cells: cells.collect(), worst: Vec::new() }
        };
        assert!(is_flat(&grouping(&[&[(995.0, 995.0)], &[(998.0, 1000.0)]])));
        assert!(is_flat(&grouping(&[&[(-1000.0, -998.0)], &[(-995.0, -995.0)]])));
        for other in [
            grouping(&[&[(0.0, 0.0)], &[(0.25, 0.25)]]),
            grouping(&[&[(1.0, 1.0)], &[(2.0, 3.0)]]),
            grouping(&[&[(995.0, 995.0), (1.0, 1.0)], &[(1000.0, 1000.0), (1.0, 1.0)]]),
        ] {
            assert!(!is_flat(&other), "{other:?}");
        }
    }
}
