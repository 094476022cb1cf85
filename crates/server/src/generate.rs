//! From fields to engine requests, and from their streams to whole answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::SelectAll;
use futures_util::{Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use wardrobe_engine::{
    BLOCK_SIZE_TOKENS, Completion, Event, Finish, Request, ResponseStream, SamplingParams, StopCause, TokenId,
};
use wardrobe_text::{EncodeOptions, Tokenizer};

use crate::admission::GenerationPlace;
use crate::context::RequestContext;
use crate::error::{Api, ApiError, Result};
use crate::request_log::RequestLog;
use crate::state::ServerState;
use crate::target::Target;
use crate::wire::logprobs::StopReason;
use crate::wire::request::GenerationFields;

/// Words in `bad_words`, before each is spelled with and without a space.
const MAX_BAD_WORDS: usize = 128;
const MAX_BAD_WORD_BYTES: usize = 256;

/// The engine request of everything but the prompt.
pub(crate) fn engine_request(
    state: &ServerState,
    context: &RequestContext,
    target: &Target,
    fields: &mut GenerationFields,
    api: Api,
) -> Result<Request> {
    let max_tokens = output_limit(fields, api)?;
    Ok(Request {
        prompt_token_ids: Arc::default(),
        adapter: target.adapter.clone(),
        adapter_scale: target.adapter_scale,
        expected_generation: target.expected_generation,
        sampling: sampling(state, fields)?,
        constraint: None,
        without_adapter_schema: false,
        max_tokens,
        min_tokens: size("min_tokens", fields.min_tokens.unwrap_or(0))?,
        ignore_eos: fields.ignore_eos.unwrap_or(false),
        stop_strings: fields.stop.take().map_or_else(Vec::new, |stop| stop.into_vec()),
        stop_token_ids: token_ids(fields.stop_token_ids.take().unwrap_or_default()),
        include_stop_str_in_output: fields.include_stop_str_in_output.unwrap_or(false),
        n: size("n", fields.n.unwrap_or(1))?,
        logprobs: None,
        logprob_token_ids: token_ids(fields.logprob_token_ids.take().unwrap_or_default()),
        prompt_logprobs: fields.prompt_logprobs,
        prompt_logprobs_from: 0,
        skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
        priority: context.priority(fields.priority),
        cache_salt: cache_salt(state, context, fields),
        request_id: Some(context.request_id.to_string()),
    })
}

fn size(field: &str, value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| ApiError::invalid(field, format!("is {value}, too large")))
}

fn token_ids(ids: Vec<u32>) -> Vec<TokenId> {
    ids.into_iter().map(TokenId).collect()
}

fn output_limit(fields: &GenerationFields, api: Api) -> Result<Option<usize>> {
    let (field, value) = match (fields.max_completion_tokens, fields.max_tokens) {
        (Some(value), _) => ("max_completion_tokens", Some(value)),
        (None, Some(value)) => ("max_tokens", Some(value)),
        // The defaults of these APIs.
        (None, None) if api == Api::Completions => ("max_tokens", Some(16)),
        (None, None) if api == Api::Inference => ("max_tokens", Some(128)),
        (None, None) => return Ok(None),
    };
    if api == Api::Chat && value == Some(0) {
        return Err(ApiError::invalid(field, "is 0; a chat completion has at least one token"));
    }
    value.map(|value| size(field, value)).transpose()
}

fn sampling(state: &ServerState, fields: &mut GenerationFields) -> Result<SamplingParams> {
    let defaults = SamplingParams::default();
    // A value that f32 cannot hold becomes infinite, which the engine refuses by the field's name.
    let number = |value: Option<f64>, default: f32| value.map_or(default, |value| value as f32);
    let top_k = match fields.top_k {
        None | Some(-1) => 0,
        Some(top_k) => u32::try_from(top_k).map_err(|_| {
            ApiError::invalid("top_k", format!("is {top_k}, not -1 (off) or 0..={}", u32::MAX))
        })?,
    };
    Ok(SamplingParams {
        temperature: number(fields.temperature, defaults.temperature),
        top_k,
        top_p: number(fields.top_p, defaults.top_p),
        min_p: number(fields.min_p, defaults.min_p),
        repetition_penalty: number(fields.repetition_penalty, defaults.repetition_penalty),
        presence_penalty: number(fields.presence_penalty, defaults.presence_penalty),
        frequency_penalty: number(fields.frequency_penalty, defaults.frequency_penalty),
        logit_bias: logit_bias(fields)?,
        allowed_token_ids: fields.allowed_token_ids.take().map(token_ids),
        bad_words: bad_words(&state.model.tokenizer, fields)?,
        seed: fields.seed.map(|seed| seed.0),
    })
}

