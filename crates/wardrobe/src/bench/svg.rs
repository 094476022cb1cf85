//! Bar charts as inline SVG.

use std::fmt::Write as _;

use super::text::number;
use wardrobe_eval::escape_html as escape;

/// A chart of grouped vertical bars.
pub(super) struct BarChart<'a> {
    /// Its title.
    pub(super) title: &'a str,
    /// Unit of the values.
    pub(super) unit: &'a str,
    /// What the groups are, under the axis.
    pub(super) groups: Vec<String>,
    /// Name and values of each series, one value a group.
    pub(super) series: Vec<(String, Vec<f64>)>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 32.0;
const NUM_TICKS: usize = 4;

impl BarChart<'_> {
    /// The chart as an `<svg>` element, coloured by the classes `s0`, `s1`, …
    pub(super) fn to_svg(&self) -> String {
        let values = self.series.iter().flat_map(|(_, values)| values.iter().copied());
        let step = tick_step(values.filter(|v| v.is_finite()).fold(0.0, f64::max));
        let most = step * NUM_TICKS as f64;
        let (plot_width, plot_height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let y = |value: f64| TOP + plot_height * (1.0 - (value / most).clamp(0.0, 1.0));
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\">\
             <text class=\"title\" x=\"8\" y=\"18\">{0}</text>\
             <text class=\"unit\" x=\"{LEFT}\" y=\"{1}\" text-anchor=\"end\">{2}</text>",
            escape(self.title),
            TOP - 12.0,
            escape(self.unit)
        );
        for tick in 0..=NUM_TICKS {
            let value = step * tick as f64;
            let _ = write!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>\
                 <text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
                WIDTH - RIGHT,
                y(value),
                LEFT - 6.0,
                y(value) + 4.0,
                tick_label(value)
            );
        }
        let group_width = plot_width / self.groups.len().max(1) as f64;
        let bar_width = (group_width * 0.8 / self.series.len().max(1) as f64).min(56.0);
        for (g, group) in self.groups.iter().enumerate() {
            let middle = LEFT + group_width * (g as f64 + 0.5);
            let first = middle - bar_width * self.series.len() as f64 / 2.0;
            for (s, (name, values)) in self.series.iter().enumerate() {
                let Some(&value) = values.get(g).filter(|v| v.is_finite()) else { continue };
                let _ = write!(
                    out,
                    "<rect class=\"s{s}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                     <title>{}, {}: {} {}</title></rect>",
                    first + bar_width * s as f64,
                    y(value),
                    bar_width - 2.0,
                    (HEIGHT - BOTTOM - y(value)).max(0.0),
                    escape(name),
                    escape(group),
                    number(value),
                    escape(self.unit)
                );
                let _ = write!(
                    out,
                    "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    first + bar_width * (s as f64 + 0.5) - 1.0,
                    y(value) - 3.0,
                    number(value)
                );
            }
            let _ = write!(
                out,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM + 16.0,
                escape(group)
            );
        }
        if self.series.len() > 1 {
            let mut x = LEFT + 20.0;
            for (s, (name, _)) in self.series.iter().enumerate() {
                let _ = write!(
                    out,
                    "<rect class=\"s{s}\" x=\"{x:.1}\" y=\"28\" width=\"10\" height=\"10\"/>\
                     <text x=\"{:.1}\" y=\"37\">{}</text>",
                    x + 14.0,
                    escape(name)
                );
                x += 34.0 + 6.5 * name.chars().count() as f64;
            }
        }
        out.push_str("</svg>");
        out
    }
}

fn tick_label(value: f64) -> String {
    if value == value.round() { format!("{value:.0}") } else { format!("{value}") }
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten by which the ticks reach `most`.
fn tick_step(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let least = most / NUM_TICKS as f64;
    let power = 10_f64.powf(least.log10().floor());
    let fits = |factor: &f64| factor * power >= least * (1.0 - 1e-9);
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(fits).unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        for (most, step) in [(0.0, 1.0), (4.0, 1.0), (4.1, 2.0), (9.0, 2.5), (2140.0, 1000.0), (0.03, 0.01)] {
            assert!((tick_step(most) - step).abs() < 1e-9 * step, "{most}: {}", tick_step(most));
        }
    }

    #[test]
    fn bars_are_as_high_as_their_values() {
        let chart = BarChart {
            title: "t",
            unit: "u",
            groups: vec!["a".into(), "b".into()],
            series: vec![("s".into(), vec![4.0, 1.0])],
        };
        let svg = chart.to_svg();
        let full = HEIGHT - TOP - BOTTOM;
        assert!(svg.contains(&format!("height=\"{full:.1}\"")), "{svg}");
        assert!(svg.contains(&format!("height=\"{:.1}\"", full / 4.0)), "{svg}");
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let chart = BarChart {
            title: "<t>",
            unit: "",
            groups: vec!["a".into()],
            series: vec![("s".into(), vec![f64::NAN])],
        };
        let svg = chart.to_svg();
        assert!(!svg.contains("NaN") && svg.contains("&lt;t&gt;"));
    }
}
