//! What a pull or a merge does, shown: a bar on a terminal, a line now and then elsewhere; and a model that is being
//! opened: a bar on a terminal.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use wardrobe_hub::Progress;

use super::output;

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

const KNOWN_SIZE: &str =
    "{msg} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes} · {decimal_bytes_per_sec} · {eta} left";
const OPENING: &str = "opening {msg} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes}";
const MERGING: &str = "merging {msg} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes} · {eta} left";
const UNKNOWN_SIZE: &str = "{msg} {spinner} {decimal_bytes} · {decimal_bytes_per_sec}";

/// Shows a pull on standard error.
pub struct PullProgress {
    terminal: bool,
    bar: RefCell<Option<ProgressBar>>,
    what: RefCell<String>,
    total_bytes: Cell<Option<u64>>,
    bytes: Cell<u64>,
    started: Cell<Instant>,
    last_line: Cell<Instant>,
    verbose: bool,
}

impl PullProgress {
    /// `verbose` also tells what needs no network, such as that a model is in the cache.
    pub fn new(verbose: bool) -> Self {
        let now = Instant::now();
        Self {
            terminal: output::stderr_is_terminal(),
            bar: RefCell::new(None),
            what: RefCell::new(String::new()),
            total_bytes: Cell::new(None),
            bytes: Cell::new(0),
            started: Cell::new(now),
            last_line: Cell::new(now),
            verbose,
        }
    }

    fn line(&self) {
        let bytes = self.bytes.get();
        let what = self.what.borrow();
        let seconds = self.started.get().elapsed().as_secs_f64().max(1e-3);
        let speed = output::size((bytes as f64 / seconds) as u64);
        match self.total_bytes.get().filter(|total| *total > 0) {
            Some(total) => {
                let percent = bytes.saturating_mul(100) / total;
                output::note(&format!("{what}: {percent} % of {}, {speed}/s", output::size(total)));
            }
            None => output::note(&format!("{what}: {}, {speed}/s", output::size(bytes))),
        }
    }
}

impl Progress for PullProgress {
    fn started(&self, what: &str, total_bytes: Option<u64>) {
        self.finished();
        let now = Instant::now();
        self.what.replace(what.to_owned());
        self.total_bytes.set(total_bytes);
        self.bytes.set(0);
        self.started.set(now);
        self.last_line.set(now);
        if !self.terminal {
            let size = total_bytes.map_or_else(String::new, |total| format!(" ({})", output::size(total)));
            output::note(&format!("getting {what}{size}"));
            return;
        }
        let bar = ProgressBar::with_draw_target(total_bytes, ProgressDrawTarget::stderr());
        let template = if total_bytes.is_some() { KNOWN_SIZE } else { UNKNOWN_SIZE };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_message(output::one_line(what, 40));
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar.replace(Some(bar));
    }

    fn advanced(&self, bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        match &*self.bar.borrow() {
            Some(bar) => bar.set_position(self.bytes.get()),
            None if self.last_line.get().elapsed() >= LINE_INTERVAL => {
                self.last_line.set(Instant::now());
                self.line();
            }
            None => {}
        }
    }

    fn rewound(&self, bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_position(self.bytes.get());
        }
    }

    fn message(&self, text: &str) {
        match &*self.bar.borrow() {
            Some(bar) => bar.println(text),
            None if self.verbose || !text.ends_with("is in the cache") => output::note(text),
            None => {}
        }
    }

    fn finished(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for PullProgress {
    fn drop(&mut self) {
        self.finished();
    }
}

/// Shows on a terminal how much of a model is read and repacked; elsewhere nothing, since it takes seconds.
pub struct OpenProgress {
    bar: Option<ProgressBar>,
}

impl OpenProgress {
    /// For the model of this name.
    pub fn new(name: &str) -> Self {
        let bar = output::stderr_is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(OPENING) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_message(output::one_line(name, 40));
            bar
        });
        Self { bar }
    }

    /// So many bytes of so many are read.
    pub fn at(&self, read_bytes: u64, total_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total_bytes);
            bar.set_position(read_bytes);
        }
    }
}

impl Drop for OpenProgress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Shows how much of a merged model is written.
pub struct MergeProgress {
    bar: Option<ProgressBar>,
    last_line: Cell<Instant>,
}

impl MergeProgress {
    /// For the model of this name.
    pub fn new(name: &str) -> Self {
        let bar = output::stderr_is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(MERGING) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_message(output::one_line(name, 40));
            bar
        });
        Self { bar, last_line: Cell::new(Instant::now()) }
    }

    /// So many bytes of so many are written.
    pub fn at(&self, written_bytes: u64, total_bytes: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(total_bytes);
                bar.set_position(written_bytes);
            }
            None if self.last_line.get().elapsed() >= LINE_INTERVAL && total_bytes > 0 => {
                self.last_line.set(Instant::now());
                let percent = written_bytes.saturating_mul(100) / total_bytes;
                output::note(&format!("merging: {percent} % of {}", output::size(total_bytes)));
            }
            None => {}
        }
    }
}

impl Drop for MergeProgress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// How many records of a file are done: a bar on a terminal, a line now and then elsewhere.
pub struct RecordsProgress {
    bar: ProgressBar,
    is_terminal: bool,
    num_records: u64,
    last: Instant,
}

impl RecordsProgress {
    /// For so many records.
    pub fn new(num_records: u64) -> anyhow::Result<Self> {
        let is_terminal = output::stderr_is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(num_records), target);
        bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} · {msg}")?);
        Ok(Self { bar, is_terminal, num_records, last: Instant::now() })
    }

    /// So many are done; `said` is asked for only where it is shown.
    pub fn at(&mut self, done: u64, said: impl FnOnce() -> String) {
        let interval = if self.is_terminal { Duration::from_millis(100) } else { LINE_INTERVAL };
        if self.last.elapsed() < interval {
            return;
        }
        self.last = Instant::now();
        if self.is_terminal {
            self.bar.set_message(said());
            self.bar.set_position(done);
        } else {
            output::note(&format!("{done}/{} · {}", self.num_records, said()));
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// ` · 3 min 20 s left`, at so many a second; nothing while that is not known.
pub fn time_left(num_left: u64, rate: f64) -> String {
    match Duration::try_from_secs_f64(num_left as f64 / rate) {
        Ok(left) => format!(" · {} left", output::duration(left)),
        Err(_) => String::new(),
    }
}
