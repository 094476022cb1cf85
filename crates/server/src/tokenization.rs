//! `/tokenize`, `/detokenize`, `/tokenizer_info`: the tokenizer for clients that have none.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::de::IgnoredAny;
use wardrobe_engine::TokenId;
use wardrobe_text::EncodeOptions;

use crate::admission::TokenizationPlace;
use crate::body::{JsonObject, json};
use crate::conversation::Conversation;
use crate::error::{Api, ApiError, Result};
use crate::state::ServerState;
use crate::tools::OfferedTools;
use crate::wire::tokenization::{DetokenizeFields, Detokenized, TokenizeFields, Tokenized, TokenizerInfo};

/// What is to be tokenized.
enum Input {
    Text(String),
    Chat(Box<Conversation>),
}

/// All models here share one tokenizer, but a name that means none of them is a mistake.
fn check_model(state: &ServerState, name: Option<&str>) -> Result<()> {
    let Some(name) = name.filter(|name| !state.is_base_name(name)) else { return Ok(()) };
    match state.model.engine.adapters().iter().any(|adapter| adapter.name == name) {
        true => Ok(()),
        false => Err(ApiError::unknown_model(name)),
    }
}

/// `POST /tokenize`: a prompt, or messages through the chat template. Special tokens' text is read as these tokens.
pub(crate) async fn tokenize(
    State(state): State<Arc<ServerState>>,
    place: TokenizationPlace,
    body: JsonObject,
) -> Result<Response> {
    let fields: TokenizeFields = body.parse()?;
    check_model(&state, fields.model.as_deref())?;
    let input = match (fields.prompt, fields.messages) {
        (Some(text), _) => Input::Text(text),
        (None, Some(IgnoredAny)) => {
            let mut conversation = Conversation::new(&state, body.parse()?)?;
            conversation.write_tools(&state, &OfferedTools::new(body.parse()?)?)?;
            Input::Chat(Box::new(conversation))
        }
        (None, None) => {
            return Err(ApiError::invalid("prompt", "is missing; give `prompt`, or `messages`"));
        }
    };
    let add_special = fields.add_special_tokens.unwrap_or(matches!(input, Input::Text(_)));
    let with_strings = fields.return_token_strs == Some(true);
    let shared = state.clone();
    let (text_bytes, share) = (body.len_bytes(), body.into_share());
    let tokenized = state.offload.run_less_urgent(text_bytes, move || {
        let _held = (place, share);
        let text = match input {
            Input::Text(text) => text,
            Input::Chat(conversation) => conversation.render(&shared)?,
        };
        let tokenizer = &shared.model.tokenizer;
        let options = EncodeOptions { add_special, ..EncodeOptions::default() };
        let ids = tokenizer.encode_with(&text, &options);
        let ids = ids.map_err(|error| ApiError::from_text(error, Api::Tokenize))?;
        let string = |id: &TokenId| tokenizer.token_str(*id).unwrap_or_default().into_owned();
        Ok(Tokenized {
            count: ids.len(),
            max_model_len: shared.model.engine.max_context_tokens(),
            token_strs: with_strings.then(|| ids.iter().map(string).collect()),
            tokens: ids.into_iter().map(|id| id.0).collect(),
        })
    });
    Ok(json(&tokenized.await?))
}

/// `POST /detokenize`: the text of tokens, special ones included.
pub(crate) async fn detokenize(
    State(state): State<Arc<ServerState>>,
    place: TokenizationPlace,
    body: JsonObject,
) -> Result<Response> {
    let fields: DetokenizeFields = body.parse()?;
    check_model(&state, fields.model.as_deref())?;
    let tokenizer = state.model.tokenizer.clone();
    let (text_bytes, share) = (body.len_bytes(), body.into_share());
    let text = state.offload.run_less_urgent(text_bytes, move || {
        let _held = (place, share);
        let ids: Vec<_> = fields.tokens.into_iter().map(TokenId).collect();
        tokenizer.decode(&ids, false).map_err(|error| ApiError::invalid("tokens", format!(": {error}")))
    });
    Ok(json(&Detokenized { prompt: text.await? }))
}

/// `GET /tokenizer_info`.
pub(crate) async fn info(State(state): State<Arc<ServerState>>) -> Response {
    let tokenizer = &state.model.tokenizer;
    let text = |id: Option<TokenId>| tokenizer.token_str(id?).map(std::borrow::Cow::into_owned);
    json(&TokenizerInfo {
        vocab_size: tokenizer.vocab_size(),
        bos_token: state.bos_token.as_deref(),
        eos_token: state.eos_token.as_deref(),
        pad_token: text(tokenizer.pad()),
        unk_token: text(tokenizer.unk()),
        chat_template: state.model.chat_template.as_ref().map(|template| template.source()),
    })
}
