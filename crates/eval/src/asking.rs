//! Many requests at once: as many as the engine runs and some more, so that it always has a full batch.

use std::collections::VecDeque;
use std::time::Duration;

use wardrobe_engine::{Completion, Engine, Event, Finish, Request, ResponseStream, SubmitError};

/// How long the oldest answer is waited for before the others are read again: a stream that nobody reads pauses.
const POLL: Duration = Duration::from_millis(20);
/// How long a queue that others have filled is waited for.
const MAX_OVERLOADED: Duration = Duration::from_secs(120);

/// One answer under way.
struct Open<T> {
    key: T,
    stream: ResponseStream,
    completion: Completion,
}

/// Asks all requests, each of which has a key, and hands over each answer, or why the engine refused, in any order. Once
/// `ended` returns false, nothing more is asked and what runs is cancelled.
pub(crate) fn ask_all<T>(
    engine: &Engine,
    requests: impl Iterator<Item = (T, Request)>,
    mut ended: impl FnMut(T, Result<Completion, SubmitError>) -> bool,
) {
    let max_open = engine.config().max_num_sequences.saturating_mul(2).max(1);
    let mut open: VecDeque<Open<T>> = VecDeque::new();
    for (key, request) in requests {
        while open.len() >= max_open {
            if !read(&mut open, &mut ended) {
                return;
            }
        }
        let mut waited = Duration::ZERO;
        let submitted = loop {
            match engine.submit(request.clone()) {
                Err(SubmitError::Overloaded { .. }) if waited < MAX_OVERLOADED => {
                    if open.is_empty() {
                        std::thread::sleep(POLL);
                    } else if !read(&mut open, &mut ended) {
                        return;
                    }
                    waited += POLL;
                }
                other => break other,
            }
        };
        match submitted {
            Ok(stream) => open.push_back(Open { key, stream, completion: Completion::default() }),
            Err(error) => {
                if !ended(key, Err(error)) {
                    return;
                }
            }
        }
    }
    while !open.is_empty() && read(&mut open, &mut ended) {}
}

/// Takes what has come, waiting a little for the oldest, and hands over what has ended; false to stop.
fn read<T>(
    open: &mut VecDeque<Open<T>>,
    ended: &mut impl FnMut(T, Result<Completion, SubmitError>) -> bool,
) -> bool {
    for at in 0..open.len() {
        let Some(mut one) = open.pop_front() else { break };
        let mut next = if at == 0 { one.stream.next_timeout(POLL) } else { one.stream.try_next() };
        let mut is_over = false;
        while let Some(event) = next {
            is_over = matches!(event, Event::Summary(_));
            one.completion.apply(event);
            next = if is_over { None } else { one.stream.try_next() };
        }
        if !is_over {
            // All are taken from the front once, so that their order stays.
            open.push_back(one);
        } else if !ended(one.key, Ok(one.completion)) {
            return false;
        }
    }
    true
}

/// Why an answer is none, where it was cut off by something else than its length.
pub(crate) fn failure(finish: Option<&Finish>) -> Option<String> {
    match finish {
        Some(Finish::Stop(_) | Finish::Length) => None,
        Some(Finish::Error { message } | Finish::Cancelled { reason: message }) => Some(message.clone()),
        _ => Some("the answer has no end".to_owned()),
    }
}
