//! The thread that works on batches, the oldest first.
//!
//! Invariants: only this thread ends a batch that it works on; whatever it has not finished when the process ends it
//! finds again by the batch's row and its file of outcomes.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::{BatchEndpoint, BatchReply};
use super::input::{self, Span, Spans, Unchecked, file_problem};
use super::outcome::{self, Kind, Missing, Tally};
use super::{Batch, BatchProblem, BatchStatus};
use crate::control::StopFlags;
use crate::error::{BatchError, Result};
use crate::files::{FilePurpose, NewFile, Upload};
use crate::records::{
    self, Answerer, Control, Ended, Observer, Outcome, Output, RecordsError, RetryPolicy, RunOptions, Start,
    Terms,
};
use crate::store::BatchEnd;
use crate::worker::{RETRY, Shared};

/// How often the counts of a batch that runs are written to the store.
const COUNT_INTERVAL: Duration = Duration::from_millis(250);
/// How long a request that found no room waits at most, so that a cancellation is soon noticed.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// A request's line is no longer: the records' output would not take it back.
const MAX_OUTCOME_BYTES: usize = 32 << 20;
/// The file in a batch's folder.
const OUTCOMES: &str = "outcomes.jsonl";

impl Shared {
    /// The thread's life: batches until the end.
    pub(crate) fn work_on_batches(&self) {
        loop {
            let seen = self.seen();
            if self.is_shutting_down() {
                return;
            }
            match self.store.next_batch() {
                Ok(Some(id)) => {
                    if let Err(error) = self.work_on_batch(&id) {
                        // Nothing of the client's is at fault, so that the batch is not ended by it.
                        tracing::error!(batch = id, %error, "a batch does not get on");
                        self.wait(seen, Some(RETRY));
                    }
                }
                Ok(None) => self.wait(seen, None),
                Err(error) => {
                    tracing::error!(%error, "the queue of batches could not be read");
                    self.wait(seen, Some(RETRY));
                }
            }
        }
    }

    /// Gets a batch on until it has ended or the process goes down.
    fn work_on_batch(&self, id: &str) -> Result<()> {
        let span = tracing::info_span!("batch", batch = id);
        let _entered = span.entered();
        let flags =
            Arc::new(StopFlags { cancelled: AtomicBool::new(false), shutdown: self.shutdown.clone() });
        self.running().insert(id.to_owned(), flags.clone());
        let worked = (|| {
            // Only now: before it stood among the running ones it may have been cancelled and have ended.
            let batch = self.store.batch(id)?;
            flags.cancelled.fetch_or(batch.status == BatchStatus::Cancelling, Ordering::AcqRel);
            let work = BatchWork { shared: self, flags: &flags, endpoint: self.endpoint()? };
            let step = || work.get_on(batch);
            catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| {
                // What panics once will panic again, and others wait.
                tracing::error!("working on the batch panicked");
                let problem = file_problem("server_error", "the server failed while it worked on this batch");
                work.end(id, BatchStatus::Failed, &[problem])
            })
        })();
        self.running().remove(id);
        worked
    }

    /// What answers requests; set before the thread starts.
    fn endpoint(&self) -> Result<Arc<dyn BatchEndpoint>> {
        let endpoint = self.batch_endpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        endpoint.ok_or(BatchError::ShuttingDown)
    }
}

fn input_is_gone() -> BatchProblem {
    file_problem("file_not_found", "the input file is gone")
}

/// Why a request is no longer wanted.
enum NotWanted {
    Shutdown,
    Missing(Missing<'static>),
}

/// Work on one batch.
struct BatchWork<'a> {
    shared: &'a Shared,
    flags: &'a StopFlags,
    endpoint: Arc<dyn BatchEndpoint>,
}

