//! The way from the engine thread to one caller: a bounded buffer that coalesces.
//!
//! One request has one stream, shared by its choices. The engine's end never blocks: text and tokens that the
//! caller has not taken yet are merged into one pending update per choice. Once `capacity_tokens` are pending, the
//! stream is *full*: the engine stops computing the request until the caller has read, and cancels it after a while.
//!
//! Invariants: exactly one update per choice has a `finish`; the summary comes last, once, also when the engine thread
//! dies (the sender's `Drop` ends what is open). Dropping the caller's end marks the request as cancelled.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_core::Stream;

use crate::response::{Completion, Event, Finish, Summary, TokenLogprobs, Update};

/// Wakes the engine thread: the caller has read, or has gone.
pub(crate) type WakeEngine = Arc<dyn Fn() + Send + Sync>;

struct Shared {
    buffer: Mutex<Buffer>,
    readable: Condvar,
    capacity_tokens: usize,
    full: AtomicBool,
    cancelled: AtomicBool,
    wake_engine: WakeEngine,
}

#[derive(Default)]
struct Buffer {
    prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// Pending update of each choice.
    pending: Vec<Option<Update>>,
    /// Choices with a pending update, in the order in which they became so.
    order: std::collections::VecDeque<usize>,
    pending_tokens: usize,
    summary: Option<Box<Summary>>,
    ended: bool,
    waker: Option<Waker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the reader. Takes the guard so that the waker runs without the lock.
    fn notify(&self, mut buffer: MutexGuard<'_, Buffer>) {
        let waker = buffer.waker.take();
        drop(buffer);
        self.readable.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the next event; `None` if there is none yet.
    fn pop(&self, buffer: &mut Buffer) -> Option<Event> {
        if let Some(rows) = buffer.prompt_logprobs.take() {
            return Some(Event::PromptLogprobs(rows));
        }
        while let Some(choice) = buffer.order.pop_front() {
            let Some(update) = buffer.pending.get_mut(choice).and_then(Option::take) else { continue };
            buffer.pending_tokens = buffer.pending_tokens.saturating_sub(update.token_ids.len());
            if buffer.pending_tokens < self.capacity_tokens && self.full.swap(false, Ordering::AcqRel) {
                (self.wake_engine)();
            }
            return Some(Event::Update(update));
        }
        let summary = buffer.summary.take()?;
        buffer.ended = true;
        Some(Event::Summary(summary))
    }
}

/// Makes the two ends of a stream for `n` choices.
pub(crate) fn response_stream(
    n: usize,
    capacity_tokens: usize,
    wake_engine: WakeEngine,
) -> (StreamSender, ResponseStream) {
    let mut buffer = Buffer::default();
    buffer.pending.resize_with(n, || None);
    let shared = Arc::new(Shared {
        buffer: Mutex::new(buffer),
        readable: Condvar::new(),
        capacity_tokens,
        full: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        wake_engine,
    });
    let sender = StreamSender { shared: shared.clone(), open: vec![true; n], summarised: false };
    (sender, ResponseStream { shared })
}

/// The engine's end.
pub(crate) struct StreamSender {
    shared: Arc<Shared>,
    /// Which choices have not ended.
    open: Vec<bool>,
    summarised: bool,
}

impl StreamSender {
    /// Whether the caller has dropped its end.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Acquire)
    }

    /// Whether the caller has to read before anything more is computed.
    pub fn is_full(&self) -> bool {
        self.shared.full.load(Ordering::Acquire)
    }

    /// Hands over the prompt's log-probabilities.
    pub fn send_prompt_logprobs(&mut self, rows: Vec<Option<TokenLogprobs>>) {
        let mut buffer = self.shared.lock();
        buffer.prompt_logprobs = Some(rows);
        self.shared.notify(buffer);
    }

    /// Hands over what a choice gained. Updates of a choice that has ended are dropped.
    pub fn send(&mut self, update: Update) {
        let Some(open) = self.open.get_mut(update.choice) else { return };
        if !*open {
            return;
        }
        *open = update.finish.is_none();
        let mut buffer = self.shared.lock();
        let choice = update.choice;
        buffer.pending_tokens += update.token_ids.len();
        let Some(slot) = buffer.pending.get_mut(choice) else { return };
        match slot {
            Some(pending) => pending.extend(update),
            None => {
                *slot = Some(update);
                buffer.order.push_back(choice);
            }
        }
        if buffer.pending_tokens >= self.shared.capacity_tokens {
            self.shared.full.store(true, Ordering::Release);
        }
        self.shared.notify(buffer);
    }

    /// Ends the stream. All choices must have ended.
    pub fn finish(mut self, summary: Summary) {
        self.end(summary);
    }

    fn end(&mut self, summary: Summary) {
        if std::mem::replace(&mut self.summarised, true) {
            return;
        }
        let mut buffer = self.shared.lock();
        buffer.summary = Some(Box::new(summary));
        self.shared.notify(buffer);
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        if self.summarised {
            return;
        }
        for choice in 0..self.open.len() {
            let finish = Some(Finish::Error { message: "the engine stopped".to_owned() });
            self.send(Update { choice, finish, ..Update::default() });
        }
        self.end(Summary::default());
    }
}

/// A request's answer as it comes: a blocking iterator, and a [`Stream`] that any async runtime can poll.
///
/// The last event is [`Event::Summary`]. Dropping the stream cancels the request.
#[must_use = "dropping the stream cancels the request"]
pub struct ResponseStream {
    shared: Arc<Shared>,
}

impl ResponseStream {
    /// The next event, if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        let mut buffer = self.shared.lock();
        self.shared.pop(&mut buffer)
    }

    /// Waits at most `timeout` for the next event. `None` if the time is over or the stream has ended.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now().checked_add(timeout)?;
        let mut buffer = self.shared.lock();
        loop {
            if buffer.ended {
                return None;
            }
            if let Some(event) = self.shared.pop(&mut buffer) {
                return Some(event);
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            (buffer, _) =
                self.shared.readable.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the next event without blocking the thread. `None` after the end.
    pub async fn next_event(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut buffer = self.shared.lock();
        if buffer.ended {
            return Poll::Ready(None);
        }
        if let Some(event) = self.shared.pop(&mut buffer) {
            return Poll::Ready(Some(event));
        }
        match &mut buffer.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Reads to the end, blocking.
    pub fn completion_blocking(self) -> Completion {
        let mut completion = Completion::default();
        self.for_each(|event| completion.apply(event));
        completion
    }

    /// Reads to the end.
    pub async fn completion(mut self) -> Completion {
        let mut completion = Completion::default();
        while let Some(event) = self.next_event().await {
            completion.apply(event);
        }
        completion
    }
}

impl Iterator for ResponseStream {
    type Item = Event;

    /// Blocks until there is an event; `None` after the end.
    fn next(&mut self) -> Option<Event> {
        let mut buffer = self.shared.lock();
        loop {
            if buffer.ended {
                return None;
            }
            if let Some(event) = self.shared.pop(&mut buffer) {
                return Some(event);
            }
            buffer = self.shared.readable.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Stream for ResponseStream {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.get_mut().poll_event(context)
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        self.shared.cancelled.store(true, Ordering::Release);
        (self.shared.wake_engine)();
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
