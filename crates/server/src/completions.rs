//! `POST /v1/completions`: one or many prompts, whole or streamed.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use bytes::BytesMut;
use wardrobe_engine::{Choice, Completion, Event, Request, Summary, TokenId, TokenLogprobs, Update};
use wardrobe_text::Tokenizer;

use crate::admission::GenerationPlace;
use crate::body::{JsonObject, json};
use crate::constraint::{self, BodyConstraint, Held};
use crate::context::RequestContext;
use crate::error::{Api, ApiError, Result};
use crate::generate::{Admitted, Generation, PromptOptions, engine_request, finish_reason};
use crate::loose::LooseSchemas;
use crate::shape::{AnswerShape, refuse_unsupported};
use crate::sse::{ChunkFrame, ChunkNames, ChunkWriter, SseStream};
use crate::state::{ServerState, unix_s};
use crate::target;
use crate::tools::refuse_tools;
use crate::wire::completions::{CompletionFields, TextChoice, TextCompletion};
use crate::wire::inference::InferenceFields;
use crate::wire::logprobs::{CompletionLogprobs, PromptLogprobs, TextOffset, TokenStyle};
use crate::wire::prompt::Prompt;
use crate::wire::request::GenerationFields;
use crate::wire::usage::{WireTimings, WireUsage};

/// One of the request's prompts.
pub(crate) struct PromptInfo {
    token_ids: Arc<[TokenId]>,
    /// Its text, if the answer repeats it.
    echo: Option<String>,
    /// Tokens at its start that are not in the text.
    hidden_tokens: usize,
}

/// A checked request.
pub(crate) struct Prepared {
    pub model: String,
    pub prompts: Vec<PromptInfo>,
    pub shape: AnswerShape,
    /// Choices that a prompt's answer has.
    pub n: usize,
    /// Whether `vLLM`'s `prompt_logprobs` were asked for, apart from echoed ones.
    prompt_logprobs: bool,
    loose: Option<Arc<LooseSchemas>>,
    /// Everything but the prompt.
    request: Request,
    admitted: Admitted,
}

impl Prepared {
    /// Checks a request and tokenizes its prompts.
    pub async fn new(
        state: &Arc<ServerState>,
        context: &RequestContext,
        place: GenerationPlace,
        body: JsonObject,
        api: Api,
    ) -> Result<Self> {
        refuse_unsupported(&body)?;
        refuse_tools(&body)?;
        let mut fields: GenerationFields = body.parse()?;
        let own: CompletionFields = body.parse()?;
        if api == Api::Inference {
            let older: InferenceFields = body.parse()?;
            older.check()?;
            fields.stream = older.stream_tokens.or(fields.stream);
        }
        let target = target::resolve(state, &fields)?;
        let mut admitted = Admitted::new(place, context, &target);
        let shape = AnswerShape::new(&fields, own.logprobs.is_some(), TokenStyle::TextOrBytes)?;
        let mut request = engine_request(state, context, &target, &mut fields, api)?;
        let constraint = BodyConstraint::new(&body)?;
        request.without_adapter_schema = constraint.is_text;
        let Held { constraint, loose } = constraint::compile(state, constraint.asked).await?;
        request.constraint = constraint;
        let n = request.n;
        request.logprobs = own.logprobs;
        best_of(state, &own, shape, &mut request)?;
        let echo = own.echo == Some(true);
        let prompt_logprobs = request.prompt_logprobs.is_some();
        if echo && shape.logprobs {
            if prompt_logprobs && request.prompt_logprobs != own.logprobs {
                return Err(ApiError::invalid("prompt_logprobs", "differs from `logprobs` beside `echo`"));
            }
            request.prompt_logprobs = own.logprobs;
        }
        let prompts = own.prompt.0;
        if prompts.is_empty() {
            return Err(ApiError::invalid("prompt", "is empty"));
        }
        if prompts.len() > state.config.max_prompts {
            let reason = format!("has {} prompts, more than {}", prompts.len(), state.config.max_prompts);
            return Err(ApiError::invalid("prompt", reason));
        }
        let options = PromptOptions::new(state, &target, &fields, true, api)?;
        let tokenizer = state.model.tokenizer.clone();
        let (text_bytes, share) = (body.len_bytes(), body.into_share());
        let work = move || {
            let _share = share;
            prompts.into_iter().map(|prompt| PromptInfo::new(&tokenizer, prompt, &options, echo)).collect()
        };
        let prompts: Vec<PromptInfo> = state.offload.run(text_bytes, work).await?;
        admitted.log.start(prompts.iter().map(|prompt| prompt.token_ids.len()));
        Ok(Self { model: target.model, prompts, shape, n, prompt_logprobs, loose, request, admitted })
    }

