//! Speculation: a sequence's next tokens are guessed from its own text, and verified with its next step.
//!
//! A [`Drafter`] belongs to a sequence: where its text came before ([`lookup`]), how often what followed there is what comes
//! ([`odds`]), and what drafts have given it and taken from it. The [`Speculator`] belongs to the engine: it knows what steps take
//! ([`cost`]) and decides how many tokens of which drafts a step carries.
//!
//! It decides for throughput: a draft grows while the step gives more tokens a second for it. And within what each sequence of the
//! step bears: by drafts, its own and others', none loses more than a small part of its time, by the account that it
//! has. Only steps in which all sequences generate carry drafts.
//!
//! Invariant: what is drafted never changes what is sampled, only when.

mod cost;
mod lookup;
mod odds;

use std::collections::BinaryHeap;

use wardrobe_grammar::Session;

use crate::config::Speculation;
use crate::constraint::Draft;
use crate::ids::TokenId;
use cost::{StepTimes, bucket};
use lookup::{Lookup, MAX_PAST, Place, Text};
use odds::{CommonOdds, Odds};

/// The longest draft.
pub(crate) const MAX_DRAFT_TOKENS: usize = 31;
/// The part of its time that a sequence may lose by drafts.
const MAX_LOSS: f64 = 0.06;
/// What it may lose before it has had any time, in steps.
const FIRST_LOSS: f64 = 1.0;
/// How much faster a step has to be for a draft.
const MIN_GAIN: f64 = 1.02;
/// Drafts with less of a chance are not computed.
const MIN_CHANCE: f64 = 0.1;
/// After drafts that did not pay, one after the other, a sequence rests: 0 steps, then 1, 3, 7, up to this.
const MAX_REST_STEPS: u64 = 63;

/// What a sequence may go on with.
#[derive(Debug, Default)]
pub(crate) struct Guess {
    pub draft: Draft,
    /// For each sample of the draft the chance that it is reached.
    chances: Vec<f64>,
}

/// Seconds.
#[derive(Debug, Default)]
struct Account {
    /// Steps that it took part in.
    elapsed: f64,
    /// What these took longer for drafts.
    endured: f64,
    /// Steps that its own drafts made needless.
    saved: f64,
}

/// A sequence's side of it.
#[derive(Debug, Default)]
pub(crate) struct Drafter {
    lookup: Lookup,
    /// The place that the text's end was found at, while it goes on as there.
    place: Option<Place>,
    odds: Odds,
    account: Account,
    /// Drafts that did not pay, since the last that did.
    failures: u32,
    rest_steps: u64,
}

/// What a token may be, for a look-up.
pub(crate) type Permits<'a> = &'a mut dyn FnMut(TokenId) -> bool;

impl Drafter {
    /// Takes in the last `new` of a sequence's tokens, of which the first was sampled from what `permits` says.
    pub fn observe(&mut self, tokens: &[TokenId], new: usize, common: &mut CommonOdds, permits: Permits<'_>) {
        let Some((before, after)) = tokens.len().checked_sub(new).and_then(|at| tokens.split_at_checked(at))
        else {
            return;
        };
        self.lookup.extend(before);
        if let (Some(place), Some(last), Some(sampled)) =
            (self.find(before, permits), before.last(), after.first())
        {
            let was_right = before.get(place.at) == Some(sampled);
            self.odds.note(place.past, was_right);
            common.note(*last, place.past, was_right);
        }
        for token in after {
            self.place = self.place.filter(|place| tokens.get(place.at) == Some(token)).map(next);
        }
        self.lookup.extend(tokens);
    }

    /// The likeliest place with a permitted continuation.
    fn find(&mut self, tokens: &[TokenId], permits: Permits<'_>) -> Option<Place> {
        if self.place.is_none() {
            self.place = self.lookup.places(Text { tokens, draft: &[] })[0];
        }
        self.go_on(Text { tokens, draft: &[] }, self.place, permits)
    }

    /// The chance that a place's continuation is what follows the text.
    fn chance(&self, limits: &Limits<'_>, text: Text<'_>, past: usize) -> f64 {
        let last = text.len().checked_sub(1).and_then(|idx| text.get(idx));
        last.map_or(0.0, |last| self.odds.chance(limits.common, last, past))
    }

    /// That place, if its continuation is permitted, or another.
    fn go_on(&self, text: Text<'_>, place: Option<Place>, permits: Permits<'_>) -> Option<Place> {
        let mut may = |place: &Place| text.get(place.at).is_some_and(&mut *permits);
        place.filter(&mut may).or_else(|| self.lookup.places(text).into_iter().flatten().find(&mut may))
    }

