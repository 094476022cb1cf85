//! A report as text for a terminal.

use std::fmt::Write as _;

use super::LabelReport;
use super::summary::{FieldSummary, LabelSummary, Numbers};
use crate::input::one_line;

/// Values of a field that are shown.
const SHOWN: usize = 6;
/// Of a value that is shown.
const MAX_CHARS: usize = 40;

impl LabelReport {
    /// Labels a second in this run; `None` if it had nothing to do.
    pub fn labels_per_second(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (self.num_written > 0 && seconds > 0.0).then(|| self.num_written as f64 / seconds)
    }

    /// What the output holds, for people.
    pub fn to_text(&self) -> String {
        let mut out = self.summary.head(self.num_records);
        let width = self.summary.fields.iter().map(|field| field.name().chars().count()).max().unwrap_or(0);
        for field in &self.summary.fields {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {:width$}  {}", field.name(), self.summary.describe(field));
        }
        if self.summary.num_left_out > 0 {
            let _ = writeln!(out, "  {} values of further fields are not counted", self.summary.num_left_out);
        }
        out
    }
}

impl LabelSummary {
    /// Records, errors and tokens.
    pub(super) fn head(&self, num_records: u64) -> String {
        let mut out = format!("{} of {num_records} records: {} labels", self.num_records(), self.num_labels);
        if self.num_cut > 0 {
            let _ = write!(out, ", {} of them cut short by max_tokens", self.num_cut);
        }
        let _ = writeln!(out, ", {} errors", self.num_errors);
        out.push_str(&self.errors.to_text());
        let usage = &self.usage;
        let _ = writeln!(
            out,
            "{} prompt tokens, {} of them cached; {} generated",
            usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
        );
        out
    }

    /// A field on one line.
    pub(super) fn describe(&self, field: &FieldSummary) -> String {
        let mut parts = Vec::new();
        if let Some(text) = spread(&field.numbers) {
            parts.push(text);
        }
        if let Some(text) = spread(&field.lengths) {
            parts.push(format!("items: {text}"));
        }
        // Of numbers that are all different the spread says it all.
        let is_scattered = field.numbers.num > 0 && field.values.len() > 2 * SHOWN;
        if !is_scattered {
            let values = field.most_frequent(SHOWN);
            parts.extend(
                values.iter().map(|(value, num)| {
                    format!("{} {}", one_line(value, MAX_CHARS), percent(*num, field.num))
                }),
            );
        }
        match (field.num_uncounted, field.values.len()) {
            (0, num) if num > SHOWN => parts.push(format!("{num} different")),
            (0, _) => {}
            (uncounted, num) => parts.push(format!("over {num} different, {uncounted} values not counted")),
        }
        for (what, num) in [("null", field.num_null), ("missing", field.num_missing(self))] {
            if num > 0 {
                parts.push(format!("{what} {}", percent(num, self.num_labels)));
            }
        }
        parts.join(" · ")
    }
}

impl FieldSummary {
    pub(super) fn name(&self) -> String {
        if self.path.is_empty() { "label".to_owned() } else { one_line(&self.path, MAX_CHARS) }
    }
}

fn spread(numbers: &Numbers) -> Option<String> {
    let mean = numbers.mean()?;
    Some(format!("{} to {}, mean {}", short(numbers.min), short(numbers.max), short(mean)))
}

fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1e15 => format!("{value:e}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.3}"),
    }
}

pub(super) fn percent(num: u64, of: u64) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * num as f64 / of as f64) }
}
