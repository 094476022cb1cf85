//! A report as one web page that needs nothing but itself.

use std::fmt::Write as _;

use wardrobe_eval::escape_html as escape;

use super::report::{Report, ServingResult, Target};
use super::svg::BarChart;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2733; --dim: #667585; --line: #d8dee5; --back: #fff; --panel: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --dim: #94a3b3; --line: #33404d; --back: #12181e; --panel: #1b232b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 1180px; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1rem; }
.charts svg { background: var(--panel); border-radius: 8px; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
svg .title { font-size: 13px; font-weight: 600; fill: var(--ink); } svg .value { font-size: 10px; }
svg line { stroke: var(--line); }
.s0 { fill: #3572b0; } .s1 { fill: #d9822b; } .s2 { fill: #4a9a63; } .s3 { fill: #8a63b8; } .s4 { fill: #b8475a; }
pre { background: var(--panel); border-radius: 8px; padding: 1rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }
";

impl Report {
    /// The report as a web page with plots, without scripts or anything from elsewhere.
    pub fn to_html(&self) -> String {
        let name = match &self.target {
            Target::Local(model) => model.path.rsplit('/').next().unwrap_or_default().to_owned(),
            Target::Remote { url, .. } => url.clone(),
        };
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>wardrobe bench: {0}</title>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{STYLE}</style></head>\n\
             <body><h1>wardrobe {1} · {0}</h1>\n",
            escape(&name),
            escape(&self.version)
        );
        let steps = self.step_charts();
        let serving = self.serving_charts();
        for (title, charts) in [("Steps", steps), ("Under load", serving)] {
            if charts.is_empty() {
                continue;
            }
            let _ = writeln!(out, "<h2>{title}</h2>\n<div class=\"charts\">");
            for chart in charts {
                let _ = writeln!(out, "{}", chart.to_svg());
            }
            out.push_str("</div>\n");
        }
        let _ = writeln!(out, "<h2>Numbers</h2>\n<pre>{}</pre>\n</body></html>", escape(&self.to_text()));
        out
    }

    fn step_charts(&self) -> Vec<BarChart<'static>> {
        let mut charts = Vec::new();
        for (prefix, title) in
            [("prefill_", "Prefill, by tokens of the prompt"), ("decode_", "Decode, by sequences at once")]
        {
            let steps: Vec<_> = self.steps.iter().filter(|s| s.name.starts_with(prefix)).collect();
            if steps.is_empty() {
                continue;
            }
            let groups: Vec<String> = steps.iter().map(|s| s.name.replacen(prefix, "", 1)).collect();
            let rates = steps.iter().map(|s| s.tokens_per_second).collect();
            charts.push(BarChart {
                title,
                unit: "tok/s",
                groups: groups.clone(),
                series: vec![("tok/s".to_owned(), rates)],
            });
            let percent = |share: Option<f64>| share.map_or(f64::NAN, |s| s * 100.0);
            let series: Vec<_> = [
                ("int8 rate", steps.iter().map(|s| percent(s.int8_share)).collect::<Vec<_>>()),
                ("read bandwidth", steps.iter().map(|s| percent(s.memory_share)).collect()),
            ]
            .into_iter()
            .filter(|(_, values)| values.iter().any(|v| v.is_finite()))
            .map(|(name, values)| (name.to_owned(), values))
            .collect();
            if !series.is_empty() {
                let title =
                    if prefix == "prefill_" { "Prefill, share of limits" } else { "Decode, share of limits" };
                charts.push(BarChart { title, unit: "%", groups, series });
            }
        }
        charts
    }

    fn serving_charts(&self) -> Vec<BarChart<'static>> {
        if self.serving.is_empty() {
            return Vec::new();
        }
        fn distinct(values: impl Iterator<Item = usize>) -> Vec<usize> {
            let mut seen = Vec::new();
            values.for_each(|v| {
                if !seen.contains(&v) {
                    seen.push(v)
                }
            });
            seen
        }
        let at_once = distinct(self.serving.iter().map(|s| s.concurrency));
        let adapters = distinct(self.serving.iter().map(|s| s.num_adapters));
        let values = |num_adapters: usize, value: fn(&ServingResult) -> f64| -> Vec<f64> {
            let find = |&c: &usize| {
                self.serving
                    .iter()
                    .find(|s| s.concurrency == c && s.num_adapters == num_adapters)
                    .map_or(f64::NAN, value)
            };
            at_once.iter().map(find).collect()
        };
        let label = |n: usize| if n == 0 { "base".to_owned() } else { format!("{n} adapters") };
        let groups: Vec<String> = at_once.iter().map(|c| format!("{c} at once")).collect();
        let throughput = adapters.iter().map(|&n| (label(n), values(n, |s| s.output_tokens_per_second)));
        let mut charts = vec![BarChart {
            title: "Throughput, tokens of answers",
            unit: "tok/s",
            groups: groups.clone(),
            series: throughput.collect(),
        }];
        type Value = fn(&ServingResult) -> f64;
        let latencies: [(&str, Value, Value); 2] = [
            ("Time to first token", |s| s.time_to_first_token_ms.p50, |s| s.time_to_first_token_ms.p99),
            ("Inter-token latency", |s| s.inter_token_latency_ms.p50, |s| s.inter_token_latency_ms.p99),
        ];
        for (title, p50, p99) in latencies {
            let series = adapters.iter().flat_map(|&n| {
                [(format!("p50 {}", label(n)), values(n, p50)), (format!("p99 {}", label(n)), values(n, p99))]
            });
            charts.push(BarChart { title, unit: "ms", groups: groups.clone(), series: series.collect() });
        }
        charts
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::full;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let page = full().to_html();
        assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.matches("<svg").count() >= 5);
        assert!(page.contains("a &lt;model&gt; &amp; more.gguf") && !page.contains("<model>"));
        for outside in ["<script", "http:", "https:", "src=", "url(", "NaN"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
