//! Distillation: a teacher is asked the questions of a file, turn by turn, and what it says becomes data to train on.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use wardrobe::distill::{DistillJob, DistillOptions};
//! use wardrobe::generate::{Endpoint, EndpointOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let job = DistillJob::new(DistillOptions::new("questions.jsonl", "data.jsonl"))?;
//! let teacher = Endpoint::open(EndpointOptions::new("http://127.0.0.1:8000"))?;
//! let report = job.run(&teacher, &AtomicBool::new(false), &mut |_| {})?;
//! println!("{}", report.to_text());
//! # Ok(())
//! # }
//! ```
//!
//! State, beside the output `NAME`: `NAME.lines`, a line for each record in the order of the input, with what it became
//! ([`wardrobe_batch::records`]); `NAME.run.json`, the terms on which it goes on; and, unless another file is named,
//! `NAME.answers.sqlite`, every answer by what was asked ([`wardrobe_batch::answers`]). `NAME` itself and
//! `NAME.errors.jsonl` are made from the lines when a run ends, each as a whole: `NAME` holds nothing but data.
//!
//! Invariants: an answer is kept before it is used, so that none that came is asked for again, whatever ends the process;
//! what can be wrong with the input is told before a question is asked; memory does not grow with the input.
//!
//! Not done here: training on the data, and judging it.

mod asking;
mod error;
mod line;
mod price;
mod publish;
mod summary;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::Value;
use wardrobe_batch::answers::{Answers, Remembering};
use wardrobe_batch::records::{self, Observer, Output, RetryPolicy, RunOptions, Terms, beside};
use wardrobe_generator::{Answer, Generator, Held, Message, Question};

use crate::input::{self, Checked};
use crate::model_text::ModelText;

pub use crate::label::{ErrorCount, ErrorCounts, LineError};
pub use error::{DistillError, Result};
pub use line::{DistillLine, Given, Said};
pub use price::Price;
pub use summary::{DistillReport, DistillSummary};
pub use wardrobe_batch::answers::{Tally, Told};
pub use wardrobe_batch::records::{Ended, RecordsError, Start};

use asking::Asking;

/// Where a record's line is until the data is made of it.
const LINES: &str = ".lines";
/// Where answers are kept, unless elsewhere.
const ANSWERS: &str = ".answers.sqlite";
/// Records without data, and why.
const ERRORS: &str = ".errors.jsonl";

/// Which answers a schema is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SchemaTurns {
    /// All of them.
    #[default]
    Each,
    /// The last of each record.
    Last,
}

/// What a line of the data is.
#[derive(Debug, Clone, Default)]
pub enum DataFormat {
    /// `messages`, with `role` and `content`.
    #[default]
    Messages,
    /// `text`, in a model's chat template.
    Chat(ModelText),
    /// `text`, in Llama 2's turns: `<s>[INST] question [/INST] answer </s>`.
    Inst,
}

/// What to ask, and how.
#[derive(Debug, Clone)]
pub struct DistillOptions {
    /// Questions: JSONL, CSV or Parquet, as [`wardrobe_data::questions`] reads them.
    pub input: PathBuf,
    /// Where the data goes.
    pub output: PathBuf,
    /// Where answers are kept; `None`: beside the output. Any number of runs may share a file.
    pub cache: Option<PathBuf>,
    /// Text of the system message of records that have none of their own.
    pub system: Option<String>,
    /// What answers are held to.
    pub schema: Option<Value>,
    /// Which of them.
    pub schema_turns: SchemaTurns,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// `0`: the likeliest answer.
    pub temperature: f32,
    /// The share of likelihood that tokens are drawn from.
    pub top_p: f32,
    /// With a temperature: the same seed and question, the same answer.
    pub seed: Option<u64>,
    /// Answers that records have already: `true` keeps them, as context and with weight 0, and asks the other questions;
    /// `false` leaves them out, and asks all.
    pub keep_answers: bool,
    /// Whether answers whose tokens ran out are data.
    pub keep_cut: bool,
    /// Ask the first so many records; a later run may have more.
    pub limit: Option<u64>,
    /// Records that ask nothing: `false` refuses the run before it begins, `true` makes each an error.
    pub allow_bad_records: bool,
    /// What to do with an output that is there. Answers that are kept stay in any case.
    pub start: Start,
    /// Records at once; `None`: what keeps the teacher busy.
    pub concurrency: Option<usize>,
    /// How long questions are asked again that cannot be answered now.
    pub retry: RetryPolicy,
    /// What a line of the data is. Another one makes the data anew, of the same answers.
    pub format: DataFormat,
    /// Whether lines have the answers' tokens and ends.
    pub with_usage: bool,
    /// What tokens cost.
    pub price: Option<Price>,
}

