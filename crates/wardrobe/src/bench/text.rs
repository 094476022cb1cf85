//! A report as a table for the terminal.

use std::fmt::Write as _;

use super::report::{AdapterResult, Report, Target};

/// Rows of text in columns: the first to the left, the others to the right.
struct Table(Vec<Vec<String>>);

impl Table {
    fn new(head: &[&str]) -> Self {
        Table(vec![head.iter().map(|s| (*s).to_owned()).collect()])
    }

    fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    fn write(&self, out: &mut String) {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |c: usize| self.0.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.0 {
            let mut line = String::from(" ");
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = match i {
                    0 => write!(line, " {cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
}

/// A share of a limit; `-` where there is none.
pub(super) fn share(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |s| format!("{:.0} %", s * 100.0))
}

/// Three digits that count.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn mb(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

impl Report {
    /// The report as text, some 40 lines.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let m = &self.machine;
        let _ = match &self.target {
            Target::Local(model) => {
                let weights = mb(model.weight_bytes as f64);
                let weights = match &model.dummy {
                    Some(dummy) => format!("{weights} of made-up weights, {dummy}"),
                    None => format!("{} on disk, {weights} of weights", mb(model.file_bytes as f64)),
                };
                writeln!(out, "{} ({weights})\n{}, {}", model.path, m.cpu, model.device)
            }
            Target::Remote { url, models } => {
                writeln!(out, "{url}: {}\nasked from {}, {} threads", models.join(", "), m.cpu, m.num_threads)
            }
        };
        if !m.load_average.is_empty() {
            let _ = writeln!(out, "load average at the start: {}", m.load_average);
        }
        self.write_limits(&mut out);
        self.write_steps(&mut out);
        if let Some(adapters) = &self.adapters {
            write_adapters(&mut out, adapters);
        }
        self.write_serving(&mut out);
        self.write_startup_and_memory(&mut out);
        out
    }

    fn write_limits(&self, out: &mut String) {
        let Some(limits) = &self.limits else { return };
        let _ = writeln!(out, "\nThe machine's own limits, measured in this run");
        let mut table = Table::new(&[]);
        for read in &limits.read {
            let size = read.buffer_bytes >> 20;
            let rate = format!("{} GB/s", number(read.bytes_per_second / 1e9));
            table.row(vec![format!("reading {size} MiB again and again"), rate]);
        }
        table
            .row(vec!["int8 products".into(), format!("{} GOP/s", number(limits.int8_ops_per_second / 1e9))]);
        table
            .row(vec!["f32 products".into(), format!("{} GFLOP/s", number(limits.f32_ops_per_second / 1e9))]);
        table.write(out);
    }

    fn write_steps(&self, out: &mut String) {
        if self.steps.is_empty() {
            return;
        }
        let _ = writeln!(
            out,
            "\nSteps, and their share of the limits (reading as of the smaller, then the larger buffer)"
        );
        let mut table = Table::new(&["", "tok/s", "median ms", "best ms", "int8", "read", "read"]);
        for step in &self.steps {
            table.row(vec![
                step.name.replace('_', " "),
                number(step.tokens_per_second),
                number(step.median_ms),
                number(step.best_ms),
                share(step.int8_share),
                share(step.cached_share),
                share(step.memory_share),
            ]);
        }
        table.write(out);
    }

    fn write_serving(&self, out: &mut String) {
        if self.serving.is_empty() {
            return;
        }
        let _ = writeln!(out, "\nUnder load (time to first token and inter-token latency in ms)");
        let mut table = Table::new(&[
            "at once",
            "adapters",
            "requests",
            "prompt",
            "output",
            "out tok/s",
            "all tok/s",
            "TTFT p50",
            "p99",
            "ITL p50",
            "p99",
        ]);
        for s in &self.serving {
            let (ttft, itl) = (s.time_to_first_token_ms, s.inter_token_latency_ms);
            let mut row: Vec<String> =
                [s.concurrency, s.num_adapters, s.num_requests, s.prompt_tokens, s.output_tokens]
                    .map(|n| n.to_string())
                    .into();
            row.extend([s.output_tokens_per_second, s.total_tokens_per_second].map(number));
            row.extend([ttft.p50, ttft.p99, itl.p50, itl.p99].map(number));
            table.row(row);
        }
        table.write(out);
    }

    fn write_startup_and_memory(&self, out: &mut String) {
        if let Some(s) = &self.startup {
            let _ = writeln!(
                out,
                "\nStart to first token: {} ms (open {}, engine {}, first token {})",
                number(s.total_ms),
                number(s.open_ms),
                number(s.engine_ms),
                number(s.first_token_ms)
            );
        }
        if let Some(m) = &self.memory {
            let _ = writeln!(
                out,
                "Peak memory: {}; less the file ({}) and keys and values in use ({} of {}): {}, of which adapters {}",
                mb(m.peak_bytes as f64),
                mb(m.file_bytes as f64),
                mb(m.kv_touched_bytes as f64),
                mb(m.kv_limit_bytes as f64),
                mb(m.rest_bytes as f64),
                mb(m.adapter_bytes as f64)
            );
        }
    }
}

fn write_adapters(out: &mut String, a: &AdapterResult) {
    let _ = writeln!(out, "\nAdapters of rank {} on every linear layer", a.rank);
    let mut table = Table::new(&[]);
    if a.num_adapters > 0 {
        table.row(vec![
            format!("{} adapters over {} sequences add", a.num_adapters, a.num_sequences),
            format!("{} ms", number(a.added_ms)),
            match (a.least_ms, a.added_over_least, a.added_over_least_as_given) {
                (Some(least), Some(held), Some(given)) => format!(
                    "{} x the least possible, {} ms as they are held; {} x as files have them",
                    number(held),
                    number(least),
                    number(given)
                ),
                _ => String::new(),
            },
        ]);
        let ratio = format!("{:.3} of the throughput without", a.unused_ratio);
        table.row(vec!["loaded, none used".into(), ratio]);
    }
    for (what, times) in [
        ("replace one that is resident", a.replace_resident_ms),
        ("replace one in process, checks included", a.replace_in_process_ms),
        ("load one from disk, checks included", a.load_from_disk_ms),
    ] {
        if times.count > 0 {
            table.row(vec![
                what.into(),
                format!("{} ms", number(times.p50)),
                format!("p99 {}", number(times.p99)),
            ]);
        }
    }
    table.write(out);
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::machine::{Limits, Machine, Read};
    use super::super::report::{MemoryResult, ModelInfo, ServingResult, StartupResult, StepResult};
    use super::super::stats::Percentiles;
    use super::*;

    /// A report with something in every part.
    pub(in super::super) fn full() -> Report {
        let path = "a <model> & more.gguf".to_owned();
        let mut report =
            Report::new(Target::Local(ModelInfo { path, ..ModelInfo::default() }), Machine::default());
        report.steps.push(StepResult {
            name: "decode_1".to_owned(),
            num_tokens: 1,
            median_ms: 4.0,
            best_ms: 3.5,
            tokens_per_second: 250.0,
            weight_bytes: 1e8,
            ..StepResult::default()
        });
        let times = Percentiles { p50: 1.5, p99: 2.5, count: 9 };
        report.adapters = Some(AdapterResult {
            rank: 16,
            num_adapters: 8,
            num_sequences: 32,
            adapter_bytes: 100_000_000,
            given_bytes: 200_000_000,
            added_ms: 7.5,
            unused_ratio: 0.998,
            load_from_disk_ms: times,
            ..AdapterResult::default()
        });
        for (concurrency, num_adapters) in [(1, 0), (8, 0), (1, 4), (8, 4)] {
            report.serving.push(ServingResult {
                concurrency,
                num_adapters,
                output_tokens_per_second: 123.4,
                time_to_first_token_ms: times,
                inter_token_latency_ms: times,
                ..ServingResult::default()
            });
        }
        report.startup = Some(StartupResult { total_ms: 321.0, ..StartupResult::default() });
        report.memory = Some(MemoryResult { rest_bytes: -3, ..MemoryResult::default() });
        report.set_limits(Limits {
            device: "cpu".to_owned(),
            read: vec![Read { buffer_bytes: 96 << 20, bytes_per_second: 5e10 }],
            int8_ops_per_second: 9.2e11,
            f32_ops_per_second: 2.25e11,
        });
        report
    }

    #[test]
    fn every_part_is_there() {
        let text = full().to_text();
        for part in [
            "50.0 GB/s",
            "920 GOP/s",
            "decode 1",
            "50 %",
            "3.75 x the least",
            "1.88 x as files",
            "0.998",
            "123",
            "321 ms",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["", "long head"]);
        table.row(vec!["a".into(), "1".into()]);
        table.row(vec!["bcd".into(), "100".into()]);
        let mut out = String::new();
        table.write(&mut out);
        assert_eq!(out, "       long head\n  a            1\n  bcd        100\n");
    }

    #[test]
    fn the_json_has_the_parts() {
        let json = serde_json::to_value(full()).unwrap();
        assert_eq!(json.pointer("/target/kind").unwrap(), "local");
        assert_eq!(json.pointer("/steps/0/name").unwrap(), "decode_1");
        assert_eq!(json.pointer("/serving/3/num_adapters").unwrap(), 4);
    }
}
