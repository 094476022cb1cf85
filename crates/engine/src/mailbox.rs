//! The way into the engine thread: a bounded queue of submissions, a bell, and the order to stop.
//!
//! Everything else that callers do (dropping a stream, reading, loading an adapter) changes shared state that the
//! engine thread looks at each turn, and rings the bell; so nothing here can grow without bound.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::adapter::generation::Lease;
use crate::error::SubmitError;
use crate::ids::RequestId;
use crate::stream::StreamSender;
use crate::validate::ValidRequest;

/// A request on its way to the engine thread.
pub(crate) struct Submission {
    pub id: RequestId,
    pub valid: ValidRequest,
    pub lease: Option<Arc<Lease>>,
    pub seed: u64,
    pub sender: StreamSender,
    pub submitted_at: Instant,
    /// The request's span, a child of the caller's.
    pub span: tracing::Span,
}

/// How busy the engine thread is, as it last said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Requests that it took and has not started.
    pub unstarted: usize,
    /// When a retry has a fair chance.
    pub retry_after: Duration,
}

#[derive(Default)]
struct State {
    submissions: VecDeque<Submission>,
    load: Load,
    last_request: u64,
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
    capacity: usize,
}

impl Mailbox {
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), bell: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self, state: &State) -> Result<(), SubmitError> {
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        if state.stop_at.is_some() {
            return Err(SubmitError::ShuttingDown);
        }
        let queued = state.submissions.len() + state.load.unstarted;
        if queued >= self.capacity {
            return Err(SubmitError::Overloaded { queued, retry_after: state.load.retry_after });
        }
        Ok(())
    }

    /// Whether a submission would be taken now.
    pub fn check(&self) -> Result<(), SubmitError> {
        self.check_open(&self.lock())
    }

    /// Queues a submission; its id is set here, in the order of the queue.
    pub fn submit(&self, mut submission: Submission) -> Result<RequestId, SubmitError> {
        let mut state = self.lock();
        if let Err(error) = self.check_open(&state) {
            drop(state);
            return Err(error);
        }
        state.last_request += 1;
        submission.id = RequestId(state.last_request);
        let id = submission.id;
        state.submissions.push_back(submission);
        state.rung = true;
        drop(state);
        self.bell.notify_all();
        Ok(id)
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
        state.load.unstarted += submissions.len();
        Mail { submissions, stop_at: state.stop_at }
    }
}
