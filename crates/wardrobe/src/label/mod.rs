//! Labels by the thousand: a prompt for each record of a file, answers held to a JSON schema, a line for each in a file
//! that survives kills.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use wardrobe::EngineGenerator;
//! use wardrobe::label::{LabelJob, LabelOptions};
//! use wardrobe::{EngineOptions, Model, ModelOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let schema = serde_json::json!({"type": "object", "properties": {"topic": {"enum": ["sea", "land"]}},
//!     "required": ["topic"], "additionalProperties": false});
//! let options = LabelOptions::new("texts.jsonl", "labels.jsonl", "What is this about?\n{{ text }}", schema.clone());
//! let job = LabelJob::new(options)?;
//! let model = Model::open("SmolLM2-135M-Instruct.Q4_1.gguf", &ModelOptions::default())?;
//! let engine = model.engine(&EngineOptions::default())?;
//! let generator = EngineGenerator::base(&model, &engine, "smollm2-135m");
//! let report = job.run(&generator, &AtomicBool::new(false), &mut |_| {})?;
//! println!("{}", report.to_text());
//! # Ok(())
//! # }
//! ```
//!
//! State: the output and what lies beside it ([`wardrobe_batch::records`]); nothing in memory outlives a run.
//!
//! Invariants: what can be wrong with schema, prompt or input is told before a record is asked; memory does not grow with
//! the input; the same command goes on where a run ended, whatever ended it, and its summary is of the whole output.
//!
//! Not done here: training on labels, judging them ([`crate::eval`]).

mod asking;
mod error;
mod html;
mod line;
mod summary;
mod text;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::Value;
use wardrobe_batch::records::{self, Observer, Output, RetryPolicy, RunOptions, Terms};
use wardrobe_generator::{Generator, Held, Message, Prompt, Question};
use wardrobe_text::{RecordTemplate, TemplateLimits};

pub use error::{LabelError, Result};
pub use line::{LabelLine, LineError};
pub use summary::{ErrorCount, ErrorCounts, FieldSummary, LabelSummary, Numbers};
pub use wardrobe_batch::records::{Ended, RecordsError, Start};

use crate::input::{self, Checked};

use asking::Asking;

/// What one prompt may be: far more than any context holds.
const MAX_PROMPT_BYTES: usize = 4 << 20;

/// What to label, and how.
#[derive(Debug, Clone)]
pub struct LabelOptions {
    /// Records: JSONL, CSV or Parquet.
    pub input: PathBuf,
    /// Where the lines go. Beside it are `NAME.run.json`, and `NAME.before` while failures are asked again.
    pub output: PathBuf,
    /// The prompt: a Jinja template over a record's fields.
    pub prompt: String,
    /// Text of a system message.
    pub system: Option<String>,
    /// Give the prompts to the model as they are, without its chat template.
    pub raw: bool,
    /// What labels are held to.
    pub schema: Value,
    /// The most tokens of a label. What they end is whole nevertheless.
    pub max_tokens: usize,
    /// `0`: the likeliest label.
    pub temperature: f32,
    /// With a temperature: the same seed, the same labels.
    pub seed: Option<u64>,
    /// Fields of the record that its line repeats.
    pub keep: Vec<String>,
    /// Label the first so many records; a later run may have more.
    pub limit: Option<u64>,
    /// Records that cannot be asked, since they are no JSON object or lack a field: `false` refuses the run before it
    /// begins, `true` gives each a line with its error.
    pub allow_bad_records: bool,
    /// What to do with an output that is there.
    pub start: Start,
    /// Records at once; `None` fills the engine.
    pub concurrency: Option<usize>,
    /// How long records are asked again that cannot be answered now.
    pub retry: RetryPolicy,
}

impl LabelOptions {
    /// Labels of `input` in `output`, by default of 256 tokens at most and the likeliest.
    pub fn new(
        input: impl Into<PathBuf>,
        output: impl Into<PathBuf>,
        prompt: impl Into<String>,
        schema: Value,
    ) -> Self {
        Self {
            input: input.into(),
            output: output.into(),
            prompt: prompt.into(),
            system: None,
            raw: false,
            schema,
            max_tokens: 256,
            temperature: 0.0,
            seed: None,
            keep: Vec::new(),
            limit: None,
            allow_bad_records: false,
            start: Start::Resume,
            concurrency: None,
            retry: RetryPolicy::default(),
        }
    }