    /// Hands the prompts to the engine.
    pub fn submit(
        self,
        state: &ServerState,
        context: &RequestContext,
        api: Api,
    ) -> Result<(Generation, Answer)> {
        let Self { model, prompts, shape, n, prompt_logprobs, loose, request, admitted } = self;
        let requests = prompts
            .iter()
            .map(|prompt| Request { prompt_token_ids: prompt.token_ids.clone(), ..request.clone() });
        let generation = Generation::submit(state, context, requests, admitted, api)?;
        Ok((generation, Answer { model, prompts, shape, n, prompt_logprobs, loose }))
    }
}

/// Asks for `best_of` choices, with what is needed to tell which are best.
fn best_of(
    state: &ServerState,
    own: &CompletionFields,
    shape: AnswerShape,
    request: &mut Request,
) -> Result<()> {
    let Some(best_of) = own.best_of else { return Ok(()) };
    let max = state.model.engine.config().limits.max_n;
    let best_of = usize::try_from(best_of).ok().filter(|best_of| (request.n..=max).contains(best_of));
    let Some(best_of) = best_of else {
        return Err(ApiError::invalid("best_of", format!("is not in n..={max}")));
    };
    if best_of > request.n {
        if shape.stream {
            return Err(ApiError::invalid("best_of", "is above `n`, which a stream cannot do"));
        }
        request.n = best_of;
        request.logprobs = request.logprobs.or(Some(0));
    }
    Ok(())
}

impl PromptInfo {
    fn new(tokenizer: &Tokenizer, prompt: Prompt, options: &PromptOptions, echo: bool) -> Result<Self> {
        let (token_ids, text) = match prompt {
            Prompt::Text(text) => {
                (options.encode(tokenizer, &text)?, options.keep_last.is_none().then_some(text))
            }
            Prompt::Tokens(ids) => (options.truncate(ids), None),
        };
        let (before, _) = tokenizer.surrounding();
        let hidden_tokens = match &text {
            Some(_) if options.add_special && token_ids.starts_with(before) => before.len(),
            _ => 0,
        };
        let echo = match (echo, text) {
            (false, _) => None,
            (true, Some(text)) => Some(text),
            (true, None) => Some(
                tokenizer
                    .decode(&token_ids, false)
                    .map_err(|error| ApiError::bad_request(error.to_string()).with_param("prompt"))?,
            ),
        };
        Ok(Self { token_ids: token_ids.into(), echo, hidden_tokens })
    }

    /// The prompt's part of an echoed answer's `logprobs`.
    fn echo_logprobs<'a>(
        &self,
        rows: &'a [Option<TokenLogprobs>],
        tokenizer: &'a Tokenizer,
        style: TokenStyle,
        offset: &mut TextOffset,
    ) -> CompletionLogprobs<'a> {
        let mut logprobs = CompletionLogprobs::default();
        for (idx, (row, token)) in rows.iter().zip(self.token_ids.iter()).enumerate() {
            let hidden = idx < self.hidden_tokens;
            match row {
                Some(row) => logprobs.extend([row], style, offset, |_| hidden),
                None => {
                    let before = *offset;
                    logprobs.push_first(*token, tokenizer.token_bytes(*token).unwrap_or(&[]), style, offset);
                    if hidden {
                        *offset = before;
                    }
                }
            }
        }
        logprobs
    }
}

/// What is needed to write an answer.
pub(crate) struct Answer {
    pub model: String,
    pub prompts: Vec<PromptInfo>,
    pub shape: AnswerShape,
    pub n: usize,
    prompt_logprobs: bool,
    loose: Option<Arc<LooseSchemas>>,
}

impl Answer {
    /// What is to be said of a whole choice.
    fn warnings(&self, text: &str) -> Vec<String> {
        self.loose.as_ref().map(|loose| loose.of_text(text)).unwrap_or_default()
    }