impl BatchWork<'_> {
    fn now_ms(&self) -> i64 {
        self.shared.config.batches.clock.now_ms()
    }

    fn not_wanted(&self, batch: &Batch) -> Option<NotWanted> {
        if self.flags.shutdown.load(Ordering::Acquire) {
            return Some(NotWanted::Shutdown);
        }
        if self.flags.cancelled.load(Ordering::Acquire) {
            return Some(NotWanted::Missing(Missing::Cancelled));
        }
        (self.now_ms() >= batch.expires_at_ms).then_some(NotWanted::Missing(Missing::Expired))
    }

    /// Takes the steps that are left; where the process goes down, fewer.
    fn get_on(&self, mut batch: Batch) -> Result<()> {
        tracing::info!(status = batch.status.name(), "working on a batch");
        let input = self.shared.folders.file(&batch.spec.input_file);
        if batch.status == BatchStatus::Validating {
            let Some(checked) = self.check(&batch, &input)? else { return Ok(()) };
            batch = checked;
        }
        if batch.in_progress_at_ms.is_none() {
            // Cancelled before there was anything to keep.
            return match batch.status.has_ended() {
                true => Ok(()),
                false => self.end(&batch.id, BatchStatus::Cancelled, &[]),
            };
        }
        let outcomes = self.outcomes(&batch)?;
        if batch.status != BatchStatus::Finalizing {
            if matches!(input.try_exists(), Ok(false)) {
                // Taken from the folder by hand: without it nobody knows what was asked.
                return self.end(&batch.id, BatchStatus::Failed, &[input_is_gone()]);
            }
            if self.answer_all(&batch, &input, &outcomes)? == Ended::Stopped {
                return Ok(());
            }
            batch = self.shared.store.finalize_batch(&batch.id, self.now_ms())?;
        }
        self.write_files(&batch, &outcomes)
    }

    /// Checks the input. `None` where the batch has ended by that, or the process goes down.
    fn check(&self, batch: &Batch, input: &Path) -> Result<Option<Batch>> {
        let (settings, route) = (&self.shared.config.batches, batch.spec.route);
        let has_model = |name: &str| self.endpoint.has_model(name);
        let (cancelled, shutdown) = (&self.flags.cancelled, &self.flags.shutdown);
        let interrupt = || cancelled.load(Ordering::Acquire) || shutdown.load(Ordering::Acquire);
        let checked = match File::open(input).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((bytes, _)) if bytes > settings.max_input_bytes => {
                let why = format!("the file is over the limit of {} bytes", settings.max_input_bytes);
                Err(Unchecked::Refused(vec![file_problem("file_too_large", why)]))
            }
            Ok((_, file)) => input::check(BufReader::new(file), route, settings, &has_model, &interrupt),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Unchecked::Refused(vec![input_is_gone()]))
            }
            Err(error) => Err(Unchecked::Io(error)),
        };
        match checked {
            Ok(checked) => {
                tracing::info!(requests = checked.total, model = checked.model, "the batch's input is good");
                self.shared.store.begin_batch(&batch.id, &checked, self.now_ms()).map(Some)
            }
            Err(Unchecked::Refused(problems)) => {
                self.end(&batch.id, BatchStatus::Failed, &problems)?;
                Ok(None)
            }
            Err(Unchecked::Io(error)) => Err(BatchError::io(input, &error)),
            Err(Unchecked::Interrupted) if shutdown.load(Ordering::Acquire) => Ok(None),
            Err(Unchecked::Interrupted) => {
                self.end(&batch.id, BatchStatus::Cancelled, &[])?;
                Ok(None)
            }
        }
    }

    /// Ends a batch without files.
    fn end(&self, id: &str, status: BatchStatus, problems: &[BatchProblem]) -> Result<()> {
        let now_ms = self.now_ms();
        let end = BatchEnd { status, now_ms, problems, results: None, output: None, errors: None };
        self.shared.store.end_batch(id, &end)?;
        let _ = fs::remove_dir_all(self.shared.folders.batch(id));
        tracing::info!(end = status.name(), problems = problems.len(), "a batch ended");
        Ok(())
    }

    /// The file of outcomes, in a folder that is there.
    fn outcomes(&self, batch: &Batch) -> Result<PathBuf> {
        let folder = self.shared.folders.batch(&batch.id);
        fs::create_dir_all(&folder).map_err(|error| BatchError::io(&folder, &error))?;
        Ok(folder.join(OUTCOMES))
    }

    /// Brings every request to its outcome, unless the process goes down.
    fn answer_all(&self, batch: &Batch, input: &Path, outcomes: &Path) -> Result<Ended> {
        let settings = &self.shared.config.batches;
        let mut progress = Progress { work: self, batch, tally: Tally::default(), dirty: None };
        let terms = Terms::new().with("batch", &batch.id);
        let mut output = match Output::open(outcomes, &terms, Start::Resume, &mut progress) {
            Err(
                error @ (RecordsError::Damaged { .. }
                | RecordsError::OtherTerms { .. }
                | RecordsError::Foreign { .. }),
            ) => {
                // Nobody has seen a line of it yet.
                tracing::error!(%error, "the outcomes of a batch are of no use; it begins anew");
                progress.tally = Tally::default();
                Output::open(outcomes, &terms, Start::Restart, &mut progress)?
            }
            other => other?,
        };
        if output.num_lines() > 0 {
            tracing::info!(done = output.num_lines(), total = batch.counts.total, "the batch goes on");
        }
        let mut spans =
            Spans::open(input, settings.max_line_bytes).map_err(|error| BatchError::io(input, &error))?;
        let retry = RetryPolicy {
            first_wait: Duration::from_millis(100),
            max_wait: MAX_WAIT,
            // Until the batch is cancelled or expires.
            patience: Duration::MAX,
        };
        let options = RunOptions {
            concurrency: settings.requests_at_once,
            first_alone: false,
            retry,
            stop: &self.flags.shutdown,
        };
        let answering = Answering { work: self, batch, input };
        let report = records::run(&mut spans, &answering, &mut output, &options, &mut progress);
        progress.write();
        Ok(report?.ended)
    }

    /// Makes files of the outcomes and ends the batch.
    fn write_files(&self, batch: &Batch, outcomes: &Path) -> Result<()> {
        let at = |error: io::Error| BatchError::io(outcomes, &error);
        let mut lines = BufReader::new(File::open(outcomes).map_err(at)?);
        let (mut tally, mut line) = (Tally::default(), String::new());
        let (mut output, mut errors) = (None, None);
        while lines.read_line(&mut line).map_err(at)? > 0 {
            let damaged = |reason| BatchError::Corrupt { path: outcomes.to_owned(), reason };
            let (place, name) = match tally.add(&line).map_err(damaged)? {
                Kind::Completed => (&mut output, "output"),
                Kind::Failed | Kind::Expired | Kind::Cancelled => (&mut errors, "error"),
            };
            let upload = match place {
                Some(upload) => upload,
                None => place.insert(self.begin_file(&format!("{}_{name}.jsonl", batch.id))?),
            };
            upload.write(line.as_bytes())?;
            line.clear();
        }
        let output = output.map(Upload::place).transpose()?;
        let errors = errors.map(Upload::place).transpose()?;
        let status = match batch.status {
            BatchStatus::Cancelling => BatchStatus::Cancelled,
            _ if tally.expired => BatchStatus::Expired,
            _ => BatchStatus::Completed,
        };
        let end = BatchEnd {
            status,
            now_ms: self.now_ms(),
            problems: &[],
            results: Some((tally.counts, tally.usage)),
            output: output.as_ref(),
            errors: errors.as_ref(),
        };
        let ended = self.shared.store.end_batch(&batch.id, &end).inspect_err(|_| {
            // They have no rows, and the next try makes others.
            for file in [&output, &errors].into_iter().flatten() {
                let _ = fs::remove_file(self.shared.folders.file(&file.id));
            }
        });
        ended?;
        let _ = fs::remove_dir_all(self.shared.folders.batch(&batch.id));
        let (completed, failed) = (tally.counts.completed, tally.counts.failed);
        tracing::info!(end = status.name(), completed, failed, "a batch ended");
        Ok(())
    }

    fn begin_file(&self, name: &str) -> Result<Upload> {
        let (file_name, purpose) = (name.to_owned(), FilePurpose::BatchOutput);
        self.shared.begin(NewFile { id: None, file_name, purpose, sha256: None }, u64::MAX)
    }
}

