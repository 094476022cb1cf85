//! Choices that are held to something: late masks, masks that fail, budgets, tokens without an alternative.

use std::sync::{Condvar, Mutex};

use wardrobe_grammar::{GrammarError, Session, SessionSource, Template};

use super::*;
use crate::response::{Finish, StopCause};

/// Texts of pairs `a b` with `a` among 10..20 and `b = a + 20`, and then an end; of `max_pairs` pairs at most.
#[derive(Clone)]
pub(super) struct Pairs {
    pub max_pairs: usize,
    /// Masks wait until it is open.
    pub gate: Arc<Gate>,
    /// What happens instead of the mask after so many tokens.
    pub failure: Option<(usize, Failure)>,
    pub taken: Vec<TokenId>,
}

#[derive(Clone, Copy)]
pub(super) enum Failure {
    Error,
    Panic,
}

#[derive(Default)]
pub(super) struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn set_closed(&self, is_closed: bool) {
        *self.is_closed.lock().unwrap() = is_closed;
        self.opened.notify_all();
    }
}

impl SessionSource for Pairs {
    fn session(&self) -> Box<dyn Session> {
        Box::new(self.clone())
    }
}

impl Pairs {
    fn next(&self) -> Vec<TokenId> {
        match self.taken.last() {
            Some(first) if self.taken.len() % 2 == 1 => vec![TokenId(first.0 + 20)],
            _ if self.taken.len() == 2 * self.max_pairs => vec![],
            _ => (10..20).map(TokenId).collect(),
        }
    }
}

