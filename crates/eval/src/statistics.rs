//! Means, and how sure they are.
//!
//! Items of one line of the data are one question asked in several ways, so they count as one observation: standard errors
//! are those of clusters. With an item a line they are the usual ones.

use std::collections::BTreeMap;

use crate::tasks::{Metric, Scored, Task};

/// Observations are left out in this many parts at most where an error is found by leaving some out.
const MAX_PARTS: usize = 50;

/// The mean of every measure over the items that have it, in the order of first appearance.
pub(crate) fn means(scored: &[Scored<'_>]) -> Vec<Metric> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in scored.iter().flat_map(|item| &item.score.0) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let of = |name: &str| {
        let values: Vec<(usize, f64)> =
            scored.iter().filter_map(|one| Some((one.item.line, one.score.get(name)?))).collect();
        let (value, standard_error) = mean(&values);
        Metric { name: name.to_owned(), value, standard_error, num_items: values.len() }
    };
    names.into_iter().map(of).collect()
}

/// The mean of values, each of a line, and its standard error where there are two lines and more.
pub(crate) fn mean(values: &[(usize, f64)]) -> (f64, Option<f64>) {
    let num = values.len() as f64;
    let mean = values.iter().map(|(_, value)| value).sum::<f64>() / num.max(1.0);
    let mut clusters: BTreeMap<usize, f64> = BTreeMap::new();
    for (line, value) in values {
        *clusters.entry(*line).or_default() += value - mean;
    }
    let c = clusters.len() as f64;
    let squares: f64 = clusters.values().map(|deviation| deviation.powi(2)).sum();
    (mean, (clusters.len() > 1).then(|| (c / (c - 1.0) * squares).sqrt() / num))
}

/// The task's measures. What is no mean gets its standard error by leaving out parts of the lines (a grouped jackknife).
pub(crate) fn summarised(task: &dyn Task, scored: &[Scored<'_>]) -> Vec<Metric> {
    let mut metrics = finite(task.summarise(scored));
    if metrics.iter().any(|metric| metric.standard_error.is_none()) {
        let parts = parts(scored.iter().map(|one| one.item.line));
        let left_out: Vec<Vec<Metric>> = (0..parts.num)
            .map(|part| task.summarise(&kept(scored, |at| parts.of.get(at) != Some(&part))))
            .collect();
        for metric in metrics.iter_mut().filter(|metric| metric.standard_error.is_none()) {
            let values = left_out.iter().map(|part| value_of(part, &metric.name)).collect();
            metric.standard_error = jackknife(values);
        }
    }
    metrics
}

/// What one target has more than another, on the items that both answered.
pub(crate) fn differences(task: &dyn Task, base: &[Scored<'_>], other: &[Scored<'_>]) -> Vec<Metric> {
    let (base_metrics, other_metrics) = (finite(task.summarise(base)), finite(task.summarise(other)));
    let parts = parts(base.iter().map(|one| one.item.line));
    let mut left_out: Option<Vec<(Vec<Metric>, Vec<Metric>)>> = None;
    let difference = |metric: &Metric| {
        let value = metric.value - value_of(&base_metrics, &metric.name)?;
        let pairs: Vec<(usize, f64)> = base
            .iter()
            .zip(other)
            .filter_map(|(a, b)| {
                let (old, new) = (a.score.get(&metric.name)?, b.score.get(&metric.name)?);
                Some((a.item.line, new - old))
            })
            .collect();
        let (mean, standard_error) = mean(&pairs);
        let is_mean = !pairs.is_empty() && (mean - value).abs() <= 1e-9 * value.abs().max(1.0);
        let standard_error = if is_mean {
            standard_error
        } else {
            let left_out = left_out.get_or_insert_with(|| {
                let keep = |part: usize| move |of: &[usize], at: usize| of.get(at) != Some(&part);
                (0..parts.num)
                    .map(|part| {
                        let keep = keep(part);
                        (
                            task.summarise(&kept(base, |at| keep(&parts.of, at))),
                            task.summarise(&kept(other, |at| keep(&parts.of, at))),
                        )
                    })
                    .collect()
            });
            let of = |(a, b): &(Vec<Metric>, Vec<Metric>)| {
                Some(value_of(b, &metric.name)? - value_of(a, &metric.name)?)
            };
            jackknife(left_out.iter().map(of).collect())
        };
        let num_items = if is_mean { pairs.len() } else { base.len() };
        Some(Metric { name: metric.name.clone(), value, standard_error, num_items })
    };
    other_metrics.iter().filter_map(difference).collect()
}

fn finite(metrics: Vec<Metric>) -> Vec<Metric> {
    metrics.into_iter().filter(|metric| metric.value.is_finite()).collect()
}

fn value_of(metrics: &[Metric], name: &str) -> Option<f64> {
    metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value)
}