fn logit_bias(fields: &mut GenerationFields) -> Result<Vec<(TokenId, f32)>> {
    let entries = fields.logit_bias.take().unwrap_or_default().into_iter();
    let entries = entries.map(|(key, bias)| {
        let id: u32 = key.parse().map_err(|_| {
            let shown: String = key.chars().take(32).collect();
            ApiError::invalid("logit_bias", format!("has the key {shown:?}, which is not a token id"))
        })?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(ApiError::invalid(
                "logit_bias",
                format!("of token {id} is {bias}, not in -100..=100"),
            ));
        }
        Ok((TokenId(id), bias as f32))
    });
    entries.collect()
}

/// Every word as it may appear: at the start of a text and after a space.
fn bad_words(tokenizer: &Tokenizer, fields: &mut GenerationFields) -> Result<Vec<Vec<TokenId>>> {
    let words = fields.bad_words.take().unwrap_or_default();
    if words.len() > MAX_BAD_WORDS {
        let reason = format!("has {} words, more than {MAX_BAD_WORDS}", words.len());
        return Err(ApiError::invalid("bad_words", reason));
    }
    let mut sequences = Vec::new();
    for word in &words {
        let bare = word.trim_start();
        if bare.is_empty() || word.len() > MAX_BAD_WORD_BYTES {
            let reason = format!("has a word that is empty or longer than {MAX_BAD_WORD_BYTES} bytes");
            return Err(ApiError::invalid("bad_words", reason));
        }
        for spelling in [bare.to_owned(), format!(" {bare}")] {
            let ids = tokenizer.encode_ordinary(&spelling);
            let ids = ids.map_err(|error| ApiError::invalid("bad_words", format!(": {error}")))?;
            if !ids.is_empty() && !sequences.contains(&ids) {
                sequences.push(ids);
            }
        }
    }
    Ok(sequences)
}

/// Who shares cached prefixes with whom: holders of the same key, requests of the same salt, and with
/// `cache_prompt: false` nobody.
fn cache_salt(
    state: &ServerState,
    context: &RequestContext,
    fields: &mut GenerationFields,
) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    if state.config.isolate_keys && state.keys.len() > 1 {
        parts.extend(context.tenant());
    }
    if fields.cache_prompt == Some(false) {
        parts.push(state.ids.next("once:"));
    }
    parts.extend(fields.cache_salt.take());
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// The most tokens that a prompt for `target` may have before the engine, which knows the adapter, looks closer.
pub(crate) fn max_prompt_tokens(state: &ServerState, target: &Target) -> usize {
    match target.adapter {
        None => state.model.engine.max_context_tokens(),
        Some(_) => state.model.engine.limits().num_blocks.saturating_mul(BLOCK_SIZE_TOKENS),
    }
}

/// How a prompt's text becomes tokens.
#[derive(Clone, Copy)]
pub(crate) struct PromptOptions {
    pub add_special: bool,
    pub max_tokens: usize,
    /// `truncate_prompt_tokens`: keep the last ones.
    pub keep_last: Option<usize>,
    pub api: Api,
}

impl PromptOptions {
    pub fn new(
        state: &ServerState,
        target: &Target,
        fields: &GenerationFields,
        add_special: bool,
        api: Api,
    ) -> Result<Self> {
        let max_tokens = max_prompt_tokens(state, target);
        let keep_last = match fields.truncate_prompt_tokens {
            None => None,
            Some(-1) => Some(max_tokens),
            Some(keep) => Some(usize::try_from(keep).ok().filter(|keep| *keep > 0).ok_or_else(|| {
                ApiError::invalid("truncate_prompt_tokens", format!("is {keep}, not -1 or at least 1"))
            })?),
        };
        Ok(Self { add_special: fields.add_special_tokens.unwrap_or(add_special), max_tokens, keep_last, api })
    }

    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>> {
        let options = EncodeOptions {
            add_special: self.add_special,
            max_tokens: self.keep_last.is_none().then_some(self.max_tokens),
            ..EncodeOptions::default()
        };
        let ids = tokenizer.encode_with(text, &options);
        Ok(self.truncate(ids.map_err(|error| ApiError::from_text(error, self.api))?))
    }

    pub fn truncate(&self, mut ids: Vec<TokenId>) -> Vec<TokenId> {
        match self.keep_last {
            Some(keep) if ids.len() > keep => ids.split_off(ids.len() - keep),
            _ => ids,
        }
    }
}