/// Asks the endpoint for a batch.
struct Answering<'a> {
    work: &'a BatchWork<'a>,
    batch: &'a Batch,
    input: &'a Path,
}

impl Answering<'_> {
    fn id(&self) -> String {
        self.work.shared.ids.next("batch_req_")
    }
}

impl Answerer<Span> for Answering<'_> {
    fn answer(&self, span: &Span, _: &Control<'_>) -> Outcome {
        let line = match span.read(self.input) {
            Ok(line) => line,
            Err(error) => return Outcome::Fatal(format!("the input file cannot be read: {error}")),
        };
        let request = match input::parse(&line, self.batch.spec.route) {
            Ok(request) => request,
            Err(problem) => {
                return Outcome::Fatal(format!("the input file has changed: {}", problem.message()));
            }
        };
        let missing = |why| Outcome::Line(outcome::missing(&self.id(), &request.custom_id, why));
        let not_wanted = || self.work.not_wanted(self.batch);
        match not_wanted() {
            Some(NotWanted::Shutdown) => return Outcome::Stopped,
            Some(NotWanted::Missing(why)) => return missing(why),
            None => {}
        }
        match self.work.endpoint.answer(&self.batch.id, &request, &|| not_wanted().is_some()) {
            BatchReply::Answered(answer) => {
                let line = outcome::answered(&self.id(), &request.custom_id, &answer);
                match line.len() > MAX_OUTCOME_BYTES {
                    true => missing(Missing::Failed("the answer is too large for a batch")),
                    false => Outcome::Line(line),
                }
            }
            BatchReply::Busy(after) => {
                let after = after.map(|time| time.min(MAX_WAIT));
                Outcome::Again { after, reason: "the endpoint is busy".to_owned() }
            }
            BatchReply::Interrupted => match not_wanted() {
                Some(NotWanted::Missing(why)) => missing(why),
                Some(NotWanted::Shutdown) => Outcome::Stopped,
                None => Outcome::Again { after: None, reason: "the endpoint is gone".to_owned() },
            },
        }
    }

    fn panicked(&self, span: &Span, _: &str) -> String {
        let request =
            span.read(self.input).ok().and_then(|line| input::parse(&line, self.batch.spec.route).ok());
        let custom_id = request.map(|request| request.custom_id).unwrap_or_default();
        outcome::missing(&self.id(), &custom_id, Missing::Failed("the server failed at this request"))
    }
}

/// Counts outcomes as they are written.
struct Progress<'a> {
    work: &'a BatchWork<'a>,
    batch: &'a Batch,
    tally: Tally,
    /// Since when the store does not know all of them.
    dirty: Option<Instant>,
}

impl Progress<'_> {
    fn write(&mut self) {
        if self.dirty.take().is_some()
            && let Err(error) = self.work.shared.store.set_batch_counts(&self.batch.id, self.tally.counts)
        {
            tracing::warn!(%error, "a batch's counts could not be written");
        }
    }
}

impl Observer for Progress<'_> {
    fn line(&mut self, _: u64, line: &str) -> Result<(), String> {
        self.dirty.get_or_insert_with(Instant::now);
        self.tally.add(line).map(drop)
    }

    fn is_failure(&self, _: &str) -> bool {
        false
    }

    fn tick(&mut self) {
        if self.dirty.is_some_and(|since| since.elapsed() >= COUNT_INTERVAL) {
            self.write();
        }
    }
}
