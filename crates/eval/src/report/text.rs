//! A report as text: tables for a terminal, then what went wrong.

use std::fmt::Write as _;

use super::{BaselineResult, Grouping, Report};
use crate::tasks::Metric;

impl Report {
    /// A table: a row for each target, one for each difference and one for the baseline, a column for each measure. Then the
    /// main measure by what it is grouped by, mistakes, costs, and what went wrong.
    pub fn to_text(&self) -> String {
        let mut text = columns(&self.rows());
        for group in &self.groups {
            let _ = write!(text, "\n{} by {}\n", self.main_measure, group.by.join(" and "));
            for rows in self.group_tables(group) {
                text.push_str(&columns(&rows));
            }
        }
        if let Some(rows) = self.mistake_rows() {
            let _ = write!(text, "\nmistakes, share of the answers\n{}", columns(&rows));
        }
        let _ = write!(text, "\nfor 1,000 questions\n{}", columns(&self.cost_rows()));
        let mut notes = Vec::new();
        if let Some(baseline) = &self.baseline {
            notes.push(format!("majority ({}): {}", baseline.source(), one_line(&baseline.answer)));
        }
        for result in &self.results {
            if result.num_cut > 0 {
                notes.push(format!(
                    "{}: {} answers cut off at {} tokens",
                    result.name,
                    result.num_cut,
                    self.max_tokens.unwrap_or_default()
                ));
            }
            if let Some(first) = result.failed.first() {
                notes.push(format!(
                    "{}: {} items failed, the first at {first}",
                    result.name,
                    result.failed.len()
                ));
            }
        }
        if let Some(first) = self.problems.first() {
            notes.push(format!("{} lines are no items, the first is {first}", self.problems.len()));
        }
        if !notes.is_empty() {
            text.push('\n');
        }
        for note in notes {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", one_line(&note));
        }
        text
    }

    /// Names of all measures, in the order of first appearance.
    pub(crate) fn measures(&self) -> Vec<&str> {
        let baseline = self.baseline.as_ref();
        let all = self.results.iter().map(|r| &r.metrics).chain(baseline.map(|b| &b.metrics));
        let mut names: Vec<&str> = Vec::new();
        for metric in all.flatten() {
            if !names.contains(&metric.name.as_str()) {
                names.push(&metric.name);
            }
        }
        names
    }

    /// Cells of the table, with a head.
    fn rows(&self) -> Vec<Vec<String>> {
        let names = self.measures();
        let row = |name: &str, num_items: usize, metrics: &[Metric], cell: &dyn Fn(&Metric) -> String| {
            let cell = |name: &&str| {
                let metric = metrics.iter().find(|metric| metric.name == *name);
                metric.map_or_else(|| "-".to_owned(), cell)
            };
            [one_line(name), num_items.to_string()].into_iter().chain(names.iter().map(cell)).collect()
        };
        let head = ["model", "n"].into_iter().chain(names.iter().copied()).map(one_line).collect();
        let plain = |metric: &Metric| rounded(metric.value);
        let signed = |metric: &Metric| difference(metric);
        let mut rows: Vec<Vec<String>> = vec![head];
        rows.extend(self.results.iter().map(|r| row(&r.name, r.num_scored, &r.metrics, &plain)));
        for one in &self.differences {
            rows.push(row(&format!("{} - {}", one.name, one.base), one.num_items, &one.metrics, &signed));
        }
        rows.extend(self.baseline.as_ref().map(|b| row("majority", b.num_items, &b.metrics, &plain)));
        rows
    }

