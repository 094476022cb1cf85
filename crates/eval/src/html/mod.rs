//! A report as one web page: tables, maps and curves, then every item with its right answers, answers and scores. Nothing
//! comes from elsewhere, nothing is asked for over the network, and without scripts only the filters are missing.

mod answers;
mod charts;

use std::fmt::Write as _;

use crate::report::{Report, difference, rounded};
use crate::tasks::Metric;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Problems that are listed; of more, how many.
const MAX_PROBLEMS: usize = 50;
/// Colours of targets.
const NUM_COLORS: usize = 8;

/// Text that stands for itself in HTML, between tags and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // HTML has no way to write the other control characters.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

impl Report {
    /// The report as a web page.
    pub fn to_html(&self) -> String {
        let model = self.model.as_deref().unwrap_or("evaluation");
        let title = escape(&format!("{}: {model}", self.task));
        // Writing to a String cannot fail.
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{STYLE}</style></head>\n\
             <body><h1>{title}</h1>\n<p class=\"dim\">{} items{}{}</p>\n",
            self.items.len(),
            self.data.as_ref().map(|data| format!(" of {}", escape(data))).unwrap_or_default(),
            self.max_tokens
                .map(|max| format!(", answers of at most {max} tokens, greedy"))
                .unwrap_or_default(),
        );
        self.write_summary(&mut out);
        self.write_groups(&mut out);
        if let Some(rows) = self.mistake_rows() {
            out.push_str("<h2>Mistakes, share of the answers</h2>\n");
            write_table(&rows, &mut out);
        }
        out.push_str("<h2>For 1,000 questions</h2>\n");
        write_table(&self.cost_rows(), &mut out);
        self.write_problems(&mut out);
        answers::write(self, &mut out);
        let _ = writeln!(out, "<script>\n{SCRIPT}</script>\n</body></html>");
        out
    }

    fn write_summary(&self, out: &mut String) {
        let measures = self.measures();
        out.push_str("<div class=\"scroll\"><table class=\"numbers\">\n<tr><th>model</th><th>n</th>");
        for name in &measures {
            let _ =
                write!(out, "<th>{}{}</th>", escape(name), if self.is_less_better(name) { " ↓" } else { "" });
        }
        out.push_str("</tr>\n");
        let find =
            |metrics: &[Metric], name: &str| metrics.iter().find(|metric| metric.name == name).cloned();
        let mut row = |class: &str, name: &str, num: usize, cell: &dyn Fn(&str) -> String| {
            let cells: String = measures.iter().map(|name| cell(name)).collect();
            let _ = writeln!(out, "<tr{class}><td>{}</td><td>{num}</td>{cells}</tr>", escape(name));
        };
        let with_error = |metric: Option<Metric>| match metric {
            Some(metric) => {
                let error = metric.standard_error.map(|error| format!(" <small>±{}</small>", rounded(error)));
                format!("<td>{}{}</td>", rounded(metric.value), error.unwrap_or_default())
            }
            None => "<td>-</td>".to_owned(),
        };
        for result in &self.results {
            row("", &result.name, result.num_scored, &|name| with_error(find(&result.metrics, name)));
            let Some(own) = self.differences.iter().find(|own| own.name == result.name) else { continue };
            let label = format!("difference from {}", own.base);
            row(" class=\"difference\"", &label, own.num_items, &|name| match find(&own.metrics, name) {
                Some(metric) => {
                    format!("<td class=\"{}\">{}</td>", self.verdict(&metric), escape(&difference(&metric)))
                }
                None => "<td>-</td>".to_owned(),
            });
        }
        if let Some(baseline) = &self.baseline {
            row("", "majority", baseline.num_items, &|name| with_error(find(&baseline.metrics, name)));
        }
        out.push_str("</table></div>\n");
        let _ = writeln!(
            out,
            "<p class=\"dim\">± is the standard error. A difference's is that of the items' own differences; one of two \
             standard errors and more is coloured. {}.</p>",
            escape(&self.about)
        );
        if let Some(baseline) = &self.baseline {
            let (source, answer) = (baseline.source(), escape(&excerpt(&baseline.answer, 300)));
            let _ =
                writeln!(out, "<p class=\"dim\">majority: the most frequent values {source}, {answer}</p>");
        }
    }

    /// Whether a difference is one, and to the better.
    fn verdict(&self, metric: &Metric) -> &'static str {
        let is_sure = metric.standard_error.is_some_and(|error| metric.value.abs() >= 2.0 * error);
        let is_better = (metric.value > 0.0) != self.is_less_better(&metric.name);
        match (is_sure && metric.value != 0.0, is_better) {
            (false, _) => "",
            (true, true) => "good",
            (true, false) => "bad",
        }
    }

    fn write_groups(&self, out: &mut String) {
        let (maps, curves): (Vec<_>, Vec<_>) = self.groups.iter().partition(|group| group.by.len() == 2);
        for group in maps {
            let by: Vec<String> = group.by.iter().map(|name| escape(name)).collect();
            let _ = writeln!(out, "<h2>{} by {}</h2>", escape(&self.main_measure), by.join(" and "));
            charts::maps(self, group, out);
            self.write_worst(group, out);
        }
        if curves.is_empty() {
            return;
        }
        out.push_str("<h2>Curves</h2>\n<div class=\"legend\">");
        for (target, result) in self.results.iter().enumerate() {
            let _ = write!(
                out,
                "<span class=\"key {}\"><span>{}</span></span>",
                color(target),
                escape(&result.name)
            );
        }
        out.push_str("</div>\n<div class=\"curves\">\n");
        curves.iter().for_each(|group| charts::curve(self, group, out));
        out.push_str("</div>\n");
        curves.iter().for_each(|group| self.write_worst(group, out));
    }

    fn write_worst(&self, group: &crate::report::Grouping, out: &mut String) {
        let one = |worst: &crate::report::Worst| {
            let at: Vec<String> = group
                .by
                .iter()
                .zip(&worst.at)
                .map(|(name, range)| format!("{name} {}", range.shown()))
                .collect();
            escape(&format!("{} {} at {}", worst.name, rounded(worst.value), at.join(", ")))
        };
        let all: Vec<String> = group.worst.iter().map(one).collect();
        let _ = writeln!(
            out,
            "<p class=\"dim\">worst by {}: {}</p>",
            escape(&group.by.join(" and ")),
            all.join("; ")
        );
    }

    fn write_problems(&self, out: &mut String) {
        let of_targets = self.results.iter().map(|result| (result.name.as_str(), &result.failed));
        let all = [("the data", &self.problems)].into_iter().chain(of_targets);
        for (name, problems) in all.filter(|(_, problems)| !problems.is_empty()) {
            let _ = writeln!(out, "<h2>Not in the means: {}</h2>\n<ul>", escape(name));
            for problem in problems.iter().take(MAX_PROBLEMS) {
                let _ = writeln!(out, "<li>{}</li>", escape(&excerpt(&problem.to_string(), 500)));
            }
            out.push_str("</ul>\n");
            if let Some(more @ 1..) = problems.len().checked_sub(MAX_PROBLEMS) {
                let _ = writeln!(out, "<p class=\"dim\">and {more} more</p>");
            }
        }
    }
}

fn write_table(rows: &[Vec<String>], out: &mut String) {
    out.push_str("<div class=\"scroll\"><table class=\"numbers\">\n");
    for (at, row) in rows.iter().enumerate() {
        let tag = if at == 0 { "th" } else { "td" };
        let cells: String = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        let _ = writeln!(out, "<tr>{cells}</tr>");
    }
    out.push_str("</table></div>\n");
}

/// The class of a target's colour.
fn color(target: usize) -> String {
    format!("t{}", target % NUM_COLORS)
}

/// The beginning of a text.
fn excerpt(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_an_answer_is_markup() {
        assert_eq!(escape("<b a='\"'>&\u{0}\n"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;\u{fffd}\n");
    }

    #[test]
    fn the_beginning_of_a_text_ends_between_characters() {
        assert_eq!(excerpt("äöü", 2), "äö…");
        assert_eq!(excerpt("äöü", 3), "äöü");
    }
}
