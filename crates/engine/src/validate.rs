//! Everything that can be refused is refused here, on the caller's thread, with the field named.

use std::collections::BTreeSet;
use std::sync::Arc;

use wardrobe_text::StopStrings;

use crate::config::RequestLimits;
use crate::constraint::Constraint;
use crate::error::SubmitError;
use crate::ids::TokenId;
use crate::request::{Request, SamplingParams};

/// What a request is checked against.
pub(crate) struct Bounds<'a> {
    pub limits: &'a RequestLimits,
    pub vocab_size: usize,
    /// The most tokens that one sequence of this request may have.
    pub max_context_tokens: usize,
    /// Ids that end a sequence.
    pub eos_token_ids: &'a [TokenId],
}

/// A request that can be served, with what is derived from it once.
#[derive(Debug)]
pub(crate) struct ValidRequest {
    pub request: Request,
    /// Output tokens per choice: as asked for, or what the context leaves.
    pub max_tokens: usize,
    pub stops: StopStrings,
    pub logit_bias: Arc<[(TokenId, f32)]>,
    pub logprob_token_ids: Arc<[TokenId]>,
    /// Bit mask of [`SamplingParams::allowed_token_ids`].
    pub allowed: Option<Arc<[u32]>>,
}

fn invalid(field: &'static str, reason: impl Into<String>) -> SubmitError {
    SubmitError::InvalidField { field, reason: reason.into() }
}

fn at_most(field: &'static str, value: usize, max: usize) -> Result<(), SubmitError> {
    if value <= max { Ok(()) } else { Err(invalid(field, format!("is {value}, more than {max}"))) }
}

fn within(field: &'static str, value: f32, min: f32, max: f32) -> Result<(), SubmitError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("is {value}, not in {min}..={max}")))
}

fn positive(field: &'static str, value: f32, max: f32) -> Result<(), SubmitError> {
    if value > 0.0 && value <= max {
        return Ok(());
    }
    Err(invalid(field, format!("is {value}, not above 0 and at most {max}")))
}

/// Checks all of a request but its adapter's name.
pub(crate) fn validate(request: Request, bounds: &Bounds<'_>) -> Result<ValidRequest, SubmitError> {
    let limits = bounds.limits;
    let in_vocab = |field, ids: &[TokenId]| match ids.iter().find(|id| id.0 as usize >= bounds.vocab_size) {
        Some(id) => {
            let reason = format!("has token id {id}, outside the vocabulary of {}", bounds.vocab_size);
            Err(invalid(field, reason))
        }
        None => Ok(()),
    };
    if request.prompt_token_ids.is_empty() {
        return Err(invalid("prompt", "is empty"));
    }
    if request.n == 0 || request.n > limits.max_n {
        return Err(invalid("n", format!("is {}, not in 1..={}", request.n, limits.max_n)));
    }
    let max_tokens = output_tokens(&request, bounds.max_context_tokens)?;
    in_vocab("prompt", &request.prompt_token_ids)?;
    check_sampling(&request.sampling, limits)?;
    let ids_of_bias: Vec<TokenId> = request.sampling.logit_bias.iter().map(|(id, _)| *id).collect();
    in_vocab("logit_bias", &ids_of_bias)?;
    if request.min_tokens > max_tokens {
        let reason = format!("is {}, more than max_tokens ({max_tokens})", request.min_tokens);
        return Err(invalid("min_tokens", reason));
    }
    if !request.adapter_scale.is_finite() || request.adapter_scale.abs() > 1000.0 {
        return Err(invalid("adapter_scale", format!("is {}, not in -1000..=1000", request.adapter_scale)));
    }
    if request.adapter.is_none() && request.adapter_scale != 1.0 {
        return Err(invalid("adapter_scale", "is set without an adapter"));
    }
    if request.adapter.is_none() && request.expected_generation.is_some() {
        return Err(invalid("expected_generation", "is set without an adapter"));
    }
    at_most("logprobs", request.logprobs.unwrap_or(0) as usize, limits.max_logprobs)?;
    at_most("prompt_logprobs", request.prompt_logprobs.unwrap_or(0) as usize, limits.max_logprobs)?;
    at_most("logprob_token_ids", request.logprob_token_ids.len(), limits.max_logprobs)?;
    in_vocab("logprob_token_ids", &request.logprob_token_ids)?;
    at_most("stop_token_ids", request.stop_token_ids.len(), limits.max_stop_token_ids)?;
    in_vocab("stop_token_ids", &request.stop_token_ids)?;
    let bad_words = &request.sampling.bad_words;
    at_most("bad_words", bad_words.len(), limits.max_bad_words)?;
    for word in bad_words {
        if word.is_empty() {
            return Err(invalid("bad_words", "has an empty sequence"));
        }
        at_most("bad_words", word.len(), limits.max_bad_words)?;
        in_vocab("bad_words", word)?;
    }
    let allowed = match &request.sampling.allowed_token_ids {
        None => None,
        Some(ids) if ids.is_empty() => return Err(invalid("allowed_token_ids", "is empty")),
        Some(ids) => {
            in_vocab("allowed_token_ids", ids)?;
            Some(bit_mask(ids, bounds.vocab_size))
        }
    };
    some_token_is_left(&request, bounds)?;
    check_constraint(&request, max_tokens, bounds)?;
    at_most("stop", request.stop_strings.len(), limits.max_stop_strings)?;
    for stop in &request.stop_strings {
        at_most("stop", stop.len(), limits.max_stop_string_bytes)?;
    }
    let stops =
        StopStrings::new(&request.stop_strings).map_err(|error| invalid("stop", error.to_string()))?;
    for (field, text) in [
        ("cache_salt", &request.cache_salt),
        ("request_id", &request.request_id),
        ("adapter", &request.adapter),
    ] {
        at_most(field, text.as_ref().map_or(0, String::len), limits.max_name_bytes)?;
    }
    Ok(ValidRequest {
        max_tokens,
        stops,
        logit_bias: request.sampling.logit_bias.as_slice().into(),
        logprob_token_ids: request.logprob_token_ids.as_slice().into(),
        allowed,
        request,
    })
}

