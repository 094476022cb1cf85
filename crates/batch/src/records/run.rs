//! The run itself: one thread reads and writes, others answer.
//!
//! The caller's thread hands out records and takes their lines back; lines that are early wait in the window until those
//! before them are there. So the iterator, the output and the observer need not be shared.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use wardrobe_generator::RetryPolicy;

use super::error::{InputError, RecordsError, Result};
use super::{Answerer, Control, Observer, Outcome, Output};

/// Between two calls of [`Observer::tick`] at most, and before a stop is noticed.
const TICK: Duration = Duration::from_millis(100);
/// The most records that are answered at once.
const MAX_CONCURRENCY: usize = 4096;
/// Records in the window for each that is answered at once: one slow record does not hold up the others for long.
const WINDOW: usize = 4;

/// How to run.
#[derive(Debug, Clone)]
pub struct RunOptions<'a> {
    /// Records that are answered at once.
    pub concurrency: usize,
    /// Whether the first record is answered before any other is begun: what it leaves in a cache serves all.
    pub first_alone: bool,
    /// What to do with records that cannot be answered now.
    pub retry: RetryPolicy,
    /// Ends the run at its next good place when it becomes true.
    pub stop: &'a AtomicBool,
}

impl RunOptions<'_> {
    fn window(&self) -> usize {
        self.concurrency.saturating_mul(WINDOW)
    }
}

/// Records, or why there is no next one.
pub type Records<'a, R> = &'a mut dyn Iterator<Item = std::result::Result<R, InputError>>;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every record has its line.
    Complete,
    /// It was stopped, and goes on where it is when it is run again.
    Stopped,
}

/// What a run has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunReport {
    /// How it ended.
    pub ended: Ended,
    /// Records that earlier runs had done.
    pub num_skipped: u64,
    /// Records that this one has done.
    pub num_written: u64,
}

/// Answers all records that the output has no line for, and adds their lines in order.
///
/// # Errors
/// The records cannot be read, the output cannot be written, no record can be answered any more, or there are fewer
/// records than lines. What was written until then stays, and the run can go on.
pub fn run<R: Send>(
    records: Records<'_, R>,
    answerer: &dyn Answerer<R>,
    output: &mut Output,
    options: &RunOptions<'_>,
    observer: &mut dyn Observer,
) -> Result<RunReport> {
    if options.concurrency == 0 || options.concurrency > MAX_CONCURRENCY {
        let reason = format!("is {}, not in 1 to {MAX_CONCURRENCY}", options.concurrency);
        return Err(RecordsError::Setting { field: "concurrency", reason });
    }
    let num_skipped = output.num_lines();
    for num_records in 0..num_skipped {
        match records.next() {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(RecordsError::Input(error)),
            None => {
                let (path, num_lines) = (output.path().to_owned(), num_skipped);
                return Err(RecordsError::TooManyLines { path, num_lines, num_records });
            }
        }
    }
    let abort = AtomicBool::new(false);
    let window = options.window();
    let (to_workers, jobs) = sync_channel(window);
    let (to_writer, answers) = sync_channel(window);
    let jobs = Mutex::new(jobs);
    let worker =
        Worker { jobs: &jobs, answerer, control: Control { stop: options.stop, abort: &abort }, options };
    let result = std::thread::scope(|scope| {
        // Dropped on every way out, a panic too, so that the threads end.
        let coordinator = Coordinator {
            to_workers,
            answers,
            output: &mut *output,
            observer,
            options,
            abort: &abort,
            early: BTreeMap::new(),
            next: num_skipped,
            num_open: 0,
            num_answered: 0,
            is_at_end: false,
            is_stopped: false,
            can_write: true,
            failure: None,
        };
        for _ in 0..options.concurrency {
            let (worker, to_writer) = (&worker, to_writer.clone());
            let builder = std::thread::Builder::new().name("wardrobe-records".to_owned());
            let spawned = builder.spawn_scoped(scope, move || worker.run(&to_writer));
            if let Err(error) = spawned {
                return Err(RecordsError::Fatal(format!("cannot start a thread: {error}")));
            }
        }
        drop(to_writer);
        coordinator.run(records)
    });
    // Whatever has ended the run, what is written shall last.
    let synced = output.sync();
    let ended = result?;
    synced?;
    if ended == Ended::Complete {
        output.complete()?;
    }
    Ok(RunReport { ended, num_skipped, num_written: output.num_lines().saturating_sub(num_skipped) })
}

/// A record that is to be answered.
struct Job<R> {
    idx: u64,
    record: R,
}

/// What a thread gives back for a record.
enum Answered {
    Line(String),
    Stopped,
    Failed(RecordsError),
}

struct Worker<'a, R> {
    jobs: &'a Mutex<Receiver<Job<R>>>,
    answerer: &'a dyn Answerer<R>,
    control: Control<'a>,
    options: &'a RunOptions<'a>,
}

