//! Choices that are held to a [`Template`]: masks are computed beside the model, tokens that have no alternative are not
//! sampled, and a budget never ends in the middle.
//!
//! State: one [`Constrained`] a choice. Its session is either here or with a worker, who computes the next mask while the
//! model runs; it comes back with the mask. A slow mask delays its own sequence: the row is left out of the sample, and
//! computed again in a later step. Along a draft there are as many masks as samples; a slow one ends the draft before it.
//!
//! Invariant: after every token that a choice has taken, a way to the end of the text is known that fits the tokens which are
//! left.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use wardrobe_grammar::{Session, Template};

use crate::ids::TokenId;

/// A spec that a request is held to. Two are equal if they are the same template.
#[derive(Clone, Debug)]
pub struct Constraint(pub Arc<Template>);

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Tokens that may be sampled, one bit each: token `t` is bit `t % 32` of word `t / 32`.
#[derive(Clone, Debug)]
pub enum Allowed {
    /// All.
    All,
    /// These.
    These(Arc<[u32]>),
    /// Those of a mask that is still being computed. An executor asks for it when it has the logits; if it is not there
    /// within its patience, or failed, nothing is sampled there, nor in later rows of the chunk.
    Awaited(Arc<PendingMask>),
}

impl PartialEq for Allowed {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Allowed::All, Allowed::All) => true,
            (Allowed::These(a), Allowed::These(b)) => a == b,
            (Allowed::Awaited(a), Allowed::Awaited(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// What became of [`Allowed`] when it was needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Sample from all tokens.
    All,
    /// Sample from these.
    These(Arc<[u32]>),
    /// Do not sample.
    Late,
}

impl Allowed {
    /// The mask, waited for until `until`.
    pub fn resolve(&self, until: Instant) -> Resolved {
        match self {
            Allowed::All => Resolved::All,
            Allowed::These(mask) => Resolved::These(mask.clone()),
            Allowed::Awaited(pending) => match pending.wait(until) {
                Some(Ok(mask)) => Resolved::These(mask),
                Some(Err(_)) | None => Resolved::Late,
            },
        }
    }

    /// Whether this token may be sampled, as far as that is known now.
    pub(crate) fn permits(&self, token: TokenId) -> bool {
        match self.resolve(Instant::now()) {
            Resolved::All => true,
            Resolved::These(mask) => {
                mask.get(token.0 as usize / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1)
            }
            Resolved::Late => false,
        }
    }
}

/// A mask in the making.
pub struct PendingMask {
    of: Arc<PendingMasks>,
    /// Which of them.
    idx: usize,
}

/// The masks of a chunk: one, or those along a draft.
#[derive(Default)]
pub(crate) struct PendingMasks {
    state: Mutex<PendingState>,
    done: Condvar,
}

#[derive(Default)]
struct PendingState {
    masks: Vec<Arc<[u32]>>,
    /// No more of them come, for this reason if there is one.
    is_done: bool,
    error: Option<String>,
    /// Somebody waits: who computes them stops after the one that comes next.
    hurry: bool,
    session: Option<Box<dyn Session>>,
}

impl std::fmt::Debug for PendingMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_done = self.of.lock().masks.len() > self.idx;
        f.debug_struct("PendingMask").field("is_done", &is_done).finish()
    }
}

