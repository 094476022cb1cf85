//! Many questions at once, on a thread each, patiently.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::error::AskError;
use crate::question::{Answer, Question};
use crate::retry::{RetryPolicy, Tries, wait_unless};
use crate::{Generator, Stopped};

/// The most questions at once: a thread each.
const MAX_CONCURRENCY: usize = 1024;

/// How to ask many questions.
#[derive(Clone, Copy)]
pub struct AskAll<'a> {
    /// At once.
    pub concurrency: usize,
    /// What to do with those that cannot be answered now.
    pub retry: RetryPolicy,
    /// Whether to stop.
    pub stopped: &'a Stopped<'a>,
}

/// Asks all questions, each of a generator, and hands over each answer, or why there is none, in any order and on this
/// thread. Once `ended` returns false or a stop is noticed, nothing more is asked, and what is under way is given up.
///
/// Questions are taken from the iterator as they are needed.
///
/// # Errors
/// [`AskError::Fatal`] if the machine has no thread to give.
pub fn ask_all<'a, T: Send>(
    questions: impl Iterator<Item = (T, &'a dyn Generator, Question)>,
    options: AskAll<'_>,
    ended: impl FnMut(T, Result<Answer, AskError>) -> bool,
) -> Result<(), AskError> {
    let jobs = (0..).zip(questions).map(|(salt, (key, who, question))| (key, (who, question, salt)));
    let ask = |(who, question, salt): (&dyn Generator, Question, u64), stopped: &Stopped<'_>| {
        patiently(options.retry.start(salt), stopped, || who.generate(&question, stopped))
    };
    run_all(jobs, options.concurrency, options.stopped, ask, ended)
}

/// Runs jobs that ask, on a thread each, and hands over what came of each as [`ask_all`] does; one that panics has
/// failed alone.
///
/// # Errors
/// As of [`ask_all`].
pub fn run_all<T: Send, J: Send, R: Send>(
    jobs: impl Iterator<Item = (T, J)>,
    concurrency: usize,
    stopped: &Stopped<'_>,
    run: impl Fn(J, &Stopped<'_>) -> Result<R, AskError> + Sync,
    mut ended: impl FnMut(T, Result<R, AskError>) -> bool,
) -> Result<(), AskError> {
    let num_threads = concurrency.clamp(1, MAX_CONCURRENCY);
    let abort = AtomicBool::new(false);
    let has_stopped = || abort.load(Ordering::Acquire) || stopped();
    // Twice as many as threads are open at most, so that one is at hand whenever one ends, and no send ever blocks.
    let (to_workers, queue) = sync_channel::<(T, J)>(2 * num_threads);
    let (to_caller, answers) = sync_channel(2 * num_threads);
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        // Dropped on every way out, so that the threads end.
        let (to_workers, answers) = (to_workers, answers);
        for _ in 0..num_threads {
            let (queue, to_caller, run, has_stopped) = (&queue, to_caller.clone(), &run, &has_stopped);
            let builder = std::thread::Builder::new().name("wardrobe-asking".to_owned());
            if let Err(error) = builder.spawn_scoped(scope, move || work(queue, &to_caller, run, has_stopped))
            {
                abort.store(true, Ordering::Release);
                return Err(AskError::Fatal(format!("cannot start a thread: {error}")));
            }
        }
        drop(to_caller);
        let mut num_open = 0;
        let mut goes_on = true;
        for job in jobs {
            while goes_on && num_open >= 2 * num_threads {
                goes_on = take(&answers, &mut num_open, &mut ended);
            }
            if !goes_on || has_stopped() || to_workers.send(job).is_err() {
                break;
            }
            num_open += 1;
        }
        drop(to_workers);
        while goes_on && num_open > 0 {
            goes_on = take(&answers, &mut num_open, &mut ended);
        }
        abort.store(true, Ordering::Release);
        Ok(())
    })
}

/// Hands over what comes next; false to stop.
fn take<T, R>(
    answers: &Receiver<(T, Result<R, AskError>)>,
    num_open: &mut usize,
    ended: &mut impl FnMut(T, Result<R, AskError>) -> bool,
) -> bool {
    *num_open -= 1;
    answers.recv().is_ok_and(|(key, answered)| ended(key, answered))
}

fn work<T, J, R>(
    queue: &Mutex<Receiver<(T, J)>>,
    to_caller: &SyncSender<(T, Result<R, AskError>)>,
    run: &impl Fn(J, &Stopped<'_>) -> Result<R, AskError>,
    stopped: &Stopped<'_>,
) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((key, job)) = job else { return };
        let answered = catch_unwind(AssertUnwindSafe(|| run(job, stopped))).unwrap_or_else(|_| {
            Err(AskError::Question { kind: "panic", message: "asking panicked".to_owned() })
        });
        if to_caller.send((key, answered)).is_err() {
            return;
        }
    }
}