impl<R> Worker<'_, R> {
    fn run(&self, to_writer: &SyncSender<(u64, Answered)>) {
        loop {
            let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(Job { idx, record }) = job else { return };
            let answered = match self.control.is_stopped() {
                true => Answered::Stopped,
                false => self.answer(idx, &record),
            };
            if to_writer.send((idx, answered)).is_err() {
                return;
            }
        }
    }

    fn answer(&self, idx: u64, record: &R) -> Answered {
        let mut tries = self.options.retry.start(idx);
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.answerer.answer(record, &self.control)));
            let (after, reason) = match outcome {
                Ok(Outcome::Line(line)) => return one_line(line),
                Ok(Outcome::Stopped) => return Answered::Stopped,
                Ok(Outcome::Fatal(reason)) => return self.failed(RecordsError::Fatal(reason)),
                Ok(Outcome::Again { after, reason }) => (after, reason),
                Err(panic) => return self.panicked(record, &message_of(&*panic)),
            };
            let num = tries.num();
            let Some(wait) = tries.next_wait(after) else {
                return self.failed(RecordsError::GaveUp { reason, tries: num });
            };
            tracing::debug!(idx, tries = num, reason, "a record is asked again");
            if !self.control.wait(wait) {
                return Answered::Stopped;
            }
        }
    }

    /// Ends the run. The other threads know at once, so that none begins another record.
    fn failed(&self, error: RecordsError) -> Answered {
        self.control.abort.store(true, Ordering::Release);
        Answered::Failed(error)
    }

    fn panicked(&self, record: &R, message: &str) -> Answered {
        tracing::error!(message, "answering a record panicked");
        match catch_unwind(AssertUnwindSafe(|| self.answerer.panicked(record, message))) {
            Ok(line) => one_line(line),
            Err(_) => self.failed(RecordsError::Fatal(format!("answering panicked: {message}"))),
        }
    }
}

/// A line that is one.
fn one_line(line: String) -> Answered {
    if line.is_empty() || line.contains('\n') {
        let reason = "a record's line is empty or has a line break".to_owned();
        return Answered::Failed(RecordsError::Fatal(reason));
    }
    Answered::Line(line)
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

struct Coordinator<'a, R> {
    to_workers: SyncSender<Job<R>>,
    answers: Receiver<(u64, Answered)>,
    output: &'a mut Output,
    observer: &'a mut dyn Observer,
    options: &'a RunOptions<'a>,
    /// Tells the threads that the run ends by itself.
    abort: &'a AtomicBool,
    /// Lines whose predecessors are not there yet.
    early: BTreeMap<u64, String>,
    /// The next record to read.
    next: u64,
    /// Records that threads have.
    num_open: usize,
    /// Records that have come back from them.
    num_answered: u64,
    is_at_end: bool,
    is_stopped: bool,
    can_write: bool,
    failure: Option<RecordsError>,
}

impl<R> Coordinator<'_, R> {
    fn run(mut self, records: Records<'_, R>) -> Result<Ended> {
        loop {
            self.is_stopped |= self.options.stop.load(Ordering::Acquire);
            if self.may_hand_out() {
                if let Err(error) = self.hand_out(records) {
                    self.fail(error);
                }
            } else if self.num_open > 0 {
                match self.answers.recv_timeout(TICK) {
                    Ok((idx, answered)) => self.take_back(idx, answered),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        self.num_open = 0;
                        self.fail(RecordsError::Fatal("the threads that answer have ended".to_owned()));
                    }
                }
            } else {
                break;
            }
            if let Err(error) = self.write() {
                self.can_write = false;
                self.fail(error);
            }
            self.observer.tick();
        }
        match self.failure {
            Some(error) => Err(error),
            None if self.is_at_end && self.next == self.output.num_lines() => Ok(Ended::Complete),
            None => Ok(Ended::Stopped),
        }
    }

    /// Whether the next record may be read. The window bounds what was read and has no line in the output, whether it is
    /// being answered or waits for others.
    fn may_hand_out(&self) -> bool {
        let window = self.options.window() as u64;
        let is_open = !self.is_at_end && !self.is_stopped;
        let waits_for_first = self.options.first_alone && self.num_answered == 0 && self.num_open > 0;
        is_open && !waits_for_first && self.next.saturating_sub(self.output.num_lines()) < window
    }

    fn hand_out(&mut self, records: Records<'_, R>) -> Result<()> {
        let record = match records.next() {
            None => {
                self.is_at_end = true;
                return Ok(());
            }
            Some(Ok(record)) => record,
            Some(Err(error)) => {
                // The records before it can still be answered.
                self.is_stopped = true;
                self.failure.get_or_insert(RecordsError::Input(error));
                return Ok(());
            }
        };
        let idx = self.next;
        self.next += 1;
        match self.output.earlier_line()? {
            Some(line) if !self.observer.is_failure(&line) => {
                self.early.insert(idx, line);
            }
            _ => {
                // There is room for the whole window, so that this never blocks.
                if self.to_workers.send(Job { idx, record }).is_err() {
                    return Err(RecordsError::Fatal("the threads that answer have ended".to_owned()));
                }
                self.num_open += 1;
            }
        }
        Ok(())
    }

    fn take_back(&mut self, idx: u64, answered: Answered) {
        self.num_open -= 1;
        self.num_answered += 1;
        match answered {
            Answered::Line(line) => {
                self.early.insert(idx, line);
            }
            Answered::Stopped => self.is_stopped = true,
            Answered::Failed(error) => self.fail(error),
        }
    }

    /// Writes the lines whose turn it is.
    fn write(&mut self) -> Result<()> {
        let first = self.output.num_lines();
        let (mut bytes, mut num_lines) = (Vec::new(), 0);
        while self.can_write
            && let Some(line) = self.early.remove(&(first + num_lines))
        {
            let told = self.observer.line(first + num_lines, &line);
            told.map_err(RecordsError::Fatal)?;
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
            num_lines += 1;
        }
        if num_lines > 0 {
            self.output.append(&bytes, num_lines)?;
        }
        Ok(())
    }

    /// Ends the run; the first reason counts.
    fn fail(&mut self, error: RecordsError) {
        self.abort.store(true, Ordering::Release);
        self.is_stopped = true;
        self.failure.get_or_insert(error);
    }
}