    /// The `n` best choices, likeliest per token first if there are more than `n`.
    pub fn best<'a>(&self, completion: &'a Completion) -> Vec<&'a Choice> {
        let mut choices: Vec<&Choice> = completion.choices.iter().collect();
        if choices.len() > self.n {
            let mean = |choice: &Choice| {
                let sum: f64 = choice.logprobs.iter().map(|row| f64::from(row.logprob)).sum();
                sum / choice.logprobs.len().max(1) as f64
            };
            choices.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            choices.truncate(self.n);
        }
        choices
    }
}

/// `POST /v1/completions`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    context: RequestContext,
    place: GenerationPlace,
    body: JsonObject,
) -> Result<Response> {
    let prepared = Prepared::new(&state, &context, place, body, Api::Completions).await?;
    let (generation, answer) = prepared.submit(&state, &context, Api::Completions)?;
    let names = ChunkNames {
        id: state.ids.next("cmpl-"),
        object: "text_completion",
        created: unix_s(SystemTime::now()),
        model: answer.model.clone(),
    };
    if answer.shape.stream {
        let choices = answer.prompts.len().saturating_mul(answer.n);
        let writer = CompletionWriter {
            frame: ChunkFrame::new(&names, answer.shape.include_usage)?,
            names,
            state: state.clone(),
            started: vec![false; choices],
            offsets: vec![TextOffset::default(); choices],
            texts: vec![String::new(); choices],
            echoed_rows: vec![None; answer.prompts.len()],
            usage: WireUsage::default(),
            summary: Summary::default(),
            answer,
        };
        return Ok(SseStream::new(generation, writer, state.config.keep_alive_interval).into_response());
    }
    let completions = generation.collect(answer.prompts.len()).await?;
    whole_answer(&state, &names, &answer, &completions)
}

fn whole_answer(
    state: &ServerState,
    names: &ChunkNames,
    answer: &Answer,
    completions: &[Completion],
) -> Result<Response> {
    let (shape, tokenizer) = (answer.shape, &state.model.tokenizer);
    let mut usage = WireUsage::default();
    let mut choices = Vec::new();
    // Echoed text, which the choices borrow.
    let texts: Vec<Vec<String>> = (answer.prompts.iter().zip(completions))
        .map(|(prompt, completion)| {
            let echo = prompt.echo.as_deref().unwrap_or("");
            answer.best(completion).iter().map(|choice| format!("{echo}{}", choice.text)).collect()
        })
        .collect();
    for ((prompt, completion), texts) in answer.prompts.iter().zip(completions).zip(&texts) {
        usage.add(&completion.summary.usage);
        for (choice, text) in answer.best(completion).into_iter().zip(texts) {
            let (finish_reason, stop_reason) = finish_reason(choice.finish.as_ref())?;
            let logprobs = shape.logprobs.then(|| {
                let mut offset = TextOffset::default();
                let rows = completion.prompt_logprobs.as_deref().filter(|_| prompt.echo.is_some());
                let rows = rows.unwrap_or(&[]);
                let mut logprobs = prompt.echo_logprobs(rows, tokenizer, shape.style, &mut offset);
                let hidden = |id| shape.skip_special_tokens && tokenizer.is_special(id);
                logprobs.extend(&choice.logprobs, shape.style, &mut offset, hidden);
                logprobs
            });
            let rows = completion.prompt_logprobs.as_deref().filter(|_| answer.prompt_logprobs);
            choices.push(TextChoice {
                index: choices.len(),
                text,
                logprobs,
                finish_reason: Some(finish_reason),
                stop_reason,
                prompt_logprobs: rows.map(PromptLogprobs::new),
                prompt_token_ids: shape.ids(&prompt.token_ids),
                token_ids: shape.ids(&choice.token_ids),
                warnings: answer.warnings(&choice.text),
            });
        }
    }
    // All prompts are answered by the same generation.
    let summary = completions.last().map(|completion| &completion.summary);
    Ok(json(&TextCompletion {
        id: &names.id,
        object: names.object,
        created: names.created,
        model: &names.model,
        system_fingerprint: summary.map(|summary| state.fingerprint(summary)).unwrap_or_default(),
        choices,
        usage,
        timings: summary.filter(|_| shape.timings).map(WireTimings::new),
    }))
}

/// Writes the chunks of a completion.
struct CompletionWriter {
    frame: ChunkFrame,
    names: ChunkNames,
    state: Arc<ServerState>,
    answer: Answer,
    /// Per choice of the answer: whether it has had a chunk, and how far its text has come.
    started: Vec<bool>,
    offsets: Vec<TextOffset>,
    /// Their texts, where they are checked at the end.
    texts: Vec<String>,
    /// Per prompt: log-probabilities to echo.
    echoed_rows: Vec<Option<Vec<Option<TokenLogprobs>>>>,
    usage: WireUsage,
    summary: Summary,
}

