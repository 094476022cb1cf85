//! Drafts of a step: guessed before it, judged after it.

use super::Core;
use super::group::{ChoiceState, forces};
use crate::constraint::Draft;
use crate::ids::TokenId;
use crate::scheduler::{Row, Scheduler};
use crate::speculation::{Guess, Limits, MAX_DRAFT_TOKENS, Own, Speculator, Step};
use crate::validate::ValidRequest;

/// What came of a chunk's draft.
#[derive(Clone, Copy, Default)]
pub(super) struct Judged {
    /// Its tokens that are the sequence's now.
    pub accepted_tokens: usize,
    /// Samples that followed them and counted.
    pub accepted_samples: usize,
}

impl Core {
    /// What the rows' sequences may go on with, in `room` tokens in all, and blocks for it: a draft for each row, or none at all.
    /// The step is of generation alone.
    pub(super) fn drafts(&mut self, rows: &[Row], room: usize) -> Vec<Draft> {
        let guesses: Vec<Option<Guess>> = rows.iter().map(|row| self.guess(row)).collect();
        if guesses.iter().all(Option::is_none) {
            return Vec::new();
        }
        let drafters = rows.iter().map(|row| self.choice(row)?.drafter.as_ref());
        let with_drafters: Option<Vec<_>> =
            drafters.zip(&guesses).map(|(drafter, guess)| drafter.map(|d| (d, guess.as_ref()))).collect();
        let Some(with_drafters) = with_drafters else { return Vec::new() };
        let lengths = self.speculator.choose(step_of(rows), room, &with_drafters);
        let scheduler = &mut self.scheduler;
        let drafts = rows.iter().zip(guesses).zip(lengths).map(|((row, guess), length)| {
            let mut draft = guess.map(|guess| guess.draft).unwrap_or_default();
            draft.truncate(length);
            if !draft.tokens.is_empty() {
                let lent = scheduler.lend(row.sequence, draft.tokens.len());
                let fits = draft.samples.iter().take_while(|at| **at <= lent).count();
                draft.truncate(fits);
            }
            draft
        });
        drafts.collect()
    }

    /// Whether every row's sequence has its prompt behind it and is sampled.
    pub(super) fn is_generation(&self, rows: &[Row]) -> bool {
        rows.iter().all(|row| {
            let sequence = self.scheduler.get(row.sequence);
            sequence
                .is_some_and(|s| row.start >= s.num_prompt_tokens && row.start + row.len == s.tokens.len())
        })
    }

    fn choice(&self, row: &Row) -> Option<&ChoiceState> {
        let (id, choice) = self.owners.get(&row.sequence)?;
        self.groups.get(id)?.choices.get(*choice)
    }

    fn guess(&mut self, row: &Row) -> Option<Guess> {
        let (id, choice) = self.owners.get(&row.sequence)?;
        let group = self.groups.get_mut(id)?;
        let (valid, choice) = (&group.valid, group.choices.get_mut(*choice)?);
        let tokens = &*self.scheduler.get(row.sequence)?.tokens;
        let drafter = choice.drafter.as_mut().filter(|drafter| self.speculator.may_draft(drafter))?;
        // After the last token that may be produced nothing is computed.
        let left = valid.max_tokens.saturating_sub(choice.output.num_tokens() + 1);
        let eos = &self.shared.config.eos_token_ids;
        let limits = Limits {
            max_tokens: left.min(MAX_DRAFT_TOKENS),
            min_chance: self.speculator.min_chance(),
            force: forces(valid),
            common: &self.speculator.odds,
            ends: &|token| ends(valid, eos, token),
        };
        let guess = match &mut choice.constrained {
            None => drafter.guess(tokens, &limits),
            Some(constrained) => {
                constrained.explore(|session, taken| drafter.guess_held(tokens, &limits, session, taken))
            }
        };
        guess.filter(|guess| !guess.draft.tokens.is_empty())
    }

    /// Judges a step of generation and its drafts by what it took. `judged` is of every row.
    pub(super) fn settle(&mut self, rows: &[Row], drafts: &[Draft], judged: &[Judged], seconds: f64) {
        let own = |idx: usize| {
            let draft_tokens = drafts.get(idx).map_or(0, |draft| draft.tokens.len());
            let judged = judged.get(idx).copied().unwrap_or_default();
            (draft_tokens > 0).then_some(Own { draft_tokens, accepted_samples: judged.accepted_samples })
        };
        let draft_tokens = drafts.iter().map(|draft| draft.tokens.len()).sum();
        self.stats.drafts += (0..rows.len()).filter(|idx| own(*idx).is_some()).count() as u64;
        self.stats.drafted_tokens += draft_tokens as u64;
        self.stats.accepted_tokens += judged.iter().map(|judged| judged.accepted_tokens as u64).sum::<u64>();
        let settled = self.speculator.settle(step_of(rows), draft_tokens, seconds);
        for (idx, row) in rows.iter().enumerate() {
            // Those that have ended are not there any more.
            if let Some((id, choice)) = self.owners.get(&row.sequence)
                && let Some(group) = self.groups.get_mut(id)
                && let Some(drafter) = group.choices.get_mut(*choice).and_then(|c| c.drafter.as_mut())
            {
                drafter.settle(&settled, own(idx).as_ref());
            }
        }
    }
}

fn step_of(rows: &[Row]) -> Step {
    Step { sequences: rows.len(), rows: rows.iter().map(|row| row.len).sum() }
}

/// Whether a token would end the text.
fn ends(valid: &ValidRequest, eos: &[TokenId], token: TokenId) -> bool {
    let request = &valid.request;
    (!request.ignore_eos && eos.contains(&token)) || request.stop_token_ids.contains(&token)
}

/// Takes in tokens that a sequence has gained.
pub(super) fn observe(
    choice: &mut ChoiceState,
    scheduler: &Scheduler,
    speculator: &mut Speculator,
    new: usize,
    permits: &mut dyn FnMut(TokenId) -> bool,
) {
    let Some(drafter) = &mut choice.drafter else { return };
    if let Some(sequence) = scheduler.get(choice.sequence) {
        drafter.observe(&sequence.tokens, new, &mut speculator.odds, permits);
    }
}
