//! A report as one web page: the table, then every item with gold, answers and scores. No scripts, nothing from elsewhere.

use std::fmt::Write as _;

use crate::report::{Outcome, Report};
use crate::tasks::Score;

/// More of a question than this is not shown; the JSON report has all of it.
const MAX_QUESTION_CHARS: usize = 4000;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2733; --dim: #667585; --line: #d8dee5; --back: #fff; --panel: #f5f7f9;
  --bad: #b8475a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --dim: #94a3b3; --line: #33404d; --back: #12181e; --panel: #1b232b; --bad: #e58a99; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 1280px; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
.answers td { overflow-wrap: anywhere; min-width: 9rem; white-space: pre-wrap; }
.answers td:first-child { min-width: 2rem; }
.dim { color: var(--dim); } .bad { color: var(--bad); }
details summary { cursor: pointer; }
";

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
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{STYLE}</style></head>\n\
             <body><h1>{title}</h1>\n<p class=\"dim\">{} items{}, answers of at most {} tokens, greedy</p>\n",
            self.items.len(),
            self.data.as_ref().map(|data| format!(" of {}", escape(data))).unwrap_or_default(),
            self.max_tokens,
        );
        out.push_str("<div class=\"scroll\"><table class=\"numbers\">\n");
        for (at, row) in self.rows().iter().enumerate() {
            let tag = if at == 0 { "th" } else { "td" };
            let cells: String = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
            let _ = writeln!(out, "<tr>{cells}</tr>");
        }
        let _ = writeln!(out, "</table></div>\n<p class=\"dim\">{}.</p>", escape(&self.about));
        if let Some(baseline) = &self.baseline {
            let (source, answer) = (baseline.source(), escape(&baseline.answer));
            let _ =
                writeln!(out, "<p class=\"dim\">majority: the most frequent values {source}, {answer}</p>");
        }
        self.write_problems(&mut out);
        self.write_answers(&mut out);
        out.push_str("</body></html>\n");
        out
    }

    fn write_problems(&self, out: &mut String) {
        let of_targets = self.results.iter().map(|result| (result.name.as_str(), &result.failed));
        let all = [("the data", &self.problems)].into_iter().chain(of_targets);
        for (name, problems) in all.filter(|(_, problems)| !problems.is_empty()) {
            let _ = writeln!(out, "<h2>Not in the means: {}</h2>\n<ul>", escape(name));
            for problem in problems {
                let _ = writeln!(out, "<li>{}</li>", escape(&problem.to_string()));
            }
            out.push_str("</ul>\n");
        }
    }

    fn write_answers(&self, out: &mut String) {
        let names: String =
            self.results.iter().map(|result| format!("<th>{}</th>", escape(&result.name))).collect();
        let _ = writeln!(
            out,
            "<h2>Answers</h2>\n<div class=\"scroll\"><table class=\"answers\">\n<tr><th>line</th><th>question</th>\
             <th>gold</th>{names}</tr>"
        );
        for (at, item) in self.items.iter().enumerate() {
            let _ = write!(
                out,
                "<tr><td>{}</td><td><details><summary>{}</summary>{}</details></td><td>{}</td>",
                item.line,
                escape(&shortened(&item.question, 60)),
                escape(&shortened(&item.question, MAX_QUESTION_CHARS)),
                escape(&item.gold)
            );
            for result in &self.results {
                let _ = match result.outcomes.get(at) {
                    Some(Outcome::Answered(answer)) => write!(
                        out,
                        "<td>{}\n<span class=\"dim\">{}{}</span></td>",
                        escape(&answer.text),
                        escape(&scores(&answer.score)),
                        if answer.is_cut { " · cut off" } else { "" }
                    ),
                    Some(Outcome::Failed { message }) => {
                        write!(out, "<td class=\"bad\">{}</td>", escape(message))
                    }
                    None => write!(out, "<td></td>"),
                };
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</table></div>\n");
    }
}

fn shortened(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn scores(score: &Score) -> String {
    let parts: Vec<String> =
        score.0.iter().map(|(name, value)| format!("{name} {}", rounded(*value))).collect();
    parts.join(" · ")
}

fn rounded(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_an_answer_is_markup() {
        assert_eq!(escape("<b a='\"'>&\u{0}\n"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;\u{fffd}\n");
    }

    #[test]
    fn long_questions_are_cut_between_characters() {
        assert_eq!(shortened("äöü", 2), "äö…");
        assert_eq!(shortened("äöü", 3), "äöü");
    }
}
