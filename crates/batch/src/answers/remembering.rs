//! A generator that asks nothing twice.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wardrobe_generator::{
    Answer, AskError, Generator, Message, Question, Scorer, Stopped, TokenScore, Usage,
};

use super::store::{AnswerKey, Answers};
use crate::error::BatchError;

/// Before a stop is noticed while another thread asks the same.
const POLL: Duration = Duration::from_millis(100);

/// Which kept answers are good enough not to be asked anew.
type IsGood<'a> = dyn Fn(&Question, &Answer) -> bool + Sync + 'a;

/// Asks another generator what is not in a file of answers, and keeps what it says there.
pub struct Remembering<'a> {
    inner: &'a dyn Generator,
    answers: &'a Answers,
    is_good: Option<&'a IsGood<'a>>,
    /// What is being asked.
    open: Mutex<HashSet<AnswerKey>>,
    /// Something of it has ended.
    ended: Condvar,
    tally: Mutex<Tally>,
}

/// Answers, and their tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// How many.
    pub num: u64,
    /// Their tokens.
    pub usage: Usage,
}

/// Where answers came from so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Asked.
    pub asked: Told,
    /// Found in the file.
    pub kept: Told,
}

impl Told {
    fn add(&mut self, usage: Usage) {
        self.num += 1;
        self.usage += usage;
    }
}

impl<'a> Remembering<'a> {
    /// In front of `inner`.
    pub fn new(inner: &'a dyn Generator, answers: &'a Answers) -> Self {
        Self {
            inner,
            answers,
            is_good: None,
            open: Mutex::default(),
            ended: Condvar::new(),
            tally: Mutex::default(),
        }
    }

    /// Asks anew, and keeps what is said then, where a kept answer is not good.
    #[must_use]
    pub fn asking_anew_unless(self, is_good: &'a IsGood<'a>) -> Self {
        Self { is_good: Some(is_good), ..self }
    }

    /// Where answers came from so far.
    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> MutexGuard<'_, HashSet<AnswerKey>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else here asks the same.
    fn claim(&self, key: AnswerKey, stopped: &Stopped<'_>) -> Result<Claim<'_, 'a>, AskError> {
        let mut open = self.opened();
        while !open.insert(key) {
            if stopped() {
                return Err(AskError::Stopped);
            }
            open = self.ended.wait_timeout(open, POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Claim { of: self, key })
    }

    fn told(&self, usage: Usage, count: impl FnOnce(&mut Tally) -> &mut Told) {
        count(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner)).add(usage);
    }

    fn inner_scorer(&self) -> Result<&dyn Scorer, AskError> {
        self.inner.scorer().ok_or_else(|| AskError::Unsupported {
            who: self.name().to_owned(),
            what: "cannot tell how likely a text is".to_owned(),
        })
    }
}

/// A question that is being asked, until this is dropped.
struct Claim<'c, 'a> {
    of: &'c Remembering<'a>,
    key: AnswerKey,
}

impl Drop for Claim<'_, '_> {
    fn drop(&mut self) {
        self.of.opened().remove(&self.key);
        self.of.ended.notify_all();
    }
}

/// Without the file nothing is asked: it would be paid for again.
fn failed(error: BatchError) -> AskError {
    AskError::Fatal(format!("the kept answers: {error}"))
}

impl Generator for Remembering<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn identity(&self) -> Vec<(&'static str, String)> {
        self.inner.identity()
    }

    fn concurrency(&self) -> usize {
        self.inner.concurrency()
    }

    fn check(&self, question: &Question) -> Result<(), AskError> {
        self.inner.check(question)
    }

    fn generate(&self, question: &Question, stopped: &Stopped<'_>) -> Result<Answer, AskError> {
        let key = AnswerKey::of(self.inner, question);
        let _claim = self.claim(key, stopped)?;
        let kept = self.answers.get(&key).map_err(failed)?;
        let is_kept = kept.is_some();
        if let Some(answer) = kept
            && self.is_good.is_none_or(|is_good| is_good(question, &answer))
        {
            self.told(answer.usage, |tally| &mut tally.kept);
            return Ok(answer);
        }
        let answer = self.inner.generate(question, stopped)?;
        self.told(answer.usage, |tally| &mut tally.asked);
        self.answers.put(&key, self.inner.name(), answer, is_kept).map_err(failed)
    }

    fn scorer(&self) -> Option<&dyn Scorer> {
        self.inner.scorer().map(|_| self as &dyn Scorer)
    }
}