    /// A guess at what follows a text, within `limits`.
    pub fn guess(&mut self, tokens: &[TokenId], limits: &Limits<'_>) -> Option<Guess> {
        let place = self.find(tokens, &mut |_| true)?;
        let mut guess = Guess::default();
        let mut chance = 1.0;
        for idx in 0..limits.max_tokens {
            let text = Text { tokens, draft: &guess.draft.tokens };
            let Some(token) = text.get(place.at + idx).filter(|token| !(limits.ends)(*token)) else { break };
            chance *= self.chance(limits, text, place.past + idx);
            if chance < limits.min_chance {
                break;
            }
            guess.push(&[token], chance);
        }
        Some(guess).filter(|guess| !guess.chances.is_empty())
    }

    /// The same for a text that is held to something. `taken` counts what the session has accepted.
    pub fn guess_held(
        &self,
        tokens: &[TokenId],
        limits: &Limits<'_>,
        session: &mut dyn Session,
        taken: &mut usize,
    ) -> wardrobe_grammar::Result<Guess> {
        let Limits { max_tokens, force, ends, .. } = *limits;
        let mut guess = Guess::default();
        let (mut place, mut chance) = (self.place, 1.0);
        loop {
            let text = Text { tokens, draft: &guess.draft.tokens };
            let may = &mut |token| !ends(token) && session.validate(&[token]).is_ok_and(|valid| valid == 1);
            let Some(found) = self.go_on(text, place, may) else { return Ok(guess) };
            let Some(token) = text.get(found.at) else { return Ok(guess) };
            chance *= self.chance(limits, text, found.past);
            if chance < limits.min_chance {
                return Ok(guess);
            }
            let mut run = vec![token];
            session.accept(token)?;
            *taken += 1;
            if force {
                take_forced(session, max_tokens.saturating_sub(guess.draft.tokens.len()), &mut run);
                *taken += run.len() - 1;
            }
            place = run.iter().skip(1).try_fold(next(found), |place, token| {
                (text.get(place.at) == Some(*token)).then_some(next(place))
            });
            // Nothing is sampled after the end.
            if guess.draft.tokens.len() + run.len() > max_tokens || session.is_done()? {
                return Ok(guess);
            }
            guess.push(&run, chance);
        }
    }

    /// Notes what a step took beside what it would have taken, and what the sequence's own draft gave it.
    pub fn settle(&mut self, settled: &Settled, own: Option<&Own>) {
        let Settled { seconds, base, extra, sequences, draft_tokens } = *settled;
        self.account.elapsed += seconds;
        self.account.endured += extra;
        self.rest_steps = self.rest_steps.saturating_sub(1);
        let Some(own) = own else { return };
        self.account.saved += own.accepted_samples as f64 * base;
        // What it gave and took of the time of all.
        let gave = own.accepted_samples as f64 * base / sequences.max(1) as f64;
        let took = extra * own.draft_tokens as f64 / draft_tokens.max(1) as f64;
        if gave >= took {
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.rest_steps = ((1 << (self.failures - 1).min(32)) - 1).min(MAX_REST_STEPS);
        }
    }

    /// Seconds that a step may be expected to cost it, where one without drafts takes `base`.
    fn tolerance(&self, base: f64) -> f64 {
        let Account { elapsed, endured, saved } = self.account;
        MAX_LOSS * elapsed + FIRST_LOSS * base + saved - endured
    }
}

/// Adds to a run what has no alternative after it, until it is longer than `room`.
fn take_forced(session: &mut dyn Session, room: usize, run: &mut Vec<TokenId>) {
    while run.len() <= room {
        let forced = session.forced_tokens();
        let before = run.len();
        run.extend(forced.into_iter().take_while(|token| session.accept(*token).is_ok()));
        if run.len() == before {
            return;
        }
    }
}

fn next(place: Place) -> Place {
    Place { at: place.at + 1, past: (place.past + 1).min(MAX_PAST) }
}

/// Up to where a guess goes.
pub(crate) struct Limits<'a> {
    pub max_tokens: usize,
    /// Of being right that far.
    pub min_chance: f64,
    /// With what a constraint leaves no alternative to.
    pub force: bool,
    /// Of all sequences.
    pub common: &'a CommonOdds,
    /// Whether a token ends the text.
    pub ends: &'a dyn Fn(TokenId) -> bool,
}

impl Guess {
    /// Adds a token that is sampled, and what follows it without a choice.
    fn push(&mut self, run: &[TokenId], chance: f64) {
        self.draft.tokens.extend(run);
        self.draft.samples.push(self.draft.tokens.len());
        self.chances.push(chance);
    }

    /// Tokens up to its sample with this index, without those before.
    fn rows(&self, idx: usize) -> usize {
        let at = |idx: usize| self.draft.samples.get(idx).copied().unwrap_or(0);
        at(idx).saturating_sub(idx.checked_sub(1).map_or(0, at))
    }
}

/// What a step's draft came to, for the sequence that it was of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    pub draft_tokens: usize,
    /// Samples that followed a draft which was right.
    pub accepted_samples: usize,
}