/// Whether a token may be sampled at the first position: one that is allowed, that `min_tokens` does not hold back as
/// an end, and that is no bad word by itself.
fn some_token_is_left(request: &Request, bounds: &Bounds<'_>) -> Result<(), SubmitError> {
    let mut banned: BTreeSet<TokenId> = BTreeSet::new();
    if request.min_tokens > 0 {
        banned.extend(&request.stop_token_ids);
        banned.extend(bounds.eos_token_ids.iter().filter(|_| !request.ignore_eos));
    }
    let single = request.sampling.bad_words.iter().filter(|word| word.len() == 1);
    banned.extend(single.flatten());
    let left = match &request.sampling.allowed_token_ids {
        Some(allowed) => allowed.iter().any(|id| !banned.contains(id)),
        None => banned.len() < bounds.vocab_size,
    };
    if left {
        return Ok(());
    }
    let field = match &request.sampling.allowed_token_ids {
        Some(_) => "allowed_token_ids",
        None => "bad_words",
    };
    Err(invalid(field, "leaves no token beside those that `min_tokens` and `bad_words` exclude"))
}

/// Whether what the output is held to can be had.
fn check_constraint(request: &Request, max_tokens: usize, bounds: &Bounds<'_>) -> Result<(), SubmitError> {
    let Some(Constraint(template)) = &request.constraint else { return Ok(()) };
    if request.sampling.allowed_token_ids.is_some() {
        return Err(invalid("allowed_token_ids", "cannot be set beside a constraint"));
    }
    if request.ignore_eos {
        return Err(invalid(
            "ignore_eos",
            "cannot be set beside a constraint, which says itself where it ends",
        ));
    }
    let shortest = template.shortest();
    if let Some(id) = shortest.iter().find(|id| id.0 as usize >= bounds.vocab_size) {
        return Err(invalid("constraint", format!("is of another vocabulary: it has token id {id}")));
    }
    // `0` computes the prompt alone.
    if max_tokens > 0 && shortest.len() > max_tokens {
        let reason = format!(
            "is {max_tokens}, less than the {} tokens of the shortest answer that the constraint allows",
            shortest.len()
        );
        return Err(invalid("max_tokens", reason));
    }
    Ok(())
}