impl Session for Pairs {
    fn fill_mask(&mut self, mask: &mut [u32]) -> wardrobe_grammar::Result<()> {
        drop(self.gate.opened.wait_while(self.gate.is_closed.lock().unwrap(), |closed| *closed).unwrap());
        match self.failure.filter(|(after, _)| self.taken.len() >= *after) {
            Some((_, Failure::Error)) => return Err(GrammarError::Engine { message: "it broke".into() }),
            Some((_, Failure::Panic)) => panic!("a grammar's bug"),
            None => {}
        }
        let ends = self.may_end()?.then_some(SIM_EOS);
        self.next().into_iter().chain(ends).for_each(|id| mask[id.0 as usize / 32] |= 1 << (id.0 % 32));
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> wardrobe_grammar::Result<()> {
        if !self.next().contains(&token) {
            return Err(GrammarError::NotAllowed { token });
        }
        self.taken.push(token);
        Ok(())
    }

    fn validate(&mut self, draft: &[TokenId]) -> wardrobe_grammar::Result<usize> {
        let mut ahead = self.clone();
        Ok(draft.iter().take_while(|token| ahead.accept(**token).is_ok()).count())
    }

    fn rollback(&mut self, num_tokens: usize) -> wardrobe_grammar::Result<()> {
        self.taken.truncate(self.taken.len() - num_tokens);
        Ok(())
    }

    fn forced_tokens(&mut self) -> Vec<TokenId> {
        if self.taken.len() % 2 == 1 { self.next() } else { Vec::new() }
    }

    fn may_end(&mut self) -> wardrobe_grammar::Result<bool> {
        Ok(self.taken.len().is_multiple_of(2) && !self.taken.is_empty())
    }

    fn is_done(&mut self) -> wardrobe_grammar::Result<bool> {
        Ok(self.taken.len() == 2 * self.max_pairs)
    }

    fn shortest_end(&mut self, max_tokens: usize) -> wardrobe_grammar::Result<Option<Vec<TokenId>>> {
        let way = match self.taken.len() {
            0 => vec![TokenId(10), TokenId(30)],
            len if len % 2 == 1 => self.next(),
            _ => vec![],
        };
        Ok((way.len() <= max_tokens).then_some(way))
    }
}

pub(super) fn pairs(max_pairs: usize) -> Pairs {
    Pairs { max_pairs, gate: Arc::default(), failure: None, taken: Vec::new() }
}

pub(super) fn held_to(pairs: &Pairs) -> Request {
    let template = Template::custom(Arc::new(pairs.clone()), vec![TokenId(10), TokenId(30)]);
    Request::new(vec![TokenId(1), TokenId(2)]).with_constraint(template).with_seed(3)
}

fn ids(completion: &Completion) -> Vec<u32> {
    completion.choices[0].token_ids.iter().map(|id| id.0).filter(|id| *id != SIM_EOS.0).collect()
}

fn are_pairs(ids: &[u32]) -> bool {
    ids.chunks(2).all(|pair| matches!(pair, [a, b] if (10..20).contains(a) && *b == a + 20))
}

/// Turns until the stream has ended; workers take real time.
pub(super) fn until_ended(bench: &mut Bench) {
    let patience = Instant::now() + Duration::from_secs(20);
    while bench.turn() != Next::Wait(None) {
        assert!(Instant::now() < patience, "it never ends");
    }
}

#[test]
fn what_ends_a_text_leaves_it_whole() {
    for max_pairs in [1, 3, 40] {
        for max_tokens in 2..12 {
            let mut bench = Bench::new(ROOMY, plain());
            let stream = bench.submit(held_to(&pairs(max_pairs)).with_max_tokens(max_tokens));
            until_ended(&mut bench);
            let completion = finished(stream).0;
            let ids = ids(&completion);
            assert!(are_pairs(&ids) && !ids.is_empty() && ids.len() <= max_tokens, "{ids:?} of {max_tokens}");
            let finish = completion.choices[0].finish.clone().unwrap();
            match finish {
                Finish::Stop(StopCause::Complete) => assert_eq!(ids.len(), 2 * max_pairs),
                Finish::Stop(StopCause::Eos(_)) | Finish::Length => {}
                other => panic!("{other:?}"),
            }
            bench.assert_at_rest();
        }
    }
    let bench = Bench::new(ROOMY, plain());
    let refused = bench.try_submit(held_to(&pairs(3)).with_max_tokens(1));
    assert!(matches!(refused, Err(SubmitError::InvalidField { field: "max_tokens", .. })));
}

/// Texts `10 10 10 10 10 10` and `11 12`, and the model has its mind on the first.
#[derive(Clone)]
struct Detour {
    taken: Vec<TokenId>,
}

impl SessionSource for Detour {
    fn session(&self) -> Box<dyn Session> {
        Box::new(self.clone())
    }
}

impl Detour {
    fn left(&self) -> Vec<TokenId> {
        let text = if self.taken.first() == Some(&TokenId(10)) {
            vec![TokenId(10); 6]
        } else {
            vec![TokenId(11), TokenId(12)]
        };
        text[self.taken.len()..].to_vec()
    }
}

impl Session for Detour {
    fn fill_mask(&mut self, mask: &mut [u32]) -> wardrobe_grammar::Result<()> {
        let next = match self.taken.len() {
            0 => TokenId(10),
            _ => self.left().first().copied().unwrap_or(SIM_EOS),
        };
        mask[next.0 as usize / 32] |= 1 << (next.0 % 32);
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> wardrobe_grammar::Result<()> {
        if self.left().first() != Some(&token) && !(self.taken.is_empty() && token == TokenId(10)) {
            return Err(GrammarError::NotAllowed { token });
        }
        self.taken.push(token);
        Ok(())
    }

    fn validate(&mut self, _draft: &[TokenId]) -> wardrobe_grammar::Result<usize> {
        panic!("the engine does not ask")
    }

    fn rollback(&mut self, num_tokens: usize) -> wardrobe_grammar::Result<()> {
        self.taken.truncate(self.taken.len() - num_tokens);
        Ok(())
    }

    fn forced_tokens(&mut self) -> Vec<TokenId> {
        Vec::new()
    }

    fn may_end(&mut self) -> wardrobe_grammar::Result<bool> {
        Ok(self.left().is_empty())
    }

    /// The end is the model's to choose, too.
    fn is_done(&mut self) -> wardrobe_grammar::Result<bool> {
        Ok(false)
    }

    fn shortest_end(&mut self, max_tokens: usize) -> wardrobe_grammar::Result<Option<Vec<TokenId>>> {
        Ok(Some(self.left()).filter(|way| way.len() <= max_tokens))
    }
}

/// What the budget had a say in ended for its length, also where the model then ends it.
#[test]
fn a_text_that_the_budget_steered_is_of_its_length() {
    for (max_tokens, tokens, cut) in [(4, vec![11, 12], true), (20, vec![10; 6], false)] {
        let template =
            Template::custom(Arc::new(Detour { taken: Vec::new() }), vec![TokenId(11), TokenId(12)]);
        let request = Request::new(vec![TokenId(1)]).with_constraint(template).with_max_tokens(max_tokens);
        let mut bench = Bench::new(ROOMY, EngineConfig::default());
        let stream = bench.submit(request);
        until_ended(&mut bench);
        let completion = finished(stream).0;
        assert_eq!(ids(&completion), tokens);
        assert_eq!(completion.choices[0].token_ids.last(), Some(&SIM_EOS), "the model ended it");
        let stopped = Finish::Stop(StopCause::Eos(SIM_EOS));
        assert_eq!(completion.choices[0].finish, Some(if cut { Finish::Length } else { stopped }));
        bench.assert_at_rest();
    }
}

#[test]
fn tokens_without_an_alternative_take_no_step_of_their_own() {
    let mut bench = Bench::new(ROOMY, plain());
    let stream = bench.submit(held_to(&pairs(4)).with_max_tokens(50));
    until_ended(&mut bench);
    let forced = finished(stream).0;
    let steps = bench.control.steps();
    assert!(steps <= 5, "{steps} steps for {:?}", ids(&forced));
    // With log-probabilities every token is sampled; the text is the same.
    let stream = bench.submit(Request { logprobs: Some(1), ..held_to(&pairs(4)).with_max_tokens(50) });
    until_ended(&mut bench);
    let sampled = finished(stream).0;
    assert!(bench.control.steps() - steps >= ids(&sampled).len() as u64);
    assert!(are_pairs(&ids(&forced)) && are_pairs(&ids(&sampled)));
    assert_eq!(sampled.choices[0].logprobs.len(), sampled.choices[0].token_ids.len());
}

#[test]
fn a_late_mask_delays_its_own_sequence_alone() {
    let mut bench = Bench::new(ROOMY, plain());
    let stream = bench.submit(held_to(&pairs(4)).with_max_tokens(50));
    until_ended(&mut bench);
    let want = ids(&finished(stream).0);

    bench.control.set_mask_patience(Duration::ZERO);
    let slow = pairs(4);
    slow.gate.set_closed(true);
    let held = bench.submit(held_to(&slow).with_max_tokens(50));
    let other = bench.submit(Request::new(vec![TokenId(5)]).with_max_tokens(20));
    for _ in 0..40 {
        bench.turn();
    }
    let (other, _) = finished(other);
    assert!(other.choices[0].finish.is_some(), "the other has gone on");
    let steps = bench.control.steps();
    for _ in 0..10 {
        // It looks again soon, and computes nothing meanwhile.
        assert!(matches!(bench.turn(), Next::Wait(Some(_))));
    }
    assert_eq!(bench.control.steps(), steps);
    slow.gate.set_closed(false);
    until_ended(&mut bench);
    assert_eq!(ids(&finished(held).0), want, "what was computed again is the same");
    bench.assert_at_rest();
}

#[test]
fn a_failing_mask_ends_its_own_request_alone() {
    for failure in [Failure::Error, Failure::Panic] {
        for after in [0, 2] {
            let mut bench = Bench::new(ROOMY, plain());
            let broken = Pairs { failure: Some((after, failure)), ..pairs(4) };
            let held = bench.submit(held_to(&broken).with_max_tokens(50));
            let fine = bench.submit(held_to(&pairs(2)).with_max_tokens(50));
            until_ended(&mut bench);
            let held = finished(held).0;
            match held.choices[0].finish.as_ref().unwrap() {
                Finish::Error { message } => assert!(message.contains("constraint"), "{message}"),
                // It may have come to its end before.
                Finish::Stop(_) => assert!(after > 0 && are_pairs(&ids(&held))),
                other => panic!("{other:?}"),
            }
            assert!(are_pairs(&ids(&finished(fine).0)));
            bench.assert_at_rest();
        }
    }
}

#[test]
fn cancelled_while_its_mask_is_computed() {
    let mut bench = Bench::new(ROOMY, plain());
    bench.control.set_mask_patience(Duration::ZERO);
    let slow = pairs(4);
    slow.gate.set_closed(true);
    let held = bench.submit(held_to(&slow).with_max_tokens(50));
    bench.turn();
    drop(held);
    until_ended(&mut bench);
    bench.assert_at_rest();
    slow.gate.set_closed(false);
}