impl PendingMask {
    fn wait(&self, until: Instant) -> Option<Result<Arc<[u32]>, String>> {
        let mut state = self.of.lock();
        let is_late = |state: &mut PendingState| state.masks.len() <= self.idx && !state.is_done;
        // Half of the time is for all masks of the chunk, the rest for this one alone.
        for part in [2, 1] {
            if is_late(&mut state) {
                state.hurry = part == 1;
                let left = until.saturating_duration_since(Instant::now()) / part;
                let waited = self.of.done.wait_timeout_while(state, left, is_late);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        match state.masks.get(self.idx) {
            Some(mask) => Some(Ok(mask.clone())),
            None => state.error.clone().map(Err),
        }
    }
}

impl PendingMasks {
    fn lock(&self) -> MutexGuard<'_, PendingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_done(&self) -> bool {
        self.lock().is_done
    }

    /// One more mask, which is not the last.
    fn put(&self, mask: Vec<u32>) {
        self.lock().masks.push(mask.into());
        self.done.notify_all();
    }

    /// The last mask, and the session as it was before the first.
    fn end(&self, last: Result<(Vec<u32>, Box<dyn Session>), String>) {
        let mut state = self.lock();
        state.is_done = true;
        match last {
            Ok((mask, session)) => {
                state.masks.push(mask.into());
                state.session = Some(session);
            }
            Err(error) => state.error = Some(error),
        }
        self.done.notify_all();
    }
}

/// Masks to compute.
struct Job {
    /// The session, or what it is to be of.
    of: Result<Box<dyn Session>, Arc<Template>>,
    words: usize,
    draft: Draft,
    pending: Arc<PendingMasks>,
}

/// The threads that compute masks.
pub(crate) struct MaskWorkers {
    jobs: Option<SyncSender<Job>>,
    queue: Arc<Mutex<Receiver<Job>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// Two, so that one slow mask holds up no other.
const MASK_THREADS: usize = 2;

/// Masks that may wait for a worker: as many as sequences run, by and large. What finds no place the engine computes itself.
const MAX_WAITING: usize = 1024;

impl MaskWorkers {
    /// Threads start when they are first needed.
    pub fn new() -> Self {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        MaskWorkers { jobs: Some(sender), queue: Arc::new(Mutex::new(receiver)), threads: Vec::new() }
    }

    fn start(&mut self) {
        while self.threads.len() < MASK_THREADS {
            let queue = self.queue.clone();
            let thread = std::thread::Builder::new().name("wardrobe-masks".to_owned());
            match thread.spawn(move || work(&queue)) {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    tracing::error!(%error, "no thread to compute masks");
                    return;
                }
            }
        }
    }

    /// Has a session's next mask computed, and those along a draft.
    fn compute(
        &mut self,
        of: Result<Box<dyn Session>, Arc<Template>>,
        words: usize,
        draft: &Draft,
    ) -> Arc<PendingMasks> {
        self.start();
        let pending = Arc::new(PendingMasks::default());
        let job = Job { of, words, draft: draft.clone(), pending: pending.clone() };
        match self.jobs.as_ref().filter(|_| !self.threads.is_empty()) {
            Some(jobs) => {
                if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = jobs.try_send(job) {
                    run(job);
                }
            }
            None => run(job),
        }
        pending
    }
}

impl Drop for MaskWorkers {
    fn drop(&mut self) {
        // Workers end when nobody can send any more.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => run(job),
            Err(_) => return,
        }
    }
}

fn run(job: Job) {
    let Job { of, words, draft, pending } = job;
    let filled = catch_unwind(AssertUnwindSafe(|| {
        let mut session = of.unwrap_or_else(|template| template.session());
        let (mut taken, mut rest) = (0, draft.tokens.iter());
        let mut samples = draft.samples.iter();
        loop {
            let mut mask = vec![0_u32; words];
            session.fill_mask(&mut mask)?;
            let Some(at) = samples.next().filter(|_| !pending.lock().hurry) else {
                session.rollback(taken)?;
                return Ok::<_, wardrobe_grammar::GrammarError>((mask, session));
            };
            pending.put(mask);
            for token in rest.by_ref().take(at - taken) {
                session.accept(*token)?;
                taken += 1;
            }
        }
    }));
    pending.end(match filled {
        Ok(Ok(last)) => Ok(last),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the grammar panicked".to_owned()),
    });
}

/// Tokens that may follow a sequence's own, and after how many of them the next is sampled, ascending; it is sampled before the
/// first as well. Between two samples stands what a constraint leaves no alternative to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Draft {
    pub tokens: Vec<TokenId>,
    pub samples: Vec<usize>,
}

impl Draft {
    /// The draft up to its sample with this index.
    pub fn truncate(&mut self, samples: usize) {
        self.samples.truncate(samples);
        self.tokens.truncate(self.samples.last().copied().unwrap_or(0));
    }
}

/// A choice that is held to a template.
pub(crate) struct Constrained {
    template: Arc<Template>,
    /// What its session has accepted.
    accepted: Vec<TokenId>,
    /// Words of a mask over the model's vocabulary.
    words: usize,
    place: Place,
    /// The way to the end from here that was found last, if it is one from here.
    way: Option<Vec<TokenId>>,
    /// Its row was left out of the last sample.
    late: bool,
    completion: Completion,
}

