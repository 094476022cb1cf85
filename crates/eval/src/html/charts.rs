//! Curves and maps of what measures are grouped by.

use std::fmt::Write as _;

use super::{color, escape};
use crate::report::{Cell, Grouping, Report, rounded};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// A label of the axis takes about so much room.
const LABEL_WIDTH: f64 = 46.0;

/// Values from the least to the greatest; no range at all is widened.
struct Span {
    low: f64,
    high: f64,
}

impl Span {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low < high { Self { low, high } } else { Self { low: low.min(0.0), high: high.max(low + 1.0) } }
    }

    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// Shares stay between 0 and 1; everything else has the room that it needs.
fn span(values: &[f64]) -> Span {
    if values.iter().all(|value| (0.0..=1.0).contains(value)) {
        return Span { low: 0.0, high: 1.0 };
    }
    Span::of(values.iter().copied())
}

fn main_value(report: &Report, cell: &Cell, target: usize) -> Option<(f64, f64)> {
    let metric = cell.results.get(target)?.metric(&report.main_measure)?;
    Some((metric.value, metric.standard_error.unwrap_or(0.0)))
}

fn all_values(report: &Report, group: &Grouping) -> Vec<f64> {
    let targets = 0..report.results.len();
    let values = group.cells.iter().flat_map(|cell| targets.clone().map(move |target| (cell, target)));
    values.filter_map(|(cell, target)| main_value(report, cell, target)).map(|(value, _)| value).collect()
}

/// A curve for each target over one number.
pub(super) fn curve(report: &Report, group: &Grouping, out: &mut String) {
    let values = all_values(report, group);
    let places: Vec<f64> =
        group.cells.iter().filter_map(|cell| cell.at.first()).map(|r| (r.from + r.to) / 2.0).collect();
    let (Some(first), Some(last)) = (places.first().copied(), places.last().copied()) else { return };
    if values.is_empty() {
        return;
    }
    let y_span = span(&values);
    // Lengths that double are shown on a scale on which they are apart.
    let is_log = first > 0.0 && last / first >= 8.0 && places.is_sorted_by(|a, b| *b >= 1.5 * a);
    let scale = |value: f64| if is_log { value.ln() } else { value };
    let x_span = Span::of([scale(first), scale(last)].into_iter());
    let x = |value: f64| LEFT + x_span.share(scale(value)) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - y_span.share(value) * (HEIGHT - TOP - BOTTOM);
    let by = group.by.first().map(String::as_str).unwrap_or_default();
    let _ = write!(
        out,
        "<figure><h3>{0} by {1}</h3><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0} by {1}\">",
        escape(&report.main_measure),
        escape(by)
    );
    for step in 0..=4 {
        let value = y_span.low + (y_span.high - y_span.low) * f64::from(step) / 4.0;
        let at = y(value);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            tick(value)
        );
    }
    let mut free_from = f64::NEG_INFINITY;
    for (cell, place) in group.cells.iter().zip(&places) {
        let at = x(*place);
        let label = cell.at.first().map(crate::report::Range::shown).unwrap_or_default();
        let half = LABEL_WIDTH.max(label.chars().count() as f64 * 6.5) / 2.0;
        if at - half >= free_from {
            free_from = at + half;
            let _ = write!(
                out,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM + 18.0,
                escape(&label)
            );
        }
    }
    for (target, result) in report.results.iter().enumerate() {
        let class = color(target);
        let points: Vec<(f64, f64, String)> = group
            .cells
            .iter()
            .zip(&places)
            .filter_map(|(cell, place)| {
                let (value, error) = main_value(report, cell, target)?;
                let whiskers = (error > 0.0).then(|| {
                    let (low, high) = (y(value - error), y(value + error));
                    let at = x(*place);
                    format!("<line class=\"whisker {class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>")
                });
                out.push_str(&whiskers.unwrap_or_default());
                let label = cell.at.first().map(crate::report::Range::shown).unwrap_or_default();
                Some((x(*place), y(value), format!("{}, {by} {label}: {}", result.name, rounded(value))))
            })
            .collect();
        let line: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(out, "<polyline class=\"{class}\" points=\"{}\"/>", line.join(" "));
        for (x, y, title) in &points {
            let _ = write!(
                out,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{}</title></circle>",
                escape(title)
            );
        }
    }
    out.push_str("</svg></figure>\n");
}

fn tick(value: f64) -> String {
    match value.abs() {
        large if large >= 1e5 => format!("{value:.0e}"),
        large if large >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// A map for each target over two numbers: the first down, the second across.
pub(super) fn maps(report: &Report, group: &Grouping, out: &mut String) {
    let span = span(&all_values(report, group));
    let (down, across) = (group.axis(0), group.axis(1));
    let [down_name, across_name] = group.by.as_slice() else { return };
    out.push_str("<div class=\"maps\">\n");
    for (target, result) in report.results.iter().enumerate() {
        let _ = write!(
            out,
            "<div><h3>{}</h3><div class=\"scroll\"><table class=\"map\"><thead><tr><th>{} \\ {}</th>",
            escape(&result.name),
            escape(down_name),
            escape(across_name)
        );
        across.iter().for_each(|range| {
            let _ = write!(out, "<th>{}</th>", escape(&range.shown()));
        });
        out.push_str("</tr></thead><tbody>\n");
        for row in &down {
            let _ = write!(out, "<tr><th>{}</th>", escape(&row.shown()));
            for column in &across {
                let cell = group.cell(*row, *column);
                let _ = match cell.and_then(|cell| Some((cell, main_value(report, cell, target)?))) {
                    Some((cell, (value, error))) => write!(
                        out,
                        "<td style=\"--v:{:.3}\" title=\"{} items, standard error {}\">{}</td>",
                        span.share(value),
                        cell.num_items,
                        rounded(error),
                        tick(value)
                    ),
                    None => write!(out, "<td class=\"none\"></td>"),
                };
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div></div>\n");
    }
    out.push_str("</div>\n");
}
