//! Tools of a chat: what the prompt tells of them, what the answer is held to, and its calls as the client reads them.

use std::sync::Arc;

use serde_json::{Value, json};
use wardrobe_engine::Finish;
use wardrobe_grammar::{Beside, Function, Spec, ToolCalls};
use wardrobe_text::{
    ChatTemplate, MAX_TOOL_CALLS, NotationPart, Tokenizer, ToolCallParser, ToolEvent, ToolNotation, ToolStyle,
};

use crate::body::JsonObject;
use crate::constraint::Asked;
use crate::error::{ApiError, Result};
use crate::state::ServerState;
use crate::wire::tools::{
    FunctionCall, FunctionDelta, FunctionFields, NamedChoice, Tool, ToolCall, ToolCallDelta, ToolChoice,
    ToolFields,
};

/// A template's way with tools.
pub(crate) struct TemplateTools {
    pub style: ToolStyle,
    notation: Arc<ToolNotation>,
    /// Special tokens are part of the notation, so the answer's text has to show them.
    has_special_tokens: bool,
}

impl TemplateTools {
    /// A chat template's way.
    pub fn new(state: &ServerState, template: &ChatTemplate) -> Self {
        let style = ToolStyle::of(template, state.bos_token.as_deref(), state.eos_token.as_deref());
        let notation = Arc::new(style.notation().clone());
        let has_special_tokens = has_special_tokens(&state.model.tokenizer, &notation);
        Self { style, notation, has_special_tokens }
    }
}

fn has_special_tokens(tokenizer: &Tokenizer, notation: &ToolNotation) -> bool {
    let parts =
        [&notation.first, &notation.middle, &notation.last].into_iter().chain(&notation.next).flatten();
    let texts: Vec<&str> = parts
        .filter_map(|part| match part {
            NotationPart::Text(text) => Some(text.as_str()),
            NotationPart::Id => None,
        })
        .collect();
    let mut special = tokenizer.tokens().filter(|(id, _)| tokenizer.is_special(*id));
    special.any(|(_, name)| {
        std::str::from_utf8(name)
            .is_ok_and(|name| !name.is_empty() && texts.iter().any(|text| text.contains(name)))
    })
}

/// Refuses tools where the answer is no message.
pub(crate) fn refuse_tools(body: &JsonObject) -> Result<()> {
    match OfferedTools::new(body.parse()?)?.offer {
        None => Ok(()),
        Some(_) => {
            Err(ApiError::unsupported("tools", "they belong to conversations; use /v1/chat/completions"))
        }
    }
}

/// What a request says of tools.
#[derive(Default)]
pub(crate) struct OfferedTools {
    /// For the prompt: all of them, unless none may be called.
    pub for_prompt: Option<Value>,
    offer: Option<Offer>,
}

struct Offer {
    functions: Vec<Function>,
    must_call: bool,
    max_calls: usize,
    /// One function was named.
    is_named: bool,
}

impl OfferedTools {
    pub fn new(fields: ToolFields) -> Result<Self> {
        let tools = fields.tools.unwrap_or_default();
        let choice = Choice::new(fields.tool_choice)?;
        if tools.is_empty() {
            return match choice {
                Choice::Auto(None) | Choice::None => Ok(Self::default()),
                _ => Err(ApiError::invalid("tool_choice", "is set without `tools`")),
            };
        }
        let functions: Vec<FunctionFields> =
            tools.iter().enumerate().map(|(idx, tool)| function(idx, tool)).collect::<Result<_>>()?;
        let (names, must_call, is_named) = match choice {
            Choice::None => return Ok(Self::default()),
            Choice::Auto(names) => (names, false, false),
            Choice::Required(names) => (names, true, false),
            Choice::Named(name) => (Some(vec![name]), true, true),
        };
        if let Some(unknown) = names.iter().flatten().find(|name| functions.iter().all(|f| f.name != **name))
        {
            let shown: String = unknown.chars().take(64).collect();
            return Err(ApiError::invalid(
                "tool_choice",
                format!("names {shown:?}, which is none of `tools`"),
            ));
        }
        let may_be_called = |f: &FunctionFields| names.as_ref().is_none_or(|names| names.contains(&f.name));
        let functions = functions.into_iter().filter(may_be_called).map(|f| Function {
            name: f.name,
            parameters: f.parameters,
            strict: f.strict.unwrap_or(false),
        });
        let is_single = is_named || fields.parallel_tool_calls == Some(false);
        let max_calls = if is_single { 1 } else { MAX_TOOL_CALLS };
        let offer = Offer { functions: functions.collect(), must_call, max_calls, is_named };
        Ok(Self { for_prompt: Some(Value::Array(tools)), offer: Some(offer) })
    }