enum Place {
    /// Before the first mask.
    New,
    Here(Box<dyn Session>),
    Away(Arc<PendingMasks>),
    Failed,
}

/// What a choice takes after a sample.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The token: the sampled one, unless that would leave no way to the end. None if the text has to end before it.
    pub token: Option<TokenId>,
    /// What follows without a choice.
    pub forced: Vec<TokenId>,
    /// The text is complete.
    pub is_done: bool,
    /// The token goes on with text that nothing is asked of, and that the caller's stops may end.
    pub is_free: bool,
}

/// How a text that is complete ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completion {
    /// As the model would have it.
    Chosen,
    /// The budget left no other way somewhere: it, and not the model, chose a token, or the end. Whatever ends the text then,
    /// save a stop of the caller's own, it ends for its length.
    CutShort,
}

impl Constrained {
    pub fn new(constraint: &Constraint, vocab_size: usize) -> Self {
        Constrained {
            template: constraint.0.clone(),
            accepted: Vec::new(),
            words: vocab_size.div_ceil(32),
            place: Place::New,
            way: None,
            late: false,
            completion: Completion::Chosen,
        }
    }

    /// How it ended, once it is done.
    pub fn completion(&self) -> Completion {
        self.completion
    }

    /// Masks of the next sample and of those along a draft.
    pub fn allowed(&mut self, draft: &Draft, workers: &mut MaskWorkers) -> Vec<Allowed> {
        if let Some(known) = self.known_masks(draft) {
            return known.into_iter().map(Allowed::These).collect();
        }
        self.place = match std::mem::replace(&mut self.place, Place::Failed) {
            Place::New => Place::Away(workers.compute(Err(self.template.clone()), self.words, draft)),
            Place::Here(session) => Place::Away(workers.compute(Ok(session), self.words, draft)),
            other => other,
        };
        let of = |idx| match &self.place {
            Place::Away(of) => Allowed::Awaited(Arc::new(PendingMask { of: of.clone(), idx })),
            _ => Allowed::These(vec![0; self.words].into()),
        };
        (0..=draft.samples.len()).map(of).collect()
    }

    /// The same, if all of them were computed before.
    fn known_masks(&mut self, draft: &Draft) -> Option<Vec<Arc<[u32]>>> {
        let words = self.words;
        let known = move |session: &mut dyn Session| session.known_mask().filter(|mask| mask.len() == words);
        let Place::Here(session) = &mut self.place else { return None };
        let mut masks = vec![known(&mut **session)?];
        if draft.samples.is_empty() {
            return Some(masks);
        }
        self.explore(|session, taken| {
            let mut rest = draft.tokens.iter();
            for at in &draft.samples {
                for token in rest.by_ref().take(at - *taken) {
                    session.accept(*token)?;
                    *taken += 1;
                }
                let Some(mask) = known(session) else { return Ok(None) };
                masks.push(mask);
            }
            Ok(Some(masks))
        })?
    }

    /// Lets `walk` accept tokens from here and count them; they are taken back. `None` if the session is not here, or fails:
    /// then it is as if nobody had walked.
    pub fn explore<T>(
        &mut self,
        walk: impl FnOnce(&mut dyn Session, &mut usize) -> wardrobe_grammar::Result<T>,
    ) -> Option<T> {
        let mut session = match std::mem::replace(&mut self.place, Place::Failed) {
            Place::Here(session) => session,
            other => {
                self.place = other;
                return None;
            }
        };
        let walked = catch_unwind(AssertUnwindSafe(|| {
            let mut taken = 0;
            let found = walk(&mut *session, &mut taken);
            session.rollback(taken)?;
            Ok::<_, wardrobe_grammar::GrammarError>((found?, session))
        }));
        match walked {
            Ok(Ok((found, session))) => {
                self.place = Place::Here(session);
                Some(found)
            }
            _ => {
                self.place = self.restored().map_or(Place::Failed, Place::Here);
                None
            }
        }
    }

    /// A session that has accepted what ours had: ours was lost along a draft, which must not be seen.
    fn restored(&self) -> Option<Box<dyn Session>> {
        let mut session = self.template.session();
        self.accepted.iter().all(|token| session.accept(*token).is_ok()).then_some(session)
    }

    /// Whether its session can take tokens now. After a sample it can, unless masks along a draft take too long.
    pub fn is_ready(&self) -> bool {
        !matches!(&self.place, Place::Away(pending) if !pending.is_done())
    }

