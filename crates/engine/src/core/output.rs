//! One choice's output: tokens become text, stop conditions are applied, the next sample is specified.

use std::collections::BTreeMap;
use std::sync::Arc;

use wardrobe_text::StopMatcher;

use crate::codec::{Detokenizer, TextCodec};
use crate::constraint::Allowed;
use crate::executor::{SampleSpec, Sampled, TokenCount};
use crate::ids::TokenId;
use crate::response::{Finish, StopCause, TokenLogprobs, TopLogprob, Update};
use crate::validate::ValidRequest;

pub(crate) struct ChoiceOutput {
    choice: usize,
    detokenizer: Box<dyn Detokenizer>,
    stops: StopMatcher,
    num_tokens: usize,
    /// Counts of prompt and output tokens; kept only while a penalty is on.
    history: Option<BTreeMap<TokenId, TokenCount>>,
}

impl ChoiceOutput {
    pub fn new(choice: usize, valid: &ValidRequest, codec: &dyn TextCodec) -> Self {
        let request = &valid.request;
        let sampling = &request.sampling;
        let penalties = sampling.repetition_penalty != 1.0
            || sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0;
        let in_prompt = |&token: &TokenId| (token, TokenCount { token, output_count: 0, in_prompt: true });
        Self {
            choice,
            detokenizer: codec.detokenizer(&request.prompt_token_ids, request.skip_special_tokens),
            stops: valid.stops.matcher(request.include_stop_str_in_output),
            num_tokens: 0,
            history: penalties.then(|| request.prompt_token_ids.iter().map(in_prompt).collect()),
        }
    }

    /// Output tokens so far.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// How the next token is sampled. `output` is what has been produced, and after it what has only been drafted.
    pub fn sample_spec(
        &self,
        valid: &ValidRequest,
        seed: u64,
        output: &[TokenId],
        eos: &[TokenId],
    ) -> SampleSpec {
        let drafted = output.get(self.num_tokens..).unwrap_or_default();
        let request = &valid.request;
        let sampling = &request.sampling;
        let mut banned: Vec<TokenId> = Vec::new();
        // A constraint says itself where an end may come, and nothing else may come where it has to.
        if output.len() < request.min_tokens && request.constraint.is_none() {
            banned.extend(&request.stop_token_ids);
            if !request.ignore_eos {
                banned.extend(eos);
            }
        }
        let ends_now =
            |word: &&Vec<TokenId>| word.split_last().is_some_and(|(_, before)| output.ends_with(before));
        banned.extend(sampling.bad_words.iter().filter(ends_now).filter_map(|word| word.last()));
        let wants_ids = !valid.logprob_token_ids.is_empty();
        SampleSpec {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            history: self.history.as_ref().map(|counts| with_more(counts, drafted)).unwrap_or_default(),
            logit_bias: Arc::clone(&valid.logit_bias),
            banned,
            allowed: valid.allowed.clone().map_or(Allowed::All, Allowed::These),
            seed,
            choice: self.choice as u32,
            position: output.len() as u64,
            top_logprobs: request.logprobs.or(wants_ids.then_some(0)),
            logprob_token_ids: Arc::clone(&valid.logprob_token_ids),
        }
    }

    /// Takes a sampled token; gives what the caller gains by it, and the end if this is it. Stops count in text that `is_free`
    /// of a constraint.
    pub fn accept(
        &mut self,
        valid: &ValidRequest,
        sampled: Sampled,
        eos: &[TokenId],
        codec: &dyn TextCodec,
        is_free: bool,
    ) -> Update {
        let request = &valid.request;
        let token = sampled.token;
        self.num_tokens += 1;
        if let Some(history) = &mut self.history {
            count(history, token);
        }
        let may_stop = self.num_tokens > request.min_tokens && is_free;
        let cause = if !is_free && eos.contains(&token) {
            Some(StopCause::Eos(token))
        } else if !may_stop {
            None
        } else if request.stop_token_ids.contains(&token) {
            Some(StopCause::Token(token))
        } else if !request.ignore_eos && eos.contains(&token) {
            Some(StopCause::Eos(token))
        } else {
            None
        };
        let mut text = String::new();
        let mut finish = None;
        if cause.is_none() || request.include_stop_str_in_output {
            let piece = self.detokenizer.push(token);
            finish = self.push_text(valid, &piece, may_stop, &mut text);
        }
        finish = finish.or(cause.map(Finish::Stop));
        if finish.is_none() && self.num_tokens >= valid.max_tokens {
            finish = Some(Finish::Length);
        }
        if finish.is_some() {
            text.push_str(&self.flush());
        }
        let wants_logprobs = request.logprobs.is_some() || !valid.logprob_token_ids.is_empty();
        let logprobs = if wants_logprobs { vec![token_logprobs(sampled, codec)] } else { Vec::new() };
        Update { choice: self.choice, text, token_ids: vec![token], logprobs, finish }
    }

    /// Puts new text through the stop strings.
    fn push_text(
        &mut self,
        valid: &ValidRequest,
        piece: &str,
        may_stop: bool,
        text: &mut String,
    ) -> Option<Finish> {
        if !may_stop {
            // The beginning of a stop string that came to nothing.
            text.push_str(&self.stops.finish());
            text.push_str(piece);
            return None;
        }
        let output = self.stops.push(piece);
        text.push_str(&output.text);
        let matched = valid.stops.iter().nth(output.matched?.index)?;
        Some(Finish::Stop(StopCause::String(matched.to_owned())))
    }

    /// The output ends: text that was held back. After a stop string there is none.
    fn flush(&mut self) -> String {
        if self.stops.found().is_some() {
            return String::new();
        }
        let rest = self.detokenizer.finish();
        let mut text = self.stops.push(&rest).text;
        text.push_str(&self.stops.finish());
        text
    }

    /// Ends the output from outside.
    pub fn end(&mut self, finish: Finish) -> Update {
        Update { choice: self.choice, text: self.flush(), finish: Some(finish), ..Update::default() }
    }
}

/// Counts a token of the output.
fn count(counts: &mut BTreeMap<TokenId, TokenCount>, token: TokenId) {
    let count = counts.entry(token).or_insert(TokenCount { token, output_count: 0, in_prompt: false });
    count.output_count = count.output_count.saturating_add(1);
}

/// The counts, with some tokens more.
fn with_more(counts: &BTreeMap<TokenId, TokenCount>, tokens: &[TokenId]) -> Vec<TokenCount> {
    if tokens.is_empty() {
        return counts.values().copied().collect();
    }
    let mut counts = counts.clone();
    tokens.iter().for_each(|token| count(&mut counts, *token));
    counts.into_values().collect()
}

/// A row of log-probabilities with the bytes of its tokens.
pub(crate) fn token_logprobs(row: Sampled, codec: &dyn TextCodec) -> TokenLogprobs {
    let with_bytes = |(token, logprob)| TopLogprob { token, bytes: codec.token_bytes(token), logprob };
    TokenLogprobs {
        token: row.token,
        bytes: codec.token_bytes(row.token),
        logprob: row.logprob,
        rank: row.rank,
        top: row.top.into_iter().map(with_bytes).collect(),
    }
}
