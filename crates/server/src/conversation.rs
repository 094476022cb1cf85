//! A conversation, checked and brought into the form that its chat template expects.

use std::sync::Arc;

use serde_json::Value;
use wardrobe_text::{ChatInput, ChatTemplate, Message, MessageContent, TemplateLimits};

use crate::error::{ApiError, Result};
use crate::state::ServerState;
use crate::tools::{OfferedTools, TemplateTools};
use crate::wire::chat::ChatFields;

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// A checked conversation with the template that renders it.
pub(crate) struct Conversation {
    fields: ChatFields,
    template: Option<ChatTemplate>,
    /// For the template.
    tools: Option<Value>,
}

impl Conversation {
    pub fn new(state: &ServerState, mut fields: ChatFields) -> Result<Self> {
        if fields.messages.is_empty() {
            return Err(ApiError::invalid("messages", "is empty"));
        }
        let template = match fields.chat_template.take() {
            None if state.model.chat_template.is_some() => None,
            None => {
                let message = "this model has no chat template; use /v1/completions";
                return Err(ApiError::bad_request(message).with_code("no_chat_template"));
            }
            Some(_) if !state.config.allow_request_chat_template => {
                let why = "this server does not take chat templates from requests";
                return Err(ApiError::unsupported("chat_template", why));
            }
            Some(source) => Some(
                ChatTemplate::new(&source, TemplateLimits::default())
                    .map_err(|error| ApiError::from_template(error).with_param("chat_template"))?,
            ),
        };
        let shown = template.as_ref().or(state.model.chat_template.as_deref());
        let knows_developer = shown.is_some_and(|shown| {
            let knows = |source: &str| source.contains("developer");
            knows(shown.source()) && shown.tool_use_source().is_none_or(knows)
        });
        for (idx, message) in fields.messages.iter_mut().enumerate() {
            check_message(idx, message, knows_developer)?;
        }
        Ok(Self { fields, template, tools: None })
    }

    fn template<'a>(&'a self, state: &'a ServerState) -> Result<&'a ChatTemplate> {
        let template = self.template.as_ref().or(state.model.chat_template.as_deref());
        template.ok_or_else(|| ApiError::internal("the chat template is gone"))
    }

    /// Has the rendering tell of tools and of earlier calls. Gives how the template has them, if there are any.
    pub fn write_tools(
        &mut self,
        state: &ServerState,
        offered: &OfferedTools,
    ) -> Result<Option<Arc<TemplateTools>>> {
        let earlier = |message: &Message| message.tool_calls.is_some() || message.role == "tool";
        if offered.for_prompt.is_none() && !self.fields.messages.iter().any(earlier) {
            return Ok(None);
        }
        let template = self.template(state)?;
        let tools = match self.template {
            Some(_) => Arc::new(TemplateTools::new(state, template)),
            // Without tools the default template renders, whatever there is for those.
            None if offered.for_prompt.is_none() && template.tool_use_source().is_some() => {
                let default = template.without_tool_use().map_err(ApiError::from_template)?;
                let history = &state.template_history;
                history.get_or_init(|| Arc::new(TemplateTools::new(state, &default))).clone()
            }
            None => {
                state.template_tools.get_or_init(|| Arc::new(TemplateTools::new(state, template))).clone()
            }
        };
        self.tools = tools.style.prepare(&mut self.fields.messages, offered.for_prompt.clone());
        Ok(Some(tools))
    }

    pub fn render(&self, state: &ServerState) -> Result<String> {
        let fields = &self.fields;
        let continue_final_message = fields.continue_final_message.unwrap_or(false);
        let input = ChatInput {
            messages: &fields.messages,
            tools: self.tools.as_ref(),
            documents: fields.documents.as_ref(),
            add_generation_prompt: fields.add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            bos_token: state.bos_token.as_deref(),
            eos_token: state.eos_token.as_deref(),
            kwargs: fields.chat_template_kwargs.as_ref(),
            ..ChatInput::default()
        };
        self.template(state)?.render(&input).map_err(ApiError::from_template)
    }
}

/// Checks a message and brings it into the form that templates expect.
fn check_message(idx: usize, message: &mut Message, knows_developer: bool) -> Result<()> {
    let at = |field: &str| format!("messages[{idx}].{field}");
    if !ROLES.contains(&message.role.as_str()) {
        let shown: String = message.role.chars().take(32).collect();
        return Err(ApiError::invalid(at("role"), format!("is {shown:?}, not one of {ROLES:?}")));
    }
    if message.role == "developer" && !knows_developer {
        "system".clone_into(&mut message.role);
    }
    message.join_text_parts().map_err(|kind| {
        let kind: String = kind.chars().take(32).collect();
        ApiError::invalid(at("content"), format!("has a part of type {kind:?}; this model reads text only"))
    })?;
    message.parse_tool_arguments();
    let calls = message.role == "assistant" && message.tool_calls.is_some();
    match message.content {
        MessageContent::Text(_) => Ok(()),
        _ if calls => Ok(()),
        _ => Err(ApiError::invalid(at("content"), "is missing")),
    }
}