    /// The seed of a record: its own, the same in every run, and within what every language's JSON can hold.
    fn seed_of(&self, index: u64) -> Option<u64> {
        self.seed.map(|seed| seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)) & ((1 << 53) - 1))
    }

    /// What is asked for a record; `index` draws its seed.
    fn question(&self, prompt: String, index: Option<u64>) -> Question {
        let prompt = match self.raw {
            true => Prompt::Text(prompt),
            false => {
                let system = self.system.as_ref().map(|text| Message::text("system", text));
                Prompt::Chat(system.into_iter().chain([Message::text("user", prompt)]).collect())
            }
        };
        Question {
            held: Held::Schema(self.schema.clone()),
            temperature: self.temperature,
            seed: index.and_then(|index| self.seed_of(index)),
            ..Question::new(prompt, self.max_tokens)
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |field, reason: &str| Err(LabelError::Setting { field, reason: reason.to_owned() });
        if self.max_tokens == 0 {
            return wrong("max_tokens", "is 0");
        }
        if self.limit == Some(0) {
            return wrong("limit", "is 0");
        }
        if self.concurrency == Some(0) {
            return wrong("concurrency", "is 0");
        }
        if !(0.0..=100.0).contains(&self.temperature) {
            return wrong("temperature", "is not in 0 to 100");
        }
        if !self.schema.is_object() {
            return wrong("schema", "is no JSON object");
        }
        if self.raw && self.system.is_some() {
            return wrong("system", "needs a chat template, which raw prompts have not");
        }
        input::check_folder(&self.output)?;
        if input::is_same_file(&self.output, &self.input) {
            return Err(LabelError::SameFile { path: self.input.clone() });
        }
        Ok(())
    }
}

/// Records that are ready to be labelled.
pub struct LabelJob {
    options: LabelOptions,
    template: RecordTemplate,
    checked: Checked,
    input_digest: String,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct LabelProgress<'a> {
    /// Records of the input.
    pub num_records: u64,
    /// Lines of the output before this run.
    pub num_before: u64,
    /// What the output holds.
    pub summary: &'a LabelSummary,
    /// Since the run began.
    pub elapsed: Duration,
}

/// What a run has done.
#[derive(Debug, Clone)]
pub struct LabelReport {
    /// How it ended.
    pub ended: Ended,
    /// Records of the input.
    pub num_records: u64,
    /// Lines that earlier runs had written.
    pub num_before: u64,
    /// Lines of this run.
    pub num_written: u64,
    /// What this run took.
    pub elapsed: Duration,
    /// What the output holds now.
    pub summary: LabelSummary,
}

impl LabelJob {
    /// Checks the options and goes through the input once: every record is read and its prompt made, so that what is wrong
    /// with one is known now.
    ///
    /// # Errors
    /// What is wrong, with the file, the line and the field.
    pub fn new(options: LabelOptions) -> Result<Self> {
        options.check()?;
        let limits = TemplateLimits { max_output_bytes: MAX_PROMPT_BYTES, ..TemplateLimits::default() };
        let template = RecordTemplate::new(&options.prompt, limits)?;
        if template.fields().is_empty() {
            return Err(LabelError::SamePrompt);
        }
        let records = input::records(&options.input, options.limit)?;
        let checked = Checked::of(records, |record| asking::prompt(&template, record).err())?;
        let Checked { num_records, num_bad, .. } = checked;
        if num_records == 0 {
            return Err(LabelError::Empty { path: options.input.clone() });
        }
        if num_bad > 0 && (!options.allow_bad_records || num_bad == num_records) {
            let (path, first) = (options.input.clone(), checked.first_bad);
            return Err(LabelError::BadRecords { path, num: num_bad, first });
        }
        let input_digest = input::digest(&options.input)?;
        Ok(Self { options, template, checked, input_digest })
    }

