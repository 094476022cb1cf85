//! The way into the engine thread: a bounded queue of submissions, a bell, and the order to stop.
//!
//! Everything else that callers do (dropping a stream, reading, loading an adapter) changes shared state that the
//! engine thread looks at each turn, and rings the bell; so nothing here can grow without bound.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::adapter::generation::Lease;
use crate::error::SubmitError;
use crate::stream::StreamSender;
use crate::validate::ValidRequest;

/// A request on its way to the engine thread.
pub(crate) struct Submission {
    pub valid: ValidRequest,
    pub lease: Option<Arc<Lease>>,
    pub seed: u64,
    pub sender: StreamSender,
    pub submitted_at: Instant,
    /// The request's span, a child of the caller's.
    pub span: tracing::Span,
}

/// The shortest wait that is worth asking for.
pub(crate) const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How busy the engine thread is, as it last said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Sequences that it took and that have not ended.
    pub open: usize,
    /// When a retry has a fair chance.
    pub retry_after: Duration,
}

#[derive(Default)]
struct State {
    submissions: VecDeque<Submission>,
    load: Load,
    rung: bool,
    /// Stop taking requests, and stop altogether at this time.
    stop_at: Option<Instant>,
    /// Why nothing is taken any more.
    closed: Option<SubmitError>,
}

/// What the engine thread finds when it looks.
pub(crate) struct Mail {
    pub submissions: VecDeque<Submission>,
    pub stop_at: Option<Instant>,
}

pub(crate) struct Mailbox {
    state: Mutex<State>,
    bell: Condvar,
    /// The most sequences that are open at once.
    capacity: usize,
}

impl State {
    /// Sequences that are open: the engine thread's, and those on their way to it.
    fn open(&self) -> usize {
        self.load.open + sequences(&self.submissions)
    }
}

fn sequences<'a>(submissions: impl IntoIterator<Item = &'a Submission>) -> usize {
    submissions.into_iter().map(|submission| submission.valid.request.n).fold(0, usize::saturating_add)
}

impl Mailbox {
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), bell: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_room(&self, state: &State, wanted: usize) -> Result<(), SubmitError> {
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        if state.stop_at.is_some() {
            return Err(SubmitError::ShuttingDown);
        }
        let open = state.open();
        if open.saturating_add(wanted) > self.capacity {
            // Before the engine thread has said anything there is no rate to go by.
            let retry_after = state.load.retry_after.max(MIN_RETRY_AFTER);
            return Err(SubmitError::Overloaded { open, retry_after });
        }
        Ok(())
    }

    /// Whether anything would be taken now.
    pub fn check_open(&self) -> Result<(), SubmitError> {
        self.check_room(&self.lock(), 1)
    }

    /// Queues all submissions, or none.
    pub fn submit_all(&self, submissions: Vec<Submission>) -> Result<(), SubmitError> {
        let wanted = sequences(&submissions);
        let mut state = self.lock();
        // What is refused is dropped after the lock is released: its streams ring the bell.
        self.check_room(&state, wanted)?;
        state.submissions.extend(submissions);
        state.rung = true;
        drop(state);
        self.bell.notify_all();
        Ok(())
    }

    /// The engine thread has less to do: what has ended makes room before its callers hear of it.
    pub fn update(&self, load: Load) {
        self.lock().load = load;
    }

    /// Makes the engine thread look around.
    pub fn ring(&self) {
        self.lock().rung = true;
        self.bell.notify_all();
    }

    /// Takes no more requests, and has the engine thread end those that are open at `stop_at`.
    pub fn stop(&self, stop_at: Instant) {
        let mut state = self.lock();
        state.stop_at = Some(state.stop_at.map_or(stop_at, |earlier| earlier.min(stop_at)));
        state.rung = true;
        drop(state);
        self.bell.notify_all();
    }

    /// Takes nothing any more; submissions still in the queue end with an error.
    pub fn close(&self, error: SubmitError) {
        let mut state = self.lock();
        state.closed.get_or_insert(error);
        let unserved = std::mem::take(&mut state.submissions);
        drop(state);
        drop(unserved);
    }

    /// The engine thread's look: what came since the last. Waits for the bell first, until `wait_until` if given
    /// (`None` waits for as long as it takes), unless it has rung already.
    pub fn wait(&self, load: Load, wait_until: Option<Instant>) -> Mail {
        let mut state = self.lock();
        state.load = load;
        while !state.rung {
            state = match wait_until {
                None => self.bell.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.bell.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Self::collect(&mut state)
    }

    /// The engine thread's look without waiting.
    pub fn poll(&self, load: Load) -> Mail {
        let mut state = self.lock();
        state.load = load;
        Self::collect(&mut state)
    }

    fn collect(state: &mut State) -> Mail {
        state.rung = false;
        let submissions = std::mem::take(&mut state.submissions);
        state.load.open += sequences(&submissions);
        Mail { submissions, stop_at: state.stop_at }
    }
}