fn text_chunk(index: usize, text: &str) -> TextChoice<'_> {
    TextChoice {
        index,
        text,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        prompt_logprobs: None,
        prompt_token_ids: None,
        token_ids: None,
        warnings: Vec::new(),
    }
}

impl CompletionWriter {
    /// The prompt, before the first text of a choice.
    fn echo(&mut self, prompt_idx: usize, index: usize, out: &mut BytesMut) -> Result<()> {
        match self.started.get_mut(index) {
            Some(started) if !*started => *started = true,
            _ => return Ok(()),
        }
        let Some(prompt) = self.answer.prompts.get(prompt_idx) else { return Ok(()) };
        let shape = self.answer.shape;
        if prompt.echo.is_none() && !shape.token_ids {
            return Ok(());
        }
        let mut chunk = text_chunk(index, prompt.echo.as_deref().unwrap_or(""));
        chunk.prompt_token_ids = shape.ids(&prompt.token_ids);
        let rows = self.echoed_rows.get(prompt_idx).and_then(Option::as_deref);
        if let (Some(rows), Some(offset)) = (rows, self.offsets.get_mut(index)) {
            let tokenizer = &self.state.model.tokenizer;
            chunk.logprobs = Some(prompt.echo_logprobs(rows, tokenizer, shape.style, offset));
        }
        self.frame.write(&chunk, out)
    }

    fn update(&mut self, prompt_idx: usize, update: &Update, out: &mut BytesMut) -> Result<()> {
        let index = prompt_idx.saturating_mul(self.answer.n).saturating_add(update.choice);
        self.echo(prompt_idx, index, out)?;
        let shape = self.answer.shape;
        let mut chunk = text_chunk(index, &update.text);
        if self.answer.loose.is_some()
            && let Some(text) = self.texts.get_mut(index)
        {
            text.push_str(&update.text);
        }
        if shape.logprobs
            && !update.logprobs.is_empty()
            && let Some(offset) = self.offsets.get_mut(index)
        {
            let tokenizer = &self.state.model.tokenizer;
            let hidden = |id| shape.skip_special_tokens && tokenizer.is_special(id);
            let mut logprobs = CompletionLogprobs::default();
            logprobs.extend(&update.logprobs, shape.style, offset, hidden);
            chunk.logprobs = Some(logprobs);
        }
        chunk.token_ids = shape.ids(&update.token_ids).filter(|ids| !ids.is_empty());
        if update.finish.is_some() {
            match finish_reason(update.finish.as_ref()) {
                Ok((finish_reason, stop_reason)) => {
                    chunk.finish_reason = Some(finish_reason);
                    chunk.stop_reason = stop_reason;
                    chunk.warnings = self.answer.warnings(self.texts.get(index).map_or("", String::as_str));
                }
                Err(error) => {
                    // What there was before the failure goes out too.
                    if !update.text.is_empty() {
                        self.frame.write(&chunk, out)?;
                    }
                    return Err(error);
                }
            }
        }
        let has_news = !update.text.is_empty()
            || chunk.logprobs.is_some()
            || chunk.token_ids.is_some()
            || chunk.finish_reason.is_some();
        if has_news { self.frame.write(&chunk, out) } else { Ok(()) }
    }
}

impl ChunkWriter for CompletionWriter {
    fn event(&mut self, prompt_idx: usize, event: Event, out: &mut BytesMut) -> Result<()> {
        match event {
            Event::Update(update) => self.update(prompt_idx, &update, out),
            Event::PromptLogprobs(rows) => {
                if let Some(slot) = self.echoed_rows.get_mut(prompt_idx) {
                    *slot = Some(rows);
                }
                Ok(())
            }
            Event::Summary(summary) => {
                self.usage.add(&summary.usage);
                self.summary = *summary;
                Ok(())
            }
        }
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<()> {
        if !self.answer.shape.include_usage {
            return Ok(());
        }
        let fingerprint = self.state.fingerprint(&self.summary);
        let timings = self.answer.shape.timings.then(|| WireTimings::new(&self.summary));
        self.names.write_usage(&fingerprint, self.usage, timings, out)
    }
}