/// The stream of one of a request's prompts.
pub(crate) struct PromptStream {
    prompt_idx: usize,
    stream: ResponseStream,
}

impl Stream for PromptStream {
    type Item = (usize, Event);

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let prompt_idx = this.prompt_idx;
        Pin::new(&mut this.stream).poll_next(context).map(|event| event.map(|event| (prompt_idx, event)))
    }
}

/// A request that runs, over all its prompts. Dropping it cancels them.
pub(crate) struct Generation {
    streams: SelectAll<PromptStream>,
    pub log: RequestLog,
    pub deadline: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

impl Generation {
    /// Submits all or none; all are answered by the same generation of the adapter.
    pub fn submit(
        state: &ServerState,
        context: &RequestContext,
        requests: impl IntoIterator<Item = Request>,
        admitted: Admitted,
        api: Api,
    ) -> Result<Self> {
        let Admitted { place, mut log } = admitted;
        let submitted = match state.model.engine.submit_all(requests.into_iter().collect()) {
            Ok(submitted) => submitted,
            Err(error) => {
                log.end("refused");
                return Err(ApiError::from_submit(error, api));
            }
        };
        let streams = (submitted.into_iter().enumerate())
            .map(|(prompt_idx, stream)| PromptStream { prompt_idx, stream })
            .collect();
        // A batch has a deadline of its own.
        let limit = state.config.request_timeout.filter(|_| context.batch.is_none());
        let deadline = limit.and_then(|limit| context.started.checked_add(limit));
        Ok(Self { streams, log, deadline: deadline.map(Instant::from_std), _place: place })
    }

    /// The next event of any prompt.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let event = self.streams.poll_next_unpin(context);
        match &event {
            Poll::Ready(Some((prompt_idx, Event::Update(update)))) => {
                self.log.generated(*prompt_idx, update.token_ids.len());
            }
            Poll::Ready(Some((prompt_idx, Event::Summary(summary)))) => self.log.add(*prompt_idx, summary),
            _ => {}
        }
        event
    }

    /// Reads all prompts to their ends, side by side, since a stream that nobody reads is paused.
    pub async fn collect(mut self, num_prompts: usize) -> Result<Vec<Completion>> {
        let mut completions = vec![Completion::default(); num_prompts];
        let deadline = self.deadline;
        let read = async {
            while let Some((prompt_idx, event)) =
                std::future::poll_fn(|context| self.poll_event(context)).await
            {
                if let Some(completion) = completions.get_mut(prompt_idx) {
                    completion.apply(event);
                }
            }
        };
        match deadline {
            None => read.await,
            Some(deadline) => {
                if tokio::time::timeout_at(deadline, read).await.is_err() {
                    self.log.end("timeout");
                    return Err(ApiError::timeout());
                }
            }
        }
        for choice in completions.iter().flat_map(|completion| &completion.choices) {
            if let Err(error) = finish_reason(choice.finish.as_ref()) {
                self.log.end("error");
                return Err(error);
            }
        }
        self.log.end("ok");
        Ok(completions)
    }
}

/// A request that may run: its place and its line in the log.
pub(crate) struct Admitted {
    pub place: OwnedSemaphorePermit,
    pub log: RequestLog,
}

impl Admitted {
    pub fn new(place: GenerationPlace, context: &RequestContext, target: &Target) -> Self {
        let mut log = RequestLog::new(context, target);
        // Until it runs: whatever ends it earlier is a refusal.
        log.end("refused");
        Self { place: place.0, log }
    }
}

/// A choice's end on the wire; an end that is a failure is an error.
pub(crate) fn finish_reason(finish: Option<&Finish>) -> Result<(&'static str, Option<StopReason>)> {
    match finish {
        Some(Finish::Stop(StopCause::Eos(_) | StopCause::Complete)) => Ok(("stop", None)),
        Some(Finish::Stop(StopCause::Token(id))) => Ok(("stop", Some(StopReason::Token(id.0)))),
        Some(Finish::Stop(StopCause::String(text))) => Ok(("stop", Some(StopReason::Text(text.clone())))),
        Some(Finish::Length) => Ok(("length", None)),
        Some(Finish::Cancelled { reason }) => {
            Err(ApiError::unavailable(format!("the request was cancelled: {reason}"), "cancelled"))
        }
        Some(Finish::Error { message }) => Err(ApiError::internal(message.clone())),
        _ => Err(ApiError::internal("the answer has no end")),
    }
}