    /// What the answer is held to, together with what else the request holds it to.
    pub fn hold(&self, tools: &TemplateTools, asked: Option<Asked>) -> Result<Option<Asked>> {
        let Some(offer) = &self.offer else { return Ok(asked) };
        let whitespace = asked.as_ref().map(|asked| asked.whitespace).unwrap_or_default();
        let beside = match asked.map(|asked| (asked.field, asked.spec)) {
            _ if offer.must_call => Beside::Nothing,
            None => Beside::Text,
            Some((_, Spec::JsonSchema { schema, strict })) => Beside::Json { schema, strict },
            Some((_, Spec::JsonObject)) => Beside::Json { schema: json!({"type": "object"}), strict: false },
            Some((field, _)) => {
                return Err(ApiError::invalid(
                    field,
                    "is set beside `tools`, which go with a JSON schema alone",
                ));
            }
        };
        let (functions, max_calls) = (offer.functions.clone(), offer.max_calls);
        let notation = tools.style.notation().clone();
        let calls = ToolCalls { notation, functions, beside, max_calls };
        Ok(Some(Asked { field: "tools", spec: Spec::ToolCalls(Box::new(calls)), whitespace }))
    }

    /// Reads answers, if there may be calls in them.
    pub fn reader(&self, tools: &TemplateTools) -> Option<AnswerReader> {
        let offer = self.offer.as_ref()?;
        Some(AnswerReader {
            notation: tools.notation.clone(),
            shows_special_tokens: tools.has_special_tokens,
            is_named: offer.is_named,
        })
    }
}

/// [`ToolChoice`], with the names that it speaks of.
enum Choice {
    None,
    Auto(Option<Vec<String>>),
    Required(Option<Vec<String>>),
    Named(String),
}

impl Choice {
    fn new(choice: Option<ToolChoice>) -> Result<Self> {
        let mode = |mode: &str, names| match mode {
            "auto" => Ok(Self::Auto(names)),
            // Mistral's word for it.
            "required" | "any" => Ok(Self::Required(names)),
            "none" if names.is_none() => Ok(Self::None),
            other => {
                let shown: String = other.chars().take(32).collect();
                let reason = format!("is {shown:?}, not \"none\", \"auto\", \"required\" or a function");
                Err(ApiError::invalid("tool_choice", reason))
            }
        };
        match choice {
            None => Ok(Self::Auto(None)),
            Some(ToolChoice::Mode(name)) => mode(&name, None),
            Some(ToolChoice::Named(NamedChoice::Function { function })) => Ok(Self::Named(function.name)),
            Some(ToolChoice::Named(NamedChoice::AllowedTools { allowed_tools })) => {
                let names = allowed_tools.tools.into_iter().map(|tool| tool.function.name).collect();
                mode(&allowed_tools.mode, Some(names))
            }
        }
    }
}

fn function(idx: usize, tool: &Value) -> Result<FunctionFields> {
    let at = |rest: &str| format!("tools[{idx}]{rest}");
    let parsed: Tool = serde_path_to_error::deserialize(tool).map_err(|error| {
        let path = error.path().to_string();
        let rest = if path == "." { String::new() } else { format!(".{path}") };
        ApiError::invalid(at(&rest), format!(": {}", error.inner()))
    })?;
    if parsed.kind != "function" {
        let shown: String = parsed.kind.chars().take(32).collect();
        return Err(ApiError::invalid(
            at(".type"),
            format!("is {shown:?}; this server knows functions alone"),
        ));
    }
    parsed.function.ok_or_else(|| ApiError::invalid(at(".function"), "is missing"))
}