impl DistillOptions {
    /// Answers of 1,024 tokens at most, the likeliest ones, as messages.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            input: input.into(),
            output: output.into(),
            cache: None,
            system: None,
            schema: None,
            schema_turns: SchemaTurns::Each,
            max_tokens: 1024,
            temperature: 0.0,
            top_p: 1.0,
            seed: None,
            keep_answers: false,
            keep_cut: false,
            limit: None,
            allow_bad_records: false,
            start: Start::Resume,
            concurrency: None,
            retry: RetryPolicy::default(),
            format: DataFormat::Messages,
            with_usage: false,
            price: None,
        }
    }

    /// Where answers are kept.
    pub fn cache_path(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| beside(&self.output, ANSWERS))
    }

    /// Records without data, and why.
    pub fn errors_path(&self) -> PathBuf {
        beside(&self.output, ERRORS)
    }

    fn lines_path(&self) -> PathBuf {
        beside(&self.output, LINES)
    }

    /// What is asked after these messages.
    fn question(&self, messages: Vec<Message>, is_last: bool) -> Question {
        let held = match &self.schema {
            Some(schema) if is_last || self.schema_turns == SchemaTurns::Each => Held::Schema(schema.clone()),
            Some(_) => Held::Free,
            None => Held::AsServed,
        };
        Question {
            held,
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            ..Question::chat(messages, self.max_tokens)
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |field, reason: &str| Err(DistillError::Setting { field, reason: reason.to_owned() });
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
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", "is not above 0 and at most 1");
        }
        if self.schema.as_ref().is_some_and(|schema| !schema.is_object()) {
            return wrong("schema", "is no JSON object");
        }
        if let DataFormat::Chat(text) = &self.format
            && text.chat_template.is_none()
        {
            return wrong("template_model", "has no chat template");
        }
        input::check_folder(&self.output)?;
        let (lines, cache) = (self.lines_path(), self.cache_path());
        for path in [&self.output, &cache, &lines] {
            if input::is_same_file(path, &self.input) {
                return Err(DistillError::SameFile { path: self.input.clone() });
            }
        }
        if [&self.output, &lines].into_iter().any(|path| *path == cache || input::is_same_file(path, &cache))
        {
            return Err(DistillError::SameFile { path: cache });
        }
        if self.output.exists() && !self.output.is_file() {
            return wrong("out", "is no regular file");
        }
        Ok(())
    }
}

/// Questions that are ready to be asked.
pub struct DistillJob {
    options: DistillOptions,
    checked: Checked,
    input_digest: String,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct DistillProgress<'a> {
    /// Records of the input.
    pub num_records: u64,
    /// Records that were done before this run.
    pub num_before: u64,
    /// What became of the records that are done.
    pub summary: &'a DistillSummary,
    /// Where the answers of this run came from; also those of records that are not done yet.
    pub tally: Tally,
    /// Since the run began.
    pub elapsed: Duration,
    /// What tokens cost.
    pub price: Option<Price>,
}

impl DistillJob {
    /// Checks the options and goes through the input once, so that what is wrong with a record is known now.
    ///
    /// # Errors
    /// What is wrong, with the file, the line and the key.
    pub fn new(mut options: DistillOptions) -> Result<Self> {
        // What a link leads to is the output: it is replaced as a whole.
        if options.output.is_symlink()
            && let Ok(target) = options.output.canonicalize()
        {
            options.output = target;
        }
        options.check()?;
        let records = input::records(&options.input, options.limit)?;
        let checked = Checked::of(records, |record| asking::turns(&options, record).err())?;
        if checked.num_records == 0 {
            return Err(DistillError::Empty { path: options.input.clone() });
        }
        let Checked { num_records, num_bad, .. } = checked;
        if num_bad > 0 && (!options.allow_bad_records || num_bad == num_records) {
            let (path, first) = (options.input.clone(), checked.first_bad);
            return Err(DistillError::BadRecords { path, num: num_bad, first });
        }
        let input_digest = input::digest(&options.input)?;
        Ok(Self { options, checked, input_digest })
    }

    /// Records that will be asked, or be errors.
    pub fn num_records(&self) -> u64 {
        self.checked.num_records
    }

    /// How many of them ask nothing, and what is wrong with the first.
    pub fn bad_records(&self) -> (u64, &[String]) {
        (self.checked.num_bad, &self.checked.first_bad)
    }

    /// What a resumption must agree with.
    fn terms(&self, teacher: &dyn Generator) -> Terms {
        let options = &self.options;
        let schema = match (&options.schema, options.schema_turns) {
            (None, _) => "none".to_owned(),
            (Some(schema), SchemaTurns::Each) => schema.to_string(),
            (Some(schema), SchemaTurns::Last) => format!("last: {schema}"),
        };
        let terms = Terms::new()
            .with("input", &self.input_digest)
            .with("system", options.system.as_deref().unwrap_or("none"))
            .with("schema", schema)
            .with("max_tokens", options.max_tokens)
            .with("temperature", options.temperature)
            .with("top_p", options.top_p)
            .with("seed", options.seed.map_or("none".to_owned(), |seed| seed.to_string()))
            .with("keep_answers", options.keep_answers)
            .with("keep_cut", options.keep_cut);
        teacher.identity().into_iter().fold(terms, |terms, (name, value)| terms.with(name, value))
    }

