//! A report as one web page: totals, and how each field's values are distributed. No scripts, nothing from elsewhere.

use std::fmt::Write as _;

use wardrobe_eval::escape_html as escape;

use super::LabelReport;
use super::summary::{FieldSummary, LabelSummary};
use super::text::percent;

/// Values of a field that are shown.
const SHOWN: usize = 40;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2733; --dim: #667585; --line: #d8dee5; --back: #fff; --panel: #f5f7f9;
  --bar: #3572b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --dim: #94a3b3; --line: #33404d; --back: #12181e; --panel: #1b232b; --bar: #5b97d1; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 1180px; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
.fields { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1rem; }
.field { background: var(--panel); border-radius: 8px; padding: 1rem; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
td { padding: .15rem .5rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 1%; }
td.bar { width: 35%; } td.bar div { background: var(--bar); height: .8rem; margin-top: .25rem; border-radius: 2px; }
.dim { color: var(--dim); }
pre { background: var(--panel); border-radius: 8px; padding: 1rem; overflow-x: auto; font-size: 13px; }
";

impl LabelReport {
    /// What the output holds, as a web page. `title` says what was labelled by what.
    pub fn to_html(&self, title: &str) -> String {
        let title = escape(title);
        // Writing to a String cannot fail.
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{STYLE}</style></head>\n\
             <body><h1>{title}</h1>\n<pre>{}</pre>\n<div class=\"fields\">\n",
            escape(self.summary.head(self.num_records).trim_end())
        );
        for field in &self.summary.fields {
            write_field(&mut out, field, &self.summary);
        }
        out.push_str("</div>\n");
        if self.summary.num_left_out > 0 {
            let num = self.summary.num_left_out;
            let _ = writeln!(out, "<p class=\"dim\">{num} values of further fields are not counted.</p>");
        }
        out.push_str("</body></html>\n");
        out
    }
}

fn write_field(out: &mut String, field: &FieldSummary, summary: &LabelSummary) {
    let _ = writeln!(
        out,
        "<div class=\"field\"><h2>{}</h2>\n<p class=\"dim\">{}</p>\n<table>",
        escape(&field.name()),
        escape(&summary.describe(field))
    );
    let values = field.most_frequent(SHOWN);
    let most = values.first().map_or(1, |(_, num)| (*num).max(1));
    for (value, num) in values {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class=\"bar\"><div style=\"width:{:.1}%\"></div></td>\
             <td class=\"number\">{num}</td><td class=\"number\">{}</td></tr>",
            escape(value),
            100.0 * num as f64 / most as f64,
            percent(num, field.num)
        );
    }
    out.push_str("</table>\n");
    if field.values.len() > SHOWN {
        let _ = writeln!(out, "<p class=\"dim\">and {} more</p>", field.values.len() - SHOWN);
    }
    out.push_str("</div>\n");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::{Ended, LabelLine};
    use super::*;

    #[test]
    fn nothing_of_a_label_is_markup() {
        let mut summary = LabelSummary::default();
        let label = json!({"<b>a</b>": "<script>alert('x')</script>", "n": 3});
        summary.add(&LabelLine { label, ..LabelLine::default() });
        let (ended, elapsed) = (Ended::Complete, Duration::from_secs(1));
        let report = LabelReport { ended, num_records: 1, num_before: 0, num_written: 1, elapsed, summary };
        let page = report.to_html("a <i> & b");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)") && page.contains("a &lt;i&gt; &amp; b"));
        for markup in ["<b>", "<script", "<i>", "http"] {
            assert!(!page.contains(markup), "{markup}");
        }
        let text = report.to_text();
        assert!(text.contains("1 of 1 records: 1 labels, 0 errors") && text.contains("3 to 3"), "{text}");
    }
}