    /// The row was left out of a sample; gives the reason if there will never be a mask.
    pub fn left_out(&mut self) -> Option<String> {
        self.late = true;
        match &self.place {
            Place::Away(pending) => {
                let state = pending.lock();
                state.error.clone().filter(|_| state.masks.is_empty())
            }
            _ => Some("the grammar failed before".to_owned()),
        }
    }

    /// Whether it waits for a mask that was late once.
    pub fn waits(&self) -> bool {
        self.late && matches!(&self.place, Place::Away(pending) if !pending.is_done())
    }

    /// Whether its mask was late, and has not been used yet. It may come at any moment: who decides by this does not miss it.
    pub fn was_late(&self) -> bool {
        self.late && matches!(self.place, Place::Away(_))
    }

    /// Takes a sampled token, `left` tokens of output being left after it. With `force` also what has no alternative.
    pub fn take(&mut self, sampled: TokenId, left: usize, force: bool) -> Result<Taken, String> {
        self.late = false;
        let mut session = self.recall()?;
        let taken = self.advance(&mut *session, sampled, left, force);
        self.place = Place::Here(session);
        if let Ok(taken) = &taken {
            self.accepted.extend(taken.token.iter().chain(&taken.forced));
        }
        taken.map_err(|error| error.to_string())
    }

    /// The session, whose mask has been used.
    fn recall(&mut self) -> Result<Box<dyn Session>, String> {
        let session = match std::mem::replace(&mut self.place, Place::Failed) {
            Place::Here(session) => Some(session),
            Place::Away(pending) => {
                let mut state = pending.lock();
                // With a mask in hand, what failed was farther along a draft.
                state.session.take().or_else(|| if state.masks.is_empty() { None } else { self.restored() })
            }
            Place::New | Place::Failed => None,
        };
        session.ok_or_else(|| "the grammar's state was lost".to_owned())
    }

    fn advance(
        &mut self,
        session: &mut dyn Session,
        sampled: TokenId,
        left: usize,
        force: bool,
    ) -> wardrobe_grammar::Result<Taken> {
        let mut taken = Taken::default();
        let before = self.way.take();
        session.accept(sampled)?;
        let token = if self.has_way(session, sampled, before.as_deref(), left)? {
            sampled
        } else {
            session.rollback(1)?;
            self.completion = Completion::CutShort;
            let way = match before {
                Some(way) => Some(way),
                None => session.shortest_end(left + 1)?,
            };
            let first = match way.as_ref().map(|way| way.first().copied()) {
                Some(Some(first)) => first,
                Some(None) => return Ok(Taken { is_done: true, ..Taken::default() }),
                // By the invariant there is a way.
                None => return Err(no_way()),
            };
            session.accept(first)?;
            self.way = way.map(|way| way.into_iter().skip(1).collect());
            first
        };
        taken.token = Some(token);
        taken.is_free = session.is_free();
        let mut left = left;
        if force {
            'forced: loop {
                let run = session.forced_tokens();
                if run.is_empty() {
                    break;
                }
                for token in run {
                    if left == 0 || session.accept(token).is_err() {
                        break 'forced;
                    }
                    let before = self.way.take();
                    if !self.has_way(session, token, before.as_deref(), left - 1)? {
                        // The usual spelling takes more tokens than are left: what follows is sampled.
                        session.rollback(1)?;
                        self.way = before;
                        break 'forced;
                    }
                    left -= 1;
                    taken.forced.push(token);
                }
            }
        }
        taken.is_done = session.is_done()?;
        Ok(taken)
    }

    /// Whether the text can be ended within `left` tokens, now that `token` was accepted; `before` was a way before it.
    fn has_way(
        &mut self,
        session: &mut dyn Session,
        token: TokenId,
        before: Option<&[TokenId]>,
        left: usize,
    ) -> wardrobe_grammar::Result<bool> {
        self.way = match before.and_then(<[_]>::split_first) {
            Some((first, rest)) if *first == token => Some(rest.to_vec()),
            _ => session.shortest_end(left)?,
        };
        Ok(self.way.as_ref().is_some_and(|way| way.len() <= left))
    }
}

fn no_way() -> wardrobe_grammar::GrammarError {
    wardrobe_grammar::GrammarError::Engine { message: "no way to the end was found".to_owned() }
}