impl Scorer for Remembering<'_> {
    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<u32>, AskError> {
        self.inner_scorer()?.tokenize(text, special)
    }

    fn tokenize_chat(&self, messages: &[Message]) -> Result<Vec<u32>, AskError> {
        self.inner_scorer()?.tokenize_chat(messages)
    }

    fn max_context_tokens(&self) -> Option<usize> {
        self.inner.scorer()?.max_context_tokens()
    }

    fn score(&self, tokens: &[u32], stopped: &Stopped<'_>) -> Result<Vec<TokenScore>, AskError> {
        self.score_from(tokens, 1, stopped)
    }

    fn score_from(
        &self,
        tokens: &[u32],
        from: usize,
        stopped: &Stopped<'_>,
    ) -> Result<Vec<TokenScore>, AskError> {
        let key = AnswerKey::of_scores(self.inner, tokens, from);
        let _claim = self.claim(key, stopped)?;
        let usage = Usage { prompt_tokens: tokens.len() as u64, ..Usage::default() };
        if let Some(scores) = self.answers.scores(&key).map_err(failed)? {
            self.told(usage, |tally| &mut tally.kept);
            return Ok(scores);
        }
        let scores = self.inner_scorer()?.score_from(tokens, from, stopped)?;
        self.told(usage, |tally| &mut tally.asked);
        self.answers.put_scores(&key, self.inner.name(), &scores).map_err(failed)?;
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers with a number that grows.
    #[derive(Default)]
    struct Counting {
        asked: AtomicUsize,
        fails: bool,
    }

    impl Generator for Counting {
        fn name(&self) -> &str {
            "counting"
        }

        fn identity(&self) -> Vec<(&'static str, String)> {
            Vec::new()
        }

        fn concurrency(&self) -> usize {
            1
        }

        fn generate(&self, _question: &Question, _stopped: &Stopped<'_>) -> Result<Answer, AskError> {
            let num = self.asked.fetch_add(1, Ordering::AcqRel);
            std::thread::sleep(Duration::from_millis(20));
            if self.fails {
                return Err(AskError::Again { after: None, reason: "busy".to_owned() });
            }
            let usage = Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 2 };
            Ok(Answer { text: num.to_string(), finish_reason: "stop".to_owned(), usage })
        }
    }

    fn question(text: &str) -> Question {
        Question::new(wardrobe_generator::Prompt::Text(text.to_owned()), 5)
    }

    #[test]
    fn what_is_asked_at_once_or_later_is_asked_once() {
        let folder = tempfile::tempdir().unwrap();
        let answers = Answers::open(&folder.path().join("a")).unwrap();
        let inner = Counting::default();
        let remembering = Remembering::new(&inner, &answers);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert_eq!(remembering.generate(&question("a"), &|| false).unwrap().text, "0");
                });
            }
        });
        assert_eq!(inner.asked.load(Ordering::Acquire), 1);
        let tally = remembering.tally();
        assert_eq!((tally.asked.num, tally.kept.num, tally.kept.usage.prompt_tokens), (1, 7, 35));
        assert_eq!(remembering.generate(&question("b"), &|| false).unwrap().text, "1");
        // Another run, with the same file.
        let later = Remembering::new(&inner, &answers);
        assert_eq!(later.generate(&question("a"), &|| false).unwrap().text, "0");
        // What is no good is asked anew, and what came then is kept.
        let is_good = |_: &Question, answer: &Answer| answer.text != "0";
        let anew = Remembering::new(&inner, &answers).asking_anew_unless(&is_good);
        for text in ["a", "b", "a"] {
            anew.generate(&question(text), &|| false).unwrap();
        }
        assert_eq!((anew.tally().asked.num, anew.tally().kept.num), (1, 2));
        assert_eq!(later.generate(&question("a"), &|| false).unwrap().text, "2");
    }

    #[test]
    fn failures_are_not_kept_and_a_stop_ends_a_wait() {
        let folder = tempfile::tempdir().unwrap();
        let answers = Answers::open(&folder.path().join("a")).unwrap();
        let inner = Counting { fails: true, ..Counting::default() };
        let remembering = Remembering::new(&inner, &answers);
        for _ in 0..2 {
            let failed = remembering.generate(&question("a"), &|| false);
            assert!(matches!(failed, Err(AskError::Again { .. })));
        }
        assert_eq!((inner.asked.load(Ordering::Acquire), answers.num().unwrap()), (2, 0));
        let claim = remembering.claim(AnswerKey::of(&inner, &question("a")), &|| false).unwrap();
        assert_eq!(remembering.generate(&question("a"), &|| true), Err(AskError::Stopped));
        drop(claim);
    }
}
