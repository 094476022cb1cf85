//! Records answered one by one, in their order, into a file that survives whatever ends the process: labels by the
//! thousand and batches of requests.
//!
//! Purpose: [`run`] reads records from an iterator, has an [`Answerer`] answer them on many threads, and appends a line for
//! each to an [`Output`], in the order of the records. It knows neither models nor HTTP, nor what a line says.
//!
//! State: the output file, which is locked while it is open; beside it `NAME.run.json` with the [`Terms`] that a resumption
//! must agree with; and, while failed records are asked again, `NAME.before` with the lines so far. Nothing else is kept:
//! the number of lines in the output says where to go on.
//!
//! Invariants: the output holds whole lines of a prefix of the records, each once; what a kill cut off is removed when it is
//! opened again. Every record that a thread has taken comes back, also from a panic. Memory holds the records of the window
//! and no more.
//!
//! Not done here: reading the input, what counts as a failure, and what is shown to people.

mod error;
mod output;
mod run;
mod terms;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use error::{InputError, RecordsError};
pub use output::{Output, Start};
pub use run::{Ended, Records, RunOptions, RunReport, run};
pub use terms::{Terms, beside};
pub use wardrobe_generator::RetryPolicy;
use wardrobe_generator::wait_unless;

/// Answers records. Called from many threads at once.
pub trait Answerer<R>: Sync {
    /// Answers one record. It may block; while it waits it should look at [`Control::is_stopped`].
    fn answer(&self, record: &R, control: &Control<'_>) -> Outcome;

    /// The line of a record whose [`Answerer::answer`] panicked with this message.
    fn panicked(&self, record: &R, message: &str) -> String;
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its line: JSON without a line break, whether that is an answer or says why there is none.
    Line(String),
    /// It cannot be answered now; ask again later, after this time where the other side named one. After the
    /// [`RetryPolicy`]'s patience the run ends with the reason.
    Again {
        /// The least time to wait.
        after: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// No record can be answered any more: the run ends with this reason, and keeps what it has.
    Fatal(String),
    /// It was given up since the run stops. It has no line, and is asked again when the run goes on.
    Stopped,
}

/// What an answerer may ask of the run that it answers for.
#[derive(Debug)]
pub struct Control<'a> {
    stop: &'a AtomicBool,
    abort: &'a AtomicBool,
}

impl Control<'_> {
    /// Whether the run stops, so that an answer under way is no longer needed.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.abort.load(Ordering::Acquire)
    }

    /// Waits; false as soon as the run stops.
    pub fn wait(&self, time: Duration) -> bool {
        wait_unless(&|| self.is_stopped(), time)
    }
}

/// Watches a run, on the thread that called [`run`] or [`Output::open`].
pub trait Observer {
    /// A line that is in the output, in its order: those of earlier runs when the output is opened, then the new ones.
    /// `idx` counts from 0.
    ///
    /// # Errors
    /// Why the line cannot be one of this run: for lines of earlier runs the output is then refused, and for new ones the
    /// run ends.
    fn line(&mut self, idx: u64, line: &str) -> Result<(), String>;

    /// Whether a line says that its record was not answered, so that it is asked again if that is wanted.
    fn is_failure(&self, line: &str) -> bool;

    /// Called at least every tenth of a second while records are answered, whether lines come or not.
    fn tick(&mut self) {}
}