/// Asks until there is an answer or patience ends.
///
/// # Errors
/// What asking gave, but for [`AskError::Again`], which is [`AskError::Fatal`] when patience ends; [`AskError::Stopped`].
pub fn patiently<R>(
    mut tries: Tries,
    stopped: &Stopped<'_>,
    ask: impl Fn() -> Result<R, AskError>,
) -> Result<R, AskError> {
    loop {
        if stopped() {
            return Err(AskError::Stopped);
        }
        let (after, reason) = match ask() {
            Err(AskError::Again { after, reason }) => (after, reason),
            other => return other,
        };
        let num = tries.num();
        let Some(wait) = tries.next_wait(after) else {
            return Err(AskError::Fatal(format!("gave up after {num} tries: {reason}")));
        };
        tracing::debug!(tries = num, reason, "a question is asked again");
        if !wait_unless(stopped, wait) {
            return Err(AskError::Stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;
    use crate::{Message, Usage};

    /// Answers with the question's text, after as many refusals as the text has letters `x`.
    #[derive(Default)]
    struct Echo {
        asked: Mutex<BTreeMap<String, usize>>,
        open: AtomicUsize,
        most_open: AtomicUsize,
    }

    impl Generator for Echo {
        fn name(&self) -> &str {
            "echo"
        }

        fn identity(&self) -> Vec<(&'static str, String)> {
            Vec::new()
        }

        fn concurrency(&self) -> usize {
            4
        }

        fn generate(&self, question: &Question, stopped: &Stopped<'_>) -> Result<Answer, AskError> {
            let open = 1 + self.open.fetch_add(1, Ordering::AcqRel);
            self.most_open.fetch_max(open, Ordering::AcqRel);
            let crate::Prompt::Text(text) = &question.prompt else { unreachable!() };
            let tries = {
                let mut asked = self.asked.lock().unwrap();
                let tries = asked.entry(text.clone()).or_default();
                *tries += 1;
                *tries
            };
            std::thread::sleep(Duration::from_millis(1));
            self.open.fetch_sub(1, Ordering::AcqRel);
            match text.as_str() {
                "panic" => panic!("as asked"),
                "bad" => Err(AskError::Question { kind: "bad_prompt", message: "bad".to_owned() }),
                "wait" => {
                    wait_unless(stopped, Duration::from_secs(3600));
                    Err(AskError::Stopped)
                }
                text if tries <= text.matches('x').count() => {
                    Err(AskError::Again { after: Some(Duration::from_millis(1)), reason: "busy".to_owned() })
                }
                text => Ok(Answer { text: text.to_owned(), usage: Usage::default(), ..Answer::default() }),
            }
        }
    }

    fn run(
        echo: &Echo,
        texts: &[&str],
        patience: Duration,
        ended: impl FnMut(usize, Result<Answer, AskError>) -> bool,
    ) {
        let ms = Duration::from_millis;
        let retry = RetryPolicy { first_wait: ms(1), max_wait: ms(2), patience };
        let questions = texts.iter().enumerate().map(|(at, text)| {
            let question = Question::new(crate::Prompt::Text((*text).to_owned()), 1);
            (at, echo as &dyn Generator, question)
        });
        ask_all(questions, AskAll { concurrency: 4, retry, stopped: &|| false }, ended).unwrap();
    }

    #[test]
    fn every_question_is_answered_once_and_no_more_are_asked_at_once_than_allowed() {
        let texts: Vec<String> = (0..100).map(|at| format!("{at}{}", "x".repeat(at % 4))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).chain(["bad", "panic"]).collect();
        let (echo, mut got) = (Echo::default(), BTreeMap::new());
        run(&echo, &texts, Duration::from_secs(60), |at, answered| got.insert(at, answered).is_none());
        assert_eq!(got.len(), 102);
        for (at, text) in texts.iter().enumerate().take(100) {
            assert_eq!(got[&at].as_ref().unwrap().text, *text);
        }
        assert!(matches!(&got[&100], Err(AskError::Question { kind: "bad_prompt", .. })));
        assert!(matches!(&got[&101], Err(AskError::Question { kind: "panic", .. })));
        assert!((2..=4).contains(&echo.most_open.load(Ordering::Acquire)));
    }

    #[test]
    fn patience_ends_and_a_refusal_of_more_gives_up_what_waits() {
        let echo = Echo::default();
        let mut got = Vec::new();
        run(&echo, &["xxxxxxxxxxxxxxxxxxxx"], Duration::ZERO, |_, answered| {
            got.push(answered);
            true
        });
        assert_eq!(got, [Err(AskError::Fatal("gave up after 1 tries: busy".to_owned()))]);
        let mut num = 0;
        run(&echo, &["wait", "wait", "wait", "a", "b", "c"], Duration::from_secs(60), |_, _| {
            num += 1;
            false
        });
        assert_eq!(num, 1);
    }

    #[test]
    fn a_conversation_is_a_question() {
        let question = Question::chat(vec![Message::text("user", "hello")], 3);
        let json = serde_json::to_value(&question).unwrap();
        assert_eq!(json["prompt"]["chat"][0]["content"], "hello");
    }
}