    /// Asks every record that has no line yet, and makes the data. `progress` is told often; setting `stop` ends the run,
    /// which then can go on later; the data is then of what is done.
    ///
    /// # Errors
    /// The output is in use, was begun on other terms, or cannot be written; the kept answers cannot be used; or no
    /// question can be answered any more. What was answered is kept.
    pub fn run(
        &self,
        teacher: &dyn Generator,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&DistillProgress<'_>),
    ) -> Result<DistillReport> {
        let options = &self.options;
        teacher.check(&options.question(vec![Message::text("user", "")], true))?;
        let lines = options.lines_path();
        let is_ours = Output::is_begun(&lines);
        if options.start != Start::Restart && options.output.exists() && !is_ours {
            return Err(RecordsError::Foreign { path: options.output.clone(), side: lines }.into());
        }
        let mut watcher = Watcher {
            summary: DistillSummary::default(),
            num_records: self.checked.num_records,
            num_before: 0,
            run: None,
            price: options.price,
            progress,
        };
        let terms = self.terms(teacher);
        let mut output = Output::open_for(&lines, &options.output, &terms, options.start, &mut watcher)?;
        let answers = Answers::open(&options.cache_path())?;
        let is_good =
            |question: &Question, answer: &Answer| asking::fault(options, &question.held, answer).is_none();
        let teacher = Remembering::new(teacher, &answers);
        let teacher = match options.start {
            Start::RetryFailures => teacher.asking_anew_unless(&is_good),
            _ => teacher,
        };
        let num_before = output.num_lines();
        let started = Instant::now();
        (watcher.num_before, watcher.run) = (num_before, Some((started, &teacher)));
        let (mut ended, mut num_written) = (Ended::Complete, 0);
        // There may be more lines than records: an earlier run may have had a higher limit.
        let num_left = self.checked.num_records.checked_sub(num_before);
        if let Some(num_left) = num_left.filter(|num_left| *num_left > 0 || output.is_retrying()) {
            let concurrency = options.concurrency.unwrap_or_else(|| teacher.concurrency());
            let concurrency = concurrency.min(usize::try_from(num_left).unwrap_or(usize::MAX).max(1));
            // Records that begin alike have their beginning computed once.
            let first_alone = options.system.is_some();
            let run = RunOptions { concurrency, first_alone, retry: options.retry, stop };
            let asking = Asking { options, teacher: &teacher };
            let mut records = input::records(&options.input, options.limit)?;
            let done = records::run(&mut records, &asking, &mut output, &run, &mut watcher)?;
            (ended, num_written) = (done.ended, done.num_written);
        }
        let elapsed = started.elapsed();
        // While failures are asked again, the data of before is more than there would be now.
        let unwritable = match output.is_retrying() {
            true => ErrorCounts::default(),
            false => publish::publish(options, &lines)?,
        };
        Ok(DistillReport {
            ended,
            num_records: self.checked.num_records,
            num_before,
            num_written,
            elapsed,
            summary: watcher.summary,
            tally: teacher.tally(),
            price: options.price,
            unwritable,
        })
    }
}

/// Counts lines, and tells how far the run is.
struct Watcher<'a, 'r> {
    summary: DistillSummary,
    num_records: u64,
    num_before: u64,
    /// `None` while lines of earlier runs are read.
    run: Option<(Instant, &'r Remembering<'r>)>,
    price: Option<Price>,
    progress: &'a mut dyn FnMut(&DistillProgress<'_>),
}

impl Observer for Watcher<'_, '_> {
    fn line(&mut self, idx: u64, line: &str) -> std::result::Result<(), String> {
        let line: DistillLine =
            serde_json::from_str(line).map_err(|error| format!("is no line of distillation: {error}"))?;
        if line.index != idx {
            return Err(format!("is that of record {}, not of record {idx}", line.index));
        }
        self.summary.add(&line);
        Ok(())
    }

    fn is_failure(&self, line: &str) -> bool {
        serde_json::from_str::<DistillLine>(line).is_ok_and(|line| line.error.is_some())
    }

    fn tick(&mut self) {
        let Some((started, teacher)) = self.run else { return };
        (self.progress)(&DistillProgress {
            num_records: self.num_records,
            num_before: self.num_before,
            summary: &self.summary,
            tally: teacher.tally(),
            elapsed: started.elapsed(),
            price: self.price,
        });
    }
}