/// Output tokens per choice, if prompt and output fit the context.
fn output_tokens(request: &Request, max_context_tokens: usize) -> Result<usize, SubmitError> {
    let prompt_tokens = request.prompt_token_ids.len();
    let output_tokens = request.max_tokens.unwrap_or(1);
    let requested_tokens = prompt_tokens.saturating_add(output_tokens);
    if requested_tokens > max_context_tokens {
        return Err(SubmitError::ContextExceeded {
            requested_tokens,
            prompt_tokens,
            output_tokens,
            max_context_tokens,
        });
    }
    Ok(request.max_tokens.unwrap_or(max_context_tokens - prompt_tokens))
}

fn check_sampling(sampling: &SamplingParams, limits: &RequestLimits) -> Result<(), SubmitError> {
    within("temperature", sampling.temperature, 0.0, 100.0)?;
    positive("top_p", sampling.top_p, 1.0)?;
    within("min_p", sampling.min_p, 0.0, 1.0)?;
    positive("repetition_penalty", sampling.repetition_penalty, 100.0)?;
    within("presence_penalty", sampling.presence_penalty, -2.0, 2.0)?;
    within("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
    at_most("logit_bias", sampling.logit_bias.len(), limits.max_logit_bias)?;
    let mut seen = BTreeSet::new();
    for (id, bias) in &sampling.logit_bias {
        if !bias.is_finite() {
            return Err(invalid("logit_bias", format!("of token id {id} is {bias}, not finite")));
        }
        if !seen.insert(*id) {
            return Err(invalid("logit_bias", format!("has token id {id} twice")));
        }
    }
    Ok(())
}

fn bit_mask(ids: &[TokenId], vocab_size: usize) -> Arc<[u32]> {
    let mut mask = vec![0_u32; vocab_size.div_ceil(32)];
    for id in ids {
        if let Some(word) = mask.get_mut(id.0 as usize / 32) {
            *word |= 1 << (id.0 % 32);
        }
    }
    mask.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Request)) -> Result<ValidRequest, SubmitError> {
        let mut request = Request::new([TokenId(1), TokenId(2)]);
        change(&mut request);
        let limits = RequestLimits::default();
        let eos_token_ids = &[TokenId(2), TokenId(3)];
        validate(request, &Bounds { limits: &limits, vocab_size: 100, max_context_tokens: 50, eos_token_ids })
    }

    #[test]
    fn each_bad_field_is_named() {
        type Change = fn(&mut Request);
        let cases: &[(&str, Change)] = &[
            ("prompt", |r| r.prompt_token_ids = [].into()),
            ("prompt", |r| r.prompt_token_ids = [TokenId(1), TokenId(100)].into()),
            ("n", |r| r.n = 0),
            ("n", |r| r.n = usize::MAX),
            ("max_tokens", |r| r.max_tokens = Some(49)),
            ("max_tokens", |r| r.max_tokens = Some(usize::MAX)),
            ("max_tokens", |r| r.prompt_token_ids = [TokenId(0); 50].into()),
            ("min_tokens", |r| r.min_tokens = 49),
            ("temperature", |r| r.sampling.temperature = f32::NAN),
            ("temperature", |r| r.sampling.temperature = -0.1),
            ("temperature", |r| r.sampling.temperature = f32::INFINITY),
            ("top_p", |r| r.sampling.top_p = 0.0),
            ("top_p", |r| r.sampling.top_p = f32::NAN),
            ("min_p", |r| r.sampling.min_p = 1.5),
            ("repetition_penalty", |r| r.sampling.repetition_penalty = 0.0),
            ("presence_penalty", |r| r.sampling.presence_penalty = 3.0),
            ("frequency_penalty", |r| r.sampling.frequency_penalty = f32::NEG_INFINITY),
            ("logit_bias", |r| r.sampling.logit_bias = vec![(TokenId(1), f32::NAN)]),
            ("logit_bias", |r| r.sampling.logit_bias = vec![(TokenId(1), 1.0); 2]),
            ("logit_bias", |r| r.sampling.logit_bias = vec![(TokenId(u32::MAX), 1.0)]),
            ("allowed_token_ids", |r| r.sampling.allowed_token_ids = Some(vec![])),
            ("allowed_token_ids", |r| r.sampling.allowed_token_ids = Some(vec![TokenId(100)])),
            ("bad_words", |r| r.sampling.bad_words = vec![vec![]]),
            ("bad_words", |r| r.sampling.bad_words = vec![vec![TokenId(100)]]),
            ("adapter_scale", |r| r.adapter_scale = f32::NAN),
            ("adapter_scale", |r| r.adapter_scale = 2.0),
            ("expected_generation", |r| r.expected_generation = Some(crate::ids::GenerationId(1))),
            ("logprobs", |r| r.logprobs = Some(u32::MAX)),
            ("prompt_logprobs", |r| r.prompt_logprobs = Some(21)),
            ("logprob_token_ids", |r| r.logprob_token_ids = vec![TokenId(100)]),
            ("stop_token_ids", |r| r.stop_token_ids = vec![TokenId(100)]),
            ("stop", |r| r.stop_strings = vec![String::new()]),
            ("stop", |r| r.stop_strings = vec!["x".into(); 17]),
            ("stop", |r| r.stop_strings = vec!["x".repeat(2000)]),
            ("cache_salt", |r| r.cache_salt = Some("x".repeat(1000))),
            ("request_id", |r| r.request_id = Some("x".repeat(1000))),
        ];
        for (index, (field, change)) in cases.iter().enumerate() {
            let error = check(change).expect_err("must be refused");
            assert_eq!(error.field(), Some(*field), "case {index}: {error}");
        }
    }

    #[test]
    fn max_tokens_defaults_to_what_the_context_leaves() {
        assert_eq!(check(|_| {}).unwrap().max_tokens, 48);
        assert_eq!(check(|r| r.max_tokens = Some(48)).unwrap().max_tokens, 48);
        assert_eq!(check(|r| r.max_tokens = Some(0)).unwrap().max_tokens, 0);
        let error = check(|r| r.max_tokens = Some(60)).unwrap_err();
        let expected = SubmitError::ContextExceeded {
            requested_tokens: 62,
            prompt_tokens: 2,
            output_tokens: 60,
            max_context_tokens: 50,
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn a_request_must_leave_a_token_to_sample() {
        let only = |ids: &[u32]| Some(ids.iter().copied().map(TokenId).collect::<Vec<_>>());
        let refused = |change: &dyn Fn(&mut Request)| {
            let error = check(change).map(drop).unwrap_err();
            assert!(error.to_string().contains("leaves no token"), "{error}");
            error.field().unwrap()
        };
        let ends = |r: &mut Request| r.sampling.allowed_token_ids = only(&[2, 3]);
        // An end id is a good answer, unless there have to be tokens before it.
        assert!(check(ends).is_ok());
        let field = refused(&|r| {
            ends(r);
            r.min_tokens = 1;
        });
        assert_eq!(field, "allowed_token_ids");
        let ignoring = |r: &mut Request| {
            ends(r);
            (r.min_tokens, r.ignore_eos) = (1, true);
        };
        assert!(check(ignoring).is_ok());
        let with_another =
            |r: &mut Request| (r.sampling.allowed_token_ids, r.min_tokens) = (only(&[2, 9]), 1);
        assert!(check(with_another).is_ok());
        refused(&|r| {
            with_another(r);
            r.stop_token_ids = vec![TokenId(9)];
        });
        refused(&|r| {
            with_another(r);
            r.sampling.bad_words = vec![vec![TokenId(9)]];
        });
        // A longer bad word bans its last token only after the others.
        let longer = |r: &mut Request| {
            with_another(r);
            r.sampling.bad_words = vec![vec![TokenId(9), TokenId(9)]];
        };
        assert!(check(longer).is_ok());
        let all = |r: &mut Request| r.sampling.bad_words = (0..100).map(|id| vec![TokenId(id)]).collect();
        assert_eq!(refused(&all), "bad_words");
    }

    #[test]
    fn allowed_ids_become_bits() {
        let valid =
            check(|r| r.sampling.allowed_token_ids = Some(vec![TokenId(0), TokenId(33), TokenId(99)]))
                .unwrap();
        assert_eq!(&*valid.allowed.unwrap(), [1, 2, 0, 8]);
    }
}