    /// Records that will have a line.
    pub fn num_records(&self) -> u64 {
        self.checked.num_records
    }

    /// How many of them cannot be asked, and what is wrong with the first.
    pub fn bad_records(&self) -> (u64, &[String]) {
        (self.checked.num_bad, &self.checked.first_bad)
    }

    /// What a resumption must agree with.
    fn terms(&self, generator: &dyn Generator) -> Terms {
        let options = &self.options;
        let terms = Terms::new()
            .with("input", &self.input_digest)
            .with("prompt", &options.prompt)
            .with("system", options.system.as_deref().unwrap_or("none"))
            .with("schema", &options.schema)
            .with("max_tokens", options.max_tokens)
            .with("temperature", options.temperature)
            .with("seed", options.seed.map_or("none".to_owned(), |seed| seed.to_string()))
            .with("keep", options.keep.join(","))
            .with("raw", options.raw);
        generator.identity().into_iter().fold(terms, |terms, (name, value)| terms.with(name, value))
    }

    /// Labels every record that the output has no line for. `progress` is told often; setting `stop` ends the run, which
    /// then can go on later.
    ///
    /// # Errors
    /// The output is in use, was begun on other terms, or cannot be written; or no record can be answered any more. What
    /// is written stays.
    pub fn run(
        &self,
        generator: &dyn Generator,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&LabelProgress<'_>),
    ) -> Result<LabelReport> {
        let options = &self.options;
        generator.check(&options.question(String::new(), None))?;
        let mut watcher = Watcher {
            summary: LabelSummary::default(),
            num_records: self.checked.num_records,
            num_before: 0,
            started: None,
            progress,
        };
        let mut output = Output::open(&options.output, &self.terms(generator), options.start, &mut watcher)?;
        watcher.num_before = output.num_lines();
        let started = Instant::now();
        watcher.started = Some(started);
        let mut report = LabelReport {
            ended: Ended::Complete,
            num_records: self.checked.num_records,
            num_before: output.num_lines(),
            num_written: 0,
            elapsed: Duration::ZERO,
            summary: LabelSummary::default(),
        };
        // There may be more lines than records: an earlier run may have had a higher limit.
        let num_left = self.checked.num_records.checked_sub(output.num_lines());
        if let Some(num_left) = num_left.filter(|num_left| *num_left > 0 || output.is_retrying()) {
            let concurrency = options.concurrency.unwrap_or_else(|| generator.concurrency());
            let concurrency = concurrency.min(usize::try_from(num_left).unwrap_or(usize::MAX).max(1));
            let run = RunOptions { concurrency, first_alone: true, retry: options.retry, stop };
            let asking = Asking { options, template: &self.template, generator };
            let mut records = input::records(&options.input, options.limit)?;
            let done = records::run(&mut records, &asking, &mut output, &run, &mut watcher)?;
            (report.ended, report.num_written) = (done.ended, done.num_written);
        }
        report.elapsed = started.elapsed();
        report.summary = watcher.summary;
        Ok(report)
    }
}

/// Counts lines, and tells how far the run is.
struct Watcher<'a> {
    summary: LabelSummary,
    num_records: u64,
    num_before: u64,
    /// `None` while lines of earlier runs are read.
    started: Option<Instant>,
    progress: &'a mut dyn FnMut(&LabelProgress<'_>),
}

impl Observer for Watcher<'_> {
    fn line(&mut self, idx: u64, line: &str) -> std::result::Result<(), String> {
        let line: LabelLine =
            serde_json::from_str(line).map_err(|error| format!("is no line of labels: {error}"))?;
        if line.index != idx {
            return Err(format!("is that of record {}, not of record {idx}", line.index));
        }
        self.summary.add(&line);
        Ok(())
    }

    fn is_failure(&self, line: &str) -> bool {
        serde_json::from_str::<LabelLine>(line).is_ok_and(|line| line.error.is_some())
    }

    fn tick(&mut self) {
        let Some(started) = self.started else { return };
        (self.progress)(&LabelProgress {
            num_records: self.num_records,
            num_before: self.num_before,
            summary: &self.summary,
            elapsed: started.elapsed(),
        });
    }
}