    /// A row for each target, a column for each place; of a map, a table for each target.
    fn group_tables(&self, group: &Grouping) -> Vec<Vec<Vec<String>>> {
        let value = |cell: &super::Cell, target: usize| {
            let metric = cell.results.get(target).and_then(|result| result.metric(&self.main_measure));
            metric.map_or_else(|| "-".to_owned(), |metric| rounded(metric.value))
        };
        let worst = |target: &str| {
            let worst = group.worst.iter().find(|worst| worst.name == target);
            worst.map_or_else(|| "-".to_owned(), |worst| rounded(worst.value))
        };
        if let [_] = group.by.as_slice() {
            let head = group.cells.iter().flat_map(|cell| &cell.at).map(super::Range::shown);
            let mut rows: Vec<Vec<String>> =
                vec![[String::new()].into_iter().chain(head).chain(["worst".to_owned()]).collect()];
            for (target, result) in self.results.iter().enumerate() {
                let cells = group.cells.iter().map(|cell| value(cell, target));
                let own = [one_line(&result.name)].into_iter().chain(cells);
                rows.push(own.chain([worst(&result.name)]).collect());
            }
            return vec![rows];
        }
        let (down, across) = (group.axis(0), group.axis(1));
        let table = |(target, result): (usize, &super::TargetResult)| {
            let head = across.iter().map(super::Range::shown);
            let mut rows: Vec<Vec<String>> = vec![[one_line(&result.name)].into_iter().chain(head).collect()];
            for row in &down {
                let cells = across.iter().map(|column| {
                    group.cell(*row, *column).map_or_else(String::new, |cell| value(cell, target))
                });
                rows.push([row.shown()].into_iter().chain(cells).collect());
            }
            rows
        };
        self.results.iter().enumerate().map(table).collect()
    }

    pub(crate) fn mistake_rows(&self) -> Option<Vec<Vec<String>>> {
        let first = self.results.iter().find(|result| !result.mistakes.is_empty())?;
        let head = first.mistakes.iter().map(|share| share.mistake.name().to_owned());
        let mut rows: Vec<Vec<String>> = vec![["model".to_owned()].into_iter().chain(head).collect()];
        for result in &self.results {
            let shares = result.mistakes.iter().map(|share| rounded(share.share));
            rows.push([one_line(&result.name)].into_iter().chain(shares).collect());
        }
        Some(rows)
    }

    /// For a thousand questions: tokens, seconds, and what they cost.
    pub(crate) fn cost_rows(&self) -> Vec<Vec<String>> {
        let head = ["model", "prompt tokens", "of them cached", "answer tokens", "seconds", "cost"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for result in &self.results {
            let each = 1000.0 / result.num_scored.max(1) as f64;
            let whole = |value: u64| format!("{:.0}", value as f64 * each);
            rows.push(vec![
                one_line(&result.name),
                whole(result.prompt_tokens),
                whole(result.cached_tokens),
                whole(result.completion_tokens),
                format!("{:.1}", result.seconds * each),
                result.cost.map_or_else(|| "-".to_owned(), |cost| format!("{:.4}", cost.per_1000_queries)),
            ]);
        }
        if self.results.iter().all(|result| result.cost.is_none()) {
            rows.iter_mut().for_each(|row| row.truncate(5));
        }
        rows
    }
}

impl Grouping {
    /// The values along one of the numbers.
    pub(crate) fn axis(&self, axis: usize) -> Vec<super::Range> {
        let mut all: Vec<super::Range> =
            self.cells.iter().filter_map(|cell| cell.at.get(axis).copied()).collect();
        all.sort_by(|a, b| a.from.total_cmp(&b.from));
        all.dedup();
        all
    }

    /// What is at a place of a map.
    pub(crate) fn cell(&self, first: super::Range, second: super::Range) -> Option<&super::Cell> {
        self.cells.iter().find(|cell| cell.at == [first, second])
    }
}

impl BaselineResult {
    /// Which answers are counted.
    pub(crate) fn source(&self) -> &'static str {
        if self.from_train { "of the training set" } else { "of these items" }
    }
}

/// A value as tables have it.
pub(crate) fn rounded(value: f64) -> String {
    if value.abs() >= 1e6 { format!("{value:.2e}") } else { format!("{value:.3}") }
}

/// A difference with its standard error.
pub(crate) fn difference(metric: &Metric) -> String {
    let sign = if metric.value < 0.0 { "-" } else { "+" };
    let value = rounded(metric.value.abs());
    match metric.standard_error {
        Some(error) => format!("{sign}{value} ±{}", rounded(error)),
        None => format!("{sign}{value}"),
    }
}

/// Control characters of an answer do not reach a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn columns(rows: &[Vec<String>]) -> String {
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..num_columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            let _ = if at == 0 { write!(text, "{cell:width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}
