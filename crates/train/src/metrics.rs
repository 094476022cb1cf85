//! The numbers of a run in its folder: `metrics.jsonl`, a line for each step and evaluation, and `training.html`, the same
//! as curves in a page without scripts that loads itself again while the run goes on.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::checkpoint::write_whole;
use crate::error::{Result, TrainError};
use crate::event::StepMetrics;

const METRICS_FILE: &str = "metrics.jsonl";
const PAGE_FILE: &str = "training.html";
/// How often the page is written.
const PAGE_EVERY: Duration = Duration::from_secs(2);

/// Both files.
#[derive(Debug)]
pub(crate) struct Metrics {
    folder: PathBuf,
    file: Option<File>,
    losses: Vec<(f64, f64)>,
    evals: Vec<(f64, f64)>,
    rates: Vec<(f64, f64)>,
    last: Option<StepMetrics>,
    page_written: Option<Instant>,
}

impl Metrics {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        Ok(Metrics {
            folder: folder.to_owned(),
            file: None,
            losses: Vec::new(),
            evals: Vec::new(),
            rates: Vec::new(),
            last: None,
            page_written: None,
        })
    }

    /// Keeps the lines up to `step`, which a resumed run goes on after.
    pub(crate) fn rewind(&mut self, step: usize) -> Result<()> {
        let path = self.folder.join(METRICS_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(TrainError::io(&path)(e)),
        };
        let mut kept = String::new();
        for line in text.lines() {
            // A line that a dying process did not finish is none.
            let Ok(value) = serde_json::from_str::<Value>(line) else { continue };
            let number = |key: &str| value.get(key).and_then(Value::as_f64);
            let Some(at) = number("step").filter(|&s| s <= step as f64) else { continue };
            match (number("loss"), number("eval_loss")) {
                (Some(loss), _) => self.add_step(at, loss, number("learning_rate").unwrap_or(0.0)),
                (None, Some(loss)) => self.evals.push((at, loss)),
                (None, None) => {}
            }
            kept.push_str(line);
            kept.push('\n');
        }
        write_whole(&path, kept.as_bytes())
    }

    fn add_step(&mut self, step: f64, loss: f64, rate: f64) {
        self.losses.push((step, loss));
        self.rates.push((step, rate));
    }

    fn line(&mut self, value: &Value) -> Result<()> {
        let path = self.folder.join(METRICS_FILE);
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().create(true).append(true).open(&path);
                none.insert(file.map_err(TrainError::io(&path))?)
            }
        };
        file.write_all(format!("{value}\n").as_bytes()).map_err(TrainError::io(&path))
    }

    pub(crate) fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.line(&json!(metrics))?;
        self.add_step(metrics.step as f64, metrics.loss, metrics.learning_rate);
        self.last = Some(metrics.clone());
        if self.page_written.is_none_or(|at| at.elapsed() >= PAGE_EVERY) {
            self.page(true)?;
        }
        Ok(())
    }

    pub(crate) fn eval(&mut self, step: usize, loss: f64) -> Result<()> {
        self.line(&json!({ "step": step, "eval_loss": loss }))?;
        self.evals.push((step as f64, loss));
        self.page(true)
    }

    /// The last state of both files.
    pub(crate) fn close(&mut self) -> Result<()> {
        if let Some(file) = &self.file {
            file.sync_all().map_err(TrainError::io(self.folder.join(METRICS_FILE)))?;
        }
        self.page(false)
    }

    fn page(&mut self, is_running: bool) -> Result<()> {
        self.page_written = Some(Instant::now());
        let path = self.folder.join(PAGE_FILE);
        write_whole(&path, self.html(is_running).as_bytes())
    }

    fn html(&self, is_running: bool) -> String {
        let refresh = if is_running { "<meta http-equiv=\"refresh\" content=\"3\">" } else { "" };
        let state = match (&self.last, is_running) {
            (Some(m), true) => {
                let left =
                    (m.total_steps - m.step.min(m.total_steps)) as f64 * m.total_seconds / m.step as f64;
                format!(
                    "step {} of {}, loss {:.3}, {:.0} tokens a second, {} left",
                    m.step,
                    m.total_steps,
                    m.loss,
                    m.tokens_per_second,
                    duration(left)
                )
            }
            (Some(m), false) => {
                format!("done: {} steps in {}, last loss {:.3}", m.step, duration(m.total_seconds), m.loss)
            }
            (None, _) => "nothing computed yet".to_owned(),
        };
        let evals = if self.evals.is_empty() { "" } else { " and of the evaluation set (orange)" };
        let losses = chart(&[(&self.losses, "#3b6fb6"), (&self.evals, "#d9822b")], false);
        let rates = chart(&[(&self.rates, "#5b8f3b")], true);
        format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">{refresh}<title>Training</title>\
             <style>body{{font:15px system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}}\
             svg{{width:100%;height:auto}}text{{font:11px system-ui,sans-serif;fill:#555}}\
             @media(prefers-color-scheme:dark){{body{{background:#16181c;color:#ddd}}text{{fill:#aaa}}}}</style></head>\
             <body><h1>Training</h1><p>{state}</p><h2>Loss</h2><p>Nats a token, of each step (blue){evals}.</p>{losses}\
             <h2>Learning rate</h2>{rates}</body></html>\n"
        )
    }
}

/// Hours, minutes and seconds.
fn duration(seconds: f64) -> String {
    let s = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// Lines over steps, as SVG.
fn chart(series: &[(&Vec<(f64, f64)>, &str)], scientific: bool) -> String {
    const WIDTH: f64 = 860.0;
    const HEIGHT: f64 = 300.0;
    const LEFT: f64 = 60.0;
    const BOTTOM: f64 = 24.0;
    const TICKS: usize = 5;
    let points = || series.iter().flat_map(|(points, _)| points.iter());
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    let top = points().map(|p| p.1).filter(|y| y.is_finite()).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.05 } else { 1.0 };
    let x = |step: f64| LEFT + (WIDTH - LEFT - 10.0) * step / last;
    let y = |value: f64| 8.0 + (HEIGHT - BOTTOM - 8.0) * (1.0 - value / top);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for tick in 0..=TICKS {
        let value = top * tick as f64 / TICKS as f64;
        let label = if scientific { format!("{value:.1e}") } else { format!("{value:.2}") };
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#8884\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - 10.0,
            y(value),
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
        );
        let step = (last * tick as f64 / TICKS as f64).round();
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            x(step),
            HEIGHT - 6.0
        );
    }
    for (points, colour) in series {
        let line: Vec<String> = points
            .iter()
            .filter(|p| p.1.is_finite())
            .map(|&(step, value)| format!("{:.1},{:.1}", x(step), y(value)))
            .collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            line.join(" ")
        );
    }
    svg.push_str("</svg>");
    svg
}