fn kept<'a>(scored: &[Scored<'a>], is_kept: impl Fn(usize) -> bool) -> Vec<Scored<'a>> {
    scored.iter().enumerate().filter(|(at, _)| is_kept(*at)).map(|(_, one)| *one).collect()
}

struct Parts {
    num: usize,
    /// The part of each item.
    of: Vec<usize>,
}

/// Lines in even parts.
fn parts(lines: impl Iterator<Item = usize>) -> Parts {
    let lines: Vec<usize> = lines.collect();
    let mut order: BTreeMap<usize, usize> = BTreeMap::new();
    for line in &lines {
        let next = order.len();
        order.entry(*line).or_insert(next);
    }
    let num = order.len().min(MAX_PARTS);
    let of = lines.iter().map(|line| order.get(line).copied().unwrap_or(0) % num.max(1)).collect();
    Parts { num, of }
}

/// The standard error of a value, from its values without each of the parts.
fn jackknife(values: Vec<Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.into_iter().collect::<Option<_>>()?;
    let num = values.len() as f64;
    let mean = values.iter().sum::<f64>() / num;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (squares * (num - 1.0) / num).sqrt();
    (values.len() > 1 && error.is_finite()).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::Item;
    use crate::tasks::{Score, task};

    fn score(values: &[(&str, f64)]) -> Score {
        Score(values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    }

    fn scored<'a>(items: &'a [Item], scores: &'a [Score]) -> Vec<Scored<'a>> {
        items.iter().zip(scores).map(|(item, score)| Scored { item, answer: "", score }).collect()
    }

    fn items(lines: &[usize]) -> Vec<Item> {
        lines.iter().map(|line| Item::new(*line, "", vec!["x".to_owned()])).collect()
    }

    #[test]
    fn means_are_over_the_items_that_have_the_measure() {
        let scores = [
            score(&[("a", 1.0), ("b", 0.5)]),
            score(&[("a", 0.0)]),
            score(&[("a", 1.0)]),
            score(&[("a", 0.0)]),
        ];
        let items = items(&[1, 2, 3, 4]);
        let metrics = means(&scored(&items, &scores));
        assert_eq!((metrics[0].value, metrics[0].num_items), (0.5, 4));
        // Sample standard deviation sqrt(1/3), over sqrt(4).
        assert!((metrics[0].standard_error.unwrap() - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!((metrics[1].value, metrics[1].num_items, metrics[1].standard_error), (0.5, 1, None));
        assert!(means(&[]).is_empty());
    }

    #[test]
    fn items_of_a_line_are_one_observation() {
        let values = [(1, 1.0), (2, 0.0), (3, 1.0), (4, 0.0)];
        let twice: Vec<(usize, f64)> = values.iter().flat_map(|one| [*one, *one]).collect();
        assert!((mean(&values).1.unwrap() - mean(&twice).1.unwrap()).abs() < 1e-12);
        assert_eq!(mean(&[(1, 0.0), (1, 1.0)]), (0.5, None));
    }

    #[test]
    fn paired_errors_are_those_of_the_differences() {
        let items = items(&[1, 2, 3]);
        let (old, new) = ([0.1, 0.5, 0.9], [0.2, 0.6, 1.0]);
        let of = |values: [f64; 3]| values.map(|value| score(&[("ratio", value)]));
        let (old, new) = (of(old), of(new));
        let task = task("last-words").unwrap();
        let found = differences(task, &scored(&items, &old), &scored(&items, &new));
        // All differ by a tenth: the mean of the difference is certain, though those of the two are not.
        assert!((found[0].value - 0.1).abs() < 1e-12 && found[0].standard_error.unwrap() < 1e-12);
        let found = differences(task, &scored(&items, &old), &scored(&items, &of([0.2, 0.7, 1.2])));
        // Differences of .1, .2, .3: standard deviation .1, over sqrt(3).
        assert!((found[0].standard_error.unwrap() - 0.1 / 3.0f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn leaving_out_gives_the_error_of_a_mean_where_it_is_known() {
        let values = [0.3, 0.1, 0.8, 0.4, 0.9];
        let direct = mean(&values.iter().copied().enumerate().collect::<Vec<_>>()).1.unwrap();
        let sum: f64 = values.iter().sum();
        let found = jackknife(values.iter().map(|value| Some((sum - value) / 4.0)).collect()).unwrap();
        assert!((found - direct).abs() < 1e-12);
    }
}