/// A step's times.
#[derive(Debug)]
pub(crate) struct Settled {
    seconds: f64,
    base: f64,
    extra: f64,
    sequences: usize,
    draft_tokens: usize,
}

/// A step before drafts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub sequences: usize,
    pub rows: usize,
}

/// The engine's side of it.
#[derive(Debug)]
pub(crate) struct Speculator {
    mode: Speculation,
    /// Of all sequences.
    pub odds: CommonOdds,
    times: StepTimes,
}

impl Speculator {
    pub fn new(mode: Speculation) -> Self {
        Self { mode, odds: CommonOdds::default(), times: StepTimes::default() }
    }

    /// What a new sequence gets.
    pub fn drafter(&self) -> Option<Drafter> {
        (self.mode != Speculation::Off).then(Drafter::default)
    }

    /// Whether any step could carry drafts.
    pub fn is_on(&self) -> bool {
        self.mode != Speculation::Off
    }

    /// Whether drafts are computed whatever they cost.
    fn is_unbounded(&self) -> bool {
        self.mode == Speculation::Always
    }

    /// Whether this sequence may draft in this step.
    pub fn may_draft(&self, drafter: &Drafter) -> bool {
        self.is_unbounded() || drafter.rest_steps == 0
    }

    /// The least chance of a draft that is looked at.
    pub fn min_chance(&self) -> f64 {
        if self.is_unbounded() { 0.0 } else { MIN_CHANCE }
    }

    /// How many samples of each guess the step carries, at most `room` tokens in all. There is a drafter for each sequence of the
    /// step.
    pub fn choose(&self, step: Step, room: usize, guesses: &[(&Drafter, Option<&Guess>)]) -> Vec<usize> {
        let mut lengths = vec![0; guesses.len()];
        let base = match self.times.plain(step.rows) {
            _ if self.is_unbounded() => 0.0,
            Some(base) => base,
            None => return lengths,
        };
        let mut next: BinaryHeap<Next> = BinaryHeap::new();
        next.extend((0..guesses.len()).filter_map(|idx| Next::of(guesses, idx, 0)));
        let (mut rows, mut gain) = (0, 0.0);
        let mut gains = vec![0.0; guesses.len()];
        let (mut best, mut best_len) = (MIN_GAIN * step.sequences as f64 / base, 0);
        let (mut picks, mut last) = (Vec::new(), (0, 0.0));
        while let Some(pick) = next.pop() {
            if rows + pick.rows > room {
                continue;
            }
            rows += pick.rows;
            gain += pick.chance;
            picks.push(pick.guess);
            if let Some(gain) = gains.get_mut(pick.guess) {
                *gain += pick.chance;
            }
            next.extend(Next::of(guesses, pick.guess, pick.sample + 1));
            if self.is_unbounded() {
                best_len = picks.len();
                continue;
            }
            let shape = bucket(step.rows + rows);
            if shape != last.0 {
                last = (shape, self.times.drafted(step.sequences, (step.rows, base), shape));
            }
            let seconds = last.1;
            let rate = (step.sequences as f64 + gain) / seconds;
            let bears = |((drafter, _), gain): (&(&Drafter, _), &f64)| {
                seconds - base - gain * base <= drafter.tolerance(base)
            };
            if rate > best && guesses.iter().zip(&gains).all(bears) {
                (best, best_len) = (rate, picks.len());
            }
        }
        for guess in picks.into_iter().take(best_len) {
            if let Some(length) = lengths.get_mut(guess) {
                *length += 1;
            }
        }
        lengths
    }

    /// Notes what a step of generation took with so many tokens of drafts; each of its drafters settles with what is returned.
    pub fn settle(&mut self, step: Step, draft_tokens: usize, seconds: f64) -> Settled {
        let rows = step.rows + draft_tokens;
        self.times.note(step.sequences, rows, draft_tokens > 0, seconds);
        let base = self.times.plain(step.rows).unwrap_or(seconds);
        // What is typical, so that a disturbance is not laid to the draft.
        let with = self.times.drafted(step.sequences, (step.rows, base), rows);
        let extra = if draft_tokens > 0 { with - base } else { 0.0 };
        Settled { seconds, base, extra, sequences: step.sequences, draft_tokens }
    }
}

/// The next sample of a guess, by what its rows are worth.
struct Next {
    guess: usize,
    sample: usize,
    rows: usize,
    chance: f64,
}

impl Next {
    fn of(guesses: &[(&Drafter, Option<&Guess>)], guess: usize, sample: usize) -> Option<Self> {
        let (_, of) = guesses.get(guess)?;
        let of = (*of)?;
        Some(Self { guess, sample, rows: of.rows(sample), chance: *of.chances.get(sample)? })
    }

    fn worth(&self) -> f64 {
        self.chance / self.rows.max(1) as f64
    }
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.worth().total_cmp(&other.worth()).then(other.guess.cmp(&self.guess))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Next {}

#[cfg(test)]
#[path = "speculation_tests.rs"]
mod tests;