/// How the answers of one request are read.
#[derive(Clone)]
pub(crate) struct AnswerReader {
    notation: Arc<ToolNotation>,
    pub shows_special_tokens: bool,
    is_named: bool,
}

impl AnswerReader {
    /// For one choice.
    pub fn choice(&self) -> ChoiceReader {
        ChoiceReader {
            parser: ToolCallParser::new(self.notation.clone()),
            of: self.clone(),
            events: Vec::new(),
        }
    }

    /// An id for a call whose text had none. Some templates ask for nine letters and digits.
    fn call_id(&self, state: &ServerState) -> String {
        let notation = &self.notation;
        let parts = notation.last.iter().chain(&notation.first).chain(&notation.middle);
        if !parts.into_iter().any(|part| *part == NotationPart::Id) {
            return state.ids.next("call_");
        }
        let id = state.ids.next("");
        id.get(id.len().saturating_sub(wardrobe_text::ID_LEN)..).unwrap_or_default().to_owned()
    }
}

/// A part of a choice, as it goes to the client.
pub(crate) enum ChoicePart {
    Text(String),
    Call(ToolCallDelta),
}

/// Reads one choice's text.
pub(crate) struct ChoiceReader {
    parser: ToolCallParser,
    of: AnswerReader,
    events: Vec<ToolEvent>,
}

impl ChoiceReader {
    /// Takes more text, or the end.
    pub fn read(&mut self, state: &ServerState, text: &str, is_end: bool) -> Vec<ChoicePart> {
        self.parser.push(text, &mut self.events);
        if is_end {
            self.parser.finish(&mut self.events);
        }
        let events = std::mem::take(&mut self.events);
        let part = |event| match event {
            ToolEvent::Text(text) => ChoicePart::Text(text),
            ToolEvent::Call { index, id, name } => {
                let id = id.unwrap_or_else(|| self.of.call_id(state));
                let function = FunctionDelta { name: Some(name), arguments: String::new() };
                ChoicePart::Call(ToolCallDelta { index, id: Some(id), kind: Some("function"), function })
            }
            ToolEvent::Arguments { index, text } => {
                let function = FunctionDelta { name: None, arguments: text };
                ChoicePart::Call(ToolCallDelta { index, id: None, kind: None, function })
            }
        };
        events.into_iter().map(part).collect()
    }

    /// OpenAI's word for the end of an answer with calls; where the client named the function, that is not the model's doing.
    pub fn finish_reason(&self, finish: Option<&Finish>, reason: &'static str) -> &'static str {
        let chosen =
            matches!(finish, Some(Finish::Stop(_))) && self.parser.num_calls() > 0 && !self.of.is_named;
        if chosen { "tool_calls" } else { reason }
    }
}

impl ChoicePart {
    /// Adds it to what a choice has brought before.
    pub fn add_to(&self, text: &mut String, calls: &mut Vec<ToolCall>) {
        match self {
            Self::Text(more) => text.push_str(more),
            Self::Call(part) => {
                if let Some(id) = part.id.clone() {
                    let name = part.function.name.clone().unwrap_or_default();
                    calls.push(ToolCall {
                        id,
                        kind: "function",
                        function: FunctionCall { name, arguments: String::new() },
                    });
                }
                if let Some(call) = calls.last_mut() {
                    call.function.arguments.push_str(&part.function.arguments);
                }
            }
        }
    }
}

/// Text and calls of a whole choice.
pub(crate) fn read_whole(
    state: &ServerState,
    reader: &mut ChoiceReader,
    text: &str,
) -> (String, Vec<ToolCall>) {
    let (mut beside, mut calls) = (String::new(), Vec::new());
    for part in reader.read(state, text, true) {
        part.add_to(&mut beside, &mut calls);
    }
    (beside, calls)
}
